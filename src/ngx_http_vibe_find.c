
#include "ngx_http_vibe_find.h"
#include "ngx_http_vibe_acl.h"
#include "ngx_http_vibe_selector.h"


typedef struct ngx_http_vibe_find_ctx_s  ngx_http_vibe_find_ctx_t;

typedef ngx_int_t (*ngx_http_vibe_find_pt)(ngx_http_vibe_find_ctx_t *ctx,
    ngx_http_vibe_json_t *node);


struct ngx_http_vibe_find_ctx_s {
    ngx_pool_t                *pool;
    ngx_http_vibe_find_t      *find;
    ngx_http_vibe_selector_t   selector;
};


typedef struct {
    ngx_str_t                  name;
    ngx_http_vibe_find_pt      read;       /* NULL: not for the server */
} ngx_http_vibe_find_member_t;


static ngx_http_vibe_find_member_t *ngx_http_vibe_find_member(
    ngx_str_t *name);
static ngx_int_t ngx_http_vibe_find_members(ngx_http_vibe_find_ctx_t *ctx);
static ngx_int_t ngx_http_vibe_find_conditions(ngx_http_vibe_find_ctx_t *ctx);
static ngx_int_t ngx_http_vibe_find_refuse(ngx_http_vibe_find_ctx_t *ctx,
    const char *reason);
static ngx_int_t ngx_http_vibe_find_selector(ngx_http_vibe_find_ctx_t *ctx,
    ngx_http_vibe_json_t *node);
static ngx_int_t ngx_http_vibe_find_limit(ngx_http_vibe_find_ctx_t *ctx,
    ngx_http_vibe_json_t *node);
static ngx_int_t ngx_http_vibe_find_skip(ngx_http_vibe_find_ctx_t *ctx,
    ngx_http_vibe_json_t *node);
static ngx_int_t ngx_http_vibe_find_sort(ngx_http_vibe_find_ctx_t *ctx,
    ngx_http_vibe_json_t *node);
static ngx_int_t ngx_http_vibe_find_fields(ngx_http_vibe_find_ctx_t *ctx,
    ngx_http_vibe_json_t *node);
static ngx_int_t ngx_http_vibe_find_bookmark(ngx_http_vibe_find_ctx_t *ctx,
    ngx_http_vibe_json_t *node);
static ngx_int_t ngx_http_vibe_find_expand(ngx_http_vibe_find_ctx_t *ctx,
    ngx_http_vibe_json_t *node);
static ngx_int_t ngx_http_vibe_find_expand_name(ngx_http_vibe_find_ctx_t *ctx,
    ngx_str_t *name);
static ngx_int_t ngx_http_vibe_find_global(ngx_http_vibe_find_ctx_t *ctx,
    ngx_http_vibe_json_t *node);
static void ngx_http_vibe_find_put_sort(ngx_http_vibe_json_out_t *out,
    ngx_array_t *fields, ngx_uint_t descending);
static void ngx_http_vibe_find_put_order(ngx_http_vibe_json_out_t *out,
    ngx_str_t *field, ngx_uint_t descending);
static void ngx_http_vibe_find_put_conditions(ngx_http_vibe_json_out_t *out,
    ngx_array_t *fields);
static void ngx_http_vibe_find_put_fields(ngx_http_vibe_json_out_t *out,
    ngx_http_vibe_find_t *find);


static ngx_http_vibe_find_member_t  ngx_http_vibe_find_known[] = {
    { ngx_string("selector"), ngx_http_vibe_find_selector },
    { ngx_string("limit"), ngx_http_vibe_find_limit },
    { ngx_string("skip"), ngx_http_vibe_find_skip },
    { ngx_string("sort"), ngx_http_vibe_find_sort },
    { ngx_string("fields"), ngx_http_vibe_find_fields },
    { ngx_string("bookmark"), ngx_http_vibe_find_bookmark },
    { ngx_string("expand"), ngx_http_vibe_find_expand },
    { ngx_string("global"), ngx_http_vibe_find_global },
    { ngx_string("maxCacheAge"), NULL },
    { ngx_string("use_index"), NULL },
    { ngx_null_string, NULL }
};


