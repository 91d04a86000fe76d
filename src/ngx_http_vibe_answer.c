
#include "ngx_http_vibe_answer.h"


typedef struct {
    ngx_uint_t    status;
    ngx_str_t     name;
    ngx_str_t     reason;        /* where nginx itself refused */
} ngx_http_vibe_error_t;


static ngx_int_t ngx_http_vibe_answer_begin(ngx_http_request_t *r,
    ngx_uint_t status);
static ngx_int_t ngx_http_vibe_answer_error(ngx_http_request_t *r,
    ngx_str_t *name, ngx_str_t *reason, ngx_http_vibe_json_out_t *out);
static ngx_int_t ngx_http_vibe_retry_after(ngx_http_request_t *r,
    ngx_uint_t status);
static ngx_http_vibe_error_t *ngx_http_vibe_find_error(ngx_uint_t status);


static ngx_http_vibe_error_t  ngx_http_vibe_errors[] = {

    { NGX_HTTP_BAD_REQUEST, ngx_string("bad_request"),
      ngx_string("The request cannot be understood.") },

    { NGX_HTTP_UNAUTHORIZED, ngx_string("unauthorized"),
      ngx_string("You are not authorized to access this.") },

    { NGX_HTTP_FORBIDDEN, ngx_string("forbidden"),
      ngx_string("You are not allowed to access this.") },

    { NGX_HTTP_NOT_FOUND, ngx_string("not_found"),
      ngx_string("missing") },

    { NGX_HTTP_NOT_ALLOWED, ngx_string("method_not_allowed"),
      ngx_string("This method is not allowed here.") },

    { NGX_HTTP_REQUEST_TIME_OUT, ngx_string("timeout"),
      ngx_string("The request was not sent in time.") },

    { NGX_HTTP_CONFLICT, ngx_string("conflict"),
      ngx_string("Document update conflict.") },

    { NGX_HTTP_REQUEST_ENTITY_TOO_LARGE, ngx_string("too_large"),
      ngx_string("The request entity is too large.") },

    { NGX_HTTP_UNSUPPORTED_MEDIA_TYPE, ngx_string("bad_content_type"),
      ngx_string("Content-Type must be application/json.") },

    { NGX_HTTP_TOO_MANY_REQUESTS, ngx_string("too_many_requests"),
      ngx_string("Too many requests.") },

    { NGX_HTTP_INTERNAL_SERVER_ERROR, ngx_string("internal_server_error"),
      ngx_string("An internal error, which the log tells of.") },

    { NGX_HTTP_BAD_GATEWAY, ngx_string("bad_gateway"),
      ngx_string("The database gave no valid answer.") },

    { NGX_HTTP_SERVICE_UNAVAILABLE, ngx_string("service_unavailable"),
      ngx_string("The database cannot be reached.") },

    { NGX_HTTP_GATEWAY_TIME_OUT, ngx_string("gateway_timeout"),
      ngx_string("The database did not answer in time.") },

    { 0, ngx_string("error"), ngx_string("The request was refused.") }
};


