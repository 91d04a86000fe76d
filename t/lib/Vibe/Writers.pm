package Vibe::Writers;

# Clients that write while a test breaks things, and remember what they were
# told:
#
#     my $writers = Vibe::Writers->start(port => $nginx->port, writes => 600);
#
#     ... until $writers->done >= 100;
#     ... kill something ...
#
#     $writers->wait(60);      # until all is written
#     $writers->stop(60);      # or: no more
#
#     $writers->lost           # what was acknowledged and is not there
#     $writers->misread        # what readers should see and do not, or see
#                              # and should not
#
# Each is a list of complaints.  Options:
#
#     port       where nginx listens
#     clients    => 16
#     users      => 50, each with a database
#     documents  => 300, the chosen ids; two thirds are written by one client
#                   each, the others by all
#     writes     => how many by all together; until stop() by default
#     seed       => NUMBER
#     patience   => 60, seconds until a client gives up one write
#     look       => 1/8, how many acknowledged writes a client looks at through
#                   a global query
#
# A client tries again, as real ones do, when it got no answer or a 5xx; each
# try carries a mark of its own.  So of each document that is found, it is known
# who sent it and what was answered: a revision that was acknowledged must be
# there (_revs_diff), and what stands last must be one that was acknowledged or
# one of unknown outcome, never one that was refused.

use strict;
use warnings;

use IO::Select;
use IO::Socket::INET;
use JSON::PP;
use POSIX ();
use Socket qw(SOL_SOCKET SO_ERROR);
use Time::HiRes qw(sleep time);
use Vibe ();

# Longer than any timeout of nginx: a client that waits so long has no answer.
my $ANSWER = 40;

# Statuses, and errors of rows, that mean: this was not written.
my $REFUSED = qr/^(?:400|401|403|404|405|409|413|415
                    |bad_request|conflict|forbidden|not_found|too_large)$/x;

my $json = JSON::PP->new->utf8->canonical->allow_nonref;


sub start {
    my ($class, %opt) = @_;

    my $self = bless {
        clients => 16, users => 50, documents => 300, seed => 1,
        patience => 60, look => 1 / 8, %opt, count => {}, done => 0,
    }, $class;

    my $name = 'writers' . int(rand(1e9));
    $self->{dids} = [map { Vibe::did("$name-$_") } 0 .. $self->{users} - 1];
    $self->{readers} = [map { Vibe::did("$name-reader$_") } 0 .. 2];
    $self->{stranger} = Vibe::did("$name-stranger");
    $self->{token} = { map { $_ => Vibe::token($_, exp => int(time) + 7200) }
        @{ $self->{dids} }, @{ $self->{readers} }, $self->{stranger} };
    $self->{stop} = Vibe::write_file('') . '.stop';

    pipe(my $in, my $out) or die "pipe: $!\n";
    $in->blocking(0);
    $self->{in} = $in;

    for my $n (0 .. $self->{clients} - 1) {
        my $log = Vibe::write_file('');
        push @{ $self->{logs} }, $log;
        push @{ $self->{pids} }, Vibe::_fork(sub {
            close $in;
            $self->_client($n, $log, $out);
            POSIX::_exit(0);
        });
    }

    $self->{running} = { map { $_ => 1 } @{ $self->{pids} } };
    return $self;
}


# done(): how many writes have got an answer that settles them; count() tells
# how many of which kind: `acked`, `pending` (202), `refused`, `failed` (tries).

sub done {
    my ($self) = @_;

    while (sysread($self->{in}, my $letters, 65536)) {
        for my $letter (split //, $letters) {
            $self->{count}{$letter}++;
            $self->{done}++ if $letter ne 'f';
        }
    }

    return $self->{done};
}


