
#include "ngx_http_vibe_pass.h"
#include "ngx_http_vibe_global.h"


static void ngx_http_vibe_pass_list(ngx_http_vibe_pass_t *p);
static void ngx_http_vibe_pass_listed(ngx_http_vibe_ask_t *ask,
    ngx_http_vibe_call_t *call);
static void ngx_http_vibe_pass_next_prefix(ngx_http_vibe_pass_t *p);
static void ngx_http_vibe_pass_told(ngx_http_vibe_ask_t *ask,
    ngx_http_vibe_call_t *call);
static void ngx_http_vibe_pass_told_one(ngx_http_vibe_pass_t *p,
    ngx_http_vibe_json_t *row);
static void ngx_http_vibe_pass_mark(ngx_http_vibe_pass_t *p);
static void ngx_http_vibe_pass_marked(ngx_http_vibe_ask_t *ask,
    ngx_http_vibe_call_t *call);
static void ngx_http_vibe_pass_global(ngx_http_vibe_pass_t *p);
static void ngx_http_vibe_pass_page(ngx_http_vibe_ask_t *ask,
    ngx_http_vibe_call_t *call);
static ngx_int_t ngx_http_vibe_pass_walk(ngx_http_vibe_pass_t *p,
    ngx_http_vibe_json_t *rows, ngx_str_t *seq);
static void ngx_http_vibe_pass_walked(ngx_http_vibe_walk_t *w, ngx_int_t rc);
static void ngx_http_vibe_pass_next_page(ngx_http_vibe_pass_t *p);
static void ngx_http_vibe_pass_done(ngx_http_vibe_pass_t *p);
static void ngx_http_vibe_pass_failed(ngx_http_vibe_pass_t *p);
static void ngx_http_vibe_pass_ask(ngx_http_vibe_pass_t *p, ngx_str_t *from,
    ngx_str_t *end);
static ngx_http_vibe_pass_seq_t *ngx_http_vibe_pass_seq(
    ngx_http_vibe_pass_t *p, uint64_t name);
static void ngx_http_vibe_pass_gauges(ngx_http_vibe_pass_t *p);
static uint64_t ngx_http_vibe_pass_hash(ngx_str_t *str);


void
ngx_http_vibe_pass_init(ngx_http_vibe_pass_t *p,
    ngx_http_vibe_main_conf_t *vmcf, ngx_http_vibe_targets_t *targets)
{
    ngx_memzero(p, sizeof(ngx_http_vibe_pass_t));

    p->vmcf = vmcf;
    p->targets = targets;
    p->complete = ngx_http_vibe_zone_get(vmcf->zone, NGX_HTTP_VIBE_COMPLETE);

    if (targets == NULL) {
        return;
    }

    p->seqs = ngx_calloc(NGX_HTTP_VIBE_PASS_SEQS
                         * sizeof(ngx_http_vibe_pass_seq_t), ngx_cycle->log);
    if (p->seqs == NULL) {
        ngx_log_error(NGX_LOG_WARN, ngx_cycle->log, 0,
                      "repair remembers no sequences: each pass checks all");
    }
}


void
ngx_http_vibe_pass_end(ngx_http_vibe_pass_t *p)
{
    ngx_http_vibe_ask_end(&p->ask);

    if (p->walk != NULL) {
        ngx_http_vibe_walk_end(p->walk);
        p->walk = NULL;
    }

    ngx_http_vibe_target_keep(&p->last, NULL);
    ngx_http_vibe_target_keep(&p->from, NULL);

    if (p->seqs != NULL) {
        ngx_free(p->seqs);
        p->seqs = NULL;
    }

    p->stage = NGX_HTTP_VIBE_PASS_NONE;
}


void
ngx_http_vibe_pass_begin(ngx_http_vibe_pass_t *p,
    ngx_http_vibe_pass_e stage, ngx_uint_t rate)
{
    if (p->ask.pool == NULL
        && ngx_http_vibe_ask_init(&p->ask, p->vmcf->zone, p) != NGX_OK)
    {
        return;
    }

    ngx_http_vibe_target_keep(&p->last, NULL);

    p->stage = stage;
    p->number++;
    p->prefix = 0;
    p->next = ngx_current_msec;
    p->rate = rate;
    p->listed = 0;
    p->unowned = 0;
    p->failures = 0;
    p->busy = 0;
    p->skipped = 0;
    p->page = NGX_HTTP_VIBE_PASS_WALK;

    ngx_http_vibe_pass_step(p);
}


