
/*
 * Follows a continuous feed of CouchDB's: reads it line by line, and begins
 * again, with back-off, when it ends.
 *
 * Floor 3: takes no ngx_http_request_t.
 */


#ifndef _NGX_HTTP_VIBE_FOLLOW_H_INCLUDED_
#define _NGX_HTTP_VIBE_FOLLOW_H_INCLUDED_


#include "ngx_http_vibe.h"


/* CouchDB sends an empty line after this time, milliseconds */
#define NGX_HTTP_VIBE_FOLLOW_BEAT     10000

/* without any byte for so long the feed counts as dead */
#define NGX_HTTP_VIBE_FOLLOW_DEAD     30000

#define NGX_HTTP_VIBE_FOLLOW_FIRST    200
#define NGX_HTTP_VIBE_FOLLOW_LAST     10000

/* bytes of "since", which is opaque */
#define NGX_HTTP_VIBE_FOLLOW_SEQ_MAX  4096


typedef struct ngx_http_vibe_follow_s  ngx_http_vibe_follow_t;


struct ngx_http_vibe_follow_s {
    /* in */

    const char                  *path;       /* "/_db_updates?" */
    const char                  *now;        /* "since" where none is known */
    void                        *data;       /* the caller's own */

    /* one change, or the like, an object whose members are scanned */
    void                       (*line)(ngx_http_vibe_follow_t *f,
                                       ngx_http_vibe_json_t *line);

    /* it begins from now: what was before it does not tell */
    void                       (*begun)(ngx_http_vibe_follow_t *f);

    /* it has ended, with CouchDB's status, and will begin again by itself */
    void                       (*ended)(ngx_http_vibe_follow_t *f,
                                        ngx_uint_t status);

    /* this room's own */

    ngx_http_vibe_zone_t        *zone;
    ngx_pool_t                  *pool;       /* of the request */
    ngx_pool_t                  *lines;      /* of a line */
    ngx_http_vibe_couch_t        couch;
    ngx_event_t                  event;
    ngx_connection_t             dumb;
    ngx_uint_t                   failures;
    ngx_msec_t                   began;
    size_t                       seq_len;
    u_char                       seq[NGX_HTTP_VIBE_FOLLOW_SEQ_MAX];
};


/* begins; what is "in" was set.  NGX_OK or NGX_ERROR: no memory */
ngx_int_t ngx_http_vibe_follow(ngx_http_vibe_follow_t *f,
    ngx_http_vibe_zone_t *zone);

/* where it goes on the next time it begins; NULL: from now */
void ngx_http_vibe_follow_since(ngx_http_vibe_follow_t *f, ngx_str_t *seq);

void ngx_http_vibe_follow_end(ngx_http_vibe_follow_t *f);


#endif /* _NGX_HTTP_VIBE_FOLLOW_H_INCLUDED_ */
