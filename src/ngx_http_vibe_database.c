
#include "ngx_http_vibe_database.h"
#include "ngx_http_vibe_answer.h"

#include <ngx_sha1.h>


/* how often a record is looked at again that somebody else just wrote */
#define NGX_HTTP_VIBE_OWNER_TRIES   3


typedef struct {
    ngx_http_vibe_caller_t    *caller;
    ngx_http_vibe_owner_pt     next;
    void                      *data;
    ngx_uint_t                 tries;
} ngx_http_vibe_owner_t;


typedef struct {
    u_char                     key[20];
    ngx_msec_t                 until;
} ngx_http_vibe_owned_t;


static ngx_http_vibe_owner_t *ngx_http_vibe_owner_create(
    ngx_http_request_t *r, ngx_http_vibe_caller_t *caller,
    ngx_http_vibe_owner_pt next, void *data);
static ngx_int_t ngx_http_vibe_owner_get(ngx_http_request_t *r,
    ngx_http_vibe_owner_t *o);
static ngx_int_t ngx_http_vibe_owner_got(ngx_http_request_t *r,
    ngx_http_vibe_call_t *call);
static ngx_int_t ngx_http_vibe_owner_did(ngx_http_request_t *r,
    ngx_http_vibe_call_t *call, ngx_str_t *did);
static ngx_int_t ngx_http_vibe_owner_info(ngx_http_request_t *r,
    ngx_http_vibe_call_t *call);
static ngx_int_t ngx_http_vibe_owner_foreign(ngx_http_request_t *r);
static ngx_int_t ngx_http_vibe_owner_claimed(ngx_http_request_t *r,
    ngx_http_vibe_call_t *call);
static ngx_int_t ngx_http_vibe_owner_claim(ngx_http_request_t *r,
    ngx_http_vibe_owner_t *o);
static ngx_int_t ngx_http_vibe_owner_put(ngx_http_request_t *r,
    ngx_http_vibe_owner_t *o, const char *path,
    ngx_http_vibe_call_pt handler);
static ngx_int_t ngx_http_vibe_owner_claim_done(ngx_http_request_t *r,
    ngx_http_vibe_call_t *call);
static ngx_int_t ngx_http_vibe_owner_record(ngx_http_request_t *r,
    ngx_http_vibe_owner_t *o);
static ngx_int_t ngx_http_vibe_owner_recorded(ngx_http_request_t *r,
    ngx_http_vibe_call_t *call);
static ngx_int_t ngx_http_vibe_owner_is(ngx_http_request_t *r,
    ngx_http_vibe_owner_t *o, ngx_str_t *did);
static ngx_int_t ngx_http_vibe_database_created(ngx_http_request_t *r,
    ngx_http_vibe_call_t *call);
static ngx_int_t ngx_http_vibe_database_closed(ngx_http_request_t *r,
    ngx_http_vibe_call_t *call);
static ngx_http_vibe_owned_t *ngx_http_vibe_owned(
    ngx_http_vibe_caller_t *caller, u_char *key);


static ngx_http_vibe_owned_t
    ngx_http_vibe_owned_cache[NGX_HTTP_VIBE_CACHE_SIZE];


ngx_int_t
ngx_http_vibe_database_owner(ngx_http_request_t *r,
    ngx_http_vibe_caller_t *caller, ngx_http_vibe_owner_pt next, void *data)
{
    u_char                  key[20];
    ngx_http_vibe_owned_t  *owned;
    ngx_http_vibe_owner_t  *o;

    if (caller->named) {
        return next(r, data, NGX_HTTP_VIBE_OWNED);
    }

    owned = ngx_http_vibe_owned(caller, key);

    if (ngx_memcmp(owned->key, key, sizeof(key)) == 0
        && (ngx_msec_int_t) (owned->until - ngx_current_msec) > 0)
    {
        return next(r, data, NGX_HTTP_VIBE_OWNED);
    }

    o = ngx_http_vibe_owner_create(r, caller, next, data);
    if (o == NULL) {
        return NGX_ERROR;
    }

    return ngx_http_vibe_owner_get(r, o);
}


