package Vibe::Mend;

# What the tests of the background repair share.
#
#     my $nginx = repairing(workers => 2); # an nginx with vibe_zone
#     settled($nginx);
#
#     edit($db, $id, $doc);                # past the module
#     converges($db, $did, 5, 'what it is about');
#
# What `global` should hold is decided here anew, from the user's database.
#
# With VIBE_REPAIR=off in the environment nginx has no vibe_zone: whatever
# tests repair must fail then.

use strict;
use warnings;

use Cwd qw(abs_path);
use Digest::MD5 qw(md5_hex);
use Exporter qw(import);
use File::Basename qw(dirname);
use HTTP::Tiny;
use JSON::PP;
use MIME::Base64 qw(encode_base64);
use Test::More ();
use Time::HiRes qw(sleep time);
use Vibe;

our @EXPORT = qw(
    repairing status settled kill_nginx end_nginx
    make_db edit stored leaf new_client change replicate
    differences converges verify adopt patience
);

my $json = JSON::PP->new->utf8->canonical->allow_nonref;
my $root = abs_path(dirname(__FILE__) . '/../../..');
my $off = ($ENV{VIBE_REPAIR} // '') eq 'off';

# The limits of the tests are those that repair is to keep on a machine of its
# own, which VIBE_STRICT=1 asks for; others have more to do.  With the
# sanitizers all is slower; without repair there is nothing to wait for.
my $factor = $off ? 0.2 : $ENV{TEST_NGINX_BINARY} ? 4
           : $ENV{VIBE_STRICT} ? 1 : 3;


# patience($seconds): as long as that may take here.

sub patience { return $_[0] * $factor }


# ---- CouchDB ----------------------------------------------------------------

sub _ask {
    my ($method, $path, $body) = @_;

    my ($url, $auth) = Vibe::couchdb();

    # Kept open, a connection would wait 40 ms for each body: HTTP::Tiny sends
    # it apart from the header.
    my $http = HTTP::Tiny->new(timeout => 60, max_redirect => 0,
                               keep_alive => 0);

    $body = $json->encode($body) if ref $body;

    my $res = $http->request($method, $url . $path, {
        headers => { Authorization => 'Basic ' . encode_base64($auth, ''),
                     Accept => 'application/json',
                     'Content-Type' => 'application/json' },
        defined $body ? (content => $body) : (),
    });

    return ($res->{status}, $res->{content});
}


sub _json {
    my ($status, $text) = _ask(@_);

    return ($status, eval { $json->decode($text) });
}


sub make_db {
    my ($did) = @_;

    my $db = userdb($did);
    my ($status) = _ask('PUT', "/$db?q=1");
    Test::More::fail("making $db: $status") if $status !~ /^20[12]$/;

    return $db;
}


# stored($db, $id): the winner, also if it is deleted; undef: no trace of it.

sub stored {
    my ($db, $id) = @_;

    my ($status, $data) = _json('POST', "/$db/_all_docs", { keys => [$id] });
    return if $status != 200;

    my $row = $data->{rows}[0];
    return if $row->{error};

    ($status, $data) = _json('POST', "/$db/_bulk_get",
        { docs => [{ id => $id, rev => $row->{value}{rev} }] });
    return $data->{results}[0]{docs}[0]{ok};
}


# edit($db, $id, $doc): makes it the newest revision, whatever there is; a
# reference to code gets what there is and returns what shall be.  Returns the
# new revision.

sub edit {
    my ($db, $id, $doc) = @_;

    for my $try (1 .. 100) {
        my $old = stored($db, $id);
        my $new = ref $doc eq 'CODE' ? $doc->({ %{ $old // {} } }) : { %$doc };

        # Ended, it cannot end again.
        return $old->{_rev} if $new->{_deleted} && $old && $old->{_deleted};

        delete $new->{_rev};
        $new->{_id} = $id;
        $new->{_rev} = $old->{_rev} if $old && !$old->{_deleted};

        my ($status, $rows) = _json('POST', "/$db/_bulk_docs",
                                    { docs => [$new] });
        return $rows->[0]{rev} if ref $rows eq 'ARRAY' && $rows->[0]{ok};
        next if ref $rows eq 'ARRAY'
                && ($rows->[0]{error} // '') eq 'conflict';

        Test::More::fail("editing $id in $db: $status "
                         . $json->encode($rows));
        return;
    }

    Test::More::fail("editing $id in $db: always a conflict");
    return;
}


# leaf($db, $id, $generation, $letter, %members): another branch of it.

sub leaf {
    my ($db, $id, $start, $letter, %members) = @_;

    my $hash = $letter x 32;
    my ($status) = _ask('POST', "/$db/_bulk_docs", {
        new_edits => $JSON::PP::false,
        docs => [{ _id => $id, _rev => "$start-$hash",
                   _revisions => { start => $start, ids => [$hash] },
                   %members }],
    });
    Test::More::fail("a leaf of $id in $db: $status")
        if $status !~ /^20[12]$/;

    return "$start-$hash";
}


# ---- a sync client ----------------------------------------------------------

# new_client(): somebody's PouchDB.  change() makes a revision of a document in
# it; replicate() brings all that is new to a database as PouchDB does:
# checkpoint, _revs_diff, _bulk_docs with new_edits:false in batches of 100,
# checkpoint.

sub new_client {
    return { id => md5_hex(rand() . $$), docs => {}, new => [], pushed => 0 };
}


sub change {
    my ($client, $id, %members) = @_;

    my $doc = $client->{docs}{$id} //= { ids => [] };

    unshift @{ $doc->{ids} },
            md5_hex($client->{id}, $id, $json->encode(\%members), rand());
    $doc->{members} = \%members;
    push @{ $client->{new} }, $id;

    return scalar(@{ $doc->{ids} }) . "-$doc->{ids}[0]";
}


sub replicate {
    my ($client, $db) = @_;

    my $checkpoint = "/$db/_local/$client->{id}";
    my %seen;
    my @ids = grep { !$seen{$_}++ } splice @{ $client->{new} };

    _ask('GET', "/$db");
    my ($status, $old) = _json('GET', $checkpoint);

    while (my @batch = splice(@ids, 0, 100)) {
        my @docs = map {
            my $doc = $client->{docs}{$_};
            my $n = @{ $doc->{ids} };
            +{ %{ $doc->{members} }, _id => $_, _rev => "$n-$doc->{ids}[0]",
               _revisions => { start => $n, ids => [@{ $doc->{ids} }] } };
        } @batch;

        ($status, my $missing) = _json('POST', "/$db/_revs_diff",
            { map { $_->{_id} => [$_->{_rev}] } @docs });
        @docs = grep { $missing->{ $_->{_id} } } @docs;

        ($status, my $rows) = _json('POST', "/$db/_bulk_docs",
            { docs => \@docs, new_edits => $JSON::PP::false });
        Test::More::fail("replicating to $db: $status")
            if $status !~ /^20[12]$/ || @$rows;
    }

    _ask('PUT', $checkpoint, { last_seq => ++$client->{pushed},
        $old && $old->{_rev} ? (_rev => $old->{_rev}) : () });
    return;
}


# ---- nginx ------------------------------------------------------------------

# repairing(%option): nginx_start() with the background work turned on.
#
#     directives => TEXT          more of them, for `http {}`
#     tap        => Vibe::Tap     between it and CouchDB
#     zone       => 'vibe 8m'

sub repairing {
    my (%opt) = @_;

    my $directives = delete $opt{directives} // '';
    my $zone = delete $opt{zone} // 'vibe 8m';
    my $tap = delete $opt{tap};

    my $extra = $off ? '' : "vibe_zone $zone;\n$directives\n";
    my $status = $off ? ''
        : "location = /vibe/status { vibe_status; }\n";

    return nginx_start(
        http => $tap ? $tap->http_config(extra => $extra)
                     : http_config(extra => $extra),
        server => server_config(extra => $status),
        %opt);
}


# status($nginx): what its vibe_status says, { } if nothing.

sub status {
    my ($nginx) = @_;

    return {} if !$nginx->{pid};

    my $res = HTTP::Tiny->new(timeout => 2)->request('GET',
        'http://127.0.0.1:' . $nginx->port . '/vibe/status');
    my $data = $res->{status} == 200 && eval { $json->decode($res->{content}) };

    return ref $data eq 'HASH' ? $data : {};
}


# settled($nginx [, $seconds]): until it has nothing more to do; true then.

sub settled {
    my ($nginx, $seconds) = @_;

    my $last;
    my $done = wait_for {
        sleep 0.05;
        my $s = $last = status($nginx);
        my $r = $s->{repair} // return;
        return $s->{lease}{leading} && $s->{global}{complete}
               && !$r->{databases_due} && !$r->{lag_changes};
    } $off ? 0 : patience($seconds // 60);

    Test::More::ok($done, 'repair has nothing more to do')
        or Test::More::diag($json->encode($last), "\n", _tail($nginx));
    return $done;
}


sub _tail {
    my ($nginx) = @_;

    my @lines = grep { /vibe|\[(?:alert|crit|error|warn)\]/ }
                grep { !/\[debug\]/ } split /\n/, $nginx->log;
    return join("\n", @lines > 12 ? @lines[-12 .. -1] : @lines);
}


# kill_nginx($nginx): all of its processes at once, as a crash would.

sub kill_nginx {
    my ($nginx) = @_;

    my $pid = delete $nginx->{pid} // return;
    my @workers = split ' ', read_file("/proc/$pid/task/$pid/children");

    kill('KILL', $pid, @workers);
    waitpid($pid, 0);
    return;
}


# end_nginx($nginx, $allowed): stop(), where lines of the log that are bad
# elsewhere were meant to be here.

sub end_nginx {
    my ($nginx, $allowed) = @_;

    my $log = $nginx->error_log;
    my $text = join('', map { "$_\n" } grep { !/$allowed/ }
                        split /\n/, read_file($log));

    # nginx appends to it.
    open(my $fh, '+<', $log) or die "$log: $!\n";
    truncate($fh, 0);
    print {$fh} $text;
    close $fh;

    return $nginx->stop;
}


# ---- what is right ----------------------------------------------------------

# The decision about a document, for what the tests write.

sub _access {
    my ($did, $acl) = @_;

    return 'private' if ref $acl ne 'HASH';

    my $read = $acl->{read} // {};
    my @allow = @{ $read->{allow} // [] };
    my @deny = @{ $read->{deny} // [] };
    my $all = JSON::PP::is_bool($acl->{global}) && $acl->{global}
              || grep { $_ eq '*' } @allow;

    return 'public' if $all && !@deny;
    return 'restricted' if $all;
    return 'restricted'
        if grep { my $who = $_; $who ne $did && !grep { $_ eq $who } @deny }
                @allow;
    return 'private';
}


sub _collection {
    my ($doc) = @_;

    return $doc->{collection} if defined $doc->{collection};
    return $doc->{_id} =~ m{^([^/]+)/} ? $1 : undef;
}


# The members that a copy has of its document.

sub _body {
    my ($doc) = @_;

    return $json->encode({ map { $_ => $doc->{$_} }
                           grep { !/^(?:_|vibe_|collection$)/ } keys %$doc });
}


sub _rows {
    my ($text) = @_;

    my $data = eval { $json->decode($text) };
    return map { $_->{doc} } grep { $_->{doc} } @{ ($data // {})->{rows} // [] };
}


# differences($db, $did): how `global` differs from what this database of this
# owner calls for, as { id, why, source, copy }; nothing if it is right.

sub differences {
    my ($db, $did) = @_;

    my $range = '&startkey=' . _escape("$did:") . '&endkey=' . _escape("$did;");
    my ($status, $source) = _ask('GET', "/$db/_all_docs?include_docs=true");
    my ($found, $copies) = _ask('GET',
        "/global/_all_docs?include_docs=true&conflicts=true$range");

    return { id => '', why => "the database is $status" }
        if $status != 200 && $status != 404;
    return { id => '', why => "global is $found" }
        if $found != 200 && $found != 404;

    my %copy = map { $_->{_id} => $_ } _rows($copies);
    my @wrong;

    for my $doc ($status == 200 ? _rows($source) : ()) {
        next if $doc->{_id} =~ /^_design\//;

        my $copy = delete $copy{ gid($did, $doc->{_id}) };
        my $why = _wrong($db, $did, $doc, $copy);
        push @wrong, { id => $doc->{_id}, why => $why, source => $doc,
                       copy => $copy } if $why;
    }

    push @wrong, map { { id => $_, why => 'a copy of nothing',
                         copy => $copy{$_} } } sort keys %copy;
    return @wrong;
}


sub _wrong {
    my ($db, $did, $doc, $copy) = @_;

    my $access = _access($did, $doc->{acl});
    my $collection = _collection($doc);

    $access = 'private' if !defined $collection;

    return $copy && "a $access document has a live copy"
        if $access eq 'private';
    return "a $access document has no copy" if !$copy;

    my %right = (vibe_rev => $doc->{_rev}, vibe_owner => $did, vibe_db => $db,
                 vibe_access => $access, vibe_v => 1,
                 collection => $collection);

    for my $name (sort keys %right) {
        my $is = $copy->{$name} // 'nothing';
        return "$name is $is, not $right{$name}" if $is ne $right{$name};
    }

    my $acl = $doc->{acl};
    my $allow = ($acl->{read} // {})->{allow};

    return 'vibe_read or vibe_deny in a public copy'
        if $access eq 'public' && ($copy->{vibe_read} || $copy->{vibe_deny});
    return 'the readers are ' . $json->encode($copy->{vibe_read})
        if $access eq 'restricted' && $allow && !$acl->{read}{deny}
           && join(' ', sort @{ $copy->{vibe_read} // [] })
              ne join(' ', sort @$allow);
    return 'the body differs' if _body($doc) ne _body($copy);
    return 'it has attachments' if $copy->{_attachments};
    return 'it has live conflicts: ' . $json->encode($copy->{_conflicts})
        if $copy->{_conflicts};
    return;
}


sub _escape {
    my ($text) = @_;

    my $key = $json->encode($text);
    $key =~ s/([^A-Za-z0-9_.~-])/sprintf('%%%02X', ord $1)/ge;
    return $key;
}


# converges($db, $did, $seconds, $name [, $nginx]): a test: that `global` is
# right within that time.  $db may be a list of [$db, $did].

sub converges {
    my ($db, $did, $seconds, $name, $nginx) = @_;

    local $Test::Builder::Level = $Test::Builder::Level + 1;

    my @all = ref $db ? @$db : [$db, $did];
    my $begin = time;
    my $end = $begin + patience($seconds);
    my (@wrong, $at);

    for (;;) {
        $at = time;
        @wrong = map { differences(@$_) } @all;
        last if !@wrong || $at > $end;
        sleep 0.1;
    }

    if (!@wrong) {
        return Test::More::ok($at <= $end, $name
                              . sprintf(' (%.1f s)', $at - $begin));
    }

    Test::More::fail($name);
    Test::More::diag(@wrong . " differences after $seconds s");
    for my $n (0 .. ($#wrong > 15 ? 15 : $#wrong)) {
        my $w = $wrong[$n];

        Test::More::diag("$w->{id}: $w->{why}");
        next if $n > 2;
        Test::More::diag("  source: " . _short($w->{source}));
        Test::More::diag("  copy:   " . _short($w->{copy}));
    }
    if ($nginx) {
        Test::More::diag('  status: ' . $json->encode(status($nginx)));
        Test::More::diag(_tail($nginx));
    }
    return;
}


sub _short {
    my ($doc) = @_;

    return 'none' if !$doc;

    my $text = $json->encode($doc);
    return length $text > 600 ? substr($text, 0, 600) . '…' : $text;
}


# verify(@databases): a test: what the independent witness says of them, or of
# all if none are named.

sub verify {
    my (@databases) = @_;

    local $Test::Builder::Level = $Test::Builder::Level + 1;

    my $tool = "$root/util/verify.sh";
    my @command = ($tool, map { ('--database', $_) } @databases);
    my $text = `@command 2>&1 </dev/null`;

    return Test::More::is($? >> 8, 0, 'util/verify.sh finds nothing wrong')
        || Test::More::diag(substr($text, 0, 2000));
}


# adopt(%did): records the owners of databases by util/adopt.sh, a test.

sub adopt {
    my (%did) = @_;

    my $list = write_file(join('', map { "$_ $did{$_}\n" } sort keys %did));
    my $text = `'$root/util/adopt.sh' '$list' 2>&1 </dev/null`;

    return Test::More::is($? >> 8, 0, 'util/adopt.sh records the owners')
        || Test::More::diag($text);
}


1;
