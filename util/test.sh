#!/usr/bin/env bash
#
# util/test.sh [prove's arguments]: builds the module and runs the tests, by
# default all of them, against the CouchDB of VIBE_COUCHDB_URL
# (http://user:password@host:port; its databases `global` and `userdb-*` are
# used) or else against an embedded one that begins empty.
#
# With TEST_NGINX_BINARY set, that nginx is tested, which must contain the
# module (util/sanitize.sh).  TEST_NGINX_ERROR_LOG=FILE collects nginx's logs.

. "$(dirname "$0")/setup.sh"

couch_pid=''
prove_pid=''
work=''


# prove has a process group of its own, so that one signal reaches the tests,
# which end what they have started.

stop() {
    trap '' INT TERM HUP
    [ -z "$prove_pid" ] || kill -TERM -- "-$prove_pid" 2>/dev/null || true
    [ -z "$prove_pid" ] || wait "$prove_pid" 2>/dev/null || true
    [ -z "$couch_pid" ] || end "$couch_pid"
    [ -z "$work" ] || rm -rf "$work"
}


if [ -n "${TEST_NGINX_BINARY:-}" ]; then
    need build test
else
    "$root/util/build.sh"
    need test
    export TEST_NGINX_LOAD_MODULES=$build/ngx_http_vibe_module.so
fi

trap stop EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

work=$(mktemp -d "$build/test.XXXXXX")

set -m

if [ -z "${VIBE_COUCHDB_URL:-}" ]; then
    need couch
    admin=admin:$(secret)
    start_couch "$work/couch" "$build/test-couch.log" "$admin"
    export VIBE_COUCHDB_URL="http://$admin@127.0.0.1:$couch_port"
    # A test whose times depend on what others left takes one of its own.
    export VIBE_EMBEDDED=1
fi

# A port and a directory (t/servroot_PORT) of its own for each test file;
# Test::Nginx keeps its locks in TMPDIR.
export TEST_NGINX_RANDOMIZE=1 TMPDIR=$work

[ $# -gt 0 ] || set -- -r t

cd "$root"
prove --timer -It/lib "$@" </dev/null &
prove_pid=$!

status=0
wait "$prove_pid" || status=$?
prove_pid=
exit "$status"
