"""A study that several workers share: making it once, dealing out trials, and putting away those of dead workers.

All that decides who does what happens while the study is held exclusively, so the number of trials is exact.
"""

from __future__ import annotations

import json
import math
import os
import socket
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from enum import Enum, auto
from typing import TYPE_CHECKING, Any

import numpy as np

from hmasd_sb3.running.errors import InputError
from hmasd_sb3.running.hyperparameters import default_of
from hmasd_sb3.tuning.objective import ERROR, SETTINGS, Objective, make_objective
from hmasd_sb3.tuning.space import SearchSpace
from hmasd_sb3.tuning.storage import Place
from hmasd_sb3.validation import resolve_batch_size

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial, Trial

SPEC = "hmasd_tune"
WORKER, KIND, RETRY_OF, ATTEMPT, ORIGIN = "worker", "kind", "retry_of", "attempt", "origin"
CONFIRMS = "confirms"
"""Number of the trial, in another study, whose arguments a trial has."""
QUEUED_ONLY = "queued_only"
"""Attribute of a study all of whose trials were asked for: no sampler adds any."""
VARIES = "varies"
"""Number of the trial that a trial is a variation of."""
DEFAULTS = "defaults"
"""Origin of the trial that the defaults, or the shipped settings, make."""
KILLED, INTERRUPTED, CRASHED = "killed", "interrupted", "crashed"
_DRAWS = 100
"""So often a variation is drawn that was tried before; then it is the sampler's turn."""
MAX_ATTEMPTS = 3
"""So often a trial is begun whose worker is killed each time: perhaps it is the trial that needs too much memory."""


@dataclass(frozen=True)
class Spec:
    """What makes the values of a study's trials comparable; kept in the study."""

    env: str
    total_timesteps: int
    n_envs: int
    policy: str
    normalize: bool | dict[str, Any]
    env_kwargs: dict[str, Any]
    seeds: list[int]
    n_evaluations: int
    n_eval_episodes: int
    aggregate: str
    metric: str
    deterministic: bool
    fixed: dict[str, Any]
    search: list[str] | None
    space: dict[str, str] = field(default_factory=dict)
    """The ranges of what is searched, as texts; another version of this package may have others."""

    def search_space(self) -> SearchSpace:
        """What the trials choose from."""
        return SearchSpace(fixed=self.fixed, only=self.search)

    def objective(self, n_workers: int | None = None, stop: Any = None) -> Objective:
        """What the trials are measured by."""
        left_out = ("env", "total_timesteps", "fixed", "search", "space")
        arguments = {name: value for name, value in asdict(self).items() if name not in left_out}
        return make_objective(
            self.env, self.total_timesteps, space=self.search_space(), n_workers=n_workers, stop=stop, **arguments
        )

    def differences(self, other: Spec) -> list[str]:
        """What is not the same, such as "total_timesteps 1000, not 2000"."""
        mine, theirs = asdict(self), asdict(other)
        return [f"{name} {mine[name]!r}, not {theirs[name]!r}" for name in mine if mine[name] != theirs[name]]


class Turn(Enum):
    """What a worker is to do that gets no trial."""

    WAIT = auto()
    """All trials that are wanted are at work; one of them may still break down."""
    DONE = auto()
    BROKEN = auto()
    """Too many trials failed."""


