"""The last round of a search: its best trials once more, on seeds that they were not chosen by.

The best of many values is also the luckiest. With few seeds per trial, much of what the winner is ahead by is chance.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from hmasd_sb3.tuning.objective import HYPERPARAMETERS
from hmasd_sb3.tuning.study import CONFIRMS, DEFAULTS, ORIGIN, SharedStudy, has_crashed, has_value, load_study, open_study

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

_CONFIRMATION = "confirmation"
"""Attribute of a study: the name of the study of its best trials, and how many trials there were then."""
_OF = "of"
"""Attribute of that one: the same number."""


def candidates(shared: SharedStudy, number: int) -> list[FrozenTrial]:
    """The best ``number`` complete trials, and besides the defaults to compare them with, even if these were pruned."""
    defaults = [trial for trial in shared.trials() if trial.user_attrs.get(ORIGIN) == DEFAULTS and has_value(trial)]
    chosen = defaults[:1]
    for trial in shared.ranked():
        # Trials may have come to the same arguments on different ways.
        if all(trial.user_attrs[HYPERPARAMETERS] != other.user_attrs[HYPERPARAMETERS] for other in chosen):
            chosen.append(trial)
    if len(chosen) == len(defaults[:1]):
        return []  # the defaults alone have nothing to be compared with
    return sorted(chosen[: number + len(defaults[:1])], key=lambda trial: -(trial.value or 0.0))


def open_confirmation(shared: SharedStudy, number: int, n_seeds: int) -> tuple[SharedStudy, int]:
    """Make the study in which the best trials are trained again, or go on with it.

    :param number: how many, besides the defaults
    :param n_seeds: new seeds for each: those after the study's own
    :return: a study in the same storage, and how many trials it is to have
    """
    spec, of, again = shared.spec, shared.n_finished(), candidates(shared, number)
    first = max(spec.seeds) + 1
    name = f"{shared.study.study_name}, best {number} of {of} on {n_seeds} new seeds"
    spec = replace(spec, seeds=list(range(first, first + n_seeds)))
    confirmation, _ = open_study(shared.place, name, spec, {}, again=again)
    confirmation.study.set_user_attr(_OF, of)
    return confirmation, len(again)


def accept_confirmation(shared: SharedStudy, confirmation: SharedStudy) -> bool:
    """Let the trials trained again decide which one is chosen, if all have ended; until then an earlier round counts.

    :return: whether they do; not if the study has got further trials meanwhile
    """
    if not has_ended(confirmation) or not confirmation.n_finished():
        return False
    of = confirmation.study.user_attrs[_OF]
    shared.study.set_user_attr(_CONFIRMATION, {"study": confirmation.study.study_name, "of": of})
    return bool(of == shared.n_finished())


def has_ended(confirmation: SharedStudy) -> bool:
    """Whether each of the trials has a value or has failed for good; one may have been begun more than once."""
    waits, done = set(), set()
    for trial in confirmation.trials():
        if has_value(trial):
            done.add(trial.user_attrs[CONFIRMS])
        elif not trial.state.is_finished():
            waits.add(trial.user_attrs[CONFIRMS])
    return waits <= done


def confirmed(shared: SharedStudy) -> list[tuple[FrozenTrial, FrozenTrial]]:
    """Pairs of a trial and the one in which it was trained again, the highest new value first.

    Nothing before all have ended, or once the study has got more trials.
    """
    confirmation = _accepted_confirmation(shared)
    trials = shared.trials()
    again: dict[int, FrozenTrial] = {}
    for trial in [] if confirmation is None else confirmation.ranked():
        again.setdefault(trial.user_attrs[CONFIRMS], trial)
    return [(trials[number], trial) for number, trial in again.items()]


def crashed_again(shared: SharedStudy) -> list[FrozenTrial]:
    """The trials that crashed when they were trained again, as they were then: these cannot be chosen."""
    confirmation = _accepted_confirmation(shared)
    if confirmation is None:
        return []
    done = {trial.user_attrs[CONFIRMS] for trial in confirmation.ranked()}
    crashed = {trial.user_attrs[CONFIRMS]: trial for trial in confirmation.trials() if has_crashed(trial)}
    return [trial for number, trial in crashed.items() if number not in done]


def _accepted_confirmation(shared: SharedStudy) -> SharedStudy | None:
    found = shared.study.user_attrs.get(_CONFIRMATION)
    if found is None or found["of"] != shared.n_finished():
        return None
    return load_study(shared.place, found["study"], 0)


def chosen_trial(shared: SharedStudy) -> FrozenTrial | None:
    """The trial to use: the best on new seeds, or by its own value where none was trained again."""
    again = confirmed(shared)
    if again:
        return again[0][0]
    return next(iter(shared.ranked()), None)
