
/*
 * Writes documents to one database with _bulk_docs.
 *
 * One document can make CouchDB refuse the whole request, with nothing
 * written: such a request is split until the culprit is alone, and the others
 * go through.
 *
 * As with a look-up, ngx_http_vibe_bulk() does it by subrequests, and others
 * ask and take themselves.
 */


#ifndef _NGX_HTTP_VIBE_BULK_H_INCLUDED_
#define _NGX_HTTP_VIBE_BULK_H_INCLUDED_


#include "ngx_http_vibe.h"


typedef struct {
    ngx_http_vibe_json_out_t   doc;          /* the document, with its _id */
    void                      *data;         /* the caller's own */

    /*
     * 201 or, where a cluster has not all copies yet, 202; 409 and the like
     * where CouchDB refused it, with "error" and "reason"; 502, 503 or 504
     * where it is not known whether it was written; 404 if there is no
     * database.
     */
    ngx_uint_t                 status;
    ngx_str_t                  rev;
    ngx_str_t                  reason;
} ngx_http_vibe_bulk_row_t;


typedef struct {
    ngx_str_t                  db;
    ngx_uint_t                 copies;       /* "w", 0: CouchDB's quorum */
    ngx_array_t                rows;         /* of ngx_http_vibe_bulk_row_t */
    ngx_http_vibe_next_pt      next;
    void                      *data;

    unsigned                   missing:1;    /* out: there is no database */

    ngx_uint_t                 from;         /* rows written now */
    ngx_uint_t                 n;
} ngx_http_vibe_bulk_t;


/* prepares for at most "n" rows; NULL: no memory */
ngx_http_vibe_bulk_t *ngx_http_vibe_bulk_create(ngx_pool_t *pool,
    ngx_str_t *db, ngx_uint_t n);

/* adds a row whose "doc" is to be filled in; NULL: no memory */
ngx_http_vibe_bulk_row_t *ngx_http_vibe_bulk_add(ngx_http_vibe_bulk_t *bulk,
    void *data);

/*
 * Writes the rows and goes on with "next".  Each row has its status then;
 * "failed" is the last call that concerned more than one document.  Returns
 * as an ngx_http_vibe_call_pt does.
 */
ngx_int_t ngx_http_vibe_bulk(ngx_http_request_t *r,
    ngx_http_vibe_bulk_t *bulk, ngx_http_vibe_next_pt next, void *data);

/*
 * Writes the next request's body, and into "path" what follows the database,
 * NUL-terminated.
 */
void ngx_http_vibe_bulk_ask(ngx_http_vibe_bulk_t *bulk,
    ngx_http_vibe_json_out_t *out, u_char *path);

#define NGX_HTTP_VIBE_BULK_PATH_MAX  (sizeof("/_bulk_docs?w=") + NGX_INT_T_LEN)

/*
 * Takes the answer.  NGX_OK: each row has its status; NGX_AGAIN: send the
 * next request; NGX_DECLINED: the call concerned more than one document and
 * failed, each row has its status; NGX_ERROR: no memory.
 */
ngx_int_t ngx_http_vibe_bulk_take(ngx_http_vibe_bulk_t *bulk,
    ngx_http_vibe_call_t *call);


#endif /* _NGX_HTTP_VIBE_BULK_H_INCLUDED_ */
