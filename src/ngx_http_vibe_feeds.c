
#include <ngx_md5.h>

#include "ngx_http_vibe_feeds.h"
#include "ngx_http_vibe_ask.h"
#include "ngx_http_vibe_file.h"
#include "ngx_http_vibe_follow.h"


/* seconds within which an mtime may not tell two writes apart */
#define NGX_HTTP_VIBE_FEEDS_SETTLE  2

/* before what has failed is tried again, first and last, milliseconds */
#define NGX_HTTP_VIBE_FEEDS_FIRST   500
#define NGX_HTTP_VIBE_FEEDS_LAST    10000


typedef struct {
    ngx_http_vibe_main_conf_t   *vmcf;
    ngx_http_vibe_registry_t    *registry;   /* of now */
    ngx_pool_t                  *pool;       /* that it is from; NULL: it is
                                                the configuration's */
    void                       (*changed)(void);

    ngx_event_t                  event;      /* to look, to load */
    ngx_connection_t             dumb;       /* for nginx's debug log */

    /* the file as it was read last */

    time_t                       mtime;
    off_t                        size;
    ngx_file_uniq_t              uniq;
    u_char                       digest[16];
    unsigned                     known:1;    /* it was read */
    unsigned                     settled:1;

    /* the database */

    ngx_http_vibe_follow_t       follow;
    ngx_http_vibe_ask_t          ask;
    ngx_uint_t                   failures;
    unsigned                     loading:1;
    unsigned                     again:1;    /* it changed meanwhile */
} ngx_http_vibe_feeds_t;


/* what is wrong, gathered */

typedef struct {
    ngx_str_t                    str;
    u_char                       text[NGX_HTTP_VIBE_ZONE_REASON];
} ngx_http_vibe_feeds_reason_t;


static void ngx_http_vibe_feeds_replace(ngx_pool_t *pool,
    ngx_http_vibe_registry_t *registry, ngx_http_vibe_feeds_reason_t *reason);
static ngx_uint_t ngx_http_vibe_feeds_differ(ngx_http_vibe_registry_t *a,
    ngx_http_vibe_registry_t *b);
static ngx_uint_t ngx_http_vibe_feeds_tell(
    ngx_http_vibe_feeds_reason_t *reason);
static void ngx_http_vibe_feeds_because(ngx_http_vibe_feeds_reason_t *reason,
    const char *fmt, ...);
static ngx_http_vibe_registry_t *ngx_http_vibe_feeds_registry(
    ngx_pool_t *pool, ngx_http_vibe_main_conf_t *vmcf);

static void ngx_http_vibe_feeds_look(ngx_event_t *ev);
static ngx_uint_t ngx_http_vibe_feeds_same_file(ngx_file_info_t *fi);
static ngx_int_t ngx_http_vibe_feeds_load_file(ngx_pool_t *pool);
static ngx_int_t ngx_http_vibe_feeds_parse(ngx_pool_t *pool, ngx_str_t *text);

static ngx_int_t ngx_http_vibe_feeds_follow(ngx_http_vibe_main_conf_t *vmcf);
static void ngx_http_vibe_feeds_begun(ngx_http_vibe_follow_t *follow);
static void ngx_http_vibe_feeds_change(ngx_http_vibe_follow_t *follow,
    ngx_http_vibe_json_t *line);
static void ngx_http_vibe_feeds_ended(ngx_http_vibe_follow_t *follow,
    ngx_uint_t status);
static void ngx_http_vibe_feeds_due(ngx_msec_t delay);
static void ngx_http_vibe_feeds_load(ngx_event_t *ev);
static void ngx_http_vibe_feeds_loaded(ngx_http_vibe_ask_t *ask,
    ngx_http_vibe_call_t *call);
static ngx_int_t ngx_http_vibe_feeds_rows(ngx_http_vibe_call_t *call);
static ngx_int_t ngx_http_vibe_feeds_documents(ngx_pool_t *pool,
    ngx_http_vibe_json_t *rows);
