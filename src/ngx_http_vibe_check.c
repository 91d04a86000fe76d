
#include "ngx_http_vibe_check.h"
#include "ngx_http_vibe_global.h"


#define NGX_HTTP_VIBE_CHECKPOINT  "/_local/vibe_repair"


static void ngx_http_vibe_check_owner(ngx_http_vibe_ask_t *ask,
    ngx_http_vibe_call_t *call);
static void ngx_http_vibe_check_checkpoint(ngx_http_vibe_check_t *c);
static void ngx_http_vibe_check_began(ngx_http_vibe_ask_t *ask,
    ngx_http_vibe_call_t *call);
static void ngx_http_vibe_check_info(ngx_http_vibe_check_t *c);
static void ngx_http_vibe_check_born(ngx_http_vibe_ask_t *ask,
    ngx_http_vibe_call_t *call);
static ngx_int_t ngx_http_vibe_check_since(ngx_http_vibe_check_t *c,
    ngx_http_vibe_call_t *call);
static void ngx_http_vibe_check_changes(ngx_http_vibe_check_t *c);
static void ngx_http_vibe_check_changed(ngx_http_vibe_ask_t *ask,
    ngx_http_vibe_call_t *call);
static ngx_int_t ngx_http_vibe_check_rows(ngx_http_vibe_check_t *c,
    ngx_http_vibe_json_t *results);
static ngx_int_t ngx_http_vibe_check_row(ngx_http_vibe_check_t *c,
    ngx_http_vibe_json_t *change);
static void ngx_http_vibe_check_gone(ngx_http_vibe_check_t *c);
static void ngx_http_vibe_check_range(ngx_http_vibe_check_t *c);
static void ngx_http_vibe_check_ranged(ngx_http_vibe_ask_t *ask,
    ngx_http_vibe_call_t *call);
static ngx_int_t ngx_http_vibe_check_copies(ngx_http_vibe_check_t *c,
    ngx_http_vibe_json_t *rows);
static ngx_int_t ngx_http_vibe_check_copy(ngx_http_vibe_check_t *c,
    ngx_http_vibe_json_t *row);
static void ngx_http_vibe_check_mirror(ngx_http_vibe_check_t *c);
static void ngx_http_vibe_check_mirrored(ngx_http_vibe_mirror_t *m);
static void ngx_http_vibe_check_next(ngx_http_vibe_check_t *c);
static void ngx_http_vibe_check_save(ngx_http_vibe_check_t *c);
static void ngx_http_vibe_check_saved(ngx_http_vibe_ask_t *ask,
    ngx_http_vibe_call_t *call);
static ngx_int_t ngx_http_vibe_check_keep(ngx_http_vibe_check_t *c,
    ngx_str_t *from, ngx_str_t *to);
static ngx_int_t ngx_http_vibe_check_keep_last(ngx_http_vibe_check_t *c,
    ngx_str_t *id);
static void ngx_http_vibe_check_failed(ngx_http_vibe_check_t *c);


ngx_http_vibe_check_t *
ngx_http_vibe_check(ngx_http_vibe_main_conf_t *vmcf, ngx_str_t *db,
    ngx_http_vibe_checked_t *known, ngx_uint_t save, ngx_uint_t fresh,
    ngx_http_vibe_check_pt handler, void *data)
{
    ngx_int_t               rc;
    ngx_pool_t             *pool;
    ngx_http_vibe_check_t  *c;

    pool = ngx_create_pool(NGX_DEFAULT_POOL_SIZE, ngx_cycle->log);
    if (pool == NULL) {
        return NULL;
    }

    c = ngx_pcalloc(pool, sizeof(ngx_http_vibe_check_t));
    if (c == NULL) {
        goto failed;
    }

    c->vmcf = vmcf;
    c->pool = pool;
    c->handler = handler;
    c->data = data;
    c->save = save;
    c->fresh = fresh;
    c->known.born = known->born;
    c->page = NGX_HTTP_VIBE_CHECK_PAGE;

    ngx_memcpy(c->global, vmcf->global_id, NGX_HTTP_VIBE_GLOBAL_ID);

    if (ngx_http_vibe_check_keep(c, db, &c->db) != NGX_OK
        || ngx_http_vibe_check_keep(c, &known->did, &c->known.did) != NGX_OK
        || ngx_http_vibe_check_keep(c, &known->seq, &c->known.seq) != NGX_OK
        || ngx_http_vibe_ask_init(&c->ask, vmcf->zone, c) != NGX_OK)
    {
        goto failed;
    }

    if (c->known.did.len == 0) {
        rc = ngx_http_vibe_check_named(vmcf, pool, &c->db, &c->known.did);

        if (rc == NGX_DECLINED) {
            ngx_http_vibe_ask(&c->ask, NGX_HTTP_GET, &c->db,
                              NGX_HTTP_VIBE_OWNER_DOC, NULL,
                              ngx_http_vibe_check_owner);
            return c;
        }

        if (rc != NGX_OK) {
            ngx_http_vibe_ask_end(&c->ask);
            goto failed;
        }
    }

    ngx_http_vibe_check_checkpoint(c);

    return c;

failed:

    ngx_destroy_pool(pool);

    return NULL;
}


