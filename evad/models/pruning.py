"""Keyframe-centric token pruning (Sec. 3.2, Eq. 1): pure functions and the module that applies them."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from evad.models.attention import attention, attention_by_rows
from evad.models.tokens import Tokens

ContextOrder = Literal["position", "score"]


@torch.no_grad()
def attentiveness(query: Tensor, key: Tensor, num_keyframe: int, w_kf: float = 1.0, chunk: int = 256) -> Tensor:
    """Importance of every token: the attention it receives, averaged over queries and heads (Eq. 1).

    I_j = 1 / (N * heads) * sum_{h, i} w_i * softmax_j(q_i . k_j / sqrt(d)), with w_i = w_kf for keyframe queries and 1
    for the others. Rows are processed in chunks and only their weighted sum is kept, so memory is O(chunk * N), not
    N x N. Under autocast, too, probabilities are summed in float32.

    Args:
        query: (B, heads, N, d), keyframe queries first.
        key: (B, heads, N, d).
        num_keyframe: N1, how many of the queries belong to the keyframe.
        w_kf: Weight of the keyframe queries.
        chunk: Query rows per step.

    Returns:
        (B, N) importance, float32 or the wider type of the inputs.
    """
    _, sums = attention_by_rows(query, key, None, num_keyframe, chunk)
    return enhance(sums, w_kf, query)


def enhance(sums: Tensor, w_kf: float, query: Tensor) -> Tensor:
    """Sums of received attention (2, B, N), from keyframe and other queries -> importance (B, N) (Eq. 1)."""
    return (w_kf * sums[0] + sums[1]) / (query.shape[1] * query.shape[2])


def num_kept(keep_rate: float, num_tokens: int, num_keyframe: int) -> int:
    """How many context tokens survive: ceil(rho * N) - N1.

    Args:
        keep_rate: rho in (0, 1].
        num_tokens: N, tokens entering the block.
        num_keyframe: N1, or 0 where keyframe tokens may leave, too (Table 1c).

    Raises:
        ValueError: if ceil(rho * N) is smaller than N1, so that the keyframe itself would not fit.
    """
    total = math.ceil(keep_rate * num_tokens)
    if total < num_keyframe:
        raise ValueError(
            f"keep_rate {keep_rate} keeps {total} of {num_tokens} tokens, but the keyframe alone has {num_keyframe}: "
            "raise model.keep_rate, prune in fewer blocks or use longer clips"
        )
    return total - num_keyframe


class TokenPruning(nn.Module):
    """One stage of pruning inside a block: every protected (keyframe) token stays, and the best of the others.

    What `attend` returns beside the attention output is the importance by which `forward` chooses. Adds no parameter,
    and no gradient flows through the choice.

    Args:
        keep_rate: rho, the share of tokens that survives, keyframe tokens included.
        context_order: `position` keeps the survivors in space-time order. `score` leaves them in descending score
            order, as the released implementation does.

    Raises:
        ValueError: if `keep_rate` lies outside (0, 1] or `context_order` is another word.
    """

    num_extra = 0  # tokens without a grid cell that a stage adds

    def __init__(self, keep_rate: float, context_order: ContextOrder = "position") -> None:
        super().__init__()
        if not 0 < keep_rate <= 1:
            raise ValueError(f"keep_rate {keep_rate} is outside (0, 1]")
        self.keep_rate = keep_rate
        self.use_order(context_order)

    def use_order(self, context_order: ContextOrder) -> None:
        """Leave the survivors in another order, see `context_order`."""
        if context_order not in ("position", "score"):
            raise ValueError(f"context_order {context_order!r} is neither 'position' nor 'score'")
        self.context_order = context_order

    def attend(self, query: Tensor, key: Tensor, value: Tensor, tokens: Tokens) -> tuple[Tensor, Tensor]:
        """Attention output (B, heads, N + E, d) of a block, and what `forward` chooses by."""
        raise NotImplementedError

    def forward(self, tokens: Tokens, importance: Tensor) -> Tokens:
        """Survivors among N grid tokens by their importance (B, N + E).

        Returns:
            ceil(rho * N) tokens: all N1 keyframe tokens, then the context tokens in `context_order`. Tokens without a
            grid cell stay and are not counted.

        Raises:
            ValueError: if the keyframe alone has more tokens than rho keeps, see `num_kept`.
        """
        return tokens.select_context(self.choose(tokens, importance))

    def choose(self, tokens: Tokens, importance: Tensor) -> Tensor:
        """(B, n) indices of the survivors among the tokens that may leave."""
        first, total = tokens.num_protected, tokens.position.shape[1]
        kept = num_kept(self.keep_rate, total, first)
        index = importance[:, first:total].topk(kept, dim=1).indices  # descending importance
        return index.sort(dim=1).values if self.context_order == "position" else index

    def num_tokens(self, num_tokens: int, num_protected: int) -> int:
        """Grid tokens that leave the stage."""
        return num_protected + num_kept(self.keep_rate, num_tokens, num_protected)

    def scoring_macs(self, num_tokens: int, dim: int) -> int:
        """MACs spent on scores of N + E tokens of C channels that an attention which keeps its matrix has for free."""
        return 0

    def matching_macs(self, num_tokens: int, num_protected: int, head_dim: int) -> int:
        """MACs of choosing among N tokens that no attention gives."""
        return 0


class KeyframePruning(TokenPruning):
    """Keeps every keyframe token and the context tokens the keyframe attends to most.

    Args:
        keep_rate: See `TokenPruning`.
        w_kf: Weight of keyframe queries in the importance score (Eq. 1).
        context_order: See `TokenPruning`.
    """

    def __init__(self, keep_rate: float, w_kf: float = 1.0, context_order: ContextOrder = "position") -> None:
        super().__init__(keep_rate, context_order)
        self.w_kf = w_kf

    def attend(self, query: Tensor, key: Tensor, value: Tensor, tokens: Tokens) -> tuple[Tensor, Tensor]:
        """Attention output (B, heads, N + E, d) and importance (B, N + E) of a block's tokens.

        CPU inference computes both from the same rows. Training and other devices use the fused attention and compute
        the rows a second time, without gradients.
        """
        if tokens.keyframe == "unified":  # the keyframe's rows are no longer the first N1
            return attention(query, key, value), self.unified_importance(query, key, tokens)
        if query.device.type == "cpu" and not torch.is_grad_enabled():
            attended, sums = attention_by_rows(query, key, value, tokens.num_keyframe)
            return attended, enhance(sums, self.w_kf, query)
        return attention(query, key, value), attentiveness(query, key, tokens.num_keyframe, self.w_kf)

    @torch.no_grad()
    def unified_importance(self, query: Tensor, key: Tensor, tokens: Tokens) -> Tensor:
        """Eq. 1 where every clip has its own number of keyframe queries left."""
        weight = query.new_ones(query.shape[0], query.shape[2])
        weight[:, : tokens.position.shape[1]] += (self.w_kf - 1) * tokens.in_keyframe()
        _, sums = attention_by_rows(query, key, None, row_weight=weight)
        return enhance(sums, 1.0, query)

    def scoring_macs(self, num_tokens: int, dim: int) -> int:
        return num_tokens**2 * dim

    def extra_repr(self) -> str:
        return f"keep_rate={self.keep_rate}, w_kf={self.w_kf}, context_order={self.context_order!r}"
