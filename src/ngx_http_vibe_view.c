
#include "ngx_http_vibe_view.h"
#include "ngx_http_vibe_lease.h"
#include "ngx_http_vibe_target.h"


static ngx_int_t ngx_http_vibe_view_copy(ngx_http_vibe_view_t *v,
    ngx_http_vibe_feed_t *feed);
static ngx_int_t ngx_http_vibe_view_copy_list(ngx_pool_t *pool,
    ngx_array_t *to, ngx_array_t *from);
static ngx_int_t ngx_http_vibe_view_indexes(ngx_http_vibe_view_t *v);
static ngx_uint_t ngx_http_vibe_view_holds(ngx_http_vibe_view_t *v,
    ngx_array_t *fields);
static void ngx_http_vibe_view_wake(ngx_event_t *ev);
static void ngx_http_vibe_view_look(ngx_http_vibe_view_t *v);
static void ngx_http_vibe_view_looked(ngx_http_vibe_ask_t *ask,
    ngx_http_vibe_call_t *call);
static void ngx_http_vibe_view_started(ngx_http_vibe_view_t *v);
static void ngx_http_vibe_view_wait(ngx_http_vibe_view_t *v,
    ngx_http_vibe_view_pt next);
static ngx_int_t ngx_http_vibe_view_idle(ngx_http_vibe_view_t *v,
    ngx_http_vibe_view_pt next);
static void ngx_http_vibe_view_work(ngx_http_vibe_view_t *v);
static void ngx_http_vibe_view_work_all(ngx_http_vibe_view_t *v);
static void ngx_http_vibe_view_changes(ngx_http_vibe_view_t *v);
static void ngx_http_vibe_view_level(ngx_http_vibe_view_t *v, ngx_uint_t from);
static void ngx_http_vibe_view_levelled(ngx_http_vibe_level_t *l,
    ngx_int_t rc);
static void ngx_http_vibe_view_gathered_all(ngx_http_vibe_view_t *v);
static void ngx_http_vibe_view_settle(ngx_http_vibe_view_t *v);
static void ngx_http_vibe_view_settling(ngx_http_vibe_view_t *v);
static void ngx_http_vibe_view_settled(ngx_http_vibe_view_t *v);
static void ngx_http_vibe_view_counted(ngx_http_vibe_ask_t *ask,
    ngx_http_vibe_call_t *call);
static void ngx_http_vibe_view_publish(ngx_http_vibe_view_t *v);
static void ngx_http_vibe_view_published(ngx_http_vibe_ask_t *ask,
    ngx_http_vibe_call_t *call);
static ngx_uint_t ngx_http_vibe_view_number(ngx_http_vibe_view_t *v);
static void ngx_http_vibe_view_doubt(ngx_http_vibe_view_t *v);
static void ngx_http_vibe_view_even(ngx_http_vibe_view_t *v);
static void ngx_http_vibe_view_done(ngx_http_vibe_view_t *v);
static void ngx_http_vibe_view_stop(ngx_http_vibe_view_t *v);
static uint64_t ngx_http_vibe_view_now(void);


static ngx_str_t  ngx_http_vibe_view_state =
                                        ngx_string(NGX_HTTP_VIBE_STATE_DB);


