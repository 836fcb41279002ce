"""Minibatches of a size that changes, and rollouts that are no multiple of the skill interval."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from minibatches import ROLLOUT, STEPS, team_model
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.utils import FloatSchedule, LinearSchedule
from teams import make_model, parameters_of, same

from hmasd_sb3 import HMASD, updates
from hmasd_sb3.pieces import Piece, consecutive_groups, even_slices
from hmasd_sb3.updates import _epochs

# ---------------------------------------------------------------- a size that changes


class CountSteps(BaseCallback):
    """Gradient steps of actor and critic, and the size logged, update by update."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[tuple[float, ...]] = []
        self.logged: list[float] = []

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        if self.model.policy_version:
            self.look()

    def _on_training_end(self) -> None:
        self.look()

    def look(self) -> None:
        states = [getattr(self.model.policy, f"{name}_optimizer").state_dict()["state"] for name in ("actor", "critic")]
        self.steps.append(tuple(float(state[0]["step"]) for state in states))
        self.logged.append(self.model.logger.name_to_value["train/batch_size"])


@pytest.mark.parametrize(
    "schedule",
    [LinearSchedule(12, 192, 1.0), FloatSchedule(LinearSchedule(12, 192, 1.0)), lambda p: np.float32(12 + 180 * (1 - p))],
    ids=["linear", "float", "function"],
)
def test_number_of_minibatches_follows_the_schedule(schedule: Callable[[float], float]) -> None:
    """Guards: a schedule that is read once; a size that is rounded down instead of the number of minibatches."""
    model = make_model(4, n_steps=48, batch_size=schedule, n_epochs=2, target_kl=None)
    watch = CountSteps()
    model.learn(192 * 4, callback=watch, log_interval=1000)
    expected = [3, 2, 1, 1]  # 192 / 57, 192 / 102, 192 / 147, 192 / 192
    assert watch.logged == [192 / number for number in expected]
    taken = np.diff(np.array([(0.0, 0.0), *watch.steps]), axis=0)
    np.testing.assert_array_equal(taken, np.array([[2.0 * number] * 2 for number in expected]))


def test_a_constant_schedule_is_the_number() -> None:
    trained = []
    for size in (24, lambda progress_remaining: 24.0):
        model = make_model(batch_size=size)
        model.learn(48 * 2)
        trained.append(parameters_of(model))
    assert same(*trained)


def test_sizes_below_a_chunk_give_one_chunk_each_and_say_so() -> None:
    model = make_model(batch_size=lambda p: 1, n_epochs=1, target_kl=None, env_kwargs={"p_terminate": 0, "p_truncate": 0})
    model.learn(48)
    assert model.logger.name_to_value["train/critic_gradient_steps"] == 12
    assert model.logger.name_to_value["train/batch_size"] == 4.0


@settings(max_examples=60, deadline=None)
@given(
    size=st.floats(1, ROLLOUT),
    pieces=st.none() | st.integers(1, 2 * ROLLOUT),
    length=st.integers(1, STEPS),
    team=st.sampled_from(["discrete", "leaving and lost"]),
    seed=st.integers(0, 2**31),
)
def test_every_step_is_in_one_piece_of_one_minibatch(
    size: float, pieces: int | None, length: int, team: str, seed: int
) -> None:
    buffer = team_model(team).rollout_buffer
    kept = buffer.advantages, buffer.returns
    shape = kept[0].shape
    buffer.advantages = np.arange(1, 1 + np.prod(shape), dtype=np.float32).reshape(shape)
    buffer.returns = buffer.advantages
    counts = buffer.counting_samples()
    counted = buffer.advantages if counts is None else buffer.advantages[counts]
    number = max(1, round(ROLLOUT / size))
    try:
        for minibatches, field in ((buffer.actor_minibatches, "advantages"), (buffer.critic_minibatches, "returns")):
            seen: list[float] = []
            found = list(minibatches(length, size, np.random.default_rng(seed), pieces))
            assert len(found) <= number
            for minibatch in found:
                batches = [piece.gather() for piece in minibatch]
                own = [(b.weights * getattr(b, field)).flatten().tolist() for b in batches]
                own = [[value for value in values if value] for values in own]
                total = sum(map(len, own))
                assert total <= (ROLLOUT / number + length) * buffer.n_agents
                if total and len(own) > 1:
                    assert [piece.share for piece in minibatch] == pytest.approx([len(part) / total for part in own])
                if pieces is not None:
                    assert max(map(len, own)) <= (pieces + length) * buffer.n_agents
                seen += chain(*own)
            assert sorted(seen) == counted.ravel().tolist()
    finally:
        buffer.advantages, buffer.returns = kept


