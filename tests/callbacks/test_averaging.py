"""The averaged weights are evaluated: whatever the order of callbacks, in every hook, but never before they exist."""

import pytest

from lightning_vfs.callbacks import EMACallback, FIDCallback, SampleGridCallback


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
    return FIDCallback(feature_extractor=tiny, num_images=4, splits=["out"], few_shot_way=2, steps=2, **kwargs)


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
