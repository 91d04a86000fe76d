
#include "ngx_http_vibe_status_feeds.h"


typedef enum {
    NGX_HTTP_VIBE_STATUS_FEED_COUNTER = 0,   /* ngx_uint_t */
    NGX_HTTP_VIBE_STATUS_FEED_GAUGE,
    NGX_HTTP_VIBE_STATUS_FEED_SPAN,          /* the same, milliseconds */
    NGX_HTTP_VIBE_STATUS_FEED_TIME           /* uint64_t, milliseconds */
} ngx_http_vibe_status_feed_e;


typedef struct {
    const char                   *metric;
    const char                   *help;
    ngx_http_vibe_status_feed_e   type;
    size_t                        offset;
} ngx_http_vibe_status_feed_t;


static ngx_array_t *ngx_http_vibe_status_feeds(ngx_http_vibe_zone_t *zone,
    ngx_http_vibe_json_out_t *out);
static void ngx_http_vibe_status_feed_number(const char *member,
    ngx_uint_t n, ngx_http_vibe_json_out_t *out);
static void ngx_http_vibe_status_feed_flag(const char *member,
    ngx_uint_t flag, ngx_http_vibe_json_out_t *out);
static void ngx_http_vibe_status_feed_time(const char *member, uint64_t msec,
    ngx_http_vibe_json_out_t *out);
static void ngx_http_vibe_status_feed_seconds(uint64_t msec,
    ngx_http_vibe_json_out_t *out);
static void ngx_http_vibe_status_feed_error(u_char *text,
    ngx_http_vibe_json_out_t *out);
static void ngx_http_vibe_status_feed_text(u_char *text, ngx_str_t *str);
static void ngx_http_vibe_status_feed_sample(
    ngx_http_vibe_status_feed_t *family, ngx_http_vibe_zone_feed_t *feed,
    ngx_http_vibe_json_out_t *out);
static void ngx_http_vibe_status_feed_label(u_char *name,
    ngx_http_vibe_json_out_t *out);
static void ngx_http_vibe_status_feed_family(const char *metric,
    const char *help, const char *type, ngx_http_vibe_json_out_t *out);
static void ngx_http_vibe_status_feed_put(const char *text,
    ngx_http_vibe_json_out_t *out);


static ngx_http_vibe_status_feed_t  ngx_http_vibe_status_feed_families[] = {

    { "vibe_feed_rows",
      "Documents that the feed holds.",
      NGX_HTTP_VIBE_STATUS_FEED_GAUGE,
      offsetof(ngx_http_vibe_zone_feed_t, rows) },

    { "vibe_feed_last_run_timestamp_seconds",
      "When the last run that ended began, 0 if none has.",
      NGX_HTTP_VIBE_STATUS_FEED_TIME,
      offsetof(ngx_http_vibe_zone_feed_t, began) },

    { "vibe_feed_duration_seconds",
      "How long that run took.",
      NGX_HTTP_VIBE_STATUS_FEED_SPAN,
      offsetof(ngx_http_vibe_zone_feed_t, took) },

    { "vibe_feed_databases",
      "Databases of users that it asked.",
      NGX_HTTP_VIBE_STATUS_FEED_GAUGE,
      offsetof(ngx_http_vibe_zone_feed_t, databases) },

    { "vibe_feed_changed",
      "Documents of the feed that it wrote or deleted.",
      NGX_HTTP_VIBE_STATUS_FEED_GAUGE,
      offsetof(ngx_http_vibe_zone_feed_t, changed) },

    { "vibe_feed_runs_total",
      "Runs that ended well.",
      NGX_HTTP_VIBE_STATUS_FEED_COUNTER,
      offsetof(ngx_http_vibe_zone_feed_t, runs) },

    { "vibe_feed_failed_total",
      "Runs that failed, and left the feed as it was.",
      NGX_HTTP_VIBE_STATUS_FEED_COUNTER,
      offsetof(ngx_http_vibe_zone_feed_t, failed) },

    { "vibe_feed_next_run_timestamp_seconds",
      "When the next run begins, 0 if that is not known.",
      NGX_HTTP_VIBE_STATUS_FEED_TIME,
      offsetof(ngx_http_vibe_zone_feed_t, next) },

    { NULL, NULL, 0, 0 }
};


void
ngx_http_vibe_status_feeds_json(ngx_http_vibe_zone_t *zone,
    ngx_http_vibe_json_out_t *out)
{
    u_char                      reason[NGX_HTTP_VIBE_ZONE_REASON];
    ngx_uint_t                  i;
    ngx_array_t                *feeds;
    ngx_http_vibe_zone_feed_t  *feed;

    ngx_http_vibe_zone_registry_error(zone, reason);

    ngx_http_vibe_json_put_text(out, "\"registry\":{\"error\":");
    ngx_http_vibe_status_feed_error(reason, out);
    ngx_http_vibe_json_put_text(out, "},\"feeds\":{");

    feeds = ngx_http_vibe_status_feeds(zone, out);
    if (feeds == NULL) {
        return;
    }

    feed = feeds->elts;

    for (i = 0; i < feeds->nelts; i++) {
        if (i) {
            ngx_http_vibe_json_put_text(out, ",");
        }

        ngx_http_vibe_status_feed_json(&feed[i], out);
    }

    ngx_http_vibe_json_put_text(out, "}");
}


