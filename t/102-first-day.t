# A platform that has databases already gets the module: all that others may
# read gets into `global`, once, also if nginx is killed meanwhile; and when
# `global` is lost it is made again, and nobody is told half of it.
#
# The short form has 300 databases; VIBE_LONG=1 has 2,000.

use strict;
use warnings;

use HTTP::Tiny;
use JSON::PP;
use MIME::Base64 qw(encode_base64);
use POSIX ();
use Test::More;
use Time::HiRes qw(sleep time);
use Vibe;
use Vibe::Couch;
use Vibe::Mend;
use Vibe::Tap;

my $json = JSON::PP->new->utf8->canonical->allow_nonref;
my $true = JSON::PP::true;
my $databases = $ENV{VIBE_LONG} ? 2000 : $ENV{VIBE_SHORT} ? 150 : 300;
my $each = 20;
my $long = $databases / 20;     # seconds for a whole pass

diag("$databases databases of $each documents");

my $couch = Vibe::Couch->start;
$couch->make_default;
my $bob = did('bob');

# Of the documents of a database: public, for one, for nobody.
my ($public, $some) = (8, 6);

my %owner;

for my $n (1 .. $databases) {
    my $did = did("u$n");
    $owner{ $n % 2 ? userdb($did) : "userdb-n$n" } = $did;
}


# Several processes fill them; $work->($ask, @names) for a part each.

