
#include "ngx_http_vibe_global.h"
#include "ngx_http_vibe_answer.h"
#include "ngx_http_vibe_ask.h"
#include "ngx_http_vibe_database.h"


/* making sure of "global": one at a time in a worker, others wait for it */

typedef struct {
    ngx_http_vibe_main_conf_t   *vmcf;
    ngx_queue_t                  waiting;   /* ngx_http_vibe_global_wait_t */

    ngx_http_vibe_ask_t          ask;       /* no pool: nothing under way */
    ngx_uint_t                   copies;
    ngx_uint_t                   index;     /* the one being made */
    ngx_uint_t                   tries;
    ngx_uint_t                   made;      /* the database, just now */
    ngx_msec_t                   looked;    /* when it was not complete */
} ngx_http_vibe_global_make_t;


/* a client's request that waits; it may end before its turn comes */

typedef struct {
    ngx_http_vibe_global_wait_t  global;
    ngx_http_vibe_wait_t        *wait;
} ngx_http_vibe_global_client_t;


typedef struct {
    ngx_http_vibe_next_pt        next;
    void                        *data;
} ngx_http_vibe_global_next_t;


static void ngx_http_vibe_global_wake(void *data,
    ngx_http_vibe_call_t *failed);
static ngx_int_t ngx_http_vibe_global_woken(ngx_http_request_t *r,
    void *data, ngx_http_vibe_call_t *failed);
static ngx_uint_t ngx_http_vibe_global_complete(
    ngx_http_vibe_global_make_t *g);
static ngx_int_t ngx_http_vibe_global_building(ngx_http_request_t *r);
static uint32_t ngx_http_vibe_global_born(ngx_http_vibe_json_t *info);
static void ngx_http_vibe_global_send(ngx_http_vibe_global_make_t *g,
    ngx_uint_t method, const char *suffix, ngx_http_vibe_json_out_t *out,
    ngx_http_vibe_ask_pt handler);
static void ngx_http_vibe_global_end(ngx_http_vibe_global_make_t *g,
    ngx_http_vibe_call_t *failed);
static void ngx_http_vibe_global_info(ngx_http_vibe_ask_t *ask,
    ngx_http_vibe_call_t *call);
static void ngx_http_vibe_global_created(ngx_http_vibe_ask_t *ask,
    ngx_http_vibe_call_t *call);
static void ngx_http_vibe_global_closed(ngx_http_vibe_ask_t *ask,
    ngx_http_vibe_call_t *call);
static void ngx_http_vibe_global_next_index(ngx_http_vibe_global_make_t *g);
static void ngx_http_vibe_global_indexed(ngx_http_vibe_ask_t *ask,
    ngx_http_vibe_call_t *call);
static void ngx_http_vibe_global_mark(ngx_http_vibe_ask_t *ask,
    ngx_http_vibe_call_t *call);
static void ngx_http_vibe_global_told(ngx_http_vibe_ask_t *ask,
    ngx_http_vibe_call_t *call);
static void ngx_http_vibe_global_new_mark(ngx_http_vibe_global_make_t *g,
    ngx_http_vibe_call_t *call);
static void ngx_http_vibe_global_mark_put(ngx_http_vibe_ask_t *ask,
    ngx_http_vibe_call_t *call);


ngx_str_t  ngx_http_vibe_global = ngx_string(NGX_HTTP_VIBE_GLOBAL);

static ngx_http_vibe_global_make_t  ngx_http_vibe_global_making;


void
ngx_http_vibe_global_init(ngx_http_vibe_main_conf_t *vmcf)
{
    ngx_http_vibe_global_make_t *g = &ngx_http_vibe_global_making;

    ngx_memzero(g, sizeof(ngx_http_vibe_global_make_t));

    g->vmcf = vmcf;

    ngx_queue_init(&g->waiting);
}


ngx_int_t
ngx_http_vibe_global_ready(ngx_http_request_t *r, ngx_http_vibe_next_pt next,
    void *data)
{
    ngx_int_t                       rc;
    ngx_http_vibe_global_next_t    *n;
    ngx_http_vibe_global_make_t    *g;
    ngx_http_vibe_global_client_t  *client;

    g = &ngx_http_vibe_global_making;

    if (g->vmcf->copies) {

        if (ngx_http_vibe_global_complete(g)) {
            return next(r, data, NULL);
        }

        if (ngx_current_msec - g->looked < NGX_HTTP_VIBE_INDEX_LOOK) {
            return ngx_http_vibe_global_building(r);
        }

        g->vmcf->copies = 0;
    }

    n = ngx_palloc(r->pool, sizeof(ngx_http_vibe_global_next_t));
    if (n == NULL) {
        return NGX_ERROR;
    }

    n->next = next;
    n->data = data;

    client = ngx_calloc(sizeof(ngx_http_vibe_global_client_t),
                        ngx_cycle->log);
    if (client == NULL) {
        return NGX_ERROR;
    }

    client->global.handler = ngx_http_vibe_global_wake;
    client->global.data = client;

    rc = ngx_http_vibe_global_make(&client->global);

    if (rc == NGX_AGAIN) {

        /* woken from the event loop, so not before it waits */

        return ngx_http_vibe_wait(r, &client->wait,
                                  ngx_http_vibe_global_woken, n);
    }

    ngx_free(client);

    return NGX_ERROR;
}


