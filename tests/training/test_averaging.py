"""The averaged weights are evaluated: whatever the order of callbacks, in every hook, but never before they exist."""

import json
import warnings
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging, ModelCheckpoint
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_vfs import VFSDDPM
from lightning_vfs.callbacks import EMACallback, FIDCallback, SampleGridCallback
from lightning_vfs.core.errors import ConfigError
from tests.simulated_gpu import simulated_gpu


def average(path, decay=0.5):
    """EMA of the weights after each step."""
    value = path[0]
    for level in path[1:]:
        value = decay * value + (1 - decay) * level
    return value


AFTER_STEP = [1 - 0.1 * step for step in range(1, 9)]


def ema(**kwargs):
    return EMACallback(decay=0.5, warmup=False, **kwargs)


def evaluate_every(tiny, **kwargs):
    # the model notes its weights whenever it generates: once an evaluation
    options = {"num_images": 4, "splits": ["out"], "few_shot_way": 2, "steps": 2, "diversity_images": 0}
    return FIDCallback(feature_extractor=tiny, **options, **kwargs)


@pytest.mark.parametrize("ema_first", [True, False])
def test_at_the_end_of_validation(trainer, painter, data, tiny, ema_first):
    model, fid, averaging = painter(), evaluate_every(tiny), ema()
    trainer(*((averaging, fid) if ema_first else (fid, averaging))).fit(model, datamodule=data())
    assert model.levels == pytest.approx([average(AFTER_STEP[:4]), average(AFTER_STEP[:8])])
    assert model.path == pytest.approx([1.0, *AFTER_STEP[:7]]), "training went on with the raw weights"


@pytest.mark.parametrize("ema_first", [True, False])
def test_after_training_steps(trainer, painter, data, tiny, ema_first):
    model, fid, averaging = painter(), evaluate_every(tiny, every_n_epochs=None, every_n_steps=3), ema()
    trainer(*((averaging, fid) if ema_first else (fid, averaging))).fit(model, datamodule=data())
    assert model.levels == pytest.approx([average(AFTER_STEP[:3]), average(AFTER_STEP[:6])])
    assert model.path == pytest.approx([1.0, *AFTER_STEP[:7]])


@pytest.mark.parametrize("ema_first", [True, False])
@pytest.mark.parametrize("interval", [{"every_n_epochs": 1}, {"every_n_epochs": None, "every_n_steps": 4}])
def test_an_average_that_was_never_updated_is_not_evaluated(trainer, painter, data, tiny, ema_first, interval):
    model, fid, averaging = painter(), evaluate_every(tiny, **interval), ema(start_step=5)
    trainer(*((averaging, fid) if ema_first else (fid, averaging))).fit(model, datamodule=data())
    assert model.levels == pytest.approx([AFTER_STEP[3], average(AFTER_STEP[5:8])])
    assert model.path == pytest.approx([1.0, *AFTER_STEP[:7]])


@pytest.mark.parametrize("ema_first", [True, False])
def test_sample_grids_too(trainer, painter, data, ema_first):
    model, grids, averaging = painter(), SampleGridCallback(num_classes=2, num_images=2, steps=2), ema()
    trainer(*((averaging, grids) if ema_first else (grids, averaging))).fit(model, datamodule=data())
    assert model.levels == pytest.approx([average(AFTER_STEP[:4]), average(AFTER_STEP[:8])])


@pytest.mark.parametrize("ema_first", [True, False])
def test_validate_and_test_after_training(trainer, painter, data, tiny, ema_first):
    model, fid, averaging = painter(), evaluate_every(tiny, every_n_epochs=None), ema()
    run = trainer(*((averaging, fid) if ema_first else (fid, averaging)))
    run.fit(model, datamodule=data())
    run.validate(model, datamodule=data(), verbose=False)
    run.test(model, datamodule=data(), verbose=False)
    assert model.levels == pytest.approx([average(AFTER_STEP[:8])] * 2)


