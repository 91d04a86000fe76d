
#include "ngx_http_vibe_jwt.h"
#include "ngx_http_vibe_file.h"
#include "ngx_http_vibe_json.h"

#include <openssl/bn.h>
#include <openssl/crypto.h>
#include <openssl/ec.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <openssl/objects.h>
#include <openssl/pem.h>
#include <openssl/x509.h>


#define NGX_HTTP_VIBE_JWT_SECRET_MIN   32     /* bytes */
#define NGX_HTTP_VIBE_JWT_RSA_MIN      2048   /* bits */
#define NGX_HTTP_VIBE_JWT_ES256_LEN    64     /* bytes of r and s */
#define NGX_HTTP_VIBE_JWT_EXPONENT     99999  /* of a date, more is the same */


typedef enum {
    NGX_HTTP_VIBE_JWT_HS256 = 0,
    NGX_HTTP_VIBE_JWT_RS256,
    NGX_HTTP_VIBE_JWT_ES256,
    NGX_HTTP_VIBE_JWT_EDDSA
} ngx_http_vibe_jwt_alg_e;


typedef struct {
    ngx_http_vibe_jwt_alg_e   alg;
    ngx_str_t                 kid;
    ngx_str_t                 secret;         /* of HS256 */
    EVP_PKEY                 *pkey;           /* of all others */
} ngx_http_vibe_jwt_key_t;


typedef struct {
    ngx_str_t                 header;         /* decoded */
    ngx_str_t                 payload;        /* decoded when it is trusted */
    ngx_str_t                 signature;      /* decoded */
    ngx_str_t                 input;          /* what was signed */
    ngx_str_t                 kid;            /* data NULL if absent */
    ngx_http_vibe_jwt_alg_e   alg;
} ngx_http_vibe_jwt_token_t;


static ngx_int_t ngx_http_vibe_jwt_load_secret(ngx_conf_t *cf, ngx_str_t *name,
    ngx_str_t *text, ngx_http_vibe_jwt_key_t *key);
static ngx_int_t ngx_http_vibe_jwt_is_public(ngx_conf_t *cf, ngx_str_t *text);
static ngx_uint_t ngx_http_vibe_jwt_is_der(ngx_str_t *text);
static ngx_int_t ngx_http_vibe_jwt_load_pem(ngx_conf_t *cf, ngx_str_t *name,
    ngx_str_t *text, ngx_http_vibe_jwt_key_t *key);
static EVP_PKEY *ngx_http_vibe_jwt_read_pem(ngx_str_t *text);
static const char *ngx_http_vibe_jwt_pkey_alg(EVP_PKEY *pkey,
    ngx_http_vibe_jwt_alg_e *alg);
static ngx_uint_t ngx_http_vibe_jwt_is_p256(EVP_PKEY *pkey);
static void ngx_http_vibe_jwt_cleanup_secret(void *data);
static void ngx_http_vibe_jwt_cleanup_pkey(void *data);

static ngx_int_t ngx_http_vibe_jwt_split(ngx_pool_t *pool, ngx_str_t *text,
    ngx_http_vibe_jwt_token_t *token, const char **reason);
static ngx_int_t ngx_http_vibe_jwt_decode(ngx_pool_t *pool, ngx_str_t *src,
    ngx_str_t *dst);
static ngx_int_t ngx_http_vibe_jwt_object(ngx_pool_t *pool, ngx_str_t *text,
    ngx_uint_t depth, ngx_http_vibe_json_t **object, const char **reason);
static ngx_int_t ngx_http_vibe_jwt_header(ngx_pool_t *pool,
    ngx_http_vibe_jwt_token_t *token, const char **reason);
static ngx_int_t ngx_http_vibe_jwt_string(ngx_http_vibe_json_t *object,
    ngx_str_t *name, ngx_str_t *value);
static ngx_int_t ngx_http_vibe_jwt_signature(ngx_http_vibe_jwt_conf_t *jcf,
    ngx_http_vibe_jwt_token_t *token, const char **reason);
static ngx_int_t ngx_http_vibe_jwt_check(ngx_http_vibe_jwt_key_t *key,
    ngx_http_vibe_jwt_token_t *token);
static ngx_int_t ngx_http_vibe_jwt_check_hmac(ngx_http_vibe_jwt_key_t *key,
    ngx_http_vibe_jwt_token_t *token);
