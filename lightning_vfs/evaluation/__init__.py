"""Evaluation of generated images: a plan in, a record out.

Names are imported when they are first used, so that records are compared without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_vfs.evaluation.comparison import compare
    from lightning_vfs.evaluation.evaluator import evaluate
    from lightning_vfs.evaluation.plan import EvaluationPlan
    from lightning_vfs.evaluation.record import EvaluationRecord

_HOMES = {"EvaluationPlan": "plan", "EvaluationRecord": "record", "compare": "comparison", "evaluate": "evaluator"}

__all__ = ["EvaluationPlan", "EvaluationRecord", "compare", "evaluate"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"lightning_vfs.evaluation.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
