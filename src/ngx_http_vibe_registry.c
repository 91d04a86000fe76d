
#include <ngx_config.h>
#include <ngx_core.h>
#include <ngx_sha1.h>

#include "ngx_http_vibe_registry.h"
#include "ngx_http_vibe_id.h"
#include "ngx_http_vibe_selector.h"


#define NGX_HTTP_VIBE_REGISTRY_REASON   255    /* bytes */
#define NGX_HTTP_VIBE_REGISTRY_QUOTE    64     /* of them, what is quoted */
#define NGX_HTTP_VIBE_REGISTRY_MEMBERS  6      /* in one object */


typedef struct {
    ngx_pool_t                *pool;
    ngx_http_vibe_registry_t  *registry;
    ngx_str_t                 *document;       /* NULL: of a file */
    ngx_uint_t                 n;              /* of the feed, from 1 on */

    ngx_str_t                  name;           /* to call it by, or empty */
    ngx_http_vibe_feed_t       feed;           /* as far as it was read */
    ngx_http_vibe_selector_t   query;          /* the same */

    u_char                    *at;             /* what was refused */
} ngx_http_vibe_registry_ctx_t;


typedef struct {
    ngx_str_t    name;
    ngx_int_t  (*read)(ngx_http_vibe_registry_ctx_t *ctx,
                       ngx_http_vibe_json_t *node);
    ngx_uint_t   required;
} ngx_http_vibe_registry_member_t;


typedef struct {
    ngx_str_t    name;
    uint64_t     msec;
} ngx_http_vibe_registry_unit_t;


static ngx_int_t ngx_http_vibe_registry_read(
    ngx_http_vibe_registry_ctx_t *ctx, ngx_pool_t *temp, ngx_str_t *text);
static ngx_int_t ngx_http_vibe_registry_feed(
    ngx_http_vibe_registry_ctx_t *ctx, ngx_http_vibe_json_t *object);
static ngx_int_t ngx_http_vibe_registry_members(
    ngx_http_vibe_registry_ctx_t *ctx, ngx_http_vibe_json_t *object,
    ngx_http_vibe_registry_member_t *known);
static ngx_int_t ngx_http_vibe_registry_id(ngx_http_vibe_registry_ctx_t *ctx,
    ngx_http_vibe_json_t *node);
static ngx_int_t ngx_http_vibe_registry_rev(ngx_http_vibe_registry_ctx_t *ctx,
    ngx_http_vibe_json_t *node);
static ngx_int_t ngx_http_vibe_registry_name(ngx_http_vibe_registry_ctx_t *ctx,
    ngx_http_vibe_json_t *node);
static ngx_uint_t ngx_http_vibe_registry_is_name(ngx_str_t *name);
static ngx_uint_t ngx_http_vibe_registry_is_taken(
    ngx_http_vibe_registry_ctx_t *ctx, ngx_str_t *name);
static ngx_int_t ngx_http_vibe_registry_dbs(ngx_http_vibe_registry_ctx_t *ctx,
    ngx_http_vibe_json_t *node);
static ngx_int_t ngx_http_vibe_registry_collection(
    ngx_http_vibe_registry_ctx_t *ctx, ngx_http_vibe_json_t *node);
static ngx_int_t ngx_http_vibe_registry_interval(
    ngx_http_vibe_registry_ctx_t *ctx, ngx_http_vibe_json_t *node);
static ngx_int_t ngx_http_vibe_registry_query(
    ngx_http_vibe_registry_ctx_t *ctx, ngx_http_vibe_json_t *node);
static ngx_int_t ngx_http_vibe_registry_selector(
    ngx_http_vibe_registry_ctx_t *ctx, ngx_http_vibe_json_t *node);
static ngx_int_t ngx_http_vibe_registry_fields(
    ngx_http_vibe_registry_ctx_t *ctx, ngx_http_vibe_json_t *node);
