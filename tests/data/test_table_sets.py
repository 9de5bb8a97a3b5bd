"""Sets from tables: Parquet, Hugging Face's Arrow files, webdataset's tars."""

from __future__ import annotations

import json
import pickle
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lightning_vfs.core.errors import ConfigError, DataError
from lightning_vfs.data import TableSets

from .official import png, write_tar
from .test_official_sets import classes, greys, refused

SMALL: dict[str, Any] = {"set_size": 2, "image_size": 8, "channels": 1}
NAMES = ["cat", "dog", "owl", "pig"]
Row = tuple[bytes | None, Any]


@pytest.fixture
def pyarrow() -> Any:
    return pytest.importorskip("pyarrow")


def rows(labels: Sequence[Any]) -> list[Row]:
    """Row i has the value i."""
    return [(png(i), label) for i, label in enumerate(labels)]


def write_table(path: Path, table: Sequence[Row], names: Sequence[str] | None = None, bare: bool = False) -> Path:
    """A table as Hugging Face writes it, with the names of the classes if given; or of bytes alone."""
    import pyarrow as pa
    import pyarrow.ipc
    import pyarrow.parquet

    images = [image if bare else {"bytes": image, "path": None} for image, _ in table]
    kind = pa.binary() if bare else pa.struct({"bytes": pa.binary(), "path": pa.string()})
    columns = {"image": pa.array(images, kind), "label": pa.array([label for _, label in table])}
    made = pa.table(columns)
    if names:
        features = {"image": {"_type": "Image"}, "label": {"names": list(names), "_type": "ClassLabel"}}
        made = made.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(made, path, row_group_size=3)
    else:
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, made.schema) as writer:
            writer.write_table(made, max_chunksize=3)
    return path


@pytest.mark.usefixtures("pyarrow")
@pytest.mark.parametrize("file", ["table.parquet", "data-00000-of-00001.arrow"])
@pytest.mark.parametrize("bare", [False, True])
def test_a_table_has_a_class_for_each_label(tmp_path: Path, file: str, bare: bool) -> None:
    write_table(tmp_path / file, rows([0, 1, 2, 3] * 3), NAMES, bare)
    for path in (tmp_path, tmp_path / file):
        data = TableSets(str(path), split_fractions=(0.5, 0.25, 0.25), **SMALL)
        assert sorted(sum(classes(data).values(), ())) == NAMES
        for split, found in classes(data).items():
            for name in found:
                assert greys(data, split, name) == [NAMES.index(name) + 4 * j for j in range(3)]


@pytest.mark.usefixtures("pyarrow")
@pytest.mark.parametrize("file", ["table.parquet", "data-00000-of-00001.arrow", "shard.tar"])
def test_workers_that_are_not_forked_read_tables_too(tmp_path: Path, file: str) -> None:
    """They get a copy of what was found."""
    if file == "shard.tar":
        path, columns = write_tar(tmp_path / file, shard([0, 1] * 3, 0, "cls")), ("png", "cls")
    else:
        path, columns = write_table(tmp_path / file, rows([0, 1] * 3)), ("image", "label")
    found = TableSets(str(path), *columns, **SMALL).find()
    again = pickle.loads(pickle.dumps(found.source))
    out = np.zeros((6, 1, 8, 8), np.uint8)
    assert again.decode(range(6), out) == [None] * 6
    assert out[:, 0, 0, 0].tolist() == [0, 2, 4, 1, 3, 5]


@pytest.mark.usefixtures("pyarrow")
def test_labels_may_be_text_or_missing(tmp_path: Path) -> None:
    path = write_table(tmp_path / "a.parquet", rows(["x", "y", None, "y", "x", "z", "z"]))
    data = TableSets(str(path), split_fractions=(1, 0, 0), **SMALL)
    assert classes(data) == {"train": ("x", "y", "z")}
    assert "Left out: 1 rows without a label." in data.describe()
    unnamed = write_table(tmp_path / "b.parquet", rows([7, 7, 12, 12]))
    assert classes(TableSets(str(unnamed), split_fractions=(1, 0, 0), **SMALL)) == {"train": ("12", "7")}


