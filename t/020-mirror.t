# `global` holds a copy of what others may read, for exactly those who may, and
# of all else nothing, or a tombstone that tells nothing.

use strict;
use warnings;

use JSON::PP;
use MIME::Base64 qw(encode_base64);
use Test::More;
use Vibe;
use Vibe::Proxy;
use Vibe::Race;

my ($true, $false) = (JSON::PP::true, JSON::PP::false);
my %public = (acl => { global => $true });

# The collections are this run's own: `global` keeps what earlier ones left.
my ($run) = did('') =~ /^did:vibe:(\w+):/;

my $nginx = nginx_start();
my $open = nginx_start(http => http_config(anonymous => 'on'));


sub post {
    my ($did, $collection, $doc) = @_;

    return request($nginx, 'POST', "/data/$collection", token($did), $doc);
}


# What a database holds of a document, its winner, deleted or not; undef if
# there is no trace of it.

sub stored {
    my ($db, $id) = @_;

    my ($status, $data) = couch('POST', "/$db/_all_docs", { keys => [$id] });
    return if $status != 200;

    my $row = $data->{rows}[0];
    return if $row->{error};

    ($status, $data) = couch('POST', "/$db/_bulk_get",
        { docs => [{ id => $id, rev => $row->{value}{rev} }] });
    return $data->{results}[0]{docs}[0]{ok};
}


sub copy_of {
    my ($did, $id) = @_;

    return stored('global', gid($did, $id));
}


# The documents that a global query shows somebody; undef is who has no token.

sub seen_by {
    my ($did, $collection, %condition) = @_;

    my ($status, $data) = request($open, 'POST', "/data/$collection/query",
        defined $did ? token($did) : undef,
        { global => $true, limit => 1000, %condition });

    is($status, 200, 'a global query') or return;
    return @{ $data->{docs} };
}


# Everyone who is asked below.  Names in the ACLs stand for DIDs.

my %who = map { $_ => did($_) } qw(alice bob carol stranger);
$who{anonymous} = undef;

my $cert = { issuer => $who{bob}, type => 'member' };
my ($bob, $carol) = @who{qw(bob carol)};

my @everyone = qw(alice bob carol stranger);

# Each: what, the ACL, and who may read; a copy is there for those who have
# anyone but the owner.

