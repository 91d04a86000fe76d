
#include "ngx_http_vibe_bulk.h"


static ngx_int_t ngx_http_vibe_bulk_send(ngx_http_request_t *r,
    ngx_http_vibe_bulk_t *bulk);
static ngx_int_t ngx_http_vibe_bulk_answer(ngx_http_request_t *r,
    ngx_http_vibe_call_t *call);
static ngx_int_t ngx_http_vibe_bulk_read(ngx_http_vibe_bulk_t *bulk,
    ngx_http_vibe_call_t *call, ngx_uint_t status);
static ngx_int_t ngx_http_vibe_bulk_refused(ngx_http_vibe_bulk_t *bulk,
    ngx_http_vibe_call_t *call);
static ngx_int_t ngx_http_vibe_bulk_gave_up(ngx_http_vibe_bulk_t *bulk,
    ngx_http_vibe_call_t *call);
static ngx_int_t ngx_http_vibe_bulk_row(ngx_http_vibe_bulk_row_t *row,
    ngx_uint_t status, ngx_http_vibe_json_t *node);
static ngx_uint_t ngx_http_vibe_bulk_status(ngx_str_t *error);


ngx_http_vibe_bulk_t *
ngx_http_vibe_bulk_create(ngx_pool_t *pool, ngx_str_t *db, ngx_uint_t n)
{
    ngx_http_vibe_bulk_t  *bulk;

    bulk = ngx_pcalloc(pool, sizeof(ngx_http_vibe_bulk_t));
    if (bulk == NULL) {
        return NULL;
    }

    if (ngx_array_init(&bulk->rows, pool, n,
                       sizeof(ngx_http_vibe_bulk_row_t))
        != NGX_OK)
    {
        return NULL;
    }

    bulk->db = *db;

    return bulk;
}


ngx_http_vibe_bulk_row_t *
ngx_http_vibe_bulk_add(ngx_http_vibe_bulk_t *bulk, void *data)
{
    ngx_http_vibe_bulk_row_t  *row;

    row = ngx_array_push(&bulk->rows);
    if (row == NULL) {
        return NULL;
    }

    ngx_memzero(row, sizeof(ngx_http_vibe_bulk_row_t));

    ngx_http_vibe_json_out_init(&row->doc, bulk->rows.pool);
    row->data = data;

    bulk->n = bulk->rows.nelts;

    return row;
}


ngx_int_t
ngx_http_vibe_bulk(ngx_http_request_t *r, ngx_http_vibe_bulk_t *bulk,
    ngx_http_vibe_next_pt next, void *data)
{
    bulk->next = next;
    bulk->data = data;

    if (bulk->n == 0) {
        return next(r, data, NULL);
    }

    return ngx_http_vibe_bulk_send(r, bulk);
}


static ngx_int_t
ngx_http_vibe_bulk_send(ngx_http_request_t *r, ngx_http_vibe_bulk_t *bulk)
{
    u_char                    path[NGX_HTTP_VIBE_BULK_PATH_MAX];
    ngx_http_vibe_json_out_t  out;

    ngx_http_vibe_json_out_init(&out, r->pool);
    ngx_http_vibe_bulk_ask(bulk, &out, path);

    return ngx_http_vibe_request(r, NGX_HTTP_POST, &bulk->db,
                                 (const char *) path, &out,
                                 ngx_http_vibe_bulk_answer, bulk);
}


static ngx_int_t
ngx_http_vibe_bulk_answer(ngx_http_request_t *r, ngx_http_vibe_call_t *call)
{
    ngx_http_vibe_bulk_t *bulk = call->data;

    switch (ngx_http_vibe_bulk_take(bulk, call)) {

    case NGX_OK:
        return bulk->next(r, bulk->data, NULL);

    case NGX_AGAIN:
        return ngx_http_vibe_bulk_send(r, bulk);

    case NGX_DECLINED:
        return bulk->next(r, bulk->data, call);

    default:
        return NGX_ERROR;
    }
}


