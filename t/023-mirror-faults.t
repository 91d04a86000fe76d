# When CouchDB's answers are lost, late or half a truth, `global` follows what
# the owner's database really holds, and nothing that is not known for sure is
# taken for an absent document.

use strict;
use warnings;

use JSON::PP;
use Test::More;
use Vibe;
use Vibe::Faults;
use Vibe::Proxy;
use Vibe::Race;

my $json = JSON::PP->new->utf8->canonical->allow_nonref;
my ($true, $false) = (JSON::PP::true, JSON::PP::false);
my %public = (acl => { global => $true });

my $alice = did('alice');
my $own = userdb($alice);
my $token = token($alice);
my $stranger = token(did('stranger'));


# Of a _bulk_docs with "some" in it only the documents that have a `kept` are
# written, and the answer is 500 with CouchDB's rows, as those of a cluster are
# when a shard fails.

sub some {
    my ($method, $path, $body) = @_;

    return if $path !~ m{^/$own/_bulk_docs} || $body !~ /"some"/;

    my $docs = $json->decode($body)->{docs};
    my ($status, $rows) = couch('POST', $path,
        { docs => [grep { $_->{kept} } @$docs] });
    return ($status, $rows) if ref $rows ne 'ARRAY';

    return (500, [map { $_->{kept} ? shift @$rows
        : { id => $_->{_id}, error => 'internal_server_error', reason => 'x' }
    } @$docs]);
}


my $couch = faulty(\&some);
my $nginx = nginx_start(
    http => http_config(couchdb => $couch->{url}),
    server => server_config(proxy_read_timeout => '1s'));
my $n = 0;


sub post {
    my ($body) = @_;

    return request($nginx, 'POST', '/data/posts', $token, $body);
}


sub new_doc {
    my (%members) = @_;

    my $id = 'doc' . ++$n;
    my ($status, $answer) = post({ _id => $id, v => 1, %members });
    is($status, 201, "there is $id");
    return ($id, $answer->{rev});
}


# live($db, $id): a document's live winner.

sub live {
    my ($db, $id) = @_;

    my ($status, $doc) = couch('GET', "/$db/" . $id =~ s/%/%25/gr);
    return $status == 200 ? $doc : undef;
}


sub copy { return live('global', gid($alice, $_[0])) }


# leaf($id, $start, %members): a winning leaf comes past the module.

sub leaf {
    my ($id, $start, %members) = @_;

    my $hash = 'f' x 32;
    my ($status) = couch('POST', "/$own/_bulk_docs", {
        new_edits => $false,
        docs => [{ _id => $id, _rev => "$start-$hash", collection => 'posts',
                   _revisions => { start => $start, ids => [$hash] },
                   %members }],
    });
    is($status, 201, 'a leaf comes past the module');
    return "$start-$hash";
}


# What _bulk_get answers when a shard does not: a row's error of another kind.

sub timed_out {
    my ($id) = @_;

    return [200, { results => [{ id => $id, docs => [{ error => {
        id => $id, rev => 'undefined', error => 'internal_fabric_error',
        reason => 'timeout' } }] }] }];
}