static ngx_int_t ngx_http_vibe_jwt_check_ecdsa(ngx_http_vibe_jwt_key_t *key,
    ngx_http_vibe_jwt_token_t *token);
static ngx_int_t ngx_http_vibe_jwt_check_digest(ngx_http_vibe_jwt_key_t *key,
    ngx_http_vibe_jwt_token_t *token, ngx_str_t *signature);
static ngx_int_t ngx_http_vibe_jwt_claims(ngx_http_vibe_json_t *object,
    ngx_http_vibe_jwt_claims_t *claims, const char **reason);
static ngx_int_t ngx_http_vibe_jwt_times(ngx_http_vibe_jwt_conf_t *jcf,
    ngx_http_vibe_json_t *object, time_t now,
    ngx_http_vibe_jwt_claims_t *claims, const char **reason);
static ngx_int_t ngx_http_vibe_jwt_date(ngx_http_vibe_json_t *number,
    time_t *date);
static ngx_int_t ngx_http_vibe_jwt_exponent(u_char *p, u_char *last);
static ngx_int_t ngx_http_vibe_jwt_parties(ngx_http_vibe_jwt_conf_t *jcf,
    ngx_http_vibe_json_t *object, const char **reason);
static ngx_uint_t ngx_http_vibe_jwt_equal(ngx_http_vibe_json_t *node,
    ngx_str_t *value);


char *
ngx_http_vibe_jwt_add_key(ngx_conf_t *cf, ngx_http_vibe_jwt_conf_t *jcf,
    ngx_str_t *file, ngx_str_t *kid)
{
    ngx_err_t                 err;
    ngx_int_t                 rc;
    ngx_str_t                 name, text;
    const char               *failed;
    ngx_file_info_t           fi;
    ngx_http_vibe_jwt_key_t  *key;

    name = *file;

    if (ngx_conf_full_name(cf->cycle, &name, 1) != NGX_OK) {
        return NGX_CONF_ERROR;
    }

    if (ngx_http_vibe_file_read(cf->pool, &name, NGX_HTTP_VIBE_JWT_KEY_MAX,
                                &text, &fi, &failed, &err)
        != NGX_OK)
    {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, err,
                           "could not read the key \"%V\": %s", &name, failed);
        return NGX_CONF_ERROR;
    }

    if (jcf->keys == NULL) {
        jcf->keys = ngx_array_create(cf->pool, 2,
                                     sizeof(ngx_http_vibe_jwt_key_t));
        if (jcf->keys == NULL) {
            return NGX_CONF_ERROR;
        }
    }

    key = ngx_array_push(jcf->keys);
    if (key == NULL) {
        return NGX_CONF_ERROR;
    }

    ngx_memzero(key, sizeof(ngx_http_vibe_jwt_key_t));

    key->kid = *kid;

    if (ngx_strlcasestrn(text.data, text.data + text.len,
                         (u_char *) "-----begin ", sizeof("-----begin ") - 2)
        != NULL)
    {
        rc = ngx_http_vibe_jwt_load_pem(cf, &name, &text, key);

    } else {
        rc = ngx_http_vibe_jwt_load_secret(cf, &name, &text, key);
    }

    ERR_clear_error();

    return (rc == NGX_OK) ? NGX_CONF_OK : NGX_CONF_ERROR;
}


static ngx_int_t
ngx_http_vibe_jwt_load_secret(ngx_conf_t *cf, ngx_str_t *name,
    ngx_str_t *text, ngx_http_vibe_jwt_key_t *key)
{
    ngx_int_t            rc;
    ngx_str_t           *secret;
    ngx_pool_cleanup_t  *cln;

    cln = ngx_pool_cleanup_add(cf->pool, sizeof(ngx_str_t));
    if (cln == NULL) {
        return NGX_ERROR;
    }

    secret = cln->data;
    *secret = *text;

    cln->handler = ngx_http_vibe_jwt_cleanup_secret;

    rc = ngx_http_vibe_jwt_is_public(cf, text);

    if (rc == NGX_ERROR) {
        return NGX_ERROR;
    }

    if (rc) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "the key \"%V\" is a public one in a format that "
                           "is not taken, convert it to PEM", name);
        return NGX_ERROR;
    }

    key->alg = NGX_HTTP_VIBE_JWT_HS256;
    key->secret = *text;

    if (key->secret.len && key->secret.data[key->secret.len - 1] == LF) {
        key->secret.len--;

        if (key->secret.len && key->secret.data[key->secret.len - 1] == CR) {
            key->secret.len--;
        }
    }

    if (key->secret.len < NGX_HTTP_VIBE_JWT_SECRET_MIN) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "the key \"%V\" is neither PEM nor a secret of at "
                           "least %d bytes", name,
                           NGX_HTTP_VIBE_JWT_SECRET_MIN);
        return NGX_ERROR;
    }

    return NGX_OK;
}


