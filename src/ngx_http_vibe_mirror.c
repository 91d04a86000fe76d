
#include "ngx_http_vibe_mirror.h"
#include "ngx_http_vibe_bulk.h"
#include "ngx_http_vibe_global.h"
#include "ngx_http_vibe_lookup.h"


/* bytes that a row counts for beside its document */
#define NGX_HTTP_VIBE_MIRROR_ROW  2048


/* what one request to CouchDB is about; stays while a row points into it */

struct ngx_http_vibe_batch_s {
    ngx_pool_t                  *pool;
    ngx_uint_t                   refs;

    ngx_http_vibe_couch_t        couch;
    ngx_http_vibe_lookup_t      *lookup;       /* either */
    ngx_http_vibe_bulk_t        *bulk;         /* or */
    ngx_uint_t                  *going;        /* requests of its station */

    ngx_http_vibe_mirror_row_t **rows;
    ngx_uint_t                   n;
    uint32_t                     seen[32];     /* ids, a bit for each hash */
    unsigned                     failed:1;     /* as a whole */
};


typedef struct {
    ngx_http_vibe_main_conf_t   *vmcf;
    ngx_event_t                  event;
    ngx_http_vibe_global_wait_t  global;

    ngx_queue_t                  learn;        /* rows that wait */
    ngx_queue_t                  ask;
    ngx_queue_t                  write;

    ngx_uint_t                   learning;     /* requests under way */
    ngx_uint_t                   asking;
    ngx_uint_t                   writing;

    size_t                       size;         /* of all mirrors */
    ngx_uint_t                   waiting;      /* rows that clients wait for */
    unsigned                     making:1;     /* "global" */
} ngx_http_vibe_mirrors_t;


static void ngx_http_vibe_mirror_go(ngx_event_t *ev);
static void ngx_http_vibe_mirror_made(void *data, ngx_http_vibe_call_t *failed);
static void ngx_http_vibe_mirror_fail(ngx_queue_t *queue);
static void ngx_http_vibe_mirror_step(ngx_http_vibe_mirror_row_t *row,
    ngx_http_vibe_step_e step);
static void ngx_http_vibe_mirror_row_ended(ngx_http_vibe_mirror_row_t *row);
static void ngx_http_vibe_mirror_know(ngx_http_vibe_mirror_row_t *row);
static void ngx_http_vibe_mirror_learn(void);
static void ngx_http_vibe_mirror_ask(void);
static void ngx_http_vibe_mirror_ask_db(void);
static void ngx_http_vibe_mirror_look(ngx_http_vibe_batch_t *b);
static void ngx_http_vibe_mirror_looked(ngx_http_vibe_couch_t *couch);
static void ngx_http_vibe_mirror_unreached(ngx_http_vibe_call_t *call);
static void ngx_http_vibe_mirror_found(ngx_http_vibe_batch_t *b);
static void ngx_http_vibe_mirror_write(void);
static ngx_int_t ngx_http_vibe_mirror_put(ngx_http_vibe_batch_t *b,
    ngx_http_vibe_mirror_row_t *row, size_t *size);
static ngx_int_t ngx_http_vibe_mirror_put_loser(ngx_http_vibe_batch_t *b,
    ngx_http_vibe_state_t *st, ngx_str_t *rev);
static void ngx_http_vibe_mirror_bulk(ngx_http_vibe_batch_t *b);
static void ngx_http_vibe_mirror_written(ngx_http_vibe_couch_t *couch);
static void ngx_http_vibe_mirror_results(ngx_http_vibe_batch_t *b);
static ngx_http_vibe_batch_t *ngx_http_vibe_batch_create(ngx_uint_t n,
    ngx_uint_t *going);
static void ngx_http_vibe_batch_take(ngx_http_vibe_batch_t *b,
    ngx_http_vibe_mirror_row_t *row);
static ngx_uint_t ngx_http_vibe_batch_holds(ngx_http_vibe_batch_t *b,
    ngx_str_t *id);
static ngx_int_t ngx_http_vibe_batch_send(ngx_http_vibe_batch_t *b,
    ngx_str_t *db, const char *suffix, ngx_http_vibe_json_out_t *out,
    ngx_http_vibe_couch_pt handler);