static ngx_uint_t ngx_http_vibe_registry_is_field(ngx_str_t *name);
static ngx_int_t ngx_http_vibe_registry_sort(ngx_http_vibe_registry_ctx_t *ctx,
    ngx_http_vibe_json_t *node);
static ngx_int_t ngx_http_vibe_registry_hash(
    ngx_http_vibe_registry_ctx_t *ctx);
static void ngx_http_vibe_registry_hash_str(ngx_sha1_t *sha1, ngx_str_t *str);
static void ngx_http_vibe_registry_hash_list(ngx_sha1_t *sha1,
    ngx_array_t *list);
static ngx_int_t ngx_http_vibe_registry_copy(ngx_pool_t *pool, ngx_str_t *to,
    ngx_str_t *from);
static ngx_int_t ngx_http_vibe_registry_copy_list(ngx_pool_t *pool,
    ngx_array_t *to, ngx_array_t *from);
static ngx_str_t *ngx_http_vibe_registry_cut(ngx_str_t *str);
static ngx_int_t ngx_http_vibe_registry_refuse(
    ngx_http_vibe_registry_ctx_t *ctx, u_char *at, const char *fmt, ...);


/* read in this order; the first two only of a document */

static ngx_http_vibe_registry_member_t  ngx_http_vibe_registry_of_feed[] = {
    { ngx_string("_id"), ngx_http_vibe_registry_id, 0 },
    { ngx_string("_rev"), ngx_http_vibe_registry_rev, 0 },
    { ngx_string("materializedViewName"), ngx_http_vibe_registry_name, 1 },
    { ngx_string("collectionName"), ngx_http_vibe_registry_collection, 1 },
    { ngx_string("aggregationInterval"), ngx_http_vibe_registry_interval, 1 },
    { ngx_string("query"), ngx_http_vibe_registry_query, 1 },
    { ngx_null_string, NULL, 0 }
};


static ngx_http_vibe_registry_member_t  ngx_http_vibe_registry_of_query[] = {
    { ngx_string("selector"), ngx_http_vibe_registry_selector, 1 },
    { ngx_string("fields"), ngx_http_vibe_registry_fields, 0 },
    { ngx_string("sort"), ngx_http_vibe_registry_sort, 0 },
    { ngx_null_string, NULL, 0 }
};


static ngx_http_vibe_registry_unit_t  ngx_http_vibe_registry_units[] = {
    { ngx_string("ms"), 1 },
    { ngx_string("s"), 1000 },
    { ngx_string("m"), 60 * 1000 },
    { ngx_string("h"), 3600 * 1000 },
    { ngx_string("d"), 24 * 3600 * 1000 },
    { ngx_null_string, 0 }
};


/* "vibe_state" is where the module keeps what it knows of feeds */

static ngx_str_t  ngx_http_vibe_registry_reserved[] = {
    ngx_string("global"),
    ngx_string("_global"),
    ngx_string("state"),
    ngx_string("_state"),
    ngx_null_string
};


ngx_int_t
ngx_http_vibe_registry_parse(ngx_pool_t *pool, ngx_str_t *text,
    ngx_http_vibe_registry_t *registry)
{
    u_char                        *p;
    ngx_int_t                      rc;
    ngx_pool_t                    *temp;
    ngx_http_vibe_registry_ctx_t   ctx;

    if (ngx_array_init(&registry->feeds, pool, 4, sizeof(ngx_http_vibe_feed_t))
        != NGX_OK)
    {
        return NGX_ERROR;
    }

    temp = ngx_create_pool(NGX_DEFAULT_POOL_SIZE, pool->log);
    if (temp == NULL) {
        return NGX_ERROR;
    }

    ngx_memzero(&ctx, sizeof(ngx_http_vibe_registry_ctx_t));

    ctx.pool = pool;
    ctx.registry = registry;

    rc = ngx_http_vibe_registry_read(&ctx, temp, text);

    ngx_destroy_pool(temp);

    if (rc == NGX_DECLINED) {
        registry->line = 1;

        for (p = text->data; p < ctx.at; p++) {
            registry->line += (*p == LF);
        }
    }

    return rc;
}


