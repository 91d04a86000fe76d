
#include "ngx_http_vibe_copy.h"
#include "ngx_http_vibe_id.h"


static void ngx_http_vibe_copy_put_source(ngx_http_vibe_json_out_t *out,
    ngx_http_vibe_copy_t *copy);
static void ngx_http_vibe_copy_put_member(ngx_http_vibe_json_out_t *out,
    ngx_http_vibe_json_t *member);


void
ngx_http_vibe_copy_put(ngx_http_vibe_json_out_t *out,
    ngx_http_vibe_copy_t *copy)
{
    ngx_http_vibe_json_put_text(out, "{\"_id\":");
    ngx_http_vibe_json_put_string(out, &copy->id);

    if (copy->rev.len) {
        ngx_http_vibe_json_put_text(out, ",\"_rev\":");
        ngx_http_vibe_json_put_string(out, &copy->rev);
    }

    ngx_http_vibe_json_put_text(out, ",\"vibe_v\":");
    ngx_http_vibe_json_put_uint(out, NGX_HTTP_VIBE_FORMAT);
    ngx_http_vibe_json_put_text(out, ",\"vibe_db\":");
    ngx_http_vibe_json_put_string(out, &copy->db);
    ngx_http_vibe_past_put(out, &copy->past);

    if (copy->stub) {
        ngx_http_vibe_json_put_text(out, ",\"vibe_access\":\"none\"}");
        return;
    }

    if (copy->access->kind == NGX_HTTP_VIBE_PRIVATE) {
        ngx_http_vibe_json_put_text(out, ",\"_deleted\":true");

    } else {
        ngx_http_vibe_json_put_str(out, &copy->members);
        ngx_http_vibe_acl_put(out, copy->access);
    }

    ngx_http_vibe_copy_put_source(out, copy);

    ngx_http_vibe_json_put_text(out, "}");
}


/*
 * Members that came past the module may bear its prefix: they would be taken
 * for its own, so they stay behind, as do CouchDB's.
 */

ngx_int_t
ngx_http_vibe_copy_members(ngx_pool_t *pool, ngx_http_vibe_json_t *doc,
    ngx_str_t *members)
{
    ngx_http_vibe_json_t      *m;
    ngx_http_vibe_json_out_t   out;

    static ngx_str_t  collection = ngx_string("collection");

    ngx_http_vibe_json_out_init(&out, pool);

    for (m = doc->child; m; m = m->next) {

        if ((m->name.len && m->name.data[0] == '_')
            || ngx_http_vibe_is_own(&m->name)
            || ngx_http_vibe_same(&m->name, &collection))
        {
            continue;
        }

        ngx_http_vibe_json_put_text(&out, ",");
        ngx_http_vibe_copy_put_member(&out, m);
    }

    return ngx_http_vibe_json_out_str(&out, members);
}


static void
ngx_http_vibe_copy_put_source(ngx_http_vibe_json_out_t *out,
    ngx_http_vibe_copy_t *copy)
{
    if (copy->collection.len) {
        ngx_http_vibe_json_put_text(out, ",\"collection\":");
        ngx_http_vibe_json_put_string(out, &copy->collection);
    }

    ngx_http_vibe_json_put_text(out, ",\"vibe_rev\":");
    ngx_http_vibe_json_put_string(out, &copy->source);
    ngx_http_vibe_json_put_text(out, ",\"vibe_owner\":");
    ngx_http_vibe_json_put_string(out, &copy->owner);
    ngx_http_vibe_json_put_text(out, ",\"vibe_acl\":");
    ngx_http_vibe_json_put_uint(out, NGX_HTTP_VIBE_ACL_VERSION);
}


/* a member as it came: from its name's quote to its value's end */

static void
ngx_http_vibe_copy_put_member(ngx_http_vibe_json_out_t *out,
    ngx_http_vibe_json_t *member)
{
    if (member->replaced.len) {
        ngx_http_vibe_json_put(out, member->start,
                               member->raw.data - member->start);
        ngx_http_vibe_json_put_str(out, &member->replaced);
        return;
    }

    ngx_http_vibe_json_put(out, member->start,
                           member->raw.data + member->raw.len
                           - member->start);
}


void
ngx_http_vibe_copy_show(ngx_http_vibe_json_out_t *out,
    ngx_http_vibe_json_t *doc, ngx_uint_t global)
{
    ngx_str_t              rev;
    ngx_uint_t             n, is_rev;
    ngx_http_vibe_json_t  *m;

    static ngx_str_t  name = ngx_string("_rev");

    ngx_http_vibe_copy_source(doc, &rev);

    ngx_http_vibe_json_put_text(out, "{");

    n = 0;

    for (m = doc->child; m; m = m->next) {

        is_rev = (global && ngx_http_vibe_same(&m->name, &name));

        if (global
            && (ngx_http_vibe_is_own(&m->name) || (is_rev && rev.len == 0)))
        {
            continue;
        }

        if (n++) {
            ngx_http_vibe_json_put_text(out, ",");
        }

        if (is_rev) {
            ngx_http_vibe_json_put_text(out, "\"_rev\":");
            ngx_http_vibe_json_put_string(out, &rev);

        } else {
            ngx_http_vibe_copy_put_member(out, m);
        }
    }

    ngx_http_vibe_json_put_text(out, "}");
}


void
ngx_http_vibe_copy_source(ngx_http_vibe_json_t *copy, ngx_str_t *rev)
{
    ngx_http_vibe_json_t  *m;

    m = ngx_http_vibe_json_get(copy, "vibe_rev");

    if (m == NULL || m->type != NGX_HTTP_VIBE_JSON_STRING) {
        ngx_str_null(rev);
        return;
    }

    *rev = m->string;
}


ngx_uint_t
ngx_http_vibe_copy_newer_format(ngx_http_vibe_json_t *copy)
{
    ngx_uint_t             n;
    ngx_http_vibe_json_t  *m;

    m = ngx_http_vibe_json_get(copy, "vibe_v");

    return m != NULL
           && ngx_http_vibe_json_uint(m, NGX_MAX_INT_T_VALUE, &n) == NGX_OK
           && n > NGX_HTTP_VIBE_FORMAT;
}


ngx_uint_t
ngx_http_vibe_copy_current(ngx_http_vibe_json_t *copy)
{
    ngx_uint_t             n;
    ngx_http_vibe_json_t  *m;

    m = ngx_http_vibe_json_get(copy, "vibe_acl");

    return m != NULL
           && ngx_http_vibe_json_uint(m, NGX_HTTP_VIBE_ACL_VERSION, &n)
              == NGX_OK
           && n == NGX_HTTP_VIBE_ACL_VERSION;
}


ngx_int_t
ngx_http_vibe_copy_collection(ngx_http_vibe_json_t *doc, ngx_str_t *id,
    ngx_str_t *collection)
{
    u_char                *p;
    ngx_http_vibe_json_t  *m;

    m = ngx_http_vibe_json_get(doc, "collection");

    if (m != NULL) {
        if (m->type != NGX_HTTP_VIBE_JSON_STRING
            || !ngx_http_vibe_is_collection(&m->string))
        {
            return NGX_DECLINED;
        }

        *collection = m->string;

        return NGX_OK;
    }

    p = ngx_strlchr(id->data, id->data + id->len, '/');

    if (p == NULL) {
        return NGX_DECLINED;
    }

    collection->data = id->data;
    collection->len = p - id->data;

    return ngx_http_vibe_is_collection(collection) ? NGX_OK : NGX_DECLINED;
}
