package Vibe::Raw;

# HTTP/1.1 by hand, for what HTTP::Tiny would not send or hides.
#
#     my $c = dial($nginx);
#     say_to($c, "GET / HTTP/1.1\r\nHost: a\r\n\r\n");
#     my $res = hear($c);     # status, reason, header, body, text

use strict;
use warnings;

use Exporter qw(import);
use IO::Select;
use IO::Socket::INET;
use JSON::PP;
use Time::HiRes qw(time);

our @EXPORT = qw(dial say_to hear closed post_text exchange);

my $json = JSON::PP->new->utf8->allow_nonref;


sub dial {
    my ($nginx) = @_;

    my $port = ref $nginx ? $nginx->port : $nginx;
    my $socket = IO::Socket::INET->new(PeerAddr => '127.0.0.1',
                                       PeerPort => $port)
        or die "connect: $@\n";

    return { socket => $socket, in => '' };
}


sub say_to {
    my ($c, $text) = @_;

    local $SIG{PIPE} = 'IGNORE';

    while (length $text) {
        my $n = syswrite($c->{socket}, $text) // return 0;
        substr($text, 0, $n) = '';
    }

    return 1;
}


# post_text($path, $token, $body, @header): a request's bytes.

sub post_text {
    my ($path, $token, $body, @header) = @_;

    return join("\r\n", "POST $path HTTP/1.1", 'Host: localhost',
                defined $token ? "Authorization: Bearer $token" : (),
                'Content-Type: application/json', @header,
                (grep { /^(?:Content-Length|Transfer-Encoding):/i } @header)
                    ? () : 'Content-Length: ' . length $body,
                '', $body);
}


# exchange($nginx, $text): one connection, one answer.

sub exchange {
    my ($nginx, $text, %opt) = @_;

    my $c = dial($nginx);
    say_to($c, $text);
    return hear($c, %opt);
}


# hear($c [, head => 1]): the next answer; undef: the connection ended.

sub hear {
    my ($c, %opt) = @_;

    _more($c) or return until $c->{in} =~ /\r\n\r\n/;

    my ($head) = $c->{in} =~ /^(.*?\r\n)\r\n/s;
    my ($line, @lines) = split /\r\n/, $head;
    my ($status, $reason) = $line =~ m{^HTTP/1\.[01] (\d{3}) ?(.*)$} or return;

    $c->{in} = substr($c->{in}, length($head) + 2);

    my %header;
    for (@lines) {
        my ($name, $value) = /^([^:]+):\s*(.*)$/ or next;
        my $old = $header{lc $name};
        $header{lc $name} = defined $old ? "$old, $value" : $value;
    }

    return hear($c, %opt) if $status == 100;

    my $body = '';

    if ($opt{head} || $status == 204 || $status == 304) {
        # none

    } elsif (($header{'transfer-encoding'} // '') eq 'chunked') {
        for (;;) {
            _more($c) or return until $c->{in} =~ /^([0-9a-f]+)\r\n/i;
            my ($size, $skip) = (hex $1, length($1) + 2);
            _more($c) or return
                until length $c->{in} >= $skip + $size + 2;
            $body .= substr($c->{in}, $skip, $size);
            $c->{in} = substr($c->{in}, $skip + $size + 2);
            last if !$size;
        }

    } elsif (defined $header{'content-length'}) {
        my $length = $header{'content-length'};
        _more($c) or return until length $c->{in} >= $length;
        $body = substr($c->{in}, 0, $length);
        $c->{in} = substr($c->{in}, $length);

    } else {
        1 while _more($c);
        $body = $c->{in};
        $c->{in} = '';
    }

    my $data = eval { $json->decode($body) };

    return { status => $status, reason => $reason, header => \%header,
             text => $body, body => $data };
}


# closed($c): that the other side closes, with nothing more said.

sub closed {
    my ($c) = @_;

    return !length $c->{in} && !_more($c);
}


sub _more {
    my ($c) = @_;

    # Longer than any timeout of nginx here.
    IO::Select->new($c->{socket})->can_read(30) or return 0;
    return sysread($c->{socket}, $c->{in}, 65536, length $c->{in});
}


1;
