"""lightning-vfs verify: records of a tiny run's checkpoint, of other weights, and changed ones."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lightning_vfs.cli import main
from lightning_vfs.evaluation.codec import CHECKSUM, checksum
from lightning_vfs.evaluation.sampled_images import SAMPLED, describe_images, sampled_indices

from .test_evaluate import FEW

pytestmark = pytest.mark.filterwarnings("ignore:glyph-cnn sees images")  # a stand-in for Inception


@pytest.fixture(scope="module")
def evaluated(trained, tmp_path_factory) -> tuple[Path, Path]:
    """A checkpoint, and the record of its evaluation on both splits."""
    record = tmp_path_factory.mktemp("records") / "fid.json"
    options = ["--fid.num_images=40", "--fid.splits=[in,out]", "--fid.sampler=ddpm", f"--fid.record={record}"]
    assert main(["evaluate", f"--ckpt_path={trained()}", *FEW, *options]) == 0
    return trained(), record


@pytest.fixture
def verified(evaluated, tmp_path, capsys) -> Callable[..., tuple[int, str]]:
    """Verifies the record after a change of its values; gives the exit status, and the one line that is said."""

    def run(change: Callable[[dict[str, Any]], Any] = lambda _: None, *options: str, seal: bool = True):
        checkpoint, record = evaluated
        values = json.loads(record.read_text())
        change(values)
        if seal and CHECKSUM in values:
            values[CHECKSUM] = checksum(values)
        (tmp_path / "fid.json").write_text(json.dumps(values))
        capsys.readouterr()
        model = options or (f"--ckpt_path={checkpoint}",)
        status = main(["verify", str(tmp_path / "fid.json"), "--device=cpu", *model])
        said = capsys.readouterr()
        return status, (said.out + said.err).strip()

    return run


def data_of(folder: Path) -> list[str]:
    """Options for the data of the tiny run."""
    return [
        "--data=FolderSets", f"--data.root={folder}", "--data.image_size=8", "--data.split_fractions=[0.5,0.25,0.25]"
    ]  # fmt: skip


def reach(values: dict[str, Any], path: str) -> tuple[dict[str, Any], str]:
    *above, last = path.split(".")
    for name in above:
        values = values[name]
    return values, last


def put(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(values: dict[str, Any]) -> None:
        part, last = reach(values, path)
        part[last] = value

    return change


def test_the_right_checkpoint_makes_the_same_images(verified) -> None:
    assert verified() == (0, "verified: all 64 sampled images are identical")


@pytest.mark.parametrize("kind", ["step", "raw", "pretrained"])
def test_other_weights_are_refused(verified, trained, image_folder, tmp_path, kind) -> None:
    """Of one step more, whose images differ least; of the same file, but not averaged; without the file's name."""
    options, change = [f"--ckpt_path={trained('--trainer.max_steps=3')}"], lambda _: None
    if kind == "raw":
        options, change = [], put("model.weights", "raw")
    if kind == "pretrained":
        assert main(["convert", f"--ckpt_path={trained('--trainer.max_steps=3')}", f"--out={tmp_path / 'model'}"]) == 0
        options = [f"--pretrained={tmp_path / 'model'}", *data_of(image_folder)]
    status, said = verified(change, *options)
    assert status == 1 and all(line.startswith("not verified: ") for line in said.splitlines()), said
    if kind == "raw":
        assert "the record names the raw weights, of which" in said and "but 64 are of the averaged ones" in said
    else:
        assert "of 32 images of split in are identical; thumbnails differ by up to " in said
    if kind == "step":
        assert "the record is of another checkpoint (" in said


