
/*
 * The lease: who does the background work.
 *
 * Among the workers of one nginx it is in the zone, and survives a reload.
 * Among hosts it is a document of the database "vibe_state", which CouchDB
 * checks for conflicts; a _local one would not be.  The holder writes it
 * again before its term is over.  A contender takes it by _rev, and only
 * after having seen the same _rev for a whole term by its own clock, or at
 * once where the holder was a process of this machine that is no more, or
 * another worker of this nginx.
 *
 * Promises: a holder that could not write it for a term has stopped by then;
 * two at work at once need a clock that stood still, and compare-and-set
 * makes that harmless.
 */


#ifndef _NGX_HTTP_VIBE_LEASE_H_INCLUDED_
#define _NGX_HTTP_VIBE_LEASE_H_INCLUDED_


#include "ngx_http_vibe.h"


#define NGX_HTTP_VIBE_STATE_DB    "vibe_state"
#define NGX_HTTP_VIBE_LEASE_DOC   "/lease"

/* how often a worker looks at the zone's lease at least, milliseconds */
#define NGX_HTTP_VIBE_LEASE_TICK  1000

/* bounds of vibe_lease, milliseconds */
#define NGX_HTTP_VIBE_LEASE_MIN   1000
#define NGX_HTTP_VIBE_LEASE_MAX   3600000


/*
 * Called when this worker has begun, or has ceased, to hold the lease; and
 * every now and then while another host holds it.
 */
typedef void (*ngx_http_vibe_lease_pt)(ngx_uint_t leads);


/* those that work under it */
#define NGX_HTTP_VIBE_LEASE_USERS  2


/* for init_process, before the next two; NGX_OK or NGX_ERROR */
ngx_int_t ngx_http_vibe_lease_init(ngx_http_vibe_main_conf_t *vmcf);

/* has this called, too: at most NGX_HTTP_VIBE_LEASE_USERS of them */
void ngx_http_vibe_lease_use(ngx_http_vibe_lease_pt handler);

/* 1 if this worker holds it now, by the clock */
ngx_uint_t ngx_http_vibe_lease_held(void);

/* for exit_process: the next worker need not wait for this one */
void ngx_http_vibe_lease_exit(void);


#endif /* _NGX_HTTP_VIBE_LEASE_H_INCLUDED_ */
