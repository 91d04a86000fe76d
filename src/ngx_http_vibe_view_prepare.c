
#include "ngx_http_vibe_view.h"
#include "ngx_http_vibe_database.h"
#include "ngx_http_vibe_find.h"
#include "ngx_http_vibe_index.h"


static void ngx_http_vibe_view_make(ngx_http_vibe_view_t *v);
static void ngx_http_vibe_view_made(ngx_http_vibe_ask_t *ask,
    ngx_http_vibe_call_t *call);
static void ngx_http_vibe_view_closed(ngx_http_vibe_ask_t *ask,
    ngx_http_vibe_call_t *call);
static void ngx_http_vibe_view_index(ngx_http_vibe_view_t *v);
static void ngx_http_vibe_view_indexed(ngx_http_vibe_ask_t *ask,
    ngx_http_vibe_call_t *call);
static void ngx_http_vibe_view_designs(ngx_http_vibe_ask_t *ask,
    ngx_http_vibe_call_t *call);
static void ngx_http_vibe_view_build_next(ngx_http_vibe_view_t *v);
static void ngx_http_vibe_view_built(ngx_http_vibe_ask_t *ask,
    ngx_http_vibe_call_t *call);
static ngx_str_t *ngx_http_vibe_view_unprepared(ngx_http_vibe_view_t *v);


void
ngx_http_vibe_view_prepare(ngx_http_vibe_view_t *v,
    ngx_http_vibe_view_pt next)
{
    v->next = next;
    v->tries = 0;

    ngx_http_vibe_view_make(v);
}


/* the first database that is not prepared, or NULL */

static ngx_str_t *
ngx_http_vibe_view_unprepared(ngx_http_vibe_view_t *v)
{
    ngx_uint_t  i;

    for (i = 0; i < 2; i++) {
        if (!v->prepared[i]) {
            return &v->feed.dbs[i];
        }
    }

    return NULL;
}


static void
ngx_http_vibe_view_make(ngx_http_vibe_view_t *v)
{
    ngx_str_t  *db;

    db = ngx_http_vibe_view_unprepared(v);

    if (db == NULL) {
        v->next(v);
        return;
    }

    ngx_http_vibe_ask(&v->ask, NGX_HTTP_PUT, db, "", NULL,
                      ngx_http_vibe_view_made);
}


static void
ngx_http_vibe_view_made(ngx_http_vibe_ask_t *ask, ngx_http_vibe_call_t *call)
{
    ngx_http_vibe_view_t *v = ask->data;

    ngx_str_t                 *db;
    ngx_uint_t                 i;
    ngx_http_vibe_json_out_t   out;

    v->step = 0;

    db = ngx_http_vibe_view_unprepared(v);
    i = db - v->feed.dbs;

    if (call->status == NGX_HTTP_CREATED || call->status == NGX_HTTP_ACCEPTED)
    {
        /* a new one holds nothing, whatever was known of the old one */

        v->full[i] = 1;
        v->made[i] = 1;

        if (v->exists && v->current == i) {
            v->exists = 0;
        }

    } else if (call->status != NGX_HTTP_PRECONDITION_FAILED) {
        ngx_http_vibe_view_failed(v, call, NULL);
        return;
    }

    /* whoever has made it may not have come as far as this */

    ngx_http_vibe_json_out_init(&out, ask->pool);
    ngx_http_vibe_database_put_security(&out);

    ngx_http_vibe_ask(ask, NGX_HTTP_PUT, db, "/_security", &out,
                      ngx_http_vibe_view_closed);
}


static void
ngx_http_vibe_view_closed(ngx_http_vibe_ask_t *ask,
    ngx_http_vibe_call_t *call)
{
    ngx_http_vibe_view_t *v = ask->data;

    if (call->status != NGX_HTTP_OK) {
        ngx_http_vibe_view_failed(v, call, NULL);
        return;
    }

    ngx_http_vibe_view_index(v);
}


