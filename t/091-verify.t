# util/verify.sh: finds what differs between the users' databases and `global`,
# mends it, and finds nothing after writes through the module.  The databases
# here have a prefix and a `global` of their own.

use strict;
use warnings;

use File::Basename qw(dirname);
use HTTP::Tiny;
use JSON::PP;
use MIME::Base64 qw(encode_base64);
use Test::More;
use Time::HiRes qw(sleep time);
use Vibe;
use Vibe::Proxy;

my $json = JSON::PP->new->utf8->canonical->allow_nonref;
my ($true, $false) = (JSON::PP::true, JSON::PP::false);
my %public = (acl => { global => $true });

my $run = sprintf('%x%04x', time, $$ & 65535);
my $prefix = "verify$run-";
my $global = "global-$run";
my @KINDS = qw(missing stale withdrawn stub foreign conflict);

my ($url, $auth) = Vibe::couchdb();
my ($password) = $auth =~ /^[^:]+:(.+)$/s;

my ($alice, $bob, $eve, $carol) = map { did($_) } qw(alice bob eve carol);
my %db = map { $_ => $prefix . unpack('H*', $_) } $alice, $bob, $eve;
my $work = $prefix . 'work';
my %token = map { $_ => token($_) } $alice, $bob, $eve;

# Carol's database is named by her instanceId.
$token{$carol} = token($carol, instanceId => 'work');
$db{$carol} = $work;

my $proxy = Vibe::Proxy->start(global => $global);
my $nginx = nginx_start(http => $proxy->http_config,
    server => server_config(data => "vibe_db_prefix $prefix;"
                                     . ' client_max_body_size 16m;'));


# command($name, $url, @arguments): util/$name.sh; status, stdout, stderr.

sub command {
    my ($name, $url, @arguments) = @_;

    my ($out, $err) = map { write_file('') } 1 .. 2;
    my $program = dirname(__FILE__) . "/../util/$name.sh";
    my $pid = fork // die "fork: $!\n";

    if ($pid == 0) {
        local $ENV{VIBE_COUCHDB_URL} = $url;
        open(STDIN, '<', '/dev/null') or POSIX::_exit(99);
        open(STDOUT, '>', $out) or POSIX::_exit(99);
        open(STDERR, '>', $err) or POSIX::_exit(99);
        exec($program, @arguments) or POSIX::_exit(99);
    }

    waitpid($pid, 0);
    my $status = $? >> 8;
    my ($said, $told) = (read_file($out), read_file($err));

    fail("no password in the output of @arguments")
        if index("$said$told", $password) >= 0;

    return ($status, $said, $told);
}


# The address with the credentials, another host if named.

