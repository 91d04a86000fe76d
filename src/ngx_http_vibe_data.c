
#include "ngx_http_vibe_data.h"
#include "ngx_http_vibe_answer.h"
#include "ngx_http_vibe_caller.h"
#include "ngx_http_vibe_database.h"
#include "ngx_http_vibe_expand.h"
#include "ngx_http_vibe_query.h"
#include "ngx_http_vibe_write.h"


typedef ngx_int_t (*ngx_http_vibe_handler_pt)(ngx_http_request_t *r,
    ngx_http_vibe_ctx_t *ctx);


typedef struct {
    ngx_str_t                  collection;
    ngx_http_vibe_handler_pt   handler;
    ngx_uint_t                 methods;
    const char                *allow;
} ngx_http_vibe_route_t;


static ngx_int_t ngx_http_vibe_data_route(ngx_http_request_t *r,
    ngx_http_vibe_route_t *route);
static ngx_int_t ngx_http_vibe_data_preflight(ngx_http_request_t *r,
    const char *methods);
static ngx_int_t ngx_http_vibe_data_start(ngx_http_request_t *r,
    ngx_http_vibe_ctx_t *ctx, ngx_http_vibe_route_t *route);
static ngx_int_t ngx_http_vibe_data_owned(ngx_http_request_t *r, void *data,
    ngx_http_vibe_owner_e owner);
static ngx_uint_t ngx_http_vibe_data_is_json(ngx_http_request_t *r);
static void ngx_http_vibe_data_body(ngx_http_request_t *r);
static ngx_int_t ngx_http_vibe_data_read_body(ngx_http_request_t *r,
    ngx_str_t *body);


