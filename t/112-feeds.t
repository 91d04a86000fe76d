# Feeds are what util/verify.sh computes from the users' databases, which shares
# no code with the module: after a first run, after changes through the module
# and past it, after nginx and CouchDB were killed (-9) within a run, after
# databases and `global` were deleted.  What they cost: a run asks the databases
# that have changed, and writes the rows that differ.
#
# VIBE_FEEDS_SEED repeats the documents and the changes.  VIBE_SHORT=1 has 50
# databases and 100 changes, instead of 200 and 300.
#
# The CouchDB is always an embedded one of its own, as it gets killed.

use strict;
use warnings;
use utf8;

use JSON::PP;
use Test::More;
use Time::HiRes qw(sleep time);
use Time::Local qw(timegm);
use Vibe;
use Vibe::Couch qw(port_to_keep);
use Vibe::Feeds;
use Vibe::Mend qw(edit stored);
use Vibe::Repair qw(is_ready);
use Vibe::Tap;

my ($true, $false) = (JSON::PP::true, JSON::PP::false);
my $seed = $ENV{VIBE_FEEDS_SEED} || $$;
my $many = $ENV{VIBE_SHORT} ? 50 : 200;
my $changes = $ENV{VIBE_SHORT} ? 100 : 300;
my $posts = '_global_posts';

diag("seed $seed");
srand($seed);

my $couch = Vibe::Couch->start;
$couch->make_default;
my $tap = Vibe::Tap->start;


# ---- users and their documents ------------------------------------------------

my $somebody = did('somebody');
my $certificate = { issuer => did('issuer'), type => 'member' };

# What makes a document public, and what does not.
my @open = (
    { global => $true }, { read => { allow => ['*'] } },
    { global => $true, read => { deny => [] } },
    { global => $true, read => { allow => [$somebody] } },
    { read => { allow => [$somebody, '*'] } },
    { read => { allow => [['*', '*']] } },
    { global => $false, read => { allow => ['*', $certificate] } },
);
my @restricted = (
    { read => { allow => [$somebody] } },
    { global => $true, read => { deny => [$somebody] } },
    { read => { allow => ['*'], deny => [$somebody] } },
    { read => { allow => [[$somebody, '*']] } },
);
my @closed = (
    undef, {}, [], 'global', $true, { global => $false }, { global => 'true' },
    { global => 1 }, { read => {} }, { read => { allow => [] } },
    { read => { allow => '*' } }, { read => { allow => [$certificate] } },
    { read => { allow => [['*', $certificate]] } },
    { global => $true, read => { deny => [$certificate] } },
    { global => $true, read => { deny => ['*'] } },
    { global => $true, read => { allow => ['anybody'] } },
    { global => $true, read => { allow => [[]] } },
    { global => $true, allow => ['*'] },
    { global => $true, read => { allow => ['*'], else => [] } },
);

sub any { return $_[rand @_] }


# acl(): a third public, a third private.

sub acl {
    my $which = rand;

    return $which < 0.45 ? (any(@open), 'open')
         : $which < 0.6 ? (any(@restricted), 'restricted')
         : (any(@closed), 'private');
}


my $last = 0;

# An id with all that has to be escaped somewhere.

sub id {
    my @parts = ('a', 'Z', '/', '%', ':', '%3A', '%25', '::', 'é', "e\x{301}",
                 '😀', ' ', '"', '\\', '+', '&', '?', '#', '~', "\x{7f}");

    return join('', 'x' . ++$last, map { any(@parts) } 0 .. rand 6);
}


# document([%member]): one of any kind; `mark` tells whether it is public.

