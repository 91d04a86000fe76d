
#include <ngx_config.h>
#include <ngx_core.h>

#include <openssl/evp.h>
#include <openssl/rand.h>

/* nginx's own ngx_regex.h may have been there first */

#ifndef PCRE2_CODE_UNIT_WIDTH
#define PCRE2_CODE_UNIT_WIDTH  8
#endif

#include <pcre2.h>

#include "ngx_http_vibe_id.h"


/*
 * What a match may cost.  The longest DID with the most segments needs a
 * small part of this; a name that needs more is no name.
 */

#define NGX_HTTP_VIBE_ID_MATCH_LIMIT  50000
#define NGX_HTTP_VIBE_ID_HEAP_LIMIT   4096        /* kilobytes */

#define NGX_HTTP_VIBE_ID_RANDOM       16          /* bytes in a new id */


enum {
    NGX_HTTP_VIBE_ID_DID = 0,
    NGX_HTTP_VIBE_ID_COLLECTION,
    NGX_HTTP_VIBE_ID_INSTANCE,
    NGX_HTTP_VIBE_ID_DB,
    NGX_HTTP_VIBE_ID_REV,
    NGX_HTTP_VIBE_ID_PATTERNS
};


typedef struct {
    ngx_str_t              generation;
    ngx_str_t              hash;
} ngx_http_vibe_id_rev_t;


static ngx_int_t ngx_http_vibe_id_compile(ngx_log_t *log);
static void ngx_http_vibe_id_free(void);
static void ngx_http_vibe_id_cleanup(void *data);
static ngx_uint_t ngx_http_vibe_id_match(ngx_uint_t n, ngx_str_t *s,
    size_t max);
static ngx_int_t ngx_http_vibe_id_split_rev(ngx_str_t *rev,
    ngx_http_vibe_id_rev_t *split);
static ngx_int_t ngx_http_vibe_id_unhex(u_char c);


/*
 * The quantifiers of a DID are possessive: no part of it can match in two
 * ways, so there is nothing to go back for.
 */

static const char  *ngx_http_vibe_id_patterns[NGX_HTTP_VIBE_ID_PATTERNS] = {
    "did:[a-z0-9]++:"
        "(?:(?:[A-Za-z0-9._-]++|%[0-9A-Fa-f]{2})*+:)*+"
        "(?:[A-Za-z0-9._-]++|%[0-9A-Fa-f]{2})++",
    "[A-Za-z][A-Za-z0-9_-]{0,63}",
    "[a-z0-9_-]{1,200}",
    "[a-z][a-z0-9_$()+/-]{0,237}",
    "[1-9][0-9]{0,17}-[0-9a-f]{1,64}"
};


static ngx_str_t  ngx_http_vibe_id_reserved[] = {
    ngx_string("global"),
    ngx_string("expand"),
    ngx_string("query"),
    ngx_string("changes"),
    ngx_null_string
};


/*
 * One set for the process.  On reload the new configuration is read while
 * the old one still works, and either may be the one that goes, so the set
 * is counted: it lives as long as any configuration that asked for it.
 */

static pcre2_code           *ngx_http_vibe_id_codes[NGX_HTTP_VIBE_ID_PATTERNS];
static pcre2_match_data     *ngx_http_vibe_id_match_data;
static pcre2_match_context  *ngx_http_vibe_id_match_context;
static ngx_uint_t            ngx_http_vibe_id_users;


ngx_int_t
ngx_http_vibe_id_init(ngx_pool_t *pool, ngx_log_t *log)
{
    ngx_pool_cleanup_t  *cln;

    cln = ngx_pool_cleanup_add(pool, 0);
    if (cln == NULL) {
        return NGX_ERROR;
    }

    if (ngx_http_vibe_id_users == 0
        && ngx_http_vibe_id_compile(log) != NGX_OK)
    {
        ngx_http_vibe_id_free();
        return NGX_ERROR;
    }

    cln->handler = ngx_http_vibe_id_cleanup;
    cln->data = &ngx_http_vibe_id_users;

    ngx_http_vibe_id_users++;

    return NGX_OK;
}


