# vibe_zone and vibe_status: what is counted, that all workers count together
# and a reload forgets nothing; the two formats, and whether nginx is ready.

use strict;
use warnings;

use File::Temp qw(tempdir);
use JSON::PP;
use MIME::Base64 qw(encode_base64);
use Test::More;
use Time::HiRes qw(sleep time);
use Vibe;
use Vibe::Faults;
use Vibe::Prometheus;

my $json = JSON::PP->new->utf8->canonical->allow_nonref;
my $true = JSON::PP::true;

my $posts = 'posts' . sprintf('%x%04x', time, $$ & 65535);
my $alice = did('alice');
my $token = token($alice);
my $path = '/vibe/status';
my %public = (acl => { global => $true });

my $location = "location = $path { vibe_status; }";

my @zone = (http => http_config(extra => 'vibe_zone vibe 8m;'),
            server => server_config(extra => $location));

# The objects of the JSON and their members.  The rest are numbers.

my %shape = (
    writes => [qw(done refused)],
    mirrors => [qw(done pending waiting)],
    batches => [qw(count docs max mean)],
    repair => [qw(lag_changes lag_seconds databases databases_done
                  databases_due unowned checked mended foreign sweeps failed
                  db_updates)],
    global => [qw(complete)],
    lease => [qw(host worker leading taken)],
    couchdb => [qw(up requests unreached timeout broken refused failed)],
);
my %flag = map { $_ => 1 } qw(repair.db_updates global.complete lease.leading
                              couchdb.up);


sub post {
    my ($nginx, $body) = @_;

    return request($nginx, 'POST', "/data/$posts", $token, $body);
}


sub status {
    my ($nginx) = @_;

    my ($status, $answer) = request($nginx, 'GET', $path);
    die "no status: $status\n" if $status != 200 || ref $answer ne 'HASH';
    return $answer;
}


subtest 'the reader of the text format is strict' => sub {
    my $head = "# HELP a_total x\n# TYPE a_total counter\n";

    ok(eval { prometheus("${head}a_total 1\n") }, 'a good one') or diag($@);
    ok(eval { prometheus("${head}a_total{b=\"c\",d=\"e\\\\\"} 1.5e3\n") },
       'with labels') or diag($@);

    for ("${head}a_total 1", "${head}a_total\n", "${head}a_total x\n",
         "${head}a_total 1\na_total 2\n", "${head}a_total -1\n", $head,
         "a_total 1\n", "# TYPE a_total counter\na_total 1\n",
         "${head}a-b_total 1\n", "${head}a_total{b=c} 1\n",
         "${head}a_total{b=\"\\c\"} 1\n", "${head}a_total{1b=\"c\"} 1\n",
         "${head}a_total 1\n\n", "${head}\na_total 1\n", "$head$head",
         "${head}a_total{b=\"c\"} 1\n# HELP c x\n# TYPE c gauge\nc 1\n"
         . "a_total{b=\"d\"} 1\n",
         "# HELP a x\n# TYPE a counter\na 1\n",
         "# HELP a_total x\n# TYPE a_total gauge\na_total 1\n")
    {
        ok(!eval { prometheus($_); 1 }, 'refused: ' . s/\n/ | /gr);
    }
};


my $binary = $ENV{TEST_NGINX_BINARY} || 'nginx';
my $load = join('', map { "load_module $_; " }
                    split ' ', $ENV{TEST_NGINX_LOAD_MODULES} // '');
my $root = tempdir('status-XXXXXX', TMPDIR => 1, CLEANUP => 1);


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
    my $zone = 'vibe_zone vibe 8m;';

    for (['the least', 'vibe_zone vibe 1m;', $location],
         ['a zone alone', $zone, ''],
         ['the size in k', 'vibe_zone v 2048k;', $location],
         ['two locations', $zone,
          "$location location /s/ { vibe_status; allow all; }"])
    {
        my ($name, @conf) = @$_;
        my ($ok, $text) = check(@conf);
        ok($ok, $name) or diag($text);
    }

    for ((map { [3, $_, ''] }
              'vibe_zone;', 'vibe_zone vibe;', 'vibe_zone vibe 8m x;',
              'vibe_zone "" 8m;', 'vibe_zone vibe x;', 'vibe_zone vibe "";',
              'vibe_zone vibe -8m;', 'vibe_zone vibe 8t;',
              'vibe_zone vibe 0;', 'vibe_zone vibe 64k;',
              'vibe_zone vibe 1023k;', "$zone $zone",
              "$zone vibe_zone other 8m;", "$zone vibe_zone vibe 16m;",
              "limit_conn_zone \$uri zone=vibe:8m; $zone", 'vibe_status;'),
         (map { [5, $zone, $_] }
              'vibe_zone vibe 8m;', 'vibe_status;',
              'location /x/ { vibe_zone vibe 8m; }',
              'location /x/ { vibe_status on; }',
              'location /x/ { vibe_status; vibe_status; }'))
    {
        my ($line, $http, $server) = @$_;
        my ($ok, $text) = check($http, $server);
        my $name = $line == 3 ? $http : $server;

        ok(!$ok, "refused: $name") or next;
        like($text, qr/\[emerg\].* in \Q$root\E\/nginx\.conf:$line\b/,
             "where: $name");
    }

    my ($ok, $text) = check('', $location);
    ok(!$ok, 'vibe_status without vibe_zone');
    like($text, qr/\[emerg\].*"vibe_zone".* in \Q$root\E\/nginx\.conf:\d/,
         'and where');
};


