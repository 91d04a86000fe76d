package Vibe::Tap;

# A proxy between nginx and the CouchDB under test that keeps a list of what
# was asked, passes feeds on as they come, and refuses what it is told to:
#
#     my $tap = Vibe::Tap->start;
#     my $nginx = nginx_start(http => $tap->http_config);
#
#     $tap->refuse('^GET /_db_updates', 404, { error => 'not_found' });
#     ...
#     $tap->refuse;                    # nothing any more
#     my @seen = $tap->asked;          # since the last time, each as
#                                      # { at, method, path }
#
# (Vibe::Proxy holds single requests back; Vibe::Faults records bodies, too,
# but has no feeds.)

use strict;
use warnings;

use IO::Select;
use IO::Socket::INET;
use JSON::PP;
use Time::HiRes qw(time);
use Vibe ();

my $json = JSON::PP->new->utf8->canonical->allow_nonref;


sub start {
    my ($class) = @_;

    my ($url, $auth) = Vibe::couchdb();
    my ($couch) = $url =~ m{^http://(.+)$}
        or die "the tap cannot speak TLS to $url\n";

    my $listen = IO::Socket::INET->new(Listen => 1024, ReuseAddr => 1,
                                       LocalAddr => '127.0.0.1')
        or die "tap: $@\n";

    my $self = bless {
        url => 'http://127.0.0.1:' . $listen->sockport, auth => $auth,
        log => Vibe::write_file(''), control => Vibe::write_file(''), seen => 0,
    }, $class;

    $self->{pid} = Vibe::_fork(sub {
        $SIG{PIPE} = 'IGNORE';
        open(my $log, '>>', $self->{log}) or die "$self->{log}: $!\n";
        $log->autoflush(1);
        _loop({ couch => $couch, listen => $listen, log => $log,
                control => $self->{control}, in => {}, pair => {},
                select => IO::Select->new($listen) });
    });

    close $listen;
    return $self;
}


sub url { return $_[0]{url} }

# http_config(%option): Vibe's, with the tap in CouchDB's place.

sub http_config {
    my ($self, %opt) = @_;

    return Vibe::http_config(couchdb => $self->{url},
                             credentials => $self->{auth}, %opt);
}


# refuse([$pattern, $status, $body]): what to answer in CouchDB's place from
# now on where "METHOD PATH" matches.

sub refuse {
    my ($self, @rule) = @_;

    $rule[2] = $json->encode($rule[2]) if ref $rule[2];

    open(my $fh, '>', "$self->{control}.new") or die "tap: $!\n";
    print {$fh} @rule ? $json->encode(\@rule) : '';
    close $fh;
    rename("$self->{control}.new", $self->{control}) or die "tap: $!\n";
    return;
}


sub asked {
    my ($self) = @_;

    my @lines = split /\n/, Vibe::read_file($self->{log});
    my @new = splice(@lines, $self->{seen});
    $self->{seen} += @new;

    return map {
        my ($at, $method, $path) = split / /;
        { at => $at, method => $method, path => $path };
    } @new;
}


# From here on in the tap's own process.

sub _loop {
    my ($t) = @_;

    my $parent = getppid;

    while (getppid == $parent) {
        for my $c ($t->{select}->can_read(1)) {

            # Closed by what was read before it.
            next if !defined fileno($c);

            if ($c == $t->{listen}) {
                my $new = $c->accept or next;
                $t->{select}->add($new);
                $t->{in}{$new} = '';

            } elsif (exists $t->{in}{$c}) {
                _from_nginx($t, $c);

            } else {
                _from_couch($t, $c);
            }
        }
    }
}


sub _from_nginx {
    my ($t, $c) = @_;

    return _end($t, $c)
        if !sysread($c, $t->{in}{$c}, 65536, length $t->{in}{$c});

    my $in = $t->{in}{$c};
    my ($method, $path) = Vibe::_take_request(\$in) or return;

    my $text = substr($t->{in}{$c}, 0, length($t->{in}{$c}) - length $in);
    $t->{in}{$c} = $in;

    printf { $t->{log} } "%.3f %s %s\n", time, $method, $path;

    my $rule = Vibe::read_file($t->{control});
    my ($pattern, $status, $body) = length $rule ? @{ $json->decode($rule) }
                                                 : ();

    if (defined $pattern && "$method $path" =~ /$pattern/) {
        _write($c, "HTTP/1.1 $status Refused\r\n"
               . "Content-Type: application/json\r\nContent-Length: "
               . length($body) . "\r\nConnection: close\r\n\r\n$body");
        return _end($t, $c);
    }

    # One request a connection: its end is the answer's.
    $text =~ s/\r\nConnection:[^\r]*//i;
    $text =~ s/\r\n/\r\nConnection: close\r\n/;

    my $up = IO::Socket::INET->new(PeerAddr => $t->{couch})
        or return _end($t, $c);

    $t->{pair}{$c} = $up;
    $t->{pair}{$up} = $c;
    $t->{select}->add($up);
    _write($up, $text);
}


sub _from_couch {
    my ($t, $up) = @_;

    my $bytes = '';

    return _end($t, $up) if !sysread($up, $bytes, 65536);
    _write($t->{pair}{$up}, $bytes) or _end($t, $up);
}


# Both ends: a feed whose reader has gone ends, too.

sub _end {
    my ($t, $c) = @_;

    my $other = delete $t->{pair}{$c};

    for my $end ($c, $other // ()) {
        delete $t->{in}{$end};
        delete $t->{pair}{$end};
        $t->{select}->remove($end);
        close $end;
    }
}


sub _write {
    my ($to, $bytes) = @_;

    my $sent = 0;
    while ($sent < length $bytes) {
        $sent += syswrite($to, $bytes, 65536, $sent) // return 0;
    }

    return 1;
}


1;
