
#include "ngx_http_vibe_views.h"
#include "ngx_http_vibe_ask.h"
#include "ngx_http_vibe_check.h"
#include "ngx_http_vibe_feeds.h"
#include "ngx_http_vibe_lease.h"
#include "ngx_http_vibe_poll.h"
#include "ngx_http_vibe_view.h"


/* when a view runs */

typedef struct {
    ngx_msec_t                   due;
    ngx_uint_t                   failures;     /* one after another */
    ngx_uint_t                   wanted;       /* by hand, when it began */
} ngx_http_vibe_views_due_t;


typedef struct {
    ngx_http_vibe_main_conf_t   *vmcf;
    ngx_queue_t                  queue;        /* of ngx_http_vibe_view_t */
    ngx_http_vibe_poll_t         poll;
    ngx_http_vibe_ask_t          ask;          /* for the pointers */
    ngx_event_t                  event;
    ngx_connection_t             dumb;
    ngx_uint_t                   running;
    ngx_msec_t                   retry;        /* the pointers */
    ngx_uint_t                   failures;
    ngx_msec_t                   swept;

    unsigned                     leads:1;
    unsigned                     loaded:1;     /* registry and pointers */
    unsigned                     busy:1;       /* loading them */
    unsigned                     polling:1;
} ngx_http_vibe_views_t;


static void ngx_http_vibe_views_lead(ngx_uint_t leads);
static void ngx_http_vibe_views_cease(void);
static void ngx_http_vibe_views_registered(void);
static void ngx_http_vibe_views_tick(ngx_event_t *ev);
static void ngx_http_vibe_views_load(void);
static void ngx_http_vibe_views_loaded(ngx_http_vibe_ask_t *ask,
    ngx_http_vibe_call_t *call);
static void ngx_http_vibe_views_match(void);
static void ngx_http_vibe_views_interval(ngx_http_vibe_view_t *v,
    ngx_msec_t interval);
static void ngx_http_vibe_views_drop(void);
static void ngx_http_vibe_views_untell(void);
static ngx_http_vibe_view_t *ngx_http_vibe_views_add(
    ngx_http_vibe_feed_t *feed);
static void ngx_http_vibe_views_pointers(ngx_http_vibe_json_t *rows,
    ngx_str_t *since);
static ngx_http_vibe_view_t *ngx_http_vibe_views_of_pointer(
    ngx_http_vibe_json_t *id);
static void ngx_http_vibe_views_forget(ngx_http_vibe_json_t *rows);
static void ngx_http_vibe_views_forgotten(ngx_http_vibe_ask_t *ask,
    ngx_http_vibe_call_t *call);
static void ngx_http_vibe_views_poll(ngx_str_t *since);
static void ngx_http_vibe_views_reset(void);
static void ngx_http_vibe_views_begun(void);
static void ngx_http_vibe_views_gone(void);
static void ngx_http_vibe_views_caught(void);
static void ngx_http_vibe_views_catch_up(ngx_http_vibe_view_t *v);
static void ngx_http_vibe_views_change(ngx_http_vibe_json_t *change);
static ngx_uint_t ngx_http_vibe_views_moved(ngx_http_vibe_json_t *doc);
static void ngx_http_vibe_views_changed(ngx_http_vibe_view_t *v,
    ngx_http_vibe_json_t *doc);
static ngx_msec_t ngx_http_vibe_views_runs(void);
static void ngx_http_vibe_views_run(ngx_http_vibe_view_t *v);
static void ngx_http_vibe_views_ended(ngx_http_vibe_view_t *v);
static void ngx_http_vibe_views_tell(ngx_http_vibe_view_t *v,
    ngx_uint_t ended);


static ngx_http_vibe_views_t  ngx_http_vibe_views;

static ngx_str_t  ngx_http_vibe_views_state =
                                        ngx_string(NGX_HTTP_VIBE_STATE_DB);