ngx_int_t
ngx_http_vibe_find_parse(ngx_pool_t *pool, ngx_str_t *text, ngx_uint_t regex,
    ngx_http_vibe_find_t *find, ngx_str_t *reason)
{
    ngx_int_t                  rc;
    const char                *why;
    ngx_http_vibe_find_ctx_t   ctx;

    ngx_memzero(&ctx, sizeof(ngx_http_vibe_find_ctx_t));

    ctx.pool = pool;
    ctx.find = find;

    find->limit = NGX_HTTP_VIBE_LIMIT;

    /* more than all that it may hold: nothing that is worth a scan */

    if (text->len > NGX_HTTP_VIBE_QUERY_MAX) {
        ngx_str_set(reason, "The query is too long.");
        return NGX_DECLINED;
    }

    if (ngx_array_init(&find->expand, pool, 4, sizeof(ngx_str_t)) != NGX_OK) {
        return NGX_ERROR;
    }

    rc = ngx_http_vibe_json_scan(pool, text, NGX_HTTP_VIBE_JSON_ALL,
                                 &find->body, &why);

    if (rc == NGX_DECLINED) {
        reason->data = (u_char *) why;
        reason->len = ngx_strlen(why);
    }

    if (rc != NGX_OK) {
        return rc;
    }

    rc = ngx_http_vibe_find_members(&ctx);

    if (rc == NGX_OK) {
        /* what may be asked depends on where */
        ctx.selector.regex = (!find->global || regex);
        ctx.selector.global = find->global ? 1 : 0;
        rc = ngx_http_vibe_find_conditions(&ctx);
    }

    *reason = ctx.selector.reason;

    return rc;
}


static ngx_http_vibe_find_member_t *
ngx_http_vibe_find_member(ngx_str_t *name)
{
    ngx_http_vibe_find_member_t  *m;

    for (m = ngx_http_vibe_find_known; m->name.len; m++) {
        if (ngx_http_vibe_same(&m->name, name)) {
            return m;
        }
    }

    return NULL;
}


ngx_uint_t
ngx_http_vibe_find_is_condition(ngx_http_vibe_json_t *member)
{
    return ngx_http_vibe_find_member(&member->name) == NULL;
}


static ngx_int_t
ngx_http_vibe_find_members(ngx_http_vibe_find_ctx_t *ctx)
{
    ngx_int_t                     rc;
    ngx_http_vibe_json_t         *node;
    ngx_http_vibe_find_member_t  *m;

    if (ctx->find->body->type != NGX_HTTP_VIBE_JSON_OBJECT) {
        return ngx_http_vibe_find_refuse(ctx,
                                         "A query must be a JSON object.");
    }

    for (node = ctx->find->body->child; node; node = node->next) {

        m = ngx_http_vibe_find_member(&node->name);

        if (m == NULL) {
            continue;
        }

        if (ngx_http_vibe_json_count(ctx->find->body, &m->name) > 1) {
            return ngx_http_vibe_find_refuse(ctx,
                                      "A member of the query is repeated.");
        }

        if (m->read == NULL) {
            continue;
        }

        rc = m->read(ctx, node);
        if (rc != NGX_OK) {
            return rc;
        }
    }

    return NGX_OK;
}


static ngx_int_t
ngx_http_vibe_find_conditions(ngx_http_vibe_find_ctx_t *ctx)
{
    ngx_int_t              rc;
    ngx_http_vibe_json_t  *node;

    for (node = ctx->find->body->child; node; node = node->next) {

        if (!ngx_http_vibe_find_is_condition(node)) {
            continue;
        }

        rc = ngx_http_vibe_selector_check_member(&ctx->selector, ctx->pool,
                                                 node);
        if (rc != NGX_OK) {
            return rc;
        }
    }

    if (ctx->find->selector == NULL) {
        return NGX_OK;
    }

    return ngx_http_vibe_selector_check(&ctx->selector, ctx->pool,
                                        ctx->find->selector);
}


static ngx_int_t
ngx_http_vibe_find_refuse(ngx_http_vibe_find_ctx_t *ctx, const char *reason)
{
    ctx->selector.reason.data = (u_char *) reason;
    ctx->selector.reason.len = ngx_strlen(reason);

    return NGX_DECLINED;
}


static ngx_int_t
ngx_http_vibe_find_selector(ngx_http_vibe_find_ctx_t *ctx,
    ngx_http_vibe_json_t *node)
{
    if (node->type != NGX_HTTP_VIBE_JSON_OBJECT) {
        return ngx_http_vibe_find_refuse(ctx,
                                         "The selector must be an object.");
    }

    ctx->find->selector = node;

    return NGX_OK;
}


static ngx_int_t
ngx_http_vibe_find_limit(ngx_http_vibe_find_ctx_t *ctx,
    ngx_http_vibe_json_t *node)
{
    if (ngx_http_vibe_json_uint(node, NGX_MAX_INT32_VALUE, &ctx->find->limit)
        != NGX_OK)
    {
        return ngx_http_vibe_find_refuse(ctx,
                                   "The limit must be a whole number.");
    }

    return NGX_OK;
}


static ngx_int_t
ngx_http_vibe_find_skip(ngx_http_vibe_find_ctx_t *ctx,
    ngx_http_vibe_json_t *node)
{
    if (ngx_http_vibe_json_uint(node, NGX_HTTP_VIBE_SKIP_MAX,
                                &ctx->find->skip)
        != NGX_OK)
    {
        return ngx_http_vibe_find_refuse(ctx,
                     "The skip must be a whole number, 10000 at most: "
                     "go on with the bookmark.");
    }

    return NGX_OK;
}


