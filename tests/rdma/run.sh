#!/bin/sh
# The transport over RDMA, on a machine that has no RDMA: boots Debian's kernel in QEMU with soft-RoCE (rdma_rxe) and
# the programs of a build, and runs there the transport suite over verbs and UCX, perftest beside our own
# measurements, and a small cluster that completes a prompt.
#
#   sh tests/rdma/run.sh [NAME...]      the steps (file steps) whose names match one of the patterns; default: all
#   STEPS=FILE sh tests/rdma/run.sh     other steps
#
# BUILD names the build folder (default build/release); it is brought up to date first. The build is one without
# sanitizers: the machine is emulated where KVM does not work, its memory is small, and speeds are compared there.
# Exit status 0: all passed; 1: something failed; 77: skipped, the reason is the last line. What the guest said is left
# in BUILD/rdma/console.log, measurements in BUILD/rdma/results/.
set -eu
cd "$(dirname "$0")/../.."
BUILD=${BUILD:-build/release}
LIMIT=${LIMIT:-540} # seconds that the guest may take: about 200 where nothing runs beside it

skip() {
    echo "tests/rdma: skipped: $*"
    exit 77
}

# ---- what it needs

for tool in qemu-system-x86_64 busybox cpio rdma ib_write_lat ldd; do
    command -v "$tool" >/dev/null || skip "no $tool (Debian: qemu-system-x86 busybox-static cpio iproute2 perftest)"
done
[ "$(uname -m)" = x86_64 ] || skip "the virtual machine is x86-64"

PROGRAMS="afd afd-scheduler afd-attn-node afd-ffn-node"
TESTS="test_verbs test_hello test_transport test_transport_processes test_group"
mkdir -p "$BUILD"
cmake -S . -B "$BUILD" -G Ninja -DCMAKE_BUILD_TYPE=Release -DAFD_TESTS=ON >"$BUILD/cmake.log" 2>&1 || {
    cat "$BUILD/cmake.log"
    exit 1
}
cmake --build "$BUILD" -j "${JOBS:-2}" --target $PROGRAMS $TESTS >"$BUILD/build.log" 2>&1 || {
    tail -n 50 "$BUILD/build.log"
    exit 1
}
WORK=$(cd "$BUILD" && pwd)/rdma
mkdir -p "$WORK/cache" "$WORK/results"

# The generic kernel has rdma_rxe, Debian's cloud kernel has not. It is unpacked, never installed.
if [ ! -f "$WORK/cache/vmlinuz" ]; then
    package=$(apt-cache depends linux-image-amd64 2>/dev/null | awk '/Depends: linux-image/ {print $2; exit}')
    [ -n "$package" ] || skip "apt knows no linux-image-amd64"
    rm -rf "$WORK/cache"
    mkdir -p "$WORK/cache"
    (cd "$WORK/cache" && apt-get download -qq "$package") >"$WORK/apt.log" 2>&1 ||
        skip "the kernel package cannot be downloaded: $(tail -n 1 "$WORK/apt.log")"
    dpkg-deb -x "$WORK/cache/$package"_*.deb "$WORK/cache/tree"
    mv "$WORK/cache/tree/boot"/vmlinuz-* "$WORK/cache/vmlinuz"
fi

# ---- the initial file system: the guest has the host's paths, and nothing but what is named here

MODULES="crc32_generic crc32c_generic udp_tunnel ip6_udp_tunnel ib_core ib_uverbs iw_cm ib_cm configfs rdma_cm
rdma_ucm rdma_rxe dummy"
ROOT=$WORK/root
LIB=usr/lib/x86_64-linux-gnu
rm -rf "$ROOT"
mkdir -p "$ROOT/usr/bin" "$ROOT/usr/lib64" "$ROOT/$LIB/ucx" "$ROOT/$LIB/libibverbs" "$ROOT/modules" "$ROOT/etc" \
    "$ROOT/proc" "$ROOT/sys" "$ROOT/dev" "$ROOT/tmp" "$ROOT/afd/model" "$ROOT/afd/tests" "$ROOT/afd/bench"
for link in bin lib lib64; do ln -s "usr/$link" "$ROOT/$link"; done
ln -s usr/bin "$ROOT/sbin"
for name in $MODULES; do
    file=$(find "$WORK/cache/tree/lib/modules" -name "$name.ko")
    [ -n "$file" ] || skip "the kernel package has no module $name"
    cp "$file" "$ROOT/modules/"
    echo "$name" >>"$ROOT/modules/order"
done

