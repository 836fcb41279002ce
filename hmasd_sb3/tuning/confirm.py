"""The last round of a search: its best trials once more, on seeds that they were not chosen by.

The best of many values is also the luckiest. With few seeds per trial, much of what the winner is ahead by is chance.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from hmasd_sb3.tuning.study import CONFIRMS, DEFAULTS, ORIGIN, SharedStudy, load_study, open_study

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

_CONFIRMATION = "confirmation"
"""Attribute of a study: the name of the study of its best trials, and how many trials there were then."""


def ranked(shared: SharedStudy) -> list[FrozenTrial]:
    """Complete trials, the highest value first, the earlier one of two equal ones."""
    complete = [trial for trial in shared.trials() if trial.state.name == "COMPLETE"]
    return sorted(complete, key=lambda trial: (-(trial.value or 0.0), trial.number))


def candidates(shared: SharedStudy, number: int) -> list[FrozenTrial]:
    """The best ``number`` complete trials, and the defaults to compare them with."""
    trials = ranked(shared)
    return trials[:number] + [trial for trial in trials[number:] if trial.user_attrs.get(ORIGIN) == DEFAULTS]


def open_confirmation(shared: SharedStudy, number: int, n_seeds: int) -> tuple[SharedStudy, int]:
    """Make the study in which the best trials are trained again, or go on with it.

    :param number: how many, besides the defaults
    :param n_seeds: new seeds for each: those after the study's own
    :return: a study in the same storage, and how many trials it is to have
    """
    spec, again = shared.spec, candidates(shared, number)
    first = max(spec.seeds) + 1
    name = f"{shared.study.study_name}, best {number} of {shared.n_finished()} on {n_seeds} new seeds"
    spec = replace(spec, seeds=list(range(first, first + n_seeds)))
    confirmation, _ = open_study(shared.place, name, spec, {}, again=again)
    shared.study.set_user_attr(_CONFIRMATION, {"study": name, "of": shared.n_finished()})
    return confirmation, len(again)


def confirmed(shared: SharedStudy) -> list[tuple[FrozenTrial, FrozenTrial]]:
    """Pairs of a trial and the one in which it was trained again, the highest new value first.

    Nothing as long as some are not done, or once the study has got more trials.
    """
    found = shared.study.user_attrs.get(_CONFIRMATION)
    if found is None or found["of"] != shared.n_finished():
        return []
    confirmation = load_study(shared.place, found["study"], 0)
    if any(not trial.state.is_finished() for trial in confirmation.trials() if CONFIRMS in trial.user_attrs):
        return []
    by_number = {trial.number: trial for trial in shared.trials()}
    return [(by_number[trial.user_attrs[CONFIRMS]], trial) for trial in ranked(confirmation) if CONFIRMS in trial.user_attrs]


def chosen_trial(shared: SharedStudy) -> FrozenTrial | None:
    """The trial to use: the best on new seeds, or by its own value where none was trained again."""
    again = confirmed(shared)
    if again:
        return again[0][0]
    return next(iter(ranked(shared)), None)
