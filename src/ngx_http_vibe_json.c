
#include "ngx_http_vibe_json.h"

#include <yajl/yajl_parse.h>


#define NGX_HTTP_VIBE_JSON_SLAB   32       /* nodes allocated at a time */
#define NGX_HTTP_VIBE_JSON_BLOCK  4096     /* bytes for short pieces */
#define NGX_HTTP_VIBE_JSON_SHORT  512      /* what is copied, not pointed at */


typedef struct {
    ngx_pool_t             *pool;
    yajl_handle             yajl;
    ngx_str_t              *text;
    u_char                 *last;          /* where the last token ended */

    ngx_uint_t              keep;          /* levels to remember */
    ngx_uint_t              max;           /* levels to accept */
    ngx_uint_t              depth;         /* containers open now */
    ngx_uint_t              nodes;

    ngx_http_vibe_json_t   *root;
    ngx_http_vibe_json_t   *slab;
    ngx_uint_t              slab_left;

    ngx_str_t               name;          /* of the member to come */
    u_char                 *start;

    ngx_http_vibe_json_t   *open[NGX_HTTP_VIBE_JSON_MAX_DEPTH + 2];
    ngx_http_vibe_json_t  **link[NGX_HTTP_VIBE_JSON_MAX_DEPTH + 2];

    const char             *reason;
    unsigned                no_memory:1;
    unsigned                completing:1;  /* all of the text was consumed */
} ngx_http_vibe_json_scan_t;


static const char *ngx_http_vibe_json_check_text(ngx_str_t *text,
    u_char **at);
static u_char *ngx_http_vibe_json_check_utf8(u_char *p, u_char *end);
static u_char *ngx_http_vibe_json_check_escape(u_char *p, u_char *end);
static u_char *ngx_http_vibe_json_refused(ngx_http_vibe_json_scan_t *scan);
static ngx_int_t ngx_http_vibe_json_node(ngx_http_vibe_json_scan_t *scan,
    ngx_http_vibe_json_type_e type, ngx_http_vibe_json_t **node);
static ngx_int_t ngx_http_vibe_json_decoded(ngx_http_vibe_json_scan_t *scan,
    const unsigned char *data, size_t len, ngx_str_t *str);
static u_char *ngx_http_vibe_json_token(ngx_http_vibe_json_scan_t *scan,
    u_char **start);
static int ngx_http_vibe_json_on_scalar(ngx_http_vibe_json_scan_t *scan,
    ngx_http_vibe_json_type_e type);
static int ngx_http_vibe_json_on_null(void *ctx);
static int ngx_http_vibe_json_on_boolean(void *ctx, int value);
static int ngx_http_vibe_json_on_number(void *ctx, const char *data,
    size_t len);
static int ngx_http_vibe_json_on_string(void *ctx, const unsigned char *data,
    size_t len);
static int ngx_http_vibe_json_on_name(void *ctx, const unsigned char *data,
    size_t len);
static int ngx_http_vibe_json_on_start(ngx_http_vibe_json_scan_t *scan,
    ngx_http_vibe_json_type_e type);
static int ngx_http_vibe_json_on_start_object(void *ctx);
static int ngx_http_vibe_json_on_start_array(void *ctx);
static int ngx_http_vibe_json_on_end(void *ctx);
static ngx_buf_t *ngx_http_vibe_json_out_buf(ngx_http_vibe_json_out_t *out,
    u_char *data);


const char  ngx_http_vibe_json_too_many[] = "too many values";


static yajl_callbacks  ngx_http_vibe_json_callbacks = {
    ngx_http_vibe_json_on_null,
    ngx_http_vibe_json_on_boolean,
    NULL,
    NULL,
    ngx_http_vibe_json_on_number,
    ngx_http_vibe_json_on_string,
    ngx_http_vibe_json_on_start_object,
    ngx_http_vibe_json_on_name,
    ngx_http_vibe_json_on_end,
    ngx_http_vibe_json_on_start_array,
    ngx_http_vibe_json_on_end
};


