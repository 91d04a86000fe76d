# The client for CouchDB, alone: the module of t/couch, which has nothing else
# in it, sends what a test asks it to.

use strict;
use warnings;

use Cwd ();
use Digest::MD5 qw(md5_hex);
use FindBin;
use HTTP::Tiny;
use IO::Select;
use IO::Socket::INET;
use JSON::PP;
use MIME::Base64 qw(encode_base64);
use POSIX ();
use Test::More;
use Time::HiRes qw(sleep time);
use lib "$FindBin::Bin/couch";
use Server;
use Vibe;
use Vibe::Race;

my $json = JSON::PP->new->utf8->canonical->allow_nonref;
my $secret = 'opensesame' . $$;
my $basic = encode_base64("admin:$secret", '');


# An nginx with the sanitizers has the test's module linked in.

if (my $binary = $ENV{TEST_NGINX_BINARY}) {
    my $version = `'$binary' -V 2>&1`;
    plan(skip_all => "$binary was built without --add-module=t/couch")
        if $version !~ m{--add-module=\S*/t/couch\b};
} else {
    system("$FindBin::Bin/couch/build.sh") == 0
        or die "the test's module could not be built\n";
    $ENV{TEST_NGINX_LOAD_MODULES} = abs_build()
        . '/ngx_http_vibe_couch_test_module.so';
}

sub abs_build { return Cwd::abs_path("$FindBin::Bin/../build") }


my $server_config = <<'EOF2';
location /send    { couch_test send; client_max_body_size 8m;
                    client_body_buffer_size 8m; }
location /stats   { couch_test stats; }
location /exit    { couch_test exit; }
location /backoff { couch_test backoff; }
EOF2

my @nginx;


# start(address => [...], ...): an nginx whose client is for these addresses.

