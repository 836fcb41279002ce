"""Whatever is asked of the gate in whatever order, an update sees the samples of one policy only, and all of them."""

from __future__ import annotations

from collections import Counter
from typing import Any, ClassVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from scripted import PHASES
from teams import make_model

from hmasd_sb3.sync import SyncError, SyncGate


class GateMachine(RuleBasedStateMachine):
    """Keeps what the gate let in, each sample with the policy that made it; a policy changes whenever an update touches it."""

    happened: ClassVar[Counter[str]] = Counter()

    @initialize(n_envs=st.integers(1, 4), n_steps=st.integers(1, 4), version=st.integers(0, 3))
    def start(self, n_envs: int, n_steps: int, version: int) -> None:
        self.gate = SyncGate(n_envs, n_steps, version)
        self.n_envs, self.n_steps = n_envs, n_steps
        self.policy, self.stamps = 0, [version]
        self.collecting, self.updating = False, False
        self.batch: list[int] = []

    def refused(self, what: Any, *args: Any, match: str) -> None:
        before = (self.gate.policy_version, self.gate.collecting, self.gate.samples_collected)
        with pytest.raises(SyncError, match=match):
            what(*args)
        assert (self.gate.policy_version, self.gate.collecting, self.gate.samples_collected) == before

    @rule()
    def open(self) -> None:
        self.gate.open()
        if self.updating:
            self.happened["broken off"] += 1
            self.updating = False
            self.stamps.append(self.gate.policy_version)
        self.collecting, self.batch = True, []

    @rule()
    def close(self) -> None:
        self.gate.close()
        self.collecting = False

    @rule(age=st.sampled_from([0, 0, 0, 0, 0, 0, 1, 2]))
    def admit(self, age: int) -> None:
        """A sample of the policy that acts now, or of one before: its stamp is the version that was then in force."""
        maker = max(self.policy - age, 0)
        stamp = self.stamps[min(maker, len(self.stamps) - 1)]
        if not self.collecting:
            self.refused(self.gate.admit, stamp, match=f"policy version {stamp} arrived while collection is disabled")
        elif maker != self.policy:
            both = f"version {stamp} arrived, but this rollout belongs to version {self.gate.policy_version}"
            self.refused(self.gate.admit, stamp, match=both)
        elif len(self.batch) == self.n_steps:
            self.refused(self.gate.admit, stamp, match=f"already holds its {self.n_steps * self.n_envs} samples")
        else:
            self.gate.admit(stamp)
            self.batch.append(maker)

    @rule(then=st.sampled_from(["nothing", "finish_update", "abandon_update", "begin_update", "open"]))
    def update_from_a_whole_batch(self, then: str) -> None:
        """What would seldom come about by single operations."""
        self.open()
        while not self.gate.should_sync():
            self.admit(0)
        self.close()
        self.begin_update()
        if then != "nothing":
            getattr(self, then)()

    @rule(ahead=st.integers(1, 3))
    def admit_from_the_future(self, ahead: int) -> None:
        stamp = self.gate.policy_version + ahead
        self.refused(self.gate.admit, stamp, match="disabled" if not self.collecting else f"version {stamp} arrived, but")

    @rule()
    def begin_update(self) -> None:
        if self.collecting:
            self.refused(self.gate.begin_update, match="while samples are collected")
        elif len(self.batch) < self.n_steps:
            self.refused(self.gate.begin_update, match=f"only {len(self.batch) * self.n_envs} were collected")
        elif self.updating:
            self.happened["refused as spent"] += 1
            self.refused(self.gate.begin_update, match="broke off")
        else:
            self.gate.begin_update()
            self.updating = True
            assert self.batch == [self.policy] * self.n_steps, "an update sees another policy's samples"
            assert self.gate.contributions.tolist() == [self.n_steps] * self.n_envs
            self.policy += 1  # from here on its networks change

    @rule()
    def finish_update(self) -> None:
        if not self.updating:
            self.refused(self.gate.finish_update, match="No update is under way")
            return
        version = self.gate.policy_version
        self.happened["finished"] += 1
        self.gate.finish_update()
        assert self.gate.policy_version == version + 1
        self.updating, self.batch = False, []
        self.stamps.append(version + 1)

    @rule()
    def abandon_update(self) -> None:
        if not self.updating:
            self.refused(self.gate.abandon_update, match="No update is under way")
            return
        self.gate.abandon_update()
        self.batch = []

    @invariant()
    def counts_are_true(self) -> None:
        if not hasattr(self, "gate"):
            return
        assert self.gate.collecting == self.collecting
        assert self.gate.contributions.tolist() == [len(self.batch)] * self.n_envs
        assert self.gate.samples_collected == len(self.batch) * self.n_envs <= self.gate.required_samples
        assert self.gate.should_sync() == (len(self.batch) == self.n_steps)
        assert self.gate.contribution_balance == 1.0
        assert len(set(self.stamps)) == len(self.stamps), "two policies bear one version"


@pytest.mark.parametrize("examples", [100, pytest.param(1000, marks=pytest.mark.slow)])
def test_no_order_of_operations_lets_other_policies_samples_in(examples: int) -> None:
    limits = settings(
        max_examples=examples, stateful_step_count=40, deadline=None, derandomize=True, database=None, phases=PHASES
    )
    GateMachine.happened.clear()
    run_state_machine_as_test(GateMachine, settings=limits)
    for what in ("finished", "broken off", "refused as spent"):
        assert GateMachine.happened[what] > 20, "the operations hardly ever came to an update"


def full_batch() -> Any:
    model = make_model(learning_rate=0.01)
    model.start_cycle(1000)
    collect(model)
    return model


def collect(model: Any) -> Any:
    model.enable_data_collection()
    while not model.should_sync_update():
        decision = model.decide()
        result = model.env.step(model.policy.to_env_actions(decision.actions))
        model.store_step(decision, *result)
    model.disable_data_collection()
    return decision, result


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_a_batch_that_an_update_broke_off_on_is_not_learnt_from_again(monkeypatch: Any, error: type[BaseException]) -> None:
    """Coordinator and actor have learnt from it when the critic's update is interrupted: its ratios are no longer 1."""
    model = full_batch()

    def interrupted(*_: Any) -> None:
        raise error

    monkeypatch.setattr("hmasd_sb3.hmasd.update_critic", interrupted)
    with pytest.raises(error):
        model.sync_update()
    monkeypatch.undo()
    with pytest.raises(SyncError, match="broke off"):
        model.sync_update()
    stale = model.decide()
    collect(model)
    assert model.policy_version == 1, "the networks have changed"
    model.sync_update()
    assert model.policy_version == 2
    assert model.logger.name_to_value["sync/actor_first_ratio_deviation"] < 1e-5
    model.enable_data_collection()
    with pytest.raises(SyncError, match="version 0 arrived, but this rollout belongs to version 2"):
        model.store_step(stale, *model.env.step(model.policy.to_env_actions(stale.actions)))
