
/*
 * The materialized view of one feed: the run that brings it up to date.
 *
 * Two databases take turns.  A run works on the one that is not current:
 *
 *   1. makes both and their indexes, where they are not there;
 *   2. reads the changes of "global" up to now: their sequence is the run's;
 *   3. gathers from each user's database that has changed since this one was
 *      brought up to date, or from all;
 *   4. lets CouchDB build the indexes;
 *   5. reads the changes once more: what was withdrawn since 2 is taken out;
 *   6. names this one in the pointer, as the current one;
 *   7. after a run that looked at all databases, levels the other one.
 *
 * A run that finds nothing changed does 2 and 6 only, with the database that
 * is current.
 *
 * Promises: what the pointer names is complete, of one run; a run that fails
 * leaves it as it was; what was withdrawn does not come back.
 *
 * Floor 4.
 */


#ifndef _NGX_HTTP_VIBE_VIEW_H_INCLUDED_
#define _NGX_HTTP_VIBE_VIEW_H_INCLUDED_


#include "ngx_http_vibe.h"
#include "ngx_http_vibe_ask.h"
#include "ngx_http_vibe_gather.h"
#include "ngx_http_vibe_level.h"
#include "ngx_http_vibe_names.h"
#include "ngx_http_vibe_pointer.h"
#include "ngx_http_vibe_withdraw.h"


/* users' databases that a run works on at once */
#define NGX_HTTP_VIBE_VIEW_SLOTS    6

/* databases listed with one request */
#define NGX_HTTP_VIBE_VIEW_PAGE     200

/* changed databases remembered; with more a run looks at all */
#define NGX_HTTP_VIBE_VIEW_CHANGED  16384

/* databases in one run that looks at all */
#define NGX_HTTP_VIBE_VIEW_VISITED  1000000

/* sorts that a view has an index for */
#define NGX_HTTP_VIBE_VIEW_INDEXES  8

/* milliseconds: what builds an index may take longer than other requests */
#define NGX_HTTP_VIBE_VIEW_BUILD    600000

/* milliseconds between two looks whether all that was withdrawn is out */
#define NGX_HTTP_VIBE_VIEW_IDLE     20

#define NGX_HTTP_VIBE_VIEW_ERROR    160


typedef struct ngx_http_vibe_view_s  ngx_http_vibe_view_t;

typedef void (*ngx_http_vibe_view_pt)(ngx_http_vibe_view_t *v);


/* one user's database of a run */

typedef struct {
    ngx_http_vibe_view_t        *view;
    ngx_http_vibe_gather_t      *gather;       /* either */
    ngx_http_vibe_level_t       *level;        /* or, or neither */
} ngx_http_vibe_view_slot_t;


struct ngx_http_vibe_view_s {
    ngx_queue_t                  queue;        /* the owner's */
    ngx_http_vibe_main_conf_t   *vmcf;
    ngx_pool_t                  *pool;
    ngx_http_vibe_feed_t         feed;
    ngx_array_t                  indexes;      /* of ngx_array_t */

    /* in: called from the event loop */

    ngx_http_vibe_view_pt        catch_up;     /* ngx_http_vibe_view_caught()
                                                  when all changes are told */
    ngx_http_vibe_view_pt        ended;        /* the run */
    void                        *data;         /* the owner's own */

    /* out, of the last run */

    uint64_t                     began;        /* ms of the epoch */
    ngx_msec_t                   started;
    ngx_msec_t                   took;
    ngx_uint_t                   asked;        /* databases */
    ngx_uint_t                   changed;      /* rows */
    ngx_uint_t                   rows;
    u_char                       error[NGX_HTTP_VIBE_VIEW_ERROR];
    unsigned                     running:1;
    unsigned                     catching:1;   /* waits for changes */
    unsigned                     full_run:1;
    unsigned                     failed:1;
    unsigned                     published:1;
    unsigned                     lost:1;       /* the pointer is another one's:
                                                  to be loaded again */
    unsigned                     again:1;      /* another one should follow soon
                                                */

    /* this room's own: the two databases */

    ngx_uint_t                   current;      /* of feed.dbs */
    ngx_http_vibe_names_t        dirty[2];     /* databases changed */
    ngx_uint_t                   full[2];      /* all are to be looked at */
    ngx_uint_t                   prepared[2];
    ngx_uint_t                   designs[2];   /* documents of indexes, also
                                                  of those of old */
    ngx_uint_t                   made[2];      /* just now: it is empty */
    ngx_str_t                    rev;          /* the pointer's; ngx_alloc() */
    ngx_uint_t                   run;
    ngx_msec_t                   grace;        /* for readers to come, */
    ngx_msec_t                   told;         /* told to those of the current
                                                  one, at most, */
    ngx_msec_t                   promised;     /* and of the other one */
    ngx_msec_t                   flipped;
    ngx_http_vibe_withdraw_t     withdraw;
    unsigned                     exists:1;     /* there is a current one */

