
/*
 * One document on its way into "global": what is to be learned, asked and
 * written next.
 *
 * States are written under compare-and-set, not revisions:
 *
 *   1. learn the copy's own revision in "global" and the source revision that
 *      it stands for;
 *   2. if that one is newer than ours, or ours may not be the winner, ask the
 *      source for its winner, which decides;
 *   3. write the copy or the tombstone with the revision learned in 1;
 *   4. on a conflict begin again.
 *
 * The order of 1 and 2 matters: whoever mirrors a newer state after 1 makes 3
 * fail.  So any number of workers and hosts may mirror the same document, at
 * once, late or twice.
 *
 * Where nothing is, or a tombstone, there is no revision to compare with:
 * CouchDB takes a write over a tombstone only without one, and then whatever
 * happened meanwhile.  So the place is first claimed by a stub that nobody
 * can read; with its revision 2 and 3 follow.  Only a document whose id the
 * module has just made is written at once, and looked at again if the answer's
 * generation says that something was there.
 *
 * Promises: what was never public or restricted leaves no trace; what was and
 * is no longer leaves a tombstone, also where its copy has not arrived yet,
 * so that a late copy meets it.
 *
 * Floor 2: decides, takes no request, does no I/O.
 */


#ifndef _NGX_HTTP_VIBE_STATE_H_INCLUDED_
#define _NGX_HTTP_VIBE_STATE_H_INCLUDED_


#include <ngx_config.h>
#include <ngx_core.h>

#include "ngx_http_vibe_copy.h"


/* how often a document is begun again before it is left as pending */
#define NGX_HTTP_VIBE_STATE_TRIES  100


typedef enum {
    NGX_HTTP_VIBE_LEARN = 0,                 /* step 1: the copy */
    NGX_HTTP_VIBE_ASK,                       /* step 2: the source */
    NGX_HTTP_VIBE_WRITE,                     /* step 3 */
    NGX_HTTP_VIBE_DONE,
    NGX_HTTP_VIBE_FAILED                     /* pending, for repair */
} ngx_http_vibe_step_e;


typedef struct {
    ngx_pool_t                *pool;         /* lives as long as this */

    /* in: what is known of the source */

    ngx_str_t                  did;          /* the owner */
    ngx_str_t                  db;           /* empty: there is none */
    ngx_str_t                  id;
    ngx_str_t                  collection;
    ngx_str_t                  rev;
    ngx_str_t                  members;      /* for its copy */
    ngx_http_vibe_access_t     access;       /* private also: deleted */
    ngx_http_vibe_access_t     before;       /* of the revision before it */
    unsigned                   made:1;       /* id made now: none other has
                                                it, so step 1 is left out */
    unsigned                   ask:1;        /* may not be the winner */
    unsigned                   check:1;      /* only "rev" is known, and
                                                whether it is deleted */
    unsigned                   deleted:1;
    unsigned                   too_large:1;  /* no copy can be made of it */

    /* out */

    ngx_str_t                  global;       /* the global id */
    ngx_str_t                  copy_rev;     /* what was written or found */
    unsigned                   copied:1;     /* "global" has a copy */
    unsigned                   written:1;    /* it was not as it should be */
    unsigned                   uncollected:1;
    unsigned                   refused:1;    /* failed, and would again */
    unsigned                   newer:1;      /* so, by its format */

    /* while it works; the leaves stay until the next step was taken */

    ngx_http_vibe_leaf_t      *copy;         /* NULL: not learned */
    ngx_http_vibe_leaf_t      *source;       /* NULL: not asked */
    ngx_str_t                  stub;         /* our own one's revision */
    ngx_uint_t                 tries;
} ngx_http_vibe_state_t;


/* what to begin with, or to begin again with */
ngx_http_vibe_step_e ngx_http_vibe_state_begin(ngx_http_vibe_state_t *st,
    ngx_log_t *log);

/* what to do now that "copy" was learned */
ngx_http_vibe_step_e ngx_http_vibe_state_learned(ngx_http_vibe_state_t *st,
    ngx_log_t *log);

/*
 * What to do now that the source was asked: "source" is its winner.  What is
 * to be written is from "pool", which stays until the next step was taken.
 * FAILED: also without memory.
 */
ngx_http_vibe_step_e ngx_http_vibe_state_asked(ngx_http_vibe_state_t *st,
    ngx_pool_t *pool);

/*
 * Writes the copy, tombstone or stub that the step WRITE is about, with the
 * past readers of what it replaces.  The losers among the copy's leaves are
 * for the caller to delete with it: a loser would take a tombstone's place.
 * NGX_OK or NGX_ERROR: no memory.
 */
ngx_int_t ngx_http_vibe_state_put(ngx_http_vibe_state_t *st, ngx_pool_t *pool,
    ngx_http_vibe_json_out_t *out);

/*
 * CouchDB will not take a copy of that size: 1 if what stands in its place
 * must go, and it is to be begun again; it counts as private then.
 */
ngx_uint_t ngx_http_vibe_state_too_large(ngx_http_vibe_state_t *st);

/*
 * What to do now that it was written: NGX_OK with the revision, which must
 * stay; NGX_DECLINED where CouchDB found a conflict; NGX_ERROR.
 */
ngx_http_vibe_step_e ngx_http_vibe_state_written(ngx_http_vibe_state_t *st,
    ngx_int_t rc, ngx_str_t *rev, ngx_log_t *log);


#endif /* _NGX_HTTP_VIBE_STATE_H_INCLUDED_ */
