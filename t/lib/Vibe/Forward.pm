package Vibe::Forward;

# An address that leads to another one, and can be killed:
#
#     my $one = Vibe::Forward->start('127.0.0.1:5984');
#     $one->address;      # 127.0.0.1:PORT
#     $one->kill;         # -9: what went through it is cut off
#     $one->again;        # on the same port
#     $one->taken;        # how many connections it took since it began

use strict;
use warnings;

use IO::Select;
use IO::Socket::INET;
use POSIX ();
use Vibe ();
use Vibe::Couch qw(port_to_keep);


sub start {
    my ($class, $to) = @_;

    my $self = bless { to => $to, port => port_to_keep() }, $class;

    $self->again or die "cannot forward from port $self->{port}\n";
    return $self;
}


sub address { return "127.0.0.1:$_[0]{port}" }

sub taken { return -s $_[0]{count} }


sub again {
    my ($self) = @_;

    my $listen = IO::Socket::INET->new(Listen => 1024, ReuseAddr => 1,
                                       LocalAddr => '127.0.0.1',
                                       LocalPort => $self->{port}) or return;

    $self->{count} = Vibe::write_file('');
    $self->{pid} = Vibe::_fork(sub { _loop($listen, @$self{qw(to count)}) });
    close $listen;
    return 1;
}


sub kill {
    my ($self) = @_;

    CORE::kill('KILL', $self->{pid});
    waitpid($self->{pid}, 0);
}


# From here on in its own process.

sub _loop {
    my ($listen, $to, $path) = @_;

    my $parent = getppid;
    my $select = IO::Select->new($listen);
    my %other;

    open(my $count, '>>', $path) or die "$path: $!\n";
    $SIG{PIPE} = 'IGNORE';

    while (getppid == $parent) {
        for my $c ($select->can_read(1)) {

            # Closed with the other one, which was read before it.
            next if !defined fileno($c);

            if ($c == $listen) {
                my $one = $listen->accept or next;
                my $two = IO::Socket::INET->new(PeerAddr => $to);

                syswrite($count, '.');
                if (!$two) {
                    close $one;
                    next;
                }

                $select->add($one, $two);
                $other{$one} = $two;
                $other{$two} = $one;
                next;
            }

            my $peer = $other{$c};

            my $bytes = '';

            if (!sysread($c, $bytes, 65536) || !_write($peer, $bytes)) {
                $select->remove($c, $peer);
                delete @other{$c, $peer};
                close $c;
                close $peer;
            }
        }
    }
}


sub _write {
    my ($to, $bytes) = @_;

    my $sent = 0;
    while ($sent < length $bytes) {
        $sent += syswrite($to, $bytes, length $bytes, $sent) // return 0;
    }

    return 1;
}


1;
