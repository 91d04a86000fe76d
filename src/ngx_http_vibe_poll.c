
#include "ngx_http_vibe_poll.h"
#include "ngx_http_vibe_global.h"
#include "ngx_http_vibe_target.h"


#define ngx_http_vibe_poll_page(p)                                            \
    (ngx_uint_t) ((p)->docs ? NGX_HTTP_VIBE_POLL_DOCS                         \
                            : NGX_HTTP_VIBE_POLL_PAGE)


static void ngx_http_vibe_poll_ask(ngx_http_vibe_poll_t *p);
static void ngx_http_vibe_poll_began(ngx_http_vibe_ask_t *ask,
    ngx_http_vibe_call_t *call);
static void ngx_http_vibe_poll_read(ngx_http_vibe_ask_t *ask,
    ngx_http_vibe_call_t *call);
static ngx_http_vibe_json_t *ngx_http_vibe_poll_answer(
    ngx_http_vibe_poll_t *p, ngx_http_vibe_call_t *call);
static void ngx_http_vibe_poll_failed(ngx_http_vibe_poll_t *p);


ngx_int_t
ngx_http_vibe_poll_init(ngx_http_vibe_poll_t *p, ngx_http_vibe_zone_t *zone)
{
    ngx_str_null(&p->seq);

    p->next = ngx_current_msec;
    p->page = ngx_http_vibe_poll_page(p);
    p->bare = 0;
    p->failures = 0;
    p->busy = 0;
    p->catching = 0;

    return ngx_http_vibe_ask_init(&p->ask, zone, p);
}


void
ngx_http_vibe_poll_end(ngx_http_vibe_poll_t *p)
{
    ngx_http_vibe_ask_end(&p->ask);
    ngx_http_vibe_target_keep(&p->seq, NULL);
}


void
ngx_http_vibe_poll_due(ngx_http_vibe_poll_t *p)
{
    ngx_msec_t  next;

    next = ngx_current_msec + NGX_HTTP_VIBE_POLL_DELAY;

    if (p->failures == 0 && (ngx_msec_int_t) (p->next - next) > 0) {
        p->next = next;
    }
}


void
ngx_http_vibe_poll_since(ngx_http_vibe_poll_t *p, ngx_str_t *seq)
{
    ngx_http_vibe_target_keep(&p->seq, seq);
}


void
ngx_http_vibe_poll_now(ngx_http_vibe_poll_t *p)
{
    ngx_http_vibe_zone_t  *zone;

    p->catching = 1;
    p->next = ngx_current_msec;

    if (p->busy) {

        /* it may wait, or have been asked before what is wanted happened */

        zone = p->ask.zone;
        p->busy = 0;

        ngx_http_vibe_ask_end(&p->ask);
        (void) ngx_http_vibe_ask_init(&p->ask, zone, p);
    }

    ngx_http_vibe_poll_step(p);
}


void
ngx_http_vibe_poll_step(ngx_http_vibe_poll_t *p)
{
    if (p->busy
        || p->ask.pool == NULL
        || (ngx_msec_int_t) (p->next - ngx_current_msec) > 0)
    {
        return;
    }

    p->busy = 1;
    p->ask.timeout = 0;

    if (p->seq.len == 0) {
        ngx_http_vibe_ask(&p->ask, NGX_HTTP_GET, &ngx_http_vibe_global,
                          "/_changes?limit=0&since=now", NULL,
                          ngx_http_vibe_poll_began);
        return;
    }

    ngx_http_vibe_poll_ask(p);
}


