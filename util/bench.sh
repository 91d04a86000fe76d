#!/usr/bin/env bash
#
# util/bench.sh [a|b|c|d|e|f ...]: measures the module against the same work
# done without it, side by side, and prints ratios.
#
#   a  public documents, against the two bare writes, one after the other
#   b  a global query, against the bare _find with the same index
#   c  the module's own CPU time, against bare proxy_pass, a mock as CouchDB
#   d  the query of b among 100,000 documents that its reader may not read
#   e  what mirroring costs: public documents against private ones, the
#      _bulk_docs that `global` gets, and the requests of repair at rest
#   f  what a registered feed costs, to read and to keep, with more and more
#      users
#
# A ratio is the median of at least 9 pairs, measured in turns; its quartiles
# stand beside it.  QUICK=1 takes 3 short ones: a try-out, not a measurement.
# VIBE_COUCHDB_URL (http://user:password@host:port) names the CouchDB, which
# must have no database `global`; without it an embedded one is started.

. "$(dirname "$0")/setup.sh"

pairs=9
seconds=2
public=10000
restricted=100000
idle=1000
quiet=20
sizes=(100 1000 5000)
if [ -n "${QUICK:-}" ]; then
    pairs=3
    seconds=1
    restricted=10000
    idle=100
    quiet=5
    sizes=(20 100 300)
fi

# As many users as the most connections of part a.
users=64

# The reader of parts b, d and f, who wrote nothing: a line of $work/users.
reader=64

# The public posts of each user of part f.
posts=4

helpers=$root/util/bench
work=''
pids=''
admin=''        # user:password, once there is a CouchDB
theirs=''       # set where databases of ours must not stay


stop() {
    local pid

    trap '' INT TERM HUP
    [ -z "$theirs" ] || delete_databases || true
    # The youngest first: nginx before CouchDB.
    for pid in $pids; do end "$pid"; done
    [ -z "$work" ] || rm -rf "$work"
}


# ---- CouchDB

