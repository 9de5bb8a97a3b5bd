"""Where files go: one place for a run, found before work is done, and nothing of the user's overwritten."""

from __future__ import annotations

import errno
import resource
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from lightning_vfs import VFSDDPM, CheckpointError
from lightning_vfs.callbacks import FIDCallback, SampleGridCallback
from lightning_vfs.callbacks.predictions import PredictionWriter
from lightning_vfs.cli import main
from lightning_vfs.core.errors import ConfigError, DataError, EvaluationError
from lightning_vfs.core.files import begin_files, local_path, try_folder
from lightning_vfs.data import FolderSets, GlyphSets, load_support
from lightning_vfs.evaluation.record import EvaluationRecord
from lightning_vfs.interop import from_jax, to_jax
from lightning_vfs.metrics import ImageFeatures
from lightning_vfs.training.checkpoints import AtomicCheckpointIO, read_checkpoint

URLS = ["s3://bucket/runs", "gs://bucket", "memory://runs", "file:///tmp/runs", Path("s3://bucket/runs")]


def fit(model: VFSDDPM, data: FolderSets, folder: Path, *callbacks: Any, **options: Any) -> pl.Trainer:
    trainer = pl.Trainer(
        accelerator="cpu", enable_progress_bar=False, enable_model_summary=False, callbacks=[*callbacks],
        **{"max_steps": 2, "default_root_dir": folder, "logger": False, "num_sanity_val_steps": 0, **options},
    )  # fmt: skip
    trainer.fit(model, datamodule=data)
    return trainer


@pytest.fixture
def data(image_folder: Path) -> FolderSets:
    return FolderSets(
        str(image_folder), image_size=8, batch_size=2, sets_per_epoch=4, eval_sets=2, split_fractions=(0.5, 0.25, 0.25)
    )


def fid(**options: Any) -> FIDCallback:
    return FIDCallback(
        num_images=2, num_real_images=4, steps=1, feature_extractor="glyph-cnn", few_shot_way=None, splits=["out"],
        **options,
    )  # fmt: skip


@pytest.fixture
def no_folder(tmp_path: Path) -> Path:
    """A folder that cannot be made, since there is a file in its place: root may write everything else."""
    (tmp_path / "file").touch()
    return tmp_path / "file" / "below"


# -- URLs -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("url", URLS)
def test_urls_are_refused_at_every_door(url: Any, tmp_path: Path, tiny_model: Callable[..., VFSDDPM]) -> None:
    text = str(url)
    doors: list[Callable[[], Any]] = [
        lambda: fid(record=url), lambda: fid(save_images=url), lambda: SampleGridCallback(dirname=url),
        lambda: PredictionWriter(url), lambda: FolderSets(text), lambda: GlyphSets(cache_dir=text),
        lambda: load_support(url, 8, 3), lambda: read_checkpoint(url), lambda: VFSDDPM.load_from_checkpoint(url),
        lambda: VFSDDPM.from_pretrained(url), lambda: tiny_model().save_pretrained(url), lambda: from_jax(url),
        lambda: to_jax(tiny_model(), url), lambda: EvaluationRecord.read(url),
        lambda: AtomicCheckpointIO().save_checkpoint({}, url), lambda: ImageFeatures("glyph-cnn", weights_path=url),
    ]  # fmt: skip
    for door in doors:
        with pytest.raises(ConfigError, match="folders of this machine, not URLs"):
            door()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("url", ["memory://runs", "file:///tmp/runs"])
def test_a_run_does_not_begin_with_urls(url: str, tiny_model, data: FolderSets, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="dirpath of ModelCheckpoint is .*not URLs"):
        fit(tiny_model(), data, tmp_path, ModelCheckpoint(dirpath=url))
    with pytest.raises(ConfigError, match="default_root_dir of the Trainer is .*not URLs"):
        fit(tiny_model(), data, tmp_path, default_root_dir=url)
    if url.startswith("memory"):
        with pytest.raises(ConfigError, match="save_dir of CSVLogger is .*not URLs"):
            fit(tiny_model(), data, tmp_path, logger=CSVLogger(url))
    assert not list(tmp_path.rglob("*.ckpt"))


