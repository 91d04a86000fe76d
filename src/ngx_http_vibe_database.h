
/*
 * Databases: whose they are, making them, their sequence.
 *
 * A database whose name does not give the DID back has the record
 * _local/vibe_owner, written before the first document.  One without it that
 * holds documents has no known owner: it is served, but not mirrored.
 *
 * CouchDB checks no revision of a _local document, so it cannot settle who
 * of two was first.  The document _design/vibe_owner, which it checks, does:
 * only who made it writes the record.
 */


#ifndef _NGX_HTTP_VIBE_DATABASE_H_INCLUDED_
#define _NGX_HTTP_VIBE_DATABASE_H_INCLUDED_


#include "ngx_http_vibe.h"


/* how long a worker trusts that a database has its owner, milliseconds */
#define NGX_HTTP_VIBE_OWNER_VALID   10000

/* how old a sequence may be that a query answers with, milliseconds */
#define NGX_HTTP_VIBE_SEQ_VALID     1000

/* entries of each of the two caches; a new one takes the place of another */
#define NGX_HTTP_VIBE_CACHE_SIZE    1024

/* bytes; CouchDB's are some hundred */
#define NGX_HTTP_VIBE_SEQ_MAX       4096


typedef enum {
    NGX_HTTP_VIBE_OWNED = 0,
    NGX_HTTP_VIBE_UNOWNED,               /* no known owner */
    NGX_HTTP_VIBE_MISSING                /* no such database */
} ngx_http_vibe_owner_e;


/* goes on, as an ngx_http_vibe_call_pt */
typedef ngx_int_t (*ngx_http_vibe_owner_pt)(ngx_http_request_t *r, void *data,
    ngx_http_vibe_owner_e owner);

typedef ngx_int_t (*ngx_http_vibe_sequence_pt)(ngx_http_request_t *r,
    void *data, ngx_str_t *seq);


/*
 * Finds out whether the caller's database is theirs.  Where it is another
 * DID's, or CouchDB fails, the client is answered here and "next" not called.
 * An empty database without owner becomes the caller's.  Where the name gives
 * the DID, nothing is asked, and it is OWNED even if it does not exist.
 */
ngx_int_t ngx_http_vibe_database_owner(ngx_http_request_t *r,
    ngx_http_vibe_caller_t *caller, ngx_http_vibe_owner_pt next, void *data);

/*
 * Makes the caller's database, closed to all but admins, and records the
 * owner.  One that exists by now is the caller's or not, as above.
 */
ngx_int_t ngx_http_vibe_database_create(ngx_http_request_t *r,
    ngx_http_vibe_caller_t *caller, ngx_http_vibe_owner_pt next, void *data);

/*
 * A sequence of the database for "last_seq": it was asked for at most
 * NGX_HTTP_VIBE_SEQ_VALID ago and has arrived before "next" is called.  The
 * worker's queries share it.  "seq" is from r->pool, "0" for a database that
 * does not exist.  Where CouchDB fails, the client is answered here.
 */
ngx_int_t ngx_http_vibe_database_sequence(ngx_http_request_t *r,
    ngx_str_t *db, ngx_http_vibe_sequence_pt next, void *data);

/*
 * PUT _security of a database just made: no members, no admins but the
 * server's.
 */
ngx_int_t ngx_http_vibe_database_close(ngx_http_request_t *r, ngx_str_t *db,
    ngx_http_vibe_call_pt handler, void *data);

/* writes the body of that request */
void ngx_http_vibe_database_put_security(ngx_http_vibe_json_out_t *out);


#endif /* _NGX_HTTP_VIBE_DATABASE_H_INCLUDED_ */
