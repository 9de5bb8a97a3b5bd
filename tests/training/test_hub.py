"""Models by the ids of a hub, which is a stand-in on this machine."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from lightning_vfs import VFSDDPM, CheckpointError
from lightning_vfs.cli import main
from lightning_vfs.core.errors import ConfigError, VFSError
from lightning_vfs.data.pictures import sample_grid
from lightning_vfs.evaluation.record import EvaluationRecord
from lightning_vfs.flax import FlaxVFSDDPM
from lightning_vfs.training import hub as hub_module
from lightning_vfs.training import pretrained
from tests.evaluation.test_record import PLAIN
from tests.hub_server import Hub


@pytest.fixture
def record() -> EvaluationRecord:
    return EvaluationRecord.from_dict(PLAIN)


def test_what_is_pushed_comes_back(hub: Hub, tiny_model: Callable[..., VFSDDPM], record: EvaluationRecord) -> None:
    model = tiny_model()
    support = torch.zeros(1, 2, 3, 8, 8)
    picture = sample_grid(support, model.sample(support, 2, steps=2))
    url = model.push_to_hub("user/model", record=record, picture=picture, license="mit")
    assert url == f"{hub.url}/user/model/commit/{hub.sha('user/model', 1)}"
    files = hub.files("user/model")
    assert set(files) == {"model.safetensors", "config.json", "README.md", "fid.json", "samples.png"}
    assert EvaluationRecord.from_dict(json.loads(files["fid.json"])) == record
    loaded = VFSDDPM.from_pretrained("user/model")
    assert not loaded.training
    assert loaded.config == model.config
    assert loaded.sample(support[0], 2, steps=2).equal(model.sample(support[0], 2, steps=2))
    assert FlaxVFSDDPM.from_pretrained("user/model").config == model.config


def test_nothing_but_weights_and_configuration_is_downloaded(hub: Hub, tiny_model, tmp_path: Path) -> None:
    tiny_model().push_to_hub("user/model")
    hub.files("user/model")["lightning_vfs.py"] = hub.files("user/model")["setup.py"] = b"raise SystemExit('run')"
    VFSDDPM.from_pretrained("user/model")
    downloaded = {path.name for path in (tmp_path / "cache").glob("**/snapshots/*/*")}
    assert downloaded == {"model.safetensors", "config.json"}


def test_revisions(hub: Hub, tiny_model) -> None:
    first, second = tiny_model(), tiny_model(denoiser={"dim": 24})
    first.push_to_hub("user/model")
    second.push_to_hub("user/model")
    sha = hub.sha("user/model", 1)
    assert VFSDDPM.from_pretrained("user/model").config == second.config
    assert VFSDDPM.from_pretrained("user/model", revision=sha).config == first.config
    assert VFSDDPM.from_pretrained(f"user/model@{sha}").config == first.config
    with pytest.raises(CheckpointError, match="it has no revision v9"):
        VFSDDPM.from_pretrained("user/model@v9")
    with pytest.raises(ConfigError, match="names the revision v9, and revision is v8"):
        VFSDDPM.from_pretrained("user/model@v9", revision="v8")


def test_a_revision_of_a_folder_is_refused(tiny_model, tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="is a folder of this machine and has no revisions"):
        VFSDDPM.from_pretrained(tmp_path, revision="main")


def test_what_was_downloaded_is_there_offline(hub: Hub, tiny_model, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_model().push_to_hub("user/model")
    VFSDDPM.from_pretrained("user/model")
    asked = len(hub.asked)
    VFSDDPM.from_pretrained("user/model", local_files_only=True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    VFSDDPM.from_pretrained("user/model")
    assert len(hub.asked) == asked
    with pytest.raises(CheckpointError, match="HF_HUB_OFFLINE is set, and the local cache does not have it"):
        VFSDDPM.from_pretrained("user/other")


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        (401, r"access needs a login \(401\)"),
        (403, r"refuses access \(403\): log in with `hf auth login`"),
        (500, "answers 500. Try again later"),
        ("silence", "did not answer in time"),
    ],
)
def test_a_hub_that_refuses_is_an_error_of_one_line(
    failure: int | str, reason: str, hub: Hub, tiny_model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_module, "SECONDS", 0.2)
    hub.fails_with = failure
    with pytest.raises(CheckpointError, match=f"There is no folder user/model, and it .*{reason}") as raised:
        VFSDDPM.from_pretrained("user/model")
    assert len(str(raised.value).splitlines()) == 1
    if failure != "silence":
        with pytest.raises(VFSError, match=f"user/model cannot be uploaded to the hub: .*{reason}"):
            tiny_model().push_to_hub("user/model")


def test_what_is_not_there(hub: Hub, tiny_model) -> None:
    with pytest.raises(CheckpointError, match=r"the hub has no such model.*\(404\). Check the id"):
        VFSDDPM.from_pretrained("user/model")
    tiny_model().push_to_hub("user/model", private=True)
    with pytest.raises(CheckpointError, match=r"or access needs a login \(401\)"):
        VFSDDPM.from_pretrained("user/model", token="hf_wrong")
    del hub.files("user/model")["model.safetensors"]
    with pytest.raises(CheckpointError, match=r"has no model.safetensors"):
        VFSDDPM.from_pretrained("user/model")


def test_no_hub_at_all(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(CheckpointError, match=r"127.0.0.1:9 cannot be reached. Check the network"):
        VFSDDPM.from_pretrained("user/model")


def test_what_cannot_be_shared_is_refused_before_the_hub_is_asked(hub: Hub, tiny_model, tmp_path: Path) -> None:
    model = tiny_model()
    (tmp_path / "text.png").write_text("no picture")
    for wrong in (tmp_path / "text.png", torch.zeros(3, 8, 8)):
        with pytest.raises(ConfigError, match="picture is"):
            model.push_to_hub("user/model", picture=wrong)
    with pytest.raises(ConfigError, match="'a/b/c' is no id of a model on the hub"):
        model.push_to_hub("a/b/c")
    with pytest.raises(ConfigError, match="license is 'all rights'"):
        model.push_to_hub("user/model", license="all rights")
    with torch.no_grad():
        next(model.parameters()).fill_(torch.nan)
    with pytest.raises(CheckpointError, match=r"1 of the model's \d+ weights are not finite"):
        model.push_to_hub("user/model")
    assert not hub.asked


def test_the_hubs_reasons_against_a_card_are_told(hub: Hub, tiny_model) -> None:
    with pytest.raises(VFSError, match=r'Invalid metadata in README.md. - "license" must be one of'):
        tiny_model().push_to_hub("user/model", license="gpl-99")


def test_the_card_runs_as_written(hub: Hub, tiny_model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, model in {"few": tiny_model(), "none": tiny_model(encoder={"architecture": "none"})}.items():
        model.push_to_hub(f"user/{name}")
        card = hub.files(f"user/{name}")["README.md"].decode()
        folder = tmp_path / name
        (folder / "images").mkdir(parents=True)
        Image.new("RGB", (20, 20), "red").save(folder / "images" / "a.png")
        monkeypatch.chdir(folder)
        (python,) = re.findall(r"```python\n(.*?)```", card, re.S)
        exec(python, {})
        assert len(list(folder.glob("generated*.png"))) == 8
        (command,) = re.findall(r"^lightning-vfs (.*)$", card, re.M)
        assert main([*command.split(), "--device", "cpu"]) == 0
        assert (folder / "out" / "grid.png").is_file()


def test_the_name_of_the_boxed_model(tiny_model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrained, "BOXED", tmp_path / "pretrained")
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: pytest.fail("asked the hub"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="lacks the weights of the model 'glyphs'"):
        VFSDDPM.from_pretrained("glyphs")
    boxed, own = tiny_model(), tiny_model(denoiser={"dim": 24})
    boxed.save_pretrained(tmp_path / "pretrained" / "glyphs")
    (tmp_path / "glyphs").mkdir()  # images, say
    assert VFSDDPM.from_pretrained("glyphs").config == boxed.config
    with pytest.raises(ConfigError, match="comes with the package and has no revisions"):
        VFSDDPM.from_pretrained("glyphs", revision="main")
    own.save_pretrained(tmp_path / "glyphs")
    assert VFSDDPM.from_pretrained("glyphs").config == own.config


def test_the_client_can_be_missing(monkeypatch: pytest.MonkeyPatch, tiny_model) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(CheckpointError, match=r"There is no folder user/model. .*pip install 'lightning_vfs\[hub\]'"):
        VFSDDPM.from_pretrained("user/model")
    with pytest.raises(ConfigError, match=r"pip install 'lightning_vfs\[hub\]'"):
        tiny_model().push_to_hub("user/model")