static ngx_uint_t ngx_http_vibe_feeds_pass(ngx_str_t *id,
    ngx_http_vibe_json_t *doc);
static ngx_int_t ngx_http_vibe_feeds_document(ngx_pool_t *pool,
    ngx_http_vibe_registry_t *registry, ngx_str_t *id,
    ngx_http_vibe_json_t *doc, ngx_http_vibe_feeds_reason_t *reason);
static ngx_int_t ngx_http_vibe_feeds_keep(ngx_pool_t *pool,
    ngx_http_vibe_registry_t *registry, ngx_http_vibe_feed_t *feed);
static ngx_http_vibe_feed_t *ngx_http_vibe_feeds_of(ngx_str_t *document);
static void ngx_http_vibe_feeds_failed(ngx_uint_t status);


/* where there is no vibe_registry */
static ngx_http_vibe_registry_t  ngx_http_vibe_feeds_none;

static ngx_http_vibe_feeds_t     ngx_http_vibe_feeds_state;


ngx_int_t
ngx_http_vibe_feeds_read(ngx_conf_t *cf, ngx_http_vibe_main_conf_t *vmcf)
{
    ngx_int_t                  rc;
    ngx_str_t                  text, *file;
    ngx_err_t                  err;
    const char                *failed;
    ngx_file_info_t            fi;
    ngx_http_vibe_registry_t  *registry;

    file = &vmcf->registry_file;

    if (ngx_http_vibe_file_read(cf->temp_pool, file,
                                NGX_HTTP_VIBE_REGISTRY_MAX, &text, &fi,
                                &failed, &err)
        != NGX_OK)
    {
        ngx_log_error(NGX_LOG_EMERG, cf->log, err,
                      "could not read the registry \"%V\": %s", file, failed);
        return NGX_ERROR;
    }

    registry = ngx_http_vibe_feeds_registry(cf->pool, vmcf);
    if (registry == NULL) {
        return NGX_ERROR;
    }

    rc = ngx_http_vibe_registry_parse(cf->pool, &text, registry);

    if (rc == NGX_DECLINED) {
        ngx_log_error(NGX_LOG_EMERG, cf->log, 0, "%V in %V:%ui",
                      &registry->reason, file, registry->line);
    }

    if (rc != NGX_OK) {
        return NGX_ERROR;
    }

    vmcf->registry = registry;

    return NGX_OK;
}


ngx_int_t
ngx_http_vibe_feeds_init(ngx_http_vibe_main_conf_t *vmcf)
{
    ngx_http_vibe_feeds_t *f = &ngx_http_vibe_feeds_state;

    ngx_memzero(f, sizeof(ngx_http_vibe_feeds_t));

    f->vmcf = vmcf;
    f->registry = vmcf->registry ? vmcf->registry : &ngx_http_vibe_feeds_none;

    f->dumb.fd = (ngx_socket_t) -1;

    f->event.data = &f->dumb;
    f->event.log = ngx_cycle->log;
    f->event.cancelable = 1;

    if (vmcf->registry_db.len) {
        f->event.handler = ngx_http_vibe_feeds_load;

        return ngx_http_vibe_feeds_follow(vmcf);
    }

    f->event.handler = ngx_http_vibe_feeds_look;

    /* it may have changed since the configuration was read */

    ngx_add_timer(&f->event, 1);

    return NGX_OK;
}


void
ngx_http_vibe_feeds_exit(void)
{
    ngx_http_vibe_feeds_t *f = &ngx_http_vibe_feeds_state;

    if (f->vmcf == NULL) {
        return;
    }

    if (f->event.timer_set) {
        ngx_del_timer(&f->event);
    }

    if (f->vmcf->registry_db.len) {
        ngx_http_vibe_follow_end(&f->follow);
        ngx_http_vibe_ask_end(&f->ask);
    }

    if (f->pool != NULL) {
        ngx_destroy_pool(f->pool);
    }

    ngx_memzero(f, sizeof(ngx_http_vibe_feeds_t));
}