static void ngx_http_vibe_batch_call(ngx_http_vibe_batch_t *b,
    ngx_http_vibe_call_t *call);
static void ngx_http_vibe_batch_failed(ngx_http_vibe_batch_t *b,
    ngx_http_vibe_call_t *call);
static void ngx_http_vibe_batch_end(ngx_http_vibe_batch_t *b);
static void ngx_http_vibe_batch_release(ngx_http_vibe_batch_t **b);


static ngx_http_vibe_mirrors_t  ngx_http_vibe_mirrors;


void
ngx_http_vibe_mirror_init(ngx_http_vibe_main_conf_t *vmcf)
{
    ngx_http_vibe_mirrors_t *ms = &ngx_http_vibe_mirrors;

    ngx_memzero(ms, sizeof(ngx_http_vibe_mirrors_t));

    ms->vmcf = vmcf;

    ngx_queue_init(&ms->learn);
    ngx_queue_init(&ms->ask);
    ngx_queue_init(&ms->write);

    ms->event.handler = ngx_http_vibe_mirror_go;
    ms->event.log = ngx_cycle->log;

    ms->global.handler = ngx_http_vibe_mirror_made;
}


ngx_http_vibe_mirror_t *
ngx_http_vibe_mirror_create(ngx_str_t *did, ngx_str_t *db, ngx_uint_t n,
    ngx_log_t *log)
{
    ngx_pool_t              *pool;
    ngx_http_vibe_mirror_t  *m;

    pool = ngx_create_pool(NGX_DEFAULT_POOL_SIZE, log);
    if (pool == NULL) {
        return NULL;
    }

    m = ngx_pcalloc(pool, sizeof(ngx_http_vibe_mirror_t));
    if (m == NULL) {
        goto failed;
    }

    m->pool = pool;

    if (ngx_array_init(&m->rows, pool, n ? n : 1,
                       sizeof(ngx_http_vibe_mirror_row_t))
        != NGX_OK)
    {
        goto failed;
    }

    m->did.len = did->len;
    m->did.data = ngx_pstrdup(pool, did);

    m->db.len = db->len;
    m->db.data = ngx_pstrdup(pool, db);

    if (m->did.data == NULL || m->db.data == NULL) {
        goto failed;
    }

    return m;

failed:

    ngx_destroy_pool(pool);

    return NULL;
}


ngx_http_vibe_mirror_row_t *
ngx_http_vibe_mirror_add(ngx_http_vibe_mirror_t *m, ngx_str_t *id,
    ngx_str_t *rev)
{
    ngx_http_vibe_state_t       *st;
    ngx_http_vibe_mirror_row_t  *row;

    row = ngx_array_push(&m->rows);
    if (row == NULL) {
        return NULL;
    }

    ngx_memzero(row, sizeof(ngx_http_vibe_mirror_row_t));

    row->mirror = m;

    st = &row->state;

    st->pool = m->pool;
    st->did = m->did;
    st->db = m->db;

    st->id.len = id->len;
    st->id.data = ngx_pstrdup(m->pool, id);

    st->rev.len = rev->len;
    st->rev.data = ngx_pstrdup(m->pool, rev);

    if (st->id.data == NULL
        || st->rev.data == NULL
        || ngx_http_vibe_global_id(m->pool, &st->did, &st->id, &st->global)
           != NGX_OK)
    {
        return NULL;
    }

    return row;
}


ngx_int_t
ngx_http_vibe_mirror(ngx_http_vibe_mirror_t *m,
    ngx_http_vibe_mirror_pt handler, void *data)
{
    ngx_uint_t                   i;
    ngx_http_vibe_mirrors_t     *ms;
    ngx_http_vibe_mirror_row_t  *row;

    ms = &ngx_http_vibe_mirrors;

    row = m->rows.elts;

    for (i = 0; i < m->rows.nelts; i++) {
        m->size += NGX_HTTP_VIBE_MIRROR_ROW + row[i].state.members.len;
    }

    if (ms->size && ms->size + m->size > ms->vmcf->mirror_size) {
        return NGX_BUSY;
    }

    ms->size += m->size;

    m->handler = handler;
    m->data = data;
    m->left = m->rows.nelts;

    if (m->waited) {
        ms->waiting += m->left;
        ngx_http_vibe_zone_set(ms->vmcf->zone, NGX_HTTP_VIBE_WAITING,
                               ms->waiting);
    }

    for (i = 0; i < m->rows.nelts; i++) {
        ngx_http_vibe_mirror_step(&row[i],
                    ngx_http_vibe_state_begin(&row[i].state, m->pool->log));
    }

    return NGX_OK;
}


