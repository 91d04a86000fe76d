
#include "ngx_http_vibe_write.h"
#include "ngx_http_vibe_answer.h"
#include "ngx_http_vibe_bulk.h"
#include "ngx_http_vibe_database.h"
#include "ngx_http_vibe_document.h"
#include "ngx_http_vibe_lookup.h"
#include "ngx_http_vibe_mirror.h"


typedef struct {
    ngx_http_vibe_document_t      document;
    ngx_http_vibe_leaf_t   *found;     /* in the owner's database */
    ngx_http_vibe_mirror_row_t   *mirror;    /* NULL: nothing to mirror */
    ngx_http_vibe_access_t        before;
    ngx_str_t                     global;    /* the global id, or empty */
    unsigned                      pending:1; /* the mirror */

    ngx_uint_t                    status;    /* 0: to be written */
    ngx_str_t                     rev;       /* once it is */
    ngx_str_t                     reason;    /* if it is not */
} ngx_http_vibe_write_row_t;


typedef struct {
    ngx_http_vibe_ctx_t          *ctx;
    ngx_array_t                   rows;      /* ngx_http_vibe_write_row_t */
    ngx_http_vibe_lookup_t       *lookup;
    ngx_http_vibe_bulk_t         *bulk;
    ngx_http_vibe_mirror_t       *mirror;
    ngx_uint_t                    tries;
    ngx_uint_t                    created;   /* the database, how often */
    ngx_http_vibe_call_t         *failed;    /* nothing was written, maybe */
    unsigned                      array:1;
    unsigned                      unowned:1;
} ngx_http_vibe_write_t;


static ngx_int_t ngx_http_vibe_write_parse(ngx_http_request_t *r,
    ngx_http_vibe_write_t *w, const char **reason);
static ngx_int_t ngx_http_vibe_write_parse_one(ngx_http_request_t *r,
    ngx_http_vibe_write_t *w, ngx_http_vibe_json_t *json);
static ngx_int_t ngx_http_vibe_write_refuse_twice(ngx_http_vibe_write_t *w);
static int ngx_libc_cdecl ngx_http_vibe_write_cmp_ids(const void *one,
    const void *two);
static ngx_int_t ngx_http_vibe_write_owner(ngx_http_request_t *r, void *data,
    ngx_http_vibe_owner_e owner);
static ngx_int_t ngx_http_vibe_write_look(ngx_http_request_t *r,
    ngx_http_vibe_write_t *w);
static ngx_int_t ngx_http_vibe_write_plan(ngx_http_request_t *r, void *data,
    ngx_http_vibe_call_t *failed);
static ngx_int_t ngx_http_vibe_write_plan_one(ngx_http_request_t *r,
    ngx_http_vibe_write_t *w, ngx_http_vibe_write_row_t *row);
static ngx_int_t ngx_http_vibe_write_written(ngx_http_request_t *r,
    void *data, ngx_http_vibe_call_t *failed);
static ngx_int_t ngx_http_vibe_write_failed(ngx_http_request_t *r,
    ngx_http_vibe_write_t *w, ngx_http_vibe_call_t *failed);
static void ngx_http_vibe_write_result(ngx_http_vibe_write_t *w,
    ngx_http_vibe_write_row_t *row, ngx_http_vibe_bulk_row_t *result);
static ngx_int_t ngx_http_vibe_write_mirror(ngx_http_request_t *r,
    ngx_http_vibe_write_t *w);
static void ngx_http_vibe_write_count(ngx_http_request_t *r,
    ngx_http_vibe_write_t *w, ngx_http_vibe_write_row_t *row);
static ngx_int_t ngx_http_vibe_write_mirror_one(ngx_http_request_t *r,
    ngx_http_vibe_write_t *w, ngx_http_vibe_write_row_t *row);
static ngx_int_t ngx_http_vibe_write_private(ngx_http_request_t *r,
    ngx_http_vibe_write_t *w, ngx_http_vibe_write_row_t *row);
static ngx_uint_t ngx_http_vibe_write_unsure(ngx_http_vibe_write_row_t *row);
static void ngx_http_vibe_write_wake(ngx_http_vibe_mirror_t *m);
static ngx_int_t ngx_http_vibe_write_mirrored(ngx_http_request_t *r,
    void *data, ngx_http_vibe_call_t *failed);
static ngx_int_t ngx_http_vibe_write_global(ngx_http_request_t *r,
    ngx_http_vibe_write_row_t *row);