sub address {
    my ($other) = @_;

    my ($scheme, $host) = ($other // $url) =~ m{^(https?)://(.+)$};
    my $user = $auth =~ s/([^A-Za-z0-9:])/sprintf '%%%02X', ord $1/ger;
    return "$scheme://$user\@$host";
}


# verify(@arguments): status, differences as "KIND ID", sum, stderr.

sub verify {
    my (@arguments) = @_;

    my ($status, $out, $err) = command('verify', address(), '--json',
        '--prefix', $prefix, '--global', $global, @arguments);
    my @lines = map { $json->decode($_) } split /\n/, $out;
    my $sum = @lines && !$lines[-1]{kind} ? pop @lines : undef;

    diag($err) if $err ne '' && $status != 2;
    return ($status, [sort map { "$_->{kind} $_->{id}" } @lines], $sum, $err);
}


sub is_right {
    my ($name) = @_;

    my ($status, $differences, $sum) = verify();
    is($status, 0, "$name: all is right")
        or diag($json->encode([$differences, $sum]));
    return $sum;
}


sub post {
    my ($who, $doc) = @_;

    my ($status, $answer) = request($nginx, 'POST', '/data/posts',
                                    $token{$who}, $doc);
    is($status, 201, 'written: ' . path($answer->{id} // 'nothing'))
        or diag($json->encode($answer));
    return $answer;
}


# path($id): for a path, and for the name of a test.

sub path {
    my ($id) = @_;

    utf8::encode($id) if utf8::is_utf8($id);
    return $id =~ s/([^A-Za-z0-9._~-])/sprintf '%%%02X', ord $1/ger;
}


# Past the module: documents as CouchDB has them, and with other members.

sub get {
    my ($db, $id) = @_;

    my ($status, $doc) = couch('GET', "/$db/" . path($id));
    return $status == 200 ? $doc : undef;
}


sub put {
    my ($db, $id, %members) = @_;

    my $old = get($db, $id) // {};
    my %doc = (%$old, %members);
    delete @doc{grep { !defined $doc{$_} } keys %doc};
    my ($status, $answer) = couch('PUT', "/$db/" . path($id), \%doc);
    is($status, $doc{_deleted} ? 200 : 201, 'planted: ' . path($id))
        or diag($json->encode($answer));
    return $answer->{rev};
}


sub copy { return get($global, gid(@_)) }

# tombstone($did, $id): what is left of a copy.

sub tombstone {
    my ($did, $id) = @_;

    my ($status, $answer) = couch('POST', "/$global/_bulk_get",
                                  { docs => [{ id => gid($did, $id) }] });
    my @leaves = map { $_->{ok} // () } @{ $answer->{results}[0]{docs} };
    return (@leaves && !grep { !$_->{_deleted} } @leaves) ? $leaves[0] : undef;
}


# found($who): the ids of what this reader finds in global.

sub found {
    my ($who) = @_;

    my ($status, $answer) = request($nginx, 'POST', '/data/posts/query',
        $token{$who}, { global => $true, limit => 1000 });
    is($status, 200, 'a global query');
    return map { $_->{_id} } @{ $answer->{docs} };
}


my @acls = (
    { global => $true },
    { global => $true, read => { deny => [] } },
    { global => $true, read => { deny => [$eve] } },
    { global => $true, read => { allow => [$bob], deny => [$eve] } },
    { global => $true, read => { deny => [{ issuer => 'i', type => 't' }] } },
    { global => $true, read => { deny => [[$bob, $eve]] } },
    { global => $true, read => { deny => [['*', $eve]] } },
    { global => $true, read => { deny => ['*'] } },
    { global => $true, read => { deny => ['nobody'] } },
    { global => $true, read => { deny => $eve } },
    { global => $true, read => { other => 1 } },
    { global => $true, write => { allow => ['x'] }, more => [1, {}] },
    { global => $true, allow => [] },
    { global => 1 },
    { global => 'true' },
    { global => $false },
    { read => { allow => ['*'] } },
    { read => { allow => [['*']] } },
    { read => { allow => [[]] } },
    { read => { allow => [[[$bob]]] } },
    { read => { allow => [$bob, $bob, $eve] } },
    { read => { allow => [$bob, $eve], deny => [$eve] } },
    { read => { allow => [$bob], deny => [$bob] } },
    { read => { allow => [$alice] } },
    { read => { allow => [$alice, $bob] } },
    { read => { allow => [[$bob, '*']] } },
    { read => { allow => [[$bob, $eve]] } },
    { read => { allow => [[$bob, { issuer => 'i', type => 't' }]] } },
    { read => { allow => [{ issuer => 'i', type => 't' }, $bob] } },
    { read => { allow => [{ issuer => 'i' }, $bob] } },
    { read => { allow => [{ issuer => 'i', type => 't', x => 1 }, $bob] } },
    { read => { allow => ['*'], deny => [$eve, $bob] } },
    { read => { allow => [5] } },
    { read => { allow => ['did:vibe:a/b'] } },
    { read => { allow => ['did:vibe:'] } },
    { read => { allow => ['did:web:example.com%3A3000:user:bob'] } },
    { read => { allow => [map { "did:vibe:r$_" } 1 .. 500] } },
    { read => { allow => [map { "did:vibe:r$_" } 1 .. 501] } },
    { read => { allow => [map { "did:vibe:r$_" } 1 .. 300],
                deny => [map { "did:vibe:r$_" } 1 .. 201] } },
    { read => [] },
    { read => undef },
    {},
    [],
    'public',
    undef,
);

my @ids = ('plain', 'posts/1', 'with:colon', 'a%3Ab', '100%', ':', '%', '%253A',
           'white space', 'sl/ash/es', "\xc3\xbcml\xc3\xa4ut",
           "\xf0\x9f\x98\x80", 'q"uo\\te', 'x?y#z&=+', ('long:' x 200));


subtest 'after writes through the module' => sub {
    my $sum = is_right('nothing is there');
    is($sum->{databases}, 0, '… and no database');

    post($alice, { _id => "acl$_", acl => $acls[$_] }) for 0 .. $#acls;

    for my $id (@ids) {
        utf8::decode(my $text = $id);
        post($alice, { _id => $text, title => $text, %public });
    }

    post($carol, { _id => "here:$_", n => $_, %public }) for 1 .. 3;
    post($bob, { title => 'an id of the module', %public });
    post($bob, { _id => 'secret', title => 'for nobody' });
    post($bob, { _id => 'all', %public,
        big => 1.5, one => [1, 2.50, 1e3], deep => { b => { a => [] }, a => 1 },
        text => "\x{1f600} \x{0} \\ \" \x{2028}", '' => '' });

    # Taken back, deleted, and written once more.
    for my $id (qw(back gone again)) {
        post($alice, { _id => $id, n => 1, %public });
        post($alice, { _id => $id, n => 2, $id eq 'back' ? ()
                           : (_deleted => $true) });
    }
    post($alice, { _id => 'again', n => 3, %public });

    $sum = is_right('written');
    is($sum->{databases}, 3, 'three databases');
    is($sum->{unowned}, 0, '… with owners');
    is($sum->{expected}, $sum->{copies}, 'as many copies as are expected');
    cmp_ok($sum->{copies}, '>=', 30, '… and not few');
    cmp_ok($sum->{documents}, '>', $sum->{copies}, 'others have none');

    my ($status, $out, $err) = command('verify', address(), '--prefix',
        $prefix, '--global', $global);
    is($status, 0, 'as text');
    like($out, qr/^3 databases, \d+ documents, .*\nno difference\n\z/,
         '… it says so');
    is($err, '', '… and nothing else');

    ($status, $out) = command('verify', address(), '--prefix', $prefix,
        '--global', $global, '--quiet');
    is("$status$out", '0', '… and quietly');
};


# What is planted, by the differences that it makes.

my %expected;

sub expect {
    my ($kind, $id) = @_;

    $expected{"$kind $id"} = 1;
}


subtest 'each kind of difference is found, and mended' => sub {
    post($alice, { _id => "d/$_", title => "the $_", n => 1, %public })
        for qw(tombstone rev member extra less acl-version format owner
               db collection access private deleted purged stub conflict
               conflict-private newer);
    post($alice, { _id => 'd/readers', acl => { read => { allow => [$bob] } } });
    post($alice, { _id => 'd/past', acl => { read => { allow => [$bob] } } });
    post($alice, { _id => 'd/never',
                   acl => { global => $true, read => { deny => [$eve] } } });
    post($eve, { _id => 'd/lost', %public });
    post($eve, { _id => 'lo:st%', acl => { read => { allow => [$bob] } } });
    is_right('before');

    my ($own, $gid) = ($db{$alice}, sub { gid($alice, $_[0]) });

    # missing
    put($own, 'd/new', title => 'past the module', %public);
    put($own, 'd/in:%', %public);
    put($work, 'posts/new', title => 'past the module', %public);
    put($own, 'other', collection => 'posts', %public);
    put($global, $gid->('d/tombstone'), _deleted => $true);
    expect('missing', $gid->($_)) for qw(d/new d/in:% other d/tombstone);
    expect('missing', gid($carol, 'posts/new'));

    # stale
    put($own, 'd/rev', n => 2);
    put($global, $gid->('d/member'), title => 'forged');
    put($global, $gid->('d/extra'), more => 1);
    put($global, $gid->('d/less'), title => undef);
    put($global, $gid->('d/acl-version'), vibe_acl => 0);
    put($global, $gid->('d/format'), vibe_v => undef);
    put($global, $gid->('d/collection'), collection => 'others');
    put($global, $gid->('d/access'), vibe_access => 'restricted',
        vibe_read => [$bob], vibe_deny => []);
    put($global, $gid->('d/readers'), vibe_read => [$bob, $eve]);
    expect('stale', $gid->("d/$_")) for qw(rev member extra less acl-version
        format collection access readers);

    # Not the owner's: it would be stale, too, and is told once.
    put($global, $gid->('d/owner'), vibe_owner => $eve);
    put($global, $gid->('d/db'), vibe_db => $db{$bob});
    expect('stale', $gid->("d/$_")) for qw(owner db);

    # withdrawn
    put($own, 'd/private', acl => {});
    put($own, "d/$_", acl => undef) for qw(past never);
    put($own, 'd/deleted', _deleted => $true);
    expect('withdrawn', $gid->("d/$_")) for qw(private past never deleted);
    couch('DELETE', "/$db{$eve}");
    expect('withdrawn', gid($eve, $_)) for qw(d/lost lo:st%);

    my $copy = copy($alice, 'd/rev');
    my %ours = map { $_ => $copy->{$_} }
               qw(vibe_v vibe_db vibe_owner vibe_acl vibe_access collection);
    put($global, $gid->('d/never-was'), %ours, vibe_rev => '1-aa');
    expect('withdrawn', $gid->('d/never-was'));

    # stub
    put($global, $gid->('d/stub'), map({ $_ => undef } qw(title n acl
        collection vibe_rev vibe_owner vibe_acl)), vibe_access => 'none');
    put($global, $gid->('d/left'), vibe_v => 1, vibe_db => $own,
        vibe_access => 'none');
    expect('stub', $gid->("d/$_")) for qw(stub left);

    # foreign
    put($global, 'nobody knows', title => 'by hand');
    put($global, "$alice:no%escape", %ours, vibe_rev => '1-aa');
    put($global, "$alice:nothing", title => 'by hand');
    put($global, gid($bob, 'd/forged'), %ours, vibe_rev => '1-aa');
    put($global, gid($bob, 'd/mine'), %ours, vibe_owner => $bob);
    put($global, gid($bob, 'd/hers'), %ours, vibe_owner => $bob,
        vibe_db => $work);
    expect('foreign', $_) for 'nobody knows', "$alice:no%escape",
        "$alice:nothing", map { gid($bob, "d/$_") } qw(forged mine hers);

    # conflict
    for my $id (qw(conflict conflict-private)) {
        my $old = copy($alice, "d/$id");
        couch('POST', "/$global/_bulk_docs", { new_edits => $false,
            docs => [{ %$old, title => 'lost', _rev => '1-' . '0' x 32 }] });
    }
    put($own, 'd/conflict-private', acl => {});
    expect('conflict', $gid->('d/conflict'));
    expect('withdrawn', $gid->('d/conflict-private'));

    # of a later version: left alone
    put($global, $gid->('d/newer'), vibe_v => 2, title => 'later');

    my ($status, $differences, $sum) = verify();
    is($status, 1, 'differences are found');
    is_deeply($differences, [sort keys %expected], '… all of them, each once');
    is($sum->{newer}, 1, '… and one of a later version');
    is($sum->{ok}, $false, '… it is not well');

    my %count;
    /^(\w+)/ and $count{$1}++ for keys %expected;
    is_deeply($sum->{found}, { map { $_ => $count{$_} // 0 } @KINDS },
              '… counted');
    is_deeply([grep { !$sum->{found}{$_} } @KINDS], [], '… of each kind some');

    my $out;
    ($status, $out) = command('verify', address(), '--prefix', $prefix,
        '--global', $global);
    is($status, 1, 'as text');
    is(() = $out =~ /^(?:missing|stale|withdrawn|stub|foreign|conflict)\t/mg,
       keys %expected, '… a line each');
    like($out, qr/^stale\t\Q$alice\E:d\/member\twrong: title$/m,
         '… with the reason');
    unlike($out, qr/forged\b(?!\t)/, '… and without content');

    is(copy($alice, 'd/member')->{title}, 'forged', 'nothing was changed');

    ($status, $differences, $sum) = verify('--repair');
    is($status, 0, 'repaired');
    is_deeply($differences, [sort keys %expected], '… the same differences');
    is_deeply($sum->{repaired}, $sum->{found}, '… all of them');
    is_deeply($sum->{left}, { map { $_ => 0 } @KINDS }, '… none is left');
    is($sum->{newer}, 1, '… but the one of a later version');
    is(copy($alice, 'd/newer')->{title}, 'later', '… as it was');
    is_right('afterwards');

    # What is left of them.
    is(copy($alice, 'd/member')->{title}, 'the member', 'the copy is right');
    is(copy($alice, 'd/new')->{collection}, 'd', 'its collection is of its id');
    is(copy($alice, 'd/extra')->{more}, undef, 'nothing is added');
    is_deeply(copy($alice, 'd/readers')->{vibe_read}, [$bob], 'the readers');

    my $left = tombstone($alice, 'd/past');
    is_deeply([@$left{qw(vibe_past vibe_owner vibe_db vibe_v vibe_acl
                         collection)}],
              [[$bob], $alice, $own, 1, 1, 'posts'],
              'a tombstone remembers who could read');
    is($left->{vibe_rev}, get($own, 'd/past')->{_rev}, '… and the revision');
    is($left->{title}, undef, '… but no content');

    $left = tombstone($alice, 'd/never');
    is_deeply([@$left{qw(vibe_past vibe_never)}], [['*'], [$eve]],
              '… everyone but those who could not');
    $left = tombstone($eve, 'lo:st%');
    is_deeply([@$left{qw(vibe_past vibe_db)}], [[$bob], $db{$eve}],
              '… also without the database');
    ok(tombstone($alice, 'd/conflict-private'), 'no revision lives');
    is(tombstone($alice, 'd/conflict-private')->{vibe_owner}, $alice,
       '… and the tombstone is whole');

    my %found = map { $_ => 1 } found($bob);
    ok($found{ $gid->('d/readers') }, 'one who may read finds it');
    ok(!$found{ $gid->('d/past') }, '… and not what is withdrawn');

    couch('DELETE', "/$global/" . path($gid->('d/newer')) . '?rev='
          . copy($alice, 'd/newer')->{_rev});
    ($status) = verify('--repair');
    is($status, 0, 'over a bare tombstone');

    # The module goes on from there.
    post($alice, { _id => "d/$_", n => 3, %public })
        for qw(past never deleted left conflict-private conflict tombstone);
    is(copy($alice, 'd/deleted')->{n}, 3, 'the module writes over it');
    post($alice, { _id => 'd/tombstone', n => 3 });
    is_right('and the module went on');
};


subtest 'what is counted, and no difference' => sub {
    my $unowned = "${prefix}unowned";
    couch('PUT', "/$unowned?q=1");
    put($unowned, 'posts/1', %public);
    put($db{$bob}, 'nowhere', %public);
    put($db{$bob}, 'posts/2', collection => 'no collection', %public);
    put($db{$bob}, 'posts/3', collection => undef, acl => {});

    my $sum = is_right('counted');
    is($sum->{unowned}, 1, 'a database without known owner');
    is($sum->{uncollected}, 2, 'documents in no collection');

    # A tombstone of a later version is left alone, too.
    put($db{$bob}, 'posts/4', %public);
    put($global, gid($bob, 'posts/4'), vibe_v => 7, _deleted => $true);
    $sum = is_right('a tombstone of a later version');
    is($sum->{newer}, 1, '… is counted');

    # Two databases of one owner: either's document may be in global.
    my $second = "${prefix}second";
    my $token = token($bob, instanceId => 'second');
    post($bob, { _id => 'twin', n => 1, %public });
    request($nginx, 'POST', '/data/posts', $token,
            { _id => 'twin', n => 2, %public });
    $sum = is_right('two of one id');
    is($sum->{twins}, 1, '… are counted');

    # A copy of what has no owner: it stays until somebody says whose it is.
    post($carol, { _id => 'orphan', %public });
    post($carol, { _id => 'orphan-private', %public });
    put($work, 'orphan-private', acl => {});
    couch('DELETE', "/$work/_local/vibe_owner");

    my ($status, $differences) = verify('--repair');
    is($status, 1, 'copies of a database that lost its record');
    ok((grep { $_ eq 'foreign ' . gid($carol, 'orphan') } @$differences),
       '… are told');
    ok(copy($carol, 'orphan'), '… and left');
    ok(!copy($carol, 'orphan-private'), '… but not what nobody may read');
    couch('PUT', "/$work/_local/vibe_owner", { did => $carol, vibe_v => 1 });
    is_right('with the record');

    # Another prefix: perhaps --prefix was forgotten.
    my $id = gid($bob, 'elsewhere');
    put($global, $id, vibe_v => 1, vibe_owner => $bob, vibe_rev => '1-aa',
        vibe_db => "other$run-x", vibe_acl => 1, vibe_access => 'public');
    ($status, $differences) = verify('--repair');
    is($status, 1, 'a copy of another prefix');
    ok(get($global, $id), '… is left');
    ($status) = verify('--repair', '--prefix', "other$run-");
    is($status, 0, '… unless the prefix is named');
    is(get($global, $id), undef, '… then it goes');
};


subtest 'only some databases' => sub {
    put($db{$alice}, 'only/1', %public);
    put($db{$bob}, 'only/2', %public);
    put($work, 'only/3', %public);
    put($global, gid($_, 'only/4'), vibe_v => 1, vibe_access => 'none',
        vibe_db => $db{$_}) for $alice, $bob, $carol;
    put($global, 'by hand', n => 1);

    my ($status, $differences, $sum) = verify('--database', $db{$bob});
    is($status, 1, 'one');
    is_deeply($differences, [map { "$_->[0] " . gid($bob, $_->[1]) }
        ['missing', 'only/2'], ['stub', 'only/4']], '… has its own differences');
    is($sum->{databases}, 1, '… alone');

    ($status, $differences) = verify('--database', $db{$bob}, '--database',
                                     $work, '--repair');
    is($status, 0, 'two, repaired');
    is(@$differences, 4, '… have theirs');
    ok(!copy($alice, 'only/1'), '… the others stay as they are');

    # One that is not there: its copies are found all the same.
    my $gone = did('gone');
    my $name = $prefix . unpack('H*', $gone);
    my %ours = (vibe_v => 1, vibe_acl => 1, vibe_access => 'public',
                vibe_rev => '1-aa');
    put($global, gid($gone, 'x'), %ours, vibe_owner => $gone,
        vibe_db => $name);
    put($global, gid($gone, 'y'), %ours, vibe_owner => $gone,
        vibe_db => "${prefix}gone");

    ($status, $differences) = verify('--database', "${prefix}gone");
    is_deeply($differences, ['withdrawn ' . gid($gone, 'y')],
              'one that is gone');
    ($status, $differences) = verify('--database', $name, '--repair');
    is_deeply([sort @$differences], [map { 'withdrawn ' . gid($gone, $_) }
                                         qw(x y)], '… by its owner');

    ($status, $differences) = verify('--repair');
    is("$status " . @$differences, '0 3', 'the others');
};


subtest 'more than a page' => sub {
    my @docs = map { { _id => sprintf('many/%04d', $_), n => $_, %public,
                       text => 'x' x 100 } } 1 .. 450;
    my ($status) = request($nginx, 'POST', '/data/many', $token{$bob}, \@docs);
    is($status, 201, '450 documents');
    is_right('many');

    my $page = sub { couch('POST', "/$global/_all_docs",
        { keys => [map { gid($bob, sprintf('many/%04d', $_)) } @_] }) };
    my @at = (1, 199, 200, 201, 202, 399, 400, 401, 402, 403, 450);
    my ($ok, $rows) = $page->(@at);
    couch('POST', "/$global/_bulk_docs", { docs => [map { {
        _id => $_->{id}, _rev => $_->{value}{rev}, _deleted => $true } }
        @{ $rows->{rows} }] });

    my ($found, $differences) = verify('--repair');
    is($found, 0, 'repaired');
    is(@$differences, @at, 'each is found');

    # All of them.
    ($ok, $rows) = $page->(1 .. 450);
    couch('POST', "/$db{$bob}/_bulk_docs", { docs => [map { {
        %$_, acl => {}, _rev => get($db{$bob}, $_->{_id})->{_rev} } } @docs] });
    my $sum;
    ($found, $differences, $sum) = verify('--repair');
    is("$found $sum->{repaired}{withdrawn}", '0 450', '450 are withdrawn');
};


subtest 'while others write' => sub {
    post($alice, { _id => "w/$_", n => 1, %public }) for 1 .. 3;

    # What is only on its way is no difference.
    put($db{$alice}, 'w/1', n => 2);
    my $pid = fork // die "fork: $!\n";
    if ($pid == 0) {
        sleep 1;
        put($global, gid($alice, 'w/1'), n => 2,
            vibe_rev => get($db{$alice}, 'w/1')->{_rev});
        POSIX::_exit(0);
    }
    my ($status, $differences) = verify('--settle', 4, '--database',
                                        $db{$alice});
    waitpid($pid, 0);
    is($status, 0, 'gone within the time');

    put($db{$alice}, 'w/1', n => 3);
    my $began = time;
    ($status) = verify('--settle', 2, '--database', $db{$alice});
    is($status, 1, 'there after it');
    cmp_ok(time - $began, '>=', 2, '… it took that long');
    verify('--repair');

    # The document is withdrawn between what repair reads and what it writes.
    my $late = Vibe::Proxy->start(global => $global);
    my %held = (
        'w/2' => 'over a live copy', 'w/3' => 'over a tombstone',
    );

    for my $id (sort keys %held) {
        put($global, gid($alice, $id), $id eq 'w/2' ? (n => 9)
                : (_deleted => $true));
        my $hold = $late->hold('^POST /global/_bulk_docs.*"vibe_rev"');
        my $out = write_file('');
        my $child = fork // die "fork: $!\n";

        if ($child == 0) {
            local $ENV{VIBE_COUCHDB_URL} = address($late->url);
            open(STDOUT, '>', $out) or POSIX::_exit(99);
            exec(dirname(__FILE__) . '/../util/verify.sh', '--repair',
                 '--prefix', $prefix, '--database', $db{$alice})
                or POSIX::_exit(99);
        }

        ok($late->wait_held($hold), "$held{$id}: held");
        post($alice, { _id => $id, n => 2 });
        $late->release($hold);
        waitpid($child, 0);
        is($? >> 8, 0, '… repaired') or diag(read_file($out));
        is(copy($alice, $id), undef, '… and there is no copy');
    }

    is_right('then');
};


subtest 'there is no global' => sub {
    my $none = "global2-$run";
    my ($status, $out, $err) = command('verify', address(), '--prefix',
        $prefix, '--global', $none, '--repair');
    is($status, 2, 'none of another name is made');
    like($err, qr/there is no database $none/, '… it says so');

    my $fresh = Vibe::Proxy->start(global => $none);
    ($status, $out) = command('verify', address($fresh->url), '--prefix',
                              $prefix, '--quiet', '--json');
    is($status, 1, 'all is missing');
    my $sum = $json->decode($out);
    is($sum->{found}{missing}, $sum->{expected}, '… all of it');

    ($status, $out) = command('verify', address($fresh->url), '--prefix',
                              $prefix, '--quiet', '--json', '--repair');
    is($status, 0, 'it is made');
    is($json->decode($out)->{repaired}{missing}, $sum->{expected}, '… filled');

    ($status, my $security) = couch('GET', "/$none/_security");
    is_deeply($security->{members}, { names => [], roles => ['_admin'] },
              '… and closed');
    couch('DELETE', "/$none");
};


subtest 'it cannot do its work' => sub {
    my $port = free_port();

    for my $case (
        ['CouchDB is down', address("http://127.0.0.1:$port"), [],
            qr/no CouchDB answers at 127\.0\.0\.1:$port/],
        ['another password', address() =~ s/:[^:@\/]+@/:wrong@/r, [],
            qr/refuses this user/],
        ['no address', 'nonsense', [], qr/VIBE_COUCHDB_URL is not/],
        ['an address without a port', 'http://a:b@127.0.0.1:x', [],
            qr/address/],
        ['an option', address(), ['--fix'], qr/--fix/],
        ['an argument', address(), ['now'], qr/now/],
        ['a database', address(), ['--database', 'posts'], qr/posts/],
        ['a prefix', address(), ['--prefix', 'A b'], qr/A b/],
        ['a global', address(), ['--global', '../x'], qr/x/],
        ['a time', address(), ['--settle', 'long'], qr/long/],
    ) {
        my ($name, $address, $arguments, $told) = @$case;
        my ($status, $out, $err) = command('verify', $address, @$arguments);

        is($status, 2, "$name: 2");
        like($err, $told, '… and why');
        is($out, '', '… and nothing else');
    }

    my ($status, $out) = command('verify', 'nonsense', '--help');
    is($status, 0, '--help');
    like($out, qr/--repair/, '… tells');

    # One database that fails keeps no other out.
    put($db{$alice}, 'late/1', %public);
    my $mock = mock {
        my ($method, $path, $body) = @_;

        return (500, { error => 'x', reason => 'x' })
            if $path =~ m{^/\Q$db{$bob}\E/_all_docs};

        my $res = HTTP::Tiny->new->request($method, $url . $path, {
            headers => { Authorization => 'Basic ' . encode_base64($auth, ''),
                         'Content-Type' => 'application/json' },
            length $body ? (content => $body) : () });
        return ($res->{status}, $res->{content});
    };

    my $err;
    ($status, $out, $err) = command('verify', address($mock->{url}),
        '--prefix', $prefix, '--global', $global);
    is($status, 2, 'a database fails: 2');
    like($err, qr/\Q$db{$bob}\E.*500/, '… which');
    like($out, qr/^missing\t\Q$alice\E:late\/1\t/m, '… and the others go on');
    verify('--repair');
};


subtest 'large documents' => sub {
    my @docs = map { { _id => "large/$_", text => 'y' x 2_000_000, %public } }
               1 .. 12;
    is((request($nginx, 'POST', '/data/large', $token{$bob}, $_))[0], 201,
       "written: $_->{_id}") for @docs;
    put($db{$bob}, 'large/3', text => 'z' x 2_000_000);
    my ($status, $differences) = verify('--repair', '--database', $db{$bob});
    is_deeply($differences, ['stale ' . gid($bob, 'large/3')],
              'more than one answer holds');
    is($status, 0, '… and mended');
};


# Numbers, digit for digit: of a CouchDB that does not round them.

subtest 'numbers beyond 2^53' => sub {
    my $did = did('big');
    my $name = 'userdb-' . unpack('H*', $did);
    my $gid = gid($did, 'n/1');
    my $acl = '"acl":{"global":true},"deep":[{"n":1.0}]';
    my $own = "\"vibe_v\":1,\"vibe_db\":\"$name\",\"vibe_access\":\"public\","
              . "\"collection\":\"n\",\"vibe_rev\":\"1-aa\","
              . "\"vibe_owner\":\"$did\",\"vibe_acl\":1";
    my $source = "{\"_id\":\"n/1\",\"_rev\":\"1-aa\","
                 . "\"n\":9007199254740993,$acl}";
    my $row = sub { "{\"id\":\"$_[0]\",\"key\":\"$_[0]\","
                    . "\"value\":{\"rev\":\"$_[1]\"},\"doc\":$_[2]}" };
    my $rows = sub { "{\"rows\":[" . join(',', @_) . ']}' };

    my $serve = sub {
        my ($n) = @_;
        my $rev = 1;

        return mock {
            my ($method, $path, $body) = @_;

            return (200, "[\"$name\"]") if $path =~ m{^/_all_dbs};
            return (200, '{"cluster":{"n":1}}') if $path eq '/global';

            my $ask = eval { $json->decode($body) } // {};
            my $from = $ask->{keys} ? '' : $ask->{startkey} // '';

            if ($path eq "/$name/_all_docs") {
                return (200, $rows->($row->('n/1', '1-aa', $source)));
            }

            if ($path =~ m{^/global/_all_docs}) {
                return (200, $rows->($row->($gid, "$rev-bb",
                    "{\"_id\":\"$gid\",\"_rev\":\"$rev-bb\",\"n\":$n,$acl,"
                    . "$own}")));
            }

            if ($path =~ m{^/global/_bulk_docs}) {
                ($n) = $body =~ /"n":(\d+)/;
                $rev++;
                return (201, "[{\"ok\":true,\"id\":\"$gid\","
                             . "\"rev\":\"$rev-bb\"}]");
            }

            return (404, { error => 'not_found', reason => 'missing' });
        };
    };

    my $same = $serve->('9007199254740993');
    my ($status, $out) = command('verify', address($same->{url}));
    is($status, 0, 'the same number') or diag($out);

    my $rounded = $serve->('9007199254740992');
    ($status, $out) = command('verify', address($rounded->{url}));
    is($status, 1, 'one that was rounded');
    like($out, qr/^stale\t\Q$gid\E\twrong: n$/m, '… is told');

    ($status, $out) = command('verify', address($rounded->{url}), '--repair');
    is($status, 0, '… and mended');
    my ($write) = grep { $_->{path} =~ /_bulk_docs/ } requests($rounded);
    like($write->{body}, qr/"n":9007199254740993,/, '… digit for digit');
    like($write->{body}, qr/"deep":\[\{"n":1\.0\}\]/, '… as is "1.0"');
};


subtest 'more databases than one list holds' => sub {
    my @names = map { sprintf('userdb-x%04d', $_) } 1 .. 2500;
    my $mock = mock {
        my ($method, $path) = @_;

        if ($path =~ m{^/_all_dbs\?(.*)}) {
            my %q = map { /(\w+)=(.*)/ ? ($1 => $2) : () } split /&/, $1;
            s/%([0-9A-F]{2})/chr hex $1/ge for values %q;
            my ($from, $to) = map { defined $q{$_} ? $json->decode($q{$_})
                                                   : '' } qw(startkey endkey);
            my @some = grep { $_ ge $from && (!$to || $_ le $to) } @names;
            $#some = $q{limit} - 1 if @some > $q{limit};
            return (200, \@some);
        }

        return (404, { error => 'not_found',
                       reason => 'Database does not exist.' })
            if $path =~ m{^/global};
        return (404, { error => 'not_found', reason => 'missing' });
    };

    my ($status, $out) = command('verify', address($mock->{url}), '--json');
    my $sum = $json->decode($out);
    is("$status $sum->{databases} $sum->{unowned}", '0 2500 2500',
       'each is looked at, once');
};


$nginx->stop;

my (undef, $names) = couch('GET', '/_all_dbs');
couch('DELETE', "/$_") for grep { /^(?:\Q$prefix\E|\Q$global\E)/ } @$names;

done_testing;
