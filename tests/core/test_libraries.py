"""Every array function of the core, on torch and JAX (also under jit, vmap and grad), against NumPy."""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from array_api_compat import array_namespace, is_jax_array, is_torch_array

from lightning_vfs import core
from lightning_vfs.core import DiffusionConfig, GaussianDiffusion, categorical, gaussian, guided, patches, sample, sets
from lightning_vfs.core.embeddings import timestep_embedding
from lightning_vfs.core.likelihood import bits_per_dim, prior_bits_per_dim
from lightning_vfs.core.samplers import SAMPLERS
from tests.numerics import relative

pytestmark = pytest.mark.numeric

torch = pytest.importorskip("torch")
jax = pytest.importorskip("jax", reason="install the extra `jax`")

STEPS = 500
RNG = np.random.default_rng(0)
SETS = RNG.normal(size=(4, 5, 3, 8, 8)).astype(np.float32)
X_0 = RNG.uniform(-1, 1, (4, 2, 4, 4)).astype(np.float32)
NOISE, OTHER_NOISE, FRACTION, ERROR = RNG.normal(size=(4, *X_0.shape)).astype(np.float32)
STEP_NOISES = RNG.normal(size=(4, 2, *X_0.shape[1:])).astype(np.float32)
# The first step, which has its own formulas, and later ones, but none where an eps, divided by sqrt(alpha_bar), loses
# the digits that are compared here.
T = np.array([0, 1, 200, 400])
# Of the model: small at the first step, and 8-bit images within few bins of the mean, black and white ones too. Further
# out a bin's probability is the difference of two numbers that float32 cannot tell apart.
ERROR *= np.array([0.005, 0.5, 0.5, 0.5], np.float32)[:, None, None, None]
PIXELS = np.stack([np.full_like(X_0[0], -1), np.full_like(X_0[0], 1), *(np.round(X_0[:2] * 127) / 127)])
PIXELS_MEAN_SCALE = (PIXELS, PIXELS + 0.02 * NOISE, 0.1 * OTHER_NOISE - 3)
# Small ones: exp differs by a last digit between libraries, and an angle is the timestep times it.
SMALL_STEPS = np.array([0, 1, 3, 7])
SHOTS = np.array([1, 5, 2, 3])


class Case:
    """A function of arrays, all of them with the batch first; what is static is closed over."""

    def __init__(self, name: str, function: Callable[..., Any], *arrays: np.ndarray) -> None:
        self.name, self.function, self.arrays = name, function, arrays

    def of(self, dtype: type) -> Case:
        """The same case with its floats of another type."""
        return Case(self.name, self.function, *(x.astype(dtype) if x.dtype.kind == "f" else x for x in self.arrays))


def denoise(x: Any, t: Any, learned: bool = False) -> Any:
    """A toy denoiser that depends on the timestep."""
    xp = array_namespace(x)
    output = 0.1 * x + xp.reshape(xp.astype(t, x.dtype), (-1, 1, 1, 1)) / STEPS
    return xp.concat([output, 0.5 * x], axis=1) if learned else output


def draw(diffusion: GaussianDiffusion, sampler: Any, eta: float, x: Any, noises: Any, **options: Any) -> Any:
    learned = diffusion.config.variance == "learned_range"
    model = lambda x, t, step: (1 + 0.1 * step) * denoise(x, t, learned)  # noqa: E731
    return sample(model, x, diffusion, sampler, eta, lambda step: noises[:, step], **options)


def float32(x: Any) -> Any:
    return array_namespace(x).astype(x, array_namespace(x).float32)


def masked(x: Any, seen: Any) -> Any:
    """For every image of a set all images, zero where they are not seen."""
    return x[:, None] * array_namespace(x).astype(seen, x.dtype)[..., None, None, None]


def stop_gradient(x: Any) -> Any:
    return x.detach() if is_torch_array(x) else jax.lax.stop_gradient(x) if is_jax_array(x) else x


# With the gamma of min-SNR weights. The first two of `v` differ by their factors of the bound, which learned variances
# add; the others are alike for all.
LOSSES: dict[str, list[tuple[Any, float]]] = {
    "v": [("mse", 0.0), ("rescaled_mse", 0.0), ("rescaled_mse", 5.0)],
    "eps": [("kl", 0.0), ("mse", 5.0)],
    "x_0": [("mse", 0.0), ("rescaled_kl", 0.0), ("mse", 5.0)],
}