/*
 * What everybody may know must not become the secret of HS256: DER, also as
 * bare base64, a JSON Web Key, a key of OpenSSH or PGP.  1, 0 or NGX_ERROR.
 */

static ngx_int_t
ngx_http_vibe_jwt_is_public(ngx_conf_t *cf, ngx_str_t *text)
{
    u_char                *p;
    size_t                 i;
    ngx_int_t              rc;
    ngx_str_t              base64, der;
    const char            *reason;
    ngx_http_vibe_json_t  *root;

    if (ngx_strncmp(text->data, "ssh-", 4) == 0
        || ngx_strncmp(text->data, "ecdsa-sha2-", 11) == 0
        || ngx_strlcasestrn(text->data, text->data + text->len,
                            (u_char *) "public key", sizeof("public key") - 2)
           != NULL
        || ngx_http_vibe_jwt_is_der(text))
    {
        return 1;
    }

    base64.data = ngx_pnalloc(cf->temp_pool, text->len + 1);
    der.data = ngx_pnalloc(cf->temp_pool,
                           ngx_base64_decoded_length(text->len));

    if (base64.data == NULL || der.data == NULL) {
        return NGX_ERROR;
    }

    for (p = base64.data, i = 0; i < text->len; i++) {
        if (text->data[i] > ' ') {
            *p++ = text->data[i];
        }
    }

    base64.len = p - base64.data;

    if (ngx_decode_base64(&der, &base64) == NGX_OK
        && ngx_http_vibe_jwt_is_der(&der))
    {
        return 1;
    }

    rc = ngx_http_vibe_json_scan(cf->temp_pool, text, 0, &root, &reason);

    if (rc == NGX_OK) {
        return root->type == NGX_HTTP_VIBE_JSON_OBJECT
               || root->type == NGX_HTTP_VIBE_JSON_ARRAY;
    }

    return (rc == NGX_ERROR) ? NGX_ERROR : 0;
}


static ngx_uint_t
ngx_http_vibe_jwt_is_der(ngx_str_t *text)
{
    X509          *x509;
    EVP_PKEY      *pkey;
    const u_char  *p;

    p = text->data;
    pkey = d2i_PUBKEY(NULL, &p, (long) text->len);

    if (pkey != NULL) {
        EVP_PKEY_free(pkey);
        return 1;
    }

    p = text->data;
    x509 = d2i_X509(NULL, &p, (long) text->len);

    if (x509 != NULL) {
        X509_free(x509);
        return 1;
    }

    return 0;
}


static ngx_int_t
ngx_http_vibe_jwt_load_pem(ngx_conf_t *cf, ngx_str_t *name, ngx_str_t *text,
    ngx_http_vibe_jwt_key_t *key)
{
    const char          *reason;
    ngx_pool_cleanup_t  *cln;

    if (ngx_strlcasestrn(text->data, text->data + text->len,
                         (u_char *) "private key-----",
                         sizeof("private key-----") - 2)
        != NULL)
    {
        OPENSSL_cleanse(text->data, text->len);

        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "the key \"%V\" is a private one, the public one "
                           "is needed", name);
        return NGX_ERROR;
    }

    cln = ngx_pool_cleanup_add(cf->pool, 0);
    if (cln == NULL) {
        return NGX_ERROR;
    }

    key->pkey = ngx_http_vibe_jwt_read_pem(text);

    if (key->pkey == NULL) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "no public key and no certificate could be read "
                           "from \"%V\"", name);
        return NGX_ERROR;
    }

    cln->handler = ngx_http_vibe_jwt_cleanup_pkey;
    cln->data = key->pkey;

    reason = ngx_http_vibe_jwt_pkey_alg(key->pkey, &key->alg);

    if (reason != NULL) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "the key \"%V\" %s", name, reason);
        return NGX_ERROR;
    }

    return NGX_OK;
}


