# How requests come: over HTTP/2, in chunks, several on one connection, after
# an error whose body nobody read.

use strict;
use warnings;

use IO::Select;
use JSON::PP;
use Test::More;
use Time::HiRes qw(time);
use Vibe;
use Vibe::H2;
use Vibe::Raw;

my $json = JSON::PP->new->utf8->canonical->allow_nonref;
my $true = JSON::PP::true;

my $run = sprintf('%x%04x', time, $$ & 65535);
my $posts = "posts$run";
my $alice = did('alice');
my $token = token($alice);

my %server = (server => server_config(
    data => "client_max_body_size 300k; client_body_buffer_size 16k;"));
my $h2 = nginx_start(%server, listen => 'http2');
my $h1 = nginx_start(%server);


my %header = (Authorization => "Bearer $token",
              'Content-Type' => 'application/json');


# h2($path, $body [, $method]): a connection of its own; the status and the
# decoded answer.

sub h2 {
    my ($path, $body, $method) = @_;

    my $res = Vibe::H2->new($h2)->request($method // 'POST', $path, \%header,
                                          $body);
    return $res ? ($res->{status}, $res->{body} // $res->{text})
                : ('no answer', '');
}


subtest 'HTTP/2' => sub {
    my ($status, $answer) = h2("/data/$posts",
                               '{"k":"h2","acl":{"global":true}}');
    is($status, 201, 'a write');
    ok($answer->{global}, 'mirrored');

    for my $size (10_000, 100_000, 250_000) {
        my $body = $json->encode(
            { _id => "$posts/s$size", k => "s$size", text => 'x' x $size,
              acl => { global => $true } });

        local $header{'Content-Length'} = length $body;
        ($status, $answer) = h2("/data/$posts", $body);
        is($status, 201, "$size bytes");

        delete local $header{'Content-Length'};
        ($status, $answer) = h2("/data/$posts", $body);
        is($status, 201, "$size bytes, of unknown length");
        like($answer->{rev}, qr/^2-/, 'the second version');

        for my $where ('', '?global=true') {
            ($status, $answer) = h2("/data/$posts/query$where",
                                    "{\"k\":\"s$size\"}");
            is("$status " . length($answer->{docs}[0]{text} // ''),
               "200 $size", "$size bytes back $where");
        }
    }

    for my $body ('', ' ', undef) {
        for my $path ("/data/$posts", "/data/$posts/query") {
            ($status, $answer) = h2($path, $body);
            is($status, 400, (defined $body ? length $body : 'no')
                             . " bytes to $path");
        }
    }

    ($status, $answer) = h2("/data/$posts/query?global=true", undef, 'GET');
    is($status, 200, 'GET of a query');

    ($status, $answer) = h2("/data/expand?did=$alice&ref=$posts%2Fs10000",
                            undef, 'GET');
    is("$status " . ($answer->{k} // ''), '200 s10000', 'expand');

    for my $size (310_000, 3_000_000) {
        for my $told (1, 0) {
            local $header{'Content-Length'} = $size + 2;
            delete local $header{'Content-Length'} if !$told;

            ($status, $answer) = h2("/data/$posts", '"' . 'x' x $size . '"');
            is($status, 413, "$size bytes are too many");
            is(ref $answer && $answer->{error}, 'too_large',
               'and told in JSON');
        }
    }

    ($status, $answer) = h2("/data/$posts", '{}', 'PUT');
    is($status, 405, 'another method');
    is(ref $answer && $answer->{error}, 'method_not_allowed',
       'told in JSON');

    local $header{Authorization} = 'Bearer x.y.z';
    ($status, $answer) = h2("/data/$posts", '"' . 'x' x 200_000 . '"');
    is($status, 401, 'a bad token, the body is not read');
};


subtest 'many streams of one connection' => sub {
    my $c = Vibe::H2->new($h2);
    my @all;

    # All are begun before the first body comes, the bodies come in turns.
    for my $i (1 .. 60) {
        my ($path, $body, $status) = ("/data/$posts");

        if ($i % 4 == 0) {
            ($path, $body, $status)
                = ("/data/$posts/query?global=true", '{"k":"h2"}', 200);
        } elsif ($i % 10 == 1) {
            ($body, $status) = ('{', 400);
        } elsif ($i % 10 == 3) {
            ($body, $status) = ('x' x 310_000, 413);
        } else {
            ($body, $status) = ($json->encode(
                { _id => "$posts/p$i", n => $i, text => 'y' x ($i * 1000),
                  acl => { global => $true } }), 201);
        }

        push @all, { i => $i, body => $body, status => $status,
                     id => $c->open('POST', $path, \%header) };
    }

    while (my @left = grep { length $_->{body} } @all) {
        $c->data($_->{id}, substr($_->{body}, 0, 3000, ''),
                 !length $_->{body})
            or $_->{body} = ''
                for @left;
    }

    for my $one (@all) {
        my ($i, $expected) = @{$one}{qw(i status)};
        my $res = $c->hear($one->{id});

        is($res && $res->{status}, $expected, "stream $i") or next;

        # Each has its own answer.
        is($res->{body}{id}, "$posts/p$i", "stream $i: its answer")
            if $expected == 201;
        is($res->{body}{docs}[0]{k}, 'h2', "stream $i: its answer")
            if $expected == 200;
    }

    my @written = grep { $_->{status} == 201 } @all;
    my ($status, $answer) = h2("/data/$posts/query?global=true",
        '{"n":{"$gt":0},"limit":100,"fields":["n","text"]}');
    is(scalar(grep { length $_->{text} == $_->{n} * 1000 }
                   @{ $answer->{docs} }), scalar @written,
       'all were written and mirrored');
};


subtest 'streams that are reset' => sub {
    my $c = Vibe::H2->new($h2);

    # In the middle of the body, after it, and before the answer is read.
    for my $i (1 .. 20) {
        my $id = $c->open('POST', "/data/$posts", \%header);

        $c->data($id, '{"k":"reset"', 0);
        $c->data($id, ',"acl":{"global":true}}', 1) if $i % 2;
        $c->reset($id);
    }

    my $res = $c->request('POST', "/data/$posts/query", \%header,
                          '{"k":"h2"}');
    is($res && $res->{status}, 200, 'the connection goes on');

    # What was written is mirrored.
    my $same = sub {
        my @n = map { my (undef, $found) = couch('POST', "/$_/_find", {
                          selector => { k => 'reset', collection => $posts },
                          limit => 100 });
                      scalar @{ $found->{docs} } } userdb($alice), 'global';
        return $n[0] == $n[1];
    };
    ok(wait_for { $same->() }, 'written and mirrored, or neither');

    $c->close;
};


sub chunked {
    my ($body, @sizes) = @_;

    my $text = '';

    while (length $body) {
        my $size = shift @sizes // 1000;
        push @sizes, $size;
        my $part = substr($body, 0, $size, '');
        $text .= sprintf("%x\r\n%s\r\n", length $part, $part);
    }

    return "${text}0\r\n\r\n";
}


sub chunked_post {
    my ($path, $body, @sizes) = @_;

    return post_text($path, $token, chunked($body, @sizes),
                     'Transfer-Encoding: chunked');
}


subtest 'chunked bodies' => sub {
    for (['one chunk', 1e9], ['chunks of 7 bytes', 7],
         ['chunks of 1 and 9000', 1, 9000])
    {
        my ($name, @sizes) = @$_;

        for my $size (10, 20_000, 200_000) {
            my $res = exchange($h1, chunked_post("/data/$posts", $json->encode(
                { k => "$name $size", text => 'z' x $size }), @sizes));
            is($res && $res->{status}, 201, "$name, $size bytes");
        }
    }

    my $res = exchange($h1, chunked_post("/data/$posts/query",
                                         '{"k":"one chunk 200000"}', 3));
    is(length($res->{body}{docs}[0]{text} // ''), 200_000, 'a query');

    $res = exchange($h1, chunked_post("/data/$posts/query", ''));
    is($res->{status}, 400, 'an empty body');

    # Byte by byte, as slow clients send.
    my $c = dial($h1);
    for my $byte (split //, chunked_post("/data/$posts", '{"k":"slow"}', 2)) {
        say_to($c, $byte);
    }
    $res = hear($c);
    is($res && $res->{status}, 201, 'byte by byte');
};


subtest 'requests that do not wait for answers' => sub {
    my $c = dial($h1);
    my @all = map { {
        text => $_ % 3 == 0 ? post_text("/data/$posts/query", $token,
                                        "{\"k\":\"pipe\"}")
              : $_ % 3 == 1 ? post_text("/data/$posts", $token,
                    $json->encode({ _id => "$posts/i$_", k => 'x' x $_ }))
              : chunked_post("/data/$posts", $json->encode(
                    { _id => "$posts/i$_", text => 'w' x ($_ * 500) }), 400),
        status => $_ % 3 == 0 ? 200 : 201, id => "$posts/i$_",
    } } 1 .. 30;

    say_to($c, join('', map { $_->{text} } @all));

    for my $i (0 .. $#all) {
        my $res = hear($c) or do { fail("answer $i"); last };
        is($res->{status}, $all[$i]{status}, "answer $i");
        is($res->{body}{id}, $all[$i]{id}, "answer $i: to its request")
            if $res->{status} == 201;
    }
};


# The connection goes on, or it is closed; what was not read is never taken for
# the next request.

subtest 'the next request after an error' => sub {
    my $poison = post_text("/data/$posts", $token,
                           $json->encode({ _id => "$posts/poison" }));
    my $bad = token($alice, -key => 'x' x 32);

    for (['not authorized', 401, post_text("/data/$posts", $bad, $poison)],
         ['not authorized, large', 401,
          post_text("/data/$posts", $bad, $poison x 300)],
         ['not authorized, chunked', 401,
          post_text("/data/$posts", $bad, chunked($poison, 50),
                    'Transfer-Encoding: chunked')],
         ['another method', 405,
          post_text("/data/$posts", $token, $poison) =~ s/^POST/PUT/r],
         ['no such path', 404,
          post_text("/data/$posts/nothing", $token, $poison)],
         ['another type', 415,
          post_text("/data/$posts", $token, $poison)
              =~ s{application/json}{text/plain}r],
         ['not JSON', 400, post_text("/data/$posts", $token, $poison)],
         ['not JSON, large', 400,
          post_text("/data/$posts", $token, $poison x 300)],
         ['not JSON, chunked', 400, chunked_post("/data/$posts", $poison, 9)],
         ['too large', 413,
          post_text("/data/$posts", $token, $poison x 1000)],
         ['too large, chunked', 413,
          chunked_post("/data/$posts", $poison x 1000, 5000)],
         ['preflight with a body', 204,
          post_text("/data/$posts", $token, $poison) =~ s/^POST/OPTIONS/r],
         ['GET with a body', 200,
          post_text("/data/$posts/query", $token, $poison) =~ s/^POST/GET/r],
         ['expand with a body', 404,
          post_text("/data/expand?did=did:a:b&ref=x", $token, $poison)
              =~ s/^POST/GET/r])
    {
        my ($name, $status, $text) = @$_;
        my $next = post_text("/data/$posts/query", $token,
                             '{"k":"h2","limit":1}');

        for my $at_once (0, 1) {
            my $how = $at_once ? "$name, at once" : $name;
            my $c = dial($h1);

            say_to($c, $at_once ? $text . $next : $text);
            my $res = hear($c);
            is($res && $res->{status}, $status, $how);

            next if !$res || !$at_once && !say_to($c, $next);
            $res = hear($c);

            if ($res) {
                is($res->{status}, 200, "$how: the next request");
                is($res->{body}{docs}[0]{k}, 'h2', "$how: its answer");

            } else {
                pass("$how: the connection is closed");
            }
        }
    }

    my ($status) = couch('GET', '/' . userdb($alice) . "/$posts%2Fpoison");
    is($status, 404, 'no body was taken for a request');
};


# A client that waits to be told.

subtest 'Expect: 100-continue' => sub {
    my $body = '{"k":"expected"}';
    my $c = dial($h1);

    say_to($c, join("\r\n", "POST /data/$posts HTTP/1.1", 'Host: localhost',
                    "Authorization: Bearer $token", 'Expect: 100-continue',
                    'Content-Length: ' . length $body, '', ''));
    ok(wait_for { IO::Select->new($c->{socket})->can_read(0.1) }, 'told');
    say_to($c, $body);
    my $res = hear($c);
    is($res && $res->{status}, 201, 'written');
};


$_->stop for $h1, $h2;

done_testing();
