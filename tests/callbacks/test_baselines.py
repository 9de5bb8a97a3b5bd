"""The callbacks with the baselines: a model that knows its training classes by number, and one that knows none."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_vfs.callbacks import FIDCallback, SampleGridCallback
from lightning_vfs.core.config import EncoderConfig
from lightning_vfs.core.errors import EvaluationError
from lightning_vfs.evaluation.comparison import compare
from lightning_vfs.evaluation.record import EvaluationRecord
from lightning_vfs.modules import VFSDDPM

CLASSES = 27  # of the training split
ENCODERS = {
    "class_label": EncoderConfig(architecture="class_label", dim=8, num_classes=CLASSES),
    "none": EncoderConfig(architecture="none"),
}
ACCURACY = "few_shot_accuracy[tiny-callbacks]/in"


@pytest.fixture
def fid(tiny, tmp_path):
    """FIDCallback with few images, the tiny extractor, and its record in the test's folder."""

    def make(**kwargs):
        options = {"feature_extractor": tiny, "num_images": 30, "few_shot_way": 5, "steps": 2, "splits": ["in"]}
        return FIDCallback(**options | {"record": tmp_path / "fid.json"} | kwargs)

    return make


def grids(**kwargs):
    return SampleGridCallback(**{"num_classes": 3, "num_images": 4, "steps": 2, "split": "train"} | kwargs)


@pytest.fixture
def baseline(config):
    """The real model, tiny, with weights that are not a fresh DiT's, which would ignore the label."""

    def make(architecture):
        torch.manual_seed(0)
        model = VFSDDPM(replace(config, encoder=ENCODERS[architecture]))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.3 * torch.randn(parameter.shape))
        return model

    return make


@pytest.fixture
def namer(painter, data, config):
    """Paints the training class of every label, without a support."""

    class Namer(painter):
        def generate(self, support, index, label=None, **sampling):
            assert support is None and len(label) == len(index)
            split = data().split("train")
            return super().generate(split.float(split.offsets[label.numpy()])[:, None], index)

        def sample_batches(self, label, num_images, **sampling):
            labels = label.repeat_interleave(num_images)
            yield self.generate(None, torch.arange(len(labels)), labels)

    return Namer(replace(config, encoder=ENCODERS["class_label"]))


def test_labels_are_those_of_the_training_classes(trainer, namer, data, fid):
    run = trainer(fid())
    run.validate(namer, datamodule=data(), verbose=False)
    assert run.callback_metrics[ACCURACY].item() > 0.95


@pytest.mark.filterwarnings("ignore:val/loss is left out")
def test_the_real_class_conditional_model_is_evaluated_in_a_fit(trainer, baseline, data, fid, tmp_path):
    run = trainer(fid(vlb_images=4, vlb_steps=3, batch_size=7), grids(), max_epochs=1)
    run.fit(baseline("class_label"), datamodule=data())
    assert {"fid[tiny-callbacks]/in", ACCURACY, "vlb/in"} <= set(run.callback_metrics)
    record = EvaluationRecord.read(tmp_path / "fid.json")
    assert (record.sampling.shots, record.sampling.held_out, record.splits["in"].supports_sha256) == (None,) * 3
    assert (tmp_path / "samples" / "step=00000004.png").is_file()


@pytest.mark.filterwarnings("ignore:val/loss is left out")
def test_images_and_bounds_follow_the_labels(trainer, baseline, data, fid, tmp_path):
    model, split = baseline("class_label"), data().split("train")
    run = trainer(fid(save_images=tmp_path / "images", vlb_images=5, vlb_steps=3, batch_size=2))
    run.validate(model, datamodule=data(), verbose=False)
    episodes = split.episodes(30, shots=1, seed=0)
    labels, index = torch.from_numpy(episodes.labels), torch.arange(30)
    expected = model.generate(None, index, steps=2, label=labels)
    saved = [Image.open(tmp_path / "images" / "train" / "generated" / f"{i:06d}.png") for i in range(30)]
    pixels = torch.from_numpy(np.stack([np.asarray(image) for image in saved]))[:, None]
    assert (pixels / 127.5 - 1 - expected).abs().max() < 0.5 / 127
    bound = model.bits_per_dim(split.float(episodes.targets[:5]), None, index[:5], steps=3, label=labels[:5])
    record = EvaluationRecord.read(tmp_path / "fid.json")
    assert record.likelihood["in"].terms == pytest.approx(bound.terms.mean(dim=0).tolist(), rel=1e-5)


def test_an_unconditional_model_is_evaluated_on_both_splits(trainer, baseline, data, fid, tmp_path):
    run = trainer(fid(splits=["in", "out"], num_images=150, vlb_images=2, vlb_steps=3), grids(split="test"))
    run.test(baseline("none"), datamodule=data(), verbose=False)
    for split in ("in", "out"):
        assert run.callback_metrics[ACCURACY.replace("/in", f"/{split}")].item() == pytest.approx(1 / 5, abs=0.12)
        assert run.callback_metrics[f"vlb/{split}"].item() > 0
    with Image.open(tmp_path / "samples" / "test.png") as picture:
        assert picture.size == (4 * 52 + 4, 3 * 52 + 4 + 18), "rows of generated images alone, and a caption"
        rows = np.asarray(picture)
        assert not np.array_equal(rows[2:54], rows[54:106]), "every image has noise of its own"


def test_a_baseline_is_comparable_with_a_few_shot_model(trainer, painter, baseline, data, fid, tmp_path):
    records = []
    for model in (painter(), baseline("none")):
        trainer(fid()).validate(model, datamodule=data(), verbose=False)
        records.append(EvaluationRecord.read(tmp_path / "fid.json"))
    assert compare(*records).reasons == []


@pytest.mark.parametrize(
    ("architecture", "options", "says"),
    [
        ("class_label", {"splits": ["in", "out"]}, r"splits has 'out', .* set splits to \['in'\]"),
        ("class_label", {"shots": 1}, "shots is 1, but this model takes no support .*'class_label'"),
        ("none", {"shots": 3}, "shots is 3, but this model takes no support .*'none'.*: set it to null"),
    ],
)
def test_what_a_baseline_cannot_do_is_said_before_training(
    trainer, painter, config, data, fid, architecture, options, says
):
    model = painter(replace(config, encoder=ENCODERS[architecture]))
    with pytest.raises(EvaluationError, match=says):
        trainer(fid(**options)).fit(model, datamodule=data())
    assert model.path == []


def test_rows_of_a_class_conditional_model_are_its_training_classes(trainer, namer, data, tmp_path):
    run = trainer(grids())
    run.validate(namer, datamodule=data(), verbose=False)
    with Image.open(tmp_path / "samples" / "validate.png") as picture:
        pixels = np.asarray(picture).astype(float)[..., 0]
    tile = 48 + 4
    assert pixels.shape == (3 * tile + 4 + 18, 7 * tile + 16 + 4), "3 real, a line, 4 generated; a caption"
    for row in range(3):
        band = pixels[2 + row * tile + 2 :][:48]
        real, generated = band[:, 4 : 4 + 48], band[:, 2 + 3 * tile + 16 + 2 :][:, :48]
        others = [pixels[2 + other * tile + 2 :][:48, 4 : 4 + 48] for other in range(3) if other != row]
        assert abs(generated - real).mean() < 30 < min(abs(generated - other).mean() for other in others)


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_class_conditional_model_shows_no_other_split(trainer, namer, data, split):
    with pytest.raises(EvaluationError, match=f"split is '{split}', but a class-conditional model .* to 'train'"):
        trainer(grids(split=split)).fit(namer, datamodule=data())
    assert namer.path == []
