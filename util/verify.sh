#!/usr/bin/env bash
#
# util/verify.sh [OPTION]...: compares each user's database with `global` and
# prints what differs; `--repair` sets it right, `--help` tells the rest.  It
# shares no code with the module.

. "$(dirname "$0")/setup.sh"

# 1 is for differences.
die() { say "$@"; exit 2; }

# Node is all it takes, no packages of npm's.
node -e 'process.exit(parseInt(process.versions.node) < 18)' 2>/dev/null \
    || need couch

VIBE_HOME=${VIBE_HOME:-$root/.vibe} exec node "$root/util/verify/verify.js" "$@"