void
ngx_http_vibe_views_init(ngx_http_vibe_main_conf_t *vmcf)
{
    ngx_http_vibe_views_t *vs = &ngx_http_vibe_views;

    ngx_memzero(vs, sizeof(ngx_http_vibe_views_t));

    vs->vmcf = vmcf;

    ngx_queue_init(&vs->queue);

    vs->poll.docs = 1;
    vs->poll.wait = 1;
    vs->poll.change = ngx_http_vibe_views_change;
    vs->poll.begun = ngx_http_vibe_views_begun;
    vs->poll.gone = ngx_http_vibe_views_gone;
    vs->poll.caught = ngx_http_vibe_views_caught;

    vs->dumb.fd = (ngx_socket_t) -1;

    vs->event.handler = ngx_http_vibe_views_tick;
    vs->event.data = &vs->dumb;
    vs->event.log = ngx_cycle->log;
    vs->event.cancelable = 1;

    ngx_http_vibe_feeds_watch(ngx_http_vibe_views_registered);
    ngx_http_vibe_lease_use(ngx_http_vibe_views_lead);
}


static void
ngx_http_vibe_views_lead(ngx_uint_t leads)
{
    ngx_http_vibe_views_t *vs = &ngx_http_vibe_views;

    if (!leads) {
        ngx_http_vibe_views_cease();
        return;
    }

    if (ngx_http_vibe_ask_init(&vs->ask, vs->vmcf->zone, vs) != NGX_OK) {
        return;
    }

    vs->leads = 1;
    vs->loaded = 0;
    vs->busy = 0;
    vs->failures = 0;
    vs->running = 0;
    vs->retry = ngx_current_msec;
    vs->swept = ngx_current_msec;

    ngx_add_timer(&vs->event, 1);
}


static void
ngx_http_vibe_views_cease(void)
{
    ngx_queue_t            *q;
    ngx_http_vibe_view_t   *v;
    ngx_http_vibe_views_t  *vs;

    vs = &ngx_http_vibe_views;

    if (!vs->leads) {
        return;
    }

    vs->leads = 0;

    while (!ngx_queue_empty(&vs->queue)) {
        q = ngx_queue_head(&vs->queue);
        v = ngx_queue_data(q, ngx_http_vibe_view_t, queue);

        ngx_queue_remove(q);
        ngx_http_vibe_view_end(v);
    }

    if (vs->polling) {
        vs->polling = 0;
        ngx_http_vibe_poll_end(&vs->poll);
    }

    ngx_http_vibe_ask_end(&vs->ask);

    if (vs->event.timer_set) {
        ngx_del_timer(&vs->event);
    }
}


static void
ngx_http_vibe_views_registered(void)
{
    ngx_http_vibe_views.loaded = 0;
}


static void
ngx_http_vibe_views_tick(ngx_event_t *ev)
{
    ngx_msec_t              wait;
    ngx_http_vibe_views_t  *vs;

    vs = &ngx_http_vibe_views;
    wait = NGX_HTTP_VIBE_VIEWS_TICK;

    if (!vs->loaded) {
        ngx_http_vibe_views_load();

    } else if (!ngx_queue_empty(&vs->queue)) {

        if (ngx_current_msec - vs->swept > vs->vmcf->sweep) {
            vs->swept = ngx_current_msec;
            ngx_http_vibe_views_reset();
        }

        wait = ngx_http_vibe_views_runs();
    }

    /* what is withdrawn does not wait for the registry */

    if (vs->polling) {
        ngx_http_vibe_poll_step(&vs->poll);
    }

    ngx_add_timer(ev, wait);
}


/* the pointers of all feeds, of which there are a hundred at most */

static void
ngx_http_vibe_views_load(void)
{
    ngx_http_vibe_views_t *vs = &ngx_http_vibe_views;

    if (vs->busy || (ngx_msec_int_t) (vs->retry - ngx_current_msec) > 0) {
        return;
    }

    vs->busy = 1;

    ngx_http_vibe_ask(&vs->ask, NGX_HTTP_GET, &ngx_http_vibe_views_state,
                      "/_all_docs?include_docs=true&startkey=%22feed%3A%22"
                      "&endkey=%22feed%3B%22", NULL,
                      ngx_http_vibe_views_loaded);
}