void
ngx_http_vibe_check_end(ngx_http_vibe_check_t *c)
{
    if (c->mirror != NULL) {
        c->mirror->data = NULL;
    }

    ngx_http_vibe_ask_end(&c->ask);

    ngx_destroy_pool(c->pool);
}


ngx_int_t
ngx_http_vibe_check_named(ngx_http_vibe_main_conf_t *vmcf, ngx_pool_t *pool,
    ngx_str_t *db, ngx_str_t *did)
{
    ngx_int_t    rc;
    ngx_str_t   *prefix;
    ngx_uint_t   i, user;

    prefix = vmcf->prefixes.elts;
    user = 0;

    for (i = 0; i < vmcf->prefixes.nelts; i++) {

        if (db->len < prefix[i].len
            || ngx_memcmp(db->data, prefix[i].data, prefix[i].len) != 0)
        {
            continue;
        }

        user = 1;

        rc = ngx_http_vibe_did_of_db(pool, &prefix[i], db, did);

        if (rc != NGX_DECLINED) {
            return rc;
        }
    }

    return user ? NGX_DECLINED : NGX_ABORT;
}


ngx_int_t
ngx_http_vibe_check_record(ngx_http_vibe_ask_t *ask,
    ngx_http_vibe_call_t *call, ngx_pool_t *pool, ngx_str_t *did)
{
    ngx_http_vibe_json_t  *m;

    if (ngx_http_vibe_no_database(call)) {
        return NGX_ABORT;
    }

    if (call->status == NGX_HTTP_NOT_FOUND) {
        return NGX_DECLINED;
    }

    m = (call->status == NGX_HTTP_OK)
        ? ngx_http_vibe_ask_member(ask, call, "did") : NULL;

    if (m == NULL
        || m->type != NGX_HTTP_VIBE_JSON_STRING
        || !ngx_http_vibe_is_did(&m->string))
    {
        return NGX_ERROR;
    }

    did->len = m->string.len;
    did->data = ngx_pstrdup(pool, &m->string);

    return did->data ? NGX_OK : NGX_ERROR;
}


static void
ngx_http_vibe_check_owner(ngx_http_vibe_ask_t *ask,
    ngx_http_vibe_call_t *call)
{
    ngx_http_vibe_check_t *c = ask->data;

    switch (ngx_http_vibe_check_record(ask, call, c->pool, &c->known.did)) {

    case NGX_OK:
        ngx_http_vibe_check_checkpoint(c);
        return;

    case NGX_DECLINED:
        c->unowned = 1;
        c->handler(c, NGX_OK);
        return;

    case NGX_ABORT:
        ngx_http_vibe_check_gone(c);
        return;

    default:
        ngx_http_vibe_check_failed(c);
    }
}


static void
ngx_http_vibe_check_checkpoint(ngx_http_vibe_check_t *c)
{
    if (c->known.seq.len && !c->fresh) {
        ngx_http_vibe_check_changes(c);
        return;
    }

    if (c->fresh) {
        ngx_str_set(&c->known.seq, "0");
        ngx_http_vibe_check_info(c);
        return;
    }

    ngx_http_vibe_ask(&c->ask, NGX_HTTP_GET, &c->db,
                      NGX_HTTP_VIBE_CHECKPOINT, NULL,
                      ngx_http_vibe_check_began);
}


