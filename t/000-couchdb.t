#!/usr/bin/perl

# The CouchDB that the tests use, embedded or real, behaves as the module expects.

use strict;
use warnings;

use FindBin;

if (!$ENV{VIBE_COUCHDB_URL}) {
    print "1..0 # SKIP VIBE_COUCHDB_URL is not set\n";
    exit 0;
}

exec 'node', "$FindBin::Bin/../util/couch/conformance.js"
    or die "cannot run node: $!\n";
