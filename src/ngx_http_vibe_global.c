
#include "ngx_http_vibe_global.h"
#include "ngx_http_vibe_answer.h"
#include "ngx_http_vibe_database.h"


typedef struct {
    ngx_http_vibe_next_pt      next;
    void                      *data;
    ngx_http_vibe_index_t     *index;
    ngx_uint_t                 i;          /* the index being made */
    ngx_uint_t                 copies;
    ngx_uint_t                 made;       /* the database, just now */
} ngx_http_vibe_global_t;


static ngx_int_t ngx_http_vibe_global_info(ngx_http_request_t *r,
    ngx_http_vibe_call_t *call);
static ngx_int_t ngx_http_vibe_global_created(ngx_http_request_t *r,
    ngx_http_vibe_call_t *call);
static ngx_int_t ngx_http_vibe_global_closed(ngx_http_request_t *r,
    ngx_http_vibe_call_t *call);
static ngx_int_t ngx_http_vibe_global_next_index(ngx_http_request_t *r,
    void *data, ngx_http_vibe_call_t *failed);
static ngx_int_t ngx_http_vibe_index_info(ngx_http_request_t *r,
    ngx_http_vibe_call_t *call);
static ngx_uint_t ngx_http_vibe_index_behind(ngx_http_vibe_json_t *root);
static ngx_int_t ngx_http_vibe_index_building(ngx_http_request_t *r);
static ngx_uint_t ngx_http_vibe_index_same(ngx_array_t *a, ngx_array_t *b);


ngx_str_t  ngx_http_vibe_global = ngx_string(NGX_HTTP_VIBE_GLOBAL);


ngx_int_t
ngx_http_vibe_global_ready(ngx_http_request_t *r, ngx_http_vibe_next_pt next,
    void *data)
{
    ngx_http_vibe_global_t     *g;
    ngx_http_vibe_main_conf_t  *vmcf;

    vmcf = ngx_http_get_module_main_conf(r, ngx_http_vibe_module);

    if (vmcf->copies) {
        return next(r, data, NULL);
    }

    g = ngx_pcalloc(r->pool, sizeof(ngx_http_vibe_global_t));
    if (g == NULL) {
        return NGX_ERROR;
    }

    g->next = next;
    g->data = data;

    return ngx_http_vibe_request(r, NGX_HTTP_GET, &ngx_http_vibe_global, "",
                                 NULL, ngx_http_vibe_global_info, g);
}


void
ngx_http_vibe_global_gone(ngx_http_request_t *r)
{
    ngx_http_vibe_main_conf_t  *vmcf;

    vmcf = ngx_http_get_module_main_conf(r, ngx_http_vibe_module);

    vmcf->copies = 0;
}


static ngx_int_t
ngx_http_vibe_global_info(ngx_http_request_t *r, ngx_http_vibe_call_t *call)
{
    ngx_http_vibe_global_t *g = call->data;

    ngx_http_vibe_json_t  *root, *n;

    if (ngx_http_vibe_no_database(call)) {

        if (g->made) {
            return g->next(r, g->data, call);
        }

        return ngx_http_vibe_request(r, NGX_HTTP_PUT, &ngx_http_vibe_global,
                                     "", NULL, ngx_http_vibe_global_created,
                                     g);
    }

    if (call->status != NGX_HTTP_OK) {
        return g->next(r, g->data, call);
    }

    if (ngx_http_vibe_scan_answer(r, call, 2, &root) != NGX_OK) {
        call->status = NGX_HTTP_BAD_GATEWAY;
        return g->next(r, g->data, call);
    }

    /* "cluster":{"n":3}: the copies a write must reach to be seen by all */

    n = ngx_http_vibe_json_get(ngx_http_vibe_json_get(root, "cluster"), "n");

    if (n == NULL
        || ngx_http_vibe_json_uint(n, 100, &g->copies) != NGX_OK
        || g->copies == 0)
    {
        g->copies = 1;
    }

    return ngx_http_vibe_global_next_index(r, g, NULL);
}


static ngx_int_t
ngx_http_vibe_global_created(ngx_http_request_t *r,
    ngx_http_vibe_call_t *call)
{
    ngx_http_vibe_global_t *g = call->data;

    switch (call->status) {

    case NGX_HTTP_CREATED:
    case NGX_HTTP_ACCEPTED:
        return ngx_http_vibe_database_close(r, &ngx_http_vibe_global,
                                            ngx_http_vibe_global_closed, g);

    case NGX_HTTP_PRECONDITION_FAILED:
        g->made = 1;

        return ngx_http_vibe_request(r, NGX_HTTP_GET, &ngx_http_vibe_global,
                                     "", NULL, ngx_http_vibe_global_info, g);

    default:
        return g->next(r, g->data, call);
    }
}


static ngx_int_t
ngx_http_vibe_global_closed(ngx_http_request_t *r, ngx_http_vibe_call_t *call)
{
    ngx_http_vibe_global_t *g = call->data;

    if (call->status != NGX_HTTP_OK) {
        return g->next(r, g->data, call);
    }

    g->made = 1;

    return ngx_http_vibe_request(r, NGX_HTTP_GET, &ngx_http_vibe_global, "",
                                 NULL, ngx_http_vibe_global_info, g);
}


