# What comes past the module (a sync client, an admin, a writer that died) is
# set right in `global` within seconds, and what came while nginx was down when
# it is back.

use strict;
use warnings;

use JSON::PP;
use MIME::Base64 qw(encode_base64);
use Test::More;
use Vibe;
use Vibe::Couch;
use Vibe::Mend;

my $json = JSON::PP->new->utf8->canonical->allow_nonref;
my ($true, $false) = (JSON::PP::true, JSON::PP::false);
my ($run) = did('') =~ /^did:vibe:(\w+):/;
my $seed = $ENV{VIBE_SEED} || $$;

srand($seed);

# The embedded one opens each database that repair looks at: those that other
# tests left would count in what is timed here.
Vibe::Couch->start->make_default if $ENV{VIBE_EMBEDDED};
diag("seed $seed");

my ($bob, $carol) = map { did($_) } qw(bob carol);
my %public = (acl => { global => $true });
my %bobs = (acl => { read => { allow => [$bob] } });

my $nginx = repairing(workers => 2);

# The CouchDB may be full of what other tests left.
settled($nginx, 120);


# A user of a test's own: the DID and the database.

sub user {
    my ($name) = @_;

    my $did = did($name);
    return ($did, make_db($did));
}


# What a global query shows somebody of this run's documents with this mark.

sub seen_by {
    my ($did, $collection, $mark) = @_;

    my ($status, $data);

    # 503: an index is being built.
    wait_for {
        ($status, $data) = request($nginx, 'POST', "/data/$collection/query",
            token($did), { global => $true, limit => 1000,
                           mark => "$run $mark" });
        $status != 503;
    } patience(10);

    return "status $status" if $status != 200;
    return join(' ', sort map { $_->{_id} } @{ $data->{docs} });
}


# is_soon { ... } $what, $name: until the block returns what it should.

