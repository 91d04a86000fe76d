# Documents at the bounds: rules without number, nesting without end, copies in
# `global` that the module has not written.

use strict;
use warnings;

use JSON::PP;
use Test::More;
use Time::HiRes qw(time);
use Vibe;

my $json = JSON::PP->new->utf8->canonical->allow_nonref->max_depth(1000);
my ($true, $false) = (JSON::PP::true, JSON::PP::false);
my %public = (acl => { global => $true });

my $run = sprintf('%x%04x', time, $$ & 65535);
my $posts = "posts$run";
my ($alice, $bob, $eve) = map { did($_) } qw(alice bob eve);
my %token = map { $_ => token($_) } $alice, $bob, $eve;
my $own = userdb($alice);

my $nginx = nginx_start(server =>
    server_config(data => 'client_max_body_size 16m;'));


sub post {
    my ($body) = @_;

    return request($nginx, 'POST', "/data/$posts", $token{$alice}, $body);
}


sub query {
    my ($who, $body, $global) = @_;

    my ($status, $answer) = request($nginx, 'POST', "/data/$posts/query"
        . ($global ? '?global=true' : ''), $token{$who}, $body);

    # In global the ids are global ones.
    return ($status, ref $answer && $answer->{docs}
        ? map { $_->{_id} =~ s/^\Q$alice\E://r } @{ $answer->{docs} } : ());
}


sub expand {
    my ($who, $id) = @_;

    return request($nginx, 'GET', "/data/expand?did=$alice&ref=$id",
                   $token{$who});
}


sub copy {
    my ($status, $doc) = couch('GET', '/global/' . gid($alice, $_[0]));
    return $status == 200 ? $doc : undef;
}


# A member of the worker's /proc/PID/status, in KB.

sub memory {
    my ($name) = @_;

    my ($worker) = $nginx->workers;
    return read_file("/proc/$worker/status") =~ /^$name:\s+(\d+) kB/m ? $1 : 0;
}


subtest 'rules without number' => sub {
    my $rules = join(',', (1) x 450_000);

    my @acls = (
        qq({"read":{"allow":[$rules]}}),
        qq({"read":{"allow":["*",$rules]}}),
        qq({"global":true,"read":{"deny":[$rules]}}),
        qq({"read":{"allow":["$bob",$rules],"deny":[]}}),
        qq({"read":{"allow":[[$rules]]}}),
        '{"read":{"allow":[' . join(',', ("\"$bob\"") x 20_000) . ',1]}}',
    );

    # One request with one of them, then many at a time, twice: what was there
    # is looked at, too.
    for my $i (0 .. $#acls) {
        for my $round (1 .. 2) {
            my ($status, $answer)
                = post(qq({"_id":"rules$i","acl":$acls[$i]}));
            is($status, 201, "rules $i, $round: written");
            is($answer->{global}, undef, "rules $i, $round: private");
        }
        is(copy("rules$i"), undef, "rules $i: no copy");
        is((expand($bob, "rules$i"))[0], 404, "rules $i: nobody may read it");
    }

    my $many = '[' . join(',', map { qq({"_id":"many$_","acl":$acls[0]}) }
                                   1 .. 10) . ']';

    for my $round (1 .. 2) {
        my ($status, $rows) = post($many);
        is($status, 201, "an array, $round");
        is_deeply([grep { !$_->{ok} || defined $_->{global} } @$rows], [],
                  '… all are written, and private');
    }

    SKIP: {
        # Its shadow memory makes up terabytes.
        skip('the sanitizer keeps what was freed', 1)
            if memory('VmSize') > 1024 * 1024 * 1024;

        my $peak = memory('VmHWM');
        diag("the worker's memory: $peak KB at most");
        cmp_ok($peak, '<', 300 * 1024, 'the worker has taken no more than that');
    }

    couch('POST', "/$own/_bulk_docs", { docs => [map { {
        _id => $_->{id}, _rev => $_->{value}{rev}, _deleted => $true } }
        grep { $_->{id} =~ /^(?:rules|many)/ }
        @{ (couch('GET', "/$own/_all_docs"))[1]{rows} }] });
};


sub nested { return '[' x $_[0] . '1' . ']' x $_[0] }


subtest 'nested as deep as may be' => sub {
    my %seen;

    for my $depth (90 .. 101) {
        my $deep = nested($depth);
        my $doc = qq({"_id":"deep$depth","deep":$deep,"k":"deep$depth");
        my $name = "$depth deep";

        my ($status, $answer) = post("$doc,\"acl\":{\"global\":true}}");
        $seen{$status}++;

        if ($status != 201) {
            is($status, 400, "$name: refused");
            is(copy("deep$depth"), undef, '… and not there');
            next;
        }

        ($status, $answer) = expand($bob, "deep$depth");
        is($status, 200, "$name: expanded");
        is($json->encode($answer->{deep}), $deep, '… as it is');

        ($status, my @ids) = query($bob, { k => "deep$depth" }, 1);
        is("$status @ids", "200 deep$depth", "$name: found in global");
        ($status, @ids) = query($alice, { k => "deep$depth" });
        is("$status @ids", "200 deep$depth", "$name: found by its owner");

        ($status, $answer) = post("$doc}");
        is($status, 201, "$name: withdrawn");
        is(copy("deep$depth"), undef, '… so that there is no copy');

        ($status) = post("$doc,\"acl\":{\"global\":true}}");
        is($status, 201, "$name: published again");
        ($status) = post({ _id => "deep$depth", _deleted => $true });
        is($status, 201, "$name: deleted");
        is(copy("deep$depth"), undef, '… so that there is no copy');
    }

    is_deeply([sort keys %seen], [201, 400], 'some are refused, some are not');
};


subtest 'nested deeper, past the module' => sub {
    my $deep = $json->decode(nested(150));

    my ($status) = post([map { { _id => "flat$_", k => 'page', %public } }
                             1 .. 3]);
    is($status, 201, 'there are documents');
    ($status) = couch('PUT', "/$own/steep", { collection => $posts,
        k => 'page', deep => $deep, %public });
    is($status, 201, 'and one that came past the module');

    ($status, my @ids) = query($alice, { k => 'page' });
    is("$status @{[ sort @ids ]}", '200 flat1 flat2 flat3 steep',
       'the owner\'s query has all of them');
    is((expand($alice, 'steep'))[0], 200, '… and an expansion, too');

    my $copy = copy('flat2');
    ($status) = couch('PUT', '/global/' . gid($alice, 'flat2'),
                      { %$copy, deep => $deep });
    is($status, 201, 'so it is in global');
    ($status, @ids) = query($bob, { k => 'page' }, 1);
    is("$status @{[ sort @ids ]}", '200 flat1 flat2 flat3',
       'a global query has all of them');
    is((expand($bob, 'flat2'))[0], 200, '… and an expansion, too');

    for my $id ('steep', 'flat2') {
        ($status) = post({ _id => $id, v => 2 });
        is($status, 201, "$id: written over");
        is(copy($id), undef, '… and withdrawn');
    }
};


# What stands in `global` in place of what the module wrote.

sub garble {
    my ($id, %members) = @_;

    my $copy = copy($id);
    my ($status) = couch('PUT', '/global/' . gid($alice, $id),
                         { %$copy, %members });
    is($status, 201, 'garbled');
}


subtest 'a copy whose readers cannot be understood' => sub {
    my %garbled = (
        'vibe_deny' => [undef, $bob, '*', ['*'], [1], [$eve, undef], [[$eve]],
                        {}, $false, 0],
        'vibe_read' => [undef, $bob, '*', [1], [$bob, {}], { $bob => $true },
                        $true],
        'vibe_access' => [undef, 'x', 1, [], ['public']],
    );

    for my $member (sort keys %garbled) {
        for my $value (@{ $garbled{$member} }) {
            my $name = "$member " . $json->encode($value);

            my ($status) = post({ _id => 'garbled',
                                  acl => { read => { allow => [$bob],
                                                     deny => [$eve] } } });
            is($status, 201, 'written');
            is((expand($bob, 'garbled'))[0], 200, '… and for one to be read');

            garble('garbled', $member => $value);
            is((expand($_, 'garbled'))[0], 404, "$name: not for others")
                for $bob, $eve;
            is((expand($alice, 'garbled'))[0], 200, "$name: for the owner");
        }
    }
};


subtest 'a copy whose format cannot be understood' => sub {
    for my $value (undef, 'x', '9', -1, 1.5, [], {}, $true, '') {
        my $name = 'vibe_v ' . $json->encode($value);

        my ($status) = post({ _id => 'format', v => 1, %public });
        is($status, 201, 'written');
        garble('format', vibe_v => $value);

        ($status, my $answer) = post({ _id => 'format', v => 2, %public });
        is($status, 201, "$name: the next write is mirrored");
        my $copy = copy('format');
        is($copy->{v}, 2, "$name: it is there");
        like($json->encode($copy->{vibe_v}), qr/^\d+$/, "$name: healed");

        garble('format', vibe_v => $value);
        ($status) = post({ _id => 'format', v => 3 });
        is($status, 201, "$name: withdrawn");
        is(copy('format'), undef, "$name: it is gone");
    }

    # But what a newer version of the module has written is its own.
    my ($status) = post({ _id => 'newer', v => 1, %public });
    garble('newer', vibe_v => 1000);
    ($status, my $answer) = post({ _id => 'newer', v => 2 });
    is("$status $answer->{mirror}", '202 pending', 'a newer format is left');
    is(copy('newer')->{v}, 1, '… as it is');
    couch('DELETE', '/global/' . gid($alice, 'newer') . '?rev='
                    . copy('newer')->{_rev});
};


$nginx->stop;

done_testing;