static ngx_int_t
ngx_http_vibe_registry_read(ngx_http_vibe_registry_ctx_t *ctx,
    ngx_pool_t *temp, ngx_str_t *text)
{
    u_char                *at;
    ngx_int_t              rc;
    const char            *reason;
    ngx_http_vibe_json_t  *root, *node;

    rc = ngx_http_vibe_json_scan_at(temp, text, NGX_HTTP_VIBE_JSON_ALL, &root,
                                    &reason, &at);
    if (rc == NGX_DECLINED) {
        return ngx_http_vibe_registry_refuse(ctx, at, "%s", reason);
    }

    if (rc != NGX_OK) {
        return rc;
    }

    if (root->type != NGX_HTTP_VIBE_JSON_ARRAY) {
        return ngx_http_vibe_registry_refuse(ctx, root->start,
                                        "a registry is an array of feeds");
    }

    for (node = root->child; node; node = node->next) {
        ctx->n++;

        rc = ngx_http_vibe_registry_feed(ctx, node);
        if (rc != NGX_OK) {
            return rc;
        }
    }

    return NGX_OK;
}


ngx_int_t
ngx_http_vibe_registry_add(ngx_pool_t *pool, ngx_http_vibe_json_t *object,
    ngx_str_t *document, ngx_http_vibe_registry_t *registry)
{
    ngx_http_vibe_registry_ctx_t  ctx;

    ngx_memzero(&ctx, sizeof(ngx_http_vibe_registry_ctx_t));

    ctx.pool = pool;
    ctx.registry = registry;
    ctx.document = document;

    return ngx_http_vibe_registry_feed(&ctx, object);
}


static ngx_int_t
ngx_http_vibe_registry_feed(ngx_http_vibe_registry_ctx_t *ctx,
    ngx_http_vibe_json_t *object)
{
    ngx_int_t              rc;
    ngx_http_vibe_feed_t  *feed;
    ngx_http_vibe_json_t  *name;

    ngx_memzero(&ctx->feed, sizeof(ngx_http_vibe_feed_t));
    ngx_memzero(&ctx->query, sizeof(ngx_http_vibe_selector_t));
    ngx_str_null(&ctx->name);

    if (object->type != NGX_HTTP_VIBE_JSON_OBJECT) {
        return ngx_http_vibe_registry_refuse(ctx, object->start,
                                             "a feed must be an object");
    }

    name = ngx_http_vibe_json_get(object, "materializedViewName");

    if (name != NULL && name->type == NGX_HTTP_VIBE_JSON_STRING) {
        ctx->name = name->string;
        (void) ngx_http_vibe_registry_cut(&ctx->name);
    }

    if (ctx->registry->feeds.nelts == NGX_HTTP_VIBE_FEEDS_MAX) {
        return ngx_http_vibe_registry_refuse(ctx, object->start,
                                             "there are more than %d feeds",
                                             NGX_HTTP_VIBE_FEEDS_MAX);
    }

    rc = ngx_http_vibe_registry_members(ctx, object,
                                        ngx_http_vibe_registry_of_feed
                                        + (ctx->document ? 0 : 2));
    if (rc != NGX_OK) {
        return rc;
    }

    if (ngx_http_vibe_registry_hash(ctx) != NGX_OK) {
        return NGX_ERROR;
    }

    if (ctx->document != NULL
        && (ngx_http_vibe_registry_copy(ctx->pool, &ctx->feed.document,
                                        ctx->document)
            != NGX_OK
            || ngx_http_vibe_registry_copy(ctx->pool, &ctx->feed.source,
                                           &object->raw)
               != NGX_OK))
    {
        return NGX_ERROR;
    }

    feed = ngx_array_push(&ctx->registry->feeds);
    if (feed == NULL) {
        return NGX_ERROR;
    }

    *feed = ctx->feed;

    return NGX_OK;
}


