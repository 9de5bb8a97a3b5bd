"""A pipeline of diffusers around a model, in the form of `custom_pipeline`: its pictures are those of `sample`."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput, ModelMixin
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from lightning_vfs.core.errors import ConfigError
from lightning_vfs.core.files import local_path, replacing
from lightning_vfs.core.sampling_config import SamplerName, SamplingConfig
from lightning_vfs.data import load_support
from lightning_vfs.data.pictures import to_uint8
from lightning_vfs.modules import VFSDDPM

PIPELINE = '''"""Few-shot image generation by lightning_vfs, for diffusers: pip install 'lightning_vfs[diffusers]'."""

from lightning_vfs.interop.diffusers_pipeline import FewShotPipeline as _FewShotPipeline


class FewShotPipeline(_FewShotPipeline):
    """New images of the class that a few images show."""
'''


class FewShotModel(ModelMixin):
    """A VFSDDPM as a component of a pipeline: a folder with `model.safetensors` and `config.json`.

    Args:
        model: on any device.
    """

    config_name = "config.json"

    def __init__(self, model: VFSDDPM) -> None:
        super().__init__()
        self.model = model.eval()

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], torch_dtype: torch.dtype | None = None, **_: Any
    ) -> FewShotModel:
        """Model of a folder; diffusers' options for loading in parts do not apply to one of this size."""
        model = VFSDDPM.from_pretrained(Path(pretrained_model_name_or_path))
        return cls(model if torch_dtype is None else model.to(torch_dtype))

    def save_pretrained(self, save_directory: str | os.PathLike[str], **_: Any) -> None:
        """Write the folder that `from_pretrained` and `VFSDDPM.from_pretrained` read."""
        self.model.save_pretrained(Path(save_directory))


class FewShotPipeline(DiffusionPipeline):
    """New images of the class that a few images show.

    Args:
        model: a FewShotModel.
    """

    # Type checkers take diffusers' stand-in, which has none of its members, for the class.
    model: FewShotModel
    register_modules: Any
    progress_bar: Any
    save_pretrained: Any

    def __init__(self, model: FewShotModel) -> None:
        super().__init__()
        self.register_modules(model=model)

    @torch.no_grad()
    def __call__(
        self,
        support: Tensor | str | os.PathLike[str] | Sequence[Image.Image] | None = None,
        num_images: int = 16,
        num_inference_steps: int = 50,
        guidance_scale: float = 1.0,
        sampler: SamplerName = "ddim",
        eta: float = 0.0,
        seed: int = 0,
        label: int | None = None,
        batch_size: int = 64,
        output_type: Literal["pil", "np", "pt"] = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Generate images, those that `VFSDDPM.sample` gives for the same options.

        Args:
            support: images of one class, as many as the model takes at most: PIL images, a folder, or (k, c, h, w) in
                [-1, 1]; None for a model that takes none.
            num_images: images to generate.
            num_inference_steps: steps of the sampler.
            guidance_scale: of classifier-free guidance; 1 is none.
            sampler: ddim, ddpm or dpmpp_2m.
            eta: of DDIM.
            seed: of the noise, which depends on it and an image's number alone, as nowhere else in diffusers.
            label: a training class, for a class-conditional model.
            batch_size: images generated at a time.
            output_type: `pil`, `np` (m, h, w, c) in [0, 1], or `pt` (m, c, h, w) in [0, 1].
            return_dict: an object with `images`, or a tuple of them.

        Raises:
            ConfigError, ValueError: as in `VFSDDPM.sample`, or an unknown output_type.
        """
        if output_type not in ("pil", "np", "pt"):
            raise ConfigError(f"output_type is {output_type!r}; allowed: 'pil', 'np', 'pt'.")
        model: VFSDDPM = self.model.model
        given = support if support is None or isinstance(support, Tensor) else self._decoded(support)
        sampling = SamplingConfig(num_inference_steps, sampler, eta, guidance_scale)
        made = []
        with self.progress_bar(total=num_images) as bar:
            for part in model.sample_batches(
                given, num_images, sampling, seed=seed, label=label, batch_size=batch_size
            ):
                made.append(part.cpu())
                bar.update(len(part))
        generated = torch.cat(made)
        images: Any
        if output_type == "pil":
            images = [to_pil_image(image) for image in to_uint8(generated)]
        else:
            images = (generated.float() + 1) / 2
            images = images.permute(0, 2, 3, 1).numpy() if output_type == "np" else images
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _decoded(self, support: str | os.PathLike[str] | Sequence[Image.Image]) -> Tensor:
        """Images (k, c, h, w) in [-1, 1], decoded as in training."""
        sets = self.model.model.config.sets
        if isinstance(support, str | os.PathLike):
            return load_support(support, sets.image_size, sets.channels)
        with tempfile.TemporaryDirectory() as folder:
            files = [Path(folder, f"{i:06d}.png") for i in range(len(support))]
            for file, image in zip(files, support, strict=True):
                ImageOps.exif_transpose(image).save(file)
            return load_support(files, sets.image_size, sets.channels)


def to_diffusers(model: VFSDDPM, folder: str | os.PathLike[str]) -> None:
    """Write a folder that diffusers loads: `DiffusionPipeline.from_pretrained(folder, custom_pipeline=folder)`.

    It holds `model_index.json`, `pipeline.py`, which needs lightning_vfs, and the model in `model/`, which
    `VFSDDPM.from_pretrained` reads, too.

    Args:
        model: with the weights to write.
        folder: made if necessary.

    Raises:
        ConfigError: a model of latents, or the folder holds something else.
    """
    if model.config.latent.autoencoder:
        raise ConfigError("A model of latents needs its autoencoder's folder: use it by lightning_vfs, not diffusers.")
    target = local_path(folder, "The folder")
    FewShotPipeline(FewShotModel(model)).save_pretrained(target)
    with replacing(target / "pipeline.py") as temporary:
        temporary.write_text(PIPELINE)
    index = json.loads((target / "model_index.json").read_text()) | {"_class_name": ["pipeline", "FewShotPipeline"]}
    with replacing(target / "model_index.json") as temporary:
        temporary.write_text(json.dumps(index, indent=2) + "\n")
