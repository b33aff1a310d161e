"""The StreamPETR port for mmdetection3d: importing this package registers all its parts."""

import raggedbev.mm  # noqa: F401
from raggedbev.mm.streampetr import coder, detector, neck, transformer  # noqa: F401
