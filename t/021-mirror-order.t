# However many write and mirror one document at once, early or late, `global`
# ends with what the owner's database says: the copy of its winner if that is
# public, and nothing that can be read if it is private.

use strict;
use warnings;

use JSON::PP;
use Test::More;
use Vibe;
use Vibe::Proxy;
use Vibe::Race;

my ($true, $false) = (JSON::PP::true, JSON::PP::false);

my %public = (acl => { global => $true });
my $posts = '/data/posts';

my $nginx = nginx_start(workers => 2);
my $proxy = Vibe::Proxy->start;
my $slow = nginx_start(workers => 2, http => $proxy->http_config);


# What a database holds of a document: its winner, also if that is deleted;
# undef if there is no trace of it.

sub winner {
    my ($db, $id) = @_;

    my ($status, $data) = couch('POST', "/$db/_all_docs", { keys => [$id] });
    my $row = $data->{rows}[0];
    return if $row->{error};

    ($status, $data) = couch('POST', "/$db/_bulk_get",
        { docs => [{ id => $id, rev => $row->{value}{rev} }] });
    return $data->{results}[0]{docs}[0]{ok};
}


# Whether `global` agrees with the owner's database about a document whose
# members `acl` are either public or not there; says why if not.

sub disagreement {
    my ($did, $id) = @_;

    my $source = winner(userdb($did), $id);
    my $copy = winner('global', gid($did, $id));

    my $public = $source && !$source->{_deleted}
                 && $source->{acl} && $source->{acl}{global};
    my $live = $copy && !$copy->{_deleted};

    return "a private document has a live copy" if $live && !$public;
    return "a public document has no live copy" if $public && !$live;
    return "the copy is of $copy->{vibe_rev}, the winner $source->{_rev}"
        if $public && $copy->{vibe_rev} ne $source->{_rev};
    return "the copy is not readable"
        if $public && ($copy->{vibe_access} // '') ne 'public';
    return;
}


sub agrees {
    my ($did, $id, $name) = @_;

    my $why = disagreement($did, $id);
    ok(!$why, $name) or diag($why);
}


# Whether somebody else sees the document in a global query.

sub visible {
    my ($id) = @_;

    my ($status, $data) = request($nginx, 'POST', '/data/posts/query',
        token(did('stranger')), { global => $true, mark => $id });

    is($status, 200, 'a global query') or return;
    return scalar @{ $data->{docs} };
}


subtest 'published, withdrawn, published, withdrawn' => sub {
    my $alice = did('again');
    my $token = token($alice);

    for my $round (1 .. 5) {
        my $private = $round % 2 ? 0 : 1;
        my ($status, $data) = request($nginx, 'POST', $posts, $token,
            { _id => 'doc', mark => "$alice $round",
              $private ? () : %public });

        is($status, 201, "write $round is mirrored");
        is($data->{global}, $private ? undef : gid($alice, 'doc'),
           "… and says whether there is a copy");
        agrees($alice, 'doc', "… and global agrees");
        is(visible("$alice $round"), $private ? 0 : 1, '… for readers too');
    }
};


subtest 'deleted and made again' => sub {
    my $alice = did('deleted');
    my $token = token($alice);

    for my $round (1 .. 3) {
        my ($status) = request($nginx, 'POST', $posts, $token,
                               { _id => 'doc', %public });
        is($status, 201, 'made');
        agrees($alice, 'doc', '… and published');

        ($status) = request($nginx, 'POST', $posts, $token,
                            { _id => 'doc', _deleted => $true });
        is($status, 201, 'deleted');
        agrees($alice, 'doc', '… and withdrawn');
    }
};


# Writer A is kept back at its write to `global`; B withdraws meanwhile.

sub late {
    my ($name, $first, $doc) = @_;

    my $alice = did("late-$name");
    my $token = token($alice);

    if ($first) {
        my ($status) = request($nginx, 'POST', $posts, $token,
                               { _id => 'doc', %$first });
        is($status, 201, 'there is a document');
    }

    my $hold = $proxy->hold("^POST /global/_bulk_docs\\S* .*$alice");
    my $one = send_request($slow, 'POST', $posts, $token,
                           { %$doc, mark => $alice, %public });
    ok($proxy->wait_held($hold), 'a copy is on its way to global');

    my $id = winner_id($alice);
    my ($status, $data) = request($nginx, 'POST', $posts, $token,
                                  { _id => $id, mark => $alice });
    is($status, 201, 'the document is withdrawn meanwhile');

    $proxy->release($hold);
    ($status, $data) = answer_of($one);
    ok($status == 201 || $status == 202, 'the first write is answered')
        or diag("$status");
    is($data->{global}, undef, '… and names no copy') or diag($status);

    agrees($alice, $id, 'the late copy stays out');
    is(visible($alice), 0, '… and nobody sees it');
}


sub winner_id {
    my ($did) = @_;

    my ($status, $data) = couch('GET', '/' . userdb($did) . '/_all_docs');
    return $data->{rows}[0]{id};
}


subtest 'a late copy of a new document' => sub {
    late('new', undef, { _id => 'doc' });
};

subtest 'a late copy of a new document whose id the module made' => sub {
    late('made', undef, {});
};

subtest 'a late copy of a private document' => sub {
    late('private', { v => 1 }, { _id => 'doc' });
};

subtest 'a late copy of a public document' => sub {
    late('public', \%public, { _id => 'doc' });
};


subtest 'a late copy of a document that was withdrawn before' => sub {
    my $alice = did('late-withdrawn');
    my $token = token($alice);

    for my $doc ({ _id => 'doc', %public }, { _id => 'doc' }) {
        my ($status) = request($nginx, 'POST', $posts, $token, $doc);
        is($status, 201, 'there is a tombstone');
    }

    my $hold = $proxy->hold("^POST /global/_bulk_docs\\S* .*$alice");
    my $one = send_request($slow, 'POST', $posts, $token,
                           { _id => 'doc', mark => $alice, %public });
    ok($proxy->wait_held($hold), 'a copy is on its way to global');

    my ($status) = request($nginx, 'POST', $posts, $token,
                           { _id => 'doc', mark => $alice });
    is($status, 201, 'the document is withdrawn meanwhile');

    $proxy->release($hold);
    ($status, my $data) = answer_of($one);
    is($data->{global}, undef, 'the late write names no copy');
    agrees($alice, 'doc', 'the late copy stays out');
    is(visible($alice), 0, '… and nobody sees it');
};


subtest 'two writers at once, one publishes, one withdraws' => sub {
    my $alice = did('race');
    my $token = token($alice);
    my (%seen, @bad);

    for my $round (1 .. 200) {
        my $id = 'doc' . $round % 20;

        my @answers = race($nginx,
            map { ['POST', $posts, $token, { _id => $id, %$_ }] }
                $round % 2 ? ({}, \%public) : (\%public, {}));

        $seen{ $_->[0] }++ for @answers;
        my $why = disagreement($alice, $id);
        push @bad, "round $round: $why" if $why;
    }

    is_deeply(\@bad, [], 'global agreed with the winner in each of 200 rounds')
        or diag(scalar(@bad), ' rounds, the first: ', $bad[0]);
    is_deeply([keys %seen], [201], 'and every write was mirrored')
        or diag(explain(\%seen));
};


subtest '64 writers without _rev on one document' => sub {
    my $alice = did('sixty-four');
    my $token = token($alice);

    my @answers = race($nginx,
        map { ['POST', $posts, $token,
               { _id => 'doc', v => $_, $_ % 2 ? %public : () }] } 1 .. 64);

    my %seen;
    $seen{ $_->[0] }++ for @answers;

    ok(!grep({ $_ !~ /^20[12]$/ } keys %seen),
       'each write is done, as the last writer wins') or diag(explain(\%seen));

    my ($status, $doc) = couch('GET', '/' . userdb($alice)
                                      . '/doc?revs_info=true');
    my $done = grep { $_->[0] == 201 || $_->[0] == 202 } @answers;
    is($doc->{_rev} =~ /^(\d+)-/ ? $1 : 0, $done,
       'each that was answered so is a revision');
    agrees($alice, 'doc', 'global agrees in the end');
};


# The winner is the module's, until a leaf comes past it that wins.

sub leaf {
    my ($did, $id, $start, $letter, %members) = @_;

    my $hash = $letter x 32;
    my ($status) = couch('POST', '/' . userdb($did) . '/_bulk_docs', {
        new_edits => $false,
        docs => [{ _id => $id, _rev => "$start-$hash", collection => 'posts',
                   _revisions => { start => $start, ids => [$hash] },
                   %members }],
    });
    is($status, 201, "a leaf of generation $start comes past the module");
    return "$start-$hash";
}


# Conflicting leaves: whichever of them wins after the module's next write to
# the document is what `global` tells.

my @leaves = (
    ['both public', \%public, \%public],
    ['public, and a private one that wins', \%public, {}],
    ['private, and a public one that wins', {}, \%public],
    ['both private', {}, {}],
);

for my $case (@leaves) {
    my ($name, $ours, $theirs) = @$case;

    subtest "conflicting leaves: $name" => sub {
        my $alice = did('leaves');
        my $token = token($alice);
        my $n = 0;
        my ($status, $data, $rev);

        my $begin = sub {
            my $id = "$name " . ++$n;
            ($status, $data) = request($nginx, 'POST', $posts, $token,
                                       { _id => $id, v => 'ours', %$ours });
            is($status, 201, 'there is a document');
            $rev = leaf($alice, $id, 20, 'f', v => 'theirs', %$theirs);
            return $id;
        };

        my $write = sub {
            my ($what, $doc) = @_;

            ($status) = request($nginx, 'POST', $posts, $token, $doc);
            is($status, 201, $what);
            agrees($alice, $doc->{_id}, '… and global has the winner');
        };

        my $id = $begin->();
        $write->('the winner is deleted', { _id => $id, _deleted => $true });
        is(winner(userdb($alice), $id)->{v}, 'ours', '… so another leaf wins');
        $write->('that one is deleted', { _id => $id, _deleted => $true });
        ok(winner(userdb($alice), $id)->{_deleted}, '… so nothing is left');
        $write->('it is made again', { _id => $id, %public });

        $id = $begin->();
        $write->('the losing leaf is deleted',
                 { _id => $id, _rev => $data->{rev}, _deleted => $true });

        $id = $begin->();
        $write->('the losing leaf is published',
                 { _id => $id, _rev => $data->{rev}, %public });
        $write->('the winner is deleted',
                 { _id => $id, _rev => $rev, _deleted => $true });

        $id = $begin->();
        $write->('the losing leaf is withdrawn',
                 { _id => $id, _rev => $data->{rev} });
        $write->('the winner is written', { _id => $id, v => 'new', %public });
        $write->('the winner is withdrawn', { _id => $id });

        $id = $begin->();
        leaf($alice, $id, 30, 'e', _deleted => $true);
        $write->('with an ended leaf about, the winner is published',
                 { _id => $id, _rev => $rev, %public });
        $write->('… and deleted', { _id => $id, _deleted => $true });
    };
}


# A document's many revisions: CouchDB forgets the old ones.

sub long_life {
    my ($did, $n, $every) = @_;

    my $token = token($did);
    my @bad;

    for my $i (1 .. $n) {
        my $public = $i % $every == 0;
        my ($status, $data) = request($nginx, 'POST', $posts, $token,
            { _id => 'doc', v => $i, mark => $did, $public ? %public : () });

        push @bad, "write $i: $status" if $status != 201;
        next if $i % $every > 1;

        my $why = disagreement($did, 'doc');
        push @bad, "write $i: $why" if $why;
    }

    is_deeply(\@bad, [], "$n writes are done, and mirrored");
    is(visible($did), $n % $every ? 0 : 1, 'as the last one said');

    my ($status) = request($nginx, 'POST', $posts, $token,
                           { _id => 'doc', mark => $did, %public });
    is(visible($did), 1, 'it is published');
    ($status) = request($nginx, 'POST', $posts, $token,
                        { _id => 'doc', mark => $did });
    is($status, 201, 'it is withdrawn');
    is(visible($did), 0, '… and not readable');
    agrees($did, 'doc', '… and global agrees');
}

subtest '1,500 updates' => sub { long_life(did('long'), 1500, 100) };

subtest '60 updates where CouchDB keeps 5 revisions' => sub {
    my $alice = did('short');

    couch('PUT', '/' . userdb($alice));
    my ($status) = couch('PUT', '/' . userdb($alice) . '/_revs_limit', '5');
    plan(skip_all => 'this CouchDB has no _revs_limit') if $status == 501;
    is($status, 200, '_revs_limit is set');

    long_life($alice, 60, 7);
};


$nginx->stop;
$slow->stop;

done_testing;