static void
ngx_http_vibe_global_wake(void *data, ngx_http_vibe_call_t *failed)
{
    ngx_http_vibe_global_client_t *client = data;

    ngx_http_vibe_wake(&client->wait, failed);

    ngx_free(client);
}


static ngx_int_t
ngx_http_vibe_global_woken(ngx_http_request_t *r, void *data,
    ngx_http_vibe_call_t *failed)
{
    ngx_http_vibe_global_next_t *n = data;

    if (failed == NULL
        && !ngx_http_vibe_global_complete(&ngx_http_vibe_global_making))
    {
        return ngx_http_vibe_global_building(r);
    }

    return n->next(r, n->data, failed);
}


/* without repair nobody would complete it, nor say so */

static ngx_uint_t
ngx_http_vibe_global_complete(ngx_http_vibe_global_make_t *g)
{
    return !g->vmcf->repair
           || ngx_http_vibe_zone_get(g->vmcf->zone, NGX_HTTP_VIBE_COMPLETE);
}


static ngx_int_t
ngx_http_vibe_global_building(ngx_http_request_t *r)
{
    return ngx_http_vibe_error_text(r, NGX_HTTP_SERVICE_UNAVAILABLE,
                                    "The global database is being built.");
}


void
ngx_http_vibe_global_gone(ngx_http_vibe_main_conf_t *vmcf)
{
    vmcf->copies = 0;

    ngx_http_vibe_zone_set(vmcf->zone, NGX_HTTP_VIBE_COMPLETE, 0);
}


void
ngx_http_vibe_global_seen(ngx_http_vibe_main_conf_t *vmcf,
    ngx_http_vibe_json_t *info)
{
    if (vmcf->copies && ngx_http_vibe_global_born(info) != vmcf->born) {
        ngx_http_vibe_global_gone(vmcf);
    }
}


/* CouchDB tells when a database was made */

static uint32_t
ngx_http_vibe_global_born(ngx_http_vibe_json_t *info)
{
    ngx_http_vibe_json_t  *born;

    born = ngx_http_vibe_json_get(info, "instance_start_time");

    return born ? ngx_crc32_short(born->raw.data, born->raw.len) : 0;
}


ngx_int_t
ngx_http_vibe_global_make(ngx_http_vibe_global_wait_t *wait)
{
    ngx_http_vibe_global_make_t *g = &ngx_http_vibe_global_making;

    if (g->vmcf->copies) {
        return NGX_OK;
    }

    if (g->ask.pool == NULL) {

        if (ngx_http_vibe_ask_init(&g->ask, g->vmcf->zone, g) != NGX_OK) {
            return NGX_ERROR;
        }

        g->ask.waited = 1;
        g->copies = 1;
        g->index = 0;
        g->tries = 0;
        g->made = 0;

        ngx_queue_insert_tail(&g->waiting, &wait->queue);

        ngx_http_vibe_global_send(g, NGX_HTTP_GET, "", NULL,
                                  ngx_http_vibe_global_info);

        return NGX_AGAIN;
    }

    ngx_queue_insert_tail(&g->waiting, &wait->queue);

    return NGX_AGAIN;
}


static void
ngx_http_vibe_global_send(ngx_http_vibe_global_make_t *g, ngx_uint_t method,
    const char *suffix, ngx_http_vibe_json_out_t *out,
    ngx_http_vibe_ask_pt handler)
{
    ngx_http_vibe_ask(&g->ask, method, &ngx_http_vibe_global, suffix, out,
                      handler);
}


static void
ngx_http_vibe_global_end(ngx_http_vibe_global_make_t *g,
    ngx_http_vibe_call_t *failed)
{
    ngx_queue_t                   waiting, *q;
    ngx_http_vibe_ask_t           ask;
    ngx_http_vibe_global_wait_t  *wait;

    /* one of those who wait may begin the next time */

    ask = g->ask;
    g->ask.pool = NULL;

    if (failed == NULL) {
        g->vmcf->copies = g->copies;
        g->looked = ngx_current_msec;
    }

    /* who begins to wait from here on waits for the next time */

    q = ngx_queue_head(&g->waiting);
    ngx_queue_split(&g->waiting, q, &waiting);

    while (!ngx_queue_empty(&waiting)) {
        q = ngx_queue_head(&waiting);
        wait = ngx_queue_data(q, ngx_http_vibe_global_wait_t, queue);

        ngx_queue_remove(q);
        wait->handler(wait->data, failed);
    }

    ngx_http_vibe_ask_end(&ask);
}