void
ngx_http_vibe_pass_step(ngx_http_vibe_pass_t *p)
{
    if (p->targets != NULL) {
        ngx_http_vibe_pass_gauges(p);
    }

    if (p->busy || (ngx_msec_int_t) (p->next - ngx_current_msec) > 0) {
        return;
    }

    switch (p->stage) {

    case NGX_HTTP_VIBE_PASS_LIST:

        if (p->left < NGX_HTTP_VIBE_PASS_PAGE) {
            ngx_http_vibe_pass_list(p);
        }

        break;

    case NGX_HTTP_VIBE_PASS_WAIT:

        if (p->left) {
            break;
        }

        ngx_http_vibe_target_keep(&p->last, NULL);

        if (p->skipped) {

            /* once more: those that were checked are remembered */

            p->skipped = 0;
            p->stage = NGX_HTTP_VIBE_PASS_LIST;
            p->prefix = 0;
            p->listed = 0;
            p->unowned = 0;
            p->next = ngx_current_msec + NGX_HTTP_VIBE_PASS_LAST;
            break;
        }

        ngx_http_vibe_targets_vanished(p->targets, p->number);

        ngx_http_vibe_zone_set(p->vmcf->zone, NGX_HTTP_VIBE_DATABASES,
                               p->listed);
        ngx_http_vibe_zone_set(p->vmcf->zone, NGX_HTTP_VIBE_DATABASES_UNOWNED,
                               p->unowned);

        p->stage = NGX_HTTP_VIBE_PASS_MARK;

        /* fall through */

    case NGX_HTTP_VIBE_PASS_MARK:

        if (!p->complete) {
            ngx_http_vibe_pass_mark(p);
            break;
        }

        p->stage = NGX_HTTP_VIBE_PASS_NONE;

        break;

    case NGX_HTTP_VIBE_PASS_GLOBAL:
        ngx_http_vibe_pass_global(p);

        break;

    default:
        break;
    }
}


/*
 * Names end with none of the characters that follow the prefix's last one in
 * ASCII, so that one with the next character ends the range.
 */

static void
ngx_http_vibe_pass_list(ngx_http_vibe_pass_t *p)
{
    ngx_str_t  *prefix, end;

    if (p->prefix == p->vmcf->prefixes.nelts) {
        p->stage = NGX_HTTP_VIBE_PASS_WAIT;
        ngx_http_vibe_pass_step(p);
        return;
    }

    prefix = p->vmcf->prefixes.elts;
    prefix += p->prefix;

    end.len = prefix->len;
    end.data = ngx_pstrdup(p->ask.pool, prefix);
    if (end.data == NULL) {
        ngx_http_vibe_pass_failed(p);
        return;
    }

    end.data[end.len - 1]++;

    ngx_http_vibe_pass_ask(p, p->last.len ? &p->last : prefix, &end);
}


static void
ngx_http_vibe_pass_listed(ngx_http_vibe_ask_t *ask, ngx_http_vibe_call_t *call)
{
    ngx_http_vibe_pass_t *p = ask->data;

    ngx_uint_t                i, n;
    ngx_http_vibe_json_t     *root, *first, *name;
    ngx_http_vibe_json_out_t  out;

    p->busy = 0;

    if (call->status != NGX_HTTP_OK
        || ngx_http_vibe_scan_answer(ask->pool, call, 1, &root) != NGX_OK
        || root->type != NGX_HTTP_VIBE_JSON_ARRAY)
    {
        ngx_http_vibe_pass_failed(p);
        return;
    }

    p->failures = 0;

    first = root->child;
    n = root->n;

    if (first != NULL && ngx_http_vibe_same(&first->string, &p->last)) {
        first = first->next;
        n--;
    }

    if (first == NULL) {
        ngx_http_vibe_pass_next_prefix(p);
        return;
    }

    ngx_http_vibe_json_out_init(&out, ask->pool);
    ngx_http_vibe_json_put_text(&out, "{\"keys\":[");

    /* one more was asked for than can be asked about */

    n = ngx_min(n, NGX_HTTP_VIBE_PASS_PAGE);

    for (name = first, i = 0; i < n; name = name->next, i++) {

        if (i > 0) {
            ngx_http_vibe_json_put_text(&out, ",");
        }

        ngx_http_vibe_json_put_string(&out, &name->string);

        if (i == n - 1) {
            ngx_http_vibe_target_keep(&p->last, &name->string);
        }
    }

    ngx_http_vibe_json_put_text(&out, "]}");

    p->listed += n;

    if (p->rate) {
        p->next = ngx_current_msec + 1000 * n / p->rate;
    }

    p->busy = 1;

    ngx_http_vibe_ask(ask, NGX_HTTP_POST, NULL, "/_dbs_info", &out,
                      ngx_http_vibe_pass_told);
}


