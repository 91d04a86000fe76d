# Configurations: the bad ones are caught by `nginx -t` with file and line;
# reloads lose no request; nginx starts without CouchDB; nothing secret is
# logged.

use strict;
use warnings;

use File::Temp qw(tempdir);
use JSON::PP;
use MIME::Base64 qw(encode_base64);
use POSIX ();
use Test::More;
use Time::HiRes qw(sleep time);
use Vibe;

my $json = JSON::PP->new->utf8->canonical->allow_nonref;
my $true = JSON::PP::true;

my $run = sprintf('%x%04x', time, $$ & 65535);
my $posts = "posts$run";
my $alice = did('alice');
my $token = token($alice);

my $binary = $ENV{TEST_NGINX_BINARY} || 'nginx';
my $load = join('', map { "load_module $_; " }
                    split ' ', $ENV{TEST_NGINX_LOAD_MODULES} // '');
my $root = tempdir('config-XXXXXX', TMPDIR => 1, CLEANUP => 1);


# check($http, $server, $location): what `nginx -t` says of it; those are on
# the lines 4, 6 and 8.

sub check {
    my ($http, $server, $location) = @_;

    s/\n/ /g for $http, $server, $location;

    open(my $fh, '>', "$root/nginx.conf") or die "$root: $!\n";
    print {$fh} <<"EOF_CONF";
$load pid nginx.pid; error_log stderr;
events { }
http { access_log off;
$http
server { listen 127.0.0.1:@{[ free_port() ]};
$server
location /data/ {
$location
} } }
EOF_CONF
    close $fh;

    my $text = `'$binary' -t -p '$root/' -c '$root/nginx.conf' -e stderr 2>&1`;
    return ($? == 0, $text);
}


my $credentials = write_file("admin:secret\n");
my $key = write_file('k' x 40 . "\n");
my %base = (http => "vibe_couchdb http://127.0.0.1:5984;"
                    . " vibe_credentials $credentials;",
            data => 'vibe_data;');


subtest 'good ones' => sub {
    for (['the least', '', '', ''],
         ['no credentials', undef, '', '', 'vibe_couchdb http://127.0.0.1:1;'],
         ['a slash at the end', undef, '', '',
          'vibe_couchdb http://127.0.0.1:1/;'],
         ['an upstream',  undef, '', '', 'upstream couch { server'
          . ' 127.0.0.1:1; keepalive 4; } vibe_couchdb http://couch;'],
         ['an upstream that comes later', undef, '', '',
          'vibe_couchdb http://couch; upstream couch { server 127.0.0.1:1; }'],
         ['https', undef, '', '', 'vibe_couchdb https://127.0.0.1:1;'],
         ['all', "vibe_index * createdAt; vibe_index posts a b;"
          . " vibe_max_response 1m; vibe_jwt_key $key;"
          . ' vibe_jwt_issuer me; vibe_jwt_audience you; vibe_jwt_leeway 5s;'
          . ' vibe_origins https://a.example http://b.example:1;'
          . ' vibe_zone all 1m; vibe_repair off; vibe_lease 1h; vibe_sweep 1d;'
          . ' vibe_scan_rate 1; vibe_batch_docs 1; vibe_batch_size 1;'
          . ' vibe_mirror_size 1; vibe_timeout 1ms; vibe_connect_timeout 1ms;'
          . " vibe_trusted_certificate $key;",
          'vibe_anonymous on; vibe_max_docs 5;',
          'vibe_max_limit 5; vibe_own_indexes 0; vibe_global_regex on;'
          . ' vibe_did $remote_user; vibe_db $arg_x; vibe_db_prefix u-;'
          . ' vibe_token $cookie_x;'],
         ['two keys', "vibe_jwt_key $key kid=a; vibe_jwt_key $key kid=b;",
          '', ''])
    {
        my ($name, $http, $server, $data, $other) = @$_;
        my ($ok, $text) = check($other // "$base{http} $http", $server,
                                "vibe_data; $data");
        ok($ok, $name) or diag($text);
    }
};


subtest 'bad ones, with file and line' => sub {
    my $empty = write_file('');
    my $none = "$root/there-is-none";
    my $no_colon = write_file("admin\n");
    my $two_lines = write_file("admin:a\nb:c\n");
    my $large = write_file('a:' . 'x' x 5000);
    my $short = write_file("short\n");
    my $no_pem = write_file("-----BEGIN PUBLIC KEY-----\nAAAA\n"
                            . "-----END PUBLIC KEY-----\n");
    my ($private) = keypair('ES256');
    my @cases;

    # In http {}.
    push @cases, map { ['http', $_] } (
        'vibe_couchdb;', 'vibe_couchdb "";', 'vibe_couchdb couch:5984;',
        'vibe_couchdb ftp://127.0.0.1:1;', 'vibe_couchdb http://;',
        'vibe_couchdb http://127.0.0.1:1/path;',
        'vibe_couchdb http://127.0.0.1:1/path/;',
        'vibe_couchdb http://admin:secret@127.0.0.1:1;',
        'vibe_couchdb http://127.0.0.1:99999;',
        'vibe_couchdb http://127.0.0.1:1 more;',
        'vibe_couchdb http://127.0.0.1:1?x;',
        'vibe_couchdb http://127.0.0.1:1#x;');
    push @cases, map { ['http', "vibe_couchdb http://127.0.0.1:1; $_"] } (
        'vibe_couchdb http://127.0.0.1:2;',
        'vibe_credentials;', "vibe_credentials $none;",
        "vibe_credentials $empty;", "vibe_credentials $no_colon;",
        "vibe_credentials $two_lines;", "vibe_credentials $large;",
        "vibe_credentials $root;", 'vibe_credentials env:VIBE_NOT_SET;',
        "vibe_credentials $credentials; vibe_credentials $credentials;",
        'vibe_index;', 'vibe_index *;', 'vibe_index _x a;',
        'vibe_index a/b c;', 'vibe_index query a;', 'vibe_index * "";',
        'vibe_index * vibe_rev;', 'vibe_index * $a;', 'vibe_index * a..b;',
        'vibe_index * a b c d e f g h i;',
        'vibe_max_response;', 'vibe_max_response x;', 'vibe_max_response -1;',
        'vibe_max_response 1m; vibe_max_response 2m;',
        'vibe_connect_timeout 0;', 'vibe_timeout 0;', 'vibe_timeout x;',
        'vibe_timeout 1s; vibe_timeout 2s;',
        'vibe_batch_docs 0;', 'vibe_batch_docs 100000;',
        'vibe_batch_size 0;', 'vibe_batch_size x;', 'vibe_mirror_size 0;',
        'vibe_sweep 0;', 'vibe_sweep x;', 'vibe_scan_rate 0;',
        'vibe_lease 0;', 'vibe_lease 900ms;', 'vibe_lease 2h;',
        'vibe_repair;', 'vibe_repair yes;', 'vibe_zone;', 'vibe_zone vibe;',
        'vibe_trusted_certificate;', "vibe_trusted_certificate $none;",
        "vibe_trusted_certificate $key; vibe_trusted_certificate $key;");

    # Anywhere.
    for my $where ('http', 'server', 'data') {
        push @cases, map { [$where, $_] } (
            'vibe_jwt_key;', "vibe_jwt_key $none;", "vibe_jwt_key $empty;",
            "vibe_jwt_key $short;", "vibe_jwt_key $no_pem;",
            "vibe_jwt_key $private;",
            "vibe_jwt_key $key x;", "vibe_jwt_key $key kid=;",
            'vibe_jwt_issuer;', 'vibe_jwt_leeway x;', 'vibe_jwt_leeway -1;',
            'vibe_jwt_issuer a; vibe_jwt_issuer b;',
            'vibe_revoked;', "vibe_revoked $none;",
            'vibe_origins;', 'vibe_origins *;', 'vibe_origins null;',
            'vibe_origins app.example;', 'vibe_origins https://;',
            'vibe_origins https://a.example/;',
            'vibe_origins https://a.example/x;',
            'vibe_origins https://*.example;', 'vibe_origins ftp://a.example;',
            'vibe_origins "https://a.example b";',
            'vibe_origins https://u@a.example;',
            'vibe_anonymous;', 'vibe_anonymous yes;',
            'vibe_anonymous on; vibe_anonymous on;',
            'vibe_global_regex 1;',
            'vibe_max_docs 0;', 'vibe_max_docs x;', 'vibe_max_docs 1000000;',
            'vibe_max_docs 1; vibe_max_docs 1;',
            'vibe_max_limit 0;', 'vibe_max_limit x;',
            'vibe_own_indexes -1;', 'vibe_own_indexes 1000;',
            'vibe_db_prefix;', 'vibe_db_prefix "";', 'vibe_db_prefix X;',
            'vibe_db_prefix _x;', 'vibe_db_prefix global;',
            'vibe_db_prefix glob;', 'vibe_db_prefix vibe_;',
            'vibe_db_prefix global_;', 'vibe_db_prefix a.b;',
            'vibe_db_prefix ' . 'x' x 300 . ';',
            'vibe_did;', 'vibe_did ${unclosed;', 'vibe_db;',
            'vibe_db $arg_a; vibe_db $arg_b;', 'vibe_token;');
    }
    push @cases, (['data', 'vibe_data;'], ['data', 'vibe_data on;'],
                  ['data', 'vibe_couchdb http://127.0.0.1:1;'],
                  ['server', 'vibe_data;'], ['http', 'vibe_data;'],
                  ['server', "vibe_credentials $credentials;"],
                  ['server', 'location = /x/ { vibe_data; }'],
                  ['server', 'location /x { vibe_data; }'],
                  ['server', 'location ~ ^/x/ { vibe_data; }'],
                  ['server', 'location @x { vibe_data; }']);

    my %line = (http => 4, server => 6, data => 8);

    for (@cases) {
        my ($where, $text) = @$_;
        my $other = $where eq 'http' && $text =~ /^vibe_couchdb/;
        my ($ok, $said) = check(
            $other ? $text : $base{http} . ($where eq 'http' ? " $text" : ''),
            $where eq 'server' ? $text : '',
            'vibe_data;' . ($where eq 'data' ? " $text" : ''));
        my $name = $text =~ s/\Q$root\E|\/\S*\///gr;
        $name = "$where: " . substr($name, 0, 70);

        ok(!$ok, "refused, $name") or next;
        like($said, qr/\[emerg\].* in \Q$root\E\/nginx\.conf:$line{$where}\b/,
             "where, $name");
        unlike($said, qr/admin:|-----BEGIN|AAAA|kkkk/, "nothing secret, $name");
    }

    my ($ok, $said) = check('', '', 'vibe_data;');
    ok(!$ok, 'vibe_data without vibe_couchdb');
    like($said, qr/\[emerg\].*"vibe_couchdb"/, 'and what is missing');
    like($said, qr/nginx\.conf:\d/, 'and where');
};


subtest 'a file that others can read is warned of' => sub {
    my $open = write_file("admin:secret\n");
    chmod(0644, $open);

    my ($ok, $said) = check("vibe_couchdb http://127.0.0.1:1;"
                            . " vibe_credentials $open;", '', 'vibe_data;');
    ok($ok, 'it is no error');
    like($said, qr/\[warn\].*\Q$open\E.* in \S+nginx\.conf:4/, 'but a warning');

    ($ok, $said) = check("$base{http}", '', 'vibe_data;');
    unlike($said, qr/warn/, 'not for one that is closed');
};


subtest 'credentials from the environment' => sub {
    my (undef, $auth) = Vibe::couchdb();
    my ($url) = Vibe::couchdb();
    my $host = $url =~ s{^http://}{}r;

    local $ENV{VIBE_TEST_COUCH} = $auth;
    my $nginx = nginx_start(http => <<"EOT");
upstream couchdb { server $host; keepalive 4; }
vibe_couchdb http://couchdb;
vibe_credentials env:VIBE_TEST_COUCH;
vibe_jwt_key @{[ write_file(test_key() . "\n") ]};
EOT
    my ($status) = request($nginx, 'POST', "/data/$posts", $token, {});
    is($status, 201, 'they are used');
    ok($nginx->reload, 'and after a reload');
    ($status) = request($nginx, 'POST', "/data/$posts", $token, {});
    is($status, 201, 'still');
    $nginx->stop;
};


subtest 'vibe_couchdb.conf is not included' => sub {
    my $nginx = nginx_start(server => 'location /data/ { vibe_data; }');

    for (['POST', "/data/$posts", {}], ['POST', "/data/$posts/query", {}],
         ['POST', "/data/$posts/query?global=true", {}],
         ['GET', "/data/expand?did=$alice&ref=x"])
    {
        my ($method, $path, $body) = @$_;
        my ($status, $answer, $header)
            = request($nginx, $method, $path, $token, $body);
        is($status, 503, "$method $path");
        is(ref $answer && $answer->{error}, 'service_unavailable', 'in JSON');
        ok($header->{'retry-after'}, 'Retry-After');
    }

    like($nginx->log, qr/\[error\].*vibe_couchdb\.conf/,
         'the log says what is missing');
    $nginx->stop;
};


# load($nginx, $clients): starts that many that write and query one after the
# other; returns what ends them and gives their results.

sub load {
    my ($nginx, $clients) = @_;

    my $stop = write_file('');
    my $results = write_file('');
    my $port = $nginx->port;
    my @pids;

    unlink $stop;

    for my $i (1 .. $clients) {
        my $pid = fork // die "fork: $!\n";

        if (!$pid) {
            my $n = 0;
            open(my $out, '>>', $results) or POSIX::_exit(1);
            $out->autoflush(1);

            until (-e $stop) {
                my ($status, $answer) = $n++ % 3
                    ? request($port, 'POST', "/data/$posts", $token,
                              { acl => { global => $true } })
                    : request($port, 'POST', "/data/$posts/query?global=true",
                              $token, { limit => 1 });
                print {$out} "$status\n";
            }
            POSIX::_exit(0);
        }
        push @pids, $pid;
    }

    return (sub { scalar split /\n/, read_file($results) }, sub {
        write_file('', (split /\//, $stop)[-1]);
        waitpid($_, 0) for @pids;
        my %count;
        $count{$_}++ for split /\n/, read_file($results);
        return %count;
    });
}


subtest 'reloads under load' => sub {
    my $nginx = nginx_start(workers => 2);

    # The first write makes the database, the first query the indexes.
    request($nginx, 'POST', "/data/$posts", $token, {});
    wait_for { (request($nginx, 'POST', "/data/$posts/query?global=true",
                        $token, {}))[0] == 200 };

    my ($count, $end) = load($nginx, 4);

    for my $i (1 .. 6) {
        my $before = $count->();
        my $went_on = wait_for { $count->() > $before + 10 };
        ok($went_on, 'answers come');
        ok($nginx->reload(server => server_config(
            data => "vibe_max_limit $i;")), "reload $i");
    }

    my %count = $end->();

    cmp_ok($count{201} // 0, '>', 20, 'written');
    cmp_ok($count{200} // 0, '>', 10, 'and asked');
    delete @count{200, 201};
    is_deeply(\%count, {}, 'nothing else was answered');

    # The workers of before end.
    ok(wait_for { 2 == grep { 1 } $nginx->workers }, 'two workers are left');

    my ($status, $answer) = request($nginx, 'POST', "/data/$posts/query",
                                    $token, {});
    is(scalar @{ $answer->{docs} }, 6, 'by the new configuration');

    # A bad one changes nothing.
    my @before = sort $nginx->workers;
    $nginx->write_config(server => server_config(data => 'vibe_max_limit x;'));
    $nginx->signal('HUP');
    ok(wait_for { $nginx->log =~ /\[emerg\].*vibe_max_limit/ },
       'a bad one is told');
    is(join(' ', sort $nginx->workers), "@before", 'and not taken');
    ($status) = request($nginx, 'POST', "/data/$posts", $token, {});
    is($status, 201, 'nginx goes on');

    $nginx->signal('QUIT');
    ok(wait_for { waitpid($nginx->pid, POSIX::WNOHANG()) != 0 } , 'it ends');
};


subtest 'nginx starts while CouchDB is down, and finds it later' => sub {
    my $port = free_port();
    my $nginx = nginx_start(
        http => http_config(couchdb => "http://127.0.0.1:$port"));

    for my $path ("/data/$posts", "/data/$posts/query",
                  "/data/$posts/query?global=true")
    {
        my ($status) = request($nginx, 'POST', $path, $token, {});
        is($status, 503, "down: $path");
    }

    # CouchDB comes up at this port: something that passes on to it.
    my ($url, $auth) = Vibe::couchdb();
    my $basic = 'Basic ' . encode_base64($auth, '');
    my $front = nginx_start(http => '', server => <<"EOT");
listen 127.0.0.1:$port;
client_max_body_size 0;
location / { proxy_pass $url; proxy_set_header Authorization "$basic"; }
EOT

    my ($status, $answer);
    my $found = wait_for {
        ($status, $answer) = request($nginx, 'POST', "/data/$posts", $token,
                                     { k => 'up', acl => { global => $true } });
        $status == 201;
    };
    ok($found, 'written when it is there');

    $found = wait_for {
        ($status, $answer) = request($nginx, 'POST',
            "/data/$posts/query?global=true", $token, { k => 'up' });
        $status == 200;
    };
    is($found && @{ $answer->{docs} }, 1, 'and found');

    $front->stop('TERM');
    ($status) = request($nginx, 'POST', "/data/$posts", $token, {});
    is($status, 503, 'down again');

    $nginx->stop;
};


# With a debug log nginx itself writes down each header: what the module adds
# is looked at, and at level info all.

subtest 'nothing secret is in the log' => sub {
    my (undef, $auth) = Vibe::couchdb();
    my ($password) = $auth =~ /:(.*)/;
    my $basic = encode_base64($auth, '');
    my $bad = token($alice, -key => 'z' x 40);
    my $cookie = token(did('cookie'));
    my $key_text = test_key();

    for my $level ('info', 'debug') {
        my $nginx = nginx_start(
            level => $level,
            http => http_config(extra => 'vibe_origins https://a.example;'),
            server => server_config(
                extra => "location /c/ { vibe_data; vibe_token \$cookie_t; }"));

        request($nginx, 'POST', "/data/$posts", $token,
                { secret => "inside$run", acl => { global => $true } });
        request($nginx, 'POST', "/data/$posts", $token, "{\"a\":\"inside$run\"");
        request($nginx, 'POST', "/data/$posts", $token,
                { _id => 5, secret => "inside$run" });
        request($nginx, 'POST', "/data/$posts", $bad, {});
        request($nginx, 'POST', "/data/$posts/query", $token,
                { secret => "inside$run" });
        request($nginx, 'POST', "/data/$posts/query?global=true", $token,
                { secret => { '$bad' => "inside$run" } });
        request($nginx, 'POST', "/c/$posts", undef, {}, Cookie => "t=$cookie",
                Origin => 'https://a.example');
        request($nginx, 'POST', "/c/$posts", undef, {}, Cookie => "t=$cookie");
        $nginx->stop;

        my @log = split /\n/, $nginx->log;

        # nginx's own, of the headers that it gets and sends.
        @log = grep { !/\[debug\].* (?:header:|http script|http request line)/
                      && (/^\d{4}\// || $level eq 'info') } @log;

        for (['the password', $password], ['the password in base64', $basic],
             ['a token', $token], ['a bad token', $bad],
             ['a token of a cookie', $cookie], ['the key', $key_text],
             ['what documents hold', "inside$run"])
        {
            my ($name, $secret) = @$_;
            my @hits = grep { index($_, $secret) >= 0 } @log;
            is(scalar @hits, 0, "$level: $name is not there")
                or diag(substr($hits[0], 0, 200));
        }

        cmp_ok(scalar @log, '>', 5, 'there is a log');
    }
};


done_testing();