@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=30), number=st.integers(1, 300))
def test_runs_are_about_equal_and_miss_nothing(sizes: list[int], number: int) -> None:
    total = sum(sizes)
    groups = [sizes[group] for group in consecutive_groups(np.array(sizes), number)]
    assert list(chain(*groups)) == sizes
    assert all(groups)
    assert len(groups) <= number
    assert max(map(sum, groups)) <= total / number + max(sizes)
    lengths = [part.stop - part.start for part in even_slices(total, min(number, total))]
    assert sum(lengths) == total
    assert max(lengths) - min(lengths) <= 1


def test_schedule_and_pieces_survive_saving(tmp_path: Any) -> None:
    model = make_model(batch_size=LinearSchedule(12, 48, 1.0), micro_batch_size=6)
    model.learn(48)
    model.save(tmp_path / "model.zip")
    loaded = HMASD.load(tmp_path / "model.zip", env=model.env, device="cpu")
    assert loaded.micro_batch_size == 6
    assert loaded.batch_size(0.5) == 30
    loaded.learn(48)
    assert same(parameters_of(model), parameters_of(loaded)) is False


# ---------------------------------------------------------------- epochs


def counted(cut: list[int]) -> tuple[list[str], Callable[[], Any]]:
    """What is put together, as a list that grows; and an epoch of minibatches with so many pieces each."""
    gathered: list[str] = []

    def gather(name: str) -> str:
        gathered.append(name)
        return name

    def epoch() -> Any:
        for minibatch, n_pieces in enumerate(cut):
            yield [Piece(1.0 / n_pieces, partial(gather, f"{minibatch}.{piece}")) for piece in range(n_pieces)]

    return gathered, epoch


@pytest.mark.parametrize(("cut", "at_once"), [([1], True), ([2], False), ([1, 1], False)])
def test_only_a_rollout_in_one_piece_is_kept_for_all_epochs(cut: list[int], at_once: bool) -> None:
    """Else memory would hold all pieces, or an epoch would repeat the order of the one before."""
    gathered, epoch = counted(cut)
    seen = [[piece.gather() for piece in pieces] for pieces in _epochs(3, epoch)]
    assert seen == [[f"{minibatch}.{piece}" for piece in range(n)] for minibatch, n in enumerate(cut)] * 3
    assert len(gathered) == (1 if at_once else 3 * sum(cut))


def test_no_epoch_is_no_minibatch() -> None:
    assert list(_epochs(0, counted([1])[1])) == []


