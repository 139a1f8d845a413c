"""Step-JEPA in one file: read it from top to bottom.

A chain of thought is a list of steps. Besides the usual next-token loss, the model learns to *predict the
representation* of step 2 once it has read the prompt and step 1:

    L = gamma * L_LM  +  lbd * mean over examples of d(predicted, target)

    predicted   last hidden state at the last of K predictor tokens, placed right after step 1
    target      last hidden state at the last token of step 2, which sees nothing but step 2
    d           1 - cosine, l2 or mse

This file takes the first pair of steps only, steps 1 and 2, and two forward passes per batch: one for L_LM and one for
both views. An example whose step 2 is nothing but its final answer has no pair: a bare result has little meaning apart
from its problem. It is slow and plain on purpose: it is the oracle for the fast implementation (one pass, all pairs),
and shares no code with it. Tensor names and docstrings carry their axes:

    B  examples of a batch          T  tokens of a row (each pass has its own)     H  hidden size
    P  examples with a pair         V  embedding rows of the model                 K  predictor tokens
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

Batch = dict[str, Tensor]
IGNORED = -100  # the label that torch's cross entropy skips
MANY_CELLS = 2**26  # of a mask: 256 MB in float32, which each layer keeps for the backward pass

# ==== 1. Boundaries: from messages and steps to token ids, labels and step spans. Strings and integers only. ==========


@dataclass
class Example:
    """One training row. `spans` are the steps as half-open token ranges; they tile the assistant's answer."""

    input_ids: list[int]
    labels: list[int]
    spans: list[tuple[int, int]]
    skip_pair: bool = False  # step 2 is there, but no target

    @property
    def second_step(self) -> tuple[int, int]:
        """The token range of step 2, the target of the pair; (0, 0) without a pair."""
        return self.spans[1] if len(self.spans) > 1 and not self.skip_pair else (0, 0)


def encode(
    tokenizer: Any, messages: list[dict], steps: list[str], max_length: int, skip_answer_step: bool = True
) -> Example | None:
    """Tokenise a conversation whose last turn is the answer to learn.

    Labelled are the answer and its end-of-turn token. A row longer than `max_length` keeps the whole steps that fit,
    and then its turn does not end; None means that not even the first step fits. With `skip_answer_step`, an example of
    two steps whose second is the final answer has no pair.

    Raises:
        ValueError: if the boundaries cannot be known exactly. Nothing is ever guessed.
    """
    if not tokenizer.is_fast or not tokenizer.chat_template:
        raise ValueError(
            "needs a tokenizer with character offsets (tokenizer.json) and a chat template (instruct model)"
        )
    text, start = render(tokenizer, messages)
    end = start + len(messages[-1]["content"])
    # The string already holds all special tokens that the template wants: add_special_tokens would make a second BOS.
    tokens = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids, offsets = list(tokens["input_ids"]), list(tokens["offset_mapping"])
    first, last = content_tokens(text, offsets, start, end)

    # A token belongs to the step that holds its first character that is no whitespace: " She" spells the step that
    # begins with "She". Whitespace alone, such as a blank line, belongs to the step that it closes.
    def begins(token: int, at: int) -> bool:
        return offsets[token][1] > at and not text[offsets[token][0] : at].strip()

    step_starts = [start + at for at in find_steps(messages[-1]["content"], steps)]
    borders = [first]
    for at in step_starts:  # a later step begins no earlier
        borders.append(next((i for i in range(borders[-1], last) if begins(i, at)), last))
    spans = list(pairwise([*borders[1:], last]))
    if any(a == b for a, b in spans):
        raise ValueError("a step has no token that starts in it: join it to its neighbour")

    added = {token for token, about in tokenizer.added_tokens_decoder.items() if about.special}
    special = {*tokenizer.all_special_ids, *added}
    stop = next((i + 1 for i in range(last, len(ids)) if ids[i] in special), None)
    if stop is None:
        raise ValueError("the chat template ends the turn with no special token: give --end_of_turn")
    if len(ids) > max_length:
        spans = [span for span in spans if span[1] <= max_length]
        if not spans:
            return None
        stop = spans[-1][1]
        ids = ids[:stop]
    labels = [token if first <= i < stop else IGNORED for i, token in enumerate(ids)]
    skip_pair = skip_answer_step and len(steps) == 2 and is_answer(steps[1])
    # Read alone, a single token is an attention sink: its state is that of any other.
    skip_pair |= len(spans) > 1 and spans[1][1] - spans[1][0] == 1
    return Example(ids, labels, spans, skip_pair)