static void
ngx_http_vibe_views_loaded(ngx_http_vibe_ask_t *ask,
    ngx_http_vibe_call_t *call)
{
    ngx_http_vibe_views_t *vs = ask->data;

    ngx_str_t              since;
    ngx_http_vibe_json_t  *root, *rows;

    vs->busy = 0;
    rows = NULL;

    if (call->status == NGX_HTTP_OK
        && ngx_http_vibe_scan_answer(ask->pool, call, NGX_HTTP_VIBE_JSON_ALL,
                                     &root)
           == NGX_OK)
    {
        rows = ngx_http_vibe_json_get(root, "rows");
    }

    if (rows == NULL || rows->type != NGX_HTTP_VIBE_JSON_ARRAY) {
        vs->retry = ngx_current_msec
                    + ngx_http_vibe_couch_backoff(++vs->failures,
                                                  NGX_HTTP_VIBE_VIEWS_FIRST,
                                                  NGX_HTTP_VIBE_VIEWS_LAST);
        return;
    }

    vs->failures = 0;
    vs->loaded = 1;

    ngx_str_null(&since);

    ngx_http_vibe_views_match();
    ngx_http_vibe_views_pointers(rows, &since);
    ngx_http_vibe_views_poll(&since);
    ngx_http_vibe_views_forget(rows);
}


/* makes the views those of the registry */

static void
ngx_http_vibe_views_match(void)
{
    ngx_uint_t                 i;
    ngx_queue_t               *q;
    ngx_http_vibe_feed_t      *feed;
    ngx_http_vibe_view_t      *v;
    ngx_http_vibe_views_t     *vs;
    ngx_http_vibe_registry_t  *registry;

    vs = &ngx_http_vibe_views;

    ngx_http_vibe_views_drop();
    ngx_http_vibe_views_untell();

    registry = ngx_http_vibe_feeds();
    feed = registry->feeds.elts;

    for (i = 0; i < registry->feeds.nelts; i++) {

        v = NULL;

        for (q = ngx_queue_head(&vs->queue);
             q != ngx_queue_sentinel(&vs->queue);
             q = ngx_queue_next(q))
        {
            v = ngx_queue_data(q, ngx_http_vibe_view_t, queue);

            if (ngx_http_vibe_same(&v->feed.name, &feed[i].name)) {
                break;
            }

            v = NULL;
        }

        if (v == NULL) {
            v = ngx_http_vibe_views_add(&feed[i]);
        }

        if (v != NULL) {
            ngx_http_vibe_views_interval(v, feed[i].interval);
            ngx_http_vibe_views_tell(v, 0);
        }
    }
}


/* a shorter one does not wait for the end of the longer one */

static void
ngx_http_vibe_views_interval(ngx_http_vibe_view_t *v, ngx_msec_t interval)
{
    ngx_http_vibe_views_due_t *due = v->data;

    if (interval < v->feed.interval
        && (ngx_msec_int_t) (due->due - ngx_current_msec)
           > (ngx_msec_int_t) interval)
    {
        due->due = ngx_current_msec + interval;
    }

    ngx_http_vibe_view_interval(v, interval);
}


/* ends those that are not registered, or not as they were */

static void
ngx_http_vibe_views_drop(void)
{
    ngx_queue_t            *q, *next;
    ngx_http_vibe_feed_t   *feed;
    ngx_http_vibe_view_t   *v;
    ngx_http_vibe_views_t  *vs;

    vs = &ngx_http_vibe_views;

    for (q = ngx_queue_head(&vs->queue);
         q != ngx_queue_sentinel(&vs->queue);
         q = next)
    {
        next = ngx_queue_next(q);
        v = ngx_queue_data(q, ngx_http_vibe_view_t, queue);

        feed = ngx_http_vibe_registry_find(ngx_http_vibe_feeds(),
                                           &v->feed.collection);

        if (feed != NULL
            && ngx_http_vibe_same(&feed->name, &v->feed.name)
            && ngx_http_vibe_same(&feed->hash, &v->feed.hash))
        {
            continue;
        }

        if (v->running) {
            vs->running--;
        }

        ngx_queue_remove(q);
        ngx_http_vibe_view_end(v);
    }
}


