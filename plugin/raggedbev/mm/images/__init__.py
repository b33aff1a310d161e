"""Camera images on time: files in, images of the size that the model takes out, all cameras at once.

`threads` spreads the cameras over threads, `files` reads and decodes one image, `loading` and `resize` are the
transforms. Importing this package registers them in mmdet3d's TRANSFORMS; importing `raggedbev.mm` does so on demand.
"""

from raggedbev.mm.images.files import EncodedImage, OpenCVWarning
from raggedbev.mm.images.loading import LoadMultiViewImageTurbo
from raggedbev.mm.images.resize import ResizeMultiViewImageTurbo, resize_image

__all__ = ["EncodedImage", "LoadMultiViewImageTurbo", "OpenCVWarning", "ResizeMultiViewImageTurbo", "resize_image"]
