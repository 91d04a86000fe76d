# A mixed load on 64 connections: good requests and bad ones, clients that
# leave, many users on few documents.  All are answered, no worker ends, memory
# does not grow, and afterwards `global` is as the users' databases say.
#
# A few seconds by default; by hand: VIBE_LOAD_SECONDS=60 util/sanitize.sh
# t/080-load.t

use strict;
use warnings;

use HTTP::Tiny;
use IO::Socket::INET;
use JSON::PP;
use POSIX ();
use Test::More;
use Time::HiRes qw(sleep time);
use Vibe;

my $seconds = $ENV{VIBE_LOAD_SECONDS} || 5;
my $clients = 64;

# What the workers may grow by in the second half, in KB.
my $growth = ($ENV{ASAN_OPTIONS} ? 48 : 16) * 1024;

my $json = JSON::PP->new->utf8->canonical->allow_nonref;
my $nginx = nginx_start(workers => 2, level => 'error');
my $port = $nginx->port;
my @users = map { did("load$_") } 1 .. 8;
my %token = map { $_ => token($_) } @users;
my $seed = $ENV{VIBE_LOAD_SEED} || $$;

diag("seed $seed, $seconds s");


sub acl {
    my $k = int(rand(4));

    return { global => $JSON::PP::true } if $k == 0;
    return { read => { allow => [$users[rand @users]] } } if $k == 1;
    return { read => { allow => ['*'], deny => [$users[rand @users]] } }
        if $k == 2;
    return {};
}


# [method, path, body, the statuses that are right]; documents that are shared
# lie in one user's database, so that writers meet.

sub pick {
    my $shared = 'shared' . int(rand(20));
    my $doc = { createdAt => int(rand(1000)), text => 'x' x rand(300),
                acl => acl() };
    my $k = int(rand(16));

    return ['POST', 'posts', $doc, 201] if $k < 3;
    return ['POST', 'posts', { %$doc, _id => $shared }, 201] if $k < 7;
    return ['POST', 'posts', { _id => $shared, _deleted => $JSON::PP::true },
            '201|404|409'] if $k == 7;
    return ['POST', 'posts', [map { { %$doc, n => $_ } } 1 .. 20], 201]
        if $k == 8;
    return ['POST', 'posts/query', { limit => 10 }, 200] if $k == 9;
    return ['POST', 'posts/query', { global => $JSON::PP::true, limit => 10,
            sort => [{ createdAt => 'desc' }] }, 200] if $k == 10;
    return ['GET', 'posts/query?global=true', undef, 200] if $k == 11;
    return ['GET', "expand?did=$users[rand @users]&ref=$shared", undef,
            '200|404'] if $k == 12;
    return ['POST', 'posts', '{"_id":"a","_id":"b"', 400] if $k == 13;
    return ['POST', '_posts', $doc, 404] if $k == 14;
    return ['POST', 'posts/query', { a => { '$where' => 1 } }, 400];
}


# One client; sends what was wrong to its parent.

