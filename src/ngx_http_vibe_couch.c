
#include <ngx_config.h>
#include <ngx_core.h>
#include <ngx_event.h>
#include <ngx_http.h>

#include <curl/curl.h>

#include "ngx_http_vibe_couch.h"


#define NGX_HTTP_VIBE_COUCH_SIZE    4096    /* of an answer, of a line */
#define NGX_HTTP_VIBE_COUCH_POOL    1024

/* how an address can fail: each is logged once, until it works again */
#define NGX_HTTP_VIBE_COUCH_CONNECT  0
#define NGX_HTTP_VIBE_COUCH_BREAK    1
#define NGX_HTTP_VIBE_COUCH_LATE     2
#define NGX_HTTP_VIBE_COUCH_FAULTS   3

/* where a transfer is */
#define NGX_HTTP_VIBE_COUCH_FIRST    0      /* waits for its turn */
#define NGX_HTTP_VIBE_COUCH_SECOND   1      /* so too, and nobody for it */
#define NGX_HTTP_VIBE_COUCH_NEW      2      /* a feed not begun: no limit */
#define NGX_HTTP_VIBE_COUCH_SENT     3      /* CouchDB works on it */
#define NGX_HTTP_VIBE_COUCH_FEED     4      /* so too, and is no request */
#define NGX_HTTP_VIBE_COUCH_DONE     5      /* its handler is to be called */
#define NGX_HTTP_VIBE_COUCH_DEAD     6      /* cancelled within curl's call */
#define NGX_HTTP_VIBE_COUCH_LISTS    7


typedef struct {
    ngx_str_t                    name;      /* "127.0.0.1:5984" */
    struct curl_slist           *to;        /* CURLOPT_CONNECT_TO, or */
    char                        *path;      /* a unix socket's */

    ngx_uint_t                   failures;  /* since it last worked */
    ngx_msec_t                   failed;    /* when it did last */
    ngx_msec_t                   due;       /* when it is tried again */

    ngx_uint_t                   faults;    /* a bit for each kind */
    time_t                       logged[NGX_HTTP_VIBE_COUCH_FAULTS];
} ngx_http_vibe_couch_addr_t;


typedef struct {
    ngx_http_vibe_couch_t       *req;       /* NULL: cancelled */
    CURL                        *easy;      /* NULL: not sent yet */
    ngx_http_vibe_couch_addr_t  *addr;      /* of the last try */

    /* what nginx logs of a timer: the descriptor, in an ngx_connection_t */
    ngx_int_t                    ident;

    ngx_pool_t                  *pool;
    ngx_queue_t                  queue;
    ngx_uint_t                   list;      /* the one it is in */
    ngx_event_t                  timer;
    ngx_msec_t                   timeout;
    ngx_msec_t                   started;   /* the last try */
    ngx_msec_t                   heard;     /* the last byte of a feed */
    ngx_uint_t                   tries;

    size_t                       size;      /* allocated for the answer */
    ngx_str_t                    held;      /* the first part of a line */
    size_t                       held_size;

    unsigned                     feed:1;
    unsigned                     added:1;   /* to the multi */
    unsigned                     stopped:1; /* by us, while it was read */
    unsigned                     no_slot:1; /* nginx has no connection */

    char                         error[CURL_ERROR_SIZE];
} ngx_http_vibe_couch_transfer_t;


typedef struct {
    ngx_queue_t                  queue;
    ngx_uint_t                   n;
} ngx_http_vibe_couch_list_t;


typedef struct {
    ngx_http_vibe_couch_conf_t  *conf;
    ngx_log_t                   *log;
    CURLM                       *multi;     /* NULL: there is no client */
    struct curl_slist           *headers;
    char                        *trusted;   /* NULL: those of the system */

    ngx_http_vibe_couch_addr_t  *addrs;
    ngx_uint_t                   naddrs;
    ngx_uint_t                   next;      /* address, in turn */

    ngx_http_vibe_couch_list_t   lists[NGX_HTTP_VIBE_COUCH_LISTS];
    ngx_queue_t                  sockets;   /* of ngx_connection_t */

    ngx_connection_t             dummy;     /* what events are said to be of */
    ngx_event_t                  timer;     /* curl's */
    ngx_event_t                  work;

    time_t                       refused;   /* when 401 was logged last */

    unsigned                     global:1;  /* curl_global_init() was called */
    unsigned                     due:1;     /* curl wants to be called */
    unsigned                     busy:1;    /* within curl */
    unsigned                     shutdown:1;
    unsigned                     down:1;    /* nothing is taken any more */
} ngx_http_vibe_couch_client_t;


static ngx_int_t ngx_http_vibe_couch_init_multi(void);
static ngx_int_t ngx_http_vibe_couch_init_headers(ngx_pool_t *pool);
static ngx_int_t ngx_http_vibe_couch_header(const char *line);
static ngx_int_t ngx_http_vibe_couch_init_addrs(ngx_pool_t *pool);
static ngx_int_t ngx_http_vibe_couch_init_addr(ngx_pool_t *pool,
    ngx_addr_t *from, ngx_http_vibe_couch_addr_t *addr);
static char *ngx_http_vibe_couch_text(ngx_pool_t *pool, const char *prefix,
    ngx_str_t *text);

static void ngx_http_vibe_couch_move(ngx_http_vibe_couch_transfer_t *t,
    ngx_uint_t list);
static void ngx_http_vibe_couch_post(void);
static void ngx_http_vibe_couch_work(ngx_event_t *ev);
static void ngx_http_vibe_couch_run(curl_socket_t s, int events);
static void ngx_http_vibe_couch_settle(void);
static void ngx_http_vibe_couch_start_all(void);
static void ngx_http_vibe_couch_stop_all(void);

static void ngx_http_vibe_couch_start(ngx_http_vibe_couch_transfer_t *t);
static ngx_int_t ngx_http_vibe_couch_prepare(
    ngx_http_vibe_couch_transfer_t *t);
static ngx_int_t ngx_http_vibe_couch_prepare_security(
    ngx_http_vibe_couch_transfer_t *t);
static ngx_int_t ngx_http_vibe_couch_prepare_body(
    ngx_http_vibe_couch_transfer_t *t);
static ngx_int_t ngx_http_vibe_couch_try(ngx_http_vibe_couch_transfer_t *t);
static void ngx_http_vibe_couch_detach(ngx_http_vibe_couch_transfer_t *t);
static void ngx_http_vibe_couch_ended(ngx_http_vibe_couch_transfer_t *t,
    CURLcode rc);
static void ngx_http_vibe_couch_answered(ngx_http_vibe_couch_transfer_t *t);
static ngx_uint_t ngx_http_vibe_couch_code(ngx_http_vibe_couch_transfer_t *t);
static ngx_uint_t ngx_http_vibe_couch_fault(ngx_http_vibe_couch_transfer_t *t,
    CURLcode rc);
