
/*
 * Takes rows out of a feed's databases at once, as their documents are public
 * no longer.
 *
 * First out of the database that is not current, then out of the one that
 * is: no run can bring back what is gone already.
 *
 * Floor 4.
 */


#ifndef _NGX_HTTP_VIBE_WITHDRAW_H_INCLUDED_
#define _NGX_HTTP_VIBE_WITHDRAW_H_INCLUDED_


#include "ngx_http_vibe.h"
#include "ngx_http_vibe_ask.h"
#include "ngx_http_vibe_bulk.h"
#include "ngx_http_vibe_names.h"


/* ids that wait, and that are taken out with one request */
#define NGX_HTTP_VIBE_WITHDRAW_MAX    16384
#define NGX_HTTP_VIBE_WITHDRAW_PAGE   200

/* milliseconds before what has failed is tried again, first and last */
#define NGX_HTTP_VIBE_WITHDRAW_FIRST  100
#define NGX_HTTP_VIBE_WITHDRAW_LAST   2000

/* failures, one after another, after which nobody waits for it */
#define NGX_HTTP_VIBE_WITHDRAW_TRIES  5


typedef struct {
    ngx_str_t                   *dbs;          /* two */
    ngx_uint_t                   current;      /* of them */

    /* this room's own */

    ngx_http_vibe_ask_t          ask;
    ngx_http_vibe_names_t        waiting;
    ngx_http_vibe_names_t        taken;        /* out of them, now */
    ngx_event_t                  event;
    ngx_connection_t             dumb;
    ngx_pool_t                  *pool;         /* of "bulk" */
    ngx_http_vibe_bulk_t        *bulk;
    ngx_uint_t                   first;        /* the database begun with */
    ngx_uint_t                   second;       /* 1: at the other one */
    ngx_uint_t                   failures;     /* out: one after another */
    unsigned                     busy:1;
    unsigned                     failed:1;     /* at the first one */
} ngx_http_vibe_withdraw_t;


/* prepares; "dbs" was set and must stay.  NGX_OK or NGX_ERROR: no memory */
ngx_int_t ngx_http_vibe_withdraw_init(ngx_http_vibe_withdraw_t *w,
    ngx_http_vibe_zone_t *zone);
void ngx_http_vibe_withdraw_end(ngx_http_vibe_withdraw_t *w);

/*
 * Takes out the row with this id, if it is there, soon and without fail.
 * NGX_OK; NGX_DECLINED: too many wait; NGX_ERROR: no memory.
 */
ngx_int_t ngx_http_vibe_withdraw(ngx_http_vibe_withdraw_t *w, ngx_str_t *id);

/* 1 if nothing waits, and nothing is under way */
#define ngx_http_vibe_withdraw_idle(w)                                        \
    ((w)->waiting.n == 0 && (w)->taken.n == 0)


#endif /* _NGX_HTTP_VIBE_WITHDRAW_H_INCLUDED_ */
