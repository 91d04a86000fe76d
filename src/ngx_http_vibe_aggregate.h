
/*
 * A location with "vibe_aggregate": runs feeds by hand, for those who run the
 * platform.
 *
 *     POST                      all that are registered
 *     POST ?feed=_global_posts  one of them
 *
 * The answer is sent when runs that began after the request have ended, well
 * or not.  The worker that leads runs them; this one asks for it in the zone,
 * and looks there until it is done.
 *
 * Promises: a client that leaves is not waited for any more, though what it
 * asked for is done; a worker that quits says so instead of staying.
 */


#ifndef _NGX_HTTP_VIBE_AGGREGATE_H_INCLUDED_
#define _NGX_HTTP_VIBE_AGGREGATE_H_INCLUDED_


#include "ngx_http_vibe.h"


/* how often the zone is looked at, milliseconds */
#define NGX_HTTP_VIBE_AGGREGATE_LOOK  50

/* how long at most: then 504 */
#define NGX_HTTP_VIBE_AGGREGATE_MAX   600000

/* how long there may be nobody who could do it: then 503 */
#define NGX_HTTP_VIBE_AGGREGATE_LEAD  5000


/* the content handler; the configuration makes sure of a vibe_zone */
ngx_int_t ngx_http_vibe_aggregate_handler(ngx_http_request_t *r);


#endif /* _NGX_HTTP_VIBE_AGGREGATE_H_INCLUDED_ */
