
#include "ngx_http_vibe_query.h"
#include "ngx_http_vibe_answer.h"
#include "ngx_http_vibe_database.h"
#include "ngx_http_vibe_global.h"
#include "ngx_http_vibe_query_feed.h"

#include <ngx_sha1.h>


static ngx_int_t ngx_http_vibe_query_text(ngx_http_request_t *r,
    ngx_http_vibe_query_t *q, ngx_str_t *text);
static ngx_int_t ngx_http_vibe_query_begin(ngx_http_request_t *r,
    ngx_http_vibe_query_t *q);
static ngx_int_t ngx_http_vibe_query_owned(ngx_http_request_t *r, void *data,
    ngx_http_vibe_owner_e owner);
static ngx_int_t ngx_http_vibe_query_sequence(ngx_http_request_t *r,
    void *data, ngx_str_t *seq);
static ngx_int_t ngx_http_vibe_query_global(ngx_http_request_t *r,
    void *data, ngx_http_vibe_call_t *failed);
static ngx_int_t ngx_http_vibe_query_no_sort(ngx_http_request_t *r,
    ngx_str_t *collection);
static ngx_int_t ngx_http_vibe_query_find(ngx_http_request_t *r, void *data,
    ngx_http_vibe_call_t *failed);
static ngx_int_t ngx_http_vibe_query_refused(ngx_http_request_t *r,
    ngx_http_vibe_query_t *q, ngx_http_vibe_call_t *call);
static ngx_int_t ngx_http_vibe_query_read(ngx_http_request_t *r,
    ngx_http_vibe_query_t *q, ngx_http_vibe_call_t *call);
static ngx_uint_t ngx_http_vibe_query_scanned(ngx_http_vibe_json_t *root);
static ngx_int_t ngx_http_vibe_query_index(ngx_http_request_t *r,
    ngx_http_vibe_query_t *q);
static ngx_int_t ngx_http_vibe_query_indexes(ngx_http_request_t *r,
    ngx_http_vibe_call_t *call);
static ngx_uint_t ngx_http_vibe_query_count_indexes(
    ngx_http_vibe_json_t *root);
static ngx_int_t ngx_http_vibe_query_indexed(ngx_http_request_t *r,
    void *data, ngx_http_vibe_call_t *failed);
static ngx_http_vibe_json_t *ngx_http_vibe_query_expands(
    ngx_http_vibe_query_t *q, ngx_http_vibe_json_t *member);
static ngx_int_t ngx_http_vibe_query_answer(ngx_http_request_t *r,
    void *data, ngx_http_vibe_call_t *failed);
static ngx_int_t ngx_http_vibe_query_put_doc(ngx_http_vibe_query_t *q,
    ngx_http_vibe_json_out_t *out, ngx_http_vibe_json_t *doc);
static ngx_int_t ngx_http_vibe_query_etag(ngx_http_request_t *r,
    ngx_http_vibe_json_out_t *docs);


ngx_int_t
ngx_http_vibe_query(ngx_http_request_t *r, ngx_http_vibe_ctx_t *ctx)
{
    ngx_int_t                  rc;
    ngx_str_t                  text, value, reason;
    ngx_http_vibe_query_t     *q;
    ngx_http_vibe_loc_conf_t  *vlcf;

    static ngx_str_t  yes = ngx_string("true");
    static ngx_str_t  no = ngx_string("false");

    q = ngx_pcalloc(r->pool, sizeof(ngx_http_vibe_query_t));
    if (q == NULL) {
        return NGX_ERROR;
    }

    q->ctx = ctx;

    if (ngx_http_vibe_query_text(r, q, &text) != NGX_OK
        || ngx_http_vibe_arg(r, "global", &value) != NGX_OK)
    {
        return NGX_ERROR;
    }

    q->find.global = ngx_http_vibe_same(&value, &yes);

    if (!q->find.global && value.len && !ngx_http_vibe_same(&value, &no)) {
        return ngx_http_vibe_error_text(r, NGX_HTTP_BAD_REQUEST,
                             "The argument global must be true or false.");
    }

    vlcf = ngx_http_get_module_loc_conf(r, ngx_http_vibe_module);

    rc = ngx_http_vibe_find_parse(r->pool, &text, vlcf->global_regex,
                                  &q->find, &reason);

    if (rc == NGX_DECLINED) {
        return ngx_http_vibe_error(r, NGX_HTTP_BAD_REQUEST, &reason);
    }

    if (rc != NGX_OK) {
        return NGX_ERROR;
    }

    q->find.limit = ngx_min(q->find.limit, (ngx_uint_t) vlcf->max_limit);

    return ngx_http_vibe_query_begin(r, q);
}


