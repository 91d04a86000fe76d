
#include "ngx_http_vibe_aggregate.h"
#include "ngx_http_vibe_answer.h"
#include "ngx_http_vibe_feeds.h"
#include "ngx_http_vibe_status_feeds.h"


#if (NGX_HTTP_VIBE_ZONE_FEEDS < NGX_HTTP_VIBE_FEEDS_MAX)
#error the zone has no room for all feeds of a registry
#endif

#if (NGX_HTTP_VIBE_ZONE_NAME <= NGX_HTTP_VIBE_FEED_NAME_MAX)
#error the zone has no room for the name of a feed
#endif


typedef struct {
    ngx_str_t                   name;
    ngx_uint_t                  ticket;    /* 0: none was to be had yet */
    unsigned                    done:1;
} ngx_http_vibe_aggregate_feed_t;


typedef struct {
    ngx_http_request_t         *r;
    ngx_http_vibe_zone_t       *zone;
    ngx_array_t                 feeds;     /* of
                                              ngx_http_vibe_aggregate_feed_t */
    ngx_msec_t                  began;
    ngx_msec_t                  led;       /* when somebody was there last */
    ngx_event_t                 event;
    ngx_connection_t            dumb;      /* for nginx's debug log */
    unsigned                    one:1;     /* the request names the feed */
} ngx_http_vibe_aggregate_t;


static ngx_int_t ngx_http_vibe_aggregate_begin(ngx_http_request_t *r,
    ngx_http_vibe_zone_t *zone);
static ngx_int_t ngx_http_vibe_aggregate_add(ngx_http_vibe_aggregate_t *a,
    ngx_str_t *only);
static ngx_int_t ngx_http_vibe_aggregate_wait(ngx_http_vibe_aggregate_t *a);
static void ngx_http_vibe_aggregate_gone(void *data);
static void ngx_http_vibe_aggregate_look(ngx_event_t *ev);
static ngx_int_t ngx_http_vibe_aggregate_step(ngx_http_vibe_aggregate_t *a);
static ngx_int_t ngx_http_vibe_aggregate_elsewhere(
    ngx_http_vibe_aggregate_t *a, ngx_http_vibe_leader_t *leader);
static ngx_uint_t ngx_http_vibe_aggregate_waits(ngx_http_vibe_aggregate_t *a);
static ngx_uint_t ngx_http_vibe_aggregate_is_registered(ngx_str_t *name);
static ngx_int_t ngx_http_vibe_aggregate_answer(ngx_http_vibe_aggregate_t *a);


