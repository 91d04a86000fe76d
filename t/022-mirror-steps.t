# A write is stopped before each of its requests to CouchDB in turn, and another
# one runs from start to end meanwhile; then three run at once, in an order
# drawn by lot.  Whoever is stopped where: once a withdrawal is answered nobody
# sees the document again, and in the end `global` holds the winner.
#
# VIBE_TEST_SEED repeats an order.

use strict;
use warnings;

use JSON::PP;
use Test::More;
use Vibe;
use Vibe::Proxy;
use Vibe::Race;

my ($true, $false) = (JSON::PP::true, JSON::PP::false);

my $alice = did('alice');
my $bob = did('bob');
my $token = token($alice);
my $db = userdb($alice);

my $nginx = nginx_start();

# Three ways to CouchDB on which requests can be kept back.
my @proxies = map { Vibe::Proxy->start } 1 .. 3;
my @slow = map { nginx_start(http => $_->http_config) } @proxies;

my %step = (
    publish => { acl => { global => $true } },
    restrict => { acl => { read => { allow => [$bob] } } },
    withdraw => {},
    delete => { _deleted => $true },
);

# What was there before; who is stopped; what is done meanwhile.
my @before = ([], ['withdraw'], ['publish'], ['restrict'],
              ['publish', 'withdraw'], ['publish', 'delete']);
my @late = qw(publish restrict withdraw delete);
my @fast = (['publish'], ['withdraw'], ['delete'], ['publish', 'withdraw']);


sub winner {
    my ($name, $id) = @_;

    my ($status, $data) = couch('POST', "/$name/_bulk_get",
                                { docs => [{ id => $id }] });
    my @leaves = map { $_->{ok} } grep { $_->{ok} }
                     map { @{ $_->{docs} } } @{ $data->{results} };

    # Here no leaf but the one that is written on.
    die "there are conflicts of $id\n" if @leaves > 1;
    return $leaves[0];
}


sub access_of {
    my ($doc) = @_;

    return 'private' if !$doc || $doc->{_deleted} || !$doc->{acl};
    return $doc->{acl}{global} ? 'public' : 'restricted';
}


# What is wrong in `global`; with $settled also what is merely late.

sub wrong {
    my ($id, $settled) = @_;

    my $source = winner($db, $id);
    my $copy = winner('global', gid($alice, $id));

    my $want = access_of($source);
    my $live = $copy && !$copy->{_deleted};
    my $is = $live ? $copy->{vibe_access} : 'private';
    $is = 'private' if $is eq 'none' && !$settled;

    return "$is, but the winner is $want"
        if $want eq 'private' && $is ne 'private';
    return if !$settled;

    return "$is, but the winner is $want" if $is ne $want;
    return "it is of $copy->{vibe_rev}, not of $source->{_rev}"
        if $live && $copy->{vibe_rev} ne $source->{_rev};
    return 'a document that was never readable left a trace'
        if $settled eq 'never' && $copy;
    return;
}


sub do_step {
    my ($id, $name) = @_;

    my ($status, $data) = request($nginx, 'POST', '/data/posts', $token,
                                  { _id => $id, %{ $step{$name} } });
    return if $status == 201;
    return if $status == 404 && $name eq 'delete';
    return "$name: $status";
}


# Sends a write that stops before its first request to CouchDB.