subtest 'a look-up whose row is an error, but not "not_found"' => sub {
    my ($id, $rev) = new_doc(%public);
    my $before = copy($id);
    my $expand = "/data/expand?did=$alice&ref=$id";

    for ([$own, 'a write', sub { post({ _id => $id, v => 2 }) }],
         [$own, 'a deletion', sub { post({ _id => $id, _deleted => $true }) }],
         [$own, 'an expansion for the owner',
             sub { request($nginx, 'GET', $expand, $token) }],
         ['global', 'an expansion for others',
             sub { request($nginx, 'GET', $expand, $stranger) }])
    {
        my ($db, $name, $ask) = @$_;

        fault($couch, path => qr{^/$db/_bulk_get}, answer =>
              timed_out($db eq 'global' ? gid($alice, $id) : $id));
        my ($status, $answer) = $ask->();
        ok(hits($couch), "$name: it came about");
        is($status, 502, "$name: 502") or diag($json->encode($answer));
    }

    heal($couch);
    is(live($own, $id)->{_rev}, $rev, 'nothing was written');
    is_deeply(copy($id), $before, '… nor mirrored');

    fault($couch, path => qr{^/global/_bulk_get},
          answer => timed_out(gid($alice, $id)));
    my ($status, $answer) = post({ _id => $id, v => 2, %public });
    is("$status " . ($answer->{mirror} // ''), '202 pending',
       'the mirror\'s look-up: pending');
    heal($couch);
    is_deeply(copy($id), $before, '… and the copy is as it was');

    ($status) = post({ _id => $id, v => 3, %public });
    is($status, 201, 'the next write is mirrored');
    is(copy($id)->{v}, 3, '… and there');
};


subtest 'a source that cannot say is not asked for a withdrawal' => sub {

    # A write to a leaf that loses: the source is asked for its winner.
    my ($id, $rev) = new_doc(%public);
    my $winner = leaf($id, 20, v => 'winner', %public);
    my ($status, $answer) = post({ _id => $id, _rev => $rev, v => 2 });
    is($status, 201, 'the losing leaf is written');
    is(copy($id)->{vibe_rev}, $winner, 'the winner is in global');

    fault($couch, path => qr{^/$own/_bulk_get}, skip => 1,
          answer => timed_out($id));
    ($status, $answer) = post({ _id => $id, _rev => $answer->{rev}, v => 3 });
    ok(hits($couch), 'the mirror has asked the source');
    is("$status " . ($answer->{mirror} // ''), '202 pending',
       '… which cannot say: pending');
    heal($couch);
    is((copy($id) // {})->{vibe_rev}, $winner,
       '… and the copy is not withdrawn');

    # A conflict that may be with a write of one's own.
    ($id, $rev) = new_doc(%public);
    ($status) = post({ _id => $id, v => 2, %public });
    fault($couch, path => qr{^/$own/_bulk_get}, skip => 1,
          answer => timed_out($id));
    ($status) = post({ _id => $id, _rev => $rev, v => 3 });
    is($status, 409, 'a conflict');
    heal($couch);
    is((copy($id) // {})->{v}, 2, '… withdraws nothing either');
};


subtest 'a row that is written, beside one that is tried again' => sub {
    my $proxy = Vibe::Proxy->start;
    my $slow = nginx_start(http => $proxy->http_config);

    my ($raced) = new_doc();
    my ($losing, $rev) = new_doc(%public);
    leaf($losing, 20, v => 'winner');

    my $hold = $proxy->hold("^POST /$own/_bulk_docs");
    my $late = send_request($slow, 'POST', '/data/posts', $token,
        [{ _id => $losing, _rev => $rev, v => 2, %public },
         { _id => $raced, v => 'late' }]);
    ok($proxy->wait_held($hold, $late), 'the array is on its way');

    my ($status) = post({ _id => $raced, v => 'first' });
    is($status, 201, 'another writes one of the documents');
    $proxy->release($hold);

    ($status, my $rows) = answer_of($late);
    is($status, 201, 'the array is written');
    is_deeply([map { $_->{ok} } @$rows], [$true, $true], '… all of it')
        or diag($json->encode($rows));
    is(live($own, $raced)->{v}, 'late', '… also what was tried again');
    is(live($own, $losing)->{v}, 'winner', 'the other leaf wins');
    is($rows->[0]{global}, undef, '… which is private: no copy is named');
    is(copy($losing), undef, '… and none is there');

    $slow->stop;
};


# A withdrawal with `_rev` that CouchDB carries out, but does not tell.

my %lost = (
    'late' => [504, [200, '[]', delay => 2]],
    'half a header' => ['50[24]|409', [raw => "HTTP/1.1 201 Created\r\nConte"]],
    'half an answer' => ['50[24]',
        [201, '[{"ok":true,"id":"x","rev":"2-a"}]', half => 1]],
    'no answer' => ['50[24]|409', [close => 1]],
);

for my $how (sort keys %lost) {
    for my $what ('withdrawn', 'deleted', 'published') {
        my ($right, $answer) = @{ $lost{$how} };

        subtest "$how: $what, but who knows" => sub {
            my ($id, $rev) = new_doc($what eq 'published' ? () : %public);
            my %members = $what eq 'deleted' ? (_deleted => $true)
                        : $what eq 'published' ? %public : ();

            # Either time: nginx may have sent it on a new connection.
            fault($couch, path => qr{^/$own/_bulk_docs}, after => 1,
                  answer => $answer);
            my ($status) = post({ _id => $id, _rev => $rev, v => 2,
                                  %members });
            ok(hits($couch), 'it came about');
            like($status, qr/^(?:$right)$/, 'it is no success');
            heal($couch);

            my $doc = live($own, $id);
            ok($what eq 'deleted' ? !$doc : $doc && $doc->{v} == 2,
               'CouchDB has done it');
            is((copy($id) // {})->{vibe_rev},
               $what eq 'published' ? $doc->{_rev} : undef,
               'global has followed');

            ($status) = post({ _id => $id, _rev => $rev, v => 2, %members });
            is($status, 409, 'the same again is a conflict');
        };
    }
}


subtest 'the same again with _rev mirrors what was not' => sub {
    my ($id, $rev) = new_doc(%public);

    # As a write whose answer was lost, and nginx with it, leaves it.
    my ($status) = couch('PUT', "/$own/$id",
        { _rev => $rev, collection => 'posts', v => 2 });
    is($status, 201, 'withdrawn, but not mirrored');
    ok(copy($id), '… so there is a copy');

    ($status) = post({ _id => $id, _rev => $rev, v => 2 });
    is($status, 409, 'the same again');
    is(copy($id), undef, '… and it is gone');

    my @ids;
    for my $i (1 .. 2) {
        ($id, $rev) = new_doc(%public);
        push @ids, [$id, $rev];
        couch('PUT', "/$own/$id",
              { _rev => $rev, collection => 'posts', v => 2 });
    }
    ($status, my $rows) = post([map { { _id => $_->[0], _rev => $_->[1] } }
                                    @ids]);
    is_deeply([map { $_->{error} } @$rows], [('conflict') x 2],
              'and in an array');
    is_deeply([grep { copy($_->[0]) } @ids], [], '… they are gone, too');
};


subtest 'an array of which some is written, told with 500' => sub {
    my ($id) = new_doc(%public);
    my @docs = ({ _id => 'some1', kept => 1, mark => 'some', %public },
                { _id => 'some2', mark => 'some', %public },
                { _id => $id, kept => 1, mark => 'some' });

    my ($status, $rows) = post(\@docs);
    is($status, 201, 'answered row by row') or diag($json->encode($rows));
    is_deeply(ref $rows eq 'ARRAY'
                  && [map { $_->{ok} ? 'ok' : $_->{error} ? 'not' : '?' }
                      @$rows], ['ok', 'not', 'ok'], '… which is ok');
    my $doc = live($own, 'some1');
    is($rows->[0]{rev}, $doc->{_rev}, '… and its revision') if ref $rows
        eq 'ARRAY';
    is((copy('some1') // {})->{vibe_rev}, $doc->{_rev}, 'it is in global');
    is(copy('some2'), undef, '… and what was not written is not');
    is(copy($id), undef, '… nor what was withdrawn');

    ($status, $rows) = post([{ _id => 'some3', kept => 1, mark => 'some',
                               %public }]);
    is((copy('some3') // {})->{kept}, 1, 'an array of one');
    ($status, $rows) = post({ _id => 'some4', kept => 1, mark => 'some',
                              %public });
    is("$status " . (copy('some4') // {})->{kept}, '201 1', 'one alone');
};


subtest 'a deletion that was not mirrored' => sub {
    for my $step (qr{^/global/_bulk_docs}, qr{^/global/}) {
        my ($id) = new_doc(%public);

        fault($couch, path => $step, answer => [500, {}]);
        my ($status, $answer) = post({ _id => $id, _deleted => $true });
        is("$status " . ($answer->{mirror} // ''), '202 pending', 'pending');
        heal($couch);
        ok(copy($id), 'the copy is still there');

        ($status, $answer) = post({ _id => $id, _deleted => $true });
        is("$status $answer->{reason}", '404 deleted', 'again');
        is(copy($id), undef, '… and the copy is gone');
    }
};


$nginx->stop;

done_testing;
