"""One folder of checkpoints belongs to one run, and its best model is as it was evaluated."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from full_disks import FullFor
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from teams import FAST, make_model, parameters_of, random_team_vec_env, same

from hmasd_sb3 import HMASD
from hmasd_sb3.monitoring import CheckpointFolder, TrainingCheckpoint

ROLLOUT = 48


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("good") / "good.zip"
    make_model().save(path)
    return path


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ------------------------------------------------------------------ two runs in one folder


@pytest.fixture
def taken(tmp_path: Path) -> Iterator[Path]:
    """A folder with a run's checkpoints; in the end they must be as they were."""
    make_model().learn(3 * ROLLOUT, callback=TrainingCheckpoint(tmp_path / "taken", ROLLOUT))
    before = files(tmp_path / "taken")
    yield tmp_path / "taken"
    assert files(tmp_path / "taken") == before


def learn_afresh(folder: Path) -> None:
    make_model().learn(ROLLOUT, callback=TrainingCheckpoint(folder, ROLLOUT))


def learn_on(folder: Path) -> None:
    model = make_model()
    model.learn(ROLLOUT)
    model.learn(9 * ROLLOUT, callback=TrainingCheckpoint(folder, ROLLOUT), reset_num_timesteps=False)


def resume_another(folder: Path) -> None:
    """Its steps are those of a checkpoint that is there."""
    other = folder.parent / "other"
    make_model(seed=1).learn(2 * ROLLOUT, callback=TrainingCheckpoint(other, ROLLOUT))
    model = HMASD.load(CheckpointFolder(other).newest(), env=random_team_vec_env())
    model.learn(ROLLOUT, callback=TrainingCheckpoint(folder, ROLLOUT), reset_num_timesteps=False)


def two_at_once(folder: Path) -> None:
    try:
        callbacks = [TrainingCheckpoint(folder.parent / "new", ROLLOUT), TrainingCheckpoint(folder, ROLLOUT)]
        make_model().learn(ROLLOUT, callback=callbacks)
    finally:
        assert [path.name for path in (folder.parent / "new").iterdir()] == ["checkpoint_000000000000.zip"]


def one_object_for_two_runs(folder: Path) -> None:
    checkpoint = TrainingCheckpoint(folder.parent / "new", ROLLOUT)
    model = make_model()
    model.learn(ROLLOUT, callback=checkpoint)
    model.learn(ROLLOUT, callback=checkpoint)


@pytest.mark.parametrize("start", [learn_afresh, learn_on, resume_another, two_at_once, one_object_for_two_runs])
def test_another_runs_folder_is_refused(taken: Path, start: Callable[[Path], None]) -> None:
    with pytest.raises(ValueError, match=r"already holds checkpoints of another run.*Go on with that run.*another folder"):
        start(taken)


def test_a_run_may_go_on_in_its_folder(tmp_path: Path) -> None:
    model = make_model()
    model.learn(2 * ROLLOUT, callback=TrainingCheckpoint(tmp_path, ROLLOUT))
    model.learn(ROLLOUT, callback=TrainingCheckpoint(tmp_path, ROLLOUT), reset_num_timesteps=False)
    folder = CheckpointFolder(tmp_path)
    assert [path.name[-7:-4] for path in folder.all()] == ["048", "096", "144"]
    back = HMASD.load(folder.path_for(48), env=random_team_vec_env())
    back.learn(ROLLOUT, callback=TrainingCheckpoint(tmp_path, ROLLOUT), reset_num_timesteps=False)
    assert [path.name[-7:-4] for path in folder.all()] == ["048", "096"]  # what came after it is another future
    moved = HMASD.load(folder.newest(), env=random_team_vec_env())
    moved.learn(ROLLOUT, callback=TrainingCheckpoint(tmp_path / "moved", ROLLOUT), reset_num_timesteps=False)
    assert CheckpointFolder(tmp_path / "moved").newest() is not None


# ------------------------------------------------------------------ the best


class Watched(EvalCallback):
    """Remembers the networks at each evaluation that was the best so far."""

    best: Any = None
    once = False

    def _on_step(self) -> bool:
        before = self.best_mean_reward
        go_on = super()._on_step()
        if self.best_mean_reward > before:
            self.best = parameters_of(self.model)
            self.eval_freq = 10**6 if self.once else self.eval_freq
        return go_on


@pytest.mark.parametrize("full_disk", [False, True])
@pytest.mark.parametrize("first", ["evaluation", "checkpoint"])
@pytest.mark.parametrize("eval_freq", [12, 5])
def test_the_best_is_as_it_was_evaluated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, eval_freq: int, first: str, full_disk: bool
) -> None:
    evaluation = Watched(random_team_vec_env(1), n_eval_episodes=2, eval_freq=eval_freq, verbose=0)
    evaluation.once = full_disk  # or a later one might be better, and be written when there is room
    callbacks: list[BaseCallback] = [evaluation, TrainingCheckpoint(tmp_path, 10 * ROLLOUT)]
    model = HMASD("MlpPolicy", random_team_vec_env(), **FAST)
    with monkeypatch.context() as patch:
        # Full during the evaluation, which therefore has to wait beyond an update.
        extra = [FullFor(patch, range(1, 4))] if full_disk else []
        both = callbacks if first == "evaluation" else callbacks[::-1]
        model.learn(6 * ROLLOUT, callback=[*both, *extra])
    assert same(parameters_of(HMASD.load(tmp_path / "best.zip")), evaluation.best)
    assert not same(parameters_of(model), evaluation.best)
    assert CheckpointFolder(tmp_path).best() == tmp_path / "best.zip"


def test_networks_that_were_not_evaluated_are_not_the_best(tmp_path: Path) -> None:
    evaluation = Watched(random_team_vec_env(1), n_eval_episodes=2, eval_freq=6, verbose=0)
    model = make_model()
    model.learn(ROLLOUT, callback=evaluation)
    evaluation.eval_freq = 10**6
    model.learn(ROLLOUT, callback=[evaluation, TrainingCheckpoint(tmp_path, ROLLOUT)], reset_num_timesteps=False)
    assert CheckpointFolder(tmp_path).best() is None
