
/*
 * ngx_http_vibe_module: the directives, the configuration, where the rooms
 * of src/ are hooked into nginx.  Nothing else.
 *
 * The floors; calls go downwards only:
 *
 *   6  this file
 *   5  data (which hands over to) write, query, expand; status, aggregate;
 *      repair, views
 *   4  mirror, check, walk, target, pass, poll, lease, feeds, feed, pointer,
 *      view, gather, level, rows, withdraw, database, sequence, global, caller
 *   3  lookup, bulk, index, answer, wait, subrequest, ask, follow, couch
 *   2  acl, copy, state, document, find, registry, selector, jwt, jwt_key,
 *      revoked, status_feeds
 *   1  json, id, file, names, zone
 */


#include "ngx_http_vibe.h"
#include "ngx_http_vibe_aggregate.h"
#include "ngx_http_vibe_answer.h"
#include "ngx_http_vibe_data.h"
#include "ngx_http_vibe_feeds.h"
#include "ngx_http_vibe_file.h"
#include "ngx_http_vibe_global.h"
#include "ngx_http_vibe_index.h"
#include "ngx_http_vibe_lease.h"
#include "ngx_http_vibe_mirror.h"
#include "ngx_http_vibe_repair.h"
#include "ngx_http_vibe_selector.h"
#include "ngx_http_vibe_status.h"
#include "ngx_http_vibe_views.h"


/* bytes of a file of credentials, and of a name in the environment */
#define NGX_HTTP_VIBE_CREDENTIALS_MAX  1024

/* with the SHA-256 of a DID behind it, a database's name must be one still */
#define NGX_HTTP_VIBE_DB_PREFIX_MAX    (NGX_HTTP_VIBE_DB_MAX - 64)


static ngx_int_t ngx_http_vibe_header_filter(ngx_http_request_t *r);
static ngx_int_t ngx_http_vibe_body_filter(ngx_http_request_t *r,
    ngx_chain_t *in);

static char *ngx_http_vibe_couchdb(ngx_conf_t *cf, ngx_command_t *cmd,
    void *conf);
static char *ngx_http_vibe_trusted(ngx_conf_t *cf, ngx_command_t *cmd,
    void *conf);
static char *ngx_http_vibe_credentials(ngx_conf_t *cf, ngx_command_t *cmd,
    void *conf);
static char *ngx_http_vibe_credentials_file(ngx_conf_t *cf, ngx_str_t *file,
    ngx_str_t *text);
static char *ngx_http_vibe_index(ngx_conf_t *cf, ngx_command_t *cmd,
    void *conf);
static ngx_int_t ngx_http_vibe_index_add(ngx_conf_t *cf,
    ngx_http_vibe_main_conf_t *vmcf, ngx_str_t *collection, ngx_str_t *fields,
    ngx_uint_t n);
static char *ngx_http_vibe_zone(ngx_conf_t *cf, ngx_command_t *cmd,
    void *conf);
static char *ngx_http_vibe_registry(ngx_conf_t *cf, ngx_command_t *cmd,
    void *conf);
static char *ngx_http_vibe_registry_named(ngx_conf_t *cf,
    ngx_http_vibe_main_conf_t *vmcf, ngx_str_t *db);
static char *ngx_http_vibe_jwt_key(ngx_conf_t *cf, ngx_command_t *cmd,
    void *conf);
static char *ngx_http_vibe_revoked_file(ngx_conf_t *cf, ngx_command_t *cmd,
    void *conf);
static char *ngx_http_vibe_origins(ngx_conf_t *cf, ngx_command_t *cmd,
    void *conf);
static char *ngx_http_vibe_db_prefix(ngx_conf_t *cf, void *post, void *data);
static char *ngx_http_vibe_lease_bounds(ngx_conf_t *cf, void *post,
    void *data);
static char *ngx_http_vibe_some_time(ngx_conf_t *cf, void *post, void *data);
static char *ngx_http_vibe_some_size(ngx_conf_t *cf, void *post, void *data);
static char *ngx_http_vibe_data(ngx_conf_t *cf, ngx_command_t *cmd,
    void *conf);
static char *ngx_http_vibe_status(ngx_conf_t *cf, ngx_command_t *cmd,
    void *conf);
static char *ngx_http_vibe_aggregate(ngx_conf_t *cf, ngx_command_t *cmd,
    void *conf);
static char *ngx_http_vibe_tool(ngx_conf_t *cf, ngx_command_t *cmd,
    ngx_http_handler_pt handler);
static char *ngx_http_vibe_taken(ngx_conf_t *cf, ngx_http_handler_pt handler);

static void *ngx_http_vibe_create_main_conf(ngx_conf_t *cf);
static char *ngx_http_vibe_init_main_conf(ngx_conf_t *cf, void *conf);
static void *ngx_http_vibe_create_loc_conf(ngx_conf_t *cf);
static char *ngx_http_vibe_merge_loc_conf(ngx_conf_t *cf, void *parent,
    void *child);
static ngx_int_t ngx_http_vibe_add_prefix(ngx_http_vibe_main_conf_t *vmcf,
    ngx_str_t *prefix);
static ngx_int_t ngx_http_vibe_preconfiguration(ngx_conf_t *cf);
static ngx_int_t ngx_http_vibe_postconfiguration(ngx_conf_t *cf);
static ngx_int_t ngx_http_vibe_registry_check(ngx_conf_t *cf,
    ngx_http_vibe_main_conf_t *vmcf);
static ngx_int_t ngx_http_vibe_addresses(ngx_conf_t *cf,
    ngx_http_vibe_main_conf_t *vmcf);
static ngx_int_t ngx_http_vibe_add_addresses(ngx_array_t *to,
    ngx_addr_t *addrs, ngx_uint_t n);
static ngx_int_t ngx_http_vibe_init_process(ngx_cycle_t *cycle);
static void ngx_http_vibe_exit_process(ngx_cycle_t *cycle);


static ngx_conf_post_t  ngx_http_vibe_db_prefix_post = {
    ngx_http_vibe_db_prefix
};

static ngx_conf_num_bounds_t  ngx_http_vibe_max_docs_bounds = {
    ngx_conf_check_num_bounds, 1, 10000
};

static ngx_conf_num_bounds_t  ngx_http_vibe_max_limit_bounds = {
    ngx_conf_check_num_bounds, 1, 10000
};

static ngx_conf_num_bounds_t  ngx_http_vibe_own_indexes_bounds = {
    ngx_conf_check_num_bounds, 0, 100
};

static ngx_conf_num_bounds_t  ngx_http_vibe_batch_docs_bounds = {
    ngx_conf_check_num_bounds, 1, 10000
};

static ngx_conf_post_t  ngx_http_vibe_some_time_post = {
    ngx_http_vibe_some_time
};

static ngx_conf_post_t  ngx_http_vibe_some_size_post = {
    ngx_http_vibe_some_size
};

