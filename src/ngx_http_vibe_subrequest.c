
#include "ngx_http_vibe.h"


#define NGX_HTTP_VIBE_ANSWER_SIZE  4096


static ngx_int_t ngx_http_vibe_subrequest_send(ngx_http_request_t *r,
    ngx_http_vibe_call_t *call);
static ngx_int_t ngx_http_vibe_subrequest_prepare(ngx_http_request_t *sr,
    ngx_http_vibe_call_t *call);
static ngx_int_t ngx_http_vibe_subrequest_done(ngx_http_request_t *sr,
    void *data, ngx_int_t rc);
static ngx_uint_t ngx_http_vibe_subrequest_failed(ngx_http_request_t *sr,
    ngx_http_vibe_call_t *call, ngx_int_t rc);
static ngx_uint_t ngx_http_vibe_subrequest_lost(ngx_http_request_t *sr,
    ngx_http_vibe_call_t *call);
static void ngx_http_vibe_subrequest_resume(ngx_http_request_t *r);
static ngx_int_t ngx_http_vibe_subrequest_grow(ngx_http_vibe_call_t *call,
    ngx_http_request_t *r, size_t len);


ngx_int_t
ngx_http_vibe_request(ngx_http_request_t *r, ngx_uint_t method, ngx_str_t *db,
    const char *suffix, ngx_http_vibe_json_out_t *body,
    ngx_http_vibe_call_pt handler, void *data)
{
    ngx_http_vibe_ctx_t   *ctx;
    ngx_http_vibe_call_t  *call;

    call = ngx_pcalloc(r->pool, sizeof(ngx_http_vibe_call_t));
    if (call == NULL) {
        return NGX_ERROR;
    }

    if (body != NULL) {
        call->body = ngx_http_vibe_json_out_chain(body);
        if (call->body == NULL) {
            return NGX_ERROR;
        }
    }

    if (ngx_http_vibe_db_path(r->pool, db, suffix, &call->path) != NGX_OK) {
        return NGX_ERROR;
    }

    call->method = method;
    call->handler = handler;
    call->data = data;

    ctx = ngx_http_get_module_ctx(r, ngx_http_vibe_module);

    ctx->call = call;

    /*
     * The client's leaving ends nothing that was begun, see also
     * proxy_ignore_client_abort in vibe_couchdb.conf.
     */

    r->read_event_handler = ngx_http_block_reading;
    r->write_event_handler = ngx_http_vibe_subrequest_resume;

    return ngx_http_vibe_subrequest_send(r, call);
}


void
ngx_http_vibe_call_of(ngx_http_vibe_couch_t *couch, ngx_http_vibe_call_t *call)
{
    ngx_memzero(call, sizeof(ngx_http_vibe_call_t));

    call->path = couch->path;
    call->status = couch->status;
    call->answer = couch->answer;
    call->too_large = couch->too_large;
}


/* CouchDB tells a missing database from a missing document by the reason */

ngx_uint_t
ngx_http_vibe_no_database(ngx_http_vibe_call_t *call)
{
    u_char  *p, *last;

    if (call->status != NGX_HTTP_NOT_FOUND || call->answer.len == 0) {
        return 0;
    }

    p = call->answer.data;
    last = p + call->answer.len;

    return ngx_strlcasestrn(p, last, (u_char *) "database does not exist",
                            sizeof("database does not exist") - 2)
           || ngx_strlcasestrn(p, last, (u_char *) "no_db_file",
                               sizeof("no_db_file") - 2);
}


ngx_int_t
ngx_http_vibe_scan_answer(ngx_pool_t *pool, ngx_http_vibe_call_t *call,
    ngx_uint_t depth, ngx_http_vibe_json_t **root)
{
    ngx_int_t    rc;
    const char  *reason;

    rc = ngx_http_vibe_json_scan(pool, &call->answer,
                                 depth|NGX_HTTP_VIBE_JSON_DEEP, root, &reason);

    if (rc == NGX_DECLINED) {
        call->too_large = (reason == ngx_http_vibe_json_too_many);

        ngx_log_error(NGX_LOG_ERR, pool->log, 0,
                      "couchdb answered \"%V\" with what is not json: %s",
                      &call->path, reason);

        call->status = NGX_HTTP_BAD_GATEWAY;
    }

    return rc;
}


