
#include "ngx_http_vibe_status.h"
#include "ngx_http_vibe_answer.h"
#include "ngx_http_vibe_status_feeds.h"
#include "ngx_http_vibe_zone.h"


typedef enum {
    NGX_HTTP_VIBE_STATUS_COUNTER = 0,
    NGX_HTTP_VIBE_STATUS_GAUGE,
    NGX_HTTP_VIBE_STATUS_FLAG,       /* true or false; 1 or 0 */
    NGX_HTTP_VIBE_STATUS_AGE,        /* seconds since the time it holds */
    NGX_HTTP_VIBE_STATUS_MEAN,       /* documents in a batch */
    NGX_HTTP_VIBE_STATUS_HOST,       /* of the lease */
    NGX_HTTP_VIBE_STATUS_WORKER,
    NGX_HTTP_VIBE_STATUS_LEADING
} ngx_http_vibe_status_type_e;


typedef struct {
    const char                   *object;    /* of the JSON; "": outermost */
    const char                   *member;    /* NULL: the table's end */

    const char                   *metric;    /* NULL: not for Prometheus */
    const char                   *label;     /* NULL: none */
    const char                   *help;

    ngx_http_vibe_status_type_e   type;
    ngx_http_vibe_counter_e       counter;
} ngx_http_vibe_status_t;


static ngx_int_t ngx_http_vibe_status_ready(ngx_http_request_t *r,
    ngx_http_vibe_zone_t *zone);
static void ngx_http_vibe_status_json(ngx_http_vibe_zone_t *zone,
    ngx_http_vibe_json_out_t *out);
static void ngx_http_vibe_status_json_value(ngx_http_vibe_zone_t *zone,
    ngx_http_vibe_leader_t *leader, ngx_http_vibe_status_t *s,
    ngx_http_vibe_json_out_t *out);
static void ngx_http_vibe_status_json_host(ngx_http_vibe_leader_t *leader,
    ngx_http_vibe_json_out_t *out);
static void ngx_http_vibe_status_prometheus(ngx_http_vibe_zone_t *zone,
    ngx_http_vibe_json_out_t *out);
static void ngx_http_vibe_status_family(ngx_http_vibe_status_t *s,
    ngx_http_vibe_json_out_t *out);
static ngx_uint_t ngx_http_vibe_status_value(ngx_http_vibe_zone_t *zone,
    ngx_http_vibe_leader_t *leader, ngx_http_vibe_status_t *s);
static void ngx_http_vibe_status_put(ngx_http_vibe_json_out_t *out,
    const char *text);
static ngx_int_t ngx_http_vibe_status_text(ngx_http_request_t *r,
    ngx_http_vibe_json_out_t *out);
static ngx_uint_t ngx_http_vibe_status_asks_ready(ngx_http_request_t *r);


/*
 * Both formats are made of it.  What stands in one object follows one
 * another, and so does what differs by a label only.
 */

