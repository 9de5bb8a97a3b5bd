"""The model's side of an evaluation: what is asked of it, the state that it runs in, and whose weights it has."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lightning_vfs.core import contract, requests
from lightning_vfs.core.errors import EvaluationError
from lightning_vfs.core.files import file_sha256
from lightning_vfs.core.fingerprint import KEY, hashes_of
from lightning_vfs.core.sampling_config import SamplingConfig
from lightning_vfs.core.trust import reading
from lightning_vfs.data.images import ClassImages, Episodes
from lightning_vfs.data.module import SetDataModule
from lightning_vfs.evaluation.record import ModelRecord
from lightning_vfs.training.averaging import EMACallback
from lightning_vfs.training.torch_files import load_torch_file

AUTOCAST = {"16-mixed": torch.float16, "bf16-mixed": torch.bfloat16}
OWN_PRECISION = {
    torch.float64: "64-true", torch.float32: "32-true", torch.float16: "16-true", torch.bfloat16: "bf16-true"
}  # fmt: skip
"""Of a model's weights, in the words of Lightning's Trainer, as those of `AUTOCAST` are."""


def check_model(model: Any, data: SetDataModule, sampling: SamplingConfig) -> None:
    """Check that the model fits the data and can be sampled so; not before its checkpoint is loaded, which decides.

    Raises:
        SetSizeMismatchError: the data has sets of another size than the weights.
        ValueError: the data has images of another shape.
        ClassMismatchError: the training classes are not those of a class-conditional model.
        EvaluationError: more sampling steps than the diffusion has.
        ConfigError: guidance of a model without a null context.
    """
    model.check_set_size(data.set_size)
    shape = (1, data.set_size, data.channels, data.image_size, data.image_size)
    contract.check_batch(shape, model.config, "adapt")  # the size of sets is settled
    if model.config.encoder.condition == "label":
        contract.check_classes(data.split("train").class_names, getattr(model, "class_names", None), model.config)
    timesteps = model.config.diffusion.timesteps
    if sampling.steps > timesteps:
        raise EvaluationError(
            f"Sampling takes {sampling.steps} steps, but the diffusion has {timesteps}: set steps to at most "
            f"{timesteps}."
        )
    requests.check_guidance(sampling, model.config)


def shots_of(model: Any, data: SetDataModule) -> int:
    """Images in a support: as many as condition one generation in training, with sets of the data's size."""
    sets = model.config.sets
    return min(sets.shots, replace(sets, set_size=data.set_size).shots)


def conditions_of(model: Any, images: ClassImages, episodes: Episodes, rows: np.ndarray) -> dict[str, Tensor | None]:
    """What a model generates the images of episodes from: supports (m, shots, c, h, w), or labels (m,), or neither."""
    condition = model.config.encoder.condition
    return {
        "support": images.float(episodes.supports[rows]) if condition == "support" else None,
        "label": torch.from_numpy(episodes.labels[rows]) if condition == "label" else None,
    }


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Evaluation mode and no gradients inside; modes and the global random numbers are restored outside."""
    modes = {module: module.training for module in model.modules()}
    python, legacy = random.getstate(), np.random.get_state()
    on_cuda = {weight.device for weight in model.parameters() if weight.is_cuda and torch.cuda.is_initialized()}
    with torch.random.fork_rng(on_cuda), torch.no_grad():
        try:
            model.eval()
            yield
        finally:
            random.setstate(python)
            np.random.set_state(legacy)
            for module, training in modes.items():
                module.training = training


def model_record(model: Any, checkpoint: str | os.PathLike[str] | None = None) -> ModelRecord:
    """Whose weights a model has.

    Args:
        model: as loaded.
        checkpoint: the file that it was loaded from; without it the record has what the model itself knows.

    Raises:
        VFSError: the file cannot be read.
    """
    if checkpoint is None:
        sha256, options, of_run = None, {}, None
        # `origin` reads such as "averaged weights of step 400".
        kind, _, step = (getattr(model, "origin", None) or "").rpartition("weights of step ")
        averaged, global_step = kind == "averaged ", int(step) if step.isdigit() else None
    else:
        sha256 = file_sha256(checkpoint)
        with reading(checkpoint):
            state = load_torch_file(checkpoint)
            options = dict(state.get("callbacks", {}).get(EMACallback.__qualname__, {}))
        of_run = state.get(KEY)
        averaged = "averaging_state" in state and not getattr(model, "takes_raw_weights", False)
        global_step = state.get("global_step")
    return ModelRecord(
        checkpoint=None if checkpoint is None else str(checkpoint),
        checkpoint_sha256=sha256,
        global_step=global_step,
        weights="averaged" if averaged else "raw",
        averaging_decay=options.get("decay"),
        averaging_warmup=options.get("warmup"),
        autoencoder_sha256=model.autoencoder.weights_sha256 if model.config.latent.autoencoder else None,
        **hashes_of(of_run)._asdict(),
    )
