# What is at which path and with which method: all else is 404, or 405 with
# Allow; and every error is JSON, nginx's own ones, too.

use strict;
use warnings;

use Test::Nginx::Socket 'no_plan';
use Vibe;

our $Token = bearer(did('routes'));
our $Big = '"' . 'x' x 2000 . '"';

no_long_string();
no_shuffle();
run_tests();

__DATA__

=== TEST 1: GET of a collection is not allowed
--- request
GET /data/posts
--- more_headers eval: $::Token
--- error_code: 405
--- response_headers
Allow: POST, OPTIONS
Content-Type: application/json
--- response_body_like: ^\{"error":"method_not_allowed","reason":"[^"]+"\}\n$



=== TEST 2: so are PUT, DELETE, PATCH and what nginx has no name for
--- request eval
[map { "$_ /data/posts" } qw(PUT DELETE PATCH MKCOL BREW)]
--- more_headers eval: $::Token
--- error_code eval: [(405) x 5]
--- response_headers eval: [('Allow: POST, OPTIONS') x 5]



=== TEST 3: without a token, too: who asks does not matter
--- request
DELETE /data/posts
--- error_code: 405



=== TEST 4: a query is a POST or a GET
--- request eval
[map { "$_ /data/posts/query" } qw(PUT DELETE PATCH)]
--- more_headers eval: $::Token
--- error_code eval: [(405) x 3]
--- response_headers eval: [('Allow: GET, HEAD, POST, OPTIONS') x 3]



=== TEST 5: expand is a GET
--- request eval
[map { "$_ /data/expand?did=did:a:b&ref=x" } qw(POST PUT DELETE)]
--- more_headers eval: $::Token
--- error_code eval: [(405) x 3]
--- response_headers eval: [('Allow: GET, HEAD, OPTIONS') x 3]



=== TEST 6: paths at which there is nothing
--- request eval
[map { "POST $_\n{}" }
     '/data/', '/data/posts/', '/data/posts/other', '/data/posts/query/',
     '/data/posts/query/more', '/data/posts/doc/query', '/data//query',
     '/data/posts/Query', '/data/expand/',
     '/data/expand/x', '/data/posts/_find', '/data/posts/%20query']