def of_process(prediction: Any, variance: Any, sampler: str, eta: float) -> list[Case]:
    """The functions of a diffusion process."""
    process = GaussianDiffusion(DiffusionConfig(STEPS, prediction=prediction, variance=variance))
    x_t = process.q_sample(X_0, T, NOISE)
    output = process.target(X_0, T, NOISE) + ERROR
    output = np.concatenate([output, np.tanh(FRACTION)], axis=1) if variance == "learned_range" else output
    noisy_step = lambda output, x, t, noise: process.ddim_step(output, x, t, t - 1, 0.7, noise)  # noqa: E731
    cases = [Case("target", process.target, X_0, T, NOISE)]
    cases += [Case("p_mean_variance", process.p_mean_variance, output, x_t, T)]
    if prediction == "eps":  # these depend on the schedule alone, or are parts of another process's losses and samples
        cases += [
            Case("q_sample", process.q_sample, X_0, T, NOISE),
            Case("on", lambda x, t, noise: process.on(x).q_sample(x, t, noise), X_0, T, NOISE),
            Case("q_posterior", process.q_posterior, X_0, x_t, T),
            Case("predict_x_0", process.predict_x_0, output, x_t, T),
            Case("ddpm_step", process.ddpm_step, output, x_t, T, OTHER_NOISE),
            Case("ddim_step", process.ddim_step, output, x_t, T, T - 1),
            Case("ddim_step, eta 0.7", noisy_step, output, x_t, T, OTHER_NOISE),
            Case("dpmpp_2m_step", process.dpmpp_2m_step, output, x_t, T, OTHER_NOISE),
            Case("variational_bound", process.variational_bound, output, X_0, x_t, T),
        ]
    for loss, gamma in LOSSES[prediction]:
        config = DiffusionConfig(STEPS, prediction=prediction, variance=variance, loss=loss, min_snr_gamma=gamma)
        losses = functools.partial(GaussianDiffusion(config).training_losses, stop_gradient=stop_gradient)
        cases.append(Case(f"training_losses, {loss}, min-SNR {gamma}", losses, output, X_0, x_t, T, NOISE))
    sampled = functools.partial(draw, process.respaced(2), sampler, eta)
    for case in cases:
        case.name = f"GaussianDiffusion.{case.name} [{prediction}, {variance}]"
    return [*cases, Case(f"sample, {sampler} [{prediction}, {variance}]", sampled, NOISE, STEP_NOISES)]


