
#include "ngx_http_vibe_pointer.h"
#include "ngx_http_vibe_database.h"
#include "ngx_http_vibe_selector.h"


/* milliseconds: the last one whose year has four digits */
#define NGX_HTTP_VIBE_POINTER_AS_OF_MAX  253402300799999


static ngx_int_t ngx_http_vibe_pointer_run(ngx_http_vibe_json_t *doc,
    ngx_http_vibe_pointer_t *pointer);
static ngx_int_t ngx_http_vibe_pointer_string(ngx_http_vibe_json_t *node,
    ngx_str_t *value);
static ngx_int_t ngx_http_vibe_pointer_uint(ngx_http_vibe_json_t *node,
    ngx_uint_t max, ngx_uint_t *value);
static ngx_int_t ngx_http_vibe_pointer_time(ngx_http_vibe_json_t *node,
    uint64_t *value);
static ngx_int_t ngx_http_vibe_pointer_strings(ngx_pool_t *pool,
    ngx_http_vibe_json_t *node, ngx_uint_t max, ngx_array_t *strings);
static ngx_int_t ngx_http_vibe_pointer_indexes(ngx_pool_t *pool,
    ngx_http_vibe_json_t *node, ngx_array_t *indexes);
static void ngx_http_vibe_pointer_put_run(ngx_http_vibe_json_out_t *out,
    ngx_http_vibe_pointer_t *pointer);


ngx_int_t
ngx_http_vibe_pointer_read(ngx_pool_t *pool, ngx_http_vibe_json_t *doc,
    ngx_http_vibe_pointer_t *pointer)
{
    ngx_int_t              rc;
    ngx_uint_t             format, grace;
    ngx_http_vibe_json_t  *descending;

    ngx_memzero(pointer, sizeof(ngx_http_vibe_pointer_t));

    descending = ngx_http_vibe_json_get(doc, "descending");

    if (ngx_http_vibe_pointer_uint(ngx_http_vibe_json_get(doc, "vibe_v"),
                                   NGX_HTTP_VIBE_FORMAT, &format)
        != NGX_OK
        || format != NGX_HTTP_VIBE_FORMAT
        || descending == NULL
        || (descending->type != NGX_HTTP_VIBE_JSON_TRUE
            && descending->type != NGX_HTTP_VIBE_JSON_FALSE)
        || ngx_http_vibe_pointer_string(ngx_http_vibe_json_get(doc, "_rev"),
                                        &pointer->rev)
           != NGX_OK
        || ngx_http_vibe_pointer_string(
                                    ngx_http_vibe_json_get(doc, "collection"),
                                    &pointer->collection)
           != NGX_OK
        || ngx_http_vibe_pointer_string(
                                    ngx_http_vibe_json_get(doc, "definition"),
                                    &pointer->definition)
           != NGX_OK
        || ngx_http_vibe_pointer_uint(ngx_http_vibe_json_get(doc, "grace"),
                                      NGX_HTTP_VIBE_GRACE_MAX, &grace)
           != NGX_OK
        || ngx_http_vibe_pointer_run(doc, pointer) != NGX_OK)
    {
        return NGX_DECLINED;
    }

    pointer->descending = (descending->type == NGX_HTTP_VIBE_JSON_TRUE);
    pointer->grace = grace;

    rc = ngx_http_vibe_pointer_strings(pool,
                                       ngx_http_vibe_json_get(doc, "fields"),
                                       NGX_HTTP_VIBE_FIELDS_MAX,
                                       &pointer->fields);
    if (rc != NGX_OK) {
        return rc;
    }

    rc = ngx_http_vibe_pointer_strings(pool,
                                       ngx_http_vibe_json_get(doc, "sort"),
                                       NGX_HTTP_VIBE_SORT_MAX,
                                       &pointer->sort);
    if (rc != NGX_OK) {
        return rc;
    }

    return ngx_http_vibe_pointer_indexes(pool,
                                       ngx_http_vibe_json_get(doc, "indexes"),
                                       &pointer->indexes);
}


/* what there is only when a run has ended */