my @table = (
    ['no acl', undef, []],
    ['an empty acl', {}, []],
    ['global', { global => $true }, [@everyone, 'anonymous']],
    ['global and rules for something else',
        { global => $true, write => { allow => [$bob] } },
        [@everyone, 'anonymous']],
    ['global and empty rules',
        { global => $true, read => { allow => [], deny => [] } },
        [@everyone, 'anonymous']],
    ['not global', { global => $false }, []],
    ['not global and *', { global => $false, read => { allow => ['*'] } },
        [@everyone, 'anonymous']],
    ['*', { read => { allow => ['*'] } }, [@everyone, 'anonymous']],
    ['* and none denied', { read => { allow => ['*'], deny => [] } },
        [@everyone, 'anonymous']],
    ['* among others', { read => { allow => [$bob, '*'] } },
        [@everyone, 'anonymous']],
    ['nobody allowed', { read => { allow => [] } }, []],
    ['one', { read => { allow => [$bob] } }, [qw(alice bob)]],
    ['one, and global false', { global => $false, read => { allow => [$bob] } },
        [qw(alice bob)]],
    ['two', { read => { allow => [$bob, $carol] } }, [qw(alice bob carol)]],
    ['the owner', { read => { allow => [$who{alice}] } }, []],
    ['the owner and one', { read => { allow => [$who{alice}, $bob] } },
        [qw(alice bob)]],
    ['one who is not among us', { read => { allow => [did('else')] } },
        [qw(alice)]],
    ['one whose DID goes on', { read => { allow => ["$bob:x", "${bob}x"] } },
        [qw(alice)]],
    ['one in other letters', { read => { allow => [$bob =~ s/bob$/Bob/r] } },
        [qw(alice)]],
    ['one percent-encoded', { read => { allow => [$bob =~ s/bob$/%62ob/r] } },
        [qw(alice)]],
    ['all but one, by global', { global => $true, read => { deny => [$bob] } },
        [qw(alice carol stranger)]],
    ['all but one, by *', { read => { allow => ['*'], deny => [$bob] } },
        [qw(alice carol stranger)]],
    ['all but two', { read => { allow => ['*'], deny => [$bob, $carol] } },
        [qw(alice stranger)]],
    ['all but the owner, who always may',
        { global => $true, read => { deny => [$who{alice}] } }, [@everyone]],
    ['two but one', { read => { allow => [$bob, $carol], deny => [$bob] } },
        [qw(alice carol)]],
    ['one but the same', { read => { allow => [$bob], deny => [$bob] } }, []],
    ['one but others', { read => { allow => [$bob], deny => [$carol] } },
        [qw(alice bob)]],
    ['one but all', { read => { allow => [$bob], deny => ['*'] } }, []],
    ['denied only', { read => { deny => [$bob] } }, []],
    ['a certificate', { read => { allow => [$cert] } }, []],
    ['a certificate or one', { read => { allow => [$cert, $carol] } },
        [qw(alice carol)]],
    ['a certificate or *', { read => { allow => [$cert, '*'] } },
        [@everyone, 'anonymous']],
    ['one but a certificate', { read => { allow => [$bob], deny => [$cert] } },
        []],
    ['all of: one and *', { read => { allow => [[$bob, '*']] } },
        [qw(alice bob)]],
    ['all of: one, twice', { read => { allow => [[$bob, $bob]] } },
        [qw(alice bob)]],
    ['all of: two', { read => { allow => [[$bob, $carol]] } }, []],
    ['all of: one and a certificate', { read => { allow => [[$bob, $cert]] } },
        []],
    ['all of: two, or one', { read => { allow => [[$bob, $carol], $carol] } },
        [qw(alice carol)]],
    ['but all of: two', { global => $true, read => { deny => [[$bob, $carol]] } },
        [@everyone]],
    ['but all of: one and *', { global => $true, read => { deny => [[$bob, '*']] } },
        [qw(alice carol stranger)]],
    ['but all of: one and a certificate',
        { global => $true, read => { deny => [[$bob, $cert]] } },
        [qw(alice carol stranger)]],
    ['a rule that is no DID', { read => { allow => [$bob, 'bob'] } }, []],
    ['a denial that is no DID', { global => $true, read => { deny => ['bob'] } },
        []],
    ['a certificate without a type',
        { read => { allow => [$bob, { issuer => $bob }] } }, []],
    ['a denied certificate without a type',
        { global => $true, read => { deny => [{ issuer => $bob }] } }, []],
    ['a certificate with a number',
        { read => { allow => [$bob, { issuer => $bob, type => 5 }] } }, []],
);

subtest 'who may read' => sub {
    for my $i (0 .. $#table) {
        my ($name, $acl, $readers) = @{ $table[$i] };

        my ($status, $data) = post($who{alice}, "acls-$run",
            { _id => "acl$i", n => $i, defined $acl ? (acl => $acl) : () });
        is($status, 201, "$name: written");
        is($data->{global}, @$readers ? gid($who{alice}, "acl$i") : undef,
           '… and mirrored, or not');

        my $copy = copy_of($who{alice}, "acl$i");
        is(!!$copy, !!@$readers, '… which global says too');
        is($copy->{vibe_access},
           (grep { $_ eq 'anonymous' } @$readers) ? 'public' : 'restricted',
           '… with the access') if $copy;
    }

    for my $name (sort keys %who) {
        my %seen = map { $_->{n} => 1 } seen_by($who{$name}, "acls-$run");

        for my $i (0 .. $#table) {
            my ($acl, undef, $readers) = @{ $table[$i] };
            my $may = grep { $_ eq $name } @$readers;
            is($seen{$i} ? 'sees' : 'does not see',
               $may ? 'sees' : 'does not see', "$name, $acl");
        }
    }
};


# Whether it is private or restricted to nobody, nobody may see it.

