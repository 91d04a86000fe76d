# Global queries that are answered from registered feeds: the three modes, what
# may be asked of a feed, what stands in the answer, and that an answer is of
# one run.  Databases and pointers of the feeds are made by hand: no run of the
# module's has a part in this.

use strict;
use warnings;

use Digest::SHA qw(sha1_hex);
use JSON::PP;
use POSIX qw(strftime);
use Test::More;
use Time::HiRes qw(sleep time);
use Vibe;
use Vibe::H2;
use Vibe::Proxy;
use Vibe::Race;
use Vibe::Tap;

my $json = JSON::PP->new->utf8->canonical->allow_nonref;
my ($true, $false) = (JSON::PP::true, JSON::PP::false);

# Collections, and so feeds and databases, of this run only.
my $run = sprintf('%x%04x', time, $$ & 65535);
my ($posts, $events, $empty, $none)
    = map { "$_$run" } qw(posts events empty none);
my ($alice, $bob) = map { did($_) } qw(alice bob);
my %token = map { $_ => token($_) } $alice, $bob;

my @made;


sub feed_name { return "_global_$_[0]" }

sub feed_db { return "vibe_global_$_[0]" . ($_[1] ? '-2' : '') }


sub registry {
    return write_file($json->encode([
        { collectionName => $posts, materializedViewName => feed_name($posts),
          aggregationInterval => '1d',
          query => { selector => { k => { '$exists' => $true } },
                     fields => ['_id', 'k', 'author.name', 'a\\.b', 'n'],
                     sort => [{ createdAt => 'desc' }] } },
        map { { collectionName => $_, materializedViewName => feed_name($_),
                aggregationInterval => '1d',
                query => { selector => { k => { '$exists' => $true } } } } }
            $events, $empty,
    ]));
}


# ---- feeds, by hand ---------------------------------------------------------

sub index_name {
    return 'vibe-' . substr(sha1_hex(join('', map { "$_\0" } @_)), 0, 16);
}


# make_db($db, \@indexes, @rows): as a run would leave it.

sub make_db {
    my ($db, $indexes, @rows) = @_;

    couch('DELETE', "/$db");
    my ($status) = couch('PUT', "/$db?q=1");
    $status == 201 or die "PUT /$db: $status\n";
    push @made, $db;

    for my $index (@$indexes) {
        my $name = index_name(@$index);
        ($status) = couch('POST', "/$db/_index", {
            index => { fields => ['collection', @$index] }, type => 'json',
            ddoc => $name, name => $name });
        $status == 200 or die "POST /$db/_index: $status\n";
    }

    fill($db, @rows) if @rows;
}


sub fill {
    my ($db, @rows) = @_;

    my ($status, $answer) = couch('POST', "/$db/_bulk_docs",
                                  { docs => \@rows });
    $status == 201 && !grep { $_->{error} } @$answer
        or die "POST /$db/_bulk_docs: " . $json->encode($answer) . "\n";
}


# A row of the module's own members, and those given.

sub row {
    my ($collection, $id, %member) = @_;

    return { _id => gid($alice, $id), %member, collection => $collection,
             vibe_v => 1, vibe_rev => "7-$run", vibe_db => userdb($alice),
             vibe_def => '0123456789abcdef' };
}


# put_pointer($collection, %member): undef leaves one out.

sub put_pointer {
    my ($collection, %member) = @_;

    my $path = '/vibe_state/feed%3A' . feed_name($collection);
    my ($status, $old) = couch('GET', $path);
    my %doc = (vibe_v => 1, collection => $collection,
               definition => '0123456789abcdef', fields => [], sort => [],
               descending => $false, indexes => [[]],
               db => feed_db($collection), run => 1, as_of => 1790000000123,
               last_seq => "seq-$run", rows => 1, grace => 500,
               %member, $status == 200 ? (_rev => $old->{_rev}) : ());

    delete @doc{grep { !defined $doc{$_} } keys %doc};
    ($status) = couch('PUT', $path, \%doc);
    $status == 201 or die "PUT $path: $status\n";
}


sub iso {
    my ($ms) = @_;

    return strftime('%Y-%m-%dT%H:%M:%S', gmtime(int($ms / 1000)))
           . sprintf('.%03dZ', $ms % 1000);
}


