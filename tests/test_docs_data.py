"""docs/data.md: its files, sums, numbers and options are those of the data sets."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest
import yaml

from lightning_vfs.commands.configurations import names
from lightning_vfs.data.augmentation import Augmentation
from lightning_vfs.data.catalog import DATA_SETS
from lightning_vfs.data.official import OfficialSets
from tests.data.official import OMNIGLOT

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "data.md").read_text()
OFFICIAL = [kind for kind in DATA_SETS.values() if issubclass(kind, OfficialSets)]


def test_every_official_file_is_listed_with_its_sum() -> None:
    listed = re.findall(r"^\| \[([^\]]+)\]\(([^)]+)\) \| `?([0-9a-f]{64}|not pinned)`? \|$", PAGE, re.MULTILINE)
    files = [(file.name, file.url, file.sha256 or "not pinned") for kind in OFFICIAL for file in kind.files]
    assert sorted(listed) == sorted(files)


def test_configurations_and_options_exist() -> None:
    named = set(re.findall(r"`(data/\w+)`", PAGE))
    assert named == {name for name in names() if name.startswith("data/")}
    for name, value in re.findall(r"`--data\.(protocol|partition) ([\w/-]+)`", PAGE):
        kinds = [kind for kind in OFFICIAL if name in inspect.signature(kind.__init__).parameters]
        assert any(value in inspect.getdoc(kind) for kind in kinds), value  # type: ignore[operator]


def test_the_augmentation_shown_works() -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.S)
    options = yaml.safe_load(block)["data"]["init_args"]
    augmentation = Augmentation.of(options["augmentation"], channels=3, image_size=32)
    assert augmentation is not None and len(augmentation.transforms) == 3


@pytest.mark.parametrize("name", sorted(name for name in names() if name.startswith("data/")))
def test_a_configuration_gives_its_data_set_options_that_it_has(name: str) -> None:
    config = yaml.safe_load((ROOT / "configs" / f"{name}.yaml").read_text())
    kind = DATA_SETS[config["data"]["class_path"].rpartition(".")[2]]
    data = kind(root="path", **config["data"]["init_args"])
    assert config["model"]["config"]["denoiser"]["patch_size"] and data.image_size % 4 == 0


def test_the_small_sets_of_omniglot_have_what_the_page_says() -> None:
    small = {
        name: {alphabet: int(count) for alphabet, count in re.findall(r"(\S+) (\d+)(?:,|$)", OMNIGLOT[name])}
        for name in ("background_small1", "background_small2")
    }
    one, two = small.values()
    shared = sum(count for alphabet, count in two.items() if alphabet in one)
    assert f"{sum(one.values())} characters (2,720 drawings) and {sum(two.values())} (3,120)" in PAGE
    assert f"{shared} characters that a model" in PAGE
    assert f"test, which has {sum(two.values()) - shared} characters" in PAGE
