"""Box objects of mmdet3d and mmdet, taken apart and put together around another tensor."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor


class BoxClass(NamedTuple):
    """What boxes of mmdet3d or mmdet are besides their tensor."""

    kind: type
    state: tuple[tuple[str, Any], ...]

    @staticmethod
    def of(value: Any) -> BoxClass | None:
        """None for what is no box object."""
        if isinstance(value, Tensor) or not isinstance(getattr(value, "__dict__", {}).get("tensor"), Tensor):
            return None
        return BoxClass(type(value), tuple((key, v) for key, v in vars(value).items() if key != "tensor"))

    def wrap(self, tensor: Tensor) -> Any:
        """Box object around `tensor` itself; the constructors of mmdet3d would copy it."""
        boxes = self.kind.__new__(self.kind)
        boxes.__dict__.update(self.state)
        boxes.tensor = tensor
        return boxes


def tensor_of(value: Any) -> Tensor:
    """A tensor, or that of a box object."""
    return value if isinstance(value, Tensor) else value.tensor


def common_class(values: list) -> BoxClass | type | None:
    """What the values of a field are in all units, Tensor or one class of boxes; None where they cannot be packed."""
    first = values[0]
    box_class = BoxClass.of(first)
    if not isinstance(first, Tensor) and box_class is None:
        return None
    if any(
        BoxClass.of(value) != box_class or isinstance(value, Tensor) != isinstance(first, Tensor) for value in values
    ):
        return None
    tensors = [tensor_of(value) for value in values]
    alike = {(tensor.dtype, tensor.shape[1:], tensor.is_cpu and not tensor.requires_grad) for tensor in tensors}
    if tensors[0].dim() == 0 or len(alike) > 1 or not next(iter(alike))[2]:
        return None
    return box_class or Tensor
