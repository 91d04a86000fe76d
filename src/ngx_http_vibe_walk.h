
/*
 * Looks at documents of "global" and makes each right by what its source
 * says: copies of documents that are gone, what an admin changed, what
 * another host has written, a stub whose writer died.  A live document that
 * is nobody's copy is removed.
 *
 * Floor 4.
 */


#ifndef _NGX_HTTP_VIBE_WALK_H_INCLUDED_
#define _NGX_HTTP_VIBE_WALK_H_INCLUDED_


#include "ngx_http_vibe.h"
#include "ngx_http_vibe_ask.h"
#include "ngx_http_vibe_lookup.h"
#include "ngx_http_vibe_mirror.h"


typedef struct ngx_http_vibe_walk_s  ngx_http_vibe_walk_t;

/* NGX_OK; NGX_ERROR: CouchDB failed, it is to be tried again */
typedef void (*ngx_http_vibe_walk_pt)(ngx_http_vibe_walk_t *w, ngx_int_t rc);


/* one document of "global" */

typedef struct {
    ngx_http_vibe_leaf_t        *leaf;
    ngx_str_t                    did;
    ngx_str_t                    id;         /* in the owner's database */
    ngx_str_t                    db;         /* empty: nobody's */
    unsigned                     skip:1;
    unsigned                     owned:1;    /* the owner was looked up */
} ngx_http_vibe_walk_row_t;


struct ngx_http_vibe_walk_s {
    ngx_http_vibe_main_conf_t   *vmcf;
    ngx_pool_t                  *pool;       /* ends with the walk */
    ngx_http_vibe_walk_pt        handler;
    void                        *data;

    /* this room's own */

    ngx_http_vibe_ask_t          ask;
    ngx_http_vibe_lookup_t      *lookup;
    ngx_http_vibe_walk_row_t    *rows;
    ngx_uint_t                   n;
    ngx_uint_t                   owner;      /* the row whose is asked for */
    ngx_uint_t                   left;       /* mirrors under way */
    ngx_array_t                  mirrors;    /* of ngx_http_vibe_mirror_t *,
                                                NULL: ended */
    unsigned                     failed:1;
};


/* prepares for at most "n" ids; NULL: no memory */
ngx_http_vibe_walk_t *ngx_http_vibe_walk_create(
    ngx_http_vibe_main_conf_t *vmcf, ngx_uint_t n,
    ngx_http_vibe_walk_pt handler, void *data);

/* adds a document's id in "global", which is copied; NGX_OK or NGX_ERROR */
ngx_int_t ngx_http_vibe_walk_add(ngx_http_vibe_walk_t *w, ngx_str_t *global);

/*
 * Begins, with one id at least.  The handler is called from the event loop,
 * and must end the walk.
 */
void ngx_http_vibe_walk(ngx_http_vibe_walk_t *w);

/* ends it, also before its handler was called; what it mirrors goes on */
void ngx_http_vibe_walk_end(ngx_http_vibe_walk_t *w);


#endif /* _NGX_HTTP_VIBE_WALK_H_INCLUDED_ */
