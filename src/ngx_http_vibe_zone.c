
#include "ngx_http_vibe_zone.h"

#include <ngx_sha1.h>
#include <signal.h>

#include <openssl/rand.h>


/* pages left free in the zone: for the slab pool's own use */
#define NGX_HTTP_VIBE_ZONE_SPARE  8


static ngx_int_t ngx_http_vibe_zone_init(ngx_shm_zone_t *shm, void *data);
static ngx_int_t ngx_http_vibe_zone_begin(ngx_http_vibe_zone_t *zone,
    ngx_log_t *log);
static void ngx_http_vibe_zone_set_waiting(ngx_http_vibe_shared_t *shared,
    ngx_uint_t n);
static ngx_uint_t ngx_http_vibe_zone_waiting(ngx_http_vibe_shared_t *shared);
static ngx_uint_t ngx_http_vibe_zone_is_free(ngx_http_vibe_shared_t *shared);
static uint64_t ngx_http_vibe_zone_hash(ngx_http_vibe_shared_t *shared,
    ngx_str_t *text);
static ngx_uint_t ngx_http_vibe_zone_find(ngx_http_vibe_zone_t *zone,
    ngx_str_t *global, ngx_http_vibe_known_t *known);
static void ngx_http_vibe_zone_put(ngx_http_vibe_known_t *entry,
    ngx_http_vibe_known_t *known);


/* 1 if a process with this id is there, also one that is not ours */
#define ngx_http_vibe_zone_is_alive(pid)                                      \
    (kill((pid_t) (pid), 0) == 0 || ngx_errno != NGX_ESRCH)


ngx_http_vibe_zone_t *
ngx_http_vibe_zone_add(ngx_conf_t *cf, ngx_str_t *name, size_t size, void *tag)
{
    ngx_shm_zone_t        *shm;
    ngx_http_vibe_zone_t  *zone;

    if (name->len == 0) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0, "a zone needs a name");
        return NULL;
    }

    if (size < NGX_HTTP_VIBE_ZONE_MIN) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "zone \"%V\" is too small, it needs %uzk",
                           name, (size_t) NGX_HTTP_VIBE_ZONE_MIN / 1024);
        return NULL;
    }

    shm = ngx_shared_memory_add(cf, name, size, tag);
    if (shm == NULL) {
        return NULL;
    }

    if (shm->data != NULL) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "zone \"%V\" is already declared", name);
        return NULL;
    }

    zone = ngx_pcalloc(cf->pool, sizeof(ngx_http_vibe_zone_t));
    if (zone == NULL) {
        return NULL;
    }

    zone->shm = shm;

    shm->init = ngx_http_vibe_zone_init;
    shm->data = zone;

    return zone;
}


/*
 * "data" is the zone of the configuration before: nginx hands its memory on
 * where name, size and tag are the same.
 */

static ngx_int_t
ngx_http_vibe_zone_init(ngx_shm_zone_t *shm, void *data)
{
    ngx_http_vibe_zone_t    *zone;
    ngx_http_vibe_shared_t  *shared;

    zone = shm->data;
    zone->shpool = (ngx_slab_pool_t *) shm->shm.addr;

    if (data == NULL && !shm->shm.exists) {
        return ngx_http_vibe_zone_begin(zone, shm->shm.log);
    }

    shared = zone->shpool->data;

    if (shared == NULL || shared->version != NGX_HTTP_VIBE_ZONE_VERSION) {

        /* the old workers are still at it: it cannot be begun anew here */

        ngx_log_error(NGX_LOG_EMERG, shm->shm.log, 0,
                      "zone \"%V\" is of another version of the module: "
                      "give it another name or size", &shm->shm.name);
        return NGX_ERROR;
    }

    zone->shared = shared;

    return NGX_OK;
}