static ngx_int_t
ngx_http_vibe_subrequest_send(ngx_http_request_t *r,
    ngx_http_vibe_call_t *call)
{
    ngx_str_t                    uri;
    ngx_http_request_t          *sr;
    ngx_http_post_subrequest_t  *ps;

    ps = ngx_palloc(r->pool, sizeof(ngx_http_post_subrequest_t));
    if (ps == NULL) {
        return NGX_ERROR;
    }

    ps->handler = ngx_http_vibe_subrequest_done;
    ps->data = call;

    ngx_str_set(&uri, NGX_HTTP_VIBE_LOCATION);

    if (ngx_http_subrequest(r, &uri, NULL, &sr, ps, 0) != NGX_OK) {
        return NGX_ERROR;
    }

    call->subrequest = sr;
    call->done = 0;
    call->complete = 0;
    call->broken = 0;
    call->status = 0;
    call->answer.len = 0;

    return ngx_http_vibe_subrequest_prepare(sr, call);
}


/*
 * A subrequest inherits its parent's headers and body.  CouchDB trusts some
 * headers with an identity, so the list is made anew.
 */

static ngx_int_t
ngx_http_vibe_subrequest_prepare(ngx_http_request_t *sr,
    ngx_http_vibe_call_t *call)
{
    ngx_chain_t          *cl;
    ngx_http_vibe_ctx_t  *ctx;

    static ngx_str_t  methods[] = {
        ngx_string("GET"), ngx_string("PUT"), ngx_string("POST")
    };

    ctx = ngx_pcalloc(sr->pool, sizeof(ngx_http_vibe_ctx_t));
    if (ctx == NULL) {
        return NGX_ERROR;
    }

    ctx->capture = call;

    ngx_http_set_ctx(sr, ctx, ngx_http_vibe_module);

    sr->method = call->method;
    sr->method_name = methods[call->method == NGX_HTTP_PUT ? 1
                              : call->method == NGX_HTTP_POST ? 2 : 0];

    sr->header_only = 0;
    sr->filter_need_in_memory = 1;

    ngx_memzero(&sr->headers_in, sizeof(ngx_http_headers_in_t));

    if (ngx_list_init(&sr->headers_in.headers, sr->pool, 1,
                      sizeof(ngx_table_elt_t))
        != NGX_OK)
    {
        return NGX_ERROR;
    }

    sr->request_body = ngx_pcalloc(sr->pool, sizeof(ngx_http_request_body_t));
    if (sr->request_body == NULL) {
        return NGX_ERROR;
    }

    if (call->method == NGX_HTTP_GET) {
        sr->headers_in.content_length_n = -1;
        return NGX_AGAIN;
    }

    sr->request_body->bufs = call->body;

    for (cl = call->body; cl; cl = cl->next) {
        sr->headers_in.content_length_n += ngx_buf_size(cl->buf);
    }

    return NGX_AGAIN;
}


/* can be called twice: a second time when the subrequest's turn comes */

static ngx_int_t
ngx_http_vibe_subrequest_done(ngx_http_request_t *sr, void *data,
    ngx_int_t rc)
{
    ngx_http_vibe_call_t *call = data;

    ngx_http_vibe_ctx_t        *ctx;
    ngx_http_vibe_main_conf_t  *vmcf;

    if (sr->connection->error) {

        /*
         * The client of an HTTP/2 stream is gone, which would end all that
         * was begun for it here and now.  It ends with the answer instead.
         * Or our own filter has failed, which is no error of the client's.
         */

        if (!call->broken) {
            ctx = ngx_http_get_module_ctx(sr->main, ngx_http_vibe_module);
            ctx->gone = 1;
        }

        sr->connection->error = 0;
    }

    if (call->done || call->subrequest != sr) {
        return NGX_OK;
    }

    call->done = 1;

    ngx_log_debug3(NGX_LOG_DEBUG_HTTP, sr->connection->log, 0,
                   "vibe couchdb \"%V\" rc:%i status:%ui",
                   &call->path, rc, sr->headers_out.status);

    vmcf = ngx_http_get_module_main_conf(sr, ngx_http_vibe_module);

    if (rc == NGX_OK && call->complete && sr->headers_out.status) {
        call->status = sr->headers_out.status;

        ngx_http_vibe_zone_answer(vmcf->zone, call->status);

        /* 403: it locks out for minutes who was wrong too often */

        if (call->status == NGX_HTTP_UNAUTHORIZED
            || call->status == NGX_HTTP_FORBIDDEN)
        {
            ngx_log_error(NGX_LOG_ERR, sr->connection->log, 0,
                          "couchdb does not accept the vibe_credentials");
        }

        return NGX_OK;
    }

    call->status = ngx_http_vibe_subrequest_failed(sr, call, rc);
    call->answer.len = 0;

    ngx_http_vibe_zone_answer(vmcf->zone, call->status);

    return NGX_OK;
}


