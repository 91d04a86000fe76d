
/*
 * A client's request that waits for what no subrequest of its own does: a
 * batch, or a database that is being made.
 *
 * Promises: who waits is woken at most once, and not at all if its request
 * has ended; a worker that quits stays while somebody waits.
 *
 * Floor 3.
 */


#ifndef _NGX_HTTP_VIBE_WAIT_H_INCLUDED_
#define _NGX_HTTP_VIBE_WAIT_H_INCLUDED_


#include "ngx_http_vibe.h"


/* how long a quitting worker stays for what it waits for, milliseconds */
#define NGX_HTTP_VIBE_WAIT_QUIT  120000


typedef struct ngx_http_vibe_wait_s  ngx_http_vibe_wait_t;


/*
 * Lets the client's request wait and sets *place, which becomes NULL when the
 * request ends or is woken; so it must stay until then.  NGX_AGAIN, or
 * NGX_ERROR: no memory.
 */
ngx_int_t ngx_http_vibe_wait(ngx_http_request_t *r,
    ngx_http_vibe_wait_t **place, ngx_http_vibe_next_pt next, void *data);

/*
 * Wakes who waits at this place, if somebody does: "next" is called as the
 * client's request, with "failed" as it is.  To be called from the event
 * loop, not as some request.
 */
void ngx_http_vibe_wake(ngx_http_vibe_wait_t **place,
    ngx_http_vibe_call_t *failed);


#endif /* _NGX_HTTP_VIBE_WAIT_H_INCLUDED_ */
