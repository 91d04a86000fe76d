
/*
 * What the workers of one nginx share, vibe_zone: counters, who does the
 * background work, how the feeds are, and what of "global" is known to be
 * right.
 *
 * Survives a reload, so it has a fixed size, a version, and no pointers to
 * code, pools or configuration.  A binary upgrade begins a new one.
 *
 * Floor 1: takes no request.  Every function does nothing, or knows nothing,
 * where "zone" is NULL: without vibe_zone there is none.
 */


#ifndef _NGX_HTTP_VIBE_ZONE_H_INCLUDED_
#define _NGX_HTTP_VIBE_ZONE_H_INCLUDED_


#include <ngx_config.h>
#include <ngx_core.h>


/*
 * Of the layout below: a zone of another version is refused.  After a reload
 * there is none: nginx maps a new file of the module, but the old one's
 * symbols stay in force until it is started anew.
 */
#define NGX_HTTP_VIBE_ZONE_VERSION  2

/* bytes; less leaves no room for what is known */
#define NGX_HTTP_VIBE_ZONE_MIN      (1024 * 1024)

/* bytes of a host's name with its NUL; a longer one is cut */
#define NGX_HTTP_VIBE_HOST_MAX      128

/* how long a worker that says nothing keeps the lease, milliseconds */
#define NGX_HTTP_VIBE_LEASE_WORKER  3000

/* feeds; bytes of a feed's name and of texts with their NUL */
#define NGX_HTTP_VIBE_ZONE_FEEDS    100
#define NGX_HTTP_VIBE_ZONE_NAME     65
#define NGX_HTTP_VIBE_ZONE_ERROR    160
#define NGX_HTTP_VIBE_ZONE_REASON   256


typedef enum {

    /* counters: they only grow */

    NGX_HTTP_VIBE_WRITES = 0,        /* documents written to their owners */
    NGX_HTTP_VIBE_WRITES_REFUSED,    /* by us or by CouchDB */
    NGX_HTTP_VIBE_MIRRORS_DONE,
    NGX_HTTP_VIBE_MIRRORS_PENDING,   /* left to repair */
    NGX_HTTP_VIBE_BATCHES,           /* _bulk_docs on "global" */
    NGX_HTTP_VIBE_BATCH_DOCS,        /* documents in them */
    NGX_HTTP_VIBE_DOCS_UNOWNED,      /* documents not mirrored: nobody's */
    NGX_HTTP_VIBE_DOCS_UNCOLLECTED,  /* … of no collection */

    NGX_HTTP_VIBE_COUCH_REQUESTS,    /* through libcurl and subrequests */
    NGX_HTTP_VIBE_COUCH_UNREACHED,   /* 503: no connection */
    NGX_HTTP_VIBE_COUCH_TIMEOUT,     /* 504 */
    NGX_HTTP_VIBE_COUCH_BROKEN,      /* 502: cut off, too large, not JSON */
    NGX_HTTP_VIBE_COUCH_REFUSED,     /* 401, 403 */
    NGX_HTTP_VIBE_COUCH_FAILED,      /* 5xx of its own */

    NGX_HTTP_VIBE_REPAIR_CHECKED,    /* documents looked at */
    NGX_HTTP_VIBE_REPAIR_MENDED,     /* documents of "global" set right */
    NGX_HTTP_VIBE_REPAIR_FOREIGN,    /* removed: copies of nothing */
    NGX_HTTP_VIBE_REPAIR_SWEEPS,     /* ended */
    NGX_HTTP_VIBE_REPAIR_FAILED,     /* tries that CouchDB made fail */
    NGX_HTTP_VIBE_LEASES,            /* taken */

    /* gauges: set, not counted */

    NGX_HTTP_VIBE_WAITING,           /* mirrors that clients wait for now:
                                        each worker sets its own number, and
                                        reads that of all */
    NGX_HTTP_VIBE_BATCH_MAX,         /* documents in the largest batch */
    NGX_HTTP_VIBE_DATABASES,         /* of users, when last counted */
    NGX_HTTP_VIBE_DATABASES_DONE,    /* of those, in the pass that goes on */
    NGX_HTTP_VIBE_DATABASES_DUE,     /* changed, and not looked at yet */
    NGX_HTTP_VIBE_DATABASES_UNOWNED, /* without a known owner */
    NGX_HTTP_VIBE_LAG_CHANGES,       /* changes known of, not looked at */
    NGX_HTTP_VIBE_LAG_SINCE,         /* ngx_time() of the oldest, or 0 */
    NGX_HTTP_VIBE_COMPLETE,          /* 1: "global" lacks nothing older than
                                        the lag; 0: it is being built */
    NGX_HTTP_VIBE_DB_UPDATES,        /* 1: followed; 0: scanning instead */
    NGX_HTTP_VIBE_COUCH_UP,          /* 1: the background work reached it when
                                        it last asked */

    NGX_HTTP_VIBE_COUNTERS           /* how many */
} ngx_http_vibe_counter_e;


