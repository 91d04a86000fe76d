# What a feed must not get stuck in: rows that are stale or missing for ever, a
# run that never ends, a feed that keeps others waiting.  Each of these was so
# once.
#
# VIBE_STUCK is a pattern of the names of those to try.

use strict;
use warnings;

use JSON::PP;
use Test::More;
use Time::HiRes qw(sleep time);
use Vibe;
use Vibe::Couch;
use Vibe::Feeds;
use Vibe::Proxy;
use Vibe::Race;

my $json = JSON::PP->new->utf8->canonical->allow_nonref;
my ($true, $false) = (JSON::PP::true, JSON::PP::false);

Vibe::Couch->start->make_default if $ENV{VIBE_EMBEDDED};

my $which = $ENV{VIBE_STUCK} // '';
my ($alice, $bob, $sub);
my ($n, $feed, $collection, $proxy, $nginx) = (0);


# with_feed($name, $test, %option): a subtest with a feed and users of its own,
# through a proxy of its own.

sub with_feed {
    my ($name, $test, %opt) = @_;

    return if $name !~ /$which/;

    subtest $name => sub {
        $collection = 'stuck' . ++$n;
        ($alice, $bob) = map { did("$_$n") } qw(alice bob);

        # Whose DID begins with another one's, and a colon.
        $sub = "$alice:sub";

        $feed = "_$collection";
        $proxy = Vibe::Proxy->start;

        my $interval = delete $opt{interval} // '2s';
        my $before = delete $opt{before};
        my $more = delete $opt{feeds} // [];

        if ($before) {
            $nginx = nginx_start();
            $before->();
            $nginx->stop;
        }

        $nginx = feeding(registry(@$more,
            posts_feed(collectionName => $collection, selector => {},
                       fields => ['_id', 'content', 'createdAt'],
                       materializedViewName => $feed,
                       aggregationInterval => $interval)),
            tap => $proxy, %opt);

        eval { $test->(); 1 } or fail("it did not die: $@");
        $nginx->stop;
    };
}


sub put {
    my ($did, @docs) = @_;

    my %claim = ref $did ? (instanceId => $did->[1]) : ();

    my ($status, $rows)
        = request($nginx, 'POST', "/data/$collection",
                  token(ref $did ? $did->[0] : $did, %claim), \@docs);
    die "not written: $status " . $json->encode($rows) . "\n"
        if $status != 201 || grep { $_->{error} } @$rows;
    return;
}


sub post {
    my ($id, $content, %more) = @_;

    return { _id => $id, content => $content, createdAt => 1,
             acl => { global => $true }, %more };
}


# shown(): what readers are shown now, as "ID CONTENT".

