
#include "ngx_http_vibe_lease.h"
#include "ngx_http_vibe_ask.h"
#include "ngx_http_vibe_database.h"


#define NGX_HTTP_VIBE_LEASE_MACHINE  128


typedef struct {
    ngx_http_vibe_main_conf_t   *vmcf;
    ngx_http_vibe_lease_pt       users[NGX_HTTP_VIBE_LEASE_USERS];
    ngx_uint_t                   nusers;
    ngx_http_vibe_ask_t          ask;
    ngx_event_t                  event;
    ngx_connection_t             dumb;         /* for nginx's debug log */

    u_char                       machine[NGX_HTTP_VIBE_LEASE_MACHINE];
    u_char                       rev[NGX_HTTP_VIBE_REV_MAX];
    size_t                       rev_len;
    ngx_msec_t                   seen;         /* when "rev" was, first */
    ngx_msec_t                   renewed;      /* when we had it for sure */
    ngx_msec_t                   sent;         /* when we last asked */

    unsigned                     leads:1;
    unsigned                     mine:1;       /* the zone's lease */
    unsigned                     busy:1;       /* CouchDB is being asked */
} ngx_http_vibe_lease_t;


static void ngx_http_vibe_lease_tell(ngx_uint_t leads);
static void ngx_http_vibe_lease_tick(ngx_event_t *ev);
static void ngx_http_vibe_lease_cease(void);
static void ngx_http_vibe_lease_look(void);
static void ngx_http_vibe_lease_seen(ngx_http_vibe_ask_t *ask,
    ngx_http_vibe_call_t *call);
static ngx_uint_t ngx_http_vibe_lease_free(ngx_http_vibe_json_t *root,
    ngx_str_t *rev);
static void ngx_http_vibe_lease_host(ngx_http_vibe_json_t *root);
static void ngx_http_vibe_lease_write(void);
static void ngx_http_vibe_lease_written(ngx_http_vibe_ask_t *ask,
    ngx_http_vibe_call_t *call);
static void ngx_http_vibe_lease_made(ngx_http_vibe_ask_t *ask,
    ngx_http_vibe_call_t *call);
static void ngx_http_vibe_lease_closed(ngx_http_vibe_ask_t *ask,
    ngx_http_vibe_call_t *call);
static void ngx_http_vibe_lease_keep(ngx_str_t *rev);
static void ngx_http_vibe_lease_machine(u_char *machine);


static ngx_str_t  ngx_http_vibe_state_db = ngx_string(NGX_HTTP_VIBE_STATE_DB);

static ngx_http_vibe_lease_t  ngx_http_vibe_lease;


ngx_int_t
ngx_http_vibe_lease_init(ngx_http_vibe_main_conf_t *vmcf)
{
    ngx_http_vibe_lease_t *l = &ngx_http_vibe_lease;

    ngx_memzero(l, sizeof(ngx_http_vibe_lease_t));

    if (ngx_http_vibe_ask_init(&l->ask, vmcf->zone, l) != NGX_OK) {
        return NGX_ERROR;
    }

    l->ask.timeout = ngx_min(vmcf->lease / 2, vmcf->couch.timeout);
    l->vmcf = vmcf;

    ngx_http_vibe_lease_machine(l->machine);

    l->dumb.fd = (ngx_socket_t) -1;

    l->event.handler = ngx_http_vibe_lease_tick;
    l->event.data = &l->dumb;
    l->event.log = ngx_cycle->log;
    l->event.cancelable = 1;

    ngx_add_timer(&l->event, 1);

    return NGX_OK;
}


void
ngx_http_vibe_lease_use(ngx_http_vibe_lease_pt handler)
{
    ngx_http_vibe_lease_t *l = &ngx_http_vibe_lease;

    if (l->nusers < NGX_HTTP_VIBE_LEASE_USERS) {
        l->users[l->nusers++] = handler;
    }
}


ngx_uint_t
ngx_http_vibe_lease_held(void)
{
    ngx_http_vibe_lease_t *l = &ngx_http_vibe_lease;

    return l->leads && ngx_current_msec - l->renewed <= l->vmcf->lease;
}


static void
ngx_http_vibe_lease_tell(ngx_uint_t leads)
{
    ngx_uint_t              i;
    ngx_http_vibe_lease_t  *l;

    l = &ngx_http_vibe_lease;

    for (i = 0; i < l->nusers; i++) {
        l->users[i](leads);
    }
}