static ngx_uint_t ngx_http_vibe_couch_lost(ngx_http_vibe_couch_transfer_t *t,
    CURLcode rc);
static void ngx_http_vibe_couch_finish(ngx_http_vibe_couch_transfer_t *t);
static void ngx_http_vibe_couch_expire(ngx_event_t *ev);
static void ngx_http_vibe_couch_free(ngx_http_vibe_couch_transfer_t *t);

static ngx_http_vibe_couch_addr_t *ngx_http_vibe_couch_pick(
    ngx_http_vibe_couch_addr_t *last);
static ngx_http_vibe_couch_addr_t *ngx_http_vibe_couch_usable(void);
static void ngx_http_vibe_couch_failing(ngx_http_vibe_couch_transfer_t *t,
    ngx_uint_t kind, CURLcode rc);
static ngx_msec_t ngx_http_vibe_couch_due(ngx_http_vibe_couch_addr_t *addr);
static void ngx_http_vibe_couch_works(ngx_http_vibe_couch_transfer_t *t);

static size_t ngx_http_vibe_couch_write(char *data, size_t size, size_t n,
    void *userdata);
static ngx_int_t ngx_http_vibe_couch_keep(ngx_http_vibe_couch_transfer_t *t,
    u_char *p, size_t len);
static ngx_int_t ngx_http_vibe_couch_grow(ngx_http_vibe_couch_transfer_t *t,
    size_t len);
static ngx_int_t ngx_http_vibe_couch_lines(ngx_http_vibe_couch_transfer_t *t,
    u_char *p, size_t len);
static ngx_int_t ngx_http_vibe_couch_hold(ngx_http_vibe_couch_transfer_t *t,
    u_char *p, size_t len);

static int ngx_http_vibe_couch_set_timer(CURLM *multi, long timeout,
    void *data);
static void ngx_http_vibe_couch_timer(ngx_event_t *ev);
static int ngx_http_vibe_couch_watch(CURL *easy, curl_socket_t s, int what,
    void *data, void *socket);
static ngx_connection_t *ngx_http_vibe_couch_connection(curl_socket_t s);
static ngx_connection_t *ngx_http_vibe_couch_connect(curl_socket_t s);
static void ngx_http_vibe_couch_release(ngx_connection_t *c);
static ngx_int_t ngx_http_vibe_couch_set_event(ngx_event_t *ev,
    ngx_int_t event, ngx_uint_t wanted);
static void ngx_http_vibe_couch_event(ngx_event_t *ev);


/* of the worker */

static ngx_http_vibe_couch_client_t  couch;


ngx_int_t
ngx_http_vibe_couch_init(ngx_cycle_t *cycle, ngx_http_vibe_couch_conf_t *conf)
{
    ngx_uint_t  i;

    ngx_http_vibe_couch_exit();

    couch.conf = conf;
    couch.log = cycle->log;

    ngx_queue_init(&couch.sockets);

    for (i = 0; i < NGX_HTTP_VIBE_COUCH_LISTS; i++) {
        ngx_queue_init(&couch.lists[i].queue);
    }

    couch.dummy.fd = (ngx_socket_t) -1;

    /* what keeps a worker that quits are the timers of single requests */

    couch.timer.handler = ngx_http_vibe_couch_timer;
    couch.timer.data = &couch.dummy;
    couch.timer.log = couch.log;
    couch.timer.cancelable = 1;

    couch.work.handler = ngx_http_vibe_couch_work;
    couch.work.data = &couch.dummy;
    couch.work.log = couch.log;

    if (ngx_http_vibe_couch_init_multi() != NGX_OK
        || ngx_http_vibe_couch_init_headers(cycle->pool) != NGX_OK
        || ngx_http_vibe_couch_init_addrs(cycle->pool) != NGX_OK)
    {
        ngx_log_error(NGX_LOG_EMERG, cycle->log, 0,
                      "the client for couchdb could not be made");

        ngx_http_vibe_couch_exit();
        return NGX_ERROR;
    }

    return NGX_OK;
}


static ngx_int_t
ngx_http_vibe_couch_init_multi(void)
{
    CURLM  *multi;

    if (curl_global_init(CURL_GLOBAL_DEFAULT) != CURLE_OK) {
        return NGX_ERROR;
    }

    couch.global = 1;

    multi = curl_multi_init();
    if (multi == NULL) {
        return NGX_ERROR;
    }

    couch.multi = multi;

    if (curl_multi_setopt(multi, CURLMOPT_SOCKETFUNCTION,
                          ngx_http_vibe_couch_watch)
        || curl_multi_setopt(multi, CURLMOPT_TIMERFUNCTION,
                             ngx_http_vibe_couch_set_timer))
    {
        return NGX_ERROR;
    }

    return NGX_OK;
}


static ngx_int_t
ngx_http_vibe_couch_init_headers(ngx_pool_t *pool)
{
    char                        *text;
    ngx_http_vibe_couch_conf_t  *conf;

    conf = couch.conf;

    if (conf->trusted.len) {
        couch.trusted = ngx_http_vibe_couch_text(pool, "", &conf->trusted);
        if (couch.trusted == NULL) {
            return NGX_ERROR;
        }
    }

    if (conf->authorization.len) {
        text = ngx_http_vibe_couch_text(pool, "Authorization: ",
                                        &conf->authorization);

        if (text == NULL || ngx_http_vibe_couch_header(text) != NGX_OK) {
            return NGX_ERROR;
        }
    }

    /* without a value: not to be sent */

    if (ngx_http_vibe_couch_header("Content-Type: application/json") != NGX_OK
        || ngx_http_vibe_couch_header("Accept: application/json") != NGX_OK
        || ngx_http_vibe_couch_header("Expect:") != NGX_OK)
    {
        return NGX_ERROR;
    }

    return NGX_OK;
}


static ngx_int_t
ngx_http_vibe_couch_header(const char *line)
{
    struct curl_slist  *list;

    list = curl_slist_append(couch.headers, line);
    if (list == NULL) {
        return NGX_ERROR;
    }

    couch.headers = list;

    return NGX_OK;
}


static ngx_int_t
ngx_http_vibe_couch_init_addrs(ngx_pool_t *pool)
{
    ngx_uint_t                   i;
    ngx_addr_t                  *from;
    ngx_http_vibe_couch_addr_t  *addrs;

    if (couch.conf->addrs == NULL || couch.conf->addrs->nelts == 0) {
        return NGX_OK;
    }

    from = couch.conf->addrs->elts;

    addrs = ngx_pcalloc(pool, couch.conf->addrs->nelts
                              * sizeof(ngx_http_vibe_couch_addr_t));
    if (addrs == NULL) {
        return NGX_ERROR;
    }

    couch.addrs = addrs;

    for (i = 0; i < couch.conf->addrs->nelts; i++) {

        /* also one that fails is counted: it may hold a list */

        couch.naddrs++;

        if (ngx_http_vibe_couch_init_addr(pool, &from[i], &addrs[i])
            != NGX_OK)
        {
            return NGX_ERROR;
        }
    }

    /* not all workers begin with the same one */

    couch.next = (ngx_uint_t) ngx_random() % couch.naddrs;

    return NGX_OK;
}


