#!/usr/bin/env bash
# transformers 5.23.0, accelerate 1.15.0, torch 2.13.0 (seen November 2026): with gradient accumulation, Trainer's loss of
# labels is a mean over all micro-batches' labels, but a mixture-of-experts model adds its routers' loss to each
# micro-batch's whole. So the routers' loss, and its gradient, weigh gradient_accumulation_steps times as much as
# router_aux_loss_coef says: 4 batches of 1 row do not train as 1 batch of 4. (TRL's SFTTrainer divides it by the steps.)
#
# Output seen (Mixtral, four equal rows, so that each micro-batch has the same router loss):
#   1 batch of 4 rows: loss less that of the labels 2.0, gradient of the routers 1.00
#   2 batches of 2 rows: loss less that of the labels 4.0, gradient of the routers 2.00
#   4 batches of 1 row: loss less that of the labels 8.0, gradient of the routers 4.00
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.23.0 accelerate==1.15.0
cat > "$folder/train.py" <<'PY'
import sys

import torch
from transformers import MixtralConfig, MixtralForCausalLM, Trainer, TrainingArguments, set_seed

SHAPE = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
ROUTERS = {"num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2, "output_router_logits": True}
GATE = "model.layers.0.mlp.gate.weight"


def train(rows, steps, coef):
    """The logged loss of one optimiser step, and how far it moves the router at a learning rate of 1."""
    set_seed(0)
    model = MixtralForCausalLM(MixtralConfig(**SHAPE, **ROUTERS, router_aux_loss_coef=coef))
    ids = torch.randint(0, 64, (12,), generator=torch.Generator().manual_seed(1))
    before = model.get_parameter(GATE).detach().clone()
    options = {"per_device_train_batch_size": rows, "gradient_accumulation_steps": steps, "max_steps": 1}
    options |= {"optim": "sgd", "learning_rate": 1.0, "lr_scheduler_type": "constant", "max_grad_norm": 0}
    options |= {"use_cpu": True, "report_to": "none", "disable_tqdm": True, "save_strategy": "no"}
    data = [{"input_ids": ids, "labels": ids}] * 4
    loss = Trainer(model, TrainingArguments(sys.argv[1], **options), train_dataset=data).train().training_loss
    return loss, before - model.get_parameter(GATE).detach()


first = None
for steps in (1, 2, 4):
    with_routers, without = train(4 // steps, steps, 1.0), train(4 // steps, steps, 0.0)
    gradient = (with_routers[1] - without[1]).norm()
    first = first or gradient
    batches = f"{steps} batch{'es' if steps > 1 else ''} of {4 // steps} row{'s' if steps < 4 else ''}"
    apart = with_routers[0] - without[0]
    print(f"{batches}: loss less that of the labels {apart:.1f}, gradient of the routers {gradient / first:.2f}")
PY
"$folder/venv/bin/python" "$folder/train.py" "$folder" | grep -E "^[124] batch" | tee "$folder/seen"
diff "$folder/seen" - <<'EXPECTED'
1 batch of 4 rows: loss less that of the labels 2.0, gradient of the routers 1.00
2 batches of 2 rows: loss less that of the labels 4.0, gradient of the routers 2.00
4 batches of 1 row: loss less that of the labels 8.0, gradient of the routers 4.00
EXPECTED
