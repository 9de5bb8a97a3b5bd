"""Tiny models, data and checkpoints that several tests use.

torch and Lightning are imported where they are used: the process that hands out tests to workers needs neither.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Generator, Iterator
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from lightning_vfs.core import DenoiserConfig, DiffusionConfig, EncoderConfig, SetConfig, VFSConfig

if TYPE_CHECKING:
    from lightning_vfs import VFSDDPM
    from tests.hub_server import Hub

# Threads cost more than they bring on such small arrays, above all where they wait for each other on busy cores. torch
# reads it when it is imported, here and in the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Less than half the time to compile, within `jit` and outside. XLA stops at an option that it does not know.
QUICK_XLA = " --xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
if find_spec("jaxlib") and version("jaxlib").startswith("0.10."):
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "").removesuffix(QUICK_XLA) + QUICK_XLA


# What a shell runs in the background ignores Ctrl-C, as would the processes that tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """xdist cannot send names of files that are no text, which a test may have printed."""
    report = yield
    report.sections = [(name, text.encode(errors="backslashreplace").decode()) for name, text in report.sections]
    return report


@pytest.fixture(scope="session")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the cache of decoded images that the tests of all workers share: they render the glyphs once."""
    base = tmp_path_factory.getbasetemp()
    return (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "cache"


@pytest.fixture(scope="session", autouse=True)
def own_cache(shared_cache: Path) -> Iterator[None]:
    """Tests, and fixtures of every scope, use a cache apart from the user's."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("LIGHTNING_VFS_CACHE", str(shared_cache))
        yield


@pytest.fixture(autouse=True)
def own_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test leaves a seed to the next."""
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")


TINY_ENCODER = {"dim": 16, "depth": 1, "heads": 2, "dim_head": 8, "patch_size": 2}


def tiny_config(set_size: int = 6, **parts: dict) -> VFSConfig:
    """8 x 8 RGB images, patches of 2 (patch_dim 72 at a set size of 6), networks that train in milliseconds."""
    return VFSConfig(
        SetConfig(**{"set_size": set_size, "image_size": 8, "channels": 3, **parts.get("sets", {})}),
        EncoderConfig(
            **{"dim": 16, "depth": 1, "heads": 2, "dim_head": 8, "patch_size": 2, **parts.get("encoder", {})}
        ),
        DenoiserConfig(**{"dim": 16, "depth": 1, "heads": 2, "patch_size": 4, **parts.get("denoiser", {})}),
        DiffusionConfig(**{"timesteps": 20, **parts.get("diffusion", {})}),
    )


@pytest.fixture
def tiny_model() -> Callable[..., VFSDDPM]:
    """Makes a tiny model whose output is not zero, as a fresh DiT's would be."""
    import torch

    from lightning_vfs import VFSDDPM

    def make(set_size: int = 6, on_set_size_mismatch: str = "error", **parts: dict) -> VFSDDPM:
        torch.manual_seed(0)
        model = VFSDDPM(tiny_config(set_size, **parts), on_set_size_mismatch=on_set_size_mismatch)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
        return model.eval()

    return make


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 classes of 8 small RGB images, each class of one colour."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for label in range(12):
        (root / f"class{label:02d}").mkdir()
        colour = rng.integers(40, 216, 3)
        for i in range(8):
            pixels = np.clip(colour + rng.integers(-30, 30, (10, 10, 3)), 0, 255).astype(np.uint8)
            pixels[:2, :2] = 0  # dark, since a batch of bright images alone looks like one of values from 0 to 1
            Image.fromarray(pixels).save(root / f"class{label:02d}" / f"{i}.png")
    return root


@pytest.fixture(scope="session")
def autoencoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny AutoencoderKL, for the models of latents among the family's."""
    from tests.modules.autoencoder import save_autoencoder

    folder = tmp_path_factory.mktemp("autoencoder")
    save_autoencoder(folder)
    return folder


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that the client asks, with the right token and a cache of its own."""
    from tests.hub_server import TOKEN, serving

    with serving() as served:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", served.url)
        template = served.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_PROGRESS_BARS", True)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield served