static ngx_conf_post_t  ngx_http_vibe_lease_post = {
    ngx_http_vibe_lease_bounds
};

static ngx_conf_num_bounds_t  ngx_http_vibe_scan_rate_bounds = {
    ngx_conf_check_num_bounds, 1, 10000
};

static ngx_conf_enum_t  ngx_http_vibe_global_reads[] = {
    { ngx_string("live"), NGX_HTTP_VIBE_READS_LIVE },
    { ngx_string("registered"), NGX_HTTP_VIBE_READS_REGISTERED },
    { ngx_string("any"), NGX_HTTP_VIBE_READS_ANY },
    { ngx_null_string, 0 }
};


static ngx_command_t  ngx_http_vibe_commands[] = {

    { ngx_string("vibe_couchdb"),
      NGX_HTTP_MAIN_CONF|NGX_CONF_TAKE1,
      ngx_http_vibe_couchdb,
      NGX_HTTP_MAIN_CONF_OFFSET,
      0,
      NULL },

    { ngx_string("vibe_credentials"),
      NGX_HTTP_MAIN_CONF|NGX_CONF_TAKE1,
      ngx_http_vibe_credentials,
      NGX_HTTP_MAIN_CONF_OFFSET,
      0,
      NULL },

    { ngx_string("vibe_index"),
      NGX_HTTP_MAIN_CONF|NGX_CONF_2MORE,
      ngx_http_vibe_index,
      NGX_HTTP_MAIN_CONF_OFFSET,
      0,
      NULL },

    { ngx_string("vibe_max_response"),
      NGX_HTTP_MAIN_CONF|NGX_CONF_TAKE1,
      ngx_conf_set_size_slot,
      NGX_HTTP_MAIN_CONF_OFFSET,
      offsetof(ngx_http_vibe_main_conf_t, couch.max_response),
      NULL },

    { ngx_string("vibe_trusted_certificate"),
      NGX_HTTP_MAIN_CONF|NGX_CONF_TAKE1,
      ngx_http_vibe_trusted,
      NGX_HTTP_MAIN_CONF_OFFSET,
      0,
      NULL },

    { ngx_string("vibe_connect_timeout"),
      NGX_HTTP_MAIN_CONF|NGX_CONF_TAKE1,
      ngx_conf_set_msec_slot,
      NGX_HTTP_MAIN_CONF_OFFSET,
      offsetof(ngx_http_vibe_main_conf_t, couch.connect_timeout),
      &ngx_http_vibe_some_time_post },

    { ngx_string("vibe_timeout"),
      NGX_HTTP_MAIN_CONF|NGX_CONF_TAKE1,
      ngx_conf_set_msec_slot,
      NGX_HTTP_MAIN_CONF_OFFSET,
      offsetof(ngx_http_vibe_main_conf_t, couch.timeout),
      &ngx_http_vibe_some_time_post },

    { ngx_string("vibe_batch_docs"),
      NGX_HTTP_MAIN_CONF|NGX_CONF_TAKE1,
      ngx_conf_set_num_slot,
      NGX_HTTP_MAIN_CONF_OFFSET,
      offsetof(ngx_http_vibe_main_conf_t, batch_docs),
      &ngx_http_vibe_batch_docs_bounds },

    { ngx_string("vibe_batch_size"),
      NGX_HTTP_MAIN_CONF|NGX_CONF_TAKE1,
      ngx_conf_set_size_slot,
      NGX_HTTP_MAIN_CONF_OFFSET,
      offsetof(ngx_http_vibe_main_conf_t, batch_size),
      &ngx_http_vibe_some_size_post },

    { ngx_string("vibe_mirror_size"),
      NGX_HTTP_MAIN_CONF|NGX_CONF_TAKE1,
      ngx_conf_set_size_slot,
      NGX_HTTP_MAIN_CONF_OFFSET,
      offsetof(ngx_http_vibe_main_conf_t, mirror_size),
      &ngx_http_vibe_some_size_post },

    { ngx_string("vibe_zone"),
      NGX_HTTP_MAIN_CONF|NGX_CONF_TAKE2,
      ngx_http_vibe_zone,
      NGX_HTTP_MAIN_CONF_OFFSET,
      0,
      NULL },

    { ngx_string("vibe_repair"),
      NGX_HTTP_MAIN_CONF|NGX_CONF_FLAG,
      ngx_conf_set_flag_slot,
      NGX_HTTP_MAIN_CONF_OFFSET,
      offsetof(ngx_http_vibe_main_conf_t, repair),
      NULL },

    { ngx_string("vibe_lease"),
      NGX_HTTP_MAIN_CONF|NGX_CONF_TAKE1,
      ngx_conf_set_msec_slot,
      NGX_HTTP_MAIN_CONF_OFFSET,
      offsetof(ngx_http_vibe_main_conf_t, lease),
      &ngx_http_vibe_lease_post },

    { ngx_string("vibe_sweep"),
      NGX_HTTP_MAIN_CONF|NGX_CONF_TAKE1,
      ngx_conf_set_msec_slot,
      NGX_HTTP_MAIN_CONF_OFFSET,
      offsetof(ngx_http_vibe_main_conf_t, sweep),
      &ngx_http_vibe_some_time_post },

    { ngx_string("vibe_scan_rate"),
      NGX_HTTP_MAIN_CONF|NGX_CONF_TAKE1,
      ngx_conf_set_num_slot,
      NGX_HTTP_MAIN_CONF_OFFSET,
      offsetof(ngx_http_vibe_main_conf_t, scan_rate),
      &ngx_http_vibe_scan_rate_bounds },

    { ngx_string("vibe_registry"),
      NGX_HTTP_MAIN_CONF|NGX_CONF_TAKE1,
      ngx_http_vibe_registry,
      NGX_HTTP_MAIN_CONF_OFFSET,
      0,
      NULL },

    { ngx_string("vibe_data"),
      NGX_HTTP_LOC_CONF|NGX_CONF_NOARGS,
      ngx_http_vibe_data,
      NGX_HTTP_LOC_CONF_OFFSET,
      0,
      NULL },

    { ngx_string("vibe_status"),
      NGX_HTTP_LOC_CONF|NGX_CONF_NOARGS,
      ngx_http_vibe_status,
      NGX_HTTP_LOC_CONF_OFFSET,
      0,
      NULL },

    { ngx_string("vibe_aggregate"),
      NGX_HTTP_LOC_CONF|NGX_CONF_NOARGS,
      ngx_http_vibe_aggregate,
      NGX_HTTP_LOC_CONF_OFFSET,
      0,
      NULL },

    { ngx_string("vibe_token"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_HTTP_LOC_CONF|NGX_CONF_TAKE1,
      ngx_http_set_complex_value_slot,
      NGX_HTTP_LOC_CONF_OFFSET,
      offsetof(ngx_http_vibe_loc_conf_t, token),
      NULL },

    { ngx_string("vibe_did"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_HTTP_LOC_CONF|NGX_CONF_TAKE1,
      ngx_http_set_complex_value_slot,
      NGX_HTTP_LOC_CONF_OFFSET,
      offsetof(ngx_http_vibe_loc_conf_t, did),
      NULL },

    { ngx_string("vibe_db"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_HTTP_LOC_CONF|NGX_CONF_TAKE1,
      ngx_http_set_complex_value_slot,
      NGX_HTTP_LOC_CONF_OFFSET,
      offsetof(ngx_http_vibe_loc_conf_t, db),
      NULL },

    { ngx_string("vibe_db_prefix"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_HTTP_LOC_CONF|NGX_CONF_TAKE1,
      ngx_conf_set_str_slot,
      NGX_HTTP_LOC_CONF_OFFSET,
      offsetof(ngx_http_vibe_loc_conf_t, db_prefix),
      &ngx_http_vibe_db_prefix_post },

    { ngx_string("vibe_anonymous"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_HTTP_LOC_CONF|NGX_CONF_FLAG,
      ngx_conf_set_flag_slot,
      NGX_HTTP_LOC_CONF_OFFSET,
      offsetof(ngx_http_vibe_loc_conf_t, anonymous),
      NULL },

    { ngx_string("vibe_jwt_key"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_HTTP_LOC_CONF|NGX_CONF_TAKE12,
      ngx_http_vibe_jwt_key,
      NGX_HTTP_LOC_CONF_OFFSET,
      0,
      NULL },

    { ngx_string("vibe_jwt_issuer"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_HTTP_LOC_CONF|NGX_CONF_TAKE1,
      ngx_conf_set_str_slot,
      NGX_HTTP_LOC_CONF_OFFSET,
      offsetof(ngx_http_vibe_loc_conf_t, jwt.issuer),
      NULL },

    { ngx_string("vibe_jwt_audience"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_HTTP_LOC_CONF|NGX_CONF_TAKE1,
      ngx_conf_set_str_slot,
      NGX_HTTP_LOC_CONF_OFFSET,
      offsetof(ngx_http_vibe_loc_conf_t, jwt.audience),
      NULL },

    { ngx_string("vibe_jwt_leeway"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_HTTP_LOC_CONF|NGX_CONF_TAKE1,
      ngx_conf_set_sec_slot,
      NGX_HTTP_LOC_CONF_OFFSET,
      offsetof(ngx_http_vibe_loc_conf_t, jwt.leeway),
      NULL },

    { ngx_string("vibe_revoked"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_HTTP_LOC_CONF|NGX_CONF_TAKE1,
      ngx_http_vibe_revoked_file,
      NGX_HTTP_LOC_CONF_OFFSET,
      0,
      NULL },

    { ngx_string("vibe_origins"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_HTTP_LOC_CONF|NGX_CONF_1MORE,
      ngx_http_vibe_origins,
      NGX_HTTP_LOC_CONF_OFFSET,
      0,
      NULL },

    { ngx_string("vibe_max_docs"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_HTTP_LOC_CONF|NGX_CONF_TAKE1,
      ngx_conf_set_num_slot,
      NGX_HTTP_LOC_CONF_OFFSET,
      offsetof(ngx_http_vibe_loc_conf_t, max_docs),
      &ngx_http_vibe_max_docs_bounds },

    { ngx_string("vibe_max_limit"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_HTTP_LOC_CONF|NGX_CONF_TAKE1,
      ngx_conf_set_num_slot,
      NGX_HTTP_LOC_CONF_OFFSET,
      offsetof(ngx_http_vibe_loc_conf_t, max_limit),
      &ngx_http_vibe_max_limit_bounds },

    { ngx_string("vibe_own_indexes"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_HTTP_LOC_CONF|NGX_CONF_TAKE1,
      ngx_conf_set_num_slot,
      NGX_HTTP_LOC_CONF_OFFSET,
      offsetof(ngx_http_vibe_loc_conf_t, own_indexes),
      &ngx_http_vibe_own_indexes_bounds },

    { ngx_string("vibe_global_regex"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_HTTP_LOC_CONF|NGX_CONF_FLAG,
      ngx_conf_set_flag_slot,
      NGX_HTTP_LOC_CONF_OFFSET,
      offsetof(ngx_http_vibe_loc_conf_t, global_regex),
      NULL },

    { ngx_string("vibe_global_reads"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_HTTP_LOC_CONF|NGX_CONF_TAKE1,
      ngx_conf_set_enum_slot,
      NGX_HTTP_LOC_CONF_OFFSET,
      offsetof(ngx_http_vibe_loc_conf_t, global_reads),
      &ngx_http_vibe_global_reads },

      ngx_null_command
};


static ngx_http_module_t  ngx_http_vibe_module_ctx = {
    ngx_http_vibe_preconfiguration,        /* preconfiguration */
    ngx_http_vibe_postconfiguration,       /* postconfiguration */

    ngx_http_vibe_create_main_conf,        /* create main configuration */
    ngx_http_vibe_init_main_conf,          /* init main configuration */

    NULL,                                  /* create server configuration */
    NULL,                                  /* merge server configuration */

    ngx_http_vibe_create_loc_conf,         /* create location configuration */
    ngx_http_vibe_merge_loc_conf           /* merge location configuration */
};


ngx_module_t  ngx_http_vibe_module = {
    NGX_MODULE_V1,
    &ngx_http_vibe_module_ctx,             /* module context */
    ngx_http_vibe_commands,                /* module directives */
    NGX_HTTP_MODULE,                       /* module type */
    NULL,                                  /* init master */
    NULL,                                  /* init module */
    ngx_http_vibe_init_process,            /* init process */
    NULL,                                  /* init thread */
    NULL,                                  /* exit thread */
    ngx_http_vibe_exit_process,            /* exit process */
    NULL,                                  /* exit master */
    NGX_MODULE_V1_PADDING
};


static ngx_http_variable_t  ngx_http_vibe_variables[] = {

    { ngx_string("vibe_couchdb_url"), NULL, ngx_http_vibe_subrequest_url, 0,
      NGX_HTTP_VAR_NOCACHEABLE|NGX_HTTP_VAR_NOHASH, 0 },

    { ngx_string("vibe_couchdb_authorization"), NULL,
      ngx_http_vibe_subrequest_authorization, 0,
      NGX_HTTP_VAR_NOCACHEABLE|NGX_HTTP_VAR_NOHASH, 0 },

      ngx_http_null_variable
};


static ngx_http_output_header_filter_pt  ngx_http_next_header_filter;
static ngx_http_output_body_filter_pt    ngx_http_next_body_filter;


static ngx_int_t
ngx_http_vibe_header_filter(ngx_http_request_t *r)
{
    ngx_http_vibe_ctx_t       *ctx;
    ngx_http_vibe_loc_conf_t  *vlcf;

    ctx = ngx_http_get_module_ctx(r, ngx_http_vibe_module);

    if (ctx != NULL && ctx->capture != NULL) {
        return ngx_http_vibe_subrequest_header(ctx->capture, r);
    }

    vlcf = ngx_http_get_module_loc_conf(r, ngx_http_vibe_module);

    if (r != r->main || !vlcf->data) {
        return ngx_http_next_header_filter(r);
    }

    if (ctx == NULL) {

        /* nginx has refused the request before it came to the handler */

        ctx = ngx_pcalloc(r->pool, sizeof(ngx_http_vibe_ctx_t));
        if (ctx == NULL) {
            return NGX_ERROR;
        }

        ngx_http_set_ctx(r, ctx, ngx_http_vibe_module);
    }

    if (ngx_http_vibe_answer_header(r, ctx) != NGX_OK) {
        return NGX_ERROR;
    }

    return ngx_http_next_header_filter(r);
}


static ngx_int_t
ngx_http_vibe_body_filter(ngx_http_request_t *r, ngx_chain_t *in)
{
    ngx_chain_t          *page;
    ngx_http_vibe_ctx_t  *ctx;

    ctx = ngx_http_get_module_ctx(r, ngx_http_vibe_module);

    if (ctx == NULL) {
        return ngx_http_next_body_filter(r, in);
    }

    if (ctx->capture != NULL) {
        return ngx_http_vibe_subrequest_body(ctx->capture, r, in);
    }

    if (!ctx->replace || in == NULL) {
        return ngx_http_next_body_filter(r, in);
    }

    ctx->replace = 0;

    if (ngx_http_vibe_answer_page(r, &page) != NGX_OK) {
        return NGX_ERROR;
    }

    return ngx_http_next_body_filter(r, page);
}


static char *
ngx_http_vibe_couchdb(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    ngx_http_vibe_main_conf_t *vmcf = conf;

    size_t      scheme;
    ngx_str_t  *value, *url;
    ngx_url_t   u;

    if (vmcf->couch.url.len) {
        return "is duplicate";
    }

    value = cf->args->elts;

    ngx_memzero(&u, sizeof(ngx_url_t));

    if (ngx_strncasecmp(value[1].data, (u_char *) "http://", 7) == 0) {
        scheme = 7;
        u.default_port = 80;

    } else if (ngx_strncasecmp(value[1].data, (u_char *) "https://", 8) == 0) {
        scheme = 8;
        u.default_port = 443;

    } else {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "\"vibe_couchdb\" must begin with \"http://\" "
                           "or \"https://\"");
        return NGX_CONF_ERROR;
    }

    url = &vmcf->couch.url;

    *url = value[1];

    while (url->len > scheme && url->data[url->len - 1] == '/') {
        url->len--;
    }

    if (ngx_strlchr(value[1].data, value[1].data + value[1].len, '@')) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "the user of \"vibe_couchdb\" belongs into "
                           "\"vibe_credentials\"");
        return NGX_CONF_ERROR;
    }

    if (ngx_strlchr(url->data + scheme, url->data + url->len, '/')
        || ngx_strlchr(url->data + scheme, url->data + url->len, '?'))
    {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "\"vibe_couchdb\" may not have a path");
        return NGX_CONF_ERROR;
    }

    /*
     * An upstream of this name, or one made of the address: resolved now, so
     * that the location's proxy_pass finds it and needs no resolver.
     */

    u.url.data = url->data + scheme;
    u.url.len = url->len - scheme;
    u.uri_part = 1;
    u.no_resolve = 1;

    vmcf->upstream = ngx_http_upstream_add(cf, &u, 0);

    return vmcf->upstream ? NGX_CONF_OK : NGX_CONF_ERROR;
}


static char *
ngx_http_vibe_trusted(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    ngx_http_vibe_main_conf_t *vmcf = conf;

    ngx_str_t        *value;
    ngx_file_info_t   fi;

    if (vmcf->couch.trusted.len) {
        return "is duplicate";
    }

    value = cf->args->elts;

    vmcf->couch.trusted = value[1];

    if (ngx_conf_full_name(cf->cycle, &vmcf->couch.trusted, 1) != NGX_OK) {
        return NGX_CONF_ERROR;
    }

    /* what is in it libcurl reads, with each connection */

    if (ngx_file_info(vmcf->couch.trusted.data, &fi) == NGX_FILE_ERROR) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, ngx_errno, "\"%V\" cannot be "
                           "found", &vmcf->couch.trusted);
        return NGX_CONF_ERROR;
    }

    return NGX_CONF_OK;
}


static char *
ngx_http_vibe_zone(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    ngx_http_vibe_main_conf_t *vmcf = conf;

    ssize_t     size;
    ngx_str_t  *value;

    if (vmcf->zone != NULL) {
        return "is duplicate";
    }

    value = cf->args->elts;

    size = ngx_parse_size(&value[2]);

    if (size == NGX_ERROR) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0, "invalid zone size \"%V\"",
                           &value[2]);
        return NGX_CONF_ERROR;
    }

    vmcf->zone = ngx_http_vibe_zone_add(cf, &value[1], size,
                                        &ngx_http_vibe_module);

    return vmcf->zone ? NGX_CONF_OK : NGX_CONF_ERROR;
}


static char *
ngx_http_vibe_credentials(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    ngx_http_vibe_main_conf_t *vmcf = conf;

    char       *rv;
    u_char     *p;
    ngx_str_t  *value, text, encoded;

    if (vmcf->couch.authorization.len) {
        return "is duplicate";
    }

    value = cf->args->elts;

    if (ngx_strncmp(value[1].data, "env:", 4) == 0) {
        text.data = (u_char *) getenv((char *) value[1].data + 4);

        if (text.data == NULL) {
            ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                               "there is no \"%s\" in the environment",
                               value[1].data + 4);
            return NGX_CONF_ERROR;
        }

        text.len = ngx_strlen(text.data);

    } else {
        rv = ngx_http_vibe_credentials_file(cf, &value[1], &text);
        if (rv != NGX_CONF_OK) {
            return rv;
        }
    }

    while (text.len && (text.data[text.len - 1] == LF
                        || text.data[text.len - 1] == CR))
    {
        text.len--;
    }

    if (ngx_strlchr(text.data, text.data + text.len, ':') == NULL
        || ngx_strlchr(text.data, text.data + text.len, LF) != NULL)
    {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "\"%V\" does not hold \"user:password\"",
                           &value[1]);
        return NGX_CONF_ERROR;
    }

    p = ngx_pnalloc(cf->pool, sizeof("Basic ") - 1
                              + ngx_base64_encoded_length(text.len));
    if (p == NULL) {
        return NGX_CONF_ERROR;
    }

    vmcf->couch.authorization.data = p;

    encoded.data = ngx_cpymem(p, "Basic ", sizeof("Basic ") - 1);
    ngx_encode_base64(&encoded, &text);

    vmcf->couch.authorization.len = sizeof("Basic ") - 1 + encoded.len;

    return NGX_CONF_OK;
}


static char *
ngx_http_vibe_credentials_file(ngx_conf_t *cf, ngx_str_t *file,
    ngx_str_t *text)
{
    ngx_err_t         err;
    const char       *failed;
    ngx_file_info_t   fi;

    if (ngx_conf_full_name(cf->cycle, file, 1) != NGX_OK) {
        return NGX_CONF_ERROR;
    }

    if (ngx_http_vibe_file_read(cf->pool, file, NGX_HTTP_VIBE_CREDENTIALS_MAX,
                                text, &fi, &failed, &err)
        != NGX_OK)
    {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, err, "\"%V\" %s", file, failed);
        return NGX_CONF_ERROR;
    }

    if (ngx_file_access(&fi) & 077) {
        ngx_conf_log_error(NGX_LOG_WARN, cf, 0,
                           "\"%V\" can be read by others than its owner",
                           file);
    }

    return NGX_CONF_OK;
}


static char *
ngx_http_vibe_index(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    ngx_http_vibe_main_conf_t *vmcf = conf;

    ngx_int_t                 rc;
    ngx_str_t                *value;
    ngx_uint_t                i;
    ngx_http_vibe_selector_t  s;

    value = cf->args->elts;

    if (ngx_strcmp(value[1].data, "*") != 0
        && !ngx_http_vibe_is_collection(&value[1]))
    {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "\"%V\" cannot be a collection", &value[1]);
        return NGX_CONF_ERROR;
    }

    if (cf->args->nelts - 2 > NGX_HTTP_VIBE_SORT_MAX) {
        return "has too many fields";
    }

    ngx_memzero(&s, sizeof(ngx_http_vibe_selector_t));

    for (i = 2; i < cf->args->nelts; i++) {

        rc = ngx_http_vibe_selector_check_field(&s, cf->pool, &value[i]);

        if (rc == NGX_DECLINED) {
            ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                               "\"%V\" cannot be a field: %V",
                               &value[i], &s.reason);
        }

        if (rc != NGX_OK) {
            return NGX_CONF_ERROR;
        }
    }

    rc = ngx_http_vibe_index_add(cf, vmcf, &value[1], &value[2],
                                 cf->args->nelts - 2);

    return (rc == NGX_OK) ? NGX_CONF_OK : NGX_CONF_ERROR;
}


static ngx_int_t
ngx_http_vibe_index_add(ngx_conf_t *cf, ngx_http_vibe_main_conf_t *vmcf,
    ngx_str_t *collection, ngx_str_t *fields, ngx_uint_t n)
{
    ngx_str_t              *field;
    ngx_uint_t              i;
    ngx_http_vibe_index_t  *index;

    index = ngx_array_push(&vmcf->indexes);
    if (index == NULL) {
        return NGX_ERROR;
    }

    ngx_memzero(index, sizeof(ngx_http_vibe_index_t));

    index->collection = *collection;

    if (ngx_array_init(&index->fields, cf->pool, n ? n : 1, sizeof(ngx_str_t))
        != NGX_OK)
    {
        return NGX_ERROR;
    }

    for (i = 0; i < n; i++) {
        field = ngx_array_push(&index->fields);
        if (field == NULL) {
            return NGX_ERROR;
        }

        *field = fields[i];
    }

    return ngx_http_vibe_index_name(cf->pool, &index->fields, &index->name);
}


static char *
ngx_http_vibe_registry(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    ngx_http_vibe_main_conf_t *vmcf = conf;

    ngx_str_t        *value, db;
    ngx_file_info_t   fi;

    if (vmcf->registry_file.len || vmcf->registry_db.len) {
        return "is duplicate";
    }

    value = cf->args->elts;

    if (ngx_strncmp(value[1].data, "couchdb:", 8) == 0) {
        db.data = value[1].data + 8;
        db.len = value[1].len - 8;

        return ngx_http_vibe_registry_named(cf, vmcf, &db);
    }

    vmcf->registry_file = value[1];

    if (ngx_conf_full_name(cf->cycle, &vmcf->registry_file, 1) != NGX_OK) {
        return NGX_CONF_ERROR;
    }

    /* it is read when all prefixes of users' databases are known */

    if (ngx_file_info(vmcf->registry_file.data, &fi) == NGX_FILE_ERROR) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, ngx_errno, "\"%V\" cannot be "
                           "found", &vmcf->registry_file);
        return NGX_CONF_ERROR;
    }

    return NGX_CONF_OK;
}


static char *
ngx_http_vibe_registry_named(ngx_conf_t *cf, ngx_http_vibe_main_conf_t *vmcf,
    ngx_str_t *db)
{
    ngx_str_t  global = ngx_string(NGX_HTTP_VIBE_GLOBAL);

    if (!ngx_http_vibe_is_db(db)
        || ngx_http_vibe_same(db, &global)
        || ngx_http_vibe_is_own(db))
    {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "\"%V\" cannot be a database of feeds", db);
        return NGX_CONF_ERROR;
    }

    vmcf->registry_db = *db;

    return NGX_CONF_OK;
}


