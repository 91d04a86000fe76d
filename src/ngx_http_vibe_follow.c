
#include "ngx_http_vibe_follow.h"


static void ngx_http_vibe_follow_begin(ngx_event_t *ev);
static ngx_int_t ngx_http_vibe_follow_send(ngx_http_vibe_follow_t *f);
static ngx_int_t ngx_http_vibe_follow_line(ngx_http_vibe_couch_t *couch,
    ngx_str_t *line);
static void ngx_http_vibe_follow_sought(ngx_http_vibe_couch_t *couch);
static void ngx_http_vibe_follow_answered(ngx_http_vibe_couch_t *couch);
static void ngx_http_vibe_follow_again(ngx_http_vibe_follow_t *f);


ngx_int_t
ngx_http_vibe_follow(ngx_http_vibe_follow_t *f, ngx_http_vibe_zone_t *zone)
{
    f->lines = ngx_create_pool(NGX_DEFAULT_POOL_SIZE, ngx_cycle->log);
    if (f->lines == NULL) {
        return NGX_ERROR;
    }

    f->zone = zone;
    f->pool = NULL;
    f->failures = 0;

    f->dumb.fd = (ngx_socket_t) -1;
    f->dumb.data = f;

    ngx_memzero(&f->event, sizeof(ngx_event_t));

    f->event.handler = ngx_http_vibe_follow_begin;
    f->event.data = &f->dumb;
    f->event.log = ngx_cycle->log;
    f->event.cancelable = 1;

    ngx_add_timer(&f->event, 1);

    return NGX_OK;
}


void
ngx_http_vibe_follow_since(ngx_http_vibe_follow_t *f, ngx_str_t *seq)
{
    f->seq_len = 0;

    if (seq != NULL && seq->len <= NGX_HTTP_VIBE_FOLLOW_SEQ_MAX) {
        f->seq_len = seq->len;
        ngx_memcpy(f->seq, seq->data, seq->len);
    }
}


void
ngx_http_vibe_follow_end(ngx_http_vibe_follow_t *f)
{
    if (f->lines == NULL) {
        return;
    }

    if (f->event.timer_set) {
        ngx_del_timer(&f->event);
    }

    if (f->pool != NULL) {
        ngx_http_vibe_couch_cancel(&f->couch);
        ngx_destroy_pool(f->pool);
        f->pool = NULL;
    }

    ngx_destroy_pool(f->lines);
    f->lines = NULL;
}


static void
ngx_http_vibe_follow_begin(ngx_event_t *ev)
{
    ngx_connection_t *c = ev->data;
    ngx_http_vibe_follow_t *f = c->data;

    f->began = ngx_current_msec;

    if (ngx_http_vibe_follow_send(f) != NGX_OK) {

        if (f->pool != NULL) {
            ngx_destroy_pool(f->pool);
            f->pool = NULL;
        }

        ngx_http_vibe_follow_again(f);
    }
}


static ngx_int_t
ngx_http_vibe_follow_send(ngx_http_vibe_follow_t *f)
{
    u_char                 *p;
    ngx_str_t               seq, escaped;
    ngx_http_vibe_couch_t  *couch;

    couch = &f->couch;

    f->pool = ngx_create_pool(NGX_DEFAULT_POOL_SIZE, ngx_cycle->log);
    if (f->pool == NULL) {
        return NGX_ERROR;
    }

    seq.data = f->seq;
    seq.len = f->seq_len;

    if (seq.len == 0) {
        seq.data = (u_char *) f->now;
        seq.len = ngx_strlen(f->now);
    }

    if (ngx_http_vibe_escape_segment(f->pool, &seq, &escaped) != NGX_OK) {
        return NGX_ERROR;
    }

    p = ngx_pnalloc(f->pool, ngx_strlen(f->path) + escaped.len + 64);
    if (p == NULL) {
        return NGX_ERROR;
    }

    ngx_memzero(couch, sizeof(ngx_http_vibe_couch_t));

    couch->path.data = p;

    if (f->seq_len == 0) {

        /*
         * Where "now" is must be known before anything is looked at that is
         * older: a feed says nothing before its first change.
         */

        p = ngx_sprintf(p, "%slimit=0&since=%V", f->path, &escaped);

    } else {
        p = ngx_sprintf(p, "%sfeed=continuous&heartbeat=%d&since=%V", f->path,
                        NGX_HTTP_VIBE_FOLLOW_BEAT, &escaped);
    }

    couch->path.len = p - couch->path.data;

    couch->pool = f->pool;
    couch->method = NGX_HTTP_GET;
    couch->timeout = NGX_HTTP_VIBE_FOLLOW_DEAD;
    couch->handler = ngx_http_vibe_follow_answered;
    couch->line = ngx_http_vibe_follow_line;
    couch->data = f;

    if (f->seq_len == 0) {
        couch->handler = ngx_http_vibe_follow_sought;
        couch->line = NULL;
    }

    return (ngx_http_vibe_couch_send(couch) == NGX_OK) ? NGX_OK : NGX_ERROR;
}


