#!/bin/sh
# gpu_1a1f.sh [BUILD]: one attention rank and one FFN rank that share one GPU, as two processes. First, on a tiny model: the
# cluster on the GPU gives the tokens and log-probabilities of one on the CPU, bit for bit (numerics: portable), and so
# with attention tp 2. Then six
# layers of Step3's real sizes, four of them with 48 experts, with random weights: tokens/s, where both devices' time goes,
# and from a trace how much of the time the two sides compute at once. One JSON object.
#
#   DEVICE=cpu sh bench/gpu_1a1f.sh build/release    the same without a GPU, at a small size, against `ref`: is the script whole
set -eu
cd "$(dirname "$0")/.."
build=${1:-build/cuda}
afd=$build/bin/afd
device=${DEVICE:-cuda}
work=$(mktemp -d)
state=$work/state
trap 'code=$?; "$afd" down --state "$state" >/dev/null 2>&1 || true; rm -rf "$work"; exit $code' EXIT INT TERM

# cluster MODEL DEVICE NUMERICS ROWS KV [TP]: of attention
cluster() {
    tp=${6:-1}
    cat >"$work/topology.yaml" <<END
cluster: gpu-1a1f
model: { path: $work/$1, max_context: 512 }
scheduler: { http: "127.0.0.1:0", control: "127.0.0.1:0" }
pipeline: { microbatches: 3, max_rows: $4, a2f: $a2f, f2a: bf16, numerics: $3 }
transport: { path: shm }
pools:
  attn: { instances: 1, ranks_per_instance: $tp, parallel: { dp: 1, tp: $tp }, device: { type: $2 }, kv_cache: { dtype: bf16, memory: $5 } }
  ffn:  { instances: 1, device: { type: $2 } }
END
    "$afd" up "$work/topology.yaml" --state "$state" >"$work/up.log" 2>&1 || { cat "$work/up.log" >&2; exit 1; }
    http=$(sed 's/.*"http": *"\([^"]*\)".*/\1/' "$state/scheduler.json" | head -n 1)
}

down() { "$afd" down --state "$state" >/dev/null; }

# Eight sequences at once, for three micro-batches; greedy, and drawn by a seed.
answers() {
    for temperature in 0 1; do
        curl -sf "http://$http/v1/completions" -d "{\"model\": \"$1\", \"prompt\": [65, 66, 67, 68], \"n\": 8,
            \"max_tokens\": 24, \"temperature\": $temperature, \"seed\": 5, \"logprobs\": 1, \"ignore_eos\": true}"
    done | python3 -c 'import json, sys
text = sys.stdin.read()
decoder, at = json.JSONDecoder(), 0
while at < len(text):
    answer, at = decoder.raw_decode(text, at)
    for choice in sorted(answer["choices"], key=lambda c: c["index"]):
        print(choice["text"], choice["logprobs"]["token_logprobs"])'
}

a2f=bf16
"$afd" model make "$work/tiny" --preset fp8
if [ "$device" = cuda ]; then other=cpu; else other=ref; fi
for kind in "$other" "$device"; do
    cluster tiny "$kind" portable 16 32MiB
    answers tiny >"$work/answers.$kind"
    down
done
[ -s "$work/answers.$device" ] || { echo "gpu_1a1f.sh: no answers" >&2; exit 1; }
cmp "$work/answers.$other" "$work/answers.$device" || { echo "gpu_1a1f.sh: $device and $other differ" >&2; exit 1; }

# An attention group of two, on the same GPU: over pairs, since NCCL refuses two ranks on one. Sums of two members round otherwise than
# one device's, so both kinds of device have them. Heads of 128: cuts fall on blocks.
"$afd" model make "$work/cut" --preset fp8 --heads 4 --head-dim 128
for kind in "$other" "$device"; do
    cluster cut "$kind" portable 16 32MiB 2
    answers cut >"$work/answers.$kind"
    down
