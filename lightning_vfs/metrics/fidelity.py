"""Figures of fidelity between generated and real images, as torch-fidelity's command gives them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from lightning_vfs.core.errors import EvaluationError
from lightning_vfs.metrics.extractors import ImageFeatures
from lightning_vfs.metrics.frechet import frechet_distance
from lightning_vfs.metrics.indexed import IndexedMetric

FIGURES: dict[str, Callable[[Tensor, Tensor], dict[str, float]]] = {
    "fid": lambda generated, real: {"fid": frechet_distance(generated, real)},
}
"""Figures of each metric, by name, from the features of generated (n, d) and real (m, d) images."""


class FidelityMetric(IndexedMetric):
    """Fréchet distance (FID) between generated and real images, from one pass of a torch-fidelity extractor.

    The figure depends neither on the order and size of batches nor on the number of ranks: see `IndexedMetric`.

    Args:
        features: the extractor.
        reset_real: whether `reset` also forgets the real images, or only the generated ones.
    """

    higher_is_better = False

    def __init__(self, features: ImageFeatures, reset_real: bool = True) -> None:
        super().__init__()
        self.features = features
        self.reset_real = reset_real
        for kind in ("generated", "real"):
            for layer, dim in features.dims.items():
                self.add_rows(f"{kind}_layer_{layer}", (dim,), torch.float32)

    def update(self, images: Tensor | Mapping[str, Tensor], real: bool, index: Tensor) -> None:
        """Add images.

        Args:
            images: uint8 (n, c, h, w), c = 1 or 3, or their features as `self.features(images)` gives them.
            real: whether they are real or generated.
            index: global sample index of each (n,), counted apart for real and generated images.
        """
        features = images if isinstance(images, Mapping) else self.features(images)
        for layer, rows in features.items():
            self.append(f"{'real' if real else 'generated'}_layer_{layer}", index, rows)

    def compute(self) -> dict[str, Tensor]:
        """Figures by name, float64 scalars: `fid` (>= 0; NaN when a feature is). Collective; equal on all ranks.

        Raises:
            EvaluationError: fewer than 2 generated or 2 real images.
        """
        figures = self.on_first_rank(self._figures)
        return {name: torch.tensor(figure, dtype=torch.float64) for name, figure in figures.items()}

    def real_features(self) -> dict[str, Tensor]:
        """Features (m, d) of the real images of all ranks, by layer, in the order of their index. Collective."""
        with self.sync_context():
            return {layer: self.gathered(f"real_layer_{layer}")[1] for layer in self.features.dims}

    def reset(self) -> None:
        """Forget the generated images, and the real ones if `reset_real`."""
        # Copies of the lists, since torchmetrics clears its own in place.
        kept = (
            {} if self.reset_real else {s: list(getattr(self, s)) for s in self._empty if s.startswith("real_layer_")}
        )
        super().reset()
        for name, state in kept.items():
            setattr(self, name, state)

    def _figures(self) -> dict[str, float]:
        figures: dict[str, float] = {}
        for metric, layer in self.features.layers.items():
            generated, real = self.gathered(f"generated_layer_{layer}")[1], self.gathered(f"real_layer_{layer}")[1]
            if min(len(generated), len(real)) < 2:
                raise EvaluationError(
                    f"{metric.upper()} needs at least 2 generated and 2 real images; "
                    f"there are {len(generated)} generated and {len(real)} real."
                )
            figures |= FIGURES[metric](generated, real)
        return figures