static EVP_PKEY *
ngx_http_vibe_jwt_read_pem(ngx_str_t *text)
{
    BIO       *bio;
    X509      *x509;
    EVP_PKEY  *pkey;

    bio = BIO_new_mem_buf(text->data, (int) text->len);
    if (bio == NULL) {
        return NULL;
    }

    /* with a password given OpenSSL does not ask the terminal for one */

    pkey = PEM_read_bio_PUBKEY(bio, NULL, NULL, (void *) "");

    if (pkey == NULL && BIO_reset(bio) == 1) {
        x509 = PEM_read_bio_X509(bio, NULL, NULL, (void *) "");

        if (x509 != NULL) {
            pkey = X509_get_pubkey(x509);
            X509_free(x509);
        }
    }

    BIO_free(bio);

    return pkey;
}


/* what is wrong with the key, NULL if nothing is */

static const char *
ngx_http_vibe_jwt_pkey_alg(EVP_PKEY *pkey, ngx_http_vibe_jwt_alg_e *alg)
{
    switch (EVP_PKEY_base_id(pkey)) {

    case EVP_PKEY_RSA:
        *alg = NGX_HTTP_VIBE_JWT_RS256;

        if (EVP_PKEY_bits(pkey) < NGX_HTTP_VIBE_JWT_RSA_MIN) {
            return "is too short, RSA needs 2048 bits";
        }

        return NULL;

    case EVP_PKEY_EC:
        *alg = NGX_HTTP_VIBE_JWT_ES256;

        if (!ngx_http_vibe_jwt_is_p256(pkey)) {
            return "is on another curve than P-256";
        }

        return NULL;

    case EVP_PKEY_ED25519:
        *alg = NGX_HTTP_VIBE_JWT_EDDSA;
        return NULL;

    default:
        return "is neither RSA nor EC nor Ed25519";
    }
}


static ngx_uint_t
ngx_http_vibe_jwt_is_p256(EVP_PKEY *pkey)
{
#if (OPENSSL_VERSION_NUMBER >= 0x30000000L)

    char    name[64];
    size_t  len;

    return EVP_PKEY_get_group_name(pkey, name, sizeof(name), &len) == 1
           && OBJ_txt2nid(name) == NID_X9_62_prime256v1;

#else

    const EC_KEY  *ec;

    ec = EVP_PKEY_get0_EC_KEY(pkey);

    return ec != NULL
           && EC_GROUP_get_curve_name(EC_KEY_get0_group(ec))
              == NID_X9_62_prime256v1;

#endif
}


static void
ngx_http_vibe_jwt_cleanup_secret(void *data)
{
    ngx_str_t *secret = data;

    OPENSSL_cleanse(secret->data, secret->len);
}


static void
ngx_http_vibe_jwt_cleanup_pkey(void *data)
{
    EVP_PKEY_free(data);
}


ngx_int_t
ngx_http_vibe_jwt_verify(ngx_http_vibe_jwt_conf_t *jcf, ngx_pool_t *pool,
    ngx_str_t *token, time_t now, ngx_http_vibe_jwt_claims_t *claims,
    const char **reason)
{
    ngx_int_t                   rc;
    ngx_http_vibe_json_t       *object;
    ngx_http_vibe_jwt_token_t   jwt;

    ngx_memzero(claims, sizeof(ngx_http_vibe_jwt_claims_t));

    rc = ngx_http_vibe_jwt_split(pool, token, &jwt, reason);
    if (rc != NGX_OK) {
        return rc;
    }

    rc = ngx_http_vibe_jwt_header(pool, &jwt, reason);
    if (rc != NGX_OK) {
        return rc;
    }

    rc = ngx_http_vibe_jwt_signature(jcf, &jwt, reason);
    if (rc != NGX_OK) {
        return rc;
    }

    /* from here on the issuer speaks */

    rc = ngx_http_vibe_jwt_decode(pool, &jwt.payload, &jwt.payload);
    if (rc != NGX_OK) {
        *reason = "token is malformed";
        return rc;
    }

    /* two levels, for the elements of "aud" */

    rc = ngx_http_vibe_jwt_object(pool, &jwt.payload, 2, &object, reason);
    if (rc != NGX_OK) {
        return rc;
    }

    rc = ngx_http_vibe_jwt_times(jcf, object, now, claims, reason);
    if (rc != NGX_OK) {
        return rc;
    }

    rc = ngx_http_vibe_jwt_parties(jcf, object, reason);
    if (rc != NGX_OK) {
        return rc;
    }

    return ngx_http_vibe_jwt_claims(object, claims, reason);
}


