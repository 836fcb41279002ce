"""What a study came to: tables and files for people and programs."""

from __future__ import annotations

import csv
import io
import math
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from hmasd_sb3.running.errors import InputError
from hmasd_sb3.running.files import replace_atomically, write_json
from hmasd_sb3.running.folder import git_commit
from hmasd_sb3.running.versions import versions
from hmasd_sb3.tuning.confirm import chosen_trial, confirmed, crashed_again
from hmasd_sb3.tuning.objective import ERROR, EVALUATIONS, HYPERPARAMETERS, SECONDS, seed_values
from hmasd_sb3.tuning.study import CONFIRMS, CRASHED, DEFAULTS, KIND, ORIGIN, RETRY_OF, SharedStudy

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial


def state_of(trial: FrozenTrial) -> str:
    """How a trial ended, in one word: complete, pruned, crashed, killed, interrupted; or running, waiting."""
    state = str(trial.state.name).lower()
    return str(trial.user_attrs.get(KIND, CRASHED)) if state == "fail" else state


def counts(shared: SharedStudy) -> dict[str, int]:
    """Trials by how they ended."""
    found: dict[str, int] = {}
    for trial in shared.trials():
        found[state_of(trial)] = found.get(state_of(trial), 0) + 1
    return found


def summary(shared: SharedStudy) -> dict[str, Any]:
    """The study as plain values."""
    best = chosen_trial(shared)
    on_new_seeds = {trial.number: again.value for trial, again in confirmed(shared)}
    return {
        "study": shared.study.study_name,
        "storage": shared.place.shown,
        "settings": vars(shared.spec),
        "trials": counts(shared),
        "best": None if best is None else {**_as_dict(best), "value_on_new_seeds": on_new_seeds.get(best.number)},
        "confirmed": [
            {"number": trial.number, "value": again.value, "evaluations": again.user_attrs.get(EVALUATIONS)}
            for trial, again in confirmed(shared)
        ],
        "versions": {**versions(None), "optuna": metadata.version("optuna")},
        "git_commit": git_commit(),
    }


def _as_dict(trial: FrozenTrial) -> dict[str, Any]:
    return {
        "number": trial.number,
        "state": state_of(trial),
        "value": trial.value,
        "seconds": trial.user_attrs.get(SECONDS),
        "origin": trial.user_attrs.get(ORIGIN),
        "hyperparameters": trial.user_attrs.get(HYPERPARAMETERS),
        "evaluations": trial.user_attrs.get(EVALUATIONS),
    }


def best_yaml(shared: SharedStudy) -> str:
    """The best trial in RL Zoo's format, for ``hmasd train --config``.

    :raises InputError: if no trial is complete
    """
    best, spec = chosen_trial(shared), shared.spec
    if best is None:
        raise InputError(f"--study {shared.study.study_name}: has no complete trial.")
    settings: dict[str, Any] = {"n_timesteps": spec.total_timesteps, "n_envs": spec.n_envs, "policy": spec.policy}
    if spec.normalize is not False:
        settings["normalize"] = spec.normalize
    if spec.env_kwargs:
        settings["env_kwargs"] = spec.env_kwargs
    settings |= best.user_attrs[HYPERPARAMETERS]
    origin = f" ({best.user_attrs[ORIGIN]})" if ORIGIN in best.user_attrs else ""
    made = " ".join(f"{name} {version}" for name, version in summary(shared)["versions"].items())
    again = [line.strip() for line in confirmation_table(shared)]
    lines = [
        f"# Trial {best.number}{origin} of the study {shared.study.study_name!r} in {shared.place.shown}, "
        f"{_chosen_of(shared)}.",
        *(["# Values on new seeds:", *(f"#   {line}" for line in again)] if again else []),
        f"# Value in the search {best.value:.4g}{_pruned(best)}; last evaluation by seed: {_last(best)}."
        + ("" if again else " The best of many was also lucky: judge it by seeds that it was not chosen by."),
        f"# A value: mean of the last third of {spec.n_evaluations} evaluations of {spec.n_eval_episodes} episodes each, "
        f"{spec.aggregate} over seeds, {spec.total_timesteps:,} steps per seed.",
        f"# {made}",
    ]
    text: str = yaml.safe_dump({spec.env: settings}, sort_keys=False, default_flow_style=False)
    return "\n".join(lines) + "\n" + text


