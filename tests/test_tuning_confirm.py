"""The best trials once more on new seeds: which, on which, and what is chosen by them."""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from commands import TESTS, hmasd
from optuna.trial import Trial
from test_tuning_report import finished_study
from tuning import SMALL_GAME, quick_options

from hmasd_sb3.tuning import search
from hmasd_sb3.tuning.confirm import accept_confirmation, candidates, chosen_trial, confirmed, open_confirmation
from hmasd_sb3.tuning.plots import plot_study
from hmasd_sb3.tuning.pool import WorkerOptions
from hmasd_sb3.tuning.report import best_yaml, confirmation_table, summary, trials_csv
from hmasd_sb3.tuning.study import ORIGIN, RETRY_OF, SharedStudy, Turn, load_study

ALICE = f"--set=env_kwargs={SMALL_GAME}"


@pytest.fixture(autouse=True)
def quiet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    yield
    optuna.logging.set_verbosity(before)


def give_values(confirmation: SharedStudy, values: list[float]) -> None:
    """Carry out trials that never train."""
    confirmation.sign_in()
    for value in values:
        trial = confirmation.next_trial(100, 100)
        assert isinstance(trial, Trial)
        finish(confirmation, trial, value)


def finish(confirmation: SharedStudy, trial: Trial, value: float) -> None:
    trial.set_user_attr("hyperparameters", confirmation.spec.search_space().sample(trial, 4))
    by_seed = [[0.0, value] for _ in confirmation.spec.seeds]
    trial.set_user_attr("evaluations", {"steps": [48, 96], "by_seed": by_seed})
    confirmation.end(trial, value)


def arguments_of(trial: Any) -> Any:
    return trial.user_attrs["hyperparameters"]


def test_the_best_and_the_defaults_are_trained_again_on_seeds_after_the_own() -> None:
    shared = finished_study(5)  # trial 0, the defaults, has the lowest value
    assert [trial.number for trial in candidates(shared, 2)] == [4, 3, 0]
    assert [trial.number for trial in candidates(shared, 5)] == [4, 3, 2, 1, 0]
    assert candidates(finished_study(1, storage="other.journal"), 2) == []  # the defaults alone
    confirmation, wanted = open_confirmation(shared, 2, 3)
    assert wanted == 3
    assert confirmation.spec.seeds == [2, 3, 4]
    give_values(confirmation, [0.1, 0.2, 0.3])
    again = confirmation.trials()
    assert [trial.user_attrs[ORIGIN] for trial in again] == ["trial 4", "trial 3", "trial 0"]
    assert [arguments_of(trial) for trial in again] == [arguments_of(shared.trials()[number]) for number in (4, 3, 0)]


def test_new_seeds_decide_once_all_are_done() -> None:
    shared = finished_study(5)
    confirmation, _ = open_confirmation(shared, 2, 3)
    give_values(confirmation, [0.1, 0.7])
    assert not accept_confirmation(shared, confirmation)
    assert confirmed(shared) == []
    chosen = chosen_trial(shared)
    assert chosen is not None
    assert chosen.number == 4
    give_values(confirmation, [0.3])
    assert accept_confirmation(shared, confirmation)
    assert [(trial.number, again.value) for trial, again in confirmed(shared)] == [(3, 0.7), (0, 0.3), (4, 0.1)]
    chosen = chosen_trial(shared)
    assert chosen is not None
    assert chosen.number == 3
    text = best_yaml(shared)
    assert text.startswith(
        "# Trial 3 of the study 's' in s.journal, the best of the 3 that were trained again, on new seeds, of 5."
    )
    assert "# Values on new seeds:\n#   trial    3   value      0.7   last evaluation by seed: 0.7 0.7 0.7" in text
    assert yaml.safe_load(text)["AliceAndBob-v0"]["gamma"] == arguments_of(shared.trials()[3])["gamma"]
    assert len(confirmation_table(shared)) == 3
    found = summary(shared)
    assert (found["best"]["number"], [one["number"] for one in found["confirmed"]]) == (3, [3, 0, 4])
    assert (found["best"]["value"], found["best"]["value_on_new_seeds"]) == (0.3, 0.7)
    rows = list(csv.DictReader(trials_csv(shared).splitlines()))
    assert [row["value_on_new_seeds"] for row in rows] == ["0.3", "", "", "0.7", "0.1"]
    assert [path.name for path in plot_study(shared, Path("out"))] == ["history.png", "importances.png", "slices.png"]