subtest 'what is written is counted' => sub {
    my $nginx = nginx_start(@zone);

    my $before = status($nginx);
    is_deeply($before->{writes}, { done => 0, refused => 0 }, 'none yet');

    for my $i (1 .. 10) {
        is((post($nginx, { n => $i, %public }))[0], 201, "public $i");
    }
    for my $i (1 .. 5) {
        is((post($nginx, { n => $i }))[0], 201, "private $i");
    }

    my $s = status($nginx);
    is_deeply($s->{writes}, { done => 15, refused => 0 }, 'all writes');
    cmp_ok($s->{mirrors}{done}, '>=', 10, 'the public ones were mirrored');
    is($s->{mirrors}{pending}, 0, 'none is pending');
    is($s->{mirrors}{waiting}, 0, 'nobody waits');
    cmp_ok($s->{batches}{docs}, '>=', 10, 'in batches');
    cmp_ok($s->{couchdb}{requests}, '>=', 20, 'CouchDB was asked');

    my ($status, $rows) = post($nginx, [{ n => 1, %public }, { n => 2 },
                                        { _id => 5 }]);
    is($status, 201, 'an array');
    $s = status($nginx);
    is_deeply($s->{writes}, { done => 17, refused => 1 },
              'each document counts');
    cmp_ok($s->{mirrors}{done}, '>=', 11, 'each copy, too');

    is((post($nginx, { _id => '_x' }))[0], 400, 'refused by us');
    is(status($nginx)->{writes}{refused}, 2, 'is counted');

    my $id = $rows->[0]{id};
    is((post($nginx, { _id => $id, _rev => '1-' . 'a' x 32 }))[0], 409,
       'refused by CouchDB');
    $s = status($nginx);
    is_deeply($s->{writes}, { done => 17, refused => 3 }, 'is counted');

    is_deeply([sort keys %$s],
              [sort keys %shape, qw(unowned_docs uncollected_docs registry
                                    feeds)],
              'the objects');
    is_deeply([$s->{registry}, $s->{feeds}], [{ error => undef }, {}],
              'there is no feed');

    for my $object (sort keys %shape) {
        is_deeply([sort keys %{ $s->{$object} }],
                  [sort @{ $shape{$object} }], "the members of $object");

        for my $member (@{ $shape{$object} }) {
            next if $object eq 'lease' && $member =~ /^(?:host|worker)$/;

            my $value = $s->{$object}{$member};
            my $flag = $flag{"$object.$member"};
            ok($flag ? JSON::PP::is_bool($value)
                     : !ref $value && $value =~ /^\d+(?:\.\d\d)?$/,
               "$object.$member is a " . ($flag ? 'flag' : 'number'));
        }
    }

    my $b = $s->{batches};
    cmp_ok($b->{count}, '>=', 1, 'there were batches');
    cmp_ok($b->{docs}, '>=', $b->{count}, 'with documents');
    ok($b->{max} >= 1 && $b->{max} <= $b->{docs}, 'the largest');
    is(sprintf('%.2f', $b->{mean}),
       sprintf('%.2f', $b->{docs} / $b->{count}), 'the mean');

    my (undef, undef, $header, $text) = request($nginx, 'GET', $path);
    is($header->{'content-type'}, 'application/json', 'it is JSON');
    is($header->{'cache-control'}, 'no-store', 'and not to be kept');
    unlike($text, qr/did:|userdb-|\Q$posts\E/, 'of no document or user');

    $nginx->stop;
};