ngx_http_vibe_view_t *
ngx_http_vibe_view_create(ngx_http_vibe_main_conf_t *vmcf,
    ngx_http_vibe_feed_t *feed)
{
    ngx_uint_t             i;
    ngx_pool_t            *pool;
    ngx_http_vibe_view_t  *v;

    pool = ngx_create_pool(NGX_DEFAULT_POOL_SIZE, ngx_cycle->log);
    if (pool == NULL) {
        return NULL;
    }

    v = ngx_pcalloc(pool, sizeof(ngx_http_vibe_view_t));
    if (v == NULL) {
        goto failed;
    }

    v->pool = pool;
    v->vmcf = vmcf;

    if (ngx_http_vibe_view_copy(v, feed) != NGX_OK
        || ngx_http_vibe_view_indexes(v) != NGX_OK
        || ngx_http_vibe_ask_init(&v->ask, vmcf->zone, v) != NGX_OK)
    {
        goto failed;
    }

    v->withdraw.dbs = v->feed.dbs;

    if (ngx_http_vibe_withdraw_init(&v->withdraw, vmcf->zone) != NGX_OK) {
        ngx_http_vibe_ask_end(&v->ask);
        goto failed;
    }

    for (i = 0; i < 2; i++) {
        ngx_http_vibe_names_init(&v->dirty[i], NGX_HTTP_VIBE_VIEW_CHANGED);
        v->full[i] = 1;
    }

    ngx_http_vibe_names_init(&v->todo, NGX_HTTP_VIBE_VIEW_CHANGED);
    ngx_http_vibe_names_init(&v->doubted, NGX_HTTP_VIBE_VIEW_CHANGED);
    ngx_http_vibe_names_init(&v->visited, NGX_HTTP_VIBE_VIEW_VISITED);
    ngx_http_vibe_names_init(&v->withdrawn, NGX_HTTP_VIBE_WITHDRAW_MAX);

    ngx_http_vibe_view_interval(v, feed->interval);

    v->told = v->grace;
    v->promised = v->grace;

    v->dumb.fd = (ngx_socket_t) -1;
    v->dumb.data = v;

    v->event.handler = ngx_http_vibe_view_wake;
    v->event.data = &v->dumb;
    v->event.log = ngx_cycle->log;
    v->event.cancelable = 1;

    return v;

failed:

    ngx_destroy_pool(pool);

    return NULL;
}


void
ngx_http_vibe_view_end(ngx_http_vibe_view_t *v)
{
    ngx_uint_t  i;

    ngx_http_vibe_view_stop(v);
    ngx_http_vibe_ask_end(&v->ask);
    ngx_http_vibe_withdraw_end(&v->withdraw);

    for (i = 0; i < 2; i++) {
        ngx_http_vibe_names_clear(&v->dirty[i]);
    }

    ngx_http_vibe_names_clear(&v->doubted);
    ngx_http_vibe_target_keep(&v->rev, NULL);
    ngx_http_vibe_target_keep(&v->seq, NULL);

    ngx_destroy_pool(v->pool);
}


static ngx_int_t
ngx_http_vibe_view_copy(ngx_http_vibe_view_t *v, ngx_http_vibe_feed_t *feed)
{
    ngx_str_t   *str[6], *from;
    ngx_uint_t   i;

    v->feed = *feed;

    str[0] = &v->feed.collection;
    str[1] = &v->feed.name;
    str[2] = &v->feed.dbs[0];
    str[3] = &v->feed.dbs[1];
    str[4] = &v->feed.selector;
    str[5] = &v->feed.hash;

    for (i = 0; i < 6; i++) {
        from = str[i];

        from->data = ngx_pstrdup(v->pool, from);
        if (from->data == NULL) {
            return NGX_ERROR;
        }
    }

    ngx_str_null(&v->feed.document);

    if (ngx_http_vibe_view_copy_list(v->pool, &v->feed.fields, &feed->fields)
        != NGX_OK)
    {
        return NGX_ERROR;
    }

    return ngx_http_vibe_view_copy_list(v->pool, &v->feed.sort, &feed->sort);
}


static ngx_int_t
ngx_http_vibe_view_copy_list(ngx_pool_t *pool, ngx_array_t *to,
    ngx_array_t *from)
{
    ngx_str_t   *str, *name;
    ngx_uint_t   i;

    if (ngx_array_init(to, pool, ngx_max(from->nelts, 1), sizeof(ngx_str_t))
        != NGX_OK)
    {
        return NGX_ERROR;
    }

    name = from->elts;

    for (i = 0; i < from->nelts; i++) {

        str = ngx_array_push(to);
        if (str == NULL) {
            return NGX_ERROR;
        }

        str->len = name[i].len;
        str->data = ngx_pstrdup(pool, &name[i]);
        if (str->data == NULL) {
            return NGX_ERROR;
        }
    }

    return NGX_OK;
}


/* its own sort, none, and those of vibe_index whose fields its rows have */

