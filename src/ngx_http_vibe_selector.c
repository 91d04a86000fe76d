
#include <ngx_config.h>
#include <ngx_core.h>

#include "ngx_http_vibe_json.h"
#include "ngx_http_vibe_id.h"
#include "ngx_http_vibe_selector.h"


#define NGX_HTTP_VIBE_SELECTOR_QUOTE   64      /* bytes of a quoted name */
#define NGX_HTTP_VIBE_SELECTOR_DIGITS  15      /* exact in any JSON reader */


typedef struct {
    ngx_http_vibe_selector_t  *s;
    ngx_pool_t                *pool;
    ngx_uint_t                 depth;    /* objects and arrays open now */

    /*
     * 1 where a condition would be on the whole document, not on a field:
     * CouchDB would compare it, with the module's own members in it.
     */
    ngx_uint_t                 root;
} ngx_http_vibe_selector_ctx_t;


typedef struct {
    ngx_str_t    name;
    ngx_int_t  (*check)(ngx_http_vibe_selector_ctx_t *ctx,
                        ngx_http_vibe_json_t *arg);
    ngx_uint_t   root;                   /* may stand without a field */
} ngx_http_vibe_selector_op_t;


static ngx_int_t ngx_http_vibe_selector_object(
    ngx_http_vibe_selector_ctx_t *ctx, ngx_http_vibe_json_t *object);
static ngx_int_t ngx_http_vibe_selector_member(
    ngx_http_vibe_selector_ctx_t *ctx, ngx_http_vibe_json_t *member);
static ngx_int_t ngx_http_vibe_selector_operator(
    ngx_http_vibe_selector_ctx_t *ctx, ngx_http_vibe_json_t *member);
static ngx_int_t ngx_http_vibe_selector_enter(
    ngx_http_vibe_selector_ctx_t *ctx, ngx_http_vibe_json_t *node);
static ngx_int_t ngx_http_vibe_selector_count(ngx_http_vibe_selector_t *s,
    ngx_uint_t terms, size_t len);
static ngx_uint_t ngx_http_vibe_selector_repeated(
    ngx_http_vibe_json_t *member);
static ngx_int_t ngx_http_vibe_selector_list(ngx_http_vibe_selector_ctx_t *ctx,
    ngx_http_vibe_json_t *arg);
static ngx_int_t ngx_http_vibe_selector_inner(
    ngx_http_vibe_selector_ctx_t *ctx, ngx_http_vibe_json_t *arg);
static ngx_int_t ngx_http_vibe_selector_literal(
    ngx_http_vibe_selector_ctx_t *ctx, ngx_http_vibe_json_t *arg);
static ngx_int_t ngx_http_vibe_selector_in(ngx_http_vibe_selector_ctx_t *ctx,
    ngx_http_vibe_json_t *arg);
static ngx_int_t ngx_http_vibe_selector_all(ngx_http_vibe_selector_ctx_t *ctx,
    ngx_http_vibe_json_t *arg);
static ngx_int_t ngx_http_vibe_selector_exists(
    ngx_http_vibe_selector_ctx_t *ctx, ngx_http_vibe_json_t *arg);
static ngx_int_t ngx_http_vibe_selector_type(ngx_http_vibe_selector_ctx_t *ctx,
    ngx_http_vibe_json_t *arg);
static ngx_int_t ngx_http_vibe_selector_size(ngx_http_vibe_selector_ctx_t *ctx,
    ngx_http_vibe_json_t *arg);
static ngx_int_t ngx_http_vibe_selector_mod(ngx_http_vibe_selector_ctx_t *ctx,
    ngx_http_vibe_json_t *arg);
static ngx_int_t ngx_http_vibe_selector_whole(ngx_http_vibe_json_t *node,
    ngx_uint_t *zero);
static ngx_int_t ngx_http_vibe_selector_regex(
    ngx_http_vibe_selector_ctx_t *ctx, ngx_http_vibe_json_t *arg);
static ngx_int_t ngx_http_vibe_selector_sort_field(ngx_http_vibe_selector_t *s,
    ngx_http_vibe_json_t *node, ngx_str_t *name, ngx_uint_t *descending);
