
/*
 * ngx_http_vibe_couch_test_module: lets a test use the client for CouchDB
 * alone.  couch_test_url, couch_test_address and others fill its
 * configuration; a location is made one of the test's by
 *
 *   couch_test send;     sends the requests that the arguments ask for, and
 *                        answers with what came back when all have
 *   couch_test stats;    what was counted in this worker
 *   couch_test exit;     ends the client, twice, and makes a new one
 *   couch_test backoff;  one back-off, of failures=N&first=N&last=N
 *
 * The arguments of "send":
 *
 *   path=/x         what is asked for
 *   method=PUT      or POST, with the client's body, or
 *   size=N          one of N bytes, in pieces
 *   n=N             so many at once
 *   waited=1
 *   timeout=MS
 *   feed=1          with a "line" callback
 *   echo=1          what was answered, not only its length and MD5
 *   detach=1        answer now; what comes back is only counted
 *   cancel=MS       all, after that time; now=1: at once
 *   cancel_line=N   of a feed: itself, from its Nth line
 *   cancel_rest=1   all others, from a handler or from a line
 *   stop_line=N     of a feed: the Nth line is answered with an error
 *   again=N         each handler sends its request again, N times
 *   spawn=N         of a feed: each line sends a request for /spawned, up to
 *                   N; then they are others of the feed
 */


#include <ngx_config.h>
#include <ngx_core.h>
#include <ngx_http.h>
#include <ngx_md5.h>

#include "ngx_http_vibe_couch.h"


#define NGX_HTTP_VIBE_COUCH_TEST_PIECE  1000


typedef struct {
    ngx_http_vibe_couch_conf_t      couch;
} ngx_http_vibe_couch_test_conf_t;


typedef struct ngx_http_vibe_couch_test_s  ngx_http_vibe_couch_test_t;


/* one request, and what is left of it when its pool is gone */

typedef struct {
    ngx_http_vibe_couch_test_t     *test;
    ngx_http_vibe_couch_t          *req;      /* NULL: not under way */
    ngx_str_t                       path;
    ngx_uint_t                      feed;
    ngx_uint_t                      again;
    ngx_uint_t                      calls;
    ngx_uint_t                      lines;
    ngx_uint_t                      status;
    ngx_uint_t                      too_large;
    ngx_md5_t                       md5;
    size_t                          len;
    u_char                          text[4096];
} ngx_http_vibe_couch_test_item_t;


struct ngx_http_vibe_couch_test_s {
    ngx_http_request_t             *request;  /* NULL: answered already */
    ngx_pool_t                     *pool;
    ngx_event_t                     timer;

    ngx_str_t                       path;
    ngx_str_t                       body;
    ngx_uint_t                      method;

    ngx_uint_t                      n;
    ngx_uint_t                      waited;
    ngx_uint_t                      timeout;
    ngx_uint_t                      size;
    ngx_uint_t                      feed;
    ngx_uint_t                      echo;
    ngx_uint_t                      detach;
    ngx_uint_t                      cancel;
    ngx_uint_t                      now;
    ngx_uint_t                      cancel_line;
    ngx_uint_t                      cancel_rest;
    ngx_uint_t                      stop_line;
    ngx_uint_t                      again;
    ngx_uint_t                      spawn;

    ngx_http_vibe_couch_test_item_t  *items;
    ngx_uint_t                      left;     /* under way, and one */
    ngx_uint_t                      busy;
    ngx_uint_t                      errors;
};


typedef struct {
    ngx_str_t                       name;
    size_t                          offset;
} ngx_http_vibe_couch_test_arg_t;


static ngx_int_t ngx_http_vibe_couch_test_send_handler(ngx_http_request_t *r);
static void ngx_http_vibe_couch_test_start(ngx_http_request_t *r);
static ngx_http_vibe_couch_test_t *ngx_http_vibe_couch_test_create(
    ngx_http_request_t *r);
static ngx_int_t ngx_http_vibe_couch_test_args(ngx_http_request_t *r,
    ngx_http_vibe_couch_test_t *test);
static ngx_int_t ngx_http_vibe_couch_test_body(ngx_http_request_t *r,
    ngx_http_vibe_couch_test_t *test);
