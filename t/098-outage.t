# CouchDB is gone for some seconds under load, once killed and once standing
# still with its connections open.  Each write is answered in time, the workers'
# memory stays as it was, and all is well again by itself.
#
# It is gone for longer than the lease holds, so that repair begins again, too.
#
# VIBE_OUTAGE_SECONDS=60 for a longer one.

use strict;
use warnings;

use Test::More;
use Time::HiRes qw(sleep time);
use Vibe;
use Vibe::Couch;
use Vibe::Repair;
use Vibe::Writers;

my $seed = $ENV{VIBE_OUTAGE_SEED} || $$;
my $seconds = $ENV{VIBE_OUTAGE_SECONDS} || 5;

# Seconds: vibe_couchdb.conf's timeouts here; how long an answer may take, which
# may need several requests; and until all is well.
my $timeout = 2;
my $answer = 3 * $timeout + 2;
my $mending = $ENV{VIBE_STRICT} ? 15 : 45;

# What the workers may grow by, in KB.  The address sanitizer holds back what is
# freed (quarantine_size_mb, for each of them) and puts zones around the rest.
my $growth = ($ENV{ASAN_OPTIONS} ? 96 : 16) * 1024;

diag("seed $seed, $seconds s");


sub memory_of { return memory($_[0]->workers) }


# Until so many more writes are acknowledged.

sub acked {
    my ($writers, $n) = @_;

    my $sum = sub {
        my $count = $writers->count;
        return $count->{acked} + $count->{pending};
    };
    my $end = $sum->() + $n;

    return wait_for { $sum->() >= $end } $mending;
}


sub outage {
    my ($begin, $end, $statuses) = @_;

    my $couch = Vibe::Couch->start;
    $couch->make_default;

    my $nginx = nginx_start(workers => 2,
        http => repair_http(extra => "vibe_timeout ${timeout}s;"
                                     . ' vibe_lease 2s;'),
        server => repair_server(map { ("proxy_${_}_timeout" => "${timeout}s") }
                                    qw(connect send read)));
    is_ready($nginx, $mending);

    my $writers = Vibe::Writers->start(port => $nginx->port, seed => $seed,
                                       patience => $seconds + 60);

    ok(acked($writers, 200), 'clients write');
    my @workers = sort $nginx->workers;
    my $before = memory_of($nginx);

    $begin->($couch);
    my $from = time;
    wait_for { $writers->done; time > $from + $seconds } $seconds + 1;
    my $during = memory_of($nginx);
    my $to = time;
    ok($end->($couch), 'CouchDB is back');

    ok(acked($writers, 200), 'clients write again');
    diag(sprintf('%.1f s after it is back', time - $to));

    ok($writers->stop(60), 'all clients are done');
    my $count = $writers->count;
    diag(join(', ', map { "$count->{$_} $_" } sort keys %$count));
    is_few([$writers->complaints], '… and saw what they should');

    my @tries = $writers->tries;
    my @failed = grep { $_->{what} !~ /^(?:20[012]|404|409)$/ } @tries;
    my ($slowest) = sort { $b <=> $a } map { $_->{took} } @tries;
    diag(sprintf('the slowest took %.1f s', $slowest));

    cmp_ok(scalar(@failed), '>', 0, 'writes failed meanwhile');
    is_few([map { "$_->{path}: $_->{what}" }
            grep { $_->{what} !~ /^(?:$statuses)$/ } @failed],
           "… with $statuses each");
    is_few([grep { !defined $_->{again} } grep { $_->{what} eq '503' } @failed],
           '… 503 with Retry-After');
    cmp_ok($slowest, '<', $answer, "each is answered within $answer s");

    is_right($nginx, $mending);

    # Also its counts: what it takes for work under way keeps other work out.
    my $due = -1;
    wait_for { $due = (status($nginx) // {})->{repair}{databases_due} // -1;
               $due == 0 } $mending;
    is($due, 0, 'repair has nothing left to do');

    is_few([$writers->lost], 'nothing acknowledged is lost');
    is_few([$writers->misread], 'readers see just what they may');

    is_deeply([sort $nginx->workers], \@workers, 'no worker has ended');
    my $after = memory_of($nginx);
    diag("memory: $before KB before, $during KB meanwhile, $after KB after");
    cmp_ok($_ - $before, '<', $growth, 'memory has not grown')
        for $during, $after;

    $nginx->stop;
    $couch->kill;
}


subtest 'killed' => sub {
    outage(sub { $_[0]->kill }, sub { $_[0]->again }, '50[23]');
};

subtest 'standing still' => sub {
    outage(sub { $_[0]->freeze }, sub { $_[0]->thaw }, '504');
};

done_testing;
