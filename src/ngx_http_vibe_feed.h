
/*
 * Feeds for those who read them: which database holds the result of a feed's
 * last run, by its pointer document.
 *
 * Promises: what a request is given stays as it is while the request lasts,
 * whatever is learned meanwhile; where no run can be read, the client is
 * answered here.
 *
 * Floor 4.
 */


#ifndef _NGX_HTTP_VIBE_FEED_H_INCLUDED_
#define _NGX_HTTP_VIBE_FEED_H_INCLUDED_


#include "ngx_http_vibe.h"
#include "ngx_http_vibe_pointer.h"


/* bytes of a pointer document; the module's own have some hundred */
#define NGX_HTTP_VIBE_FEED_POINTER_MAX  (256 * 1024)


typedef struct {
    ngx_http_vibe_pointer_t      pointer;
    ngx_msec_t                   asked;    /* ngx_current_msec before that */
} ngx_http_vibe_feed_now_t;


/* goes on, as an ngx_http_vibe_call_pt; "now" has a database */
typedef ngx_int_t (*ngx_http_vibe_feed_pt)(ngx_http_request_t *r, void *data,
    ngx_http_vibe_feed_now_t *now);


/*
 * What a read needs of a definition, which itself may be gone by then: the
 * collection, the name and the databases.  From the pool; NULL: no memory.
 */
ngx_http_vibe_feed_t *ngx_http_vibe_feed_dup(ngx_pool_t *pool,
    ngx_http_vibe_feed_t *feed);

/*
 * Gives the pointer of the feed, which must stay until then: one that was
 * asked for at most NGX_HTTP_VIBE_POINTER_VALID ago, which the worker's reads
 * share, or, with "fresh", a new one.  Where there is none, where no run has
 * ended, or where it is not understood, the client is answered 503 here.
 */
ngx_int_t ngx_http_vibe_feed_ask(ngx_http_request_t *r,
    ngx_http_vibe_feed_t *feed, ngx_uint_t fresh, ngx_http_vibe_feed_pt next,
    void *data);


#endif /* _NGX_HTTP_VIBE_FEED_H_INCLUDED_ */
