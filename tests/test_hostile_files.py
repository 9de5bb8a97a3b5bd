"""Files that are cut, flipped and rewritten: always an error that names the file, never another exception."""

from __future__ import annotations

import json
import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from lightning_vfs import VFSDDPM, CheckpointError
from lightning_vfs.core.errors import EvaluationError
from lightning_vfs.evaluation.record import EvaluationRecord
from lightning_vfs.interop import from_jax
from lightning_vfs.training.checkpoints import read_checkpoint
from lightning_vfs.training.torch_files import load_torch_file

from .hostile import COSTLY, KINDS, cases

SLOW = {"JAX Orbax"}
"""Writing one imports jax."""


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] if n in SLOW else []) for n in KINDS])
def test_damaged_files_lead_to_the_error_of_their_kind(name: str) -> None:
    count = 8 if name in COSTLY else 30
    assert len(cases(name, count)) == count


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_many_damaged_files(name: str) -> None:
    assert len(cases(name, 400)) == 400


# -- sizes that are declared ------------------------------------------------------------------------------------------


def test_tensors_that_declare_more_than_a_file_holds(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    torch.save({"a": torch.zeros(1).expand(10**6, 10**6)}, path)
    with pytest.raises(ValueError, match=r"a tensor of shape \(1000000, 1000000\) is larger than what the file holds"):
        load_torch_file(path)
    torch.save({"a": torch.zeros(10**6)}, path)
    with zipfile.ZipFile(path) as archive:
        contents = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    with pytest.raises(ValueError, match="its contents are compressed"):
        load_torch_file(path)
    loop: list[Any] = []
    loop.append(loop)
    torch.save(loop, path)
    load_torch_file(path)


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("denoiser", {"depth": 10**9}), ("denoiser", {"dim": 2**40, "heads": 1}), ("encoder", {"dim": 2**30}),
        ("sets", {"image_size": 2**20}), ("sets", {"set_size": 10**12}), ("diffusion", {"timesteps": 10**12}),
        ("encoder", {"mlp_ratio": 1e300}), ("encoder", {"dropout": "x"}), ("denoiser", {"heads": 2.0}),
        ("latent", {"channels": [1]}), ("encoder", {"architecture": "unet", "pool": "mean", "num_res_blocks": 10**9}),
        ("denoiser", {"architecture": "unet", "channel_mult": [10**9]}), ("encoder", {"options": {"a": [[]]}}),
    ],
)  # fmt: skip
def test_configurations_that_declare_more_than_their_weights(
    part: str, value: dict[str, Any], tmp_path: Path, tiny_model: Any
) -> None:
    model = tiny_model()
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config[part] |= value
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=str(tmp_path)):
        VFSDDPM.from_pretrained(tmp_path)
    hyper_parameters = {**model.hparams, "config": config}
    torch.save({"state_dict": model.state_dict(), "hyper_parameters": hyper_parameters}, tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match=r"a\.ckpt"):
        VFSDDPM.load_from_checkpoint(tmp_path / "a.ckpt")


def test_hyper_parameters_that_grow_when_they_are_printed(tmp_path: Path, tiny_model: Any) -> None:
    model, grows = tiny_model(), ["x"]
    for _ in range(60):
        grows = [grows, grows]
    config = model.config.to_dict()
    config["encoder"]["architecture"] = grows
    checkpoint = {"state_dict": model.state_dict(), "hyper_parameters": {"config": config}}
    torch.save(checkpoint, tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match=r"a.ckpt is damaged.*more than 100,000 values"):
        read_checkpoint(tmp_path / "a.ckpt")


@pytest.mark.parametrize(
    "text", ["[" * 10**6, '{"schema": 1e999}', '{"schema": ' + "9" * 5000 + "}", '{"a":' * 90 + "1"]
)
def test_json_that_is_deep_or_large(text: str, tmp_path: Path) -> None:
    (tmp_path / "fid.json").write_text(text)
    with pytest.raises(EvaluationError, match=r"fid\.json"):
        EvaluationRecord.read(tmp_path / "fid.json")
    with (tmp_path / "fid.json").open("wb") as file:
        file.truncate(10**12)  # takes no space
    with pytest.raises(EvaluationError, match="it has 1,000,000,000,000 bytes"):
        EvaluationRecord.read(tmp_path / "fid.json")


def test_a_message_repeats_no_more_than_a_page_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "fid.json").write_text(json.dumps({"schema": 3, "x" * 10**6: 1}))
    with pytest.raises(EvaluationError, match=r"x \.\.\. and [\d,]+ more characters$") as raised:
        EvaluationRecord.read(tmp_path / "fid.json")
    assert len(str(raised.value)) < 11_000


def test_a_safetensors_header_that_declares_more(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(4)}, tmp_path / "a.safetensors")
    content = (tmp_path / "a.safetensors").read_bytes()
    header = json.dumps({"a": {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4 * 10**12]}}).encode()
    for changed in (struct.pack("<Q", len(header)) + header, struct.pack("<Q", 2**62) + content[8:]):
        (tmp_path / "a.safetensors").write_bytes(changed)
        with pytest.raises(CheckpointError, match=r"a\.safetensors is damaged"):
            from_jax(tmp_path / "a.safetensors")


def test_an_orbax_folder_that_declares_more_or_leads_outside(tmp_path: Path) -> None:
    pytest.importorskip("tensorstore", reason="install the extra `jax-import`")
    leaf = {"value_metadata": {"value_type": "jax.Array"}}
    for key, said in (
        ("big", "its arrays declare 4,000,000,000,000 bytes"),
        ("..", "a folder outside"),
        ("./..", "outside"),
    ):
        tree = {"tree_metadata": {"x": {**leaf, "key_metadata": [{"key": key}]}}}
        (tmp_path / "_METADATA").write_text(json.dumps(tree))
        zarr = {
            "zarr_format": 2, "shape": [10**12], "chunks": [10**12], "dtype": "<f4", "compressor": None,
            "fill_value": 0, "order": "C", "filters": None,
        }  # fmt: skip
        (tmp_path / "big").mkdir(exist_ok=True)
        (tmp_path / "big" / ".zarray").write_text(json.dumps(zarr))
        with pytest.raises(CheckpointError, match=said):
            from_jax(tmp_path)
