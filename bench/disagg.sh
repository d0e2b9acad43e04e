#!/bin/sh
# What disaggregation costs, in one run:
#   - tokens/s of 1A1F with one core each against the same engine in one process with two cores, batch 64, on a random
#     model sized so that attention and FFN take the same time and arithmetic binds (one process at a third of the
#     batch keeps its row rate);
#   - microseconds that one A2F + F2A hop adds to a layer, beside the transport's own round trip.
#
#   sh bench/disagg.sh [ROUNDS]      builds into build/release; prints each round and the medians
#   MICROBATCHES=3 sh bench/disagg.sh   with another number of slots (2: few rows cost the kernels more than a bubble)
set -eu
cd "$(dirname "$0")/.."
BUILD=${BUILD:-build/release}
ROUNDS=${1:-5}
MICROBATCHES=${MICROBATCHES:-2}
work=$(mktemp -d)
state=$work/state
afd="$BUILD/bin/afd"
trap 'status=$?; "$afd" down --state "$state" >/dev/null 2>&1 || true; rm -rf "$work"; exit $status' EXIT INT TERM

cmake -S . -B "$BUILD" -G Ninja -DCMAKE_BUILD_TYPE=Release -DAFD_TESTS=ON >"$work/cmake.log" || { cat "$work/cmake.log"; exit 1; }
cmake --build "$BUILD" >"$work/build.log" || { tail "$work/build.log"; exit 1; }

# No expert layer, so that every row meets every weight; bench/disagg.model balances the two sides.
"$BUILD/bin/make_tiny" --out "$work/model" --preset small --moe-layers "" --vocab 512 --max-context 256 --kv-heads 1 \
    $(cat bench/disagg.model)

cat >"$work/topology.yaml" <<END
cluster: disagg
model: { path: $work/model }
scheduler: { http: "127.0.0.1:0", control: "127.0.0.1:0", lease_ms: 20000 }
pipeline: { microbatches: $MICROBATCHES, max_rows: $(((64 + MICROBATCHES - 1) / MICROBATCHES)), prefill_rows: 16, a2f: bf16, f2a: bf16 }
transport: { data: ucx, path: shm }
pools:
  attn: { instances: 1, device: { type: cpu, threads: 1, cores: "0" }, kv_cache: { memory: 64MiB } }
  ffn:  { instances: 1, device: { type: cpu, threads: 1, cores: "1" } }
END

number() { grep -o "\"$1\": *[0-9.e+-]*" | head -n 1 | sed 's/.*: *//'; }
median() { sort -g | awk '{v[NR] = $1} END {print NR % 2 ? v[(NR + 1) / 2] : (v[NR / 2] + v[NR / 2 + 1]) / 2}'; }

echo "round  single64  single21  rows kept  of ceiling  A/F time   1A1F64  1A1F/single"
for round in $(seq "$ROUNDS"); do
    "$BUILD/bin/afd-bench-single" --model "$work/model" --batch 64 --context 8 --steps 60 --json >"$work/s64"
    "$BUILD/bin/afd-bench-single" --model "$work/model" --batch 21 --context 8 --steps 60 --json >"$work/s21"
    "$afd" up "$work/topology.yaml" --state "$state" >/dev/null
    "$afd" bench serve --state "$state" --concurrency 64 --requests 64 --prompt-tokens 8 --max-tokens 120 --json >"$work/d64"
    "$afd" down --state "$state" >/dev/null
    s64=$(number tokens_per_s <"$work/s64") s21=$(number tokens_per_s <"$work/s21")
    # decode rate: 64 sequences, each a token every (mean time per output token)
    tpot=$(tr -d '\n' <"$work/d64" | grep -o '"tpot_s": *{[^}]*}' | number mean)
    awk -v r="$round" -v s="$s64" -v t="$s21" -v p="$tpot" -v c="$(number ceiling_ratio <"$work/s64")" \
        -v a="$(number attn_ms <"$work/s64")" -v f="$(number ffn_ms <"$work/s64")" 'BEGIN {
        d = 64 / p
        printf "%5d %9.1f %9.1f %10.3f %11.3f %9.3f %8.1f %12.3f\n", r, s, t, t / s, c, a / f, d, d / s }' | tee -a "$work/rounds"
done
echo "median: 1A1F/single $(awk '{print $8}' "$work/rounds" | median), of ceiling $(awk '{print $5}' "$work/rounds" | median), rows kept $(awk '{print $4}' "$work/rounds" | median), A/F $(awk '{print $6}' "$work/rounds" | median)"

echo "one sequence, 1A1F: what a hop adds to a layer"
"$afd" up "$work/topology.yaml" --state "$state" >/dev/null
"$afd" bench serve --state "$state" --concurrency 1 --requests 8 --prompt-tokens 8 --max-tokens 120 --json >/dev/null
http=$(sed 's/.*"http": *"\([^"]*\)".*/\1/' "$state/scheduler.json" | head -n 1)
sleep 1 # one more heartbeat brings the last counters
curl -s "http://$http/metrics" | awk '/^afd_a2f_seconds_sum/ {s += $2} /^afd_a2f_seconds_count/ {n += $2}
    END {printf "A2F + F2A, round trip less what the FFN rank reports: %.1f us (mean of %d)\n", s / n * 1e6, n}'
"$afd" down --state "$state" >/dev/null
echo "the transport's own latency, half a round trip, sleeping as the ranks do"
"$afd" bench transport --over shm --sizes 7KiB --wait sleep