ngx_http_vibe_registry_t *
ngx_http_vibe_feeds(void)
{
    ngx_http_vibe_feeds_t *f = &ngx_http_vibe_feeds_state;

    return f->registry ? f->registry : &ngx_http_vibe_feeds_none;
}


void
ngx_http_vibe_feeds_watch(void (*changed)(void))
{
    ngx_http_vibe_feeds_state.changed = changed;
}


/* "registry" is from "pool"; "reason" is what was wrong beside it, if it was */

static void
ngx_http_vibe_feeds_replace(ngx_pool_t *pool,
    ngx_http_vibe_registry_t *registry, ngx_http_vibe_feeds_reason_t *reason)
{
    ngx_uint_t              differ, mended;
    ngx_http_vibe_feeds_t  *f;

    f = &ngx_http_vibe_feeds_state;

    differ = ngx_http_vibe_feeds_differ(registry, f->registry);

    if (f->pool != NULL) {
        ngx_destroy_pool(f->pool);
    }

    f->pool = pool;
    f->registry = registry;

    mended = ngx_http_vibe_feeds_tell(reason) && reason->str.len == 0;

    if (differ || mended) {
        ngx_log_error(NGX_LOG_NOTICE, ngx_cycle->log, 0,
                      "registry: %ui feed%s", registry->feeds.nelts,
                      registry->feeds.nelts == 1 ? "" : "s");
    }

    if (differ && f->changed != NULL) {
        f->changed();
    }
}


static ngx_uint_t
ngx_http_vibe_feeds_differ(ngx_http_vibe_registry_t *a,
    ngx_http_vibe_registry_t *b)
{
    ngx_uint_t             i;
    ngx_http_vibe_feed_t  *feed, *other;

    if (a->feeds.nelts != b->feeds.nelts) {
        return 1;
    }

    feed = a->feeds.elts;

    for (i = 0; i < a->feeds.nelts; i++) {

        other = ngx_http_vibe_registry_find(b, &feed[i].collection);

        if (other == NULL
            || !ngx_http_vibe_same(&feed[i].name, &other->name)
            || !ngx_http_vibe_same(&feed[i].hash, &other->hash)
            || feed[i].interval != other->interval)
        {
            return 1;
        }
    }

    return 0;
}


/*
 * Each worker finds it out, and the first to tell it logs it: 1 if it was
 * this one.
 */

static ngx_uint_t
ngx_http_vibe_feeds_tell(ngx_http_vibe_feeds_reason_t *reason)
{
    ngx_str_t                  *name;
    const char                 *scheme;
    ngx_http_vibe_main_conf_t  *vmcf;

    vmcf = ngx_http_vibe_feeds_state.vmcf;

    if (!ngx_http_vibe_zone_registry(vmcf->zone, &reason->str)) {
        return 0;
    }

    if (reason->str.len) {
        scheme = vmcf->registry_db.len ? "couchdb:" : "";
        name = vmcf->registry_db.len ? &vmcf->registry_db
                                     : &vmcf->registry_file;

        ngx_log_error(NGX_LOG_ERR, ngx_cycle->log, 0,
                      "registry \"%s%V\": %V; what was good before is kept",
                      scheme, name, &reason->str);
    }

    return 1;
}


/* adds to what is wrong; what is quoted may hold anything */

static void
ngx_http_vibe_feeds_because(ngx_http_vibe_feeds_reason_t *reason,
    const char *fmt, ...)
{
    u_char   *p, *last;
    va_list   args;

    reason->str.data = reason->text;

    p = reason->text + reason->str.len;
    last = reason->text + NGX_HTTP_VIBE_ZONE_REASON;

    if (reason->str.len) {
        p = ngx_slprintf(p, last, "; ");
    }

    va_start(args, fmt);
    last = ngx_vslprintf(p, last, fmt, args);
    va_end(args);

    for ( /* void */ ; p < last; p++) {
        if (*p < 0x20 || *p >= 0x7f) {
            *p = '?';
        }
    }

    reason->str.len = last - reason->text;
}


