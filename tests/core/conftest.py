"""Every array library that the core runs on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

LIBRARIES = ["numpy", "torch", "jax"]


@pytest.fixture(params=LIBRARIES)
def array(request: pytest.FixtureRequest) -> Callable[[Any], Any]:
    """Makes an array of one of the libraries out of a NumPy array."""
    if request.param == "numpy":
        return np.asarray
    if request.param == "torch":
        import torch

        return torch.as_tensor
    jnp = pytest.importorskip("jax.numpy", reason="install the extra `jax`")
    return jnp.asarray
