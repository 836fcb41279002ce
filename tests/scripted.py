"""Team environments that follow a script, and what a plain simulation of that script says must happen.

A script lists, for every environment, how long its episodes last and how they end, who is there at which step, and what each
step earns. Every observation says where it comes from (environment, number of the step, agent, whether it is an episode's
last one), so that it is recognised wherever it turns up. Nothing here uses a network or the package's bookkeeping.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from stable_baselines3.common.vec_env import VecEnv
from teams import randomise

from hmasd_sb3 import HMASD
from hmasd_sb3.type_aliases import TeamDecision

PHASES = (Phase.generate, *((Phase.shrink,) if os.environ.get("SHRINK") else ()))
"""A failing script is made as small as possible with ``SHRINK=1`` alone: that may take minutes."""

_SCALES = (4.0, 8.0, 2.0, 1.0)
"""Of environment, step, agent and "last": powers of two, so that what is read back is exact."""


class Script(NamedTuple):
    """What happens in a few rollouts; tuples over environments are gone through in turn and over again."""

    n_envs: int
    n_agents: int
    n_steps: int
    n_rollouts: int
    skill_interval: int
    sequence_length: int
    n_batches: int
    mode: str
    episodes: tuple[tuple[tuple[int, str], ...], ...]
    """Per environment: length and end ("terminated", "truncated", "lost") of its episodes."""
    rewards: tuple[tuple[float, ...], ...]
    presence: tuple[tuple[tuple[bool, ...], ...], ...] | None
    """Per environment and step: who is there; None if the game knows no absence."""
    action_masks: bool
    timeout_bootstrap: bool
    normalize: bool
    seed: int

    @property
    def batch_size(self) -> int:
        return self.n_steps * self.n_envs // self.n_batches

    def there(self, env: int, number: int) -> list[bool]:
        """(N,) who is there when step ``number`` is decided."""
        if self.presence is None:
            return [True] * self.n_agents
        return list(self.presence[env][number % len(self.presence[env])])

    def there_after(self, env: int, number: int, end: str | None) -> list[bool]:
        """(N,) who is there at the true successor of step ``number``."""
        if end is None:
            return self.there(env, number + 1)
        return self.there(env, number if end == "lost" else 2 * number + 1)


class Expected(NamedTuple):
    """What must happen in one environment at one step."""

    start: bool
    end: str | None
    assigned: bool
    steps_left: int
    reason: str | None
    """Of the end of a segment with this step."""


@st.composite
def scripts(draw: st.DrawFn) -> Script:
    """Any script of up to three rollouts."""
    n_envs, n_agents, n_steps = draw(st.integers(1, 5)), draw(st.integers(1, 3)), draw(st.integers(1, 14))

    def per_env(elements: st.SearchStrategy[Any], most: int) -> tuple[tuple[Any, ...], ...]:
        one = st.lists(elements, min_size=1, max_size=most).map(tuple)
        return tuple(draw(one) for _ in range(n_envs))

    endings = st.sampled_from(["terminated", "truncated", "lost"])
    somebody = st.tuples(*[st.booleans()] * n_agents).map(lambda there: there if any(there) else (True, *there[1:]))
    parts = [size for size in range(1, n_steps * n_envs + 1) if n_steps * n_envs % size == 0]
    return Script(
        n_envs,
        n_agents,
        n_steps,
        draw(st.integers(1, 3)),
        draw(st.integers(1, 9)),
        draw(st.integers(1, 8)),
        draw(st.sampled_from(parts)),
        draw(st.sampled_from(["continue", "reassign"])),
        per_env(st.tuples(st.integers(1, 10), endings), 4),
        per_env(st.integers(-3, 3).map(float), 5),
        per_env(somebody, 6) if draw(st.booleans()) else None,
        draw(st.booleans()),
        draw(st.booleans()),
        draw(st.booleans()),
        draw(st.integers(0, 2**16)),
    )


def simulate(script: Script) -> list[list[Expected]]:
    """Episodes and skill timers, one environment and one step at a time: [env][number of the step]."""
    expected = []
    for env in range(script.n_envs):
        rows, left, lasted, episode = [], 0, 0, 0
        for number in range(script.n_steps * script.n_rollouts):
            step, start = number % script.n_steps, lasted == 0
            if start or (step == 0 and script.mode == "reassign"):
                left = 0
            assigned = left == 0
            if assigned:
                left = script.skill_interval
            left -= 1
            lasted += 1
            length, kind = script.episodes[env][episode % len(script.episodes[env])]
            end = kind if lasted == length else None
            if end is not None:
                reason: str | None = "terminated" if end == "terminated" else "truncated"
                lasted, episode = 0, episode + 1
            elif left == 0:
                reason = "interval"
            else:
                reason = "rollout_end" if step == script.n_steps - 1 else None
            rows.append(Expected(start, end, assigned, left, reason))
        expected.append(rows)
    return expected


class ScriptedVecEnv(VecEnv):
    """Plays a script. Absent agents' rows are no zeros here, so that they are recognised, and seen if anything uses them."""

    def __init__(self, script: Script) -> None:
        self.script, n_agents = script, script.n_agents
        space: dict[str, spaces.Space[Any]] = {
            "obs": spaces.Box(-np.inf, np.inf, (n_agents, 4), np.float32),
            "state": spaces.Box(-np.inf, np.inf, (4,), np.float32),
        }
        if script.presence is not None:
            space["agent_mask"] = spaces.MultiBinary(n_agents)
        if script.action_masks:
            space["action_mask"] = spaces.MultiBinary((n_agents, 3))
        self.render_mode = None
        self.number = 0
        self.lasted, self.episode = [0] * script.n_envs, [0] * script.n_envs
        super().__init__(script.n_envs, spaces.Dict(space), spaces.MultiDiscrete([3] * n_agents))

    def observe(self, env: int, number: int, there: list[bool], last: bool) -> dict[str, np.ndarray]:
        """What one team sees."""
        n_agents, scales = self.script.n_agents, np.array(_SCALES, dtype=np.float32)
        code = np.array([[env, number, agent, last] for agent in range(n_agents)], dtype=np.float32)
        observation = {"obs": code / scales, "state": code[0] / scales}
        if self.script.presence is not None:
            observation["agent_mask"] = np.array(there, dtype=np.int8)
        if self.script.action_masks:
            mask = np.ones((n_agents, 3), dtype=np.int8)
            mask[np.arange(n_agents), (env + number + np.arange(n_agents)) % 3] = 0
            mask[~np.array(there)] = 1
            observation["action_mask"] = mask
        return observation

    def _all(self) -> dict[str, np.ndarray]:
        rows = [self.observe(b, self.number, self.script.there(b, self.number), False) for b in range(self.num_envs)]
        return {key: np.stack([row[key] for row in rows]) for key in rows[0]}

    def reset(self) -> Any:
        self.number = 0
        self.lasted, self.episode = [0] * self.num_envs, [0] * self.num_envs
        return self._all()

    def step_async(self, actions: np.ndarray) -> None:
        assert all(self.action_space.contains(row) for row in actions)

    def step_wait(self) -> Any:
        script, number = self.script, self.number
        self.number += 1
        rewards, dones = np.zeros(self.num_envs, dtype=np.float32), np.zeros(self.num_envs, dtype=bool)
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        for env in range(self.num_envs):
            rewards[env] = script.rewards[env][number % len(script.rewards[env])]
            self.lasted[env] += 1
            length, end = script.episodes[env][self.episode[env] % len(script.episodes[env])]
            if self.lasted[env] < length:
                continue
            self.lasted[env], self.episode[env], dones[env] = 0, self.episode[env] + 1, True
            there = script.there_after(env, number, end)
            if end == "lost":  # what the step was decided on stands in for its successor
                last, infos[env]["transition_lost"] = self.observe(env, number, there, False), True
            else:
                last = self.observe(env, number + 1, there, True)
            infos[env].update({"terminal_observation": last, "TimeLimit.truncated": end != "terminated"})
        return self._all(), rewards, dones, infos

    def close(self) -> None:
        pass

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        return [getattr(self, attr_name)] * self.num_envs

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        raise NotImplementedError

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        raise NotImplementedError

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        return [False] * self.num_envs


