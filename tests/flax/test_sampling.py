"""The twin draws the torch model's images, however they are spread over batches and devices."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from lightning_vfs import SetSizeMismatchError
from lightning_vfs.core import ConfigError, DiffusionConfig
from lightning_vfs.flax import FlaxVFSDDPM, generation
from lightning_vfs.flax.few_shot_diffusion import FewShotDiffusion
from tests.conftest import QUICK_XLA
from tests.flax.models import UNET
from tests.numerics import JAX_REFERENCE, NETWORK, rounding, sampling_gain

pytestmark = pytest.mark.numeric


def supports(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, 3, 8, 8, generator=torch.Generator().manual_seed(2)) * 2 - 1


LAG = {"encoder": {"pool": "patches", "context_dropout": 0.1}, "denoiser": {"conditioning": "lag"}}
CLASS_LABEL = {"architecture": "class_label", "num_classes": 3}
DISCRETE = {"architecture": "vit", "time_token": "timestep", "context": "variational_discrete", "context_dropout": 0.1}
PER_IMAGE = {"context": "variational", "tokenizer": "per_image_mean"}

# What the model is, what its images are conditioned on, and how they are drawn.
DRAWS: dict[str, tuple[dict, dict, dict]] = {
    "default": ({}, {"support": supports(5)}, {}),
    "ddpm": ({}, {"support": supports(5)}, {"sampler": "ddpm", "seed": 2**63 + 5}),
    "eta": (
        {"diffusion": {"prediction": "v", "clip_denoised": False}},
        {"support": supports(2, 3)},
        {"eta": 0.5, "seed": -1},
    ),
    "timestep": ({"encoder": {"time_token": "timestep"}}, {"support": supports(2, 3)}, {"sampler": "ddpm"}),
    "variational": ({"encoder": PER_IMAGE}, {"support": supports(2, 2)}, {}),
    "guided_within_an_interval": (
        LAG,
        {"support": supports(2, 3)},
        {"sampler": "dpmpp_2m", "guidance_scale": 2.5, "guidance_interval": [4, 15]},
    ),
    "heun_along_straight_paths": (
        {"encoder": {"context_dropout": 0.1}, "diffusion": {"schedule": "flow", "prediction": "x_0"}},
        {"support": supports(2, 3)},
        {"sampler": "heun", "guidance_scale": 2.5, "guidance_interval": [4, 15]},
    ),
    "guided_timestep_discrete": (
        {"encoder": DISCRETE, "diffusion": {"variance": "learned_range"}},
        {"support": supports(2)},
        {"sampler": "ddpm", "guidance_scale": 1.5},
    ),
    "guided_away_from_labels": (
        {"encoder": {**CLASS_LABEL, "context_dropout": 0.1}},
        {"label": torch.tensor([2, 0])},
        {"guidance_scale": 0.0},
    ),
    "one_label": ({"encoder": CLASS_LABEL}, {"label": 1}, {}),
    "unconditional_unet": ({"encoder": {"architecture": "none"}, "denoiser": UNET}, {}, {"sampler": "dpmpp_2m"}),
}


@pytest.mark.parametrize("name", DRAWS)
def test_images_are_those_of_torch(tiny_model, name: str) -> None:
    model, condition, how = DRAWS[name]
    model, how = tiny_model(**model), {"num_images": 5, "steps": 6, "batch_size": 3, **how}
    expected = model.sample(**condition, **how)
    condition = {name: np.asarray(value) for name, value in condition.items()}
    images = FlaxVFSDDPM.from_torch(model).sample(**condition, **how)
    assert images.shape == expected.shape
    assert expected.std() > 0.1
    gain = sampling_gain(model.config.diffusion, how.get("guidance_scale", 1.0))
    np.testing.assert_allclose(images, expected, **rounding(NETWORK, gain=gain))


def test_images_do_not_depend_on_the_batch_size(tiny_model) -> None:
    model = tiny_model(diffusion={"prediction": "v"})  # with "eps" rounding can reach the third digit: sampling_gain
    twin, support = FlaxVFSDDPM.from_torch(model), jnp.asarray(supports(2, 3).numpy())
    in_threes, at_once = (twin.sample(support, 5, steps=6, eta=0.5, batch_size=size) for size in (3, 256))
    assert at_once.std() > 0.1
    np.testing.assert_allclose(at_once, in_threes, **rounding(6 * NETWORK))


@pytest.mark.parametrize(
    ("model", "t"),
    [
        ({"encoder": {"context": "variational"}}, None),
        ({"encoder": {"time_token": "timestep"}}, [3, 9]),
        ({"encoder": {"pool": "none", "context": "variational_discrete"}, "denoiser": {"conditioning": "lag"}}, None),
    ],
)
def test_contexts_of_supports_are_those_of_torch(tiny_model, model: dict, t: list[int] | None) -> None:
    model, support = tiny_model(**model), supports(2, 3)
    expected = model.encode(support, None if t is None else torch.tensor(t))
    context = FlaxVFSDDPM.from_torch(model).encode(support.numpy(), None if t is None else np.array(t))
    assert context.shape == expected.shape
    np.testing.assert_allclose(context, expected, **JAX_REFERENCE)


@pytest.mark.parametrize("time_token", ["none", "timestep"])
def test_one_compilation_does_for_all_seeds_weights_and_batches(tiny_model, monkeypatch, time_token: str) -> None:
    noises, encoded = [], []
    monkeypatch.setattr(generation, "indexed_normal", counting(generation.indexed_normal, noises))
    monkeypatch.setattr(FewShotDiffusion, "encode", counting(FewShotDiffusion.encode, encoded))
    twin = FlaxVFSDDPM.from_torch(tiny_model(encoder={"time_token": time_token}, diffusion={"timesteps": 23}))

    def images(model: FlaxVFSDDPM, seed: int = 0) -> jax.Array:
        return model.sample(supports(2, 3).numpy(), num_images=5, steps=2, batch_size=4, seed=seed)

    first = images(twin)
    np.testing.assert_array_equal(first, images(twin))
    other_seed, other_weights = images(twin, seed=1), images(FlaxVFSDDPM(twin.config, halved(twin.params)))
    assert abs(other_seed - first).max() > 0.1 and abs(other_weights - first).max() > 1e-3
    assert len(noises) == 1  # DDIM with eta 0 starts from noise and draws no more
    # Supports are encoded, not images; inside the loop over the steps if the encoder sees the timestep.
    [(_, support, t)] = encoded
    assert support.shape[:2] == (2, 3) and (t is not None) == (time_token == "timestep")


def counting(function, calls: list):
    def counted(*args, **kwargs):
        calls.append(args)
        return function(*args, **kwargs)

    return counted


def halved(tree):
    return {name: halved(leaf) if isinstance(leaf, dict) else 0.5 * leaf for name, leaf in tree.items()}


def test_supports_and_options_that_cannot_work_are_refused_as_by_torch(tiny_model) -> None:
    model = tiny_model()
    twin = FlaxVFSDDPM.from_torch(model)
    for k in (0, 6):
        with pytest.raises(SetSizeMismatchError, match="takes 1 to 5"):
            model.sample(torch.zeros(k, 3, 8, 8), steps=6)
        with pytest.raises(SetSizeMismatchError, match="takes 1 to 5"):
            twin.sample(np.zeros((k, 3, 8, 8), np.float32), steps=6)
    for wrong, said in (
        ({"sampler": "midpoint"}, "midpoint"),
        ({"eta": 1.5}, "eta is 1.5"),
        ({"steps": 21}, "21 sampling steps"),
        ({"num_images": 0}, "num_images is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"guidance_interval": [3, 3]}, "guidance_interval"),
        ({"guidance_scale": 2.0}, "guidance_scale is 2.0, but this model was trained without a null context"),
    ):
        with pytest.raises(ConfigError, match=said):
            twin.sample(np.zeros((2, 3, 8, 8), np.float32), **{"steps": 6, **wrong})
    with pytest.raises(ValueError, match=r"support has the shape"):
        twin.encode(np.zeros((2, 1, 8, 8), np.float32))
    with pytest.raises(ValueError, match=r"floats in \[-1, 1\]; got uint8"):
        twin.sample(np.zeros((2, 3, 8, 8), np.uint8))


@pytest.mark.parametrize(
    ("encoder", "condition", "said"),
    [
        ({}, {}, "is conditioned on a support"),
        ({}, {"support": supports(2), "label": 1}, "is conditioned on a support"),
        (CLASS_LABEL, {}, "give it `label`"),
        (CLASS_LABEL, {"label": 3}, "There is no class 3"),
        (CLASS_LABEL, {"support": supports(2), "label": 1}, "not conditioned on a support"),
        ({"architecture": "none"}, {"label": 1}, "not conditioned on a class label"),
        ({"architecture": "none"}, {"support": supports(2)}, "not conditioned on a support"),
    ],
)
def test_what_a_model_is_not_conditioned_on_is_refused_as_by_torch(tiny_model, encoder, condition, said) -> None:
    model = tiny_model(encoder=encoder)
    for framework in (model, FlaxVFSDDPM.from_torch(model)):
        with pytest.raises(ValueError, match=said):
            framework.sample(**condition, steps=2)


# -- without torch, on four devices ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def four_devices(tmp_path_factory) -> tuple[dict, dict[str, np.ndarray]]:
    """What `device_process.py` reports, and its images and torch's."""
    from lightning_vfs import VFSDDPM
    from tests.conftest import tiny_config

    folder = tmp_path_factory.mktemp("four_devices")
    torch.manual_seed(0)
    # With "eps" rounding can reach the third digit of an image: sampling_gain.
    model = VFSDDPM(tiny_config(encoder={"context_dropout": 0.1}, diffusion={"prediction": "v"}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    np.save(folder / "support.npy", supports(2, 3).numpy())
    process = Path(__file__).with_name("device_process.py")
    flags = f"{os.environ.get('XLA_FLAGS', '').removesuffix(QUICK_XLA)} --xla_force_host_platform_device_count=4"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    report = subprocess.run([sys.executable, process, folder], env=environment, capture_output=True, text=True)
    assert report.returncode == 0, report.stderr
    images = dict(np.load(folder / "images.npz")) | {
        "torch": model.eval().sample(supports(2, 3), 6, steps=4, guidance_scale=1.5)
    }
    return json.loads(report.stdout), images


def test_four_devices_give_the_images_of_one(four_devices) -> None:
    report, images = four_devices
    assert report["devices"] == 4
    bound = rounding(4 * NETWORK, gain=sampling_gain(DiffusionConfig(prediction="v"), guidance_scale=1.5))
    np.testing.assert_allclose(images["one"], images["torch"], **bound)
    np.testing.assert_allclose(images["four"], images["one"], **bound)


def test_every_device_computes_its_part_of_the_batch_and_asks_no_other(four_devices) -> None:
    report, _ = four_devices
    # 12 images by 5, which 4 devices take for 8: two batches, and a third of them cut off.
    parts = [[f"slice({start}, {start + 2}, None)", 2, 3, 8, 8] for start in (0, 2, 4, 6)]
    assert report["parts"] == [parts, parts]
    assert report["collectives"] == []


def test_reading_and_sampling_leave_torch_unloaded(four_devices) -> None:
    assert four_devices[0]["torch"] is False


def test_the_import_says_what_to_install() -> None:
    code = "import sys; sys.modules['flax'] = None; import lightning_vfs.flax"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "pip install 'lightning_vfs[jax]'" in process.stderr.splitlines()[-1]


def test_outside_of_the_interval_nothing_is_computed_without_a_condition(tiny_model) -> None:
    """What is compiled chooses in every step; guided throughout, there is nothing to choose."""
    twin = FlaxVFSDDPM.from_torch(tiny_model(3, encoder={"context_dropout": 0.1}))

    def program(**options: object) -> str:
        sample = lambda support: twin.sample(support, 2, steps=3, guidance_scale=2.0, **options)  # noqa: E731
        return str(jax.make_jaxpr(sample)(supports(2).numpy()))

    assert "cond[" in program(guidance_interval=(5, 15))
    assert "cond[" not in program()
