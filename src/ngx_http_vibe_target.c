
#include "ngx_http_vibe_target.h"


static ngx_http_vibe_target_t *ngx_http_vibe_target_find(
    ngx_http_vibe_targets_t *ts, ngx_str_t *name);
static void ngx_http_vibe_target_drop(ngx_http_vibe_targets_t *ts,
    ngx_http_vibe_target_t *t);


void
ngx_http_vibe_targets_init(ngx_http_vibe_targets_t *ts)
{
    ngx_memzero(ts, sizeof(ngx_http_vibe_targets_t));

    ngx_rbtree_init(&ts->rbtree, &ts->sentinel, ngx_str_rbtree_insert_value);

    ngx_queue_init(&ts->idle);
    ngx_queue_init(&ts->due);
    ngx_queue_init(&ts->running);
}


void
ngx_http_vibe_targets_end(ngx_http_vibe_targets_t *ts)
{
    ngx_uint_t               i;
    ngx_queue_t             *queues[3];
    ngx_http_vibe_target_t  *t;

    queues[0] = &ts->idle;
    queues[1] = &ts->due;
    queues[2] = &ts->running;

    for (i = 0; i < 3; i++) {
        while (!ngx_queue_empty(queues[i])) {
            t = ngx_queue_data(ngx_queue_head(queues[i]),
                               ngx_http_vibe_target_t, queue);

            if (t->check != NULL) {
                ngx_http_vibe_check_end(t->check);
            }

            ngx_http_vibe_target_drop(ts, t);
        }
    }

    ts->ndue = 0;
    ts->nrunning = 0;
}


ngx_http_vibe_target_t *
ngx_http_vibe_target_due(ngx_http_vibe_targets_t *ts, ngx_str_t *name,
    ngx_msec_t delay)
{
    ngx_msec_t               at;
    ngx_http_vibe_target_t  *t;

    t = ngx_http_vibe_target_find(ts, name);

    if (t == NULL) {
        return NULL;
    }

    if (t->since == 0) {
        t->since = ngx_time();
    }

    at = ngx_current_msec + delay;

    switch (t->state) {

    case NGX_HTTP_VIBE_TARGET_RUNNING:
        t->again = 1;
        t->at = at;
        break;

    case NGX_HTTP_VIBE_TARGET_DUE:

        if ((ngx_msec_int_t) (at - t->at) < 0 && t->failures == 0) {
            t->at = at;
        }

        break;

    default:
        t->state = NGX_HTTP_VIBE_TARGET_DUE;
        t->at = at;

        ngx_queue_remove(&t->queue);
        ngx_queue_insert_tail(&ts->due, &t->queue);
        ts->ndue++;
    }

    return t;
}


ngx_http_vibe_target_t *
ngx_http_vibe_target_event(ngx_http_vibe_targets_t *ts, ngx_str_t *name,
    ngx_msec_t delay, ngx_msec_t calm)
{
    ngx_http_vibe_target_t  *t;

    t = ngx_http_vibe_target_find(ts, name);

    if (t == NULL) {
        return NULL;
    }

    if (t->calm && ngx_current_msec - t->looked < 2 * calm) {
        delay = calm;
    }

    return ngx_http_vibe_target_due(ts, name, delay);
}


void
ngx_http_vibe_target_listed(ngx_http_vibe_targets_t *ts, ngx_str_t *name,
    ngx_uint_t pass)
{
    uint32_t                 hash;
    ngx_http_vibe_target_t  *t;

    hash = ngx_crc32_short(name->data, name->len);

    t = (ngx_http_vibe_target_t *) ngx_str_rbtree_lookup(&ts->rbtree, name,
                                                         hash);
    if (t != NULL) {
        t->listed = pass;
    }
}


void
ngx_http_vibe_targets_vanished(ngx_http_vibe_targets_t *ts, ngx_uint_t pass)
{
    ngx_queue_t             *q, *next;
    ngx_http_vibe_target_t  *t;

    for (q = ngx_queue_head(&ts->idle);
         q != ngx_queue_sentinel(&ts->idle);
         q = next)
    {
        next = ngx_queue_next(q);
        t = ngx_queue_data(q, ngx_http_vibe_target_t, queue);

        if (t->listed && t->listed + 1 == pass) {
            t->listed = 0;
            t->vanished = 1;
            (void) ngx_http_vibe_target_due(ts, &t->node.str, 0);
        }
    }
}


/* there it is, idle at first; the longest idle one makes room for it */