ngx_int_t
ngx_http_vibe_json_scan(ngx_pool_t *pool, ngx_str_t *text, ngx_uint_t depth,
    ngx_http_vibe_json_t **root, const char **reason)
{
    u_char  *at;

    return ngx_http_vibe_json_scan_at(pool, text, depth, root, reason, &at);
}


ngx_int_t
ngx_http_vibe_json_scan_at(ngx_pool_t *pool, ngx_str_t *text,
    ngx_uint_t depth, ngx_http_vibe_json_t **root, const char **reason,
    u_char **at)
{
    u_char                     *p;
    yajl_status                 status;
    ngx_http_vibe_json_scan_t   scan;

    *reason = ngx_http_vibe_json_check_text(text, at);

    if (*reason != NULL) {
        return NGX_DECLINED;
    }

    ngx_memzero(&scan, sizeof(ngx_http_vibe_json_scan_t));

    scan.pool = pool;
    scan.text = text;
    scan.last = text->data;
    scan.keep = depth & ~NGX_HTTP_VIBE_JSON_DEEP;
    scan.max = (depth & NGX_HTTP_VIBE_JSON_DEEP)
               ? NGX_MAX_INT32_VALUE : NGX_HTTP_VIBE_JSON_MAX_DEPTH;

    scan.yajl = yajl_alloc(&ngx_http_vibe_json_callbacks, NULL, &scan);
    if (scan.yajl == NULL) {
        return NGX_ERROR;
    }

    status = yajl_parse(scan.yajl, text->data, text->len);

    if (status == yajl_status_ok) {
        /* a number that ends the text is only known to end here */
        scan.completing = 1;
        status = yajl_complete_parse(scan.yajl);
    }

    yajl_free(scan.yajl);

    if (scan.no_memory) {
        return NGX_ERROR;
    }

    if (status != yajl_status_ok || scan.root == NULL) {
        *reason = scan.reason ? scan.reason : "invalid JSON";
        *at = ngx_http_vibe_json_refused(&scan);
        return NGX_DECLINED;
    }

    /* yajl overlooks a string that is cut off by the end of the text */

    for (p = scan.last; p < text->data + text->len; p++) {
        if (*p != ' ' && *p != '\t' && *p != CR && *p != LF) {
            *reason = "invalid JSON";
            *at = p;
            return NGX_DECLINED;
        }
    }

    *root = scan.root;

    return NGX_OK;
}


/*
 * What yajl lets pass and CouchDB does not: overlong forms and surrogates in
 * UTF-8, a "\ud800" without its other half, a form feed as white space.
 */

static const char *
ngx_http_vibe_json_check_text(ngx_str_t *text, u_char **at)
{
    u_char  *p, *end;

    p = text->data;
    end = text->data + text->len;

    while (p < end) {

        *at = p;

        if (*p >= 0x80) {
            p = ngx_http_vibe_json_check_utf8(p, end);

            if (p == NULL) {
                return "invalid UTF-8";
            }

            continue;
        }

        if (*p == '\\') {
            p = ngx_http_vibe_json_check_escape(p, end);

            if (p == NULL) {
                return "invalid JSON: a lone surrogate";
            }

            continue;
        }

        if (*p < ' ' && *p != '\t' && *p != CR && *p != LF) {
            return "invalid JSON";
        }

        p++;
    }

    return NULL;
}


/* the token that was not expected, or where the text ended too soon */

static u_char *
ngx_http_vibe_json_refused(ngx_http_vibe_json_scan_t *scan)
{
    u_char      *p, *end;
    ngx_uint_t   separators;

    end = scan->text->data + scan->text->len;
    separators = 0;

    for (p = scan->last; p < end; p++) {

        if (*p == ' ' || *p == '\t' || *p == CR || *p == LF) {
            continue;
        }

        if ((*p != ',' && *p != ':') || separators++) {
            return p;
        }
    }

    return scan->last;
}


/* one character of RFC 3629, table 3-7 of Unicode; NULL if it is none */