static ngx_int_t
ngx_http_vibe_pointer_run(ngx_http_vibe_json_t *doc,
    ngx_http_vibe_pointer_t *pointer)
{
    ngx_http_vibe_json_t  *db;

    db = ngx_http_vibe_json_get(doc, "db");

    if (db == NULL) {
        return NGX_OK;
    }

    if (ngx_http_vibe_pointer_string(db, &pointer->db) != NGX_OK
        || !ngx_http_vibe_is_db(&pointer->db)
        || ngx_http_vibe_pointer_string(
                                      ngx_http_vibe_json_get(doc, "last_seq"),
                                      &pointer->last_seq)
           != NGX_OK
        || pointer->last_seq.len > NGX_HTTP_VIBE_SEQ_MAX
        || ngx_http_vibe_pointer_uint(ngx_http_vibe_json_get(doc, "run"),
                                      NGX_MAX_INT_T_VALUE, &pointer->run)
           != NGX_OK
        || ngx_http_vibe_pointer_uint(ngx_http_vibe_json_get(doc, "rows"),
                                      NGX_MAX_INT_T_VALUE, &pointer->rows)
           != NGX_OK)
    {
        return NGX_DECLINED;
    }

    return ngx_http_vibe_pointer_time(ngx_http_vibe_json_get(doc, "as_of"),
                                      &pointer->as_of);
}


static ngx_int_t
ngx_http_vibe_pointer_string(ngx_http_vibe_json_t *node, ngx_str_t *value)
{
    if (node == NULL
        || node->type != NGX_HTTP_VIBE_JSON_STRING
        || node->string.len == 0)
    {
        return NGX_DECLINED;
    }

    *value = node->string;

    return NGX_OK;
}


static ngx_int_t
ngx_http_vibe_pointer_uint(ngx_http_vibe_json_t *node, ngx_uint_t max,
    ngx_uint_t *value)
{
    if (node == NULL) {
        return NGX_DECLINED;
    }

    return ngx_http_vibe_json_uint(node, max, value);
}


/* more than ngx_uint_t holds where that has 32 bits */

static ngx_int_t
ngx_http_vibe_pointer_time(ngx_http_vibe_json_t *node, uint64_t *value)
{
    off_t  n;

    if (node == NULL || node->type != NGX_HTTP_VIBE_JSON_NUMBER) {
        return NGX_DECLINED;
    }

    n = ngx_atoof(node->raw.data, node->raw.len);

    if (n == (off_t) NGX_ERROR || n > NGX_HTTP_VIBE_POINTER_AS_OF_MAX) {
        return NGX_DECLINED;
    }

    *value = n;

    return NGX_OK;
}


static ngx_int_t
ngx_http_vibe_pointer_strings(ngx_pool_t *pool, ngx_http_vibe_json_t *node,
    ngx_uint_t max, ngx_array_t *strings)
{
    ngx_str_t             *s;
    ngx_http_vibe_json_t  *n;

    if (node == NULL || node->type != NGX_HTTP_VIBE_JSON_ARRAY
        || node->n > max)
    {
        return NGX_DECLINED;
    }

    if (ngx_array_init(strings, pool, ngx_max(node->n, 1), sizeof(ngx_str_t))
        != NGX_OK)
    {
        return NGX_ERROR;
    }

    for (n = node->child; n; n = n->next) {

        s = ngx_array_push(strings);
        if (s == NULL) {
            return NGX_ERROR;
        }

        if (ngx_http_vibe_pointer_string(n, s) != NGX_OK) {
            return NGX_DECLINED;
        }
    }

    return NGX_OK;
}


static ngx_int_t
ngx_http_vibe_pointer_indexes(ngx_pool_t *pool, ngx_http_vibe_json_t *node,
    ngx_array_t *indexes)
{
    ngx_int_t              rc;
    ngx_array_t           *index;
    ngx_http_vibe_json_t  *n;

    if (node == NULL || node->type != NGX_HTTP_VIBE_JSON_ARRAY) {
        return NGX_DECLINED;
    }

    if (ngx_array_init(indexes, pool, ngx_max(node->n, 1),
                       sizeof(ngx_array_t))
        != NGX_OK)
    {
        return NGX_ERROR;
    }

    for (n = node->child; n; n = n->next) {

        index = ngx_array_push(indexes);
        if (index == NULL) {
            return NGX_ERROR;
        }

        rc = ngx_http_vibe_pointer_strings(pool, n, NGX_HTTP_VIBE_SORT_MAX,
                                           index);
        if (rc != NGX_OK) {
            return rc;
        }
    }

    return NGX_OK;
}


