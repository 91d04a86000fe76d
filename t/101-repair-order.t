# Whoever writes a document, through the module or past it, at once or in any
# order: within seconds `global` agrees with the winner in the user's database.
#
# The short form races 150 times; VIBE_LONG=1 does so 1,000 times.

use strict;
use warnings;

use JSON::PP;
use MIME::Base64 qw(encode_base64);
use Test::More;
use Time::HiRes qw(time);
use Vibe;
use Vibe::Couch;
use Vibe::Race;
use Vibe::Mend;

my $json = JSON::PP->new->utf8->canonical->allow_nonref;
my $true = JSON::PP::true;
my %public = (acl => { global => $true });
my $rounds = $ENV{VIBE_LONG} ? 1000 : $ENV{VIBE_SHORT} ? 75 : 150;
my $seed = $ENV{VIBE_SEED} || $$;

srand($seed);

# The embedded one opens each database that repair looks at: those that other
# tests left would count in what is timed here.
Vibe::Couch->start->make_default if $ENV{VIBE_EMBEDDED};
diag("seed $seed, $rounds rounds");

my $bob = did('bob');
my %bobs = (acl => { read => { allow => [$bob] } });
my ($couch_port) = (Vibe::couchdb())[0] =~ /:(\d+)$/;
my $basic = 'Basic ' . encode_base64((Vibe::couchdb())[1], '');

my $nginx = repairing(workers => 2);
settled($nginx, 120);


# send_direct($path, $body): to CouchDB itself, and does not wait.

