
#include "ngx_http_vibe_wait.h"


struct ngx_http_vibe_wait_s {
    ngx_http_request_t        *r;
    ngx_http_vibe_wait_t     **place;        /* NULL: woken */
    ngx_http_vibe_next_pt      next;
    void                      *data;
};


static void ngx_http_vibe_wait_ended(void *data);
static void ngx_http_vibe_wait_end(ngx_http_vibe_wait_t *w);
static void ngx_http_vibe_wait_quit(ngx_event_t *ev);


static ngx_uint_t    ngx_http_vibe_waiting;
static ngx_uint_t    ngx_http_vibe_wait_last;      /* armed while exiting */
static ngx_event_t   ngx_http_vibe_wait_event;

/* nginx's debug log shows the descriptor of a timer's connection */
static ngx_connection_t  ngx_http_vibe_wait_dumb;


ngx_int_t
ngx_http_vibe_wait(ngx_http_request_t *r, ngx_http_vibe_wait_t **place,
    ngx_http_vibe_next_pt next, void *data)
{
    ngx_event_t           *ev;
    ngx_http_cleanup_t    *cln;
    ngx_http_vibe_wait_t  *w;

    w = ngx_palloc(r->pool, sizeof(ngx_http_vibe_wait_t));
    if (w == NULL) {
        return NGX_ERROR;
    }

    cln = ngx_http_cleanup_add(r, 0);
    if (cln == NULL) {
        return NGX_ERROR;
    }

    cln->handler = ngx_http_vibe_wait_ended;
    cln->data = w;

    w->r = r;
    w->place = place;
    w->next = next;
    w->data = data;

    *place = w;

    r->read_event_handler = ngx_http_block_reading;
    r->write_event_handler = ngx_http_request_empty_handler;

    /* a quitting worker exits when only cancelable timers are left */

    if (ngx_http_vibe_waiting++ == 0) {
        ngx_http_vibe_wait_dumb.fd = (ngx_socket_t) -1;

        ev = &ngx_http_vibe_wait_event;

        ev->handler = ngx_http_vibe_wait_quit;
        ev->data = &ngx_http_vibe_wait_dumb;
        ev->log = ngx_cycle->log;

        ngx_add_timer(ev, NGX_HTTP_VIBE_WAIT_QUIT);
    }

    return NGX_AGAIN;
}


static void
ngx_http_vibe_wait_ended(void *data)
{
    ngx_http_vibe_wait_t *w = data;

    if (w->place != NULL) {
        ngx_http_vibe_wait_end(w);
    }
}


static void
ngx_http_vibe_wait_end(ngx_http_vibe_wait_t *w)
{
    *w->place = NULL;
    w->place = NULL;

    if (--ngx_http_vibe_waiting == 0 && ngx_http_vibe_wait_event.timer_set) {
        ngx_del_timer(&ngx_http_vibe_wait_event);
    }
}


static void
ngx_http_vibe_wait_quit(ngx_event_t *ev)
{
    /* when the worker was told to quit most of the time may have been over */

    if (!ngx_exiting || ngx_http_vibe_wait_last++ == 0) {
        ngx_add_timer(ev, NGX_HTTP_VIBE_WAIT_QUIT);
    }
}


void
ngx_http_vibe_wake(ngx_http_vibe_wait_t **place, ngx_http_vibe_call_t *failed)
{
    ngx_connection_t      *c;
    ngx_http_request_t    *r;
    ngx_http_vibe_ctx_t   *ctx;
    ngx_http_vibe_wait_t  *w;

    w = *place;

    if (w == NULL) {
        return;
    }

    ngx_http_vibe_wait_end(w);

    r = w->r;
    c = r->connection;

    ngx_http_set_log_request(c->log, r);

    if (c->error) {

        /* an HTTP/2 client has left: what was begun goes on without it */

        ctx = ngx_http_get_module_ctx(r, ngx_http_vibe_module);

        ctx->gone = 1;
        c->error = 0;
    }

    ngx_http_vibe_finalize(r, w->next(r, w->data, failed));

    ngx_http_run_posted_requests(c);
}
