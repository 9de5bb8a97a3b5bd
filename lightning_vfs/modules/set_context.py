"""Contexts that the images of a set share: all of their tokens, and which of them each image is conditioned on."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor


class SetContext(NamedTuple):
    """What the images of b sets of n attend to, without a copy of the tokens for every image.

    Attributes:
        tokens: (b, m, d), of all images of a set, and a null context where contexts are dropped.
        seen: bool (b or 1, n, m), whether an image attends to a token.
    """

    tokens: Tensor
    seen: Tensor

    @classmethod
    def of_images(
        cls,
        tokens: Float[Tensor, "b*n l d"],
        seen: Bool[Tensor, "#b n n"],
        null_context: Float[Tensor, " d"] | None = None,
        dropped: Bool[Tensor, "b n"] | None = None,
    ) -> SetContext:
        """The context of sets from the tokens of each image.

        Args:
            tokens: (b*n, l, d), of every image.
            seen: bool (b or 1, n, n), whether an image (row) is conditioned on another (column).
            null_context: (d,), what images attend to whose context is dropped.
            dropped: bool (b, n), these images.
        """
        n = seen.shape[-1]
        shared = rearrange(tokens, "(b n) l d -> b (n l) d", n=n)
        of_tokens = seen.repeat_interleave(tokens.shape[1], dim=-1)
        if null_context is None or dropped is None:
            return cls(shared, of_tokens)
        null = null_context.to(shared.dtype).expand(len(shared), 1, -1)
        dropped = dropped[..., None]
        return cls(torch.cat([shared, null], dim=1), torch.cat([of_tokens & ~dropped, dropped], dim=-1))

    def to(self, dtype: torch.dtype) -> SetContext:
        """The same with tokens of this type."""
        return SetContext(self.tokens.to(dtype), self.seen)


Context = Tensor | SetContext
"""(b*n, d) or (b*n, tokens, d), one for every image; or what the images of a set share."""


def tokens_of(context: Context) -> Tensor:
    """The tokens of a context: (b, tokens, d)."""
    return context.tokens if isinstance(context, SetContext) else context


def attend_to_context(q: Tensor, k: Tensor, v: Tensor, context: Context) -> Tensor:
    """Attention of every image's queries to its context, (b, heads, l, d) -> (b, l, heads * d).

    Args:
        q: (b, heads, l, d), of b images.
        k, v: (b, heads, tokens, d), of the tokens of `context`; of a SetContext, one for every set.
    """
    if not isinstance(context, SetContext):
        return rearrange(F.scaled_dot_product_attention(q, k, v), "b h l d -> b l (h d)")
    n, length = context.seen.shape[1], q.shape[2]
    q = rearrange(q, "(b n) h l d -> b h (n l) d", n=n)
    seen = context.seen.repeat_interleave(length, dim=1)[:, None]
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
    return rearrange(out, "b h (n l) d -> (b n) l (h d)", n=n)