sub document {
    my (%more) = @_;

    my ($acl, $mark) = acl();
    my $id = id();
    my $n = ++$last;
    my %doc = (n => $n, mark => $mark, content => "c$n " . any('é', '\\"', ''),
               author => { name => "n$n", mail => 'secret', tags => [1, 'b'] });

    $doc{acl} = $acl if defined $acl;
    $doc{type} = rand() < 0.8 ? 'post' : 'note' if rand() < 0.95;
    $doc{createdAt} = any($n, $n, $n, "2026-$n", undef, [$n], { a => 1 })
        if rand() < 0.9;
    $doc{at} = rand() < 0.9 ? { day => $n, hour => 3 } : any({}, 7, [1])
        if rand() < 0.9;

    # Where the collection is from: the id, the member, or both.
    my $collection = any('posts', 'posts', 'posts', 'posts', 'events', 'notes');
    my $how = int(rand 10);

    if ($how < 4) {
        $doc{_id} = "$collection/$id";
    } elsif ($how < 8) {
        @doc{qw(_id collection)} = ($id, $collection);
    } elsif ($how < 9) {
        @doc{qw(_id collection)} = (any('notes', 'a b') . "/$id", $collection);
    } else {
        $doc{_id} = any('', 'a b/', '/', 'global/') . $id;
        $doc{collection} = any('', 'global', 7, 'no one', undef, ['posts'])
            if rand() < 0.5;
    }

    return { %doc, %more };
}


# public(%member): a post that is in the feed for sure.

sub public {
    my (%more) = @_;

    my $n = ++$last;
    return { _id => "posts/p$n", type => 'post', createdAt => $n, n => $n,
             mark => 'open', content => "c$n", acl => { global => $true },
             %more };
}


my @users;

# make_user([%option]): with a database and 20 documents, past the module.

