"""Processors of models that also take videos, where torchvision is missing."""

import contextlib
import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers.models.auto.video_processing_auto import get_video_processor_config
from transformers.processing_utils import MODALITY_TO_AUTOPROCESSOR_MAPPING, MODALITY_TO_BASE_CLASS_MAPPING
from transformers.utils import is_torchvision_available
from transformers.video_processing_utils import VideoProcessorMixin


class NoVideoProcessor(VideoProcessorMixin):
    """Stands in for the video processor of an image model where torchvision is missing; refuses videos.

    Processors such as those of Qwen2.5-VL, Qwen3-VL, SmolVLM and InternVL cannot be built without a video
    processor, and every video processor of transformers needs torchvision, also when only images are
    processed. The stored configuration is kept and written back unchanged, so that the saved processor loads
    with torchvision as well.
    """

    num_frames = None  # read by SmolVLM's chat template
    fps = None

    def __init__(self, **config: Any) -> None:
        self.config = config

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> "NoVideoProcessor":
        return cls(**get_video_processor_config(pretrained_model_name_or_path, **kwargs))

    def to_dict(self) -> dict[str, Any]:
        return copy.deepcopy(self.config)

    def __call__(self, videos: Any, **kwargs: Any) -> None:
        raise ImportError("videos need torchvision (pip install torchvision); images work without it")


@contextlib.contextmanager
def video_stand_in() -> Iterator[None]:
    """Where torchvision is missing, let transformers build and load processors with `NoVideoProcessor`.

    Changes nothing with torchvision, and nothing outside the block.
    """
    if is_torchvision_available():
        yield
        return
    loaders, bases = MODALITY_TO_AUTOPROCESSOR_MAPPING._MAPPING_NAMES, MODALITY_TO_BASE_CLASS_MAPPING
    before = loaders["video_processor"], bases["video_processor"]
    loaders["video_processor"] = (__name__, NoVideoProcessor.__name__)
    # The type check of processors cannot resolve its own name for video processors without torchvision; this
    # is their base class, and it can.
    bases["video_processor"] = "ImageProcessingMixin"
    try:
        yield
    finally:
        loaders["video_processor"], bases["video_processor"] = before