static ngx_chain_t *ngx_http_vibe_couch_test_pieces(ngx_pool_t *pool,
    ngx_str_t *text);
static void ngx_http_vibe_couch_test_send(
    ngx_http_vibe_couch_test_item_t *item);
static ngx_int_t ngx_http_vibe_couch_test_line(ngx_http_vibe_couch_t *req,
    ngx_str_t *line);
static void ngx_http_vibe_couch_test_got(ngx_http_vibe_couch_t *req);
static void ngx_http_vibe_couch_test_note(
    ngx_http_vibe_couch_test_item_t *item, ngx_str_t *text);
static void ngx_http_vibe_couch_test_cancel(
    ngx_http_vibe_couch_test_item_t *item);
static void ngx_http_vibe_couch_test_cancel_all(
    ngx_http_vibe_couch_test_t *test, ngx_http_vibe_couch_test_item_t *but);
static void ngx_http_vibe_couch_test_timer(ngx_event_t *ev);
static void ngx_http_vibe_couch_test_ended(ngx_http_vibe_couch_test_t *test);
static ngx_buf_t *ngx_http_vibe_couch_test_report(
    ngx_http_vibe_couch_test_t *test, ngx_pool_t *pool);
static ngx_int_t ngx_http_vibe_couch_test_answer(ngx_http_request_t *r,
    ngx_buf_t *b);
static ngx_int_t ngx_http_vibe_couch_test_stats_handler(ngx_http_request_t *r);
static ngx_int_t ngx_http_vibe_couch_test_exit_handler(ngx_http_request_t *r);
static ngx_int_t ngx_http_vibe_couch_test_backoff_handler(
    ngx_http_request_t *r);

static char *ngx_http_vibe_couch_test_address(ngx_conf_t *cf,
    ngx_command_t *cmd, void *conf);
static char *ngx_http_vibe_couch_test(ngx_conf_t *cf, ngx_command_t *cmd,
    void *conf);
static void *ngx_http_vibe_couch_test_create_conf(ngx_conf_t *cf);
static char *ngx_http_vibe_couch_test_init_conf(ngx_conf_t *cf, void *conf);
static ngx_int_t ngx_http_vibe_couch_test_init_process(ngx_cycle_t *cycle);
static void ngx_http_vibe_couch_test_exit_process(ngx_cycle_t *cycle);


static struct {
    ngx_uint_t  sent;
    ngx_uint_t  called;
    ngx_uint_t  cancelled;
    ngx_uint_t  wrong;
} ngx_http_vibe_couch_test_counts;


static ngx_http_vibe_couch_test_arg_t  ngx_http_vibe_couch_test_numbers[] = {
    { ngx_string("n"), offsetof(ngx_http_vibe_couch_test_t, n) },
    { ngx_string("waited"), offsetof(ngx_http_vibe_couch_test_t, waited) },
    { ngx_string("timeout"), offsetof(ngx_http_vibe_couch_test_t, timeout) },
    { ngx_string("size"), offsetof(ngx_http_vibe_couch_test_t, size) },
    { ngx_string("feed"), offsetof(ngx_http_vibe_couch_test_t, feed) },
    { ngx_string("echo"), offsetof(ngx_http_vibe_couch_test_t, echo) },
    { ngx_string("detach"), offsetof(ngx_http_vibe_couch_test_t, detach) },
    { ngx_string("cancel"), offsetof(ngx_http_vibe_couch_test_t, cancel) },
    { ngx_string("now"), offsetof(ngx_http_vibe_couch_test_t, now) },
    { ngx_string("cancel_line"),
      offsetof(ngx_http_vibe_couch_test_t, cancel_line) },
    { ngx_string("cancel_rest"),
      offsetof(ngx_http_vibe_couch_test_t, cancel_rest) },
    { ngx_string("stop_line"),
      offsetof(ngx_http_vibe_couch_test_t, stop_line) },
    { ngx_string("again"), offsetof(ngx_http_vibe_couch_test_t, again) },
    { ngx_string("spawn"), offsetof(ngx_http_vibe_couch_test_t, spawn) },
    { ngx_null_string, 0 }
};