static ngx_int_t
ngx_http_vibe_view_indexes(ngx_http_vibe_view_t *v)
{
    ngx_uint_t              i;
    ngx_array_t            *fields;
    ngx_http_vibe_index_t  *index;

    if (ngx_array_init(&v->indexes, v->pool, 4, sizeof(ngx_array_t))
        != NGX_OK)
    {
        return NGX_ERROR;
    }

    fields = ngx_array_push(&v->indexes);
    if (fields == NULL) {
        return NGX_ERROR;
    }

    *fields = v->feed.sort;

    index = v->vmcf->indexes.elts;

    for (i = 0;
         i < v->vmcf->indexes.nelts
         && v->indexes.nelts < NGX_HTTP_VIBE_VIEW_INDEXES;
         i++)
    {
        if ((index[i].collection.len != 1
             || index[i].collection.data[0] != '*')
            && !ngx_http_vibe_same(&index[i].collection, &v->feed.collection))
        {
            continue;
        }

        if (!ngx_http_vibe_view_holds(v, &index[i].fields)) {
            continue;
        }

        fields = ngx_array_push(&v->indexes);
        if (fields == NULL) {
            return NGX_ERROR;
        }

        *fields = index[i].fields;
    }

    return NGX_OK;
}


/* 1 if its rows have these fields, and it has no such index yet */

static ngx_uint_t
ngx_http_vibe_view_holds(ngx_http_vibe_view_t *v, ngx_array_t *fields)
{
    ngx_str_t    *name, *field;
    ngx_uint_t    i, k, same;
    ngx_array_t  *index;

    name = fields->elts;

    for (i = 0; i < fields->nelts; i++) {
        if (!ngx_http_vibe_registry_holds(&v->feed.fields, &name[i])) {
            return 0;
        }
    }

    index = v->indexes.elts;

    for (i = 0; i < v->indexes.nelts; i++) {

        same = (index[i].nelts == fields->nelts);
        field = index[i].elts;

        for (k = 0; same && k < fields->nelts; k++) {
            same = ngx_http_vibe_same(&name[k], &field[k]);
        }

        if (same) {
            return 0;
        }
    }

    return 1;
}


void
ngx_http_vibe_view_load(ngx_http_vibe_view_t *v,
    ngx_http_vibe_pointer_t *pointer)
{
    v->exists = 0;

    if (pointer == NULL) {
        ngx_http_vibe_target_keep(&v->rev, NULL);
        return;
    }

    ngx_http_vibe_target_keep(&v->rev, &pointer->rev);

    v->run = pointer->run;
    v->rows = pointer->rows;
    v->flipped = ngx_current_msec;

    /* whoever has it now may have been promised more time */

    v->told = ngx_max(v->grace, ngx_min(pointer->grace,
                                        NGX_HTTP_VIBE_GRACE_MAX));
    v->promised = v->told;

    if (pointer->db.len == 0) {
        return;
    }

    v->exists = 1;
    v->current = ngx_http_vibe_same(&pointer->db, &v->feed.dbs[1]);
    v->withdraw.current = v->current;
}


void
ngx_http_vibe_view_interval(ngx_http_vibe_view_t *v, ngx_msec_t interval)
{
    v->feed.interval = interval;

    v->grace = ngx_min(ngx_max(interval / 4, NGX_HTTP_VIBE_GRACE_MIN),
                       NGX_HTTP_VIBE_GRACE_MAX);
}


void
ngx_http_vibe_view_changed(ngx_http_vibe_view_t *v, ngx_str_t *db)
{
    ngx_uint_t  i;

    for (i = 0; i < 2; i++) {
        if (ngx_http_vibe_names_add(&v->dirty[i], db) != NGX_OK) {
            ngx_http_vibe_view_reset(v);
        }
    }
}


void
ngx_http_vibe_view_withdraw(ngx_http_vibe_view_t *v, ngx_str_t *global)
{
    if (ngx_http_vibe_withdraw(&v->withdraw, global) != NGX_OK
        || (v->running
            && ngx_http_vibe_names_add(&v->withdrawn, global) != NGX_OK))
    {
        ngx_http_vibe_view_reset(v);

        if (v->running) {
            ngx_http_vibe_view_failed(v, NULL, "too much is withdrawn");
        }
    }
}


void
ngx_http_vibe_view_reset(ngx_http_vibe_view_t *v)
{
    v->full[0] = 1;
    v->full[1] = 1;
}


void
ngx_http_vibe_view_missed(ngx_http_vibe_view_t *v)
{
    ngx_http_vibe_view_reset(v);

    if (!v->running || !v->working) {
        return;
    }

    if (v->published) {
        v->again = 1;
        return;
    }

    ngx_http_vibe_view_failed(v, NULL, "changes of global were missed");
}