static ngx_int_t ngx_http_vibe_selector_refuse(ngx_http_vibe_selector_t *s,
    const char *text);
static ngx_int_t ngx_http_vibe_selector_quote(ngx_http_vibe_selector_t *s,
    ngx_pool_t *pool, const char *text, ngx_str_t *name);


static ngx_http_vibe_selector_op_t  ngx_http_vibe_selector_ops[] = {
    { ngx_string("$and"), ngx_http_vibe_selector_list, 1 },
    { ngx_string("$or"), ngx_http_vibe_selector_list, 1 },
    { ngx_string("$nor"), ngx_http_vibe_selector_list, 1 },
    { ngx_string("$not"), ngx_http_vibe_selector_inner, 1 },
    { ngx_string("$eq"), ngx_http_vibe_selector_literal, 0 },
    { ngx_string("$ne"), ngx_http_vibe_selector_literal, 0 },
    { ngx_string("$gt"), ngx_http_vibe_selector_literal, 0 },
    { ngx_string("$gte"), ngx_http_vibe_selector_literal, 0 },
    { ngx_string("$lt"), ngx_http_vibe_selector_literal, 0 },
    { ngx_string("$lte"), ngx_http_vibe_selector_literal, 0 },
    { ngx_string("$in"), ngx_http_vibe_selector_in, 0 },
    { ngx_string("$nin"), ngx_http_vibe_selector_in, 0 },
    { ngx_string("$exists"), ngx_http_vibe_selector_exists, 0 },
    { ngx_string("$type"), ngx_http_vibe_selector_type, 0 },
    { ngx_string("$size"), ngx_http_vibe_selector_size, 0 },
    { ngx_string("$mod"), ngx_http_vibe_selector_mod, 0 },
    { ngx_string("$all"), ngx_http_vibe_selector_all, 0 },
    { ngx_string("$elemMatch"), ngx_http_vibe_selector_inner, 0 },
    { ngx_string("$allMatch"), ngx_http_vibe_selector_inner, 0 },
    { ngx_string("$keyMapMatch"), ngx_http_vibe_selector_inner, 0 },
    { ngx_string("$regex"), ngx_http_vibe_selector_regex, 0 },
    { ngx_null_string, NULL, 0 }
};


static ngx_str_t  ngx_http_vibe_selector_types[] = {
    ngx_string("null"),
    ngx_string("boolean"),
    ngx_string("number"),
    ngx_string("string"),
    ngx_string("array"),
    ngx_string("object"),
    ngx_null_string
};


ngx_int_t
ngx_http_vibe_selector_check(ngx_http_vibe_selector_t *s, ngx_pool_t *pool,
    ngx_http_vibe_json_t *selector)
{
    ngx_http_vibe_selector_ctx_t  ctx;

    if (selector->type != NGX_HTTP_VIBE_JSON_OBJECT) {
        return ngx_http_vibe_selector_refuse(s, "selector must be an object");
    }

    if (ngx_http_vibe_selector_count(s, 0, selector->raw.len) != NGX_OK) {
        return NGX_DECLINED;
    }

    ctx.s = s;
    ctx.pool = pool;
    ctx.depth = 0;
    ctx.root = 1;

    return ngx_http_vibe_selector_object(&ctx, selector);
}


ngx_int_t
ngx_http_vibe_selector_check_member(ngx_http_vibe_selector_t *s,
    ngx_pool_t *pool, ngx_http_vibe_json_t *member)
{
    size_t                        len;
    ngx_http_vibe_selector_ctx_t  ctx;

    len = member->raw.data + member->raw.len - member->start;

    if (ngx_http_vibe_selector_count(s, 1, len) != NGX_OK) {
        return NGX_DECLINED;
    }

    if (ngx_http_vibe_selector_repeated(member)) {
        return ngx_http_vibe_selector_quote(s, pool, "repeated name: ",
                                            &member->name);
    }

    ctx.s = s;
    ctx.pool = pool;
    ctx.depth = 1;
    ctx.root = 1;

    return ngx_http_vibe_selector_member(&ctx, member);
}


