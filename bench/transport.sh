#!/bin/sh
# Round trips of our transport beside UCX's own test of the same path, in one run. Argument: the build's bin folder.
#   bench/transport.sh build/release/bin
# ucx_perftest prints half a round trip; the "typical" column of the last line a size is copied here.
set -eu
bin=${1:-build/release/bin}
perf() { # perf TLS SIZE WAIT
    port=$((20000 + $$ % 20000))
    trips=2000
    if [ "$2" -gt 100000 ]; then trips=200; fi
    options="-t ucp_am_lat -s $2 -n $trips -w 20 -E $3 -p $port -q"
    # shellcheck disable=SC2086
    UCX_TLS=$1 UCX_NET_DEVICES=$4 ucx_perftest $options >/dev/null 2>&1 &
    server=$!
    sleep 0.3
    # shellcheck disable=SC2086
    UCX_TLS=$1 UCX_NET_DEVICES=$4 ucx_perftest $options -f localhost 2>/dev/null | awk -v s="$2" -v w="$3" \
        '$1 ~ /^[0-9.]+$/ {line = $0; n = NF} END {split(line, f); printf "%10d %12.1f   (%s, twice %s us)\n", s, 2 * f[3], w, f[3]}'
    kill "$server" 2>/dev/null || true
    wait "$server" 2>/dev/null || true
}
for path in shm tcp; do
    for spin in 0 20; do "$bin/afd-bench-transport" "$path" "$spin"; done
    if command -v ucx_perftest >/dev/null; then
        echo "ucx_perftest ucp_am_lat, $path, round trip us"
        if [ "$path" = shm ]; then tls=posix,self; else tls=tcp,self; fi
        for wait in sleep poll; do
            for size in 64 7168 131072 1048576; do perf "$tls" "$size" "$wait" lo; done
        done
    fi
done