void
ngx_http_vibe_pointer_put(ngx_http_vibe_json_out_t *out, ngx_str_t *name,
    ngx_http_vibe_pointer_t *pointer)
{
    ngx_uint_t    i;
    ngx_array_t  *index;

    /* of a name that the registry has checked nothing is to be escaped */

    ngx_http_vibe_json_put_text(out,
                                "{\"_id\":\"" NGX_HTTP_VIBE_POINTER_PREFIX);
    ngx_http_vibe_json_put_str(out, name);
    ngx_http_vibe_json_put_text(out, "\"");

    if (pointer->rev.len) {
        ngx_http_vibe_json_put_text(out, ",\"_rev\":");
        ngx_http_vibe_json_put_string(out, &pointer->rev);
    }

    ngx_http_vibe_json_put_text(out, ",\"vibe_v\":");
    ngx_http_vibe_json_put_uint(out, NGX_HTTP_VIBE_FORMAT);
    ngx_http_vibe_json_put_text(out, ",\"collection\":");
    ngx_http_vibe_json_put_string(out, &pointer->collection);
    ngx_http_vibe_json_put_text(out, ",\"definition\":");
    ngx_http_vibe_json_put_string(out, &pointer->definition);
    ngx_http_vibe_json_put_text(out, ",\"fields\":");
    ngx_http_vibe_json_put_strings(out, &pointer->fields);
    ngx_http_vibe_json_put_text(out, ",\"sort\":");
    ngx_http_vibe_json_put_strings(out, &pointer->sort);

    if (pointer->descending) {
        ngx_http_vibe_json_put_text(out, ",\"descending\":true");

    } else {
        ngx_http_vibe_json_put_text(out, ",\"descending\":false");
    }

    ngx_http_vibe_json_put_text(out, ",\"indexes\":[");

    index = pointer->indexes.elts;

    for (i = 0; i < pointer->indexes.nelts; i++) {
        if (i > 0) {
            ngx_http_vibe_json_put_text(out, ",");
        }

        ngx_http_vibe_json_put_strings(out, &index[i]);
    }

    ngx_http_vibe_json_put_text(out, "],\"grace\":");
    ngx_http_vibe_json_put_uint(out, pointer->grace);

    if (pointer->db.len) {
        ngx_http_vibe_pointer_put_run(out, pointer);
    }

    ngx_http_vibe_json_put_text(out, "}");
}


static void
ngx_http_vibe_pointer_put_run(ngx_http_vibe_json_out_t *out,
    ngx_http_vibe_pointer_t *pointer)
{
    u_char  as_of[NGX_INT64_LEN];

    ngx_http_vibe_json_put_text(out, ",\"db\":");
    ngx_http_vibe_json_put_string(out, &pointer->db);
    ngx_http_vibe_json_put_text(out, ",\"run\":");
    ngx_http_vibe_json_put_uint(out, pointer->run);
    ngx_http_vibe_json_put_text(out, ",\"as_of\":");
    ngx_http_vibe_json_put(out, as_of,
                           ngx_sprintf(as_of, "%uL", pointer->as_of) - as_of);
    ngx_http_vibe_json_put_text(out, ",\"last_seq\":");
    ngx_http_vibe_json_put_string(out, &pointer->last_seq);
    ngx_http_vibe_json_put_text(out, ",\"rows\":");
    ngx_http_vibe_json_put_uint(out, pointer->rows);
}


u_char *
ngx_http_vibe_pointer_path(ngx_pool_t *pool, ngx_str_t *name)
{
    u_char     *path;
    ngx_str_t   prefix, id, segment;

    ngx_str_set(&prefix, NGX_HTTP_VIBE_POINTER_PREFIX);

    id.len = prefix.len + name->len;

    id.data = ngx_pnalloc(pool, id.len);
    if (id.data == NULL) {
        return NULL;
    }

    ngx_sprintf(id.data, "%V%V", &prefix, name);

    if (ngx_http_vibe_escape_segment(pool, &id, &segment) != NGX_OK) {
        return NULL;
    }

    path = ngx_pnalloc(pool, segment.len + 2);
    if (path == NULL) {
        return NULL;
    }

    ngx_sprintf(path, "/%V%Z", &segment);

    return path;
}