sub start {
    my (%opt) = @_;

    my $http = join('',
        'couch_test_url ', $opt{url} // 'http://couchdb', ";\n",
        (map { "couch_test_address $_;\n" } @{ $opt{address} // [] }),
        "couch_test_authorization 'Basic $basic';\n",
        'couch_test_connect_timeout ', $opt{connect} // '5s', ";\n",
        $opt{trusted} ? "couch_test_trusted $opt{trusted};\n" : '',
        'couch_test_max_response ', $opt{max} // '16m', ";\n",
        $opt{http} // '');

    my $nginx = nginx_start(http => $http, server => $server_config,
                            main => $opt{main}, level => $opt{level});
    push @nginx, $nginx;
    return $nginx;
}


# ask($nginx, $args [, $body]): what the requests came to: those that were
# sent, the rest of the report.

sub ask {
    my ($nginx, $args, $body) = @_;

    my ($status, $report) = request($nginx, defined $body ? 'POST' : 'GET',
                                    "/send?$args", undef, $body);
    return ({}, {}) if $status != 200 || ref $report ne 'HASH';

    my $got = delete $report->{got};
    return ($got, $report) if $args =~ /\bn=/;
    return ($got->[0], $report);
}


sub stats {
    my ($nginx) = @_;

    my ($status, $stats) = request($nginx, 'GET', '/stats');
    return $stats;
}


# How many had which status.

sub statuses {
    my ($got) = @_;

    my %n;
    $n{ $_->{status} }++ for @$got;
    return \%n;
}


sub once {
    my ($got) = @_;

    return !grep { $_->{calls} != 1 } @$got;
}


sub lines_like {
    my ($nginx, $pattern) = @_;

    return scalar grep { /$pattern/ } split /\n/, $nginx->log;
}


my %feeds = (
    split => ["{\"a\"", 20, ":1}\n{\"b\":", 20, "2}", 20, "\n\n", 20,
              "{\"c\":3}\n{\"d\":4}\n{\"last\"", 20, ":5}", 'end'],
    cut   => ["{\"a\":1}\n", 20, "{\"b\"", 'cut'],
    idle  => ["{\"a\":1}\n"],
    beats => ["{\"a\":1}\n", (200, "\n") x 6, "{\"b\":2}\n", 'end'],
    many  => [(map { "{\"n\":$_}\n" } 1 .. 50), 10, "{\"n\":51}\n"],
    long  => ['x' x 700_000, 10, 'y' x 700_000, 10, "\n", 'end'],
    fits  => ['x' x 500_000, 10, 'y' x 500_000 . "\n", 'end'],
    hang  => [],
);

my $couch = Server->start(feeds => \%feeds);
my $nginx = start(address => [$couch->address]);


subtest 'requests and answers' => sub {
    my ($got) = ask($nginx, 'echo=1&path=/echo/a%2Fb?c=d%20e');
    my $echo = $json->decode($got->{answer});

    is($got->{status}, 200, 'GET');
    is($echo->{method}, 'GET', 'its method');
    is($echo->{path}, '/echo/a%2Fb?c=d%20e', 'the path goes as it is');
    is($echo->{header}{host}, 'couchdb', 'the host is the configured name');
    is($echo->{header}{authorization}, "Basic $basic", 'authorization');
    is($echo->{header}{accept}, 'application/json', 'accept');
    is(join(' ', sort keys %{ $echo->{header} }),
       'accept authorization content-type host', 'and nothing else');

    ($got) = ask($nginx, 'echo=1&path=/echo/x/../y/./%2e%2e/z');
    is($json->decode($got->{answer})->{path}, '/echo/x/../y/./%2e%2e/z',
       'dots are not taken out of a path');

    for my $method ('POST', 'PUT') {
        for my $size (0, 1, 100_000, 5_000_000) {
            ($got) = ask($nginx, "echo=1&method=$method&size=$size&path=/echo");
            $echo = $json->decode($got->{answer});

            is_deeply([@$echo{qw(method length md5)}],
                      [$method, $size, md5_hex(Server::pattern($size))],
                      "$method, $size bytes");
            is($echo->{header}{'content-length'}, $size, 'its length');
            is($echo->{header}{'content-type'}, 'application/json', 'type');
            is($echo->{header}{expect}, undef, 'nothing is expected');
        }
    }

    my $body = join('', map { chr(33 + $_ % 90) } 1 .. 70_000);
    ($got) = ask($nginx, 'echo=1&method=POST&path=/echo', $body);
    is($json->decode($got->{answer})->{md5}, md5_hex($body), 'any bytes');

    for my $kind ('bytes', 'chunked') {
        for my $size (0, 1, 4096, 4097, 100_000, 5_000_000) {
            ($got) = ask($nginx, "path=/$kind/$size");
            is_deeply($got, { status => 200, calls => 1, lines => 0,
                              too_large => 0, length => $size,
                              md5 => md5_hex(Server::pattern($size)) },
                      "an answer of $size $kind");
        }
    }

    for my $status (201, 202, 301, 404, 409, 412, 500, 503) {
        ($got) = ask($nginx, "echo=1&path=/status/$status");
        is($got->{status}, $status, "status $status");
        is($got->{answer}, '{"error":"mock"}', 'with its answer');
    }
};


subtest 'connections are kept' => sub {
    $couch->forget;

    ask($nginx, 'n=1&again=49&path=/ok') for 1 .. 2;
    is($couch->stats->{connections}, 1, '100 requests, one connection');

    my ($got) = ask($nginx, 'n=40&path=/delay/50');
    my $used = $couch->stats->{connections};
    is_deeply(statuses($got), { 200 => 40 }, '40 at once');
    is($used, 40, 'on a connection each');

    # 16 of them are kept.
    ask($nginx, 'n=16&path=/delay/50');
    is($couch->stats->{connections}, $used, '16 more need no new one');

    ask($nginx, 'n=17&path=/delay/50');
    is($couch->stats->{connections}, $used + 1, 'the 17th does');

    # Kept when all places are busy, too.
    $couch->forget;
    ($got) = ask($nginx, 'n=400&path=/delay/10');
    cmp_ok($couch->stats->{connections}, '<=', 64,
           '400 requests on not more than 64 connections');
};


subtest 'limits' => sub {
    $couch->forget;

    my ($got, $report) = ask($nginx, 'n=500&path=/delay/20');
    is_deeply(statuses($got), { 200 => 500 }, '500 requests at once');
    ok(once($got), 'each handler was called once');
    is($couch->stats->{busiest}, 64, 'CouchDB had 64 at a time');
    is_deeply($report, { busy => 0, errors => 0 }, 'none was refused');

    ($got, $report) = ask($nginx, 'n=4200&now=1&path=/ok');
    is($report->{busy}, 40, 'more than 4160 are refused');
    ok(!(grep { $_->{calls} } @$got), 'cancelled: no handler was called');

    ($got, $report) = ask($nginx, 'n=4200&path=/ok');
    is($report->{busy}, 40, 'there is room again');
    is_deeply(statuses($got), { 200 => 4160, 0 => 40 }, 'all that were taken');

    # A client waits for one, and nobody for those that were there before.
    $couch->forget;
    request($nginx, 'GET', '/send?n=200&detach=1&path=/delay/30');
    ($got) = ask($nginx, 'waited=1&path=/ok/waited');
    is($got->{status}, 200, 'a request that a client waits for');
    my @order = @{ $couch->stats->{order} };
    my ($place) = grep { $order[$_] eq '/ok/waited' } 0 .. $#order;
    cmp_ok($place, '<=', 128, 'goes before those that wait');
    ok((wait_for { $couch->stats->{paths}{'/delay/30'} == 200 }),
       'which come after it');
};


subtest 'failures of one server' => sub {
    for my $path ('drop', 'part', 'half', 'headers', 'garbage') {
        my ($got) = ask($nginx, "echo=1&path=/$path");
        is_deeply([@$got{qw(status calls answer)}], [502, 1, ''],
                  "/$path is 502");
    }

    # On a connection that was not kept: curl tries others of those itself.
    request($nginx, 'GET', '/exit');
    $couch->forget;
    my ($got) = ask($nginx, 'path=/half');
    is($couch->stats->{paths}{'/half'}, 1,
       'what was answered in part is not asked again');
    ($got) = ask($nginx, 'path=/drop');
    is($couch->stats->{paths}{'/drop'}, 2, 'what was not answered, once more');

    for my $how ('drop', 'reset') {
        ($got) = ask($nginx, "echo=1&method=POST&size=100000&path=/$how/$$");
        is_deeply([@$got{qw(status calls answer)}], [200, 1, '{"ok":true}'],
                  "/$how: the second time it is answered");
    }

    # A connection that is kept, and ends with the next request.
    for my $size (10, 1_000_000) {
        ask($nginx, 'n=5&path=/poison');
        my $args = "method=POST&size=$size&n=5&path=/ok";
        ($got) = ask($nginx, $args);
        is_deeply(statuses($got), { 200 => 5 },
                  "a kept connection ends: $size");
    }

    $couch->forget;
    my $before = time;
    ($got) = ask($nginx, 'timeout=300&path=/hang');
    is($got->{status}, 504, 'no answer: 504');
    cmp_ok(time - $before, '<', 2, 'in time');
    is($couch->stats->{paths}{'/hang'}, 1, 'and not asked again');

    # A request in the queue has no more time than others.
    ($got) = ask($nginx, 'n=100&timeout=300&path=/hang');
    is_deeply(statuses($got), { 504 => 100 }, 'also of those that waited');
    ok(once($got), 'once each');

    ($got) = ask($nginx, 'path=/status/401');
    ($got) = ask($nginx, 'n=20&path=/status/403');
    my $said = lines_like($nginx, qr/does not accept the vibe_credentials/);
    cmp_ok($said, '>=', 1, 'a wrong password is logged');
    cmp_ok($said, '<=', 3, 'not for each request');
};


subtest 'answers that are too large' => sub {
    my $nginx = start(address => [$couch->address], max => '100k');

    for my $kind ('bytes', 'chunked') {
        my ($got) = ask($nginx, "path=/$kind/102400");
        is_deeply([@$got{qw(status length too_large)}], [200, 102400, 0],
                  "$kind: as large as may be");

        ($got) = ask($nginx, "path=/$kind/102401");
        is_deeply([@$got{qw(status length too_large calls)}], [502, 0, 1, 1],
                  "$kind: one byte more");

        ($got) = ask($nginx, "path=/$kind/5000000");
        is_deeply([@$got{qw(status length too_large)}], [502, 0, 1],
                  "$kind: far more");
    }

    is(lines_like($nginx, qr/larger than vibe_max_response/), 4,
       'a line of log for each');
};


subtest 'feeds' => sub {
    my ($got) = ask($nginx, 'feed=1&echo=1&path=/feed/split');
    is_deeply([@$got{qw(status calls lines answer)}],
              [200, 1, 5, '{"a":1}|{"b":2}|{"c":3}|{"d":4}|{"last":5}|'],
              'lines come whole');

    ($got) = ask($nginx, 'feed=1&echo=1&path=/feed/cut');
    is_deeply([@$got{qw(status calls lines answer)}], [502, 1, 1, '{"a":1}|'],
              'one that is cut off is 502');

    my $before = time;
    ($got) = ask($nginx, 'feed=1&echo=1&timeout=400&path=/feed/idle');
    is_deeply([@$got{qw(status calls answer)}], [504, 1, '{"a":1}|'],
              'one that is silent is 504');
    cmp_ok(time - $before, '>', 0.3, 'not before its time');
    cmp_ok(time - $before, '<', 2, 'nor long after');

    ($got) = ask($nginx, 'feed=1&timeout=600&echo=1&path=/feed/beats');
    is_deeply([@$got{qw(status answer)}], [200, '{"a":1}|{"b":2}|'],
              'heartbeats are no lines, and keep it');

    ($got) = ask($nginx, 'feed=1&timeout=300&path=/hang');
    is($got->{status}, 504, 'one that never begins');

    ($got) = ask($nginx, 'feed=1&echo=1&path=/status/404');
    is_deeply([@$got{qw(status lines answer)}], [404, 0, '{"error":"mock"}'],
              'what is no feed has no lines');

    ($got) = ask($nginx, 'feed=1&path=/drop');
    is($got->{status}, 502, 'no answer');

    ($got) = ask($nginx, 'feed=1&path=/feed/fits');
    is_deeply([@$got{qw(status lines length)}], [200, 1, 1_000_001],
              'a line of 1 MB');
    ($got) = ask($nginx, 'feed=1&path=/feed/long');
    is_deeply([@$got{qw(status lines too_large)}], [502, 0, 1],
              'a line that is longer than may be');

    ($got) = ask($nginx, 'feed=1&stop_line=3&path=/feed/many');
    is_deeply([@$got{qw(status calls lines)}], [502, 1, 3],
              'a line that is refused ends it');

    for my $line (1, 20, 50, 51) {
        ($got) = ask($nginx, "feed=1&cancel_line=$line&path=/feed/many");
        is_deeply([@$got{qw(status calls lines)}], [0, 0, $line],
                  "cancelled from its line $line");
    }

    ($got) = ask($nginx, 'feed=1&cancel_line=5&path=/feed/split');
    is_deeply([@$got{qw(calls lines)}], [0, 5],
              'cancelled from what the end of the answer made a line');

    # Requests that are sent, and others that are cancelled, from a line.
    ($got) = ask($nginx, 'n=1&feed=1&spawn=30&path=/feed/split');
    is_deeply(statuses($got), { 200 => 6 }, 'a line sends requests');

    ($got) = ask($nginx, 'n=20&feed=1&cancel_rest=1&path=/feed/split');
    is((scalar grep { $_->{calls} } @$got), 1, 'a line cancels other feeds');

    # Feeds leave room for requests.
    $couch->forget;
    request($nginx, 'GET', '/send?n=100&feed=1&detach=1&cancel=3000'
                           . '&path=/feed/hang');
    ok((wait_for { $couch->stats->{busiest} == 100 }), '100 feeds at once');
    ($got) = ask($nginx, 'n=100&timeout=2000&path=/ok');
    is_deeply(statuses($got), { 200 => 100 }, 'do not keep requests waiting');
    request($nginx, 'GET', '/exit');
};


subtest 'cancelled' => sub {
    my ($got) = ask($nginx, 'n=100&cancel=100&path=/hang');
    is_deeply(statuses($got), { 0 => 100 }, 'at work and in the queue');

    ($got) = ask($nginx, 'n=100&cancel=30&method=POST&size=1000000&path=/hang');
    is_deeply(statuses($got), { 0 => 100 }, 'while they are sent');

    ($got) = ask($nginx, 'n=100&cancel_rest=1&path=/delay/20');
    is_deeply(statuses($got), { 0 => 99, 200 => 1 },
              'all others from a handler');

    ($got) = ask($nginx, 'n=10&cancel_rest=1&timeout=100&path=/hang');
    is_deeply(statuses($got), { 0 => 9, 504 => 1 }, 'at the end of their time');

    ($got) = ask($nginx, 'n=10&again=20&path=/ok');
    is_deeply([map { $_->{calls} } @$got], [(21) x 10],
              'sent again from handlers');

    my $stats = stats($nginx);
    is($stats->{wrong}, 0, 'no handler was called for what was over');

    ($got) = ask($nginx, 'path=/ok');
    is($got->{status}, 200, 'the client still works');
};


subtest 'the client ends' => sub {
    for (1 .. 5) {
        ask($nginx, 'n=3&path=/bytes/100000');
        request($nginx, 'GET', '/send?n=5&feed=1&detach=1&path=/feed/many');
        request($nginx, 'GET', '/send?n=100&detach=1&path=/hang');
        my $stats = (request($nginx, 'GET', '/exit'))[1];
        is($stats->{free}, stats($nginx)->{free}, 'no connection is left');
    }

    my ($got) = ask($nginx, 'path=/ok');
    is($got->{status}, 200, 'a new one works');
};


subtest 'nobody there' => sub {
    my $port = free_port();
    my $nginx = start(address => ["127.0.0.1:$port"]);

    my ($got) = ask($nginx, 'n=50&path=/ok');
    is_deeply(statuses($got), { 503 => 50 }, 'refused: 503');
    ok(once($got), 'once each');
    is(lines_like($nginx, qr/\[error\].*127\.0\.0\.1:$port cannot be reached/),
       1, 'one line of log');

    my $late = Server->start(port => $port);
    ($got) = ask($nginx, 'path=/ok');
    is($got->{status}, 200, 'the only address is tried at any time');
    ask($nginx, 'path=/ok');
    is(lines_like($nginx, qr/\[info\].*works again/), 1, 'and that is logged');
    $late->stop;

    $nginx = start();
    ($got) = ask($nginx, 'n=3&again=3&path=/ok');
    is_deeply(statuses($got), { 503 => 3 }, 'no address at all: 503');

    # Its queue of connections is full, so that it does not even refuse.
    my $deaf = IO::Socket::INET->new(Listen => 1, LocalAddr => '127.0.0.1');
    my @full = map { IO::Socket::INET->new(PeerAddr => '127.0.0.1',
                                           PeerPort => $deaf->sockport,
                                           Blocking => 0) } 1 .. 4;
    my $address = '127.0.0.1:' . $deaf->sockport;
    $nginx = start(address => [$address], connect => '300ms');

    my $before = time;
    ($got) = ask($nginx, 'path=/ok');
    is($got->{status}, 503, 'no connection in time: 503');
    cmp_ok(time - $before, '<', 2, 'and only once');

    $nginx = start(address => [$address, $couch->address], connect => '300ms');
    ($got) = ask($nginx, 'n=20&path=/ok');
    is_deeply(statuses($got), { 200 => 20 }, 'another address stands in');
};


subtest 'two addresses' => sub {
    my $port = free_port();
    my $other = Server->start(port => $port);
    my $nginx = start(address => [$couch->address, $other->address]);

    $couch->forget;
    my ($got) = ask($nginx, 'n=40&path=/ok/both');
    is_deeply(statuses($got), { 200 => 40 }, 'both there');
    is_deeply([map { $_->stats->{paths}{'/ok/both'} } $couch, $other],
              [20, 20], 'in turn');

    $other->stop;
    ($got) = ask($nginx, 'n=100&path=/ok');
    is_deeply(statuses($got), { 200 => 100 }, 'one gone: all are answered');

    # What the client tries there: a listener that closes at once.
    my $listen = IO::Socket::INET->new(Listen => 1024, ReuseAddr => 1,
                                       LocalAddr => '127.0.0.1',
                                       LocalPort => $port);
    my $tries = 0;
    my $end = time + 1.5;
    my $bad = 0;
    while (time < $end) {
        my ($one) = race_ask($nginx, $listen, \$tries);
        $bad++ if $one->{status} != 200;
    }
    is($bad, 0, 'one broken: all are answered');
    cmp_ok($tries, '>=', 1, 'it is tried');
    cmp_ok($tries, '<=', 8, "but hardly ($tries times)");
    close $listen;

    # And as soon as it is back, it has its share.
    $other = Server->start(port => $port);
    ok((wait_for { ask($nginx, 'n=2&path=/ok');
                   $other->stats->{connections} }),
       'it is used again');
    is(lines_like($nginx, qr/127\.0\.0\.1:$port works again/), 1,
       'which is logged');
    my $said = lines_like($nginx, qr/\[error\].*127\.0\.0\.1:$port /);
    cmp_ok($said, '<=', 2, 'as its failures are');
};


# One request, while connections to the listener are closed; counts them.

sub race_ask {
    my ($nginx, $listen, $tries) = @_;

    my $request = send_request($nginx, 'GET', '/send?path=/ok', undef, undef);
    my $select = IO::Select->new($listen, $request->{sock});

    for (;;) {
        my @ready = $select->can_read(5) or last;
        if (grep { $_ == $listen } @ready) {
            close $listen->accept;
            $$tries++;
            next;
        }
        last;
    }

    my ($status, $report) = answer_of($request);
    return $report->{got}[0];
}


subtest 'a unix socket' => sub {
    my $path = Vibe::dir() . '/couch.sock';
    my $server = Server->start(unix => $path);
    my $nginx = start(address => ["unix:$path"]);

    my ($got) = ask($nginx, 'n=20&echo=1&path=/echo');
    is_deeply(statuses($got), { 200 => 20 }, 'works');
    is($json->decode($got->[0]{answer})->{header}{host}, 'couchdb',
       'with the configured name');

    $server->stop;
    ($got) = ask($nginx, 'path=/ok');
    is($got->{status}, 503, 'and is not there');

    # One of each kind.
    $nginx = start(address => ["unix:$path", $couch->address]);
    ($got) = ask($nginx, 'n=20&path=/ok');
    is_deeply(statuses($got), { 200 => 20 }, 'another address stands in');
};


subtest 'TLS' => sub {
    my $dir = Vibe::dir();
    my $run = sub {
        system("cd '$dir' && openssl $_[0] >openssl.log 2>&1") == 0
            or die "openssl $_[0]: " . read_file("$dir/openssl.log");
    };

    for my $ca ('good', 'bad') {
        $run->("req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes"
               . " -keyout $ca.key -out $ca.pem -days 2 -subj /CN=$ca");
    }
    for my $name ('couchdb', 'elsewhere') {
        write_file("subjectAltName=DNS:$name\n", "$name.ext");
        $run->("req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes"
               . " -keyout $name.key -out $name.csr -subj /CN=$name");
        $run->("x509 -req -in $name.csr -CA good.pem -CAkey good.key -days 2"
               . " -CAcreateserial -extfile $name.ext -out $name.pem");
    }

    my %port = map { $_ => free_port() } 'couchdb', 'elsewhere';
    my $front = join('', map { <<"EOF2" } sort keys %port);
server {
    listen 127.0.0.1:$port{$_} ssl;
    ssl_certificate $dir/$_.pem;
    ssl_certificate_key $dir/$_.key;
    client_max_body_size 8m;
    location / {
        proxy_pass http://${\ $couch->address };
        proxy_set_header Host \$http_host;
        proxy_set_header X-Name \$ssl_server_name;
    }
}
EOF2

    my $nginx = start(url => 'https://couchdb', http => $front,
                      address => ["127.0.0.1:$port{couchdb}"],
                      trusted => "$dir/good.pem");
    my ($got) = ask($nginx, 'n=10&echo=1&method=POST&size=100000&path=/echo');
    my $echo = $json->decode($got->[0]{answer} || '{}');
    is_deeply(statuses($got), { 200 => 10 }, 'a certificate that is trusted');
    is($echo->{header}{'x-name'}, 'couchdb',
       'the configured name is asked for');
    is($echo->{header}{host}, 'couchdb', 'and is the host');
    is($echo->{md5}, md5_hex(Server::pattern(100_000)), 'what was sent');
    ($got) = ask($nginx, 'path=/bytes/5000000');
    is($got->{md5}, md5_hex(Server::pattern(5_000_000)), '5 MB');
    ($got) = ask($nginx, 'feed=1&echo=1&path=/feed/split');
    is($got->{lines}, 5, 'a feed');

    my %wrong = (
        'a wrong name' => [elsewhere => "$dir/good.pem"],
        'an unknown authority' => [couchdb => "$dir/bad.pem"],
        'none of the system\'s authorities' => [couchdb => undef],
        'no file of authorities' => [couchdb => "$dir/none.pem"],
    );

    for my $what (sort keys %wrong) {
        my ($name, $trusted) = @{ $wrong{$what} };
        my $port = free_port();
        my $nginx = start(url => 'https://couchdb',
                          address => ["127.0.0.1:$port{$name}"],
                          trusted => $trusted);
        my ($got) = ask($nginx, 'path=/ok/secret');
        is($got->{status}, 503, "$what: 503");
        like($nginx->log, qr/\[error\].*couchdb/, 'it is logged');
        $nginx->stop;
    }

    ok(!$couch->stats->{paths}{'/ok/secret'}, 'nothing was sent to these');
};


subtest 'the environment' => sub {
    my $main = join('', map { "env $_=http://127.0.0.1:1;\n" }
                            qw(http_proxy https_proxy all_proxy HTTP_PROXY
                               ALL_PROXY));
    my $nginx = start(address => [$couch->address], main => $main,
                      level => 'debug');
    my ($got) = ask($nginx, 'path=/ok');
    is($got->{status}, 200, 'has no proxy for us');
};


subtest 'few connections' => sub {
    my $nginx = start(address => [$couch->address]);
    my $conf = "$nginx->{prefix}/nginx.conf";
    my $text = read_file($conf);
    my ($old) = $nginx->workers;

    $text =~ s/worker_connections 1024/worker_connections 30/;
    unlink $conf;
    open(my $fh, '>', $conf) or die "$conf: $!\n";
    print {$fh} $text;
    close $fh;
    $nginx->signal('HUP');
    ok((wait_for { my @now = $nginx->workers; @now == 1 && $now[0] != $old }),
       'a worker with 30');

    my ($got) = ask($nginx, 'n=60&path=/delay/200');
    my $n = statuses($got);
    ok(once($got), 'all handlers are called');
    cmp_ok($n->{200} // 0, '>=', 10, 'some have a connection');
    is(($n->{200} // 0) + ($n->{503} // 0), 60, 'the others are 503');

    ($got) = ask($nginx, 'n=60&feed=1&timeout=300&path=/feed/idle');
    $n = statuses($got);
    is(($n->{504} // 0) + ($n->{503} // 0), 60, 'so are feeds');

    ($got) = ask($nginx, 'n=10&path=/ok');
    is_deeply(statuses($got), { 200 => 10 }, 'then all is well');

    # nginx's own alert is in the log.
    kill('QUIT', $nginx->pid);
    ok((wait_for { waitpid($nginx->pid, POSIX::WNOHANG) != 0 }), 'it ends');
    delete $nginx->{pid};
    unlike($nginx->log, qr/open socket|Sanitizer|runtime error|on signal/,
           'with nothing left');
    @nginx = grep { $_ != $nginx } @nginx;
};


subtest 'a worker ends' => sub {
    my $nginx = start(address => [$couch->address]);

    my $request = send_request($nginx, 'GET',
                               '/send?waited=1&path=/delay/700', undef, undef);
    my $queued = send_request($nginx, 'GET',
                              '/send?n=100&waited=1&echo=1&path=/delay/150',
                              undef, undef);
    request($nginx, 'GET', '/send?n=10&detach=1&path=/hang');
    request($nginx, 'GET', '/send?feed=1&detach=1&path=/feed/beats');
    ok((wait_for { stats($nginx)->{sent} == 112 }), 'all are there');
    $nginx->signal('QUIT');

    my ($status, $report) = answer_of($request);
    is($status, 200, 'a client that waits is answered');
    is($report->{got}[0]{status}, 200, 'after CouchDB was');
    ($status, $report) = answer_of($queued);
    is_deeply(statuses($report->{got}), { 200 => 100 },
              'also from the queue');
    $nginx->stop;

    $nginx = start(address => [$couch->address]);
    request($nginx, 'GET', '/send?n=100&detach=1&path=/hang');
    request($nginx, 'GET', '/send?n=10&feed=1&detach=1&path=/feed/hang');
    my $before = time;
    $nginx->stop;
    cmp_ok(time - $before, '<', 3, 'what nobody waits for keeps no worker');

    # The time of those that are waited for is bounded.
    $nginx = start(address => [$couch->address]);
    $request = send_request($nginx, 'GET',
                            '/send?waited=1&timeout=500&path=/hang', undef,
                            undef);
    ok((wait_for { stats($nginx)->{sent} == 1 }), 'one is there');
    $nginx->signal('QUIT');
    ($status, $report) = answer_of($request);
    is($report->{got}[0]{status}, 504, 'a hanging one is answered in time');
    $nginx->stop;

    # And so is that of a worker.
    $nginx = start(address => [$couch->address],
                   main => "worker_shutdown_timeout 300ms;\n");
    ask($nginx, 'n=5&path=/ok');
    $before = time;
    request($nginx, 'GET', '/send?n=100&waited=1&detach=1&path=/hang');
    $nginx->stop;
    cmp_ok(time - $before, '<', 5, 'worker_shutdown_timeout ends all');
};


subtest 'reloads' => sub {
    my $nginx = start(address => [$couch->address]);
    my @fds;

    my ($worker, $master) = map { least_fds($_) } $nginx->workers, $nginx->pid;

    for my $turn (1 .. 20) {
        request($nginx, 'GET', '/send?n=10&detach=1&path=/hang');
        request($nginx, 'GET', '/send?n=3&feed=1&detach=1&path=/feed/hang');
        ask($nginx, 'n=10&path=/ok');
        my ($old) = $nginx->workers;
        $nginx->reload;
        my @left;
        wait_for { @left = $nginx->workers; @left == 1 && $left[0] != $old };

        push @fds, wait_for { count_fds($left[0]) == $worker } ? 'as many'
                   : count_fds($left[0]);
    }

    is_deeply(\@fds, [('as many') x 20],
              "each worker has the descriptors of the first ($worker)");
    ok((wait_for { count_fds($nginx->pid) == $master }),
       "and the master ($master)");
};


sub count_fds { return scalar(() = glob "/proc/$_[0]/fd/*") }

# It may be about to close some that it had for its start.

sub least_fds {
    my ($pid) = @_;

    my ($least) = sort { $a <=> $b }
                      map { sleep 0.02; count_fds($pid) } 1 .. 15;
    return $least;
}


subtest 'back-off' => sub {
    my @rows = ([1, 200, 10000, 150, 250], [2, 200, 10000, 300, 500],
                [6, 200, 10000, 4800, 8000], [7, 200, 10000, 7500, 12500],
                [1000, 200, 10000, 7500, 12500], [1, 0, 0, 0, 0],
                [5, 3, 2, 1, 3], [0, 100, 1000, 75, 125]);

    for my $row (@rows) {
        my ($failures, $first, $last, $min, $max) = @$row;
        my %seen;
        for (1 .. 10) {
            my ($status, $ms) = request($nginx, 'GET',
                "/backoff?failures=$failures&first=$first&last=$last");
            $seen{$ms}++;
        }
        my @all = sort { $a <=> $b } keys %seen;
        ok($all[0] >= $min && $all[-1] <= $max,
           "failure $failures: $all[0] to $all[-1] ms");
        cmp_ok(scalar @all, '>', 1, 'not always the same') if $max > 100;
    }
};


$_->stop for grep { $_->{pid} } @nginx;

my @told = grep { /\Q$secret\E|\Q$basic\E/ } map { split /\n/, $_->log } @nginx;
is(scalar @told, 0, 'no log has the password');

done_testing();
