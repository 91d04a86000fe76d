
#include "ngx_http_vibe_walk.h"
#include "ngx_http_vibe_check.h"
#include "ngx_http_vibe_global.h"


static void ngx_http_vibe_walk_look(ngx_http_vibe_walk_t *w);
static void ngx_http_vibe_walk_looked(ngx_http_vibe_ask_t *ask,
    ngx_http_vibe_call_t *call);
static ngx_int_t ngx_http_vibe_walk_keep_pool(ngx_http_vibe_walk_t *w,
    ngx_pool_t *pool);
static void ngx_http_vibe_walk_end_pool(void *data);
static ngx_int_t ngx_http_vibe_walk_sort(ngx_http_vibe_walk_t *w);
static ngx_int_t ngx_http_vibe_walk_sort_one(ngx_http_vibe_walk_t *w,
    ngx_http_vibe_walk_row_t *row);
static ngx_int_t ngx_http_vibe_walk_db(ngx_http_vibe_walk_t *w,
    ngx_http_vibe_walk_row_t *row);
static void ngx_http_vibe_walk_owners(ngx_http_vibe_walk_t *w);
static void ngx_http_vibe_walk_disown(ngx_http_vibe_walk_t *w,
    ngx_http_vibe_walk_row_t *row);
static void ngx_http_vibe_walk_owner(ngx_http_vibe_ask_t *ask,
    ngx_http_vibe_call_t *call);
static void ngx_http_vibe_walk_mirror(ngx_http_vibe_walk_t *w);
static ngx_int_t ngx_http_vibe_walk_group(ngx_http_vibe_walk_t *w,
    ngx_uint_t first);
static ngx_int_t ngx_http_vibe_walk_put(ngx_http_vibe_walk_t *w,
    ngx_http_vibe_mirror_t *m, ngx_http_vibe_walk_row_t *row);
static void ngx_http_vibe_walk_mirrored(ngx_http_vibe_mirror_t *m);
static void ngx_http_vibe_walk_failed(ngx_http_vibe_walk_t *w);


ngx_http_vibe_walk_t *
ngx_http_vibe_walk_create(ngx_http_vibe_main_conf_t *vmcf, ngx_uint_t n,
    ngx_http_vibe_walk_pt handler, void *data)
{
    ngx_pool_t            *pool;
    ngx_http_vibe_walk_t  *w;

    pool = ngx_create_pool(NGX_DEFAULT_POOL_SIZE, ngx_cycle->log);
    if (pool == NULL) {
        return NULL;
    }

    w = ngx_pcalloc(pool, sizeof(ngx_http_vibe_walk_t));
    if (w == NULL) {
        goto failed;
    }

    w->vmcf = vmcf;
    w->pool = pool;
    w->handler = handler;
    w->data = data;

    w->lookup = ngx_http_vibe_lookup_create(pool, vmcf, &ngx_http_vibe_global,
                                            n);
    if (w->lookup == NULL
        || ngx_array_init(&w->mirrors, pool, n,
                          sizeof(ngx_http_vibe_mirror_t *))
           != NGX_OK)
    {
        goto failed;
    }

    w->rows = ngx_pcalloc(pool, n * sizeof(ngx_http_vibe_walk_row_t));
    if (w->rows == NULL
        || ngx_http_vibe_ask_init(&w->ask, vmcf->zone, w) != NGX_OK)
    {
        goto failed;
    }

    return w;

failed:

    ngx_destroy_pool(pool);

    return NULL;
}


ngx_int_t
ngx_http_vibe_walk_add(ngx_http_vibe_walk_t *w, ngx_str_t *global)
{
    ngx_str_t  id;

    id.len = global->len;
    id.data = ngx_pstrdup(w->pool, global);
    if (id.data == NULL) {
        return NGX_ERROR;
    }

    w->rows[w->n].leaf = ngx_http_vibe_lookup_add(w->lookup, &id);
    if (w->rows[w->n].leaf == NULL) {
        return NGX_ERROR;
    }

    w->n++;

    return NGX_OK;
}


void
ngx_http_vibe_walk_end(ngx_http_vibe_walk_t *w)
{
    ngx_uint_t               i;
    ngx_http_vibe_mirror_t  **m;

    m = w->mirrors.elts;

    for (i = 0; i < w->mirrors.nelts; i++) {
        if (m[i] != NULL) {
            m[i]->data = NULL;
        }
    }

    ngx_http_vibe_ask_end(&w->ask);

    ngx_destroy_pool(w->pool);
}


