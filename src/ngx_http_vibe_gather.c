
#include "ngx_http_vibe_gather.h"
#include "ngx_http_vibe_check.h"

#include <ngx_sha1.h>


static void ngx_http_vibe_gather_owner(ngx_http_vibe_ask_t *ask,
    ngx_http_vibe_call_t *call);
static ngx_int_t ngx_http_vibe_gather_begin(ngx_http_vibe_gather_t *g);
static void ngx_http_vibe_gather_held(ngx_http_vibe_rows_t *rows,
    ngx_int_t rc);
static void ngx_http_vibe_gather_find(ngx_http_vibe_gather_t *g);
static void ngx_http_vibe_gather_put_find(ngx_http_vibe_gather_t *g,
    ngx_http_vibe_json_out_t *out);
static void ngx_http_vibe_gather_put_fields(ngx_http_vibe_feed_t *feed,
    ngx_http_vibe_json_out_t *out);
static void ngx_http_vibe_gather_found(ngx_http_vibe_ask_t *ask,
    ngx_http_vibe_call_t *call);
static ngx_int_t ngx_http_vibe_gather_read(ngx_http_vibe_gather_t *g,
    ngx_http_vibe_call_t *call);
static ngx_int_t ngx_http_vibe_gather_doc(ngx_http_vibe_gather_t *g,
    ngx_http_vibe_json_t *doc);
static ngx_int_t ngx_http_vibe_gather_members(ngx_http_vibe_gather_t *g,
    ngx_http_vibe_json_t *doc, ngx_str_t *members);
static ngx_int_t ngx_http_vibe_gather_sum(ngx_http_vibe_gather_t *g,
    ngx_str_t *members, ngx_str_t *sum);
static void ngx_http_vibe_gather_drop(ngx_http_vibe_gather_t *g);
static void ngx_http_vibe_gather_written(ngx_http_vibe_rows_t *rows,
    ngx_int_t rc);
static void ngx_http_vibe_gather_failed(ngx_http_vibe_gather_t *g,
    ngx_http_vibe_call_t *call);
static ngx_uint_t ngx_http_vibe_gather_shows(ngx_http_vibe_feed_t *feed,
    const char *name);


ngx_http_vibe_gather_t *
ngx_http_vibe_gather(ngx_http_vibe_main_conf_t *vmcf,
    ngx_http_vibe_feed_t *feed, ngx_str_t *db, ngx_str_t *to,
    ngx_uint_t empty, ngx_http_vibe_gather_pt handler, void *data)
{
    ngx_pool_t              *pool;
    ngx_http_vibe_gather_t  *g;

    pool = ngx_create_pool(NGX_DEFAULT_POOL_SIZE, ngx_cycle->log);
    if (pool == NULL) {
        return NULL;
    }

    g = ngx_pcalloc(pool, sizeof(ngx_http_vibe_gather_t));
    if (g == NULL) {
        goto failed;
    }

    g->pool = pool;
    g->vmcf = vmcf;
    g->feed = feed;
    g->handler = handler;
    g->data = data;
    g->empty = empty ? 1 : 0;
    g->page = NGX_HTTP_VIBE_GATHER_PAGE;

    g->db.len = db->len;
    g->db.data = ngx_pstrdup(pool, db);

    if (g->db.data == NULL
        || ngx_http_vibe_rows_init(&g->rows, vmcf, to, g) != NGX_OK
        || ngx_http_vibe_ask_init(&g->ask, vmcf->zone, g) != NGX_OK)
    {
        ngx_http_vibe_rows_end(&g->rows);
        goto failed;
    }

    switch (ngx_http_vibe_check_named(vmcf, pool, &g->db, &g->did)) {

    case NGX_OK:

        if (ngx_http_vibe_gather_begin(g) == NGX_OK) {
            return g;
        }

        break;

    case NGX_DECLINED:
        ngx_http_vibe_ask(&g->ask, NGX_HTTP_GET, &g->db,
                          NGX_HTTP_VIBE_OWNER_DOC, NULL,
                          ngx_http_vibe_gather_owner);
        return g;
    }

    ngx_http_vibe_gather_end(g);

    return NULL;

failed:

    ngx_destroy_pool(pool);

    return NULL;
}


void
ngx_http_vibe_gather_end(ngx_http_vibe_gather_t *g)
{
    ngx_http_vibe_rows_end(&g->rows);
    ngx_http_vibe_ask_end(&g->ask);

    if (g->marks != NULL) {
        ngx_destroy_pool(g->marks);
    }

    ngx_destroy_pool(g->pool);
}


