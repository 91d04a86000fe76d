
/*
 * The background work of registered feeds: who leads brings the view of each
 * up to date at its interval, and takes out at once what is public no longer.
 *
 * It reads the changes of "global", by longpoll, with the documents: a copy
 * tells which user's database has changed, and a tombstone, or a copy that is
 * not public, what to take out.
 *
 * Promises: never two runs of one view at a time; one that fails is tried
 * again sooner, with back-off; a feed that fails keeps no other waiting.
 *
 * Floor 5.
 */


#ifndef _NGX_HTTP_VIBE_VIEWS_H_INCLUDED_
#define _NGX_HTTP_VIBE_VIEWS_H_INCLUDED_


#include "ngx_http_vibe.h"


/* runs at once */
#define NGX_HTTP_VIBE_VIEWS_RUNS   4

/* milliseconds between two looks at what is due, at most */
#define NGX_HTTP_VIBE_VIEWS_TICK   100

/* and before a run that failed is tried again, first and last */
#define NGX_HTTP_VIBE_VIEWS_FIRST  500
#define NGX_HTTP_VIBE_VIEWS_LAST   60000

/* failures to read the changes after which a run does not wait for them */
#define NGX_HTTP_VIBE_VIEWS_TRIES  5


/* for init_process, after ngx_http_vibe_lease_init() */
void ngx_http_vibe_views_init(ngx_http_vibe_main_conf_t *vmcf);


#endif /* _NGX_HTTP_VIBE_VIEWS_H_INCLUDED_ */
