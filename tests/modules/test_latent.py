"""Images to latents and back: diffusers' AutoencoderKL, frozen, float32, and no part of the model."""

from __future__ import annotations

import copy
import hashlib
import json
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lightning_vfs import VFSDDPM, VFSConfig
from lightning_vfs.core import CheckpointError, ConfigError
from lightning_vfs.core.config import LatentConfig
from lightning_vfs.modules import latent
from lightning_vfs.modules.latent import CONFIG, WEIGHTS, Autoencoder
from tests.conftest import tiny_config
from tests.modules.autoencoder import SCALE, save_autoencoder
from tests.numerics import NETWORK, rounding
from tests.processes import imported_by

SHIFT = 0.25


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_autoencoder(tmp_path / "vae")
    return tmp_path / "vae"


def config(folder: Path, **changes: Any) -> LatentConfig:
    return LatentConfig(**{"autoencoder": str(folder), "downsampling": 2, "scale": SCALE, **changes})


def images(count: int = 3, channels: int = 3) -> Tensor:
    return torch.rand(count, channels, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1


def latents(count: int = 3) -> Tensor:
    return torch.randn(count, 4, 4, 4, generator=torch.Generator().manual_seed(1))


def close(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, **rounding(NETWORK))


def refusal(kind: type[Exception], config: LatentConfig, channels: int = 3) -> str:
    with pytest.raises(kind) as caught:
        Autoencoder(config, channels)
    return str(caught.value)


@pytest.mark.parametrize("shift", [None, SHIFT])
def test_it_is_the_autoencoder_of_diffusers(tmp_path: Path, shift: float | None) -> None:
    vae = save_autoencoder(tmp_path, shift_factor=shift)
    autoencoder = Autoencoder(config(tmp_path), channels=3)
    with torch.no_grad():
        encoded = (vae.encode(images()).latent_dist.mode() - (shift or 0)) * SCALE
        decoded = vae.decode(latents() / SCALE + (shift or 0)).sample
    assert close(autoencoder.encode(images()), encoded)
    assert encoded.shape == (3, 4, 4, 4)
    assert close(autoencoder.decode(latents()), decoded.clamp(-1, 1))
    assert 0 < (decoded.abs() > 1).float().mean() < 1


def test_grey_images_are_repeated_and_averaged(tmp_path: Path) -> None:
    vae = save_autoencoder(tmp_path)
    autoencoder = Autoencoder(config(tmp_path), channels=1)
    with torch.no_grad():
        encoded = vae.encode(images(channels=1).repeat(1, 3, 1, 1)).latent_dist.mode() * SCALE
        decoded = vae.decode(latents() / SCALE).sample.mean(1, keepdim=True)
    assert close(autoencoder.encode(images(channels=1)), encoded)
    assert close(autoencoder.decode(latents()), decoded.clamp(-1, 1))


def test_an_autoencoder_of_grey_images_takes_them_as_they_are(tmp_path: Path) -> None:
    vae = save_autoencoder(tmp_path, in_channels=1, out_channels=1)
    autoencoder = Autoencoder(config(tmp_path), channels=1)
    with torch.no_grad():
        assert close(autoencoder.encode(images(channels=1)), vae.encode(images(channels=1)).latent_dist.mode() * SCALE)
    assert autoencoder.decode(latents()).shape == (3, 1, 8, 8)


@pytest.mark.numeric
def test_chunks_do_not_show(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    autoencoder = Autoencoder(config(folder), channels=3)
    encoded, decoded = autoencoder.encode(images(5)), autoencoder.decode(latents(5))
    sizes: list[int] = []
    autoencoder._vae.encoder.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    autoencoder._vae.decoder.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    monkeypatch.setattr(latent, "PIXELS_AT_ONCE", 2 * 8 * 8)
    assert close(autoencoder.encode(images(5)), encoded)
    assert close(autoencoder.decode(latents(5)), decoded)
    assert sizes == [2, 2, 1] * 2
    monkeypatch.setattr(latent, "PIXELS_AT_ONCE", 1)
    assert close(autoencoder.encode(images(5)), encoded), "images larger than a chunk go one by one"


def test_no_gradient_passes(folder: Path) -> None:
    autoencoder = Autoencoder(config(folder), channels=3)
    assert not autoencoder.encode(images().requires_grad_()).requires_grad
    assert not autoencoder.decode(latents().requires_grad_()).requires_grad
    assert not autoencoder._vae.training
    assert not any(parameter.requires_grad for parameter in autoencoder._vae.parameters())


def test_a_model_that_holds_it_shares_it_with_its_copies_and_has_none_of_its_weights(folder: Path) -> None:
    model = nn.Linear(1, 1)
    model.autoencoder = Autoencoder(config(folder), channels=3)  # type: ignore[assignment]
    assert set(model.state_dict()) == {"weight", "bias"}
    assert len(list(model.parameters())) == 2
    assert copy.deepcopy(model).autoencoder is model.autoencoder


def test_it_computes_in_float32(folder: Path) -> None:
    autoencoder = Autoencoder(config(folder), channels=3)
    encoded, decoded = autoencoder.encode(images()), autoencoder.decode(latents())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(autoencoder.encode(images()), encoded)
        assert torch.equal(autoencoder.decode(latents()), decoded)
    for dtype in (torch.float64, torch.bfloat16):
        given = images().to(dtype)
        assert torch.equal(autoencoder.encode(given), autoencoder.encode(given.float()))


def test_weights_in_half_precision_become_float32(folder: Path) -> None:
    weights = {name: tensor.half() for name, tensor in load_file(folder / WEIGHTS).items()}
    save_file(weights, folder / WEIGHTS)
    assert Autoencoder(config(folder), channels=3).encode(images()).dtype == torch.float32


def test_it_follows_its_input_to_another_device_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    autoencoder = Autoencoder(config(folder), channels=3)
    moves: list[torch.device] = []
    move = autoencoder._vae.to

    def to(device: torch.device) -> nn.Module:
        moves.append(device)
        return move(device)

    monkeypatch.setattr(autoencoder._vae, "to", to)
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: nullcontext())  # the meta device has none
    with torch.inference_mode():
        for _ in range(2):
            assert autoencoder.encode(images().to("meta")).device.type == "meta"
            assert autoencoder.decode(latents().to("meta")).device.type == "meta"
    assert moves == [torch.device("meta")]
    assert not any(parameter.is_inference() for parameter in autoencoder._vae.parameters())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_gives_what_the_cpu_gives(folder: Path) -> None:
    autoencoder = Autoencoder(config(folder), channels=3)
    encoded, decoded = autoencoder.encode(images()), autoencoder.decode(latents())
    with torch.autocast("cuda", torch.bfloat16):
        assert torch.allclose(autoencoder.encode(images().cuda()).cpu(), encoded, atol=1e-2)
        assert torch.allclose(autoencoder.decode(latents().cuda()).cpu(), decoded, atol=1e-2)


def test_the_weights_have_a_name(folder: Path) -> None:
    sha256 = hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
    assert Autoencoder(config(folder), channels=3).weights_sha256 == sha256


@pytest.mark.parametrize(
    ("name", "given", "own"), [("channels", 8, "4"), ("downsampling", 8, "2"), ("scale", 0.18215, "0.5")]
)
def test_other_latents_are_refused(folder: Path, name: str, given: float, own: str) -> None:
    message = refusal(ConfigError, config(folder, **{name: given}))
    assert f"LatentConfig.{name} is {given}, the autoencoder's is {own}" in message
    assert f"--model.config.latent.{name} {own}" in message
    assert message.count("--model") == 1


def test_all_differences_are_named_together(tmp_path: Path) -> None:
    save_autoencoder(tmp_path, block_out_channels=(8, 8, 8, 8), latent_channels=2, scaling_factor=0.18215)
    message = refusal(ConfigError, config(tmp_path))
    for flag in ("channels 2", "downsampling 8", "scale 0.18215"):
        assert f"--model.config.latent.{flag}" in message


def test_a_scale_may_be_rounded(folder: Path) -> None:
    Autoencoder(config(folder, scale=SCALE + 1e-6), channels=3)


@pytest.mark.parametrize(("own", "given"), [((1, 1), 3), ((3, 1), 3), ((4, 4), 1)])
def test_images_of_other_channels_are_refused(tmp_path: Path, own: tuple[int, int], given: int) -> None:
    save_autoencoder(tmp_path, in_channels=own[0], out_channels=own[1])
    message = refusal(ConfigError, config(tmp_path), channels=given)
    assert f"takes images of {own[0]} channels and gives {own[1]}, but the images here have {given}" in message


def test_without_diffusers_the_extra_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    assert "pip install 'lightning_vfs[latent]'" in refusal(ConfigError, config(folder))


def test_a_hub_id_is_not_downloaded() -> None:
    pytest.importorskip("diffusers", reason="install the extra `test`")
    message = refusal(CheckpointError, config(Path("stabilityai/sd-vae-ft-mse")))
    assert "no folder stabilityai/sd-vae-ft-mse" in message and "nothing is downloaded" in message


@pytest.mark.parametrize("file", [CONFIG, WEIGHTS])
def test_a_missing_file_is_named(folder: Path, file: str) -> None:
    (folder / file).unlink()
    assert f"{folder} has no {file}" in refusal(CheckpointError, config(folder))


@pytest.mark.parametrize("text", ["{", "[]", "{}"])
def test_a_damaged_configuration_is_named(folder: Path, text: str) -> None:
    (folder / CONFIG).write_text(text)
    assert f"{folder / CONFIG} does not say of what class" in refusal(CheckpointError, config(folder))


def test_another_class_of_model_is_named(folder: Path) -> None:
    (folder / CONFIG).write_text('{"_class_name": "AutoencoderTiny"}')
    assert "holds another model, AutoencoderTiny" in refusal(CheckpointError, config(folder))


def test_damaged_weights_are_named(folder: Path) -> None:
    whole = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(whole[: len(whole) // 2])
    assert f"{folder} is damaged" in refusal(CheckpointError, config(folder))


def test_weights_of_another_shape_are_named(folder: Path) -> None:
    description = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(description | {"latent_channels": 8}))
    assert "size mismatch" in refusal(CheckpointError, config(folder))


@pytest.mark.parametrize(("layers", "problem"), [(2, "lacks"), (0, "should not have")])
def test_weights_of_another_depth_are_named(folder: Path, layers: int, problem: str) -> None:
    description = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(description | {"layers_per_block": layers}))
    message = refusal(CheckpointError, config(folder))
    assert problem in message and "encoder." in message


def test_importing_the_package_does_not_import_diffusers(tmp_path: Path) -> None:
    assert imported_by(tmp_path, "import lightning_vfs.modules.latent, lightning_vfs.cli", ["diffusers"]) == []


def test_another_machine_says_where_its_autoencoder_is(folder: Path, tmp_path: Path) -> None:
    def model_at(path: Path) -> VFSDDPM:
        torch.manual_seed(0)
        values = tiny_config(diffusion={"clip_denoised": False}).to_dict()
        latents = {"autoencoder": str(path), "downsampling": 2, "scale": SCALE}
        return VFSDDPM(VFSConfig.from_dict({**values, "latent": latents})).eval()

    support = torch.zeros(5, 3, 8, 8)
    there, moved = model_at(folder), model_at(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match="elsewhere"):
        moved.sample(support, num_images=1, steps=2)
    moved.use_autoencoder(str(folder))
    torch.testing.assert_close(
        moved.sample(support, num_images=1, steps=2), there.sample(support, num_images=1, steps=2), atol=1e-5, rtol=0
    )
    with pytest.raises(ConfigError, match="diffuses pixels: it has no use for the autoencoder"):
        VFSDDPM(tiny_config()).use_autoencoder(str(folder))