void
ngx_http_vibe_view_run(ngx_http_vibe_view_t *v)
{
    if (v->running) {
        return;
    }

    v->running = 1;
    v->failed = 0;
    v->published = 0;
    v->full_run = 0;
    v->full_level = 0;
    v->even = 0;
    v->lost = 0;
    v->again = 0;
    v->working = 0;
    v->empty = 0;
    v->asked = 0;
    v->changed = 0;
    v->broken = 0;
    v->error[0] = '\0';
    v->began = ngx_http_vibe_view_now();
    v->started = ngx_current_msec;

    ngx_http_vibe_view_prepare(v, ngx_http_vibe_view_look);
}


/* an admin may have deleted what is current */

static void
ngx_http_vibe_view_look(ngx_http_vibe_view_t *v)
{
    if (!v->exists) {
        ngx_http_vibe_view_started(v);
        return;
    }

    ngx_http_vibe_ask(&v->ask, NGX_HTTP_GET, &v->feed.dbs[v->current], "",
                      NULL, ngx_http_vibe_view_looked);
}


static void
ngx_http_vibe_view_looked(ngx_http_vibe_ask_t *ask,
    ngx_http_vibe_call_t *call)
{
    ngx_http_vibe_view_t *v = ask->data;

    if (call->status == NGX_HTTP_NOT_FOUND) {
        v->prepared[v->current] = 0;
        ngx_http_vibe_view_prepare(v, ngx_http_vibe_view_look);
        return;
    }

    if (call->status != NGX_HTTP_OK) {
        ngx_http_vibe_view_failed(v, call, NULL);
        return;
    }

    ngx_http_vibe_view_started(v);
}


static void
ngx_http_vibe_view_started(ngx_http_vibe_view_t *v)
{
    v->target = v->exists ? !v->current : 0;

    ngx_http_vibe_view_wait(v, ngx_http_vibe_view_work);
}


/* until all changes that there are by now were told */

static void
ngx_http_vibe_view_wait(ngx_http_vibe_view_t *v, ngx_http_vibe_view_pt next)
{
    v->next = next;
    v->catching = 1;

    v->catch_up(v);
}


void
ngx_http_vibe_view_caught(ngx_http_vibe_view_t *v, ngx_str_t *seq)
{
    if (!v->catching) {
        return;
    }

    v->catching = 0;

    if (v->next == ngx_http_vibe_view_work) {
        ngx_http_vibe_target_keep(&v->seq, seq);
    }

    v->next(v);
}


/* NGX_OK: all that was withdrawn is out; else "next" is called, or it failed */

static ngx_int_t
ngx_http_vibe_view_idle(ngx_http_vibe_view_t *v, ngx_http_vibe_view_pt next)
{
    if (ngx_http_vibe_withdraw_idle(&v->withdraw)) {
        return NGX_OK;
    }

    if (v->withdraw.failures >= NGX_HTTP_VIBE_WITHDRAW_TRIES) {
        ngx_http_vibe_view_failed(v, NULL, "couchdb did not take out what was "
                                           "withdrawn");
        return NGX_ERROR;
    }

    ngx_http_vibe_view_later(v, NGX_HTTP_VIBE_VIEW_IDLE, next);

    return NGX_AGAIN;
}


/* also called again when readers have let go of the database */

static void
ngx_http_vibe_view_work(ngx_http_vibe_view_t *v)
{
    ngx_uint_t  t;
    ngx_msec_t  passed;

    t = v->target;

    /* else it might be taken out after it was public again and gathered */

    if (ngx_http_vibe_view_idle(v, ngx_http_vibe_view_work) != NGX_OK) {
        return;
    }

    v->working = 1;

    if (v->exists
        && !v->full[v->current]
        && v->dirty[v->current].n == 0)
    {
        /* nothing has changed */

        v->target = v->current;
        ngx_http_vibe_view_settled(v);
        return;
    }

    passed = ngx_current_msec - v->flipped;

    if (v->exists && passed < v->promised) {
        ngx_http_vibe_view_later(v, v->promised - passed,
                                 ngx_http_vibe_view_work);
        return;
    }

    ngx_http_vibe_names_clear(&v->withdrawn);

    if (!v->full[t]) {
        ngx_http_vibe_view_changes(v);
        return;
    }

    ngx_http_vibe_view_work_all(v);
}


