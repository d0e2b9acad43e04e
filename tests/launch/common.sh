# Sourced by ssh.sh and slurm.sh: a cluster of two hosts that are one machine, and what both launchers must do with it.
# Expects BUILD, the build folder. Everything lies in $D and is gone at the end, also when the test fails.
set -eu
AFD=$BUILD/bin/afd
D=$(mktemp -d /tmp/afd-l-XXXXXX)
PIDS=

skip() {
    echo "skipped: $*"
    exit 77
}
fail() {
    echo "FAILED: $*" >&2
    for log in "$D"/*.log "$D"/state/logs/*.log "$D"/hosts/host-*/logs/*.log "$D"/state/host-*/logs/*.log; do
        [ ! -f "$log" ] || { echo "---- $log" && tail -n 8 "$log"; } >&2
    done
    exit 1
}
step() { echo "== $*"; }

# in_time SECONDS WORDS COMMAND...: until it succeeds.
in_time() {
    limit=$(($(date +%s) + $1))
    words=$2
    shift 2
    until "$@"; do
        [ "$(date +%s)" -lt "$limit" ] || fail "$words"
        sleep 0.2
    done
}

free_port() {
    python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

# topology NAME LAUNCH_LINES A B: scheduler and attention on host A, FFN on B; each pool may grow on the other host.
topology() {
    cat >"$D/$1.yaml" <<END
cluster: l
model: { path: $PWD/model/nano }
scheduler: { host: $3, http: "0.0.0.0:$HTTP", control: "0.0.0.0:$CONTROL", drain_s: 5 }
pipeline: { max_rows: 16, prefill_rows: 8 }
pools:
  attn: { instances: 1, max_instances: 2, kv_cache: { memory: 8MiB }, hosts: [$3, $4] }
  ffn: { instances: 1, max_instances: 2, hosts: [$4, $3] }
launch: $2
END
}

complete() { "$AFD" complete --state "$D/state" --max-tokens 8 --temperature 0 'To be, or not'; }
field() { # of a rank in `afd ps --json`
    "$AFD" ps --state "$D/state" --json | python3 -c '
import json, sys
role, rank = sys.argv[1].split("/")
for p in json.load(sys.stdin)["processes"]:
    if p["role"] == role and p["rank"] == int(rank): print(p[sys.argv[2]])' "$1" "$2"
}
restarted() { [ "$(field "$1" restarts)" -ge 1 ] && [ "$(field "$1" state)" = running ]; }

# The cluster is up: what it must do, through whatever has launched it.
exercise() {
    step "a completion"
    complete >"$D/first" || fail "no completion"
    [ -s "$D/first" ] || fail "an empty completion"
    step "ps shows the ranks of both hosts, each on its own"
    "$AFD" ps --state "$D/state"
    [ "$(field attn/0 host)" = "$1" ] || fail "attn/0 is not on $1"
    [ "$(field ffn/0 host)" = "$2" ] || fail "ffn/0 is not on $2"
    step "logs of either host"
    "$AFD" logs ffn/0 --state "$D/state" -n 200 | grep -q 'cluster l' || fail "no log of ffn/0"
    "$AFD" logs supervisor/"$2" --state "$D/state" | grep -q 'ffn/0 started' || fail "no log of the supervisor of $2"
    for rank in ffn/0 attn/0; do
        step "kill -9 of $rank: it is started again, and the answer is the same"
        kill -9 "$(field $rank pid)"
        in_time 20 "$rank was not started again" restarted $rank
        complete >"$D/again" || fail "no completion after the loss of $rank"
        cmp -s "$D/first" "$D/again" || fail "another answer after the loss of $rank"
    done
    if "$AFD" help | grep -q 'afd scale'; then
        step "scale: a second instance of each pool on the other host, and back"
        "$AFD" scale --state "$D/state" attn=2 ffn=2 || fail "scale up"
        [ "$(field attn/1 host)" = "$2" ] && [ "$(field ffn/1 host)" = "$1" ] || fail "ranks on the wrong hosts"
        complete >"$D/again" || fail "no completion after the scale"
        cmp -s "$D/first" "$D/again" || fail "another answer after the scale"
        "$AFD" scale --state "$D/state" attn=1 ffn=1 || fail "scale down"
        in_time 20 "attn/1 stays" [ -z "$(field attn/1 pid)" ]
    fi
    step "the secret is in no log"
    secret=$(cat "$D/state/secret")
    ! grep -rqs -- "$secret" "$D"/*.log "$D"/state/logs "$D"/*/host-*/logs || fail "the secret is in a log"
}