ngx_int_t
ngx_http_vibe_data_handler(ngx_http_request_t *r)
{
    ngx_int_t               rc;
    const char             *reason;
    ngx_http_vibe_ctx_t    *ctx;
    ngx_http_vibe_route_t  *route;

    if (r != r->main) {
        /* auth_request, mirror and the like have no client to answer */
        return NGX_HTTP_NOT_FOUND;
    }

    ctx = ngx_pcalloc(r->pool, sizeof(ngx_http_vibe_ctx_t));
    if (ctx == NULL) {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    ngx_http_set_ctx(r, ctx, ngx_http_vibe_module);

    route = ngx_palloc(r->pool, sizeof(ngx_http_vibe_route_t));
    if (route == NULL) {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    if (ngx_http_vibe_data_route(r, route) != NGX_OK) {
        return ngx_http_vibe_error_text(r, NGX_HTTP_NOT_FOUND,
                                        "There is nothing at this path.");
    }

    if (r->method == NGX_HTTP_OPTIONS) {
        return ngx_http_vibe_data_preflight(r, route->allow);
    }

    if (!(r->method & route->methods)) {
        return ngx_http_vibe_not_allowed(r, route->allow);
    }

    if (r->method == NGX_HTTP_POST && !ngx_http_vibe_data_is_json(r)) {
        return ngx_http_vibe_error_text(r, NGX_HTTP_UNSUPPORTED_MEDIA_TYPE,
                                  "Content-Type must be application/json.");
    }

    rc = ngx_http_vibe_identify(r, ctx, &reason);

    if (rc == NGX_ERROR) {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    if (rc != NGX_OK) {
        return ngx_http_vibe_error_text(r, rc, reason);
    }

    ctx->collection = route->collection;
    ctx->route = route;

    r->request_body_in_single_buf = 1;

    rc = ngx_http_read_client_request_body(r, ngx_http_vibe_data_body);

    if (rc >= NGX_HTTP_SPECIAL_RESPONSE) {
        return rc;
    }

    return NGX_DONE;
}


/* what stands behind the location's own path; NGX_DECLINED: nothing known */

static ngx_int_t
ngx_http_vibe_data_route(ngx_http_request_t *r, ngx_http_vibe_route_t *route)
{
    u_char                    *p, *last, *slash;
    ngx_str_t                  action;
    ngx_http_core_loc_conf_t  *clcf;

    clcf = ngx_http_get_module_loc_conf(r, ngx_http_core_module);

    if (r->uri.len <= clcf->name.len
        || ngx_strncmp(r->uri.data, clcf->name.data, clcf->name.len) != 0)
    {
        return NGX_DECLINED;
    }

    p = r->uri.data + clcf->name.len;
    last = r->uri.data + r->uri.len;

    if (last - p == sizeof("expand") - 1
        && ngx_strncmp(p, "expand", sizeof("expand") - 1) == 0)
    {
        ngx_str_null(&route->collection);
        route->handler = ngx_http_vibe_expand_one;
        route->methods = NGX_HTTP_GET|NGX_HTTP_HEAD;
        route->allow = "GET, HEAD, OPTIONS";

        return NGX_OK;
    }

    slash = ngx_strlchr(p, last, '/');

    route->collection.data = p;
    route->collection.len = (slash ? slash : last) - p;

    if (!ngx_http_vibe_is_collection(&route->collection)) {
        return NGX_DECLINED;
    }

    if (slash == NULL) {
        route->handler = ngx_http_vibe_write;
        route->methods = NGX_HTTP_POST;
        route->allow = "POST, OPTIONS";

        return NGX_OK;
    }

    action.data = slash + 1;
    action.len = last - action.data;

    if (action.len == sizeof("query") - 1
        && ngx_strncmp(action.data, "query", action.len) == 0)
    {
        route->handler = ngx_http_vibe_query;
        route->methods = NGX_HTTP_GET|NGX_HTTP_HEAD|NGX_HTTP_POST;
        route->allow = "GET, HEAD, POST, OPTIONS";

        return NGX_OK;
    }

    return NGX_DECLINED;
}


/*
 * The Fetch standard's CORS preflight.  An origin that is not allowed gets
 * no headers, and so no further.
 */

static ngx_int_t
ngx_http_vibe_data_preflight(ngx_http_request_t *r, const char *methods)
{
    ngx_str_t  value, origin;

    static ngx_str_t  headers =
                        ngx_string("Authorization, Content-Type, "
                                   "If-None-Match");
    static ngx_str_t  age = ngx_string("600");

    value.data = (u_char *) methods;
    value.len = ngx_strlen(methods);

    if (ngx_http_vibe_add_header(r, "Allow", &value) != NGX_OK) {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    if (ngx_http_vibe_origin(r, &origin) == NGX_OK
        && (ngx_http_vibe_add_header(r, "Access-Control-Allow-Methods",
                                     &value)
            != NGX_OK
            || ngx_http_vibe_add_header(r, "Access-Control-Allow-Headers",
                                        &headers)
               != NGX_OK
            || ngx_http_vibe_add_header(r, "Access-Control-Max-Age", &age)
               != NGX_OK))
    {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    return ngx_http_vibe_answer_empty(r, NGX_HTTP_NO_CONTENT);
}


/* as CouchDB has it: JSON, or not said */

static ngx_uint_t
ngx_http_vibe_data_is_json(ngx_http_request_t *r)
{
    ngx_str_t  type;

    static const size_t  len = sizeof("application/json") - 1;

    if (r->headers_in.content_type == NULL) {
        return 1;
    }

    type = r->headers_in.content_type->value;

    return type.len >= len
           && ngx_strncasecmp(type.data, (u_char *) "application/json", len)
              == 0
           && (type.len == len || type.data[len] == ';'
               || type.data[len] == ' ');
}


static void
ngx_http_vibe_data_body(ngx_http_request_t *r)
{
    ngx_int_t             rc;
    ngx_http_vibe_ctx_t  *ctx;

    ctx = ngx_http_get_module_ctx(r, ngx_http_vibe_module);

    rc = ngx_http_vibe_data_read_body(r, &ctx->body);

    if (rc == NGX_OK) {
        rc = ngx_http_vibe_data_start(r, ctx, ctx->route);
    }

    ngx_http_vibe_finalize(r, rc);
}


static ngx_int_t
ngx_http_vibe_data_start(ngx_http_request_t *r, ngx_http_vibe_ctx_t *ctx,
    ngx_http_vibe_route_t *route)
{
    if (route->handler == ngx_http_vibe_write) {

        /* it makes the database if need be */

        if (ctx->caller.did.len == 0) {
            return ngx_http_vibe_error_text(r, NGX_HTTP_UNAUTHORIZED,
                                            "A token is needed to write.");
        }

        return ngx_http_vibe_write(r, ctx);
    }

    if (ctx->caller.did.len == 0 || route->handler == ngx_http_vibe_query) {

        /* a query asks for itself: one that is refused asks nothing */

        return route->handler(r, ctx);
    }

    return ngx_http_vibe_database_owner(r, &ctx->caller,
                                        ngx_http_vibe_data_owned, ctx);
}


/* who reads need not have a database yet */

static ngx_int_t
ngx_http_vibe_data_owned(ngx_http_request_t *r, void *data,
    ngx_http_vibe_owner_e owner)
{
    ngx_http_vibe_ctx_t *ctx = data;

    ngx_http_vibe_route_t  *route;

    route = ctx->route;

    return route->handler(r, ctx);
}


/* the body in one piece; nginx may have put it into a file */

static ngx_int_t
ngx_http_vibe_data_read_body(ngx_http_request_t *r, ngx_str_t *body)
{
    u_char       *p;
    size_t        len;
    ssize_t       n;
    ngx_buf_t    *b;
    ngx_chain_t  *cl;

    ngx_str_null(body);

    if (r->request_body == NULL || r->request_body->bufs == NULL) {
        ngx_str_set(body, "");
        return NGX_OK;
    }

    cl = r->request_body->bufs;

    if (cl->next == NULL && ngx_buf_in_memory(cl->buf)) {
        body->data = cl->buf->pos;
        body->len = cl->buf->last - cl->buf->pos;
        return NGX_OK;
    }

    len = 0;

    for ( /* void */ ; cl; cl = cl->next) {
        len += ngx_buf_size(cl->buf);
    }

    p = ngx_pnalloc(r->pool, len);
    if (p == NULL) {
        return NGX_ERROR;
    }

    body->data = p;

    for (cl = r->request_body->bufs; cl; cl = cl->next) {

        b = cl->buf;

        if (ngx_buf_in_memory(b)) {
            p = ngx_cpymem(p, b->pos, b->last - b->pos);
            continue;
        }

        if (!b->in_file) {
            /* the end of a body that is empty */
            continue;
        }

        n = ngx_read_file(b->file, p, (size_t) (b->file_last - b->file_pos),
                          b->file_pos);

        if (n != b->file_last - b->file_pos) {
            return NGX_ERROR;
        }

        p += n;
    }

    body->len = p - body->data;

    return NGX_OK;
}