static ngx_http_vibe_target_t *
ngx_http_vibe_target_find(ngx_http_vibe_targets_t *ts, ngx_str_t *name)
{
    uint32_t                 hash;
    ngx_str_node_t          *node;
    ngx_http_vibe_target_t  *t;

    hash = ngx_crc32_short(name->data, name->len);

    node = ngx_str_rbtree_lookup(&ts->rbtree, name, hash);

    if (node != NULL) {
        return (ngx_http_vibe_target_t *) node;
    }

    if (ts->n >= NGX_HTTP_VIBE_TARGETS) {

        if (ngx_queue_empty(&ts->idle)) {
            return NULL;
        }

        t = ngx_queue_data(ngx_queue_head(&ts->idle), ngx_http_vibe_target_t,
                           queue);

        ngx_http_vibe_target_drop(ts, t);
    }

    t = ngx_calloc(sizeof(ngx_http_vibe_target_t) + name->len,
                   ngx_cycle->log);
    if (t == NULL) {
        return NULL;
    }

    t->node.node.key = hash;
    t->node.str.len = name->len;
    t->node.str.data = (u_char *) t + sizeof(ngx_http_vibe_target_t);
    ngx_memcpy(t->node.str.data, name->data, name->len);

    ngx_rbtree_insert(&ts->rbtree, &t->node.node);
    ngx_queue_insert_tail(&ts->idle, &t->queue);
    ts->n++;

    return t;
}


static void
ngx_http_vibe_target_drop(ngx_http_vibe_targets_t *ts,
    ngx_http_vibe_target_t *t)
{
    ngx_rbtree_delete(&ts->rbtree, &t->node.node);
    ngx_queue_remove(&t->queue);
    ts->n--;

    ngx_http_vibe_target_keep(&t->known.did, NULL);
    ngx_http_vibe_target_keep(&t->known.seq, NULL);

    ngx_free(t);
}


ngx_http_vibe_target_t *
ngx_http_vibe_target_next(ngx_http_vibe_targets_t *ts)
{
    ngx_queue_t             *q;
    ngx_http_vibe_target_t  *t;

    for (q = ngx_queue_head(&ts->due);
         q != ngx_queue_sentinel(&ts->due);
         q = ngx_queue_next(q))
    {
        t = ngx_queue_data(q, ngx_http_vibe_target_t, queue);

        if ((ngx_msec_int_t) (t->at - ngx_current_msec) > 0) {
            continue;
        }

        ngx_queue_remove(q);
        ngx_queue_insert_tail(&ts->running, q);

        t->state = NGX_HTTP_VIBE_TARGET_RUNNING;
        ts->ndue--;
        ts->nrunning++;

        return t;
    }

    return NULL;
}


void
ngx_http_vibe_target_done(ngx_http_vibe_targets_t *ts,
    ngx_http_vibe_target_t *t)
{
    ngx_queue_remove(&t->queue);
    ts->nrunning--;

    t->failures = 0;

    if (t->again) {
        t->again = 0;
        t->since = ngx_time();
        t->state = NGX_HTTP_VIBE_TARGET_DUE;
        ts->ndue++;

        ngx_queue_insert_tail(&ts->due, &t->queue);
        return;
    }

    t->since = 0;
    t->state = NGX_HTTP_VIBE_TARGET_IDLE;

    ngx_queue_insert_tail(&ts->idle, &t->queue);
}


void
ngx_http_vibe_target_retry(ngx_http_vibe_targets_t *ts,
    ngx_http_vibe_target_t *t, ngx_msec_t delay)
{
    ngx_queue_remove(&t->queue);
    ts->nrunning--;

    t->again = 0;
    t->at = ngx_current_msec + delay;
    t->state = NGX_HTTP_VIBE_TARGET_DUE;
    ts->ndue++;

    ngx_queue_insert_tail(&ts->due, &t->queue);
}


void
ngx_http_vibe_target_keep(ngx_str_t *to, ngx_str_t *from)
{
    if (from != NULL && ngx_http_vibe_same(to, from)) {
        return;
    }

    if (to->data != NULL) {
        ngx_free(to->data);
    }

    ngx_str_null(to);

    if (from == NULL || from->len == 0) {
        return;
    }

    to->data = ngx_alloc(from->len, ngx_cycle->log);
    if (to->data == NULL) {
        return;
    }

    to->len = from->len;
    ngx_memcpy(to->data, from->data, from->len);
}


time_t
ngx_http_vibe_targets_since(ngx_http_vibe_targets_t *ts)
{
    time_t                   since;
    ngx_uint_t               i;
    ngx_queue_t             *q, *queues[2];
    ngx_http_vibe_target_t  *t;

    queues[0] = &ts->due;
    queues[1] = &ts->running;
    since = 0;

    for (i = 0; i < 2; i++) {
        for (q = ngx_queue_head(queues[i]);
             q != ngx_queue_sentinel(queues[i]);
             q = ngx_queue_next(q))
        {
            t = ngx_queue_data(q, ngx_http_vibe_target_t, queue);

            if (t->since && (since == 0 || t->since < since)) {
                since = t->since;
            }
        }
    }

    return since;
}
