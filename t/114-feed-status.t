# What vibe_status tells of feeds, and vibe_aggregate, which runs them by hand:
# it answers when runs that began after the request have ended, and says so
# where nobody can run them.

use strict;
use warnings;

use File::Temp qw(tempdir);
use IO::Select;
use IO::Socket::INET;
use JSON::PP;
use POSIX qw(strftime);
use Test::More;
use Time::HiRes qw(sleep time);
use Vibe;
use Vibe::Couch;
use Vibe::Faults;
use Vibe::H2;
use Vibe::Prometheus;

my $json = JSON::PP->new->utf8->canonical->allow_nonref;
my ($true, $false) = (JSON::PP::true, JSON::PP::false);

my $path = '/vibe/aggregate';
my $alice = did('alice');
my $token = token($alice);
my $feed = '_global_posts';
my $db = 'vibe_global_posts';

my $locations = "location = $path { vibe_aggregate; }"
                . ' location = /vibe/status { vibe_status; }';

# The members of a feed's object.
my @numbers = qw(rows duration databases changed runs failed);
my @flags = qw(full running);
my @times = qw(last_run next_run);

# What Prometheus is told of each, and of which member that is.
my %metric = (
    vibe_feed_rows => 'rows', vibe_feed_databases => 'databases',
    vibe_feed_changed => 'changed', vibe_feed_runs_total => 'runs',
    vibe_feed_failed_total => 'failed',
    vibe_feed_duration_seconds => 'duration',
    vibe_feed_last_run_timestamp_seconds => 'last_run',
    vibe_feed_next_run_timestamp_seconds => 'next_run',
);


# registry([$name => $collection ...]): a file of feeds that run by hand only,
# but for the first time.

sub registry {
    my ($file, %feed) = @_;

    my @feeds = map { {
        collectionName => $feed{$_}, materializedViewName => $_,
        aggregationInterval => '1d',
        query => { selector => { type => 'post' },
                   fields => ['_id', 'n', 'createdAt'],
                   sort => [{ createdAt => 'desc' }] },
    } } sort keys %feed;

    return replace($file, $json->encode(\@feeds));
}


sub replace {
    my ($file, $text) = @_;

    $file //= write_file('');
    open(my $fh, '>', "$file.new") or die "$file: $!\n";
    print {$fh} $text;
    close $fh or die "$file: $!\n";
    rename("$file.new", $file) or die "$file: $!\n";
    return $file;
}


# aggregating($file, %option): an nginx with the feeds of this file; as
# nginx_start(), and
#
#     directives => TEXT   more of them for `http {}`
#     couchdb    => URL
#     h2         => PORT   HTTP/2, there

