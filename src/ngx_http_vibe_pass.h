
/*
 * A pass of repair, through the databases of all users or through "global".
 *
 * A database is checked where its update_seq, told by _dbs_info for a hundred
 * at once, is not the one that is remembered.  So a pass in which nothing is
 * new costs two requests for a hundred databases.
 *
 * A new "global" is complete when the first pass has gone through all
 * databases.
 *
 * Floor 4.
 */


#ifndef _NGX_HTTP_VIBE_PASS_H_INCLUDED_
#define _NGX_HTTP_VIBE_PASS_H_INCLUDED_


#include "ngx_http_vibe.h"
#include "ngx_http_vibe_ask.h"
#include "ngx_http_vibe_target.h"
#include "ngx_http_vibe_walk.h"


/* databases listed at once, and waiting at once; _dbs_info takes no more */
#define NGX_HTTP_VIBE_PASS_PAGE   100

/* documents of "global" looked at at once, and milliseconds between */
#define NGX_HTTP_VIBE_PASS_WALK   200
#define NGX_HTTP_VIBE_PASS_PACE   500

/* remembered sequences, 16 bytes each */
#define NGX_HTTP_VIBE_PASS_SEQS   131072

/* tries of a page of "global" before the pass goes on without it */
#define NGX_HTTP_VIBE_PASS_TRIES  5

/* milliseconds before what has failed is tried again, first and last */
#define NGX_HTTP_VIBE_PASS_FIRST  500
#define NGX_HTTP_VIBE_PASS_LAST   5000


typedef enum {
    NGX_HTTP_VIBE_PASS_NONE = 0,
    NGX_HTTP_VIBE_PASS_LIST,
    NGX_HTTP_VIBE_PASS_WAIT,                   /* for the checks */
    NGX_HTTP_VIBE_PASS_MARK,                   /* as complete */
    NGX_HTTP_VIBE_PASS_GLOBAL
} ngx_http_vibe_pass_e;


/* hashes of a database's name and of its update_seq */

typedef struct {
    uint64_t                     name;
    uint64_t                     seq;
} ngx_http_vibe_pass_seq_t;


typedef struct {
    ngx_http_vibe_main_conf_t   *vmcf;
    ngx_http_vibe_targets_t     *targets;      /* NULL: through "global" */
    ngx_http_vibe_pass_seq_t    *seqs;         /* NULL: nothing remembered */
    ngx_http_vibe_ask_t          ask;
    ngx_http_vibe_walk_t        *walk;
    ngx_http_vibe_pass_e         stage;

    ngx_uint_t                   prefix;       /* of those configured */
    ngx_str_t                    last;         /* database, or document */
    ngx_str_t                    from;         /* the "last" before it */
    ngx_msec_t                   next;         /* not before that */
    ngx_uint_t                   rate;         /* databases a second, or 0 */
    ngx_uint_t                   number;       /* of this pass, from 1 on */
    ngx_uint_t                   page;         /* documents at once */
    ngx_uint_t                   listed;
    ngx_uint_t                   left;         /* checks that go on */
    ngx_uint_t                   unowned;
    ngx_uint_t                   failures;

    unsigned                     ends:1;       /* the last page */
    unsigned                     skipped:1;    /* a database: too many due */
    unsigned                     busy:1;       /* CouchDB is being asked */
    unsigned                     complete:1;   /* "global" is marked so */
} ngx_http_vibe_pass_t;


void ngx_http_vibe_pass_init(ngx_http_vibe_pass_t *p,
    ngx_http_vibe_main_conf_t *vmcf, ngx_http_vibe_targets_t *targets);
void ngx_http_vibe_pass_end(ngx_http_vibe_pass_t *p);

#define ngx_http_vibe_pass_going(p)  ((p)->stage != NGX_HTTP_VIBE_PASS_NONE)

/*
 * Begins with NGX_HTTP_VIBE_PASS_LIST: through the databases, "rate" of them a
 * second, 0: no limit; or NGX_HTTP_VIBE_PASS_GLOBAL: through that.
 */
void ngx_http_vibe_pass_begin(ngx_http_vibe_pass_t *p,
    ngx_http_vibe_pass_e stage, ngx_uint_t rate);

/* does what can be done now; to be called every now and then */
void ngx_http_vibe_pass_step(ngx_http_vibe_pass_t *p);

/* a database was checked; was not, and the pass goes on without it */
void ngx_http_vibe_pass_checked(ngx_http_vibe_pass_t *p,
    ngx_http_vibe_target_t *t, ngx_uint_t unowned);
void ngx_http_vibe_pass_given_up(ngx_http_vibe_pass_t *p,
    ngx_http_vibe_target_t *t);


#endif /* _NGX_HTTP_VIBE_PASS_H_INCLUDED_ */