static void
ngx_http_vibe_pass_next_prefix(ngx_http_vibe_pass_t *p)
{
    ngx_http_vibe_target_keep(&p->last, NULL);

    p->prefix++;

    ngx_http_vibe_pass_step(p);
}


static void
ngx_http_vibe_pass_told(ngx_http_vibe_ask_t *ask, ngx_http_vibe_call_t *call)
{
    ngx_http_vibe_pass_t *p = ask->data;

    ngx_http_vibe_json_t  *root, *row;

    p->busy = 0;

    if (call->status != NGX_HTTP_OK
        || ngx_http_vibe_scan_answer(ask->pool, call, 3, &root) != NGX_OK
        || root->type != NGX_HTTP_VIBE_JSON_ARRAY)
    {
        /* the page is listed again, from the last one on: so all of it */

        ngx_http_vibe_target_keep(&p->last, NULL);
        p->listed = 0;
        p->prefix = 0;

        ngx_http_vibe_pass_failed(p);
        return;
    }

    for (row = root->child; row; row = row->next) {
        ngx_http_vibe_pass_told_one(p, row);
    }

    if (root->n < NGX_HTTP_VIBE_PASS_PAGE) {
        ngx_http_vibe_pass_next_prefix(p);
        return;
    }

    ngx_http_vibe_pass_step(p);
}


static void
ngx_http_vibe_pass_told_one(ngx_http_vibe_pass_t *p, ngx_http_vibe_json_t *row)
{
    uint64_t                   hash;
    ngx_http_vibe_json_t      *name, *seq;
    ngx_http_vibe_target_t    *t;
    ngx_http_vibe_pass_seq_t  *s;

    name = ngx_http_vibe_json_get(row, "key");
    seq = ngx_http_vibe_json_get(ngx_http_vibe_json_get(row, "info"),
                                 "update_seq");

    if (name == NULL
        || name->type != NGX_HTTP_VIBE_JSON_STRING
        || seq == NULL)
    {
        /* deleted since it was listed */
        return;
    }

    ngx_http_vibe_target_listed(p->targets, &name->string, p->number);

    hash = ngx_http_vibe_pass_hash(&seq->raw);
    s = ngx_http_vibe_pass_seq(p, ngx_http_vibe_pass_hash(&name->string));

    if (s != NULL && s->seq == hash) {
        return;
    }

    t = ngx_http_vibe_target_due(p->targets, &name->string, 0);
    if (t == NULL) {
        p->skipped = 1;
        return;
    }

    t->info = hash;
    t->listed = p->number;

    if (!t->pass) {
        t->pass = 1;
        p->left++;
    }
}


void
ngx_http_vibe_pass_checked(ngx_http_vibe_pass_t *p, ngx_http_vibe_target_t *t,
    ngx_uint_t unowned)
{
    uint64_t                   name;
    ngx_http_vibe_pass_seq_t  *s;

    if (unowned) {

        /* its owner may be told later: each pass looks */

        p->unowned += t->pass;

    } else if (t->info && p->seqs != NULL) {

        name = ngx_http_vibe_pass_hash(&t->node.str);

        s = &p->seqs[name % NGX_HTTP_VIBE_PASS_SEQS];
        s->name = name;
        s->seq = t->info;
    }

    ngx_http_vibe_pass_given_up(p, t);
}


void
ngx_http_vibe_pass_given_up(ngx_http_vibe_pass_t *p,
    ngx_http_vibe_target_t *t)
{
    if (t->pass) {
        t->pass = 0;
        p->left--;

        if (ngx_http_vibe_pass_going(p)) {
            ngx_http_vibe_pass_step(p);
        }
    }
}


/*
 * All databases were gone through for the "global" of this id: if it is
 * another one by now, this says nothing of it.
 */

static void
ngx_http_vibe_pass_mark(ngx_http_vibe_pass_t *p)
{
    ngx_str_t                 id;
    ngx_http_vibe_json_out_t  out;

    id.data = p->vmcf->global_id;
    id.len = NGX_HTTP_VIBE_GLOBAL_ID;

    ngx_http_vibe_json_out_init(&out, p->ask.pool);
    ngx_http_vibe_global_put_mark(&out, &id);

    p->busy = 1;

    ngx_http_vibe_ask(&p->ask, NGX_HTTP_PUT, &ngx_http_vibe_global,
                      NGX_HTTP_VIBE_MARK_COMPLETE, &out,
                      ngx_http_vibe_pass_marked);
}


