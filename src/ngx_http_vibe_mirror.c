
#include "ngx_http_vibe_mirror.h"
#include "ngx_http_vibe_bulk.h"
#include "ngx_http_vibe_copy.h"
#include "ngx_http_vibe_global.h"


static ngx_int_t ngx_http_vibe_mirror_round(ngx_http_request_t *r,
    void *data, ngx_http_vibe_call_t *failed);
static ngx_int_t ngx_http_vibe_mirror_learned(ngx_http_request_t *r,
    void *data, ngx_http_vibe_call_t *failed);
static ngx_int_t ngx_http_vibe_mirror_compare(ngx_http_request_t *r,
    ngx_http_vibe_mirror_t *m, ngx_http_vibe_mirror_row_t *row);
static ngx_int_t ngx_http_vibe_mirror_ask(ngx_http_request_t *r,
    ngx_http_vibe_mirror_t *m);
static ngx_int_t ngx_http_vibe_mirror_asked(ngx_http_request_t *r,
    void *data, ngx_http_vibe_call_t *failed);
static ngx_int_t ngx_http_vibe_mirror_winner(ngx_http_request_t *r,
    ngx_http_vibe_mirror_t *m, ngx_http_vibe_mirror_row_t *row);
static ngx_int_t ngx_http_vibe_mirror_write(ngx_http_request_t *r,
    ngx_http_vibe_mirror_t *m);
static ngx_uint_t ngx_http_vibe_mirror_settled(
    ngx_http_vibe_mirror_row_t *row);
static ngx_uint_t ngx_http_vibe_mirror_claims(
    ngx_http_vibe_mirror_row_t *row);
static ngx_int_t ngx_http_vibe_mirror_put(ngx_http_request_t *r,
    ngx_http_vibe_mirror_t *m, ngx_http_vibe_mirror_row_t *row,
    ngx_http_vibe_json_out_t *out);
static ngx_int_t ngx_http_vibe_mirror_written(ngx_http_request_t *r,
    void *data, ngx_http_vibe_call_t *failed);
static void ngx_http_vibe_mirror_result(ngx_http_request_t *r,
    ngx_http_vibe_mirror_row_t *row, ngx_http_vibe_bulk_row_t *result);
static ngx_int_t ngx_http_vibe_mirror_gave_up(ngx_http_request_t *r,
    ngx_http_vibe_mirror_t *m, ngx_http_vibe_call_t *failed);


ngx_http_vibe_mirror_t *
ngx_http_vibe_mirror_create(ngx_http_request_t *r,
    ngx_http_vibe_caller_t *owner, ngx_uint_t n)
{
    ngx_http_vibe_mirror_t  *m;

    m = ngx_pcalloc(r->pool, sizeof(ngx_http_vibe_mirror_t));
    if (m == NULL) {
        return NULL;
    }

    if (ngx_array_init(&m->rows, r->pool, n,
                       sizeof(ngx_http_vibe_mirror_row_t))
        != NGX_OK)
    {
        return NULL;
    }

    m->did = owner->did;
    m->db = owner->db;

    return m;
}


ngx_http_vibe_mirror_row_t *
ngx_http_vibe_mirror_add(ngx_http_vibe_mirror_t *mirror)
{
    ngx_http_vibe_mirror_row_t  *row;

    row = ngx_array_push(&mirror->rows);
    if (row == NULL) {
        return NULL;
    }

    ngx_memzero(row, sizeof(ngx_http_vibe_mirror_row_t));

    return row;
}


ngx_int_t
ngx_http_vibe_mirror(ngx_http_request_t *r, ngx_http_vibe_mirror_t *m,
    ngx_http_vibe_next_pt next, void *data)
{
    ngx_uint_t                   i;
    ngx_http_vibe_mirror_row_t  *row;

    m->next = next;
    m->data = data;

    row = m->rows.elts;

    for (i = 0; i < m->rows.nelts; i++) {
        if (ngx_http_vibe_global_id(r->pool, &m->did, &row[i].id,
                                    &row[i].global)
            != NGX_OK)
        {
            return NGX_ERROR;
        }
    }

    if (m->rows.nelts == 0) {
        return next(r, data, NULL);
    }

    return ngx_http_vibe_global_ready(r, ngx_http_vibe_mirror_round, m);
}


/* step 1, for the rows that are not done */

