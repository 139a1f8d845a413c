"""Loading: a model by name, folder or as a module, ready for training, perhaps with LoRA; its tokenizer."""

import hashlib
import json
import os
from collections.abc import Iterable
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)
from transformers.utils.quantization_config import QuantizationConfigMixin

from step_jepa.batches.views import PredictorHead
from step_jepa.data.template import TemplateOptions, settle_template
from step_jepa.errors import UserError, library_refusals
from step_jepa.models.builtin import resolve
from step_jepa.models.predictors import add_predictors, base_rows, hook_embeddings, part_appended_rows, save_beside
from step_jepa.run_files.reading import is_whole

SAMPLE = 64  # numbers of each weight that tell a model from another
SMALL_FILES = ("*config.json", "special_tokens_map.json", "*.safetensors.index.json")  # of a model's folder
LARGE_FILES = ("tokenizer.json", "*.safetensors")
NO_CODE = {"trust_remote_code": False}  # else the library asks on standard input


def setup_model_and_tokenizer(
    model: str | os.PathLike[str] | PreTrainedModel,
    *,
    processing_class: PreTrainedTokenizerBase | None = None,
    predictors: int | None = None,
    train_predictors: bool = True,
    predictor_head: PredictorHead = "identity",
    peft_config: PeftConfig | None = None,
    quantization_config: QuantizationConfigMixin | None = None,
    model_init_kwargs: dict[str, Any] | None = None,
    config_overrides: dict[str, Any] | None = None,
    plain: bool = False,
    template: TemplateOptions | None = None,
    seed: int = 42,
) -> tuple[PreTrainedModel | PeftModel, PreTrainedTokenizerBase]:
    """A causal language model ready for training, and its tokenizer.

    Args:
        model: hub id, folder (plain, or an adapter's), "builtin:smollm2" (the model of the demo),
            "builtin:chains" (the tokenizer of generated chains, for random weights), or a module.
        processing_class: the tokenizer; a model given by name has its own.
        predictors: K >= 0 predictor tokens to add; None where nothing is to be predicted.
        train_predictors: whether they are trained beside an adapter too.
        predictor_head: "linear" adds the module `predictor_head`, (H, H), which starts as the identity.
        peft_config: of an adapter to add.
        quantization_config: of a model given by name.
        model_init_kwargs: arguments of `from_pretrained`.
        config_overrides: perhaps empty, for random weights from the model's configuration with these fields.
        plain: give the tokenizer a chat template without framing.
        template: or the chat template of these options.
        seed: of predictor rows that were never trained, and of random weights.

    Raises:
        UserError: where the model cannot be had or cannot be trained so.
    """
    if isinstance(model, str | os.PathLike):
        folder = resolve(str(model), (model_init_kwargs or {}).get("revision"))
        tokenizer = processing_class or load_tokenizer(folder, plain=plain, template=template)
        network = _named(folder, tokenizer, quantization_config, config_overrides, model_init_kwargs or {}, seed)
    else:
        _check_module(processing_class, quantization_config, config_overrides)
        assert processing_class is not None
        folder, tokenizer, network = None, processing_class, model
    if processing_class is not None:
        settle_template(processing_class, template, plain=plain)
    _ensure_pad_token(tokenizer)
    part_appended_rows(network)
    if peft_config is not None:
        network = with_adapter(network, peft_config)
    if predictors is not None:
        add_predictors(network, tokenizer, predictors, folder, seed)
    _settle_predictors(network, trained=train_predictors)
    if predictor_head == "linear" and not hasattr(network, "predictor_head"):
        _add_predictor_head(network)
    return network, tokenizer


def _named(
    folder: str, tokenizer: Any, quantization: Any, overrides: dict[str, Any] | None, options: dict[str, Any], seed: int
) -> Any:
    """The model of a folder or hub id: its weights, or with overrides random ones. Raises UserError."""
    if "model_type" not in (overrides or {}):
        _refuse_bare_tokenizer(folder)
    if overrides is None:
        network = _load(folder, quantization, options)
    else:
        network = random_network(folder, tokenizer, overrides, options, seed)
    network.loaded_from = folder  # an adapter that was merged goes by the name of its base
    network.loaded_weights = _check_weights(network, folder)
    return network