static ngx_command_t  ngx_http_vibe_couch_test_commands[] = {

    { ngx_string("couch_test_url"),
      NGX_HTTP_MAIN_CONF|NGX_CONF_TAKE1,
      ngx_conf_set_str_slot,
      NGX_HTTP_MAIN_CONF_OFFSET,
      offsetof(ngx_http_vibe_couch_test_conf_t, couch.url),
      NULL },

    { ngx_string("couch_test_address"),
      NGX_HTTP_MAIN_CONF|NGX_CONF_TAKE1,
      ngx_http_vibe_couch_test_address,
      NGX_HTTP_MAIN_CONF_OFFSET,
      0,
      NULL },

    { ngx_string("couch_test_authorization"),
      NGX_HTTP_MAIN_CONF|NGX_CONF_TAKE1,
      ngx_conf_set_str_slot,
      NGX_HTTP_MAIN_CONF_OFFSET,
      offsetof(ngx_http_vibe_couch_test_conf_t, couch.authorization),
      NULL },

    { ngx_string("couch_test_trusted"),
      NGX_HTTP_MAIN_CONF|NGX_CONF_TAKE1,
      ngx_conf_set_str_slot,
      NGX_HTTP_MAIN_CONF_OFFSET,
      offsetof(ngx_http_vibe_couch_test_conf_t, couch.trusted),
      NULL },

    { ngx_string("couch_test_connect_timeout"),
      NGX_HTTP_MAIN_CONF|NGX_CONF_TAKE1,
      ngx_conf_set_msec_slot,
      NGX_HTTP_MAIN_CONF_OFFSET,
      offsetof(ngx_http_vibe_couch_test_conf_t, couch.connect_timeout),
      NULL },

    { ngx_string("couch_test_timeout"),
      NGX_HTTP_MAIN_CONF|NGX_CONF_TAKE1,
      ngx_conf_set_msec_slot,
      NGX_HTTP_MAIN_CONF_OFFSET,
      offsetof(ngx_http_vibe_couch_test_conf_t, couch.timeout),
      NULL },

    { ngx_string("couch_test_max_response"),
      NGX_HTTP_MAIN_CONF|NGX_CONF_TAKE1,
      ngx_conf_set_size_slot,
      NGX_HTTP_MAIN_CONF_OFFSET,
      offsetof(ngx_http_vibe_couch_test_conf_t, couch.max_response),
      NULL },

    { ngx_string("couch_test"),
      NGX_HTTP_LOC_CONF|NGX_CONF_TAKE1,
      ngx_http_vibe_couch_test,
      0,
      0,
      NULL },

      ngx_null_command
};


static ngx_http_module_t  ngx_http_vibe_couch_test_module_ctx = {
    NULL,                                  /* preconfiguration */
    NULL,                                  /* postconfiguration */

    ngx_http_vibe_couch_test_create_conf,  /* create main configuration */
    ngx_http_vibe_couch_test_init_conf,    /* init main configuration */

    NULL,                                  /* create server configuration */
    NULL,                                  /* merge server configuration */

    NULL,                                  /* create location configuration */
    NULL                                   /* merge location configuration */
};


ngx_module_t  ngx_http_vibe_couch_test_module = {
    NGX_MODULE_V1,
    &ngx_http_vibe_couch_test_module_ctx,  /* module context */
    ngx_http_vibe_couch_test_commands,     /* module directives */
    NGX_HTTP_MODULE,                       /* module type */
    NULL,                                  /* init master */
    NULL,                                  /* init module */
    ngx_http_vibe_couch_test_init_process, /* init process */
    NULL,                                  /* init thread */
    NULL,                                  /* exit thread */
    ngx_http_vibe_couch_test_exit_process, /* exit process */
    NULL,                                  /* exit master */
    NGX_MODULE_V1_PADDING
};


static ngx_int_t
ngx_http_vibe_couch_test_send_handler(ngx_http_request_t *r)
{
    ngx_int_t  rc;

    rc = ngx_http_read_client_request_body(r, ngx_http_vibe_couch_test_start);

    if (rc >= NGX_HTTP_SPECIAL_RESPONSE) {
        return rc;
    }

    return NGX_DONE;
}