static ngx_int_t
ngx_http_vibe_global_next_index(ngx_http_request_t *r, void *data,
    ngx_http_vibe_call_t *failed)
{
    ngx_http_vibe_global_t *g = data;

    ngx_http_vibe_index_t      *index;
    ngx_http_vibe_main_conf_t  *vmcf;

    if (failed != NULL) {
        return g->next(r, g->data, failed);
    }

    vmcf = ngx_http_get_module_main_conf(r, ngx_http_vibe_module);

    if (g->i == vmcf->indexes.nelts) {
        vmcf->copies = g->copies;
        return g->next(r, g->data, NULL);
    }

    index = vmcf->indexes.elts;
    index += g->i++;

    return ngx_http_vibe_index_create(r, &ngx_http_vibe_global, &index->name,
                                      &index->fields,
                                      ngx_http_vibe_global_next_index, g);
}


ngx_http_vibe_index_t *
ngx_http_vibe_global_index(ngx_http_request_t *r, ngx_str_t *collection,
    ngx_array_t *fields)
{
    ngx_uint_t                  i;
    ngx_http_vibe_index_t      *index;
    ngx_http_vibe_main_conf_t  *vmcf;

    vmcf = ngx_http_get_module_main_conf(r, ngx_http_vibe_module);

    index = vmcf->indexes.elts;

    for (i = 0; i < vmcf->indexes.nelts; i++) {

        if ((index[i].collection.len == 1
             && index[i].collection.data[0] == '*')
            || ngx_http_vibe_same(&index[i].collection, collection))
        {
            if (ngx_http_vibe_index_same(&index[i].fields, fields)) {
                return &index[i];
            }
        }
    }

    return NULL;
}


static ngx_uint_t
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
ngx_http_vibe_index_ready(ngx_http_request_t *r, ngx_http_vibe_index_t *index,
    ngx_http_vibe_next_pt next, void *data)
{
    u_char                  *p, suffix[64];
    ngx_http_vibe_global_t  *g;

    if (index->ready) {
        return next(r, data, NULL);
    }

    if (index->building
        && ngx_current_msec - index->looked < NGX_HTTP_VIBE_INDEX_LOOK)
    {
        return ngx_http_vibe_index_building(r);
    }

    index->looked = ngx_current_msec;

    g = ngx_pcalloc(r->pool, sizeof(ngx_http_vibe_global_t));
    if (g == NULL) {
        return NGX_ERROR;
    }

    g->next = next;
    g->data = data;
    g->index = index;

    p = ngx_snprintf(suffix, sizeof(suffix) - 1, "/_design/%V/_info",
                     &index->name);
    *p = '\0';

    return ngx_http_vibe_request(r, NGX_HTTP_GET, &ngx_http_vibe_global,
                                 (const char *) suffix, NULL,
                                 ngx_http_vibe_index_info, g);
}


static ngx_int_t
ngx_http_vibe_index_info(ngx_http_request_t *r, ngx_http_vibe_call_t *call)
{
    ngx_http_vibe_global_t *g = call->data;

    ngx_int_t               rc;
    ngx_http_vibe_json_t   *root;
    ngx_http_vibe_index_t  *index;

    index = g->index;

    if (call->status == NGX_HTTP_NOT_FOUND) {
        /* the query makes it again */
        ngx_http_vibe_global_gone(r);
        return ngx_http_vibe_index_building(r);
    }

    if (call->status >= NGX_HTTP_BAD_GATEWAY) {
        return g->next(r, g->data, call);
    }

    rc = ngx_http_vibe_scan_answer(r, call, 3, &root);
    if (rc == NGX_ERROR) {
        return NGX_ERROR;
    }

    /* where CouchDB does not say, the query finds out */

    index->building = (rc == NGX_OK && ngx_http_vibe_index_behind(root));

    if (index->building) {
        return ngx_http_vibe_index_building(r);
    }

    index->ready = 1;

    return g->next(r, g->data, NULL);
}


/*
 * One that is behind and that nobody works on yet is not "being built": the
 * query that waits for it sets CouchDB to work.
 */

static ngx_uint_t
ngx_http_vibe_index_behind(ngx_http_vibe_json_t *root)
{
    ngx_uint_t             n;
    ngx_http_vibe_json_t  *view, *running, *total;

    view = ngx_http_vibe_json_get(root, "view_index");
    running = ngx_http_vibe_json_get(view, "updater_running");
    total = ngx_http_vibe_json_get(
                    ngx_http_vibe_json_get(view, "updates_pending"), "total");

    return running != NULL
           && running->type == NGX_HTTP_VIBE_JSON_TRUE
           && total != NULL
           && ngx_http_vibe_json_uint(total, NGX_HTTP_VIBE_INDEX_BEHIND, &n)
              != NGX_OK;
}


static ngx_int_t
ngx_http_vibe_index_building(ngx_http_request_t *r)
{
    return ngx_http_vibe_error_text(r, NGX_HTTP_SERVICE_UNAVAILABLE,
                              "The index for this sort is being built.");
}


void
ngx_http_vibe_index_gone(ngx_http_request_t *r,
    ngx_http_vibe_index_t *index)
{
    index->ready = 0;

    ngx_http_vibe_global_gone(r);
}