static ngx_int_t
ngx_http_vibe_find_sort(ngx_http_vibe_find_ctx_t *ctx,
    ngx_http_vibe_json_t *node)
{
    return ngx_http_vibe_selector_sort(&ctx->selector, ctx->pool, node,
                                       &ctx->find->sort,
                                       &ctx->find->descending);
}


static ngx_int_t
ngx_http_vibe_find_fields(ngx_http_vibe_find_ctx_t *ctx,
    ngx_http_vibe_json_t *node)
{
    return ngx_http_vibe_selector_fields(&ctx->selector, ctx->pool, node,
                                         &ctx->find->fields);
}


static ngx_int_t
ngx_http_vibe_find_bookmark(ngx_http_vibe_find_ctx_t *ctx,
    ngx_http_vibe_json_t *node)
{
    if (node->type == NGX_HTTP_VIBE_JSON_NULL) {
        return NGX_OK;
    }

    if (node->type != NGX_HTTP_VIBE_JSON_STRING
        || node->raw.len > NGX_HTTP_VIBE_BOOKMARK_MAX)
    {
        return ngx_http_vibe_find_refuse(ctx,
                                         "The bookmark must be a string.");
    }

    ctx->find->bookmark = node;

    return NGX_OK;
}


/* ["author","tags"] or "author,tags" */

static ngx_int_t
ngx_http_vibe_find_expand(ngx_http_vibe_find_ctx_t *ctx,
    ngx_http_vibe_json_t *node)
{
    u_char                *p, *comma, *last;
    ngx_int_t              rc;
    ngx_str_t              name;
    ngx_http_vibe_json_t  *n;

    if (node->type == NGX_HTTP_VIBE_JSON_ARRAY) {

        for (n = node->child; n; n = n->next) {

            if (n->type != NGX_HTTP_VIBE_JSON_STRING) {
                return ngx_http_vibe_find_refuse(ctx,
                                        "What to expand must be strings.");
            }

            rc = ngx_http_vibe_find_expand_name(ctx, &n->string);
            if (rc != NGX_OK) {
                return rc;
            }
        }

        return NGX_OK;
    }

    if (node->type != NGX_HTTP_VIBE_JSON_STRING) {
        return ngx_http_vibe_find_refuse(ctx,
                       "What to expand must be a string or an array.");
    }

    p = node->string.data;
    last = p + node->string.len;

    while (p < last) {
        comma = ngx_strlchr(p, last, ',');

        if (comma == NULL) {
            comma = last;
        }

        name.data = p;
        name.len = comma - p;

        rc = ngx_http_vibe_find_expand_name(ctx, &name);
        if (rc != NGX_OK) {
            return rc;
        }

        p = comma + 1;
    }

    return NGX_OK;
}


static ngx_int_t
ngx_http_vibe_find_expand_name(ngx_http_vibe_find_ctx_t *ctx, ngx_str_t *name)
{
    ngx_int_t   rc;
    ngx_str_t  *n;

    if (ctx->find->expand.nelts == NGX_HTTP_VIBE_EXPAND_NAMES_MAX) {
        return ngx_http_vibe_find_refuse(ctx,
                                         "There are too many to expand.");
    }

    rc = ngx_http_vibe_selector_check_field(&ctx->selector, ctx->pool, name);
    if (rc != NGX_OK) {
        return rc;
    }

    n = ngx_array_push(&ctx->find->expand);
    if (n == NULL) {
        return NGX_ERROR;
    }

    *n = *name;

    return NGX_OK;
}


static ngx_int_t
ngx_http_vibe_find_global(ngx_http_vibe_find_ctx_t *ctx,
    ngx_http_vibe_json_t *node)
{
    if (node->type != NGX_HTTP_VIBE_JSON_TRUE
        && node->type != NGX_HTTP_VIBE_JSON_FALSE)
    {
        return ngx_http_vibe_find_refuse(ctx,
                             "The member global must be true or false.");
    }

    ctx->find->global = (node->type == NGX_HTTP_VIBE_JSON_TRUE);

    return NGX_OK;
}