/* into three parts; the header and the signature are decoded */

static ngx_int_t
ngx_http_vibe_jwt_split(ngx_pool_t *pool, ngx_str_t *text,
    ngx_http_vibe_jwt_token_t *token, const char **reason)
{
    u_char     *first, *second, *last;
    ngx_int_t   rc;

    if (text->len > NGX_HTTP_VIBE_JWT_MAX) {
        *reason = "token is too long";
        return NGX_DECLINED;
    }

    *reason = "token is malformed";

    last = text->data + text->len;

    first = ngx_strlchr(text->data, last, '.');
    if (first == NULL) {
        return NGX_DECLINED;
    }

    second = ngx_strlchr(first + 1, last, '.');
    if (second == NULL) {
        return NGX_DECLINED;
    }

    token->header.data = text->data;
    token->header.len = first - text->data;

    token->payload.data = first + 1;
    token->payload.len = second - token->payload.data;

    token->signature.data = second + 1;
    token->signature.len = last - token->signature.data;

    token->input.data = text->data;
    token->input.len = second - text->data;

    rc = ngx_http_vibe_jwt_decode(pool, &token->header, &token->header);
    if (rc != NGX_OK) {
        return rc;
    }

    /* a third dot, of JWE say, is no character of base64url */

    return ngx_http_vibe_jwt_decode(pool, &token->signature,
                                    &token->signature);
}


/*
 * base64url as RFC 7515 has it: no padding, no other characters, and zero
 * where the last character has bits to spare, so that each value has one text
 */

static ngx_int_t
ngx_http_vibe_jwt_decode(ngx_pool_t *pool, ngx_str_t *src, ngx_str_t *dst)
{
    u_char     buf[4];
    ngx_str_t  text, rest, again;

    text = *src;

    /* ngx_decode_base64url() stops at padding and takes what comes after */

    if (text.len == 0
        || ngx_strlchr(text.data, text.data + text.len, '=') != NULL)
    {
        return NGX_DECLINED;
    }

    dst->data = ngx_pnalloc(pool, ngx_base64_decoded_length(text.len));
    if (dst->data == NULL) {
        return NGX_ERROR;
    }

    if (ngx_decode_base64url(dst, &text) != NGX_OK) {
        return NGX_DECLINED;
    }

    rest.len = dst->len % 3;
    rest.data = dst->data + dst->len - rest.len;

    if (rest.len == 0) {
        return NGX_OK;
    }

    again.data = buf;
    ngx_encode_base64url(&again, &rest);

    return (buf[again.len - 1] == text.data[text.len - 1]) ? NGX_OK
                                                           : NGX_DECLINED;
}


/* an object of JSON in which no name comes twice */

static ngx_int_t
ngx_http_vibe_jwt_object(ngx_pool_t *pool, ngx_str_t *text, ngx_uint_t depth,
    ngx_http_vibe_json_t **object, const char **reason)
{
    ngx_int_t              rc;
    const char            *why;
    ngx_http_vibe_json_t  *m, *next;

    rc = ngx_http_vibe_json_scan(pool, text, depth, object, &why);

    if (rc == NGX_ERROR) {
        return NGX_ERROR;
    }

    if (rc != NGX_OK || (*object)->type != NGX_HTTP_VIBE_JSON_OBJECT) {
        *reason = "token is malformed";
        return NGX_DECLINED;
    }

    /* each is compared with each, by whoever sends a token */

    if ((*object)->n > NGX_HTTP_VIBE_JWT_MAX_MEMBERS) {
        *reason = "token has too many members";
        return NGX_DECLINED;
    }

    for (m = (*object)->child; m; m = m->next) {
        for (next = m->next; next; next = next->next) {
            if (m->name.len == next->name.len
                && ngx_memcmp(m->name.data, next->name.data, m->name.len) == 0)
            {
                *reason = "token has duplicate members";
                return NGX_DECLINED;
            }
        }
    }

    return NGX_OK;
}