static ngx_http_vibe_registry_t *
ngx_http_vibe_feeds_registry(ngx_pool_t *pool, ngx_http_vibe_main_conf_t *vmcf)
{
    ngx_http_vibe_registry_t  *registry;

    registry = ngx_pcalloc(pool, sizeof(ngx_http_vibe_registry_t));
    if (registry == NULL) {
        return NULL;
    }

    registry->prefixes = &vmcf->prefixes;

    return registry;
}


/* the file */

static void
ngx_http_vibe_feeds_look(ngx_event_t *ev)
{
    ngx_pool_t             *pool;
    ngx_file_info_t         fi;
    ngx_http_vibe_feeds_t  *f;

    f = &ngx_http_vibe_feeds_state;

    if (ngx_exiting || ngx_terminate || ngx_quit) {
        return;
    }

    ngx_add_timer(ev, NGX_HTTP_VIBE_FEEDS_LOOK);

    if (ngx_file_info(f->vmcf->registry_file.data, &fi) != NGX_FILE_ERROR
        && ngx_http_vibe_feeds_same_file(&fi))
    {
        return;
    }

    pool = ngx_create_pool(NGX_DEFAULT_POOL_SIZE, ngx_cycle->log);
    if (pool == NULL) {
        return;
    }

    if (ngx_http_vibe_feeds_load_file(pool) != NGX_OK) {
        ngx_destroy_pool(pool);
    }
}


static ngx_uint_t
ngx_http_vibe_feeds_same_file(ngx_file_info_t *fi)
{
    ngx_http_vibe_feeds_t *f = &ngx_http_vibe_feeds_state;

    return f->known
           && f->settled
           && ngx_file_mtime(fi) == f->mtime
           && ngx_file_size(fi) == f->size
           && ngx_file_uniq(fi) == f->uniq;
}


/* NGX_OK: the pool was taken */

static ngx_int_t
ngx_http_vibe_feeds_load_file(ngx_pool_t *pool)
{
    u_char                         digest[16], *p;
    u_char                         text[NGX_HTTP_VIBE_ZONE_REASON];
    ngx_int_t                      rc;
    ngx_str_t                      json;
    ngx_err_t                      err;
    ngx_md5_t                      md5;
    ngx_uint_t                     known;
    const char                    *failed;
    ngx_file_info_t                fi;
    ngx_http_vibe_feeds_t         *f;
    ngx_http_vibe_feeds_reason_t   reason;

    f = &ngx_http_vibe_feeds_state;

    known = f->known;
    f->known = 0;

    if (ngx_http_vibe_file_read(pool, &f->vmcf->registry_file,
                                NGX_HTTP_VIBE_REGISTRY_MAX, &json, &fi,
                                &failed, &err)
        != NGX_OK)
    {
        p = err ? ngx_strerror(err, text, sizeof(text)) : text;

        ngx_memzero(&reason, sizeof(ngx_http_vibe_feeds_reason_t));
        ngx_http_vibe_feeds_because(&reason, "%s%s%*s", failed,
                                    err ? ": " : "", (size_t) (p - text),
                                    text);
        (void) ngx_http_vibe_feeds_tell(&reason);

        return NGX_DECLINED;
    }

    ngx_md5_init(&md5);
    ngx_md5_update(&md5, json.data, json.len);
    ngx_md5_final(digest, &md5);

    if (known && ngx_memcmp(digest, f->digest, sizeof(digest)) == 0) {
        rc = NGX_DECLINED;

    } else {
        rc = ngx_http_vibe_feeds_parse(pool, &json);
        if (rc == NGX_ERROR) {
            return NGX_ERROR;
        }
    }

    f->known = 1;
    f->mtime = ngx_file_mtime(&fi);
    f->size = ngx_file_size(&fi);
    f->uniq = ngx_file_uniq(&fi);

    ngx_memcpy(f->digest, digest, sizeof(digest));

    /* a file that was written just now may be written again unnoticed */

    f->settled = ngx_abs(ngx_time() - f->mtime) > NGX_HTTP_VIBE_FEEDS_SETTLE;

    return rc;
}


