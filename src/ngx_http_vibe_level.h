
/*
 * Levels the two databases of a feed: makes one hold, in a range of ids, what
 * the other one holds.
 *
 * Floor 4.
 */


#ifndef _NGX_HTTP_VIBE_LEVEL_H_INCLUDED_
#define _NGX_HTTP_VIBE_LEVEL_H_INCLUDED_


#include "ngx_http_vibe.h"
#include "ngx_http_vibe_ask.h"
#include "ngx_http_vibe_rows.h"


/* how often a page is begun again where others write the same rows */
#define NGX_HTTP_VIBE_LEVEL_TRIES  5


typedef struct ngx_http_vibe_level_s  ngx_http_vibe_level_t;

/* as ngx_http_vibe_rows_pt */
typedef void (*ngx_http_vibe_level_pt)(ngx_http_vibe_level_t *l,
    ngx_int_t rc);


struct ngx_http_vibe_level_s {
    void                        *data;         /* the caller's own */
    ngx_http_vibe_level_pt       handler;

    /* this room's own */

    ngx_pool_t                  *pool;
    ngx_http_vibe_ask_t          ask;
    ngx_http_vibe_rows_t         rows;
    ngx_str_t                    from;         /* the database */
    ngx_str_t                    last;         /* id copied; ngx_alloc() */
    ngx_str_t                    until;        /* the last id of the page */
    ngx_str_t                    end;          /* the range's, or empty */
    ngx_str_t                    only;         /* or empty: rows of this one */
    ngx_http_vibe_json_t        *list;         /* rows of "from" */
    ngx_uint_t                   page;
    ngx_uint_t                   tries;        /* of this page */
    unsigned                     more:1;
};


/*
 * Begins: what "from" holds after the id "first" up to "end", or to its end
 * where that is empty, "to" shall hold; with "only" not empty, of the rows of
 * that user's database alone.  All but the names of the two is copied.  The
 * handler is called from the event loop and must end it.  NULL: no memory.
 */
ngx_http_vibe_level_t *ngx_http_vibe_level(ngx_http_vibe_main_conf_t *vmcf,
    ngx_str_t *from, ngx_str_t *to, ngx_str_t *first, ngx_str_t *end,
    ngx_str_t *only, ngx_http_vibe_level_pt handler, void *data);

/* ends it, also before its handler was called */
void ngx_http_vibe_level_end(ngx_http_vibe_level_t *l);


#endif /* _NGX_HTTP_VIBE_LEVEL_H_INCLUDED_ */
