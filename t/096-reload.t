# nginx is reloaded under load, many times, and its binary upgraded.  No request
# is lost, no worker stays behind, and the background work has one owner, which
# is a worker of the newest generation.
#
# A client may try again what it sent on a connection that nginx closed before
# it read any of that; all else must be answered.

use strict;
use warnings;

use JSON::PP ();
use Test::More;
use Time::HiRes qw(sleep time);
use Vibe;
use Vibe::Couch;
use Vibe::Proxy;
use Vibe::Race;
use Vibe::Repair;
use Vibe::Writers;

my $seed = $ENV{VIBE_RELOAD_SEED} || $$;
my $reloads = $ENV{VIBE_RELOADS} || ($ENV{VIBE_SHORT} ? 8 : 20);

# Seconds: until an old worker has ended, and a new one owns the lease.
my $leaving = 30;
my $owning = $ENV{VIBE_STRICT} ? 10 : 30;
my $mending = $ENV{VIBE_STRICT} ? 15 : 45;

diag("seed $seed");

my $couch = Vibe::Couch->start;
$couch->make_default;

# A request is read with one call, so that it was read whole or not at all.
my $nginx = nginx_start(workers => 2, upgradable => 1, server => repair_server,
    http => repair_http(extra => 'client_header_buffer_size 64k;'));
my $writers;
my %seen;       # each worker that there was, and when it began


sub remember {
    $seen{$_} //= began_at($_) for $nginx->workers;
}


# Who owns the lease; 0: nobody, undef: no answer.

sub owner {
    my $status = status($_[0] // $nginx) // return;
    return $status->{lease}{worker} // 0;
}


# Until so many more writes are settled.

sub more {
    my ($n) = @_;

    my $end = $writers->done + $n;
    return wait_for { $writers->done >= $end } 20;
}


sub owned_by_new {
    my ($name) = @_;

    my $owner;
    my $ok = wait_for {
        $writers->done if $writers;
        $owner = owner() // -1;
        return grep { $_ == $owner } $nginx->workers;
    } $owning;

    ok($ok, "$name: a worker that was just made owns the lease")
        or diag("$owner, workers: ", join(' ', $nginx->workers));
}


# The open files of a worker that are no TCP connections.

sub files {
    my ($pid) = @_;

    my %tcp = map { (split)[9] => 1 }
                  split /\n/, read_file("/proc/$pid/net/tcp");
    my @all = map { readlink($_) // () } glob("/proc/$pid/fd/*");

    return [sort grep { !/^socket:\[(\d+)\]$/ || !$tcp{$1} } @all];
}


sub most_files {
    my ($most) = sort { @$b <=> @$a } map { files($_) } $nginx->workers;
    return $most;
}


remember();
is_ready($nginx, $mending);
owned_by_new('before');

$writers = Vibe::Writers->start(port => $nginx->port, clients => 8,
                                seed => $seed, look => 1);
more(50);

# nginx itself closes what a worker got from its master a moment later.
$nginx->reload;
my $files = most_files();
my @odd;

for my $n (1 .. $reloads) {
    my %old = map { $_ => 1 } $nginx->workers;

    $nginx->reload;
    wait_for { 2 <= grep { !$old{$_} } $nginx->workers };
    remember();

    push @odd, "reload $n: clients write no more" if !more($owning);

    my $owner = owner();
    remember();
    push @odd, "reload $n: no status" if !defined $owner;
    push @odd, "reload $n: the lease is with $owner, no worker of ours"
        if $owner && !$seen{$owner};
}

is_few(\@odd, "$reloads reloads, and always one owner of the lease");

ok(scalar(wait_for { $writers->done; 2 == $nginx->workers } $leaving),
   "no worker of an old generation is left after $leaving s")
    or diag(join(' ', $nginx->workers));
owned_by_new('after the reloads');


my $master = $nginx->upgrade;

ok($master, 'a new master has workers') or die "no new master\n";
remember();
ok(more(20), '… and clients write');

# Without a daemon there is no WINCH: the old one goes at once.
kill('QUIT', $master);
ok(scalar(wait_for { $writers->done; $nginx->ended($master) } $leaving),
   'the old one ends');
ok(more(20), '… and clients write');
owned_by_new('after the upgrade');

ok($writers->stop(60), 'all clients are done');
my $count = $writers->count;
my @tries = $writers->tries;
diag(join(', ', map { "$count->{$_} $_" } sort keys %$count), ', ',
     scalar(grep { $_->{what} eq 'unread' } @tries), ' unread of ',
     scalar(@tries));

is_few([$writers->complaints], '… and saw what they should');
is_few([map { sprintf('%s: %s after %.3f s', @$_{qw(path what took)}) }
        grep { $_->{what} !~ /^(?:20[012]|404|409|unread)$/ } @tries],
       'each request that nginx had begun to read is answered');

my %now = map { $_ => 1 } $nginx->workers;
is_few([grep { !$now{$_} && is_alive($_, $seen{$_}) } keys %seen],
       'no worker of an old generation is alive');

my $more = most_files();
cmp_ok(scalar(@$more), '<=', @$files + 2, 'open files have not grown')
    or diag(join("\n", 'before:', @$files, 'after:', @$more));

is_right($nginx, $mending);
is_few([$writers->lost], 'nothing acknowledged is lost');
is_few([$writers->misread], 'readers see just what they may');

$nginx->stop;


# A worker that is to quit has nothing left but a mirror that CouchDB is slow
# with: the client that waits for it gets its answer.

subtest 'a mirror is under way' => sub {
    my $proxy = Vibe::Proxy->start;
    my $nginx = nginx_start(workers => 1, server => repair_server,
        http => repair_http(couchdb => $proxy->url,
                            credentials => $couch->auth));
    is_ready($nginx, $mending);

    my $alice = did('slow');
    my ($old) = $nginx->workers;
    my $hold = $proxy->hold("^POST /global/_bulk_docs\\S* .*$alice");
    my $one = send_request($nginx, 'POST', '/data/posts', token($alice),
        { _id => 'doc', acl => { global => JSON::PP::true } });

    ok($proxy->wait_held($hold), 'a copy is on its way to global');
    ok($nginx->reload, 'nginx is reloaded');
    ok(scalar(wait_for { $nginx->log =~ / $old#.*gracefully shutting down/ }),
       'the worker is to quit');
    ok(scalar(wait_for {
           my $owner = owner($nginx);
           return $owner && $owner != $old;
       } $owning),
       '… and another one owns the lease');
    ok(is_alive($old), '… while it waits');

    $proxy->release($hold);
    my ($status, $data) = answer_of($one);
    is($status, 201, 'the client is answered');
    is($data->{global}, gid($alice, 'doc'), '… and told of the copy');
    ok(scalar(wait_for { !is_alive($old) } $leaving), 'the worker has ended');

    $nginx->stop;
};

$couch->kill;

done_testing;
