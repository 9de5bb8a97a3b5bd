"""FIDCallback: when it evaluates, what it logs, and what it leaves as it was."""

import copy
import csv
import random
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY

from lightning_vfs.callbacks import EMACallback, FIDCallback, SampleGridCallback
from lightning_vfs.core.errors import ConfigError, EvaluationError, SetSizeMismatchError
from lightning_vfs.data.pictures import to_uint8
from lightning_vfs.evaluation import EvaluationRecord
from lightning_vfs.metrics import INCEPTION, FewShotAccuracy, FidelityMetric, ImageFeatures
from lightning_vfs.modules import VFSDDPM

NOVEL = tuple(f"{name}/out" for name in ("support_affinity", "copy_rate", "train_copy_rate"))
NOVEL += tuple(f"{name}[tiny-callbacks]/out" for name in ("novel_accuracy", "few_shot_accuracy_all"))
DIVERSITY = ("diversity[tiny-callbacks]/out", "diversity_pixels/out")
OUT = ("fid[tiny-callbacks]/out", "few_shot_accuracy[tiny-callbacks]/out", "few_shot_accuracy[tiny-callbacks]/out_real")


@pytest.fixture
def fid(tiny):
    """FIDCallback with few images, one of each support, and the tiny extractor."""

    def make(**kwargs):
        few = {"num_images": 30, "few_shot_way": 5, "steps": 2, "diversity_images": 0}
        return FIDCallback(**{"feature_extractor": tiny} | few | kwargs)

    return make


def figures(run):
    return {name: value.item() for name, value in run.callback_metrics.items()}


def test_logs_both_splits_and_the_figures_of_real_images(trainer, painter, data, fid):
    run = trainer(fid(diversity_images=2))
    run.validate(painter(), datamodule=data(), verbose=False)
    found = figures(run)
    names = {*OUT, *NOVEL, *DIVERSITY}
    assert set(found) == names | {name.replace("/out", "/in") for name in names}
    assert 0 < found[OUT[0]] < 0.1
    assert found[OUT[1]] > 0.95
    assert found[OUT[2]] > 0.95


def test_the_default_extractor_gives_plain_names(trainer, painter, data, extractor_class, monkeypatch):
    monkeypatch.setitem(FEATURE_EXTRACTORS_REGISTRY, INCEPTION, extractor_class)
    run = trainer(FIDCallback(num_images=4, steps=2, splits=["out"]))
    run.validate(painter(), datamodule=data(), verbose=False)
    assert set(figures(run)) == {name.replace("[tiny-callbacks]", "") for name in (*OUT, *NOVEL, *DIVERSITY)}


@pytest.mark.parametrize("num_real", [None, 100])
def test_figure_is_that_of_images_generated_from_the_episodes(trainer, painter, data, fid, tiny, num_real):
    run = trainer(fid(few_shot_way=None, splits=["out"], seed=7, num_real_images=num_real))
    model, sets = painter(), data()
    run.validate(model, datamodule=sets, verbose=False)
    split, metric = sets.split("test"), FidelityMetric(ImageFeatures(tiny))
    episodes = split.episodes(100, shots=3, seed=7)
    generated = model.generate(split.float(episodes.supports[:30]), torch.arange(30), seed=7)
    real = split.images if num_real is None else split.uint8(episodes.targets)
    metric.update(to_uint8(generated), real=False, index=torch.arange(30))
    metric.update(real, real=True, index=torch.arange(len(real)))
    assert set(figures(run)) == {OUT[0], *NOVEL}
    assert figures(run)[OUT[0]] == pytest.approx(metric.compute()["fid"].item(), rel=1e-6)


def test_accuracy_of_real_images_leaves_each_out_of_its_mean(trainer, painter, data, fid, tiny):
    run, sets = trainer(fid(splits=["out"])), data(noise=150)
    run.validate(painter(), datamodule=sets, verbose=False)
    split = sets.split("test")
    features, labels = ImageFeatures(tiny)(split.images)["16"], torch.from_numpy(split.labels)
    metric = FewShotAccuracy(features, labels, way=5)
    metric.update(features, labels, torch.arange(len(split)), leave_one_out=True)
    assert metric.compute().item() < 0.95
    assert figures(run)[OUT[2]] == pytest.approx(metric.compute().item())


def test_figures_do_not_depend_on_the_batch_size(trainer, painter, data, fid):
    found = []
    for batch_size in (250, 7, 1):
        run = trainer(fid(batch_size=batch_size))
        run.validate(painter(), datamodule=data(), verbose=False)
        found.append(figures(run))
    assert found[1] == pytest.approx(found[0], rel=1e-6)
    assert found[2] == pytest.approx(found[0], rel=1e-6)


