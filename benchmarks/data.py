"""Data at scale: time, memory and disk of the first and the second start, of drawing an epoch with 0, 2 and 4 workers,
and of the index of 1.3 million images; and how many sets a second the loader alone delivers.

Images are synthetic JPEGs of 64 x 64 in classes of 100, made in a temporary folder. Each measurement is a process of
its own, so that its memory is its own: `MiB` is the most that it held, besides files that are mapped. The index is
that of paths which do not exist; what the file system takes for them is measured on those which do, and multiplied.

    python benchmarks/data.py [--images 30000] [--out benchmarks/results/data_cpu.json]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from array import array
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from report import report

from lightning_vfs.data import FolderSets, GlyphSets, SetDataModule
from lightning_vfs.data.decoded import ImageFiles
from lightning_vfs.data.folders import FileNames, PrintableNames, contents_of
from lightning_vfs.data.images import ClassImages
from lightning_vfs.data.layout import ClassFolder, FolderLayout, find_classes
from lightning_vfs.data.sets import SetSampler

PER_CLASS, INDEXED = 100, 1_300_000
BATCH, SET = 16, 6
TRAINED = Path(__file__).parent / "results" / "train_step_cpu.json"


def make_images(root: Path, count: int, size: int) -> None:
    """Smooth random pictures, JPEG."""
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (256, 8, 8, 3), dtype=np.uint8)
    pictures = [Image.fromarray(each).resize((size, size), Image.Resampling.BICUBIC) for each in small]
    for number in range(count):
        folder = root / f"class{number // PER_CLASS:05}"
        folder.mkdir(parents=True, exist_ok=True)
        pictures[number % len(pictures)].save(folder / f"{number % PER_CLASS:04}.jpg", quality=85)


def memory() -> dict[str, float]:
    """MiB of this process now: of its own, and of mapped files."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {name: int(status[name].split()[0]) / 1024 for name in ("RssAnon", "RssFile")}


class Peak:
    """The most memory of its own that this process holds inside, looked at every 20 ms."""

    def __enter__(self) -> Peak:
        import threading

        self._done, self.before, self.most = threading.Event(), memory()["RssAnon"], 0.0
        self._thread = threading.Thread(target=self._look)
        self._thread.start()
        return self

    def _look(self) -> None:
        while not self._done.wait(0.02):
            self.most = max(self.most, memory()["RssAnon"])

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        self.most = max(self.most, memory()["RssAnon"])


def of_images(root: str, cache: str, **options: Any) -> SetDataModule:
    return FolderSets(
        root, cache_dir=cache, set_size=SET, batch_size=BATCH, split_fractions=(1, 0, 0), **{"image_size": 64} | options
    )


def start(root: str, cache: str) -> dict[str, float]:
    """Everything until the first batch could be drawn."""
    begin, used = time.perf_counter(), time.process_time()
    with Peak() as peak:
        of_images(root, cache).setup()
    seconds, processor = time.perf_counter() - begin, time.process_time() - used
    return {"seconds": seconds, "seconds of a processor": processor, "MiB": peak.most - peak.before}


def epoch(root: str, cache: str, workers: str, kind: str) -> dict[str, float]:
    """All sets of an epoch, after the first batch of one before it."""
    if kind == "glyphs":
        data: SetDataModule = GlyphSets(batch_size=BATCH, num_workers=int(workers), sets_per_epoch=3200)
    elif kind == "photos":
        data = of_images(root, cache, image_size=256, cache=False, num_workers=int(workers), sets_per_epoch=128)
    else:
        data = of_images(root, cache, num_workers=int(workers), sets_per_epoch=3200)
    loader = data.train_dataloader()
    for _ in loader:  # workers are there, pages are read
        pass
    loader.batch_sampler.set_epoch(1)
    begin = time.perf_counter()
    with Peak() as peak:
        for _ in loader:
            pass
    seconds = time.perf_counter() - begin
    return {"seconds": seconds, "sets a second": data.sets_per_epoch / seconds, "MiB": peak.most - peak.before}


def index(root: str, cache: str) -> dict[str, float]:
    """The index of 1.3 million images, and a whole epoch of sets of them."""
    real = Path(root)
    begin = time.perf_counter()
    layout = find_classes(real)
    found = sum(len(each.images) for each in layout.classes)
    listed = (time.perf_counter() - begin) / found * INDEXED
    with Peak() as peak:
        begin, used = time.perf_counter(), time.process_time()
        classes = []
        for number in range(INDEXED // 1300):
            names = [f"n{number:08}_{image}.JPEG" for image in range(1300)]
            states = np.frombuffer(array("q", range(3 * 1300)), dtype=np.int64).reshape(-1, 3)
            classes.append(ClassFolder(f"n{number:08}", real / f"n{number:08}", None, names, states))
        everything = FolderLayout(classes)
        names = FileNames(real, everything)
        states = np.concatenate([each.states for each in classes])
        files = ImageFiles(root=real, names=names, states=states, image_size=64, channels=3)
        files.fingerprints()
        contents_of(everything)
        pixels = torch.zeros(1, dtype=torch.uint8).expand(INDEXED, 3, 64, 64)
        labels = np.repeat(np.arange(len(classes)), [len(each.images) for each in classes])
        images = ClassImages(pixels, [each.name for each in classes], labels, PrintableNames(names))
        indexed, processor = time.perf_counter() - begin, time.process_time() - used
        begin = time.perf_counter()
        sampler = SetSampler(images, SET, INDEXED // SET, BATCH, 0)
        plans = sum(1 for _ in sampler)
        drawn = time.perf_counter() - begin
    assert plans == len(sampler)
    return {
        "images": INDEXED,
        "seconds of the file system, from those there are": listed,
        "seconds of the index": indexed,
        "seconds of a processor for it": processor,
        "seconds of drawing an epoch": drawn,
        "MiB": peak.most - peak.before,
    }


def apart(what: str, *arguments: object) -> dict[str, float]:
    """A measurement in a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, "--measure", what, *map(str, arguments)], check=True, stdout=subprocess.PIPE
    )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return {name: round(value, 3 if value < 100 else 1) for name, value in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=30_000)
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--measure", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        what, *arguments = options.measure
        print(json.dumps({"start": start, "epoch": epoch, "index": index}[what](*arguments)))
        return
    with tempfile.TemporaryDirectory() as folder:
        root, photos, cache = (Path(folder) / name for name in ("images", "photos", "cache"))
        make_images(root, options.images, 64)
        make_images(photos, 600, 400)
        measure(root, photos, cache, options.out)


def measure(root: Path, photos: Path, cache: Path, out: Path | None) -> None:
    """All measurements, reported after each: it may take long on a busy machine."""
    images = sum(1 for _ in root.rglob("*.jpg"))
    figures: dict[str, Any] = {"images": images, "pixels": 64, "load before": os.getloadavg()[0]}

    def note(name: str, found: Any) -> None:
        figures[name] = found
        report(figures, torch.device("cpu"), out)

    note("index", apart("index", root, cache))
    note("first start", apart("start", root, cache))
    note("second start", apart("start", root, cache))
    note("cache, MiB", round(sum(file.stat().st_size for file in cache.iterdir()) / 2**20, 1))
    note("pixels, MiB", round(images * 3 * 64 * 64 / 2**20, 1))
    for kind in ("images", "glyphs", "photos"):
        for workers in (0, 2, 4):
            place = photos if kind == "photos" else root
            note(f"an epoch of {kind}, {workers} workers", apart("epoch", place, cache, workers, kind))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
