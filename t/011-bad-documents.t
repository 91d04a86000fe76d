# What cannot be a document, or has no collection to go to, is refused with a
# reason in CouchDB's form, writes nothing, and harms nobody.

use strict;
use warnings;

use JSON::PP;
use Test::More;
use Vibe;

my $json = JSON::PP->new->utf8->canonical->allow_nonref;
my $true = JSON::PP::true;

# A worker that ends would take its requests along: there is just one.
my $nginx = nginx_start(server => server_config(
    data => 'client_max_body_size 10m;',
    extra => <<'EOF'));
location / {
    default_type application/json;
    return 404 '{"error":"not_found","reason":"missing"}';
}
EOF
my ($worker) = $nginx->workers;

my $alice = did('alice');
my $db = userdb($alice);
my $token = token($alice);


sub post {
    my ($path, $body) = @_;

    return request($nginx, 'POST', $path, $token, $body);
}


# What is in a database: each id with its winner's revision.

sub contents {
    my ($name) = @_;

    my ($status, $data) = couch('GET', "/$name/_changes");
    return { map { $_->{id} => $_->{changes} } @{ $data->{results} } };
}


my ($status, $first) = post('/data/posts',
    { _id => 'there', v => 1, acl => { global => $true } });
is($status, 201, 'there is a document');

my ($before, $changes) = (contents($db), contents('global'));


