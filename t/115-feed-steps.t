# A run of a feed is stopped at each of its requests in turn.  Documents that it
# has read, or will read, are withdrawn meanwhile: they leave what readers are
# shown at once, and no run brings them back.  Or the worker is killed (-9)
# there, or the request fails, once: readers are shown the old result or the new
# one, whole, the error is told, and the next run comes soon and ends right.
#
# VIBE_STEPS_SEED repeats what was drawn by lot: how documents are withdrawn,
# how requests fail.  VIBE_LONG=1 tries everything, which takes some minutes;
# VIBE_STEPS is a pattern of the names of steps to try.

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
my $true = JSON::PP::true;
my $seed = $ENV{VIBE_STEPS_SEED} || $$;
my $which = $ENV{VIBE_STEPS} // '';
my $feed = '_global_posts';

diag("seed $seed");
srand($seed);

Vibe::Couch->start->make_default if $ENV{VIBE_EMBEDDED};

my ($alice, $bob, $carol) = map { did($_) } qw(alice bob carol);

# How a public document ceases to be one.
my %mode = (
    private => { acl => { global => JSON::PP::false } },
    deleted => { _deleted => $true },
    restricted => { acl => { read => { allow => [$bob] } } },
);

# How a request fails.
my %fault = (
    500 => ['answer', 500, { error => 'unknown_error', reason => 'x' }],
    503 => ['answer', 503, { error => 'service_unavailable', reason => 'x' }],
    garbage => ['answer', 200, '<html>It works!</html>'],
    cut => ['cut'],
    lost => ['lose'],
);

# The requests of a run, in order, each with the pattern of it and how many like
# it are let pass.  "new": of the first run of a worker where there is nothing;
# "full": of a run that looks at all databases; "any": of the others, too.
my $db = 'vibe_global_posts(?:-2)?';
my $changes = '^GET /global/_changes\?limit=100&include_docs=true&since=';

my @steps = (
    ['PUT of a database', 'new', "^PUT /$db "],
    ['PUT of its _security', 'new', "^PUT /$db/_security "],
    ['POST of an index', 'new', "^POST /$db/_index "],
    ['GET of the current database', 'any', "^GET /$db "],
    ['_changes of global', 'any', $changes],
    ['_all_dbs', 'full', '^GET /_all_dbs\?limit=200&'],
    ['_all_docs of the feed', 'any', "^GET /$db/_all_docs"],
    ['_find of a user', 'any', '^POST /userdb-\w+/_find '],
    ['_bulk_docs of the feed', 'any', "^POST /$db/_bulk_docs .*vibe_sum"],
    ['_find that builds an index', 'any', "^POST /$db/_find "],
    ['_changes of global, again', 'any', $changes, 1],
    ['GET of the new database', 'any', "^GET /$db ", 1],
    ['PUT of the pointer', 'any', '^PUT /vibe_state/feed'],
    ['_all_docs to level', 'full', "^GET /$db/_all_docs\\?\\S*startkey=%22%22"],
    ['_bulk_docs to level', 'full', "^POST /$db/_bulk_docs .*vibe_sum", 1],
);


# ---- users, and what they write ----------------------------------------------

# put($nginx, $did, @docs): through the module; dies if one is not taken.

sub put {
    my ($nginx, $did, @docs) = @_;

    my ($status, $rows) = request($nginx, 'POST', '/data/posts', token($did),
                                  \@docs);
    die "not written: $status " . $json->encode($rows) . "\n"
        if $status != 201 || grep { $_->{error} || $_->{mirror} } @$rows;
    return;
}


my $n = 0;

sub post {
    my ($id, %more) = @_;

    return { _id => $id, type => 'post', createdAt => ++$n, content => "c$n",
             acl => { global => $true }, %more };
}


# expected($collection): content by id, from the users' databases.

sub expected {
    my ($collection) = @_;

    my %rows;

    for my $did ($alice, $bob, $carol) {
        my ($status, $all) = couch('GET', '/' . userdb($did)
                                   . '/_all_docs?include_docs=true');
        next if $status == 404;
        die "_all_docs: $status\n" if $status != 200;

        for my $doc (map { $_->{doc} } @{ $all->{rows} }) {
            next if !$doc->{acl}{global} || $doc->{collection} ne $collection;
            $rows{ gid($did, $doc->{_id}) } = $doc->{content};
        }
    }

    return \%rows;
}