@pytest.mark.parametrize("batch_size", [ROLLOUT, ROLLOUT // 4])
def test_epochs_learn_the_same_from_batches_made_anew(batch_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def trained() -> Any:
        model = make_model(4, {}, n_steps=STEPS, n_epochs=3, batch_size=batch_size, target_kl=None)
        model.learn(2 * ROLLOUT)
        return parameters_of(model)

    kept = trained()
    monkeypatch.setattr(updates, "_epochs", lambda n, minibatches: chain.from_iterable(minibatches() for _ in range(n)))
    assert same(kept, trained())


# ---------------------------------------------------------------- wrong values


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"batch_size": lambda p: 96 * p}, r"batch_size gives 96\.0 at progress_remaining=1; .* 12 \* 4 = 48 environment"),
        ({"batch_size": lambda p: 48 * p}, r"batch_size gives 0\.0 at progress_remaining=0; .* from 1 to the rollout"),
        ({"batch_size": lambda p: 0.5}, r"batch_size gives 0\.5"),
        ({"batch_size": lambda p: float("nan")}, "batch_size gives nan"),
        ({"batch_size": lambda p: float("inf")}, "batch_size gives inf"),
        ({"batch_size": lambda p: "24"}, "batch_size gives '24'"),
        ({"batch_size": lambda p: True}, "batch_size gives True"),
        ({"batch_size": 24.0}, r"batch_size must be a whole number of at least 1, a schedule, or None, got 24\.0"),
        ({"batch_size": 49}, "batch_size=49 is larger than the rollout"),
        ({"micro_batch_size": 0}, "micro_batch_size must be a whole number of at least 1, or None, got 0"),
        ({"micro_batch_size": 2.5}, r"micro_batch_size must be a whole number of at least 1, or None, got 2\.5"),
        ({"micro_batch_size": True}, "micro_batch_size must be a whole number"),
        ({"micro_batch_size": lambda p: 4}, "micro_batch_size must be a whole number"),
    ],
)
def test_wrong_sizes_are_refused_by_name(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_model(**kwargs)


def test_a_schedule_that_goes_wrong_on_the_way_is_refused_there() -> None:
    """Guards: a schedule that is checked at its ends alone."""
    model = make_model(batch_size=lambda p: 24 if p in (0.0, 1.0) else 100 * p)
    with pytest.raises(ValueError, match=r"batch_size gives 75\.0 at progress_remaining=0\.75; .* 48 environment steps"):
        model.learn(48 * 4)


def test_a_schedule_is_checked_again_where_the_rollout_has_changed(tmp_path: Any) -> None:
    model = make_model(4, batch_size=LinearSchedule(12, 48, 1.0))
    model.save(tmp_path / "model.zip")
    fewer = HMASD.load(tmp_path / "model.zip", env=make_model(2).env, device="cpu")  # enough to be evaluated
    with pytest.raises(ValueError, match=r"batch_size gives 48.* at progress_remaining=0; .* 12 \* 2 = 24 environment"):
        fewer.learn(24)


# ---------------------------------------------------------------- rollouts and skills of any length


@pytest.mark.parametrize(("n_steps", "interval"), [(32, 50), (32, 10), (32, 32), (7, 3), (3, 8), (1, 4), (5, 1)])
def test_skills_run_on_over_rollouts_of_any_length(n_steps: int, interval: int) -> None:
    """Guards: skills that start or end with rollouts; rollouts without an assignment, or with one that is cut off."""
    n_envs = 32 if n_steps == 32 else 4
    env = {"p_terminate": 0.0, "p_truncate": 0.0}
    model = make_model(n_envs, env, n_steps=n_steps, skill_interval=interval, target_kl=None, discriminator_batch_size=2048)
    assigned: list[np.ndarray] = []

    class Watch(BaseCallback):
        def _on_step(self) -> bool:
            return True

        def _on_rollout_end(self) -> None:
            assigned.append(model.rollout_buffer.assigned.copy())

    model.learn(5 * n_steps * n_envs, callback=Watch())
    assert model.policy_version == 5
    expected = np.arange(5 * n_steps) % interval == 0
    np.testing.assert_array_equal(np.concatenate(assigned), np.repeat(expected[:, None], n_envs, axis=1))
    logged = model.logger.name_to_value
    assert (logged["train/coordinator_epochs"] > 0) == bool(assigned[-1].any())
    assert logged["train/batch_size"] == n_steps * n_envs / next(k for k in (4, 2, 1) if n_steps * n_envs % k == 0)
    assert logged["sync/actor_first_ratio_deviation"] < 1e-4


@pytest.mark.parametrize(("n_steps", "interval"), [(32, 50), (32, 10), (3, 8)])
def test_episodes_end_where_they_like_in_rollouts_of_any_length(n_steps: int, interval: int) -> None:
    env = {"p_terminate": 0.02, "p_truncate": 0.02, "p_leave": 0.02}
    model = make_model(32, env, n_steps=n_steps, skill_interval=interval, micro_batch_size=n_steps * 4)
    model.learn(4 * n_steps * 32)
    assert model.policy_version == 4
    for name in ("actor", "coordinator"):
        assert model.logger.name_to_value[f"sync/{name}_first_ratio_deviation"] < 1e-4
