
/*
 * The pointer of a feed, a document of "vibe_state": which of its two
 * databases holds the result, and of what run.
 *
 *   { "_id": "feed:_global_posts", "vibe_v": 1, "collection": "posts",
 *     "definition": "<hash>", "fields": ["_id", "content"],
 *     "sort": ["createdAt"], "descending": true,
 *     "indexes": [["createdAt"]],
 *     "db": "vibe_global_posts-2", "run": 12, "as_of": 1790000000000,
 *     "last_seq": "...", "rows": 4711, "grace": 1000 }
 *
 * A database that the pointer does not name is written only "grace"
 * milliseconds after it was named last.  So whoever asked for the pointer less
 * than that ago may read the database it named: it still is the result of
 * that run, but for what was withdrawn since.
 *
 * Without "db" no run has ended yet.  "indexes" are the sorts, lists of
 * fields, that both databases have an index for; each is named as
 * ngx_http_vibe_index_name() has it.
 *
 * Floor 4.
 */


#ifndef _NGX_HTTP_VIBE_POINTER_H_INCLUDED_
#define _NGX_HTTP_VIBE_POINTER_H_INCLUDED_


#include "ngx_http_vibe.h"
#include "ngx_http_vibe_registry.h"


#define NGX_HTTP_VIBE_POINTER_PREFIX  "feed:"

/* how old a pointer may be that a read begins with, milliseconds */
#define NGX_HTTP_VIBE_POINTER_VALID   200

/* bounds of "grace", milliseconds */
#define NGX_HTTP_VIBE_GRACE_MIN       500
#define NGX_HTTP_VIBE_GRACE_MAX       2000


typedef struct {
    ngx_str_t                    rev;
    ngx_str_t                    collection;
    ngx_str_t                    definition;
    ngx_array_t                  fields;       /* of ngx_str_t; none: all */
    ngx_array_t                  sort;         /* of ngx_str_t */
    ngx_uint_t                   descending;
    ngx_array_t                  indexes;      /* of ngx_array_t of ngx_str_t */
    ngx_str_t                    db;           /* empty: no run has ended */
    ngx_uint_t                   run;
    uint64_t                     as_of;        /* milliseconds of the epoch */
    ngx_str_t                    last_seq;
    ngx_uint_t                   rows;
    ngx_msec_t                   grace;
} ngx_http_vibe_pointer_t;


/*
 * Reads a pointer, an object scanned with NGX_HTTP_VIBE_JSON_ALL; what it gives
 * points into its text, but for arrays, from the pool.  NGX_OK; NGX_DECLINED:
 * it is not one of ours, or of a newer format; NGX_ERROR: no memory.
 */
ngx_int_t ngx_http_vibe_pointer_read(ngx_pool_t *pool,
    ngx_http_vibe_json_t *doc, ngx_http_vibe_pointer_t *pointer);

/* writes it, the body of a PUT; with "rev" if that is not empty */
void ngx_http_vibe_pointer_put(ngx_http_vibe_json_out_t *out,
    ngx_str_t *name, ngx_http_vibe_pointer_t *pointer);

/* the path of it within "vibe_state", "/feed%3A...", NUL-terminated; NULL:
   no memory */
u_char *ngx_http_vibe_pointer_path(ngx_pool_t *pool, ngx_str_t *name);


#endif /* _NGX_HTTP_VIBE_POINTER_H_INCLUDED_ */
