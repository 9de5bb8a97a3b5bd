"""What tests of evaluation share with those of callbacks: a tiny extractor, and a model that paints."""

from tests.callbacks.conftest import painter, tiny

__all__ = ["painter", "tiny"]