static ngx_int_t
ngx_http_vibe_feeds_parse(ngx_pool_t *pool, ngx_str_t *text)
{
    ngx_int_t                      rc;
    ngx_http_vibe_registry_t      *registry;
    ngx_http_vibe_feeds_reason_t   reason;

    registry = ngx_http_vibe_feeds_registry(pool,
                                            ngx_http_vibe_feeds_state.vmcf);
    if (registry == NULL) {
        return NGX_ERROR;
    }

    ngx_memzero(&reason, sizeof(ngx_http_vibe_feeds_reason_t));

    rc = ngx_http_vibe_registry_parse(pool, text, registry);

    if (rc == NGX_OK) {
        ngx_http_vibe_feeds_replace(pool, registry, &reason);
    }

    if (rc == NGX_DECLINED) {
        ngx_http_vibe_feeds_because(&reason, "line %ui: %V", registry->line,
                                    &registry->reason);
        (void) ngx_http_vibe_feeds_tell(&reason);
    }

    return rc;
}


/* the database */

static ngx_int_t
ngx_http_vibe_feeds_follow(ngx_http_vibe_main_conf_t *vmcf)
{
    u_char                  *p;
    ngx_str_t                escaped;
    ngx_http_vibe_feeds_t   *f;
    ngx_http_vibe_follow_t  *follow;

    f = &ngx_http_vibe_feeds_state;
    follow = &f->follow;

    if (ngx_http_vibe_ask_init(&f->ask, vmcf->zone, f) != NGX_OK
        || ngx_http_vibe_escape_segment(ngx_cycle->pool, &vmcf->registry_db,
                                        &escaped)
           != NGX_OK)
    {
        return NGX_ERROR;
    }

    p = ngx_pnalloc(ngx_cycle->pool, sizeof("//_changes?") + escaped.len);
    if (p == NULL) {
        return NGX_ERROR;
    }

    *ngx_sprintf(p, "/%V/_changes?", &escaped) = '\0';

    follow->path = (const char *) p;
    follow->now = "now";
    follow->line = ngx_http_vibe_feeds_change;
    follow->begun = ngx_http_vibe_feeds_begun;
    follow->ended = ngx_http_vibe_feeds_ended;

    return ngx_http_vibe_follow(follow, vmcf->zone);
}


static void
ngx_http_vibe_feeds_begun(ngx_http_vibe_follow_t *follow)
{
    ngx_http_vibe_feeds_due(1);
}


static void
ngx_http_vibe_feeds_change(ngx_http_vibe_follow_t *follow,
    ngx_http_vibe_json_t *line)
{
    ngx_http_vibe_feeds_due(NGX_HTTP_VIBE_FEEDS_DELAY);
}


/*
 * All is read anew when it begins again: it may be another database then.  A
 * feed that was only cut off is nothing to tell of.
 */

static void
ngx_http_vibe_feeds_ended(ngx_http_vibe_follow_t *follow, ngx_uint_t status)
{
    ngx_http_vibe_follow_since(follow, NULL);

    if (status == NGX_HTTP_NOT_FOUND || follow->failures > 1) {
        ngx_http_vibe_feeds_failed(status);
    }
}


static void
ngx_http_vibe_feeds_due(ngx_msec_t delay)
{
    ngx_http_vibe_feeds_t *f = &ngx_http_vibe_feeds_state;

    if (ngx_exiting || ngx_terminate || ngx_quit) {
        return;
    }

    if (f->loading) {
        f->again = 1;
        return;
    }

    /* changes that never cease do not put it off for ever */

    if (f->event.timer_set
        && (ngx_msec_int_t) (f->event.timer.key - ngx_current_msec)
           <= (ngx_msec_int_t) delay)
    {
        return;
    }

    ngx_add_timer(&f->event, delay);
}