static ngx_int_t
ngx_http_vibe_zone_begin(ngx_http_vibe_zone_t *zone, ngx_log_t *log)
{
    u_char                   random[16];
    ngx_slab_pool_t         *shpool;
    ngx_http_vibe_shared_t  *shared;

    shpool = zone->shpool;

    if (RAND_bytes(random, sizeof(random)) != 1) {
        ngx_log_error(NGX_LOG_EMERG, log, 0,
                      "no random bytes for zone \"%V\"",
                      &zone->shm->shm.name);
        return NGX_ERROR;
    }

    shared = ngx_slab_calloc(shpool, sizeof(ngx_http_vibe_shared_t));
    if (shared == NULL) {
        return NGX_ERROR;
    }

    shared->version = NGX_HTTP_VIBE_ZONE_VERSION;
    (void) ngx_hex_dump(shared->id, random, sizeof(random));

    /* nothing else will ever be allocated here */

    shared->n = (shpool->pfree - NGX_HTTP_VIBE_ZONE_SPARE) * ngx_pagesize
                / sizeof(ngx_http_vibe_known_t);

    shared->known = ngx_slab_calloc(shpool,
                                    shared->n * sizeof(ngx_http_vibe_known_t));
    if (shared->known == NULL) {
        return NGX_ERROR;
    }

    shpool->data = shared;
    zone->shared = shared;

    return NGX_OK;
}


void
ngx_http_vibe_zone_count(ngx_http_vibe_zone_t *zone,
    ngx_http_vibe_counter_e counter, ngx_uint_t n)
{
    if (ngx_http_vibe_zone_is_none(zone)) {
        return;
    }

    (void) ngx_atomic_fetch_add(&zone->shared->counters[counter],
                                (ngx_atomic_int_t) n);
}


void
ngx_http_vibe_zone_set(ngx_http_vibe_zone_t *zone,
    ngx_http_vibe_counter_e counter, ngx_uint_t n)
{
    if (ngx_http_vibe_zone_is_none(zone)) {
        return;
    }

    if (counter == NGX_HTTP_VIBE_WAITING) {
        ngx_http_vibe_zone_set_waiting(zone->shared, n);
        return;
    }

    zone->shared->counters[counter] = n;
}


ngx_uint_t
ngx_http_vibe_zone_get(ngx_http_vibe_zone_t *zone,
    ngx_http_vibe_counter_e counter)
{
    if (ngx_http_vibe_zone_is_none(zone)) {
        return 0;
    }

    if (counter == NGX_HTTP_VIBE_WAITING) {
        return ngx_http_vibe_zone_waiting(zone->shared);
    }

    return zone->shared->counters[counter];
}


static void
ngx_http_vibe_zone_set_waiting(ngx_http_vibe_shared_t *shared, ngx_uint_t n)
{
    ngx_http_vibe_waiting_t  *w;

    w = &shared->waiting[ngx_process_slot];

    w->pid = ngx_pid;
    w->n = n;
}


/* nobody waits for a worker that was killed */

static ngx_uint_t
ngx_http_vibe_zone_waiting(ngx_http_vibe_shared_t *shared)
{
    ngx_uint_t                i, n, sum;
    ngx_http_vibe_waiting_t  *w;

    w = shared->waiting;
    sum = 0;

    for (i = 0; i < NGX_MAX_PROCESSES; i++) {

        n = w[i].n;

        if (n && ngx_http_vibe_zone_is_alive(w[i].pid)) {
            sum += n;
        }
    }

    return sum;
}


void
ngx_http_vibe_zone_batch(ngx_http_vibe_zone_t *zone, ngx_uint_t n)
{
    ngx_atomic_t       *max;
    ngx_atomic_uint_t   was;

    if (ngx_http_vibe_zone_is_none(zone)) {
        return;
    }

    ngx_http_vibe_zone_count(zone, NGX_HTTP_VIBE_BATCHES, 1);
    ngx_http_vibe_zone_count(zone, NGX_HTTP_VIBE_BATCH_DOCS, n);

    max = &zone->shared->counters[NGX_HTTP_VIBE_BATCH_MAX];

    do {
        was = *max;

        if (n <= was) {
            break;
        }

    } while (!ngx_atomic_cmp_set(max, was, n));
}


