
#include "ngx_http_vibe_state.h"
#include "ngx_http_vibe_copy.h"
#include "ngx_http_vibe_id.h"


static ngx_uint_t ngx_http_vibe_state_checked(ngx_http_vibe_state_t *st);
static ngx_int_t ngx_http_vibe_state_winner(ngx_http_vibe_state_t *st,
    ngx_pool_t *pool);
static ngx_int_t ngx_http_vibe_state_keep(ngx_http_vibe_state_t *st,
    ngx_str_t *from, ngx_str_t *to);
static ngx_http_vibe_step_e ngx_http_vibe_state_compare(
    ngx_http_vibe_state_t *st, ngx_pool_t *pool);
static ngx_uint_t ngx_http_vibe_state_settled(ngx_http_vibe_state_t *st,
    ngx_pool_t *pool);
static ngx_uint_t ngx_http_vibe_state_alike(ngx_http_vibe_state_t *st,
    ngx_pool_t *pool);
static ngx_uint_t ngx_http_vibe_state_member_is(ngx_http_vibe_json_t *doc,
    const char *name, ngx_str_t *value);
static ngx_uint_t ngx_http_vibe_state_claims(ngx_http_vibe_state_t *st);
static void ngx_http_vibe_state_found(ngx_http_vibe_state_t *st);


ngx_http_vibe_step_e
ngx_http_vibe_state_begin(ngx_http_vibe_state_t *st, ngx_log_t *log)
{
    if (++st->tries > NGX_HTTP_VIBE_STATE_TRIES) {
        ngx_log_error(NGX_LOG_ERR, log, 0,
                      "a mirror is pending: it met a conflict %d times",
                      NGX_HTTP_VIBE_STATE_TRIES);
        return NGX_HTTP_VIBE_FAILED;
    }

    st->copy = NULL;
    st->source = NULL;
    st->stub.len = 0;

    return st->made ? NGX_HTTP_VIBE_WRITE : NGX_HTTP_VIBE_LEARN;
}


/* the source must be asked where the copy stands for a newer revision */

ngx_http_vibe_step_e
ngx_http_vibe_state_learned(ngx_http_vibe_state_t *st, ngx_log_t *log)
{
    ngx_str_t  rev;

    if (ngx_http_vibe_copy_newer_format(st->copy->doc)) {
        ngx_log_error(NGX_LOG_ERR, log, 0,
                      "\"%V\" in global has the format of a newer version "
                      "and is left alone", &st->global);
        st->refused = 1;
        st->newer = 1;
        return NGX_HTTP_VIBE_FAILED;
    }

    if (st->check) {

        if (ngx_http_vibe_state_checked(st)) {
            ngx_http_vibe_state_found(st);
            return NGX_HTTP_VIBE_DONE;
        }

        return NGX_HTTP_VIBE_ASK;
    }

    /* a stub says nothing of what its writer knew */

    ngx_http_vibe_copy_source(st->copy->doc, &rev);

    if (st->copy->doc != NULL
        && (rev.len == 0 || ngx_http_vibe_rev_cmp(&rev, &st->rev) > 0))
    {
        st->ask = 1;
    }

    return st->ask ? NGX_HTTP_VIBE_ASK : ngx_http_vibe_state_compare(st, NULL);
}


/* 1 if a winner of which only the revision is known is mirrored already */

static ngx_uint_t
ngx_http_vibe_state_checked(ngx_http_vibe_state_t *st)
{
    ngx_str_t  rev;

    if (st->copy->doc == NULL || st->copy->deleted) {

        if (st->deleted) {
            return 1;
        }

        ngx_http_vibe_copy_source(st->copy->doc, &rev);

        return rev.len
               && ngx_http_vibe_same(&rev, &st->rev)
               && ngx_http_vibe_copy_current(st->copy->doc);
    }

    ngx_http_vibe_copy_source(st->copy->doc, &rev);

    return rev.len
           && !st->deleted
           && st->copy->nlosers == 0
           && ngx_http_vibe_same(&rev, &st->rev)
           && ngx_http_vibe_copy_current(st->copy->doc);
}


ngx_http_vibe_step_e
ngx_http_vibe_state_asked(ngx_http_vibe_state_t *st, ngx_pool_t *pool)
{
    /* what is written then may go: the next time it is asked again */

    st->check = 0;
    st->ask = 1;

    if (ngx_http_vibe_state_winner(st, pool) != NGX_OK) {
        return NGX_HTTP_VIBE_FAILED;
    }

    return ngx_http_vibe_state_compare(st, pool);
}


/* what the source says takes the place of what was written */

