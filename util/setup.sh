# shellcheck shell=bash
#
# Sourced by the commands beside it: where things are, and how what is
# missing gets installed.  Everything that is made here lies below build/.

set -euo pipefail
umask 022

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
build=$root/build

export LC_ALL=C.UTF-8
export PATH="$PATH:/usr/sbin:/sbin"


say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }

die() { say "$@"; exit 1; }


case $root in
    # nginx's configure and Test::Nginx both split paths at blanks.
    *[[:space:]]*) die "the path of the checkout must not hold blanks: $root" ;;
esac

mkdir -p "$build"


# locked NAME COMMAND...: two commands that were started at once do not build
# or install the same thing twice.

locked() {
    local lock=$build/$1.lock
    shift

    {
        flock 9
        "$@" 9>&-
    } 9>"$lock"
}


# need TASK...: installs what the tasks need and this machine has not.

need() {
    local task left want=''

    for task in "$@"; do
        case $task in
            build)    want="$want nginx nginx-dev gcc libc6-dev make
                            libyajl-dev libpcre2-dev libssl-dev
                            libcurl4-openssl-dev zlib1g-dev" ;;
            couch)    node_works || want="$want nodejs npm ca-certificates" ;;
            run)      want="$want perl curl" ;;
            token)    want="$want perl" ;;
            test)     want="$want perl openssl curl" ;;
            bench)    want="$want perl wrk" ;;
            sanitize) want="$want dpkg-dev patch xz-utils" ;;
            lint)     want="$want perl shellcheck clang-tidy cppcheck" ;;
        esac
    done

    # shellcheck disable=SC2086  # a list of names
    left=$(missing $want)
    [ -z "$left" ] || locked apt install_packages "$left"

    case " $* " in
        *' test '*) test_nginx_works || locked apt install_test_nginx ;;
    esac

    case " $* " in
        *' couch '*) couch_modules_work || locked npm install_couch_modules ;;
    esac
}


# missing PACKAGE...: prints those that are not installed.

missing() {
    local name have

    [ $# -gt 0 ] || return 0

    have=$(dpkg-query -W -f ' ${Package}=${db:Status-Status} ' "$@" \
           2>/dev/null) || true

    for name in "$@"; do
        case $have in
            *" $name=installed "*) ;;
            *) printf '%s ' "$name" ;;
        esac
    done
}


# Any node from 18 on will do, also one that is not Debian's.

