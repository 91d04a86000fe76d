
/*
 * Reads the changes of "global" when told that there are some, or when a
 * longpoll tells.
 *
 * Not a continuous feed: CouchDB would be busy with it at each write.  What
 * comes while it does not ask is one request then.
 *
 * Floor 4.
 */


#ifndef _NGX_HTTP_VIBE_POLL_H_INCLUDED_
#define _NGX_HTTP_VIBE_POLL_H_INCLUDED_


#include "ngx_http_vibe.h"
#include "ngx_http_vibe_ask.h"


/* changes read with one request, also with documents */
#define NGX_HTTP_VIBE_POLL_PAGE   500
#define NGX_HTTP_VIBE_POLL_DOCS   100

/* milliseconds from a change to its reading, */
#define NGX_HTTP_VIBE_POLL_DELAY  1000

/* between two longpolls, and until one without changes ends, */
#define NGX_HTTP_VIBE_POLL_PAUSE  200
#define NGX_HTTP_VIBE_POLL_WAIT   25000

/* between two readings at most, as what tells is only a hint, */
#define NGX_HTTP_VIBE_POLL_IDLE   15000

/* and before what has failed is tried again, first and last */
#define NGX_HTTP_VIBE_POLL_FIRST  500
#define NGX_HTTP_VIBE_POLL_LAST   5000


typedef struct ngx_http_vibe_poll_s  ngx_http_vibe_poll_t;


struct ngx_http_vibe_poll_s {
    /* in */

    unsigned                     docs:1;     /* with each change its document */
    unsigned                     wait:1;     /* by longpoll */

    /* one change, with all of its leaves, or with the document */
    void                       (*change)(ngx_http_vibe_json_t *change);

    /* it begins from now: what was before it does not tell */
    void                       (*begun)(void);

    /* "global" is not there, or not the same */
    void                       (*gone)(void);

    /* or NULL: what ngx_http_vibe_poll_now() wanted was read */
    void                       (*caught)(void);

    ngx_str_t                    seq;        /* so far; empty: not begun */

    /* this room's own */

    ngx_http_vibe_ask_t          ask;
    ngx_msec_t                   next;       /* when it is read again */
    ngx_uint_t                   page;
    ngx_uint_t                   failures;
    unsigned                     busy:1;
    unsigned                     catching:1; /* up with what there is now */
    unsigned                     bare:1;     /* a document is too large */
};


/* prepares; what is "in" was set.  NGX_OK or NGX_ERROR: no memory */
ngx_int_t ngx_http_vibe_poll_init(ngx_http_vibe_poll_t *p,
    ngx_http_vibe_zone_t *zone);
void ngx_http_vibe_poll_end(ngx_http_vibe_poll_t *p);

/* there are changes */
void ngx_http_vibe_poll_due(ngx_http_vibe_poll_t *p);

/* where it goes on, for one that was just prepared */
void ngx_http_vibe_poll_since(ngx_http_vibe_poll_t *p, ngx_str_t *seq);

/* reads all changes that there are by now, at once, and calls "caught" */
void ngx_http_vibe_poll_now(ngx_http_vibe_poll_t *p);

/* reads what is due; to be called every now and then */
void ngx_http_vibe_poll_step(ngx_http_vibe_poll_t *p);


#endif /* _NGX_HTTP_VIBE_POLL_H_INCLUDED_ */
