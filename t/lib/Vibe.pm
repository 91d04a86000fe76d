package Vibe;

# What the tests of this module share.  Load it after Test::Nginx::Socket:
#
#     use Test::Nginx::Socket 'no_plan';
#     use Vibe;
#
# A block without `--- http_config` or `--- config` gets http_config() and
# server_config(), and every block fails if its error log holds a sanitizer's
# report (unless it has a `--- no_error_log` of its own; for an [alert], [crit]
# or [emerg] Test::Nginx does that itself).  The CouchDB is that of
# VIBE_COUCHDB_URL, which util/test.sh sets.

use strict;
use warnings;

use Cwd qw(abs_path);
use Digest::SHA qw(hmac_sha256);
use Exporter qw(import);
use Fcntl qw(SEEK_SET);
use File::Basename qw(dirname);
use File::Temp qw(tempdir);
use HTTP::Tiny;
use IO::Select;
use IO::Socket::INET;
use JSON::PP;
use MIME::Base64 qw(encode_base64 encode_base64url);
use POSIX ();
use Test::More ();
use Time::HiRes qw(sleep time);

our @EXPORT = qw(
    http_config server_config
    did userdb gid
    token bearer test_key keypair
    couch request wait_for
    mock requests
    nginx_start free_port write_file read_file
);

# What must not be found in an error log.
our $BAD_LOG = qr/\[alert\]|\[emerg\]|Sanitizer|runtime error
                 |exited\ on\ signal/x;

my $json = JSON::PP->new->utf8->canonical->allow_nonref;
my $root = abs_path(dirname(__FILE__) . '/../..');
my $owner = $$;
my $run = sprintf('%x%04x', time, int(rand(65536)) ^ ($$ & 65535));
my $key = join('', map { sprintf('%02x', int(rand(256))) } 1 .. 32);
my ($dir, $files, @children);


sub dir {
    # Below TMPDIR, which util/test.sh puts into the checkout; 0700.
    return $dir //= tempdir('vibe-XXXXXX', TMPDIR => 1, CLEANUP => 1);
}


# write_file($text [, $name]): a file of mode 0600 that lives as long as the
# test; returns its path.