void
ngx_http_vibe_zone_answer(ngx_http_vibe_zone_t *zone, ngx_uint_t status)
{
    ngx_http_vibe_counter_e  counter;

    ngx_http_vibe_zone_count(zone, NGX_HTTP_VIBE_COUCH_REQUESTS, 1);

    switch (status) {

    case 401:
    case 403:
        counter = NGX_HTTP_VIBE_COUCH_REFUSED;
        break;

    case 502:
        counter = NGX_HTTP_VIBE_COUCH_BROKEN;
        break;

    case 503:
        counter = NGX_HTTP_VIBE_COUCH_UNREACHED;
        break;

    case 504:
        counter = NGX_HTTP_VIBE_COUCH_TIMEOUT;
        break;

    default:
        if (status < 500) {
            return;
        }

        counter = NGX_HTTP_VIBE_COUCH_FAILED;
    }

    ngx_http_vibe_zone_count(zone, counter, 1);
}


ngx_uint_t
ngx_http_vibe_zone_lease(ngx_http_vibe_zone_t *zone)
{
    ngx_uint_t               mine;
    ngx_http_vibe_shared_t  *shared;

    if (ngx_http_vibe_zone_is_none(zone)) {
        return 0;
    }

    shared = zone->shared;

    ngx_http_vibe_zone_lock(zone);

    mine = (shared->owner == ngx_pid);

    if (!mine && ngx_http_vibe_zone_is_free(shared)) {
        mine = 1;
        shared->owner = ngx_pid;
        ngx_http_vibe_zone_count(zone, NGX_HTTP_VIBE_LEASES, 1);
    }

    if (mine) {
        shared->until = ngx_current_msec + NGX_HTTP_VIBE_LEASE_WORKER;
    }

    ngx_http_vibe_zone_unlock(zone);

    return mine;
}


static ngx_uint_t
ngx_http_vibe_zone_is_free(ngx_http_vibe_shared_t *shared)
{
    return shared->owner == 0
           || (ngx_msec_int_t) (shared->until - ngx_current_msec) <= 0
           || !ngx_http_vibe_zone_is_alive(shared->owner);
}


void
ngx_http_vibe_zone_release(ngx_http_vibe_zone_t *zone)
{
    ngx_http_vibe_shared_t  *shared;

    if (ngx_http_vibe_zone_is_none(zone)) {
        return;
    }

    shared = zone->shared;

    ngx_http_vibe_zone_lock(zone);

    if (shared->owner == ngx_pid) {
        shared->owner = 0;
    }

    ngx_http_vibe_zone_unlock(zone);
}


void
ngx_http_vibe_zone_lead(ngx_http_vibe_zone_t *zone, ngx_uint_t leading,
    ngx_str_t *host)
{
    ngx_http_vibe_shared_t  *shared;

    if (ngx_http_vibe_zone_is_none(zone)) {
        return;
    }

    shared = zone->shared;

    ngx_http_vibe_zone_lock(zone);

    shared->leading = leading;

    (void) ngx_cpystrn(shared->host, host->data,
                       ngx_min(host->len + 1, NGX_HTTP_VIBE_HOST_MAX));

    ngx_http_vibe_zone_unlock(zone);
}


void
ngx_http_vibe_zone_leader(ngx_http_vibe_zone_t *zone,
    ngx_http_vibe_leader_t *leader)
{
    ngx_http_vibe_shared_t  *shared;

    ngx_memzero(leader, sizeof(ngx_http_vibe_leader_t));

    if (ngx_http_vibe_zone_is_none(zone)) {
        return;
    }

    shared = zone->shared;

    ngx_http_vibe_zone_lock(zone);

    if (!ngx_http_vibe_zone_is_free(shared)) {
        leader->worker = shared->owner;
    }

    leader->leading = shared->leading;
    ngx_memcpy(leader->host, shared->host, NGX_HTTP_VIBE_HOST_MAX);

    ngx_http_vibe_zone_unlock(zone);
}


/*
 * The zone's own random id goes in, so that nobody can choose ids or
 * revisions that meet; and the epoch, so that what was known before is not
 * found any more.
 */

static uint64_t
ngx_http_vibe_zone_hash(ngx_http_vibe_shared_t *shared, ngx_str_t *text)
{
    u_char             digest[20];
    uint64_t           hash;
    ngx_sha1_t         sha1;
    ngx_atomic_uint_t  epoch;

    epoch = shared->epoch;

    ngx_sha1_init(&sha1);
    ngx_sha1_update(&sha1, shared->id, sizeof(shared->id));
    ngx_sha1_update(&sha1, &epoch, sizeof(epoch));
    ngx_sha1_update(&sha1, text->data, text->len);
    ngx_sha1_final(digest, &sha1);

    ngx_memcpy(&hash, digest, sizeof(hash));

    /* 0 is an entry that is free */

    return hash ? hash : 1;
}