static u_char *
ngx_http_vibe_json_check_utf8(u_char *p, u_char *end)
{
    u_char      low, high;
    ngx_uint_t  i, n;

    low = 0x80;
    high = 0xbf;

    if (*p >= 0xc2 && *p <= 0xdf) {
        n = 1;

    } else if (*p >= 0xe0 && *p <= 0xef) {
        n = 2;
        low = (*p == 0xe0) ? 0xa0 : 0x80;
        high = (*p == 0xed) ? 0x9f : 0xbf;

    } else if (*p >= 0xf0 && *p <= 0xf4) {
        n = 3;
        low = (*p == 0xf0) ? 0x90 : 0x80;
        high = (*p == 0xf4) ? 0x8f : 0xbf;

    } else {
        return NULL;
    }

    if ((size_t) (end - p) <= n || p[1] < low || p[1] > high) {
        return NULL;
    }

    for (i = 2; i <= n; i++) {
        if (p[i] < 0x80 || p[i] > 0xbf) {
            return NULL;
        }
    }

    return p + n + 1;
}


ngx_uint_t
ngx_http_vibe_json_is_utf8(ngx_str_t *str)
{
    u_char  *p, *end;

    p = str->data;
    end = str->data + str->len;

    while (p < end) {

        if (*p < 0x80) {
            p++;
            continue;
        }

        p = ngx_http_vibe_json_check_utf8(p, end);

        if (p == NULL) {
            return 0;
        }
    }

    return 1;
}


/* an escape, or the two of a surrogate pair; NULL if a half is alone */

static u_char *
ngx_http_vibe_json_check_escape(u_char *p, u_char *end)
{
    ngx_int_t  high, low;

    if (end - p < 6 || p[1] != 'u') {
        /* whether it is an escape at all is yajl's to say */
        return (end - p < 2) ? end : p + 2;
    }

    high = ngx_hextoi(p + 2, 4);

    if (high < 0xd800 || high > 0xdfff) {
        return p + 2;
    }

    if (high >= 0xdc00 || end - p < 12 || p[6] != '\\' || p[7] != 'u') {
        return NULL;
    }

    low = ngx_hextoi(p + 8, 4);

    if (low < 0xdc00 || low > 0xdfff) {
        return NULL;
    }

    return p + 12;
}


/* the place of a value in the tree; *node is NULL where it is too deep */

static ngx_int_t
ngx_http_vibe_json_node(ngx_http_vibe_json_scan_t *scan,
    ngx_http_vibe_json_type_e type, ngx_http_vibe_json_t **node)
{
    ngx_http_vibe_json_t  *n, *parent;

    *node = NULL;

    if (scan->depth > scan->keep) {
        return NGX_OK;
    }

    if (++scan->nodes > NGX_HTTP_VIBE_JSON_MAX_NODES) {
        scan->reason = ngx_http_vibe_json_too_many;
        return NGX_DECLINED;
    }

    if (scan->slab_left == 0) {
        scan->slab = ngx_pcalloc(scan->pool, NGX_HTTP_VIBE_JSON_SLAB
                                 * sizeof(ngx_http_vibe_json_t));
        if (scan->slab == NULL) {
            scan->no_memory = 1;
            return NGX_ERROR;
        }

        scan->slab_left = NGX_HTTP_VIBE_JSON_SLAB;
    }

    n = scan->slab++;
    scan->slab_left--;

    n->type = type;

    if (scan->depth == 0) {
        scan->root = n;

    } else {
        parent = scan->open[scan->depth];
        parent->n++;

        *scan->link[scan->depth] = n;
        scan->link[scan->depth] = &n->next;

        if (parent->type == NGX_HTTP_VIBE_JSON_OBJECT) {
            n->name = scan->name;
            n->start = scan->start;
        }
    }

    *node = n;

    return NGX_OK;
}


/*
 * yajl points into the text where there was nothing to resolve, else into a
 * buffer of its own that it will use again.
 */

