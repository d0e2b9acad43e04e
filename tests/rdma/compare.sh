#!/bin/sh
# Latency and bandwidth at the report's sizes over verbs, in turns with ib_write_lat and ib_write_bw on the same port.
# Emulated, the figures say nothing about RDMA; the ratio says what our code adds. It is printed, not judged, and a
# machine that is too slow to measure on is no failure.
seconds=${1:-80} rounds=${2:-1}
code=0
timeout "$seconds" afd bench transport --over rdma --data verbs --devices rxe0 --sizes 7KiB,896KiB,1.75MiB --compare \
    --wait poll --rounds "$rounds" --seconds 0.5 --json >/tmp/compare.json 2>/tmp/compare.log || code=$?
if [ "$code" = 143 ]; then
    echo "not measured within $seconds s: this machine is too slow or too busy"
    exit 77
fi
[ "$code" = 0 ] || { cat /tmp/compare.log; exit "$code"; }
echo "guest: file compare.json"
cat /tmp/compare.json
echo "guest: end"