def is_answer(last_step: str) -> bool:
    r"""Whether the last step is the final answer: "#### 42" (GSM8K), a `\boxed{42}` (MATH), "# Answer" (PRM800K)."""
    return re.match(r"\s*####(?!#)|# Answer[^\S\n]*\n", last_step) is not None or r"\boxed{" in last_step


def render(tokenizer: Any, messages: list[dict]) -> tuple[str, int]:
    """The conversation as one string, and the index in it at which the last turn's content starts.

    Searching for the content can find the wrong place ("assistant" stands in the header, a short answer in the prompt).
    So a placeholder that occurs nowhere else is rendered in its stead: where that starts, the content starts.
    """

    def template(content: str) -> str:
        try:
            return tokenizer.apply_chat_template([*messages[:-1], {**messages[-1], "content": content}], tokenize=False)
        except Exception as problem:  # a template may raise anything, Jinja's errors among them
            raise ValueError(f"the chat template refuses these messages: {problem}") from problem

    content = messages[-1]["content"]
    text, word = template(content), "placeholder"
    while word in text:
        word += "x"
    placeholder = word
    if content.startswith("<think>\n") and "\n</think>\n\n" in content:
        # Templates like Qwen3's take such content apart and write the thinking anew: give them the same shape.
        placeholder = f"<think>\n{word}A\n</think>\n\n{word}B"
    shell = template(placeholder)
    start = shell.find(placeholder)
    if start < 0 or text != shell[:start] + content + shell[start + len(placeholder) :]:
        raise ValueError(
            "the chat template rewrites the answer (strips whitespace, or drops the thinking): "
            "strip the answer yourself, or use a template that renders it as it is"
        )
    return text, start


def find_steps(content: str, steps: list[str]) -> list[int]:
    """Where each step starts in `content`. The first one takes the whitespace before it: the result starts with 0."""
    starts, cursor = [], 0
    for number, step in enumerate(steps, 1):
        at = content.find(step, cursor)
        if not step or at < 0 or content[cursor:at].strip():
            raise ValueError(f"step {number} does not follow in the answer: steps are its text, in order and stripped")
        starts.append(at)
        cursor = at + len(step)
    if not steps or content[cursor:].strip():
        raise ValueError("the answer has text after its last step: steps must cover it")
    return [0, *starts[1:]]


def content_tokens(text: str, offsets: list[tuple[int, int]], start: int, end: int) -> tuple[int, int]:
    """The half-open range of tokens that start in `text[start:end]`. Their offsets must cover it without a gap."""
    if text[:start].endswith(" ") and any(a == start - 1 and b > start for a, b in offsets):
        start -= 1  # the first token brings along the space that the header ends with
    inside = [i for i, (a, b) in enumerate(offsets) if start <= a < end and a < b]
    if any(a < start < b for a, b in offsets):
        raise ValueError("one token holds both the header's end and the answer's start: strip the answer")
    covered = start
    for a, b in (offsets[i] for i in inside):
        if a <= covered:  # tokens that share the bytes of one character overlap, and that is fine
            covered = max(covered, b)
    if covered < end:
        raise ValueError(f"offsets leave out {text[covered:end][:9]!r}: use a tokenizer that does not trim its offsets")
    return inside[0], inside[-1] + 1


# ==== 2. Batches ======================================================================================================


def collate(examples: list[Example], pad_id: int) -> Batch:
    """Pad on the right, to the longest row of the batch.

    Returns:
        input_ids, attention_mask, labels (B, T), and second_step (B, 2): the token range of step 2, (0, 0) without a
        pair. As spans tile the answer, step 1 ends where step 2 starts.
    """
    length = max(len(example.input_ids) for example in examples)

    def padded(rows: list[list[int]], value: int) -> Tensor:
        return torch.tensor([row + [value] * (length - len(row)) for row in rows])

    return {
        "input_ids": padded([example.input_ids for example in examples], pad_id),
        "attention_mask": padded([[1] * len(example.input_ids) for example in examples], 0),
        # Padding is known by its place, never by its id: where pad = eos, the end-of-turn labels must stay.
        "labels": padded([example.labels for example in examples], IGNORED),
        "second_step": torch.tensor([example.second_step for example in examples]),
    }