/* each known member at most once, and none but those */

static ngx_int_t
ngx_http_vibe_registry_members(ngx_http_vibe_registry_ctx_t *ctx,
    ngx_http_vibe_json_t *object, ngx_http_vibe_registry_member_t *known)
{
    ngx_int_t              rc;
    ngx_uint_t             i;
    ngx_http_vibe_json_t  *node, *found[NGX_HTTP_VIBE_REGISTRY_MEMBERS];

    ngx_memzero(found, sizeof(found));

    for (node = object->child; node; node = node->next) {

        for (i = 0; known[i].name.len; i++) {
            if (ngx_http_vibe_same(&known[i].name, &node->name)) {
                break;
            }
        }

        if (known[i].name.len == 0) {
            return ngx_http_vibe_registry_refuse(ctx, node->start,
                                     "unknown member \"%V\"",
                                     ngx_http_vibe_registry_cut(&node->name));
        }

        if (found[i] != NULL) {
            return ngx_http_vibe_registry_refuse(ctx, node->start,
                                                 "repeated member \"%V\"",
                                                 &known[i].name);
        }

        found[i] = node;
    }

    for (i = 0; known[i].name.len; i++) {

        if (found[i] != NULL) {
            rc = known[i].read(ctx, found[i]);
            if (rc != NGX_OK) {
                return rc;
            }

        } else if (known[i].required) {
            return ngx_http_vibe_registry_refuse(ctx, object->start,
                                                 "no member \"%V\"",
                                                 &known[i].name);
        }
    }

    return NGX_OK;
}


/* the caller has said which document it is */

static ngx_int_t
ngx_http_vibe_registry_id(ngx_http_vibe_registry_ctx_t *ctx,
    ngx_http_vibe_json_t *node)
{
    return NGX_OK;
}


static ngx_int_t
ngx_http_vibe_registry_rev(ngx_http_vibe_registry_ctx_t *ctx,
    ngx_http_vibe_json_t *node)
{
    return ngx_http_vibe_registry_copy(ctx->pool, &ctx->feed.rev,
                                       &node->string);
}


static ngx_int_t
ngx_http_vibe_registry_name(ngx_http_vibe_registry_ctx_t *ctx,
    ngx_http_vibe_json_t *node)
{
    ngx_str_t  *name;

    if (node->type != NGX_HTTP_VIBE_JSON_STRING) {
        return ngx_http_vibe_registry_refuse(ctx, node->raw.data,
                                  "\"materializedViewName\" must be a string");
    }

    name = &node->string;

    if (name->len > NGX_HTTP_VIBE_FEED_NAME_MAX) {
        return ngx_http_vibe_registry_refuse(ctx, node->raw.data,
                                  "its name is longer than %d bytes",
                                  NGX_HTTP_VIBE_FEED_NAME_MAX);
    }

    if (!ngx_http_vibe_registry_is_name(name)) {
        return ngx_http_vibe_registry_refuse(ctx, node->raw.data,
                                  "the name \"%V\" is not lower-case letters, "
                                  "digits, \"_\" and \"-\", as "
                                  "\"_global_posts\"", name);
    }

    if (ngx_http_vibe_registry_is_taken(ctx, name)) {
        return ngx_http_vibe_registry_refuse(ctx, node->raw.data,
                                  "the name \"%V\" is reserved", name);
    }

    if (ngx_http_vibe_registry_copy(ctx->pool, &ctx->feed.name, name)
        != NGX_OK)
    {
        return NGX_ERROR;
    }

    return ngx_http_vibe_registry_dbs(ctx, node);
}


/* _?[a-z][a-z0-9_-]* */

static ngx_uint_t
ngx_http_vibe_registry_is_name(ngx_str_t *name)
{
    u_char  *p, *last;

    p = name->data;
    last = name->data + name->len;

    if (p < last && *p == '_') {
        p++;
    }

    if (p == last || *p < 'a' || *p > 'z') {
        return 0;
    }

    for ( /* void */ ; p < last; p++) {

        if ((*p < 'a' || *p > 'z') && (*p < '0' || *p > '9')
            && *p != '_' && *p != '-')
        {
            return 0;
        }
    }

    return 1;
}