sub write_file {
    my ($text, $name) = @_;

    my $path = dir() . '/' . ($name // 'file' . ++$files);

    unlink $path;
    sysopen(my $fh, $path, Fcntl::O_WRONLY | Fcntl::O_CREAT, 0600)
        or die "$path: $!\n";
    print {$fh} $text;
    close $fh or die "$path: $!\n";

    return $path;
}


sub read_file {
    my ($path) = @_;

    open(my $fh, '<:raw', $path) or return '';
    local $/;
    return scalar <$fh> // '';
}


# The CouchDB under test, taken from VIBE_COUCHDB_URL.

sub couchdb {
    my ($scheme, $auth, $host)
        = ($ENV{VIBE_COUCHDB_URL} // '')
          =~ m{^(https?)://([^@/]+:[^@/]+)@([^/@]+)/?$}
        or die "VIBE_COUCHDB_URL is not http://user:password\@host:port"
               . " (run the tests with util/test.sh)\n";

    $host .= $scheme eq 'https' ? ':443' : ':80' if $host !~ /:\d+$/;
    $auth =~ s/%([0-9a-f]{2})/chr hex $1/gei;

    return ("$scheme://$host", $auth);
}


# http_config(%option): what belongs into `http {}`.
#
#     couchdb      => URL         where CouchDB is: a mock's, for example
#     servers      => TEXT        the upstream's `server` lines
#     credentials  => TEXT        another user:password
#     key          => TEXT|undef  another HS256 secret, or no vibe_jwt_key
#     index        => TEXT|undef  in place of `* createdAt`, or no vibe_index
#     anonymous    => 'on'
#     extra        => TEXT        more lines

sub http_config {
    my (%opt) = @_;

    my ($url, $auth) = $opt{couchdb} ? ($opt{couchdb}, 'admin:secret')
                                     : couchdb();
    my ($scheme, $host) = $url =~ m{^(https?)://([^/]+)};

    my $servers = $opt{servers} // "server $host max_fails=0;";
    my $config = "upstream couchdb { $servers keepalive 64; }\n"
                 . "vibe_couchdb $scheme://couchdb;\n"
                 . 'vibe_credentials '
                 . write_file(($opt{credentials} // $auth) . "\n") . ";\n";

    if (!exists $opt{key} || defined $opt{key}) {
        my $path = write_file(($opt{key} // $key) . "\n");
        $config .= "vibe_jwt_key $path;\n";
    }

    if (!exists $opt{index} || defined $opt{index}) {
        $config .= 'vibe_index ' . ($opt{index} // '* createdAt') . ";\n";
    }

    $config .= "vibe_anonymous $opt{anonymous};\n" if $opt{anonymous};
    $config .= $opt{extra} . "\n" if $opt{extra};

    return $config;
}


# server_config(%option): what belongs into `server {}`: conf/vibe_couchdb.conf
# and the location /data/.
#
#     data   => TEXT   more lines for the location /data/
#     extra  => TEXT   more lines for the server
#     any directive of vibe_couchdb.conf => its value
#                      (proxy_read_timeout => '1s')

sub server_config {
    my (%opt) = @_;

    my $data = delete $opt{data} // '';
    my $extra = delete $opt{extra} // '';
    my $couchdb = read_file("$root/conf/vibe_couchdb.conf");

    for my $name (sort keys %opt) {
        $couchdb =~ s/^(\s*\Q$name\E\s+)[^;]*;/$1$opt{$name};/m
            or die "vibe_couchdb.conf has no $name\n";
    }

    return "$couchdb\nlocation /data/ {\n    vibe_data;\n    $data\n}\n$extra\n";
}


# did($name): a DID that no other run of the tests has had.

sub did {
    my ($name) = @_;

    return "did:vibe:$run:$name";
}


# userdb($did): the name of its database, as the module makes it.

sub userdb {
    my ($did) = @_;

    return 'userdb-' . unpack('H*', $did);
}


# gid($did, $id): the document's id in `global`.

sub gid {
    my ($did, $id) = @_;

    $id =~ s/%/%25/g;
    $id =~ s/:/%3A/g;
    return "$did:$id";
}


# test_key(): the secret that http_config() and token() use.

sub test_key { return $key }


# token($did, %claim): a JWT.  A claim that is undef is left out; `sub`, `iat`
# and `exp` are there by default.  Three options look like claims:
#
#     -alg     => HS256 (default), none, RS256, ES256, EdDSA; another name
#                 is signed as HS256
#     -key     => the secret, or the path of a private key in PEM
#     -header  => { more members of the header }

sub token {
    my ($did, %claim) = @_;

    my $alg = delete $claim{-alg} // 'HS256';
    my $secret = delete $claim{-key} // $key;
    my $more = delete $claim{-header} // {};

    my $now = int(time);
    %claim = (sub => $did, iat => $now, exp => $now + 600, %claim);
    delete @claim{grep { !defined $claim{$_} } keys %claim};

    my $head = { alg => $alg, typ => 'JWT', %$more };
    my $signed = join('.', map { encode_base64url($json->encode($_)) }
                           $head, \%claim);

    return "$signed." . encode_base64url(_sign($alg, $secret, $signed));
}


sub _sign {
    my ($alg, $secret, $text) = @_;

    return '' if $alg eq 'none';
    return hmac_sha256($text, $secret) if $alg !~ /^(?:RS256|ES256|EdDSA)$/;

    my $in = write_file($text);
    my $signature = $alg eq 'EdDSA'
        ? `openssl pkeyutl -sign -rawin -inkey '$secret' -in '$in'`
        : `openssl dgst -sha256 -sign '$secret' '$in'`;
    die "openssl could not sign ($alg)\n" if $?;

    if ($alg eq 'ES256') {
        # From DER to the two numbers of 32 bytes that a JWT has.
        my ($r, $s) = unpack('x3 C/a x C/a', $signature);
        $signature = join('', map { substr(("\0" x 32) . $_, -32) } $r, $s);
    }

    return $signature;
}


# keypair($alg): a new key for RS256, ES256 or EdDSA; returns the paths of the
# private and of the public PEM file.

sub keypair {
    my ($alg) = @_;

    my %kind = (
        RS256 => 'RSA -pkeyopt rsa_keygen_bits:2048',
        ES256 => 'EC -pkeyopt ec_paramgen_curve:P-256',
        EdDSA => 'ED25519',
    );
    my $private = write_file('');
    my $public = write_file('');

    system("openssl genpkey -algorithm $kind{$alg} -out '$private'"
           . " 2>/dev/null"
           . " && openssl pkey -in '$private' -pubout -out '$public'") == 0
        or die "openssl could not make a key ($alg)\n";

    return ($private, $public);
}


# bearer($did, %claim): the header line with a token.

sub bearer { return 'Authorization: Bearer ' . token(@_) }


# couch($method, $path [, $body]): asks CouchDB itself, as its admin.  A
# reference is sent as JSON.  Returns the status and the decoded answer.

sub couch {
    my ($method, $path, $body) = @_;

    my ($url, $auth) = couchdb();
    my ($status, $data) = _http($method, $url . $path, $body,
        Accept => 'application/json',
        Authorization => 'Basic ' . encode_base64($auth, ''));

    return ($status, $data);
}


# request($nginx|$port, $method, $path [, $token [, $body [, %header]]]): asks
# an nginx of nginx_start().  Returns the status, the answer (decoded where it
# is JSON), its headers, and the answer as it came.

sub request {
    my ($nginx, $method, $path, $token, $body, %header) = @_;

    my $port = ref $nginx ? $nginx->port : $nginx;

    $header{Authorization} = "Bearer $token" if defined $token;
    return _http($method, "http://127.0.0.1:$port$path", $body, %header);
}


sub _http {
    my ($method, $url, $body, %header) = @_;

    if (defined $body) {
        $body = $json->encode($body) if ref $body;
        $header{'Content-Type'} //= 'application/json';
    }

    my $res = HTTP::Tiny->new(timeout => 60, max_redirect => 0)->request(
        $method, $url,
        { headers => \%header, defined $body ? (content => $body) : () });

    # 599 is HTTP::Tiny's own: there was no answer.
    return (599, $res->{content}, {}, '') if $res->{status} == 599;

    my $data = eval { $json->decode($res->{content}) };
    return ($res->{status}, $@ ? $res->{content} : $data, $res->{headers},
            $res->{content});
}


# wait_for { ... } [$seconds]: until the block returns something true, which it
# returns; nothing after that time (10 s).

sub wait_for (&;$) {
    my ($check, $seconds) = @_;

    my $end = time + ($seconds // 10);

    for (;;) {
        my $value = $check->();
        return $value if $value;
        return if time > $end;
        sleep 0.02;
    }
}


# free_port(): a port on which nobody listens now.

sub free_port {
    return IO::Socket::INET->new(Listen => 1, LocalAddr => '127.0.0.1',
                                 ReuseAddr => 1)->sockport;
}


# mock { my ($method, $path, $body, $header) = @_; ... }: a server that stands
# in for CouchDB.  It is one process, so the block may keep state.  It returns
# a status and a body (a reference is sent as JSON), and may add
#
#     delay => SECONDS        answer then
#     headers => { ... }      more headers
#     half => 1               end after half of the body
#     raw => BYTES            exactly this, and close
#     close => 1              say nothing, and close
#
# (the last two without a status).  Returns an object with `port` and `url`;
# what was asked is told by requests().

sub mock (&) {
    my ($handler) = @_;

    my $listen = IO::Socket::INET->new(Listen => 1024, ReuseAddr => 1,
                                       LocalAddr => '127.0.0.1')
        or die "mock: $@\n";
    my $mock = { port => $listen->sockport, log => write_file('') };
    $mock->{url} = "http://127.0.0.1:$mock->{port}";

    $mock->{pid} = _fork(sub { _serve($listen, $handler, $mock->{log}) });

    return $mock;
}


# requests($mock): what it was asked so far, each as { method, path, header,
# body }, in order.

sub requests {
    my ($mock) = @_;

    return map { $json->decode($_) } split /\n/, read_file($mock->{log});
}


sub _fork {
    my ($work) = @_;

    my $pid = fork // die "fork: $!\n";

    if ($pid == 0) {
        $SIG{$_} = 'DEFAULT' for qw(INT TERM);
        eval { $work->() };
        warn $@ if $@;
        POSIX::_exit(1);
    }

    push @children, $pid;
    return $pid;
}


sub _serve {
    my ($listen, $handler, $log) = @_;

    open(my $record, '>>', $log) or die "$log: $!\n";
    $record->autoflush(1);
    $SIG{PIPE} = 'IGNORE';

    my $select = IO::Select->new($listen);
    my (%in, @later);

    for (;;) {
        my ($next) = sort { $a <=> $b } map { $_->{at} } @later;
        my $wait = defined $next ? $next - time : 1;
        my @ready = $select->can_read($wait < 0 ? 0 : $wait > 1 ? 1 : $wait);

        # The test was killed and could not end this one.
        return if getppid != $owner;

        for my $c (@ready) {
            if ($c == $listen) {
                my $new = $listen->accept or next;
                $select->add($new);
                $in{$new} = '';
                next;
            }

            if (!sysread($c, $in{$c}, 65536, length $in{$c})) {
                $select->remove($c);
                delete $in{$c};
                @later = grep { $_->{c} != $c } @later;
                close $c;
                next;
            }

            while (my ($method, $path, $header, $body)
                       = _take_request(\$in{$c}))
            {
                print {$record} $json->encode({
                    method => $method, path => $path,
                    header => $header, body => $body }), "\n";

                my @answer = $handler->($method, $path, $body, $header);
                my ($bytes, $close, $delay) = _answer(@answer);
                push @later, { c => $c, at => time + $delay,
                               bytes => $bytes, close => $close };
            }
        }

        my $now = time;
        my @due = grep { $_->{at} <= $now } @later;
        @later = grep { $_->{at} > $now } @later;

        for my $a (@due) {
            my $c = $a->{c};
            next if !exists $in{$c};

            my $sent = 0;
            while ($sent < length $a->{bytes}) {
                $sent += syswrite($c, $a->{bytes}, 65536, $sent) // last;
            }

            if ($a->{close}) {
                $select->remove($c);
                delete $in{$c};
                close $c;
            }
        }
    }
}


# Takes a whole request off the front of the buffer, if there is one.

sub _take_request {
    my ($in) = @_;

    my $end = index($$in, "\r\n\r\n");
    return if $end < 0;

    my ($line, @lines) = split /\r\n/, substr($$in, 0, $end);
    my ($method, $path) = split / /, $line;
    my %header = map { /^([^:]+):\s*(.*)$/ ? (lc $1 => $2) : () } @lines;

    my $length = $header{'content-length'} // 0;
    return if length $$in < $end + 4 + $length;

    my $body = substr($$in, $end + 4, $length);
    substr($$in, 0, $end + 4 + $length) = '';

    return ($method, $path, \%header, $body);
}


# What the handler returned, as bytes, whether to close then, and when.

sub _answer {
    my @answer = @_;

    my ($status, $body) = @answer % 2 == 0 && $answer[0] =~ /^\d+$/
                              ? splice(@answer, 0, 2) : ();
    my %opt = @answer;
    my $delay = $opt{delay} // 0;

    return ('', 1, $delay) if $opt{close};
    return ($opt{raw}, 1, $delay) if defined $opt{raw};

    $body = $json->encode($body) if ref $body;
    my $length = length $body;
    $body = substr($body, 0, $length / 2) if $opt{half};

    my %header = ('Content-Type' => 'application/json',
                  'Content-Length' => $length, %{ $opt{headers} // {} });
    my $head = join('', map { "$_: $header{$_}\r\n" } sort keys %header);

    return ("HTTP/1.1 $status Mock\r\n$head\r\n$body", $opt{half}, $delay);
}


# nginx_start(%option): an nginx of the test's own, on a free port; returns an
# object of Vibe::Nginx, see below.
#
#     http     => TEXT   default http_config()
#     server   => TEXT   default server_config()
#     main     => TEXT   more lines for the top
#     listen   => TEXT   more words for `listen`: 'http2'
#     workers  => 1
#     level    => 'info'   of error_log
#     port     => NUMBER   not just any free one
#     upgradable => 1      for upgrade(); outlives a test that gets killed
#     expected => qr/.../  lines of its error log that are no failure

sub nginx_start { return Vibe::Nginx->start(@_) }


# Test::Nginx listens on all addresses if it is not told otherwise.

sub _loopback {
    no warnings 'once';

    my $port = $Test::Nginx::Util::ServerPort;
    return if !defined $port || $port !~ /^\d+$/ || $ENV{TEST_NGINX_USE_HUP};

    $ENV{TEST_NGINX_SERVER_PORT} //= $port;
    $ENV{TEST_NGINX_STREAM_PORT} //= $port + 1;
    $Test::Nginx::Util::ServerPort = "127.0.0.1:$port";
}


if ($INC{'Test/Nginx/Socket.pm'}) {
    _loopback();

    Test::Nginx::Socket::add_block_preprocessor(sub {
        my ($block) = @_;

        $block->set_value(http_config => http_config())
            if !defined $block->http_config;
        $block->set_value(config => server_config())
            if !defined $block->config;
        $block->set_value(no_error_log => qr/Sanitizer|runtime error/)
            if !defined $block->no_error_log;
    });
}


# A signal must end what was started: END blocks do.
$SIG{$_} = sub { exit 1 } for qw(INT TERM HUP);

END {
    if ($$ == $owner) {
        local $?;
        kill 'TERM', @children if @children;
        waitpid($_, 0) for @children;
    }
}


package Vibe::Nginx;

use Time::HiRes qw(sleep time);


sub start {
    my ($class, %opt) = @_;

    my $prefix = File::Temp::tempdir('nginx-XXXXXX', DIR => Vibe::dir());
    my $self = bless { prefix => $prefix, %opt }, $class;

    # Someone else may take the port between the search for it and its use.
    for my $try (1 .. 3) {
        $self->{port} = $opt{port} // Vibe::free_port();
        $self->_run and return $self;
        last if $self->log !~ /bind\(\).* failed/;
    }

    die "nginx did not start:\n" . $self->log;
}


sub _run {
    my ($self) = @_;

    my $binary = _binary();
    my $conf = "$self->{prefix}/nginx.conf";

    $self->write_config;
    unlink "$self->{prefix}/nginx.pid";
    open(my $log, $self->{crashed} ? '>>' : '>', $self->error_log) or die $self->error_log . ": $!\n";

    my @command = ($binary, '-p', "$self->{prefix}/", '-c', $conf,
                   '-e', $self->error_log);

    # It ends with the test, even if that gets killed.
    unshift @command, 'setpriv', '--pdeathsig', 'TERM', '--'
        if !$self->{upgradable};

    my $work = sub {
        open(STDERR, '>&', $log) or die "stderr: $!\n";
        exec(@command) or die "$binary: $!\n";
    };

    $self->{pid} = $self->{upgradable} ? $self->_orphan($work)
                                       : Vibe::_fork($work);

    # Its port is open before it has made its workers.
    my $workers = $self->{workers} // 1;

    Vibe::wait_for {
        return 1 if $self->ended($self->{pid});
        return -e "$self->{prefix}/nginx.pid"
               && $self->workers >= $workers
               && IO::Socket::INET->new(PeerAddr => '127.0.0.1',
                                        PeerPort => $self->{port});
    } 20;

    return kill(0, $self->{pid});
}


# A master is upgraded only if the process that it began under has ended: until
# then it takes itself for a new binary.

sub _orphan {
    my ($self, $work) = @_;

    my $file = "$self->{prefix}/nginx.pid";
    my $parent = Vibe::_fork(sub {
        my $pid = fork // die "fork: $!\n";
        $work->() if $pid == 0;
        Vibe::wait_for { -s $file || waitpid($pid, POSIX::WNOHANG) != 0 } 20;
        POSIX::_exit(0);
    });

    waitpid($parent, 0);
    my ($pid) = Vibe::read_file($file) =~ /^(\d+)/;
    return $parent if !defined $pid;

    push @children, $pid;
    return $pid;
}


# With its path: an upgrade starts what argv[0] says.

sub _binary {
    my $name = $ENV{TEST_NGINX_BINARY} || 'nginx';
    return $name if $name =~ m{/};

    my ($path) = grep { -x } map { "$_/$name" } split /:/, $ENV{PATH};
    return $path // $name;
}


# write_config(%option): the options of nginx_start() that change, for reload().

sub write_config {
    my ($self, %opt) = @_;

    %$self = (%$self, %opt);

    my $load = join('', map { "load_module $_;\n" }
                        split ' ', $ENV{TEST_NGINX_LOAD_MODULES} // '');
    my $user = $> == 0 ? "user root;\n" : '';
    my $temp = join('', map { "${_}_temp_path $self->{prefix}/$_;\n" }
                        qw(client_body proxy fastcgi uwsgi scgi));
    my $http = $self->{http} // Vibe::http_config();
    my $server = $self->{server} // Vibe::server_config();
    my $main = $self->{main} // '';
    my $listen = $self->{listen} // '';
    my $workers = $self->{workers} // 1;
    my $level = $self->{level} // 'info';
    my $conf = "$self->{prefix}/nginx.conf";

    open(my $fh, '>', $conf) or die "$conf: $!\n";
    print {$fh} <<"EOF";
$load$user
daemon off;
worker_processes $workers;
pid nginx.pid;
error_log @{[ $self->error_log ]} $level;
$main
events { worker_connections 1024; }
http {
access_log off;
$temp
$http
server {
listen 127.0.0.1:$self->{port} $listen;
$server
}
}
EOF
    close $fh or die "$conf: $!\n";
}


sub port { return $_[0]{port} }

sub pid { return $_[0]{pid} }

# error_log(): its path; log(): what is in it.

sub error_log { return "$_[0]{prefix}/error.log" }

sub log { return Vibe::read_file($_[0]->error_log) }


# workers(): their process ids.

sub workers {
    my ($self) = @_;

    my $pid = $self->{pid};
    my @pids = split ' ', Vibe::read_file("/proc/$pid/task/$pid/children");

    return @pids;
}


sub signal {
    my ($self, $name) = @_;

    return kill($name, $self->{pid});
}


# reload(%option): with these options changed; returns when the new workers are
# there (the old ones may still be at work), false if none came.

sub reload {
    my ($self, %opt) = @_;

    my %old = map { $_ => 1 } $self->workers;

    $self->write_config(%opt);
    $self->signal('HUP');

    return Vibe::wait_for { scalar grep { !$old{$_} } $self->workers };
}


# crash(): kill -9, the master and all workers; again(): starts it on the same
# port, true if it runs then.

sub crash {
    my ($self) = @_;

    my $pid = $self->{pid};

    # A master that stands makes no worker meanwhile.
    kill('STOP', $pid);
    my @workers = $self->workers;
    kill('KILL', @workers, $pid);
    waitpid($pid, 0);
    Vibe::wait_for { !grep { !$self->ended($_) } @workers };
    @children = grep { $_ != $pid } @children;
    $self->{crashed} = 1;
}


sub again { return $_[0]->_run }


# upgrade(): starts the binary anew beside the one that runs, and is the new
# one from then on; returns the old master's pid, nothing if no new one came.

sub upgrade {
    my ($self) = @_;

    my $old = $self->{pid};
    my $file = "$self->{prefix}/nginx.pid";

    $self->signal('USR2');

    my $new = Vibe::wait_for {
        my ($pid) = Vibe::read_file($file) =~ /^(\d+)\n/;
        return defined $pid && $pid != $old && $pid;
    } or return;

    $self->{pid} = $new;
    push @children, $new;

    my $workers = $self->{workers} // 1;
    Vibe::wait_for { $self->workers >= $workers } or return;

    return $old;
}


# ended($pid): whether a master has; it is not our child after an upgrade.

sub ended {
    my ($self, $pid) = @_;

    my $got = waitpid($pid, POSIX::WNOHANG);

    return $got == $pid if $got >= 0;
    return Vibe::read_file("/proc/$pid/stat") !~ /\) [^ZX]/;
}


# stop([$signal]): ends it (QUIT: lets it finish), and is a test: that it ended,
# and that nothing bad is in its error log.

sub stop {
    my ($self, $signal) = @_;

    my $pid = delete $self->{pid} // return;

    kill($signal // 'QUIT', $pid);
    my $ended = Vibe::wait_for { $self->ended($pid) } 30;

    if (!$ended) {
        kill('KILL', $pid);
        waitpid($pid, 0);
    }
    @children = grep { $_ != $pid } @children;

    my @bad = grep { /$Vibe::BAD_LOG/ } split /\n/, $self->log;
    @bad = grep { !/$self->{expected}/ } @bad if $self->{expected};
    push @bad, 'it did not end within 30 s' if !$ended;

    Test::More::ok(!@bad, 'nginx ended, with nothing bad in its error log')
        or Test::More::diag(join("\n", @bad[0 .. ($#bad > 19 ? 19 : $#bad)]));
}


1;
