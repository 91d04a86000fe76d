
#include "ngx_http_vibe_names.h"


void
ngx_http_vibe_names_init(ngx_http_vibe_names_t *names, ngx_uint_t max)
{
    ngx_rbtree_init(&names->rbtree, &names->sentinel,
                    ngx_str_rbtree_insert_value);
    ngx_queue_init(&names->queue);

    names->n = 0;
    names->max = max;
}


ngx_int_t
ngx_http_vibe_names_add(ngx_http_vibe_names_t *names, ngx_str_t *str)
{
    ngx_http_vibe_name_t  *name;

    if (ngx_http_vibe_names_has(names, str)) {
        return NGX_OK;
    }

    if (names->n >= names->max) {
        return NGX_DECLINED;
    }

    name = ngx_alloc(sizeof(ngx_http_vibe_name_t) + str->len,
                     ngx_cycle->log);
    if (name == NULL) {
        return NGX_ERROR;
    }

    name->node.node.key = ngx_crc32_short(str->data, str->len);
    name->node.str.len = str->len;
    name->node.str.data = (u_char *) name + sizeof(ngx_http_vibe_name_t);
    ngx_memcpy(name->node.str.data, str->data, str->len);

    ngx_rbtree_insert(&names->rbtree, &name->node.node);
    ngx_queue_insert_tail(&names->queue, &name->queue);
    names->n++;

    return NGX_OK;
}


ngx_uint_t
ngx_http_vibe_names_has(ngx_http_vibe_names_t *names, ngx_str_t *str)
{
    return ngx_str_rbtree_lookup(&names->rbtree, str,
                                 ngx_crc32_short(str->data, str->len))
           != NULL;
}


ngx_http_vibe_name_t *
ngx_http_vibe_names_take(ngx_http_vibe_names_t *names)
{
    ngx_http_vibe_name_t  *name;

    if (ngx_queue_empty(&names->queue)) {
        return NULL;
    }

    name = ngx_queue_data(ngx_queue_head(&names->queue),
                          ngx_http_vibe_name_t, queue);

    ngx_queue_remove(&name->queue);
    ngx_rbtree_delete(&names->rbtree, &name->node.node);
    names->n--;

    return name;
}


ngx_int_t
ngx_http_vibe_names_move(ngx_http_vibe_names_t *names,
    ngx_http_vibe_names_t *from)
{
    ngx_int_t              rc, worst;
    ngx_http_vibe_name_t  *name;

    worst = NGX_OK;

    while ((name = ngx_http_vibe_names_take(from)) != NULL) {

        rc = ngx_http_vibe_names_add(names, &name->node.str);
        if (rc != NGX_OK) {
            worst = rc;
        }

        ngx_free(name);
    }

    return worst;
}


ngx_int_t
ngx_http_vibe_names_copy(ngx_http_vibe_names_t *names,
    ngx_http_vibe_names_t *from)
{
    ngx_int_t              rc;
    ngx_queue_t           *q;
    ngx_http_vibe_name_t  *name;

    for (q = ngx_queue_head(&from->queue);
         q != ngx_queue_sentinel(&from->queue);
         q = ngx_queue_next(q))
    {
        name = ngx_queue_data(q, ngx_http_vibe_name_t, queue);

        rc = ngx_http_vibe_names_add(names, &name->node.str);
        if (rc != NGX_OK) {
            return rc;
        }
    }

    return NGX_OK;
}


void
ngx_http_vibe_names_clear(ngx_http_vibe_names_t *names)
{
    ngx_http_vibe_name_t  *name;

    while ((name = ngx_http_vibe_names_take(names)) != NULL) {
        ngx_free(name);
    }
}
