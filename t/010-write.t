# POST /data/<collection>: what a client writes is in its own database, as it
# was answered, and nothing else is.

use strict;
use warnings;
use utf8;

use HTTP::Tiny;
use JSON::PP;
use MIME::Base64 qw(encode_base64);
use Test::More;
use Vibe;
use Vibe::Proxy;
use Vibe::Race;

binmode($_, ':utf8') for Test::More->builder->output,
    Test::More->builder->failure_output;

my ($true, $false) = (JSON::PP::true, JSON::PP::false);
my $json = JSON::PP->new->utf8->canonical;

my %public = (acl => { global => $true });
my @server = (server => server_config(data => 'client_max_body_size 16m;'));
my $nginx = nginx_start(@server);


sub post {
    my ($did, $collection, $doc, %header) = @_;

    return request($nginx, 'POST', "/data/$collection", token($did), $doc,
                   %header);
}


# What a database holds of a document, its winner, deleted or not; undef if
# there is no trace of it.

sub stored {
    my ($db, $id) = @_;

    my ($status, $data) = couch('POST', "/$db/_all_docs", { keys => [$id] });
    return if $status != 200;

    my $row = $data->{rows}[0];
    return if $row->{error};

    ($status, $data) = couch('POST', "/$db/_bulk_get",
        { docs => [{ id => $id, rev => $row->{value}{rev} }] });
    return $data->{results}[0]{docs}[0]{ok};
}


# The documents of a database, but for those that the module makes for itself.