    /*
     * What a run that failed had sent may be written after the next ones have
     * read: these databases are looked at again in all runs until then, and in
     * one more; or all are, once.
     */

    ngx_http_vibe_names_t        doubted;
    ngx_msec_t                   until;
    unsigned                     doubtful:1;
    unsigned                     doubts:1;     /* since a run was named */

    /* the run */

    ngx_http_vibe_ask_t          ask;
    ngx_event_t                  event;
    ngx_connection_t             dumb;
    ngx_http_vibe_view_pt        next;         /* step */
    ngx_uint_t                   target;
    ngx_str_t                    seq;          /* ngx_alloc() */
    ngx_http_vibe_names_t        todo;
    ngx_http_vibe_names_t        visited;
    ngx_http_vibe_names_t        withdrawn;
    ngx_http_vibe_view_slot_t    slots[NGX_HTTP_VIBE_VIEW_SLOTS];
    ngx_uint_t                   busy;         /* slots */
    ngx_http_vibe_level_t       *level;
    ngx_http_vibe_rows_t         sweep;
    ngx_str_t                    last;         /* listed; ngx_alloc() */
    ngx_uint_t                   prefix;
    ngx_uint_t                   step;         /* database or index */
    ngx_uint_t                   tries;
    ngx_uint_t                   broken;       /* databases */
    unsigned                     working:1;    /* from step 3 on */
    unsigned                     full_level:1; /* levelling the target */
    unsigned                     even:1;       /* the other one is to be
                                                  levelled in the end */
    unsigned                     listed:1;     /* all of them */
    unsigned                     listing:1;
    unsigned                     empty:1;      /* the target was just made */
};


/* one of a feed, which is copied; it has looked at nothing.  NULL: no memory */
ngx_http_vibe_view_t *ngx_http_vibe_view_create(
    ngx_http_vibe_main_conf_t *vmcf, ngx_http_vibe_feed_t *feed);

/* ends it, and its run without a word */
void ngx_http_vibe_view_end(ngx_http_vibe_view_t *v);

/* what its pointer says; NULL: there is none.  Not while it runs */
void ngx_http_vibe_view_load(ngx_http_vibe_view_t *v,
    ngx_http_vibe_pointer_t *pointer);

/* how often it runs: decides how long a reader may take */
void ngx_http_vibe_view_interval(ngx_http_vibe_view_t *v, ngx_msec_t interval);

/* a public document of this database has changed, or what was one */
void ngx_http_vibe_view_changed(ngx_http_vibe_view_t *v, ngx_str_t *db);

/* the document of this global id is not public */
void ngx_http_vibe_view_withdraw(ngx_http_vibe_view_t *v, ngx_str_t *global);

/* nothing is known of what has changed: the next run looks at all */
void ngx_http_vibe_view_reset(ngx_http_vibe_view_t *v);

/* nor of what was withdrawn: a run that may have read before that is ended */
void ngx_http_vibe_view_missed(ngx_http_vibe_view_t *v);

/* begins a run, if none is under way */
void ngx_http_vibe_view_run(ngx_http_vibe_view_t *v);

/* all changes up to this sequence of "global" were told */
void ngx_http_vibe_view_caught(ngx_http_vibe_view_t *v, ngx_str_t *seq);


/* for the files of this room */

/* ends the run with an error: "call", what CouchDB answered, or "why" */
void ngx_http_vibe_view_failed(ngx_http_vibe_view_t *v,
    ngx_http_vibe_call_t *call, const char *why);

/* goes on with "next" in so many milliseconds */
void ngx_http_vibe_view_later(ngx_http_vibe_view_t *v, ngx_msec_t delay,
    ngx_http_vibe_view_pt next);

/* step 1, then "next" */
void ngx_http_vibe_view_prepare(ngx_http_vibe_view_t *v,
    ngx_http_vibe_view_pt next);

/* step 3, then "next" */
void ngx_http_vibe_view_gather(ngx_http_vibe_view_t *v,
    ngx_http_vibe_view_pt next);

/* step 4, then "next" */
void ngx_http_vibe_view_build(ngx_http_vibe_view_t *v,
    ngx_http_vibe_view_pt next);

/* ends what step 3 has under way; databases not gathered are changed again */
void ngx_http_vibe_view_gather_end(ngx_http_vibe_view_t *v);


#endif /* _NGX_HTTP_VIBE_VIEW_H_INCLUDED_ */