static void
ngx_http_vibe_pass_marked(ngx_http_vibe_ask_t *ask, ngx_http_vibe_call_t *call)
{
    ngx_http_vibe_pass_t *p = ask->data;

    p->busy = 0;

    if (call->status == NGX_HTTP_NOT_FOUND) {
        ngx_http_vibe_global_gone(p->vmcf);
    }

    if (call->status != NGX_HTTP_CREATED && call->status != NGX_HTTP_ACCEPTED)
    {
        ngx_http_vibe_pass_failed(p);
        return;
    }

    p->complete = 1;
    p->failures = 0;

    ngx_log_error(NGX_LOG_NOTICE, ngx_cycle->log, 0,
                  "global is complete: %ui databases were gone through",
                  p->listed);

    /* whether that is so the marks together say */

    p->vmcf->copies = 0;

    ngx_http_vibe_pass_step(p);
}


static void
ngx_http_vibe_pass_global(ngx_http_vibe_pass_t *p)
{
    u_char     *p1, path[sizeof("/_changes?limit=&since=%V") + NGX_INT_T_LEN];
    ngx_str_t   first;

    /* tombstones too: one that should not be is in no list of documents */

    ngx_str_set(&first, "0");

    p1 = ngx_sprintf(path, "/_changes?limit=%d&since=",
                     (int) p->page);
    ngx_memcpy(p1, "%V", sizeof("%V"));

    p->busy = 1;

    ngx_http_vibe_ask_arg(&p->ask, &ngx_http_vibe_global, (const char *) path,
                          p->last.len ? &p->last : &first,
                          ngx_http_vibe_pass_page);
}


static void
ngx_http_vibe_pass_page(ngx_http_vibe_ask_t *ask, ngx_http_vibe_call_t *call)
{
    ngx_http_vibe_pass_t *p = ask->data;

    ngx_http_vibe_json_t  *root, *rows, *seq;

    p->busy = 0;

    if (call->status != NGX_HTTP_OK
        || ngx_http_vibe_scan_answer(ask->pool, call, 3, &root) != NGX_OK)
    {
        ngx_http_vibe_pass_failed(p);
        return;
    }

    rows = ngx_http_vibe_json_get(root, "results");
    seq = ngx_http_vibe_json_get(root, "last_seq");

    if (rows == NULL
        || rows->type != NGX_HTTP_VIBE_JSON_ARRAY
        || seq == NULL
        || seq->type != NGX_HTTP_VIBE_JSON_STRING)
    {
        ngx_http_vibe_pass_failed(p);
        return;
    }

    p->ends = (rows->n < p->page);

    switch (ngx_http_vibe_pass_walk(p, rows, &seq->string)) {

    case NGX_OK:
        break;

    case NGX_DONE:
        ngx_http_vibe_pass_next_page(p);
        break;

    default:
        ngx_http_vibe_pass_failed(p);
    }
}


/* NGX_DONE: there are none left */

static ngx_int_t
ngx_http_vibe_pass_walk(ngx_http_vibe_pass_t *p, ngx_http_vibe_json_t *rows,
    ngx_str_t *seq)
{
    ngx_http_vibe_json_t  *row, *id;

    row = rows->child;

    ngx_http_vibe_target_keep(&p->from, &p->last);
    ngx_http_vibe_target_keep(&p->last, seq);

    if (row == NULL) {
        return NGX_DONE;
    }

    p->walk = ngx_http_vibe_walk_create(p->vmcf, rows->n,
                                        ngx_http_vibe_pass_walked, p);
    if (p->walk == NULL) {
        return NGX_ERROR;
    }

    for ( /* void */ ; row; row = row->next) {

        id = ngx_http_vibe_json_get(row, "id");

        if (id == NULL
            || id->type != NGX_HTTP_VIBE_JSON_STRING
            || ngx_http_vibe_walk_add(p->walk, &id->string) != NGX_OK)
        {
            ngx_http_vibe_walk_end(p->walk);
            p->walk = NULL;
            ngx_http_vibe_target_keep(&p->last, &p->from);
            return NGX_ERROR;
        }
    }

    p->busy = 1;

    ngx_http_vibe_walk(p->walk);

    return NGX_OK;
}


