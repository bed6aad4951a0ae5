"""Where the files are that the project ships beside its code: the demo's settings and the embedded policy."""

from pathlib import Path

_CHECKOUT, _INSTALLED = Path(__file__).resolve().parent.parent, Path(__file__).resolve().parent / "files"

#: The folder of `configs` and `data`: the toolkit's own checkout, or within the installed package (see setup.py).
ROOT = _INSTALLED if (_INSTALLED / "configs").is_dir() else _CHECKOUT


def shipped(name: str | Path) -> Path:
    """A file or folder as given, or, if it is not there, the one of that name which is shipped (configs/demo.yaml)."""
    own = ROOT / name
    return own if not Path(name).exists() and own.exists() else Path(name)
