"""Whether a record's images are those of a model: a sample of them is generated again, and compared."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch

from lightning_vfs.core.checks import is_path
from lightning_vfs.core.errors import ConfigError, EvaluationError, VFSError
from lightning_vfs.core.files import hash_of
from lightning_vfs.core.sampling_config import SamplingConfig
from lightning_vfs.core.trust import refuse
from lightning_vfs.data.images import Episodes
from lightning_vfs.data.module import SetDataModule
from lightning_vfs.data.pictures import to_uint8
from lightning_vfs.evaluation.episodes import SplitEpisodes
from lightning_vfs.evaluation.model import AUTOCAST, OWN_PRECISION, check_model, conditions_of, undisturbed
from lightning_vfs.evaluation.plan import SPLITS, EvaluationPlan
from lightning_vfs.evaluation.real_images import RealImages
from lightning_vfs.evaluation.record import EvaluationRecord, SplitRecord
from lightning_vfs.evaluation.sampled_images import describe_images, sampled_indices, thumbnail_difference

LARGEST_ROUNDING = 4
"""Grey levels by which thumbnails of the same weights' images may differ: by the arithmetic of another processor."""
MOST_IMAGES = 10**7
"""Of a split: a damaged record may have any number."""


class Verification(NamedTuple):
    """What came of generating a sample of a record's images again.

    Attributes:
        problems: why the record is not that of the model, a line each; none if it is.
        images: images generated again.
        identical: those that equal the record's pixel by pixel.
        difference: largest difference of thumbnails in grey levels from 0 to 255, over all images.
    """

    problems: list[str]
    images: int
    identical: int
    difference: int

    @property
    def verified(self) -> bool:
        return not self.problems


def verify(
    record: EvaluationRecord,
    model: Any,
    data: SetDataModule,
    *,
    checkpoint_sha256: str | None = None,
    trusted: Sequence[str] = (),
) -> Verification:
    """Generate a sample of a record's images again, from the same supports with the same noise, and compare.

    The images have to be identical. Where the record names the checkpoint by its SHA-256, and this is the file, small
    differences are rounding: matrix products of another processor or batch differ in their last digits, and pixels by
    a grey level or so. Otherwise they cannot be told from those of other weights, such as the next step's.

    Args:
        record: as read; it needs `sampled_images`.
        model: with the weights that the record is said to be of, on the device to generate on.
        data: what its images were generated from.
        checkpoint_sha256: of the file that the model was loaded from.
        trusted: modules that the record may name a custom sampler of.

    Raises:
        EvaluationError: the record has no sampled images, or it states what cannot be.
        ConfigError, SetSizeMismatchError: it cannot be carried out with this model and data.
        UntrustedCodeError: it names a sampler of a module that is not trusted.
    """
    sampled = {name: split for name, split in record.splits.items() if split.sampled_images}
    if not sampled:
        raise EvaluationError(
            "the record describes no generated images (a version before 0.2.0 wrote it, or it has the variational "
            "bound alone), so there is nothing to compare: evaluate again."
        )
    stated = record.sampling
    if is_path(stated.sampler) and stated.sampler.rpartition(".")[0] not in trusted:
        refuse("The record", [stated.sampler])
    sampling = SamplingConfig(
        stated.steps, stated.sampler, stated.eta or 0.0, 1.0 if stated.guidance is None else stated.guidance,
        stated.guidance_interval,
    )  # fmt: skip
    check_model(model, data, sampling)
    drawn = {name: _episodes(name, split, record, data) for name, split in sampled.items()}
    if problems := [problem for found in drawn.values() if isinstance(found, str) for problem in [found]]:
        return Verification(problems, 0, 0, 0)
    images = identical = difference = 0
    with _arithmetic(model, stated.precision, stated.float32_matmul_precision), undisturbed(model):
        for name, split in sampled.items():
            of, episodes = data.split(SPLITS[name]), drawn[name]
            assert isinstance(episodes, Episodes) and split.sampled_images is not None
            rows = sampled_indices(len(episodes))
            conditions = conditions_of(model, of, episodes, rows)
            made = model.generate(index=torch.from_numpy(rows), seed=stated.seed, sampling=sampling, **conditions)
            found = describe_images(to_uint8(made), rows)
            same = [each.sha256 == split.sampled_images[i].sha256 for i, each in found.items()]
            apart = max(thumbnail_difference(each, split.sampled_images[i]) for i, each in found.items())
            images, identical, difference = images + len(same), identical + sum(same), max(difference, apart)
            if not all(same) and (problem := _why(record, checkpoint_sha256, apart)):
                problems.append(f"{sum(same)} of {len(same)} images of split {name} are identical; {problem}")
    return Verification(problems, images, identical, difference)


