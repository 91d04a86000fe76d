
/*
 * What the rooms that know a request share: the configuration and the
 * request's context.
 */


#ifndef _NGX_HTTP_VIBE_H_INCLUDED_
#define _NGX_HTTP_VIBE_H_INCLUDED_


#include <ngx_config.h>
#include <ngx_core.h>
#include <ngx_http.h>

#include "ngx_http_vibe_json.h"
#include "ngx_http_vibe_id.h"
#include "ngx_http_vibe_acl.h"
#include "ngx_http_vibe_copy.h"
#include "ngx_http_vibe_couch.h"
#include "ngx_http_vibe_jwt.h"
#include "ngx_http_vibe_registry.h"
#include "ngx_http_vibe_revoked.h"
#include "ngx_http_vibe_subrequest.h"
#include "ngx_http_vibe_zone.h"


/* where copies live; CouchDB's name, so no directive */
#define NGX_HTTP_VIBE_GLOBAL  "global"

/* hexadecimal digits of the id that each such database is given */
#define NGX_HTTP_VIBE_GLOBAL_ID  32


/* vibe_global_reads: what a global query is answered from */

#define NGX_HTTP_VIBE_READS_LIVE        0      /* "global" */
#define NGX_HTTP_VIBE_READS_REGISTERED  1      /* a feed, or not at all */
#define NGX_HTTP_VIBE_READS_ANY         2      /* a feed if there is one */


/* vibe_index <collection>|* <field> ...; */

typedef struct {
    ngx_str_t                    collection;   /* "*": any */
    ngx_array_t                  fields;       /* of ngx_str_t */
    ngx_str_t                    name;         /* design document, index */

    ngx_msec_t                   looked;       /* of this worker: its state */
    unsigned                     ready:1;
    unsigned                     building:1;
} ngx_http_vibe_index_t;


typedef struct {
    ngx_http_vibe_couch_conf_t   couch;
    ngx_array_t                  indexes;      /* of ngx_http_vibe_index_t */
    ngx_array_t                  prefixes;     /* of ngx_str_t: databases of
                                                  users begin with one */
    ngx_http_upstream_srv_conf_t  *upstream;   /* of vibe_couchdb */

    ngx_http_vibe_zone_t        *zone;         /* NULL: no background work */
    ngx_flag_t                   repair;
    ngx_msec_t                   sweep;
    ngx_int_t                    scan_rate;    /* databases a second */
    ngx_msec_t                   lease;

    ngx_str_t                    registry_file;  /* either, or neither */
    ngx_str_t                    registry_db;
    ngx_http_vibe_registry_t    *registry;     /* of the file, when it was
                                                  configured; or NULL */

    ngx_int_t                    batch_docs;
    size_t                       batch_size;
    size_t                       mirror_size;  /* of a worker's mirrors */

    /* what this worker has seen of "global" */

    ngx_uint_t                   copies;       /* CouchDB keeps, 0: unseen */
    uint32_t                     born;         /* hash of what tells this
                                                  one from another */
    u_char                       global_id[NGX_HTTP_VIBE_GLOBAL_ID];
} ngx_http_vibe_main_conf_t;


typedef struct {
    ngx_flag_t                   data;         /* vibe_data; */

    ngx_http_complex_value_t    *token;
    ngx_http_complex_value_t    *did;
    ngx_http_complex_value_t    *db;
    ngx_str_t                    db_prefix;
    ngx_flag_t                   anonymous;

    ngx_http_vibe_jwt_conf_t     jwt;
    ngx_http_vibe_revoked_t     *revoked;

    ngx_array_t                 *origins;      /* of ngx_str_t */

    ngx_int_t                    max_docs;
    ngx_int_t                    max_limit;
    ngx_int_t                    own_indexes;
    ngx_flag_t                   global_regex;
    ngx_uint_t                   global_reads;
} ngx_http_vibe_loc_conf_t;


/* who asks; the lengths are 0 where the caller has no identity */

typedef struct {
    ngx_str_t                    did;
    ngx_str_t                    db;
    unsigned                     named:1;      /* the db's name says the did */
} ngx_http_vibe_caller_t;


typedef struct {
    ngx_http_vibe_call_t        *call;         /* what a request waits for */
    ngx_http_vibe_call_t        *capture;      /* whose answer this one is */

    ngx_http_vibe_caller_t       caller;
    ngx_str_t                    collection;   /* of the path */
    ngx_str_t                    body;         /* of the client's request */
    void                        *route;        /* what the request is for */

    unsigned                     answered:1;   /* by us, not by nginx */
    unsigned                     replace:1;    /* nginx's error page */
    unsigned                     gone:1;       /* the client */
} ngx_http_vibe_ctx_t;


extern ngx_module_t  ngx_http_vibe_module;


#endif /* _NGX_HTTP_VIBE_H_INCLUDED_ */
