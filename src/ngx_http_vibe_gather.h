
/*
 * What one user's database has for a feed: runs the feed's query on it and
 * brings the owner's rows in one of the feed's databases in line.
 *
 * A row is a public document of the feed's collection, with the feed's
 * fields, under its global id.  It keeps, as members of the module's own, the
 * format, the database that it is from, the source's revision where _rev is
 * a field, and its sum.
 *
 * Floor 4.
 */


#ifndef _NGX_HTTP_VIBE_GATHER_H_INCLUDED_
#define _NGX_HTTP_VIBE_GATHER_H_INCLUDED_


#include "ngx_http_vibe.h"
#include "ngx_http_vibe_ask.h"
#include "ngx_http_vibe_registry.h"
#include "ngx_http_vibe_rows.h"


/* documents asked for at once */
#define NGX_HTTP_VIBE_GATHER_PAGE   200

/* how often it begins again where others write the same rows */
#define NGX_HTTP_VIBE_GATHER_TRIES  5


typedef struct ngx_http_vibe_gather_s  ngx_http_vibe_gather_t;

/*
 * NGX_OK; NGX_DECLINED: the user's database cannot be read, its rows are as
 * they were; NGX_ABORT: the feed's is not there; NGX_ERROR: CouchDB failed,
 * nothing is known
 */
typedef void (*ngx_http_vibe_gather_pt)(ngx_http_vibe_gather_t *g,
    ngx_int_t rc);


struct ngx_http_vibe_gather_s {
    ngx_http_vibe_main_conf_t   *vmcf;
    ngx_http_vibe_feed_t        *feed;
    ngx_http_vibe_gather_pt      handler;
    void                        *data;

    ngx_str_t                    db;           /* the user's */
    ngx_str_t                    did;          /* empty: not known */
    ngx_uint_t                   status;       /* the last one of CouchDB's */
    unsigned                     unowned:1;
    unsigned                     missing:1;    /* there is no such database */
    unsigned                     empty:1;      /* nor rows of it */

    /* this room's own */

    ngx_pool_t                  *pool;
    ngx_http_vibe_ask_t          ask;
    ngx_http_vibe_rows_t         rows;
    ngx_str_t                    bookmark;     /* JSON, from "marks" */
    ngx_pool_t                  *marks;
    ngx_uint_t                   page;
    ngx_uint_t                   tries;
    unsigned                     more:1;       /* pages */
};


/*
 * Begins: "db" is copied, "feed" and "to", the feed's database, must stay.
 * "empty": that one has no rows of this database.  The handler is called
 * from the event loop and must end it.  NULL: no memory.
 */
ngx_http_vibe_gather_t *ngx_http_vibe_gather(ngx_http_vibe_main_conf_t *vmcf,
    ngx_http_vibe_feed_t *feed, ngx_str_t *db, ngx_str_t *to,
    ngx_uint_t empty, ngx_http_vibe_gather_pt handler, void *data);

/* ends it, also before its handler was called */
void ngx_http_vibe_gather_end(ngx_http_vibe_gather_t *g);


#endif /* _NGX_HTTP_VIBE_GATHER_H_INCLUDED_ */