read_url() {
    local pattern='^http://([^:@/]+:[^@/]+)@([^@/:]+)(:[0-9]+)?/?$'

    [[ $VIBE_COUCHDB_URL =~ $pattern ]] \
        || die "VIBE_COUCHDB_URL is not http://user:password@host:port"

    admin=${BASH_REMATCH[1]//\\/\\\\}
    admin=$(printf '%b' "${admin//%/\\x}")
    couchdb=${BASH_REMATCH[2]}${BASH_REMATCH[3]:-:80}
    which="that of VIBE_COUCHDB_URL"
}


# couch METHOD PATH [CURL'S OPTIONS...]: prints the answer, fails on an error.

couch() {
    local method=$1 path=$2
    shift 2

    curl -sS -f -m 600 -X "$method" -H "@$work/admin.headers" \
         -H 'Content-Type: application/json' "$@" "http://$couchdb/$path"
}


exists() { couch GET "$1" -o /dev/null 2>/dev/null; }


use_couchdb() {
    if [ -n "${VIBE_COUCHDB_URL:-}" ]; then
        read_url
    else
        admin=admin:$(secret)
        start_couch "$work/couch" "$work/couch.log" "$admin"
        pids="$couch_pid $pids"
        couchdb=127.0.0.1:$couch_port
        which="the embedded one"
    fi

    private "$work/vibe.credentials" "$admin"
    private "$work/basic" "Basic $(printf '%s' "$admin" | base64 -w 0)"
    private "$work/admin.headers" "Authorization: $(cat "$work/basic")"

    couch GET '_all_dbs?limit=1' >/dev/null \
        || die "no CouchDB at $couchdb, or its admin is another one"
    ! exists global \
        || die "the CouchDB at $couchdb has a database global, and this" \
               "benchmark writes into it: give it a CouchDB of its own"

    # shellcheck disable=SC2016  # JavaScript
    couch GET '' | node -e '
        const { version, vendor } = JSON.parse(fs.readFileSync(0));
        console.log(`CouchDB: ${version}, ${vendor.name}; ${process.argv[1]}`);
    ' "$which"
}


databases() {
    local did db token

    # shellcheck disable=SC2034  # a line has all three
    while read -r did db token; do
        echo "$db"
        echo "bench${db#userdb}"
    done <"$work/users"

    sed -n 's|^url = .*/\(userdb-.*\)"$|\1|p' "$work/idle" 2>/dev/null || true
    cat "$work/posters" 2>/dev/null || true
    printf 'vibe_global_%s\n' "${sizes[@]}"
    printf 'vibe_global_%s-2\n' "${sizes[@]}"
    printf '%s\n' vibe_fixed bench-global global vibe_state
}


# Those that are not there do not matter.

delete_databases() {
    databases \
        | sed "s|.*|url = \"http://$couchdb/&\"\noutput = /dev/null|" \
        | curl -s -Z --parallel-max 8 -m 600 -X DELETE \
               -H "@$work/admin.headers" -K - 2>/dev/null || true
}


# ---- nginx

free_port() {
    perl -MIO::Socket::INET -e '
        print IO::Socket::INET->new(LocalAddr => "127.0.0.1", Listen => 1)
              ->sockport;'
}


# start_nginx NAME PORT: with $work/NAME.conf; sets nginx_pid and worker_pid,
# its only worker.

start_nginx() {
    local turn

    alone nginx -p "$work" -c "$work/$1.conf" -e "$work/$1.log" \
          -g 'daemon off; worker_processes 1;' \
          </dev/null 2>"$work/start.log" &
    nginx_pid=$!
    pids="$nginx_pid $pids"

    # shellcheck disable=SC2034  # turn only counts
    for turn in $(seq 100); do
        kill -0 "$nginx_pid" 2>/dev/null || break
        worker_pid=$(curl -s -m 5 "http://127.0.0.1:$2/pid") || true
        [ -z "$worker_pid" ] || return 0
        sleep 0.1
    done

    tail -n 5 "$work/start.log" >&2
    die "nginx did not start"
}


# common NAME: the beginning of an nginx.conf.

common() {
    cat <<END
pid        $work/$1.pid;
error_log  $work/$1.log warn;
events     { worker_connections 1024; }
END
    if [ "$(id -u)" = 0 ]; then echo "user  root;"; fi
}


temp_paths() {
    local name

    for name in client_body proxy fastcgi uwsgi scgi; do
        echo "    ${name}_temp_path  $work/$name;"
    done
}


# start_module [REGISTRY]: the module in front of CouchDB, as in
# conf/nginx.conf; with a registry, global queries are answered from its feeds.
# What is neither 200 nor 201 (or a client that wrk ended) is logged: there must
# be none.

start_module() {
    local registry=${1:+vibe_registry  $1;}
    local reads=${1:+vibe_global_reads  registered;}

    port=$(free_port)

    cat >"$work/module.conf" <<END
load_module  $build/ngx_http_vibe_module.so;
$(common module)
http {
$(temp_paths)
    map \$status \$odd { 200 ''; 201 ''; 499 ''; default 1; }
    log_format  odd  '\$status \$request';
    access_log  $work/odd.log odd if=\$odd;

    upstream couchdb { server $couchdb max_fails=0; keepalive 64; }

    vibe_couchdb      http://couchdb;
    vibe_credentials  vibe.credentials;
    vibe_jwt_key      hs256.key;
    vibe_index        * createdAt;
    vibe_zone         vibe 8m;
    $registry

    server {
        listen  127.0.0.1:$port;
        include $root/conf/vibe_couchdb.conf;

        location = /status    { vibe_status; access_log off; }
        location = /aggregate { vibe_aggregate; }

        location /data/ {
            vibe_data;
            $reads
            client_max_body_size     16m;
            client_body_buffer_size  64k;
        }

        location = /pid { return 200 \$pid; }
    }
}
END
    : >"$work/odd.log"
    start_nginx module "$port"

    for _ in $(seq 300); do
        curl -s -f -o /dev/null "http://127.0.0.1:$port/status?ready" && break
        sleep 0.1
    done

    token_of "$reader" >"$work/reader.headers"
    [ -z "$registry" ] || return 0

    # The first query makes sure of the index.
    curl -sS -f -o /dev/null -H "@$work/reader.headers" \
         -H 'Content-Type: application/json' -d '{"global":true}' \
         "http://127.0.0.1:$port/data/posts/query" \
        || die "the module does not answer a query"
}


# token_of N: prints the header with the token of the user with this number.

token_of() {
    awk -v n="$1" 'NR == n { print "Authorization: Bearer " $3 }' "$work/users"
}


stop_nginx() {
    local pid

    for pid in "$@"; do
        end "$pid"
        pids=" $pids "
        pids=${pids/ $pid / }
    done
}


# ---- measuring

# load CONNECTIONS THREADS URL SCRIPT ARGUMENT...: runs wrk; sets requests and
# rate, those in a second.

load() {
    local connections=$1 threads=$2 url=$3 script=$4
    shift 4

    wrk -c "$connections" -t "$threads" -d "${seconds}s" --timeout 30s \
        -s "$helpers/$script" "http://$url" -- "$@" >"$work/wrk" 2>&1 \
        || { cat "$work/wrk" >&2; die "wrk failed"; }

    if grep -E 'Non-2xx|Socket errors' "$work/wrk" >&2; then
        tail -n 3 "$work"/*.log >&2
        die "not all requests succeeded: $url $*"
    fi

    requests=$(awk '/ requests in / { print $1 }' "$work/wrk")
    rate=$(awk '/^Requests\/sec:/ { print $2 }' "$work/wrk")
}


# in_turns FUNCTION KIND...: has "FUNCTION KIND" set value for each kind, the
# first being what the others are compared with, as often as there are pairs;
# every other time backwards.  The pairs get into $work/pairs.KIND.

in_turns() {
    local measure=$1 turn kind base order
    local -A values
    shift

    base=$1
    for kind in "$@"; do : >"$work/pairs.$kind"; done

    for turn in $(seq "$pairs"); do
        order=$*
        if [ $((turn % 2)) = 0 ]; then
            order=$(printf '%s\n' "$@" | tac)
        fi

        for kind in $order; do
            "$measure" "$kind"
            values[$kind]=$value
        done

        for kind in "$@"; do
            echo "${values[$base]} ${values[$kind]}" >>"$work/pairs.$kind"
        done
    done

    check_odd
}


check_odd() {
    [ ! -s "$work/odd.log" ] || {
        sort "$work/odd.log" | uniq -c >&2
        tail -n 3 "$work/module.log" >&2
        die "the module answered something else than 200 and 201"
    }
}


title() {
    printf '\n%s\n%-42s %7s  %-13s  %9s %9s\n' \
           "$1" "" ratio quartiles "$2" "$3"
}


# row KIND TEXT UNIT [AIM [LEAST]]: prints the median of the ratios, their
# quartiles and the medians of both sides.

row() {
    awk -v text="$2" -v unit="$3" -v aim="${4:-}" \
        -v least="${5:-}" -f "$helpers/row.awk" \
        "$work/pairs.$1"
}


# ---- (a)

# Sets value: milliseconds a document at 1 connection, else documents a second.

write() {
    local kind=$1

    run=$((run + 1))

    if [[ $kind = bare || $kind = single || $kind = batched ]]; then
        load "$connections" "$connections" "$couchdb" \
             write.lua "$kind" "$work" "$run"
    else
        load "$connections" "$connections" "127.0.0.1:$port" \
             write.lua "$kind" "$work" "$run"
    fi

    value=$(awk -v kind="$kind" -v rate="$rate" -v c="$connections" 'BEGIN {
        rate *= kind == "bare" ? 1 / 2 : kind == "batched" ? 10 / 11 : 1
        printf "%.6f", c == 1 ? 1000 / rate : rate
    }')
}


make_bench() {
    local db

    for db in $(databases | grep '^bench-'); do
        case $db in
            bench-global) couch PUT "$db" ;;
            *)            couch PUT "$db?q=1" ;;
        esac
    done >/dev/null
}


part_a() {
    local connections run=100

    make_bench
    start_module

    # All users get their databases.
    connections=$users
    write made

    connections=1
    in_turns write bare made chosen updated

    title "(a) a public document, against two bare writes (POST /{db} of new
    documents: one into the user's database, then one into another)" bare module
    row made    "1 connection: the module makes the id" ms 1.15
    row chosen  "1 connection: the client chose the id" ms
    row updated "1 connection: new versions (9 of 10)"  ms

    connections=64
    in_turns write bare made chosen updated

    row made    "64 connections, rate: made id"     docs/s
    row chosen  "64 connections, rate: chosen id"   docs/s
    row updated "64 connections, rate: new versions" docs/s

    stop_nginx "$nginx_pid"
    delete_databases
}


# ---- (b) and (d)

# add_public COLLECTION: the documents of (b), written through the module.

add_public() {
    local from

    token_of 1 >"$work/author.headers"

    for from in $(seq 1 1000 "$public"); do
        node "$helpers/documents.js" public "$from" $((from + 999)) \
            >"$work/docs"
        curl -sS -f -o /dev/null -H "@$work/author.headers" \
             -H 'Content-Type: application/json' \
             --data-binary "@$work/docs" "http://127.0.0.1:$port/data/$1"
    done
}


# write_queries: the query of the module's client, and what a client of CouchDB
# would ask to the same end, with the module's access rule and without; sets
# index, the name of that for createdAt.

write_queries() {
    local did rule rest

    did=$(awk -v n="$reader" 'NR == n { print $1 }' "$work/users")
    index=vibe-$(printf 'createdAt\0' | sha1sum | cut -c 1-16)

    echo '{"global":true,"sort":[{"createdAt":"desc"}],"limit":25}' \
         >"$work/query"

    rule="{\"\$or\":[{\"vibe_access\":{\"\$eq\":\"public\"}},"
    rule="$rule{\"vibe_owner\":{\"\$eq\":\"$did\"}},"
    rule="$rule{\"\$and\":[{\"vibe_access\":{\"\$eq\":\"restricted\"}},"
    rule="$rule{\"\$or\":[{\"vibe_read\":{\"\$elemMatch\":{\"\$eq\":\"*\"}}},"
    rule="$rule{\"vibe_read\":{\"\$elemMatch\":{\"\$eq\":\"$did\"}}}]},"
    rule="$rule{\"\$nor\":[{\"vibe_deny\":{\"\$elemMatch\":"
    rule="$rule{\"\$eq\":\"$did\"}}}]}]}]},"

    rest="{\"collection\":{\"\$eq\":\"posts\"}},"
    rest="$rest{\"createdAt\":{\"\$gte\":null}}]},\"limit\":25,\"sort\":"
    rest="${rest}[{\"collection\":\"desc\"},{\"createdAt\":\"desc\"}],"
    rest="$rest\"use_index\":[\"$index\",\"$index\"]}"

    echo "{\"selector\":{\"\$and\":[$rule$rest" >"$work/find"
    echo "{\"selector\":{\"\$and\":[$rest"      >"$work/find.plain"
}


prepare_query() {
    write_queries

    # The first one waits for CouchDB to build the index.
    couch POST global/_find --data-binary "@$work/find" >"$work/answer"
    if grep -q '"warning"' "$work/answer"; then
        die "the bare _find does not use the module's index: $index"
    fi
}


# Sets value: as for (a).

query() {
    case $1 in
        module) load "$connections" 1 "127.0.0.1:$port/data/posts/query" \
                     post.lua "$work/query" "$work/reader.headers" ;;
        bare)   load "$connections" 1 "$couchdb/global/_find" \
                     post.lua "$work/find" "$work/admin.headers" ;;
        plain)  load "$connections" 1 "$couchdb/global/_find" \
                     post.lua "$work/find.plain" "$work/admin.headers" ;;
        fixed)  load "$connections" 1 "$couchdb/vibe_fixed/_find" \
                     post.lua "$work/find.fixed" "$work/admin.headers" ;;
    esac

    value=$(awk -v rate="$rate" -v c="$connections" 'BEGIN {
        printf "%.6f", c == 1 ? 1000 / rate : rate
    }')
}


# The queries of (b) and (d) share a database.

fill() {
    start_module
    add_public posts
    prepare_query
    filled=1
}


part_b() {
    local connections

    [ -n "$filled" ] || fill

    connections=1
    in_turns query bare module plain

    title "(b) a global query, 25 of $public by createdAt, against the bare
    _find with the same index" bare module
    row module "1 connection: the same selector" ms 1.15
    paste -d ' ' "$work/pairs.plain" "$work/pairs.module" \
        | cut -d ' ' -f 2,4 >"$work/pairs.all"
    row all    "1 connection: one without access rule" ms

    connections=64
    in_turns query bare module
    row module "64 connections, rate: the same selector" queries/s
}


# add_restricted KIND: copies that the reader must not see, among as many public
# documents as in (b).

add_restricted() {
    local from

    add_public "$1"
    for from in $(seq 1 2000 "$restricted"); do
        node "$helpers/documents.js" "$1" "$from" $((from + 1999)) \
            >"$work/docs"
        couch POST global/_bulk_docs --data-binary "@$work/docs" \
              -o /dev/null
    done

    # CouchDB builds its index before any time is taken.
    couch POST global/_find --data-binary "@$work/find" -o /dev/null
}


# Sets value: milliseconds a query, the median of 3 or, of one that fails, the
# time until it did.  The module waits for CouchDB as long as its configuration
# tells.

query_among() {
    curl -sS -o /dev/null -m 60 -H "@$work/reader.headers" \
         -H 'Content-Type: application/json' --data-binary "@$work/query" \
         -w '%{time_total} %{http_code}\n' \
         "http://127.0.0.1:$port/data/$1/query?n=[1-3]" | sort -n >"$work/times"

    value=$(awk 'NR == 2 { print $1 * 1000 }' "$work/times")
    grep -v ' 200$' "$work/times" >>"$work/failed.$1" || true
    : >"$work/odd.log"
}


part_d() {
    local kind text

    [ -n "$filled" ] || fill
    for kind in spread newer; do add_restricted "$kind"; done

    rm -f "$work"/failed.*
    in_turns query_among posts spread newer

    title "(d) the query of (b), against itself among $restricted more that are
    not for its reader" without among
    for kind in spread newer; do
        text="spread evenly among the public ones"
        [ "$kind" = spread ] || text="newer than all public ones"
        row "$kind" "$text" ms
        if [ -s "$work/failed.$kind" ]; then
            printf '    failed: %s of %s, status %s\n' \
                   "$(wc -l <"$work/failed.$kind")" $((3 * pairs)) \
                   "$(cut -d ' ' -f 2 "$work/failed.$kind" | sort -u | xargs)"
        fi
    done
}


# ---- (e)

# counter MEMBER...: of vibe_status, a member of a member.

counter() {
    curl -sS -f "http://127.0.0.1:$port/status" | node -e '
        console.log(process.argv.slice(1).reduce(
            (object, member) => object?.[member],
            JSON.parse(fs.readFileSync(0))));
    ' "$@"
}


# Users that write nothing, whose databases repair knows.

add_idle() {
    local n

    for n in $(seq "$idle"); do
        printf 'url = "http://%s/userdb-%s"\n' "$couchdb" \
               "$(printf 'did:vibe:idle%s' "$n" | od -An -v -tx1 | tr -d ' \n')"
        printf 'request = PUT\nheader = @%s\noutput = /dev/null\n' \
               "$work/admin.headers"
        [ "$n" = "$idle" ] || echo next
    done >"$work/idle"
    curl -sS -K "$work/idle"
}


part_e() {
    local connections run=500 batches docs before index

    start_module

    connections=$users
    write made

    connections=64
    batches=$(counter batches count)
    docs=$(counter batches docs)
    in_turns write private made
    batches=$(($(counter batches count) - batches))
    docs=$(($(counter batches docs) - docs))

    title "(e) what mirroring costs: public documents with made ids, against
    private ones" private public
    row made "64 connections, rate" docs/s '' 0.75

    # What CouchDB itself allows: the same two writes without the module.
    make_bench
    for index in '["collection"]' '["collection","createdAt"]'; do
        couch POST bench-global/_index -o /dev/null \
              -d "{\"index\":{\"fields\":$index}}"
    done
    in_turns write single batched
    title "    the same bare: POST /{db} of each document, and batches of ten
    into another database, against the first alone" single batched
    row batched "64 connections, rate" docs/s
    awk -v b="$batches" -v d="$docs" 'BEGIN {
        printf "%-42s %7.2f  (aim: at most 1)\n",
               "_bulk_docs on global for 10 public writes", 10 * b / d
    }'

    # Repair has caught up when nothing is due.
    add_idle
    for _ in $(seq 1200); do
        [ "$(counter repair databases_due)" != 0 ] || break
        sleep 0.1
    done
    sleep 12

    before=$(counter couchdb requests)
    sleep "$quiet"
    awk -v n="$(($(counter couchdb requests) - before))" -v s="$quiet" \
        -v idle="$idle" 'BEGIN {
        printf "%-42s %7.2f  (aim: below 1)\n",
               "requests a second at rest, " idle " users", n / s
    }'

    stop_nginx "$nginx_pid"
    delete_databases
}


# ---- (f)

# add_posts FROM TO STEP POSTS: for each STEPth user of these; sets touched, how
# many they are, when repair has brought all to `global` and is at rest.

add_posts() {
    local before after=-100

    node "$helpers/posts.js" "http://$couchdb" "$work/admin.headers" "$@" \
        >"$work/touched"
    cat "$work/touched" >>"$work/posters"
    touched=$(wc -l <"$work/touched")
    written=$((written + touched * $4))

    for _ in $(seq 300); do
        before=$after
        sleep 1
        after=$(counter couchdb requests)
        [ $((after - before)) -gt 5 ] || [ "$(copies)" -lt "$written" ] \
            || [ "$(counter repair databases_due)" != 0 ] || return 0
    done
    die "repair has not brought all to global within 5 minutes"
}


copies() {
    couch GET global \
        | node -e 'console.log(JSON.parse(fs.readFileSync(0)).doc_count)'
}


# first_run N: registers a feed with a name of its own, which is full when it
# has run; sets asked, the requests of CouchDB, and took, seconds.

first_run() {
    local feed=_global_$1

    asked=$(counter couchdb requests)
    cat >"$work/feeds.new" <<END
[ { "collectionName": "posts", "materializedViewName": "$feed",
    "aggregationInterval": "1d",
    "query": { "selector": { "type": "post" },
               "fields": $fields,
               "sort": [{ "createdAt": "desc" }] } } ]
END
    mv "$work/feeds.new" "$work/feeds.json"

    for _ in $(seq 3000); do
        [ "$(counter feeds "$feed" runs)" != 1 ] || break
        sleep 0.1
    done

    asked=$(($(counter couchdb requests) - asked))
    took=$(counter feeds "$feed" duration)
    [ "$(counter feeds "$feed" rows)" = "$written" ] \
        || die "the feed of $1 users is not complete: see $(counter feeds)"
}


# another_run: sets asked.

another_run() {
    asked=$(counter couchdb requests)
    curl -sS -f -m 600 -o /dev/null -d '' "http://127.0.0.1:$port/aggregate" \
        || die "the feed could not be run"
    asked=$(($(counter couchdb requests) - asked))
}


# The baseline of all sizes: a copy of the first feed that stays as it is, and
# what the module asks of a feed.

copy_feed() {
    sed "s|}\$|,\"fields\":$fields}|" "$work/find.plain" >"$work/find.fixed"

    couch PUT vibe_fixed -o /dev/null
    couch POST vibe_fixed/_index -o /dev/null -d "{\"index\":{\"fields\":
        [\"collection\",\"createdAt\"]},\"ddoc\":\"$index\",
        \"name\":\"$index\",\"type\":\"json\"}"
    couch GET "vibe_global_$1/_all_docs?include_docs=true" | node -e '
        const { rows } = JSON.parse(fs.readFileSync(0));
        const docs = rows.map(({ doc: { _rev, ...doc } }) => doc);
        console.log(JSON.stringify({
            docs: docs.filter(({ _id }) => !_id.startsWith("_design/")),
        }));
    ' >"$work/docs"
    couch POST vibe_fixed/_bulk_docs --data-binary "@$work/docs" -o /dev/null
    couch POST vibe_fixed/_find --data-binary "@$work/find.fixed" -o /dev/null
}


# ask_users: sets value, milliseconds of the same query in one user's database,
# where it needs no index; the median of 50.

ask_users() {
    shuf -n 50 "$work/posters" \
        | sed "s|.*|url = \"http://$couchdb/&/_find\"\noutput = /dev/null|" \
        | curl -sS -m 60 -K - -H "@$work/admin.headers" \
               -H 'Content-Type: application/json' \
               -d '{"selector":{"type":"post"},"limit":25}' \
               -w '%{time_total}\n' | sort -n >"$work/times"

    value=$(awk '{ t[NR] = $1 } END { print 1000 * t[int((NR + 1) / 2)] }' \
                "$work/times")
}


# feed_of N FROM: all figures for so many users, those from FROM on being new.
# The databases that a run changed in one of a feed's two it has to change in
# the other one in the next run: so what is touched is measured twice.

feed_of() {
    local n=$1 step=100 figures first
    [ "$n" -ge "$step" ] || step=$n

    add_posts "$2" "$n" 1 "$posts"
    first_run "$n"
    figures="$n $written $took $asked"
    another_run
    figures="$figures $asked"

    # The first size must not be the only one that is measured cold.
    if [ ! -s "$work/docs" ]; then
        copy_feed "$n"
        for _ in 1 2 3; do query fixed; query module; done
    fi

    in_turns query fixed module
    mv "$work/pairs.module" "$work/pairs.$n"

    for first in "$step" $((step / 2)); do
        add_posts "$first" "$n" "$step" 1
        another_run
        figures="$figures $touched $asked"
    done

    ask_users
    echo "$figures $value" >>"$work/feeds"
}


part_f() {
    local connections=1 written=0 known=0 n least=${sizes[0]}
    local index touched asked took
    local fields='["_id","content","author","createdAt"]'

    : >"$work/docs"
    echo '[]' >"$work/feeds.json"
    start_module "$work/feeds.json"
    write_queries

    for n in "${sizes[@]}"; do
        feed_of "$n" $((known + 1))
        known=$n
    done

    title "(f) a registered feed: 25 of its rows by createdAt, against the bare
    _find with the same index on $((least * posts)) rows" bare module
    for n in "${sizes[@]}"; do
        row "$n" "1 connection: $n users" ms
    done
    paste -d ' ' "$work/pairs.$least" "$work/pairs.$known" \
        | awk '{ print $2 / $1, $4 / $3 }' >"$work/pairs.sizes"
    row sizes "the ratio: $known users against $least" '' 1.20

    awk '
        BEGIN {
            print "\n  requests of CouchDB for a run; in brackets, for each" \
                  " database touched since\n"
            printf "%7s %7s  %15s  %9s  %14s  %14s  %8s\n", "", "",
                   "the first", "unchanged", "1 % touched", "1 % more",
                   "ask all*"
            printf "%7s %7s  %15s\n", "users", "rows", "s"
        }
        {
            printf "%7d %7d  %7d %7.1f  %9d  %14s  %14s  %6.2f s\n", $1, $2,
                   $4, $3, $5, sprintf("%d (%.1f)", $7, $7 / $6),
                   sprintf("%d (%.1f)", $9, $9 / $8), $1 * $10 / 1000
        }
        END {
            print "\n  * extrapolated: as many times the _find of one user" \
                  "\047s database, one after another"
        }
    ' "$work/feeds"

    stop_nginx "$nginx_pid"
}


# ---- (c)

# A CouchDB that knows one answer of each kind, as fast as nginx gives it.

start_mock() {
    local doc info docs written

    doc='"_rev":"1-967a00dff5e02add41819138abb3284d","title":"A document",'
    doc="$doc\"createdAt\":1700000000000,\"author\":{\"name\":\"Jack\"},"
    doc="$doc\"tags\":[\"a\",\"b\"],"
    doc="$doc\"text\":\"$(printf 'All work. %.0s' {1..9})\","
    doc="$doc\"acl\":{\"global\":true},\"collection\":\"posts\"}"
    docs="{\"_id\":\"posts/1\",$doc,{\"_id\":\"posts/2\",$doc"
    docs="$docs,{\"_id\":\"posts/3\",$doc"
    written='"rev":"1-967a00dff5e02add41819138abb3284d"'
    info='{"update_seq":"1-g1AAAA","doc_count":1,"cluster":{"n":1}}'

    cat >"$work/mock.conf" <<END
$(common mock)
http {
$(temp_paths)
    access_log          off;
    default_type        application/json;
    keepalive_requests  100000000;

    server {
        listen  127.0.0.1:$mock_port;

        location ~ /_find\$ {
            return 200 '{"docs":[$docs],"bookmark":"nil"}';
        }

        location ~ /_bulk_docs\$ {
            return 201 '[{"ok":true,"id":"posts/1",$written}]';
        }

        location ~ /_index\$ { return 200 '{"result":"exists"}'; }
        location = /pid     { return 200 \$pid; }
        location /          { return 200 '$info'; }
    }
}
END
    start_nginx mock "$mock_port"
}


start_front() {
    local name server=''

    for name in hs256 es256; do
        server="$server
    server {
        listen        127.0.0.1:$port;
        server_name   $name;
        vibe_jwt_key  $name.key;
        include       $root/conf/vibe_couchdb.conf;
        location /data/ { vibe_data; }
    }"
    done

    cat >"$work/front.conf" <<END
load_module  $build/ngx_http_vibe_module.so;
$(common front)
http {
$(temp_paths)
    access_log          off;
    keepalive_requests  100000000;

    upstream couchdb {
        server              127.0.0.1:$mock_port max_fails=0;
        keepalive           64;
        keepalive_requests  100000000;
    }

    vibe_couchdb      http://couchdb;
    vibe_credentials  vibe.credentials;
    vibe_index        * createdAt;

    server {
        listen    127.0.0.1:$port default_server;
        vibe_did  \$arg_did;
        include   $root/conf/vibe_couchdb.conf;
        location /data/ { vibe_data; }

        location = /bare {
            proxy_pass          http://couchdb/userdb-bench/_find;
            proxy_http_version  1.1;
            proxy_set_header    Connection "";
        }

        location = /pid { return 200 \$pid; }
    }
$server
}
END
    start_nginx front "$port"
}


ticks() { awk '{ print $14 + $15 }' "/proc/$worker_pid/stat"; }


# Sets value: microseconds of the worker's CPU time a request.

cost() {
    local path=/data/posts/query body=$work/body headers=$work/none before

    case $1 in
        bare)  path=/bare ;;
        query) path="$path?did=did:vibe:bench1" ;;
        write) path="/data/posts?did=did:vibe:bench1" body=$work/document ;;
        *)     headers=$work/$1.headers ;;
    esac

    before=$(ticks)
    load 16 1 "127.0.0.1:$port$path" post.lua "$body" "$headers"
    value=$(awk -v ticks="$(($(ticks) - before))" -v n="$requests" \
                -v hertz="$(getconf CLK_TCK)" \
                'BEGIN { printf "%.4f", ticks / hertz * 1e6 / n }')
}


part_c() {
    local text mock

    mock_port=$(free_port)
    start_mock
    mock=$nginx_pid
    port=$(free_port)
    [ -s "$work/vibe.credentials" ] \
        || private "$work/vibe.credentials" admin:secret
    start_front

    text=$(printf 'All work and no play. %.0s' {1..4})
    : >"$work/none"
    printf 'Host: hs256\n%s\n' "$(token_of 1)" >"$work/hs256.headers"
    printf 'Host: es256\nAuthorization: Bearer %s\n' "$(cat "$work/es256")" \
           >"$work/es256.headers"

    # 1 KB with the request's head.
    awk -v text="$text" 'BEGIN {
        printf "{\"title\":\"A document\",\"limit\":25,\"selector\":{\"$and\":["
        for (i = 1; i <= 7; i++) {
            printf "%s{\"field%d\":{\"$gte\":\"%s\"}}",
                   (i > 1 ? "," : ""), i, text
        }
        print "]}}"
    }' >"$work/body"
    awk -v text="$text" 'BEGIN {
        printf "{\"createdAt\":1700000000000,\"acl\":{\"global\":true}"
        for (i = 1; i <= 8; i++) printf ",\"field%d\":\"%s\"", i, text
        print "}"
    }' >"$work/document"

    in_turns cost bare query hs256 es256 write

    title "(c) nginx's CPU time a request, against bare proxy_pass, with a mock
    in CouchDB's place and 1 KB each way" bare module
    row query "the caller's own query, did in a variable" µs 2.0
    row hs256 "the same, did from a token: HS256" µs
    row es256 "the same, did from a token: ES256" µs
    row write "a public write (two requests of CouchDB)" µs

    stop_nginx "$nginx_pid" "$mock"
}


# ---- all

[ $# -gt 0 ] || set -- a b c d e f
for part in "$@"; do
    case $part in
        a|b|c|d|e|f) ;;
        *) echo "usage: ${0##*/} [a|b|c|d|e|f ...]" >&2; exit 2 ;;
    esac
done

# Node is needed in any case.
need bench couch run
"$root/util/build.sh"

trap stop EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

work=$(mktemp -d "$build/bench.XXXXXX")
node "$helpers/identities.js" "$work" "$users"
filled=''

case "$*" in
    *[abdef]*) use_couchdb; theirs=${VIBE_COUCHDB_URL:-} ;;
esac

printf '%s; %s processors; %s pairs of %s s a side\n' \
       "$(nginx -v 2>&1 | sed 's/.*: //'), 1 worker" "$(nproc)" "$pairs" \
       "$seconds"
[ -z "${QUICK:-}" ] || echo "QUICK: a try-out, not a measurement"

for part in a b d c e f; do
    case " $* " in
        *" $part "*) "part_$part" ;;
    esac
done
