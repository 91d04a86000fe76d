package Vibe::Couch;

# An embedded CouchDB of a test's own, which it may kill, stop and start again:
#
#     my $couch = Vibe::Couch->start;
#     $couch->make_default;
#
#     $couch->kill;       # -9; what it had acknowledged is kept
#     $couch->again;      # on the same port, with the same data
#     $couch->freeze;     # it takes connections and says nothing ...
#     $couch->thaw;       # ... till then
#
# It ends with the test.  port_to_keep() is a port that nobody takes while
# nothing listens there: it is none of those that the system gives away.

use strict;
use warnings;

use Cwd qw(abs_path);
use Exporter qw(import);
use File::Basename qw(dirname);
use File::Temp qw(tempdir);
use IO::Socket::INET;
use POSIX ();
use Time::HiRes qw(sleep time);
use Vibe ();

our @EXPORT_OK = qw(port_to_keep);

my $root = abs_path(dirname(__FILE__) . '/../../..');
my $owner = $$;
my @running;


sub start {
    my ($class) = @_;

    # Where a real CouchDB is tested, nobody has needed its packages yet.
    system('bash', '-c', '. "$0/util/setup.sh"; need couch', $root) == 0
        or die "the embedded CouchDB cannot be started\n";

    my $dir = tempdir('couch-XXXXXX', DIR => Vibe::dir());
    my $self = bless {
        dir => "$dir/data", output => "$dir/log",
        auth => 'admin:' . join('', map { int(rand(10)) } 1 .. 20),
    }, $class;

    # Someone else may take the port between the search for it and its use.
    for my $try (1 .. 3) {
        $self->{port} = port_to_keep();
        return $self if $self->again;
    }

    die "the embedded CouchDB did not start:\n" . $self->log;
}


sub port { return $_[0]{port} }

sub pid { return $_[0]{pid} }

# url(): with user and password, as in VIBE_COUCHDB_URL.

sub url { return "http://$_[0]{auth}\@127.0.0.1:$_[0]{port}" }

sub auth { return $_[0]{auth} }

sub log { return Vibe::read_file($_[0]{output}) }

# make_default(): couch(), http_config() and so on mean this one from now on.

sub make_default { return $ENV{VIBE_COUCHDB_URL} = $_[0]->url }


# again(): starts it; true when it answers.

sub again {
    my ($self) = @_;

    # What the one before has said is not said by this one.
    unlink $self->{output};

    my $pid = fork // die "fork: $!\n";

    if ($pid == 0) {
        $SIG{$_} = 'DEFAULT' for qw(INT TERM HUP);
        $ENV{COUCH_ADMIN} = $self->{auth};
        open(STDIN, '<', '/dev/null');
        open(STDOUT, '>', $self->{output});
        open(STDERR, '>&', \*STDOUT);

        # It ends with the test, even if that gets killed.
        exec('setpriv', '--pdeathsig', 'KILL', '--',
             'node', "$root/util/couch/server.js", '--host', '127.0.0.1',
             '--port', $self->{port}, '--dir', $self->{dir})
            or POSIX::_exit(1);
    }

    $self->{pid} = $pid;
    push @running, $self;

    my $ready = Vibe::wait_for {
        return -1 if waitpid($pid, POSIX::WNOHANG) != 0;
        return $self->log =~ /^ready on /m;
    } 30;

    return 1 if $ready && $ready == 1;
    $self->kill;
    return 0;
}


sub kill {
    my ($self) = @_;

    my $pid = delete $self->{pid} // return;

    CORE::kill('KILL', $pid);
    waitpid($pid, 0);
    @running = grep { $_ != $self } @running;
    return 1;
}


sub freeze { return CORE::kill('STOP', $_[0]{pid}) }

sub thaw { return CORE::kill('CONT', $_[0]{pid}) }


sub port_to_keep {
    my ($low) = Vibe::read_file('/proc/sys/net/ipv4/ip_local_port_range')
                =~ /^(\d+)/;

    $low = 20000 if !$low || $low < 20000;

    for my $try (1 .. 100) {
        my $port = $low - 1 - int(rand(10000));

        return $port if IO::Socket::INET->new(Listen => 1, ReuseAddr => 1,
                                              LocalAddr => '127.0.0.1',
                                              LocalPort => $port);
    }

    die "no port is free\n";
}


END {
    if ($$ == $owner) {
        local $?;
        $_->kill for @running;
    }
}


1;
