
#include "ngx_http_vibe_withdraw.h"


static void ngx_http_vibe_withdraw_begin(ngx_event_t *ev);
static void ngx_http_vibe_withdraw_look(ngx_http_vibe_withdraw_t *w);
static void ngx_http_vibe_withdraw_found(ngx_http_vibe_ask_t *ask,
    ngx_http_vibe_call_t *call);
static ngx_int_t ngx_http_vibe_withdraw_read(ngx_http_vibe_withdraw_t *w,
    ngx_http_vibe_call_t *call);
static ngx_int_t ngx_http_vibe_withdraw_add(ngx_http_vibe_withdraw_t *w,
    ngx_http_vibe_json_t *row);
static void ngx_http_vibe_withdraw_write(ngx_http_vibe_withdraw_t *w);
static void ngx_http_vibe_withdraw_written(ngx_http_vibe_ask_t *ask,
    ngx_http_vibe_call_t *call);
static ngx_uint_t ngx_http_vibe_withdraw_done(ngx_http_vibe_withdraw_t *w);
static void ngx_http_vibe_withdraw_next(ngx_http_vibe_withdraw_t *w);
static void ngx_http_vibe_withdraw_failed(ngx_http_vibe_withdraw_t *w);
static ngx_str_t *ngx_http_vibe_withdraw_db(ngx_http_vibe_withdraw_t *w);


ngx_int_t
ngx_http_vibe_withdraw_init(ngx_http_vibe_withdraw_t *w,
    ngx_http_vibe_zone_t *zone)
{
    ngx_http_vibe_names_init(&w->waiting, NGX_HTTP_VIBE_WITHDRAW_MAX);
    ngx_http_vibe_names_init(&w->taken, NGX_HTTP_VIBE_WITHDRAW_PAGE);

    w->dumb.fd = (ngx_socket_t) -1;

    w->event.handler = ngx_http_vibe_withdraw_begin;
    w->event.data = &w->dumb;
    w->event.log = ngx_cycle->log;
    w->event.cancelable = 1;
    w->dumb.data = w;

    return ngx_http_vibe_ask_init(&w->ask, zone, w);
}


void
ngx_http_vibe_withdraw_end(ngx_http_vibe_withdraw_t *w)
{
    ngx_http_vibe_ask_end(&w->ask);

    if (w->event.timer_set) {
        ngx_del_timer(&w->event);
    }

    ngx_http_vibe_names_clear(&w->waiting);
    ngx_http_vibe_names_clear(&w->taken);

    if (w->pool != NULL) {
        ngx_destroy_pool(w->pool);
        w->pool = NULL;
    }
}


ngx_int_t
ngx_http_vibe_withdraw(ngx_http_vibe_withdraw_t *w, ngx_str_t *id)
{
    ngx_int_t  rc;

    rc = ngx_http_vibe_names_add(&w->waiting, id);

    /* what came in one turn of the event loop goes together */

    if (!w->busy && !w->event.timer_set) {
        ngx_add_timer(&w->event, 1);
    }

    return rc;
}


static void
ngx_http_vibe_withdraw_begin(ngx_event_t *ev)
{
    ngx_connection_t          *c;
    ngx_http_vibe_name_t      *name;
    ngx_http_vibe_withdraw_t  *w;

    c = ev->data;
    w = c->data;

    while (w->taken.n < NGX_HTTP_VIBE_WITHDRAW_PAGE) {

        name = ngx_http_vibe_names_take(&w->waiting);
        if (name == NULL) {
            break;
        }

        if (ngx_http_vibe_names_add(&w->taken, &name->node.str) != NGX_OK) {
            ngx_free(name);
            ngx_http_vibe_withdraw_failed(w);
            return;
        }

        ngx_free(name);
    }

    if (w->taken.n == 0) {
        return;
    }

    w->busy = 1;
    w->failed = 0;
    w->second = 0;
    w->first = !w->current;

    ngx_http_vibe_withdraw_look(w);
}