static void
ngx_http_vibe_check_began(ngx_http_vibe_ask_t *ask, ngx_http_vibe_call_t *call)
{
    ngx_http_vibe_check_t *c = ask->data;

    ngx_int_t  rc;

    if (ngx_http_vibe_no_database(call)) {
        ngx_http_vibe_check_gone(c);
        return;
    }

    rc = NGX_DECLINED;

    if (call->status == NGX_HTTP_OK) {
        rc = ngx_http_vibe_check_since(c, call);

    } else if (call->status != NGX_HTTP_NOT_FOUND) {
        rc = NGX_ERROR;
    }

    switch (rc) {

    case NGX_OK:
        break;

    case NGX_DECLINED:
        c->fresh = 1;
        ngx_str_set(&c->known.seq, "0");
        break;

    case NGX_ABORT:
        ngx_log_error(NGX_LOG_ERR, ngx_cycle->log, 0,
                      "the checkpoint of \"%V\" has the format of a newer "
                      "version: the database is left alone", &c->db);
        c->handler(c, NGX_OK);
        return;

    default:
        ngx_http_vibe_check_failed(c);
        return;
    }

    ngx_http_vibe_check_info(c);
}


/* a checkpoint that was brought along from another database says nothing */

static void
ngx_http_vibe_check_info(ngx_http_vibe_check_t *c)
{
    ngx_http_vibe_ask(&c->ask, NGX_HTTP_GET, &c->db, "", NULL,
                      ngx_http_vibe_check_born);
}


static void
ngx_http_vibe_check_born(ngx_http_vibe_ask_t *ask, ngx_http_vibe_call_t *call)
{
    ngx_http_vibe_check_t *c = ask->data;

    uint32_t               born;
    ngx_http_vibe_json_t  *m;

    if (ngx_http_vibe_no_database(call)) {
        ngx_http_vibe_check_gone(c);
        return;
    }

    m = (call->status == NGX_HTTP_OK)
        ? ngx_http_vibe_ask_member(ask, call, "instance_start_time") : NULL;

    if (m == NULL) {
        ngx_http_vibe_check_failed(c);
        return;
    }

    born = ngx_crc32_short(m->raw.data, m->raw.len);

    if (born != c->known.born) {
        c->known.born = born;
        c->fresh = 1;
        ngx_str_set(&c->known.seq, "0");
    }

    ngx_http_vibe_check_changes(c);
}


/* NGX_DECLINED: made for another "global", or by other rules */

static ngx_int_t
ngx_http_vibe_check_since(ngx_http_vibe_check_t *c, ngx_http_vibe_call_t *call)
{
    ngx_str_t              global;
    ngx_uint_t             born;
    ngx_http_vibe_json_t  *root, *id, *seq, *m;

    if (ngx_http_vibe_scan_answer(c->ask.pool, call, 1, &root) != NGX_OK) {
        return NGX_ERROR;
    }

    if (ngx_http_vibe_copy_newer_format(root)) {
        return NGX_ABORT;
    }

    id = ngx_http_vibe_json_get(root, "global");
    seq = ngx_http_vibe_json_get(root, "seq");

    global.data = c->global;
    global.len = NGX_HTTP_VIBE_GLOBAL_ID;

    if (id == NULL
        || !ngx_http_vibe_same(&id->string, &global)
        || seq == NULL
        || seq->string.len == 0
        || !ngx_http_vibe_copy_current(root))
    {
        return NGX_DECLINED;
    }

    m = ngx_http_vibe_json_get(root, "born");

    if (m == NULL
        || ngx_http_vibe_json_uint(m, 0xffffffff, &born) != NGX_OK)
    {
        return NGX_DECLINED;
    }

    c->known.born = (uint32_t) born;

    if (ngx_http_vibe_check_keep(c, &seq->string, &c->stored) != NGX_OK) {
        return NGX_ERROR;
    }

    c->known.seq = c->stored;

    return NGX_OK;
}