ngx_int_t
ngx_http_vibe_answer(ngx_http_request_t *r, ngx_uint_t status,
    ngx_http_vibe_json_out_t *out)
{
    ngx_int_t     rc;
    ngx_chain_t  *cl, *last;

    cl = ngx_http_vibe_json_out_chain(out);
    if (cl == NULL) {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    rc = ngx_http_vibe_answer_begin(r, status);
    if (rc != NGX_OK) {
        return rc;
    }

    for (last = cl; last->next; last = last->next) { /* void */ }

    last->buf->last_buf = (r == r->main) ? 1 : 0;
    last->buf->last_in_chain = 1;

    r->headers_out.content_length_n = out->size;

    ngx_str_set(&r->headers_out.content_type, "application/json");
    r->headers_out.content_type_len = r->headers_out.content_type.len;
    r->headers_out.content_type_lowcase = NULL;

    rc = ngx_http_send_header(r);

    if (rc == NGX_ERROR || rc > NGX_OK || r->header_only) {
        return rc;
    }

    rc = ngx_http_output_filter(r, cl);

    /* what could not be sent yet nginx sends by itself */

    return (rc == NGX_AGAIN) ? NGX_OK : rc;
}


ngx_int_t
ngx_http_vibe_answer_empty(ngx_http_request_t *r, ngx_uint_t status)
{
    ngx_int_t  rc;

    rc = ngx_http_vibe_answer_begin(r, status);
    if (rc != NGX_OK) {
        return rc;
    }

    r->header_only = 1;

    ngx_http_clear_content_length(r);

    rc = ngx_http_send_header(r);

    return (rc == NGX_AGAIN) ? NGX_OK : rc;
}


/* a body that was not read must not be taken for the next request */

static ngx_int_t
ngx_http_vibe_answer_begin(ngx_http_request_t *r, ngx_uint_t status)
{
    ngx_int_t             rc;
    ngx_http_vibe_ctx_t  *ctx;

    ctx = ngx_http_get_module_ctx(r, ngx_http_vibe_module);

    if (ctx->gone) {
        r->connection->error = 1;
        return NGX_HTTP_CLIENT_CLOSED_REQUEST;
    }

    rc = ngx_http_discard_request_body(r);
    if (rc != NGX_OK) {
        return rc;
    }

    ctx->answered = 1;

    /* what is conditional here is decided here, not by nginx's own filter */

    r->disable_not_modified = 1;
    r->headers_out.status = status;

    return NGX_OK;
}


ngx_int_t
ngx_http_vibe_error_text(ngx_http_request_t *r, ngx_uint_t status,
    const char *reason)
{
    ngx_str_t  str;

    str.data = (u_char *) reason;
    str.len = ngx_strlen(reason);

    return ngx_http_vibe_error(r, status, &str);
}


ngx_int_t
ngx_http_vibe_error(ngx_http_request_t *r, ngx_uint_t status,
    ngx_str_t *reason)
{
    ngx_str_t  name;

    ngx_http_vibe_error_name(status, &name);

    return ngx_http_vibe_error_named(r, status, &name, reason);
}


ngx_int_t
ngx_http_vibe_error_named(ngx_http_request_t *r, ngx_uint_t status,
    ngx_str_t *name, ngx_str_t *reason)
{
    ngx_http_vibe_json_out_t  out;

    static ngx_str_t  bearer = ngx_string("Bearer");

    ngx_log_error(NGX_LOG_INFO, r->connection->log, 0,
                  "vibe answers %ui: %V", status, reason);

    if (ngx_http_vibe_answer_error(r, name, reason, &out) != NGX_OK
        || ngx_http_vibe_retry_after(r, status) != NGX_OK)
    {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    if (status == NGX_HTTP_UNAUTHORIZED
        && ngx_http_vibe_add_header(r, "WWW-Authenticate", &bearer) != NGX_OK)
    {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    return ngx_http_vibe_answer(r, status, &out);
}


ngx_int_t
ngx_http_vibe_not_allowed(ngx_http_request_t *r, const char *methods)
{
    ngx_str_t  value;

    value.data = (u_char *) methods;
    value.len = ngx_strlen(methods);

    if (ngx_http_vibe_add_header(r, "Allow", &value) != NGX_OK) {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    return ngx_http_vibe_error_text(r, NGX_HTTP_NOT_ALLOWED,
                                    "This method is not allowed here.");
}


static ngx_int_t
ngx_http_vibe_answer_error(ngx_http_request_t *r, ngx_str_t *name,
    ngx_str_t *reason, ngx_http_vibe_json_out_t *out)
{
    ngx_http_vibe_json_out_init(out, r->pool);

    ngx_http_vibe_json_put_text(out, "{\"error\":");
    ngx_http_vibe_json_put_string(out, name);
    ngx_http_vibe_json_put_text(out, ",\"reason\":");
    ngx_http_vibe_json_put_string(out, reason);
    ngx_http_vibe_json_put_text(out, "}\n");

    return out->failed ? NGX_ERROR : NGX_OK;
}


static ngx_int_t
ngx_http_vibe_retry_after(ngx_http_request_t *r, ngx_uint_t status)
{
    static ngx_str_t  seconds = ngx_string("2");

    if (status != NGX_HTTP_SERVICE_UNAVAILABLE
        && status != NGX_HTTP_TOO_MANY_REQUESTS)
    {
        return NGX_OK;
    }

    return ngx_http_vibe_add_header(r, "Retry-After", &seconds);
}


static ngx_http_vibe_error_t *
ngx_http_vibe_find_error(ngx_uint_t status)
{
    ngx_http_vibe_error_t  *e;

    for (e = ngx_http_vibe_errors; e->status; e++) {
        if (e->status == status) {
            break;
        }
    }

    return e;
}


void
ngx_http_vibe_error_name(ngx_uint_t status, ngx_str_t *name)
{
    *name = ngx_http_vibe_find_error(status)->name;
}


ngx_uint_t
ngx_http_vibe_couch_status(ngx_http_vibe_call_t *call, const char **reason)
{
    ngx_uint_t  status;

    switch (call->status) {

    case NGX_HTTP_REQUEST_ENTITY_TOO_LARGE:
    case NGX_HTTP_SERVICE_UNAVAILABLE:
    case NGX_HTTP_GATEWAY_TIME_OUT:
        status = call->status;
        break;

    default:
        status = NGX_HTTP_BAD_GATEWAY;
    }

    *reason = (const char *) ngx_http_vibe_find_error(status)->reason.data;

    return status;
}


ngx_int_t
ngx_http_vibe_couch_failed(ngx_http_request_t *r, ngx_http_vibe_call_t *call)
{
    ngx_uint_t   status;
    const char  *reason;

    /* not the answer itself: a log is read by more than may read documents */

    ngx_log_error(NGX_LOG_ERR, r->connection->log, 0,
                  "couchdb answered \"%V\" with %ui",
                  &call->path, call->status);

    status = ngx_http_vibe_couch_status(call, &reason);

    return ngx_http_vibe_error_text(r, status, reason);
}


ngx_int_t
ngx_http_vibe_add_header(ngx_http_request_t *r, const char *name,
    ngx_str_t *value)
{
    ngx_table_elt_t  *h;

    h = ngx_list_push(&r->headers_out.headers);
    if (h == NULL) {
        return NGX_ERROR;
    }

    h->hash = 1;
    h->key.data = (u_char *) name;
    h->key.len = ngx_strlen(name);
    h->value = *value;
    h->lowcase_key = NULL;
#if (nginx_version >= 1023000)
    h->next = NULL;
#endif

    return NGX_OK;
}


ngx_int_t
ngx_http_vibe_not_shared(ngx_http_request_t *r)
{
    static ngx_str_t  value = ngx_string("private, no-cache");

    return ngx_http_vibe_add_header(r, "Cache-Control", &value);
}


ngx_table_elt_t *
ngx_http_vibe_header_in(ngx_http_request_t *r, const char *name, size_t len)
{
    ngx_uint_t        i;
    ngx_list_part_t  *part;
    ngx_table_elt_t  *h;

    part = &r->headers_in.headers.part;
    h = part->elts;

    for (i = 0; /* void */ ; i++) {

        if (i >= part->nelts) {
            if (part->next == NULL) {
                return NULL;
            }

            part = part->next;
            h = part->elts;
            i = 0;
        }

        if (h[i].hash
            && h[i].key.len == len
            && ngx_strncasecmp(h[i].key.data, (u_char *) name, len) == 0)
        {
            return &h[i];
        }
    }
}


ngx_int_t
ngx_http_vibe_arg(ngx_http_request_t *r, const char *name,
    ngx_str_t *value)
{
    u_char     *src, *dst;
    size_t      i;
    ngx_str_t   raw;

    ngx_str_null(value);

    if (ngx_http_arg(r, (u_char *) name, ngx_strlen(name), &raw) != NGX_OK) {
        return NGX_OK;
    }

    value->data = ngx_pnalloc(r->pool, raw.len + 1);
    if (value->data == NULL) {
        return NGX_ERROR;
    }

    /* as forms and URLSearchParams write it: "+" is a blank */

    src = ngx_pstrdup(r->pool, &raw);
    if (src == NULL) {
        return NGX_ERROR;
    }

    for (i = 0; i < raw.len; i++) {
        if (src[i] == '+') {
            src[i] = ' ';
        }
    }

    dst = value->data;

    ngx_unescape_uri(&dst, &src, raw.len, 0);

    value->len = dst - value->data;

    return NGX_OK;
}


ngx_int_t
ngx_http_vibe_origin(ngx_http_request_t *r, ngx_str_t *origin)
{
    ngx_str_t                 *o;
    ngx_uint_t                 i;
    ngx_table_elt_t           *h;
    ngx_http_vibe_loc_conf_t  *vlcf;

    h = ngx_http_vibe_header_in(r, "origin", sizeof("origin") - 1);

    if (h == NULL) {
        return NGX_DECLINED;
    }

    vlcf = ngx_http_get_module_loc_conf(r, ngx_http_vibe_module);

    if (vlcf->origins == NULL) {
        return NGX_ABORT;
    }

    o = vlcf->origins->elts;

    for (i = 0; i < vlcf->origins->nelts; i++) {
        if (ngx_http_vibe_same(&o[i], &h->value)) {
            *origin = o[i];
            return NGX_OK;
        }
    }

    return NGX_ABORT;
}


ngx_int_t
ngx_http_vibe_answer_header(ngx_http_request_t *r, ngx_http_vibe_ctx_t *ctx)
{
    ngx_str_t                 origin;
    ngx_http_vibe_error_t    *e;
    ngx_http_vibe_json_out_t  out;

    static ngx_str_t  vary = ngx_string("Origin");
    static ngx_str_t  yes = ngx_string("true");
    static ngx_str_t  expose = ngx_string("Age, ETag, Retry-After");

    if (ngx_http_vibe_add_header(r, "Vary", &vary) != NGX_OK) {
        return NGX_ERROR;
    }

    if (ngx_http_vibe_origin(r, &origin) == NGX_OK
        && (ngx_http_vibe_add_header(r, "Access-Control-Allow-Origin",
                                     &origin)
            != NGX_OK
            || ngx_http_vibe_add_header(r, "Access-Control-Allow-Credentials",
                                        &yes)
               != NGX_OK
            || ngx_http_vibe_add_header(r, "Access-Control-Expose-Headers",
                                        &expose)
               != NGX_OK))
    {
        return NGX_ERROR;
    }

    if (ctx->answered || r->headers_out.status < NGX_HTTP_BAD_REQUEST) {
        return NGX_OK;
    }

    /* nginx's own error: its page will be replaced */

    e = ngx_http_vibe_find_error(r->headers_out.status);

    if (ngx_http_vibe_answer_error(r, &e->name, &e->reason, &out) != NGX_OK) {
        return NGX_ERROR;
    }

    ctx->replace = 1;

    ngx_http_clear_content_length(r);
    r->headers_out.content_length_n = out.size;

    ngx_str_set(&r->headers_out.content_type, "application/json");
    r->headers_out.content_type_len = r->headers_out.content_type.len;
    r->headers_out.content_type_lowcase = NULL;
    r->headers_out.charset.len = 0;

    return NGX_OK;
}


ngx_int_t
ngx_http_vibe_answer_page(ngx_http_request_t *r, ngx_chain_t **page)
{
    ngx_http_vibe_error_t     *e;
    ngx_http_vibe_json_out_t   out;

    e = ngx_http_vibe_find_error(r->headers_out.status);

    if (ngx_http_vibe_answer_error(r, &e->name, &e->reason, &out) != NGX_OK) {
        return NGX_ERROR;
    }

    /* short, so one buffer */

    *page = out.first;
    (*page)->buf->last_buf = 1;
    (*page)->buf->last_in_chain = 1;

    return NGX_OK;
}
