# A client that goes away while CouchDB works does not keep a write that has
# begun from being mirrored.

use strict;
use warnings;

use JSON::PP;
use POSIX ();
use Socket qw(SOL_SOCKET SO_LINGER);
use Test::More;
use Time::HiRes qw(sleep time);
use Vibe;
use Vibe::Faults;
use Vibe::Raw;

my $json = JSON::PP->new->utf8->canonical->allow_nonref;
my ($true, $false) = (JSON::PP::true, JSON::PP::false);

my $run = sprintf('%x%04x', time, $$ & 65535);
my $posts = "posts$run";
my $alice = did('alice');
my $token = token($alice);
my $own = userdb($alice);

my $couch = faulty();
my %nginx = map { $_ => nginx_start(
    http => http_config(couchdb => $couch->{url}),
    listen => $_ eq 'HTTP/2' ? 'http2' : '') } 'HTTP/1.1', 'HTTP/2';


# The winner of a document here and there; undef where it is not or deleted.

sub found {
    my ($db, $id) = @_;

    my ($status, $answer) = couch('POST', "/$db/_bulk_get",
                                  { docs => [{ id => $id }] });
    my $doc = ref $answer && $answer->{results}[0]{docs}[0]{ok};
    return $doc && !$doc->{_deleted} ? $doc : undef;
}


sub source { return found($own, $_[0]) }

sub copy {
    my $doc = found('global', gid($alice, $_[0]));

    # Without a vibe_rev it only holds the place for one.
    return $doc && $doc->{vibe_rev} ? $doc : undef;
}


# Whether nginx's side of all connections of clients has heard the end: none is
# established any more.

sub heard_the_end {
    my ($nginx) = @_;

    my $port = sprintf('%04X', $nginx->port);

    return wait_for {
        !grep { /^\s*\d+: 0100007F:$port [0-9A-F:]+ 01 /i }
              split /\n/, Vibe::read_file('/proc/net/tcp');
    };
}


# Sends a write over ... and does not wait; returns what ends the client.

my %client = (
    'closes' => ['HTTP/1.1', sub {
        my ($nginx, $body) = @_;
        my $c = dial($nginx);
        say_to($c, post_text("/data/$posts", $token, $body));
        return sub { close $c->{socket} };
    }],
    'resets' => ['HTTP/1.1', sub {
        my ($nginx, $body) = @_;
        my $c = dial($nginx);
        say_to($c, post_text("/data/$posts", $token, $body));
        return sub {
            setsockopt($c->{socket}, SOL_SOCKET, SO_LINGER, pack('ii', 1, 0));
            close $c->{socket};
        };
    }],
    'says no more' => ['HTTP/1.1', sub {
        my ($nginx, $body) = @_;
        my $c = dial($nginx);
        say_to($c, post_text("/data/$posts", $token, $body));
        return sub { shutdown($c->{socket}, 1); $c };
    }],
    'is killed' => ['HTTP/2', \&curl],
    'gives up' => ['HTTP/2', sub { return curl(@_, 'INT') }],
);