sub refused {
    my ($name, $want, $path, $body) = @_;

    subtest $name => sub {
        my ($status, $data, $header) = post($path, $body);

        ok(scalar(grep { $status == $_ } ref $want ? @$want : $want),
           'the status') or diag("$status for ", substr($body, 0, 200));
        is($header->{'content-type'}, 'application/json', 'the type');
        is(ref $data, 'HASH', 'the answer is an object')
            or return diag(substr($data, 0, 500));
        ok(length($data->{error} // ''), 'with an error');
        ok(length($data->{reason} // ''), 'and a reason');
        is(scalar keys %$data, 2, 'and nothing else');

        is_deeply(contents($db), $before, 'nothing is written');
    };
}


my $deep = 10_000;
my %bodies = (
    'not JSON' => 'hello',
    'nothing but blanks' => " \r\n\t ",
    'truncated' => '{"a":1,"b":[1,2',
    'truncated in a string' => '{"a":"b',
    'truncated in an escape' => '{"a":"\\',
    'truncated in a unicode escape' => '{"a":"\\u00',
    'two documents' => '{"a":1}{"b":2}',
    'a document and more' => '{"a":1} x',
    'a closing brace too many' => '{"a":1}}',
    'a comma too many' => '{"a":1,}',
    'a comment' => '{"a":1/* x */}',
    'single quotes' => "{'a':1}",
    'NaN' => '{"a":NaN}',
    'a number with a leading zero' => '{"a":01}',
    'a bad escape' => '{"a":"\\x"}',
    'a raw newline in a string' => "{\"a\":\"b\nc\"}",
    'a raw NUL' => "{\"a\":\"b\0c\"}",
    'a NUL behind the document' => "{\"a\":1}\0",
    'a byte order mark' => "\xef\xbb\xbf{\"a\":1}",
    'UTF-16' => "\xff\xfe{\0}\0",
    'bad UTF-8' => "{\"a\":\"\xff\"}",
    'UTF-8 cut off' => "{\"a\":\"\xc3\"}",
    'an overlong form' => "{\"a\":\"\xc0\xaf\"}",
    'a surrogate in UTF-8' => "{\"a\":\"\xed\xa0\x80\"}",
    'UTF-8 beyond Unicode' => "{\"a\":\"\xf4\x90\x80\x80\"}",
    'bad UTF-8 in a name' => "{\"\xff\":1}",
    'a lone high surrogate' => '{"a":"\\ud800"}',
    'a lone low surrogate' => '{"a":"\\udc00"}',
    'surrogates the wrong way round' => '{"a":"\\udc00\\ud800"}',
    'a lone surrogate in a name' => '{"\\ud800":1}',
    'a number' => '5',
    'a string' => '"x"',
    'null' => 'null',
    'true' => 'true',
    'an empty array' => '[]',
    'objects nested deep' => '{"a":' x $deep . '1' . '}' x $deep,
    'arrays nested deep' => '{"a":' . '[' x $deep . ']' x $deep . '}',
    'arrays nested deep, open' => '[' x $deep,
    'a repeated _id' => '{"_id":"x","_id":"y"}',
    'a repeated _id, escaped' => '{"_id":"x","\\u005fid":"y"}',
    'a repeated _rev' => "{\"_id\":\"there\",\"_rev\":\"$first->{rev}\","
                         . "\"_rev\":\"$first->{rev}\"}",
    'a repeated _deleted' => '{"_id":"there","_deleted":false,"_deleted":true}',
    'a repeated acl' => '{"acl":{},"acl":{"global":true}}',
    'a repeated acl, escaped' => '{"acl":{},"\\u0061cl":{"global":true}}',
    'a repeated collection' => '{"collection":"a","collection":"b"}',
    'a repeated _attachments' => '{"_attachments":{},"_attachments":{}}',
    '_id null' => '{"_id":null}',
    '_id 5' => '{"_id":5}',
    '_id an object' => '{"_id":{}}',
    '_id an array' => '{"_id":["x"]}',
    '_id empty' => '{"_id":""}',
    '_id of a design document' => '{"_id":"_design/x"}',
    '_id of a local document' => '{"_id":"_local/x"}',
    '_id with an underscore' => '{"_id":"_x"}',
    '_id with an escaped underscore' => '{"_id":"\\u005fdesign/x"}',
    '_id of 4,000 characters' => '{"_id":"' . 'x' x 4000 . '"}',
    '_id with a NUL' => '{"_id":"a\\u0000b"}',
    '_id with a newline' => '{"_id":"a\\nb"}',
    '_id with a control character' => '{"_id":"a\\u001fb"}',
    '_id with DEL' => '{"_id":"a\\u007fb"}',
    '_rev 5' => '{"_id":"there","_rev":5}',
    '_rev null' => '{"_id":"there","_rev":null}',
    '_rev empty' => '{"_id":"there","_rev":""}',
    '_rev that is none' => '{"_id":"there","_rev":"x"}',
    '_rev of generation 0' => '{"_id":"there","_rev":"0-1"}',
    '_rev of a large generation'
        => '{"_id":"there","_rev":"99999999999999999999-a"}',
    '_rev without a hash' => '{"_id":"there","_rev":"1-"}',
    '_deleted 1' => '{"_id":"there","_deleted":1}',
    '_deleted "true"' => '{"_id":"there","_deleted":"true"}',
    '_deleted null' => '{"_id":"there","_deleted":null}',
    '_attachments 5' => '{"_attachments":5}',
    '_attachments an array' => '{"_attachments":[]}',
    'a special member' => '{"_x":1}',
    '_revisions' => '{"_id":"x","_revisions":{"start":1,"ids":["a"]}}',
    '_revs_info' => '{"_revs_info":[]}',
    '_conflicts' => '{"_conflicts":[]}',
    'a member of the module\'s' => '{"vibe_access":"public"}',
    'a member of the module\'s, escaped' => '{"\\u0076ibe_access":"public"}',
    'a member with the module\'s prefix' => '{"vibe_":1}',
);

refused("the body: $_", 400, '/data/posts', $bodies{$_}) for sort keys %bodies;

refused('a document of 9 MB', 413, '/data/posts',
        '{"_id":"big","pad":"' . 'x' x 9_000_000 . '"}');
refused('a body over the limit', 413, '/data/posts',
        '{"_id":"big","pad":"' . 'x' x 11_000_000 . '"}');


my $doc = '{"_id":"x"}';

# Anything but a name of a collection is not found.

refused("the path $_", [400, 404], $_, $doc)
    for '/data/', '/data', '/data//', '/data/_x', '/data/_design', '/data/-x',
        '/data/1x', '/data/a/b', '/data/posts/', '/data/posts/x',
        '/data/posts/_bulk_docs', '/data/posts/query/', '/data/posts/query/x',
        '/data/..', '/data/../posts', '/data/%2e%2e', '/data/%2e%2e/posts',
        '/data/posts%2f..', '/data/a%2fb', '/data/.', '/data/posts%0a',
        '/data/po%20sts', '/data/posts.',
        '/data/posts:x', '/data/posts~', '/data/p%c3%b6sts', '/data/posts;x',
        '/data/' . 'a' x 65, '/data/' . 'a' x 200, '/data/global',
        '/data/query', '/data/changes', '/data/%67lobal',
        '/data/global/query/x';

# nginx refuses these before it knows of a location.
for my $path ('/data/posts%00', '/data/po%00sts', '/data/po%zzsts') {
    my ($status) = post($path, $doc);
    is($status, 400, "the path $path");
    is_deeply(contents($db), $before, '… nothing is written');
}

refused('a document for /data/expand', 405, '/data/expand', $doc);

for my $name ('a', 'A', 'a-b', 'a_b', 'a1', 'a' x 64, 'Global', 'globals') {
    my ($status, $data) = post("/data/$name", { v => 1 });
    is($status, 201, "the collection $name");
}

$before = contents($db);


for my $method (qw(PUT DELETE PATCH GET HEAD)) {
    my ($status, $data, $header) = request($nginx, $method, '/data/posts',
                                           $token);
    is($status, 405, "$method of a collection");
    like($header->{allow} // '', qr/\bPOST\b/, '… is told what is allowed');
}

is_deeply(contents($db), $before, '… and nothing is written');


# What cannot be understood of an ACL is no reason to refuse the document, but
# nobody else gets to read it.

my $bob = did('bob');
my $n = 0;

for my $acl ('null', 'true', '"*"', '5', '[]', '["*"]', '[{"global":true}]',
             '"global"', '{}', '{"global":1}', '{"global":"true"}',
             '{"global":{}}', '{"global":[true]}', '{"Global":true}',
             '{"global":true,"global":true}', '{"global":false,"global":true}',
             '{"global":true,"read":null}', '{"global":true,"read":[]}',
             '{"global":true,"read":"x"}', '{"global":true,"read":{"deny":"x"}}',
             '{"global":true,"read":{"deny":null}}',
             '{"global":true,"read":{"deny":{}}}',
             '{"global":true,"read":{"deny":[5]}}',
             '{"global":true,"read":{"deny":["not a did"]}}',
             '{"global":true,"read":{"deny":[],"deny":["*"]}}',
             '{"read":"*"}', '{"read":["*"]}', '{"read":{"allow":"*"}}',
             '{"read":{"allow":{"0":"*"}}}', '{"read":{"allow":true}}',
             '{"read":{"allow":[true]}}', '{"read":{"allow":[null]}}',
             '{"read":{"allow":["*",5]}}', '{"read":{"allow":["**"]}}',
             '{"read":{"allow":["*","bob"]}}', '{"read":{"allow":[[]]}}',
             "{\"read\":{\"allow\":[\"$bob \"]}}",
             "{\"read\":{\"allow\":[\"$bob#key\"]}}",
             "{\"read\":{\"allow\":[{\"did\":\"$bob\"}]}}",
             '{"allow":["*"]}', '{"write":{"allow":["*"]}}',
             '{"read":{"allow":["*"],"allow":["*"]}}',
             '{"read":{"allow":["*"]},"read":{"allow":["*"]}}',
             '{"read":{"allow":[' . join(',', ('"*"') x 10_000) . ']}}',
             '{"read":' x 90 . '{}' . '}' x 90)
{
    my $id = 'acl' . ++$n;
    my $show = substr($acl, 0, 60);
    my ($status, $data) = post('/data/posts', "{\"_id\":\"$id\",\"acl\":$acl}");

    is($status, 201, "acl $show: the document is written");
    is($data->{global}, undef, '… and private');

    my ($got, $all) = couch('POST', '/global/_all_docs',
                            { keys => [gid($alice, $id)] });
    is($all->{rows}[0]{error}, 'not_found', '… and global knows nothing of it');
}


# After all this.

my @workers = $nginx->workers;
is_deeply(\@workers, [$worker], 'the worker is still the first one');

($status, my $data) = post('/data/posts',
    { _id => 'after', acl => { global => $true } });
is($status, 201, 'and serves');
is($data->{global}, gid($alice, 'after'), 'and mirrors');

$before = { map { $_ => 1 } keys %$changes };
is_deeply([grep { !$before->{$_} && /\Q$alice\E:/ } sort keys %{ contents('global') }],
          [gid($alice, 'after')], 'global holds nothing of what was refused');

$nginx->stop;

done_testing;
