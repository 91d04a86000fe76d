
/*
 * The feeds that are registered now, as each worker knows them: read with the
 * configuration, and again when the file changed; or from a database with a
 * document for each feed, which is followed.
 *
 * Promises: a bad edit keeps the last good registry, is logged once, and is
 * told in vibe_status; whoever looks a feed up asks CouchDB nothing.
 *
 * Floor 4.
 */


#ifndef _NGX_HTTP_VIBE_FEEDS_H_INCLUDED_
#define _NGX_HTTP_VIBE_FEEDS_H_INCLUDED_


#include "ngx_http_vibe.h"
#include "ngx_http_vibe_registry.h"


/* how often the file is looked at, milliseconds */
#define NGX_HTTP_VIBE_FEEDS_LOOK   1000

/* how long changes of the database are collected, milliseconds */
#define NGX_HTTP_VIBE_FEEDS_DELAY  100


/*
 * For postconfiguration, when the prefixes of users' databases are all known:
 * reads the file into vmcf->registry.  NGX_OK or NGX_ERROR, logged.
 */
ngx_int_t ngx_http_vibe_feeds_read(ngx_conf_t *cf,
    ngx_http_vibe_main_conf_t *vmcf);

/* for init_process, where there is vibe_registry; NGX_OK or NGX_ERROR */
ngx_int_t ngx_http_vibe_feeds_init(ngx_http_vibe_main_conf_t *vmcf);

/* for exit_process; may be called where init was not */
void ngx_http_vibe_feeds_exit(void);

/*
 * The registry of now; never NULL, perhaps without feeds.  It and its feeds
 * may be gone when the caller returns to the event loop.
 */
ngx_http_vibe_registry_t *ngx_http_vibe_feeds(void);

/*
 * After init: has "changed" called, from the event loop, after the registry
 * was replaced by one that differs.
 */
void ngx_http_vibe_feeds_watch(void (*changed)(void));


#endif /* _NGX_HTTP_VIBE_FEEDS_H_INCLUDED_ */