subtest 'public but for a denial of all' => sub {
    for my $deny (['*'], [$cert], [[$cert, '*']], [$bob, '*']) {
        my $id = 'denied' . JSON::PP->new->encode($deny);
        my ($status) = post($who{alice}, "denials-$run", { _id => $id,
            acl => { global => $true, read => { deny => $deny } } });
        is($status, 201, 'written');
    }

    is_deeply([seen_by($who{$_}, "denials-$run")], [], "$_ sees none of it")
        for grep { $_ ne 'alice' } sort keys %who;
};


subtest 'without vibe_anonymous' => sub {
    my ($status, $data) = request($nginx, 'POST', "/data/acls-$run/query", undef,
                                  { global => $true });
    is($status, 401, 'who has no token reads nothing');

    ($status) = request($open, 'POST', "/data/acls-$run", undef, { v => 1 });
    is($status, 401, 'and with it cannot write');
    ($status) = request($open, 'POST', "/data/acls-$run/query", undef, {});
    is($status, 401, '… nor has documents of its own');
};


my @always = qw(_id _rev collection vibe_v vibe_rev vibe_owner vibe_db vibe_acl);

subtest 'what a copy holds' => sub {
    my $alice = did('copy');

    my %doc = (_id => 'doc', text => "\x{e9}\x{1f600} \"\\\n", n => 0, no => $false,
               tag => $run,
               nothing => undef, list => [1, [], {}], deep => { a => { b => 1 } },
               '' => 'empty', ' a.b$c' => 1);
    my %attached = (_attachments => { a => { content_type => 'text/plain',
                                             data => encode_base64('x', '') } });

    my ($status, $data) = post($alice, 'posts', { %doc, %attached, %public });
    is($status, 201, 'a public document is written');

    my $copy = copy_of($alice, 'doc');
    is_deeply([sort keys %$copy],
              [sort @always, 'vibe_access', 'acl', grep { $_ ne '_id' } keys %doc],
              'its copy has its members, the module\'s and no others');
    is_deeply({ map { $_ => $copy->{$_} } grep { $_ ne '_id' } keys %doc },
              { map { $_ => $doc{$_} } grep { $_ ne '_id' } keys %doc },
              '… as they were');
    is($copy->{_id}, gid($alice, 'doc'), '_id');
    is($copy->{collection}, 'posts', 'collection');
    is($copy->{vibe_v}, 1, 'vibe_v');
    is($copy->{vibe_rev}, $data->{rev}, 'vibe_rev');
    is($copy->{vibe_owner}, $alice, 'vibe_owner');
    is($copy->{vibe_db}, userdb($alice), 'vibe_db');
    like($copy->{vibe_acl}, qr/^\d+$/, 'vibe_acl');
    is($copy->{vibe_access}, 'public', 'vibe_access');

    my ($shown) = seen_by($who{bob}, 'posts', text => $doc{text}, n => 0,
                            tag => $run);
    is_deeply([sort keys %$shown],
              [sort '_rev', 'collection', 'acl', keys %doc],
              'who reads it sees none of the module\'s');
    is($shown->{_id}, gid($alice, 'doc'), '… with the global id');
    is($shown->{_rev}, $data->{rev}, '… and the source\'s revision');

    ($status, $data) = post($alice, 'posts', { _id => 'some',
        acl => { read => { allow => [$bob, $carol] } } });
    $copy = copy_of($alice, 'some');
    is_deeply([sort keys %$copy],
              [sort @always, qw(acl vibe_access vibe_read vibe_deny)],
              'the copy of a restricted one says who may read');
    is($copy->{vibe_access}, 'restricted', '… as restricted');
    is_deeply([sort @{ $copy->{vibe_read} }], [sort $bob, $carol], '… to these');
    is_deeply($copy->{vibe_deny}, [], '… and nobody is denied');

    post($alice, 'posts', { _id => 'all-but',
        acl => { global => $true, read => { deny => [$bob] } } });
    $copy = copy_of($alice, 'all-but');
    is_deeply($copy->{vibe_read}, ['*'], 'of one to all but some: *');
    is_deeply($copy->{vibe_deny}, [$bob], '… and who is denied');
};


my %one = (acl => { read => { allow => [$bob] } });
my %other = (acl => { read => { allow => [$carol] } });
my %but_one = (acl => { global => $true, read => { deny => [$bob] } });
my %but_other = (acl => { global => $true, read => { deny => [$carol] } });
my %deleted = (_deleted => $true);