sub count {
    my ($self) = @_;

    $self->done;
    return { map { $_ => $self->{count}{substr($_, 0, 1)} // 0 }
                 qw(acked pending refused failed) };
}


# running(): how many clients are at work; wait($seconds): until none is.

sub running {
    my ($self) = @_;

    for my $pid (keys %{ $self->{running} }) {
        next if waitpid($pid, POSIX::WNOHANG) == 0;
        delete $self->{running}{$pid};
        push @{ $self->{broken} }, "a client ended with $?" if $?;
    }

    return scalar keys %{ $self->{running} };
}


sub wait {
    my ($self, $seconds) = @_;

    my $ended = Vibe::wait_for { $self->done; !$self->running } $seconds;

    if (!$ended) {
        my @left = keys %{ $self->{running} };
        push @{ $self->{broken} }, scalar(@left) . ' clients did not end';
        kill('KILL', @left);
        waitpid($_, 0) for @left;
        $self->{running} = {};
    }

    $self->done;
    $self->_remember;
    return $ended && !$self->{broken};
}


sub stop {
    my ($self, $seconds) = @_;

    open(my $fh, '>', $self->{stop}) or die "$self->{stop}: $!\n";
    close $fh;
    return $self->wait($seconds);
}


# complaints(): what a client found wrong on its way.  tries(): all requests,
# each { at, took, path, what, again }, where `again` is the Retry-After, and
# `what` a status, or
#
#     refused    no connection
#     unread     closed or reset before nginx had read any of the request
#     lost       closed before the answer was whole
#     late       no answer in 40 s

sub complaints {
    my ($self) = @_;

    return (@{ $self->{broken} // [] }, @{ $self->{complaints} });
}


# looked(): how often one asked a global query for what was acknowledged.

sub looked { return $_[0]{looked} // 0 }

sub tries { return @{ $_[0]{tries} } }


# -- what a client does --

sub _client {
    my ($self, $n, $log, $out) = @_;

    my $parent = getppid;

    srand($self->{seed} * 1000 + $n);
    $SIG{PIPE} = 'IGNORE';

    open(my $fh, '>>', $log) or die "$log: $!\n";
    my $me = { %$self, n => $n, fh => $fh, out => $out, marks => 0,
               known => {}, made => {} };
    bless $me, ref $self;

    my ($clients, $writes) = @$self{qw(clients writes)};
    my $left = defined $writes ? int(($writes + $n) / $clients) : 1e9;

    # The test may have been killed.
    while ($left-- > 0 && !-e $self->{stop} && getppid == $parent) {
        $me->_write_one;
    }

    return;
}


sub _note { syswrite($_[0]{fh}, $json->encode($_[1]) . "\n") }

sub _tell { syswrite($_[0]{out}, $_[1]) }


# The number of a chosen document's user is that modulo the users; of each six
# of a user, four have one client, the same for a user.

sub _mine {
    my ($self, $document) = @_;

    my $user = $document % $self->{users};
    return int($document / $self->{users}) % 6 < 4
           && $user % $self->{clients} == $self->{n};
}


sub _shared {
    my ($self, $document) = @_;

    return int($document / $self->{users}) % 6 >= 4;
}


sub _pick {
    my ($self) = @_;

    $self->{mine} //= [grep { $self->_mine($_) } 0 .. $self->{documents} - 1];
    $self->{all} //= [grep { $self->_shared($_) } 0 .. $self->{documents} - 1];

    my $from = rand(3) < 2 && @{ $self->{mine} } ? $self->{mine}
                                                 : $self->{all};
    return $from->[rand @$from];
}


sub _write_one {
    my ($self) = @_;

    my $document = $self->_pick;
    my $user = $document % $self->{users};
    my @plan = ($self->_plan($user, $document));

    if (rand(5) < 1) {
        # Each document of a user once, and some with new ids.
        my %seen = ($plan[0]{id} // '' => 1);

        for (1 .. 1 + int(rand(6))) {
            my $other = $self->_pick;
            $other = $other - $other % $self->{users} + $user;
            next if $other >= $self->{documents}
                    || !$self->_mine($other) && !$self->_shared($other);
            my $more = $self->_plan($user, $other);
            push @plan, $more if !defined $more->{id} || !$seen{$more->{id}}++;
        }
    }

    my $end = time + $self->{patience};

    until ($self->_try($user, @plan)) {
        $self->_tell('f');

        if (time > $end) {
            $self->_note({ wrong => 'a client gave up after '
                                    . "$self->{patience} s" });
            return;
        }

        sleep 0.05 + rand(0.2);
    }

    return;
}


# One document to be written: its id, undef if the module shall make one,
# whether with a revision, and what it says.

sub _plan {
    my ($self, $user, $document) = @_;

    my $k = rand();
    my $made = $self->{made}{$user} //= [];
    my $id = $k < 0.15 ? undef : "doc$document";

    # One that the module has made an id for.
    $id = $made->[rand @$made] if $k >= 0.15 && $k < 0.2 && @$made;

    return { id => $id, deleted => defined $id && rand(8) < 1,
             with_rev => rand(3) < 1, acl => $self->_acl,
             own => !defined $id || $id !~ /^doc(\d+)$/ || $self->_mine($1) };
}


sub _acl {
    my ($self) = @_;

    my $reader = $self->{readers}[rand @{ $self->{readers} }];
    my $k = int(rand(10));

    return { global => $JSON::PP::true } if $k < 4;
    return { read => { allow => ['*'] } } if $k == 4;
    return { read => { allow => [$reader] } } if $k < 7;
    return { read => { allow => ['*'], deny => [$reader] } } if $k == 7;
    return $k == 8 ? {} : undef;
}


# One try; true if it is settled: written, or refused for good.

sub _try {
    my ($self, $user, @plan) = @_;

    my (@docs, @sent);

    for my $plan (@plan) {
        my $mark = "$self->{n}." . ++$self->{marks};
        my $id = $plan->{id};
        my $rev = $plan->{with_rev} && defined $id
                  && $self->{known}{$user}{$id};

        my %doc = (mark => $mark);
        $doc{_id} = $id if defined $id;
        $doc{_rev} = $rev if $rev;

        if ($plan->{deleted}) {
            $doc{_deleted} = $JSON::PP::true;
        } else {
            $doc{acl} = $plan->{acl} if $plan->{acl};
            $doc{text} = 'x' x rand(300);
            $doc{createdAt} = int(time);
        }

        push @docs, \%doc;
        push @sent, { mark => $mark, user => $user, id => $id,
                      deleted => $plan->{deleted} ? 1 : 0,
                      acl => $plan->{acl} };
    }

    $self->_note({ sent => \@sent });

    my ($what, $body)
        = $self->_ask('POST', '/data/posts', $self->{dids}[$user],
                      @docs == 1 && rand(4) < 3 ? $docs[0] : \@docs);

    if ($what =~ $REFUSED) {
        $self->_note({ refused => $_->{mark}, status => $what }) for @docs;
        delete $self->{known}{$user}{ $_->{_id} // '' } for @docs;
        $self->_tell('r');
        return 1;
    }

    return 0 if $what !~ /^20[12]$/;

    my @rows = ref $body eq 'ARRAY' ? @$body : ($body);

    if (@rows != @docs) {
        $self->_note({ wrong => "$what with " . scalar(@rows) . ' rows for '
                                . scalar(@docs) . ' documents' });
        return 1;
    }

    $self->_row($user, $plan[$_], $docs[$_], $rows[$_], $what) for 0 .. $#rows;
    $self->_tell($what == 201 ? 'a' : 'p');
    return 1;
}


sub _row {
    my ($self, $user, $plan, $doc, $row, $status) = @_;

    my $mark = $doc->{mark};

    if ($row->{ok}) {
        my ($id, $rev) = @$row{qw(id rev)};

        $self->_note({ acked => $mark, user => $user, id => $id,
                       rev => $rev, status => $status });
        $self->_note({ wrong => "asked for $doc->{_id}, got $id" })
            if defined $doc->{_id} && $doc->{_id} ne $id;

        push @{ $self->{made}{$user} }, $id if !defined $doc->{_id};
        $self->{known}{$user}{$id} = $rev;
        $self->_look($user, $id, $plan, $row)
            if $plan->{own} && !$row->{mirror} && rand() < $self->{look};
        return;
    }

    $self->_note({ refused => $mark, status => $row->{error} })
        if ($row->{error} // '') =~ $REFUSED;
    delete $self->{known}{$user}{ $doc->{_id} // '' };
    return;
}


# After a 201 a reader sees this version, or a newer one; and after a withdrawal
# none, unless a newer one is public again.  Nobody else writes the document,
# but an earlier try of ours may still have been under way.

sub _look {
    my ($self, $user, $id, $plan, $row) = @_;

    my $gid = Vibe::gid($self->{dids}[$user], $id);
    my ($what, $body) = $self->_ask('POST', '/data/posts/query',
        $self->{stranger}, { global => $JSON::PP::true, _id => $gid });
    return if $what ne '200';

    $self->_note({ looked => $gid });
    my ($seen) = map { $_->{_rev} =~ /^(\d+)/ } @{ $body->{docs} };
    my ($rev) = $row->{rev} =~ /^(\d+)/;
    my $readable = !$plan->{deleted} && _readable($plan->{acl}, 'a stranger');

    $self->_note({ wrong => "$gid: $row->{rev} was acknowledged as public, "
                            . 'and ' . ($seen // 'nothing') . ' is seen' })
        if $readable && ($seen // 0) < $rev;
    $self->_note({ wrong => "$gid: $row->{rev} was acknowledged as private, "
                            . "and $seen is seen" })
        if !$readable && defined $seen && $seen <= $rev;
    return;
}


sub _readable {
    my ($acl, $reader) = @_;

    return 0 if !$acl;
    return 1 if $acl->{global};

    my $read = $acl->{read} // {};
    return 0 if grep { $_ eq $reader } @{ $read->{deny} // [] };
    return 1 if grep { $_ eq $reader || $_ eq '*' } @{ $read->{allow} // [] };
    return 0;
}


# -- HTTP, by hand: what became of a request must be known exactly --

sub _ask {
    my ($self, $method, $path, $did, $doc) = @_;

    my $body = $json->encode($doc);
    my $text = "$method $path HTTP/1.1\r\nHost: localhost\r\n"
               . "Authorization: Bearer $self->{token}{$did}\r\n"
               . "Content-Type: application/json\r\n"
               . 'Content-Length: ' . length($body) . "\r\n\r\n$body";

    my $c = $self->_connection;
    my ($began, $in) = (time, '');
    my ($what, $header, $answer) = $c ? _talk($c, $text, \$in) : 'refused';

    $self->_note({ try => { at => $began, took => time - $began,
                            path => $path, what => $what,
                            again => $header->{'retry-after'} } });

    # A connection in three is used once.
    if ($what !~ /^\d/ || ($header->{connection} // '') eq 'close'
        || rand(3) < 1)
    {
        close delete $self->{c} if $self->{c};
    }

    return ($what, eval { $json->decode($answer // '') });
}


sub _connection {
    my ($self) = @_;

    # nginx may have closed it meanwhile.
    if ($self->{c} && IO::Select->new($self->{c})->can_read(0)) {
        close delete $self->{c};
    }

    $self->{c} //= IO::Socket::INET->new(PeerAddr => '127.0.0.1',
                                         PeerPort => $self->{port},
                                         Timeout => 10);
    return $self->{c};
}


# Sends a request and reads its answer: what became of it, its header and body.

sub _talk {
    my ($c, $text, $in) = @_;

    my $sent = 0;
    while ($sent < length $text) {
        $sent += syswrite($c, $text, length $text, $sent) // return 'unread';
    }

    my $end = time + $ANSWER;

    for (;;) {
        if ($$in =~ m{^HTTP/1\.1 (\d{3}) [^\r]*\r\n(.*?)\r\n\r\n}s) {
            my ($status, $lines, $head) = ($1, $2, $+[0]);
            my %header = map { /^([^:]+):\s*(.*)$/ ? (lc $1, $2) : () }
                             split /\r\n/, $lines;
            my $length = $header{'content-length'};

            return ($status, \%header, substr($$in, $head))
                if defined $length && length $$in >= $head + $length;

            # Without a length: chunked.
            if (!defined $length && $$in =~ /\r\n0\r\n\r\n\z/) {
                my ($rest, $whole) = (substr($$in, $head), '');
                while ($rest =~ s/^([0-9a-f]+)\r\n//i && hex $1) {
                    $whole .= substr($rest, 0, hex $1);
                    $rest = substr($rest, 2 + hex $1);
                }
                return ($status, \%header, $whole);
            }
        }

        IO::Select->new($c)->can_read($end - time > 0 ? $end - time : 0)
            or return 'late';
        my $n = sysread($c, $$in, 65536, length $$in);
        return length $$in ? 'lost' : _ended($c, $n) if !$n;
    }
}


# The connection has ended without an answer.  Where nginx had closed it before
# the request came, or had left some of that unread, the kernel says so by a
# reset: a read that meets it fails, and one that has met the end before leaves
# it to SO_ERROR.

sub _ended {
    my ($c, $n) = @_;

    return 'unread' if !defined $n;

    my $reset = Vibe::wait_for {
        unpack('i', getsockopt($c, SOL_SOCKET, SO_ERROR) // pack('i', 0));
    } 0.1;

    return $reset ? 'unread' : 'lost';
}


# -- what the parent finds out in the end --

sub _remember {
    my ($self) = @_;

    my ($sent, $acked, $refused) = ({}, {}, {});

    $self->{complaints} = [];
    $self->{tries} = [];

    for my $line (map { split /\n/, Vibe::read_file($_) } @{ $self->{logs} }) {
        my $note = eval { $json->decode($line) } // next;

        if ($note->{sent}) {
            $sent->{ $_->{mark} } = $_ for @{ $note->{sent} };
        } elsif ($note->{acked}) {
            $acked->{ $note->{acked} } = $note;
        } elsif ($note->{refused}) {
            $refused->{ $note->{refused} } = $note->{status};
        } elsif ($note->{try}) {
            push @{ $self->{tries} }, $note->{try};
        } elsif ($note->{looked}) {
            $self->{looked}++;
        } elsif ($note->{wrong}) {
            push @{ $self->{complaints} }, $note->{wrong};
        }
    }

    @{ $self->{tries} } = sort { $a->{at} <=> $b->{at} } @{ $self->{tries} };
    @$self{qw(sent acked refused)} = ($sent, $acked, $refused);
    return;
}


# lost(): asks CouchDB itself.

sub lost {
    my ($self) = @_;

    my (@bad, %acked);

    $self->{winners} = {};

    for my $ack (values %{ $self->{acked} }) {
        push @{ $acked{ $ack->{user} }{ $ack->{id} } }, $ack->{rev};
    }

    for my $user (0 .. $self->{users} - 1) {
        my $db = Vibe::userdb($self->{dids}[$user]);
        my ($status, $changes) = Vibe::couch('GET',
            "/$db/_changes?style=all_docs&include_docs=true");

        if ($status != 200) {
            push @bad, "$db: $status, and writes to it were acknowledged"
                if $acked{$user};
            next;
        }

        for my $row (@{ $changes->{results} }) {
            next if $row->{id} =~ /^_design/;
            $self->{winners}{$user}{ $row->{id} } = $row->{doc};
            push @bad, "$db $row->{id}: it has conflicts"
                if @{ $row->{changes} } > 1;
            push @bad, map { "$db $row->{id}: $_" }
                           $self->_standing($user, $row->{doc});
        }

        next if !$acked{$user};

        ($status, my $diff) = Vibe::couch('POST', "/$db/_revs_diff",
                                          $acked{$user});
        push @bad, "$db: _revs_diff says $status" if $status != 200;

        for my $id ($status == 200 ? sort keys %$diff : ()) {
            push @bad, "$db $id: $_ was acknowledged and is not there"
                for @{ $diff->{$id}{missing} };
        }
    }

    return @bad;
}


# Whether this may stand last.

sub _standing {
    my ($self, $user, $doc) = @_;

    my $mark = $doc->{mark};
    my $sent = defined $mark && $self->{sent}{$mark}
        or return "$doc->{_rev}: nobody has sent it";
    my $ack = $self->{acked}{$mark};
    my @bad;

    push @bad, 'it was sent for user ' . $sent->{user}
        if $sent->{user} != $user;
    push @bad, "it was sent for $sent->{id}"
        if defined $sent->{id} && $sent->{id} ne $doc->{_id};
    push @bad, 'deleted or not, unlike what was sent'
        if $sent->{deleted} != ($doc->{_deleted} ? 1 : 0);
    push @bad, 'its acl is not what was sent'
        if !$sent->{deleted}
           && $json->encode($sent->{acl}) ne $json->encode($doc->{acl});
    push @bad, "it was answered with $self->{refused}{$mark}"
        if $self->{refused}{$mark};
    push @bad, "it was acknowledged as $ack->{rev}"
        if $ack && $ack->{rev} ne $doc->{_rev};

    return map { "$doc->{_rev} (mark $mark): $_" } @bad;
}


# misread(): a global query of each reader, page by page, against what lost()
# has found to stand.

sub misread {
    my ($self) = @_;

    my @bad;

    for my $reader ($self->{stranger}, @{ $self->{readers} }) {
        my %want;

        for my $user (keys %{ $self->{winners} }) {
            for my $doc (values %{ $self->{winners}{$user} }) {
                next if $doc->{_deleted} || !_readable($doc->{acl}, $reader);
                $want{Vibe::gid($self->{dids}[$user], $doc->{_id})}
                    = $doc->{_rev};
            }
        }

        my ($have, $why) = $self->_all_of($reader);
        push @bad, $why if defined $why;

        for my $id (sort keys %{ { %want, %$have } }) {
            my ($want, $seen) = ($want{$id} // 'nothing',
                                 $have->{$id} // 'nothing');
            push @bad, "$reader sees of $id $seen, not $want"
                if $want ne $seen;
        }
    }

    return @bad;
}


sub _all_of {
    my ($self, $reader) = @_;

    my (%have, $bookmark);

    for my $page (1 .. 100) {
        my ($status, $data) = Vibe::request($self->{port}, 'POST',
            '/data/posts/query', $self->{token}{$reader},
            { global => $JSON::PP::true, limit => 500,
              fields => ['_id', '_rev'],
              defined $bookmark ? (bookmark => $bookmark) : () });

        return (\%have, "a global query is answered with $status")
            if $status != 200;
        return \%have if !@{ $data->{docs} };

        $have{ $_->{_id} } = $_->{_rev} for @{ $data->{docs} };
        $bookmark = $data->{bookmark};
    }

    return (\%have, 'a global query has no end');
}


1;
