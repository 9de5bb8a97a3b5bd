"""What tests of training share with those of callbacks: a tiny extractor, data, and a trainer."""

from tests.callbacks.conftest import config, data, extractor_class, painter, tiny, trainer

__all__ = ["config", "data", "extractor_class", "painter", "tiny", "trainer"]