static ngx_uint_t
ngx_http_vibe_registry_is_taken(ngx_http_vibe_registry_ctx_t *ctx,
    ngx_str_t *name)
{
    ngx_str_t   *reserved, *prefix;
    ngx_uint_t   i;

    for (reserved = ngx_http_vibe_registry_reserved; reserved->len;
         reserved++)
    {
        if (ngx_http_vibe_same(reserved, name)) {
            return 1;
        }
    }

    prefix = ctx->registry->prefixes->elts;

    for (i = 0; i < ctx->registry->prefixes->nelts; i++) {

        if (name->len >= prefix[i].len
            && ngx_memcmp(name->data, prefix[i].data, prefix[i].len) == 0)
        {
            return 1;
        }
    }

    return 0;
}


/* CouchDB's own databases begin with "_", and no others */

static ngx_int_t
ngx_http_vibe_registry_dbs(ngx_http_vibe_registry_ctx_t *ctx,
    ngx_http_vibe_json_t *node)
{
    u_char                *p;
    ngx_str_t              rest, *dbs;
    ngx_uint_t             i, j;
    ngx_http_vibe_feed_t  *feed;

    rest = ctx->feed.name;

    if (rest.data[0] == '_') {
        rest.data++;
        rest.len--;
    }

    dbs = ctx->feed.dbs;

    for (i = 0; i < 2; i++) {

        p = ngx_pnalloc(ctx->pool, sizeof(NGX_HTTP_VIBE_OWN_PREFIX "-2") - 1
                                   + rest.len);
        if (p == NULL) {
            return NGX_ERROR;
        }

        dbs[i].data = p;
        dbs[i].len = ngx_sprintf(p, NGX_HTTP_VIBE_OWN_PREFIX "%V%s", &rest,
                                 i ? "-2" : "")
                     - p;
    }

    feed = ctx->registry->feeds.elts;

    for (i = 0; i < ctx->registry->feeds.nelts; i++) {
        for (j = 0; j < 4; j++) {

            if (ngx_http_vibe_same(&dbs[j / 2], &feed[i].dbs[j % 2])) {
                return ngx_http_vibe_registry_refuse(ctx, node->raw.data,
                                          "its database \"%V\" is one of feed "
                                          "\"%V\", too", &dbs[j / 2],
                                          &feed[i].name);
            }
        }
    }

    return NGX_OK;
}


static ngx_int_t
ngx_http_vibe_registry_collection(ngx_http_vibe_registry_ctx_t *ctx,
    ngx_http_vibe_json_t *node)
{
    ngx_http_vibe_feed_t  *other;

    if (node->type != NGX_HTTP_VIBE_JSON_STRING) {
        return ngx_http_vibe_registry_refuse(ctx, node->raw.data,
                                        "\"collectionName\" must be a string");
    }

    if (!ngx_http_vibe_is_collection(&node->string)) {
        return ngx_http_vibe_registry_refuse(ctx, node->raw.data,
                                   "\"%V\" cannot be a collection",
                                   ngx_http_vibe_registry_cut(&node->string));
    }

    other = ngx_http_vibe_registry_find(ctx->registry, &node->string);

    if (other != NULL) {
        return ngx_http_vibe_registry_refuse(ctx, node->raw.data,
                                    "the collection \"%V\" has the feed "
                                    "\"%V\" already", &node->string,
                                    &other->name);
    }

    return ngx_http_vibe_registry_copy(ctx->pool, &ctx->feed.collection,
                                       &node->string);
}


/* [1-9][0-9]*(ms|s|m|h|d) */