static ngx_int_t ngx_http_vibe_write_answer(ngx_http_request_t *r,
    ngx_http_vibe_write_t *w);
static void ngx_http_vibe_write_put_row(ngx_http_vibe_json_out_t *out,
    ngx_http_vibe_write_row_t *row);
static void ngx_http_vibe_write_refuse(ngx_http_vibe_write_row_t *row,
    ngx_uint_t status, const char *reason);


ngx_int_t
ngx_http_vibe_write(ngx_http_request_t *r, ngx_http_vibe_ctx_t *ctx)
{
    ngx_int_t                   rc;
    const char                 *reason;
    ngx_http_vibe_write_t      *w;
    ngx_http_vibe_main_conf_t  *vmcf;

    w = ngx_pcalloc(r->pool, sizeof(ngx_http_vibe_write_t));
    if (w == NULL) {
        return NGX_ERROR;
    }

    w->ctx = ctx;

    rc = ngx_http_vibe_write_parse(r, w, &reason);

    if (rc == NGX_ERROR) {
        return NGX_ERROR;
    }

    if (rc != NGX_OK) {
        vmcf = ngx_http_get_module_main_conf(r, ngx_http_vibe_module);

        ngx_http_vibe_zone_count(vmcf->zone, NGX_HTTP_VIBE_WRITES_REFUSED, 1);

        return ngx_http_vibe_error_text(r, rc, reason);
    }

    return ngx_http_vibe_database_owner(r, &ctx->caller,
                                        ngx_http_vibe_write_owner, w);
}


/* NGX_OK, NGX_ERROR, or the status to refuse the whole request with */

static ngx_int_t
ngx_http_vibe_write_parse(ngx_http_request_t *r, ngx_http_vibe_write_t *w,
    const char **reason)
{
    ngx_int_t                   rc;
    ngx_uint_t                  n;
    ngx_http_vibe_json_t       *root, *node;
    ngx_http_vibe_loc_conf_t   *vlcf;
    ngx_http_vibe_write_row_t  *row;

    vlcf = ngx_http_get_module_loc_conf(r, ngx_http_vibe_module);

    /* an array, its documents, their members */

    rc = ngx_http_vibe_json_scan(r->pool, &w->ctx->body, 2, &root, reason);
    if (rc != NGX_OK) {
        return (rc == NGX_DECLINED) ? NGX_HTTP_BAD_REQUEST : rc;
    }

    w->array = (root->type == NGX_HTTP_VIBE_JSON_ARRAY);
    n = w->array ? root->n : 1;

    if (n == 0) {
        *reason = "There is no document in the array.";
        return NGX_HTTP_BAD_REQUEST;
    }

    if (n > (ngx_uint_t) vlcf->max_docs) {
        *reason = "There are too many documents in the array.";
        return NGX_HTTP_REQUEST_ENTITY_TOO_LARGE;
    }

    if (ngx_array_init(&w->rows, r->pool, n, sizeof(ngx_http_vibe_write_row_t))
        != NGX_OK)
    {
        return NGX_ERROR;
    }

    for (node = w->array ? root->child : root; node; node = node->next) {
        if (ngx_http_vibe_write_parse_one(r, w, node) != NGX_OK) {
            return NGX_ERROR;
        }
    }

    row = w->rows.elts;

    if (!w->array && row->status) {
        *reason = (const char *) row->reason.data;
        return row->status;
    }

    return ngx_http_vibe_write_refuse_twice(w);
}


static ngx_int_t
ngx_http_vibe_write_parse_one(ngx_http_request_t *r, ngx_http_vibe_write_t *w,
    ngx_http_vibe_json_t *json)
{
    ngx_int_t                   rc;
    const char                 *reason;
    ngx_http_vibe_write_row_t  *row;

    row = ngx_array_push(&w->rows);
    if (row == NULL) {
        return NGX_ERROR;
    }

    ngx_memzero(row, sizeof(ngx_http_vibe_write_row_t));

    rc = ngx_http_vibe_document_check(r->pool, &w->ctx->collection, json,
                                      &row->document, &reason);

    if (rc == NGX_DECLINED) {
        ngx_http_vibe_write_refuse(row, NGX_HTTP_BAD_REQUEST, reason);
        return NGX_OK;
    }

    return rc;
}