static char *
ngx_http_vibe_jwt_key(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    ngx_http_vibe_loc_conf_t *vlcf = conf;

    ngx_str_t  *value, kid;

    value = cf->args->elts;

    ngx_str_null(&kid);

    if (cf->args->nelts == 3) {

        if (value[2].len <= 4
            || ngx_strncmp(value[2].data, "kid=", 4) != 0)
        {
            ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                               "invalid parameter \"%V\"", &value[2]);
            return NGX_CONF_ERROR;
        }

        kid.data = value[2].data + 4;
        kid.len = value[2].len - 4;
    }

    return ngx_http_vibe_jwt_add_key(cf, &vlcf->jwt.keys, &value[1], &kid);
}


static char *
ngx_http_vibe_revoked_file(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    ngx_http_vibe_loc_conf_t *vlcf = conf;

    ngx_str_t  *value;

    if (vlcf->revoked != NULL) {
        return "is duplicate";
    }

    value = cf->args->elts;

    vlcf->revoked = ngx_http_vibe_revoked_open(cf, &value[1]);

    return vlcf->revoked ? NGX_CONF_OK : NGX_CONF_ERROR;
}


/* RFC 6454: a scheme, a host, a port perhaps, no path */

static char *
ngx_http_vibe_origins(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    ngx_http_vibe_loc_conf_t *vlcf = conf;

    u_char      *host;
    ngx_str_t   *value, *origin;
    ngx_uint_t   i;

    if (vlcf->origins == NULL) {
        vlcf->origins = ngx_array_create(cf->pool, 4, sizeof(ngx_str_t));
        if (vlcf->origins == NULL) {
            return NGX_CONF_ERROR;
        }
    }

    value = cf->args->elts;

    for (i = 1; i < cf->args->nelts; i++) {

        host = NULL;

        if (ngx_strncmp(value[i].data, "http://", 7) == 0) {
            host = value[i].data + 7;

        } else if (ngx_strncmp(value[i].data, "https://", 8) == 0) {
            host = value[i].data + 8;
        }

        if (host == NULL || *host == '\0'
            || strpbrk((char *) host, "/*?#@ ") != NULL)
        {
            ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                               "\"%V\" is not an origin, as "
                               "\"https://app.example\"", &value[i]);
            return NGX_CONF_ERROR;
        }

        origin = ngx_array_push(vlcf->origins);
        if (origin == NULL) {
            return NGX_CONF_ERROR;
        }

        *origin = value[i];
    }

    return NGX_CONF_OK;
}


