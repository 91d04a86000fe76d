
#include "ngx_http_vibe_lookup.h"


/* results, result, docs, doc, ok, member */
#define NGX_HTTP_VIBE_LOOKUP_DEPTH  6


static ngx_int_t ngx_http_vibe_lookup_send(ngx_http_request_t *r,
    ngx_http_vibe_lookup_t *lookup);
static ngx_int_t ngx_http_vibe_lookup_answer(ngx_http_request_t *r,
    ngx_http_vibe_call_t *call);
static ngx_int_t ngx_http_vibe_lookup_read(ngx_http_vibe_lookup_t *lookup,
    ngx_http_vibe_json_t *root);
static ngx_int_t ngx_http_vibe_lookup_leaf(ngx_http_vibe_leaf_t *row,
    ngx_http_vibe_json_t *result);
static void ngx_http_vibe_lookup_loser(ngx_http_vibe_leaf_t *row,
    ngx_str_t *rev, ngx_uint_t deleted);


ngx_http_vibe_lookup_t *
ngx_http_vibe_lookup_create(ngx_pool_t *pool,
    ngx_http_vibe_main_conf_t *vmcf, ngx_str_t *db, ngx_uint_t n)
{
    ngx_http_vibe_lookup_t  *lookup;

    lookup = ngx_pcalloc(pool, sizeof(ngx_http_vibe_lookup_t));
    if (lookup == NULL) {
        return NULL;
    }

    if (ngx_array_init(&lookup->rows, pool, n,
                       sizeof(ngx_http_vibe_leaf_t))
        != NGX_OK)
    {
        return NULL;
    }

    lookup->db = *db;
    lookup->max_response = vmcf->couch.max_response;

    return lookup;
}


ngx_http_vibe_leaf_t *
ngx_http_vibe_lookup_add(ngx_http_vibe_lookup_t *lookup, ngx_str_t *id)
{
    ngx_http_vibe_leaf_t  *row;

    row = ngx_array_push(&lookup->rows);
    if (row == NULL) {
        return NULL;
    }

    ngx_memzero(row, sizeof(ngx_http_vibe_leaf_t));

    row->id = *id;

    lookup->n = lookup->rows.nelts;

    return row;
}


ngx_int_t
ngx_http_vibe_lookup(ngx_http_request_t *r, ngx_http_vibe_lookup_t *lookup,
    ngx_http_vibe_next_pt next, void *data)
{
    lookup->next = next;
    lookup->data = data;

    if (lookup->n == 0) {
        return next(r, data, NULL);
    }

    return ngx_http_vibe_lookup_send(r, lookup);
}


static ngx_int_t
ngx_http_vibe_lookup_send(ngx_http_request_t *r,
    ngx_http_vibe_lookup_t *lookup)
{
    ngx_http_vibe_json_out_t  out;

    ngx_http_vibe_json_out_init(&out, r->pool);
    ngx_http_vibe_lookup_ask(lookup, &out);

    return ngx_http_vibe_request(r, NGX_HTTP_POST, &lookup->db,
                                 NGX_HTTP_VIBE_LOOKUP_PATH, &out,
                                 ngx_http_vibe_lookup_answer, lookup);
}


static ngx_int_t
ngx_http_vibe_lookup_answer(ngx_http_request_t *r, ngx_http_vibe_call_t *call)
{
    ngx_http_vibe_lookup_t *lookup = call->data;

    switch (ngx_http_vibe_lookup_take(lookup, call)) {

    case NGX_OK:
        return lookup->next(r, lookup->data, NULL);

    case NGX_AGAIN:
        return ngx_http_vibe_lookup_send(r, lookup);

    case NGX_DECLINED:
        return lookup->next(r, lookup->data, call);

    default:
        return NGX_ERROR;
    }
}


void
ngx_http_vibe_lookup_ask(ngx_http_vibe_lookup_t *lookup,
    ngx_http_vibe_json_out_t *out)
{
    ngx_uint_t                   i;
    ngx_http_vibe_leaf_t  *row;

    row = lookup->rows.elts;

    ngx_http_vibe_json_put_text(out, "{\"docs\":[");

    for (i = lookup->from; i < lookup->from + lookup->n; i++) {
        if (i > lookup->from) {
            ngx_http_vibe_json_put_text(out, ",");
        }

        ngx_http_vibe_json_put_text(out, "{\"id\":");
        ngx_http_vibe_json_put_string(out, &row[i].id);
        ngx_http_vibe_json_put_text(out, "}");
    }

    ngx_http_vibe_json_put_text(out, "]}");
}


