
/*
 * The database "global": that it exists, is closed, and has the indexes that
 * vibe_index names, before the first query that needs one.
 *
 * Each worker makes sure of it once, and again after CouchDB said that the
 * database is gone.
 */


#ifndef _NGX_HTTP_VIBE_GLOBAL_H_INCLUDED_
#define _NGX_HTTP_VIBE_GLOBAL_H_INCLUDED_


#include "ngx_http_vibe.h"
#include "ngx_http_vibe_index.h"


/*
 * An index this many changes behind, and being worked on, is "being built":
 * fewer CouchDB catches up with while a query waits.
 */
#define NGX_HTTP_VIBE_INDEX_BEHIND  1000

/* how often an index that was being built is looked at, milliseconds */
#define NGX_HTTP_VIBE_INDEX_LOOK    1000


/*
 * Makes sure of "global" and goes on with "next".  Returns as an
 * ngx_http_vibe_call_pt does.
 */
ngx_int_t ngx_http_vibe_global_ready(ngx_http_request_t *r,
    ngx_http_vibe_next_pt next, void *data);

/* CouchDB has said that there is no such database: make sure again */
void ngx_http_vibe_global_gone(ngx_http_request_t *r);

extern ngx_str_t  ngx_http_vibe_global;          /* its name */


/*
 * The index for a sort in a collection by these fields, an array of
 * ngx_str_t; NULL: no vibe_index names it.  Without fields it is the one that
 * finds a collection's documents.
 */
ngx_http_vibe_index_t *ngx_http_vibe_global_index(ngx_http_request_t *r,
    ngx_str_t *collection, ngx_array_t *fields);

/*
 * Goes on with "next" when the index can be used; where it is being built,
 * the client is answered 503 here.
 */
ngx_int_t ngx_http_vibe_index_ready(ngx_http_request_t *r,
    ngx_http_vibe_index_t *index, ngx_http_vibe_next_pt next, void *data);

/* CouchDB has said that there is no such index: make sure again */
void ngx_http_vibe_index_gone(ngx_http_request_t *r,
    ngx_http_vibe_index_t *index);


#endif /* _NGX_HTTP_VIBE_GLOBAL_H_INCLUDED_ */
