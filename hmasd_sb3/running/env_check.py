"""Tries a game out before days are spent on it: what would ruin a training shows within two seconds of play."""

from __future__ import annotations

import re
import sys
import time
import traceback
import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
from gymnasium.utils.env_checker import data_equivalence

from hmasd_sb3.envs import JAXMARL_IDS
from hmasd_sb3.running.blame import raised_by_environment
from hmasd_sb3.running.config import RunConfig
from hmasd_sb3.running.cores import usable_cores
from hmasd_sb3.running.errors import InputError
from hmasd_sb3.running.trial_team import Step, TrialTeam, random_action
from hmasd_sb3.running.trial_views import observation_faults
from hmasd_sb3.saving.generators import global_generators_state, restore_global_generators

MAX_STEPS = 1000
MAX_SECONDS = 2.0
MIN_STEPS = 20
"""So many are taken even if the time is up, as the first one may be compiled; unless they are extremely slow."""
_PATIENCE = 5.0
"""How many times the time that was allowed they may take."""
REPLAYED_STEPS = 50
"""So many steps are taken a second time, from the same seed."""
SLOW_STEP = 1e-3
"""Seconds per step from which on worker processes pay."""
_SEED = 2**20 + 7
"""Of the trial alone: far from the seeds that people choose."""

REFUSALS = (ValueError, TypeError, ImportError, FileNotFoundError)
"""What is raised where there is no such game, or it does not want its arguments."""
MAKING = "making the game"
SAID = "no warnings from the game or a library"
STATE = "state for exact resume"
MAX_SAID = 5
_OF_DEVELOPERS = (DeprecationWarning, PendingDeprecationWarning, ResourceWarning)

Level = Literal["error", "warning", "note"]


class Finding(NamedTuple):
    """Something about a game that a person should know before a long run."""

    level: Level
    """An "error" would ruin the training or end it, a "warning" makes it worse or not repeatable, a "note" is good to know."""
    convention: str
    """The rule that was broken, in a few words."""
    what: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.convention}: {self.what} {self.remedy}".rstrip()


@dataclass
class TrialReport:
    """What a trial found."""

    env: str
    steps: int = 0
    episodes: int = 0
    """That came to their end."""
    seconds_per_step: float | None = None
    """Of one environment in this process, without the first steps; None if there were too few."""
    findings: list[Finding] = field(default_factory=list)
    doing: str = MAKING
    """What the game was asked for last."""

    def add(self, level: Level, convention: str, what: str, remedy: str) -> None:
        """Note a finding, once per convention."""
        if not any(one.convention == convention for one in self.findings):
            self.findings.append(Finding(level, convention, what, remedy))

    @property
    def errors(self) -> list[Finding]:
        """What would ruin a training."""
        return [one for one in self.findings if one.level == "error"]

    def summary(self) -> str:
        """One line about what was done."""
        speed = "" if self.seconds_per_step is None else f", {1000 * self.seconds_per_step:.3g} ms per step"
        return f"{self.steps:,} random steps of one {self.env}, {self.episodes:,} episodes to their end{speed}"

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "env": self.env,
            "steps": self.steps,
            "episodes": self.episodes,
            "seconds_per_step": self.seconds_per_step,
            "findings": [one._asdict() for one in self.findings],
        }


def try_environment(config: RunConfig, max_steps: int = MAX_STEPS, max_seconds: float = MAX_SECONDS) -> TrialReport:
    """Make one copy of a run's game, play it at random, and look at everything it returns.

    The copy is made, seeded, played and closed here. Global random generators are as before afterwards, so that a training
    that follows is the same with and without a trial.

    :param config: of the run
    :param max_steps: how many steps are taken at most
    :param max_seconds: how long is played, but for the first :data:`MIN_STEPS` steps, which may take five times as long;
        making the game and its first reset are not counted
    :raises ValueError: if there is no such game, or it is no team; or another of :data:`REFUSALS`
    """
    report = TrialReport(config.env)
    with _generators_left_alone(), warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            with closing(TrialTeam(config.env, config.env_kwargs)) as team:
                report.doing = "the first reset"
                _try(team, config, report, max_steps, max_seconds)
        except (Exception, SystemExit) as error:
            refused = report.doing == MAKING and isinstance(error, REFUSALS)
            if refused or not raised_by_environment(error):
                raise
            what = f"{report.doing} raised {type(error).__name__}: {_plain(str(error)).rstrip('.')}."
            place = traceback.extract_tb(error.__traceback__)[-1]
            report.add("error", "no exceptions", what, f"Mend the game ({place.filename}, line {place.lineno}).")
    texts = dict.fromkeys(_plain(str(one.message)) for one in said if not issubclass(one.category, _OF_DEVELOPERS))
    report.findings += [Finding("warning", SAID, text, "") for text in list(texts)[:MAX_SAID]]
    return report


def check_before_training(config: RunConfig, with_notes: bool = True) -> bool:
    """Try the game of a run out and tell what was found.

    :param with_notes: also what does no harm, such as about going on from checkpoints
    :return: whether it was told that the game cannot store its state
    :raises InputError: if something would ruin the run; nothing was written
    """
    if config.env in JAXMARL_IDS:  # this package's own, and compiled once more for the trial
        return False
    try:
        report = try_environment(config)
    except REFUSALS as error:
        print(f"Note: {config.env} was not tried out, as no further copy can be made: {_plain(str(error))}", flush=True)
        return False
    for finding in report.findings:
        if finding.convention == SAID:
            continue  # will be said again
        if finding.level == "warning":
            print(f"Warning: {finding}", file=sys.stderr, flush=True)
        elif finding.level == "note" and with_notes:
            print(f"Note: {finding}", flush=True)
    if report.errors:
        raise InputError(
            f"{report.errors[0]} (Found by playing {config.env} at random before the training; --no-check leaves that out.)"
        )
    print(f"Checked: {report.summary()}.", flush=True)
    return with_notes and any(finding.convention == STATE for finding in report.findings)