static ngx_int_t
ngx_http_vibe_mirror_round(ngx_http_request_t *r, void *data,
    ngx_http_vibe_call_t *failed)
{
    ngx_http_vibe_mirror_t *m = data;

    ngx_uint_t                   i, left;
    ngx_http_vibe_mirror_row_t  *row;

    if (failed != NULL) {
        return ngx_http_vibe_mirror_gave_up(r, m, failed);
    }

    m->lookup = ngx_http_vibe_lookup_create(r, &ngx_http_vibe_global,
                                            m->rows.nelts);
    if (m->lookup == NULL) {
        return NGX_ERROR;
    }

    row = m->rows.elts;
    left = 0;

    for (i = 0; i < m->rows.nelts; i++) {

        if (row[i].done || row[i].failed) {
            continue;
        }

        if (++row[i].tries > NGX_HTTP_VIBE_MIRROR_TRIES) {
            ngx_log_error(NGX_LOG_ERR, r->connection->log, 0,
                          "a mirror is pending: it met a conflict %d times",
                          NGX_HTTP_VIBE_MIRROR_TRIES);
            row[i].failed = 1;
            continue;
        }

        left++;

        row[i].source = NULL;

        if (row[i].made || row[i].stub.len) {
            continue;
        }

        row[i].copy = ngx_http_vibe_lookup_add(m->lookup, &row[i].global);
        if (row[i].copy == NULL) {
            return NGX_ERROR;
        }
    }

    if (left == 0) {
        return m->next(r, m->data, NULL);
    }

    return ngx_http_vibe_lookup(r, m->lookup, ngx_http_vibe_mirror_learned,
                                m);
}


static ngx_int_t
ngx_http_vibe_mirror_learned(ngx_http_request_t *r, void *data,
    ngx_http_vibe_call_t *failed)
{
    ngx_http_vibe_mirror_t *m = data;

    ngx_uint_t                   i;
    ngx_http_vibe_mirror_row_t  *row;

    if (failed != NULL) {
        return ngx_http_vibe_mirror_gave_up(r, m, failed);
    }

    if (m->lookup->missing) {
        ngx_http_vibe_global_gone(r);
        return ngx_http_vibe_global_ready(r, ngx_http_vibe_mirror_round, m);
    }

    row = m->rows.elts;

    for (i = 0; i < m->rows.nelts; i++) {
        if (!row[i].done && !row[i].failed && row[i].copy != NULL
            && ngx_http_vibe_mirror_compare(r, m, &row[i]) != NGX_OK)
        {
            return NGX_ERROR;
        }
    }

    return ngx_http_vibe_mirror_ask(r, m);
}


/* whether the source must be asked: the copy stands for a newer revision */

static ngx_int_t
ngx_http_vibe_mirror_compare(ngx_http_request_t *r, ngx_http_vibe_mirror_t *m,
    ngx_http_vibe_mirror_row_t *row)
{
    ngx_str_t  rev;

    if (ngx_http_vibe_copy_newer_format(row->copy->doc)) {
        ngx_log_error(NGX_LOG_ERR, r->connection->log, 0,
                      "a document in global has the format of a newer "
                      "version and is left alone");
        row->failed = 1;
        return NGX_OK;
    }

    /* a stub says nothing of what its writer knew */

    ngx_http_vibe_copy_source(row->copy->doc, &rev);

    if (row->copy->doc != NULL
        && (rev.len == 0 || ngx_http_vibe_rev_cmp(&rev, &row->rev) > 0))
    {
        row->ask = 1;
    }

    return NGX_OK;
}


/* step 2 */

static ngx_int_t
ngx_http_vibe_mirror_ask(ngx_http_request_t *r, ngx_http_vibe_mirror_t *m)
{
    ngx_uint_t                   i;
    ngx_http_vibe_mirror_row_t  *row;

    m->lookup = ngx_http_vibe_lookup_create(r, &m->db, m->rows.nelts);
    if (m->lookup == NULL) {
        return NGX_ERROR;
    }

    row = m->rows.elts;

    for (i = 0; i < m->rows.nelts; i++) {

        if (row[i].done || row[i].failed || !row[i].ask) {
            continue;
        }

        row[i].source = ngx_http_vibe_lookup_add(m->lookup, &row[i].id);
        if (row[i].source == NULL) {
            return NGX_ERROR;
        }
    }

    return ngx_http_vibe_lookup(r, m->lookup, ngx_http_vibe_mirror_asked, m);
}


