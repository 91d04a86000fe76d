
/*
 * POST /data/<collection>: a document, or an array of them.
 *
 *   parse -> whose database -> what is there -> write -> mirror -> answer
 *
 * Promises: 201 and 202 are sent only after CouchDB acknowledged the write to
 * the owner's database; a document that is refused keeps no other out.
 */


#ifndef _NGX_HTTP_VIBE_WRITE_H_INCLUDED_
#define _NGX_HTTP_VIBE_WRITE_H_INCLUDED_


#include "ngx_http_vibe.h"


/* how often a write without _rev is begun again when others write too */
#define NGX_HTTP_VIBE_WRITE_TRIES  100

/* how often a database is made that others delete */
#define NGX_HTTP_VIBE_CREATE_TRIES  5


/* ctx->body is the request's body; returns as an ngx_http_vibe_call_pt */
ngx_int_t ngx_http_vibe_write(ngx_http_request_t *r, ngx_http_vibe_ctx_t *ctx);


#endif /* _NGX_HTTP_VIBE_WRITE_H_INCLUDED_ */