static ngx_int_t
ngx_http_vibe_jwt_header(ngx_pool_t *pool, ngx_http_vibe_jwt_token_t *token,
    const char **reason)
{
    ngx_int_t              rc;
    ngx_http_vibe_json_t  *object, *alg;

    static ngx_str_t  kid = ngx_string("kid");

    rc = ngx_http_vibe_jwt_object(pool, &token->header, 1, &object, reason);
    if (rc != NGX_OK) {
        return rc;
    }

    if (ngx_http_vibe_json_get(object, "crit") != NULL) {
        *reason = "token has critical extensions";
        return NGX_DECLINED;
    }

    if (ngx_http_vibe_jwt_string(object, &kid, &token->kid) != NGX_OK) {
        *reason = "token is malformed";
        return NGX_DECLINED;
    }

    alg = ngx_http_vibe_json_get(object, "alg");

    if (ngx_http_vibe_json_is_string(alg, "HS256")) {
        token->alg = NGX_HTTP_VIBE_JWT_HS256;

    } else if (ngx_http_vibe_json_is_string(alg, "RS256")) {
        token->alg = NGX_HTTP_VIBE_JWT_RS256;

    } else if (ngx_http_vibe_json_is_string(alg, "ES256")) {
        token->alg = NGX_HTTP_VIBE_JWT_ES256;

    } else if (ngx_http_vibe_json_is_string(alg, "EdDSA")) {
        token->alg = NGX_HTTP_VIBE_JWT_EDDSA;

    } else {
        *reason = "algorithm is not accepted";
        return NGX_DECLINED;
    }

    return NGX_OK;
}


/* a member that is a string, data NULL where there is no such member */

static ngx_int_t
ngx_http_vibe_jwt_string(ngx_http_vibe_json_t *object, ngx_str_t *name,
    ngx_str_t *value)
{
    ngx_http_vibe_json_t  *m;

    ngx_str_null(value);

    m = ngx_http_vibe_json_member(object, name);

    if (m == NULL) {
        return NGX_OK;
    }

    if (m->type != NGX_HTTP_VIBE_JSON_STRING) {
        return NGX_DECLINED;
    }

    *value = m->string;

    return NGX_OK;
}


static ngx_int_t
ngx_http_vibe_jwt_signature(ngx_http_vibe_jwt_conf_t *jcf,
    ngx_http_vibe_jwt_token_t *token, const char **reason)
{
    ngx_int_t                 rc;
    ngx_uint_t                i, tried;
    ngx_http_vibe_jwt_key_t  *key;

    tried = 0;
    *reason = "unknown key";

    if (jcf->keys == NULL) {
        return NGX_DECLINED;
    }

    key = jcf->keys->elts;

    for (i = 0; i < jcf->keys->nelts; i++) {

        /* a token that names its key is not tried with any other */

        if (token->kid.data != NULL
            && (key[i].kid.len == 0
                || key[i].kid.len != token->kid.len
                || ngx_memcmp(key[i].kid.data, token->kid.data,
                              token->kid.len)
                   != 0))
        {
            continue;
        }

        if (key[i].alg != token->alg) {
            if (!tried) {
                *reason = "algorithm is not accepted";
            }

            continue;
        }

        rc = ngx_http_vibe_jwt_check(&key[i], token);

        if (rc != NGX_DECLINED) {
            return rc;
        }

        *reason = "signature is wrong";
        tried = 1;
    }

    return NGX_DECLINED;
}


static ngx_int_t
ngx_http_vibe_jwt_check(ngx_http_vibe_jwt_key_t *key,
    ngx_http_vibe_jwt_token_t *token)
{
    ngx_int_t  rc;

    switch (key->alg) {

    case NGX_HTTP_VIBE_JWT_HS256:
        rc = ngx_http_vibe_jwt_check_hmac(key, token);
        break;

    case NGX_HTTP_VIBE_JWT_ES256:
        rc = ngx_http_vibe_jwt_check_ecdsa(key, token);
        break;

    default: /* NGX_HTTP_VIBE_JWT_RS256, NGX_HTTP_VIBE_JWT_EDDSA */
        rc = ngx_http_vibe_jwt_check_digest(key, token, &token->signature);
        break;
    }

    /* nginx would take what is left there for an error of its own */
    ERR_clear_error();

    return rc;
}


static ngx_int_t
ngx_http_vibe_jwt_check_hmac(ngx_http_vibe_jwt_key_t *key,
    ngx_http_vibe_jwt_token_t *token)
{
    u_char        mac[EVP_MAX_MD_SIZE];
    unsigned int  len;

    if (HMAC(EVP_sha256(), key->secret.data, (int) key->secret.len,
             token->input.data, token->input.len, mac, &len)
        == NULL)
    {
        return NGX_ERROR;
    }

    if (token->signature.len != len
        || CRYPTO_memcmp(token->signature.data, mac, len) != 0)
    {
        return NGX_DECLINED;
    }

    return NGX_OK;
}