static ngx_int_t
ngx_http_vibe_id_compile(ngx_log_t *log)
{
    int          errcode;
    ngx_uint_t   i;
    PCRE2_SIZE   offset;
    const char  *pattern;

    for (i = 0; i < NGX_HTTP_VIBE_ID_PATTERNS; i++) {

        pattern = ngx_http_vibe_id_patterns[i];

        ngx_http_vibe_id_codes[i] = pcre2_compile((PCRE2_SPTR) pattern,
                                        PCRE2_ZERO_TERMINATED,
                                        PCRE2_ANCHORED|PCRE2_ENDANCHORED,
                                        &errcode, &offset, NULL);

        if (ngx_http_vibe_id_codes[i] == NULL) {
            ngx_log_error(NGX_LOG_EMERG, log, 0,
                          "pcre2_compile(\"%s\") failed: %d at %uz",
                          pattern, errcode, (size_t) offset);
            return NGX_ERROR;
        }
    }

    ngx_http_vibe_id_match_data = pcre2_match_data_create(1, NULL);
    ngx_http_vibe_id_match_context = pcre2_match_context_create(NULL);

    if (ngx_http_vibe_id_match_data == NULL
        || ngx_http_vibe_id_match_context == NULL)
    {
        ngx_log_error(NGX_LOG_EMERG, log, 0,
                      "no memory for the patterns of names");
        return NGX_ERROR;
    }

    (void) pcre2_set_match_limit(ngx_http_vibe_id_match_context,
                                 NGX_HTTP_VIBE_ID_MATCH_LIMIT);
    (void) pcre2_set_depth_limit(ngx_http_vibe_id_match_context,
                                 NGX_HTTP_VIBE_ID_MATCH_LIMIT);
    (void) pcre2_set_heap_limit(ngx_http_vibe_id_match_context,
                                NGX_HTTP_VIBE_ID_HEAP_LIMIT);

    return NGX_OK;
}


static void
ngx_http_vibe_id_free(void)
{
    ngx_uint_t  i;

    /* all three take NULL */

    for (i = 0; i < NGX_HTTP_VIBE_ID_PATTERNS; i++) {
        pcre2_code_free(ngx_http_vibe_id_codes[i]);
        ngx_http_vibe_id_codes[i] = NULL;
    }

    pcre2_match_data_free(ngx_http_vibe_id_match_data);
    ngx_http_vibe_id_match_data = NULL;

    pcre2_match_context_free(ngx_http_vibe_id_match_context);
    ngx_http_vibe_id_match_context = NULL;
}


static void
ngx_http_vibe_id_cleanup(void *data)
{
    ngx_uint_t  *users = data;

    if (--*users == 0) {
        ngx_http_vibe_id_free();
    }
}


static ngx_uint_t
ngx_http_vibe_id_match(ngx_uint_t n, ngx_str_t *s, size_t max)
{
    int  rc;

    if (s->len == 0 || s->len > max || ngx_http_vibe_id_codes[n] == NULL) {
        return 0;
    }

    /* negative: no match, or a limit was reached */

    rc = pcre2_match(ngx_http_vibe_id_codes[n], s->data, s->len, 0, 0,
                     ngx_http_vibe_id_match_data,
                     ngx_http_vibe_id_match_context);

    return rc >= 0;
}


ngx_uint_t
ngx_http_vibe_is_did(ngx_str_t *did)
{
    return ngx_http_vibe_id_match(NGX_HTTP_VIBE_ID_DID, did,
                                  NGX_HTTP_VIBE_DID_MAX);
}


ngx_uint_t
ngx_http_vibe_is_collection(ngx_str_t *name)
{
    ngx_str_t  *reserved;

    if (!ngx_http_vibe_id_match(NGX_HTTP_VIBE_ID_COLLECTION, name, 64)) {
        return 0;
    }

    for (reserved = ngx_http_vibe_id_reserved; reserved->len; reserved++) {

        if (reserved->len == name->len
            && ngx_memcmp(reserved->data, name->data, name->len) == 0)
        {
            return 0;
        }
    }

    return 1;
}