node_works() {
    local version

    command -v npm >/dev/null || return 1
    version=$(node --version 2>/dev/null) || return 1
    version=${version#v}
    [ "${version%%.*}" -ge 18 ]
}


test_nginx_works() {
    [ -e /usr/share/perl5/Test/Nginx/Socket.pm ] \
        || perl -MTest::Nginx::Socket -e 1 2>/dev/null
}


must_be_root() {
    [ "$(id -u)" = 0 ] || die "not root, and not installed yet: $*"
}


# apt_does COMMAND...: apt with lists, archives and sources below build/, so
# that the machine's own are left as they were found.  Quiet; what it said is
# shown by apt_failed.

apt_does() {
    local command=$1
    shift

    DEBIAN_FRONTEND=noninteractive NEEDRESTART_SUSPEND=1 \
        "$command" -c "$build/apt/apt.conf" "$@" \
        </dev/null >"$build/apt/output" 2>&1
}


apt_failed() {
    tail -n 20 "$build/apt/output" >&2
    rm -f "$build/apt/updated"
    die "$* (all that apt said: build/apt/output)." \
        "Is there a network, and a Debian mirror in /etc/apt?"
}


# The machine's own sources and preferences, with room for ours beside them.

prepare_apt() {
    local file dir=$build/apt

    rm -rf "$dir/sources.list.d"
    mkdir -p "$dir/lists/partial" "$dir/cache/archives/partial" "$dir/log" \
             "$dir/bin" "$dir/sources.list.d"

    for file in /etc/apt/sources.list.d/*; do
        [ ! -e "$file" ] || ln -s "$file" "$dir/sources.list.d/"
    done

    cat /etc/apt/preferences >"$dir/preferences" 2>/dev/null || true

    prepare_stand_ins "$dir/bin"

    cat >"$dir/apt.conf" <<EOF
Dir::State::Lists "$dir/lists";
Dir::Cache "$dir/cache";
Dir::Log "$dir/log";
Dir::Etc::Preferences "$dir/preferences";
Dir::Etc::SourceParts "$dir/sources.list.d";
DPkg::Path "$dir/bin:/usr/sbin:/usr/bin:/sbin:/bin";
DPkg::Lock::Timeout "300";
DPkg::Options { "--force-confold"; };
APT::Install-Recommends "false";
APT::Get::Remove "false";
# The checkout may be out of reach for the user _apt.
APT::Sandbox::User "root";
Acquire::Languages "none";
Acquire::Retries "3";
# Hooks of other programs that want to know of new lists: these are not theirs.
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
EOF

    # The lists of a day are good enough; if an installation fails with them,
    # the next one asks again.
    if [ -z "$(find "$dir/updated" -mmin -1440 2>/dev/null)" ]; then
        # One broken source of the machine's must not stop us: if it is one
        # that matters, the installation says so.
        apt_does apt-get update || say "some package lists are out of reach"
        touch "$dir/updated"
    fi
}


# dpkg's PATH begins with these stand-ins, so that no service is started by what
# is installed, and none that is new to this machine will be at the next boot.

prepare_stand_ins() {
    local name

    for name in invoke-rc.d deb-systemd-invoke systemctl; do
        printf '#!/bin/sh\nexit 0\n' >"$1/$name"
    done

    cat >"$1/deb-systemd-helper" <<'EOF'
#!/bin/sh
for unit; do :; done
/usr/bin/deb-systemd-helper "$@" || exit
if [ "$1" = enable ] && ! grep -qsx "$unit" "${0%/*}/../units"; then
    /usr/bin/deb-systemd-helper disable "$unit"
fi
EOF

    cat >"$1/update-rc.d" <<'EOF'
#!/bin/sh
if [ "$2" = defaults ] && ! ls /etc/rc?.d/[SK]??"$1" >/dev/null 2>&1; then
    exec /usr/sbin/update-rc.d "$1" defaults-disabled
fi
exec /usr/sbin/update-rc.d "$@"
EOF

    chmod 755 "$1"/*

    # The units that are there already keep their state.
    find /lib/systemd/system /etc/systemd/system -maxdepth 1 -printf '%f\n' \
         2>/dev/null >"$1/../units" || true
}


install_packages() {
    local want version

    # Another command may have installed them while this one waited.
    # shellcheck disable=SC2086
    want=$(missing $1)
    [ -n "$want" ] || return 0

    must_be_root "$want"
    say "installing $want"
    prepare_apt

    # A server that is there, and perhaps at work, is not upgraded from here.
    version=$(dpkg-query -W -f '${Version}' nginx 2>/dev/null) || version=''
    [ -z "$version" ] || want=${want/nginx-dev /nginx-dev=$version }

    # shellcheck disable=SC2086
    apt_does apt-get -y install $want \
        || apt_failed "these packages could not be installed: $want"
    rm -rf "$build/apt/cache"
}


# debian_mirror: sets mirror to the address from which this machine has Debian.

debian_mirror() {
    # shellcheck disable=SC2016  # apt puts the address in
    apt_does apt-get indextargets --format '$(REPO_URI)' \
             'Created-By: Packages' 'Label: Debian' \
        || apt_failed "the package sources could not be read"
    mirror=$(sort -u "$build/apt/output" | grep -m 1 :/) \
        || apt_failed "the address of Debian's mirror is not known"
}


# Test::Nginx is in Debian's sid only, so far.  It is all Perl and runs on
# Debian 12; nothing else may come from there.

install_test_nginx() {
    local mirror key=/usr/share/keyrings/debian-archive-keyring.gpg
    local sid=$build/apt/sources.list.d/vibe-sid.list

    ! test_nginx_works || return 0

    must_be_root libtest-nginx-perl
    say "installing libtest-nginx-perl"
    prepare_apt

    if ! apt_does apt-cache show libtest-nginx-perl; then
        debian_mirror

        [ -e "$key" ] && key="[signed-by=$key] " || key=''
        echo "deb $key$mirror sid main" >"$sid"
        cat >>"$build/apt/preferences" <<'EOF'

Package: *
Pin: release n=sid
Pin-Priority: -1

Package: libtest-nginx-perl
Pin: release n=sid
Pin-Priority: 500
EOF
        # A mirror that is a snapshot has a list of sid that looks expired.
        apt_does apt-get -o Acquire::Check-Valid-Until=false \
                 -o Dir::Etc::SourceList="$sid" \
                 -o Dir::Etc::SourceParts=/dev/null \
                 -o APT::Get::List-Cleanup=false update \
            || apt_failed "the package list of sid could not be fetched"
    fi

    apt_does apt-get -y install libtest-nginx-perl \
        || apt_failed "libtest-nginx-perl could not be installed"
    rm -rf "$build/apt/cache"
}


# The embedded CouchDB's packages: fetched once for each lock file.  npm writes
# its own copy of that file last of all.

couch_modules_work() {
    [ "$root/util/couch/node_modules/.package-lock.json" -nt \
      "$root/util/couch/package-lock.json" ]
}


install_couch_modules() {
    local dir=$root/util/couch

    ! couch_modules_work || return 0

    say "installing the embedded CouchDB's packages"

    # npm keeps its cache and its logs below build/ too.
    if ! npm --prefix "$dir" --cache "$build/npm" \
             ci --omit=dev --no-audit --no-fund --no-update-notifier \
             </dev/null >"$build/npm.output" 2>&1
    then
        tail -n 20 "$build/npm.output" >&2
        die "npm could not install the packages of util/couch (all that it" \
            "said: build/npm.output). Is there a network?"
    fi

    rm -rf "$build/npm"
}


# secret: 32 hex digits that nobody can guess.

secret() { od -An -N16 -tx1 /dev/urandom | tr -d ' \n'; }


# use_home: sets home, where run.sh and token.sh keep their state, with the key
# that signs the development tokens.

use_home() {
    home=${VIBE_HOME:-$root/.vibe}

    (umask 077 && mkdir -p "$home" 2>/dev/null) || die "cannot make VIBE_HOME: $home"
    home=$(cd "$home" && pwd -P)

    case $home in
        # It gets into nginx.conf.
        *[!A-Za-z0-9/._@+,=-]*) die "VIBE_HOME has odd characters: $home" ;;
    esac

    [ -s "$home/vibe.key" ] || private "$home/vibe.key" "$(secret)$(secret)"
}


# private FILE TEXT: writes it with mode 0600, whole or not at all.

private() {
    (umask 077 && printf '%s\n' "$2" >"$1.$$") || die "cannot write $1"
    mv -f "$1.$$" "$1"
}


# alone COMMAND...: runs it as a child that ends when this shell does, whatever
# ends it.

alone() { exec setpriv --pdeathsig TERM -- "$@"; }


# start_couch DIR LOG USER:PASSWORD: starts an embedded CouchDB on a free port;
# sets couch_pid and, when it answers, couch_port.

start_couch() {
    local dir=$1 log=$2 turn

    mkdir -p "$dir"
    : >"$log"
    COUCH_ADMIN=$3 alone node "$root/util/couch/server.js" \
        --host 127.0.0.1 --port 0 --dir "$dir" </dev/null >>"$log" 2>&1 &
    couch_pid=$!

    # shellcheck disable=SC2034  # turn only counts
    for turn in $(seq 300); do
        couch_port=$(sed -n 's/^ready on .*:\([0-9][0-9]*\).*/\1/p' "$log")
        [ -z "$couch_port" ] || return 0
        kill -0 "$couch_pid" 2>/dev/null || break
        sleep 0.1
    done

    tail -n 5 "$log" >&2
    die "the embedded CouchDB did not start ($log)"
}


# end PID: ends a child and waits for it.

end() {
    local turn

    kill "$1" 2>/dev/null || return 0
    for turn in $(seq 100); do
        kill -0 "$1" 2>/dev/null || break
        sleep 0.1
    done
    [ "$turn" -lt 100 ] || kill -KILL "$1" 2>/dev/null || true
    wait "$1" 2>/dev/null || true
}