static void
ngx_http_vibe_check_changes(ngx_http_vibe_check_t *c)
{
    u_char  *p, path[sizeof("/_changes?limit=&style=all_docs&since=%V")
                  + NGX_INT_T_LEN];

    p = ngx_sprintf(path, "/_changes?limit=%d&style=all_docs&since=",
                    NGX_HTTP_VIBE_CHECK_PAGE);
    ngx_memcpy(p, "%V", sizeof("%V"));

    ngx_http_vibe_ask_arg(&c->ask, &c->db, (const char *) path, &c->known.seq,
                          ngx_http_vibe_check_changed);
}


static void
ngx_http_vibe_check_changed(ngx_http_vibe_ask_t *ask,
    ngx_http_vibe_call_t *call)
{
    ngx_http_vibe_check_t *c = ask->data;

    ngx_http_vibe_json_t  *root, *results, *last;

    if (ngx_http_vibe_no_database(call)) {
        ngx_http_vibe_check_gone(c);
        return;
    }

    if (call->status == NGX_HTTP_BAD_REQUEST && !c->fresh) {

        /* a sequence of another database: this one was made anew */

        c->fresh = 1;
        ngx_str_set(&c->known.seq, "0");
        ngx_http_vibe_check_changes(c);
        return;
    }

    if (call->status != NGX_HTTP_OK
        || ngx_http_vibe_scan_answer(ask->pool, call, 5, &root) != NGX_OK)
    {
        ngx_http_vibe_check_failed(c);
        return;
    }

    results = ngx_http_vibe_json_get(root, "results");
    last = ngx_http_vibe_json_get(root, "last_seq");

    if (results == NULL
        || results->type != NGX_HTTP_VIBE_JSON_ARRAY
        || last == NULL
        || last->type != NGX_HTTP_VIBE_JSON_STRING
        || ngx_http_vibe_check_keep(c, &last->string, &c->known.seq) != NGX_OK
        || ngx_http_vibe_check_rows(c, results) != NGX_OK)
    {
        ngx_http_vibe_check_failed(c);
        return;
    }

    c->more = (results->n >= NGX_HTTP_VIBE_CHECK_PAGE);

    ngx_http_vibe_check_mirror(c);
}


static ngx_int_t
ngx_http_vibe_check_rows(ngx_http_vibe_check_t *c,
    ngx_http_vibe_json_t *results)
{
    ngx_http_vibe_json_t  *change;

    c->mirror = ngx_http_vibe_mirror_create(&c->known.did, &c->db, results->n,
                                            ngx_cycle->log);
    if (c->mirror == NULL) {
        return NGX_ERROR;
    }

    for (change = results->child; change; change = change->next) {
        if (ngx_http_vibe_check_row(c, change) != NGX_OK) {
            ngx_http_vibe_mirror_end(c->mirror);
            c->mirror = NULL;
            return NGX_ERROR;
        }
    }

    return NGX_OK;
}


/*
 * Its winner is told by its revision, the first of "changes".  Where there are
 * other leaves, a winner may be one that was before: nothing that is known of
 * it, or found, is trusted then.
 */

static ngx_int_t
ngx_http_vibe_check_row(ngx_http_vibe_check_t *c, ngx_http_vibe_json_t *change)
{
    ngx_str_t                    global;
    ngx_uint_t                   leaves;
    ngx_http_vibe_json_t        *id, *leaf, *rev, *deleted;
    ngx_http_vibe_mirror_row_t  *row;

    id = ngx_http_vibe_json_get(change, "id");
    leaf = ngx_http_vibe_json_get(change, "changes");
    leaf = leaf ? leaf->child : NULL;
    rev = ngx_http_vibe_json_get(leaf, "rev");
    deleted = ngx_http_vibe_json_get(change, "deleted");

    if (id == NULL
        || id->type != NGX_HTTP_VIBE_JSON_STRING
        || rev == NULL
        || rev->type != NGX_HTTP_VIBE_JSON_STRING)
    {
        return NGX_ERROR;
    }

    if (id->string.len && id->string.data[0] == '_') {
        return NGX_OK;
    }

    if (ngx_http_vibe_global_id(c->ask.pool, &c->known.did, &id->string,
                                &global)
        != NGX_OK)
    {
        return NGX_ERROR;
    }

    leaves = (leaf != NULL && leaf->next != NULL);

    if (!c->fresh
        && !leaves
        && ngx_http_vibe_zone_knows_source(c->vmcf->zone, &global,
                                           &rev->string))
    {
        return NGX_OK;
    }

    row = ngx_http_vibe_mirror_add(c->mirror, &id->string, &rev->string);
    if (row == NULL) {
        return NGX_ERROR;
    }

    row->state.check = !leaves;
    row->state.ask = leaves;
    row->state.deleted = (deleted != NULL
                          && deleted->type == NGX_HTTP_VIBE_JSON_TRUE);

    return NGX_OK;
}


