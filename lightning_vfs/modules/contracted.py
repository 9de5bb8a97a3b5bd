"""The LightningModule's side of the set contract, checked wherever sets or weights enter, alike on all ranks."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from lightning_vfs.core import contract
from lightning_vfs.core.config import VFSConfig
from lightning_vfs.core.errors import ClassMismatchError
from lightning_vfs.modules.generation import FewShotGenerator
from lightning_vfs.modules.set_encoder import SetEncoder
from lightning_vfs.modules.spt import SPT
from lightning_vfs.training.checkpoints import check_contents
from lightning_vfs.training.ranks import gather_objects, gather_rows
from lightning_vfs.training.sharding import ShardableModule


class SetContractModule(FewShotGenerator, ShardableModule):
    """A few-shot diffusion model that checks checkpoints, data and batches against the set contract.

    Attributes:
        on_set_size_mismatch: what happens if the data has sets of another size than the weights.
        class_names: the training classes of a class-conditional model, once they are known.
    """

    on_set_size_mismatch: contract.OnMismatch = "error"
    class_names: tuple[str, ...] | None = None

    def on_fit_start(self) -> None:
        """After a checkpoint, if any, is loaded: compare the data's set size with the weights'."""
        self._check_data()

    def on_validation_start(self) -> None:
        self._check_data()

    def on_test_start(self) -> None:
        self._check_data()

    def on_predict_start(self) -> None:
        self._check_data()

    def _check_data(self) -> None:
        for data in self._data_set_sizes():
            self.check_set_size(data)
        if self.config.encoder.condition == "label":
            self._check_classes()

    def _check_classes(self) -> None:
        """Compare the data's classes with those of a class-conditional model, which takes them before it is trained.

        Raises:
            ClassMismatchError: they differ in number or name, or the data does not say them.
        """
        data = getattr(self.trainer, "datamodule", None)
        if not callable(getattr(data, "split", None)):
            raise ClassMismatchError(
                "A class-conditional model takes its classes from a SetDataModule (GlyphSets, FolderSets), and the "
                "trainer has none: pass one, trainer.fit(model, datamodule=...)."
            )
        names = data.split("train").class_names  # type: ignore[union-attr]
        contract.check_classes(names, self.class_names, self.config)
        self.class_names = names

    def check_set_size(self, data: int) -> None:
        """Compare the data's images per set with the weights and the configuration.

        Raises:
            SetSizeMismatchError: they differ, and `on_set_size_mismatch` is `error`.
        """
        self._apply_config(
            contract.resolve_set_size(
                self.config, weights=self.config.patch_dim, data=data, on_mismatch=self.on_set_size_mismatch
            )
        )

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Before a weight is copied: compare the checkpoint's weights with the configuration and the data.

        Raises:
            CheckpointError: the checkpoint holds no weights of this model, or another model's; the message names all
                that differs.
            SetSizeMismatchError: weights and data differ, and `on_set_size_mismatch` is `error`.
        """
        super().on_load_checkpoint(checkpoint)
        check_contents(checkpoint, "The file")
        config = contract.config_for_checkpoint(
            checkpoint, self.config, self._data_set_sizes(), self.on_set_size_mismatch
        )
        self._apply_config(config)
        if "class_names" in checkpoint:
            self.class_names = tuple(checkpoint["class_names"])

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the classes of a class-conditional model."""
        super().on_save_checkpoint(checkpoint)
        if self.class_names is not None:
            checkpoint["class_names"] = list(self.class_names)

    def _apply_config(self, config: VFSConfig) -> None:
        """Take this configuration, with a tokenizer of the new width if that changed."""
        if config.patch_dim != self.config.patch_dim:
            fresh = SPT(cast(int, config.patch_dim), config.encoder.patch_size, config.encoder.dim)
            encoder = cast(SetEncoder, self.encoder)
            encoder.to_patch_embedding = fresh.to(encoder.to_patch_embedding.proj.weight)
        self.config = config
        self.hparams["config"] = config.to_dict()

    def _data_set_sizes(self) -> list[int]:
        """Images per set of the attached data modules of all ranks, if they say, so that all ranks decide alike."""
        if self.attached_trainer is None:
            return []
        size = getattr(getattr(self.trainer, "datamodule", None), "set_size", None)
        return sorted({size for size in gather_objects(size) if size})

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self._check_first_batch(batch, batch_idx)

    def on_validation_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._check_first_batch(batch, batch_idx)

    def on_test_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._check_first_batch(batch, batch_idx)

    def _check_first_batch(self, batch: Any, batch_idx: int) -> None:
        """Check on every rank what all ranks received: if one stopped alone, the others would wait for it forever.

        Raises:
            SetSizeMismatchError: the batch's n is not the agreed one.
            ValueError: another shape of images, or values out of [-1, 1].
        """
        if batch_idx == 0:
            images = images_of(batch)
            shape = [len(images.shape), *(list(images.shape) + [0] * 5)[:5]]
            # As numbers, of which one is read, and not as objects, of which two are.
            found = torch.tensor([[*shape, *_range(images)]], device=images.device)
            for axes, *sizes, low, high in gather_rows(found).tolist():
                whole = tuple(int(size) for size in sizes)[: int(axes)]
                contract.check_batch(whole, self.config, self.on_set_size_mismatch)
                contract.check_range(low, high)


def _range(images: Tensor) -> tuple[float, float]:
    """Least and largest value; of integers, as if they were pixels. On a device it waits, once a loop."""
    if not images.numel():
        return 0.0, 0.0
    # NumPy has no bfloat16, and a tensor on the host is no reason to wait.
    host = images.device.type == "cpu" and images.dtype != torch.bfloat16
    low, high = (float(each) for each in ((images.numpy().min(), images.numpy().max()) if host else images.aminmax()))
    return (low, high) if images.dtype.is_floating_point else (low / 127.5 - 1, high / 127.5 - 1)


def images_of(batch: Any) -> Tensor:
    """The sets of a batch: itself, what it has under `images`, or its first part; floats in [-1, 1], or uint8."""
    return batch["images"] if isinstance(batch, dict) else batch[0] if isinstance(batch, list | tuple) else batch