void
ngx_http_vibe_lease_exit(void)
{
    ngx_http_vibe_lease_t *l = &ngx_http_vibe_lease;

    if (l->vmcf == NULL) {
        return;
    }

    ngx_http_vibe_lease_cease();
    ngx_http_vibe_ask_end(&l->ask);
    ngx_http_vibe_zone_release(l->vmcf->zone);

    l->vmcf = NULL;
}


static void
ngx_http_vibe_lease_tick(ngx_event_t *ev)
{
    ngx_msec_t              term, wait;
    ngx_http_vibe_lease_t  *l;

    l = &ngx_http_vibe_lease;

    if (ngx_exiting || ngx_terminate || ngx_quit) {
        ngx_http_vibe_lease_cease();
        ngx_http_vibe_zone_release(l->vmcf->zone);
        return;
    }

    ngx_add_timer(ev, ngx_min(NGX_HTTP_VIBE_LEASE_TICK, l->vmcf->lease / 5));

    if (!ngx_http_vibe_zone_lease(l->vmcf->zone)) {
        l->mine = 0;
        ngx_http_vibe_lease_cease();
        return;
    }

    if (!l->mine) {

        /* what another worker knew of the document is not known here */

        l->mine = 1;
        l->rev_len = 0;
    }

    term = l->vmcf->lease;

    if (l->leads && ngx_current_msec - l->renewed > term) {
        ngx_log_error(NGX_LOG_WARN, ev->log, 0,
                      "the lease could not be renewed: repair waits");
        ngx_http_vibe_lease_cease();
    }

    /* the holder writes it twice in a term, others look as often */

    wait = term * 2 / 5;

    if (l->busy || (l->sent && ngx_current_msec - l->sent < wait)) {
        return;
    }

    l->busy = 1;
    l->sent = ngx_current_msec;

    if (l->leads) {
        ngx_http_vibe_lease_write();

    } else {
        ngx_http_vibe_lease_look();
    }
}


static void
ngx_http_vibe_lease_cease(void)
{
    ngx_http_vibe_lease_t *l = &ngx_http_vibe_lease;

    if (l->leads) {
        l->leads = 0;
        ngx_http_vibe_lease_tell(0);
    }
}


static void
ngx_http_vibe_lease_look(void)
{
    ngx_http_vibe_ask(&ngx_http_vibe_lease.ask, NGX_HTTP_GET,
                      &ngx_http_vibe_state_db, NGX_HTTP_VIBE_LEASE_DOC, NULL,
                      ngx_http_vibe_lease_seen);
}


static void
ngx_http_vibe_lease_seen(ngx_http_vibe_ask_t *ask, ngx_http_vibe_call_t *call)
{
    ngx_http_vibe_lease_t *l = ask->data;

    ngx_http_vibe_json_t  *root, *rev;

    l->busy = 0;

    if (ngx_http_vibe_no_database(call)) {
        l->busy = 1;
        ngx_http_vibe_ask(ask, NGX_HTTP_PUT, &ngx_http_vibe_state_db, "?q=1",
                          NULL, ngx_http_vibe_lease_made);
        return;
    }

    if (call->status == NGX_HTTP_NOT_FOUND) {
        l->rev_len = 0;
        ngx_http_vibe_lease_write();
        return;
    }

    if (call->status != NGX_HTTP_OK
        || ngx_http_vibe_scan_answer(ask->pool, call, 1, &root) != NGX_OK)
    {
        return;
    }

    rev = ngx_http_vibe_json_get(root, "_rev");

    if (rev == NULL
        || rev->type != NGX_HTTP_VIBE_JSON_STRING
        || rev->string.len > NGX_HTTP_VIBE_REV_MAX)
    {
        return;
    }

    if (ngx_http_vibe_copy_newer_format(root)) {
        ngx_log_error(NGX_LOG_ERR, ngx_cycle->log, 0,
                      "the lease has the format of a newer version: "
                      "its holder does the background work");
        return;
    }

    if (ngx_http_vibe_lease_free(root, &rev->string)) {
        ngx_http_vibe_lease_write();
        return;
    }

    ngx_http_vibe_lease_host(root);

    ngx_http_vibe_lease_tell(0);
}