static void
ngx_http_vibe_view_work_all(ngx_http_vibe_view_t *v)
{
    ngx_uint_t  t;

    t = v->target;

    v->full[t] = 0;

    if (v->exists && !v->full[v->current]) {

        /* the other one knows, but for what has changed since */

        v->full_level = 1;

        ngx_http_vibe_names_clear(&v->dirty[t]);

        if (ngx_http_vibe_names_copy(&v->dirty[t], &v->dirty[v->current])
            != NGX_OK)
        {
            ngx_http_vibe_view_failed(v, NULL, "no memory");
            return;
        }

        ngx_http_vibe_view_level(v, v->current);
        return;
    }

    /* all of them, and from now on what changes, for the other one, too */

    ngx_http_vibe_names_clear(&v->dirty[0]);
    ngx_http_vibe_names_clear(&v->dirty[1]);

    v->full[!t] = 0;
    v->full_run = 1;
    v->even = 1;
    v->empty = v->made[t];
    v->made[t] = 0;

    ngx_http_vibe_view_gather(v, ngx_http_vibe_view_gathered_all);
}


static void
ngx_http_vibe_view_changes(ngx_http_vibe_view_t *v)
{
    v->made[v->target] = 0;

    if (ngx_http_vibe_names_move(&v->todo, &v->dirty[v->target]) != NGX_OK) {
        ngx_http_vibe_view_reset(v);
        ngx_http_vibe_view_failed(v, NULL, "no memory");
        return;
    }

    ngx_http_vibe_view_gather(v, ngx_http_vibe_view_gathered_all);
}


/* the whole of one database into the other one */

static void
ngx_http_vibe_view_level(ngx_http_vibe_view_t *v, ngx_uint_t from)
{
    ngx_str_t  all;

    ngx_str_null(&all);

    v->level = ngx_http_vibe_level(v->vmcf, &v->feed.dbs[from],
                                   &v->feed.dbs[!from], &all, &all, &all,
                                   ngx_http_vibe_view_levelled, v);
    if (v->level == NULL) {
        ngx_http_vibe_view_failed(v, NULL, "no memory");
    }
}


static void
ngx_http_vibe_view_levelled(ngx_http_vibe_level_t *l, ngx_int_t rc)
{
    ngx_http_vibe_view_t *v = l->data;

    if (rc == NGX_ABORT) {
        v->prepared[0] = 0;
        v->prepared[1] = 0;
    }

    if (rc != NGX_OK) {
        ngx_http_vibe_view_failed(v, NULL,
                                  "couchdb did not take a view's rows");
        return;
    }

    v->level = NULL;
    ngx_http_vibe_level_end(l);

    if (v->even) {
        v->even = 0;
        ngx_http_vibe_view_done(v);
        return;
    }

    v->full_level = 0;
    ngx_http_vibe_view_changes(v);
}


static void
ngx_http_vibe_view_gathered_all(ngx_http_vibe_view_t *v)
{
    ngx_http_vibe_names_clear(&v->visited);

    ngx_http_vibe_view_build(v, ngx_http_vibe_view_settle);
}


/* what was withdrawn meanwhile may have been read before that */

static void
ngx_http_vibe_view_settle(ngx_http_vibe_view_t *v)
{
    ngx_http_vibe_view_wait(v, ngx_http_vibe_view_settling);
}


static void
ngx_http_vibe_view_settling(ngx_http_vibe_view_t *v)
{
    ngx_int_t              rc;
    ngx_http_vibe_name_t  *name;

    while ((name = ngx_http_vibe_names_take(&v->withdrawn)) != NULL) {

        rc = ngx_http_vibe_withdraw(&v->withdraw, &name->node.str);
        ngx_free(name);

        if (rc != NGX_OK) {
            ngx_http_vibe_view_failed(v, NULL, "too much is withdrawn");
            return;
        }
    }

    ngx_http_vibe_view_settled(v);
}


static void
ngx_http_vibe_view_settled(ngx_http_vibe_view_t *v)
{
    if (ngx_http_vibe_view_idle(v, ngx_http_vibe_view_settled) != NGX_OK) {
        return;
    }

    ngx_http_vibe_ask(&v->ask, NGX_HTTP_GET, &v->feed.dbs[v->target], "",
                      NULL, ngx_http_vibe_view_counted);
}


