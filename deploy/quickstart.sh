#!/bin/sh
# From a fresh Debian 12 to a running cluster, one command, as root, without a GPU:
#
#   sh deploy/quickstart.sh
#
# installs what is missing, builds, starts 2 attention and 2 FFN ranks on this machine, streams a completion and
# shows where each rank's time went. Again: what is there already is used. TOPOLOGY names another topology file,
# BUILD another build folder (default build/release), JOBS how many compilers run (default: one a core).
set -eu
cd "$(dirname "$0")/.."
TOPOLOGY=${TOPOLOGY:-deploy/topologies/2a2f-local.yaml}
BUILD=${BUILD:-build/release}
JOBS=${JOBS:-$(nproc)}
PROMPT='ROMEO:
'

step() { printf '\n== %s\n' "$*"; }
die() {
    printf '\nquickstart: %s\n' "$*" >&2
    exit 1
}

. deploy/packages.sh

step "1/5 packages of Debian that afd is built from"
install_packages $AFD_PACKAGES || die "not all packages are there: see above"
echo "all there"

step "2/5 build into $BUILD, $JOBS at a time"
mkdir -p "$BUILD"
if ! cmake -S . -B "$BUILD" -G Ninja -DCMAKE_BUILD_TYPE=Release >"$BUILD/cmake.log" 2>&1; then
    cat "$BUILD/cmake.log" >&2
    die "cmake failed: see above; a fresh start: rm -r $BUILD"
fi
NINJA_STATUS='[%f/%t, %es] ' cmake --build "$BUILD" -j "$JOBS" --target afd afd-scheduler afd-attn-node afd-ffn-node ||
    die "the build failed: see above"
PATH="$PWD/$BUILD/bin:$PATH"
export PATH

step "3/5 start the cluster of $TOPOLOGY"
if ! afd up "$TOPOLOGY" --timeout 120; then
    die "the cluster did not start: see above. If an address is in use, stop what uses it (ss -ltnp shows it; an
older cluster: afd down) or give scheduler.http and scheduler.control other ports in $TOPOLOGY"
fi

step "4/5 a completion over HTTP, as it is generated"
afd complete --echo --max-tokens 96 --temperature 0.7 --seed 7 "$PROMPT" ||
    die "no completion; what the daemons say: afd logs scheduler, afd logs attn/0, afd logs ffn/0"

step "5/5 the ranks, and where their time went"
# Ranks report every scheduler.heartbeat_ms: the completion shows once an attention rank has reported its steps.
tries=50
until afd status --json | grep -q '"steps": [1-9]' || [ "$((tries -= 1))" = 0 ]; do sleep 0.1; done
afd status

step "it runs; go on with"
cat <<END
  export PATH=$PWD/$BUILD/bin:\$PATH
  afd chat                                     talk with it
  afd complete 'To be, or not' --max-tokens 64
  afd status                                   ranks and stages
  afd bench serve --concurrency 8 --requests 32
  afd logs attn/0 -f                           what a rank says
  afd down                                     stop it: nothing is left
END