def _why(record: EvaluationRecord, checkpoint_sha256: str | None, apart: int) -> str | None:
    """Why images that differ are not those of the model; None if rounding explains it."""
    stated = record.model.checkpoint_sha256
    levels = f"thumbnails differ by up to {apart} of 255 grey levels"
    if stated is not None and checkpoint_sha256 is not None and stated != checkpoint_sha256:
        return f"{levels}: the record is of another checkpoint ({stated[:12]}..., this is {checkpoint_sha256[:12]}...)"
    if apart > LARGEST_ROUNDING:
        return f"{levels}, more than rounding explains: other weights, another autoencoder or other code made them"
    if stated is None or checkpoint_sha256 is None:
        return (
            f"{levels}. As {'the record' if stated is None else 'a pretrained folder'} names no checkpoint file, that "
            "may be rounding of another processor, or weights of a step nearby"
        )
    return None


def _episodes(name: str, split: SplitRecord, record: EvaluationRecord, data: SetDataModule) -> Episodes | str:
    """What the images of a split were generated from; or, in words, what of the record does not fit the data."""
    where, number = f"of split {name}", split.num_images
    if name not in SPLITS or split.data_split != SPLITS[name]:
        return f"data_split {where} is {split.data_split!r}, which no evaluation writes"
    if number is None or not 2 <= number <= MOST_IMAGES or sum(split.generated_per_class.values()) != number:
        return f"num_images {where} is {number}, which generated_per_class does not add up to: the record was changed"
    images, shots, seed = data.split(SPLITS[name]), record.sampling.shots, record.sampling.seed
    if not 0 <= seed < 2**63:
        return f"seed is {seed}, which no evaluation takes: the record was changed"
    if split.classes != images.class_names:
        return f"classes {where} are not those of the data"
    if split.images_sha256 != RealImages(name, images, None, None, number, seed).pixels_sha256:
        return f"the images {where} are not those of the data"
    pool, per_class = record.sampling.support_pool, record.sampling.images_per_class
    try:
        plan = EvaluationPlan(num_images=number, images_per_class=per_class, support_pool=pool, shots=shots, seed=seed)
        asked = SplitEpisodes(name, images, plan)
        if asked.num_images != number:
            return f"num_images {where} is {number:,}, but images_per_class gives {asked.num_images:,}: it was changed"
        episodes = asked.draw(shots)
    except VFSError as error:
        raise EvaluationError(f"the record states what cannot be generated: {error}") from error
    if shots is not None and split.supports_sha256 != hash_of(episodes.targets, episodes.supports):
        return f"supports {where} are not those that num_images, shots and seed give: the record was changed"
    if split.sampled_images is None or list(split.sampled_images) != [str(i) for i in sampled_indices(number)]:
        return f"sampled_images {where} are not those of {number:,} images: the record was changed"
    return episodes


@contextmanager
def _arithmetic(model: Any, precision: str, matmul_precision: str | None) -> Iterator[None]:
    """The precision that a record states, inside.

    Raises:
        ConfigError: no trainer and no `evaluate` has it.
    """
    kinds = {words: dtype for dtype, words in OWN_PRECISION.items()}
    if precision not in {**AUTOCAST, **kinds}:
        raise ConfigError(f"The record's precision is {precision!r}; known: {', '.join([*AUTOCAST, *kinds])}.")
    model.to(kinds.get(precision, torch.float32))
    before = torch.get_float32_matmul_precision()
    device = next(model.parameters()).device.type
    with torch.autocast(device, AUTOCAST[precision]) if precision in AUTOCAST else nullcontext():
        try:
            torch.set_float32_matmul_precision(
                matmul_precision if matmul_precision in ("highest", "high", "medium") else before
            )
            yield
        finally:
            torch.set_float32_matmul_precision(before)