void
ngx_http_vibe_mirror_end(ngx_http_vibe_mirror_t *m)
{
    ngx_destroy_pool(m->pool);
}


/*
 * What can be begun is begun once a turn of the event loop: all rows that
 * came up in the turn go together.
 */

static void
ngx_http_vibe_mirror_go(ngx_event_t *ev)
{
    ngx_int_t                 rc;
    ngx_http_vibe_mirrors_t  *ms;

    ms = &ngx_http_vibe_mirrors;

    ngx_http_vibe_mirror_ask();

    if (ms->making
        || (ngx_queue_empty(&ms->learn) && ngx_queue_empty(&ms->write)))
    {
        return;
    }

    rc = ngx_http_vibe_global_make(&ms->global);

    if (rc == NGX_AGAIN) {
        ms->making = 1;
        return;
    }

    if (rc != NGX_OK) {
        ngx_http_vibe_mirror_fail(&ms->learn);
        ngx_http_vibe_mirror_fail(&ms->write);
        return;
    }

    ngx_http_vibe_mirror_learn();
    ngx_http_vibe_mirror_write();
}


static void
ngx_http_vibe_mirror_made(void *data, ngx_http_vibe_call_t *failed)
{
    ngx_http_vibe_mirrors_t  *ms;

    ms = &ngx_http_vibe_mirrors;

    ms->making = 0;

    if (failed != NULL) {
        ngx_log_error(NGX_LOG_ERR, ngx_cycle->log, 0,
                      "mirrors are pending: couchdb answered \"%V\" with %ui",
                      &failed->path, failed->status);

        ngx_http_vibe_mirror_fail(&ms->learn);
        ngx_http_vibe_mirror_fail(&ms->write);
        return;
    }

    ngx_post_event(&ms->event, &ngx_posted_events);
}


static void
ngx_http_vibe_mirror_fail(ngx_queue_t *queue)
{
    ngx_queue_t                  failed, *q;
    ngx_http_vibe_mirror_row_t  *row;

    if (ngx_queue_empty(queue)) {
        return;
    }

    /* what comes while these end is not among them */

    q = ngx_queue_head(queue);
    ngx_queue_split(queue, q, &failed);

    while (!ngx_queue_empty(&failed)) {
        q = ngx_queue_head(&failed);
        row = ngx_queue_data(q, ngx_http_vibe_mirror_row_t, queue);

        ngx_queue_remove(q);
        ngx_http_vibe_mirror_step(row, NGX_HTTP_VIBE_FAILED);
    }
}


static void
ngx_http_vibe_mirror_step(ngx_http_vibe_mirror_row_t *row,
    ngx_http_vibe_step_e step)
{
    ngx_http_vibe_mirrors_t  *ms;

    ms = &ngx_http_vibe_mirrors;

    switch (step) {

    case NGX_HTTP_VIBE_LEARN:
        ngx_http_vibe_batch_release(&row->learned);
        ngx_http_vibe_batch_release(&row->asked);
        ngx_queue_insert_tail(&ms->learn, &row->queue);
        break;

    case NGX_HTTP_VIBE_ASK:
        ngx_queue_insert_tail(&ms->ask, &row->queue);
        break;

    case NGX_HTTP_VIBE_WRITE:
        ngx_queue_insert_tail(&ms->write, &row->queue);
        break;

    default:
        row->done = (step == NGX_HTTP_VIBE_DONE);
        ngx_http_vibe_mirror_row_ended(row);
        return;
    }

    ngx_post_event(&ms->event, &ngx_posted_events);
}


