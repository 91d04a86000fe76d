
/*
 * The database "global": that it exists, is closed, and has the indexes that
 * vibe_index names, before the first query that needs one.
 *
 * Each worker makes sure of it once, and again after CouchDB said that the
 * database is gone.  Where repair is at work, a new one is not complete
 * before repair has gone through the databases of all users and said so in
 * _local/vibe_complete; until then it can be written, not read.
 */


#ifndef _NGX_HTTP_VIBE_GLOBAL_H_INCLUDED_
#define _NGX_HTTP_VIBE_GLOBAL_H_INCLUDED_


#include "ngx_http_vibe.h"
#include "ngx_http_vibe_index.h"
#include "ngx_http_vibe_wait.h"


/*
 * An index this many changes behind, and being worked on, is "being built":
 * fewer CouchDB catches up with while a query waits.
 */
#define NGX_HTTP_VIBE_INDEX_BEHIND  1000

/* how often an index that was being built is looked at, milliseconds */
#define NGX_HTTP_VIBE_INDEX_LOOK    1000


/*
 * The mark gives a "global" its id; it is complete if the other one has the
 * same.  Both are no part of its changes.
 */
#define NGX_HTTP_VIBE_MARK           "/_local/vibe_global"
#define NGX_HTTP_VIBE_MARK_COMPLETE  "/_local/vibe_complete"


/* one who waits for "global"; "failed" is NULL or the call that failed */

typedef struct {
    ngx_queue_t                  queue;
    void                       (*handler)(void *data,
                                          ngx_http_vibe_call_t *failed);
    void                        *data;
} ngx_http_vibe_global_wait_t;


/* for init_process */
void ngx_http_vibe_global_init(ngx_http_vibe_main_conf_t *vmcf);

/*
 * Makes sure that "global" can be read and goes on with "next"; where it is
 * not complete, the client is answered 503 here.  Returns as an
 * ngx_http_vibe_call_pt does.
 */
ngx_int_t ngx_http_vibe_global_ready(ngx_http_request_t *r,
    ngx_http_vibe_next_pt next, void *data);

/*
 * Makes sure that "global" can be written.  NGX_OK: it can; NGX_AGAIN: the
 * handler will be called from the event loop, and "wait" must stay until
 * then; NGX_ERROR: no memory.
 */
ngx_int_t ngx_http_vibe_global_make(ngx_http_vibe_global_wait_t *wait);

/* CouchDB has said that there is no such database: make sure again */
void ngx_http_vibe_global_gone(ngx_http_vibe_main_conf_t *vmcf);

/*
 * Looks at what GET /global has answered: another "global" than before, which
 * another host may have made, is made sure of again.
 */
void ngx_http_vibe_global_seen(ngx_http_vibe_main_conf_t *vmcf,
    ngx_http_vibe_json_t *info);

/* writes either mark, the body of a PUT */
void ngx_http_vibe_global_put_mark(ngx_http_vibe_json_out_t *out,
    ngx_str_t *id);

extern ngx_str_t  ngx_http_vibe_global;          /* its name */


/*
 * The index for a sort in a collection by these fields, an array of
 * ngx_str_t; NULL: no vibe_index names it.  Without fields it is the one that
 * finds a collection's documents.
 */
ngx_http_vibe_index_t *ngx_http_vibe_global_index(ngx_http_request_t *r,
    ngx_str_t *collection, ngx_array_t *fields);

/*
 * Goes on with "next" when the index can be used; where it is being built,
 * the client is answered 503 here.
 */
ngx_int_t ngx_http_vibe_index_ready(ngx_http_request_t *r,
    ngx_http_vibe_index_t *index, ngx_http_vibe_next_pt next, void *data);

/* CouchDB has said that there is no such index: make sure again */
void ngx_http_vibe_index_gone(ngx_http_request_t *r,
    ngx_http_vibe_index_t *index);


#endif /* _NGX_HTTP_VIBE_GLOBAL_H_INCLUDED_ */
