# The background work has one owner: one host, by the lease document in
# CouchDB, and one worker of it.  If it dies, stops or is reloaded, another
# takes over; and while there is nothing to do, CouchDB is left alone.
#
# The short form is quiet with 100 databases for 8 s; VIBE_LONG=1 with 1,000
# for 20 s.

use strict;
use warnings;

use IO::Socket::INET;
use JSON::PP;
use Test::More;
use Time::HiRes qw(sleep time);
use Vibe;
use Vibe::Couch;
use Vibe::Mend;
use Vibe::Tap;

my $json = JSON::PP->new->utf8->canonical->allow_nonref;
my $true = JSON::PP::true;
my %public = (acl => { global => $true });
my $term = 2;
my $lease = "vibe_lease ${term}s;";

Vibe::Couch->start->make_default;

my $alice = did('alice');
my $db = make_db($alice);
my $n = 0;


# Something past the module, and that it is mirrored.

sub followed {
    my ($name, $nginx, $seconds) = @_;

    edit($db, 'doc' . $n++ % 5, { collection => 'posts', v => $n,
                                  $n % 3 ? %public : () });
    return converges($db, $alice, $seconds // 5, $name, $nginx);
}


sub leads {
    my ($nginx) = @_;

    return status($nginx)->{lease}{leading} ? 1 : 0;
}


sub worker {
    my ($nginx) = @_;

    return status($nginx)->{lease}{worker} // 0;
}


# watch($seconds, @nginx): who led meanwhile, as the set of what was seen, e.g.
# '01 10'; asked twice, so that a change between two questions is no lie.

sub watch {
    my ($seconds, @nginx) = @_;

    my $end = time + $seconds;
    my %seen;

    while (time < $end) {
        my $first = join('', map { leads($_) } @nginx);
        my $then = join('', map { leads($_) } @nginx);
        $seen{$first}++ if $first eq $then;
        sleep 0.05;
    }

    return join(' ', sort keys %seen);
}


# one_leads($seconds, @nginx): waits until exactly one does; returns it and the
# other.

sub one_leads {
    my ($seconds, @nginx) = @_;

    my @leaders;
    wait_for {
        @leaders = grep { leads($_) } @nginx;
        @leaders == 1 || do { sleep 0.05; 0 };
    } patience($seconds);

    return if @leaders != 1;
    return ($leaders[0], grep { $_ != $leaders[0] } @nginx);
}


sub processes { return ($_[0]->pid, $_[0]->workers) }


my @hosts = map { repairing(workers => 2, directives => $lease) } 1 .. 2;
my ($leader, $other) = one_leads(10, @hosts);

ok($leader, 'of two hosts one leads') or diag(explain(map { status($_) } @hosts));

SKIP: {
    skip('nobody leads', 1) if !$leader;

    subtest 'two hosts' => sub {
        settled($leader);
        is(watch(2 * $term, $leader, $other), '10',
           'it goes on leading, alone');

        # Without a client's asking: a load balancer sends none before.
        my $ready = wait_for {
            (request($other, 'GET', '/vibe/status?ready'))[0] == 200;
        } patience(10);
        ok($ready, 'the other one knows that global is complete');

        my ($mine, $its) = map { status($_)->{lease} } $leader, $other;
        ok(length($mine->{host} // ''), 'status says who leads');
        is($its->{host}, $mine->{host}, '… and both say the same');
        ok(scalar(grep { $_ == $mine->{worker} } $leader->workers),
           'it is a worker of its own');

        my ($status, $doc) = couch('GET', '/vibe_state/lease');
        is($status, 200, 'there is the lease document');
        ($status, my $security) = couch('GET', '/vibe_state/_security');
        is_deeply($security->{members}{roles}, ['_admin'],
                  '… in a database for admins only');
        followed('what comes past the module is mirrored', $leader);
    };


    subtest 'the leader is killed' => sub {
        my $dead = $leader;
        kill_nginx($dead);
        my $begin = time;
        my ($new) = one_leads(10, $other);
        my $took = time - $begin;

        ok($new, 'the other takes over') or return;
        cmp_ok($took, '<', patience(2 * $term + 0.5),
               sprintf('… within two terms (%.1f s)', $took));
        followed('… and does the work', $other);

        # It comes back, as another nginx: with a zone of its own.
        $leader = $other;
        $other = repairing(workers => 2, directives => $lease);
        is(watch(2.5 * $term, $leader, $other), '10',
           'who comes back does not steal');
        followed('one does the work', $leader);
    };


    subtest 'the leader sleeps longer than its term' => sub {
        my @asleep = processes($leader);
        edit($db, "sleep$_", { collection => 'posts', v => 1, %public })
            for 1 .. 20;
        kill('STOP', @asleep);

        my ($new) = one_leads(10, $other);
        ok($new, 'the other takes over');
        edit($db, "sleep$_", { collection => 'posts', v => 2,
                               $_ % 2 ? %public : () }) for 1 .. 20;
        followed('… and does the work', $other);

        kill('CONT', reverse @asleep);
        my $awake = wait_for { status($leader)->{lease} && !leads($leader) };
        ok($awake, 'it wakes up, and leads no more');
        is(watch(1.5 * $term, $leader, $other), '01', 'one leads');
        converges($db, $alice, 5, 'global is right', $other);
        followed('… and stays so', $other);
        ($leader, $other) = ($other, $leader);
    };


    subtest 'the worker that leads is killed' => sub {
        for my $turn (1 .. 2) {
            my $old = worker($leader);
            ok(scalar(grep { $_ == $old } $leader->workers),
               "turn $turn: a worker has it") or return;
            kill('KILL', $old);

            my $new;
            wait_for {
                $new = worker($leader);
                $new && $new != $old && leads($leader)
                    && grep { $_ == $new } $leader->workers;
            } patience(8);
            isnt($new, $old, 'another worker takes it') or diag(explain(
                status($leader)));
            followed('… and does the work', $leader);
        }
        is(watch(0.5, $leader, $other), '10', 'the host still leads');
    };


    subtest 'reload' => sub {
        my $old = worker($leader);

        # A client that keeps the old workers: half a request, to each.
        my @clients = map { half_a_request($leader) } 1 .. 12;
        my %old = map { $_ => 1 } $leader->workers;

        ok($leader->reload, 'there are new workers');
        my $new;
        wait_for {
            $new = worker($leader);
            $new && !$old{$new} && leads($leader);
        } patience(8);
        ok($new && !$old{$new}, 'one of the new ones owns the work')
            or diag(explain(status($leader)));
        ok(scalar(grep { kill(0, $_) } keys %old),
           '… while an old one is still there');
        followed('… and does it', $leader);

        my %seen;
        my $end = time + 1;
        $seen{ worker($leader) }++ while time < $end;
        is(join(' ', keys %seen), $new, 'it stays with that one');

        close $_ for @clients;
        my $ended = wait_for { !grep { kill(0, $_) } keys %old } patience(10);
        ok($ended, 'the old ones end');
        is(watch(0.5, $leader, $other), '10', 'the host leads all the time');

        # Some in a row, as a script that reloads would.
        $leader->reload for 1 .. 3;
        followed('and after some more', $leader, 8);
        ok(one_leads(5, $leader, $other), 'one leads');
    };


    subtest 'the leader is stopped' => sub {
        my $begin = time;
        end_nginx($leader, qr/exited on signal 9/);
        my ($new) = one_leads(10, $other);
        my $took = time - $begin;
        ok($new, 'the other takes over');
        cmp_ok($took, '<', patience(2 * $term + 0.5),
               sprintf('… within two terms (%.1f s)', $took));
        followed('… and does the work', $other);
        end_nginx($other, qr/exited on signal 9/);
    };
}


sub half_a_request {
    my ($nginx) = @_;

    my $sock = IO::Socket::INET->new(PeerAddr => '127.0.0.1',
                                     PeerPort => $nginx->port)
        or die "connect: $@\n";
    print {$sock} "POST /data/posts HTTP/1.1\r\nHost: a\r\n"
        . 'Authorization: Bearer ' . token($alice) . "\r\n"
        . "Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{";
    $sock->flush;
    return $sock;
}


# ---- how much CouchDB is asked ----------------------------------------------

subtest 'without vibe_zone' => sub {
    my $tap = Vibe::Tap->start;
    my $nginx = nginx_start(workers => 2, http => $tap->http_config);

    sleep 3;
    is_deeply([map { "$_->{method} $_->{path}" } $tap->asked], [],
              'CouchDB is not asked for anything');

    edit($db, 'unseen', { collection => 'posts', %public });
    my ($status) = request($nginx, 'POST', '/data/posts', token($alice),
                           { _id => 'seen', %public });
    is($status, 201, 'a write is mirrored');
    $tap->asked;
    sleep 1;
    is_deeply([map { "$_->{method} $_->{path}" } $tap->asked], [],
              'after a request there is nothing more');
    is(stored('global', gid($alice, 'unseen')), undef,
       'what comes past the module is not looked for');
    $nginx->stop;
};


subtest 'quiet' => sub {
    my ($databases, $seconds) = $ENV{VIBE_LONG} ? (1000, 20) : (100, 8);
    my $tap = Vibe::Tap->start;

    for my $i (1 .. $databases) {
        my $name = make_db(did("quiet$i"));
        couch('POST', "/$name/_bulk_docs", { docs => [
            { _id => 'doc', collection => 'posts', %public }] });
    }

    # By default: no directives but vibe_zone.
    my $nginx = repairing(workers => 2, tap => $tap);
    settled($nginx, 60);

    # What it has written itself is still coming back to it.
    my $last = time;
    my $calm = wait_for {
        $last = time if grep { $_->{path} !~ m{^/vibe_state} } $tap->asked;
        time - $last > 2;
    } patience(20);
    ok($calm, 'it comes to rest');

    $tap->asked;
    sleep $seconds;
    my @asked = map { "$_->{method} $_->{path}" } $tap->asked;
    cmp_ok(scalar @asked, '<', $seconds,
           'fewer than one request a second (' . @asked . " in $seconds s)")
        or diag(join("\n", @asked));
    my @users = grep { m{ /userdb-} } @asked;
    is(scalar @users, 0, 'no user\'s database is asked');

    followed('it is still awake', $nginx);
    $nginx->stop;
};


done_testing;