static void
ngx_http_vibe_mirror_row_ended(ngx_http_vibe_mirror_row_t *row)
{
    ngx_http_vibe_mirror_t   *m;
    ngx_http_vibe_mirrors_t  *ms;

    m = row->mirror;
    ms = &ngx_http_vibe_mirrors;

    ngx_http_vibe_mirror_know(row);

    ngx_http_vibe_batch_release(&row->learned);
    ngx_http_vibe_batch_release(&row->asked);

    if (--m->left) {
        return;
    }

    ms->size -= m->size;

    if (m->waited) {
        ms->waiting -= m->rows.nelts;
        ngx_http_vibe_zone_set(ms->vmcf->zone, NGX_HTTP_VIBE_WAITING,
                               ms->waiting);
    }

    m->handler(m);

    ngx_destroy_pool(m->pool);
}


/* what is known to be right needs no look of repair's */

static void
ngx_http_vibe_mirror_know(ngx_http_vibe_mirror_row_t *row)
{
    ngx_http_vibe_zone_t   *zone;
    ngx_http_vibe_state_t  *st;

    st = &row->state;
    zone = ngx_http_vibe_mirrors.vmcf->zone;

    if (row->done) {
        ngx_http_vibe_zone_know(zone, &st->global, &st->rev, &st->copy_rev);
        ngx_http_vibe_zone_count(zone, NGX_HTTP_VIBE_MIRRORS_DONE, 1);

    } else {
        ngx_http_vibe_zone_count(zone, NGX_HTTP_VIBE_MIRRORS_PENDING,
                                 row->mirror->waited);
    }

    ngx_http_vibe_zone_count(zone, NGX_HTTP_VIBE_DOCS_UNCOLLECTED,
                             st->uncollected);
}


static void
ngx_http_vibe_mirror_learn(void)
{
    ngx_uint_t                   n;
    ngx_queue_t                 *q, *next;
    ngx_http_vibe_batch_t       *b;
    ngx_http_vibe_mirrors_t     *ms;
    ngx_http_vibe_mirror_row_t  *row;

    ms = &ngx_http_vibe_mirrors;

    if (ms->learning || ngx_queue_empty(&ms->learn)) {
        return;
    }

    n = ms->vmcf->batch_docs;

    b = ngx_http_vibe_batch_create(n, &ms->learning);
    if (b == NULL) {
        ngx_http_vibe_mirror_fail(&ms->learn);
        return;
    }

    b->lookup = ngx_http_vibe_lookup_create(b->pool, ms->vmcf,
                                            &ngx_http_vibe_global, n);
    if (b->lookup == NULL) {
        ngx_http_vibe_mirror_fail(&ms->learn);
        ngx_http_vibe_batch_end(b);
        return;
    }

    b->lookup->partly = 1;

    for (q = ngx_queue_head(&ms->learn);
         q != ngx_queue_sentinel(&ms->learn) && b->n < n;
         q = next)
    {
        next = ngx_queue_next(q);
        row = ngx_queue_data(q, ngx_http_vibe_mirror_row_t, queue);

        row->state.copy = ngx_http_vibe_lookup_add(b->lookup,
                                                   &row->state.global);
        if (row->state.copy == NULL) {
            break;
        }

        ngx_http_vibe_batch_take(b, row);
        ngx_http_vibe_batch_release(&row->learned);

        row->learned = b;
        b->refs++;
    }

    ngx_http_vibe_mirror_look(b);
}


static void
ngx_http_vibe_mirror_ask(void)
{
    ngx_http_vibe_mirrors_t  *ms;

    ms = &ngx_http_vibe_mirrors;

    while (ms->asking < NGX_HTTP_VIBE_MIRROR_ASKS
           && !ngx_queue_empty(&ms->ask))
    {
        ngx_http_vibe_mirror_ask_db();
    }
}


/* the first row that waits, and the others of its database */

