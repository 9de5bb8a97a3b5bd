"""The same figures from 1, 2 and 3 processes, in each of them, in the metric alone and in a trainer."""

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


@pytest.mark.parametrize("case", ["uneven shares", "ranks without images"])
def test_figures_are_equal(found, case):
    expected, again = found[0][f"{case}, 1"]
    assert expected["fid"] > 0
    assert again == expected
    for world_size in (2, 3):
        for rank in range(world_size):
            for figures in found[rank][f"{case}, {world_size}"]:
                assert figures == pytest.approx(expected, rel=1e-6)


def test_evaluation_without_a_trainer_is_shared_by_the_ranks(found):
    alone = found[0]["evaluate, 1"]
    assert alone["ranks"] == 1 and {"fid[tiny-callbacks]/out 19", "diversity_pixels/out 19"} <= set(alone)
    for rank in range(2):
        assert found[rank]["evaluate, 2"] == pytest.approx(alone | {"ranks": 2}, rel=1e-6)


def test_an_error_reaches_every_rank(found):
    for world_size in (1, 2, 3):
        for rank in range(world_size):
            assert "0 generated and 0 real" in found[rank][f"error, {world_size}"]


def test_a_trainer_logs_equal_figures_on_every_rank(found):
    first, second, single = (process["fit"] for process in found)
    assert first["steps"] == single["steps"]
    assert len(first["figures"]) == 20
    assert second == first
    assert first["figures"] == pytest.approx(single["figures"], rel=1e-6)
    assert first["best"] == pytest.approx(single["best"], rel=1e-6)


def test_a_process_group_of_gpus_alone_evaluates_and_reports_as_one_rank(tmp_path):
    run_ranks(Path(__file__).with_name("gpu_process.py"), 2, tmp_path)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert len(first["alone"]) == 23
    # In batches of another size a pixel may round to another of the 256 values.
    assert first["together"] == pytest.approx(first["alone"], rel=1e-3)
    assert second["together"] == first["together"]
    for found in (first, second):
        assert "The loss of optimizer step 1 (epoch 0) is inf, by 2 of its 2 sets:" in found["report"]
        assert all(f"on rank {rank} (index {rank})" in found["report"] for rank in range(2))
