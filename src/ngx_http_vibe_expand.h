
/*
 * References to documents, {"did":...,"ref":...}, and the documents that they
 * name: by GET /data/expand, and as the "expand" of a query.
 *
 * The caller's own are read from their database, all others from "global",
 * one request each.  What the caller may not read is as if it were not there.
 */


#ifndef _NGX_HTTP_VIBE_EXPAND_H_INCLUDED_
#define _NGX_HTTP_VIBE_EXPAND_H_INCLUDED_


#include "ngx_http_vibe.h"
#include "ngx_http_vibe_lookup.h"


/*
 * References of one query; what is beyond, or would make the answer larger
 * than vibe_max_response, stays unexpanded.
 */
#define NGX_HTTP_VIBE_EXPAND_MAX  1000


typedef struct {
    ngx_http_vibe_json_t         *node;      /* the reference; NULL: alone */
    ngx_http_vibe_leaf_t   *row;
    unsigned                      own:1;
} ngx_http_vibe_ref_t;


typedef struct {
    ngx_str_t                     did;       /* the caller's, or empty */
    ngx_http_vibe_lookup_t       *own;
    ngx_http_vibe_lookup_t       *global;
    ngx_array_t                   refs;      /* of ngx_http_vibe_ref_t */
    ngx_uint_t                    shown;     /* refs written so far */
    size_t                        size;      /* bytes they were expanded to */
    size_t                        max_size;
    ngx_http_vibe_next_pt         next;
    void                         *data;
} ngx_http_vibe_expand_t;


/* prepares for at most "n" references; NULL: no memory */
ngx_http_vibe_expand_t *ngx_http_vibe_expand_create(ngx_http_request_t *r,
    ngx_http_vibe_caller_t *caller, ngx_uint_t n);

/* how many references a value is at most: 1, or the length of an array */
ngx_uint_t ngx_http_vibe_expand_count(ngx_http_vibe_json_t *value);

/*
 * Adds the reference, or the array of references, that a value is; one that
 * is neither adds nothing.  NGX_OK; NGX_DECLINED: too many; NGX_ERROR.
 */
ngx_int_t ngx_http_vibe_expand_add(ngx_http_request_t *r,
    ngx_http_vibe_expand_t *expand, ngx_http_vibe_json_t *value);

/*
 * Reads the documents and goes on with "next".  Returns as an
 * ngx_http_vibe_call_pt does.
 */
ngx_int_t ngx_http_vibe_expand(ngx_http_request_t *r,
    ngx_http_vibe_expand_t *expand, ngx_http_vibe_next_pt next, void *data);

/*
 * Writes a value with its references replaced by documents; values must come
 * in the order in which they were added.  NGX_OK or NGX_ERROR.
 */
ngx_int_t ngx_http_vibe_expand_put(ngx_http_vibe_expand_t *expand,
    ngx_http_vibe_json_out_t *out, ngx_http_vibe_json_t *value);

/* GET /data/expand?did=&ref= ; returns as an ngx_http_vibe_call_pt */
ngx_int_t ngx_http_vibe_expand_one(ngx_http_request_t *r,
    ngx_http_vibe_ctx_t *ctx);


#endif /* _NGX_HTTP_VIBE_EXPAND_H_INCLUDED_ */