static void
ngx_http_vibe_couch_test_start(ngx_http_request_t *r)
{
    ngx_uint_t                   i;
    ngx_http_vibe_couch_test_t  *test;

    test = ngx_http_vibe_couch_test_create(r);
    if (test == NULL) {
        ngx_http_finalize_request(r, NGX_HTTP_INTERNAL_SERVER_ERROR);
        return;
    }

    r->read_event_handler = ngx_http_block_reading;

    for (i = 0; i < test->n; i++) {
        test->items[i].test = test;
        test->items[i].path = test->path;
        test->items[i].feed = test->feed;
        test->items[i].again = test->again;

        ngx_http_vibe_couch_test_send(&test->items[i]);
    }

    if (test->now) {
        ngx_http_vibe_couch_test_cancel_all(test, NULL);

    } else if (test->cancel) {
        ngx_add_timer(&test->timer, test->cancel);
    }

    if (test->detach) {
        test->request = NULL;
        ngx_http_finalize_request(r, ngx_http_vibe_couch_test_answer(r, NULL));
    }

    ngx_http_vibe_couch_test_ended(test);
}


static ngx_http_vibe_couch_test_t *
ngx_http_vibe_couch_test_create(ngx_http_request_t *r)
{
    ngx_pool_t                  *pool;
    ngx_http_vibe_couch_test_t  *test;

    pool = ngx_create_pool(4096, ngx_cycle->log);
    if (pool == NULL) {
        return NULL;
    }

    test = ngx_pcalloc(pool, sizeof(ngx_http_vibe_couch_test_t));
    if (test == NULL) {
        ngx_destroy_pool(pool);
        return NULL;
    }

    test->pool = pool;
    test->request = r;
    test->left = 1;
    test->n = 1;

    test->timer.handler = ngx_http_vibe_couch_test_timer;
    test->timer.data = test;
    test->timer.log = ngx_cycle->log;

    if (ngx_http_vibe_couch_test_args(r, test) != NGX_OK
        || ngx_http_vibe_couch_test_body(r, test) != NGX_OK)
    {
        ngx_destroy_pool(pool);
        return NULL;
    }

    test->items = ngx_pcalloc(pool, (test->n + test->spawn)
                                  * sizeof(ngx_http_vibe_couch_test_item_t));
    if (test->items == NULL) {
        ngx_destroy_pool(pool);
        return NULL;
    }

    return test;
}


static ngx_int_t
ngx_http_vibe_couch_test_args(ngx_http_request_t *r,
    ngx_http_vibe_couch_test_t *test)
{
    ngx_int_t                        n;
    ngx_str_t                        value;
    ngx_http_vibe_couch_test_arg_t  *arg;

    for (arg = ngx_http_vibe_couch_test_numbers; arg->name.len; arg++) {

        if (ngx_http_arg(r, arg->name.data, arg->name.len, &value) != NGX_OK) {
            continue;
        }

        n = ngx_atoi(value.data, value.len);
        if (n == NGX_ERROR) {
            return NGX_ERROR;
        }

        *(ngx_uint_t *) ((u_char *) test + arg->offset) = (ngx_uint_t) n;
    }

    test->method = NGX_HTTP_GET;

    if (ngx_http_arg(r, (u_char *) "method", 6, &value) == NGX_OK) {
        test->method = (value.len == 4) ? NGX_HTTP_POST : NGX_HTTP_PUT;
    }

    if (ngx_http_arg(r, (u_char *) "path", 4, &value) != NGX_OK) {
        return NGX_OK;
    }

    /* the request may be gone before */

    test->path.data = ngx_pstrdup(test->pool, &value);
    if (test->path.data == NULL) {
        return NGX_ERROR;
    }

    test->path.len = value.len;

    return NGX_OK;
}


/* the client's, which is in memory, or one of our own */

