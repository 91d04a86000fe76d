
#include "ngx_http_vibe_document.h"
#include "ngx_http_vibe_id.h"


/* the members that are read here; a document that repeats one is refused */

typedef enum {
    NGX_HTTP_VIBE_MEMBER_ID = 0,
    NGX_HTTP_VIBE_MEMBER_REV,
    NGX_HTTP_VIBE_MEMBER_DELETED,
    NGX_HTTP_VIBE_MEMBER_ATTACHMENTS,
    NGX_HTTP_VIBE_MEMBER_ACL,
    NGX_HTTP_VIBE_MEMBER_COLLECTION,
    NGX_HTTP_VIBE_MEMBERS,
    NGX_HTTP_VIBE_MEMBER_OTHER = NGX_HTTP_VIBE_MEMBERS
} ngx_http_vibe_member_e;


static ngx_http_vibe_member_e ngx_http_vibe_document_member(ngx_str_t *name);
static const char *ngx_http_vibe_document_set(
    ngx_http_vibe_document_t *document, ngx_http_vibe_member_e member,
    ngx_http_vibe_json_t *node);


static ngx_str_t  ngx_http_vibe_members[] = {
    ngx_string("_id"),
    ngx_string("_rev"),
    ngx_string("_deleted"),
    ngx_string("_attachments"),
    ngx_string("acl"),
    ngx_string("collection")
};


ngx_int_t
ngx_http_vibe_document_check(ngx_pool_t *pool, ngx_str_t *collection,
    ngx_http_vibe_json_t *json, ngx_http_vibe_document_t *document,
    const char **reason)
{
    ngx_uint_t               seen[NGX_HTTP_VIBE_MEMBERS];
    ngx_http_vibe_json_t    *m;
    ngx_http_vibe_member_e   member;

    ngx_memzero(document, sizeof(ngx_http_vibe_document_t));
    ngx_memzero(seen, sizeof(seen));

    document->json = json;

    if (json->type != NGX_HTTP_VIBE_JSON_OBJECT) {
        *reason = "A document must be a JSON object.";
        return NGX_DECLINED;
    }

    if (json->n > NGX_HTTP_VIBE_MEMBERS_MAX) {
        *reason = "The document has too many members.";
        return NGX_DECLINED;
    }

    for (m = json->child; m; m = m->next) {

        member = ngx_http_vibe_document_member(&m->name);

        if (member == NGX_HTTP_VIBE_MEMBER_OTHER) {

            if (ngx_http_vibe_is_own(&m->name)) {
                *reason = "Members that begin with \"vibe_\" are reserved.";
                return NGX_DECLINED;
            }

            if (m->name.len && m->name.data[0] == '_') {
                *reason = "Bad special document member.";
                return NGX_DECLINED;
            }

            continue;
        }

        if (seen[member]++) {
            *reason = "A member of the document is repeated.";
            return NGX_DECLINED;
        }

        *reason = ngx_http_vibe_document_set(document, member, m);

        if (*reason != NULL) {
            return NGX_DECLINED;
        }
    }

    if (!seen[NGX_HTTP_VIBE_MEMBER_ID]) {
        document->made = 1;
        return ngx_http_vibe_new_id(pool, collection, &document->id);
    }

    return NGX_OK;
}


static ngx_http_vibe_member_e
ngx_http_vibe_document_member(ngx_str_t *name)
{
    ngx_uint_t  i;

    for (i = 0; i < NGX_HTTP_VIBE_MEMBERS; i++) {
        if (ngx_http_vibe_same(name, &ngx_http_vibe_members[i])) {
            return i;
        }
    }

    return NGX_HTTP_VIBE_MEMBER_OTHER;
}


static const char *
ngx_http_vibe_document_set(ngx_http_vibe_document_t *document,
    ngx_http_vibe_member_e member, ngx_http_vibe_json_t *node)
{
    const char  *reason;

    switch (member) {

    case NGX_HTTP_VIBE_MEMBER_ID:
        if (node->type != NGX_HTTP_VIBE_JSON_STRING) {
            return "The _id must be a string.";
        }

        if (!ngx_http_vibe_is_id(&node->string, &reason)) {
            return reason;
        }

        document->id = node->string;
        return NULL;

    case NGX_HTTP_VIBE_MEMBER_REV:
        if (node->type != NGX_HTTP_VIBE_JSON_STRING
            || !ngx_http_vibe_is_rev(&node->string))
        {
            return "Invalid rev format.";
        }

        document->rev = node->string;
        return NULL;

    case NGX_HTTP_VIBE_MEMBER_DELETED:
        if (node->type != NGX_HTTP_VIBE_JSON_TRUE
            && node->type != NGX_HTTP_VIBE_JSON_FALSE)
        {
            return "The member _deleted must be true or false.";
        }

        document->deleted = (node->type == NGX_HTTP_VIBE_JSON_TRUE);
        return NULL;

    case NGX_HTTP_VIBE_MEMBER_ATTACHMENTS:
        if (node->type != NGX_HTTP_VIBE_JSON_OBJECT) {
            return "The member _attachments must be an object.";
        }

        document->attachments = 1;
        return NULL;

    default:
        return NULL;
    }
}


void
ngx_http_vibe_document_put(ngx_http_vibe_json_out_t *out,
    ngx_http_vibe_document_t *document, ngx_str_t *collection, ngx_str_t *rev)
{
    ngx_uint_t             placed;
    ngx_http_vibe_json_t  *m;

    ngx_http_vibe_json_put_text(out, "{\"_id\":");
    ngx_http_vibe_json_put_string(out, &document->id);

    if (rev->len) {
        ngx_http_vibe_json_put_text(out, ",\"_rev\":");
        ngx_http_vibe_json_put_string(out, rev);
    }

    placed = 0;

    for (m = document->json->child; m; m = m->next) {

        switch (ngx_http_vibe_document_member(&m->name)) {

        case NGX_HTTP_VIBE_MEMBER_ID:
        case NGX_HTTP_VIBE_MEMBER_REV:
            continue;

        case NGX_HTTP_VIBE_MEMBER_COLLECTION:
            placed = 1;

            ngx_http_vibe_json_put_text(out, ",\"collection\":");
            ngx_http_vibe_json_put_string(out, collection);
            continue;

        default:
            break;
        }

        ngx_http_vibe_json_put_text(out, ",");
        ngx_http_vibe_json_put(out, m->start,
                               m->raw.data + m->raw.len - m->start);
    }

    if (!placed) {
        ngx_http_vibe_json_put_text(out, ",\"collection\":");
        ngx_http_vibe_json_put_string(out, collection);
    }

    ngx_http_vibe_json_put_text(out, "}");
}