/* a JWS has r and s, 32 bytes each (RFC 7518, 3.4), OpenSSL wants DER */

static ngx_int_t
ngx_http_vibe_jwt_check_ecdsa(ngx_http_vibe_jwt_key_t *key,
    ngx_http_vibe_jwt_token_t *token)
{
    int         len;
    size_t      half;
    u_char     *der;
    BIGNUM     *r, *s;
    ngx_int_t   rc;
    ngx_str_t   signature;
    ECDSA_SIG  *sig;

    if (token->signature.len != NGX_HTTP_VIBE_JWT_ES256_LEN) {
        return NGX_DECLINED;
    }

    half = NGX_HTTP_VIBE_JWT_ES256_LEN / 2;

    sig = ECDSA_SIG_new();
    r = BN_bin2bn(token->signature.data, half, NULL);
    s = BN_bin2bn(token->signature.data + half, half, NULL);

    if (sig == NULL || r == NULL || s == NULL) {
        ECDSA_SIG_free(sig);
        BN_free(r);
        BN_free(s);
        return NGX_ERROR;
    }

    /* "sig" owns them now; it fails on NULL only */

    (void) ECDSA_SIG_set0(sig, r, s);

    der = NULL;
    len = i2d_ECDSA_SIG(sig, &der);

    ECDSA_SIG_free(sig);

    if (len <= 0) {
        return NGX_ERROR;
    }

    signature.data = der;
    signature.len = len;

    rc = ngx_http_vibe_jwt_check_digest(key, token, &signature);

    OPENSSL_free(der);

    return rc;
}


static ngx_int_t
ngx_http_vibe_jwt_check_digest(ngx_http_vibe_jwt_key_t *key,
    ngx_http_vibe_jwt_token_t *token, ngx_str_t *signature)
{
    ngx_int_t      rc;
    EVP_MD_CTX    *ctx;
    const EVP_MD  *md;

    /* Ed25519 has its hash in itself */

    md = (key->alg == NGX_HTTP_VIBE_JWT_EDDSA) ? NULL : EVP_sha256();

    ctx = EVP_MD_CTX_new();
    if (ctx == NULL) {
        return NGX_ERROR;
    }

    if (EVP_DigestVerifyInit(ctx, NULL, md, NULL, key->pkey) != 1) {
        EVP_MD_CTX_free(ctx);
        return NGX_ERROR;
    }

    /* what is not 1 may be an error also: the signature has a wrong form */

    rc = (EVP_DigestVerify(ctx, signature->data, signature->len,
                           token->input.data, token->input.len)
          == 1) ? NGX_OK : NGX_DECLINED;

    EVP_MD_CTX_free(ctx);

    return rc;
}


static ngx_int_t
ngx_http_vibe_jwt_times(ngx_http_vibe_jwt_conf_t *jcf,
    ngx_http_vibe_json_t *object, time_t now,
    ngx_http_vibe_jwt_claims_t *claims, const char **reason)
{
    time_t                 nbf;
    ngx_http_vibe_json_t  *m;

    /* differences are taken only where they cannot overflow */

    m = ngx_http_vibe_json_get(object, "exp");

    if (m != NULL) {
        if (ngx_http_vibe_jwt_date(m, &claims->exp) != NGX_OK) {
            *reason = "exp of the token is not a number";
            return NGX_DECLINED;
        }

        if (claims->exp <= now && now - claims->exp >= jcf->leeway) {
            *reason = "token is expired";
            return NGX_DECLINED;
        }
    }

    m = ngx_http_vibe_json_get(object, "nbf");

    if (m != NULL) {
        if (ngx_http_vibe_jwt_date(m, &nbf) != NGX_OK) {
            *reason = "nbf of the token is not a number";
            return NGX_DECLINED;
        }

        if (nbf > now && nbf - now > jcf->leeway) {
            *reason = "token is not valid yet";
            return NGX_DECLINED;
        }
    }

    return NGX_OK;
}


/*
 * Seconds since 1970, any number of JSON, rounded down; what does not fit is
 * the least or the most that does.  Its grammar was checked by the scan.
 */

