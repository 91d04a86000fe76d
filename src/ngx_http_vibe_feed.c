
#include "ngx_http_vibe_feed.h"
#include "ngx_http_vibe_answer.h"
#include "ngx_http_vibe_lease.h"


typedef struct {
    ngx_http_vibe_feed_now_t     now;      /* without a pointer: zeroed */
    ngx_str_t                    name;
    ngx_pool_t                  *pool;     /* that all this is from */
    ngx_uint_t                   refs;     /* requests, and the cache */
    ngx_msec_t                   asking;   /* when a newer one was asked for */
    unsigned                     odd:1;    /* there is one: not understood */
} ngx_http_vibe_feed_entry_t;


typedef struct {
    ngx_http_vibe_feed_t        *feed;
    ngx_msec_t                   asked;
    ngx_http_vibe_feed_pt        next;
    void                        *data;
} ngx_http_vibe_feed_ask_t;


static ngx_uint_t ngx_http_vibe_feed_usable(ngx_http_vibe_feed_entry_t *e);
static ngx_int_t ngx_http_vibe_feed_got(ngx_http_request_t *r,
    ngx_http_vibe_call_t *call);
static ngx_http_vibe_feed_entry_t *ngx_http_vibe_feed_create(
    ngx_http_vibe_feed_ask_t *a, ngx_http_vibe_call_t *call);
static ngx_int_t ngx_http_vibe_feed_read(ngx_http_vibe_feed_entry_t *e,
    ngx_str_t *answer);
static ngx_http_vibe_feed_entry_t **ngx_http_vibe_feed_slot(ngx_str_t *name);
static void ngx_http_vibe_feed_keep(ngx_http_vibe_feed_entry_t *e);
static ngx_int_t ngx_http_vibe_feed_give(ngx_http_request_t *r,
    ngx_http_vibe_feed_entry_t *e, ngx_http_vibe_feed_t *feed,
    ngx_http_vibe_feed_pt next, void *data);
static ngx_uint_t ngx_http_vibe_feed_served(ngx_http_vibe_feed_t *feed,
    ngx_http_vibe_pointer_t *pointer);
static void ngx_http_vibe_feed_release(void *data);


static ngx_str_t  ngx_http_vibe_feed_state = ngx_string(NGX_HTTP_VIBE_STATE_DB);

static ngx_http_vibe_feed_entry_t
    *ngx_http_vibe_feed_cache[NGX_HTTP_VIBE_FEEDS_MAX];


ngx_http_vibe_feed_t *
ngx_http_vibe_feed_dup(ngx_pool_t *pool, ngx_http_vibe_feed_t *feed)
{
    ngx_uint_t             i;
    ngx_http_vibe_feed_t  *dup;

    dup = ngx_pcalloc(pool, sizeof(ngx_http_vibe_feed_t));
    if (dup == NULL) {
        return NULL;
    }

    dup->collection.len = feed->collection.len;
    dup->collection.data = ngx_pstrdup(pool, &feed->collection);

    dup->name.len = feed->name.len;
    dup->name.data = ngx_pstrdup(pool, &feed->name);

    if (dup->collection.data == NULL || dup->name.data == NULL) {
        return NULL;
    }

    for (i = 0; i < 2; i++) {
        dup->dbs[i].len = feed->dbs[i].len;

        dup->dbs[i].data = ngx_pstrdup(pool, &feed->dbs[i]);
        if (dup->dbs[i].data == NULL) {
            return NULL;
        }
    }

    return dup;
}