static void
ngx_http_vibe_global_info(ngx_http_vibe_ask_t *ask,
    ngx_http_vibe_call_t *call)
{
    ngx_http_vibe_global_make_t *g = ask->data;

    ngx_http_vibe_json_t  *root, *n;

    if (ngx_http_vibe_no_database(call) && !g->made) {
        ngx_http_vibe_global_send(g, NGX_HTTP_PUT, "", NULL,
                                  ngx_http_vibe_global_created);
        return;
    }

    if (call->status != NGX_HTTP_OK
        || ngx_http_vibe_scan_answer(g->ask.pool, call, 2, &root) != NGX_OK)
    {
        if (call->status == NGX_HTTP_OK) {
            call->status = NGX_HTTP_BAD_GATEWAY;
        }

        ngx_http_vibe_global_end(g, call);
        return;
    }

    g->vmcf->born = ngx_http_vibe_global_born(root);

    /* "cluster":{"n":3}: the copies a write must reach to be seen by all */

    n = ngx_http_vibe_json_get(ngx_http_vibe_json_get(root, "cluster"), "n");

    if (n == NULL
        || ngx_http_vibe_json_uint(n, 100, &g->copies) != NGX_OK
        || g->copies == 0)
    {
        g->copies = 1;
    }

    ngx_http_vibe_global_next_index(g);
}


static void
ngx_http_vibe_global_created(ngx_http_vibe_ask_t *ask,
    ngx_http_vibe_call_t *call)
{
    ngx_http_vibe_global_make_t *g = ask->data;

    ngx_http_vibe_json_out_t  out;

    g->made = 1;

    switch (call->status) {

    case NGX_HTTP_CREATED:
    case NGX_HTTP_ACCEPTED:
        ngx_http_vibe_json_out_init(&out, g->ask.pool);
        ngx_http_vibe_database_put_security(&out);

        ngx_http_vibe_global_send(g, NGX_HTTP_PUT, "/_security", &out,
                                  ngx_http_vibe_global_closed);
        return;

    case NGX_HTTP_PRECONDITION_FAILED:
        ngx_http_vibe_global_send(g, NGX_HTTP_GET, "", NULL,
                                  ngx_http_vibe_global_info);
        return;

    default:
        ngx_http_vibe_global_end(g, call);
    }
}


static void
ngx_http_vibe_global_closed(ngx_http_vibe_ask_t *ask,
    ngx_http_vibe_call_t *call)
{
    ngx_http_vibe_global_make_t *g = ask->data;

    if (call->status != NGX_HTTP_OK) {
        ngx_http_vibe_global_end(g, call);
        return;
    }

    ngx_http_vibe_global_send(g, NGX_HTTP_GET, "", NULL,
                              ngx_http_vibe_global_info);
}


static void
ngx_http_vibe_global_next_index(ngx_http_vibe_global_make_t *g)
{
    ngx_http_vibe_index_t     *index;
    ngx_http_vibe_json_out_t   out;

    if (g->index == g->vmcf->indexes.nelts) {

        if (!g->vmcf->repair) {
            ngx_http_vibe_global_end(g, NULL);
            return;
        }

        ngx_http_vibe_global_send(g, NGX_HTTP_GET, NGX_HTTP_VIBE_MARK, NULL,
                                  ngx_http_vibe_global_mark);
        return;
    }

    index = g->vmcf->indexes.elts;
    index += g->index;

    if (g->made) {
        index->ready = 0;
    }

    ngx_http_vibe_json_out_init(&out, g->ask.pool);
    ngx_http_vibe_index_put(&out, &index->name, &index->fields);

    ngx_http_vibe_global_send(g, NGX_HTTP_POST, "/_index", &out,
                              ngx_http_vibe_global_indexed);
}


static void
ngx_http_vibe_global_indexed(ngx_http_vibe_ask_t *ask,
    ngx_http_vibe_call_t *call)
{
    ngx_http_vibe_global_make_t *g = ask->data;

    if (call->status == NGX_HTTP_OK || call->status == NGX_HTTP_CREATED) {
        g->index++;
        g->tries = 0;
        ngx_http_vibe_global_next_index(g);
        return;
    }

    if (ngx_http_vibe_index_raced(call->status)
        && ++g->tries < NGX_HTTP_VIBE_INDEX_TRIES)
    {
        ngx_http_vibe_global_next_index(g);
        return;
    }

    ngx_http_vibe_global_end(g, call);
}


/* by its id checkpoints are valid; one without a mark is new */

