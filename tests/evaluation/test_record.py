"""The record of an evaluation: written and read back, and held against another."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json
import math
import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import numpy as np
import pytest

from lightning_vfs.core.errors import EvaluationError
from lightning_vfs.core.files import hash_of
from lightning_vfs.evaluation.codec import is_unchanged, plain_values
from lightning_vfs.evaluation.comparison import compare
from lightning_vfs.evaluation.record import Compared, EvaluationRecord, Figure, Reason, Remark, versions

PLAIN: dict[str, Any] = {
    "schema": 5,
    "figures": {
        "fid/out": {
            "value": 4.5,
            "floor": 0.5,
            "floor_images": [100, 200],
            "chance": None,
            "copier": 0.25,
            "standard_error": 0.125,
            "mean_of_support": 0.75,
            "jittered_mean": 1.5,
            "replicates": [4.25, 4.75],
        }
    },
    "model": {
        "checkpoint": "a.ckpt",
        "checkpoint_sha256": "a" * 64,
        "global_step": 1000,
        "weights": "averaged",
        "averaging_decay": 0.999,
        "averaging_warmup": True,
        "autoencoder_sha256": None,
        "run_sha256": "b" * 64,
        "recipe_sha256": "d" * 64,
    },
    "data": {"dataset": "GlyphSets", "image_size": 16, "channels": 1},
    "splits": {
        "out": {
            "data_split": "test",
            "classes": ["a", "ä"],
            "num_images": 100,
            "num_real_images": 1000,
            "generated_per_class": {"a": 50, "ä": 50},
            "real_per_class": {"a": 500, "ä": 500},
            "images_sha256": "c" * 64,
            "real_images_sha256": "1" * 16,
            "supports_sha256": "2" * 16,
            "verdict": "copies its support",
            "episodes_without_reference": 3,
            "affinity_real": 0.04,
            "affinity_mean_of_support": 0.6,
            "hits_all": "01-",
            "affinity_hits": "10-",
            "copies": "00-",
            "groups": 2,
            "sampled_images": {"0": {"sha256": "e" * 64, "thumbnail": "AAEC"}},
        }
    },
    "sampling": {
        "sampler": "ddim",
        "steps": 50,
        "eta": 0.0,
        "guidance": None,
        "guidance_interval": None,
        "shots": 5,
        "held_out": "zero_slot",
        "precision": "32-true",
        "float32_matmul_precision": "highest",
        "memory_format": None,
        "seed": 0,
        "support_pool": 0.5,
        "images_per_class": 50,
    },
    "features": {
        "extractor": "inception-v3-compat",
        "layers": {"fid": "2048"},
        "weights_sha256": "d" * 64,
        "dtype": "float32",
        "resize": "inside",
        "rounding": "to nearest",
    },
    "metrics": {
        "kid_subsets": 100,
        "kid_subset_size": 1000,
        "kid_seed": 2020,
        "kid_kernel": "cubic",
        "isc_splits": 10,
        "isc_order": "shuffled",
        "prc_neighborhood": 3,
        "few_shot_way": 20,
        "diversity_images": 2,
        "lpips": "vgg16",
    },
    "likelihood": {
        "out": {
            "num_images": 10,
            "steps": 2,
            "prior": 0.1,
            "terms": [0.5, 0.25],
            "xstart_mse": [0.1, 0.2],
            "eps_mse": [0.3, 0.4],
        }
    },
    "environment": {
        "world_size": 1,
        "batch_size": 250,
        "device": "cpu",
        "generation_seconds": 1.5,
        "features_seconds": 2.5,
        "distance_seconds": 3.5,
        "versions": {
            "lightning_vfs": "1.0",
            "torch_fidelity": "0.4.0",
            "torch": "2.1",
            "torchvision": "0.1",
            "numpy": "2.0",
            "python": "3.11",
        },
    },
    "notes": ["few images"],
}


def plain() -> dict[str, Any]:
    """A record as plain values, to be changed at will."""
    return copy.deepcopy(PLAIN)


def changed(path: str, value: Any, values: dict[str, Any] | None = None) -> dict[str, Any]:
    """The record, or another one, with one value changed."""
    values = plain() if values is None else values
    *above, last = path.split(".")
    part = values
    for name in above:
        part = part[name]
    assert last in part
    part[last] = value
    return values


def leaves(part: type = EvaluationRecord, where: str = "") -> Iterator[tuple[str, Any]]:
    """Every field of the schema that holds a value, with its type; what is kept by name has `*` for the name."""
    for name, hint in get_type_hints(part, include_extras=True).items():
        below = get_args(hint)[1] if get_origin(hint) is dict else hint
        if dataclasses.is_dataclass(below):
            yield from leaves(below, f"{where}{name}." + ("*." if below is not hint else ""))
        else:
            yield where + name, hint


LEAVES = dict(leaves())


# -- written and read -------------------------------------------------------------------------------------------------


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    written = EvaluationRecord.from_dict(plain())
    assert written.to_dict() == plain()
    written.write(tmp_path / "new" / "fid.json")
    assert EvaluationRecord.read(tmp_path / "new" / "fid.json") == written
    assert isinstance(written.splits["out"].classes, tuple) and isinstance(written.figures["fid/out"], Figure)


def test_the_file_is_the_same_every_time_and_can_be_read_by_people(tmp_path: Path) -> None:
    for name in ("a", "b"):
        EvaluationRecord.from_dict(plain()).write(tmp_path / name)
    text = (tmp_path / "a").read_text()
    assert text == (tmp_path / "b").read_text()
    assert text.startswith('{\n  "schema": 5,\n  "figures": {\n    "fid/out": {\n      "value": 4.5,\n')
    assert '"floor_images": [100, 200],\n' in text
    assert '"classes": [\n        "a",\n        "ä"\n      ],\n' in text
    names = [field.name for field in dataclasses.fields(EvaluationRecord)]
    assert list(json.loads(text)) == ["schema", *names, "content_sha256"]


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_survive_in_a_file_that_any_json_reader_takes(
    tmp_path: Path, number: float
) -> None:
    values = EvaluationRecord.from_dict(changed("figures.fid/out.value", number))
    values.write(tmp_path / "fid.json")
    json.loads((tmp_path / "fid.json").read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert str(EvaluationRecord.read(tmp_path / "fid.json").figures["fid/out"].value) == str(number)


def test_names_of_any_file_survive(tmp_path: Path) -> None:
    names = ["[\n 1\n]", 'a"b', "[ 1,  2 ]", os.fsdecode(b"caf\xe9")]
    EvaluationRecord.from_dict(changed("splits.out.classes", names)).write(tmp_path / "fid.json")
    assert EvaluationRecord.read(tmp_path / "fid.json").splits["out"].classes == tuple(names)


def test_numbers_of_numpy_are_written_as_numbers() -> None:
    before = EvaluationRecord.from_dict(plain())
    environment = dataclasses.replace(before.environment, world_size=np.int64(2), features_seconds=np.float32(0.5))
    values = json.loads(json.dumps(dataclasses.replace(before, environment=environment).to_dict()))
    assert values["environment"]["world_size"] == 2 and values["environment"]["features_seconds"] == 0.5


def test_whole_numbers_do_for_real_ones() -> None:
    read = EvaluationRecord.from_dict(changed("sampling.eta", 0))
    assert isinstance(read.sampling.eta, float)


def test_a_write_that_is_cut_short_leaves_the_record_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "fid.json"
    EvaluationRecord.from_dict(plain()).write(path)

    def cut_short(self: Path, content: bytes) -> None:
        with open(self, "wb") as file:
            file.write(content[:100])
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_bytes", cut_short)
    with pytest.raises(KeyboardInterrupt):
        EvaluationRecord.from_dict(changed("sampling.seed", 5)).write(path)
    assert EvaluationRecord.read(path).sampling.seed == 0
    assert list(tmp_path.iterdir()) == [path]


def test_who_reads_while_it_is_replaced_sees_one_record_whole(tmp_path: Path) -> None:
    EvaluationRecord.from_dict(plain()).write(tmp_path / "fid.json")
    with open(tmp_path / "fid.json") as reader:
        EvaluationRecord.from_dict(changed("sampling.seed", 5)).write(tmp_path / "fid.json")
        assert json.load(reader)["sampling"]["seed"] == 0


def test_others_may_read_it(tmp_path: Path) -> None:
    EvaluationRecord.from_dict(plain()).write(tmp_path / "fid.json")
    assert os.stat(tmp_path / "fid.json").st_mode & 0o777 == 0o644


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(EvaluationError, match=f"cannot be written to {tmp_path}/file/fid.json: "):
        EvaluationRecord.from_dict(plain()).write(tmp_path / "file" / "fid.json")


def paths(values: Any, where: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, value in values.items():
        yield (*where, name)
        if isinstance(value, dict):
            yield from paths(value, (*where, name))


FREE = {("figures", "fid/out"), ("splits", "out"), ("likelihood", "out"), ("features", "layers", "fid")}
FREE |= {("splits", "out", "sampled_images", "0")}
FREE |= {("splits", "out", counts, name) for counts in ("generated_per_class", "real_per_class") for name in "aä"}
OPTIONAL = ("mean_of_support", "jittered_mean", "replicates", "groups", "diversity_images", "sampled_images")
OPTIONAL += ("lpips", "support_pool", "images_per_class")
REQUIRED = [path for path in paths(plain()) if path not in FREE and path[-1] not in OPTIONAL]


@pytest.mark.parametrize("path", REQUIRED, ids=".".join)
def test_a_missing_field_is_named(path: tuple[str, ...]) -> None:
    values = plain()
    *above, last = path
    part = values
    for name in above:
        part = part[name]
    del part[last]
    says = "there is no `schema` in it" if last == "schema" else rf"\(missing: {'.'.join(path)}\)"
    with pytest.raises(EvaluationError, match=says):
        EvaluationRecord.from_dict(values)


def test_every_field_that_is_wrong_is_named_at_once() -> None:
    values = plain()
    del values["sampling"]["eta"], values["features"]["dtype"]
    values["model"]["colour"] = "red"
    values["sampling"]["steps"] = "fifty"
    values["model"]["weights"] = "best"
    values["environment"]["world_size"] = True
    values["figures"]["fid/out"]["floor_images"] = [1, 2, 3]
    values["splits"]["out"]["classes"] = ["a", 1]
    values["metrics"] = None
    with pytest.raises(EvaluationError) as refused:
        EvaluationRecord.from_dict(values)
    message = str(refused.value)
    assert "missing: sampling.eta, features.dtype; not known: model.colour; of another type: " in message
    for part in (
        "figures.fid/out.floor_images is '[1, 2, 3]', not tuple[int, int]",
        "model.weights is 'best', not typing.Literal['averaged', 'raw']",
        "splits.out.classes is '1', not str",
        "sampling.steps is 'fifty', not int",
        "metrics is 'None', not MetricsRecord",
        "environment.world_size is 'True', not int",
    ):
        assert part in message


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, r"cannot be read \(No such file or directory\): give the fid.json of an evaluation"),
        (b'{"schema": 1, "fig', r"is not JSON \(.*\): give the fid.json of an evaluation"),
        (b"\xff\xfe\x00", "is not JSON"),
        (b"[1, 2]", "is not a record of an evaluation: it holds a list"),
        (b'{"dim": 3}', "there is no `schema` in it"),
        (
            b'{"schema": 7}',
            r"its schema is 7, but this version of lightning_vfs \(.*\) reads schemas 1 to 5: evaluate again",
        ),
        (b'{"schema": 2}', r"does not have the fields of schema 2 \(missing: figures, model, data, "),
        (
            b'{"schema": 1, "model": 0}',
            r"does not have the fields of schema 1 \(missing: figures, data, .*model is '0'",
        ),
    ],
)
def test_what_is_no_record_is_refused_by_the_name_of_the_file(tmp_path: Path, content: bytes | None, says: str) -> None:
    if content is not None:
        (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(EvaluationError, match=rf"^{tmp_path}/x.json\W.*{says}"):
        EvaluationRecord.read(tmp_path / "x.json")


@pytest.mark.parametrize("path", ["figures.fid/out.value", "notes", "splits.out.classes", "schema"])
def test_a_value_that_was_changed_since_it_was_written_is_found(tmp_path: Path, path: str) -> None:
    """However the file is laid out; records of earlier versions state nothing."""
    EvaluationRecord.from_dict(changed("splits.out.classes", ["a", os.fsdecode(b"caf\xe9")])).write(tmp_path / "a")
    values = plain_values(tmp_path / "a")
    assert is_unchanged(values) is True
    (tmp_path / "a").write_text(json.dumps(dict(reversed(values.items()))))
    assert is_unchanged(plain_values(tmp_path / "a")) is True
    assert is_unchanged(changed(path, 3, values)) is False
    del values["content_sha256"]
    assert is_unchanged(values) is None


# -- comparing --------------------------------------------------------------------------------------------------------


REASON, REMARK = "reasons", "remarks"

# What another value of a field alone is to a comparison, and what is said.
TABLE: dict[str, tuple[Any, str, str]] = {
    "model.checkpoint": ("b.ckpt", REMARK, "checkpoint: a.ckpt against b.ckpt: this is what is compared"),
    "model.checkpoint_sha256": ("b" * 64, REMARK, "checkpoint_sha256: aaaaaaaaaaaa… against bbbbbbbbbbbb…"),
    "model.global_step": (20000, REMARK, "global_step: 1,000 against 20,000: this is what is compared"),
    "model.weights": ("raw", REASON, "weights: averaged against raw: averaged and raw weights of one run give"),
    "model.autoencoder_sha256": ("b" * 64, REMARK, "autoencoder_sha256: none against bbbbbbbbbbbb…: this is what is"),
    "model.averaging_decay": (None, REMARK, "averaging_decay: 0.999 against none: "),
    "model.averaging_warmup": (False, REMARK, "averaging_warmup: True against False: this is a choice of training"),
    "model.run_sha256": ("c" * 64, REMARK, "run_sha256: bbbbbbbbbbbb… against cccccccccccc…: this is what is compared"),
    "model.recipe_sha256": ("c" * 64, REMARK, "recipe_sha256: dddddddddddd… against cccccccccccc…: this is what"),
    "data.dataset": ("FolderSets", REASON, "dataset: GlyphSets against FolderSets: figures of different data"),
    "data.image_size": (32, REASON, "image_size: 16 against 32: features see images of another size"),
    "data.channels": (3, REASON, "channels: 1 against 3: "),
    "splits.*.data_split": ("val", REASON, "data_split of split out: test against val: other classes"),
    "splits.*.classes": (["a", "b"], REASON, "classes of split out: only the first has ä; only the second has b: "),
    "splits.*.num_images": (50, REASON, "num_images of split out: 100 against 50: FID is biased by the number"),
    "splits.*.num_real_images": (
        10000,
        REASON,
        "num_real_images of split out: 1,000 against 10,000: FID is biased by the number of images",
    ),
    "splits.*.generated_per_class": (
        {"a": 50, "ä": 51},
        REASON,
        "generated_per_class of split out: ä 50 against 51: classes have different weights",
    ),
    "splits.*.real_per_class": ({"a": 1, "ä": 500}, REASON, "real_per_class of split out: a 500 against 1: "),
    "splits.*.images_sha256": ("b" * 64, REASON, "images_sha256 of split out: cccccccccccc… against bbbbbbbbbbbb…: "),
    "splits.*.real_images_sha256": ("8" * 16, REASON, "real_images_sha256 of split out: 1111111111111111 against 88"),
    "splits.*.supports_sha256": ("8" * 16, REASON, "supports_sha256 of split out: 2222222222222222 against 88888888"),
    "sampling.sampler": ("ddpm", REASON, "sampler: ddim against ddpm: "),
    "sampling.steps": (100, REASON, "steps: 50 against 100: "),
    "sampling.eta": (1.0, REASON, "eta: 0.0 against 1.0: "),
    "sampling.guidance": (1.5, REASON, "guidance: none against 1.5: "),
    "sampling.guidance_interval": (
        [0, 500],
        REASON,
        "guidance_interval: none against (0, 500): guidance acts at other",
    ),
    "sampling.shots": (4, REASON, "shots: 5 against 4: "),
    "sampling.held_out": ("drop", REASON, "held_out: zero_slot against drop: "),
    "sampling.precision": ("bf16-mixed", REASON, "precision: 32-true against bf16-mixed: "),
    "sampling.float32_matmul_precision": ("high", REMARK, "float32_matmul_precision: highest against high: images may"),
    "sampling.memory_format": ("channels_last", REMARK, "memory_format: none against channels_last: images may"),
    "sampling.seed": (1, REMARK, "seed: 0 against 1: other noise"),
    "sampling.support_pool": (None, REASON, "support_pool: 0.5 against none: the real images are, or are not, those"),
    "sampling.images_per_class": (128, REASON, "images_per_class: 50 against 128: classes have different weights"),
    "features.extractor": (
        "glyph-cnn",
        REASON,
        "extractor: inception-v3-compat against glyph-cnn: distances in different feature spaces",
    ),
    "features.layers": ({"fid": "64"}, REASON, "layers: fid 2048 against 64: distances in different feature spaces"),
    "features.weights_sha256": ("b" * 64, REASON, "weights_sha256: dddddddddddd… against bbbbbbbbbbbb…: "),
    "features.dtype": ("float64", REASON, "dtype: float32 against float64: "),
    "features.resize": ("other", REASON, "resize: inside against other: "),
    "features.rounding": ("down", REASON, "rounding: to nearest against down: "),
    "metrics.kid_subsets": (10, REASON, "kid_subsets: 100 against 10: "),
    "metrics.kid_subset_size": (20, REASON, "kid_subset_size: 1,000 against 20: "),
    "metrics.kid_seed": (0, REASON, "kid_seed: 2,020 against 0: "),
    "metrics.kid_kernel": ("linear", REASON, "kid_kernel: cubic against linear: "),
    "metrics.isc_splits": (2, REASON, "isc_splits: 10 against 2: "),
    "metrics.isc_order": ("as generated", REASON, "isc_order: shuffled against as generated: "),
    "metrics.prc_neighborhood": (5, REASON, "prc_neighborhood: 3 against 5: "),
    "metrics.few_shot_way": (5, REASON, "few_shot_way: 20 against 5: "),
    "metrics.diversity_images": (4, REMARK, "diversity_images: 2 against 4: diversity varies less with more images"),
    "metrics.lpips": ("alex", REASON, "lpips: vgg16 against alex: LPIPS is that of another network or of other pairs"),
    "likelihood.*.num_images": (2, REASON, "num_images of split out: 10 against 2: the bound is that of other images"),
    "likelihood.*.steps": (3, REASON, "steps of split out: 2 against 3: the bound is that of a process"),
    "environment.world_size": (4, REMARK, "world_size: 1 against 4: figures do not depend on it"),
    "environment.batch_size": (8, REMARK, "batch_size: 250 against 8: figures do not depend on it"),
    "environment.device": ("cuda", REMARK, "device: cpu against cuda: figures may differ in their last digits"),
    "environment.generation_seconds": (9.5, REMARK, "generation_seconds: 1.5 against 9.5: time taken"),
    "environment.features_seconds": (9.5, REMARK, "features_seconds: 2.5 against 9.5: time taken"),
    "environment.distance_seconds": (9.5, REMARK, "distance_seconds: 3.5 against 9.5: time taken"),
    "environment.versions.lightning_vfs": ("9", REMARK, "lightning_vfs: 1.0 against 9: "),
    "environment.versions.torch_fidelity": ("9", REASON, "torch_fidelity: 0.4.0 against 9: features and distances"),
    "environment.versions.torch": ("9", REMARK, "torch: 2.1 against 9: "),
    "environment.versions.torchvision": ("9", REMARK, "torchvision: 0.1 against 9: "),
    "environment.versions.numpy": ("9", REMARK, "numpy: 2.0 against 9: "),
    "environment.versions.python": ("9", REMARK, "python: 3.11 against 9: "),
    "notes": (["new"], REMARK, "notes: only the first has few images; only the second has new: to be read with"),
}


def test_every_field_of_the_schema_is_a_reason_a_remark_or_compared() -> None:
    kinds = {path: getattr(hint, "__metadata__", ()) for path, hint in LEAVES.items()}
    assert [path for path, kind in kinds.items() if len(kind) != 1] == []
    assert {type(kind) for (kind,) in kinds.values()} == {Reason, Remark, Compared}
    assert {path for path, (kind,) in kinds.items() if not isinstance(kind, Compared)} == set(TABLE)
    for path, (_, lines, _) in TABLE.items():
        assert isinstance(kinds[path][0], Reason if lines == REASON else Remark), path


@pytest.mark.parametrize("path", TABLE)
def test_a_field_that_alone_differs_is_told(path: str) -> None:
    value, lines, says = TABLE[path]
    found = compare(
        EvaluationRecord.from_dict(plain()), EvaluationRecord.from_dict(changed(path.replace("*", "out"), value))
    )
    assert found.comparable == (lines == REMARK)
    (line,) = getattr(found, lines)
    assert line.startswith(says)
    assert len(found.reasons) + len(found.remarks) == 1 and "\n" not in line


@pytest.mark.parametrize("path", [path for path, hint in LEAVES.items() if isinstance(hint.__metadata__[0], Compared)])
def test_what_is_compared_may_differ(path: str) -> None:
    path = path.replace("*", "fid/out" if path.startswith("figures") else "out")
    several = path.endswith(("floor_images", "terms", "mse", "replicates"))
    words = path.endswith(("verdict", "hits_all", "affinity_hits", "copies"))
    kinds: dict[str, Any] = {"sampled_images": {"0": {"sha256": "f" * 64, "thumbnail": ""}}, "groups": 7}
    value = [7, 7] if several else "1" if words else 7 if path.endswith("without_reference") else 7.5
    value = kinds.get(path.split(".")[-1], value)
    other = EvaluationRecord.from_dict(changed(path, value))
    assert other != EvaluationRecord.from_dict(plain())
    assert compare(EvaluationRecord.from_dict(plain()), other) == ([], [])


def test_a_record_is_comparable_with_itself() -> None:
    a = EvaluationRecord.from_dict(plain())
    found = compare(a, a)
    assert found.comparable and found == ([], [])


def test_every_difference_is_told_at_once() -> None:
    values = plain()
    for path, (value, _, _) in TABLE.items():
        values = changed(path.replace("*", "out"), value, values)
    found = compare(EvaluationRecord.from_dict(plain()), EvaluationRecord.from_dict(values))
    for lines in (REASON, REMARK):
        expected = [says for _, kind, says in TABLE.values() if kind == lines]
        said = getattr(found, lines)
        assert len(said) == len(expected)
        assert [says for says in expected if not any(line.startswith(says) for line in said)] == []


WITHOUT_SUPPORT = ("sampling.shots", "sampling.held_out", "splits.*.supports_sha256")


@pytest.mark.parametrize("path", [path for path in TABLE if path.startswith("metrics.") or path in WITHOUT_SUPPORT])
@pytest.mark.parametrize("swap", [False, True])
def test_options_of_a_metric_or_model_that_one_has_not_are_no_reason(path: str, swap: bool) -> None:
    without = EvaluationRecord.from_dict(changed(path.replace("*", "out"), None))
    pair = [EvaluationRecord.from_dict(plain()), without]
    assert compare(*(pair[::-1] if swap else pair)).comparable


def test_two_intervals_of_guidance_are_told_in_full() -> None:
    first, second = (EvaluationRecord.from_dict(changed("sampling.guidance_interval", [low, 500])) for low in (0, 100))
    (reason,) = compare(first, second).reasons
    assert reason.startswith("guidance_interval: (0, 500) against (100, 500): ")
    assert EvaluationRecord.from_dict(first.to_dict()) == first


def test_records_of_earlier_schemas_are_read() -> None:
    new = plain()
    first = copy.deepcopy(new)
    for path in EvaluationRecord.OPTIONAL:
        for part in (first[path.split(".")[0]],):
            for each in part.values() if "*" in path else (part,):
                del each[path.split(".")[-1]]
    assert EvaluationRecord.from_dict(first).figures["fid/out"].replicates is None, "before they were part of schema 4"
    for part, name in (("metrics", "diversity_images"), ("metrics", "lpips")):
        new[part][name] = None
    for name in ("support_pool", "images_per_class"):
        new["sampling"][name] = None
    added = {"figures": tuple(PLAIN["figures"]["fid/out"])[-5:], "splits": tuple(PLAIN["splits"]["out"])[-9:]}
    for part, names in added.items():
        for each in new[part].values():
            each |= dict.fromkeys(names)
    third = copy.deepcopy(new) | {"schema": 3}
    for part, names in added.items():
        for each, name in itertools.product(third[part].values(), names):
            del each[name]
    assert EvaluationRecord.from_dict(third) == EvaluationRecord.from_dict(new)
    for name in ("float32_matmul_precision", "memory_format"):
        new["sampling"][name] = None
    new["model"]["averaging_warmup"] = None
    old = copy.deepcopy(new) | {part: third[part] for part in added} | {"schema": 2}
    del old["sampling"]["float32_matmul_precision"], old["sampling"]["memory_format"], old["model"]["averaging_warmup"]
    assert EvaluationRecord.from_dict(old) == EvaluationRecord.from_dict(new)
    old |= {"schema": 1}
    del old["sampling"]["guidance_interval"], old["model"]["autoencoder_sha256"]
    assert EvaluationRecord.from_dict(old) == EvaluationRecord.from_dict(new)
    del old["sampling"]["guidance"]
    with pytest.raises(EvaluationError, match=r"fields of schema 1 \(missing: sampling.guidance\)"):
        EvaluationRecord.from_dict(old)


def test_figures_that_only_one_has_are_named() -> None:
    values = plain()
    values["figures"] |= {f"fid/class/{i}": values["figures"]["fid/out"] for i in range(7)}
    more, fewer = EvaluationRecord.from_dict(values), EvaluationRecord.from_dict(plain())
    names = ", ".join(f"fid/class/{i}" for i in range(5))
    assert compare(more, fewer) == ([], [f"figures: only the first has {names} and 2 more: not compared"])
    assert compare(fewer, more).remarks == [f"figures: only the second has {names} and 2 more: not compared"]


def test_no_figure_in_common_is_a_reason() -> None:
    values = plain()
    values["figures"] = {"fid[glyph-cnn]/out": values["figures"]["fid/out"]}
    found = compare(EvaluationRecord.from_dict(plain()), EvaluationRecord.from_dict(values))
    assert found.reasons == [
        "figures: only the first has fid/out; only the second has fid[glyph-cnn]/out: there is no figure to compare"
    ]


def test_only_splits_that_both_have_are_compared() -> None:
    values = plain()
    values["splits"]["in"] = values["splits"].pop("out") | {"num_images": 7}
    assert compare(EvaluationRecord.from_dict(plain()), EvaluationRecord.from_dict(values)).comparable
    values["splits"]["out"] = values["splits"]["in"]
    (reason,) = compare(EvaluationRecord.from_dict(plain()), EvaluationRecord.from_dict(values)).reasons
    assert reason.startswith("num_images of split out: 100 against 7")


def test_classes_in_another_order_are_told() -> None:
    other = EvaluationRecord.from_dict(changed("splits.out.classes", ["ä", "a"]))
    (reason,) = compare(EvaluationRecord.from_dict(plain()), other).reasons
    assert reason.startswith("classes of split out: the same in another order: ")


# -- helpers ----------------------------------------------------------------------------------------------------------


def test_hashes_are_stable() -> None:
    assert hash_of("a", "ä") == "f64829bd37a41728"
    assert hash_of(np.arange(3)) == "03f78490c395f59f"
    assert hash_of(np.arange(3)) == hash_of(np.arange(3).astype(">i8")) == hash_of(np.arange(6)[::2] // 2)


def test_hashes_see_every_difference() -> None:
    others = [
        ("ab", "c"),
        ("a", "bc"),
        ("abc",),
        ("a", "bc", ""),
        (np.arange(6),),
        (np.arange(6).reshape(2, 3),),
        (np.arange(6).reshape(3, 2),),
        (np.arange(6, dtype=np.int32),),
        (np.arange(3), np.arange(3, 6)),
        (np.arange(6)[::-1],),
        (np.empty((0, 2)),),
        (),
        (os.fsdecode(b"\xe9"),),
        ("?",),
    ]
    assert len({hash_of(*values) for values in others}) == len(others)


def test_versions_are_those_of_the_packages() -> None:
    import torch
    import torch_fidelity
    import torchvision

    import lightning_vfs

    found = versions()
    assert found.lightning_vfs == lightning_vfs.__version__
    assert found.torch_fidelity == torch_fidelity.__version__
    assert found.torch.split("+")[0] == torch.__version__.split("+")[0]
    assert found.torchvision.split("+")[0] == torchvision.__version__.split("+")[0]
    assert found.numpy == np.__version__
    assert platform.python_version() == found.python
