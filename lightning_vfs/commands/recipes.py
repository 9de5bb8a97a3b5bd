"""`fit` without a configuration: the recipe for the images' size and this machine, as arguments."""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch
import yaml
from jsonargparse import ArgumentParser
from lightning.pytorch import Trainer
from PIL import Image

from lightning_vfs.commands.configurations import FOLDER
from lightning_vfs.commands.shortcuts import SHORTCUTS
from lightning_vfs.commands.usage import subclasses
from lightning_vfs.commands.yaml_files import CONFIG_OPTIONS, given_options, plain_key
from lightning_vfs.core.checks import choose, is_path
from lightning_vfs.core.errors import ConfigError
from lightning_vfs.core.files import local_path
from lightning_vfs.data import (
    CelebASets,
    CIFAR100Sets,
    CUBSets,
    Flowers102Sets,
    FolderSets,
    GlyphSets,
    MiniImageNetSets,
    OmniglotSets,
    SetDataModule,
)
from lightning_vfs.data.decode import is_image
from lightning_vfs.modules import VFSDDPM
from lightning_vfs.training.step import TrainingStep


class Recipe(NamedTuple):
    """A packaged configuration, and what it is for.

    Attributes:
        name: of the configuration.
        gpu: whether it needs a GPU.
        side: side of its images in pixels.
        largest: side of the largest images that it is recommended for.
        data: the data set that it is for; None for any.
    """

    name: str
    gpu: bool
    side: int
    largest: int
    data: type[SetDataModule] | None = None


RECIPES = (
    Recipe("glyphs", gpu=False, side=16, largest=16, data=GlyphSets),
    Recipe("data/omniglot", gpu=True, side=28, largest=28, data=OmniglotSets),
    Recipe("data/cifar100", gpu=True, side=32, largest=32, data=CIFAR100Sets),
    Recipe("data/mini_imagenet", gpu=True, side=32, largest=32, data=MiniImageNetSets),
    Recipe("data/celeba", gpu=True, side=64, largest=64, data=CelebASets),
    Recipe("data/cub", gpu=True, side=64, largest=64, data=CUBSets),
    Recipe("data/flowers102", gpu=True, side=64, largest=64, data=Flowers102Sets),
    Recipe("folders", gpu=True, side=32, largest=64),
    Recipe("cpu", gpu=False, side=32, largest=32),
)
"""The first that fits is taken: of the data, on this machine. A GPU can train what a CPU can."""

SIDES = (16, 32, 64)
"""Sides of images to choose from, by the size of those in a folder."""

PEEKED = 200
"""Folders among which those are chosen whose images are looked at."""


class Chosen(NamedTuple):
    """Arguments with those of a recipe, and what there is to say about it."""

    args: list[str]
    says: str


def with_recipe(args: Sequence[str]) -> Chosen | None:
    """Arguments of `fit` that name data but no configuration, with those of the recommended recipe before them.

    Returns:
        None if there is a configuration, or no data whose class is known.
    """
    given = {plain_key(name): value for name, value in given_options(args) if name.startswith("-")}
    if any(arg.partition("=")[0] in CONFIG_OPTIONS for arg in args):
        return None
    data = _data_class(given.get("data", "FolderSets" if "data.root" in given else ""))
    if data is None:
        return None
    gpu = torch.cuda.is_available() and given.get("trainer.accelerator") != "cpu"
    side, channels, source = _images(data, given, gpu)
    recipe = next(
        recipe
        for recipe in RECIPES
        if recipe.gpu <= gpu and (recipe.data is None or (issubclass(data, recipe.data) and side <= recipe.largest))
    )
    precision = _precision(gpu)
    options = {
        "data": f"{data.__module__}.{data.__name__}",
        "data.image_size": side,
        "data.channels": channels,
        **_patches(recipe, side),
        "trainer.precision": precision,
        "name": recipe.name.rpartition("/")[2] if recipe.data else _run_name(data, given),
    }
    if any(name.startswith("trainer.logger") for name in given):
        del options["name"]
    decided = {*given, *(short.stands_for for name, short in SHORTCUTS.items() if name in given)} - {"data"}
    added = [f"--{name}={value}" for name, value in options.items() if name not in decided]
    says = (
        f"Recipe: --config {recipe.name}, recommended for images of {side} x {side} ({source}) on "
        f"{'a GPU' if gpu else 'a CPU'}. Your options override it; --config NAME takes another."
    )
    first = ["--config", str(FOLDER / f"{recipe.name}.yaml"), *added]
    return Chosen([args[0], *first, *_without(args[1:], "data")], says)


def _without(args: Sequence[str], option: str) -> list[str]:
    """Arguments without an option and its value."""
    left, values = [], iter(args)
    for arg in values:
        if arg == f"--{option}":
            next(values, None)
        elif not arg.startswith(f"--{option}="):
            left.append(arg)
    return left


def _data_class(name: str) -> type[SetDataModule] | None:
    """The data set of that name or import path; None where the parser says better what is wrong."""
    if not is_path(name):
        return {kind.__name__: kind for kind in subclasses(SetDataModule)}.get(name)
    try:
        found = choose(name, {})
    except ConfigError:
        return None
    return found if isinstance(found, type) and issubclass(found, SetDataModule) else None


