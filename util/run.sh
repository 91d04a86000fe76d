#!/usr/bin/env bash
#
# util/run.sh: builds the module and runs it: an nginx in front of an embedded
# CouchDB, both on 127.0.0.1 and both ended by Ctrl-C.  From the environment:
#
#   PORT              where nginx listens (8080)
#   VIBE_WORKERS      its workers (auto)
#   VIBE_HOME         where keys, data, logs and nginx.conf are kept (.vibe/)
#   VIBE_COUCHDB_URL  http(s)://user:password@host:port: use this CouchDB
#   VIBE_REGISTRY     a file of registered feeds (conf/global-feeds.json)
#   VIBE_GLOBAL_READS what answers global queries: live, registered, any (live)

. "$(dirname "$0")/setup.sh"

port=${PORT:-8080}
workers=${VIBE_WORKERS:-auto}
url=${VIBE_COUCHDB_URL:-}
registry=${VIBE_REGISTRY:-$root/conf/global-feeds.json}
reads=${VIBE_GLOBAL_READS:-live}

couch_pid=''
nginx_pid=''


# nginx first: it may be in the middle of a write.

stop() {
    trap '' INT TERM HUP
    [ -z "$nginx_pid" ] || end "$nginx_pid"
    [ -z "$couch_pid" ] || end "$couch_pid"
}


decode() {
    local text=${1//\\/\\\\}

    printf '%b' "${text//%/\\x}"
}


# Takes VIBE_COUCHDB_URL apart.

read_url() {
    local pattern='^(https?)://([^:@/]+:[^@/]+)@([^@/]+)/?$'

    [[ $url =~ $pattern ]] \
        || die "VIBE_COUCHDB_URL is not http(s)://user:password@host:port"

    scheme=${BASH_REMATCH[1]}
    credentials=$(decode "${BASH_REMATCH[2]}")
    couchdb=${BASH_REMATCH[3]}

    if ! [[ $couchdb =~ :[0-9]+$ ]]; then
        [ "$scheme" = http ] && couchdb=$couchdb:80 || couchdb=$couchdb:443
    fi
}


# Where nginx finds the registry: it reads it again when it was edited.

find_registry() {
    if [ ! -f "$registry" ] || [ ! -r "$registry" ]; then
        die "VIBE_REGISTRY is not a file that can be read: $registry"
    fi

    registry=$(cd "$(dirname "$registry")" && pwd -P)/$(basename "$registry")

    case $registry in
        # It gets into nginx.conf.
        *[!A-Za-z0-9/._@+,=-]*) die "VIBE_REGISTRY has odd characters: $registry" ;;
    esac
}


# Asks as the admin for what only an admin may see.  curl reads the password
# from its standard input: the command line is open to all.

check_couchdb() {
    local status quoted

    quoted=${credentials//\\/\\\\}
    quoted=${quoted//\"/\\\"}

    status=$(printf 'user = "%s"\n' "$quoted" \
             | curl -s -k -K - -o /dev/null -w '%{http_code}' -m 10 \
                    "$scheme://$couchdb/_all_dbs?limit=1") || true

    case $status in
        200) ;;
        401) die "the CouchDB at $couchdb refuses this user and password" ;;
        403) die "the user in VIBE_COUCHDB_URL is not an admin of $couchdb" ;;
        000) die "no CouchDB answers at $scheme://$couchdb" ;;
        *)   die "$scheme://$couchdb answers $status; is it a CouchDB?" ;;
    esac
}


# replace OLD NEW: in $conf, where OLD must stand exactly once.

