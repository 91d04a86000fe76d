# What a query and an expansion do not heed, do not show, and do not let grow.

use strict;
use warnings;

use JSON::PP;
use Test::More;
use Time::HiRes qw(time);
use Vibe;
use Vibe::Raw;

my $json = JSON::PP->new->utf8->canonical->allow_nonref;
my $true = JSON::PP::true;
my %public = (acl => { global => $true });

my $run = sprintf('%x%04x', time, $$ & 65535);
my $posts = "posts$run";
my ($alice, $bob) = map { did($_) } qw(alice bob);
my %token = map { $_ => token($_) } $alice, $bob;

my $limit = 1024 * 1024;
my $nginx = nginx_start(http => http_config(extra => "vibe_max_response $limit;"),
                        server => server_config(
                            data => 'client_max_body_size 16m;'));


sub save {
    my ($who, @docs) = @_;

    my ($status, $rows) = request($nginx, 'POST', "/data/$posts",
                                  $token{$who}, \@docs);
    is($status, 201, 'written') or diag($json->encode($rows));
    return map { $_->{rev} } @$rows;
}


sub query {
    my ($who, $body, $global) = @_;

    return request($nginx, 'POST', "/data/$posts/query"
        . ($global ? '?global=true' : ''), $token{$who}, $body);
}


my ($rev) = save($alice, { _id => 'one', k => 'one', %public });