static void
ngx_http_vibe_withdraw_look(ngx_http_vibe_withdraw_t *w)
{
    ngx_queue_t               *q;
    ngx_http_vibe_name_t      *name;
    ngx_http_vibe_json_out_t   out;

    ngx_http_vibe_json_out_init(&out, w->ask.pool);
    ngx_http_vibe_json_put_text(&out, "{\"keys\":[");

    for (q = ngx_queue_head(&w->taken.queue);
         q != ngx_queue_sentinel(&w->taken.queue);
         q = ngx_queue_next(q))
    {
        name = ngx_queue_data(q, ngx_http_vibe_name_t, queue);

        if (q != ngx_queue_head(&w->taken.queue)) {
            ngx_http_vibe_json_put_text(&out, ",");
        }

        ngx_http_vibe_json_put_string(&out, &name->node.str);
    }

    ngx_http_vibe_json_put_text(&out, "]}");

    ngx_http_vibe_ask(&w->ask, NGX_HTTP_POST, ngx_http_vibe_withdraw_db(w),
                      "/_all_docs", &out, ngx_http_vibe_withdraw_found);
}


static void
ngx_http_vibe_withdraw_found(ngx_http_vibe_ask_t *ask,
    ngx_http_vibe_call_t *call)
{
    ngx_http_vibe_withdraw_t *w = ask->data;

    if (ngx_http_vibe_no_database(call)) {
        ngx_http_vibe_withdraw_next(w);
        return;
    }

    if (call->status != NGX_HTTP_OK
        || ngx_http_vibe_withdraw_read(w, call) != NGX_OK)
    {
        ngx_http_vibe_withdraw_failed(w);
        return;
    }

    if (w->bulk->rows.nelts == 0) {
        ngx_http_vibe_withdraw_next(w);
        return;
    }

    ngx_http_vibe_withdraw_write(w);
}


static ngx_int_t
ngx_http_vibe_withdraw_read(ngx_http_vibe_withdraw_t *w,
    ngx_http_vibe_call_t *call)
{
    ngx_http_vibe_json_t  *root, *list, *row;

    if (w->pool != NULL) {
        ngx_destroy_pool(w->pool);
    }

    w->pool = ngx_create_pool(NGX_DEFAULT_POOL_SIZE, ngx_cycle->log);
    if (w->pool == NULL) {
        return NGX_ERROR;
    }

    w->bulk = ngx_http_vibe_bulk_create(w->pool, ngx_http_vibe_withdraw_db(w),
                                        w->taken.n);
    if (w->bulk == NULL
        || ngx_http_vibe_scan_answer(w->ask.pool, call, 4, &root) != NGX_OK)
    {
        return NGX_ERROR;
    }

    list = ngx_http_vibe_json_get(root, "rows");

    if (list == NULL || list->type != NGX_HTTP_VIBE_JSON_ARRAY) {
        return NGX_ERROR;
    }

    for (row = list->child; row; row = row->next) {
        if (ngx_http_vibe_withdraw_add(w, row) != NGX_OK) {
            return NGX_ERROR;
        }
    }

    return NGX_OK;
}


static ngx_int_t
ngx_http_vibe_withdraw_add(ngx_http_vibe_withdraw_t *w,
    ngx_http_vibe_json_t *row)
{
    ngx_http_vibe_json_t      *id, *value, *rev, *deleted;
    ngx_http_vibe_bulk_row_t  *write;

    id = ngx_http_vibe_json_get(row, "id");
    value = ngx_http_vibe_json_get(row, "value");
    rev = ngx_http_vibe_json_get(value, "rev");
    deleted = ngx_http_vibe_json_get(value, "deleted");

    if (id == NULL || rev == NULL
        || (deleted != NULL && deleted->type == NGX_HTTP_VIBE_JSON_TRUE))
    {
        return NGX_OK;
    }

    write = ngx_http_vibe_bulk_add(w->bulk, NULL);
    if (write == NULL) {
        return NGX_ERROR;
    }

    ngx_http_vibe_json_put_text(&write->doc, "{\"_id\":");
    ngx_http_vibe_json_put_string(&write->doc, &id->string);
    ngx_http_vibe_json_put_text(&write->doc, ",\"_rev\":");
    ngx_http_vibe_json_put_string(&write->doc, &rev->string);
    ngx_http_vibe_json_put_text(&write->doc, ",\"_deleted\":true}");

    return NGX_OK;
}