static ngx_int_t
ngx_http_vibe_couch_test_body(ngx_http_request_t *r,
    ngx_http_vibe_couch_test_t *test)
{
    size_t        i, len;
    u_char       *p;
    ngx_chain_t  *cl, *bufs;

    bufs = (r->request_body != NULL) ? r->request_body->bufs : NULL;
    len = test->size;

    for (cl = bufs; cl; cl = cl->next) {

        if (cl->buf->in_file) {
            return NGX_ERROR;
        }

        len += cl->buf->last - cl->buf->pos;
    }

    p = ngx_pnalloc(test->pool, len + 1);
    if (p == NULL) {
        return NGX_ERROR;
    }

    test->body.data = p;
    test->body.len = len;

    for (cl = bufs; cl; cl = cl->next) {
        p = ngx_cpymem(p, cl->buf->pos, cl->buf->last - cl->buf->pos);
    }

    for (i = 0; i < test->size; i++) {
        p[i] = (u_char) ('a' + i % 23);
    }

    return NGX_OK;
}


static ngx_chain_t *
ngx_http_vibe_couch_test_pieces(ngx_pool_t *pool, ngx_str_t *text)
{
    u_char       *p, *last;
    size_t        len;
    ngx_buf_t    *b;
    ngx_chain_t  *cl, *out, **ll;

    out = NULL;
    ll = &out;
    last = text->data + text->len;

    for (p = text->data; p < last; p += len) {
        len = ngx_min(last - p, NGX_HTTP_VIBE_COUCH_TEST_PIECE);

        b = ngx_create_temp_buf(pool, len);
        if (b == NULL) {
            return NULL;
        }

        b->last = ngx_cpymem(b->last, p, len);

        cl = ngx_alloc_chain_link(pool);
        if (cl == NULL) {
            return NULL;
        }

        cl->buf = b;
        cl->next = NULL;
        *ll = cl;
        ll = &cl->next;
    }

    return out;
}


/* each has a pool of its own, so that the sanitizer sees who uses it late */

static void
ngx_http_vibe_couch_test_send(ngx_http_vibe_couch_test_item_t *item)
{
    ngx_int_t                    rc;
    ngx_pool_t                  *pool;
    ngx_http_vibe_couch_t       *req;
    ngx_http_vibe_couch_test_t  *test;

    test = item->test;

    pool = ngx_create_pool(4096, ngx_cycle->log);
    if (pool == NULL) {
        test->errors++;
        return;
    }

    req = ngx_pcalloc(pool, sizeof(ngx_http_vibe_couch_t));
    if (req == NULL) {
        ngx_destroy_pool(pool);
        test->errors++;
        return;
    }

    req->pool = pool;
    req->method = test->method;
    req->path = item->path;
    req->timeout = test->timeout;
    req->waited = (test->waited != 0);
    req->handler = ngx_http_vibe_couch_test_got;
    req->line = item->feed ? ngx_http_vibe_couch_test_line : NULL;
    req->data = item;

    if (test->body.len && !item->feed) {
        req->body = ngx_http_vibe_couch_test_pieces(pool, &test->body);
    }

    item->req = req;

    rc = ngx_http_vibe_couch_send(req);

    if (rc == NGX_OK) {
        test->left++;
        ngx_http_vibe_couch_test_counts.sent++;
        return;
    }

    if (rc == NGX_BUSY) {
        test->busy++;

    } else {
        test->errors++;
    }

    item->req = NULL;
    ngx_destroy_pool(pool);
}


static ngx_int_t
ngx_http_vibe_couch_test_line(ngx_http_vibe_couch_t *req, ngx_str_t *line)
{
    ngx_http_vibe_couch_test_t       *test;
    ngx_http_vibe_couch_test_item_t  *item, *other;

    static ngx_str_t  end = ngx_string("|");
    static ngx_str_t  path = ngx_string("/spawned");

    item = req->data;
    test = item->test;

    item->lines++;

    ngx_http_vibe_couch_test_note(item, line);
    ngx_http_vibe_couch_test_note(item, &end);

    if (test->spawn) {
        test->spawn--;

        other = &test->items[test->n++];
        other->test = test;
        other->path = path;

        ngx_http_vibe_couch_test_send(other);
    }

    if (test->cancel_rest) {
        ngx_http_vibe_couch_test_cancel_all(test, item);
    }

    if (item->lines == test->cancel_line) {
        ngx_http_vibe_couch_test_cancel(item);
        ngx_http_vibe_couch_test_ended(test);

        return NGX_OK;
    }

    return item->lines == test->stop_line ? NGX_ERROR : NGX_OK;
}