def count(batches: list[Batch]) -> Tensor:
    """(2,): labelled tokens and pairs in `batches`. Nothing stands before the first column to predict it from."""
    tokens = sum(int((batch["labels"][:, 1:] != IGNORED).sum()) for batch in batches)
    pairs = sum(int((batch["second_step"][:, 1] > 0).sum()) for batch in batches)
    return torch.tensor([tokens, pairs])


# ==== 3. Predictor tokens: K vectors of their own, with ids V .. V+K-1, which neither tokenizer nor model knows. ======


def add_predictors(model: Any, count: int, seed: int = 0) -> None:
    """Give the model `count` predictors as its attribute `predictor_tokens`, drawn like its embedding rows.

    The files that it is saved in stay those of the model: the predictors get a file of their own (section 7). A model
    that already has `count` predictors keeps them; with 0 the attribute is None.
    """
    has_some = hasattr(model, "predictor_tokens")
    present = sizes(model)[1]
    if count < 0 or (has_some and present != count):
        raise ValueError(f"cannot have {count} predictors" + (f": the model has {present} already" if present else ""))
    if has_some:
        return
    model.predictor_tokens = None
    if count > 0:
        old_VH = model.get_input_embeddings().weight.detach().float()
        noise_KH = torch.randn(count, old_VH.shape[1], generator=torch.Generator().manual_seed(seed))
        rows_KH = old_VH.mean(dim=0) + old_VH.std(dim=0) * noise_KH.to(old_VH.device)
        model.predictor_tokens = torch.nn.Embedding.from_pretrained(rows_KH.to(model.dtype), freeze=False)
        model._keys_to_ignore_on_save = {"predictor_tokens.weight"}


def embed(model: Any, ids_BT: Tensor) -> Tensor:
    """(B, T, H): what the model's own embedding makes of ids below V, and the predictors in place of those above.

    A predictor is picked at every place, and mostly not taken: so every pass uses every parameter, as DDP expects.
    """
    network, (vocabulary, predictors) = getattr(model, "module", model), sizes(model)
    embedding = network.get_input_embeddings()
    embedded_BTH = embedding(ids_BT.clamp(max=vocabulary - 1))
    if not predictors:
        return embedded_BTH
    # Gemma multiplies the rows of its embedding. LoRA keeps an embedding that it adapts as `base_layer`.
    scale = getattr(getattr(embedding, "base_layer", embedding), "embed_scale", 1.0)
    picked_BTH = F.embedding((ids_BT - vocabulary).clamp(min=0), network.predictor_tokens.weight) * scale
    return torch.where((ids_BT >= vocabulary)[..., None], picked_BTH.to(embedded_BTH), embedded_BTH)


def config_of(model: Any) -> Any:
    """The model's config, also through DistributedDataParallel. A PeftModel passes on the base model's."""
    return getattr(model, "module", model).config.get_text_config()


def sizes(model: Any) -> tuple[int, int]:
    """V and K. Models have more rows than their tokenizer has tokens (Qwen3: 151,936 and 151,669)."""
    network = getattr(model, "module", model)
    predictor_tokens = getattr(network, "predictor_tokens", None)
    return config_of(model).vocab_size, 0 if predictor_tokens is None else len(predictor_tokens.weight)


# ==== 4. Who sees whom in the second pass: prompt + step 1 + predictors + step 2, in one row ==========================
#
#              q  q  s1 s1 P  s2 s2      two prompt tokens, two steps of two tokens, K = 1
#    s1        x  x  x  x  .  .  .
#    P         x  x  x  x  x  .  .       -> predicted
#    s2        .  .  .  .  .  x  x       -> target: step 2 in isolation
#    position  0  1  2  3  4  4  5       both continue from step 1: step 2 stands where it does in the ordinary row


