"""The search space: which of HMASD's arguments are searched, over which range, and what keeps every sample valid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from stable_baselines3.common.utils import LinearSchedule

from hmasd_sb3.running.hyperparameters import NAMES, build_hyperparameters, default_of, read_hyperparameter
from hmasd_sb3.tuning.ranges import COMPLEMENT, DEFAULT, SCHEDULE, Choices, Floats, Integers, Plain, Range
from hmasd_sb3.validation import nearest, resolve_batch_size

if TYPE_CHECKING:
    from optuna.trial import Trial

N_ENVS = "n_envs"
N_MINIBATCHES = "n_minibatches"

SKILLS: dict[str, Range] = {
    "skill_interval": Integers(5, 100, log=True),
    "n_team_skills": Integers(2, 5),
    "n_agent_skills": Integers(2, 8),
    "team_reward_coef": Choices([0.0, 0.1, 1.0, 10.0, 100.0]),
    "team_diversity_coef": Floats(0.005, 2.0, log=True),
    "agent_diversity_coef": Floats(0.005, 2.0, log=True),
    "ent_coef": Floats(1e-3, 0.1, log=True, or_default=True),
    "skill_ent_coef": Floats(5e-4, 0.3, log=True, or_default=True),
}
"""The skills and the weights of every reward, lambda_e, lambda_D, lambda_d, and entropy, lambda_l, lambda_h."""

BATCHES: dict[str, Range] = {
    "n_steps": Integers(40, 300, step=20),
    "batch_size": Choices([1, 2, 4, 8]),
    "n_epochs": Integers(2, 20, log=True),
    "skill_n_epochs": Integers(3, 20, log=True),
    "sequence_length": Choices([5, 10, 20]),
}
"""What an update learns from and how often. The choices of ``batch_size`` are minibatches per rollout."""

PPO: dict[str, Range] = {
    "learning_rate": Floats(5e-5, 3e-3, log=True, or_default=True),
    "discriminator_learning_rate": Floats(5e-5, 3e-3, log=True, or_default=True),
    "discriminator_n_updates": Integers(5, 30),
    "gamma": Floats(0.9, 0.998, log=True, complement=True),
    "skill_gamma": Floats(0.9, 0.998, log=True, complement=True),
    "gae_lambda": Floats(0.8, 0.99, log=True, complement=True),
    "clip_range": Choices([0.1, 0.2, 0.3]),
    "clip_range_vf": Choices([None, 0.2]),
    "max_grad_norm": Choices([0.5, 2.0, 10.0]),
    "target_kl": Choices([0.01, 0.03, 0.1, None]),
    "skill_target_kl": Choices([0.02, 0.05, 0.15, None]),
}
"""The usual ones of PPO, and those of the discriminators."""

GROUPS: dict[str, dict[str, Range]] = {"skills": SKILLS, "batches": BATCHES, "ppo": PPO}


class SearchSpace:
    """Which arguments of ``HMASD`` a study searches; by default those of ``SKILLS``, ``BATCHES`` and ``PPO``.

    :param fixed: arguments that have one value in every trial, as plain values
    :param without: arguments that stay at their defaults
    :param only: the arguments to search, of those that would be, or names of groups: "skills", "batches", "ppo"
    :param ranges: other ranges, or further arguments to search. For ``batch_size``: :class:`Choices` of minibatches per
        rollout
    :raises ValueError: for an unknown argument, or values that HMASD refuses
    """

    def __init__(
        self,
        fixed: Mapping[str, Any] | None = None,
        without: Sequence[str] = (),
        only: Sequence[str] | None = None,
        ranges: Mapping[str, Range] | None = None,
    ) -> None:
        searched: dict[str, Range] = {**SKILLS, **BATCHES, **PPO, **(ranges or {})}
        self.fixed = {_known(name): read_hyperparameter(name, value) for name, value in (fixed or {}).items()}
        for name in without:
            _known(name)
        wanted = set(searched)
        if only is not None:
            wanted = {argument for name in only for argument in _argument_names(name, searched)}
        wanted -= {*without, *self.fixed}
        self.ranges = {name: kind for name, kind in searched.items() if name in wanted}
        """Those that are searched, by argument."""
        for name, kind in self.ranges.items():
            _check_range(name, kind)
        if self.fixed.get("batch_size") is not None and "n_steps" in self.ranges:
            raise ValueError(
                f"batch_size={self.fixed['batch_size']} is fixed and would not divide every rollout, as n_steps is searched. "
                "Fix n_steps as well, or leave batch_size to the search."
            )

    def sample(self, trial: Trial, n_envs: int) -> dict[str, Any]:
        """Let a trial choose, and return constructor arguments as plain values, the fixed ones included.

        :param n_envs: environments trained in side by side, on which the size of minibatches depends
        :raises ValueError: if fixed values do not fit ``n_envs``
        """
        for name, kind in self.ranges.items():
            if name == "batch_size":
                kind.suggest(trial, N_MINIBATCHES)
                # One possible value only: kept beside the others so that they alone tell the size of minibatches.
                trial.suggest_int(N_ENVS, n_envs, n_envs)
            else:
                kind.suggest(trial, name)
        arguments = self.convert(trial.params)
        resolve_batch_size(arguments.get("batch_size"), arguments.get("n_steps", default_of("n_steps")), n_envs)
        return arguments

    def convert(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Constructor arguments, the fixed ones included, of what a trial chose (``trial.params``)."""
        return convert_hmasd({**self.fixed, **params})

    def params_of(self, arguments: Mapping[str, Any], n_envs: int) -> dict[str, Plain]:
        """What a trial would have to choose for these arguments: the reverse of :meth:`convert`, for ``enqueue_trial``.

        :param arguments: constructor arguments; those left out are at their defaults, those not searched do not matter
        :raises ValueError: if one of them lies outside of the space, naming it
        """
        params: dict[str, Plain] = {}
        for name, kind in self.ranges.items():
            value = arguments.get(name, default_of(name))
            if name == "batch_size":
                rollout = n_envs * {"n_steps": default_of("n_steps"), **self.fixed, **arguments}["n_steps"]
                size = resolve_batch_size(value, rollout // n_envs, n_envs)
                params |= {**kind.encode(N_MINIBATCHES, int(rollout // size)), N_ENVS: n_envs}
            elif isinstance(kind, Floats) and kind.or_default and _is_default(name, value):
                params[name + SCHEDULE] = DEFAULT
            else:
                params |= kind.encode(name, value)
        return params

    def longest_rollout(self) -> int:
        """The largest ``n_steps`` that a trial may have."""
        kind = self.ranges.get("n_steps")
        ends = [self.fixed.get("n_steps", default_of("n_steps"))] if kind is None else kind.ends()
        return max(int(steps) for steps in ends)  # type: ignore[arg-type]

    def vary(self, params: Mapping[str, Any], arguments: Sequence[str], generator: np.random.Generator) -> dict[str, Plain]:
        """What a trial would have to choose to differ from another in some arguments, by a step each.

        :param params: what the other one chose
        :param arguments: searched ones
        """
        varied = dict(params)
        for argument in arguments:
            name = N_MINIBATCHES if argument == "batch_size" else argument
            for one in (name, COMPLEMENT + name, name + SCHEDULE):
                varied.pop(one, None)
            varied |= self.ranges[argument].step_from(params, name, generator)
        return varied

    def describe(self) -> dict[str, Any]:
        """The space as plain values, by which two are compared."""
        return {"searched": {name: repr(kind) for name, kind in self.ranges.items()}, "fixed": dict(self.fixed)}


def sample_hmasd(trial: Trial, n_actions: int, n_envs: int, additional_args: dict[str, Any]) -> dict[str, Any]:
    """Let a trial choose from the default space; the signature is that of RL Zoo's samplers.

    :param n_actions: not needed
    :param n_envs: environments trained in side by side
    :param additional_args: not needed
    :return: arguments of ``HMASD``, as plain values
    """
    return SearchSpace().sample(trial, n_envs)


def convert_hmasd(params: dict[str, Any]) -> dict[str, Any]:
    """Arguments of ``HMASD`` of what a trial chose (``trial.params``), as RL Zoo's converters do."""
    arguments: dict[str, Any] = {}
    for name, value in params.items():
        if name.startswith(COMPLEMENT):
            arguments[name.removeprefix(COMPLEMENT)] = round(1.0 - value, 12)
        elif name not in (N_ENVS, N_MINIBATCHES) and not name.endswith(SCHEDULE):
            arguments[name] = value
    n_steps = arguments.get("n_steps", default_of("n_steps"))
    if N_MINIBATCHES in params:
        rollout = n_steps * params[N_ENVS]
        # With few environments not every number of minibatches divides a rollout; then the next lower one that does.
        parts = next(parts for parts in range(params[N_MINIBATCHES], 0, -1) if rollout % parts == 0)
        arguments["batch_size"] = rollout // parts
    if "sequence_length" in arguments:
        arguments["sequence_length"] = min(arguments["sequence_length"], n_steps)
    return arguments


def _is_default(name: str, value: Any) -> bool:
    """Whether a value, which may be a schedule or stand for one, is the argument's default."""
    (value,), default = build_hyperparameters({name: value}).values(), default_of(name)
    if isinstance(value, LinearSchedule) and isinstance(default, LinearSchedule):
        return vars(value) == vars(default)
    return bool(value == default)


def _known(name: str) -> str:
    if name not in NAMES:
        raise ValueError(f"HMASD has no argument {name!r} that a study could set.{nearest(name, NAMES)}")
    return name


def _argument_names(name: str, searched: Mapping[str, Range]) -> list[str]:
    """The arguments that one entry of ``only`` stands for."""
    if name in GROUPS:
        return list(GROUPS[name])
    if name not in searched:
        known = [*GROUPS, *sorted(searched)]
        raise ValueError(f"{name!r} is neither searched nor a group; these are: {known}.{nearest(name, known)}")
    return [name]


def _check_range(name: str, kind: Range) -> None:
    _known(name)
    if name == "batch_size":
        counts = kind.values if isinstance(kind, Choices) else ()
        if not counts or any(isinstance(count, bool) or not isinstance(count, int) or count < 1 for count in counts):
            raise ValueError(
                f"The range of batch_size must be Choices of minibatches per rollout, such as (1, 2); got {kind}."
            )
        return
    for value in kind.ends():
        try:
            read = read_hyperparameter(name, value)
        except ValueError as error:
            raise ValueError(f"The range {kind} of {name}: {error}") from error
        if read != value:
            raise ValueError(f"The range {kind} of {name} holds {value!r}, which would be read as {read!r}.")
    if isinstance(kind, Floats) and isinstance(default_of(name), int) and not isinstance(default_of(name), bool):
        raise ValueError(f"{name} is a whole number: use Integers, not {kind}.")
