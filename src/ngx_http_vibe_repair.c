
#include "ngx_http_vibe_repair.h"
#include "ngx_http_vibe_ask.h"
#include "ngx_http_vibe_check.h"
#include "ngx_http_vibe_follow.h"
#include "ngx_http_vibe_global.h"
#include "ngx_http_vibe_lease.h"
#include "ngx_http_vibe_pass.h"
#include "ngx_http_vibe_poll.h"
#include "ngx_http_vibe_target.h"
#include "ngx_http_vibe_walk.h"


/* a change of "global" that no mirror of this host's has told of */

typedef struct {
    ngx_queue_t                  queue;
    ngx_msec_t                   at;
    ngx_str_t                    id;         /* both behind this struct */
    ngx_str_t                    rev;
} ngx_http_vibe_stray_t;


typedef struct {
    ngx_http_vibe_main_conf_t   *vmcf;
    ngx_event_t                  event;
    ngx_connection_t             dumb;

    ngx_http_vibe_global_wait_t  global;
    ngx_http_vibe_follow_t       updates;
    ngx_http_vibe_poll_t         changes;    /* of "global" */
    ngx_http_vibe_targets_t      targets;
    ngx_http_vibe_pass_t         pass;       /* through the databases */
    ngx_http_vibe_pass_t         tour;       /* through "global" */

    ngx_queue_t                  strays;
    ngx_uint_t                   nstrays;
    ngx_http_vibe_walk_t        *walk;       /* of strays */
    ngx_queue_t                  walked;     /* those it is about */
    ngx_uint_t                   page;       /* documents of a walk */
    ngx_uint_t                   failures;
    ngx_msec_t                   retry;      /* a walk that failed */

    ngx_uint_t                   pending;    /* mirrors, when last counted */
    ngx_msec_t                   looked;     /* for what is pending */
    ngx_msec_t                   swept;      /* when the last sweep began */
    u_char                       id[NGX_HTTP_VIBE_GLOBAL_ID];

    unsigned                     leads:1;
    unsigned                     making:1;
    unsigned                     begun:1;    /* with the "global" of "id" */
    unsigned                     ready:1;    /* "global" is there */
    unsigned                     scanning:1; /* there is no _db_updates */
    unsigned                     warned:1;
    unsigned                     pass_due:1;
    unsigned                     walk_due:1;
    unsigned                     sweep_due:1;
    unsigned                     verified:1; /* which "global" it is */
} ngx_http_vibe_repair_t;


static void ngx_http_vibe_repair_lead(ngx_uint_t leads);
static void ngx_http_vibe_repair_watch(void);
static void ngx_http_vibe_repair_begin(void);
static void ngx_http_vibe_repair_cease(void);
static void ngx_http_vibe_repair_tick(ngx_event_t *ev);
static void ngx_http_vibe_repair_make(void);
static void ngx_http_vibe_repair_made(void *data,
    ngx_http_vibe_call_t *failed);
static void ngx_http_vibe_repair_follow(void);
static void ngx_http_vibe_repair_begun(ngx_http_vibe_follow_t *f);
static void ngx_http_vibe_repair_update(ngx_http_vibe_follow_t *f,
    ngx_http_vibe_json_t *line);
static void ngx_http_vibe_repair_updates_ended(ngx_http_vibe_follow_t *f,
    ngx_uint_t status);
static void ngx_http_vibe_repair_change(ngx_http_vibe_json_t *change);
static void ngx_http_vibe_repair_changes_begun(void);
static void ngx_http_vibe_repair_changes_gone(void);
static void ngx_http_vibe_repair_stray(ngx_str_t *id, ngx_str_t *rev);
static void ngx_http_vibe_repair_walk(void);
static void ngx_http_vibe_repair_walked(ngx_http_vibe_walk_t *w,
    ngx_int_t rc);
static void ngx_http_vibe_repair_forget(ngx_queue_t *strays);
static void ngx_http_vibe_repair_checks(void);
static void ngx_http_vibe_repair_check(ngx_http_vibe_target_t *t);
static void ngx_http_vibe_repair_checked(ngx_http_vibe_check_t *c,
    ngx_int_t rc);
static void ngx_http_vibe_repair_failed(ngx_http_vibe_target_t *t);
static void ngx_http_vibe_repair_pass(void);
static void ngx_http_vibe_repair_due(void);
static void ngx_http_vibe_repair_gauges(void);


