# Who the caller is, by a token: what is signed with a key of ours and meant
# for us gets in, all else is 401 (or 403 where it names a database that is not
# the caller's), says why, and never reaches CouchDB.

use strict;
use warnings;

use Digest::SHA qw(hmac_sha256);
use JSON::PP;
use MIME::Base64 qw(decode_base64 decode_base64url encode_base64url);
use Test::More;
use Vibe;

my $json = JSON::PP->new->utf8->canonical;

my ($alice, $bob, $gone) = map { did($_) } qw(alice bob gone);

my %pair = map { $_ => [keypair($_)] } qw(RS256 ES256 EdDSA);
my $named = 'n' x 40;
my $revoked = write_file("# those who left\n$gone\r\n\n"
                         . "  jti-gone  # a stolen one\n");

my $keys = 'vibe_jwt_key ' . write_file($named) . " kid=named;\n"
           . join('', map { "vibe_jwt_key $pair{$_}[1] kid=$_;\n" }
                          sort keys %pair)
           . "vibe_revoked $revoked;\n"
           . "large_client_header_buffers 4 32k;\n";

my $strict = "vibe_jwt_issuer https://issuer.example;\n"
             . "vibe_jwt_audience us;\n"
             . "vibe_jwt_leeway 60s;\n";

# Who is refused is sent to this one: its CouchDB would tell of it.
my $mock = mock { return 500, { error => 'mock', reason => 'asked' } };

my %refuse = (
    any => nginx_start(http => http_config(couchdb => $mock->{url},
                                           extra => $keys)),
    strict => nginx_start(http => http_config(couchdb => $mock->{url},
                                              extra => $keys . $strict)),
);

my %accept = (
    any => nginx_start(http => http_config(extra => $keys)),
    strict => nginx_start(http => http_config(extra => $keys . $strict)),
);


sub ask {
    my ($nginx, $token, %header) = @_;

    return request($nginx, 'POST', '/data/jwt/query', $token,
                   { selector => {} }, %header);
}