static void
ngx_http_vibe_poll_ask(ngx_http_vibe_poll_t *p)
{
    u_char  *last, path[sizeof("/_changes?limit=&include_docs=true"
                               "&feed=longpoll&timeout=&since=%V")
                        + 2 * NGX_INT_T_LEN];

    last = ngx_sprintf(path, "/_changes?limit=%ui&%s", p->page,
                       p->docs && !p->bare ? "include_docs=true"
                                           : "style=all_docs");

    if (p->wait && !p->catching) {
        last = ngx_sprintf(last, "&feed=longpoll&timeout=%d",
                           NGX_HTTP_VIBE_POLL_WAIT);

        p->ask.timeout = 2 * NGX_HTTP_VIBE_POLL_WAIT;
    }

    ngx_memcpy(last, "&since=%V", sizeof("&since=%V"));

    ngx_http_vibe_ask_arg(&p->ask, &ngx_http_vibe_global, (const char *) path,
                          &p->seq, ngx_http_vibe_poll_read);
}


static void
ngx_http_vibe_poll_began(ngx_http_vibe_ask_t *ask, ngx_http_vibe_call_t *call)
{
    ngx_http_vibe_poll_t *p = ask->data;

    if (ngx_http_vibe_poll_answer(p, call) == NULL) {
        return;
    }

    p->next = ngx_current_msec;

    p->begun();
}


static void
ngx_http_vibe_poll_read(ngx_http_vibe_ask_t *ask, ngx_http_vibe_call_t *call)
{
    ngx_http_vibe_poll_t *p = ask->data;

    ngx_uint_t             more;
    ngx_http_vibe_json_t  *results, *change;

    if (call->too_large && !p->bare) {

        /* fewer; and of a single one nothing but that it has changed */

        p->bare = (p->page == 1);
        p->page = (p->page + 1) / 2;
        p->busy = 0;
        return;
    }

    results = ngx_http_vibe_poll_answer(p, call);

    if (results == NULL) {
        return;
    }

    for (change = results->child; change; change = change->next) {
        p->change(change);
    }

    more = (results->n >= p->page);

    p->bare = 0;
    p->page = ngx_min(p->page * 2, ngx_http_vibe_poll_page(p));
    p->next = ngx_current_msec;

    if (!more) {
        p->next += p->wait ? NGX_HTTP_VIBE_POLL_PAUSE
                           : NGX_HTTP_VIBE_POLL_IDLE;
    }

    if (more && p->wait) {
        ngx_http_vibe_poll_step(p);
        return;
    }

    if (p->catching && !more) {
        p->catching = 0;
        p->caught();
    }
}


/* its results, and remembers how far they go; NULL: there are none */

static ngx_http_vibe_json_t *
ngx_http_vibe_poll_answer(ngx_http_vibe_poll_t *p, ngx_http_vibe_call_t *call)
{
    ngx_http_vibe_json_t  *root, *results, *seq;

    p->busy = 0;

    if (call->status == NGX_HTTP_NOT_FOUND
        || call->status == NGX_HTTP_BAD_REQUEST)
    {
        ngx_http_vibe_target_keep(&p->seq, NULL);
        ngx_http_vibe_poll_failed(p);
        p->gone();
        return NULL;
    }

    if (call->status != NGX_HTTP_OK
        || ngx_http_vibe_scan_answer(p->ask.pool, call, 5, &root) != NGX_OK)
    {
        ngx_http_vibe_poll_failed(p);
        return NULL;
    }

    results = ngx_http_vibe_json_get(root, "results");
    seq = ngx_http_vibe_json_get(root, "last_seq");

    if (results == NULL
        || results->type != NGX_HTTP_VIBE_JSON_ARRAY
        || seq == NULL
        || seq->type != NGX_HTTP_VIBE_JSON_STRING)
    {
        ngx_http_vibe_poll_failed(p);
        return NULL;
    }

    p->failures = 0;

    ngx_http_vibe_target_keep(&p->seq, &seq->string);

    return results;
}


static void
ngx_http_vibe_poll_failed(ngx_http_vibe_poll_t *p)
{
    p->next = ngx_current_msec
              + ngx_http_vibe_couch_backoff(++p->failures,
                                            NGX_HTTP_VIBE_POLL_FIRST,
                                            NGX_HTTP_VIBE_POLL_LAST);
}
