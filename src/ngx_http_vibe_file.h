
/*
 * A small file, read whole: a key, a list, a registry.
 *
 * Floor 1: takes no request.
 */


#ifndef _NGX_HTTP_VIBE_FILE_H_INCLUDED_
#define _NGX_HTTP_VIBE_FILE_H_INCLUDED_


#include <ngx_config.h>
#include <ngx_core.h>


/*
 * Reads the regular file "name" (NUL-terminated) into the pool, no more than
 * "max" bytes of it; "text" is followed by a NUL that it does not count.
 * "fi" gets what fstat() said of it.  A pipe or a device is refused without
 * waiting on it.
 *
 * NGX_OK, or NGX_ERROR with "failed" set to what did not work, a static text
 * for the log, and "err" to its errno or 0.
 */
ngx_int_t ngx_http_vibe_file_read(ngx_pool_t *pool, ngx_str_t *name,
    size_t max, ngx_str_t *text, ngx_file_info_t *fi, const char **failed,
    ngx_err_t *err);


#endif /* _NGX_HTTP_VIBE_FILE_H_INCLUDED_ */
