"""What a protocol generates and compares: which images are supports, which are real ones, how many of each class."""

from __future__ import annotations

import numpy as np

from lightning_vfs.core.errors import DataError, EvaluationError
from lightning_vfs.data.draws import sample_distinct
from lightning_vfs.data.images import ClassImages, Episodes
from lightning_vfs.evaluation.plan import EvaluationPlan


class SplitEpisodes:
    """What a plan generates for a split, and which of its real images it compares with.

    Args:
        name: of the split.
        images: the split.
        plan: its numbers of images, its pool of supports and its seed.

    Attributes:
        num_images: images to generate.
        among: bool (N,), images that generated ones may be compared with; None for all.

    Raises:
        EvaluationError: the split has fewer such images than the plan asks for.
    """

    def __init__(self, name: str, images: ClassImages, plan: EvaluationPlan) -> None:
        self.images, self.plan, pool = images, plan, plan.support_pool
        self.among = None if pool is None else ~support_pool(images, pool, plan.shots or 1, plan.seed)
        filled, per_class = int((images.counts > 0).sum()), plan.images_per_class
        self.num_images = plan.num_images if per_class is None else per_class * filled
        most = len(images) if self.among is None else int(self.among.sum())
        if plan.num_real_images is not None and most < plan.num_real_images:
            aside = "" if self.among is None else f", {len(images) - most} of them set aside for supports"
            raise EvaluationError(
                f"num_real_images is {plan.num_real_images}, but split {name!r} has {len(images)} images{aside}: "
                f"take at most {most}, or null for all of them."
            )

    def draw(self, shots: int | None) -> Episodes:
        """Episodes with supports of `shots` images; of one image, which nothing shows, without a support.

        Raises:
            DataError: a class has too few images for a target and a support.
        """
        pool, plan = None if self.among is None else ~self.among, self.plan
        return draw_episodes(self.images, self.num_images, shots or 1, plan.seed, pool, plan.images_per_class)


def support_pool(images: ClassImages, pool: float, shots: int, seed: int) -> np.ndarray:
    """Images that are set aside for supports, drawn class by class: bool (N,).

    At least `shots` of a class, and all but one at most.

    Args:
        images: of a split.
        pool: share of each class, below 1, or number of its images.
        shots: images in a support.
        seed: not negative.
    """
    sizes = np.full(images.num_classes, pool) if pool >= 1 else np.round(pool * images.counts)
    sizes = np.minimum(np.maximum(sizes, shots), images.counts - 1)
    order = np.lexsort((np.random.default_rng((seed, 0, 2)).random(len(images)), images.labels))
    chosen = np.zeros(len(images), dtype=bool)
    chosen[order] = np.arange(len(images)) - images.offsets[images.labels] < sizes[images.labels]
    return chosen


def draw_episodes(
    images: ClassImages,
    num_images: int,
    shots: int,
    seed: int,
    pool: np.ndarray | None = None,
    per_class: int | None = None,
) -> Episodes:
    """Episodes of a protocol; without a pool and a number per class, those of `ClassImages.episodes`.

    Args:
        images: of a split.
        num_images: number of episodes.
        shots: images in a support.
        seed: not negative.
        pool: bool (N,), images that supports are drawn from; held-out images are drawn from the others.
        per_class: episodes of each class, in place of `num_images`: one of every class, then another of every class.

    Raises:
        DataError: a class has too few images for a target and a support.
    """
    if pool is None and per_class is None:
        return images.episodes(num_images, shots, seed)
    if per_class is not None:
        num_images = per_class * int((images.counts > 0).sum())
    images.episodes(1, shots, seed)  # checks that every class has enough images
    held_out = np.arange(len(images)) if pool is None else np.flatnonzero(~pool)
    targets = _of_all_classes(images, held_out, per_class, seed) if per_class else _permuted(held_out, num_images, seed)
    labels = images.labels[targets]
    if pool is None:
        # Of the other images of the class, by the place of the target among them.
        others = sample_distinct(images.counts[labels] - 1, shots, np.random.default_rng((seed, shots, 1)))
        others += others >= (targets - images.offsets[labels])[:, None]
        return Episodes(targets, images.offsets[labels][:, None] + others, labels)
    set_aside = np.flatnonzero(pool)
    counts = np.bincount(images.labels[set_aside], minlength=images.num_classes)
    if (counts[labels] < shots).any():
        short = images.class_names[int(labels[np.argmin(counts[labels])])]
        raise DataError(
            f"support_pool sets {counts[labels].min()} of the images of class {short} aside, and a support has "
            f"{shots}: set it higher, or ask for fewer shots."
        )
    drawn = sample_distinct(counts[labels], shots, np.random.default_rng((seed, shots, 1)))
    return Episodes(targets, set_aside[(np.cumsum(counts) - counts)[labels][:, None] + drawn], labels)


def _permuted(indices: np.ndarray, num: int, seed: int) -> np.ndarray:
    """Permutations of the images, one after the other, of which the first `num` are taken."""
    rounds = range(-(-num // len(indices)))
    return np.concatenate([np.random.default_rng((seed, r)).permutation(indices) for r in rounds])[:num]


def _of_all_classes(images: ClassImages, indices: np.ndarray, per_class: int, seed: int) -> np.ndarray:
    """An image of every class, then another of every class, in random order; where a class has too few, again."""
    labels = images.labels[indices]
    ordered = indices[np.lexsort((np.random.default_rng((seed, 0, 3)).random(len(indices)), labels))]
    counts = np.bincount(labels, minlength=images.num_classes)
    classes = np.flatnonzero(counts)
    turn = np.arange(per_class)[:, None] % counts[classes]
    return ordered[(np.cumsum(counts) - counts)[classes] + turn].reshape(-1)
