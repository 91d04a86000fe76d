
#include "ngx_http_vibe_rows.h"


static ngx_int_t ngx_http_vibe_rows_page(ngx_http_vibe_rows_t *rows);
static void ngx_http_vibe_rows_got(ngx_http_vibe_ask_t *ask,
    ngx_http_vibe_call_t *call);
static ngx_int_t ngx_http_vibe_rows_hold(ngx_http_vibe_rows_t *rows,
    ngx_http_vibe_json_t *node);
static ngx_int_t ngx_http_vibe_rows_keep(ngx_pool_t *pool,
    ngx_http_vibe_json_t *object, const char *name, ngx_str_t *str);
static ngx_http_vibe_bulk_row_t *ngx_http_vibe_rows_add(
    ngx_http_vibe_rows_t *rows, ngx_str_t *id, ngx_str_t *rev);
static void ngx_http_vibe_rows_send(ngx_http_vibe_rows_t *rows);
static void ngx_http_vibe_rows_written(ngx_http_vibe_ask_t *ask,
    ngx_http_vibe_call_t *call);
static ngx_int_t ngx_http_vibe_rows_results(ngx_http_vibe_rows_t *rows);


ngx_int_t
ngx_http_vibe_rows_init(ngx_http_vibe_rows_t *rows,
    ngx_http_vibe_main_conf_t *vmcf, ngx_str_t *db, void *data)
{
    ngx_memzero(rows, sizeof(ngx_http_vibe_rows_t));

    if (ngx_http_vibe_ask_init(&rows->ask, vmcf->zone, rows) != NGX_OK) {
        return NGX_ERROR;
    }

    rows->vmcf = vmcf;
    rows->db = *db;
    rows->data = data;
    rows->page = NGX_HTTP_VIBE_ROWS_PAGE;

    return ngx_http_vibe_rows_none(rows);
}


void
ngx_http_vibe_rows_end(ngx_http_vibe_rows_t *rows)
{
    if (rows->vmcf == NULL) {
        return;
    }

    ngx_http_vibe_ask_end(&rows->ask);

    if (rows->pool != NULL) {
        ngx_destroy_pool(rows->pool);
    }

    if (rows->batch != NULL) {
        ngx_destroy_pool(rows->batch);
    }

    rows->vmcf = NULL;
}


ngx_int_t
ngx_http_vibe_rows_none(ngx_http_vibe_rows_t *rows)
{
    if (rows->pool != NULL) {
        ngx_destroy_pool(rows->pool);
    }

    ngx_rbtree_init(&rows->rbtree, &rows->sentinel,
                    ngx_str_rbtree_insert_value);
    ngx_queue_init(&rows->queue);

    rows->n = 0;

    rows->pool = ngx_create_pool(NGX_DEFAULT_POOL_SIZE, ngx_cycle->log);
    if (rows->pool == NULL) {
        return NGX_ERROR;
    }

    return NGX_OK;
}


ngx_int_t
ngx_http_vibe_rows_read(ngx_http_vibe_rows_t *rows, ngx_str_t *from,
    ngx_str_t *to, ngx_http_vibe_rows_pt handler)
{
    rows->handler = handler;

    if (ngx_http_vibe_rows_none(rows) != NGX_OK) {
        return NGX_ERROR;
    }

    rows->last.len = from->len;
    rows->last.data = ngx_pstrdup(rows->pool, from);

    rows->to.len = to->len;
    rows->to.data = ngx_pstrdup(rows->pool, to);

    if (rows->last.data == NULL || rows->to.data == NULL) {
        return NGX_ERROR;
    }

    return ngx_http_vibe_rows_page(rows);
}


static ngx_int_t
ngx_http_vibe_rows_page(ngx_http_vibe_rows_t *rows)
{
    u_char  *path;

    path = ngx_http_vibe_rows_path(rows->ask.pool, rows->page, &rows->last,
                                   &rows->to);
    if (path == NULL) {
        return NGX_ERROR;
    }

    ngx_http_vibe_ask(&rows->ask, NGX_HTTP_GET, &rows->db,
                      (const char *) path, NULL, ngx_http_vibe_rows_got);

    return NGX_OK;
}


u_char *
ngx_http_vibe_rows_path(ngx_pool_t *pool, ngx_uint_t limit, ngx_str_t *from,
    ngx_str_t *to)
{
    u_char     *path, *p;
    ngx_str_t   first, last;

    if (ngx_http_vibe_ask_key(pool, from, &first) != NGX_OK
        || ngx_http_vibe_ask_key(pool, to, &last) != NGX_OK)
    {
        return NULL;
    }

    path = ngx_pnalloc(pool, first.len + last.len + 96);
    if (path == NULL) {
        return NULL;
    }

    p = ngx_sprintf(path, "/_all_docs?include_docs=true&limit=%ui"
                    "&startkey=%V", limit, &first);

    if (to->len) {
        p = ngx_sprintf(p, "&endkey=%V", &last);
    }

    *p = '\0';

    return path;
}