static ngx_int_t
ngx_http_vibe_json_decoded(ngx_http_vibe_json_scan_t *scan,
    const unsigned char *data, size_t len, ngx_str_t *str)
{
    u_char  *p;

    p = (u_char *) data;

    str->len = len;

    if (len == 0) {
        str->data = scan->text->data;
        return NGX_OK;
    }

    if (p >= scan->text->data && p < scan->text->data + scan->text->len) {
        str->data = p;
        return NGX_OK;
    }

    str->data = ngx_pnalloc(scan->pool, len);
    if (str->data == NULL) {
        scan->no_memory = 1;
        return NGX_ERROR;
    }

    ngx_memcpy(str->data, p, len);

    return NGX_OK;
}


/*
 * The bounds of the token that yajl has just read: it tells where the token
 * ends, and between two tokens stand only white space, colons and commas.
 */

static u_char *
ngx_http_vibe_json_token(ngx_http_vibe_json_scan_t *scan, u_char **start)
{
    u_char  *p, *end;

    p = scan->last;

    while (*p == ' ' || *p == '\t' || *p == CR || *p == LF
           || *p == ',' || *p == ':')
    {
        p++;
    }

    if (scan->completing) {
        end = scan->text->data + scan->text->len;

    } else {
        end = scan->text->data + yajl_get_bytes_consumed(scan->yajl);
    }

    *start = p;
    scan->last = end;

    return end;
}


static int
ngx_http_vibe_json_on_scalar(ngx_http_vibe_json_scan_t *scan,
    ngx_http_vibe_json_type_e type)
{
    u_char                *start, *end;
    ngx_http_vibe_json_t  *node;

    end = ngx_http_vibe_json_token(scan, &start);

    if (ngx_http_vibe_json_node(scan, type, &node) != NGX_OK) {
        return 0;
    }

    if (node != NULL) {
        node->raw.data = start;
        node->raw.len = end - start;

        if (node->start == NULL) {
            node->start = start;
        }
    }

    return 1;
}


static int
ngx_http_vibe_json_on_null(void *ctx)
{
    return ngx_http_vibe_json_on_scalar(ctx, NGX_HTTP_VIBE_JSON_NULL);
}


static int
ngx_http_vibe_json_on_boolean(void *ctx, int value)
{
    return ngx_http_vibe_json_on_scalar(ctx, value ? NGX_HTTP_VIBE_JSON_TRUE
                                                   : NGX_HTTP_VIBE_JSON_FALSE);
}


static int
ngx_http_vibe_json_on_number(void *ctx, const char *data, size_t len)
{
    return ngx_http_vibe_json_on_scalar(ctx, NGX_HTTP_VIBE_JSON_NUMBER);
}


static int
ngx_http_vibe_json_on_string(void *ctx, const unsigned char *data, size_t len)
{
    ngx_http_vibe_json_scan_t *scan = ctx;

    u_char                *start, *end;
    ngx_http_vibe_json_t  *node;

    end = ngx_http_vibe_json_token(scan, &start);

    if (ngx_http_vibe_json_node(scan, NGX_HTTP_VIBE_JSON_STRING, &node)
        != NGX_OK)
    {
        return 0;
    }

    if (node == NULL) {
        return 1;
    }

    node->raw.data = start;
    node->raw.len = end - start;

    if (node->start == NULL) {
        node->start = start;
    }

    return ngx_http_vibe_json_decoded(scan, data, len, &node->string)
           == NGX_OK;
}


static int
ngx_http_vibe_json_on_name(void *ctx, const unsigned char *data, size_t len)
{
    ngx_http_vibe_json_scan_t *scan = ctx;

    (void) ngx_http_vibe_json_token(scan, &scan->start);

    if (scan->depth > scan->keep) {
        return 1;
    }

    return ngx_http_vibe_json_decoded(scan, data, len, &scan->name) == NGX_OK;
}


static int
ngx_http_vibe_json_on_start(ngx_http_vibe_json_scan_t *scan,
    ngx_http_vibe_json_type_e type)
{
    u_char                *start;
    ngx_http_vibe_json_t  *node;

    (void) ngx_http_vibe_json_token(scan, &start);

    if (scan->depth == scan->max) {
        scan->reason = "nested too deep";
        return 0;
    }

    if (ngx_http_vibe_json_node(scan, type, &node) != NGX_OK) {
        return 0;
    }

    scan->depth++;

    if (node != NULL) {
        scan->open[scan->depth] = node;
        scan->link[scan->depth] = &node->child;
        node->raw.data = start;

        if (node->start == NULL) {
            node->start = start;
        }
    }

    return 1;
}


