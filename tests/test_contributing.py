"""CONTRIBUTING.md: its examples, a data set, an encoder, a denoiser and a sampler, run from outside of the package."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from lightning_vfs import VFSDDPM, VFSConfig
from lightning_vfs.cli import main
from lightning_vfs.core import ConfigError, DenoiserConfig, EncoderConfig, SamplingConfig

PAGE = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text()
EXAMPLES = dict(re.findall(r"^## (Add a[^\n]*)\n(.*?)(?=^## |\Z)", PAGE, re.S | re.M))
FEWER = [
    "--trainer.max_steps=2", "--trainer.accelerator=cpu", "--trainer.precision=32-true", "--data.num_workers=0",
    "--data.sets_per_epoch=8", "--data.eval_sets=2", "--data.batch_size=2", "--model.config.encoder.dim=16",
    "--model.config.encoder.depth=1", "--model.config.denoiser.dim=24", "--model.config.denoiser.depth=1",
]  # fmt: skip


def commands(section: str) -> list[list[str]]:
    """Arguments of `lightning-vfs` in a section's commands."""
    (block,) = re.findall(r"```bash\n(.*?)```", EXAMPLES[section], re.S)
    return [shlex.split(line)[1:] for line in block.splitlines()]


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with my_package.py, the examples of all sections, where Python finds it."""
    code = "\n".join(re.findall(r"```python\n(.*?)```", PAGE, re.S))
    (tmp_path / "my_package.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def last(version: int) -> Path:
    return Path(f"runs/folders/version_{version}/checkpoints/last.ckpt")


def test_there_is_a_section_for_each() -> None:
    assert list(EXAMPLES) == ["Add a data set", "Add an encoder", "Add a denoiser", "Add a sampler"]


def test_one_of_each_from_outside(outside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (data,), (encoder,), (denoiser,), (sampler,) = map(commands, EXAMPLES)
    assert main([*data, *FEWER]) == 0
    assert yaml.safe_load(last(0).parents[1].joinpath("config.yaml").read_text())["data"]["class_path"] == data[-3]

    assert main([*encoder, *denoiser[denoiser.index("--model.config.denoiser.architecture") :], *FEWER]) == 0
    model = VFSDDPM.load_from_checkpoint(last(1))
    assert (type(model.encoder).__name__, type(model.denoiser).__name__) == ("MeanEncoder", "ConvDenoiser")
    assert model.encoder.head.in_features == model.denoiser.width == 8

    # A run goes on, also where options are given again, and others are refused.
    again = [*data, *FEWER, f"--ckpt_path={last(1)}", "--trainer.max_steps=4"]
    assert main([*again, "--model.config.encoder.options={width: 8}"]) == 0
    assert torch.load(last(2), weights_only=True)["global_step"] == 4
    assert main([*again, "--model.config.encoder.options={width: 9}"]) == 1
    assert "options.width is 9, but the checkpoint was trained with 8" in capsys.readouterr().err

    Path("path/to/images/cat").mkdir(parents=True)
    Image.new("RGB", (8, 8), (90, 120, 60)).save("path/to/images/cat/0.png")
    assert main([word.replace("version_0", "version_1") for word in sampler] + ["--steps=4"]) == 0
    support = torch.zeros(1, 3, 8, 8)
    own, ddim = (model.sample(support, 2, steps=4, sampler=name) for name in ("my_package.noisy_then_plain", "ddim"))
    assert own.shape == ddim.shape == (2, 3, 8, 8) and not own.equal(ddim)

    model.save_pretrained("model")
    assert VFSDDPM.from_pretrained("model").sample(support, 2, steps=4).equal(ddim)
    assert main(["convert", f"--ckpt_path={last(1)}", "--to=safetensors", "--out=jax.safetensors"]) == 1
    capsys.readouterr()
    in_jax = ["--framework=jax", "--pretrained=model", "--support=path/to/images/cat", "--out=jax"]
    assert main(["sample", *in_jax]) == 1
    assert "encoder.options is {'width': 8}, but an encoder of your own runs only in torch" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (lambda: EncoderConfig(architecture="svit"), "architecture is 'svit'; allowed: 'set_vit', .*or the path of"),
        (lambda: DenoiserConfig(options={"width": 8}), "options is .*, but architecture is 'dit'"),
        (
            lambda: SamplingConfig(sampler="plms"),
            "sampler is 'plms'; allowed: 'ddpm', 'ddim', 'dpmpp_2m', 'euler', 'heun', or the path",
        ),
    ],
)
def test_what_is_no_path_and_no_name_is_refused(part, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        part()


def test_a_path_that_leads_nowhere(outside: Path) -> None:
    for path, reason in (
        ("no_package.Encoder", "No module named 'no_package'"),
        ("my_package.Lost", "no attribute 'Lost'"),
    ):
        with pytest.raises(ConfigError, match=f"{path} cannot be imported .*{reason}"):
            VFSDDPM(VFSConfig(encoder=EncoderConfig(architecture=path)))


def test_tokens_of_an_encoder_of_ones_own_are_counted_by_context_tokens() -> None:
    own = EncoderConfig(architecture="my_package.MeanEncoder", dim=32)
    with pytest.raises(ConfigError, match="my_package.MeanEncoder makes is not known here: set context_tokens"):
        VFSConfig(encoder=own, denoiser=DenoiserConfig(conditioning="lag"))
    config = VFSConfig(encoder=own, denoiser=DenoiserConfig(conditioning="lag", context_tokens=4))
    assert config.context_shape == (4, 32)
    assert hash(config) == hash(VFSConfig.from_dict(config.to_dict()))
