
/*
 * JSON, read by yajl into spans of the text it came as.
 *
 * The rule of this room: a document is never rebuilt from a tree.  A text is
 * scanned once, the scan says where each value begins and ends, and what is
 * sent on are those very bytes with something spliced in or left out.  So
 * numbers beyond 2^53, "1.0", escapes and the order of members stay as the
 * client wrote them.
 *
 * Floor 1: takes no request, does no I/O.
 */


#ifndef _NGX_HTTP_VIBE_JSON_H_INCLUDED_
#define _NGX_HTTP_VIBE_JSON_H_INCLUDED_


#include <ngx_config.h>
#include <ngx_core.h>


/* how deep a text may nest: the scan does not recurse, its readers do */
#define NGX_HTTP_VIBE_JSON_MAX_DEPTH  100

/* how many values of one text are remembered, some 100 bytes each */
#define NGX_HTTP_VIBE_JSON_MAX_NODES  1000000

/* "depth" for ngx_http_vibe_json_scan(): remember every value */
#define NGX_HTTP_VIBE_JSON_ALL        NGX_HTTP_VIBE_JSON_MAX_DEPTH

/*
 * Added to "depth": however deep the text nests below it.  For CouchDB's
 * answers, which hold documents that came past the module.
 */
#define NGX_HTTP_VIBE_JSON_DEEP       0x1000


/* 1 if two strings have the same bytes */
#define ngx_http_vibe_same(a, b)                                              \
    ((a)->len == (b)->len                                                     \
     && ngx_memcmp((a)->data, (b)->data, (a)->len) == 0)


typedef enum {
    NGX_HTTP_VIBE_JSON_NULL = 0,
    NGX_HTTP_VIBE_JSON_TRUE,
    NGX_HTTP_VIBE_JSON_FALSE,
    NGX_HTTP_VIBE_JSON_NUMBER,
    NGX_HTTP_VIBE_JSON_STRING,
    NGX_HTTP_VIBE_JSON_ARRAY,
    NGX_HTTP_VIBE_JSON_OBJECT
} ngx_http_vibe_json_type_e;


typedef struct ngx_http_vibe_json_s  ngx_http_vibe_json_t;

struct ngx_http_vibe_json_s {
    ngx_http_vibe_json_type_e   type;
    ngx_uint_t                  n;       /* members or elements remembered */

    ngx_str_t                   raw;     /* the value's bytes in the text */
    ngx_str_t                   string;  /* a string, its escapes resolved */

    ngx_str_t                   name;    /* a member's name, resolved */
    u_char                     *start;   /* a member: its name's first quote;
                                            an element: raw.data */

    ngx_str_t                   replaced;   /* JSON to write in place of raw,
                                               where its reader set it */

    ngx_http_vibe_json_t       *child;   /* the first of them */
    ngx_http_vibe_json_t       *next;    /* the next one of the parent's */
};


/*
 * Scans the JSON text (RFC 8259, UTF-8) and gives its outermost value, whose
 * descendants are remembered down to "depth" levels below it; what lies
 * deeper is checked, but only found as part of some "raw".
 *
 * The nodes, and strings that had escapes, are allocated from the pool; all
 * else points into the text, which must stay as long as the nodes are used.
 *
 * NGX_OK; NGX_DECLINED with "reason" set (a static text that can be shown to
 * a client) where the text is not JSON, not UTF-8, has a lone surrogate, is
 * nested too deep or has too many values; NGX_ERROR: no memory.
 */
ngx_int_t ngx_http_vibe_json_scan(ngx_pool_t *pool, ngx_str_t *text,
    ngx_uint_t depth, ngx_http_vibe_json_t **root, const char **reason);

/*
 * The same for a text that people write: "at" is set to where in the text it
 * is refused, which may be its end.
 */
ngx_int_t ngx_http_vibe_json_scan_at(ngx_pool_t *pool, ngx_str_t *text,
    ngx_uint_t depth, ngx_http_vibe_json_t **root, const char **reason,
    u_char **at);

/* the "reason" where a text has too many values */
extern const char  ngx_http_vibe_json_too_many[];

