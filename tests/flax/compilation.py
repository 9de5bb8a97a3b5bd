"""Compilation for tests that run a function once."""

from __future__ import annotations

import functools

import jax

# A quarter of the time to compile; the test of four devices compiles as users do.
quick_jit = functools.partial(
    jax.jit, compiler_options={"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}
)
