"""Dealing out trials to workers, and putting away those of dead ones; what storages refuse."""

from __future__ import annotations

import dataclasses
import math
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import optuna
import postgres
import pytest
from optuna.trial import Trial
from tuning import QUICK, spec, value_of

from hmasd_sb3.monitoring.stopping import StopRequest
from hmasd_sb3.running.errors import DONE, FAILED, InputError
from hmasd_sb3.tuning import storage as storage_module
from hmasd_sb3.tuning.objective import ERROR, SETTINGS
from hmasd_sb3.tuning.report import state_of
from hmasd_sb3.tuning.space import SearchSpace
from hmasd_sb3.tuning.storage import Place, open_storage
from hmasd_sb3.tuning.study import ATTEMPT, ORIGIN, RETRY_OF, VARIES, SharedStudy, Turn, load_study, open_study
from hmasd_sb3.tuning.workers import make_pruner, make_sampler, work


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    yield
    optuna.logging.set_verbosity(before)


class FakeLeases:
    """Who is alive is what a test says."""

    def __init__(self, alive: set[str]) -> None:
        self.alive = alive

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        yield

    def hold(self, name: str) -> None:
        self.alive.add(name)

    def is_held(self, name: str) -> bool:
        return name in self.alive

    def close(self) -> None: ...


class Workers:
    """Workers on one study in memory."""

    def __init__(self, **first_trials: dict[str, Any]) -> None:
        self.alive: set[str] = set()
        self.place = Place(optuna.storages.InMemoryStorage(), FakeLeases(self.alive), "memory")
        open_study(self.place, "s", spec(), first_trials)

    def another(self, first_number: int = 0) -> SharedStudy:
        worker = SharedStudy(self.place, optuna.load_study(study_name="s", storage=self.place.storage), first_number)
        worker.sign_in()
        return worker

    def kill(self, worker: SharedStudy) -> None:
        self.alive.remove(worker.worker)

    def states(self) -> list[str]:
        return [state_of(trial) for trial in self.another().trials()]


def begin(worker: SharedStudy, n_trials: int = 10) -> Trial:
    trial = worker.next_trial(n_trials, 3)
    assert isinstance(trial, Trial)
    return trial


class TestDealing:
    def test_as_many_trials_as_wanted_over_all_workers(self) -> None:
        workers = Workers()
        first, second = workers.another(), workers.another()
        trials = [begin(first, 2), begin(second, 2)]
        assert first.next_trial(2, 3) is Turn.WAIT
        first.end(trials[0], 0.5)
        assert first.next_trial(2, 3) is Turn.WAIT
        trials[1].report(0.25, 1)
        second.end(trials[1], pruned=True)
        assert first.next_trial(2, 3) is second.next_trial(2, 3) is Turn.DONE
        assert workers.states() == ["complete", "pruned"]
        assert isinstance(first.next_trial(3, 3), Trial)

    def test_the_trial_of_a_killed_worker_is_tried_again_with_the_same_values(self) -> None:
        workers = Workers(origin={"team_diversity_coef": 0.5, "huber_delta": 3.0})
        dead, living = workers.another(), workers.another()
        trial = begin(dead, 1)
        assert trial.suggest_float("team_diversity_coef", 0.02, 2.0, log=True) == 0.5
        workers.kill(dead)
        again = begin(living, 1)
        assert again.number == 1
        assert workers.states() == ["killed", "running"]
        first, retry = living.trials()
        assert "is gone without a word" in first.user_attrs[ERROR]
        assert retry.user_attrs[SETTINGS] == {"huber_delta": 3.0}
        assert (retry.user_attrs[RETRY_OF], retry.user_attrs[ATTEMPT], retry.user_attrs[ORIGIN]) == (0, 2, "origin")
        # Also what the dead one had not come to choose yet.
        assert again.suggest_float("team_diversity_coef", 0.02, 2.0, log=True) == 0.5
        assert again.suggest_float("one_minus_gamma", 0.002, 0.1, log=True) == 0.01
        living.end(again, 1.0)
        assert living.next_trial(1, 3) is Turn.DONE
        # The dead one was not dead after all, but cut off for a while: what it says does not count any more.
        dead.end(trial, 7.0)
        assert workers.states() == ["killed", "complete"]

    def test_a_trial_that_kills_its_worker_each_time_is_given_up(self) -> None:
        workers = Workers()
        for _ in range(3):
            dead = workers.another()
            begin(dead, 1)
            workers.kill(dead)
        living = workers.another()
        assert living.next_trial(1, 3) is Turn.BROKEN
        assert workers.states() == ["killed", "killed", "crashed"]
        assert "so 3 times, not tried again" in living.trials()[2].user_attrs[ERROR]

    def test_a_worker_that_died_before_it_could_give_its_name(self) -> None:
        workers = Workers()
        worker = workers.another()
        worker.study.ask()
        begin(worker)
        assert workers.states() == ["killed", "running"]

    def test_an_interrupted_trial_goes_back_into_the_queue_however_often(self) -> None:
        workers = Workers()
        worker = workers.another()
        for number in range(5):
            trial = begin(worker, 1)
            assert trial.number == number
            assert trial.suggest_float("x", 0.0, 1.0) == worker.trials()[0].params["x"]
            worker.give_back(trial)
        assert workers.states() == ["interrupted"] * 5 + ["waiting"]
        assert isinstance(worker.next_trial(1, 1), Trial)

    def test_failures_in_a_row(self) -> None:
        workers = Workers()
        worker = workers.another()
        for _ in range(2):
            worker.end(begin(worker), 0.5)
            for _ in range(2):
                worker.end(begin(worker))
        assert worker.failures_in_a_row() == 2
        worker.give_back(begin(worker))
        assert worker.failures_in_a_row() == 2
        worker.end(begin(worker))
        assert worker.next_trial(10, 3) is Turn.BROKEN
        assert isinstance(worker.next_trial(10, 4), Trial)
        # A command given anew begins to count anew.
        assert isinstance(workers.another(first_number=len(worker.trials())).next_trial(10, 1), Trial)

    def test_the_first_failure_of_all_is_enough(self) -> None:
        workers = Workers()
        worker = workers.another()
        worker.end(begin(worker))
        assert worker.next_trial(10, 3) is Turn.BROKEN


