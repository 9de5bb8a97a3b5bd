"""Tiny models of every kind, and batches to train them on."""

from __future__ import annotations

import torch

from lightning_vfs import VFSConfig

UNET = {"architecture": "unet", "channels": 8, "channel_mult": [1, 2], "num_res_blocks": 1, "heads": 2}

# Together with MORE_MODELS they have every choice that the networks branch on, at least once.
MODELS: dict[str, dict] = {
    "default": {"encoder": {"depth": 2}, "denoiser": {"depth": 2}},
    "drop_zero_token_patches_head": {
        "sets": {"held_out": "drop"},
        "encoder": {"time_token": "zero", "pool": "patches", "head_hidden_dim": 12},
        "diffusion": {"variance": "fixed_large", "loss": "mse"},
    },
    "not_held_out_sum_projection": {
        "sets": {"held_out": "none"},
        "encoder": {"pool": "sum", "projection_dim": 12, "mlp_ratio": 1.5},
        "diffusion": {"prediction": "x_0"},
    },
    "timestep_concat_scaled_padded_v": {
        "encoder": {"time_token": "timestep", "pool": "mean"},
        "denoiser": {"film": "concat", "normalize_condition": True, "pad": 2, "mlp_ratio": 2.5},
        "diffusion": {"prediction": "v", "rescale_timesteps": True},
    },
    "per_slot_variational_projection_learned_range": {
        "encoder": {
            "tokenizer": "per_slot_mean",
            "pool": "none",
            "context": "variational",
            "kl_weight": 0.3,
            "projection_dim": 12,
            "projection_hidden_dim": 20,
        },
        "diffusion": {"variance": "learned_range"},
    },
    "per_image_grey_bound": {
        "sets": {"channels": 1},
        "encoder": {"tokenizer": "per_image_mean", "pool": "patches"},
        "diffusion": {"variance": "learned_range", "loss": "rescaled_kl"},
    },
    "lag_variational_pooled_tokens_one_layer_null": {
        "sets": {"random_shots": True},
        "encoder": {"pool": "patches", "context": "variational", "context_dropout": 0.3},
        "denoiser": {
            "depth": 2,
            "conditioning": "lag",
            "context_tokens": 4,
            "cross_attention_layers": [1],
            "normalize_condition": True,
        },
    },
}

# The same for what is compared without gradients, which take most of the time to compile.
MORE_MODELS: dict[str, dict] = {
    "per_image_shots_discrete_null": {
        "sets": {"random_shots": True},
        "encoder": {
            "tokenizer": "per_image_mean",
            "context": "variational_discrete",
            "codebook_size": 5,
            "codebook_groups": 4,
            "context_dropout": 0.3,
        },
        "diffusion": {"min_snr_gamma": 5.0},
    },
    "lag_vit_every_token_timestep_drop_projection": {
        "sets": {"held_out": "drop", "random_shots": True},
        "encoder": {"architecture": "vit", "pool": "none", "time_token": "timestep", "projection_dim": 12},
        "denoiser": {"conditioning": "lag"},
    },
    "lag_vit_sum_patch_zero_token_discrete": {
        "encoder": {
            "architecture": "vit",
            "pool": "sum_patch",
            "time_token": "zero",
            "context": "variational_discrete",
            "kl_weight": 0.3,
        },
        "denoiser": {"conditioning": "lag", "film": "concat"},
    },
    "vit_mean_patch_not_held_out_head": {
        "sets": {"held_out": "none", "random_shots": True},
        "encoder": {"architecture": "vit", "pool": "mean_patch", "head_hidden_dim": 12},
    },
    "vit_agg_variational": {"encoder": {"architecture": "vit", "pool": "agg", "context": "variational"}},
    "flow_weighted_contrast_null": {
        "encoder": {"context_dropout": 0.3},
        "diffusion": {
            "schedule": "flow",
            "prediction": "x_0",
            "weighting": "v",
            "weight_limit": 4.0,
            "contrastive_weight": 0.1,
            "variance": "learned_range",
            "timestep_sampling": "logit_normal",
        },
    },
    "vit_cls": {"encoder": {"architecture": "vit", "depth": 2}, "denoiser": {"film": "concat"}},
    "class_label_null": {"encoder": {"architecture": "class_label", "num_classes": 3, "context_dropout": 0.3}},
    "unconditional": {"encoder": {"architecture": "none"}, "denoiser": {"film": "concat"}},
    "unet_encoder_timestep_head_shots": {
        "sets": {"random_shots": True},
        "encoder": {**UNET, "pool": "mean", "time_token": "timestep", "head_hidden_dim": 12, "projection_dim": 12},
    },
    "unet_concat_learned_range": {
        "denoiser": {**UNET, "film": "concat", "attention_resolutions": [8]},
        "diffusion": {"variance": "learned_range", "rescale_timesteps": True},
    },
    "unet_add_class_label": {
        "encoder": {"architecture": "class_label", "num_classes": 3},
        "denoiser": {**UNET, "scale_shift_norm": False, "num_res_blocks": 2},
    },
    "unets_lag_updown": {
        "encoder": {**UNET, "pool": "none", "attention_resolutions": [4], "context_dropout": 0.3},
        "denoiser": {
            **UNET,
            "conditioning": "lag",
            "scale_shift_norm": False,
            "resblock_updown": True,
            "attention_resolutions": [4],
        },
    },
}


def training_batch(config: VFSConfig, b: int = 2, n: int = 3) -> dict[str, torch.Tensor]:
    """What `loss` takes of a batch, with all that this model's training draws at random."""
    sets, encoder = config.sets, config.encoder
    generator = torch.Generator().manual_seed(1)
    image = (sets.channels, sets.image_size, sets.image_size)
    batch = {
        "x_set": torch.rand(b, n, *image, generator=generator) * 2 - 1,
        # At t = 0 the bound is the logarithm of a small difference, whose gradient float32 gives to three digits.
        "t": torch.tensor([1 if "kl" in config.diffusion.loss or config.diffusion.weighting == "v" else 0, 13]),
        "noise": torch.randn(b, n, *image, generator=generator),
    }
    tokens = config.encoded_shape[:-1]
    if encoder.context == "variational":
        batch["latent_noise"] = torch.randn(b * n, *tokens, encoder.dim, generator=generator)
    if encoder.context == "variational_discrete":
        codes = (encoder.codebook_groups, encoder.codebook_size)
        # Near 0 and 1 their logarithms' logarithms magnify the rounding of a multiplication that XLA fuses.
        batch["latent_noise"] = 0.05 + 0.9 * torch.rand(b * n, *tokens, *codes, generator=generator)
    if config.diffusion.contrastive_weight:
        batch["negative"] = torch.randn(2, b, n, *image, generator=generator)
    if config.diffusion.timestep_sampling == "logit_normal":
        batch["bound_weight"] = torch.tensor([0.5, 2.0])
    if sets.random_shots:
        batch["shots"] = torch.tensor([1, sets.shots])
    if encoder.context_dropout:
        batch["dropped"] = torch.tensor([[True, False, False], [False, True, True]])
    if encoder.architecture == "class_label":
        batch["label"] = torch.tensor([2, 0])
    return batch