ngx_int_t
ngx_http_vibe_feed_ask(ngx_http_request_t *r, ngx_http_vibe_feed_t *feed,
    ngx_uint_t fresh, ngx_http_vibe_feed_pt next, void *data)
{
    u_char                      *path;
    ngx_http_vibe_feed_ask_t    *a;
    ngx_http_vibe_feed_entry_t  *e;

    e = *ngx_http_vibe_feed_slot(&feed->name);

    if (e != NULL && !ngx_http_vibe_same(&e->name, &feed->name)) {
        e = NULL;
    }

    if (e != NULL && !fresh && ngx_http_vibe_feed_usable(e)) {
        return ngx_http_vibe_feed_give(r, e, feed, next, data);
    }

    a = ngx_palloc(r->pool, sizeof(ngx_http_vibe_feed_ask_t));
    if (a == NULL) {
        return NGX_ERROR;
    }

    path = ngx_http_vibe_pointer_path(r->pool, &feed->name);
    if (path == NULL) {
        return NGX_ERROR;
    }

    a->feed = feed;
    a->asked = ngx_current_msec;
    a->next = next;
    a->data = data;

    if (e != NULL) {
        e->asking = ngx_current_msec;
    }

    return ngx_http_vibe_request(r, NGX_HTTP_GET, &ngx_http_vibe_feed_state,
                                 (const char *) path, NULL,
                                 ngx_http_vibe_feed_got, a);
}


/*
 * In the second half of its time one read asks for the next pointer while the
 * others go on with this one, so that under load nobody waits in a row.
 */

static ngx_uint_t
ngx_http_vibe_feed_usable(ngx_http_vibe_feed_entry_t *e)
{
    ngx_msec_t  age;

    age = ngx_current_msec - e->now.asked;

    if (age < NGX_HTTP_VIBE_POINTER_VALID / 2) {
        return 1;
    }

    return age < NGX_HTTP_VIBE_POINTER_VALID
           && ngx_current_msec - e->asking < NGX_HTTP_VIBE_POINTER_VALID / 2;
}


static ngx_int_t
ngx_http_vibe_feed_got(ngx_http_request_t *r, ngx_http_vibe_call_t *call)
{
    ngx_http_vibe_feed_ask_t *a = call->data;

    ngx_http_vibe_feed_entry_t  *e;

    if (call->status != NGX_HTTP_OK && call->status != NGX_HTTP_NOT_FOUND) {
        return ngx_http_vibe_couch_failed(r, call);
    }

    e = ngx_http_vibe_feed_create(a, call);
    if (e == NULL) {
        return NGX_ERROR;
    }

    ngx_http_vibe_feed_keep(e);

    return ngx_http_vibe_feed_give(r, e, a->feed, a->next, a->data);
}


static ngx_http_vibe_feed_entry_t *
ngx_http_vibe_feed_create(ngx_http_vibe_feed_ask_t *a,
    ngx_http_vibe_call_t *call)
{
    ngx_int_t                    rc;
    ngx_pool_t                  *pool;
    ngx_http_vibe_feed_entry_t  *e;

    pool = ngx_create_pool(NGX_DEFAULT_POOL_SIZE, ngx_cycle->log);
    if (pool == NULL) {
        return NULL;
    }

    e = ngx_pcalloc(pool, sizeof(ngx_http_vibe_feed_entry_t));
    if (e == NULL) {
        goto failed;
    }

    e->pool = pool;
    e->now.asked = a->asked;
    e->asking = a->asked;

    e->name.len = a->feed->name.len;

    e->name.data = ngx_pstrdup(pool, &a->feed->name);
    if (e->name.data == NULL) {
        goto failed;
    }

    if (call->status == NGX_HTTP_NOT_FOUND) {
        return e;
    }

    rc = ngx_http_vibe_feed_read(e, &call->answer);

    if (rc == NGX_ERROR) {
        goto failed;
    }

    if (rc == NGX_DECLINED) {
        ngx_memzero(&e->now.pointer, sizeof(ngx_http_vibe_pointer_t));
        e->odd = 1;
    }

    return e;

failed:

    ngx_destroy_pool(pool);

    return NULL;
}


/* NGX_DECLINED: it is no pointer that is understood here */