# rows($db): content by id.

sub rows {
    my ($name) = @_;

    my ($status, $all) = couch('GET', "/$name/_all_docs?include_docs=true");
    return { map { $_->{id} => $_->{doc}{content} }
                 grep { $_->{id} !~ /^_/ } @{ $all->{rows} // [] } };
}


# shown($feed): what its readers are shown now, { } where there is no result.

sub shown {
    my ($name) = @_;

    for (1 .. 100) {
        my $before = pointer($name) // {};
        my $rows = $before->{db} ? rows($before->{db}) : {};
        my $after = pointer($name) // {};

        return $rows if ($before->{db} // '') eq ($after->{db} // '');
    }

    die "the pointer does not stand still\n";
}


# ---- a run that is stopped ---------------------------------------------------

# watch($w, $until, $seconds): looks at what readers are shown till $until is
# true, which is returned.  $w has the ids that were withdrawn, and when.

sub watch {
    my ($w, $until, $seconds) = @_;

    my $end = time + $seconds;

    for (;;) {
        my $began = time;
        my $rows = shown($feed);

        for my $id (grep { exists $rows->{$_} } @{ $w->{ids} }) {
            push @{ $w->{wrong} }, "$id came back" if $w->{gone}{$id};
            push @{ $w->{wrong} }, sprintf('%s is shown %.1f s later', $id,
                                           $began - $w->{at})
                if $w->{at} && $began - $w->{at} > patience(2);
        }

        $w->{gone}{$_} = 1
            for grep { $w->{at} && !exists $rows->{$_} } @{ $w->{ids} };

        my $value = $until->($rows);
        return $value if $value;
        return if time > $end;
        sleep 0.02;
    }
}


# Stops a run before the request, withdraws documents, and lets it go on, or
# kills the worker.  Returns what went wrong.

sub stopped {
    my ($nginx, $proxy, $step, $mode, $how) = @_;

    my ($name, $kind, $pattern, $skip) = @$step;
    my ($worker) = $nginx->workers;
    my $mark = ++$n;
    my %w = (wrong => []);

    # In both databases already; $stays is shown all the time.
    put($nginx, $_, post("old-$mark"), post("stays-$mark")) for $alice, $bob;
    run_feed($nginx) for 1, 2;

    my @skipped = map { $proxy->hold($pattern, 'release') } 1 .. $skip // 0;
    my $hold = $proxy->hold($pattern);
    my $asks;

    put($nginx, $_, post("new-$mark")) for $alice, $bob;

    if ($kind eq 'any') {
        $asks = send_request($nginx, 'POST', '/vibe/aggregate');

    } else {
        kill('STOP', $worker);

        if ($kind eq 'new') {
            my $doc = pointer($feed);
            couch('DELETE', "/vibe_state/$doc->{_id}?rev=$doc->{_rev}");
            couch('DELETE', "/vibe_global_posts$_") for '', '-2';
        }

        kill('KILL', $worker);
    }

    $proxy->wait_held($hold) or push @{ $w{wrong} }, 'it was not asked';

    for my $did ($alice, $bob) {
        my @ids = ("old-$mark", "new-$mark");
        put($nginx, $did, map { { %{ post($_) }, %{ $mode{$mode} } } } @ids);
        push @{ $w{ids} }, map { gid($did, $_) } @ids;
    }

    # What is withdrawn is learned from these.
    $w{at} = time if $name !~ /^_changes/;

    my $out = sub { !grep { exists $_[0]{$_} } @{ $w{ids} } };

    watch(\%w, $out, patience(2)) if $w{at};

    if ($how eq 'kill') {
        kill('KILL', $nginx->workers);
    }

    $proxy->release($hold);
    $proxy->drop($_) for @skipped, $hold;
    $w{at} //= time;

    watch(\%w, $out, patience(2));
    answer_of($asks) if $asks && $how ne 'kill';

    # That run, or another worker's, and two more, one into each database.
    for my $run (1 .. 3) {
        my $asked = send_request($nginx, 'POST', '/vibe/aggregate');
        my $select = IO::Select->new($asked->{sock});

        watch(\%w, sub { $select->can_read(0) }, patience(15))
            or push @{ $w{wrong} }, 'no run ends';
        my ($status, $answer) = answer_of($asked);
        push @{ $w{wrong} }, "run $run: $status " . $json->encode($answer)
            if $how ne 'kill' && ($status != 200 || !$answer->{ok});
    }

    my $want = expected('posts');
    my $right = watch(\%w, sub { $json->encode($_[0]) eq $json->encode($want) },
                      patience(6));
    push @{ $w{wrong} }, 'the result is not right: '
                         . $json->encode(differences(shown($feed), $want))
        if !$right;

    my @left = grep { exists rows('vibe_global_posts')->{$_}
                      || exists rows('vibe_global_posts-2')->{$_} }
                   @{ $w{ids} };
    push @{ $w{wrong} }, "still there: @left" if @left;

    my %seen;
    return grep { !$seen{$_}++ } @{ $w{wrong} };
}


sub differences {
    my ($is, $want) = @_;

    return { map { $_ => [$is->{$_}, $want->{$_}] }
                 grep { ($is->{$_} // '') ne ($want->{$_} // '') }
                     keys %{ { %$is, %$want } } };
}


subtest 'withdrawn while a run is stopped' => sub {
    my $proxy = Vibe::Proxy->start;
    my $nginx = feeding(registry(posts_feed(aggregationInterval => '2s')),
                        tap => $proxy, expected => qr/exited on signal 9/);

    put($nginx, $_, post('first')) for $alice, $bob, $carol;

    my $there = wait_for { pointer($feed) && pointer($feed)->{db} } 30;
    ok($there, 'a first run');

    my @modes = sort keys %mode;

    for my $step (grep { $_->[0] =~ /$which/ } @steps) {
        my @how = map { my $how = $_; map { [$_, $how] } @modes }
                      qw(release kill);

        # One of each.
        @how = map { [$modes[rand @modes], $_] } qw(release kill)
            if !$ENV{VIBE_LONG};
        @how = $how[rand @how] if $ENV{VIBE_SHORT};

        for (@how) {
            my ($mode, $how) = @$_;
            my @wrong = stopped($nginx, $proxy, $step, $mode, $how);

            ok(!@wrong, "$step->[0], $mode, "
                        . ($how eq 'kill' ? 'the worker is killed'
                                          : 'it goes on'))
                or diag(join("\n", @wrong));
        }
    }

    $nginx->stop;
};


# ---- requests that fail ------------------------------------------------------

# Each feed has one request that fails, once; all run at the same time.  Their
# interval is so long that only a retry can be the next run.

sub failing {
    my ($round, @cases) = @_;

    my $proxy = Vibe::Proxy->start;
    my (@feeds, @failing);

    for my $case (@cases) {
        my ($step, $fault) = @$case;
        my ($name, $kind, $pattern, $skip) = @$step;
        my $collection = "f$round" . 'x' . @failing;

        (my $own = $pattern) =~ s/\Q$db\E/vibe_$collection(?:-2)?/;
        $own =~ s{^(\^POST /userdb-\\w\+/_find )}{$1.*"$collection"};
        $own =~ s{(/feed)}{$1%3A_$collection};

        push @feeds, posts_feed(
            collectionName => $collection,
            materializedViewName => "_$collection",
            selector => { type => 'post', mark => $collection });
        push @failing, { name => "$name: $fault", kind => $kind,
                         fault => $fault, pattern => $own, skip => $skip // 0,
                         collection => $collection };
    }

    my $put = sub {
        my ($nginx, $did, $f, @docs) = @_;
        my ($status) = request($nginx, 'POST', "/data/$f->{collection}",
            token($did), [map { { %$_, mark => $f->{collection} } } @docs]);
        die "not written: $status\n" if $status != 201;
    };

    my $hold = sub {
        my ($f) = @_;
        $f->{passed} = [map { $proxy->hold($f->{pattern}, 'release') }
                            1 .. $f->{skip}];
        $f->{hold} = $proxy->hold($f->{pattern}, @{ $fault{ $f->{fault} } });
    };

    my @first = grep { $_->{kind} ne 'any' } @failing;
    my @later = grep { $_->{kind} eq 'any' } @failing;

    # The mock answers 401 to one who has no token, but has databases made.
    my $plain = nginx_start();
    for my $f (@failing) {
        $put->($plain, $_, $f, map { post("$f->{collection}/$_") } 1 .. 3)
            for $alice, $bob;
    }
    $plain->stop;

    $hold->($_) for @first;
    my $nginx = feeding(registry(@feeds), tap => $proxy);

    $_->{want} = expected($_->{collection}) for @failing;
    follow($nginx, $proxy, @first);
    wait_for { !grep { !keys %{ shown("_$_->{collection}") } } @later }
        patience(30);

    for my $f (@later) {
        $f->{old} = $f->{want};
        $put->($nginx, $_, $f, post("$f->{collection}/2"),
               post("$f->{collection}/4")) for $alice, $bob;
        $f->{want} = expected($f->{collection});
        $hold->($f);
    }

    my $asks = send_request($nginx, 'POST', '/vibe/aggregate');
    follow($nginx, $proxy, @later);
    answer_of($asks);

    $nginx->stop;
}


# Whether it is the old result, or the new one, in which a user's database that
# could not be read has its old rows.

sub is_whole {
    my ($shown, $f) = @_;

    my $same = sub {
        my ($did, $rows) = @_;
        my ($one, $two) = map {
            my $all = $_ // {};
            $json->encode({ map { $_ => $all->{$_} }
                                grep { /^\Q$did/ } keys %$all });
        } $shown, $rows;
        return $one eq $two;
    };

    return 1 if $json->encode($shown) eq $json->encode($f->{old} // {});
    return 0 if $f->{name} !~ /^_find of a user/;
    return !grep { !$same->($_, $f->{old}) && !$same->($_, $f->{want}) }
                ($alice, $bob);
}


# What readers are shown, till all is as it should be.

sub follow {
    my ($nginx, $proxy, @failing) = @_;

    my $end = time + patience(30);
    my @left = @failing;

    while (@left && time < $end) {
        for my $f (@left) {
            my $shown = shown("_$f->{collection}");
            my (undef, $status) = request($nginx, 'GET', '/vibe/status');
            my $feed = $status->{feeds}{"_$f->{collection}"} // {};

            # The list of databases is asked for by whoever is first.
            my @may = $f->{name} =~ /^_all_dbs/ ? values %{ $status->{feeds} }
                                                : $feed;
            my $is = $json->encode($shown);

            $f->{told} ||= grep { $_->{failed} || $_->{error} } @may;
            $f->{new} = $is eq $json->encode($f->{want});
            $f->{wrong} //= "neither is shown: $is"
                if !$f->{new} && !is_whole($shown, $f);
            $f->{done} = $f->{new} && !$feed->{running} && !$feed->{error}
                         && $proxy->caught($f->{hold});
        }

        @left = grep { !$_->{done} } @left;
        sleep 0.02;
    }

    for my $f (@failing) {
        my $hit = $proxy->caught($f->{hold});
        $proxy->drop($_) for $f->{hold}, @{ $f->{passed} };

        # What is refused is split, what got no answer sent once more, changes
        # are read again, and of what is only told nobody reads the answer.
        my $quiet = $f->{fault} =~ /^(?:lost|cut)$/
            || $f->{name} =~ /^_bulk_docs.* 500|^_changes|an index: 500/
            || $f->{name} =~ /(?:_security|an index|current.*): garbage/;

        ok($hit && $f->{new} && !$f->{wrong} && ($f->{told} || $quiet),
           $f->{name})
            or diag($f->{wrong} // '', !$hit ? ' it was not asked' : '',
                    !$f->{new} ? ' it did not become right' : '',
                    $f->{told} ? '' : ' no error was told');
    }
}


subtest 'requests that fail once' => sub {
    my @kinds = sort keys %fault;
    my @try = grep { $_->[0] =~ /$which/ } @steps;
    my @cases = $ENV{VIBE_LONG}
        ? map { my $step = $_; map { [$step, $_] } @kinds } @try
        : map { [$_, $kinds[rand @kinds]] }
          grep { !$ENV{VIBE_SHORT} || rand() < 0.5 } @try;

    for (my $round = 0; @cases; $round++) {
        failing($round, splice(@cases, 0, 15));
    }
};


done_testing;
