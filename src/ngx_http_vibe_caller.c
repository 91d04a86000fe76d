
#include "ngx_http_vibe_caller.h"
#include "ngx_http_vibe_answer.h"


static ngx_int_t ngx_http_vibe_identify_did(ngx_http_request_t *r,
    ngx_http_vibe_loc_conf_t *vlcf, ngx_str_t *did, const char **reason);
static ngx_int_t ngx_http_vibe_identify_token(ngx_http_request_t *r,
    ngx_http_vibe_loc_conf_t *vlcf, ngx_http_vibe_jwt_claims_t *claims,
    const char **reason);
static ngx_int_t ngx_http_vibe_identify_db(ngx_http_request_t *r,
    ngx_http_vibe_loc_conf_t *vlcf, ngx_http_vibe_caller_t *caller,
    ngx_str_t *instance, const char **reason);
static ngx_int_t ngx_http_vibe_token(ngx_http_request_t *r,
    ngx_http_vibe_loc_conf_t *vlcf, ngx_str_t *token);
static ngx_uint_t ngx_http_vibe_token_in_cookie(ngx_http_request_t *r,
    ngx_str_t *token);
static ngx_int_t ngx_http_vibe_instance_db(ngx_http_request_t *r,
    ngx_http_vibe_loc_conf_t *vlcf, ngx_str_t *instance, ngx_str_t *db);


ngx_int_t
ngx_http_vibe_identify(ngx_http_request_t *r, ngx_http_vibe_ctx_t *ctx,
    const char **reason)
{
    ngx_int_t                    rc;
    ngx_http_vibe_caller_t      *caller;
    ngx_http_vibe_loc_conf_t    *vlcf;
    ngx_http_vibe_jwt_claims_t   claims;

    caller = &ctx->caller;

    vlcf = ngx_http_get_module_loc_conf(r, ngx_http_vibe_module);

    ngx_memzero(&claims, sizeof(ngx_http_vibe_jwt_claims_t));

    if (vlcf->did != NULL) {
        rc = ngx_http_vibe_identify_did(r, vlcf, &claims.sub, reason);

    } else {
        rc = ngx_http_vibe_identify_token(r, vlcf, &claims, reason);
    }

    if (rc == NGX_DECLINED) {
        if (vlcf->anonymous) {
            return NGX_OK;
        }

        *reason = "A token is needed.";
        return NGX_HTTP_UNAUTHORIZED;
    }

    if (rc != NGX_OK) {
        return rc;
    }

    if (!ngx_http_vibe_is_did(&claims.sub)) {
        *reason = "The subject is not a DID.";
        return NGX_HTTP_UNAUTHORIZED;
    }

    if (vlcf->revoked != NULL
        && (ngx_http_vibe_revoked(vlcf->revoked, &claims.sub,
                                  r->connection->log)
            || (claims.jti.len
                && ngx_http_vibe_revoked(vlcf->revoked, &claims.jti,
                                         r->connection->log))))
    {
        *reason = "The token is revoked.";
        return NGX_HTTP_UNAUTHORIZED;
    }

    caller->did = claims.sub;

    return ngx_http_vibe_identify_db(r, vlcf, caller, &claims.instance,
                                     reason);
}


static ngx_int_t
ngx_http_vibe_identify_did(ngx_http_request_t *r,
    ngx_http_vibe_loc_conf_t *vlcf, ngx_str_t *did, const char **reason)
{
    if (ngx_http_complex_value(r, vlcf->did, did) != NGX_OK) {
        return NGX_ERROR;
    }

    return did->len ? NGX_OK : NGX_DECLINED;
}


static ngx_int_t
ngx_http_vibe_identify_token(ngx_http_request_t *r,
    ngx_http_vibe_loc_conf_t *vlcf, ngx_http_vibe_jwt_claims_t *claims,
    const char **reason)
{
    ngx_int_t  rc;
    ngx_str_t  token, origin;

    rc = ngx_http_vibe_token(r, vlcf, &token);

    if (rc != NGX_OK) {
        return rc;
    }

    /*
     * A browser sends cookies along for any page that asks it to; what no
     * page can forge is where the page came from.
     */

    if (vlcf->token != NULL
        && ngx_http_vibe_token_in_cookie(r, &token)
        && ngx_http_vibe_origin(r, &origin) != NGX_OK)
    {
        *reason = "A token from a cookie needs an allowed Origin.";
        return NGX_HTTP_UNAUTHORIZED;
    }

    rc = ngx_http_vibe_jwt_verify(&vlcf->jwt, r->pool, &token, ngx_time(),
                                  claims, reason);

    return (rc == NGX_DECLINED) ? NGX_HTTP_UNAUTHORIZED : rc;
}


/* NGX_DECLINED: there is none */

