
#include "ngx_http_vibe_level.h"
#include "ngx_http_vibe_target.h"


static ngx_int_t ngx_http_vibe_level_next(ngx_http_vibe_level_t *l);
static void ngx_http_vibe_level_got(ngx_http_vibe_ask_t *ask,
    ngx_http_vibe_call_t *call);
static ngx_int_t ngx_http_vibe_level_read(ngx_http_vibe_level_t *l,
    ngx_http_vibe_call_t *call);
static void ngx_http_vibe_level_held(ngx_http_vibe_rows_t *rows,
    ngx_int_t rc);
static ngx_int_t ngx_http_vibe_level_put(ngx_http_vibe_level_t *l,
    ngx_http_vibe_json_t *doc);
static void ngx_http_vibe_level_written(ngx_http_vibe_rows_t *rows,
    ngx_int_t rc);


ngx_http_vibe_level_t *
ngx_http_vibe_level(ngx_http_vibe_main_conf_t *vmcf, ngx_str_t *from,
    ngx_str_t *to, ngx_str_t *first, ngx_str_t *end, ngx_str_t *only,
    ngx_http_vibe_level_pt handler, void *data)
{
    ngx_pool_t             *pool;
    ngx_http_vibe_level_t  *l;

    pool = ngx_create_pool(NGX_DEFAULT_POOL_SIZE, ngx_cycle->log);
    if (pool == NULL) {
        return NULL;
    }

    l = ngx_pcalloc(pool, sizeof(ngx_http_vibe_level_t));
    if (l == NULL) {
        ngx_destroy_pool(pool);
        return NULL;
    }

    l->pool = pool;
    l->from = *from;
    l->page = NGX_HTTP_VIBE_ROWS_PAGE;
    l->handler = handler;
    l->data = data;

    l->end.len = end->len;
    l->end.data = ngx_pstrdup(pool, end);

    l->only.len = only->len;
    l->only.data = ngx_pstrdup(pool, only);

    ngx_http_vibe_target_keep(&l->last, first);

    if (l->end.data == NULL
        || l->only.data == NULL
        || ngx_http_vibe_rows_init(&l->rows, vmcf, to, l) != NGX_OK
        || ngx_http_vibe_ask_init(&l->ask, vmcf->zone, l) != NGX_OK
        || ngx_http_vibe_level_next(l) != NGX_OK)
    {
        ngx_http_vibe_level_end(l);
        return NULL;
    }

    return l;
}


void
ngx_http_vibe_level_end(ngx_http_vibe_level_t *l)
{
    ngx_http_vibe_rows_end(&l->rows);
    ngx_http_vibe_ask_end(&l->ask);
    ngx_http_vibe_target_keep(&l->last, NULL);

    ngx_destroy_pool(l->pool);
}


/* the next rows of the one, then those of the other in the same range */

static ngx_int_t
ngx_http_vibe_level_next(ngx_http_vibe_level_t *l)
{
    u_char  *path;

    path = ngx_http_vibe_rows_path(l->ask.pool, l->page, &l->last, &l->end);
    if (path == NULL) {
        return NGX_ERROR;
    }

    ngx_http_vibe_ask(&l->ask, NGX_HTTP_GET, &l->from, (const char *) path,
                      NULL, ngx_http_vibe_level_got);

    return NGX_OK;
}


static void
ngx_http_vibe_level_got(ngx_http_vibe_ask_t *ask, ngx_http_vibe_call_t *call)
{
    ngx_http_vibe_level_t *l = ask->data;

    ngx_int_t  rc;

    if (ngx_http_vibe_no_database(call)) {
        l->handler(l, NGX_ABORT);
        return;
    }

    if (call->too_large && l->page > 2) {
        l->page = ngx_max(l->page / 2, 2);
        rc = ngx_http_vibe_level_next(l);

    } else {
        rc = ngx_http_vibe_level_read(l, call);
    }

    if (rc != NGX_OK) {
        l->handler(l, NGX_ERROR);
    }
}


