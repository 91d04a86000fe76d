
/*
 * Answers to clients: JSON, errors in CouchDB's shape, the headers of CORS.
 */


#ifndef _NGX_HTTP_VIBE_ANSWER_H_INCLUDED_
#define _NGX_HTTP_VIBE_ANSWER_H_INCLUDED_


#include "ngx_http_vibe.h"


/*
 * Sends a finished JSON text with this status.  The result is for
 * ngx_http_finalize_request(), never NGX_AGAIN.
 */
ngx_int_t ngx_http_vibe_answer(ngx_http_request_t *r, ngx_uint_t status,
    ngx_http_vibe_json_out_t *out);

/* sends a status without a body: 204, 304.  As above */
ngx_int_t ngx_http_vibe_answer_empty(ngx_http_request_t *r,
    ngx_uint_t status);

/*
 * Sends {"error":"...","reason":"..."}.  The error's name follows from the
 * status, the reason is a text in UTF-8.  As above.
 */
ngx_int_t ngx_http_vibe_error(ngx_http_request_t *r, ngx_uint_t status,
    ngx_str_t *reason);
ngx_int_t ngx_http_vibe_error_text(ngx_http_request_t *r, ngx_uint_t status,
    const char *reason);

/* the same, with a name of its own where the status does not say enough */
ngx_int_t ngx_http_vibe_error_named(ngx_http_request_t *r, ngx_uint_t status,
    ngx_str_t *name, ngx_str_t *reason);

/* 405 with "Allow", a list of methods.  As above */
ngx_int_t ngx_http_vibe_not_allowed(ngx_http_request_t *r,
    const char *methods);

/*
 * Sends the error that an answer of CouchDB, which was not the one hoped
 * for, is to a client: what is wrong between here and CouchDB is 502, 503 or
 * 504 and told in the log, not to the client.  As above.
 */
ngx_int_t ngx_http_vibe_couch_failed(ngx_http_request_t *r,
    ngx_http_vibe_call_t *call);

/* the status for it, and a static text */
ngx_uint_t ngx_http_vibe_couch_status(ngx_http_vibe_call_t *call,
    const char **reason);

/* CouchDB's name for an error with this status, as "conflict" for 409 */
void ngx_http_vibe_error_name(ngx_uint_t status, ngx_str_t *name);

/* adds a header to the answer; "value" must stay.  NGX_OK or NGX_ERROR */
ngx_int_t ngx_http_vibe_add_header(ngx_http_request_t *r, const char *name,
    ngx_str_t *value);

/* "Cache-Control": what one may read is not for a shared cache */
ngx_int_t ngx_http_vibe_not_shared(ngx_http_request_t *r);

/*
 * The "Origin" of the request if vibe_origins allows it.  NGX_OK;
 * NGX_DECLINED if there is none; NGX_ABORT if there is one not allowed.
 */
ngx_int_t ngx_http_vibe_origin(ngx_http_request_t *r, ngx_str_t *origin);

/* a request header by its lower-case name; NULL if there is none */
ngx_table_elt_t *ngx_http_vibe_header_in(ngx_http_request_t *r,
    const char *name, size_t len);

/*
 * An argument of the request's URI, its escapes resolved; empty if there is
 * none.  From r->pool; NGX_OK or NGX_ERROR.
 */
ngx_int_t ngx_http_vibe_arg(ngx_http_request_t *r, const char *name,
    ngx_str_t *value);

/*
 * Filters of a client's answer: CORS on all, also on nginx's own errors,
 * whose pages are replaced by JSON.
 */
ngx_int_t ngx_http_vibe_answer_header(ngx_http_request_t *r,
    ngx_http_vibe_ctx_t *ctx);
ngx_int_t ngx_http_vibe_answer_page(ngx_http_request_t *r,
    ngx_chain_t **page);


#endif /* _NGX_HTTP_VIBE_ANSWER_H_INCLUDED_ */