static ngx_int_t
ngx_http_vibe_token(ngx_http_request_t *r, ngx_http_vibe_loc_conf_t *vlcf,
    ngx_str_t *token)
{
    u_char     *p;
    ngx_str_t   value;

    static const size_t  scheme = sizeof("Bearer ") - 1;

    if (vlcf->token != NULL) {
        if (ngx_http_complex_value(r, vlcf->token, token) != NGX_OK) {
            return NGX_ERROR;
        }

        return token->len ? NGX_OK : NGX_DECLINED;
    }

    if (r->headers_in.authorization == NULL) {
        return NGX_DECLINED;
    }

    value = r->headers_in.authorization->value;

    if (value.len <= scheme
        || ngx_strncasecmp(value.data, (u_char *) "Bearer ", scheme) != 0)
    {
        return NGX_DECLINED;
    }

    p = value.data + scheme;

    while (*p == ' ') {
        p++;
    }

    token->data = p;
    token->len = value.data + value.len - p;

    return token->len ? NGX_OK : NGX_DECLINED;
}


/*
 * vibe_token may take it from a cookie by way of any variable, or from two, so
 * what is looked at is whether a cookie holds the token's last part, the
 * signature.
 */

static ngx_uint_t
ngx_http_vibe_token_in_cookie(ngx_http_request_t *r, ngx_str_t *token)
{
    u_char           *p, *last;
    ngx_str_t         signature;
    ngx_uint_t        i;
    ngx_list_part_t  *part;
    ngx_table_elt_t  *h;

    signature = *token;

    for (i = token->len; i > 0 && token->data[i - 1] != '.'; i--) {
        /* void */
    }

    if (i < token->len) {
        signature.data += i;
        signature.len -= i;
    }

    for (part = &r->headers_in.headers.part; part; part = part->next) {

        h = part->elts;

        for (i = 0; i < part->nelts; i++) {

            if (h[i].key.len != sizeof("cookie") - 1
                || ngx_strncasecmp(h[i].key.data, (u_char *) "cookie",
                                   sizeof("cookie") - 1)
                   != 0)
            {
                continue;
            }

            p = h[i].value.data;
            last = p + h[i].value.len;

            for ( /* void */ ; (size_t) (last - p) >= signature.len; p++) {
                if (ngx_memcmp(p, signature.data, signature.len) == 0) {
                    return 1;
                }
            }
        }
    }

    return 0;
}


static ngx_int_t
ngx_http_vibe_identify_db(ngx_http_request_t *r,
    ngx_http_vibe_loc_conf_t *vlcf, ngx_http_vibe_caller_t *caller,
    ngx_str_t *instance, const char **reason)
{
    ngx_int_t  rc;
    ngx_str_t  did;

    if (vlcf->db != NULL) {
        if (ngx_http_complex_value(r, vlcf->db, &caller->db) != NGX_OK) {
            return NGX_ERROR;
        }
    }

    if (caller->db.len) {
        if (!ngx_http_vibe_is_db(&caller->db)
            || caller->db.len <= vlcf->db_prefix.len
            || ngx_strncmp(caller->db.data, vlcf->db_prefix.data,
                           vlcf->db_prefix.len)
               != 0)
        {
            ngx_log_error(NGX_LOG_ERR, r->connection->log, 0,
                          "vibe_db \"%V\" is not a database's name that "
                          "begins with \"%V\"",
                          &caller->db, &vlcf->db_prefix);

            *reason = "The name of the database is wrong.";
            return NGX_HTTP_INTERNAL_SERVER_ERROR;
        }

    } else if (instance->data != NULL) {

        if (!ngx_http_vibe_is_instance(instance)) {
            *reason = "The instanceId is wrong.";
            return NGX_HTTP_FORBIDDEN;
        }

        *reason = "The instanceId is too long.";

        rc = ngx_http_vibe_instance_db(r, vlcf, instance, &caller->db);
        if (rc != NGX_OK) {
            return rc;
        }

    } else if (ngx_http_vibe_db_of_did(r->pool, &vlcf->db_prefix,
                                       &caller->did, &caller->db)
               != NGX_OK)
    {
        return NGX_ERROR;
    }

    rc = ngx_http_vibe_did_of_db(r->pool, &vlcf->db_prefix, &caller->db,
                                 &did);

    if (rc == NGX_DECLINED) {
        /* its _local/vibe_owner says whose it is */
        return NGX_OK;
    }

    if (rc != NGX_OK) {
        return rc;
    }

    if (!ngx_http_vibe_same(&did, &caller->did)) {
        *reason = "This database belongs to another DID.";
        return NGX_HTTP_FORBIDDEN;
    }

    caller->named = 1;

    return NGX_OK;
}


static ngx_int_t
ngx_http_vibe_instance_db(ngx_http_request_t *r,
    ngx_http_vibe_loc_conf_t *vlcf, ngx_str_t *instance, ngx_str_t *db)
{
    u_char  *p;

    db->len = vlcf->db_prefix.len + instance->len;

    if (db->len > NGX_HTTP_VIBE_DB_MAX) {
        return NGX_HTTP_FORBIDDEN;
    }

    p = ngx_pnalloc(r->pool, db->len);
    if (p == NULL) {
        return NGX_ERROR;
    }

    db->data = p;

    p = ngx_cpymem(p, vlcf->db_prefix.data, vlcf->db_prefix.len);
    ngx_memcpy(p, instance->data, instance->len);

    return NGX_OK;
}