static ngx_int_t
ngx_http_vibe_follow_line(ngx_http_vibe_couch_t *couch, ngx_str_t *line)
{
    ngx_http_vibe_follow_t *f = couch->data;

    ngx_int_t              rc;
    const char            *reason;
    ngx_http_vibe_json_t  *root, *seq;

    rc = ngx_http_vibe_json_scan(f->lines, line, 3|NGX_HTTP_VIBE_JSON_DEEP,
                                 &root, &reason);

    if (rc == NGX_OK && root->type == NGX_HTTP_VIBE_JSON_OBJECT) {

        f->failures = 0;

        seq = ngx_http_vibe_json_get(root, "seq");

        if (seq != NULL && seq->type == NGX_HTTP_VIBE_JSON_STRING) {
            f->line(f, root);
            ngx_http_vibe_follow_since(f, &seq->string);
        }
    }

    ngx_reset_pool(f->lines);

    return (rc == NGX_OK) ? NGX_OK : NGX_ERROR;
}


static void
ngx_http_vibe_follow_sought(ngx_http_vibe_couch_t *couch)
{
    ngx_http_vibe_follow_t *f = couch->data;

    ngx_http_vibe_call_t   call;
    ngx_http_vibe_json_t  *root, *seq;

    if (couch->status == NGX_HTTP_OK) {

        ngx_http_vibe_call_of(couch, &call);

        if (ngx_http_vibe_scan_answer(f->pool, &call, 1, &root) == NGX_OK) {
            seq = ngx_http_vibe_json_get(root, "last_seq");

            if (seq != NULL && seq->type == NGX_HTTP_VIBE_JSON_STRING) {
                ngx_http_vibe_follow_since(f, &seq->string);
            }
        }

        if (f->seq_len == 0) {
            couch->status = NGX_HTTP_BAD_GATEWAY;
        }
    }

    if (f->seq_len == 0) {
        ngx_http_vibe_follow_answered(couch);
        return;
    }

    ngx_destroy_pool(f->pool);
    f->pool = NULL;

    ngx_http_vibe_zone_answer(f->zone, NGX_HTTP_OK);

    ngx_add_timer(&f->event, 1);

    f->begun(f);
}


static void
ngx_http_vibe_follow_answered(ngx_http_vibe_couch_t *couch)
{
    ngx_http_vibe_follow_t *f = couch->data;

    ngx_uint_t  status;

    status = couch->status;

    ngx_destroy_pool(f->pool);
    f->pool = NULL;

    ngx_http_vibe_zone_answer(f->zone, status);

    if (ngx_current_msec - f->began > NGX_HTTP_VIBE_FOLLOW_LAST) {
        f->failures = 0;
    }

    ngx_http_vibe_follow_again(f);

    f->ended(f, status);
}


static void
ngx_http_vibe_follow_again(ngx_http_vibe_follow_t *f)
{
    f->failures++;

    ngx_add_timer(&f->event,
                  ngx_http_vibe_couch_backoff(f->failures,
                                              NGX_HTTP_VIBE_FOLLOW_FIRST,
                                              NGX_HTTP_VIBE_FOLLOW_LAST));
}
