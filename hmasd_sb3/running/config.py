"""Everything that decides a run: put together of the command line, a YAML file and defaults, checked, kept as JSON."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from hmasd_sb3.running.errors import InputError
from hmasd_sb3.running.hyperparameters import (
    ELSEWHERE,
    NAMES,
    check_together,
    default_of,
    plain_default_of,
    read_hyperparameter,
    read_policy,
)
from hmasd_sb3.running.literals import as_plain, read_integer, read_mapping
from hmasd_sb3.running.options import TrainOptions
from hmasd_sb3.running.shipped import shipped_file, shipped_ids
from hmasd_sb3.running.yaml_file import DEFAULT, Given, names_of_sections, read_assignment, read_section
from hmasd_sb3.validation import nearest, resolve_batch_size
from hmasd_sb3.wrappers.vec import UnknownGameError

# Exact resuming needs the counts that the file may also set to come from one place only.
_OPTION_OF = {"n_timesteps": "--total-timesteps", "n_envs": "--n-envs"}
_SECTION_NAMES = ("n_timesteps", "n_envs", "policy", "normalize", "env_kwargs")
_ZOO_ONLY = {
    "env_wrapper": "no wrapper classes are applied: wrap the game in a function and give --env package.module:function",
    "vec_env_wrapper": "vector environments are not wrapped, but for 'normalize'",
    "frame_stack": "frames are not stacked: the networks are recurrent; a game may stack its own",
    "callback": "the callbacks are its own",
    "monitor_kwargs": "episodes are reported by its own monitors",
}
"""What RL Zoo can do and ``hmasd train`` cannot, and why."""


@dataclass(frozen=True)
class RunConfig:
    """What decides a run: two runs of equal configs, on one machine, are equal."""

    env: str = "AliceAndBob-v0"
    seed: int = 0
    total_timesteps: int = 320_000
    n_envs: int = 32
    n_workers: int | None = None
    policy: str = "MlpPolicy"
    normalize: bool | dict[str, Any] = False
    env_kwargs: dict[str, Any] = field(default_factory=dict)
    hyperparameters: dict[str, Any] = field(default_factory=dict)
    """Those that were given, as plain values."""
    eval_freq: int = 32_000
    """Environment steps; 0: never."""
    eval_episodes: int = 100
    shipped: list[str] = field(default_factory=list)
    """Which of the values, by their names here, are those of the file that comes with the package."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for a JSON file."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> RunConfig:
        """The config that :meth:`as_dict` wrote.

        :raises InputError: if settings are missing or of a wrong type
        """
        known = {entry.name: entry for entry in fields(cls)}
        values = {"shipped": [], **values}  # which runs of old did not have
        if missing := sorted(known.keys() - values.keys()):
            raise InputError(f"holds no {missing[0]!r}; it was not written by this version of hmasd-sb3, or changed since.")
        config = cls(**{name: values[name] for name in known})
        for name in ("seed", "total_timesteps", "n_envs", "eval_freq", "eval_episodes"):
            if not isinstance(getattr(config, name), int):
                raise InputError(f"{name} must be a whole number, got {getattr(config, name)!r}.")
        return config

    def same_run(self, other: RunConfig) -> bool:
        """Whether both are the same but for the length of the training, and for what nobody asked for: the shipped file, and
        defaults, may have changed since."""
        apart = {"total_timesteps", "shipped", "hyperparameters", *(set(self.shipped) & set(other.shipped))}
        asked = {name for config in (self, other) for name in config.hyperparameters if name not in config.shipped}
        return all(
            getattr(self, entry.name) == getattr(other, entry.name) for entry in fields(self) if entry.name not in apart
        ) and all(self.hyperparameter(name) == other.hyperparameter(name) for name in asked)

    def hyperparameter(self, name: str) -> Any:
        """What the run has of one of the constructor's arguments, as a plain value if it is one."""
        return self.hyperparameters.get(name, plain_default_of(name))


@dataclass(frozen=True)
class Request:
    """What a command asks for: the whole config, and which of its settings were given rather than left at defaults."""

    config: RunConfig
    given: dict[str, Any]
    """Settings by name of :class:`RunConfig`, without the hyperparameters."""
    hyperparameters: dict[str, Any]
    from_file: bool
    """Whether ``--config`` named a file, which then gives all hyperparameters: those it leaves out are at their defaults."""
    places: dict[str, str] = field(default_factory=dict)
    """Where arguments of the game were given, by name."""
    note: str = ""
    """Lines about what was taken without being asked for."""


