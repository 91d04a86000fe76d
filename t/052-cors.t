# vibe_origins: which pages of other origins may call, on every answer there
# is: preflights, successes, errors, nginx's own errors.

use strict;
use warnings;

use Test::Nginx::Socket 'no_plan';
use Vibe;

our $Token = bearer(did('cors'));
our $Good = 'Origin: https://app.example';
our $Config = Vibe::server_config(
    data => 'vibe_origins https://app.example http://localhost:3000;'
            . ' client_max_body_size 1k;',
    extra => "location /more/ {\n"
             . "vibe_data;\nvibe_origins https://a.example;\n"
             . "vibe_origins https://b.example;\n}\n"
             . "location /none/ {\nvibe_data;\n}\n");

add_block_preprocessor(sub {
    my ($block) = @_;

    $block->set_value(config => $Config) if $block->name !~ /no vibe_origins/;
});

no_long_string();
no_shuffle();
run_tests();

__DATA__

=== TEST 1: preflight
--- request eval
['OPTIONS /data/posts', 'OPTIONS /data/posts/query', 'OPTIONS /data/expand']
--- more_headers eval
"$::Good\nAccess-Control-Request-Method: POST\n"
. "Access-Control-Request-Headers: authorization,content-type"
--- error_code eval: [204, 204, 204]
--- response_headers eval
[map { "Access-Control-Allow-Origin: https://app.example\n"
       . "Access-Control-Allow-Credentials: true\n"
       . "Access-Control-Allow-Methods: $_\n"
       . "Access-Control-Allow-Headers: Authorization, Content-Type, If-None-Match\n"
       . "Access-Control-Max-Age: 600\nVary: Origin" }
     'POST, OPTIONS', 'GET, HEAD, POST, OPTIONS', 'GET, HEAD, OPTIONS']
--- response_body eval: ['', '', '']



=== TEST 2: preflight from elsewhere gets no permission, and no hint
--- request eval
[('OPTIONS /data/posts') x 10]
--- more_headers eval
[map { "$_\nAccess-Control-Request-Method: POST" }
     'Origin: https://evil.example', 'Origin: null',
     'Origin: http://app.example', 'Origin: https://app.example:444',
     'Origin: https://app.example.evil.example', 'Origin: https://app.exampl',
     'Origin: https://app.example/', 'Origin: https://APP.example',
     'Origin: https://xapp.example', 'Origin:']
--- error_code eval: [(204) x 10]
--- response_headers eval
[("!Access-Control-Allow-Origin\n!Access-Control-Allow-Credentials\n"
  . "!Access-Control-Allow-Methods\n!Access-Control-Allow-Headers\n"
  . "Vary: Origin") x 10]



=== TEST 3: each origin of the list
--- request eval
[("POST /data/posts/query\n{}") x 2]
--- more_headers eval
["$::Token\n$::Good", "$::Token\nOrigin: http://localhost:3000"]
--- error_code eval: [200, 200]
--- response_headers eval
["Access-Control-Allow-Origin: https://app.example\nAccess-Control-Allow-Credentials: true\nVary: Origin",
 "Access-Control-Allow-Origin: http://localhost:3000\nAccess-Control-Allow-Credentials: true\nVary: Origin"]



=== TEST 4: the directive repeats
--- request eval
[("POST /more/posts/query\n{}") x 3]
--- more_headers eval
["$::Token\nOrigin: https://a.example", "$::Token\nOrigin: https://b.example",
 "$::Token\n$::Good"]
--- error_code eval: [200, 200, 200]
--- response_headers eval
['Access-Control-Allow-Origin: https://a.example',
 'Access-Control-Allow-Origin: https://b.example',
 "!Access-Control-Allow-Origin\nVary: Origin"]



=== TEST 5: a write
--- request
POST /data/posts
{}
--- more_headers eval: "$::Token\n$::Good"
--- error_code: 201
--- response_headers
Access-Control-Allow-Origin: https://app.example
Vary: Origin



=== TEST 6: a page may read what it needs: ETag and Retry-After
--- request
GET /data/posts/query
--- more_headers eval: "$::Token\n$::Good"
--- error_code: 200
--- response_headers
Access-Control-Expose-Headers: Age, ETag, Retry-After



=== TEST 7: the module's errors
--- request eval
["POST /data/posts\n{", "POST /data/posts\n{}", 'GET /data/posts',
 'POST /data/nothing/here', 'GET /data/expand?did=did:a:b&ref=x',
 "POST /data/posts\n{}"]
--- more_headers eval
["$::Token\n$::Good", $::Good, "$::Token\n$::Good", "$::Token\n$::Good",
 "$::Token\n$::Good", "$::Token\n$::Good\nContent-Type: text/plain"]
--- error_code eval: [400, 401, 405, 404, 404, 415]
--- response_headers eval
[("Access-Control-Allow-Origin: https://app.example\n"
  . "Access-Control-Allow-Credentials: true\nVary: Origin") x 6]



=== TEST 8: nginx's own errors
--- request eval
"POST /data/posts\n{\"a\":\"" . 'x' x 2000 . '"}'
--- more_headers eval: "$::Token\n$::Good"
--- error_code: 413
--- response_headers
Content-Type: application/json
Access-Control-Allow-Origin: https://app.example
Access-Control-Allow-Credentials: true
Vary: Origin
--- no_error_log
[alert]



=== TEST 9: errors to a page that may not call say nothing
--- request eval
["POST /data/posts\n{", "POST /data/posts\n{\"a\":\"" . 'x' x 2000 . '"}']
--- more_headers eval: "$::Token\nOrigin: https://evil.example"
--- error_code eval: [400, 413]
--- response_headers eval
[("!Access-Control-Allow-Origin\n!Access-Control-Allow-Credentials\nVary: Origin") x 2]
--- no_error_log
[alert]



=== TEST 10: without Origin there is no permission to give; caches must know
--- request
POST /data/posts/query
{}
--- more_headers eval: $::Token
--- error_code: 200
--- response_headers
!Access-Control-Allow-Origin
!Access-Control-Allow-Credentials
Vary: Origin



=== TEST 11: no vibe_origins, no permission
--- config eval: $::Config
--- request eval
["POST /none/posts/query\n{}", 'OPTIONS /none/posts']
--- more_headers eval: "$::Token\n$::Good"
--- error_code eval: [200, 204]
--- response_headers eval
[("!Access-Control-Allow-Origin\n!Access-Control-Allow-Credentials") x 2]



=== TEST 12: an ETag is there for pages, too
--- request
GET /data/posts/query?q=%7B%22none%22%3A1%7D
--- more_headers eval: "$::Token\n$::Good"
--- error_code: 200
--- response_headers_like
ETag: W/"[0-9a-f]+"
Cache-Control: private.*