/* 1 if the bytes are UTF-8 (RFC 3629) */
ngx_uint_t ngx_http_vibe_json_is_utf8(ngx_str_t *str);

/*
 * The last member of the object with this name, NULL if there is none or if
 * "object" is NULL or no object.  The last, because CouchDB takes that one.
 */
ngx_http_vibe_json_t *ngx_http_vibe_json_member(ngx_http_vibe_json_t *object,
    ngx_str_t *name);

#define ngx_http_vibe_json_get(object, literal)                               \
    ngx_http_vibe_json_member(object, &(ngx_str_t) ngx_string(literal))

/* how many members of the object have this name */
ngx_uint_t ngx_http_vibe_json_count(ngx_http_vibe_json_t *object,
    ngx_str_t *name);

#define ngx_http_vibe_json_count_of(object, literal)                          \
    ngx_http_vibe_json_count(object, &(ngx_str_t) ngx_string(literal))

/*
 * A number that is a whole one between 0 and "max", written in digits only:
 * NGX_OK and its value, else NGX_DECLINED.
 */
ngx_int_t ngx_http_vibe_json_uint(ngx_http_vibe_json_t *node, ngx_uint_t max,
    ngx_uint_t *value);

#define ngx_http_vibe_json_is_string(node, literal)                           \
    ((node) != NULL && (node)->type == NGX_HTTP_VIBE_JSON_STRING              \
     && (node)->string.len == sizeof(literal) - 1                             \
     && ngx_memcmp((node)->string.data, literal, sizeof(literal) - 1) == 0)

/*
 * What is being written: a chain of buffers that grows.  Short pieces are
 * copied into blocks, long ones only pointed at, so they must stay until the
 * chain has been sent.  After a failed allocation "failed" is set, further
 * calls do nothing, and ngx_http_vibe_json_out_chain() gives NULL: callers
 * check once, at the end.
 */
typedef struct {
    ngx_pool_t                 *pool;
    ngx_chain_t                *first;
    ngx_chain_t               **last;
    ngx_buf_t                  *buf;     /* the last one made of a block */
    u_char                     *block;   /* short pieces are copied here */
    u_char                     *block_end;
    size_t                      size;    /* bytes written so far */
    unsigned                    sealed:1;
    unsigned                    failed:1;
} ngx_http_vibe_json_out_t;


void ngx_http_vibe_json_out_init(ngx_http_vibe_json_out_t *out,
    ngx_pool_t *pool);

/* bytes as they are */
void ngx_http_vibe_json_put(ngx_http_vibe_json_out_t *out, u_char *data,
    size_t len);

#define ngx_http_vibe_json_put_str(out, str)                                  \
    ngx_http_vibe_json_put(out, (str)->data, (str)->len)

#define ngx_http_vibe_json_put_text(out, literal)                             \
    ngx_http_vibe_json_put(out, (u_char *) (literal), sizeof(literal) - 1)

/* a string in quotes, escaped; "str" is UTF-8 */
void ngx_http_vibe_json_put_string(ngx_http_vibe_json_out_t *out,
    ngx_str_t *str);

void ngx_http_vibe_json_put_uint(ngx_http_vibe_json_out_t *out, ngx_uint_t n);

/* all that another one holds, by reference: its pool must live as long */
void ngx_http_vibe_json_put_out(ngx_http_vibe_json_out_t *out,
    ngx_http_vibe_json_out_t *from);

/* an array of strings, ["a","b"], from an array of ngx_str_t or NULL */
void ngx_http_vibe_json_put_strings(ngx_http_vibe_json_out_t *out,
    ngx_array_t *strings);

/*
 * The finished chain; each buffer is memory, the last has no flag set.  NULL
 * if an allocation had failed.
 */
ngx_chain_t *ngx_http_vibe_json_out_chain(ngx_http_vibe_json_out_t *out);

/* the same as one piece of memory; NGX_ERROR if an allocation had failed */
ngx_int_t ngx_http_vibe_json_out_str(ngx_http_vibe_json_out_t *out,
    ngx_str_t *str);


#endif /* _NGX_HTTP_VIBE_JSON_H_INCLUDED_ */
