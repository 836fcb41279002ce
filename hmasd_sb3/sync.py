"""The gate that makes a rollout on-policy: who may add samples, and which policy version made them.

Knows no buffer and no network. The gate is open while a rollout is collected, closed while the policy changes; each
update moves the policy version on by one, and a sample that names another version is refused.
"""

from __future__ import annotations

import time

import numpy as np


class SyncError(RuntimeError):
    """A sample or an update came at a moment when the on-policy guarantee forbids it."""


class SyncGate:
    """State of the collect / update cycle.

    :param n_envs: number of environments that contribute
    :param n_steps: steps each of them contributes to one update
    :param policy_version: number of updates that the policy has behind it, those that broke off among them
    """

    def __init__(self, n_envs: int, n_steps: int, policy_version: int = 0) -> None:
        self.n_envs = n_envs
        self.n_steps = n_steps
        self.policy_version = policy_version
        self.collecting = False
        self.contributions = np.zeros(n_envs, dtype=np.int64)
        self.collection_time = 0.0
        self.update_time = 0.0
        self._phase_start = 0.0
        self._updating = False

    @property
    def required_samples(self) -> int:
        """Environment steps in one synchronised batch (``n_steps * n_envs``)."""
        return self.n_envs * self.n_steps

    @property
    def samples_collected(self) -> int:
        """Environment steps collected since collection was enabled."""
        return int(self.contributions.sum())

    @property
    def contribution_balance(self) -> float:
        """Least over largest number of samples of an environment; 1 when all contributed alike."""
        most = int(self.contributions.max())
        return float(self.contributions.min() / most) if most else 1.0

    @property
    def update_broke_off(self) -> bool:
        """Whether an update has begun on the batch and not come to its end."""
        return self._updating

    @property
    def has_unlearnt_steps(self) -> bool:
        """Whether steps were collected that no complete update has learnt from."""
        return self._updating or self.samples_collected > 0

    def should_sync(self) -> bool:
        """Whether the batch is complete, so that the policy must be updated before another sample."""
        return self.samples_collected >= self.required_samples

    def open(self) -> None:
        """Start a new rollout; whatever an aborted one had counted is dropped.

        After an update that broke off the version moves on here: some networks may have changed, so what was decided
        before belongs to another policy.
        """
        if self._updating:
            self.policy_version += 1
            self._updating = False
        self.collecting = True
        self.contributions[:] = 0
        self._phase_start = time.perf_counter()

    def restart(self, policy_version: int) -> None:
        """Begin as if new, between two rollouts of a policy that has so many updates behind it."""
        self.collecting = self._updating = False
        self.policy_version = policy_version
        self.contributions[:] = 0

    def reopen(self) -> None:
        """Go on with a rollout that was closed before it was complete."""
        self.collecting = True
        self._phase_start = time.perf_counter() - self.collection_time

    def close(self) -> None:
        """End the rollout; no sample is accepted from here on."""
        if self.collecting:
            self.collection_time = time.perf_counter() - self._phase_start
        self.collecting = False

    def admit(self, policy_version: int) -> None:
        """Count one step of every environment, or refuse it.

        :param policy_version: version of the policy that chose the actions
        :raises SyncError: while collection is disabled, for another version, or past the batch's size
        """
        if not self.collecting:
            raise SyncError(
                f"A sample of policy version {policy_version} arrived while collection is disabled. "
                "Call enable_data_collection() first."
            )
        if policy_version != self.policy_version:
            raise SyncError(
                f"A sample made by policy version {policy_version} arrived, but this rollout belongs to version "
                f"{self.policy_version}. Act again with the current policy instead of storing old samples."
            )
        if self.should_sync():
            raise SyncError(
                f"The batch already holds its {self.required_samples} samples ({self.n_steps} steps of {self.n_envs} "
                "environments). Call sync_update() before collecting more."
            )
        self.contributions += 1

    def begin_update(self) -> None:
        """Check that an update may start now.

        :raises SyncError: while collection is enabled, or the batch is incomplete or spent
        """
        if self.collecting:
            raise SyncError("The policy cannot be updated while samples are collected. Call disable_data_collection() first.")
        if not self.should_sync():
            raise SyncError(
                f"An update needs {self.required_samples} samples of one policy version, only {self.samples_collected} were "
                "collected. Collect the rest first."
            )
        if self._updating:
            raise SyncError(
                f"An update of policy version {self.policy_version} has begun on this batch and broke off, so some networks "
                "may have learnt from it already. Call enable_data_collection() and collect a new one."
            )
        self._phase_start = time.perf_counter()
        self._updating = True

    def abandon_update(self) -> None:
        """After an update that broke off: its batch is spent, since some networks may have learnt from it already.

        :raises SyncError: if no update has begun
        """
        self._check_updating()
        self.contributions[:] = 0

    def finish_update(self) -> None:
        """Move on to the next policy version.

        :raises SyncError: if no update has begun
        """
        self._check_updating()
        self._updating = False
        self.update_time = time.perf_counter() - self._phase_start
        self.policy_version += 1
        self.contributions[:] = 0

    def _check_updating(self) -> None:
        if not self._updating:
            raise SyncError("No update is under way. Collect a batch and call sync_update().")
