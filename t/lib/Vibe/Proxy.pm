package Vibe::Proxy;

# A proxy between nginx and the CouchDB under test that can keep requests back:
#
#     my $proxy = Vibe::Proxy->start;
#     my $nginx = nginx_start(http => $proxy->http_config);
#
#     my $late = $proxy->hold('^POST /global/_bulk_docs');
#     ... a request to nginx ...
#     $proxy->wait_held($late);
#     ... what shall be faster ...
#     $proxy->release($late);
#
# hold() catches the next request of which "METHOD PATH BODY" matches; each
# hold catches one, and drop() gives one up.  What was caught can be
#
#     release($hold)                    sent on
#     answer($hold, $status, $body)     answered here and not sent on
#     lose($hold)                       sent on, its answer thrown away and
#                                       the connection closed
#     cut($hold)                        sent on, and closed after half of its
#                                       answer
#
# A hold can be told beforehand, and then keeps nothing back:
#
#     $proxy->hold($pattern, 'answer', 500, { error => 'x' });
#     $proxy->hold($pattern, 'lose');
#     ... $proxy->caught($hold) ...     whether it has caught its request
#
# always($pattern, $status, $body) answers all of which the pattern matches, and
# that are not caught, till always(); asked() is a list of "METHOD PATH", since
# the last time.
#
# All else is passed on at once.  Vibe::Proxy->start(global => NAME) lets the
# database NAME stand in for `global`: one that is not there yet, for example.

use strict;
use warnings;

use IO::Select;
use IO::Socket::INET;
use JSON::PP;
use Socket qw(AF_UNIX SOCK_STREAM PF_UNSPEC);
use Vibe ();

my $json = JSON::PP->new->utf8->canonical->allow_nonref;