sub ids {
    my ($db) = @_;

    my ($status, $data) = couch('GET', "/$db/_all_docs");
    return if $status != 200;

    my @ids = sort grep { !/^_design\// } map { $_->{id} } @{ $data->{rows} };
    return @ids;
}


sub is_error {
    my ($got, $data, $status, $error, $name) = @_;

    is($got, $status, "$name: $status");
    is(ref $data eq 'HASH' ? $data->{error} : $data, $error,
       '… with CouchDB\'s error');
    ok(ref $data eq 'HASH' && length($data->{reason} // ''),
       '… and a reason');
}


subtest 'the first write makes the database, closed to all but admins' => sub {
    my $alice = did('first');
    my $db = userdb($alice);

    my ($status, $data) = request($nginx, 'POST', '/data/posts/query',
                                  token($alice), {});
    is($status, 200, 'who has written nothing can read');
    is_deeply($data->{docs}, [], '… nothing');

    ($status) = couch('GET', "/$db");
    is($status, 404, 'reading makes no database');

    ($status, $data) = post($alice, 'posts', { text => 'hello' });
    is($status, 201, 'the write is done');

    ($status, $data) = couch('GET', "/$db/_security");
    is_deeply($data->{members}{roles}, ['_admin'], 'only admins are members');
    is_deeply($data->{admins}{roles}, ['_admin'], '… and its admins');
    is_deeply([@{ $data->{members}{names} || [] },
               @{ $data->{admins}{names} || [] }], [], '… and no names');

    my ($url) = Vibe::couchdb();
    my $res = HTTP::Tiny->new->get("$url/$db/_all_docs");
    is($res->{status}, 401, 'CouchDB lets nobody else in');
};


subtest 'the _security of a database that is there is left alone' => sub {
    my $alice = did('security');
    my $db = userdb($alice);
    my $security = { admins => { names => [], roles => ['boss'] },
                     members => { names => ['carol'], roles => [] } };

    couch('PUT', "/$db");
    couch('PUT', "/$db/_security", $security);

    my ($status) = post($alice, 'posts', { text => 'hello' });
    is($status, 201, 'the write is done');

    my ($got, $data) = couch('GET', "/$db/_security");
    is_deeply($data, $security, 'and _security is as it was');
};


subtest 'a document without an id gets one' => sub {
    my $alice = did('made');
    my (%seen, @answers);

    push @answers, [post($alice, 'posts', { n => $_ })] for 1 .. 20;

    for my $answer (@answers) {
        my ($status, $data) = @$answer;
        is($status, 201, 'written');
        like($data->{id}, qr{^posts/[0-9]{13}-[0-9a-f]{32}$}, "… as $data->{id}");
        is($data->{ok}, $true, '… ok');
        is($data->{global}, undef, '… no copy');
        ok(exists $data->{global}, '… which is said');
        my ($ms) = $data->{id} =~ /(\d+)-/;
        ok(abs($ms / 1000 - time) < 60, '… and the time is in it');
        $seen{ $data->{id} }++;
        is(stored(userdb($alice), $data->{id})->{_rev}, $data->{rev},
           '… with the revision that is stored');
    }

    is(scalar keys %seen, 20, 'no two are the same');
    is(scalar(ids(userdb($alice))), 20, 'and all are there');
};


subtest 'ids that the client chooses' => sub {
    my $alice = did('chosen');
    my $db = userdb($alice);

    my @ids = ('plain', 'posts/1', 'a/b/c', 'a:b', 'a%2Fb', 'a%3Ab', '100%',
               '%', ':', 'a b', 'a?b=c&d#e', '.', '..', '../..', 'a+b',
               'quote"back\\slash', "d\x{e9}j\x{e0} vu", "\x{1f600}",
               "e\x{301}", '-', '0', 'true', 'x' x 1000);
    my %global;

    for my $id (@ids) {
        my $show = length $id > 40 ? 'a long one' : "\"$id\"";

        my ($status, $data) = post($alice, 'posts',
                                   { _id => $id, v => 1, %public });
        is($status, 201, "$show is written") or next;
        is($data->{id}, $id, '… as itself');
        is($data->{global}, gid($alice, $id), '… with its global id');
        ok(!$global{ $data->{global} }++, '… which is its own');

        is(stored($db, $id)->{v}, 1, '… and is stored');
        is(stored('global', gid($alice, $id))->{vibe_rev}, $data->{rev},
           '… and mirrored');

        ($status, $data) = post($alice, 'posts',
            { _id => $id, _rev => $data->{rev}, v => 2, %public });
        is($status, 201, '… and updated');
        is(stored($db, $id)->{v}, 2, '… in its place');
    }

    is_deeply([ids($db)], [sort @ids], 'nothing else is there');
};


subtest '_rev is honoured' => sub {
    my $alice = did('rev');
    my $db = userdb($alice);

    my ($status, $first) = post($alice, 'posts', { _id => 'doc', v => 1 });
    ($status, my $second) = post($alice, 'posts',
                          { _id => 'doc', _rev => $first->{rev}, v => 2 });
    is($status, 201, 'the revision that is there is replaced');
    like($second->{rev}, qr/^2-/, '… by the next');

    ($status, my $data) = post($alice, 'posts',
                      { _id => 'doc', _rev => $first->{rev}, v => 3, %public });
    is_error($status, $data, 409, 'conflict', 'a stale one');
    is(stored($db, 'doc')->{v}, 2, '… and nothing is overwritten');
    is(stored('global', gid($alice, 'doc')), undef, '… nor published');

    ($status, $data) = post($alice, 'posts',
        { _id => 'doc', _rev => $first->{rev}, _deleted => $true });
    is_error($status, $data, 409, 'conflict', 'a stale one that deletes');
    ok(!stored($db, 'doc')->{_deleted}, '… and nothing is deleted');

    ($status, $data) = post($alice, 'posts',
        { _id => 'none', _rev => $first->{rev}, v => 1 });
    is_error($status, $data, 409, 'conflict', 'one of a document that is not');
    is(stored($db, 'none'), undef, '… and nothing is written');
};


subtest 'without _rev the last writer wins' => sub {
    my $alice = did('last');

    for my $v (1 .. 5) {
        my ($status, $data) = post($alice, 'posts', { _id => 'doc', v => $v });
        is($status, 201, "write $v");
        like($data->{rev}, qr/^$v-/, '… is the next revision');
        is(stored(userdb($alice), 'doc')->{v}, $v, '… and is what is there');
    }

    my ($status, $doc) = couch('GET', '/' . userdb($alice)
                                      . '/doc?conflicts=true');
    ok(!$doc->{_conflicts}, 'no conflict was made');
};


subtest 'deletion' => sub {
    my $alice = did('deletion');
    my $db = userdb($alice);

    my ($status, $data) = post($alice, 'posts',
                               { _id => 'doc', _deleted => $true });
    is_error($status, $data, 404, 'not_found', 'of what was never there');
    is(stored($db, 'doc'), undef, '… leaves no trace');

    post($alice, 'posts', { _id => 'doc', v => 1 });
    ($status, $data) = post($alice, 'posts',
                            { _id => 'doc', _deleted => $true });
    is($status, 201, 'of what is there');
    is($data->{global}, undef, '… names no copy');
    my $gone = stored($db, 'doc');
    ok($gone->{_deleted}, '… is done');
    is($gone->{_rev}, $data->{rev}, '… as the revision that was answered');

    ($status, $data) = post($alice, 'posts',
                            { _id => 'doc', _deleted => $true });
    is_error($status, $data, 404, 'not_found', 'of what is deleted');

    ($status, $data) = post($alice, 'posts', { _id => 'doc', v => 2 });
    is($status, 201, 'what is deleted can be made again');
    is(stored($db, 'doc')->{v}, 2, '… and is there');
    is(stored($db, 'doc')->{_rev}, $data->{rev} // '', '… as was answered');

    ($status, $data) = post($alice, 'posts', { _id => 'doc',
        _rev => stored($db, 'doc')->{_rev}, _deleted => $true });
    is($status, 201, 'with its _rev');
    ok(stored($db, 'doc')->{_deleted}, '… is done');

    ($status, $data) = post($alice, 'posts', { _id => 'doc', v => 3,
                                               _deleted => $false });
    is($status, 201, '_deleted: false is no deletion');
    is(stored($db, 'doc')->{v}, 3, '… but a write');
    ok(!exists stored($db, 'doc')->{_deleted}, '… as any other');
};


subtest 'the server sets the collection' => sub {
    my $alice = did('collection');
    my $db = userdb($alice);

    my ($status, $data) = post($alice, 'posts', { v => 1 });
    is(stored($db, $data->{id})->{collection}, 'posts', 'where there is none');

    for my $other ('likes', 'posts', 5, undef, { a => 1 }) {
        ($status, $data) = post($alice, 'posts',
                                { v => 1, collection => $other });
        is($status, 201, 'in place of the client\'s '
                         . JSON::PP->new->allow_nonref->encode($other));
        is(stored($db, $data->{id})->{collection}, 'posts', '… it is there');
    }

    my $text = '{"_id":"escaped","collectio\u006e":"likes","v":1}';
    ($status, $data) = post($alice, 'posts', $text);
    is($status, 201, 'also where it is escaped');
    is(stored($db, 'escaped')->{collection}, 'posts', '… it is there');
};


subtest 'an id that lives in another collection' => sub {
    my $alice = did('other');
    my $db = userdb($alice);

    post($alice, 'posts', { _id => 'doc', v => 1 });

    for my $doc ({ v => 2 }, { v => 2, %public }, { _deleted => $true },
                 { v => 2, _rev => stored($db, 'doc')->{_rev} },
                 { v => 2, collection => 'posts' })
    {
        my ($status, $data) = post($alice, 'likes', { _id => 'doc', %$doc });
        is_error($status, $data, 409, 'conflict',
                 'it cannot be written: ' . $json->encode($doc));
        is(stored($db, 'doc')->{v}, 1, '… and is as it was');
        is(stored($db, 'doc')->{collection}, 'posts', '… where it was');
    }

    couch('PUT', "/$db/posts%2Fpast", { v => 1 });
    my ($status, $data) = post($alice, 'likes', { _id => 'posts/past' });
    is_error($status, $data, 409, 'conflict',
             'one that came past the module is in the collection of its id');
    ($status, $data) = post($alice, 'posts', { _id => 'posts/past', v => 2 });
    is($status, 201, '… where it can be written');

    is(stored('global', gid($alice, 'doc')), undef, 'nothing was mirrored');
};


subtest 'attachments' => sub {
    my $alice = did('attachments');
    my $db = userdb($alice);
    my $text = 'what is attached';

    my ($status, $data) = post($alice, 'posts', { _id => 'doc', %public,
        _attachments => { 'a.txt' => { content_type => 'text/plain',
                                       data => encode_base64($text, '') } } });
    is($status, 201, 'are written inline');

    my ($got, $doc) = couch('GET', "/$db/doc?attachments=true");
    is($doc->{_attachments}{'a.txt'}{data}, encode_base64($text, ''),
       '… and stored');
    ok(!exists stored('global', gid($alice, 'doc'))->{_attachments},
       '… but not mirrored');

    ($status, $data) = post($alice, 'posts', { _id => 'doc', v => 2,
        _rev => $data->{rev}, _attachments => { 'a.txt' => { stub => $true } } });
    is($status, 201, 'stubs keep them');

    ($got, $doc) = couch('GET', "/$db/doc?attachments=true");
    is($doc->{v}, 2, '… in a new revision');
    is($doc->{_attachments}{'a.txt'}{data}, encode_base64($text, ''),
       '… as they were');

    ($status, $data) = post($alice, 'posts', { _id => 'doc', v => 3,
        _attachments => { 'b.txt' => { stub => $true } } });
    is_error($status, $data, 400, 'bad_request', 'a stub of what is not there');
    is(stored($db, 'doc')->{v}, 2, '… and nothing is written');
};


subtest 'content types' => sub {
    my $alice = did('types');

    for my $type ('text/plain', 'application/x-www-form-urlencoded',
                  'multipart/form-data; boundary=x', 'application/jsonx',
                  'application/octet-stream', 'json', ';')
    {
        my ($status, $data) = post($alice, 'posts', { v => 1 },
                                   'Content-Type' => $type);
        is_error($status, $data, 415, 'bad_content_type', $type);
    }

    my ($status) = couch('GET', '/' . userdb($alice));
    is($status, 404, 'nothing was written');

    for my $type ('application/json', 'application/json; charset=utf-8',
                  'Application/JSON;charset=UTF-8')
    {
        ($status) = post($alice, 'posts', { v => 1 },
                         'Content-Type' => $type);
        is($status, 201, $type);
    }
};


subtest 'sizes' => sub {
    my $alice = did('sizes');
    my $db = userdb($alice);

    for my $size (1, 1000, 16384, 65536, 100_000, 2_000_000) {
        my $pad = join('', map { chr(97 + $_ % 26) } 1 .. 26) x ($size / 26 + 1);
        my ($status, $data) = post($alice, 'posts',
            { _id => "doc$size", pad => $pad, %public });
        is($status, 201, "$size bytes are written");
        is(stored($db, "doc$size")->{pad}, $pad, '… all of them');
        is(stored('global', gid($alice, "doc$size"))->{pad}, $pad,
           '… and mirrored');
    }

    my ($status, $data) = post($alice, 'posts',
        '{"_id":"over","pad":"' . 'x' x 17_000_000 . '"}');
    is_error($status, $data, 413, 'too_large', 'a body over the limit');

    ($status, $data) = post($alice, 'posts',
        '{"_id":"over","pad":"' . 'x' x 9_000_000 . '"}');
    is_error($status, $data, 413, 'too_large',
             'a document over CouchDB\'s limit');

    ($status, $data) = post($alice, 'posts', '');
    is_error($status, $data, 400, 'bad_request', 'no body');

    is(stored($db, 'over'), undef, 'nothing of these was written');
};


subtest 'a database named by an instanceId' => sub {
    my ($alice, $bob) = (did('instance'), did('thief'));
    my ($id) = 'i-' . unpack('H*', $alice) =~ s/[^a-z0-9]//gr;
    my $db = "userdb-$id";
    my $token = token($alice, instanceId => $id);

    my ($status, $data) = request($nginx, 'POST', '/data/posts', $token,
                                  { _id => 'doc', %public });
    is($status, 201, 'is made');
    is($data->{global}, gid($alice, 'doc'), '… and mirrored');
    is(stored($db, 'doc')->{_rev}, $data->{rev}, '… under its name');

    (undef, my $owner) = couch('GET', "/$db/_local/vibe_owner");
    is($owner->{did}, $alice, '… with its owner on record');
    ($status) = couch('GET', '/' . userdb($alice));
    is($status, 404, '… and no other database is made');

    ($status, $data) = request($nginx, 'POST', '/data/posts',
        token($bob, instanceId => $id), { _id => 'theft', %public });
    is_error($status, $data, 403, 'forbidden', 'another DID with that database');
    is_deeply([ids($db)], ['doc'], '… and nothing is written');

    my $hex = unpack('H*', $alice);
    ($status, $data) = request($nginx, 'POST', '/data/posts',
        token($bob, instanceId => $hex), { _id => 'theft' });
    is_error($status, $data, 403, 'forbidden',
             'an instanceId that names the database of another DID');
    ($status) = couch('GET', "/userdb-$hex");
    is($status, 404, '… which is not made either');

    my $empty = "e$id";
    couch('PUT', "/userdb-$empty");
    ($status, $data) = request($nginx, 'POST', '/data/posts',
        token($alice, instanceId => $empty), { _id => 'doc', %public });
    is($status, 201, 'an empty one without a record');
    (undef, $owner) = couch('GET', "/userdb-$empty/_local/vibe_owner");
    is($owner->{did}, $alice, '… gets its record');
};


subtest 'arrays' => sub {
    my $alice = did('arrays');
    my $db = userdb($alice);

    my @docs = map { { _id => "doc$_", n => $_, $_ % 10 ? () : %public } }
                   1 .. 1000;
    my ($status, $data) = post($alice, 'posts', \@docs);
    is($status, 201, '1,000 documents are written');
    is(scalar @$data, 1000, '… with an answer for each');

    is_deeply([map { $_->{id} } @$data], [map { $_->{_id} } @docs],
              '… in the same order');
    is_deeply([map { $_->{global} } @$data],
              [map { $_ % 10 ? undef : gid($alice, "doc$_") } 1 .. 1000],
              '… each with its global id, or null');

    my ($got, $all) = couch('GET', "/$db/_all_docs?include_docs=true");
    is_deeply({ map { $_->{id} => "$_->{doc}{n} $_->{value}{rev}" }
                    @{ $all->{rows} } },
              { map { $data->[$_]{id} => $_ + 1 . " $data->[$_]{rev}" }
                    0 .. 999 },
              'all are stored as was answered');

    ($got, $all) = couch('POST', '/global/_all_docs',
        { keys => [map { gid($alice, "doc$_") } 1 .. 1000] });
    is(scalar(grep { !$_->{error} } @{ $all->{rows} }), 100,
       'the public ones are mirrored, and only these');

    ($status, $data) = post($alice, 'posts', [map { { n => $_ } } 1 .. 1001]);
    is_error($status, $data, 413, 'too_large', '1,001');
    is(scalar(ids($db)), 1000, '… and nothing is written');

    ($status, $data) = post($alice, 'posts', []);
    is_error($status, $data, 400, 'bad_request', 'none');

    ($status, $data) = post($alice, 'posts', [{ _id => 'alone' }]);
    is($status, 201, 'one');
    is(ref $data, 'ARRAY', '… is answered with an array');
    is($data->[0]{id}, 'alone', '… of one');
};


# An array of good documents with others among them; the good ones must be
# written and mirrored, the others answered with these errors.

sub among_good_ones {
    my ($name, %bad) = @_;

    my $alice = did($name);
    my $db = userdb($alice);

    post($alice, 'likes', { _id => 'liked' });
    post($alice, 'posts', { _id => 'there', v => 1 });

    my @bad = sort keys %bad;
    my @docs = map { ({ _id => "good$_", v => 1, %public }, $bad{ $bad[$_] }[0]) }
                   0 .. $#bad;
    push @docs, { _id => 'last', v => 1, %public }, { _id => 'private', v => 1 };

    # Much text, which JSON::PP is slow with.
    my $body = $json->encode(\@docs) =~ s/BIG/'x' x 8_100_000/er;

    my ($status, $data) = post($alice, 'posts', $body);
    is($status, 201, "$name: the array is answered");
    is(ref $data, 'ARRAY', '… with an array') or return;
    is(scalar @$data, scalar @docs, '… of as many');

    for my $i (0 .. $#docs) {
        my ($doc, $row) = ($docs[$i], $data->[$i]);

        if (ref $doc eq 'HASH' && ($doc->{_id} // '') =~ /^(good|last|private)/)
        {
            my $public = $doc->{acl} ? gid($alice, $doc->{_id}) : undef;
            is($row->{id}, $doc->{_id}, "$doc->{_id} is in its place");
            is($row->{global}, $public, '… with its global id') or next;
            is((stored($db, $doc->{_id}) // {})->{_rev}, $row->{rev},
               '… stored');
            is((stored('global', $public) // {})->{vibe_rev}, $row->{rev},
               '… and mirrored') if $public;
            next;
        }

        my $what = $bad[($i - 1) / 2];
        is($row->{error}, $bad{$what}[1], "$what: $bad{$what}[1]");
        ok(exists $row->{id}, '… with an id');
        ok(length $row->{reason}, '… and a reason');
        ok(!exists $row->{ok} && !exists $row->{rev}, '… and nothing else');
    }

    my $bad = join('|', 'liked', 'there');
    is_deeply([grep { !/^(?:$bad)$/ } ids($db)],
              [sort map { $_->{_id} }
                   grep { ref eq 'HASH' && ($_->{_id} // '')
                              =~ /^(?:good|last|private)/ } @docs],
              'nothing else is written');
    is(stored($db, 'there')->{v}, 1, 'what was there is as it was');
}


subtest 'refused documents among good ones' => sub {
    among_good_ones('refused',
        'a number' => [5, 'bad_request'],
        'an array' => [[], 'bad_request'],
        'null' => [undef, 'bad_request'],
        'a bad id' => [{ _id => '_design/x' }, 'bad_request'],
        'an id of another collection' => [{ _id => 'liked' }, 'conflict'],
        'a stale _rev' => [{ _id => 'there', v => 2,
                             _rev => '1-' . 'a' x 32 }, 'conflict'],
        'a deletion of nothing' => [{ _id => 'none', _deleted => $true },
                                    'not_found'],
        'a reserved member' => [{ vibe_access => 'public' }, 'bad_request'],
        'a special member' => [{ _x => 1 }, 'bad_request'],
        'a bad _deleted' => [{ _deleted => 'yes' }, 'bad_request'],
    );
};


subtest 'documents among good ones that make CouchDB refuse all' => sub {
    among_good_ones('culprits',
        'too large' => [{ _id => 'big', pad => 'BIG' }, 'too_large'],
        'a stub of nothing' => [{ _id => 'stub',
            _attachments => { a => { stub => $true } } }, 'bad_request'],
        'bad base64' => [{ _id => 'base64',
            _attachments => { a => { content_type => 'text/plain',
                                     data => '***' } } }, 'bad_request'],
    );
};


subtest 'the same id twice in an array' => sub {
    my $alice = did('twice');
    my $db = userdb($alice);

    my ($status, $data) = post($alice, 'posts',
        [{ _id => 'a', v => 1, %public }, { _id => 'b', v => 1 },
         { _id => 'a', v => 2 }, { v => 1 }, { _id => 'a', v => 3 }]);
    is($status, 201, 'the array is answered');
    is($data->[0]{ok}, $true, 'the first is written');
    is($data->[2]{error}, 'conflict', 'the second is refused');
    is($data->[4]{error}, 'conflict', 'the third is refused');
    is(stored($db, 'a')->{v}, 1, 'the first is what is there');
    is(stored('global', gid($alice, 'a'))->{v}, 1, '… and is mirrored');
    is(scalar(ids($db)), 3, 'the others are written');

    ($status, $data) = post($alice, 'posts', '[{"_id":"c"},{"_id":"\u0063"}]');
    is($data->[1]{error}, 'conflict', 'also where it is escaped');
};


# One request must not cost CouchDB many times its size.

subtest 'an array of which CouchDB refuses each document' => sub {
    my $mock = mock {
        my ($method, $path, $body) = @_;

        return 500, { error => 'badmatch', reason => 'stub' }
            if $path =~ /_bulk_docs/;
        return 200, { doc_count => 0 };
    };
    my $other = nginx_start(@server,
                            http => http_config(couchdb => $mock->{url}));

    my $body = $json->encode([map { {
        pad => 'x' x 1000, _attachments => { a => { stub => $true } }
    } } 1 .. 200]);

    my ($status, $data) = request($other, 'POST', '/data/posts',
                                  token(did('each')), $body);
    is(ref $data, 'ARRAY', 'each document is answered') or diag($status);

    my $sent = 0;
    $sent += length $_->{body} for requests($mock);
    my $times = $sent / length $body;
    cmp_ok($times, '<', 12,
           'CouchDB gets no more than halving the array over and over sends');
    $other->stop;
};


# The array's first document is written; the second meets another writer, and
# when the module looks again CouchDB fails.

subtest 'an array of which a part is written when CouchDB fails' => sub {
    my $alice = did('part');
    my $db = userdb($alice);
    my $proxy = Vibe::Proxy->start;
    my $slow = nginx_start(http => $proxy->http_config);

    post($alice, 'posts', { _id => 'contested', v => 1 });

    my $write = $proxy->hold("^POST /$db/_bulk_docs");
    my $look = $proxy->hold("^POST /$db/_bulk_get .*contested");
    my $one = send_request($slow, 'POST', '/data/posts', token($alice),
        [{ _id => 'written', v => 1, %public }, { _id => 'contested', v => 2 }]);

    ok($proxy->wait_held($look), 'the module looks what is there');
    $look = $proxy->hold("^POST /$db/_bulk_get .*contested")
        if $proxy->release($look);

    ok($proxy->wait_held($write), 'and is about to write');
    post($alice, 'posts', { _id => 'contested', v => 3 });
    $proxy->release($write);

    ok($proxy->wait_held($look), 'it looks again');
    $proxy->answer($look, 503, { error => 'down', reason => 'down' });

    my ($status, $data) = answer_of($one);
    ok(stored($db, 'written'), 'the first document is stored');
    is(ref $data, 'ARRAY', '… which the client is told')
        or return $slow->stop;
    ok($data->[0]{ok}, '… in its row');
    is($data->[1]{error}, 'service_unavailable', 'the other row says why not');
    is(stored('global', gid($alice, 'written'))->{vibe_rev},
       stored($db, 'written')->{_rev}, 'what was written is mirrored');
    $slow->stop;
};


$nginx->stop;

done_testing;
