
#include "ngx_http_vibe_acl.h"
#include "ngx_http_vibe_id.h"


/* what one rule, or an array of rules that must all match, matches */

typedef struct {
    ngx_uint_t    all;             /* everybody */
    ngx_str_t     did;             /* else this one, nobody if empty */
} ngx_http_vibe_rule_t;


/* the rules of "allow" or of "deny" */

typedef struct {
    ngx_uint_t    n;
    ngx_uint_t    all;
    ngx_array_t  *dids;            /* of ngx_str_t */
} ngx_http_vibe_rules_t;


static ngx_int_t ngx_http_vibe_acl_read(ngx_pool_t *pool, ngx_str_t *owner,
    ngx_http_vibe_json_t *acl, ngx_http_vibe_access_t *access);
static ngx_int_t ngx_http_vibe_acl_keep(ngx_array_t *dids);
static ngx_int_t ngx_http_vibe_acl_rules(ngx_http_vibe_json_t *list,
    ngx_uint_t deny, ngx_http_vibe_rules_t *rules);
static ngx_int_t ngx_http_vibe_acl_rule(ngx_http_vibe_json_t *node,
    ngx_uint_t deny, ngx_http_vibe_rule_t *rule);
static ngx_int_t ngx_http_vibe_acl_rule_term(ngx_http_vibe_json_t *node,
    ngx_uint_t deny, ngx_http_vibe_rule_t *rule);
static ngx_int_t ngx_http_vibe_acl_subtract(ngx_array_t *from,
    ngx_array_t *what, ngx_str_t *owner, ngx_array_t *rest);
static ngx_uint_t ngx_http_vibe_acl_holds(ngx_array_t *dids, ngx_str_t *did);
static ngx_int_t ngx_http_vibe_acl_add(ngx_array_t *dids, ngx_str_t *did);
static ngx_int_t ngx_http_vibe_acl_strings(ngx_http_vibe_json_t *list,
    ngx_array_t *dids, ngx_uint_t *all);
static void ngx_http_vibe_acl_put_list(ngx_http_vibe_json_out_t *out,
    ngx_uint_t all, ngx_array_t *dids);


ngx_int_t
ngx_http_vibe_acl_decide(ngx_pool_t *pool, ngx_str_t *owner,
    ngx_http_vibe_json_t *doc, ngx_http_vibe_access_t *access)
{
    ngx_int_t              rc;
    ngx_pool_t            *temp;
    const char            *reason;
    ngx_http_vibe_json_t  *acl, *deleted;

    ngx_memzero(access, sizeof(ngx_http_vibe_access_t));

    if (ngx_array_init(&access->read, pool, 4, sizeof(ngx_str_t)) != NGX_OK
        || ngx_array_init(&access->deny, pool, 4, sizeof(ngx_str_t)) != NGX_OK)
    {
        return NGX_ERROR;
    }

    deleted = ngx_http_vibe_json_get(doc, "_deleted");

    if (deleted != NULL && deleted->type != NGX_HTTP_VIBE_JSON_FALSE) {
        return NGX_OK;
    }

    acl = ngx_http_vibe_json_get(doc, "acl");

    if (acl == NULL
        || acl->type != NGX_HTTP_VIBE_JSON_OBJECT
        || ngx_http_vibe_json_count_of(doc, "acl") > 1)
    {
        return NGX_OK;
    }

    /* of what the scan takes nothing is needed later but the DIDs */

    temp = ngx_create_pool(NGX_DEFAULT_POOL_SIZE, pool->log);
    if (temp == NULL) {
        return NGX_ERROR;
    }

    rc = ngx_http_vibe_json_scan(temp, &acl->raw, NGX_HTTP_VIBE_JSON_ALL,
                                 &acl, &reason);

    if (rc == NGX_OK) {
        rc = ngx_http_vibe_acl_read(temp, owner, acl, access);
    }

    if (rc == NGX_OK) {
        rc = ngx_http_vibe_acl_keep(&access->read);
    }

    if (rc == NGX_OK) {
        rc = ngx_http_vibe_acl_keep(&access->deny);
    }

    ngx_destroy_pool(temp);

    if (rc == NGX_DECLINED) {
        /* not understood */
        access->kind = NGX_HTTP_VIBE_PRIVATE;
        access->deny.nelts = 0;
        return NGX_OK;
    }

    return rc;
}


/* moves DIDs from where they were scanned into the array's pool */