static ngx_int_t
ngx_http_vibe_level_read(ngx_http_vibe_level_t *l, ngx_http_vibe_call_t *call)
{
    ngx_http_vibe_json_t  *root, *node, *id;

    if (call->status != NGX_HTTP_OK
        || ngx_http_vibe_scan_answer(l->ask.pool, call, 4, &root) != NGX_OK)
    {
        return NGX_ERROR;
    }

    l->list = ngx_http_vibe_json_get(root, "rows");

    if (l->list == NULL || l->list->type != NGX_HTTP_VIBE_JSON_ARRAY) {
        return NGX_ERROR;
    }

    l->more = (l->list->n >= l->page);
    l->until = l->end;

    if (l->more) {
        for (node = l->list->child; node->next; node = node->next) {
            /* void */
        }

        id = ngx_http_vibe_json_get(node, "id");

        if (id == NULL || id->type != NGX_HTTP_VIBE_JSON_STRING) {
            return NGX_ERROR;
        }

        l->until = id->string;
    }

    return ngx_http_vibe_rows_read(&l->rows, &l->last, &l->until,
                                   ngx_http_vibe_level_held);
}


static void
ngx_http_vibe_level_held(ngx_http_vibe_rows_t *rows, ngx_int_t rc)
{
    ngx_http_vibe_level_t *l = rows->data;

    ngx_queue_t           *q;
    ngx_http_vibe_row_t   *row;
    ngx_http_vibe_json_t  *node, *doc;

    if (rc != NGX_OK) {
        l->handler(l, rc);
        return;
    }

    for (q = ngx_queue_head(&rows->queue);
         q != ngx_queue_sentinel(&rows->queue);
         q = ngx_queue_next(q))
    {
        row = ngx_queue_data(q, ngx_http_vibe_row_t, queue);
        row->put = (l->only.len
                    && !ngx_http_vibe_same(&row->source, &l->only));
    }

    for (node = l->list->child; node; node = node->next) {

        doc = ngx_http_vibe_json_get(node, "doc");

        if (doc != NULL
            && doc->type == NGX_HTTP_VIBE_JSON_OBJECT
            && ngx_http_vibe_level_put(l, doc) != NGX_OK)
        {
            l->handler(l, NGX_ERROR);
            return;
        }
    }

    ngx_http_vibe_level_written(rows, NGX_OK);
}


/* a page begins with the last row of the one before */

static ngx_int_t
ngx_http_vibe_level_put(ngx_http_vibe_level_t *l, ngx_http_vibe_json_t *doc)
{
    ngx_str_t                  members;
    ngx_http_vibe_json_t      *m, *id, *sum, *db;
    ngx_http_vibe_json_out_t   out;

    id = ngx_http_vibe_json_get(doc, "_id");
    sum = ngx_http_vibe_json_get(doc, "vibe_sum");
    db = ngx_http_vibe_json_get(doc, "vibe_db");

    if (id == NULL || sum == NULL
        || id->string.len == 0 || id->string.data[0] == '_'
        || ngx_http_vibe_same(&id->string, &l->last)
        || (l->only.len
            && (db == NULL || !ngx_http_vibe_same(&db->string, &l->only))))
    {
        return NGX_OK;
    }

    ngx_http_vibe_json_out_init(&out, l->ask.pool);

    for (m = doc->child; m; m = m->next) {

        if (m == sum || (m->name.len && m->name.data[0] == '_')) {
            continue;
        }

        ngx_http_vibe_json_put_text(&out, ",");
        ngx_http_vibe_json_put(&out, m->start,
                               m->raw.data + m->raw.len - m->start);
    }

    if (ngx_http_vibe_json_out_str(&out, &members) != NGX_OK) {
        return NGX_ERROR;
    }

    return ngx_http_vibe_rows_put(&l->rows, &id->string, &sum->string,
                                  &members);
}


/* what differs is written, then what is left over deleted, page by page */

static void
ngx_http_vibe_level_written(ngx_http_vibe_rows_t *rows, ngx_int_t rc)
{
    ngx_http_vibe_level_t *l = rows->data;

    if (rc == NGX_OK && ngx_http_vibe_rows_drop(rows) == NGX_ERROR) {
        rc = NGX_ERROR;
    }

    if (rc == NGX_OK
        && ngx_http_vibe_rows_write(rows, ngx_http_vibe_level_written)
           == NGX_AGAIN)
    {
        return;
    }

    if (rc == NGX_OK && l->more) {

        ngx_http_vibe_target_keep(&l->last, &l->until);

        l->tries = 0;
        rc = l->last.len ? NGX_AGAIN : NGX_ERROR;

    } else if (rc == NGX_DECLINED) {

        /* what was withdrawn meanwhile, for example */

        rc = (++l->tries < NGX_HTTP_VIBE_LEVEL_TRIES) ? NGX_AGAIN : NGX_ERROR;
    }

    if (rc == NGX_AGAIN) {

        if (ngx_http_vibe_level_next(l) == NGX_OK) {
            return;
        }

        rc = NGX_ERROR;
    }

    l->handler(l, rc);
}