static ngx_int_t
ngx_http_vibe_couch_init_addr(ngx_pool_t *pool, ngx_addr_t *from,
    ngx_http_vibe_couch_addr_t *addr)
{
    char    *text;
    u_char  *p;

    p = ngx_pnalloc(pool, NGX_SOCKADDR_STRLEN);
    if (p == NULL) {
        return NGX_ERROR;
    }

    addr->name.data = p;
    addr->name.len = ngx_sock_ntop(from->sockaddr, from->socklen, p,
                                   NGX_SOCKADDR_STRLEN, 1);

#if (NGX_HAVE_UNIX_DOMAIN)

    if (from->sockaddr->sa_family == AF_UNIX) {
        addr->path = ((struct sockaddr_un *) from->sockaddr)->sun_path;
        return NGX_OK;
    }

#endif

    /* instead of any host and any port */

    text = ngx_http_vibe_couch_text(pool, "::", &addr->name);
    if (text == NULL) {
        return NGX_ERROR;
    }

    addr->to = curl_slist_append(NULL, text);
    if (addr->to == NULL) {
        return NGX_ERROR;
    }

    return NGX_OK;
}


/* with a zero at the end */

static char *
ngx_http_vibe_couch_text(ngx_pool_t *pool, const char *prefix,
    ngx_str_t *text)
{
    u_char  *p;

    p = ngx_pnalloc(pool, ngx_strlen(prefix) + text->len + 1);
    if (p == NULL) {
        return NULL;
    }

    *ngx_sprintf(p, "%s%V", prefix, text) = '\0';

    return (char *) p;
}


void
ngx_http_vibe_couch_exit(void)
{
    ngx_uint_t                       i;
    ngx_queue_t                     *q;
    ngx_connection_t                *c;
    ngx_http_vibe_couch_transfer_t  *t;

    if (couch.multi != NULL) {

        for (i = 0; i < NGX_HTTP_VIBE_COUCH_LISTS; i++) {
            while (!ngx_queue_empty(&couch.lists[i].queue)) {
                q = ngx_queue_head(&couch.lists[i].queue);
                t = ngx_queue_data(q, ngx_http_vibe_couch_transfer_t, queue);

                if (t->req != NULL) {
                    t->req->transfer = NULL;
                }

                ngx_http_vibe_couch_free(t);
            }
        }

        (void) curl_multi_cleanup(couch.multi);

        while (!ngx_queue_empty(&couch.sockets)) {
            q = ngx_queue_head(&couch.sockets);
            c = ngx_queue_data(q, ngx_connection_t, queue);
            ngx_http_vibe_couch_release(c);
        }
    }

    if (couch.timer.timer_set) {
        ngx_del_timer(&couch.timer);
    }

    if (couch.work.posted) {
        ngx_delete_posted_event(&couch.work);
    }

    for (i = 0; i < couch.naddrs; i++) {
        curl_slist_free_all(couch.addrs[i].to);
    }

    curl_slist_free_all(couch.headers);

    if (couch.global) {
        curl_global_cleanup();
    }

    ngx_memzero(&couch, sizeof(ngx_http_vibe_couch_client_t));
}


ngx_int_t
ngx_http_vibe_couch_send(ngx_http_vibe_couch_t *req)
{
    ngx_pool_t                      *pool;
    ngx_http_vibe_couch_list_t      *lists;
    ngx_http_vibe_couch_transfer_t  *t;

    req->status = 0;
    req->too_large = 0;
    req->transfer = NULL;
    ngx_str_null(&req->answer);

    if (couch.multi == NULL || couch.down) {
        return NGX_ERROR;
    }

    lists = couch.lists;

    if (req->line == NULL
        && lists[NGX_HTTP_VIBE_COUCH_FIRST].n
           + lists[NGX_HTTP_VIBE_COUCH_SECOND].n
           + lists[NGX_HTTP_VIBE_COUCH_SENT].n
           >= NGX_HTTP_VIBE_COUCH_ACTIVE + NGX_HTTP_VIBE_COUCH_WAITING)
    {
        return NGX_BUSY;
    }

    /* not the caller's: it may be destroyed while curl still holds on */

    pool = ngx_create_pool(NGX_HTTP_VIBE_COUCH_POOL, couch.log);
    if (pool == NULL) {
        return NGX_ERROR;
    }

    t = ngx_pcalloc(pool, sizeof(ngx_http_vibe_couch_transfer_t));
    if (t == NULL) {
        ngx_destroy_pool(pool);
        return NGX_ERROR;
    }

    t->pool = pool;
    t->req = req;
    t->ident = -1;
    t->list = NGX_HTTP_VIBE_COUCH_LISTS;
    t->feed = (req->line != NULL);
    t->timeout = req->timeout ? req->timeout : couch.conf->timeout;
    t->heard = ngx_current_msec;

    t->timer.handler = ngx_http_vibe_couch_expire;
    t->timer.data = t;
    t->timer.log = couch.log;
    t->timer.cancelable = (!req->waited || t->feed);

    ngx_add_timer(&t->timer, t->timeout);

    ngx_http_vibe_couch_move(t, t->feed ? NGX_HTTP_VIBE_COUCH_NEW
                                : req->waited ? NGX_HTTP_VIBE_COUCH_FIRST
                                : NGX_HTTP_VIBE_COUCH_SECOND);

    req->transfer = t;

    ngx_http_vibe_couch_post();

    return NGX_OK;
}


void
ngx_http_vibe_couch_cancel(ngx_http_vibe_couch_t *req)
{
    ngx_http_vibe_couch_transfer_t  *t;

    t = req->transfer;

    if (t == NULL) {
        return;
    }

    req->transfer = NULL;
    t->req = NULL;

    if (couch.busy) {

        /* curl allows no removal from within its callbacks */

        if (t->timer.timer_set) {
            ngx_del_timer(&t->timer);
        }

        ngx_http_vibe_couch_move(t, NGX_HTTP_VIBE_COUCH_DEAD);

    } else {
        ngx_http_vibe_couch_free(t);
    }

    ngx_http_vibe_couch_post();
}


ngx_msec_t
ngx_http_vibe_couch_backoff(ngx_uint_t failures, ngx_msec_t first,
    ngx_msec_t last)
{
    ngx_msec_t  ms;

    ms = ngx_min(first, last);

    while (failures > 1 && ms && ms < last) {
        ms = (ms > last / 2) ? last : ms * 2;
        failures--;
    }

    return ms - ms / 4 + (ngx_msec_t) ngx_random() % (ms / 2 + 1);
}


