
/*
 * The list of those whose tokens are refused although they verify.
 *
 * Floor 2: decides, takes no request.  Its only I/O is the list's own file.
 */


#ifndef _NGX_HTTP_VIBE_REVOKED_H_INCLUDED_
#define _NGX_HTTP_VIBE_REVOKED_H_INCLUDED_


#include <ngx_config.h>
#include <ngx_core.h>


/* bytes of the file */
#define NGX_HTTP_VIBE_REVOKED_MAX      (4 * 1024 * 1024)


typedef struct ngx_http_vibe_revoked_s  ngx_http_vibe_revoked_t;


/*
 * The list of revoked DIDs and jtis: a file with one a line.  Blanks around a
 * name do not count; a comment begins with "#", at the line's beginning or
 * after a blank.
 *
 * Read at configuration (it must be readable then), looked at again at most
 * once a second and read when its mtime, size or inode changed.  When it
 * cannot be read any more, or is larger than NGX_HTTP_VIBE_REVOKED_MAX, the
 * last good list is kept and the error logged once.  Freed with the pool.
 * NULL: error, logged.
 */
ngx_http_vibe_revoked_t *ngx_http_vibe_revoked_open(ngx_conf_t *cf,
    ngx_str_t *file);

/* 1 if this name, a DID or a jti, is in the list */
ngx_uint_t ngx_http_vibe_revoked(ngx_http_vibe_revoked_t *revoked,
    ngx_str_t *name, ngx_log_t *log);


#endif /* _NGX_HTTP_VIBE_REVOKED_H_INCLUDED_ */
