# POST and GET /data/<collection>/query: both forms of its body, what the
# members of a query do, in the caller's own database and in global, and what
# stands in the answer.

use strict;
use warnings;

use HTTP::Tiny;
use JSON::PP;
use Test::More;
use Time::HiRes qw(sleep time);
use Vibe;
use Vibe::Faults;

my $json = JSON::PP->new->utf8->canonical->allow_nonref;
my ($true, $false) = (JSON::PP::true, JSON::PP::false);

# Collections of this run only: global is shared with other tests.
my $run = sprintf('%x%04x', time, $$ & 65535);
my ($posts, $notes) = ("posts$run", "notes$run");

my ($alice, $bob, $nobody) = map { did($_) } qw(alice bob nobody);
my %token = map { $_ => token($_) } $alice, $bob, $nobody;

# All that was ever answered here, for the last test.
my @said;

my $nginx = nginx_start(
    http => http_config(index => "* createdAt;\nvibe_index $notes rank name"),
    server => server_config(
        data => 'vibe_max_limit 40; vibe_own_indexes 3;',
        extra => <<'EOT'));
location /regex/ { vibe_data; vibe_global_regex on; }
location /none/ { vibe_data; vibe_own_indexes 0; }
EOT


# ask($who, $body [, $path]): an index may still be in the making.

sub ask {
    my ($who, $body, $path) = @_;

    $path //= "/data/$posts/query";

    my @answer;

    wait_for {
        @answer = request($nginx, 'POST', $path, $token{$who}, $body);
        $answer[0] != 503;
    } 30;

    push @said, $answer[3];
    return @answer;
}


# keys_of($answer): the member `k` of each document, in order.

