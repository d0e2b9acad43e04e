#!/bin/sh
# `afd up` over ssh, for real: two hosts that are network namespaces (127.0.0.2 and 127.0.0.3 without the right to make
# them), each with an sshd of its own: own keys, own configuration, nothing of the system's is touched. Guards: ranks
# on the wrong host, a rank that stays dead, a host whose failure leaves the others running, words that do not say
# what is wrong, processes that `afd down` leaves.
cd "$(dirname "$0")/../.."
. tests/launch/common.sh

NS=
cleanup() {
    "$AFD" down --state "$D/state" >/dev/null 2>&1 || true
    for pid in $PIDS; do kill "$pid" 2>/dev/null || true; done
    for ns in $NS; do ip netns del "$ns" 2>/dev/null || true; done
    [ -z "$NS" ] || ip link del "$BRIDGE" 2>/dev/null || true
    wait
    rm -rf "$D"
}
trap cleanup EXIT
trap 'exit 1' INT TERM
command -v sshd >/dev/null || [ -x /usr/sbin/sshd ] || skip "no sshd (Debian: openssh-server)"
command -v ssh >/dev/null || skip "no ssh (Debian: openssh-client)"
[ -d /run/sshd ] || mkdir /run/sshd 2>/dev/null || skip "sshd wants /run/sshd, which cannot be made"

# Two namespaces on a bridge, or two addresses of the loopback.
BRIDGE=afdl$$
join() { # NAMESPACE ADDRESS
    ip netns add "$1" && NS="$NS $1" &&
        ip link add "$1" type veth peer name eth0 netns "$1" && ip link set "$1" master "$BRIDGE" up &&
        ip -n "$1" addr add "$2/24" dev eth0 && ip -n "$1" link set eth0 up && ip -n "$1" link set lo up
}
if ip link add "$BRIDGE" type bridge 2>/dev/null && NS=" " && ip addr add 198.18.77.1/24 dev "$BRIDGE" &&
    ip link set "$BRIDGE" up && join "$BRIDGE"a 198.18.77.2 && join "$BRIDGE"b 198.18.77.3; then
    A=198.18.77.2 B=198.18.77.3
    ENTER_A="ip netns exec ${BRIDGE}a" ENTER_B="ip netns exec ${BRIDGE}b"
else
    A=127.0.0.2 B=127.0.0.3 ENTER_A= ENTER_B=
fi
step "hosts $A and $B"
PORT=$(free_port) HTTP=$(free_port) CONTROL=$(free_port)

ssh-keygen -q -t ed25519 -N '' -f "$D/host_key"
ssh-keygen -q -t ed25519 -N '' -f "$D/user_key"
cp "$D/user_key.pub" "$D/authorized_keys"
for host in "$A" "$B"; do echo "[$host]:$PORT $(cut -d' ' -f1,2 "$D/host_key.pub")" >>"$D/known_hosts"; done
cat >"$D/config" <<END
IdentityFile $D/user_key
IdentitiesOnly yes
UserKnownHostsFile $D/known_hosts
Port $PORT
END
serve() { # ADDRESS COMMAND...
    cat >"$D/sshd-$1" <<END
ListenAddress $1
Port $PORT
HostKey $D/host_key
AuthorizedKeysFile $D/authorized_keys
StrictModes no
UsePAM no
PasswordAuthentication no
PermitRootLogin yes
PidFile none
END
    address=$1
    shift
    "$@" /usr/sbin/sshd -D -e -f "$D/sshd-$address" >"$D/sshd-$address.log" 2>&1 &
    PIDS="$PIDS $!"
}
serve "$A" $ENTER_A
serve "$B" $ENTER_B
reached() { ssh -F "$D/config" -o BatchMode=yes "$1" true 2>"$D/ssh.log"; }
in_time 10 "no sshd at $A" reached "$A"
in_time 10 "no sshd at $B" reached "$B"

BY="{ by: ssh, ssh: [ssh, -F, $D/config], state: $D/hosts"
topology bad-dir "$BY, dir: /nowhere }" "$A" "$B"
topology bad-host "$BY }" "$A" "${B%3}9"
topology good "$BY }" "$A" "$B"

step "a folder without afd is told"
! "$AFD" up "$D/bad-dir.yaml" --state "$D/state" --timeout 30 >"$D/up.log" 2>&1 || fail "it came up"
grep -q "host $A: /nowhere/afd cannot be run there" "$D/up.log" || fail "$(cat "$D/up.log")"
step "a host that is not there is told, and the others are taken down"
! "$AFD" up "$D/bad-host.yaml" --state "$D/state" --timeout 30 >"$D/up.log" 2>&1 || fail "it came up"
grep -q "host ${B%3}9: cannot be reached by ssh" "$D/up.log" || fail "$(cat "$D/up.log")"
! pgrep -f -- "$D/hosts" >/dev/null || fail "left: $(pgrep -af -- "$D/hosts")"

step "up"
"$AFD" up "$D/good.yaml" --state "$D/state" --timeout 40 || fail "up"
exercise "$A" "$B"
step "up again leaves what runs"
"$AFD" up "$D/good.yaml" --state "$D/state" --timeout 20 | grep -q 'runs already' || fail "up again"
step "down: nothing is left"
"$AFD" down --state "$D/state" || fail "down"
! pgrep -f -- "$D/hosts" >/dev/null || fail "left: $(pgrep -af -- "$D/hosts")"
step "done"