sub refused {
    my ($name, $token, $reason, $status, $kind) = @_;

    $status //= 401;

    my ($code, $answer, $header) = ask($refuse{$kind // 'any'}, $token);

    my $bad = $code != $status ? "status $code"
            : ref $answer ne 'HASH' ? 'not JSON'
            : $answer->{error} ne { 401 => 'unauthorized',
                                    403 => 'forbidden' }->{$status}
                ? "error $answer->{error}"
            : ($answer->{reason} // '') !~ $reason
                ? "reason $answer->{reason}"
            : $status == 401
              && ($header->{'www-authenticate'} // '') !~ /^Bearer\b/
                ? 'no WWW-Authenticate'
            : '';

    is($bad, '', "refused: $name");
}


sub accepted {
    my ($name, $token, $kind) = @_;

    my ($code, $answer) = ask($accept{$kind // 'any'}, $token);

    is($code, 200, "accepted: $name") or diag(explain($answer));
}


# A token of this very header and payload, texts or structures.

sub raw {
    my ($head, $payload, $key) = @_;

    my $signed = join('.', map { encode_base64url(ref $_ ? $json->encode($_)
                                                         : $_) }
                           $head // { alg => 'HS256' },
                           $payload // { sub => $alice });

    return "$signed." . encode_base64url(hmac_sha256($signed,
                                                     $key // test_key()));
}


sub hex_of { return unpack('H*', $_[0]) }


# Tokens that are right.

accepted('HS256', token($alice));
accepted('HS256 by kid', token($alice, -key => $named,
                               -header => { kid => 'named' }));
accepted('HS256 with a key that has a name, not named',
         token($alice, -key => $named));

for my $alg (sort keys %pair) {
    accepted($alg, token($alice, -alg => $alg, -key => $pair{$alg}[0]));
    accepted("$alg by kid", token($alice, -alg => $alg,
                                  -key => $pair{$alg}[0],
                                  -header => { kid => $alg }));
}

accepted('without exp', token($alice, exp => undef));
accepted('exp with a fraction',
         raw(undef, '{"sub":"' . $alice . '","exp":' . (time + 99) . '.5}'));
accepted('exp as a power of ten',
         raw(undef, '{"sub":"' . $alice . '","exp":9.9e+9}'));
accepted('exp beyond any calendar',
         raw(undef, '{"sub":"' . $alice . '","exp":1e400}'));
accepted('nbf in the past', token($alice, nbf => time - 9));
accepted('a jti that is not revoked', token($alice, jti => 'jti-gon'));
accepted('escapes in names and values',
         raw('{"\u0061lg":"HS\u0032\u0035\u0036"}',
             '{"\u0073ub":"\u0064' . substr($alice, 1) . '"}'));
accepted('members that nobody knows',
         raw({ alg => 'HS256', typ => 'JWT', x5u => 'http://x.example' },
             { sub => $alice, roles => [{ sub => $bob }], sub2 => 1 }));

accepted('audience and issuer',
         token($alice, aud => 'us', iss => 'https://issuer.example'),
         'strict');
accepted('one audience of several',
         token($alice, aud => ['them', 'us'],
               iss => 'https://issuer.example'), 'strict');
accepted('expired, but within the leeway',
         token($alice, aud => 'us', iss => 'https://issuer.example',
               exp => time - 20), 'strict');
accepted('not valid yet, but within the leeway',
         token($alice, aud => 'us', iss => 'https://issuer.example',
               nbf => time + 40), 'strict');


# None, or none that can be read.

my $good = token($alice);
my ($head, $payload, $signature) = split /\./, $good;

refused('no token', undef, qr/token/i);
refused('words', 'of wisdom', qr/malformed/i);
refused('dots', '..', qr/malformed/i);
refused('two parts', "$head.$payload", qr/malformed/i);
refused('no signature', "$head.$payload.", qr/malformed/i);
refused('no payload', "$head..$signature", qr/signature/i);
refused('no header', ".$payload.$signature", qr/malformed/i);
refused('four parts', "$good.$signature", qr/malformed/i);
refused('five parts, as JWE has', "$good.AA.AA", qr/malformed/i);
refused('a dot at the end', "$good.", qr/malformed/i);
refused('padding', "$good=", qr/malformed/i);
refused('padding in the header', "$head=.$payload.$signature",
        qr/malformed/i);
refused('something after padding', "$good=x", qr/malformed/i);
refused('characters of plain base64',
        raw() =~ s/\.[^.]*$/.++++\/\/\/\//r, qr/malformed/i);
refused('9 KB', token($alice, x => 'y' x 6700), qr/too long/i);
refused('9 KB of a letter', 'A' x 9000, qr/too long/i);
refused('twice', "$good $good", qr/malformed/i);

# The last of 43 characters has two bits to spare.
refused('bits that nobody signs',
        substr($good, 0, -1)
        . substr($good, -1) =~ tr/AEIMQUYcgkosw048/BFJNRVZdhlptx159/r,
        qr/malformed/i);


# Signatures.

refused('another payload',
        join('.', $head, (split /\./, token($bob))[1], $signature),
        qr/signature/i);
refused('another secret', token($alice, -key => 's' x 40), qr/signature/i);
refused('the beginning of a signature',
        "$head.$payload." . substr($signature, 0, 22) =~ s/.$/A/r,
        qr/signature/i);

for my $alg (sort keys %pair) {
    my @part = split /\./, token($alice, -alg => $alg,
                                 -key => $pair{$alg}[0]);
    my $bytes = decode_base64url($part[2]);

    for my $at (0, length($bytes) / 2, length($bytes) - 1) {
        my $tampered = $bytes;
        substr($tampered, $at, 1) ^= "\1";

        refused("$alg, byte $at of the signature changed",
                "$part[0].$part[1]." . encode_base64url($tampered),
                qr/signature/i);
    }

    refused("$alg, a byte more",
            "$part[0].$part[1]." . encode_base64url("$bytes\0"),
            qr/signature/i);
    refused("$alg, zeros",
            "$part[0].$part[1]." . encode_base64url("\0" x length $bytes),
            qr/signature/i);
    refused("$alg, another payload",
            join('.', $part[0], (split /\./, token($bob))[1], $part[2]),
            qr/signature/i);

    my ($stranger) = keypair($alg);
    refused("$alg, a stranger's key",
            token($alice, -alg => $alg, -key => $stranger), qr/signature/i);
}


# The key decides on the algorithm.

my $none = { alg => 'none' };

refused('alg none', token($alice, -alg => 'none') . 'AA', qr/algorithm/i);
refused('alg none, no signature', token($alice, -alg => 'none'),
        qr/malformed/i);
refused('alg none, signed', raw($none), qr/algorithm/i);

for my $alg ('None', 'nOnE', 'HS512', 'hs256', 'RS512', 'ES256K', 'EDDSA', '')
{
    refused("alg '$alg'", raw({ alg => $alg }), qr/algorithm/i);
}

refused('no alg', raw({ typ => 'JWT' }), qr/algorithm/i);
refused('alg is a list', raw({ alg => ['HS256'] }), qr/algorithm/i);
refused('alg is null', raw({ alg => undef }), qr/algorithm/i);

for my $alg (sort keys %pair) {
    my $pem = read_file($pair{$alg}[1]);
    my $der = decode_base64($pem =~ s/^-.*\n//mgr);

    for my $secret ($pem, $pem =~ s/\n$//r, $der) {
        refused("HS256 with the public key of $alg", token($alice,
                -key => $secret), qr/signature/i);
        refused("HS256 with the public key of $alg, by kid",
                token($alice, -key => $secret, -header => { kid => $alg }),
                qr/algorithm/i);
    }
}

refused("RS256 by the kid of another key",
        token($alice, -alg => 'RS256', -key => $pair{RS256}[0],
              -header => { kid => 'ES256' }), qr/algorithm/i);
refused('unknown kid', token($alice, -header => { kid => 'x' }),
        qr/unknown key/i);
refused('an empty kid', token($alice, -header => { kid => '' }),
        qr/unknown key/i);
refused('the kid of another secret',
        token($alice, -header => { kid => 'named' }), qr/signature/i);
refused('a kid that is a path',
        token($alice, -header => { kid => '/dev/null' }, -key => ''),
        qr/unknown key/i);
refused('a kid that is a number', token($alice, -header => { kid => 5 }),
        qr/malformed/i);
refused('a key of its own',
        token($alice, -key => 'k' x 32,
              -header => { jwk => { kty => 'oct',
                                    k => encode_base64url('k' x 32) } }),
        qr/signature/i);
refused('crit', raw({ alg => 'HS256', crit => ['b64'], b64 => \0 }),
        qr/critical/i);
refused('crit of nothing', raw({ alg => 'HS256', crit => [] }),
        qr/critical/i);


# JSON that two parsers would read in two ways, or none.

for my $text ('', '{"alg":"HS256"}"x', '[]', '5', 'null', '"x"', '{', '{"alg":"HS256"',
              '{"alg":"HS256"}x', '{"alg":"HS256",}', "{'alg':'HS256'}",
              "\xef\xbb\xbf{\"alg\":\"HS256\"}", "{\"alg\":\"HS256\"}\0",
              "{\"alg\":\"HS256\",\"a\":\"\xff\"}",
              '{"alg":"HS256","a":"\ud800"}',
              "{\"alg\"\f:\"HS256\"}")
{
    (my $show = $text) =~ s/[^ -~]/?/g;
    refused("header $show", raw($text), qr/malformed|algorithm/i);
}

refused('a header nested deep',
        raw('{"alg":"HS256","x":' . '[' x 2000 . ']' x 2000 . '}'),
        qr/malformed/i);
refused('a header of many members',
        raw({ alg => 'HS256', map { $_ => 1 } 1 .. 200 }), qr/too many/i);
refused('alg twice', raw('{"alg":"HS256","alg":"HS256"}'), qr/duplicate/i);
refused('alg twice, one escaped', raw('{"alg":"none","\u0061lg":"HS256"}'),
        qr/duplicate/i);
refused('sub twice',
        raw(undef, "{\"sub\":\"$bob\",\"sub\":\"$alice\"}"), qr/duplicate/i);
refused('sub twice, one escaped',
        raw(undef, "{\"sub\":\"$bob\",\"su\\u0062\":\"$alice\"}"),
        qr/duplicate/i);
refused('any other member twice',
        raw(undef, "{\"sub\":\"$alice\",\"x\":1,\"x\":2}"), qr/duplicate/i);

for my $text ('[]', '5', "\"$alice\"", 'null', '{', "{\"sub\":\"$alice\"",
              "{\"sub\":\"$alice\"}{}", "{\"sub\":\"$alice\xff\"}",
              "{\"sub\":\"$alice\n\"}")
{
    (my $show = $text) =~ s/[^ -~]/?/g;
    refused("payload $show", raw(undef, $text), qr/malformed/i);
}


# Times, parties, revocation.

refused('expired', token($alice, exp => time - 5), qr/expired/i);
refused('expired long ago', token($alice, exp => 0), qr/expired/i);
refused('expired before 1970', raw(undef, "{\"sub\":\"$alice\",\"exp\":-1e99}"),
        qr/expired/i);
refused('expired, beyond the leeway',
        token($alice, aud => 'us', iss => 'https://issuer.example',
              exp => time - 90), qr/expired/i, 401, 'strict');
refused('not valid yet', token($alice, nbf => time + 60), qr/not valid yet/i);
refused('never valid', raw(undef, "{\"sub\":\"$alice\",\"nbf\":1e99}"),
        qr/not valid yet/i);
refused('not valid yet, beyond the leeway',
        token($alice, aud => 'us', iss => 'https://issuer.example',
              nbf => time + 90), qr/not valid yet/i, 401, 'strict');

for my $value ('"9999999999"', 'null', 'true', '[9999999999]', '{}') {
    refused("exp $value", raw(undef, "{\"sub\":\"$alice\",\"exp\":$value}"),
            qr/exp/i);
    refused("nbf $value", raw(undef, "{\"sub\":\"$alice\",\"nbf\":$value}"),
            qr/nbf/i);
}

my @iss = (iss => 'https://issuer.example');

for my $aud (undef, 'them', 'u', 'us2', 'US', [], ['them'], [['us']],
             { us => 'us' }, 5)
{
    refused('audience ' . JSON::PP->new->allow_nonref->encode($aud),
            token($alice, aud => $aud, @iss), qr/audience/i, 401, 'strict');
}

for my $iss (undef, 'https://issuer.example/', 'https://issuer',
             ['https://issuer.example'])
{
    refused('issuer ' . JSON::PP->new->allow_nonref->encode($iss),
            token($alice, aud => 'us', iss => $iss), qr/issuer/i, 401,
            'strict');
}

refused('revoked by its DID', token($gone), qr/revoked/i);
refused('revoked by its jti', token($alice, jti => 'jti-gone'),
        qr/revoked/i);
refused('a jti that is not a string', token($alice, jti => 5), qr/jti/i);


# Subjects.

refused('no sub', token(undef), qr/sub/i);

for my $sub ('""', 'null', '5', 'true', "[\"$alice\"]", '{}', '"alice"',
             '"did:"', '"did:vibe"', '"did:vibe:"', '"DID:vibe:a"',
             '"did:Vibe:a"', '"did:vibe:a b"', '"did:vibe:a/b"',
             '"did:vibe:a#b"', '"did:vibe:a\u0000"', '"did:vibe:a\r\nX-Y: z"',
             '"did:vibe:a\n"', "\"$alice\\u000d\\u000a\"", '"did:vibe:\u00e4"',
             '"did:vibe:' . 'a' x 2000 . '"')
{
    my $show = length $sub > 40 ? substr($sub, 0, 40) . '...' : $sub;
    refused("sub $show", raw(undef, "{\"sub\":$sub}"), qr/sub/i);
}


# Databases: a name that does not give a DID back belongs to who came first.

my $instance = 'i-' . hex_of((split /:/, $alice)[2]);

for my $name ('"../x"', '"_USERS"', '"ABC"', '"a/b"', '"a%2fb"',
              '"a.b"', '"a b"', '"a\u0000"', '"a\r\nb"', '"a\n"', '""',
              '"a$b"', '"' . 'a' x 201 . '"', '"' . hex_of($bob) . '"',
              '"' . hex_of('did:a:b') . '"')
{
    my $show = length $name > 40 ? substr($name, 0, 40) . '...' : $name;
    refused("instanceId $show",
            raw(undef, "{\"sub\":\"$alice\",\"instanceId\":$name}"),
            qr/instanceId|another DID/i, 403);
}

for my $value ('5', 'null', 'true', '["a"]', '{}') {
    refused("instanceId $value",
            raw(undef, "{\"sub\":\"$alice\",\"instanceId\":$value}"),
            qr/instanceId/i, 403);
}

sub save {
    my ($token) = @_;

    return (request($accept{any}, 'POST', '/data/jwt', $token,
                    { text => 'x' }))[0];
}

is(save(token($alice, instanceId => hex_of($alice))), 201,
   'an instanceId that is the hex of the DID is written to');
is(save(token($alice, instanceId => $instance)), 201,
   'an instanceId of its own is written to');
is((couch('GET', "/userdb-$instance"))[0], 200, 'and names the database');
is(save(token($alice, instanceId => $instance)), 201, 'and is again');
is(save(token($bob, instanceId => $instance)), 403,
   'but not by another DID');
is((ask($accept{any}, token($bob, instanceId => $instance)))[0], 403,
   'who cannot ask it either');
is(save(token($bob, instanceId => hex_of($alice))), 403,
   'nor the one that has the hex of the first');
is(scalar(grep { $_->{id} !~ /^_design/ }
          @{ (couch('GET', "/userdb-$instance/_all_docs"))[1]{rows} }), 2,
   'what was refused was not written');


# Nothing keeps somebody from this name, but it is not CouchDB's _users.

{
    my $couch = mock { return 500, { error => 'mock', reason => 'asked' } };
    my $nginx = nginx_start(http => http_config(couchdb => $couch->{url}));

    ask($nginx, token($alice, instanceId => '_users'));
    $nginx->stop;

    my @path = map { $_->{path} } requests($couch);

    is(scalar(grep { m{^/_users} } @path), 0,
       'an instanceId of _users does not lead to _users')
        or diag(explain(\@path));
}


# Ways to send it.

my ($status, $answer, $header) = ask($refuse{any}, undef,
                                     Authorization => "Basic $good");
is($status, 401, 'a token as Basic is none');

($status) = ask($accept{any}, undef, Authorization => "bearer $good");
is($status, 200, 'the scheme is of any case');

($status) = ask($refuse{any}, undef, Authorization => 'Bearer ');
is($status, 401, 'a scheme without a token is none');

($status) = request($refuse{any}, 'GET',
                    '/data/jwt/query?token=' . token($bob)
                    . '&access_token=' . token($bob));
is($status, 401, 'a token in the query string is none');

($status, $answer, $header) = ask($refuse{any},
    raw(undef, '{"sub":"did:vibe:a\r\nX-Injected: 1"}'));
is($header->{'x-injected'}, undef, 'a sub cannot write headers');

{
    my $cookie = nginx_start(
        http => http_config(extra => 'vibe_origins https://app.example;'),
        server => server_config(data => 'vibe_token $cookie_session;'));
    my %header = (Cookie => "a=b; session=$good; c=d");

    is((ask($cookie, undef, %header))[0], 401,
       'a token in a cookie needs an Origin');
    like((ask($cookie, undef, %header, Origin => 'https://evil.example'))[0],
         qr/^40[13]$/, 'one that is allowed');
    is((ask($cookie, undef, %header, Origin => 'https://app.example'))[0],
       200, 'as this one is');
    is((ask($cookie, $good))[0], 401,
       'where a cookie is asked for no header counts');
    $cookie->stop;

    my $anonymous = nginx_start(http => http_config(anonymous => 'on'));

    is((ask($anonymous, token($alice, exp => 1)))[0], 401,
       'with vibe_anonymous a bad token is still refused');
    $anonymous->stop;
}

is(scalar(grep { $_->{path} =~ /userdb/ } requests($mock)), 0,
   'CouchDB was never asked for who was refused');


# The list of revoked ones changes.

my $token = token($bob, jti => 'jti-later');

accepted('before it is revoked', $token);

sub becomes {
    my ($expected, $name) = @_;

    my $came = wait_for { (ask($accept{any}, $token))[0] == $expected } 5;

    ok($came, $name);
}

sub rewrite {
    my ($text, $new) = @_;

    # In place, or as an editor does, by another file of that name.
    my $path = $new ? "$revoked.new" : $revoked;

    open(my $fh, '>', $path) or die "$path: $!\n";
    print {$fh} $text;
    close $fh or die "$path: $!\n";

    rename($path, $revoked) or die "$revoked: $!\n" if $new;
}

rewrite("jti-later\n");
becomes(401, 'a jti that is added is revoked');
rewrite("jti-again\n");
becomes(200, 'one that is taken out is not, the size being the same');
rewrite("$bob\n", 1);
becomes(401, 'a DID of a file put in its place is revoked');
unlink $revoked;
sleep 2;
becomes(401, 'with the file gone the last list stays');
rewrite("# nobody\n");
becomes(200, 'an empty one counts again');
rewrite("$bob\n" . 'x' x (4 * 1024 * 1024));
sleep 2;
becomes(200, 'one that is too large does not');

is(scalar(() = $accept{any}->log =~ /could not read the list/g), 2,
   'and each of the two is logged once');


# Keys that nginx does not start with.

sub file_of {
    my ($command) = @_;

    my $path = write_file('');
    system("($command) >'$path' 2>/dev/null") == 0 or die "$command\n";

    return $path;
}

sub wrong_key {
    my ($name, $path, $reason) = @_;

    my $nginx = eval { nginx_start(http => http_config(key => undef,
                           extra => "vibe_jwt_key $path;")) };
    my $error = $@;

    $nginx->stop if $nginx;

    like($error, qr/\[emerg\].*$reason.*nginx\.conf:\d+/,
         "a key that is refused: $name");
}

wrong_key('none there', '/nonexistent', qr/could not read/);
wrong_key('a directory', '/', qr/regular/);
wrong_key('a short secret', write_file('s' x 31 . "\n"), qr/32 bytes/);
wrong_key('an empty file', write_file(''), qr/32 bytes/);
wrong_key("a private key ($_)", $pair{$_}[0], qr/private/)
    for sort keys %pair;
wrong_key('RSA of 1024 bits',
          file_of('openssl genrsa 1024 | openssl pkey -pubout'),
          qr/2048/);
wrong_key('another curve',
          file_of('openssl ecparam -name secp384r1 -genkey -noout'
                  . ' | openssl pkey -pubout'), qr/P-256/);
wrong_key('another kind',
          file_of('openssl genpkey -algorithm ED448 | openssl pkey -pubout'),
          qr/neither RSA/);
wrong_key('damaged PEM', write_file("-----BEGIN PUBLIC KEY-----\nAAAA\n"
                                    . "-----END PUBLIC KEY-----\n"),
          qr/no public key/);
wrong_key('a public key in DER',
          file_of("openssl pkey -pubin -in '$pair{RS256}[1]' -outform DER"),
          qr/PEM/);
wrong_key('a public key in bare base64',
          file_of("grep -v -- --- '$pair{RS256}[1]'"), qr/PEM/);
wrong_key('a JSON Web Key',
          write_file('{"kty":"OKP","crv":"Ed25519","x":"' . 'A' x 43 . '"}'),
          qr/PEM/);
wrong_key('a key of OpenSSH',
          write_file('ssh-ed25519 ' . 'A' x 68 . " me\@here\n"), qr/PEM/);

my $certificate = file_of("openssl req -x509 -new -key '$pair{ES256}[0]'"
                          . ' -subj /CN=issuer -days 1');
my $by_certificate = nginx_start(http => http_config(key => undef,
    extra => "vibe_jwt_key $certificate;"));

is((ask($by_certificate, token($alice, -alg => 'ES256',
                               -key => $pair{ES256}[0])))[0], 200,
   'a certificate is taken as a key');
is((ask($by_certificate, token($alice)))[0], 401,
   'and HS256 is not, where there is no secret');
$by_certificate->stop;


# No secret and no token is in any log.

my $logs = join('', map { $_->log } values %refuse, values %accept);

unlike($logs, qr/\Q$named\E|\Q@{[ test_key() ]}\E/, 'no secret is logged');
unlike($logs, qr/\Q$signature\E/, 'no token is logged');

$_->stop for values %refuse, values %accept;

done_testing();