def all_cases(dtype: type) -> list[Case]:
    """Every case, its floats of one type. Arrays and processes are new: JAX keeps float32 copies of float64 tables."""
    few_steps = GaussianDiffusion(DiffusionConfig(STEPS, prediction="v"), kept=(0, 200))
    # with steps of second order between the first and the last
    four_steps = GaussianDiffusion(DiffusionConfig(STEPS, prediction="v"), kept=(0, 100, 200, 300))
    flow_config = {"schedule": "flow", "prediction": "x_0", "weighting": "v", "contrastive_weight": 0.1}
    flow, flow_output = GaussianDiffusion(DiffusionConfig(STEPS, **flow_config)), X_0 + ERROR

    def contrasted(output: Any, x_0: Any, x_t: Any, t: Any, noise: Any, negative: Any) -> Any:
        return flow.training_losses(output, x_0, x_t, t, noise, stop_gradient, negative=negative)

    learned = np.concatenate([X_0, ERROR], axis=1), np.concatenate([NOISE, OTHER_NOISE], axis=1)
    cases = [
        Case("leave_one_out", sets.leave_one_out, SETS),
        Case("seen_images", lambda x: masked(x, sets.seen_images(x, True)), SETS),
        Case("seen_images, of all", lambda x: masked(x, sets.seen_images(x, False)), SETS),
        Case("seen_images, of the first", lambda x, s: masked(x, sets.seen_images(x, True, s)), SETS, SHOTS),
        Case("complete, 5 to 7", lambda x: sets.complete(x, 7), SETS),
        Case("complete, 5 to 5", lambda x: sets.complete(x, 5), SETS),
        Case("keep_first", sets.keep_first, SETS, SHOTS),
        Case("set_mean", sets.set_mean, SETS),
        Case("set_mean, of the first", sets.set_mean, SETS, SHOTS),
        Case("pool_tokens", lambda x: sets.pool_tokens(x, 4), SETS.reshape(4, 8, 120)),
        Case("subsample", lambda x: sets.subsample(x, 3, seed=1), SETS),
        Case("stack_patches", lambda x: patches.stack_patches(x, 2), SETS),
        Case("unpatchify", lambda x: patches.unpatchify(x, 2, 3), SETS.reshape(4, 5 * 16, 12)[:, :16]),
        Case("timestep_embedding, even", lambda t: timestep_embedding(t, 8, array_namespace(t).float32), SMALL_STEPS),
        Case("timestep_embedding, odd", lambda t: timestep_embedding(t, 9, t.dtype), SMALL_STEPS.astype(np.float32)),
        Case("gaussian_kl", gaussian.gaussian_kl, X_0, NOISE, ERROR, OTHER_NOISE),
        Case("standard_gaussian_kl_bits", gaussian.standard_gaussian_kl_bits, X_0, NOISE),
        Case("discretized_gaussian_log_likelihood", gaussian.discretized_gaussian_log_likelihood, *PIXELS_MEAN_SCALE),
        Case("mean_flat", gaussian.mean_flat, SETS),
        Case("log_softmax", categorical.log_softmax, NOISE),
        Case("gumbel_softmax", lambda x, u: categorical.gumbel_softmax(x, u, 0.7), NOISE, (X_0 + 1) / 2),
        Case("most_likely", lambda i: categorical.most_likely(float32(i)), np.argsort(NOISE, axis=-1)),
        Case("uniform_kl_bits", categorical.uniform_kl_bits, NOISE),
        Case("guided", lambda c, u: guided(c, u, 1.5, 2), X_0, NOISE),
        Case("guided, learned variance", lambda c, u, scales: guided(c, u, scales[0], 2), *learned, np.full(4, 2.5)),
        Case("prior_bits_per_dim", functools.partial(prior_bits_per_dim, few_steps), X_0),
        Case("bits_per_dim", lambda x, n: bits_per_dim(denoise, x, few_steps, lambda i: n[:, i]), X_0, STEP_NOISES),
        Case("GaussianDiffusion.velocity", flow.velocity, flow_output, flow.q_sample(X_0, T, NOISE), T),
        Case("GaussianDiffusion.euler_step", flow.euler_step, NOISE, X_0, T),
        Case("GaussianDiffusion.training_losses, contrast", contrasted, flow_output, X_0, NOISE, T, ERROR, OTHER_NOISE),
        Case("sample, euler", functools.partial(draw, four_steps, "euler", 0.0), NOISE, STEP_NOISES),
        Case("sample, heun", functools.partial(draw, four_steps, "heun", 0.0), NOISE, STEP_NOISES),
        Case("sample, heun [flow]", functools.partial(draw, flow.respaced(4), "heun", 0.0), NOISE, STEP_NOISES),
        Case("sample, dpmpp_2m", functools.partial(draw, four_steps, "dpmpp_2m", 0.0), NOISE, STEP_NOISES),
        *of_process("eps", "fixed_small", "ddim", 0.0),
        *of_process("x_0", "fixed_large", "ddim", 0.7),
        *of_process("v", "learned_range", "ddpm", 0.0),
    ]
    return [case.of(dtype) for case in cases]


def each_case(dtype: type) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", all_cases(dtype), ids=lambda case: case.name)


NO_ARRAYS = {
    "make_betas", "make_path", "space_timesteps", "sincos_positions", "timestep_probabilities",
    "GaussianDiffusion.respaced",
}  # fmt: skip
NO_ARRAYS_IN = {
    "checks",
    "contract",
    "errors",
    "files",
    "fingerprint",
    "progress",
    "random_bits",  # of 64 bits, which JAX has on request alone
    "requests",
    "seeding",
    "trust",
    "unet",
}  # nor in configurations