/* the query: the body, or the argument "q" of a GET */

static ngx_int_t
ngx_http_vibe_query_text(ngx_http_request_t *r, ngx_http_vibe_query_t *q,
    ngx_str_t *text)
{
    if (r->method == NGX_HTTP_POST) {
        *text = q->ctx->body;
        return NGX_OK;
    }

    q->etag = 1;

    if (ngx_http_vibe_arg(r, "q", text) != NGX_OK) {
        return NGX_ERROR;
    }

    if (text->len == 0) {
        ngx_str_set(text, "{}");
    }

    return NGX_OK;
}


/* what is refused for what it asks costs CouchDB nothing */

static ngx_int_t
ngx_http_vibe_query_begin(ngx_http_request_t *r, ngx_http_vibe_query_t *q)
{
    ngx_int_t  rc;

    static ngx_str_t  name = ngx_string("not_registered");
    static ngx_str_t  reason =
                             ngx_string("There is no feed of this collection.");

    if (q->find.global) {

        rc = ngx_http_vibe_query_registered(r, q);

        if (rc == NGX_DECLINED) {
            return ngx_http_vibe_error_named(r, NGX_HTTP_FORBIDDEN, &name,
                                             &reason);
        }

        if (rc != NGX_OK) {
            return NGX_ERROR;
        }
    }

    if (q->ctx->caller.did.len) {
        return ngx_http_vibe_database_owner(r, &q->ctx->caller,
                                            ngx_http_vibe_query_owned, q);
    }

    if (!q->find.global) {
        return ngx_http_vibe_error_text(r, NGX_HTTP_UNAUTHORIZED,
                             "A token is needed for documents of your own.");
    }

    return ngx_http_vibe_query_owned(r, q, NGX_HTTP_VIBE_MISSING);
}


/* who reads need not have a database yet */

static ngx_int_t
ngx_http_vibe_query_owned(ngx_http_request_t *r, void *data,
    ngx_http_vibe_owner_e owner)
{
    ngx_http_vibe_query_t *q = data;

    if (!q->find.global) {
        q->db = &q->ctx->caller.db;
        return ngx_http_vibe_query_find(r, q, NULL);
    }

    if (q->feed != NULL) {
        return ngx_http_vibe_query_feed(r, q);
    }

    return ngx_http_vibe_query_live(r, q);
}


ngx_int_t
ngx_http_vibe_query_live(ngx_http_request_t *r, ngx_http_vibe_query_t *q)
{
    q->feed = NULL;
    q->db = &ngx_http_vibe_global;

    return ngx_http_vibe_global_ready(r, ngx_http_vibe_query_global, q);
}


static ngx_int_t
ngx_http_vibe_query_global(ngx_http_request_t *r, void *data,
    ngx_http_vibe_call_t *failed)
{
    ngx_http_vibe_query_t *q = data;

    ngx_array_t  none;

    if (failed != NULL) {
        return ngx_http_vibe_couch_failed(r, failed);
    }

    ngx_memzero(&none, sizeof(ngx_array_t));

    q->index = ngx_http_vibe_global_index(r, &q->ctx->collection,
                                          q->find.sort ? q->find.sort
                                                       : &none);
    if (q->index == NULL) {
        return ngx_http_vibe_query_no_sort(r, &q->ctx->collection);
    }

    q->index_name = q->index->name;

    return ngx_http_vibe_index_ready(r, q->index, ngx_http_vibe_query_find,
                                     q);
}