static ngx_array_t *
ngx_http_vibe_status_feeds(ngx_http_vibe_zone_t *zone,
    ngx_http_vibe_json_out_t *out)
{
    ngx_array_t  *feeds;

    feeds = ngx_array_create(out->pool, NGX_HTTP_VIBE_ZONE_FEEDS,
                             sizeof(ngx_http_vibe_zone_feed_t));

    if (feeds == NULL || ngx_http_vibe_zone_feeds(zone, feeds) != NGX_OK) {
        out->failed = 1;
        return NULL;
    }

    return feeds;
}


void
ngx_http_vibe_status_feed_json(ngx_http_vibe_zone_feed_t *feed,
    ngx_http_vibe_json_out_t *out)
{
    ngx_str_t  name;

    ngx_http_vibe_status_feed_text(feed->name, &name);

    ngx_http_vibe_json_put_string(out, &name);
    ngx_http_vibe_json_put_text(out, ":{");

    ngx_http_vibe_status_feed_number("rows", feed->rows, out);
    ngx_http_vibe_status_feed_time("last_run", feed->began, out);

    ngx_http_vibe_json_put_text(out, "\"duration\":");
    ngx_http_vibe_status_feed_seconds(feed->took, out);
    ngx_http_vibe_json_put_text(out, ",");

    ngx_http_vibe_status_feed_number("databases", feed->databases, out);
    ngx_http_vibe_status_feed_number("changed", feed->changed, out);
    ngx_http_vibe_status_feed_flag("full", feed->full, out);
    ngx_http_vibe_status_feed_number("runs", feed->runs, out);
    ngx_http_vibe_status_feed_number("failed", feed->failed, out);

    ngx_http_vibe_json_put_text(out, "\"error\":");
    ngx_http_vibe_status_feed_error(feed->error, out);
    ngx_http_vibe_json_put_text(out, ",");

    ngx_http_vibe_status_feed_time("next_run", feed->next, out);

    ngx_http_vibe_json_put_text(out, "\"running\":");
    ngx_http_vibe_status_feed_put(feed->running ? "true}" : "false}", out);
}


static void
ngx_http_vibe_status_feed_number(const char *member, ngx_uint_t n,
    ngx_http_vibe_json_out_t *out)
{
    ngx_http_vibe_json_put_text(out, "\"");
    ngx_http_vibe_status_feed_put(member, out);
    ngx_http_vibe_json_put_text(out, "\":");
    ngx_http_vibe_json_put_uint(out, n);
    ngx_http_vibe_json_put_text(out, ",");
}


static void
ngx_http_vibe_status_feed_flag(const char *member, ngx_uint_t flag,
    ngx_http_vibe_json_out_t *out)
{
    ngx_http_vibe_json_put_text(out, "\"");
    ngx_http_vibe_status_feed_put(member, out);
    ngx_http_vibe_status_feed_put(flag ? "\":true," : "\":false,", out);
}


/* RFC 3339, with milliseconds */

static void
ngx_http_vibe_status_feed_time(const char *member, uint64_t msec,
    ngx_http_vibe_json_out_t *out)
{
    u_char    buf[sizeof("\"1970-09-28T12:00:00.000Z\",") + NGX_INT64_LEN], *p;
    ngx_tm_t  tm;

    ngx_http_vibe_json_put_text(out, "\"");
    ngx_http_vibe_status_feed_put(member, out);
    ngx_http_vibe_json_put_text(out, "\":");

    if (msec == 0) {
        ngx_http_vibe_json_put_text(out, "null,");
        return;
    }

    ngx_gmtime((time_t) (msec / 1000), &tm);

    p = ngx_sprintf(buf, "\"%4d-%02d-%02dT%02d:%02d:%02d.%03uLZ\",",
                    tm.ngx_tm_year, tm.ngx_tm_mon, tm.ngx_tm_mday,
                    tm.ngx_tm_hour, tm.ngx_tm_min, tm.ngx_tm_sec,
                    msec % 1000);

    ngx_http_vibe_json_put(out, buf, p - buf);
}


static void
ngx_http_vibe_status_feed_seconds(uint64_t msec,
    ngx_http_vibe_json_out_t *out)
{
    u_char  buf[NGX_INT64_LEN + sizeof(".000")], *p;

    p = ngx_sprintf(buf, "%uL.%03uL", msec / 1000, msec % 1000);

    ngx_http_vibe_json_put(out, buf, p - buf);
}


