
/*
 * A request to CouchDB that no client's request carries: libcurl's multi
 * interface on nginx's event loop, one in each worker.
 *
 * Knows addresses, credentials and HTTP, nothing of documents.  Nothing here
 * blocks: addresses are resolved with the configuration, and a request that
 * finds too many before it is refused.
 *
 * Promises: the handler of a request that was taken is called exactly once,
 * from the event loop, never from within ngx_http_vibe_couch_send(), unless
 * the request was cancelled; a request that a reused connection lost, or
 * that an address refused, is sent again, to another address if there is
 * one; an answer is bounded; the password is in no log.  When the worker
 * exits, everything is let go of.
 *
 * Floor 3: takes no ngx_http_request_t.
 */


#ifndef _NGX_HTTP_VIBE_COUCH_H_INCLUDED_
#define _NGX_HTTP_VIBE_COUCH_H_INCLUDED_


#include <ngx_config.h>
#include <ngx_core.h>
#include <ngx_event.h>


/* requests of a worker that CouchDB works on, and that wait for their turn */
#define NGX_HTTP_VIBE_COUCH_ACTIVE   64
#define NGX_HTTP_VIBE_COUCH_WAITING  4096

/* connections kept open while nothing is asked */
#define NGX_HTTP_VIBE_COUCH_KEPT     16

/*
 * How long an address is left out after it failed, milliseconds: doubled
 * with each failure from the first to the last, with jitter, while there is
 * another address
 */
#define NGX_HTTP_VIBE_COUCH_BACKOFF      200
#define NGX_HTTP_VIBE_COUCH_BACKOFF_MAX  10000

/* bytes of one line of a continuous feed */
#define NGX_HTTP_VIBE_COUCH_LINE_MAX     (1024 * 1024)


/* where CouchDB is; filled in by the configuration */

typedef struct {
    ngx_str_t                    url;           /* "http://couchdb" */
    ngx_str_t                    authorization; /* "Basic ...", or empty */
    ngx_array_t                 *addrs;         /* of ngx_addr_t */
    ngx_str_t                    trusted;       /* file of CAs, or empty:
                                                   those of the system */
    ngx_msec_t                   connect_timeout;
    ngx_msec_t                   timeout;       /* for a whole answer */
    size_t                       max_response;
} ngx_http_vibe_couch_conf_t;


typedef struct ngx_http_vibe_couch_s  ngx_http_vibe_couch_t;

typedef void (*ngx_http_vibe_couch_pt)(ngx_http_vibe_couch_t *req);

/*
 * A line of a continuous feed, without its end, never empty, there only for
 * the call.  May cancel the request; anything but NGX_OK ends it as an answer
 * that was cut off.  Only a 200 has lines: another answer is kept.
 */
typedef ngx_int_t (*ngx_http_vibe_couch_line_pt)(ngx_http_vibe_couch_t *req,
    ngx_str_t *line);


struct ngx_http_vibe_couch_s {
    /* in */

    ngx_pool_t                  *pool;      /* of the caller: outlives this */
    ngx_uint_t                   method;    /* NGX_HTTP_GET, _PUT, _POST */
    ngx_str_t                    path;      /* escaped, from the "/" on */
    ngx_chain_t                 *body;      /* JSON in memory, or NULL */
    ngx_msec_t                   timeout;   /* 0: the configured one; counts
                                               from the sending on, with
                                               "line" between two bytes */
    ngx_http_vibe_couch_pt       handler;
    ngx_http_vibe_couch_line_pt  line;      /* NULL: the answer is kept */
    void                        *data;      /* the caller's own */
    unsigned                     waited:1;  /* a client waits for it: a worker
                                               that quits finishes it first */

    /*
     * out: CouchDB's status; where it gave no whole answer 502, 503 (could
     * not be reached) or 504 (took too long), and "answer" is empty, as
     * where it was larger than max_response ("too_large").  A feed whose
     * lines were given away ends with 502 or 504, or with 200 if CouchDB
     * ended it.
     */

    ngx_uint_t                   status;
    ngx_str_t                    answer;    /* from the pool */
    unsigned                     too_large:1;

    void                        *transfer;  /* this room's own */
};


/*
 * Makes the worker's client, for init_process; "conf" must stay.  NGX_OK or
 * NGX_ERROR (logged).
 */
ngx_int_t ngx_http_vibe_couch_init(ngx_cycle_t *cycle,
    ngx_http_vibe_couch_conf_t *conf);

/*
 * Ends all requests without calling their handlers and closes every
 * connection, for exit_process.  May be called where init was not.
 */
void ngx_http_vibe_couch_exit(void);

/*
 * Sends a request, or keeps it until its turn has come.  NGX_OK: the handler
 * will be called.  NGX_BUSY: too many wait.  NGX_ERROR: no memory.
 */
ngx_int_t ngx_http_vibe_couch_send(ngx_http_vibe_couch_t *req);

/* forgets a request whose handler was not called yet: it will not be */
void ngx_http_vibe_couch_cancel(ngx_http_vibe_couch_t *req);

/*
 * How long to wait before what has failed "failures" times (from 1 on) is
 * tried again, milliseconds: doubles from "first" to "last", and a random
 * quarter of it more or less.
 */
ngx_msec_t ngx_http_vibe_couch_backoff(ngx_uint_t failures, ngx_msec_t first,
    ngx_msec_t last);


#endif /* _NGX_HTTP_VIBE_COUCH_H_INCLUDED_ */
