"""The mm packages warn of their own deprecated calls when they are imported; that is none of these tests' business."""

import warnings

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import mmdet3d.models  # noqa: F401
