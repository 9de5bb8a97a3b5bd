"""Generation in torch: the sampler over the denoiser, guided where that is asked for."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_vfs.core.diffusion import GaussianDiffusion
from lightning_vfs.core.guidance import guided
from lightning_vfs.core.samplers import sample
from lightning_vfs.core.sampling_config import SamplingConfig
from lightning_vfs.modules.noise import START, indexed_normal
from lightning_vfs.training.precision import at_least_float32


class Conditioning(NamedTuple):
    """What conditions generation.

    Attributes:
        contexts: t (a scalar tensor) -> the contexts (b, ...) at that timestep, or None without conditioning.
        null_context: (d,), what a context is replaced by for classifier-free guidance, if the model knows one.
    """

    contexts: Callable[[Tensor], Tensor | None]
    null_context: Tensor | None


@torch.no_grad()
def generate(
    denoiser: Callable[[Tensor, Tensor, Tensor | None], Tensor],
    diffusion: GaussianDiffusion,
    guide: Conditioning,
    context_index: Tensor,
    index: Tensor,
    shape: tuple[int, ...],
    sampling: SamplingConfig,
    seed: int,
) -> Tensor:
    """x_0 (m, *shape) of global indices (m,), each conditioned on the context of guide `context_index` (m,).

    Raises:
        ConfigError: more steps than the process has.
    """
    process = diffusion.respaced(sampling.steps)
    scales = sampling.guidance_scales(process.timesteps).tolist()
    noise = partial(indexed_normal, index, shape, seed)

    def denoise(x_t: Tensor, t: Tensor, step: int) -> Tensor:
        contexts = guide.contexts(t[0])
        if contexts is None:
            return at_least_float32(denoiser(x_t, t, None))
        context = contexts[context_index]
        if scales[step] == 1 or guide.null_context is None:
            return at_least_float32(denoiser(x_t, t, context))
        null = guide.null_context.expand_as(context)
        both = at_least_float32(denoiser(torch.cat([x_t, x_t]), torch.cat([t, t]), torch.cat([context, null])))
        conditional, unconditional = both.chunk(2)
        return guided(conditional, unconditional, scales[step], shape[0])

    return sample(
        denoise, noise(stream=START), process, sampling.sampler, sampling.eta, lambda step: noise(stream=step)
    )
