# What a caller may ask with a selector: each operator does what CouchDB does
# with it, each bad form is 400 and says why, and nothing that a caller adds
# shows more than they may see.

use strict;
use warnings;

use JSON::PP;
use Test::More;
use Vibe;

my $json = JSON::PP->new->utf8->canonical;

# Collections of this run only: `global` is shared with other tests.
my $run = sprintf('%x%04x', time, $$ & 65535);
my ($posts, $other) = ("sel$run", "oth$run");
my $secret = "secret$run";

my ($alice, $bob, $eve, $carol) = map { did($_) } qw(alice bob eve carol);
my %token = map { $_ => token($_) } $alice, $bob, $eve, $carol;

my $nginx = nginx_start();


# The documents t1, t2 and t3 that every query below looks for.

my @seen = (
    { k => 't1', n => 1, s => 'abc', flag => JSON::PP::true, none => undef,
      tags => ['a', 'b'], nums => [1, 2, 3], list => [{ v => 1 }, { v => 9 }],
      keys => { en => 1 }, o => { x => 1, y => { q => 5 } },
      createdAt => 100 },
    { k => 't2', n => 5, s => 'abd', flag => JSON::PP::false,
      tags => ['b', 'c', 'd'], nums => [4, 5], list => [{ v => 2 }],
      keys => { de => 1 }, o => { x => 2, y => { q => 6 } },
      createdAt => 200 },
    { k => 't3', n => 10, s => 'xyz', flag => JSON::PP::true, none => 1,
      tags => [], nums => [9], list => [{ v => 9 }, { v => 9 }],
      keys => { en => 1, de => 2 }, o => { x => 3, y => { q => 7 } },
      'd.t' => 7, '$ref' => 8, createdAt => 300 },
);

# And those that eve must never see: they would match most queries.

my %hidden = (
    p1 => {},
    r1 => { acl => { read => { allow => [$bob] } } },
    d1 => { acl => { read => { allow => ['*'], deny => [$eve] } } },
    c1 => { acl => { read => { allow => [{ issuer => $eve,
                                           type => 'X' }] } } },
);


sub save {
    my ($who, $collection, $id, $doc) = @_;

    my ($status, $answer) = request($nginx, 'POST', "/data/$collection",
                                    $token{$who}, { _id => $id, %$doc });

    is($status, 201, "$collection: $id is written")
        or diag($json->encode($answer));
}


for my $doc (@seen) {
    save($alice, $posts, "$posts/$doc->{k}",
         { %$doc, acl => { global => JSON::PP::true } });
    save($carol, $posts, "$posts/$doc->{k}", $doc);
}

for my $k (sort keys %hidden) {
    save($alice, $posts, "$posts/$k",
         { %{ $seen[0] }, %{ $hidden{$k} }, k => $k, secret => $secret });
}

# Of another collection, and public there.
save($alice, $other, "$other/o1",
     { %{ $seen[0] }, k => 'o1', secret => $secret,
       acl => { global => JSON::PP::true } });

# Carol's own, with an id that alice has too.
save($carol, $posts, "$posts/p1", { k => 'c', secret => $secret });
save($carol, $posts, "$posts/c2", { k => 'c', secret => $secret });


# query($who, $body [, $args]): an index may still be in the making.