void
ngx_http_vibe_walk(ngx_http_vibe_walk_t *w)
{
    ngx_http_vibe_walk_look(w);
}


static void
ngx_http_vibe_walk_look(ngx_http_vibe_walk_t *w)
{
    ngx_http_vibe_json_out_t  out;

    ngx_http_vibe_json_out_init(&out, w->ask.pool);
    ngx_http_vibe_lookup_ask(w->lookup, &out);

    ngx_http_vibe_ask(&w->ask, NGX_HTTP_POST, &ngx_http_vibe_global,
                      NGX_HTTP_VIBE_LOOKUP_PATH, &out,
                      ngx_http_vibe_walk_looked);
}


static void
ngx_http_vibe_walk_looked(ngx_http_vibe_ask_t *ask, ngx_http_vibe_call_t *call)
{
    ngx_http_vibe_walk_t *w = ask->data;

    ngx_int_t   rc;
    ngx_pool_t  *pool;

    /* the leaves point into the answer: it must stay as long as they do */

    pool = ngx_create_pool(NGX_DEFAULT_POOL_SIZE, ngx_cycle->log);

    if (pool == NULL
        || ngx_http_vibe_walk_keep_pool(w, ask->pool) != NGX_OK)
    {
        if (pool != NULL) {
            ngx_destroy_pool(pool);
        }

        ngx_http_vibe_walk_failed(w);
        return;
    }

    ask->pool = pool;

    rc = ngx_http_vibe_lookup_take(w->lookup, call);

    if (rc == NGX_AGAIN) {
        ngx_http_vibe_walk_look(w);
        return;
    }

    if (rc != NGX_OK
        || w->lookup->missing
        || ngx_http_vibe_walk_sort(w) != NGX_OK)
    {
        ngx_http_vibe_walk_failed(w);
        return;
    }

    ngx_http_vibe_walk_owners(w);
}


static ngx_int_t
ngx_http_vibe_walk_keep_pool(ngx_http_vibe_walk_t *w, ngx_pool_t *pool)
{
    ngx_pool_cleanup_t  *cln;

    cln = ngx_pool_cleanup_add(w->pool, 0);
    if (cln == NULL) {
        return NGX_ERROR;
    }

    cln->handler = ngx_http_vibe_walk_end_pool;
    cln->data = pool;

    return NGX_OK;
}


static void
ngx_http_vibe_walk_end_pool(void *data)
{
    ngx_destroy_pool(data);
}


/* which database each is, or would be, the copy of */

static ngx_int_t
ngx_http_vibe_walk_sort(ngx_http_vibe_walk_t *w)
{
    ngx_uint_t                 i;
    ngx_http_vibe_leaf_t      *leaf;
    ngx_http_vibe_walk_row_t  *row;

    row = w->rows;
    leaf = w->lookup->rows.elts;

    for (i = 0; i < w->n; i++) {
        row[i].leaf = &leaf[i];

        if (ngx_http_vibe_walk_sort_one(w, &row[i]) != NGX_OK) {
            return NGX_ERROR;
        }
    }

    return NGX_OK;
}


static ngx_int_t
ngx_http_vibe_walk_sort_one(ngx_http_vibe_walk_t *w,
    ngx_http_vibe_walk_row_t *row)
{
    ngx_int_t              rc;
    ngx_http_vibe_json_t  *db;
    ngx_http_vibe_leaf_t  *leaf;

    leaf = row->leaf;

    if (leaf->doc == NULL || (leaf->id.len && leaf->id.data[0] == '_')) {
        row->skip = 1;
        return NGX_OK;
    }

    if (ngx_http_vibe_copy_newer_format(leaf->doc)) {
        ngx_log_error(NGX_LOG_ERR, ngx_cycle->log, 0,
                      "\"%V\" in global has the format of a newer version "
                      "and is left alone", &leaf->id);
        row->skip = 1;
        return NGX_OK;
    }

    rc = ngx_http_vibe_global_split(w->pool, &leaf->id, &row->did, &row->id);

    if (rc == NGX_ERROR) {
        return NGX_ERROR;
    }

    if (rc != NGX_OK) {

        /* no global id: if it lives, it is nobody's */

        row->id = leaf->id;
        ngx_str_null(&row->did);
        row->owned = 1;
        row->skip = leaf->deleted;
        return NGX_OK;
    }

    db = ngx_http_vibe_json_get(leaf->doc, "vibe_db");

    if (db != NULL && db->type == NGX_HTTP_VIBE_JSON_STRING) {
        row->db = db->string;

    } else if (ngx_http_vibe_walk_db(w, row) != NGX_OK) {
        return NGX_ERROR;
    }

    return NGX_OK;
}


