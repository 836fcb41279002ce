"""Memory stays where it was: what is freed goes back, and torch keeps no kernel per rollout."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch as th
from teams import make_model
from torch.nn import functional as F

import hmasd_sb3.hmasd as algorithm
from hmasd_sb3.policies.blocks import GELU, next_size

FRAGMENTS = """
import sys
from hmasd_sb3.memory import release_free_memory

def resident():
    return next(int(line.split()[1]) / 1024 for line in open("/proc/self/status") if line.startswith("VmRSS"))

blocks = [bytearray(100_000) for _ in range(1000)]
between = [bytearray(600) for _ in range(1000)]
blocks.extend(bytearray(100_000) for _ in range(1000))
last = bytearray(600)  # what lies at the end keeps all before it from going back by itself
full = resident()
del blocks
kept = resident()
release_free_memory()
print(full, kept, resident())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc and asks the GNU C library")
def test_freed_memory_goes_back_to_the_system() -> None:
    output = subprocess.run([sys.executable, "-c", FRAGMENTS], capture_output=True, text=True, check=True).stdout
    full, kept, left = map(float, output.split())
    assert full > kept - 1.0
    assert left < full - 150.0, "190 MB were freed"


def test_every_update_gives_memory_back_at_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    versions: list[int] = []
    model = make_model()
    monkeypatch.setattr(algorithm, "release_free_memory", lambda: versions.append(model.policy_version))
    model.learn(2 * model.n_steps * model.n_envs)
    assert versions == [1, 2]


class TestGELU:
    @pytest.mark.parametrize("shape", [(1, 5), (9, 5), (33, 3, 4), (95, 64), (0, 5), (17,)])
    def test_equals_torchs_in_every_bit(self, shape: tuple[int, ...]) -> None:
        ours = th.randn(shape, generator=th.Generator().manual_seed(0)).requires_grad_()
        theirs = ours.detach().clone().requires_grad_()
        weights = th.randn(shape, generator=th.Generator().manual_seed(1))
        results = GELU()(ours), F.gelu(theirs)
        assert th.equal(*results)
        for result in results:
            (result * weights).sum().backward()
        assert ours.grad is not None
        assert theirs.grad is not None
        assert th.equal(ours.grad, theirs.grad)

    def test_computes_on_few_sizes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        shapes: set[Any] = set()
        monkeypatch.setattr(F, "gelu", lambda input, approximate: shapes.add(input.shape) or input)
        layer = GELU()
        for n_rows in range(1, 1025):
            assert layer(th.ones(n_rows, 3)).shape == (n_rows, 3)
        assert len(shapes) <= 36

    def test_sizes_are_the_smallest_of_four_per_doubling(self) -> None:
        sizes = sorted({part * 2**power for part in (4, 5, 6, 7) for power in range(12)} | {0, 1, 2, 3})
        for n_rows in range(2000):
            assert next_size(n_rows) == min(size for size in sizes if size >= n_rows)


def test_the_coordinator_uses_it_everywhere() -> None:
    layers = [layer for layer in make_model().policy.modules() if isinstance(layer, th.nn.GELU)]
    assert layers
    assert all(type(layer) is GELU for layer in layers)
