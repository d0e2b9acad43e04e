#!/bin/sh
# What it costs to look: 1A1F with step3-nano, whose layers are far shorter than a real model's, with the accounting of
# each nanosecond and in a build without it; or while a trace is taken and while none is.
#
#   sh bench/accounting.sh [ROUNDS]                 builds into build/release and build/no-accounting
#   COMPARE=trace sh bench/accounting.sh            a trace
#   COMPARE=nothing sh bench/accounting.sh          the same twice: what the method itself can tell apart
#
# Both clusters are up all the time, pinned to the same two cores, and take turns of about a second: A B B A is a round,
# so that what changes slowly cancels. Beside the rate stands what noise reaches less: the ranks' CPU time and, where
# perf may count, their user-space instructions for a token. The verdict is on the rate: with it 0.99 of what it is
# without, by the median of the rounds and the interval that holds it 95 times of 100. 20 rounds take two minutes, and what
# is to be built.
set -eu
cd "$(dirname "$0")/.."
ROUNDS=${1:-20}
BUILD=${BUILD:-build/release}
COMPARE=${COMPARE:-accounting}
SEQUENCES=16 TOKENS=160
work=$(mktemp -d)
trap 'status=$?; for b in a b; do "$BUILD/bin/afd" down --state "$work/$b" >/dev/null 2>&1 || true; done; rm -rf "$work"; exit $status' EXIT INT TERM

build() {
    cmake -S . -B "$1" -G Ninja -DCMAKE_BUILD_TYPE=Release -DAFD_ACCOUNTING="$2" >"$work/log" || { cat "$work/log"; exit 1; }
    cmake --build "$1" --target afd afd-scheduler afd-attn-node afd-ffn-node >"$work/log" || { tail "$work/log"; exit 1; }
}
build "$BUILD" ON
other=$BUILD
if [ "$COMPARE" = accounting ]; then other=build/no-accounting && build $other OFF; fi

cat >"$work/topology.yaml" <<END
cluster: accounting
model: { path: $PWD/model/nano }
scheduler: { http: "127.0.0.1:0", control: "127.0.0.1:0" }
pools:
  attn: { instances: 1, device: { type: cpu, threads: 1, cores: "0" } }
  ffn: { instances: 1, device: { type: cpu, threads: 1, cores: "1" } }
END

# up a|b BUILD
up() {
    "$2/bin/afd" up "$work/topology.yaml" --state "$work/$1" >"$work/log" || { cat "$work/log"; exit 1; }
    sed 's/.*"http": *"\([^"]*\)".*/\1/' "$work/$1/scheduler.json" | head -n 1 >"$work/http.$1"
    "$2/bin/afd" status --state "$work/$1" --json | awk -F '[:,]' '/"pid"/ {printf "%s%d", (n++ ? " " : ""), $2}' >"$work/pids.$1"
}
cpu_ns() { for pid in $1; do cat /proc/"$pid"/task/*/schedstat; done | awk '{ns += $1} END {printf "%.0f\n", ns}'; }

# One turn of a cluster: "tokens/s CPU-us-a-token instructions-a-token", the last 0 where they cannot be counted.
turn() {
    pids=$(cat "$work/pids.$1") tracer=
    if [ "$1 $COMPARE" = "a trace" ]; then # its client leaves, and with that it is over
        curl -s -o /dev/null "http://$(cat "$work/http.$1")/afd/v1/trace?seconds=60" &
        tracer=$!
    fi
    from_cpu=$(cpu_ns "$pids") from=$(date +%s%N)
    $([ -z "$can_count" ] || echo perf stat -x, -e instructions:u -o "$work/perf" -p "$(echo "$pids" | tr ' ' ,)" --) \
        curl -s -o "$work/answer" "http://$(cat "$work/http.$1")/v1/completions" -d '{"model": "nano", "prompt": [65, 66],
        "n": '$SEQUENCES', "max_tokens": '$TOKENS', "temperature": 0, "ignore_eos": true}'
    to=$(date +%s%N) to_cpu=$(cpu_ns "$pids") instructions=0
    if [ -n "$tracer" ]; then { kill $tracer && wait $tracer; } 2>/dev/null || true; fi
    [ -z "$can_count" ] || instructions=$(awk -F, '/instructions/ {print $1 + 0}' "$work/perf")
    made=$(sed 's/.*"completion_tokens": *\([0-9]*\).*/\1/' "$work/answer" | tail -n 1)
    [ "$made" = $((SEQUENCES * TOKENS)) ] || { cat "$work/answer" >&2; exit 1; }
    awk -v n="$made" -v ns=$((to - from)) -v cpu=$((to_cpu - from_cpu)) -v i="${instructions:-0}" \
        'BEGIN {printf "%.1f %.3f %.0f\n", n / ns * 1e9, cpu / n / 1e3, i / n}'
}

up a "$BUILD"
up b "$other"
can_count=
if perf stat -x, -e instructions:u -o "$work/perf" true 2>/dev/null && grep -q '^[0-9]' "$work/perf"; then can_count=1; fi
turn a >/dev/null
turn b >/dev/null
echo "$COMPARE; load $(cut -d ' ' -f 1-3 /proc/loadavg) before; $ROUNDS rounds of A B B A, $((SEQUENCES * TOKENS)) tokens a turn"
i=0
while [ "$i" -lt "$ROUNDS" ]; do
    i=$((i + 1))
    echo "$(turn a) $(turn b) $(turn b) $(turn a)" >>"$work/rounds"
done

# column NAME FIRST FORMAT: the two medians, and the rounds' ratios with / without: median and middle half.
column() {
    awk -v c="$2" -v w="$work" '{a = ($c + $(c + 9)) / 2; b = ($(c + 3) + $(c + 6)) / 2; if (b > 0) print a, b, a / b}' \
        "$work/rounds" >"$work/pairs"
    [ -s "$work/pairs" ] || { echo "$1: not counted (perf is not there, or may not)"; return; }
    for k in 1 2 3; do
        sort -g -k $k,$k "$work/pairs" | awk -v k=$k '{v[NR] = $k} END {
            printf "%s %s %s ", v[int((NR + 1) / 2)], v[int((NR + 3) / 4)], v[int((3 * NR + 3) / 4)]}'
    done | awk -v n="$1" -v f="$3" '{printf "%-24s with " f ", without " f ", with/without %.4f (half of the rounds: %.4f to %.4f)\n", n, $1, $4, $7, $8, $9}'
}
column "tokens/s" 1 %.0f
column "CPU us a token" 2 %.2f
column "instructions a token" 3 %.0f
# The k-th least and the k-th largest of n values hold the median between them with 95%, k = (n - 1.96 sqrt(n)) / 2.
awk '{print ($1 + $10) / ($4 + $7)}' "$work/rounds" | sort -g | awk -v what="$COMPARE" '{v[NR] = $1} END {
    k = int((NR - 1.96 * sqrt(NR)) / 2); if (k < 1) k = 1
    m = NR % 2 ? v[(NR + 1) / 2] : (v[NR / 2] + v[NR / 2 + 1]) / 2
    says = v[k] >= 0.99 ? "met" : v[NR + 1 - k] < 0.99 ? "not met" : m >= 0.99 ? "met by the median, more rounds would tell" : \
        "missed by the median, more rounds would tell"
    printf "verdict: %s: tokens/s with/without %.4f (95%%: %.4f to %.4f), at most 1%% wanted: %s\n", what, m, v[k], v[NR + 1 - k], says}'