/* 400, with the sorts that there are */

static ngx_int_t
ngx_http_vibe_query_no_sort(ngx_http_request_t *r, ngx_str_t *collection)
{
    ngx_str_t                   reason;
    ngx_uint_t                  i;
    ngx_http_vibe_index_t      *index;
    ngx_http_vibe_json_out_t    out;
    ngx_http_vibe_main_conf_t  *vmcf;

    vmcf = ngx_http_get_module_main_conf(r, ngx_http_vibe_module);

    ngx_http_vibe_json_out_init(&out, r->pool);

    ngx_http_vibe_json_put_text(&out,
                                "Global queries cannot be sorted so. By:");

    index = vmcf->indexes.elts;

    for (i = 0; i < vmcf->indexes.nelts; i++) {

        if (index[i].fields.nelts == 0
            || ngx_http_vibe_global_index(r, collection, &index[i].fields)
               != &index[i])
        {
            continue;
        }

        ngx_http_vibe_query_put_sort(&out, &index[i].fields);
    }

    if (ngx_http_vibe_json_out_str(&out, &reason) != NGX_OK) {
        return NGX_ERROR;
    }

    return ngx_http_vibe_error(r, NGX_HTTP_BAD_REQUEST, &reason);
}


void
ngx_http_vibe_query_put_sort(ngx_http_vibe_json_out_t *out,
    ngx_array_t *fields)
{
    ngx_str_t   *field;
    ngx_uint_t   i;

    field = fields->elts;

    for (i = 0; i < fields->nelts; i++) {
        ngx_http_vibe_json_put_text(out, " ");
        ngx_http_vibe_json_put_str(out, &field[i]);
    }

    ngx_http_vibe_json_put_text(out, ";");
}


/* first the sequence: what changes from now on comes after it */

static ngx_int_t
ngx_http_vibe_query_find(ngx_http_request_t *r, void *data,
    ngx_http_vibe_call_t *failed)
{
    ngx_http_vibe_query_t *q = data;

    if (failed != NULL) {
        return ngx_http_vibe_couch_failed(r, failed);
    }

    return ngx_http_vibe_database_sequence(r, q->db,
                                           ngx_http_vibe_query_sequence, q);
}


static ngx_int_t
ngx_http_vibe_query_sequence(ngx_http_request_t *r, void *data,
    ngx_str_t *seq)
{
    ngx_http_vibe_query_t *q = data;

    ngx_http_vibe_json_out_t  out;

    q->seq = *seq;

    ngx_http_vibe_json_out_init(&out, r->pool);

    ngx_http_vibe_find_put(&out, &q->find, &q->ctx->collection,
                           q->find.global ? &q->ctx->caller.did : NULL,
                           &q->index_name);

    return ngx_http_vibe_request(r, NGX_HTTP_POST, q->db, "/_find", &out,
                                 ngx_http_vibe_query_found, q);
}


