package Vibe::Faults;

# A stand-in between nginx and the CouchDB under test that passes requests on,
# records them (see requests() of Vibe), and fails on command.
#
#     my $couch = faulty();
#     my $nginx = nginx_start(http => http_config(couchdb => $couch->{url}));
#
#     fault($couch, path => qr/_bulk_docs/, times => 1, answer => [500, {}]);
#     ...
#     heal($couch);
#     my @seen = asked($couch);       # since the last asked()
#
# (Vibe::Proxy holds single requests back, without faults.)

use strict;
use warnings;

use Exporter qw(import);
use HTTP::Tiny;
use JSON::PP;
use MIME::Base64 qw(encode_base64);
use Time::HiRes qw(sleep time);
use Vibe ();

our @EXPORT = qw(faulty fault heal asked hits wait_hit release);

my $json = JSON::PP->new->utf8->canonical->allow_nonref;
my $number = 0;


# faulty([$handler]): like mock(); what $handler returns is the answer, and if
# that is nothing, CouchDB's is.

sub faulty {
    my ($handler) = @_;

    my ($url, $auth) = Vibe::couchdb();
    my $control = Vibe::write_file('');
    my $http = HTTP::Tiny->new(timeout => 60, max_redirect => 0);

    $auth = 'Basic ' . encode_base64($auth, '');

    my $pass = sub {
        my ($method, $path, $body) = @_;

        my $res = $http->request($method, $url . $path, {
            headers => { Authorization => $auth, Accept => 'application/json',
                         'Content-Type' => 'application/json' },
            length $body ? (content => $body) : (),
        });
        die "CouchDB: $res->{content}\n" if $res->{status} == 599;

        return ($res->{status}, $res->{content});
    };

    my %times;

    my $mock = &Vibe::mock(sub {
        my ($method, $path, $body, $header) = @_;

        my $f = _fault($control);
        my @answer;

        if ($f && $path =~ /$f->{path}/ && $method =~ /$f->{method}/
            && $body =~ /$f->{body}/)
        {
            my $n = ++$times{ $f->{number} };

            if ($n > $f->{skip} && $n <= $f->{skip} + $f->{times}) {
                @answer = $pass->($method, $path, $body) if $f->{after};
                _hit($control, $f->{number});

                if ($f->{hold}) {
                    # Not for ever: the test may have died.
                    my $end = time + 60;
                    sleep 0.005
                        until -e "$control.$f->{number}" || time > $end;
                }

                return @{ $f->{answer} } if @{ $f->{answer} };
                return @answer if @answer;
            }
        }

        @answer = $handler->($method, $path, $body, $header) if $handler;

        return @answer ? @answer : $pass->($method, $path, $body);
    });

    return { control => $control, asked => 0, %$mock };
}


# fault($couch, ...): what is to fail from now on, in place of an earlier one:
#
#     path, method, body => qr/.../   which requests; all by default
#     times  => how many of them; all by default
#     skip   => after how many that are answered well
#     answer => [ as a mock() has it ]; CouchDB's by default
#     after  => 1   CouchDB carries it out all the same
#     hold   => 1   the answer waits for release() (as does all else)

sub fault {
    my ($couch, %fault) = @_;

    # Not '': the empty pattern is the one that matched last.
    $fault{$_} = defined $fault{$_} ? "$fault{$_}" : '^'
        for qw(path method body);
    $fault{answer} //= [];
    $fault{skip} //= 0;
    $fault{times} //= 1e9;
    $fault{number} = ++$number;

    _put($couch->{control}, $json->encode(\%fault));
    $couch->{fault} = $number;
    return;
}


sub heal {
    my ($couch) = @_;

    _put($couch->{control}, '');
    return;
}


# hits($couch): how often the last fault() came about.

sub hits {
    my ($couch) = @_;

    return -s "$couch->{control}.hits.$couch->{fault}" // 0;
}


# wait_hit($couch): waits until it did, which is true then.

sub wait_hit {
    my ($couch) = @_;

    return Vibe::wait_for { hits($couch) };
}


sub release {
    my ($couch) = @_;

    _put("$couch->{control}.$couch->{fault}", 'now');
    return;
}


# asked($couch [, $path]): the requests since the last call, or those of them
# whose path matches.

sub asked {
    my ($couch, $path) = @_;

    my @all = Vibe::requests($couch);
    my @new = splice(@all, $couch->{asked});

    $couch->{asked} += @new;
    return defined $path ? grep { $_->{path} =~ $path } @new : @new;
}


sub _fault {
    my ($control) = @_;

    my $text = Vibe::read_file($control);
    return length $text ? $json->decode($text) : undef;
}


sub _hit {
    my ($control, $n) = @_;

    open(my $fh, '>>', "$control.hits.$n") or die "$control: $!\n";
    print {$fh} '.';
    close $fh;
    return;
}


sub _put {
    my ($path, $text) = @_;

    open(my $fh, '>', "$path.new") or die "$path: $!\n";
    print {$fh} $text;
    close $fh;
    rename("$path.new", $path) or die "$path: $!\n";
    return;
}


1;
