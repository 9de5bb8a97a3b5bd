"""Filters for messages of libraries that need no action from a user of the command line, each by its text."""

from __future__ import annotations

import logging
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

LOGGED = {
    # Devices, precision and seed are in the line that begins a run.
    "lightning.pytorch.utilities.rank_zero": (
        r"GPU available: .*, used: ",
        r"TPU available: .*, using: ",
        r"Using (16bit|bfloat16) Automatic Mixed Precision",
        r"You are using a CUDA device \(.*\) that has Tensor Cores",
        r"💡 Tip: For seamless cloud ",
        r"-*\ndistributed_backend=",
        r"Loading `train_dataloader` to estimate",
        r"(Restoring states from|Restored all states from|Loaded model weights from) the checkpoint ",
        r"Found current_model_state in the checkpoint",
        r"`Trainer\.fit` stopped: `max_(steps|epochs)=",
    ),
    "lightning.fabric.utilities.seed": (r"(\[rank: \d+\] )?Seed set to ",),
    "lightning.fabric.utilities.distributed": (r"Initializing distributed: ",),
    "lightning.pytorch.accelerators.cuda": (r"LOCAL_RANK: .* - CUDA_VISIBLE_DEVICES: ",),
    # Compilation looks for a CUDA toolkit, also on a machine without a GPU.
    "torch.utils.cpp_extension": (r"No CUDA runtime is found",),
}
"""Beginnings of messages that are left out, as regular expressions, by their logger."""

WARNED = (
    # Lightning's use of what torch will rename.
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",
    r"torch\.distributed\.nn\.functional\.all_gather is deprecated",
    # Not true here: the interval is counted over epochs.
    r"The number of training batches \(\d+\) is smaller than the logging interval",
    # Every resumed run has its own folder.
    r"The dirpath has changed from ",
    # EMACallback resumes the average of Lightning's callback, which is refused in the same trainer.
    r"Be aware that when using `ckpt_path`, .* Please add the following callbacks: \['(EMA)?WeightAveraging'\]",
    # Brackets of `fid[glyph-cnn]/out`, which MLflow leaves out of names.
    r"MLFlow only allows .* special characters in metric name",
    # Lightning then uses CSVLogger, and the last line of a run says where its log is.
    r"Starting from v1\.9\.0, `tensorboardX` has been removed",
)
"""Beginnings of warnings that are left out, as regular expressions."""

WARNED_WITHOUT_TRAINING = (
    # The average of weights that a checkpoint holds needs no callback: they are the checkpoint's weights.
    r"Be aware that when using `ckpt_path`, callbacks used to create the checkpoint",
    r"You're using the WeightAveraging callback, but loading a checkpoint outside the 'fit' stage",
)
"""As `WARNED`, if nothing is trained: training without a callback of its checkpoint keeps the warning."""

WARNED_ON_ALL_RANKS = (r"The configuration says sets of \d+, but the weights were made for sets of ",)
"""Warnings of this package that every rank gives: only the first rank's is shown."""


@contextmanager
def quiet(training: bool) -> Iterator[None]:
    """Leave out what libraries say in a normal run, of training or not; everything is restored afterwards."""
    messages = list(WARNED)
    if not training:
        messages += WARNED_WITHOUT_TRAINING
    if any(os.environ.get(name, "0") != "0" for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID")):
        messages += WARNED_ON_ALL_RANKS
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        # Which line of which library a warning comes from helps no user of the command line.
        stack.callback(setattr, warnings, "formatwarning", warnings.formatwarning)
        warnings.formatwarning = _in_one_line
        for message in messages:
            warnings.filterwarnings("ignore", message=message)
        for name, beginnings in LOGGED.items():
            stack.enter_context(_left_out(logging.getLogger(name), re.compile("|".join(beginnings))))
        yield


def _in_one_line(message: Warning | str, *_: Any, **__: Any) -> str:
    return f"Warning: {message}\n"


@contextmanager
def _left_out(logger: logging.Logger, messages: re.Pattern[str]) -> Iterator[None]:
    def passes(record: logging.LogRecord) -> bool:
        return messages.match(record.getMessage()) is None

    logger.addFilter(passes)
    try:
        yield
    finally:
        logger.removeFilter(passes)