static void
ngx_http_vibe_mirror_ask_db(void)
{
    ngx_str_t                   *db;
    ngx_uint_t                   n, scanned;
    ngx_queue_t                 *q, *next;
    ngx_http_vibe_batch_t       *b;
    ngx_http_vibe_mirrors_t     *ms;
    ngx_http_vibe_mirror_row_t  *row;

    ms = &ngx_http_vibe_mirrors;
    n = ms->vmcf->batch_docs;

    q = ngx_queue_head(&ms->ask);
    row = ngx_queue_data(q, ngx_http_vibe_mirror_row_t, queue);
    db = &row->state.db;

    b = ngx_http_vibe_batch_create(n, &ms->asking);
    if (b == NULL) {
        ngx_http_vibe_mirror_fail(&ms->ask);
        return;
    }

    b->lookup = ngx_http_vibe_lookup_create(b->pool, ms->vmcf, db, n);
    if (b->lookup == NULL) {
        ngx_http_vibe_mirror_fail(&ms->ask);
        ngx_http_vibe_batch_end(b);
        return;
    }

    b->lookup->partly = 1;
    scanned = 0;

    for ( /* void */ ;
         q != ngx_queue_sentinel(&ms->ask)
         && b->n < n && scanned++ < NGX_HTTP_VIBE_MIRROR_SCAN;
         q = next)
    {
        next = ngx_queue_next(q);
        row = ngx_queue_data(q, ngx_http_vibe_mirror_row_t, queue);

        if (!ngx_http_vibe_same(&row->state.db, db)) {
            continue;
        }

        row->state.source = ngx_http_vibe_lookup_add(b->lookup,
                                                     &row->state.id);
        if (row->state.source == NULL) {
            break;
        }

        ngx_http_vibe_batch_take(b, row);
        ngx_http_vibe_batch_release(&row->asked);

        row->asked = b;
        b->refs++;
    }

    if (db->len == 0) {

        /* copies of nothing: there is nobody to ask */

        b->lookup->missing = 1;
        ngx_http_vibe_mirror_found(b);
        ngx_http_vibe_batch_end(b);
        return;
    }

    ngx_http_vibe_mirror_look(b);
}


/* asks the next question of a look-up */

static void
ngx_http_vibe_mirror_look(ngx_http_vibe_batch_t *b)
{
    ngx_http_vibe_json_out_t  out;

    ngx_http_vibe_json_out_init(&out, b->pool);
    ngx_http_vibe_lookup_ask(b->lookup, &out);

    if (ngx_http_vibe_batch_send(b, &b->lookup->db,
                                 NGX_HTTP_VIBE_LOOKUP_PATH, &out,
                                 ngx_http_vibe_mirror_looked)
        != NGX_OK)
    {
        ngx_http_vibe_batch_failed(b, NULL);
        ngx_http_vibe_batch_end(b);
    }
}


static void
ngx_http_vibe_mirror_looked(ngx_http_vibe_couch_t *couch)
{
    ngx_http_vibe_batch_t *b = couch->data;

    ngx_http_vibe_call_t  call;

    ngx_http_vibe_batch_call(b, &call);

    switch (ngx_http_vibe_lookup_take(b->lookup, &call)) {

    case NGX_AGAIN:
        ngx_http_vibe_mirror_look(b);
        return;

    case NGX_OK:
        ngx_http_vibe_mirror_found(b);
        break;

    default:
        ngx_http_vibe_batch_failed(b, &call);

        if (b->going == &ngx_http_vibe_mirrors.learning) {
            ngx_http_vibe_mirror_unreached(&call);
        }
    }

    ngx_http_vibe_batch_end(b);
}


/*
 * Where "global" does not answer, who waits behind would wait as long again:
 * for repair, so that no client waits for more than a few timeouts.
 */

static void
ngx_http_vibe_mirror_unreached(ngx_http_vibe_call_t *call)
{
    if (call->status == NGX_HTTP_SERVICE_UNAVAILABLE
        || call->status == NGX_HTTP_GATEWAY_TIME_OUT)
    {
        ngx_http_vibe_mirror_fail(&ngx_http_vibe_mirrors.learn);
        ngx_http_vibe_mirror_fail(&ngx_http_vibe_mirrors.write);
    }
}


/* each row of a look-up takes its next step */

static void
ngx_http_vibe_mirror_found(ngx_http_vibe_batch_t *b)
{
    ngx_uint_t                   i, learned;
    ngx_http_vibe_step_e         step;
    ngx_http_vibe_state_t       *st;
    ngx_http_vibe_mirrors_t     *ms;
    ngx_http_vibe_mirror_row_t  *row;

    ms = &ngx_http_vibe_mirrors;
    learned = (b->going == &ms->learning);

    if (learned && b->lookup->missing) {
        ngx_http_vibe_global_gone(ms->vmcf);
    }

    for (i = 0; i < b->n; i++) {
        row = b->rows[i];
        st = &row->state;

        if (!b->lookup->missing && i >= b->lookup->from) {

            /* too much for one look-up: the next one */

            ngx_http_vibe_batch_release(learned ? &row->learned : &row->asked);
            step = learned ? NGX_HTTP_VIBE_LEARN : NGX_HTTP_VIBE_ASK;

        } else if (!learned) {
            step = ngx_http_vibe_state_asked(st, b->pool);

        } else if (b->lookup->missing) {
            step = ngx_http_vibe_state_begin(st, b->pool->log);

        } else {
            step = ngx_http_vibe_state_learned(st, b->pool->log);
        }

        ngx_http_vibe_mirror_step(row, step);
    }
}


