"""Disks without room, for tests."""

from __future__ import annotations

import errno
from typing import Any

import pytest
from stable_baselines3.common.callbacks import BaseCallback

from hmasd_sb3.saving import archive as archive_module


def full(*args: Any) -> Any:
    raise OSError(errno.ENOSPC, "No space left on device")


class FullFor(BaseCallback):
    """The disk is full from one rollout to another."""

    def __init__(self, patch: pytest.MonkeyPatch, rollouts: range) -> None:
        super().__init__()
        self.patch, self.rollouts, self.rollout = patch, rollouts, 0

    def _on_rollout_start(self) -> None:
        self.rollout += 1
        if self.rollout == self.rollouts.start:
            self.patch.setattr(archive_module.os, "replace", full)
        if self.rollout == self.rollouts.stop:
            self.patch.undo()

    def _on_step(self) -> bool:
        return True