static ngx_http_vibe_repair_t  ngx_http_vibe_repair;


void
ngx_http_vibe_repair_init(ngx_http_vibe_main_conf_t *vmcf)
{
    ngx_http_vibe_repair_t *r = &ngx_http_vibe_repair;

    ngx_memzero(r, sizeof(ngx_http_vibe_repair_t));

    r->vmcf = vmcf;
    r->global.handler = ngx_http_vibe_repair_made;

    r->dumb.fd = (ngx_socket_t) -1;

    r->event.handler = ngx_http_vibe_repair_tick;
    r->event.data = &r->dumb;
    r->event.log = ngx_cycle->log;
    r->event.cancelable = 1;

    ngx_queue_init(&r->strays);
    ngx_queue_init(&r->walked);
    ngx_http_vibe_targets_init(&r->targets);

    ngx_http_vibe_lease_use(ngx_http_vibe_repair_lead);
}


static void
ngx_http_vibe_repair_lead(ngx_uint_t leads)
{
    if (leads) {
        ngx_http_vibe_repair_begin();

    } else {
        ngx_http_vibe_repair_cease();
        ngx_http_vibe_repair_watch();
    }
}


/* another host completes "global": whether it has, this one's clients ask */

static void
ngx_http_vibe_repair_watch(void)
{
    ngx_http_vibe_repair_t *r = &ngx_http_vibe_repair;

    if (ngx_exiting
        || ngx_terminate
        || r->making
        || ngx_http_vibe_zone_get(r->vmcf->zone, NGX_HTTP_VIBE_COMPLETE))
    {
        return;
    }

    r->vmcf->copies = 0;

    if (ngx_http_vibe_global_make(&r->global) == NGX_AGAIN) {
        r->making = 1;
    }
}


static void
ngx_http_vibe_repair_begin(void)
{
    ngx_http_vibe_repair_t *r = &ngx_http_vibe_repair;

    r->leads = 1;
    r->begun = 0;
    r->ready = 0;
    r->scanning = 0;
    r->pass_due = 1;
    r->walk_due = 1;
    r->swept = ngx_current_msec;
    r->page = NGX_HTTP_VIBE_REPAIR_WALK;

    /* nobody here has followed what others did to "global" */

    ngx_http_vibe_zone_forget_all(r->vmcf->zone);

    /* which "global" it is may have been learned long ago */

    r->vmcf->copies = 0;

    ngx_http_vibe_pass_init(&r->pass, r->vmcf, &r->targets);
    ngx_http_vibe_pass_init(&r->tour, r->vmcf, NULL);

    ngx_add_timer(&r->event, 1);
}


static void
ngx_http_vibe_repair_cease(void)
{
    ngx_http_vibe_repair_t *r = &ngx_http_vibe_repair;

    if (!r->leads) {
        return;
    }

    r->leads = 0;

    if (r->event.timer_set) {
        ngx_del_timer(&r->event);
    }

    ngx_http_vibe_follow_end(&r->updates);
    ngx_http_vibe_poll_end(&r->changes);
    ngx_http_vibe_pass_end(&r->pass);
    ngx_http_vibe_pass_end(&r->tour);

    if (r->walk != NULL) {
        ngx_http_vibe_walk_end(r->walk);
        r->walk = NULL;
    }

    ngx_http_vibe_repair_forget(&r->walked);
    ngx_http_vibe_repair_forget(&r->strays);
    ngx_http_vibe_targets_end(&r->targets);

    ngx_http_vibe_repair_gauges();
}


static void
ngx_http_vibe_repair_tick(ngx_event_t *ev)
{
    ngx_http_vibe_repair_t *r = &ngx_http_vibe_repair;

    ngx_add_timer(ev, NGX_HTTP_VIBE_REPAIR_TICK);

    /* a request of this worker's has found another one */

    if (r->ready
        && ngx_memcmp(r->id, r->vmcf->global_id, NGX_HTTP_VIBE_GLOBAL_ID)
           != 0)
    {
        r->ready = 0;
    }

    /* or another worker has found it gone */

    if (r->ready
        && r->pass.complete
        && !ngx_http_vibe_zone_get(r->vmcf->zone, NGX_HTTP_VIBE_COMPLETE))
    {
        r->ready = 0;
        r->vmcf->copies = 0;
    }

    if (!r->ready || r->vmcf->copies == 0) {
        ngx_http_vibe_repair_make();
        return;
    }

    if (r->scanning) {
        ngx_http_vibe_poll_due(&r->changes);
    }

    ngx_http_vibe_poll_step(&r->changes);
    ngx_http_vibe_repair_checks();
    ngx_http_vibe_repair_walk();
    ngx_http_vibe_repair_pass();
    ngx_http_vibe_repair_gauges();
}