void
ngx_http_vibe_find_put(ngx_http_vibe_json_out_t *out,
    ngx_http_vibe_find_t *find, ngx_str_t *collection, ngx_str_t *did,
    ngx_str_t *index)
{
    ngx_http_vibe_json_t  *node;

    ngx_http_vibe_json_put_text(out, "{\"selector\":{\"$and\":[");

    if (did != NULL) {
        ngx_http_vibe_acl_put_selector(out, did);
        ngx_http_vibe_json_put_text(out, ",");
    }

    ngx_http_vibe_json_put_text(out, "{\"collection\":{\"$eq\":");
    ngx_http_vibe_json_put_string(out, collection);
    ngx_http_vibe_json_put_text(out, "}}");

    if (find->sort != NULL) {
        ngx_http_vibe_find_put_conditions(out, find->sort);
    }

    for (node = find->body->child; node; node = node->next) {

        if (!ngx_http_vibe_find_is_condition(node)) {
            continue;
        }

        ngx_http_vibe_json_put_text(out, ",{");
        ngx_http_vibe_json_put(out, node->start,
                               node->raw.data + node->raw.len - node->start);
        ngx_http_vibe_json_put_text(out, "}");
    }

    /* "{}" asks for all; inside "$and" it would be an equality */

    if (find->selector != NULL && find->selector->n) {
        ngx_http_vibe_json_put_text(out, ",");
        ngx_http_vibe_json_put_str(out, &find->selector->raw);
    }

    ngx_http_vibe_json_put_text(out, "]},\"limit\":");
    ngx_http_vibe_json_put_uint(out, find->limit);

    if (find->skip) {
        ngx_http_vibe_json_put_text(out, ",\"skip\":");
        ngx_http_vibe_json_put_uint(out, find->skip);
    }

    if (find->sort != NULL && find->sort->nelts) {
        ngx_http_vibe_find_put_sort(out, find->sort, find->descending);
    }

    if (find->bookmark != NULL) {
        ngx_http_vibe_json_put_text(out, ",\"bookmark\":");
        ngx_http_vibe_json_put_str(out, &find->bookmark->raw);
    }

    if (index->len) {
        ngx_http_vibe_json_put_text(out, ",\"use_index\":[");
        ngx_http_vibe_json_put_string(out, index);
        ngx_http_vibe_json_put_text(out, ",");
        ngx_http_vibe_json_put_string(out, index);
        ngx_http_vibe_json_put_text(out, "]");
    }

    if (find->fields != NULL && find->fields->nelts) {
        ngx_http_vibe_find_put_fields(out, find);
    }

    ngx_http_vibe_json_put_text(out, "}");
}


/* the _rev that a copy is shown with is that of its source */

static void
ngx_http_vibe_find_put_fields(ngx_http_vibe_json_out_t *out,
    ngx_http_vibe_find_t *find)
{
    ngx_str_t   *field;
    ngx_uint_t   i;

    ngx_http_vibe_json_put_text(out, ",\"fields\":[");

    field = find->fields->elts;

    for (i = 0; i < find->fields->nelts; i++) {

        if (i > 0) {
            ngx_http_vibe_json_put_text(out, ",");
        }

        ngx_http_vibe_json_put_string(out, &field[i]);

        if (find->global
            && field[i].len == sizeof("_rev") - 1
            && ngx_strncmp(field[i].data, "_rev", sizeof("_rev") - 1) == 0)
        {
            ngx_http_vibe_json_put_text(out, ",\"vibe_rev\"");
        }
    }

    ngx_http_vibe_json_put_text(out, "]");
}


/* the "sort" that the index serves: its fields, all in one direction */

static void
ngx_http_vibe_find_put_sort(ngx_http_vibe_json_out_t *out,
    ngx_array_t *fields, ngx_uint_t descending)
{
    ngx_str_t   *field, collection;
    ngx_uint_t   i;

    ngx_str_set(&collection, "collection");

    ngx_http_vibe_json_put_text(out, ",\"sort\":[");
    ngx_http_vibe_find_put_order(out, &collection, descending);

    field = fields->elts;

    for (i = 0; i < fields->nelts; i++) {
        ngx_http_vibe_json_put_text(out, ",");
        ngx_http_vibe_find_put_order(out, &field[i], descending);
    }

    ngx_http_vibe_json_put_text(out, "]");
}


static void
ngx_http_vibe_find_put_order(ngx_http_vibe_json_out_t *out,
    ngx_str_t *field, ngx_uint_t descending)
{
    ngx_http_vibe_json_put_text(out, "{");
    ngx_http_vibe_json_put_string(out, field);

    if (descending) {
        ngx_http_vibe_json_put_text(out, ":\"desc\"}");

    } else {
        ngx_http_vibe_json_put_text(out, ":\"asc\"}");
    }
}


/*
 * What every document of the index meets: CouchDB uses an index only where
 * each of its fields has a condition.
 */

static void
ngx_http_vibe_find_put_conditions(ngx_http_vibe_json_out_t *out,
    ngx_array_t *fields)
{
    ngx_str_t   *field;
    ngx_uint_t   i;

    field = fields->elts;

    for (i = 0; i < fields->nelts; i++) {
        ngx_http_vibe_json_put_text(out, ",{");
        ngx_http_vibe_json_put_string(out, &field[i]);

        /* null is where the order of CouchDB begins */
        ngx_http_vibe_json_put_text(out, ":{\"$gte\":null}}");
    }
}
