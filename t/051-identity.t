# Who the caller is and which database is theirs: from variables, from the
# token's instanceId, from cookies, or from nobody at all.

use strict;
use warnings;

use Digest::SHA qw(sha256_hex);
use JSON::PP;
use Test::More;
use Time::HiRes qw(time);
use Vibe;
use Vibe::Faults;

my $json = JSON::PP->new->utf8->canonical->allow_nonref;
my $true = JSON::PP::true;

my $run = sprintf('%x%04x', time, $$ & 65535);
my $posts = "posts$run";
my ($alice, $bob, $eve) = map { did($_) } qw(alice bob eve);

my $couch = faulty();
my $nginx = nginx_start(
    http => http_config(couchdb => $couch->{url}, extra => <<'EOT'),
map $http_x_user $mapped { default ""; ~^(?<d>did:.*)$ $d; }
vibe_origins https://app.example;
EOT
    server => server_config(extra => <<'EOT'));
location /arg/ { vibe_data; vibe_did $arg_as; vibe_db $arg_db; }
location /map/ { vibe_data; vibe_did $mapped; }
location /db/ { vibe_data; vibe_db $arg_db; }
location /prefix/ { vibe_data; vibe_db_prefix u_; vibe_db $arg_db; }
location /cookie/ { vibe_data; vibe_token $cookie_session; }
location /split/ { vibe_data; vibe_token $cookie_head.$cookie_tail; }
location /other/ { vibe_data; vibe_token $cookie_session; vibe_origins https://other.example; }
location /header/ { vibe_data; vibe_token $http_x_token; }
location /open/ { vibe_data; vibe_anonymous on; }
location /openarg/ { vibe_data; vibe_anonymous on; vibe_did $arg_as; }
EOT


sub post {
    my ($path, $token, $body, %header) = @_;

    return request($nginx, 'POST', $path, $token, $body // {}, %header);
}


sub exists_db {
    my ($status) = couch('GET', "/$_[0]");
    return $status == 200;
}


sub owner {
    my ($status, $doc) = couch('GET', "/$_[0]/_local/vibe_owner");
    return $status == 200 ? $doc->{did} : undef;
}


sub logged {
    my ($pattern) = @_;

    return scalar grep { /$pattern/ } split /\n/, $nginx->log;
}


subtest 'by the token: the database is named after the DID' => sub {
    my ($status) = post("/data/$posts", token($alice));
    is($status, 201, 'a write makes it');
    ok(exists_db(userdb($alice)), 'its name');

    ($status, my $security) = couch('GET', '/' . userdb($alice)
                                           . '/_security');
    is_deeply($security->{members}{roles}, ['_admin'], 'closed to all others');
    is_deeply($security->{admins}{roles}, ['_admin'], 'none else rules it');

    # Names of databases end at 238 characters.
    for my $length (115, 116, 300, 900) {
        my $did = did('x');
        $did .= 'x' x ($length - length $did);
        my $name = 'userdb-' . unpack('H*', $did);
        $name = 'userdb-' . sha256_hex($did) if length $name > 238;

        ($status) = post("/data/$posts", token($did), { k => $length });
        is($status, 201, "a DID of $length characters");
        ok(exists_db($name), 'the name of its database');
        is(owner($name), $did, 'whose it is')
            if $name !~ unpack('H*', $did);

        ($status, my $answer) = post("/data/$posts/query", token($did));
        is($answer->{docs}[0]{k}, $length, 'and what is in it');
    }

    my $did = did('y') . 'y' x 2000;
    ($status) = post("/data/$posts", token($did));
    like($status, qr/^40[13]$/, 'a DID that is too long');
};


subtest 'vibe_did from a variable' => sub {
    my ($status, $answer) = post("/arg/$posts?as=$bob", undef, { k => 'arg' });
    is($status, 201, 'of the query string');

    ($status, $answer) = post("/data/$posts/query", token($bob),
                              { k => 'arg' });
    is(scalar @{ $answer->{docs} }, 1, 'the same as with a token');

    ($status, $answer) = post("/map/$posts/query", undef, { k => 'arg' },
                              'X-User' => $bob);
    is("$status " . @{ $answer->{docs} }, '200 1', 'by a map');

    for (["/arg/$posts"], ["/arg/$posts?as="], ["/map/$posts"],
         ["/map/$posts", 'X-User' => 'nobody'])
    {
        my ($path, %header) = @$_;
        ($status) = post($path, undef, {}, %header);
        is($status, 401, "empty is nobody: $path");
    }

    for my $bad ('did:x', 'did:X:y', 'did:x:y z', 'did:x:"', 'did:x:y%',
                 'did:x:y%0', 'did:x:%zz', 'did::x', 'did:x:',
                 'did:x:y/z', 'did:x:y#z', 'did:x:y?z')
    {
        ($status) = post("/map/$posts", undef, {}, 'X-User' => $bad);
        is($status, 401, "not a DID: $bad");
    }

    # Where vibe_did is set, tokens say nothing.
    ($status) = post("/arg/$posts", token($alice));
    is($status, 401, 'a token does not count there');

    ($status, $answer) = post("/arg/$posts/query?as=$bob", token($alice),
                              { k => 'arg' });
    is(scalar @{ $answer->{docs} }, 1, 'nor change who it is');
};


subtest 'vibe_db from a variable' => sub {
    my $db = "userdb-team$run";

    my ($status, $answer) = post("/arg/$posts?as=$alice&db=$db", undef,
                                 { k => 'team', acl => { global => $true } });
    is($status, 201, 'a write');
    is($answer->{global}, gid($alice, $answer->{id}), 'mirrored');
    is(owner($db), $alice, 'whose it is');

    for (["/db/$posts/query?db=$db", token($alice)],
         ["/arg/$posts/query?as=$alice&db=$db"])
    {
        ($status, $answer) = post($_->[0], $_->[1]);
        is("$status " . ($answer->{docs}[0]{k} // ''), '200 team', $_->[0]);
    }

    # It is another database than that by the name.
    ($status, $answer) = post("/data/$posts/query", token($alice),
                              { k => 'team' });
    is_deeply($answer->{docs}, [], 'not the one that the token names');

    ($status) = post("/db/$posts?db=", token($alice), { k => 'named' });
    is($status, 201, 'empty: the one that the token names');
    ($status, $answer) = post("/data/$posts/query", token($alice),
                              { k => 'named' });
    is(scalar @{ $answer->{docs} }, 1, 'there it is');

    # Somebody else's, by _local/vibe_owner or by its name.
    for my $other ($db, userdb($alice)) {
        for (['POST', "/arg/$posts?as=$bob&db=$other", { acl => {} }],
             ['POST', "/arg/$posts/query?as=$bob&db=$other", {}],
             ['GET', "/arg/$posts/query?as=$bob&db=$other"],
             ['GET', "/arg/expand?as=$bob&db=$other&did=$bob&ref=x"])
        {
            my ($method, $path, $body) = @$_;
            ($status, $answer) = request($nginx, $method, $path, undef, $body);
            is($status, 403, "another's: $method $path");
            is($answer->{error}, 'forbidden', 'and told so');
        }
    }

    is(owner($db), $alice, 'it stays hers');

    # Not a user's database: an error of whoever wrote the configuration.
    for my $bad ('global', '_users', '_replicator', 'userdb-', 'userdb',
                 'user-x', 'Userdb-x', 'userdb-X', 'userdb-a.b', 'userdb-a b',
                 'userdb-../global', 'userdb-a%2Fb%2F..', 'userdb-%0a',
                 'vibe_global_posts', "userdb-" . 'x' x 300)
    {
        my $before = logged(qr/\[error\].*vibe_db/);
        my $path = $bad =~ s/ /%20/gr;
        ($status, $answer) = post("/db/$posts?db=$path", token($alice));
        is($status, 500, "500: " . substr($bad, 0, 40));
        is(ref $answer && $answer->{error}, 'internal_server_error',
           'in JSON');
        is(logged(qr/\[error\].*vibe_db/), $before + 1, 'and logged');
    }

    is(scalar(grep { $_->{path} !~ m{^/(?:global|userdb-[a-z0-9]+)(?:[/?]|$)} }
                   asked($couch)), 0, 'CouchDB was asked for none of those');
};


subtest 'vibe_db_prefix' => sub {
    my $hex = unpack('H*', $alice);
    my ($status, $answer) = post("/prefix/$posts", token($alice),
                                 { k => 'prefix', acl => { global => $true } });
    is($status, 201, 'a write');
    ok(exists_db("u_$hex"), 'named with it');
    ok($answer->{global}, 'mirrored');

    ($status) = post("/prefix/$posts?db=u_$run", token($alice));
    is($status, 201, 'vibe_db within it');

    ($status) = post("/prefix/$posts?db=userdb-$run", token($alice));
    is($status, 500, 'vibe_db with the default one');

    ($status) = post("/prefix/$posts?db=u_$hex", token($bob));
    is($status, 403, 'another\'s');
};


subtest 'instanceId names the database' => sub {
    my $name = "i-$run";

    my ($status, $answer) = post("/data/$posts",
        token($alice, instanceId => $name),
        { k => 'instance', acl => { global => $true } });
    is($status, 201, 'a write');
    is($answer->{global}, gid($alice, $answer->{id}),
       'mirrored under the DID');
    ok(exists_db("userdb-$name"), 'in its database');
    is(owner("userdb-$name"), $alice, 'whose it is');

    ($status, $answer) = post("/data/$posts/query",
                              token($alice, instanceId => $name));
    is($answer->{docs}[0]{k}, 'instance', 'read');

    ($status) = post("/data/$posts/query", token($alice, instanceId => "x$run"));
    is($status, 200, 'one that is not there is empty');
    ok(!exists_db("userdb-x$run"), 'and is not made by reading');

    for my $path ("/data/$posts", "/data/$posts/query",
                  "/data/$posts/query?global=true")
    {
        for my $other ($name, unpack('H*', $alice)) {
            ($status) = post($path, token($bob, instanceId => $other));
            is($status, 403, "another's: $path, $other");
        }
    }
    is(owner("userdb-$name"), $alice, 'it stays hers');

    ($status) = post("/data/$posts", token($alice,
                     instanceId => unpack('H*', $alice)));
    is($status, 201, 'the hex of her own DID is hers');

    for my $bad ('', 'A', 'a b', '../x', 'a/b', '_users.', 'a.b', "a\nb",
                 "a\0b", "\x{e9}", 'x' x 201, 'a%2fb')
    {
        ($status) = post("/data/$posts", token($alice, instanceId => $bad));
        is($status, 403, 'bad: ' . $json->encode($bad));
    }

    # Not even a name: the token is none that was meant for this.
    for my $bad (5, [], {}, ['a'], $true) {
        ($status) = post("/data/$posts", token($alice, instanceId => $bad));
        like($status, qr/^40[13]$/, 'bad: ' . $json->encode($bad));
    }

    ($status) = post("/data/$posts", token($alice, instanceId => 'x' x 200));
    is($status, 201, 'as long as it may be');
    couch('DELETE', '/userdb-' . 'x' x 200);
};


subtest 'a database that was there before' => sub {
    my $name = "old$run";
    my $security = { admins => { names => ['x'], roles => [] },
                     members => { names => ['y'], roles => ['z'] } };

    couch('PUT', "/userdb-$name");
    couch('PUT', "/userdb-$name/_security", $security);
    couch('POST', "/userdb-$name/_bulk_docs", { docs => [{
        _id => "$posts/old", k => 'old', collection => $posts,
        acl => { global => $true } }] });

    my $token = token($eve, instanceId => $name);
    my ($status, $answer) = post("/data/$posts/query", $token);
    is("$status " . ($answer->{docs}[0]{k} // ''), '200 old', 'it is read');

    ($status, $answer) = post("/data/$posts", $token,
                              { _id => "$posts/new", acl => { global => $true } });
    is($status, 201, 'and written');
    ok(exists $answer->{global} && !defined $answer->{global},
       'but not mirrored: nobody knows whose it is');
    cmp_ok(logged(qr/userdb-$name.*no known owner/), '>', 0, 'that is logged');
    is(owner("userdb-$name"), undef, 'and not guessed');

    ($status, my $is) = couch('GET', "/userdb-$name/_security");
    is_deeply($is->{members}, $security->{members}, 'its _security stays');
    is_deeply($is->{admins}, $security->{admins}, 'as it was');

    ($status) = couch('POST', '/global/_bulk_get', { docs => [{
        id => gid($eve, "$posts/new") }] });
    ($status, $answer) = couch('POST', '/global/_all_docs', {
        keys => [map { gid($eve, "$posts/$_") } 'new', 'old'] });
    is(scalar(grep { $_->{error} } @{ $answer->{rows} }), 2,
       'there is no trace in global');

    # Once it is known it is mirrored.
    couch('PUT', "/userdb-$name/_local/vibe_owner", { did => $eve });
    my $mirrored = wait_for {
        ($status, $answer) = post("/data/$posts", $token,
            { _id => "$posts/new", acl => { global => $true } });
        $answer->{global};
    } 15;
    is($mirrored, gid($eve, "$posts/new"), 'after its owner was recorded');

    # An empty one without a record can be had.
    couch('PUT', "/userdb-empty$run");
    ($status, $answer) = post("/data/$posts",
                              token($eve, instanceId => "empty$run"),
                              { acl => { global => $true } });
    is($status, 201, 'an empty one is taken');
    is(owner("userdb-empty$run"), $eve, 'and recorded');
};


subtest 'a token from a cookie' => sub {
    my $token = token($alice);
    my %good = (Origin => 'https://app.example');
    my %cookie = (Cookie => "a=b; session=$token; c=d");
    my ($head, $tail) = $token =~ /^(.*)\.([^.]*)$/;

    for (['/cookie', 401, 'without Origin', %cookie],
         ['/cookie', 200, 'with an allowed one', %cookie, %good],
         ['/cookie', 401, 'with another', %cookie,
          Origin => 'https://evil.example'],
         ['/cookie', 401, 'with null', %cookie, Origin => 'null'],
         ['/cookie', 401, 'with http', %cookie, Origin => 'http://app.example'],
         ['/cookie', 401, 'no cookie', %good],
         ['/cookie', 401, 'an empty one', %good, Cookie => 'session='],
         ['/cookie', 401, 'a bad one', %good, Cookie => 'session=x.y.z'],
         ['/other', 401, 'an origin of another location', %cookie, %good],
         ['/other', 200, 'its own', %cookie, Origin => 'https://other.example'],
         ['/header', 200, 'a header of its own needs no Origin',
          'X-Token' => $token],
         ['/header', 401, 'the bearer does not count there',
          Authorization => "Bearer $token"],
         ['/split', 401, 'two cookies, without Origin',
          Cookie => "head=$head; tail=$tail"],
         ['/split', 200, 'two cookies, with an allowed one', %good,
          Cookie => "head=$head; tail=$tail"],
         ['/data', 401, 'a cookie is not the default', %cookie, %good])
    {
        my ($path, $expected, $name, %header) = @$_;

        my ($status) = post("$path/$posts/query", undef, {}, %header);
        is($status, $expected, "$path: $name");

        ($status) = post("$path/$posts", undef, {}, %header);
        is($status, $expected == 200 ? 201 : $expected, "$path: $name, write");
    }
};


subtest 'vibe_anonymous' => sub {
    my ($status, $answer) = post("/data/$posts", token($alice),
        { _id => "$posts/pub", k => 'anon', acl => { global => $true } });
    is($status, 201, 'public');
    post("/data/$posts", token($alice),
         { _id => "$posts/priv", k => 'anon' });
    post("/data/$posts", token($alice),
         { _id => "$posts/res", k => 'anon',
           acl => { read => { allow => [$bob] } } });
    post("/data/$posts", token($alice),
         { _id => "$posts/den", k => 'anon',
           acl => { read => { allow => ['*'], deny => [$bob] } } });

    for my $path ("/open/$posts/query?global=true",
                  "/openarg/$posts/query?global=true&as=")
    {
        ($status, $answer) = post($path, undef, { k => 'anon' });
        is("$status " . join(' ', map { $_->{_id} } @{ $answer->{docs} }),
           '200 ' . gid($alice, "$posts/pub"), "what is public: $path");
    }

    ($status, $answer) = request($nginx, 'GET',
        "/open/$posts/query?global=true&q=%7B%22k%22:%22anon%22%7D");
    is("$status " . @{ $answer->{docs} }, '200 1', 'by GET');

    for (['POST', "/open/$posts", {}], ['POST', "/open/$posts", [{}]],
         ['POST', "/open/$posts/query", {}], ['GET', "/open/$posts/query"],
         ['POST', "/data/$posts/query?global=true", {}])
    {
        my ($method, $path, $body) = @$_;
        my ($s, $a, $header) = request($nginx, $method, $path, undef, $body);
        is($s, 401, "401: $method $path");
        like($header->{'www-authenticate'} // '', qr/^Bearer/,
             'WWW-Authenticate');
    }

    # A bad token is not the same as none.
    for my $bad ('x', 'x.y.z', token($alice, exp => 1),
                 token($alice, -key => 'y' x 64), token('alice'))
    {
        ($status) = post("/open/$posts/query?global=true", $bad);
        is($status, 401, 'a bad token: ' . substr($bad, 0, 20));
    }
    ($status) = post("/openarg/$posts/query?global=true&as=bob");
    is($status, 401, 'a bad vibe_did');

    ($status, $answer) = post("/open/$posts/query?global=true", token($bob),
                              { k => 'anon' });
    is(scalar @{ $answer->{docs} }, 2, 'with a token one sees more');
};


subtest 'CouchDB trusts some headers: none of the client\'s get there' => sub {
    asked($couch);

    my %header = ('X-Auth-CouchDB-UserName' => 'admin',
                  'X-Auth-CouchDB-Roles' => '_admin',
                  'X-Auth-CouchDB-Token' => 'x', Cookie => 'AuthSession=x',
                  'X-Forwarded-For' => '1.2.3.4', Destination => 'x',
                  'X-HTTP-Method-Override' => 'DELETE', 'If-Match' => '1-a',
                  'X-Couch-Full-Commit' => 'false', Range => 'bytes=0-1',
                  'If-Unmodified-Since' => 'Thu, 01 Jan 1970 00:00:00 GMT');
    my $status;

    ($status) = post("/data/$posts", token($alice),
                     { acl => { global => $true } }, %header);
    is($status, 201, 'a write');
    ($status) = post("/data/$posts/query?global=true", token($alice), {},
                     %header);
    is($status, 200, 'a query');
    request($nginx, 'GET', "/data/expand?did=$bob&ref=x", token($alice), undef,
            %header);

    my @asked = asked($couch);
    cmp_ok(scalar @asked, '>=', 4, 'CouchDB was asked');

    my %names = map { $_ => 1 } map { keys %{ $_->{header} } } @asked;
    is_deeply([sort keys %names],
              [qw(accept authorization content-length content-type host)],
              'the headers that it got');
    is(scalar(grep { $_->{header}{authorization} !~ /^Basic / } @asked), 0,
       'the authorization is nginx\'s own');
};


$nginx->stop;

done_testing();
