#!/bin/sh
# Prediction beside measurement: what `afd plan --calibrate` says of this machine's clusters, from stage times that
# `afd bench stage` measured on it, and what those clusters do. docs/PLAN.md has a table of it.
#
#   sh bench/predict.sh                 1A1F, 2A1F, 1A2F, 2A2F, 3A2F; 1, 8 and 64 sequences; medians of 3 rounds
#   TOPOLOGIES="1A1F" BATCHES="8" ROUNDS=1 WINDOW_S=2 sh bench/predict.sh
#
# The model is random, dense and bf16 (bench/disagg.model). Each round measures the stages anew, before its clusters, so
# that a slow change of the machine's speed meets both, and the median of the rounds' ratios is what is judged: within 15%
# of what was measured. What the stages do not tell comes from 1A1F with another model, of as wide messages and a quarter of
# the weights: with one sequence, of a layer of a micro-batch, the time in which neither device computes (hop); with 16,
# the CPU time of both event loops for it (turn); from both, the scheduler's of a step and of a token. The sequences are
# sampled, so that they differ, as a row's token and position decide which FFN shard a dense layer of it concerns.
set -eu
cd "$(dirname "$0")/.."
BUILD=${BUILD:-build/release}
TOPOLOGIES=${TOPOLOGIES:-1A1F 2A1F 1A2F 2A2F 3A2F}
BATCHES=${BATCHES:-1 8 64}
ROUNDS=${ROUNDS:-3}
WINDOW_S=${WINDOW_S:-1.2}
STEPS=${STEPS:-5}
SLOTS=3
work=$(mktemp -d)
state=$work/state
afd="$BUILD/bin/afd"
trap 'status=$?; "$afd" down --state "$state" >/dev/null 2>&1 || true; rm -rf "$work"; exit $status' EXIT INT TERM

"$BUILD/bin/afd" model make "$work/model" --preset small --moe-layers "" --vocab 512 --max-context 256 --kv-heads 1 \
    $(cat bench/disagg.model)
"$afd" model make "$work/quarter" --preset small --moe-layers "" --vocab 512 --max-context 256 --kv-heads 1 \
    $(cat bench/disagg.model) --heads 8 --q-rank 256 --intermediate 384

# topology FILE MODEL A F ROWS
topology() {
    cat >"$1" <<END
cluster: predict
model: { path: $2 }
scheduler: { http: "127.0.0.1:0", control: "127.0.0.1:0", lease_ms: 20000, heartbeat_ms: 100 }
pipeline: { microbatches: $SLOTS, max_rows: $5, prefill_rows: $(($5 < 16 ? $5 : 16)), a2f: bf16, f2a: bf16 }
transport: { path: shm }
pools:
  attn: { instances: $3, device: { type: cpu, threads: 1 }, kv_cache: { memory: 64MiB } }
  ffn:  { instances: $4, device: { type: cpu, threads: 1 }, parallel: { ep: $4, tp: 1 } }
END
}
up() {
    "$afd" up "$1" --state "$state" >/dev/null
    http=$(sed 's/.*"http": *"\([^"]*\)".*/\1/' "$state/scheduler.json" | head -n 1)
}
tokens() { curl -s "http://$http/metrics" | awk '/^afd_generation_tokens_total/ {print $2}'; }
# ask SEQUENCES TOKENS NUMBER MODEL: the answer comes as one, so the client costs nothing meanwhile
ask() {
    curl -s -o "$work/answer.$1.$3" "http://$http/v1/completions" -d '{"model": "'"$4"'", "prompt": [65, 66], "n": '"$1"',
        "max_tokens": '"$2"', "temperature": 1, "ignore_eos": true}'
}
stages() {
    for ep in 1 2; do
        "$afd" bench stage --model "$work/model" --rows 1,2,3,4,5,6,7,8,11,14,16,22,28,33,43,64 --context 40 --steps "$STEPS" --ep $ep --held 1 \
            --json >"$work/stage.$ep"
    done
}
# Rows and batches of all FFN ranks so far.
ffn_batches() {
    curl -s "http://$http/metrics" | awk '/^afd_rank_rows_total{role="ffn"/ {r += $2} /^afd_rank_steps_total{role="ffn"/ {b += $2} END {print r, b}'
}
# The measured rate of decoding, and rows of an FFN batch: all sequences run, none has ended.
rate() {
    batch=$1 begin=$(tokens) clients=
    left=$batch
    while [ "$left" -gt 0 ]; do
        part=$((left < 16 ? left : 16)) left=$((left - 16))
        ask $part 240 $left model &
        clients="$clients $!"
    done
    until [ "$(tokens)" -ge $((begin + batch * 8)) ]; do
        kill -0 $clients 2>/dev/null || { cat "$work"/answer.* >&2; exit 1; }
        sleep 0.05
    done
    before=$(ffn_batches)
    from=$(tokens) from_ns=$(date +%s%N)
    sleep "$WINDOW_S"
    to=$(tokens) to_ns=$(date +%s%N)
    after=$(ffn_batches)
    if [ "$to" -ge $((begin + batch * 238)) ]; then echo "sequences ended: WINDOW_S=$WINDOW_S is too long" >&2; exit 1; fi
    { kill $clients && wait $clients; } 2>/dev/null || true # a client that leaves cancels its sequences
    until curl -s "http://$http/metrics" | grep -q '^afd_num_requests_running 0'; do sleep 0.05; done
    echo "$((to - from)) $((to_ns - from_ns)) $before $after" | awk '{print $1 / $2 * 1e9, ($6 > $4 ? ($5 - $3) / ($6 - $4) : 0)}'
}

