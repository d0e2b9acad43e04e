#!/usr/bin/env bash
# A search for files that break those who read them: the fuzzers of files built by clang with libFuzzer, which follows
# the code's branches, and the address and undefined-behaviour sanitizers.
#
#   tests/fuzz/search.sh [SECONDS] [NAME...]     each of config gguf jinja tensors tokenizer, or those named,
#                                                for SECONDS (3600), JOBS (2) of them at a time, at idle priority
#
# BUILD (build/fuzz) holds the binaries, and by name: corpus/, from which the next search goes on; found/, the inputs
# that broke something (fuzz_NAME FILE replays one); NAME.log. AFD (build/release/bin/afd) makes the first GGUF files,
# where it is built. The table at the end has wall and CPU seconds, executions, branches covered, and what was found.
set -euo pipefail
cd "$(dirname "$0")/../.."
BUILD=${BUILD:-build/fuzz} JOBS=${JOBS:-2} AFD=${AFD:-build/release/bin/afd}
seconds=${1:-3600}
[ $# = 0 ] || shift
[ $# != 0 ] || set -- config gguf jinja tensors tokenizer

mkdir -p "$BUILD"
cmake -S . -B "$BUILD" -G Ninja -DCMAKE_BUILD_TYPE=Release -DCMAKE_C_COMPILER=clang -DAFD_TESTS=ON -DAFD_BENCH=OFF \
    -DSANITIZE=fuzzer-no-link,address,undefined >"$BUILD/cmake.log" 2>&1 || { cat "$BUILD/cmake.log"; exit 1; }
nice cmake --build "$BUILD" -j 2 --target "${@/#/fuzz_}"

sources() { # the words that a reader knows are in its source
    case $1 in
    config) echo model/{config,fields,step3,step3p5,deepseek_v3,qwen3,llama}.c ;;
    gguf) echo model/{gguf,gguf_model,tokenizer_gguf,tokenizer_source}.c ;;
    jinja) echo model/jinja_*.c ;;
    tensors) echo model/{tensors,weights,llama,fields}.c ;;
    tokenizer) echo model/{tokenizer_json,normalizer,pretokenizer}.c ;;
    esac
}

seeds() { # into the folder $2
    case $1 in
    config) for f in tests/reference/fixtures/*/config.json; do cp "$f" "$2/$(basename "$(dirname "$f")")"; done ;;
    gguf)
        for family in llama qwen3 qwen3_moe deepseek_v2 deepseek_v3 step3p5; do
            [ ! -x "$AFD" ] || [ -e "$2/$family.gguf" ] ||
                "$AFD" model make "$2/$family.gguf" --format gguf --family $family --vocab 259 --hidden 32 \
                    --intermediate 32 --layers 2 --moe-layers 0,1 --heads 2 --kv-heads 1 --head-dim 16 --experts 2 \
                    --top-k 1 --renormalise --expert-intermediate 16 --shared-intermediate 16 --groups 1 \
                    --group-top-k 1 --tied --dtype bf16 >/dev/null
        done ;;
    jinja | tokenizer)
        python3 - "$1" "$2" <<'PY'
import json, sys
what, to = sys.argv[1:]
if what == "jinja":
    texts = [c["template"] for c in json.load(open("tests/fixtures/jinja.json"))["cases"]]
else:
    texts = [json.dumps(f["tokenizer"]) for f in json.load(open("tests/fixtures/tokenizers.json"))["forms"]]
for i, text in enumerate(texts):
    open(f"{to}/fixture-{i}", "w").write(text)
PY
        ;;
    esac
}

search() {
    local name=$1 corpus=$BUILD/corpus/$1 words=$BUILD/$1.words TIMEFORMAT='seconds: wall %R user %U system %S'
    mkdir -p "$corpus" "$BUILD/found"
    seeds "$name" "$corpus"
    grep -oh '"[A-Za-z0-9_.|<>{}%-]\{2,40\}"' $(sources "$name") | sort -u >"$words"
    export ASAN_OPTIONS=abort_on_error=1:allocator_may_return_null=1:quarantine_size_mb=16
    export UBSAN_OPTIONS=print_stacktrace=1:abort_on_error=1
    { time chrt -i 0 nice -n 19 "$BUILD/tests/fuzz_$name" "$corpus" -dict="$words" -max_len=131072 -timeout=600 -report_slow_units=600 \
        -rss_limit_mb=3000 -max_total_time="$seconds" -print_final_stats=1 \
        -artifact_prefix="$BUILD/found/$name-"; } >"$BUILD/$name.log" 2>&1 || true
}

for name; do
    while [ "$(jobs -rp | wc -l)" -ge "$JOBS" ]; do wait -n; done
    search "$name" &
done
wait

printf '%-10s %9s %9s %12s %9s %8s\n' reader 'wall s' 'CPU s' executions branches found
for name; do
    awk -v name="$name" -v found="$(find "$BUILD/found" -name "$name-*" | wc -l)" '
        /^stat::number_of_executed_units/ { runs = $2 }
        / cov: / { for (i = 1; i < NF; i++) if ($i == "cov:") cov = $(i + 1) }
        /^seconds: wall/ { wall = $3; cpu = $5 + $7 }
        END { printf "%-10s %9.0f %9.0f %12d %9d %8d\n", name, wall, cpu, runs, cov, found }' "$BUILD/$name.log"
done
