package Server;

# What stands in for CouchDB in t/090-couch-client.t: says by its path what an
# answer is to be like, counts connections, writes late and in pieces.
#
#     my $server = Server->start(port => 0, unix => PATH, feeds => { ... });
#     $server->port; $server->address; $server->stop;
#     $server->stats      { connections, open, busiest, paths => { ... } }
#     $server->forget     begins to count anew
#
# The paths:
#
#     /ok, /ok/...        200 {"ok":true}
#     /echo               what was asked: method, path, header, length, md5
#     /bytes/N            N bytes; /chunked/N: in chunks, in pieces
#     /delay/MS           as /ok, after that time
#     /status/N           that status
#     /hang               nothing
#     /drop               closed; /drop/KEY: the first time
#     /reset/KEY          reset, the first time
#     /part               part of a status line, closed
#     /half               half a body, closed
#     /headers            only headers, of a chunked answer, closed
#     /garbage            what is not HTTP
#     /poison             as /ok; the next request on that connection ends it
#     /feed/NAME          [text|milliseconds|'end'|'cut', ...], chunked

use strict;
use warnings;

use Digest::MD5 qw(md5_hex);
use HTTP::Tiny;
use IO::Select;
use IO::Socket::INET;
use IO::Socket::UNIX;
use JSON::PP;
use Socket qw(SOL_SOCKET SO_LINGER);
use Time::HiRes qw(time);
use Vibe ();

my $json = JSON::PP->new->utf8->canonical->allow_nonref;