def why_refused(error: BaseException, places: Mapping[str, str]) -> str:
    """What a game or a model objects to, in one line, with the place of the argument that it is about.

    :param error: that was raised while it was made
    :param places: where arguments of the game were given, by name
    """
    text = " ".join(str(error).split())
    if isinstance(error, UnknownGameError):
        return f"{text} `hmasd envs` lists the games."
    for name, where in places.items():
        if re.search(rf"\b{re.escape(name)}\b", text):
            return f"{where}: env_kwargs: {text}"
    return text


def read_request(options: TrainOptions, base: RunConfig | None = None) -> Request:
    """Put together what a command asks for. The command line goes before the file, the file before the defaults.

    Without ``--config`` the file is the one that comes with the package, if that has an entry for the game. Nothing of it
    counts as given.

    :param base: the run to repeat, which stands in the place of a file
    :raises InputError: for the first thing that is wrong, naming file, line, key, value met and the nearest valid name
    """
    env, note = _env_of(options, base)
    if not env.strip():
        raise InputError("--env must be an id such as AliceAndBob-v0 or a place such as package.module:function, got ''.")
    settings = {} if options.config is None else read_section(options.config, env)
    if base is not None:
        values = {name: getattr(base, name) for name in ("policy", "normalize", "env_kwargs")}
        settings = {
            name: Given(value, f"--from {options.from_run}") for name, value in {**values, **base.hyperparameters}.items()
        }
    for text in options.assignments:
        name, value = read_assignment(text)
        if name in _OPTION_OF:
            raise InputError(f"{value.where}: {name} is set by {_OPTION_OF[name]}.")
        settings[name] = value
    shipped = _read_shipped(env) if options.config is None and base is None else {}
    given, hyperparameters = read_settings(settings)
    for name in ("env", "seed", "total_timesteps", "n_envs", "n_workers", "eval_freq", "eval_episodes"):
        if base is not None:
            given[name] = getattr(base, name)
        if getattr(options, name) is not None:
            given[name] = getattr(options, name)
    if env != RunConfig.env:
        given["env"] = env
    if options.config is not None:  # what a file leaves out is at its default, which is a decision too
        given = {"policy": RunConfig.policy, "normalize": False, "env_kwargs": {}, **given}
    taken, taken_hyperparameters = read_settings(shipped)
    config = RunConfig(
        **{**taken, **given},
        hyperparameters={**taken_hyperparameters, **hyperparameters},
        shipped=sorted((taken.keys() - given.keys()) | (taken_hyperparameters.keys() - hyperparameters.keys())),
    )
    check_settings_together(config, {**shipped, **settings})
    if shipped and options.supervised is None:  # else the supervisor has said it
        note = f"Settings for {env} are those of {shipped_file()}, where nothing else is said."
    places = _places({**shipped, **settings}, config)
    return Request(config, given, hyperparameters, options.config is not None or base is not None, places, note)


def _places(settings: dict[str, Given], config: RunConfig) -> dict[str, str]:
    """Where each argument of the game was given."""
    if "env_kwargs" not in settings:
        return {}
    found = settings["env_kwargs"]
    return {name: found.inner.get(name, found.where) for name in config.env_kwargs}


def _env_of(options: TrainOptions, base: RunConfig | None) -> tuple[str, str]:
    """The game that is meant, and a note if the file decided that."""
    if options.env is not None:
        return options.env, ""
    if base is not None:
        return base.env, ""
    names = [] if options.config is None else names_of_sections(options.config)
    if RunConfig.env in names or DEFAULT in names or not names:
        return RunConfig.env, ""
    if len(names) == 1:
        return names[0], f"{options.config} has settings for {names[0]} alone, so that is the environment."
    raise InputError(f"{options.config}: has entries for {names}; choose one of them by --env.")