/* vibe_status shows those that are registered */

static void
ngx_http_vibe_views_untell(void)
{
    ngx_str_t                   name;
    ngx_uint_t                  i, k;
    ngx_array_t                 feeds;
    ngx_http_vibe_feed_t       *feed;
    ngx_http_vibe_views_t      *vs;
    ngx_http_vibe_registry_t   *registry;
    ngx_http_vibe_zone_feed_t  *told;

    vs = &ngx_http_vibe_views;

    if (ngx_array_init(&feeds, vs->ask.pool, 4,
                       sizeof(ngx_http_vibe_zone_feed_t))
        != NGX_OK
        || ngx_http_vibe_zone_feeds(vs->vmcf->zone, &feeds) != NGX_OK)
    {
        vs->loaded = 0;
        return;
    }

    told = feeds.elts;

    registry = ngx_http_vibe_feeds();
    feed = registry->feeds.elts;

    for (i = 0; i < feeds.nelts; i++) {

        name.data = told[i].name;
        name.len = ngx_strlen(told[i].name);

        for (k = 0; k < registry->feeds.nelts; k++) {
            if (ngx_http_vibe_same(&feed[k].name, &name)) {
                break;
            }
        }

        if (k == registry->feeds.nelts) {
            ngx_http_vibe_zone_feed_drop(vs->vmcf->zone, &name);
        }
    }
}


static ngx_http_vibe_view_t *
ngx_http_vibe_views_add(ngx_http_vibe_feed_t *feed)
{
    ngx_http_vibe_view_t       *v;
    ngx_http_vibe_views_t      *vs;
    ngx_http_vibe_views_due_t  *due;

    vs = &ngx_http_vibe_views;

    v = ngx_http_vibe_view_create(vs->vmcf, feed);

    if (v == NULL) {
        vs->loaded = 0;
        return NULL;
    }

    due = ngx_pcalloc(v->pool, sizeof(ngx_http_vibe_views_due_t));

    if (due == NULL) {
        vs->loaded = 0;
        ngx_http_vibe_view_end(v);
        return NULL;
    }

    due->due = ngx_current_msec;

    v->data = due;
    v->catch_up = ngx_http_vibe_views_catch_up;
    v->ended = ngx_http_vibe_views_ended;

    ngx_queue_insert_tail(&vs->queue, &v->queue);

    return v;
}


/* "since": the oldest sequence that a run has begun from */