static void
ngx_http_vibe_write_refuse(ngx_http_vibe_write_row_t *row, ngx_uint_t status,
    const char *reason)
{
    row->status = status;
    row->reason.data = (u_char *) reason;
    row->reason.len = ngx_strlen(reason);
}


/* of two documents with one id the later would replace the earlier unseen */

static ngx_int_t
ngx_http_vibe_write_refuse_twice(ngx_http_vibe_write_t *w)
{
    ngx_uint_t                   i, n;
    ngx_http_vibe_write_row_t   *row, **sorted;

    sorted = ngx_palloc(w->rows.pool,
                        w->rows.nelts * sizeof(ngx_http_vibe_write_row_t *));
    if (sorted == NULL) {
        return NGX_ERROR;
    }

    row = w->rows.elts;
    n = 0;

    for (i = 0; i < w->rows.nelts; i++) {
        if (row[i].status == 0) {
            sorted[n++] = &row[i];
        }
    }

    ngx_qsort(sorted, n, sizeof(ngx_http_vibe_write_row_t *),
              ngx_http_vibe_write_cmp_ids);

    for (i = 1; i < n; i++) {
        if (ngx_http_vibe_same(&sorted[i]->document.id,
                               &sorted[i - 1]->document.id))
        {
            ngx_http_vibe_write_refuse(sorted[i], NGX_HTTP_CONFLICT,
                         "The _id is in the array more than once.");
        }
    }

    return NGX_OK;
}


/* by id, then by place */

static int ngx_libc_cdecl
ngx_http_vibe_write_cmp_ids(const void *one, const void *two)
{
    ngx_int_t                    rc;
    ngx_http_vibe_write_row_t  **a, **b;

    a = (ngx_http_vibe_write_row_t **) one;
    b = (ngx_http_vibe_write_row_t **) two;

    rc = ngx_memn2cmp((*a)->document.id.data, (*b)->document.id.data,
                      (*a)->document.id.len, (*b)->document.id.len);

    return rc ? (int) rc : (*a < *b ? -1 : 1);
}


static ngx_int_t
ngx_http_vibe_write_owner(ngx_http_request_t *r, void *data,
    ngx_http_vibe_owner_e owner)
{
    ngx_http_vibe_write_t *w = data;

    if (owner == NGX_HTTP_VIBE_MISSING) {

        /* more than once if it is deleted meanwhile, or was just made */

        if (++w->created > NGX_HTTP_VIBE_CREATE_TRIES) {
            return ngx_http_vibe_error_text(r, NGX_HTTP_SERVICE_UNAVAILABLE,
                                         "The database is being deleted.");
        }

        return ngx_http_vibe_database_create(r, &w->ctx->caller,
                                             ngx_http_vibe_write_owner, w);
    }

    w->unowned = (owner == NGX_HTTP_VIBE_UNOWNED);

    return ngx_http_vibe_write_look(r, w);
}


/* nobody else has an id that was made now, so those are not looked up */

static ngx_int_t
ngx_http_vibe_write_look(ngx_http_request_t *r, ngx_http_vibe_write_t *w)
{
    ngx_uint_t                  i;
    ngx_http_vibe_main_conf_t  *vmcf;
    ngx_http_vibe_write_row_t  *row;

    vmcf = ngx_http_get_module_main_conf(r, ngx_http_vibe_module);

    w->lookup = ngx_http_vibe_lookup_create(r->pool, vmcf,
                                            &w->ctx->caller.db,
                                            w->rows.nelts);
    if (w->lookup == NULL) {
        return NGX_ERROR;
    }

    row = w->rows.elts;

    for (i = 0; i < w->rows.nelts; i++) {

        if (row[i].status) {
            /* what was found of it is still needed */
            continue;
        }

        row[i].found = NULL;

        if (row[i].document.made) {
            continue;
        }

        row[i].found = ngx_http_vibe_lookup_add(w->lookup,
                                                &row[i].document.id);
        if (row[i].found == NULL) {
            return NGX_ERROR;
        }
    }

    return ngx_http_vibe_lookup(r, w->lookup, ngx_http_vibe_write_plan, w);
}


