
/*
 * Repair: whatever dies, and whatever comes in past the module, "global"
 * converges to what the users' databases say.
 *
 * The worker that holds the lease
 *
 *   - follows _db_updates, and checks each user database that it names;
 *   - reads the changes of "global", and looks at each that it did not
 *     expect from the mirrors of this host;
 *   - makes passes: at its start, when _db_updates was lost, and every
 *     vibe_sweep.  A pass lists all user databases and checks those whose
 *     update_seq is not the one that it remembers; another one walks through
 *     "global" for copies whose source is gone.
 *
 * Where _db_updates cannot be had, passes follow one another, at the pace of
 * vibe_scan_rate.
 *
 * Promises: bounded in memory and in requests under way; a database that
 * fails is tried again, later and later, and keeps no other waiting; in
 * quiet times there are next to no requests.
 *
 * Floor 5.
 */


#ifndef _NGX_HTTP_VIBE_REPAIR_H_INCLUDED_
#define _NGX_HTTP_VIBE_REPAIR_H_INCLUDED_


#include "ngx_http_vibe.h"


/* databases that are checked at once */
#define NGX_HTTP_VIBE_REPAIR_CHECKS    8

/* documents of "global" that wait to be looked at */
#define NGX_HTTP_VIBE_REPAIR_ROWS      10000

/* of those, with one request */
#define NGX_HTTP_VIBE_REPAIR_WALK      200

/* milliseconds: how long what has changed is left to those who change it, */
#define NGX_HTTP_VIBE_REPAIR_DELAY     1000

/* the same where the last look has found that they did it well, */
#define NGX_HTTP_VIBE_REPAIR_CALM      3000

/* between two looks at what is due, */
#define NGX_HTTP_VIBE_REPAIR_TICK      200

/* between two checkpoints of one database, */
#define NGX_HTTP_VIBE_REPAIR_SAVE      10000

/* and before what has failed is tried again, first and last */
#define NGX_HTTP_VIBE_REPAIR_FIRST     500
#define NGX_HTTP_VIBE_REPAIR_LAST      60000

/*
 * Failures after which a pass goes on without a database: one that would say
 * of "global" that it is complete tries longer, some minutes in all
 */
#define NGX_HTTP_VIBE_REPAIR_FAILURES  3
#define NGX_HTTP_VIBE_REPAIR_TRIES     10


/* for init_process, after ngx_http_vibe_lease_init() */
void ngx_http_vibe_repair_init(ngx_http_vibe_main_conf_t *vmcf);


#endif /* _NGX_HTTP_VIBE_REPAIR_H_INCLUDED_ */