static char *
ngx_http_vibe_db_prefix(ngx_conf_t *cf, void *post, void *data)
{
    ngx_str_t *prefix = data;

    ngx_uint_t  i;

    static ngx_str_t  taken[] = {
        ngx_string(NGX_HTTP_VIBE_GLOBAL),
        ngx_string(NGX_HTTP_VIBE_OWN_PREFIX)
    };

    if (!ngx_http_vibe_is_db(prefix)
        || prefix->len > NGX_HTTP_VIBE_DB_PREFIX_MAX)
    {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "\"%V\" cannot begin a database's name", prefix);
        return NGX_CONF_ERROR;
    }

    /* what is not a user's, whatever would follow the prefix */

    for (i = 0; i < sizeof(taken) / sizeof(taken[0]); i++) {

        if (ngx_strncmp(prefix->data, taken[i].data,
                        ngx_min(prefix->len, taken[i].len))
            == 0)
        {
            ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                               "\"%V\" could name a database that is not a "
                               "user's, as \"%V\"", prefix, &taken[i]);
            return NGX_CONF_ERROR;
        }
    }

    return NGX_CONF_OK;
}


static char *
ngx_http_vibe_some_time(ngx_conf_t *cf, void *post, void *data)
{
    ngx_msec_t *time = data;

    return *time ? NGX_CONF_OK : "must not be 0";
}