static ngx_int_t
ngx_http_vibe_write_plan(ngx_http_request_t *r, void *data,
    ngx_http_vibe_call_t *failed)
{
    ngx_http_vibe_write_t *w = data;

    ngx_uint_t                  i;
    ngx_http_vibe_write_row_t  *row;

    if (failed != NULL) {
        return ngx_http_vibe_write_failed(r, w, failed);
    }

    if (w->lookup->missing) {
        return ngx_http_vibe_write_owner(r, w, NGX_HTTP_VIBE_MISSING);
    }

    w->bulk = ngx_http_vibe_bulk_create(r->pool, &w->ctx->caller.db,
                                        w->rows.nelts);
    if (w->bulk == NULL) {
        return NGX_ERROR;
    }

    row = w->rows.elts;

    for (i = 0; i < w->rows.nelts; i++) {
        if (row[i].status == 0
            && ngx_http_vibe_write_plan_one(r, w, &row[i]) != NGX_OK)
        {
            return NGX_ERROR;
        }
    }

    return ngx_http_vibe_bulk(r, w->bulk, ngx_http_vibe_write_written, w);
}


static ngx_int_t
ngx_http_vibe_write_plan_one(ngx_http_request_t *r, ngx_http_vibe_write_t *w,
    ngx_http_vibe_write_row_t *row)
{
    ngx_str_t                    rev, collection;
    ngx_uint_t                   alive;
    ngx_http_vibe_bulk_row_t    *b;
    ngx_http_vibe_document_t    *document;
    ngx_http_vibe_leaf_t  *found;

    document = &row->document;
    found = (row->found && row->found->doc) ? row->found : NULL;
    alive = (found && !found->deleted);
    rev = document->rev;

    ngx_memzero(&row->before, sizeof(ngx_http_vibe_access_t));

    if (alive) {
        if (ngx_http_vibe_copy_collection(found->doc, &document->id,
                                          &collection)
            == NGX_OK
            && !ngx_http_vibe_same(&collection, &w->ctx->collection))
        {
            ngx_http_vibe_write_refuse(row, NGX_HTTP_CONFLICT,
                             "The document is in another collection.");
            return NGX_OK;
        }

        if (ngx_http_vibe_acl_decide(r->pool, &w->ctx->caller.did, found->doc,
                                     &row->before)
            != NGX_OK)
        {
            return NGX_ERROR;
        }

    } else if (found == NULL && rev.len) {

        /* of what never was CouchDB may take any _rev */

        ngx_http_vibe_write_refuse(row, NGX_HTTP_CONFLICT,
                                   "Document update conflict.");
        return NGX_OK;

    } else if (document->deleted && rev.len == 0) {
        ngx_http_vibe_write_refuse(row, NGX_HTTP_NOT_FOUND,
                                   found ? "deleted" : "missing");
        return NGX_OK;
    }

    /*
     * Without a _rev the last writer wins, over what was found just now; over
     * a tombstone CouchDB takes a write only without one.
     */

    if (rev.len == 0 && alive) {
        rev = found->rev;
    }

    b = ngx_http_vibe_bulk_add(w->bulk, row);
    if (b == NULL) {
        return NGX_ERROR;
    }

    ngx_http_vibe_document_put(&b->doc, document, &w->ctx->collection, &rev);

    return NGX_OK;
}


static ngx_int_t
ngx_http_vibe_write_written(ngx_http_request_t *r, void *data,
    ngx_http_vibe_call_t *failed)
{
    ngx_http_vibe_write_t *w = data;

    ngx_uint_t                  i, again;
    ngx_http_vibe_bulk_row_t   *b;
    ngx_http_vibe_write_row_t  *row;

    if (w->bulk->missing) {
        return ngx_http_vibe_write_owner(r, w, NGX_HTTP_VIBE_MISSING);
    }

    w->tries++;

    b = w->bulk->rows.elts;

    for (i = 0; i < w->bulk->rows.nelts; i++) {
        ngx_http_vibe_write_result(w, b[i].data, &b[i]);
    }

    if (failed != NULL) {
        return ngx_http_vibe_write_failed(r, w, failed);
    }

    row = w->rows.elts;
    again = 0;

    for (i = 0; i < w->rows.nelts; i++) {
        again += (row[i].status == 0);
    }

    if (again) {
        return ngx_http_vibe_write_look(r, w);
    }

    return ngx_http_vibe_write_mirror(r, w);
}


/*
 * Where nothing at all was written, one error for all says it best.  Else
 * what was written is mirrored and told, and the rest is refused.
 */

