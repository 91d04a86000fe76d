# What is asked of the embedded CouchDB alone: how it starts, and that nobody
# can bring it to a stand.

use strict;
use warnings;

use Cwd qw(abs_path);
use File::Basename qw(dirname);
use JSON::PP;
use POSIX ();
use Test::More;
use Time::HiRes qw(time);
use Vibe;

my $server = abs_path(dirname(__FILE__)) . '/../util/couch/server.js';


# run_server(@arguments): whether it ended within 10 s, how, and what it said.

sub run_server {
    my (@arguments) = @_;

    my $said = write_file('');
    my $pid = fork // die "fork: $!\n";

    if (!$pid) {
        $ENV{COUCH_ADMIN} = 'admin:secret';
        open(STDOUT, '>', $said) or POSIX::_exit(1);
        open(STDERR, '>&', \*STDOUT) or POSIX::_exit(1);
        exec('node', $server, '--port', 0, @arguments) or POSIX::_exit(1);
    }

    my $status;
    my $ended = wait_for {
        return if waitpid($pid, POSIX::WNOHANG) == 0;
        $status = $?;
        return 1;
    };

    if (!$ended) {
        kill('KILL', $pid);
        waitpid($pid, 0);
    }

    return ($ended, $status, read_file($said));
}


subtest 'a directory that cannot be made' => sub {
    for my $dir ('/proc/nope/x', '/proc/nope/x/y/z', '/proc', '/dev/null/x',
                 write_file('a file'))
    {
        my ($ended, $status, $said) = run_server('--dir', $dir);

        ok($ended, "$dir: it ends") or next;
        is($status >> 8, 1, "$dir: with an error");
        like($said, qr/\Avibe-embedded-couch: [^\n]*\Q$dir\E[^\n]*\n\z/,
             "$dir: and one line that says so");
    }
};


subtest 'a $regex that would take for ever' => sub {
    my ($status, $welcome) = couch('GET', '/');
    my $vendor = ref $welcome->{vendor} ? $welcome->{vendor}{name} // '' : '';

    # A real one has limits of PCRE's, which it takes seconds to reach.
    plan(skip_all => "this is no embedded CouchDB, but that of $vendor")
        if $vendor !~ /^vibe embedded/;

    my $nginx = nginx_start(server =>
        server_config(proxy_read_timeout => '20s'));
    my $token = token(did('regex'));

    ($status) = request($nginx, 'POST', '/data/posts', $token,
        [map { { _id => "r$_", k => 'a' x 40 . "!$_" } } 1 .. 20]);
    is($status, 201, 'there are documents');

    my $begin = time;
    ($status) = request($nginx, 'POST', '/data/posts/query', $token,
                        { k => { '$regex' => '^(a+)+$' } });
    ok($status >= 400 && $status < 600, 'it is given up') or diag($status);
    cmp_ok(time - $begin, '<', 15, '… soon');

    $begin = time;
    ($status, my $answer) = request($nginx, 'POST', '/data/posts/query',
                                    $token, { k => { '$regex' => '^a+!7$' } });
    is("$status " . @{ $answer->{docs} // [] }, '200 1', 'others are answered');
    cmp_ok(time - $begin, '<', 5, '… at once');

    $nginx->stop;
};


done_testing;