/* the conditions of an object; it may be empty only where the caller says */

static ngx_int_t
ngx_http_vibe_selector_object(ngx_http_vibe_selector_ctx_t *ctx,
    ngx_http_vibe_json_t *object)
{
    ngx_int_t              rc;
    ngx_http_vibe_json_t  *member;

    rc = ngx_http_vibe_selector_enter(ctx, object);
    if (rc != NGX_OK) {
        return rc;
    }

    for (member = object->child; member; member = member->next) {

        ctx->s->at = member->start;

        rc = ngx_http_vibe_selector_member(ctx, member);
        if (rc != NGX_OK) {
            return rc;
        }
    }

    ctx->depth--;

    return NGX_OK;
}


static ngx_int_t
ngx_http_vibe_selector_member(ngx_http_vibe_selector_ctx_t *ctx,
    ngx_http_vibe_json_t *member)
{
    ngx_int_t   rc;
    ngx_uint_t  root;

    if (member->name.len && member->name.data[0] == '$') {
        return ngx_http_vibe_selector_operator(ctx, member);
    }

    rc = ngx_http_vibe_selector_check_field(ctx->s, ctx->pool, &member->name);
    if (rc != NGX_OK) {
        return rc;
    }

    if (member->type != NGX_HTTP_VIBE_JSON_OBJECT) {
        return ngx_http_vibe_selector_literal(ctx, member);
    }

    /* of operators, of fields below this one, of both, or empty: equality */

    root = ctx->root;
    ctx->root = 0;

    rc = ngx_http_vibe_selector_object(ctx, member);

    ctx->root = root;

    return rc;
}


static ngx_int_t
ngx_http_vibe_selector_operator(ngx_http_vibe_selector_ctx_t *ctx,
    ngx_http_vibe_json_t *member)
{
    ngx_http_vibe_selector_op_t  *op;

    for (op = ngx_http_vibe_selector_ops; op->name.len; op++) {

        if (op->name.len != member->name.len
            || ngx_memcmp(op->name.data, member->name.data, op->name.len) != 0)
        {
            continue;
        }

        if (ctx->root && !op->root) {
            return ngx_http_vibe_selector_quote(ctx->s, ctx->pool,
                                                "operator without a field: ",
                                                &op->name);
        }

        return op->check(ctx, member);
    }

    return ngx_http_vibe_selector_quote(ctx->s, ctx->pool,
                                        "unknown operator: ", &member->name);
}


/* what every object and array is asked before its children are looked at */

static ngx_int_t
ngx_http_vibe_selector_enter(ngx_http_vibe_selector_ctx_t *ctx,
    ngx_http_vibe_json_t *node)
{
    ngx_http_vibe_json_t  *member;

    if (++ctx->depth > NGX_HTTP_VIBE_SELECTOR_DEPTH) {
        return ngx_http_vibe_selector_refuse(ctx->s,
                                             "selector is nested too deep");
    }

    if (ngx_http_vibe_selector_count(ctx->s, node->n, 0) != NGX_OK) {
        return NGX_DECLINED;
    }

    if (node->type != NGX_HTTP_VIBE_JSON_OBJECT) {
        return NGX_OK;
    }

    for (member = node->child; member; member = member->next) {

        if (ngx_http_vibe_selector_repeated(member)) {
            ctx->s->at = member->start;
            return ngx_http_vibe_selector_quote(ctx->s, ctx->pool,
                                                "repeated name: ",
                                                &member->name);
        }
    }

    return NGX_OK;
}


static ngx_int_t
ngx_http_vibe_selector_count(ngx_http_vibe_selector_t *s, ngx_uint_t terms,
    size_t len)
{
    s->terms += terms;
    s->len += len;

    if (s->terms > NGX_HTTP_VIBE_SELECTOR_TERMS) {
        return ngx_http_vibe_selector_refuse(s,
                                "selector has too many conditions and values");
    }

    if (s->len > NGX_HTTP_VIBE_SELECTOR_LEN) {
        return ngx_http_vibe_selector_refuse(s, "selector is too long");
    }

    return NGX_OK;
}