static ngx_int_t
ngx_http_vibe_acl_keep(ngx_array_t *dids)
{
    ngx_str_t   *did;
    ngx_uint_t   i;

    did = dids->elts;

    for (i = 0; i < dids->nelts; i++) {
        did[i].data = ngx_pstrdup(dids->pool, &did[i]);
        if (did[i].data == NULL) {
            return NGX_ERROR;
        }
    }

    return NGX_OK;
}


static ngx_int_t
ngx_http_vibe_acl_read(ngx_pool_t *pool, ngx_str_t *owner,
    ngx_http_vibe_json_t *acl, ngx_http_vibe_access_t *access)
{
    ngx_array_t             allowed;
    ngx_uint_t              members;
    ngx_http_vibe_json_t   *global, *read, *list_allow, *list_deny;
    ngx_http_vibe_rules_t   allow, deny;

    global = ngx_http_vibe_json_get(acl, "global");
    read = ngx_http_vibe_json_get(acl, "read");

    /* nor where rules stand in the wrong place */

    if (ngx_http_vibe_json_count_of(acl, "global") > 1
        || ngx_http_vibe_json_count_of(acl, "read") > 1
        || ngx_http_vibe_json_get(acl, "allow") != NULL
        || ngx_http_vibe_json_get(acl, "deny") != NULL)
    {
        return NGX_DECLINED;
    }

    if (global != NULL
        && global->type != NGX_HTTP_VIBE_JSON_TRUE
        && global->type != NGX_HTTP_VIBE_JSON_FALSE)
    {
        return NGX_DECLINED;
    }

    list_allow = ngx_http_vibe_json_get(read, "allow");
    list_deny = ngx_http_vibe_json_get(read, "deny");

    if (read != NULL) {
        members = (list_allow != NULL) + (list_deny != NULL);

        /* a member repeated or unknown may be meant to take access away */

        if (read->type != NGX_HTTP_VIBE_JSON_OBJECT || read->n != members) {
            return NGX_DECLINED;
        }
    }

    if (ngx_array_init(&allowed, pool, 4, sizeof(ngx_str_t)) != NGX_OK) {
        return NGX_ERROR;
    }

    allow.dids = &allowed;
    deny.dids = &access->deny;

    if (ngx_http_vibe_acl_rules(list_allow, 0, &allow) != NGX_OK
        || ngx_http_vibe_acl_rules(list_deny, 1, &deny) != NGX_OK
        || allow.n + deny.n > NGX_HTTP_VIBE_ACL_MAX)
    {
        return NGX_DECLINED;
    }

    if (deny.all) {
        return NGX_OK;
    }

    if (allow.all || (global && global->type == NGX_HTTP_VIBE_JSON_TRUE)) {
        access->all = 1;
        access->kind = deny.n ? NGX_HTTP_VIBE_RESTRICTED
                              : NGX_HTTP_VIBE_PUBLIC;
        return NGX_OK;
    }

    if (ngx_http_vibe_acl_subtract(&allowed, &access->deny, owner,
                                   &access->read)
        != NGX_OK)
    {
        return NGX_ERROR;
    }

    /* none of "read" is denied: nothing is left for "deny" to say */
    access->deny.nelts = 0;

    if (access->read.nelts) {
        access->kind = NGX_HTTP_VIBE_RESTRICTED;
    }

    return NGX_OK;
}


static ngx_int_t
ngx_http_vibe_acl_rules(ngx_http_vibe_json_t *list, ngx_uint_t deny,
    ngx_http_vibe_rules_t *rules)
{
    ngx_http_vibe_rule_t   rule;
    ngx_http_vibe_json_t  *node;

    rules->n = 0;
    rules->all = 0;

    if (list == NULL) {
        return NGX_OK;
    }

    if (list->type != NGX_HTTP_VIBE_JSON_ARRAY
        || list->n > NGX_HTTP_VIBE_ACL_MAX)
    {
        return NGX_DECLINED;
    }

    for (node = list->child; node; node = node->next) {

        if (ngx_http_vibe_acl_rule(node, deny, &rule) != NGX_OK) {
            return NGX_DECLINED;
        }

        rules->n++;

        if (rule.all) {
            rules->all = 1;

        } else if (rule.did.len
                   && ngx_http_vibe_acl_add(rules->dids, &rule.did) != NGX_OK)
        {
            return NGX_ERROR;
        }
    }

    return NGX_OK;
}


