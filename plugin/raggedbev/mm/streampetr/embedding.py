"""Encodings of positions, times and ego motion, and the two layers that condition features on them.

In: coordinates in [0, 1], seconds, pose entries. Out: sinusoid vectors, and features modulated by them.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

NERF_FREQUENCIES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)


def inverse_sigmoid(x: Tensor, eps: float = 1e-5) -> Tensor:
    """Logit of ``x`` clamped to [0, 1], finite at both ends: log(max(x, eps) / max(1 - x, eps))."""
    x = x.clamp(min=0, max=1)
    return torch.log(x.clamp(min=eps) / (1 - x).clamp(min=eps))


def sine_encoding(x: Tensor, num_channels: int) -> Tensor:
    """Interleaved sinusoids of a scalar, as in "Attention is all you need" with a full turn per unit.

    Channel i is the sine (even i) or cosine (odd i) of ``2 pi x / 10000^(2 floor(i / 2) / num_channels)``.

    Args:
        x: Any shape ``[...]``, float32 or float64; the divisors are float32 for both.
        num_channels: Length of the encoding, even.

    Returns:
        ``[..., num_channels]`` of the type of ``x``.
    """
    channel = torch.arange(num_channels, dtype=torch.float32, device=x.device)
    divisor = 10000 ** (2 * torch.div(channel, 2, rounding_mode="floor") / num_channels)
    angle = (x * (2 * math.pi)).unsqueeze(-1) / divisor
    return torch.stack((angle[..., 0::2].sin(), angle[..., 1::2].cos()), dim=-1).flatten(-2)


def sine_encoding_3d(points: Tensor, num_channels: int) -> Tensor:
    """Sine encodings of y, x and z (in this order) side by side: ``[..., 3] -> [..., 3 * num_channels]``."""
    x, y, z = points.unbind(-1)
    return torch.cat([sine_encoding(axis, num_channels) for axis in (y, x, z)], dim=-1)


def nerf_encoding(x: Tensor) -> Tensor:
    """Sines and cosines of the vector at six octaves, without pi and without the input: ``[..., K] -> [..., 12 K]``."""
    return torch.cat([part for f in NERF_FREQUENCIES for part in ((x * f).sin(), (x * f).cos())], dim=-1)


class ModulatedLayerNorm(nn.Module):
    """Layer norm with scale and shift from a condition c: ``gamma(r) * LN(x) + beta(r)``, r = ReLU(reduce(c)).

    It starts as a plain layer norm: gamma gives 1 and beta gives 0 whatever the condition is.

    Args:
        condition_dims: Width of the condition ``c``.
        embed_dims: Width of the features ``x``.
    """

    def __init__(self, condition_dims: int, embed_dims: int) -> None:
        super().__init__()
        self.embed_dims = embed_dims
        self.reduce = nn.Sequential(nn.Linear(condition_dims, embed_dims), nn.ReLU())
        self.gamma = nn.Linear(embed_dims, embed_dims)
        self.beta = nn.Linear(embed_dims, embed_dims)
        nn.init.zeros_(self.gamma.weight)
        nn.init.ones_(self.gamma.bias)
        nn.init.zeros_(self.beta.weight)
        nn.init.zeros_(self.beta.bias)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Normalise and modulate.

        Args:
            x: Features ``[..., embed_dims]``.
            condition: ``[..., condition_dims]``; its leading sizes broadcast against those of ``x``.
        """
        reduced = self.reduce(condition)
        return self.gamma(reduced) * F.layer_norm(x, (self.embed_dims,)) + self.beta(reduced)


class SqueezeExcite(nn.Module):
    """Gate ``x`` per channel by the features of the same token: ``x * sigmoid(expand(ReLU(reduce(features))))``."""

    def __init__(self, embed_dims: int) -> None:
        super().__init__()
        self.conv_reduce = nn.Linear(embed_dims, embed_dims)
        self.conv_expand = nn.Linear(embed_dims, embed_dims)

    def forward(self, x: Tensor, features: Tensor) -> Tensor:
        return x * self.conv_expand(self.conv_reduce(features).relu()).sigmoid()
