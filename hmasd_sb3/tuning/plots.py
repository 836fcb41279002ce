"""Pictures of a study: its course, which arguments mattered, and how the value depends on them."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hmasd_sb3.monitoring.optional import import_optional
from hmasd_sb3.tuning.confirm import chosen_trial, confirmed
from hmasd_sb3.tuning.objective import EVALUATIONS, seed_values
from hmasd_sb3.tuning.ranges import COMPLEMENT, SCHEDULE
from hmasd_sb3.tuning.report import state_of
from hmasd_sb3.tuning.space import N_ENVS
from hmasd_sb3.tuning.study import SharedStudy

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial

_COMPLETE, _PRUNED, _FAILED, _BEST, _AGAIN = "#0072b2", "#999999", "#d55e00", "#009e73", "#cc79a7"
_MOST = 12
_N_SLICES = 6


def plot_study(shared: SharedStudy, out: Path) -> list[Path]:
    """Draw ``history.png`` and, from two complete trials on, ``importances.png`` and ``slices.png``.

    :param out: folder, made if need be
    :return: what was drawn; nothing as long as no trial is complete
    :raises ImportError: if matplotlib is not installed
    """
    chosen = chosen_trial(shared)
    if chosen is None:
        return []
    out.mkdir(parents=True, exist_ok=True)
    drawn = [_save(_history(shared), out / "history.png")]
    weights = importances(shared.study)
    if weights:
        n_complete = len(shared.ranked())
        drawn.append(_save(_importances(weights, n_complete), out / "importances.png"))
        drawn.append(_save(_slices(shared.trials(), chosen, list(weights)[:_N_SLICES]), out / "slices.png"))
    return drawn


def importances(study: Study) -> dict[str, float]:
    """How much of the differences between complete trials each parameter explains, the largest first; they add up to 1.

    By fANOVA if scikit-learn is installed, else by PED-ANOVA. Empty if there is nothing to explain: fewer than two complete
    trials, or all of one value.
    """
    import optuna

    complete = [trial for trial in study.get_trials(deepcopy=False) if trial.state.name == "COMPLETE"]
    if len({trial.value for trial in complete}) < 2:
        return {}
    names = set.intersection(*(set(trial.params) for trial in complete)) - {N_ENVS}
    names = {name for name in names if len({str(trial.params[name]) for trial in complete}) > 1}
    if not names:
        return {}
    evaluator: Any
    if importlib.util.find_spec("sklearn") is not None:
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    else:
        evaluator = optuna.importance.PedAnovaImportanceEvaluator()
    found = optuna.importance.get_param_importances(study, evaluator=evaluator, params=sorted(names))
    return dict(found)


def _figure(width: float, height: float) -> Any:
    figure = import_optional("matplotlib.figure", purpose="Drawing a study", extra="tuning").Figure(
        figsize=(width, height), layout="constrained"
    )
    import_optional("matplotlib.backends.backend_agg", purpose="Drawing a study", extra="tuning").FigureCanvasAgg(figure)
    return figure


def _save(figure: Any, path: Path) -> Path:
    figure.savefig(path, dpi=120)
    return path


def _tidy(axes: Any) -> None:
    axes.grid(color="#e5e5e5", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _history(shared: SharedStudy) -> Any:
    trials = shared.trials()
    figure = _figure(7.0, 4.2)
    axes = figure.add_subplot()
    kinds = {"complete": ("o", _COMPLETE), "pruned": ("x", _PRUNED)}
    for state, (marker, colour) in kinds.items():
        chosen = [trial for trial in trials if state_of(trial) == state and trial.value is not None]
        if chosen:
            axes.scatter([t.number for t in chosen], [t.value for t in chosen], marker=marker, color=colour, s=30, label=state)
    complete = [trial for trial in trials if trial.state.name == "COMPLETE"]
    if complete:
        best = np.maximum.accumulate([float(trial.value or 0.0) for trial in complete])
        numbers = [*(trial.number for trial in complete), trials[-1].number]
        axes.step(numbers, [*best, best[-1]], where="post", color=_BEST, linewidth=1.6, label="best so far", zorder=1)
    again = confirmed(shared)
    for trial, on_new_seeds in again:
        by_seed = seed_values(on_new_seeds.user_attrs[EVALUATIONS]["by_seed"])
        axes.scatter([trial.number] * len(by_seed), by_seed, color=_AGAIN, s=8, alpha=0.5, linewidth=0)
    if again:
        at, values = [trial.number for trial, _ in again], [one.value for _, one in again]
        axes.scatter(at, values, marker="D", color=_AGAIN, s=34, label="on new seeds (dots: each)", zorder=3)
    failed = [trial.number for trial in trials if trial.state.name == "FAIL"]
    if failed:  # they have no value, so they stand at the foot of the picture
        foot = axes.get_xaxis_transform()
        axes.scatter(failed, [0.02] * len(failed), marker="v", color=_FAILED, s=30, label="failed", transform=foot)
    axes.set_xlabel("trial")
    axes.set_ylabel("value")
    axes.set_title(shared.study.study_name, fontsize=11)
    axes.xaxis.get_major_locator().set_params(integer=True)
    _tidy(axes)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="best", frameon=False, fontsize=9)
    return figure


def _importances(weights: dict[str, float], n_complete: int) -> Any:
    shown = list(weights.items())[:_MOST][::-1]
    figure = _figure(7.0, 1.0 + 0.3 * len(shown))
    axes = figure.add_subplot()
    bars = axes.barh([_label(name) for name, _ in shown], [weight for _, weight in shown], color=_COMPLETE)
    axes.bar_label(bars, fmt="%.2f", padding=3, fontsize=8)
    axes.set_xlim(0, max(weight for _, weight in shown) * 1.15)
    axes.set_xlabel(f"share of the differences between {n_complete} complete trials")
    _tidy(axes)
    axes.grid(visible=False, axis="y")
    return figure


def _label(name: str) -> str:
    """A parameter of a trial in words."""
    if name.startswith(COMPLEMENT):
        return f"1 - {name.removeprefix(COMPLEMENT)}"
    return f"{name.removesuffix(SCHEDULE)}: default or constant" if name.endswith(SCHEDULE) else name


def _slices(trials: list[FrozenTrial], chosen: FrozenTrial, names: list[str]) -> Any:
    columns = min(3, len(names))
    figure = _figure(2.6 * columns + 0.6, 2.5 * math.ceil(len(names) / columns))
    grid = figure.subplots(math.ceil(len(names) / columns), columns, sharey=True, squeeze=False)
    for place, axes in enumerate(grid.flat):
        if place >= len(names):
            axes.set_visible(False)
            continue
        _slice(axes, names[place], [trial for trial in trials if names[place] in trial.params], chosen)
        if place % columns == 0:
            axes.set_ylabel("value")
    handles, labels = grid.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return figure


def _slice(axes: Any, name: str, trials: list[FrozenTrial], chosen: FrozenTrial) -> None:
    distribution = trials[0].distributions[name]
    choices = [str(choice) for choice in getattr(distribution, "choices", ())]
    groups: dict[str, tuple[list[FrozenTrial], dict[str, Any]]] = {
        "pruned": ([t for t in trials if t.state.name == "PRUNED"], {"color": _PRUNED, "marker": "x"}),
        "complete": ([t for t in trials if t.state.name == "COMPLETE"], {"color": _COMPLETE}),
        "chosen": ([chosen], {"color": _BEST, "marker": "*", "zorder": 3}),
    }
    for label, (group, style) in groups.items():
        shown = [trial for trial in group if name in trial.params and trial.value is not None]
        at = [choices.index(str(t.params[name])) if choices else t.params[name] for t in shown]
        axes.scatter(at, [t.value for t in shown], s=90 if label == "chosen" else 22, label=label, **style)
    if choices:
        axes.set_xticks(range(len(choices)), choices)
        axes.set_xlim(-0.5, len(choices) - 0.5)
    elif getattr(distribution, "log", False):
        ticker = import_optional("matplotlib.ticker", purpose="Drawing a study", extra="tuning")
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1.0, 2.0, 5.0), numticks=6))
        axes.xaxis.set_major_formatter(ticker.StrMethodFormatter("{x:g}"))
        axes.xaxis.set_minor_formatter(ticker.NullFormatter())
    elif isinstance(trials[0].params[name], int):
        axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel(_label(name), fontsize=9)
    axes.tick_params(labelsize=8)
    _tidy(axes)