subtest 'conditions that are for nginx\'s own filter' => sub {
    my %header = (
        'If-Match' => '"other"',
        'If-Match: *' => '*',
        'If-None-Match' => '"other"',
        'If-None-Match: *' => '*',
        'If-Unmodified-Since' => 'Thu, 01 Jan 1970 00:00:01 GMT',
        'If-Modified-Since' => 'Thu, 01 Jan 2099 00:00:01 GMT',
        'If-Range' => '"other"',
        'Range' => 'bytes=0-1',
    );
    my $q = '{"k":"one"}' =~ s/([^\w])/sprintf '%%%02X', ord $1/ger;

    for (['POST', "/data/$posts/query", { k => 'one' }],
         ['POST', "/data/$posts/query?global=true", { k => 'one' }],
         ['GET', "/data/$posts/query?q=$q"],
         ['GET', "/data/$posts/query?global=true&q=$q"],
         ['GET', "/data/expand?did=$alice&ref=one"],
         ['GET', "/data/expand?did=$alice&ref=none"])
    {
        my ($method, $path, $body) = @$_;
        my $ask = sub {
            my ($status, $answer) = request($nginx, $method, $path,
                                            $token{$bob}, $body, @_);
            delete $answer->{last_seq} if ref $answer;
            return [$status, $answer];
        };
        my $plain = $ask->();

        for my $name (sort keys %header) {
            # A GET of a query has an ETag, so it may heed this one.
            next if $name eq 'If-None-Match: *' && $path =~ /\?.*q=/;

            is_deeply($ask->($name =~ s/:.*//r => $header{$name}), $plain,
                      "$method $path, $name")
                or diag($json->encode($plain));
        }
    }
};


subtest 'a broken body where nobody asks for one' => sub {
    for (["/data/$posts", undef, 'no token'],
         ["/data/$posts", 'x.y.z', 'a bad token'],
         ["/data/$posts", $token{$bob}, 'another type',
             'Content-Type: text/plain'],
         ['/data/_x', $token{$bob}, 'no such path'],
         ['/data/expand', $token{$bob}, 'another method'],
         ["/data/$posts", $token{$bob}, 'none'],
         ["/data/$posts/query", $token{$bob}, 'a query'])
    {
        my ($path, $token, $name, $type) = @$_;

        for my $body ("not a length\r\n", "5\r\nabcdefgh\r\n0\r\n\r\n",
                      "ffffffffffffffffffff\r\n")
        {
            my $text = post_text($path, $token, $body,
                                 'Transfer-Encoding: chunked',
                                 'Connection: close', $type // ());
            $text =~ s/Content-Type: application\/json\r\n// if $type;

            my $answer = exchange($nginx, $text);
            ok($answer && $answer->{status} =~ /^4\d\d$/, "$name: an error")
                or diag($answer ? $answer->{status} : 'nothing');
            like($answer->{header}{'content-type'} // '',
                 qr/^application\/json/, "$name: said to be JSON");
            ok(ref $answer->{body} eq 'HASH' && $answer->{body}{reason},
               "$name: which it is") or diag($answer->{text});
        }
    }
};


subtest 'the _rev of global is not CouchDB\'s' => sub {
    my ($status, $copy) = couch('GET', '/global/' . gid($alice, 'one'));
    isnt($copy->{_rev}, $rev, 'it has its own');

    for my $name ('_rev', '\\_rev', '_r\\ev') {
        for my $selector ({ $name => $copy->{_rev} },
                          { $name => { '$gt' => '1-' } },
                          { $name => { '$exists' => $true } },
                          { '$or' => [{ $name => $copy->{_rev} }, { k => 1 }] },
                          { '$not' => { $name => 'x' } })
        {
            ($status) = query($bob, { selector => $selector }, 1);
            is($status, 400, 'a condition: ' . $json->encode($selector));
        }

        my $answer;
        ($status, $answer) = query($bob, { k => 'one', fields => [$name, 'k'] },
                                   1);
        next if $status == 400;

        is($status, 200, "fields: $name");
        my $shown = $answer->{docs}[0];
        is($shown->{k}, 'one', '… the document');
        ok(!exists $shown->{_rev} || $shown->{_rev} eq $rev,
           '… with its own _rev, or none') or diag($json->encode($shown));
    }

    ($status, my $answer) = query($bob, { k => 'one', fields => ['_rev'] }, 1);
    is_deeply($answer->{docs}, [{ _rev => $rev }], 'the source\'s is shown');
    ($status, $answer) = query($alice, { _rev => $rev });
    is("$status " . scalar @{ $answer->{docs} // [] }, '200 1',
       'and in one\'s own database one may ask for it');
};


subtest 'one large document, referred to many times' => sub {
    # A response holds three of them.
    my $size = 300_000;
    save($alice, { _id => 'big', big => 'x' x $size, %public });
    save($bob, { _id => 'big', big => 'y' x $size });
    save($bob, { _id => 'refs', k => 'refs',
                 others => [map { { did => $alice, ref => 'big' } } 1 .. 50],
                 own => [map { { did => $bob, ref => 'big' } } 1 .. 50] });

    for my $expand ('others', 'own', 'own,others') {
        my ($status, $answer, $header, $text)
            = query($bob, { k => 'refs', expand => $expand });
        is($status, 200, "expand $expand");
        cmp_ok(length $text, '<', 2 * $limit, '… the answer is bounded');

        for my $member (split /,/, $expand) {
            my $list = $answer->{docs}[0]{$member};
            my @full = grep { $_->{big} } @$list;
            my @left = grep { ($_->{ref} // '') eq 'big' } @$list;

            is(@full + @left, 50, "… none of $member is lost");
        }
        my @full = grep { $_->{big} } map { @{ $answer->{docs}[0]{$_} } }
                       split /,/, $expand;
        cmp_ok(scalar @full, '>=', 1, '… and some are expanded');
    }
};


subtest 'nine large documents are read page by page' => sub {
    my $size = 250_000;
    save($alice, { _id => "page$_", k => 'page', n => $_, createdAt => $_,
                   big => 'x' x $size, %public }) for 1 .. 9;

    for my $global (0, 1) {
        for my $sort (undef, 'createdAt') {
            my $name = ($global ? 'global' : 'own') . ($sort ? ', sorted' : '');
            my ($bookmark, $pages, @found) = (undef, 0);

            while ($pages++ < 12) {
                my ($status, $answer) = query($global ? $bob : $alice,
                    { k => 'page', bookmark => $bookmark,
                      $sort ? (sort => [$sort]) : () }, $global);
                if ($status == 503 && $pages < 10) {
                    sleep 1;
                    next;
                }

                is($status, 200, "$name: page $pages") or last;
                push @found, map { $_->{n} } @{ $answer->{docs} };
                $bookmark = $answer->{bookmark};
                last if !@{ $answer->{docs} } || !defined $bookmark;
                last if @found >= 9;
            }

            is(join(' ', sort { $a <=> $b } @found), '1 2 3 4 5 6 7 8 9',
               "$name: each once");
            is("@found", '1 2 3 4 5 6 7 8 9', "$name: in order") if $sort;
            cmp_ok($pages, '>', 2, "$name: on more than one page");
        }
    }
};


$nginx->stop;

done_testing;