static void
ngx_http_vibe_repair_make(void)
{
    ngx_int_t                rc;
    ngx_http_vibe_repair_t  *r;

    r = &ngx_http_vibe_repair;

    if (r->making
        || (ngx_msec_int_t) (r->retry - ngx_current_msec) > 0)
    {
        return;
    }

    rc = ngx_http_vibe_global_make(&r->global);

    if (rc == NGX_AGAIN) {
        r->making = 1;
        return;
    }

    if (rc == NGX_OK) {
        ngx_http_vibe_repair_made(NULL, NULL);
    }
}


static void
ngx_http_vibe_repair_made(void *data, ngx_http_vibe_call_t *failed)
{
    ngx_http_vibe_repair_t *r = &ngx_http_vibe_repair;

    r->making = 0;

    if (!r->leads) {
        return;
    }

    if (failed != NULL) {
        r->retry = ngx_current_msec
                   + ngx_http_vibe_couch_backoff(++r->failures,
                                                 NGX_HTTP_VIBE_REPAIR_FIRST,
                                                 NGX_HTTP_VIBE_REPAIR_LAST
                                                 / 20);
        return;
    }

    r->failures = 0;

    if (r->begun
        && ngx_memcmp(r->id, r->vmcf->global_id, NGX_HTTP_VIBE_GLOBAL_ID)
           == 0)
    {
        r->ready = 1;

        if (r->pass.complete
            && !ngx_http_vibe_zone_get(r->vmcf->zone, NGX_HTTP_VIBE_COMPLETE))
        {
            /* somebody has taken the word for it away */

            r->pass.complete = 0;
            r->pass_due = 1;
        }

        return;
    }

    r->begun = 1;

    /* checkpoints were for another one, and so was what was remembered */

    ngx_memcpy(r->id, r->vmcf->global_id, NGX_HTTP_VIBE_GLOBAL_ID);

    ngx_http_vibe_targets_end(&r->targets);
    ngx_http_vibe_pass_end(&r->pass);
    ngx_http_vibe_pass_end(&r->tour);
    ngx_http_vibe_pass_init(&r->pass, r->vmcf, &r->targets);
    ngx_http_vibe_pass_init(&r->tour, r->vmcf, NULL);

    ngx_http_vibe_follow_end(&r->updates);
    ngx_http_vibe_poll_end(&r->changes);
    ngx_http_vibe_repair_follow();

    r->ready = 1;
    r->pass_due = 1;
    r->walk_due = 1;
}


static void
ngx_http_vibe_repair_follow(void)
{
    ngx_http_vibe_repair_t *r = &ngx_http_vibe_repair;

    ngx_memzero(&r->updates, sizeof(ngx_http_vibe_follow_t));
    ngx_memzero(&r->changes, sizeof(ngx_http_vibe_poll_t));

    r->updates.path = "/_db_updates?";
    r->updates.now = "now";
    r->updates.line = ngx_http_vibe_repair_update;
    r->updates.begun = ngx_http_vibe_repair_begun;
    r->updates.ended = ngx_http_vibe_repair_updates_ended;

    r->changes.change = ngx_http_vibe_repair_change;
    r->changes.begun = ngx_http_vibe_repair_changes_begun;
    r->changes.gone = ngx_http_vibe_repair_changes_gone;

    if (ngx_http_vibe_follow(&r->updates, r->vmcf->zone) != NGX_OK
        || ngx_http_vibe_poll_init(&r->changes, r->vmcf->zone) != NGX_OK)
    {
        ngx_log_error(NGX_LOG_ERR, ngx_cycle->log, 0,
                      "repair has no memory to follow couchdb");
    }

    r->scanning = 0;

    ngx_http_vibe_zone_set(r->vmcf->zone, NGX_HTTP_VIBE_DB_UPDATES, 1);
}


/* what has happened before, a pass finds that begins now */

