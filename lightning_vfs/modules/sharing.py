"""Sharing a model on the Hugging Face hub, with its card."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from lightning_vfs.core.errors import CheckpointError, ConfigError
from lightning_vfs.core.files import local_path, replacing
from lightning_vfs.data.pictures import save_png
from lightning_vfs.modules.contracted import SetContractModule
from lightning_vfs.training import hub
from lightning_vfs.training.model_card import CARD, PICTURE, CardText, Evaluated, model_card
from lightning_vfs.training.pretrained import save_pretrained

RECORD = "fid.json"
LARGEST_PICTURE = 4096
"""Pixels of a side of the card's picture."""


def write_shared(
    model: SetContractModule,
    folder: str | Path,
    repo_id: str,
    *,
    text: CardText = CardText(),
    record: Evaluated | None = None,
    picture: Tensor | str | Path | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Write what a model's repository on the hub holds: weights, configuration, card, record and picture.

    Args:
        model: with the weights to share.
        folder: made if necessary.
        repo_id: the model's id on the hub, or its name: what `from_pretrained` takes, for the card.
        text: what its author says, for the card.
        record: of its evaluation, as `EvaluationRecord.read` or `evaluate` gives it.
        picture: generated images, a PNG file or uint8 (1 or 3, H, W), as `sample_grid` makes it.
        dtype: of the weights in the file; by default their own.

    Raises:
        ConfigError: the picture cannot be read, or huggingface_hub is not installed.
        CheckpointError: weights that are not finite.
    """
    folder = local_path(folder, "The folder")
    weights = model.state_dict()
    broken = [name for name, weight in weights.items() if not weight.isfinite().all()]
    if broken:
        raise CheckpointError(
            f"{len(broken)} of the model's {len(weights)} weights are not finite, the first is {broken[0]}: share an "
            "earlier checkpoint."
        )
    card = model_card(model.config, repo_id, text, record, getattr(model, "origin", None), picture is not None)
    drawn = None if picture is None else _checked_picture(picture)
    save_pretrained(model.config, weights, folder, dtype)
    with replacing(folder / CARD) as temporary:
        temporary.write_text(card, encoding="utf-8")
    if record is not None:
        record.write(folder / RECORD)
    if isinstance(drawn, Tensor):
        save_png(drawn, folder / PICTURE)
    elif drawn is not None:
        with replacing(folder / PICTURE) as temporary:
            drawn.save(temporary, format="PNG")


def push(
    model: SetContractModule,
    repo_id: str,
    commit_message: str,
    private: bool | None,
    token: str | bool | None,
    branch: str | None,
    create_pr: bool | None,
    text: CardText,
    record: Evaluated | None,
    picture: Tensor | str | Path | None,
) -> str:
    """As `VFSDDPM.push_to_hub`: everything is written to a temporary folder before the hub is asked."""
    hub.check_repo_id(repo_id)
    with tempfile.TemporaryDirectory() as folder:
        write_shared(model, folder, repo_id, text=text, record=record, picture=picture)
        return hub.upload(Path(folder), repo_id, commit_message, private, token, branch, create_pr)


def _checked_picture(picture: Tensor | str | Path) -> Tensor | Image.Image:
    """The picture, of a file without its metadata.

    Raises:
        ConfigError: it cannot be read, is too large, or of another type.
    """
    if isinstance(picture, Tensor):
        if picture.dtype != torch.uint8 or picture.ndim != 3 or picture.shape[0] not in (1, 3):
            raise ConfigError(
                f"picture is {picture.dtype} {tuple(picture.shape)}; it must be uint8 (1 or 3, H, W), as `sample_grid` "
                "makes it, or a file."
            )
        return picture
    file = local_path(picture, "picture")
    try:
        with Image.open(file) as image:
            if max(image.size) > LARGEST_PICTURE:
                raise ValueError(f"it has {image.width} x {image.height} pixels, at most {LARGEST_PICTURE} a side go")
            return image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ConfigError(f"picture is {file}, which cannot be read as an image: {error}") from error
