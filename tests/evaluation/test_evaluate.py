"""evaluate(): a plan in, a record out, without a trainer."""

from __future__ import annotations

import copy
import random
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch

from lightning_vfs import VFSDDPM, EMACallback, FIDCallback
from lightning_vfs.core import EncoderConfig, SamplingConfig
from lightning_vfs.core.errors import ClassMismatchError, ConfigError, VFSError
from lightning_vfs.evaluation import EvaluationPlan, EvaluationRecord, compare, evaluate
from lightning_vfs.metrics.fidelity import FidelityOptions, fidelity_figures
from tests.callbacks.conftest import CONFIG, TINY, Painter, Patterns

pytestmark = pytest.mark.filterwarnings("ignore:glyph-cnn sees images")  # a stand-in for Inception

PAGE = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text()
MODEL = replace(CONFIG, diffusion=replace(CONFIG.diffusion, timesteps=50))
SHOWN = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}


def trainer_of(*callbacks: pl.Callback, **options: Any) -> pl.Trainer:
    return pl.Trainer(accelerator="cpu", callbacks=list(callbacks), **SHOWN | options)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of two steps, with an average of the weights that is far from them."""
    torch.manual_seed(0)
    model = VFSDDPM(MODEL)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    trainer = trainer_of(EMACallback(decay=0.9), max_steps=2, limit_val_batches=0)
    trainer.fit(model, datamodule=Patterns())
    path = tmp_path_factory.mktemp("run") / "last.ckpt"
    trainer.save_checkpoint(path)
    return path


def plan_of(**options: Any) -> EvaluationPlan:
    few = {"num_images": 20, "feature_extractor": TINY, "splits": ["out"], "sampling": SamplingConfig(2)}
    return EvaluationPlan(**few | {"few_shot_way": 5} | options)


def plain(record: EvaluationRecord) -> dict[str, Any]:
    """As it is written, except the time taken."""
    values = copy.deepcopy(record.to_dict())
    for name in ("generation_seconds", "features_seconds", "distance_seconds"):
        del values["environment"][name]
    return values


@pytest.mark.parametrize("precision", [None, "bf16-mixed"])
def test_the_record_is_that_of_the_callback_in_a_trainer(precision, checkpoint, tiny, tmp_path):
    callback = FIDCallback(
        num_images=20, feature_extractor=tiny, splits=["in", "out"], steps=3, guidance_scale=1.0, few_shot_way=[2, 5],
        metrics=["fid", "prc"], vlb_images=2, vlb_steps=2, record=tmp_path / "fid.json",
    )  # fmt: skip
    trainer = trainer_of(callback, precision=precision)
    trainer.test(VFSDDPM(MODEL), datamodule=Patterns(), ckpt_path=checkpoint, verbose=False)
    model = VFSDDPM.load_from_checkpoint(checkpoint)
    record = evaluate(model, Patterns(), callback.plan, checkpoint=checkpoint, precision=precision)
    assert plain(record) == plain(EvaluationRecord.read(tmp_path / "fid.json"))
    assert record.sampling.precision == (precision or "32-true")
    assert (record.model.checkpoint, record.model.weights, record.model.global_step) == (str(checkpoint), "averaged", 2)
    assert record.model.averaging_decay == 0.9


def test_the_default_plan_is_the_callbacks():
    assert FIDCallback().plan == EvaluationPlan()


@pytest.mark.parametrize("raw", [False, True])
def test_a_model_says_whose_weights_it_has(raw, checkpoint, tiny, tmp_path):
    """Also where a trainer is given the model alone."""
    model = VFSDDPM.load_from_checkpoint(checkpoint, raw=raw)
    found = evaluate(model, Patterns(), plan_of()).model
    expected = ("raw" if raw else "averaged", 2)
    assert (found.weights, found.global_step) == expected and found.checkpoint is None
    callback = FIDCallback(num_images=4, feature_extractor=tiny, few_shot_way=None, steps=2, record=tmp_path / "a.json")
    trainer_of(callback).test(model, datamodule=Patterns(), verbose=False)
    found = EvaluationRecord.read(tmp_path / "a.json").model
    assert (found.weights, found.global_step) == expected
    assert evaluate(VFSDDPM(MODEL), Patterns(), plan_of()).model.weights == "raw"


def test_modes_gradients_and_random_numbers_are_left_as_they_were(painter, tiny):
    model = painter()
    model.dropout.eval()
    states = []
    for run in (lambda: None, lambda: evaluate(model, Patterns(), plan_of())):
        random.seed(1), np.random.seed(1), torch.manual_seed(1)
        run()
        states.append((random.random(), np.random.rand(), torch.rand(1).item(), torch.is_grad_enabled()))
    assert states[0] == states[1] and states[0][-1]
    assert set(model.modes) == {False} and model.training and not model.dropout.training


def test_they_are_after_an_error_too(painter, tiny):
    model = painter()
    model.generate = lambda *_, **__: torch.rand(1) / 0 + np.random.rand() + [][0]
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    with pytest.raises(IndexError):
        evaluate(model, Patterns(), plan_of())
    assert torch.equal(torch.rand(1), expected) and model.training


def test_the_model_is_moved_where_it_is_asked_to_alone(checkpoint, tiny):
    model = VFSDDPM.load_from_checkpoint(checkpoint)
    moves: list[str] = []
    model.use_device = lambda device: moves.append(f"use {device}")  # type: ignore[method-assign]
    model.to = lambda device: moves.append(f"to {device}")  # type: ignore[method-assign]
    evaluate(model, Patterns(), plan_of())
    assert moves == []
    evaluate(model, Patterns(), plan_of(), device="cpu")
    assert moves == ["use cpu", "to cpu"]


def test_the_type_of_the_weights_is_recorded(checkpoint, tiny):
    model = VFSDDPM.load_from_checkpoint(checkpoint).double()
    assert evaluate(model, Patterns(), plan_of()).sampling.precision == "64-true"


def test_progress_is_shown_on_request(painter, tiny, capsys, monkeypatch):
    monkeypatch.setattr("lightning_vfs.core.progress.SECONDS_BETWEEN_LINES", 0)
    evaluate(painter(), Patterns(), plan_of())
    assert "Evaluation" not in capsys.readouterr().err
    evaluate(painter(), Patterns(), plan_of(), show_progress=True)
    assert "generating" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"precision": "fp8"}, ConfigError, r"precision is 'fp8'; allowed: '16-mixed', 'bf16-mixed', or None"),
        ({"checkpoint": "nowhere.ckpt"}, VFSError, r"nowhere.ckpt cannot be read"),
        ({"data": Patterns(image_size=16)}, ValueError, r"takes images of shape \(1, 8, 8\); .* has \(1, 16, 16\)"),
    ],
)
def test_what_cannot_work_is_refused_before_an_image_is_generated(painter, tiny, options, error, says):
    model = painter()
    with pytest.raises(error, match=says):
        evaluate(model, **{"data": Patterns(), "plan": plan_of()} | options)
    assert not model.levels


def test_a_class_conditional_model_is_not_evaluated_on_other_classes(painter, tiny):
    model = painter(replace(CONFIG, encoder=EncoderConfig(architecture="class_label", dim=8, num_classes=27)))
    model.class_names = tuple(f"letter {i}" for i in range(27))
    with pytest.raises(ClassMismatchError, match="pattern"):
        evaluate(model, Patterns(), plan_of(splits=["in"]))


def test_the_lines_of_the_documentation_run(checkpoint, monkeypatch, tmp_path, capsys):
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len([line for line in code.splitlines() if line and "import" not in line]) == 5
    (shown,) = re.findall(r'checkpoint = "(.*?)"', code)
    monkeypatch.chdir(tmp_path)
    Path(shown).parent.mkdir(parents=True)
    Path(shown).write_bytes(checkpoint.read_bytes())
    monkeypatch.setattr("lightning_vfs.data.GlyphSets", Patterns)
    monkeypatch.setattr(pl.Trainer, "__init__", None)
    scope: dict[str, Any] = {}
    exec(code.replace("num_images=500", "num_images=20"), scope)
    assert scope["record"].model.checkpoint == shown
    assert re.fullmatch(r"\S+ ± \S+ \(floor \S+, copier \S+\)\n", capsys.readouterr().out)


def test_floors_are_computed_once_and_kept(painter, tiny, tmp_path, monkeypatch):
    """For any model, in any process; by other options they are others."""
    monkeypatch.setenv("LIGHTNING_VFS_CACHE", str(tmp_path))
    computed: list[str] = []

    def counted(metric: str, *given: Any) -> dict[str, float]:
        computed.append(metric)
        return fidelity_figures(metric, *given)

    monkeypatch.setattr("lightning_vfs.evaluation.real_images.fidelity_figures", counted)

    def floors(**options: Any) -> dict[str, float | None]:
        metrics = {"metrics": ["fid", "prc"], "few_shot_way": None}
        record = evaluate(painter(), Patterns(), plan_of(**metrics | options))
        return {name: figure.floor for name, figure in record.figures.items()}

    first = floors()
    assert computed == ["fid", "prc"] and all(value is not None for value in first.values())
    assert floors() == first and computed == ["fid", "prc"]
    others = [
        {"seed": 1}, {"num_images": 30}, {"num_real_images": 40}, {"options": FidelityOptions(prc_neighborhood=4)}
    ]  # fmt: skip
    found = [floors(**options) for options in others]
    assert len(computed) == 2 + 2 * len(others) and all(one != first for one in found[:3])
    files = list(tmp_path.rglob("*.json"))
    assert len(files) == 2 * (1 + len(others)), "floors, and figures of copies"
    for file in files:
        file.write_text(file.read_text().replace("1", "2"))
    with pytest.warns(UserWarning, match="computing the figures of the real images again"):
        assert floors() == first


def test_a_large_split_is_compared_with_some_of_its_images_and_says_so(painter, tiny, monkeypatch):
    monkeypatch.setattr("lightning_vfs.evaluation.real_images.MOST_REAL_IMAGES", 50)
    record = evaluate(painter(), Patterns(), plan_of())
    asked = evaluate(painter(), Patterns(), plan_of(num_real_images=50))
    assert record.splits["out"].num_real_images == 50 and record.figures == asked.figures
    assert any("with 50 of its 162 real ones, drawn by seed; num_real_images" in note for note in record.notes)
    everything = evaluate(painter(), Patterns(), plan_of(num_real_images=162))
    assert everything.splits["out"].num_real_images == 162
    assert not any("real ones" in note for note in (*asked.notes, *everything.notes))


def test_the_bound_alone_needs_no_extractor_and_no_images(checkpoint, tiny, monkeypatch):
    both = evaluate(VFSDDPM(MODEL), Patterns(), plan_of(vlb_images=3, vlb_steps=2))
    monkeypatch.setattr(VFSDDPM, "generate", None)
    plan = plan_of(metrics=[], vlb_images=3, vlb_steps=2, feature_extractor="not downloaded")
    record = evaluate(VFSDDPM(MODEL), Patterns(), plan)
    assert set(record.figures) == {"vlb/out"} and record.splits["out"].num_images is None
    assert EvaluationRecord.from_dict(record.to_dict()) == record
    assert compare(both, record).comparable and compare(record, both).comparable
    for wrong in ({"metrics": []}, {"metrics": [], "vlb_images": 3, "per_class": True}):
        with pytest.raises(VFSError, match=r"no metric to compute|for the variational bound alone"):
            plan_of(**wrong)


def test_glyph_cnn_on_other_images_says_that_it_does_not_know_them(painter):
    plan = replace(plan_of(), feature_extractor="glyph-cnn")
    with pytest.warns(UserWarning, match="glyph-cnn sees images as 16 x 16 in grey and knows only the built-in glyphs"):
        record = evaluate(painter(), Patterns(), plan)
    assert any("knows only the built-in glyphs" in note for note in record.notes)


class Mixer(Painter):
    """Paints the mean of its support."""

    def generate(self, support, index, seed=0, label=None, **sampling):
        return support.mean(dim=1)


class Copier(Painter):
    """Returns its first support image."""

    def generate(self, support, index, seed=0, label=None, **sampling):
        return support[:, 0]


class Memoriser(Painter):
    """Returns a training image, of whatever class."""

    def generate(self, support, index, seed=0, label=None, **sampling):
        training = Patterns(per_class=12).split("train")
        return training.float(index.numpy() % len(training))


class Honest(Painter):
    """Returns the held-out image itself, as no model can."""

    def generate(self, support, index, seed=0, label=None, **sampling):
        split = Patterns(per_class=12).split("test")
        return split.float(split.episodes(100, 3, 0).targets[index.numpy() % 100])


@pytest.mark.parametrize(
    ("model", "verdict"),
    [
        (Copier, "copies its support"),
        (Mixer, "copies its support"),
        (Memoriser, "copies training images"),
        (Honest, None),
    ],
)
def test_a_model_that_copies_is_named_first(model, verdict, tiny, tmp_path, caplog):
    """In the record, in the log line of a trainer's evaluation, and by figures that it does not win."""
    data = Patterns(per_class=12)
    callback = FIDCallback(
        num_images=100, feature_extractor=tiny, splits=["out"], few_shot_way=5, steps=2, record=tmp_path / "fid.json"
    )
    record = evaluate(model(), data, callback.plan)
    with caplog.at_level("INFO"):
        trainer_of(callback).test(model(), datamodule=data, verbose=False)
    assert record.splits["out"].verdict == EvaluationRecord.read(tmp_path / "fid.json").splits["out"].verdict == verdict
    line = f"out: {verdict}: its fid, precision and accuracy say nothing"
    assert record.verdicts == record.notes[: len(record.verdicts)] == ((line,) if verdict else ())
    (said,) = [message for message in caplog.messages if "100 generated images a split" in message]
    assert said.startswith(f"{line.capitalize()}. " if verdict else "100 generated")
    figures = {name.split("[")[0].split("/")[0]: f for name, f in record.figures.items() if name.endswith("/out")}
    if model is Copier:
        assert (figures["support_affinity"].value, figures["novel_accuracy"].value) == (1, 0)
        for name in ("fid", "few_shot_accuracy", "few_shot_accuracy_all", "copy_rate", "novel_accuracy"):
            assert figures[name].copier == pytest.approx(figures[name].value, rel=1e-6), name
    if model is Honest:
        assert figures["support_affinity"].value < 0.1 and figures["novel_accuracy"].value > 0.9
        assert record.splits["out"].affinity_real == figures["support_affinity"].floor


def test_without_a_support_there_is_no_copier_and_no_novelty(tiny):
    model = Painter(replace(CONFIG, encoder=EncoderConfig(architecture="none")))
    model.generate = lambda support, index, **_: torch.zeros(len(index), 1, 8, 8)
    record = evaluate(model, Patterns(), plan_of())
    names = {name.split("/")[0].split("[")[0] for name in record.figures}
    assert names == {"fid", "few_shot_accuracy", "few_shot_accuracy_all", "train_copy_rate"}
    assert all(figure.copier is None for figure in record.figures.values())
    assert record.splits["out"].affinity_real is None


@pytest.mark.parametrize("options", [{"num_real_images": 30}, {"shots": 1}])
def test_copies_are_known_whatever_is_compared(options, tiny):
    """Also where support images are not among the real images that features are kept of."""
    record = evaluate(Copier(), Patterns(), plan_of(**options))
    for name in (f"fid[{TINY}]/out", f"few_shot_accuracy_all[{TINY}]/out", "copy_rate/out"):
        assert record.figures[name].copier == pytest.approx(record.figures[name].value, rel=1e-6), name