sub curl {
    my ($nginx, $body, $signal) = @_;

    my $file = write_file($body);
    my $config = write_file("header = \"Authorization: Bearer $token\"\n"
                            . "header = \"Content-Type: application/json\"\n");
    my $pid = fork // die "fork: $!\n";

    if (!$pid) {
        open(STDOUT, '>', '/dev/null');
        exec('curl', '-s', '--http2-prior-knowledge', '-K', $config,
             '--data-binary', "\@$file",
             'http://127.0.0.1:' . $nginx->port . "/data/$posts")
            or POSIX::_exit(1);
    }

    return sub { kill($signal // 'KILL', $pid); waitpid($pid, 0); };
}


my $n = 0;

for my $how (sort keys %client) {
    my ($protocol, $send) = @{ $client{$how} };
    my $nginx = $nginx{$protocol};

    subtest "$protocol, the client $how" => sub {
        for (['the first write', qr{^/$own/_bulk_docs}],
             ['the look-up in global', qr{^/global/_bulk_get}],
             ['the write to global', qr{^/global/_bulk_docs}])
        {
            my ($when, $step) = @$_;
            my @ids = map { "$posts/c$n-$_" } 1 .. 3;
            $n++;

            # A new document, a new version, an array.
            my ($status, $rev);

            fault($couch, path => $step, times => 1, hold => 1);
            my $end = $send->($nginx, $json->encode(
                { _id => $ids[0], v => 1, acl => { global => $true } }));
            ok(wait_hit($couch), "new: CouchDB is at $when");
            my $keep = $end->();
            ok($how eq 'says no more' || heard_the_end($nginx),
               "new: nginx could know") ;
            release($couch);

            ok(wait_for { copy($ids[0]) }, "new: mirrored, left at $when");
            is((copy($ids[0]) // {})->{vibe_rev},
               (source($ids[0]) // {})->{_rev}, 'new: what was written');
            undef $keep;

            # Withdrawn.
            fault($couch, path => $step, times => 1, hold => 1);
            $end = $send->($nginx, $json->encode(
                { _id => $ids[0], v => 2 }));
            ok(wait_hit($couch), "withdrawn: CouchDB is at $when");
            $keep = $end->();
            release($couch);

            ok(wait_for { !copy($ids[0]) },
               "withdrawn: gone from global, left at $when");
            is((source($ids[0]) // {})->{v}, 2, 'withdrawn: written');
            undef $keep;

            # Many.
            fault($couch, path => $step, times => 1, hold => 1);
            $end = $send->($nginx, $json->encode(
                [map { { _id => $_, v => 3, acl => { global => $true } } }
                     @ids]));
            ok(wait_hit($couch), "many: CouchDB is at $when");
            $keep = $end->();
            release($couch);

            ok(wait_for { 3 == grep { (copy($_) // {})->{v} // '' eq 3 } @ids },
               "many: all are mirrored, left at $when");
            undef $keep;
        }

        # Before the first write: written and mirrored, or neither.
        my $id = "$posts/b$n";

        fault($couch, path => qr{^/$own/_bulk_get}, times => 1, hold => 1);
        my $end = $send->($nginx, $json->encode(
            { _id => $id, acl => { global => $true } }));
        ok(wait_hit($couch), 'CouchDB has not begun');
        my $keep = $end->();
        release($couch);
        heal($couch);

        # The next one on the same worker comes after it.
        my $next = $send->($nginx, $json->encode(
            { _id => "$id-next", acl => { global => $true } }));
        ok(wait_for { copy("$id-next") }, 'nginx goes on');
        $next->();

        wait_for { !source($id) == !copy($id) };
        is(!!copy($id), !!source($id), 'both or none');

        # A query that nobody waits for any more.
        fault($couch, path => qr{^/$own/_find}, times => 1, hold => 1);
        if ($protocol eq 'HTTP/1.1') {
            my $c = dial($nginx);
            say_to($c, post_text("/data/$posts/query", $token, '{}'));
            ok(wait_hit($couch), 'a query has begun');
            close $c->{socket};
        }
        release($couch);
        heal($couch);
    };
}


subtest 'some streams of a connection end, others do not' => sub {
    my $nginx = $nginx{'HTTP/2'};

    fault($couch, path => qr{^/$own/_bulk_docs}, times => 1, hold => 1);

    my @end = map { curl($nginx, $json->encode(
        { _id => "$posts/t$_", acl => { global => $true } })) } 1 .. 5;

    ok(wait_hit($couch), 'CouchDB has begun with one of them');
    $_->() for @end[0 .. 3];
    release($couch);
    heal($couch);

    ok(wait_for { copy("$posts/t5") }, 'the one that stays is mirrored');

    wait_for { !grep { !source("$posts/t$_") != !copy("$posts/t$_") } 1 .. 5 };
    for (1 .. 5) {
        is(!!copy("$posts/t$_"), !!source("$posts/t$_"), "$_: both or none");
    }
    $end[4]->();
};


# A reload waits for it, and so does an end with QUIT.

subtest 'nginx is told to quit meanwhile' => sub {
    my $nginx = $nginx{'HTTP/1.1'};
    my $id = "$posts/quit";

    fault($couch, path => qr{^/global/_bulk_docs}, times => 1, hold => 1);
    my $end = $client{closes}[1]->($nginx, $json->encode(
        { _id => $id, acl => { global => $true } }));
    ok(wait_hit($couch), 'CouchDB has begun');
    $end->();
    ok(heard_the_end($nginx), 'nobody waits');
    $nginx->signal('QUIT');
    wait_for { $nginx->log =~ /gracefully shutting down/ };
    release($couch);

    $nginx->stop;
    ok(copy($id), 'it was mirrored before nginx ended');
};


$nginx{'HTTP/2'}->stop;

done_testing();