static ngx_int_t
ngx_http_vibe_write_failed(ngx_http_request_t *r, ngx_http_vibe_write_t *w,
    ngx_http_vibe_call_t *failed)
{
    ngx_uint_t                  i, written, status;
    const char                 *reason;
    ngx_http_vibe_write_row_t  *row;

    row = w->rows.elts;
    written = 0;

    for (i = 0; i < w->rows.nelts; i++) {
        written += (row[i].status == NGX_HTTP_CREATED);
    }

    if (!written) {

        if (w->tries == 0
            || (failed->status != NGX_HTTP_BAD_GATEWAY
                && failed->status != NGX_HTTP_GATEWAY_TIME_OUT))
        {
            return ngx_http_vibe_couch_failed(r, failed);
        }

        /* what CouchDB may have done, or will yet do, is looked at first */

        w->failed = failed;
    }

    status = ngx_http_vibe_couch_status(failed, &reason);

    for (i = 0; i < w->rows.nelts; i++) {
        if (row[i].status == 0) {
            ngx_http_vibe_write_refuse(&row[i], status, reason);
        }
    }

    return ngx_http_vibe_write_mirror(r, w);
}


static void
ngx_http_vibe_write_result(ngx_http_vibe_write_t *w,
    ngx_http_vibe_write_row_t *row, ngx_http_vibe_bulk_row_t *result)
{
    switch (result->status) {

    case NGX_HTTP_CREATED:
    case NGX_HTTP_ACCEPTED:
        row->status = NGX_HTTP_CREATED;
        row->rev = result->rev;
        return;

    case NGX_HTTP_CONFLICT:

        if (row->document.rev.len == 0
            && w->tries < NGX_HTTP_VIBE_WRITE_TRIES)
        {
            /* somebody was faster: look again */
            row->document.made = 0;
            return;
        }

        ngx_http_vibe_write_refuse(row, NGX_HTTP_CONFLICT,
                                   "Document update conflict.");
        return;

    case NGX_HTTP_SERVICE_UNAVAILABLE:
    case NGX_HTTP_GATEWAY_TIME_OUT:
        ngx_http_vibe_write_refuse(row, result->status,
                                   "The database did not answer.");
        return;

    default:

        if (result->status < NGX_HTTP_INTERNAL_SERVER_ERROR
            && result->status != NGX_HTTP_UNAUTHORIZED)
        {
            row->status = result->status;

        } else if (row->document.attachments
                   && result->status == NGX_HTTP_INTERNAL_SERVER_ERROR)
        {
            /* CouchDB's answer to an attachment that is none */
            row->status = NGX_HTTP_BAD_REQUEST;

        } else {
            ngx_http_vibe_write_refuse(row, NGX_HTTP_BAD_GATEWAY,
                                 "The database gave no valid answer.");
            return;
        }

        row->reason = result->reason;
    }
}


static ngx_int_t
ngx_http_vibe_write_mirror(ngx_http_request_t *r, ngx_http_vibe_write_t *w)
{
    ngx_uint_t                  i;
    ngx_http_vibe_write_row_t  *row;

    w->mirror = ngx_http_vibe_mirror_create(&w->ctx->caller.did,
                                            &w->ctx->caller.db,
                                            w->rows.nelts, ngx_cycle->log);
    if (w->mirror == NULL) {
        return NGX_ERROR;
    }

    row = w->rows.elts;

    for (i = 0; i < w->rows.nelts; i++) {

        ngx_http_vibe_write_count(r, w, &row[i]);

        if (!w->unowned
            && ngx_http_vibe_write_mirror_one(r, w, &row[i]) != NGX_OK)
        {
            goto failed;
        }
    }

    w->mirror->waited = 1;

    if (w->mirror->rows.nelts == 0
        || ngx_http_vibe_mirror(w->mirror, ngx_http_vibe_write_wake, w)
           != NGX_OK)
    {
        /* nothing to mirror, or too much: repair will do it */

        return ngx_http_vibe_write_mirrored(r, w, NULL);
    }

    return ngx_http_vibe_wait(r, &w->mirror->wait,
                              ngx_http_vibe_write_mirrored, w);

failed:

    ngx_http_vibe_mirror_end(w->mirror);

    return NGX_ERROR;
}