static void
ngx_http_vibe_views_pointers(ngx_http_vibe_json_t *rows, ngx_str_t *since)
{
    uint64_t                  oldest;
    ngx_int_t                 rc;
    ngx_queue_t              *q;
    ngx_http_vibe_view_t     *v;
    ngx_http_vibe_json_t     *row, *doc, *rev;
    ngx_http_vibe_pointer_t   pointer;

    oldest = (uint64_t) -1;

    for (q = ngx_queue_head(&ngx_http_vibe_views.queue);
         q != ngx_queue_sentinel(&ngx_http_vibe_views.queue);
         q = ngx_queue_next(q))
    {
        v = ngx_queue_data(q, ngx_http_vibe_view_t, queue);

        if (!v->running) {
            ngx_http_vibe_view_load(v, NULL);
        }
    }

    for (row = rows->child; row; row = row->next) {

        v = ngx_http_vibe_views_of_pointer(ngx_http_vibe_json_get(row, "id"));
        doc = ngx_http_vibe_json_get(row, "doc");

        if (v == NULL || v->running || doc == NULL) {
            continue;
        }

        if (ngx_http_vibe_copy_newer_format(doc)) {
            ngx_log_error(NGX_LOG_ERR, ngx_cycle->log, 0,
                          "the pointer of \"%V\" has the format of a newer "
                          "version: the feed is left alone", &v->feed.name);

            ngx_queue_remove(&v->queue);
            ngx_http_vibe_view_end(v);
            continue;
        }

        rc = ngx_http_vibe_pointer_read(ngx_http_vibe_views.ask.pool, doc,
                                        &pointer);

        if (rc == NGX_ERROR) {
            ngx_http_vibe_views.loaded = 0;
            continue;
        }

        if (rc == NGX_DECLINED) {
            ngx_log_error(NGX_LOG_ERR, ngx_cycle->log, 0,
                          "the pointer of \"%V\" cannot be understood and is "
                          "written anew", &v->feed.name);

            ngx_memzero(&pointer, sizeof(ngx_http_vibe_pointer_t));

            rev = ngx_http_vibe_json_get(doc, "_rev");

            if (rev != NULL) {
                pointer.rev = rev->string;
            }
        }

        ngx_http_vibe_view_load(v, &pointer);

        if (pointer.last_seq.len && pointer.as_of < oldest) {
            oldest = pointer.as_of;
            *since = pointer.last_seq;
        }
    }
}


static ngx_http_vibe_view_t *
ngx_http_vibe_views_of_pointer(ngx_http_vibe_json_t *id)
{
    size_t                 len;
    ngx_str_t              name;
    ngx_queue_t           *q;
    ngx_http_vibe_view_t  *v;

    len = sizeof(NGX_HTTP_VIBE_POINTER_PREFIX) - 1;

    if (id == NULL || id->string.len < len) {
        return NULL;
    }

    name.data = id->string.data + len;
    name.len = id->string.len - len;

    for (q = ngx_queue_head(&ngx_http_vibe_views.queue);
         q != ngx_queue_sentinel(&ngx_http_vibe_views.queue);
         q = ngx_queue_next(q))
    {
        v = ngx_queue_data(q, ngx_http_vibe_view_t, queue);

        if (ngx_http_vibe_same(&v->feed.name, &name)) {
            return v;
        }
    }

    return NULL;
}


/*
 * What nobody keeps up to date may not be read again: the pointer of a feed
 * that is not registered any more.
 */

static void
ngx_http_vibe_views_forget(ngx_http_vibe_json_t *rows)
{
    ngx_uint_t                 n;
    ngx_http_vibe_json_t      *row, *id, *rev;
    ngx_http_vibe_views_t     *vs;
    ngx_http_vibe_json_out_t   out;

    vs = &ngx_http_vibe_views;
    n = 0;

    ngx_http_vibe_json_out_init(&out, vs->ask.pool);
    ngx_http_vibe_json_put_text(&out, "{\"docs\":[");

    for (row = rows->child; row; row = row->next) {

        id = ngx_http_vibe_json_get(row, "id");
        rev = ngx_http_vibe_json_get(ngx_http_vibe_json_get(row, "value"),
                                     "rev");

        if (rev == NULL
            || ngx_http_vibe_views_of_pointer(id) != NULL
            || ngx_http_vibe_copy_newer_format(
                                         ngx_http_vibe_json_get(row, "doc")))
        {
            continue;
        }

        if (n++) {
            ngx_http_vibe_json_put_text(&out, ",");
        }

        ngx_http_vibe_json_put_text(&out, "{\"_id\":");
        ngx_http_vibe_json_put_str(&out, &id->raw);
        ngx_http_vibe_json_put_text(&out, ",\"_rev\":");
        ngx_http_vibe_json_put_str(&out, &rev->raw);
        ngx_http_vibe_json_put_text(&out, ",\"_deleted\":true}");
    }

    ngx_http_vibe_json_put_text(&out, "]}");

    if (n == 0) {
        return;
    }

    vs->busy = 1;

    ngx_http_vibe_ask(&vs->ask, NGX_HTTP_POST, &ngx_http_vibe_views_state,
                      "/_bulk_docs", &out, ngx_http_vibe_views_forgotten);
}


