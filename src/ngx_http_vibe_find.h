
/*
 * What a query asks, read from its JSON, and the _find made of it.
 *
 * Floor 2: decides, takes no request, does no I/O.
 */


#ifndef _NGX_HTTP_VIBE_FIND_H_INCLUDED_
#define _NGX_HTTP_VIBE_FIND_H_INCLUDED_


#include <ngx_config.h>
#include <ngx_core.h>

#include "ngx_http_vibe_json.h"


#define NGX_HTTP_VIBE_LIMIT             25      /* without "limit" */
#define NGX_HTTP_VIBE_SKIP_MAX          10000
#define NGX_HTTP_VIBE_QUERY_MAX         65536   /* bytes of the whole query */
#define NGX_HTTP_VIBE_BOOKMARK_MAX      8192    /* bytes */
#define NGX_HTTP_VIBE_EXPAND_NAMES_MAX  20


typedef struct {
    ngx_http_vibe_json_t    *body;         /* the conditions are its members */
    ngx_http_vibe_json_t    *selector;     /* or NULL */
    ngx_http_vibe_json_t    *bookmark;     /* or NULL */
    ngx_array_t             *sort;         /* of ngx_str_t, none: empty */
    ngx_uint_t               descending;
    ngx_array_t             *fields;       /* of ngx_str_t, none: empty */
    ngx_array_t              expand;       /* of ngx_str_t */
    ngx_uint_t               limit;
    ngx_uint_t               skip;
    ngx_uint_t               global;       /* "global":true */
} ngx_http_vibe_find_t;


/*
 * Reads a query: of its members "selector", "limit", "skip", "sort",
 * "fields", "bookmark", "expand", "maxCacheAge", "global" and "use_index" are
 * what they are, every other one is a field condition.
 *
 * "find" is zeroed but for "global", which a member "global" replaces.  In
 * "global" a $regex is refused unless "regex" is set.
 *
 * NGX_OK; NGX_DECLINED with "reason" for the client; NGX_ERROR: no memory.
 */
ngx_int_t ngx_http_vibe_find_parse(ngx_pool_t *pool, ngx_str_t *text,
    ngx_uint_t regex, ngx_http_vibe_find_t *find, ngx_str_t *reason);

/* 1 if this member of a query is a field condition */
ngx_uint_t ngx_http_vibe_find_is_condition(ngx_http_vibe_json_t *member);

/*
 * Whether documents that were cut down to "fields" and "sort", arrays of
 * ngx_str_t, can answer the query as whole ones would: each field that it
 * names is "collection", one of them, or lies below one of them.  Without
 * "fields" they are whole.
 *
 * NGX_OK; NGX_DECLINED with "reason", which names the field, for the client;
 * NGX_ERROR: no memory.
 */
ngx_int_t ngx_http_vibe_find_held(ngx_pool_t *pool,
    ngx_http_vibe_find_t *find, ngx_array_t *fields, ngx_array_t *sort,
    ngx_str_t *reason);

/*
 * Writes the body of _find.  "did" is the reader's for "global", with the
 * read selector in front; NULL: a database that holds nothing else than the
 * caller may read.  "index" is the name to use, or empty.
 */
void ngx_http_vibe_find_put(ngx_http_vibe_json_out_t *out,
    ngx_http_vibe_find_t *find, ngx_str_t *collection, ngx_str_t *did,
    ngx_str_t *index);


#endif /* _NGX_HTTP_VIBE_FIND_H_INCLUDED_ */