static void
ngx_http_vibe_couch_test_got(ngx_http_vibe_couch_t *req)
{
    ngx_http_vibe_couch_test_t       *test;
    ngx_http_vibe_couch_test_item_t  *item;

    item = req->data;
    test = item->test;

    ngx_http_vibe_couch_test_counts.called++;

    if (item->req != req) {
        ngx_http_vibe_couch_test_counts.wrong++;
        return;
    }

    item->req = NULL;
    item->calls++;
    item->status = req->status;
    item->too_large = req->too_large;

    if (req->answer.len) {
        ngx_http_vibe_couch_test_note(item, &req->answer);
    }

    ngx_destroy_pool(req->pool);

    if (item->again) {
        item->again--;
        ngx_http_vibe_couch_test_send(item);
    }

    if (test->cancel_rest) {
        ngx_http_vibe_couch_test_cancel_all(test, item);
    }

    ngx_http_vibe_couch_test_ended(test);
}


static void
ngx_http_vibe_couch_test_note(ngx_http_vibe_couch_test_item_t *item,
    ngx_str_t *text)
{
    size_t  len;

    if (item->len < sizeof(item->text)) {
        len = ngx_min(text->len, sizeof(item->text) - item->len);
        ngx_memcpy(item->text + item->len, text->data, len);
    }

    if (item->len == 0) {
        ngx_md5_init(&item->md5);
    }

    ngx_md5_update(&item->md5, text->data, text->len);
    item->len += text->len;
}


/* the caller calls ngx_http_vibe_couch_test_ended(), if it had a request */

static void
ngx_http_vibe_couch_test_cancel(ngx_http_vibe_couch_test_item_t *item)
{
    ngx_http_vibe_couch_t  *req;

    req = item->req;

    ngx_http_vibe_couch_cancel(req);
    ngx_http_vibe_couch_cancel(req);

    item->req = NULL;
    ngx_http_vibe_couch_test_counts.cancelled++;

    ngx_destroy_pool(req->pool);
}


static void
ngx_http_vibe_couch_test_cancel_all(ngx_http_vibe_couch_test_t *test,
    ngx_http_vibe_couch_test_item_t *but)
{
    ngx_uint_t  i;

    for (i = 0; i < test->n; i++) {

        if (test->items[i].req != NULL && &test->items[i] != but) {
            ngx_http_vibe_couch_test_cancel(&test->items[i]);
            test->left--;
        }
    }
}


static void
ngx_http_vibe_couch_test_timer(ngx_event_t *ev)
{
    ngx_http_vibe_couch_test_t  *test = ev->data;

    test->left++;

    ngx_http_vibe_couch_test_cancel_all(test, NULL);
    ngx_http_vibe_couch_test_ended(test);
}


/* one of what was under way is not any more */

static void
ngx_http_vibe_couch_test_ended(ngx_http_vibe_couch_test_t *test)
{
    ngx_buf_t           *b;
    ngx_connection_t    *c;
    ngx_http_request_t  *r;

    if (--test->left) {
        return;
    }

    if (test->timer.timer_set) {
        ngx_del_timer(&test->timer);
    }

    r = test->request;
    b = NULL;

    if (r != NULL) {
        b = ngx_http_vibe_couch_test_report(test, r->pool);
    }

    ngx_destroy_pool(test->pool);

    if (r != NULL) {
        c = r->connection;

        ngx_http_finalize_request(r, b == NULL ? NGX_HTTP_INTERNAL_SERVER_ERROR
                                     : ngx_http_vibe_couch_test_answer(r, b));
        ngx_http_run_posted_requests(c);
    }
}