static ngx_http_vibe_owner_t *
ngx_http_vibe_owner_create(ngx_http_request_t *r,
    ngx_http_vibe_caller_t *caller, ngx_http_vibe_owner_pt next, void *data)
{
    ngx_http_vibe_owner_t  *o;

    o = ngx_palloc(r->pool, sizeof(ngx_http_vibe_owner_t));
    if (o == NULL) {
        return NULL;
    }

    o->caller = caller;
    o->next = next;
    o->data = data;
    o->tries = 0;

    return o;
}


/*
 * Where the cache has or would have this pair of database and DID.  The pair
 * comes out of a signed token, so nobody chooses two that meet.
 */

static ngx_http_vibe_owned_t *
ngx_http_vibe_owned(ngx_http_vibe_caller_t *caller, u_char *key)
{
    ngx_sha1_t  sha1;

    ngx_sha1_init(&sha1);
    ngx_sha1_update(&sha1, caller->db.data, caller->db.len);
    ngx_sha1_update(&sha1, "", 1);
    ngx_sha1_update(&sha1, caller->did.data, caller->did.len);
    ngx_sha1_final(key, &sha1);

    return &ngx_http_vibe_owned_cache[(key[0] << 8 | key[1])
                                      % NGX_HTTP_VIBE_CACHE_SIZE];
}


static ngx_int_t
ngx_http_vibe_owner_get(ngx_http_request_t *r, ngx_http_vibe_owner_t *o)
{
    if (++o->tries > NGX_HTTP_VIBE_OWNER_TRIES) {
        return ngx_http_vibe_error_text(r, NGX_HTTP_SERVICE_UNAVAILABLE,
                                        "The database is just being made.");
    }

    return ngx_http_vibe_request(r, NGX_HTTP_GET, &o->caller->db,
                                 "/_local/vibe_owner", NULL,
                                 ngx_http_vibe_owner_got, o);
}


static ngx_int_t
ngx_http_vibe_owner_got(ngx_http_request_t *r, ngx_http_vibe_call_t *call)
{
    ngx_http_vibe_owner_t *o = call->data;

    ngx_int_t  rc;
    ngx_str_t  did;

    if (ngx_http_vibe_no_database(call)) {
        return o->next(r, o->data, NGX_HTTP_VIBE_MISSING);
    }

    if (call->status == NGX_HTTP_NOT_FOUND) {
        return ngx_http_vibe_request(r, NGX_HTTP_GET, &o->caller->db,
                                     "/_design/vibe_owner", NULL,
                                     ngx_http_vibe_owner_claimed, o);
    }

    if (call->status != NGX_HTTP_OK) {
        return ngx_http_vibe_couch_failed(r, call);
    }

    rc = ngx_http_vibe_owner_did(r, call, &did);

    if (rc == NGX_DECLINED) {
        return ngx_http_vibe_couch_failed(r, call);
    }

    return (rc == NGX_OK) ? ngx_http_vibe_owner_is(r, o, &did) : NGX_ERROR;
}


/* the DID in a record; NGX_DECLINED: it is none of ours */

static ngx_int_t
ngx_http_vibe_owner_did(ngx_http_request_t *r, ngx_http_vibe_call_t *call,
    ngx_str_t *did)
{
    ngx_int_t              rc;
    ngx_http_vibe_json_t  *root, *node;

    rc = ngx_http_vibe_scan_answer(r->pool, call, 1, &root);
    if (rc != NGX_OK) {
        return rc;
    }

    node = ngx_http_vibe_json_get(root, "did");

    if (node == NULL || node->type != NGX_HTTP_VIBE_JSON_STRING) {
        return NGX_DECLINED;
    }

    *did = node->string;

    return NGX_OK;
}


static ngx_int_t
ngx_http_vibe_owner_is(ngx_http_request_t *r, ngx_http_vibe_owner_t *o,
    ngx_str_t *did)
{
    u_char                   key[20];
    ngx_http_vibe_owned_t   *owned;
    ngx_http_vibe_caller_t  *caller;

    caller = o->caller;

    if (!ngx_http_vibe_same(did, &caller->did)) {
        return ngx_http_vibe_owner_foreign(r);
    }

    owned = ngx_http_vibe_owned(caller, key);

    ngx_memcpy(owned->key, key, sizeof(key));
    owned->until = ngx_current_msec + NGX_HTTP_VIBE_OWNER_VALID;

    return o->next(r, o->data, NGX_HTTP_VIBE_OWNED);
}


