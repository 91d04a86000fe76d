# References to documents: GET /data/expand?did=&ref=, and `expand` in a query.
# What the caller may not read looks like what does not exist.

use strict;
use warnings;

use JSON::PP;
use Test::More;
use Time::HiRes qw(time);
use Vibe;
use Vibe::Faults;
use Vibe::Raw;

my $json = JSON::PP->new->utf8->canonical->allow_nonref;
my ($true, $false) = (JSON::PP::true, JSON::PP::false);

my $run = sprintf('%x%04x', time, $$ & 65535);
my $posts = "posts$run";
my ($alice, $bob, $eve, $nobody) = map { did($_) } qw(alice bob eve nobody);
my %token = map { $_ => token($_) } $alice, $bob, $eve, $nobody;

my $couch = faulty();
my $nginx = nginx_start(
    http => http_config(couchdb => $couch->{url}),
    server => server_config(extra => <<'EOT'));
location /open/ { vibe_data; vibe_anonymous on; }
EOT


sub save {
    my ($who, @docs) = @_;

    my ($status, $rows) = request($nginx, 'POST', "/data/$posts",
                                  $token{$who}, \@docs);
    is($status, 201, 'written') or diag($json->encode($rows));
    return map { $_->{rev} } @$rows;
}


sub quote { return $_[0] =~ s/([^\w.~-])/sprintf '%%%02X', ord $1/ger }


# expand($who, $did, $ref): the status, the document, the answer as it came.

sub expand {
    my ($who, $did, $ref) = @_;

    my ($status, $doc, undef, $text)
        = request($nginx, 'GET', "/data/expand?did=" . quote($did) . '&ref='
                                 . quote($ref), $token{$who});
    return ($status, $doc, $text);
}


my %id = map { $_ => "$posts/$_" } qw(pub priv two deny star gone none was);
my %rev;

@rev{qw(pub priv two deny star gone was)} = save($alice,
    { _id => $id{pub}, k => 'pub', acl => { global => $true } },
    { _id => $id{priv}, k => 'priv', secret => "secret$run" },
    { _id => $id{two}, k => 'two', acl => { read => { allow => [$bob] } } },
    { _id => $id{deny}, k => 'deny',
      acl => { read => { allow => ['*'], deny => [$eve] } } },
    { _id => $id{star}, k => 'star', acl => { read => { allow => ['*'] } } },
    { _id => $id{gone}, k => 'gone', acl => { global => $true } },
    { _id => $id{was}, k => 'was', acl => { global => $true } });

save($alice, { _id => $id{gone}, _deleted => $true },
             { _id => $id{was}, k => 'was', secret => "secret$run" });