def test_a_model_that_ignores_its_support_is_at_chance(trainer, painter, data, fid):
    model = painter()
    honest = model.generate
    model.generate = lambda support, **kwargs: honest(support.roll(1, dims=0), **kwargs)
    run = trainer(fid(num_images=150, splits=["out"]))
    run.validate(model, datamodule=data(), verbose=False)
    assert figures(run)[OUT[1]] == pytest.approx(1 / 5, abs=0.1)
    assert figures(run)[OUT[0]] < 0.1, "FID does not see it"


@pytest.mark.parametrize(("every", "evaluations"), [(1, 4), (2, 2), (3, 1), (None, 0)])
def test_every_n_epochs(trainer, painter, data, fid, every, evaluations):
    model = painter()
    trainer(fid(every_n_epochs=every, splits=["out"]), max_epochs=4).fit(model, datamodule=data())
    assert len(model.levels) == evaluations


def test_every_n_steps_counts_optimizer_steps_once(trainer, painter, data, fid):
    model = painter()
    run = trainer(fid(every_n_epochs=None, every_n_steps=2, splits=["out"]), accumulate_grad_batches=2, max_epochs=4)
    run.fit(model, datamodule=data())
    assert run.global_step == 8
    assert len(model.levels) == 4


def test_figures_of_steps_reach_the_logger_whatever_it_skips(trainer, painter, data, fid, tmp_path):
    logger = CSVLogger(tmp_path)
    run = trainer(fid(every_n_epochs=None, every_n_steps=3, splits=["out"]), logger=logger, log_every_n_steps=50)
    run.fit(painter(), datamodule=data())
    with open(tmp_path / "lightning_logs" / "version_0" / "metrics.csv") as file:
        rows = [row for row in csv.DictReader(file) if row[OUT[0]]]
    assert [int(row["step"]) for row in rows] == [2, 5]
    assert set(OUT) <= set(run.callback_metrics)


def test_sanity_check_is_skipped(trainer, painter, data, fid):
    model = painter()
    trainer(fid(splits=["in"]), num_sanity_val_steps=1, max_epochs=1).fit(model, datamodule=data())
    assert len(model.levels) == 1


def test_validate_and_test_always_evaluate(trainer, painter, data, fid):
    model = painter()
    run = trainer(fid(every_n_epochs=None, splits=["in"]))
    run.fit(model, datamodule=data())
    assert model.levels == []
    run.validate(model, datamodule=data(), verbose=False)
    run.test(model, datamodule=data(), verbose=False)
    assert len(model.levels) == 2


@pytest.mark.parametrize("every", [{"every_n_epochs": 1}, {"every_n_epochs": None, "every_n_steps": 2}])
def test_modes_and_random_numbers_are_left_as_they_were(trainer, painter, data, fid, every):
    def states_after(*callbacks):
        model = painter()
        model.dropout.eval()
        random.seed(1), np.random.seed(1), torch.manual_seed(1)
        trainer(*callbacks).fit(model, datamodule=data())
        return model, (random.random(), np.random.rand(), torch.rand(1).item(), model.dropout.training, model.training)

    model, states = states_after(fid(splits=["out"], **every))
    assert model.modes and not any(model.modes)
    assert states == states_after()[1]


def test_epochs_and_steps_together(trainer, painter, data, fid):
    model = painter()
    run = trainer(fid(every_n_epochs=1, every_n_steps=6, splits=["out"]), max_epochs=2)
    run.fit(model, datamodule=data())
    assert model.levels == pytest.approx([0.6, 0.4, 0.2]), "after 4, 6 and 8 steps"


def test_model_checkpoint_can_monitor_it(trainer, painter, data, fid, tmp_path):
    best = ModelCheckpoint(tmp_path, monitor=OUT[0], save_top_k=1)
    trainer(fid(), best, enable_checkpointing=True).fit(painter(), datamodule=data())
    assert best.best_model_score.item() > 0


def test_images_that_are_not_finite_give_nan_and_a_warning_and_outside_training_no_record(
    trainer, painter, data, fid, tmp_path
):
    model = painter()
    model.level.data.fill_(torch.nan)
    run = trainer(fid(splits=["out"]), max_epochs=1)
    with pytest.warns(UserWarning, match="its weights level are not finite"):
        run.fit(model, datamodule=data())
    assert np.isnan(figures(run)[OUT[0]])
    assert figures(run)[OUT[1]] == 0
    (tmp_path / "fid.json").unlink()
    with (
        pytest.raises(EvaluationError, match=rf"{re.escape(OUT[0])}: not finite, and no record .* weights level are"),
        pytest.warns(UserWarning, match="not finite"),
    ):
        trainer(fid(splits=["out"])).validate(model, datamodule=data(), verbose=False)
    assert not (tmp_path / "fid.json").exists()


