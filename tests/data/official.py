"""Small files in the forms in which data sets were published, with images whose pixels say which they are."""

from __future__ import annotations

import csv
import io
import pickle
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

OMNIGLOT = {
    "background": (
        "Alphabet_of_the_Magi 20, Anglo-Saxon_Futhorc 29, Arcadian 26, Armenian 41, Asomtavruli_(Georgian) 40, "
        "Balinese 24, Bengali 46, Blackfoot_(Canadian_Aboriginal_Syllabics) 14, Braille 26, Burmese_(Myanmar) 34, "
        "Cyrillic 33, Early_Aramaic 22, Futurama 26, Grantha 43, Greek 24, Gujarati 48, Hebrew 22, "
        "Inuktitut_(Canadian_Aboriginal_Syllabics) 16, Japanese_(hiragana) 52, Japanese_(katakana) 47, Korean 40, "
        "Latin 26, Malay_(Jawi_-_Arabic) 40, Mkhedruli_(Georgian) 41, N_Ko 33, "
        "Ojibwe_(Canadian_Aboriginal_Syllabics) 14, Sanskrit 42, Syriac_(Estrangelo) 23, Tagalog 17, Tifinagh 55"
    ),
    "evaluation": (
        "Angelic 20, Atemayar_Qelisayer 26, Atlantean 26, Aurek-Besh 26, Avesta 26, Ge_ez 26, Glagolitic 45, "
        "Gurmukhi 45, Kannada 41, Keble 26, Malayalam 47, Manipuri 40, Mongolian 30, Old_Church_Slavonic_(Cyrillic) 45,"
        " Oriya 46, Sylheti 28, Syriac_(Serto) 23, Tengwar 25, Tibetan 42, ULOG 26"
    ),
    "background_small1": "Balinese 24, Early_Aramaic 22, Greek 24, Korean 40, Latin 26",
    "background_small2": "Greek 24, Japanese_(katakana) 47, Latin 26, Sanskrit 42, Tagalog 17",
}
"""Alphabets of the official sets, with their numbers of characters."""

CIFAR100 = """
aquatic_mammals: beaver dolphin otter seal whale
fish: aquarium_fish flatfish ray shark trout
flowers: orchid poppy rose sunflower tulip
food_containers: bottle bowl can cup plate
fruit_and_vegetables: apple mushroom orange pear sweet_pepper
household_electrical_devices: clock keyboard lamp telephone television
household_furniture: bed chair couch table wardrobe
insects: bee beetle butterfly caterpillar cockroach
large_carnivores: bear leopard lion tiger wolf
large_man-made_outdoor_things: bridge castle house road skyscraper
large_natural_outdoor_scenes: cloud forest mountain plain sea
large_omnivores_and_herbivores: camel cattle chimpanzee elephant kangaroo
medium_mammals: fox porcupine possum raccoon skunk
non-insect_invertebrates: crab lobster snail spider worm
people: baby boy girl man woman
reptiles: crocodile dinosaur lizard snake turtle
small_mammals: hamster mouse rabbit shrew squirrel
trees: maple_tree oak_tree palm_tree pine_tree willow_tree
vehicles_1: bicycle bus motorcycle pickup_truck train
vehicles_2: lawn_mower rocket streetcar tank tractor
"""
"""Superclasses with their classes."""


def png(grey: int, size: int = 8, mode: str = "L") -> bytes:
    """A picture of one grey value."""
    file = io.BytesIO()
    Image.new("L", (size, size), grey).convert(mode).save(file, format="PNG")
    return file.getvalue()


def jpeg(grey: int, size: int = 8) -> bytes:
    """A picture of one grey value, near enough."""
    file = io.BytesIO()
    Image.new("RGB", (size, size), (grey,) * 3).save(file, format="JPEG", quality=95)
    return file.getvalue()


def write_zip(path: Path, files: Mapping[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def write_tar(path: Path, files: Mapping[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz" if path.name.endswith("gz") else "w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def write_folder(path: Path, files: Mapping[str, bytes]) -> Path:
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


def omniglot(name: str, alphabets: Mapping[str, int] | None = None, drawings: int = 2) -> dict[str, bytes]:
    """Members of images_<name>.zip: by default all its characters; drawing j has the value 10 * character + j."""
    if alphabets is None:
        pairs = [part.strip().rsplit(" ", 1) for part in OMNIGLOT[name].split(",")]
        alphabets = {alphabet: int(count) for alphabet, count in pairs}
    return {
        f"images_{name}/{alphabet}/character{i:02d}/{1 + i:04d}_{j + 1:02d}.png": png((10 * i + j) % 256)
        for alphabet, count in alphabets.items()
        for i in range(1, count + 1)
        for j in range(drawings)
    }


def cifar100(train: int = 2, test: int = 1) -> dict[str, bytes]:
    """Members of cifar-100-python.tar.gz with so many images of every class, of the value of its label."""
    above = {name: i for i, line in enumerate(CIFAR100.strip().splitlines()) for name in line.split(": ")[1].split()}
    fine = sorted(above)

    def batch(each: int) -> dict[str, object]:
        labels = [label for _ in range(each) for label in range(100)]
        return {
            "filenames": [f"{fine[label]}.png" for label in labels],
            "batch_label": "a batch",
            "fine_labels": labels,
            "coarse_labels": [above[fine[label]] for label in labels],
            "data": np.repeat(np.array(labels, dtype=np.uint8)[:, None], 3072, axis=1),
        }

    superclasses = [line.split(":")[0] for line in CIFAR100.strip().splitlines()]
    contents = {
        "meta": {"fine_label_names": fine, "coarse_label_names": superclasses},
        "train": batch(train),
        "test": batch(test),
    }
    return {f"cifar-100-python/{name}": pickle.dumps(value, protocol=2) for name, value in contents.items()}


def csv_of(rows: list[tuple[str, str]]) -> str:
    file = io.StringIO()
    csv.writer(file).writerows([("filename", "label"), *rows])
    return file.getvalue()
