"""The framework-neutral core: configuration, contract, sets, diffusion, on torch, NumPy and JAX arrays alike.

Names are imported when they are first used: the command line needs only the errors.
"""

from typing import TYPE_CHECKING

from lightning_vfs.lazy import lazy_names

if TYPE_CHECKING:
    from lightning_vfs.core.config import DenoiserConfig, DiffusionConfig, EncoderConfig, SetConfig, VFSConfig
    from lightning_vfs.core.contract import StaleSetSizeWarning, check_batch, resolve_set_size
    from lightning_vfs.core.diffusion import GaussianDiffusion
    from lightning_vfs.core.embeddings import sincos_positions, timestep_embedding
    from lightning_vfs.core.errors import (
        CheckpointError,
        ClassMismatchError,
        ConfigError,
        DataError,
        EvaluationError,
        NonFiniteLossError,
        SetSizeMismatchError,
        UntrustedCodeError,
        VFSError,
    )
    from lightning_vfs.core.gaussian import gaussian_kl, standard_gaussian_kl_bits
    from lightning_vfs.core.guidance import guided
    from lightning_vfs.core.patches import stack_patches, unpatchify
    from lightning_vfs.core.requests import check_support
    from lightning_vfs.core.samplers import sample
    from lightning_vfs.core.sampling_config import SamplingConfig
    from lightning_vfs.core.schedules import make_betas, space_timesteps
    from lightning_vfs.core.sets import complete, leave_one_out, subsample

_HOMES = {
    "DenoiserConfig": "config",
    "DiffusionConfig": "config",
    "EncoderConfig": "config",
    "SetConfig": "config",
    "VFSConfig": "config",
    "StaleSetSizeWarning": "contract",
    "check_batch": "contract",
    "resolve_set_size": "contract",
    "GaussianDiffusion": "diffusion",
    "sincos_positions": "embeddings",
    "timestep_embedding": "embeddings",
    "CheckpointError": "errors",
    "ClassMismatchError": "errors",
    "ConfigError": "errors",
    "DataError": "errors",
    "EvaluationError": "errors",
    "NonFiniteLossError": "errors",
    "SetSizeMismatchError": "errors",
    "UntrustedCodeError": "errors",
    "VFSError": "errors",
    "gaussian_kl": "gaussian",
    "standard_gaussian_kl_bits": "gaussian",
    "guided": "guidance",
    "stack_patches": "patches",
    "unpatchify": "patches",
    "check_support": "requests",
    "sample": "samplers",
    "SamplingConfig": "sampling_config",
    "make_betas": "schedules",
    "space_timesteps": "schedules",
    "complete": "sets",
    "leave_one_out": "sets",
    "subsample": "sets",
}

__all__ = [
    "CheckpointError",
    "ClassMismatchError",
    "ConfigError",
    "DataError",
    "DenoiserConfig",
    "DiffusionConfig",
    "EncoderConfig",
    "EvaluationError",
    "GaussianDiffusion",
    "NonFiniteLossError",
    "SamplingConfig",
    "SetConfig",
    "SetSizeMismatchError",
    "StaleSetSizeWarning",
    "UntrustedCodeError",
    "VFSConfig",
    "VFSError",
    "check_batch",
    "check_support",
    "complete",
    "gaussian_kl",
    "guided",
    "leave_one_out",
    "make_betas",
    "resolve_set_size",
    "sample",
    "sincos_positions",
    "space_timesteps",
    "stack_patches",
    "standard_gaussian_kl_bits",
    "subsample",
    "timestep_embedding",
    "unpatchify",
]

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