ngx_int_t
ngx_http_vibe_lookup_take(ngx_http_vibe_lookup_t *lookup,
    ngx_http_vibe_call_t *call)
{
    size_t                 max;
    ngx_int_t              rc;
    ngx_http_vibe_json_t  *root;

    if (ngx_http_vibe_no_database(call)) {
        lookup->missing = 1;
        return NGX_OK;
    }

    rc = NGX_DECLINED;

    lookup->size += call->answer.len;

    max = NGX_HTTP_VIBE_LOOKUP_ANSWERS * lookup->max_response;

    if (lookup->size > max) {
        call->status = NGX_HTTP_REQUEST_ENTITY_TOO_LARGE;
    }

    if (call->status == NGX_HTTP_OK) {
        rc = ngx_http_vibe_scan_answer(lookup->rows.pool, call,
                                       NGX_HTTP_VIBE_LOOKUP_DEPTH, &root);
    }

    if (rc == NGX_DECLINED && call->too_large && lookup->n > 1) {
        lookup->n /= 2;
        return NGX_AGAIN;
    }

    if (rc != NGX_OK) {
        return rc;
    }

    if (ngx_http_vibe_lookup_read(lookup, root) != NGX_OK) {
        call->status = NGX_HTTP_BAD_GATEWAY;
        return NGX_DECLINED;
    }

    lookup->from += lookup->n;
    lookup->n = ngx_min(lookup->n, lookup->rows.nelts - lookup->from);

    if (lookup->partly && lookup->size + lookup->max_response > max) {
        return NGX_OK;
    }

    return lookup->n ? NGX_AGAIN : NGX_OK;
}


/* the results come in the order of what was asked */

static ngx_int_t
ngx_http_vibe_lookup_read(ngx_http_vibe_lookup_t *lookup,
    ngx_http_vibe_json_t *root)
{
    ngx_uint_t                   i;
    ngx_http_vibe_json_t        *results, *result, *id, *docs, *doc;
    ngx_http_vibe_leaf_t  *row;

    results = ngx_http_vibe_json_get(root, "results");

    if (results == NULL
        || results->type != NGX_HTTP_VIBE_JSON_ARRAY
        || results->n != lookup->n)
    {
        return NGX_DECLINED;
    }

    row = lookup->rows.elts;
    i = lookup->from;

    for (result = results->child; result; result = result->next, i++) {

        id = ngx_http_vibe_json_get(result, "id");
        docs = ngx_http_vibe_json_get(result, "docs");

        if (id == NULL
            || id->type != NGX_HTTP_VIBE_JSON_STRING
            || !ngx_http_vibe_same(&id->string, &row[i].id)
            || docs == NULL
            || docs->type != NGX_HTTP_VIBE_JSON_ARRAY)
        {
            return NGX_DECLINED;
        }

        if (docs->n == 0) {
            return NGX_DECLINED;
        }

        for (doc = docs->child; doc; doc = doc->next) {
            if (ngx_http_vibe_lookup_leaf(&row[i], doc) != NGX_OK) {
                return NGX_DECLINED;
            }
        }
    }

    return NGX_OK;
}


/* a leaf, or an error: only "not_found" says that there is none */

static ngx_int_t
ngx_http_vibe_lookup_leaf(ngx_http_vibe_leaf_t *row,
    ngx_http_vibe_json_t *result)
{
    ngx_uint_t             deleted;
    ngx_http_vibe_json_t  *doc, *rev, *del, *error;

    doc = ngx_http_vibe_json_get(result, "ok");

    if (doc == NULL) {
        error = ngx_http_vibe_json_get(result, "error");

        return ngx_http_vibe_json_is_string(
                         ngx_http_vibe_json_get(error, "error"), "not_found")
               ? NGX_OK : NGX_DECLINED;
    }

    rev = ngx_http_vibe_json_get(doc, "_rev");
    del = ngx_http_vibe_json_get(doc, "_deleted");

    if (rev == NULL || rev->type != NGX_HTTP_VIBE_JSON_STRING) {
        return NGX_DECLINED;
    }

    deleted = (del != NULL && del->type == NGX_HTTP_VIBE_JSON_TRUE);

    if (row->doc != NULL) {
        row->conflicts = 1;

        if (deleted > row->deleted
            || (deleted == row->deleted
                && ngx_http_vibe_rev_cmp(&rev->string, &row->rev) < 0))
        {
            ngx_http_vibe_lookup_loser(row, &rev->string, deleted);
            return NGX_OK;
        }

        ngx_http_vibe_lookup_loser(row, &row->rev, row->deleted);
    }

    row->doc = doc;
    row->rev = rev->string;
    row->deleted = deleted;

    return NGX_OK;
}


static void
ngx_http_vibe_lookup_loser(ngx_http_vibe_leaf_t *row, ngx_str_t *rev,
    ngx_uint_t deleted)
{
    if (!deleted && row->nlosers < NGX_HTTP_VIBE_LOSERS) {
        row->losers[row->nlosers++] = *rev;
    }
}
