
/*
 * Queries that are answered from a registered feed: what the two files of the
 * query share.
 *
 *   pointer -> _find -> is it that run's still? -> expand -> answer
 *
 * Promises: an answer is of one run, whichever database it stood in, less
 * what was withdrawn since; it is what "global" would have answered to the
 * same query then, of the documents that the feed selects, or none.
 */


#ifndef _NGX_HTTP_VIBE_QUERY_FEED_H_INCLUDED_
#define _NGX_HTTP_VIBE_QUERY_FEED_H_INCLUDED_


#include "ngx_http_vibe.h"
#include "ngx_http_vibe_expand.h"
#include "ngx_http_vibe_feed.h"
#include "ngx_http_vibe_find.h"


/* runs that a query may see end while it reads */
#define NGX_HTTP_VIBE_QUERY_FEED_TRIES  5


typedef struct {
    ngx_http_vibe_ctx_t       *ctx;
    ngx_http_vibe_find_t       find;
    ngx_str_t                 *db;
    ngx_str_t                  seq;
    ngx_str_t                  index_name;
    ngx_http_vibe_index_t     *index;        /* of "global" */
    ngx_http_vibe_feed_t      *feed;         /* NULL: not from one */
    ngx_http_vibe_feed_now_t  *now;          /* of the feed */
    ngx_uint_t                 reads;        /* of the feed */
    ngx_http_vibe_json_t      *docs;
    ngx_str_t                  bookmark;     /* JSON */
    ngx_http_vibe_expand_t    *expand;
    ngx_uint_t                 tries;
    unsigned                   indexed:1;    /* made an index, once */
    unsigned                   etag:1;
} ngx_http_vibe_query_t;


/* in query_feed; all but the last two return as an ngx_http_vibe_call_pt */

/*
 * Finds the feed for a global query, by vibe_global_reads: NGX_OK, and "feed"
 * is NULL where "global" is to be asked; NGX_DECLINED: a query that must be
 * refused; NGX_ERROR: no memory.
 */
ngx_int_t ngx_http_vibe_query_registered(ngx_http_request_t *r,
    ngx_http_vibe_query_t *q);

/* begins to read the feed */
ngx_int_t ngx_http_vibe_query_feed(ngx_http_request_t *r,
    ngx_http_vibe_query_t *q);

/* sends _find, also anew with another limit */
ngx_int_t ngx_http_vibe_query_feed_find(ngx_http_request_t *r,
    ngx_http_vibe_query_t *q);

/* CouchDB lacks the database or the index: begins again */
ngx_int_t ngx_http_vibe_query_feed_lost(ngx_http_request_t *r,
    ngx_http_vibe_query_t *q);

/* goes on with what was found if it is of one run, else begins again */
ngx_int_t ngx_http_vibe_query_feed_verify(ngx_http_request_t *r,
    ngx_http_vibe_query_t *q);

/* the header "Age"; NGX_OK or NGX_ERROR */
ngx_int_t ngx_http_vibe_query_feed_age(ngx_http_request_t *r,
    ngx_http_vibe_query_t *q);

/* the member "as_of" of the answer, with a leading comma */
void ngx_http_vibe_query_feed_put_as_of(ngx_http_vibe_json_out_t *out,
    ngx_http_vibe_query_t *q);


/* in query; they return as an ngx_http_vibe_call_pt */

/* asks "global" */
ngx_int_t ngx_http_vibe_query_live(ngx_http_request_t *r,
    ngx_http_vibe_query_t *q);

/* the answer of _find has come */
ngx_int_t ngx_http_vibe_query_found(ngx_http_request_t *r,
    ngx_http_vibe_call_t *call);

/* the documents are what is to be answered, but for their references */
ngx_int_t ngx_http_vibe_query_expand(ngx_http_request_t *r,
    ngx_http_vibe_query_t *q);

/* writes the fields of a sort, for one who is told which there are */
void ngx_http_vibe_query_put_sort(ngx_http_vibe_json_out_t *out,
    ngx_array_t *fields);


#endif /* _NGX_HTTP_VIBE_QUERY_FEED_H_INCLUDED_ */
