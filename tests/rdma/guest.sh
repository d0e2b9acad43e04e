#!/bin/sh
# /init of the virtual machine that run.sh boots: makes two soft-RoCE ports, runs what GUEST_STEPS (a file of lines
# "name|seconds|command") names, says how each ended, and gives QEMU an exit code: 0 all passed, 1 something failed.
export PATH=/bin:/sbin LD_LIBRARY_PATH=/lib HOME=/tmp UCX_MODULE_DIR=/lib/ucx
mount -t proc none /proc
mount -t sysfs none /sys
mount -t devtmpfs none /dev
mkdir -p /dev/pts /dev/shm /tmp
mount -t devpts none /dev/pts
mount -t tmpfs none /dev/shm
mount -t tmpfs none /tmp
ulimit -l unlimited

# Writes a byte to the port of QEMU's isa-debug-exit: it ends with status 2 * byte + 1.
leave() {
    sync
    printf "\\$(printf %03o "$1")" | dd of=/dev/port bs=1 seek=244 2>/dev/null
    poweroff -f
}

# now: 0.01 s since the boot
now() {
    read -r up _ </proc/uptime
    echo "${up%.*}${up#*.}"
}

for module in $(cat /modules/order); do
    insmod "/modules/$module.ko" || { echo "guest: module $module does not load"; leave 2; }
done
ip link set lo up
for i in 0 1; do
    ip link add "d$i" type dummy && ip addr add "10.9.$i.1/24" dev "d$i" && ip link set "d$i" mtu 4200 up &&
        rdma link add "rxe$i" type rxe netdev "d$i" || { echo "guest: no soft-RoCE device"; leave 2; }
done
echo "guest: $(uname -r), $(nproc) cores, $(ls /sys/class/infiniband | tr '\n' ' ')up after $(cut -d' ' -f1 /proc/uptime) s"

failed=0
while IFS='|' read -r name seconds command; do
    began=$(now)
    echo "guest: begin $name"
    timeout "$seconds" sh -c "$command" </dev/null
    code=$?
    kill -9 -1 2>/dev/null # what a step that ran out of time leaves: all but process 1, which is this one
    took=$(($(now) - began))
    took=$((took / 100)).$((took % 100 / 10))
    case $code in
    0) echo "guest: passed $name ($took s)" ;;
    77) echo "guest: skipped $name" ;;
    *)
        failed=1
        echo "guest: FAILED $name: status $code ($took s)"
        ;;
    esac
done </steps
leave "$failed"
