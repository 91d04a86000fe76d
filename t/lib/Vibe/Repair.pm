package Vibe::Repair;

# What the tests of repair share: the configuration with a zone and a status,
# the independent witness, and what /proc tells of processes.

use strict;
use warnings;

use Cwd qw(abs_path);
use Exporter qw(import);
use File::Basename qw(dirname);
use JSON::PP;
use Test::More ();
use Time::HiRes qw(time);
use Vibe ();

our @EXPORT = qw(repair_http repair_server status is_ready is_right is_few
                 is_alive began_at memory);

my $json = JSON::PP->new->utf8->canonical->pretty;

my $root = abs_path(dirname(__FILE__) . '/../../..');


# repair_http(%option), repair_server(%option): as http_config() and
# server_config(), and with what repair needs.

sub repair_http {
    my (%opt) = @_;

    my $plain = Vibe::http_config(%opt);
    return $plain if $plain =~ /^\s*vibe_zone\s/m;
    return $plain . "vibe_zone vibe 8m;\n";
}


sub repair_server {
    my (%opt) = @_;

    return Vibe::server_config(%opt)
           . "location = /vibe/status { vibe_status; }\n";
}


# is_ready($nginx, $seconds): that global queries are answered within that time.

sub is_ready {
    my ($nginx, $seconds) = @_;

    my $ready = Vibe::wait_for {
        (Vibe::request($nginx, 'GET', '/vibe/status?ready'))[0] == 200;
    } $seconds;

    my $ok = Test::More::ok($ready, "`global` is complete within $seconds s");
    _explain($nginx) if !$ok;
    return $ok;
}


# status($nginx): what /vibe/status says; undef if there is no answer.

sub status {
    my ($nginx) = @_;

    my ($status, $data) = Vibe::request($nginx, 'GET', '/vibe/status');
    return $status == 200 && ref $data eq 'HASH' ? $data : undef;
}


# is_right($nginx, $seconds): that util/verify.sh finds nothing wrong within
# that time.

sub is_right {
    my ($nginx, $seconds) = @_;

    my $began = time;
    my @wrong = _verify($seconds);

    return 1 if is_few(\@wrong, "util/verify.sh finds nothing wrong within"
                                . " $seconds s (after "
                                . sprintf('%.1f s)', time - $began));

    _explain($nginx);
    return 0;
}


# Shows the status and the end of the error log, which VIBE_KEEP_LOG=FILE keeps.

sub _explain {
    my ($nginx) = @_;

    my $log = $nginx->log;
    my @lines = grep { /\[(?:warn|error|crit|alert|emerg)\]/ } split /\n/, $log;

    splice(@lines, 0, -20) if @lines > 20;
    Test::More::diag($json->encode(status($nginx) // {}), join("\n", @lines));

    if (my $path = $ENV{VIBE_KEEP_LOG}) {
        open(my $fh, '>', $path) or die "$path: $!\n";
        print {$fh} $log;
        close $fh;
    }

    return;
}


sub _verify {
    my ($seconds) = @_;

    my $end = time + $seconds;
    my ($out, $status);

    do {
        $out = `'$root/util/verify.sh' </dev/null 2>&1`;
        $status = $? >> 8;
        return if $? == 0;
    } while (time < $end && $status == 1);

    return ("util/verify.sh ended with $status", split /\n/, $out);
}


# is_few(\@wrong, $name): that there are none; shows some if there are.

sub is_few {
    my ($wrong, $name) = @_;

    my $ok = Test::More::is(scalar @$wrong, 0, $name);
    Test::More::diag(join("\n", @$wrong[0 .. ($#$wrong > 9 ? 9 : $#$wrong)]))
        if !$ok;
    return $ok;
}


# is_alive($pid [, $began]): that it runs, and is the one that began then.

sub is_alive {
    my ($pid, $began) = @_;

    my ($state, @rest)
        = Vibe::read_file("/proc/$pid/stat") =~ /\) (\S) (.*)/s or return 0;

    return $state !~ /[ZX]/ && (!defined $began || $began == began_at($pid));
}


# began_at($pid): when, in the kernel's ticks.

sub began_at {
    my ($pid) = @_;

    my ($rest) = Vibe::read_file("/proc/$pid/stat") =~ /\) (.*)/s or return 0;
    return (split ' ', $rest)[19];
}


# memory(@pid): of all of them, in KB.

sub memory {
    my $sum = 0;

    for my $pid (@_) {
        $sum += $1 if Vibe::read_file("/proc/$pid/status")
                      =~ /^VmRSS:\s+(\d+)/m;
    }

    return $sum;
}


1;