static void
ngx_http_vibe_feeds_load(ngx_event_t *ev)
{
    ngx_http_vibe_feeds_t *f = &ngx_http_vibe_feeds_state;

    f->loading = 1;
    f->again = 0;

    ngx_http_vibe_ask(&f->ask, NGX_HTTP_GET, &f->vmcf->registry_db,
                      "/_all_docs?include_docs=true", NULL,
                      ngx_http_vibe_feeds_loaded);
}


static void
ngx_http_vibe_feeds_loaded(ngx_http_vibe_ask_t *ask,
    ngx_http_vibe_call_t *call)
{
    ngx_http_vibe_feeds_t *f = &ngx_http_vibe_feeds_state;

    f->loading = 0;

    if (call->status == NGX_HTTP_OK
        && ngx_http_vibe_feeds_rows(call) == NGX_OK)
    {
        f->failures = 0;

        if (f->again) {
            ngx_http_vibe_feeds_due(NGX_HTTP_VIBE_FEEDS_DELAY);
        }

        return;
    }

    if (call->status != NGX_HTTP_OK) {
        ngx_http_vibe_feeds_failed(call->status);
    }

    ngx_http_vibe_feeds_due(ngx_http_vibe_couch_backoff(++f->failures,
                                                NGX_HTTP_VIBE_FEEDS_FIRST,
                                                NGX_HTTP_VIBE_FEEDS_LAST));
}


static ngx_int_t
ngx_http_vibe_feeds_rows(ngx_http_vibe_call_t *call)
{
    ngx_int_t               rc;
    ngx_pool_t             *pool;
    ngx_http_vibe_json_t   *root, *rows;
    ngx_http_vibe_feeds_t  *f;

    f = &ngx_http_vibe_feeds_state;

    rc = ngx_http_vibe_scan_answer(f->ask.pool, call, NGX_HTTP_VIBE_JSON_ALL,
                                   &root);
    if (rc != NGX_OK) {
        return rc;
    }

    rows = ngx_http_vibe_json_get(root, "rows");

    if (rows == NULL || rows->type != NGX_HTTP_VIBE_JSON_ARRAY) {
        call->status = NGX_HTTP_BAD_GATEWAY;
        return NGX_DECLINED;
    }

    pool = ngx_create_pool(NGX_DEFAULT_POOL_SIZE, ngx_cycle->log);
    if (pool == NULL) {
        return NGX_ERROR;
    }

    if (ngx_http_vibe_feeds_documents(pool, rows) != NGX_OK) {
        ngx_destroy_pool(pool);
        return NGX_ERROR;
    }

    return NGX_OK;
}


/*
 * What has not changed comes first, what is new last: an edit that does not go
 * with the others is the one that is refused.
 */

static ngx_int_t
ngx_http_vibe_feeds_documents(ngx_pool_t *pool, ngx_http_vibe_json_t *rows)
{
    ngx_uint_t                     pass;
    ngx_http_vibe_json_t          *row, *id, *doc;
    ngx_http_vibe_registry_t      *registry;
    ngx_http_vibe_feeds_reason_t   reason;

    ngx_memzero(&reason, sizeof(ngx_http_vibe_feeds_reason_t));

    registry = ngx_http_vibe_feeds_registry(pool,
                                            ngx_http_vibe_feeds_state.vmcf);
    if (registry == NULL) {
        return NGX_ERROR;
    }

    if (ngx_array_init(&registry->feeds, pool, 4, sizeof(ngx_http_vibe_feed_t))
        != NGX_OK)
    {
        return NGX_ERROR;
    }

    for (pass = 0; pass < 3; pass++) {
        for (row = rows->child; row; row = row->next) {

            id = ngx_http_vibe_json_get(row, "id");
            doc = ngx_http_vibe_json_get(row, "doc");

            if (id == NULL
                || doc == NULL
                || doc->type != NGX_HTTP_VIBE_JSON_OBJECT
                || (id->string.len > 8
                    && ngx_strncmp(id->string.data, "_design/", 8) == 0)
                || ngx_http_vibe_feeds_pass(&id->string, doc) != pass)
            {
                continue;
            }

            if (ngx_http_vibe_feeds_document(pool, registry, &id->string, doc,
                                             &reason)
                != NGX_OK)
            {
                return NGX_ERROR;
            }
        }
    }

    ngx_http_vibe_feeds_replace(pool, registry, &reason);

    return NGX_OK;
}