def _check_weights(model: Any, name: str) -> str:
    """A digest of some numbers of each weight. Raises UserError where a weight holds what is no finite number."""
    digest = hashlib.sha256()
    for parameter, weight in model.named_parameters():
        if weight.is_meta or not weight.is_floating_point():
            continue
        if not weight.detach().sum(dtype=torch.float32).isfinite() and not weight.detach().isfinite().all():
            raise UserError(f"the weights of {name!r} are not finite ({parameter}): its training diverged")
        digest.update(parameter.encode() + weight.detach().flatten()[:SAMPLE].float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def _check_module(processing_class: Any, quantization_config: Any, config_overrides: Any) -> None:
    """Raises UserError for what can only be said of a model given by name."""
    if processing_class is None:
        raise UserError("a model given as a module needs its tokenizer: pass processing_class")
    if quantization_config is not None:
        raise UserError("quantization_config applies to a model given by name, not to a loaded one")
    if config_overrides is not None:
        raise UserError("random weights are for a model given by name: make them in the module that you give")


def _ensure_pad_token(tokenizer: Any) -> None:
    if tokenizer.pad_token_id is not None:
        return
    if tokenizer.eos_token_id is None:
        raise UserError("the tokenizer has neither pad_token nor eos_token: set one of them and save it")
    tokenizer.pad_token = tokenizer.eos_token


def _add_predictor_head(model: Any) -> None:
    width = model.config.get_text_config().hidden_size
    model.predictor_head = torch.nn.Linear(width, width, bias=False, device=model.device)
    torch.nn.init.eye_(model.predictor_head.weight)
    if not isinstance(model, PeftModel):
        save_beside(model, "predictor_head.weight")  # in the state of the JEPA term


def load_tokenizer(
    folder: str, *, plain: bool = False, template: TemplateOptions | None = None
) -> PreTrainedTokenizerBase:
    """The tokenizer of a model; the folder may hold nothing else. `plain` gives it a chat template without framing,
    `template` the one of these options. Raises UserError."""
    home = resolve(folder)
    _check_whole(home, SMALL_FILES)
    try:
        tokenizer = AutoTokenizer.from_pretrained(home, **NO_CODE)
    except Exception as error:  # tokenizers raises no more special one
        raise _unavailable("tokenizer", folder, error) from None
    settle_template(tokenizer, template, plain=plain)
    return tokenizer


def load_generation_config(folder: str) -> GenerationConfig:
    """How a model generates by default, from its folder alone: no weight is read. Raises UserError."""
    home = resolve(folder)
    try:
        return GenerationConfig.from_pretrained(home)
    except OSError:  # older ones have it in their configuration
        pass
    try:
        return GenerationConfig.from_model_config(AutoConfig.from_pretrained(home, **NO_CODE))
    except (OSError, ValueError) as error:
        raise _unavailable("configuration", folder, error) from None


def _check_whole(folder: str, patterns: Iterable[str]) -> None:
    """Raises UserError for a file that is not, some of which the libraries pass over in silence."""
    for pattern in patterns:
        for path in Path(folder).glob(pattern):
            if not is_whole(path):
                raise UserError(f"{path} is damaged, or was not written to its end: write the model there anew")


def _unavailable(kind: str, name: str, error: Exception) -> UserError:
    home = resolve(name)
    _check_whole(home, LARGE_FILES)
    if checkpoints := sorted(Path(home).glob("checkpoint-*"), key=os.path.getmtime):
        wanted = f"go on with --resume_from_checkpoint True, or give {checkpoints[-1]}"
        return UserError(f"{name} holds checkpoints of a training that has not ended, and no model: {wanted}")
    if Path(home).is_dir() and not any(Path(home).glob("*.json")):
        return UserError(f"the folder {name} holds no model, no config.json: give one, a hub id, or builtin:smollm2")
    reason = str(error).strip().splitlines()[0][:160] if str(error).strip() else type(error).__name__
    return UserError(f"cannot load the {kind} of {name!r}: give a folder, a hub id, or builtin:smollm2 ({reason})")


def _refuse_bare_tokenizer(folder: str) -> None:
    names = ("config.json", "adapter_config.json")
    if Path(folder, "tokenizer.json").exists() and not any(Path(folder, name).exists() for name in names):
        raise UserError(
            f"{folder} holds no model of its own, only a tokenizer: train one with --pretrain and a model_type in "
            "--config_overrides"
        )


def _load(folder: str, quantization_config: Any, options: dict[str, Any]) -> Any:
    if quantization_config is not None and not torch.cuda.is_available():
        raise UserError("4-bit training needs a CUDA device: leave out --load_in_4bit (quantization_config) here")
    _check_whole(folder, SMALL_FILES)
    options = {"dtype": torch.float32, **NO_CODE, **options}
    if quantization_config is not None:
        options["quantization_config"] = quantization_config
    try:
        if Path(folder, "adapter_config.json").exists():
            return _merged(folder, options)
        return AutoModelForCausalLM.from_pretrained(folder, **options)
    except UserError:
        raise
    except (OSError, ValueError, KeyError, TypeError, ImportError, SafetensorError) as error:
        raise _unavailable("model", folder, error) from None


def _merged(folder: str, options: dict[str, Any]) -> Any:
    """The base model of an adapter with the adapter merged in."""
    base = AutoModelForCausalLM.from_pretrained(PeftConfig.from_pretrained(folder).base_model_name_or_path, **options)
    tokens = json.loads(Path(folder, "adapter_config.json").read_text()).get("trainable_token_indices") or ()
    by_module = tokens.values() if isinstance(tokens, dict) else (tokens,)
    if any(max(ids, default=0) >= base_rows(base) for ids in by_module):  # predictor rows of an earlier version
        raise UserError(f"{folder} is a checkpoint to resume from, not an export: give the run's output folder")
    adapter = PeftModel.from_pretrained(base, folder)
    _refuse_tied_ends(adapter)
    return adapter.merge_and_unload()


def random_network(folder: str, tokenizer: Any, overrides: dict[str, Any], options: dict[str, Any], seed: int) -> Any:
    """Random weights from a folder's configuration; without one the overrides must name a model_type.

    Raises UserError."""
    try:
        if "model_type" in overrides:
            special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
            config = AutoConfig.for_model(**{"vocab_size": len(tokenizer), **special, **overrides})
        else:
            config = _changed(AutoConfig.from_pretrained(folder, **NO_CODE), overrides)
        unknown = [name for name in overrides if name != "model_type" and name not in type(config)().to_dict()]
        if unknown:
            raise ValueError(f"its configuration has no field {unknown[0]}")
        set_seed(seed)
        return AutoModelForCausalLM.from_config(config, **{"dtype": torch.float32, **options})  # type: ignore[no-untyped-call]
    except OSError as error:
        raise _unavailable("configuration", folder, error) from None
    except Exception as error:  # every architecture has its own
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"no model of {folder!r} with config_overrides {overrides}: {reason}") from None


