#!/bin/sh
# Latency and bandwidth at the report's sizes over verbs, in turns with ib_write_lat and ib_write_bw on the same port.
# Emulated, the figures say nothing about RDMA; the ratio says what our code adds. It is printed, not judged.
set -e
set -- bench transport --over rdma --data verbs --devices rxe0 --sizes 7KiB,896KiB,1.75MiB --compare --wait poll \
    --rounds 1 --seconds 0.5
echo "guest: file compare.json"
afd "$@" --json 2>/dev/null
echo "guest: end"
