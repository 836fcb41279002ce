"""The random generators that training draws from: Python's, NumPy's and torch's global ones, and the minibatches' own."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch as th


def global_generators_state() -> dict[str, Any]:
    """State of the generators of Python, NumPy and torch (CPU and, if in use, CUDA), as plain data."""
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    cuda = th.cuda.is_available() and th.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return {
        "python": random.getstate(),
        "numpy": (name, keys, int(position), int(has_gauss), float(cached)),
        "torch": th.get_rng_state(),
        "torch_cuda": th.cuda.get_rng_state_all() if cuda else [],
    }


def restore_global_generators(state: dict[str, Any]) -> None:
    """Put them back where :func:`global_generators_state` found them."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    np.random.set_state(tuple(state["numpy"]))
    th.set_rng_state(state["torch"].cpu())
    if state["torch_cuda"] and th.cuda.is_available():
        th.cuda.set_rng_state_all([part.cpu() for part in state["torch_cuda"]])


def seed_everything(entropy: list[int]) -> np.random.Generator:
    """Begin all global generators anew from some numbers.

    :return: a generator for minibatches, begun likewise
    """
    words = np.random.SeedSequence(entropy).generate_state(4)
    random.seed(int(words[0]))
    np.random.seed(int(words[1]))
    th.manual_seed(int(words[2]))
    return np.random.default_rng(int(words[3]))