ngx_uint_t
ngx_http_vibe_is_instance(ngx_str_t *instance)
{
    return ngx_http_vibe_id_match(NGX_HTTP_VIBE_ID_INSTANCE, instance, 200);
}


ngx_uint_t
ngx_http_vibe_is_db(ngx_str_t *db)
{
    return ngx_http_vibe_id_match(NGX_HTTP_VIBE_ID_DB, db,
                                  NGX_HTTP_VIBE_DB_MAX);
}


ngx_uint_t
ngx_http_vibe_is_rev(ngx_str_t *rev)
{
    return ngx_http_vibe_id_match(NGX_HTTP_VIBE_ID_REV, rev,
                                  NGX_HTTP_VIBE_REV_MAX);
}


ngx_uint_t
ngx_http_vibe_is_id(ngx_str_t *id, const char **why)
{
    size_t  i;

    if (id->len == 0) {
        *why = "document id must not be empty";
        return 0;
    }

    if (id->len > NGX_HTTP_VIBE_ID_MAX) {
        *why = "document id is too long";
        return 0;
    }

    if (id->data[0] == '_') {
        *why = "only reserved document ids may start with underscore";
        return 0;
    }

    for (i = 0; i < id->len; i++) {

        if (id->data[i] < 0x20 || id->data[i] == 0x7f) {
            *why = "document id must not contain control characters";
            return 0;
        }
    }

    return 1;
}


ngx_uint_t
ngx_http_vibe_is_own(ngx_str_t *name)
{
    size_t  len;

    len = sizeof(NGX_HTTP_VIBE_OWN_PREFIX) - 1;

    return name->len >= len
           && ngx_memcmp(name->data, NGX_HTTP_VIBE_OWN_PREFIX, len) == 0;
}


/*
 * Wider than ngx_http_vibe_is_rev(): what a replication pushed past the
 * module may have any text for a hash and any number for a generation, and
 * CouchDB takes and orders it.
 */

static ngx_int_t
ngx_http_vibe_id_split_rev(ngx_str_t *rev, ngx_http_vibe_id_rev_t *split)
{
    u_char  *p, *last;

    if (rev->len == 0) {
        return NGX_DECLINED;
    }

    p = rev->data;
    last = rev->data + rev->len;

    while (p < last && *p == '0') {
        p++;
    }

    split->generation.data = p;

    while (p < last && *p >= '0' && *p <= '9') {
        p++;
    }

    split->generation.len = p - split->generation.data;

    if (split->generation.len == 0 || last - p < 2 || *p != '-') {
        return NGX_DECLINED;
    }

    split->hash.data = p + 1;
    split->hash.len = last - split->hash.data;

    return NGX_OK;
}


ngx_int_t
ngx_http_vibe_rev_cmp(ngx_str_t *a, ngx_str_t *b)
{
    ngx_int_t               rc, rc_a, rc_b;
    ngx_http_vibe_id_rev_t  rev_a, rev_b;

    rc_a = ngx_http_vibe_id_split_rev(a, &rev_a);
    rc_b = ngx_http_vibe_id_split_rev(b, &rev_b);

    if (rc_a != NGX_OK || rc_b != NGX_OK) {
        return (rc_a == NGX_OK) - (rc_b == NGX_OK);
    }

    /* without leading zeros the longer number is the greater one */

    if (rev_a.generation.len != rev_b.generation.len) {
        return rev_a.generation.len < rev_b.generation.len ? -1 : 1;
    }

    rc = ngx_memcmp(rev_a.generation.data, rev_b.generation.data,
                    rev_a.generation.len);
    if (rc != 0) {
        return rc;
    }

    return ngx_memn2cmp(rev_a.hash.data, rev_b.hash.data,
                        rev_a.hash.len, rev_b.hash.len);
}


