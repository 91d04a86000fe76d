
#include "ngx_http_vibe_file.h"


static ngx_int_t ngx_http_vibe_file_content(ngx_pool_t *pool, ngx_fd_t fd,
    size_t max, ngx_str_t *text, ngx_file_info_t *fi, const char **failed,
    ngx_err_t *err);


ngx_int_t
ngx_http_vibe_file_read(ngx_pool_t *pool, ngx_str_t *name, size_t max,
    ngx_str_t *text, ngx_file_info_t *fi, const char **failed, ngx_err_t *err)
{
    ngx_fd_t   fd;
    ngx_int_t  rc;

    /* not blocking: a pipe that nobody writes to would hold the worker */

    fd = ngx_open_file(name->data, NGX_FILE_RDONLY|NGX_FILE_NONBLOCK,
                       NGX_FILE_OPEN, 0);

    if (fd == NGX_INVALID_FILE) {
        *failed = ngx_open_file_n " failed";
        *err = ngx_errno;
        return NGX_ERROR;
    }

    rc = ngx_http_vibe_file_content(pool, fd, max, text, fi, failed, err);

    if (ngx_close_file(fd) == NGX_FILE_ERROR) {
        ngx_log_error(NGX_LOG_ALERT, pool->log, ngx_errno,
                      ngx_close_file_n " \"%V\" failed", name);
    }

    return rc;
}


static ngx_int_t
ngx_http_vibe_file_content(ngx_pool_t *pool, ngx_fd_t fd, size_t max,
    ngx_str_t *text, ngx_file_info_t *fi, const char **failed, ngx_err_t *err)
{
    size_t   size;
    ssize_t  n;

    *err = 0;

    if (ngx_fd_info(fd, fi) == NGX_FILE_ERROR) {
        *failed = ngx_fd_info_n " failed";
        *err = ngx_errno;
        return NGX_ERROR;
    }

    if (!ngx_is_file(fi)) {
        *failed = "it is not a regular file";
        return NGX_ERROR;
    }

    if (ngx_file_size(fi) > (off_t) max) {
        *failed = "it is too large";
        return NGX_ERROR;
    }

    size = (size_t) ngx_file_size(fi);

    text->len = 0;
    text->data = ngx_pnalloc(pool, size + 1);
    if (text->data == NULL) {
        *failed = "no memory";
        return NGX_ERROR;
    }

    while (text->len < size) {
        n = ngx_read_fd(fd, text->data + text->len, size - text->len);

        if (n == -1) {
            *failed = ngx_read_fd_n " failed";
            *err = ngx_errno;
            return NGX_ERROR;
        }

        if (n == 0) {
            /* it has become shorter meanwhile */
            break;
        }

        text->len += n;
    }

    text->data[text->len] = '\0';

    return NGX_OK;
}
