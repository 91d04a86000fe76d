# vibe_data among nginx's other directives: as the target of subrequests that
# are not its own, and within `if` and `limit_except`.

use strict;
use warnings;

use JSON::PP;
use Test::More;
use Vibe;

my $alice = did('alice');
my $token = token($alice);
my $json = JSON::PP->new->utf8->canonical->allow_nonref;


# Whether nginx was built with a module: Debian's is, others need not be.

my $binary = $ENV{TEST_NGINX_BINARY} || 'nginx';
my $built = `'$binary' -V 2>&1`;


subtest 'as a subrequest of others' => sub {
    my $mock = mock { (200, { mirrored => 'yes' }) };
    my $has_auth = $built =~ /http_auth_request_module/;

    my $nginx = nginx_start(workers => 2, server => server_config(
        extra => <<"EOT" . ($has_auth ? <<'EOT' : '')));
location /mirror/post { mirror /data/posts; proxy_pass $mock->{url}; }
location /mirror/query { mirror /data/posts/query; proxy_pass $mock->{url}; }
location /mirror/expand { mirror /data/expand?did=$alice&ref=x; proxy_pass $mock->{url}; }
location /mirror/three {
    mirror /data/posts; mirror /data/posts; mirror /data/none;
    proxy_pass $mock->{url};
}
location /page { error_page 404 /data/posts/query; }
EOT
location /auth/post { auth_request /data/posts; empty_gif; }
location /auth/query { auth_request /data/posts/query; empty_gif; }
location /auth/none { auth_request /data/none; empty_gif; }
location /auth/self/ { auth_request /data/posts/query; vibe_data; }
EOT

    my @workers = sort $nginx->workers;

    for my $round (1 .. 3) {
        for my $path (qw(/mirror/post /mirror/query /mirror/expand
                         /mirror/three))
        {
            for (['POST', { v => 1, acl => { global => $JSON::PP::true } }],
                 ['POST', 'x' x 100_000], ['GET', undef])
            {
                my ($status, $answer)
                    = request($nginx, $_->[0], $path, $token, $_->[1]);
                is($status, 200, "$_->[0] $path");
                is(ref $answer && $answer->{mirrored}, 'yes',
                   '… the answer is that of what is mirrored');
            }
        }

        for my $path ($has_auth ? qw(/auth/post /auth/query /auth/none
                                     /auth/self/posts) : ())
        {
            for (['GET', undef], ['POST', {}], ['HEAD', undef]) {
                my ($status) = request($nginx, $_->[0], $path, $token,
                                       $_->[1]);
                like($status, qr/^(?:4\d\d|500)$/, "$_->[0] $path: no way in");
            }
        }

        my ($status) = request($nginx, 'GET', '/page/x', $token);
        like($status, qr/^(?:200|40[45])$/, 'an error page');
    }

    my ($status) = request($nginx, 'POST', '/data/posts', $token, {});
    is($status, 201, 'a write of one\'s own');

    is_deeply([sort $nginx->workers], \@workers, 'no worker has ended');
    $nginx->stop('QUIT');
};


# limit_except and if make locations of their own within the one.

my %within = (
    'if, true' => 'if ($http_x) { set $x 1; }',
    'if, false' => 'if ($http_y) { set $x 1; }',
    'two ifs' => 'if ($http_x) { set $x 1; } if ($x) { set $y 1; }',
    'if with a header' => 'if ($http_x) { add_header X-If yes always; }',
    'limit_except, which lets pass' =>
        'limit_except GET HEAD { allow 127.0.0.1; deny all; }',
    'limit_except of what is not asked' =>
        'limit_except GET HEAD POST OPTIONS DELETE { deny all; }',
    'both' => 'if ($http_x) { set $x 1; }'
        . ' limit_except GET { allow 127.0.0.1; deny all; }',
);

for my $name (sort keys %within) {
    subtest "within: $name" => sub {
        my $nginx = nginx_start(
            http => http_config(extra => 'vibe_origins https://app.example;'),
            server => server_config(data => $within{$name}));
        my %header = (Origin => 'https://app.example', X => 1);

        for (['POST', '/data/posts', { v => 1 }, $token, 201],
             ['POST', '/data/posts/query', {}, $token, 200],
             ['GET', '/data/posts/query', undef, $token, 200],
             ['GET', "/data/expand?did=$alice&ref=x", undef, $token, 404],
             ['POST', '/data/posts', '{', $token, 400],
             ['POST', '/data/posts', {}, undef, 401],
             ['POST', '/data/posts', '"' . 'x' x 2_000_000 . '"', $token, 413],
             ['DELETE', '/data/posts', undef, $token, 405],
             ['POST', '/data/none/none', {}, $token, 404],
             ['OPTIONS', '/data/posts', undef, undef, 204])
        {
            my ($method, $path, $body, $who, $right) = @$_;

            my ($status, $answer, $got)
                = request($nginx, $method, $path, $who, $body, %header);
            my $what = "$method $path: $right";

            is($status, $right, $what);
            is($got->{'access-control-allow-origin'}, 'https://app.example',
               '… with CORS');
            next if $status == 204;
            ok(ref $answer eq 'HASH', '… in JSON') or diag($answer);
            ok($answer->{error} && $answer->{reason}, '… an error')
                if $right >= 400;
        }

        $nginx->stop;
    };
}


subtest 'limit_except that denies' => sub {
    my $nginx = nginx_start(
        http => http_config(extra => 'vibe_origins https://app.example;'),
        server => server_config(data => 'limit_except GET { deny all; }'));
    my %header = (Origin => 'https://app.example');

    my ($status, $answer, $got) = request($nginx, 'POST', '/data/posts',
                                          $token, {}, %header);
    is($status, 403, 'a write is denied');
    is(ref $answer && $answer->{error}, 'forbidden', '… in JSON')
        or diag($answer);
    is($got->{'access-control-allow-origin'}, 'https://app.example',
       '… with CORS');

    ($status, $answer) = request($nginx, 'GET', '/data/posts/query', $token);
    is($status, 200, 'a GET is not');

    $nginx->stop;
};


done_testing;
