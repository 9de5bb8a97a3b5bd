"""Two ranks train and evaluate on one GPU, by NCCL if it allows two ranks on a device, else by gloo; says which.

python scripts/two_ranks_on_a_gpu.py [cpu]
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile

import lightning.pytorch as pl
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import DDPStrategy

from lightning_vfs import VFSDDPM, EMACallback, FIDCallback, PreemptionCheckpoint, ThroughputCallback, VFSConfig
from lightning_vfs.data import GlyphSets

CONFIG = {
    "sets": {"set_size": 6, "image_size": 16, "channels": 1},
    "encoder": {"dim": 64, "depth": 2, "heads": 2, "dim_head": 32, "patch_size": 8},
    "denoiser": {"dim": 96, "depth": 2, "heads": 3, "patch_size": 4},
}
SECONDS = 100
"""That a backend has; where it hangs, it is given up."""


def rank(number: int, accelerator: str, backend: str, folder: str) -> None:
    """One of the ranks: a node of its own as far as Lightning knows, so that both take the first GPU."""
    data = GlyphSets(set_size=6, image_size=16, batch_size=8, sets_per_epoch=160, eval_sets=16, num_workers=0)
    fid = FIDCallback(feature_extractor="glyph-cnn", num_images=200, steps=10, record=f"{folder}/fid.json")
    trainer = pl.Trainer(
        accelerator=accelerator, devices=1, num_nodes=2, strategy=DDPStrategy(process_group_backend=backend),
        precision="bf16-mixed", max_epochs=2, gradient_clip_val=1.0, log_every_n_steps=5, logger=False,
        use_distributed_sampler=False, enable_checkpointing=False, enable_progress_bar=False, num_sanity_val_steps=0,
        plugins=[LightningEnvironment()], callbacks=[fid, EMACallback(), ThroughputCallback(), PreemptionCheckpoint()],
        default_root_dir=folder,
    )  # fmt: skip
    pl.seed_everything(0)
    trainer.fit(VFSDDPM(VFSConfig.from_dict(CONFIG)), datamodule=data)
    if number == 0:
        figures = {name: round(float(value), 4) for name, value in trainer.callback_metrics.items()}
        print(f"two ranks on one GPU by {backend}: {figures}")


def run(accelerator: str, backend: str) -> bool:
    """Whether two ranks got through by a backend."""
    with tempfile.TemporaryDirectory() as folder:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        env = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "LOCAL_RANK": "0"}
        processes = [
            subprocess.Popen(
                [sys.executable, __file__, "--rank", str(number), accelerator, backend, folder],
                env=env | {"NODE_RANK": str(number)},
            )
            for number in range(2)
        ]
        try:
            return not any([process.wait(timeout=SECONDS) for process in processes])
        except subprocess.TimeoutExpired:
            return False
        finally:
            for process in processes:
                process.kill()


def main() -> None:
    if sys.argv[1:2] == ["--rank"]:
        rank(int(sys.argv[2]), *sys.argv[3:])
        return
    accelerator = sys.argv[1] if len(sys.argv) > 1 else "cuda"
    if not any(run(accelerator, backend) for backend in ("nccl", "gloo")):
        sys.exit("Neither NCCL nor gloo took two ranks on one device.")


if __name__ == "__main__":
    main()
