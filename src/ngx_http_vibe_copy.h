
/*
 * The copy of a document in "global", and its tombstone: how they are written
 * and what of them is shown.
 *
 * A copy is the document with its _id replaced, minus _attachments, plus
 *
 *   vibe_v       the format of these members
 *   vibe_rev     the source's revision
 *   vibe_owner   the owner's DID
 *   vibe_db      the owner's database
 *   vibe_acl     the version of the rules that decided the access
 *   vibe_access  "public" or "restricted"
 *   vibe_read    restricted: who may read, ["*"] for everyone but
 *   vibe_deny    restricted: who may not
 *   vibe_past    who could read an earlier copy, ["*"] for everyone but
 *   vibe_never   who could not
 *
 * A tombstone keeps those that are not about the access now, and collection.
 * A stub, which holds the place of a copy to come, has vibe_v, vibe_db and
 * the past readers, and "none" as its access: it matches no reader.
 *
 * Floor 2: decides, takes no request, does no I/O.
 */


#ifndef _NGX_HTTP_VIBE_COPY_H_INCLUDED_
#define _NGX_HTTP_VIBE_COPY_H_INCLUDED_


#include <ngx_config.h>
#include <ngx_core.h>

#include "ngx_http_vibe_acl.h"
#include "ngx_http_vibe_json.h"


/* vibe_v, also of the other documents that the module makes for itself */
#define NGX_HTTP_VIBE_FORMAT  1


/*
 * A document as a look-up finds it: the winner, which is the leaf that lives,
 * else by generation, then hash
 */

#define NGX_HTTP_VIBE_LOSERS  4

typedef struct {
    ngx_str_t                  id;

    ngx_http_vibe_json_t      *doc;         /* NULL: there is no such id */
    ngx_str_t                  rev;
    unsigned                   deleted:1;
    unsigned                   conflicts:1; /* there are other leaves */

    ngx_str_t                  losers[NGX_HTTP_VIBE_LOSERS];
    ngx_uint_t                 nlosers;     /* others that live, some of them */
} ngx_http_vibe_leaf_t;


typedef struct {
    ngx_str_t                  id;          /* the global id */
    ngx_str_t                  rev;         /* that it replaces, or empty */
    ngx_str_t                  collection;
    ngx_str_t                  owner;
    ngx_str_t                  db;
    ngx_str_t                  source;      /* the source's revision */
    ngx_str_t                  members;     /* of the source, see below */
    ngx_http_vibe_access_t    *access;      /* private: a tombstone */
    ngx_http_vibe_past_t       past;
    ngx_uint_t                 stub;        /* nothing but the place */
} ngx_http_vibe_copy_t;


/*
 * The members of a source document that its copy has, as text, each with a
 * leading comma.  From the pool; NGX_OK or NGX_ERROR.
 */
ngx_int_t ngx_http_vibe_copy_members(ngx_pool_t *pool,
    ngx_http_vibe_json_t *doc, ngx_str_t *members);

/* writes the copy, tombstone or stub; "members" is pointed at */
void ngx_http_vibe_copy_put(ngx_http_vibe_json_out_t *out,
    ngx_http_vibe_copy_t *copy);

/*
 * Writes a document as a client gets to see it, each member as it came or,
 * where set, as "replaced".  One of "global" shows the source's _rev and none
 * of the module's own members.
 */
void ngx_http_vibe_copy_show(ngx_http_vibe_json_out_t *out,
    ngx_http_vibe_json_t *doc, ngx_uint_t global);

/* the source revision that a copy or tombstone stands for, else empty */
void ngx_http_vibe_copy_source(ngx_http_vibe_json_t *copy, ngx_str_t *rev);

/* 1 if a newer version of the module wrote it; "copy" may be NULL */
ngx_uint_t ngx_http_vibe_copy_newer_format(ngx_http_vibe_json_t *copy);

/* 1 if the rules that decided its access are today's */
ngx_uint_t ngx_http_vibe_copy_current(ngx_http_vibe_json_t *copy);

/*
 * The collection of a document that came past the module: its own member,
 * else what stands before the first "/" of its id.  NGX_OK, or NGX_DECLINED
 * where neither names one.
 */
ngx_int_t ngx_http_vibe_copy_collection(ngx_http_vibe_json_t *doc,
    ngx_str_t *id, ngx_str_t *collection);


#endif /* _NGX_HTTP_VIBE_COPY_H_INCLUDED_ */