/* one document of "global": what was written and for which source */

typedef struct {
    uint64_t                     id;         /* hash of the global id */
    uint32_t                     source;     /* hash of the source's rev */
    uint32_t                     copy;       /* hash of the copy's rev */
} ngx_http_vibe_known_t;


/* NGX_HTTP_VIBE_WAITING of one worker, in its slot among nginx's processes */

typedef struct {
    ngx_atomic_t                 pid;
    ngx_atomic_t                 n;
} ngx_http_vibe_waiting_t;


/* a feed, as the worker that runs it last told */

typedef struct {
    u_char                       name[NGX_HTTP_VIBE_ZONE_NAME];  /* NUL-
                                                terminated; empty: free */
    ngx_uint_t                   rows;       /* that the feed holds */

    /* of the last run that ended */

    uint64_t                     began;      /* milliseconds of the epoch;
                                                0: none has ended */
    ngx_uint_t                   took;       /* milliseconds */
    ngx_uint_t                   databases;  /* asked */
    ngx_uint_t                   changed;    /* rows written or deleted */
    ngx_uint_t                   full;       /* 1: it looked at all databases */
    u_char                       error[NGX_HTTP_VIBE_ZONE_ERROR];  /* NUL-
                                                terminated; empty: none */

    ngx_uint_t                   runs;       /* that ended well, in all */
    ngx_uint_t                   failed;     /* that did not */
    uint64_t                     next;       /* milliseconds of the epoch; 0:
                                                not known */
    ngx_uint_t                   running;    /* 1: now */

    ngx_uint_t                   wanted;     /* runs asked for, in all */
    ngx_uint_t                   served;     /* those of them for which a run
                                                that began later has ended,
                                                well or not */
} ngx_http_vibe_zone_feed_t;


typedef struct {
    ngx_uint_t                   version;
    u_char                       id[32];     /* random, hexadecimal */

    ngx_atomic_t                 counters[NGX_HTTP_VIBE_COUNTERS];
    ngx_http_vibe_waiting_t      waiting[NGX_MAX_PROCESSES];

    /* the lease among the workers; under the zone's mutex */

    ngx_pid_t                    owner;      /* 0: nobody */
    ngx_msec_t                   until;      /* by the monotonic clock */

    /* the lease document, as the owner last saw it */

    ngx_uint_t                   leading;    /* 1: this host has it */
    u_char                       host[NGX_HTTP_VIBE_HOST_MAX];   /* who has it,
                                                NUL-terminated */

    /* under the mutex */

    ngx_http_vibe_zone_feed_t    feeds[NGX_HTTP_VIBE_ZONE_FEEDS];
    u_char                       registry[NGX_HTTP_VIBE_ZONE_REASON];

    ngx_atomic_t                 epoch;      /* of what is known */
    ngx_uint_t                   n;          /* entries that follow; under the
                                                mutex */
    ngx_http_vibe_known_t       *known;
} ngx_http_vibe_shared_t;


typedef struct {
    ngx_shm_zone_t              *shm;
    ngx_slab_pool_t             *shpool;
    ngx_http_vibe_shared_t      *shared;
} ngx_http_vibe_zone_t;


/* who does the background work */

typedef struct {
    ngx_pid_t                    worker;     /* 0: nobody now */
    ngx_uint_t                   leading;    /* 1: this host */
    u_char                       host[NGX_HTTP_VIBE_HOST_MAX];
} ngx_http_vibe_leader_t;


/* for this room only: 1 if there is no zone, or its memory is not there yet */
#define ngx_http_vibe_zone_is_none(zone)                                      \
    ((zone) == NULL || (zone)->shared == NULL)

/*
 * The same: short, others spin for it.  What a worker held that died is opened
 * by nginx's master.
 */
#define ngx_http_vibe_zone_lock(zone)                                         \
    ngx_shmtx_lock(&(zone)->shpool->mutex)

#define ngx_http_vibe_zone_unlock(zone)                                       \
    ngx_shmtx_unlock(&(zone)->shpool->mutex)


/*
 * Declares the zone, for a directive.  NULL: the name is empty or taken, the
 * size is below NGX_HTTP_VIBE_ZONE_MIN, or no memory; it is logged.
 */
ngx_http_vibe_zone_t *ngx_http_vibe_zone_add(ngx_conf_t *cf, ngx_str_t *name,
    size_t size, void *tag);

