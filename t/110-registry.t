# The registry of feeds: what of a file `nginx -t` refuses, with file and line;
# edits while nginx runs, of a file and of a database: a bad one changes nothing
# and is logged once.

use strict;
use warnings;

use Cwd qw(abs_path);
use File::Basename qw(dirname);
use File::Temp qw(tempdir);
use JSON::PP;
use Test::More;
use Time::HiRes qw(sleep time);
use Vibe;
use Vibe::Couch;

my $json = JSON::PP->new->utf8->canonical;

my $binary = $ENV{TEST_NGINX_BINARY} || 'nginx';
my $load = join('', map { "load_module $_; " }
                    split ' ', $ENV{TEST_NGINX_LOAD_MODULES} // '');
my $root = tempdir('registry-XXXXXX', TMPDIR => 1, CLEANUP => 1);
my $checkout = abs_path(dirname(__FILE__) . '/..');


# check(%option): what `nginx -t` says: whether it is good, and its text.  The
# options `http`, `server` and `data` are in the lines 4, 6 and 8.

sub check {
    my (%opt) = @_;

    my $zone = $opt{zone} // 'vibe_zone vibe 1m;';
    my $couchdb = $opt{couchdb} // 'vibe_couchdb http://127.0.0.1:1;';
    my $http = $opt{http} // 'vibe_registry feeds.json;';

    open(my $fh, '>', "$root/nginx.conf") or die "$root: $!\n";
    print {$fh} <<"EOF_CONF";
$load pid nginx.pid; error_log stderr; events { }
http { access_log off;
$couchdb
$http $zone
server { listen 127.0.0.1:@{[ free_port() ]};
@{[ $opt{server} // '' ]}
location /data/ {
vibe_data; @{[ $opt{data} // '' ]}
} } }
EOF_CONF
    close $fh;

    my $text = `'$binary' -t -p '$root/' -c '$root/nginx.conf' -e stderr 2>&1`;
    return ($? == 0, $text);
}


sub put_file {
    my ($path, $text) = @_;

    open(my $fh, '>', "$path.new") or die "$path: $!\n";
    print {$fh} $text;
    close $fh or die "$path: $!\n";
    rename("$path.new", $path) or die "$path: $!\n";
}


# feed(%member): one that is good; undef leaves a member out, and what begins
# with `q_` belongs into the query.

sub feed {
    my (%opt) = @_;

    my %query = (selector => { type => 'post' },
                 map { /^q_(.*)/ ? ($1 => $opt{$_}) : () } keys %opt);
    my %feed = (collectionName => 'posts',
                materializedViewName => '_global_posts',
                aggregationInterval => '5m', query => \%query,
                map { /^q_/ ? () : ($_ => $opt{$_}) } keys %opt);

    for my $object (\%query, \%feed) {
        delete @$object{grep { !defined $object->{$_} } keys %$object};
    }

    return \%feed;
}


# lines(@feeds): a registry with each feed in a line of its own, from line 2 on.

sub lines {
    my (@feeds) = @_;

    return "[\n" . join(",\n", map { ref ? $json->encode($_) : $_ } @feeds)
           . "\n]\n";
}


my $other = feed(collectionName => 'events', materializedViewName => 'events');


subtest 'good ones' => sub {
    my @fields = map { "f$_" } 1 .. 99;

    for (['the example', read_file("$checkout/conf/global-feeds.json")],
         ['none', '[]'],
         ['without fields and sort', lines(feed())],
         ['two', lines(feed(), $other)],
         ['$regex', lines(feed(q_selector => { a => { '$regex' => '^x' } }))],
         ['all of a collection', lines(feed(q_selector => {}))],
         ['no fields', lines(feed(q_fields => [], q_sort => []))],
         ['a sort by names', lines(feed(q_sort => ['a', 'b']))],
         ['a sort by a part of a field',
          lines(feed(q_fields => ['a'], q_sort => ['a.b', '_id']))],
         ['many fields', lines(feed(q_fields => ['acl', @fields]))],
         ['a long name',
          lines(feed(materializedViewName => '_a' . 'b' x 62))],
         ['escapes', lines('{"collection\u004eame":"posts",'
              . '"materializedViewName":"a","aggregationInterval":"1\u0073",'
              . '"query":{"selector":{}}}')],
         ['100 feeds', lines(map { feed(collectionName => "c$_",
                                        materializedViewName => "_c$_") }
                                 1 .. 100)],
         map { ["every $_", lines(feed(aggregationInterval => $_))] }
             qw(100ms 500ms 1s 30s 5m 1h 1d 366d 31622400000ms))
    {
        my ($name, $text) = @$_;
        put_file("$root/feeds.json", $text);
        my ($ok, $said) = check();
        ok($ok, $name) or diag($said);
    }
};


my @intervals = ('', '5 minutes', '0s', '-1m', '+1m', '5', 's', '1.5s', '1e3s',
                 '05m', ' 5m', '5m ', '5M', '5mm', '5w', "5m\0", '٥m',
                 '99ms', '367d', '99999999999d', '31622400001ms',
                 '1' . '0' x 30 . 'ms', '18446744073709551617s');

my @names = ('Global Posts', 'global', '_global', 'state', '_state', '',
             '_', '__a', '-a', '1a', 'A', 'a.b', 'a/b', 'aé', "a\n", 'userdb-',
             'userdb-1', 'a' x 65);

my @cases = (
    # What the text is, the text, the line, what is said.
    ['not JSON', "[\n{ posts }\n]", 2, qr/invalid JSON/],
    ['empty', '', 1, qr/invalid JSON/],
    ['blank', "\n\n", 1, qr/invalid JSON/],
    ['cut off', "[\n{ \"collectionName\":\n\n", 2, qr/invalid JSON/],
    ['cut off in a string', "[\n\n{ \"coll", 3, qr/invalid JSON/],
    ['a comma at the end', "[\n1,\n\n]", 4, qr/invalid JSON/],
    ['a comment', "[\n]\n# feeds", 3, qr/invalid JSON/],
    ['two texts', "[\n]\n\n[]", 4, qr/invalid JSON/],
    ['not UTF-8', "[\n\n\"\xff\"]", 3, qr/invalid UTF-8/],
    ['a lone surrogate', "[\n\"\\ud800\"]", 2, qr/lone surrogate/],
    ['too deep', "[\n" . '[' x 200, 2, qr/nested too deep/],
    ['an object', '{}', 1, qr/array of feeds/],
    ['a string', "\n\"x\"", 2, qr/array of feeds/],
    ['feeds that are none', lines($other, 5), 3, qr/feed 2: .*an object/],
    ['no members', lines('{}'), 2, qr/feed 1: no member "materialized/],

    ['an unknown member', "[{\n\"materializedViewName\": \"a\",\n\"foo\": 1}]",
     3, qr/feed "a": unknown member "foo"/],
    ['a repeated member', "[{\n\"query\": {},\n\"query\":\n{}}]", 3,
     qr/repeated member "query"/],
    ['_id in a file', lines(feed(_id => 'x')), 2, qr/unknown member "_id"/],
    ['an unknown member of a query', lines(feed(q_limit => 5)), 2,
     qr/unknown member "limit"/],
    ['a repeated one', "[{\"collectionName\":\"a\",\"aggregationInterval\":"
     . "\"1s\",\"materializedViewName\":\"a\",\"query\": {\n\"selector\":{},"
     . "\n\"selector\":{}}}]", 3, qr/repeated member "selector"/],
    ['a strange member', lines(feed("a\n\e[1m\"" . 'x' x 500 => 1)), 2,
     qr/unknown member "a\?\?\[1m"x{50,60}"/],

    (map { ["no $_", lines($other, feed($_ => undef)), 3,
            qr/no member "$_"/] }
         qw(collectionName materializedViewName aggregationInterval query
            q_selector)),
    (map { ["$_ of another type", lines(feed($_ => [5])), 2,
            qr/"$_" must be a/] }
         qw(collectionName materializedViewName aggregationInterval query)),

    (map { ["a collection \"$_\"", lines(feed(collectionName => $_)), 2,
            qr/feed "_global_posts": ".*" cannot be a collection/] }
         '', '_x', 'a/b', 'a b', 'global', 'query', 'expand', 'changes',
         'x' x 65),
    (map { ["a name \"$_\"", lines(feed(materializedViewName => $_)), 2,
            qr/reserved|not lower-case|longer than 64/] } @names),
    (map { ["an interval \"$_\"",
            "[\n" . ($json->encode(feed(aggregationInterval => $_))
                     =~ s/,/,\n/gr =~ s/:"/:\n"/gr) . "]\n", 3,
            qr/feed "_global_posts": the interval ".*" is not /] }
         @intervals),

    ['two feeds of a collection',
     lines(feed(), feed(materializedViewName => 'b')), 3,
     qr/feed "b": the collection "posts" has the feed "_global_posts"/],
    (map { my ($a, $b) = @$_;
           ["databases that meet: $a, $b",
            lines(feed(materializedViewName => $a),
                  feed(materializedViewName => $b, collectionName => 'b')), 3,
            qr/feed "$b": its database "vibe_a(?:-2)?" is one of feed "$a"/] }
         ['_a', 'a'], ['a', '_a'], ['a', 'a'], ['_a-2', '_a'], ['_a', 'a-2']),
    ['10,000 feeds', lines(map { feed(collectionName => "c$_",
                                      materializedViewName => "_c$_") }
                               1 .. 10000), 102, qr/more than 100 feeds/],
    ['too large', lines(feed()) . ' ' x (4 * 1024 * 1024), undef,
     qr/could not read the registry .*too large/],

    ['an unknown operator', "[{\"collectionName\":\"a\",\"aggregationInterval\""
     . ":\"1s\",\"materializedViewName\":\"a\",\n\"query\": {\"selector\":{\n"
     . "\"a\":{\"\$gt\":1},\n\"b\":{\"\$or\":[\n{\"c\":{\"\$foo\":1}}]}}}}]", 5,
     qr/feed "a": unknown operator: \$foo/],
    ['a selector that is an array', lines(feed(q_selector => [])), 2,
     qr/selector must be an object/],
    ['a selector by what is the module\'s',
     lines(feed(q_selector => { vibe_rev => 1 })), 2, qr/reserved/],
    ['a repeated condition', lines('{"collectionName":"a","aggregationInterval"'
     . ':"1s","materializedViewName":"a","query":{"selector":{"a":1,"a":2}}}'),
     2, qr/repeated name: a/],
    ['a selector that is too deep', lines(feed(q_selector =>
        $json->decode('{"a":' x 20 . '1' . '}' x 20))), 2, qr/too deep/],

    (map { ["the field $_", lines(feed(q_fields => ['a', $_])), 2,
            qr/feed "_global_posts": (?:rows cannot|field names|invalid)/] }
         'acl.read', 'a\cl.x', '_attachments', '_attachments.a', 'vibe_rev',
         '\vibe_rev', 'a..b', ''),
    ['fields that are none', lines(feed(q_fields => [1])), 2,
     qr/fields must be names/],
    ['fields in a string', lines(feed(q_fields => 'a')), 2,
     qr/fields must be an array/],
    ['mixed directions', lines(feed(q_sort => [{ a => 'asc' },
                                               { b => 'desc' }])), 2,
     qr/one direction/],
    ['a direction', lines(feed(q_sort => [{ a => 'down' }])), 2, qr/sort must/],
);


subtest 'bad ones, with file and line' => sub {
    for (@cases) {
        my ($name, $text, $line, $reason) = @$_;

        $name =~ s/[^ -~]/?/g;
        $name = substr($name, 0, 50);
        $reason = qr/no member "selector"/ if $name eq 'no q_selector';
        put_file("$root/feeds.json", $text);

        my ($ok, $said) = check();
        ok(!$ok, "refused: $name") or next;

        my ($emerg) = $said =~ /\[emerg\] (.*)/;
        like($emerg, $reason, "why: $name");
        like($emerg, defined $line ? qr/ in \Q$root\E\/feeds\.json:$line$/
                                   : qr/\Q$root\E\/feeds\.json/,
             "where: $name");
        unlike($said, qr/[^\n -~]/, "nothing odd is said: $name");
    }
};


subtest 'directives' => sub {
    my $registry = 'vibe_registry feeds.json;';

    put_file("$root/feeds.json", lines(feed()));
    put_file("$root/users.json", lines(feed(materializedViewName => 'u-1')));

    for (['the least'],
         ['with its path', http => "vibe_registry $root/feeds.json;"],
         ['a database', http => 'vibe_registry couchdb:feeds;'],
         ['before the zone', http => "$registry vibe_zone a 1m;", zone => ''],
         ['in http', http => "$registry vibe_global_reads registered;"],
         ['in a server', server => 'vibe_global_reads any;'],
         ['in a location', data => 'vibe_global_reads live;'],
         ['live without a registry', http => 'vibe_global_reads live;'],
         ['over another one', server => 'vibe_global_reads any;',
          data => 'vibe_global_reads live;'],
         ['a name with a prefix that is none',
          http => 'vibe_registry users.json;'])
    {
        my ($name, @opt) = @$_;
        my ($ok, $said) = check(@opt);
        ok($ok, $name) or diag($said);
    }

    my @bad = (
        (map { [4, http => $_] }
             'vibe_registry;', 'vibe_registry none.json;',
             "vibe_registry $root/none.json;", 'vibe_registry a b;',
             "$registry $registry", "$registry vibe_registry couchdb:feeds;",
             "vibe_registry couchdb:feeds; $registry",
             'vibe_registry couchdb:;', 'vibe_registry couchdb:global;',
             'vibe_registry couchdb:vibe_state;',
             'vibe_registry couchdb:vibe_global_posts;',
             'vibe_registry couchdb:_users;', 'vibe_registry couchdb:A;',
             "$registry vibe_global_reads;",
             "$registry vibe_global_reads on;",
             "$registry vibe_global_reads live live;",
             "$registry vibe_global_reads any; vibe_global_reads any;"),
        [6, server => $registry], [8, data => $registry],
        [6, server => 'vibe_global_reads x;'],
        [8, data => 'vibe_global_reads x;']);

    for (@bad) {
        my ($line, @opt) = @$_;
        my ($ok, $said) = check(@opt);
        ok(!$ok, "refused: $opt[1]") or next;
        like($said, qr/\[emerg\].* in \Q$root\E\/nginx\.conf:$line\b/,
             "where: $opt[1]");
    }

    for (['a user\'s database', qr/user's database/,
          http => 'vibe_registry couchdb:userdb-feeds;'],
         ['one by another prefix', qr/user's database/,
          http => 'vibe_registry couchdb:u-feeds;',
          data => 'vibe_db_prefix u-;'],
         ['registered without a registry', qr/needs "vibe_registry"/,
          http => 'vibe_global_reads registered;'],
         ['any in a location', qr/needs "vibe_registry"/, http => '',
          data => 'vibe_global_reads any;'],
         ['a directory', qr/not a regular file/, http => 'vibe_registry .;'])
    {
        my ($name, $reason, @opt) = @$_;
        my ($ok, $said) = check(@opt);
        ok(!$ok, "refused: $name") or next;
        like($said, qr/\[emerg\].*$reason/, "why: $name");
    }

    # A prefix counts wherever it is said, also behind the directive.
    my ($ok, $said) = check(http => 'vibe_registry users.json;',
                            data => 'vibe_db_prefix u-;');
    ok(!$ok, 'a name with a prefix of users\' databases');
    like($said, qr/the name "u-1" is reserved in \S+users\.json:2/, 'is told');
};


# said($nginx, $regex): how often the log has that.

sub said {
    my ($nginx, $regex) = @_;

    return scalar grep { /$regex/ } split /\n/, $nginx->log;
}


# comes($nginx, $regex, $n, $name): a test that it was said so often, soon.

sub comes {
    my ($nginx, $regex, $n, $name) = @_;

    ok(scalar(wait_for { said($nginx, $regex) >= $n }), $name)
        or diag($nginx->log);
}


subtest 'a file that is edited' => sub {
    my $file = write_file(lines(feed()));
    my $nginx = nginx_start(workers => 2,
        http => http_config(extra => "vibe_zone vibe 8m;"
                                     . " vibe_registry $file;"));

    # Both workers tell what they know then.
    put_file($file, lines(feed(), $other));
    comes($nginx, qr/registry: 2 feeds$/, 2, 'an edit is read');

    put_file($file, lines(feed(), feed()));
    comes($nginx, qr/\[error\].*\Q$file\E": line 3: .*is one of feed/, 1,
          'a bad one is told');
    put_file($file, lines(feed(aggregationInterval => '0s'), $other));
    comes($nginx, qr/line 2: feed "_global_posts": the interval "0s"/, 1,
          'another one, too');

    unlink $file;
    comes($nginx, qr/open\(\) failed: No such file/, 1, 'a file that is gone');

    # Both workers have looked at all that when they know of this one.
    put_file($file, lines($other));
    comes($nginx, qr/registry: 1 feed$/, 2, 'a good one is read again');

    is(said($nginx, qr/line 3: /), 1, 'the bad ones were told once');
    is(said($nginx, qr/line 2: /), 1, 'each');
    is(said($nginx, qr/open\(\) failed/), 1, 'and so was the loss');

    # Nothing differs: what was bad is good again, and the feeds are the same.
    put_file($file, '[');
    comes($nginx, qr/line 1: invalid JSON/, 1, 'not JSON');
    put_file($file, lines($other));
    comes($nginx, qr/registry: 1 feed$/, 3, 'the same as before');

    # A new worker knows what a reload has read, and that nothing is wrong.
    put_file($file, '[]');
    comes($nginx, qr/registry: 0 feeds$/, 2, 'none');
    put_file($file, lines(feed(), $other));
    comes($nginx, qr/registry: 2 feeds$/, 4, 'and two');
    ok($nginx->reload, 'a reload');
    put_file($file, lines($other));
    comes($nginx, qr/registry: 1 feed$/, 5, 'after a reload');
    ok(scalar(wait_for { 2 == grep { 1 } $nginx->workers }),
       'the old workers have ended');

    $nginx->stop;
};


subtest 'a database that is edited' => sub {
    my $db = 'feeds' . sprintf('%x%04x', time, $$ & 65535);
    my $nginx = nginx_start(
        http => http_config(extra => "vibe_zone vibe 8m;"
                                     . " vibe_registry couchdb:$db;"));
    my %rev;

    my $put = sub {
        my ($id, $doc) = @_;
        my ($status, $answer) = couch('PUT', "/$db/$id",
            { %$doc, $rev{$id} ? (_rev => $rev{$id}) : () });
        is($status, 201, "PUT $id") or diag($json->encode($answer));
        $rev{$id} = $answer->{rev};
    };

    comes($nginx, qr/"couchdb:$db": there is no such database/, 1,
          'a database that is not there is told');
    is((couch('PUT', "/$db"))[0], 201, 'it is made');
    comes($nginx, qr/registry: 0 feeds$/, 1, 'and found');

    $put->('posts', feed());
    comes($nginx, qr/registry: 1 feed$/, 1, 'a document is added');
    $put->('_design/x', { views => {} });
    $put->('events', $other);
    comes($nginx, qr/registry: 2 feeds$/, 1, 'another one');

    $put->('posts', feed(aggregationInterval => '5 minutes'));
    comes($nginx, qr/\[error\].*document "posts": feed "_global_posts": the/, 1,
          'a bad edit is told');
    $put->('events', feed(collectionName => 'events', aggregationInterval =>
                          '1h', materializedViewName => 'events'));
    comes($nginx, qr/registry: 2 feeds$/, 2,
          'the others go on, and it keeps its feed');

    # It would take what the bad document's feed has.
    $put->('a', feed(materializedViewName => 'a'));
    comes($nginx, qr/document "a"/, 1, 'a feed of the same collection');

    $put->('posts', feed(aggregationInterval => '1m'));
    comes($nginx, qr/\[error\].*: document "a": .*"posts" has the feed "_glo/,
          1, 'is the bad one, when the other is good');
    comes($nginx, qr/registry: 2 feeds$/, 3, 'which is read');

    is((couch('DELETE', "/$db/posts?rev=$rev{posts}"))[0], 200, 'it is removed');
    comes($nginx, qr/registry: 2 feeds$/, 4, 'and leaves its place');

    for my $id ('a', 'events') {
        is((couch('DELETE', "/$db/$id?rev=$rev{$id}"))[0], 200, "no $id");
    }
    comes($nginx, qr/registry: 0 feeds$/, 2, 'none is left');

    $put->('bad', { collectionName => 'x' });
    comes($nginx, qr/document "bad": no member "materialized/, 1,
          'one that was never good');
    is((couch('PUT', "/$db/%3Cb%3E%0A%C3%A9", feed(x => 1)))[0], 201,
       'a strange id');
    comes($nginx, qr/document "<b>\?+": feed "_global_posts": unknown member "x"/, 1,
          'is told as text');

    is(said($nginx, qr/document "posts": .*5 minutes[^;]*; what was/), 1,
       'what was wrong was told once');

    # Another one of that name.
    is((couch('DELETE', "/$db"))[0], 200, 'the database is deleted');
    comes($nginx, qr/there is no such database/, 2, 'that is told');
    is((couch('PUT', "/$db"))[0], 201, 'and made anew');
    %rev = ();
    $put->('posts', feed());
    comes($nginx, qr/registry: 1 feed$/, 2, 'and read');

    ok($nginx->reload, 'a reload');
    comes($nginx, qr/registry: 1 feed$/, 3, 'the new worker reads it');
    ok(scalar(wait_for { 1 == grep { 1 } $nginx->workers }),
       'the old one has ended');

    $nginx->stop;
    couch('DELETE', "/$db");
};


subtest 'CouchDB is away' => sub {
    my $couch = Vibe::Couch->start;
    local $ENV{VIBE_COUCHDB_URL} = $couch->url;

    is((couch('PUT', '/feeds'))[0], 201, 'a database');
    is((couch('PUT', '/feeds/posts', feed()))[0], 201, 'with a feed');
    $couch->kill;

    my $nginx = nginx_start(
        http => http_config(extra => 'vibe_zone vibe 8m;'
                                     . ' vibe_registry couchdb:feeds;'));
    comes($nginx, qr/"couchdb:feeds": couchdb answered 503/, 1, 'it is told');

    ok($couch->again, 'it comes');
    comes($nginx, qr/registry: 1 feed$/, 1, 'and is read');

    $couch->kill;
    comes($nginx, qr/couchdb answered 503/, 2, 'away again');
    ok($couch->again, 'back again');
    comes($nginx, qr/registry: 1 feed$/, 2, 'as it was');

    # What comes then is seen, too.
    is((couch('PUT', '/feeds/events', $other))[0], 201, 'another feed');
    comes($nginx, qr/registry: 2 feeds$/, 1, 'is read');
    is(said($nginx, qr/registry: 0 feeds/), 0, 'it had them all the time');

    $nginx->stop;
};


done_testing();
