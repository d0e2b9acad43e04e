#!/bin/sh
# cuda_build.sh: the CUDA back end compiles without warnings for its GPUs, and the rank that uses it links. Skipped (77) where
# there is no CUDA toolkit; needs no GPU. Builds into build/cuda.
set -eu
cd "$(dirname "$0")/../.."
nvcc=$(command -v nvcc || ls /usr/local/cuda/bin/nvcc 2>/dev/null || true)
if [ -z "$nvcc" ]; then
    echo "skipped: no CUDA toolkit (nvcc)"
    exit 77
fi
cmake -S . -B build/cuda -G Ninja -DCMAKE_BUILD_TYPE=Release -DAFD_CUDA=ON -DAFD_BENCH=OFF
cmake --build build/cuda -j 2 --target afd-ffn-node
# No kernel keeps registers in memory.
kernels=0
for report in build/cuda/compute/*.cu.o.log; do
    grep -q 'bytes spill' "$report"
    if grep 'bytes spill' "$report" | grep -v ' 0 bytes spill stores, 0 bytes spill loads'; then
        echo "a kernel spills its registers: $report"
        exit 1
    fi
    if grep 'C7515' "$report"; then
        echo "the compiler makes a kernel wait for each product of a warpgroup: $report"
        exit 1
    fi
    kernels=$((kernels + $(grep -c 'bytes spill' "$report")))
done
echo "$kernels kernels, none spills, none waits for each product"
