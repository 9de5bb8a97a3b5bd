"""Two ranks with half of every parameter each (FSDP2) compared with one process, and the checkpoints of both."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy

from lightning_vfs import VFSDDPM
from lightning_vfs.core.errors import CheckpointError, ConfigError
from lightning_vfs.modules import OptimizerConfig
from lightning_vfs.training.optimizer import build_adamw, check_numbering, number_by_module
from lightning_vfs.training.sharding import check_strategy
from tests.callbacks import conftest
from tests.ranks import run_ranks

sys.modules.setdefault("conftest", conftest)
from tests.callbacks.sharded_process import fit, register_tiny  # noqa: E402


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Checkpoints of a run in one process and of three runs in two, and their figures."""
    folder = tmp_path_factory.mktemp("sharded")
    register_tiny()
    figures = fit(folder / "single")
    (folder / "single.json").write_text(json.dumps(figures))
    run_ranks(Path(__file__).with_name("sharded_process.py"), 2, folder)
    fit(folder / "single from sharded", folder / "sharded" / "step=2.ckpt")
    return folder


def checkpoint(folder, name, step=6):
    return torch.load(folder / name / f"step={step}.ckpt", weights_only=True)


def tensors(checkpoint):
    """Weights, their average and the optimizer's moments."""
    found = {name: checkpoint[name] for name in ("state_dict", "current_model_state")}
    return found | {"moments": dict(enumerate(checkpoint["optimizer_states"][0]["state"].values()))}


def assert_equal(one, other, **tolerances):
    one, other = tensors(one), tensors(other)
    assert len(one["state_dict"]) > 40
    torch.testing.assert_close(other, one, **tolerances)


def test_the_run_is_that_of_one_process(folder):
    assert_equal(checkpoint(folder, "sharded"), checkpoint(folder, "single"), atol=2e-4, rtol=1e-4)
    for name in ("state_dict", "current_model_state"):
        moved = checkpoint(folder, "sharded")[name]["denoiser.final.proj.weight"]
        assert (moved - checkpoint(folder, "sharded", 1)[name]["denoiser.final.proj.weight"]).abs().max() > 1e-4
    first, second, single = (json.loads((folder / f"{name}.json").read_text()) for name in ("0", "1", "single"))
    assert second == first
    assert {"fid[tiny-callbacks]/out", "val/loss", "train/loss"} <= set(first)
    assert first == pytest.approx(single, rel=1e-3)
    assert len(list((folder / "sharded" / "samples").glob("*.png"))) == 1


def test_a_resumed_run_is_the_uninterrupted_one(folder):
    assert_equal(checkpoint(folder, "resumed"), checkpoint(folder, "sharded"), atol=0, rtol=0)


@pytest.mark.slow
def test_muon_in_shards_is_that_of_one_process(tmp_path):
    """But for its products in bfloat16, whose rounding differs; the moments of the gradients do not."""
    register_tiny()
    fit(tmp_path / "single", optimizer="muon")
    run_ranks(Path(__file__).with_name("sharded_process.py"), 2, tmp_path, MUON="1")
    single, sharded, resumed = (tensors(checkpoint(tmp_path, name)) for name in ("single", "muon", "muon resumed"))
    torch.testing.assert_close(resumed, sharded, atol=0, rtol=0)
    torch.testing.assert_close(sharded["state_dict"], single["state_dict"], atol=3e-3, rtol=0)
    momenta = [
        [state["momentum_buffer"] for state in each["moments"].values() if "momentum_buffer" in state]
        for each in (single, sharded)
    ]
    assert len(momenta[0]) == 14
    torch.testing.assert_close(momenta[1], momenta[0], atol=1e-4, rtol=1e-3)


def test_the_average_of_bf16_weights_is_float32_in_shards_too(folder):
    averaged, expected = (checkpoint(folder, name)["state_dict"] for name in ("bf16", "sharded"))
    assert {value.dtype for name, value in averaged.items() if name != "denoiser.pos_embed"} == {torch.float32}
    torch.testing.assert_close(averaged, expected, atol=2e-2, rtol=0, check_dtype=False)


def test_checkpoints_go_both_ways_between_one_process_and_two(folder):
    for name in ("from single", "single from sharded"):
        assert_equal(checkpoint(folder, name), checkpoint(folder, "single"), atol=2e-4, rtol=1e-4)


def test_the_checkpoint_is_one_file_that_loads_in_one_process(folder):
    path = folder / "sharded" / "step=6.ckpt"
    assert path.is_file()
    model = VFSDDPM.load_from_checkpoint(path)
    expected = VFSDDPM.load_from_checkpoint(folder / "single" / "step=6.ckpt")
    support = torch.rand(3, 1, 8, 8) * 2 - 1
    torch.testing.assert_close(
        model.sample(support, 2, steps=5), expected.sample(support, 2, steps=5), atol=2e-3, rtol=0
    )


def test_strategies_that_would_shard_otherwise_are_refused_with_the_way_out():
    with pytest.raises(ConfigError, match=r"FSDP 1, .* use FSDP 2, --config configs/scale/fsdp.yaml"):
        check_strategy(FSDPStrategy())
    with pytest.raises(ConfigError, match="save_distributed_checkpoint false"):
        check_strategy(ModelParallelStrategy())
    strategy = ModelParallelStrategy(save_distributed_checkpoint=False)
    strategy.parallel_devices = [torch.device("cpu")] * 2
    strategy.cluster_environment = LightningEnvironment()
    strategy.cluster_environment.set_world_size(2)
    strategy._device_mesh = {"tensor_parallel": SimpleNamespace(size=lambda: 2)}
    with pytest.raises(
        ConfigError, match="data_parallel_size 2 and --trainer.strategy.init_args.tensor_parallel_size 1"
    ):
        check_strategy(strategy)


def test_moments_of_another_numbering_are_refused():
    """As 0.1.0 saved them; Lightning would load them, each into another parameter."""
    model = VFSDDPM(conftest.CONFIG)
    optimizer = build_adamw(model, OptimizerConfig(), fused=False)
    by_groups = optimizer.state_dict()
    check_numbering(number_by_module(by_groups, optimizer, model), optimizer, model)
    with pytest.raises(CheckpointError, match="group after group"):
        check_numbering(by_groups, optimizer, model)
