"""FIDCallback's figures compared with torch-fidelity's own, its record, its cached features, and what it refuses."""

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch_fidelity import calculate_metrics

from lightning_vfs.callbacks import FIDCallback
from lightning_vfs.core.config import LatentConfig
from lightning_vfs.core.errors import ConfigError, EvaluationError
from lightning_vfs.data.cache import DamagedCacheWarning
from lightning_vfs.data.pictures import to_uint8
from lightning_vfs.evaluation import evaluate
from lightning_vfs.evaluation.comparison import compare
from lightning_vfs.evaluation.record import EvaluationRecord
from lightning_vfs.metrics.fidelity import FidelityOptions
from lightning_vfs.modules import VFSDDPM

ALL = ["fid", "kid", "isc", "prc"]
DISTANCES = {"fid", "kid", "isc", "precision", "recall"}
SMALL = FidelityOptions(kid_subsets=10, kid_subset_size=20, isc_splits=2)


@pytest.fixture
def fid(tiny, tmp_path):
    """FIDCallback with few images, the tiny extractor, and its record in the test's folder."""

    def make(**kwargs):
        options = {"feature_extractor": tiny, "num_images": 60, "few_shot_way": 5, "steps": 2, "splits": ["out"]}
        return FIDCallback(**options | {"record": tmp_path / "fid.json", "options": SMALL} | kwargs)

    return make


@pytest.fixture
def evaluated(trainer, painter, data, fid):
    """Evaluates, and gives the figures by their logged names."""

    def run(*, model=None, sets=None, **kwargs):
        loop = trainer(fid(**kwargs))
        loop.validate(model or painter(), datamodule=sets or data(), verbose=False)
        return {name: value.item() for name, value in loop.callback_metrics.items()}

    return run


def test_figures_are_those_of_torch_fidelity_on_the_saved_images(evaluated, tiny, tmp_path):
    found = evaluated(metrics=ALL, save_images=tmp_path / "images")
    folders = [tmp_path / "images" / "test" / kind for kind in ("generated", "real")]
    assert [len(list(folder.glob("*.png"))) for folder in folders] == [60, 162]
    expected = calculate_metrics(
        input1=str(folders[0]), input2=str(folders[1]), cuda=False, fid=True, kid=True, isc=True, prc=True,
        feature_extractor=tiny, kid_subsets=10, kid_subset_size=20, isc_splits=2, verbose=False, cache=False,
    )  # fmt: skip
    names = {
        "fid": "frechet_inception_distance", "kid": "kernel_inception_distance_mean", "precision": "precision",
        "isc": "inception_score_mean", "recall": "recall",
    }  # fmt: skip
    for name, theirs in names.items():
        assert found[f"{name}[{tiny}]/out"] == pytest.approx(expected[theirs], rel=1e-6, abs=1e-9), name


def test_figures_do_not_depend_on_the_batch_size_or_the_cache(evaluated):
    first = evaluated(metrics=ALL, batch_size=60)
    assert evaluated(metrics=ALL, batch_size=7) == pytest.approx(first, rel=1e-6)


def test_classes_have_figures_of_their_own(evaluated, data, tiny):
    name = data().split("test").class_names[3]
    found = evaluated(per_class=[name], num_images=162)
    assert found[f"fid[{tiny}]/class/{name}"] > 0
    assert len([key for key in evaluated(per_class=True, num_images=162) if "/class/" in key]) == 27


def test_the_record_tells_everything_that_the_figures_depend_on(evaluated, data, tiny, tmp_path):
    figures = evaluated(metrics=ALL, few_shot_way=[2, 5])
    record = EvaluationRecord.read(tmp_path / "fid.json")
    recorded = {name: figure.value for name, figure in record.figures.items() if "_std" not in name}
    assert recorded == pytest.approx(figures, rel=1e-6)
    split = record.splits["out"]
    assert (split.data_split, split.num_images, split.num_real_images) == ("test", 60, 162)
    assert split.classes == data().split("test").class_names
    assert sum(split.generated_per_class.values()) == 60 and set(split.real_per_class.values()) == {6}
    assert (record.sampling.sampler, record.sampling.steps, record.sampling.shots) == ("ddim", 2, 3)
    assert record.features.extractor == tiny and len(record.features.weights_sha256) == 64
    assert (record.metrics.kid_subset_size, record.metrics.isc_splits, record.metrics.prc_neighborhood) == (20, 2, 3)
    assert record.metrics.few_shot_way == 5
    assert record.metrics.kid_kernel == "(1 / d x.y + 1.0) ^ 3"
    assert record.metrics.isc_order == "shuffled by seed 2020"
    accuracy = record.figures[f"few_shot_accuracy_2[{tiny}]/out"]
    assert accuracy.chance == 0.5
    assert accuracy.floor == record.figures[f"few_shot_accuracy_2[{tiny}]/out_real"].value
    assert record.environment.world_size == 1 and record.model.weights == "raw"