static void
ngx_http_vibe_repair_begun(ngx_http_vibe_follow_t *f)
{
    ngx_http_vibe_repair_t *r = &ngx_http_vibe_repair;

    r->pass_due = 1;
}


static void
ngx_http_vibe_repair_update(ngx_http_vibe_follow_t *f,
    ngx_http_vibe_json_t *line)
{
    ngx_int_t                rc;
    ngx_str_t                did;
    ngx_http_vibe_json_t    *name, *type;
    ngx_http_vibe_repair_t  *r;
    ngx_http_vibe_target_t  *t;

    r = &ngx_http_vibe_repair;

    name = ngx_http_vibe_json_get(line, "db_name");
    type = ngx_http_vibe_json_get(line, "type");

    if (name == NULL || name->type != NGX_HTTP_VIBE_JSON_STRING) {
        return;
    }

    if (ngx_http_vibe_same(&name->string, &ngx_http_vibe_global)) {

        if (!ngx_http_vibe_json_is_string(type, "updated")) {
            ngx_http_vibe_global_gone(r->vmcf);
        }

        ngx_http_vibe_poll_due(&r->changes);
        return;
    }

    rc = ngx_http_vibe_check_named(r->vmcf, f->lines, &name->string, &did);

    if (rc != NGX_OK && rc != NGX_DECLINED) {
        return;
    }

    t = ngx_http_vibe_target_event(&r->targets, &name->string,
                                   NGX_HTTP_VIBE_REPAIR_DELAY,
                                   NGX_HTTP_VIBE_REPAIR_CALM);

    if (t == NULL) {

        /* too many at once: a pass finds them */

        r->pass_due = 1;
        return;
    }

    if (!ngx_http_vibe_json_is_string(type, "updated")) {
        t->reset = 1;
    }
}


static void
ngx_http_vibe_repair_updates_ended(ngx_http_vibe_follow_t *f,
    ngx_uint_t status)
{
    ngx_http_vibe_repair_t *r = &ngx_http_vibe_repair;

    /* what happens before it is there again, a pass finds */

    if (!r->scanning || status == NGX_HTTP_OK) {
        r->pass_due = 1;
    }

    if (status != NGX_HTTP_NOT_FOUND) {
        r->scanning = 0;
        ngx_http_vibe_zone_set(r->vmcf->zone, NGX_HTTP_VIBE_DB_UPDATES,
                               status == NGX_HTTP_OK);
        return;
    }

    r->scanning = 1;
    ngx_http_vibe_zone_set(r->vmcf->zone, NGX_HTTP_VIBE_DB_UPDATES, 0);

    if (!r->warned) {
        r->warned = 1;

        ngx_log_error(NGX_LOG_WARN, ngx_cycle->log, 0,
                      "couchdb has no _db_updates: repair looks at %i "
                      "databases a second (vibe_scan_rate) instead; make it "
                      "with \"curl -u admin -X PUT %V/_global_changes\"",
                      r->vmcf->scan_rate, &r->vmcf->couch.url);
    }
}


/* what a mirror of this host has written it knows; else somebody else did */

static void
ngx_http_vibe_repair_change(ngx_http_vibe_json_t *change)
{
    ngx_http_vibe_json_t  *id, *revs, *rev;

    id = ngx_http_vibe_json_get(change, "id");
    revs = ngx_http_vibe_json_get(change, "changes");
    rev = ngx_http_vibe_json_get(revs ? revs->child : NULL, "rev");

    if (id == NULL
        || id->type != NGX_HTTP_VIBE_JSON_STRING
        || id->string.len == 0
        || id->string.data[0] == '_'
        || rev == NULL
        || rev->type != NGX_HTTP_VIBE_JSON_STRING)
    {
        return;
    }

    if (revs->n > 1) {

        /* other leaves live, or did: no one revision says that all is well */

        ngx_http_vibe_zone_forget(ngx_http_vibe_repair.vmcf->zone,
                                  &id->string);
        ngx_http_vibe_repair_stray(&id->string, &revs->raw);
        return;
    }

    if (!ngx_http_vibe_zone_knows_copy(ngx_http_vibe_repair.vmcf->zone,
                                       &id->string, &rev->string))
    {
        ngx_http_vibe_repair_stray(&id->string, &rev->string);
    }
}


/* what was done to it before, a pass through all of it finds */

