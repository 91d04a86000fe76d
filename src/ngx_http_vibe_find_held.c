
#include "ngx_http_vibe_find.h"
#include "ngx_http_vibe_selector.h"


/* a dot that splits a name, and its end: no bytes */
#define NGX_HTTP_VIBE_FIND_DOT  256
#define NGX_HTTP_VIBE_FIND_END  257


typedef struct {
    ngx_pool_t                *pool;
    ngx_array_t               *fields;
    ngx_array_t               *sort;
    ngx_str_t                 *reason;
} ngx_http_vibe_find_held_t;


static ngx_int_t ngx_http_vibe_find_held_object(ngx_http_vibe_find_held_t *h,
    ngx_str_t *path, ngx_http_vibe_json_t *object);
static ngx_int_t ngx_http_vibe_find_held_member(ngx_http_vibe_find_held_t *h,
    ngx_str_t *path, ngx_http_vibe_json_t *member);
static ngx_int_t ngx_http_vibe_find_held_operator(
    ngx_http_vibe_find_held_t *h, ngx_str_t *path,
    ngx_http_vibe_json_t *member);
static ngx_int_t ngx_http_vibe_find_held_names(ngx_http_vibe_find_held_t *h,
    ngx_array_t *names);
static ngx_int_t ngx_http_vibe_find_held_name(ngx_http_vibe_find_held_t *h,
    ngx_str_t *path);
static ngx_uint_t ngx_http_vibe_find_below_any(ngx_array_t *fields,
    ngx_str_t *path);
static ngx_uint_t ngx_http_vibe_find_below(ngx_str_t *field, ngx_str_t *path);
static ngx_uint_t ngx_http_vibe_find_step(ngx_str_t *name, size_t *i);


ngx_int_t
ngx_http_vibe_find_held(ngx_pool_t *pool, ngx_http_vibe_find_t *find,
    ngx_array_t *fields, ngx_array_t *sort, ngx_str_t *reason)
{
    ngx_int_t                   rc;
    ngx_str_t                   root;
    ngx_http_vibe_json_t       *node;
    ngx_http_vibe_find_held_t   h;

    if (fields->nelts == 0) {
        return NGX_OK;
    }

    h.pool = pool;
    h.fields = fields;
    h.sort = sort;
    h.reason = reason;

    ngx_str_null(&root);

    for (node = find->body->child; node; node = node->next) {

        if (!ngx_http_vibe_find_is_condition(node)) {
            continue;
        }

        rc = ngx_http_vibe_find_held_member(&h, &root, node);
        if (rc != NGX_OK) {
            return rc;
        }
    }

    if (find->selector != NULL) {
        rc = ngx_http_vibe_find_held_object(&h, &root, find->selector);
        if (rc != NGX_OK) {
            return rc;
        }
    }

    if (find->sort != NULL) {
        rc = ngx_http_vibe_find_held_names(&h, find->sort);
        if (rc != NGX_OK) {
            return rc;
        }
    }

    if (find->fields != NULL) {
        rc = ngx_http_vibe_find_held_names(&h, find->fields);
        if (rc != NGX_OK) {
            return rc;
        }
    }

    return ngx_http_vibe_find_held_names(&h, &find->expand);
}


/* "path" is the field that the conditions of the object are on, or empty */

static ngx_int_t
ngx_http_vibe_find_held_object(ngx_http_vibe_find_held_t *h, ngx_str_t *path,
    ngx_http_vibe_json_t *object)
{
    ngx_int_t              rc;
    ngx_http_vibe_json_t  *member;

    for (member = object->child; member; member = member->next) {

        rc = ngx_http_vibe_find_held_member(h, path, member);
        if (rc != NGX_OK) {
            return rc;
        }
    }

    return NGX_OK;
}


static ngx_int_t
ngx_http_vibe_find_held_member(ngx_http_vibe_find_held_t *h, ngx_str_t *path,
    ngx_http_vibe_json_t *member)
{
    ngx_str_t  name;

    if (member->name.len && member->name.data[0] == '$') {
        return ngx_http_vibe_find_held_operator(h, path, member);
    }

    name = member->name;

    if (path->len) {

        /* Mango joins the texts, too, and splits them then */

        name.len = path->len + 1 + member->name.len;

        name.data = ngx_pnalloc(h->pool, name.len);
        if (name.data == NULL) {
            return NGX_ERROR;
        }

        ngx_sprintf(name.data, "%V.%V", path, &member->name);
    }

    if (member->type == NGX_HTTP_VIBE_JSON_OBJECT && member->n) {
        return ngx_http_vibe_find_held_object(h, &name, member);
    }

    return ngx_http_vibe_find_held_name(h, &name);
}