ngx_uint_t
ngx_http_vibe_rev_generation(ngx_str_t *rev)
{
    ngx_int_t               n;
    ngx_http_vibe_id_rev_t  split;

    if (ngx_http_vibe_id_split_rev(rev, &split) != NGX_OK) {
        return 0;
    }

    n = ngx_atoi(split.generation.data, split.generation.len);

    return (n == NGX_ERROR) ? NGX_MAX_INT_T_VALUE : (ngx_uint_t) n;
}


ngx_int_t
ngx_http_vibe_db_of_did(ngx_pool_t *pool, ngx_str_t *prefix, ngx_str_t *did,
    ngx_str_t *db)
{
    u_char        *p, *data, md[EVP_MAX_MD_SIZE];
    size_t         len;
    unsigned int   n;

    data = did->data;
    len = did->len;

    if (prefix->len + 2 * len > NGX_HTTP_VIBE_DB_MAX) {

        if (EVP_Digest(data, len, md, &n, EVP_sha256(), NULL) != 1) {
            return NGX_ERROR;
        }

        data = md;
        len = n;
    }

    db->data = ngx_pnalloc(pool, prefix->len + 2 * len);
    if (db->data == NULL) {
        return NGX_ERROR;
    }

    p = ngx_cpymem(db->data, prefix->data, prefix->len);
    p = ngx_hex_dump(p, data, len);
    db->len = p - db->data;

    return NGX_OK;
}


ngx_int_t
ngx_http_vibe_did_of_db(ngx_pool_t *pool, ngx_str_t *prefix, ngx_str_t *db,
    ngx_str_t *did)
{
    size_t      i, len;
    u_char     *hex, *p;
    ngx_int_t   high, low;

    ngx_str_null(did);

    if (db->len <= prefix->len
        || db->len > NGX_HTTP_VIBE_DB_MAX
        || (db->len - prefix->len) % 2 != 0
        || ngx_memcmp(db->data, prefix->data, prefix->len) != 0)
    {
        return NGX_DECLINED;
    }

    hex = db->data + prefix->len;
    len = (db->len - prefix->len) / 2;

    p = ngx_pnalloc(pool, len);
    if (p == NULL) {
        return NGX_ERROR;
    }

    for (i = 0; i < len; i++) {
        high = ngx_http_vibe_id_unhex(hex[2 * i]);
        low = ngx_http_vibe_id_unhex(hex[2 * i + 1]);

        if (high == NGX_ERROR || low == NGX_ERROR) {
            return NGX_DECLINED;
        }

        p[i] = (u_char) (high << 4 | low);
    }

    did->data = p;
    did->len = len;

    if (!ngx_http_vibe_is_did(did)) {
        ngx_str_null(did);
        return NGX_DECLINED;
    }

    return NGX_OK;
}


/*
 * Lower case only, what ngx_http_vibe_db_of_did() writes: names of databases
 * have no capitals.
 */

static ngx_int_t
ngx_http_vibe_id_unhex(u_char c)
{
    if (c >= '0' && c <= '9') {
        return c - '0';
    }

    if (c >= 'a' && c <= 'f') {
        return c - 'a' + 10;
    }

    return NGX_ERROR;
}


ngx_int_t
ngx_http_vibe_global_id(ngx_pool_t *pool, ngx_str_t *did, ngx_str_t *id,
    ngx_str_t *global)
{
    u_char  *p, c;
    size_t   i;

    global->data = ngx_pnalloc(pool, did->len + 1 + 3 * id->len);
    if (global->data == NULL) {
        return NGX_ERROR;
    }

    p = ngx_cpymem(global->data, did->data, did->len);
    *p++ = ':';

    for (i = 0; i < id->len; i++) {
        c = id->data[i];

        if (c == '%') {
            p = ngx_cpymem(p, "%25", 3);

        } else if (c == ':') {
            p = ngx_cpymem(p, "%3A", 3);

        } else {
            *p++ = c;
        }
    }

    global->len = p - global->data;

    return NGX_OK;
}


