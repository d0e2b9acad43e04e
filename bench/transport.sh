#!/bin/sh
# Every bound that the data plane is held to, measured on this host: a line each, with its bound and whether it is met.
#
#   sh bench/transport.sh                              builds into build/release; about four minutes
#   ROUNDS=9 OVER=shm SKIP_BUILD=1 sh bench/transport.sh        more rounds, one path, what is built already
#   OVER=rdma OPTIONS="--data verbs --devices mlx5_0" WHAT="compare kill" sh bench/transport.sh
#
# Latency and bandwidth stand beside the best of the libraries' own tests, which run in turns with ours in the same wait
# mode (docs/SPEED.md says what each of them does). They mean something where the two ranks of a pair have a core each
# and nobody else wants it: the load stands above the table. Each line is printed as soon as it is known. Verbs need RDMA:
# sh tests/rdma/run.sh compare kill measures them in a virtual machine. Exit status 1: a bound is missed; 2: something could not be
# measured.
#
#   WHAT    of: compare idle wake exchange kill             WAITS, SIZES  of compare: poll sleep; 7KiB 896KiB 1.75MiB
#   KILL    options of the run in which a rank is killed    OPTIONS       of every run: a library, devices, seconds
set -eu
cd "$(dirname "$0")/.."
BUILD=${BUILD:-build/release}
ROUNDS=${ROUNDS:-5}
OVER=${OVER:-shm tcp}
WHAT=${WHAT:-compare idle wake exchange kill}
WAITS=${WAITS:-poll sleep}
SIZES=${SIZES:-7KiB 896KiB 1.75MiB}
KILL=${KILL:---pairs 4x4 --seconds 4}
OPTIONS=${OPTIONS:-}
AFD=${AFD:-$BUILD/bin/afd}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 1' INT TERM

if [ -z "${SKIP_BUILD:-}" ]; then
    cmake -S . -B "$BUILD" -G Ninja -DCMAKE_BUILD_TYPE=Release >"$work/log" || { cat "$work/log"; exit 1; }
    cmake --build "$BUILD" --target afd >"$work/log" || { tail "$work/log"; exit 1; }
fi

# measure PATH WHAT OPTION...: one run of the bench, and its lines
measure() {
    path=$1 what=$2
    shift 2
    # shellcheck disable=SC2086 # several words
    if "$AFD" bench transport --json --over "$path" $OPTIONS "$@" >"$work/json" 2>"$work/errors"; then
        judge "$path" "$what"
    else
        echo "FAIL  $path  $what: $(tail -n 1 "$work/errors")"
    fi | tee -a "$work/lines"
}

# Prints the lines of a run, "pass|MISS|-  path  figure  value  bound"; its JSON has a key a line.
judge() {
    awk -v path="$1" -v what="$2" '
        function text() { sub(/^[^:]*: */, ""); gsub(/[",]/, ""); return $0 }
        function value() { return text() + 0 }
        function line(verdict, name, words, bound) { printf "%-4s  %-4s  %-38s  %-46s  %s\n", verdict, path, name, words, bound }
        function at_most(name, x, limit, words, unit) { line(x <= limit ? "pass" : "MISS", name, words, "at most " limit unit) }
        function at_least(name, x, limit, words) { line(x >= limit ? "pass" : "MISS", name, words, "at least " limit) }
        function size(bytes) { return bytes < 1048576 ? bytes / 1024 " KiB" : bytes / 1048576 " MiB" }
        /^ *"latency": \{/ { metric = "latency" }
        /^ *"bandwidth": \{/ { metric = "bandwidth" }
        /^ *"(wake_us|others_before_us|others_during_us|others_after_us|round_trip_us)": \{/ { group = $1; gsub(/[":]/, "", group) }
        /^ *"wait":/ { wait = text() }
        /^ *"bytes":/ { bytes = value() }
        /^ *"ours_(p50_us|bytes_per_s)":/ { ours = value() }
        /^ *"best":/ { best = text() }
        /^ *"(p50|p99)":/ { key = $1; gsub(/[":]/, "", key); times[group, key] = value() }
        /^ *"least_to_median_ratio":/ { fair = value() }
        /^ *"bytes_per_s":/ { rate = value() }
        /^ *"cpu_ratio_most":/ { idle = value() }
        /^ *"noticed_ms_max":/ { noticed = value() }
        /^ *"pairs_noticed":/ { pairs = value() }
        /^ *"gone_ms":/ { gone = value() }
        /^ *"ratio":/ && what == "compare" {
            ratio = value()
            name = metric ", " (wait == "poll" ? "polling" : "asleep") ", " size(bytes)
            if (metric == "latency") at_most(name, ratio, 1.15, sprintf("%.3f: %.2f us beside %s", ratio, ours, best))
            else at_least(name, ratio, 0.95, sprintf("%.3f: %.0f MB/s beside %s", ratio, ours / 1e6, best))
        }
        END {
            if (what == "idle") at_most("an idle rank, of a core", idle, 0.01, sprintf("%.5f", idle))
            if (what == "wake") line("-", "waking a rank, the cores computing", sprintf("p50 %.1f us, p99 %.1f us", times["wake_us", "p50"], times["wake_us", "p99"]), "")
            if (what == "exchange") at_least("16x16, least pair / median pair", fair, 0.667, sprintf("%.3f (%.1f GB/s in all)", fair, rate / 1e9))
            if (what != "kill") exit
            at_most("SIGKILL noticed by " pairs " pairs", noticed, 100, sprintf("%.1f ms (process gone after %.1f)", noticed, gone), " ms")
            line("-", "p99 of the other pairs, ms", sprintf("before %.1f, during %.1f, after %.1f", times["others_before_us", "p99"] / 1e3,
                times["others_during_us", "p99"] / 1e3, times["others_after_us", "p99"] / 1e3), "")
        }' "$work/json"
}

echo "$(nproc) cores, load $(cut -d' ' -f1-3 /proc/loadavg), $ROUNDS rounds, $(date -u +%H:%M) UTC"
for path in $OVER; do
    for what in $WHAT; do
        case $what in
        compare)
            for wait in $WAITS; do
                for size in $SIZES; do
                    measure "$path" compare --sizes "$size" --wait "$wait" --compare --rounds "$ROUNDS"
                done
            done
            ;;
        idle) measure "$path" idle --sizes 64 --wait sleep ;;
        wake) measure "$path" wake --sizes 64 --wait sleep --load ;;
        exchange) measure "$path" exchange --pairs 16x16 ;;
        # shellcheck disable=SC2086 # several words
        kill) measure "$path" kill --kill $KILL ;;
        esac
    done
done
echo "load $(cut -d' ' -f1-3 /proc/loadavg), $(date -u +%H:%M) UTC, missed: $(grep -c '^MISS\|^FAIL' "$work/lines" || true)"
grep -q '^FAIL' "$work/lines" && exit 2
! grep -q '^MISS' "$work/lines"