def _changed(config: Any, overrides: dict[str, Any]) -> Any:
    fields = config.to_dict()
    if "num_hidden_layers" in overrides:
        fields.pop("layer_types", None)  # one entry a layer: worked out anew
    return type(config).from_dict({**fields, **overrides})


def with_adapter(model: Any, peft_config: Any) -> PeftModel:
    """The model with a new adapter, frozen otherwise. Raises UserError."""
    if isinstance(model, PeftModel):
        raise UserError("the model carries an adapter already: leave out peft_config, or give the base model")
    if getattr(model, "is_quantized", False):
        model = prepare_model_for_kbit_training(model)  # type: ignore[no-untyped-call]
    with library_refusals(ValueError, ImportError):
        adapted: PeftModel = get_peft_model(model, deepcopy(peft_config))
    _refuse_tied_ends(adapted)
    return adapted


def _refuse_tied_ends(model: PeftModel) -> None:
    """Raises UserError where an adapter changes one end of tied embeddings, as merging it would change both."""
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    if None in ends or not model.config.get_text_config().tie_word_embeddings:
        return
    adapted = [module for module in ends if isinstance(module, BaseTunerLayer | ModulesToSaveWrapper)]
    names = [name.rpartition(".")[2] for name, module in model.named_modules() if module in adapted]
    if names:
        raise UserError(
            f"an adapter on {' and '.join(names)}, but the model's embeddings are tied: merged, it would change input "
            f"and output alike: leave {' and '.join(names)} out of --lora_target_modules (peft_config)"
        )


def _settle_predictors(model: Any, *, trained: bool) -> None:
    """An adapter has frozen what is not its own, and perhaps wrapped the embeddings."""
    hook_embeddings(model)
    tokens = getattr(model, "predictor_tokens", None)
    if tokens is not None and isinstance(model, PeftModel):
        tokens.requires_grad_(trained)