/* what CouchDB or an admin deleted, or made, does not say: by the DID then */

static ngx_int_t
ngx_http_vibe_walk_db(ngx_http_vibe_walk_t *w, ngx_http_vibe_walk_row_t *row)
{
    ngx_str_t  *prefix;

    if (w->vmcf->prefixes.nelts == 0) {
        row->skip = 1;
        return NGX_OK;
    }

    prefix = w->vmcf->prefixes.elts;

    return ngx_http_vibe_db_of_did(w->pool, prefix, &row->did, &row->db);
}


/* whether the databases are theirs whose ids the copies bear */

static void
ngx_http_vibe_walk_owners(ngx_http_vibe_walk_t *w)
{
    ngx_int_t                  rc;
    ngx_str_t                  did;
    ngx_http_vibe_walk_row_t  *row;

    for ( /* void */ ; w->owner < w->n; w->owner++) {

        row = &w->rows[w->owner];

        if (row->skip || row->owned) {
            continue;
        }

        rc = ngx_http_vibe_check_named(w->vmcf, w->pool, &row->db, &did);

        switch (rc) {

        case NGX_OK:

            if (ngx_http_vibe_same(&did, &row->did)) {
                row->owned = 1;

            } else {
                ngx_http_vibe_walk_disown(w, row);
            }

            continue;

        case NGX_DECLINED:
            ngx_http_vibe_ask(&w->ask, NGX_HTTP_GET, &row->db,
                              NGX_HTTP_VIBE_OWNER_DOC, NULL,
                              ngx_http_vibe_walk_owner);
            return;

        case NGX_ABORT:
            ngx_http_vibe_walk_disown(w, row);
            continue;

        default:
            ngx_http_vibe_walk_failed(w);
            return;
        }
    }

    ngx_http_vibe_walk_mirror(w);
}


/*
 * Not of that database.  The one that gives the DID by its name may have such
 * a document; if not, it is nobody's.
 */

static void
ngx_http_vibe_walk_disown(ngx_http_vibe_walk_t *w,
    ngx_http_vibe_walk_row_t *row)
{
    ngx_str_t  did;

    row->owned = 1;
    row->db.len = 0;

    if (ngx_http_vibe_walk_db(w, row) != NGX_OK
        || ngx_http_vibe_check_named(w->vmcf, w->pool, &row->db, &did)
           != NGX_OK)
    {
        row->db.len = 0;
    }
}


static void
ngx_http_vibe_walk_owner(ngx_http_vibe_ask_t *ask, ngx_http_vibe_call_t *call)
{
    ngx_http_vibe_walk_t *w = ask->data;

    ngx_str_t                  db;
    ngx_uint_t                 i, failed;
    ngx_http_vibe_json_t      *did;
    ngx_http_vibe_walk_row_t  *row;

    did = NULL;

    if (call->status == NGX_HTTP_OK) {
        did = ngx_http_vibe_ask_member(ask, call, "did");

    }

    if (call->status == NGX_HTTP_SERVICE_UNAVAILABLE
        || call->status == NGX_HTTP_GATEWAY_TIME_OUT)
    {
        ngx_http_vibe_walk_failed(w);
        return;
    }

    /* one database that fails keeps no other's documents waiting */

    failed = (call->status != NGX_HTTP_NOT_FOUND
              && (did == NULL || did->type != NGX_HTTP_VIBE_JSON_STRING));

    w->failed |= failed;

    /* the same for all of this database, which may be gone */

    db = w->rows[w->owner].db;

    for (i = w->owner; i < w->n; i++) {

        row = &w->rows[i];

        if (row->skip || row->owned || !ngx_http_vibe_same(&row->db, &db)) {
            continue;
        }

        if (failed) {
            row->skip = 1;
            continue;
        }

        if (did != NULL && ngx_http_vibe_same(&did->string, &row->did)) {
            row->owned = 1;

        } else {
            ngx_http_vibe_walk_disown(w, row);
        }
    }

    ngx_http_vibe_walk_owners(w);
}


