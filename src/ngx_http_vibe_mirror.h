
/*
 * The mirror: makes "global" hold, for each document given to it, what its
 * owner's database says.
 *
 * It writes states under compare-and-set, not revisions:
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
 */


#ifndef _NGX_HTTP_VIBE_MIRROR_H_INCLUDED_
#define _NGX_HTTP_VIBE_MIRROR_H_INCLUDED_


#include "ngx_http_vibe.h"
#include "ngx_http_vibe_lookup.h"


/* how often a document is begun again before it is left as pending */
#define NGX_HTTP_VIBE_MIRROR_TRIES  100


typedef struct {
    /* in */

    ngx_str_t                    id;           /* in the owner's database */
    ngx_str_t                    collection;
    ngx_str_t                    rev;          /* of the source */
    ngx_http_vibe_json_t        *doc;          /* its members; NULL: deleted */
    ngx_http_vibe_access_t       access;       /* decided for "doc" */
    ngx_http_vibe_access_t       before;       /* for the revision before it */
    unsigned                     made:1;       /* id made now: none other has
                                                  it, so step 1 is left out */
    unsigned                     ask:1;        /* may not be the winner */

    /* out */

    ngx_str_t                    global;       /* the global id */
    unsigned                     done:1;       /* else pending */
    unsigned                     copied:1;     /* "global" has a copy */

    /* while it works */

    ngx_http_vibe_lookup_row_t  *copy;         /* NULL: not learned */
    ngx_http_vibe_lookup_row_t  *source;
    ngx_str_t                    stub;         /* our own one's revision */
    ngx_uint_t                   tries;
    unsigned                     failed:1;
} ngx_http_vibe_mirror_row_t;


typedef struct {
    ngx_str_t                    did;          /* the owner */
    ngx_str_t                    db;
    ngx_array_t                  rows;         /* ngx_http_vibe_mirror_row_t */
    ngx_http_vibe_next_pt        next;
    void                        *data;

    ngx_http_vibe_lookup_t      *lookup;
    void                        *bulk;
} ngx_http_vibe_mirror_t;


/* prepares for at most "n" rows; NULL: no memory */
ngx_http_vibe_mirror_t *ngx_http_vibe_mirror_create(ngx_http_request_t *r,
    ngx_http_vibe_caller_t *owner, ngx_uint_t n);

/* adds a zeroed row; NULL: no memory.  It stays where it is */
ngx_http_vibe_mirror_row_t *ngx_http_vibe_mirror_add(
    ngx_http_vibe_mirror_t *mirror);

/*
 * Mirrors the rows and goes on with "next", whose "failed" is NULL also where
 * rows are left pending: the writes they stand for are safe.  Returns as an
 * ngx_http_vibe_call_pt does.
 */
ngx_int_t ngx_http_vibe_mirror(ngx_http_request_t *r,
    ngx_http_vibe_mirror_t *mirror, ngx_http_vibe_next_pt next, void *data);


#endif /* _NGX_HTTP_VIBE_MIRROR_H_INCLUDED_ */
