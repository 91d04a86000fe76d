# Reads from a feed while its runs go on: each answer is the content of one run,
# less what was withdrawn since, sorted and complete; what is withdrawn or
# deleted is soon in no answer.
#
# Before each run all documents are given a new generation, and one document is
# added.  So an answer with two generations is of no run, and what it lacks of
# its generation must have been withdrawn.
#
# 20 runs and 2,000 reads by 16 clients; with VIBE_LONG=1 50 and 10,000, with
# VIBE_SHORT=1 8 and 500.

use strict;
use warnings;

use HTTP::Tiny;
use JSON::PP;
use POSIX ();
use Test::More;
use Time::HiRes qw(sleep time);
use Vibe;
use Vibe::Couch;
use Vibe::Feeds;
use Vibe::Race qw(send_request answer_of);

my $json = JSON::PP->new->utf8->canonical->allow_nonref;
my $true = JSON::PP::true;

my $runs = $ENV{VIBE_LONG} ? 50 : $ENV{VIBE_SHORT} ? 8 : 20;
my $reads = $ENV{VIBE_LONG} ? 10_000 : $ENV{VIBE_SHORT} ? 500 : 2_000;
my $clients = 16;
my $page = 30;
my $feed = '_global_posts';

# Seconds until what is withdrawn is in no answer.
my $soon = patience(2);

my $couch = Vibe::Couch->start;
$couch->make_default;

my $file = registry(posts_feed(fields => ['_id', 'n', 'gen', 'rank'],
                               sort => [{ rank => 'desc' }]));
my $nginx = feeding($file, workers => 2, data => 'vibe_global_reads registered;'
                                               . ' vibe_max_limit 2000;');


# ---- what is written ------------------------------------------------------------

my @users = map { { did => did("u$_"), token => token(did("u$_")) } } 1 .. 10;

# Each { user, born, out, gone }: its first generation; when its withdrawal was
# sent, and when that was acknowledged.
my @docs;
my $gen = 0;


sub add {
    my ($n) = @_;

    push @docs, map { { user => $users[(@docs + $_) % @users],
                        born => $gen } } 1 .. $n;
    return;
}


sub body {
    my ($n) = @_;

    return { _id => "posts/$n", type => 'post', n => $n, gen => $gen,
             rank => ($n * 37 + $gen * 101) % 211, acl => { global => $true } };
}


# write_all(): all documents that are not withdrawn, in the newest generation.

sub write_all {
    my %of;

    for my $n (grep { !$docs[$_]{out} } 0 .. $#docs) {
        push @{ $of{ $docs[$n]{user}{did} } }, body($n);
    }

    for my $user (@users) {
        my ($status, $rows) = request($nginx, 'POST', '/data/posts',
                                      $user->{token}, $of{ $user->{did} });
        my @bad = grep { !$_->{global} || $_->{mirror} }
                       $status == 201 ? @$rows : {};

        fail("generation $gen: $status") && diag($json->encode($rows)) if @bad;
    }

    return;
}


# withdraw(): some document, by its ACL or by deleting it.

sub withdraw {
    my ($how) = @_;

    my @left = grep { !$docs[$_]{out} } 0 .. $#docs;
    my $n = $left[rand @left];
    my $doc = $docs[$n];
    my $body = body($n);

    $body = { _id => $body->{_id}, _deleted => $true } if $how eq 'deleted';
    $body->{acl} = {} if $how eq 'private';
    $body->{acl} = { read => { allow => [$users[0]{did}] } }
        if $how eq 'restricted';

    $doc->{out} = time;
    my ($status) = request($nginx, 'POST', '/data/posts', $doc->{user}{token},
                           $body);
    $doc->{gone} = time;
    is($status, 201, "a document is $how") if $status != 201;
    return;
}


# ---- what is read ---------------------------------------------------------------

my $stop = write_file('') . '.stop';


# read_on($log): until it is told to stop: by one query, or page by page.  Each
# answer is a line: when, which, whether it was one of all pages, and rows.

sub read_on {
    my ($log) = @_;

    open(my $fh, '>', $log) or die "$log: $!\n";
    $fh->autoflush(1);
    my $http = HTTP::Tiny->new(timeout => 30, keep_alive => 1);

    for (my $n = 0; !-e $stop; $n++) {
        if ($n % 2) {
            print {$fh} $json->encode(get_one($http, limit => 2000)), "\n";
            next;
        }

        my $bookmark;
        my @pages;

        do {
            push @pages, get_one($http, limit => $page, defined $bookmark
                                        ? (bookmark => $bookmark) : ());
            $bookmark = $pages[-1]{bookmark};
        } while (!defined $pages[-1]{error} && @{ $pages[-1]{rows} } == $page);

        print {$fh} $json->encode(\@pages), "\n";
    }

    return;
}


sub get_one {
    my ($http, %query) = @_;

    my $text = $json->encode(\%query)
               =~ s/([^A-Za-z0-9_.~-])/sprintf('%%%02X', ord $1)/ger;
    my $began = time;
    my $res = $http->get('http://127.0.0.1:' . $nginx->port
        . "/data/posts/query?global=true&q=$text",
        { headers => { Authorization => "Bearer $users[0]{token}" } });
    my $data = eval { $json->decode($res->{content}) };

    return { error => "$res->{status} $res->{content}" }
        if $res->{status} != 200 || !$data;
    return { began => $began, ended => time, as_of => $data->{as_of},
             bookmark => $data->{bookmark},
             rows => [map { [@$_{qw(n gen rank)}] } @{ $data->{docs} }] };
}