done
[ -s "$work/answers.$device" ] || { echo "gpu_1a1f.sh: no answers with attention tp 2" >&2; exit 1; }
cmp "$work/answers.$other" "$work/answers.$device" ||
    { echo "gpu_1a1f.sh: with attention tp 2 $device and $other differ" >&2; exit 1; }

numerics=native
if [ "$device" = cuda ]; then
    a2f=fp8
    "$afd" model make "$work/real" --preset fp8 --no-weights --hidden 7168 --vocab 4096 --layers 6 --moe-layers 2,3,4,5 \
        --heads 64 --kv-heads 1 --head-dim 256 --q-rank 2048 --intermediate 18432 --experts 48 --top-k 3 \
        --expert-intermediate 5120 --shared-intermediate 5120 --max-context 8192
    rows=128 kv=8GiB clients=384
else
    numerics=portable
    "$afd" model make "$work/real" --preset fp8 --no-weights --layers 6
    rows=16 kv=32MiB clients=24
fi
cluster real "$device" "$numerics" "$rows" "$kv"
"$afd" bench serve --state "$state" --concurrency "$clients" --requests "$clients" --prompt-tokens 32 --max-tokens 64 >/dev/null
stages() { curl -s "http://$http/metrics" | awk -F '"' '/^afd_stage_seconds_total/ {print $2, $6, substr($7, 3)}'; }
stages >"$work/before"
"$afd" bench serve --state "$state" --concurrency "$clients" --requests "$((2 * clients))" --prompt-tokens 32 --max-tokens 400 \
    --json >"$work/serve.json" &
load=$!
sleep 4
"$afd" trace --state "$state" --seconds 0.5 --output "$work/trace.json" >/dev/null
wait "$load"
sleep 0.5 # one more heartbeat brings the last counters
stages >"$work/after"
down

python3 - "$work" "$device" <<'PY'
import json, sys
work, device = sys.argv[1:]


def counters(name):
    found = {}
    for line in open(f"{work}/{name}"):
        role, stage, seconds = line.split()
        found[role, stage] = found.get((role, stage), 0.0) + float(seconds)
    return found


def union(spans):
    merged = []
    for begin, end in sorted(spans):
        if merged and begin <= merged[-1][1]:
            merged[-1][1] = max(merged[-1][1], end)
        else:
            merged.append([begin, end])
    return merged


def both(a, b):
    i = j = 0
    total = 0.0
    while i < len(a) and j < len(b):
        total += max(0.0, min(a[i][1], b[j][1]) - max(a[i][0], b[j][0]))
        if a[i][1] < b[j][1]:
            i += 1
        else:
            j += 1
    return total


events = json.load(open(f"{work}/trace.json"))["traceEvents"]
process = {e["pid"]: e["args"]["name"] for e in events if e.get("name") == "process_name"}
tracks = {(e["pid"], e["tid"]) for e in events if e.get("name") == "thread_name" and e["args"]["name"] == "compute"}
busy = {}
for e in events:
    if e.get("ph") == "X" and (e["pid"], e["tid"]) in tracks:
        role = process[e["pid"]].split("/")[0].split()[0]
        busy.setdefault(role, []).append((e["ts"], e["ts"] + e["dur"]))
busy = {role: union(spans) for role, spans in busy.items()}
length = {role: sum(end - begin for begin, end in spans) for role, spans in busy.items()}
ends = [t for spans in busy.values() for span in spans for t in span]
overlap = both(busy.get("attn", []), busy.get("ffn", []))
before, after = counters("before"), counters("after")
change = {key: after[key] - before.get(key, 0.0) for key in after}
share = {role: {stage: s / sum(v for (r, _), v in change.items() if r == role) for (r, stage), s in change.items() if r == role}
         for role in ("attn", "ffn")}
print(json.dumps({"device": device, "agrees_bit_for_bit": True, "serve": json.load(open(f"{work}/serve.json")),
                  "stage_shares": share,
                  "trace": {"us": max(ends) - min(ends), "compute_us": length, "both_compute_us": overlap,
                            "both_of_the_shorter": overlap / min(length.values())}}))
PY
