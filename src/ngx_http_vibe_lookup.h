
/*
 * Reads documents of one database by their ids, tombstones included: one
 * _bulk_get, more only where its answer would be larger than
 * vibe_max_response.
 *
 * What is asked and how an answer is read does not depend on who carries it:
 * ngx_http_vibe_lookup() does it by subrequests; others put the question
 * themselves, and take the answer, as often as that says.
 */


#ifndef _NGX_HTTP_VIBE_LOOKUP_H_INCLUDED_
#define _NGX_HTTP_VIBE_LOOKUP_H_INCLUDED_


#include "ngx_http_vibe.h"


/* all that is held of one look-up, in units of vibe_max_response */
#define NGX_HTTP_VIBE_LOOKUP_ANSWERS  4


typedef struct {
    ngx_str_t                  db;
    ngx_array_t                rows;         /* of ngx_http_vibe_leaf_t */
    ngx_http_vibe_next_pt      next;
    void                      *data;

    unsigned                   partly:1;     /* in: what would be too much is
                                                left: rows after "from" */
    unsigned                   missing:1;    /* out: there is no database */

    size_t                     max_response;
    size_t                     size;         /* of the answers so far */
    ngx_uint_t                 from;         /* rows asked for now */
    ngx_uint_t                 n;
} ngx_http_vibe_lookup_t;


/* prepares for at most "n" rows; NULL: no memory */
ngx_http_vibe_lookup_t *ngx_http_vibe_lookup_create(ngx_pool_t *pool,
    ngx_http_vibe_main_conf_t *vmcf, ngx_str_t *db, ngx_uint_t n);

/* adds an id; NULL: no memory.  The row stays where it is */
ngx_http_vibe_leaf_t *ngx_http_vibe_lookup_add(
    ngx_http_vibe_lookup_t *lookup, ngx_str_t *id);

/*
 * Fills the rows and goes on with "next".  A missing database is no failure:
 * none of the ids is there.  More than NGX_HTTP_VIBE_LOOKUP_ANSWERS is a
 * failure with the status 413.  Returns as an ngx_http_vibe_call_pt does.
 */
ngx_int_t ngx_http_vibe_lookup(ngx_http_request_t *r,
    ngx_http_vibe_lookup_t *lookup, ngx_http_vibe_next_pt next, void *data);

/* writes the next question, to be sent to NGX_HTTP_VIBE_LOOKUP_PATH */
void ngx_http_vibe_lookup_ask(ngx_http_vibe_lookup_t *lookup,
    ngx_http_vibe_json_out_t *out);

/*
 * Takes the answer.  NGX_OK: all rows are filled, or the database is missing;
 * NGX_AGAIN: ask the next question; NGX_DECLINED: it failed, the call's
 * status says why; NGX_ERROR: no memory.
 */
ngx_int_t ngx_http_vibe_lookup_take(ngx_http_vibe_lookup_t *lookup,
    ngx_http_vibe_call_t *call);

#define NGX_HTTP_VIBE_LOOKUP_PATH  "/_bulk_get"


#endif /* _NGX_HTTP_VIBE_LOOKUP_H_INCLUDED_ */