def test_the_floor_is_the_metric_between_real_images(evaluated, tmp_path, tiny):
    evaluated(num_real_images=60)
    floor = EvaluationRecord.read(tmp_path / "fid.json").figures[f"fid[{tiny}]/out"]
    assert floor.floor_images == (60, 60)
    evaluated()
    divided = EvaluationRecord.read(tmp_path / "fid.json").figures[f"fid[{tiny}]/out"]
    assert divided.floor_images == (44, 118)
    for figure in (floor, divided):
        assert 0 < figure.floor < 0.1


def test_two_runs_are_comparable_and_another_number_of_images_is_a_reason(evaluated, tmp_path):
    evaluated()
    first = EvaluationRecord.read(tmp_path / "fid.json")
    evaluated(batch_size=7)
    again = EvaluationRecord.read(tmp_path / "fid.json")
    assert compare(first, again).comparable
    assert {name: f.value for name, f in again.figures.items()} == pytest.approx(
        {name: f.value for name, f in first.figures.items()}, rel=1e-6
    )
    evaluated(num_images=50)
    reasons = compare(first, EvaluationRecord.read(tmp_path / "fid.json")).reasons
    assert any("num_images of split out: 60 against 50" in reason for reason in reasons)


def test_it_lies_beside_the_checkpoint_that_is_tested(trainer, painter, data, fid, tmp_path):
    first = trainer(max_epochs=1)
    first.fit(painter(), datamodule=data())
    (tmp_path / "run").mkdir()
    first.save_checkpoint(tmp_path / "run" / "last.ckpt")
    trainer(fid(record=None)).test(
        painter(), datamodule=data(), ckpt_path=tmp_path / "run" / "last.ckpt", verbose=False
    )
    record = json.loads((tmp_path / "run" / "fid.json").read_text())
    assert record["model"]["checkpoint"].endswith("run/last.ckpt")
    assert record["model"]["global_step"] == first.global_step > 0


@pytest.fixture
def seen(extractor_class, monkeypatch):
    """Numbers of images that the extractor is given."""
    counts = []
    forward = extractor_class.forward
    monkeypatch.setattr(extractor_class, "forward", lambda self, x: counts.append(len(x)) or forward(self, x))
    return counts


def test_real_features_are_computed_once_and_kept_on_disk(evaluated, seen, monkeypatch, tmp_path):
    monkeypatch.setenv("LIGHTNING_VFS_CACHE", str(tmp_path / "cache"))
    first = evaluated(batch_size=1000)
    assert seen.count(162) == 1
    assert evaluated(batch_size=1000) == first
    assert seen.count(162) == 1


def test_a_changed_image_is_seen_by_the_cache(evaluated, data, seen, monkeypatch, tmp_path):
    monkeypatch.setenv("LIGHTNING_VFS_CACHE", str(tmp_path / "cache"))
    evaluated(batch_size=1000)
    sets = data()
    split = sets.split("test")
    split._stored[split._rows[5]] ^= 1
    evaluated(batch_size=1000, sets=sets)
    assert seen.count(162) == 2


def test_a_damaged_cache_is_rebuilt_and_said(evaluated, seen, monkeypatch, tmp_path):
    monkeypatch.setenv("LIGHTNING_VFS_CACHE", str(tmp_path / "cache"))
    first = evaluated(batch_size=1000)
    (file,) = (tmp_path / "cache" / "features").glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:200])
    with pytest.warns(DamagedCacheWarning, match=f"{file.name} is damaged"):
        assert evaluated(batch_size=1000) == first
    assert seen.count(162) == 2
    evaluated(batch_size=1000)
    assert seen.count(162) == 2


def test_the_variational_bound_is_logged_with_its_terms(evaluated, data, tmp_path):
    from .conftest import CONFIG

    torch.manual_seed(0)
    found = evaluated(model=VFSDDPM(CONFIG), vlb_images=5, vlb_steps=4, batch_size=2)
    bound = EvaluationRecord.read(tmp_path / "fid.json").likelihood["out"]
    assert (bound.num_images, bound.steps, len(bound.terms)) == (5, 4, 4)
    assert found["vlb/out"] == pytest.approx(bound.prior + sum(bound.terms))
    assert evaluated(model=VFSDDPM(CONFIG), vlb_images=5, vlb_steps=4)["vlb/out"] == pytest.approx(found["vlb/out"])


def test_a_smaller_support_can_be_asked_for(evaluated, painter, tmp_path):
    model = painter()
    evaluated(model=model, shots=1)
    assert set(model.shots) == {1}
    assert EvaluationRecord.read(tmp_path / "fid.json").sampling.shots == 1
    with pytest.raises(EvaluationError, match=r"shots is 4, but this model takes supports of 1 to 3"):
        evaluated(shots=4)


@pytest.fixture
def guidable(config):
    """A model whose weights are not those of a fresh DiT, which would ignore its context, with a null context."""

    def make(context_dropout=0.1):
        torch.manual_seed(0)
        model = VFSDDPM(replace(config, encoder=replace(config.encoder, context_dropout=context_dropout)))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.3 * torch.randn(parameter.shape))
        return model

    return make