static ngx_int_t
ngx_http_vibe_owner_foreign(ngx_http_request_t *r)
{
    return ngx_http_vibe_error_text(r, NGX_HTTP_FORBIDDEN,
                                    "This database belongs to another DID.");
}


/*
 * A database without a record: made by somebody else, or by a worker that
 * died before it wrote the record.  While it is empty it can be had.
 */

static ngx_int_t
ngx_http_vibe_owner_claimed(ngx_http_request_t *r, ngx_http_vibe_call_t *call)
{
    ngx_http_vibe_owner_t *o = call->data;

    ngx_int_t  rc;
    ngx_str_t  did;

    if (call->status == NGX_HTTP_NOT_FOUND) {
        return ngx_http_vibe_request(r, NGX_HTTP_GET, &o->caller->db, "",
                                     NULL, ngx_http_vibe_owner_info, o);
    }

    if (call->status != NGX_HTTP_OK) {
        return ngx_http_vibe_couch_failed(r, call);
    }

    rc = ngx_http_vibe_owner_did(r, call, &did);

    if (rc == NGX_ERROR) {
        return NGX_ERROR;
    }

    if (rc == NGX_OK && ngx_http_vibe_same(&did, &o->caller->did)) {
        return ngx_http_vibe_owner_record(r, o);
    }

    return ngx_http_vibe_owner_foreign(r);
}


static ngx_int_t
ngx_http_vibe_owner_info(ngx_http_request_t *r, ngx_http_vibe_call_t *call)
{
    ngx_http_vibe_owner_t *o = call->data;

    ngx_int_t              rc;
    ngx_uint_t             n;
    ngx_http_vibe_json_t  *root, *live, *deleted;

    if (call->status != NGX_HTTP_OK) {
        return ngx_http_vibe_couch_failed(r, call);
    }

    rc = ngx_http_vibe_scan_answer(r->pool, call, 1, &root);
    if (rc == NGX_ERROR) {
        return NGX_ERROR;
    }

    if (rc != NGX_OK) {
        return ngx_http_vibe_couch_failed(r, call);
    }

    live = ngx_http_vibe_json_get(root, "doc_count");
    deleted = ngx_http_vibe_json_get(root, "doc_del_count");

    if (live != NULL
        && ngx_http_vibe_json_uint(live, 0, &n) == NGX_OK
        && deleted != NULL
        && ngx_http_vibe_json_uint(deleted, 0, &n) == NGX_OK)
    {
        return ngx_http_vibe_owner_claim(r, o);
    }

    /* claimed and written to since the record was looked for, perhaps */

    if (o->tries == 1) {
        return ngx_http_vibe_owner_get(r, o);
    }

    ngx_log_error(NGX_LOG_WARN, r->connection->log, 0,
                  "database \"%V\" has no known owner and is not mirrored",
                  &o->caller->db);

    return o->next(r, o->data, NGX_HTTP_VIBE_UNOWNED);
}


static ngx_int_t
ngx_http_vibe_owner_claim(ngx_http_request_t *r, ngx_http_vibe_owner_t *o)
{
    return ngx_http_vibe_owner_put(r, o, "/_design/vibe_owner",
                                   ngx_http_vibe_owner_claim_done);
}


/* the claim and the record are the same document in two places */

static ngx_int_t
ngx_http_vibe_owner_put(ngx_http_request_t *r, ngx_http_vibe_owner_t *o,
    const char *path, ngx_http_vibe_call_pt handler)
{
    ngx_http_vibe_json_out_t  out;

    ngx_http_vibe_json_out_init(&out, r->pool);

    ngx_http_vibe_json_put_text(&out, "{\"did\":");
    ngx_http_vibe_json_put_string(&out, &o->caller->did);
    ngx_http_vibe_json_put_text(&out, ",\"vibe_v\":");
    ngx_http_vibe_json_put_uint(&out, NGX_HTTP_VIBE_FORMAT);
    ngx_http_vibe_json_put_text(&out, "}");

    return ngx_http_vibe_request(r, NGX_HTTP_PUT, &o->caller->db, path, &out,
                                 handler, o);
}