# by_each($nginx, $ask): asks until each worker has answered, and gives the
# last answer of each.  With "reuseport" chance says who does.

sub by_each {
    my ($nginx, $ask) = @_;

    my %answer;

    wait_for {
        my ($worker, $answer) = $ask->();
        $answer{$worker} = $answer;
        keys %answer == 2;
    };

    return values %answer;
}


subtest 'workers count together, and a reload forgets nothing' => sub {
    my $header = 'add_header X-Worker $pid always;';
    my $nginx = nginx_start(@zone, workers => 2, listen => 'reuseport',
        server => server_config(data => $header, extra =>
            "location = $path { vibe_status; $header }"));
    my $n = 0;

    my $write = sub {
        my ($status, undef, $got) = post($nginx, { %public });
        $n++ if $status == 201;
        return ($got->{'x-worker'}, $status);
    };
    my $done = sub {
        my (undef, $answer, $got) = request($nginx, 'GET', $path);
        return ($got->{'x-worker'}, $answer->{writes}{done});
    };

    my @status = by_each($nginx, $write);
    is("@status", '201 201', 'each worker writes');

    my @done = by_each($nginx, $done);
    is("@done", "$n $n", 'each knows of all');

    my @before = $nginx->workers;
    my $was = status($nginx);
    ok($nginx->reload, 'a reload');
    ok(wait_for { my %now = map { $_ => 1 } $nginx->workers;
                  !grep { $now{$_} } @before }, 'the old workers are gone');

    my $s = status($nginx);
    is_deeply($s->{writes}, $was->{writes}, 'writes go on');

    # The background work counts, too.
    for (['mirrors', 'done'], ['batches', 'count'], ['batches', 'docs'],
         ['batches', 'max'], ['couchdb', 'requests'], ['lease', 'taken'])
    {
        my ($object, $member) = @$_;
        cmp_ok($s->{$object}{$member}, '>=', $was->{$object}{$member},
               "$object.$member goes on");
    }

    @status = by_each($nginx, $write);
    is("@status", '201 201', 'each of the new workers writes');
    @done = by_each($nginx, $done);
    is("@done", "$n $n", 'counting goes on');

    # A zone of another size is another one.
    ok($nginx->reload(http => http_config(extra => 'vibe_zone vibe 9m;')),
       'another size');
    ok(wait_for { status($nginx)->{writes}{done} == 0 }, 'begins anew');

    $nginx->stop;
};


