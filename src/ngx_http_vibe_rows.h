
/*
 * Rows of a feed's database, brought in line with what they should be by
 * difference: those of a range of ids are read, what should be there is put,
 * only what differs is written, and what was not put is deleted.
 *
 * A row is known by its sum, the member "vibe_sum": equal sums, equal rows.
 *
 * Floor 4.
 */


#ifndef _NGX_HTTP_VIBE_ROWS_H_INCLUDED_
#define _NGX_HTTP_VIBE_ROWS_H_INCLUDED_


#include "ngx_http_vibe.h"
#include "ngx_http_vibe_ask.h"
#include "ngx_http_vibe_bulk.h"


/* rows read, or deleted, with one request */
#define NGX_HTTP_VIBE_ROWS_PAGE  500

/* rows held at once, some 200 bytes each */
#define NGX_HTTP_VIBE_ROWS_MAX   200000

/* hexadecimal digits of a sum */
#define NGX_HTTP_VIBE_ROWS_SUM   32


typedef struct ngx_http_vibe_rows_s  ngx_http_vibe_rows_t;

/*
 * NGX_OK; NGX_DECLINED: somebody else wrote such a row, begin again;
 * NGX_ABORT: there is no such database; NGX_ERROR: CouchDB failed, or there
 * are too many rows
 */
typedef void (*ngx_http_vibe_rows_pt)(ngx_http_vibe_rows_t *rows,
    ngx_int_t rc);


typedef struct {
    ngx_str_node_t               node;         /* the id */
    ngx_queue_t                  queue;
    ngx_str_t                    rev;
    ngx_str_t                    sum;
    ngx_str_t                    source;       /* the member "vibe_db" */
    unsigned                     put:1;
} ngx_http_vibe_row_t;


struct ngx_http_vibe_rows_s {
    ngx_http_vibe_main_conf_t   *vmcf;
    ngx_str_t                    db;
    void                        *data;         /* the caller's own */

    unsigned                     paged:1;      /* in: read one page only */
    unsigned                     more:1;       /* out: after "last" */
    ngx_queue_t                  queue;        /* rows held, in order */
    ngx_str_t                    last;         /* the last one's id */
    ngx_uint_t                   changed;      /* rows written or deleted */

    /* this room's own */

    ngx_http_vibe_ask_t          ask;
    ngx_http_vibe_rows_pt        handler;
    ngx_pool_t                  *pool;         /* of what is held */
    ngx_rbtree_t                 rbtree;
    ngx_rbtree_node_t            sentinel;
    ngx_uint_t                   n;
    ngx_str_t                    to;
    ngx_uint_t                   page;         /* rows read at once */

    ngx_pool_t                  *batch;        /* of "bulk" */
    ngx_http_vibe_bulk_t        *bulk;         /* NULL: nothing to write */
};


/* prepares; "db" must stay.  NGX_OK or NGX_ERROR: no memory */
ngx_int_t ngx_http_vibe_rows_init(ngx_http_vibe_rows_t *rows,
    ngx_http_vibe_main_conf_t *vmcf, ngx_str_t *db, void *data);
void ngx_http_vibe_rows_end(ngx_http_vibe_rows_t *rows);

/* forgets what it holds, as if the database had no such rows */
ngx_int_t ngx_http_vibe_rows_none(ngx_http_vibe_rows_t *rows);

/*
 * Reads what the database holds after "from", an id, up to and with "to", or
 * its end where that is empty; what was held before is forgotten.  NGX_OK:
 * the handler will be called, from the event loop; NGX_ERROR: no memory.
 */
ngx_int_t ngx_http_vibe_rows_read(ngx_http_vibe_rows_t *rows, ngx_str_t *from,
    ngx_str_t *to, ngx_http_vibe_rows_pt handler);

/*
 * The path, within a database and NUL-terminated, that reads at most "limit"
 * rows from the id "from" on, up to "to" as above.  NULL: no memory.
 */
u_char *ngx_http_vibe_rows_path(ngx_pool_t *pool, ngx_uint_t limit,
    ngx_str_t *from, ngx_str_t *to);

/*
 * This row should be there, with these members, each with a leading comma,
 * and "sum".  What is pointed to must stay until it was written.  NGX_OK or
 * NGX_ERROR: no memory.
 */
ngx_int_t ngx_http_vibe_rows_put(ngx_http_vibe_rows_t *rows, ngx_str_t *id,
    ngx_str_t *sum, ngx_str_t *members);

/*
 * The other rows held should not be there.  NGX_OK: all of them are to be
 * written; NGX_AGAIN: some, call it again after that; NGX_ERROR: no memory.
 */
ngx_int_t ngx_http_vibe_rows_drop(ngx_http_vibe_rows_t *rows);

/*
 * Writes what is to be written.  NGX_OK: nothing is; NGX_AGAIN: the handler
 * will be called, from the event loop.
 */
ngx_int_t ngx_http_vibe_rows_write(ngx_http_vibe_rows_t *rows,
    ngx_http_vibe_rows_pt handler);


#endif /* _NGX_HTTP_VIBE_ROWS_H_INCLUDED_ */