sub client {
    my ($n, $end, $out) = @_;

    srand($seed + $n);

    my $http = HTTP::Tiny->new(timeout => 60, max_redirect => 0);
    my $done = 0;

    while (time < $end) {
        my ($method, $path, $body, $right) = @{ pick() };
        my $user = $users[rand @users];

        $body = $json->encode($body) if ref $body;

        if (rand(50) < 1) {
            leave($method, $path, $body // '', $token{$user});
            next;
        }

        my $res = $http->request($method,
            "http://127.0.0.1:$port/data/$path", {
                headers => {
                    'Content-Type' => 'application/json',
                    Authorization  => "Bearer $token{$user}",
                },
                defined $body ? (content => $body) : (),
            });

        $done++;

        if ($res->{status} !~ /^(?:$right)$/
            || !eval { $json->decode($res->{content}); 1 })
        {
            my $text = substr($res->{content}, 0, 200);
            $text =~ s/\s+/ /g;
            print {$out} "$method $path: $res->{status} $text\n";
        }
    }

    print {$out} "done $done\n";
}


# Asks, and is gone before the answer.

sub leave {
    my ($method, $path, $body, $token) = @_;

    my $sock = IO::Socket::INET->new(PeerAddr => '127.0.0.1',
                                     PeerPort => $port) or return;
    print {$sock} "$method /data/$path HTTP/1.1\r\nHost: a\r\n"
        . "Authorization: Bearer $token\r\n"
        . "Content-Type: application/json\r\n"
        . 'Content-Length: ' . length($body) . "\r\n\r\n$body";
    sleep rand(0.01);
    close $sock;
}


sub memory {
    my $sum = 0;

    for my $pid ($nginx->workers) {
        $sum += $1 if read_file("/proc/$pid/status") =~ /^VmRSS:\s+(\d+)/m;
    }

    return $sum;
}


wait_for { 2 == $nginx->workers };
my @before = sort $nginx->workers;
my $end = time + $seconds;
my (@out, @pids);

for my $n (1 .. $clients) {
    pipe(my $in, my $out) or die "pipe: $!\n";
    my $pid = fork() // die "fork: $!\n";

    if ($pid == 0) {
        close $in;
        client($n, $end, $out);
        close $out;
        # Not through END blocks: those are the parent's.
        POSIX::_exit(0);
    }

    close $out;
    push @out, $in;
    push @pids, $pid;
}

sleep 0.1 while time < $end - $seconds / 2;
my $half = memory();

my ($done, @wrong) = (0);

for my $in (@out) {
    while (my $line = <$in>) {
        $line =~ /^done (\d+)/ ? $done += $1 : push @wrong, $line;
    }
}

waitpid($_, 0) for @pids;

cmp_ok($done, '>', 0, "requests were answered ($done)");
is(scalar(@wrong), 0, 'each as it should be')
    or diag(join('', @wrong[0 .. ($#wrong > 9 ? 9 : $#wrong)]));
is_deeply([sort $nginx->workers], \@before, 'no worker has ended');
my $grown = memory() - $half;
diag("memory: $half KB at half time, $grown KB more at the end");
cmp_ok($grown, '<', $growth, 'their memory has not grown');


# A write whose client has left may still be under way; then all is compared.

sub wrong_copies {
    my @bad;

    for my $user (@users) {
        my (undef, $own) = couch('GET', '/' . userdb($user)
                                 . '/_all_docs?include_docs=true');
        my %want;

        for my $row (@{ $own->{rows} // [] }) {
            my $doc = $row->{doc};
            my $read = $doc->{acl}{read};
            my $others = $doc->{acl}{global}
                || grep { $_ ne $user } @{ $read->{allow} // [] };

            $want{gid($user, $row->{id})} = $doc->{_rev}
                if $others && $row->{id} !~ /^_design/;
        }

        my $range = 'startkey=' . uri($json->encode("$user:")) . '&endkey='
                    . uri($json->encode("$user;")) . '&include_docs=true';
        my (undef, $global) = couch('GET', "/global/_all_docs?$range");
        my %have = map { $_->{id} => $_->{doc}{vibe_rev} // 'none' }
                       @{ $global->{rows} // [] };

        for my $id (keys %{ { %want, %have } }) {
            my ($want, $have) = ($want{$id} // 'none', $have{$id} // 'none');
            push @bad, "$id: $have, not $want" if $want ne $have;
        }
    }

    return @bad;
}


sub uri {
    my ($text) = @_;

    $text =~ s/([^A-Za-z0-9._~-])/sprintf('%%%02X', ord $1)/ge;
    return $text;
}


wait_for { !wrong_copies() } 10;
my @bad = wrong_copies();
is(scalar(@bad), 0, '`global` is as the databases of the users say')
    or diag(join("\n", @bad[0 .. ($#bad > 9 ? 9 : $#bad)]));

$nginx->stop;
done_testing;
