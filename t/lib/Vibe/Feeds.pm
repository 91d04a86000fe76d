package Vibe::Feeds;

# What the tests of feeds share: registries, an nginx that runs them, and the
# independent witness, util/verify.sh.
#
#     my $file = registry(posts_feed(aggregationInterval => '1s'));
#     my $nginx = feeding($file);
#     my $feed = run_feed($nginx, '_global_posts');    # by hand; its status
#     is_fed($nginx, $file, 5, 'what it is about');

use strict;
use warnings;

use Cwd qw(abs_path);
use Exporter qw(import);
use File::Basename qw(dirname);
use HTTP::Tiny;
use JSON::PP;
use MIME::Base64 qw(encode_base64);
use Test::More ();
use Time::HiRes qw(sleep time);
use Vibe;

our @EXPORT = qw(
    registry put_registry posts_feed feeding run_feed feed_status pointer
    is_fed bulk patience
);

my $json = JSON::PP->new->utf8->canonical->allow_nonref;
my $root = abs_path(dirname(__FILE__) . '/../../..');

# As in Vibe::Mend: VIBE_STRICT=1 asks for what a machine of its own can do.
my $factor = $ENV{TEST_NGINX_BINARY} ? 4 : $ENV{VIBE_STRICT} ? 1 : 3;


# patience($seconds): as long as that may take here.

sub patience { return $_[0] * $factor }


# registry(@feeds): a file with them; put_registry($file, @feeds) replaces it.

sub registry { return put_registry(write_file(''), @_) }


sub put_registry {
    my ($file, @feeds) = @_;

    open(my $fh, '>', "$file.new") or die "$file: $!\n";
    print {$fh} $json->encode(\@feeds);
    close $fh or die "$file: $!\n";

    # The workers may be somebody else.
    chmod(0644, "$file.new");
    rename("$file.new", $file) or die "$file: $!\n";
    return $file;
}


# posts_feed(%member): the feed _global_posts; `selector`, `fields` and `sort`
# belong into its query.

sub posts_feed {
    my (%opt) = @_;

    my %query = (selector => { type => 'post' },
                 fields => ['_id', 'content', 'author', 'createdAt'],
                 sort => [{ createdAt => 'desc' }]);

    for my $name (qw(selector fields sort)) {
        $query{$name} = delete $opt{$name} if exists $opt{$name};
        delete $query{$name} if !defined $query{$name};
    }

    return { collectionName => 'posts', materializedViewName => '_global_posts',
             aggregationInterval => '1d', query => \%query, %opt };
}


# feeding($registry, %option): nginx_start() with these feeds; and
#
#     tap         => Vibe::Tap    between it and CouchDB
#     directives  => TEXT         more of them, for `http {}`
#     data        => TEXT         for the location /data/

sub feeding {
    my ($file, %opt) = @_;

    my $tap = delete $opt{tap};
    my $extra = "vibe_zone vibe 8m;\nvibe_registry $file;\n"
                . (delete $opt{directives} // '');
    my $data = delete $opt{data} // '';
    my $locations = "location = /vibe/status { vibe_status; }\n"
                    . "location = /vibe/aggregate { vibe_aggregate; }\n";

    return nginx_start(
        http => $tap ? $tap->http_config(extra => $extra)
                     : http_config(extra => $extra),
        server => server_config(extra => $locations, data => $data), %opt);
}


# run_feed($nginx [, $feed]): runs it, or all, and returns what is told of it,
# or of all; undef if that failed.

sub run_feed {
    my ($nginx, $feed) = @_;

    my ($status, $answer) = request($nginx, 'POST',
        '/vibe/aggregate' . (defined $feed ? "?feed=$feed" : ''));

    return if $status != 200 || !$answer->{ok};
    return defined $feed ? $answer->{feeds}{$feed} : $answer->{feeds};
}


# feed_status($nginx, $feed): what vibe_status tells of it, { } if nothing.

sub feed_status {
    my ($nginx, $feed) = @_;

    my ($status, $answer) = request($nginx, 'GET', '/vibe/status');
    return ($status == 200 && ref $answer eq 'HASH'
            && $answer->{feeds}{$feed}) || {};
}


# pointer($feed): its pointer, undef if there is none.

sub pointer {
    my ($feed) = @_;

    my ($status, $doc) = couch('GET', "/vibe_state/feed%3A$feed");
    return $status == 200 ? $doc : undef;
}


# bulk($db, @docs): writes documents straight into CouchDB; true if it took all.

sub bulk {
    my ($db, @docs) = @_;

    my ($url, $auth) = Vibe::couchdb();

    # See Vibe::Mend: a connection that is kept is slower.
    my $res = HTTP::Tiny->new(timeout => 60, keep_alive => 0)->request('POST',
        "$url/$db/_bulk_docs", {
            headers => { Authorization => 'Basic ' . encode_base64($auth, ''),
                         'Content-Type' => 'application/json' },
            content => $json->encode({ docs => \@docs }) });
    my $rows = eval { $json->decode($res->{content}) };

    return $res->{status} == 201 && ref $rows eq 'ARRAY'
           && !grep { !$_->{ok} } @$rows;
}


# is_fed($nginx, $registry, $seconds, $name [, @arguments]): that util/verify.sh
# finds nothing wrong with the feeds within that time; what it has counted.

sub is_fed {
    my ($nginx, $file, $seconds, $name, @arguments) = @_;

    local $Test::Builder::Level = $Test::Builder::Level + 1;

    my $began = time;
    my $end = $began + patience($seconds);
    my ($out, $status);

    do {
        $out = `'$root/util/verify.sh' --json --registry '$file' @arguments \\
                </dev/null 2>&1`;
        $status = $? >> 8;
    } while ($status == 1 && time < $end);

    my $ok = Test::More::is($status, 0, $name
                            . sprintf(' (%.1f s)', time - $began));
    my @lines = split /\n/, $out;

    return eval { $json->decode($lines[-1]) } // {} if $ok;

    Test::More::diag(join("\n", @lines > 20 ? (@lines[0 .. 15], $lines[-1])
                                            : @lines));
    _explain($nginx) if $nginx && $nginx->{pid};
    return {};
}


# The status and the end of the error log, which VIBE_KEEP_LOG=FILE keeps.

sub _explain {
    my ($nginx) = @_;

    my $log = $nginx->log;
    my @lines = grep { /\[(?:warn|error|crit|alert|emerg)\]/ } split /\n/, $log;

    splice(@lines, 0, -20) if @lines > 20;
    my (undef, $status) = request($nginx, 'GET', '/vibe/status');
    Test::More::diag($json->encode($status), "\n", join("\n", @lines));

    if (my $path = $ENV{VIBE_KEEP_LOG}) {
        open(my $fh, '>', $path) or die "$path: $!\n";
        print {$fh} $log;
        close $fh;
    }

    return;
}


1;