static char *
ngx_http_vibe_some_size(ngx_conf_t *cf, void *post, void *data)
{
    size_t *size = data;

    return *size ? NGX_CONF_OK : "must not be 0";
}


/* it is renewed twice in a term, and an answer may take half of one */

static char *
ngx_http_vibe_lease_bounds(ngx_conf_t *cf, void *post, void *data)
{
    ngx_msec_t *lease = data;

    if (*lease < NGX_HTTP_VIBE_LEASE_MIN || *lease > NGX_HTTP_VIBE_LEASE_MAX) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "\"vibe_lease\" must be between 1s and 1h");
        return NGX_CONF_ERROR;
    }

    return NGX_CONF_OK;
}


static char *
ngx_http_vibe_data(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    ngx_http_vibe_loc_conf_t *vlcf = conf;

    char                      *taken;
    ngx_http_core_loc_conf_t  *clcf;

    taken = ngx_http_vibe_taken(cf, ngx_http_vibe_data_handler);
    if (taken != NULL) {
        return taken;
    }

    clcf = ngx_http_conf_get_module_loc_conf(cf, ngx_http_core_module);

    /* what follows the location's name is the path that is looked at */

    if (clcf->name.len == 0
        || clcf->name.data[clcf->name.len - 1] != '/'
#if (NGX_PCRE)
        || clcf->regex != NULL
#endif
        || clcf->exact_match
        || clcf->named)
    {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "\"vibe_data\" needs a location by a prefix that "
                           "ends with \"/\", as \"/data/\"");
        return NGX_CONF_ERROR;
    }

    vlcf->data = 1;
    clcf->handler = ngx_http_vibe_data_handler;

    return NGX_CONF_OK;
}