static void
ngx_http_vibe_repair_changes_begun(void)
{
    ngx_http_vibe_repair.walk_due = 1;
}


/* another one may be there by now: which, its mark says */

static void
ngx_http_vibe_repair_changes_gone(void)
{
    ngx_http_vibe_repair.vmcf->copies = 0;
}


static void
ngx_http_vibe_repair_stray(ngx_str_t *id, ngx_str_t *rev)
{
    ngx_http_vibe_stray_t   *stray;
    ngx_http_vibe_repair_t  *r;

    r = &ngx_http_vibe_repair;

    if (r->nstrays >= NGX_HTTP_VIBE_REPAIR_ROWS) {
        r->walk_due = 1;
        r->pass_due = 1;
        return;
    }

    stray = ngx_alloc(sizeof(ngx_http_vibe_stray_t) + id->len + rev->len,
                      ngx_cycle->log);
    if (stray == NULL) {
        r->walk_due = 1;
        r->pass_due = 1;
        return;
    }

    stray->at = ngx_current_msec + NGX_HTTP_VIBE_REPAIR_DELAY;

    stray->id.len = id->len;
    stray->id.data = (u_char *) stray + sizeof(ngx_http_vibe_stray_t);
    stray->rev.len = rev->len;
    stray->rev.data = ngx_cpymem(stray->id.data, id->data, id->len);
    ngx_memcpy(stray->rev.data, rev->data, rev->len);

    ngx_queue_insert_tail(&r->strays, &stray->queue);
    r->nstrays++;
}


/* those that nobody has told of meanwhile */

static void
ngx_http_vibe_repair_walk(void)
{
    ngx_uint_t               n;
    ngx_queue_t             *q;
    ngx_http_vibe_stray_t   *stray;
    ngx_http_vibe_repair_t  *r;

    r = &ngx_http_vibe_repair;

    if (r->walk != NULL
        || ngx_queue_empty(&r->strays)
        || (ngx_msec_int_t) (r->retry - ngx_current_msec) > 0)
    {
        return;
    }

    n = 0;

    while (n < r->page && !ngx_queue_empty(&r->strays)) {

        q = ngx_queue_head(&r->strays);
        stray = ngx_queue_data(q, ngx_http_vibe_stray_t, queue);

        if ((ngx_msec_int_t) (stray->at - ngx_current_msec) > 0) {
            break;
        }

        ngx_queue_remove(q);

        if (ngx_http_vibe_zone_knows_copy(r->vmcf->zone, &stray->id,
                                          &stray->rev))
        {
            r->nstrays--;
            ngx_free(stray);
            continue;
        }

        if (r->walk == NULL) {
            r->walk = ngx_http_vibe_walk_create(r->vmcf, r->page,
                                                ngx_http_vibe_repair_walked,
                                                r);
        }

        if (r->walk == NULL
            || ngx_http_vibe_walk_add(r->walk, &stray->id) != NGX_OK)
        {
            ngx_queue_insert_head(&r->strays, q);
            break;
        }

        ngx_queue_insert_tail(&r->walked, q);
        n++;
    }

    if (n) {
        ngx_http_vibe_walk(r->walk);

    } else if (r->walk != NULL) {
        ngx_http_vibe_walk_end(r->walk);
        r->walk = NULL;
    }
}


static void
ngx_http_vibe_repair_walked(ngx_http_vibe_walk_t *w, ngx_int_t rc)
{
    ngx_queue_t             *q;
    ngx_http_vibe_repair_t  *r;

    r = w->data;

    ngx_http_vibe_walk_end(w);
    r->walk = NULL;

    if (rc == NGX_OK) {
        r->failures = 0;
        r->page = NGX_HTTP_VIBE_REPAIR_WALK;
        ngx_http_vibe_repair_forget(&r->walked);
        return;
    }

    if (r->page == 1 && r->failures >= NGX_HTTP_VIBE_PASS_TRIES) {

        /* it keeps the others waiting no longer: a sweep meets it */

        r->failures = 0;
        ngx_http_vibe_repair_forget(&r->walked);
        return;
    }

    /* they may be too large together */

    r->page = ngx_max(r->page / 2, 1);

    while (!ngx_queue_empty(&r->walked)) {
        q = ngx_queue_last(&r->walked);
        ngx_queue_remove(q);
        ngx_queue_insert_head(&r->strays, q);
    }

    r->retry = ngx_current_msec
               + ngx_http_vibe_couch_backoff(++r->failures,
                                             NGX_HTTP_VIBE_REPAIR_FIRST,
                                             NGX_HTTP_VIBE_REPAIR_LAST / 20);
}


