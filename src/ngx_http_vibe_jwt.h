
/*
 * JSON Web Tokens (RFC 7519), signed ones in compact form (RFC 7515),
 * verified with OpenSSL: HS256, RS256, ES256, EdDSA with Ed25519 (RFC 8037).
 *
 * The algorithm is fixed by the type of the key, never by the token: a token
 * whose "alg" is not that of the key is refused, so neither "none" nor a
 * public key used as an HMAC secret gets through.
 *
 * Floor 2: decides, takes no request, does no I/O.
 */


#ifndef _NGX_HTTP_VIBE_JWT_H_INCLUDED_
#define _NGX_HTTP_VIBE_JWT_H_INCLUDED_


#include <ngx_config.h>
#include <ngx_core.h>

#include "ngx_http_vibe_jwt_key.h"


/* bytes; nothing longer is looked at */
#define NGX_HTTP_VIBE_JWT_MAX          8192

/* members of a header, and of the claims */
#define NGX_HTTP_VIBE_JWT_MAX_MEMBERS  100


typedef struct {
    ngx_str_t    sub;             /* resolved from its JSON escapes */
    ngx_str_t    instance;        /* "instanceId", data NULL if absent,
                                     empty if it is no string */
    ngx_str_t    jti;             /* data NULL if absent */
    time_t       exp;             /* 0 if absent */
} ngx_http_vibe_jwt_claims_t;


typedef struct {
    ngx_array_t *keys;            /* NULL: none was added yet */
    ngx_str_t    issuer;          /* "iss" must be it, if len > 0 */
    ngx_str_t    audience;        /* "aud" must be or hold it, if len > 0 */
    time_t       leeway;          /* seconds */
} ngx_http_vibe_jwt_conf_t;


/*
 * Verifies a token and gives its claims, from the pool.  A token with a
 * "kid" is tried with the keys of that name, one without with all keys of
 * its algorithm.  "exp" and "nbf" are checked against "now", give or take
 * the leeway; "exp", where given, must be a number; "crit" is refused
 * (RFC 7515, 4.1.11); duplicate members of a header or claims are refused.
 *
 * NGX_OK; NGX_DECLINED with "reason" set to a static text for the client
 * that says nothing about keys; NGX_ERROR: no memory.
 */
ngx_int_t ngx_http_vibe_jwt_verify(ngx_http_vibe_jwt_conf_t *jcf,
    ngx_pool_t *pool, ngx_str_t *token, time_t now,
    ngx_http_vibe_jwt_claims_t *claims, const char **reason);


#endif /* _NGX_HTTP_VIBE_JWT_H_INCLUDED_ */