sub in_parts {
    my ($parts, $work, @names) = @_;

    my ($url, $auth) = Vibe::couchdb();
    my (@pids, @bad);

    for my $part (0 .. $parts - 1) {
        my $pid = fork() // die "fork: $!\n";

        if ($pid == 0) {
            my $http = HTTP::Tiny->new(timeout => 60, keep_alive => 0);
            my $ask = sub {
                my ($method, $path, $body) = @_;
                my $res = $http->request($method, $url . $path, {
                    headers => { 'Content-Type' => 'application/json',
                                 Authorization => 'Basic '
                                     . encode_base64($auth, '') },
                    defined $body ? (content => $json->encode($body)) : () });
                die "$method $path: $res->{status}\n" if !$res->{success};
            };
            my $ok = eval {
                $work->($ask, map { $names[$_] }
                        grep { $_ % $parts == $part } 0 .. $#names);
                1;
            };
            warn $@ if !$ok;
            # Not through END blocks: those are the parent's.
            POSIX::_exit($ok ? 0 : 1);
        }

        push @pids, $pid;
    }

    for my $pid (@pids) {
        waitpid($pid, 0);
        push @bad, $pid if $?;
    }

    return !@bad;
}


my $begin = time;
my $filled = in_parts(12, sub {
    my ($ask, @names) = @_;

    for my $name (@names) {
        $ask->('PUT', "/$name?q=1");
        $ask->('POST', "/$name/_bulk_docs", { docs => [map {
            my $doc = { _id => "doc$_", collection => 'posts', n => $_,
                        createdAt => $_ };
            $doc->{acl} = { global => $true } if $_ <= $public;
            $doc->{acl} = { read => { allow => [$bob] } }
                if $_ > $public && $_ <= $public + $some;
            # What is asked for below: one in a tenth of the databases.
            $doc->{mark} = 'one' if $_ == 1 && ord(substr($name, -1)) % 8 == 1;
            $doc;
        } 1 .. $each] });
    }
}, sort keys %owner);
ok($filled, sprintf('there are databases (%.0f s)', time - $begin));

my $marked = grep { ord(substr($_, -1)) % 8 == 1 } keys %owner;
my $copies = $databases * ($public + $some);

adopt(map { $_ => $owner{$_} } grep { /^userdb-n/ } keys %owner);


# The rows of `global`, each as the text that it is.

sub rows {
    my ($query) = @_;

    my ($url, $auth) = Vibe::couchdb();
    my $res = HTTP::Tiny->new(timeout => 60)->request('GET',
        "$url/global/_all_docs?startkey=%22did:%22&endkey=%22did;%22$query",
        { headers => { Authorization => 'Basic ' . encode_base64($auth, '') } });

    return grep { /^\{"id":"did:/ }
           split /(?=\{"id":"did:[^"]*","key":)/, $res->{content};
}


# The id and the revision of all that is there.

sub in_global {
    return map { /^\{"id":"([^"]+)".*?"rev":"([^"]+)"/ ? ($1 => $2) : () }
           rows('');
}


sub stubs {
    return map { /"vibe_access":"none"/ && /^\{"id":"([^"]+)"/ ? ($1 => 1) : () }
           rows('&include_docs=true');
}


sub checkpoints {
    my $found = write_file('');

    in_parts(12, sub {
        my ($ask, @names) = @_;

        for my $name (@names) {
            next if !eval { $ask->('GET', "/$name/_local/vibe_repair"); 1 };
            open(my $fh, '>>', $found) or die "$found: $!\n";
            syswrite($fh, "$name\n");
        }
    }, keys %owner);

    return { map { $_ => 1 } split /\n/, read_file($found) };
}


my $nginx;


sub repair { return status($_[0])->{repair} // {} }

# gone_through($nginx): that a pass has seen all databases, and that there is
# nothing more to do.

sub gone_through {
    my $all = wait_for {
        my $r = repair($nginx);
        ($r->{databases} // 0) >= $databases
            && $r->{databases_done} >= $r->{databases};
    } patience($long + 10);

    ok($all, 'all databases are gone through')
        or diag($json->encode(status($nginx)));
    return $all && settled($nginx, 30);
}


# What a stranger sees of what is marked: 'status count'.

sub asked_for {
    my ($nginx) = @_;

    my ($status, $data, $header) = request($nginx, 'POST',
        '/data/posts/query', token(did('stranger')),
        { global => $true, mark => 'one', limit => 1000,
          sort => [{ createdAt => 'desc' }] });
    return $status if $status != 200;
    return "200 " . @{ $data->{docs} };
}


# An index may still be being built.

sub is_answered {
    my $answer;

    wait_for { ($answer = asked_for($nginx)) ne '503' } patience(20);
    return is($answer, "200 $marked", 'a query is answered');
}


# One at a time, also where a test gave up.

sub start {
    my ($directives, %opt) = @_;

    kill_nginx($nginx) if $nginx;
    $nginx = repairing(workers => 2, %opt,
                       directives => $directives);
}


subtest 'killed half-way through' => sub {
    my $tap = Vibe::Tap->start;
    my (%seen, @done);

    start('', tap => $tap);

    my $half = wait_for {
        my $r = repair($nginx);
        push @done, $r->{databases_done}
            if defined $r->{databases_done}
               && (!@done || $r->{databases_done} != $done[-1]);
        $seen{ $r->{databases} // '' } = 1;
        ($r->{databases_done} // 0) >= $databases / 2;
    } patience($long + 10);
    my $complete = (status($nginx)->{global} // {})->{complete};
    my $answer = asked_for($nginx);

    kill_nginx($nginx);

    ok($half, 'half of the databases are done') or return;
    ok($seen{$databases}, 'status says how many there are')
        or diag(join(' ', keys %seen));
    is_deeply(\@done, [sort { $a <=> $b } @done], '… and how many are done');
    cmp_ok(scalar @done, '>', 5, '… as it goes on');
    ok(!$complete, '… and that global is not complete');
    like($answer, qr/^503/, 'nobody is told half of it')
        or diag("$answer of $marked");

    my $before = checkpoints();
    my %there = in_global();
    my %stub = stubs();

    cmp_ok(scalar keys %$before, '<', $databases, 'it was not at the end');
    cmp_ok(scalar keys %$before, '>', $databases / 4, 'it has checkpoints');

    $tap->asked;
    start('', tap => $tap);

    gone_through() or return;
    is(repair($nginx)->{databases_done}, $databases, 'all are done');
    is_answered();

    my %now = in_global();
    is(scalar keys %now, $copies, 'all copies are there');

    my @again = grep { ($now{$_} // '') ne $there{$_} && !$stub{$_} }
                keys %there;
    is(scalar @again, 0, 'what was there is not written again')
        or diag(join("\n", map { "$_ $there{$_} " . ($now{$_} // 'gone') }
                           @again[0 .. ($#again > 4 ? 4 : $#again)]));

    my %generation;
    $generation{ /^(\d+)-/ ? $1 : '' }++ for values %now;
    my ($usual) = sort { $generation{$b} <=> $generation{$a} } keys %generation;
    cmp_ok($usual, '<=', 2, 'a copy takes no more than two writes');
    cmp_ok($copies - $generation{$usual}, '<=', keys %stub,
           'each has been written once') or diag(explain(\%generation));
    diag(keys(%there) . ' copies were there, ' . keys(%stub)
         . ' of them stubs; generations: ' . $json->encode(\%generation));

    # Who was done is not looked through again.
    my %anew;
    $anew{$_}++ for map { m{^/(userdb-[^/?]+)/_changes\?.*\bsince=0\b} }
                    map { $_->{path} } $tap->asked;
    is(scalar(grep { $anew{$_} } keys %$before), 0,
       'what was done is not looked through again');
    cmp_ok(scalar keys %anew, '>', 0, '… but the others are');
    $nginx->stop;
};


subtest 'started again when all is done' => sub {
    my $tap = Vibe::Tap->start;
    my %there = in_global();
    my $before = checkpoints();
    is(scalar keys %$before, $databases, 'each database has a checkpoint');

    start('', tap => $tap);
    gone_through() or return;

    is_deeply({ in_global() }, \%there, 'no copy is written again');
    my @anew = grep { m{^/userdb-[^/]+/_changes\?.*\bsince=0\b} }
               map { $_->{path} } $tap->asked;
    is(scalar @anew, 0, 'no database is looked through again');
    is_answered();
    $nginx->stop;
};


subtest 'global is deleted' => sub {
    start('');
    gone_through() or return;

    my $dora = did('writer');
    my (%answers, @written, @order);

    my ($status) = couch('DELETE', '/global');
    is($status, 200, 'global is deleted');

    my $end = time + patience($long + 20);
    my ($n, $back) = (0, 0);

    while (time < $end && $back < 3) {
        my $answer = asked_for($nginx);
        $answers{$answer}++;
        push @order, $answer if !@order || $order[-1] ne $answer;
        $back = $answer eq "200 $marked" ? $back + 1 : 0;

        my ($status, $data) = request($nginx, 'POST', '/data/posts',
            token($dora), { _id => 'doc' . ++$n, v => $n,
                            acl => { global => $true } });
        push @written, $status;
        sleep 0.1;
    }

    diag('answers to queries: ' . join(', ', @order));
    is($order[-1], "200 $marked", 'global is back');
    is_deeply([grep { $_ ne '503' && $_ ne "200 $marked" } sort keys %answers],
              [], 'meanwhile there is 503, and never half an answer');
    ok($answers{503}, '… and there was');
    ok(!grep({ $_ != 201 && $_ != 202 } @written),
       'writes are answered meanwhile') or diag(join(' ', @written));

    gone_through() or return;
    is(scalar(keys %{{ in_global() }}), $copies + $n, 'all copies are back');
    converges(userdb($dora), $dora, 5, '… also of what was written meanwhile',
              $nginx);

    my ($found, $data) = couch('GET', '/global/_index');
    cmp_ok(scalar @{ $data->{indexes} // [] }, '>', 1, 'indexes, too');
    ($found, $data) = couch('GET', '/global/_security');
    is_deeply($data->{members}{roles}, ['_admin'], '… and its _security');
    verify();
    $nginx->stop;
};


subtest 'no _db_updates' => sub {
    my $tap = Vibe::Tap->start;
    my ($one) = grep { /^userdb-n/ } sort keys %owner;
    my ($two) = grep { !/^userdb-n/ } sort keys %owner;
    my $new = did('new');

    $tap->refuse('^GET /_db_updates', 404,
        { error => 'not_found', reason => 'Database does not exist.' });
    start('vibe_scan_rate 200;', tap => $tap);
    gone_through() or return;

    # The first pass looks through `global`, too.
    my $swept = wait_for { repair($nginx)->{sweeps} } patience($long * 2 + 30);
    ok($swept, 'the first pass ends');

    my $pass = $databases / 200 + 5;

    for my $round (1 .. 2) {
        edit($_, 'doc1', { collection => 'posts', v => "round $round",
                           $round == 1 ? () : (acl => { global => $true }) })
            for $one, $two;
        converges([[$one, $owner{$one}], [$two, $owner{$two}]], undef, $pass,
                  "it scans: changes $round", $nginx);
    }

    my $db = make_db($new);
    edit($db, 'doc', { collection => 'posts', acl => { global => $true } });
    converges($db, $new, $pass, 'a new database is found', $nginx);
    my ($status) = couch('DELETE', "/$db");
    converges($db, $new, $pass, '… and that it is gone', $nginx);

    my @warnings = grep { /_global_changes/ } split /\n/, $nginx->log;
    is(scalar @warnings, 1, 'the log says so once') or diag(@warnings);
    like($warnings[0] // '', qr/\[warn\].*_db_updates.*_global_changes/,
         '… and what to make');

    # _db_updates comes to be: it is used without a restart, or not; either
    # way all goes on.
    $tap->refuse;
    edit($one, 'doc1', { collection => 'posts', v => 'last' });
    converges($one, $owner{$one}, $pass, 'and when there is one, all goes on',
              $nginx);
    $nginx->stop;
};


# It may be told ready by what it said before.

sub back_again {
    my ($name) = @_;

    my $back = $couch->again && wait_for { (couch('GET', '/_up'))[0] == 200 };
    return ok($back, $name);
}


# A database's files are put back, with the module's checkpoint in them: it says
# that all up to the old state is done, and that state is the newest again.

subtest 'files are put back' => sub {
    my $erin = did('files');
    my $db = make_db($erin);
    my %public = (collection => 'posts', acl => { global => $true });

    start('vibe_sweep 3s;');
    edit($db, "doc$_", { %public, v => 'old' }) for 1 .. 10;
    converges($db, $erin, 5, 'there is a database', $nginx);
    gone_through() or return;
    my $checkpoint = wait_for {
        (couch('GET', "/$db/_local/vibe_repair"))[0] == 200;
    } patience(5);
    ok($checkpoint, '… with a checkpoint');

    my $directory = ($couch->{dir} // '') . '/databases';
    my $backup = write_file('') . '.d';

    $couch->kill;
    system("cp -a '$directory'/$db~* '$backup'") == 0
        or return fail('copying files');
    back_again('its files are copied');

    edit($db, "doc$_", { %public, v => 'new' }) for 1 .. 5;
    edit($db, "doc$_", { collection => 'posts' }) for 6 .. 8;
    edit($db, "later$_", { %public, v => 'new' }) for 1 .. 5;
    converges($db, $erin, 20, 'it changes', $nginx);

    $couch->kill;
    system("rm -rf '$directory'/$db~*/* && cp -a '$backup'/* "
           . "'$directory'/$db~*/") == 0 or return fail('putting files back');
    back_again('they are put back');
    is((stored($db, 'doc1') // {})->{v}, 'old', '… and what they hold');
    converges($db, $erin, $long + 20, 'the old state counts', $nginx);
    $nginx->stop;
};


done_testing;
