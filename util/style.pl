#!/usr/bin/perl

# util/style.pl FILE...: what nginx's style asks of C and no other linter
# checks.  Prints what it finds, and fails if it found anything.

use strict;
use warnings;

my $MAX_LINE = 80;
my $MAX_FUNCTION = 100;

# Functions whose result is NULL when memory is short.
my $ALLOCATES = qr/(?: ngx_(?: p?n?alloc | pcalloc | calloc | pmemalign
                             | pool_cleanup_add | array_(?:create|push|push_n)
                             | list_(?:create|push) | create_temp_buf
                             | create_pool | (?:al|c)?alloc_buf
                             | alloc_chain_link | http_cleanup_add
                             | slab_[cm]?alloc(?:_locked)? )
                     | yajl_alloc | malloc | calloc | realloc
                     | pcre2_(?: match_data_create | compile )\w*
                     | EVP_(?: MD_CTX | PKEY_CTX )_new\w* | BIO_new\w* )/x;

# How far behind an allocation its check may be: a call of some lines, a blank
# one, and the check.
my $CHECK_WITHIN = 8;

my $found = 0;

for my $file (@ARGV) {
    open(my $fh, '<', $file) or die "$file: $!\n";
    my @lines = <$fh>;
    close $fh;

    my ($start, $name);
    my $previous = '';

    for my $i (0 .. $#lines) {
        my $line = $lines[$i];
        my $tell = sub {
            printf("%s:%d: %s\n", $file, $i + 1, $_[0]);
            $found = 1;
        };

        $tell->('no newline at the end') if $line !~ s/\n\z//;
        $tell->("over $MAX_LINE columns") if length $line > $MAX_LINE;
        $tell->('tab') if $line =~ /\t/;
        $tell->('trailing blank') if $line =~ /\s\z/;
        $tell->('leftover') if $line =~ /\b(?:TODO|FIXME|XXX|HACK)\b/;
        $tell->('leftover') if $line =~ /^\s*#\s*if\s+0\b/;

        # Neither strings nor comments are code.
        (my $code = $line) =~ s/"(?:[^"\\]|\\.)*"/""/g;
        $code =~ s{/\*.*?(?:\*/|$)}{}g;
        $code = '' if $code =~ m{^\s*\*(?:\s|/|$)};

        $tell->('// comment') if $code =~ m{//};
        $tell->('debug leftover')
            if $code =~ /\b(?:f?printf|puts|perror|abort|assert|raise)\s*\(/;

        if ($code =~ /^([a-z]\w*)\(/) {
            $name = $1;
        }
        if ($code eq '{') {
            $start = $i;
        }
        if ($code =~ /^\}/ && defined $start) {
            my $length = $i - $start + 1;
            $tell->("$name is $length lines long")
                if defined $name && $length > $MAX_FUNCTION;
            undef $start;
            undef $name;
        }

        my $front = $previous;
        $previous = $code if $code =~ /\S/;
        next if $code !~ /^(.*?)\b$ALLOCATES\(/;

        my $before = $1;
        $before = $front if $before !~ /\S/;
        my $last = $i + $CHECK_WITHIN;
        my $after = join('', @lines[$i .. ($last > $#lines ? $#lines : $last)]);

        if ($before =~ /([\w>.\[\]*()-]+)\s*=\s*$/) {
            my $var = quotemeta $1;
            $tell->('result is not checked')
                if $after !~ /$var\s*[!=]=\s*NULL|!\s*$var\b|return\s+$var;/
                   && $before !~ /\bif\s*\(/;

        } elsif ($before =~ /(?:^|[{};]|\(void\))\s*$/) {
            $tell->('result is not used');
        }
    }
}

exit $found;
