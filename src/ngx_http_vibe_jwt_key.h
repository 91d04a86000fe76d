
/*
 * The keys that tokens are signed with, and whether a signature is one's.
 *
 * Floor 2: takes no request.  Its only I/O is reading the keys at
 * configuration.
 */


#ifndef _NGX_HTTP_VIBE_JWT_KEY_H_INCLUDED_
#define _NGX_HTTP_VIBE_JWT_KEY_H_INCLUDED_


#include <ngx_config.h>
#include <ngx_core.h>

#include <openssl/evp.h>


/* bytes of a key's file */
#define NGX_HTTP_VIBE_JWT_KEY_MAX  65536


typedef enum {
    NGX_HTTP_VIBE_JWT_HS256 = 0,
    NGX_HTTP_VIBE_JWT_RS256,
    NGX_HTTP_VIBE_JWT_ES256,
    NGX_HTTP_VIBE_JWT_EDDSA
} ngx_http_vibe_jwt_alg_e;


typedef struct {
    ngx_http_vibe_jwt_alg_e   alg;            /* by the key's own type */
    ngx_str_t                 kid;
    ngx_str_t                 secret;         /* of HS256 */
    EVP_PKEY                 *pkey;           /* of all others */
} ngx_http_vibe_jwt_key_t;


/*
 * Reads a key at configuration and adds it to "keys", an array of
 * ngx_http_vibe_jwt_key_t that is made if NULL: a PEM public key (RSA of 2048
 * bits or more, EC on P-256, Ed25519; a certificate is also taken) or, where
 * the file has no PEM header, the secret of HS256, at least 32 bytes, the
 * line's end at the file's end not part of it.  "kid" may be empty.  Refused
 * are private keys, and public ones in other formats, which must not become
 * secrets.  Of several keys in one file the first counts.  The key is freed
 * with the pool.
 *
 * NGX_CONF_OK or NGX_CONF_ERROR (logged with file and line).
 */
char *ngx_http_vibe_jwt_add_key(ngx_conf_t *cf, ngx_array_t **keys,
    ngx_str_t *file, ngx_str_t *kid);

/*
 * NGX_OK if "signature", as a JWS has it (RFC 7518, 3), is the key's of
 * "input"; NGX_DECLINED if it is not; NGX_ERROR: no memory.
 */
ngx_int_t ngx_http_vibe_jwt_check(ngx_http_vibe_jwt_key_t *key,
    ngx_str_t *input, ngx_str_t *signature);


#endif /* _NGX_HTTP_VIBE_JWT_KEY_H_INCLUDED_ */