sub is_soon (&$$;$) {
    my ($get, $right, $name, $seconds) = @_;

    my $is;
    wait_for { ($is = $get->()) eq $right } patience($seconds // 5);
    return is($is, $right, $name);
}


# ---- a sync client ----------------------------------------------------------

my $alice = did('sync');
my $db = make_db($alice);
my $client = new_client();

# Of each kind of change a fifth: new or changed, public, for one, for nobody,
# deleted.

sub some_changes {
    my ($round) = @_;

    for my $n (1 .. 500) {
        my $kind = ($n + $round) % 5;

        change($client, "posts/$n", n => $n, round => $round,
               mark => "$run sync", createdAt => $round * 1000 + $n,
               $n % 3 ? (collection => 'posts') : (),
               $kind == 4 ? (_deleted => $true)
               : $kind == 3 ? (acl => { global => 'true' })
               : $kind == 2 ? %bobs : %public);
    }
}


subtest 'a sync client' => sub {
    for my $round (1 .. 3) {
        some_changes($round);
        replicate($client, $db);
        converges($db, $alice, 5, "500 changes, round $round", $nginx);
    }

    my @ids = map { gid($alice, "posts/$_") } grep { ($_ + 3) % 5 < 2 } 1 .. 500;
    is(seen_by($carol, 'posts', 'sync'), join(' ', sort @ids),
       'all see what is public, and no more');
    push @ids, map { gid($alice, "posts/$_") } grep { ($_ + 3) % 5 == 2 } 1 .. 500;
    is(seen_by($bob, 'posts', 'sync'), join(' ', sort @ids),
       'one sees what is for that one, too');
};


subtest 'a sync client while nginx is stopped' => sub {
    for my $round (4 .. 5) {
        $nginx->stop;
        some_changes($round);
        replicate($client, $db);

        $nginx = repairing(workers => 2);
        converges($db, $alice, 10, "500 changes, round $round", $nginx);
    }
};


subtest 'a sync client beside writes through the module' => sub {
    my $token = token($alice);
    my @bad;

    some_changes(6);
    replicate($client, $db);

    for my $n (1 .. 50) {
        my ($status) = request($nginx, 'POST', '/data/posts', $token,
            { _id => 'posts/' . int(1 + rand 500), n => $n, mark => 'module',
              rand(2) < 1 ? %public : () });
        push @bad, $status if $status !~ /^20[12]$/;

        if ($n % 10 == 0) {
            change($client, 'posts/' . int(1 + rand 500), n => $n,
                   rand(2) < 1 ? %public : ()) for 1 .. 20;
            replicate($client, $db);
        }
    }

    is_deeply(\@bad, [], 'writes are answered meanwhile');
    converges($db, $alice, 5, 'global is right', $nginx);
};


# ---- an admin, in a user's database -----------------------------------------

my $dora = did('admin');
my $own = make_db($dora);

# Each: what, what there was by the module, and what an admin makes of it.

my @edits = (
    ['made', undef, { v => 2, %public }],
    ['made for one', undef, { v => 2, %bobs }],
    ['made for nobody', undef, { v => 2 }],
    ['published', {}, { v => 2, %public }],
    ['published for one', {}, { v => 2, %bobs }],
    ['withdrawn', \%public, { v => 2 }],
    ['withdrawn by what is not understood', \%public,
        { v => 2, acl => { global => 1 } }],
    ['withdrawn from one', \%bobs, { v => 2 }],
    ['narrowed', \%public, { v => 2, %bobs }],
    ['widened', \%bobs, { v => 2, %public }],
    ['given to another', \%bobs,
        { v => 2, acl => { read => { allow => [$carol] } } }],
    ['given to all but one', \%public,
        { v => 2, acl => { global => $true, read => { deny => [$bob] } } }],
    ['changed', \%public, { v => 2, %public }],
    ['left alone', \%public, undef],
    ['deleted', \%public, { _deleted => $true }],
    ['deleted with its members', \%public,
        { _deleted => $true, v => 2, %public }],
    ['deleted, for one', \%bobs, { _deleted => $true }],
    ['deleted, for nobody', {}, { _deleted => $true }],
    ['given an attachment', \%public, { v => 2, %public, _attachments =>
        { a => { content_type => 'text/plain',
                 data => encode_base64('x', '') } } }],
    ['moved to another collection', \%public,
        { v => 2, collection => "other$run", %public }],
);

subtest 'edits in a user\'s database' => sub {
    my @ids;

    for my $i (0 .. $#edits) {
        my ($name, $before) = @{ $edits[$i] };
        next if !$before;

        my ($status) = request($nginx, 'POST', '/data/posts', token($dora),
            { _id => "doc$i", v => 1, mark => "$run admin", %$before });
        is($status, 201, "$name: there is a document");
    }

    for my $i (0 .. $#edits) {
        my ($name, undef, $after) = @{ $edits[$i] };

        edit($own, "doc$i", { collection => 'posts', mark => "$run admin",
                              %$after }) if $after;
    }

    converges($own, $dora, 5, 'global is right', $nginx);

    my $narrowed = gid($dora, 'doc8');
    unlike(seen_by($carol, 'posts', 'admin'), qr/\Q$narrowed\E\b/,
           'who may no longer sees nothing');
    like(seen_by($bob, 'posts', 'admin'), qr/\Q$narrowed\E\b/,
         'who still may sees it');
    is(seen_by($carol, "other$run", 'admin'), gid($dora, "doc$#edits"),
       'the other collection has it');

    # What was never to be read by others leaves no trace.
    for my $i (grep { my (undef, $b, $a) = @{ $edits[$_] };
                      !($b && %$b) && !($a && $a->{acl}) } 0 .. $#edits)
    {
        is(stored('global', gid($dora, "doc$i")), undef,
           "$edits[$i][0]: no trace in global");
    }

    # A tombstone says who could read, as if the module had written.
    for my $i (grep { $edits[$_][0] =~ /^(?:withdrawn|deleted)/
                      && %{ $edits[$_][1] } } 0 .. $#edits)
    {
        my $stone = stored('global', gid($dora, "doc$i")) // {};
        is_deeply($stone->{vibe_past},
                  $edits[$i][1]{acl}{global} ? ['*'] : [$bob],
                  "$edits[$i][0]: the tombstone says who could read");
        is_deeply([grep { !/^(?:_|vibe_|collection$)/ } keys %$stone], [],
                  '… and nothing of the document');
    }
};


subtest 'odd ids' => sub {
    my @ids = ('a:b', 'a%b', 'a%3Ab', "\x{e9}\x{1f600}", 'a b', 'a/b/c', '+&?#=',
               '"\\', 'x' x 900, ':', '%', '0');

    edit($own, $_, { collection => 'posts', id => $_, %public }) for @ids;
    edit($own, '_design/mine', { views => {}, collection => 'posts', %public });

    converges($own, $dora, 5, 'global is right', $nginx);
    is(stored('global', gid($dora, '_design/mine')), undef,
       'design documents are not mirrored');

    edit($own, $_, { collection => 'posts', id => $_ }) for @ids;
    converges($own, $dora, 5, '… and when they are withdrawn', $nginx);
};


subtest 'members of the module\'s own' => sub {
    my %mark = (collection => 'posts', mark => "$run forged");
    my %forged = (vibe_access => 'public', vibe_read => ['*'], vibe_v => 1,
                  vibe_rev => '9-f', vibe_owner => $carol, vibe_past => ['*']);

    edit($own, 'forged1', { %mark, %forged });
    edit($own, 'forged2', { %mark, %forged, %bobs });
    edit($own, 'forged3', { %bobs, %mark, %forged });
    edit($own, 'after-forged', { %mark, %public });

    is_soon { seen_by($carol, 'posts', 'forged') }
        gid($dora, 'after-forged'), 'a document cannot make itself readable';
    converges($own, $dora, 5, 'what else there is gets mirrored', $nginx);
};


# ---- an admin, in global ----------------------------------------------------

# Each: what, the access, and what an admin makes of the copy.

my $stranger = did('stranger');

sub with {
    my (%new) = @_;

    return sub { return { %{ $_[0] }, %new } };
}

my @meddling = (
    ['another member', \%public, with(v => 'edited')],
    ['another acl', \%public, with(acl => { global => $false })],
    ['an older revision', \%public,
        with(vibe_rev => '1-' . 'a' x 32, v => 'old')],
    ['a newer revision', \%public,
        with(vibe_rev => '9-' . 'a' x 32, v => 'new')],
    ['deleted', \%public, { _deleted => $true }],
    ['deleted with its members', \%public, with(_deleted => $true)],
    ['nothing of it left', \%public, { v => 'all gone but this' }],
    ['another database', \%public, with(vibe_db => userdb($bob))],
    ['another owner', \%public, with(vibe_owner => $stranger)],
    ['made public', \%bobs, with(vibe_access => 'public')],
    ['given to more', \%bobs, with(vibe_read => [$bob, $stranger])],
    ['given to all', \%bobs, with(vibe_read => ['*'], vibe_deny => [])],
    ['denied', \%bobs, with(vibe_deny => [$bob])],
    ['taken from the others', \%public, with(vibe_access => 'none')],
    ['another collection', \%public, with(collection => 'other')],
    ['by other rules', \%public, with(vibe_acl => 0)],
    ['a leaf that wins', \%public, [20, 'f']],
    ['a leaf that loses', \%bobs, [1, '0']],
    ['a leaf that wins, and ends', \%public, [30, 'e', _deleted => $true]],
);

subtest 'edits in global' => sub {
    my ($gina, $db) = user('meddle');

    my ($status) = request($nginx, 'POST', '/data/posts', token($gina), [
        map { { _id => "doc$_", v => 1, mark => "$run global",
                %{ $meddling[$_][1] } } } 0 .. $#meddling ]);
    is($status, 201, 'there are documents');
    converges($db, $gina, 5, '… and copies', $nginx);

    for my $i (0 .. $#meddling) {
        my ($name, $access, $new) = @{ $meddling[$i] };
        my $id = gid($gina, "doc$i");

        if (ref $new ne 'ARRAY') {
            edit('global', $id, $new);
            next;
        }

        my ($generation, $letter, @members) = @$new;
        leaf('global', $id, $generation, $letter, collection => 'posts',
             v => 'leaf', mark => "$run global", vibe_v => 1, vibe_acl => 1,
             vibe_access => 'public', vibe_rev => '1-' . 'b' x 32,
             vibe_owner => $gina, vibe_db => $db, @members);
    }

    # One by one, so that it is told which are not.
    my %wrong;
    wait_for {
        %wrong = map { $_->{id} => $_ } differences($db, $gina);
        !%wrong;
    } patience(5);

    for my $i (0 .. $#meddling) {
        my $w = $wrong{"doc$i"};
        ok(!$w, "$meddling[$i][0]: set right")
            or diag("$w->{why}: " . $json->encode($w->{copy} // 'no copy'));
    }

    is(seen_by($stranger, 'posts', 'global'),
       join(' ', sort map { gid($gina, "doc$_") }
                 grep { $meddling[$_][1]{acl}{global} } 0 .. $#meddling),
       'a stranger sees what is public, and nothing else');
};


subtest 'what is not a copy of anything' => sub {
    my ($hugo, $db) = user('foreign');
    my %copy = (vibe_v => 1, vibe_acl => 1, vibe_access => 'public',
                collection => 'posts', mark => "$run foreign");
    my ($hidden) = (edit($db, 'hidden', { collection => 'posts' }));
    my %foreign = (
        "foreign-$run" => {},
        "foreign-$run:x" => { %copy },
        gid($hugo, 'never-was') => { %copy, vibe_owner => $hugo,
            vibe_db => $db, vibe_rev => '1-' . 'a' x 32 },
        gid($hugo, 'hidden') => { %copy, vibe_owner => $hugo,
            vibe_db => $db, vibe_rev => $hidden },
        # of a database that does not exist
        gid(did('nobody'), 'x') => { %copy, vibe_owner => did('nobody'),
            vibe_db => userdb(did('nobody')), vibe_rev => '1-' . 'a' x 32 },
        # of a document of somebody's, in another's name
        gid($carol, 'hidden') => { %copy, vibe_owner => $carol,
            vibe_db => $db, vibe_rev => '1-' . 'a' x 32 },
        gid($hugo, 'no-such-db') => { %copy, vibe_owner => $hugo,
            vibe_db => 'userdb-no/such', vibe_rev => '1-' . 'a' x 32 },
        gid($hugo, 'odd-members') => { %copy, vibe_owner => 1, vibe_db => [],
            vibe_rev => {} },
    );

    edit('global', $_, $foreign{$_}) for sort keys %foreign;

    for my $id (sort keys %foreign) {
        my $what = $id =~ s/\Q$run\E/RUN/gr;
        is_soon {
            my $doc = stored('global', $id);
            $doc && !$doc->{_deleted} ? 'there' : 'gone';
        } 'gone', "$what is removed";
    }
    is(seen_by(did('stranger'), 'posts', 'foreign'), '', 'nobody sees any');
    converges($db, $hugo, 5, 'what belongs there stays', $nginx);

    # The indexes are documents of global, too.
    my ($status, $data) = request($nginx, 'POST', '/data/posts/query',
        token($bob), { global => $true, sort => [{ createdAt => 'desc' }],
                       limit => 1 });
    is($status, 200, 'indexes stay');
};


# What a writer that claimed a place and died has left there.

subtest 'stubs of dead writers' => sub {
    my ($ida, $db) = user('stubs');
    my %stub = (vibe_v => 1, vibe_db => $db, vibe_access => 'none');

    edit($db, "stub-$_", { collection => 'posts', $_ eq 'public' ? %public : () })
        for qw(public private);
    edit($db, 'stub-again', { collection => 'posts', %public });
    converges($db, $ida, 5, 'there are documents', $nginx);
    edit($db, 'stub-again', { _deleted => $true });
    converges($db, $ida, 5, '… and one that is withdrawn', $nginx);

    for my $id (qw(stub-public stub-private stub-again stub-of-nothing)) {
        edit('global', gid($ida, $id), { %stub,
             $id eq 'stub-again' ? (vibe_past => ['*']) : () });
    }

    # A stub may be that of a writer who is only slow.
    converges($db, $ida, 15, 'they are gone', $nginx);
};


subtest 'a copy of a format to come' => sub {
    my ($jim, $db) = user('format');

    edit($db, 'format', { collection => 'posts', v => 1, %public });
    edit($db, 'beside', { collection => 'posts', v => 1, %public });
    converges($db, $jim, 5, 'there is a copy', $nginx);

    my $rev = edit('global', gid($jim, 'format'),
                   with(vibe_v => 2, v => 'of the future'));
    # It stays when its document changes, too.
    edit($db, 'format', { collection => 'posts', v => 2, %public });
    edit($db, 'after-format', { collection => 'posts', %public });
    edit('global', gid($jim, 'beside'), { v => 'edited' });

    my @left;
    wait_for {
        @left = grep { $_->{id} ne 'format' } differences($db, $jim);
        !@left;
    } patience(5);
    is_deeply([map { "$_->{id}: $_->{why}" } @left], [], 'all else is mended');
    is(stored('global', gid($jim, 'format'))->{_rev}, $rev,
       '… and that copy is left alone');

    my $logged = wait_for {
        $nginx->log =~ /\[error\][^\n]*format of a newer version/
    } patience(5);
    ok($logged, '… with an error in the log');

    # Gone before other tests look at what is here.
    my ($status) = couch('POST', '/global/_bulk_docs', { docs => [
        { _id => gid($jim, 'format'), _rev => $rev, _deleted => $true }] });
    is($status, 201, 'an admin removes it');
    converges($db, $jim, 5, '… and all is right', $nginx);
};


# ---- documents of no collection, databases of nobody ------------------------

subtest 'documents without a collection' => sub {
    my ($kim, $db) = user('uncollected');
    my $before = status($nginx)->{uncollected_docs} // 0;
    my $notes = "notes$run";

    edit($db, 'uncollected', { mark => "$run notes", %public });
    edit($db, "$notes/1", { mark => "$run notes", %public });
    edit($db, '/1', { mark => "$run notes", %public });

    converges($db, $kim, 5, 'global is right', $nginx);
    is(stored('global', gid($kim, 'uncollected')), undef,
       'one without is not mirrored');
    is(seen_by($carol, $notes, 'notes'), gid($kim, "$notes/1"),
       'what its id names counts');
    is_soon {
        (status($nginx)->{uncollected_docs} // 0) > $before ? 'more' : 'none'
    } 'more', 'they are counted';
};


subtest 'a database whose owner is not known' => sub {
    my $erin = did('adopted');
    my $name = "userdb-adopt-$run";
    my $before = status($nginx)->{repair}{unowned} // 0;

    my ($status) = couch('PUT', "/$name?q=1");
    is($status, 201, 'there is a database');
    edit($name, 'doc', { collection => 'posts', mark => "$run owner", %public });

    # A pass over all databases counts, as at each start.
    $nginx->stop;
    $nginx = repairing(workers => 2);
    is_soon {
        (status($nginx)->{repair}{unowned} // 0) > $before ? 'more' : 'none'
    } 'more', 'it is counted', 20;
    is(seen_by($carol, 'posts', 'owner'), '', '… and not mirrored');

    adopt($name => $erin);
    converges($name, $erin, 10, 'when it has one it is mirrored', $nginx);

    edit($name, 'doc2', { collection => 'posts', mark => "$run owner", %bobs });
    converges($name, $erin, 5, '… and followed', $nginx);
};


subtest 'a database that an instanceId names' => sub {
    my $frank = did('instance');
    my $name = "userdb-i-$run";

    my ($status) = request($nginx, 'POST', '/data/posts',
        token($frank, instanceId => "i-$run"), { _id => 'doc', v => 1, %public });
    is($status, 201, 'it has a document');

    edit($name, 'doc', { collection => 'posts', v => 2, %public });
    edit($name, 'doc2', { collection => 'posts', v => 2, %bobs });
    converges($name, $frank, 5, 'what comes past the module is mirrored', $nginx);

    $nginx->stop;
    edit($name, 'doc', { collection => 'posts', v => 3 });
    edit($name, 'doc3', { collection => 'posts', v => 3, %public });
    $nginx = repairing(workers => 2);
    converges($name, $frank, 10, '… also what came while nginx was stopped',
              $nginx);
};


subtest 'a database that is deleted' => sub {
    my @owners = map { did("gone$_") } 1 .. 4;
    my @all = map { [make_db($_), $_] } @owners[0, 1];

    # Of these the name does not say whose they were.
    for my $i (2, 3) {
        my $name = "gone$i-$run";
        my ($status) = request($nginx, 'POST', '/data/posts',
            token($owners[$i], instanceId => $name), { _id => 'doc', %public });
        is($status, 201, 'a database that an instanceId names');
        push @all, ["userdb-$name", $owners[$i]];
    }

    for my $one (@all) {
        edit($one->[0], "doc$_", { collection => 'posts', $_ % 2 ? %public : %bobs })
            for 1 .. 20;
    }
    converges(\@all, undef, 5, 'there are databases', $nginx);

    my @kind = ('', '', ', named by an instanceId', ', named by an instanceId');

    for my $i (0, 2) {
        my ($status) = couch('DELETE', "/$all[$i][0]");
        is($status, 200, "one is deleted$kind[$i]");

        # Whose it was only `global` can tell, all of which is looked through.
        converges(@{ $all[$i] }, $kind[$i] ? 30 : 5,
                  '… and its copies leave global', $nginx);
    }

    $nginx->stop;
    for my $i (1, 3) {
        my ($status) = couch('DELETE', "/$all[$i][0]");
        is($status, 200, "one is deleted while nginx is stopped$kind[$i]");
    }
    $nginx = repairing(workers => 2);
    converges(@{ $all[$_] }, 10, "its copies leave global, too$kind[$_]", $nginx)
        for 1, 3;
};


subtest 'in the end' => sub {
    converges([[$db, $alice], [$own, $dora]], undef, 5, 'all is right', $nginx);
    verify($db, $own);

    # Checkpoints are written some seconds later.
    settled($nginx, 20);
    my $repair = status($nginx)->{repair} // {};
    is($repair->{lag_seconds}, 0, 'there is nothing left to look at');
    cmp_ok($repair->{checked} // 0, '>', 0, 'status says what was checked');
};


$nginx->stop;

done_testing;
