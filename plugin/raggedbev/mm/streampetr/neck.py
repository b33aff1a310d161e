"""Feature pyramid: backbone maps of two or more strides in, as many maps of one width out."""

from collections import OrderedDict
from collections.abc import Sequence

from mmdet3d.registry import MODELS
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.nn import functional as F


def _named_conv(in_channels: int, out_channels: int, kernel_size: int) -> nn.Sequential:
    """A convolution under the name ``conv``, as checkpoints have it; Xavier weights, zero bias."""
    conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2)
    nn.init.xavier_uniform_(conv.weight)
    nn.init.zeros_(conv.bias)
    return nn.Sequential(OrderedDict(conv=conv))


@MODELS.register_module()
class StreamPETRNeck(BaseModule):
    """The CPFPN neck of PETRv2 and StreamPETR: lateral 1x1 convolutions, top-down addition, a 3x3 on level 0 only.

    Args:
        in_channels: Channels of each input level, finest first.
        out_channels: Channels of every output level.
        num_outs: Number of output levels; must equal the number of inputs.
        init_cfg: As for every mmengine module.
    """

    def __init__(self, in_channels: Sequence[int], out_channels: int, num_outs: int, init_cfg: dict | None = None):
        super().__init__(init_cfg)
        if num_outs != len(in_channels):
            raise ValueError(f"num_outs must equal the number of in_channels={list(in_channels)}, got {num_outs}")
        self.lateral_convs = nn.ModuleList(_named_conv(channels, out_channels, 1) for channels in in_channels)
        self.fpn_convs = nn.ModuleList([_named_conv(out_channels, out_channels, 3)])

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Fuse the levels from coarse to fine.

        Args:
            inputs: Maps ``[I, in_channels[i], H_i, W_i]``, finest first.

        Returns:
            Maps ``[I, out_channels, H_i, W_i]``, finest first.
        """
        if len(inputs) != len(self.lateral_convs):
            raise ValueError(f"the neck expects {len(self.lateral_convs)} feature levels, got {len(inputs)}")
        levels = [conv(x) for conv, x in zip(self.lateral_convs, inputs, strict=True)]
        for i in range(len(levels) - 1, 0, -1):
            levels[i - 1] = levels[i - 1] + F.interpolate(levels[i], size=levels[i - 1].shape[-2:], mode="nearest")
        levels[0] = self.fpn_convs[0](levels[0])
        return tuple(levels)
