
#include "ngx_http_vibe_jwt.h"
#include "ngx_http_vibe_json.h"


#define NGX_HTTP_VIBE_JWT_EXPONENT     99999  /* of a date, more is the same */


typedef struct {
    ngx_str_t                 header;         /* decoded */
    ngx_str_t                 payload;        /* decoded when it is trusted */
    ngx_str_t                 signature;      /* decoded */
    ngx_str_t                 input;          /* what was signed */
    ngx_str_t                 kid;            /* data NULL if absent */
    ngx_http_vibe_jwt_alg_e   alg;
} ngx_http_vibe_jwt_token_t;


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
                || !ngx_http_vibe_same(&key[i].kid, &token->kid)))
        {
            continue;
        }

        if (key[i].alg != token->alg) {
            if (!tried) {
                *reason = "algorithm is not accepted";
            }

            continue;
        }

        rc = ngx_http_vibe_jwt_check(&key[i], &token->input,
                                     &token->signature);

        if (rc != NGX_DECLINED) {
            return rc;
        }

        *reason = "signature is wrong";
        tried = 1;
    }

    return NGX_DECLINED;
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
           && ngx_http_vibe_same(&node->string, value);
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
