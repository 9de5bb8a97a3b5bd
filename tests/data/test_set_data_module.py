"""The data module: splits, loaders, arguments."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from jsonargparse import ArgumentParser
from lightning.pytorch import Trainer

from lightning_vfs.core.errors import ConfigError, DataError
from lightning_vfs.data import ClassImages, SetDataModule
from lightning_vfs.data.module import SmallClassWarning

Sets = type[SetDataModule]


def names(data: SetDataModule) -> dict[str, tuple[str, ...]]:
    return {name: data.split(name).class_names for name in ("train", "val", "test")}  # type: ignore[arg-type]


def indices(loader: Any) -> list[int]:
    return [i for batch in loader for i in batch["index"].tolist()]


def members(loader: Any) -> list[list[int]]:
    return [row for batch in loader for row in batch["images"][:, :, 0, 0, 0].tolist()]


@pytest.mark.parametrize("overfit", [False, True])
def test_training_sets_are_described_by_the_classes_and_images_that_were_delivered(
    numbered_sets: Sets, overfit: bool
) -> None:
    data = numbered_sets(seed=3)
    everything = data.load()
    if overfit:
        data.trainer = Trainer(overfit_batches=2, logger=False, enable_checkpointing=False)
    loader = data.train_dataloader()
    for epoch in (0, 4):
        loader.batch_sampler.set_epoch(epoch)
        described = [one for batch in loader for one in data.describe_sets(batch["index"].tolist())]
        delivered = members(loader)
        assert [list(one.images) for one in described] == [[everything.name_of(i) for i in row] for row in delivered]
        assert [one.class_name for one in described] == [
            everything.class_names[everything.labels[row[0]]] for row in delivered
        ]
    assert data.describe_sets([]) == []


def test_splits_share_no_class_and_hold_all_of_them_by_their_shares(numbered_sets: Sets) -> None:
    split = names(numbered_sets())
    assert [len(split[name]) for name in ("train", "val", "test")] == [16, 2, 2]
    assert sorted(sum(split.values(), ())) == [chr(ord("a") + i) for i in range(20)]
    assert all(list(classes) == sorted(classes) for classes in split.values())


def test_the_split_seed_alone_decides_the_classes(numbered_sets: Sets) -> None:
    assert names(numbered_sets(seed=1)) == names(numbered_sets(seed=2, set_size=2))
    assert names(numbered_sets(split_seed=1)) != names(numbered_sets(split_seed=2))


def test_the_classes_of_a_split_are_the_same_for_ever(numbered_sets: Sets) -> None:
    split = names(numbered_sets())
    assert (split["val"], split["test"]) == (("g", "k"), ("f", "l"))


def test_every_split_gets_a_class_where_there_are_three(numbered_sets: Sets) -> None:
    assert [len(classes) for classes in names(numbered_sets(counts=[5, 5, 5])).values()] == [1, 1, 1]
    with pytest.raises(DataError, match="2 classes of two or more images are too few for train and val and test"):
        numbered_sets(counts=[5, 5]).setup()


def test_a_split_may_be_left_out(numbered_sets: Sets) -> None:
    data = numbered_sets(split_fractions=(0.9, 0.0, 0.1))
    assert data.split("train").num_classes == 18
    assert data.val_dataloader() == []
    with pytest.raises(DataError, match=r"no val split: its share in split_fractions \(0.9, 0.0, 0.1\) is 0"):
        data.split("val")


def test_small_classes_are_left_out_and_named_in_one_warning(numbered_sets: Sets) -> None:
    data = numbered_sets(counts=[2] * 12 + [9] * 200, set_size=3)
    with pytest.warns(SmallClassWarning) as caught:
        data.setup()
    data.setup("fit")
    (warning,) = caught
    message = str(warning.message)
    assert "12 of 212 classes have fewer than the 3 images of a set" in message
    assert message.count("(2)") == 10
    assert message.endswith("and 2 more.")
    assert sum(data.split(name).num_classes for name in ("train", "val", "test")) == 200  # type: ignore[arg-type]
    assert all((data.split(name).counts >= 3).all() for name in ("train", "val", "test"))  # type: ignore[arg-type]


def test_small_classes_do_not_move_others_to_another_split(numbered_sets: Sets) -> None:
    counts = [6, 7, 8, 9, 10] * 4
    everything = names(numbered_sets(counts=counts, set_size=2))
    with pytest.warns(SmallClassWarning):
        fewer = names(numbered_sets(counts=counts, set_size=7))
    assert all(set(fewer[name]) < set(everything[name]) or fewer[name] == everything[name] for name in everything)


def test_a_split_without_a_class_is_refused_with_the_ways_out(numbered_sets: Sets) -> None:
    with pytest.raises(DataError) as caught:
        numbered_sets(counts=[4] * 20, set_size=5).setup()
    message = str(caught.value)
    assert "The train split is left without a class: none of its 16 classes has the 5 images of a set" in message
    assert "and 6 more" in message
    assert "--data.set_size (the largest of these classes has 4 images)" in message
    assert "--data.split_fractions" in message


class GivenSplits(SetDataModule):
    """Splits that the data defines."""

    def __init__(self, given: Mapping[Any, ClassImages], **kwargs: Any) -> None:
        super().__init__(set_size=2, image_size=2, channels=1, **kwargs)
        self.given = given

    def load(self) -> Mapping[Any, ClassImages]:
        return self.given


def test_splits_of_the_data_are_kept_and_missing_ones_taken_from_train(numbered: Any) -> None:
    images = numbered([5] * 20)
    data = GivenSplits({"train": images.select(range(18)), "test": images.select([18, 19])})
    split = names(data)
    assert split["test"] == ("s", "t")
    assert (len(split["train"]), len(split["val"])) == (16, 2)
    assert not set(split["train"]) & set(split["val"])


def test_a_class_in_two_splits_of_the_data_is_refused(numbered: Any) -> None:
    images = numbered([5] * 4)
    data = GivenSplits({"train": images.select([0, 1, 2]), "test": images.select([2, 3])})
    with pytest.raises(DataError, match="class c is in two splits, train and test"):
        data.setup()


def test_validation_and_test_sets_are_always_the_same_and_all_delivered(numbered_sets: Sets) -> None:
    data = numbered_sets()
    for loader in (data.val_dataloader(), data.test_dataloader(), data.predict_dataloader()):
        first = members(loader)
        loader.batch_sampler.set_epoch(4)
        assert members(loader) == first
        assert indices(loader) == list(range(10))
    assert members(data.predict_dataloader()) == members(data.test_dataloader()) != members(data.val_dataloader())


def test_the_seed_of_the_run_is_taken_unless_one_is_given(numbered_sets: Sets, monkeypatch: pytest.MonkeyPatch) -> None:
    given = members(numbered_sets(seed=7).train_dataloader())
    assert members(numbered_sets().train_dataloader()) == members(numbered_sets(seed=0).train_dataloader()) != given
    monkeypatch.setitem(os.environ, "PL_GLOBAL_SEED", "7")
    assert members(numbered_sets().train_dataloader()) == given


def test_images_are_loaded_once_and_described(numbered_sets: Sets) -> None:
    data = numbered_sets()
    assert data.describe() == (
        "train 16 classes, 134 images; val 2 classes, 13 images; test 2 classes, 13 images; sets of 3 x 1 x 2 x 2"
    )
    data.setup("fit")
    data.setup("test")
    assert data.loads == 1  # type: ignore[attr-defined]


def test_there_is_no_other_split(numbered_sets: Sets) -> None:
    with pytest.raises(ConfigError, match="no split 'valid'; allowed: train, val, test"):
        numbered_sets().split("valid")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"set_size": 1}, "set_size is 1; it must be a whole number of at least 2"),
        ({"set_size": 2.5}, "set_size is 2.5"),
        ({"image_size": 0}, "image_size is 0; it must be a whole number of at least 1"),
        ({"channels": 4}, r"channels is 4; allowed: 1 \(grey\) or 3 \(RGB\)"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"sets_per_epoch": 0}, "sets_per_epoch is 0"),
        ({"eval_sets": 0}, "eval_sets is 0"),
        ({"num_workers": -1}, "num_workers is -1; it must be a whole number of at least 0"),
        ({"split_seed": -1}, "split_seed is -1"),
        ({"seed": -1}, "seed is -1"),
        ({"split_fractions": (0.8, 0.1, 0.2)}, r"split_fractions is \(0.8, 0.1, 0.2\); .* sum to 1"),
        ({"split_fractions": (1.2, -0.1, -0.1)}, "split_fractions"),
        ({"split_fractions": (0.0, 0.5, 0.5)}, "above 0"),
        ({"split_fractions": (0.9, 0.1)}, "three numbers"),
    ],
)
def test_impossible_arguments_are_refused_by_name(numbered_sets: Sets, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        numbered_sets(**arguments)


def test_the_cache_folder_is_the_one_given_or_of_the_environment(
    numbered_sets: Sets, monkeypatch: pytest.MonkeyPatch, cache_folder: Path
) -> None:
    assert numbered_sets().cache_dir == cache_folder
    assert numbered_sets(cache_dir="~/here").cache_dir == Path.home() / "here"
    monkeypatch.delenv("LIGHTNING_VFS_CACHE")
    assert numbered_sets().cache_dir == Path.home() / ".cache" / "lightning_vfs"


@pytest.mark.parametrize("name", ["GlyphSets", "FolderSets"])
def test_the_command_line_takes_every_argument_of_the_base(name: str) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(SetDataModule, "data")
    flags = [f"--data=lightning_vfs.data.{name}", "--data.batch_size=2", "--data.split_fractions=[0.6,0.2,0.2]"]
    config = parser.parse_args(flags + (["--data.root=/nowhere"] if name == "FolderSets" else []))
    instantiate = getattr(parser, "instantiate", None) or parser.instantiate_classes  # jsonargparse 4.49 renamed it
    data = instantiate(config).data
    assert (data.batch_size, data.split_fractions) == (2, (0.6, 0.2, 0.2))
    assert (data.image_size, data.channels) == ((16, 1) if name == "GlyphSets" else (32, 3))
