package Vibe::Prometheus;

# Reads what vibe_status?format=prometheus says.

use strict;
use warnings;

use Exporter qw(import);

our @EXPORT = qw(prometheus);


# prometheus($text): the text format 0.0.4, strictly: returns the types and
# the values by series; dies of what a scraper need not take.

sub prometheus {
    my ($text) = @_;

    my $name = qr/[a-zA-Z_:][a-zA-Z0-9_:]*/;
    my $label = qr/[a-zA-Z_][a-zA-Z0-9_]*="(?:[^"\\\n]|\\[\\"n])*"/;
    my $number = qr/[+-]?(?:\d+(?:\.\d*)?(?:e[+-]?\d+)?|Inf)|NaN/;
    my (%help, %type, %value, %ended, $family);

    $text =~ s/\n\z// or die "the last line does not end\n";

    for (split /\n/, $text, -1) {
        if (/^# HELP ($name) (\S.*)$/) {
            die "HELP twice: $_\n" if $help{$1}++;
            die "a stray backslash: $_\n" if $2 =~ /\\(?![\\n])/;

        } elsif (/^# TYPE ($name) (counter|gauge|untyped)$/) {
            die "TYPE twice: $_\n" if $type{$1};
            die "TYPE without HELP: $_\n" if !$help{$1};
            $type{$1} = $2;
            $ended{$family} = 1 if defined $family;
            $family = $1;

        } elsif (/^($name)(?:\{($label(?:,$label)*)\})? ($number)$/) {
            my ($n, $labels, $v) = ($1, $2 // '', $3);

            die "no TYPE before: $_\n" if !$type{$n};
            die "not with its family: $_\n" if $n ne $family || $ended{$n};

            my $series = "$n\{" . join(',', sort $labels =~ /$label/g) . '}';
            die "twice: $_\n" if exists $value{$series};
            $value{$series} = $v;

            die "a counter: $_\n"
                if $type{$n} eq 'counter' && ($n !~ /_total$/ || $v =~ /^-/);
            die "a gauge: $_\n" if $type{$n} ne 'counter' && $n =~ /_total$/;

        } else {
            die "not understood: $_\n";
        }
    }

    my %sampled = map { /^([^{]+)/ => 1 } keys %value;
    for (sort keys %help) {
        die "no sample of $_\n" if !$sampled{$_};
    }

    return (\%type, \%value);
}


1;