/* the status that stands for an answer which did not come whole */

static ngx_uint_t
ngx_http_vibe_subrequest_failed(ngx_http_request_t *sr,
    ngx_http_vibe_call_t *call, ngx_int_t rc)
{
    if (sr->upstream == NULL) {
        ngx_log_error(NGX_LOG_ERR, sr->connection->log, 0,
                      "no location \"" NGX_HTTP_VIBE_LOCATION "\" passes "
                      "requests to couchdb: vibe_couchdb.conf must be "
                      "included in this server");

        return NGX_HTTP_SERVICE_UNAVAILABLE;
    }

    if (rc == NGX_HTTP_GATEWAY_TIME_OUT) {
        return NGX_HTTP_GATEWAY_TIME_OUT;
    }

    if (call->too_large || sr->upstream->state == NULL) {
        return NGX_HTTP_BAD_GATEWAY;
    }

    /* set when the connection was made */

    if (sr->upstream->state->connect_time == (ngx_msec_t) -1) {
        return NGX_HTTP_SERVICE_UNAVAILABLE;
    }

    return NGX_HTTP_BAD_GATEWAY;
}


/*
 * CouchDB may close an idle connection just as a request is written to it.
 * nginx sends no POST again by itself; all of ours may be: each write names
 * the revision it replaces, so what was done twice is refused the second
 * time.
 */

static ngx_uint_t
ngx_http_vibe_subrequest_lost(ngx_http_request_t *sr,
    ngx_http_vibe_call_t *call)
{
    ngx_http_upstream_t  *u;

    u = sr->upstream;

    return call->status == NGX_HTTP_BAD_GATEWAY
           && !call->resent
           && !call->too_large
           && u != NULL
           && u->peer.cached
           && u->state != NULL
           && u->state->bytes_received == 0;
}


static void
ngx_http_vibe_subrequest_resume(ngx_http_request_t *r)
{
    ngx_int_t              rc;
    ngx_http_vibe_ctx_t   *ctx;
    ngx_http_vibe_call_t  *call;

    ctx = ngx_http_get_module_ctx(r, ngx_http_vibe_module);

    call = ctx->call;

    if (call == NULL || !call->done) {
        return;
    }

    if (ngx_http_vibe_subrequest_lost(call->subrequest, call)) {
        ngx_log_error(NGX_LOG_INFO, r->connection->log, 0,
                      "couchdb closed a kept connection, sending again");

        call->resent = 1;

        rc = ngx_http_vibe_subrequest_send(r, call);

    } else {
        ctx->call = NULL;
        rc = call->handler(r, call);
    }

    ngx_http_vibe_finalize(r, rc);
}