replace() {
    local rest=${conf#*"$1"}

    if [ "$rest" = "$conf" ] || [ "${rest#*"$1"}" != "$rest" ]; then
        die "conf/nginx.conf should hold this once: $1"
    fi
    conf=${conf/"$1"/"$2"}
}


# conf/nginx.conf with the addresses and paths of this run.

write_conf() {
    local conf name files http=''

    conf=$(cat "$root/conf/nginx.conf")

    for name in client_body proxy fastcgi uwsgi scgi; do
        http="$http
    ${name}_temp_path  $home/temp/$name;"
    done

    if [ "$scheme" = https ]; then
        http="$http
    proxy_ssl_server_name  on;
    proxy_ssl_name         ${couchdb%:*};"
        replace 'vibe_couchdb      http:' 'vibe_couchdb      https:'
    fi

    # No worker may open more files than this shell lets it.
    files=$(ulimit -Hn)
    [ "$files" != unlimited ] && [ "$files" -lt 16384 ] || files=16384

    # The checkout may be below a home that only its owner enters.
    if [ "$(id -u)" = 0 ]; then
        replace 'user              www-data;' 'user              root;'
    else
        replace 'user              www-data;' ''
    fi

    replace ' modules/ngx_http_vibe_module.so' \
            " $build/ngx_http_vibe_module.so"
    replace 'worker_processes  auto' "worker_processes  $workers"
    replace 'worker_rlimit_nofile  16384' "worker_rlimit_nofile  $files"
    replace '/run/nginx.pid' "$home/nginx.pid"
    replace '/var/log/nginx/error.log' "$home/logs/error.log"
    replace '/var/log/nginx/access.log' "$home/logs/access.log"
    replace 'http {' "http {$http"
    replace 'server     127.0.0.1:5984' "server     $couchdb"
    replace 'listen  127.0.0.1:8080' "listen  127.0.0.1:$port"
    replace 'vibe_registry     global-feeds.json' \
            "vibe_registry     $registry"
    replace 'vibe_global_reads  live' "vibe_global_reads  $reads"

    printf '%s\n' "$conf" >"$home/nginx.conf"
    cp "$root/conf/vibe_couchdb.conf" "$home/vibe_couchdb.conf"
}


listens() { (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; }


start_nginx() {
    local turn

    mkdir -p "$home/logs" "$home/temp"
    : >"$home/logs/start.log"
    alone nginx -p "$home" -c "$home/nginx.conf" -e "$home/logs/error.log" \
          -g 'daemon off;' </dev/null >>"$home/logs/start.log" 2>&1 9>&- &
    nginx_pid=$!

    # shellcheck disable=SC2034  # turn only counts
    for turn in $(seq 200); do
        kill -0 "$nginx_pid" 2>/dev/null || break
        ! listens || return 0
        sleep 0.05
    done

    tail -n 5 "$home/logs/start.log" >&2
    die "nginx did not start ($home/logs/error.log)"
}


# Until repair has looked: a new `global` cannot be read before.

await_ready() {
    local turn

    # shellcheck disable=SC2034  # turn only counts
    for turn in $(seq 150); do
        kill -0 "$nginx_pid" 2>/dev/null || return 0
        ! curl -s -f -o /dev/null "http://127.0.0.1:$port/vibe/status?ready" \
            || return 0
        sleep 0.1
    done

    say "global is still being built: http://127.0.0.1:$port/vibe/status"
}


show() {
    local token=$root/util/token.sh data=http://127.0.0.1:$port/data/posts

    [ "$PWD" != "$root" ] || token=util/token.sh
    [ -z "${VIBE_HOME:-}" ] || token="VIBE_HOME=$home $token"

    cat <<EOF

  http://127.0.0.1:$port/data/   (CouchDB: $couchdb, all else: $home)

  Alice writes what all may read; Bob reads it; Alice takes it back:

  curl --json '{"_id":"posts/1","title":"Hello","createdAt":1,"acl":{"global":true}}' \\
       -H "Authorization: Bearer \$($token did:vibe:alice)" $data

  curl --json '{"global":true,"sort":[{"createdAt":"desc"}]}' \\
       -H "Authorization: Bearer \$($token did:vibe:bob)" $data/query

  curl --json '{"_id":"posts/1","title":"Hello","createdAt":1,"acl":{}}' \\
       -H "Authorization: Bearer \$($token did:vibe:alice)" $data

  Ctrl-C ends it.

EOF
}


[[ $port =~ ^[1-9][0-9]{0,4}$ && $port -le 65535 ]] \
    || die "PORT is not a port: $port"
[[ $workers =~ ^(auto|[1-9][0-9]{0,2})$ ]] \
    || die "VIBE_WORKERS is neither auto nor a number: $workers"
[[ $reads =~ ^(live|registered|any)$ ]] \
    || die "VIBE_GLOBAL_READS is neither live, registered nor any: $reads"
find_registry
[ -z "$url" ] || read_url
! listens || die "port $port is in use; choose another one with PORT="

use_home
exec 9>"$home/lock"
flock -n 9 || die "another run.sh uses $home; choose another VIBE_HOME="

"$root/util/build.sh" 9>&-
need run

trap stop EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# The children get process groups of their own, so that Ctrl-C reaches only this
# shell, which ends them in order.
set -m

if [ -n "$url" ]; then
    check_couchdb
    private "$home/vibe.credentials" "$credentials"
else
    need couch
    [ -s "$home/vibe.credentials" ] \
        || private "$home/vibe.credentials" "admin:$(secret)"
    start_couch "$home/couch" "$home/couch.log" \
                "$(cat "$home/vibe.credentials")" 9>&-
    scheme=http
    couchdb=127.0.0.1:$couch_port
fi

write_conf
start_nginx
await_ready
show

# From here on a signal only ends the wait: an exit from within it upsets bash.
signal=''
trap 'signal=130' INT
trap 'signal=143' TERM HUP

# shellcheck disable=SC2086  # there may be no CouchDB of ours
wait -n $couch_pid $nginx_pid || true

[ -z "$signal" ] || exit "$signal"

if kill -0 "$nginx_pid" 2>/dev/null; then
    die "the embedded CouchDB has ended ($home/couch.log)"
fi
die "nginx has ended ($home/logs/error.log)"
