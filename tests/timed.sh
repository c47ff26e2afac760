#!/bin/sh
# Runs one step of the build, then prints its name, its result and its wall time: timed.sh NAME COMMAND [ARGUMENT...]
name=$1
shift
began=$(date +%s)
"$@"
status=$?
[ "$status" = 0 ] && result=passed || result="failed with status $status"
echo "== $name: $result in $(($(date +%s) - began)) s"
exit "$status"
