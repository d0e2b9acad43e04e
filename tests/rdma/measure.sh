#!/bin/sh
# What bench/transport.sh says of verbs here: latency and bandwidth at the report's sizes, in turns with ib_write_lat and
# ib_write_bw on the same port, or a killed peer. Emulated, the figures say nothing about RDMA; the ratio says what our
# code adds. It is printed, not judged, and a machine that is too slow to measure on is no failure: a line is out as soon
# as it is known, so what was measured within the time is kept (results/WHAT.txt).
#
#   measure.sh WHAT SECONDS [ROUNDS]
what=$1 seconds=$2
export SKIP_BUILD=1 AFD=afd OVER=rdma WHAT="$what" ROUNDS="${3:-1}" WAITS="${WAITS:-poll}"
export OPTIONS="--data verbs --devices rxe0" KILL="${KILL:---pairs 2x2 --sizes 7KiB,14KiB --seconds 4}"
export TMPDIR="/tmp/measure.$what"
mkdir -p "$TMPDIR"
echo "guest: file $what.txt"
code=0
timeout -s KILL "$seconds" sh /afd/bench/transport.sh || code=$? # what it leaves behind the guest ends with the step
echo "guest: end"
case $code in
0 | 1) exit 0 ;; # a bound may be missed
2) exit 1 ;;
esac
grep -q 'beside\|gone after' "$TMPDIR"/*/lines && exit 0
echo "nothing was measured within $seconds s: this machine is too slow or too busy"
exit 77