static char *
ngx_http_vibe_status(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    return ngx_http_vibe_tool(cf, cmd, ngx_http_vibe_status_handler);
}


static char *
ngx_http_vibe_aggregate(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    return ngx_http_vibe_tool(cf, cmd, ngx_http_vibe_aggregate_handler);
}


static char *
ngx_http_vibe_tool(ngx_conf_t *cf, ngx_command_t *cmd,
    ngx_http_handler_pt handler)
{
    char                       *taken;
    ngx_http_core_loc_conf_t   *clcf;
    ngx_http_vibe_main_conf_t  *vmcf;

    vmcf = ngx_http_conf_get_module_main_conf(cf, ngx_http_vibe_module);

    if (vmcf->zone == NULL) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "\"%V\" needs \"vibe_zone\" above it",
                           &cmd->name);
        return NGX_CONF_ERROR;
    }

    taken = ngx_http_vibe_taken(cf, handler);
    if (taken != NULL) {
        return taken;
    }

    clcf = ngx_http_conf_get_module_loc_conf(cf, ngx_http_core_module);

    clcf->handler = handler;

    return NGX_CONF_OK;
}


/* NULL, or what is wrong: a location has one handler */

static char *
ngx_http_vibe_taken(ngx_conf_t *cf, ngx_http_handler_pt handler)
{
    ngx_http_core_loc_conf_t  *clcf;

    clcf = ngx_http_conf_get_module_loc_conf(cf, ngx_http_core_module);

    if (clcf->handler == handler) {
        return "is duplicate";
    }

    if (clcf->handler == ngx_http_vibe_data_handler) {
        return "cannot be where \"vibe_data\" is";
    }

    if (clcf->handler == ngx_http_vibe_status_handler) {
        return "cannot be where \"vibe_status\" is";
    }

    if (clcf->handler == ngx_http_vibe_aggregate_handler) {
        return "cannot be where \"vibe_aggregate\" is";
    }

    return NULL;
}


