"""What the page of `lightning-vfs demo` does: models, supports, images step by step, comparisons and downloads."""

from __future__ import annotations

import html
import queue
import secrets
import shlex
import shutil
import tempfile
import threading
import time
import traceback
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from lightning_vfs.commands.models import load_model
from lightning_vfs.core.checks import check_whole_number
from lightning_vfs.core.errors import ConfigError, DataError, EvaluationError, VFSError
from lightning_vfs.core.files import local_path
from lightning_vfs.core.samplers import SAMPLERS
from lightning_vfs.core.sampling_config import SamplerName, SamplingConfig
from lightning_vfs.data import load_support
from lightning_vfs.data.decode import FORMATS, is_image
from lightning_vfs.data.pictures import sample_grid, save_png, to_uint8
from lightning_vfs.metrics.thumbnails import distances, thumbnails
from lightning_vfs.modules import VFSDDPM
from lightning_vfs.training.nonfinite import why_not_finite
from lightning_vfs.training.pretrained import BOXED, BOXED_NAMES

MOST_IMAGES, MOST_STEPS, MOST_PICTURES = 16, 250, 50
"""Images that are generated at a time, steps they take, and pictures in a support that somebody drops."""

MOST_BYTES, MOST_PIXELS = 10_000_000, 50_000_000
"""Size of a picture that somebody drops."""

MODELS_KEPT = 3
FRAMES = 12
"""Pictures of a generation that are shown before the images."""

DOWNLOAD_SECONDS = 600
"""Time for which the files of a download stay."""


@dataclass(frozen=True)
class Order:
    """What a visitor asks for.

    Args:
        model: a name that `Studio.names` has, or any if the studio takes any.
        support: files of pictures of one class.
        shots: pictures of the support that are used, the first ones.
        num_images, steps, guidance_scale, sampler, seed: as for `VFSDDPM.sample`.
    """

    model: str
    support: Sequence[str | Path] = ()
    shots: int = 5
    num_images: int = 8
    steps: int = 50
    guidance_scale: float = 1.0
    sampler: SamplerName = "ddim"
    seed: int = 0


class Frame(NamedTuple):
    """A generation after some steps.

    Attributes:
        done: steps that it has taken, of `steps`.
        images: as they are predicted then, at the end as generated: (m, c, h, w) in [-1, 1].
        support: that conditions it, (k, c, h, w) in [-1, 1]; None for a model that takes none.
    """

    done: int
    steps: int
    images: Tensor
    support: Tensor | None