def test_another_file_with_the_same_weights_does(verified, evaluated) -> None:
    assert verified(put("model.checkpoint_sha256", "0" * 64)) == (
        0, "verified: all 64 sampled images are identical; the checkpoint is another file with these weights"
    )  # fmt: skip
    assert verified(put("model.checkpoint_sha256", None))[0] == 0


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ("sampling.seed", 1, "supports of split in are not those that num_images, shots and seed give"),
        ("sampling.seed", -1, "seed is -1, which no evaluation takes"),
        ("sampling.seed", 2**70, "which no evaluation takes"),
        ("sampling.shots", 3, "supports of split in are not those"),
        ("sampling.steps", 3, "of 32 images of split in are identical; thumbnails differ by up to"),
        ("sampling.sampler", "ddim", "of 32 images of split out are identical"),
        ("splits.out.num_images", 50, "num_images of split out is 50, which generated_per_class does not add up to"),
        ("splits.out.num_images", 10**15, "does not add up to"),
        ("sampling.images_per_class", 10**12, "num_images of split in is 40, but images_per_class gives 6,000,000,000"),
        ("sampling.support_pool", 0.5, "supports of split in are not those"),
        ("sampling.support_pool", 1.5, "the record states what cannot be generated: support_pool is 1.5"),
        ("splits.out.supports_sha256", "0" * 16, "supports of split out are not those"),
        ("splits.out.images_sha256", "0" * 64, "the images of split out are not those of the data"),
        ("splits.out.classes", ["a"], "classes of split out are not those of the data"),
        ("splits.out.data_split", "val", "data_split of split out is 'val', which no evaluation writes"),
        ("splits.out.sampled_images.0.sha256", "0" * 64, "thumbnails differ by up to 0 of 255"),
        ("splits.out.sampled_images.0.thumbnail", "AAAA", "a thumbnail in the record is damaged"),
        ("sampling.precision", "fp8", "The record's precision is 'fp8'; known: 16-mixed, "),
        ("sampling.sampler", "os.system", "The record names os.system, which is not part of lightning_vfs"),
        ("sampling.steps", 10**9, "Sampling takes 1000000000 steps, but the diffusion has 20"),
    ],
)  # fmt: skip
def test_what_was_changed_is_found(verified, path, value, says) -> None:
    change = put(path, value)
    if path.endswith("0.sha256"):  # of no file that is known, so that nothing is rounding
        change = lambda values: (put(path, value)(values), put("model.checkpoint_sha256", None)(values))  # noqa: E731
    status, said = verified(change)
    assert status == 1 and says in said, said


def test_a_figure_that_was_changed_is_found_by_the_checksum(verified) -> None:
    status, said = verified(put("figures.fid[glyph-cnn]/out.value", 1.0), seal=False)
    assert status == 1 and said.startswith("not verified: the record was changed after it was written")


def test_rounding_is_told_from_other_weights(verified) -> None:
    """Of the very checkpoint: an image that differs by less than rounding does, and one that differs by more."""

    def differ(values: dict[str, Any]) -> None:
        values["splits"]["out"]["sampled_images"]["0"]["sha256"] = "0" * 64

    status, said = verified(differ)
    assert (status, said.splitlines()) == (0, [said])
    assert said.startswith("verified up to rounding: 63 of 64 images are identical; of the others, thumbnails differ ")

    def differ_more(values: dict[str, Any]) -> None:
        sampled = values["splits"]["out"]["sampled_images"]
        sampled["0"] = sampled["39"]

    status, said = verified(differ_more)
    assert status == 1 and "more than rounding explains" in said


def test_records_of_earlier_versions_say_that_they_hold_no_images(verified) -> None:
    def earlier(values: dict[str, Any]) -> None:
        values["schema"] = 4
        del values[CHECKSUM]
        for split in values["splits"].values():
            del split["sampled_images"]

    status, said = verified(earlier)
    assert status == 1 and "fid.json: the record describes no generated images" in said


def test_what_is_missing_is_named(verified, tmp_path, capsys) -> None:
    assert main(["verify", str(tmp_path / "none.json"), "--ckpt_path=x.ckpt"]) == 1
    assert "none.json cannot be read" in capsys.readouterr().err
    status, said = verified(lambda _: None, "--ckpt_path=x.ckpt")
    assert status == 1 and "x.ckpt" in said
    status, said = verified(lambda _: None, "--ckpt_path=x.ckpt", "--pretrained=y")
    assert status == 1 and "Give either --ckpt_path FILE or --pretrained FOLDER" in said


def test_data_other_than_the_runs_is_found(verified, evaluated, image_folder, tmp_path) -> None:
    lonely = shutil.copy(evaluated[0], tmp_path / "lonely.ckpt")
    status, said = verified(lambda _: None, f"--ckpt_path={lonely}")
    assert status == 1 and "There is no configuration of the run" in said
    assert verified(lambda _: None, f"--ckpt_path={lonely}", *data_of(image_folder))[0] == 0
    status, said = verified(lambda _: None, f"--ckpt_path={lonely}", *data_of(image_folder), "--data.split_seed=1")
    assert status == 1 and "classes of split in are not those of the data" in said


@pytest.mark.parametrize("channels", [1, 3])
def test_descriptions_are_of_the_pixels(channels) -> None:
    pixels = torch.randint(0, 256, (5, channels, 12, 12), dtype=torch.uint8)
    found = describe_images(pixels, np.array([0, 3, 5, 8, 9]))
    assert list(found) == ["0", "3", "5", "8", "9"] and len({each.sha256 for each in found.values()}) == 5
    assert describe_images(pixels[1:2], np.array([3]))["3"] == found["3"]
    for number in (1, 2, SAMPLED, 33, 1000):
        index = sampled_indices(number)
        assert len(index) == min(number, SAMPLED) and index[0] == 0 and index[-1] == number - 1