sub send_direct {
    my ($path, $body) = @_;

    my $host = (Vibe::couchdb())[0] =~ s{^https?://}{}r;
    my $sock = IO::Socket::INET->new(PeerAddr => $host)
        or die "cannot connect to CouchDB: $@\n";
    my $text = $json->encode($body);

    $text = "POST $path HTTP/1.1\r\nHost: $host\r\nConnection: close\r\n"
            . "Authorization: $basic\r\nContent-Type: application/json\r\n"
            . 'Content-Length: ' . length($text) . "\r\n\r\n$text";
    syswrite($sock, $text) == length $text or die "cannot send: $!\n";

    return { sock => $sock };
}


sub rand_of { return $_[rand @_] }

sub some_access {
    my ($private) = @_;

    return rand(1) < $private ? () : rand(3) < 1 ? %bobs : %public;
}


# What stands in `global` for these ids: 'live', 'ended', or nothing.

sub traces {
    my ($did, @ids) = @_;

    my ($status, $data) = couch('POST', '/global/_all_docs',
        { keys => [map { gid($did, $_) } @ids] });
    my ($changed, $rows) = couch('POST', '/global/_changes?filter=_doc_ids',
        { doc_ids => [map { gid($did, $_) } @ids] });

    my %is = map { $_->{key} => $_->{value}{deleted} ? 'ended' : 'live' }
             grep { !$_->{error} } @{ $data->{rows} };
    my %row = map { $_->{id} => 1 } @{ ref $rows ? $rows->{results} : [] };

    return map { my $id = gid($did, $_);
                 $is{$id} // ($row{$id} ? 'a row' : '') } @ids;
}


subtest 'two workers and one who writes past them' => sub {
    my $alice = did('race');
    my $db = make_db($alice);
    my $token = token($alice);
    my $batch = 25;
    my (%answer, %public_once, %ends);

    for my $first (map { $_ * $batch } 0 .. $rounds / $batch - 1) {
        my @docs = map { "doc$_" } 0 .. $batch - 1;

        for my $i (0 .. $batch - 1) {
            my $round = $first + $i;
            my $id = $i < 20 ? $docs[$i] : "never$i";
            my $private = $i < 20 ? 0.4 : 1;
            my %base = (_id => $id, collection => 'posts', round => $round);

            # The direct writer learns the revision first, so that it meets the
            # others; now and then it adds a leaf.
            my $old = stored($db, $id);
            my %direct = (%base, by => 'direct', some_access($private));
            my @direct = ("/$db/_bulk_docs", { docs => [\%direct] });

            if ($round % 5 == 4) {
                my $generation = 1 + int(rand(12));
                my $hash = join('', map { rand_of('a' .. 'f') } 1 .. 32);
                $direct{_revisions} = { start => $generation, ids => [$hash] };
                $direct{_rev} = "$generation-$hash";
                $direct[1]{new_edits} = JSON::PP::false;
            } elsif ($old && !$old->{_deleted}) {
                $direct{_rev} = $old->{_rev};
            }

            my @sent = (
                ['POST', '/data/posts', $token,
                    { _id => $id, round => $round, by => 'one',
                      some_access($private) }],
                ['POST', '/data/posts', $token,
                    rand(6) < 1 ? { _id => $id, _deleted => $true }
                    : { _id => $id, round => $round, by => 'two',
                        some_access($private) }]);
            @sent = reverse @sent if rand(2) < 1;

            my @under_way = map { send_request($nginx, @$_) } @sent;
            splice(@under_way, int(rand(3)), 0, send_direct(@direct));

            $answer{ (answer_of($_))[0] }++ for @under_way;

            # Half of the rounds end private, one way or another.
            if ($round % 2) {
                edit($db, $id, $round % 4 == 1
                     ? { %base, by => 'last', v => 'private' }
                     : { _deleted => $true });
                # There may be another leaf beneath.
                my $left = stored($db, $id);
                edit($db, $id, { %base, v => 'private' })
                    if $left && !$left->{_deleted} && $left->{acl};
            }

            my $is = stored($db, $id);
            $ends{ $is && !$is->{_deleted} && $is->{acl} ? 'copy' : 'none' }++;
        }

        converges($db, $alice, 5, "rounds $first to " . ($first + $batch - 1),
                  $nginx) or last;
    }

    # What was 404 or 409 lost its race.
    ok(!grep({ !/^(?:20[12]|404|409)$/ } keys %answer),
       'every writer is answered') or diag(explain(\%answer));
    cmp_ok($ends{none}, '>=', $rounds / 2, "half end private ($ends{none})");
    cmp_ok($ends{copy}, '>', 0, "others do not ($ends{copy})");

    my @never = map { "never$_" } 20 .. $batch - 1;
    is_deeply([traces($alice, @never)], [map { '' } @never],
              'what was never public has no row in global');

    my ($status, $data) = request($nginx, 'POST', '/data/posts/query',
        token(did('stranger')), { global => $true, v => 'private',
                                  limit => 1000, by => 'last' });
    is_deeply([$status, grep { index($_->{_id}, $alice) == 0 }
               @{ $data->{docs} // [] }], [200], 'and nobody sees a private one');
};


# ---- conflicts --------------------------------------------------------------

# Each: the access of the module's write, and of the leaves that come and go.

my @flips = (
    [\%public, {}, \%public], [{}, \%public, {}], [\%public, \%bobs, {}],
    [\%bobs, {}, \%bobs], [\%public, \%public, \%bobs], [{}, {}, \%public],
);

subtest 'winners that flip back and forth' => sub {
    my $carol = did('flips');
    my $db = userdb($carol);
    my %base = (collection => 'posts');
    my %rev;

    for my $i (0 .. $#flips) {
        my ($status, $data) = request($nginx, 'POST', '/data/posts',
            token($carol), { _id => "doc$i", by => 'module', %{ $flips[$i][0] } });
        is($status, 201, "document $i");
    }

    my $put = sub {
        my ($leaf, $generation, $letter) = @_;

        for my $i (0 .. $#flips) {
            $rev{"$i $leaf"} = leaf($db, "doc$i", $generation, $letter, %base,
                                    by => $leaf, %{ $flips[$i][$leaf] });
        }
    };
    my $end = sub {
        my ($leaf) = @_;

        for my $i (0 .. $#flips) {
            my ($status, $rows) = couch('POST', "/$db/_bulk_docs", { docs => [{
                _id => "doc$i", _rev => $rev{"$i $leaf"}, _deleted => $true }] });
            ok($rows->[0]{ok}, "document $i: a leaf is ended")
                or diag(explain($rows));
        }
    };
    my $right = sub {
        converges($db, $carol, 5, $_[0], $nginx);
    };
    my $by = sub {
        my ($who, $name) = @_;
        is_deeply([map { my $doc = stored($db, "doc$_");
                         $doc->{_deleted} ? 'none' : $doc->{by} } 0 .. $#flips],
                  [map { $who } 0 .. $#flips], $name);
    };

    for my $turn (1 .. 3) {
        my $generation = $turn * 10;

        $put->(1, $generation, 'b');
        $by->(1, "turn $turn: a leaf wins");
        $right->('… in global, too');
        $put->(2, $generation, 'c');
        $by->(2, '… then another');
        $right->('… in global, too');
        $end->(2);
        $by->(1, '… which is ended');
        $right->('… in global, too');

        # Straight on: it need not be seen in between.
        $put->(2, $generation + 5, 'd');
        $end->(2);
        $end->(1);
        $by->('module', '… and both are: the module\'s wins');
        $right->('… in global, too');
    }

    edit($db, "doc$_", { _deleted => $true }) for 0 .. $#flips;
    $by->('none', 'the last leaf is ended');
    $right->('… in global, too');
};


# ---- other contents of the same name ----------------------------------------

# The documents of a state: what a sync client has, at some revision.

sub state_of {
    my ($client, $round) = @_;

    for my $n (1 .. 30) {
        my $kind = ($n + $round) % 3;
        change($client, "doc$n", collection => 'posts', round => $round,
               $kind == 0 ? () : $kind == 1 ? %bobs : %public);
    }
}


sub anew {
    my ($db) = @_;

    my ($status) = couch('DELETE', "/$db");
    is($status, 200, 'the database is deleted');
    ($status) = couch('PUT', "/$db?q=1");
    ok($status == 201 || $status == 202, '… and made anew');
}


# With nginx stopped meanwhile, or not.

sub meanwhile {
    my ($stopped, $work) = @_;

    $nginx->stop if $stopped;
    $work->();
    $nginx = repairing(workers => 2) if $stopped;
}


for my $stopped (0, 1) {
    my $when = $stopped ? 'while nginx is stopped' : 'while nginx runs';
    my $seconds = $stopped ? 10 : 5;

    subtest "made anew, $when" => sub {
        my $dora = did("anew$stopped");
        my $db = make_db($dora);
        my ($old, $new) = (new_client(), new_client());

        state_of($old, $_) for 1 .. 4;
        replicate($old, $db);
        converges($db, $dora, 5, 'there is a database', $nginx);

        meanwhile($stopped, sub {
            anew($db);
            state_of($new, 2);
            delete $new->{docs}{doc1};
            $new->{new} = [grep { $_ ne 'doc1' } @{ $new->{new} }];
            change($new, 'new', collection => 'posts', %public);
            replicate($new, $db);
        });
        converges($db, $dora, $seconds, 'its new contents count', $nginx);
        is((stored('global', gid($dora, 'doc1')) // {})->{_deleted}, $true,
           '… and what it had no more is gone');

        # Empty, and with no event but those of the databases.
        meanwhile($stopped, sub { anew($db) });
        converges($db, $dora, $seconds, 'also if there are none', $nginx);

        # To what `global` holds tombstones of newer revisions for.
        meanwhile($stopped, sub {
            change($new, "doc$_", collection => 'posts', again => 1, %public)
                for 1 .. 30;
            replicate($new, $db);
        });
        converges($db, $dora, $seconds, 'and then some again', $nginx);
    };


    subtest "restored from a copy, $when" => sub {
        my $erin = did("restored$stopped");
        my $db = make_db($erin);
        my $client = new_client();

        state_of($client, 1);
        state_of($client, 2);
        my $copy = $json->decode($json->encode($client));

        # The copy has not all that there is later.
        for my $round (3 .. 9) {
            state_of($client, $round);
            change($client, "later$round", collection => 'posts', %public);
            replicate($client, $db) if $round > 6;
        }
        converges($db, $erin, 5, 'there is a database', $nginx);

        # Whoever copies files takes the module's own documents along.
        my ($found, $checkpoint);
        wait_for {
            ($found, $checkpoint) = couch('GET', "/$db/_local/vibe_repair");
            $found == 200;
        } patience(10);
        is($found, 200, '… with a checkpoint');

        for my $along (0, 1) {
            meanwhile($stopped, sub {
                anew($db);
                if ($along && $found == 200) {
                    delete $checkpoint->{_rev};
                    my ($status) = couch('PUT', "/$db/_local/vibe_repair",
                                         $checkpoint);
                    is($status, 201, 'its checkpoint is brought along');
                }
                my $older = $json->decode($json->encode($copy));
                replicate($older, $db);
            });
            converges($db, $erin, $seconds, 'the older state counts', $nginx);

            replicate({ %{ $client }, new => [keys %{ $client->{docs} }] }, $db);
            converges($db, $erin, 5, 'then the newer, replicated', $nginx);
        }
    };
}


subtest 'few revisions are kept, and many were made meanwhile' => sub {
    my @all;

    for my $limit (1, 5) {
        my $frank = did("limit$limit");
        my $db = make_db($frank);
        my ($status) = couch('PUT', "/$db/_revs_limit", "$limit");
        next if $status == 501;

        is($status, 200, "_revs_limit $limit");
        push @all, [$db, $frank];
        couch('POST', "/$db/_bulk_docs", { docs => [map {
            { _id => "doc$_", collection => 'posts', v => 0,
              $_ % 2 ? %public : () } } 1 .. 8] });
    }

    plan(skip_all => 'this CouchDB has no _revs_limit') if !@all;
    converges(\@all, undef, 5, 'there are documents', $nginx);

    # The last state of each differs.
    my $edits = sub {
        my ($n) = @_;
        for my $one (@all) {
            my %rev;
            my ($status, $data) = couch('GET', "/$one->[0]/_all_docs");
            $rev{ $_->{id} } = $_->{value}{rev} for @{ $data->{rows} };

            for my $v (1 .. $n) {
                my @docs = map {
                    { _id => "doc$_", collection => 'posts', v => $v,
                      $rev{"doc$_"} ? (_rev => $rev{"doc$_"}) : (),
                      $v == $n && $_ > 6 ? (_deleted => $true)
                      : ($_ + $v) % 3 == 0 ? () : ($_ + $v) % 3 == 1 ? %bobs
                      : %public }
                } 1 .. 8;
                my ($written, $rows) = couch('POST', "/$one->[0]/_bulk_docs",
                                             { docs => \@docs });
                %rev = map { $_->{id} => $_->{rev} } @$rows;
                my @failed = grep { !$_->{ok} } @$rows;
                return fail("edit $v: $failed[0]{error}") if @failed;
            }
        }
    };

    $nginx->stop;
    $edits->(50);
    $nginx = repairing(workers => 2);
    converges(\@all, undef, 10, '50 edits while nginx was stopped', $nginx);

    $edits->(50);
    converges(\@all, undef, 5, '50 edits while it runs', $nginx);
};


$nginx->stop;

done_testing;