class Studio:
    """Models, and what visitors may do with them; several may do so at once.

    Args:
        models: names of models that visitors choose among: `glyphs`, folders, checkpoints, ids of the hub.
        any_model: visitors may name others, too, which reads files of this machine and downloads.
        device: that images are generated on.

    Raises:
        VFSError: the first model cannot be loaded.
    """

    def __init__(self, models: Sequence[str], any_model: bool = False, device: str = "cpu") -> None:
        if not models:
            raise ConfigError("Give at least one model: --models glyphs, a folder, a checkpoint or a hub id.")
        self.names, self.any_model, self.device = list(models), any_model, device
        self._loaded: OrderedDict[str, VFSDDPM] = OrderedDict()
        self._loading = threading.Lock()
        self._folder = tempfile.TemporaryDirectory(prefix="lightning-vfs-demo-")
        self.model(self.names[0])

    def model(self, name: str) -> VFSDDPM:
        """A model by its name, loaded once while it is in use.

        Raises:
            VFSError: visitors may not choose it, or it cannot be loaded.
        """
        if name not in self.names and not self.any_model:
            raise ConfigError(f"There is no model {name} here; choose one of {', '.join(self.names)}.")
        with self._loading:
            if name not in self._loaded:
                checkpoint = is_checkpoint(name)
                model = load_model(name if checkpoint else None, None if checkpoint else name, None)
                model.use_device(torch.device(self.device))
                self._loaded[name] = model.to(self.device).eval()
            self._loaded.move_to_end(name)
            while len(self._loaded) > MODELS_KEPT:
                self._loaded.popitem(last=False)
            return self._loaded[name]

    def support(self, order: Order) -> Tensor | None:
        """Pictures of a support (k, c, h, w) in [-1, 1], decoded as in training.

        Raises:
            DataError: there is none, or a file is not a picture, or too large.
            ConfigError: the model is conditioned on a label, or the number of shots is out of range.
        """
        config = self.model(order.model).config
        if config.encoder.condition == "label":
            raise ConfigError(f"{order.model} takes a label, not pictures: use `lightning-vfs sample --label`.")
        if config.encoder.condition is None:
            return None
        files = [Path(file) for file in order.support]
        if not files:
            raise DataError("Drop at least one picture of a class, draw one, or take an example.")
        if len(files) > MOST_PICTURES:
            raise DataError(f"{len(files)} pictures are too many: drop at most {MOST_PICTURES}.")
        check_whole_number("Shots", order.shots, 1)
        for file in files:
            check_picture(file)
        return load_support(files[: min(order.shots, config.sets.shots)], config.sets.image_size, config.sets.channels)

    def frames(self, order: Order) -> Iterator[Frame]:
        """The images of an order, step by step; the last frame has those that are generated.

        A visitor who leaves closes the iterator, which ends the generation.

        Raises:
            VFSError, ValueError: the order cannot be carried out.
        """
        check_order(order)
        model, support = self.model(order.model), self.support(order)
        steps = min(order.steps, model.config.diffusion.timesteps)
        sampling = SamplingConfig(steps, order.sampler, 0.0, order.guidance_scale)
        every = max(1, steps // FRAMES)
        results: queue.SimpleQueue[Frame | BaseException] = queue.SimpleQueue()
        gone = threading.Event()

        def on_step(left: int, images: Tensor) -> None:
            if gone.is_set():
                raise InterruptedError
            if left and left % every == 0:
                results.put(Frame(steps - left, steps, images.cpu(), support))

        def work() -> None:
            try:
                how: dict[str, Any] = {"seed": order.seed, "batch_size": order.num_images, "on_step": on_step}
                (images,) = model.sample_batches(support, order.num_images, sampling, **how)
                if not images.isfinite().all():
                    raise EvaluationError(f"The images are not finite: {why_not_finite(model)}.")
                results.put(Frame(steps, steps, images.cpu(), support))
            except BaseException as error:  # told where it is awaited
                results.put(error)

        threading.Thread(target=work, daemon=True).start()
        try:
            while True:
                result = results.get()
                if isinstance(result, BaseException):
                    raise result
                yield result
                if result.done == result.steps:
                    return
        finally:
            gone.set()

    def images(self, order: Order) -> Frame:
        """The last frame of an order."""
        *_, last = self.frames(order)
        return last

    def compare(self, order: Order, other: Sequence[str | Path]) -> tuple[Image.Image, str]:
        """Images beside the pictures they could copy, and beside images from another support with the same noise.

        Returns:
            A picture: the support and its images; below, for each image the picture of the support nearest to it; and,
            if there is another support, this and its images. And what the distances say.
        """
        mine = self.images(order)
        if mine.support is None:
            raise ConfigError(f"{order.model} takes no pictures, so there is nothing to compare with.")
        rows, said = [(mine.support, mine.images)], []
        thumbs, given = (thumbnails(to_uint8(images)) for images in (mine.images, mine.support))
        apart = distances(thumbs, given)
        rows.append((mine.support, mine.support[apart.argmin(dim=1)]))
        nearest = apart.amin(dim=1)
        said.append(
            f"The images are {nearest.mean():.1f} grey levels from the nearest picture that was given, the nearest one "
            f"{nearest.min():.1f}."
        )
        if len(given) > 1:
            between = distances(given, given)
            mean = between.sum() / (len(given) * (len(given) - 1))
            said.append(f"The pictures that were given are {mean:.1f} from each other; copies of them would be at 0.")
        if other:
            others = self.images(Order(**{**vars(order), "support": other}))
            assert others.support is not None
            rows.append((others.support, others.images))
            moved = (others.images - mine.images).abs().mean() * 127.5
            said.append(f"With the other pictures the same noise gives images that differ by {moved:.1f} grey levels.")
        return picture_of(rows), " ".join(said)

    def download(self, order: Order, frame: Frame) -> Path:
        """A zip file with the images, the support, and the command that makes them again."""
        downloads = Path(self._folder.name, "downloads")
        downloads.mkdir(exist_ok=True)
        for old in downloads.iterdir():
            if time.time() - old.stat().st_mtime > DOWNLOAD_SECONDS:
                shutil.rmtree(old, ignore_errors=True)
        folder = downloads / secrets.token_hex(8)
        for i, image in enumerate(to_uint8(frame.images)):
            save_png(image, folder / "images" / f"{i:04d}.png")
        for i, image in enumerate(to_uint8(frame.support) if frame.support is not None else ()):
            save_png(image, folder / "images" / "support" / f"{i}.png")
        (folder / "images" / "command.txt").write_text(command_of(order, frame) + "\n")
        return Path(shutil.make_archive(str(folder / "images"), "zip", folder / "images"))

    def examples(self) -> dict[str, list[Path]]:
        """Supports to try, by their names: those that come with the model in the package, copied for the page."""
        found = {}
        for name in BOXED_NAMES:
            for folder in sorted((BOXED / name / "examples").glob("*")):
                copied = Path(self._folder.name, "examples", name, folder.name)
                shutil.copytree(folder, copied, dirs_exist_ok=True)
                found[f"{name} {int(folder.name) + 1}"] = sorted(copied.glob("*.png"))
        return found


def is_checkpoint(name: str) -> bool:
    """Whether a model's name is that of a Lightning checkpoint, and not of a folder or a hub id."""
    return name.endswith(".ckpt") or local_path(name, "The model").is_file()


def check_order(order: Order) -> None:
    """Raise ConfigError where numbers are out of the range that a visitor may ask for."""
    for name, value, most in (
        ("Images", order.num_images, MOST_IMAGES),
        ("Steps", order.steps, MOST_STEPS),
    ):
        check_whole_number(name, value, 1)
        if value > most:
            raise ConfigError(f"{name} is {value}; here it is at most {most}.")
    if order.sampler not in SAMPLERS:  # a path of a custom one would choose which code runs here
        raise ConfigError(f"The sampler is {order.sampler!r}; here it is {', '.join(SAMPLERS)}.")
    if isinstance(order.seed, bool) or not isinstance(order.seed, int) or not 0 <= order.seed < 2**63:
        raise ConfigError(f"Seed is {order.seed}; it must be a whole number of 0 or more.")


def check_picture(file: Path) -> None:
    """Look at a picture before it is decoded.

    Raises:
        DataError: it is not a picture that training takes, or too large.
    """
    name = file.name
    if not file.is_file() or not is_image(file):
        raise DataError(f"{name} is not a picture: drop PNG, JPEG, WebP or another format of pictures.")
    if file.stat().st_size > MOST_BYTES:
        raise DataError(f"{name} has {file.stat().st_size:,} bytes; a picture may have {MOST_BYTES:,}.")
    try:
        with Image.open(file, formats=tuple(FORMATS & Image.OPEN.keys())) as image:
            if image.width * image.height > MOST_PIXELS:
                raise DataError(f"{name} is {image.width} x {image.height}; a picture may have {MOST_PIXELS:,} pixels.")
    except DataError:
        raise
    except Exception as error:  # Pillow's readers raise nearly anything on damaged files
        raise DataError(f"{name} cannot be read as a picture; it may be damaged. Drop another one.") from error


def command_of(order: Order, frame: Frame) -> str:
    """The command that makes the images of an order again, beside the support that comes with the download."""
    parts = ["lightning-vfs", "sample", "--ckpt_path" if is_checkpoint(order.model) else "--pretrained", order.model]
    parts += [] if frame.support is None else ["--support", "support"]
    parts += ["--num_images", str(order.num_images), "--steps", str(frame.steps), "--sampler", str(order.sampler)]
    parts += ["--guidance_scale", f"{order.guidance_scale:g}", "--seed", str(order.seed), "--out", "out"]
    return shlex.join(parts)


def result_of(order: Order, frame: Frame) -> str:
    """What was done, and which of the pictures were left out."""
    given, left_out = len(order.support), ""
    if frame.support is None and given:
        left_out = ", without the pictures: this model takes none"
    elif frame.support is not None and len(frame.support) < given:
        left_out = f", from the first {len(frame.support)} of {given} pictures"
    return f"{len(frame.images)} images in {frame.steps} steps{left_out}"


def picture_of(rows: Sequence[tuple[Tensor, Tensor]]) -> Image.Image:
    """Supports (k, c, h, w) on the left, images (m, c, h, w) on the right; missing pictures are white."""
    columns = max(len(support) for support, _ in rows)
    supports = torch.stack([torch.cat([s, s.new_ones(columns - len(s), *s.shape[1:])]) for s, _ in rows])
    grid = sample_grid(supports, torch.stack([images for _, images in rows]))
    return Image.fromarray(grid.permute(1, 2, 0).numpy())


def pictures(images: Tensor, size: int = 128) -> list[Image.Image]:
    """Images (m, c, h, w) in [-1, 1], enlarged by a whole factor to about this many pixels."""
    factor = max(1, size // images.shape[-1])
    large = to_uint8(images).repeat_interleave(factor, dim=2).repeat_interleave(factor, dim=3)
    return [Image.fromarray(image.expand(3, -1, -1).permute(1, 2, 0).numpy()) for image in large]


def side_by_side(images: Tensor, columns: int = 4) -> Image.Image:
    """Images (m, c, h, w) in [-1, 1] as one picture; missing ones are white."""
    rows = -(-len(images) // columns)
    filled = torch.cat([images, images.new_ones(rows * columns - len(images), *images.shape[1:])])
    return Image.fromarray(sample_grid(None, filled.unflatten(0, (rows, -1)), 128).permute(1, 2, 0).numpy())


def in_a_sentence(error: Exception) -> str:
    """What the page says of an error, as HTML; what nobody has foreseen goes to the server's log alone."""
    if not isinstance(error, VFSError | ValueError):
        traceback.print_exception(error)
        return "Something went wrong on the server, whose log has the details."
    return html.escape(" ".join(str(error).split())[:600])
