
/*
 * The user databases that repair has to check, and what it remembers of those
 * that it has checked.
 *
 * Floor 4.
 */


#ifndef _NGX_HTTP_VIBE_TARGET_H_INCLUDED_
#define _NGX_HTTP_VIBE_TARGET_H_INCLUDED_


#include "ngx_http_vibe.h"
#include "ngx_http_vibe_check.h"


/* databases of which something is remembered, or that wait */
#define NGX_HTTP_VIBE_TARGETS  16384


typedef enum {
    NGX_HTTP_VIBE_TARGET_IDLE = 0,
    NGX_HTTP_VIBE_TARGET_DUE,
    NGX_HTTP_VIBE_TARGET_RUNNING
} ngx_http_vibe_target_e;


typedef struct {
    ngx_str_node_t               node;         /* the name */
    ngx_queue_t                  queue;        /* of those in this state */
    ngx_http_vibe_target_e       state;
    ngx_http_vibe_check_t       *check;        /* running */

    ngx_msec_t                   at;           /* when it is due */
    time_t                       since;        /* it is due; 0: it is not,
                                                  or only to be saved */
    ngx_uint_t                   failures;
    uint64_t                     info;         /* hash of its update_seq */

    ngx_http_vibe_checked_t      known;
    ngx_msec_t                   saved;        /* the checkpoint */
    ngx_msec_t                   looked;       /* the last check's end */
    ngx_uint_t                   listed;       /* the last pass that did */

    unsigned                     pass:1;       /* a pass waits for it */
    unsigned                     again:1;      /* due again, while running */
    unsigned                     reset:1;      /* made anew: nothing holds */
    unsigned                     fresh:1;      /* so, while it runs */
    unsigned                     dirty:1;      /* "seq" is not saved */
    unsigned                     calm:1;       /* nothing was to be mended */
    unsigned                     vanished:1;   /* a pass did not find it */
} ngx_http_vibe_target_t;


typedef struct {
    ngx_rbtree_t                 rbtree;
    ngx_rbtree_node_t            sentinel;
    ngx_queue_t                  idle;         /* longest idle first */
    ngx_queue_t                  due;
    ngx_queue_t                  running;
    ngx_uint_t                   n;
    ngx_uint_t                   ndue;
    ngx_uint_t                   nrunning;
} ngx_http_vibe_targets_t;


void ngx_http_vibe_targets_init(ngx_http_vibe_targets_t *ts);

/* forgets all, ends those that run */
void ngx_http_vibe_targets_end(ngx_http_vibe_targets_t *ts);

/*
 * Makes a database due in "delay" milliseconds, if it is not due sooner.
 * NULL: no memory, or NGX_HTTP_VIBE_TARGETS are due.
 */
ngx_http_vibe_target_t *ngx_http_vibe_target_due(ngx_http_vibe_targets_t *ts,
    ngx_str_t *name, ngx_msec_t delay);

/*
 * The same for one that was changed: in "calm" milliseconds if it was found
 * right not much longer ago, so that many writes are few checks.
 */
ngx_http_vibe_target_t *ngx_http_vibe_target_event(
    ngx_http_vibe_targets_t *ts, ngx_str_t *name, ngx_msec_t delay,
    ngx_msec_t calm);

/* a pass, counted from 1, has found the database there */
void ngx_http_vibe_target_listed(ngx_http_vibe_targets_t *ts,
    ngx_str_t *name, ngx_uint_t pass);

/* makes those due that the pass before has found, and this one has not */
void ngx_http_vibe_targets_vanished(ngx_http_vibe_targets_t *ts,
    ngx_uint_t pass);

/* the first whose time has come, now running; NULL: none */
ngx_http_vibe_target_t *ngx_http_vibe_target_next(
    ngx_http_vibe_targets_t *ts);

/* one that ran is idle now, or due again if that was wanted meanwhile */
void ngx_http_vibe_target_done(ngx_http_vibe_targets_t *ts,
    ngx_http_vibe_target_t *t);

/* one that ran is due again later */
void ngx_http_vibe_target_retry(ngx_http_vibe_targets_t *ts,
    ngx_http_vibe_target_t *t, ngx_msec_t delay);

/* remembers a string in place of another; without memory nothing */
void ngx_http_vibe_target_keep(ngx_str_t *to, ngx_str_t *from);

/* ngx_time() since when the longest one is due, or 0 */
time_t ngx_http_vibe_targets_since(ngx_http_vibe_targets_t *ts);


#endif /* _NGX_HTTP_VIBE_TARGET_H_INCLUDED_ */