static void *
ngx_http_vibe_create_main_conf(ngx_conf_t *cf)
{
    ngx_str_t                   any;
    ngx_http_vibe_main_conf_t  *vmcf;

    vmcf = ngx_pcalloc(cf->pool, sizeof(ngx_http_vibe_main_conf_t));
    if (vmcf == NULL) {
        return NULL;
    }

    /*
     * set by ngx_pcalloc():
     *
     *     vmcf->couch.url = { 0, NULL };
     *     vmcf->couch.authorization = { 0, NULL };
     *     vmcf->couch.trusted = { 0, NULL };
     *     vmcf->zone = NULL;
     *     vmcf->registry_file = { 0, NULL };
     *     vmcf->registry_db = { 0, NULL };
     *     vmcf->registry = NULL;
     *     vmcf->copies = 0;
     */

    vmcf->couch.max_response = NGX_CONF_UNSET_SIZE;
    vmcf->couch.connect_timeout = NGX_CONF_UNSET_MSEC;
    vmcf->couch.timeout = NGX_CONF_UNSET_MSEC;
    vmcf->repair = NGX_CONF_UNSET;
    vmcf->sweep = NGX_CONF_UNSET_MSEC;
    vmcf->lease = NGX_CONF_UNSET_MSEC;
    vmcf->scan_rate = NGX_CONF_UNSET;
    vmcf->batch_docs = NGX_CONF_UNSET;
    vmcf->batch_size = NGX_CONF_UNSET_SIZE;
    vmcf->mirror_size = NGX_CONF_UNSET_SIZE;

    if (ngx_array_init(&vmcf->indexes, cf->pool, 4,
                       sizeof(ngx_http_vibe_index_t))
        != NGX_OK
        || ngx_array_init(&vmcf->prefixes, cf->pool, 1, sizeof(ngx_str_t))
           != NGX_OK)
    {
        return NULL;
    }

    /* the one that finds a collection's documents */

    ngx_str_set(&any, "*");

    if (ngx_http_vibe_index_add(cf, vmcf, &any, NULL, 0) != NGX_OK) {
        return NULL;
    }

    return vmcf;
}


static char *
ngx_http_vibe_init_main_conf(ngx_conf_t *cf, void *conf)
{
    ngx_http_vibe_main_conf_t *vmcf = conf;

    ngx_conf_init_size_value(vmcf->couch.max_response, 16 * 1024 * 1024);
    ngx_conf_init_msec_value(vmcf->couch.connect_timeout, 2000);
    ngx_conf_init_msec_value(vmcf->couch.timeout, 10000);
    ngx_conf_init_msec_value(vmcf->sweep, 3600000);
    ngx_conf_init_msec_value(vmcf->lease, 5000);
    ngx_conf_init_value(vmcf->scan_rate, 100);
    ngx_conf_init_value(vmcf->batch_docs, 500);
    ngx_conf_init_size_value(vmcf->batch_size, 4 * 1024 * 1024);
    ngx_conf_init_size_value(vmcf->mirror_size, 64 * 1024 * 1024);

    /* nobody shares what is known, and who does the work, without a zone */

    ngx_conf_init_value(vmcf->repair, 1);

    if (vmcf->zone == NULL) {
        vmcf->repair = 0;
    }

    return NGX_CONF_OK;
}


static void *
ngx_http_vibe_create_loc_conf(ngx_conf_t *cf)
{
    ngx_http_vibe_loc_conf_t  *vlcf;

    /*
     * set by ngx_pcalloc():
     *
     *     vlcf->data = 0;
     *     vlcf->db_prefix = { 0, NULL };
     *     vlcf->jwt.keys = NULL;
     *     vlcf->jwt.issuer = { 0, NULL };
     *     vlcf->jwt.audience = { 0, NULL };
     *     vlcf->revoked = NULL;
     *     vlcf->origins = NULL;
     *     vlcf->token = NULL;
     *     vlcf->did = NULL;
     *     vlcf->db = NULL;
     */

    vlcf = ngx_pcalloc(cf->pool, sizeof(ngx_http_vibe_loc_conf_t));
    if (vlcf == NULL) {
        return NULL;
    }

    vlcf->anonymous = NGX_CONF_UNSET;
    vlcf->jwt.leeway = NGX_CONF_UNSET;
    vlcf->max_docs = NGX_CONF_UNSET;
    vlcf->max_limit = NGX_CONF_UNSET;
    vlcf->own_indexes = NGX_CONF_UNSET;
    vlcf->global_regex = NGX_CONF_UNSET;
    vlcf->global_reads = NGX_CONF_UNSET_UINT;

    return vlcf;
}


static char *
ngx_http_vibe_merge_loc_conf(ngx_conf_t *cf, void *parent, void *child)
{
    ngx_http_vibe_loc_conf_t *prev = parent;
    ngx_http_vibe_loc_conf_t *conf = child;

    ngx_http_core_loc_conf_t   *clcf;
    ngx_http_vibe_main_conf_t  *vmcf;

    if (conf->token == NULL) {
        conf->token = prev->token;
    }

    if (conf->did == NULL) {
        conf->did = prev->did;
    }

    if (conf->db == NULL) {
        conf->db = prev->db;
    }

    if (conf->jwt.keys == NULL) {
        conf->jwt.keys = prev->jwt.keys;
    }

    if (conf->revoked == NULL) {
        conf->revoked = prev->revoked;
    }

    if (conf->origins == NULL) {
        conf->origins = prev->origins;
    }

    ngx_conf_merge_str_value(conf->db_prefix, prev->db_prefix, "userdb-");
    ngx_conf_merge_value(conf->anonymous, prev->anonymous, 0);
    ngx_conf_merge_str_value(conf->jwt.issuer, prev->jwt.issuer, "");
    ngx_conf_merge_str_value(conf->jwt.audience, prev->jwt.audience, "");
    ngx_conf_merge_sec_value(conf->jwt.leeway, prev->jwt.leeway, 0);
    ngx_conf_merge_value(conf->max_docs, prev->max_docs, 1000);
    ngx_conf_merge_value(conf->max_limit, prev->max_limit, 1000);
    ngx_conf_merge_value(conf->own_indexes, prev->own_indexes, 8);
    ngx_conf_merge_value(conf->global_regex, prev->global_regex, 0);
    ngx_conf_merge_uint_value(conf->global_reads, prev->global_reads,
                              NGX_HTTP_VIBE_READS_LIVE);

    clcf = ngx_http_conf_get_module_loc_conf(cf, ngx_http_core_module);

    /* "if" and "limit_except" make locations without a name */

    if (clcf->noname && !conf->data) {
        conf->data = prev->data;
    }

    if (clcf->lmt_excpt && clcf->handler == NULL && conf->data) {
        clcf->handler = ngx_http_vibe_data_handler;
    }

    vmcf = ngx_http_conf_get_module_main_conf(cf, ngx_http_vibe_module);

    if (conf->data && vmcf->couch.url.len == 0) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "\"vibe_data\" needs \"vibe_couchdb\"");
        return NGX_CONF_ERROR;
    }

    if (conf->global_reads != NGX_HTTP_VIBE_READS_LIVE
        && vmcf->registry_file.len == 0
        && vmcf->registry_db.len == 0)
    {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "\"vibe_global_reads\" needs \"vibe_registry\" "
                           "where it is not \"live\"");
        return NGX_CONF_ERROR;
    }

    if (conf->data
        && ngx_http_vibe_add_prefix(vmcf, &conf->db_prefix) != NGX_OK)
    {
        return NGX_CONF_ERROR;
    }

    return NGX_CONF_OK;
}


/* repair goes through the databases of all users */