# add FILE...: programs or libraries, with the libraries that they are linked with
add_libraries() {
    ldd "$@" 2>/dev/null | awk '$3 ~ /^\// {print $3} $1 ~ /^\/.*so/ && $2 ~ /^\(/ {print $1}' | sort -u |
        while read -r library; do
            case $library in
            */ld-linux*) cp -Lu "$library" "$ROOT/usr/lib64/" ;;
            *) cp -Lu "$library" "$ROOT/$LIB/" ;;
            esac
        done
}
add_programs() {
    cp "$@" "$ROOT/usr/bin/"
    add_libraries "$@"
}
add_programs "$(command -v busybox)" "$(command -v rdma)"
for tool in ib_write_lat ib_write_bw ib_send_lat ib_send_bw; do add_programs "$(command -v "$tool")"; done
for applet in $(busybox --list); do [ -e "$ROOT/bin/$applet" ] || ln -s busybox "$ROOT/bin/$applet"; done
for program in $PROGRAMS; do add_programs "$BUILD/bin/$program"; done
for program in $TESTS; do add_programs "$BUILD/tests/$program"; done
cp "/$LIB"/libibverbs/librxe-rdmav*.so "$ROOT/$LIB/libibverbs/"
mkdir "$ROOT/etc/libibverbs.d"
cp /etc/libibverbs.d/rxe.driver "$ROOT/etc/libibverbs.d/"
for file in "/$LIB"/ucx/libuct_*.so.0; do
    cp -L "$file" "$ROOT/$LIB/ucx/${file##*/}"
    ln -s "${file##*/}" "$ROOT/$LIB/ucx/$(basename "$file" .0)"
    add_libraries "$file"
done
cp -r model/nano "$ROOT/afd/model/"
cp -r tests/rdma "$ROOT/afd/tests/"
cp bench/transport.sh "$ROOT/afd/bench/"
echo "127.0.0.1 localhost" >"$ROOT/etc/hosts"
echo "hosts: files" >"$ROOT/etc/nsswitch.conf"
cp tests/rdma/guest.sh "$ROOT/init"
chmod +x "$ROOT/init"
grep -v '^#' "${STEPS:-tests/rdma/steps}" | while IFS= read -r step; do
    [ $# = 0 ] && echo "$step"
    for pattern in "$@"; do
        case ${step%%|*} in $pattern) echo "$step" && break ;; esac
    done
done >"$ROOT/steps"
(cd "$ROOT" && find . | cpio -o -H newc --quiet | gzip -1) >"$WORK/initrd.gz"

# ---- the machine

# machine ACCELERATOR SECONDS QEMU_ARGUMENT...
machine() {
    accelerator=$1 seconds=$2
    shift 2
    timeout "$seconds" qemu-system-x86_64 -accel "$accelerator" -cpu max -smp 2 -m 2048 -nodefaults -nic none \
        -nographic -no-reboot -serial stdio -kernel "$WORK/cache/vmlinuz" "$@" </dev/null 2>&1
}

# KVM counts when a kernel gets as far as to miss its root file system: inside of another virtual machine a /dev/kvm
# may open and run nothing.
accelerator=tcg,thread=multi
if [ -w /dev/kvm ]; then
    case $(machine kvm 10 -append "console=ttyS0 panic=-1" || true) in
    *'Unable to mount root'*) accelerator=kvm ;;
    esac
fi
echo "tests/rdma: kernel $(ls "$WORK/cache/tree/lib/modules"), accelerator ${accelerator%%,*}"

# The guest writes n to isa-debug-exit, and QEMU ends with 2n + 1: an even status is QEMU's own, or timeout's.
{
    code=0
    machine "$accelerator" "$LIMIT" -initrd "$WORK/initrd.gz" -device isa-debug-exit,iobase=0xf4,iosize=4 \
        -append "console=ttyS0 quiet panic=-1 oops=panic mitigations=off no_timer_check" || code=$?
    echo "$code" >"$WORK/status"
} | sed -u 's/\r//g' | tee "$WORK/console.log"
code=$(cat "$WORK/status")

# What the guest printed between "guest: file NAME" and "guest: end" becomes results/NAME.
awk -v to="$WORK/results/" '/^guest: file /{name = $3; next} /^guest: end$/{name = ""} name {print > (to name)}' \
    "$WORK/console.log"

case $code in
1) echo "tests/rdma: all passed" ;;
3) echo "tests/rdma: something failed: $WORK/console.log" && exit 1 ;;
124) echo "tests/rdma: the guest took more than $LIMIT s: $WORK/console.log" && exit 1 ;;
*) echo "tests/rdma: the guest did not report (QEMU ended with $code): $WORK/console.log" && exit 1 ;;
esac