sub start {
    my ($class, %opt) = @_;

    my @listen = IO::Socket::INET->new(
        Listen => 1024, ReuseAddr => 1, LocalAddr => '127.0.0.1',
        LocalPort => $opt{port} // 0) or die "server: $@\n";

    if ($opt{unix}) {
        push @listen, IO::Socket::UNIX->new(Listen => 1024,
                                            Local => $opt{unix})
            || die "server: $@\n";
    }

    my $self = bless { port => $listen[0]->sockport }, $class;

    $self->{pid} = Vibe::_fork(sub {
        $SIG{PIPE} = 'IGNORE';
        _loop({ feeds => $opt{feeds} // {}, select => IO::Select->new(@listen),
                listen => { map { $_ => 1 } @listen }, c => {}, later => [],
                writing => IO::Select->new, _counts() });
    });

    return $self;
}


sub port { return $_[0]{port} }

sub address { return "127.0.0.1:$_[0]{port}" }


sub stop {
    my ($self) = @_;

    my $pid = delete $self->{pid} // return;

    kill('TERM', $pid);
    waitpid($pid, 0);
    return;
}


sub stats { return $_[0]->_ask('/stats') }

sub forget { return $_[0]->_ask('/forget') }


sub _ask {
    my ($self, $path) = @_;

    my $res = HTTP::Tiny->new(timeout => 10)->get(
        'http://' . $self->address . $path,
        { headers => { Connection => 'close' } });

    return $json->decode($res->{content});
}


sub _counts {
    return (connections => 0, working => 0, busiest => 0, paths => {},
            order => []);
}


# From here on in the server's own process.

sub _loop {
    my ($s) = @_;

    my $parent = getppid;

    while (getppid == $parent) {
        my ($next) = sort { $a <=> $b } map { $_->[0] } @{ $s->{later} };
        my $wait = defined $next ? $next - time : 1;
        $wait = $wait < 0 ? 0 : $wait > 1 ? 1 : $wait;

        my ($read, $write) = IO::Select->select($s->{select}, $s->{writing},
                                                undef, $wait);

        for my $c (@{ $write // [] }) {
            _flush($s, $c) if $s->{c}{$c};
        }

        for my $c (@{ $read // [] }) {
            if ($s->{listen}{$c}) {
                _accept($s, $c);
            } elsif ($s->{c}{$c}) {
                _read($s, $c);
            }
        }

        my $now = time;
        my @due = grep { $_->[0] <= $now } @{ $s->{later} };
        $s->{later} = [grep { $_->[0] > $now } @{ $s->{later} }];
        $_->[1]->() for @due;
    }
}


sub _accept {
    my ($s, $listen) = @_;

    my $c = $listen->accept or return;

    $c->blocking(0);
    $s->{select}->add($c);
    $s->{c}{$c} = { socket => $c, in => '', out => '', counted => 0 };
}


sub _read {
    my ($s, $c) = @_;

    my $state = $s->{c}{$c};
    my $n = sysread($c, $state->{in}, 1048576, length $state->{in});

    return if !defined $n && $!{EAGAIN};
    return _close($s, $c) if !$n || $state->{poisoned};

    while (my @request = Vibe::_take_request(\$state->{in})) {
        _answer($s, $c, @request);
        last if !$s->{c}{$c};
    }
}


sub _close {
    my ($s, $c, $reset) = @_;

    my $state = delete $s->{c}{$c} or return;

    $s->{working}-- if $state->{working};
    $s->{select}->remove($c);
    $s->{writing}->remove($c);
    setsockopt($c, SOL_SOCKET, SO_LINGER, pack('ii', 1, 0)) if $reset;
    close $c;
}


sub _later {
    my ($s, $ms, $work) = @_;

    push @{ $s->{later} }, [time + $ms / 1000, $work];
}


sub _flush {
    my ($s, $c) = @_;

    my $state = $s->{c}{$c};
    my $n = length $state->{out} ? syswrite($c, $state->{out}, 262144) : 0;

    return _close($s, $c) if !defined $n && !$!{EAGAIN};

    substr($state->{out}, 0, $n // 0) = '';

    if (length $state->{out}) {
        $s->{writing}->add($c);
    } else {
        $s->{writing}->remove($c);
        _close($s, $c, $state->{reset}) if $state->{end};
    }
}


sub _say {
    my ($s, $c, $text) = @_;

    my $state = $s->{c}{$c} or return;

    $state->{out} .= $text;
    _flush($s, $c);
}


# A whole answer.

sub _reply {
    my ($s, $c, $status, $body) = @_;

    my $state = $s->{c}{$c} or return;

    $body = $json->encode($body) if ref $body;
    $s->{working}-- if delete $state->{working};

    _say($s, $c, "HTTP/1.1 $status Mock\r\nContent-Type: application/json\r\n"
                 . 'Content-Length: ' . length($body) . "\r\n\r\n$body");
}


sub _end {
    my ($s, $c, $text, $reset) = @_;

    my $state = $s->{c}{$c} or return;

    $state->{end} = 1;
    $state->{reset} = $reset;
    _say($s, $c, $text);
}


sub _answer {
    my ($s, $c, $method, $path, $header, $body) = @_;

    my $state = $s->{c}{$c};
    my (undef, $what, $arg) = split m{/}, $path;

    if ($what eq 'stats') {
        return _reply($s, $c, 200, {
            map { $_ => $s->{$_} } qw(connections working busiest paths
                                      order) });
    }
    if ($what eq 'forget') {
        my $working = $s->{working};
        %$s = (%$s, _counts(), working => $working);
        $_->{counted} = 0 for values %{ $s->{c} };
        return _reply($s, $c, 200, {});
    }

    $s->{connections}++ if !$state->{counted}++;
    push @{ $s->{order} }, $path;
    my $times = ++$s->{paths}{$path};

    $state->{working} = 1;
    $s->{working}++;
    $s->{busiest} = $s->{working} if $s->{working} > $s->{busiest};

    my $ok = sub { _reply($s, $c, 200, '{"ok":true}') };
    my $chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";

    if ($what eq 'ok' || $what eq 'spawned') {
        $ok->();

    } elsif ($what eq 'echo') {
        _reply($s, $c, 200, { method => $method, path => $path,
                              header => $header, length => length $body,
                              md5 => md5_hex($body) });

    } elsif ($what eq 'bytes') {
        _reply($s, $c, 200, pattern($arg));

    } elsif ($what eq 'chunked') {
        my $text = pattern($arg);
        my $out = $chunked;
        while (length $text) {
            my $piece = substr($text, 0, 7777, '');
            $out .= sprintf("%x\r\n%s\r\n", length $piece, $piece);
        }
        $s->{working}-- if delete $state->{working};
        _say($s, $c, "${out}0\r\n\r\n");

    } elsif ($what eq 'delay') {
        _later($s, $arg, $ok);

    } elsif ($what eq 'status') {
        _reply($s, $c, $arg, { error => 'mock' });

    } elsif ($what eq 'drop') {
        defined $arg && $times > 1 ? $ok->() : _close($s, $c);

    } elsif ($what eq 'reset') {
        $times > 1 ? $ok->() : _close($s, $c, 1);

    } elsif ($what eq 'part') {
        _end($s, $c, 'HTTP/1.1 2');

    } elsif ($what eq 'half') {
        _end($s, $c, "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n"
                     . pattern(50));

    } elsif ($what eq 'headers') {
        _end($s, $c, $chunked);

    } elsif ($what eq 'garbage') {
        _end($s, $c, "220 mail.example.org ESMTP\r\n\r\n");

    } elsif ($what eq 'poison') {
        $ok->();
        $state->{poisoned} = 1;

    } elsif ($what eq 'feed') {
        _say($s, $c, $chunked);
        _feed($s, $c, @{ $s->{feeds}{$arg} });
    }

    # Whatever else: no answer.
}


sub _feed {
    my ($s, $c, @steps) = @_;

    while (@steps && $s->{c}{$c}) {
        my $step = shift @steps;

        if ($step =~ /^\d+$/) {
            return _later($s, $step, sub { _feed($s, $c, @steps) });
        }

        if ($step eq 'end') {
            $s->{working}-- if delete $s->{c}{$c}{working};
            return _say($s, $c, "0\r\n\r\n");
        }

        return _end($s, $c, '') if $step eq 'cut';

        _say($s, $c, sprintf("%x\r\n%s\r\n", length $step, $step));
    }
}


# pattern($n): the text that the module makes of size=N, too.

sub pattern {
    my ($n) = @_;

    return substr(join('', 'a' .. 'w') x ($n / 23 + 1), 0, $n);
}


1;