static void
ngx_http_vibe_couch_move(ngx_http_vibe_couch_transfer_t *t, ngx_uint_t list)
{
    if (t->list != NGX_HTTP_VIBE_COUCH_LISTS) {
        ngx_queue_remove(&t->queue);
        couch.lists[t->list].n--;
    }

    t->list = list;

    if (list != NGX_HTTP_VIBE_COUCH_LISTS) {
        ngx_queue_insert_tail(&couch.lists[list].queue, &t->queue);
        couch.lists[list].n++;
    }

    /*
     * curl counts the connections in use, too.  That of a transfer which ends
     * is kept or not before the transfer comes here.
     */

    (void) curl_multi_setopt(couch.multi, CURLMOPT_MAXCONNECTS,
                             (long) (NGX_HTTP_VIBE_COUCH_KEPT - 1
                             + couch.lists[NGX_HTTP_VIBE_COUCH_SENT].n
                             + couch.lists[NGX_HTTP_VIBE_COUCH_FEED].n));
}


/*
 * For the next turn of the event loop: a caller that sends again from its
 * handler must not keep the loop from turning.
 */

static void
ngx_http_vibe_couch_post(void)
{
    ngx_post_event(&couch.work, &ngx_posted_next_events);
}


static void
ngx_http_vibe_couch_work(ngx_event_t *ev)
{
    if (couch.shutdown) {
        couch.shutdown = 0;
        couch.down = 1;
        ngx_http_vibe_couch_stop_all();
    }

    ngx_http_vibe_couch_start_all();

    if (couch.due) {
        couch.due = 0;
        ngx_http_vibe_couch_run(CURL_SOCKET_TIMEOUT, 0);
        return;
    }

    ngx_http_vibe_couch_settle();
}


static void
ngx_http_vibe_couch_run(curl_socket_t s, int events)
{
    int        running;
    CURLMcode  rc;

    couch.busy = 1;
    rc = curl_multi_socket_action(couch.multi, s, events, &running);
    couch.busy = 0;

    if (rc != CURLM_OK) {
        ngx_log_error(NGX_LOG_ALERT, couch.log, 0,
                      "curl_multi_socket_action() failed: %s",
                      curl_multi_strerror(rc));
    }

    ngx_http_vibe_couch_settle();
}


/* what follows from what curl did; the only place that handlers are called */

static void
ngx_http_vibe_couch_settle(void)
{
    int                              left;
    char                            *private;
    CURLMsg                         *msg;
    CURLcode                         rc;
    ngx_queue_t                     *dead, *done;
    ngx_http_vibe_couch_transfer_t  *t;

    dead = &couch.lists[NGX_HTTP_VIBE_COUCH_DEAD].queue;
    done = &couch.lists[NGX_HTTP_VIBE_COUCH_DONE].queue;

    while ((msg = curl_multi_info_read(couch.multi, &left)) != NULL) {

        if (msg->msg != CURLMSG_DONE) {
            continue;
        }

        /* the message is gone with the next call */

        rc = msg->data.result;

        private = NULL;
        (void) curl_easy_getinfo(msg->easy_handle, CURLINFO_PRIVATE, &private);

        t = (ngx_http_vibe_couch_transfer_t *) (void *) private;

        if (t != NULL && t->req != NULL) {
            ngx_http_vibe_couch_ended(t, rc);
        }
    }

    while (!ngx_queue_empty(dead)) {
        t = ngx_queue_data(ngx_queue_head(dead),
                           ngx_http_vibe_couch_transfer_t, queue);
        ngx_http_vibe_couch_free(t);
    }

    ngx_http_vibe_couch_start_all();

    while (!ngx_queue_empty(done)) {
        t = ngx_queue_data(ngx_queue_head(done),
                           ngx_http_vibe_couch_transfer_t, queue);
        ngx_http_vibe_couch_finish(t);
    }
}


/* those that a client waits for before the others, feeds at once */

static void
ngx_http_vibe_couch_start_all(void)
{
    ngx_uint_t                       i;
    ngx_queue_t                     *queue;
    ngx_http_vibe_couch_list_t      *lists;
    ngx_http_vibe_couch_transfer_t  *t;

    static ngx_uint_t  order[] = {
        NGX_HTTP_VIBE_COUCH_NEW,
        NGX_HTTP_VIBE_COUCH_FIRST,
        NGX_HTTP_VIBE_COUCH_SECOND
    };

    lists = couch.lists;

    for (i = 0; i < sizeof(order) / sizeof(order[0]); i++) {
        queue = &lists[order[i]].queue;

        while (!ngx_queue_empty(queue)) {

            if (order[i] != NGX_HTTP_VIBE_COUCH_NEW
                && lists[NGX_HTTP_VIBE_COUCH_SENT].n
                   >= NGX_HTTP_VIBE_COUCH_ACTIVE)
            {
                return;
            }

            t = ngx_queue_data(ngx_queue_head(queue),
                               ngx_http_vibe_couch_transfer_t, queue);
            ngx_http_vibe_couch_start(t);
        }
    }
}


/* worker_shutdown_timeout is over */

static void
ngx_http_vibe_couch_stop_all(void)
{
    ngx_uint_t                       i;
    ngx_queue_t                     *queue;
    ngx_http_vibe_couch_transfer_t  *t;

    for (i = 0; i < NGX_HTTP_VIBE_COUCH_DONE; i++) {
        queue = &couch.lists[i].queue;

        while (!ngx_queue_empty(queue)) {
            t = ngx_queue_data(ngx_queue_head(queue),
                               ngx_http_vibe_couch_transfer_t, queue);

            t->req->status = NGX_HTTP_GATEWAY_TIME_OUT;

            ngx_http_vibe_couch_detach(t);
            ngx_http_vibe_couch_move(t, NGX_HTTP_VIBE_COUCH_DONE);
        }
    }
}


static void
ngx_http_vibe_couch_start(ngx_http_vibe_couch_transfer_t *t)
{
    ngx_http_vibe_couch_move(t, t->feed ? NGX_HTTP_VIBE_COUCH_FEED
                                        : NGX_HTTP_VIBE_COUCH_SENT);

    if (couch.naddrs != 0
        && ngx_http_vibe_couch_prepare(t) == NGX_OK
        && ngx_http_vibe_couch_prepare_security(t) == NGX_OK
        && ngx_http_vibe_couch_prepare_body(t) == NGX_OK
        && ngx_http_vibe_couch_try(t) == NGX_OK)
    {
        return;
    }

    t->req->status = NGX_HTTP_SERVICE_UNAVAILABLE;

    ngx_http_vibe_couch_move(t, NGX_HTTP_VIBE_COUCH_DONE);
    ngx_http_vibe_couch_post();
}