/* 0: it is registered as it is, 1: as it was before, 2: it is not */

static ngx_uint_t
ngx_http_vibe_feeds_pass(ngx_str_t *id, ngx_http_vibe_json_t *doc)
{
    ngx_http_vibe_feed_t  *feed;
    ngx_http_vibe_json_t  *rev;

    feed = ngx_http_vibe_feeds_of(id);

    if (feed == NULL) {
        return 2;
    }

    rev = ngx_http_vibe_json_get(doc, "_rev");

    return rev == NULL || !ngx_http_vibe_same(&feed->rev, &rev->string);
}


/* adds its feed, or where it is bad the one that it had before */

static ngx_int_t
ngx_http_vibe_feeds_document(ngx_pool_t *pool,
    ngx_http_vibe_registry_t *registry, ngx_str_t *id,
    ngx_http_vibe_json_t *doc, ngx_http_vibe_feeds_reason_t *reason)
{
    ngx_int_t              rc;
    ngx_str_t              shown;
    ngx_http_vibe_feed_t  *feed;

    rc = ngx_http_vibe_registry_add(pool, doc, id, registry);

    if (rc != NGX_DECLINED) {
        return rc;
    }

    shown.data = id->data;
    shown.len = ngx_min(id->len, NGX_HTTP_VIBE_FEED_NAME_MAX);

    ngx_http_vibe_feeds_because(reason, "document \"%V\": %V", &shown,
                                &registry->reason);

    feed = ngx_http_vibe_feeds_of(id);
    if (feed == NULL) {
        return NGX_OK;
    }

    return ngx_http_vibe_feeds_keep(pool, registry, feed);
}


/* another document may have taken its place meanwhile: then it is gone */

static ngx_int_t
ngx_http_vibe_feeds_keep(ngx_pool_t *pool, ngx_http_vibe_registry_t *registry,
    ngx_http_vibe_feed_t *feed)
{
    ngx_int_t              rc;
    const char            *unused;
    ngx_http_vibe_json_t  *doc;

    rc = ngx_http_vibe_json_scan(ngx_http_vibe_feeds_state.ask.pool,
                                 &feed->source, NGX_HTTP_VIBE_JSON_ALL, &doc,
                                 &unused);
    if (rc == NGX_OK) {
        rc = ngx_http_vibe_registry_add(pool, doc, &feed->document, registry);
    }

    return (rc == NGX_ERROR) ? NGX_ERROR : NGX_OK;
}


/* the feed of now that is of this document, or NULL */

static ngx_http_vibe_feed_t *
ngx_http_vibe_feeds_of(ngx_str_t *document)
{
    ngx_uint_t             i;
    ngx_http_vibe_feed_t  *feed;
    ngx_http_vibe_feeds_t *f;

    f = &ngx_http_vibe_feeds_state;

    feed = f->registry->feeds.elts;

    for (i = 0; i < f->registry->feeds.nelts; i++) {
        if (ngx_http_vibe_same(&feed[i].document, document)) {
            return &feed[i];
        }
    }

    return NULL;
}


static void
ngx_http_vibe_feeds_failed(ngx_uint_t status)
{
    ngx_http_vibe_feeds_reason_t  reason;

    ngx_memzero(&reason, sizeof(ngx_http_vibe_feeds_reason_t));

    if (status == NGX_HTTP_NOT_FOUND) {
        ngx_http_vibe_feeds_because(&reason, "there is no such database");

    } else {
        ngx_http_vibe_feeds_because(&reason, "couchdb answered %ui", status);
    }

    (void) ngx_http_vibe_feeds_tell(&reason);
}
