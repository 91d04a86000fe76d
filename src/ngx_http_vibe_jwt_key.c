
#include "ngx_http_vibe_jwt_key.h"
#include "ngx_http_vibe_file.h"
#include "ngx_http_vibe_json.h"

#include <openssl/bn.h>
#include <openssl/crypto.h>
#include <openssl/ec.h>
#include <openssl/err.h>
#include <openssl/hmac.h>
#include <openssl/objects.h>
#include <openssl/pem.h>
#include <openssl/x509.h>


#define NGX_HTTP_VIBE_JWT_SECRET_MIN   32     /* bytes */
#define NGX_HTTP_VIBE_JWT_RSA_MIN      2048   /* bits */
#define NGX_HTTP_VIBE_JWT_ES256_LEN    64     /* bytes of r and s */


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
static ngx_int_t ngx_http_vibe_jwt_check_hmac(ngx_http_vibe_jwt_key_t *key,
    ngx_str_t *input, ngx_str_t *signature);
static ngx_int_t ngx_http_vibe_jwt_check_ecdsa(ngx_http_vibe_jwt_key_t *key,
    ngx_str_t *input, ngx_str_t *signature);
static ngx_int_t ngx_http_vibe_jwt_check_digest(ngx_http_vibe_jwt_key_t *key,
    ngx_str_t *input, ngx_str_t *signature);


char *
ngx_http_vibe_jwt_add_key(ngx_conf_t *cf, ngx_array_t **keys,
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

    if (*keys == NULL) {
        *keys = ngx_array_create(cf->pool, 2,
                                     sizeof(ngx_http_vibe_jwt_key_t));
        if (*keys == NULL) {
            return NGX_CONF_ERROR;
        }
    }

    key = ngx_array_push(*keys);
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
ngx_http_vibe_jwt_check(ngx_http_vibe_jwt_key_t *key, ngx_str_t *input,
    ngx_str_t *signature)
{
    ngx_int_t  rc;

    switch (key->alg) {

    case NGX_HTTP_VIBE_JWT_HS256:
        rc = ngx_http_vibe_jwt_check_hmac(key, input, signature);
        break;

    case NGX_HTTP_VIBE_JWT_ES256:
        rc = ngx_http_vibe_jwt_check_ecdsa(key, input, signature);
        break;

    default: /* NGX_HTTP_VIBE_JWT_RS256, NGX_HTTP_VIBE_JWT_EDDSA */
        rc = ngx_http_vibe_jwt_check_digest(key, input, signature);
        break;
    }

    /* nginx would take what is left there for an error of its own */
    ERR_clear_error();

    return rc;
}


static ngx_int_t
ngx_http_vibe_jwt_check_hmac(ngx_http_vibe_jwt_key_t *key, ngx_str_t *input,
    ngx_str_t *signature)
{
    u_char        mac[EVP_MAX_MD_SIZE];
    unsigned int  len;

    if (HMAC(EVP_sha256(), key->secret.data, (int) key->secret.len,
             input->data, input->len, mac, &len)
        == NULL)
    {
        return NGX_ERROR;
    }

    if (signature->len != len
        || CRYPTO_memcmp(signature->data, mac, len) != 0)
    {
        return NGX_DECLINED;
    }

    return NGX_OK;
}


/* a JWS has r and s, 32 bytes each (RFC 7518, 3.4), OpenSSL wants DER */

static ngx_int_t
ngx_http_vibe_jwt_check_ecdsa(ngx_http_vibe_jwt_key_t *key, ngx_str_t *input,
    ngx_str_t *signature)
{
    int         len;
    size_t      half;
    u_char     *der;
    BIGNUM     *r, *s;
    ngx_int_t   rc;
    ngx_str_t   encoded;
    ECDSA_SIG  *sig;

    if (signature->len != NGX_HTTP_VIBE_JWT_ES256_LEN) {
        return NGX_DECLINED;
    }

    half = NGX_HTTP_VIBE_JWT_ES256_LEN / 2;

    sig = ECDSA_SIG_new();
    r = BN_bin2bn(signature->data, half, NULL);
    s = BN_bin2bn(signature->data + half, half, NULL);

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

    encoded.data = der;
    encoded.len = len;

    rc = ngx_http_vibe_jwt_check_digest(key, input, &encoded);

    OPENSSL_free(der);

    return rc;
}


static ngx_int_t
ngx_http_vibe_jwt_check_digest(ngx_http_vibe_jwt_key_t *key,
    ngx_str_t *input, ngx_str_t *signature)
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
                           input->data, input->len)
          == 1) ? NGX_OK : NGX_DECLINED;

    EVP_MD_CTX_free(ctx);

    return rc;
}
