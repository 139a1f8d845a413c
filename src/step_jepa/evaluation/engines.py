"""Who writes the answers: transformers or vLLM. Both read the same tokens and stop at the same ones."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, StoppingCriteria

from step_jepa import terminal
from step_jepa.errors import UserError
from step_jepa.evaluation.generation import Engine, Prompt, SamplingParameters
from step_jepa.models.builtin import resolve


class GumbelNoise(LogitsProcessor):
    """Turns the likeliest token into a sampled one, the same in every batch.

    The argmax of logits / temperature + noise is a sample of softmax(logits / temperature), if the noise is drawn from
    the standard Gumbel distribution (Gumbel 1954; Maddison, Tarlow and Minka 2014, arXiv 1411.0030, section 2), which
    -log(E) has, E being a standard exponential. Each row draws from a generator of its own, on the CPU, so that a
    device changes nothing.

    Args:
        seeds: one for each row of the batch.
        temperature: positive.
    """

    def __init__(self, seeds: Sequence[int], temperature: float):
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.temperature = temperature

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """input_ids (B, T) int64 is not looked at; scores (B, V) are logits, in any float type."""
        exponential = torch.empty(scores.shape, dtype=torch.float64)  # in float32 a draw can be 0
        for row, generator in zip(exponential, self.generators, strict=True):
            row.exponential_(generator=generator)
        return scores / self.temperature - exponential.log().float().to(scores.device)


def transformers_engine(model: Any, tokenizer: Any, parameters: SamplingParameters) -> Engine:
    """The model itself, in evaluation mode, on the device of the process."""
    config = GenerationConfig(
        do_sample=False,  # with GumbelNoise the likeliest token is a drawn one
        max_new_tokens=parameters.max_new_tokens,
        eos_token_id=parameters.stop_token_ids,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = model.to(PartialState().device).eval()

    def write(batch: Sequence[Prompt]) -> list[list[int]]:
        input_ids = [prompt.input_ids for prompt in batch]
        padded = tokenizer.pad({"input_ids": input_ids}, padding_side="left", return_tensors="pt").to(model.device)
        seeds = [prompt.seed(parameters.seed) for prompt in batch]
        noise = [] if parameters.temperature is None else [GumbelNoise(seeds, parameters.temperature)]
        return new_tokens(model, padded, config, noise)

    return write


class Ticking(StoppingCriteria):
    """Stops nothing: at each token of a batch, which may take minutes, the bar shows that time passes."""

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Any:
        terminal.tick()
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


def new_tokens(model: Any, padded: Any, config: GenerationConfig, noise: list[GumbelNoise]) -> list[list[int]]:
    """The new tokens after each prompt, padding included; prompts are padded on the left."""
    # What the config leaves open would be taken from the model's own, so that one steps aside.
    model_config, model.generation_config = model.generation_config, config
    try:
        with torch.inference_mode():
            written = model.generate(**padded, logits_processor=noise, stopping_criteria=[Ticking()])
    finally:
        model.generation_config = model_config
    return written[:, padded["input_ids"].shape[1] :].tolist()


def vllm_engine(model_name: str, dtype: str, parameters: SamplingParameters) -> Engine:
    """vLLM, on the model's folder or hub id. Raises UserError."""
    vllm = require_vllm(model_name)
    model = vllm.LLM(model=resolve(model_name), dtype=dtype, seed=parameters.seed)

    def write(batch: Sequence[Prompt]) -> list[list[int]]:
        outputs = model.generate(
            [{"prompt_token_ids": prompt.input_ids} for prompt in batch],
            [vllm.SamplingParams(**_vllm_parameters(prompt, parameters)) for prompt in batch],
            use_tqdm=False,
        )
        return [list(output.outputs[0].token_ids) for output in outputs]

    return write


def _vllm_parameters(prompt: Prompt, parameters: SamplingParameters) -> dict[str, Any]:
    limits = {"max_tokens": parameters.max_new_tokens, "stop_token_ids": parameters.stop_token_ids}
    if parameters.temperature is None:
        return {**limits, "temperature": 0.0}
    return {**limits, "temperature": parameters.temperature, "seed": prompt.seed(parameters.seed)}


def require_vllm(model_name: str) -> Any:
    """The package. Raises UserError where it is not installed, or cannot load such a model."""
    try:
        import vllm
    except ImportError as error:
        raise UserError(f"--engine vllm needs the package vllm ({error}): pip install vllm, or --engine hf") from None
    if Path(resolve(model_name), "adapter_config.json").exists():
        raise UserError(f"{model_name} is an adapter: train without --keep_adapter, or evaluate with --engine hf")
    return vllm