static ngx_int_t
ngx_http_vibe_registry_interval(ngx_http_vibe_registry_ctx_t *ctx,
    ngx_http_vibe_json_t *node)
{
    u_char                         *p, *last;
    uint64_t                        n;
    ngx_str_t                       unit;
    ngx_http_vibe_registry_unit_t  *u;

    if (node->type != NGX_HTTP_VIBE_JSON_STRING) {
        return ngx_http_vibe_registry_refuse(ctx, node->raw.data,
                                   "\"aggregationInterval\" must be a string");
    }

    n = 0;
    p = node->string.data;
    last = node->string.data + node->string.len;

    while (p < last && *p >= '0' && *p <= '9' && (n || *p != '0')) {

        if (n <= NGX_HTTP_VIBE_INTERVAL_MAX) {
            n = n * 10 + (*p - '0');
        }

        p++;
    }

    unit.data = p;
    unit.len = last - p;

    for (u = ngx_http_vibe_registry_units; u->name.len; u++) {
        if (ngx_http_vibe_same(&u->name, &unit)) {
            break;
        }
    }

    if (n == 0 || u->name.len == 0) {
        return ngx_http_vibe_registry_refuse(ctx, node->raw.data,
                                  "the interval \"%V\" is not a time, as "
                                  "\"500ms\", \"30s\", \"5m\", \"1h\", \"1d\"",
                                  ngx_http_vibe_registry_cut(&node->string));
    }

    if (n > NGX_HTTP_VIBE_INTERVAL_MAX / u->msec
        || n * u->msec < NGX_HTTP_VIBE_INTERVAL_MIN)
    {
        return ngx_http_vibe_registry_refuse(ctx, node->raw.data,
                                  "the interval \"%V\" is not between 100ms "
                                  "and 366d",
                                  ngx_http_vibe_registry_cut(&node->string));
    }

    ctx->feed.interval = (ngx_msec_t) (n * u->msec);

    return NGX_OK;
}


static ngx_int_t
ngx_http_vibe_registry_query(ngx_http_vibe_registry_ctx_t *ctx,
    ngx_http_vibe_json_t *node)
{
    if (node->type != NGX_HTTP_VIBE_JSON_OBJECT) {
        return ngx_http_vibe_registry_refuse(ctx, node->raw.data,
                                             "\"query\" must be an object");
    }

    if (ngx_array_init(&ctx->feed.fields, ctx->pool, 1, sizeof(ngx_str_t))
        != NGX_OK
        || ngx_array_init(&ctx->feed.sort, ctx->pool, 1, sizeof(ngx_str_t))
           != NGX_OK)
    {
        return NGX_ERROR;
    }

    return ngx_http_vibe_registry_members(ctx, node,
                                          ngx_http_vibe_registry_of_query);
}


static ngx_int_t
ngx_http_vibe_registry_selector(ngx_http_vibe_registry_ctx_t *ctx,
    ngx_http_vibe_json_t *node)
{
    ngx_int_t  rc;

    /* who writes a registry may let CouchDB work */

    ctx->query.regex = 1;
    ctx->query.at = node->raw.data;

    rc = ngx_http_vibe_selector_check(&ctx->query, ctx->pool, node);

    if (rc == NGX_DECLINED) {
        return ngx_http_vibe_registry_refuse(ctx, ctx->query.at, "%V",
                                             &ctx->query.reason);
    }

    if (rc != NGX_OK) {
        return rc;
    }

    return ngx_http_vibe_registry_copy(ctx->pool, &ctx->feed.selector,
                                       &node->raw);
}


static ngx_int_t
ngx_http_vibe_registry_fields(ngx_http_vibe_registry_ctx_t *ctx,
    ngx_http_vibe_json_t *node)
{
    ngx_int_t              rc;
    ngx_array_t           *names;
    ngx_http_vibe_json_t  *field;

    ctx->query.at = node->raw.data;

    rc = ngx_http_vibe_selector_fields(&ctx->query, ctx->pool, node, &names);

    if (rc == NGX_DECLINED) {
        return ngx_http_vibe_registry_refuse(ctx, ctx->query.at, "%V",
                                             &ctx->query.reason);
    }

    if (rc != NGX_OK) {
        return rc;
    }

    for (field = node->child; field; field = field->next) {

        if (!ngx_http_vibe_registry_is_field(&field->string)) {
            return ngx_http_vibe_registry_refuse(ctx, field->start,
                                  "rows cannot have the field \"%V\"",
                                  ngx_http_vibe_registry_cut(&field->string));
        }
    }

    return ngx_http_vibe_registry_copy_list(ctx->pool, &ctx->feed.fields,
                                            names);
}