/* its copies have no source now, if it is known whose they were */

static void
ngx_http_vibe_check_gone(ngx_http_vibe_check_t *c)
{
    c->missing = 1;
    c->known.seq.len = 0;

    if (c->known.did.len == 0) {
        c->handler(c, NGX_OK);
        return;
    }

    ngx_http_vibe_check_range(c);
}


/* all that "global" holds of the owner: "<DID>:" up to, not with, "<DID>;" */

static void
ngx_http_vibe_check_range(ngx_http_vibe_check_t *c)
{
    u_char      *p;
    ngx_str_t    end, from, to;
    ngx_pool_t  *pool;

    pool = c->ask.pool;
    c->ranging = 1;

    end.len = c->known.did.len + 1;
    end.data = ngx_pnalloc(pool, end.len);
    if (end.data == NULL) {
        ngx_http_vibe_check_failed(c);
        return;
    }

    p = ngx_cpymem(end.data, c->known.did.data, c->known.did.len);
    *p = ':';

    if (ngx_http_vibe_ask_key(pool, c->last.len ? &c->last : &end, &from)
        != NGX_OK)
    {
        ngx_http_vibe_check_failed(c);
        return;
    }

    *p = ';';

    if (ngx_http_vibe_ask_key(pool, &end, &to) != NGX_OK) {
        ngx_http_vibe_check_failed(c);
        return;
    }

    p = ngx_pnalloc(pool, from.len + to.len + 128);
    if (p == NULL) {
        ngx_http_vibe_check_failed(c);
        return;
    }

    *ngx_sprintf(p, "/_all_docs?include_docs=true&limit=%ui"
                 "&startkey=%V&endkey=%V", c->page, &from, &to)
        = '\0';

    ngx_http_vibe_ask(&c->ask, NGX_HTTP_GET, &ngx_http_vibe_global,
                      (const char *) p, NULL, ngx_http_vibe_check_ranged);
}


static void
ngx_http_vibe_check_ranged(ngx_http_vibe_ask_t *ask,
    ngx_http_vibe_call_t *call)
{
    ngx_http_vibe_check_t *c = ask->data;

    ngx_int_t              rc;
    ngx_http_vibe_json_t  *root, *rows;

    rc = (call->status == NGX_HTTP_OK)
         ? ngx_http_vibe_scan_answer(ask->pool, call, 4, &root) : NGX_DECLINED;

    if (rc == NGX_DECLINED && call->too_large && c->page > 2) {

        /* one is the last of before */

        c->page = ngx_max(c->page / 2, 2);
        ngx_http_vibe_check_range(c);
        return;
    }

    if (rc != NGX_OK) {
        ngx_http_vibe_check_failed(c);
        return;
    }

    rows = ngx_http_vibe_json_get(root, "rows");

    if (rows == NULL
        || rows->type != NGX_HTTP_VIBE_JSON_ARRAY
        || ngx_http_vibe_check_copies(c, rows) != NGX_OK)
    {
        ngx_http_vibe_check_failed(c);
        return;
    }

    c->more = (rows->n >= c->page);

    ngx_http_vibe_check_mirror(c);
}


static ngx_int_t
ngx_http_vibe_check_copies(ngx_http_vibe_check_t *c,
    ngx_http_vibe_json_t *rows)
{
    ngx_http_vibe_json_t  *row, *id;

    c->mirror = ngx_http_vibe_mirror_create(&c->known.did, &c->db, rows->n,
                                            ngx_cycle->log);
    if (c->mirror == NULL) {
        return NGX_ERROR;
    }

    /* the first one may be the last of before, or that is gone by now */

    row = rows->child;
    id = ngx_http_vibe_json_get(row, "id");

    if (id != NULL && ngx_http_vibe_same(&id->string, &c->last)) {
        row = row->next;
    }

    for ( /* void */ ; row; row = row->next) {
        if (ngx_http_vibe_check_copy(c, row) != NGX_OK) {
            ngx_http_vibe_mirror_end(c->mirror);
            c->mirror = NULL;
            return NGX_ERROR;
        }
    }

    return NGX_OK;
}