static void
ngx_http_vibe_write_count(ngx_http_request_t *r, ngx_http_vibe_write_t *w,
    ngx_http_vibe_write_row_t *row)
{
    ngx_http_vibe_main_conf_t  *vmcf;

    vmcf = ngx_http_get_module_main_conf(r, ngx_http_vibe_module);

    if (row->status != NGX_HTTP_CREATED) {
        ngx_http_vibe_zone_count(vmcf->zone, NGX_HTTP_VIBE_WRITES_REFUSED, 1);
        return;
    }

    ngx_http_vibe_zone_count(vmcf->zone, NGX_HTTP_VIBE_WRITES, 1);

    if (w->unowned) {
        ngx_http_vibe_zone_count(vmcf->zone, NGX_HTTP_VIBE_DOCS_UNOWNED, 1);
    }
}


static ngx_int_t
ngx_http_vibe_write_mirror_one(ngx_http_request_t *r,
    ngx_http_vibe_write_t *w, ngx_http_vibe_write_row_t *row)
{
    ngx_uint_t                   unsure;
    ngx_http_vibe_state_t       *st;
    ngx_http_vibe_access_t       access;
    ngx_http_vibe_document_t    *document;
    ngx_http_vibe_mirror_row_t  *m;

    document = &row->document;

    unsure = ngx_http_vibe_write_unsure(row);

    if (row->status != NGX_HTTP_CREATED && !unsure) {
        return NGX_OK;
    }

    if (ngx_http_vibe_acl_decide(w->mirror->pool, &w->ctx->caller.did,
                                 document->json, &access)
        != NGX_OK)
    {
        return NGX_ERROR;
    }

    if (document->made && access.kind == NGX_HTTP_VIBE_PRIVATE && !unsure) {
        /* nothing of it was ever anywhere else */
        return ngx_http_vibe_write_private(r, w, row);
    }

    m = ngx_http_vibe_mirror_add(w->mirror, &document->id, &row->rev);
    if (m == NULL) {
        return NGX_ERROR;
    }

    st = &m->state;

    st->collection.len = w->ctx->collection.len;
    st->collection.data = ngx_pstrdup(st->pool, &w->ctx->collection);
    if (st->collection.data == NULL) {
        return NGX_ERROR;
    }

    if (access.kind != NGX_HTTP_VIBE_PRIVATE
        && ngx_http_vibe_copy_members(st->pool, document->json, &st->members)
           != NGX_OK)
    {
        return NGX_ERROR;
    }

    if (ngx_http_vibe_acl_dup(st->pool, &row->before, &st->before)
        != NGX_OK)
    {
        return NGX_ERROR;
    }

    st->access = access;
    st->made = document->made && !unsure;

    /* with other leaves about, what was written may not be the winner */

    st->ask = unsure
              || (row->found && row->found->conflicts)
              || (row->found && row->found->doc && document->rev.len
                  && ngx_http_vibe_rev_cmp(&document->rev, &row->found->rev)
                     != 0);

    row->mirror = unsure ? NULL : m;

    return NGX_OK;
}


/* so that repair need not look for a copy that was never made */

static ngx_int_t
ngx_http_vibe_write_private(ngx_http_request_t *r, ngx_http_vibe_write_t *w,
    ngx_http_vibe_write_row_t *row)
{
    ngx_str_t                   global, none;
    ngx_http_vibe_main_conf_t  *vmcf;

    vmcf = ngx_http_get_module_main_conf(r, ngx_http_vibe_module);

    if (vmcf->zone == NULL) {
        return NGX_OK;
    }

    if (ngx_http_vibe_global_id(r->pool, &w->ctx->caller.did,
                                &row->document.id, &global)
        != NGX_OK)
    {
        return NGX_ERROR;
    }

    ngx_str_null(&none);

    ngx_http_vibe_zone_know(vmcf->zone, &global, &row->rev, &none);

    return NGX_OK;
}


/*
 * Whether the document may have been written although the client is told that
 * it was not: an answer that did not come, or a conflict with a write of its
 * own whose answer did not come.  Then the source is asked.
 */

static ngx_uint_t
ngx_http_vibe_write_unsure(ngx_http_vibe_write_row_t *row)
{
    switch (row->status) {

    case NGX_HTTP_CONFLICT:
        return row->found != NULL && row->document.rev.len;

    case NGX_HTTP_NOT_FOUND:
        /* deleted already, but is the copy? */
        return row->found != NULL && row->found->doc != NULL;

    case NGX_HTTP_BAD_GATEWAY:
    case NGX_HTTP_GATEWAY_TIME_OUT:
        return 1;

    default:
        return 0;
    }
}


static void
ngx_http_vibe_write_wake(ngx_http_vibe_mirror_t *m)
{
    ngx_http_vibe_wake(&m->wait, NULL);
}


