#!/bin/sh
# gpu.sh [BUILD] [JSON]: on a machine with an NVIDIA GPU, in one call of under 10 minutes: builds the CUDA back end, holds it to
# the reference on the GPU (plainly, then under compute-sanitizer where there is one), runs 1A1F on the one GPU, measures the
# stages of real layers beside the GPU's ceilings, and PyTorch's products where there is one, and writes one JSON object.
# Each part has its own limit; a part that fails is named in the JSON with its log, and the others run all the same. Exits
# with 0 only if no part failed.
# Without a GPU it says so and fails.
set -u
build=${1:-build/cuda}
json=${2:-gpu.json}
cd "$(dirname "$0")/.."
command -v nvidia-smi >/dev/null || { echo "gpu.sh: there is no nvidia-smi, so no driver, here" >&2; exit 1; }
mkdir -p "$build"
parts=$build/gpu-parts
rm -rf "$parts"
mkdir -p "$parts"
began=$(date +%s)
bad=0

# part NAME SECONDS COMMAND...: its output to a log, its verdict and time to a JSON file. `verdict` is set.
part() {
    name=$1
    limit=$2
    shift 2
    start=$(date +%s)
    left=$((began + 580 - start))
    [ "$limit" -le "$left" ] || limit=$left
    if [ "$limit" -lt 5 ]; then
        echo "$name: left out, 10 minutes are over"
        bad=1
        return
    fi
    verdict=passed
    timeout -k 5 "$limit" "$@" >"$parts/$name.out" 2>"$parts/$name.log"
    code=$?
    [ "$code" = 0 ] || verdict=failed
    [ "$code" = 124 ] && verdict=timed_out
    if grep -q 'skipped for device type cuda' "$parts/$name.out" "$parts/$name.log"; then verdict=skipped; fi
    [ "$verdict" = passed ] || bad=1
    echo "$name: $verdict, $(($(date +%s) - start)) s ($parts/$name.log)"
    printf '{"verdict": "%s", "exit": %d, "seconds": %d}\n' "$verdict" "$code" $(($(date +%s) - start)) >"$parts/$name.verdict"
}

# Parts on the GPU wait for its build.
needs_build() {
    if [ "$built" = passed ]; then part "$@"; else echo "$1: left out, the build failed"; bad=1; fi
}

part configure 60 cmake -S . -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DAFD_TESTS=ON -DAFD_CUDA=ON
suites="test_backends_gpu test_ffn_tiles_gpu test_streams_gpu"
part build 200 cmake --build "$build" -j "$(nproc)" --target afd afd-scheduler afd-attn-node afd-ffn-node $suites
built=$verdict
for suite in $suites; do
    needs_build "$suite" 100 "$build/tests/$suite"
done
if command -v compute-sanitizer >/dev/null; then
    needs_build sanitizer 90 compute-sanitizer --error-exitcode 9 "$build/tests/test_ffn_tiles_gpu"
    needs_build racecheck 60 compute-sanitizer --tool racecheck --error-exitcode 9 "$build/tests/test_ffn_tiles_gpu"
fi
needs_build 1a1f 120 sh bench/gpu_1a1f.sh "$build"
needs_build step3 60 "$build/bin/afd" bench layer --model step3 --json
needs_build step3_skewed 60 "$build/bin/afd" bench layer --model step3 --skewed --json
needs_build deepseek_v3 60 "$build/bin/afd" bench layer --model deepseek-v3 --json
needs_build qwen3_235b 60 "$build/bin/afd" bench layer --model qwen3-235b --json
needs_build qwen3_235b_int4 60 "$build/bin/afd" bench layer --model qwen3-235b --int4 --json
needs_build step3_bf16 60 "$build/bin/afd" bench layer --model step3 --bf16 --json
if python3 -c 'import torch' 2>/dev/null; then part torch 60 python3 bench/gpu_torch.py; fi

# One object: what each part printed as JSON, or null, beside its verdict and the end of its log.
python3 - "$parts" "$json" "$began" <<'PY'
import glob, json, os, subprocess, sys, time
parts, out, began = sys.argv[1:]
asked = "name,driver_version,clocks.max.sm,clocks.max.memory,memory.total"
query = subprocess.run(["nvidia-smi", "--query-gpu=" + asked, "--format=csv,noheader"], capture_output=True, text=True)
result = {"gpu": query.stdout.strip().splitlines(), "gpu_fields": asked, "parts": {}}
for path in sorted(glob.glob(parts + "/*.verdict"), key=os.path.getmtime):
    name = os.path.basename(path)[:-len(".verdict")]
    entry = json.load(open(path))
    text = open(f"{parts}/{name}.out", errors="replace").read()
    try:
        entry["result"] = json.loads(text)
    except ValueError:
        entry["output_end"] = text[-600:]
    if entry["verdict"] != "passed":
        entry["log_end"] = open(f"{parts}/{name}.log", errors="replace").read()[-1200:]
    result["parts"][name] = entry
result["seconds"] = int(time.time()) - int(began)
json.dump(result, open(out, "w"), indent=1)
print(f"{out}: {len(result['parts'])} parts, {result['seconds']} s")
PY
[ $? = 0 ] && [ "$bad" = 0 ]