static void
ngx_http_vibe_mirror_write(void)
{
    size_t                       size;
    ngx_uint_t                   n;
    ngx_queue_t                 *q, *next;
    ngx_http_vibe_batch_t       *b;
    ngx_http_vibe_mirrors_t     *ms;
    ngx_http_vibe_mirror_row_t  *row;

    ms = &ngx_http_vibe_mirrors;

    if (ms->writing || ngx_queue_empty(&ms->write)) {
        return;
    }

    n = ms->vmcf->batch_docs;

    b = ngx_http_vibe_batch_create(n, &ms->writing);
    if (b == NULL) {
        ngx_http_vibe_mirror_fail(&ms->write);
        return;
    }

    b->bulk = ngx_http_vibe_bulk_create(b->pool, &ngx_http_vibe_global, n);
    if (b->bulk == NULL) {
        ngx_http_vibe_mirror_fail(&ms->write);
        ngx_http_vibe_batch_end(b);
        return;
    }

    b->bulk->copies = ms->vmcf->copies;
    size = 0;

    for (q = ngx_queue_head(&ms->write);
         q != ngx_queue_sentinel(&ms->write)
         && b->n < n && size < ms->vmcf->batch_size;
         q = next)
    {
        next = ngx_queue_next(q);
        row = ngx_queue_data(q, ngx_http_vibe_mirror_row_t, queue);

        if (ngx_http_vibe_batch_holds(b, &row->state.global)) {
            /* of two states of one document each gets its answer */
            continue;
        }

        ngx_http_vibe_batch_take(b, row);

        if (ngx_http_vibe_mirror_put(b, row, &size) != NGX_OK) {
            ngx_http_vibe_batch_failed(b, NULL);
            ngx_http_vibe_batch_end(b);
            return;
        }
    }

    ngx_http_vibe_zone_batch(ms->vmcf->zone, b->n);

    ngx_http_vibe_mirror_bulk(b);
}


static ngx_int_t
ngx_http_vibe_mirror_put(ngx_http_vibe_batch_t *b,
    ngx_http_vibe_mirror_row_t *row, size_t *size)
{
    ngx_uint_t                 i;
    ngx_http_vibe_state_t     *st;
    ngx_http_vibe_bulk_row_t  *out;

    st = &row->state;

    ngx_http_vibe_zone_forget(ngx_http_vibe_mirrors.vmcf->zone, &st->global);

    out = ngx_http_vibe_bulk_add(b->bulk, row);
    if (out == NULL) {
        return NGX_ERROR;
    }

    if (ngx_http_vibe_state_put(st, b->pool, &out->doc) != NGX_OK) {
        return NGX_ERROR;
    }

    *size += out->doc.size;

    for (i = 0; st->copy && i < st->copy->nlosers; i++) {
        if (ngx_http_vibe_mirror_put_loser(b, st, &st->copy->losers[i])
            != NGX_OK)
        {
            return NGX_ERROR;
        }
    }

    return NGX_OK;
}


/* without its own result: what became of it is learned again */

static ngx_int_t
ngx_http_vibe_mirror_put_loser(ngx_http_vibe_batch_t *b,
    ngx_http_vibe_state_t *st, ngx_str_t *rev)
{
    ngx_http_vibe_bulk_row_t  *out;

    out = ngx_http_vibe_bulk_add(b->bulk, NULL);
    if (out == NULL) {
        return NGX_ERROR;
    }

    ngx_http_vibe_json_put_text(&out->doc, "{\"_id\":");
    ngx_http_vibe_json_put_string(&out->doc, &st->global);
    ngx_http_vibe_json_put_text(&out->doc, ",\"_rev\":");
    ngx_http_vibe_json_put_string(&out->doc, rev);
    ngx_http_vibe_json_put_text(&out->doc, ",\"_deleted\":true}");

    return NGX_OK;
}


