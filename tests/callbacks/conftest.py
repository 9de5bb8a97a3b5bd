"""Data, a model and an extractor that are known in every detail and take no time."""

import lightning.pytorch as pl
import pytest
import torch
from torch.nn.functional import adaptive_avg_pool2d
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY, register_feature_extractor

from lightning_vfs.core.config import DenoiserConfig, DiffusionConfig, EncoderConfig, SetConfig, VFSConfig
from lightning_vfs.core.errors import SetSizeMismatchError
from lightning_vfs.data.images import ClassImages
from lightning_vfs.data.module import SetDataModule

CONFIG = VFSConfig(
    sets=SetConfig(set_size=4, image_size=8, channels=1),
    encoder=EncoderConfig(dim=8, depth=1, heads=1, dim_head=8, patch_size=4),
    denoiser=DenoiserConfig(dim=16, depth=1, heads=2),
    diffusion=DiffusionConfig(timesteps=10, prediction="x_0"),
)
TINY = "tiny-callbacks"


class TinyExtractor(FeatureExtractorBase):
    """An image's 4 x 4 thumbnail."""

    def forward(self, input):
        return (adaptive_avg_pool2d(input.float()[:, :1] / 255, 4).flatten(1),)

    @staticmethod
    def get_provided_features_list():
        return ("16",)

    @staticmethod
    def get_default_feature_layer_for_metric(metric):
        return "16"

    def __init__(self, name, features_list, **kwargs):
        super().__init__(name, features_list)


class Patterns(SetDataModule):
    """Classes are random patterns, images the pattern with a little noise."""

    def __init__(self, classes=60, per_class=6, noise=20, **kwargs):
        super().__init__(
            **{"set_size": 4, "image_size": 8, "channels": 1, "batch_size": 4, "sets_per_epoch": 16, "eval_sets": 4}
            | {"split_fractions": (0.45, 0.1, 0.45)}
            | kwargs
        )
        self.classes, self.per_class, self.noise = classes, per_class, noise

    def load(self):
        rng = torch.Generator().manual_seed(0)
        labels = torch.arange(self.classes).repeat_interleave(self.per_class)
        patterns = torch.randint(30, 225, (self.classes, self.channels, 8, 8), generator=rng)
        images = patterns[labels] + self.noise * (2 * torch.rand(len(labels), self.channels, 8, 8, generator=rng) - 1)
        return ClassImages(
            images.clamp(0, 255).to(torch.uint8), [f"pattern {i}" for i in range(self.classes)], labels.numpy()
        )


class Painter(pl.LightningModule):
    """Paints its support's first image, times `level`, with a little noise; every training step takes 0.1 off `level`.

    `levels`, `modes` and `shots` hold what every call of `generate` found: the level, whether the module was in
    training, and the images in a support. The configuration is that of a checkpoint which is loaded.
    """

    def __init__(self, config=CONFIG):
        super().__init__()
        self.config = config
        self.level = torch.nn.Parameter(torch.tensor(1.0))
        self.dropout = torch.nn.Dropout()
        self.levels, self.modes, self.shots, self.path = [], [], [], []

    def on_save_checkpoint(self, checkpoint):
        checkpoint["config"] = self.config.to_dict()

    def on_load_checkpoint(self, checkpoint):
        self.config = VFSConfig.from_dict(checkpoint["config"])

    def check_set_size(self, data):
        if data != self.config.sets.set_size:
            raise SetSizeMismatchError(f"{self.config.sets.set_size} and {data}")

    @torch.no_grad()
    def generate(self, support, index, seed=0, label=None, **sampling):
        self.levels.append(self.level.item())
        self.modes.append(self.training)
        self.shots.append(support.shape[1])
        noise = [
            torch.randn(support.shape[2:], generator=torch.Generator().manual_seed(i + seed)) for i in index.tolist()
        ]
        torch.rand(1)  # from the global generator, as a careless model would
        return (support[:, 0] * self.level + 0.05 * torch.stack(noise)).clamp(-1, 1)

    def sample_batches(self, support, num_images=16, seed=0, **sampling):
        index = torch.arange(len(support) * num_images)
        yield self.generate(support.repeat_interleave(num_images, dim=0), index, seed)

    def training_step(self, batch, batch_idx):
        self.path.append(self.level.item())
        return self.level

    def validation_step(self, batch, batch_idx):
        pass

    test_step = validation_step

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.fixture
def tiny():
    if TINY not in FEATURE_EXTRACTORS_REGISTRY:
        register_feature_extractor(TINY, TinyExtractor)
    return TINY


@pytest.fixture
def extractor_class():
    return TinyExtractor


@pytest.fixture
def config():
    return CONFIG


@pytest.fixture
def data():
    return Patterns


@pytest.fixture
def painter():
    return Painter


@pytest.fixture
def trainer(tmp_path):
    """Trainer(callbacks, ...) without anything that takes time; 4 steps an epoch on `Patterns`."""

    def make(*callbacks, **kwargs):
        return pl.Trainer(
            **{"max_epochs": 2, "logger": False, "enable_checkpointing": False, "num_sanity_val_steps": 0}
            | {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False}
            | {"default_root_dir": tmp_path, "callbacks": list(callbacks)}
            | kwargs
        )

    return make
