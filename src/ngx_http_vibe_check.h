
/*
 * Brings "global" in line with one user's database: whose it is, what has
 * changed in it since its checkpoint, and for each such document a mirror
 * that decides by what the source says.
 *
 * The checkpoint is _local/vibe_repair in that database.  It names the
 * "global" and the rules for which it was made, and when the database was:
 * with other ones, or without a checkpoint, all that the database holds is
 * looked at, and all that "global" holds of its owner.
 *
 * Promises: a checkpoint never runs ahead of what was made right.
 *
 * Floor 4.
 */


#ifndef _NGX_HTTP_VIBE_CHECK_H_INCLUDED_
#define _NGX_HTTP_VIBE_CHECK_H_INCLUDED_


#include "ngx_http_vibe.h"
#include "ngx_http_vibe_ask.h"
#include "ngx_http_vibe_mirror.h"


/* the record of whose a database is */
#define NGX_HTTP_VIBE_OWNER_DOC   "/_local/vibe_owner"

/* changes, or copies, that are looked at with one request */
#define NGX_HTTP_VIBE_CHECK_PAGE  200


typedef struct ngx_http_vibe_check_s  ngx_http_vibe_check_t;

/* NGX_OK; NGX_ERROR: CouchDB failed, it is to be tried again */
typedef void (*ngx_http_vibe_check_pt)(ngx_http_vibe_check_t *c,
    ngx_int_t rc);


/* what is remembered of a database from one check to the next */

typedef struct {
    ngx_str_t                    did;        /* empty: not known */
    ngx_str_t                    seq;        /* empty: the checkpoint tells */
    uint32_t                     born;       /* hash of when it was made */
} ngx_http_vibe_checked_t;


struct ngx_http_vibe_check_s {
    /* in */

    ngx_http_vibe_main_conf_t   *vmcf;
    ngx_pool_t                  *pool;       /* ends with the check */
    ngx_str_t                    db;
    ngx_http_vibe_check_pt       handler;
    void                        *data;
    unsigned                     save:1;     /* write the checkpoint */
    unsigned                     hold:1;     /* do not: a row was left alone */

    /* in, if known; out */

    ngx_http_vibe_checked_t      known;

    /* out */

    unsigned                     unowned:1;  /* nobody's: nothing was done */
    unsigned                     missing:1;  /* there is no such database */
    unsigned                     saved:1;
    unsigned                     mended:1;   /* something was not right */

    /* this room's own */

    ngx_http_vibe_ask_t          ask;
    ngx_http_vibe_mirror_t      *mirror;     /* under way */
    ngx_str_t                    stored;     /* the checkpoint's sequence */
    ngx_str_t                    last;       /* id in "global" */
    size_t                       last_size;  /* allocated for it */
    ngx_uint_t                   page;       /* copies looked at at once */
    u_char                       global[NGX_HTTP_VIBE_GLOBAL_ID];
    unsigned                     fresh:1;    /* no checkpoint to go by */
    unsigned                     more:1;     /* pages */
    unsigned                     ranging:1;  /* through "global" */
};


/*
 * Begins; "db" and what is known of it are copied.  "fresh": whatever
 * checkpoint there is says nothing.  The handler is called from the event
 * loop, and must end the check.  NULL: no memory.
 */
ngx_http_vibe_check_t *ngx_http_vibe_check(ngx_http_vibe_main_conf_t *vmcf,
    ngx_str_t *db, ngx_http_vibe_checked_t *known, ngx_uint_t save,
    ngx_uint_t fresh, ngx_http_vibe_check_pt handler, void *data);

/* ends it, also before its handler was called; what it mirrors goes on */
void ngx_http_vibe_check_end(ngx_http_vibe_check_t *c);

/*
 * The DID that a user database's name gives.  NGX_OK; NGX_DECLINED: it gives
 * none, the record must; NGX_ABORT: not a user's database; NGX_ERROR.
 */
ngx_int_t ngx_http_vibe_check_named(ngx_http_vibe_main_conf_t *vmcf,
    ngx_pool_t *pool, ngx_str_t *db, ngx_str_t *did);

/*
 * The DID of the answer to a GET of NGX_HTTP_VIBE_OWNER_DOC, copied into the
 * pool.  NGX_OK; NGX_DECLINED: there is no record; NGX_ABORT: nor such a
 * database; NGX_ERROR: CouchDB failed, or the record says nothing.
 */
ngx_int_t ngx_http_vibe_check_record(ngx_http_vibe_ask_t *ask,
    ngx_http_vibe_call_t *call, ngx_pool_t *pool, ngx_str_t *did);

/* 1 if a mirror has ended well enough for a checkpoint to pass it */
ngx_uint_t ngx_http_vibe_check_passed(ngx_http_vibe_mirror_t *m);

/* counts what a mirror of repair's has done */
void ngx_http_vibe_check_count(ngx_http_vibe_main_conf_t *vmcf,
    ngx_http_vibe_mirror_t *m);


#endif /* _NGX_HTTP_VIBE_CHECK_H_INCLUDED_ */