static ngx_int_t
ngx_http_vibe_mirror_asked(ngx_http_request_t *r, void *data,
    ngx_http_vibe_call_t *failed)
{
    ngx_http_vibe_mirror_t *m = data;

    ngx_uint_t                   i;
    ngx_http_vibe_mirror_row_t  *row;

    if (failed != NULL) {
        return ngx_http_vibe_mirror_gave_up(r, m, failed);
    }

    row = m->rows.elts;

    for (i = 0; i < m->rows.nelts; i++) {
        if (row[i].source != NULL
            && ngx_http_vibe_mirror_winner(r, m, &row[i]) != NGX_OK)
        {
            return NGX_ERROR;
        }
    }

    return ngx_http_vibe_mirror_write(r, m);
}


/* what the source says takes the place of what was written */

static ngx_int_t
ngx_http_vibe_mirror_winner(ngx_http_request_t *r, ngx_http_vibe_mirror_t *m,
    ngx_http_vibe_mirror_row_t *row)
{
    ngx_http_vibe_lookup_row_t  *source;

    source = row->source;

    row->rev = source->rev;
    row->doc = (source->doc && !source->deleted) ? source->doc : NULL;

    row->access.kind = NGX_HTTP_VIBE_PRIVATE;

    if (row->doc == NULL
        || ngx_http_vibe_copy_collection(row->doc, &row->id, &row->collection)
           != NGX_OK)
    {
        return NGX_OK;
    }

    return ngx_http_vibe_acl_decide(r->pool, &m->did, row->doc, &row->access);
}


/* step 3 */

static ngx_int_t
ngx_http_vibe_mirror_write(ngx_http_request_t *r, ngx_http_vibe_mirror_t *m)
{
    ngx_uint_t                   i;
    ngx_http_vibe_bulk_t        *bulk;
    ngx_http_vibe_bulk_row_t    *b;
    ngx_http_vibe_main_conf_t   *vmcf;
    ngx_http_vibe_mirror_row_t  *row;

    vmcf = ngx_http_get_module_main_conf(r, ngx_http_vibe_module);

    bulk = ngx_http_vibe_bulk_create(r, &ngx_http_vibe_global, m->rows.nelts);
    if (bulk == NULL) {
        return NGX_ERROR;
    }

    bulk->copies = vmcf->copies;
    m->bulk = bulk;

    row = m->rows.elts;

    for (i = 0; i < m->rows.nelts; i++) {

        if (row[i].done || row[i].failed) {
            continue;
        }

        if (ngx_http_vibe_mirror_settled(&row[i])) {
            row[i].done = 1;
            row[i].copied = (row[i].access.kind != NGX_HTTP_VIBE_PRIVATE);
            continue;
        }

        b = ngx_http_vibe_bulk_add(bulk, &row[i]);
        if (b == NULL) {
            return NGX_ERROR;
        }

        if (ngx_http_vibe_mirror_put(r, m, &row[i], &b->doc) != NGX_OK) {
            return NGX_ERROR;
        }
    }

    return ngx_http_vibe_bulk(r, bulk, ngx_http_vibe_mirror_written, m);
}


/* 1 if "global" is as it should be */

static ngx_uint_t
ngx_http_vibe_mirror_settled(ngx_http_vibe_mirror_row_t *row)
{
    ngx_str_t                    rev;
    ngx_uint_t                   private;
    ngx_http_vibe_lookup_row_t  *copy;

    if (row->stub.len) {
        return 0;
    }

    private = (row->access.kind == NGX_HTTP_VIBE_PRIVATE);
    copy = row->copy;

    if (copy == NULL || copy->doc == NULL) {

        /*
         * A tombstone goes where nothing is if the revision before could be
         * read: its copy may be on the way.
         */

        return private && row->before.kind == NGX_HTTP_VIBE_PRIVATE;
    }

    if (private || copy->deleted) {

        /* whoever writes over a tombstone asks the source first */

        return private && copy->deleted;
    }

    /*
     * Where there are other leaves, a winner may come back that was before:
     * only a write makes those fail who still hold another one for it.
     */

    if (row->source && row->source->conflicts) {
        return 0;
    }

    ngx_http_vibe_copy_source(copy->doc, &rev);

    return ngx_http_vibe_same(&rev, &row->rev)
           && ngx_http_vibe_copy_current(copy->doc);
}


/* 1 if what would be written must not be read before 2 was done again */