static void
ngx_http_vibe_status_feed_error(u_char *text, ngx_http_vibe_json_out_t *out)
{
    ngx_str_t  error;

    if (text[0] == '\0') {
        ngx_http_vibe_json_put_text(out, "null");
        return;
    }

    ngx_http_vibe_status_feed_text(text, &error);
    ngx_http_vibe_json_put_string(out, &error);
}


/* who set it may have cut it anywhere, and JSON must be UTF-8 */

static void
ngx_http_vibe_status_feed_text(u_char *text, ngx_str_t *str)
{
    size_t  i;

    str->data = text;
    str->len = ngx_strlen(text);

    if (ngx_http_vibe_json_is_utf8(str)) {
        return;
    }

    for (i = 0; i < str->len; i++) {
        if (text[i] >= 0x80) {
            text[i] = '?';
        }
    }
}


void
ngx_http_vibe_status_feeds_prometheus(ngx_http_vibe_zone_t *zone,
    ngx_http_vibe_json_out_t *out)
{
    u_char                        reason[NGX_HTTP_VIBE_ZONE_REASON];
    ngx_uint_t                    i;
    ngx_array_t                  *feeds;
    ngx_http_vibe_zone_feed_t    *feed;
    ngx_http_vibe_status_feed_t  *f;

    ngx_http_vibe_zone_registry_error(zone, reason);

    ngx_http_vibe_status_feed_family("vibe_registry_ok",
                          "1 if nothing is wrong with the registry of feeds.",
                          "gauge", out);
    ngx_http_vibe_status_feed_put(reason[0] ? "vibe_registry_ok 0\n"
                                            : "vibe_registry_ok 1\n", out);

    feeds = ngx_http_vibe_status_feeds(zone, out);
    if (feeds == NULL || feeds->nelts == 0) {
        return;
    }

    feed = feeds->elts;

    for (f = ngx_http_vibe_status_feed_families; f->metric; f++) {

        ngx_http_vibe_status_feed_family(f->metric, f->help,
                                (f->type == NGX_HTTP_VIBE_STATUS_FEED_COUNTER)
                                ? "counter" : "gauge", out);

        for (i = 0; i < feeds->nelts; i++) {
            ngx_http_vibe_status_feed_sample(f, &feed[i], out);
        }
    }
}


static void
ngx_http_vibe_status_feed_sample(ngx_http_vibe_status_feed_t *family,
    ngx_http_vibe_zone_feed_t *feed, ngx_http_vibe_json_out_t *out)
{
    u_char  *p;

    p = (u_char *) feed + family->offset;

    ngx_http_vibe_status_feed_put(family->metric, out);
    ngx_http_vibe_json_put_text(out, "{feed=\"");
    ngx_http_vibe_status_feed_label(feed->name, out);
    ngx_http_vibe_json_put_text(out, "\"} ");

    switch (family->type) {

    case NGX_HTTP_VIBE_STATUS_FEED_TIME:
        ngx_http_vibe_status_feed_seconds(*(uint64_t *) p, out);
        break;

    case NGX_HTTP_VIBE_STATUS_FEED_SPAN:
        ngx_http_vibe_status_feed_seconds(*(ngx_uint_t *) p, out);
        break;

    default:
        ngx_http_vibe_json_put_uint(out, *(ngx_uint_t *) p);
    }

    ngx_http_vibe_json_put_text(out, "\n");
}


static void
ngx_http_vibe_status_feed_label(u_char *name, ngx_http_vibe_json_out_t *out)
{
    size_t     i;
    ngx_str_t  str;

    ngx_http_vibe_status_feed_text(name, &str);

    for (i = 0; i < str.len; i++) {

        switch (str.data[i]) {

        case '\n':
            ngx_http_vibe_json_put_text(out, "\\n");
            continue;

        case '\\':
        case '"':
            ngx_http_vibe_json_put_text(out, "\\");
            break;
        }

        ngx_http_vibe_json_put(out, &str.data[i], 1);
    }
}


static void
ngx_http_vibe_status_feed_family(const char *metric, const char *help,
    const char *type, ngx_http_vibe_json_out_t *out)
{
    ngx_http_vibe_json_put_text(out, "# HELP ");
    ngx_http_vibe_status_feed_put(metric, out);
    ngx_http_vibe_json_put_text(out, " ");
    ngx_http_vibe_status_feed_put(help, out);

    ngx_http_vibe_json_put_text(out, "\n# TYPE ");
    ngx_http_vibe_status_feed_put(metric, out);
    ngx_http_vibe_json_put_text(out, " ");
    ngx_http_vibe_status_feed_put(type, out);
    ngx_http_vibe_json_put_text(out, "\n");
}


static void
ngx_http_vibe_status_feed_put(const char *text, ngx_http_vibe_json_out_t *out)
{
    ngx_http_vibe_json_put(out, (u_char *) text, ngx_strlen(text));
}
