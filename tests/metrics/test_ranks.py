"""The same figures from 1, 2 and 3 processes, in each of them."""

import json
from pathlib import Path

import pytest

from tests.ranks import run_ranks


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What each of three processes reports."""
    folder = tmp_path_factory.mktemp("ranks")
    run_ranks(Path(__file__).with_name("rank_process.py"), 3, folder)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(3)]


@pytest.mark.parametrize("case", ["uneven shares", "few images"])
def test_figures_and_notes_are_equal(found, case):
    expected, notes = found[0][f"{case}, 1"]
    assert len(expected) == 9
    assert len(set(expected.values())) > 6
    assert list(notes) == (["fid"] if case == "few images" else [])
    for world_size in (2, 3):
        for rank in range(world_size):
            assert found[rank][f"{case}, {world_size}"] == [pytest.approx(expected, rel=1e-6), notes]


def test_accuracies_are_equal(found):
    two, five = found[0]["accuracies, 1"]
    assert 0.2 < five < two < 1
    for world_size in (2, 3):
        for rank in range(world_size):
            assert found[rank][f"accuracies, {world_size}"] == [two, five]


def test_an_error_of_a_class_reaches_every_rank(found):
    for world_size in (1, 2, 3):
        for rank in range(world_size):
            assert "too few of class 0 (1 generated, 1 real)" in found[rank][f"error, {world_size}"]


def test_a_process_group_of_gpus_alone_gives_the_same(found):
    (expected, notes), accuracies = found[0]["uneven shares, 1"], found[0]["accuracies, 1"]
    for rank in range(2):
        assert found[rank]["on GPUs"] == [pytest.approx(expected, rel=1e-6), notes, pytest.approx(accuracies)]