/* 1 if it may be taken; remembers the revision that would be replaced */

static ngx_uint_t
ngx_http_vibe_lease_free(ngx_http_vibe_json_t *root, ngx_str_t *rev)
{
    ngx_str_t               ours, machine;
    ngx_uint_t              pid, term;
    ngx_http_vibe_json_t   *id, *m;
    ngx_http_vibe_lease_t  *l;

    l = &ngx_http_vibe_lease;

    if (rev->len != l->rev_len || ngx_memcmp(rev->data, l->rev, rev->len)) {
        ngx_http_vibe_lease_keep(rev);
        l->seen = ngx_current_msec;
    }

    ours.data = l->vmcf->zone->shared->id;
    ours.len = sizeof(l->vmcf->zone->shared->id);

    id = ngx_http_vibe_json_get(root, "id");

    if (id != NULL && ngx_http_vibe_same(&id->string, &ours)) {
        return 1;
    }

    /* a master process of this machine that has ended */

    machine.data = l->machine;
    machine.len = ngx_strlen(l->machine);

    m = ngx_http_vibe_json_get(root, "machine");
    id = ngx_http_vibe_json_get(root, "pid");

    if (m != NULL
        && machine.len
        && ngx_http_vibe_same(&m->string, &machine)
        && id != NULL
        && ngx_http_vibe_json_uint(id, NGX_MAX_INT32_VALUE, &pid) == NGX_OK
        && pid > 1
        && kill((ngx_pid_t) pid, 0) == -1
        && ngx_errno == ESRCH)
    {
        return 1;
    }

    term = l->vmcf->lease;
    m = ngx_http_vibe_json_get(root, "term");

    if (m != NULL
        && ngx_http_vibe_json_uint(m, 3600000, &pid) == NGX_OK
        && pid > term)
    {
        term = pid;
    }

    return ngx_current_msec - l->seen > term;
}


static void
ngx_http_vibe_lease_host(ngx_http_vibe_json_t *root)
{
    ngx_str_t              host;
    ngx_http_vibe_json_t  *m;

    m = ngx_http_vibe_json_get(root, "host");

    ngx_str_null(&host);

    if (m != NULL && m->type == NGX_HTTP_VIBE_JSON_STRING) {
        host = m->string;
    }

    ngx_http_vibe_zone_lead(ngx_http_vibe_lease.vmcf->zone, 0, &host);
}


static void
ngx_http_vibe_lease_write(void)
{
    ngx_str_t                  str;
    ngx_http_vibe_lease_t     *l;
    ngx_http_vibe_json_out_t   out;

    l = &ngx_http_vibe_lease;

    l->busy = 1;

    ngx_http_vibe_json_out_init(&out, l->ask.pool);

    ngx_http_vibe_json_put_text(&out, "{\"vibe_v\":");
    ngx_http_vibe_json_put_uint(&out, NGX_HTTP_VIBE_FORMAT);

    if (l->rev_len) {
        str.data = l->rev;
        str.len = l->rev_len;

        ngx_http_vibe_json_put_text(&out, ",\"_rev\":");
        ngx_http_vibe_json_put_string(&out, &str);
    }

    ngx_http_vibe_json_put_text(&out, ",\"host\":");
    ngx_http_vibe_json_put_string(&out, (ngx_str_t *) &ngx_cycle->hostname);

    str.data = l->machine;
    str.len = ngx_strlen(l->machine);

    ngx_http_vibe_json_put_text(&out, ",\"machine\":");
    ngx_http_vibe_json_put_string(&out, &str);
    ngx_http_vibe_json_put_text(&out, ",\"pid\":");
    ngx_http_vibe_json_put_uint(&out, ngx_parent);

    str.data = l->vmcf->zone->shared->id;
    str.len = sizeof(l->vmcf->zone->shared->id);

    ngx_http_vibe_json_put_text(&out, ",\"id\":");
    ngx_http_vibe_json_put_string(&out, &str);
    ngx_http_vibe_json_put_text(&out, ",\"term\":");
    ngx_http_vibe_json_put_uint(&out, l->vmcf->lease);
    ngx_http_vibe_json_put_text(&out, "}");

    /* from now: the others count from when they see it */

    l->sent = ngx_current_msec;

    ngx_http_vibe_ask(&l->ask, NGX_HTTP_PUT, &ngx_http_vibe_state_db,
                      NGX_HTTP_VIBE_LEASE_DOC, &out,
                      ngx_http_vibe_lease_written);
}


