#!/bin/sh
# A real cluster as an operator watches it: promtool accepts its metrics page, Debian's prometheus scrapes it and has
# data for each query of the Grafana board, nobody is accused while all is well, and three ranks are named: by its host one
# that is stopped and let go again and again and one that shares its core, by its device one whose computing thread alone
# is held again and again. $1: the build folder.
set -eu
BUILD=$1
skip() {
    echo "skipped: $*"
    exit 77
}
for tool in promtool prometheus curl python3; do
    command -v $tool >/dev/null || skip "no $tool"
done
AFD=$BUILD/bin/afd
D=$(mktemp -d /tmp/afd-m-XXXXXX)
PIDS=
over() {
    for pid in $PIDS; do kill "$pid" 2>/dev/null || :; done
    [ -z "${SLOW:-}" ] || kill -CONT "$SLOW" 2>/dev/null || :
    "$AFD" down --state "$D/state" >/dev/null 2>&1 || :
    rm -rf "$D"
}
trap over EXIT
fail() {
    echo "FAILED: $*" >&2
    "$AFD" status --state "$D/state" >&2 || :
    exit 1
}
in_time() { # SECONDS WORDS COMMAND..: until it succeeds
    limit=$(($(date +%s) + $1))
    words=$2
    shift 2
    until "$@"; do
        [ "$(date +%s)" -lt "$limit" ] || fail "$words"
        sleep 0.3
    done
}
free_port() {
    python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

HTTP=$(free_port)
cat >"$D/topology.yaml" <<END
cluster: m
model: { path: $PWD/model/nano }
scheduler: { http: "127.0.0.1:$HTTP", control: "127.0.0.1:0", lease_ms: 20000, heartbeat_ms: 100, metrics_compat: vllm }
pipeline: { microbatches: 2, max_rows: 16, prefill_rows: 8 }
pools:
  attn: { instances: 2, kv_cache: { memory: 8MiB } }
  ffn: { instances: 2, parallel: { ep: 2, tp: 1 } }
END
"$AFD" up "$D/topology.yaml" --state "$D/state" >"$D/up" 2>&1 || fail "afd up: $(cat "$D/up")"
PAGE=http://127.0.0.1:$HTTP/metrics

load() { # streams without end, until killed
    while :; do
        "$AFD" bench serve --state "$D/state" --concurrency 8 --requests 64 --prompt-tokens 8 --max-tokens 64 --json >/dev/null 2>&1 || :
    done
}
load &
PIDS="$PIDS $!"

echo "== promtool"
generated() { [ "$(curl -s "$PAGE" | awk '/^afd_generation_tokens_total / { print int($2 / 1000) }')" -ge 1 ]; }
in_time 60 "no tokens" generated
curl -s "$PAGE" >"$D/page"
# Its linter does not like the colon in vLLM's names; all else it says of them counts.
promtool check metrics <"$D/page" >"$D/lint" 2>&1 || :
! grep -v "^vllm:[a-z0-9_]* metric names should not contain ':'$" "$D/lint" || fail "promtool: see above"
for name in afd_a2f_seconds_bucket afd_f2a_seconds_bucket afd_ffn_compute_seconds_bucket afd_stage_layers_seconds_total \
    afd_wait_seconds_total afd_straggler_score vllm:num_requests_running vllm:num_requests_waiting \
    vllm:kv_cache_usage_perc vllm:num_preemptions_total; do
    grep -q "^$name{" "$D/page" || fail "no $name in the page"
done
# Of requests that ended: each has something in it.
for name in time_to_first_token_seconds inter_token_latency_seconds time_per_output_token_seconds e2e_request_latency_seconds \
    request_time_per_output_token_seconds request_queue_time_seconds request_inference_time_seconds request_prefill_time_seconds \
    request_decode_time_seconds request_prompt_tokens request_generation_tokens request_max_num_generation_tokens \
    request_params_n request_params_max_tokens; do
    grep -q "^vllm:${name}_count{.*} [1-9]" "$D/page" || fail "vllm:$name counts nothing"
done

echo "== prometheus"
PROM=$(free_port)
sed -e "s/127.0.0.1:8000/127.0.0.1:$HTTP/" -e 's/scrape_interval: .*/scrape_interval: 1s/' deploy/monitoring/prometheus.yml >"$D/prometheus.yml"
promtool check config "$D/prometheus.yml" >/dev/null || fail "promtool check config"
prometheus --config.file="$D/prometheus.yml" --storage.tsdb.path="$D/tsdb" --web.listen-address="127.0.0.1:$PROM" >"$D/prometheus.log" 2>&1 &
PIDS="$PIDS $!"
answers() { # QUERY: its first value is above 0
    curl -s "http://127.0.0.1:$PROM/api/v1/query" --data-urlencode "query=$1" | python3 -c '
import json, sys
try: r = json.load(sys.stdin)["data"]["result"]
except Exception: sys.exit(1)
sys.exit(not (r and float(r[0]["value"][1]) > 0))'
}
in_time 60 "prometheus has no tokens" answers 'rate(afd_generation_tokens_total[10s])'
in_time 60 "prometheus has no compute" answers 'sum(rate(afd_stage_seconds_total{role="ffn",stage="compute"}[10s]))'

echo "== grafana's board: what it needs to be imported, and that each panel's queries have data"
board() { # PANELS TO LEAVE OUT..: says what is wrong
    python3 - "$PROM" "$@" <<'END'
import json, sys, urllib.parse, urllib.request

port, left_out = sys.argv[1], sys.argv[2:]
board, bad, seen, taken = json.load(open("deploy/monitoring/grafana.json")), [], set(), set()
for key, kind in {"title": str, "uid": str, "schemaVersion": int, "panels": list, "time": dict, "templating": dict}.items():
    if not isinstance(board.get(key), kind):
        bad.append(f"no {key}")
variables = {v["name"] for v in board["templating"]["list"]}
for panel in board["panels"]:
    name, at = panel["title"], panel["gridPos"]
    if panel["id"] in seen:
        bad.append(f"{name}: its id is another panel's")
    seen.add(panel["id"])
    cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
    if cells & taken or at["x"] + at["w"] > 24:
        bad.append(f"{name}: covers another panel, or is out of the 24 columns")
    taken |= cells
    if panel["datasource"]["uid"].strip("${}") not in variables:
        bad.append(f"{name}: its data source is no variable of the board")
    if len({t["refId"] for t in panel["targets"]}) != len(panel["targets"]):
        bad.append(f"{name}: two queries with one refId")
    for target in panel["targets"]:
        query = target["expr"].replace("$__rate_interval", "10s")
        url = f"http://127.0.0.1:{port}/api/v1/query?" + urllib.parse.urlencode({"query": query})
        try:
            result = json.load(urllib.request.urlopen(url))["data"]["result"]
        except urllib.error.HTTPError as e:
            result = None
            bad.append(f"{name}: {query}: {e.read().decode()}")
        if result == [] and name not in left_out:
            bad.append(f"{name}: no data for {query}")
sys.exit("\n".join(bad) or 0)
END
}
in_time 60 "the board: see above" board Stragglers

echo "== stragglers"
named() { "$AFD" status --state "$D/state" | grep -q "^straggler: ffn/1, .*by its host"; }
! "$AFD" status --state "$D/state" | grep -q '^straggler:' || fail "somebody is accused in a healthy cluster"
pid_of() { # ROLE RANK
    "$AFD" ps --state "$D/state" --json | python3 -c '
import json, sys
print([p["pid"] for p in json.load(sys.stdin)["processes"] if [p["role"], str(p["rank"])] == sys.argv[1:]][0])' "$@"
}
SLOW=$(pid_of ffn 1)
bursts() {
    while kill -STOP "$SLOW" 2>/dev/null; do
        sleep 0.15
        kill -CONT "$SLOW"
        sleep 0.1
    done
}
bursts &
BURSTS=$!
PIDS="$PIDS $BURSTS"
in_time 90 "the stopped rank is not named" named
"$AFD" status --state "$D/state" | grep '^straggler:'
in_time 30 "the board's table of stragglers is empty" board
kill $BURSTS
kill -CONT "$SLOW"

echo "== a rank whose device is slow"
"$BUILD/tests/throttle" "$(pid_of attn 1)" 6 2>"$D/throttle" &
THROTTLE=$!
PIDS="$PIDS $THROTTLE"
# Where many wait for a core, it does too each time it is let go, and then its host is to blame.
hot() {
    kill -0 $THROTTLE 2>/dev/null || skip "no right to stop a thread: $(cat "$D/throttle")"
    "$AFD" status --state "$D/state" | grep "^straggler: attn/1, .* at compute, by its device"
}
limit=$(($(date +%s) + 45))
until hot; do
    if [ "$(date +%s)" -ge "$limit" ]; then
        awk -v cores="$(nproc)" '{exit $1 <= 4 * cores}' /proc/loadavg || fail "the rank with the slow device is not named"
        echo "not judged: load $(cut -d ' ' -f 1 /proc/loadavg) on $(nproc) cores"
        break
    fi
    sleep 0.3
done
kill $THROTTLE 2>/dev/null || :

echo "== a rank beside others on its core"
command -v taskset >/dev/null || skip "no taskset"
LAST=$(($(nproc --all) - 1))
[ $LAST -gt 0 ] || skip "one core: all ranks are beside each other"
crowded() { "$AFD" status --state "$D/state" | grep -q "^straggler: ffn/0, .*by its host"; }
taskset -acp $LAST "$(pid_of ffn 0)" >/dev/null || skip "no right to pin a process"
# The others go before the rank: on a machine that is busy anyway all ranks are beside others. Its threads are made
# nice, and since a session's niceness may count within that session alone, the others are of three sessions.
for task in /proc/"$(pid_of ffn 0)"/task/*; do renice -n 19 -p "${task##*/}" >/dev/null || skip "no right to make a thread nice"; done
for i in 1 2 3; do
    setsid timeout 120 taskset -c $LAST sh -c 'while :; do :; done' &
    PIDS="$PIDS $!"
done
in_time 90 "the rank beside others is not named" crowded
"$AFD" status --state "$D/state" | grep '^straggler: ffn/0'
