"""Keyframe-centric token pruning (Sec. 3.2, Eq. 1): scores of tokens, and the choice of the most important ones."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evad.models.attention import received_attention
from evad.models.tokens import Tokens


@torch.no_grad()
def attentiveness(query: Tensor, key: Tensor, row_weight: Tensor | None = None, chunk: int = 256) -> Tensor:
    """Importance of every token: the attention it receives, averaged over queries and heads (Eq. 1).

    I_j = 1 / (N * heads) * sum_{h, i} w_i * softmax_j(q_i . k_j / sqrt(d)). Rows are processed in chunks and only their
    weighted sum is kept, so memory is O(chunk * N) instead of O(N * N).

    Args:
        query, key: (B, heads, N, d).
        row_weight: (B, N) weight w_i of each query; None if all are 1.
        chunk: Query rows per step.

    Returns:
        (B, N) importance, float32 or the wider type of the inputs.
    """
    sums, _ = received_attention(query, key, row_weight=row_weight, chunk=chunk)
    return sums / (query.shape[1] * query.shape[2])


def num_kept(keep_rate: float, num_tokens: int, num_protected: int) -> int:
    """Number of unprotected tokens that survive: ceil(rho * N) - N1.

    Args:
        keep_rate: rho in (0, 1].
        num_tokens: N, tokens entering the block.
        num_protected: N1, or 0 if keyframe tokens may be dropped too (Table 1c).

    Raises:
        ValueError: if ceil(rho * N) is smaller than N1, the number of keyframe tokens.
    """
    total = math.ceil(keep_rate * num_tokens)
    if total < num_protected:
        raise ValueError(
            f"keep_rate {keep_rate} keeps {total} of {num_tokens} tokens, but the keyframe alone has {num_protected}: "
            "raise model.keep_rate, prune in fewer blocks or use longer clips"
        )
    return total - num_protected


def most_important(tokens: Tokens, importance: Tensor, keep_rate: float) -> Tensor:
    """Choose the unprotected tokens of highest importance.

    Args:
        tokens: N tokens.
        importance: (B, N), or longer if there are also tokens without a grid cell; their importance is not used.
        keep_rate: rho, see `num_kept`.

    Returns:
        (B, ceil(rho * N) - N1) indices among the unprotected tokens, the most important first.
    """
    first, total = tokens.num_protected, tokens.position.shape[1]
    return importance[:, first:total].topk(num_kept(keep_rate, total, first), dim=1).indices


class KeyframeScore(nn.Module):
    """Importance of Eq. 1, in which keyframe queries have weight `w_kf`.

    Args:
        w_kf: Weight of keyframe queries.
    """

    def __init__(self, w_kf: float = 1.0) -> None:
        super().__init__()
        self.w_kf = w_kf

    def forward(self, query: Tensor, key: Tensor, tokens: Tokens) -> Tensor:
        """Queries and keys (B, heads, N, d) of the tokens -> importance (B, N)."""
        return attentiveness(query, key, self.query_weight(tokens))

    def query_weight(self, tokens: Tokens) -> Tensor | None:
        """w_i of Eq. 1, (B, N); None if all weights are 1."""
        if self.w_kf == 1:
            return None
        in_keyframe = F.pad(tokens.in_keyframe(), (0, tokens.x.shape[1] - tokens.position.shape[1]))
        return 1 + (self.w_kf - 1) * in_keyframe.float()

    def extra_repr(self) -> str:
        return f"w_kf={self.w_kf}"


class TokenPruning(nn.Module):
    """One pruning stage inside a block: keeps all protected (keyframe) tokens and the most important context tokens.

    Scoring and choosing are separate steps: `attend` returns the attention output and the importance of each token,
    `forward` keeps the tokens of highest importance. No gradient flows through the choice.

    Args:
        keep_rate: rho, the share of tokens that survives, keyframe tokens included.
        score: (query, key, tokens) -> importance (B, N); None in subclasses that compute no importance.

    Raises:
        ValueError: if `keep_rate` lies outside (0, 1].
    """

    ranks = True
    """Whether survivors come in descending order of importance, as `context_order: score` needs."""

    def __init__(self, keep_rate: float, score: nn.Module | None) -> None:
        super().__init__()
        if not 0 < keep_rate <= 1:
            raise ValueError(f"keep_rate {keep_rate} is outside (0, 1]")
        self.keep_rate = keep_rate
        self.score = score

    def attend(self, query: Tensor, key: Tensor, value: Tensor, tokens: Tokens) -> tuple[Tensor, Tensor]:
        """Attention output (B, heads, N, d) of a block, and the importance (B, N) by which `forward` chooses."""
        assert self.score is not None
        return tokens.attend(query, key, value), self.score(query, key, tokens)

    def forward(self, tokens: Tokens, importance: Tensor) -> Tokens:
        """Keep the N1 protected tokens, followed by the most important other tokens in descending order.

        Returns:
            ceil(rho * N) tokens. Tokens without a grid cell stay and are not counted.

        Raises:
            ValueError: if rho keeps fewer tokens than the keyframe has, see `num_kept`.
        """
        return tokens.select_context(most_important(tokens, importance, self.keep_rate))

    def extra_repr(self) -> str:
        return f"keep_rate={self.keep_rate}"


class KeyframePruning(TokenPruning):
    """Keeps every keyframe token and the context tokens of highest importance (Eq. 1).

    Args:
        keep_rate: See `TokenPruning`.
        w_kf: Weight of keyframe queries in the importance (Eq. 1).
    """

    score: KeyframeScore

    def __init__(self, keep_rate: float, w_kf: float = 1.0) -> None:
        super().__init__(keep_rate, KeyframeScore(w_kf))

    def attend(self, query: Tensor, key: Tensor, value: Tensor, tokens: Tokens) -> tuple[Tensor, Tensor]:
        """Like `TokenPruning.attend`; CPU inference computes the attention rows once for output and importance.

        Training and other devices use fused attention for the output and compute the rows again for the importance.
        """
        if query.device.type != "cpu" or torch.is_grad_enabled():
            return super().attend(query, key, value, tokens)
        sums, attended = received_attention(query, key, value, self.score.query_weight(tokens))
        assert attended is not None
        return attended, sums / (query.shape[1] * query.shape[2])
