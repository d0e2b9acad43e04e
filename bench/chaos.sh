#!/bin/sh
# What clients see of a cluster that loses processes and hosts, grows and shrinks while they stream: docs/CHAOS.md.
#
#   sh bench/chaos.sh                      every fault once: about four minutes on two cores
#   sh bench/chaos.sh --repeat 20          twenty times
#   sh bench/chaos.sh --only kill-attn     one of them; --list names all, --help says the rest
#
# Builds into build/release. Cuts of the network need root or user namespaces.
set -eu
cd "$(dirname "$0")/.."
BUILD=${BUILD:-build/release}
log=$(mktemp)
trap 'rm -f "$log"' EXIT
cmake -S . -B "$BUILD" -G Ninja -DCMAKE_BUILD_TYPE=Release -DAFD_TESTS=ON >"$log" || { cat "$log"; exit 1; }
cmake --build "$BUILD" --target afd afd-scheduler afd-attn-node afd-ffn-node afd-bench-chaos >"$log" || { tail "$log"; exit 1; }
"$BUILD/bin/afd-bench-chaos" "$@"
