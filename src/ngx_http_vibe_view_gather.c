
#include "ngx_http_vibe_view.h"
#include "ngx_http_vibe_target.h"


static void ngx_http_vibe_view_fill(ngx_http_vibe_view_t *v);
static ngx_int_t ngx_http_vibe_view_begin(ngx_http_vibe_view_t *v,
    ngx_str_t *db);
static ngx_http_vibe_view_slot_t *ngx_http_vibe_view_slot(
    ngx_http_vibe_view_t *v);
static void ngx_http_vibe_view_gathered(ngx_http_vibe_gather_t *g,
    ngx_int_t rc);
static ngx_int_t ngx_http_vibe_view_keep_rows(ngx_http_vibe_view_slot_t *slot);
static void ngx_http_vibe_view_kept(ngx_http_vibe_level_t *l, ngx_int_t rc);
static ngx_int_t ngx_http_vibe_view_list(ngx_http_vibe_view_t *v);
static void ngx_http_vibe_view_listed(ngx_http_vibe_ask_t *ask,
    ngx_http_vibe_call_t *call);
static ngx_int_t ngx_http_vibe_view_list_add(ngx_http_vibe_view_t *v,
    ngx_http_vibe_json_t *names);
static void ngx_http_vibe_view_sweep(ngx_http_vibe_view_t *v);
static void ngx_http_vibe_view_swept(ngx_http_vibe_rows_t *rows,
    ngx_int_t rc);
static void ngx_http_vibe_view_sweep_write(ngx_http_vibe_rows_t *rows,
    ngx_int_t rc);


void
ngx_http_vibe_view_gather(ngx_http_vibe_view_t *v, ngx_http_vibe_view_pt next)
{
    v->next = next;
    v->prefix = 0;
    v->listed = !v->full_run;
    v->listing = 0;

    ngx_http_vibe_target_keep(&v->last, NULL);

    ngx_http_vibe_view_fill(v);
}


void
ngx_http_vibe_view_gather_end(ngx_http_vibe_view_t *v)
{
    ngx_uint_t                  i;
    ngx_http_vibe_view_slot_t  *slot;

    for (i = 0; i < NGX_HTTP_VIBE_VIEW_SLOTS; i++) {

        slot = &v->slots[i];

        if (slot->gather != NULL) {

            if (ngx_http_vibe_names_add(&v->todo, &slot->gather->db) != NGX_OK
                || ngx_http_vibe_names_add(&v->doubted, &slot->gather->db)
                   != NGX_OK)
            {
                ngx_http_vibe_view_reset(v);
            }

            v->doubts = 1;
            v->until = ngx_current_msec + v->vmcf->couch.timeout;

            ngx_http_vibe_gather_end(slot->gather);
            slot->gather = NULL;
        }

        if (slot->level != NULL) {
            ngx_http_vibe_level_end(slot->level);
            slot->level = NULL;
            v->doubtful = 1;
            v->doubts = 1;
        }
    }

    v->busy = 0;

    if (v->sweep.vmcf != NULL) {
        ngx_http_vibe_rows_end(&v->sweep);
    }

    if (ngx_http_vibe_names_move(&v->dirty[v->target], &v->todo) != NGX_OK) {
        ngx_http_vibe_view_reset(v);
    }

    ngx_http_vibe_names_clear(&v->visited);
    ngx_http_vibe_target_keep(&v->last, NULL);
}


/* gives each free slot a database, and sees whether all is done */