@pytest.mark.usefixtures("pyarrow")
def test_splits_of_a_table_are_used_if_their_classes_differ(tmp_path: Path) -> None:
    for split, labels in {"train": [0, 0, 1, 1], "validation": [2, 2], "test": [3, 3]}.items():
        write_table(tmp_path / "own" / "data" / f"{split}-00000-of-00001.parquet", rows(labels), NAMES)
        write_table(tmp_path / "saved" / split / "data-00000-of-00001.arrow", rows(labels), NAMES)
        write_table(tmp_path / "common" / f"{split}.parquet", rows([0, 1, 2, 3]), NAMES)
    for folder in ("own", "saved"):
        data = TableSets(str(tmp_path / folder), **SMALL)
        assert classes(data) == {"train": ("cat", "dog"), "val": ("owl",), "test": ("pig",)}
        assert greys(data, "val", "owl") == [0, 1]
    common = TableSets(str(tmp_path / "common"), split_fractions=(0.5, 0.25, 0.25), **SMALL)
    assert "The table's splits (test, train, val) have classes in common" in common.describe()
    assert {split: len(names) for split, names in classes(common).items()} == {"train": 2, "val": 1, "test": 1}
    assert common.split("test").counts.tolist() == [3]


@pytest.mark.usefixtures("pyarrow")
def test_what_is_wrong_with_a_table_is_named(tmp_path: Path) -> None:
    path = write_table(tmp_path / "a.parquet", rows([0, 0, 1]))
    refused(TableSets(str(path), image_column="img"), "has no column img; it has image, label.")
    refused(TableSets(str(tmp_path / "b.parquet")), f"There is no {tmp_path / 'b.parquet'}. Did you mean")
    path.write_bytes(b"PAR1 but no more")
    refused(TableSets(str(path)), "a.parquet cannot be read as a table")
    (tmp_path / "text.txt").touch()
    refused(TableSets(str(tmp_path / "text.txt")), "holds a .txt file; a table is a .parquet file")
    write_tar(tmp_path / "b.tar", {"1.jpg": png(1)})
    refused(TableSets(str(tmp_path)), "holds files of .parquet and .tar; a table is")
    broken = write_table(tmp_path / "c.parquet", [(png(1), 0), (None, 0), (b"no image", 0), (png(2), 0)])
    refused(TableSets(str(broken), **SMALL), "2 of 4 images cannot be read", "row 1 has no image in the column image")
    with pytest.raises(DataError, match="must hold numbers or names of classes"):
        TableSets(str(write_table(tmp_path / "d.parquet", rows([[1], [2]])))).setup()


def test_without_pyarrow_the_error_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.parquet").touch()
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigError, match=r"pyarrow reads a.parquet: pip install 'lightning_vfs\[hf\]'"):
        TableSets(str(tmp_path)).setup()


# -- webdataset -------------------------------------------------------------------------------------------------------


def shard(labels: Sequence[int], first: int, form: str) -> dict[str, bytes]:
    """Members of a tar: sample i has the value i, and its label as a file or in a JSON file."""
    files = {}
    for i, label in enumerate(labels, start=first):
        stem = f"set/{i:06d}"
        files[f"{stem}.PNG" if i % 2 else f"{stem}.png"] = png(i)
        content = {"cls": (str(label), "cls"), "json": (json.dumps({"label": NAMES[label]}), "json")}[form]
        files[f"{stem}.{content[1]}"] = content[0].encode()
    return files | {"set/notes.txt": b"of no sample"}


@pytest.mark.parametrize("form", ["cls", "json"])
def test_webdataset_tars_have_a_class_for_each_label(tmp_path: Path, form: str) -> None:
    for i in range(2):
        write_tar(tmp_path / f"shard-{i:04d}.tar", shard([0, 1, 2, 3] * 2, 8 * i, form))
    label = "json.label" if form == "json" else "cls"
    data = TableSets(str(tmp_path), "jpg;png", label, split_fractions=(0.5, 0.25, 0.25), **SMALL)
    names = NAMES if form == "json" else ["0", "1", "2", "3"]
    assert sorted(sum(classes(data).values(), ())) == names
    for split, found in classes(data).items():
        for name in found:
            assert greys(data, split, name) == [names.index(name) + 4 * j for j in range(4)]


def test_what_is_wrong_with_a_tar_is_named(tmp_path: Path) -> None:
    path = str(write_tar(tmp_path / "a.tar", shard([0, 1], 0, "json")))
    refused(
        TableSets(path, "webp", "json.label"), "has no files .webp for --data.image_column; it has .json, .png, .txt"
    )
    refused(TableSets(path, "png", "cls"), "has no files .cls for --data.label_column")
    refused(TableSets(path, "png", "json.name"), "set/000000.json has no label (KeyError('name'))")