def _images(data: type[SetDataModule], given: dict[str, str], gpu: bool) -> tuple[int, int, str]:
    """Side and channels of the images to train on, and where they come from."""
    parser = ArgumentParser()
    parser.add_class_arguments(data, fail_untyped=False)
    own = parser.get_defaults()
    side, channels, source = own["image_size"], own["channels"], f"as {data.__name__} has them"
    if issubclass(data, FolderSets) and (files := _peek(given.get("data.root", ""))):
        sides, grey = zip(*files, strict=True)
        most = max(recipe.largest for recipe in RECIPES if recipe.gpu <= gpu)
        fitting = [size for size in SIDES if size <= min(median(sides), most)]
        side, channels = max(fitting, default=SIDES[0]), 1 if all(grey) else 3
        source = f"those in {given['data.root']} are about {median(sides):.0f} wide, {'grey' if all(grey) else 'RGB'}"
    for option, value in (("image_size", side), ("channels", channels)):
        text = given.get(f"data.{option}", str(value))
        if option == "image_size" and text.isdigit() and int(text) > 0:
            side, source = int(text), source if text == str(side) else "as you say"
        if option == "channels" and text.isdigit():
            channels = int(text)
    return side, channels, source


def _peek(root: str) -> list[tuple[int, bool]]:
    """Shorter side, and whether it is grey, of some images of a folder; nothing if it cannot be read."""
    if not root:
        return []
    folders = []
    for path, below, _ in os.walk(local_path(root, "--data.root")):
        below.sort()
        folders.append(Path(path))
        if len(folders) == PEEKED:
            break
    found = []
    for folder in folders[:: max(1, len(folders) // 50)]:
        images = [file for file in sorted(folder.iterdir()) if is_image(file)]
        for file in images[:4]:
            try:
                with Image.open(file) as image:
                    found.append((min(image.size), image.mode in ("1", "L", "LA", "I", "I;16", "F")))
            except OSError:
                continue  # the data set says which files cannot be read
    return found


def _patches(recipe: Recipe, side: int) -> dict[str, int]:
    """Patch sizes for images of another side, which keep the number of patches about as it is."""
    model = yaml.safe_load((FOLDER / f"{recipe.name}.yaml").read_text())["model"]["config"]
    sizes = {f"model.config.{part}.patch_size": model[part]["patch_size"] for part in ("encoder", "denoiser")}
    if side == recipe.side:
        return {}
    divisors = [size for size in range(1, side + 1) if side % size == 0]
    scaled = {name: size * side / recipe.side for name, size in sizes.items()}
    return {name: min(divisors, key=lambda divisor: abs(divisor - size)) for name, size in scaled.items()}


def _precision(gpu: bool) -> str:
    """The precision that is fastest here, and trains."""
    if gpu:
        return "bf16-mixed" if torch.cuda.is_bf16_supported() else "16-mixed"
    has = torch.cpu.get_capabilities()
    return "bf16-mixed" if has.get("avx512_bf16") or has.get("amx_bf16") else "32-true"


def _run_name(data: type[SetDataModule], given: dict[str, str]) -> str:
    """The folder's name, or that of the data set."""
    folder = given.get("data.root", "") if issubclass(data, FolderSets) else ""
    name = local_path(folder, "--data.root").resolve().name if folder else ""
    return name if name.isprintable() and name.strip("._- ") else data.__name__


# -- what to expect ---------------------------------------------------------------------------------------------------


DTYPES = {"32-true": torch.float32, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
"""Types of autocast, by the precisions of which a step can be timed without a trainer."""

REPEATS = 3
"""Steps that are timed."""

ENOUGH_SECONDS = 10.0
"""After which no more steps are timed."""


def seconds_per_step(model: VFSDDPM, sets: int, dtype: torch.dtype, device: torch.device) -> float:
    """Median time of a training step of a copy of the model, after one to warm up.

    Args:
        model: one that takes sets alone; it stays as it is, as do the random number generators.
        sets: sets of a batch.
        dtype: of autocast; float32 is none.
        device: where it is measured.
    """
    shape = model.config.sets
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        timed = copy.deepcopy(model).to(device).train()
        step = TrainingStep(timed, timed.batch_loss, dtype)
        x_set = torch.zeros(sets, shape.set_size, shape.channels, shape.image_size, shape.image_size, device=device)
        times: list[float] = []
        while len(times) <= REPEATS and sum(times) < ENOUGH_SECONDS:
            start = time.perf_counter()
            step(x_set).item()
            times.append(time.perf_counter() - start)
    return median(times[1:] or times)


def duration(seconds: float) -> str:
    """A time in words: `40 minutes`, `2.5 hours`, `3.1 days`."""
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.{0 if unit == 'minutes' else 1}f} {unit}"
    return f"{seconds:.0f} seconds"


def expectation(model: VFSDDPM, data: SetDataModule, trainer: Trainer) -> str | None:
    """How long a run takes, by some steps on this machine; None if it has no end, or cannot be measured this way."""
    steps = trainer.max_steps
    if steps < 0 and trainer.max_epochs is not None and trainer.max_epochs > 0:
        steps = trainer.max_epochs * (data.sets_per_epoch // (data.batch_size * trainer.world_size))
    dtype = DTYPES.get(str(trainer.precision))
    if steps <= 0 or dtype is None or model.config.encoder.condition == "label":
        return None
    try:
        seconds = seconds_per_step(model, data.batch_size, dtype, trainer.strategy.root_device)
    except torch.OutOfMemoryError:
        return f"A step of {data.batch_size} sets does not fit the GPU's memory: set --batch_size below that."
    return (
        f"Time: about {duration(steps * seconds)} for {steps:,} steps of {seconds:.2g} s, as some took just now, "
        "without loading, validation and pictures; the progress bar has the time left."
    )