class SharedStudy:
    """A study and the storage it is in.

    :param place: the storage
    :param study: Optuna's
    :param first_number: number of the first trial that may be begun by this command; failures before it are history
    :param n_variations: how many trials are to be variations of others
    :param seed: by which it is drawn what is varied
    """

    def __init__(self, place: Place, study: Study, first_number: int = 0, n_variations: int = 0, seed: int = 0) -> None:
        self.place = place
        self.study = study
        self.first_number = first_number
        self.n_variations = n_variations
        self.seed = seed
        self.worker = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self._study_id = place.storage.get_study_id_from_name(study.study_name)

    @property
    def spec(self) -> Spec:
        """What the study was made with."""
        return Spec(**json.loads(self.study.user_attrs[SPEC]))

    def trials(self) -> list[FrozenTrial]:
        """All trials, by number."""
        return self.study.get_trials(deepcopy=False)

    def n_finished(self) -> int:
        """Trials that have a value: complete or pruned."""
        return sum(map(has_value, self.trials()))

    def ranked(self) -> list[FrozenTrial]:
        """Complete trials, the highest value first, the earlier one of two equal ones."""
        complete = [trial for trial in self.trials() if trial.state.name == "COMPLETE"]
        return sorted(complete, key=lambda trial: (-(trial.value or 0.0), trial.number))

    def sign_in(self) -> None:
        """Be known as alive, for as long as this process is."""
        self.place.leases.hold(self.worker)

    def enqueue(self, arguments: dict[str, Any], origin: str) -> None:
        """Let an early trial be one of given arguments; those that are not searched come with it as its own.

        :param arguments: of ``HMASD``; they go before those that are fixed
        :param origin: said about the trial
        :raises ValueError: if they lie outside of the space, or do not fit what is fixed
        """
        spec = self.spec
        space = spec.search_space()
        params = space.params_of(arguments, spec.n_envs)
        own = {name: value for name, value in arguments.items() if name not in space.ranges}
        together = {**space.convert(params), **own}
        resolve_batch_size(together.get("batch_size"), together.get("n_steps", default_of("n_steps")), spec.n_envs)
        self.study.enqueue_trial(params, user_attrs={ORIGIN: origin, **({SETTINGS: own} if own else {})})

    def enqueue_again(self, trial: FrozenTrial) -> None:
        """Let an early trial be one of another study with the same space, unless it has a value, or is at work, or waits."""
        if all(one.user_attrs.get(CONFIRMS) != trial.number or one.state.name == "FAIL" for one in self.trials()):
            kept = {name: trial.user_attrs[name] for name in (SETTINGS,) if name in trial.user_attrs}
            self.study.enqueue_trial(
                trial.params, user_attrs={**kept, CONFIRMS: trial.number, ORIGIN: f"trial {trial.number}"}
            )

    def next_trial(self, n_trials: int, max_failures: int) -> Trial | Turn:
        """Begin a trial, unless enough have a value or are at work.

        :param n_trials: how many are to have a value in the end
        :param max_failures: so many failures in a row, and no further trial is begun; one is enough while none has a value,
            unless all trials were asked for: the others may well do better then
        """
        with self.place.leases.exclusive():
            self._put_away_dead()
            trials = self.trials()
            finished = sum(map(has_value, trials))
            running = sum(trial.state.name == "RUNNING" for trial in trials)
            queued_only = self.study.user_attrs.get(QUEUED_ONLY, False)
            if finished >= n_trials:
                return Turn.DONE
            if self.failures_in_a_row() >= (max_failures if finished or queued_only else 1):
                return Turn.BROKEN
            if finished + running >= n_trials:
                return Turn.WAIT
            if not any(trial.state.name == "WAITING" for trial in trials):
                if queued_only:
                    return Turn.WAIT if running else Turn.DONE
                enqueue_variation(self)
            trial = self.study.ask()
            trial.set_user_attr(WORKER, self.worker)
            return trial

    def failures_in_a_row(self) -> int:
        """Crashes since the last trial that has a value, without those of earlier commands."""
        ended = [trial for trial in self.trials() if trial.state.is_finished() and trial.number >= self.first_number]
        count = 0
        for trial in sorted(ended, key=lambda one: str(one.datetime_complete), reverse=True):
            if trial.state.name != "FAIL":
                break
            count += has_crashed(trial)
        return count

    def last_failure(self) -> FrozenTrial | None:
        """The latest crash."""
        crashed = [trial for trial in self.trials() if has_crashed(trial)]
        return max(crashed, key=lambda one: str(one.datetime_complete), default=None)

    def end(self, trial: Trial, value: float | None = None, pruned: bool = False) -> None:
        """Say how a trial ended: with a value, pruned, or, without either, failed."""
        from optuna.exceptions import UpdateFinishedTrialError
        from optuna.trial import TrialState

        state = TrialState.COMPLETE if value is not None else TrialState.PRUNED if pruned else TrialState.FAIL
        try:
            self.study.tell(trial.number, value, state=state)
        except (UpdateFinishedTrialError, ValueError) as error:
            ended = self.study.get_trials(deepcopy=False)[trial.number]
            if not ended.state.is_finished():
                raise
            print(f"trial {trial.number}: was put away by another worker ({error})", flush=True)

    def give_back(self, trial: Trial) -> None:
        """Put away a trial that was interrupted, and let another take its place."""
        with self.place.leases.exclusive():
            frozen = self.trials()[trial.number]
            if not frozen.state.is_finished():
                self._put_away(frozen, INTERRUPTED, "a stop was requested; another trial takes its place")

    def put_away_dead(self) -> None:
        """Mark trials as failed whose workers are gone, and let others take their places."""
        with self.place.leases.exclusive():
            self._put_away_dead()

    def _put_away_dead(self) -> None:
        for trial in self.trials():
            if trial.state.name != "RUNNING":
                continue
            worker = trial.user_attrs.get(WORKER)
            # Without a name it was begun by a worker that died at once, as the name follows while the study is held.
            if worker is None or not self.place.leases.is_held(worker):
                text = f"the worker {worker} is gone without a word: killed by hand, by the system, or with its machine"
                self._put_away(trial, KILLED, text)

    def _put_away(self, trial: FrozenTrial, kind: str, error: str) -> None:
        from optuna.trial import TrialState

        attempt = trial.user_attrs.get(ATTEMPT, 1)
        again = kind == INTERRUPTED or attempt < MAX_ATTEMPTS
        trial_id = self.place.storage.get_trial_id_from_study_id_trial_number(self._study_id, trial.number)
        kind = kind if again else CRASHED
        for name, value in ((KIND, kind), (ERROR, error if again else f"{error}; so {attempt} times, not tried again")):
            self.place.storage.set_trial_user_attr(trial_id, name, value)
        # First the one that takes its place: to be killed in between makes one trial too many, not one too few.
        if again:
            params = _params_of(trial)
            kept = {name: trial.user_attrs[name] for name in (SETTINGS, ORIGIN, CONFIRMS, VARIES) if name in trial.user_attrs}
            attempts = attempt + (kind == KILLED)
            self.study.enqueue_trial(params, user_attrs={**kept, RETRY_OF: trial.number, ATTEMPT: attempts})
        self.study.tell(trial.number, state=TrialState.FAIL)


