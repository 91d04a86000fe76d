
#include "ngx_http_vibe_expand.h"
#include "ngx_http_vibe_answer.h"
#include "ngx_http_vibe_global.h"


static ngx_int_t ngx_http_vibe_expand_add_one(ngx_http_request_t *r,
    ngx_http_vibe_expand_t *expand, ngx_http_vibe_json_t *node);
static ngx_int_t ngx_http_vibe_expand_add_ref(ngx_http_request_t *r,
    ngx_http_vibe_expand_t *expand, ngx_http_vibe_json_t *node,
    ngx_str_t *did, ngx_str_t *id);
static ngx_http_vibe_leaf_t *ngx_http_vibe_expand_row(
    ngx_http_vibe_lookup_t *lookup, ngx_str_t *id);
static ngx_int_t ngx_http_vibe_expand_global(ngx_http_request_t *r,
    void *data, ngx_http_vibe_call_t *failed);
static ngx_int_t ngx_http_vibe_expand_readable(ngx_pool_t *pool,
    ngx_http_vibe_expand_t *expand, ngx_http_vibe_ref_t *ref);
static ngx_int_t ngx_http_vibe_expand_put_one(ngx_http_vibe_expand_t *expand,
    ngx_http_vibe_json_out_t *out, ngx_http_vibe_json_t *value);
static ngx_int_t ngx_http_vibe_expand_put_ref(ngx_http_vibe_expand_t *expand,
    ngx_http_vibe_json_out_t *out, ngx_http_vibe_ref_t *ref);
static ngx_int_t ngx_http_vibe_expand_answer(ngx_http_request_t *r,
    void *data, ngx_http_vibe_call_t *failed);


ngx_http_vibe_expand_t *
ngx_http_vibe_expand_create(ngx_http_request_t *r,
    ngx_http_vibe_caller_t *caller, ngx_uint_t n)
{
    ngx_http_vibe_expand_t     *expand;
    ngx_http_vibe_main_conf_t  *vmcf;

    expand = ngx_pcalloc(r->pool, sizeof(ngx_http_vibe_expand_t));
    if (expand == NULL) {
        return NULL;
    }

    vmcf = ngx_http_get_module_main_conf(r, ngx_http_vibe_module);

    expand->did = caller->did;
    expand->max_size = vmcf->couch.max_response;

    expand->own = ngx_http_vibe_lookup_create(r->pool, vmcf, &caller->db,
                                              n);
    if (expand->own == NULL) {
        return NULL;
    }

    expand->global = ngx_http_vibe_lookup_create(r->pool, vmcf,
                                                 &ngx_http_vibe_global, n);
    if (expand->global == NULL) {
        return NULL;
    }

    if (ngx_array_init(&expand->refs, r->pool, n, sizeof(ngx_http_vibe_ref_t))
        != NGX_OK)
    {
        return NULL;
    }

    return expand;
}


ngx_uint_t
ngx_http_vibe_expand_count(ngx_http_vibe_json_t *value)
{
    return (value->type == NGX_HTTP_VIBE_JSON_ARRAY) ? value->n : 1;
}


ngx_int_t
ngx_http_vibe_expand_add(ngx_http_request_t *r,
    ngx_http_vibe_expand_t *expand, ngx_http_vibe_json_t *value)
{
    ngx_int_t              rc;
    ngx_http_vibe_json_t  *node;

    if (value->type != NGX_HTTP_VIBE_JSON_ARRAY) {
        return ngx_http_vibe_expand_add_one(r, expand, value);
    }

    for (node = value->child; node; node = node->next) {
        rc = ngx_http_vibe_expand_add_one(r, expand, node);
        if (rc != NGX_OK) {
            return rc;
        }
    }

    return NGX_OK;
}


static ngx_int_t
ngx_http_vibe_expand_add_one(ngx_http_request_t *r,
    ngx_http_vibe_expand_t *expand, ngx_http_vibe_json_t *node)
{
    const char            *why;
    ngx_http_vibe_json_t  *did, *ref;

    did = ngx_http_vibe_json_get(node, "did");
    ref = ngx_http_vibe_json_get(node, "ref");

    if (did == NULL || did->type != NGX_HTTP_VIBE_JSON_STRING
        || ref == NULL || ref->type != NGX_HTTP_VIBE_JSON_STRING
        || !ngx_http_vibe_is_did(&did->string)
        || !ngx_http_vibe_is_id(&ref->string, &why))
    {
        return NGX_OK;
    }

    return ngx_http_vibe_expand_add_ref(r, expand, node, &did->string,
                                        &ref->string);
}