static void
ngx_http_vibe_view_fill(ngx_http_vibe_view_t *v)
{
    ngx_int_t              rc;
    ngx_http_vibe_name_t  *name;

    while (v->busy < NGX_HTTP_VIBE_VIEW_SLOTS) {

        name = ngx_http_vibe_names_take(&v->todo);
        if (name == NULL) {
            break;
        }

        rc = ngx_http_vibe_view_begin(v, &name->node.str);
        ngx_free(name);

        if (rc != NGX_OK) {
            ngx_http_vibe_view_failed(v, NULL, "no memory");
            return;
        }
    }

    if (v->todo.n == 0 && !v->listed && !v->listing) {

        if (ngx_http_vibe_view_list(v) != NGX_OK) {
            ngx_http_vibe_view_failed(v, NULL, "no memory");
        }

        return;
    }

    if (v->busy || v->todo.n || v->listing) {
        return;
    }

    if (v->full_run && !v->empty) {
        ngx_http_vibe_view_sweep(v);
        return;
    }

    v->next(v);
}


static ngx_int_t
ngx_http_vibe_view_begin(ngx_http_vibe_view_t *v, ngx_str_t *db)
{
    ngx_http_vibe_view_slot_t  *slot;

    slot = ngx_http_vibe_view_slot(v);

    slot->view = v;
    slot->gather = ngx_http_vibe_gather(v->vmcf, &v->feed, db,
                                        &v->feed.dbs[v->target], v->empty,
                                        ngx_http_vibe_view_gathered, slot);
    if (slot->gather == NULL) {
        (void) ngx_http_vibe_names_add(&v->todo, db);
        return NGX_ERROR;
    }

    v->busy++;
    v->asked++;

    return NGX_OK;
}


/* a free one: there is one where this is called */

static ngx_http_vibe_view_slot_t *
ngx_http_vibe_view_slot(ngx_http_vibe_view_t *v)
{
    ngx_uint_t  i;

    for (i = 0; i < NGX_HTTP_VIBE_VIEW_SLOTS - 1; i++) {
        if (v->slots[i].gather == NULL && v->slots[i].level == NULL) {
            break;
        }
    }

    return &v->slots[i];
}


static void
ngx_http_vibe_view_gathered(ngx_http_vibe_gather_t *g, ngx_int_t rc)
{
    ngx_http_vibe_call_t        call;
    ngx_http_vibe_view_t       *v;
    ngx_http_vibe_view_slot_t  *slot;

    slot = g->data;
    v = slot->view;

    if (rc == NGX_ABORT) {
        v->prepared[v->target] = 0;
        v->full[v->target] = 1;
    }

    if (rc == NGX_ERROR || rc == NGX_ABORT) {
        ngx_memzero(&call, sizeof(ngx_http_vibe_call_t));

        call.path = g->db;
        call.status = g->status;

        ngx_http_vibe_view_failed(v, g->status ? &call : NULL,
                                  "couchdb did not take a view's rows");
        return;
    }

    v->changed += g->rows.changed;

    if (v->full_run
        && !g->missing && !g->unowned
        && ngx_http_vibe_names_add(&v->visited, &g->db) != NGX_OK)
    {
        ngx_http_vibe_view_failed(v, NULL, "too many databases");
        return;
    }

    if (g->missing && g->did.len == 0) {

        /* whose rows it had is not known */

        ngx_http_vibe_view_reset(v);
    }

    if (rc == NGX_DECLINED) {
        ngx_log_error(NGX_LOG_ERR, ngx_cycle->log, 0,
                      "the feed \"%V\": couchdb answers %ui for \"%V\", "
                      "whose rows stay as they are",
                      &v->feed.name, g->status, &g->db);

        (void) ngx_snprintf(v->error, NGX_HTTP_VIBE_VIEW_ERROR - 1,
                            "%ui databases cannot be read: the log names them"
                            "%Z", ++v->broken);

        ngx_http_vibe_view_changed(v, &g->db);

        rc = ngx_http_vibe_view_keep_rows(slot);

        if (rc == NGX_OK) {
            return;
        }

        if (rc == NGX_ERROR) {
            ngx_http_vibe_view_failed(v, NULL, "no memory");
            return;
        }
    }

    ngx_http_vibe_gather_end(g);
    slot->gather = NULL;
    v->busy--;

    ngx_http_vibe_view_fill(v);
}


