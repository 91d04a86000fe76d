
#include "ngx_http_vibe_database.h"
#include "ngx_http_vibe_answer.h"
#include "ngx_http_vibe_global.h"


typedef struct {
    ngx_str_t                   db;        /* both from ngx_alloc() */
    ngx_str_t                   seq;
    ngx_msec_t                  asked;     /* when "seq" was asked for */
    ngx_msec_t                  asking;    /* when a newer one was */
} ngx_http_vibe_seq_t;


typedef struct {
    ngx_str_t                  *db;
    ngx_msec_t                  asked;
    ngx_http_vibe_sequence_pt   next;
    void                       *data;
} ngx_http_vibe_sequence_t;


static ngx_int_t ngx_http_vibe_sequence_got(ngx_http_request_t *r,
    ngx_http_vibe_call_t *call);
static void ngx_http_vibe_sequence_keep(ngx_http_vibe_seq_t *s,
    ngx_http_vibe_sequence_t *q, ngx_str_t *seq);
static ngx_http_vibe_seq_t *ngx_http_vibe_sequence_entry(ngx_str_t *db);
static ngx_uint_t ngx_http_vibe_sequence_usable(ngx_http_vibe_seq_t *s,
    ngx_str_t *db);


static ngx_http_vibe_seq_t  ngx_http_vibe_seqs[NGX_HTTP_VIBE_CACHE_SIZE];


ngx_int_t
ngx_http_vibe_database_sequence(ngx_http_request_t *r, ngx_str_t *db,
    ngx_http_vibe_sequence_pt next, void *data)
{
    ngx_str_t                  seq;
    ngx_http_vibe_seq_t       *s;
    ngx_http_vibe_sequence_t  *q;

    s = ngx_http_vibe_sequence_entry(db);

    if (ngx_http_vibe_sequence_usable(s, db)) {

        seq.len = s->seq.len;
        seq.data = ngx_pstrdup(r->pool, &s->seq);
        if (seq.data == NULL) {
            return NGX_ERROR;
        }

        return next(r, data, &seq);
    }

    q = ngx_palloc(r->pool, sizeof(ngx_http_vibe_sequence_t));
    if (q == NULL) {
        return NGX_ERROR;
    }

    q->db = db;
    q->asked = ngx_current_msec;
    q->next = next;
    q->data = data;

    s->asking = ngx_current_msec;

    return ngx_http_vibe_request(r, NGX_HTTP_GET, db, "", NULL,
                                 ngx_http_vibe_sequence_got, q);
}


static ngx_http_vibe_seq_t *
ngx_http_vibe_sequence_entry(ngx_str_t *db)
{
    return &ngx_http_vibe_seqs[ngx_crc32_short(db->data, db->len)
                               % NGX_HTTP_VIBE_CACHE_SIZE];
}


/*
 * In the second half of its time one query asks for the next sequence while
 * the others go on with this one, so that under load nobody waits in a row.
 */

static ngx_uint_t
ngx_http_vibe_sequence_usable(ngx_http_vibe_seq_t *s, ngx_str_t *db)
{
    ngx_msec_t  age;

    if (!ngx_http_vibe_same(&s->db, db)) {
        return 0;
    }

    age = ngx_current_msec - s->asked;

    if (age < NGX_HTTP_VIBE_SEQ_VALID / 2) {
        return 1;
    }

    return age < NGX_HTTP_VIBE_SEQ_VALID
           && ngx_current_msec - s->asking < NGX_HTTP_VIBE_SEQ_VALID / 2;
}


static ngx_int_t
ngx_http_vibe_sequence_got(ngx_http_request_t *r, ngx_http_vibe_call_t *call)
{
    ngx_http_vibe_sequence_t *q = call->data;

    ngx_int_t                   rc;
    ngx_str_t                   none;
    ngx_http_vibe_json_t       *root, *seq;
    ngx_http_vibe_main_conf_t  *vmcf;

    if (ngx_http_vibe_no_database(call)) {
        ngx_str_set(&none, "0");
        return q->next(r, q->data, &none);
    }

    if (call->status != NGX_HTTP_OK) {
        return ngx_http_vibe_couch_failed(r, call);
    }

    rc = ngx_http_vibe_scan_answer(r->pool, call, 1, &root);
    if (rc == NGX_ERROR) {
        return NGX_ERROR;
    }

    seq = (rc == NGX_OK) ? ngx_http_vibe_json_get(root, "update_seq") : NULL;

    if (seq == NULL
        || seq->type != NGX_HTTP_VIBE_JSON_STRING
        || seq->string.len == 0
        || seq->string.len > NGX_HTTP_VIBE_SEQ_MAX)
    {
        return ngx_http_vibe_couch_failed(r, call);
    }

    if (ngx_http_vibe_same(q->db, &ngx_http_vibe_global)) {
        vmcf = ngx_http_get_module_main_conf(r, ngx_http_vibe_module);
        ngx_http_vibe_global_seen(vmcf, root);
    }

    ngx_http_vibe_sequence_keep(ngx_http_vibe_sequence_entry(q->db), q,
                                &seq->string);

    return q->next(r, q->data, &seq->string);
}


static void
ngx_http_vibe_sequence_keep(ngx_http_vibe_seq_t *s,
    ngx_http_vibe_sequence_t *q, ngx_str_t *seq)
{
    u_char  *p;

    /* one block for both; without memory there is no entry */

    p = ngx_alloc(q->db->len + seq->len, ngx_cycle->log);
    if (p == NULL) {
        return;
    }

    if (s->db.data != NULL) {
        ngx_free(s->db.data);
    }

    s->db.data = p;
    s->db.len = q->db->len;
    p = ngx_cpymem(p, q->db->data, q->db->len);

    s->seq.data = p;
    s->seq.len = seq->len;
    ngx_memcpy(p, seq->data, seq->len);

    s->asked = q->asked;
}
