# CouchDB is down, slow, wrong or gone in the middle: each request gets an
# error that fits, nothing that was not acknowledged is called written, a write
# whose mirror fails is 202, and all is well when CouchDB is.

use strict;
use warnings;

use JSON::PP;
use MIME::Base64 qw(encode_base64);
use Test::More;
use Time::HiRes qw(sleep time);
use Vibe;
use Vibe::Faults;

my $json = JSON::PP->new->utf8->canonical->allow_nonref;
my ($true, $false) = (JSON::PP::true, JSON::PP::false);

my $run = sprintf('%x%04x', time, $$ & 65535);
my $posts = "posts$run";

my ($alice, $bob) = map { did($_) } qw(alice bob);
my %token = map { $_ => token($_) } $alice, $bob;
my $own = userdb($alice);

my $couch = faulty();

my $nginx = nginx_start(
    http => http_config(couchdb => $couch->{url},
                        extra => 'vibe_max_response 256k;'),
    server => server_config(proxy_read_timeout => '1s'));


sub post {
    my ($body, $more) = @_;

    return request($nginx, 'POST', "/data/$posts" . ($more // ''),
                   $token{$alice}, $body);
}


# doc($id): what the owner's database has; copy($id): what global has.

sub doc {
    my ($status, $answer) = couch('POST', "/$own/_bulk_get",
                                  { docs => [{ id => "$posts/$_[0]" }] });
    my $doc = ref $answer && $answer->{results}[0]{docs}[0]{ok};
    return $doc && !$doc->{_deleted} ? $doc : undef;
}


sub copy {
    my ($status, $answer)
        = couch('POST', '/global/_bulk_get',
                { docs => [{ id => gid($alice, "$posts/$_[0]") }] });
    my $doc = ref $answer && $answer->{results}[0]{docs}[0]{ok};

    # Without a vibe_rev it only holds the place for one.
    return $doc && !$doc->{_deleted} && $doc->{vibe_rev} ? $doc : undef;
}


sub public { return (acl => { global => $true }) }


sub is_error {
    my ($status, $answer, $expected, $name) = @_;

    like($status, qr/^(?:$expected)$/, "$name: the status");
    ok(ref $answer eq 'HASH' && length($answer->{error} // '')
       && length($answer->{reason} // '') && !exists $answer->{ok},
       "$name: an error in JSON")
        or diag(ref $answer ? $json->encode($answer) : $answer);
    return;
}


# The requests that a client can make, as [name, code].

my %ask = (
    'a write' => sub { post({ _id => "$posts/x", public() }) },
    'a write of many' => sub {
        post([map { { _id => "$posts/y$_", public() } } 1 .. 3]) },
    'a query' => sub { post({ n => 1 }, '/query') },
    'a sorted query' => sub { post({ sort => ['n'] }, '/query') },
    'a global query' => sub {
        post({ n => 1, sort => ['createdAt'] }, '/query?global=true') },
    'expand, own' => sub {
        request($nginx, 'GET', "/data/expand?did=$alice&ref=$posts%2Fa",
                $token{$alice}) },
    'expand, another\'s' => sub {
        request($nginx, 'GET', "/data/expand?did=$alice&ref=$posts%2Fa",
                $token{$bob}) },
);

# The first of all, so that databases and indexes are there.
{
    my ($status) = post({ _id => "$posts/a", n => 1, public() });
    is($status, 201, 'a document is written');
    for my $name (sort keys %ask) {
        wait_for { ($status) = $ask{$name}->(); $status != 503 } 30;
        like($status, qr/^20[01]$/, "$name: all is well");
    }
}


subtest 'CouchDB is down' => sub {
    my $port = free_port();
    my $down = nginx_start(
        http => http_config(couchdb => "http://127.0.0.1:$port"));

    for (['POST', "/data/$posts", {}], ['POST', "/data/$posts", [{}, {}]],
         ['POST', "/data/$posts/query", {}],
         ['POST', "/data/$posts/query?global=true", {}],
         ['GET', "/data/$posts/query?global=true"],
         ['GET', "/data/expand?did=$bob&ref=x"],
         ['GET', "/data/expand?did=$alice&ref=x"])
    {
        my ($method, $path, $body) = @$_;
        my ($status, $answer, $header)
            = request($down, $method, $path, $token{$alice}, $body);
        my $name = "$method $path";

        is_error($status, $answer, 503, $name);
        like($header->{'retry-after'} // '', qr/^[1-9]\d*$/,
             "$name: Retry-After");
    }

    $down->stop;
};


# Each request to CouchDB of each kind fails in each way.

my %kind = (
    '500' => [500, { error => 'unknown_error', reason => "secret$run" }],
    '503' => [503, { error => 'x', reason => "secret$run" }],
    'HTML' => [200, "<html><body>secret$run</body></html>",
               headers => { 'Content-Type' => 'text/html' }],
    'JSON of another kind' => [200, '[]'],
    'a string' => [201, "\"secret$run\""],
    'an empty object' => [200, '{}'],
    'nothing' => [200, ''],
    '204' => [204, ''],
    '404' => [404, { error => 'not_found', reason => "secret$run" }],
    '404 without a body' => [404, ''],
    '404 with an empty chunked body' => [raw => "HTTP/1.1 404 Not Found\r\n"
        . "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"],
    '404, cut off' => [raw => "HTTP/1.1 404 Not Found\r\n"
        . "Transfer-Encoding: chunked\r\n\r\n"],
    'a redirect' => [302, '{}', headers => { Location => 'http://127.0.0.2/' }],
    'half an answer' => [200, '{"docs":[],"results":[],"update_seq":"1-a"}',
                         half => 1],
    'half a chunked answer' => [raw => "HTTP/1.1 200 OK\r\n"
        . "Transfer-Encoding: chunked\r\n\r\n9\r\n{\"docs\":[\r\n"],
    'half a header' => [raw => "HTTP/1.1 200 OK\r\nContent-Le"],
    'no HTTP' => [raw => "secret$run\r\n\r\n"],
    'a closed connection' => [close => 1],
    '401' => [401, { error => 'unauthorized', reason => "secret$run" }],
    '403' => [403, { error => 'forbidden', reason => "secret$run" }],
    'an endless header' => [raw => "HTTP/1.1 200 OK\r\nX: "
                                   . 'x' x 100000 . "\r\n\r\n{}"],
);

# Which requests to CouchDB each of them makes that must not be survived.
my %steps = (
    'a write' => [qr{^/$own/_bulk_get}, qr{^/$own/_bulk_docs}],
    'a write of many' => [qr{^/$own/_bulk_get}, qr{^/$own/_bulk_docs}],
    'a query' => [qr{^/$own$}, qr{^/$own/_find}],
    'a sorted query' => [qr{^/$own/_find}],
    'a global query' => [qr{^/global$}, qr{^/global/_find}],
    'expand, own' => [qr{^/$own/_bulk_get}],
    'expand, another\'s' => [qr{^/global/_bulk_get}],
);

for my $name (sort keys %steps) {
    subtest "$name, and CouchDB answers wrongly" => sub {
        for my $step (@{ $steps{$name} }) {
            for my $kind (sort keys %kind) {
                # The sequence is kept for a second at most.
                my $is_seq = $step =~ /\$\)$/;
                next if $is_seq && $kind !~ /^(?:500|HTML|half an answer)$/;

                fault($couch, path => $step, answer => $kind{$kind});

                my ($status, $answer, $header, $text);

                wait_for {
                    ($status, $answer, $header, $text) = $ask{$name}->();
                    hits($couch);
                } 5;

                # An array's rows may each have their error.
                if ($status == 201 && ref $answer eq 'ARRAY') {
                    my @ok = grep { $_->{ok} || !$_->{error} } @$answer;
                    is(scalar @ok, 0, "$kind at $step: no row is ok");

                } else {
                    my $known = $kind eq '503' ? 503
                              : $kind eq '401' ? 502 : '50[23]';
                    is_error($status, $answer, $known, "$kind at $step");
                }

                unlike($text, qr/secret$run/,
                       "$kind at $step: CouchDB's words stay behind");

                if ($status == 503) {
                    like($header->{'retry-after'} // '', qr/^[1-9]/,
                         "$kind at $step: Retry-After");
                }
            }
        }

        heal($couch);

        my $status;
        ok(wait_for { ($status) = $ask{$name}->(); $status =~ /^20[01]$/ },
           'all is well again');
    };
}


subtest 'CouchDB takes too long: 504' => sub {
    for my $name (sort keys %steps) {
        my $step = $steps{$name}[-1];

        fault($couch, path => $step, answer => [200, '{}', delay => 5]);

        my $begin = time;
        my ($status, $answer) = $ask{$name}->();
        my $took = time - $begin;

        is_error($status, $answer, 504, $name);
        cmp_ok($took, '<', 4, "$name: told before CouchDB answers");
    }

    # What CouchDB says too late must not be taken for the next answer.
    heal($couch);

    my ($status, $answer) = post({ n => 1, fields => ['_id'] }, '/query');
    is_deeply([$status, $answer->{docs}], [200, [{ _id => "$posts/a" }]],
              'the next answer is its own');
};


subtest 'the mirror fails: 202, and it says so' => sub {
    my $n = 0;

    for my $kind (sort grep { $_ ne '404' } keys %kind) {
        for my $step (qr{^/global/_bulk_docs}, qr{^/global/_bulk_get}) {

            # Ids made by the module are not looked up in global.
            my $id = 'm' . ++$n;
            my %id = (_id => "$posts/$id");

            fault($couch, path => $step, answer => $kind{$kind});
            my ($status, $answer) = post({ %id, public() });

            ok(hits($couch), "$kind at $step: it came about");
            is($status, 202, "$kind at $step: written, not mirrored");
            is_deeply(ref $answer ? { map { $_ => $answer->{$_} }
                                      qw(ok id global mirror) } : $answer,
                      { ok => $true, id => $id{_id}, mirror => 'pending',
                        global => gid($alice, $id{_id}) },
                      "$kind at $step: the answer");

            my $doc = doc($id);
            is($doc && $doc->{_rev}, $answer->{rev},
               "$kind at $step: it is safe");
        }
    }

    heal($couch);

    my ($status, $answer) = post({ _id => "$posts/m1", v => 2, public() });
    is($status, 201, 'the next write mirrors');
    is((copy('m1') // {})->{v}, 2, 'the newest');

    fault($couch, path => qr{^/global/_bulk_docs},
          answer => [200, '[]', delay => 5]);
    ($status, $answer) = post({ public() });
    is("$status $answer->{mirror}", '202 pending', 'a slow mirror');
    is((couch('GET', "/$own/" . $answer->{id} =~ s{/}{%2F}r))[0], 200,
       'a slow mirror: it is safe');

    heal($couch);

    # A private document has no mirror to wait for.
    fault($couch, path => qr{^/global}, answer => [500, {}]);
    ($status, $answer) = post({ secret => 1 });
    is($status, 201, 'private, and global does not answer: 201');
    ok(exists $answer->{global} && !defined $answer->{global},
       'without a global id');

    heal($couch);
};


subtest 'the mirror of some of an array fails' => sub {
    my @ids = map { "$posts/r$_" } 1 .. 4;
    my @docs = ({ _id => $ids[0], public() }, { _id => $ids[1] },
                { _id => $ids[2], public() }, { _id => $ids[3], public() });

    # As CouchDB answers where one row is refused, another not yet everywhere.
    fault($couch, path => qr{^/global/_bulk_docs}, times => 1, answer => [201, [
        { ok => $true, id => gid($alice, $ids[0]), rev => '1-a' },
        { id => gid($alice, $ids[2]), error => 'forbidden', reason => 'no' },
        { ok => $true, id => gid($alice, $ids[3]), rev => '1-a' }]]);

    my ($status, $rows) = post(\@docs);

    is($status, 202, '202 for all');
    is_deeply([map { [$_->{ok}, $_->{mirror}] } @$rows],
              [[$true, undef], [$true, undef], [$true, 'pending'],
               [$true, undef]], 'the row says it')
        or diag($json->encode($rows));

    fault($couch, path => qr{^/global/_bulk_docs}, answer => [500, {}]);
    ($status, $rows) = post([map { { %$_, v => 2 } } @docs]);

    is($status, 202, 'none can be mirrored');
    is_deeply([map { $_->{mirror} } @$rows],
              ['pending', undef, 'pending', 'pending'],
              'but for the private one all are pending');

    # CouchDB's own 202: not every copy of global has it.
    fault($couch, path => qr{^/global/_bulk_docs}, answer => [202, [
        { ok => $true, id => gid($alice, "$posts/r5"), rev => '1-a' }]]);
    ($status, $rows) = post({ _id => "$posts/r5", public() });
    is("$status $rows->{mirror}", '202 pending', 'accepted is not created');

    heal($couch);

    ($status, $rows) = post([{ _id => $ids[0], _deleted => $true },
                             { _id => $ids[1], _deleted => $true },
                             { _id => $ids[2], public(), v => 3 }]);
    is($status, 201, 'all is well again') or diag($json->encode($rows));
    is_deeply([map { copy("r$_") ? 1 : 0 } 1 .. 3], [0, 0, 1],
              'and global is as it should be');
};


subtest 'a withdrawal that is not mirrored is 202, too' => sub {
    my ($status, $answer) = post({ _id => "$posts/w", public() });
    is($status, 201, 'public');

    for my $step (qr{^/global/_bulk_get}, qr{^/global/_bulk_docs}) {
        fault($couch, path => $step, answer => [500, {}]);
        ($status, $answer) = post({ _id => "$posts/w" });
        is("$status " . ($answer->{mirror} // ''), '202 pending',
           "withdrawn, fails at $step");
    }

    ($status, $answer) = post({ _id => "$posts/w", _deleted => $true });
    is("$status " . ($answer->{mirror} // ''), '202 pending', 'deleted');
    ok(!doc('w'), 'in the owner\'s database it is');

    heal($couch);
};


subtest 'an array, and CouchDB goes away between two parts of it' => sub {
    # One document is too large, so the request is split.
    my @docs = map { { _id => "$posts/s$_" } } 1 .. 4;

    fault($couch, path => qr{^/$own/_bulk_docs}, times => 1,
          answer => [413, { error => 'document_too_large', reason => 'x' }]);
    my ($status, $rows) = post(\@docs);

    is($status, 201, 'split and written');
    is(scalar(grep { $_->{ok} } @$rows), 4, 'all of them');

    fault($couch, path => qr{^/$own/_bulk_docs}, body => qr/"v":2.*"v":2.*"v":2/,
          answer => [413, { error => 'document_too_large', reason => 'x' }]);
    ($status, $rows) = post([map { { %$_, v => 2 } } @docs]);
    is("$status " . scalar(grep { $_->{ok} } @$rows), '201 4',
       'split in two');

    heal($couch);
    is_deeply([map { doc("s$_")->{v} } 1 .. 4], [2, 2, 2, 2],
              'in the database, too');
};


# A kept connection that CouchDB closes just as a request comes.

sub generation { return $_[0] && $_[0] =~ /^(\d+)-/ ? $1 : 0 }

for my $after (0, 1) {
    my $how = $after ? 'after it did what was asked' : 'before it did anything';

    subtest "CouchDB closes a kept connection, $how" => sub {
        for my $where ($own, 'global') {
            for my $step (qr{^/$where/_bulk_docs}, qr{^/$where/_bulk_get}) {
                my $name = "at $step";
                my $id = "k$after" . ($where eq $own) . ($step =~ /get/ ? 1 : 0);

                # Warm, so that there is a kept connection.
                my ($status, $first) = post({ _id => "$posts/$id", v => 1,
                                              public() });
                is($status, 201, "$name: version 1");

                fault($couch, path => $step, times => 1, after => $after,
                      answer => [close => 1]);
                my $answer;
                ($status, $answer) = post({ _id => "$posts/$id", v => 2,
                                            public() });
                is(hits($couch), 1, "$name: it came about");
                is($status, 201, "$name: written")
                    or diag($json->encode($answer));

                my $doc = doc($id);
                is($doc->{v}, 2, "$name: it is there");
                is($doc->{_rev}, $answer->{rev}, "$name: as it was told");
                cmp_ok(generation($doc->{_rev}), '<=', $after ? 3 : 2,
                       "$name: once");
                is((copy($id) // {})->{vibe_rev}, $doc->{_rev},
                   "$name: and in global");

                # With a _rev a second time would be a conflict.
                fault($couch, path => $step, times => 1, after => $after,
                      answer => [close => 1]);
                ($status, $answer) = post({ _id => "$posts/$id", v => 3,
                                            _rev => $doc->{_rev}, public() });
                $doc = doc($id);

                if ($after && $step =~ /_bulk_docs/ && $where eq $own) {
                    like($status, qr/^(?:201|409)$/, "$name: _rev");
                } else {
                    is($status, 201, "$name: _rev");
                    is($doc->{_rev}, $answer->{rev}, "$name: _rev, as told");
                }

                is($doc->{v}, 3, "$name: _rev: it is there");
                is((copy($id) // {})->{vibe_rev}, $doc->{_rev},
                   "$name: _rev: and in global");
            }
        }

        # A new document, whose id the module makes.
        for my $where ($own, 'global') {
            fault($couch, path => qr{^/$where/_bulk_docs}, times => 1,
                  after => $after, answer => [close => 1]);
            my ($status, $answer) = post({ made => "$where$after", public() });
            is($status, 201, "made, $where: written");

            my (undef, $found) = couch('POST', "/$own/_find", {
                selector => { made => "$where$after" }, limit => 9 });
            is(scalar @{ $found->{docs} }, 1, "made, $where: once");
            is($found->{docs}[0]{_rev}, $answer->{rev}, "made, $where: as told");

            (undef, $found) = couch('POST', '/global/_find', {
                selector => { made => "$where$after", collection => $posts },
                limit => 9 });
            is(scalar @{ $found->{docs} }, 1, "made, $where: global, once");
            is($found->{docs}[0]{vibe_rev}, $answer->{rev},
               "made, $where: global, the same");
        }

        # And reading.
        for my $name ('a query', 'a global query', 'expand, own',
                      'expand, another\'s')
        {
            fault($couch, path => $steps{$name}[-1], times => 1,
                  after => $after, answer => [close => 1]);
            my ($status) = $ask{$name}->();
            is("$status " . hits($couch), '200 1', $name);
        }

        heal($couch);
    };
}


subtest 'an answer larger than vibe_max_response' => sub {
    my $big = 'x' x 100000;

    # It is 256k; four of them are more.
    for my $i (1 .. 4) {
        my ($status) = post({ _id => "$posts/big$i", big => $big,
                              kind => 'big', createdAt => $i, public() });
        is($status, 201, "document $i");
    }

    for my $where ('', '?global=true') {
        my ($status, $answer, @ids, $bookmark);

        # Pages that would be larger are shorter.
        for my $page (1 .. 4) {
            ($status, $answer) = post({ kind => 'big', bookmark => $bookmark },
                                      "/query$where");
            is($status, 200, "page $page $where") or last;
            push @ids, map { $_->{_id} } @{ $answer->{docs} };
            $bookmark = $answer->{bookmark};
            last if @ids >= 4;
        }
        my %ids = map { $_ => 1 } @ids;
        is(@ids . ' ' . keys %ids, '4 4', "each document once $where");

        ($status, $answer) = post({ kind => 'big', limit => 1 },
                                  "/query$where");
        is("$status " . @{ $answer->{docs} }, '200 1', "less of it $where");

        ($status, $answer) = post({ kind => 'big', fields => ['_id'] },
                                  "/query$where");
        is("$status " . @{ $answer->{docs} }, '200 4', "fewer fields $where");
    }

    my ($status, $answer)
        = post([map { { _id => "$posts/big$_", v => 2, public() } } 1 .. 4]);
    is($status, 201, 'many are looked up in parts')
        or diag($json->encode($answer));
    is(scalar(grep { $_->{ok} } @$answer), 4, 'all of them are written');

    ($status) = post([map { { _id => "$posts/big$_", _deleted => $true } }
                          1 .. 4]);
    is($status, 201, 'deleted');

    # Whether CouchDB says before how long it is, or not; a little too long,
    # or much.
    for my $size (300_000, 900_000) {
        my $text = '{"docs":[],"x":"' . 'x' x $size . '"}';
        my $chunks = join('', map { sprintf("%x\r\n%s\r\n", length $_, $_) }
                                  $text =~ /(.{1,50000})/gs) . "0\r\n\r\n";

        for (['its length told', 'Content-Length: ' . length $text, $text],
             ['in chunks', 'Transfer-Encoding: chunked', $chunks],
             ['until the end', 'X-Length: none', $text])
        {
            my ($name, $header, $body) = @$_;

            fault($couch, path => qr{/_find}, answer => [
                  raw => "HTTP/1.1 200 OK\r\n$header\r\n\r\n$body"]);
            ($status, $answer) = post({}, '/query');
            is_error($status, $answer, 502, "$size bytes, $name");
        }

        fault($couch, path => qr{/_bulk_get}, times => 1, answer => [
              raw => "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
                     . $chunks]);
        ($status, $answer) = post([map { { _id => "$posts/p$size$_" } }
                                       1 .. 3]);
        is($status, 201, "$size bytes in chunks for a look-up: in parts");
        is(ref $answer && scalar(grep { $_->{ok} } @$answer), 3,
           "$size bytes in chunks for a look-up: all are written");
    }

    heal($couch);
    like($nginx->log, qr/vibe_max_response/, 'the log says why');
};


subtest 'a wrong password: 502, and it stays out of the log' => sub {
    # Not the admin's name: CouchDB locks who fails too often.
    my $name = "nobody$run";
    my $password = "Pw-$run-wrong";
    my ($url) = Vibe::couchdb();
    my $wrong = nginx_start(
        http => http_config(couchdb => $url,
                            credentials => "$name:$password"),
        level => 'debug');

    for (['POST', "/data/$posts", {}], ['POST', "/data/$posts/query", {}],
         ['POST', "/data/$posts/query?global=true", {}],
         ['GET', "/data/expand?did=$bob&ref=x"])
    {
        my ($method, $path, $body) = @$_;
        my ($status, $answer)
            = request($wrong, $method, $path, $token{$alice}, $body);
        is_error($status, $answer, 502, "$method $path");
    }

    # At level debug nginx itself logs each header that it sends, the one with
    # the password in base64 among them: those lines stand without a time.
    my @log = split /\n/, $wrong->log;
    my $base64 = encode_base64("$name:$password", '');

    is(scalar(grep { /\[error\].*credentials/ } @log), 4,
       'the log says what is wrong');
    is(scalar(grep { /\Q$password/ } @log), 0, 'but not the password');
    is(scalar(grep { /\Q$base64/ && !/^Authorization: / && !/\[debug\]/ } @log), 0,
       'nor in base64');

    $wrong->stop;
};


is_deeply([grep { /secret$run/ } split /\n/, $nginx->log], [],
          'what CouchDB says is not in the log');

$nginx->stop;

done_testing();