# Each: what, the writes one after the other, and who could read of old: in
# vibe_past and, if * could, not in vibe_never.

my @withdrawals = (
    ['the acl is gone', [\%public, {}], ['*'], []],
    ['the acl is empty', [\%public, { acl => {} }], ['*'], []],
    ['the acl is not understood',
        [\%public, { acl => { global => 'true' } }], ['*'], []],
    ['only the owner may', [\%public,
        { acl => { read => { allow => [did('withdrawn')] } } }], ['*'], []],
    ['it is deleted', [\%public, \%deleted], ['*'], []],
    ['it is deleted with its acl', [\%public, { %deleted, %public }], ['*'], []],
    ['a restricted one', [\%one, {}], [$bob], []],
    ['a restricted one is deleted', [\%one, \%deleted], [$bob], []],
    ['all but one could', [\%but_one, {}], ['*'], [$bob]],
    ['one, then another', [\%one, \%other, {}], [$bob, $carol], []],
    ['one, then all', [\%one, \%public, {}], ['*'], []],
    ['all, then one', [\%public, \%one, {}], ['*'], []],
    ['all but one, then that one', [\%but_one, \%one, {}], ['*'], []],
    ['that one, then all but that one', [\%one, \%but_one, {}], ['*'], []],
    ['all but one, then all but another', [\%but_one, \%but_other, {}],
        ['*'], []],
    ['all but one, twice', [\%but_one, { %but_one, v => 2 }, {}], ['*'], [$bob]],
    ['one, withdrawn, another, withdrawn', [\%one, {}, \%other, {}],
        [$bob, $carol], []],
    ['one, deleted, another, deleted', [\%one, \%deleted, \%other, \%deleted],
        [$bob, $carol], []],
);

