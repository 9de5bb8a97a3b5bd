"""The JAX system's weights, under their own names, give the JAX system's outputs."""

from __future__ import annotations

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict
from safetensors.numpy import load_file

from lightning_vfs.core import standard_gaussian_kl_bits
from lightning_vfs.flax import FlaxVFSDDPM
from lightning_vfs.interop import from_jax

pytestmark = pytest.mark.numeric

CASES = sorted((Path(__file__).parents[1] / "reference").glob("*.safetensors"))


def of_networks(model: FlaxVFSDDPM, params: dict, inputs: dict) -> dict[str, jax.Array]:
    """The reference's outputs up to the denoiser's."""
    x_set, noise, t_image = inputs["x_set"], inputs["noise"], jnp.repeat(inputs["t"], inputs["x_set"].shape[1])
    run = functools.partial(model.module.run, params)
    context = run(x_set, inputs["t"], method="contexts")
    x_t = model.diffusion.q_sample(x_set.reshape(noise.shape), t_image, noise)
    model_output = run(x_t, t_image, context, method="denoise")
    outputs = {"context": context, "x_t": x_t, "model_output": model_output}
    if model.module.is_random:
        mean, log_variance = run(context, method=lambda module, context: module.posterior(context))
        kl = standard_gaussian_kl_bits(mean, log_variance)
        outputs |= {"posterior_mu": mean, "posterior_logvar": log_variance, "kl_bits": kl}
    return outputs


def of_reverse_step(model: FlaxVFSDDPM, inputs: dict, expected: dict) -> dict[str, np.ndarray]:
    """The other outputs, from the reference's own x_t and model output; in NumPy, since the process is that of `core`.

    At the last steps x_0 magnifies the rounding of those 360 times; and that of a compiler that fuses the difference.
    """
    t = np.repeat(inputs["t"], inputs["x_set"].shape[1])
    given = (expected["model_output"], expected["x_t"], t)
    step = model.diffusion.p_mean_variance(*given)
    ddim = model.diffusion.ddim_step(*given, t - 1)
    return {
        "p_mean": step.mean,
        "p_log_variance": step.log_variance,
        "pred_xstart": step.pred_x_0,
        "ddim_eta0": ddim,
    }


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_outputs_are_those_of_the_jax_system(path: Path) -> None:
    case = unflatten_dict(load_file(path), sep="/")
    model, expected = FlaxVFSDDPM(from_jax(path).config, case["params"]), case["outputs"]
    found = jax.jit(functools.partial(of_networks, model))(model.params, case["inputs"])
    found |= of_reverse_step(model, case["inputs"], expected)
    assert found.keys() == expected.keys()
    for name, value in found.items():
        np.testing.assert_allclose(
            value, expected[name], atol=2e-5, rtol=2e-5 if name == "pred_xstart" else 0, err_msg=name
        )