static void
ngx_http_vibe_mirror_bulk(ngx_http_vibe_batch_t *b)
{
    u_char                    path[NGX_HTTP_VIBE_BULK_PATH_MAX];
    ngx_http_vibe_json_out_t  out;

    ngx_http_vibe_json_out_init(&out, b->pool);
    ngx_http_vibe_bulk_ask(b->bulk, &out, path);

    if (ngx_http_vibe_batch_send(b, &b->bulk->db, (const char *) path, &out,
                                 ngx_http_vibe_mirror_written)
        != NGX_OK)
    {
        ngx_http_vibe_batch_failed(b, NULL);
        ngx_http_vibe_batch_end(b);
    }
}


static void
ngx_http_vibe_mirror_written(ngx_http_vibe_couch_t *couch)
{
    ngx_http_vibe_batch_t *b = couch->data;

    ngx_int_t                 rc;
    ngx_http_vibe_call_t      call;
    ngx_http_vibe_mirrors_t  *ms;

    ms = &ngx_http_vibe_mirrors;

    ngx_http_vibe_batch_call(b, &call);

    rc = ngx_http_vibe_bulk_take(b->bulk, &call);

    if (rc == NGX_AGAIN) {
        ngx_http_vibe_mirror_bulk(b);
        return;
    }

    if (b->bulk->missing) {
        ngx_http_vibe_global_gone(ms->vmcf);

    } else if (rc != NGX_OK) {
        b->failed = 1;

        ngx_log_error(NGX_LOG_ERR, b->pool->log, 0,
                      "mirrors are pending: couchdb answered \"%V\" with %ui",
                      &call.path, call.status);
    }

    ngx_http_vibe_mirror_results(b);

    if (rc != NGX_OK) {
        ngx_http_vibe_mirror_unreached(&call);
    }

    ngx_http_vibe_batch_end(b);
}


static void
ngx_http_vibe_mirror_results(ngx_http_vibe_batch_t *b)
{
    ngx_int_t                    rc;
    ngx_uint_t                   i;
    ngx_http_vibe_step_e         step;
    ngx_http_vibe_bulk_row_t    *out;
    ngx_http_vibe_mirror_row_t  *row;

    out = b->bulk->rows.elts;

    for (i = 0; i < b->bulk->rows.nelts; i++) {

        row = out[i].data;

        if (row == NULL) {
            continue;
        }

        if (b->bulk->missing) {
            step = ngx_http_vibe_state_begin(&row->state, b->pool->log);
            ngx_http_vibe_mirror_step(row, step);
            continue;
        }

        switch (out[i].status) {

        case NGX_HTTP_CREATED:
            rc = NGX_OK;
            break;

        case NGX_HTTP_CONFLICT:
            rc = NGX_DECLINED;
            break;

        default:
            rc = NGX_ERROR;

            if (out[i].status == NGX_HTTP_REQUEST_ENTITY_TOO_LARGE
                && ngx_http_vibe_state_too_large(&row->state))
            {
                /* an older copy, with older readers, must not stay */

                step = ngx_http_vibe_state_begin(&row->state, b->pool->log);
                ngx_http_vibe_mirror_step(row, step);
                continue;
            }

            /* what CouchDB could not do now it may be able to do later */

            if (!b->failed
                && out[i].status < NGX_HTTP_INTERNAL_SERVER_ERROR)
            {
                ngx_log_error(NGX_LOG_ERR, b->pool->log, 0,
                              "a mirror is pending: couchdb answered %ui",
                              out[i].status);

                row->state.refused = 1;
            }
        }

        if (rc == NGX_OK) {

            /* a stub's revision is needed after the batch has gone */

            out[i].rev.data = ngx_pstrdup(row->mirror->pool, &out[i].rev);
            if (out[i].rev.data == NULL) {
                rc = NGX_ERROR;
            }
        }

        step = ngx_http_vibe_state_written(&row->state, rc, &out[i].rev,
                                           b->pool->log);

        ngx_http_vibe_mirror_step(row, step);
    }
}


