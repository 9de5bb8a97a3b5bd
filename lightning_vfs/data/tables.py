"""Tables of images: Parquet, Hugging Face data sets on the disk, and webdataset's tars."""

from __future__ import annotations

import bisect
import itertools
import json
import re
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from lightning_vfs.core.errors import ConfigError, DataError
from lightning_vfs.core.files import local_path
from lightning_vfs.data.archives import Archive
from lightning_vfs.data.image_sets import FoundClass, FoundImages, ImageSets, found_images
from lightning_vfs.data.layout import SPLIT_NAMES, contents, no_such, printable
from lightning_vfs.data.module import Split
from lightning_vfs.data.sources import EncodedImages, ImageSource, file_state

if TYPE_CHECKING:
    import pyarrow as pa

KINDS = "a .parquet file, a folder of them, a data set that `save_to_disk` wrote, or .tar files of webdataset"


class TableSets(ImageSets):
    """Sets of images from the rows of tables: one class for each value of the label column.

    `path` is a file or a folder of

    - Parquet, as on the Hugging Face hub, or what `datasets.Dataset.save_to_disk` wrote (Arrow). Images are the bytes
      of image files, alone or as Hugging Face stores them with their path; classes are called as the data set names its
      labels. Needs pyarrow (the extra `hf`).
    - webdataset: tars whose files of one name are a row, and whose suffixes are the columns, such as `0001.jpg` and
      `0001.cls`: `image_column: jpg` (several are separated by `;`), and `label_column: cls`, or `json.label` for the
      field of a JSON file.

    Splits are those of the table (of a DatasetDict, or by names of files that begin with train, val, validation or
    test), if they have no class in common. Usually they have: then the images of all are used together, and classes are
    split by `split_seed`; `describe` says so.

    Args:
        path: the file or folder.
        image_column: of the images.
        label_column: of the classes.
        **kwargs: as for `ImageSets`.

    Raises:
        ConfigError: a value is not allowed, or pyarrow is missing.
    """

    may_change = ImageSets.may_change | {"path"}

    def __init__(self, path: str, image_column: str = "image", label_column: str = "label", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.path = local_path(path, "path")
        self.image_column = image_column
        self.label_column = label_column

    def find(self) -> FoundImages:
        files = _files(self.path)
        parts: list[_Part] = [
            _Shard(path, self.image_column, self.label_column)
            if path.suffix == ".tar"
            else _Table(path, self.image_column, self.label_column)
            for path in files
        ]
        rows: dict[tuple[str, Split | None], list[str]] = defaultdict(list)
        unlabelled = 0
        for number, (path, part) in enumerate(zip(files, parts, strict=True)):
            split = _split_of(path, self.path)
            for row, label in enumerate(part.labels):
                if label is None:
                    unlabelled += 1
                else:
                    rows[label, split].append(f"{number}:{row}")
        if not rows:
            raise DataError(f"There is no row with a label in {self.path}.")
        remarks = [f"Left out: {unlabelled:,} rows without a label."] if unlabelled else []
        tables = _Tables(self.path, parts)
        splits = {split for _, split in rows}
        if "train" in splits and None not in splits and len({label for label, _ in rows}) == len(rows):
            found = [FoundClass(label, split, tables, names) for (label, split), names in rows.items()]
        else:
            if splits != {None}:
                named = ", ".join(sorted(split or "no split" for split in splits))
                remarks.append(
                    f"The table's splits ({named}) have classes in common, or are not all named: their images are used "
                    "together, and classes are split by split_seed."
                )
            together: dict[str, list[str]] = defaultdict(list)
            for (label, _), names in rows.items():
                together[label] += names
            found = [FoundClass(label, None, tables, names) for label, names in together.items()]
        return found_images(found, self.image_size, self.channels, remarks)


def _files(path: Path) -> list[Path]:
    """The files of a table.

    Raises:
        DataError: there are none, or files of several kinds.
    """
    if path.is_file():
        files = [path]
    elif path.is_dir():
        files = sorted(each for each in path.rglob("*") if each.is_file() and not _hidden(each.relative_to(path)))
    else:
        raise DataError(no_such(path))
    tables = [each for each in files if each.suffix in (".parquet", ".arrow", ".tar")]
    # Hugging Face's cache keeps results of `map` as cache-....arrow beside the data
    tables = [each for each in tables if not each.name.startswith("cache-")]
    kinds = sorted({each.suffix for each in tables})
    if len(kinds) != 1:
        held = contents(path) if path.is_dir() else f"a {path.suffix or 'nameless'} file"
        found = f"files of {' and '.join(kinds)}" if kinds else held
        raise DataError(f"{path} holds {found}; a table is {KINDS}.")
    return tables


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _split_of(path: Path, root: Path) -> Split | None:
    """The split that the name of a file or of a folder above it, below the root, says."""
    parts = [path.name] if path == root else [*path.relative_to(root).parts]
    for part in reversed(parts):
        first = re.split(r"[^A-Za-z]", part)[0].lower()
        for split, names in SPLIT_NAMES.items():
            if first in names:
                return split
    return None


class _Part(ABC):
    """A file of a table.

    Attributes:
        path: of the file.
        labels: name of the class of every row, or None.
    """

    path: Path
    labels: Sequence[str | None]

    @abstractmethod
    def state(self, row: int) -> str:
        """What changes with the image of a row."""

    @abstractmethod
    def position(self, row: int) -> int:
        """Where the image of a row is."""

    @abstractmethod
    def content(self, row: int) -> bytes:
        """The image file in a row.

        Raises:
            DataError: it cannot be read.
        """


class _Tables:
    """The rows of all files of a table; `2:17` is row 17 of file 2, counted from 0."""

    def __init__(self, path: Path, parts: Sequence[_Part]) -> None:
        self.path, self._parts = path, parts

    def source(self, names: Sequence[str], image_size: int, channels: int) -> ImageSource:
        return EncodedImages(root=self.path, image_size=image_size, channels=channels, files=self, names=names)

    def _row(self, name: str) -> tuple[_Part, int]:
        number, row = map(int, name.split(":"))
        return self._parts[number], row

    def title(self, name: str) -> str:
        part, row = self._row(name)
        return f"{part.path}, row {row}"

    def state(self, name: str) -> str:
        part, row = self._row(name)
        return part.state(row)

    def position(self, name: str) -> int:
        number, row = map(int, name.split(":"))
        return number << 44 | self._parts[number].position(row)

    def contents(self, names: Sequence[str]) -> list[bytes | DataError]:
        return [self._content(name) for name in names]

    def _content(self, name: str) -> bytes | DataError:
        part, row = self._row(name)
        try:
            return part.content(row)
        except DataError as error:
            return error


class _Table(_Part):
    """A Parquet file, or an Arrow file of Hugging Face, read a group of rows at a time."""

    def __init__(self, path: Path, image_column: str, label_column: str) -> None:
        try:
            import pyarrow
            import pyarrow.ipc
            import pyarrow.parquet
        except ImportError as error:
            raise ConfigError(f"pyarrow reads {path.name}: pip install 'lightning_vfs[hf]'.") from error
        self.path, self._column, self._state = path, image_column, file_state(path)
        self._file: Any = None
        self._group: tuple[int, Any] | None = None
        try:
            file = self._opened()
            schema = file.schema_arrow if self._grouped else file.schema
            for column in (image_column, label_column):
                if column not in schema.names:
                    raise DataError(f"{path} has no column {column}; it has {', '.join(schema.names)}.")
            if self._grouped:
                counts = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
                labels = file.read([label_column], use_threads=False)
            else:
                counts, labels = [file.num_rows], file.select([label_column])
            self.labels = _class_names(labels.column(0).to_pylist(), schema, label_column)
        except (pyarrow.ArrowException, OSError, ValueError, TypeError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"{path} cannot be read as a table ({str(error)[:200]}).") from error
        self._ends = list(itertools.accumulate(counts))

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_file": None, "_group": None}

    def state(self, row: int) -> str:
        return self._state

    def position(self, row: int) -> int:
        return row

    def content(self, row: int) -> bytes:
        import pyarrow

        group = bisect.bisect_right(self._ends, row)
        try:
            if self._group is None or self._group[0] != group:
                file = self._opened()
                table = file.read_row_group(group, [self._column], use_threads=False) if self._grouped else file
                self._group = group, table.column(self._column)
            value = self._group[1][row - (self._ends[group - 1] if group else 0)].as_py()
        except (pyarrow.ArrowException, OSError, ValueError) as error:
            raise DataError(f"{self.path}, row {row} cannot be read ({str(error)[:200]}).") from error
        found = value.get("bytes") if isinstance(value, Mapping) else value
        if not isinstance(found, bytes):
            what = "no image" if found is None else f"a {type(found).__name__}"
            raise DataError(f"{self.path}, row {row} has {what} in the column {self._column}, not the bytes of a file.")
        return found

    @property
    def _grouped(self) -> bool:
        return self.path.suffix == ".parquet"

    def _opened(self) -> Any:
        """The file, memory-mapped: pyarrow's ParquetFile, or the Table of an Arrow file."""
        import pyarrow.parquet

        if self._file is None:
            self._file = (
                pyarrow.parquet.ParquetFile(self.path, memory_map=True) if self._grouped else _arrow_table(self.path)
            )
        return self._file


def _arrow_table(path: Path) -> pa.Table:
    """An Arrow file, memory-mapped; Hugging Face writes streams, others files."""
    import pyarrow.ipc

    try:
        return pyarrow.ipc.open_stream(pyarrow.memory_map(str(path))).read_all()
    except pyarrow.ArrowInvalid:
        return pyarrow.ipc.open_file(pyarrow.memory_map(str(path))).read_all()


def _class_names(values: Sequence[Any], schema: pa.Schema, column: str) -> list[str | None]:
    """Names of the classes of a column: those that Hugging Face's description of the table gives to its numbers."""
    names: Sequence[str] = ()
    try:
        described = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        names = described["info"]["features"][column]["names"]
    except (ValueError, KeyError, TypeError):
        pass  # it has no description, or one that names no classes
    if any(isinstance(value, list | dict | bytes | float) for value in values):
        raise DataError(f"the column {column} must hold numbers or names of classes, one in each row")
    return [
        None
        if value is None or value == -1
        else printable(str(names[value]))
        if isinstance(value, int) and 0 <= value < len(names)
        else printable(str(value))
        for value in values
    ]


class _Shard(_Part):
    """A tar of webdataset."""

    def __init__(self, path: Path, image_column: str, label_column: str) -> None:
        self.path, self._archive = path, Archive(path)
        suffixes = [suffix.strip().lower() for suffix in image_column.split(";")]
        file, _, field = label_column.partition(".")
        rows: dict[str, dict[str, str]] = defaultdict(dict)
        for name in self._archive.names:
            stem, _, suffix = PurePosixPath(name).name.partition(".")
            rows[str(PurePosixPath(name).with_name(stem))][suffix.lower()] = name
        pairs = [
            (next((files[suffix] for suffix in suffixes if suffix in files), None), files.get(file.lower()))
            for files in rows.values()
        ]
        self._images = [image for image, _ in pairs if image is not None]
        if not self._images:
            found = sorted({suffix for files in rows.values() for suffix in files})
            raise DataError(
                f"{path} has no files .{' or .'.join(suffixes)} for --data.image_column; it has "
                f"{', '.join(f'.{suffix}' for suffix in found[:10]) or 'none'}."
            )
        if not any(label for _, label in pairs):
            raise DataError(f"{path} has no files .{file} for --data.label_column.")
        labels = [(image, label) for image, label in pairs if image is not None]
        order = sorted((label, i) for i, (_, label) in enumerate(labels) if label is not None)
        order.sort(key=lambda each: self._archive.position(each[0]))
        self.labels = list(self._labels(len(labels), order, field))

    def _labels(self, count: int, files: Iterable[tuple[str, int]], field: str) -> Iterator[str | None]:
        found: list[str | None] = [None] * count
        for name, row in files:
            text = self._archive.read(name, most=2**20)
            try:
                value = json.loads(text)[field] if field else text.decode().strip()
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(f"{self.path}: {name} has no label ({error!r}).") from error
            found[row] = printable(str(value)) if value not in (None, "") else None
        return iter(found)

    def state(self, row: int) -> str:
        return self._archive.state(self._images[row])

    def position(self, row: int) -> int:
        return self._archive.position(self._images[row])

    def content(self, row: int) -> bytes:
        return self._archive.read(self._images[row])
