package Vibe::H2;

# A small HTTP/2 client over plain TCP, for several streams of one connection
# and for what curl does not show (curl 7.88 loses the answer to a request whose
# body the server does not want).
#
#     my $h2 = Vibe::H2->new($nginx);
#     my $id = $h2->open('POST', '/data/posts', { authorization => '...' });
#     $h2->data($id, $text, 1);           # 1: and that is all
#     my $res = $h2->hear($id);           # status, text, body
#     $h2->reset($id);
#
# or, for all of it, $h2->request('POST', $path, $header, $text).

use strict;
use warnings;

use IO::Select;
use IO::Socket::INET;
use JSON::PP;
use Time::HiRes qw(time);

my $json = JSON::PP->new->utf8->allow_nonref;

# Frames, RFC 9113, section 6.
use constant {
    DATA => 0, HEADERS => 1, RST_STREAM => 3, SETTINGS => 4, PING => 6,
    GOAWAY => 7, WINDOW_UPDATE => 8, CONTINUATION => 9,
};

# The statuses of HPACK's static table.
my %STATIC = (8 => 200, 9 => 204, 10 => 206, 11 => 304, 12 => 400, 13 => 404,
              14 => 500);


sub new {
    my ($class, $nginx) = @_;

    my $port = ref $nginx ? $nginx->port : $nginx;
    my $socket = IO::Socket::INET->new(PeerAddr => '127.0.0.1',
                                       PeerPort => $port)
        or die "connect: $@\n";
    my $self = bless { socket => $socket, in => '', next => 1, stream => {},
                       window => 65535, initial => 65535, port => $port },
                     $class;

    # Windows so large that they need no updates.
    $self->_write("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
                  . _frame(SETTINGS, 0, 0, pack('nN', 4, 0x7fffffff))
                  . _frame(WINDOW_UPDATE, 0, 0, pack('N', 0x7fff0000 - 65535)));
    return $self;
}


# open($method, $path, { header }, $end): a new stream; $end: it has no body.

sub open {
    my ($self, $method, $path, $header, $end) = @_;

    my $id = $self->{next};
    $self->{next} += 2;

    my %header = map { lc $_ => $header->{$_} } keys %{ $header // {} };
    my $block = join('', map { "\0" . _string($_->[0]) . _string($_->[1]) }
        [':method', $method], [':path', $path], [':scheme', 'http'],
        [':authority', "127.0.0.1:$self->{port}"],
        map { [$_, $header{$_}] } sort keys %header);

    $self->{stream}{$id} = { window => $self->{initial}, text => '' };
    $self->_write(_frame(HEADERS, $end ? 5 : 4, $id, $block));
    return $id;
}


# data($id, $text, $end): true if the server took it all.

sub data {
    my ($self, $id, $text, $end) = @_;

    my $stream = $self->{stream}{$id};

    do {
        my $n = length $text;
        $n = $_ < $n ? $_ : $n
            for 16384, $self->{window}, $stream->{window};

        if ($n <= 0 && length $text) {
            return 0 if $stream->{done} || !$self->_read;
            $n = 0;

        } else {
            my $part = substr($text, 0, $n, '');
            my $last = $end && !length $text;

            $self->{window} -= $n;
            $stream->{window} -= $n;
            $self->_write(_frame(DATA, $last ? 1 : 0, $id, $part)) or return 0;

            # What the server says meanwhile.
            $self->_read while IO::Select->new($self->{socket})->can_read(0)
                               && !$self->{closed};
            return 0 if $stream->{done} && length $text;
        }
    } while (length $text);

    return 1;
}


sub reset {
    my ($self, $id) = @_;

    return $self->_write(_frame(RST_STREAM, 0, $id, pack('N', 8)));
}


# hear($id): the stream's answer, when it is whole; undef: there is none.

sub hear {
    my ($self, $id) = @_;

    my $stream = $self->{stream}{$id};

    $self->_read or last until $stream->{done};
    return if !$stream->{ended};

    my $body = eval { $json->decode($stream->{text}) };
    return { status => $stream->{status}, text => $stream->{text},
             body => $body };
}


sub request {
    my ($self, $method, $path, $header, $text) = @_;

    my $id = $self->open($method, $path, $header, !defined $text);
    $self->data($id, $text, 1) if defined $text;
    return $self->hear($id);
}


sub close { CORE::close($_[0]{socket}) }


sub _string {
    my ($text) = @_;

    my $length = length $text;
    return chr($length) . $text if $length < 127;

    my $head = chr(127);
    $length -= 127;
    while ($length > 127) {
        $head .= chr(128 | $length & 127);
        $length >>= 7;
    }
    return $head . chr($length) . $text;
}


sub _frame {
    my ($type, $flags, $id, $text) = @_;

    return substr(pack('N', length $text), 1)
           . pack('CCN', $type, $flags, $id) . $text;
}


sub _write {
    my ($self, $bytes) = @_;

    local $SIG{PIPE} = 'IGNORE';

    while (length $bytes) {
        my $n = syswrite($self->{socket}, $bytes) // return 0;
        substr($bytes, 0, $n) = '';
    }
    return 1;
}


# Reads and heeds one frame; false: the connection is at its end.

sub _read {
    my ($self) = @_;

    my $in = \$self->{in};

    while (length $$in < 9
           || length $$in < 9 + unpack('N', "\0" . substr($$in, 0, 3)))
    {
        if (!IO::Select->new($self->{socket})->can_read(30)
            || !sysread($self->{socket}, $$in, 65536, length $$in))
        {
            $self->{closed} = 1;
            return 0;
        }
    }

    my $length = unpack('N', "\0" . substr($$in, 0, 3));
    my ($type, $flags, $id) = unpack('CCN', substr($$in, 3, 6));
    my $text = substr($$in, 9, $length);
    substr($$in, 0, 9 + $length) = '';

    my $stream = $self->{stream}{$id} // { text => '' };

    if ($type == DATA) {
        $stream->{text} .= $text;

    } elsif ($type == HEADERS) {
        $stream->{status} = _status($text);

    } elsif ($type == RST_STREAM) {
        $stream->{done} = 1;

    } elsif ($type == SETTINGS && !($flags & 1)) {
        $self->_settings($text);
        $self->_write(_frame(SETTINGS, 1, 0, ''));

    } elsif ($type == PING && !($flags & 1)) {
        $self->_write(_frame(PING, 1, 0, $text));

    } elsif ($type == WINDOW_UPDATE) {
        my $n = unpack('N', $text);
        if ($id) { $stream->{window} += $n } else { $self->{window} += $n }
    }

    if (($type == DATA || $type == HEADERS) && $flags & 1) {
        $stream->{ended} = $stream->{done} = 1;
    }

    return 1;
}


sub _settings {
    my ($self, $text) = @_;

    while (length $text) {
        my ($name, $value) = unpack('nN', substr($text, 0, 6, ''));
        next if $name != 4;
        $_->{window} += $value - $self->{initial}
            for values %{ $self->{stream} };
        $self->{initial} = $value;
    }
    return;
}


# nginx writes the status first, from the static table or in clear.

sub _status {
    my ($block) = @_;

    $block =~ s/^[\x20-\x3f]//;
    my $first = ord $block;

    return $STATIC{ $first & 127 } if $first & 128;
    return $block =~ /^[\x08\x18\x48]\x03(\d{3})/ ? $1 : 0;
}


1;
