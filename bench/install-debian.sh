#!/bin/sh
# The benchmark's peers that Debian has, and what its load client needs for TLS.
# Installs them as root where apt is there; otherwise names what is missing, and the report says so too.
set -eu

missing=""
PATH="$PATH:/usr/sbin:/sbin" command -v nginx >/dev/null 2>&1 || missing="$missing nginx-light"
[ -e /usr/lib/nginx/modules/ngx_nchan_module.so ] || missing="$missing libnginx-mod-nchan"
command -v pushpin >/dev/null 2>&1 || missing="$missing pushpin"
command -v cc >/dev/null 2>&1 || missing="$missing gcc libc6-dev"
[ -e /usr/include/openssl/ssl.h ] || missing="$missing libssl-dev"
[ -n "$missing" ] || exit 0

if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
    echo "installing:$missing"
    apt-get update -qq
    # shellcheck disable=SC2086 # a list of packages
    DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $missing >/dev/null
else
    echo "missing, and this is not root on Debian; the report will say so:$missing"
fi
