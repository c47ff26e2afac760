#!/bin/sh
# Installs the programs that the extended tests need beyond Python, as root on Debian: browsers, ip (network
# namespaces), a C compiler for the load client, Go, Rust and Java with Maven for their clients (Go 1.21, which fetches
# the Go that it is told to, Rust 1.95, Java 11), senders of webhooks (Node's clients, syslog-ng), the proxies and
# systemd that deploy/ has files for, Prometheus with promtool, and jq for the commands of the runbook.
# Elsewhere it names what is missing and fails.
set -eu

PATH="$PATH:/usr/sbin:/sbin"
missing=""

# package PROGRAM PACKAGE...: needs the packages where the program is not there.
package() {
    program=$1
    shift
    command -v "$program" >/dev/null 2>&1 || missing="$missing $*"
}

package chromium chromium
package firefox-esr firefox-esr
package WebKitWebDriver webkit2gtk-driver
package Xvfb xvfb
package ip iproute2
package node nodejs
package npm npm
package syslog-ng syslog-ng-core syslog-ng-mod-http
package nginx nginx-light
package prometheus prometheus
package jq jq
package haproxy haproxy
package curl curl
package caddy caddy
package systemd-analyze systemd
package cc gcc libc6-dev
package go golang-go
package cargo cargo
package javac default-jdk-headless
package mvn maven
[ -n "$missing" ] || exit 0

if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
    echo "installing:$missing"
    apt-get update -qq
    # shellcheck disable=SC2086 # a list of packages
    DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $missing >/dev/null
else
    echo "The extended tests need these Debian packages:$missing" >&2
    echo "Install them, or run this as root on Debian; \`make test\` needs none of them." >&2
    exit 1
fi
