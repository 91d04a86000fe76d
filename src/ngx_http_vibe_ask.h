
/*
 * Requests to CouchDB that are no client's, one after another: what the work in
 * the background asks.
 *
 * Promises: the handler is called from the event loop, never from within
 * ngx_http_vibe_ask(), and also where nothing could be sent: as a 503.
 *
 * Floor 3: takes no ngx_http_request_t.
 */


#ifndef _NGX_HTTP_VIBE_ASK_H_INCLUDED_
#define _NGX_HTTP_VIBE_ASK_H_INCLUDED_


#include "ngx_http_vibe.h"


typedef struct ngx_http_vibe_ask_s  ngx_http_vibe_ask_t;

typedef void (*ngx_http_vibe_ask_pt)(ngx_http_vibe_ask_t *ask,
    ngx_http_vibe_call_t *call);


struct ngx_http_vibe_ask_s {
    ngx_pool_t                  *pool;      /* of the last answer */
    ngx_http_vibe_zone_t        *zone;
    void                        *data;      /* the caller's own */
    ngx_msec_t                   timeout;   /* 0: vibe_timeout */
    unsigned                     waited:1;  /* by a client, after all */

    /* this room's own */

    ngx_http_vibe_ask_pt         handler;
    ngx_http_vibe_couch_t        couch;
    ngx_event_t                  event;     /* nothing could be sent */
    unsigned                     asked:1;
};


/* prepares, with an empty pool; NGX_OK or NGX_ERROR: no memory */
ngx_int_t ngx_http_vibe_ask_init(ngx_http_vibe_ask_t *ask,
    ngx_http_vibe_zone_t *zone, void *data);

/*
 * Asks: "method" for "/<db><suffix>" with the JSON text "body" or NULL.  The
 * pool and what is in it last until the next answer: what the arguments point
 * to may be in it.
 */
void ngx_http_vibe_ask(ngx_http_vibe_ask_t *ask, ngx_uint_t method,
    ngx_str_t *db, const char *suffix, ngx_http_vibe_json_out_t *body,
    ngx_http_vibe_ask_pt handler);

/* a GET; in "suffix" the argument, escaped, takes the place of "%V" */
void ngx_http_vibe_ask_arg(ngx_http_vibe_ask_t *ask, ngx_str_t *db,
    const char *suffix, ngx_str_t *arg, ngx_http_vibe_ask_pt handler);

/*
 * A string as the value of an argument that is JSON, as startkey: quoted and
 * escaped.  From the pool; NGX_OK or NGX_ERROR.
 */
ngx_int_t ngx_http_vibe_ask_key(ngx_pool_t *pool, ngx_str_t *str,
    ngx_str_t *key);

/* ends it: a handler that was to be called will not be, the pool goes */
void ngx_http_vibe_ask_end(ngx_http_vibe_ask_t *ask);

/* the member "name" of an answer that must be a JSON object, else NULL */
ngx_http_vibe_json_t *ngx_http_vibe_ask_member(ngx_http_vibe_ask_t *ask,
    ngx_http_vibe_call_t *call, const char *name);


#endif /* _NGX_HTTP_VIBE_ASK_H_INCLUDED_ */