/* one mirror for each owner and database */

static void
ngx_http_vibe_walk_mirror(ngx_http_vibe_walk_t *w)
{
    ngx_uint_t  i;

    w->left = 1;

    for (i = 0; i < w->n; i++) {
        if (!w->rows[i].skip && ngx_http_vibe_walk_group(w, i) != NGX_OK) {
            w->failed = 1;
            break;
        }
    }

    if (--w->left == 0) {
        w->handler(w, w->failed ? NGX_ERROR : NGX_OK);
    }
}


static ngx_int_t
ngx_http_vibe_walk_group(ngx_http_vibe_walk_t *w, ngx_uint_t first)
{
    ngx_uint_t                 i;
    ngx_http_vibe_mirror_t    *m, **slot;
    ngx_http_vibe_walk_row_t  *row, *one;

    one = &w->rows[first];

    m = ngx_http_vibe_mirror_create(&one->did, &one->db, w->n - first,
                                    ngx_cycle->log);
    if (m == NULL) {
        return NGX_ERROR;
    }

    for (i = first; i < w->n; i++) {
        row = &w->rows[i];

        if (row->skip
            || !ngx_http_vibe_same(&row->did, &one->did)
            || !ngx_http_vibe_same(&row->db, &one->db))
        {
            continue;
        }

        if (ngx_http_vibe_walk_put(w, m, row) != NGX_OK) {
            goto failed;
        }

        if (row != one) {
            row->skip = 1;
        }
    }

    slot = ngx_array_push(&w->mirrors);
    if (slot == NULL) {
        goto failed;
    }

    if (ngx_http_vibe_mirror(m, ngx_http_vibe_walk_mirrored, w) != NGX_OK) {
        *slot = NULL;
        goto failed;
    }

    *slot = m;
    w->left++;

    return NGX_OK;

failed:

    ngx_http_vibe_mirror_end(m);

    return NGX_ERROR;
}


static ngx_int_t
ngx_http_vibe_walk_put(ngx_http_vibe_walk_t *w, ngx_http_vibe_mirror_t *m,
    ngx_http_vibe_walk_row_t *row)
{
    ngx_str_t                    none;
    ngx_http_vibe_mirror_row_t  *r;

    ngx_str_null(&none);

    r = ngx_http_vibe_mirror_add(m, &row->id, &none);
    if (r == NULL) {
        return NGX_ERROR;
    }

    r->state.check = 1;

    /* what is no global id of ours is meant as it is */

    r->state.global.len = row->leaf->id.len;
    r->state.global.data = ngx_pstrdup(m->pool, &row->leaf->id);

    if (r->state.global.data == NULL) {
        return NGX_ERROR;
    }

    if (row->db.len == 0 && !row->leaf->deleted) {
        ngx_http_vibe_zone_count(w->vmcf->zone, NGX_HTTP_VIBE_REPAIR_FOREIGN,
                                 1);
    }

    return NGX_OK;
}


static void
ngx_http_vibe_walk_mirrored(ngx_http_vibe_mirror_t *m)
{
    ngx_http_vibe_walk_t *w = m->data;

    ngx_uint_t                i;
    ngx_http_vibe_mirror_t  **slot;

    if (w == NULL) {
        return;
    }

    slot = w->mirrors.elts;

    for (i = 0; i < w->mirrors.nelts; i++) {
        if (slot[i] == m) {
            slot[i] = NULL;
        }
    }

    ngx_http_vibe_check_count(w->vmcf, m);

    if (!ngx_http_vibe_check_passed(m)) {
        w->failed = 1;
    }

    if (--w->left == 0) {
        w->handler(w, w->failed ? NGX_ERROR : NGX_OK);
    }
}


static void
ngx_http_vibe_walk_failed(ngx_http_vibe_walk_t *w)
{
    ngx_http_vibe_zone_count(w->vmcf->zone, NGX_HTTP_VIBE_REPAIR_FAILED, 1);

    w->handler(w, NGX_ERROR);
}
