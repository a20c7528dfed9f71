#!/usr/bin/env bash
# One process of a run: begins it, or goes on where an earlier try has left its last checkpoint.
# MODEL, DATA: as for `quantlora finetune`. OUTPUT: a folder that all nodes share.
# OPTIONS: more options of the command. PYTHON: the interpreter.
set -euo pipefail

# No checkpoint can be complete before all processes have joined, so all of them decide alike.
if compgen -G "$OUTPUT/checkpoints/checkpoint-*/complete" > /dev/null; then
    exec "${PYTHON:-python}" -m quantlora finetune --resume --output "$OUTPUT"
fi
# shellcheck disable=SC2086  # OPTIONS are several words
exec "${PYTHON:-python}" -m quantlora finetune --model "$MODEL" --data "$DATA" \
    --output "$OUTPUT" --save-every "${SAVE_EVERY:-50}" ${OPTIONS:-}