ngx_int_t
ngx_http_vibe_query_found(ngx_http_request_t *r, ngx_http_vibe_call_t *call)
{
    ngx_http_vibe_query_t *q = call->data;

    ngx_int_t                   rc;
    ngx_http_vibe_main_conf_t  *vmcf;

    if (ngx_http_vibe_no_database(call)) {

        if (q->feed != NULL) {
            return ngx_http_vibe_query_feed_lost(r, q);
        }

        if (q->find.global) {
            vmcf = ngx_http_get_module_main_conf(r, ngx_http_vibe_module);

            ngx_http_vibe_index_gone(r, q->index);
            ngx_http_vibe_global_gone(vmcf);

            call->status = NGX_HTTP_SERVICE_UNAVAILABLE;
            return ngx_http_vibe_couch_failed(r, call);
        }

        /* nothing was ever written */

        return ngx_http_vibe_query_answer(r, q, NULL);
    }

    if (call->status == NGX_HTTP_BAD_REQUEST) {
        return ngx_http_vibe_query_refused(r, q, call);
    }

    rc = NGX_DECLINED;

    if (call->status == NGX_HTTP_OK) {
        rc = ngx_http_vibe_query_read(r, q, call);
    }

    if (rc != NGX_DECLINED) {
        return rc;
    }

    if (call->too_large && q->find.limit > 1) {

        /* a shorter page: the bookmark leads on */

        q->find.limit /= 2;

        if (q->feed != NULL) {
            return ngx_http_vibe_query_feed_find(r, q);
        }

        return ngx_http_vibe_query_sequence(r, q, &q->seq);
    }

    return ngx_http_vibe_couch_failed(r, call);
}


static ngx_int_t
ngx_http_vibe_query_refused(ngx_http_request_t *r, ngx_http_vibe_query_t *q,
    ngx_http_vibe_call_t *call)
{
    ngx_int_t              rc;
    ngx_http_vibe_json_t  *root, *error;

    rc = ngx_http_vibe_scan_answer(r->pool, call, 1, &root);
    if (rc == NGX_ERROR) {
        return NGX_ERROR;
    }

    error = (rc == NGX_OK) ? ngx_http_vibe_json_get(root, "error") : NULL;

    if (ngx_http_vibe_json_is_string(error, "no_usable_index")) {

        if (!q->find.global) {
            return ngx_http_vibe_query_index(r, q);
        }

        if (q->feed != NULL) {
            return ngx_http_vibe_query_feed_lost(r, q);
        }

        /* deleted, or so new that not all of CouchDB knows of it */

        ngx_http_vibe_index_gone(r, q->index);

        if (++q->tries < NGX_HTTP_VIBE_INDEX_TRIES) {
            return ngx_http_vibe_global_ready(r, ngx_http_vibe_query_global,
                                              q);
        }

        call->status = NGX_HTTP_SERVICE_UNAVAILABLE;
        return ngx_http_vibe_couch_failed(r, call);
    }

    if (ngx_http_vibe_json_is_string(error, "invalid_bookmark")) {
        return ngx_http_vibe_error_text(r, NGX_HTTP_BAD_REQUEST,
                                        "The bookmark is not one of ours.");
    }

    if (rc == NGX_OK) {
        ngx_log_error(NGX_LOG_ERR, r->connection->log, 0,
                      "couchdb refused a query: \"%V\"",
                      error ? &error->string : &call->path);

        return ngx_http_vibe_error_text(r, NGX_HTTP_BAD_REQUEST,
                               "The database cannot answer this query.");
    }

    return ngx_http_vibe_couch_failed(r, call);
}


static ngx_int_t
ngx_http_vibe_query_read(ngx_http_request_t *r, ngx_http_vibe_query_t *q,
    ngx_http_vibe_call_t *call)
{
    ngx_int_t              rc;
    ngx_uint_t             depth;
    ngx_http_vibe_json_t  *root, *bookmark;

    /*
     * docs, doc, member; and of what may be expanded an element and its
     * members.  The caller's own documents go out as they are.
     */

    depth = q->find.expand.nelts ? 5 : q->find.global ? 3 : 1;

    rc = ngx_http_vibe_scan_answer(r->pool, call, depth, &root);
    if (rc != NGX_OK) {
        return rc;
    }

    q->docs = ngx_http_vibe_json_get(root, "docs");
    bookmark = ngx_http_vibe_json_get(root, "bookmark");

    if (q->docs == NULL || q->docs->type != NGX_HTTP_VIBE_JSON_ARRAY) {
        call->status = NGX_HTTP_BAD_GATEWAY;
        return NGX_DECLINED;
    }

    if (bookmark != NULL) {
        q->bookmark = bookmark->raw;
    }

    if (!q->find.global && !q->indexed && ngx_http_vibe_query_scanned(root)) {
        return ngx_http_vibe_query_index(r, q);
    }

    if (q->feed != NULL) {
        return ngx_http_vibe_query_feed_verify(r, q);
    }

    return ngx_http_vibe_query_expand(r, q);
}


