"""The JAX system's weights give the JAX system's outputs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lightning_vfs import CheckpointError
from lightning_vfs.core import GaussianDiffusion, StaleSetSizeWarning, standard_gaussian_kl_bits
from lightning_vfs.interop import from_jax

CASES = Path(__file__).parents[1] / "reference"
NAMES = ["seed_film", "seed_film_none", "seed_variational", "head_film"]
TOLERANCE = {"atol": 2e-5, "rtol": 0}


def case(name: str) -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    tensors = load_file(CASES / f"{name}.safetensors")
    return from_jax(CASES / f"{name}.safetensors"), {k: v for k, v in tensors.items() if not k.startswith("params/")}


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_outputs_are_those_of_the_jax_system(name: str) -> None:
    model, case_ = case(name)
    x_set, t, noise = (case_[f"inputs/{key}"] for key in ("x_set", "t", "noise"))
    n = x_set.shape[1]
    context = model.context(x_set, t)
    context = context.mean(dim=1) if context.ndim == 3 else context
    torch.testing.assert_close(context, case_["outputs/context"], **TOLERANCE)
    if model.posterior is not None:
        mean, log_variance = model.posterior(context)
        torch.testing.assert_close(mean, case_["outputs/posterior_mu"], **TOLERANCE)
        torch.testing.assert_close(log_variance, case_["outputs/posterior_logvar"], **TOLERANCE)
        torch.testing.assert_close(standard_gaussian_kl_bits(mean, log_variance), case_["outputs/kl_bits"], **TOLERANCE)

    diffusion, t = GaussianDiffusion(model.config.diffusion), t.repeat_interleave(n)
    x_t = diffusion.q_sample(x_set.flatten(0, 1), t, noise)
    torch.testing.assert_close(x_t, case_["outputs/x_t"], **TOLERANCE)
    torch.testing.assert_close(model.denoiser(x_t, t, context), case_["outputs/model_output"], **TOLERANCE)

    # From the reference's own model output: at the last steps x_0 magnifies its rounding in float32 360 times. The
    # JAX system's tables are float32 too, ours float64: where that meets, one value in 3,000 differs by 3e-5.
    output = case_["outputs/model_output"]
    step = diffusion.p_mean_variance(output, x_t, t)
    torch.testing.assert_close(step.mean, case_["outputs/p_mean"], **TOLERANCE)
    torch.testing.assert_close(step.log_variance, case_["outputs/p_log_variance"], **TOLERANCE)
    torch.testing.assert_close(step.pred_xstart, case_["outputs/pred_xstart"], atol=2e-5, rtol=2e-5)
    torch.testing.assert_close(diffusion.ddim_step(output, x_t, t, t - 1), case_["outputs/ddim_eta0"], **TOLERANCE)


def rewrite(tmp_path: Path, name: str, change, **cfg) -> Path:
    """A copy of a case with changed parameters or configuration."""
    from safetensors import safe_open

    source = CASES / f"{name}.safetensors"
    with safe_open(source, "pt") as file:
        metadata = file.metadata()
    metadata["config"] = json.dumps({**json.loads(metadata["config"]), **cfg})
    tensors = load_file(source)
    change(tensors)
    save_file(tensors, tmp_path / "case.safetensors", metadata)
    return tmp_path / "case.safetensors"


def test_weights_win_over_a_stale_sample_size(tmp_path: Path) -> None:
    stale = rewrite(tmp_path, "head_film", lambda tensors: None, sample_size=5)
    with pytest.warns(StaleSetSizeWarning, match=r"sets of 5.*sets of 6"):
        assert from_jax(stale).config.sets.set_size == 6


def test_every_wrong_leaf_is_listed(tmp_path: Path) -> None:
    def damage(tensors: dict[str, torch.Tensor]) -> None:
        del tensors["params/dit/params/Dense_0/bias"]
        tensors["params/dit/params/surprise"] = torch.zeros(1)

    with pytest.raises(CheckpointError) as error:
        from_jax(rewrite(tmp_path, "seed_film", damage))
    assert "missing: dit/params/Dense_0/bias" in str(error.value)
    assert "extra: dit/params/surprise" in str(error.value)


def test_a_misshaped_leaf_is_named(tmp_path: Path) -> None:
    def damage(tensors: dict[str, torch.Tensor]) -> None:
        tensors["params/dit/params/Dense_0/bias"] = torch.zeros(7)

    with pytest.raises(CheckpointError, match=r"denoiser.context_proj.bias is \(7,\), expected \(48,\)"):
        from_jax(rewrite(tmp_path, "seed_film", damage))


def test_a_lag_checkpoint_is_refused_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"mode_conditioning = 'lag'.*never worked"):
        from_jax(rewrite(tmp_path, "seed_film", lambda tensors: None, mode_conditioning="lag"))


def test_files_that_are_something_else(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no file"):
        from_jax(tmp_path / "missing.safetensors")
    (tmp_path / "text.safetensors").write_text("hello, this is a text")
    with pytest.raises(CheckpointError, match="damaged"):
        from_jax(tmp_path / "text.safetensors")
    save_file({"a": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="no flat file"):
        from_jax(tmp_path / "other.safetensors")