subtest 'who does the background work' => sub {
    my $nginx = nginx_start(@zone, workers => 2);
    my $lease;

    my $found = wait_for {
        $lease = status($nginx)->{lease};
        $lease->{worker} && $lease->{leading};
    } 60;

    ok($found, 'one of them does') or diag($json->encode($lease));
    ok(scalar(grep { $_ == ($lease->{worker} // 0) } $nginx->workers),
       'it is a worker of this nginx');
    ok(length($lease->{host} // ''), 'its host has a name');
    cmp_ok($lease->{taken}, '>=', 1, 'it took it');

    $nginx->stop;
};


subtest 'what CouchDB makes fail is counted' => sub {
    # It answers one request after the other, so nothing that goes on for ever.
    my $couch = faulty(sub {
        my ($method, $path) = @_;
        return $path =~ m{^/_db_updates|feed=(?:continuous|longpoll)}
            ? (404, { error => 'not_found', reason => 'missing' }) : ();
    });
    my $nginx = nginx_start(
        http => http_config(couchdb => $couch->{url},
                            extra => 'vibe_zone vibe 8m;'),
        server => server_config(extra => $location));

    my ($status, $answer) = post($nginx, { _id => 'doc1', %public });
    is($status, 201, 'all is well');
    my $before = status($nginx);

    fault($couch, path => qr{^/global/_bulk_docs}, answer => [500, {
        error => 'internal_server_error', reason => 'x' }]);
    ($status, $answer) = post($nginx, { _id => 'doc2', %public });
    is("$status " . ($answer->{mirror} // ''), '202 pending', 'pending');
    heal($couch);

    my $s = status($nginx);
    is($s->{writes}{done}, $before->{writes}{done} + 1, 'it is written');
    is($s->{mirrors}{pending}, $before->{mirrors}{pending} + 1,
       'the mirror is pending');
    cmp_ok($s->{couchdb}{failed}, '>', $before->{couchdb}{failed},
           'CouchDB failed');

    for (['broken', [raw => "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{"]],
         ['refused', [401, { error => 'unauthorized', reason => 'x' }]])
    {
        my ($kind, $fault) = @$_;

        $before = status($nginx)->{couchdb};
        fault($couch, path => qr{^/userdb-}, answer => $fault);
        ($status) = post($nginx, { _id => 'doc1', %public });
        heal($couch);
        cmp_ok($status, '>=', 500, "$kind: $status");
        cmp_ok(status($nginx)->{couchdb}{$kind}, '>', $before->{$kind},
               'is counted');
    }

    $nginx->stop;
};


subtest 'CouchDB is not there' => sub {
    my $port = free_port();
    my $nginx = nginx_start(
        http => http_config(couchdb => "http://127.0.0.1:$port",
                            extra => 'vibe_zone vibe 8m;'),
        server => server_config(extra => $location));

    is((post($nginx, {}))[0], 503, 'a write');

    my $s = status($nginx);
    is($s->{writes}{done}, 0, 'is not counted as done');
    cmp_ok($s->{couchdb}{unreached}, '>=', 1, 'it was not reached');
    ok(!$s->{couchdb}{up}, 'it is not up');
    ok(!$s->{global}{complete}, 'nor is global known to be complete');

    my ($status, $answer, $header) = request($nginx, 'GET', "$path?ready");
    is($status, 503, 'not ready');
    is($answer->{ready}, JSON::PP::false, 'in JSON');
    ok(length $answer->{reason}, 'with a reason');
    ok($header->{'retry-after'}, 'Retry-After');
    is($header->{'cache-control'}, 'no-store', 'not to be kept');

    $nginx->stop;
};


subtest 'ready, and not any more' => sub {
    my ($url, $auth) = Vibe::couchdb();
    my $basic = 'Basic ' . encode_base64($auth, '');
    my $port = free_port();

    # CouchDB, but for its going down.
    my @front = (http => '', server => <<"EOT");
listen 127.0.0.1:$port;
client_max_body_size 0;
location / {
    proxy_pass $url;
    proxy_set_header Authorization "$basic";
    proxy_buffering off;
}
EOT
    my $front = nginx_start(@front);
    my $nginx = nginx_start(
        http => http_config(couchdb => "http://127.0.0.1:$port",
                            extra => 'vibe_zone vibe 8m;'),
        server => server_config(extra => $location));

    my ($status, $answer);
    my $ready = sub {
        ($status, $answer) = request($nginx, 'GET', "$path?ready");
        return $status;
    };

    ok(wait_for(sub { $ready->() == 200 }, 120), 'ready')
        or diag($json->encode([$answer, status($nginx)]));
    is_deeply($answer, { ready => $true }, 'it says so');
    my $s = status($nginx);
    ok($s->{couchdb}{up} && $s->{global}{complete}, 'so do the flags');

    $front->stop('TERM');
    ok(wait_for(sub { $ready->() == 503 }, 30), 'not without CouchDB');
    ok(length($answer->{reason} // ''), 'it says why');

    $front = nginx_start(@front);
    ok(wait_for(sub { $ready->() == 200 }, 60), 'ready again');

    $nginx->stop;
    $front->stop('TERM');
};


subtest 'the text format of Prometheus' => sub {
    my $nginx = nginx_start(@zone);

    post($nginx, { n => $_, %public }) for 1 .. 3;
    post($nginx, { _id => '_x' });

    # Both formats of one moment: the background work goes on.
    my ($status, $header, $text, $s);
    my $quiet = wait_for {
        $s = status($nginx);
        ($status, undef, $header, $text)
            = request($nginx, 'GET', "$path?format=prometheus");
        $json->encode($s) eq $json->encode(status($nginx));
    };
    ok($quiet, 'nothing else is counted meanwhile');

    is($status, 200, 'it is there');
    is($header->{'content-type'}, 'text/plain; version=0.0.4', 'its type');
    is($header->{'cache-control'}, 'no-store', 'not to be kept');
    is($header->{'content-length'}, length $text, 'its length');

    my ($type, $value) = eval { prometheus($text) };
    ok($value, 'it is well-formed') or diag($@, $text);

    my %same = (
        'vibe_writes_total{result="done"}' => $s->{writes}{done},
        'vibe_writes_total{result="refused"}' => $s->{writes}{refused},
        'vibe_mirrors_total{result="done"}' => $s->{mirrors}{done},
        'vibe_mirrors_total{result="pending"}' => $s->{mirrors}{pending},
        'vibe_mirrors_waiting{}' => $s->{mirrors}{waiting},
        'vibe_unowned_docs_total{}' => $s->{unowned_docs},
        'vibe_uncollected_docs_total{}' => $s->{uncollected_docs},
        (map { ("vibe_couchdb_errors_total{kind=\"$_\"}"
                => $s->{couchdb}{$_}) }
             qw(unreached timeout broken refused failed)),
    );
    is($value->{$_}, $same{$_}, $_) for sort keys %same;
    is($value->{'vibe_writes_total{result="done"}'}, 3, 'which is right');

    # All that is a number or a flag is there, and vibe_registry_ok.
    my $numbers = 3;
    $numbers += @{ $shape{$_} } for keys %shape;
    is(scalar keys %$value, $numbers - 3, 'all but host, worker and mean');

    is($type->{vibe_repair_lag_seconds}, 'gauge', 'seconds are a gauge');
    like($value->{"vibe_$_\{}"} // '', qr/^[01]$/, "$_ is 0 or 1")
        for qw(global_complete couchdb_up lease_leading repair_db_updates);
    ok(!(grep { !/^vibe_/ } keys %$type), 'all are ours');
    unlike($text, qr/did:|userdb-|\Q$posts\E/, 'of no document or user');

    $nginx->stop;
};


subtest 'requests' => sub {
    my $nginx = nginx_start(http => http_config(extra =>
                                'vibe_zone vibe 8m;'
                                . ' vibe_origins https://a.example;'),
        server => server_config(extra => $location
            . ' location = /closed { vibe_status; deny all; }'));

    for my $method (qw(POST PUT DELETE OPTIONS PATCH)) {
        my ($status, $answer, $header) = request($nginx, $method, $path,
                                                 undef, { a => 1 });
        is($status, 405, "$method: 405");
        is($answer->{error}, 'method_not_allowed', 'in JSON');
        is($header->{allow}, 'GET, HEAD', 'Allow');
        is($header->{'cache-control'}, 'no-store', 'not to be kept');
    }

    for my $query ('format=x', 'format=PROMETHEUS', 'format=json%00',
                   'a=b&format=prometheus+')
    {
        my ($status, $answer) = request($nginx, 'GET', "$path?$query");
        is($status, 400, "$query: 400");
        is(ref $answer && $answer->{error}, 'bad_request', 'in JSON');
    }

    for my $query ('', '?', '?format=json', '?format=', '?x=1', '?readyx',
                   '?already=1', '?format=%6ason')
    {
        my ($status, $answer) = request($nginx, 'GET', "$path$query");
        is($status, 200, "'$query': 200");
        ok(ref $answer && $answer->{writes}, 'the counters');
    }

    for my $query ('ready', 'ready=', 'ready=1', 'x=1&ready', 'ready&x=1',
                   'ready&format=x')
    {
        my (undef, $answer) = request($nginx, 'GET', "$path?$query");
        ok(ref $answer && exists $answer->{ready}, "$query asks for ready");
    }

    for my $query ('', '?format=prometheus', '?ready', '?format=x') {
        my ($get, undef, $header) = request($nginx, 'GET', "$path$query");
        my ($head, $answer, $same) = request($nginx, 'HEAD', "$path$query");
        is($answer // '', '', "HEAD '$query': no body");
        is($head, $get, 'the same status') if $query ne '?ready';
        is($same->{'content-type'}, $header->{'content-type'}, 'type');
        is($same->{'cache-control'}, 'no-store', 'not to be kept');
    }

    my (undef, undef, $header) = request($nginx, 'GET', $path, undef, undef,
                                         Origin => 'https://a.example');
    is($header->{'access-control-allow-origin'}, undef,
       'it is not for pages of other origins');

    is((request($nginx, 'GET', '/closed'))[0], 403, 'allow and deny work');

    # A body that nobody reads is not taken for the next request.
    my $c = IO::Socket::INET->new(PeerAddr => '127.0.0.1',
                                  PeerPort => $nginx->port, Timeout => 5);
    print {$c} "GET $path HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n"
               . "abcdeGET $path?format=prometheus HTTP/1.0\r\n\r\n";
    my $text = do { local $/; <$c> };
    is(scalar(() = $text =~ m{^HTTP/1\.1 200}mg), 2, 'two answers');

    $nginx->stop;
};


subtest 'without vibe_zone all is as before' => sub {
    my $nginx = nginx_start();

    my ($status, $answer) = post($nginx, { %public });
    is($status, 201, 'a write');
    ok($answer->{global}, 'with its copy');
    is((request($nginx, 'GET', $path))[0], 404, 'no status');

    $nginx->stop;
};


done_testing();