/*
 * CouchDB would apply both conditions, other readers of JSON the last one.
 * An object with more members than the bound is refused for their number, so
 * no more of them are compared.
 */

static ngx_uint_t
ngx_http_vibe_selector_repeated(ngx_http_vibe_json_t *member)
{
    ngx_uint_t             n;
    ngx_http_vibe_json_t  *next;

    next = member->next;

    for (n = 0; next && n < 2 * NGX_HTTP_VIBE_SELECTOR_TERMS; n++) {

        if (next->name.len == member->name.len
            && ngx_memcmp(next->name.data, member->name.data,
                          member->name.len)
               == 0)
        {
            return 1;
        }

        next = next->next;
    }

    return 0;
}


/*
 * $and, $or, $nor.  Without elements CouchDB takes all three for true, also
 * $or, and an empty object among them for one that only equals "{}".
 */

static ngx_int_t
ngx_http_vibe_selector_list(ngx_http_vibe_selector_ctx_t *ctx,
    ngx_http_vibe_json_t *arg)
{
    ngx_int_t              rc;
    ngx_http_vibe_json_t  *node;

    if (arg->type != NGX_HTTP_VIBE_JSON_ARRAY || arg->n == 0) {
        return ngx_http_vibe_selector_quote(ctx->s, ctx->pool,
                             "an array of conditions is expected by operator ",
                             &arg->name);
    }

    rc = ngx_http_vibe_selector_enter(ctx, arg);
    if (rc != NGX_OK) {
        return rc;
    }

    for (node = arg->child; node; node = node->next) {

        if (node->type != NGX_HTTP_VIBE_JSON_OBJECT || node->n == 0) {
            return ngx_http_vibe_selector_quote(ctx->s, ctx->pool,
                             "an array of conditions is expected by operator ",
                             &arg->name);
        }

        rc = ngx_http_vibe_selector_object(ctx, node);
        if (rc != NGX_OK) {
            return rc;
        }
    }

    ctx->depth--;

    return NGX_OK;
}


/* $not, and what $elemMatch and its kin ask of an element or a key */

static ngx_int_t
ngx_http_vibe_selector_inner(ngx_http_vibe_selector_ctx_t *ctx,
    ngx_http_vibe_json_t *arg)
{
    if (arg->type != NGX_HTTP_VIBE_JSON_OBJECT || arg->n == 0) {
        return ngx_http_vibe_selector_quote(ctx->s, ctx->pool,
                               "an object of conditions is expected by "
                               "operator ", &arg->name);
    }

    return ngx_http_vibe_selector_object(ctx, arg);
}


/* a value that is compared: whatever its members are called, it is data */

static ngx_int_t
ngx_http_vibe_selector_literal(ngx_http_vibe_selector_ctx_t *ctx,
    ngx_http_vibe_json_t *arg)
{
    ngx_int_t              rc;
    ngx_http_vibe_json_t  *node;

    if (arg->type != NGX_HTTP_VIBE_JSON_ARRAY
        && arg->type != NGX_HTTP_VIBE_JSON_OBJECT)
    {
        return NGX_OK;
    }

    rc = ngx_http_vibe_selector_enter(ctx, arg);
    if (rc != NGX_OK) {
        return rc;
    }

    for (node = arg->child; node; node = node->next) {

        rc = ngx_http_vibe_selector_literal(ctx, node);
        if (rc != NGX_OK) {
            return rc;
        }
    }

    ctx->depth--;

    return NGX_OK;
}


/* $in, $nin: of nothing they are false and true everywhere */

static ngx_int_t
ngx_http_vibe_selector_in(ngx_http_vibe_selector_ctx_t *ctx,
    ngx_http_vibe_json_t *arg)
{
    if (arg->type != NGX_HTTP_VIBE_JSON_ARRAY) {
        return ngx_http_vibe_selector_quote(ctx->s, ctx->pool,
                                       "an array is expected by operator ",
                                       &arg->name);
    }

    return ngx_http_vibe_selector_literal(ctx, arg);
}