def test_a_round_that_was_begun_leaves_the_one_before_it_in_force() -> None:
    shared = finished_study(5)
    confirmation, _ = open_confirmation(shared, 2, 1)
    give_values(confirmation, [0.1, 0.7, 0.3])
    assert accept_confirmation(shared, confirmation)
    another, _ = open_confirmation(shared, 3, 2)
    give_values(another, [0.9])
    assert not accept_confirmation(shared, another)
    chosen = chosen_trial(shared)
    assert chosen is not None
    assert chosen.number == 3


def test_further_trials_need_another_round() -> None:
    shared = finished_study(2)
    confirmation, _ = open_confirmation(shared, 2, 1)
    give_values(confirmation, [0.2, 0.9])
    assert accept_confirmation(shared, confirmation)
    assert len(confirmed(shared)) == 2
    trial = shared.next_trial(100, 100)
    assert isinstance(trial, Trial)
    trial.set_user_attr("hyperparameters", shared.spec.search_space().sample(trial, 4))
    shared.end(trial, 0.5)
    assert confirmed(shared) == []
    chosen = chosen_trial(shared)
    assert chosen is not None
    assert chosen.number == 2
    another, wanted = open_confirmation(shared, 1, 1)
    assert another.study.study_name != confirmation.study.study_name
    assert wanted == 2  # with the defaults


def test_opening_it_twice_asks_for_nothing_twice() -> None:
    shared = finished_study(4)
    open_confirmation(shared, 2, 2)
    confirmation, wanted = open_confirmation(shared, 2, 2)
    assert len(confirmation.trials()) == wanted == 3


def test_a_trial_whose_worker_was_killed_still_counts_for_the_one_it_confirms() -> None:
    shared = finished_study(3)
    confirmation, _ = open_confirmation(shared, 1, 1)
    dead = load_study(shared.place, confirmation.study.study_name, 0)
    trial = dead.next_trial(10, 3)  # by a worker that was never known to be alive
    assert isinstance(trial, Trial)
    give_values(confirmation, [0.4, 0.6])
    assert accept_confirmation(shared, confirmation)
    assert [one.user_attrs.get(RETRY_OF) for one in confirmation.trials()] == [None, None, 0]
    assert {(trial.number, again.number) for trial, again in confirmed(shared)} == {(2, 2), (0, 1)}


def test_how_far_ahead_of_the_defaults_each_is() -> None:
    shared = finished_study(2)
    confirmation, _ = open_confirmation(shared, 1, 4)
    confirmation.sign_in()
    # Seed by seed, over the last third (of four evaluations the last two): 0.5, 0.3, 0.5, 0.3 ahead.
    for values in ([0.9, 0.6, 0.9, 0.6], [0.4, 0.3, 0.4, 0.3]):
        trial = confirmation.next_trial(2, 1)
        assert isinstance(trial, Trial)
        trial.set_user_attr("hyperparameters", confirmation.spec.search_space().sample(trial, 4))
        by_seed = [[1.0, 1.0, value - 0.1, value + 0.1] for value in values]
        trial.set_user_attr("evaluations", {"steps": [24, 48, 72, 96], "by_seed": by_seed})
        confirmation.end(trial, sum(values) / 4)
    assert accept_confirmation(shared, confirmation)
    first, second = confirmation_table(shared)
    assert first.endswith("   +0.4 ± 0.058 (standard error) against the defaults")  # 0.11547 / 2
    assert "against" not in second


