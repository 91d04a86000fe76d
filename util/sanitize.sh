#!/usr/bin/env bash
#
# util/sanitize.sh [prove's arguments]: runs the tests with an nginx that has
# the module, and that of t/couch, linked in and is built with the address and
# the undefined behaviour sanitizer; fails on any report of theirs.

. "$(dirname "$0")/setup.sh"

dir=$build/sanitize
source=$dir/source


# nginx's source as Debian has it in its main archive (that of the security
# archive is missing on some mirrors).

fetch_source() {
    local mirror release list=$dir/sources.list

    rm -rf "$source" "$dir/fetch"
    mkdir -p "$dir/fetch"
    release=$(. /etc/os-release && echo "$VERSION_CODENAME")

    say "fetching nginx's source"
    prepare_apt
    debian_mirror

    printf 'deb-src %s %s main\n' "$mirror" "$release" >"$list"
    apt_does apt-get -o Dir::Etc::SourceList="$list" \
             -o Dir::Etc::SourceParts=/dev/null \
             -o APT::Get::List-Cleanup=false update \
        || apt_failed "the list of sources could not be fetched"

    (cd "$dir/fetch" \
     && apt_does apt-get -o Dir::Etc::SourceList="$list" \
                 -o Dir::Etc::SourceParts=/dev/null source nginx) \
        || apt_failed "the source of nginx could not be fetched"

    # Its name tells the version; there is one directory.
    mv "$dir"/fetch/nginx-*/ "$source"
    rm -rf "$dir/fetch"
}


# What the makefile cannot see: when one of these changes, configure again.

inputs() {
    cat "$root/config" "$root/t/couch/config" "$0"
    printf '%s\n' "$root" "$root"/src/*
}


# NGX_DEBUG_PALLOC makes each allocation from a pool one of its own: within
# pools the sanitizer sees no overflow.  NGX_HAVE_NONALIGNED keeps nginx's
# HTTP/2 from writing to odd addresses, which x86 allows, but not the sanitizer.
# Only the static libraries heed log_path both.

build_nginx() {
    local sanitize=-fsanitize=address,undefined

    [ -x "$source/configure" ] || fetch_source

    if ! inputs | cmp -s - "$dir/objs/inputs"; then
        rm -rf "$dir/objs"
        (cd "$source" \
         && ./configure --builddir="$dir/objs" --prefix="$dir" \
                --with-debug --with-threads --with-http_ssl_module \
                --with-http_v2_module --with-http_realip_module \
                --with-http_stub_status_module --with-http_auth_request_module \
                --with-cc-opt="-g -O1 -fno-omit-frame-pointer $sanitize \
                    -fno-sanitize=nonnull-attribute \
                    -fno-sanitize-recover=undefined -DNGX_DEBUG_PALLOC=1 \
                    -DNGX_HAVE_NONALIGNED=0" \
                --with-ld-opt="$sanitize -static-libasan -static-libubsan" \
                --add-module="$root" --add-module="$root/t/couch") \
            >"$dir/configure.log" 2>&1 \
            || {
                tail -n 20 "$dir/configure.log" >&2
                die "nginx's configure failed (build/sanitize/configure.log)"
            }
        inputs >"$dir/objs/inputs"
    fi

    make -s -C "$source" -f "$dir/objs/Makefile" -j "$(nproc)" binary \
         >"$dir/make.log" 2>&1 \
        || {
            tail -n 30 "$dir/make.log" >&2
            die "nginx with the sanitizers does not build"
        }
}


need build sanitize
mkdir -p "$dir"
locked sanitize build_nginx

logs=$(mktemp -d "$dir/logs.XXXXXX")
# Workers that are not root write there too.
chmod 1777 "$logs"
# shellcheck disable=SC2064  # its value now
trap "rm -rf '$logs'" EXIT

# What nginx allocates for its whole life is freed by no one.
printf 'leak:%s\n' ngx_alloc ngx_calloc ngx_memalign >"$dir/suppressions"

# Test::Nginx adds the test's name to log_path, and takes options apart at
# commas.
export ASAN_OPTIONS="detect_leaks=1,strict_string_checks=1,quarantine_size_mb=16,log_path=$logs/report"
export LSAN_OPTIONS="suppressions=$dir/suppressions,print_suppressions=0"
export UBSAN_OPTIONS="print_stacktrace=1,log_path=$logs/undefined"
export TEST_NGINX_BINARY=$dir/objs/nginx
export TEST_NGINX_TIMEOUT=${TEST_NGINX_TIMEOUT:-10}
unset TEST_NGINX_LOAD_MODULES

# All is slower: the longest tests do less of the same.
export VIBE_SHORT=1

status=0
"$root/util/test.sh" "$@" || status=$?

for report in "$logs"/*; do
    if [ -s "$report" ]; then
        status=1
        printf '\n%s\n' "${report##*/}"
        head -n 60 "$report"
    fi
done

[ "$status" != 0 ] || say "no report of the sanitizers"
exit "$status"