static ngx_int_t
ngx_http_vibe_state_winner(ngx_http_vibe_state_t *st, ngx_pool_t *pool)
{
    ngx_str_t              collection;
    ngx_http_vibe_leaf_t  *source;

    source = st->source;

    st->access.kind = NGX_HTTP_VIBE_PRIVATE;

    if (ngx_http_vibe_state_keep(st, &source->rev, &st->rev) != NGX_OK) {
        return NGX_ERROR;
    }

    if (source->doc == NULL || source->deleted) {
        return NGX_OK;
    }

    if (ngx_http_vibe_copy_collection(source->doc, &st->id, &collection)
        != NGX_OK)
    {
        st->uncollected = 1;
        return NGX_OK;
    }

    if (ngx_http_vibe_state_keep(st, &collection, &st->collection) != NGX_OK) {
        return NGX_ERROR;
    }

    if (ngx_http_vibe_acl_decide(pool, &st->did, source->doc, &st->access)
        != NGX_OK)
    {
        return NGX_ERROR;
    }

    if (st->too_large) {
        st->access.kind = NGX_HTTP_VIBE_PRIVATE;
    }

    if (st->access.kind == NGX_HTTP_VIBE_PRIVATE) {
        return NGX_OK;
    }

    return ngx_http_vibe_copy_members(pool, source->doc, &st->members);
}


static ngx_int_t
ngx_http_vibe_state_keep(ngx_http_vibe_state_t *st, ngx_str_t *from,
    ngx_str_t *to)
{
    if (ngx_http_vibe_same(from, to)) {
        return NGX_OK;
    }

    to->len = from->len;
    to->data = ngx_pstrdup(st->pool, from);

    return to->data ? NGX_OK : NGX_ERROR;
}


static ngx_http_vibe_step_e
ngx_http_vibe_state_compare(ngx_http_vibe_state_t *st, ngx_pool_t *pool)
{
    if (!ngx_http_vibe_state_settled(st, pool)) {
        return NGX_HTTP_VIBE_WRITE;
    }

    ngx_http_vibe_state_found(st);

    return NGX_HTTP_VIBE_DONE;
}


/* "global" is as it should be */

static void
ngx_http_vibe_state_found(ngx_http_vibe_state_t *st)
{
    ngx_str_null(&st->copy_rev);

    if (st->copy != NULL && st->copy->doc != NULL) {
        st->copy_rev = st->copy->rev;
        st->copied = !st->copy->deleted;
    }
}


static ngx_uint_t
ngx_http_vibe_state_settled(ngx_http_vibe_state_t *st, ngx_pool_t *pool)
{
    ngx_str_t              rev;
    ngx_uint_t             private;
    ngx_http_vibe_leaf_t  *copy;

    if (st->stub.len) {
        return 0;
    }

    private = (st->access.kind == NGX_HTTP_VIBE_PRIVATE);
    copy = st->copy;

    if (copy == NULL || copy->doc == NULL) {

        /*
         * A tombstone goes where nothing is if the revision before could be
         * read: its copy may be on the way.
         */

        return private && st->before.kind == NGX_HTTP_VIBE_PRIVATE;
    }

    if (private || copy->deleted) {

        /* whoever writes over a tombstone asks the source first */

        return private && copy->deleted;
    }

    /*
     * Where there are other leaves, a winner may come back that was before:
     * only a write makes those fail who still hold another one for it.
     */

    if (copy->nlosers || (st->source && st->source->conflicts)) {
        return 0;
    }

    ngx_http_vibe_copy_source(copy->doc, &rev);

    return ngx_http_vibe_same(&rev, &st->rev)
           && ngx_http_vibe_copy_current(copy->doc)
           && (st->source == NULL || ngx_http_vibe_state_alike(st, pool));
}


/* an admin may have changed a copy and left in it what it stands for */

static ngx_uint_t
ngx_http_vibe_state_alike(ngx_http_vibe_state_t *st, ngx_pool_t *pool)
{
    ngx_str_t                 members, has, wants;
    ngx_http_vibe_access_t    access;
    ngx_http_vibe_json_t     *doc;
    ngx_http_vibe_json_out_t  out;

    doc = st->copy->doc;

    if (!ngx_http_vibe_state_member_is(doc, "collection", &st->collection)
        || !ngx_http_vibe_state_member_is(doc, "vibe_owner", &st->did)
        || !ngx_http_vibe_state_member_is(doc, "vibe_db", &st->db)
        || ngx_http_vibe_copy_members(pool, doc, &members) != NGX_OK
        || !ngx_http_vibe_same(&members, &st->members)
        || ngx_http_vibe_acl_of_copy(pool, doc, &access) != NGX_OK)
    {
        return 0;
    }

    ngx_http_vibe_json_out_init(&out, pool);
    ngx_http_vibe_acl_put(&out, &access);

    if (ngx_http_vibe_json_out_str(&out, &has) != NGX_OK) {
        return 0;
    }

    ngx_http_vibe_json_out_init(&out, pool);
    ngx_http_vibe_acl_put(&out, &st->access);

    return ngx_http_vibe_json_out_str(&out, &wants) == NGX_OK
           && ngx_http_vibe_same(&has, &wants);
}