/* adds to a counter, sets a gauge, reads either */
void ngx_http_vibe_zone_count(ngx_http_vibe_zone_t *zone,
    ngx_http_vibe_counter_e counter, ngx_uint_t n);
void ngx_http_vibe_zone_set(ngx_http_vibe_zone_t *zone,
    ngx_http_vibe_counter_e counter, ngx_uint_t n);
ngx_uint_t ngx_http_vibe_zone_get(ngx_http_vibe_zone_t *zone,
    ngx_http_vibe_counter_e counter);

/* counts one _bulk_docs with "n" documents */
void ngx_http_vibe_zone_batch(ngx_http_vibe_zone_t *zone, ngx_uint_t n);

/* counts an answer of CouchDB's, or that there was none, by its status */
void ngx_http_vibe_zone_answer(ngx_http_vibe_zone_t *zone,
    ngx_uint_t status);

/*
 * Takes or keeps the lease among the workers for
 * NGX_HTTP_VIBE_LEASE_WORKER: 1 if the calling worker has it now.
 */
ngx_uint_t ngx_http_vibe_zone_lease(ngx_http_vibe_zone_t *zone);

/* gives it back, if the calling worker has it */
void ngx_http_vibe_zone_release(ngx_http_vibe_zone_t *zone);

/* tells what the lease document says; an empty "host": not known */
void ngx_http_vibe_zone_lead(ngx_http_vibe_zone_t *zone, ngx_uint_t leading,
    ngx_str_t *host);

/* both leases as they are now */
void ngx_http_vibe_zone_leader(ngx_http_vibe_zone_t *zone,
    ngx_http_vibe_leader_t *leader);

/* copies a feed out: 1 if it is there */
ngx_uint_t ngx_http_vibe_zone_feed(ngx_http_vibe_zone_t *zone,
    ngx_str_t *name, ngx_http_vibe_zone_feed_t *feed);

/*
 * Tells how a feed is, all but "wanted"; for the worker that leads, which
 * begins with what the zone has of it.  NGX_OK; NGX_DECLINED: the table is
 * full, and the feed was not in it.
 */
ngx_int_t ngx_http_vibe_zone_feed_set(ngx_http_vibe_zone_t *zone,
    ngx_http_vibe_zone_feed_t *feed);

/*
 * Asks for a run that begins from now on; returns what "served" is at least
 * when it has ended, 0: there is no such feed.  "wanted" below that number
 * tells that the feed was dropped meanwhile, and is another one.
 */
ngx_uint_t ngx_http_vibe_zone_feed_want(ngx_http_vibe_zone_t *zone,
    ngx_str_t *name);

/* forgets a feed, if it is there */
void ngx_http_vibe_zone_feed_drop(ngx_http_vibe_zone_t *zone,
    ngx_str_t *name);

/*
 * All feeds of one moment, added to an array of ngx_http_vibe_zone_feed_t.
 * NGX_OK or NGX_ERROR: no memory.
 */
ngx_int_t ngx_http_vibe_zone_feeds(ngx_http_vibe_zone_t *zone,
    ngx_array_t *feeds);

/*
 * Tells what is wrong with the registry now, empty: nothing; a long text is
 * cut between two characters.  1 if that is news: no worker has told the same
 * just before.
 */
ngx_uint_t ngx_http_vibe_zone_registry(ngx_http_vibe_zone_t *zone,
    ngx_str_t *reason);

/* copies that to NGX_HTTP_VIBE_ZONE_REASON bytes, NUL-terminated */
void ngx_http_vibe_zone_registry_error(ngx_http_vibe_zone_t *zone,
    u_char *reason);

/*
 * Remembers that "global" stands for the source's revision "source" at this
 * id, and with which revision of its own ("copy", empty: nothing is there).
 * One document takes another's place; what is not remembered costs a look.
 */
void ngx_http_vibe_zone_know(ngx_http_vibe_zone_t *zone, ngx_str_t *global,
    ngx_str_t *source, ngx_str_t *copy);

/* forgets what was known of it, before it is written */
void ngx_http_vibe_zone_forget(ngx_http_vibe_zone_t *zone, ngx_str_t *global);

/* 1 if "global" is known to stand for this revision of the source */
ngx_uint_t ngx_http_vibe_zone_knows_source(ngx_http_vibe_zone_t *zone,
    ngx_str_t *global, ngx_str_t *source);

/* 1 if this revision in "global" is known to be right */
ngx_uint_t ngx_http_vibe_zone_knows_copy(ngx_http_vibe_zone_t *zone,
    ngx_str_t *global, ngx_str_t *copy);

/* forgets everything: "global" is another one */
void ngx_http_vibe_zone_forget_all(ngx_http_vibe_zone_t *zone);


#endif /* _NGX_HTTP_VIBE_ZONE_H_INCLUDED_ */