/* 1 if CouchDB went through the whole database for want of an index */

static ngx_uint_t
ngx_http_vibe_query_scanned(ngx_http_vibe_json_t *root)
{
    ngx_http_vibe_json_t  *warning;

    warning = ngx_http_vibe_json_get(root, "warning");

    return warning != NULL
           && warning->type == NGX_HTTP_VIBE_JSON_STRING
           && ngx_strlcasestrn(warning->string.data,
                               warning->string.data + warning->string.len,
                               (u_char *) "no matching index",
                               sizeof("no matching index") - 2)
              != NULL;
}


/* makes an index of the caller's own database, if it may have one more */

static ngx_int_t
ngx_http_vibe_query_index(ngx_http_request_t *r, ngx_http_vibe_query_t *q)
{
    if (q->indexed) {
        return ngx_http_vibe_error_text(r, NGX_HTTP_SERVICE_UNAVAILABLE,
                              "The index for this sort is being built.");
    }

    q->indexed = 1;

    return ngx_http_vibe_request(r, NGX_HTTP_GET, q->db, "/_index", NULL,
                                 ngx_http_vibe_query_indexes, q);
}


static ngx_int_t
ngx_http_vibe_query_indexes(ngx_http_request_t *r, ngx_http_vibe_call_t *call)
{
    ngx_http_vibe_query_t *q = call->data;

    ngx_int_t                  rc;
    ngx_str_t                  name;
    ngx_http_vibe_json_t      *root;
    ngx_http_vibe_loc_conf_t  *vlcf;

    if (call->status != NGX_HTTP_OK) {
        return ngx_http_vibe_couch_failed(r, call);
    }

    rc = ngx_http_vibe_scan_answer(r->pool, call, 3, &root);
    if (rc == NGX_ERROR) {
        return NGX_ERROR;
    }

    if (rc != NGX_OK) {
        return ngx_http_vibe_couch_failed(r, call);
    }

    vlcf = ngx_http_get_module_loc_conf(r, ngx_http_vibe_module);

    if (ngx_http_vibe_query_count_indexes(root)
        >= (ngx_uint_t) vlcf->own_indexes)
    {

        if (q->docs != NULL) {
            /* slow, but answered */
            return ngx_http_vibe_query_expand(r, q);
        }

        return ngx_http_vibe_error_text(r, NGX_HTTP_BAD_REQUEST,
                  "Your database has as many sorts as it may have.");
    }

    if (ngx_http_vibe_index_name(r->pool, q->find.sort, &name) != NGX_OK) {
        return NGX_ERROR;
    }

    return ngx_http_vibe_index_create(r, q->db, &name, q->find.sort,
                                      ngx_http_vibe_query_indexed, q);
}


static ngx_uint_t
ngx_http_vibe_query_count_indexes(ngx_http_vibe_json_t *root)
{
    ngx_uint_t             n;
    ngx_http_vibe_json_t  *list, *node, *ddoc;

    static ngx_str_t  prefix =
                         ngx_string("_design/" NGX_HTTP_VIBE_INDEX_PREFIX);

    n = 0;

    list = ngx_http_vibe_json_get(root, "indexes");

    for (node = list ? list->child : NULL; node; node = node->next) {

        ddoc = ngx_http_vibe_json_get(node, "ddoc");

        if (ddoc != NULL
            && ddoc->string.len > prefix.len
            && ngx_strncmp(ddoc->string.data, prefix.data, prefix.len) == 0)
        {
            n++;
        }
    }

    return n;
}