static ngx_int_t
ngx_http_vibe_expand_add_ref(ngx_http_request_t *r,
    ngx_http_vibe_expand_t *expand, ngx_http_vibe_json_t *node,
    ngx_str_t *did, ngx_str_t *id)
{
    ngx_str_t             global;
    ngx_http_vibe_ref_t  *ref;

    /* the rows of a look-up must stay where they are */

    if (expand->refs.nelts == expand->refs.nalloc) {
        return NGX_DECLINED;
    }

    ref = ngx_array_push(&expand->refs);
    if (ref == NULL) {
        return NGX_ERROR;
    }

    ref->node = node;
    ref->own = ngx_http_vibe_same(did, &expand->did);

    if (ref->own) {
        ref->row = ngx_http_vibe_expand_row(expand->own, id);

    } else {
        if (ngx_http_vibe_global_id(r->pool, did, id, &global) != NGX_OK) {
            return NGX_ERROR;
        }

        ref->row = ngx_http_vibe_expand_row(expand->global, &global);
    }

    return ref->row ? NGX_OK : NGX_ERROR;
}


/* many documents may refer to one: it is asked for once */

static ngx_http_vibe_leaf_t *
ngx_http_vibe_expand_row(ngx_http_vibe_lookup_t *lookup, ngx_str_t *id)
{
    ngx_uint_t                   i;
    ngx_http_vibe_leaf_t  *row;

    row = lookup->rows.elts;

    for (i = 0; i < lookup->rows.nelts; i++) {
        if (ngx_http_vibe_same(&row[i].id, id)) {
            return &row[i];
        }
    }

    return ngx_http_vibe_lookup_add(lookup, id);
}


ngx_int_t
ngx_http_vibe_expand(ngx_http_request_t *r, ngx_http_vibe_expand_t *expand,
    ngx_http_vibe_next_pt next, void *data)
{
    expand->next = next;
    expand->data = data;

    return ngx_http_vibe_lookup(r, expand->own, ngx_http_vibe_expand_global,
                                expand);
}


static ngx_int_t
ngx_http_vibe_expand_global(ngx_http_request_t *r, void *data,
    ngx_http_vibe_call_t *failed)
{
    ngx_http_vibe_expand_t *expand = data;

    if (failed != NULL) {
        return expand->next(r, expand->data, failed);
    }

    return ngx_http_vibe_lookup(r, expand->global, expand->next,
                                expand->data);
}


/* NGX_OK: there it is; NGX_DECLINED: not for this caller */

static ngx_int_t
ngx_http_vibe_expand_readable(ngx_pool_t *pool,
    ngx_http_vibe_expand_t *expand, ngx_http_vibe_ref_t *ref)
{
    ngx_http_vibe_json_t        *owner;
    ngx_http_vibe_access_t       access;
    ngx_http_vibe_leaf_t  *row;

    row = ref->row;

    if (row->doc == NULL || row->deleted) {
        return NGX_DECLINED;
    }

    if (ref->own) {
        return NGX_OK;
    }

    owner = ngx_http_vibe_json_get(row->doc, "vibe_owner");

    if (owner == NULL || owner->type != NGX_HTTP_VIBE_JSON_STRING) {
        return NGX_DECLINED;
    }

    if (ngx_http_vibe_acl_of_copy(pool, row->doc, &access) != NGX_OK) {
        return NGX_ERROR;
    }

    return ngx_http_vibe_acl_may_read(&access, &owner->string, &expand->did)
           ? NGX_OK : NGX_DECLINED;
}


ngx_int_t
ngx_http_vibe_expand_put(ngx_http_vibe_expand_t *expand,
    ngx_http_vibe_json_out_t *out, ngx_http_vibe_json_t *value)
{
    ngx_http_vibe_json_t  *node;

    if (value->type != NGX_HTTP_VIBE_JSON_ARRAY) {
        return ngx_http_vibe_expand_put_one(expand, out, value);
    }

    ngx_http_vibe_json_put_text(out, "[");

    for (node = value->child; node; node = node->next) {

        if (node != value->child) {
            ngx_http_vibe_json_put_text(out, ",");
        }

        if (ngx_http_vibe_expand_put_one(expand, out, node) != NGX_OK) {
            return NGX_ERROR;
        }
    }

    ngx_http_vibe_json_put_text(out, "]");

    return NGX_OK;
}