sub make_user {
    my (%opt) = @_;

    my $n = @users;
    my $did = $opt{did} // did("u$n");
    my $user = { did => $did, db => $opt{db} // userdb($did),
                 token => token($did, exp => time + 3600,
                                $opt{instance}
                                    ? (instanceId => $opt{instance}) : ()) };
    my @docs = (public(), map { document() } 2 .. 20);
    $user->{ids} = [map { $_->{_id} } @docs];

    couch('PUT', "/$user->{db}?q=1");
    couch('PUT', "/$user->{db}/_local/vibe_owner",
          { did => $did, vibe_v => 1 }) if $opt{instance};
    bulk($user->{db}, @docs, @{ $opt{docs} // [] })
        or die "documents of user $n were not taken\n";

    push @users, $user;
    return $user;
}


sub make_users {
    my ($total) = @_;

    make_user() while @users < $total;
    return;
}


# ---- feeds --------------------------------------------------------------------

my @fields = ('_id', 'n', 'mark', 'content', 'author.name', 'createdAt');


# feeds(%member): three; the members are those of the posts.

sub feeds {
    my (%opt) = @_;

    my $interval = $opt{aggregationInterval} // '1d';

    return (posts_feed(fields => \@fields, %opt),
        { collectionName => 'events', materializedViewName => '_global_events',
          aggregationInterval => $interval,
          query => { selector => { n => { '$mod' => [2, 0] } },
                     sort => ['at.day'] } },
        { collectionName => 'notes', materializedViewName => 'notes-9',
          aggregationInterval => $interval,
          query => { selector => {}, fields => ['mark', 'author', '_rev'] } });
}


my $file = registry(feeds());
my $nginx;

sub start {
    $nginx = feeding($file, tap => $tap, workers => 2, port => port_to_keep(),
                     expected => qr/exited on signal 9|zone .* was locked by/,
                     data => 'client_max_body_size 16m;');
    return;
}


# quiet(): runs all by hand until nothing is left to do.

sub quiet {
    my $quiet = 0;

    ok(wait_for(sub {
        my $all = run_feed($nginx) or return;
        my $busy = grep { $_->{databases} || $_->{changed} } values %$all;
        $quiet = $busy ? 0 : $quiet + 1;
        sleep 0.3;
        return $quiet >= 3;
    }, patience(20)), 'all has come to rest');
    return;
}


# is_closed(): that no feed has a row of what is not public.

sub is_closed {
    my @bad;

    for my $name ($posts, '_global_events', 'notes-9') {
        my $pointer = pointer($name) or next;
        my ($status, $all) = couch('GET',
            "/$pointer->{db}/_all_docs?include_docs=true");

        push @bad, map { "$name: $_->{id}" }
                   grep { $_->{id} !~ /^_/ && $_->{doc}{mark} ne 'open' }
                   @{ $all->{rows} };
    }

    is_deeply(\@bad, [], 'nothing private is in a feed');
    return;
}


# asked(): what was asked for the sake of feeds since the last time.

sub asked {
    return grep { !/feed=longpoll/ }
           grep { m{ /vibe_(?!state/lease) | /_find\b | /_all_dbs
                     | ^GET\ /global/_changes\?.*include_docs }x }
           map { "$_->{method} $_->{path}" } $tap->asked;
}


# The requests of a run that finds nothing changed.

sub cost {
    quiet();
    asked();
    my $feed = run_feed($nginx, $posts);
    my @asked = asked();

    is($feed->{databases}, 0, 'no database was asked');
    is($feed->{changed}, 0, 'no row was written');
    return @asked;
}


subtest 'a first run' => sub {
    make_users(20);
    start();
    run_feed($nginx) or fail('a run');
    is_fed($nginx, $file, 1, 'what 20 databases call for');
    is_closed();
};


my @little;

subtest 'what nothing costs, with 20 databases' => sub {
    is_ready($nginx, patience(20));
    @little = cost();
    cmp_ok(scalar @little, '<=', 8, 'few requests') or diag(explain \@little);
};


subtest 'databases of all kinds' => sub {
    # A DID that another one begins with.
    make_user(did => "$users[0]{did}:x");
    make_user(db => "userdb-laptop-$$", instance => "laptop-$$");
    make_user(docs => [map { public() } 1 .. 450]);
    make_user(docs => [public(content => 'é' x 50_000), document()]);
    make_users($many);

    # Nobody's.
    couch('PUT', "/userdb-nobody-$$");
    bulk("userdb-nobody-$$", map { public() } 1 .. 5);

    my $new = public(collection => 'posts');
    delete $new->{_id};
    is((request($nginx, 'POST', '/data/posts', $_->{token}, $new))[0], 201,
       'a write') for @users[3, 4, 20 .. 24];

    is_ready($nginx, patience(20));
    quiet();
    my $sum = is_fed($nginx, $file, 1, "what $many databases call for");
    is($sum->{databases}, $many + 1, 'they were looked at');
    is($sum->{unowned}, 1, 'one is nobody\'s');
    cmp_ok($sum->{rows}, '>', $many * 5, 'there are many rows');
    is($sum->{rows}, $sum->{expected}, 'as many as there should be');
    is_closed();

    my $rows = 0;
    for my $name ($posts, '_global_events', 'notes-9') {
        my $feed = feed_status($nginx, $name);
        is($feed->{rows}, pointer($name)->{rows}, "$name: its rows");
        $rows += $feed->{rows};
    }
    is($rows, $sum->{rows}, 'vibe_status has counted them');
};


subtest 'what nothing costs, with many databases' => sub {
    my @asked = cost();
    is(scalar @asked, scalar @little, 'the same as with 20')
        or diag(explain([\@little, \@asked]));
};


# touch($user, $text): changes a public post of theirs; through the module, or
# past it, and then waits until `global` has it.

sub touch {
    my ($user, $text, $past) = @_;

    my $id = $user->{ids}[0];
    my $doc = public(_id => $id, content => $text);

    return is((request($nginx, 'POST', '/data/posts', $user->{token},
                       $doc))[0], 201, 'a change') if !$past;

    edit($user->{db}, $id, $doc);
    my $copy = Vibe::gid($user->{did}, $id);
    return ok(wait_for(sub {
        (stored('global', $copy) // {})->{content} eq $text
    }, patience(10)), 'a change past the module');
}


subtest 'what changes cost' => sub {
    # The other one of the two databases is a run behind.
    touch($users[5], 'once');
    ok(run_feed($nginx, $posts), 'a run');
    touch($users[5], 'twice');
    ok(run_feed($nginx, $posts), 'another run');

    for my $time (1 .. 2) {
        touch($users[5], "5 $time");
        touch($users[6], "6 $time", 1);
        my $feed = run_feed($nginx, $posts);

        is($feed->{databases}, 2, 'two databases were asked');
        is($feed->{changed}, 2, 'two rows were written');
        ok(!$feed->{full}, 'it was no full run');
    }

    is_fed($nginx, $file, 1, 'it is right');
};


# row($user): of their post that touch() changes.

sub row {
    my ($user) = @_;

    return stored(pointer($posts)->{db},
                  Vibe::gid($user->{did}, $user->{ids}[0])) // {};
}


subtest 'a database that cannot be read' => sub {
    # The other one's rows stand among its own.
    my ($user, $other) = @users[0, 20];
    is($other->{did}, "$user->{did}:x", 'two users');

    $tap->refuse("^POST /$user->{db}/_find", 500, { error => 'broken' });

    for my $time (1 .. 4) {
        touch($user, "unread $time");
        touch($other, "read $time");
        request($nginx, 'POST', "/vibe/aggregate?feed=$posts");
        is(row($other)->{content}, "read $time", 'what can be read is there');
        unlike(row($user)->{content} // '', qr/unread/,
               'what cannot stays as it was');
        ok(length row($user)->{_id}, 'it stays');
    }

    like(feed_status($nginx, $posts)->{error}, qr/cannot be read/,
         'vibe_status tells');
    $tap->refuse;
    ok(wait_for(sub { run_feed($nginx, $posts)
                      && row($user)->{content} eq 'unread 4' }), 'it can');
    is_fed($nginx, $file, 5, 'all is right again');
};


# change(): one of all kinds, anywhere.

sub change {
    my $user = any(@users);
    my $what = rand;
    my $past = rand() < 0.5;
    my $new = $what < 0.25;
    my $id = any(@{ $user->{ids} });
    my $old = $new ? undef : stored($user->{db}, $id);
    my $doc = $old && !$old->{_deleted} ? { %$old } : document();

    delete $doc->{_rev};

    if ($what >= 0.4) {
        my ($acl, $mark) = acl();
        @$doc{qw(acl mark)} = ($acl, $mark);
        delete $doc->{acl} if !defined $acl;
    }

    $doc->{content} = 'changed ' . ++$last;
    delete $doc->{any(qw(type createdAt at))} if $what > 0.9;
    push @{ $user->{ids} }, $doc->{_id};

    if ($past) {
        my $gone = $what >= 0.3 && $what < 0.4;
        # To another collection only together with a withdrawal.
        if ($what > 0.95) {
            $doc->{collection} = 'notes';
            @$doc{qw(acl mark)} = ({}, 'private');
        }
        return edit($user->{db}, $doc->{_id}, $gone ? { _deleted => $true }
                                                    : $doc);
    }

    my $collection = $doc->{collection};
    ($collection) = $doc->{_id} =~ m{^([a-z]+)/} if !defined $collection;
    $collection = 'posts' if !defined $collection || ref $collection
                             || $collection !~ /^(?:posts|events|notes)$/;
    delete $doc->{collection};
    $doc = { _id => $doc->{_id}, _deleted => $true }
        if $what >= 0.3 && $what < 0.4;

    return (request($nginx, 'POST', "/data/$collection", $user->{token},
                    $doc))[0] =~ /^20[12]$/;
}


subtest 'many changes and one interval' => sub {
    put_registry($file, feeds(aggregationInterval => '1s'));
    my $done = grep { change() } 1 .. $changes;
    cmp_ok($done, '>', $changes * 5 / 6, 'most were taken');
    is_fed($nginx, $file, 10, 'they are in the feeds');
    is_closed();
};


# at($time): the seconds of the epoch of a time that vibe_status tells.

sub at {
    my ($year, $month, $day, $hour, $minute, $second, $part)
        = ($_[0] // '') =~ /^(\d+)-(\d+)-(\d+)T(\d+):(\d+):(\d+)(\.\d+)Z$/
        or return 0;

    return timegm($second, $minute, $hour, $day, $month - 1, $year) + $part;
}


subtest 'five runs' => sub {
    put_registry($file, feeds(aggregationInterval => '2s'));
    ok(wait_for(sub {
        my $feed = feed_status($nginx, $posts);
        return !$feed->{running}
               && at($feed->{next_run}) - at($feed->{last_run}) > 1.5;
    }), 'the new interval is known');

    my @starts = at(feed_status($nginx, $posts)->{last_run});

    wait_for {
        my $at = at(feed_status($nginx, $posts)->{last_run});
        push @starts, $at if $at > $starts[-1];
        return @starts == 6;
    } 20;

    for my $n (1 .. 5) {
        my $took = ($starts[$n] // 0) - $starts[$n - 1];
        cmp_ok(abs($took - 2), '<=', 0.2, sprintf('after %.3f s', $took));
    }
};


subtest 'a database is deleted, and made anew' => sub {
    my $user = $users[7];
    my $mark = "$user->{did}:";

    couch('DELETE', "/$user->{db}");
    my $sum = is_fed($nginx, $file, 15, 'its rows are gone');
    is($sum->{databases}, $many, 'it is');

    couch('PUT', "/$user->{db}?q=1");
    bulk($user->{db}, map { public() } 1 .. 30);
    $sum = is_fed($nginx, $file, 15, 'its new rows are there');
    is($sum->{databases}, $many + 1, 'it is');

    # What came while the witness looked is right, but not among its counts.
    $sum = is_fed($nginx, $file, 1, 'they stay');
    is($sum->{rows}, $sum->{expected}, 'all of them');
};


# amid($what, $block): does it while a run is in the middle of the databases.

sub amid {
    my ($what, $block) = @_;

    my $n = 0;
    ok(wait_for(sub {
        $n += grep { m{/_find$} } asked();
        return $n >= 20;
    }, patience(10)), "$what within a run");
    $block->();
    return;
}


# counted($rows): vibe_status tells that the feeds have so many rows, after a
# run that was not hindered by what was killed.

sub counted {
    my ($rows) = @_;

    my ($got, $feeds);
    wait_for(sub {
        $feeds = run_feed($nginx);
        $got = 0;
        $got += $_->{rows} for values %$feeds;
        return $got == $rows && !grep { defined $_->{error} } values %$feeds;
    }, patience(10));

    return is($got, $rows, 'vibe_status has counted its rows')
           || diag(explain($feeds, map { pointer($_) } sort keys %$feeds));
}


subtest 'nginx is killed within a run' => sub {
    put_registry($file, feeds());
    quiet();
    my $before = registry(feeds());
    my $run = pointer($posts)->{run};

    # Another definition: all databases are asked.
    asked();
    put_registry($file, feeds(fields => [@fields, 'type'],
                              sort => [{ n => 'asc' }]));
    amid('a kill', sub { $nginx->crash });
    is(pointer($posts)->{run}, $run, 'nothing was published');
    is_fed(undef, $before, 1, 'what was there is there');

    change() for 1 .. 2;
    edit($users[8]{db}, $users[8]{ids}[0], { _deleted => $true });
    edit($users[9]{db}, $users[9]{ids}[0],
         public(acl => {}, mark => 'private'));

    ok($nginx->again, 'nginx starts again');
    is_fed($nginx, $file, 15, 'what the new definition calls for');
    is_closed();
    is(join(' ', @{ pointer($posts)->{sort} }), 'n', 'so says the pointer');

    counted(is_fed($nginx, $file, 1, 'it still is')->{rows});
};


subtest 'CouchDB is killed within a run' => sub {
    asked();
    put_registry($file, feeds(selector => { '$or' => [{ type => 'post' },
                                                      { n => { '$gt' => 9 } }] },
                              aggregationInterval => '1s'));
    amid('a kill', sub { $couch->kill });
    sleep 1;
    ok($couch->again, 'CouchDB starts again');
    change() for 1 .. 20;
    my $sum = is_fed($nginx, $file, 30, 'what the new definition calls for');
    is_closed();

    # What is left of other indexes is not counted.
    counted($sum->{expected});
};


subtest '`global` is deleted' => sub {
    couch('DELETE', '/global');
    edit($users[10]{db}, $users[10]{ids}[0],
         public(acl => {}, mark => 'private'));
    edit($users[11]{db}, $users[11]{ids}[0], { _deleted => $true });
    bulk($users[12]{db}, public());
    is_fed($nginx, $file, 40, 'what is in no `global` is in no feed');
    is_ready($nginx, patience(20));

    touch($users[13], 'after that');
    is_fed($nginx, $file, 10, 'it goes on');
    is_closed();
};


subtest 'feeds are taken away' => sub {
    put_registry($file, (feeds(aggregationInterval => '1s'))[0]);

    for my $name ('_global_events', 'notes-9') {
        ok(wait_for(sub { !pointer($name) }, patience(10)),
           "$name has no pointer any more");
        ok(wait_for(sub { !%{ feed_status($nginx, $name) } }, patience(10)),
           'and no status');
    }

    is_fed($nginx, $file, 10, 'the other one is right');
};


$nginx->stop;
$couch->kill;

done_testing;
