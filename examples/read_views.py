"""How much each step surprises an exported model, in plain transformers: python examples/read_views.py [MODEL]

MODEL is a folder that `step-jepa train` wrote. A predictor token, put behind the steps so far, gives the predicted
embedding of the next step; the step read alone, at its own positions, gives the target. Surprise is 1 - cosine.
"""

import sys
from bisect import bisect_right
from itertools import accumulate, pairwise
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch.nn.functional import cosine_similarity
from transformers import AutoModelForCausalLM, AutoTokenizer

SYSTEM = "Reason step by step, then give the final answer."  # what step-jepa adds to a question alone
QUESTION = "Ana has 3 apples and buys 4 bags with 2 apples each. How many apples does Ana have now?"
STEPS = ["4 bags hold 4 * 2 = 8 apples.\n", "Ana had 3, and it rains.\n", "So Ana has 3 + 8 = 11 apples.\n", "#### 11"]


def step_tokens(tokenizer, question: str, steps: list[str]) -> tuple[torch.Tensor, list[range]]:
    """Token ids of the conversation, and the tokens of each step: those whose first letter is in it."""
    turns = {"system": SYSTEM, "user": question, "assistant": "".join(steps)}
    messages = [{"role": role, "content": content} for role, content in turns.items()]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    begins = list(accumulate(map(len, steps), initial=text.rindex(turns["assistant"])))
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    step_of = []
    for start, stop in encoded["offset_mapping"]:
        token = text[start:stop]
        letter = start if token.isspace() else stop - len(token.lstrip())
        step_of.append(bisect_right(begins, letter) - 1)
    first = [step_of.index(step) for step in range(len(steps) + 1)]
    return torch.tensor(encoded["input_ids"]), [range(*ends) for ends in pairwise(first)]


@torch.no_grad()
def last_state(model, embedded: torch.Tensor, position: int = 0) -> torch.Tensor:
    """(H,) of the last of these embeddings (L, E), the first of which stands at the position."""
    places = torch.arange(position, position + len(embedded))
    states = model(inputs_embeds=embedded[None], position_ids=places[None], output_hidden_states=True).hidden_states
    return states[-1][0, -1].float()


def surprises(model, tokenizer, predictors: torch.Tensor, question: str, steps: list[str]) -> list[float]:
    """Of each step but the first."""
    ids, spans = step_tokens(tokenizer, question, steps)
    embedding = model.get_input_embeddings()
    embedded = embedding(ids).detach()
    predictors = predictors.to(embedded) * getattr(embedding, "embed_scale", 1.0)
    found = []
    for step in spans[1:]:
        predicted = last_state(model, torch.cat([embedded[: step.start], predictors]))
        target = last_state(model, embedded[step.start : step.stop], position=step.start)
        found.append(1 - float(cosine_similarity(predicted, target, dim=0)))
    return found


def main(folder: str = "out") -> None:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    predictors = load_file(Path(folder, "predictors.safetensors"))["predictors"]
    for step, surprise in zip(STEPS[1:], surprises(model, tokenizer, predictors, QUESTION, STEPS), strict=True):
        print(f"{surprise:.3f}  {step.strip()}")


if __name__ == "__main__":
    main(*sys.argv[1:])
