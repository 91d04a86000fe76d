
/*
 * A document as a client sends it: what it may hold, and how it goes into the
 * owner's database.
 *
 * Floor 2: decides, takes no request, does no I/O.
 */


#ifndef _NGX_HTTP_VIBE_DOCUMENT_H_INCLUDED_
#define _NGX_HTTP_VIBE_DOCUMENT_H_INCLUDED_


#include <ngx_config.h>
#include <ngx_core.h>

#include "ngx_http_vibe_json.h"


/* members of a document: each costs memory while CouchDB is waited for */
#define NGX_HTTP_VIBE_MEMBERS_MAX  10000


typedef struct {
    ngx_http_vibe_json_t      *json;
    ngx_str_t                  id;
    ngx_str_t                  rev;           /* the client's, or empty */
    unsigned                   made:1;        /* the id, by the module */
    unsigned                   deleted:1;
    unsigned                   attachments:1;
} ngx_http_vibe_document_t;


/*
 * Checks a document for a collection.  One without an _id gets one.
 *
 * NGX_OK; NGX_DECLINED with "reason", a static text for the client;
 * NGX_ERROR: no memory.
 */
ngx_int_t ngx_http_vibe_document_check(ngx_pool_t *pool,
    ngx_str_t *collection, ngx_http_vibe_json_t *json,
    ngx_http_vibe_document_t *document, const char **reason);

/*
 * Writes the document for the owner's database: with its id, with "rev" as
 * the revision that it replaces, if not empty, and its collection; all else
 * as it came.
 */
void ngx_http_vibe_document_put(ngx_http_vibe_json_out_t *out,
    ngx_http_vibe_document_t *document, ngx_str_t *collection,
    ngx_str_t *rev);


#endif /* _NGX_HTTP_VIBE_DOCUMENT_H_INCLUDED_ */