/* a copy of this database's, not of another one of the same owner */

static ngx_int_t
ngx_http_vibe_check_copy(ngx_http_vibe_check_t *c, ngx_http_vibe_json_t *row)
{
    ngx_int_t                    rc;
    ngx_str_t                    did, id, none;
    ngx_http_vibe_json_t        *global, *db;
    ngx_http_vibe_mirror_row_t  *m;

    global = ngx_http_vibe_json_get(row, "id");
    db = ngx_http_vibe_json_get(ngx_http_vibe_json_get(row, "doc"),
                                "vibe_db");

    if (global == NULL
        || global->type != NGX_HTTP_VIBE_JSON_STRING
        || ngx_http_vibe_check_keep_last(c, &global->string) != NGX_OK)
    {
        return NGX_ERROR;
    }

    rc = ngx_http_vibe_global_split(c->ask.pool, &global->string, &did, &id);

    if (rc == NGX_ERROR) {
        return NGX_ERROR;
    }

    if (rc != NGX_OK
        || !ngx_http_vibe_same(&did, &c->known.did)
        || db == NULL
        || !ngx_http_vibe_same(&db->string, &c->db))
    {
        return NGX_OK;
    }

    ngx_str_null(&none);

    m = ngx_http_vibe_mirror_add(c->mirror, &id, &none);
    if (m == NULL) {
        return NGX_ERROR;
    }

    m->state.check = 1;

    return NGX_OK;
}


static void
ngx_http_vibe_check_mirror(ngx_http_vibe_check_t *c)
{
    if (c->mirror->rows.nelts == 0) {
        ngx_http_vibe_mirror_end(c->mirror);
        c->mirror = NULL;
        ngx_http_vibe_check_next(c);
        return;
    }

    if (ngx_http_vibe_mirror(c->mirror, ngx_http_vibe_check_mirrored, c)
        != NGX_OK)
    {
        ngx_http_vibe_mirror_end(c->mirror);
        c->mirror = NULL;
        ngx_http_vibe_check_failed(c);
    }
}


static void
ngx_http_vibe_check_mirrored(ngx_http_vibe_mirror_t *m)
{
    ngx_http_vibe_check_t *c = m->data;

    ngx_uint_t                   i;
    ngx_http_vibe_mirror_row_t  *row;

    if (c == NULL) {
        return;
    }

    c->mirror = NULL;

    ngx_http_vibe_check_count(c->vmcf, m);

    if (!ngx_http_vibe_check_passed(m)) {
        ngx_http_vibe_check_failed(c);
        return;
    }

    row = m->rows.elts;

    for (i = 0; i < m->rows.nelts; i++) {
        c->hold |= row[i].state.newer;
        c->mended |= row[i].state.written;
    }

    ngx_http_vibe_check_next(c);
}


void
ngx_http_vibe_check_count(ngx_http_vibe_main_conf_t *vmcf,
    ngx_http_vibe_mirror_t *m)
{
    ngx_uint_t                   i, mended;
    ngx_http_vibe_mirror_row_t  *row;

    row = m->rows.elts;
    mended = 0;

    for (i = 0; i < m->rows.nelts; i++) {
        mended += row[i].state.written;
    }

    ngx_http_vibe_zone_count(vmcf->zone, NGX_HTTP_VIBE_REPAIR_CHECKED,
                             m->rows.nelts);
    ngx_http_vibe_zone_count(vmcf->zone, NGX_HTTP_VIBE_REPAIR_MENDED, mended);
}


/* what is refused for its own sake would be refused for ever */

ngx_uint_t
ngx_http_vibe_check_passed(ngx_http_vibe_mirror_t *m)
{
    ngx_uint_t                   i;
    ngx_http_vibe_mirror_row_t  *row;

    row = m->rows.elts;

    for (i = 0; i < m->rows.nelts; i++) {
        if (!row[i].done && !row[i].state.refused) {
            return 0;
        }
    }

    return 1;
}