static ngx_http_vibe_status_t  ngx_http_vibe_status_table[] = {

    { "writes", "done", "vibe_writes_total", "result=\"done\"",
      "Documents that clients wrote, by what became of them.",
      NGX_HTTP_VIBE_STATUS_COUNTER, NGX_HTTP_VIBE_WRITES },

    { "writes", "refused", "vibe_writes_total", "result=\"refused\"", NULL,
      NGX_HTTP_VIBE_STATUS_COUNTER, NGX_HTTP_VIBE_WRITES_REFUSED },

    { "mirrors", "done", "vibe_mirrors_total", "result=\"done\"",
      "Documents whose copy was brought up to date, or left to repair.",
      NGX_HTTP_VIBE_STATUS_COUNTER, NGX_HTTP_VIBE_MIRRORS_DONE },

    { "mirrors", "pending", "vibe_mirrors_total", "result=\"pending\"", NULL,
      NGX_HTTP_VIBE_STATUS_COUNTER, NGX_HTTP_VIBE_MIRRORS_PENDING },

    { "mirrors", "waiting", "vibe_mirrors_waiting", NULL,
      "Mirrors that clients wait for now.",
      NGX_HTTP_VIBE_STATUS_GAUGE, NGX_HTTP_VIBE_WAITING },

    { "batches", "count", "vibe_batches_total", NULL,
      "Requests that wrote documents to global.",
      NGX_HTTP_VIBE_STATUS_COUNTER, NGX_HTTP_VIBE_BATCHES },

    { "batches", "docs", "vibe_batch_docs_total", NULL,
      "Documents in those requests.",
      NGX_HTTP_VIBE_STATUS_COUNTER, NGX_HTTP_VIBE_BATCH_DOCS },

    { "batches", "max", "vibe_batch_docs_max", NULL,
      "Documents in the largest of those requests.",
      NGX_HTTP_VIBE_STATUS_GAUGE, NGX_HTTP_VIBE_BATCH_MAX },

    { "batches", "mean", NULL, NULL, NULL,
      NGX_HTTP_VIBE_STATUS_MEAN, NGX_HTTP_VIBE_BATCH_DOCS },

    { "repair", "lag_changes", "vibe_repair_lag_changes", NULL,
      "Changes of users' databases that repair has not looked at yet.",
      NGX_HTTP_VIBE_STATUS_GAUGE, NGX_HTTP_VIBE_LAG_CHANGES },

    { "repair", "lag_seconds", "vibe_repair_lag_seconds", NULL,
      "Age of the oldest of those changes.",
      NGX_HTTP_VIBE_STATUS_AGE, NGX_HTTP_VIBE_LAG_SINCE },

    { "repair", "databases", "vibe_repair_databases", NULL,
      "Databases of users, when last counted.",
      NGX_HTTP_VIBE_STATUS_GAUGE, NGX_HTTP_VIBE_DATABASES },

    { "repair", "databases_done", "vibe_repair_databases_done", NULL,
      "Databases that the pass of now has looked at.",
      NGX_HTTP_VIBE_STATUS_GAUGE, NGX_HTTP_VIBE_DATABASES_DONE },

    { "repair", "databases_due", "vibe_repair_databases_due", NULL,
      "Databases that have changed and were not looked at yet.",
      NGX_HTTP_VIBE_STATUS_GAUGE, NGX_HTTP_VIBE_DATABASES_DUE },

    { "repair", "unowned", "vibe_repair_databases_unowned", NULL,
      "Databases without a known owner, which are not mirrored.",
      NGX_HTTP_VIBE_STATUS_GAUGE, NGX_HTTP_VIBE_DATABASES_UNOWNED },

    { "repair", "checked", "vibe_repair_checked_total", NULL,
      "Documents that repair has looked at.",
      NGX_HTTP_VIBE_STATUS_COUNTER, NGX_HTTP_VIBE_REPAIR_CHECKED },

    { "repair", "mended", "vibe_repair_mended_total", NULL,
      "Documents of global that repair has set right.",
      NGX_HTTP_VIBE_STATUS_COUNTER, NGX_HTTP_VIBE_REPAIR_MENDED },

    { "repair", "foreign", "vibe_repair_foreign_total", NULL,
      "Documents of global that were copies of nothing, and removed.",
      NGX_HTTP_VIBE_STATUS_COUNTER, NGX_HTTP_VIBE_REPAIR_FOREIGN },

    { "repair", "sweeps", "vibe_repair_sweeps_total", NULL,
      "Passes over everything that have ended.",
      NGX_HTTP_VIBE_STATUS_COUNTER, NGX_HTTP_VIBE_REPAIR_SWEEPS },

    { "repair", "failed", "vibe_repair_failed_total", NULL,
      "Steps of repair that CouchDB made fail, and that are tried again.",
      NGX_HTTP_VIBE_STATUS_COUNTER, NGX_HTTP_VIBE_REPAIR_FAILED },

    { "repair", "db_updates", "vibe_repair_db_updates", NULL,
      "1 if CouchDB tells which databases change, 0 if they are scanned.",
      NGX_HTTP_VIBE_STATUS_FLAG, NGX_HTTP_VIBE_DB_UPDATES },

    { "global", "complete", "vibe_global_complete", NULL,
      "1 if global lacks nothing older than the lag, 0 while it is built.",
      NGX_HTTP_VIBE_STATUS_FLAG, NGX_HTTP_VIBE_COMPLETE },

    { "lease", "host", NULL, NULL, NULL, NGX_HTTP_VIBE_STATUS_HOST, 0 },

    { "lease", "worker", NULL, NULL, NULL, NGX_HTTP_VIBE_STATUS_WORKER, 0 },

    { "lease", "leading", "vibe_lease_leading", NULL,
      "1 if this host does the background work.",
      NGX_HTTP_VIBE_STATUS_LEADING, 0 },

    { "lease", "taken", "vibe_lease_taken_total", NULL,
      "Times that a worker of this host took the background work over.",
      NGX_HTTP_VIBE_STATUS_COUNTER, NGX_HTTP_VIBE_LEASES },

    { "couchdb", "up", "vibe_couchdb_up", NULL,
      "1 if the background work reached CouchDB when it last asked.",
      NGX_HTTP_VIBE_STATUS_FLAG, NGX_HTTP_VIBE_COUCH_UP },

    { "couchdb", "requests", "vibe_couchdb_requests_total", NULL,
      "Requests to CouchDB that have ended.",
      NGX_HTTP_VIBE_STATUS_COUNTER, NGX_HTTP_VIBE_COUCH_REQUESTS },

    { "couchdb", "unreached", "vibe_couchdb_errors_total",
      "kind=\"unreached\"", "Those of them that failed, by how.",
      NGX_HTTP_VIBE_STATUS_COUNTER, NGX_HTTP_VIBE_COUCH_UNREACHED },

    { "couchdb", "timeout", "vibe_couchdb_errors_total",
      "kind=\"timeout\"", NULL,
      NGX_HTTP_VIBE_STATUS_COUNTER, NGX_HTTP_VIBE_COUCH_TIMEOUT },

    { "couchdb", "broken", "vibe_couchdb_errors_total",
      "kind=\"broken\"", NULL,
      NGX_HTTP_VIBE_STATUS_COUNTER, NGX_HTTP_VIBE_COUCH_BROKEN },

    { "couchdb", "refused", "vibe_couchdb_errors_total",
      "kind=\"refused\"", NULL,
      NGX_HTTP_VIBE_STATUS_COUNTER, NGX_HTTP_VIBE_COUCH_REFUSED },

    { "couchdb", "failed", "vibe_couchdb_errors_total",
      "kind=\"failed\"", NULL,
      NGX_HTTP_VIBE_STATUS_COUNTER, NGX_HTTP_VIBE_COUCH_FAILED },

    { "", "unowned_docs", "vibe_unowned_docs_total", NULL,
      "Documents not mirrored, as nobody is known to own their database.",
      NGX_HTTP_VIBE_STATUS_COUNTER, NGX_HTTP_VIBE_DOCS_UNOWNED },

    { "", "uncollected_docs", "vibe_uncollected_docs_total", NULL,
      "Documents not mirrored, as they belong to no collection.",
      NGX_HTTP_VIBE_STATUS_COUNTER, NGX_HTTP_VIBE_DOCS_UNCOLLECTED },

    { NULL, NULL, NULL, NULL, NULL, 0, 0 }
};