static ngx_buf_t *
ngx_http_vibe_couch_test_report(ngx_http_vibe_couch_test_t *test,
    ngx_pool_t *pool)
{
    size_t                            len;
    u_char                            md5[16];
    ngx_uint_t                        i;
    ngx_buf_t                        *b;
    ngx_http_vibe_couch_test_item_t  *item;

    b = ngx_create_temp_buf(pool, 256 + test->n
                     * (256 + (test->echo ? 6 * sizeof(item->text) : 0)));
    if (b == NULL) {
        return NULL;
    }

    b->last = ngx_sprintf(b->last, "{\"busy\":%ui,\"errors\":%ui,\"got\":[",
                          test->busy, test->errors);

    for (i = 0; i < test->n; i++) {
        item = &test->items[i];

        if (item->len == 0) {
            ngx_md5_init(&item->md5);
        }

        ngx_md5_final(md5, &item->md5);

        b->last = ngx_sprintf(b->last, "%s{\"status\":%ui,\"calls\":%ui,"
                              "\"lines\":%ui,\"too_large\":%ui,\"length\":%uz,"
                              "\"md5\":\"", i ? "," : "", item->status,
                              item->calls, item->lines, item->too_large,
                              item->len);
        b->last = ngx_hex_dump(b->last, md5, 16);

        if (test->echo) {
            len = ngx_min(item->len, sizeof(item->text));
            b->last = ngx_sprintf(b->last, "\",\"answer\":\"");
            b->last = (u_char *) ngx_escape_json(b->last, item->text, len);
        }

        b->last = ngx_sprintf(b->last, "\"}");
    }

    b->last = ngx_sprintf(b->last, "]}");

    return b;
}


static ngx_int_t
ngx_http_vibe_couch_test_answer(ngx_http_request_t *r, ngx_buf_t *b)
{
    ngx_int_t    rc;
    ngx_chain_t  out;

    r->headers_out.status = (b == NULL) ? NGX_HTTP_NO_CONTENT : NGX_HTTP_OK;
    r->headers_out.content_length_n = (b == NULL) ? 0 : b->last - b->pos;

    if (b == NULL) {
        r->header_only = 1;
    }

    rc = ngx_http_send_header(r);

    if (rc == NGX_ERROR || rc > NGX_OK || r->header_only) {
        return rc;
    }

    b->last_buf = 1;

    out.buf = b;
    out.next = NULL;

    return ngx_http_output_filter(r, &out);
}