static void
ngx_http_vibe_views_forgotten(ngx_http_vibe_ask_t *ask,
    ngx_http_vibe_call_t *call)
{
    ngx_http_vibe_views_t *vs = ask->data;

    vs->busy = 0;

    if (call->status != NGX_HTTP_CREATED) {
        vs->loaded = 0;
        vs->retry = ngx_current_msec + NGX_HTTP_VIBE_VIEWS_FIRST;
    }
}


/* the changes are read while there is a feed that needs them */

static void
ngx_http_vibe_views_poll(ngx_str_t *since)
{
    ngx_http_vibe_views_t *vs = &ngx_http_vibe_views;

    if (ngx_queue_empty(&vs->queue)) {

        if (vs->polling) {
            vs->polling = 0;
            ngx_http_vibe_poll_end(&vs->poll);
        }

        return;
    }

    if (vs->polling) {
        return;
    }

    if (ngx_http_vibe_poll_init(&vs->poll, vs->vmcf->zone) != NGX_OK) {
        vs->loaded = 0;
        return;
    }

    vs->polling = 1;

    if (since->len) {
        ngx_http_vibe_poll_since(&vs->poll, since);
    }
}


static void
ngx_http_vibe_views_reset(void)
{
    ngx_queue_t  *q;

    for (q = ngx_queue_head(&ngx_http_vibe_views.queue);
         q != ngx_queue_sentinel(&ngx_http_vibe_views.queue);
         q = ngx_queue_next(q))
    {
        ngx_http_vibe_view_reset(ngx_queue_data(q, ngx_http_vibe_view_t,
                                                queue));
    }
}


/* it begins from now: what came before is not known */

static void
ngx_http_vibe_views_begun(void)
{
    ngx_queue_t                *q;
    ngx_http_vibe_view_t       *v;
    ngx_http_vibe_views_due_t  *due;

    for (q = ngx_queue_head(&ngx_http_vibe_views.queue);
         q != ngx_queue_sentinel(&ngx_http_vibe_views.queue);
         q = ngx_queue_next(q))
    {
        v = ngx_queue_data(q, ngx_http_vibe_view_t, queue);
        due = v->data;

        ngx_http_vibe_view_missed(v);

        if (!v->running && !v->failed) {
            due->due = ngx_current_msec;
        }
    }
}


static void
ngx_http_vibe_views_gone(void)
{
    ngx_queue_t           *q;
    ngx_http_vibe_view_t  *v;

    ngx_http_vibe_views_reset();

    for (q = ngx_queue_head(&ngx_http_vibe_views.queue);
         q != ngx_queue_sentinel(&ngx_http_vibe_views.queue);
         q = ngx_queue_next(q))
    {
        v = ngx_queue_data(q, ngx_http_vibe_view_t, queue);

        if (v->catching) {
            ngx_http_vibe_view_failed(v, NULL,
                                      "the changes of global are not there");
        }
    }
}


static void
ngx_http_vibe_views_caught(void)
{
    ngx_queue_t            *q, *next;
    ngx_http_vibe_views_t  *vs;

    vs = &ngx_http_vibe_views;

    for (q = ngx_queue_head(&vs->queue);
         q != ngx_queue_sentinel(&vs->queue);
         q = next)
    {
        next = ngx_queue_next(q);
        ngx_http_vibe_view_caught(ngx_queue_data(q, ngx_http_vibe_view_t,
                                                 queue),
                                  &vs->poll.seq);
    }
}


static void
ngx_http_vibe_views_catch_up(ngx_http_vibe_view_t *v)
{
    ngx_http_vibe_poll_now(&ngx_http_vibe_views.poll);
}


/*
 * Without a collection it may be of any.  A stub says nothing: a copy or a
 * tombstone will follow.
 */

