package Vibe::Race;

# Several requests at once, from one test:
#
#     my $one = send_request($nginx, 'POST', '/data/posts', $token, $doc);
#     my $two = send_request(...);
#     my ($status, $data) = answer_of($one);
#
# or, where all are to be under way before the first answer is read,
#
#     my @answers = race($nginx, ['POST', $path, $token, $doc], ...);
#
# which returns [$status, $data] for each, in order.

use strict;
use warnings;

use Exporter qw(import);
use IO::Socket::INET;
use JSON::PP;

our @EXPORT = qw(send_request answer_of race);

my $json = JSON::PP->new->utf8->canonical->allow_nonref;


# send_request($nginx|$port, $method, $path, $token, $body): sends it and does
# not wait.  A reference is sent as JSON.

sub send_request {
    my ($nginx, $method, $path, $token, $body) = @_;

    my $port = ref $nginx ? $nginx->port : $nginx;
    my $sock = IO::Socket::INET->new(PeerAddr => '127.0.0.1',
                                     PeerPort => $port)
        or die "cannot connect to nginx: $@\n";

    $body = ref $body ? $json->encode($body) : $body // '';

    my $text = "$method $path HTTP/1.1\r\nHost: localhost\r\n"
               . "Connection: close\r\n"
               . (defined $token ? "Authorization: Bearer $token\r\n" : '')
               . "Content-Type: application/json\r\n"
               . 'Content-Length: ' . length($body) . "\r\n\r\n$body";

    while (length $text) {
        my $n = syswrite($sock, $text) // die "cannot send to nginx: $!\n";
        substr($text, 0, $n) = '';
    }

    return { sock => $sock };
}


# answer_of($request): waits for the answer (60 s); the status, 599 if none
# came, and the decoded body.

sub answer_of {
    my ($request) = @_;

    my $in = '';

    my $whole = eval {
        local $SIG{ALRM} = sub { die "no answer\n" };
        alarm 60;

        while (1) {
            my $n = sysread($request->{sock}, $in, 65536, length $in);
            last if !$n;
        }

        alarm 0;
        1;
    };
    alarm 0;

    close delete $request->{sock};

    my ($status, $body) = $in =~ m{^HTTP/1\.1 (\d+).*?\r\n\r\n(.*)}s;
    return (599, $in) if !$whole || !defined $status;

    my $data = eval { $json->decode($body) };
    return ($status, $@ ? $body : $data);
}


sub race {
    my ($nginx, @requests) = @_;

    my @sent = map { send_request($nginx, @$_) } @requests;
    return map { [answer_of($_)] } @sent;
}


1;