static void
ngx_http_vibe_gather_owner(ngx_http_vibe_ask_t *ask,
    ngx_http_vibe_call_t *call)
{
    ngx_http_vibe_gather_t *g = ask->data;

    switch (ngx_http_vibe_check_record(ask, call, g->pool, &g->did)) {

    case NGX_OK:

        if (ngx_http_vibe_gather_begin(g) != NGX_OK) {
            g->handler(g, NGX_ERROR);
        }

        return;

    case NGX_DECLINED:
        g->unowned = 1;
        g->handler(g, NGX_OK);
        return;

    case NGX_ABORT:
        g->missing = 1;
        g->handler(g, NGX_OK);
        return;

    default:
        ngx_http_vibe_gather_failed(g, call);
    }
}


/* its owner's rows: those whose ids begin with the DID and a colon */

static ngx_int_t
ngx_http_vibe_gather_begin(ngx_http_vibe_gather_t *g)
{
    u_char     *p;
    ngx_str_t   from, to;

    g->bookmark.len = 0;

    if (g->empty) {
        ngx_http_vibe_gather_find(g);
        return NGX_OK;
    }

    from.len = g->did.len + 1;
    from.data = ngx_pnalloc(g->pool, from.len);

    to.len = from.len;
    to.data = ngx_pnalloc(g->pool, to.len);

    if (from.data == NULL || to.data == NULL) {
        return NGX_ERROR;
    }

    p = ngx_cpymem(from.data, g->did.data, g->did.len);
    *p = ':';

    p = ngx_cpymem(to.data, g->did.data, g->did.len);
    *p = ';';

    return ngx_http_vibe_rows_read(&g->rows, &from, &to,
                                   ngx_http_vibe_gather_held);
}


static void
ngx_http_vibe_gather_held(ngx_http_vibe_rows_t *rows, ngx_int_t rc)
{
    ngx_queue_t             *q;
    ngx_http_vibe_row_t     *row;
    ngx_http_vibe_gather_t  *g;

    g = rows->data;

    if (rc != NGX_OK) {
        g->handler(g, rc);
        return;
    }

    /* one owner may have more than one database */

    for (q = ngx_queue_head(&rows->queue);
         q != ngx_queue_sentinel(&rows->queue);
         q = ngx_queue_next(q))
    {
        row = ngx_queue_data(q, ngx_http_vibe_row_t, queue);
        row->put = !ngx_http_vibe_same(&row->source, &g->db);
    }

    ngx_http_vibe_gather_find(g);
}


static void
ngx_http_vibe_gather_find(ngx_http_vibe_gather_t *g)
{
    ngx_http_vibe_json_out_t  out;

    ngx_http_vibe_json_out_init(&out, g->ask.pool);
    ngx_http_vibe_gather_put_find(g, &out);

    ngx_http_vibe_ask(&g->ask, NGX_HTTP_POST, &g->db, "/_find", &out,
                      ngx_http_vibe_gather_found);
}


/* what lacks a field of the sort is no result of a sorted query */

static void
ngx_http_vibe_gather_put_find(ngx_http_vibe_gather_t *g,
    ngx_http_vibe_json_out_t *out)
{
    ngx_str_t             *field;
    ngx_uint_t             i;
    ngx_http_vibe_feed_t  *feed;

    feed = g->feed;
    field = feed->sort.elts;

    ngx_http_vibe_json_put_text(out, "{\"selector\":{\"$and\":["
                                     "{\"acl\":{\"$exists\":true}}");

    if (feed->selector.len > sizeof("{}") - 1) {
        ngx_http_vibe_json_put_text(out, ",");
        ngx_http_vibe_json_put_str(out, &feed->selector);
    }

    for (i = 0; i < feed->sort.nelts; i++) {
        ngx_http_vibe_json_put_text(out, ",{");
        ngx_http_vibe_json_put_string(out, &field[i]);
        ngx_http_vibe_json_put_text(out, ":{\"$exists\":true}}");
    }

    ngx_http_vibe_json_put_text(out, "]},\"limit\":");
    ngx_http_vibe_json_put_uint(out, g->page);

    if (feed->fields.nelts) {
        ngx_http_vibe_gather_put_fields(feed, out);
    }

    if (g->bookmark.len) {
        ngx_http_vibe_json_put_text(out, ",\"bookmark\":");
        ngx_http_vibe_json_put_str(out, &g->bookmark);
    }

    ngx_http_vibe_json_put_text(out, "}");
}


static void
ngx_http_vibe_gather_put_fields(ngx_http_vibe_feed_t *feed,
    ngx_http_vibe_json_out_t *out)
{
    ngx_str_t    *field;
    ngx_uint_t    i, k;
    ngx_array_t  *lists[2];

    lists[0] = &feed->fields;
    lists[1] = &feed->sort;

    ngx_http_vibe_json_put_text(out, ",\"fields\":[\"_id\",\"_rev\","
                                     "\"acl\",\"collection\"");

    for (k = 0; k < 2; k++) {
        field = lists[k]->elts;

        for (i = 0; i < lists[k]->nelts; i++) {
            ngx_http_vibe_json_put_text(out, ",");
            ngx_http_vibe_json_put_string(out, &field[i]);
        }
    }

    ngx_http_vibe_json_put_text(out, "]");
}