class TestWork:
    def test_until_there_are_enough(self) -> None:
        workers = Workers()
        worker = workers.another()

        def objective(trial: Trial) -> float:
            if trial.number == 1:
                trial.report(0.1, 1)
                raise optuna.TrialPruned
            if trial.number == 2:
                raise TypeError("a bug")
            return value_of(trial)

        assert work(worker, objective, 4, 3, StopRequest()) == DONE
        assert workers.states() == ["complete", "pruned", "crashed", "complete", "complete"]

    def test_a_bug_does_not_use_up_the_budget(self) -> None:
        workers = Workers()

        def objective(trial: Trial) -> float:
            raise TypeError("a bug")

        assert work(workers.another(), objective, 10, 3, StopRequest()) == FAILED
        assert workers.states() == ["crashed"]

    def test_no_trial_is_begun_after_the_deadline(self) -> None:
        workers = Workers()
        assert work(workers.another(), value_of, 10, 3, StopRequest(), deadline=time.time() - 1) == DONE
        assert workers.states() == []

    def test_a_second_signal_leaves_no_trial_behind(self) -> None:
        workers = Workers()

        def objective(trial: Trial) -> float:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            work(workers.another(), objective, 10, 3, StopRequest())
        assert workers.states() == ["interrupted", "waiting"]

    def test_samplers_and_pruners(self) -> None:
        suggestions = []
        for entropy in ([0, 0, 0], [0, 1, 0], [0, 0, 4]):
            for name in ("tpe", "random"):
                study = optuna.create_study(sampler=make_sampler(name, entropy))
                suggestions.append(study.ask().suggest_float("x", 0, 1))
        assert len(set(suggestions)) >= 3
        kinds = [type(make_pruner(name, 900, 9)).__name__ for name in ("median", "halving", "none")]
        assert kinds == ["MedianPruner", "SuccessiveHalvingPruner", "NopPruner"]


