"""The contract's table: silence, one warning, or an error that names the numbers. Nothing else."""

from __future__ import annotations

import warnings
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_vfs.core import (
    CheckpointError,
    EncoderConfig,
    SetConfig,
    SetSizeMismatchError,
    StaleSetSizeWarning,
    VFSConfig,
    check_batch,
    check_support,
    resolve_set_size,
)


def config_of(set_size: int, held_out: str = "zero_slot", tokenizer: str = "stack", patch: int = 2, channels: int = 3):
    return VFSConfig(SetConfig(set_size, 8, channels, held_out), EncoderConfig(patch_size=patch, tokenizer=tokenizer))


def test_row_1_all_agree_in_silence() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert resolve_set_size(config_of(6), weights=72, data=6) == config_of(6)


def test_row_2_a_stale_configuration_gives_one_warning_with_both_numbers() -> None:
    with pytest.warns(StaleSetSizeWarning) as caught:
        assert resolve_set_size(config_of(5), weights=72, data=6) == config_of(6)
    assert len(caught) == 1
    assert "sets of 5" in str(caught[0].message)
    assert "sets of 6 (72 = 2²·6·3)" in str(caught[0].message)


@pytest.mark.parametrize("configured", [5, 6, 7])
def test_row_3_other_data_is_refused_with_the_formula_and_the_ways_out(configured: int) -> None:
    with pytest.raises(SetSizeMismatchError) as error:
        resolve_set_size(config_of(configured), weights=72, data=5)
    for text in (
        "sets of 6 (72 = 2²·6·3)",
        "sets of 5 (60 = 2²·5·3)",
        "--data.set_size 6",
        "--model.on_set_size_mismatch adapt",
    ):
        assert text in str(error.value)


def test_row_3_adapts_when_asked_to() -> None:
    assert resolve_set_size(config_of(6), weights=72, data=5, on_mismatch="adapt") == config_of(6)


def test_row_4_weights_that_fit_no_set() -> None:
    with pytest.raises(CheckpointError, match=r"70.*not a multiple of 2²·3 = 12.*differ from those of the weights"):
        resolve_set_size(config_of(6), weights=70, data=6)
    with pytest.raises(CheckpointError, match="it fits 1 channels instead of 3"):
        resolve_set_size(config_of(5), weights=20)
    with pytest.raises(CheckpointError, match="it fits patches of 1 instead of 2"):
        resolve_set_size(config_of(6), weights=18)


def test_row_5_without_data_the_weights_win() -> None:
    with pytest.warns(StaleSetSizeWarning):
        assert resolve_set_size(config_of(5), weights=72).sets.set_size == 6


@given(
    weights=st.integers(2, 8),
    configured=st.integers(2, 8),
    data=st.none() | st.integers(2, 8),
    held_out=st.sampled_from(["zero_slot", "drop", "none"]),
    tokenizer=st.sampled_from(["stack", "per_image_mean"]),
    patch=st.sampled_from([1, 2, 4, 8]),
    channels=st.sampled_from([1, 3]),
    on_mismatch=st.sampled_from(["error", "adapt"]),
)
def test_every_cell_is_silence_one_warning_or_the_named_error(
    weights: int, configured: int, data: int | None, held_out, tokenizer, patch, channels, on_mismatch
) -> None:
    def config(set_size: int) -> VFSConfig:
        return config_of(set_size, held_out, tokenizer, patch, channels)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            agreed = resolve_set_size(
                config(configured), weights=config(weights).patch_dim, data=data, on_mismatch=on_mismatch
            )
        except SetSizeMismatchError:
            assert tokenizer == "stack" and on_mismatch == "error" and data not in (None, weights)
            return
    if tokenizer == "per_image_mean":
        assert not caught and agreed == config(configured if data is None else data)
        return
    assert on_mismatch == "adapt" or data in (None, weights)
    assert agreed == config(weights)
    assert len(caught) == (configured != weights)


def test_the_tokens_of_single_images_fit_sets_of_any_size() -> None:
    config = replace(config_of(6), encoder=EncoderConfig(architecture="set_tokens", patch_size=2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert resolve_set_size(config, weights=12, data=17).sets.set_size == 17
        assert resolve_set_size(config, weights=12) == config
    check_batch((4, 11, 3, 8, 8), config)
    check_support((4, 64, 3, 8, 8), config)
    for refused in (check_batch, check_support):
        with pytest.raises(SetSizeMismatchError, match="at least 2 images|has 0 images"):
            refused((4, int(refused is check_batch), 3, 8, 8), config)
    with pytest.raises(CheckpointError, match=r"encoder `set_tokens` with patches of 2 .* needs 2²·3 = 12"):
        resolve_set_size(config, weights=72)


def test_a_batch_is_refused_by_its_own_shape() -> None:
    check_batch((4, 6, 3, 8, 8), config_of(6))
    with pytest.raises(SetSizeMismatchError, match=r"made for sets of 6.*data has sets of 5"):
        check_batch((4, 5, 3, 8, 8), config_of(6))
    with pytest.raises(ValueError, match=r"images of shape \(3, 8, 8\); the batch has \(1, 8, 8\)"):
        check_batch((4, 6, 1, 8, 8), config_of(6))
    with pytest.raises(ValueError, match=r"shape \(b, n, c, h, w\).*got \(4, 3, 8, 8\)"):
        check_batch((4, 3, 8, 8), config_of(6))
    check_batch((4, 5, 3, 8, 8), config_of(6), "adapt")
    check_batch((4, 11, 3, 8, 8), config_of(6, tokenizer="per_image_mean"))


@pytest.mark.parametrize(("held_out", "most"), [("zero_slot", 5), ("drop", 5), ("none", 6)])
def test_a_support_is_one_to_k_images(held_out: str, most: int) -> None:
    config = config_of(6, held_out)
    for k in range(1, most + 1):
        check_support((2, k, 3, 8, 8), config)
    for k in (0, most + 1):
        with pytest.raises(SetSizeMismatchError, match=f"has {k} images; this model takes 1 to {most}"):
            check_support((2, k, 3, 8, 8), config)
    with pytest.raises(ValueError, match=r"got \(2, 3, 1, 8, 8\)"):
        check_support((2, 3, 1, 8, 8), config)
