"""VFSDDPM: the few-shot diffusion model as a LightningModule."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from lightning_vfs.core import contract
from lightning_vfs.core.config import VFSConfig
from lightning_vfs.core.errors import ClassMismatchError, ConfigError
from lightning_vfs.core.seeding import global_seed
from lightning_vfs.core.sets import subsample
from lightning_vfs.interop.checkpoints import AtomicCheckpointIO, check_contents, read_checkpoint
from lightning_vfs.interop.pretrained import load_pretrained, save_pretrained
from lightning_vfs.modules.anomalies import SetLosses, StepGuard
from lightning_vfs.modules.blocks import NetworkBlock
from lightning_vfs.modules.few_shot_diffusion import FewShotDiffusion
from lightning_vfs.modules.noise import (
    DROPPED,
    LATENT,
    NOISE,
    SHOTS,
    TIMESTEP,
    indexed_normal,
    indexed_uniform,
    sample_keys,
)
from lightning_vfs.modules.optimizer import (
    OptimizerConfig,
    apply_settings,
    build_adamw,
    check_numbering,
    number_by_module,
    warmup_cosine,
)
from lightning_vfs.modules.set_encoder import SetEncoder
from lightning_vfs.modules.sharding import check_strategy, cut, gathered, is_sharded, shard
from lightning_vfs.modules.spt import SPT
from lightning_vfs.modules.timestep_sampling import LossSecondMoment


class VFSDDPM(FewShotDiffusion, pl.LightningModule):
    """Few-shot diffusion model: a set encoder conditions a denoiser.

    A batch is a tensor of sets `(b, n, c, h, w)` in [-1, 1], or a mapping with it under `images` and, optionally, the
    global index of every set, int64 `(b,)`, under `index`, and its class under `label`. Every image of a set is
    generated from the others; a set has one timestep.

    Args:
        config: a VFSConfig, or its plain values.
        optimizer: an OptimizerConfig, or its plain values.
        compile: compile the loss with `torch.compile`.
        checkpoint_activations: compute the blocks' activations again in the backward pass, in place of keeping them:
            less memory, and about a third more time.
        on_set_size_mismatch: `error`, or `adapt`: sets of another size than the model's are completed with zero
            images, or subsampled by seed.
        skip_nonfinite: leave out steps whose loss or gradients are not finite, and count them in
            `train/skipped_steps`; otherwise such a step stops the run.

    Raises:
        ConfigError: the configuration cannot work.
    """

    def __init__(
        self,
        config: VFSConfig = VFSConfig(),
        optimizer: OptimizerConfig = OptimizerConfig(),
        compile: bool = False,
        checkpoint_activations: bool = False,
        on_set_size_mismatch: contract.OnMismatch = "error",
        skip_nonfinite: bool = False,
    ) -> None:
        super().__init__(config if isinstance(config, VFSConfig) else VFSConfig.from_dict(config))
        self.optimizer_config = (
            optimizer if isinstance(optimizer, OptimizerConfig) else OptimizerConfig.from_dict(optimizer)
        )
        if on_set_size_mismatch not in ("error", "adapt"):
            raise ConfigError(f"on_set_size_mismatch is {on_set_size_mismatch!r}; allowed: 'error', 'adapt'.")
        self.on_set_size_mismatch = on_set_size_mismatch
        self._guard = StepGuard(skip_nonfinite)
        self._set_losses: SetLosses | None = None
        for module in self.modules():
            if isinstance(module, NetworkBlock):
                module.checkpoint_activations = checkpoint_activations
        self.class_names: tuple[str, ...] | None = None
        self.timestep_sampler: LossSecondMoment | None = None
        if self.config.diffusion.timestep_sampling == "loss_second_moment":
            self.timestep_sampler = LossSecondMoment(self.config.diffusion.timesteps)
        self.save_hyperparameters(
            {
                "config": self.config.to_dict(),
                "optimizer": self.optimizer_config.to_dict(),
                "compile": compile,
                "checkpoint_activations": checkpoint_activations,
                "on_set_size_mismatch": on_set_size_mismatch,
                "skip_nonfinite": skip_nonfinite,
            }
        )

    # -- agreement with weights and data -----------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Before a checkpoint is read: files are written whole, and checked when read, unless the user chose a way.

        Raises:
            ConfigError: the trainer's strategy shards in a way that is not supported.
            ConfigError, CheckpointError: the autoencoder of a model of latents cannot be loaded.
        """
        _ = self.autoencoder
        strategy = self.trainer.strategy
        check_strategy(strategy)
        if type(strategy.checkpoint_io) is TorchCheckpointIO:
            strategy.checkpoint_io = AtomicCheckpointIO()

    def configure_callbacks(self) -> list[pl.Callback]:
        """None of its own; Lightning's hook before callbacks are set up."""
        # It says that averages are not sharded with the model; below they are.
        warnings.filterwarnings(
            "ignore", message="You're using the WeightAveraging callback with a model that overrides"
        )
        return []

    def configure_model(self) -> None:
        """Under Lightning's ModelParallelStrategy: shard this module, and its average, over all ranks (FSDP2)."""
        if self._trainer is None or not isinstance(self.trainer.strategy, ModelParallelStrategy) or is_sharded(self):
            return
        averaging = self._averaging
        # Weight averaging calls this, too, before it copies the module, and what is sharded cannot be copied.
        if averaging is not None and averaging._average_model is None and self.trainer.state.fn == "fit":
            return
        mesh = self.trainer.strategy.device_mesh["data_parallel"]
        shard(self, mesh, compile=self.hparams["compile"])
        if averaging is not None and averaging._average_model is not None:
            shard(averaging._average_model.module, mesh)

    @property
    def _averaging(self) -> WeightAveraging | None:
        """The trainer's callback that averages weights, if there is one."""
        callbacks = getattr(self._trainer, "callbacks", ())
        return next((callback for callback in callbacks if isinstance(callback, WeightAveraging)), None)

    def on_fit_start(self) -> None:
        """After a checkpoint, if any, is loaded: hold the data's set size against the weights'."""
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
        if self.config.encoder.architecture == "class_label":
            self._check_classes()

    def _check_classes(self) -> None:
        """Hold the data's classes against those of a class-conditional model, which takes them before it is trained.

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
        """Hold the data's images per set against the weights and the configuration.

        Raises:
            SetSizeMismatchError: they differ, and `on_set_size_mismatch` is `error`.
        """
        self._adopt(self._agreed(self.config.patch_dim, [data]))

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Before a weight is copied: hold the checkpoint's weights against the configuration and the data.

        Raises:
            CheckpointError: the checkpoint holds no weights of this model, or another model's; the message names all
                that differs.
            SetSizeMismatchError: weights and data differ, and `on_set_size_mismatch` is `error`.
        """
        if is_sharded(self):
            # Lightning has cut and loaded the weights of the file, and taken them out of the checkpoint.
            whole = read_checkpoint(cast(Path, self.trainer.ckpt_path))
            for name in ("state_dict", "current_model_state"):
                if name in whole:
                    checkpoint[name] = cut(whole[name], self)
            for state, optimizer in zip(whole.get("optimizer_states", ()), self.trainer.optimizers, strict=False):
                check_numbering(state, optimizer, self)
        check_contents(checkpoint, "The file")
        contract.check_same_model(VFSConfig.from_dict(checkpoint["hyper_parameters"]["config"]), self.config)
        config = self._agreed(contract.patch_dim_of(checkpoint["state_dict"], self.config), self._data_set_sizes())
        self._adopt(config)
        if "class_names" in checkpoint:
            self.class_names = tuple(checkpoint["class_names"])
        self._guard.skipped = checkpoint.get("skipped_steps", 0)
        if self.timestep_sampler is not None and "timestep_sampler" in checkpoint:
            self.timestep_sampler.load_state_dict(checkpoint["timestep_sampler"])
        # Weight averaging has copied this module before, and loads its copy from the same checkpoint.
        averaging = self._averaging
        if averaging is not None and averaging._average_model is not None:
            cast(VFSDDPM, averaging._average_model.module)._adopt(config)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """What is no weight: the classes of a class-conditional model, the losses that timesteps are drawn by, and the
        number of skipped steps.

        Where the model is sharded, the weights are gathered: a checkpoint does not tell how many ranks it is from.

        Raises:
            NonFiniteLossError: the last step was not finite, and `skip_nonfinite` is false.
        """
        self._guard.settle(self)
        if self._guard.skipped:
            checkpoint["skipped_steps"] = int(self._guard.skipped)
        if is_sharded(self):
            for name in ("state_dict", "current_model_state"):
                if name in checkpoint:
                    checkpoint[name] = gathered(checkpoint[name], keep=self.trainer.is_global_zero)
        elif "optimizer_states" in checkpoint:
            states = zip(checkpoint["optimizer_states"], self.trainer.optimizers, strict=True)
            checkpoint["optimizer_states"] = [number_by_module(*each, self) for each in states]
        if self.class_names is not None:
            checkpoint["class_names"] = list(self.class_names)
        if self.timestep_sampler is not None:
            checkpoint["timestep_sampler"] = self.timestep_sampler.state_dict()

    def _agreed(self, weights: int | None, data: list[int]) -> VFSConfig:
        """The configuration that holds for these weights and for each of these set sizes of the data."""
        agree = functools.partial(contract.agree, self.config, weights=weights, on_mismatch=self.on_set_size_mismatch)
        return [agree(data=size) for size in data][-1] if data else agree()

    def _adopt(self, config: VFSConfig) -> None:
        """Take the configuration that holds, with a tokenizer of its width where that changed."""
        if config.patch_dim != self.config.patch_dim:
            fresh = SPT(cast(int, config.patch_dim), config.encoder.patch_size, config.encoder.dim)
            cast(SetEncoder, self.encoder).to_patch_embedding = fresh.to(self.device)
        self.config = config
        self.hparams["config"] = config.to_dict()

    def _data_set_sizes(self) -> list[int]:
        """Images per set of the attached data module on all ranks, where it says, so that all ranks decide alike."""
        if self._trainer is None:
            return []
        size = getattr(getattr(self._trainer, "datamodule", None), "set_size", None)
        return sorted({row[0] for row in self._of_all_ranks([size or 0]) if row[0]})

    def _of_all_ranks(self, numbers: list[int]) -> list[list[int]]:
        """The numbers of every rank; collective."""
        if self.trainer.world_size == 1:
            return [numbers]
        gathered = self.all_gather(torch.tensor(numbers, device=self.trainer.strategy.root_device))
        return cast(Tensor, gathered).tolist()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self._check_first_batch(batch, batch_idx)

    def on_validation_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._check_first_batch(batch, batch_idx)

    def on_test_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._check_first_batch(batch, batch_idx)

    def _check_first_batch(self, batch: Any, batch_idx: int) -> None:
        """Check the shapes that all ranks got, on all of them: where one stops alone, the others wait for it forever.

        Raises:
            SetSizeMismatchError: the batch's n is not the agreed one.
            ValueError: another shape of images.
        """
        if batch_idx == 0:
            shape = list(_images_of(batch).shape)
            for rank_shape in self._of_all_ranks([len(shape), *(shape + [0] * 5)[:5]]):
                axes, *sizes = rank_shape
                contract.check_batch(tuple(sizes[:axes]), self.config, self.on_set_size_mismatch)

    # -- training --------------------------------------------------------------------------------------------------

    @functools.cached_property
    def _compiled_losses(self) -> Callable[..., tuple[Tensor, Tensor | None]]:
        """Made at the first step, since a compiled function cannot be deep-copied, as weight averaging does."""
        # array-api-compat asks by cached functions what kind an array is, which dynamo remarks on once for each.
        warnings.filterwarnings("ignore", message="Dynamo detected a call to a `functools.lru_cache`-wrapped function")
        return torch.compile(self.losses, fullgraph=True)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self._set_losses = None
        loss = self.batch_loss(batch, batch_idx)
        mean = self._of_all_ranks_cat(loss.detach()[None]).mean()
        first = batch_idx % self.trainer.accumulate_grad_batches == 0
        self._guard.add(batch_idx, mean, self._set_losses, first)
        self.log("train/loss", mean, prog_bar=True)
        return loss

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """A step that is not finite changes no weight. A subclass with its own such hook calls this one.

        Raises:
            NonFiniteLossError: its loss or its gradients are not finite, and `skip_nonfinite` is false. On a GPU this
                is noticed one step later.
        """
        self._guard.before_step(self, optimizer)

    def on_train_epoch_end(self) -> None:
        self._guard.settle(self)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self._evaluation_step(batch, batch_idx, "val/loss", prog_bar=True)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self._evaluation_step(batch, batch_idx, "test/loss", prog_bar=False)

    def _evaluation_step(self, batch: Any, batch_idx: int, name: str, prog_bar: bool) -> None:
        if self.config.encoder.architecture == "class_label":
            rank_zero_warn(
                f"{name} is left out: a class-conditional model has contexts of its training classes alone, and these "
                "sets are of others. FIDCallback(splits=['in']) evaluates it."
            )
            return
        size = _images_of(batch).shape[0]
        self.log(name, self.batch_loss(batch, batch_idx), prog_bar=prog_bar, batch_size=size, sync_dist=True)

    def predict_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        """Index (b,) of every set, its support (b, k, c, h, w), and an image of it (b, 1, c, h, w) by DDIM-50.

        Raises:
            ConfigError: a baseline, which generates from no support.
        """
        if not self.config.encoder.takes_support:
            raise ConfigError(
                "predict generates an image from every test set, but this model takes no support (encoder.architecture "
                f"is {self.config.encoder.architecture!r}): use `lightning-vfs sample`."
            )
        x_set, index, _ = self._sets_of(batch, batch_idx)
        support = x_set[:, : self.config.sets.shots]
        steps = min(50, self.config.diffusion.timesteps)
        generated = self.generate(support, index, steps=steps, seed=global_seed())
        return {"index": index, "support": support, "generated": generated[:, None]}

    def batch_loss(self, batch: Any, batch_idx: int = 0) -> Tensor:
        """Loss of a batch, all of whose random numbers follow the sets' global indices; compiled in training.

        Raises:
            SetSizeMismatchError: the batch's n is not the agreed one.
            ValueError: another shape of images, or no labels for a class-conditional model.
        """
        x_set, index, label = self._sets_of(batch, batch_idx)
        self.diffusion = self.diffusion.on(x_set)
        sampler = self.timestep_sampler if self.training else None
        uniform = indexed_uniform(index, global_seed(), TIMESTEP)
        if sampler is None:
            t, weight = (uniform * self.config.diffusion.timesteps).long(), None
        else:
            t, weight = sampler.draw(uniform)
        latents = self.latents(x_set) if self.config.latent.autoencoder else None
        compiled = self.training and self.hparams["compile"] and not is_sharded(self)
        losses = self._compiled_losses if compiled else self.losses
        loss, kl = losses(x_set, t, latents=latents, label=label, **self._random_numbers(x_set.shape[1], index))
        if sampler is not None:
            sampler.update(self._of_all_ranks_cat(t), self._of_all_ranks_cat(loss.detach()))
        if self.training:
            total = loss if kl is None else loss + self.config.encoder.kl_weight * kl
            named = batch.get("label") if isinstance(batch, dict) else None
            self._set_losses = SetLosses(index, t, total.detach(), named)
        loss = loss.mean() if weight is None else (weight * loss).mean()
        return loss if kl is None else loss + self.config.encoder.kl_weight * kl.mean()

    def _random_numbers(self, n: int, index: Tensor) -> dict[str, Tensor]:
        """What `losses` draws of sets of n images, by their global indices (b,)."""
        config, seed = self.config, global_seed()
        size = config.denoiser_size
        numbers = {"noise": indexed_normal(index, (n, config.denoiser_channels, size, size), seed, NOISE)}
        if self.posterior is not None:
            draw = indexed_uniform if config.encoder.context == "variational_discrete" else indexed_normal
            shape = (n, *self.posterior.noise_shape)
            numbers["latent_noise"] = draw(index, shape=shape, seed=seed, stream=LATENT).flatten(0, 1)
        if self.training and config.sets.random_shots and config.encoder.takes_support:
            uniform = indexed_uniform(index, seed, SHOTS)
            numbers["shots"] = (uniform * config.sets.shots).long() + 1
        if self.training and (config.encoder.dropout or config.denoiser.dropout):
            numbers["dropout_key"] = sample_keys(index, 2 * n, seed).unflatten(1, (n, 2))
        if self.training and self.null_context is not None:
            numbers["dropped"] = indexed_uniform(index, seed, DROPPED, (n,)) < config.encoder.context_dropout
        return numbers

    def _of_all_ranks_cat(self, values: Tensor) -> Tensor:
        """The values (b,) of all ranks in the order of ranks; collective."""
        if self._trainer is None or self._trainer.world_size == 1:
            return values
        return cast(Tensor, self.all_gather(values)).flatten(0, 1)

    def _sets_of(self, batch: Any, batch_idx: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """Images, global indices and, for class-conditional models, labels of a batch; checked against the contract.

        Raises:
            SetSizeMismatchError: the batch's n is not the agreed one.
            ValueError: another shape of images.
        """
        x_set = _images_of(batch)
        contract.check_batch(tuple(x_set.shape), self.config, self.on_set_size_mismatch)
        sets = self.config.sets
        if self.config.encoder.fills_slots and x_set.shape[1] > sets.set_size:
            x_set = subsample(x_set, sets.set_size, global_seed())
        label = None
        if self.config.encoder.architecture == "class_label" and isinstance(batch, dict):
            label = batch.get("label")
        if isinstance(batch, dict) and "index" in batch:
            return x_set, batch["index"], label
        # A plain loader gives no indices: epoch, batch and rank make one that no other set of the run has.
        trainer = self._trainer
        epoch, rank, world = (trainer.current_epoch, trainer.global_rank, trainer.world_size) if trainer else (0, 0, 1)
        first = ((epoch << 20) + batch_idx * world + rank) << 20
        return x_set, torch.arange(first, first + x_set.shape[0], device=x_set.device), label

    def configure_optimizers(self) -> OptimizerLRScheduler:
        config = self.optimizer_config
        decay_steps = config.decay_steps or self.trainer.estimated_stepping_batches
        if decay_steps == float("inf"):
            raise ConfigError(
                "The learning rate decays over the run's steps, but the trainer has no end: set trainer.max_steps, "
                "trainer.max_epochs, or model.optimizer.decay_steps."
            )
        # With a gradient scaler (16-mixed) a fused AdamW unscales by itself, and Lightning then refuses to clip.
        fused = self.trainer.precision != "16-mixed"
        optimizer = build_adamw(self, config, fused)
        factor = functools.partial(warmup_cosine, warmup_steps=config.warmup_steps, decay_steps=int(decay_steps))
        scheduler = LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_train_start(self) -> None:
        """After a checkpoint is restored: the optimizer goes on with this model's settings, not the checkpoint's."""
        if type(self).configure_optimizers is VFSDDPM.configure_optimizers:
            optimizer, scheduler = self.optimizers(use_pl_optimizer=False), self.lr_schedulers()
            apply_settings(cast(AdamW, optimizer), cast(LambdaLR, scheduler), self.optimizer_config)

    # -- files -------------------------------------------------------------------------------------------------------

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: str | Path, map_location: Any = None, **kwargs: Any) -> VFSDDPM:  # type: ignore[override]
        """Model of a Lightning checkpoint, with the averaged weights where the run averaged them.

        Args:
            checkpoint_path: a file that a run wrote.
            map_location: device of the weights; the CPU by default.
            **kwargs: hyper-parameters in place of the checkpoint's.

        Raises:
            CheckpointError: the file is missing, damaged, or of another model.
        """
        read_checkpoint(checkpoint_path)
        return super().load_from_checkpoint(
            checkpoint_path, map_location=map_location or "cpu", weights_only=True, **kwargs
        )

    @classmethod
    def from_pretrained(cls, name: str | Path) -> VFSDDPM:
        """Model of a folder with `model.safetensors` and `config.json`, or of a Hugging Face hub id; in eval mode.

        Raises:
            CheckpointError: there is no such folder, or its files are no model of ours.
        """
        config, state_dict = load_pretrained(name)
        model = cls(config)
        model._adopt(model._agreed(contract.patch_dim_of(state_dict, config), []))
        model.load_state_dict(state_dict)
        return model.eval()

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `model.safetensors` and `config.json` into a folder, which is made if need be."""
        save_pretrained(self.config, self.state_dict(), folder)


def _images_of(batch: Any) -> Tensor:
    """The sets of a batch: itself, what it has under `images`, or its first part."""
    return batch["images"] if isinstance(batch, dict) else batch[0] if isinstance(batch, list | tuple) else batch