def test_a_checkpoint_is_evaluated_with_the_average_it_holds(trainer, painter, data, tiny, tmp_path):
    run = trainer(ema())
    run.fit(painter(), datamodule=data())
    run.save_checkpoint(tmp_path / "last.ckpt")
    for first in (True, False):
        model, fid = painter(), evaluate_every(tiny)
        later = trainer(*((fid, ema()) if first else (fid,)))
        later.test(model, datamodule=data(), ckpt_path=tmp_path / "last.ckpt", weights_only=True, verbose=False)
        assert model.levels == pytest.approx([average(AFTER_STEP[:8])])


def test_the_weights_come_back_after_an_error(trainer, painter, data, tiny):
    model, fid = painter(), evaluate_every(tiny, every_n_epochs=None, every_n_steps=3)

    def broken(*args, **kwargs):
        assert model.level.item() == pytest.approx(average(AFTER_STEP[:3]))
        raise RuntimeError("out of memory")

    model.generate = broken
    with pytest.raises(RuntimeError, match="out of memory"):
        trainer(ema(), fid).fit(model, datamodule=data())
    assert model.level.item() == pytest.approx(AFTER_STEP[2])


# -- the callback itself ----------------------------------------------------------------------------------------------


def test_the_decay_warms_up(trainer, painter, data):
    """Against the recursion, with d = min(decay, (1 + n) / (10 + n)) for the n-th update."""
    model = painter()
    trainer(EMACallback(decay=0.4)).fit(model, datamodule=data())
    expected = AFTER_STEP[0]
    for n, level in enumerate(AFTER_STEP[1:], start=1):
        decay = min(0.4, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * level
    assert model.level.item() == pytest.approx(expected)
    assert expected != pytest.approx(average(AFTER_STEP, decay=0.4), abs=1e-4)


def test_of_a_short_run_the_average_is_not_that_of_the_initial_weights(trainer, painter, data):
    """findings: with a decay of 0.9999 all figures of the first 10,000 steps were of initial weights."""
    model = painter()
    trainer(EMACallback(decay=0.9999)).fit(model, datamodule=data())
    assert model.level.item() < 0.5 * (1 + AFTER_STEP[-1])


@pytest.mark.parametrize("options", [{"decay": 1.0}, {"decay": -0.1}, {"start_step": -1}, {"start_step": True}])
def test_options_out_of_range_are_refused(options):
    (name,) = options
    with pytest.raises(ConfigError, match=rf"EMACallback.{name} is .*; it must be"):
        EMACallback(**options)


def test_the_average_is_ours(trainer, config, data):
    with pytest.raises(ConfigError, match=r"Lightning's EMAWeightAveraging, .* Use lightning_vfs.EMACallback"):
        trainer(EMAWeightAveraging()).fit(VFSDDPM(config), datamodule=data())


class Operations(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.found.append(str(func))
        return func(*args, **(kwargs or {}))


class Counting(EMACallback):
    def on_train_batch_end(self, *args):
        with Operations() as operations:
            super().on_train_batch_end(*args)
        self.counts = [*getattr(self, "counts", []), operations.found]


@pytest.mark.filterwarnings("ignore:--trainer.precision bf16-true keeps the weights")
@pytest.mark.parametrize(("precision", "most"), [("32-true", 1), ("bf16-true", 2), ("64-true", 1)])
def test_an_update_is_two_operations_at_most_and_reads_nothing(trainer, config, data, precision, most):
    callback, model = Counting(), VFSDDPM(config)
    trainer(callback, precision=precision, max_epochs=1).fit(model, datamodule=data())
    assert len(list(model.parameters())) > 30
    # The first copies, and the second of bf16 weights makes room for them in float32.
    assert [len(found) for found in callback.counts[2:]] == [most] * 2, callback.counts[2:]
    assert not any("_local_scalar_dense" in name for found in callback.counts for name in found)


def test_another_model_keeps_its_weights(trainer, painter, data, tiny, tmp_path):
    """The same trainer evaluates what it is given: another model, a checkpoint, or the trained one."""
    trained, other = painter(), painter()
    other.level.data.fill_(0.75)
    run = trainer(ema(), evaluate_every(tiny, every_n_epochs=None))
    run.fit(trained, datamodule=data())
    run.test(other, datamodule=data(), verbose=False)
    run.validate(other, datamodule=data(), verbose=False)
    assert other.levels == [0.75, 0.75] and other.level.item() == 0.75
    run.save_checkpoint(tmp_path / "other.ckpt")
    saved = torch.load(tmp_path / "other.ckpt", weights_only=True)
    assert saved["state_dict"]["level"] == 0.75 and "current_model_state" not in saved
    run.test(trained, datamodule=data(), verbose=False)
    assert trained.levels == pytest.approx([average(AFTER_STEP)])


def test_a_second_fit_goes_on_with_the_weights(trainer, painter, data):
    model = painter()
    run = trainer(ema(), max_epochs=1)
    run.fit(model, datamodule=data())
    run.fit_loop.max_epochs = 2
    run.fit(model, datamodule=data())
    assert model.path == pytest.approx([1.0, *AFTER_STEP[:7]])
    assert model.level.item() == pytest.approx(average(AFTER_STEP))


class SaveEverywhere(Callback):
    """A checkpoint in every hook, by its name."""

    def __init__(self, folder):
        self.folder = folder

    def save(self, trainer, name):
        trainer.save_checkpoint(self.folder / f"{name}.ckpt", weights_only=False)

    def on_validation_epoch_end(self, trainer, pl_module):
        self.save(trainer, "in validation")

    def on_train_end(self, trainer, pl_module):
        self.save(trainer, "at the end")


@pytest.mark.parametrize("ema_first", [True, False])
def test_a_checkpoint_holds_both_wherever_the_average_is(trainer, painter, data, tmp_path, ema_first):
    saving, averaging = SaveEverywhere(tmp_path), ema()
    run = trainer(*((averaging, saving) if ema_first else (saving, averaging)), max_epochs=1)
    run.fit(painter(), datamodule=data())
    saving.save(run, "afterwards")
    for name in ("in validation", "at the end", "afterwards"):
        saved = torch.load(tmp_path / f"{name}.ckpt", weights_only=True)
        assert saved["state_dict"]["level"].item() == pytest.approx(average(AFTER_STEP[:4])), name
        assert saved["current_model_state"]["level"].item() == pytest.approx(AFTER_STEP[3]), name


def test_a_run_that_ends_before_its_first_save_keeps_its_weights(trainer, painter, data, tmp_path):
    """`last.ckpt` used to hold the average twice."""
    saving = ModelCheckpoint(tmp_path, save_last=True, every_n_train_steps=1000, save_top_k=0)
    trainer(ema(), saving, enable_checkpointing=True, max_steps=3).fit(painter(), datamodule=data())
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert saved["current_model_state"]["level"].item() == pytest.approx(AFTER_STEP[2])
    assert saved["state_dict"]["level"].item() == pytest.approx(average(AFTER_STEP[:3]))


@pytest.mark.filterwarnings("ignore:EMACallback.start_step is 10, but the run ends")
def test_until_there_is_an_average_a_checkpoint_holds_the_weights(trainer, painter, data, tmp_path):
    run = trainer(ema(start_step=10), max_epochs=1)
    run.fit(painter(), datamodule=data())
    run.save_checkpoint(tmp_path / "last.ckpt")
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert saved["state_dict"]["level"].item() == pytest.approx(AFTER_STEP[3])
    assert "averaging_state" not in saved


def test_checkpoints_of_lightnings_average_are_resumed(trainer, painter, data, tmp_path):
    theirs = EMAWeightAveraging(decay=0.5, use_buffers=False)
    keep = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=4, save_top_k=-1)
    trainer(theirs, keep, enable_checkpointing=True, max_epochs=1).fit(painter(), datamodule=data())
    model, averaging = painter(), ema()
    trainer(averaging).fit(model, datamodule=data(), ckpt_path=tmp_path / "step=4.ckpt", weights_only=True)
    assert model.path == pytest.approx(AFTER_STEP[3:7])
    assert model.level.item() == pytest.approx(average(AFTER_STEP))
    assert averaging.updates == 8


@pytest.mark.filterwarnings("ignore:The checkpoint holds averaged weights, but this run has no EMACallback")
def test_a_run_without_an_average_goes_on_with_the_weights(trainer, config, data, tmp_path):
    before = VFSDDPM(config)
    run = trainer(EMACallback(decay=0.9), max_epochs=1)
    run.fit(before, datamodule=data())
    run.save_checkpoint(tmp_path / "last.ckpt")
    raw = torch.load(tmp_path / "last.ckpt", weights_only=True)["current_model_state"]
    after = VFSDDPM(config)
    started = []

    class Start(Callback):
        def on_train_start(self, trainer, pl_module):
            started.append({name: value.clone() for name, value in pl_module.state_dict().items()})

    trainer(Start(), max_epochs=2).fit(after, datamodule=data(), ckpt_path=tmp_path / "last.ckpt")
    assert all(torch.equal(started[0][name], value) for name, value in raw.items())
    name = "denoiser.final.proj.weight"
    assert not torch.equal(raw[name], before.state_dict()[name]), "the average is another"


def test_a_callback_that_goes_to_another_trainer_averages_there_too(trainer, painter, data):
    model, averaging = painter(), ema()
    trainer(averaging).fit(model, datamodule=data())
    trainer(averaging, max_epochs=1).fit(model, datamodule=data())
    levels = [AFTER_STEP[-1] - 0.1 * step for step in range(1, 5)]
    assert model.level.item() == pytest.approx(average([average(AFTER_STEP), *levels]))


def test_a_fit_that_has_nothing_to_do_leaves_the_average(trainer, painter, data, tmp_path):
    model = painter()
    run = trainer(ema())
    run.fit(model, datamodule=data())
    run.fit(model, datamodule=data())
    assert model.level.item() == pytest.approx(average(AFTER_STEP))
    run.save_checkpoint(tmp_path / "last.ckpt")
    resumed = painter()
    trainer(ema()).fit(resumed, datamodule=data(), ckpt_path=tmp_path / "last.ckpt", weights_only=True)
    assert resumed.level.item() == pytest.approx(average(AFTER_STEP))


def test_a_checkpoint_of_weights_alone_has_the_average(trainer, config, data, tmp_path):
    saving = ModelCheckpoint(tmp_path, filename="{step}", save_weights_only=True, every_n_train_steps=4)
    model = VFSDDPM(config)
    trainer(EMACallback(decay=0.9), saving, enable_checkpointing=True, max_epochs=1).fit(model, datamodule=data())
    saved = torch.load(tmp_path / "step=4.ckpt", weights_only=True)
    name = "denoiser.final.proj.weight"
    assert torch.equal(saved["state_dict"][name], model.state_dict()[name])
    assert not torch.equal(saved["current_model_state"][name], saved["state_dict"][name])


def test_what_is_tested_after_training_is_recorded_as_what_it_is(trainer, config, data, tiny, tmp_path):
    model = VFSDDPM(config)
    run = trainer(EMACallback(decay=0.9), evaluate_every(tiny, every_n_epochs=None, record=tmp_path / "fid.json"))
    run.fit(model, datamodule=data())
    run.test(model, datamodule=data(), verbose=False)
    record = json.loads((tmp_path / "fid.json").read_text())["model"]
    found = [record[name] for name in ("weights", "global_step", "averaging_decay", "averaging_warmup")]
    assert found == ["averaged", 8, 0.9, True]


def test_the_weights_outlive_the_test_of_another_models_checkpoint(trainer, painter, data, tmp_path):
    model, other = painter(), painter()
    run = trainer(ema(), max_epochs=1)
    run.fit(model, datamodule=data())
    run.save_checkpoint(tmp_path / "other.ckpt")
    run.test(other, datamodule=data(), ckpt_path=tmp_path / "other.ckpt", weights_only=True, verbose=False)
    run.fit_loop.max_epochs = 2
    run.fit(model, datamodule=data())
    assert model.path == pytest.approx([1.0, *AFTER_STEP[:7]])


def test_weights_that_are_put_in_after_training_are_kept(trainer, painter, data, tmp_path):
    model = painter()
    run = trainer(ema(), max_epochs=1)
    run.fit(model, datamodule=data())
    model.level.data.fill_(5.0)
    run.save_checkpoint(tmp_path / "mine.ckpt")
    assert torch.load(tmp_path / "mine.ckpt", weights_only=True)["state_dict"]["level"] == 5
    run.fit_loop.max_epochs = 2
    run.fit(model, datamodule=data())
    assert model.path[4:] == pytest.approx([5.0, 4.9, 4.8, 4.7])


class Unfreeze(Callback):
    def on_train_epoch_end(self, trainer, pl_module):
        pl_module.late.requires_grad = True


def test_parameters_that_are_unfrozen_or_tied_are_averaged(trainer, painter, data, tmp_path):
    model = painter()
    model.late = torch.nn.Parameter(torch.tensor(1.0), requires_grad=False)
    model.tied = model.level
    model.configure_optimizers = lambda: torch.optim.SGD([model.level, model.late], lr=0.1)
    model.training_step = lambda batch, batch_idx: model.level + model.late
    run = trainer(ema(), Unfreeze())
    run.fit(model, datamodule=data())
    assert model.level.item() == pytest.approx(average(AFTER_STEP))
    assert model.late.item() == pytest.approx(average([0.9, 0.8, 0.7, 0.6]))
    run.save_checkpoint(tmp_path / "last.ckpt")
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert saved["state_dict"]["tied"] == saved["state_dict"]["level"] != saved["current_model_state"]["level"]
    assert saved["current_model_state"]["tied"] == saved["current_model_state"]["level"]
    run.fit_loop.max_epochs = 3
    run.fit(model, datamodule=data(), ckpt_path=tmp_path / "last.ckpt", weights_only=True)


class Broken(Callback):
    def on_validation_epoch_end(self, trainer, pl_module):
        raise RuntimeError("no space left")


def test_an_error_in_validation_leaves_the_weights(trainer, painter, data):
    model = painter()
    with pytest.raises(RuntimeError, match="no space left"):
        trainer(ema(), Broken()).fit(model, datamodule=data())
    assert model.level.item() == pytest.approx(AFTER_STEP[3])


def test_frozen_parameters_and_buffers_stay_as_they_are(trainer, painter, data):
    model = painter()
    model.frozen = torch.nn.Parameter(torch.tensor(2.0), requires_grad=False)
    model.register_buffer("count", torch.tensor(3))
    trainer(ema()).fit(model, datamodule=data())
    assert (model.frozen.item(), model.count.item()) == (2.0, 3)


def test_a_start_that_is_never_reached_is_warned_of(trainer, painter, data):
    with pytest.warns(UserWarning, match=r"start_step is 8, but the run ends with step 8: there will be no average"):
        trainer(ema(start_step=8)).fit(painter(), datamodule=data())
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="EMACallback")
        trainer(ema(start_step=7)).fit(painter(), datamodule=data())


def test_a_checkpoint_that_is_restored_amid_training_has_its_average_where_the_weights_are(config):
    """As after a search for a learning rate: nothing else moves it before the next update."""
    model, averaging = VFSDDPM(config), ema()
    average = {name: value + 1 for name, value in model.state_dict().items()}
    with simulated_gpu(), torch.no_grad():
        model.to("cuda")
        averaging.start_from(model, average, updates=3, step=3)
        averaging._update(SimpleNamespace(global_step=4), model)
        kept = {name: value.cpu() for name, value in averaging._average.items()}
    for name, value in model.named_parameters():
        torch.testing.assert_close(kept[name], value.values.detach() + 0.5)
