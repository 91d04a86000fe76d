
#include "ngx_http_vibe_revoked.h"
#include "ngx_http_vibe_file.h"


/* seconds within which an mtime may not tell two writes apart */
#define NGX_HTTP_VIBE_REVOKED_SETTLE   2


typedef struct {
    uint32_t                 start;        /* a name in the text */
    uint32_t                 len;          /* 0: the slot is free */
} ngx_http_vibe_revoked_slot_t;


/* a hash table with open addressing, at most half of its slots taken */

typedef struct {
    ngx_pool_t                    *pool;
    ngx_str_t                      text;
    ngx_http_vibe_revoked_slot_t  *slots;
    uint32_t                       mask;   /* their number, a power of 2, - 1 */
    ngx_uint_t                     n;      /* names */
} ngx_http_vibe_revoked_list_t;


struct ngx_http_vibe_revoked_s {
    ngx_http_vibe_revoked_list_t  *list;
    ngx_str_t                      file;

    time_t                         checked;
    time_t                         mtime;
    off_t                          size;
    ngx_file_uniq_t                uniq;

    unsigned                       settled:1;
    unsigned                       failed:1;
};


static void ngx_http_vibe_revoked_cleanup(void *data);
static void ngx_http_vibe_revoked_check(ngx_http_vibe_revoked_t *revoked,
    ngx_log_t *log);
static ngx_int_t ngx_http_vibe_revoked_load(ngx_http_vibe_revoked_t *revoked,
    ngx_log_t *log, const char **failed, ngx_err_t *err);
static ngx_int_t ngx_http_vibe_revoked_index(
    ngx_http_vibe_revoked_list_t *list);
static ngx_uint_t ngx_http_vibe_revoked_name(u_char **pos, u_char *end,
    ngx_str_t *name);
static ngx_http_vibe_revoked_slot_t *ngx_http_vibe_revoked_find(
    ngx_http_vibe_revoked_list_t *list, ngx_str_t *name);


ngx_http_vibe_revoked_t *
ngx_http_vibe_revoked_open(ngx_conf_t *cf, ngx_str_t *file)
{
    ngx_err_t                 err;
    const char               *failed;
    ngx_pool_cleanup_t       *cln;
    ngx_http_vibe_revoked_t  *revoked;

    cln = ngx_pool_cleanup_add(cf->pool, sizeof(ngx_http_vibe_revoked_t));
    if (cln == NULL) {
        return NULL;
    }

    revoked = cln->data;

    ngx_memzero(revoked, sizeof(ngx_http_vibe_revoked_t));

    cln->handler = ngx_http_vibe_revoked_cleanup;

    revoked->file = *file;

    if (ngx_conf_full_name(cf->cycle, &revoked->file, 1) != NGX_OK) {
        return NULL;
    }

    if (ngx_http_vibe_revoked_load(revoked, cf->log, &failed, &err)
        != NGX_OK)
    {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, err,
                           "could not read the list of revoked ones "
                           "\"%V\": %s", &revoked->file, failed);
        return NULL;
    }

    /* cf->log is of the old cycle, which the list outlives */
    revoked->list->pool->log = &cf->cycle->new_log;

    return revoked;
}


static void
ngx_http_vibe_revoked_cleanup(void *data)
{
    ngx_http_vibe_revoked_t *revoked = data;

    if (revoked->list != NULL) {
        ngx_destroy_pool(revoked->list->pool);
        revoked->list = NULL;
    }
}


ngx_uint_t
ngx_http_vibe_revoked(ngx_http_vibe_revoked_t *revoked, ngx_str_t *name,
    ngx_log_t *log)
{
    if (revoked->checked != ngx_time()) {
        revoked->checked = ngx_time();
        ngx_http_vibe_revoked_check(revoked, log);
    }

    if (name->len == 0 || name->len > NGX_HTTP_VIBE_REVOKED_MAX) {
        return 0;
    }

    return ngx_http_vibe_revoked_find(revoked->list, name)->len != 0;
}


/* whatever goes wrong here, the list that was good before stays */

static void
ngx_http_vibe_revoked_check(ngx_http_vibe_revoked_t *revoked, ngx_log_t *log)
{
    ngx_err_t         err;
    const char       *failed;
    ngx_file_info_t   fi;

    if (ngx_file_info(revoked->file.data, &fi) == NGX_FILE_ERROR) {
        failed = ngx_file_info_n " failed";
        err = ngx_errno;
        goto keep;
    }

    if (revoked->settled
        && !revoked->failed
        && ngx_file_mtime(&fi) == revoked->mtime
        && ngx_file_size(&fi) == revoked->size
        && ngx_file_uniq(&fi) == revoked->uniq)
    {
        return;
    }

    /* the cycle's log, for the list lives longer than a request */

    if (ngx_http_vibe_revoked_load(revoked, ngx_cycle->log, &failed, &err)
        != NGX_OK)
    {
        goto keep;
    }

    if (revoked->failed) {
        revoked->failed = 0;

        ngx_log_error(NGX_LOG_NOTICE, log, 0,
                      "the list of revoked ones \"%V\" can be read again",
                      &revoked->file);
    }

    return;

keep:

    if (!revoked->failed) {
        revoked->failed = 1;

        ngx_log_error(NGX_LOG_CRIT, log, err,
                      "could not read the list of revoked ones \"%V\": %s, "
                      "the last good one, of %ui, is kept",
                      &revoked->file, failed, revoked->list->n);
    }
}


