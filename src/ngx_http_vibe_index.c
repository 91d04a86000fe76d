
#include "ngx_http_vibe_index.h"

#include <ngx_sha1.h>


static void ngx_http_vibe_index_put_field(ngx_http_vibe_json_out_t *out,
    ngx_str_t *field, ngx_uint_t descending);


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


ngx_int_t
ngx_http_vibe_index_create(ngx_http_request_t *r, ngx_str_t *db,
    ngx_str_t *name, ngx_array_t *fields, ngx_http_vibe_call_pt handler,
    void *data)
{
    ngx_str_t                 *field;
    ngx_uint_t                 i;
    ngx_http_vibe_json_out_t   out;

    ngx_http_vibe_json_out_init(&out, r->pool);

    ngx_http_vibe_json_put_text(&out,
                                "{\"index\":{\"fields\":[\"collection\"");

    if (fields != NULL) {
        field = fields->elts;

        for (i = 0; i < fields->nelts; i++) {
            ngx_http_vibe_json_put_text(&out, ",");
            ngx_http_vibe_json_put_string(&out, &field[i]);
        }
    }

    ngx_http_vibe_json_put_text(&out, "]},\"type\":\"json\",\"ddoc\":");
    ngx_http_vibe_json_put_string(&out, name);
    ngx_http_vibe_json_put_text(&out, ",\"name\":");
    ngx_http_vibe_json_put_string(&out, name);
    ngx_http_vibe_json_put_text(&out, "}");

    return ngx_http_vibe_request(r, NGX_HTTP_POST, db, "/_index", &out,
                                 handler, data);
}


void
ngx_http_vibe_index_put_sort(ngx_http_vibe_json_out_t *out,
    ngx_array_t *fields, ngx_uint_t descending)
{
    ngx_str_t   *field, collection;
    ngx_uint_t   i;

    ngx_str_set(&collection, "collection");

    ngx_http_vibe_json_put_text(out, ",\"sort\":[");
    ngx_http_vibe_index_put_field(out, &collection, descending);

    field = fields->elts;

    for (i = 0; i < fields->nelts; i++) {
        ngx_http_vibe_json_put_text(out, ",");
        ngx_http_vibe_index_put_field(out, &field[i], descending);
    }

    ngx_http_vibe_json_put_text(out, "]");
}


static void
ngx_http_vibe_index_put_field(ngx_http_vibe_json_out_t *out,
    ngx_str_t *field, ngx_uint_t descending)
{
    ngx_http_vibe_json_put_text(out, "{");
    ngx_http_vibe_json_put_string(out, field);

    if (descending) {
        ngx_http_vibe_json_put_text(out, ":\"desc\"}");

    } else {
        ngx_http_vibe_json_put_text(out, ":\"asc\"}");
    }
}


void
ngx_http_vibe_index_put_conditions(ngx_http_vibe_json_out_t *out,
    ngx_array_t *fields)
{
    ngx_str_t   *field;
    ngx_uint_t   i;

    field = fields->elts;

    for (i = 0; i < fields->nelts; i++) {
        ngx_http_vibe_json_put_text(out, ",{");
        ngx_http_vibe_json_put_string(out, &field[i]);

        /* null is where the order of CouchDB begins */
        ngx_http_vibe_json_put_text(out, ":{\"$gte\":null}}");
    }
}
