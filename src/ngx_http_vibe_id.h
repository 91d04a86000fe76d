
/*
 * Names: DIDs, collections, document ids, revisions, databases, global ids.
 *
 * Floor 1: takes no request, does no I/O.  The patterns are PCRE2's and are
 * compiled once, at configuration.
 */


#ifndef _NGX_HTTP_VIBE_ID_H_INCLUDED_
#define _NGX_HTTP_VIBE_ID_H_INCLUDED_


#include <ngx_config.h>
#include <ngx_core.h>


/* bytes; a DID that is longer is not one of ours */
#define NGX_HTTP_VIBE_DID_MAX         1024

/* bytes of a document's id; its global id may be three times as long */
#define NGX_HTTP_VIBE_ID_MAX          1024

/* CouchDB's limit for the name of a database */
#define NGX_HTTP_VIBE_DB_MAX          238

/* a revision: generation, '-', 32 hexadecimal digits */
#define NGX_HTTP_VIBE_REV_MAX         (NGX_INT_T_LEN + 1 + 64)

/* the prefix of the members that the module adds to a copy */
#define NGX_HTTP_VIBE_OWN_PREFIX      "vibe_"


/*
 * Compiles the patterns; called once for each configuration, the memory is
 * freed with the pool.  NGX_OK or NGX_ERROR (logged).
 */
ngx_int_t ngx_http_vibe_id_init(ngx_pool_t *pool, ngx_log_t *log);

/*
 * 1 if it is a DID by the W3C's syntax (DID Core 1.0, 3.1: no path, query or
 * fragment) and not longer than NGX_HTTP_VIBE_DID_MAX.
 */
ngx_uint_t ngx_http_vibe_is_did(ngx_str_t *did);

/* 1 if it can name a collection: [A-Za-z][A-Za-z0-9_-]{0,63}, not reserved */
ngx_uint_t ngx_http_vibe_is_collection(ngx_str_t *name);

/* 1 if it can be the instanceId of a token: [a-z0-9_-]{1,200} */
ngx_uint_t ngx_http_vibe_is_instance(ngx_str_t *instance);

/* 1 if CouchDB takes it as a database's name */
ngx_uint_t ngx_http_vibe_is_db(ngx_str_t *db);

/* 1 if a client may name this revision, <generation>-<lower-case hex> */
ngx_uint_t ngx_http_vibe_is_rev(ngx_str_t *rev);

/*
 * 1 if a client may give a document this id: 1 to NGX_HTTP_VIBE_ID_MAX
 * bytes, no leading underscore, no control characters.  "why" is set to a
 * text for the client where it may not.
 */
ngx_uint_t ngx_http_vibe_is_id(ngx_str_t *id, const char **why);

/* 1 if the name begins with the module's own prefix */
ngx_uint_t ngx_http_vibe_is_own(ngx_str_t *name);

/*
 * Which of two revisions wins, as CouchDB orders leaves: by generation, then
 * by hash.  Less than, equal to or greater than 0; what is no revision loses
 * to any revision.  Revisions of any length are ordered, also such as only a
 * replication can bring in.
 */
ngx_int_t ngx_http_vibe_rev_cmp(ngx_str_t *a, ngx_str_t *b);

/* the generation of a revision, 0 if it is none */
ngx_uint_t ngx_http_vibe_rev_generation(ngx_str_t *rev);

/*
 * The database that belongs to a DID: the prefix and the DID in lower-case
 * hexadecimal, or the hexadecimal of its SHA-256 where that would be longer
 * than a name may be.  From the pool; NGX_OK or NGX_ERROR.
 */
ngx_int_t ngx_http_vibe_db_of_did(ngx_pool_t *pool, ngx_str_t *prefix,
    ngx_str_t *did, ngx_str_t *db);

/*
 * The DID that a database's name gives back.  NGX_OK; NGX_DECLINED where the
 * name gives none, and "did" is empty; NGX_ERROR: no memory.
 */
ngx_int_t ngx_http_vibe_did_of_db(ngx_pool_t *pool, ngx_str_t *prefix,
    ngx_str_t *db, ngx_str_t *did);

/*
 * The global id of a document: "<DID>:<id>", in the id "%" as "%25" and ":"
 * as "%3A", so that the last colon splits it again and no two pairs of DID
 * and id meet.  From the pool; NGX_OK or NGX_ERROR.
 */
ngx_int_t ngx_http_vibe_global_id(ngx_pool_t *pool, ngx_str_t *did,
    ngx_str_t *id, ngx_str_t *global);

/*
 * Splits a global id.  From the pool; NGX_OK; NGX_DECLINED: it is none;
 * NGX_ERROR: no memory.
 */
ngx_int_t ngx_http_vibe_global_split(ngx_pool_t *pool, ngx_str_t *global,
    ngx_str_t *did, ngx_str_t *id);

/*
 * A new id, "<collection>/<milliseconds>-<random>", the random part 128 bits
 * of OpenSSL's generator in hexadecimal: nobody else makes the same one.
 * From the pool; NGX_OK or NGX_ERROR.
 */
ngx_int_t ngx_http_vibe_new_id(ngx_pool_t *pool, ngx_str_t *collection,
    ngx_str_t *id);

/* random bytes, of OpenSSL's generator; NGX_OK or NGX_ERROR */
ngx_int_t ngx_http_vibe_random(u_char *bytes, size_t n);

/*
 * Bytes for one segment of a path: all but RFC 3986's unreserved characters
 * are percent-encoded.  From the pool; NGX_OK or NGX_ERROR.
 */
ngx_int_t ngx_http_vibe_escape_segment(ngx_pool_t *pool, ngx_str_t *src,
    ngx_str_t *dst);

/*
 * The path "/<db><suffix>" of a request to CouchDB, or the suffix alone where
 * "db" is NULL: the database's name is escaped, the suffix goes as it is, so
 * ids belong into bodies.  From the pool; NGX_OK or NGX_ERROR.
 */
ngx_int_t ngx_http_vibe_db_path(ngx_pool_t *pool, ngx_str_t *db,
    const char *suffix, ngx_str_t *path);


#endif /* _NGX_HTTP_VIBE_ID_H_INCLUDED_ */