static ngx_uint_t
ngx_http_vibe_state_member_is(ngx_http_vibe_json_t *doc, const char *name,
    ngx_str_t *value)
{
    ngx_str_t              str;
    ngx_http_vibe_json_t  *m;

    str.data = (u_char *) name;
    str.len = ngx_strlen(name);

    m = ngx_http_vibe_json_member(doc, &str);

    return m != NULL
           && m->type == NGX_HTTP_VIBE_JSON_STRING
           && ngx_http_vibe_same(&m->string, value);
}


/* 1 if what would be written must not be read before 2 was done again */

static ngx_uint_t
ngx_http_vibe_state_claims(ngx_http_vibe_state_t *st)
{
    if (st->stub.len || st->access.kind == NGX_HTTP_VIBE_PRIVATE) {
        return 0;
    }

    if (st->copy == NULL) {
        return !st->made;
    }

    return st->copy->doc == NULL || st->copy->deleted;
}


ngx_int_t
ngx_http_vibe_state_put(ngx_http_vibe_state_t *st, ngx_pool_t *pool,
    ngx_http_vibe_json_out_t *out)
{
    ngx_http_vibe_json_t    *old, *m;
    ngx_http_vibe_copy_t     copy;
    ngx_http_vibe_access_t   access;

    old = st->copy ? st->copy->doc : NULL;

    copy.id = st->global;
    copy.collection = st->collection;
    copy.owner = st->did;
    copy.db = st->db;
    copy.source = st->rev;
    copy.members = st->members;
    copy.access = &st->access;
    copy.stub = ngx_http_vibe_state_claims(st);
    copy.rev = st->stub;

    if (old != NULL && !st->copy->deleted && !st->stub.len) {
        copy.rev = st->copy->rev;
    }

    if (copy.collection.len == 0) {

        /* of a source that is gone the copy may still know it */

        m = ngx_http_vibe_json_get(old, "collection");

        if (m != NULL && m->type == NGX_HTTP_VIBE_JSON_STRING) {
            copy.collection = m->string;
        }
    }

    if (ngx_http_vibe_past_of_copy(pool, old, &copy.past) != NGX_OK
        || ngx_http_vibe_acl_of_copy(pool, old, &access) != NGX_OK)
    {
        return NGX_ERROR;
    }

    /* where all may read now, nobody is left who no longer may */

    if (st->access.kind != NGX_HTTP_VIBE_PUBLIC
        && (ngx_http_vibe_past_add(pool, &copy.past, &access) != NGX_OK
            || ngx_http_vibe_past_add(pool, &copy.past, &st->before)
               != NGX_OK))
    {
        return NGX_ERROR;
    }

    ngx_http_vibe_copy_put(out, &copy);

    return NGX_OK;
}


ngx_uint_t
ngx_http_vibe_state_too_large(ngx_http_vibe_state_t *st)
{
    if (st->too_large
        || st->access.kind == NGX_HTTP_VIBE_PRIVATE
        || (st->stub.len == 0
            && (st->copy == NULL
                || st->copy->doc == NULL
                || st->copy->deleted)))
    {
        return 0;
    }

    st->too_large = 1;
    st->check = 0;
    st->ask = 1;

    return 1;
}


ngx_http_vibe_step_e
ngx_http_vibe_state_written(ngx_http_vibe_state_t *st, ngx_int_t rc,
    ngx_str_t *rev, ngx_log_t *log)
{
    if (rc == NGX_DECLINED) {

        /* also where our own request was carried out twice */

        st->made = 0;

        return ngx_http_vibe_state_begin(st, log);
    }

    if (rc != NGX_OK) {
        return NGX_HTTP_VIBE_FAILED;
    }

    if (ngx_http_vibe_state_claims(st)) {
        st->stub = *rev;
        st->ask = 1;

        return NGX_HTTP_VIBE_ASK;
    }

    st->written = 1;

    if (st->made && ngx_http_vibe_rev_generation(rev) > 1) {

        /* somebody has seen it already, and withdrawn it */

        st->made = 0;
        st->ask = 1;

        return ngx_http_vibe_state_begin(st, log);
    }

    if (st->copy != NULL && st->copy->nlosers) {

        /* look whether it is alone now */

        return ngx_http_vibe_state_begin(st, log);
    }

    st->copy_rev = *rev;
    st->copied = (st->access.kind != NGX_HTTP_VIBE_PRIVATE);

    return NGX_HTTP_VIBE_DONE;
}
