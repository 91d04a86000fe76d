
#include "ngx_http_vibe_query_feed.h"
#include "ngx_http_vibe_answer.h"
#include "ngx_http_vibe_feeds.h"
#include "ngx_http_vibe_index.h"


static ngx_int_t ngx_http_vibe_query_feed_known(ngx_http_request_t *r,
    void *data, ngx_http_vibe_feed_now_t *now);
static ngx_int_t ngx_http_vibe_query_feed_check(ngx_http_request_t *r,
    ngx_http_vibe_query_t *q, ngx_str_t *reason);
static ngx_int_t ngx_http_vibe_query_feed_check_sort(ngx_http_request_t *r,
    ngx_http_vibe_query_t *q, ngx_str_t *reason);
static ngx_int_t ngx_http_vibe_query_feed_verified(ngx_http_request_t *r,
    void *data, ngx_http_vibe_feed_now_t *now);


ngx_int_t
ngx_http_vibe_query_registered(ngx_http_request_t *r,
    ngx_http_vibe_query_t *q)
{
    ngx_http_vibe_feed_t      *feed;
    ngx_http_vibe_loc_conf_t  *vlcf;

    vlcf = ngx_http_get_module_loc_conf(r, ngx_http_vibe_module);

    if (vlcf->global_reads == NGX_HTTP_VIBE_READS_LIVE) {
        return NGX_OK;
    }

    feed = ngx_http_vibe_registry_find(ngx_http_vibe_feeds(),
                                       &q->ctx->collection);
    if (feed == NULL) {
        return (vlcf->global_reads == NGX_HTTP_VIBE_READS_ANY) ? NGX_OK
                                                               : NGX_DECLINED;
    }

    q->feed = ngx_http_vibe_feed_dup(r->pool, feed);

    return q->feed ? NGX_OK : NGX_ERROR;
}


ngx_int_t
ngx_http_vibe_query_feed(ngx_http_request_t *r, ngx_http_vibe_query_t *q)
{
    return ngx_http_vibe_feed_ask(r, q->feed, 0,
                                  ngx_http_vibe_query_feed_known, q);
}


static ngx_int_t
ngx_http_vibe_query_feed_known(ngx_http_request_t *r, void *data,
    ngx_http_vibe_feed_now_t *now)
{
    ngx_http_vibe_query_t *q = data;

    ngx_int_t                  rc;
    ngx_str_t                  reason;
    ngx_http_vibe_loc_conf_t  *vlcf;

    if (q->reads++ == NGX_HTTP_VIBE_QUERY_FEED_TRIES) {
        return ngx_http_vibe_error_text(r, NGX_HTTP_SERVICE_UNAVAILABLE,
                                        "This feed cannot be read now.");
    }

    q->now = now;
    q->seq = now->pointer.last_seq;

    rc = ngx_http_vibe_query_feed_check(r, q, &reason);

    if (rc == NGX_OK) {
        return ngx_http_vibe_query_feed_find(r, q);
    }

    if (rc == NGX_ERROR) {
        return NGX_ERROR;
    }

    vlcf = ngx_http_get_module_loc_conf(r, ngx_http_vibe_module);

    if (vlcf->global_reads == NGX_HTTP_VIBE_READS_ANY) {
        return ngx_http_vibe_query_live(r, q);
    }

    return ngx_http_vibe_error(r, NGX_HTTP_BAD_REQUEST, &reason);
}


/* NGX_DECLINED with a reason: the feed cannot answer this query */

static ngx_int_t
ngx_http_vibe_query_feed_check(ngx_http_request_t *r,
    ngx_http_vibe_query_t *q, ngx_str_t *reason)
{
    ngx_int_t                 rc;
    ngx_http_vibe_pointer_t  *pointer;

    pointer = &q->now->pointer;

    rc = ngx_http_vibe_find_held(r->pool, &q->find, &pointer->fields,
                                 &pointer->sort, reason);

    if (rc == NGX_OK && q->find.sort != NULL && q->find.sort->nelts) {
        return ngx_http_vibe_query_feed_check_sort(r, q, reason);
    }

    return rc;
}


static ngx_int_t
ngx_http_vibe_query_feed_check_sort(ngx_http_request_t *r,
    ngx_http_vibe_query_t *q, ngx_str_t *reason)
{
    ngx_uint_t                 i, n;
    ngx_array_t               *index;
    ngx_http_vibe_json_out_t   out;

    ngx_http_vibe_json_out_init(&out, r->pool);

    ngx_http_vibe_json_put_text(&out, "This feed cannot be sorted so. By:");

    index = q->now->pointer.indexes.elts;
    n = q->now->pointer.indexes.nelts;

    for (i = 0; i < n; i++) {

        if (ngx_http_vibe_index_same(&index[i], q->find.sort)) {
            return NGX_OK;
        }

        if (index[i].nelts) {
            ngx_http_vibe_query_put_sort(&out, &index[i]);
        }
    }

    if (ngx_http_vibe_json_out_str(&out, reason) != NGX_OK) {
        return NGX_ERROR;
    }

    return NGX_DECLINED;
}