ngx_int_t
ngx_http_vibe_status_handler(ngx_http_request_t *r)
{
    ngx_str_t                   format;
    ngx_http_vibe_ctx_t        *ctx;
    ngx_http_vibe_json_out_t    out;
    ngx_http_vibe_main_conf_t  *vmcf;

    static ngx_str_t  json = ngx_string("json");
    static ngx_str_t  prometheus = ngx_string("prometheus");
    static ngx_str_t  no_store = ngx_string("no-store");

    /* what the answers need */

    ctx = ngx_pcalloc(r->pool, sizeof(ngx_http_vibe_ctx_t));
    if (ctx == NULL) {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    ngx_http_set_ctx(r, ctx, ngx_http_vibe_module);

    if (ngx_http_vibe_add_header(r, "Cache-Control", &no_store) != NGX_OK) {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    if (!(r->method & (NGX_HTTP_GET|NGX_HTTP_HEAD))) {
        return ngx_http_vibe_not_allowed(r, "GET, HEAD");
    }

    vmcf = ngx_http_get_module_main_conf(r, ngx_http_vibe_module);

    if (ngx_http_vibe_status_asks_ready(r)) {
        return ngx_http_vibe_status_ready(r, vmcf->zone);
    }

    if (ngx_http_vibe_arg(r, "format", &format) != NGX_OK) {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    ngx_http_vibe_json_out_init(&out, r->pool);

    if (ngx_http_vibe_same(&format, &prometheus)) {
        ngx_http_vibe_status_prometheus(vmcf->zone, &out);
        return ngx_http_vibe_status_text(r, &out);
    }

    if (format.len && !ngx_http_vibe_same(&format, &json)) {
        return ngx_http_vibe_error_text(r, NGX_HTTP_BAD_REQUEST,
                                "The format can be json or prometheus.");
    }

    ngx_http_vibe_status_json(vmcf->zone, &out);

    return ngx_http_vibe_answer(r, NGX_HTTP_OK, &out);
}


/* an argument "ready", with a value or, what ngx_http_arg() misses, without */

static ngx_uint_t
ngx_http_vibe_status_asks_ready(ngx_http_request_t *r)
{
    u_char  *p, *last, *end;
    size_t   len;

    static const size_t  ready = sizeof("ready") - 1;

    last = r->args.data + r->args.len;

    for (p = r->args.data; p < last; p = end + 1) {

        end = ngx_strlchr(p, last, '&');
        if (end == NULL) {
            end = last;
        }

        len = end - p;

        if (len >= ready
            && ngx_strncmp(p, "ready", ready) == 0
            && (len == ready || p[ready] == '='))
        {
            return 1;
        }
    }

    return 0;
}


static ngx_int_t
ngx_http_vibe_status_ready(ngx_http_request_t *r, ngx_http_vibe_zone_t *zone)
{
    const char                *reason;
    ngx_http_vibe_json_out_t   out;

    static ngx_str_t  seconds = ngx_string("2");

    reason = NULL;

    if (!ngx_http_vibe_zone_get(zone, NGX_HTTP_VIBE_COUCH_UP)) {
        reason = "The database cannot be reached.";

    } else if (!ngx_http_vibe_zone_get(zone, NGX_HTTP_VIBE_COMPLETE)) {
        reason = "What others may read is still being gathered.";
    }

    ngx_http_vibe_json_out_init(&out, r->pool);

    if (reason == NULL) {
        ngx_http_vibe_json_put_text(&out, "{\"ready\":true}\n");
        return ngx_http_vibe_answer(r, NGX_HTTP_OK, &out);
    }

    if (ngx_http_vibe_add_header(r, "Retry-After", &seconds) != NGX_OK) {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    ngx_http_vibe_json_put_text(&out, "{\"ready\":false,\"reason\":\"");
    ngx_http_vibe_status_put(&out, reason);
    ngx_http_vibe_json_put_text(&out, "\"}\n");

    return ngx_http_vibe_answer(r, NGX_HTTP_SERVICE_UNAVAILABLE, &out);
}


static void
ngx_http_vibe_status_json(ngx_http_vibe_zone_t *zone,
    ngx_http_vibe_json_out_t *out)
{
    const char              *object;
    ngx_http_vibe_leader_t   leader;
    ngx_http_vibe_status_t  *s;

    ngx_http_vibe_zone_leader(zone, &leader);

    object = "";

    ngx_http_vibe_json_put_text(out, "{");

    for (s = ngx_http_vibe_status_table; s->member; s++) {

        if (ngx_strcmp(s->object, object) != 0) {

            if (*object) {
                ngx_http_vibe_json_put_text(out, "}");
            }

            if (s != ngx_http_vibe_status_table) {
                ngx_http_vibe_json_put_text(out, ",");
            }

            if (*s->object) {
                ngx_http_vibe_json_put_text(out, "\"");
                ngx_http_vibe_status_put(out, s->object);
                ngx_http_vibe_json_put_text(out, "\":{");
            }

            object = s->object;

        } else if (s != ngx_http_vibe_status_table) {
            ngx_http_vibe_json_put_text(out, ",");
        }

        ngx_http_vibe_json_put_text(out, "\"");
        ngx_http_vibe_status_put(out, s->member);
        ngx_http_vibe_json_put_text(out, "\":");

        ngx_http_vibe_status_json_value(zone, &leader, s, out);
    }

    if (*object) {
        ngx_http_vibe_json_put_text(out, "}");
    }

    ngx_http_vibe_json_put_text(out, ",");
    ngx_http_vibe_status_feeds_json(zone, out);
    ngx_http_vibe_json_put_text(out, "}\n");
}


static void
ngx_http_vibe_status_json_value(ngx_http_vibe_zone_t *zone,
    ngx_http_vibe_leader_t *leader, ngx_http_vibe_status_t *s,
    ngx_http_vibe_json_out_t *out)
{
    u_char      buf[NGX_INT64_LEN + sizeof(".00")], *p;
    ngx_uint_t  n, batches;

    n = ngx_http_vibe_status_value(zone, leader, s);

    switch (s->type) {

    case NGX_HTTP_VIBE_STATUS_FLAG:
    case NGX_HTTP_VIBE_STATUS_LEADING:
        ngx_http_vibe_status_put(out, n ? "true" : "false");
        return;

    case NGX_HTTP_VIBE_STATUS_MEAN:
        batches = ngx_http_vibe_zone_get(zone, NGX_HTTP_VIBE_BATCHES);

        p = ngx_sprintf(buf, "%.2f", batches ? (double) n / batches : 0.0);
        ngx_http_vibe_json_put(out, buf, p - buf);
        return;

    case NGX_HTTP_VIBE_STATUS_HOST:
        ngx_http_vibe_status_json_host(leader, out);
        return;

    case NGX_HTTP_VIBE_STATUS_WORKER:
        if (n == 0) {
            ngx_http_vibe_json_put_text(out, "null");
            return;
        }

        /* fall through */

    default:
        ngx_http_vibe_json_put_uint(out, n);
    }
}


/* it comes from a document, and its end may have been cut off */

static void
ngx_http_vibe_status_json_host(ngx_http_vibe_leader_t *leader,
    ngx_http_vibe_json_out_t *out)
{
    ngx_str_t  host;

    host.data = leader->host;
    host.len = ngx_strlen(leader->host);

    if (host.len == 0 || !ngx_http_vibe_json_is_utf8(&host)) {
        ngx_http_vibe_json_put_text(out, "null");
        return;
    }

    ngx_http_vibe_json_put_string(out, &host);
}


static void
ngx_http_vibe_status_prometheus(ngx_http_vibe_zone_t *zone,
    ngx_http_vibe_json_out_t *out)
{
    const char              *metric;
    ngx_http_vibe_leader_t   leader;
    ngx_http_vibe_status_t  *s;

    ngx_http_vibe_zone_leader(zone, &leader);

    metric = "";

    for (s = ngx_http_vibe_status_table; s->member; s++) {

        if (s->metric == NULL) {
            continue;
        }

        if (ngx_strcmp(s->metric, metric) != 0) {
            metric = s->metric;
            ngx_http_vibe_status_family(s, out);
        }

        ngx_http_vibe_status_put(out, s->metric);

        if (s->label) {
            ngx_http_vibe_json_put_text(out, "{");
            ngx_http_vibe_status_put(out, s->label);
            ngx_http_vibe_json_put_text(out, "}");
        }

        ngx_http_vibe_json_put_text(out, " ");
        ngx_http_vibe_json_put_uint(out,
                              ngx_http_vibe_status_value(zone, &leader, s));
        ngx_http_vibe_json_put_text(out, "\n");
    }

    ngx_http_vibe_status_feeds_prometheus(zone, out);
}


static void
ngx_http_vibe_status_family(ngx_http_vibe_status_t *s,
    ngx_http_vibe_json_out_t *out)
{
    ngx_http_vibe_json_put_text(out, "# HELP ");
    ngx_http_vibe_status_put(out, s->metric);
    ngx_http_vibe_json_put_text(out, " ");
    ngx_http_vibe_status_put(out, s->help);

    ngx_http_vibe_json_put_text(out, "\n# TYPE ");
    ngx_http_vibe_status_put(out, s->metric);
    ngx_http_vibe_status_put(out, (s->type == NGX_HTTP_VIBE_STATUS_COUNTER)
                                  ? " counter\n" : " gauge\n");
}


static ngx_uint_t
ngx_http_vibe_status_value(ngx_http_vibe_zone_t *zone,
    ngx_http_vibe_leader_t *leader, ngx_http_vibe_status_t *s)
{
    time_t  since;

    switch (s->type) {

    case NGX_HTTP_VIBE_STATUS_HOST:
        return 0;

    case NGX_HTTP_VIBE_STATUS_WORKER:
        return leader->worker;

    case NGX_HTTP_VIBE_STATUS_LEADING:
        return leader->leading;

    case NGX_HTTP_VIBE_STATUS_AGE:
        since = ngx_http_vibe_zone_get(zone, s->counter);

        /* the clock may have been set back */

        return (since && since < ngx_time()) ? ngx_time() - since : 0;

    default:
        return ngx_http_vibe_zone_get(zone, s->counter);
    }
}


static void
ngx_http_vibe_status_put(ngx_http_vibe_json_out_t *out, const char *text)
{
    ngx_http_vibe_json_put(out, (u_char *) text, ngx_strlen(text));
}


/* as ngx_http_vibe_answer(), of another type */

static ngx_int_t
ngx_http_vibe_status_text(ngx_http_request_t *r, ngx_http_vibe_json_out_t *out)
{
    ngx_int_t     rc;
    ngx_chain_t  *cl, *last;

    cl = ngx_http_vibe_json_out_chain(out);
    if (cl == NULL) {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    rc = ngx_http_discard_request_body(r);
    if (rc != NGX_OK) {
        return rc;
    }

    for (last = cl; last->next; last = last->next) { /* void */ }

    last->buf->last_buf = (r == r->main) ? 1 : 0;
    last->buf->last_in_chain = 1;

    r->headers_out.status = NGX_HTTP_OK;
    r->headers_out.content_length_n = out->size;

    ngx_str_set(&r->headers_out.content_type, "text/plain; version=0.0.4");
    r->headers_out.content_type_len = r->headers_out.content_type.len;
    r->headers_out.content_type_lowcase = NULL;

    rc = ngx_http_send_header(r);

    if (rc == NGX_ERROR || rc > NGX_OK || r->header_only) {
        return rc;
    }

    return ngx_http_output_filter(r, cl);
}