--- more_headers eval: $::Token
--- error_code eval: [(404) x 12]
--- response_body_like eval: [(qr/^\{"error":"not_found","reason":"[^"]+"\}\n$/) x 12]



=== TEST 7: collections that cannot be
--- request eval
[map { "POST /data/$_\n{}" }
     '_x', '1a', '-a', 'a.b', 'a%2Fb', 'a%00b', 'a%0Ab', 'a:b', 'a%20', 'p%C3%B6st', 'x' x 65, 'y' x 200,
     'global', 'query', 'changes', '_users', '_all_dbs', '~', '*', 'a,b']
--- more_headers eval: $::Token
--- error_code eval: [(404) x 5, 400, (404) x 14]



=== TEST 8: collections that can be
--- request eval
[map { "POST /data/$_/query\n{}" } 'a', 'A-b_9', 'x' x 64, 'Global', 'queryx',
                                    'p%6Fsts']
--- more_headers eval: $::Token
--- error_code eval: [(200) x 6]



=== TEST 9: the content type must be JSON, or not be said
--- request eval
[("POST /data/posts/query\n{}") x 5]
--- more_headers eval
[map { "$::Token\n$_" } 'Content-Type: application/json',
     'Content-Type: application/json; charset=utf-8',
     'content-type: Application/JSON', 'X-Type: none', 'Content-Type: application/json;charset=UTF-8']
--- error_code eval: [(200) x 5]



=== TEST 10: other types are 415: a form on any page can send those
--- request eval
[("POST /data/posts\n{}") x 4]
--- more_headers eval
[map { "$::Token\nContent-Type: $_" } 'text/plain',
     'application/x-www-form-urlencoded', 'application/jsonp',
     'multipart/form-data; boundary=x']
--- error_code eval: [(415) x 4]
--- response_body_like eval: [(qr/^\{"error":"bad_content_type","reason":"[^"]+"\}\n$/) x 4]



=== TEST 11: a body over nginx's limit is 413, in JSON
--- config eval: Vibe::server_config(data => 'client_max_body_size 1k;')
--- request eval: "POST /data/posts\n{\"a\":$::Big}"
--- more_headers eval: $::Token
--- error_code: 413
--- response_headers
Content-Type: application/json
--- response_body_like: ^\{"error":"too_large","reason":"[^"]+"\}\n$
--- no_error_log
[alert]



=== TEST 12: the same for a chunked body, whose size nobody knows before
--- config eval: Vibe::server_config(data => 'client_max_body_size 1k;')
--- raw_request eval
"POST /data/posts HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
. "$::Token\r\nTransfer-Encoding: chunked\r\n\r\n"
. "7db\r\n{\"a\":\"" . 'x' x 2005 . "\r\n2\r\n\"}\r\n0\r\n\r\n"
--- error_code: 413
--- response_headers
Content-Type: application/json
--- response_body_like: ^\{"error":"too_large","reason":"[^"]+"\}\n$
--- no_error_log
[alert]



=== TEST 13: a broken chunked body is 400, in JSON
--- raw_request eval
"POST /data/posts HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
. "$::Token\r\nTransfer-Encoding: chunked\r\n\r\nnot a length\r\n"
--- error_code: 400
--- response_headers
Content-Type: application/json
--- response_body_like: ^\{"error":"bad_request","reason":"[^"]+"\}\n$
--- no_error_log
[alert]



=== TEST 14: access rules of nginx's own are answered in JSON
--- config eval: Vibe::server_config(data => 'deny all;')
--- request
POST /data/posts
{}
--- more_headers eval: $::Token
--- error_code: 403
--- response_headers
Content-Type: application/json
--- response_body_like: ^\{"error":"forbidden","reason":"[^"]+"\}\n$
--- no_error_log
[alert]



=== TEST 15: HEAD, where GET is: the same without the body
--- request eval
['HEAD /data/posts/query', 'HEAD /data/expand?did=did:a:b&ref=x']
--- more_headers eval: $::Token
--- error_code eval: [200, 404]
--- response_headers eval: [('Content-Type: application/json') x 2]
--- response_body eval: ['', '']



=== TEST 16: HEAD, where it is not
--- request eval
['HEAD /data/posts', 'HEAD /data/posts/nothing']
--- more_headers eval: $::Token
--- error_code eval: [405, 404]
--- response_body eval: ['', '']



=== TEST 17: OPTIONS tells what may be done
--- request eval
['OPTIONS /data/posts', 'OPTIONS /data/posts/query', 'OPTIONS /data/expand']
--- error_code eval: [204, 204, 204]
--- response_headers eval
['Allow: POST, OPTIONS', 'Allow: GET, HEAD, POST, OPTIONS', 'Allow: GET, HEAD, OPTIONS']



=== TEST 18: OPTIONS of what is not there
--- request
OPTIONS /data/posts/nothing
--- error_code: 404



=== TEST 19: the way to CouchDB is closed to clients
--- request eval
['GET /vibe_couchdb', 'POST /vibe_couchdb', 'GET /vibe_couchdb/global',
 'GET /data/../vibe_couchdb', 'GET /data/%2e%2e/vibe_couchdb']
--- more_headers eval: $::Token
--- error_code eval: [(404) x 5]



=== TEST 20: another name of the location
--- config eval
Vibe::server_config(extra => "location /app/v1/ {\n vibe_data;\n}\n")
--- request eval
["POST /app/v1/posts\n{}", "POST /app/v1/posts/query\n{}",
 'GET /app/v1/expand?did=did:a:b&ref=x', 'GET /app/v1/']
--- more_headers eval: $::Token
--- error_code eval: [201, 200, 404, 404]
