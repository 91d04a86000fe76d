#!/usr/bin/env bash
#
# util/token.sh DID [INSTANCE]: prints a token (a JWT, HS256) for the
# development key of VIBE_HOME, good for a day or VIBE_TOKEN_TTL seconds.
# INSTANCE becomes its `instanceId`, which names the user's database.

. "$(dirname "$0")/setup.sh"

did=${1:-}
instance=${2:-}
ttl=${VIBE_TOKEN_TTL:-86400}

if [ $# -lt 1 ] || [ $# -gt 2 ]; then
    echo "usage: ${0##*/} DID [INSTANCE]" >&2
    exit 2
fi

# What is let through needs no escapes in JSON.
[[ $did =~ ^did:[a-z0-9]+:[A-Za-z0-9._:%-]+$ ]] || die "not a DID: $did"
[[ $instance =~ ^[a-z0-9_-]{0,200}$ ]] || die "not an instance: $instance"
[[ $ttl =~ ^-?[0-9]{1,9}$ ]] || die "VIBE_TOKEN_TTL is not a number: $ttl"

need token
use_home

# In Perl, since openssl would want the secret on its command line.
perl -MDigest::SHA=hmac_sha256 -MMIME::Base64=encode_base64url -e '
    my ($file, $did, $instance, $ttl) = @ARGV;

    open(my $fh, "<", $file) or die "$file: $!\n";
    chomp(my $key = <$fh>);

    my $now = time;
    my $claims = sprintf(q({"sub":"%s",%s"iat":%d,"exp":%d}), $did,
                         $instance eq "" ? "" : qq("instanceId":"$instance",),
                         $now, $now + $ttl);
    my $token = join(".", map { encode_base64url($_) }
                          q({"alg":"HS256","typ":"JWT"}), $claims);

    print $token, ".", encode_base64url(hmac_sha256($token, $key)), "\n";
' "$home/vibe.key" "$did" "$instance" "$ttl"