void
ngx_http_vibe_bulk_ask(ngx_http_vibe_bulk_t *bulk,
    ngx_http_vibe_json_out_t *out, u_char *path)
{
    ngx_uint_t                 i;
    ngx_http_vibe_bulk_row_t  *row;

    row = bulk->rows.elts;

    ngx_http_vibe_json_put_text(out, "{\"docs\":[");

    for (i = bulk->from; i < bulk->from + bulk->n; i++) {
        if (i > bulk->from) {
            ngx_http_vibe_json_put_text(out, ",");
        }

        ngx_http_vibe_json_put_out(out, &row[i].doc);
    }

    ngx_http_vibe_json_put_text(out, "]}");

    path = ngx_cpymem(path, "/_bulk_docs", sizeof("/_bulk_docs") - 1);

    if (bulk->copies) {
        path = ngx_sprintf(path, "?w=%ui", bulk->copies);
    }

    *path = '\0';
}


ngx_int_t
ngx_http_vibe_bulk_take(ngx_http_vibe_bulk_t *bulk,
    ngx_http_vibe_call_t *call)
{
    ngx_int_t   rc;
    ngx_uint_t  status;

    if (ngx_http_vibe_no_database(call)) {
        bulk->missing = 1;
        return ngx_http_vibe_bulk_gave_up(bulk, call);
    }

    switch (call->status) {

    case NGX_HTTP_CREATED:
    case NGX_HTTP_ACCEPTED:
        rc = ngx_http_vibe_bulk_read(bulk, call, call->status);
        break;

    case NGX_HTTP_UNAUTHORIZED:
    case NGX_HTTP_FORBIDDEN:
    case NGX_HTTP_NOT_FOUND:
    case NGX_HTTP_TOO_MANY_REQUESTS:
    case NGX_HTTP_BAD_GATEWAY:
    case NGX_HTTP_SERVICE_UNAVAILABLE:
    case NGX_HTTP_GATEWAY_TIME_OUT:
        return ngx_http_vibe_bulk_gave_up(bulk, call);

    default:

        if (call->status < NGX_HTTP_BAD_REQUEST) {
            call->status = NGX_HTTP_BAD_GATEWAY;
            return ngx_http_vibe_bulk_gave_up(bulk, call);
        }

        /* of an array of rows CouchDB may have written some, also with 500 */

        status = call->status;

        rc = ngx_http_vibe_bulk_read(bulk, call, NGX_HTTP_ACCEPTED);

        if (rc == NGX_DECLINED) {
            call->status = status;
            rc = ngx_http_vibe_bulk_refused(bulk, call);
        }
    }

    if (rc == NGX_DECLINED) {
        return ngx_http_vibe_bulk_gave_up(bulk, call);
    }

    if (rc != NGX_OK) {
        return NGX_ERROR;
    }

    return bulk->n ? NGX_AGAIN : NGX_OK;
}


/* the rows come in the order of the documents */

static ngx_int_t
ngx_http_vibe_bulk_read(ngx_http_vibe_bulk_t *bulk, ngx_http_vibe_call_t *call,
    ngx_uint_t status)
{
    ngx_int_t                  rc;
    ngx_uint_t                 i;
    ngx_http_vibe_json_t      *root, *node;
    ngx_http_vibe_bulk_row_t  *row;

    rc = ngx_http_vibe_scan_answer(bulk->rows.pool, call, 2, &root);
    if (rc != NGX_OK) {
        return rc;
    }

    if (root->type != NGX_HTTP_VIBE_JSON_ARRAY || root->n != bulk->n) {
        call->status = NGX_HTTP_BAD_GATEWAY;
        return NGX_DECLINED;
    }

    row = bulk->rows.elts;
    i = bulk->from;

    for (node = root->child; node; node = node->next) {
        if (ngx_http_vibe_bulk_row(&row[i++], status, node) != NGX_OK) {
            call->status = NGX_HTTP_BAD_GATEWAY;
            return NGX_DECLINED;
        }
    }

    /* after a culprit they grow again, so that all cost is in proportion */

    bulk->from += bulk->n;
    bulk->n = ngx_min(bulk->n * 2, bulk->rows.nelts - bulk->from);

    return NGX_OK;
}