static ngx_uint_t
ngx_http_vibe_mirror_claims(ngx_http_vibe_mirror_row_t *row)
{
    if (row->stub.len || row->access.kind == NGX_HTTP_VIBE_PRIVATE) {
        return 0;
    }

    if (row->copy == NULL) {
        return !row->made;
    }

    return row->copy->doc == NULL || row->copy->deleted;
}


/* the copy, tombstone or stub, with the past readers of what it replaces */

static ngx_int_t
ngx_http_vibe_mirror_put(ngx_http_request_t *r, ngx_http_vibe_mirror_t *m,
    ngx_http_vibe_mirror_row_t *row, ngx_http_vibe_json_out_t *out)
{
    ngx_http_vibe_json_t    *old;
    ngx_http_vibe_copy_t     copy;
    ngx_http_vibe_access_t   access;

    old = row->copy ? row->copy->doc : NULL;

    copy.id = row->global;
    copy.collection = row->collection;
    copy.owner = m->did;
    copy.db = m->db;
    copy.source = row->rev;
    copy.doc = row->doc;
    copy.access = &row->access;
    copy.stub = ngx_http_vibe_mirror_claims(row);
    copy.rev = row->stub;

    if (old != NULL && !row->copy->deleted && !row->stub.len) {
        copy.rev = row->copy->rev;
    }

    if (ngx_http_vibe_past_of_copy(r->pool, old, &copy.past) != NGX_OK
        || ngx_http_vibe_acl_of_copy(r->pool, old, &access) != NGX_OK)
    {
        return NGX_ERROR;
    }

    /* where all may read now, nobody is left who no longer may */

    if (row->access.kind != NGX_HTTP_VIBE_PUBLIC
        && (ngx_http_vibe_past_add(r->pool, &copy.past, &access) != NGX_OK
            || ngx_http_vibe_past_add(r->pool, &copy.past, &row->before)
               != NGX_OK))
    {
        return NGX_ERROR;
    }

    ngx_http_vibe_copy_put(out, &copy);

    return NGX_OK;
}


static ngx_int_t
ngx_http_vibe_mirror_written(ngx_http_request_t *r, void *data,
    ngx_http_vibe_call_t *failed)
{
    ngx_http_vibe_mirror_t *m = data;

    ngx_uint_t                 i;
    ngx_http_vibe_bulk_t      *bulk;
    ngx_http_vibe_bulk_row_t  *b;

    bulk = m->bulk;

    if (bulk->missing) {
        ngx_http_vibe_global_gone(r);
        return ngx_http_vibe_global_ready(r, ngx_http_vibe_mirror_round, m);
    }

    b = bulk->rows.elts;

    for (i = 0; i < bulk->rows.nelts; i++) {
        ngx_http_vibe_mirror_result(r, b[i].data, &b[i]);
    }

    if (failed != NULL) {
        return ngx_http_vibe_mirror_gave_up(r, m, failed);
    }

    /* step 4, if anything is left */

    return ngx_http_vibe_mirror_round(r, m, NULL);
}


static void
ngx_http_vibe_mirror_result(ngx_http_request_t *r,
    ngx_http_vibe_mirror_row_t *row, ngx_http_vibe_bulk_row_t *result)
{
    switch (result->status) {

    case NGX_HTTP_CREATED:

        if (ngx_http_vibe_mirror_claims(row)) {
            row->stub = result->rev;
            row->ask = 1;
            return;
        }

        if (row->made && ngx_http_vibe_rev_generation(&result->rev) > 1) {

            /* somebody has seen it already, and withdrawn it */

            row->made = 0;
            row->ask = 1;
            return;
        }

        row->done = 1;
        row->copied = (row->access.kind != NGX_HTTP_VIBE_PRIVATE);
        return;

    case NGX_HTTP_CONFLICT:

        /* also where our own request was carried out twice */

        row->made = 0;
        row->stub.len = 0;
        return;

    default:
        row->failed = 1;

        ngx_log_error(NGX_LOG_ERR, r->connection->log, 0,
                      "a mirror is pending: couchdb answered %ui",
                      result->status);
    }
}


static ngx_int_t
ngx_http_vibe_mirror_gave_up(ngx_http_request_t *r, ngx_http_vibe_mirror_t *m,
    ngx_http_vibe_call_t *failed)
{
    ngx_log_error(NGX_LOG_ERR, r->connection->log, 0,
                  "a mirror is pending: couchdb answered \"%V\" with %ui",
                  &failed->path, failed->status);

    return m->next(r, m->data, NULL);
}
