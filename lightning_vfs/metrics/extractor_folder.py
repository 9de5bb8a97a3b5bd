"""Feature extractors as folders: `model.safetensors`, and what it was trained on in `card.json` and `README.md`."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY

from lightning_vfs.core.checks import check_whole_number
from lightning_vfs.core.errors import ConfigError, EvaluationError
from lightning_vfs.core.files import file_sha256, local_path, read_json, replacing, try_folder
from lightning_vfs.metrics.classifier import LARGEST, SMALLEST, Classifier

WEIGHTS, CARD, README = "model.safetensors", "card.json", "README.md"
FORMAT = 1
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def is_folder(name: str) -> bool:
    """Whether a feature extractor is given by its folder and not by a name of torch-fidelity's registry."""
    return name not in FEATURE_EXTRACTORS_REGISTRY and (
        os.sep in name or "/" in name or name.startswith((".", "~")) or local_path(name, "feature_extractor").is_dir()
    )


def check_name(name: str) -> None:
    """Refuse a name that could not be part of a figure's, or is that of another extractor.

    Raises:
        ConfigError: what is allowed.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"The extractor's name is {name!r}; it is part of the names of figures, and has up to 64 letters, digits, "
            "dots, hyphens and underscores. Set --name."
        )
    if name in FEATURE_EXTRACTORS_REGISTRY:
        raise ConfigError(f"The name {name!r} is that of another extractor: choose another one by --name.")


def save_extractor(classifier: Classifier, card: Mapping[str, Any], folder: Path) -> None:
    """Write a trained classifier and its card to a new folder, which appears complete.

    Args:
        classifier: the network.
        card: what it was trained on, as plain values.
        folder: must not exist, or be empty.

    Raises:
        ConfigError: there is something already.
        OSError: it cannot be written.
    """
    check_new(folder)
    tensors = {name: value.detach().cpu().contiguous() for name, value in classifier.state_dict().items()}
    with replacing(folder) as temporary:
        with replacing(temporary / WEIGHTS) as weights:
            save_file(tensors, weights)
        whole = {
            "format": FORMAT,
            "channels": classifier.channels,
            "image_size": classifier.image_size,
            "num_classes": classifier.num_classes,
            "weights_sha256": file_sha256(temporary / WEIGHTS),
            **card,
        }
        (temporary / CARD).write_text(json.dumps(whole, indent=2) + "\n")
        (temporary / README).write_text(_readme(whole))


def check_new(folder: Path) -> None:
    """Refuse a folder for an extractor that cannot be written, or holds something.

    Raises:
        ConfigError: what to do.
    """
    try:
        if folder.is_dir() and any(folder.iterdir()):
            raise ConfigError(f"{folder} holds something already: name a new folder for the extractor.")
        if folder.exists() and not folder.is_dir():
            raise ConfigError(f"{folder} is a file: name a new folder for the extractor.")
        try_folder(folder)
    except OSError as error:
        raise ConfigError(f"{folder} cannot be written to: {error}. Choose another folder.") from error


def load_extractor(folder: str | os.PathLike[str]) -> tuple[Classifier, dict[str, Any]]:
    """The classifier of a folder, in evaluation mode, and its card. Nothing in the folder is run or unpickled.

    Raises:
        EvaluationError: it is not such a folder, or damaged; the message names the file.
    """
    path = local_path(folder, "feature_extractor")
    for name in (CARD, WEIGHTS):
        if not (path / name).is_file():
            raise EvaluationError(
                f"feature_extractor is {path}, but there is no {path / name}: give the folder that `lightning-vfs "
                f"extractor fit` wrote, or a name; known: {', '.join(FEATURE_EXTRACTORS_REGISTRY)}."
            )
    try:
        card = _checked(read_json(path / CARD))
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        reason = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else str(error)
        raise EvaluationError(f"{path / CARD} is not the card of an extractor ({reason}). Train it again.") from error
    try:
        return _network(path / WEIGHTS, card), card
    except Exception as error:  # safetensors raises several kinds on damaged files
        raise EvaluationError(
            f"{path / WEIGHTS} does not hold the weights that {CARD} describes: it is damaged, or of another network "
            f"({(str(error).splitlines() or [type(error).__name__])[0][:300]}). Train it again."
        ) from error


def _checked(card: Any) -> dict[str, Any]:
    """The card, with values that a network can be made of."""
    if not isinstance(card, dict):
        raise TypeError("it is not a mapping")
    if card["format"] != FORMAT:
        raise ValueError(f"its format is {card['format']!r}, and this version reads {FORMAT}")
    if not isinstance(card["name"], str):
        raise TypeError("its name is not text")
    check_name(card["name"])
    for name, least in (("channels", 1), ("image_size", SMALLEST), ("num_classes", 2)):
        check_whole_number(name, card[name], least)
    if card["channels"] not in (1, 3) or card["image_size"] > LARGEST:
        raise ValueError(f"images of {card['channels']} channels and {card['image_size']} pixels a side")
    if not all(isinstance(name, str) for name in card["classes"]):
        raise TypeError("its classes are not text")
    return card


def remarks(card: Mapping[str, Any], unseen: Sequence[str], channels: int) -> list[str]:
    """What a reader of figures in an extractor's features has to know.

    Args:
        card: of the extractor.
        unseen: classes that are evaluated as ones that no model was trained on.
        channels: of the images.
    """
    found, known = [], set(card["classes"]).intersection(unseen)
    if known:
        found.append(
            f"{card['name']} was trained on {len(known):,} of the {len(unseen):,} classes that are evaluated as "
            "unseen: it knows them better than a model may. Train it on the same split (--data.split_seed)."
        )
    if card["channels"] == 1 and channels == 3:
        found.append(f"{card['name']} sees images in grey: its figures say nothing of colours.")
    return found


def _network(path: Path, card: Mapping[str, Any]) -> Classifier:
    with torch.device("meta"):  # takes no memory, whatever the card says
        expected = Classifier(card["num_classes"], card["channels"], card["image_size"])
    shapes = {name: list(value.shape) for name, value in expected.state_dict().items()}
    with safe_open(path, "pt") as file:
        found = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 - not a mapping
        if different := sorted(name for name in {*shapes, *found} if shapes.get(name) != found.get(name)):
            name = different[0]
            raise ValueError(f"{name} is {found.get(name)}, expected {shapes.get(name)}")
        weights = {name: file.get_tensor(name) for name in shapes}
    if file_sha256(path) != card.get("weights_sha256"):
        raise ValueError("its SHA-256 is not that of the card")
    if not all(value.isfinite().all() for value in weights.values()):
        raise ValueError("it has weights that are not finite")
    classifier = Classifier(card["num_classes"], card["channels"], card["image_size"])
    classifier.load_state_dict(weights)
    return classifier.eval()


def _readme(card: Mapping[str, Any]) -> str:
    data = card.get("data", {})
    rows = {
        "trained on": f"{card['images']:,} images of {card['num_classes']:,} classes: the train split of "
        f"{data.get('class', 'a data set')}",
        "images": f"{card['image_size']} x {card['image_size']}, {'grey' if card['channels'] == 1 else 'RGB'}; others "
        "are resized",
        "accuracy": f"{card['accuracy']:.1%} on {card['held_out']:,} held-out images of the training classes "
        f"(chance {card['chance']:.2%})",
        "features": "64 (`features`), and the classes' logits for the Inception score",
        "training": f"{card['epochs']} epochs, seed {card['seed']}, {card['seconds']:.0f} s",
        "weights": f"`{WEIGHTS}`, SHA-256 {card['weights_sha256']}",
        "versions": ", ".join(f"{name} {version}" for name, version in card["versions"].items()),
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    return f"""# Feature extractor {card["name"]}

A small classifier of images, trained by `lightning-vfs extractor fit`. Figures of `FIDCallback` and `lightning-vfs
evaluate` in its features (`feature_extractor: path/to/this/folder`) are called `fid[{card["name"]}]/out` and so on.
They can be compared only with figures of the same weights, and say little about other kinds of images.

| | |
| --- | --- |
{table}

The classes, and all that decides which images they have, are in `{CARD}`.
"""