static void
ngx_http_vibe_gather_found(ngx_http_vibe_ask_t *ask,
    ngx_http_vibe_call_t *call)
{
    ngx_http_vibe_gather_t *g = ask->data;

    if (ngx_http_vibe_no_database(call)) {
        g->missing = 1;
        g->more = 0;
        ngx_http_vibe_gather_drop(g);
        return;
    }

    if (call->too_large && g->page > 1) {
        g->page /= 2;
        ngx_http_vibe_gather_find(g);
        return;
    }

    if (call->status != NGX_HTTP_OK
        || ngx_http_vibe_gather_read(g, call) != NGX_OK)
    {
        ngx_http_vibe_gather_failed(g, call);
        return;
    }

    ngx_http_vibe_gather_drop(g);
}


static ngx_int_t
ngx_http_vibe_gather_read(ngx_http_vibe_gather_t *g,
    ngx_http_vibe_call_t *call)
{
    ngx_pool_t            *marks;
    ngx_http_vibe_json_t  *root, *docs, *doc, *bookmark;

    if (ngx_http_vibe_scan_answer(g->ask.pool, call, NGX_HTTP_VIBE_JSON_ALL,
                                  &root)
        != NGX_OK)
    {
        return NGX_ERROR;
    }

    docs = ngx_http_vibe_json_get(root, "docs");
    bookmark = ngx_http_vibe_json_get(root, "bookmark");

    if (docs == NULL || docs->type != NGX_HTTP_VIBE_JSON_ARRAY) {
        return NGX_ERROR;
    }

    for (doc = docs->child; doc; doc = doc->next) {
        if (ngx_http_vibe_gather_doc(g, doc) != NGX_OK) {
            return NGX_ERROR;
        }
    }

    g->more = (docs->n >= g->page && bookmark != NULL);

    if (!g->more) {
        return NGX_OK;
    }

    marks = ngx_create_pool(NGX_DEFAULT_POOL_SIZE, ngx_cycle->log);
    if (marks == NULL) {
        return NGX_ERROR;
    }

    if (g->marks != NULL) {
        ngx_destroy_pool(g->marks);
    }

    g->marks = marks;
    g->bookmark.len = bookmark->raw.len;
    g->bookmark.data = ngx_pstrdup(marks, &bookmark->raw);

    return g->bookmark.data ? NGX_OK : NGX_ERROR;
}


static ngx_int_t
ngx_http_vibe_gather_doc(ngx_http_vibe_gather_t *g, ngx_http_vibe_json_t *doc)
{
    ngx_str_t                collection, global, members, sum;
    ngx_pool_t              *pool;
    ngx_http_vibe_json_t    *id;
    ngx_http_vibe_access_t   access;

    pool = g->ask.pool;

    id = ngx_http_vibe_json_get(doc, "_id");

    if (id == NULL || id->type != NGX_HTTP_VIBE_JSON_STRING) {
        return NGX_ERROR;
    }

    if (ngx_http_vibe_acl_decide(pool, &g->did, doc, &access) != NGX_OK) {
        return NGX_ERROR;
    }

    if (access.kind != NGX_HTTP_VIBE_PUBLIC
        || ngx_http_vibe_copy_collection(doc, &id->string, &collection)
           != NGX_OK
        || !ngx_http_vibe_same(&collection, &g->feed->collection))
    {
        return NGX_OK;
    }

    if (ngx_http_vibe_global_id(pool, &g->did, &id->string, &global) != NGX_OK
        || ngx_http_vibe_gather_members(g, doc, &members) != NGX_OK
        || ngx_http_vibe_gather_sum(g, &members, &sum) != NGX_OK)
    {
        return NGX_ERROR;
    }

    return ngx_http_vibe_rows_put(&g->rows, &global, &sum, &members);
}