static ngx_int_t
ngx_http_vibe_add_prefix(ngx_http_vibe_main_conf_t *vmcf, ngx_str_t *prefix)
{
    ngx_str_t   *p;
    ngx_uint_t   i;

    p = vmcf->prefixes.elts;

    for (i = 0; i < vmcf->prefixes.nelts; i++) {
        if (ngx_http_vibe_same(&p[i], prefix)) {
            return NGX_OK;
        }
    }

    p = ngx_array_push(&vmcf->prefixes);
    if (p == NULL) {
        return NGX_ERROR;
    }

    *p = *prefix;

    return NGX_OK;
}


static ngx_int_t
ngx_http_vibe_preconfiguration(ngx_conf_t *cf)
{
    ngx_http_variable_t  *v, *var;

    for (v = ngx_http_vibe_variables; v->name.len; v++) {

        var = ngx_http_add_variable(cf, &v->name, v->flags);
        if (var == NULL) {
            return NGX_ERROR;
        }

        var->get_handler = v->get_handler;
        var->data = v->data;
    }

    /* names are checked while directives are read */

    return ngx_http_vibe_id_init(cf->pool, cf->log);
}


static ngx_int_t
ngx_http_vibe_postconfiguration(ngx_conf_t *cf)
{
    ngx_http_vibe_main_conf_t  *vmcf;

    ngx_http_next_header_filter = ngx_http_top_header_filter;
    ngx_http_top_header_filter = ngx_http_vibe_header_filter;

    ngx_http_next_body_filter = ngx_http_top_body_filter;
    ngx_http_top_body_filter = ngx_http_vibe_body_filter;

    vmcf = ngx_http_conf_get_module_main_conf(cf, ngx_http_vibe_module);

    if (ngx_http_vibe_registry_check(cf, vmcf) != NGX_OK) {
        return NGX_ERROR;
    }

    if (vmcf->upstream == NULL) {
        return NGX_OK;
    }

    return ngx_http_vibe_addresses(cf, vmcf);
}


/* what can be told of vibe_registry only when all else was read */

static ngx_int_t
ngx_http_vibe_registry_check(ngx_conf_t *cf, ngx_http_vibe_main_conf_t *vmcf)
{
    ngx_str_t   *prefix;
    ngx_uint_t   i;

    if (vmcf->registry_file.len == 0 && vmcf->registry_db.len == 0) {
        return NGX_OK;
    }

    if (vmcf->upstream == NULL) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "\"vibe_registry\" needs \"vibe_couchdb\"");
        return NGX_ERROR;
    }

    if (vmcf->registry_file.len) {
        return ngx_http_vibe_feeds_read(cf, vmcf);
    }

    prefix = vmcf->prefixes.elts;

    for (i = 0; i < vmcf->prefixes.nelts; i++) {

        if (vmcf->registry_db.len >= prefix[i].len
            && ngx_memcmp(vmcf->registry_db.data, prefix[i].data,
                          prefix[i].len)
               == 0)
        {
            ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                               "\"%V\" of \"vibe_registry\" could be a "
                               "user's database", &vmcf->registry_db);
            return NGX_ERROR;
        }
    }

    return NGX_OK;
}


/* the servers of the upstream, or the address that vibe_couchdb has */

static ngx_int_t
ngx_http_vibe_addresses(ngx_conf_t *cf, ngx_http_vibe_main_conf_t *vmcf)
{
    ngx_url_t                      u;
    ngx_uint_t                     i, backup;
    ngx_array_t                   *addrs;
    ngx_http_upstream_server_t    *server;
    ngx_http_upstream_srv_conf_t  *uscf;

    uscf = vmcf->upstream;

    addrs = ngx_array_create(cf->pool, 2, sizeof(ngx_addr_t));
    if (addrs == NULL) {
        return NGX_ERROR;
    }

    vmcf->couch.addrs = addrs;

    if (uscf->servers != NULL) {

        server = uscf->servers->elts;

        for (backup = 0; backup < 2; backup++) {
            for (i = 0; i < uscf->servers->nelts; i++) {

                if (server[i].down || server[i].backup != backup) {
                    continue;
                }

                if (ngx_http_vibe_add_addresses(addrs, server[i].addrs,
                                                server[i].naddrs)
                    != NGX_OK)
                {
                    return NGX_ERROR;
                }
            }
        }

        return NGX_OK;
    }

    ngx_memzero(&u, sizeof(ngx_url_t));

    u.host = uscf->host;
    u.port = uscf->port;

    if (ngx_inet_resolve_host(cf->pool, &u) != NGX_OK) {
        ngx_log_error(NGX_LOG_EMERG, cf->log, 0,
                      "%s in the host of \"vibe_couchdb\" \"%V\"",
                      u.err ? u.err : "error", &uscf->host);
        return NGX_ERROR;
    }

    return ngx_http_vibe_add_addresses(addrs, u.addrs, u.naddrs);
}


static ngx_int_t
ngx_http_vibe_add_addresses(ngx_array_t *to, ngx_addr_t *addrs, ngx_uint_t n)
{
    ngx_uint_t   i;
    ngx_addr_t  *addr;

    for (i = 0; i < n; i++) {
        addr = ngx_array_push(to);
        if (addr == NULL) {
            return NGX_ERROR;
        }

        *addr = addrs[i];
    }

    return NGX_OK;
}


static ngx_int_t
ngx_http_vibe_init_process(ngx_cycle_t *cycle)
{
    ngx_http_vibe_main_conf_t  *vmcf;

    if (ngx_process != NGX_PROCESS_WORKER
        && ngx_process != NGX_PROCESS_SINGLE)
    {
        return NGX_OK;
    }

    vmcf = ngx_http_cycle_get_module_main_conf(cycle, ngx_http_vibe_module);

    if (vmcf == NULL || vmcf->upstream == NULL) {
        return NGX_OK;
    }

    ngx_http_vibe_global_init(vmcf);
    ngx_http_vibe_mirror_init(vmcf);

    if (ngx_http_vibe_couch_init(cycle, &vmcf->couch) != NGX_OK) {
        return NGX_ERROR;
    }

    if (vmcf->repair && ngx_http_vibe_lease_init(vmcf) != NGX_OK) {
        return NGX_ERROR;
    }

    if (vmcf->registry_file.len || vmcf->registry_db.len) {

        if (ngx_http_vibe_feeds_init(vmcf) != NGX_OK) {
            return NGX_ERROR;
        }

        if (vmcf->repair) {
            ngx_http_vibe_views_init(vmcf);
        }
    }

    if (vmcf->repair) {
        ngx_http_vibe_repair_init(vmcf);
    }

    return NGX_OK;
}


static void
ngx_http_vibe_exit_process(ngx_cycle_t *cycle)
{
    /* whoever works under the lease ceases first */

    ngx_http_vibe_lease_exit();
    ngx_http_vibe_feeds_exit();
    ngx_http_vibe_couch_exit();
}