my @logs = map { write_file('') } 1 .. $clients;
my @pids;


sub start_clients {
    @pids = map {
        my $log = $_;
        Vibe::_fork(sub { read_on($log); POSIX::_exit(0) });
    } @logs;
    return;
}


# answers(): how many there are so far.

sub answers {
    my $count = 0;

    for my $log (@logs) {
        $count += () = read_file($log) =~ /"began"/g;
    }

    return $count;
}


sub stop_clients {
    open(my $fh, '>', $stop) or die "$stop: $!\n";
    close $fh;
    waitpid($_, 0) for @pids;
    return map { my $log = $_;
                 [map { $json->decode($_) } split /\n/, read_file($log)] }
           @logs;
}


# ---- what is right --------------------------------------------------------------

my $late = 0;

# wrong($answer): what is wrong with an answer for itself.

sub wrong {
    my ($answer) = @_;

    return $answer->{error} if defined $answer->{error};

    my @bad;
    my %gen;
    my $before;

    for my $row (@{ $answer->{rows} }) {
        my ($n, $gen, $rank) = @$row;
        my $gone = $docs[$n]{gone};

        $gen{$gen}++;
        push @bad, "$n is behind what should follow it"
            if defined $before && $rank > $before;
        $before = $rank;

        next if !$gone || $answer->{began} <= $gone;
        my $after = $answer->{began} - $gone;
        $late = $after if $after > $late;
        push @bad, "$n was withdrawn $after s before" if $after > $soon;
    }

    push @bad, 'it has generations ' . join(' ', sort keys %gen)
        if keys %gen > 1;
    return @bad;
}


# lacks($rows, $ended): what is wrong with all that a query gave.

sub lacks {
    my ($rows, $ended) = @_;

    my %seen;
    $seen{ $_->[0] }++ for @$rows;
    my ($of) = map { $_->[1] } @$rows;

    return ((map { "$_ came twice" } grep { $seen{$_} > 1 } keys %seen),
            (map { "$_ of generation $of is missing" }
             grep { my $doc = $docs[$_];
                    !$seen{$_} && $doc->{born} <= $of
                    && !($doc->{out} && $doc->{out} < $ended) }
                  0 .. $#docs),
            (map { "$_ is younger than generation $of" }
             grep { $docs[$_]{born} > $of } keys %seen));
}


sub iso {
    my ($ms) = @_;

    return POSIX::strftime('%Y-%m-%dT%H:%M:%S', gmtime(int($ms / 1000)))
           . sprintf('.%03dZ', $ms % 1000);
}


# ---- and now --------------------------------------------------------------------

my %of_run;

$gen = 1;
add(100);
write_all();
ok(run_feed($nginx, $feed), 'a first run');
ok(run_feed($nginx, $feed), 'a second one');
$of_run{ iso(pointer($feed)->{as_of}) } = $gen;
start_clients();

my $failed = 0;

for my $run (1 .. $runs) {
    $gen++;
    add(1);
    write_all();

    my $running = send_request($nginx, 'POST',
                               "/vibe/aggregate?feed=$feed");
    for my $how ('deleted', $run % 2 ? 'private' : 'restricted') {
        # The moment within the run is anybody's guess.
        sleep rand(1.2);
        withdraw($how);
    }
    my ($status, $answer) = answer_of($running);
    $failed++ if $status != 200 || !$answer->{ok};
    $of_run{ iso(pointer($feed)->{as_of}) } = $gen;
}

# No run takes these away.
withdraw($_) for 'deleted', 'private', 'restricted';
my $over = time + $soon + 1;

is($failed, 0, "$runs runs");
is(scalar keys %of_run, $runs + 1, 'each at its time');
ok(wait_for(sub { answers() >= $reads && time > $over }, patience(60)),
   "$reads reads");
my @all = stop_clients();

my (@bad, %as_of, $whole);
my $count = 0;

for my $client (@all) {
    for my $query (@$client) {
        my @answers = ref $query eq 'ARRAY' ? @$query : $query;

        $count += @answers;

        for my $answer (@answers) {
            my @wrong = wrong($answer);
            push @bad, @wrong;
            next if @wrong;
            $as_of{ $answer->{as_of} }{ $_->[1] }++ for @{ $answer->{rows} };
        }

        # All pages are of one run if the first and the last are.
        next if grep { defined $_->{error} } @answers;
        next if $answers[0]{as_of} ne $answers[-1]{as_of};
        $whole++ if @answers > 1;

        my @rows = map { @{ $_->{rows} } } @answers;
        push @bad, lacks(\@rows, $answers[-1]{ended});
        push @bad, map { 'a page begins before the end of the one before' }
                   grep { $rows[$_][2] > $rows[$_ - 1][2] } 1 .. $#rows;
    }
}

cmp_ok($count, '>=', $reads, 'answers');
cmp_ok($whole, '>', 10, 'some were read page by page, of one run');
is_deeply([@bad[0 .. ($#bad > 9 ? 9 : $#bad)]], [], 'each is right')
    or diag(scalar @bad);
is_deeply([grep { join(' ', keys %{ $as_of{$_} }) ne ($of_run{$_} // '') }
           sort keys %as_of], [], 'what is as of a run is of that run');
cmp_ok(scalar keys %as_of, '>=', $runs / 2, 'they are of many runs');
diag(sprintf('%d answers of %d runs; withdrawn, but seen for up to %.2f s',
             $count, scalar keys %as_of, $late));

is_fed($nginx, $file, 1, 'in the end all is right');

$nginx->stop;
$couch->kill;

done_testing;