static void
ngx_http_vibe_global_mark(ngx_http_vibe_ask_t *ask,
    ngx_http_vibe_call_t *call)
{
    ngx_http_vibe_global_make_t *g = ask->data;

    ngx_http_vibe_json_t  *root, *id;

    if (call->status == NGX_HTTP_NOT_FOUND
        && !ngx_http_vibe_no_database(call))
    {
        ngx_http_vibe_global_new_mark(g, call);
        return;
    }

    if (call->status != NGX_HTTP_OK
        || ngx_http_vibe_scan_answer(g->ask.pool, call, 1, &root) != NGX_OK)
    {
        ngx_http_vibe_global_end(g, call);
        return;
    }

    id = ngx_http_vibe_json_get(root, "id");

    if (id == NULL
        || id->type != NGX_HTTP_VIBE_JSON_STRING
        || id->string.len != NGX_HTTP_VIBE_GLOBAL_ID)
    {
        ngx_http_vibe_global_new_mark(g, call);
        return;
    }

    ngx_memcpy(g->vmcf->global_id, id->string.data, NGX_HTTP_VIBE_GLOBAL_ID);

    ngx_http_vibe_global_send(g, NGX_HTTP_GET, NGX_HTTP_VIBE_MARK_COMPLETE,
                              NULL, ngx_http_vibe_global_told);
}


static void
ngx_http_vibe_global_told(ngx_http_vibe_ask_t *ask, ngx_http_vibe_call_t *call)
{
    ngx_http_vibe_global_make_t *g = ask->data;

    ngx_str_t              ours;
    ngx_http_vibe_json_t  *id;

    id = NULL;

    if (call->status == NGX_HTTP_OK) {
        id = ngx_http_vibe_ask_member(ask, call, "id");
    }

    if ((call->status != NGX_HTTP_OK && call->status != NGX_HTTP_NOT_FOUND)
        || ngx_http_vibe_no_database(call))
    {
        ngx_http_vibe_global_end(g, call);
        return;
    }

    ours.data = g->vmcf->global_id;
    ours.len = NGX_HTTP_VIBE_GLOBAL_ID;

    ngx_http_vibe_zone_set(g->vmcf->zone, NGX_HTTP_VIBE_COMPLETE,
                           id != NULL
                           && ngx_http_vibe_same(&id->string, &ours));

    ngx_http_vibe_global_end(g, NULL);
}


static void
ngx_http_vibe_global_new_mark(ngx_http_vibe_global_make_t *g,
    ngx_http_vibe_call_t *call)
{
    u_char                    random[NGX_HTTP_VIBE_GLOBAL_ID / 2];
    u_char                    hex[NGX_HTTP_VIBE_GLOBAL_ID];
    ngx_str_t                 id;
    ngx_http_vibe_json_out_t  out;

    ngx_http_vibe_zone_forget_all(g->vmcf->zone);

    if (ngx_http_vibe_random(random, sizeof(random)) != NGX_OK) {
        call->status = NGX_HTTP_SERVICE_UNAVAILABLE;
        ngx_http_vibe_global_end(g, call);
        return;
    }

    id.data = hex;
    id.len = NGX_HTTP_VIBE_GLOBAL_ID;

    ngx_hex_dump(id.data, random, sizeof(random));

    ngx_http_vibe_json_out_init(&out, g->ask.pool);
    ngx_http_vibe_global_put_mark(&out, &id);

    ngx_http_vibe_global_send(g, NGX_HTTP_PUT, NGX_HTTP_VIBE_MARK, &out,
                              ngx_http_vibe_global_mark_put);
}


void
ngx_http_vibe_global_put_mark(ngx_http_vibe_json_out_t *out, ngx_str_t *id)
{
    ngx_http_vibe_json_put_text(out, "{\"vibe_v\":");
    ngx_http_vibe_json_put_uint(out, NGX_HTTP_VIBE_FORMAT);
    ngx_http_vibe_json_put_text(out, ",\"id\":");
    ngx_http_vibe_json_put_string(out, id);
    ngx_http_vibe_json_put_text(out, "}");
}


/* of two who write one at once the later has it: look which */

static void
ngx_http_vibe_global_mark_put(ngx_http_vibe_ask_t *ask,
    ngx_http_vibe_call_t *call)
{
    ngx_http_vibe_global_make_t *g = ask->data;

    if ((call->status != NGX_HTTP_CREATED
         && call->status != NGX_HTTP_ACCEPTED
         && call->status != NGX_HTTP_CONFLICT)
        || ++g->tries > NGX_HTTP_VIBE_INDEX_TRIES)
    {
        ngx_http_vibe_global_end(g, call);
        return;
    }

    ngx_http_vibe_global_send(g, NGX_HTTP_GET, NGX_HTTP_VIBE_MARK, NULL,
                              ngx_http_vibe_global_mark);
}
