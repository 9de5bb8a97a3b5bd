"""lightning-vfs sample: images of a class, from a folder of a few of its images."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jsonargparse import auto_cli
from torch import Tensor

from lightning_vfs.commands.closing import next_command
from lightning_vfs.commands.last_run import spell_out_last
from lightning_vfs.commands.lightning import find_last
from lightning_vfs.commands.machine import device_of
from lightning_vfs.commands.models import load_model, spell_out_raw
from lightning_vfs.commands.trust import import_trusted
from lightning_vfs.commands.usage import ExplainingParser
from lightning_vfs.core import requests
from lightning_vfs.core.checks import check_whole_number
from lightning_vfs.core.config import VFSConfig
from lightning_vfs.core.errors import ConfigError, EvaluationError
from lightning_vfs.core.files import check_is_folder, local_path, make_room, replacing
from lightning_vfs.core.progress import progress
from lightning_vfs.core.sampling_config import SamplerName, SamplingConfig
from lightning_vfs.data import load_support
from lightning_vfs.data.folders import draw_support, support_files
from lightning_vfs.data.layout import printable
from lightning_vfs.data.pictures import sample_grid, save_png, to_uint8
from lightning_vfs.modules import VFSDDPM
from lightning_vfs.training.nonfinite import why_not_finite

GRID, LISTING = "grid.png", "sample.json"
MOST_IN_GRID = 64
"""Generated images that the grid shows."""


def sample(
    out: str,
    support: str | None = None,
    label: int | None = None,
    ckpt_path: str | None = None,
    pretrained: str | None = None,
    autoencoder: str | None = None,
    num_images: int = 24,
    steps: int = 50,
    sampler: SamplerName = "ddim",
    eta: float = 0.0,
    guidance_scale: float = 1.0,
    guidance_interval: tuple[int, int] | None = None,
    seed: int = 0,
    batch_size: int = 64,
    device: str = "auto",
    framework: Literal["torch", "jax"] = "torch",
    raw: bool = False,
    trust: str | None = None,
) -> None:
    """Generate images of the class that a folder of images shows.

    Writes `0000.png`, `0001.png`, ... as they are generated, then `grid.png` (the support on the left, and the first
    64 of them), and `sample.json`, which lists them and says how they were made. Pictures that the sample.json of an
    earlier run in the same folder lists are deleted. The baselines take no support: a class-conditional model generates
    a training class by its label, an unconditional one any class.

    Args:
        out: folder for the images; made if necessary.
        support: folder of images of one class, or one image; from more than the model takes, some are drawn by seed.
        label: number of a training class, instead of the support, for a class-conditional model.
        ckpt_path: a Lightning checkpoint; or give `pretrained`.
        pretrained: `glyphs`, the model that comes with the package, a folder with model.safetensors and
            config.json, or a hub id.
        autoencoder: folder of the autoencoder of a model of latents, if it is not the one used in training.
        num_images: images to generate.
        steps: diffusion steps to take.
        sampler: ddim, ddpm, dpmpp_2m, euler or heun.
        eta: of DDIM, 0 (deterministic) to 1.
        guidance_scale: of classifier-free guidance, for a model trained with encoder.context_dropout; 1 is none; above
            1 the images show more of the class, and vary less.
        guidance_interval: first timestep that is guided, and the first above it that no longer is, such as [200, 800];
            all by default.
        seed: seed of the noise.
        batch_size: images that are generated at a time; no effect on the images.
        device: auto, cpu, cuda, cuda:1, ...; for torch only, JAX uses all devices that it finds.
        framework: torch or jax; the images are the same, to rounding.
        raw: use the checkpoint's raw weights instead of the averaged ones.
        trust: import path of a custom encoder or denoiser that the checkpoint names, if you trust it.
    """
    import_trusted(trust)
    check_whole_number("--num_images", num_images, 1)
    check_whole_number("--batch_size", batch_size, 1)
    if framework == "jax" and device != "auto":
        raise ConfigError(f"--device {device} is torch's; JAX uses all devices that it finds (JAX_PLATFORMS chooses).")
    if framework == "torch":
        device_of(device)
    folder = local_path(out, "--out")
    check_is_folder(folder)
    sampling = SamplingConfig(steps, sampler, eta, guidance_scale, guidance_interval)
    model = load_model(ckpt_path, pretrained, autoencoder, raw)
    sets = model.config.sets
    _check_condition(model.config, support, label)
    requests.check_guidance(sampling, model.config)
    images = None
    if support is not None:
        images = load_support(_at_most(support, model.config, seed), sets.image_size, sets.channels)
    names = [f"{i:04d}.png" for i in range(num_images)]
    earlier = make_room(folder, LISTING, [*names, GRID])
    draw = _with_jax if framework == "jax" else _with_torch
    how = {"num_images": num_images, "label": label, "seed": seed}
    options = how | asdict(sampling)
    options |= {"support": support, "ckpt_path": ckpt_path, "pretrained": pretrained, "weights": model.origin}
    shown: list[Tensor] = []
    done = 0
    with closing(progress("Sampling", num_images, "images", unit="image")) as bar:
        for generated in draw(model, device, images, how | {"sampling": sampling, "batch_size": batch_size}):
            _check_finite(generated, model, done)
            if not done:
                for file in earlier:
                    file.unlink(missing_ok=True)
                with replacing(folder / LISTING) as listing:
                    listing.write_text(json.dumps({"files": [*names, GRID], "sampling": options}, indent=2) + "\n")
            for name, image in zip(names[done:], to_uint8(generated), strict=False):
                save_png(image, folder / name)
            if done < MOST_IN_GRID:
                shown.append(generated[: MOST_IN_GRID - done])
            done += len(generated)
            bar.update(len(generated))
    save_png(_picture(images, torch.cat(shown)), folder / GRID)
    of_support = "" if images is None else f" of {len(images)} support images"
    whose = "" if model.origin is None else f" ({model.origin})"
    print(f"{num_images} images and grid.png{of_support}: {folder}{whose}")
    source = ("--ckpt_path", ckpt_path) if ckpt_path else ("--pretrained", pretrained)
    print(next_command("evaluate", *source))


def _check_finite(generated: Tensor, model: VFSDDPM, done: int) -> None:
    """Refuse non-finite images, which would be written as black ones.

    Args:
        generated: images (m, c, h, w).
        model: for the reason.
        done: images that were written before these.

    Raises:
        EvaluationError: there are such images.
    """
    broken = int((~generated.flatten(1).isfinite().all(dim=1)).sum())
    if broken:
        raise EvaluationError(
            f"{broken} of {len(generated)} generated images are not finite, and "
            f"{f'only the {done} before them were' if done else 'nothing was'} written; {why_not_finite(model)}."
        )


def _at_most(support: str, config: VFSConfig, seed: int) -> list[Path]:
    """Files of the support; from more than the model takes, as many as it takes, drawn by seed."""
    files = support_files(support)
    if not config.encoder.fills_slots or len(files) <= config.sets.shots:
        return files
    drawn = draw_support(files, config.sets.shots, seed)
    names = ", ".join(printable(file.name) for file in drawn)
    print(f"{support} holds {len(files)} images, of which this model takes {len(drawn)}: {names}, by seed {seed}.")
    return drawn


def _check_condition(config: VFSConfig, support: str | None, label: int | None) -> None:
    """Refuse a condition that the model does not take, and the lack of one that it needs.

    Raises:
        ConfigError: a support or a label too much or too few, or a class that the model does not know.
    """
    encoder = config.encoder
    given = {"support": support, "label": label}
    wanted = encoder.condition
    if wanted is not None and given[wanted] is None:
        what = {
            "support": f"a folder with 1 to {config.sets.shots} images of one class",
            "label": f"the number of a training class, 0 to {encoder.num_classes - 1}",
        }
        raise ConfigError(
            f"This model is conditioned on a {wanted} (encoder.architecture is {encoder.architecture!r}): give "
            f"--{wanted}, {what[wanted]}."
        )
    for option, value in given.items():
        if option != wanted and value is not None:
            raise ConfigError(
                f"--{option} is {value!r}, but this model is not conditioned on a {option} (encoder.architecture is "
                f"{encoder.architecture!r}): leave it out."
            )
    if label is not None:
        try:
            requests.check_labels([label], config)
        except ValueError as error:
            raise ConfigError(f"--label is {label}. {error}") from None


def _with_torch(model: VFSDDPM, device: str, images: Tensor | None, how: dict[str, Any]) -> Iterator[Tensor]:
    place = device_of(device)
    model.use_device(place)
    try:
        for generated in model.to(place).eval().sample_batches(images, **how):
            yield generated.cpu()
    except torch.OutOfMemoryError as error:
        raise ConfigError(
            f"{how['batch_size']} images at a time do not fit {place}'s memory: set --batch_size below that."
        ) from error


def _with_jax(model: VFSDDPM, device: str, images: Tensor | None, how: dict[str, Any]) -> Iterator[Tensor]:
    try:
        import jax

        from lightning_vfs.flax import FlaxVFSDDPM
    except ImportError as error:
        raise ConfigError("--framework jax needs jax and flax: pip install 'lightning_vfs[jax]'.") from error
    support: Any = None if images is None else images.numpy()
    for generated in FlaxVFSDDPM.from_torch(model).sample_batches(support, **how, devices=jax.devices()):
        yield torch.from_numpy(np.array(generated))


def _picture(support: Tensor | None, generated: Tensor, per_row: int = 8) -> Tensor:
    """Support (k, c, h, w) at the top left, generated images (m, c, h, w) in rows on the right: uint8 (3, H, W)."""
    rows = -(-len(generated) // per_row)
    left = None
    if support is not None:
        left = support.new_ones(rows, *support.shape)
        left[0] = support
    right = generated.new_ones(rows * per_row, *generated.shape[1:])
    right[: len(generated)] = generated
    return sample_grid(left, right.unflatten(0, (rows, per_row)))


def run(args: list[str]) -> None:
    """Parse the arguments and sample."""
    auto_cli(
        sample,
        args=spell_out_raw(spell_out_last(args, find_last)),
        prog="lightning-vfs sample",
        as_positional=False,
        parser_class=ExplainingParser,
    )
