#!/bin/sh
# `afd up` by slurm, for real: slurmctld, two slurmd with names and addresses of their own on this machine, munge; all
# with their own configuration, in a mount namespace where /etc/hosts has the two nodes. Guards: a task's death that
# ends the job, hosts that the allocation has and the topology does not, a job that `afd down` leaves.
cd "$(dirname "$0")/../.."
for program in slurmctld slurmd munged srun sbatch; do
    command -v $program >/dev/null || [ -x /usr/sbin/$program ] || {
        echo "skipped: no $program (Debian: slurm-wlm, munge)"
        exit 77
    }
done
if [ -z "${AFD_IN_NAMESPACE:-}" ]; then
    unshare --mount true 2>/dev/null || { echo "skipped: no right to make a mount namespace"; exit 77; }
    AFD_IN_NAMESPACE=1 exec unshare --mount sh "$0"
fi
. tests/launch/common.sh

A=n1 B=n2
HTTP=$(free_port) CONTROL=$(free_port)
cleanup() {
    "$AFD" down --state "$D/state" >/dev/null 2>&1 || true
    scancel --quiet --user=root 2>/dev/null || true
    for pid in $PIDS; do kill "$pid" 2>/dev/null || true; done
    wait
    umount /etc/hosts 2>/dev/null || true
    rm -rf "$D"
}
trap cleanup EXIT
trap 'exit 1' INT TERM

chmod 755 "$D"
NAME=$(uname -n)
printf '127.0.0.1 localhost %s\n127.0.0.2 n1\n127.0.0.3 n2\n' "$NAME" >"$D/hosts.file"
mount --bind "$D/hosts.file" /etc/hosts || skip "/etc/hosts cannot be covered"
mkdir -p "$D/munge" "$D/ctl"
head -c 128 /dev/urandom >"$D/munge/key"
chmod 400 "$D/munge/key"
cat >"$D/slurm.conf" <<END
ClusterName=l
SlurmctldHost=$NAME(127.0.0.1)
SlurmctldPort=$(free_port)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$D/munge/socket
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
SlurmdParameters=config_overrides
SchedulerParameters=sched_min_interval=100000,batch_sched_delay=0
StateSaveLocation=$D/ctl
SlurmdSpoolDir=$D/spool-%n
SlurmctldPidFile=$D/ctl.pid
SlurmdPidFile=$D/slurmd-%n.pid
SlurmctldLogFile=$D/slurmctld.log
SlurmdLogFile=$D/slurmd-%n.log
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
KillWait=5
NodeName=n1 NodeHostname=$NAME NodeAddr=127.0.0.1 Port=$(free_port) CPUs=4
NodeName=n2 NodeHostname=$NAME NodeAddr=127.0.0.1 Port=$(free_port) CPUs=4
PartitionName=p Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
END
export SLURM_CONF="$D/slurm.conf"
run() { # LOG COMMAND...
    log=$D/$1.log
    shift
    "$@" >"$log" 2>&1 </dev/null &
    PIDS="$PIDS $!"
}
run munged munged --foreground --force --num-threads=1 --key-file="$D/munge/key" --socket="$D/munge/socket" \
    --pid-file="$D/munge/pid" --seed-file="$D/munge/seed" --log-file="$D/munge/log"
in_time 10 "munged does not listen" [ -S "$D/munge/socket" ]
run slurmctld slurmctld -D
run slurmd-n1 slurmd -D -N n1
run slurmd-n2 slurmd -D -N n2
idle() { [ "$(sinfo -h -N -t idle -o %n 2>/dev/null | wc -l)" = 2 ]; }
in_time 20 "the nodes are not idle: $(sinfo -N 2>&1)" idle

no_job() { [ -z "$(squeue -h 2>/dev/null)" ]; }
topology named "{ by: slurm }" n1 n2
step "up submits a job"
"$AFD" up "$D/named.yaml" --state "$D/state" --timeout 40 || fail "up"
exercise n1 n2
step "a supervisor's death leaves the other host's ranks"
task=$(pgrep -f -- "supervise --task --state $D/state" | while read -r pid; do
    tr '\0' '\n' <"/proc/$pid/environ" | grep -qx SLURMD_NODENAME=n2 && tr '\0' ' ' <"/proc/$pid/cmdline" |
        grep -q "afd supervise" && echo "$pid"; done | tail -n 1)
attn=$(field attn/0 pid)
kill -9 "$task"
gone() { ! kill -0 "$task" 2>/dev/null; }
in_time 10 "the supervisor does not die" gone
kill -0 "$attn" || fail "attn/0 died with the other host's supervisor"
[ -n "$(squeue -h)" ] || fail "the job ended with a task"
step "a scale onto that host is refused at once, with words"
! "$AFD" scale --state "$D/state" attn=2 >"$D/refused" 2>&1 || fail "a scale onto a host without a supervisor"
grep -q 'attn/1 would run on n2, and its supervisor is not there' "$D/refused" || fail "$(cat "$D/refused")"
step "down: nothing is left"
"$AFD" down --state "$D/state" || fail "down"
in_time 10 "a job is left: $(squeue -h)" no_job
! pgrep -f -- "$D/state" >/dev/null || fail "left: $(pgrep -af -- "$D/state")"

step "up without hosts takes those of the allocation it stands in"
grep -v '^  attn\|^  ffn\|^pools' "$D/named.yaml" | sed 's/host: n1, //' >"$D/unnamed.yaml"
salloc --quiet --nodes=2 --exclusive sh -c "'$AFD' up '$D/unnamed.yaml' --state '$D/state' --timeout 40 &&
    '$AFD' ps --state '$D/state' && '$AFD' complete --state '$D/state' --max-tokens 4 --temperature 0 'To be' >/dev/null &&
    '$AFD' down --state '$D/state'" </dev/null || fail "in an allocation"
in_time 10 "an allocation is left: $(squeue -h)" no_job
! pgrep -f -- "$D/state" >/dev/null || fail "left: $(pgrep -af -- "$D/state")"
step "done"