void
ngx_http_vibe_zone_know(ngx_http_vibe_zone_t *zone, ngx_str_t *global,
    ngx_str_t *source, ngx_str_t *copy)
{
    ngx_http_vibe_known_t    known, *entry;
    ngx_http_vibe_shared_t  *shared;

    if (ngx_http_vibe_zone_is_none(zone)) {
        return;
    }

    shared = zone->shared;

    /* the hashes cost more than all else: before the lock */

    known.id = ngx_http_vibe_zone_hash(shared, global);
    known.source = (uint32_t) ngx_http_vibe_zone_hash(shared, source);
    known.copy = (uint32_t) ngx_http_vibe_zone_hash(shared, copy);

    ngx_http_vibe_zone_lock(zone);

    entry = &shared->known[known.id % shared->n];

    if (entry->id == known.id && entry->copy != known.copy) {

        /*
         * Who wrote it has forgotten it before: so somebody else has told of
         * another state meanwhile, and which is the later one is not known.
         */

        entry->id = 0;

    } else {
        ngx_http_vibe_zone_put(entry, &known);
    }

    ngx_http_vibe_zone_unlock(zone);
}


/* a worker may be killed at any instant: half an entry must not be found */

static void
ngx_http_vibe_zone_put(ngx_http_vibe_known_t *entry,
    ngx_http_vibe_known_t *known)
{
    entry->id = 0;
    ngx_memory_barrier();

    entry->source = known->source;
    entry->copy = known->copy;
    ngx_memory_barrier();

    entry->id = known->id;
}


void
ngx_http_vibe_zone_forget(ngx_http_vibe_zone_t *zone, ngx_str_t *global)
{
    uint64_t                 id;
    ngx_http_vibe_known_t   *entry;
    ngx_http_vibe_shared_t  *shared;

    if (ngx_http_vibe_zone_is_none(zone)) {
        return;
    }

    shared = zone->shared;
    id = ngx_http_vibe_zone_hash(shared, global);

    ngx_http_vibe_zone_lock(zone);

    entry = &shared->known[id % shared->n];

    if (entry->id == id) {
        entry->id = 0;
    }

    ngx_http_vibe_zone_unlock(zone);
}


static ngx_uint_t
ngx_http_vibe_zone_find(ngx_http_vibe_zone_t *zone, ngx_str_t *global,
    ngx_http_vibe_known_t *known)
{
    uint64_t                 id;
    ngx_http_vibe_shared_t  *shared;

    if (ngx_http_vibe_zone_is_none(zone)) {
        return 0;
    }

    shared = zone->shared;
    id = ngx_http_vibe_zone_hash(shared, global);

    ngx_http_vibe_zone_lock(zone);

    *known = shared->known[id % shared->n];

    ngx_http_vibe_zone_unlock(zone);

    return known->id == id;
}


ngx_uint_t
ngx_http_vibe_zone_knows_source(ngx_http_vibe_zone_t *zone,
    ngx_str_t *global, ngx_str_t *source)
{
    ngx_http_vibe_known_t  known;

    return ngx_http_vibe_zone_find(zone, global, &known)
           && known.source
              == (uint32_t) ngx_http_vibe_zone_hash(zone->shared, source);
}


ngx_uint_t
ngx_http_vibe_zone_knows_copy(ngx_http_vibe_zone_t *zone,
    ngx_str_t *global, ngx_str_t *copy)
{
    ngx_http_vibe_known_t  known;

    return ngx_http_vibe_zone_find(zone, global, &known)
           && known.copy
              == (uint32_t) ngx_http_vibe_zone_hash(zone->shared, copy);
}


/* at once, however large the zone is: the others would wait for the lock */

void
ngx_http_vibe_zone_forget_all(ngx_http_vibe_zone_t *zone)
{
    if (ngx_http_vibe_zone_is_none(zone)) {
        return;
    }

    (void) ngx_atomic_fetch_add(&zone->shared->epoch, 1);
}