static ngx_int_t
ngx_http_vibe_couch_test_stats_handler(ngx_http_request_t *r)
{
    ngx_buf_t  *b;

    b = ngx_create_temp_buf(r->pool, 256);
    if (b == NULL) {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    b->last = ngx_sprintf(b->last, "{\"sent\":%ui,\"called\":%ui,"
                          "\"cancelled\":%ui,\"wrong\":%ui,\"free\":%ui}",
                          ngx_http_vibe_couch_test_counts.sent,
                          ngx_http_vibe_couch_test_counts.called,
                          ngx_http_vibe_couch_test_counts.cancelled,
                          ngx_http_vibe_couch_test_counts.wrong,
                          ngx_cycle->free_connection_n);

    return ngx_http_vibe_couch_test_answer(r, b);
}


static ngx_int_t
ngx_http_vibe_couch_test_exit_handler(ngx_http_request_t *r)
{
    ngx_http_vibe_couch_exit();
    ngx_http_vibe_couch_exit();

    if (ngx_http_vibe_couch_test_init_process((ngx_cycle_t *) ngx_cycle)
        != NGX_OK)
    {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    return ngx_http_vibe_couch_test_stats_handler(r);
}


static ngx_int_t
ngx_http_vibe_couch_test_backoff_handler(ngx_http_request_t *r)
{
    ngx_uint_t   i;
    ngx_int_t    n[3];
    ngx_str_t    value;
    ngx_buf_t   *b;

    static ngx_str_t  names[] = {
        ngx_string("failures"), ngx_string("first"), ngx_string("last")
    };

    for (i = 0; i < 3; i++) {
        if (ngx_http_arg(r, names[i].data, names[i].len, &value) != NGX_OK) {
            return NGX_HTTP_BAD_REQUEST;
        }

        n[i] = ngx_atoi(value.data, value.len);
        if (n[i] == NGX_ERROR) {
            return NGX_HTTP_BAD_REQUEST;
        }
    }

    b = ngx_create_temp_buf(r->pool, NGX_INT_T_LEN);
    if (b == NULL) {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    b->last = ngx_sprintf(b->last, "%M",
                          ngx_http_vibe_couch_backoff(n[0], n[1], n[2]));

    return ngx_http_vibe_couch_test_answer(r, b);
}


static char *
ngx_http_vibe_couch_test_address(ngx_conf_t *cf, ngx_command_t *cmd,
    void *conf)
{
    ngx_http_vibe_couch_test_conf_t *ctcf = conf;

    ngx_url_t    u;
    ngx_str_t   *value;
    ngx_addr_t  *addr;

    value = cf->args->elts;

    ngx_memzero(&u, sizeof(ngx_url_t));

    u.url = value[1];
    u.default_port = 5984;

    if (ngx_parse_url(cf->pool, &u) != NGX_OK) {
        return u.err ? u.err : NGX_CONF_ERROR;
    }

    if (ctcf->couch.addrs == NULL) {
        ctcf->couch.addrs = ngx_array_create(cf->pool, 2, sizeof(ngx_addr_t));
        if (ctcf->couch.addrs == NULL) {
            return NGX_CONF_ERROR;
        }
    }

    addr = ngx_array_push(ctcf->couch.addrs);
    if (addr == NULL) {
        return NGX_CONF_ERROR;
    }

    *addr = u.addrs[0];

    return NGX_CONF_OK;
}


static char *
ngx_http_vibe_couch_test(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    ngx_str_t                 *value;
    ngx_http_core_loc_conf_t  *clcf;

    value = cf->args->elts;
    clcf = ngx_http_conf_get_module_loc_conf(cf, ngx_http_core_module);

    switch (value[1].data[1]) {

    case 't':
        clcf->handler = ngx_http_vibe_couch_test_stats_handler;
        break;

    case 'x':
        clcf->handler = ngx_http_vibe_couch_test_exit_handler;
        break;

    case 'a':
        clcf->handler = ngx_http_vibe_couch_test_backoff_handler;
        break;

    default:
        clcf->handler = ngx_http_vibe_couch_test_send_handler;
    }

    return NGX_CONF_OK;
}


static void *
ngx_http_vibe_couch_test_create_conf(ngx_conf_t *cf)
{
    ngx_http_vibe_couch_test_conf_t  *ctcf;

    ctcf = ngx_pcalloc(cf->pool, sizeof(ngx_http_vibe_couch_test_conf_t));
    if (ctcf == NULL) {
        return NULL;
    }

    ctcf->couch.connect_timeout = NGX_CONF_UNSET_MSEC;
    ctcf->couch.timeout = NGX_CONF_UNSET_MSEC;
    ctcf->couch.max_response = NGX_CONF_UNSET_SIZE;

    return ctcf;
}


static char *
ngx_http_vibe_couch_test_init_conf(ngx_conf_t *cf, void *conf)
{
    ngx_http_vibe_couch_test_conf_t *ctcf = conf;

    ngx_conf_init_msec_value(ctcf->couch.connect_timeout, 5000);
    ngx_conf_init_msec_value(ctcf->couch.timeout, 30000);
    ngx_conf_init_size_value(ctcf->couch.max_response, 16 * 1024 * 1024);

    return NGX_CONF_OK;
}


static ngx_int_t
ngx_http_vibe_couch_test_init_process(ngx_cycle_t *cycle)
{
    ngx_http_vibe_couch_test_conf_t  *ctcf;

    ctcf = ngx_http_cycle_get_module_main_conf(cycle,
                                              ngx_http_vibe_couch_test_module);

    /* linked into nginx, it is also there for other tests */

    if (ctcf == NULL || ctcf->couch.url.len == 0) {
        return NGX_OK;
    }

    return ngx_http_vibe_couch_init(cycle, &ctcf->couch);
}


static void
ngx_http_vibe_couch_test_exit_process(ngx_cycle_t *cycle)
{
    ngx_http_vibe_couch_exit();
}