def second_rows(batch: Batch, vocabulary: int, predictors: int) -> Batch:
    """Lay out the second pass for the P examples of the batch that have a step 2.

    Returns:
        input_ids, position_ids (P, T); sees (P, T, T), True where the query (row) may attend to the key (column);
        read (P, 2), the columns at which `predicted` and `target` are read.
    """
    pairs = [
        (ids, *span) for ids, span in zip(batch["input_ids"], batch["second_step"].tolist(), strict=True) if span[1]
    ]
    length = max(end for _, _, end in pairs) + predictors
    device = batch["input_ids"].device
    input_ids = torch.zeros(len(pairs), length, dtype=torch.long, device=device)
    position_ids = torch.zeros_like(input_ids)
    # Padding sees itself: a query that sees nothing at all can become NaN.
    sees = torch.eye(length, dtype=torch.bool, device=device).repeat(len(pairs), 1, 1)
    predictor_ids = torch.arange(vocabulary, vocabulary + predictors, device=device)
    for p, (ids, start, end) in enumerate(pairs):
        cut, used = start + predictors, end + predictors  # step 2 now takes the columns cut .. used-1
        input_ids[p, :used] = torch.cat([ids[:start], predictor_ids, ids[start:end]])
        position_ids[p, :cut] = torch.arange(cut)
        position_ids[p, cut:used] = torch.arange(start, end)
        sees[p, :used, :used] = torch.ones(used, used, dtype=torch.bool).tril()
        sees[p, cut:used, :cut] = False  # isolation
    # With K = 0 the column before step 2 is the last token of step 1.
    read = torch.tensor([(start + predictors - 1, end + predictors - 1) for _, start, end in pairs], device=device)
    return {"input_ids": input_ids, "position_ids": position_ids, "sees": sees, "read": read}


def attention_masks(config: Any, sees_PTT: Tensor, position_PT: Tensor) -> Tensor | dict[str, Tensor]:
    """The mask in the form that this model's attention reads: (P, 1, T, T), or a dict of those by layer type.

    transformers uses a 4D mask as it is, in all layers: a sliding window must be in the mask, or the model loses it.
    It slides over positions. (Columns would do in this file: no query sees a key from before a jump in positions.)
    """
    layer_types = set(getattr(config, "layer_types", None) or [])
    if layer_types - {"full_attention", "sliding_attention"}:
        raise ValueError(f"layers {sorted(layer_types)}: isolation needs full_attention or sliding_attention")
    if config._attn_implementation not in ("sdpa", "eager"):
        raise ValueError(
            f"{config._attn_implementation!r} attention takes no dense isolation mask: "
            'load the model with attn_implementation="sdpa" or "eager"'
        )

    def in_form(sees: Tensor) -> Tensor:
        if config._attn_implementation == "sdpa":
            return sees[:, None]
        # eager adds the mask to the scores: booleans would silently count as 0 and 1. The lowest finite number hides a
        # key exactly (its exp is 0), and unlike -inf can make no NaN.
        lowest = torch.finfo(torch.float32).min
        return torch.zeros(sees.shape, device=sees.device).masked_fill(~sees, lowest)[:, None]

    window = getattr(config, "sliding_window", None)
    masks = {"full_attention": in_form(sees_PTT)}
    masks["sliding_attention"] = masks["full_attention"]
    if window:
        near_PTT = position_PT[:, :, None] - position_PT[:, None, :] < window
        masks["sliding_attention"] = in_form(sees_PTT & near_PTT)
    if "sliding_attention" in layer_types:  # as Gemma 3: one mask for each type of layer
        return {layer_type: masks[layer_type] for layer_type in layer_types}
    # Without layer types, a window is every layer's (Mistral); with full attention only, it is nobody's.
    return masks["full_attention" if layer_types else "sliding_attention"]


# ==== 5. The two passes. Both call `model` itself: DDP and PEFT hook the wrapper, not what is inside. =================


def language_model_pass(model: Any, batch: Batch) -> tuple[Tensor, Tensor]:
    """Pass 1, ordinary fine-tuning: the *sum* of cross entropies over labelled tokens, and the logits (B, T, V)."""
    outputs = model(
        inputs_embeds=embed(model, batch["input_ids"]), attention_mask=batch["attention_mask"], use_cache=False
    )
    logits_BTV = outputs.logits
    labels_BT = batch["labels"][:, 1:]
    labelled_BT = labels_BT != IGNORED
    scores_NV = logits_BTV[:, :-1][labelled_BT].float()
    picked_N = scores_NV.gather(-1, labels_BT[labelled_BT][:, None])[:, 0]
    # F.cross_entropy adds up a vocabulary's worth of float32 with an error that is always to one side.
    return (scores_NV.logsumexp(-1) - picked_N).sum(), logits_BTV