def places(observations: Any) -> list[tuple[int, ...]]:
    """(..., 4) observations or states of any kind -> (environment, step, agent, last) of each row, in order."""
    rows = np.asarray(observations, dtype=np.float64).reshape(-1, 4) * _SCALES
    assert (rows == rows.round()).all(), "an observation was changed on its way"
    return [tuple(row) for row in rows.astype(int).tolist()]


class Step(NamedTuple):
    """One step of all environments, as it was when it happened."""

    observation: dict[str, np.ndarray]
    decision: TeamDecision
    successors: list[dict[str, np.ndarray]]
    """True successor in each environment."""
    rewards: np.ndarray


class Rollout(NamedTuple):
    """A complete rollout that was not learnt from yet."""

    number: int
    model: HMASD
    steps: list[Step]
    first: int
    """Number of its first step."""


def make_model(script: Script, **kwargs: Any) -> HMASD:
    """A tiny HMASD with random weights that plays the script."""
    model = HMASD(
        "MlpPolicy", ScriptedVecEnv(script), n_steps=script.n_steps, batch_size=script.batch_size, n_epochs=1,
        skill_n_epochs=1, skill_interval=script.skill_interval, sequence_length=script.sequence_length,
        skill_at_rollout_end=script.mode, skill_timeout_bootstrap=script.timeout_bootstrap,
        normalize_advantage=script.normalize, discriminator_n_updates=1, discriminator_batch_size=16, target_kl=None,
        skill_target_kl=None, n_agent_skills=3, seed=script.seed, device="cpu",
        policy_kwargs={"hidden_size": 8, "coordinator_kwargs": {"n_heads": 2}}, **kwargs,
    )  # fmt: skip
    randomise(model, seed=script.seed)
    return model


