"""What docs/synchronisation.md promises: its example, the refusals and the metrics."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from teams import RandomTeam, make_model, parameters_of, randomise, same

from hmasd_sb3 import HMASD, make_team_vec_env
from hmasd_sb3.sync import SyncError

PAGE = (Path(__file__).parent.parent / "docs" / "synchronisation.md").read_text(encoding="utf-8")


def step_of(model: Any) -> tuple[Any, ...]:
    decision = model.decide()
    return decision, *model.env.step(model.policy.to_env_actions(decision.actions))


def collect(model: Any) -> None:
    model.enable_data_collection()
    while not model.should_sync_update():
        model.store_step(*step_of(model))
    model.disable_data_collection()


def test_the_example_learns_what_learn_learns() -> None:
    (example,) = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(example, "docs/synchronisation.md", "exec"), names)
    model = names["model"]
    assert model.policy_version == 2
    assert model._gate.required_samples == 32 * 32 == 1024
    learnt = HMASD("MlpPolicy", make_team_vec_env("AliceAndBob-v0", n_envs=32, seed=0), n_steps=32, seed=0)
    untrained = parameters_of(learnt)
    learnt.learn(2 * 1024)
    assert same(parameters_of(model), parameters_of(learnt))
    assert not same(untrained, parameters_of(learnt))


def refusals() -> list[str]:
    """Messages of everything that is refused, from 4 environments of 12 steps."""
    model, messages = make_model(), []

    def refused(call: Any, *args: Any) -> None:
        with pytest.raises(SyncError) as caught:
            call(*args)
        messages.append(str(caught.value))

    model.start_cycle(1000)
    refused(model.store_step, *step_of(model))
    model.enable_data_collection()
    decision, *rest = step_of(model)
    refused(model.store_step, decision._replace(policy_version=7), *rest)
    refused(model.store_step, decision, rest[0], rest[1], np.ones(4, dtype=bool), [{}] * 4)
    refused(model.sync_update)
    model.disable_data_collection()
    refused(model.sync_update)
    collect(model)
    model._gate.collecting = True
    refused(model.store_step, *step_of(model))
    model._gate.collecting = False
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("hmasd_sb3.hmasd.update_critic", interrupted)
        model.sync_update()
    refused(model.sync_update)
    return messages


def interrupted(*_: Any) -> None:
    raise KeyboardInterrupt


def without_numbers(text: str) -> str:
    return re.sub(r"\[?\d*(, \d+)*\]?", "", text)


def test_every_refusal_says_what_the_page_says() -> None:
    table = PAGE.partition("## What is refused")[2].partition("## ")[0]
    promised = [without_numbers(message) for message in re.findall(r"\| `(.*?)` \|", table)]
    raised = [without_numbers(message) for message in refusals()]
    assert len(promised) == len(raised) == 7
    for message in promised:
        assert sum(found.startswith(message) for found in raised) == 1, message


def test_the_page_lists_all_metrics() -> None:
    model = make_model(env_kwargs={"p_leave": 0.3, "p_lost": 0.1})
    model.learn(48)
    logged = {key for key in model.logger.name_to_value if key.startswith("sync/")}
    table = PAGE.partition("## What the log says")[2]
    assert set(re.findall(r"^\| `(sync/\w+)` \|", table, flags=re.MULTILINE)) == logged


def test_metrics_by_their_effect(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model(env_kwargs={"p_terminate": 0.1, "p_truncate": 0.1})
    slow_step, slow_update = RandomTeam.step, model._update_networks
    monkeypatch.setattr(RandomTeam, "step", lambda self, action: time.sleep(0.002) or slow_step(self, action))
    model.start_cycle(48 * 3)
    for version in range(1, 4):
        collect(model)
        waited = time.perf_counter()
        time.sleep(0.05)  # between collecting and updating: belongs to neither
        monkeypatch.setattr(model, "_update_networks", lambda: time.sleep(0.1) or slow_update())
        model.sync_update()
        waited = time.perf_counter() - waited
        logged = model.logger.name_to_value
        assert logged["sync/policy_version"] == version == model.policy_version
        assert logged["sync/samples_collected"] == 48
        assert logged["sync/contribution_balance"] == 1.0
        assert logged["sync/collection_time"] >= 48 * 0.002
        assert 0.1 <= logged["sync/update_time"] <= waited - 0.05
        counts = model.rollout_buffer.segment_end_counts()
        model.enable_data_collection()
        for reason, per_env in model.segment_ends.items():
            np.testing.assert_array_equal(per_env, counts[reason])
        for reason, per_env in counts.items():
            assert per_env.shape == (4,)
            assert logged[f"sync/segment_ends_{reason}"] == per_env.sum()
        assert logged["sync/segments_per_env_min"] == min(sum(counts.values()))
        assert logged["sync/segments_per_env_max"] == max(sum(counts.values()))
    model._gate.contributions[:] = [3, 4, 4, 4]
    assert model._gate.contribution_balance == 0.75


def test_ratio_metrics_show_samples_of_another_policy() -> None:
    """The deviation that the log shows is there to tell when the guarantee is broken, so it must."""
    model = make_model()
    randomise(model)
    model.start_cycle(1000)
    collect(model)
    randomise(model, scale=0.1, seed=1)
    model.sync_update()
    assert model.logger.name_to_value["sync/actor_first_ratio_deviation"] > 1e-2
    assert model.logger.name_to_value["sync/coordinator_first_ratio_deviation"] > 1e-2


def test_only_the_environment_that_starts_an_episode_has_its_state_renewed() -> None:
    model = make_model(env_kwargs={"p_terminate": 0.0, "p_truncate": 0.0}, skill_interval=9)
    randomise(model)
    model.start_cycle(1000)
    model.enable_data_collection()
    for _ in range(4):
        model.store_step(*step_of(model))
    before = model.skill_state
    assert before.steps_left.tolist() == [5] * 4
    model._last_episode_starts = np.array([False, True, False, False])
    decision = model.decide()
    assert decision.assigned.tolist() == [False, True, False, False]
    assert decision.state.steps_left.tolist() == [4, 8, 4, 4]
    others = [0, 2, 3]
    np.testing.assert_array_equal(decision.state.team_skill[others], before.team_skill[others])
    np.testing.assert_array_equal(decision.hidden[others], before.hidden[others])
    assert before.hidden[1].any()
    assert not decision.hidden[1].any()
    assert model.skill_state is before, "deciding changes nothing in the model"


def test_acting_by_hand_is_acting_in_evaluation_mode() -> None:
    """Guards: layers that behave differently in training acted otherwise by hand than in ``learn``."""
    model = make_model()
    model.start_cycle(1000)
    collect(model)
    model.sync_update()
    assert model.policy.training
    model.enable_data_collection()
    assert not model.policy.training