static ngx_int_t
ngx_http_vibe_bulk_row(ngx_http_vibe_bulk_row_t *row, ngx_uint_t status,
    ngx_http_vibe_json_t *node)
{
    ngx_http_vibe_json_t  *rev, *error, *reason;

    rev = ngx_http_vibe_json_get(node, "rev");
    error = ngx_http_vibe_json_get(node, "error");
    reason = ngx_http_vibe_json_get(node, "reason");

    if (error == NULL) {
        if (rev == NULL
            || rev->type != NGX_HTTP_VIBE_JSON_STRING
            || rev->string.len == 0)
        {
            return NGX_DECLINED;
        }

        row->status = status;
        row->rev = rev->string;

        return NGX_OK;
    }

    row->status = ngx_http_vibe_bulk_status(&error->string);

    if (reason != NULL && reason->type == NGX_HTTP_VIBE_JSON_STRING) {
        row->reason = reason->string;
    }

    return NGX_OK;
}


static ngx_uint_t
ngx_http_vibe_bulk_status(ngx_str_t *error)
{
    ngx_uint_t  i;

    static struct {
        ngx_str_t   error;
        ngx_uint_t  status;
    } statuses[] = {
        { ngx_string("conflict"), NGX_HTTP_CONFLICT },
        { ngx_string("forbidden"), NGX_HTTP_FORBIDDEN },
        { ngx_string("unauthorized"), NGX_HTTP_FORBIDDEN },
        { ngx_string("not_found"), NGX_HTTP_NOT_FOUND },
        { ngx_string("document_too_large"),
          NGX_HTTP_REQUEST_ENTITY_TOO_LARGE },
        { ngx_string("too_large"), NGX_HTTP_REQUEST_ENTITY_TOO_LARGE },
        { ngx_string("bad_request"), NGX_HTTP_BAD_REQUEST },
        { ngx_string("doc_validation"), NGX_HTTP_BAD_REQUEST },
        { ngx_string("illegal_docid"), NGX_HTTP_BAD_REQUEST },
        { ngx_string("missing_stub"), NGX_HTTP_BAD_REQUEST },
        { ngx_null_string, 0 }
    };

    for (i = 0; statuses[i].status; i++) {
        if (ngx_http_vibe_same(error, &statuses[i].error)) {
            return statuses[i].status;
        }
    }

    return NGX_HTTP_BAD_GATEWAY;
}


/* nothing of the request was written, because of one document or more */

static ngx_int_t
ngx_http_vibe_bulk_refused(ngx_http_vibe_bulk_t *bulk,
    ngx_http_vibe_call_t *call)
{
    ngx_int_t                  rc;
    ngx_http_vibe_json_t      *root, *reason;
    ngx_http_vibe_bulk_row_t  *row;

    if (bulk->n > 1) {
        bulk->n /= 2;
        return NGX_OK;
    }

    rc = ngx_http_vibe_scan_answer(bulk->rows.pool, call, 1, &root);
    if (rc == NGX_ERROR) {
        return NGX_ERROR;
    }

    row = bulk->rows.elts;
    row += bulk->from;

    row->status = call->status;

    if (call->status != NGX_HTTP_REQUEST_ENTITY_TOO_LARGE
        && call->status < NGX_HTTP_INTERNAL_SERVER_ERROR)
    {
        row->status = NGX_HTTP_BAD_REQUEST;
    }

    if (call->status == NGX_HTTP_REQUEST_ENTITY_TOO_LARGE) {
        ngx_str_set(&row->reason, "The document is too large.");

    } else if (rc == NGX_OK) {
        reason = ngx_http_vibe_json_get(root, "reason");

        if (reason != NULL && reason->type == NGX_HTTP_VIBE_JSON_STRING) {
            row->reason = reason->string;
        }
    }

    bulk->from++;
    bulk->n = ngx_min(1, bulk->rows.nelts - bulk->from);

    return NGX_OK;
}


static ngx_int_t
ngx_http_vibe_bulk_gave_up(ngx_http_vibe_bulk_t *bulk,
    ngx_http_vibe_call_t *call)
{
    ngx_uint_t                 i;
    ngx_http_vibe_bulk_row_t  *row;

    row = bulk->rows.elts;

    for (i = bulk->from; i < bulk->rows.nelts; i++) {
        row[i].status = call->status;
    }

    return NGX_DECLINED;
}