static ngx_http_vibe_batch_t *
ngx_http_vibe_batch_create(ngx_uint_t n, ngx_uint_t *going)
{
    ngx_pool_t             *pool;
    ngx_http_vibe_batch_t  *b;

    pool = ngx_create_pool(NGX_DEFAULT_POOL_SIZE, ngx_cycle->log);
    if (pool == NULL) {
        return NULL;
    }

    b = ngx_pcalloc(pool, sizeof(ngx_http_vibe_batch_t));
    if (b == NULL) {
        ngx_destroy_pool(pool);
        return NULL;
    }

    b->rows = ngx_palloc(pool, n * sizeof(ngx_http_vibe_mirror_row_t *));
    if (b->rows == NULL) {
        ngx_destroy_pool(pool);
        return NULL;
    }

    b->pool = pool;
    b->refs = 1;
    b->going = going;

    (*going)++;

    return b;
}


static void
ngx_http_vibe_batch_take(ngx_http_vibe_batch_t *b,
    ngx_http_vibe_mirror_row_t *row)
{
    ngx_queue_remove(&row->queue);

    b->rows[b->n++] = row;
    b->couch.waited |= row->mirror->waited;
}


/* 1 if the id, or one with the same hash, was seen before; now it was */

static ngx_uint_t
ngx_http_vibe_batch_holds(ngx_http_vibe_batch_t *b, ngx_str_t *id)
{
    uint32_t    bit;
    ngx_uint_t  hash;

    hash = ngx_crc32_short(id->data, id->len) % (32 * 32);
    bit = (uint32_t) 1 << (hash % 32);

    if (b->seen[hash / 32] & bit) {
        return 1;
    }

    b->seen[hash / 32] |= bit;

    return 0;
}


static ngx_int_t
ngx_http_vibe_batch_send(ngx_http_vibe_batch_t *b, ngx_str_t *db,
    const char *suffix, ngx_http_vibe_json_out_t *out,
    ngx_http_vibe_couch_pt handler)
{
    ngx_http_vibe_couch_t *couch = &b->couch;

    couch->body = ngx_http_vibe_json_out_chain(out);
    if (couch->body == NULL) {
        return NGX_ERROR;
    }

    if (ngx_http_vibe_db_path(b->pool, db, suffix, &couch->path) != NGX_OK) {
        return NGX_ERROR;
    }

    couch->pool = b->pool;
    couch->method = NGX_HTTP_POST;
    couch->handler = handler;
    couch->data = b;

    return ngx_http_vibe_couch_send(couch);
}


/* the answer, as those take it who do not know who has carried it */

static void
ngx_http_vibe_batch_call(ngx_http_vibe_batch_t *b, ngx_http_vibe_call_t *call)
{
    ngx_http_vibe_couch_t *couch = &b->couch;

    ngx_http_vibe_call_of(couch, call);

    ngx_http_vibe_zone_answer(ngx_http_vibe_mirrors.vmcf->zone,
                              couch->status);
}


/* "call" is NULL where it did not come to one */

static void
ngx_http_vibe_batch_failed(ngx_http_vibe_batch_t *b,
    ngx_http_vibe_call_t *call)
{
    ngx_uint_t  i;

    if (call != NULL) {
        ngx_log_error(NGX_LOG_ERR, b->pool->log, 0,
                      "mirrors are pending: couchdb answered \"%V\" with %ui",
                      &call->path, call->status);
    } else {
        ngx_log_error(NGX_LOG_ERR, b->pool->log, 0,
                      "mirrors are pending: no memory, or too many requests");
    }

    for (i = 0; i < b->n; i++) {
        ngx_http_vibe_mirror_step(b->rows[i], NGX_HTTP_VIBE_FAILED);
    }
}


static void
ngx_http_vibe_batch_end(ngx_http_vibe_batch_t *b)
{
    (*b->going)--;

    ngx_http_vibe_batch_release(&b);

    ngx_post_event(&ngx_http_vibe_mirrors.event, &ngx_posted_events);
}


static void
ngx_http_vibe_batch_release(ngx_http_vibe_batch_t **b)
{
    ngx_http_vibe_batch_t  *batch;

    batch = *b;

    if (batch == NULL) {
        return;
    }

    *b = NULL;

    if (--batch->refs == 0) {
        ngx_destroy_pool(batch->pool);
    }
}
