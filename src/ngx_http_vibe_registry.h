
/*
 * The registry of feeds: global queries whose result a database of its own
 * holds, aggregated at an interval.
 *
 *   [ { "collectionName": "posts", "materializedViewName": "_global_posts",
 *       "aggregationInterval": "5m",
 *       "query": { "selector": { "type": "post" },
 *                  "fields": ["_id", "content", "createdAt"],
 *                  "sort": [{ "createdAt": "desc" }] } } ]
 *
 * Every member is checked: what CouchDB would refuse later is refused here,
 * with the line it stands in.
 *
 * Floor 2: decides, takes no request, does no I/O.
 */


#ifndef _NGX_HTTP_VIBE_REGISTRY_H_INCLUDED_
#define _NGX_HTTP_VIBE_REGISTRY_H_INCLUDED_


#include <ngx_config.h>
#include <ngx_core.h>

#include "ngx_http_vibe_json.h"


/* bytes of a file: so many feeds, each as long as the bounds let it be */
#define NGX_HTTP_VIBE_REGISTRY_MAX    (4 * 1024 * 1024)
#define NGX_HTTP_VIBE_FEEDS_MAX       100

/* bytes of "materializedViewName" */
#define NGX_HTTP_VIBE_FEED_NAME_MAX   64

/* hexadecimal digits that tell one definition from another */
#define NGX_HTTP_VIBE_FEED_HASH       16

/* milliseconds between two runs of a feed */
#define NGX_HTTP_VIBE_INTERVAL_MIN    100
#define NGX_HTTP_VIBE_INTERVAL_MAX    ((ngx_msec_t) 366 * 24 * 3600 * 1000)


typedef struct {
    ngx_str_t                    collection;
    ngx_str_t                    name;         /* "_global_posts" */
    ngx_str_t                    dbs[2];       /* "vibe_global_posts", and
                                                  with "-2": they take turns */
    ngx_msec_t                   interval;
    ngx_str_t                    selector;     /* JSON, an object */
    ngx_array_t                  fields;       /* of ngx_str_t; none: all */
    ngx_array_t                  sort;         /* of ngx_str_t; none: by id */
    ngx_uint_t                   descending;

    ngx_str_t                    hash;         /* of all that decides what a
                                                  row is: not the interval */

    /* of the document that it came from, or empty */

    ngx_str_t                    document;     /* its id */
    ngx_str_t                    rev;
    ngx_str_t                    source;       /* all of it, JSON */
} ngx_http_vibe_feed_t;


typedef struct {
    ngx_array_t                  feeds;        /* of ngx_http_vibe_feed_t */
    ngx_array_t                 *prefixes;     /* in: of ngx_str_t, which
                                                  names of users' databases
                                                  begin with */
    ngx_str_t                    reason;       /* out: what is wrong */
    ngx_uint_t                   line;         /* out: where, from 1 on */
} ngx_http_vibe_registry_t;


/*
 * Reads a whole registry, an array.  "prefixes" was set, the rest is zero.
 * All that it gives is from the pool, and does not point into the text.
 *
 * NGX_OK; NGX_DECLINED with "reason" and "line"; NGX_ERROR: no memory.
 */
ngx_int_t ngx_http_vibe_registry_parse(ngx_pool_t *pool, ngx_str_t *text,
    ngx_http_vibe_registry_t *registry);

/*
 * Adds one feed, an object scanned with NGX_HTTP_VIBE_JSON_ALL, which may have
 * the members "_id" and "_rev" where "document" is not NULL.  "feeds" was
 * made.  As above, without "line".
 */
ngx_int_t ngx_http_vibe_registry_add(ngx_pool_t *pool,
    ngx_http_vibe_json_t *object, ngx_str_t *document,
    ngx_http_vibe_registry_t *registry);

/* the feed of a collection, or NULL */
ngx_http_vibe_feed_t *ngx_http_vibe_registry_find(
    ngx_http_vibe_registry_t *registry, ngx_str_t *collection);

/*
 * 1 if a row of a feed with these fields, none: all, holds all that is below
 * the field "name".
 */
ngx_uint_t ngx_http_vibe_registry_holds(ngx_array_t *fields, ngx_str_t *name);


#endif /* _NGX_HTTP_VIBE_REGISTRY_H_INCLUDED_ */