static ngx_int_t
ngx_http_vibe_couch_prepare(ngx_http_vibe_couch_transfer_t *t)
{
    CURL    *easy;
    u_char  *url;
    size_t   len;

    len = couch.conf->url.len + t->req->path.len + 1;

    url = ngx_pnalloc(t->pool, len);
    if (url == NULL) {
        return NGX_ERROR;
    }

    *ngx_sprintf(url, "%V%V", &couch.conf->url, &t->req->path) = '\0';

    easy = curl_easy_init();
    if (easy == NULL) {
        return NGX_ERROR;
    }

    t->easy = easy;

    /* CouchDB's ids may look like "..": the path is sent as it is */

    if (curl_easy_setopt(easy, CURLOPT_PRIVATE, t)
        || curl_easy_setopt(easy, CURLOPT_URL, url)
        || curl_easy_setopt(easy, CURLOPT_PATH_AS_IS, 1L)
        || curl_easy_setopt(easy, CURLOPT_NOSIGNAL, 1L)
        || curl_easy_setopt(easy, CURLOPT_ERRORBUFFER, t->error)
        || curl_easy_setopt(easy, CURLOPT_HTTP_VERSION,
                            (long) CURL_HTTP_VERSION_1_1)
        || curl_easy_setopt(easy, CURLOPT_HTTPHEADER, couch.headers)
        || curl_easy_setopt(easy, CURLOPT_CONNECTTIMEOUT_MS,
                            (long) couch.conf->connect_timeout)
        || curl_easy_setopt(easy, CURLOPT_WRITEFUNCTION,
                            ngx_http_vibe_couch_write)
        || curl_easy_setopt(easy, CURLOPT_WRITEDATA, t))
    {
        return NGX_ERROR;
    }

    return NGX_OK;
}


/* nothing but CouchDB is spoken to, and nothing but it is believed */

static ngx_int_t
ngx_http_vibe_couch_prepare_security(ngx_http_vibe_couch_transfer_t *t)
{
    CURL  *easy;

    easy = t->easy;

    if (curl_easy_setopt(easy, CURLOPT_FOLLOWLOCATION, 0L)
        || curl_easy_setopt(easy, CURLOPT_PROXY, "")
        || curl_easy_setopt(easy, CURLOPT_NETRC, (long) CURL_NETRC_IGNORED)
        || curl_easy_setopt(easy, CURLOPT_SSL_VERIFYPEER, 1L)
        || curl_easy_setopt(easy, CURLOPT_SSL_VERIFYHOST, 2L))
    {
        return NGX_ERROR;
    }

#if (LIBCURL_VERSION_NUM >= 0x075500)

    if (curl_easy_setopt(easy, CURLOPT_PROTOCOLS_STR, "http,https")) {
        return NGX_ERROR;
    }

#else

    if (curl_easy_setopt(easy, CURLOPT_PROTOCOLS,
                         (long) (CURLPROTO_HTTP|CURLPROTO_HTTPS)))
    {
        return NGX_ERROR;
    }

#endif

    /* the system's would be looked up in its directory still */

    if (couch.trusted != NULL
        && (curl_easy_setopt(easy, CURLOPT_CAINFO, couch.trusted)
            || curl_easy_setopt(easy, CURLOPT_CAPATH, NULL)))
    {
        return NGX_ERROR;
    }

    return NGX_OK;
}


/*
 * A copy, so that a request that was cancelled leaves nothing behind in curl
 * that its caller may free.
 */

static ngx_int_t
ngx_http_vibe_couch_prepare_body(ngx_http_vibe_couch_transfer_t *t)
{
    u_char                 *p, *body;
    size_t                  len;
    ngx_chain_t            *cl;
    ngx_http_vibe_couch_t  *req;

    req = t->req;

    if (req->method == NGX_HTTP_GET) {
        return NGX_OK;
    }

    len = 0;

    for (cl = req->body; cl; cl = cl->next) {
        len += cl->buf->last - cl->buf->pos;
    }

    body = ngx_pnalloc(t->pool, len + 1);
    if (body == NULL) {
        return NGX_ERROR;
    }

    p = body;

    for (cl = req->body; cl; cl = cl->next) {
        p = ngx_cpymem(p, cl->buf->pos, cl->buf->last - cl->buf->pos);
    }

    if (curl_easy_setopt(t->easy, CURLOPT_POSTFIELDSIZE_LARGE,
                         (curl_off_t) len)
        || curl_easy_setopt(t->easy, CURLOPT_POSTFIELDS, body))
    {
        return NGX_ERROR;
    }

    if (req->method == NGX_HTTP_PUT
        && curl_easy_setopt(t->easy, CURLOPT_CUSTOMREQUEST, "PUT"))
    {
        return NGX_ERROR;
    }

    return NGX_OK;
}


static ngx_int_t
ngx_http_vibe_couch_try(ngx_http_vibe_couch_transfer_t *t)
{
    CURLMcode                    rc;
    ngx_http_vibe_couch_addr_t  *addr;

    addr = ngx_http_vibe_couch_pick(t->addr);

    t->addr = addr;
    t->started = ngx_current_msec;
    t->tries++;
    t->error[0] = '\0';

    if (curl_easy_setopt(t->easy, CURLOPT_CONNECT_TO, addr->to)
        || curl_easy_setopt(t->easy, CURLOPT_UNIX_SOCKET_PATH, addr->path))
    {
        return NGX_ERROR;
    }

    ngx_log_debug3(NGX_LOG_DEBUG_HTTP, couch.log, 0,
                   "vibe couch \"%V\" to %V, try %ui",
                   &t->req->path, &addr->name, t->tries);

    couch.busy = 1;
    rc = curl_multi_add_handle(couch.multi, t->easy);
    couch.busy = 0;

    if (rc != CURLM_OK) {
        ngx_log_error(NGX_LOG_ALERT, couch.log, 0,
                      "curl_multi_add_handle() failed: %s",
                      curl_multi_strerror(rc));
        return NGX_ERROR;
    }

    t->added = 1;

    return NGX_OK;
}


static void
ngx_http_vibe_couch_detach(ngx_http_vibe_couch_transfer_t *t)
{
    CURLMcode  rc;

    if (!t->added) {
        return;
    }

    t->added = 0;

    couch.busy = 1;
    rc = curl_multi_remove_handle(couch.multi, t->easy);
    couch.busy = 0;

    if (rc != CURLM_OK) {
        ngx_log_error(NGX_LOG_ALERT, couch.log, 0,
                      "curl_multi_remove_handle() failed: %s",
                      curl_multi_strerror(rc));
    }
}


static void
ngx_http_vibe_couch_ended(ngx_http_vibe_couch_transfer_t *t, CURLcode rc)
{
    if (rc == CURLE_OK) {
        ngx_http_vibe_couch_works(t);
        ngx_http_vibe_couch_answered(t);

        if (t->req == NULL) {
            return;
        }

    } else {

        if (ngx_http_vibe_couch_fault(t, rc)) {
            ngx_http_vibe_couch_detach(t);

            if (ngx_http_vibe_couch_try(t) == NGX_OK) {
                return;
            }
        }

        ngx_str_null(&t->req->answer);
    }

    ngx_http_vibe_couch_detach(t);
    ngx_http_vibe_couch_move(t, NGX_HTTP_VIBE_COUCH_DONE);
}


