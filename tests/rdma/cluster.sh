#!/bin/sh
# A 2A2F cluster over verbs completes a prompt: twice the same, and all four pairs say that they use verbs.
set -e
export AFD_STATE=/tmp/state
cd /afd
afd up tests/rdma/cluster.yaml --state "$AFD_STATE" --timeout 100
trap 'afd down >/dev/null 2>&1' EXIT
for i in 1 2; do
    afd complete --echo --max-tokens 24 --temperature 0 'ROMEO:
' >"/tmp/answer.$i"
done
cat /tmp/answer.1
[ "$(wc -c </tmp/answer.1)" -gt 30 ] || { echo "cluster: a short answer"; exit 1; }
cmp /tmp/answer.1 /tmp/answer.2 || { echo "cluster: two answers to one question"; exit 1; }
pairs=$(for rank in attn/0 attn/1; do afd logs "$rank"; done | grep -c 'pair with ffn/[01].* is open over verbs')
[ "$pairs" = 4 ] || { echo "cluster: $pairs of 4 pairs are open over verbs"; exit 1; }
afd down
trap - EXIT