static void
ngx_http_vibe_repair_forget(ngx_queue_t *strays)
{
    ngx_queue_t  *q, *next;

    for (q = ngx_queue_head(strays); q != strays; q = next) {
        next = ngx_queue_next(q);

        ngx_free(ngx_queue_data(q, ngx_http_vibe_stray_t, queue));

        ngx_http_vibe_repair.nstrays--;
    }

    ngx_queue_init(strays);
}


static void
ngx_http_vibe_repair_checks(void)
{
    ngx_http_vibe_repair_t  *r;
    ngx_http_vibe_target_t  *t;

    r = &ngx_http_vibe_repair;

    while (r->targets.nrunning < NGX_HTTP_VIBE_REPAIR_CHECKS) {

        t = ngx_http_vibe_target_next(&r->targets);

        if (t == NULL) {
            return;
        }

        ngx_http_vibe_repair_check(t);
    }
}


static void
ngx_http_vibe_repair_check(ngx_http_vibe_target_t *t)
{
    ngx_uint_t               save, fresh;
    ngx_http_vibe_repair_t  *r;

    r = &ngx_http_vibe_repair;

    fresh = t->reset;
    t->fresh = fresh;

    if (t->reset) {

        /* deleted, or made anew: the owner may be another one too */

        t->reset = 0;
        t->info = 0;
        ngx_http_vibe_target_keep(&t->known.seq, NULL);
        ngx_http_vibe_target_keep(&t->known.did, NULL);
    }

    if (t->vanished) {

        /* whose it was is still needed */

        t->vanished = 0;
        ngx_http_vibe_target_keep(&t->known.seq, NULL);
    }

    save = (t->known.seq.len == 0
            || ngx_current_msec - t->saved >= NGX_HTTP_VIBE_REPAIR_SAVE);

    t->check = ngx_http_vibe_check(r->vmcf, &t->node.str, &t->known,
                                   save, fresh, ngx_http_vibe_repair_checked,
                                   t);

    if (t->check == NULL) {
        ngx_http_vibe_repair_failed(t);
    }
}


static void
ngx_http_vibe_repair_checked(ngx_http_vibe_check_t *c, ngx_int_t rc)
{
    ngx_http_vibe_target_t *t = c->data;

    ngx_http_vibe_repair_t  *r;

    r = &ngx_http_vibe_repair;

    t->check = NULL;

    if (rc != NGX_OK) {
        ngx_http_vibe_check_end(c);
        ngx_http_vibe_repair_failed(t);
        ngx_http_vibe_repair_checks();
        return;
    }

    if (c->missing && c->known.did.len == 0) {

        /* of its copies only a walk through all of "global" can tell */

        r->walk_due = 1;
        r->pass_due = 1;
    }

    if (c->saved) {
        t->saved = ngx_current_msec;
        t->dirty = 0;

    } else if (c->known.seq.len == 0 || c->unowned || c->hold) {

        /* there is nothing to be saved, or nowhere */

        t->dirty = 0;

    } else if (!ngx_http_vibe_same(&t->known.seq, &c->known.seq)) {
        t->dirty = 1;
    }

    t->looked = ngx_current_msec;
    t->calm = !c->mended;

    t->known.born = c->known.born;
    ngx_http_vibe_target_keep(&t->known.seq,
                              c->unowned ? NULL : &c->known.seq);
    ngx_http_vibe_target_keep(&t->known.did,
                              c->unowned ? NULL : &c->known.did);

    ngx_http_vibe_pass_checked(&r->pass, t, c->unowned);
    ngx_http_vibe_check_end(c);
    ngx_http_vibe_target_done(&r->targets, t);

    if (t->dirty && t->state == NGX_HTTP_VIBE_TARGET_IDLE) {

        /* so that it gets saved although nothing more happens */

        (void) ngx_http_vibe_target_due(&r->targets, &t->node.str,
                                        NGX_HTTP_VIBE_REPAIR_SAVE);
        t->since = 0;
    }

    ngx_http_vibe_repair_checks();
}