static ngx_int_t
ngx_http_vibe_gather_members(ngx_http_vibe_gather_t *g,
    ngx_http_vibe_json_t *doc, ngx_str_t *members)
{
    ngx_str_t                  own;
    ngx_pool_t                *pool;
    ngx_http_vibe_json_t     **m, *rev;
    ngx_http_vibe_json_out_t   out;

    static ngx_str_t  acl = ngx_string("acl");

    pool = g->ask.pool;

    if (!ngx_http_vibe_gather_shows(g->feed, "acl")) {
        for (m = &doc->child; *m; /* void */ ) {
            if (ngx_http_vibe_same(&(*m)->name, &acl)) {
                *m = (*m)->next;

            } else {
                m = &(*m)->next;
            }
        }
    }

    if (ngx_http_vibe_copy_members(pool, doc, &own) != NGX_OK) {
        return NGX_ERROR;
    }

    ngx_http_vibe_json_out_init(&out, pool);

    ngx_http_vibe_json_put_str(&out, &own);
    ngx_http_vibe_json_put_text(&out, ",\"collection\":");
    ngx_http_vibe_json_put_string(&out, &g->feed->collection);
    ngx_http_vibe_json_put_text(&out, ",\"vibe_v\":");
    ngx_http_vibe_json_put_uint(&out, NGX_HTTP_VIBE_FORMAT);
    ngx_http_vibe_json_put_text(&out, ",\"vibe_db\":");
    ngx_http_vibe_json_put_string(&out, &g->db);

    rev = ngx_http_vibe_json_get(doc, "_rev");

    if (rev != NULL && ngx_http_vibe_gather_shows(g->feed, "_rev")) {
        ngx_http_vibe_json_put_text(&out, ",\"vibe_rev\":");
        ngx_http_vibe_json_put_str(&out, &rev->raw);
    }

    return ngx_http_vibe_json_out_str(&out, members);
}


/* of the members, which name the database, and of what the feed is */

static ngx_int_t
ngx_http_vibe_gather_sum(ngx_http_vibe_gather_t *g, ngx_str_t *members,
    ngx_str_t *sum)
{
    u_char      hash[20];
    ngx_sha1_t  sha1;

    ngx_sha1_init(&sha1);
    ngx_sha1_update(&sha1, g->feed->hash.data, g->feed->hash.len);
    ngx_sha1_update(&sha1, members->data, members->len);
    ngx_sha1_final(hash, &sha1);

    sum->len = NGX_HTTP_VIBE_ROWS_SUM;
    sum->data = ngx_pnalloc(g->ask.pool, sum->len);
    if (sum->data == NULL) {
        return NGX_ERROR;
    }

    ngx_hex_dump(sum->data, hash, NGX_HTTP_VIBE_ROWS_SUM / 2);

    return NGX_OK;
}


/* writes what a page has brought, and after the last one drops the rest */

static void
ngx_http_vibe_gather_drop(ngx_http_vibe_gather_t *g)
{
    if (!g->more && ngx_http_vibe_rows_drop(&g->rows) == NGX_ERROR) {
        g->handler(g, NGX_ERROR);
        return;
    }

    if (ngx_http_vibe_rows_write(&g->rows, ngx_http_vibe_gather_written)
        == NGX_AGAIN)
    {
        return;
    }

    ngx_http_vibe_gather_written(&g->rows, NGX_OK);
}


static void
ngx_http_vibe_gather_written(ngx_http_vibe_rows_t *rows, ngx_int_t rc)
{
    ngx_queue_t             *q;
    ngx_http_vibe_row_t     *row;
    ngx_http_vibe_gather_t  *g;

    g = rows->data;

    if (rc == NGX_DECLINED) {

        if (++g->tries < NGX_HTTP_VIBE_GATHER_TRIES) {
            g->empty = 0;

            if (ngx_http_vibe_gather_begin(g) == NGX_OK) {
                return;
            }
        }

        rc = NGX_ERROR;
    }

    if (rc != NGX_OK) {
        g->handler(g, rc);
        return;
    }

    if (g->more) {
        ngx_http_vibe_gather_find(g);
        return;
    }

    for (q = ngx_queue_head(&rows->queue);
         q != ngx_queue_sentinel(&rows->queue);
         q = ngx_queue_next(q))
    {
        row = ngx_queue_data(q, ngx_http_vibe_row_t, queue);

        if (!row->put) {
            ngx_http_vibe_gather_drop(g);
            return;
        }
    }

    g->handler(g, NGX_OK);
}


/* a database that answers with an error of its own keeps nobody waiting */

static void
ngx_http_vibe_gather_failed(ngx_http_vibe_gather_t *g,
    ngx_http_vibe_call_t *call)
{
    g->status = call->status;

    /* without an answer nobody was there who could have said 503 */

    g->handler(g, (call->status == NGX_HTTP_SERVICE_UNAVAILABLE
                   && call->answer.len == 0)
                  || call->status == NGX_HTTP_UNAUTHORIZED
                  ? NGX_ERROR : NGX_DECLINED);
}


/* 1 if the feed's rows have this member */

static ngx_uint_t
ngx_http_vibe_gather_shows(ngx_http_vibe_feed_t *feed, const char *name)
{
    ngx_str_t   *field;
    ngx_uint_t   i;

    field = feed->fields.elts;

    for (i = 0; i < feed->fields.nelts; i++) {
        if (field[i].len == ngx_strlen(name)
            && ngx_strncmp(field[i].data, name, field[i].len) == 0)
        {
            return 1;
        }
    }

    return feed->fields.nelts == 0;
}