/* what stands below $elemMatch and its kin is relative to the field's value */

static ngx_int_t
ngx_http_vibe_find_held_operator(ngx_http_vibe_find_held_t *h,
    ngx_str_t *path, ngx_http_vibe_json_t *member)
{
    ngx_int_t              rc;
    ngx_http_vibe_json_t  *node;

    static ngx_str_t  and = ngx_string("$and");
    static ngx_str_t  or = ngx_string("$or");
    static ngx_str_t  nor = ngx_string("$nor");
    static ngx_str_t  not = ngx_string("$not");

    if (ngx_http_vibe_same(&member->name, &not)) {
        return ngx_http_vibe_find_held_object(h, path, member);
    }

    if (!ngx_http_vibe_same(&member->name, &and)
        && !ngx_http_vibe_same(&member->name, &or)
        && !ngx_http_vibe_same(&member->name, &nor))
    {
        return ngx_http_vibe_find_held_name(h, path);
    }

    for (node = member->child; node; node = node->next) {

        rc = ngx_http_vibe_find_held_object(h, path, node);
        if (rc != NGX_OK) {
            return rc;
        }
    }

    return NGX_OK;
}


static ngx_int_t
ngx_http_vibe_find_held_names(ngx_http_vibe_find_held_t *h,
    ngx_array_t *names)
{
    ngx_int_t    rc;
    ngx_str_t   *name;
    ngx_uint_t   i;

    name = names->elts;

    for (i = 0; i < names->nelts; i++) {

        rc = ngx_http_vibe_find_held_name(h, &name[i]);
        if (rc != NGX_OK) {
            return rc;
        }
    }

    return NGX_OK;
}


static ngx_int_t
ngx_http_vibe_find_held_name(ngx_http_vibe_find_held_t *h, ngx_str_t *path)
{
    static ngx_str_t  collection = ngx_string("collection");

    if (ngx_http_vibe_find_below(&collection, path)
        || ngx_http_vibe_find_below_any(h->fields, path)
        || ngx_http_vibe_find_below_any(h->sort, path))
    {
        return NGX_OK;
    }

    if (ngx_http_vibe_selector_reason(h->pool, "the feed does not hold field: ",
                                      path, h->reason)
        != NGX_OK)
    {
        return NGX_ERROR;
    }

    return NGX_DECLINED;
}


static ngx_uint_t
ngx_http_vibe_find_below_any(ngx_array_t *fields, ngx_str_t *path)
{
    ngx_str_t   *field;
    ngx_uint_t   i;

    field = fields->elts;

    for (i = 0; i < fields->nelts; i++) {
        if (ngx_http_vibe_find_below(&field[i], path)) {
            return 1;
        }
    }

    return 0;
}


/* 1 if the path is the field, or leads on from it */

static ngx_uint_t
ngx_http_vibe_find_below(ngx_str_t *field, ngx_str_t *path)
{
    size_t      i, k;
    ngx_uint_t  a, b;

    i = 0;
    k = 0;

    for ( ;; ) {
        a = ngx_http_vibe_find_step(field, &i);
        b = ngx_http_vibe_find_step(path, &k);

        if (a == NGX_HTTP_VIBE_FIND_END) {
            return b == NGX_HTTP_VIBE_FIND_END || b == NGX_HTTP_VIBE_FIND_DOT;
        }

        if (a != b) {
            return 0;
        }
    }
}


/*
 * The next byte of a name as Mango reads it: split at the dots without a
 * backslash before them, all backslashes dropped.
 */

static ngx_uint_t
ngx_http_vibe_find_step(ngx_str_t *name, size_t *i)
{
    u_char  ch;

    while (*i < name->len) {

        ch = name->data[(*i)++];

        if (ch == '.' && (*i == 1 || name->data[*i - 2] != '\\')) {
            return NGX_HTTP_VIBE_FIND_DOT;
        }

        if (ch != '\\') {
            return ch;
        }
    }

    return NGX_HTTP_VIBE_FIND_END;
}
