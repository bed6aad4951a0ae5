"""Train (vision-)language models by reinforcement learning with segment-level credit assignment."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("segpo")
except PackageNotFoundError:  # imported from a source tree that was not installed
    __version__ = "0+source"