# The feed of posts: 40 rows; their order by time is neither that of their
# numbers nor that of their ids.

my @posts_fields = ('_id', 'k', 'author.name', 'a\\.b', 'n', '_rev');
my @posts_indexes = (['createdAt'], ['n'], ['n', 'createdAt'], []);
my %posts_pointer = (fields => \@posts_fields, sort => ['createdAt'],
                     descending => $true, indexes => \@posts_indexes);

sub post_rows {
    my ($prefix, @n) = @_;

    return map { row($posts, "$posts/$_", k => "$prefix$_", n => $_,
                     author => { name => "a$_" }, 'a.b' => $_ % 3,
                     createdAt => 1000 + ($_ * 17) % 41) } @n;
}

my @by_time = sort { ($b * 17) % 41 <=> ($a * 17) % 41 } 1 .. 40;

couch('PUT', '/vibe_state?q=1');
make_db(feed_db($posts), \@posts_indexes, post_rows('f', 1 .. 40));
make_db(feed_db($posts, 1), \@posts_indexes);
make_db(feed_db($events), [[]], map {
    row($events, "$events/$_", k => "e$_", n => $_, title => "t$_",
        who => { did => $bob, ref => "$posts/seen" },
        acl => { global => $true }) } 1 .. 3);

put_pointer($posts, %posts_pointer);
put_pointer($events);


# ---- nginx ------------------------------------------------------------------

my $tap = Vibe::Tap->start;

my $locations = <<'EOT';
location /reg/ { vibe_data; vibe_global_reads registered; }
location /any/ { vibe_data; vibe_global_reads any; }
location /live/ { vibe_data; vibe_global_reads live; }
location /open/ { vibe_data; vibe_global_reads registered; vibe_anonymous on; }
EOT

my $extra = 'vibe_registry ' . registry() . ';';
my $nginx = nginx_start(http => $tap->http_config(extra => $extra),
                        server => server_config(extra => $locations));


# ask($mode, $collection, $body [, $who]): a global query.