def enqueue_variation(shared: SharedStudy) -> None:
    """Let the next trial be the best one but for a step in an eighth of its arguments, unless there are enough of that kind.

    A sparse reward tells nothing about a configuration that never earns it, and of those drawn from the whole space hardly any
    does within a short budget. Around one that works there is something to learn from. Until it has ended, the first one of
    the study stands in for the best, if it was asked for.
    """
    trials = shared.trials()
    first = [trial for trial in trials[:1] if ORIGIN in trial.user_attrs]
    best = shared.ranked() if not first or first[0].state.is_finished() else []
    parent = next(iter([*best, *first]), None)
    n_before = sum(VARIES in trial.user_attrs and RETRY_OF not in trial.user_attrs for trial in trials)
    if parent is None or n_before >= shared.n_variations:
        return
    space = shared.spec.search_space()
    names = sorted(space.ranges)
    generator = np.random.default_rng([shared.seed, len(trials)])
    known = [_params_of(trial) for trial in trials]
    for _ in range(_DRAWS):
        arguments = sorted(generator.choice(names, math.ceil(len(names) / 8), replace=False).tolist())
        params = space.vary(_params_of(parent), arguments, generator)
        if params not in known:
            own = {name: parent.user_attrs[name] for name in (SETTINGS,) if name in parent.user_attrs}
            origin = f"trial {parent.number}, varied in {', '.join(arguments)}"
            shared.study.enqueue_trial(params, user_attrs={**own, VARIES: parent.number, ORIGIN: origin})
            return


def _params_of(trial: FrozenTrial) -> dict[str, Any]:
    """What a trial chose, or was asked to."""
    return {**trial.system_attrs.get("fixed_params", {}), **trial.params}


def has_value(trial: FrozenTrial) -> bool:
    """Whether a trial is complete or pruned."""
    return trial.state.name in ("COMPLETE", "PRUNED")


def has_crashed(trial: FrozenTrial) -> bool:
    """Whether a trial failed by itself: neither was its worker killed nor was it interrupted."""
    return trial.state.name == "FAIL" and bool(trial.user_attrs.get(KIND, CRASHED) == CRASHED)


def open_study(
    place: Place,
    name: str,
    spec: Spec,
    first_trials: dict[str, dict[str, Any]],
    again: Sequence[FrozenTrial] = (),
) -> tuple[SharedStudy, bool]:
    """Make a study, or go on with one.

    :param first_trials: arguments of ``HMASD`` that a new study tries first, by what they are called
    :param again: trials of another study that this one is to have; a new one then has no others
    :return: the study, and whether it is new
    :raises InputError: if there is a study of that name whose trials were made otherwise, naming the differences
    """
    import optuna

    spec = Spec(**{**asdict(spec), "space": spec.search_space().describe()["searched"]})
    with place.leases.exclusive():
        if name in optuna.get_all_study_names(storage=place.storage):
            study = optuna.load_study(study_name=name, storage=place.storage)
        else:
            study = optuna.create_study(study_name=name, storage=place.storage, direction="maximize")
        is_new = SPEC not in study.user_attrs and not study.get_trials(deepcopy=False)
        if is_new:
            study.set_user_attr(QUEUED_ONLY, bool(again))
            study.set_user_attr(SPEC, json.dumps(asdict(spec)))
        elif SPEC not in study.user_attrs:
            raise InputError(f"--study {name}: the study in {place.shown} was not made by hmasd tune; choose another name.")
        trials = study.get_trials(deepcopy=False)
        # Those that wait, as an earlier command was stopped, are this one's.
        first_number = min((trial.number for trial in trials if not trial.state.is_finished()), default=len(trials))
        shared = SharedStudy(place, study, first_number)
        if differences := shared.spec.differences(spec):
            raise InputError(
                f"--study {name}: the study in {place.shown} was made with {'; '.join(differences)}. Its trials and new ones "
                "could not be compared: give the same again, or another --study."
            )
        for origin, arguments in first_trials.items() if is_new else ():
            try:
                shared.enqueue(arguments, origin)
            except ValueError as error:
                print(f"{origin}: not tried first, as they lie outside of the search space: {error}.", flush=True)
        for trial in again:
            shared.enqueue_again(trial)
    return shared, is_new


def load_study(place: Place, name: str, first_number: int, n_variations: int = 0, seed: int = 0) -> SharedStudy:
    """A study that is there, for a worker; the parameters are those of :class:`SharedStudy`."""
    import optuna

    return SharedStudy(place, optuna.load_study(study_name=name, storage=place.storage), first_number, n_variations, seed)