def check_no_contradiction(request: Request, config: RunConfig, where: str) -> RunConfig:
    """The config that a run goes on with: its own, of a length that may be raised.

    :param request: what the command asks for
    :param config: the run's own
    :param where: the run's folder, for the message
    :raises InputError: if the command gives another value than the run has, naming both
    """
    for name, value in request.given.items():
        own = getattr(config, name)
        if name == "total_timesteps":
            if value < own:
                raise InputError(
                    f"total_timesteps={value} was given, but the run in {where} has {own}; it may be raised, not lowered."
                )
        elif value != own:
            raise InputError(f"{name}={value!r} was given, but the run in {where} has {own!r}: {_REMEDY}.")
    asked = dict(request.hyperparameters)
    if request.from_file:
        asked = {**{name: plain_default_of(name) for name in config.hyperparameters}, **asked}
    for name, value in asked.items():
        own = config.hyperparameter(name)
        if value != own:
            raise InputError(f"{name}={value!r} was given, but the run in {where} has {own!r}: {_REMEDY}.")
    return replace(
        config,
        total_timesteps=request.given.get("total_timesteps", config.total_timesteps),
        shipped=[name for name in config.shipped if name != "total_timesteps" or name not in request.given],
    )


_REMEDY = "leave it out to go on with the run, or start a new run without --resume"


def _read_shipped(env: str) -> dict[str, Given]:
    return read_section(shipped_file(), env) if env in shipped_ids() else {}


def known_settings() -> list[str]:
    """All names that a file may hold."""
    return sorted((*_SECTION_NAMES, *NAMES))


def read_settings(settings: Mapping[str, Given]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Checked settings of the run, by names of :class:`RunConfig`, and hyperparameters, of what file and assignments say.

    :raises InputError: for the first thing that is wrong
    """
    readers: dict[str, tuple[str, Callable[[Any], Any]]] = {
        "n_timesteps": ("total_timesteps", _positive),
        "n_envs": ("n_envs", _positive),
        "policy": ("policy", read_policy),
        "normalize": ("normalize", _read_normalize),
        "env_kwargs": ("env_kwargs", _read_plain_mapping),
    }
    given, hyperparameters = {}, {}
    for name, (value, where, _) in settings.items():
        try:
            if name in readers:
                target, read = readers[name]
                given[target] = read(value)
            elif name in NAMES:
                hyperparameters[name] = read_hyperparameter(name, value)
            elif name in ELSEWHERE:
                raise ValueError(f"{name} is set by {ELSEWHERE[name]}.")
            elif name in _ZOO_ONLY:
                raise ValueError(f"{name} works with RL Zoo alone (hmasd zoo train): in hmasd train {_ZOO_ONLY[name]}.")
            else:
                known = known_settings()
                raise ValueError(f"there is no setting {name!r} (value {value!r}).{nearest(name, known)}")
        except ValueError as error:
            # Some messages name what they are about, others begin with "must be".
            named = re.search(rf"\b{re.escape(name)}\b", str(error), re.IGNORECASE)
            raise InputError(f"{where}: {error}" if named else f"{where}: {name} {error}") from error
    return given, hyperparameters


def check_settings_together(config: RunConfig, settings: Mapping[str, Given]) -> None:
    """Check what depends on several settings; the place named is that of the one to change, if it was given.

    :raises InputError: if they do not fit together
    """
    checks: dict[str, Callable[[RunConfig], None]] = {"policy_kwargs": _check_policy_kwargs, "batch_size": _check_batch_size}
    for name, check in checks.items():
        try:
            check(config)
        except ValueError as error:
            raise InputError(f"{settings[name].where}: {error}" if name in settings else str(error)) from error


def _check_policy_kwargs(config: RunConfig) -> None:
    check_together(config.policy, config.hyperparameters)


def _check_batch_size(config: RunConfig) -> None:
    n_steps = config.hyperparameters.get("n_steps", default_of("n_steps"))
    resolve_batch_size(config.hyperparameters.get("batch_size"), n_steps, config.n_envs)


def _positive(value: Any) -> int:
    number = read_integer(value)
    if isinstance(number, bool) or not isinstance(number, int) or number < 1:
        raise ValueError(f"must be a whole number of at least 1, got {value!r}.")
    return number


def _read_normalize(value: Any) -> bool | dict[str, Any]:
    if isinstance(value, bool):
        return value
    try:
        return _read_plain_mapping(value)
    except ValueError as error:
        raise ValueError(f"must be true, false or the arguments of VecNormalize, got {value!r}.") from error


def _read_plain_mapping(value: Any) -> dict[str, Any]:
    return dict(as_plain(read_mapping(value)))