def array_functions() -> set[str]:
    """Public functions, and methods of classes, of the core's modules."""
    names = set()
    modules = {module.name for module in pkgutil.iter_modules(core.__path__)} - NO_ARRAYS_IN
    for module_name in (name for name in modules if not name.endswith("config")):
        module = importlib.import_module(f"{core.__name__}.{module_name}")
        for name, value in vars(module).items():
            if inspect.isclass(value) and value.__module__ == module.__name__:
                names |= {f"{name}.{method}" for method, v in vars(value).items() if inspect.isfunction(v)}
            elif callable(value) and getattr(value, "__module__", None) == module.__name__:
                names.add(name)
    return {name for name in names if not name.split(".")[-1].startswith("_")} - NO_ARRAYS - set(SAMPLERS)


def test_every_array_function_of_the_core_has_a_case() -> None:
    cases = {tuple(case.name.split(" [")[0].split(", ")) for case in all_cases(np.float32)}
    assert array_functions() == {name.split(" ")[0] for name, *_ in cases}
    assert {("sample", sampler) for sampler in SAMPLERS} <= cases


def as_tuple(result: Any) -> tuple[Any, ...]:
    return tuple(result) if isinstance(result, tuple) else (result,)


def close(actual: Any, expected: Any, tolerance: float, dtype: type = np.float32) -> None:
    """Equal within a fraction of the value, or of the largest one (of 1 if there is none)."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.dtype == expected.dtype == dtype
    atol = tolerance * max(1.0, np.abs(expected).max())
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=atol)


def over_single_samples(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function of one sample, mapped over the batch."""
    return jax.vmap(lambda *one: tuple(y[0] for y in as_tuple(function(*(x[None] for x in one)))))


RUNS = {
    "torch": lambda function: lambda *arrays: function(*map(torch.as_tensor, arrays)),
    "jax": lambda function: lambda *arrays: function(*map(jax.numpy.asarray, arrays)),
    "jax.jit": jax.jit,
    "jax.vmap": lambda function: jax.jit(over_single_samples(function)),
}


@each_case(np.float32)
@pytest.mark.parametrize("run", RUNS)
def test_values_are_those_of_numpy(run: str, case: Case) -> None:
    expected = as_tuple(case.function(*case.arrays))
    actual = as_tuple(RUNS[run](case.function)(*case.arrays))
    for a, e in zip(actual, expected, strict=True):
        assert is_torch_array(a) if run == "torch" else is_jax_array(a)
        close(a, e, relative(16))


@each_case(np.float64)
def test_gradients_of_jax_are_those_of_torch(case: Case) -> None:
    """In float64: the likelihood of a bin, a difference of two close numbers, leaves a gradient of float32 few digits.

    The outputs are summed with weights that differ, so that a gradient of the wrong entry is noticed.
    """
    floats = [i for i, x in enumerate(case.arrays) if x.dtype == np.float64]
    if not floats:
        pytest.skip("a function of integers")

    def total(*arrays: Any) -> Any:
        xp = array_namespace(*arrays)
        outputs = [xp.reshape(y, (-1,)) for y in as_tuple(case.function(*arrays))]
        return sum(xp.sum(y * xp.asarray(np.cos(np.arange(y.shape[0])))) for y in outputs)

    tensors = [torch.tensor(x, requires_grad=i in floats) for i, x in enumerate(case.arrays)]
    expected = torch.autograd.grad(total(*tensors), [tensors[i] for i in floats], materialize_grads=True)
    assert any(gradient.any() for gradient in expected)
    with jax.enable_x64(True):
        for a, e in zip(jax.jit(jax.grad(total, floats))(*case.arrays), expected, strict=True):
            close(a, e, 1e-9, np.float64)


def scan(body: Callable[[Any, Any], Any], steps: Sequence[int], x: Any) -> Any:
    return jax.lax.scan(lambda x, step: (body(x, step), None), x, jax.numpy.asarray(list(steps)))[0]


@pytest.mark.parametrize(
    ("sampler", "eta", "kept"),
    [("ddim", 0.0, (0, 499)), ("ddpm", 0.0, (0, 499)), ("dpmpp_2m", 0.0, (0, 100, 300, 499))],
)
def test_sampling_with_one_compiled_step_is_sampling(sampler: str, eta: float, kept: tuple[int, ...]) -> None:
    drawn = functools.partial(draw, GaussianDiffusion(DiffusionConfig(STEPS, prediction="v"), kept), sampler, eta)
    close(jax.jit(functools.partial(drawn, loop=scan))(NOISE, STEP_NOISES), drawn(NOISE, STEP_NOISES), relative(16))