static void
ngx_http_vibe_couch_answered(ngx_http_vibe_couch_transfer_t *t)
{
    ngx_int_t               rc;
    ngx_http_vibe_couch_t  *req;

    req = t->req;

    req->status = ngx_http_vibe_couch_code(t);

    if (req->status == NGX_HTTP_UNAUTHORIZED
        || req->status == NGX_HTTP_FORBIDDEN)
    {
        /* 403: it locks out for minutes who was wrong too often */

        if (couch.refused != ngx_time()) {
            couch.refused = ngx_time();

            ngx_log_error(NGX_LOG_ERR, couch.log, 0,
                          "couchdb does not accept the vibe_credentials");
        }
    }

    if (t->held.len == 0) {
        return;
    }

    /* the end of the answer ended its last line, too */

    couch.busy = 1;
    rc = req->line(req, &t->held);
    couch.busy = 0;

    if (t->req != NULL && rc != NGX_OK) {
        req->status = NGX_HTTP_BAD_GATEWAY;
    }
}


static ngx_uint_t
ngx_http_vibe_couch_code(ngx_http_vibe_couch_transfer_t *t)
{
    long  code;

    code = 0;
    (void) curl_easy_getinfo(t->easy, CURLINFO_RESPONSE_CODE, &code);

    return code > 0 ? (ngx_uint_t) code : NGX_HTTP_BAD_GATEWAY;
}


/*
 * Why a try has failed: sets the status, returns whether there is to be
 * another.  Whatever is sent here may be sent twice, as each write names the
 * revision it replaces.
 */

static ngx_uint_t
ngx_http_vibe_couch_fault(ngx_http_vibe_couch_transfer_t *t, CURLcode rc)
{
    ngx_uint_t  again;
    curl_off_t  sent;

    t->req->status = NGX_HTTP_BAD_GATEWAY;

    if (t->stopped) {
        return 0;
    }

    if (t->no_slot) {
        t->req->status = NGX_HTTP_SERVICE_UNAVAILABLE;
        return 0;
    }

    if (rc == CURLE_OUT_OF_MEMORY
        || rc == CURLE_URL_MALFORMAT
        || rc == CURLE_SSL_CACERT_BADFILE)
    {
        ngx_log_error(NGX_LOG_ERR, couch.log, 0,
                      "no request to couchdb can be made: %s",
                      t->error[0] ? t->error : curl_easy_strerror(rc));

        t->req->status = NGX_HTTP_SERVICE_UNAVAILABLE;
        return 0;
    }

    sent = 0;
    (void) curl_easy_getinfo(t->easy, CURLINFO_PRETRANSFER_TIME_T, &sent);

    if (sent > 0) {
        again = ngx_http_vibe_couch_lost(t, rc);

    } else {
        t->req->status = NGX_HTTP_SERVICE_UNAVAILABLE;

        ngx_http_vibe_couch_failing(t, NGX_HTTP_VIBE_COUCH_CONNECT, rc);

        /* the time of one that does not answer is not spent on it twice */

        again = rc != CURLE_OPERATION_TIMEDOUT
                || ngx_http_vibe_couch_usable() != NULL;
    }

    return again && t->tries <= couch.naddrs;
}


/* was sent, at least in part, and got no whole answer */

static ngx_uint_t
ngx_http_vibe_couch_lost(ngx_http_vibe_couch_transfer_t *t, CURLcode rc)
{
    long        made, received;
    ngx_uint_t  again;

    made = 0;
    (void) curl_easy_getinfo(t->easy, CURLINFO_NUM_CONNECTS, &made);

    received = 0;
    (void) curl_easy_getinfo(t->easy, CURLINFO_HEADER_SIZE, &received);

    again = received == 0
            && (rc == CURLE_GOT_NOTHING
                || rc == CURLE_SEND_ERROR
                || rc == CURLE_RECV_ERROR);

    if (!again || made > 0) {
        ngx_http_vibe_couch_failing(t, NGX_HTTP_VIBE_COUCH_BREAK, rc);
        return again;
    }

    /*
     * CouchDB may close a kept connection just as a request is written to
     * it, which is no fault.  The others may be as old.
     */

    ngx_log_error(NGX_LOG_INFO, couch.log, 0,
                  "couchdb closed a kept connection, sending again");

    return curl_easy_setopt(t->easy, CURLOPT_FRESH_CONNECT, 1L) == CURLE_OK;
}


/* nothing of the transfer is left when the handler is called */

static void
ngx_http_vibe_couch_finish(ngx_http_vibe_couch_transfer_t *t)
{
    ngx_http_vibe_couch_t  *req;

    req = t->req;

    ngx_log_debug2(NGX_LOG_DEBUG_HTTP, couch.log, 0,
                   "vibe couch \"%V\" status:%ui", &req->path, req->status);

    req->transfer = NULL;

    ngx_http_vibe_couch_free(t);

    req->handler(req);
}


/* the time of a request is over, or a feed was silent for too long */

static void
ngx_http_vibe_couch_expire(ngx_event_t *ev)
{
    ngx_msec_int_t                   left;
    ngx_http_vibe_couch_transfer_t  *t;

    t = ev->data;

    if (t->no_slot) {
        t->req->status = NGX_HTTP_SERVICE_UNAVAILABLE;

    } else {
        left = (ngx_msec_int_t) (t->heard + t->timeout - ngx_current_msec);

        if (left > 0) {
            ngx_add_timer(ev, (ngx_msec_t) left);
            return;
        }

        t->req->status = NGX_HTTP_GATEWAY_TIME_OUT;

        if (t->added) {
            ngx_http_vibe_couch_failing(t, NGX_HTTP_VIBE_COUCH_LATE,
                                        CURLE_OPERATION_TIMEDOUT);
        }
    }

    ngx_str_null(&t->req->answer);

    ngx_http_vibe_couch_detach(t);
    ngx_http_vibe_couch_move(t, NGX_HTTP_VIBE_COUCH_DONE);
    ngx_http_vibe_couch_settle();
}


static void
ngx_http_vibe_couch_free(ngx_http_vibe_couch_transfer_t *t)
{
    ngx_http_vibe_couch_detach(t);
    ngx_http_vibe_couch_move(t, NGX_HTTP_VIBE_COUCH_LISTS);

    if (t->timer.timer_set) {
        ngx_del_timer(&t->timer);
    }

    if (t->timer.posted) {
        ngx_delete_posted_event(&t->timer);
    }

    if (t->easy != NULL) {
        curl_easy_cleanup(t->easy);
    }

    ngx_destroy_pool(t->pool);
}


/* in turn; one that fails only if all do, and then not "last" again */