static ngx_int_t
ngx_http_vibe_revoked_load(ngx_http_vibe_revoked_t *revoked, ngx_log_t *log,
    const char **failed, ngx_err_t *err)
{
    ngx_pool_t                    *pool;
    ngx_file_info_t                fi;
    ngx_http_vibe_revoked_list_t  *list;

    *failed = "no memory";
    *err = 0;

    pool = ngx_create_pool(NGX_DEFAULT_POOL_SIZE, log);
    if (pool == NULL) {
        return NGX_ERROR;
    }

    list = ngx_pcalloc(pool, sizeof(ngx_http_vibe_revoked_list_t));
    if (list == NULL) {
        goto error;
    }

    list->pool = pool;

    if (ngx_http_vibe_file_read(pool, &revoked->file,
                                NGX_HTTP_VIBE_REVOKED_MAX, &list->text, &fi,
                                failed, err)
        != NGX_OK)
    {
        goto error;
    }

    if (ngx_http_vibe_revoked_index(list) != NGX_OK) {
        *failed = "no memory";
        goto error;
    }

    ngx_http_vibe_revoked_cleanup(revoked);

    revoked->list = list;
    revoked->mtime = ngx_file_mtime(&fi);
    revoked->size = ngx_file_size(&fi);
    revoked->uniq = ngx_file_uniq(&fi);

    /* a file that was written just now may be written again unnoticed */

    revoked->settled = ngx_abs(ngx_time() - revoked->mtime)
                       > NGX_HTTP_VIBE_REVOKED_SETTLE;

    return NGX_OK;

error:

    ngx_destroy_pool(pool);

    return NGX_ERROR;
}


static ngx_int_t
ngx_http_vibe_revoked_index(ngx_http_vibe_revoked_list_t *list)
{
    u_char                        *p, *end;
    uint32_t                       slots;
    ngx_str_t                      name;
    ngx_uint_t                     n;
    ngx_http_vibe_revoked_slot_t  *slot;

    /* a byte order mark is not part of the first name */

    if (ngx_strncmp(list->text.data, "\xef\xbb\xbf", 3) == 0) {
        list->text.data += 3;
        list->text.len -= 3;
    }

    end = list->text.data + list->text.len;

    n = 0;

    for (p = list->text.data; ngx_http_vibe_revoked_name(&p, end, &name); ) {
        n++;
    }

    for (slots = 2; slots < 2 * n; slots *= 2) { /* void */ }

    list->mask = slots - 1;
    list->slots = ngx_pcalloc(list->pool,
                              slots * sizeof(ngx_http_vibe_revoked_slot_t));
    if (list->slots == NULL) {
        return NGX_ERROR;
    }

    for (p = list->text.data; ngx_http_vibe_revoked_name(&p, end, &name); ) {

        slot = ngx_http_vibe_revoked_find(list, &name);

        if (slot->len == 0) {
            slot->start = (uint32_t) (name.data - list->text.data);
            slot->len = (uint32_t) name.len;
            list->n++;
        }
    }

    return NGX_OK;
}


/* the next name of the text, 0 where there is none any more */

static ngx_uint_t
ngx_http_vibe_revoked_name(u_char **pos, u_char *end, ngx_str_t *name)
{
    u_char  *p, *last, *line;

    for (p = *pos; p < end; p = line + 1) {

        line = ngx_strlchr(p, end, LF);
        if (line == NULL) {
            line = end;
        }

        while (p < line && (*p == ' ' || *p == '\t' || *p == CR)) {
            p++;
        }

        for (last = p; last < line; last++) {
            if (*last == '#'
                && (last == p || last[-1] == ' ' || last[-1] == '\t'))
            {
                break;
            }
        }

        while (last > p
               && (last[-1] == ' ' || last[-1] == '\t' || last[-1] == CR))
        {
            last--;
        }

        if (last > p) {
            name->data = p;
            name->len = last - p;
            *pos = ngx_min(line + 1, end);
            return 1;
        }
    }

    return 0;
}


/* the slot of this name, or the free one where it belongs */

static ngx_http_vibe_revoked_slot_t *
ngx_http_vibe_revoked_find(ngx_http_vibe_revoked_list_t *list,
    ngx_str_t *name)
{
    uint32_t                       i;
    ngx_http_vibe_revoked_slot_t  *slot;

    i = ngx_crc32_long(name->data, name->len);

    for ( ;; ) {
        slot = &list->slots[i & list->mask];

        if (slot->len == 0
            || (slot->len == name->len
                && ngx_memcmp(list->text.data + slot->start, name->data,
                              name->len)
                   == 0))
        {
            return slot;
        }

        i++;
    }
}