static ngx_int_t
ngx_http_vibe_acl_rule(ngx_http_vibe_json_t *node, ngx_uint_t deny,
    ngx_http_vibe_rule_t *rule)
{
    ngx_http_vibe_rule_t   term;
    ngx_http_vibe_json_t  *n;

    if (node->type != NGX_HTTP_VIBE_JSON_ARRAY) {
        return ngx_http_vibe_acl_rule_term(node, deny, rule);
    }

    if (node->n == 0) {
        return NGX_DECLINED;
    }

    /* all must match: the intersection */

    rule->all = 1;
    ngx_str_null(&rule->did);

    for (n = node->child; n; n = n->next) {

        if (ngx_http_vibe_acl_rule_term(n, deny, &term) != NGX_OK) {
            return NGX_DECLINED;
        }

        if (term.all) {
            continue;
        }

        if (rule->all) {
            *rule = term;

        } else if (!ngx_http_vibe_same(&rule->did, &term.did)) {
            ngx_str_null(&rule->did);
        }
    }

    return NGX_OK;
}


static ngx_int_t
ngx_http_vibe_acl_rule_term(ngx_http_vibe_json_t *node, ngx_uint_t deny,
    ngx_http_vibe_rule_t *rule)
{
    ngx_http_vibe_json_t  *issuer, *type;

    rule->all = 0;
    ngx_str_null(&rule->did);

    if (ngx_http_vibe_json_is_string(node, "*")) {
        rule->all = 1;
        return NGX_OK;
    }

    if (node->type == NGX_HTTP_VIBE_JSON_STRING) {
        rule->did = node->string;
        return ngx_http_vibe_is_did(&node->string) ? NGX_OK : NGX_DECLINED;
    }

    /* a certificate cannot be checked here: it matches nobody, or all */

    issuer = ngx_http_vibe_json_get(node, "issuer");
    type = ngx_http_vibe_json_get(node, "type");

    if (issuer == NULL || issuer->type != NGX_HTTP_VIBE_JSON_STRING
        || type == NULL || type->type != NGX_HTTP_VIBE_JSON_STRING
        || node->n != 2)
    {
        return NGX_DECLINED;
    }

    rule->all = deny;

    return NGX_OK;
}


static ngx_int_t
ngx_http_vibe_acl_subtract(ngx_array_t *from, ngx_array_t *what,
    ngx_str_t *owner, ngx_array_t *rest)
{
    ngx_str_t   *did;
    ngx_uint_t   i;

    did = from->elts;

    for (i = 0; i < from->nelts; i++) {

        if (ngx_http_vibe_acl_holds(what, &did[i])
            || (owner != NULL && ngx_http_vibe_same(&did[i], owner)))
        {
            continue;
        }

        if (ngx_http_vibe_acl_add(rest, &did[i]) != NGX_OK) {
            return NGX_ERROR;
        }
    }

    return NGX_OK;
}


static ngx_uint_t
ngx_http_vibe_acl_holds(ngx_array_t *dids, ngx_str_t *did)
{
    ngx_str_t   *d;
    ngx_uint_t   i;

    d = dids->elts;

    for (i = 0; i < dids->nelts; i++) {
        if (ngx_http_vibe_same(&d[i], did)) {
            return 1;
        }
    }

    return 0;
}


static ngx_int_t
ngx_http_vibe_acl_add(ngx_array_t *dids, ngx_str_t *did)
{
    ngx_str_t  *d;

    d = ngx_array_push(dids);
    if (d == NULL) {
        return NGX_ERROR;
    }

    *d = *did;

    return NGX_OK;
}


ngx_int_t
ngx_http_vibe_acl_dup(ngx_pool_t *pool, ngx_http_vibe_access_t *from,
    ngx_http_vibe_access_t *to)
{
    ngx_str_t   *did;
    ngx_uint_t   i, n;

    n = from->read.nelts + from->deny.nelts;

    *to = *from;

    did = ngx_palloc(pool, (n + 1) * sizeof(ngx_str_t));
    if (did == NULL) {
        return NGX_ERROR;
    }

    to->read.elts = did;
    to->deny.elts = did + from->read.nelts;

    ngx_memcpy(to->read.elts, from->read.elts,
               from->read.nelts * sizeof(ngx_str_t));
    ngx_memcpy(to->deny.elts, from->deny.elts,
               from->deny.nelts * sizeof(ngx_str_t));

    /* full: nothing is added to what was decided */

    to->read.pool = to->deny.pool = pool;
    to->read.nalloc = from->read.nelts;
    to->deny.nalloc = from->deny.nelts;

    for (i = 0; i < n; i++) {
        did[i].data = ngx_pstrdup(pool, &did[i]);
        if (did[i].data == NULL) {
            return NGX_ERROR;
        }
    }

    return NGX_OK;
}


