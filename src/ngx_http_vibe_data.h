
/*
 * Everything under a location with "vibe_data": finds out what is asked and
 * by whom, reads the body, and hands over to the handler of it.
 */


#ifndef _NGX_HTTP_VIBE_DATA_H_INCLUDED_
#define _NGX_HTTP_VIBE_DATA_H_INCLUDED_


#include "ngx_http_vibe.h"


/* the content handler */
ngx_int_t ngx_http_vibe_data_handler(ngx_http_request_t *r);


#endif /* _NGX_HTTP_VIBE_DATA_H_INCLUDED_ */
