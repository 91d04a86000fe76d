
#include "ngx_http_vibe_zone.h"


static ngx_http_vibe_zone_feed_t *ngx_http_vibe_zone_feed_find(
    ngx_http_vibe_shared_t *shared, ngx_str_t *name);
static ngx_http_vibe_zone_feed_t *ngx_http_vibe_zone_feed_free(
    ngx_http_vibe_shared_t *shared);
static void ngx_http_vibe_zone_feed_put(ngx_http_vibe_zone_feed_t *to,
    ngx_http_vibe_zone_feed_t *from);


static ngx_http_vibe_zone_feed_t *
ngx_http_vibe_zone_feed_find(ngx_http_vibe_shared_t *shared, ngx_str_t *name)
{
    ngx_uint_t                  i;
    ngx_http_vibe_zone_feed_t  *f;

    for (i = 0; i < NGX_HTTP_VIBE_ZONE_FEEDS; i++) {
        f = &shared->feeds[i];

        if (f->name[0] != '\0'
            && ngx_strlen(f->name) == name->len
            && ngx_memcmp(f->name, name->data, name->len) == 0)
        {
            return f;
        }
    }

    return NULL;
}


static ngx_http_vibe_zone_feed_t *
ngx_http_vibe_zone_feed_free(ngx_http_vibe_shared_t *shared)
{
    ngx_uint_t  i;

    for (i = 0; i < NGX_HTTP_VIBE_ZONE_FEEDS; i++) {
        if (shared->feeds[i].name[0] == '\0') {

            /* nobody asked for runs of what will be here */

            shared->feeds[i].wanted = 0;
            return &shared->feeds[i];
        }
    }

    return NULL;
}


/* a worker may be killed at any instant: half a feed must not be found */

static void
ngx_http_vibe_zone_feed_put(ngx_http_vibe_zone_feed_t *to,
    ngx_http_vibe_zone_feed_t *from)
{
    ngx_http_vibe_zone_feed_t  feed;

    feed = *from;

    feed.name[0] = '\0';
    feed.name[NGX_HTTP_VIBE_ZONE_NAME - 1] = '\0';
    feed.error[NGX_HTTP_VIBE_ZONE_ERROR - 1] = '\0';
    feed.wanted = to->wanted;
    feed.served = ngx_min(from->served, to->wanted);

    to->name[0] = '\0';
    ngx_memory_barrier();

    *to = feed;
    ngx_memory_barrier();

    to->name[0] = from->name[0];
}


ngx_uint_t
ngx_http_vibe_zone_feed(ngx_http_vibe_zone_t *zone, ngx_str_t *name,
    ngx_http_vibe_zone_feed_t *feed)
{
    ngx_http_vibe_zone_feed_t  *f;

    if (ngx_http_vibe_zone_is_none(zone)) {
        return 0;
    }

    ngx_http_vibe_zone_lock(zone);

    f = ngx_http_vibe_zone_feed_find(zone->shared, name);

    if (f != NULL) {
        *feed = *f;
    }

    ngx_http_vibe_zone_unlock(zone);

    return f != NULL;
}


ngx_int_t
ngx_http_vibe_zone_feed_set(ngx_http_vibe_zone_t *zone,
    ngx_http_vibe_zone_feed_t *feed)
{
    ngx_str_t                   name;
    ngx_http_vibe_zone_feed_t  *f;

    if (ngx_http_vibe_zone_is_none(zone)) {
        return NGX_OK;
    }

    name.data = feed->name;
    name.len = ngx_strlen(feed->name);

    ngx_http_vibe_zone_lock(zone);

    f = ngx_http_vibe_zone_feed_find(zone->shared, &name);

    if (f == NULL) {
        f = ngx_http_vibe_zone_feed_free(zone->shared);
    }

    if (f != NULL) {
        ngx_http_vibe_zone_feed_put(f, feed);
    }

    ngx_http_vibe_zone_unlock(zone);

    return (f != NULL) ? NGX_OK : NGX_DECLINED;
}


