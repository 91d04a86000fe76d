
/*
 * Reads the changes of "global" when told that there are some.
 *
 * Not a continuous feed: CouchDB would be busy with it at each write, and most
 * of what it tells of is known anyway.  _db_updates names "global" in its
 * batches; a second's changes are then one request.
 *
 * Floor 4.
 */


#ifndef _NGX_HTTP_VIBE_POLL_H_INCLUDED_
#define _NGX_HTTP_VIBE_POLL_H_INCLUDED_


#include "ngx_http_vibe.h"
#include "ngx_http_vibe_ask.h"


/* changes read with one request */
#define NGX_HTTP_VIBE_POLL_PAGE   500

/* milliseconds from a change to its reading, */
#define NGX_HTTP_VIBE_POLL_DELAY  1000

/* between two readings at most, as what tells is only a hint, */
#define NGX_HTTP_VIBE_POLL_IDLE   15000

/* and before what has failed is tried again, first and last */
#define NGX_HTTP_VIBE_POLL_FIRST  500
#define NGX_HTTP_VIBE_POLL_LAST   5000


typedef struct ngx_http_vibe_poll_s  ngx_http_vibe_poll_t;


struct ngx_http_vibe_poll_s {
    /* in */

    /* one change, with all of its leaves */
    void                       (*change)(ngx_http_vibe_json_t *change);

    /* it begins from now: what was before it does not tell */
    void                       (*begun)(void);

    /* "global" is not there, or not the same */
    void                       (*gone)(void);

    /* this room's own */

    ngx_http_vibe_ask_t          ask;
    ngx_str_t                    seq;        /* ngx_alloc(); empty: now */
    ngx_msec_t                   next;       /* when it is read again */
    ngx_uint_t                   failures;
    unsigned                     busy:1;
};


/* prepares; what is "in" was set.  NGX_OK or NGX_ERROR: no memory */
ngx_int_t ngx_http_vibe_poll_init(ngx_http_vibe_poll_t *p,
    ngx_http_vibe_zone_t *zone);
void ngx_http_vibe_poll_end(ngx_http_vibe_poll_t *p);

/* there are changes */
void ngx_http_vibe_poll_due(ngx_http_vibe_poll_t *p);

/* reads what is due; to be called every now and then */
void ngx_http_vibe_poll_step(ngx_http_vibe_poll_t *p);


#endif /* _NGX_HTTP_VIBE_POLL_H_INCLUDED_ */
