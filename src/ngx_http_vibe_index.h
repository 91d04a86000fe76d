
/*
 * Mango indexes: their names, their making.
 *
 * Every index begins with "collection", as every query asks for one.  An
 * index is named after its fields, so two workers make the same one.
 */


#ifndef _NGX_HTTP_VIBE_INDEX_H_INCLUDED_
#define _NGX_HTTP_VIBE_INDEX_H_INCLUDED_


#include "ngx_http_vibe.h"


#define NGX_HTTP_VIBE_INDEX_PREFIX  "vibe-"

/* how often it is made again where others make it at the same time */
#define NGX_HTTP_VIBE_INDEX_TRIES   5


/*
 * The name of the index by these fields, an array of ngx_str_t which may be
 * NULL or empty: "vibe-" and 16 hexadecimal digits.  From the pool; NGX_OK or
 * NGX_ERROR.
 */
ngx_int_t ngx_http_vibe_index_name(ngx_pool_t *pool, ngx_array_t *fields,
    ngx_str_t *name);

/* 1 if two arrays name the same fields in the same order */
ngx_uint_t ngx_http_vibe_index_same(ngx_array_t *a, ngx_array_t *b);

/* writes what makes the index, the body of a POST to /db/_index */
void ngx_http_vibe_index_put(ngx_http_vibe_json_out_t *out, ngx_str_t *name,
    ngx_array_t *fields);

/*
 * 1 if CouchDB's answer is the one to two who save one design document at
 * once: then it is made again, NGX_HTTP_VIBE_INDEX_TRIES times at most
 */
#define ngx_http_vibe_index_raced(status)                                     \
    ((status) == NGX_HTTP_INTERNAL_SERVER_ERROR                               \
     || (status) == NGX_HTTP_CONFLICT)

/*
 * Makes the index if it does not exist, POST /db/_index, and goes on with
 * "next".  "fields" may be NULL.  Returns as an ngx_http_vibe_call_pt does.
 */
ngx_int_t ngx_http_vibe_index_create(ngx_http_request_t *r, ngx_str_t *db,
    ngx_str_t *name, ngx_array_t *fields, ngx_http_vibe_next_pt next,
    void *data);


#endif /* _NGX_HTTP_VIBE_INDEX_H_INCLUDED_ */
