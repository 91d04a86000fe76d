
#include "ngx_http_vibe_ask.h"


static ngx_int_t ngx_http_vibe_ask_send(ngx_http_vibe_ask_t *ask,
    ngx_uint_t method, ngx_str_t *db, const char *suffix,
    ngx_http_vibe_json_out_t *body);
static void ngx_http_vibe_ask_fail(ngx_http_vibe_ask_t *ask);
static void ngx_http_vibe_ask_answered(ngx_http_vibe_couch_t *couch);
static void ngx_http_vibe_ask_unsent(ngx_event_t *ev);
static void ngx_http_vibe_ask_call(ngx_http_vibe_ask_t *ask);


ngx_int_t
ngx_http_vibe_ask_init(ngx_http_vibe_ask_t *ask, ngx_http_vibe_zone_t *zone,
    void *data)
{
    ngx_memzero(ask, sizeof(ngx_http_vibe_ask_t));

    ask->pool = ngx_create_pool(NGX_DEFAULT_POOL_SIZE, ngx_cycle->log);
    if (ask->pool == NULL) {
        return NGX_ERROR;
    }

    ask->zone = zone;
    ask->data = data;

    return NGX_OK;
}


void
ngx_http_vibe_ask(ngx_http_vibe_ask_t *ask, ngx_uint_t method, ngx_str_t *db,
    const char *suffix, ngx_http_vibe_json_out_t *body,
    ngx_http_vibe_ask_pt handler)
{
    ask->handler = handler;
    ask->asked = 1;

    if (ngx_http_vibe_ask_send(ask, method, db, suffix, body) != NGX_OK) {
        ngx_http_vibe_ask_fail(ask);
    }
}


static void
ngx_http_vibe_ask_fail(ngx_http_vibe_ask_t *ask)
{
    ngx_str_set(&ask->couch.path, "");

    ask->couch.status = NGX_HTTP_SERVICE_UNAVAILABLE;
    ask->couch.answer.len = 0;

    ask->event.handler = ngx_http_vibe_ask_unsent;
    ask->event.data = ask;
    ask->event.log = ngx_cycle->log;

    ngx_post_event(&ask->event, &ngx_posted_events);
}


static ngx_int_t
ngx_http_vibe_ask_send(ngx_http_vibe_ask_t *ask, ngx_uint_t method,
    ngx_str_t *db, const char *suffix, ngx_http_vibe_json_out_t *body)
{
    ngx_http_vibe_couch_t *couch = &ask->couch;

    ngx_memzero(couch, sizeof(ngx_http_vibe_couch_t));

    if (body != NULL) {
        couch->body = ngx_http_vibe_json_out_chain(body);
        if (couch->body == NULL) {
            return NGX_ERROR;
        }
    }

    couch->pool = ngx_create_pool(NGX_DEFAULT_POOL_SIZE, ngx_cycle->log);
    if (couch->pool == NULL) {
        return NGX_ERROR;
    }

    if (ngx_http_vibe_db_path(couch->pool, db, suffix, &couch->path)
        != NGX_OK)
    {
        goto failed;
    }

    couch->method = method;
    couch->timeout = ask->timeout;
    couch->waited = ask->waited;
    couch->handler = ngx_http_vibe_ask_answered;
    couch->data = ask;

    if (ngx_http_vibe_couch_send(couch) == NGX_OK) {
        return NGX_OK;
    }

failed:

    ngx_destroy_pool(couch->pool);
    couch->pool = NULL;

    return NGX_ERROR;
}


void
ngx_http_vibe_ask_arg(ngx_http_vibe_ask_t *ask, ngx_str_t *db,
    const char *suffix, ngx_str_t *arg, ngx_http_vibe_ask_pt handler)
{
    u_char     *p;
    ngx_str_t   escaped;

    if (ngx_http_vibe_escape_segment(ask->pool, arg, &escaped) == NGX_OK) {

        p = ngx_pnalloc(ask->pool, ngx_strlen(suffix) + escaped.len + 1);

        if (p != NULL) {
            *ngx_sprintf(p, suffix, &escaped) = '\0';

            ngx_http_vibe_ask(ask, NGX_HTTP_GET, db, (const char *) p, NULL,
                              handler);
            return;
        }
    }

    ask->handler = handler;
    ask->asked = 1;

    ngx_http_vibe_ask_fail(ask);
}


static void
ngx_http_vibe_ask_answered(ngx_http_vibe_couch_t *couch)
{
    ngx_http_vibe_ask_t *ask = couch->data;

    ngx_destroy_pool(ask->pool);

    ask->pool = couch->pool;

    ngx_http_vibe_ask_call(ask);
}


static void
ngx_http_vibe_ask_unsent(ngx_event_t *ev)
{
    ngx_http_vibe_ask_call(ev->data);
}


static void
ngx_http_vibe_ask_call(ngx_http_vibe_ask_t *ask)
{
    ngx_http_vibe_call_t  call;

    ngx_http_vibe_call_of(&ask->couch, &call);

    ask->asked = 0;

    ngx_http_vibe_zone_answer(ask->zone, call.status);
    ngx_http_vibe_zone_set(ask->zone, NGX_HTTP_VIBE_COUCH_UP,
                           call.status < NGX_HTTP_INTERNAL_SERVER_ERROR
                           && call.status != NGX_HTTP_UNAUTHORIZED
                           && call.status != NGX_HTTP_FORBIDDEN);

    ask->handler(ask, &call);
}


ngx_int_t
ngx_http_vibe_ask_key(ngx_pool_t *pool, ngx_str_t *str, ngx_str_t *key)
{
    ngx_str_t                 json;
    ngx_http_vibe_json_out_t  out;

    ngx_http_vibe_json_out_init(&out, pool);
    ngx_http_vibe_json_put_string(&out, str);

    if (ngx_http_vibe_json_out_str(&out, &json) != NGX_OK) {
        return NGX_ERROR;
    }

    return ngx_http_vibe_escape_segment(pool, &json, key);
}


void
ngx_http_vibe_ask_end(ngx_http_vibe_ask_t *ask)
{
    if (ask->asked) {

        if (ask->event.posted) {
            ngx_delete_posted_event(&ask->event);

        } else {
            ngx_http_vibe_couch_cancel(&ask->couch);
            ngx_destroy_pool(ask->couch.pool);
        }

        ask->asked = 0;
    }

    if (ask->pool != NULL) {
        ngx_destroy_pool(ask->pool);
        ask->pool = NULL;
    }
}


ngx_http_vibe_json_t *
ngx_http_vibe_ask_member(ngx_http_vibe_ask_t *ask, ngx_http_vibe_call_t *call,
    const char *name)
{
    ngx_str_t              str;
    ngx_http_vibe_json_t  *root;

    str.data = (u_char *) name;
    str.len = ngx_strlen(name);

    if (ngx_http_vibe_scan_answer(ask->pool, call, 1, &root) != NGX_OK) {
        return NULL;
    }

    return ngx_http_vibe_json_member(root, &str);
}
