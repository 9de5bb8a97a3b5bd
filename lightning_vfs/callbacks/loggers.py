"""Pictures for loggers, each by the public methods that it has."""

from __future__ import annotations

from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger
from torch import Tensor
from torchvision.transforms.functional import to_pil_image


def log_picture(logger: Logger, key: str, picture: Tensor, step: int) -> None:
    """Pass a picture to a logger that takes any: TensorBoard, MLflow, or one with `log_image`, such as Wandb.

    Args:
        logger: of the trainer.
        key: name of the picture; the same one at every step.
        picture: uint8 (3, H, W).
        step: optimizer step.
    """
    if isinstance(logger, TensorBoardLogger):
        logger.experiment.add_image(key, picture, step)
    elif isinstance(logger, MLFlowLogger):
        if (run_id := logger.run_id) is not None:
            file = f"{key}/step={step:08d}.png"
            logger.experiment.log_image(run_id, to_pil_image(picture), artifact_file=file)
    elif callable(log_image := getattr(logger, "log_image", None)):
        log_image(key=key, images=[to_pil_image(picture)], step=step)
