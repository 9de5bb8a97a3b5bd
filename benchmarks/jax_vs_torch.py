"""JAX and torch, one model in one process: images a second of a training step and of sampling, and their ratios.

Training: the case of train_step.py, float32 in both; in JAX the twin's loss, optax's clipping and AdamW, jitted.
Sampling: DDIM-50 on the glyph model from one support, and how far the images of the two are apart.

    python benchmarks/jax_vs_torch.py [--out benchmarks/results/jax_vs_torch_cpu.json]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from report import report
from sample import STEPS, glyph_model
from train_step import CASE, make_step, timed

from lightning_vfs.flax import FlaxVFSDDPM
from lightning_vfs.flax.noise import indexed_normal
from lightning_vfs.modules import VFSDDPM
from lightning_vfs.modules.noise import NOISE

CPU = torch.device("cpu")


def make_jax_step(sets: int) -> Callable[[], None]:
    """A jitted training step of the same model, with the same noise by index."""
    torch.manual_seed(0)
    model = FlaxVFSDDPM.from_torch(VFSDDPM(CASE))
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3, b2=0.99, weight_decay=0.01))
    image = (CASE.sets.set_size, CASE.sets.channels, CASE.sets.image_size, CASE.sets.image_size)
    rng = np.random.default_rng(0)
    t = jnp.asarray(rng.integers(0, CASE.diffusion.timesteps, sets), dtype=jnp.int32)

    @partial(jax.jit, donate_argnums=(0, 1))
    def update(params: dict, state: optax.OptState, x_set: jax.Array) -> tuple[dict, optax.OptState]:
        noise = indexed_normal(jnp.arange(sets), image, 0, NOISE)
        gradients = jax.grad(model.loss)(params, x_set, t, noise)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    x_set = jnp.asarray(rng.uniform(-1, 1, (sets, *image)).astype(np.float32))
    at = [jax.tree.map(jnp.copy, model.params), optimizer.init(model.params)]

    def step() -> None:
        at[:] = update(*at, x_set)
        jax.block_until_ready(at)

    return step


def sampling(num_images: int) -> tuple[dict[str, Callable[[], object]], float]:
    """Samplers of the glyph model in both, and the largest difference between their images, in [-1, 1]."""
    torch.manual_seed(0)
    model = glyph_model()
    with torch.no_grad():  # fresh output layers are zero, which would draw the same whatever the rest
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    sets = model.config.sets
    support = torch.rand(sets.shots, sets.channels, sets.image_size, sets.image_size) * 2 - 1
    twin, as_numpy = FlaxVFSDDPM.from_torch(model), support.numpy()
    samplers: dict[str, Callable[[], object]] = {
        "torch": lambda: model.sample(support, num_images, steps=STEPS),
        "jax": lambda: jax.block_until_ready(twin.sample(as_numpy, num_images, steps=STEPS)),
    }
    images = {name: np.asarray(draw()) for name, draw in samplers.items()}
    return samplers, float(np.abs(images["torch"] - images["jax"]).max())


def per_second(functions: dict[str, Callable[[], object]], images: int, steps: int, turns: int) -> dict[str, float]:
    """Images a second of each, medians over turns that they take by rotation."""
    for function in functions.values():
        timed(function, 2, CPU)
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(turns):
        for name, function in functions.items():
            seconds[name].append(timed(function, steps, CPU) / steps)
    return {name: round(images / sorted(values)[len(values) // 2], 1) for name, values in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", type=int, default=4)
    parser.add_argument("--steps", type=int, default=5, help="training steps of a turn")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--num_images", type=int, default=256)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    training: dict[str, Callable[[], object]] = {
        "torch, compiled": make_step(CASE, torch.float32, True, CPU, args.sets),
        "torch, eager": make_step(CASE, torch.float32, False, CPU, args.sets),
        "jax": make_jax_step(args.sets),
    }
    trained = per_second(training, args.sets * CASE.sets.set_size, args.steps, args.turns)
    samplers, difference = sampling(args.num_images)
    sampled = per_second(samplers, args.num_images, 1, args.turns)
    result = {
        "training": "image 32, patch 4, encoder 256 x 3, DiT 384 x 6, sets of 6, float32",
        "sets_per_step": args.sets,
        "training_images_per_second": trained,
        "training_ratio_to_jax": {name: round(value / trained["jax"], 2) for name, value in trained.items()},
        "sampling": "configs/glyphs.yaml, DDIM-50, one support, float32",
        "num_images": args.num_images,
        "sampling_images_per_second": sampled,
        "sampling_ratio_to_jax": {name: round(value / sampled["jax"], 2) for name, value in sampled.items()},
        "largest_difference_of_images": difference,
        "jax": jax.__version__,
    }
    report(result, CPU, args.out)


if __name__ == "__main__":
    main()