sub query {
    my ($who, $body, $args) = @_;

    my @answer;

    wait_for {
        @answer = request($nginx, 'POST',
                          "/data/$posts/query" . ($args // ''),
                          $token{$who}, $body);
        $answer[0] != 503;
    } 30;

    return @answer;
}


sub keys_of {
    my ($answer) = @_;

    return ref $answer eq 'HASH' && ref $answer->{docs} eq 'ARRAY'
           ? join(' ', sort map { $_->{k} // '?' } @{ $answer->{docs} })
           : 'no docs: ' . (ref $answer ? $json->encode($answer) : $answer);
}


# matches($selector, $expected): as "selector" and flat, of global and own.
# Carol's own documents without "n" are left out by it where they would match.

sub matches {
    my ($selector, $expected) = @_;

    my $members = substr($selector, 1, -1);
    my $own = "{\"\$and\":[$selector,{\"n\":{\"\$exists\":true}}]}";

    for ([$eve, "{\"selector\":$selector}", '?global=true', 'global'],
         [$eve, "{\"global\":true,$members}", '', 'global, flat'],
         [$carol, "{\"selector\":$own}", '', 'own'],
         [$carol, "{\"n\":{\"\$exists\":true},$members}", '', 'own, flat'])
    {
        my ($who, $body, $args, $name) = @$_;

        # "n" twice would be refused.
        next if $name eq 'own, flat' && $selector =~ /^\{"n":/;

        # No $regex on global.
        next if $name =~ /global/ && $selector =~ /\$regex/;

        my ($status, $answer) = query($who, $body, $args);
        is("$status " . keys_of($answer), "200 $expected",
           "$name: $selector");
    }
}


matches('{"n":5}', 't2');
matches('{"n":{"$eq":5}}', 't2');
matches('{"n":{"$ne":5}}', 't1 t3');
matches('{"n":{"$gt":5}}', 't3');
matches('{"n":{"$gte":5}}', 't2 t3');
matches('{"n":{"$lt":5}}', 't1');
matches('{"n":{"$lte":5}}', 't1 t2');
matches('{"n":{"$gt":1,"$lt":10}}', 't2');
matches('{"s":{"$gte":"abd"}}', 't2 t3');
matches('{"n":{"$in":[1,10,"x"]}}', 't1 t3');
matches('{"n":{"$nin":[1,10]}}', 't2');
matches('{"n":{"$in":[]}}', '');
matches('{"n":{"$nin":[]}}', 't1 t2 t3');
matches('{"tags":{"$in":["a","d"]}}', 't1 t2');
matches('{"tags":{"$nin":["a"]}}', 't2 t3');
matches('{"none":{"$exists":true}}', 't1 t3');
matches('{"none":{"$exists":false}}', 't2');
matches('{"none":null}', 't1');
matches('{"none":{"$type":"null"}}', 't1');
matches('{"none":{"$type":"number"}}', 't3');
matches('{"flag":{"$type":"boolean"}}', 't1 t2 t3');
matches('{"s":{"$type":"string"}}', 't1 t2 t3');
matches('{"tags":{"$type":"array"}}', 't1 t2 t3');
matches('{"o":{"$type":"object"}}', 't1 t2 t3');
matches('{"o":{"$type":"array"}}', '');
matches('{"tags":{"$size":2}}', 't1');
matches('{"tags":{"$size":0}}', 't3');
matches('{"n":{"$mod":[5,0]}}', 't2 t3');
matches('{"n":{"$mod":[4,1]}}', 't1 t2');
matches('{"tags":{"$all":["b"]}}', 't1 t2');
matches('{"tags":{"$all":["a","b"]}}', 't1');
matches('{"list":{"$elemMatch":{"v":9}}}', 't1 t3');
matches('{"nums":{"$elemMatch":{"$gt":2,"$lt":5}}}', 't1 t2');
matches('{"list":{"$elemMatch":{"$or":[{"v":1},{"v":2}]}}}', 't1 t2');
matches('{"list":{"$allMatch":{"v":9}}}', 't3');
matches('{"nums":{"$allMatch":{"$gt":3}}}', 't2 t3');
matches('{"s":{"$regex":"^ab"}}', 't1 t2');
matches('{"$and":[{"n":{"$gt":1}},{"flag":true}]}', 't3');
matches('{"$or":[{"n":1},{"s":"xyz"}]}', 't1 t3');
matches('{"$nor":[{"n":1},{"s":"xyz"}]}', 't2');
matches('{"$not":{"n":1}}', 't2 t3');
matches('{"$not":{"$or":[{"n":1},{"n":5}]}}', 't3');
matches('{"$and":[{"$or":[{"n":1},{"n":5}]},{"flag":true}]}', 't1');
matches('{"n":{"$gt":1},"flag":true}', 't3');
matches('{"o":{"x":2}}', 't2');
matches('{"o.x":2}', 't2');
matches('{"o":{"y":{"q":{"$gt":5}}}}', 't2 t3');
matches('{"o":{"y.q":5}}', 't1');
matches('{"o":{"$type":"object","x":1}}', 't1');
matches('{"o.y":{"$eq":{"q":6}}}', 't2');
matches('{"tags":["a","b"]}', 't1');
matches('{"d\\\\.t":7}', 't3');

# Below a field, and what stands alone for equality.
matches('{"keys":{"$keyMapMatch":{"$eq":"en"}}}', 't1 t3');
matches('{"n":{"$not":{"$gt":1}}}', 't1');
matches('{"n":{"$or":[{"$lt":2},{"$gt":9}]}}', 't1 t3');
matches('{"n":{"$nor":[{"$lt":2},{"$gt":9}]}}', 't2');
matches('{"n":{"$and":[{"$gt":1},{"$lt":9}]}}', 't2');
matches('{"o":{"$not":{"x":1}}}', 't2 t3');
matches('{"list":{"$not":{"$elemMatch":{"v":1}}}}', 't2 t3');
matches('{"o":{}}', '');
matches('{"tags":[]}', 't3');
matches('{"\\\\$ref":8}', 't3');

# Without a condition: all that may be seen.
for my $body ('{}', '{"selector":{}}') {
    is(keys_of((query($eve, $body, '?global=true'))[1]), 't1 t2 t3',
       "global: $body");
    is(keys_of((query($carol, $body))[1]), 'c c t1 t2 t3', "own: $body");
}

# Values are data, whatever they are called.
for my $value ('{"vibe_x":1}', '{"$foo":[{"vibe_x":1}]}', '"vibe_x"',
               '["vibe_access"]')
{
    is((query($eve, "{\"n\":{\"\$ne\":$value}}", '?global=true'))[0], 200,
       "a value: $value");
}


# refused($body, $reason): 400, of global and own, and it says why.

sub refused {
    my ($body, $reason, $name) = @_;

    $name //= $body;

    for ([$eve, '?global=true', 'global'], [$carol, '', 'own']) {
        my ($who, $args, $where) = @$_;
        my ($status, $answer, undef, $raw) = query($who, $body, $args);

        is($status, 400, "$where: 400: $name") or diag($raw);
        is(ref $answer ? $answer->{error} : undef, 'bad_request',
           "$where: bad_request: $name");
        like(ref $answer ? $answer->{reason} // '' : '', $reason,
             "$where: reason: $name");
        unlike($raw, qr/\Q$secret\E/, "$where: nothing told: $name");
    }
}


# no_selector($selector, $reason): whole and flat.

sub no_selector {
    my ($selector, $reason) = @_;

    refused("{\"selector\":$selector}", $reason);
    refused($selector, $reason) if $selector =~ /^\{/;
}


my @bad = (
    ['[]', qr/object/],
    ['null', qr/object/],
    ['"x"', qr/object/],
    ['5', qr/object/],

    ['{"$foo":1}', qr/unknown operator: \$foo/],
    ['{"n":{"$foo":1}}', qr/unknown operator: \$foo/],
    ['{"n":{"$EQ":1}}', qr/unknown operator: \$EQ/],
    ['{"n":{"$where":"return true"}}', qr/unknown operator: \$where/],
    ['{"$text":"x"}', qr/unknown operator: \$text/],
    ['{"$default":{"$text":"x"}}', qr/unknown operator: \$default/],
    ['{"n":{"$e\u0000q":1}}', qr/unknown operator: \$e\?q/],
    ['{"\u0024foo":1}', qr/unknown operator: \$foo/],

    # On the whole document: it would be compared with what is in it.
    ['{"$gt":null}', qr/without a field: \$gt/],
    ['{"n":1,"$ne":{"vibe_access":"public"}}', qr/without a field: \$ne/],
    ['{"$keyMapMatch":{"$eq":"vibe_read"}}', qr/without a field/],
    ['{"$and":[{"$exists":true}]}', qr/without a field: \$exists/],
    ['{"$not":{"$elemMatch":{"n":1}}}', qr/without a field/],

    ['{"$and":[]}', qr/array of conditions.*\$and/],
    ['{"$or":[]}', qr/array of conditions.*\$or/],
    ['{"$nor":[]}', qr/array of conditions.*\$nor/],
    ['{"$or":{"n":1}}', qr/array of conditions.*\$or/],
    ['{"$or":[1]}', qr/array of conditions.*\$or/],
    ['{"$or":[{"n":1},{}]}', qr/array of conditions.*\$or/],
    ['{"n":{"$or":[1,5]}}', qr/array of conditions.*\$or/],
    ['{"$not":{}}', qr/object of conditions.*\$not/],
    ['{"$not":[{"n":1}]}', qr/object of conditions.*\$not/],
    ['{"list":{"$elemMatch":9}}', qr/object of conditions.*\$elemMatch/],
    ['{"list":{"$elemMatch":{}}}', qr/object of conditions.*\$elemMatch/],
    ['{"list":{"$allMatch":[]}}', qr/object of conditions.*\$allMatch/],
    ['{"keys":{"$keyMapMatch":"x"}}', qr/object of conditions.*\$keyMap/],

    ['{"n":{"$in":5}}', qr/array.*\$in/],
    ['{"n":{"$nin":{"a":1}}}', qr/array.*\$nin/],
    ['{"tags":{"$all":"a"}}', qr/array.*\$all/],
    ['{"tags":{"$all":[]}}', qr/array.*\$all/],
    ['{"n":{"$exists":1}}', qr/\$exists/],
    ['{"n":{"$exists":"true"}}', qr/\$exists/],
    ['{"n":{"$exists":null}}', qr/\$exists/],
    ['{"n":{"$type":"integer"}}', qr/\$type/],
    ['{"n":{"$type":2}}', qr/\$type/],
    ['{"tags":{"$size":-1}}', qr/\$size/],
    ['{"tags":{"$size":1.0}}', qr/\$size/],
    ['{"tags":{"$size":"2"}}', qr/\$size/],
    ['{"n":{"$mod":[0,1]}}', qr/\$mod/],
    ['{"n":{"$mod":[-0,1]}}', qr/\$mod/],
    ['{"n":{"$mod":[4]}}', qr/\$mod/],
    ['{"n":{"$mod":[4,1,1]}}', qr/\$mod/],
    ['{"n":{"$mod":[2.5,1]}}', qr/\$mod/],
    ['{"n":{"$mod":["4",1]}}', qr/\$mod/],
    ['{"n":{"$mod":4}}', qr/\$mod/],
    ['{"s":{"$regex":5}}', qr/\$regex/],

    ['{"":1}', qr/invalid field name/],
    ['{"o..x":1}', qr/invalid field name/],
    ['{".o":1}', qr/invalid field name/],
    ['{"o.":1}', qr/invalid field name/],
    ['{"\\\\":1}', qr/invalid field name/],
    ['{"o":{"":1}}', qr/invalid field name/],

    ['{"n":1,"n":5}', qr/repeated name: n/],
    ['{"n":1,"\u006e":5}', qr/repeated name: n/],
    ['{"$or":[{"n":1}],"$or":[{"n":5}]}', qr/repeated name: \$or/],
    ['{"n":{"$gt":1,"$gt":2}}', qr/repeated name: \$gt/],
);

no_selector(@$_) for @bad;

# The bounds.
refused('{"selector":' . '{"$not":' x 16 . '{"n":1}' . '}' x 17,
        qr/too deep/, '$not 16 deep');
refused('{"n":' . '[' x 17 . ']' x 17 . '}', qr/too deep/,
        'a value 17 deep');
refused('{"n":{"$in":[' . join(',', 1 .. 300) . ']}}', qr/too many/,
        '300 values');
refused('{' . join(',', map { "\"f$_\":1" } 1 .. 300) . '}', qr/too many/,
        '300 conditions');
refused('{"n":"' . 'x' x 17000 . '"}', qr/too long/, '17,000 bytes');
refused('{"' . 'x' x 257 . '":1}', qr/too long/, 'a field of 257 bytes');
refused('{"s":{"$regex":"' . 'x' x 257 . '"}}', qr/\$regex/,
        'a pattern of 257 bytes');
refused('{"$' . 'x' x 5000 . '":1}', qr/^.{1,120}$/s,
        'an operator of 5,000 bytes');

{
    my ($status, $answer) = query($eve, '{"s":{"$regex":"^(a+)+$"}}',
                                  '?global=true');
    is($status, 400, 'no $regex on global');
    like($answer->{reason}, qr/\$regex is not allowed/, 'and it is said');
}

# In "sort" and "fields".
for my $sort ('{}', 'null', '"n"', '5', '[5]', '[null]', '[[]]', '[{}]',
              '[""]', '["$n"]', '["n..m"]', '[{"n":"up"}]', '[{"n":-1}]',
              '[{"n":"asc","s":"asc"}]', '[{"n":"asc"},{"s":"desc"}]',
              '["n",{"s":"desc"}]',
              '[' . join(',', map { "\"f$_\"" } 1 .. 9) . ']')
{
    refused("{\"selector\":{\"n\":{\"\$gt\":0}},\"sort\":$sort}",
            qr/sort|field name/);
}

for my $fields ('{}', '"n"', '5', 'true', '[5]', '[null]', '[{}]', '[""]',
                '["$n"]', '["n..m"]',
                '[' . join(',', map { "\"f$_\"" } 1 .. 101) . ']')
{
    refused("{\"selector\":{\"n\":1},\"fields\":$fields}",
            qr/fields|field name/);
}


# The module's own members, in all disguises.

for my $own ('vibe_access', 'vibe_', '\u0076ibe_read', 'vibe\u005fdeny',
             '\\\\vibe_access', 'v\\\\ibe\\\\_access', '\u005cvibe_access',
             '\\\\\\\\vibe_access', 'vibe_read.0', 'vibe_past.read',
             'o.vibe_x', 'o.\\\\vibe_x', 'o\\\\.vibe_x', 'o\u002evibe_x')
{
    my $reserved = qr/reserved/;

    no_selector("{\"$own\":1}", $reserved);
    refused("{\"selector\":$_}", $reserved) for
        "{\"n\":1,\"$own\":{\"\$exists\":true}}",
        "{\"o\":{\"$own\":1}}",
        "{\"\$or\":[{\"n\":1},{\"$own\":\"public\"}]}",
        "{\"\$not\":{\"\$and\":[{\"n\":1},{\"$own\":\"public\"}]}}",
        "{\"\$nor\":[{\"o\":{\"$own\":null}}]}",
        "{\"list\":{\"\$elemMatch\":{\"$own\":1}}}",
        "{\"list\":{\"\$not\":{\"\$allMatch\":{\"$own\":1}}}}",
        "{\"n\":{\"\$and\":[{\"$own\":1}]}}";

    refused("{\"selector\":{\"n\":{\"\$gt\":0}},$_}", $reserved) for
        "\"sort\":[\"$own\"]",
        "\"sort\":[{\"$own\":\"desc\"}]",
        "\"sort\":[\"createdAt\",\"$own\"]",
        "\"fields\":[\"$own\"]",
        "\"fields\":[\"k\",\"$own\"]";
}


# Attempts to see more: a refusal or what eve may see, never anything else.

sub no_more {
    my ($body, $args) = @_;

    my ($status, $answer, undef, $raw) = query($eve, $body,
                                               $args // '?global=true');

    ok($status == 200 || $status == 400, "200 or 400: $body")
        or diag("$status $raw");
    unlike($raw, qr/\Q$secret\E|"vibe_/, "no secret: $body");

    my @more = $status == 200
               ? grep { !/^t[123]$/ } map { $_->{k} // '?' }
                                      @{ $answer->{docs} }
               : ();
    is("@more", '', "nothing more: $body");

    return ref $answer ? $answer : {};
}


my @widening = (
    '{"$or":[{"k":"p1"},{"k":"r1"},{"k":"d1"},{"k":"c1"},{"k":"o1"}]}',
    '{"$or":[{"n":{"$exists":true}},{"n":{"$exists":false}}]}',
    '{"$or":[{"_id":{"$gt":null}}]}',
    '{"$nor":[{"k":"nothing"}]}',
    '{"$nor":[{"_id":null}]}',
    '{"$not":{"k":"nothing"}}',
    '{"$not":{"$not":{"k":"r1"}}}',
    '{"$not":{"acl":{"$exists":true}}}',
    '{"$not":{"$and":[{"collection":"nothing"},{"acl.global":true}]}}',
    '{"$and":[{"$or":[{"k":"p1"},{"k":"r1"}]}]}',
    '{"k":"p1"}',
    '{"k":"r1"}',
    '{"k":{"$in":["p1","r1","d1","c1","o1"]}}',
    '{"secret":{"$exists":true}}',
    '{"secret":{"$gt":null}}',

    '{"acl":{"$exists":false}}',
    '{"acl":{"$exists":true}}',
    '{"acl.global":{"$exists":false}}',
    '{"acl":{"global":{"$ne":true}}}',
    "{\"acl.read.allow\":{\"\$elemMatch\":{\"\$eq\":\"$bob\"}}}",
    "{\"acl.read.allow\":{\"\$all\":[\"$bob\"]}}",
    "{\"acl.read.deny\":{\"\$in\":[\"$eve\"]}}",
    '{"$or":[{"acl":null},{"acl":{"$type":"object"}}]}',

    "{\"collection\":\"$other\"}",
    "{\"\$or\":[{\"collection\":\"$other\"},{\"collection\":\"$posts\"}]}",
    "{\"collection\":{\"\$ne\":\"$posts\"}}",
    "{\"collection\":{\"\$in\":[\"$posts\",\"$other\"]}}",
    '{"collection":{"$exists":false}}',
    '{"collection":{"$gt":null}}',
    '{"collection":null}',

    '{"_id":{"$gt":null}}',
    '{"_id":{"$gte":""}}',
    '{"_id":{"$ne":"x"}}',
    '{"_id":{"$exists":true}}',
    (map { '{"_id":"' . gid($alice, "$posts/$_") . '"}' } sort keys %hidden),
    '{"_id":{"$in":[' . join(',', map { '"' . gid($alice, "$posts/$_") . '"' }
                                      sort keys %hidden) . ']}}',
    '{"_id":"' . gid($alice, "$other/o1") . '"}',
    '{"_id":"' . gid($carol, "$posts/c2") . '"}',
    "{\"_id\":{\"\$gte\":\"$alice\",\"\$lt\":\"$alice;\"}}",
    '{"_rev":{"$gt":null}}',
    '{"_deleted":{"$exists":false}}',
    '{"_deleted":true}',
);

for my $selector (@widening) {
    no_more("{\"selector\":$selector}");
    no_more($selector);
    no_more("{\"selector\":$selector,\"fields\":[\"k\"]}");
}

no_more($_) for
    '{"selector":{"n":1},"k":"r1"}',
    '{"selector":{"n":1},"selector":{"k":"r1"}}',
    '{"selector":{"n":1},"\u0073elector":{"k":"r1"}}',
    '{"selector":{},"global":true,"global":false}',
    "{\"selector\":{},\"collection\":\"$other\"}",
    '{"selector":{},"conflicts":true}',
    '{"selector":{},"partition":"x"}',
    '{"selector":{},"execution_stats":true}',
    '{"selector":{},"use_index":"_all_docs"}',
    '{"selector":{},"use_index":["x","y"]}',
    '{"selector":{},"limit":0}',
    '{"selector":{},"skip":1}';

# Eve has no database, so her own query finds nothing, whatever it asks for.
for my $selector (@widening[0 .. 4]) {
    my ($status, $answer) = query($eve, "{\"selector\":$selector}");
    is("$status " . keys_of($answer), '200 ', "own, nothing: $selector");
}


# Fields that leave out what the check needs change nothing in who sees what.

for my $fields ('["k"]', '["k","n"]', '["k","o.x"]', '["k","_id"]',
                '["k","_rev"]', '["k","acl"]', '["k","collection"]')
{
    my $answer = no_more("{\"selector\":{},\"fields\":$fields}");
    is(keys_of($answer), 't1 t2 t3', "fields: $fields");
}

{
    my $answer = no_more('{"selector":{},"fields":["k"]}');
    my @keys = map { join(',', sort keys %$_) } @{ $answer->{docs} // [] };
    is("@keys", 'k k k', 'only the fields that were asked for');

    my ($status, $own) = query($carol, '{"n":1,"fields":["k"]}');
    is($json->encode($own->{docs} // []), '[{"k":"t1"}]', 'own, fields');

    for my $none ('null', '[]') {
        $answer = no_more("{\"n\":1,\"fields\":$none}");
        ok($answer->{docs}[0]{_id} && $answer->{docs}[0]{o},
           "all fields: $none");
    }
}


# Sorted: the same, in order.

for (['["createdAt"]', 't1 t2 t3'],
     ['[{"createdAt":"asc"}]', 't1 t2 t3'],
     ['[{"createdAt":"desc"}]', 't3 t2 t1'])
{
    my ($sort, $expected) = @$_;
    my $body = "{\"selector\":{\"createdAt\":{\"\$gt\":0}},"
               . "\"sort\":$sort}";

    my $answer = no_more($body);
    is(join(' ', map { $_->{k} } @{ $answer->{docs} // [] }), $expected,
       "global, sorted: $sort");

    (undef, $answer) = query($carol, $body);
    is(join(' ', map { $_->{k} } @{ $answer->{docs} // [] }), $expected,
       "own, sorted: $sort");

    no_more("{\"selector\":$_,\"sort\":$sort}") for
        '{"createdAt":{"$gt":0},"$or":[{"k":"r1"},{"k":"p1"}]}',
        '{"createdAt":{"$gt":0},"$nor":[{"k":"nothing"}]}',
        "{\"createdAt\":{\"\$gt\":0},\"collection\":\"$other\"}";
}


# Those who may see more do, and no more than that.

is(keys_of((query($bob, '{}', '?global=true'))[1]), 'd1 r1 t1 t2 t3',
   'bob sees what he may read');
is(keys_of((query($carol, '{}', '?global=true'))[1]), 'd1 t1 t2 t3',
   'carol sees what is denied to eve only');
is(keys_of((query($bob, '{"$or":[{"k":"r1"},{"k":"p1"}]}',
                  '?global=true'))[1]), 'r1', 'bob asks for both');

$nginx->stop;

done_testing();