sub aggregating {
    my ($file, %opt) = @_;

    my $extra = "vibe_zone vibe 8m;\n" . (delete $opt{directives} // '');
    $extra .= "\nvibe_registry $file;" if defined $file;
    my $couch = delete $opt{couchdb};
    my $h2 = delete $opt{h2};
    $extra .= "\nserver { listen 127.0.0.1:$h2 http2; $locations }" if $h2;

    return nginx_start(
        http => http_config(extra => $extra,
                            $couch ? (couchdb => $couch) : ()),
        server => server_config(extra => $locations), %opt);
}


sub run_feed {
    my ($nginx, $query, $body, %header) = @_;

    return request($nginx, 'POST', $path . ($query // ''), undef, $body,
                   %header);
}


sub status {
    my ($nginx) = @_;

    my ($status, $answer) = request($nginx, 'GET', '/vibe/status');
    die "no status: $status\n" if $status != 200 || ref $answer ne 'HASH';
    return $answer;
}


sub metrics {
    my ($nginx) = @_;

    my (undef, undef, undef, $text)
        = request($nginx, 'GET', '/vibe/status?format=prometheus');
    my ($type, $value) = eval { prometheus($text) };
    ok($value, 'the text format is well-formed') or diag($@, $text);
    return ($type // {}, $value // {});
}


sub iso { return strftime('%Y-%m-%dT%H:%M:%S', gmtime($_[0])) }


# asks($nginx [, $query]): sends a POST and waits for no answer, which answer()
# reads: the status and the JSON.

sub asks {
    my ($nginx, $query) = @_;

    my $c = IO::Socket::INET->new(PeerAddr => '127.0.0.1',
                                  PeerPort => $nginx->port)
        or die "connect: $@\n";
    print {$c} "POST $path" . ($query // '') . " HTTP/1.1\r\nHost: x\r\n"
               . "Connection: close\r\nContent-Length: 0\r\n\r\n";
    return $c;
}


sub answer {
    my ($c, $seconds) = @_;

    my $text = '';
    my $end = time + ($seconds // 30);

    while (time < $end) {
        next if !IO::Select->new($c)->can_read(0.1);
        last if !sysread($c, $text, 65536, length $text);
    }

    my ($status) = $text =~ m{^HTTP/1\.1 (\d+)};
    my ($body) = $text =~ m{\r\n\r\n(.*)}s;
    return ($status // 0, eval { $json->decode($body // '') } // {}, $text);
}


# ran($nginx, $feed): the feed's object when a run of it has ended.

sub ran {
    my ($nginx, $name) = @_;

    my $s;
    my $found = wait_for {
        $s = status($nginx);
        my $f = $s->{feeds}{$name};
        return $f && $f->{last_run} && !$f->{running} && $f;
    } 60;

    ok($found, "$name: a first run") or diag($json->encode($s), $nginx->log);
    return $found // {};
}


my $binary = $ENV{TEST_NGINX_BINARY} || 'nginx';
my $load = join('', map { "load_module $_; " }
                    split ' ', $ENV{TEST_NGINX_LOAD_MODULES} // '');
my $root = tempdir('feeds-XXXXXX', TMPDIR => 1, CLEANUP => 1);


# check($http, $server): what `nginx -t` says of it; on the lines 3 and 5.

sub check {
    my ($http, $server) = @_;

    open(my $fh, '>', "$root/nginx.conf") or die "$root: $!\n";
    print {$fh} <<"EOF_CONF";
$load pid nginx.pid; error_log stderr; events { }
http { access_log off; vibe_couchdb http://127.0.0.1:1;
$http
server { listen 127.0.0.1:@{[ free_port() ]};
$server
} }
EOF_CONF
    close $fh;

    my $text = `'$binary' -t -p '$root/' -c '$root/nginx.conf' -e stderr 2>&1`;
    return ($? == 0, $text);
}


subtest 'configurations' => sub {
    my $zone = 'vibe_zone vibe 1m;';

    for (['the least', $zone, "location = $path { vibe_aggregate; }"],
         ['two locations', $zone,
          "$locations location /x { vibe_aggregate; deny all; }"],
         ['without repair', "$zone vibe_repair off;", $locations])
    {
        my ($name, @conf) = @$_;
        my ($ok, $text) = check(@conf);
        ok($ok, $name) or diag($text);
    }

    for ([3, 'vibe_aggregate;', ''],
         map { [5, $zone, $_] }
             'vibe_aggregate;', 'location /x/ { vibe_aggregate on; }',
             'location /x/ { vibe_aggregate; vibe_aggregate; }',
             'location /x/ { vibe_aggregate; vibe_status; }',
             'location /x/ { vibe_status; vibe_aggregate; }',
             'location /x/ { vibe_aggregate; vibe_data; }',
             'location /x/ { vibe_data; vibe_aggregate; }')
    {
        my ($line, $http, $server) = @$_;
        my ($ok, $text) = check($http, $server);
        my $name = $line == 3 ? $http : $server;

        ok(!$ok, "refused: $name") or next;
        like($text, qr/\[emerg\].* in \Q$root\E\/nginx\.conf:$line\b/,
             "where: $name");
    }

    my ($ok, $text) = check('', "location = $path { vibe_aggregate; }");
    ok(!$ok, 'vibe_aggregate without vibe_zone');
    like($text, qr/\[emerg\].*"vibe_aggregate" needs "vibe_zone"/, 'and why');
};


subtest 'without feeds' => sub {
    my $nginx = aggregating(undef, server => server_config(extra => $locations
                    . ' location = /closed { vibe_aggregate; deny all; }'));

    my ($status, $answer, $header) = run_feed($nginx);
    is($status, 200, 'there is nothing to do');
    is_deeply($answer, { ok => $true, feeds => {} }, 'which is done');
    is($header->{'content-type'}, 'application/json', 'in JSON');
    is($header->{'cache-control'}, 'no-store', 'not to be kept');

    for my $query ('feed=x', "feed=$feed", 'feed=%00', 'feed=%ff%fe', 'feed=/',
                   'feed=' . 'x' x 4000, 'x=1&feed=_x', 'feed=%22%5c')
    {
        ($status, $answer) = run_feed($nginx, "?$query");
        is($status, 404, substr($query, 0, 20) . ': 404');
        is_deeply([sort keys %$answer], ['error', 'reason'], 'its shape');
        is($answer->{error}, 'not_found', 'its name');
    }

    for my $query ('?', '?feed=', '?x=1') {
        is((run_feed($nginx, $query))[0], 200, "'$query': all of none");
    }

    for my $method (qw(GET HEAD PUT DELETE OPTIONS PATCH)) {
        ($status, $answer, $header)
            = request($nginx, $method, $path, undef,
                      $method =~ /P/ ? { a => 1 } : undef);
        is($status, 405, "$method: 405");
        is($answer->{error}, 'method_not_allowed', 'in JSON')
            if $method ne 'HEAD';
        is($header->{allow}, 'POST', 'Allow');
        is($header->{'cache-control'}, 'no-store', 'not to be kept');
    }

    is((request($nginx, 'POST', '/closed'))[0], 403, 'deny works');

    for my $body ('{', "\xff", '{"feed":"_x"}', 'x' x 900_000) {
        ($status) = run_feed($nginx, '', $body);
        is($status, 200, 'a body is not read: ' . substr($body, 0, 9));
    }

    # … nor taken for the next request.
    for my $body ("Content-Length: 5\r\n\r\nabcde",
                  "Transfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n0\r\n\r\n")
    {
        my $c = IO::Socket::INET->new(PeerAddr => '127.0.0.1',
                                      PeerPort => $nginx->port);
        print {$c} "POST $path HTTP/1.1\r\nHost: x\r\n$body"
                   . "GET $path HTTP/1.0\r\n\r\n";
        my (undef, undef, $text) = answer($c);
        is(join(' ', $text =~ m{^HTTP/1\.1 (\d+)}mg), '200 405',
           'two answers');
    }

    my $s = status($nginx);
    is_deeply($s->{registry}, { error => undef }, 'nothing is wrong');
    is_deeply($s->{feeds}, {}, 'nothing is there');

    my (undef, $value) = metrics($nginx);
    is($value->{'vibe_registry_ok{}'}, 1, 'Prometheus is told, too');
    ok(!(grep { /^vibe_feed/ } keys %$value), 'and of no feed');

    $nginx->stop;
};


# Until the worker that runs feeds is there.

if ((check("vibe_registry $root/none;", ''))[1]
    =~ /unknown directive "vibe_registry"/)
{
    note('there are no feeds to run');
    done_testing();
    exit 0;
}


# ---- with feeds -------------------------------------------------------------

my $couch = Vibe::Couch->start;
$couch->make_default;

my $one = registry(undef, $feed => 'posts');
my $n = 0;


sub post {
    my ($nginx, %doc) = @_;

    my ($status) = request($nginx, 'POST', '/data/posts', $token,
        { type => 'post', n => ++$n, createdAt => $n,
          acl => { global => $true }, %doc });
    return $status;
}


subtest 'repair is off' => sub {
    my $nginx = aggregating($one, directives => 'vibe_repair off;');

    my ($status, $answer, $header) = run_feed($nginx);
    is($status, 503, 'refused');
    is($answer->{error}, 'service_unavailable', 'in JSON');
    like($answer->{reason}, qr/background work/, 'it says why');
    ok($header->{'retry-after'}, 'Retry-After');

    $nginx->stop;
};


subtest 'what is told of a feed' => sub {
    my $nginx = aggregating($one);
    my $first = ran($nginx, $feed);

    is(post($nginx), 201, 'a post') for 1 .. 3;
    is(post($nginx, acl => {}), 201, 'a private one');

    my $began = time;
    my ($status, $answer) = run_feed($nginx, "?feed=$feed");
    my $ended = time;

    is($status, 200, 'a run by hand');
    is($answer->{ok}, $true, 'it went well');
    is(join(' ', keys %{ $answer->{feeds} }), $feed, 'of this one');

    my $f = $answer->{feeds}{$feed};
    is_deeply([sort keys %$f], [sort @numbers, @flags, @times, 'error'],
              'its members');
    like($f->{$_}, qr/^\d+(?:\.\d+)?$/, "$_ is a number") for @numbers;
    ok(JSON::PP::is_bool($f->{$_}), "$_ is a flag") for @flags;
    like($f->{$_}, qr/^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$/,
         "$_ is a time") for @times;

    is($f->{rows}, 3, 'what others may read');
    is($f->{error}, undef, 'no error');
    ok(!$f->{running}, 'it has ended');
    is($f->{runs}, $first->{runs} + 1, 'a run is counted');
    is($f->{failed}, $first->{failed}, 'none has failed');
    cmp_ok($f->{changed}, '>=', 3, 'rows have changed');
    ok($f->{last_run} ge iso($began) && $f->{last_run} le iso($ended + 1),
       'it began after the request');
    cmp_ok($f->{duration}, '<=', $ended - $began + 0.1, 'and took no longer');
    ok($f->{next_run} gt iso($ended), 'the next is to come');

    my $s = status($nginx);
    is_deeply($s->{feeds}, { $feed => $f }, 'vibe_status says the same');

    my ($type, $value) = metrics($nginx);
    for my $name (sort keys %metric) {
        my $told = $value->{"$name\{feed=\"$feed\"}"};
        my $member = $f->{ $metric{$name} };

        if ($member =~ /^(.*)(\.\d+)Z$/) {
            my ($seconds, $part) = ($1, $2);
            like($told, qr/\d\Q$part\E$/, "$name: milliseconds");
            is(iso($told), $seconds, $name);
        } else {
            cmp_ok($told, '==', $member, $name);
        }
        is($type->{$name}, $name =~ /_total$/ ? 'counter' : 'gauge',
           "$name: its type");
    }
    is(scalar(grep { /^vibe_feed_/ } keys %$value), scalar keys %metric,
       'there is no other');

    # All that is written by hand may be asked for again and again.
    ($status, $answer) = run_feed($nginx);
    is($status, 200, 'all feeds');
    is($answer->{feeds}{$feed}{runs}, $f->{runs} + 1, 'another run');

    is((run_feed($nginx, '?feed=_nothing'))[0], 404, 'one that is not there');
    is((run_feed($nginx, '?feed=posts'))[0], 404, 'a collection is no feed');
    is((run_feed($nginx, "?feed=$feed\%00"))[0], 404, 'nor is that');
    is((run_feed($nginx, '?feed=%5fglobal_posts'))[0], 200, 'an escape');

    $nginx->stop;
};


subtest 'many at once, from two workers' => sub {
    my $file = registry(undef, $feed => 'posts', _all_events => 'events');
    my $nginx = aggregating($file, workers => 2, listen => 'reuseport');

    my %first = map { $_ => ran($nginx, $_) } $feed, '_all_events';
    my @c = map { asks($nginx, $_ % 2 ? '' : "?feed=$feed") } 1 .. 20;
    my %seen;

    for my $c (@c) {
        my ($status, $answer) = answer($c);
        $seen{$status . ($answer->{ok} ? ' ok' : '')
              . " $_ "}++ for join(' ', sort keys %{ $answer->{feeds} });
    }

    is_deeply(\%seen, { "200 ok $feed " => 10,
                        "200 ok _all_events $feed " => 10 },
              'each gets its answer') or diag($nginx->log);

    my $f = status($nginx)->{feeds}{$feed};
    cmp_ok($f->{runs}, '>', $first{$feed}{runs}, 'it was run');
    cmp_ok($f->{runs}, '<=', $first{$feed}{runs} + 20,
           'not more often than asked for');

    my (undef, $value) = metrics($nginx);
    is(scalar(grep { /^vibe_feed_/ } keys %$value), 2 * keys %metric,
       'Prometheus is told of both');

    # A reload forgets nothing, and the new workers go on with it.
    my @before = $nginx->workers;
    ok($nginx->reload, 'a reload');
    ok(wait_for(sub { my %now = map { $_ => 1 } $nginx->workers;
                      !grep { $now{$_} } @before }),
       'the old workers are gone');
    cmp_ok(status($nginx)->{feeds}{$feed}{runs}, '>=', $f->{runs},
           'runs go on');

    my ($status, $answer) = run_feed($nginx);
    is($status, 200, 'a run by the new workers');
    cmp_ok($answer->{feeds}{$feed}{runs}, '>', $f->{runs}, 'it was run');

    # What is taken away is forgotten.
    registry($file, $feed => 'posts');
    ok(wait_for(sub { !status($nginx)->{feeds}{_all_events} }),
       'one is gone');
    ok(wait_for(sub { (run_feed($nginx, '?feed=_all_events'))[0] == 404 }),
       'and cannot be run');
    ($status, $answer) = run_feed($nginx);
    is(join(' ', keys %{ $answer->{feeds} }), $feed, 'the other can');

    $nginx->stop;
};


subtest 'a bad registry shows' => sub {
    my $file = registry(undef, $feed => 'posts');
    my $nginx = aggregating($file);
    ran($nginx, $feed);

    replace($file, '{');
    ok(wait_for(sub { defined status($nginx)->{registry}{error} }),
       'it does');

    my ($status, undef, undef, $text) = request($nginx, 'GET', '/vibe/status');
    is($status, 200, 'the status is well-formed');
    ok(length status($nginx)->{registry}{error}, 'it says why');
    ok(status($nginx)->{feeds}{$feed}, 'the feed is there still');
    my (undef, $value) = metrics($nginx);
    is($value->{'vibe_registry_ok{}'}, 0, 'Prometheus is told, too');

    my $answer;
    ($status, $answer) = run_feed($nginx);
    is($status, 200, 'and can be run');
    is(join(' ', keys %{ $answer->{feeds} }), $feed, 'as before');

    registry($file, $feed => 'posts');
    ok(wait_for(sub { !defined status($nginx)->{registry}{error} }),
       'a good one again');
    (undef, $value) = metrics($nginx);
    is($value->{'vibe_registry_ok{}'}, 1, 'Prometheus is told, too');

    $nginx->stop;
};


subtest 'a run that fails' => sub {
    # It answers one request after the other, so nothing that goes on for ever.
    my $faulty = faulty(sub {
        my ($method, $asked) = @_;

        return (404, { error => 'not_found', reason => 'missing' })
            if $asked =~ m{^/_db_updates|feed=continuous};
        return couch('GET', $asked) if $asked =~ s/&feed=longpoll&timeout=\d+//;
        return;
    });
    my $nginx = aggregating($one, couchdb => $faulty->{url});
    my $first = ran($nginx, $feed);

    is(post($nginx), 201, 'something new');
    fault($faulty, path => qr{^/(?:$db|vibe_state/feed)}, answer => [500, {
        error => 'internal_server_error', reason => 'a "reason"' }]);

    my ($status, $answer) = run_feed($nginx);
    is($status, 200, 'it has ended');
    is($answer->{ok}, $false, 'not well');
    my $f = $answer->{feeds}{$feed};
    ok(length($f->{error} // ''), 'with an error');
    cmp_ok($f->{failed}, '>', $first->{failed}, 'which is counted');
    is($f->{runs}, $first->{runs}, 'no run is');
    is($f->{rows}, $first->{rows}, 'the rows are as before');
    is(status($nginx)->{feeds}{$feed}{error}, $f->{error},
       'vibe_status has it');
    my (undef, $value) = metrics($nginx);
    cmp_ok($value->{"vibe_feed_failed_total{feed=\"$feed\"}"}, '>', 0,
           'Prometheus, too');

    heal($faulty);
    ($status, $answer) = run_feed($nginx);
    is("$status $answer->{ok}", '200 1', 'the next one');
    is($answer->{feeds}{$feed}{error}, undef, 'has no error');

    $nginx->stop;
};


subtest 'another host leads' => sub {
    my $first = aggregating($one);
    ran($first, $feed);

    my $second = aggregating($one);
    ok(wait_for(sub { my $l = status($second)->{lease};
                      $l->{host} && !$l->{leading} }),
       'it knows that it does not');

    my $began = time;
    my ($status, $answer, $header) = run_feed($second);
    is($status, 503, 'refused');
    cmp_ok(time - $began, '<', 2, 'at once');
    my $host = status($second)->{lease}{host};
    like($answer->{reason}, qr/"\Q$host\E"/, 'it says who does');
    ok($header->{'retry-after'}, 'Retry-After');
    is((run_feed($second, '?feed=_nothing'))[0], 404, 'one that is not there');
    is((run_feed($first))[0], 200, 'the one that leads');

    $_->stop for $second, $first;
};


# begun($nginx): that the run which somebody waits for has begun.

sub begun {
    my ($nginx) = @_;

    return ok(wait_for(sub { status($nginx)->{feeds}{$feed}{running} }),
              'a run has begun');
}


subtest 'a client that leaves' => sub {
    my $h2 = free_port();
    my $nginx = aggregating($one, h2 => $h2);
    ran($nginx, $feed);

    my $send = sub {
        my $c = IO::Socket::INET->new(PeerAddr => '127.0.0.1',
                                      PeerPort => $nginx->port);
        print {$c} "POST $path HTTP/1.1\r\nHost: x\r\n"
                   . "Content-Length: 10\r\n\r\nabcde";
        return $c;
    };
    my ($c, $id);

    for (['by HTTP/1.1', sub { $c = asks($nginx) }, sub { close $c }],
         ['after its body', sub { $c = $send->(); begun($nginx);
                                  print {$c} 'abcde' },
          sub { close $c }],
         ['within its body', sub { $c = $send->() }, sub { close $c }],
         ['by a reset', sub { $c = Vibe::H2->new($h2);
                              $id = $c->open('POST', $path, {}, 1) },
          sub { $c->reset($id) }],
         ['by HTTP/2', sub { $c = Vibe::H2->new($h2);
                             $id = $c->open('POST', $path, {}, 1) },
          sub { $c->close }])
    {
        my ($name, $ask, $leave) = @$_;

        my ($status) = run_feed($nginx);
        is($status, 200, 'all is well');

        $couch->freeze;
        my $before = length $nginx->log;
        $ask->();
        begun($nginx);
        $leave->();
        ok(wait_for(sub { substr($nginx->log, $before) =~
               /client (?:prematurely closed|canceled|closed)/ }, 3),
           "$name: it is noticed")
            or diag(substr($nginx->log, $before));
        $couch->thaw;
    }

    my $res = Vibe::H2->new($h2)->request('POST', $path, {}, 'a body');
    is($res->{status}, 200, 'nginx goes on');
    $nginx->stop;
};


subtest 'a worker that quits' => sub {
    my $nginx = aggregating($one);
    ran($nginx, $feed);
    my ($old) = $nginx->workers;

    $couch->freeze;
    my @c = map { asks($nginx) } 1 .. 3;
    begun($nginx);
    my $began = time;
    ok($nginx->reload, 'a reload');

    for my $c (@c) {
        my ($status, $answer) = answer($c);
        is($status, 503, 'who waits is told');
        like($answer->{reason}, qr/worker/, 'why');
    }
    cmp_ok(time - $began, '<', 5, 'soon');
    $couch->thaw;

    ok(wait_for(sub { !grep { $_ == $old } $nginx->workers }, 30),
       'it has ended');
    ok(wait_for(sub { (run_feed($nginx))[0] == 200 }, 30), 'the new one');

    $nginx->stop;
};


subtest 'nobody can do it' => sub {
    my $nginx = aggregating($one, directives => 'vibe_timeout 2s;');
    ran($nginx, $feed);

    $couch->freeze;
    my $began = time;
    my ($status, $answer) = run_feed($nginx);
    $couch->thaw;

    # What the run says of it may come first.
    ok($status == 503 || ($status == 200 && !$answer->{ok}),
       "the database does not answer: $status") or diag($nginx->log);
    cmp_ok(time - $began, '<', 30, 'which is told in time');

    ok(wait_for(sub { my ($s, $a) = run_feed($nginx);
                      $s == 200 && $a->{ok} }, 60), 'it works again');
    $nginx->stop;

    my $port = free_port();
    $nginx = aggregating($one, couchdb => "http://127.0.0.1:$port");
    $began = time;
    ($status, $answer, my $header) = run_feed($nginx);
    is($status, 503, 'CouchDB was never there');
    cmp_ok(time - $began, '>', 3, 'it waits for somebody who could');
    cmp_ok(time - $began, '<', 20, 'not for ever');
    ok($header->{'retry-after'}, 'Retry-After');

    # A worker that quits does not wait.
    my $c = asks($nginx);
    sleep 0.3;
    $nginx->stop;
    is((answer($c))[0], 503, 'who waits when nginx is stopped is told');
};


done_testing();