ngx_int_t
ngx_http_vibe_aggregate_handler(ngx_http_request_t *r)
{
    ngx_int_t                   rc;
    ngx_http_vibe_ctx_t        *ctx;
    ngx_http_vibe_main_conf_t  *vmcf;

    static ngx_str_t  no_store = ngx_string("no-store");

    /* what the answers need */

    ctx = ngx_pcalloc(r->pool, sizeof(ngx_http_vibe_ctx_t));
    if (ctx == NULL) {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    ngx_http_set_ctx(r, ctx, ngx_http_vibe_module);

    if (ngx_http_vibe_add_header(r, "Cache-Control", &no_store) != NGX_OK) {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    if (r->method != NGX_HTTP_POST) {
        return ngx_http_vibe_not_allowed(r, "POST");
    }

    rc = ngx_http_discard_request_body(r);
    if (rc != NGX_OK) {
        return rc;
    }

    vmcf = ngx_http_get_module_main_conf(r, ngx_http_vibe_module);

    if (!vmcf->repair) {
        return ngx_http_vibe_error_text(r, NGX_HTTP_SERVICE_UNAVAILABLE,
                                "This host takes no part in background work.");
    }

    return ngx_http_vibe_aggregate_begin(r, vmcf->zone);
}


static ngx_int_t
ngx_http_vibe_aggregate_begin(ngx_http_request_t *r,
    ngx_http_vibe_zone_t *zone)
{
    ngx_int_t                   rc;
    ngx_str_t                   only;
    ngx_http_vibe_aggregate_t  *a;

    if (ngx_http_vibe_arg(r, "feed", &only) != NGX_OK) {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    a = ngx_pcalloc(r->pool, sizeof(ngx_http_vibe_aggregate_t));
    if (a == NULL) {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    a->r = r;
    a->zone = zone;
    a->one = (only.len != 0);
    a->began = ngx_current_msec;
    a->led = a->began;

    if (ngx_http_vibe_aggregate_add(a, &only) != NGX_OK) {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    if (a->feeds.nelts == 0) {
        return ngx_http_vibe_aggregate_answer(a);
    }

    rc = ngx_http_vibe_aggregate_step(a);

    return (rc == NGX_AGAIN) ? ngx_http_vibe_aggregate_wait(a) : rc;
}


/* the registry may be another one by the time that they are looked up */

static ngx_int_t
ngx_http_vibe_aggregate_add(ngx_http_vibe_aggregate_t *a, ngx_str_t *only)
{
    ngx_uint_t                       i;
    ngx_pool_t                      *pool;
    ngx_http_vibe_feed_t            *feed;
    ngx_http_vibe_registry_t        *registry;
    ngx_http_vibe_aggregate_feed_t  *f;

    registry = ngx_http_vibe_feeds();

    pool = a->r->pool;
    feed = registry->feeds.elts;

    if (ngx_array_init(&a->feeds, pool, registry->feeds.nelts + 1,
                       sizeof(ngx_http_vibe_aggregate_feed_t))
        != NGX_OK)
    {
        return NGX_ERROR;
    }

    for (i = 0; i < registry->feeds.nelts; i++) {

        if (a->one && !ngx_http_vibe_same(&feed[i].name, only)) {
            continue;
        }

        f = ngx_array_push(&a->feeds);
        if (f == NULL) {
            return NGX_ERROR;
        }

        ngx_memzero(f, sizeof(ngx_http_vibe_aggregate_feed_t));

        f->name.data = ngx_pstrdup(pool, &feed[i].name);
        if (f->name.data == NULL) {
            return NGX_ERROR;
        }

        f->name.len = feed[i].name.len;
    }

    return NGX_OK;
}


static ngx_int_t
ngx_http_vibe_aggregate_wait(ngx_http_vibe_aggregate_t *a)
{
    ngx_http_request_t  *r;
    ngx_http_cleanup_t  *cln;

    r = a->r;

    cln = ngx_http_cleanup_add(r, 0);
    if (cln == NULL) {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    cln->handler = ngx_http_vibe_aggregate_gone;
    cln->data = a;

    if (!r->discard_body) {
        r->read_event_handler = ngx_http_test_reading;
    }

    a->dumb.fd = (ngx_socket_t) -1;
    a->dumb.data = a;

    a->event.handler = ngx_http_vibe_aggregate_look;
    a->event.data = &a->dumb;
    a->event.log = r->connection->log;

    /* not cancelable: the worker must not quit before the client is told */

    ngx_add_timer(&a->event, NGX_HTTP_VIBE_AGGREGATE_LOOK);

    r->main->count++;

    return NGX_DONE;
}


static void
ngx_http_vibe_aggregate_gone(void *data)
{
    ngx_http_vibe_aggregate_t *a = data;

    if (a->event.timer_set) {
        ngx_del_timer(&a->event);
    }
}


static void
ngx_http_vibe_aggregate_look(ngx_event_t *ev)
{
    ngx_int_t                   rc;
    ngx_connection_t           *c, *dumb;
    ngx_http_request_t         *r;
    ngx_http_vibe_aggregate_t  *a;

    dumb = ev->data;
    a = dumb->data;

    r = a->r;
    c = r->connection;

    ngx_http_set_log_request(c->log, r);

    /* a client that leaves after its body was thrown away nobody notices */

    if (!r->discard_body) {
        ngx_http_test_reading(r);
    }

    if (!c->error) {
        rc = ngx_http_vibe_aggregate_step(a);

        if (rc == NGX_AGAIN) {
            ngx_add_timer(ev, NGX_HTTP_VIBE_AGGREGATE_LOOK);
        }

        ngx_http_vibe_finalize(r, rc);
    }

    ngx_http_run_posted_requests(c);
}


/* NGX_AGAIN: it goes on; else what the answer's sending returned */

static ngx_int_t
ngx_http_vibe_aggregate_step(ngx_http_vibe_aggregate_t *a)
{
    ngx_http_vibe_leader_t  leader;

    if (ngx_exiting || ngx_quit || ngx_terminate) {
        return ngx_http_vibe_error_text(a->r, NGX_HTTP_SERVICE_UNAVAILABLE,
                                        "This worker process is to end.");
    }

    if (ngx_current_msec - a->began >= NGX_HTTP_VIBE_AGGREGATE_MAX) {
        return ngx_http_vibe_error_text(a->r, NGX_HTTP_GATEWAY_TIME_OUT,
                                "The runs have not ended in time: they go on.");
    }

    ngx_http_vibe_zone_leader(a->zone, &leader);

    if (!leader.leading && leader.host[0] != '\0') {
        return ngx_http_vibe_aggregate_elsewhere(a, &leader);
    }

    if (leader.leading
        && leader.worker
        && ngx_http_vibe_zone_get(a->zone, NGX_HTTP_VIBE_COUCH_UP))
    {
        a->led = ngx_current_msec;

    } else if (ngx_current_msec - a->led >= NGX_HTTP_VIBE_AGGREGATE_LEAD) {
        return ngx_http_vibe_error_text(a->r, NGX_HTTP_SERVICE_UNAVAILABLE,
                                  "Nobody does the background work now, or "
                                  "the database cannot be reached.");
    }

    if (ngx_http_vibe_aggregate_waits(a)) {
        return NGX_AGAIN;
    }

    return ngx_http_vibe_aggregate_answer(a);
}


/* its zone is not this one: it cannot be asked from here */

static ngx_int_t
ngx_http_vibe_aggregate_elsewhere(ngx_http_vibe_aggregate_t *a,
    ngx_http_vibe_leader_t *leader)
{
    u_char     *p;
    ngx_str_t   host, reason;

    host.data = leader->host;
    host.len = ngx_strlen(leader->host);

    if (!ngx_http_vibe_json_is_utf8(&host)) {
        return ngx_http_vibe_error_text(a->r, NGX_HTTP_SERVICE_UNAVAILABLE,
                                "Another host does the background work.");
    }

    p = ngx_pnalloc(a->r->pool, sizeof("The host \"\" does the background "
                                       "work.") + host.len);
    if (p == NULL) {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    reason.data = p;
    reason.len = ngx_sprintf(p, "The host \"%V\" does the background work.",
                             &host)
                 - p;

    return ngx_http_vibe_error(a->r, NGX_HTTP_SERVICE_UNAVAILABLE, &reason);
}


/* 1 if there is a feed that is not done; asks for those not asked for yet */

static ngx_uint_t
ngx_http_vibe_aggregate_waits(ngx_http_vibe_aggregate_t *a)
{
    ngx_uint_t                       i, waits;
    ngx_http_vibe_zone_feed_t        feed;
    ngx_http_vibe_aggregate_feed_t  *f;

    f = a->feeds.elts;
    waits = 0;

    for (i = 0; i < a->feeds.nelts; i++) {

        if (f[i].done) {
            continue;
        }

        if (!ngx_http_vibe_zone_feed(a->zone, &f[i].name, &feed)) {

            /* who leads has not begun with it yet, or it was taken away */

            f[i].ticket = 0;
            f[i].done = !ngx_http_vibe_aggregate_is_registered(&f[i].name);

        } else if (f[i].ticket == 0 || feed.wanted < f[i].ticket) {
            f[i].ticket = ngx_http_vibe_zone_feed_want(a->zone, &f[i].name);

        } else {
            f[i].done = (feed.served >= f[i].ticket);
        }

        if (!f[i].done) {
            waits = 1;
        }
    }

    return waits;
}


static ngx_uint_t
ngx_http_vibe_aggregate_is_registered(ngx_str_t *name)
{
    ngx_uint_t                 i;
    ngx_http_vibe_feed_t      *feed;
    ngx_http_vibe_registry_t  *registry;

    registry = ngx_http_vibe_feeds();
    feed = registry->feeds.elts;

    for (i = 0; i < registry->feeds.nelts; i++) {
        if (ngx_http_vibe_same(&feed[i].name, name)) {
            return 1;
        }
    }

    return 0;
}


static ngx_int_t
ngx_http_vibe_aggregate_answer(ngx_http_vibe_aggregate_t *a)
{
    ngx_uint_t                       i, n, ok;
    ngx_http_vibe_json_out_t         out, feeds;
    ngx_http_vibe_zone_feed_t        feed;
    ngx_http_vibe_aggregate_feed_t  *f;

    ngx_http_vibe_json_out_init(&feeds, a->r->pool);

    f = a->feeds.elts;
    ok = 1;
    n = 0;

    for (i = 0; i < a->feeds.nelts; i++) {

        if (!ngx_http_vibe_zone_feed(a->zone, &f[i].name, &feed)) {
            continue;
        }

        if (n++) {
            ngx_http_vibe_json_put_text(&feeds, ",");
        }

        ngx_http_vibe_status_feed_json(&feed, &feeds);

        if (feed.error[0] != '\0') {
            ok = 0;
        }
    }

    if (a->one && n == 0) {
        return ngx_http_vibe_error_text(a->r, NGX_HTTP_NOT_FOUND,
                                        "There is no feed of this name.");
    }

    ngx_http_vibe_json_out_init(&out, a->r->pool);

    ngx_http_vibe_json_put_text(&out, "{\"ok\":");

    if (ok) {
        ngx_http_vibe_json_put_text(&out, "true");

    } else {
        ngx_http_vibe_json_put_text(&out, "false");
    }

    ngx_http_vibe_json_put_text(&out, ",\"feeds\":{");
    ngx_http_vibe_json_put_out(&out, &feeds);
    ngx_http_vibe_json_put_text(&out, "}}\n");

    return ngx_http_vibe_answer(a->r, NGX_HTTP_OK, &out);
}