ngx_int_t
ngx_http_vibe_acl_of_copy(ngx_pool_t *pool, ngx_http_vibe_json_t *copy,
    ngx_http_vibe_access_t *access)
{
    ngx_int_t              rc;
    ngx_uint_t             all;
    ngx_http_vibe_json_t  *kind;

    ngx_memzero(access, sizeof(ngx_http_vibe_access_t));

    if (ngx_array_init(&access->read, pool, 4, sizeof(ngx_str_t)) != NGX_OK
        || ngx_array_init(&access->deny, pool, 4, sizeof(ngx_str_t)) != NGX_OK)
    {
        return NGX_ERROR;
    }

    kind = ngx_http_vibe_json_get(copy, "vibe_access");

    if (ngx_http_vibe_json_is_string(kind, "public")) {
        access->kind = NGX_HTTP_VIBE_PUBLIC;
        access->all = 1;
        return NGX_OK;
    }

    if (!ngx_http_vibe_json_is_string(kind, "restricted")) {
        return NGX_OK;
    }

    rc = ngx_http_vibe_acl_strings(ngx_http_vibe_json_get(copy, "vibe_read"),
                                   &access->read, &access->all);
    if (rc == NGX_OK) {
        rc = ngx_http_vibe_acl_strings(ngx_http_vibe_json_get(copy,
                                                              "vibe_deny"),
                                       &access->deny, &all);
    }

    if (rc == NGX_ERROR) {
        return NGX_ERROR;
    }

    /* whoever wrote it otherwise was not the module */

    if (rc == NGX_OK && !all) {
        access->kind = NGX_HTTP_VIBE_RESTRICTED;
    }

    return NGX_OK;
}


/*
 * An array of DIDs and "*", scanned again as it may lie too deep to be
 * remembered.  NGX_DECLINED: it is something else.
 */

static ngx_int_t
ngx_http_vibe_acl_strings(ngx_http_vibe_json_t *list, ngx_array_t *dids,
    ngx_uint_t *all)
{
    ngx_int_t              rc;
    const char            *reason;
    ngx_http_vibe_json_t  *node;

    *all = 0;

    if (list == NULL || list->type != NGX_HTTP_VIBE_JSON_ARRAY) {
        return NGX_DECLINED;
    }

    rc = ngx_http_vibe_json_scan(dids->pool, &list->raw, 1, &list, &reason);

    if (rc != NGX_OK) {
        return rc;
    }

    for (node = list->child; node; node = node->next) {

        if (node->type != NGX_HTTP_VIBE_JSON_STRING) {
            return NGX_DECLINED;
        }

        if (ngx_http_vibe_json_is_string(node, "*")) {
            *all = 1;

        } else if (ngx_http_vibe_acl_add(dids, &node->string) != NGX_OK) {
            return NGX_ERROR;
        }
    }

    return NGX_OK;
}


ngx_uint_t
ngx_http_vibe_acl_may_read(ngx_http_vibe_access_t *access, ngx_str_t *owner,
    ngx_str_t *did)
{
    if (access->kind == NGX_HTTP_VIBE_PUBLIC) {
        return 1;
    }

    if (did->len == 0) {
        return 0;
    }

    if (ngx_http_vibe_same(did, owner)) {
        return 1;
    }

    if (access->kind != NGX_HTTP_VIBE_RESTRICTED
        || ngx_http_vibe_acl_holds(&access->deny, did))
    {
        return 0;
    }

    return access->all || ngx_http_vibe_acl_holds(&access->read, did);
}


void
ngx_http_vibe_acl_put(ngx_http_vibe_json_out_t *out,
    ngx_http_vibe_access_t *access)
{
    if (access->kind == NGX_HTTP_VIBE_PUBLIC) {
        ngx_http_vibe_json_put_text(out, ",\"vibe_access\":\"public\"");
        return;
    }

    ngx_http_vibe_json_put_text(out,
        ",\"vibe_access\":\"restricted\",\"vibe_read\":");
    ngx_http_vibe_acl_put_list(out, access->all, &access->read);

    ngx_http_vibe_json_put_text(out, ",\"vibe_deny\":");
    ngx_http_vibe_acl_put_list(out, 0, &access->deny);
}


static void
ngx_http_vibe_acl_put_list(ngx_http_vibe_json_out_t *out, ngx_uint_t all,
    ngx_array_t *dids)
{
    if (all) {
        ngx_http_vibe_json_put_text(out, "[\"*\"]");
        return;
    }

    ngx_http_vibe_json_put_strings(out, dids);
}


