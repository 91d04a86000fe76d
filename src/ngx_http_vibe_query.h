
/*
 * POST and GET /data/<collection>/query: documents of the caller's own
 * database, of "global", or of a registered feed (see query_feed).
 *
 *   parse -> last_seq -> index -> _find -> expand -> answer
 *
 * Promises: what the caller adds stands inside an "$and" whose first member
 * is the read selector, so it can only narrow; no row is filtered after
 * _find; the sequence had arrived before _find was sent.
 */


#ifndef _NGX_HTTP_VIBE_QUERY_H_INCLUDED_
#define _NGX_HTTP_VIBE_QUERY_H_INCLUDED_


#include "ngx_http_vibe.h"


/* ctx->body is the request's body; returns as an ngx_http_vibe_call_pt */
ngx_int_t ngx_http_vibe_query(ngx_http_request_t *r, ngx_http_vibe_ctx_t *ctx);


#endif /* _NGX_HTTP_VIBE_QUERY_H_INCLUDED_ */