def views(model: Any, batch: Batch) -> tuple[Tensor, Tensor]:
    """Pass 2: (predicted, target), each (P, H) in float32, after the final norm. Gradients flow through both."""
    config = config_of(model)
    if not batch["second_step"].any():
        empty_PH = torch.zeros(0, config.hidden_size, device=batch["input_ids"].device)
        return empty_PH, empty_PH
    rows = second_rows(batch, *sizes(model))
    outputs = model(
        inputs_embeds=embed(model, rows["input_ids"]),
        attention_mask=attention_masks(config, rows["sees"], rows["position_ids"]),
        position_ids=rows["position_ids"],  # models do not derive them from a mask of our own
        output_hidden_states=[-1],  # keep the last one only
        logits_to_keep=1,  # none are needed
        use_cache=False,
    )
    hidden_PTH = outputs.hidden_states[-1].float()
    p = torch.arange(len(hidden_PTH), device=hidden_PTH.device)
    return hidden_PTH[p, rows["read"][:, 0]], hidden_PTH[p, rows["read"][:, 1]]


def distances(predicted_PH: Tensor, target_PH: Tensor, loss: str) -> Tensor:
    """(P,): 1 - cosine similarity, euclidean distance, or mean over H of the squared difference."""
    if loss == "cosine":
        return 1 - F.cosine_similarity(predicted_PH, target_PH, dim=-1)
    difference_PH = predicted_PH - target_PH
    return torch.linalg.vector_norm(difference_PH, dim=-1) if loss == "l2" else difference_PH.square().mean(dim=-1)


LOSSES = ("cosine", "l2", "mse")


def losses(model: Any, batch: Batch, loss: str = "cosine") -> tuple[Tensor, Tensor]:
    """(sum of cross entropies over labelled tokens, sum of distances over pairs): scalars. `count` has the divisors."""
    return language_model_pass(model, batch)[0], distances(*views(model, batch), loss).sum()


# ==== 6. The trainer ==================================================================================================


