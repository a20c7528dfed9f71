#!/usr/bin/env bash
# The same line on every node; a lost worker starts all of them again, RESTARTS times at most.
#   NODES=2 HEAD=10.0.0.1 MODEL=my-model DATA=chats.jsonl OUTPUT=/shared/run ./torchrun.sh
# HEAD: the address of one of the nodes. PROCESSES: on each node, by default one a GPU.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

exec "${PYTHON:-python}" -m torch.distributed.run \
    --nnodes "${NODES:-1}" --nproc-per-node "${PROCESSES:-gpu}" \
    --max-restarts "${RESTARTS:-3}" --rdzv-id "${RUN_ID:-quantlora}" \
    --rdzv-backend c10d --rdzv-endpoint "${HEAD:-localhost}:${PORT:-29500}" \
    --no-python "$here/finetune.sh"