static ngx_int_t
ngx_http_vibe_jwt_date(ngx_http_vibe_json_t *number, time_t *date)
{
    u_char     *p, *last, *e, *point;
    time_t      t;
    ngx_int_t   left;

    *date = 0;

    if (number->type != NGX_HTTP_VIBE_JSON_NUMBER) {
        return NGX_DECLINED;
    }

    p = number->raw.data;
    last = p + number->raw.len;

    if (*p == '-') {
        return NGX_OK;
    }

    for (e = p; e < last && *e != 'e' && *e != 'E'; e++) { /* void */ }

    point = ngx_strlchr(p, e, '.');

    /* how many digits stand before the point once the exponent moved it */

    left = ((point ? point : e) - p) + ngx_http_vibe_jwt_exponent(e, last);

    for (t = 0; left > 0; left--) {

        if (p == point) {
            p++;
        }

        if (p == e && t == 0) {
            break;
        }

        if (t > (NGX_MAX_TIME_T_VALUE - 9) / 10) {
            t = NGX_MAX_TIME_T_VALUE;
            break;
        }

        t = t * 10 + ((p < e) ? *p++ - '0' : 0);
    }

    *date = t;

    return NGX_OK;
}


/* "e", a sign or none, digits; or nothing at all */

static ngx_int_t
ngx_http_vibe_jwt_exponent(u_char *p, u_char *last)
{
    ngx_int_t   n;
    ngx_uint_t  negative;

    if (p == last) {
        return 0;
    }

    p++;
    negative = (*p == '-');

    if (*p == '-' || *p == '+') {
        p++;
    }

    n = ngx_atoi(p, last - p);

    if (n == NGX_ERROR || n > NGX_HTTP_VIBE_JWT_EXPONENT) {
        n = NGX_HTTP_VIBE_JWT_EXPONENT;
    }

    return negative ? -n : n;
}


/* whose token it is and for whom */

static ngx_int_t
ngx_http_vibe_jwt_parties(ngx_http_vibe_jwt_conf_t *jcf,
    ngx_http_vibe_json_t *object, const char **reason)
{
    ngx_http_vibe_json_t  *m;

    if (jcf->issuer.len) {
        m = ngx_http_vibe_json_get(object, "iss");

        if (m == NULL || !ngx_http_vibe_jwt_equal(m, &jcf->issuer)) {
            *reason = "token is from another issuer";
            return NGX_DECLINED;
        }
    }

    if (jcf->audience.len == 0) {
        return NGX_OK;
    }

    m = ngx_http_vibe_json_get(object, "aud");

    if (m != NULL && m->type == NGX_HTTP_VIBE_JSON_ARRAY) {
        m = m->child;

        while (m != NULL && !ngx_http_vibe_jwt_equal(m, &jcf->audience)) {
            m = m->next;
        }
    }

    /* "aud" itself or one of its elements */

    if (m == NULL || !ngx_http_vibe_jwt_equal(m, &jcf->audience)) {
        *reason = "token is for another audience";
        return NGX_DECLINED;
    }

    return NGX_OK;
}


static ngx_uint_t
ngx_http_vibe_jwt_equal(ngx_http_vibe_json_t *node, ngx_str_t *value)
{
    return node->type == NGX_HTTP_VIBE_JSON_STRING
           && node->string.len == value->len
           && ngx_memcmp(node->string.data, value->data, value->len) == 0;
}


static ngx_int_t
ngx_http_vibe_jwt_claims(ngx_http_vibe_json_t *object,
    ngx_http_vibe_jwt_claims_t *claims, const char **reason)
{
    static ngx_str_t  sub = ngx_string("sub");
    static ngx_str_t  jti = ngx_string("jti");
    static ngx_str_t  instance = ngx_string("instanceId");

    if (ngx_http_vibe_jwt_string(object, &sub, &claims->sub) != NGX_OK) {
        *reason = "sub of the token is not a string";
        return NGX_DECLINED;
    }

    if (claims->sub.len == 0) {
        *reason = "token has no sub";
        return NGX_DECLINED;
    }

    if (ngx_http_vibe_jwt_string(object, &jti, &claims->jti) != NGX_OK) {
        *reason = "jti of the token is not a string";
        return NGX_DECLINED;
    }

    if (ngx_http_vibe_jwt_string(object, &instance, &claims->instance)
        != NGX_OK)
    {
        /* whose token it is, is known: that no database has it is for later */
        ngx_str_set(&claims->instance, "");
    }

    return NGX_OK;
}