static void
ngx_http_vibe_rows_got(ngx_http_vibe_ask_t *ask, ngx_http_vibe_call_t *call)
{
    ngx_http_vibe_rows_t *rows = ask->data;

    ngx_http_vibe_json_t  *root, *list, *node;

    if (ngx_http_vibe_no_database(call)) {
        rows->handler(rows, NGX_ABORT);
        return;
    }

    if (call->too_large && rows->page > 2) {

        /* of a page of one the row would be the last one of that before */

        rows->page = ngx_max(rows->page / 2, 2);
        goto next;
    }

    list = NULL;

    if (call->status == NGX_HTTP_OK
        && ngx_http_vibe_scan_answer(ask->pool, call, 4, &root) == NGX_OK)
    {
        list = ngx_http_vibe_json_get(root, "rows");
    }

    if (list == NULL || list->type != NGX_HTTP_VIBE_JSON_ARRAY) {
        rows->handler(rows, NGX_ERROR);
        return;
    }

    for (node = list->child; node; node = node->next) {
        if (ngx_http_vibe_rows_hold(rows, node) != NGX_OK) {
            rows->handler(rows, NGX_ERROR);
            return;
        }
    }

    rows->more = (list->n >= rows->page);

    if (!rows->more || rows->paged) {
        rows->handler(rows, NGX_OK);
        return;
    }

next:

    if (ngx_http_vibe_rows_page(rows) != NGX_OK) {
        rows->handler(rows, NGX_ERROR);
    }
}


/* a page begins with the last row of the one before */

static ngx_int_t
ngx_http_vibe_rows_hold(ngx_http_vibe_rows_t *rows, ngx_http_vibe_json_t *node)
{
    ngx_str_t              id;
    ngx_http_vibe_row_t   *row;
    ngx_http_vibe_json_t  *doc;

    doc = ngx_http_vibe_json_get(node, "doc");

    if (ngx_http_vibe_rows_keep(rows->pool, node, "id", &id) != NGX_OK
        || id.len == 0)
    {
        return NGX_ERROR;
    }

    if (ngx_http_vibe_same(&id, &rows->last)) {
        return NGX_OK;
    }

    rows->last = id;

    if (id.data[0] == '_') {
        return NGX_OK;
    }

    if (++rows->n > NGX_HTTP_VIBE_ROWS_MAX) {
        ngx_log_error(NGX_LOG_ERR, ngx_cycle->log, 0,
                      "\"%V\" has too many rows after \"%V\"",
                      &rows->db, &id);
        return NGX_ERROR;
    }

    row = ngx_pcalloc(rows->pool, sizeof(ngx_http_vibe_row_t));
    if (row == NULL) {
        return NGX_ERROR;
    }

    row->node.str = id;
    row->node.node.key = ngx_crc32_short(id.data, id.len);

    if (ngx_http_vibe_rows_keep(rows->pool, doc, "_rev", &row->rev) != NGX_OK
        || ngx_http_vibe_rows_keep(rows->pool, doc, "vibe_sum", &row->sum)
           != NGX_OK
        || ngx_http_vibe_rows_keep(rows->pool, doc, "vibe_db", &row->source)
           != NGX_OK)
    {
        return NGX_ERROR;
    }

    ngx_rbtree_insert(&rows->rbtree, &row->node.node);
    ngx_queue_insert_tail(&rows->queue, &row->queue);

    return NGX_OK;
}


/* a string that an object has under this name, else an empty one */

static ngx_int_t
ngx_http_vibe_rows_keep(ngx_pool_t *pool, ngx_http_vibe_json_t *object,
    const char *name, ngx_str_t *str)
{
    ngx_str_t              key;
    ngx_http_vibe_json_t  *node;

    key.data = (u_char *) name;
    key.len = ngx_strlen(name);

    node = ngx_http_vibe_json_member(object, &key);

    ngx_str_null(str);

    if (node == NULL || node->type != NGX_HTTP_VIBE_JSON_STRING) {
        return NGX_OK;
    }

    str->len = node->string.len;
    str->data = ngx_pstrdup(pool, &node->string);

    return str->data ? NGX_OK : NGX_ERROR;
}


ngx_int_t
ngx_http_vibe_rows_put(ngx_http_vibe_rows_t *rows, ngx_str_t *id,
    ngx_str_t *sum, ngx_str_t *members)
{
    ngx_str_t                  none;
    ngx_http_vibe_row_t       *row;
    ngx_http_vibe_bulk_row_t  *write;

    ngx_str_null(&none);

    row = (ngx_http_vibe_row_t *)
              ngx_str_rbtree_lookup(&rows->rbtree, id,
                                    ngx_crc32_short(id->data, id->len));
    if (row != NULL) {
        row->put = 1;

        if (ngx_http_vibe_same(&row->sum, sum)) {
            return NGX_OK;
        }
    }

    write = ngx_http_vibe_rows_add(rows, id, row ? &row->rev : &none);
    if (write == NULL) {
        return NGX_ERROR;
    }

    ngx_http_vibe_json_put_str(&write->doc, members);
    ngx_http_vibe_json_put_text(&write->doc, ",\"vibe_sum\":");
    ngx_http_vibe_json_put_string(&write->doc, sum);
    ngx_http_vibe_json_put_text(&write->doc, "}");

    return NGX_OK;
}