class StepJEPATrainer(Trainer):
    """`Trainer` with L = gamma * L_LM + lbd * L_JEPA. With `lbd` = 0 it is `Trainer`, bit for bit.

    The model comes with its predictors (`add_predictors`), the data are `Example`s, and the collator is `collate`. For
    one device or DDP; under FSDP a rank whose batch has no pair would skip the second pass that the others wait in.
    """

    def __init__(self, *args: Any, lbd: float = 0.1, gamma: float = 1.0, loss: str = "cosine", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not (0 <= lbd < math.inf and 0 <= gamma < math.inf) or loss not in LOSSES:
            raise ValueError(f"lbd and gamma must be numbers >= 0, and loss one of {', '.join(LOSSES)}")
        if self.args.remove_unused_columns:
            raise ValueError("set remove_unused_columns=False: Trainer would drop the steps from the data")
        if lbd > 0 and not hasattr(self.model, "predictor_tokens"):
            raise ValueError("the model has no predictors: call add_predictors(model, count) first (count may be 0)")
        if lbd > 0 and (self.label_smoother or self.compute_loss_func):
            raise ValueError("label_smoothing_factor and compute_loss_func have no meaning with lbd > 0")
        self.lbd, self.gamma, self.loss = lbd, gamma, loss
        # Our loss is divided by the counts of the whole optimisation step, so Trainer must not divide it again by the
        # number of micro-batches. None lets Trainer decide, as it does for its own loss.
        self.loss_is_scaled_for_ga = True if lbd > 0 else None
        # DDP would broadcast buffers before every pass, and a rank whose batch has no pair makes one pass fewer.
        self.accelerator.ddp_handler.broadcast_buffers = False
        self.step_counts: Tensor | None = None  # labelled tokens and pairs of this optimisation step, all ranks
        self.logged, self.logged_steps = torch.zeros(2), 0  # this rank's L_LM and L_JEPA since the last log

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> tuple[list, Any]:
        """Fetch the micro-batches of one optimisation step, and count over all of them and all ranks.

        Were each micro-batch divided by its own counts, 8 x 1 would be another loss than 1 x 8.
        """
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        if self.lbd > 0:
            self.step_counts = self.accelerator.gather(count(batches)[None].to(device)).sum(dim=0)
            self.logged_steps += 1
        return batches, items

    def compute_loss(
        self, model: Any, inputs: Batch, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """In training a micro-batch's share of the optimisation step's loss, in evaluation the batch's own loss."""
        if self.lbd == 0:
            plain = {name: inputs[name] for name in ("input_ids", "attention_mask", "labels")}
            return super().compute_loss(model, plain, return_outputs, num_items_in_batch)
        lm_sum, logits_BTV = language_model_pass(model, inputs)
        sums = torch.stack([lm_sum, distances(*views(model, inputs), self.loss).sum()])
        counts = self.step_counts if model.training else None
        terms = sums / (count([inputs]) if counts is None else counts).to(sums.device).clamp(min=1)
        loss = self.gamma * terms[0] + self.lbd * terms[1]
        if counts is not None:
            self.logged = self.logged.to(terms.device) + terms.detach()
            loss = loss * self.accelerator.num_processes  # the counts are all ranks', and DDP averages over ranks
        return (loss, {"loss": loss, "logits": logits_BTV}) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add both terms, unweighted, averaged over optimisation steps as is the loss that they stand beside."""
        if "loss" in logs and self.logged_steps:
            terms = self.accelerator.gather(self.logged[None].to(self.args.device)).sum(dim=0) / self.logged_steps
            logs["lm_loss"], logs["jepa_loss"] = terms.tolist()
            self.logged, self.logged_steps = torch.zeros(2), 0
        super().log(logs, start_time)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """A checkpoint: the model by itself, as plain transformers reads it, and the predictors beside it."""
        super()._save(output_dir, state_dict)
        save_predictors(self.accelerator.unwrap_model(self.model), output_dir or str(self.args.output_dir))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        load_predictors(self.model, resume_from_checkpoint)
        super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        super()._load_best_model()
        load_predictors(self.model, str(self.state.best_model_checkpoint))


# ==== 7. Files and flags ==============================================================================================


def save_predictors(model: Any, folder: str) -> None:
    """Write `predictors.safetensors`, {"predictors": (K, H)}."""
    if sizes(model)[1]:
        rows_KH = model.predictor_tokens.weight.detach().cpu().clone()
        save_file({"predictors": rows_KH}, str(Path(folder) / "predictors.safetensors"))


@torch.no_grad()
def load_predictors(model: Any, checkpoint: str) -> None:
    """Take up the predictors of a checkpoint."""
    if not sizes(model)[1]:
        return
    path = Path(checkpoint) / "predictors.safetensors"
    if not path.exists():
        raise ValueError(f"{path} is missing: earlier versions kept predictors in the vocabulary; begin a new run")
    model.predictor_tokens.weight.copy_(load_file(path)["predictors"])


def read_examples(path: Path, tokenizer: Any, max_length: int, skip_answer_step: bool = True) -> list[Example]:
    """Encode a file of `step-jepa prepare`: on each line an object with `messages` and `steps`."""
    examples = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
        try:
            if line.strip():
                row = json.loads(line)
                if row["messages"][-1]["role"] != "assistant":
                    raise ValueError("the last message must be the assistant's")
                steps = row["steps"] or [row["messages"][-1]["content"].strip()]
                examples.append(encode(tokenizer, row["messages"], steps, max_length, skip_answer_step))
        except (KeyError, IndexError, TypeError, AttributeError) as problem:
            raise ValueError(f"{path}:{number}: not an object with 'messages' and 'steps' ({problem!r})") from problem
        except ValueError as problem:
            raise ValueError(f"{path}:{number}: {problem}") from problem
    kept = [example for example in examples if example is not None]
    pairs = sum(example.second_step != (0, 0) for example in kept)
    print(f"{path}: {pairs} rows with a pair, {len(kept) - pairs} without (LM term only)", end=", ")
    print(f"{len(examples) - len(kept)} dropped as no step fits into {max_length} tokens")
    return kept


def mask_cells(examples: list[Example], batch_size: int) -> int:
    """Of the largest mask (B, T, T): pass 1 needs one where rows are padded, pass 2 one up to the end of step 2."""
    padded = max(len(example.input_ids) for example in examples) if batch_size > 1 else 0
    return batch_size * max(padded, *(example.second_step[1] for example in examples)) ** 2


class Parser(argparse.ArgumentParser):
    """Raise instead of printing the usage, so that every error is one line."""

    def error(self, message: str) -> Any:
        raise ValueError(message)


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Read the flags; refuse what this file does not do."""
    parser = Parser(description="Step-JEPA on the first pair of steps, in two passes", allow_abbrev=False)
    parser.add_argument("--train_file", type=Path, required=True, help="JSONL written by step-jepa prepare")
    parser.add_argument("--model_name", required=True, help="folder or hub name")
    parser.add_argument("--output_dir", type=Path, required=True, help="new or empty folder")
    parser.add_argument("--lbd", type=float, default=0.1, help="weight of the JEPA term; 0 is plain fine-tuning")
    parser.add_argument("--gamma", type=float, default=1.0, help="weight of the LM term")
    parser.add_argument("--predictors", type=int, default=1, help="predictor tokens after step 1")
    parser.add_argument("--loss", default="cosine", help=", ".join(LOSSES))
    parser.add_argument("--pairs", default="first", help="first, and no other")
    parser.add_argument("--no_skip_answer_step", action="store_true", help="pairs with a step 2 that is the answer")
    parser.add_argument("--max_length", type=int, default=1024, help="tokens of a row")
    parser.add_argument("--learning_rate", type=float, default=2e-5)
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument("--max_steps", type=int, default=-1, help="optimisation steps, instead of epochs")
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--gradient_accumulation_steps", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    options, foreign = parser.parse_known_args(argv)
    foreign += [f"--pairs {options.pairs}"] if options.pairs != "first" else []
    foreign += [f"--loss {options.loss}"] if options.loss not in LOSSES else []
    if foreign:
        raise ValueError(f"standalone has no {' '.join(foreign)}: use step-jepa train --approach adapted")
    if options.output_dir.exists() and (not options.output_dir.is_dir() or any(options.output_dir.iterdir())):
        raise ValueError(f"{options.output_dir} is not an empty folder: name a new --output_dir")
    return options


def build(options: argparse.Namespace) -> tuple[StepJEPATrainer, Any]:
    """Everything that can fail before training does: the trainer, and the tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(options.model_name)
    examples = read_examples(options.train_file, tokenizer, options.max_length, not options.no_skip_answer_step)
    if not examples or (options.lbd > 0 and all(example.second_step == (0, 0) for example in examples)):
        raise ValueError(
            f"{options.train_file}: no rows with usable steps; is --max_length too small, or step 2 always the answer?"
        )
    if (cells := mask_cells(examples, options.batch_size)) > MANY_CELLS:
        print(
            f"rows are long: masks of up to {cells * 4 / 2**20:,.0f} MB in each layer; should memory not suffice, give "
            "--batch_size 1, a smaller --max_length, or train by step-jepa train --approach adapted",
            file=sys.stderr,
        )
    # In float32: AdamW's small updates vanish in bfloat16 weights.
    model = AutoModelForCausalLM.from_pretrained(options.model_name, dtype=torch.float32)
    if options.lbd > 0:
        add_predictors(model, options.predictors, options.seed)
    if len(tokenizer) > sizes(model)[0]:
        raise ValueError(f"the tokenizer has {len(tokenizer)} tokens, but the model only {sizes(model)[0]} rows")
    arguments = TrainingArguments(
        output_dir=str(options.output_dir),
        per_device_train_batch_size=options.batch_size,
        gradient_accumulation_steps=options.gradient_accumulation_steps,
        learning_rate=options.learning_rate,
        num_train_epochs=options.epochs,
        max_steps=options.max_steps,
        seed=options.seed,
        logging_steps=1,
        save_strategy="no",
        remove_unused_columns=False,
        disable_tqdm=True,
    )
    pad_id = next(token for token in (tokenizer.pad_token_id, tokenizer.eos_token_id, 0) if token is not None)
    trainer = StepJEPATrainer(
        model=model,
        args=arguments,
        train_dataset=examples,  # a list is all the dataset that Trainer needs
        data_collator=partial(collate, pad_id=pad_id),
        lbd=options.lbd,
        gamma=options.gamma,
        loss=options.loss,
    )
    return trainer, tokenizer


def main(argv: list[str] | None = None) -> int:
    """Train and save. The exit status is 2 after an error that the user can mend, told in one line on stderr."""
    try:
        options = parse(argv)
        trainer, tokenizer = build(options)
    except (ValueError, OSError) as problem:
        print(f"error: {' '.join(str(problem).split())}", file=sys.stderr)
        return 2
    trainer.train()
    if trainer.is_world_process_zero():
        model = trainer.accelerator.unwrap_model(trainer.model)
        model.save_pretrained(str(options.output_dir))
        save_predictors(model, str(options.output_dir))
        tokenizer.save_pretrained(str(options.output_dir))
    return 0


if __name__ == "__main__":
    sys.exit(main())
