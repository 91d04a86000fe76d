# Workers, the whole nginx and CouchDB are killed (-9) at random moments while
# 16 clients write, and started again.  In the end nothing that was acknowledged
# is lost, `global` is soon as the users' databases say, and nobody reads what
# was withdrawn.
#
# 1,000 writes by default, or VIBE_CRASH_WRITES; with VIBE_CRASH_LONG=1 2,000
# with more kills, under three seeds.  VIBE_CRASH_SEED repeats what was done and
# when, as counted in writes.
#
# The CouchDB is always an embedded one of its own, as it gets killed.

use strict;
use warnings;

use Test::More;
use Time::HiRes qw(sleep time);
use Vibe;
use Vibe::Couch qw(port_to_keep);
use Vibe::Repair;
use Vibe::Writers;

my $long = $ENV{VIBE_CRASH_LONG};
my $writes = $ENV{VIBE_CRASH_WRITES} || ($long ? 2000 : $ENV{VIBE_SHORT} ? 500 : 1000);
my $first = $ENV{VIBE_CRASH_SEED} || $$;

# How often each gets killed.
my %kills = $long ? (worker => 8, nginx => 5, couch => 5)
                  : (worker => 4, nginx => 3, couch => 3);

# Seconds: for all writes, and until `global` is right after that.
my $patience = $long ? 600 : 150;
my $mending = $ENV{VIBE_STRICT} ? 15 : 45;


# What is done when so many writes are: [number, what], in order.

sub plan_kills {
    my @all = map { my $what = $_; map { $what } 1 .. $kills{$what} }
                  sort keys %kills;

    # Shuffled, with the same seed always the same way.
    for my $i (reverse 1 .. $#all) {
        my $k = int(rand($i + 1));
        @all[$i, $k] = @all[$k, $i];
    }

    my $step = $writes / (@all + 1);
    return map { [int($step * ($_ + 0.5 + rand())), $all[$_]] } 0 .. $#all;
}


# The moment within a write is anybody's guess.

sub kill_some {
    my ($what, $nginx, $couch) = @_;

    sleep rand(0.02);

    if ($what eq 'worker') {
        my @workers = $nginx->workers or return 'no worker is left';
        my $pid = $workers[rand @workers];

        kill('KILL', $pid);
        return if wait_for { !grep({ $_ == $pid } $nginx->workers)
                             && $nginx->workers >= 2 };
        return 'no new worker came';
    }

    if ($what eq 'nginx') {
        $nginx->crash;
        return $nginx->again ? undef : 'nginx did not start again';
    }

    $couch->kill;

    # Sometimes nginx, too, begins with no CouchDB there.
    my $why = rand(2) < 1 ? kill_some(rand(2) < 1 ? 'worker' : 'nginx', $nginx)
                          : undef;
    sleep rand(0.5);
    return $couch->again ? $why : 'CouchDB did not start again';
}


sub crash {
    my ($seed) = @_;

    srand($seed);

    my $couch = Vibe::Couch->start;
    $couch->make_default;

    my $nginx = nginx_start(workers => 2, level => 'info',
        port => port_to_keep(), http => repair_http, server => repair_server,
        expected => qr/exited on signal 9|zone .* was locked by/);
    is_ready($nginx, $mending) or return;

    my $writers = Vibe::Writers->start(port => $nginx->port, seed => $seed,
                                       writes => $writes,
                                       patience => $patience);
    my $end = time + $patience;
    my @why;

    for my $kill (plan_kills()) {
        my ($at, $what) = @$kill;

        wait_for { $writers->done >= $at || !$writers->running } $end - time;
        my $why = kill_some($what, $nginx, $couch);
        push @why, "after $at writes: $why" if $why;
    }

    is_deeply(\@why, [], 'what was killed came back');
    ok($writers->wait($end - time), "all clients are done in $patience s");

    my $count = $writers->count;
    diag($writers->looked, ' looked at; ',
         join(', ', map { "$count->{$_} $_" } sort keys %$count), '; ',
         int(time - $end + $patience), ' s');
    cmp_ok($count->{acked} + $count->{pending} + $count->{refused}, '>=',
           $writes, 'each write is answered in the end');
    cmp_ok($writers->looked, '>', 0, '… and looked at by readers at times');
    is_few([$writers->complaints], 'clients saw what they should on their way');

    is_right($nginx, $mending);
    is_ready($nginx, $mending);
    is_few([$writers->lost], 'nothing acknowledged is lost');
    is_few([$writers->misread], 'readers see just what they may');

    $nginx->stop;
    $couch->kill;
}


for my $seed ($first .. $first + ($long ? 2 : 0)) {
    subtest "seed $seed" => sub {
        diag("seed $seed, $writes writes");
        crash($seed);
    };
}

done_testing;