/* all documents but those of the indexes */

static void
ngx_http_vibe_view_counted(ngx_http_vibe_ask_t *ask,
    ngx_http_vibe_call_t *call)
{
    ngx_http_vibe_view_t *v = ask->data;

    ngx_uint_t             n, designs;
    ngx_http_vibe_json_t  *count;

    count = (call->status == NGX_HTTP_OK)
            ? ngx_http_vibe_ask_member(ask, call, "doc_count") : NULL;

    if (count == NULL
        || ngx_http_vibe_json_uint(count, NGX_MAX_INT32_VALUE, &n) != NGX_OK)
    {
        ngx_http_vibe_view_failed(v, call, NULL);
        return;
    }

    designs = v->designs[v->target];

    v->rows = (n > designs) ? n - designs : 0;

    if (!ngx_http_vibe_withdraw_idle(&v->withdraw)) {
        ngx_http_vibe_view_settled(v);
        return;
    }

    if (!ngx_http_vibe_lease_held()) {
        ngx_http_vibe_view_failed(v, NULL, "the lease is lost");
        return;
    }

    ngx_http_vibe_view_publish(v);
}


static void
ngx_http_vibe_view_publish(ngx_http_vibe_view_t *v)
{
    u_char                    *path;
    ngx_http_vibe_pointer_t    pointer;
    ngx_http_vibe_json_out_t   out;

    path = ngx_http_vibe_pointer_path(v->ask.pool, &v->feed.name);
    if (path == NULL) {
        ngx_http_vibe_view_failed(v, NULL, "no memory");
        return;
    }

    ngx_memzero(&pointer, sizeof(ngx_http_vibe_pointer_t));

    pointer.rev = v->rev;
    pointer.collection = v->feed.collection;
    pointer.definition = v->feed.hash;
    pointer.fields = v->feed.fields;
    pointer.sort = v->feed.sort;
    pointer.descending = v->feed.descending;
    pointer.indexes = v->indexes;
    pointer.db = v->feed.dbs[v->target];
    pointer.run = ngx_http_vibe_view_number(v);
    pointer.as_of = v->began;
    pointer.last_seq = v->seq;
    pointer.rows = v->rows;
    pointer.grace = v->grace;

    ngx_http_vibe_json_out_init(&out, v->ask.pool);
    ngx_http_vibe_pointer_put(&out, &v->feed.name, &pointer);

    ngx_http_vibe_ask(&v->ask, NGX_HTTP_PUT, &ngx_http_vibe_view_state,
                      (const char *) path, &out,
                      ngx_http_vibe_view_published);
}


static void
ngx_http_vibe_view_published(ngx_http_vibe_ask_t *ask,
    ngx_http_vibe_call_t *call)
{
    ngx_http_vibe_view_t *v = ask->data;

    ngx_http_vibe_json_t  *rev;

    rev = NULL;

    if (call->status == NGX_HTTP_CREATED || call->status == NGX_HTTP_ACCEPTED)
    {
        rev = ngx_http_vibe_ask_member(ask, call, "rev");
    }

    if (rev == NULL || rev->type != NGX_HTTP_VIBE_JSON_STRING) {

        /* it may have been written: whose it is now has to be asked */

        v->lost = 1;
        ngx_http_vibe_view_failed(v, call, NULL);
        return;
    }

    ngx_http_vibe_target_keep(&v->rev, &rev->string);

    v->run = ngx_http_vibe_view_number(v);
    v->published = 1;
    v->took = ngx_current_msec - v->started;

    if (!v->exists || v->current != v->target) {
        v->promised = v->told;
        v->told = v->grace;
        v->flipped = ngx_current_msec;
        v->current = v->target;
        v->withdraw.current = v->current;
    }

    v->exists = 1;
    v->told = ngx_max(v->told, v->grace);

    ngx_http_vibe_view_doubt(v);

    if (v->even) {
        ngx_http_vibe_view_later(v, v->promised, ngx_http_vibe_view_even);
        return;
    }

    ngx_http_vibe_view_done(v);
}


/* looks again at what a run that failed may have left behind */