sub start {
    my ($class, %opt) = @_;

    my ($url, $auth) = Vibe::couchdb();
    my ($couch) = $url =~ m{^http://(.+)$}
        or die "the proxy cannot speak TLS to $url\n";

    my $listen = IO::Socket::INET->new(Listen => 1024, ReuseAddr => 1,
                                       LocalAddr => '127.0.0.1')
        or die "proxy: $@\n";

    socketpair(my $here, my $there, AF_UNIX, SOCK_STREAM, PF_UNSPEC)
        or die "socketpair: $!\n";

    my $self = bless {
        url => 'http://127.0.0.1:' . $listen->sockport,
        auth => $auth, control => $here, last => 0,
        log => Vibe::write_file(''), seen => 0,
    }, $class;

    open(my $log, '>>', $self->{log}) or die "$self->{log}: $!\n";
    $log->autoflush(1);

    $self->{pid} = Vibe::_fork(sub {
        close $here;
        $SIG{PIPE} = 'IGNORE';
        _loop({ couch => $couch, listen => $listen, control => $there,
                global => $opt{global}, log => $log, always => [],
                caught => {}, select => IO::Select->new($listen, $there),
                told => '', in => {}, holds => [], held => {}, up => {} });
    });

    close $there;
    return $self;
}


sub url { return $_[0]{url} }

# http_config(%option): Vibe's, with the proxy in CouchDB's place.

sub http_config {
    my ($self, %opt) = @_;

    return Vibe::http_config(couchdb => $self->{url},
                             credentials => $self->{auth}, %opt);
}


sub hold {
    my ($self, $pattern, @action) = @_;

    my $id = ++$self->{last};
    $self->_ask('hold', $id, $pattern, _plain(@action));
    return $id;
}


sub caught { return $_[0]->_ask('caught', $_[1]) }


sub always {
    my ($self, @rule) = @_;

    return $self->_ask('always', 0, _plain(@rule));
}


sub asked {
    my ($self) = @_;

    my @lines = split /\n/, Vibe::read_file($self->{log});
    my @new = splice(@lines, $self->{seen});

    $self->{seen} += @new;
    return @new;
}


# wait_held($hold [, $request]): until it has caught its request, or until the
# request of Vibe::Race is answered; true if it has (false after 10 s, too).

sub wait_held {
    my ($self, $id, $request) = @_;

    my $control = $self->{control};
    my $select = IO::Select->new($control, $request ? $request->{sock} : ());

    $self->_say('wait', $id);
    my @ready = $select->can_read(10);

    # Either way the proxy answers the `wait`, and with that the command here.
    $self->_say('forget', $id) if !grep { $_ == $control } @ready;
    return $self->_hear;
}


sub drop { return $_[0]->_ask('drop', $_[1]) }

sub release { return $_[0]->_ask('release', $_[1]) }

sub lose { return $_[0]->_ask('lose', $_[1]) }

sub cut { return $_[0]->_ask('cut', $_[1]) }

sub answer {
    my ($self, $id, @answer) = @_;

    return $self->_ask('answer', $id, _plain(@answer));
}


sub _plain { return map { ref ? $json->encode($_) : $_ } @_ }


sub _ask {
    my ($self, @command) = @_;

    $self->_say(@command);
    return $self->_hear;
}


sub _say {
    my ($self, @command) = @_;

    syswrite($self->{control}, $json->encode(\@command) . "\n")
        // die "the proxy is gone: $!\n";
}


sub _hear {
    my ($self) = @_;

    my $line = readline($self->{control}) // die "the proxy is gone\n";
    return $json->decode($line);
}


# From here on in the proxy's own process.

sub _loop {
    my ($p) = @_;

    my $parent = getppid;

    while (getppid == $parent) {
        for my $c ($p->{select}->can_read(1)) {

            # Closed by what was read before it.
            next if !defined fileno($c);

            if ($c == $p->{listen}) {
                my $new = $c->accept or next;
                $p->{select}->add($new);
                $p->{in}{$new} = '';

            } elsif ($c == $p->{control}) {
                # Two commands may come at once, and select() sees no buffer.
                sysread($c, $p->{told}, 65536, length $p->{told}) or return;
                _command($p, @{ $json->decode($1) })
                    while $p->{told} =~ s/^(.*)\n//;

            } elsif ($p->{up}{$c}) {
                _from_couch($p, $c);

            } else {
                _from_nginx($p, $c);
            }
        }
    }
}


sub _command {
    my ($p, $name, $id, @more) = @_;

    if ($name eq 'hold') {
        my ($pattern, @action) = @more;
        push @{ $p->{holds} }, { id => $id, pattern => qr/$pattern/s,
                                 action => \@action };
        return _reply($p, 1);
    }

    if ($name eq 'always') {
        $p->{always} = \@more;
        return _reply($p, 1);
    }

    return _reply($p, $p->{caught}{$id} ? 1 : 0) if $name eq 'caught';

    if ($name eq 'drop') {
        $p->{holds} = [grep { $_->{id} != $id } @{ $p->{holds} }];
        return _reply($p, 1);
    }

    my $held = $p->{held}{$id};

    if ($name eq 'wait') {
        $p->{wait} = $id;
        return $held ? _waited($p, $id) : ();
    }

    if ($name eq 'forget') {
        # It may have been answered meanwhile.
        return defined $p->{wait} ? _waited($p, undef) : ();
    }

    delete $p->{held}{$id};
    return _reply($p, 0) if !$held;

    _act($p, $held->{client}, $held->{text}, $name, @more);
    return _reply($p, 1);
}


sub _act {
    my ($p, $client, $text, $name, @more) = @_;

    return _forward($p, $client, $text, $name) if $name ne 'answer';

    my ($status, $body) = @more;

    _write($client,
           "HTTP/1.1 $status Held\r\nContent-Type: application/json\r\n"
           . 'Content-Length: ' . length($body)
           . "\r\nConnection: close\r\n\r\n$body");
    _close($p, $client);
}


# Ends the `wait` under way: with the hold that caught its request, or not.

sub _waited {
    my ($p, $id) = @_;

    return if defined $id && $id != ($p->{wait} // 0);
    delete $p->{wait};
    _reply($p, defined $id ? 1 : 0);
}


sub _reply {
    my ($p, $value) = @_;

    syswrite($p->{control}, $json->encode($value) . "\n");
}


sub _from_nginx {
    my ($p, $c) = @_;

    if (!sysread($c, $p->{in}{$c}, 65536, length $p->{in}{$c})) {
        _close($p, $c);
        return;
    }

    my $in = $p->{in}{$c};
    my ($method, $path, $header, $body) = Vibe::_take_request(\$in) or return;

    my $text = substr($p->{in}{$c}, 0, length($p->{in}{$c}) - length $in);
    $p->{in}{$c} = $in;

    # One request a connection: its end is the answer's.
    $text =~ s/\r\nConnection:[^\r]*//i;
    $text =~ s/\r\n/\r\nConnection: close\r\n/;

    $text =~ s{^(\S+ )/global(?=[/? ])}{$1/$p->{global}} if $p->{global};

    my $asked = "$method $path $body";
    my ($hold) = grep { $asked =~ $_->{pattern} } @{ $p->{holds} };

    print { $p->{log} } "$method $path\n";

    if ($hold) {
        $p->{holds} = [grep { $_ != $hold } @{ $p->{holds} }];
        $p->{caught}{ $hold->{id} } = 1;

        return _act($p, $c, $text, @{ $hold->{action} })
            if @{ $hold->{action} };

        $p->{held}{ $hold->{id} } = { client => $c, text => $text };
        _waited($p, $hold->{id});
        return;
    }

    my ($always, @answer) = @{ $p->{always} };

    return _act($p, $c, $text, 'answer', @answer)
        if defined $always && $asked =~ /$always/s;

    _forward($p, $c, $text, 'release');
}


sub _forward {
    my ($p, $client, $text, $how) = @_;

    my $up = IO::Socket::INET->new(PeerAddr => $p->{couch});

    if (!$up) {
        _close($p, $client);
        return;
    }

    _write($up, $text);
    $p->{select}->add($up);
    $p->{up}{$up} = { client => $client, how => $how, kept => '' };
}


sub _from_couch {
    my ($p, $up) = @_;

    my $for = $p->{up}{$up};

    my $bytes = '';

    if (!sysread($up, $bytes, 65536)) {
        delete $p->{up}{$up};
        $p->{select}->remove($up);
        close $up;

        _write($for->{client}, substr($for->{kept}, 0,
                                      length($for->{kept}) / 2))
            if $for->{how} eq 'cut';
        _close($p, $for->{client});
        return;
    }

    _write($for->{client}, $bytes) if $for->{how} eq 'release';
    $for->{kept} .= $bytes if $for->{how} eq 'cut';
}


sub _write {
    my ($to, $bytes) = @_;

    # Closed, while CouchDB goes on with a feed.
    return if !defined fileno($to);

    my $sent = 0;
    while ($sent < length $bytes) {
        $sent += syswrite($to, $bytes, 65536, $sent) // return;
    }
}


sub _close {
    my ($p, $c) = @_;

    $p->{select}->remove($c);
    delete $p->{in}{$c};
    close $c;
}


1;
