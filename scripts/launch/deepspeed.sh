#!/usr/bin/env bash
# llama_70b_4x8_zero3_offload on 4 nodes with 8 GPUs each, by deepspeed, over ssh.
# Printed by: llmgym launch deepspeed --nodes 4 -- llama_70b_4x8_zero3_offload
# Start it:   bash deepspeed.sh
# with the environment active, in the checkout, which all nodes find at the same path.
# hostfile has a line a host: "NAME slots=8".
# Odd words of the training are quoted twice: for this shell and for that of each host.
set -u
RUN=runs/llama-70b-4x8-zero3-offload
ATTEMPTS=${ATTEMPTS:-3}  # starts, each from the newest checkpoint
PAUSE=${PAUSE:-30}       # seconds between them

# Hosts with several networks: name the one they share.
# export NCCL_SOCKET_IFNAME=eth0 GLOO_SOCKET_IFNAME=eth0
export NCCL_DEBUG=${NCCL_DEBUG:-WARN}
# ssh starts without your environment: what ranks need of it goes into a file of this start,
# NAME=VALUE a line, and below it the lines of your own .deepspeed_env, which win. Keys do not:
# deepspeed puts the lines on a command line, which all users of a host see.
own=${DS_ENV_FILE:-.deepspeed_env}
DS_ENV_FILE=$(mktemp)
export DS_ENV_FILE
trap 'rm -f "$DS_ENV_FILE"' EXIT
{
  env | grep -E '^(NCCL_|GLOO_|OMP_|DS_ACCELERATOR=|HF_HOME=|HF_HUB_|LLMGYM_|WANDB_MODE=)' |
    grep -v '^LLMGYM_SECRET_'
  grep -hs = "$HOME/$own" "$own"
} > "$DS_ENV_FILE"
# A host that is gone says nothing: without this pdsh would wait for it for ever.
export PDSH_SSH_ARGS_APPEND="-o ServerAliveInterval=10 -o ServerAliveCountMax=3"


start() {
  llmgym launch check --hostfile hostfile --ranks 32 --nodes 4 --gpus 8 || return
  deepspeed --master_port "${MASTER_PORT:-29500}" --hostfile hostfile --force_multi \
    --num_nodes 4 --num_gpus 8 scripts/train_ppo.py llama_70b_4x8_zero3_offload \
    --backend.nodes 4 --backend.gpus 8 --resume
}

stop() {  # Rank 0 tells the others, and all save. The launcher would kill them after 30 seconds.
  stopping=yes
  host=$(sed -n 's/.*"host": "\([^"]*\)".*/\1/p' "$RUN/run.lock" 2>/dev/null)
  pid=$(sed -n 's/.*"pid": \([0-9]*\).*/\1/p' "$RUN/run.lock" 2>/dev/null)
  ask="pgrep -f scripts/train_ppo.py | grep -qx '$pid' && kill -TERM $pid"
  case "$host" in
    '') false ;;  # no rank has opened the run: there is nothing to save
    "$HOSTNAME") bash -c "$ask" ;;
    *) ssh "$host" "$ask" ;;
  esac || kill -TERM -- "-$child"  # the same where the rank that is named is gone
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