static void
ngx_http_vibe_lease_written(ngx_http_vibe_ask_t *ask,
    ngx_http_vibe_call_t *call)
{
    ngx_http_vibe_lease_t *l = ask->data;

    ngx_http_vibe_json_t  *rev;

    l->busy = 0;

    if (call->status == NGX_HTTP_CONFLICT
        || ngx_http_vibe_no_database(call))
    {
        /* another has it, or the database was deleted: look */

        l->rev_len = 0;
        l->sent = 0;
        ngx_http_vibe_lease_cease();
        return;
    }

    if (call->status != NGX_HTTP_CREATED
        && call->status != NGX_HTTP_ACCEPTED)
    {
        /* it may have been written: look before it is written again */

        if (!l->leads) {
            l->rev_len = 0;
        }

        return;
    }

    rev = ngx_http_vibe_ask_member(ask, call, "rev");

    if (rev == NULL
        || rev->type != NGX_HTTP_VIBE_JSON_STRING
        || rev->string.len > NGX_HTTP_VIBE_REV_MAX)
    {
        return;
    }

    ngx_http_vibe_lease_keep(&rev->string);

    l->renewed = l->sent;

    if (!l->mine || ngx_exiting) {
        return;
    }

    ngx_http_vibe_zone_lead(l->vmcf->zone, 1,
                            (ngx_str_t *) &ngx_cycle->hostname);

    if (!l->leads) {
        ngx_log_error(NGX_LOG_NOTICE, ngx_cycle->log, 0,
                      "this worker does the background work");

        l->leads = 1;
        ngx_http_vibe_lease_tell(1);
    }
}


static void
ngx_http_vibe_lease_made(ngx_http_vibe_ask_t *ask, ngx_http_vibe_call_t *call)
{
    ngx_http_vibe_lease_t *l = ask->data;

    ngx_http_vibe_json_out_t  out;

    if (call->status == NGX_HTTP_CREATED || call->status == NGX_HTTP_ACCEPTED)
    {
        ngx_http_vibe_json_out_init(&out, ask->pool);
        ngx_http_vibe_database_put_security(&out);

        ngx_http_vibe_ask(ask, NGX_HTTP_PUT, &ngx_http_vibe_state_db,
                          "/_security", &out, ngx_http_vibe_lease_closed);
        return;
    }

    l->busy = 0;

    if (call->status == NGX_HTTP_PRECONDITION_FAILED) {
        l->sent = 0;
    }
}


static void
ngx_http_vibe_lease_closed(ngx_http_vibe_ask_t *ask,
    ngx_http_vibe_call_t *call)
{
    ngx_http_vibe_lease_t *l = ask->data;

    l->busy = 0;

    if (call->status == NGX_HTTP_OK) {
        l->rev_len = 0;
        ngx_http_vibe_lease_write();
    }
}


static void
ngx_http_vibe_lease_keep(ngx_str_t *rev)
{
    ngx_http_vibe_lease_t *l = &ngx_http_vibe_lease;

    l->rev_len = rev->len;
    ngx_memcpy(l->rev, rev->data, rev->len);
}


/*
 * What tells a machine, and a space of process ids on it, from others; empty
 * where that cannot be told, and then only time does.
 */

static void
ngx_http_vibe_lease_machine(u_char *machine)
{
    u_char   boot[36], ns[48];
    ssize_t  n;
    ngx_fd_t  fd;

    machine[0] = '\0';

    fd = ngx_open_file("/proc/sys/kernel/random/boot_id", NGX_FILE_RDONLY,
                       NGX_FILE_OPEN, 0);
    if (fd == NGX_INVALID_FILE) {
        return;
    }

    n = ngx_read_fd(fd, boot, sizeof(boot));

    if (ngx_close_file(fd) == NGX_FILE_ERROR || n != sizeof(boot)) {
        return;
    }

    n = readlink("/proc/self/ns/pid", (char *) ns, sizeof(ns));

    if (n <= 0 || n == sizeof(ns)) {
        return;
    }

    *ngx_sprintf(machine, "%*s/%*s", sizeof(boot), boot, (size_t) n, ns)
        = '\0';
}