/*
 * A part of an ACL is another ACL, and rows have no attachments.  Mango drops
 * all backslashes of a name.
 */

static ngx_uint_t
ngx_http_vibe_registry_is_field(ngx_str_t *name)
{
    size_t  i, len;
    u_char  plain[NGX_HTTP_VIBE_FIELD_LEN + 1];

    len = 0;

    for (i = 0; i < name->len && i < NGX_HTTP_VIBE_FIELD_LEN; i++) {
        if (name->data[i] != '\\') {
            plain[len++] = name->data[i];
        }
    }

    plain[len] = '\0';

    return ngx_strncmp(plain, "acl.", 4) != 0
           && ngx_strcmp(plain, "_attachments") != 0
           && ngx_strncmp(plain, "_attachments.", 13) != 0;
}


static ngx_int_t
ngx_http_vibe_registry_sort(ngx_http_vibe_registry_ctx_t *ctx,
    ngx_http_vibe_json_t *node)
{
    ngx_int_t     rc;
    ngx_array_t  *names;

    ctx->query.at = node->raw.data;

    rc = ngx_http_vibe_selector_sort(&ctx->query, ctx->pool, node, &names,
                                     &ctx->feed.descending);

    if (rc == NGX_DECLINED) {
        return ngx_http_vibe_registry_refuse(ctx, ctx->query.at, "%V",
                                             &ctx->query.reason);
    }

    if (rc != NGX_OK) {
        return rc;
    }

    return ngx_http_vibe_registry_copy_list(ctx->pool, &ctx->feed.sort,
                                            names);
}


ngx_uint_t
ngx_http_vibe_registry_holds(ngx_array_t *fields, ngx_str_t *name)
{
    ngx_str_t   *field;
    ngx_uint_t   i;

    static ngx_str_t  always[] = {
        ngx_string("_id"),
        ngx_string("collection")
    };

    if (fields->nelts == 0
        || ngx_http_vibe_same(&always[0], name)
        || ngx_http_vibe_same(&always[1], name))
    {
        return 1;
    }

    field = fields->elts;

    for (i = 0; i < fields->nelts; i++) {

        if (name->len >= field[i].len
            && ngx_memcmp(name->data, field[i].data, field[i].len) == 0
            && (name->len == field[i].len
                || name->data[field[i].len] == '.'))
        {
            return 1;
        }
    }

    return 0;
}


ngx_http_vibe_feed_t *
ngx_http_vibe_registry_find(ngx_http_vibe_registry_t *registry,
    ngx_str_t *collection)
{
    ngx_uint_t             i;
    ngx_http_vibe_feed_t  *feed;

    feed = registry->feeds.elts;

    for (i = 0; i < registry->feeds.nelts; i++) {
        if (ngx_http_vibe_same(&feed[i].collection, collection)) {
            return &feed[i];
        }
    }

    return NULL;
}


