#!/usr/bin/env bash
#
# util/build.sh: builds build/ngx_http_vibe_module.so for the installed nginx.

. "$(dirname "$0")/setup.sh"


# What the makefile cannot see: when one of these changes, configure again.

inputs() {
    dpkg-query -W nginx nginx-dev
    cat "$root/config" "$0"
    printf '%s\n' "$root" "$root"/src/*
}


configure() {
    local NGX_CONF_FLAGS=()

    rm -rf "$build/nginx"

    # The flags that Debian's nginx was built with, in a bash array.
    # shellcheck source=/dev/null
    . /usr/share/nginx/src/conf_flags

    # nginx itself adds -W -Wall -Wno-unused-parameter -Werror -g.
    (cd /usr/share/nginx/src \
     && ./configure "${NGX_CONF_FLAGS[@]}" --with-compat --with-debug \
            --with-cc-opt='-O2 -fstack-protector-strong -D_FORTIFY_SOURCE=2' \
            --with-ld-opt='-Wl,-z,relro -Wl,-z,now' \
            --builddir="$build/nginx" --add-dynamic-module="$root") \
        >"$build/configure.log" 2>&1 \
        || {
            tail -n 20 "$build/configure.log" >&2
            die "nginx's configure failed (build/configure.log," \
                "build/nginx/autoconf.err)"
        }

    inputs >"$build/nginx/inputs"
}


build() {
    inputs | cmp -s - "$build/nginx/inputs" || configure

    make -s -C /usr/share/nginx/src -f "$build/nginx/Makefile" \
         -j "$(nproc)" modules >&2 \
        || die "the module does not build"

    # Under a new name first: a running nginx may have the old one mapped.
    if ! cmp -s "$build/nginx/${module##*/}" "$module"; then
        cp "$build/nginx/${module##*/}" "$module.new"
        mv "$module.new" "$module"
        say "built build/${module##*/}"
    fi
}


module=$build/ngx_http_vibe_module.so

need build
locked build build