def _nothing(model: HMASD, decision: TeamDecision, result: Any) -> None:
    pass


def rollouts(script: Script, before_storing: Callable[[HMASD, TeamDecision, Any], None] = _nothing) -> Iterator[Rollout]:
    """Play the script by the cycle that ``learn`` uses; each rollout is learnt from after the caller has seen it.

    :param before_storing: called with model, decision and what the environment returned, before each step is stored
    """
    model = make_model(script)
    model.start_cycle(script.n_steps * script.n_envs * script.n_rollouts)
    for number in range(script.n_rollouts):
        model.enable_data_collection()
        steps = []
        while not model.should_sync_update():
            observation = {key: value.copy() for key, value in model._last_obs.items()}
            decision = model.decide()
            result = model.env.step(model.policy.to_env_actions(decision.actions))
            before_storing(model, decision, result)
            successors = [
                infos.get("terminal_observation") or {key: value[env].copy() for key, value in result[0].items()}
                for env, infos in enumerate(result[3])
            ]
            steps.append(Step(observation, decision, successors, result[1].copy()))
            model.store_step(decision, *result)
        model.disable_data_collection()
        yield Rollout(number, model, steps, number * script.n_steps)
        model.sync_update()


def for_all_scripts(examples: int) -> Callable[[Any], Any]:
    """Make a test of a property of scripts: over ``examples`` of them, and marked slow over ten times as many."""

    def decorate(holds: Callable[[Script], None]) -> Any:
        @pytest.mark.parametrize(
            "examples", [pytest.param(examples, id="quick"), pytest.param(10 * examples, id="many", marks=pytest.mark.slow)]
        )
        def test(examples: int) -> None:
            limits = settings(
                max_examples=examples, deadline=None, derandomize=True, database=None, phases=PHASES,
                suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
            )  # fmt: skip
            limits(given(scripts())(holds))()

        test.__name__, test.__qualname__, test.__doc__ = holds.__name__, holds.__qualname__, holds.__doc__
        return test

    return decorate


def joins(script: Script, env: int, number: int) -> bool:
    """Whether somebody is there at this step who was not at the one before."""
    before, now = script.there(env, number - 1), script.there(env, number)
    return number > 0 and any(there and not was for was, there in zip(before, now, strict=True))


def mean(values: Sequence[float]) -> float:
    """Plain mean."""
    return sum(values) / len(values)