def test_what_is_no_url() -> None:
    for path in ("C:/runs", "runs/a:b/c", "/data/x.y", "a+b/c", "last:", "é:ü"):
        assert local_path(path, "x") == Path(path)


def test_urls_on_the_command_line_are_refused_before_anything_is_made(
    image_folder: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    fit = ["fit", "--config=folders", f"--data.root={image_folder}"]
    logger = "--trainer.logger.init_args.save_dir=s3://bucket/runs"
    for flags in ([*fit, "--trainer.default_root_dir=memory://x"], [*fit, logger], [*fit, "--ckpt_path=s3://b/x.ckpt"],
                  ["sample", "--pretrained=gs://b/x", "--support=x", "--out=y"], ["data", "--root=s3://b"],
                  ["compare", "s3://b/fid.json", "x"], ["convert", "--from_jax=s3://b/x"],
                  ["evaluate", "--ckpt_path=s3://b/x.ckpt", "--data=GlyphSets"]):  # fmt: skip
        assert main(flags) == 1, flags
        assert "not URLs" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


# -- one place ---------------------------------------------------------------------------------------------------------


def test_folders_that_libraries_expand_differently(tiny_model, data: FolderSets, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("RUNS", str(tmp_path / "runs"))
    monkeypatch.chdir(tmp_path)
    for folder in ("~/runs", "$RUNS/x"):
        with pytest.raises(
            ConfigError, match=rf"save_dir of CSVLogger is {folder.replace('$', '.')}, .*: give {tmp_path}"
        ):
            fit(tiny_model(), data, tmp_path, logger=CSVLogger(folder))


def test_a_record_of_another_run_keeps_its_name(tiny_model, data: FolderSets, tmp_path: Path) -> None:
    def run(seed: int) -> None:
        pl.seed_everything(seed)
        checkpoints = ModelCheckpoint(dirpath=tmp_path, filename=f"seed{seed}", every_n_train_steps=1)
        fit(tiny_model(), data, tmp_path / "root", checkpoints, fid())

    run(1)
    first = EvaluationRecord.read(tmp_path / "fid.json")
    run(2)
    second = EvaluationRecord.read(tmp_path / "fid-v1.json")
    run(1)
    assert sorted(path.name for path in tmp_path.glob("fid*")) == ["fid-v1.json", "fid.json"]
    assert EvaluationRecord.read(tmp_path / "fid.json").model == first.model
    assert first.model.run_sha256 != second.model.run_sha256
    assert first.model.recipe_sha256 == second.model.recipe_sha256 is not None


@pytest.mark.parametrize(
    "name",
    ["with space", "é", b"by\xe9tes".decode(errors="surrogateescape"), "../up"],
    ids=["space", "é", "bytes", "up"],
)
def test_folders_of_any_name(name: str, tiny_model, data: FolderSets, tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    folder = tmp_path / "work" / name
    checkpoints = ModelCheckpoint(dirpath=folder, save_last=True, every_n_train_steps=1)
    fit(tiny_model(), data, folder, checkpoints, fid())
    assert sorted(path.name for path in folder.iterdir() if path.suffix in (".json", ".ckpt"))[-2:] == [
        "fid.json", "last.ckpt"
    ]  # fmt: skip
    VFSDDPM.load_from_checkpoint(folder / "last.ckpt")


# -- folders that cannot be written ---------------------------------------------------------------------------------


def test_checkpoints_that_cannot_be_written_stop_a_run_before_it_begins(
    tiny_model, data: FolderSets, no_folder: Path, monkeypatch
) -> None:
    model = tiny_model()
    model.training_step = lambda batch, batch_idx: pytest.fail("trained")
    with pytest.raises(ConfigError, match=r"Checkpoints cannot be written to .*below: .*Not a directory"):
        fit(model, data, no_folder.parents[1], ModelCheckpoint(dirpath=no_folder))
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(ConfigError, match=r"A checkpoint takes about \d+ MiB, but .* has 0 MiB free"):
        fit(model, data, no_folder.parents[1], ModelCheckpoint(dirpath=no_folder.parents[1] / "new"))
    assert not (no_folder.parents[1] / "new").exists()


@contextmanager
def small_disk(size: int) -> Iterator[None]:
    """Files cannot be larger inside: the kernel refuses to write, as it does on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_is_full_in_the_middle_of_a_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"step": 1}, path)
    with small_disk(10_000), pytest.raises(CheckpointError, match=rf"{path} cannot be written: .*File too large.*room"):
        AtomicCheckpointIO().save_checkpoint({"step": torch.zeros(100_000)}, path)
    assert torch.load(path) == {"step": 1} and [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]


def test_in_fit_records_and_pictures_that_cannot_be_written_are_a_warning(
    tiny_model, data: FolderSets, no_folder: Path
) -> None:
    folder = no_folder.parents[1]
    callbacks = [
        fid(record=no_folder / "fid.json", save_images=no_folder), SampleGridCallback(1, 2, 1, 1, dirname=no_folder)
    ]  # fmt: skip
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        trainer = fit(tiny_model(), data, folder, *callbacks, ModelCheckpoint(dirpath=folder / "checkpoints"))
    assert trainer.global_step == 2 and "fid[glyph-cnn]/out" in trainer.callback_metrics
    text = " ".join(str(warning.message) for warning in said)
    for what in ("fid.json", "Pictures", "Images"):
        assert f"{what} cannot be written to {no_folder}" in text


def test_in_test_they_are_an_error_before_anything_is_generated(
    tiny_model, data: FolderSets, no_folder: Path, monkeypatch
) -> None:
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False)
    model = tiny_model()
    monkeypatch.setattr(model, "generate", pytest.fail)
    notes = no_folder.parents[1] / "notes.json"
    notes.write_text('{"mine": 1}')
    for callback, what in (
        (fid(record=no_folder / "fid.json"), "fid.json cannot be written"),
        (fid(record=notes), "notes.json is there already, and is not the record"),
        (fid(record=notes.with_name("fid.json"), save_images=no_folder), "Images cannot be written"),
        (SampleGridCallback(1, 2, 1, 1, dirname=no_folder), "Pictures cannot be written"),
    ):
        trainer.callbacks = [callback]
        with pytest.raises(EvaluationError, match=what):
            trainer.test(model, datamodule=data, verbose=False)
    trainer.callbacks = [PredictionWriter(no_folder)]
    with pytest.raises(EvaluationError, match="Predictions cannot be written"):
        trainer.predict(model, datamodule=data)
    assert notes.read_text() == '{"mine": 1}'


def test_a_record_that_can_no_longer_be_written_costs_no_figures(
    tiny_model, data: FolderSets, tmp_path: Path, monkeypatch, caplog
) -> None:
    caplog.set_level("INFO")
    trainer = pl.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, callbacks=[fid(record=tmp_path / "f")]
    )
    monkeypatch.setattr(EvaluationRecord, "to_dict", lambda self: {"schema": "x" * 50_000})
    with small_disk(20_000), pytest.raises(EvaluationError, match="File too large"):
        trainer.test(tiny_model(), datamodule=data, verbose=False)
    assert "fid[glyph-cnn]/out" in caplog.text
    assert not list(tmp_path.iterdir())


def test_an_unwritable_cache_is_found_before_decoding(no_folder: Path, image_folder: Path, monkeypatch) -> None:
    monkeypatch.setattr("lightning_vfs.data.glyphs._render", pytest.fail)
    with pytest.raises(DataError, match="cannot be written to the cache"):
        GlyphSets(cache_dir=str(no_folder)).setup()
    monkeypatch.setattr("lightning_vfs.data.decoded.decode_all", pytest.fail)
    with pytest.raises(DataError, match="cannot be written to the cache"):
        FolderSets(str(image_folder), cache_dir=str(no_folder)).setup()


def test_a_folder_is_tried_without_being_made(tmp_path: Path) -> None:
    try_folder(tmp_path / "a" / "b")
    assert not list(tmp_path.iterdir())
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    for place in (tmp_path / "nowhere" / "x", Path("/proc/nothing/x")):
        with pytest.raises(OSError, match=rf"\[Errno ({errno.ENOTDIR}|{errno.ENOENT}|{errno.EACCES})\]"):
            try_folder(place)
    with small_disk(100), pytest.raises(OSError, match="File too large"):
        try_folder(tmp_path)


# -- nothing of the user's, nothing of an older run ------------------------------------------------------------------


def test_files_of_an_earlier_run_go_and_those_of_the_user_stay(tmp_path: Path) -> None:
    begin_files(tmp_path, "list.json", ["0.png", "1.png"])
    for name in ("0.png", "1.png", "mine.png"):
        (tmp_path / name).touch()
    begin_files(tmp_path, "list.json", ["0.png"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["list.json", "mine.png"]
    with pytest.raises(ConfigError, match=r"holds mine.png, which no earlier run has listed in list.json"):
        begin_files(tmp_path, "list.json", ["mine.png"])


def test_the_configuration_of_something_else_is_not_overwritten(tmp_path: Path, tiny_model) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["BertModel"]}')
    with pytest.raises(ConfigError, match=r"config.json is there already, and is not a lightning_vfs configuration"):
        tiny_model().save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
    (tmp_path / "config.json").unlink()
    for _ in range(2):
        tiny_model().save_pretrained(tmp_path)


def test_convert_and_data_overwrite_nothing(tmp_path: Path, image_folder: Path, tiny_model, capsys) -> None:
    tiny_model().save_pretrained(tmp_path / "model")
    (tmp_path / "mine.ckpt").write_text("mine")
    convert = ["convert", f"--pretrained={tmp_path / 'model'}"]
    assert main([*convert, "--to=ckpt", f"--out={tmp_path / 'mine.ckpt'}"]) == 1
    assert main([*convert, f"--out={tmp_path / 'model'}"]) == 1
    assert capsys.readouterr().err.count("exists already") == 2
    (tmp_path / "train.png").write_text("mine")
    data = ["data", f"--root={image_folder}", "--image_size=8", f"--out={tmp_path}"]
    assert main(data) == 1
    assert "holds train.png, which no earlier run has listed in data.json" in capsys.readouterr().err
    assert {(tmp_path / name).read_text() for name in ("mine.ckpt", "train.png")} == {"mine"}


def test_a_new_run_in_the_same_folder(tiny_model, data: FolderSets, tmp_path: Path) -> None:
    def run(steps: int, **options: Any) -> list[str]:
        callbacks = [SampleGridCallback(1, 2, 1, 1, dirname=tmp_path / "grids"), fid(save_images=tmp_path / "images")]
        fit(tiny_model(), data, tmp_path, *callbacks, max_steps=steps, enable_checkpointing=False, **options)
        return sorted(path.name for path in (tmp_path / "grids").glob("*.png"))

    assert run(4) == ["step=00000002.png", "step=00000004.png"]
    images = tmp_path / "images" / "test" / "generated"
    (images / "000002.png").touch()
    (images / "images.json").write_text('{"files": ["000000.png", "000001.png", "000002.png"]}')  # of more images
    assert run(2) == ["step=00000002.png"]
    assert sorted(path.name for path in images.glob("*.png")) == ["000000.png", "000001.png"]
    (images / "images.json").unlink()
    with pytest.raises(ConfigError, match="holds 000000.png, 000001.png, which no earlier run has listed"):
        run(2)


def test_predictions_of_an_earlier_run_go(tiny_model, data: FolderSets, tmp_path: Path) -> None:
    for count in (3, 2):
        data.eval_sets = count
        trainer = pl.Trainer(
            accelerator="cpu", logger=False, enable_progress_bar=False, callbacks=[PredictionWriter(tmp_path)]
        )
        trainer.predict(tiny_model(), datamodule=data, return_predictions=False)
        assert len(list(tmp_path.glob("*.png"))) == count
