"""The StreamPETR port for mmdetection3d: importing this package registers all its parts."""

import raggedbev.mm
import raggedbev.mm.heads  # noqa: F401
from raggedbev.mm.streampetr import (  # noqa: F401
    coder,
    dataset,
    detector,
    loops,
    metric,
    neck,
    preprocessor,
    samplers,
    transformer,
    transforms,
    transforms_image,
)
