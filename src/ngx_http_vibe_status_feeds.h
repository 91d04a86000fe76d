
/*
 * What is told of feeds and their registry, in the two formats of vibe_status.
 *
 * Texts that came from elsewhere, as errors, are made UTF-8 and escaped.
 *
 * Floor 2: takes no request, does no I/O.
 */


#ifndef _NGX_HTTP_VIBE_STATUS_FEEDS_H_INCLUDED_
#define _NGX_HTTP_VIBE_STATUS_FEEDS_H_INCLUDED_


#include <ngx_config.h>
#include <ngx_core.h>

#include "ngx_http_vibe_json.h"
#include "ngx_http_vibe_zone.h"


/* the members "registry" and "feeds" of the JSON */
void ngx_http_vibe_status_feeds_json(ngx_http_vibe_zone_t *zone,
    ngx_http_vibe_json_out_t *out);

/* one member of "feeds": the name and the object; cleans the feed's texts */
void ngx_http_vibe_status_feed_json(ngx_http_vibe_zone_feed_t *feed,
    ngx_http_vibe_json_out_t *out);

/* whole families of the text format; those of feeds only if there is one */
void ngx_http_vibe_status_feeds_prometheus(ngx_http_vibe_zone_t *zone,
    ngx_http_vibe_json_out_t *out);


#endif /* _NGX_HTTP_VIBE_STATUS_FEEDS_H_INCLUDED_ */
