# Those who come first, at once: two DIDs with one instanceId, of whom one gets
# the database; and many writers while there is no `global`.

use strict;
use warnings;

use JSON::PP;
use Test::More;
use Time::HiRes qw(time);
use Vibe;
use Vibe::Faults;
use Vibe::Proxy;
use Vibe::Race;

my $json = JSON::PP->new->utf8->canonical->allow_nonref;
my $true = JSON::PP::true;

my $run = sprintf('%x%04x', time, $$ & 65535);
my %public = (acl => { global => $true });
my ($alice, $bob) = map { did($_) } qw(alice bob);
my $posts = "/data/posts$run";
my @databases;

my @proxies = map { Vibe::Proxy->start } 1 .. 2;
my @slow = map { nginx_start(http => $_->http_config) } @proxies;
my $nginx = nginx_start();


# write_by($nginx, $did, $instance): sends it.

sub write_by {
    my ($by, $did, $name) = @_;

    return send_request($by, 'POST', $posts,
        token($did, instanceId => $name),
        { _id => 'doc', by => $did, secret => "secret of $did" });
}


# Who of the two may, and whether that is how it is.

sub settled {
    my ($name, $what, %status) = @_;

    my @may = grep { $status{$_} == 201 } $alice, $bob;
    my ($not) = grep { $status{$_} != 201 } $alice, $bob;
    my $told = "$what: $status{$alice} and $status{$bob}";

    return "$told, and not one of them" if @may != 1;
    return "$told, not 403" if $status{$not} != 403;

    my ($status, $owner) = couch('GET', "/userdb-$name/_local/vibe_owner");
    return "$told, but the owner is " . ($owner->{did} // 'nobody')
        if ($owner->{did} // '') ne $may[0];

    ($status, my $doc) = couch('GET', "/userdb-$name/doc");
    return "$told, but the other has written" if $doc->{by} ne $may[0];

    # Neither here, where the answer may be remembered, nor elsewhere.
    for my $by ($nginx, @slow) {
        for my $did ($alice, $bob) {
            my ($status, $answer, undef, $text) = request($by, 'POST',
                "$posts/query", token($did, instanceId => $name), {});
            return "$told, and then a query of the one is $status"
                if $did eq $may[0] && $status != 200;
            return "$told, and then a query of the other is $status: $text"
                if $did ne $may[0]
                   && ($status != 403 || $text =~ /secret/);
        }
    }

    return;
}


# The first is held before each of its requests in turn, and the other runs
# from start to end; or to one of its own, and then the first goes on.

subtest 'two DIDs, one instanceId' => sub {
    my ($at, $count, @wrong) = (0, 0);

    FIRST: while (++$at < 20) {
        my $pattern = "^\\w+ /userdb-";

        for my $stop (0 .. 5) {
            my $name = "first-$run-$at-$stop";
            push @databases, "userdb-$name";

            my %held = (hold => $proxies[0]->hold($pattern));
            my $one = write_by($slow[0], $alice, $name);
            my $seen = 0;

            while ($proxies[0]->wait_held($held{hold}, $one)
                   && ++$seen < $at)
            {
                my $next = $proxies[0]->hold($pattern);
                $proxies[0]->release($held{hold});
                $held{hold} = $next;
            }

            if ($seen < $at) {
                $proxies[0]->drop($held{hold});
                answer_of($one);
                last FIRST;
            }

            # The other one: to its request number $stop, or to the end.
            my ($two, $other);

            if ($stop == 0) {
                $two = write_by($nginx, $bob, $name);
                $other = (answer_of($two))[0];

            } else {
                my $hold = $proxies[1]->hold($pattern);
                $two = write_by($slow[1], $bob, $name);
                my $n = 0;

                while ($proxies[1]->wait_held($hold, $two) && ++$n < $stop) {
                    my $next = $proxies[1]->hold($pattern);
                    $proxies[1]->release($hold);
                    $hold = $next;
                }

                $held{two} = $hold;
            }

            $proxies[0]->release($held{hold});
            my ($first) = answer_of($one);

            if ($stop) {
                $proxies[1]->drop($held{two});
                $proxies[1]->release($held{two});
                $other = (answer_of($two))[0];
            }

            $count++;
            my $why = settled($name, "the first held at $at, the other at "
                              . ($stop || 'none'),
                              $alice => $first, $bob => $other);
            push @wrong, $why if $why;
        }
    }

    is(scalar @wrong, 0, "one has the database, the other 403 ($count times)")
        or diag(join("\n", @wrong));
    cmp_ok($count, '>=', 18, 'there was something to hold');
};


subtest 'eight of each at once' => sub {
    for my $round (1 .. 5) {
        my $name = "race-$run-$round";
        push @databases, "userdb-$name";

        my @who = ($alice, $bob) x 8;
        my @sent = map { write_by($nginx, $_, $name) } @who;
        my %seen;

        for my $i (0 .. $#sent) {
            my ($status) = answer_of($sent[$i]);
            $seen{ $who[$i] }{$status}++;
        }

        my ($one) = grep { $seen{$_}{201} } $alice, $bob;
        is_deeply([map { join ' ', sort keys %{ $seen{$_} } }
                       $one // $alice, ($one // $alice) eq $alice
                                           ? $bob : $alice],
                  [201, 403], 'all of one, none of the other')
            or diag($json->encode(\%seen));
    }
};


subtest '64 writers while there is no global' => sub {
    my $global = "userdb-no-global-$run";
    push @databases, $global;

    my $proxy = Vibe::Proxy->start(global => $global);
    my $fresh = nginx_start(http => $proxy->http_config, workers => 2);
    my ($status) = couch('GET', "/$global");
    is($status, 404, 'it is not there');

    my @who = map { did("first$_") } 1 .. 64;
    my @answers = race($fresh, map { ['POST', $posts, token($_),
        { _id => 'doc', n => 1, createdAt => 1, %public }] } @who);

    my %seen;
    $seen{ $_->[0] }++ for @answers;
    is_deeply(\%seen, { 201 => 64 }, 'each is written and mirrored')
        or diag($json->encode(\@answers));

    ($status, my $rows) = couch('POST', "/$global/_all_docs",
                                { keys => [map { gid($_, 'doc') } @who] });
    is(scalar(grep { $_->{value} && !$_->{value}{deleted} }
              @{ $rows->{rows} }), 64, '… all of them are in global');

    wait_for {
        ($status, $rows) = request($fresh, 'POST',
            "$posts/query?global=true", token($alice),
            { n => 1, sort => ['createdAt'], limit => 100 });
        $status != 503;
    } 20;
    is("$status " . @{ $rows->{docs} // [] }, '200 64', '… and found');

    $fresh->stop;
};


subtest 'CouchDB fails one of two who make the same index' => sub {
    my $couch = faulty();

    for my $status (500, 409) {
        # Which indexes are there is remembered by a worker.
        my $fresh = nginx_start(http => http_config(couchdb => $couch->{url}));

        fault($couch, path => qr{^/global/_index}, method => qr/^POST/,
              times => 1, answer => [$status, { error => 'conflict',
                                                reason => 'x' }]);
        my ($got) = request($fresh, 'POST', $posts, token($alice),
                            { _id => "index$status", %public });
        my ($found, $answer);
        wait_for {
            ($found, $answer) = request($fresh, 'POST',
                "$posts/query?global=true", token($bob),
                { _id => "index$status", sort => ['createdAt'] });
            $found != 503;
        } 10;

        is(hits($couch), 1, "$status: it came about");
        is($got, 201, "$status: the write is mirrored");
        is($found, 200, "$status: a query is answered");
        heal($couch);
        $fresh->stop;
    }
};


$_->stop for $nginx, @slow;
couch('DELETE', "/$_") for @databases;

done_testing;