static int
ngx_http_vibe_json_on_start_object(void *ctx)
{
    return ngx_http_vibe_json_on_start(ctx, NGX_HTTP_VIBE_JSON_OBJECT);
}


static int
ngx_http_vibe_json_on_start_array(void *ctx)
{
    return ngx_http_vibe_json_on_start(ctx, NGX_HTTP_VIBE_JSON_ARRAY);
}


static int
ngx_http_vibe_json_on_end(void *ctx)
{
    ngx_http_vibe_json_scan_t *scan = ctx;

    u_char                *start, *end;
    ngx_http_vibe_json_t  *node;

    end = ngx_http_vibe_json_token(scan, &start);

    /* a container is remembered where its place is */

    if (--scan->depth <= scan->keep) {
        node = scan->open[scan->depth + 1];
        node->raw.len = end - node->raw.data;
    }

    return 1;
}


ngx_http_vibe_json_t *
ngx_http_vibe_json_member(ngx_http_vibe_json_t *object, ngx_str_t *name)
{
    ngx_http_vibe_json_t  *m, *found;

    if (object == NULL || object->type != NGX_HTTP_VIBE_JSON_OBJECT) {
        return NULL;
    }

    found = NULL;

    for (m = object->child; m; m = m->next) {
        if (ngx_http_vibe_same(&m->name, name)) {
            found = m;
        }
    }

    return found;
}


ngx_uint_t
ngx_http_vibe_json_count(ngx_http_vibe_json_t *object, ngx_str_t *name)
{
    ngx_uint_t             n;
    ngx_http_vibe_json_t  *m;

    n = 0;

    for (m = object->child; m; m = m->next) {
        if (ngx_http_vibe_same(&m->name, name)) {
            n++;
        }
    }

    return n;
}


ngx_int_t
ngx_http_vibe_json_uint(ngx_http_vibe_json_t *node, ngx_uint_t max,
    ngx_uint_t *value)
{
    ngx_int_t  n;

    if (node->type != NGX_HTTP_VIBE_JSON_NUMBER) {
        return NGX_DECLINED;
    }

    n = ngx_atoi(node->raw.data, node->raw.len);

    if (n == NGX_ERROR || (ngx_uint_t) n > max) {
        return NGX_DECLINED;
    }

    *value = n;

    return NGX_OK;
}


void
ngx_http_vibe_json_out_init(ngx_http_vibe_json_out_t *out, ngx_pool_t *pool)
{
    ngx_memzero(out, sizeof(ngx_http_vibe_json_out_t));

    out->pool = pool;
    out->last = &out->first;
}


void
ngx_http_vibe_json_put(ngx_http_vibe_json_out_t *out, u_char *data, size_t len)
{
    ngx_buf_t  *b;

    if (out->failed || len == 0) {
        return;
    }

    out->size += len;

    if (len > NGX_HTTP_VIBE_JSON_SHORT) {
        b = ngx_http_vibe_json_out_buf(out, data);
        if (b == NULL) {
            return;
        }

        b->last = data + len;
        b->end = b->last;

        /* what follows in the block needs a buffer of its own */
        out->sealed = 1;

        return;
    }

    if ((size_t) (out->block_end - out->block) < len) {
        out->block = ngx_pnalloc(out->pool, NGX_HTTP_VIBE_JSON_BLOCK);
        if (out->block == NULL) {
            out->block_end = NULL;
            out->failed = 1;
            return;
        }

        out->block_end = out->block + NGX_HTTP_VIBE_JSON_BLOCK;
        out->sealed = 1;
    }

    if (out->sealed) {
        out->buf = ngx_http_vibe_json_out_buf(out, out->block);
        if (out->buf == NULL) {
            return;
        }

        out->sealed = 0;
    }

    out->block = ngx_cpymem(out->block, data, len);

    out->buf->last = out->block;
    out->buf->end = out->block;
}


