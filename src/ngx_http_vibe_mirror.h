
/*
 * The mirror: makes "global" hold, for each document given to it, what its
 * owner's database says, see ngx_http_vibe_state.h.
 *
 * Group commit.  All documents of a worker go through the same three
 * stations: what is in "global" is learned for all that wait in one
 * _bulk_get, what a source says is asked in one for each database, and
 * _bulk_docs writes what can be written: one at a time, the next collecting
 * meanwhile.  So the load on "global" grows with its round trips, not with
 * the number of writers.
 *
 * Promises: a mirror that was begun goes on without the client it was begun
 * for; each row ends as done or as left to repair; what waits is bounded.
 *
 * Floor 4: takes a request only to let it wait.
 */


#ifndef _NGX_HTTP_VIBE_MIRROR_H_INCLUDED_
#define _NGX_HTTP_VIBE_MIRROR_H_INCLUDED_


#include "ngx_http_vibe.h"
#include "ngx_http_vibe_state.h"
#include "ngx_http_vibe_wait.h"


/* databases that are asked at once */
#define NGX_HTTP_VIBE_MIRROR_ASKS  16

/* rows looked through for those of one database */
#define NGX_HTTP_VIBE_MIRROR_SCAN  1000


typedef struct ngx_http_vibe_mirror_s  ngx_http_vibe_mirror_t;
typedef struct ngx_http_vibe_batch_s   ngx_http_vibe_batch_t;

typedef void (*ngx_http_vibe_mirror_pt)(ngx_http_vibe_mirror_t *m);


typedef struct {
    ngx_http_vibe_state_t        state;
    unsigned                     done:1;       /* out: else pending */

    /* this room's own */

    ngx_queue_t                  queue;
    ngx_http_vibe_mirror_t      *mirror;
    ngx_http_vibe_batch_t       *learned;      /* state.copy is in its pool */
    ngx_http_vibe_batch_t       *asked;        /* state.source is */
} ngx_http_vibe_mirror_row_t;


struct ngx_http_vibe_mirror_s {
    ngx_pool_t                  *pool;         /* ends with the mirror */
    ngx_str_t                    did;
    ngx_str_t                    db;
    ngx_array_t                  rows;         /* ngx_http_vibe_mirror_row_t */
    ngx_uint_t                   left;         /* rows that are not ended */
    size_t                       size;         /* bytes it counts for */

    ngx_http_vibe_mirror_pt      handler;
    void                        *data;         /* the caller's own */
    ngx_http_vibe_wait_t        *wait;         /* place for the handler */
    unsigned                     waited:1;     /* a client does, or did */
};


/* for init_process */
void ngx_http_vibe_mirror_init(ngx_http_vibe_main_conf_t *vmcf);

/*
 * Prepares for at most "n" rows of the owner "did" in the database "db", which
 * may be empty: the rows have no source then.  NULL: no memory.
 */
ngx_http_vibe_mirror_t *ngx_http_vibe_mirror_create(ngx_str_t *did,
    ngx_str_t *db, ngx_uint_t n, ngx_log_t *log);

/*
 * Adds a row for this id and revision of the source; the rest of its state
 * is zero, and for the caller to fill in with what is from mirror->pool.
 * NULL: no memory.  The row stays where it is.
 */
ngx_http_vibe_mirror_row_t *ngx_http_vibe_mirror_add(
    ngx_http_vibe_mirror_t *m, ngx_str_t *id, ngx_str_t *rev);

/*
 * Begins, and has "handler" called, later and from the event loop, when all
 * rows have ended; the mirror is gone when that returns.  NGX_OK; or
 * NGX_BUSY where too much waits already: nothing was begun, and the caller
 * ends it with ngx_http_vibe_mirror_end().
 */
ngx_int_t ngx_http_vibe_mirror(ngx_http_vibe_mirror_t *m,
    ngx_http_vibe_mirror_pt handler, void *data);

/* ends a mirror that was not begun */
void ngx_http_vibe_mirror_end(ngx_http_vibe_mirror_t *m);


#endif /* _NGX_HTTP_VIBE_MIRROR_H_INCLUDED_ */
