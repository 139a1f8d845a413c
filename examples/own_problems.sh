#!/usr/bin/env bash
# From problems of your own to a model with its card: bash examples/own_problems.sh [MODEL [PROBLEMS [OUTPUT]]]
# PROBLEMS: JSON lines with a question and a worked answer each. The last 8 are kept to test on.
set -euo pipefail
model=${1:-HuggingFaceTB/SmolLM2-135M-Instruct}
problems=${2:-$(dirname "$0")/problems.jsonl}
out=${3:-out}
train=$(dirname "$out")/train.jsonl

# Which steps were found, and what was set aside
step-jepa prepare --input_file "${problems}[:40]" --output_file "$train"
step-jepa inspect steps --model_name "$model" --train_file "$train" --limit 1

# Does everything hold on this model, tokenizer and data? Ends the script where it does not.
step-jepa verify --model_name "$model" --train_file "$train" --limit 8

# The model, with its card out/README.md
step-jepa train --model_name "$model" --train_file "$train" --output_dir "$out" \
  --lora --learning_rate 2e-4 --loss infonce --pairs all

# Its answers to problems that it was not trained on; their figures in the card
step-jepa evaluate --model_name "$out" --test_file "${problems}[40:]" --output_dir "${out}-scores" --max_new_tokens 128
step-jepa card "$out" "${out}-scores"