static ngx_http_vibe_couch_addr_t *
ngx_http_vibe_couch_pick(ngx_http_vibe_couch_addr_t *last)
{
    ngx_uint_t                   i;
    ngx_http_vibe_couch_addr_t  *addr, *best;

    best = ngx_http_vibe_couch_usable();

    if (best == NULL) {
        best = &couch.addrs[couch.next];

        for (i = 0; i < couch.naddrs; i++) {
            addr = &couch.addrs[i];

            if (addr != last
                && (best == last
                    || (ngx_msec_int_t) (addr->due - best->due) < 0))
            {
                best = addr;
            }
        }
    }

    couch.next = best - couch.addrs + 1;

    if (couch.next == couch.naddrs) {
        couch.next = 0;
    }

    /* one request finds out whether it works again */

    if (best->failures) {
        best->due = ngx_http_vibe_couch_due(best);
    }

    return best;
}


static ngx_http_vibe_couch_addr_t *
ngx_http_vibe_couch_usable(void)
{
    ngx_uint_t                   i;
    ngx_http_vibe_couch_addr_t  *addr;

    for (i = 0; i < couch.naddrs; i++) {
        addr = &couch.addrs[(couch.next + i) % couch.naddrs];

        if (addr->failures == 0
            || (ngx_msec_int_t) (addr->due - ngx_current_msec) <= 0)
        {
            return addr;
        }
    }

    return NULL;
}


static ngx_msec_t
ngx_http_vibe_couch_due(ngx_http_vibe_couch_addr_t *addr)
{
    return ngx_current_msec
           + ngx_http_vibe_couch_backoff(addr->failures,
                                         NGX_HTTP_VIBE_COUCH_BACKOFF,
                                         NGX_HTTP_VIBE_COUCH_BACKOFF_MAX);
}


static void
ngx_http_vibe_couch_failing(ngx_http_vibe_couch_transfer_t *t,
    ngx_uint_t kind, CURLcode rc)
{
    long                         err;
    ngx_http_vibe_couch_addr_t  *addr;

    static const char  *text[] = {
        "cannot be reached",
        "broke off",
        "takes too long"
    };

    addr = t->addr;

    /*
     * Many requests may find the same failure: it is one.  A slow answer says
     * nothing of the address.
     */

    if (kind != NGX_HTTP_VIBE_COUCH_LATE
        && (addr->failures == 0
            || (ngx_msec_int_t) (t->started - addr->failed) > 0))
    {
        addr->failures++;
        addr->failed = ngx_current_msec;
        addr->due = ngx_http_vibe_couch_due(addr);
    }

    if (addr->faults & (1 << kind)) {
        return;
    }

    addr->faults |= 1 << kind;

    /* it may work for some requests, and not for others */

    if (addr->logged[kind] == ngx_time()) {
        return;
    }

    addr->logged[kind] = ngx_time();

    err = 0;
    (void) curl_easy_getinfo(t->easy, CURLINFO_OS_ERRNO, &err);

    ngx_log_error(NGX_LOG_ERR, couch.log, (ngx_err_t) err,
                  "couchdb at %V %s: %s", &addr->name, text[kind],
                  t->error[0] ? t->error : curl_easy_strerror(rc));
}


static void
ngx_http_vibe_couch_works(ngx_http_vibe_couch_transfer_t *t)
{
    ngx_http_vibe_couch_addr_t  *addr;

    addr = t->addr;

    /* what began before a failure does not tell that it is over */

    if (addr->failures
        && (ngx_msec_int_t) (t->started - addr->failed) < 0)
    {
        return;
    }

    if (addr->faults) {
        ngx_log_error(NGX_LOG_INFO, couch.log, 0,
                      "couchdb at %V works again", &addr->name);
    }

    addr->failures = 0;
    addr->faults = 0;
}


static size_t
ngx_http_vibe_couch_write(char *data, size_t size, size_t n, void *userdata)
{
    ngx_http_vibe_couch_transfer_t *t = userdata;

    size_t     len;
    ngx_int_t  rc;

    len = size * n;

    if (t->req == NULL) {
        return 0;
    }

    if (t->feed && ngx_http_vibe_couch_code(t) == NGX_HTTP_OK) {
        t->heard = ngx_current_msec;

        /* it may take hours until it ends */

        ngx_http_vibe_couch_works(t);

        rc = ngx_http_vibe_couch_lines(t, (u_char *) data, len);

    } else {
        rc = ngx_http_vibe_couch_keep(t, (u_char *) data, len);
    }

    if (rc != NGX_OK) {
        t->stopped = 1;
        return 0;
    }

    return len;
}


static ngx_int_t
ngx_http_vibe_couch_keep(ngx_http_vibe_couch_transfer_t *t, u_char *p,
    size_t len)
{
    ngx_str_t  *answer;

    answer = &t->req->answer;

    if (len > couch.conf->max_response - answer->len) {
        t->req->too_large = 1;

        ngx_log_error(NGX_LOG_ERR, couch.log, 0,
                      "couchdb's answer to \"%V\" is larger than "
                      "vibe_max_response", &t->req->path);

        return NGX_ERROR;
    }

    if (ngx_http_vibe_couch_grow(t, answer->len + len) != NGX_OK) {
        return NGX_ERROR;
    }

    ngx_memcpy(answer->data + answer->len, p, len);
    answer->len += len;

    return NGX_OK;
}


/* makes room for an answer of "len" bytes, which may be */

static ngx_int_t
ngx_http_vibe_couch_grow(ngx_http_vibe_couch_transfer_t *t, size_t len)
{
    size_t       size;
    u_char      *p;
    ngx_str_t   *answer;
    curl_off_t   announced;

    if (len <= t->size) {
        return NGX_OK;
    }

    /* -1: not known */

    announced = -1;
    (void) curl_easy_getinfo(t->easy, CURLINFO_CONTENT_LENGTH_DOWNLOAD_T,
                             &announced);

    size = (announced > 0) ? (size_t) announced
                           : ngx_max(t->size * 2, NGX_HTTP_VIBE_COUCH_SIZE);
    size = ngx_max(len, ngx_min(size, couch.conf->max_response));

    p = ngx_pnalloc(t->req->pool, size);
    if (p == NULL) {
        return NGX_ERROR;
    }

    answer = &t->req->answer;

    if (t->size) {
        ngx_memcpy(p, answer->data, answer->len);
        (void) ngx_pfree(t->req->pool, answer->data);
    }

    answer->data = p;
    t->size = size;

    return NGX_OK;
}


static ngx_int_t
ngx_http_vibe_couch_lines(ngx_http_vibe_couch_transfer_t *t, u_char *p,
    size_t len)
{
    u_char     *last, *end;
    ngx_int_t   rc;
    ngx_str_t   line;

    last = p + len;

    while (p < last) {

        end = ngx_strlchr(p, last, '\n');

        if (end == NULL) {
            return ngx_http_vibe_couch_hold(t, p, last - p);
        }

        line.data = p;
        line.len = end - p;

        if (t->held.len || line.len > NGX_HTTP_VIBE_COUCH_LINE_MAX) {

            if (ngx_http_vibe_couch_hold(t, p, end - p) != NGX_OK) {
                return NGX_ERROR;
            }

            line = t->held;
            t->held.len = 0;
        }

        p = end + 1;

        /* an empty one only shows that CouchDB is there */

        if (line.len == 0) {
            continue;
        }

        rc = t->req->line(t->req, &line);

        if (t->req == NULL || rc != NGX_OK) {
            return NGX_ERROR;
        }
    }

    return NGX_OK;
}


