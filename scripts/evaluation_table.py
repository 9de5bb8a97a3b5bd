"""The figures of one checkpoint by torch-fidelity's command, by several ranks and in several batch sizes: all equal.

Prints the table of docs/evaluation.md. Takes a checkpoint of configs/glyphs.yaml, as `make quickstart` leaves it.

    python scripts/evaluation_table.py runs/glyphs/version_0/checkpoints/last.ckpt
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

NUM_IMAGES, EXTRACTOR = 500, "glyph-cnn"
KID = ["--kid-subset-size", "250"]
FIGURES = ("fid", "kid", "isc", "precision", "recall")
THEIRS = (
    "frechet_inception_distance",
    "kernel_inception_distance_mean",
    "inception_score_mean",
    "precision",
    "recall",
)


def evaluate(ckpt_path: str, folder: Path, name: str, *options: str) -> dict[str, float]:
    """Figures of `out` by lightning-vfs evaluate, in a process of its own."""
    record = folder / f"{name}.json"
    subprocess.run(
        [
            sys.executable, "-m", "lightning_vfs", "evaluate", f"--ckpt_path={ckpt_path}", "--accelerator=cpu",
            f"--fid.record={record}", f"--fid.feature_extractor={EXTRACTOR}", "--fid.splits=[out]",
            "--fid.metrics=[fid,kid,isc,prc]", f"--fid.num_images={NUM_IMAGES}",
            f"--fid.num_real_images={NUM_IMAGES}", "--fid.steps=20", "--fid.options.kid_subset_size=250",
            "--fid.few_shot_way=null", *options,
        ],
        check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    figures = json.loads(record.read_text())["figures"]
    return {figure: figures[f"{figure}[{EXTRACTOR}]/out"]["value"] for figure in FIGURES}


def by_the_command(images: Path) -> dict[str, float]:
    """Figures by torch-fidelity's command, with our extractor registered, on the images that were written."""
    command = "import lightning_vfs.metrics; from torch_fidelity.fidelity import main; main()"
    done = subprocess.run(
        [
            sys.executable, "-c", command, "--input1", images / "generated", "--input2", images / "real", "--cpu",
            "--fid", "--kid", "--isc", "--prc", "--feature-extractor", EXTRACTOR, *KID, "--json", "--silent",
            "--no-cache",
        ],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    found = json.loads(done.stdout[done.stdout.index("{") :])
    return {ours: found[theirs] for ours, theirs in zip(FIGURES, THEIRS, strict=True)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ckpt_path")
    ckpt_path = parser.parse_args().ckpt_path
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = {"1 rank, batches of 250": evaluate(ckpt_path, folder, "one", f"--fid.save_images={folder}")}
        rows["the `fidelity` command on the same images"] = by_the_command(folder / "test")
        for size in (64, 7):
            rows[f"1 rank, batches of {size}"] = evaluate(ckpt_path, folder, f"b{size}", f"--fid.batch_size={size}")
        for ranks in (2, 3):
            options = (f"--devices={ranks}", "--strategy=ddp")
            rows[f"{ranks} ranks, batches of 250"] = evaluate(ckpt_path, folder, f"r{ranks}", *options)
    print(f"| evaluated by | {' | '.join(FIGURES)} |\n| --- |{' --- |' * len(FIGURES)}")
    for how, figures in rows.items():
        print(f"| {how} | {' | '.join(f'{figures[figure]:.7g}' for figure in FIGURES)} |")


if __name__ == "__main__":
    main()
