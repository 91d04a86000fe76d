
#include "ngx_http_vibe_index.h"

#include <ngx_sha1.h>


typedef struct {
    ngx_str_t                 *db;
    ngx_str_t                  name;
    ngx_array_t               *fields;
    ngx_http_vibe_next_pt      next;
    void                      *data;
    ngx_uint_t                 tries;
} ngx_http_vibe_index_create_t;


static ngx_int_t ngx_http_vibe_index_post(ngx_http_request_t *r,
    ngx_http_vibe_index_create_t *c);
static ngx_int_t ngx_http_vibe_index_created(ngx_http_request_t *r,
    ngx_http_vibe_call_t *call);


ngx_int_t
ngx_http_vibe_index_name(ngx_pool_t *pool, ngx_array_t *fields,
    ngx_str_t *name)
{
    u_char      *p, hash[20];
    ngx_str_t   *field;
    ngx_uint_t   i;
    ngx_sha1_t   sha1;

    ngx_sha1_init(&sha1);

    if (fields != NULL) {
        field = fields->elts;

        for (i = 0; i < fields->nelts; i++) {
            ngx_sha1_update(&sha1, field[i].data, field[i].len);
            ngx_sha1_update(&sha1, "", 1);
        }
    }

    ngx_sha1_final(hash, &sha1);

    name->len = sizeof(NGX_HTTP_VIBE_INDEX_PREFIX) - 1 + 16;

    p = ngx_pnalloc(pool, name->len);
    if (p == NULL) {
        return NGX_ERROR;
    }

    name->data = p;

    p = ngx_cpymem(p, NGX_HTTP_VIBE_INDEX_PREFIX,
                   sizeof(NGX_HTTP_VIBE_INDEX_PREFIX) - 1);
    ngx_hex_dump(p, hash, 8);

    return NGX_OK;
}


ngx_uint_t
ngx_http_vibe_index_same(ngx_array_t *a, ngx_array_t *b)
{
    ngx_str_t   *fa, *fb;
    ngx_uint_t   i;

    if (a->nelts != b->nelts) {
        return 0;
    }

    fa = a->elts;
    fb = b->elts;

    for (i = 0; i < a->nelts; i++) {
        if (!ngx_http_vibe_same(&fa[i], &fb[i])) {
            return 0;
        }
    }

    return 1;
}


ngx_int_t
ngx_http_vibe_index_create(ngx_http_request_t *r, ngx_str_t *db,
    ngx_str_t *name, ngx_array_t *fields, ngx_http_vibe_next_pt next,
    void *data)
{
    ngx_http_vibe_index_create_t  *c;

    c = ngx_palloc(r->pool, sizeof(ngx_http_vibe_index_create_t));
    if (c == NULL) {
        return NGX_ERROR;
    }

    c->db = db;
    c->name = *name;
    c->fields = fields;
    c->next = next;
    c->data = data;
    c->tries = 0;

    return ngx_http_vibe_index_post(r, c);
}


static ngx_int_t
ngx_http_vibe_index_post(ngx_http_request_t *r,
    ngx_http_vibe_index_create_t *c)
{
    ngx_http_vibe_json_out_t  out;

    ngx_http_vibe_json_out_init(&out, r->pool);
    ngx_http_vibe_index_put(&out, &c->name, c->fields);

    return ngx_http_vibe_request(r, NGX_HTTP_POST, c->db, "/_index", &out,
                                 ngx_http_vibe_index_created, c);
}


void
ngx_http_vibe_index_put(ngx_http_vibe_json_out_t *out, ngx_str_t *name,
    ngx_array_t *fields)
{
    ngx_str_t   *field;
    ngx_uint_t   i;

    ngx_http_vibe_json_put_text(out,
                                "{\"index\":{\"fields\":[\"collection\"");

    if (fields != NULL) {
        field = fields->elts;

        for (i = 0; i < fields->nelts; i++) {
            ngx_http_vibe_json_put_text(out, ",");
            ngx_http_vibe_json_put_string(out, &field[i]);
        }
    }

    ngx_http_vibe_json_put_text(out, "]},\"type\":\"json\",\"ddoc\":");
    ngx_http_vibe_json_put_string(out, name);
    ngx_http_vibe_json_put_text(out, ",\"name\":");
    ngx_http_vibe_json_put_string(out, name);
    ngx_http_vibe_json_put_text(out, "}");
}


static ngx_int_t
ngx_http_vibe_index_created(ngx_http_request_t *r, ngx_http_vibe_call_t *call)
{
    ngx_http_vibe_index_create_t *c = call->data;

    if (call->status == NGX_HTTP_OK || call->status == NGX_HTTP_CREATED) {
        return c->next(r, c->data, NULL);
    }

    if (ngx_http_vibe_index_raced(call->status)
        && ++c->tries < NGX_HTTP_VIBE_INDEX_TRIES)
    {
        return ngx_http_vibe_index_post(r, c);
    }

    return c->next(r, c->data, call);
}
