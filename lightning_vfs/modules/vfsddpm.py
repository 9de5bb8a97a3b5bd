"""VFSDDPM: the few-shot diffusion model as a LightningModule."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from lightning_vfs.core import contract
from lightning_vfs.core.config import VFSConfig
from lightning_vfs.core.errors import ConfigError
from lightning_vfs.core.fingerprint import KEY as FINGERPRINT
from lightning_vfs.core.fingerprint import Fingerprint, fingerprint
from lightning_vfs.core.sampling_config import SamplingConfig
from lightning_vfs.core.seeding import global_seed
from lightning_vfs.core.sets import subsample
from lightning_vfs.core.timestep_density import timestep_probabilities
from lightning_vfs.core.trust import reading
from lightning_vfs.data.images import to_float
from lightning_vfs.modules.contracted import SetContractModule, images_of
from lightning_vfs.modules.declared import check_declared_size
from lightning_vfs.modules.latent_cache import LatentType, check_cache_latents, take_cached_latents
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
from lightning_vfs.modules.sharing import push
from lightning_vfs.training.averaging import averaging_of
from lightning_vfs.training.blocks import NetworkBlock
from lightning_vfs.training.checkpoints import AtomicCheckpointIO, read_checkpoint
from lightning_vfs.training.device import (
    MatmulPrecision,
    check_matmul_precision,
    set_matmul_precision,
    set_memory_format,
)
from lightning_vfs.training.logged_steps import logs_now, total_steps
from lightning_vfs.training.model_card import CardText, Evaluated
from lightning_vfs.training.nonfinite import SetLosses, StepGuard
from lightning_vfs.training.optimizer import (
    OptimizerConfig,
    apply_settings,
    build_optimizer,
    check_same_optimizer,
    clip_gradients,
    gradient_norm,
    keep_implementation,
    scaler_of,
    warmup_cosine,
)
from lightning_vfs.training.places import check_places
from lightning_vfs.training.precision import check_precision
from lightning_vfs.training.pretrained import load_pretrained, save_pretrained
from lightning_vfs.training.ranks import gather_rows
from lightning_vfs.training.sharding import check_strategy, is_sharded
from lightning_vfs.training.timestep_sampling import LossSecondMoment, TimestepDensity


class VFSDDPM(SetContractModule):
    """Few-shot diffusion model: a set encoder conditions a denoiser.

    A batch is a tensor of sets `(b, n, c, h, w)`, floats in [-1, 1] or uint8, or a mapping with it under `images` and,
    optionally, the global index of every set, int64 `(b,)`, under `index`, and its class under `label`. Every image of
    a set is generated from the others; a set has one timestep.

    Args:
        config: a VFSConfig, or its plain values.
        optimizer: an OptimizerConfig, or its plain values.
        compile: compile the loss with `torch.compile`.
        checkpoint_activations: recompute the blocks' activations in the backward pass instead of keeping them: less
            memory, and about a third more time.
        on_set_size_mismatch: `error`, or `adapt`: sets of another size than the model's are padded with zero images,
            or subsampled by seed.
        skip_nonfinite: skip steps whose loss or gradients are not finite, and count them in
            `train/skipped_steps`; otherwise such a step stops the run.
        float32_matmul_precision: of matrix products in float32, `highest`, `high` (TF32) or `medium` (bfloat16), by
            `torch.set_float32_matmul_precision`; by default `high` on CUDA, and torch's own setting elsewhere.
        channels_last: keep the UNets' weights in the memory format in which convolutions on CUDA are fastest; by
            default only on CUDA.
        cache_latents: for models of latents: encode all images of a SetDataModule once, and keep the latents in its
            cache as `float32`, which trains as encoding in every step does, or as `bfloat16`, in half the space. Splits
            whose images are augmented are encoded in every step. By default nothing is kept.

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
        float32_matmul_precision: MatmulPrecision | None = None,
        channels_last: bool | None = None,
        cache_latents: LatentType | None = None,
    ) -> None:
        super().__init__(config if isinstance(config, VFSConfig) else VFSConfig.from_dict(config))
        self.optimizer_config = (
            optimizer if isinstance(optimizer, OptimizerConfig) else OptimizerConfig.from_dict(optimizer)
        )
        if on_set_size_mismatch not in ("error", "adapt"):
            raise ConfigError(f"on_set_size_mismatch is {on_set_size_mismatch!r}; allowed: 'error', 'adapt'.")
        check_matmul_precision(float32_matmul_precision)
        check_cache_latents(cache_latents, self.config)
        self.on_set_size_mismatch = on_set_size_mismatch
        self._guard = StepGuard(skip_nonfinite)
        self._set_losses: SetLosses | None = None
        for module in self.modules():
            if isinstance(module, NetworkBlock):
                module.checkpoint_activations = checkpoint_activations
        self.timestep_sampler: LossSecondMoment | None = None
        self._timesteps_of_step: dict[str, Tensor] | None = None  # its state at the end of the last whole step
        probabilities = timestep_probabilities(self.config.diffusion)
        self._timestep_density = None if probabilities is None else TimestepDensity(probabilities)
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
                "float32_matmul_precision": float32_matmul_precision,
                "channels_last": channels_last,
                "cache_latents": cache_latents,
            }
        )

    origin: str | None = None
    """Which weights it has, and of which step, if they come from a checkpoint, such as `raw weights of step 400`."""

    takes_raw_weights = False
    """From checkpoints with averaged weights, take the raw ones."""

    asked: Fingerprint | None = None
    """Parts of the run's fingerprint as a command asked for them, before a checkpoint replaced them."""

    @property
    def fingerprint(self) -> Fingerprint:
        """What decides the result of the run that the module is trained in; its checkpoints state it."""
        identity = getattr(getattr(self.trainer, "datamodule", None), "identity", None)
        data = identity() if callable(identity) else {}
        model = {"class": f"{type(self).__module__}.{type(self).__qualname__}"}
        config, optimizer = self.config.to_dict(), self.optimizer_config.to_dict()
        return fingerprint(model, config, optimizer, data, global_seed()) | (self.asked or {})

    @property
    def learning_rate(self) -> float:
        """The optimizer's learning rate before its schedule; Lightning's `Tuner.lr_find` sets what it finds."""
        return self.optimizer_config.learning_rate

    @learning_rate.setter
    def learning_rate(self, value: float) -> None:
        self.optimizer_config = replace(self.optimizer_config, learning_rate=value)
        self.hparams["optimizer"] = self.optimizer_config.to_dict()

    # -- files, and what goes with weights ---------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Before a checkpoint is read: files are written whole and checked when read, unless the user chose otherwise.

        Raises:
            ConfigError: the trainer's strategy or precision is not supported, it averages weights twice, or a folder of
                the run is a URL or cannot be written.
            ConfigError, CheckpointError: the autoencoder of a model of latents cannot be loaded.
            ConfigError, DataError: latents cannot be cached.
        """
        _ = self.autoencoder
        strategy = self.trainer.strategy
        check_strategy(strategy)
        averaging_of(self.trainer)
        check_places(self.trainer, self)
        if stage == "fit":
            check_precision(self.trainer)
        self.use_device(strategy.root_device)
        if self.trainer.precision == "64-true":
            # Lightning would do so after a checkpoint is read, and lose what float32 cannot hold.
            self.double()
        if type(strategy.checkpoint_io) is TorchCheckpointIO:
            strategy.checkpoint_io = AtomicCheckpointIO()
        if self.hparams["cache_latents"] and self.autoencoder is not None:
            take_cached_latents(self.trainer, self.autoencoder, self.hparams["cache_latents"], stage)

    def use_device(self, device: torch.device) -> None:
        """Set what is fastest on the device that the model will run on: see the last two options of the class."""
        set_matmul_precision(device, self.hparams["float32_matmul_precision"])
        if self.attached_trainer is None or not isinstance(self.trainer.strategy, ModelParallelStrategy):
            # Weights that are not contiguous cannot be sharded.
            set_memory_format(self, device, self.hparams["channels_last"])

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Before a weight is copied: as `SetContractModule`; also restores state other than weights.

        Raises:
            CheckpointError: as `SetContractModule`; or its run had another optimizer than the one that resumes it.
        """
        super().on_load_checkpoint(checkpoint)
        averaged = "averaging_state" in checkpoint
        fitting = self.attached_trainer is not None and self.trainer.state.fn == TrainerFn.FITTING
        if fitting and checkpoint.get("optimizer_states"):
            check_same_optimizer(checkpoint["hyper_parameters"].get("optimizer", {}), self.optimizer_config)
        raw = averaging_of(self.trainer) is None if fitting else self.takes_raw_weights
        if averaged and fitting and raw:
            rank_zero_warn(
                "The checkpoint holds averaged weights, but this run has no EMACallback: it resumes from the raw "
                "weights."
            )
        kind = ("raw " if raw else "averaged ") if averaged else ""
        self.origin = f"{kind}weights of step {checkpoint.get('global_step', 'unknown')}"
        if averaged and raw:
            checkpoint["state_dict"] = checkpoint["current_model_state"]
            if is_sharded(self):  # Lightning has loaded the average already
                self.load_state_dict(checkpoint["state_dict"])
        self._guard.skipped = checkpoint.get("skipped_steps", 0)
        if self.timestep_sampler is not None and "timestep_sampler" in checkpoint:
            self.timestep_sampler.load_state_dict(checkpoint["timestep_sampler"])

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the losses that timesteps are drawn by, and the number of skipped steps.

        Raises:
            NonFiniteLossError: the last step was not finite, and `skip_nonfinite` is false.
        """
        self._guard.settle(self)
        averaging = None if self.attached_trainer is None else averaging_of(self.attached_trainer)
        if averaging is not None and "averaging_state" not in checkpoint:
            # Lightning does not call callbacks if only weights are saved.
            averaging.on_save_checkpoint(self.trainer, self, checkpoint)
        super().on_save_checkpoint(checkpoint)
        if self.attached_trainer is not None and self.trainer.state.fn == TrainerFn.FITTING:
            checkpoint[FINGERPRINT] = self.fingerprint
        if self._guard.skipped:
            checkpoint["skipped_steps"] = int(self._guard.skipped)
        if self.timestep_sampler is not None:
            # Batches of an unfinished step are trained on again by a run that is resumed.
            checkpoint["timestep_sampler"] = self._timesteps_of_step or self.timestep_sampler.state_dict()

    # -- training --------------------------------------------------------------------------------------------------

    @functools.cached_property
    def _compiled_losses(self) -> Callable[..., tuple[Tensor, Tensor | None]]:
        """Made at the first step, since a compiled function cannot be deep-copied, as weight averaging does."""
        # array-api-compat determines the kind of an array by cached functions; dynamo warns once for each.
        warnings.filterwarnings("ignore", message="Dynamo detected a call to a `functools.lru_cache`-wrapped function")
        return torch.compile(self.losses, fullgraph=True)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self._set_losses = None
        loss = self.batch_loss(batch, batch_idx)
        mean = gather_rows(loss.detach()[None]).mean()
        if scaler_of(self.trainer) is not None:
            # It skips a step by its gradients, which may be finite even if the loss overflows.
            loss = loss * torch.where(mean.isfinite(), 1.0, torch.nan)
        first = batch_idx % self.trainer.accumulate_grad_batches == 0
        self._guard.add(batch_idx, mean, self._set_losses, first)
        self.log("train/loss", mean)
        return loss

    def on_train_batch_end(self, *_: Any) -> None:
        """The progress bar shows the loss of logged steps; with `prog_bar=True` it would be read in every step."""
        if logs_now(self.trainer) and "train/loss" in self.trainer.callback_metrics:
            self.trainer.progress_bar_metrics["train/loss"] = float(self.trainer.callback_metrics["train/loss"])

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """A non-finite step changes no weight. A subclass that overrides this hook calls this one last.

        Raises:
            NonFiniteLossError: its loss or its gradients are not finite, and `skip_nonfinite` is false. On a GPU this
                is noticed one step later.
        """
        self._guard.before_step(self, optimizer)
        if self.timestep_sampler is not None:
            self._timesteps_of_step = self.timestep_sampler.state_dict()

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip with any optimizer, in any precision, by the norm that `on_before_optimizer_step` has computed.

        Lightning refuses fused optimizers in mixed precision, and computes the norm a second time.
        """
        if gradient_clip_val:
            norm, self._guard.norm = self._guard.norm, None
            norm = gradient_norm(optimizer) if norm is None else norm
            clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm or "norm", norm)

    def on_train_epoch_end(self) -> None:
        self._guard.settle(self)

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._evaluation_step(batch, batch_idx, "val/loss", prog_bar=True)

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._evaluation_step(batch, batch_idx, "test/loss", prog_bar=False)

    def _evaluation_step(self, batch: Any, batch_idx: int, name: str, prog_bar: bool) -> None:
        if self.config.encoder.condition == "label":
            rank_zero_warn(
                f"{name} is left out: a class-conditional model has contexts only for its training classes, and these "
                "sets are of other classes. FIDCallback(splits=['in']) evaluates it."
            )
            return
        size = images_of(batch).shape[0]
        self.log(name, self.batch_loss(batch, batch_idx), prog_bar=prog_bar, batch_size=size, sync_dist=True)

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """Index (b,) of every set, its support (b, k, c, h, w), and an image of it (b, 1, c, h, w) by DDIM-50.

        Raises:
            ConfigError: a baseline, which generates from no support.
        """
        if self.config.encoder.condition != "support":
            raise ConfigError(
                "predict generates an image from every test set, but this model takes no support (encoder.architecture "
                f"is {self.config.encoder.architecture!r}): use `lightning-vfs sample`."
            )
        x_set, index, _ = self._sets_of(batch, batch_idx)
        support = x_set[:, : self.config.sets.shots]
        sampling = SamplingConfig(steps=min(50, self.config.diffusion.timesteps))
        generated = self.generate(support, index, sampling, seed=global_seed())
        return {"index": index, "support": support, "generated": generated[:, None]}

    def batch_loss(self, batch: Any, batch_idx: int = 0) -> Tensor:
        """Loss of a batch, all of whose random numbers follow the sets' global indices; compiled in training.

        Raises:
            SetSizeMismatchError: the batch's n is not the agreed one.
            ValueError: another shape of images, or no labels for a class-conditional model.
        """
        x_set, index, label = self._sets_of(batch, batch_idx)
        self.diffusion = self.diffusion.on(x_set)
        sampler, density = (self.timestep_sampler, self._timestep_density) if self.training else (None, None)
        uniform = indexed_uniform(index, global_seed(), TIMESTEP)
        options, weight = self._random_numbers(x_set.shape[1], index), None
        if sampler is not None:
            t, weight = sampler.draw(uniform)
        elif density is not None:
            t, options["bound_weight"] = density.draw(uniform)
        else:
            t = (uniform * self.config.diffusion.timesteps).long()
        latents = self._latents_of(batch, x_set) if self.config.latent.autoencoder else None
        if self.training and self.config.diffusion.contrastive_weight:
            options["negative"] = self._negative(x_set if latents is None else latents, index)
        compiled = self.training and self.hparams["compile"] and not is_sharded(self)
        losses = self._compiled_losses if compiled else self.losses
        loss, kl = losses(x_set, t, latents=latents, label=label, **options)
        if sampler is not None:
            sampler.update(gather_rows(t), gather_rows(loss.detach()))
        if self.training:
            total = loss if kl is None else loss + self.config.encoder.kl_weight * kl
            named = batch.get("label") if isinstance(batch, dict) else None
            self._set_losses = SetLosses(index, t, total.detach(), named)
        loss = loss.mean() if weight is None else (weight * loss).mean()
        return loss if kl is None else loss + self.config.encoder.kl_weight * kl.mean()

    def _latents_of(self, batch: Any, x_set: Tensor) -> Tensor:
        """Latents of a batch's sets: those that came with it, unless it was subsampled, or encoded now."""
        given = batch.get("latents") if isinstance(batch, dict) else None
        return self.latents(x_set) if given is None or given.shape[:2] != x_set.shape[:2] else given.float()

    def _negative(self, diffused: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """For every set the one with the next global index in the batch of all ranks, (b, n, c, h, w), and its noise.

        After the highest index comes the lowest. So neither the number of ranks nor the order within a batch matters.
        """
        numbers = gather_rows(index)
        ascending, place = numbers.sort()
        following = place[torch.searchsorted(ascending, index, right=True) % len(numbers)]
        return gather_rows(diffused)[following], self._noise(diffused.shape[1], numbers[following])

    def _noise(self, n: int, index: Tensor) -> Tensor:
        """Noise of sets of n images, by their global indices (b,): (b, n, c, h, w)."""
        size = self.config.denoiser_size
        return indexed_normal(index, (n, self.config.denoiser_channels, size, size), global_seed(), NOISE)

    def _random_numbers(self, n: int, index: Tensor) -> dict[str, Any]:
        """What `losses` draws of sets of n images, by their global indices (b,)."""
        config, seed = self.config, global_seed()
        numbers: dict[str, Any] = {"noise": self._noise(n, index)}
        if self.posterior is not None:
            draw = indexed_uniform if config.encoder.context == "variational_discrete" else indexed_normal
            shape = (n, *self.posterior.noise_shape)
            numbers["latent_noise"] = draw(index, shape=shape, seed=seed, stream=LATENT).flatten(0, 1)
        if self.training and config.sets.random_shots and config.encoder.condition == "support":
            uniform = indexed_uniform(index, seed, SHOTS)
            numbers["shots"] = (uniform * config.sets.shots).long() + 1
        if self.training and (config.encoder.dropout or config.denoiser.dropout):
            numbers["dropout_key"] = sample_keys(index, 2 * n, seed).unflatten(1, (n, 2))
        if self.training and self.null_context is not None:
            numbers["dropped"] = indexed_uniform(index, seed, DROPPED, (n,)) < config.encoder.context_dropout
        return numbers

    def _sets_of(self, batch: Any, batch_idx: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """Images, global indices and, for class-conditional models, labels of a batch; checked against the contract.

        Raises:
            SetSizeMismatchError: the batch's n is not the agreed one.
            ValueError: another shape of images.
        """
        x_set = images_of(batch)
        if x_set.dtype == torch.uint8:
            x_set = to_float(x_set)
            if self.attached_trainer is not None:  # as Lightning does to the floats of a batch
                x_set = self.trainer.precision_plugin.convert_input(x_set)
        contract.check_batch(tuple(x_set.shape), self.config, self.on_set_size_mismatch)
        sets = self.config.sets
        if self.config.encoder.fills_slots and x_set.shape[1] > sets.set_size:
            x_set = subsample(x_set, sets.set_size, global_seed())
        label = None
        if self.config.encoder.condition == "label" and isinstance(batch, dict):
            label = batch.get("label")
        if isinstance(batch, dict) and "index" in batch:
            return x_set, batch["index"], label
        # A plain loader gives no indices: epoch, batch and rank make one that no other set of the run has.
        trainer = self.attached_trainer
        rank, world = (trainer.global_rank, trainer.world_size) if trainer else (0, 1)
        # Validation uses the same numbers in every epoch, so that its losses can be compared.
        epoch = trainer.current_epoch if trainer and trainer.training else 0
        first = ((epoch << 20) + batch_idx * world + rank) << 20
        return x_set, torch.arange(first, first + x_set.shape[0], device=x_set.device), label

    def configure_optimizers(self) -> OptimizerLRScheduler:
        config = self.optimizer_config
        decay_steps = config.decay_steps or total_steps(self.trainer)
        if decay_steps is None:
            raise ConfigError(
                "The learning rate decays over the run's steps, but the trainer has no end: set trainer.max_steps, "
                "trainer.max_epochs, or model.optimizer.decay_steps."
            )
        optimizer = build_optimizer(self, config)
        factor = functools.partial(warmup_cosine, warmup_steps=config.warmup_steps, decay_steps=int(decay_steps))
        scheduler = LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_fit_start(self) -> None:
        """As `SetContractModule`; optimizers, whose state is read next, keep this run's implementation."""
        super().on_fit_start()
        for optimizer in self.trainer.optimizers:
            keep_implementation(optimizer)

    def on_train_start(self) -> None:
        """After a checkpoint is restored: the optimizer uses this model's settings, not the checkpoint's."""
        self.origin = None
        if self.timestep_sampler is not None:
            self._timesteps_of_step = self.timestep_sampler.state_dict()
        scheduler = self.lr_schedulers()
        # A learning rate finder has its own schedule.
        if type(self).configure_optimizers is VFSDDPM.configure_optimizers and isinstance(scheduler, LambdaLR):
            apply_settings(cast(Optimizer, self.optimizers(use_pl_optimizer=False)), scheduler, self.optimizer_config)

    # -- files -------------------------------------------------------------------------------------------------------

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls, checkpoint_path: str | Path, map_location: Any = None, raw: bool = False, **kwargs: Any
    ) -> VFSDDPM:
        """Model of a Lightning checkpoint, with the averaged weights if the run averaged them.

        Args:
            checkpoint_path: a file that a run wrote.
            map_location: device of the weights; the CPU by default.
            raw: take the raw weights instead of the averaged ones.
            **kwargs: hyper-parameters that replace the checkpoint's; `weights_only` is always true.

        Raises:
            CheckpointError: the file is missing, damaged, or of another model.
            UntrustedCodeError: its configuration names a class of another package that is not imported yet.
        """
        checkpoint = read_checkpoint(checkpoint_path)
        config = VFSConfig.from_dict(checkpoint["hyper_parameters"]["config"])
        check_declared_size(config, checkpoint["state_dict"], checkpoint_path)
        kwargs["weights_only"] = True
        with reading(checkpoint_path):
            model = super().load_from_checkpoint(checkpoint_path, map_location=map_location or "cpu", **kwargs)
            if raw and "averaging_state" in checkpoint:
                model.takes_raw_weights = True
                model.on_load_checkpoint(checkpoint)
                model.load_state_dict(checkpoint["state_dict"])
        return model

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
    ) -> VFSDDPM:
        """Model of a folder, of the package, or of the Hugging Face hub; in eval mode. No code from the hub is run.

        Args:
            name: a folder with `model.safetensors` and `config.json`; `glyphs`, the model that comes with the package;
                or an id of the hub, `user/model` or `user/model@revision`.
            revision: branch, tag or commit on the hub.
            token: for a private model; by default that of `hf auth login`.
            cache_dir: of what is downloaded; by default the hub client's.
            force_download: download again what the cache has.
            local_files_only: ask no server.

        Raises:
            ConfigError: a revision of a model that is not on the hub.
            CheckpointError: there is no such model, it cannot be downloaded, or it is not a lightning_vfs model.
            UntrustedCodeError: its configuration names a class of another package that is not imported yet.
        """
        config, state_dict = load_pretrained(
            name,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            force_download=force_download,
            local_files_only=local_files_only,
        )
        check_declared_size(config, state_dict, name)
        with reading(name):
            model = cls(config)
            model._apply_config(contract.config_for_weights(state_dict, config))
            model.load_state_dict(state_dict)
        return model.eval()

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `model.safetensors` and `config.json` into a folder, which is made if necessary."""
        save_pretrained(self.config, self.state_dict(), folder)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        record: Evaluated | None = None,
        picture: Tensor | str | Path | None = None,
        description: str | None = None,
        data: str | None = None,
        license: str | None = None,
        commit_message: str = "Push model using lightning_vfs.",
        private: bool | None = None,
        token: str | bool | None = None,
        branch: str | None = None,
        create_pr: bool | None = None,
    ) -> str:
        """Share the model on the Hugging Face hub: weights, configuration, and a card; returns the commit's URL.

        Args:
            repo_id: such as `user/model`; the repository is made if necessary.
            record: of the model's evaluation, `EvaluationRecord.read("fid.json")`, for the card's figures.
            picture: generated images for the card, a PNG file such as the `grid.png` of `lightning-vfs sample`, or
                uint8 (1 or 3, H, W).
            description: what it is and what it is for; Markdown, for the card.
            data: what it was trained on, whose that is, under which licence; Markdown, for the card.
            license: of the model, an identifier that the hub knows, such as `apache-2.0`.
            commit_message: of the commit.
            private: whether a new repository is private; by default as the account or organization says.
            token: by default that of `hf auth login`.
            branch: to commit to; by default the main branch.
            create_pr: open a pull request instead of changing the branch.

        Raises:
            ConfigError: an option is not valid, or huggingface_hub is not installed.
            CheckpointError: weights that are not finite.
            VFSError: the hub refuses it, or cannot be reached.
        """
        text = CardText(description=description, data=data, license=license)
        return push(self, repo_id, commit_message, private, token, branch, create_pr, text, record, picture)