ngx_uint_t
ngx_http_vibe_zone_feed_want(ngx_http_vibe_zone_t *zone, ngx_str_t *name)
{
    ngx_uint_t                  n;
    ngx_http_vibe_zone_feed_t  *f;

    if (ngx_http_vibe_zone_is_none(zone)) {
        return 0;
    }

    ngx_http_vibe_zone_lock(zone);

    f = ngx_http_vibe_zone_feed_find(zone->shared, name);

    n = (f != NULL) ? ++f->wanted : 0;

    ngx_http_vibe_zone_unlock(zone);

    return n;
}


void
ngx_http_vibe_zone_feed_drop(ngx_http_vibe_zone_t *zone, ngx_str_t *name)
{
    ngx_http_vibe_zone_feed_t  *f;

    if (ngx_http_vibe_zone_is_none(zone)) {
        return;
    }

    ngx_http_vibe_zone_lock(zone);

    f = ngx_http_vibe_zone_feed_find(zone->shared, name);

    if (f != NULL) {
        f->name[0] = '\0';
    }

    ngx_http_vibe_zone_unlock(zone);
}


ngx_int_t
ngx_http_vibe_zone_feeds(ngx_http_vibe_zone_t *zone, ngx_array_t *feeds)
{
    ngx_uint_t                  i, n;
    ngx_http_vibe_zone_feed_t  *to, *from;

    if (ngx_http_vibe_zone_is_none(zone)) {
        return NGX_OK;
    }

    /* room for all: nothing is allocated while others wait for the lock */

    to = ngx_array_push_n(feeds, NGX_HTTP_VIBE_ZONE_FEEDS);
    if (to == NULL) {
        return NGX_ERROR;
    }

    from = zone->shared->feeds;
    n = 0;

    ngx_http_vibe_zone_lock(zone);

    for (i = 0; i < NGX_HTTP_VIBE_ZONE_FEEDS; i++) {
        if (from[i].name[0] != '\0') {
            to[n++] = from[i];
        }
    }

    ngx_http_vibe_zone_unlock(zone);

    feeds->nelts -= NGX_HTTP_VIBE_ZONE_FEEDS - n;

    return NGX_OK;
}


ngx_uint_t
ngx_http_vibe_zone_registry(ngx_http_vibe_zone_t *zone, ngx_str_t *reason)
{
    u_char      text[NGX_HTTP_VIBE_ZONE_REASON];
    size_t      len;
    ngx_uint_t  news;

    if (ngx_http_vibe_zone_is_none(zone)) {
        return 0;
    }

    len = reason->len;

    if (len > NGX_HTTP_VIBE_ZONE_REASON - 1) {
        len = NGX_HTTP_VIBE_ZONE_REASON - 1;

        /* what follows a character of UTF-8 is 10xxxxxx */

        while (len && (reason->data[len] & 0xc0) == 0x80) {
            len--;
        }
    }

    ngx_memzero(text, NGX_HTTP_VIBE_ZONE_REASON);
    ngx_memcpy(text, reason->data, len);

    ngx_http_vibe_zone_lock(zone);

    news = (ngx_strcmp(zone->shared->registry, text) != 0);

    ngx_memcpy(zone->shared->registry, text, NGX_HTTP_VIBE_ZONE_REASON);

    ngx_http_vibe_zone_unlock(zone);

    return news;
}


void
ngx_http_vibe_zone_registry_error(ngx_http_vibe_zone_t *zone, u_char *reason)
{
    reason[0] = '\0';

    if (ngx_http_vibe_zone_is_none(zone)) {
        return;
    }

    ngx_http_vibe_zone_lock(zone);

    ngx_memcpy(reason, zone->shared->registry, NGX_HTTP_VIBE_ZONE_REASON);

    ngx_http_vibe_zone_unlock(zone);
}