sub start_step {
    my ($i, $id, $name, $mark) = @_;

    my $hold = $proxies[$i]->hold('^POST ');
    my $request = send_request($slow[$i], 'POST', '/data/posts', $token,
        { _id => $id, %{ $step{$name} }, mark => $mark // '' });

    my $write = { proxy => $proxies[$i], hold => $hold, request => $request,
                  name => $name };
    $write->{held} = $proxies[$i]->wait_held($hold, $request);
    return $write;
}


# Lets it send one request, and stops it before the next.

sub one_more {
    my ($write) = @_;

    my $next = $write->{proxy}->hold('^POST ');
    $write->{proxy}->release($write->{hold});
    $write->{hold} = $next;
    $write->{held} = $write->{proxy}->wait_held($next, $write->{request});
}


# The status, once it does not stop any more.

sub end_of {
    my ($write) = @_;

    $write->{proxy}->drop($write->{hold});
    ($write->{status}) = answer_of($write->{request});

    return if $write->{status} == 201
              || $write->{status} == 404 && $write->{name} eq 'delete';
    return "the answer to $write->{name} is $write->{status}";
}


# Stops the slow write before its request number $at; undef where it has not
# so many, else an array of what went wrong.

my $n = 0;

sub scenario {
    my ($before, $late, $fast, $at) = @_;

    my $id = 'doc' . ++$n;
    my @wrong = map { do_step($id, $_) } @$before;

    my $never = !grep { /publish|restrict/ } @$before, @$fast, $late;
    my $settled = $never ? 'never' : 'settled';

    my $write = start_step(0, $id, $late);
    my $seen = 0;

    while ($write->{held}) {

        if (++$seen == $at) {
            push @wrong, map { do_step($id, $_) } @$fast;

            # What was deleted already was not withdrawn by that.
            my $why = $late eq 'delete' && "@$fast" eq 'delete'
                          ? undef : wrong($id, $settled);
            push @wrong, "before it goes on: $why" if $why;

        } elsif ($seen > $at) {
            # A write that is not yet mirrored may withdraw what is public.
            my $why = $late =~ /publish|restrict/ ? wrong($id) : undef;
            push @wrong, 'after ' . ($seen - $at) . " more requests: $why"
                if $why;
        }

        one_more($write);
    }

    my $bad = end_of($write);
    return if $seen < $at;

    push @wrong, $bad // ();
    my $why = wrong($id, $settled);
    push @wrong, "in the end: $why" if $why;

    return \@wrong;
}


for my $before (@before) {
    my $there = @$before ? join(', ', @$before) : 'nothing';

    for my $late (@late) {
        my ($count, @wrong) = (0);

        for my $fast (@fast) {
            for my $at (1 .. 20) {
                my $bad = scenario($before, $late, $fast, $at) or last;
                $count++;
                push @wrong, map { "stopped before its request $at, meanwhile "
                                   . join(', ', @$fast) . ": $_" } @$bad;
            }
        }

        ok(!@wrong && $count >= @fast,
           "$there; then a late $late ($count interleavings)")
            or diag(join("\n", @wrong));
    }
}

# Three at once.  The winner bears the mark of who wrote it.

sub at_once {
    my ($before, @names) = @_;

    my $id = 'doc' . ++$n;
    my @wrong = map { do_step($id, $_) } @$before;
    my @writes = map { start_step($_, $id, $names[$_], $_) } 0 .. $#names;
    my $order = '';

    while (my @left = grep { $_->{held} } @writes) {
        my $write = $left[rand @left];
        $order .= (grep { $writes[$_] == $write } 0 .. $#writes)[0];

        one_more($write);
        push @wrong, end_of($write) // () if !$write->{held};

        my $source = winner($db, $id) // next;
        my $by = $source->{mark} // '';
        next if $by eq '' || ($writes[$by]{status} // 0) != 201;

        my $why = wrong($id);
        push @wrong, "though $names[$by] is answered: $why" if $why;
    }

    defined $_->{status} or push @wrong, end_of($_) // () for @writes;

    my $why = wrong($id, 'settled');
    push @wrong, "in the end: $why" if $why;

    return map { "@{$before}; " . join(', ', @names) . " in the order $order: $_" }
               @wrong;
}


my $seed = $ENV{VIBE_TEST_SEED} // time;
srand $seed;

my @wrong;
push @wrong, at_once($before[rand @before], map { $late[rand @late] } 0 .. 2)
    for 1 .. 100;

ok(!@wrong, 'three at once, 100 times')
    or diag(join("\n", "VIBE_TEST_SEED=$seed", @wrong));

$nginx->stop;
$_->stop for @slow;

done_testing;