static void
ngx_http_vibe_check_next(ngx_http_vibe_check_t *c)
{
    if (c->ranging) {

        if (c->more) {
            ngx_http_vibe_check_range(c);
            return;
        }

        c->ranging = 0;
        c->fresh = 0;

        if (c->missing) {
            c->handler(c, NGX_OK);
            return;
        }

        ngx_http_vibe_check_save(c);
        return;
    }

    if (c->more) {
        ngx_http_vibe_check_changes(c);
        return;
    }

    if (c->fresh) {
        ngx_http_vibe_check_range(c);
        return;
    }

    if (c->stored.len && ngx_http_vibe_same(&c->stored, &c->known.seq)) {
        c->saved = 1;

    } else if (c->save) {
        ngx_http_vibe_check_save(c);
        return;
    }

    c->handler(c, NGX_OK);
}


static void
ngx_http_vibe_check_save(ngx_http_vibe_check_t *c)
{
    ngx_str_t                 id;
    ngx_http_vibe_json_out_t  out;

    if (c->hold) {

        /* a newer version will pass what this one left alone */

        c->handler(c, NGX_OK);
        return;
    }

    /* what was made right is of the "global" that there was at the start */

    id.data = c->global;
    id.len = NGX_HTTP_VIBE_GLOBAL_ID;

    ngx_http_vibe_json_out_init(&out, c->ask.pool);
    ngx_http_vibe_json_put_text(&out, "{\"vibe_v\":");
    ngx_http_vibe_json_put_uint(&out, NGX_HTTP_VIBE_FORMAT);
    ngx_http_vibe_json_put_text(&out, ",\"vibe_acl\":");
    ngx_http_vibe_json_put_uint(&out, NGX_HTTP_VIBE_ACL_VERSION);
    ngx_http_vibe_json_put_text(&out, ",\"global\":");
    ngx_http_vibe_json_put_string(&out, &id);
    ngx_http_vibe_json_put_text(&out, ",\"born\":");
    ngx_http_vibe_json_put_uint(&out, c->known.born);
    ngx_http_vibe_json_put_text(&out, ",\"seq\":");
    ngx_http_vibe_json_put_string(&out, &c->known.seq);
    ngx_http_vibe_json_put_text(&out, "}");

    ngx_http_vibe_ask(&c->ask, NGX_HTTP_PUT, &c->db,
                      NGX_HTTP_VIBE_CHECKPOINT, &out,
                      ngx_http_vibe_check_saved);
}


static void
ngx_http_vibe_check_saved(ngx_http_vibe_ask_t *ask, ngx_http_vibe_call_t *call)
{
    ngx_http_vibe_check_t *c = ask->data;

    if (call->status != NGX_HTTP_CREATED
        && call->status != NGX_HTTP_ACCEPTED
        && call->status != NGX_HTTP_CONFLICT)
    {
        ngx_http_vibe_check_failed(c);
        return;
    }

    c->saved = 1;
    c->handler(c, NGX_OK);
}


static ngx_int_t
ngx_http_vibe_check_keep(ngx_http_vibe_check_t *c, ngx_str_t *from,
    ngx_str_t *to)
{
    u_char  *p;

    p = ngx_pstrdup(c->pool, from);
    if (p == NULL) {
        return NGX_ERROR;
    }

    to->data = p;
    to->len = from->len;

    return NGX_OK;
}


/* a range may be long: all in one place */

static ngx_int_t
ngx_http_vibe_check_keep_last(ngx_http_vibe_check_t *c, ngx_str_t *id)
{
    if (id->len > c->last_size) {

        c->last_size = ngx_max(id->len, c->last_size * 2);
        c->last.len = 0;

        c->last.data = ngx_pnalloc(c->pool, c->last_size);
        if (c->last.data == NULL) {
            c->last_size = 0;
            return NGX_ERROR;
        }
    }

    ngx_memcpy(c->last.data, id->data, id->len);
    c->last.len = id->len;

    return NGX_OK;
}


static void
ngx_http_vibe_check_failed(ngx_http_vibe_check_t *c)
{
    ngx_http_vibe_zone_count(c->vmcf->zone, NGX_HTTP_VIBE_REPAIR_FAILED, 1);

    c->handler(c, NGX_ERROR);
}
