
#include "ngx_http_vibe_global.h"
#include "ngx_http_vibe_answer.h"


typedef struct {
    ngx_http_vibe_next_pt      next;
    void                      *data;
    ngx_http_vibe_index_t     *index;
} ngx_http_vibe_index_ready_t;


static ngx_int_t ngx_http_vibe_index_info(ngx_http_request_t *r,
    ngx_http_vibe_call_t *call);
static ngx_uint_t ngx_http_vibe_index_behind(ngx_http_vibe_json_t *root);
static ngx_int_t ngx_http_vibe_index_building(ngx_http_request_t *r);


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


ngx_int_t
ngx_http_vibe_index_ready(ngx_http_request_t *r, ngx_http_vibe_index_t *index,
    ngx_http_vibe_next_pt next, void *data)
{
    u_char                       *p, suffix[64];
    ngx_http_vibe_index_ready_t  *g;

    if (index->ready) {
        return next(r, data, NULL);
    }

    if (index->building
        && ngx_current_msec - index->looked < NGX_HTTP_VIBE_INDEX_LOOK)
    {
        return ngx_http_vibe_index_building(r);
    }

    index->looked = ngx_current_msec;

    g = ngx_palloc(r->pool, sizeof(ngx_http_vibe_index_ready_t));
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
    ngx_http_vibe_index_ready_t *g = call->data;

    ngx_int_t                   rc;
    ngx_http_vibe_json_t       *root;
    ngx_http_vibe_index_t      *index;
    ngx_http_vibe_main_conf_t  *vmcf;

    vmcf = ngx_http_get_module_main_conf(r, ngx_http_vibe_module);

    index = g->index;

    if (call->status == NGX_HTTP_NOT_FOUND) {
        /* the query makes it again */
        vmcf->copies = 0;
        return ngx_http_vibe_index_building(r);
    }

    if (call->status >= NGX_HTTP_BAD_GATEWAY) {
        return g->next(r, g->data, call);
    }

    rc = ngx_http_vibe_scan_answer(r->pool, call, 3, &root);
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
    ngx_http_vibe_main_conf_t  *vmcf;

    vmcf = ngx_http_get_module_main_conf(r, ngx_http_vibe_module);

    index->ready = 0;
    vmcf->copies = 0;
}