ngx_int_t
ngx_http_vibe_global_split(ngx_pool_t *pool, ngx_str_t *global,
    ngx_str_t *did, ngx_str_t *id)
{
    u_char  *p, *d, *last;

    last = global->data + global->len;

    for (p = last; p > global->data && p[-1] != ':'; p--) { /* void */ }

    if (p <= global->data + 1 || p == last) {
        return NGX_DECLINED;
    }

    did->data = global->data;
    did->len = p - 1 - global->data;

    if (!ngx_http_vibe_is_did(did)) {
        return NGX_DECLINED;
    }

    d = ngx_pnalloc(pool, last - p);
    if (d == NULL) {
        return NGX_ERROR;
    }

    id->data = d;

    while (p < last) {

        if (*p != '%') {
            *d++ = *p++;
            continue;
        }

        if (last - p < 3) {
            return NGX_DECLINED;
        }

        if (ngx_memcmp(p, "%25", 3) == 0) {
            *d++ = '%';

        } else if (ngx_memcmp(p, "%3A", 3) == 0) {
            *d++ = ':';

        } else {
            return NGX_DECLINED;
        }

        p += 3;
    }

    id->len = d - id->data;

    return NGX_OK;
}


ngx_int_t
ngx_http_vibe_new_id(ngx_pool_t *pool, ngx_str_t *collection, ngx_str_t *id)
{
    u_char      *p, random[NGX_HTTP_VIBE_ID_RANDOM];
    ngx_time_t  *tp;

    if (ngx_http_vibe_random(random, NGX_HTTP_VIBE_ID_RANDOM) != NGX_OK) {
        return NGX_ERROR;
    }

    id->data = ngx_pnalloc(pool, collection->len + 1 + NGX_TIME_T_LEN + 3 + 1
                                 + 2 * NGX_HTTP_VIBE_ID_RANDOM);
    if (id->data == NULL) {
        return NGX_ERROR;
    }

    tp = ngx_timeofday();

    p = ngx_sprintf(id->data, "%V/%T%03M-", collection, tp->sec, tp->msec);
    p = ngx_hex_dump(p, random, NGX_HTTP_VIBE_ID_RANDOM);
    id->len = p - id->data;

    return NGX_OK;
}


ngx_int_t
ngx_http_vibe_escape_segment(ngx_pool_t *pool, ngx_str_t *src, ngx_str_t *dst)
{
    uintptr_t  n;

    n = ngx_escape_uri(NULL, src->data, src->len, NGX_ESCAPE_URI_COMPONENT);

    dst->len = src->len + 2 * n;

    dst->data = ngx_pnalloc(pool, dst->len);
    if (dst->data == NULL) {
        return NGX_ERROR;
    }

    (void) ngx_escape_uri(dst->data, src->data, src->len,
                          NGX_ESCAPE_URI_COMPONENT);

    return NGX_OK;
}


ngx_int_t
ngx_http_vibe_random(u_char *bytes, size_t n)
{
    return (RAND_bytes(bytes, (int) n) == 1) ? NGX_OK : NGX_ERROR;
}


ngx_int_t
ngx_http_vibe_db_path(ngx_pool_t *pool, ngx_str_t *db, const char *suffix,
    ngx_str_t *path)
{
    u_char     *p;
    ngx_str_t   segment;

    ngx_str_null(&segment);

    if (db != NULL
        && ngx_http_vibe_escape_segment(pool, db, &segment) != NGX_OK)
    {
        return NGX_ERROR;
    }

    p = ngx_pnalloc(pool, 1 + segment.len + ngx_strlen(suffix));
    if (p == NULL) {
        return NGX_ERROR;
    }

    path->data = p;

    if (db != NULL) {
        *p++ = '/';
        p = ngx_cpymem(p, segment.data, segment.len);
    }

    p = ngx_cpymem(p, suffix, ngx_strlen(suffix));

    path->len = p - path->data;

    return NGX_OK;
}