static void
ngx_http_vibe_repair_failed(ngx_http_vibe_target_t *t)
{
    ngx_msec_t               delay;
    ngx_http_vibe_repair_t  *r;

    r = &ngx_http_vibe_repair;

    delay = ngx_http_vibe_couch_backoff(++t->failures,
                                        NGX_HTTP_VIBE_REPAIR_FIRST,
                                        NGX_HTTP_VIBE_REPAIR_LAST);

    if (t->failures == NGX_HTTP_VIBE_REPAIR_FAILURES) {
        ngx_log_error(NGX_LOG_ERR, ngx_cycle->log, 0,
                      "repair of \"%V\" failed %d times, and goes on trying",
                      &t->node.str, NGX_HTTP_VIBE_REPAIR_FAILURES);
    }

    /* also one that failed before this pass began to wait for it */

    if (t->failures >= (r->pass.complete ? NGX_HTTP_VIBE_REPAIR_FAILURES
                                         : NGX_HTTP_VIBE_REPAIR_TRIES))
    {
        ngx_http_vibe_pass_given_up(&r->pass, t);
    }

    /* what was remembered may be why */

    t->reset |= t->fresh;

    ngx_http_vibe_target_keep(&t->known.seq, NULL);

    ngx_http_vibe_target_retry(&r->targets, t, delay);
}


static void
ngx_http_vibe_repair_pass(void)
{
    ngx_http_vibe_repair_t  *r;

    r = &ngx_http_vibe_repair;

    ngx_http_vibe_repair_due();

    if (ngx_http_vibe_pass_going(&r->pass)) {
        ngx_http_vibe_pass_step(&r->pass);

    } else if (r->pass_due || r->sweep_due || r->scanning) {

        /* "global" may have been made anew unseen: its mark is read first */

        if (!r->verified) {
            r->verified = 1;
            r->vmcf->copies = 0;
            return;
        }

        r->verified = 0;

        /* the pace is for what is done without need */

        ngx_http_vibe_pass_begin(&r->pass, NGX_HTTP_VIBE_PASS_LIST,
                                 r->pass_due ? 0 : (ngx_uint_t)
                                                   r->vmcf->scan_rate);
        r->pass_due = 0;
        r->sweep_due = 0;
    }

    /* beside it: to go through "global" takes longer */

    if (ngx_http_vibe_pass_going(&r->tour)) {
        ngx_http_vibe_pass_step(&r->tour);

    } else if (r->walk_due) {
        ngx_http_vibe_pass_begin(&r->tour, NGX_HTTP_VIBE_PASS_GLOBAL, 0);
        r->walk_due = 0;
    }
}


/* what time, or a mirror that was left undone, makes due */

static void
ngx_http_vibe_repair_due(void)
{
    ngx_uint_t               pending;
    ngx_http_vibe_repair_t  *r;

    r = &ngx_http_vibe_repair;

    if (ngx_current_msec - r->swept >= r->vmcf->sweep) {
        r->swept = ngx_current_msec;
        r->walk_due = 1;
        r->sweep_due = 1;
    }

    /* _db_updates is but a hint: a pass finds what it did not tell of */

    pending = ngx_http_vibe_zone_get(r->vmcf->zone,
                                     NGX_HTTP_VIBE_MIRRORS_PENDING);

    if (pending != r->pending
        && ngx_current_msec - r->looked >= NGX_HTTP_VIBE_REPAIR_SAVE)
    {
        r->pending = pending;
        r->looked = ngx_current_msec;
        r->pass_due = 1;
    }
}


static void
ngx_http_vibe_repair_gauges(void)
{
    time_t                   since;
    ngx_http_vibe_zone_t    *zone;
    ngx_http_vibe_repair_t  *r;

    r = &ngx_http_vibe_repair;
    zone = r->vmcf->zone;

    since = ngx_http_vibe_targets_since(&r->targets);

    ngx_http_vibe_zone_set(zone, NGX_HTTP_VIBE_DATABASES_DUE,
                           r->targets.ndue + r->targets.nrunning);
    ngx_http_vibe_zone_set(zone, NGX_HTTP_VIBE_LAG_CHANGES,
                           r->targets.ndue + r->targets.nrunning
                           + r->nstrays);
    ngx_http_vibe_zone_set(zone, NGX_HTTP_VIBE_LAG_SINCE, since);
}