def _pruned(trial: FrozenTrial) -> str:
    """Also the defaults are trained again after they were pruned, and may be chosen then."""
    return f" (pruned at step {trial.last_step:,})" if trial.state.name == "PRUNED" else ""


def _chosen_of(shared: SharedStudy) -> str:
    again = len(confirmed(shared))
    among = f"of the {again} that were trained again, on new seeds, " if again else ""
    return f"the best {among}of {shared.n_finished()}"


def trials_csv(shared: SharedStudy) -> str:
    """All trials, one line each; what was chosen as constructor arguments."""
    trials = shared.trials()
    arguments = sorted({name for trial in trials for name in trial.user_attrs.get(HYPERPARAMETERS, {})})
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    on_new_seeds = {trial.number: again.value for trial, again in confirmed(shared)}
    writer.writerow(
        ["number", "state", "value", "value_on_new_seeds", "last_step", "seconds", "origin", "retry_of", "error", *arguments]
    )
    for trial in trials:
        attributes, chosen = trial.user_attrs, trial.user_attrs.get(HYPERPARAMETERS, {})
        named = [attributes.get(name) for name in (SECONDS, ORIGIN, RETRY_OF, ERROR)]
        steps = max(trial.intermediate_values, default=None)
        beginning = [trial.number, state_of(trial), trial.value, on_new_seeds.get(trial.number), steps]
        writer.writerow([*beginning, *named, *(chosen.get(name) for name in arguments)])
    return text.getvalue()


def table(shared: SharedStudy, n_rows: int = 5) -> list[str]:
    """The best complete trials, one line each."""
    return [_row(trial, trial) for trial in shared.ranked()[:n_rows]]


def confirmation_table(shared: SharedStudy) -> list[str]:
    """What trials came to that were trained again, one line each, compared with the defaults."""
    pairs = confirmed(shared)
    defaults = next((again for trial, again in pairs if trial.user_attrs.get(ORIGIN) == DEFAULTS), None)
    crashed = []
    for again in crashed_again(shared):
        error = str(again.user_attrs.get(ERROR, "no error was kept")).splitlines()[0]
        crashed.append(f"  trial {again.user_attrs[CONFIRMS]:>4}   crashed: {error}")
    aggregate = shared.spec.aggregate
    return [_row(trial, again, _ahead(again, defaults, aggregate)) for trial, again in pairs] + crashed


def _row(trial: FrozenTrial, measured: FrozenTrial, remark: str = "") -> str:
    origin = f"  {trial.user_attrs[ORIGIN]}" if ORIGIN in trial.user_attrs else ""
    value = f"  trial {trial.number:>4}   value {measured.value:>8.4g}"
    return f"{value}   last evaluation by seed: {_last(measured)}{remark}{origin}"


def _last(trial: FrozenTrial) -> str:
    by_seed = trial.user_attrs.get(EVALUATIONS, {}).get("by_seed", [])
    return " ".join(f"{values[-1]:.3g}" for values in by_seed)


def _ahead(trial: FrozenTrial, defaults: FrozenTrial | None, aggregate: str) -> str:
    """How far a trial is ahead of the defaults on the same seeds, and the standard error of that if values are means."""
    if defaults is None or trial.number == defaults.number:
        return ""
    mine, theirs = (np.array(seed_values(one.user_attrs[EVALUATIONS]["by_seed"])) for one in (trial, defaults))
    ahead = mine - theirs
    if len(ahead) < 2 or aggregate != "mean":
        return f"   {trial.value - defaults.value:+.3g} against the defaults"  # type: ignore[operator]
    error = ahead.std(ddof=1) / math.sqrt(len(ahead))
    return f"   {ahead.mean():+.3g} ± {error:.2g} (standard error) against the defaults"


def write_files(shared: SharedStudy, out: Path) -> list[Path]:
    """Write ``trials.csv``, ``study.json`` and, if a trial is complete, ``best.yml``.

    :return: what was written
    """
    out.mkdir(parents=True, exist_ok=True)
    files = {"trials.csv": trials_csv(shared)}
    if chosen_trial(shared) is not None:
        files["best.yml"] = best_yaml(shared)
    for name, text in files.items():
        replace_atomically(out / name, lambda partial, text=text: partial.write_text(text, encoding="utf-8"))  # type: ignore[misc]
    write_json(out / "study.json", summary(shared))
    return [out / name for name in (*files, "study.json")]
