"""lightning-vfs convert: checkpoints of the JAX system and of Lightning, each to the other."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lightning_vfs import VFSDDPM
from lightning_vfs.cli import main
from lightning_vfs.interop import from_jax

JAX_CASE = Path(__file__).parents[1] / "reference" / "head_film.safetensors"


def test_a_run_of_the_jax_system_goes_on_here_and_its_result_goes_back(
    config_file: Path, tmp_path: Path, capsys
) -> None:
    import_ = ["convert", f"--from_jax={JAX_CASE}", "--to=ckpt", f"--out={tmp_path / 'jax.ckpt'}"]
    assert main(import_) == 0
    assert "weights, step 0, sets of 6" in capsys.readouterr().out
    # The model is the checkpoint's; what the file says of another is left out.
    text = config_file.read_text()
    (tmp_path / "fit.yaml").write_text(text[: text.index("model:")])
    flags = [f"--config={tmp_path / 'fit.yaml'}", f"--trainer.logger.init_args.save_dir={tmp_path}"]
    assert main(["fit", *flags, f"--ckpt_path={tmp_path / 'jax.ckpt'}", "--trainer.max_steps=2"]) == 0
    last = tmp_path / "tiny" / "version_0" / "checkpoints" / "last.ckpt"
    assert torch.load(last, weights_only=True)["global_step"] == 2
    assert main(["convert", f"--ckpt_path={last}", "--to=safetensors", f"--out={tmp_path / 'back.safetensors'}"]) == 0
    assert "their average, AdamW's moments, step 2" in capsys.readouterr().out
    averaged, raw = from_jax(tmp_path / "back.safetensors", ema=True), from_jax(tmp_path / "back.safetensors")
    for model, expected in ((averaged, VFSDDPM.load_from_checkpoint(last)), (raw, None)):
        same = expected is not None and all(
            torch.equal(value, expected.state_dict()[name]) for name, value in model.state_dict().items()
        )
        assert same == (model is averaged)


def test_convert_says_what_is_wrong(trained, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["convert", "--to=ckpt"]) == 1
    assert (
        "Give one of --ckpt_path, --from_jax, --pretrained to say what to convert; got none" in capsys.readouterr().err
    )
    assert main(["convert", f"--from_jax={JAX_CASE}", f"--ckpt_path={trained()}"]) == 1
    assert "got --ckpt_path, --from_jax" in capsys.readouterr().err
    assert main(["convert", f"--from_jax={JAX_CASE}", "--cfg=missing.json"]) == 1
    assert "--cfg missing.json cannot be read as JSON" in capsys.readouterr().err
    assert main(["convert", f"--ckpt_path={trained()}", "--to=orbax", "--out=out"]) == 1
    assert "encoder.time_token is 'none', there it can only be 'timestep'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_convert_names_its_result_after_the_source_and_overwrites_nothing(
    tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["convert", f"--from_jax={JAX_CASE}", "--to=ckpt"]) == 0
    before = (tmp_path / "head_film.ckpt").read_bytes()
    assert main(["convert", f"--from_jax={JAX_CASE}", "--to=ckpt"]) == 1
    assert "head_film.ckpt exists already: say with --out where to write" in capsys.readouterr().err
    assert (tmp_path / "head_film.ckpt").read_bytes() == before