/* of nothing it is false to CouchDB and true to logic */

static ngx_int_t
ngx_http_vibe_selector_all(ngx_http_vibe_selector_ctx_t *ctx,
    ngx_http_vibe_json_t *arg)
{
    if (arg->type != NGX_HTTP_VIBE_JSON_ARRAY || arg->n == 0) {
        return ngx_http_vibe_selector_refuse(ctx->s,
                     "an array with elements is expected by operator $all");
    }

    return ngx_http_vibe_selector_literal(ctx, arg);
}


static ngx_int_t
ngx_http_vibe_selector_exists(ngx_http_vibe_selector_ctx_t *ctx,
    ngx_http_vibe_json_t *arg)
{
    if (arg->type != NGX_HTTP_VIBE_JSON_TRUE
        && arg->type != NGX_HTTP_VIBE_JSON_FALSE)
    {
        return ngx_http_vibe_selector_refuse(ctx->s,
                              "true or false is expected by operator $exists");
    }

    return NGX_OK;
}


static ngx_int_t
ngx_http_vibe_selector_type(ngx_http_vibe_selector_ctx_t *ctx,
    ngx_http_vibe_json_t *arg)
{
    ngx_str_t  *type;

    if (arg->type == NGX_HTTP_VIBE_JSON_STRING) {

        for (type = ngx_http_vibe_selector_types; type->len; type++) {

            if (type->len == arg->string.len
                && ngx_memcmp(type->data, arg->string.data, type->len) == 0)
            {
                return NGX_OK;
            }
        }
    }

    return ngx_http_vibe_selector_refuse(ctx->s,
                       "\"null\", \"boolean\", \"number\", \"string\", "
                       "\"array\" or \"object\" is expected by operator $type");
}


static ngx_int_t
ngx_http_vibe_selector_size(ngx_http_vibe_selector_ctx_t *ctx,
    ngx_http_vibe_json_t *arg)
{
    ngx_uint_t  size;

    if (ngx_http_vibe_json_uint(arg, NGX_MAX_INT32_VALUE, &size) != NGX_OK) {
        return ngx_http_vibe_selector_refuse(ctx->s,
                      "a non-negative integer is expected by operator $size");
    }

    return NGX_OK;
}


/* CouchDB answers a divisor of zero with 500 */

static ngx_int_t
ngx_http_vibe_selector_mod(ngx_http_vibe_selector_ctx_t *ctx,
    ngx_http_vibe_json_t *arg)
{
    ngx_uint_t  zero, unused;

    if (arg->type != NGX_HTTP_VIBE_JSON_ARRAY
        || arg->n != 2
        || ngx_http_vibe_selector_whole(arg->child, &zero) != NGX_OK
        || ngx_http_vibe_selector_whole(arg->child->next, &unused) != NGX_OK
        || zero)
    {
        return ngx_http_vibe_selector_refuse(ctx->s,
                     "a divisor other than 0 and a remainder, both integers, "
                     "are expected by operator $mod");
    }

    return ngx_http_vibe_selector_literal(ctx, arg);
}


/* an integer as CouchDB knows one: digits, "1.0" and "1e0" are none */

static ngx_int_t
ngx_http_vibe_selector_whole(ngx_http_vibe_json_t *node, ngx_uint_t *zero)
{
    u_char  *p, *last;

    if (node->type != NGX_HTTP_VIBE_JSON_NUMBER) {
        return NGX_DECLINED;
    }

    p = node->raw.data;
    last = node->raw.data + node->raw.len;

    if (p < last && *p == '-') {
        p++;
    }

    if (p == last || last - p > NGX_HTTP_VIBE_SELECTOR_DIGITS) {
        return NGX_DECLINED;
    }

    /* JSON has no leading zeros */

    *zero = (*p == '0');

    for ( /* void */ ; p < last; p++) {
        if (*p < '0' || *p > '9') {
            return NGX_DECLINED;
        }
    }

    return NGX_OK;
}