class TestStudies:
    def test_a_study_goes_on_only_as_it_began(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        place = open_storage(str(tmp_path / "s.journal"))
        first = {"defaults": {}, "outside": {"gamma": 0.1}}
        shared, is_new = open_study(place, "s", spec(search=None), first)
        assert is_new
        assert [trial.user_attrs[ORIGIN] for trial in shared.trials()] == ["defaults"]
        assert "outside: not tried first" in capsys.readouterr().out
        assert not open_study(open_storage(str(tmp_path / "s.journal")), "s", spec(search=None), first)[1]
        assert len(shared.trials()) == 1
        for changed, message in (
            ({"total_timesteps": 97}, "total_timesteps 96, not 97"),
            ({"seeds": [0, 1]}, "seeds [0], not [0, 1]"),
            ({"fixed": {**QUICK, "n_epochs": 2}}, "fixed {"),
            ({"search": ["skills"]}, "search None, not ['skills']"),
        ):
            with pytest.raises(InputError, match=re.escape(message)):
                open_study(place, "s", spec(**{"search": None, **changed}), {})  # type: ignore[arg-type]
        # Another version of this package may have other ranges.
        other = dataclasses.replace(shared.spec, space={**shared.spec.space, "gamma": "Floats(0, 1)"})
        assert shared.spec.differences(other)[0].startswith("space {")
        optuna.create_study(study_name="foreign", storage=place.storage).enqueue_trial({})
        with pytest.raises(InputError, match="was not made by hmasd tune"):
            open_study(place, "foreign", spec(), {})

    @pytest.mark.parametrize("scheme", ["", "sqlite:///"])
    def test_files(self, tmp_path: Path, scheme: str) -> None:
        place = open_storage(f"{scheme}{tmp_path}/deep/in/s.file")
        assert (tmp_path / "deep/in/s.file").exists()
        shared, _ = open_study(place, "s", spec(), {})
        shared.sign_in()
        trial = begin(shared)
        place.storage.set_trial_user_attr(trial._trial_id, "x", 1)
        shared.end(trial, 0.5)
        assert shared.trials()[0].user_attrs["x"] == 1
        place.leases.close()

    def test_what_cannot_be_used_is_said_in_one_line_without_password(self, tmp_path: Path) -> None:
        (tmp_path / "text").write_text("hello\nworld\n")
        port = postgres.free_port()
        for where, message in (
            ("mysql://me:secret@host/x", r"mysql://me:\*\*\*@host/x: must be the path of a journal file"),
            ("sqlite://", "must name a file"),
            ("sqlite:///:memory:", "must name a file"),
            ("", "must name a file"),
            (str(tmp_path), "must name a file"),
            (str(tmp_path / "text"), "is no journal file of Optuna"),
            (f"sqlite:///{tmp_path}/text", "cannot be used: file is not a database"),
            (str(tmp_path / "text/below"), "cannot be used: "),
            (f"sqlite:///{tmp_path}/text/below", "folder cannot be made"),
            (f"postgresql://me:secret@127.0.0.1:{port}/x", "cannot be used: .*refused"),
            ("postgresql://me:secret@host:port/x", "cannot be used"),
            (f"postgresql://me@127.0.0.1:{port}/x?password=secret", "cannot be used"),
        ):
            with pytest.raises(InputError, match=message) as caught:
                open_storage(where)
            assert "secret" not in str(caught.value)
            assert "\n" not in str(caught.value)

    def test_without_optuna_the_extra_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "optuna", None)
        with pytest.raises(InputError, match=r'pip install "hmasd-sb3\[tuning\]"'):
            open_storage("s.journal")

    def test_missing_drivers_name_the_extra(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(storage_module, "_DRIVERS", {"no_such_driver": "postgresql+none"})
        with pytest.raises(InputError, match=r'pip install "hmasd-sb3\[postgresql\]"'):
            open_storage("postgresql://me:secret@host/x")

    def test_half_a_line_in_a_journal_is_cut_off(self, tmp_path: Path) -> None:
        path = tmp_path / "s.journal"
        shared, _ = open_study(open_storage(str(path)), "s", spec(), {"defaults": {}})
        whole = path.read_bytes()
        path.write_bytes(whole + b'{"op_code": 4, "work')
        again, _ = open_study(open_storage(str(path)), "s", spec(), {})
        assert path.read_bytes() == whole
        again.enqueue({}, "more")
        assert len(shared.trials()) == 2


class TestVariations:
    ARGUMENTS: ClassVar[dict[str, Any]] = {"gamma": 0.97, "n_team_skills": 4, "huber_delta": 3.0}

    def whole_space(self, n_variations: int, seed: int = 0, **first_trials: dict[str, Any]) -> SharedStudy:
        alive: set[str] = set()
        place = Place(optuna.storages.InMemoryStorage(), FakeLeases(alive), "memory")
        open_study(place, "s", spec(fixed={}, search=None), first_trials)
        shared = load_study(place, "s", 0, n_variations, seed)
        shared.sign_in()
        return shared

    def next_of(self, shared: SharedStudy) -> tuple[Trial, dict[str, Any], set[str]]:
        """A trial, its arguments, and which of them are varied."""
        trial = shared.next_trial(99, 3)
        assert isinstance(trial, Trial)
        _, _, names = trial.user_attrs.get(ORIGIN, "").partition(", varied in ")
        return trial, SearchSpace().sample(trial, 4), set(names.split(", ")) if names else set()

    def test_each_is_the_best_so_far_but_for_an_eighth(self) -> None:
        shared = self.whole_space(6, first=self.ARGUMENTS)
        space = SearchSpace()
        first, best, varied = self.next_of(shared)
        assert (varied, best["gamma"], best["n_team_skills"]) == (set(), 0.97, 4)
        parent, values = first, [0.3, 0.2, 0.25, 0.5, None, 0.1, 0.0]
        for number in range(1, 7):
            # While the first one is at work it stands in for the best.
            trial, arguments, varied = self.next_of(shared)
            assert trial.user_attrs[VARIES] == parent.number
            assert trial.user_attrs[SETTINGS] == {"huber_delta": 3.0}
            assert len(varied) == math.ceil(len(space.ranges) / 8)
            # Minibatches go by their number, sequences are no longer than rollouts.
            for name in space.ranges.keys() - {"batch_size", "sequence_length"}:
                assert (arguments.get(name) != best.get(name)) == (name in varied), name
            shared.end(trial, values[number], pruned=values[number] is None)
            if number == 2:
                shared.end(first, values[0])
            if number == 3:
                parent, best = trial, arguments
        assert VARIES not in self.next_of(shared)[0].user_attrs

    def test_none_is_tried_twice(self) -> None:
        """One argument of two values has one variation of its default; then it is the sampler's turn."""
        place = Place(optuna.storages.InMemoryStorage(), FakeLeases(set()), "memory")
        open_study(place, "s", spec(search=["clip_range_vf"]), {"first": {}})
        shared = load_study(place, "s", 0, 99)
        shared.sign_in()
        space = shared.spec.search_space()
        tried = []
        for _ in range(8):
            trial = shared.next_trial(99, 3)
            assert isinstance(trial, Trial)
            tried.append((space.sample(trial, 4), VARIES in trial.user_attrs))
            shared.end(trial, 0.5)
        assert [is_varied for _, is_varied in tried] == [False, True] + 6 * [False]
        assert [arguments["clip_range_vf"] for arguments, _ in tried[:2]] == [None, 0.2]

    def test_minibatches_are_kept_by_their_number(self) -> None:
        shared = self.whole_space(40, first={"n_steps": 120, "batch_size": 120})
        for _ in range(40):
            trial, arguments, varied = self.next_of(shared)
            assert (trial.params["n_minibatches"] == 4) == ("batch_size" not in varied)
            assert arguments["n_steps"] * 4 / arguments["batch_size"] == trial.params["n_minibatches"]

    def test_they_follow_from_the_seed(self) -> None:
        first, same, other = (
            [self.next_of(shared)[1] for _ in range(4)]
            for shared in (self.whole_space(3, seed, first={}) for seed in (1, 1, 2))
        )
        assert first == same != other

    def test_one_whose_worker_was_killed_counts_once(self) -> None:
        shared = self.whole_space(2, first={})
        self.next_of(shared)
        _, arguments, varied = self.next_of(shared)
        shared.place.leases.alive.clear()  # type: ignore[attr-defined]
        shared.put_away_dead()
        shared.sign_in()
        again = [self.next_of(shared) for _ in range(4)]
        assert [VARIES in trial.user_attrs for trial, _, _ in again] == [False, True, True, False]
        assert again[1][1:] == (arguments, varied)

    def test_without_a_first_trial_the_sampler_begins(self) -> None:
        shared = self.whole_space(9)
        trial, arguments, _ = self.next_of(shared)
        assert VARIES not in trial.user_attrs
        shared.end(trial, 0.1)
        trial, varied, names = self.next_of(shared)
        assert trial.user_attrs[VARIES] == 0
        assert {name for name in arguments if arguments[name] != varied.get(name)} <= names | {"batch_size", "sequence_length"}
        assert isinstance(shared.next_trial(2, 3), Turn)