static void
ngx_http_vibe_views_change(ngx_http_vibe_json_t *change)
{
    ngx_uint_t             public, ours;
    ngx_queue_t           *q;
    ngx_http_vibe_json_t  *id, *doc, *collection, *access;
    ngx_http_vibe_view_t  *v;

    id = ngx_http_vibe_json_get(change, "id");
    doc = ngx_http_vibe_json_get(change, "doc");
    access = ngx_http_vibe_json_get(doc, "vibe_access");

    if (id == NULL
        || id->type != NGX_HTTP_VIBE_JSON_STRING
        || id->string.len == 0
        || id->string.data[0] == '_'
        || ngx_http_vibe_json_is_string(access, "none"))
    {
        return;
    }

    public = ngx_http_vibe_json_is_string(access, "public");
    collection = ngx_http_vibe_json_get(doc, "collection");

    for (q = ngx_queue_head(&ngx_http_vibe_views.queue);
         q != ngx_queue_sentinel(&ngx_http_vibe_views.queue);
         q = ngx_queue_next(q))
    {
        v = ngx_queue_data(q, ngx_http_vibe_view_t, queue);

        ours = (collection == NULL
                || ngx_http_vibe_same(&collection->string,
                                      &v->feed.collection));

        if (ours) {
            ngx_http_vibe_views_changed(v, doc);
        }

        if (!public || (!ours && ngx_http_vibe_views_moved(doc))) {
            ngx_http_vibe_view_withdraw(v, &id->string);
        }
    }
}


/* 1 if its document may have been in another collection before */

static ngx_uint_t
ngx_http_vibe_views_moved(ngx_http_vibe_json_t *doc)
{
    ngx_http_vibe_json_t  *rev;

    rev = ngx_http_vibe_json_get(doc, "vibe_rev");

    return rev == NULL
           || rev->string.len < 2
           || ngx_strncmp(rev->string.data, "1-", 2) != 0;
}


/* the database that a copy, or what is left of one, is from has changed */

static void
ngx_http_vibe_views_changed(ngx_http_vibe_view_t *v, ngx_http_vibe_json_t *doc)
{
    ngx_str_t              did;
    ngx_http_vibe_json_t  *db;

    db = ngx_http_vibe_json_get(doc, "vibe_db");

    /* nor is it anybody's of before another vibe_db_prefix */

    if (db == NULL
        || db->type != NGX_HTTP_VIBE_JSON_STRING
        || ngx_http_vibe_check_named(ngx_http_vibe_views.vmcf,
                                     ngx_http_vibe_views.poll.ask.pool,
                                     &db->string, &did)
           == NGX_ABORT)
    {
        ngx_http_vibe_view_reset(v);
        return;
    }

    ngx_http_vibe_view_changed(v, &db->string);
}


/* begins what is due; milliseconds until the next one is */

static ngx_msec_t
ngx_http_vibe_views_runs(void)
{
    ngx_msec_t                  wait;
    ngx_queue_t                *q, *next;
    ngx_http_vibe_view_t       *v;
    ngx_http_vibe_views_t      *vs;
    ngx_http_vibe_zone_feed_t   told;
    ngx_http_vibe_views_due_t  *due;

    vs = &ngx_http_vibe_views;
    wait = NGX_HTTP_VIBE_VIEWS_TICK;

    for (q = ngx_queue_head(&vs->queue);
         q != ngx_queue_sentinel(&vs->queue);
         q = next)
    {
        next = ngx_queue_next(q);

        v = ngx_queue_data(q, ngx_http_vibe_view_t, queue);
        due = v->data;

        if (v->running) {

            if (v->catching
                && vs->poll.failures >= NGX_HTTP_VIBE_VIEWS_TRIES)
            {
                ngx_http_vibe_view_failed(v, NULL,
                                      "the changes of global cannot be read");
            }

            continue;
        }

        if ((ngx_msec_int_t) (due->due - ngx_current_msec) > 0
            && ngx_http_vibe_zone_feed(vs->vmcf->zone, &v->feed.name, &told)
            && told.wanted != told.served)
        {
            due->due = ngx_current_msec;
        }

        if ((ngx_msec_int_t) (due->due - ngx_current_msec) > 0) {
            wait = ngx_min(wait, due->due - ngx_current_msec);
            continue;
        }

        if (vs->running < NGX_HTTP_VIBE_VIEWS_RUNS) {

            /* behind all others, which may be due, too */

            ngx_queue_remove(q);
            ngx_queue_insert_tail(&vs->queue, q);

            ngx_http_vibe_views_run(v);
        }
    }

    return wait;
}