sub shown {
    my $pointer = pointer($feed) // {};
    return '' if !$pointer->{db};

    my (undef, $all)
        = couch('GET', "/$pointer->{db}/_all_docs?include_docs=true");

    return join(' ', map { my $id = $_->{id};
                           $id =~ s/^did:vibe:[^:]+:([a-z]+)\d+/$1/;
                           "$id=$_->{doc}{content}" }
                         grep { $_->{id} !~ /^_/ } @{ $all->{rows} // [] });
}


# shows($text, $name [, $seconds]): that readers are shown this then.

sub shows {
    my ($text, $name, $seconds) = @_;

    local $Test::Builder::Level = $Test::Builder::Level + 1;

    my $right = wait_for { shown() eq $text } patience($seconds // 5);
    my $ok = ok($right, $name);
    diag('they are shown ', shown(), "\nnot ", $text, "\n",
         $json->encode(feed_status($nginx, $feed)),
         join("\n", grep { /\[(?:error|warn)\]/ } split /\n/, $nginx->log))
        if !$ok;
    return $ok;
}


# A run that began after this and has ended, whatever its end.

sub run_now {
    return (request($nginx, 'POST', "/vibe/aggregate?feed=$feed"))[0];
}


# In the background, to be read by answer_of().

sub runs {
    return send_request($nginx, 'POST', "/vibe/aggregate?feed=$feed");
}


my %nobody = (error => 'unknown_error', reason => 'broken');

with_feed('one that cannot be read, and one whose ids are among its' => sub {
    put($alice, post('a', 1));
    put($sub, post('s', 1));
    run_now();
    shows('alice:a=1 alice:sub:s=1', 'both', 10);

    $proxy->always('^POST /' . userdb($alice) . '/_find', 500, \%nobody);

    for my $i (2 .. 4) {
        put($alice, post('a', $i));
        put($sub, post('s', $i));
        run_now();
        shows("alice:a=1 alice:sub:s=$i", "the one stays, the other follows");
    }

    like(feed_status($nginx, $feed)->{error}, qr/cannot be read/, 'is told');
    $proxy->always;
    shows('alice:a=4 alice:sub:s=4', 'it follows when it answers again', 10);

    put($sub, post('s', 0, _deleted => $true));
    couch('DELETE', '/' . userdb($alice));
    shows('', 'and goes when it is deleted', 10);
});


with_feed('two databases of one owner, one of which cannot be read' => sub {
    my @two = map { [$bob, $_ . $$ . int(time)] } qw(one two);

    put($two[0], post('x', 1));
    put($two[1], post('y', 1));
    run_now();
    shows('bob:x=1 bob:y=1', 'both', 10);

    # Only one database of the feed knows.
    put($two[0], post('x', 2));
    run_now();
    shows('bob:x=2 bob:y=1', 'and what has changed');

    # Not even whose it is.
    $proxy->always("^(?:GET|POST) /userdb-$two[0][1]/(?:_find|_local)", 500,
                   \%nobody);

    for my $i (2 .. 4) {
        put($two[1], post('y', $i));
        run_now();
        shows("bob:x=2 bob:y=$i", 'the one stays, the other follows');
    }

    # All are looked at.
    kill('KILL', $nginx->workers);
    put($two[1], post('y', 5));
    run_now() for 1 .. 3;
    shows('bob:x=2 bob:y=5', 'also with another worker', 10);

    $proxy->always;
    put($two[0], post('x', 0, _deleted => $true));
    shows('bob:y=5', 'what is withdrawn goes');

    put($two[1], post('y', 0, _deleted => $true));
    shows('', 'nothing is left');
}, expected => qr/exited on signal 9/);


with_feed('a database that is not there, for CouchDB' => sub {
    put($alice, post('a', 1));
    put($bob, post('b', 1));
    run_now();
    shows('alice:a=1 bob:b=1', 'both', 10);

    # As a cluster has it where the nodes of a database are down.
    $proxy->always('^POST /' . userdb($alice) . '/_find', 503,
                   { error => 'service unavailable', reason => 'nodes' });

    put($alice, post('a', 2));
    put($bob, post('b', 2));
    run_now();
    shows('alice:a=1 bob:b=2', 'the others follow');
    $proxy->always;
});


with_feed('one of the two databases takes nothing' => sub {
    put($alice, post('a', 1), post('b', 1));
    run_now();
    put($alice, post('c', 1));
    run_now();
    shows('alice:a=1 alice:b=1 alice:c=1', 'all', 10);
    sleep 0.5;

    my ($other) = grep { $_ ne pointer($feed)->{db} }
                      "vibe_$collection", "vibe_$collection-2";

    $proxy->always("^POST /$other/_all_docs", 500, \%nobody);
    put($alice, post('a', 1, acl => {}));
    shows('alice:b=1 alice:c=1', 'a withdrawal reaches the current one', 2);

    run_now();
    like(feed_status($nginx, $feed)->{error}, qr/withdrawn/,
         'a run does not wait for ever');

    $proxy->always;
    put($alice, post('b', 2));
    shows('alice:b=2 alice:c=1', 'it goes on', 10);
});


with_feed('public again while it is taken out' => sub {
    put($alice, post('a', 1));
    run_now();
    shows('alice:a=1', 'there', 10);

    my $hold = $proxy->hold("^POST /vibe_$collection(?:-2)?/_all_docs");
    put($alice, post('b', 1, acl => { read => { allow => ['did:vibe:x'] } }));
    ok($proxy->wait_held($hold), 'it is not public at first');
    put($alice, post('b', 1));

    # The copy is told.
    wait_for { grep { /longpoll/ } $proxy->asked } 3;
    sleep 0.5;

    my $asked = runs();
    wait_for { grep { /_find/ } $proxy->asked } 3;
    sleep 0.3;
    $proxy->release($hold);
    answer_of($asked);
    run_now();
    shows('alice:a=1 alice:b=1', 'it is shown');
}, interval => '1d');


with_feed('the pointer is deleted, or overwritten' => sub {
    put($alice, post('a', 1));
    run_now();
    shows('alice:a=1', 'there', 10);

    my $doc = pointer($feed);
    couch('DELETE', "/vibe_state/$doc->{_id}?rev=$doc->{_rev}");
    put($alice, post('a', 2));
    run_now();
    shows('alice:a=2', 'deleted', 10);

    $doc = pointer($feed);
    couch('PUT', "/vibe_state/$doc->{_id}", { _rev => $doc->{_rev}, db => 7 });
    put($alice, post('a', 3));
    run_now();
    shows('alice:a=3', 'overwritten', 10);

    kill('KILL', $nginx->workers);
    $doc = pointer($feed);
    couch('PUT', "/vibe_state/$doc->{_id}", { _rev => $doc->{_rev}, db => 7 });
    put($alice, post('a', 4));
    run_now();
    shows('alice:a=4', 'overwritten while nobody looked', 10);
}, expected => qr/exited on signal 9/);


with_feed('a copy from a database of nobody' => sub {
    my $copy = '/global/did:vibe:x:y:z';

    put($alice, post('a', 1));
    run_now();
    shows('alice:a=1', 'there', 10);

    # Of another vibe_db_prefix, before.
    my ($status) = couch('PUT', $copy, {
        vibe_v => 1, vibe_db => 'people-1', vibe_access => 'public',
        vibe_owner => 'did:vibe:x:y', vibe_rev => '1-a', vibe_acl => 1,
        collection => $collection, content => 1, createdAt => 1 });
    is($status, 201, 'it is there');

    put($alice, post('a', 2));
    run_now();
    shows('alice:a=2', 'a run ends');

    my (undef, $doc) = couch('GET', $copy);
    couch('DELETE', "$copy?rev=$doc->{_rev}") if $doc->{_rev};
});


with_feed('a document that moves to another collection' => sub {
    put($alice, post('a', 1), post('b', 1));
    run_now();
    shows('alice:a=1 alice:b=1', 'there', 10);

    my $path = '/' . userdb($alice) . '/a';
    my (undef, $doc) = couch('GET', $path);
    my ($status) = couch('PUT', $path, { %$doc, collection => 'elsewhere' });
    is($status, 201, 'past the module');

    wait_for {
        (undef, $doc) = couch('GET', '/global/' . gid($alice, 'a'));
        return $doc->{collection} eq 'elsewhere';
    } patience(10);
    run_now();
    shows('alice:b=1', 'is there no more');
});


with_feed('a run that failed, and then its database is gone' => sub {
    put($alice, post('a', 1));
    put($bob, post('b', 1));
    run_now();
    put($alice, post('a', 2));
    run_now();
    shows('alice:a=2 bob:b=1', 'there', 10);

    my ($target) = grep { $_ ne pointer($feed)->{db} }
                       "vibe_$collection", "vibe_$collection-2";

    # All that it had to do is done but for the pointer.
    put($alice, post('a', 3));
    my $hold = $proxy->hold('^PUT /vibe_state/feed');
    my $asked = runs();
    ok($proxy->wait_held($hold), 'it is almost done');
    couch('DELETE', "/$target");
    $proxy->answer($hold, 500, \%nobody);
    answer_of($asked);

    run_now() for 1 .. 3;
    shows('alice:a=3 bob:b=1', 'nothing is forgotten', 10);
}, interval => '1d');


with_feed('rows of which three are too large for one answer' => sub {
    put($alice, map { post("a$_", $_ x 30_000) } 1 .. 5);
    my $asked = runs();
    my $want = join(' ', map { "alice:a$_=" . $_ x 30_000 } 1 .. 5);

    my $right = wait_for { shown() eq $want } patience(10);
    ok($right, 'there');
    put($alice, post('a9', 9));
    $proxy->asked;
    run_now();
    $right = wait_for { shown() eq "$want alice:a9=9" } patience(10);
    ok($right, 'and more');
    cmp_ok(scalar(grep { m{/vibe_$collection} } $proxy->asked), '<', 100,
           'with few requests');
    answer_of($asked);
}, directives => 'vibe_max_response 72k;');


with_feed('what is written when nobody waits for it any more' => sub {
    put($alice, post('a', 1));
    put($bob, post('b', 1));
    run_now();
    shows('alice:a=1 bob:b=1', 'there', 10);

    put($alice, post('late', 1));
    put($bob, post('b', 2));

    # Of the run that fails for the other one's sake.
    my $late = $proxy->hold(
        "^POST /vibe_$collection(?:-2)?/_bulk_docs .*:late");
    my $fails = $proxy->hold(
        "^POST /vibe_$collection(?:-2)?/_bulk_docs .*:b\"");
    my $asked = runs();
    ok($proxy->wait_held($late), 'one is written') or return;
    ok($proxy->wait_held($fails), 'and the other');
    $proxy->answer($fails, 503, \%nobody);
    answer_of($asked);

    put($alice, post('late', 1, acl => {}));
    shows('alice:a=1 bob:b=2', 'the next run', 10);

    $proxy->release($late);

    for my $i (3 .. 5) {
        put($bob, post('b', $i));
        run_now();
    }

    shows('alice:a=1 bob:b=5', 'it does not stay', 10);

    for ("vibe_$collection", "vibe_$collection-2") {
        my ($status) = couch('GET', "/$_/" . gid($alice, 'late'));
        is($status, 404, "$_ does not have it");
    }
}, interval => '1d');


with_feed('its _security could not be written' => sub {
    wait_for { pointer($feed) && pointer($feed)->{db} } patience(10);
    my (undef, $is) = couch('GET', "/vibe_$collection/_security");
    my (undef, $want) = couch('GET', '/vibe_state/_security');
    is_deeply($is, $want, 'it is closed in the end');
    ok(keys %$want, 'which means something');
}, before => sub {
    # Who made it died then.
    couch('PUT', "/vibe_$collection");
    couch('PUT', "/vibe_$collection/_security", {});
});


# As many as run at once, each of which takes longer than its interval.
my @slow = map { posts_feed(collectionName => "slow$_", selector => {},
                            fields => ['_id', 'content', 'createdAt'],
                            materializedViewName => "_slow$_",
                            aggregationInterval => '500ms') } 1 .. 4;

with_feed('feeds that are slow' => sub {
    my $there = wait_for {
        return !grep { !(pointer("_slow$_") // {})->{db} } 1 .. 4;
    } patience(20);
    ok($there, 'each has run');

    # A run that finds changes gives the readers of the last one some time.
    my $parent = $$;
    my $pid = Vibe::_fork(sub {
        for (my $i = 0; getppid == $parent; $i++) {
            request($nginx, 'POST', "/data/slow$_", token($bob),
                    post("slow$_", $i)) for 1 .. 4;
            sleep 0.02;
        }
    });

    for my $i (1 .. 4) {
        put($alice, post('a', $i));
        shows("alice:a=$i", 'keep no other waiting');
    }

    kill('KILL', $pid);
}, feeds => \@slow, interval => '600ms');


done_testing;