static ngx_int_t
ngx_http_vibe_selector_regex(ngx_http_vibe_selector_ctx_t *ctx,
    ngx_http_vibe_json_t *arg)
{
    if (!ctx->s->regex) {
        return ngx_http_vibe_selector_refuse(ctx->s,
                                        "operator $regex is not allowed here");
    }

    if (arg->type != NGX_HTTP_VIBE_JSON_STRING) {
        return ngx_http_vibe_selector_refuse(ctx->s,
                                   "a string is expected by operator $regex");
    }

    if (arg->string.len > NGX_HTTP_VIBE_REGEX_LEN) {
        return ngx_http_vibe_selector_refuse(ctx->s,
                                     "the pattern of $regex is too long");
    }

    return NGX_OK;
}


/*
 * Mango splits a name at the dots without a backslash before them, then drops
 * every backslash; other readers differ in both.  So the module's own prefix
 * is looked for after any dot, whatever stands before it.
 */

ngx_int_t
ngx_http_vibe_selector_check_field(ngx_http_vibe_selector_t *s,
    ngx_pool_t *pool, ngx_str_t *name)
{
    size_t     i;
    u_char     head[sizeof(NGX_HTTP_VIBE_OWN_PREFIX) - 1];
    ngx_str_t  segment;

    if (name->len > NGX_HTTP_VIBE_FIELD_LEN) {
        return ngx_http_vibe_selector_refuse(s, "field name is too long");
    }

    if (name->len && name->data[0] == '$') {
        return ngx_http_vibe_selector_quote(s, pool,
                                            "field name starts with \"$\": ",
                                            name);
    }

    segment.data = head;
    segment.len = 0;

    for (i = 0; i < name->len; i++) {

        if (name->data[i] == '\\') {
            continue;
        }

        if (name->data[i] == '.') {

            if (segment.len == 0) {
                break;
            }

            segment.len = 0;
            continue;
        }

        if (segment.len == sizeof(head)) {
            continue;
        }

        head[segment.len++] = name->data[i];

        if (ngx_http_vibe_is_own(&segment)) {
            return ngx_http_vibe_selector_refuse(s, "field names starting with "
                              "\"" NGX_HTTP_VIBE_OWN_PREFIX "\" are reserved");
        }
    }

    if (segment.len == 0) {
        return ngx_http_vibe_selector_quote(s, pool, "invalid field name: ",
                                            name);
    }

    if (s->global
        && segment.len == sizeof("_rev") - 1
        && ngx_memcmp(head, "_rev", sizeof("_rev") - 1) == 0)
    {
        return ngx_http_vibe_selector_refuse(s, "a global query cannot have a "
                                             "condition on _rev");
    }

    return NGX_OK;
}


ngx_int_t
ngx_http_vibe_selector_sort(ngx_http_vibe_selector_t *s, ngx_pool_t *pool,
    ngx_http_vibe_json_t *sort, ngx_array_t **names, ngx_uint_t *descending)
{
    ngx_int_t              rc;
    ngx_str_t             *name;
    ngx_uint_t             desc;
    ngx_http_vibe_json_t  *node;

    *descending = 0;

    if (sort->type != NGX_HTTP_VIBE_JSON_ARRAY) {
        return ngx_http_vibe_selector_refuse(s, "sort must be an array");
    }

    if (sort->n > NGX_HTTP_VIBE_SORT_MAX) {
        return ngx_http_vibe_selector_refuse(s, "sort has too many fields");
    }

    *names = ngx_array_create(pool, NGX_HTTP_VIBE_SORT_MAX, sizeof(ngx_str_t));
    if (*names == NULL) {
        return NGX_ERROR;
    }

    for (node = sort->child; node; node = node->next) {

        s->at = node->start;

        name = ngx_array_push(*names);
        if (name == NULL) {
            return NGX_ERROR;
        }

        if (ngx_http_vibe_selector_sort_field(s, node, name, &desc)
            != NGX_OK)
        {
            return NGX_DECLINED;
        }

        rc = ngx_http_vibe_selector_check_field(s, pool, name);
        if (rc != NGX_OK) {
            return rc;
        }

        if (node == sort->child) {
            *descending = desc;

        } else if (desc != *descending) {
            return ngx_http_vibe_selector_refuse(s,
                                 "sort must have one direction for all fields");
        }
    }

    return NGX_OK;
}