/* keeps a part of a line until the rest has come */

static ngx_int_t
ngx_http_vibe_couch_hold(ngx_http_vibe_couch_transfer_t *t, u_char *p,
    size_t len)
{
    size_t   size;
    u_char  *data;

    if (len > NGX_HTTP_VIBE_COUCH_LINE_MAX - t->held.len) {
        t->req->too_large = 1;

        ngx_log_error(NGX_LOG_ERR, couch.log, 0,
                      "a line of couchdb's feed \"%V\" is too long",
                      &t->req->path);

        return NGX_ERROR;
    }

    if (t->held.len + len > t->held_size) {

        size = ngx_max(t->held_size * 2, NGX_HTTP_VIBE_COUCH_SIZE);
        size = ngx_max(size, t->held.len + len);

        data = ngx_pnalloc(t->pool, size);
        if (data == NULL) {
            return NGX_ERROR;
        }

        if (t->held_size) {
            ngx_memcpy(data, t->held.data, t->held.len);
            (void) ngx_pfree(t->pool, t->held.data);
        }

        t->held.data = data;
        t->held_size = size;
    }

    ngx_memcpy(t->held.data + t->held.len, p, len);
    t->held.len += len;

    return NGX_OK;
}


/*
 * curl's callbacks that concern the event loop.  curl must not be called from
 * within them; what they return other than success would end all transfers.
 */

static int
ngx_http_vibe_couch_set_timer(CURLM *multi, long timeout, void *data)
{
    if (couch.timer.timer_set) {
        ngx_del_timer(&couch.timer);
    }

    couch.due = (timeout == 0);

    if (couch.due) {
        ngx_http_vibe_couch_post();

    } else if (timeout > 0) {

        /* rather late than early: nginx's clock may be behind */

        ngx_add_timer(&couch.timer, (ngx_msec_t) timeout + 1);
    }

    return 0;
}


static void
ngx_http_vibe_couch_timer(ngx_event_t *ev)
{
    ngx_http_vibe_couch_run(CURL_SOCKET_TIMEOUT, 0);
}


static int
ngx_http_vibe_couch_watch(CURL *easy, curl_socket_t s, int what, void *data,
    void *socket)
{
    char                            *private;
    ngx_connection_t                *c;
    ngx_http_vibe_couch_transfer_t  *t;

    c = ngx_http_vibe_couch_connection(s);

    if (what == CURL_POLL_REMOVE) {

        if (c != NULL) {
            ngx_http_vibe_couch_release(c);
        }

        return 0;
    }

    if (c == NULL) {
        c = ngx_http_vibe_couch_connect(s);
    }

    if (c != NULL
        && ngx_http_vibe_couch_set_event(c->read, NGX_READ_EVENT,
                                         what & CURL_POLL_IN)
           == NGX_OK
        && ngx_http_vibe_couch_set_event(c->write, NGX_WRITE_EVENT,
                                         what & CURL_POLL_OUT)
           == NGX_OK)
    {
        return 0;
    }

    private = NULL;
    (void) curl_easy_getinfo(easy, CURLINFO_PRIVATE, &private);

    t = (ngx_http_vibe_couch_transfer_t *) (void *) private;

    if (t != NULL && t->req != NULL) {
        t->no_slot = 1;
        ngx_post_event(&t->timer, &ngx_posted_next_events);
    }

    return 0;
}


static ngx_connection_t *
ngx_http_vibe_couch_connection(curl_socket_t s)
{
    ngx_queue_t       *q;
    ngx_connection_t  *c;

    for (q = ngx_queue_head(&couch.sockets);
         q != ngx_queue_sentinel(&couch.sockets);
         q = ngx_queue_next(q))
    {
        c = ngx_queue_data(q, ngx_connection_t, queue);

        if (c->fd == s) {
            return c;
        }
    }

    return NULL;
}


/* a socket is one of nginx's connections while curl wants it watched */

static ngx_connection_t *
ngx_http_vibe_couch_connect(curl_socket_t s)
{
    ngx_connection_t  *c;

    c = ngx_get_connection(s, couch.log);
    if (c == NULL) {
        return NULL;
    }

    c->number = ngx_atomic_fetch_add(ngx_connection_counter, 1);

    c->read->handler = ngx_http_vibe_couch_event;
    c->read->log = couch.log;
    c->write->handler = ngx_http_vibe_couch_event;
    c->write->log = couch.log;

    /* nginx's own use of this link is for connections of clients */

    ngx_queue_insert_tail(&couch.sockets, &c->queue);

    return c;
}


/*
 * The descriptor is curl's: it may be kept open, and it may be closed already
 * if it was not connected yet.
 */

static void
ngx_http_vibe_couch_release(ngx_connection_t *c)
{
    if (fcntl(c->fd, F_GETFD) == -1) {

        if (c->read->active) {
            (void) ngx_del_event(c->read, NGX_READ_EVENT, NGX_CLOSE_EVENT);
        }

        if (c->write->active) {
            (void) ngx_del_event(c->write, NGX_WRITE_EVENT, NGX_CLOSE_EVENT);
        }
    }

    (void) ngx_http_vibe_couch_set_event(c->read, NGX_READ_EVENT, 0);
    (void) ngx_http_vibe_couch_set_event(c->write, NGX_WRITE_EVENT, 0);

    ngx_queue_remove(&c->queue);

    /* in this order; events of what has no descriptor are stale */

    ngx_free_connection(c);
    c->fd = (ngx_socket_t) -1;
}


/*
 * curl wants level-triggered events, which ngx_handle_read_event() would not
 * make, and none from a descriptor that it keeps.
 */

static ngx_int_t
ngx_http_vibe_couch_set_event(ngx_event_t *ev, ngx_int_t event,
    ngx_uint_t wanted)
{
    if (wanted) {
        return ev->active ? NGX_OK : ngx_add_event(ev, event, NGX_LEVEL_EVENT);
    }

    if (ev->posted) {
        ngx_delete_posted_event(ev);
    }

    return ev->active ? ngx_del_event(ev, event, 0) : NGX_OK;
}


static void
ngx_http_vibe_couch_event(ngx_event_t *ev)
{
    ngx_connection_t  *c;

    c = ev->data;

    if (c->close) {

        /* nginx does so when worker_shutdown_timeout is over */

        couch.shutdown = 1;
        ngx_http_vibe_couch_post();
        return;
    }

    ngx_http_vibe_couch_run(c->fd, ev->write ? CURL_CSELECT_OUT
                                             : CURL_CSELECT_IN);
}