static ngx_buf_t *
ngx_http_vibe_json_out_buf(ngx_http_vibe_json_out_t *out, u_char *data)
{
    ngx_chain_t  *cl;

    cl = ngx_alloc_chain_link(out->pool);
    if (cl == NULL) {
        out->failed = 1;
        return NULL;
    }

    cl->buf = ngx_calloc_buf(out->pool);
    if (cl->buf == NULL) {
        out->failed = 1;
        return NULL;
    }

    /* nginx sends a buffer again from its "start" */

    cl->buf->start = data;
    cl->buf->pos = data;
    cl->buf->last = data;
    cl->buf->end = data;
    cl->buf->memory = 1;

    cl->next = NULL;

    *out->last = cl;
    out->last = &cl->next;

    return cl->buf;
}


void
ngx_http_vibe_json_put_string(ngx_http_vibe_json_out_t *out, ngx_str_t *str)
{
    u_char     *p;
    uintptr_t   escape;

    escape = ngx_escape_json(NULL, str->data, str->len);

    ngx_http_vibe_json_put_text(out, "\"");

    if (escape == 0) {
        ngx_http_vibe_json_put_str(out, str);

    } else {
        p = ngx_pnalloc(out->pool, str->len + escape);
        if (p == NULL) {
            out->failed = 1;
            return;
        }

        (void) ngx_escape_json(p, str->data, str->len);

        ngx_http_vibe_json_put(out, p, str->len + escape);
    }

    ngx_http_vibe_json_put_text(out, "\"");
}


void
ngx_http_vibe_json_put_uint(ngx_http_vibe_json_out_t *out, ngx_uint_t n)
{
    u_char  buf[NGX_INT_T_LEN];

    ngx_http_vibe_json_put(out, buf, ngx_sprintf(buf, "%ui", n) - buf);
}


void
ngx_http_vibe_json_put_out(ngx_http_vibe_json_out_t *out,
    ngx_http_vibe_json_out_t *from)
{
    ngx_chain_t  *cl, *link;

    if (from->failed) {
        out->failed = 1;
    }

    if (out->failed) {
        return;
    }

    for (cl = from->first; cl; cl = cl->next) {

        link = ngx_alloc_chain_link(out->pool);
        if (link == NULL) {
            out->failed = 1;
            return;
        }

        link->buf = cl->buf;
        link->next = NULL;

        *out->last = link;
        out->last = &link->next;
    }

    out->size += from->size;
    out->sealed = 1;
}


void
ngx_http_vibe_json_put_strings(ngx_http_vibe_json_out_t *out,
    ngx_array_t *strings)
{
    ngx_str_t   *s;
    ngx_uint_t   i;

    ngx_http_vibe_json_put_text(out, "[");

    if (strings != NULL) {
        s = strings->elts;

        for (i = 0; i < strings->nelts; i++) {
            if (i > 0) {
                ngx_http_vibe_json_put_text(out, ",");
            }

            ngx_http_vibe_json_put_string(out, &s[i]);
        }
    }

    ngx_http_vibe_json_put_text(out, "]");
}


ngx_chain_t *
ngx_http_vibe_json_out_chain(ngx_http_vibe_json_out_t *out)
{
    return out->failed ? NULL : out->first;
}


ngx_int_t
ngx_http_vibe_json_out_str(ngx_http_vibe_json_out_t *out, ngx_str_t *str)
{
    u_char       *p;
    ngx_chain_t  *cl;

    if (out->failed) {
        return NGX_ERROR;
    }

    p = ngx_pnalloc(out->pool, out->size + 1);
    if (p == NULL) {
        return NGX_ERROR;
    }

    str->data = p;
    str->len = out->size;

    for (cl = out->first; cl; cl = cl->next) {
        p = ngx_cpymem(p, cl->buf->pos, cl->buf->last - cl->buf->pos);
    }

    return NGX_OK;
}