static void
ngx_http_vibe_view_index(ngx_http_vibe_view_t *v)
{
    ngx_str_t                  name, *db;
    ngx_array_t               *fields;
    ngx_http_vibe_json_out_t   out;

    db = ngx_http_vibe_view_unprepared(v);

    if (v->step == v->indexes.nelts) {
        ngx_http_vibe_ask(&v->ask, NGX_HTTP_GET, db,
                          "/_all_docs?startkey=%22_design%2F%22"
                          "&endkey=%22_design0%22", NULL,
                          ngx_http_vibe_view_designs);
        return;
    }

    fields = v->indexes.elts;
    fields += v->step;

    if (ngx_http_vibe_index_name(v->ask.pool, fields, &name) != NGX_OK) {
        ngx_http_vibe_view_failed(v, NULL, "no memory");
        return;
    }

    ngx_http_vibe_json_out_init(&out, v->ask.pool);
    ngx_http_vibe_index_put(&out, &name, fields);

    ngx_http_vibe_ask(&v->ask, NGX_HTTP_POST, db, "/_index", &out,
                      ngx_http_vibe_view_indexed);
}


static void
ngx_http_vibe_view_indexed(ngx_http_vibe_ask_t *ask,
    ngx_http_vibe_call_t *call)
{
    ngx_http_vibe_view_t *v = ask->data;

    if (ngx_http_vibe_index_raced(call->status)
        && ++v->tries < NGX_HTTP_VIBE_INDEX_TRIES)
    {
        ngx_http_vibe_view_index(v);
        return;
    }

    if (call->status != NGX_HTTP_OK) {
        ngx_http_vibe_view_failed(v, call, NULL);
        return;
    }

    v->step++;
    ngx_http_vibe_view_index(v);
}


/* CouchDB counts them as documents */

static void
ngx_http_vibe_view_designs(ngx_http_vibe_ask_t *ask,
    ngx_http_vibe_call_t *call)
{
    ngx_http_vibe_view_t *v = ask->data;

    ngx_uint_t             i;
    ngx_http_vibe_json_t  *root, *rows;

    rows = NULL;

    if (call->status == NGX_HTTP_OK
        && ngx_http_vibe_scan_answer(ask->pool, call, 2, &root) == NGX_OK)
    {
        rows = ngx_http_vibe_json_get(root, "rows");
    }

    if (rows == NULL || rows->type != NGX_HTTP_VIBE_JSON_ARRAY) {
        ngx_http_vibe_view_failed(v, call, NULL);
        return;
    }

    i = ngx_http_vibe_view_unprepared(v) - v->feed.dbs;

    v->designs[i] = rows->n;
    v->prepared[i] = 1;

    ngx_http_vibe_view_make(v);
}


void
ngx_http_vibe_view_build(ngx_http_vibe_view_t *v, ngx_http_vibe_view_pt next)
{
    v->next = next;
    v->step = 0;

    ngx_http_vibe_view_build_next(v);
}


/* who reads first would wait for the index else */

static void
ngx_http_vibe_view_build_next(ngx_http_vibe_view_t *v)
{
    ngx_str_t                  name;
    ngx_array_t               *fields;
    ngx_http_vibe_find_t       find;
    ngx_http_vibe_json_t       body;
    ngx_http_vibe_json_out_t   out;

    if (v->step == v->indexes.nelts) {
        v->ask.timeout = 0;
        v->next(v);
        return;
    }

    fields = v->indexes.elts;
    fields += v->step;

    if (ngx_http_vibe_index_name(v->ask.pool, fields, &name) != NGX_OK) {
        ngx_http_vibe_view_failed(v, NULL, "no memory");
        return;
    }

    ngx_memzero(&find, sizeof(ngx_http_vibe_find_t));
    ngx_memzero(&body, sizeof(ngx_http_vibe_json_t));

    find.body = &body;
    find.sort = fields;
    find.limit = 1;

    ngx_http_vibe_json_out_init(&out, v->ask.pool);
    ngx_http_vibe_find_put(&out, &find, &v->feed.collection, NULL, &name);

    v->ask.timeout = NGX_HTTP_VIBE_VIEW_BUILD;

    ngx_http_vibe_ask(&v->ask, NGX_HTTP_POST, &v->feed.dbs[v->target],
                      "/_find", &out, ngx_http_vibe_view_built);
}


static void
ngx_http_vibe_view_built(ngx_http_vibe_ask_t *ask, ngx_http_vibe_call_t *call)
{
    ngx_http_vibe_view_t *v = ask->data;

    if (call->status != NGX_HTTP_OK) {
        v->prepared[v->target] = 0;
        ngx_http_vibe_view_failed(v, call, NULL);
        return;
    }

    v->step++;
    ngx_http_vibe_view_build_next(v);
}