static void
ngx_http_vibe_withdraw_write(ngx_http_vibe_withdraw_t *w)
{
    u_char                    path[NGX_HTTP_VIBE_BULK_PATH_MAX];
    ngx_http_vibe_json_out_t  out;

    ngx_http_vibe_json_out_init(&out, w->pool);
    ngx_http_vibe_bulk_ask(w->bulk, &out, path);

    ngx_http_vibe_ask(&w->ask, NGX_HTTP_POST, ngx_http_vibe_withdraw_db(w),
                      (const char *) path, &out,
                      ngx_http_vibe_withdraw_written);
}


static void
ngx_http_vibe_withdraw_written(ngx_http_vibe_ask_t *ask,
    ngx_http_vibe_call_t *call)
{
    ngx_http_vibe_withdraw_t *w = ask->data;

    switch (ngx_http_vibe_bulk_take(w->bulk, call)) {

    case NGX_AGAIN:
        ngx_http_vibe_withdraw_write(w);
        return;

    case NGX_OK:

        if (ngx_http_vibe_withdraw_done(w)) {
            ngx_http_vibe_withdraw_next(w);
            return;
        }

        break;
    }

    ngx_http_vibe_withdraw_failed(w);
}


/* 0 if a row was written meanwhile, or CouchDB failed: look for it again */

static ngx_uint_t
ngx_http_vibe_withdraw_done(ngx_http_vibe_withdraw_t *w)
{
    ngx_uint_t                 i;
    ngx_http_vibe_bulk_row_t  *row;

    row = w->bulk->rows.elts;

    for (i = 0; i < w->bulk->rows.nelts; i++) {
        if (row[i].status != NGX_HTTP_CREATED
            && row[i].status != NGX_HTTP_ACCEPTED)
        {
            return 0;
        }
    }

    return 1;
}


static void
ngx_http_vibe_withdraw_next(ngx_http_vibe_withdraw_t *w)
{
    if (!w->second) {
        w->second = 1;
        ngx_http_vibe_withdraw_look(w);
        return;
    }

    if (w->failed) {
        ngx_http_vibe_withdraw_failed(w);
        return;
    }

    ngx_http_vibe_names_clear(&w->taken);

    w->failures = 0;
    w->busy = 0;

    if (w->waiting.n) {
        ngx_add_timer(&w->event, 1);
    }
}


/* what one database does with it keeps the other one not waiting */

static void
ngx_http_vibe_withdraw_failed(ngx_http_vibe_withdraw_t *w)
{
    if (w->busy && !w->second) {
        w->failed = 1;
        ngx_http_vibe_withdraw_next(w);
        return;
    }

    w->busy = 0;

    if (w->failures == 0) {
        ngx_log_error(NGX_LOG_ERR, ngx_cycle->log, 0,
                      "rows that were withdrawn from \"%V\" or \"%V\" could "
                      "not be deleted yet", &w->dbs[0], &w->dbs[1]);
    }

    ngx_add_timer(&w->event,
                  ngx_http_vibe_couch_backoff(++w->failures,
                                              NGX_HTTP_VIBE_WITHDRAW_FIRST,
                                              NGX_HTTP_VIBE_WITHDRAW_LAST));
}


static ngx_str_t *
ngx_http_vibe_withdraw_db(ngx_http_vibe_withdraw_t *w)
{
    return &w->dbs[w->second ? !w->first : w->first];
}
