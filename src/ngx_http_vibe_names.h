
/*
 * A set of names, bounded: databases that have changed, ids to look at.
 *
 * Floor 1: takes no request, does no I/O.
 */


#ifndef _NGX_HTTP_VIBE_NAMES_H_INCLUDED_
#define _NGX_HTTP_VIBE_NAMES_H_INCLUDED_


#include <ngx_config.h>
#include <ngx_core.h>


/* one of them; its text is behind it */

typedef struct {
    ngx_str_node_t               node;
    ngx_queue_t                  queue;
} ngx_http_vibe_name_t;


typedef struct {
    ngx_rbtree_t                 rbtree;
    ngx_rbtree_node_t            sentinel;
    ngx_queue_t                  queue;        /* as they came */
    ngx_uint_t                   n;
    ngx_uint_t                   max;
} ngx_http_vibe_names_t;


void ngx_http_vibe_names_init(ngx_http_vibe_names_t *names, ngx_uint_t max);

/*
 * Adds a name, which is copied, if it is not among them.  NGX_OK;
 * NGX_DECLINED: there are too many; NGX_ERROR: no memory.
 */
ngx_int_t ngx_http_vibe_names_add(ngx_http_vibe_names_t *names,
    ngx_str_t *name);

/* 1 if the name is among them */
ngx_uint_t ngx_http_vibe_names_has(ngx_http_vibe_names_t *names,
    ngx_str_t *name);

/* takes out the first one, for the caller to ngx_free(); NULL: none is left */
ngx_http_vibe_name_t *ngx_http_vibe_names_take(ngx_http_vibe_names_t *names);

/* adds all of "from", which is empty then; returns as ..._add() does */
ngx_int_t ngx_http_vibe_names_move(ngx_http_vibe_names_t *names,
    ngx_http_vibe_names_t *from);

/* adds all of "from", which keeps them; returns as ..._add() does */
ngx_int_t ngx_http_vibe_names_copy(ngx_http_vibe_names_t *names,
    ngx_http_vibe_names_t *from);

/* forgets all */
void ngx_http_vibe_names_clear(ngx_http_vibe_names_t *names);


#endif /* _NGX_HTTP_VIBE_NAMES_H_INCLUDED_ */
