#!/usr/bin/env bash
#
# util/adopt.sh [OPTION]... FILE: records whose the existing databases are,
# from lines `database DID`; `--help` tells the rest.

. "$(dirname "$0")/setup.sh"

# 1 is for lines that are refused.
die() { say "$@"; exit 2; }

# Node is all it takes, no packages of npm's.
node -e 'process.exit(parseInt(process.versions.node) < 18)' 2>/dev/null \
    || need couch

VIBE_HOME=${VIBE_HOME:-$root/.vibe} exec node "$root/util/verify/adopt.js" "$@"
