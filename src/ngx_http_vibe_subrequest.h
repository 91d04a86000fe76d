
/*
 * A request to CouchDB that a client waits for: a subrequest through the
 * internal location of vibe_couchdb.conf, whose answer is kept, not sent.
 *
 * One at a time for each client's request.  The handler runs as the client's
 * request, after the subrequest has ended, and says how to go on.
 *
 * Promises: nothing of the client's headers reaches CouchDB; an answer is
 * bounded by vibe_max_response; a request that a reused connection lost
 * before any byte of an answer came is sent once more.
 */


#ifndef _NGX_HTTP_VIBE_SUBREQUEST_H_INCLUDED_
#define _NGX_HTTP_VIBE_SUBREQUEST_H_INCLUDED_


#include <ngx_config.h>
#include <ngx_core.h>
#include <ngx_http.h>

#include "ngx_http_vibe_couch.h"
#include "ngx_http_vibe_json.h"


/* the location that vibe_couchdb.conf defines */
#define NGX_HTTP_VIBE_LOCATION  "/vibe_couchdb"


typedef struct ngx_http_vibe_call_s  ngx_http_vibe_call_t;

/*
 * Goes on with the client's request.  NGX_AGAIN: another call was started;
 * anything else ends the request, as in ngx_http_finalize_request().
 */
typedef ngx_int_t (*ngx_http_vibe_call_pt)(ngx_http_request_t *r,
    ngx_http_vibe_call_t *call);

/*
 * The same for work of several calls: "failed" is NULL, or the call that it
 * came to grief with.
 */
typedef ngx_int_t (*ngx_http_vibe_next_pt)(ngx_http_request_t *r, void *data,
    ngx_http_vibe_call_t *failed);


struct ngx_http_vibe_call_s {
    ngx_uint_t               method;    /* NGX_HTTP_GET, _PUT or _POST */
    ngx_str_t                path;      /* escaped, from the "/" on */
    ngx_chain_t             *body;      /* JSON in memory, or NULL */
    ngx_http_vibe_call_pt    handler;
    void                    *data;      /* the caller's own */

    /*
     * CouchDB's status; where it gave no whole answer 502, 503 (could not be
     * reached) or 504 (took too long), and "answer" is empty
     */
    ngx_uint_t               status;
    ngx_str_t                answer;

    ngx_http_request_t      *subrequest;
    size_t                   size;      /* allocated for the answer */
    unsigned                 done:1;
    unsigned                 complete:1;
    unsigned                 broken:1;  /* the answer could not be kept */
    unsigned                 resent:1;
    unsigned                 too_large:1;
};


/*
 * Sends "method" for "/<db><suffix>" with the JSON text "body" or none, and
 * has "handler" called with the answer.  The database's name is escaped, the
 * suffix goes as it is: ids belong into bodies.
 *
 * NGX_AGAIN, or NGX_ERROR: no memory.
 */
ngx_int_t ngx_http_vibe_request(ngx_http_request_t *r, ngx_uint_t method,
    ngx_str_t *db, const char *suffix, ngx_http_vibe_json_out_t *body,
    ngx_http_vibe_call_pt handler, void *data);

/* a call as it would be, of a request that libcurl has carried */
void ngx_http_vibe_call_of(ngx_http_vibe_couch_t *couch,
    ngx_http_vibe_call_t *call);

/* 1 if the answer says that the database does not exist */
ngx_uint_t ngx_http_vibe_no_database(ngx_http_vibe_call_t *call);

/*
 * Scans an answer that must be JSON.  NGX_OK; NGX_DECLINED: it is not, and
 * the call's status has become 502; NGX_ERROR: no memory.
 */
ngx_int_t ngx_http_vibe_scan_answer(ngx_pool_t *pool,
    ngx_http_vibe_call_t *call, ngx_uint_t depth,
    ngx_http_vibe_json_t **root);

/*
 * Ends a client's request with what a handler returned, unless that is
 * NGX_AGAIN.
 */
void ngx_http_vibe_finalize(ngx_http_request_t *r, ngx_int_t rc);

/* the output filters through which a subrequest's answer is kept */
ngx_int_t ngx_http_vibe_subrequest_header(ngx_http_vibe_call_t *call,
    ngx_http_request_t *r);
ngx_int_t ngx_http_vibe_subrequest_body(ngx_http_vibe_call_t *call,
    ngx_http_request_t *r, ngx_chain_t *in);

/* the handlers of $vibe_couchdb_url and $vibe_couchdb_authorization */
ngx_int_t ngx_http_vibe_subrequest_url(ngx_http_request_t *r,
    ngx_http_variable_value_t *v, uintptr_t data);
ngx_int_t ngx_http_vibe_subrequest_authorization(ngx_http_request_t *r,
    ngx_http_variable_value_t *v, uintptr_t data);


#endif /* _NGX_HTTP_VIBE_SUBREQUEST_H_INCLUDED_ */
