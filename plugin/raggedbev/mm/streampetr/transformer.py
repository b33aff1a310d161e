"""Temporal transformer decoder: queries, past queries and image tokens in, the output of every decoder layer out."""

import torch
from mmdet3d.registry import MODELS
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from raggedbev.mm.nonfinite import NonfiniteCounter


class _AttentionWeights(nn.Module):
    """The parameters of ``nn.MultiheadAttention`` under the same names, with attention by the fused kernel.

    Args:
        embed_dims: Width of queries, keys and values.
        num_heads: Number of heads.
        prob_dropout: Dropout of the attention probabilities, in training.
    """

    def __init__(self, embed_dims: int, num_heads: int, prob_dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.prob_dropout = prob_dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * embed_dims, embed_dims))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * embed_dims))
        self.out_proj = nn.Linear(embed_dims, embed_dims)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, attend: Tensor | None) -> Tensor:
        """Attend.

        Args:
            query: ``[B, T, C]``.
            key: ``[B, S, C]``.
            value: ``[B, S, C]``.
            attend: ``[T, S]`` bool, True where the query may see the key, or None if it may everywhere.
        """
        projections = zip((query, key, value), self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3), strict=True)
        q, k, v = (F.linear(x, w, b).unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for x, w, b in projections)
        dropout = self.prob_dropout if self.training else 0.0
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=attend, dropout_p=dropout)
        return self.out_proj(out.transpose(1, 2).flatten(-2))


class _Attention(nn.Module):
    """Attention with position embeddings on queries and keys, output dropout and a residual connection."""

    def __init__(self, embed_dims: int, num_heads: int, dropout: float, prob_dropout: float) -> None:
        super().__init__()
        self.attn = _AttentionWeights(embed_dims, num_heads, prob_dropout)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x: Tensor, query_pos: Tensor, key: Tensor, key_pos: Tensor, attend: Tensor | None = None
    ) -> Tensor:
        return x + self.dropout(self.attn(x + query_pos, key + key_pos, key, attend))


class _FeedForward(nn.Module):
    """Two linear layers with ReLU and dropout between, output dropout and a residual connection."""

    def __init__(self, embed_dims: int, ffn_dims: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Sequential(nn.Linear(embed_dims, ffn_dims), nn.ReLU(), nn.Dropout(dropout)),
            nn.Linear(ffn_dims, embed_dims),
            nn.Dropout(dropout),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class _DecoderLayer(nn.Module):
    """Self-attention to current and past queries, cross-attention to image tokens, feed-forward; a norm after each."""

    def __init__(self, embed_dims: int, num_heads: int, ffn_dims: int, dropout: float) -> None:
        super().__init__()
        self.attentions = nn.ModuleList(
            _Attention(embed_dims, num_heads, dropout, prob_dropout) for prob_dropout in (dropout, 0.0)
        )
        self.ffns = nn.ModuleList([_FeedForward(embed_dims, ffn_dims, dropout)])
        self.norms = nn.ModuleList(nn.LayerNorm(embed_dims) for _ in range(3))

    def forward(
        self,
        x: Tensor,
        query_pos: Tensor,
        temporal: Tensor,
        temporal_pos: Tensor,
        tokens: Tensor,
        tokens_pos: Tensor,
        attend: Tensor | None,
    ) -> Tensor:
        keys, keys_pos = torch.cat([x, temporal], dim=1), torch.cat([query_pos, temporal_pos], dim=1)
        x = self.norms[0](self.attentions[0](x, query_pos, keys, keys_pos, attend))
        x = self.norms[1](self.attentions[1](x, query_pos, tokens, tokens_pos))
        return self.norms[2](self.ffns[0](x))


class _Decoder(nn.Module):
    """The stack of layers and the norm that all their outputs share."""

    def __init__(self, num_layers: int, embed_dims: int, num_heads: int, ffn_dims: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_DecoderLayer(embed_dims, num_heads, ffn_dims, dropout) for _ in range(num_layers))
        self.post_norm = nn.LayerNorm(embed_dims)


@MODELS.register_module()
class StreamPETRTransformer(NonfiniteCounter, BaseModule):
    """The decoder of StreamPETR (Wang et al., arXiv 2303.11926, section 3.2).

    Args:
        num_layers: Number of decoder layers L.
        num_heads: Attention heads; must divide ``embed_dims``.
        ffn_dims: Hidden width of the feed-forward parts.
        dropout: Dropout of all sub-layer outputs, of the feed-forward hidden layer, and of the self-attention
            probabilities; those of the cross-attention have none.
        embed_dims: Width C of queries and tokens.
        with_cp: Recompute each layer in the backward pass instead of storing its activations.
        init_cfg: As for every mmengine module.
    """

    def __init__(
        self,
        num_layers: int = 6,
        num_heads: int = 8,
        ffn_dims: int = 2048,
        dropout: float = 0.1,
        embed_dims: int = 256,
        with_cp: bool = False,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        if num_layers < 1:
            raise ValueError(f"num_layers must be at least 1, got {num_layers}")
        if embed_dims % num_heads:
            raise ValueError(f"num_heads must divide embed_dims={embed_dims}, got {num_heads}")
        self.num_layers = num_layers
        self.with_cp = with_cp
        self.decoder = _Decoder(num_layers, embed_dims, num_heads, ffn_dims, dropout)
        for name, parameter in self.decoder.named_parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(
        self,
        query: Tensor,
        query_pos: Tensor,
        temporal: Tensor,
        temporal_pos: Tensor,
        tokens: Tensor,
        tokens_pos: Tensor,
        blocked: Tensor | None = None,
    ) -> Tensor:
        """Run all layers.

        Args:
            query: Initial query features ``[B, T, C]``.
            query_pos: Their position embedding ``[B, T, C]``.
            temporal: Past queries ``[B, R, C]``: further keys of the self-attention.
            temporal_pos: Their position embedding ``[B, R, C]``.
            tokens: Image tokens ``[B, S, C]``.
            tokens_pos: Their position embedding ``[B, S, C]``.
            blocked: ``[T, T + R]`` bool, True where self-attention is forbidden; None if it is open everywhere.

        Returns:
            Normed outputs of all layers ``[L, B, T, C]``; NaN and infinity are counted in training, and replaced by
            finite numbers.
        """
        context = (query_pos, temporal, temporal_pos, tokens, tokens_pos, None if blocked is None else ~blocked)
        recompute = self.with_cp and torch.is_grad_enabled()
        outputs = []
        for layer in self.decoder.layers:
            query = checkpoint(layer, query, *context, use_reentrant=False) if recompute else layer(query, *context)
            outputs.append(self.decoder.post_norm(query))
        stacked = torch.stack(outputs)
        if self.training:
            self.count_nonfinite(stacked)
        return torch.nan_to_num(stacked)
