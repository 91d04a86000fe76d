#!/usr/bin/env bash
#
# util/lint.sh: reads the C, the shell, the JavaScript and the Perl with what
# there is for that; prints what it finds, and fails if it found anything.

. "$(dirname "$0")/setup.sh"

need build test couch lint
"$root/util/build.sh"
cd "$root"

nginx=/usr/share/nginx/src/src
status=0

c=(ngx_vibe_module.c src/*.c)
headers=(src/*.h)
mapfile -t scripts < <(find util .ci -name node_modules -prune -o -type f \
                            \( -name '*.sh' -o -path .ci/run \) -print)
mapfile -t js < <(find util -name node_modules -prune -o -name '*.js' -print)
mapfile -t perl < <(find t util -name node_modules -prune -o -type f \
                         \( -name '*.t' -o -name '*.pm' -o -name '*.pl' \) \
                         -print)

# nginx's own headers are not ours to judge.
flags=(-I src -isystem "$build/nginx")
for dir in core event event/modules os/unix http http/modules http/v2; do
    flags+=(-isystem "$nginx/$dir")
done

# nginx's callbacks have parameters that not each of them uses.
flags+=(-Wall -Wextra -Wno-unused-parameter -Wshadow -Wpointer-arith
        -Wdeclaration-after-statement)


# check NAME COMMAND...: silent if it finds nothing.

check() {
    local name=$1 began=$SECONDS
    shift

    if "$@" >"$build/lint.log" 2>&1; then
        say "$name: clean ($((SECONDS - began)) s)"
    else
        cat "$build/lint.log"
        say "$name: FAILED"
        status=1
    fi
}


# each COMMAND... -- FILE...: one file at a time, as many at once as there are
# processors.

each() {
    local command=()

    while [ "$1" != -- ]; do
        command+=("$1")
        shift
    done
    shift

    printf '%s\0' "$@" | xargs -0 -n 1 -P "$(nproc)" "${command[@]}"
}


# Left out of clang-tidy's checks: what C in nginx's style does on purpose.
# Neighbours of one type (a length and an index) are everywhere; memcpy and
# sprintf have no better kin in C (`_s` functions do not exist in glibc);
# assignments in conditions are how lists are walked; macros take statements.

tidy() {
    local checks='-*,clang-analyzer-*,bugprone-*'

    checks+=,-clang-analyzer-security.insecureAPI.DeprecatedOrUnsafeBufferHandling
    checks+=,-bugprone-easily-swappable-parameters
    checks+=,-bugprone-assignment-in-if-condition
    checks+=,-bugprone-macro-parentheses
    checks+=,-bugprone-narrowing-conversions
    checks+=,-bugprone-implicit-widening-of-multiplication-result

    clang-tidy --quiet --checks="$checks" --warnings-as-errors='*' "$1" \
               -- "${flags[@]}" 2>/dev/null
}


tidy_all() {
    local file failed=0 pids=()

    for file in "${c[@]}"; do
        tidy "$file" >"$build/tidy.${file##*/}" &
        pids+=($!)
        [ $((${#pids[@]} % $(nproc))) != 0 ] || wait -n || failed=1
    done
    for file in "${pids[@]}"; do wait "$file" || failed=1; done

    cat "$build"/tidy.*
    rm -f "$build"/tidy.*
    return "$failed"
}


leftovers() {
    ! grep -nE '^--- *(ONLY|LAST|SKIP)' "${perl[@]}"
}


check gcc     each gcc -O2 -Werror "${flags[@]}" -c -o /dev/null -- "${c[@]}"
check style   util/style.pl "${c[@]}" "${headers[@]}"
# nginx's headers are not shown to cppcheck: it would try each of their #ifs.
# nullPointerRedundantCheck: it sees through macros, which test for NULL where
# their user need not.
check cppcheck cppcheck --quiet --error-exitcode=1 --std=c99 --inline-suppr \
               --enable=warning,performance,portability -j "$(nproc)" \
               --suppress=missingInclude \
               --suppress=nullPointerRedundantCheck -I src "${c[@]}"
check clang-tidy tidy_all
# SC2317: functions that are called by a trap or by name look unused.
check shellcheck shellcheck -x -P SCRIPTDIR -e SC2317 "${scripts[@]}"
check node    each node --check -- "${js[@]}"
check perl    each perl -It/lib -c -- "${perl[@]}"
check tests   leftovers

exit "$status"