static ngx_int_t
ngx_http_vibe_expand_put_one(ngx_http_vibe_expand_t *expand,
    ngx_http_vibe_json_out_t *out, ngx_http_vibe_json_t *value)
{
    ngx_int_t             rc;
    ngx_http_vibe_ref_t  *ref;

    ref = expand->refs.elts;

    if (expand->shown < expand->refs.nelts
        && ref[expand->shown].node == value)
    {
        rc = ngx_http_vibe_expand_put_ref(expand, out,
                                          &ref[expand->shown++]);
        if (rc != NGX_DECLINED) {
            return rc;
        }
    }

    ngx_http_vibe_json_put_str(out, &value->raw);

    return NGX_OK;
}


static ngx_int_t
ngx_http_vibe_expand_put_ref(ngx_http_vibe_expand_t *expand,
    ngx_http_vibe_json_out_t *out, ngx_http_vibe_ref_t *ref)
{
    ngx_int_t  rc;

    rc = ngx_http_vibe_expand_readable(out->pool, expand, ref);

    if (rc != NGX_OK) {
        return rc;
    }

    /* one document may be referred to many times */

    if (ref->row->doc->raw.len > expand->max_size - expand->size) {
        return NGX_DECLINED;
    }

    expand->size += ref->row->doc->raw.len;

    if (ref->own) {
        ngx_http_vibe_json_put_str(out, &ref->row->doc->raw);

    } else {
        ngx_http_vibe_copy_show(out, ref->row->doc, 1);
    }

    return NGX_OK;
}


ngx_int_t
ngx_http_vibe_expand_one(ngx_http_request_t *r, ngx_http_vibe_ctx_t *ctx)
{
    ngx_str_t                did, id;
    const char              *why;
    ngx_http_vibe_expand_t  *expand;

    if (ngx_http_vibe_arg(r, "did", &did) != NGX_OK
        || ngx_http_vibe_arg(r, "ref", &id) != NGX_OK)
    {
        return NGX_ERROR;
    }

    if (!ngx_http_vibe_is_did(&did)) {
        return ngx_http_vibe_error_text(r, NGX_HTTP_BAD_REQUEST,
                                        "The argument did is not a DID.");
    }

    if (!ngx_http_vibe_json_is_utf8(&id)) {
        return ngx_http_vibe_error_text(r, NGX_HTTP_BAD_REQUEST,
                                        "The argument ref is not UTF-8.");
    }

    if (!ngx_http_vibe_is_id(&id, &why)) {
        return ngx_http_vibe_error_text(r, NGX_HTTP_BAD_REQUEST, why);
    }

    expand = ngx_http_vibe_expand_create(r, &ctx->caller, 1);
    if (expand == NULL) {
        return NGX_ERROR;
    }

    if (ngx_http_vibe_expand_add_ref(r, expand, NULL, &did, &id) != NGX_OK) {
        return NGX_ERROR;
    }

    return ngx_http_vibe_expand(r, expand, ngx_http_vibe_expand_answer,
                                expand);
}


static ngx_int_t
ngx_http_vibe_expand_answer(ngx_http_request_t *r, void *data,
    ngx_http_vibe_call_t *failed)
{
    ngx_http_vibe_expand_t *expand = data;

    ngx_int_t                 rc;
    ngx_http_vibe_json_out_t  out;

    if (failed != NULL) {
        return ngx_http_vibe_couch_failed(r, failed);
    }

    ngx_http_vibe_json_out_init(&out, r->pool);

    rc = ngx_http_vibe_expand_put_ref(expand, &out, expand->refs.elts);

    if (rc == NGX_DECLINED) {
        return ngx_http_vibe_error_text(r, NGX_HTTP_NOT_FOUND, "missing");
    }

    if (rc != NGX_OK) {
        return NGX_ERROR;
    }

    ngx_http_vibe_json_put_text(&out, "\n");

    if (ngx_http_vibe_not_shared(r) != NGX_OK) {
        return NGX_ERROR;
    }

    return ngx_http_vibe_answer(r, NGX_HTTP_OK, &out);
}
