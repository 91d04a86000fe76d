
/*
 * Who may read a document, decided once, when it is written.
 *
 * The ACL is the document's own member "acl"; the decision goes into the copy
 * as members of the module's own, and everything that is read later is
 * decided by those alone.  Whatever cannot be understood is private.
 *
 * Floor 2: decides, takes no request, does no I/O.
 */


#ifndef _NGX_HTTP_VIBE_ACL_H_INCLUDED_
#define _NGX_HTTP_VIBE_ACL_H_INCLUDED_


#include <ngx_config.h>
#include <ngx_core.h>

#include "ngx_http_vibe_json.h"


/* version of the rules below; a copy that older ones decided is redone */
#define NGX_HTTP_VIBE_ACL_VERSION   1

/* rules in one ACL; one with more is private */
#define NGX_HTTP_VIBE_ACL_MAX       500

/* past readers that a copy remembers by name */
#define NGX_HTTP_VIBE_PAST_MAX      500


typedef enum {
    NGX_HTTP_VIBE_PRIVATE = 0,
    NGX_HTTP_VIBE_RESTRICTED,
    NGX_HTTP_VIBE_PUBLIC
} ngx_http_vibe_access_e;


/*
 * The decided access.  Restricted to "read", DIDs other than the owner; or,
 * with "all", to everyone but "deny".
 */
typedef struct {
    ngx_http_vibe_access_e    kind;
    ngx_uint_t                all;
    ngx_array_t               read;    /* of ngx_str_t */
    ngx_array_t               deny;    /* of ngx_str_t */
} ngx_http_vibe_access_t;


/*
 * Who could read an earlier copy: "read"; with "all", everyone but "deny".
 * Only grows, so that a withdrawal can be told to whoever could read, also
 * much later, and to nobody else.
 */
typedef struct {
    ngx_uint_t                all;
    ngx_array_t               read;    /* of ngx_str_t */
    ngx_array_t               deny;    /* of ngx_str_t */
} ngx_http_vibe_past_t;


/*
 * Decides the access of the document "doc", an object whose members were
 * scanned at least, and whose owner is this DID.  A deleted one is private.
 * The DIDs are from the pool.  NGX_OK or NGX_ERROR.
 */
ngx_int_t ngx_http_vibe_acl_decide(ngx_pool_t *pool, ngx_str_t *owner,
    ngx_http_vibe_json_t *doc, ngx_http_vibe_access_t *access);

/* copies what was decided into a pool; NGX_OK or NGX_ERROR */
ngx_int_t ngx_http_vibe_acl_dup(ngx_pool_t *pool,
    ngx_http_vibe_access_t *from, ngx_http_vibe_access_t *to);

/* the decided access that a copy of "global" holds; private if it has none */
ngx_int_t ngx_http_vibe_acl_of_copy(ngx_pool_t *pool,
    ngx_http_vibe_json_t *copy, ngx_http_vibe_access_t *access);

/*
 * 1 if this DID may read what "access" was decided for and "owner" owns; an
 * empty DID is a caller without identity.
 */
ngx_uint_t ngx_http_vibe_acl_may_read(ngx_http_vibe_access_t *access,
    ngx_str_t *owner, ngx_str_t *did);

/* writes the decided access as members of a copy, with a leading comma */
void ngx_http_vibe_acl_put(ngx_http_vibe_json_out_t *out,
    ngx_http_vibe_access_t *access);

/*
 * Writes the read selector: it matches the copies that this DID may read,
 * and nothing else.  $eq and $elemMatch only: $in on an array member matches
 * by overlap.
 */
void ngx_http_vibe_acl_put_selector(ngx_http_vibe_json_out_t *out,
    ngx_str_t *did);

/* the past readers that a copy or tombstone remembers; NGX_OK or NGX_ERROR */
ngx_int_t ngx_http_vibe_past_of_copy(ngx_pool_t *pool,
    ngx_http_vibe_json_t *copy, ngx_http_vibe_past_t *past);

/*
 * Adds those whom "access" let read.  A name beyond NGX_HTTP_VIBE_PAST_MAX
 * is left out: only live readers are told then.  NGX_OK or NGX_ERROR.
 */
ngx_int_t ngx_http_vibe_past_add(ngx_pool_t *pool, ngx_http_vibe_past_t *past,
    ngx_http_vibe_access_t *access);

/* writes the past readers as members of a copy, with a leading comma */
void ngx_http_vibe_past_put(ngx_http_vibe_json_out_t *out,
    ngx_http_vibe_past_t *past);


#endif /* _NGX_HTTP_VIBE_ACL_H_INCLUDED_ */