static ngx_int_t
ngx_http_vibe_registry_hash(ngx_http_vibe_registry_ctx_t *ctx)
{
    u_char                 digest[20];
    ngx_sha1_t             sha1;
    ngx_http_vibe_feed_t  *feed;

    feed = &ctx->feed;

    ngx_sha1_init(&sha1);

    ngx_http_vibe_registry_hash_str(&sha1, &feed->collection);
    ngx_http_vibe_registry_hash_str(&sha1, &feed->selector);
    ngx_http_vibe_registry_hash_list(&sha1, &feed->fields);
    ngx_http_vibe_registry_hash_list(&sha1, &feed->sort);
    ngx_sha1_update(&sha1, feed->descending ? "d" : "a", 1);

    ngx_sha1_final(digest, &sha1);

    feed->hash.data = ngx_pnalloc(ctx->pool, NGX_HTTP_VIBE_FEED_HASH);
    if (feed->hash.data == NULL) {
        return NGX_ERROR;
    }

    feed->hash.len = ngx_hex_dump(feed->hash.data, digest,
                                  NGX_HTTP_VIBE_FEED_HASH / 2)
                     - feed->hash.data;

    return NGX_OK;
}


/* with its length, so that what follows cannot be taken for a part of it */

static void
ngx_http_vibe_registry_hash_str(ngx_sha1_t *sha1, ngx_str_t *str)
{
    u_char  len[NGX_SIZE_T_LEN + 1];

    ngx_sha1_update(sha1, len, ngx_sprintf(len, "%uz:", str->len) - len);
    ngx_sha1_update(sha1, str->data, str->len);
}


static void
ngx_http_vibe_registry_hash_list(ngx_sha1_t *sha1, ngx_array_t *list)
{
    u_char       n[NGX_INT_T_LEN + 1];
    ngx_str_t   *str;
    ngx_uint_t   i;

    ngx_sha1_update(sha1, n, ngx_sprintf(n, "%ui:", list->nelts) - n);

    str = list->elts;

    for (i = 0; i < list->nelts; i++) {
        ngx_http_vibe_registry_hash_str(sha1, &str[i]);
    }
}


static ngx_int_t
ngx_http_vibe_registry_copy(ngx_pool_t *pool, ngx_str_t *to, ngx_str_t *from)
{
    to->data = ngx_pstrdup(pool, from);
    if (to->data == NULL) {
        return NGX_ERROR;
    }

    to->len = from->len;

    return NGX_OK;
}


static ngx_int_t
ngx_http_vibe_registry_copy_list(ngx_pool_t *pool, ngx_array_t *to,
    ngx_array_t *from)
{
    ngx_str_t   *str, *copy;
    ngx_uint_t   i;

    str = from->elts;

    for (i = 0; i < from->nelts; i++) {

        copy = ngx_array_push(to);
        if (copy == NULL) {
            return NGX_ERROR;
        }

        if (ngx_http_vibe_registry_copy(pool, copy, &str[i]) != NGX_OK) {
            return NGX_ERROR;
        }
    }

    return NGX_OK;
}


/* as much as is shown of what is refused */

static ngx_str_t *
ngx_http_vibe_registry_cut(ngx_str_t *str)
{
    str->len = ngx_min(str->len, NGX_HTTP_VIBE_REGISTRY_QUOTE);

    return str;
}


static ngx_int_t
ngx_http_vibe_registry_refuse(ngx_http_vibe_registry_ctx_t *ctx, u_char *at,
    const char *fmt, ...)
{
    u_char     *p, *last, *reason;
    va_list     args;

    reason = ngx_pnalloc(ctx->pool, NGX_HTTP_VIBE_REGISTRY_REASON);
    if (reason == NULL) {
        return NGX_ERROR;
    }

    p = reason;
    last = reason + NGX_HTTP_VIBE_REGISTRY_REASON;

    if (ctx->name.len) {
        p = ngx_slprintf(p, last, "feed \"%V\": ", &ctx->name);

    } else if (ctx->n) {
        p = ngx_slprintf(p, last, "feed %ui: ", ctx->n);
    }

    va_start(args, fmt);
    last = ngx_vslprintf(p, last, fmt, args);
    va_end(args);

    /* what is quoted may hold anything */

    for (p = reason; p < last; p++) {
        if (*p < 0x20 || *p >= 0x7f) {
            *p = '?';
        }
    }

    ctx->registry->reason.data = reason;
    ctx->registry->reason.len = last - reason;
    ctx->at = at;

    return NGX_DECLINED;
}