subtest 'what is withdrawn leaves a tombstone' => sub {
    my $alice = did('withdrawn');

    for my $i (0 .. $#withdrawals) {
        my ($name, $writes, $past, $never) = @{ $withdrawals[$i] };
        my ($status, $data);

        for my $write (@$writes) {
            ($status, $data) = post($alice, "withdrawals-$run",
                { _id => "doc$i", text => 'secret', n => $i, %$write });
            is($status, 201, "$name: a write");
        }
        is($data->{global}, undef, '… which names no copy');

        my $stone = copy_of($alice, "doc$i") or do {
            fail('there is no tombstone');
            next;
        };
        ok($stone->{_deleted}, 'the copy is deleted');
        is_deeply([sort keys %$stone],
                  [sort @always, qw(_deleted vibe_past),
                        @$never ? 'vibe_never' : ()],
                  '… and nothing of the document is left');
        is($stone->{collection}, "withdrawals-$run", '… but its collection');
        is($stone->{vibe_rev}, $data->{rev}, '… its revision');
        is($stone->{vibe_owner}, $alice, '… its owner');
        is_deeply([sort @{ $stone->{vibe_past} || [] }], [sort @$past],
                  '… who could read it');
        is_deeply($stone->{vibe_never} || [], $never, '… and who could not');
    }

    is_deeply([seen_by($who{$_} // $alice, "withdrawals-$run")], [],
              "$_ sees nothing of all this") for qw(bob carol alice anonymous);
};


subtest 'who may read no longer' => sub {
    my $alice = did("narrowed-$run");
    my %is;

    for my $step ([\%public, [@everyone]], [\%one, ['bob']],
                  [\%other, ['carol']], [\%but_other, [qw(bob stranger)]],
                  [\%public, [@everyone]])
    {
        my ($acl, $readers) = @$step;
        my ($status) = post($alice, "narrowed-$run", { _id => 'doc', %$acl });
        is($status, 201, 'the access changes');

        for my $name (qw(bob carol stranger)) {
            is(scalar(seen_by($who{$name}, "narrowed-$run")),
               scalar(grep { $_ eq $name } @$readers), "… for $name");
        }
    }
};


subtest 'what was never to be read leaves no trace' => sub {
    my $alice = did('private');

    post($alice, 'posts', { _id => 'public', %public });
    my ($status, $info) = couch('GET', '/global');
    my $since = $info->{update_seq};

    for my $doc ({ v => 1 }, { v => 2 }, { acl => {} }, \%deleted, { v => 3 },
                 { acl => { read => { allow => [$alice] } } },
                 { acl => { read => { allow => [$bob], deny => ['*'] } } },
                 { acl => { read => { deny => [$bob] } } }, \%deleted)
    {
        ($status) = post($alice, 'posts', { _id => 'doc', %$doc });
        is($status, 201, 'a private write');
    }

    ($status) = post($alice, 'posts', { v => 1 });
    is($status, 201, 'one without an id');
    ($status) = post($alice, 'posts',
        [{ v => 1 }, { _id => 'doc' }, { _id => 'new' }]);
    is($status, 201, 'an array');

    (undef, my $changes) = couch('POST', '/global/_changes?since='
        . _escape($since), {});
    is_deeply([grep { /^\Q$alice\E:/ } map { $_->{id} } @{ $changes->{results} }],
              [], 'nothing of it is among the changes of global');
    is(copy_of($alice, 'doc'), undef, '… nor a tombstone');
};


sub _escape {
    my ($text) = @_;

    $text =~ s/([^A-Za-z0-9_.~-])/sprintf('%%%02X', ord $1)/ge;
    return $text;
}


# Replication into the user's database can bring any member at all.

my %forged = (
    vibe_v => 1, vibe_rev => '99-' . 'f' x 32, vibe_owner => $bob,
    vibe_db => 'userdb-x', vibe_acl => 1, vibe_access => 'public',
    vibe_read => ['*'], vibe_deny => [], vibe_past => ['*'],
    vibe_never => [$bob], vibe_other => 1,
);


# A leaf that wins over all that the module writes below generation 50.

sub sync {
    my ($did, $doc, $start, $letter) = @_;

    my $hash = ($letter // 'f') x 32;
    $start //= 50;

    my ($status) = couch('POST', '/' . userdb($did) . '/_bulk_docs', {
        new_edits => $false,
        docs => [{ _rev => "$start-$hash",
                   _revisions => { start => $start, ids => [$hash] }, %$doc }],
    });
    is($status, 201, 'a leaf came past the module');
    return "$start-$hash";
}


subtest 'forged members that came past the module' => sub {
    my $alice = did('forged');

    my ($status, $data) = post($alice, 'posts', { _id => 'private', v => 1 });
    sync($alice, { _id => 'private', collection => 'posts', %forged });
    ($status, $data) = post($alice, 'posts',
        { _id => 'private', _rev => $data->{rev}, v => 2, %public });
    is($status, 201, 'the other leaf is published');
    is($data->{global}, undef, '… but is not the winner, which is private');
    my $copy = copy_of($alice, 'private');
    ok(!$copy || $copy->{_deleted}, '… so there is no copy');

    ($status, $data) = post($alice, 'posts', { _id => 'public', v => 1 });
    my $rev = sync($alice, { _id => 'public', collection => 'posts', v => 9,
                             %forged, %one });
    ($status, $data) = post($alice, 'posts',
        { _id => 'public', _rev => $data->{rev}, v => 2 });
    is($status, 201, 'the other leaf is written');
    $copy = copy_of($alice, 'public');
    is_deeply([sort grep { $_ ne 'vibe_past' } keys %$copy],
              [sort @always, qw(v acl vibe_access vibe_read vibe_deny)],
              'the winner\'s copy has the module\'s own members only');
    is($copy->{v}, 9, '… and those of the winner');
    is($copy->{vibe_rev}, $rev, '… the winner\'s revision');
    is($copy->{vibe_owner}, $alice, '… the owner');
    is($copy->{vibe_db}, userdb($alice), '… and the database');
    is($copy->{vibe_access}, 'restricted', '… the access that its acl gives');
    is_deeply($copy->{vibe_read}, [$bob], '… to these');
    is_deeply([grep { $_ ne $bob } @{ $copy->{vibe_past} || [] }], [],
              '… nor have others been able to');

    post($alice, 'posts', { _id => 'taken', v => 1 });
    sync($alice, { _id => 'taken', collection => 'posts', %forged });
    ($status, $data) = post($alice, 'posts', { _id => 'taken', v => 2 });
    is($status, 201, 'a write over a forged one');
    is($data->{global}, undef, '… that is private');
    is(copy_of($alice, 'taken'), undef, '… leaves no trace');
    my ($own) = grep { /^vibe_/ } keys %{ stored(userdb($alice), 'taken') };
    is($own, undef, '… and has none of these members');
};


subtest 'the collection of a winner that came past the module' => sub {
    my $alice = did('synced');

    # What the copy's collection is to be; undef: it is not mirrored.

    my @cases = (
        ['by its member', 'doc1', { collection => 'likes' }, 'likes'],
        ['by its id', 'likes/doc2', {}, 'likes'],
        ['by its member before its id', 'likes/doc3', { collection => 'notes' },
            'notes'],
        ['neither', 'doc4', {}, undef],
        ['a member that names none', 'likes/doc5', { collection => '_x' }, undef],
        ['a reserved name', 'doc6', { collection => 'global' }, undef],
        ['a member that is no string', 'likes/doc7', { collection => 5 }, undef],
        ['an id that names none', '-/doc8', {}, undef],
    );

    for my $case (@cases) {
        my ($name, $id, $members, $want) = @$case;

        my ($status, $data) = post($alice, $want // 'likes', { _id => $id });
        sync($alice, { _id => $id, %$members, %public });

        # The losing leaf is deleted: that is no change to the winner.
        ($status, $data) = post($alice, $want // 'likes',
            { _id => $id, _rev => $data->{rev}, _deleted => $true });

        SKIP: {
            skip("$name: refused with $status", 1)
                if !defined $want && $status == 409;

            is($status, 201, "$name: written");
            my $copy = copy_of($alice, $id);
            $copy = undef if $copy && $copy->{_deleted};
            is($copy ? $copy->{collection} : undef, $want, '… and mirrored so');
        }
    }
};


subtest 'DIDs of which one begins with the other' => sub {
    my $short = did('a');
    my $long = did('a:al');

    my @docs = ([$short, 'al:p1'], [$long, 'p1'], [$short, 'al%3Ap1'],
                [$short, 'al/p1'], [$short, 'p1'], [$short, ':al:p1'],
                [$short, 'al%253Ap1'], [$long, ':p1']);
    my %global;

    for my $i (0 .. $#docs) {
        my ($did, $id) = @{ $docs[$i] };
        my ($status, $data) = post($did, "prefix-$run", { _id => $id, n => $i, %public });
        is($status, 201, "$id is written");
        ok(!$global{ $data->{global} }++, '… under a global id of its own');
    }

    is_deeply({ map { $_->{n} => $_->{_id} } seen_by($who{bob}, "prefix-$run") },
              { map { $_ => gid(@{ $docs[$_] }) } 0 .. $#docs },
              'all are there');

    for my $i (0 .. $#docs) {
        my ($did, $id) = @{ $docs[$i] };
        my ($status) = post($did, "prefix-$run", { _id => $id, _deleted => $true });
        is($status, 201, "$id is deleted");
        is_deeply([sort map { $_->{n} } seen_by($who{bob}, "prefix-$run")],
                  [$i + 1 .. $#docs], '… and no other');
    }
};


subtest 'a database without a known owner' => sub {
    my $alice = did('unowned');
    my $id = 'unowned-' . unpack('H*', did('x')) =~ s/[^a-z0-9]//gr;
    my $db = "userdb-$id";
    my $token = token($alice, instanceId => $id);

    couch('PUT', "/$db");
    couch('PUT', "/$db/old", { collection => 'posts', %public });

    my ($status, $data) = request($nginx, 'POST', '/data/posts', $token,
        [{ _id => 'doc', %public }, { _id => 'old', v => 2, %public }, { %public }]);
    is($status, 201, 'it is written to');
    is_deeply([map { $_->{ok} } @$data], [$true, $true, $true], '… all of it');
    is_deeply([map { $_->{global} } @$data], [undef, undef, undef],
              '… but not mirrored');
    is(stored($db, 'doc')->{_rev}, $data->[0]{rev}, 'it is stored');

    ($status, $data) = request($nginx, 'POST', '/data/posts/query', $token, {});
    is(scalar @{ $data->{docs} }, 3, '… and read');

    is(copy_of($alice, $_), undef, "global has nothing of $_") for qw(doc old);
    ($status) = couch('GET', "/$db/_local/vibe_owner");
    is($status, 404, 'and nobody has become its owner');

    couch('PUT', "/$db/_local/vibe_owner", { did => $alice, vibe_v => 1 });
    ($status, $data) = request($nginx, 'POST', '/data/posts', $token,
                               { _id => 'doc', v => 3, %public });
    is($data->{global}, gid($alice, 'doc'), 'with a record it is mirrored');
    is(copy_of($alice, 'doc')->{v}, 3, '… as it is now');

    ($status) = request($nginx, 'POST', '/data/posts',
        token(did('thief'), instanceId => $id), { v => 1 });
    is($status, 403, 'and is another\'s to nobody else');
};


# The mirror's failure is not the write's.

subtest 'when global cannot be written' => sub {
    my $alice = did('pending');
    my $proxy = Vibe::Proxy->start;
    my $slow = nginx_start(http => $proxy->http_config);
    my $n = 0;

    for my $case ([500, { error => 'x', reason => 'y' }],
                  [503, { error => 'x', reason => 'y' }],
                  [401, { error => 'unauthorized', reason => 'y' }],
                  [201, 'garbage'], [201, []],
                  [201, [{ id => 'x', error => 'forbidden', reason => 'y' }]],
                  [202, [{ ok => $true, id => 'x', rev => '1-' . 'a' x 32 }]])
    {
        my $id = 'doc' . ++$n;
        my $hold = $proxy->hold("^POST /global/_bulk_docs\\S* .*$alice");
        my $write = send_request($slow, 'POST', '/data/posts', token($alice),
                                 { _id => $id, %public });
        ok($proxy->wait_held($hold), "global answers $case->[0]");
        $proxy->answer($hold, @$case);

        my ($status, $data) = answer_of($write);
        is($status, 202, '… which makes the write 202');
        is($data->{mirror}, 'pending', '… and its mirror pending');
        is($data->{ok}, $true, '… but ok');
        is($data->{global}, gid($alice, $id), '… with the global id to come');
        is(stored(userdb($alice), $id)->{_rev}, $data->{rev}, '… and stored');

        ($status, $data) = request($slow, 'POST', '/data/posts', token($alice),
                                   { _id => $id, v => 2, %public });
        is($status, 201, 'the next write is mirrored');
        is(copy_of($alice, $id)->{vibe_rev}, $data->{rev}, '… with it');
    }

    # stop() asks for a clean log: what is logged here is meant to be.
    unlike($slow->log, qr/$Vibe::BAD_LOG/, 'nothing worse is logged');
    $slow->stop;
};


subtest 'when global cannot be read' => sub {
    my $alice = did('blind');
    my $proxy = Vibe::Proxy->start;
    my $slow = nginx_start(http => $proxy->http_config);

    post($alice, 'posts', { _id => 'doc', %public });

    my $hold = $proxy->hold("^POST /global/_bulk_get .*$alice");
    my $write = send_request($slow, 'POST', '/data/posts', token($alice),
                             { _id => 'doc', v => 2 });
    ok($proxy->wait_held($hold), 'the look-up in global fails');
    $proxy->answer($hold, 503, { error => 'x', reason => 'y' });

    my ($status, $data) = answer_of($write);
    is($status, 202, '… so the withdrawal is pending');
    is($data->{mirror}, 'pending', '… and says so');
    is($data->{global}, undef, '… and names no copy');
    is(stored(userdb($alice), 'doc')->{_rev}, $data->{rev}, '… but is stored');

    ($status, $data) = request($slow, 'POST', '/data/posts', token($alice),
                               { _id => 'doc', v => 3 });
    is($status, 201, 'the next write is mirrored');
    ok(copy_of($alice, 'doc')->{_deleted}, '… and takes the copy away');
    $slow->stop;
};


subtest 'global itself' => sub {
    my ($status, $data) = couch('GET', '/global/_security');
    is_deeply($data->{members}{roles}, ['_admin'], 'only admins are members');
    is_deeply($data->{admins}{roles}, ['_admin'], '… and its admins');
};


$nginx->stop;
$open->stop;

done_testing;