static ngx_int_t
ngx_http_vibe_feed_read(ngx_http_vibe_feed_entry_t *e, ngx_str_t *answer)
{
    ngx_int_t              rc;
    ngx_str_t              text;
    const char            *reason;
    ngx_http_vibe_json_t  *doc;

    if (answer->len > NGX_HTTP_VIBE_FEED_POINTER_MAX) {
        return NGX_DECLINED;
    }

    text.len = answer->len;

    text.data = ngx_pstrdup(e->pool, answer);
    if (text.data == NULL) {
        return NGX_ERROR;
    }

    rc = ngx_http_vibe_json_scan(e->pool, &text, NGX_HTTP_VIBE_JSON_ALL, &doc,
                                 &reason);
    if (rc != NGX_OK) {
        return rc;
    }

    return ngx_http_vibe_pointer_read(e->pool, doc, &e->now.pointer);
}


/* where the entry of this name is, or else belongs */

static ngx_http_vibe_feed_entry_t **
ngx_http_vibe_feed_slot(ngx_str_t *name)
{
    ngx_uint_t                    i;
    ngx_http_vibe_feed_entry_t  **slot, **oldest;

    slot = ngx_http_vibe_feed_cache;
    oldest = slot;

    for (i = 0; i < NGX_HTTP_VIBE_FEEDS_MAX; i++, slot++) {

        if (*slot == NULL) {
            return slot;
        }

        if (ngx_http_vibe_same(&(*slot)->name, name)) {
            return slot;
        }

        if ((ngx_msec_int_t) ((*slot)->now.asked - (*oldest)->now.asked) < 0) {
            oldest = slot;
        }
    }

    /* names that are registered no more */

    return oldest;
}


/* unless one that was asked for later has come already */

static void
ngx_http_vibe_feed_keep(ngx_http_vibe_feed_entry_t *e)
{
    ngx_uint_t                    known;
    ngx_http_vibe_feed_entry_t  **slot, *old;

    slot = ngx_http_vibe_feed_slot(&e->name);

    old = *slot;
    known = (old != NULL && ngx_http_vibe_same(&old->name, &e->name));

    if (known
        && (ngx_msec_int_t) (e->now.asked - old->now.asked) < 0)
    {
        return;
    }

    if (e->odd && !(known && old->odd)) {
        ngx_log_error(NGX_LOG_ERR, ngx_cycle->log, 0,
                      "the pointer of feed \"%V\" is not understood",
                      &e->name);
    }

    e->refs++;
    *slot = e;

    if (old != NULL) {
        ngx_http_vibe_feed_release(old);
    }
}


static ngx_int_t
ngx_http_vibe_feed_give(ngx_http_request_t *r, ngx_http_vibe_feed_entry_t *e,
    ngx_http_vibe_feed_t *feed, ngx_http_vibe_feed_pt next, void *data)
{
    ngx_pool_cleanup_t  *cln;

    e->refs++;

    cln = ngx_pool_cleanup_add(r->pool, 0);
    if (cln == NULL) {
        ngx_http_vibe_feed_release(e);
        return NGX_ERROR;
    }

    cln->handler = ngx_http_vibe_feed_release;
    cln->data = e;

    if (!ngx_http_vibe_feed_served(feed, &e->now.pointer)) {
        return ngx_http_vibe_error_text(r, NGX_HTTP_SERVICE_UNAVAILABLE,
                                        "This feed is being gathered.");
    }

    return next(r, data, &e->now);
}


/*
 * No read selector stands between a reader and what is found there, so no
 * other database is read, whatever the pointer says.
 */

static ngx_uint_t
ngx_http_vibe_feed_served(ngx_http_vibe_feed_t *feed,
    ngx_http_vibe_pointer_t *pointer)
{
    return ngx_http_vibe_same(&pointer->collection, &feed->collection)
           && (ngx_http_vibe_same(&pointer->db, &feed->dbs[0])
               || ngx_http_vibe_same(&pointer->db, &feed->dbs[1]));
}


static void
ngx_http_vibe_feed_release(void *data)
{
    ngx_http_vibe_feed_entry_t *e = data;

    if (--e->refs == 0) {
        ngx_destroy_pool(e->pool);
    }
}