/*
 * The mirror and its rows are gone when this has returned: what the answer
 * needs of them is kept.
 */

static ngx_int_t
ngx_http_vibe_write_mirrored(ngx_http_request_t *r, void *data,
    ngx_http_vibe_call_t *failed)
{
    ngx_http_vibe_write_t *w = data;

    ngx_uint_t                  i;
    ngx_http_vibe_write_row_t  *row;

    row = w->rows.elts;

    for (i = 0; i < w->rows.nelts; i++) {
        if (row[i].mirror != NULL
            && ngx_http_vibe_write_global(r, &row[i]) != NGX_OK)
        {
            return NGX_ERROR;
        }
    }

    if (w->mirror->left == 0 && w->mirror->handler == NULL) {
        ngx_http_vibe_mirror_end(w->mirror);
    }

    return ngx_http_vibe_write_answer(r, w);
}


static ngx_int_t
ngx_http_vibe_write_global(ngx_http_request_t *r,
    ngx_http_vibe_write_row_t *row)
{
    ngx_http_vibe_state_t  *st;

    st = &row->mirror->state;

    row->pending = !row->mirror->done;

    if (row->pending ? st->access.kind == NGX_HTTP_VIBE_PRIVATE
                     : !st->copied)
    {
        return NGX_OK;
    }

    row->global.len = st->global.len;
    row->global.data = ngx_pstrdup(r->pool, &st->global);

    return row->global.data ? NGX_OK : NGX_ERROR;
}


static ngx_int_t
ngx_http_vibe_write_answer(ngx_http_request_t *r, ngx_http_vibe_write_t *w)
{
    ngx_uint_t                  i, status;
    ngx_http_vibe_json_out_t    out;
    ngx_http_vibe_write_row_t  *row;

    row = w->rows.elts;

    if (w->failed != NULL) {
        return ngx_http_vibe_couch_failed(r, w->failed);
    }

    if (!w->array && row->status != NGX_HTTP_CREATED) {
        return ngx_http_vibe_error(r, row->status, &row->reason);
    }

    status = NGX_HTTP_CREATED;

    ngx_http_vibe_json_out_init(&out, r->pool);

    if (w->array) {
        ngx_http_vibe_json_put_text(&out, "[");
    }

    for (i = 0; i < w->rows.nelts; i++) {
        if (i > 0) {
            ngx_http_vibe_json_put_text(&out, ",");
        }

        ngx_http_vibe_write_put_row(&out, &row[i]);

        if (row[i].pending) {
            status = NGX_HTTP_ACCEPTED;
        }
    }

    if (w->array) {
        ngx_http_vibe_json_put_text(&out, "]");
    }

    ngx_http_vibe_json_put_text(&out, "\n");

    return ngx_http_vibe_answer(r, status, &out);
}


static void
ngx_http_vibe_write_put_row(ngx_http_vibe_json_out_t *out,
    ngx_http_vibe_write_row_t *row)
{
    ngx_str_t  name;

    if (row->status != NGX_HTTP_CREATED) {

        ngx_http_vibe_error_name(row->status, &name);

        ngx_http_vibe_json_put_text(out, "{\"id\":");

        if (row->document.id.len) {
            ngx_http_vibe_json_put_string(out, &row->document.id);

        } else {
            ngx_http_vibe_json_put_text(out, "null");
        }

        ngx_http_vibe_json_put_text(out, ",\"error\":");
        ngx_http_vibe_json_put_string(out, &name);
        ngx_http_vibe_json_put_text(out, ",\"reason\":");
        ngx_http_vibe_json_put_string(out, &row->reason);
        ngx_http_vibe_json_put_text(out, "}");

        return;
    }

    ngx_http_vibe_json_put_text(out, "{\"ok\":true,\"id\":");
    ngx_http_vibe_json_put_string(out, &row->document.id);
    ngx_http_vibe_json_put_text(out, ",\"rev\":");
    ngx_http_vibe_json_put_string(out, &row->rev);
    ngx_http_vibe_json_put_text(out, ",\"global\":");

    if (row->global.len) {
        ngx_http_vibe_json_put_string(out, &row->global);

    } else {
        ngx_http_vibe_json_put_text(out, "null");
    }

    if (row->pending) {
        ngx_http_vibe_json_put_text(out, ",\"mirror\":\"pending\"");
    }

    ngx_http_vibe_json_put_text(out, "}");
}
