
/*
 * Who the caller is: a DID and a database, from nginx's own variables or
 * from a token.  Fails closed.
 */


#ifndef _NGX_HTTP_VIBE_CALLER_H_INCLUDED_
#define _NGX_HTTP_VIBE_CALLER_H_INCLUDED_


#include "ngx_http_vibe.h"


/*
 * Fills ctx->caller.  Without any identity NGX_OK with an empty DID, if
 * vibe_anonymous allows it.
 *
 * NGX_OK; NGX_ERROR: no memory; else the status to answer, 401, 403 or 500,
 * with a static text for the client in "reason".
 */
ngx_int_t ngx_http_vibe_identify(ngx_http_request_t *r,
    ngx_http_vibe_ctx_t *ctx, const char **reason);


#endif /* _NGX_HTTP_VIBE_CALLER_H_INCLUDED_ */