static ngx_int_t
ngx_http_vibe_query_indexed(ngx_http_request_t *r, void *data,
    ngx_http_vibe_call_t *failed)
{
    ngx_http_vibe_query_t *q = data;

    if (failed != NULL) {
        return ngx_http_vibe_couch_failed(r, failed);
    }

    if (q->docs != NULL) {
        /* the next query will have it */
        return ngx_http_vibe_query_expand(r, q);
    }

    return ngx_http_vibe_query_find(r, q, NULL);
}


ngx_int_t
ngx_http_vibe_query_expand(ngx_http_request_t *r, ngx_http_vibe_query_t *q)
{
    ngx_uint_t             n;
    ngx_http_vibe_json_t  *doc, *m;

    if (q->find.expand.nelts == 0) {
        return ngx_http_vibe_query_answer(r, q, NULL);
    }

    n = 0;

    for (doc = q->docs->child; doc; doc = doc->next) {
        for (m = doc->child; m; m = m->next) {
            if (ngx_http_vibe_query_expands(q, m)) {
                n += ngx_http_vibe_expand_count(m);
            }
        }
    }

    /* what is beyond the limit stays as it is */

    q->expand = ngx_http_vibe_expand_create(r, &q->ctx->caller,
                                            ngx_min(n,
                                                    NGX_HTTP_VIBE_EXPAND_MAX));
    if (q->expand == NULL) {
        return NGX_ERROR;
    }

    for (doc = q->docs->child; doc; doc = doc->next) {
        for (m = doc->child; m; m = m->next) {
            if (ngx_http_vibe_query_expands(q, m)
                && ngx_http_vibe_expand_add(r, q->expand, m) == NGX_ERROR)
            {
                return NGX_ERROR;
            }
        }
    }

    return ngx_http_vibe_expand(r, q->expand, ngx_http_vibe_query_answer, q);
}


static ngx_http_vibe_json_t *
ngx_http_vibe_query_expands(ngx_http_vibe_query_t *q,
    ngx_http_vibe_json_t *member)
{
    ngx_str_t   *name;
    ngx_uint_t   i;

    name = q->find.expand.elts;

    for (i = 0; i < q->find.expand.nelts; i++) {
        if (ngx_http_vibe_same(&name[i], &member->name)) {
            return member;
        }
    }

    return NULL;
}


static ngx_int_t
ngx_http_vibe_query_answer(ngx_http_request_t *r, void *data,
    ngx_http_vibe_call_t *failed)
{
    ngx_http_vibe_query_t *q = data;

    ngx_int_t                  rc;
    ngx_http_vibe_json_t      *doc;
    ngx_http_vibe_json_out_t   out;

    if (failed != NULL) {
        return ngx_http_vibe_couch_failed(r, failed);
    }

    ngx_http_vibe_json_out_init(&out, r->pool);

    ngx_http_vibe_json_put_text(&out, "{\"docs\":");

    if (q->docs == NULL) {
        ngx_http_vibe_json_put_text(&out, "[]");

    } else if (!q->find.global && q->expand == NULL) {
        ngx_http_vibe_json_put_str(&out, &q->docs->raw);

    } else {
        ngx_http_vibe_json_put_text(&out, "[");

        for (doc = q->docs->child; doc; doc = doc->next) {
            if (ngx_http_vibe_query_put_doc(q, &out, doc) != NGX_OK) {
                return NGX_ERROR;
            }

            if (doc->next) {
                ngx_http_vibe_json_put_text(&out, ",");
            }
        }

        ngx_http_vibe_json_put_text(&out, "]");
    }

    ngx_http_vibe_json_put_text(&out, ",\"bookmark\":");

    if (q->bookmark.len) {
        ngx_http_vibe_json_put_str(&out, &q->bookmark);

    } else {
        ngx_http_vibe_json_put_text(&out, "\"nil\"");
    }

    if (q->feed != NULL && ngx_http_vibe_query_feed_age(r, q) != NGX_OK) {
        return NGX_ERROR;
    }

    if (q->etag) {
        rc = ngx_http_vibe_query_etag(r, &out);

        if (rc != NGX_OK) {
            return (rc == NGX_DECLINED)
                   ? ngx_http_vibe_answer_empty(r, NGX_HTTP_NOT_MODIFIED)
                   : NGX_ERROR;
        }
    }

    ngx_http_vibe_json_put_text(&out, ",\"last_seq\":");
    ngx_http_vibe_json_put_string(&out, &q->seq);

    if (q->feed != NULL) {
        ngx_http_vibe_query_feed_put_as_of(&out, q);
    }

    ngx_http_vibe_json_put_text(&out, "}\n");

    return ngx_http_vibe_answer(r, NGX_HTTP_OK, &out);
}