class TestCrashes:
    def begin(self, confirmation: SharedStudy) -> Trial:
        trial = confirmation.next_trial(4, 2)
        assert isinstance(trial, Trial)
        return trial

    def test_no_other_trial_takes_the_place_of_one_that_crashed(self) -> None:
        shared = finished_study(4)
        confirmation, wanted = open_confirmation(shared, 3, 1)
        assert wanted == 4
        first = self.begin(confirmation)
        first.set_user_attr("error", "ValueError: not on this seed\nas it says")
        confirmation.end(first)  # the first one of all: the others get their turn nevertheless
        give_values(confirmation, [0.2, 0.4])
        last = self.begin(confirmation)
        assert confirmation.next_trial(4, 2) is Turn.WAIT  # its worker may be killed, and then it is asked for again
        finish(confirmation, last, 0.1)
        assert confirmation.next_trial(4, 2) is Turn.DONE
        assert len(confirmation.trials()) == 4
        assert accept_confirmation(shared, confirmation)
        assert [trial.number for trial, _ in confirmed(shared)] == [1, 2, 0]
        assert confirmation_table(shared)[-1] == "  trial    3   crashed: ValueError: not on this seed"
        assert "#   trial    3   crashed: ValueError" in best_yaml(shared)

    def test_it_is_asked_for_again_by_the_same_command(self) -> None:
        shared = finished_study(3)
        confirmation, _ = open_confirmation(shared, 2, 1)
        confirmation.end(self.begin(confirmation))
        give_values(confirmation, [0.2, 0.4])
        again, wanted = open_confirmation(shared, 2, 1)
        assert (wanted, len(again.trials())) == (3, 4)
        give_values(again, [0.6])
        assert accept_confirmation(shared, again)
        assert [trial.number for trial, _ in confirmed(shared)] == [2, 0, 1]
        assert len(confirmation_table(shared)) == 3

    def test_too_many_in_a_row_are_too_many(self) -> None:
        confirmation, _ = open_confirmation(finished_study(4), 3, 1)
        for _ in range(2):
            confirmation.end(self.begin(confirmation))
        assert confirmation.next_trial(4, 2) is Turn.BROKEN

    def test_the_command_says_so_and_goes_on_once_it_is_mended(
        self, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS), str(TESTS.parent), os.environ.get("PYTHONPATH", "")]))
        options = ["--env=cli_games:PickyTeam", "--set=env_kwargs={refused: 4}", "--metric=return", "--trials=2"]
        command = ["tune", *quick_options(*options, "--out=o", "--confirm=1", "--confirm-seeds=1")]
        assert hmasd(*command) == 4
        out = capfd.readouterr().out
        assert "Stopped. Traceback" in out
        assert "failed: RuntimeError: seed 4 is no good" in out
        assert "Chosen by the seeds of the search alone" in out
        Path("mended").touch()
        assert hmasd(*command) == 0
        out = capfd.readouterr().out
        assert "The best, trained again on new seeds:" in out
        assert "Chosen by the seeds of the search alone" not in out


class TestRounds:
    """What several commands, and workers that are killed, may leave behind."""

    def test_one_that_was_killed_before_it_crashed_is_asked_for_again(self) -> None:
        shared = finished_study(3)
        confirmation, _ = open_confirmation(shared, 2, 1)
        dead = load_study(shared.place, confirmation.study.study_name, 0)
        assert isinstance(dead.next_trial(3, 3), Trial)
        give_values(confirmation, [0.2, 0.4])
        crashing = confirmation.next_trial(3, 3)
        assert isinstance(crashing, Trial)
        confirmation.end(crashing)
        assert accept_confirmation(shared, confirmation)
        assert len(confirmed(shared)) == 2
        again, _ = open_confirmation(shared, 2, 1)
        give_values(again, [0.9])
        assert [trial.number for trial, _ in confirmed(shared)] == [2, 0, 1]

    def test_further_trials_meanwhile_need_another_round(self) -> None:
        shared = finished_study(3)
        confirmation, _ = open_confirmation(shared, 2, 1)
        give_values(confirmation, [0.2, 0.4, 0.3])
        finish_another(shared, 9.0)
        assert not accept_confirmation(shared, confirmation)
        chosen = chosen_trial(shared)
        assert chosen is not None
        assert chosen.number == 3

    def test_one_trial_too_many_does_not_count(self) -> None:
        """Which it may be if a worker is killed while it puts away a trial of another."""
        shared = finished_study(3)
        confirmation, _ = open_confirmation(shared, 2, 1)
        confirmation.study.enqueue_trial(shared.trials()[2].params, user_attrs={"confirms": 2})
        give_values(confirmation, [0.2, 0.4, 0.3])
        assert confirmation.next_trial(3, 3) is Turn.DONE
        assert accept_confirmation(shared, confirmation)
        give_values(confirmation, [0.9])
        assert sorted(trial.number for trial, _ in confirmed(shared)) == [0, 1, 2]

    def test_failures_of_trials_that_were_waiting_count(self) -> None:
        shared = finished_study(5)
        open_confirmation(shared, 4, 1)
        again, wanted = open_confirmation(shared, 4, 1)
        again.sign_in()
        for _ in range(2):
            trial = again.next_trial(wanted, 2)
            assert isinstance(trial, Trial)
            again.end(trial)
        assert again.next_trial(wanted, 2) is Turn.BROKEN


