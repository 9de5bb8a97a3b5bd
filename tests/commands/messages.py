"""The lines that a run of the command line may print."""

from __future__ import annotations

import re

OURS = (
    r"--ckpt_path last: .* is the newest checkpoint of this configuration's runs\.",
    r"Decoding [\d,]+ images of .* into the cache .* \.\.\.",
    r"(Training|Validating|Testing|Predicting with) a model of .* parameters \(encoder .*, denoiser .*\)( from .*)? on "
    r"(\d+ ranks of )?cpu, precision \S+, seed \d+\.",
    r"Data: train [\d,]+ classes, [\d,]+ images; .*sets of \d+ x \d x \d+ x \d+",
    r"Training: \d+/\d+ steps \(\d+%\), [\d:]+, [\d:]+ left, .*",
    r"Trained to step \d+\. Log: .*",
    r"Written: (pictures|figures|evaluation): .*\.",
    r"Next: lightning-vfs (sample|evaluate|compare|fit) .*",
    r"Record of the evaluation: .*fid\.json",
    r"\d+ generated images a split, (averaged |raw )?weights of step \d+: .*",
    r"Pictures, support and generated image of every test set: .*predictions",
    r"\d+ images and grid\.png of \d+ support images: .*",
    r".*: model\.safetensors and config\.json, averaged weights of step \d+",
    r"Warning: glyph-cnn sees images as 16 x 16 in grey .*",
    r"[┏┡└│┃].*",
)


def not_ours(output: str) -> list[str]:
    """Lines of what a run has printed that are not among `OURS`."""
    lines = output.replace("\r", "\n").split("\n")
    return [line for line in lines if line.strip() and not any(re.fullmatch(ours, line) for ours in OURS)]
