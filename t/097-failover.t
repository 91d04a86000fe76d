# CouchDB has two addresses.  One of them goes away under load and comes back,
# then the other: nginx and libcurl go on with the one that is there.

use strict;
use warnings;

use Test::More;
use Time::HiRes qw(sleep time);
use Vibe;
use Vibe::Couch;
use Vibe::Forward;
use Vibe::Repair;
use Vibe::Writers;

my $seed = $ENV{VIBE_FAILOVER_SEED} || $$;

# Seconds: what is under way may fail so long; then no write may.
my $moments = 1;
my $again = 2;        # until nginx tries what has failed, by default 10
my $watched = $ENV{VIBE_FAILOVER_SECONDS} || 3;

# Seconds until `global` is right.
my $mending = $ENV{VIBE_STRICT} ? 15 : 45;

diag("seed $seed");

my $couch = Vibe::Couch->start;
$couch->make_default;

my @ways = map { Vibe::Forward->start('127.0.0.1:' . $couch->port) } 1 .. 2;

my $servers = join(' ', map { "server $_ fail_timeout=${again}s;" }
                            map { $_->address } @ways);
my $nginx = nginx_start(workers => 2,
                        http => repair_http(servers => $servers),
                        server => repair_server);
is_ready($nginx, $mending);

my $writers = Vibe::Writers->start(port => $nginx->port, clients => 8,
                                   seed => $seed);


# Until so many more writes are settled.

sub more {
    my ($n) = @_;

    my $end = $writers->done + $n;
    return wait_for { $writers->done >= $end } 20;
}


# Time passes under load: what happens then is looked at in the end.

sub watch {
    my ($seconds) = @_;

    my $end = time + $seconds;
    wait_for { $writers->done; time > $end } $seconds + 1;
}


my @quiet;

ok(more(50), 'clients write');
cmp_ok($_->taken, '>', 0, 'through an address') for @ways;

for my $n (0, 1) {
    my $name = ('one', 'the other')[$n];

    $ways[$n]->kill;
    my $killed = time;

    watch($moments);
    my $began = time;
    watch($watched);
    push @quiet, [$began, time, "$name is gone"];
    ok(more(50), "with $name gone, clients write");

    ok($ways[$n]->again, "$name is back");

    # Each worker finds out for itself: until then the other one must stay.
    watch($again + 0.5);
    cmp_ok($ways[$n]->taken, '>', 0, '… and used again');
}

ok($writers->stop(60), 'all clients are done');
my $count = $writers->count;
diag(join(', ', map { "$count->{$_} $_" } sort keys %$count));
is_few([$writers->complaints], '… and saw what they should');

for my $quiet (@quiet) {
    my ($from, $to, $name) = @$quiet;
    my @tries = grep { $_->{at} > $from && $_->{at} < $to } $writers->tries;
    my @failed = grep { $_->{what} !~ /^(?:20[012]|404|409)$/ } @tries;

    cmp_ok(scalar(@tries), '>', 0, "writes while $name");
    is_few([map { sprintf('%.3f s after: %s: %s',
                          $_->{at} - $from + $moments, @$_{qw(path what)}) }
            @failed],
           "… all done, from $moments s after on");
}

is_few([grep { !/^(?:\d{3})$/ } map { $_->{what} } $writers->tries],
       'each try is answered');
is_right($nginx, $mending);
is_few([$writers->lost], 'nothing acknowledged is lost');
is_few([$writers->misread], 'readers see just what they may');

$nginx->stop;
$_->kill for @ways;
$couch->kill;

done_testing;