def finish_another(shared: SharedStudy, value: float) -> None:
    trial = shared.next_trial(100, 100)
    assert isinstance(trial, Trial)
    finish(shared, trial, value)


def test_how_far_ahead_by_another_measure_than_the_mean() -> None:
    shared = finished_study(2, aggregate="min")
    confirmation, _ = open_confirmation(shared, 1, 2)
    give_values(confirmation, [0.1, 0.4])
    assert accept_confirmation(shared, confirmation)
    assert "   -0.3 against the defaults" in confirmation_table(shared)[1]


def test_defaults_that_were_pruned_are_trained_again_all_the_same() -> None:
    shared = finished_study(0)
    pruned = shared.next_trial(100, 100)
    assert isinstance(pruned, Trial)
    pruned.set_user_attr("hyperparameters", shared.spec.search_space().sample(pruned, 4))
    pruned.set_user_attr("evaluations", {"steps": [48], "by_seed": [[0.0], [0.0]]})
    pruned.report(0.0, 48)
    shared.end(pruned, pruned=True)
    assert candidates(shared, 2) == []  # there is nothing to compare
    finished_study(2)
    assert [trial.number for trial in candidates(shared, 1)] == [2, 0]
    confirmation, _ = open_confirmation(shared, 1, 1)
    give_values(confirmation, [0.2, 0.4])
    assert accept_confirmation(shared, confirmation)
    chosen = chosen_trial(shared)
    assert chosen is not None
    assert chosen.number == 0
    assert "# Value in the search 0 (pruned at step 48); last evaluation by seed: 0 0." in best_yaml(shared)


def test_the_time_allowed_is_that_of_search_and_confirmation_together(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    deadlines = []

    def noting(**options: Any) -> WorkerOptions:
        deadlines.append(options["deadline"])
        return WorkerOptions(**options)

    monkeypatch.setattr(search, "WorkerOptions", noting)
    command = ["tune", *quick_options(ALICE, "--trials=2", "--out=o", "--confirm-seeds=1")]
    assert hmasd(*command, "--confirm=1", "--timeout=300") == 0
    assert len(deadlines) == 2
    assert deadlines[0] == deadlines[1]
    capfd.readouterr()
    before = Path("o/best.yml").read_text()
    assert hmasd(*command, "--confirm-seeds=2", "--confirm=1", "--timeout=0") == 0  # another round, and no time for it
    out = capfd.readouterr().out
    assert "The time was up. The same command goes on." in out
    assert "The best, trained again on new seeds:" in out
    assert Path("o/best.yml").read_text() == before


def test_the_command_ends_with_it_and_does_it_once(capfd: pytest.CaptureFixture[str]) -> None:
    command = ["tune", *quick_options(ALICE, "--trials=3", "--vary=1", "--confirm=2", "--confirm-seeds=2", "--json")]
    assert hmasd(*command) == 0
    out, err = capfd.readouterr()
    found = json.loads(out)
    assert found["trials"] == {"complete": 3}
    assert "Trainings: 1 per trial; then 2 for each of the best 2 and the defaults, on new seeds." in err
    assert "on seeds 1, 2 that they were not chosen by" in err
    assert len(found["confirmed"]) == 3
    # Numbers are those of the search, from first to last.
    _, _, told = err.partition("Training the best again")
    told, _, _ = told.partition("Trials: ")
    values = {str(one["number"]): f"{one['value']:.4g}" for one in found["confirmed"]}
    assert dict(re.findall(r"trial +(\d) complete: (\S+) in", told)) == values
    assert f"(trial {found['best']['number']})" in told
    assert all(len(one["evaluations"]["by_seed"]) == 2 for one in found["confirmed"])
    assert found["best"]["number"] == found["confirmed"][0]["number"]
    assert os.path.exists("runs/tune-AliceAndBob-v0/best.yml")
    with Path("runs/tune-AliceAndBob-v0/trials.csv").open() as file:
        origins = [row["origin"] for row in csv.DictReader(file)]
    assert (origins[0], "varied in" in origins[1], origins[2]) == ("defaults", True, "")
    assert hmasd(*command) == 0
    out, err = capfd.readouterr()
    assert "Training the best again" not in err
    assert json.loads(out)["confirmed"] == found["confirmed"]
