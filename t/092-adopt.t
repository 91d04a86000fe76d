# util/adopt.sh: records whose the existing databases are, refuses what is not
# so, and changes nothing else.

use strict;
use warnings;

use Digest::SHA qw(sha256_hex);
use File::Basename qw(dirname);
use HTTP::Tiny;
use JSON::PP;
use MIME::Base64 qw(encode_base64);
use Test::More;
use Time::HiRes qw(time);
use Vibe;
use Vibe::Proxy;

my $json = JSON::PP->new->utf8->canonical->allow_nonref;
my $true = JSON::PP::true;

my $run = sprintf('%x%04x', time, $$ & 65535);
my ($url, $auth) = Vibe::couchdb();
my ($password) = $auth =~ /^[^:]+:(.+)$/s;
my ($alice, $bob, $web) = (did('alice'), did('bob'),
    "did:web:example.com%3A3000:user:$run");
my $long = 'did:vibe:' . 'long' x 100 . $run;
my $proxy = Vibe::Proxy->start;
my $nginx = nginx_start;
my (@databases, $runs);


# adopt($input, @arguments): the file's text, or undef for none; status,
# stdout, stderr.

sub adopt { return adopt_at($url, @_) }

sub adopt_at {
    my ($at, $input, @arguments) = @_;

    # Children of the test run it, too: the names hold the process.
    my ($in, $out, $err) = map { write_file($_, "adopt-$$-" . ++$runs) }
                           $input // '', '', '';
    my $user = $auth =~ s/([^A-Za-z0-9:])/sprintf '%%%02X', ord $1/ger;
    my $pid = fork // die "fork: $!\n";

    push @arguments, $in if defined $input && !@arguments;

    if ($pid == 0) {
        local $ENV{VIBE_COUCHDB_URL} = $at =~ s{://}{://$user\@}r;
        open(STDIN, '<', $in) or POSIX::_exit(99);
        open(STDOUT, '>', $out) or POSIX::_exit(99);
        open(STDERR, '>', $err) or POSIX::_exit(99);
        exec(dirname(__FILE__) . '/../util/adopt.sh', @arguments)
            or POSIX::_exit(99);
    }

    waitpid($pid, 0);
    my $status = $? >> 8;
    my ($said, $told) = (read_file($out), read_file($err));

    fail("no password in the output of @arguments")
        if index("$said$told", $password) >= 0;

    return ($status, $said, $told);
}


# database($name): makes it, with a document and a _security of its own.

sub database {
    my ($name) = @_;

    my $db = $name =~ /^userdb-/ ? $name : "userdb-$run-$name";
    push @databases, $db;
    my ($status) = couch('PUT', "/$db?q=1");
    is($status, 201, "a database: $name");
    couch('PUT', "/$db/_security",
          { admins => { roles => ["r$run"] }, members => { names => ['me'] } });
    couch('PUT', "/$db/posts%2F1", { acl => { global => $true } });
    return $db;
}


sub record {
    my ($db, $id) = @_;

    my ($status, $doc) = couch('GET', "/$db/" . ($id // '_local/vibe_owner'));
    return $status == 200 ? $doc : {};
}


subtest 'databases get their owners' => sub {
    my ($one, $two, $three) = map { database($_) } qw(one two three);
    my $hash = database('userdb-' . sha256_hex($long));
    my $named = database(userdb($alice));

    my ($status, $out, $err) = adopt(<<"EOF");
# whose they are
$one $alice

  $two\t$web  \r
$hash $long
$named $alice
   # and a comment
$three $alice
EOF

    is($status, 0, 'all are fine');
    is($err, '', '… nothing to complain of');
    is($out, join("\n", "$one\trecorded\t$alice", "$two\trecorded\t$web",
        "$hash\trecorded\t$long", "$named\tknown\tby its name",
        "$three\trecorded\t$alice",
        '5 lines: 4 recorded, 1 known, 0 refused, 0 failed', ''),
        '… a line each, in order');

    my %did = ($one => $alice, $two => $web, $hash => $long, $three => $alice);

    for my $db (sort keys %did) {
        my ($record, $claim) = (record($db), record($db, '_design/vibe_owner'));
        delete @$_{qw(_id _rev)} for $record, $claim;
        is_deeply($record, { did => $did{$db}, vibe_v => 1 }, 'the record');
        is_deeply($claim, $record, '… and the claim are there');
        my ($ok, $security) = couch('GET', "/$db/_security");
        is_deeply($security, { admins => { roles => ["r$run"] },
            members => { names => ['me'] } }, '… and its _security is as it was');
    }

    is_deeply([record($named), record($named, '_design/vibe_owner')], [{}, {}],
              'a name needs no record');

    ($status, $out) = adopt("$one $alice\n$two $web\n$hash $long\n");
    is($status, 0, 'once more');
    is(() = $out =~ /\tknown\tby its record$/mg, 3, '… nothing is to be done');
    like(record($one, '_design/vibe_owner')->{_rev}, qr/^1-/,
         '… and nothing is written');

    ($status, $out) = adopt("$one $alice\n$one $bob\n", '--quiet', '-');
    is($status, 1, 'standard input');
    is($out, "$one\trefused\tit belongs to $alice\n", '… and quietly');

    # The module sees it.
    ($status) = request($nginx, 'POST', '/data/posts',
        token($bob, instanceId => "$run-one"), { _id => 'posts/2' });
    is($status, 403, 'another DID is refused by the module');
    ($status, my $answer) = request($nginx, 'POST', '/data/posts',
        token($alice, instanceId => "$run-one"),
        { _id => 'posts/2', acl => { global => $true } });
    is("$status $answer->{global}", '201 ' . gid($alice, 'posts/2'),
       '… and the owner\'s documents are mirrored');

    # Withdrawn, so that nothing of it stays in global.
    request($nginx, 'POST', '/data/posts',
        token($alice, instanceId => "$run-one"),
        { _id => 'posts/2', _deleted => $true });
};


subtest 'what is refused' => sub {
    my ($db, $other, $claimed, $half, $odd)
        = map { database($_) } qw(refused other claimed half odd);
    my $named = database(userdb($bob));

    couch('PUT', "/$other/_local/vibe_owner", { did => $bob, vibe_v => 1 });
    couch('PUT', "/$claimed/_design/vibe_owner", { did => $bob, vibe_v => 1 });
    couch('PUT', "/$half/_design/vibe_owner", { did => $alice, vibe_v => 1 });
    couch('PUT', "/$odd/_local/vibe_owner", { owner => $alice });

    # A claim that was deleted is none.
    my $freed = database('freed');
    my ($ok, $claim) = couch('PUT', "/$freed/_design/vibe_owner",
                             { did => $bob, vibe_v => 1 });
    couch('DELETE', "/$freed/_design/vibe_owner?rev=$claim->{rev}");

    my @cases = (
        ["$db", 'the line is not'],
        ["$db $alice $bob", 'the line is not'],
        ["userdb-$run-nowhere $alice", 'there is no such database'],
        ["posts $alice", 'its name is not a user\'s'],
        ["userdb- $alice", 'its name is not a user\'s'],
        ["userdb-$run/../x?y $alice", 'its name is not a user\'s'],
        ["USERDB-x $alice", 'its name is not a user\'s'],
        (map { ["$db $_", 'not a DID'] } 'alice', 'did:vibe:', 'did:Vibe:x',
            'did:vibe:a/b', 'did:vibe:a?b', 'did:vibe:a#b', 'did:vibe:%4',
            "did:vibe:\xc3\xa4", 'did:vibe:a:', 'did:vibe:' . 'x' x 1024),
        ["$named $alice", "its name is that of $bob"],
        ["$other $alice", "it belongs to $bob"],
        ["$claimed $alice", "it belongs to $bob"],
        ["$odd $alice", 'it has a record that names no DID'],
    );

    my ($status, $out, $err) = adopt(join("\n", (map { $_->[0] } @cases),
        "$db $alice", "$db $bob", "$half $alice", "$freed $alice"));
    my @lines = split /\n/, $out;

    is($status, 1, 'some are refused');
    is($err, '', '… without a word on stderr');

    for my $case (@cases) {
        my ($name) = split / /, $case->[0];
        like(shift @lines, qr/^\Q$name\E\trefused\t.*\Q$case->[1]\E/,
             'refused: ' . substr($case->[0] =~ s/[^ -~]/?/gr, 0, 70));
    }

    is_deeply(\@lines, ["$db\trecorded\t$alice",
        "$db\trefused\tit belongs to $alice", "$half\trecorded\t$alice",
        "$freed\trecorded\t$alice", sprintf('%d lines: 3 recorded, 0 known, '
            . '%d refused, 0 failed', @cases + 4, @cases + 1)],
        'what is fine is done all the same');

    is(record($half)->{did}, $alice, 'a claim of the same DID is made whole');
    is(record($other)->{did}, $bob, 'what was recorded stays');
    is_deeply(record($claimed), {}, 'what was claimed gets no record');
};


# adopt_held($db, $act): adopts it for Alice, does $act before the claim is
# written; the status and what was printed.

sub adopt_held {
    my ($db, $act) = @_;

    my $hold = $proxy->hold("^PUT /$db/_design");
    my $result = write_file('');
    my $pid = fork // die "fork: $!\n";

    if ($pid == 0) {
        my ($status, $out) = adopt_at($proxy->url, "$db $alice\n");
        open(my $fh, '>', $result) or POSIX::_exit(99);
        print {$fh} "$status $out";
        close $fh;
        POSIX::_exit(0);
    }

    ok($proxy->wait_held($hold), 'held before the claim');
    $act->($hold);
    waitpid($pid, 0);
    return read_file($result);
}


subtest 'who is first' => sub {
    my $db = database('race');

    my $said = adopt_held($db, sub {
        my ($status) = adopt("$db $bob\n");
        is($status, 0, 'the other one has it');
        $proxy->release($_[0]);
    });
    like($said, qr/^1 $db\trefused\tit belongs to \Q$bob\E$/m,
         '… and the first is told so');
    is(record($db)->{did}, $bob, '… it stays');

    my $lost = database('lost');
    $said = adopt_held($lost, sub { $proxy->lose($_[0]) });
    like($said, qr/^0 $lost\trecorded\t/, 'an answer that is lost is no matter');
    is(record($lost)->{did}, $alice, '… it is recorded');
};


subtest 'another prefix' => sub {
    my $db = "adopt$run-x";
    push @databases, $db;
    couch('PUT', "/$db?q=1");

    my $file = write_file("$db $alice\n");
    my ($status) = adopt(undef, $file);
    is($status, 1, 'refused');
    ($status) = adopt(undef, '--prefix', "adopt$run-", $file);
    is($status, 0, '… unless it is named');
    is(record($db)->{did}, $alice, '… then it is recorded');
};


subtest 'it cannot do its work' => sub {
    my $port = free_port();
    my ($status, $out, $err) = adopt_at("http://127.0.0.1:$port",
                                        "userdb-x $alice\n");
    is($status, 2, 'CouchDB is down: 2');
    like($err, qr/no CouchDB answers at 127\.0\.0\.1:$port/, '… and why');
    is($out, '', '… and nothing else');

    for my $case (
        ['no file', [], qr/FILE/],
        ['two files', ['-', '-'], qr/FILE/],
        ['a file that is not there', ['/nowhere/x'], qr{/nowhere/x}],
        ['a directory', ['/'], qr/EISDIR/],
        ['an option', ['--repair', '-'], qr/--repair/],
    ) {
        my ($name, $arguments, $told) = @$case;

        ($status, $out, $err) = adopt(undef, @$arguments);
        is($status, 2, "$name: 2");
        like($err, $told, '… and why');
    }

    ($status, $out) = adopt(undef, '--help');
    is($status, 0, '--help');
    like($out, qr/FILE/, '… tells');

    ($status, $out) = adopt('');
    is($status, 0, 'no line at all');
    like($out, qr/^0 lines/, '… is none');

    # CouchDB fails with one of them.
    my ($bad, $good) = map { database($_) } qw(bad good);
    my $mock = mock {
        my ($method, $path, $body) = @_;

        return (500, { error => 'x', reason => 'x' })
            if $path =~ m{^/$bad/_local};

        my $res = HTTP::Tiny->new->request($method, $url . $path, {
            headers => { Authorization => 'Basic ' . encode_base64($auth, ''),
                         'Content-Type' => 'application/json' },
            length $body ? (content => $body) : () });
        return ($res->{status}, $res->{content});
    };

    ($status, $out) = adopt_at($mock->{url}, "$bad $alice\n$good $alice\n");
    is($status, 2, 'CouchDB fails: 2');
    like($out, qr/^$bad\tfailed\t.*500/m, '… with which');
    like($out, qr/^$good\trecorded\t/m, '… and the others go on');
};


subtest 'many lines' => sub {
    my @many = map { "userdb-$run-many$_" } 1 .. 60;

    push @databases, @many;
    couch('PUT', "/$_?q=1") for @many;
    my ($status, $out) = adopt(join('', map { "$_ $alice\n" } @many));
    is($status, 0, 'all are recorded');
    is_deeply([map { (split /\t/)[0] } grep { /\t/ } split /\n/, $out], \@many,
              '… in order');
    is(scalar(grep { record($_)->{did} eq $alice } @many), 60, '… each');
};


$nginx->stop;
couch('DELETE', "/$_") for @databases;

done_testing;