subtest 'what a caller may read' => sub {
    for ([$alice, 'pub priv two deny star was'], [$bob, 'pub two deny star'],
         [$eve, 'pub star'], [$nobody, 'pub deny star'])
    {
        my ($who, $may) = @$_;
        my %may = map { $_ => 1 } split / /, $may;

        for my $k (sort keys %id) {
            my ($status, $doc, $text) = expand($who, $alice, $id{$k});
            my $name = (split /:/, $who)[-1] . " and $k";

            if (!$may{$k}) {
                is($status, 404, "$name: 404");
                next;
            }

            is("$status " . ($doc->{k} // ''), "200 $k", "$name: the document");
            is($doc->{_rev}, $rev{$k}, "$name: its revision")
                if $k ne 'was';
            is($doc->{collection}, $posts, "$name: its collection");
            unlike($text, qr/"vibe_/, "$name: none of the module's members");
            is($doc->{_id}, $who eq $alice ? $id{$k} : gid($alice, $id{$k}),
               "$name: its id, as in a query");
        }
    }
};


subtest 'a 404 is the same in every byte but the date' => sub {
    my %seen;

    for ([$eve, $alice, $id{priv}], [$eve, $alice, $id{none}],
         [$eve, $alice, $id{gone}], [$eve, $alice, $id{two}],
         [$eve, $alice, $id{deny}], [$eve, $alice, $id{was}],
         [$eve, did('unknown'), $id{pub}], [$eve, $eve, $id{pub}],
         [$nobody, $nobody, 'x'], [$alice, $alice, $id{none}],
         [$alice, $alice, $id{gone}])
    {
        my ($who, $did, $ref) = @$_;
        my $c = dial($nginx);

        say_to($c, join("\r\n", 'GET /data/expand?did=' . quote($did) . '&ref='
                        . quote($ref) . ' HTTP/1.1', 'Host: localhost',
                        'Connection: close', "Authorization: Bearer "
                        . $token{$who}, '', ''));
        my $text = '';
        1 while sysread($c->{socket}, $text, 65536, length $text);

        like($text, qr{^HTTP/1\.1 404 }, "404: $ref");
        $text =~ s/^Date: .*$//m;
        push @{ $seen{$text} }, $ref;
    }

    is(scalar keys %seen, 1, 'one answer for all')
        or diag($json->pretty->encode(\%seen));
};


subtest 'bad arguments' => sub {
    for my $args ('', '?', '?did=', '?ref=x', "?did=$alice",
                  "?did=$alice&ref=", '?did=alice&ref=x', '?did=did:x&ref=x',
                  '?did=did:X:y&ref=x', '?did=did:x:%0a&ref=x',
                  '?did=did:x:y%20z&ref=x', '?did=did:x:' . 'y' x 5000
                  . '&ref=x', "?did=$alice&ref=" . 'x' x 5000,
                  "?did=$alice&ref=%ff", "?did=$alice&ref=%ed%a0%80",
                  "?did=$alice&ref=%00", "?did=$alice&ref=_design/x",
                  "?did=$alice&ref=_local/vibe_owner")
    {
        my ($status, $answer)
            = request($nginx, 'GET', "/data/expand$args", $token{$eve});
        my $name = substr($args, 0, 60);
        is($status, 400, "400: $name");
        ok(ref $answer && length($answer->{reason} // ''), "a reason: $name");
    }
};


subtest 'ids with all that ids may have' => sub {
    my @ids = ('a:b', 'a%b', 'a%3Ab', 'a%25b', 'a/b/c', 'a b', 'a+b', 'a&b=c',
               'a?b', 'a#b', "a\xc3\xa9", 'a"b', 'a\\b', "a'b", '..', 'a/../b',
               "did:vibe:x:y", '%', '%2F', ':');

    for my $i (0 .. $#ids) {
        my $quoted = $ids[$i] =~ s/(["\\])/\\$1/gr;
        my ($status, $answer) = request($nginx, 'POST', "/data/$posts",
            $token{$alice},
            "{\"_id\":\"$quoted\",\"n\":$i,\"acl\":{\"global\":true}}");
        is($status, 201, "written: $ids[$i]");

        for my $who ($alice, $bob) {
            my $doc;
            ($status, $doc) = expand($who, $alice, $ids[$i]);
            is("$status " . (ref $doc ? $doc->{n} // '' : $doc), "200 $i",
               (split /:/, $who)[-1] . " expands $ids[$i]");
        }
    }

    # A DID that the other begins with does not reach into it.
    my $long = "$alice:sub";
    $token{$long} = token($long);
    save($long, { _id => "$posts/p1", k => 'long', acl => { global => $true } });

    for my $ref ("sub:$posts/p1", "sub%3A$posts/p1") {
        my ($status) = expand($bob, $alice, $ref);
        is($status, 404, "not $alice with $ref");
    }
    my ($status, $doc) = expand($bob, $long, "$posts/p1");
    is("$status $doc->{k}", '200 long', 'but its owner with its id');
};


subtest 'without a token' => sub {
    my $path = "expand?did=$alice&ref=" . quote($id{pub});

    my ($status) = request($nginx, 'GET', "/data/$path");
    is($status, 401, '401 by default');

    for (['pub', 200], ['star', 200], ['priv', 404], ['two', 404],
         ['deny', 404], ['none', 404])
    {
        my ($k, $expected) = @$_;
        ($status) = request($nginx, 'GET',
                            "/open/expand?did=$alice&ref=" . quote($id{$k}));
        is($status, $expected, "vibe_anonymous: $k");
    }
};


# What refers: documents of bob's, who reads them, and of carol's, public.

my %ref = map { $_ => { did => $alice, ref => $id{$_} } } keys %id;

save($bob,
    { _id => "$posts/b0", k => 'b0' },
    { _id => "$posts/q1", q => 1, author => $ref{pub}, other => $ref{priv},
      list => [$ref{pub}, $ref{two}, $ref{priv}, $ref{none}, $ref{pub}],
      mixed => ['text', 5, undef, $ref{star}, { did => $alice }, [],
                { did => 'x', ref => 'y' }, { ref => $id{pub} }],
      mine => { did => $bob, ref => "$posts/b0" }, text => 'no reference',
      empty => [], nothing => undef,
      more => { did => $alice, ref => $id{pub}, extra => 1 },
      acl => { global => $true } });


sub query {
    my ($who, $body, $args) = @_;

    my ($status, $answer, undef, $text);

    wait_for {
        ($status, $answer, undef, $text)
            = request($nginx, 'POST', "/data/$posts/query" . ($args // ''),
                      $token{$who}, $body);
        $status != 503;
    } 30;

    is($status, 200, 'answered') or diag($text);
    unlike($text, qr/"vibe_|secret$run/, 'nothing that may not be seen');
    return $status == 200 ? @{ $answer->{docs} } : ();
}


# short($value): documents by their `k`, the rest as it is.

sub short {
    my ($value) = @_;

    return [map { short($_) } @$value] if ref $value eq 'ARRAY';
    return "<$value->{k}>" if ref $value eq 'HASH' && exists $value->{k};
    return $value;
}


for (['own', $bob, ''], ['global', $eve, '?global=true']) {
    my ($name, $who, $args) = @$_;
    my $is_bob = $who eq $bob;
    my $two = $is_bob ? '<two>' : $ref{two};
    my $mine = $is_bob ? '<b0>' : { did => $bob, ref => "$posts/b0" };

    subtest "expand in a query: $name" => sub {
        my %is = (
            author => '<pub>', other => $ref{priv},
            list => ['<pub>', $two, $ref{priv}, $ref{none}, '<pub>'],
            mixed => ['text', 5, undef, '<star>', { did => $alice }, [],
                      { did => 'x', ref => 'y' }, { ref => $id{pub} }],
            mine => $mine, text => 'no reference', empty => [],
            nothing => undef, more => '<pub>');
        my ($plain) = query($who, { q => 1 }, $args);

        is_deeply($plain->{author}, $ref{pub}, 'not without being asked');

        for my $expand ('author', 'author,list', ['author'],
                        ['list', 'mixed'], 'mine', ['text', 'empty', 'nothing'],
                        'more', 'unknown', ['author', 'author'],
                        join(',', sort keys %is), [sort keys %is])
        {
            my ($doc) = query($who, { q => 1, expand => $expand }, $args);
            my %asked = map { $_ => 1 }
                            ref $expand ? @$expand : split /,/, $expand;

            is_deeply({ map { $_ => short($doc->{$_}) } keys %is },
                      { map { $_ => $asked{$_} ? $is{$_} : $plain->{$_} }
                            keys %is },
                      $json->encode($expand));
            is_deeply([sort keys %$doc], [sort keys %$plain],
                      'the members of the document');
        }

        my ($doc) = query($who, { q => 1, expand => 'author',
                                  fields => ['author', 'text'] }, $args);
        is_deeply([sort keys %$doc], ['author', 'text'], 'with fields');
        is(short($doc->{author}), '<pub>', 'expanded');

        is($doc->{author}{_rev}, $rev{pub}, 'with the revision of the source');

        # As it was written, in an order that no encoder makes.
        my $collection = $is_bob ? $posts : "order$run";
        my $reference = $json->encode($ref{pub});
        my ($status) = request($nginx, 'POST', "/data/$collection",
            $token{$bob}, "{\"_id\":\"$collection/order\",\"order\":1.0,"
            . "\"z\":$reference,\"y\":1e2,\"a\":[$reference],\"b\":\"\\u00e9\","
            . '"acl":{"global":true}}');
        is($status, 201, 'written');

        (undef, undef, undef, my $text)
            = request($nginx, 'POST', "/data/$collection/query$args",
                      $token{$who}, '{"order":1,"expand":"z,a"}');
        like($text, qr/"order".*"z":\{.*"y":.*"a":\[\{.*"b":/s,
             'the members are where they were');
    };
}


subtest 'one request for each database' => sub {
    my @many = map { { _id => "$posts/m$_", m => 1,
                       refs => [$ref{pub}, $ref{star}, $ref{two}, $ref{none},
                                { did => did("other$_"), ref => 'x' },
                                { did => $bob, ref => "$posts/b0" },
                                { did => $bob, ref => "$posts/m$_" }] } }
                   1 .. 25;
    save($bob, @many);
    query($bob, { m => 1 });
    asked($couch);

    my @docs = query($bob, { m => 1, expand => 'refs' });
    my @asked = asked($couch, qr/_bulk_get/);

    is(scalar @docs, 25, 'all documents');
    is(scalar(grep { $_->{path} =~ /^\/global/ } @asked), 1, 'global once');
    is(scalar(grep { $_->{path} =~ /^\/userdb/ } @asked), 1,
       'the own database once');
    is(scalar @asked, 2, 'and no other');

    for (@asked) {
        my @ids = map { $_->{id} } @{ $json->decode($_->{body})->{docs} };
        my %ids = map { $_ => 1 } @ids;
        is(scalar @ids, scalar keys %ids, 'each document is asked for once');
    }

    is(scalar(grep { $_->{refs}[5]{k} eq 'b0' } @docs), 25,
       'and stands wherever it is referred to');

    query($bob, { m => 1, expand => 'nothing' });
    is(scalar asked($couch, qr/_bulk_get/), 0, 'none if there is none');
};


subtest 'too many' => sub {
    save($bob, map { { _id => "$posts/t$_", t => 1,
                       refs => [map { $ref{pub} } 1 .. 90] } } 1 .. 12);

    # 1,080 of them; what is beyond the bound stays as it is.
    my @refs = map { @{ $_->{refs} } } query($bob, { t => 1,
                                                     expand => 'refs' });
    is(scalar @refs, 1080, 'none is lost');
    is(scalar(grep { ($_->{k} // '') eq 'pub' } @refs), 1000,
       'some are expanded');
    is(scalar(grep { ($_->{ref} // '') eq $id{pub} } @refs), 80,
       'the others are not');

    @refs = map { @{ $_->{refs} } } query($bob, { t => 1, expand => 'refs',
                                                  limit => 11 });
    is(scalar(grep { ($_->{k} // '') eq 'pub' } @refs), 990,
       'all of them with a smaller limit');

    my ($status) = request($nginx, 'POST', "/data/$posts/query", $token{$bob},
                        { expand => [map { "f$_" } 1 .. 50] });
    is($status, 400, 'names');
};


$nginx->stop;

done_testing();