static void
ngx_http_vibe_pass_walked(ngx_http_vibe_walk_t *w, ngx_int_t rc)
{
    ngx_http_vibe_pass_t *p = w->data;

    p->busy = 0;
    p->walk = NULL;

    ngx_http_vibe_walk_end(w);

    if (rc != NGX_OK
        && (p->page > 1 || p->failures < NGX_HTTP_VIBE_PASS_TRIES))
    {

        /* once more, fewer: they may be too large together */

        p->page = ngx_max(p->page / 2, 1);

        ngx_http_vibe_target_keep(&p->last, &p->from);
        ngx_http_vibe_pass_failed(p);
        return;
    }

    p->failures = 0;
    p->page = NGX_HTTP_VIBE_PASS_WALK;

    ngx_http_vibe_pass_next_page(p);
}


static void
ngx_http_vibe_pass_next_page(ngx_http_vibe_pass_t *p)
{
    if (p->ends) {
        ngx_http_vibe_pass_done(p);
        return;
    }

    p->next = ngx_current_msec + NGX_HTTP_VIBE_PASS_PACE;
}


static void
ngx_http_vibe_pass_done(ngx_http_vibe_pass_t *p)
{
    p->stage = NGX_HTTP_VIBE_PASS_NONE;

    ngx_http_vibe_zone_count(p->vmcf->zone, NGX_HTTP_VIBE_REPAIR_SWEEPS, 1);
}


static void
ngx_http_vibe_pass_failed(ngx_http_vibe_pass_t *p)
{
    ngx_http_vibe_zone_count(p->vmcf->zone, NGX_HTTP_VIBE_REPAIR_FAILED, 1);

    p->next = ngx_current_msec
              + ngx_http_vibe_couch_backoff(++p->failures,
                                            NGX_HTTP_VIBE_PASS_FIRST,
                                            NGX_HTTP_VIBE_PASS_LAST);
}


/* a page of names from one on, or after the last one of the page before */

static void
ngx_http_vibe_pass_ask(ngx_http_vibe_pass_t *p, ngx_str_t *from,
    ngx_str_t *end)
{
    u_char      *path;
    ngx_str_t    start, stop;
    ngx_pool_t  *pool;

    pool = p->ask.pool;

    if (ngx_http_vibe_ask_key(pool, from, &start) != NGX_OK
        || ngx_http_vibe_ask_key(pool, end, &stop) != NGX_OK)
    {
        ngx_http_vibe_pass_failed(p);
        return;
    }

    path = ngx_pnalloc(pool, start.len + stop.len + 64);
    if (path == NULL) {
        ngx_http_vibe_pass_failed(p);
        return;
    }

    /* the first one may be the last of before, or that is gone by now */

    *ngx_sprintf(path, "/_all_dbs?limit=%d&startkey=%V&endkey=%V",
                 NGX_HTTP_VIBE_PASS_PAGE + (p->last.len ? 1 : 0), &start,
                 &stop)
        = '\0';

    p->busy = 1;

    ngx_http_vibe_ask(&p->ask, NGX_HTTP_GET, NULL, (const char *) path, NULL,
                      ngx_http_vibe_pass_listed);
}


static ngx_http_vibe_pass_seq_t *
ngx_http_vibe_pass_seq(ngx_http_vibe_pass_t *p, uint64_t name)
{
    ngx_http_vibe_pass_seq_t  *s;

    if (p->seqs == NULL) {
        return NULL;
    }

    s = &p->seqs[name % NGX_HTTP_VIBE_PASS_SEQS];

    return (s->name == name) ? s : NULL;
}


static void
ngx_http_vibe_pass_gauges(ngx_http_vibe_pass_t *p)
{
    ngx_http_vibe_zone_t  *zone;

    zone = p->vmcf->zone;

    ngx_http_vibe_zone_set(zone, NGX_HTTP_VIBE_DATABASES_DONE,
                           p->listed - ngx_min(p->left, p->listed));

    if (ngx_http_vibe_zone_get(zone, NGX_HTTP_VIBE_DATABASES) < p->listed) {
        ngx_http_vibe_zone_set(zone, NGX_HTTP_VIBE_DATABASES, p->listed);
    }
}


/* FNV-1a */

static uint64_t
ngx_http_vibe_pass_hash(ngx_str_t *str)
{
    size_t    i;
    uint64_t  hash;

    hash = 0xcbf29ce484222325ULL;

    for (i = 0; i < str->len; i++) {
        hash = (hash ^ str->data[i]) * 0x100000001b3ULL;
    }

    /* 0 is what nothing is remembered as */

    return hash ? hash : 1;
}
