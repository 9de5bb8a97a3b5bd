"""SampleGridCallback: pictures on disk and in loggers."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from PIL import Image

from lightning_vfs.callbacks import SampleGridCallback
from lightning_vfs.core.errors import ConfigError, EvaluationError
from lightning_vfs.data.pictures import sample_grid
from lightning_vfs.modules import VFSDDPM


def grids(**kwargs):
    return SampleGridCallback(**{"num_classes": 3, "num_images": 2, "steps": 2} | kwargs)


def test_picture_has_a_row_for_each_class_with_a_line_between_support_and_generated():
    support = torch.linspace(-1, 1, 2 * 3).reshape(2, 3, 1, 1, 1).expand(2, 3, 1, 16, 16)
    generated = -torch.ones(2, 4, 3, 16, 16)
    picture = sample_grid(support[:, :, :1].expand(-1, -1, 3, -1, -1), generated)
    grey = sample_grid(support, generated[:, :, :1])
    assert torch.equal(picture, grey)
    assert picture.dtype == torch.uint8
    tile = 48 + 4
    assert picture.shape == (3, 2 * tile + 4, 7 * tile + 16 + 4)
    middles = picture[0, 2 + tile // 2 :: tile][:2]
    assert middles[:, 2 + tile // 2 : 3 * tile : tile].tolist() == [[0, 51, 102], [153, 204, 255]]
    line = picture[:, :, 2 + 3 * tile + 6 : 2 + 3 * tile + 10]
    assert (line[:, 2:-2] == 0).all()


def test_large_images_keep_their_size():
    images = torch.zeros(1, 1, 3, 64, 64)
    assert sample_grid(images, images).shape == (3, 72, 2 * 68 + 20)


def test_pictures_go_to_the_trainers_folder(trainer, painter, data, tmp_path):
    run = trainer(grids(every_n_epochs=2), max_epochs=4)
    model = painter()
    run.fit(model, datamodule=data())
    run.validate(model, datamodule=data(), verbose=False)
    run.test(model, datamodule=data(), verbose=False)
    names = sorted(path.name for path in (tmp_path / "samples").glob("*.png"))
    assert names == ["step=00000008.png", "step=00000016.png", "test.png", "validate.png"]
    picture = np.asarray(Image.open(tmp_path / "samples" / "test.png"))
    assert picture.shape[2] == 3


def test_rows_are_the_same_distinct_classes_every_time(painter, data):
    sets, callback = data(), grids(num_classes=20)
    supports = [callback._rows(sets, painter())[0] for _ in range(2)]
    assert torch.equal(*supports)
    assert supports[0].shape == (20, 3, 1, 8, 8)
    patterns = supports[0][:, 0].flatten(1)
    distance = torch.cdist(patterns, patterns) + 10 * torch.eye(20)
    assert distance.min() > 1, "two rows of one class would differ by noise only"


def test_pictures_go_to_loggers_that_take_images(trainer, painter, data, tmp_path):
    taken = []

    class ImageLogger(CSVLogger):
        def log_image(self, key, images, step=None):
            taken.append((key, images[0].size, step))

    board = TensorBoardLogger(tmp_path / "board")
    loggers = [CSVLogger(tmp_path / "csv"), board, ImageLogger(tmp_path / "images")]
    board.experiment.add_image = lambda key, picture, step: taken.append((key, tuple(picture.shape), step))
    trainer(grids(), logger=loggers, max_epochs=1).fit(painter(), datamodule=data())
    caption = 18
    height, width = 3 * 52 + 4 + caption, 5 * 52 + 20
    assert taken == [("samples/test", (3, height, width), 4), ("samples/test", (width, height), 4)]
    assert list((tmp_path / "csv").rglob("samples/step=00000004.png"))


def test_a_folder_can_be_given_and_a_sanity_check_leaves_nothing(trainer, painter, data, tmp_path):
    run = trainer(grids(dirname=tmp_path / "mine", every_n_epochs=5), num_sanity_val_steps=1)
    run.fit(painter(), datamodule=data())
    assert not (tmp_path / "mine").exists()
    run.validate(painter(), datamodule=data(), verbose=False)
    assert [path.name for path in (tmp_path / "mine").glob("*.png")] == ["validate.png"]


def test_mode_and_random_numbers_are_left_as_they_were(trainer, painter, data):
    model = painter()
    torch.manual_seed(1)
    trainer(grids()).fit(model, datamodule=data())
    after = torch.rand(1)
    torch.manual_seed(1)
    trainer().fit(painter(), datamodule=data())
    assert torch.equal(after, torch.rand(1))
    assert model.modes == [False, False]
    assert model.training


def test_sampler_and_guidance_reach_the_model(trainer, config, data, tmp_path):
    torch.manual_seed(0)
    model = VFSDDPM(replace(config, encoder=replace(config.encoder, context_dropout=0.1)))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
    callback, sets = grids(sampler="dpmpp_2m", steps=4, guidance_scale=3.0), data()
    trainer(callback).test(model, datamodule=sets, verbose=False)
    support, _ = callback._rows(sets, model)
    picture = torch.from_numpy(np.array(Image.open(tmp_path / "samples" / "test.png"))).movedim(-1, 0)[:, :-18]
    how = {"num_images": 2, "steps": 4, "sampler": "dpmpp_2m"}
    assert torch.equal(picture, sample_grid(support, model.sample(support, guidance_scale=3.0, **how)))
    assert not torch.equal(picture, sample_grid(support, model.sample(support, **how)))


def test_too_few_classes_are_refused(trainer, painter, data):
    with pytest.raises(EvaluationError, match="shows 30 classes, but split 'test' has 27"):
        trainer(grids(num_classes=30)).fit(painter(), datamodule=data())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "out"}, "split is 'out'"),
        ({"num_images": 0}, "num_images is 0"),
        ({"sampler": "x"}, "sampler is 'x'"),
        ({"steps": 0}, "steps is 0"),
        ({"guidance_scale": -1.0}, "guidance_scale is -1.0"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        SampleGridCallback(**options)


def test_with_the_real_model(trainer, config, data, tmp_path):
    trainer(grids(), max_epochs=1).fit(VFSDDPM(config), datamodule=data())
    assert (tmp_path / "samples" / "step=00000004.png").exists()


@pytest.mark.parametrize("copies", [True, False])
def test_the_nearest_real_image_is_below_each_generated_one(trainer, painter, data, tmp_path, monkeypatch, copies):
    """A copier of its support is seen: below each of its images is that image, and the caption counts them."""
    model, sets, captions = painter(), data(), []
    split = sets.split("test")

    def sample_batches(support, num_images, **how):
        rows = support[:, :num_images] if copies else -torch.ones_like(support[:, :num_images])
        yield rows.flatten(0, 1)

    def caption(picture, text):
        captions.append(text)
        return picture

    monkeypatch.setattr(model, "sample_batches", sample_batches)
    monkeypatch.setattr("lightning_vfs.callbacks.grids.with_caption", caption)
    callback = grids(nearest=True)
    trainer(callback).test(model, datamodule=sets, verbose=False)
    labels = callback._rows(sets, model)[1]
    picture = torch.from_numpy(np.array(Image.open(tmp_path / "samples" / "test.png"))).movedim(-1, 0)
    assert picture.shape[1] == 6 * 52 + 4
    shown = picture[:, 2:-2, -2 - 2 * 52 : -2].unflatten(1, (3, 2, 52))  # c, class, above or below, h, w
    if copies:
        assert torch.equal(shown[:, :, 0], shown[:, :, 1])
        assert captions == [captions[0]] and captions[0].endswith(
            "the nearest real image of the class, 6 of 6 of the support"
        )
        return
    # By hand: the darkest real image of the class in thumbnails is the nearest to a black one.
    for row, label in enumerate(labels.tolist()):
        own = split.float(np.arange(split.counts[label]) + split.offsets[label])
        nearest = own[own.flatten(1).add(1).square().sum(dim=1).argmin()]
        expected = sample_grid(None, nearest[None, None])[:, 2:-2, 2:-2]
        assert torch.equal(shown[:, row, 1, :, :52], expected)


def test_without_a_support_there_are_no_nearest_images(trainer, config, data, tmp_path):
    model = VFSDDPM(replace(config, encoder=replace(config.encoder, architecture="none")))
    pictures = []
    for nearest in (True, False):
        trainer(grids(nearest=nearest)).test(model, datamodule=data(), verbose=False)
        pictures.append((tmp_path / "samples" / "test.png").read_bytes())
    assert pictures[0] == pictures[1]