# Nanoseconds that the first thread of a process, its event loop, and all its threads ran.
cpu() {
    awk -v n="$1" '{ns += $1; if (FILENAME ~ first) loop = $1} END {print n ".loop", loop + 0; print n ".all", ns}' \
        first="/task/$2/" /proc/"$2"/task/*/schedstat
}
# All counters now, as lines "name value".
look() {
    sleep 0.3 # one more heartbeat brings the last counters
    curl -s "http://$http/metrics" | awk -F '"' '/^afd_stage_seconds_total/ {print $2 "." $6, substr($7, 3) * 1e9}
        /^afd_pair_messages_total/ {print "messages", substr($5, 3)} /^afd_generation_tokens_total/ {print "tokens", substr($0, 29)}
        /^afd_rank_steps_total/ {print $2 ".steps", substr($5, 3)}'
    cpu attn "$attn_pid"
    cpu ffn "$ffn_pid"
    cpu scheduler "$scheduler_pid"
}
# Microseconds "hop turn step token".
between_stages() {
    topology "$work/quarter.yaml" "$work/quarter" 1 1 16
    up "$work/quarter.yaml"
    scheduler_pid=$(sed 's/.*"pid": *\([0-9]*\).*/\1/' "$state/scheduler.json" | head -n 1)
    "$afd" status --state "$state" --json | awk -F '[:,]' '/"role"/ {role = $2} /"pid"/ {print role, $2 + 0}' >"$work/pids"
    attn_pid=$(awk '/attn/ {print $2}' "$work/pids") ffn_pid=$(awk '/ffn/ {print $2}' "$work/pids")
    ask 1 20 0 quarter
    look >"$work/before"
    ask 1 200 0 quarter
    look >"$work/one"
    ask 16 200 0 quarter
    look >"$work/many"
    awk 'FNR == 1 {looks++} {v[looks, $1] = $2}
        function delta(name, from) {return v[from + 1, name] - v[from, name]}
        END {
            for (i = 1; i <= 2; i++) cost[i] = delta("scheduler.all", i) / delta("attn.steps", i)
            for (i = 1; i <= 2; i++) rows[i] = delta("tokens", i) / delta("attn.steps", i)
            token = (cost[2] - cost[1]) / (rows[2] - rows[1])
            if (token < 0) token = 0
            hop = delta("attn.wait", 1) + delta("attn.send", 1) + delta("attn.bubble", 1) - delta("ffn.compute", 1)
            printf "%.1f %.1f %.1f %.2f\n", hop / delta("messages", 1) / 1e3, (delta("attn.loop", 2) + delta("ffn.loop", 2)) / delta("messages", 2) / 1e3,
                (cost[1] - token * rows[1]) / 1e3, token / 1e3 }' \
        "$work/before" "$work/one" "$work/many"
    "$afd" down --state "$state" >/dev/null
}

# Lines "topology batch, predicted tokens/s and rows of an FFN batch, the same measured" of one round.
round() {
    stages
    set -- $(between_stages)
    echo "hop $1 us, turn $2 us, step $3 us, token $4 us" >&2
    for t in $TOPOLOGIES; do
        a=${t%A*} f=${t#*A} f=${f%F}
        topology "$work/topology.yaml" "$work/model" "$a" "$f" $(((64 + a * SLOTS - 1) / (a * SLOTS)))
        "$afd" plan --calibrate "$work/stage.1,$work/stage.2" --topology "$work/topology.yaml" \
            --batch "$(echo $BATCHES | tr ' ' ,)" --hop-us "$1" --turn-us "$2" --step-us "$3" --token-us "$4" --json |
            awk -F '[:,]' '/"batch"/ {b = $2 + 0} /"ffn_rows"/ {r = $2 + 0} /"tokens_per_s"/ {print b, $2 + 0, r}' >"$work/forecast"
        up "$work/topology.yaml"
        for batch in $BATCHES; do
            echo "$t $batch $(awk -v b="$batch" '$1 == b {print $2, $3}' "$work/forecast") $(rate "$batch")"
        done
        "$afd" down --state "$state" >/dev/null
    done
}

echo "load $(cut -d ' ' -f 1-3 /proc/loadavg) before; medians of $ROUNDS rounds: tokens/s (least and most of the measured), ratio of a round"
for i in $(seq "$ROUNDS"); do round; done >"$work/rounds"
echo "topology  batch  predicted  measured                 predicted/measured        rows of an FFN batch: predicted, measured"
for t in $TOPOLOGIES; do
    for batch in $BATCHES; do
        awk -v t="$t" -v b="$batch" '
            function sort(v, n,  i, j, x) {for (i = 2; i <= n; i++) for (j = i; j > 1 && v[j] < v[j - 1]; j--) {x = v[j]; v[j] = v[j - 1]; v[j - 1] = x}}
            function median(v, n) {return n % 2 ? v[(n + 1) / 2] : (v[n / 2] + v[n / 2 + 1]) / 2}
            $1 == t && $2 == b {p[++n] = $3 + 0; r[n] = $4 + 0; m[n] = $5 + 0; s[n] = $6 + 0; q[n] = p[n] / m[n]}
            END {sort(p, n); sort(m, n); sort(r, n); sort(s, n); sort(q, n); x = median(q, n)
                printf "%8s %6d %10.1f %9.1f (%6.1f to %6.1f) %8.3f (%.3f to %.3f) %17.1f %.1f%s\n", t, b, median(p, n), median(m, n), m[1],
                    m[n], x, q[1], q[n], median(r, n), median(s, n), (x > 1.15 || x < 0.85) ? "  off by more than 15%" : ""}' "$work/rounds"
    done
done