void
ngx_http_vibe_finalize(ngx_http_request_t *r, ngx_int_t rc)
{
    ngx_http_vibe_ctx_t  *ctx;

    if (rc == NGX_AGAIN) {
        return;
    }

    ctx = ngx_http_get_module_ctx(r, ngx_http_vibe_module);

    if (ctx->gone) {
        r->connection->error = 1;
    }

    if (rc == NGX_ERROR && !r->header_sent) {
        rc = NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    ngx_http_finalize_request(r, rc);
}


ngx_int_t
ngx_http_vibe_subrequest_header(ngx_http_vibe_call_t *call,
    ngx_http_request_t *r)
{
    off_t                       len;
    ngx_http_vibe_main_conf_t  *vmcf;

    vmcf = ngx_http_get_module_main_conf(r, ngx_http_vibe_module);

    len = r->headers_out.content_length_n;

    if (len > (off_t) vmcf->couch.max_response) {
        call->too_large = 1;

        ngx_log_error(NGX_LOG_ERR, r->connection->log, 0,
                      "couchdb's answer of %O bytes is larger than "
                      "vibe_max_response", len);

        return NGX_ERROR;
    }

    if (len > 0) {
        return ngx_http_vibe_subrequest_grow(call, r, (size_t) len);
    }

    return NGX_OK;
}


ngx_int_t
ngx_http_vibe_subrequest_body(ngx_http_vibe_call_t *call,
    ngx_http_request_t *r, ngx_chain_t *in)
{
    size_t        len;
    ngx_chain_t  *cl;

    for (cl = in; cl; cl = cl->next) {

        /* not there if the answer was cut off */

        if (cl->buf->last_in_chain || cl->buf->last_buf) {
            call->complete = 1;
        }

        if (!ngx_buf_in_memory(cl->buf)) {
            continue;
        }

        len = cl->buf->last - cl->buf->pos;

        if (ngx_http_vibe_subrequest_grow(call, r, call->answer.len + len)
            != NGX_OK)
        {
            call->broken = 1;
            return NGX_ERROR;
        }

        ngx_memcpy(call->answer.data + call->answer.len, cl->buf->pos, len);

        call->answer.len += len;
        cl->buf->pos = cl->buf->last;
    }

    return NGX_OK;
}


static ngx_int_t
ngx_http_vibe_subrequest_grow(ngx_http_vibe_call_t *call,
    ngx_http_request_t *r, size_t len)
{
    size_t                      size;
    u_char                     *p;
    ngx_http_vibe_main_conf_t  *vmcf;

    if (len <= call->size) {
        return NGX_OK;
    }

    vmcf = ngx_http_get_module_main_conf(r, ngx_http_vibe_module);

    if (len > vmcf->couch.max_response) {
        call->too_large = 1;

        if (call->size) {
            (void) ngx_pfree(r->pool, call->answer.data);
            call->size = 0;
        }

        ngx_log_error(NGX_LOG_ERR, r->connection->log, 0,
                      "couchdb's answer is larger than vibe_max_response");

        return NGX_ERROR;
    }

    size = ngx_max(call->size * 2, NGX_HTTP_VIBE_ANSWER_SIZE);
    size = ngx_max(len, ngx_min(size, vmcf->couch.max_response));

    p = ngx_pnalloc(r->pool, size);
    if (p == NULL) {
        return NGX_ERROR;
    }

    if (call->size) {
        ngx_memcpy(p, call->answer.data, call->answer.len);
        (void) ngx_pfree(r->pool, call->answer.data);
    }

    call->answer.data = p;
    call->size = size;

    return NGX_OK;
}


ngx_int_t
ngx_http_vibe_subrequest_url(ngx_http_request_t *r,
    ngx_http_variable_value_t *v, uintptr_t data)
{
    u_char                     *p;
    size_t                      len;
    ngx_http_vibe_ctx_t        *ctx;
    ngx_http_vibe_main_conf_t  *vmcf;

    ctx = ngx_http_get_module_ctx(r, ngx_http_vibe_module);

    if (ctx == NULL || ctx->capture == NULL) {
        v->not_found = 1;
        return NGX_OK;
    }

    vmcf = ngx_http_get_module_main_conf(r, ngx_http_vibe_module);

    len = vmcf->couch.url.len + ctx->capture->path.len;

    p = ngx_pnalloc(r->pool, len);
    if (p == NULL) {
        return NGX_ERROR;
    }

    v->data = p;

    p = ngx_cpymem(p, vmcf->couch.url.data, vmcf->couch.url.len);
    ngx_memcpy(p, ctx->capture->path.data, ctx->capture->path.len);

    v->len = len;
    v->valid = 1;
    v->no_cacheable = 0;
    v->not_found = 0;

    return NGX_OK;
}


ngx_int_t
ngx_http_vibe_subrequest_authorization(ngx_http_request_t *r,
    ngx_http_variable_value_t *v, uintptr_t data)
{
    ngx_http_vibe_ctx_t        *ctx;
    ngx_http_vibe_main_conf_t  *vmcf;

    ctx = ngx_http_get_module_ctx(r, ngx_http_vibe_module);
    vmcf = ngx_http_get_module_main_conf(r, ngx_http_vibe_module);

    /* nobody else's location gets to see it */

    if (ctx == NULL
        || ctx->capture == NULL
        || vmcf->couch.authorization.len == 0)
    {
        v->not_found = 1;
        return NGX_OK;
    }

    v->data = vmcf->couch.authorization.data;
    v->len = vmcf->couch.authorization.len;
    v->valid = 1;
    v->no_cacheable = 0;
    v->not_found = 0;

    return NGX_OK;
}