ngx_int_t
ngx_http_vibe_rows_drop(ngx_http_vibe_rows_t *rows)
{
    ngx_uint_t                 n;
    ngx_queue_t               *q;
    ngx_http_vibe_row_t       *row;
    ngx_http_vibe_bulk_row_t  *write;

    n = 0;

    for (q = ngx_queue_head(&rows->queue);
         q != ngx_queue_sentinel(&rows->queue);
         q = ngx_queue_next(q))
    {
        row = ngx_queue_data(q, ngx_http_vibe_row_t, queue);

        if (row->put) {
            continue;
        }

        if (n++ == NGX_HTTP_VIBE_ROWS_PAGE) {
            return NGX_AGAIN;
        }

        row->put = 1;

        write = ngx_http_vibe_rows_add(rows, &row->node.str, &row->rev);
        if (write == NULL) {
            return NGX_ERROR;
        }

        ngx_http_vibe_json_put_text(&write->doc, ",\"_deleted\":true}");
    }

    return NGX_OK;
}


/* begins a document: its last brace is for the caller to write */

static ngx_http_vibe_bulk_row_t *
ngx_http_vibe_rows_add(ngx_http_vibe_rows_t *rows, ngx_str_t *id,
    ngx_str_t *rev)
{
    ngx_http_vibe_bulk_row_t  *write;

    if (rows->bulk == NULL) {

        if (rows->batch != NULL) {
            ngx_destroy_pool(rows->batch);
        }

        rows->batch = ngx_create_pool(NGX_DEFAULT_POOL_SIZE, ngx_cycle->log);
        if (rows->batch == NULL) {
            return NULL;
        }

        rows->bulk = ngx_http_vibe_bulk_create(rows->batch, &rows->db, 32);
        if (rows->bulk == NULL) {
            return NULL;
        }
    }

    write = ngx_http_vibe_bulk_add(rows->bulk, NULL);
    if (write == NULL) {
        return NULL;
    }

    ngx_http_vibe_json_put_text(&write->doc, "{\"_id\":");
    ngx_http_vibe_json_put_string(&write->doc, id);

    if (rev->len) {
        ngx_http_vibe_json_put_text(&write->doc, ",\"_rev\":");
        ngx_http_vibe_json_put_string(&write->doc, rev);
    }

    return write;
}


ngx_int_t
ngx_http_vibe_rows_write(ngx_http_vibe_rows_t *rows,
    ngx_http_vibe_rows_pt handler)
{
    if (rows->bulk == NULL) {
        return NGX_OK;
    }

    rows->handler = handler;

    ngx_http_vibe_rows_send(rows);

    return NGX_AGAIN;
}


static void
ngx_http_vibe_rows_send(ngx_http_vibe_rows_t *rows)
{
    u_char                    path[NGX_HTTP_VIBE_BULK_PATH_MAX];
    ngx_http_vibe_json_out_t  out;

    ngx_http_vibe_json_out_init(&out, rows->batch);
    ngx_http_vibe_bulk_ask(rows->bulk, &out, path);

    ngx_http_vibe_ask(&rows->ask, NGX_HTTP_POST, &rows->db,
                      (const char *) path, &out, ngx_http_vibe_rows_written);
}


static void
ngx_http_vibe_rows_written(ngx_http_vibe_ask_t *ask,
    ngx_http_vibe_call_t *call)
{
    ngx_http_vibe_rows_t *rows = ask->data;

    ngx_int_t  rc;

    switch (ngx_http_vibe_bulk_take(rows->bulk, call)) {

    case NGX_AGAIN:
        ngx_http_vibe_rows_send(rows);
        return;

    case NGX_OK:
        rc = ngx_http_vibe_rows_results(rows);
        break;

    default:
        rc = rows->bulk->missing ? NGX_ABORT : NGX_ERROR;
    }

    rows->bulk = NULL;

    rows->handler(rows, rc);
}


/* a row that CouchDB will not take, as it is too large, is left out */

static ngx_int_t
ngx_http_vibe_rows_results(ngx_http_vibe_rows_t *rows)
{
    ngx_int_t                  rc;
    ngx_uint_t                 i;
    ngx_http_vibe_bulk_row_t  *row;

    rc = NGX_OK;
    row = rows->bulk->rows.elts;

    for (i = 0; i < rows->bulk->rows.nelts; i++) {

        switch (row[i].status) {

        case NGX_HTTP_CREATED:
        case NGX_HTTP_ACCEPTED:
            rows->changed++;
            break;

        case NGX_HTTP_CONFLICT:
            rc = NGX_DECLINED;
            break;

        case NGX_HTTP_REQUEST_ENTITY_TOO_LARGE:
        case NGX_HTTP_BAD_REQUEST:
            ngx_log_error(NGX_LOG_WARN, ngx_cycle->log, 0,
                          "couchdb refused a row for \"%V\": %V",
                          &rows->db, &row[i].reason);
            break;

        default:
            return NGX_ERROR;
        }
    }

    return rc;
}