/* the interval is from start to start, a twentieth more or less */

static void
ngx_http_vibe_views_run(ngx_http_vibe_view_t *v)
{
    ngx_msec_t                  interval;
    ngx_http_vibe_zone_feed_t   told;
    ngx_http_vibe_views_due_t  *due;

    due = v->data;
    interval = v->feed.interval;

    due->due = ngx_current_msec + interval - interval / 20
               + (ngx_msec_t) ngx_random() % (interval / 10 + 1);

    due->wanted = 0;

    if (ngx_http_vibe_zone_feed(ngx_http_vibe_views.vmcf->zone,
                                &v->feed.name, &told))
    {
        due->wanted = told.wanted;
    }

    ngx_http_vibe_views.running++;

    ngx_http_vibe_view_run(v);
    ngx_http_vibe_views_tell(v, 0);
}


static void
ngx_http_vibe_views_ended(ngx_http_vibe_view_t *v)
{
    ngx_msec_t                  retry;
    ngx_http_vibe_views_t      *vs;
    ngx_http_vibe_views_due_t  *due;

    vs = &ngx_http_vibe_views;
    due = v->data;

    vs->running--;

    if (v->lost) {
        vs->loaded = 0;
    }

    if (v->failed || v->broken || v->again) {

        retry = ngx_current_msec
                + ngx_http_vibe_couch_backoff(++due->failures,
                                              NGX_HTTP_VIBE_VIEWS_FIRST,
                                              NGX_HTTP_VIBE_VIEWS_LAST);

        if ((ngx_msec_int_t) (due->due - retry) > 0
            || (ngx_msec_int_t) (due->due - ngx_current_msec) <= 0)
        {
            due->due = retry;
        }

    } else {
        due->failures = 0;
    }

    ngx_http_vibe_views_tell(v, 1);
}


/* what vibe_status shows of it */

static void
ngx_http_vibe_views_tell(ngx_http_vibe_view_t *v, ngx_uint_t ended)
{
    uint64_t                    now;
    ngx_time_t                 *tp;
    ngx_http_vibe_zone_t       *zone;
    ngx_http_vibe_zone_feed_t   told;
    ngx_http_vibe_views_due_t  *due;

    due = v->data;
    zone = ngx_http_vibe_views.vmcf->zone;

    if (!ngx_http_vibe_zone_feed(zone, &v->feed.name, &told)) {
        ngx_memzero(&told, sizeof(ngx_http_vibe_zone_feed_t));
        ngx_memcpy(told.name, v->feed.name.data, v->feed.name.len);
    }

    tp = ngx_timeofday();
    now = (uint64_t) tp->sec * 1000 + tp->msec;

    told.running = v->running;
    told.next = now;

    if ((ngx_msec_int_t) (due->due - ngx_current_msec) > 0) {
        told.next += due->due - ngx_current_msec;
    }

    if (ended) {
        told.rows = v->rows;
        told.began = v->began;
        told.took = v->took;
        told.databases = v->asked;
        told.changed = v->changed;
        told.full = v->full_run;
        told.served = due->wanted;

        if (v->failed) {
            told.failed++;

        } else {
            told.runs++;
        }

        ngx_memcpy(told.error, v->error, sizeof(told.error));
    }

    ngx_http_vibe_zone_feed_set(zone, &told);
}