def _try(team: TrialTeam, config: RunConfig, report: TrialReport, max_steps: int, max_seconds: float) -> None:
    rng = np.random.default_rng(_SEED)
    first = team.reset(_SEED)
    _look_at_observation(team, first, report, "the first observation")
    actions: list[Any] = []
    answers: list[Step] = []
    seconds: list[float] = []
    observation, ended = first, False
    begun = time.perf_counter()
    while report.steps < max_steps and not report.errors:
        allowed = max_seconds * (_PATIENCE if report.steps < MIN_STEPS else 1.0)
        if time.perf_counter() - begun >= allowed:
            break
        if ended:
            report.doing = f"the reset after step {report.steps:,}"
            observation, ended = team.reset(None), False
            _look_at_observation(team, observation, report, f"the observation after the reset at step {report.steps:,}")
            if report.errors:
                return
        action = random_action(team.action_space, observation, rng)
        report.doing = f"step {report.steps + 1:,}"
        started = time.perf_counter()
        step = team.step(action)
        seconds.append(time.perf_counter() - started)
        report.steps += 1
        _look_at_step(team, step, report)
        if report.episodes == 0 and len(actions) < REPLAYED_STEPS:
            actions.append(action)
            answers.append(step)
        observation, ended = step.observation, step.terminated or step.truncated
        report.episodes += ended
    if report.errors:
        return
    rest = seconds[len(seconds) // 10 :] if len(seconds) >= 10 else []
    report.seconds_per_step = float(np.mean(rest)) if rest else None
    _look_at_speed(team, config, report)
    _look_at_ends(team, report, max_steps)
    _look_at_repetition(team, first, list(zip(actions, answers, strict=True)), report, max_seconds)
    _look_at_state(team, report)


def _look_at_observation(team: TrialTeam, observation: Any, report: TrialReport, where: str) -> None:
    for level, convention, what, remedy in observation_faults(team.observation_space, observation):
        report.add(level, convention, f"{where} {what}", remedy)


def _look_at_step(team: TrialTeam, step: Step, report: TrialReport) -> None:
    where = f"at step {report.steps:,}"
    _look_at_observation(team, step.observation, report, f"the observation {where}")
    reward = np.asarray(step.reward)
    if reward.size != 1 or reward.dtype.kind not in "fiub":
        report.add("error", "one reward per team", f"the reward {where} is {step.reward!r}.", "Return one number.")
    elif not np.isfinite(reward).all():
        report.add("error", "finite rewards", f"the reward {where} is {reward.item()}.", "Mend the game's reward.")
    if step.terminated and step.truncated:
        report.add(
            "warning",
            "one end per episode",
            f"the episode that ended {where} was both terminated and truncated; it counts as terminated.",
            "Report the time limit alone (truncated) unless the game itself has ended.",
        )


def _look_at_speed(team: TrialTeam, config: RunConfig, report: TrialReport) -> None:
    per_step = report.seconds_per_step
    if per_step is None or per_step < SLOW_STEP or team.vectorised or config.n_workers is not None:
        return
    hours = per_step * config.total_timesteps / 3600
    workers = min(int(usable_cores()), config.n_envs)
    report.add(
        "note",
        "quick steps",
        f"a step takes {1000 * per_step:.3g} ms, {hours:.1f} hours for {config.total_timesteps:,} steps in one process.",
        f"--n-workers {workers} spreads the environments over {workers} processes."
        if workers > 1
        else "More cores would help.",
    )


def _look_at_ends(team: TrialTeam, report: TrialReport, max_steps: int) -> None:
    if report.episodes:
        return
    report.add(
        "warning" if report.steps >= max_steps else "note",
        "episodes end",
        f"none ended within {report.steps:,} random steps.",
        "If the game has no time limit, give it one (max_episode_steps, max_cycles or the like).",
    )


def _look_at_repetition(
    team: TrialTeam, first: Any, played: list[tuple[Any, Step]], report: TrialReport, max_seconds: float
) -> None:
    """Whether the same seed and the same actions bring the same episode again.

    :param played: actions from the first reset on, and what the game answered
    """
    report.doing = "a second reset with the same seed, or a step after it,"
    if not data_equivalence(first, team.reset(_SEED)):
        report.add(
            "warning",
            "reset(seed=...) decides the episode",
            "two resets with the same seed gave different observations, so no run can be repeated.",
            "Draw everything random from a generator that reset(seed=...) seeds.",
        )
        return
    begun = time.perf_counter()
    for number, (action, before) in enumerate(played, 1):
        if time.perf_counter() - begun >= max_seconds:
            return
        again = team.step(action)
        if not (data_equivalence(before[:4], again[:4])):
            report.add(
                "warning",
                "same seed, same actions, same episode",
                f"step {number} after the same reset, with the same actions, came out differently, so no run can be repeated.",
                "Draw everything random from a generator that reset(seed=...) seeds, and keep nothing from earlier episodes.",
            )
            return


def _look_at_state(team: TrialTeam, report: TrialReport) -> None:
    reason = team.why_no_state()
    if reason is not None:
        report.add(
            "note",
            STATE,
            reason,
            "Without, a run that is interrupted goes on with new episodes, not exactly.",
        )


def _plain(text: str) -> str:
    """A warning without Gymnasium's colours, in one line."""
    return " ".join(re.sub("\x1b\\[[0-9;]*m", "", text).split())


@contextmanager
def _generators_left_alone() -> Iterator[None]:
    before = global_generators_state()
    try:
        yield
    finally:
        restore_global_generators(before)