/* a document with its references replaced, one of "global" as it is shown */

static ngx_int_t
ngx_http_vibe_query_put_doc(ngx_http_vibe_query_t *q,
    ngx_http_vibe_json_out_t *out, ngx_http_vibe_json_t *doc)
{
    ngx_int_t                 rc;
    ngx_http_vibe_json_t     *m;
    ngx_http_vibe_json_out_t  value;

    if (q->expand != NULL) {

        for (m = doc->child; m; m = m->next) {

            if (!ngx_http_vibe_query_expands(q, m)) {
                continue;
            }

            ngx_http_vibe_json_out_init(&value, out->pool);

            rc = ngx_http_vibe_expand_put(q->expand, &value, m);

            /* from here on this is the member's value */

            if (rc != NGX_OK
                || ngx_http_vibe_json_out_str(&value, &m->replaced) != NGX_OK)
            {
                return NGX_ERROR;
            }
        }
    }

    ngx_http_vibe_copy_show(out, doc, q->find.global);

    return NGX_OK;
}


/*
 * A weak validator (RFC 9110, 8.8.3) of what is answered but for "last_seq"
 * and "as_of", which move where nothing else does.  NGX_DECLINED: the client
 * has it.
 */

static ngx_int_t
ngx_http_vibe_query_etag(ngx_http_request_t *r, ngx_http_vibe_json_out_t *out)
{
    u_char            *p, hash[20];
    ngx_str_t          etag;
    ngx_sha1_t         sha1;
    ngx_chain_t       *cl;
    ngx_table_elt_t   *h;

    ngx_sha1_init(&sha1);

    for (cl = out->first; cl; cl = cl->next) {
        ngx_sha1_update(&sha1, cl->buf->pos, cl->buf->last - cl->buf->pos);
    }

    ngx_sha1_final(hash, &sha1);

    etag.len = sizeof("W/\"\"") - 1 + 32;

    p = ngx_pnalloc(r->pool, etag.len);
    if (p == NULL) {
        return NGX_ERROR;
    }

    etag.data = p;

    p = ngx_cpymem(p, "W/\"", 3);
    p = ngx_hex_dump(p, hash, 16);
    *p = '"';

    if (ngx_http_vibe_add_header(r, "ETag", &etag) != NGX_OK
        || ngx_http_vibe_not_shared(r) != NGX_OK)
    {
        return NGX_ERROR;
    }

    h = ngx_http_vibe_header_in(r, "if-none-match",
                                sizeof("if-none-match") - 1);

    /* compared weakly: the opaque part, wherever it stands in the list */

    if (h != NULL
        && h->value.len >= etag.len - 2
        && ngx_strlcasestrn(h->value.data, h->value.data + h->value.len,
                            etag.data + 2, etag.len - 3)
           != NULL)
    {
        return NGX_DECLINED;
    }

    return NGX_OK;
}
