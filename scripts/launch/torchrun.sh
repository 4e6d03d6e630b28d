#!/usr/bin/env bash
# llama_70b_4x8_zero3_offload on 4 nodes with 8 GPUs each, by torchrun.
# Printed by: llmgym launch torchrun --nodes 4 -- llama_70b_4x8_zero3_offload
# Start it:   bash torchrun.sh NUMBER FIRST    on every node: its number from 0, the first's name
# with the environment active, in the checkout, which all nodes find at the same path.
NODE=${1:?the number of this node, from 0}
FIRST=${2:?the name of node 0}
set -u
RUN=runs/llama-70b-4x8-zero3-offload
ATTEMPTS=${ATTEMPTS:-3}  # starts, each from the newest checkpoint
PAUSE=${PAUSE:-30}       # seconds between them

# Hosts with several networks: name the one they share.
# export NCCL_SOCKET_IFNAME=eth0 GLOO_SOCKET_IFNAME=eth0
export NCCL_DEBUG=${NCCL_DEBUG:-WARN}
# A rank's share of the cores; torchrun would give it one.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(($(nproc) > 8 ? $(nproc) / 8 : 1))}

start() {
  exec torchrun --nnodes 4 --node_rank "$NODE" --master_addr "$FIRST" \
    --master_port "${MASTER_PORT:-29500}" --nproc_per_node 8 scripts/train_ppo.py \
    llama_70b_4x8_zero3_offload --backend.nodes 4 --backend.gpus 8 --resume
}

stop() {  # The ranks of this node tell the others, and all save; torchrun would kill them soon.
  stopping=yes
  pkill -TERM -P "$child" || kill -TERM -- "-$child"
}

after_stop() { :; }
status() { sed -n 's/.*"status": "\([a-z]*\)".*/\1/p' "$RUN/status.json" 2>/dev/null; }

set -m  # start is a process group of its own, so that Ctrl-C comes here alone
trap stop TERM INT HUP USR1
stopping=
for ((attempt = 1; attempt <= ATTEMPTS; attempt++)); do
  case $(status) in finished | converged) echo "$RUN is finished"; exit 0 ;; esac
  start &
  child=$!
  wait "$child"
  code=$?
  while [ -n "$stopping" ] && kill -0 "$child" 2>/dev/null; do wait "$child"; done  # they save
  case $(status) in
    interrupted) if [ -n "$stopping" ] || [ "$code" -eq 0 ]; then after_stop; exit 0; fi ;;
    finished | converged) exit 0 ;;
  esac
  if [ "$code" -eq 2 ]; then exit 2; fi  # a setting is wrong, and would be again
  echo "attempt $attempt of $ATTEMPTS ended with exit code $code" >&2
  if [ -z "$stopping" ] && [ "$attempt" -lt "$ATTEMPTS" ]; then sleep "$PAUSE" & wait $!; fi
  if [ -n "$stopping" ]; then break; fi
done
exit 1
