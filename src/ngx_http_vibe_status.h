
/*
 * A location with "vibe_status": the counters of the zone, for those who run
 * the platform.
 *
 *     GET                      a JSON object
 *     GET ?format=prometheus   the text format 0.0.4 of Prometheus
 *     GET ?ready               200, or 503 while "global" is not to be relied
 *                              on
 *
 * Nothing in it is of a single document or user.
 */


#ifndef _NGX_HTTP_VIBE_STATUS_H_INCLUDED_
#define _NGX_HTTP_VIBE_STATUS_H_INCLUDED_


#include "ngx_http_vibe.h"


/* the content handler; the configuration makes sure of a vibe_zone */
ngx_int_t ngx_http_vibe_status_handler(ngx_http_request_t *r);


#endif /* _NGX_HTTP_VIBE_STATUS_H_INCLUDED_ */