/*
 * Rows of a database that cannot be read stay: those that are current.
 * NGX_DECLINED: there are none.
 */

static ngx_int_t
ngx_http_vibe_view_keep_rows(ngx_http_vibe_view_slot_t *slot)
{
    ngx_str_t                from, to;
    ngx_http_vibe_view_t    *v;
    ngx_http_vibe_gather_t  *g;

    v = slot->view;
    g = slot->gather;

    if (!v->exists) {
        return NGX_DECLINED;
    }

    /* of whose owner nothing is known they may be anywhere */

    ngx_str_null(&from);
    ngx_str_null(&to);

    if (g->did.len) {
        from.len = g->did.len + 1;
        from.data = ngx_pnalloc(g->pool, from.len);

        to.len = from.len;
        to.data = ngx_pnalloc(g->pool, to.len);

        if (from.data == NULL || to.data == NULL) {
            return NGX_ERROR;
        }

        ngx_sprintf(from.data, "%V:", &g->did);
        ngx_sprintf(to.data, "%V;", &g->did);
    }

    slot->level = ngx_http_vibe_level(v->vmcf, &v->feed.dbs[v->current],
                                      &v->feed.dbs[v->target], &from, &to,
                                      &g->db, ngx_http_vibe_view_kept, slot);
    if (slot->level == NULL) {
        return NGX_ERROR;
    }

    ngx_http_vibe_gather_end(g);
    slot->gather = NULL;

    return NGX_OK;
}


static void
ngx_http_vibe_view_kept(ngx_http_vibe_level_t *l, ngx_int_t rc)
{
    ngx_http_vibe_view_t       *v;
    ngx_http_vibe_view_slot_t  *slot;

    slot = l->data;
    v = slot->view;

    if (rc != NGX_OK) {
        ngx_http_vibe_view_failed(v, NULL,
                                  "couchdb did not take a view's rows");
        return;
    }

    v->changed += l->rows.changed;

    ngx_http_vibe_level_end(l);
    slot->level = NULL;
    v->busy--;

    ngx_http_vibe_view_fill(v);
}


/* the next databases of users */

static ngx_int_t
ngx_http_vibe_view_list(ngx_http_vibe_view_t *v)
{
    u_char      *path;
    ngx_str_t   *prefix, end, first, last;
    ngx_pool_t  *pool;

    pool = v->ask.pool;

    prefix = v->vmcf->prefixes.elts;
    prefix += v->prefix;

    end.len = prefix->len;
    end.data = ngx_pstrdup(pool, prefix);
    if (end.data == NULL) {
        return NGX_ERROR;
    }

    end.data[end.len - 1]++;

    if (ngx_http_vibe_ask_key(pool, v->last.len ? &v->last : prefix, &first)
        != NGX_OK
        || ngx_http_vibe_ask_key(pool, &end, &last) != NGX_OK)
    {
        return NGX_ERROR;
    }

    path = ngx_pnalloc(pool, first.len + last.len + 64);
    if (path == NULL) {
        return NGX_ERROR;
    }

    *ngx_sprintf(path, "/_all_dbs?limit=%d&startkey=%V&endkey=%V",
                 NGX_HTTP_VIBE_VIEW_PAGE, &first, &last) = '\0';

    v->listing = 1;

    ngx_http_vibe_ask(&v->ask, NGX_HTTP_GET, NULL, (const char *) path, NULL,
                      ngx_http_vibe_view_listed);

    return NGX_OK;
}


