#!/usr/bin/env bash
#
# t/couch/build.sh: builds build/ngx_http_vibe_couch_test_module.so, as
# util/build.sh does with the module itself; for t/090-couch-client.t.

. "$(dirname "$0")/../../util/setup.sh"

objs=$build/couch-test
module=$build/ngx_http_vibe_couch_test_module.so


inputs() {
    dpkg-query -W nginx nginx-dev
    cat "$root/t/couch/config" "$0"
    printf '%s\n' "$root"
}


configure() {
    local NGX_CONF_FLAGS=()

    rm -rf "$objs"

    # shellcheck source=/dev/null
    . /usr/share/nginx/src/conf_flags

    (cd /usr/share/nginx/src \
     && ./configure "${NGX_CONF_FLAGS[@]}" --with-compat --with-debug \
            --with-cc-opt='-O2 -g' --builddir="$objs" \
            --add-dynamic-module="$root/t/couch") \
        >"$build/couch-test.log" 2>&1 \
        || {
            tail -n 20 "$build/couch-test.log" >&2
            die "nginx's configure failed (build/couch-test.log)"
        }

    inputs >"$objs/inputs"
}


build() {
    inputs | cmp -s - "$objs/inputs" || configure

    make -s -C /usr/share/nginx/src -f "$objs/Makefile" modules >&2 \
        || die "the test's module does not build"

    if ! cmp -s "$objs/${module##*/}" "$module"; then
        cp "$objs/${module##*/}" "$module.new"
        mv "$module.new" "$module"
    fi
}


need build
locked couch-test build
