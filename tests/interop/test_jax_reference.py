"""The JAX system's weights give the JAX system's outputs, for every option that it has."""

from __future__ import annotations

import pytest
import torch

from lightning_vfs.core import GaussianDiffusion, standard_gaussian_kl_bits
from lightning_vfs.interop import from_jax
from tests.numerics import JAX_REFERENCE

from .conftest import CASES, load_case

pytestmark = pytest.mark.numeric

NAMES = sorted(path.stem for path in CASES.glob("*.safetensors"))
TOLERANCE = JAX_REFERENCE


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_outputs_are_those_of_the_jax_system(name: str) -> None:
    model = from_jax(CASES / f"{name}.safetensors")
    case = {key: torch.from_numpy(value) for key, value in load_case(name)[0].items() if not key.startswith("params/")}
    x_set, t, noise = (case[f"inputs/{key}"] for key in ("x_set", "t", "noise"))
    context = model.context(x_set, t)
    torch.testing.assert_close(context, case["outputs/context"], **TOLERANCE)
    if model.posterior is not None:
        mean, log_variance = model.posterior(context)
        torch.testing.assert_close(mean, case["outputs/posterior_mu"], **TOLERANCE)
        torch.testing.assert_close(log_variance, case["outputs/posterior_logvar"], **TOLERANCE)
        torch.testing.assert_close(standard_gaussian_kl_bits(mean, log_variance), case["outputs/kl_bits"], **TOLERANCE)

    diffusion, t = GaussianDiffusion(model.config.diffusion), t.repeat_interleave(x_set.shape[1])
    x_t = diffusion.q_sample(x_set.flatten(0, 1), t, noise)
    torch.testing.assert_close(x_t, case["outputs/x_t"], **TOLERANCE)
    torch.testing.assert_close(model.denoiser(x_t, t, context), case["outputs/model_output"], **TOLERANCE)

    # From the reference's own model output: at the last steps x_0 magnifies its rounding in float32 360 times. The
    # JAX system's tables are float32 too, ours float64: where that meets, one value in 3,000 differs by 3e-5.
    output = case["outputs/model_output"]
    step = diffusion.p_mean_variance(output, x_t, t)
    torch.testing.assert_close(step.mean, case["outputs/p_mean"], **TOLERANCE)
    torch.testing.assert_close(step.log_variance, case["outputs/p_log_variance"], **TOLERANCE)
    torch.testing.assert_close(step.pred_x_0, case["outputs/pred_xstart"], atol=2e-5, rtol=2e-5)
    torch.testing.assert_close(diffusion.ddim_step(output, x_t, t, t - 1), case["outputs/ddim_eta0"], **TOLERANCE)