sub ask {
    my ($mode, $collection, $body, $who) = @_;

    return request($nginx, 'POST', "/$mode/$collection/query?global=true",
                   $who // $token{$bob}, $body);
}


# The same until its status is this one: a pointer is used for a fifth of a
# second, and an index of `global` may be in the making.

sub ask_until {
    my ($expected, @query) = @_;

    my @answer;
    wait_for { @answer = ask(@query); $answer[0] == $expected } 30;
    return @answer;
}


sub keys_of {
    my ($answer) = @_;

    return 'no docs: ' . (ref $answer ? $json->encode($answer) : $answer)
        if ref $answer ne 'HASH' || ref $answer->{docs} ne 'ARRAY';
    return join(' ', map { $_->{k} // '?' } @{ $answer->{docs} });
}


sub f { return join(' ', map { "f$_" } @_) }

# Requests of queries: not what a worker looks at by itself.
sub asked { return grep { $_->{path} !~ m{^/_|^/$} } $tap->asked }


# What `global` has: other names, to tell it from the feed.

for my $collection ($posts, $none) {
    my ($status) = request($nginx, 'POST', "/data/$collection", $token{$alice},
        [map { { _id => "$collection/$_", k => "g$_", n => $_, secret => $_,
                 createdAt => 2000 + $_, author => { name => "a$_" },
                 acl => { global => $true } } } 1 .. 3]);
    is($status, 201, "in global: $collection");
}

is((request($nginx, 'POST', "/data/$posts", $token{$bob},
            { _id => "$posts/seen", k => 'seen', n => 100, createdAt => 1,
              acl => { global => $true } }))[0], 201, 'and one of bob\'s');

ask_until(200, 'live', $posts, { sort => ['createdAt'] });


subtest 'live, registered and any, with a feed and without' => sub {
    my $live = 'seen g1 g2 g3';

    for (['data', $posts, $live], ['live', $posts, $live],
         ['reg', $posts, f(@by_time[0 .. 4])],
         ['any', $posts, f(@by_time[0 .. 4])],
         ['data', $none, 'g1 g2 g3'], ['live', $none, 'g1 g2 g3'],
         ['any', $none, 'g1 g2 g3'],
         ['reg', $events, 'e1 e2 e3'], ['any', $events, 'e1 e2 e3'])
    {
        my ($mode, $collection, $expected) = @$_;

        my ($status, $answer) = ask_until(200, $mode, $collection,
                                          { limit => 5 });
        my $keys = keys_of($answer);
        $keys = join(' ', sort split / /, $keys) if $expected !~ /^f/;
        is("$status $keys", '200 ' . ($expected =~ /^f/ ? $expected
                            : join(' ', sort split / /, $expected)),
           "$mode, $collection");
        is(exists $answer->{as_of} ? 1 : 0, $expected =~ /^[fe]/ ? 1 : 0,
           'as_of tells which of them it was');
    }

    # One's own documents are not in question.
    my ($status, $answer) = request($nginx, 'POST', "/reg/$none/query",
                                    $token{$alice}, { k => 'g2' });
    is("$status " . keys_of($answer), '200 g2', 'own ones, under registered');
};


subtest 'a refused query sends CouchDB nothing' => sub {
    my $strange = token($bob, instanceId => "strange-$run");
    my $path = "/reg/$none/query";
    asked();

    for (['POST', "$path?global=true", {}, $token{$bob}],
         ['POST', $path, { global => $true }, $token{$bob}],
         ['GET', "$path?global=true", undef, $token{$bob}],
         ['GET', "$path?q=%7B%22global%22%3Atrue%7D", undef, $token{$bob}],
         ['POST', "$path?global=true", { sort => ['createdAt'] }, $strange],
         ['POST', "/open/$none/query?global=true", {}, undef])
    {
        my ($method, $what, $body, $who) = @$_;

        my ($status, $answer, $header) = request($nginx, $method, $what, $who,
                                                 $body);
        is($status, 403, "$method $what");
        is($answer->{error}, 'not_registered', 'and why');
        like($answer->{reason}, qr/feed/, 'in words');
        is_deeply([sort keys %$answer], ['error', 'reason'], 'nothing else');
        is($header->{'content-type'}, 'application/json', 'as JSON');
    }

    is_deeply([asked()], [], 'CouchDB was asked nothing');
};


subtest 'callers' => sub {
    is((request($nginx, 'POST', "/reg/$posts/query?global=true", undef, {}))[0],
       401, 'without a token');
    is((ask('reg', $posts, {}, token($bob, exp => 1)))[0], 401,
       'with an expired one');

    my ($status, $answer) = request($nginx, 'POST',
        "/open/$posts/query?global=true", undef, { limit => 3 });
    is("$status " . keys_of($answer), '200 ' . f(@by_time[0 .. 2]),
       'vibe_anonymous');
};


subtest 'one look-up' => sub {
    # The pointer is shared by all that come within its time.
    my (@seen, $status);

    wait_for {
        asked();
        ($status) = ask('reg', $posts, {});
        @seen = map { "$_->{method} $_->{path}" } asked();
        @seen == 2;
    };

    is_deeply(\@seen, ['GET /vibe_state/feed%3A' . feed_name($posts),
                       'POST /' . feed_db($posts) . '/_find'],
              'the pointer, and the query');

    wait_for {
        asked();
        ($status) = ask('reg', $posts, {});
        @seen = map { "$_->{method} $_->{path}" } asked();
        @seen == 1;
    };

    is_deeply(\@seen, ['POST /' . feed_db($posts) . '/_find'],
              'or the query alone');
};


subtest 'order, limit, skip' => sub {
    for ([{}, @by_time[0 .. 24]],
         [{ limit => 3 }, @by_time[0 .. 2]],
         [{ limit => 0 }],
         [{ skip => 5, limit => 2 }, @by_time[5, 6]],
         [{ skip => 38 }, @by_time[38, 39]],
         [{ sort => [] , limit => 2 }, @by_time[0, 1]],
         [{ sort => ['createdAt'], limit => 3 }, (reverse @by_time)[0 .. 2]],
         [{ sort => [{ createdAt => 'desc' }], limit => 3 }, @by_time[0 .. 2]],
         [{ sort => ['n'], limit => 3 }, 1 .. 3],
         [{ sort => [{ n => 'desc' }], limit => 3 }, 40, 39, 38],
         [{ sort => ['n', 'createdAt'], limit => 2 }, 1, 2],
         [{ n => { '$lt' => 4 } }, grep { $_ < 4 } @by_time],
         [{ n => { '$lt' => 9 }, selector => { n => { '$gt' => 6 } } },
          grep { $_ > 6 && $_ < 9 } @by_time],
         [{ collection => $none }])
    {
        my ($body, @expected) = @$_;

        for my $mode ('reg', 'any') {
            my ($status, $answer) = ask($mode, $posts, $body);
            is("$status " . keys_of($answer), '200 ' . f(@expected),
               "$mode: " . $json->encode($body));
        }
    }

    for my $sort (['k'], ['createdAt', 'n'], ['author.name'], ['_id'],
                  ['n', 'createdAt', 'k'])
    {
        my ($status, $answer) = ask('reg', $posts, { sort => $sort });
        is($status, 400, "@$sort is refused");
        like($answer->{reason}, qr/By: createdAt; n; n createdAt;$/,
             'and told which sorts there are');

        ($status, $answer) = ask('any', $posts, { sort => $sort });
        is($status, 400, 'under any `global` is asked, which has none, either');
        like($answer->{reason}, qr/^Global .*createdAt/, 'by its own words');
    }

    my ($status, $answer) = ask('reg', $events, { sort => ['n'] });
    is($status, 400, 'a feed without sorts');
    like($answer->{reason}, qr/By:$/, 'has none to tell');

    ($status, $answer) = ask_until(200, 'any', $events,
                                   { sort => ['createdAt'] });
    is_deeply($answer->{docs}, [], 'one that only `global` has goes there');
    ok(!exists $answer->{as_of}, 'which is no run');
};


subtest 'pages, to the end' => sub {
    for my $limit (1, 7, 40) {
        for ([{}, @by_time], [{ sort => ['n'] }, 1 .. 40],
             [{ sort => [{ n => 'desc' }] }, reverse 1 .. 40])
        {
            my ($body, @expected) = @$_;
            my (@keys, $bookmark);

            for (1 .. 50) {
                my ($status, $answer) = ask('reg', $posts,
                    { %$body, limit => $limit,
                      $bookmark ? (bookmark => $bookmark) : () });
                last if $status != 200 || !@{ $answer->{docs} };
                push @keys, map { $_->{k} } @{ $answer->{docs} };
                $bookmark = $answer->{bookmark};
            }

            is("@keys", f(@expected), "by $limit: " . $json->encode($body));
        }
    }

    my ($status, $answer) = ask('reg', $posts, { bookmark => 'nonsense' });
    is($status, 400, 'a bookmark of another make');
    like($answer->{reason}, qr/bookmark/, 'and why');
};


subtest 'fields' => sub {
    my %whole = (_id => gid($alice, "$posts/7"), _rev => "7-$run", k => 'f7',
                 author => { name => 'a7' }, 'a.b' => 1, n => 7);

    for ([undef, \%whole], [[], \%whole],
         [['k'], { k => 'f7' }],
         [['_id', '_rev'], { _id => $whole{_id}, _rev => "7-$run" }],
         [['author.name', 'n'], { author => { name => 'a7' }, n => 7 }],
         [['a\\.b'], { 'a.b' => 1 }],
         [['author.name.first', 'k'], { k => 'f7' }],
         [['createdAt', 'collection'],
          { createdAt => 1000 + (7 * 17) % 41, collection => $posts }])
    {
        my ($fields, $expected) = @$_;

        my ($status, $answer) = ask('reg', $posts,
                                    { n => 7, fields => $fields });
        is_deeply($status == 200 ? $answer->{docs} : $answer, [$expected],
                  $json->encode($fields));
    }

    my ($status, $answer) = ask('reg', $events, { n => 2 });
    is_deeply($answer->{docs},
              [{ _id => gid($alice, "$events/2"), _rev => "7-$run",
                 collection => $events, k => 'e2', n => 2, title => 't2',
                 who => { did => $bob, ref => "$posts/seen" },
                 acl => { global => $true } }],
              'a feed of whole documents: all but the module\'s own members');

    for my $fields (['vibe_rev'], ['k', 'vibe_db'], ['vibe_def'], ['x.vibe_v'])
    {
        for my $mode ('reg', 'any') {
            is((ask($mode, $events, { fields => $fields }))[0], 400,
               "$mode: @$fields");
        }
    }

    for my $body ({ vibe_db => 'x' }, { selector => { vibe_def => 'x' } },
                  { _rev => "7-$run" }, { sort => ['vibe_db'] })
    {
        is((ask('reg', $events, $body))[0], 400, $json->encode($body));
    }
};


subtest 'what the feed does not hold' => sub {
    my $n = { n => { '$lt' => 3 } };

    # What is asked, and the field that the feed lacks.
    for ([{ secret => 1 }, 'secret'],
         [{ selector => { secret => 1 } }, 'secret'],
         [{ selector => { '$or' => [$n, { secret => 1 }] } }, 'secret'],
         [{ selector => { '$not' => { secret => 1 } } }, 'secret'],
         [{ '$nor' => [{ '$and' => [$n, { '$not' => { secret => 1 } }] }] },
          'secret'],
         [{ author => 'a1' }, 'author'],
         [{ author => { '$exists' => $true } }, 'author'],
         [{ author => { name => 'a1', age => 5 } }, 'author.age'],
         [{ author => { '$or' => [{ name => 'a1' }, { age => 5 }] } },
          'author.age'],
         [{ author => { '$not' => { age => 5 } } }, 'author.age'],
         [{ author => {} }, 'author'],
         [{ 'author.names' => 'x' }, 'author.names'],
         [{ 'a.b' => 1 }, 'a.b'],
         [{ a => { b => 1 } }, 'a.b'],
         [{ 'author\\.name' => 1 }, 'author\\.name'],
         [{ title => { '$elemMatch' => { k => 1 } } }, 'title'],
         [{ fields => ['k', 'title'] }, 'title'],
         [{ fields => ['author'] }, 'author'],
         [{ sort => ['title'] }, 'title'],
         [{ expand => 'author' }, 'author'],
         [{ acl => { global => $true } }, 'acl.global'])
    {
        my ($body, $field) = @$_;

        my ($status, $answer) = ask('reg', $posts, $body);
        is($status, 400, 'registered: ' . $json->encode($body));
        like($answer->{reason}, qr/: \Q$field\E$/, 'which names the field');

        ($status, $answer) = ask('any', $posts, $body);
        is($status, $body->{sort} ? 400 : 200, 'any: `global` is asked');
        ok(ref $answer eq 'HASH' && !exists $answer->{as_of}
           && keys_of($answer) !~ /f/, 'and answers');
    }

    for ([{ 'author.name' => 'a5' }, 5],
         [{ author => { name => 'a5' } }, 5],
         [{ author => { name => { '$in' => ['a5', 'a6'] } }, n => 5 }, 5],
         [{ author => { '$or' => [{ name => 'a5' }] } }, 5],
         [{ 'auth\\or.name' => 'a5' }, 5],
         [{ 'a\\.b' => 0, n => { '$lt' => 4 } }, 3],
         [{ 'author.name.first' => 'x' }],
         [{ createdAt => 1000 + (5 * 17) % 41 }, 5],
         [{ _id => gid($alice, "$posts/5") }, 5],
         [{ collection => $posts, n => 5 }, 5],
         [{ k => { '$elemMatch' => { secret => 1 } } }],
         [{ selector => { '$and' => [{ n => 5 }, { k => 'f5' }] } }, 5],
         [{ expand => 'k', n => 5 }, 5])
    {
        my ($body, @expected) = @$_;

        my ($status, $answer) = ask('reg', $posts, $body);
        is("$status " . keys_of($answer), '200 ' . f(@expected),
           'held: ' . $json->encode($body));
    }

    # A log is read line by line.
    my ($status, $answer) = ask('reg', $posts, { "a\nb\x{1}" => 1 });
    is($status, 400, 'an odd name');
    like($answer->{reason}, qr/: a\?b\?$/, 'is told as far as it can be shown');
};


subtest 'as_of, last_seq, Age' => sub {
    my ($status, $answer, $header) = ask('reg', $posts, { limit => 1 });

    is($answer->{last_seq}, "seq-$run", 'last_seq is the pointer\'s');
    is($answer->{as_of}, iso(1790000000123), 'as_of, with milliseconds');
    is_deeply([sort keys %$answer], [qw(as_of bookmark docs last_seq)],
              'all that is in the answer');

    for my $ago (0, 90.5, 86400 * 365, -3600) {
        my $as_of = int((time - $ago) * 1000);
        put_pointer($posts, %posts_pointer, as_of => $as_of, run => 2);

        wait_for {
            ($status, $answer, $header) = ask('reg', $posts, { limit => 1 });
            $answer->{as_of} eq iso($as_of);
        };

        is($answer->{as_of}, iso($as_of), "a run of $ago s ago");

        my $age = int(time - $as_of / 1000);
        like($header->{age}, $ago < 0 ? qr/^0$/ : qr/^(?:$age|@{[$age - 1]})$/,
             'its age');
    }

    is((ask('live', $posts, {}))[2]{age}, undef, 'none of a live answer');
};


subtest 'ETag and If-None-Match' => sub {
    my $path = "/reg/$posts/query?global=true&q="
               . '%7B%22limit%22%3A3%2C%22n%22%3A%7B%22%24lt%22%3A9%7D%7D';
    my $get = sub { return request($nginx, 'GET', $path, $token{$bob}, undef,
                                   @_) };
    my ($status, $answer, $header) = $get->();

    is($status, 200, 'GET');
    is(keys_of($answer), f((grep { $_ < 9 } @by_time)[0 .. 2]), 'of the feed');
    like($header->{etag}, qr{^W/"[0-9a-f]{32}"$}, 'has a weak ETag');
    like($header->{'cache-control'}, qr/private/, 'and is for its reader only');

    my $etag = $header->{etag};
    ($status, $answer, $header) = $get->('If-None-Match' => $etag);
    is($status, 304, 'If-None-Match');
    like($header->{age}, qr/^\d+$/, 'has an Age, too');
    is($header->{etag}, $etag, 'and the ETag');

    # Another run with the same result.
    my $as_of = int(time * 1000) - 5000;
    put_pointer($posts, %posts_pointer, as_of => $as_of, run => 3,
                last_seq => "later-$run");
    wait_for { (ask('reg', $posts, {}))[1]{as_of} eq iso($as_of) };

    is(($get->('If-None-Match' => $etag))[0], 304, 'after another run');
    ($status, $answer, $header) = $get->();
    is($header->{etag}, $etag, 'the ETag is the same');
    is($answer->{last_seq}, "later-$run", 'last_seq is not');
    is(($get->('If-None-Match' => 'W/"0"'))[0], 200, 'another one');

    is((request($nginx, 'HEAD', $path, $token{$bob}))[2]{etag}, $etag, 'HEAD');
};


subtest 'expand' => sub {
    my ($status, $answer) = ask('reg', $events, { n => 1, expand => 'who' });

    is($status, 200, 'a reference in a row');
    is($answer->{docs}[0]{who}{k}, 'seen', 'is replaced');
    is($answer->{docs}[0]{who}{_id}, "$posts/seen", 'by the caller\'s own');

    ($status, $answer) = ask('reg', $events, { n => 1, expand => 'who' },
                             $token{$alice});
    is($answer->{docs}[0]{who}{_id}, gid($bob, "$posts/seen"),
       'or by what they may read');
};


# ---- what cannot be read ----------------------------------------------------

sub is_gathered {
    my ($collection, $name) = @_;

    for my $mode ('reg', 'any') {
        my ($status, $answer, $header) = ask_until(503, $mode, $collection, {});
        is($status, 503, "$mode: $name");
        is_deeply($answer, { error => 'service_unavailable',
                             reason => 'This feed is being gathered.' }, 'why');
        like($header->{'retry-after'} // '', qr/^\d+$/, 'and when to come back');
    }
}


subtest 'pointers that cannot be used' => sub {
    is_gathered($empty, 'there is none');

    put_pointer($empty, map { $_ => undef } qw(db run as_of last_seq rows));
    is_gathered($empty, 'no run has ended');

    make_db(feed_db($empty), [[]], row($empty, "$empty/1", k => 'x'));

    my $works = sub {
        my ($status, $answer) = ask_until(200, 'reg', $empty, {});
        is("$status " . keys_of($answer), '200 x', 'a good one is read again');
    };

    put_pointer($empty);
    $works->();

    for (['of another collection', collection => $posts],
         ['a newer format', vibe_v => 2],
         ['no format', vibe_v => undef],
         ['a user\'s database', db => userdb($alice)],
         ['the database of another feed', db => feed_db($posts)],
         ['`global`', db => 'global'],
         ['no database\'s name', db => '../global'],
         ['no time', as_of => undef],
         ['a time that is none', as_of => 'now'],
         ['a time beyond all', as_of => 999999999999999],
         ['no sequence', last_seq => undef],
         ['a run that is none', run => -1],
         ['fields that are none', fields => [1]],
         ['fields that are no list', fields => 'k'],
         ['a sort that is none', sort => [[]]],
         ['indexes that are none', indexes => ['k']],
         ['no indexes', indexes => undef],
         ['no direction', descending => undef],
         ['no grace', grace => undef],
         ['a grace too long', grace => 100000],
         ['no definition', definition => undef])
    {
        my ($name, %member) = @$_;

        put_pointer($empty, %member);
        is_gathered($empty, $name);
        put_pointer($empty);
        $works->();
    }

    my $times = () = $nginx->log =~ /the pointer of feed .*not understood/g;
    is($times, 17, 'what is not understood is in the log, once each time');

    # The definition has changed, and the run of the new one not ended.
    put_pointer($empty, definition => 'fedcba9876543210');
    $works->();
};


subtest 'a database or an index that is gone' => sub {
    my $index = index_name('n');
    my $db = feed_db($empty);

    couch('DELETE', "/$db");

    my ($status, $answer, $header) = ask('reg', $empty, {});
    is($status, 503, 'without its database');
    is($answer->{error}, 'service_unavailable', 'and why');
    like($header->{'retry-after'}, qr/^\d+$/, 'and when to come back');
    is((ask('any', $empty, {}))[0], 503, 'under any, too');

    asked();
    ask('reg', $empty, {});
    my $finds = grep { $_->{path} =~ /_find/ } asked();
    is($finds, 5, 'after five tries');

    make_db($db, [], row($empty, "$empty/1", k => 'y', n => 1));
    put_pointer($empty, sort => ['n'], indexes => [['n']]);
    ($status, $answer) = ask_until(503, 'reg', $empty, {});
    is($status, 503, 'without its index');

    couch('POST', "/$db/_index", { index => { fields => ['collection', 'n'] },
          type => 'json', ddoc => $index, name => $index });
    ($status, $answer) = ask('reg', $empty, {});
    is("$status " . keys_of($answer), '200 y', 'with it');
};


# ---- one run ----------------------------------------------------------------

my $proxy = Vibe::Proxy->start;
my $slow = nginx_start(http => $proxy->http_config(extra => $extra),
                       server => server_config(extra => $locations));

# replace($nth, $prefix, @n): the rows of one of the two databases.

sub replace {
    my ($nth, $prefix, @n) = @_;

    my $db = feed_db($posts, $nth);
    my ($status, $all) = couch('GET', "/$db/_all_docs");
    my @old = grep { $_->{id} !~ /^_/ } @{ $all->{rows} };

    fill($db, map { { _id => $_->{id}, _rev => $_->{value}{rev},
                      _deleted => $true } } @old) if @old;
    fill($db, post_rows($prefix, @n)) if @n;
}


my $turn = 10;

# flip($nth): the pointer names this database now.

sub flip {
    my ($nth) = @_;

    put_pointer($posts, %posts_pointer, db => feed_db($posts, $nth),
                run => ++$turn, as_of => int(time * 1000),
                last_seq => "turn-$turn");
}


# begin($nth): a read whose _find of this database is kept back.

sub begin {
    my ($nth) = @_;

    my $hold = $proxy->hold('^POST /' . feed_db($posts, $nth) . '/_find');
    my $read = send_request($slow, 'POST', "/reg/$posts/query?global=true",
                            $token{$bob}, { limit => 100 });
    ok($proxy->wait_held($hold, $read), 'a read is under way');
    return ($hold, $read);
}


# When a database that is no longer named may be written, and more.
sub grace { sleep 0.6 }


subtest 'the pointer flips during a slow read' => sub {
    replace(0, 'one-', 1 .. 20);
    replace(1);
    flip(0);

    my ($hold, $read) = begin(0);

    replace(1, 'two-', 5 .. 30);
    flip(1);
    my $now = $turn;
    grace();

    # The third run has begun: half of it is there.
    replace(0, 'three-', 1 .. 10);
    $proxy->release($hold);

    my ($status, $answer) = answer_of($read);
    is("$status " . join(' ', sort split / /, keys_of($answer)),
       '200 ' . join(' ', sort map { "two-$_" } 5 .. 30),
       'the answer is the second run');
    is($answer->{last_seq}, "turn-$now", 'with its sequence');
};


subtest 'a slow read of a run that is still the last one' => sub {
    my ($hold, $read) = begin(1);

    # A second _find would stay here, and the read without an answer.
    my $again = $proxy->hold('^POST /' . feed_db($posts, 1) . '/_find');

    grace();
    $proxy->release($hold);

    my ($status, $answer) = answer_of($read);
    $proxy->drop($again);
    is("$status " . keys_of($answer) =~ s/two-\d+ ?/./gr, '200 ' . '.' x 26,
       'is answered from what was read');
    is($answer->{last_seq}, "turn-$turn", 'with its sequence');
};


subtest 'the database is deleted during a read, and the pointer flips' => sub {
    my ($hold, $read) = begin(1);

    replace(0, 'four-', 1 .. 3);
    flip(0);
    couch('DELETE', '/' . feed_db($posts, 1));
    $proxy->release($hold);

    my ($status, $answer) = answer_of($read);
    is("$status " . join(' ', sort split / /, keys_of($answer)),
       '200 four-1 four-2 four-3', 'the other one is read');
};


subtest 'runs that end faster than they can be read' => sub {
    make_db(feed_db($posts, 1), \@posts_indexes, post_rows('five-', 1));

    my ($hold, $read) = begin(0);

    for my $try (1 .. 5) {
        flip($try % 2);
        grace();

        my $next = $proxy->hold('^POST /' . feed_db($posts, $try % 2)
                                . '/_find');
        $proxy->release($hold);
        is($proxy->wait_held($next, $read) ? 1 : 0, $try < 5 ? 1 : 0,
           "after try $try");
        $proxy->drop($next) if $try == 5;
        $hold = $next;
    }

    my ($status, $answer) = answer_of($read);
    is($status, 503, 'at last it is given up');
    is($answer->{error}, 'service_unavailable', 'and why');
};


# ---- the rest ---------------------------------------------------------------

subtest 'HTTP/2' => sub {
    my $two = nginx_start(http => http_config(extra => $extra),
                          server => server_config(extra => $locations),
                          listen => 'http2');
    my $res = Vibe::H2->new($two)->request('POST',
        "/reg/$posts/query?global=true",
        { authorization => "Bearer $token{$bob}" }, '{"limit":1}');

    is($res->{status}, 200, 'an answer');
    is($res->{body}{last_seq}, "turn-$turn", 'from the feed')
        or diag(explain($res));
};


subtest 'CouchDB is down' => sub {
    my $down = nginx_start(
        http => http_config(couchdb => 'http://127.0.0.1:' . free_port,
                            extra => $extra),
        server => server_config(extra => $locations));

    for my $mode ('reg', 'any') {
        my ($status, $answer, $header) = request($down, 'POST',
            "/$mode/$posts/query?global=true", $token{$bob}, {});
        is($status, 503, $mode);
        is($answer->{error}, 'service_unavailable', 'and why');
        like($header->{'retry-after'}, qr/^\d+$/, 'and when to come back');
    }

    is((request($down, 'POST', "/reg/$none/query?global=true", $token{$bob},
                {}))[0], 403, 'what is refused is refused');
};


for my $server ($nginx, $slow) {
    unlike($server->log, $Vibe::BAD_LOG, 'the log is clean');
}

couch('DELETE', "/$_") for @made;

for my $collection ($posts, $events, $empty) {
    my $path = '/vibe_state/feed%3A' . feed_name($collection);
    my (undef, $doc) = couch('GET', $path);
    couch('DELETE', "$path?rev=$doc->{_rev}");
}

done_testing();