sub keys_of {
    my ($answer) = @_;

    return 'no docs: ' . (ref $answer ? $json->encode($answer) : $answer)
        if ref $answer ne 'HASH' || ref $answer->{docs} ne 'ARRAY';
    return join(' ', map { $_->{k} // '?' } @{ $answer->{docs} });
}


sub sorted { return join(' ', sort split / /, $_[0]) }


sub save {
    my ($who, $collection, @docs) = @_;

    my ($status, $rows) = request($nginx, 'POST', "/data/$collection",
                                  $token{$who}, \@docs);

    is($status, 201, "written: " . scalar(@docs) . " in $collection")
        or diag($json->encode($rows));
    return map { $_->{rev} } @$rows;
}


# 70 documents of alice's: the odd ones are public, no two have the same time,
# and their order by time is not that of their ids.

my %rev;

{
    my @docs = map { {
        _id => sprintf('%s/d%02d', $posts, $_),
        k => sprintf('d%02d', $_),
        n => $_,
        createdAt => 1000 + ($_ * 37) % 71,
        author => { name => "a$_", age => 20 + $_ % 7 },
        $_ % 2 ? (acl => { global => $true }) : (),
    } } 1 .. 70;

    @rev{map { $_->{k} } @docs} = save($alice, $posts, @docs);

    # Without the field that is sorted by; and of another collection.
    save($alice, $posts, { _id => "$posts/u1", k => 'u1', n => 1000,
                           acl => { global => $true } },
                         { _id => "$posts/u2", k => 'u2', n => 1001 });
    save($alice, $notes, map { {
        _id => "$notes/n$_", k => "n$_", n => $_, rank => $_ % 2,
        name => "x$_", acl => { global => $true } } } 1 .. 4);
}

my @odd = map { sprintf 'd%02d', $_ } grep { $_ % 2 } 1 .. 70;
my @all = map { sprintf 'd%02d', $_ } 1 .. 70;
my @by_time = map { sprintf 'd%02d', $_ }
              sort { ($a * 37) % 71 <=> ($b * 37) % 71 } 1 .. 70;
my @odd_by_time = grep { substr($_, 1) % 2 } @by_time;


subtest 'flat members, a whole selector, and both' => sub {
    my $lt = { '$lt' => 6 };

    for (['{}', {}, undef],
         ['flat', { n => $lt }, 'd01 d02 d03 d04 d05'],
         ['a selector', { selector => { n => $lt } },
          'd01 d02 d03 d04 d05'],
         ['both narrow', { n => $lt, selector => { n => { '$gt' => 2 } } },
          'd03 d04 d05'],
         ['two members', { n => $lt, 'author.name' => 'a4' }, 'd04'],
         ['an empty selector', { selector => {}, n => $lt },
          'd01 d02 d03 d04 d05'],
         ['a combination', { '$or' => [{ n => 2 }, { n => 3 }] }, 'd02 d03'],
         ['nothing found', { n => -1 }, ''])
    {
        my ($name, $body, $expected) = @$_;

        my ($status, $answer) = ask($bob, $body);
        is("$status " . keys_of($answer), '200 ', "$name: not bob's own");

        ($status, $answer) = ask($alice, $body);
        is($status, 200, "$name: own");
        is(sorted(keys_of($answer)), $expected, "$name: what is found")
            if defined $expected;
        is(join(' ', sort keys %$answer), 'bookmark docs last_seq',
           "$name: the members of the answer");

        ($status, $answer) = ask($bob, $body, "/data/$posts/query?global=true");
        is($status, 200, "$name: global");
        is(sorted(keys_of($answer)),
           join(' ', grep { substr($_, 1) % 2 } split / /, $expected),
           "$name: what is found in global") if defined $expected;
        is(join(' ', sort keys %$answer), 'bookmark docs last_seq',
           "$name: the members of the answer from global");
    }
};


subtest 'global by the argument or by the member' => sub {
    my %five = (n => 5);

    for (['', {}, 0], ['?global=true', {}, 1], ['?global=false', {}, 0],
         ['', { global => $true }, 1],
         ['', { global => $false }, 0],
         ['?x=y&global=true', {}, 1], ['?global=true', { global => $true }, 1])
    {
        my ($args, $more, $global) = @$_;

        my ($status, $answer) = ask($bob, { %five, %$more },
                                    "/data/$posts/query$args");
        is("$status " . keys_of($answer), $global ? '200 d05' : '200 ',
           "'$args' with " . $json->encode($more));
    }

    for my $args ('1', 'yes', 'TRUE', 'truex', '%22true%22') {
        my ($status) = ask($bob, {}, "/data/$posts/query?global=$args");
        is($status, 400, "neither true nor false: $args");
    }
};


subtest 'limit and skip' => sub {
    for my $where ('', '?global=true') {
        my $path = "/data/$posts/query$where";
        my @keys = $where ? @odd_by_time : @by_time;
        my %sort = (sort => ['createdAt']);

        for ([{}, @keys[0 .. 24]],
             [{ limit => 3 }, @keys[0 .. 2]],
             [{ limit => 0 }],
             [{ limit => 1 }, $keys[0]],
             [{ skip => 5, limit => 2 }, @keys[5, 6]],
             [{ skip => 20 }, grep { defined } @keys[20 .. ($where ? 34 : 44)]],
             [{ skip => 0, limit => 2 }, @keys[0, 1]],
             [{ skip => 1000 }])
        {
            my ($more, @expected) = @$_;

            my ($status, $answer) = ask($alice, { %sort, %$more }, $path);
            is("$status " . keys_of($answer), "200 @expected",
               "$where " . $json->encode($more));
        }
    }

    # vibe_max_limit is 40.
    my ($status, $answer) = ask($alice, { limit => 100000 });
    is(scalar @{ $answer->{docs} }, 40, 'vibe_max_limit bounds the limit');

    my ($next) = ask($alice, { limit => 100000, bookmark =>
                               $answer->{bookmark} });
    is($next, 200, 'and there is a bookmark to go on with');
};


# Pages to the end; returns the keys, in order.

sub pages {
    my ($who, $body, $path) = @_;

    my (@keys, $bookmark, $full);

    for my $turn (1 .. 200) {
        my ($status, $answer)
            = ask($who, { %$body, defined $bookmark
                                  ? (bookmark => $bookmark) : () }, $path);

        if ($status != 200) {
            fail("page $turn: $status");
            return @keys;
        }

        my @page = split / /, keys_of($answer);
        return @keys if !@page;

        push @keys, @page;
        $bookmark = $answer->{bookmark};

        if (!defined $bookmark || ref $bookmark || !length $bookmark) {
            fail("page $turn has no bookmark");
            return @keys;
        }
    }

    fail('the pages have no end');
    return @keys;
}


subtest 'pages, to the end, with nothing lost or twice' => sub {
    for my $limit (1, 7, 10, 35, undef) {
        my %limit = defined $limit ? (limit => $limit) : ();
        my $name = $limit // 'the default limit';

        next if defined $limit && $limit == 1
                && ($ENV{TEST_NGINX_USE_VALGRIND} // '');

        for (['own, sorted', '', { sort => ['createdAt'] }, @by_time],
             ['own, backwards', '', { sort => [{ createdAt => 'desc' }] },
              reverse @by_time],
             ['global, sorted', '?global=true', { sort => ['createdAt'] },
              @odd_by_time],
             ['global, backwards', '?global=true',
              { sort => [{ createdAt => 'desc' }] }, reverse @odd_by_time])
        {
            my ($what, $args, $body, @expected) = @$_;

            is(join(' ', pages($alice, { %limit, %$body },
                               "/data/$posts/query$args")),
               join(' ', @expected), "$what, $name");
        }

        is(sorted(join(' ', pages($alice, { %limit, n => { '$lt' => 100 } },
                                  "/data/$posts/query"))),
           join(' ', @all), "own, no sort, $name");
        is(sorted(join(' ', pages($bob, { %limit, n => { '$lt' => 100 } },
                                  "/data/$posts/query?global=true"))),
           join(' ', @odd), "global, no sort, $name");
    }
};


subtest 'fields' => sub {
    for (['own', $alice, '', "$posts/d07"],
         ['global', $bob, '?global=true', gid($alice, "$posts/d07")])
    {
        my ($name, $who, $args, $id) = @$_;

        for ([['k'], { k => 'd07' }],
             [['k', '_id'], { k => 'd07', _id => $id }],
             [['_rev'], { _rev => $rev{d07} }],
             [['_id', '_rev', 'n'], { _id => $id, _rev => $rev{d07}, n => 7 }],
             [['author.name'], { author => { name => 'a7' } }],
             [['collection', 'acl'],
              { collection => $posts, acl => { global => $true } }],
             [['nothing'], {}])
        {
            my ($fields, $expected) = @$_;

            my ($status, $answer) = ask($who, { n => 7, fields => $fields },
                                        "/data/$posts/query$args");
            is_deeply($status == 200 ? $answer->{docs} : $answer, [$expected],
                      "$name: " . $json->encode($fields));
        }

        for my $fields ([], undef) {
            my ($status, $answer) = ask($who, { n => 7, fields => $fields },
                                        "/data/$posts/query$args");
            is_deeply($status == 200 ? $answer->{docs} : $answer,
                      [{ _id => $id, _rev => $rev{d07}, k => 'd07', n => 7,
                         createdAt => 1000 + (7 * 37) % 71,
                         author => { name => 'a7', age => 20 },
                         collection => $posts,
                         acl => { global => $true } }],
                      "$name: all fields for " . $json->encode($fields));
        }

        for my $fields (['vibe_rev'], ['k', 'vibe_owner'], ['author.vibe_x']) {
            my ($status, $answer) = ask($who, { n => 7, fields => $fields },
                                        "/data/$posts/query$args");
            is($status, 400, "$name: refused: @$fields");
        }
    }
};


subtest 'the _rev of global is the source\'s after an update, too' => sub {
    my ($new) = save($alice, $posts, { _id => "$posts/up", k => 'up',
                                       n => 2000, acl => { global => $true } });
    for my $round (1 .. 3) {
        ($new) = save($alice, $posts, {
            _id => "$posts/up", _rev => $new, k => 'up', n => 2000,
            round => $round,
            acl => { global => $round == 2 ? $false : $true } });
    }

    my (undef, $answer) = ask($bob, { n => 2000, global => $true });
    is($answer->{docs}[0]{_rev}, $new, 'all fields');
    is($answer->{docs}[0]{round}, 3, 'the newest one');

    (undef, $answer) = ask($bob, { n => 2000, global => $true,
                                   fields => ['_rev'] });
    is_deeply($answer->{docs}, [{ _rev => $new }], 'only _rev');

    my ($status) = request($nginx, 'POST', "/data/$posts", $token{$alice},
                           { _id => "$posts/up", _rev => $new,
                             _deleted => $true });
    is($status, 201, 'and its owner can use it');
};


subtest 'sort in global: the ones that vibe_index names' => sub {
    my $path = "/data/$posts/query?global=true";

    for ([['createdAt'], @odd_by_time],
         [[{ createdAt => 'asc' }], @odd_by_time],
         [[{ createdAt => 'desc' }], reverse @odd_by_time])
    {
        my ($sort, @expected) = @$_;

        my ($status, $answer) = ask($bob, { sort => $sort, limit => 40 },
                                    $path);
        is("$status " . keys_of($answer), join(' ', 200, @expected),
           $json->encode($sort) . ', without the one that has no createdAt');
    }

    my ($status, $answer) = ask($bob, { sort => [], n => 7 }, $path);
    is("$status " . keys_of($answer), '200 d07', 'an empty sort is none');

    for my $sort (['n'], ['k'], ['createdAt', 'n'], ['n', 'createdAt'],
                  ['_id'], [{ n => 'desc' }], ['rank', 'name'])
    {
        ($status, $answer) = ask($bob, { sort => $sort }, $path);
        is($status, 400, $json->encode($sort) . ' is refused');
        like($answer->{reason}, qr/\bcreatedAt\b/, 'and told which there are');
        unlike($answer->{reason}, qr/\brank\b/,
               'but not those of another collection');
    }

    $path = "/data/$notes/query?global=true";

    for ([['rank', 'name'], 'n2 n4 n1 n3'],
         [[{ rank => 'desc' }, { name => 'desc' }], 'n3 n1 n4 n2'])
    {
        my ($sort, $expected) = @$_;

        ($status, $answer) = ask($bob, { sort => $sort }, $path);
        is("$status " . keys_of($answer), "200 $expected",
           $json->encode($sort) . ' of one collection');
    }

    ($status, $answer) = ask($bob, { sort => ['rank'] }, $path);
    is($status, 400, 'half of them is refused');
    like($answer->{reason}, qr/\brank,? name\b/, 'which there are, in full');
    like($answer->{reason}, qr/\bcreatedAt\b/, 'and that of all collections');
};


# vibe_own_indexes is 3; so far bob has asked for no sort of his own.

sub indexes {
    my ($did) = @_;

    my ($status, $answer) = couch('GET', '/' . userdb($did) . '/_index');
    return scalar grep { $_->{type} eq 'json' } @{ $answer->{indexes} };
}


subtest 'sort in one\'s own database: indexes on demand, up to a bound' => sub {
    my $path = "/data/$posts/query";

    save($bob, $posts, map { { _id => "$posts/b$_", k => "b$_", n => $_,
                               m => 10 - $_, $_ < 3 ? (p => $_) : () } }
                           1 .. 4);

    for ([['n'], 'b1 b2 b3 b4'],
         [[{ n => 'desc' }], 'b4 b3 b2 b1'],
         [['m'], 'b4 b3 b2 b1'],
         [['p'], 'b1 b2'],
         [['n'], 'b1 b2 b3 b4'],
         [[{ m => 'desc' }], 'b1 b2 b3 b4'])
    {
        my ($sort, $expected) = @$_;

        my ($status, $answer) = ask($bob, { sort => $sort }, $path);
        is("$status " . keys_of($answer), "200 $expected",
           $json->encode($sort));
    }

    is(indexes($bob), 3, 'as many as may be');

    for my $sort (['k'], ['n', 'm'], ['m', 'n']) {
        my ($status, $answer) = ask($bob, { sort => $sort }, $path);
        is($status, 400, $json->encode($sort) . ' is one more: refused');
        ok(length($answer->{reason} // ''), 'with a reason');
    }

    is(indexes($bob), 3, 'and not made');

    my ($status, $answer) = ask($bob, { n => { '$gt' => 2 } }, $path);
    is("$status " . sorted(keys_of($answer)), '200 b3 b4',
       'without a sort there is an answer still');
    is(indexes($bob), 3, 'and no index more');

    # Another user, another bound.
    my $carl = did('carl');
    $token{$carl} = token($carl);

    save($carl, $posts, { k => 'c1', n => 1 });

    ($status) = request($nginx, 'POST', "/none/$posts/query", $token{$carl},
                        { sort => ['n'] });
    is($status, 400, 'vibe_own_indexes 0: no sort');
    is(indexes($carl), 0, 'and no index');
};


subtest 'who has no database has no documents' => sub {
    my ($status, $answer) = ask($nobody, { n => 1 });

    is($status, 200, 'that is no error');
    is_deeply($answer->{docs}, [], 'no documents');
    is($answer->{last_seq}, '0', 'and the sequence of the beginning');

    ($status, $answer) = ask($nobody, { sort => ['n'] });
    is("$status " . keys_of($answer), '200 ', 'sorted, too');

    ($status) = couch('GET', '/' . userdb($nobody));
    is($status, 404, 'reading makes no database');
};


sub changed_since {
    my ($db, $since) = @_;

    my ($status, $answer) = couch('GET', "/$db/_changes?since="
                                         . $since =~ s/([^\w.~-])/sprintf
                                               '%%%02X', ord $1/ger);
    is($status, 200, 'last_seq is good for _changes')
        or diag($json->encode($answer));
    return map { $_->{id} => 1 } @{ $answer->{results} // [] };
}


subtest 'last_seq: what came after the answer is after it' => sub {
    my $dora = did('dora');
    $token{$dora} = token($dora);

    my $own = "seq$run";
    my @ids = map { "$own/s$_" } 0 .. 35;

    save($dora, $own, { _id => $ids[0], acl => { global => $true } });

    # Written by another while it is asked here; the first part reads a
    # sequence that is kept, the rest new ones.
    my $writer = fork // die "fork: $!\n";

    if (!$writer) {
        for my $id (@ids[1 .. $#ids]) {
            request($nginx, 'POST', "/data/$own", $token{$dora},
                    { _id => $id, acl => { global => $true } });
            sleep 0.03;
        }
        POSIX::_exit(0);
    }

    my @answers;
    my $running = 1;

    while ($running) {
        $running = waitpid($writer, POSIX::WNOHANG()) == 0;

        for (['', userdb($dora)], ['?global=true', 'global']) {
            my ($args, $db) = @$_;

            my ($status, $answer)
                = ask($dora, { selector => { _id => { '$gt' => '' } },
                               fields => ['_id'], limit => 40 },
                      "/data/$own/query$args");
            push @answers, [$db, $answer] if $status == 200;
        }
    }

    cmp_ok(scalar @answers, '>', 3, 'asked while it was written');

    for (['own', userdb($dora), @ids],
         ['global', 'global', map { gid($dora, $_) } @ids])
    {
        my ($name, $db, @want) = @$_;

        # One look from the earliest would hide what a later one lost.
        my (%seen, @lost);
        my @some = grep { $_->[0] eq $db } @answers;
        my $step = @some > 12 ? int(@some / 12) : 1;

        for (my $i = 0; $i < @some; $i += $step) {
            my $answer = $some[$i][1];
            my %have = map { $_->{_id} => 1 } @{ $answer->{docs} };

            $seen{ $answer->{last_seq} }
                //= { changed_since($db, $answer->{last_seq}) };

            push @lost, "$i: $_"
                for grep { !$have{$_} && !$seen{ $answer->{last_seq} }{$_} }
                         @want;
        }

        is("@lost", '', "$name: in the answer, or in what comes after it");
    }
};


subtest 'last_seq is at most a second old' => sub {
    my $emil = did('emil');
    $token{$emil} = token($emil);

    save($emil, $posts, { _id => "$posts/e1" });
    ask($emil, {});
    save($emil, $posts, { _id => "$posts/e2" });

    # The time itself is what is tested.
    sleep 1.1;

    my (undef, $answer) = ask($emil, {});
    is_deeply({ changed_since(userdb($emil), $answer->{last_seq}) }, {},
              'what was written more than a second before is not after it');
};


subtest 'GET with q, ETag and 304' => sub {
    my $quote = sub { $_[0] =~ s/([^\w.~-])/sprintf '%%%02X', ord $1/ger };
    my $get = sub {
        my ($who, $args, %header) = @_;
        my @answer = request($nginx, 'GET', "/data/$posts/query$args",
                             $token{$who}, undef, %header);
        push @said, $answer[3];
        return @answer;
    };
    my $seven = $quote->('{"n":7}');

    for (['own', $alice, "?q=$seven", 'd07'],
         ['global', $bob, "?global=true&q=$seven", 'd07'],
         ['the other order', $bob, "?q=$seven&global=true", 'd07'],
         ['global in q', $bob, '?q=' . $quote->('{"n":7,"global":true}'),
          'd07'],
         ['a sum in q', $alice,
          '?q=' . $quote->('{"author.name":{"$in":["a7","1+1"]}}'), 'd07'])
    {
        my ($name, $who, $args, $expected) = @$_;

        my ($status, $answer, $header, $text) = $get->($who, $args);
        is("$status " . keys_of($answer), "200 $expected", $name);
        like($header->{etag}, qr/^(?:W\/)?"[^"]+"$/, "$name: an ETag");
        like($header->{'cache-control'} // '', qr/private|no-store/,
             "$name: no shared cache may keep it");

        my $etag = $header->{etag};

        for my $match ($etag, "\"other\", $etag", $etag =~ s/^W\///r) {
            ($status, $answer, $header, $text)
                = $get->($who, $args, 'If-None-Match' => $match);
            is($status, 304, "$name: 304 for $match");
            is($text // '', '', "$name: without a body");
            is($header->{etag}, $etag, "$name: with the ETag");
        }

        ($status) = $get->($who, $args, 'If-None-Match' => '"other"');
        is($status, 200, "$name: 200 for another tag");
    }

    my ($status, $answer, $header) = $get->($alice, '');
    is(scalar @{ $answer->{docs} }, 25, 'no q asks for all');

    # A write changes the tag, one elsewhere does not.
    (undef, undef, $header) = $get->($bob, "?global=true&q=$seven");
    my $old = $header->{etag};

    save($alice, $posts, { _id => "$posts/d08", k => 'd08', n => 8,
                           createdAt => 1000 + (8 * 37) % 71 });
    ($status) = $get->($bob, "?global=true&q=$seven",
                       'If-None-Match' => $old);
    is($status, 304, 'another document was written: 304');

    save($alice, $posts, { _id => "$posts/d07", k => 'd07', n => 7, v => 2,
                           createdAt => 1000 + (7 * 37) % 71,
                           acl => { global => $true } });
    ($status, $answer) = $get->($bob, "?global=true&q=$seven",
                                'If-None-Match' => $old);
    is($status, 200, 'this one was written: 200');
    is($answer->{docs}[0]{v}, 2, 'the new one');

    for my $q ('{', '[]', '1', 'x', '{"limit":-1}', '{"vibe_rev":1}',
               "{\"a\":\"\xff\"}")
    {
        ($status) = $get->($alice, '?q=' . $quote->($q));
        is($status, 400, 'bad q: ' . $quote->($q));
    }

    # The answer to a POST is not for caches.
    (undef, undef, $header) = ask($alice, { n => 7 });
    ok(!defined $header->{etag}, 'no ETag for a POST');
};


subtest 'vibe_global_regex' => sub {
    my %body = (k => { '$regex' => '^d0[1-5]$' });

    my ($status, $answer) = ask($bob, \%body, "/data/$posts/query?global=true");
    is($status, 400, 'off by default');

    ($status, $answer) = ask($bob, { selector => { '$or' => [\%body] } },
                             "/data/$posts/query?global=true");
    is($status, 400, 'also deeper down');

    ($status, $answer) = ask($bob, { %body, global => $true },
                             "/data/$posts/query");
    is($status, 400, 'also by the member');

    ($status, $answer) = ask($bob, \%body, "/regex/$posts/query?global=true");
    is("$status " . sorted(keys_of($answer)), '200 d01 d03 d05', 'on');

    ($status, $answer) = ask($alice, \%body);
    is("$status " . sorted(keys_of($answer)), '200 d01 d02 d03 d04 d05',
       'always in one\'s own database');
};


subtest 'bad queries are 400, with a reason' => sub {
    for my $body ('', ' ', '{', 'null', '[]', '"a"', '1', '{}{}',
                  '{"limit":-1}', '{"limit":1.5}', '{"limit":"1"}',
                  '{"limit":null}', '{"limit":[]}', '{"limit":1e99}',
                  '{"limit":99999999999999999999}',
                  '{"skip":-1}', '{"skip":"1"}', '{"skip":1.5}',
                  '{"skip":1000000000}',
                  '{"sort":"n"}', '{"sort":{}}', '{"sort":[1]}',
                  '{"sort":[{}]}', '{"sort":[{"n":"up"}]}',
                  '{"sort":[{"n":"asc","m":"asc"}]}',
                  '{"sort":[{"n":"asc"},{"m":"desc"}]}', '{"sort":[""]}',
                  '{"sort":["$n"]}', '{"sort":["vibe_rev"]}',
                  '{"sort":[["n"]]}', '{"sort":[null]}',
                  '{"sort":["a","b","c","d","e","f","g","h","i"]}',
                  '{"fields":"k"}', '{"fields":[1]}', '{"fields":{}}',
                  '{"fields":[""]}', '{"fields":["vibe_owner"]}',
                  '{"bookmark":1}', '{"bookmark":{}}',
                  '{"bookmark":"not one of ours"}',
                  '{"bookmark":"' . 'g' x 9000 . '"}',
                  '{"expand":1}', '{"expand":[1]}', '{"expand":{}}',
                  '{"expand":"vibe_owner"}', '{"expand":["a.vibe_x"]}',
                  '{"global":1}', '{"global":"true"}', '{"global":null}',
                  '{"selector":[]}', '{"selector":"x"}', '{"selector":null}',
                  '{"limit":1,"limit":2}', '{"selector":{},"selector":{}}',
                  '{"global":false,"global":true}', '{"n":1,"n":2}',
                  '{"vibe_rev":1}', '{"$where":"1"}',
                  "{\"k\":\"\xff\"}", '{"k":"\ud800"}')
    {
        for my $args ('', '?global=true') {
            next if $args && $body =~ /"global"/;

            my ($status, $answer) = ask($alice, $body,
                                        "/data/$posts/query$args");
            my $name = length $body > 60 ? substr($body, 0, 60) : $body;
            $name =~ s/([^ -~])/sprintf '\\x%02x', ord $1/ge;

            is($status, 400, "bad$args: $name");
            ok(ref $answer && length($answer->{error} // '')
               && length($answer->{reason} // ''), 'with a reason')
                or diag(ref $answer ? $json->encode($answer) : $answer);
        }
    }

    for my $body ({ maxCacheAge => 5, n => 7 }, { use_index => 'x', n => 7 },
                  { bookmark => undef, n => 7 }, { expand => '', n => 7 },
                  { expand => [], n => 7 })
    {
        my ($status, $answer) = ask($alice, $body);
        is("$status " . keys_of($answer), '200 d07',
           'well understood: ' . $json->encode($body));
    }
};


# Requests are counted, and answers made up.

subtest 'while an index is built: 503, and when to ask again' => sub {
    my $couch = faulty();
    my $slow = nginx_start(http => http_config(couchdb => $couch->{url}));

    fault($couch, path => qr{/_design/[^/]+/_info$}, answer => [200, {
        name => 'x', view_index => {
            updater_running => $true, waiting_clients => 0,
            updates_pending => { minimum => 50000, preferred => 50000,
                                 total => 50000 } } }]);

    my ($status, $answer, $header)
        = request($slow, 'POST', "/data/$posts/query?global=true",
                  $token{$bob}, { sort => ['createdAt'] });
    is($status, 503, 'an index that is far behind');
    like($header->{'retry-after'} // '', qr/^[1-9]\d*$/, 'Retry-After');
    ok(length($answer->{reason} // ''), 'a reason');
    is(scalar(grep { $_->{path} =~ /_find/ } asked($couch)), 0,
       'CouchDB was not asked to scan');

    ($status) = request($slow, 'POST', "/data/$posts/query", $token{$alice},
                        { n => 7 });
    is($status, 200, 'one\'s own database does not wait');

    heal($couch);

    my $found = wait_for {
        ($status, $answer) = request($slow, 'POST',
                                     "/data/$posts/query?global=true",
                                     $token{$bob}, { n => 7,
                                                     sort => ['createdAt'] });
        $status == 200;
    };
    is($found && keys_of($answer), 'd07', 'answered when it is built');

    $slow->stop;
};


subtest 'a query costs one request, the sequence is shared' => sub {
    my $couch = faulty();
    my $counted = nginx_start(http => http_config(couchdb => $couch->{url}));

    for (['own', $alice, '', userdb($alice)],
         ['global', $bob, '?global=true', 'global'])
    {
        my ($name, $who, $args, $db) = @$_;

        # The first makes what must be there.
        request($counted, 'POST', "/data/$posts/query$args", $token{$who},
                { n => 7, sort => ['createdAt'] }) for 1 .. 2;
        asked($couch);

        my $begin = time;
        my $n = 30;

        for (1 .. $n) {
            my ($status) = request($counted, 'POST',
                                   "/data/$posts/query$args", $token{$who},
                                   { sort => ['createdAt'], limit => 1 });
            is($status, 200, $name) if $status != 200;
        }

        my $seconds = time - $begin;
        my @asked = asked($couch);
        my @find = grep { $_->{path} eq "/$db/_find" } @asked;
        my @info = grep { $_->{path} eq "/$db" } @asked;

        is(scalar @find, $n, "$name: one _find each");
        cmp_ok(scalar @info, '<=', 2 + $seconds * 2,
               "$name: the sequence is asked for twice a second at most");
        is(@asked - @find - @info, 0, "$name: nothing else is asked");
    }

    $counted->stop;
};


# Numbers, the order of members, escapes and blanks: as they came, whatever
# the database behind would do with them.

subtest 'bytes are kept' => sub {
    my @members = ('"big":12345678901234567890', '"z":1', '"one":1.0',
                   '"neg":-0', '"exp":1E+2', '"small":1e-400',
                   '"frac":0.10000000000000000000001',
                   '"esc":"\u00e9\/\u0041\ud83d\ude00\u2028"',
                   "\"utf\":\"\xc3\xa9\xe2\x80\xa8\"", '"a":2',
                   '"deep":{"z":[1.00, 1e0 ,{"b":2,"a":9007199254740993}],"a":{}}',
                   '"n\u0061me":"x"', '"acl":{"global":true}', '"e":[ ]');
    my $document = '{' . join(',', @members) . '}';
    my $copy = '"_id":"' . gid($alice, "$posts/kept") . '","_rev":"4-d",'
               . join(',', @members) . ",\"collection\":\"$posts\"";
    my $own = "{\"_id\":\"$posts/kept\",\"_rev\":\"2-b\","
              . join(',', @members) . "}";

    my $written;
    my $mock = mock {
        my ($method, $path, $body) = @_;

        return 200, { result => 'created' } if $path =~ /_index$/;
        return 200, { view_index => { updater_running => $false,
                                      updates_pending => { total => 0 } } }
            if $path =~ /_info$/;

        # What was written to the owner's database last is in it.
        if ($path =~ m{^/userdb.*_bulk_docs}) {
            ($written) = $body =~ /^\{"docs":\[(.*)\]\}$/s;
            $written =~ s/\{/{"_rev":"1-a",/;
        }

        if ($path =~ m{^/userdb.*_bulk_get} && $written) {
            my ($id) = $body =~ /"id":("[^"]*")/;
            return 200, "{\"results\":[{\"id\":$id,\"docs\":"
                        . "[{\"ok\":$written}]}]}";
        }

        if ($path =~ /_bulk_get/) {
            my $ids = $json->decode($body)->{docs};
            return 200, { results => [map { {
                id => $_->{id}, docs => [{ error => {
                    id => $_->{id}, rev => 'undefined', error => 'not_found',
                    reason => 'missing' } }] } } @$ids] };
        }

        if ($path =~ /_bulk_docs/) {
            my $docs = $json->decode($body)->{docs};
            return 201, [map { { ok => $true, id => $_->{_id},
                                 rev => '1-a' } } @$docs];
        }

        if ($path =~ /_find/) {
            return 200, $path =~ /global/
                ? "{\"docs\":[{$copy,\"vibe_v\":1,\"vibe_rev\":\"2-b\","
                  . "\"vibe_owner\":\"$alice\",\"vibe_acl\":1,"
                  . "\"vibe_access\":\"public\"}],\n\"bookmark\": \"x\"}"
                : "{\"docs\":[$own],\"bookmark\":\"x\"}";
        }

        return 200, { update_seq => '5-x', doc_count => 1, doc_del_count => 0,
                      cluster => { n => 1, q => 1, r => 1, w => 1 } };
    };
    my $kept = nginx_start(http => http_config(couchdb => $mock->{url}));

    for ([$document, 'one'], ["[$document]", 'an array'],
         ['{"_id":"' . "$posts/kept" . '",' . join(',', @members) . '}',
          'with an id'])
    {
        my ($body, $name) = @$_;

        my $before = requests($mock);
        my ($status, $answer) = request($kept, 'POST', "/data/$posts",
                                        $token{$alice}, $body);
        is($status, 201, "$name: written")
            or diag(ref $answer ? $json->encode($answer) : $answer);

        my @sent = grep { $_->{path} =~ /_bulk_docs/ }
                        splice(@{ [requests($mock)] }, $before);
        my ($own) = grep { $_->{path} =~ /userdb/ } @sent;

        # The last one to global: it may be told before that one is to come.
        my ($global) = reverse grep { $_->{path} =~ /global/ } @sent;

        for my $sent ($own, $global) {
            my $where = $sent == $own ? 'the document' : 'the copy';

            # Side by side: the order, and nothing between.
            my $got = index($sent->{body}, join(',', @members)) >= 0;
            ok($got, "$name: $where has the bytes that came")
                or diag($sent->{body});
        }
    }

    my (undef, undef, undef, $text)
        = request($kept, 'POST', "/data/$posts/query", $token{$alice}, '{}');
    like($text, qr/\Q$own\E/, 'an answer from the own database');

    (undef, undef, undef, $text)
        = request($kept, 'POST', "/data/$posts/query?global=true",
                  $token{$alice}, '{}');
    my $shown = $copy =~ s/"4-d"/"2-b"/r;
    like($text, qr/\{\Q$shown\E\}/, 'an answer from global');
    push @said, $text;

    # What the caller asks reaches CouchDB as it was written.
    my $condition = '"n":{"$in":[12345678901234567890,1.0,"\u00e9"]}';

    for my $body ("{$condition}", "{\"selector\":{$condition}}") {
        request($kept, 'POST', "/data/$posts/query", $token{$alice}, $body);
        my ($last) = reverse grep { $_->{path} =~ /_find/ } requests($mock);
        like($last->{body}, qr/\{\Q$condition\E\}/, "asked: $body");
    }

    $kept->stop;
};


subtest 'no member of the module\'s own is ever shown' => sub {
    my @shown = grep { defined && /"vibe_\w*"\s*:/ } @said;

    cmp_ok(scalar @said, '>', 300, 'many answers were seen');
    is(scalar @shown, 0, 'none has one') or diag($shown[0]);
};


$nginx->stop;

done_testing();