static void
ngx_http_vibe_view_doubt(ngx_http_vibe_view_t *v)
{
    ngx_queue_t           *q;
    ngx_http_vibe_name_t  *name;

    v->again = v->doubts;
    v->doubts = 0;

    if (v->doubtful) {
        v->doubtful = 0;
        ngx_http_vibe_view_reset(v);
    }

    for (q = ngx_queue_head(&v->doubted.queue);
         q != ngx_queue_sentinel(&v->doubted.queue);
         q = ngx_queue_next(q))
    {
        name = ngx_queue_data(q, ngx_http_vibe_name_t, queue);
        ngx_http_vibe_view_changed(v, &name->node.str);
    }

    if ((ngx_msec_int_t) (ngx_current_msec - v->until) >= 0) {
        ngx_http_vibe_names_clear(&v->doubted);
    }
}


/* that of the result: a run that found nothing changed confirms the last */

static ngx_uint_t
ngx_http_vibe_view_number(ngx_http_vibe_view_t *v)
{
    return (v->exists && v->target == v->current) ? v->run : v->run + 1;
}


/* nobody reads the other one any more: so the next run need not look at all */

static void
ngx_http_vibe_view_even(ngx_http_vibe_view_t *v)
{
    ngx_http_vibe_view_level(v, v->current);
}


static void
ngx_http_vibe_view_done(ngx_http_vibe_view_t *v)
{
    v->running = 0;

    ngx_http_vibe_names_clear(&v->withdrawn);

    v->ended(v);
}


void
ngx_http_vibe_view_failed(ngx_http_vibe_view_t *v,
    ngx_http_vibe_call_t *call, const char *why)
{
    v->failed = 1;
    v->running = 0;
    v->catching = 0;

    ngx_memzero(v->error, NGX_HTTP_VIBE_VIEW_ERROR);

    /* vibe_status names no database */

    if (call != NULL) {
        ngx_log_error(NGX_LOG_ERR, ngx_cycle->log, 0,
                      "the feed \"%V\": couchdb answered \"%V\" with %ui",
                      &v->feed.name, &call->path, call->status);

        (void) ngx_snprintf(v->error, NGX_HTTP_VIBE_VIEW_ERROR - 1,
                            "couchdb answered with %ui", call->status);
    } else {
        ngx_log_error(NGX_LOG_ERR, ngx_cycle->log, 0,
                      "the feed \"%V\": %s", &v->feed.name, why);

        (void) ngx_snprintf(v->error, NGX_HTTP_VIBE_VIEW_ERROR - 1, "%s",
                            why);
    }

    if (!v->published) {
        v->took = ngx_current_msec - v->started;
    }

    if (v->full_level || (v->full_run && !v->published)) {
        v->full[v->target] = 1;
    }

    if (v->even) {
        v->full[!v->target] = 1;
    }

    v->full_level = 0;
    v->even = 0;
    v->ask.timeout = 0;

    ngx_http_vibe_view_stop(v);

    v->ended(v);
}


/* lets go of all that the run has under way */

static void
ngx_http_vibe_view_stop(ngx_http_vibe_view_t *v)
{
    ngx_http_vibe_view_gather_end(v);
    ngx_http_vibe_names_clear(&v->withdrawn);

    if (v->level != NULL) {
        ngx_http_vibe_level_end(v->level);
        v->level = NULL;
        v->doubtful = 1;
        v->doubts = 1;
    }

    if (v->event.timer_set) {
        ngx_del_timer(&v->event);
    }

    ngx_http_vibe_ask_end(&v->ask);
    (void) ngx_http_vibe_ask_init(&v->ask, v->vmcf->zone, v);
}


void
ngx_http_vibe_view_later(ngx_http_vibe_view_t *v, ngx_msec_t delay,
    ngx_http_vibe_view_pt next)
{
    v->next = next;

    ngx_add_timer(&v->event, delay);
}


static void
ngx_http_vibe_view_wake(ngx_event_t *ev)
{
    ngx_connection_t      *c;
    ngx_http_vibe_view_t  *v;

    c = ev->data;
    v = c->data;

    v->next(v);
}


static uint64_t
ngx_http_vibe_view_now(void)
{
    ngx_time_t  *tp;

    tp = ngx_timeofday();

    return (uint64_t) tp->sec * 1000 + tp->msec;
}
