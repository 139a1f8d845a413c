#!/usr/bin/env bash
# Quick start of the adapted implementation: bash train_adapted.sh TRAIN_FILE MODEL OUTPUT_DIR [--option value ...]
exec .venv/bin/step-jepa train --config recipes/adapted.yaml \
  --train_file "${1:?file}" --model_name "${2:?model}" --output_dir "${3:?folder}" "${@:4}"
