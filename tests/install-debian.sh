#!/bin/sh
# What the tests need beyond Python: browsers, ip (network namespaces), a C compiler for the benchmark, and
# senders of webhooks (node's clients, syslog-ng), the proxies and systemd that deploy/ has files for, Prometheus
# with promtool, and jq for the commands of the runbook.
# Installs it as root where apt is there; otherwise names what is missing, and those tests are skipped.
set -eu

missing=""
command -v chromium >/dev/null 2>&1 || missing="$missing chromium"
command -v firefox-esr >/dev/null 2>&1 || missing="$missing firefox-esr"
command -v WebKitWebDriver >/dev/null 2>&1 || missing="$missing webkit2gtk-driver"
command -v Xvfb >/dev/null 2>&1 || missing="$missing xvfb"
PATH="$PATH:/usr/sbin:/sbin" command -v ip >/dev/null 2>&1 || missing="$missing iproute2"
command -v node >/dev/null 2>&1 || missing="$missing nodejs"
command -v npm >/dev/null 2>&1 || missing="$missing npm"
PATH="$PATH:/usr/sbin:/sbin" command -v syslog-ng >/dev/null 2>&1 || missing="$missing syslog-ng-core syslog-ng-mod-http"
PATH="$PATH:/usr/sbin:/sbin" command -v nginx >/dev/null 2>&1 || missing="$missing nginx-light"
command -v prometheus >/dev/null 2>&1 || missing="$missing prometheus"
command -v jq >/dev/null 2>&1 || missing="$missing jq"
PATH="$PATH:/usr/sbin:/sbin" command -v haproxy >/dev/null 2>&1 || missing="$missing haproxy"
command -v curl >/dev/null 2>&1 || missing="$missing curl"
command -v caddy >/dev/null 2>&1 || missing="$missing caddy"
command -v systemd-analyze >/dev/null 2>&1 || missing="$missing systemd"
command -v cc >/dev/null 2>&1 || missing="$missing gcc libc6-dev"
[ -n "$missing" ] || exit 0

if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
    echo "installing:$missing"
    apt-get update -qq
    # shellcheck disable=SC2086 # a list of packages
    DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $missing >/dev/null
else
    echo "missing, and this is not root on Debian; tests that need it are skipped:$missing"
fi