static void
ngx_http_vibe_view_listed(ngx_http_vibe_ask_t *ask,
    ngx_http_vibe_call_t *call)
{
    ngx_http_vibe_view_t *v = ask->data;

    ngx_http_vibe_json_t  *root;

    v->listing = 0;

    if (call->status != NGX_HTTP_OK
        || ngx_http_vibe_scan_answer(ask->pool, call, 1, &root) != NGX_OK
        || root->type != NGX_HTTP_VIBE_JSON_ARRAY)
    {
        ngx_http_vibe_view_failed(v, call, NULL);
        return;
    }

    if (ngx_http_vibe_view_list_add(v, root) != NGX_OK) {
        ngx_http_vibe_view_failed(v, NULL, "no memory");
        return;
    }

    if (root->n < NGX_HTTP_VIBE_VIEW_PAGE) {

        ngx_http_vibe_target_keep(&v->last, NULL);

        if (++v->prefix == v->vmcf->prefixes.nelts) {
            v->listed = 1;
        }
    }

    ngx_http_vibe_view_fill(v);
}


/* a page begins with the last name of the one before */

static ngx_int_t
ngx_http_vibe_view_list_add(ngx_http_vibe_view_t *v,
    ngx_http_vibe_json_t *names)
{
    ngx_int_t              rc;
    ngx_str_t              did;
    ngx_http_vibe_json_t  *name;

    for (name = names->child; name; name = name->next) {

        if (ngx_http_vibe_same(&name->string, &v->last)) {
            continue;
        }

        if (name->next == NULL) {
            ngx_http_vibe_target_keep(&v->last, &name->string);
        }

        rc = ngx_http_vibe_check_named(v->vmcf, v->ask.pool, &name->string,
                                       &did);
        if (rc == NGX_ABORT) {
            continue;
        }

        if (rc == NGX_ERROR
            || ngx_http_vibe_names_add(&v->todo, &name->string) != NGX_OK)
        {
            return NGX_ERROR;
        }
    }

    return NGX_OK;
}


/* rows of databases that are no more, or nobody's */

static void
ngx_http_vibe_view_sweep(ngx_http_vibe_view_t *v)
{
    ngx_str_t  end;

    if (v->sweep.vmcf == NULL
        && ngx_http_vibe_rows_init(&v->sweep, v->vmcf,
                                   &v->feed.dbs[v->target], v)
           != NGX_OK)
    {
        ngx_http_vibe_view_failed(v, NULL, "no memory");
        return;
    }

    ngx_str_null(&end);
    v->sweep.paged = 1;

    if (ngx_http_vibe_rows_read(&v->sweep, &v->last, &end,
                                ngx_http_vibe_view_swept)
        != NGX_OK)
    {
        ngx_http_vibe_view_failed(v, NULL, "no memory");
    }
}


static void
ngx_http_vibe_view_swept(ngx_http_vibe_rows_t *rows, ngx_int_t rc)
{
    ngx_http_vibe_view_t *v = rows->data;

    ngx_queue_t          *q;
    ngx_http_vibe_row_t  *row;

    if (rc == NGX_OK) {
        for (q = ngx_queue_head(&rows->queue);
             q != ngx_queue_sentinel(&rows->queue);
             q = ngx_queue_next(q))
        {
            row = ngx_queue_data(q, ngx_http_vibe_row_t, queue);
            row->put = ngx_http_vibe_names_has(&v->visited, &row->source);
        }

        ngx_http_vibe_target_keep(&v->last, &rows->last);
    }

    ngx_http_vibe_view_sweep_write(rows, rc);
}


static void
ngx_http_vibe_view_sweep_write(ngx_http_vibe_rows_t *rows, ngx_int_t rc)
{
    ngx_http_vibe_view_t *v = rows->data;

    if (rc != NGX_OK || ngx_http_vibe_rows_drop(rows) == NGX_ERROR) {
        ngx_http_vibe_view_failed(v, NULL,
                                  "couchdb did not take a view's rows");
        return;
    }

    if (ngx_http_vibe_rows_write(rows, ngx_http_vibe_view_sweep_write)
        == NGX_AGAIN)
    {
        return;
    }

    if (rows->more) {
        ngx_http_vibe_view_sweep(v);
        return;
    }

    v->changed += rows->changed;

    ngx_http_vibe_rows_end(&v->sweep);
    ngx_http_vibe_target_keep(&v->last, NULL);

    v->next(v);
}