static ngx_int_t
ngx_http_vibe_selector_sort_field(ngx_http_vibe_selector_t *s,
    ngx_http_vibe_json_t *node, ngx_str_t *name, ngx_uint_t *descending)
{
    *descending = 0;

    if (node->type == NGX_HTTP_VIBE_JSON_STRING) {
        *name = node->string;
        return NGX_OK;
    }

    if (node->type == NGX_HTTP_VIBE_JSON_OBJECT && node->n == 1) {
        *descending = ngx_http_vibe_json_is_string(node->child, "desc");

        if (*descending
            || ngx_http_vibe_json_is_string(node->child, "asc"))
        {
            *name = node->child->name;
            return NGX_OK;
        }
    }

    return ngx_http_vibe_selector_refuse(s, "sort must have names of fields "
                                "or objects like {\"name\":\"asc\"} or "
                                "{\"name\":\"desc\"}");
}


ngx_int_t
ngx_http_vibe_selector_fields(ngx_http_vibe_selector_t *s, ngx_pool_t *pool,
    ngx_http_vibe_json_t *fields, ngx_array_t **names)
{
    ngx_int_t              rc;
    ngx_str_t             *name;
    ngx_http_vibe_json_t  *node;

    if (fields->type != NGX_HTTP_VIBE_JSON_ARRAY
        && fields->type != NGX_HTTP_VIBE_JSON_NULL)
    {
        return ngx_http_vibe_selector_refuse(s, "fields must be an array");
    }

    if (fields->n > NGX_HTTP_VIBE_FIELDS_MAX) {
        return ngx_http_vibe_selector_refuse(s, "fields has too many names");
    }

    *names = ngx_array_create(pool, ngx_max(fields->n, 1), sizeof(ngx_str_t));
    if (*names == NULL) {
        return NGX_ERROR;
    }

    for (node = fields->child; node; node = node->next) {

        s->at = node->start;

        if (node->type != NGX_HTTP_VIBE_JSON_STRING) {
            return ngx_http_vibe_selector_refuse(s,
                                             "fields must be names of fields");
        }

        rc = ngx_http_vibe_selector_check_field(s, pool, &node->string);
        if (rc != NGX_OK) {
            return rc;
        }

        name = ngx_array_push(*names);
        if (name == NULL) {
            return NGX_ERROR;
        }

        *name = node->string;
    }

    return NGX_OK;
}


static ngx_int_t
ngx_http_vibe_selector_refuse(ngx_http_vibe_selector_t *s, const char *text)
{
    s->reason.data = (u_char *) text;
    s->reason.len = ngx_strlen(text);

    return NGX_DECLINED;
}


static ngx_int_t
ngx_http_vibe_selector_quote(ngx_http_vibe_selector_t *s, ngx_pool_t *pool,
    const char *text, ngx_str_t *name)
{
    if (ngx_http_vibe_selector_reason(pool, text, name, &s->reason)
        != NGX_OK)
    {
        return NGX_ERROR;
    }

    return NGX_DECLINED;
}


ngx_int_t
ngx_http_vibe_selector_reason(ngx_pool_t *pool, const char *text,
    ngx_str_t *name, ngx_str_t *reason)
{
    u_char  *p;
    size_t   i, len;

    len = ngx_strlen(text);

    reason->data = ngx_pnalloc(pool, len + NGX_HTTP_VIBE_SELECTOR_QUOTE
                                     + sizeof("...") - 1);
    if (reason->data == NULL) {
        return NGX_ERROR;
    }

    p = ngx_cpymem(reason->data, text, len);

    for (i = 0; i < name->len; i++) {

        if (i == NGX_HTTP_VIBE_SELECTOR_QUOTE) {
            p = ngx_cpymem(p, "...", sizeof("...") - 1);
            break;
        }

        *p++ = (name->data[i] >= 0x20 && name->data[i] < 0x7f)
               ? name->data[i] : '?';
    }

    reason->len = p - reason->data;

    return NGX_OK;
}