/* rows are public, so no read selector stands before what the caller asks */

ngx_int_t
ngx_http_vibe_query_feed_find(ngx_http_request_t *r, ngx_http_vibe_query_t *q)
{
    ngx_str_t                  index;
    ngx_http_vibe_find_t       find;
    ngx_http_vibe_pointer_t   *pointer;
    ngx_http_vibe_json_out_t   out;

    pointer = &q->now->pointer;

    find = q->find;

    if (find.sort == NULL || find.sort->nelts == 0) {
        find.sort = &pointer->sort;
        find.descending = pointer->descending;
    }

    if (find.fields == NULL || find.fields->nelts == 0) {
        find.fields = &pointer->fields;
    }

    if (ngx_http_vibe_index_name(r->pool, find.sort, &index) != NGX_OK) {
        return NGX_ERROR;
    }

    ngx_http_vibe_json_out_init(&out, r->pool);

    ngx_http_vibe_find_put(&out, &find, &q->ctx->collection, NULL, &index);

    return ngx_http_vibe_request(r, NGX_HTTP_POST, &pointer->db, "/_find",
                                 &out, ngx_http_vibe_query_found, q);
}


ngx_int_t
ngx_http_vibe_query_feed_lost(ngx_http_request_t *r, ngx_http_vibe_query_t *q)
{
    ngx_log_error(NGX_LOG_ERR, r->connection->log, 0,
                  "feed \"%V\": couchdb lacks database \"%V\" or its index",
                  &q->feed->name, &q->now->pointer.db);

    return ngx_http_vibe_feed_ask(r, q->feed, 1,
                                  ngx_http_vibe_query_feed_known, q);
}


/*
 * The pointer's promise is about when the documents were read, which is past:
 * the clock must not be behind that.
 */

ngx_int_t
ngx_http_vibe_query_feed_verify(ngx_http_request_t *r,
    ngx_http_vibe_query_t *q)
{
    ngx_time_update();

    if (ngx_current_msec - q->now->asked < q->now->pointer.grace) {
        return ngx_http_vibe_query_expand(r, q);
    }

    return ngx_http_vibe_feed_ask(r, q->feed, 1,
                                  ngx_http_vibe_query_feed_verified, q);
}


static ngx_int_t
ngx_http_vibe_query_feed_verified(ngx_http_request_t *r, void *data,
    ngx_http_vibe_feed_now_t *now)
{
    ngx_http_vibe_query_t *q = data;

    if (now->pointer.run == q->now->pointer.run
        && ngx_http_vibe_same(&now->pointer.db, &q->now->pointer.db))
    {
        return ngx_http_vibe_query_expand(r, q);
    }

    return ngx_http_vibe_query_feed_known(r, q, now);
}


ngx_int_t
ngx_http_vibe_query_feed_age(ngx_http_request_t *r, ngx_http_vibe_query_t *q)
{
    uint64_t     now, as_of;
    ngx_str_t    age;
    ngx_time_t  *tp;

    tp = ngx_timeofday();

    now = (uint64_t) tp->sec * 1000 + tp->msec;
    as_of = q->now->pointer.as_of;

    age.data = ngx_pnalloc(r->pool, NGX_INT64_LEN);
    if (age.data == NULL) {
        return NGX_ERROR;
    }

    /* the clock of the host that ran it may be ahead */

    age.len = ngx_sprintf(age.data, "%uL",
                          now > as_of ? (now - as_of) / 1000 : (uint64_t) 0)
              - age.data;

    return ngx_http_vibe_add_header(r, "Age", &age);
}


void
ngx_http_vibe_query_feed_put_as_of(ngx_http_vibe_json_out_t *out,
    ngx_http_vibe_query_t *q)
{
    u_char    *p, text[sizeof("1970-09-28T12:00:00.000Z") + NGX_INT64_LEN];
    ngx_tm_t   tm;

    ngx_gmtime((time_t) (q->now->pointer.as_of / 1000), &tm);

    p = ngx_sprintf(text, "%4d-%02d-%02dT%02d:%02d:%02d.%03uLZ",
                    tm.ngx_tm_year, tm.ngx_tm_mon, tm.ngx_tm_mday,
                    tm.ngx_tm_hour, tm.ngx_tm_min, tm.ngx_tm_sec,
                    q->now->pointer.as_of % 1000);

    ngx_http_vibe_json_put_text(out, ",\"as_of\":\"");
    ngx_http_vibe_json_put(out, text, p - text);
    ngx_http_vibe_json_put_text(out, "\"");
}
