#!/usr/bin/env bash
# Quick start of the standalone implementation: bash train.sh TRAIN_FILE MODEL OUTPUT_DIR [--option value ...]
exec .venv/bin/step-jepa train --config recipes/standalone.yaml \
  --train_file "${1:?file}" --model_name "${2:?model}" --output_dir "${3:?folder}" "${@:4}"