void
ngx_http_vibe_acl_put_selector(ngx_http_vibe_json_out_t *out, ngx_str_t *did)
{
    if (did->len == 0) {
        ngx_http_vibe_json_put_text(out,
            "{\"vibe_access\":{\"$eq\":\"public\"}}");
        return;
    }

    ngx_http_vibe_json_put_text(out,
        "{\"$or\":[{\"vibe_access\":{\"$eq\":\"public\"}},"
        "{\"vibe_owner\":{\"$eq\":");
    ngx_http_vibe_json_put_string(out, did);

    ngx_http_vibe_json_put_text(out,
        "}},{\"$and\":[{\"vibe_access\":{\"$eq\":\"restricted\"}},"
        "{\"$or\":[{\"vibe_read\":{\"$elemMatch\":{\"$eq\":\"*\"}}},"
        "{\"vibe_read\":{\"$elemMatch\":{\"$eq\":");
    ngx_http_vibe_json_put_string(out, did);

    ngx_http_vibe_json_put_text(out,
        "}}}]},{\"$nor\":[{\"vibe_deny\":{\"$elemMatch\":{\"$eq\":");
    ngx_http_vibe_json_put_string(out, did);

    ngx_http_vibe_json_put_text(out, "}}}]}]}]}");
}


ngx_int_t
ngx_http_vibe_past_of_copy(ngx_pool_t *pool, ngx_http_vibe_json_t *copy,
    ngx_http_vibe_past_t *past)
{
    ngx_uint_t  all;

    past->all = 0;

    if (ngx_array_init(&past->read, pool, 4, sizeof(ngx_str_t)) != NGX_OK
        || ngx_array_init(&past->deny, pool, 4, sizeof(ngx_str_t)) != NGX_OK)
    {
        return NGX_ERROR;
    }

    if (ngx_http_vibe_acl_strings(ngx_http_vibe_json_get(copy, "vibe_past"),
                                  &past->read, &past->all)
        == NGX_ERROR
        || ngx_http_vibe_acl_strings(ngx_http_vibe_json_get(copy,
                                                            "vibe_never"),
                                     &past->deny, &all)
           == NGX_ERROR)
    {
        return NGX_ERROR;
    }

    return NGX_OK;
}


ngx_int_t
ngx_http_vibe_past_add(ngx_pool_t *pool, ngx_http_vibe_past_t *past,
    ngx_http_vibe_access_t *access)
{
    ngx_str_t    *did;
    ngx_uint_t    i;
    ngx_array_t   never;

    if (access->kind == NGX_HTTP_VIBE_PRIVATE) {
        return NGX_OK;
    }

    if (access->all) {

        /* denied now and then: those who were denied each time */

        if (ngx_array_init(&never, pool, 4, sizeof(ngx_str_t)) != NGX_OK) {
            return NGX_ERROR;
        }

        did = access->deny.elts;

        for (i = 0; i < access->deny.nelts; i++) {

            if (past->all ? !ngx_http_vibe_acl_holds(&past->deny, &did[i])
                          : ngx_http_vibe_acl_holds(&past->read, &did[i]))
            {
                continue;
            }

            if (ngx_http_vibe_acl_add(&never, &did[i]) != NGX_OK) {
                return NGX_ERROR;
            }
        }

        past->all = 1;
        past->read.nelts = 0;
        past->deny = never;

        return NGX_OK;
    }

    if (past->all) {
        if (ngx_array_init(&never, pool, 4, sizeof(ngx_str_t)) != NGX_OK) {
            return NGX_ERROR;
        }

        if (ngx_http_vibe_acl_subtract(&past->deny, &access->read, NULL,
                                       &never)
            != NGX_OK)
        {
            return NGX_ERROR;
        }

        past->deny = never;

        return NGX_OK;
    }

    did = access->read.elts;

    for (i = 0; i < access->read.nelts; i++) {

        if (past->read.nelts >= NGX_HTTP_VIBE_PAST_MAX) {
            break;
        }

        if (!ngx_http_vibe_acl_holds(&past->read, &did[i])
            && ngx_http_vibe_acl_add(&past->read, &did[i]) != NGX_OK)
        {
            return NGX_ERROR;
        }
    }

    return NGX_OK;
}


void
ngx_http_vibe_past_put(ngx_http_vibe_json_out_t *out,
    ngx_http_vibe_past_t *past)
{
    if (!past->all && past->read.nelts == 0) {
        return;
    }

    ngx_http_vibe_json_put_text(out, ",\"vibe_past\":");
    ngx_http_vibe_acl_put_list(out, past->all, &past->read);

    if (past->deny.nelts) {
        ngx_http_vibe_json_put_text(out, ",\"vibe_never\":");
        ngx_http_vibe_acl_put_list(out, 0, &past->deny);
    }
}