def test_sampler_and_guidance_reach_the_model_and_the_record(evaluated, guidable, data, tmp_path):
    split = data().split("test")
    episodes = split.episodes(20, shots=3, seed=0)
    support, index = split.float(episodes.supports), torch.arange(20)
    seen = []
    for asked, recorded in (
        ({}, ("ddim", 0.0, None, None)),
        ({"guidance_scale": 3.0}, ("ddim", 0.0, 3.0, None)),
        ({"guidance_scale": 3.0, "guidance_interval": (4, 10)}, ("ddim", 0.0, 3.0, (4, 10))),
        ({"sampler": "dpmpp_2m", "guidance_interval": (4, 10)}, ("dpmpp_2m", None, None, None)),
        ({"eta": 0.5}, ("ddim", 0.5, None, None)),
    ):
        evaluated(model=guidable(), num_images=20, steps=4, save_images=tmp_path / str(recorded), **asked)
        sampling = EvaluationRecord.read(tmp_path / "fid.json").sampling
        assert (sampling.sampler, sampling.eta, sampling.guidance, sampling.guidance_interval) == recorded
        saved = sorted((tmp_path / str(recorded) / "test" / "generated").glob("*.png"))
        expected = to_uint8(guidable().generate(support, index, steps=4, **asked))
        pixels = torch.from_numpy(np.stack([np.asarray(Image.open(path)) for path in saved]))[:, None]
        assert torch.equal(pixels, expected), asked
        assert not any(torch.equal(pixels, others) for others in seen), asked
        seen.append(pixels)


def test_guidance_needs_a_null_context(trainer, guidable, data, fid):
    model = guidable(context_dropout=0.0)
    before = [parameter.clone() for parameter in model.parameters()]
    with pytest.raises(ConfigError, match=r"guidance_scale is 2.0, .* train with .*context_dropout 0.1"):
        trainer(fid(guidance_scale=2.0)).fit(model, datamodule=data())
    assert all(torch.equal(*pair) for pair in zip(before, model.parameters(), strict=True))


@pytest.fixture
def latent_painter(painter, config):
    """Paints, and says that it does so in the latents of an autoencoder."""
    latent = LatentConfig("folder", downsampling=2)
    model = painter(replace(config, latent=latent, diffusion=replace(config.diffusion, clip_denoised=False)))
    model.autoencoder = SimpleNamespace(weights_sha256="e" * 64)
    return model


def test_the_autoencoder_of_a_model_of_latents_is_recorded(evaluated, latent_painter, tmp_path):
    evaluated(model=latent_painter)
    assert EvaluationRecord.read(tmp_path / "fid.json").model.autoencoder_sha256 == "e" * 64


def test_a_model_of_latents_has_no_bound_of_pixels(trainer, latent_painter, data, fid):
    with pytest.raises(EvaluationError, match="vlb_images is 5, but this model diffuses latents"):
        trainer(fid(vlb_images=5)).fit(latent_painter, datamodule=data())
    assert latent_painter.path == []


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"metrics": ["kid"], "options": FidelityOptions()}, EvaluationError, "KID needs at least 1,000 generated and"),
        ({"metrics": ["isc"], "num_images": 5, "options": FidelityOptions()}, EvaluationError, "isc_splits"),
        ({"metrics": ["prc"], "num_images": 3}, EvaluationError, "PRC needs at least 4"),
        ({"metrics": ["lpips"]}, EvaluationError, "no metric 'lpips'; known: fid, kid, isc, prc"),
        ({"per_class": ["nobody"]}, ConfigError, "per_class names nobody, but no evaluated split has such a class"),
        ({"per_class": True}, EvaluationError, "FID of a class needs at least 2 generated"),
        ({"num_real_images": 1000}, EvaluationError, "num_real_images is 1000, but split 'test' has 162"),
        ({"few_shot_way": [5, 1]}, ConfigError, r"few_shot_way is \[5, 1\]"),
    ],
)
def test_what_cannot_work_is_refused_before_an_image_is_generated(evaluated, painter, options, error, says):
    model = painter()
    with pytest.raises(error, match=says):
        evaluated(model=model, **options)
    assert not model.levels


def test_images_that_are_not_finite_make_every_distance_nan(fid, painter, data, tmp_path):
    """Without a trainer, which would refuse them."""
    model = painter()
    model.level.data.fill_(math.nan)
    with pytest.warns(UserWarning, match="not finite"):
        record = evaluate(model, data(), fid(metrics=ALL).plan)
    distances = [figure.value for name, figure in record.figures.items() if name.split("[")[0] in DISTANCES]
    assert len(distances) == 5 and np.isnan(distances).all()
    record.write(tmp_path / "fid.json")
    assert '"NaN"' in Path(tmp_path / "fid.json").read_text()