static ngx_int_t
ngx_http_vibe_owner_claim_done(ngx_http_request_t *r,
    ngx_http_vibe_call_t *call)
{
    ngx_http_vibe_owner_t *o = call->data;

    switch (call->status) {

    case NGX_HTTP_CREATED:
    case NGX_HTTP_ACCEPTED:
        return ngx_http_vibe_owner_record(r, o);

    case NGX_HTTP_CONFLICT:

        /* somebody else has claimed it, or we have, in a request sent twice */

        return ngx_http_vibe_owner_get(r, o);

    default:
        return ngx_http_vibe_couch_failed(r, call);
    }
}


static ngx_int_t
ngx_http_vibe_owner_record(ngx_http_request_t *r, ngx_http_vibe_owner_t *o)
{
    return ngx_http_vibe_owner_put(r, o, "/_local/vibe_owner",
                                   ngx_http_vibe_owner_recorded);
}


static ngx_int_t
ngx_http_vibe_owner_recorded(ngx_http_request_t *r,
    ngx_http_vibe_call_t *call)
{
    ngx_http_vibe_owner_t *o = call->data;

    if (call->status != NGX_HTTP_CREATED
        && call->status != NGX_HTTP_ACCEPTED
        && call->status != NGX_HTTP_CONFLICT)
    {
        return ngx_http_vibe_couch_failed(r, call);
    }

    return ngx_http_vibe_owner_is(r, o, &o->caller->did);
}


ngx_int_t
ngx_http_vibe_database_create(ngx_http_request_t *r,
    ngx_http_vibe_caller_t *caller, ngx_http_vibe_owner_pt next, void *data)
{
    ngx_http_vibe_owner_t  *o;

    o = ngx_http_vibe_owner_create(r, caller, next, data);
    if (o == NULL) {
        return NGX_ERROR;
    }

    /* many and small: one shard each, as CouchDB's maintainers advise */

    return ngx_http_vibe_request(r, NGX_HTTP_PUT, &caller->db, "?q=1", NULL,
                                 ngx_http_vibe_database_created, o);
}


static ngx_int_t
ngx_http_vibe_database_created(ngx_http_request_t *r,
    ngx_http_vibe_call_t *call)
{
    ngx_http_vibe_owner_t *o = call->data;

    switch (call->status) {

    case NGX_HTTP_CREATED:
    case NGX_HTTP_ACCEPTED:
        return ngx_http_vibe_database_close(r, &o->caller->db,
                                            ngx_http_vibe_database_closed, o);

    case NGX_HTTP_PRECONDITION_FAILED:

        /* somebody else was faster */

        if (o->caller->named) {
            return o->next(r, o->data, NGX_HTTP_VIBE_OWNED);
        }

        return ngx_http_vibe_owner_get(r, o);

    default:
        return ngx_http_vibe_couch_failed(r, call);
    }
}


static ngx_int_t
ngx_http_vibe_database_closed(ngx_http_request_t *r,
    ngx_http_vibe_call_t *call)
{
    ngx_http_vibe_owner_t *o = call->data;

    if (call->status != NGX_HTTP_OK) {
        return ngx_http_vibe_couch_failed(r, call);
    }

    if (o->caller->named) {
        return o->next(r, o->data, NGX_HTTP_VIBE_OWNED);
    }

    return ngx_http_vibe_owner_claim(r, o);
}


ngx_int_t
ngx_http_vibe_database_close(ngx_http_request_t *r, ngx_str_t *db,
    ngx_http_vibe_call_pt handler, void *data)
{
    ngx_http_vibe_json_out_t  out;

    ngx_http_vibe_json_out_init(&out, r->pool);
    ngx_http_vibe_database_put_security(&out);

    return ngx_http_vibe_request(r, NGX_HTTP_PUT, db, "/_security", &out,
                                 handler, data);
}


void
ngx_http_vibe_database_put_security(ngx_http_vibe_json_out_t *out)
{
    ngx_http_vibe_json_put_text(out,
        "{\"admins\":{\"names\":[],\"roles\":[\"_admin\"]},"
        "\"members\":{\"names\":[],\"roles\":[\"_admin\"]}}");
}
