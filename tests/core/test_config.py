"""Configurations validate themselves, and say what is wrong."""

from __future__ import annotations

import pytest

from lightning_vfs.core import ConfigError, DenoiserConfig, DiffusionConfig, EncoderConfig, SetConfig, VFSConfig


@pytest.mark.parametrize(("held_out", "slots", "shots"), [("zero_slot", 6, 5), ("drop", 5, 5), ("none", 6, 6)])
def test_slots_and_shots_of_a_set_of_six(held_out: str, slots: int, shots: int) -> None:
    config = SetConfig(set_size=6, held_out=held_out)
    assert (config.slots, config.shots) == (slots, shots)


@pytest.mark.parametrize(
    ("part", "values", "says"),
    [
        (SetConfig, {"set_size": 1}, ["SetConfig.set_size", "1", "at least 2"]),
        (SetConfig, {"set_size": 2.5}, ["SetConfig.set_size", "2.5"]),
        (SetConfig, {"channels": 4}, ["SetConfig.channels", "4", "1 (grey) or 3 (RGB)"]),
        (SetConfig, {"held_out": "zero"}, ["SetConfig.held_out", "'zero'", "'zero_slot', 'drop', 'none'"]),
        (
            EncoderConfig,
            {"pool": "max"},
            [
                "EncoderConfig.pool",
                "'max'",
                "'cls', 'mean', 'sum', 'patches', 'mean_patch', 'none'",
            ],
        ),
        (EncoderConfig, {"dropout": 1.0}, ["EncoderConfig.dropout", "1.0", "below 1"]),
        (EncoderConfig, {"projection_hidden_dim": 8}, ["EncoderConfig.projection_hidden_dim", "8", "projection_dim"]),
        (DenoiserConfig, {"dropout": -0.1}, ["DenoiserConfig.dropout", "-0.1", "at least 0"]),
        (DenoiserConfig, {"pad": -1}, ["DenoiserConfig.pad", "-1", "at least 0"]),
        (DiffusionConfig, {"loss": "l1"}, ["DiffusionConfig.loss", "'mse', 'rescaled_mse', 'kl', 'rescaled_kl'"]),
        (DenoiserConfig, {"dim": 100, "heads": 3}, ["DenoiserConfig.dim", "100", "3 heads"]),
        (DiffusionConfig, {"prediction": "epsilon"}, ["DiffusionConfig.prediction", "'eps', 'x_0', 'v'"]),
        (DiffusionConfig, {"timesteps": 0}, ["DiffusionConfig.timesteps", "0", "at least 1"]),
    ],
)
def test_a_bad_value_is_refused_by_name(part: type, values: dict, says: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        part(**values)
    assert all(text in str(error.value) for text in says), str(error.value)


def test_a_patch_size_must_divide_the_image() -> None:
    with pytest.raises(ConfigError, match=r"EncoderConfig.patch_size is 5, but images are 16 x 16.*1, 2, 4, 8, 16"):
        VFSConfig(SetConfig(image_size=16), EncoderConfig(patch_size=5))
    with pytest.raises(ConfigError, match=r"DenoiserConfig.patch_size is 3"):
        VFSConfig(SetConfig(image_size=16), denoiser=DenoiserConfig(patch_size=3))
    padded = DenoiserConfig(patch_size=8, pad=2)
    assert VFSConfig(SetConfig(image_size=28), denoiser=padded).padded_size == 32
    with pytest.raises(ConfigError, match=r"are 32 x 32 with 2 pixels on every side: it must divide 32"):
        VFSConfig(SetConfig(image_size=28), denoiser=DenoiserConfig(patch_size=7, pad=2))


def test_plain_values_make_the_same_configuration_again() -> None:
    config = VFSConfig(SetConfig(set_size=4, held_out="drop"), EncoderConfig(dim=32), diffusion=DiffusionConfig(50))
    assert VFSConfig.from_dict(config.to_dict()) == config
    assert VFSConfig.from_dict({"sets": {"set_size": 3}}).sets == SetConfig(set_size=3)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ConfigError, match="SetConfig has no sample_size; it knows set_size"):
        VFSConfig.from_dict({"sets": {"sample_size": 6}})
    with pytest.raises(ConfigError, match="VFSConfig has no set; it knows sets"):
        VFSConfig.from_dict({"set": {}})


def test_the_reports_patch_dims() -> None:
    def patch_dim(set_size: int, held_out: str = "zero_slot") -> int:
        return VFSConfig(SetConfig(set_size, 8, 3, held_out), EncoderConfig(patch_size=2)).patch_dim

    assert patch_dim(6) == 72
    assert patch_dim(5) == 60
    assert patch_dim(6, "drop") == 60
