
/*
 * What a caller may ask: the operators of a selector, its fields, the sort.
 *
 * An allow-list with bounds.  Nothing is rewritten: what passes goes to
 * CouchDB as the caller wrote it, inside an "$and" whose first member is the
 * read selector (see ngx_http_vibe_acl.h), so it can only narrow.
 *
 * Floor 2: decides, takes no request, does no I/O.
 */


#ifndef _NGX_HTTP_VIBE_SELECTOR_H_INCLUDED_
#define _NGX_HTTP_VIBE_SELECTOR_H_INCLUDED_


#include <ngx_config.h>
#include <ngx_core.h>

#include "ngx_http_vibe_json.h"


#define NGX_HTTP_VIBE_SELECTOR_DEPTH   16       /* levels of nesting */
#define NGX_HTTP_VIBE_SELECTOR_TERMS   256      /* conditions and values */
#define NGX_HTTP_VIBE_SELECTOR_LEN     16384    /* bytes of the whole text */
#define NGX_HTTP_VIBE_REGEX_LEN        256      /* bytes of one $regex */
#define NGX_HTTP_VIBE_FIELDS_MAX       100      /* names in "fields" */
#define NGX_HTTP_VIBE_FIELD_LEN        256      /* bytes of a field's name */
#define NGX_HTTP_VIBE_SORT_MAX         8        /* fields in "sort" */


/* counts over all of one query; zeroed before the first check */
typedef struct {
    ngx_uint_t    terms;
    size_t        len;
    unsigned      regex:1;        /* in: $regex is allowed */
    unsigned      global:1;       /* in: of copies, whose _rev is not shown */
    ngx_str_t     reason;         /* out: for the client */
    u_char       *at;             /* out: where in the text it was refused,
                                     unless it was for the whole value */
} ngx_http_vibe_selector_t;


/*
 * Checks a selector, an object; "{}", which asks for all, is one, so the
 * caller must leave it out of an "$and", where CouchDB takes it for equality.
 * "pool" is for the reason's text.  The text must have been scanned with
 * NGX_HTTP_VIBE_JSON_ALL.
 *
 * NGX_OK; NGX_DECLINED with "reason"; NGX_ERROR: no memory.
 */
ngx_int_t ngx_http_vibe_selector_check(ngx_http_vibe_selector_t *s,
    ngx_pool_t *pool, ngx_http_vibe_json_t *selector);

/*
 * Checks one field condition, a member: its name is a field or a combination
 * operator, its value what may stand there, and no member after it has the
 * same name.  As above.
 */
ngx_int_t ngx_http_vibe_selector_check_member(ngx_http_vibe_selector_t *s,
    ngx_pool_t *pool, ngx_http_vibe_json_t *member);

/*
 * Checks the name of a field as Mango reads it: segments split at dots, a
 * backslash before a dot keeps it, all backslashes dropped.  Refused are the
 * empty name, an empty segment, a name that is too long, a leading "$", and
 * the module's prefix at the start or after any dot.  As above.
 */
ngx_int_t ngx_http_vibe_selector_check_field(ngx_http_vibe_selector_t *s,
    ngx_pool_t *pool, ngx_str_t *name);

/*
 * Reads "sort": an array of names or of objects with one member, "asc" or
 * "desc".  Gives the names, an array of ngx_str_t from the pool, and the
 * direction, which must be the same for all: CouchDB refuses mixed ones.
 * An empty array is no sort: "names" has no elements.  As above.
 */
ngx_int_t ngx_http_vibe_selector_sort(ngx_http_vibe_selector_t *s,
    ngx_pool_t *pool, ngx_http_vibe_json_t *sort, ngx_array_t **names,
    ngx_uint_t *descending);

/*
 * Reads "fields": an array of names of fields, an array of ngx_str_t from
 * the pool.  "null" or an empty array is none: all fields, as CouchDB has
 * it.  As above.
 */
ngx_int_t ngx_http_vibe_selector_fields(ngx_http_vibe_selector_t *s,
    ngx_pool_t *pool, ngx_http_vibe_json_t *fields, ngx_array_t **names);

/*
 * The reason for a client that a text and what can be shown of a name of the
 * client's make.  From the pool; NGX_OK or NGX_ERROR.
 */
ngx_int_t ngx_http_vibe_selector_reason(ngx_pool_t *pool, const char *text,
    ngx_str_t *name, ngx_str_t *reason);


#endif /* _NGX_HTTP_VIBE_SELECTOR_H_INCLUDED_ */
