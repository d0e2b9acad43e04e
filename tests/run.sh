#!/bin/sh
# The tests, one command: installs what only tests need, builds with address and undefined-behaviour sanitizers,
# runs everything under CTest, ends with CTest's summary. Arguments go to CTest: `sh tests/run.sh -L unit`.
# BUILD names the build folder (default build/tests), SANITIZE the sanitizers (default address,undefined), TARGETS what is
# built (default everything).
set -eu
cd "$(dirname "$0")/.."
BUILD=${BUILD:-build/tests}
SANITIZE=${SANITIZE-address,undefined}

. deploy/packages.sh
install_packages $AFD_PACKAGES libcmocka-dev libcurl4-openssl-dev python3 python3-venv procps
# For a virtual machine with RDMA (tests/rdma). Without them that one test is skipped by name.
install_packages qemu-system-x86 busybox-static cpio iproute2 ibverbs-providers perftest ucx-utils ||
    echo "tests/run.sh: no virtual machine: test rdma will be skipped" >&2

# For launching over ssh and by slurm, and for Kubernetes' objects (tests/launch). Without them those are skipped by name.
install_packages openssh-server openssh-client slurm-wlm munge iproute2 python3-jsonschema python3-yaml systemd ||
    echo "tests/run.sh: no ssh or slurm: some of launch_* will be skipped" >&2

# Reads the metrics page (test_monitoring). Without it that one test is skipped by name.
install_packages prometheus curl || echo "tests/run.sh: no prometheus: test_monitoring will be skipped" >&2

# The OpenAI client that the tests talk with lives in a virtual environment of its own. Without it that one test is
# skipped by name.
if [ ! -x "$BUILD/venv/bin/python" ] || ! "$BUILD/venv/bin/python" -c 'import openai' 2>/dev/null; then
    mkdir -p "$BUILD"
    { python3 -m venv "$BUILD/venv" && "$BUILD/venv/bin/pip" install --quiet openai; } ||
        echo "tests/run.sh: the openai package cannot be installed: test_openai_client will be skipped" >&2
fi

echo "tests/run.sh: building in $BUILD (sanitizers: ${SANITIZE:-none})"
cmake -S . -B "$BUILD" -G Ninja -DCMAKE_BUILD_TYPE=Release -DSANITIZE="$SANITIZE" -DAFD_TESTS=ON >"$BUILD/cmake.log" 2>&1 || {
    cat "$BUILD/cmake.log"
    exit 1
}
# shellcheck disable=SC2086 # several words
cmake --build "$BUILD" -j 2 ${TARGETS:+--target $TARGETS}

export ASAN_OPTIONS="${ASAN_OPTIONS:-detect_leaks=1:abort_on_error=1:allocator_may_return_null=1}"
export UBSAN_OPTIONS="${UBSAN_OPTIONS:-print_stacktrace=1}"
export TSAN_OPTIONS="${TSAN_OPTIONS:-suppressions=$PWD/tests/thread.supp}"
exec ctest --test-dir "$BUILD" --output-on-failure -j 2 "$@"