def test_a_grid_of_images_that_are_not_finite_is_no_black_picture(trainer, painter, data, tmp_path):
    model = painter()
    model.level.data.fill_(torch.nan)
    grids = SampleGridCallback(num_classes=3, num_images=2, steps=2)
    with pytest.warns(UserWarning, match="There is no grid, .* weights level are not finite"):
        trainer(grids).validate(model, datamodule=data(), verbose=False)
    assert not (tmp_path / "samples").exists()


def test_a_run_without_validation_is_told(trainer, painter, data, fid):
    with pytest.warns(UserWarning, match="this run has no validation"):
        trainer(fid(), limit_val_batches=0).fit(painter(), datamodule=data())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_real_images": 1000}, "num_real_images is 1000, but split 'train' has 162 images"),
        ({"steps": 11}, "11 steps, but the diffusion has 10"),
        ({"feature_extractor": "nonsense"}, "no feature extractor 'nonsense'"),
        ({"weights_path": "nowhere.pth"}, "nowhere.pth is not a file"),
    ],
)
def test_what_cannot_work_is_said_before_training(trainer, painter, data, fid, options, message):
    model = painter()
    with pytest.raises(EvaluationError, match=message):
        trainer(fid(**options)).fit(model, datamodule=data())
    assert model.path == []


def test_of_fewer_classes_it_chooses_among_as_many_as_there_are(trainer, painter, data, fid, tiny, tmp_path):
    run = trainer(fid(few_shot_way=[5, 50], splits=["out"], record=tmp_path / "fid.json"))
    with pytest.warns(UserWarning, match=r"among 50 classes .* split 'test' has 27: it chooses among 27"):
        (figures,) = run.test(painter(), datamodule=data(), verbose=False)
    record = EvaluationRecord.read(tmp_path / "fid.json")
    assert record.metrics.few_shot_way == 27 and any("chooses among 27" in note for note in record.notes)
    name = f"few_shot_accuracy[{tiny}]/out"
    assert record.figures[name].chance == 1 / 27 and name in figures
    assert f"few_shot_accuracy_5[{tiny}]/out" in figures


def test_a_data_module_is_needed(trainer, painter, data, fid):
    loader = data().train_dataloader()
    with pytest.raises(EvaluationError, match=r"FIDCallback takes .* from a SetDataModule .* the trainer has none"):
        trainer(fid()).fit(painter(), train_dataloaders=loader)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_images": 1}, "num_images is 1; .* at least 2"),
        ({"num_images": 10.5}, "num_images is 10.5"),
        ({"batch_size": None}, "batch_size is None; .* at least 1"),
        ({"every_n_steps": 0}, "every_n_steps is 0; .* at least 1"),
        ({"splits": ["train"]}, "splits is .'train'.; .*'in', 'out'"),
        ({"splits": "in"}, "splits is 'in'"),
        ({"sampler": "plms"}, "sampler is 'plms'; allowed: 'ddpm', 'ddim', 'dpmpp_2m'"),
        ({"steps": 0}, "steps is 0; .* at least 1"),
        ({"sampler": "ddpm", "eta": 0.5}, "eta is 0.5, but it is DDIM's"),
        ({"guidance_scale": -1.0}, "guidance_scale is -1.0"),
        ({"guidance_interval": (8, 2)}, r"guidance_interval is \(8, 2\)"),
        ({"few_shot_way": 1}, "few_shot_way is 1"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        FIDCallback(**options)


def test_with_the_real_model(trainer, config, data, fid):
    model = VFSDDPM(config)
    callbacks = (EMACallback(), fid())
    run = trainer(*callbacks, max_epochs=1, precision="bf16-mixed")
    run.fit(model, datamodule=data())
    assert set(OUT) <= set(run.callback_metrics)
    assert figures(run)[OUT[0]] > 0
    names = set(copy.deepcopy(model).state_dict())
    assert not any("extractor" in name or "fid" in name for name in names)


def test_a_checkpoint_decides_over_a_stale_configuration(trainer, painter, config, data, fid, tmp_path):
    first = trainer(max_epochs=1)
    first.fit(painter(), datamodule=data())
    first.save_checkpoint(tmp_path / "last.ckpt")
    stale = painter(replace(config, sets=replace(config.sets, set_size=3)))
    trainer(fid()).validate(
        stale, datamodule=data(), ckpt_path=tmp_path / "last.ckpt", weights_only=True, verbose=False
    )
    assert stale.shots == [3, 3]


def test_the_model_is_asked_whether_the_data_fits(trainer, painter, data, fid):
    with pytest.raises(SetSizeMismatchError, match="4 and 5"):
        trainer(fid()).fit(painter(), datamodule=data(set_size=5))


def test_the_real_model_refuses_data_of_another_set_size(trainer, config, data, fid):
    with pytest.raises(SetSizeMismatchError, match="sets of 5"):
        trainer(fid()).fit(VFSDDPM(config), datamodule=data(set_size=5))
