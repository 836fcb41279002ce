"""Learning curves drawn from the file that Stable-Baselines3's ``EvalCallback`` writes. Knows nothing of models."""

from math import sqrt
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from hmasd_sb3.monitoring.optional import import_optional

_LINE_COLOUR = "#0072b2"
_TARGET_COLOUR = "#707070"
_N_BOOTSTRAP = 2000
_MOST_PICKS = 1_000_000
"""Drawn at once: of many episodes all of them together would not fit into memory."""


class _Curve(NamedTuple):
    """What is drawn: E evaluations of a mean with an interval around it."""

    timesteps: npt.NDArray[np.int64]  # (E,) environment steps
    mean: npt.NDArray[np.float64]  # (E,)
    low: npt.NDArray[np.float64]  # (E,) lower end of the 95 % interval
    high: npt.NDArray[np.float64]  # (E,) upper end of the 95 % interval
    n_episodes: int  # episodes behind each point
    is_success: bool  # success rate in [0, 1] if True, else episode return


def wilson_interval(n_successes: int, n_episodes: int, z: float = 1.96) -> tuple[float, float]:
    """
    Wilson's score interval for a success probability.

    Unlike mean ± standard error it stays inside [0, 1] and has a width at rates of exactly 0 and 1, where a learning
    curve spends most of its time. With :math:`\\hat p = s / n`:
    :math:`(\\hat p + z^2/2n \\pm z \\sqrt{\\hat p (1 - \\hat p)/n + z^2/4n^2}) / (1 + z^2/n)`.

    :param n_successes: successful episodes
    :param n_episodes: all episodes, at least 1
    :param z: normal quantile; 1.96 gives 95 %
    :return: lower and upper end
    :raises ValueError: unless ``0 <= n_successes <= n_episodes`` and ``n_episodes >= 1``
    """
    if n_episodes < 1 or not 0 <= n_successes <= n_episodes:
        raise ValueError(f"0 <= n_successes <= n_episodes and n_episodes >= 1 must hold, got {n_successes} of {n_episodes}")
    rate = n_successes / n_episodes
    centre = rate + z**2 / (2 * n_episodes)
    margin = z * sqrt(rate * (1 - rate) / n_episodes + z**2 / (4 * n_episodes**2))
    scale = 1 + z**2 / n_episodes
    return max(0.0, (centre - margin) / scale), min(1.0, (centre + margin) / scale)


def plot_learning_curve(
    evaluations_npz: Path | str, out_png: Path | str, title: str | None = None, target: float | None = None
) -> Path:
    """
    Draw the success rate, or where the game reports none the mean return, over environment steps.

    The shaded band is a 95 % interval over the episodes of each evaluation: Wilson's for success rates, a bootstrap of
    the mean for returns. Only episodes vary inside one evaluation, so the band says nothing about other seeds.

    :param evaluations_npz: ``evaluations.npz`` as written by ``EvalCallback(log_path=...)``: ``timesteps`` (E,),
        ``results`` (E, n_episodes) and, if episodes report ``is_success``, ``successes`` (E, n_episodes)
    :param out_png: the picture; its folder is created if need be
    :param title: heading of the picture
    :param target: success rate from which on the game counts as solved, drawn as a dashed line; None: there is none
    :return: ``out_png`` as a path
    :raises FileNotFoundError: if there is no such file of evaluations
    :raises ValueError: if it holds no evaluation
    :raises ImportError: if matplotlib is not installed
    """
    figure_module = import_optional("matplotlib.figure", purpose="Drawing a learning curve", extra="demo")
    agg_module = import_optional("matplotlib.backends.backend_agg", purpose="Drawing a learning curve", extra="demo")
    curve = _read_evaluations(Path(evaluations_npz))
    # A figure of its own and its own canvas, without pyplot: no global state, no window, usable in a worker thread.
    figure = figure_module.Figure(figsize=(7.0, 4.2), layout="constrained")
    agg_module.FigureCanvasAgg(figure)
    _draw(figure.add_subplot(), curve, title, target)
    out_png = Path(out_png)
    out_png.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out_png, dpi=150)
    return out_png


def _read_evaluations(path: Path) -> _Curve:
    with np.load(path) as data:
        timesteps = np.asarray(data["timesteps"], dtype=np.int64)
        results = np.asarray(data["results"], dtype=np.float64)
        successes = np.asarray(data["successes"], dtype=np.bool_) if "successes" in data else None
    if timesteps.size == 0:
        raise ValueError(f"{path} holds no evaluation: train for longer than EvalCallback's eval_freq first")
    n_episodes = results.shape[1]
    # Some games report success in some episodes only; their rate over the others is unknown, their return is not.
    if successes is not None and successes.shape == results.shape:
        ends = np.array([wilson_interval(int(row.sum()), n_episodes) for row in successes])
        return _Curve(timesteps, successes.mean(axis=1), ends[:, 0], ends[:, 1], n_episodes, is_success=True)
    low, high = bootstrap_mean(results)
    return _Curve(timesteps, results.mean(axis=1), low, high, n_episodes, is_success=False)


def bootstrap_mean(results: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """95 % percentile bootstrap of the mean of each row of ``results`` (E, n_episodes); two arrays (E,)."""
    # A fixed seed, so that the same file always gives the same picture.
    rng = np.random.default_rng(0)
    n_episodes = results.shape[1]
    means = np.empty((len(results), _N_BOOTSTRAP))
    at_once = max(1, _MOST_PICKS // n_episodes)
    for first in range(0, _N_BOOTSTRAP, at_once):
        part = slice(first, min(first + at_once, _N_BOOTSTRAP))
        picks = rng.integers(n_episodes, size=(part.stop - first, n_episodes))
        for row, into in zip(results, means, strict=True):
            into[part] = row[picks].mean(axis=1)
    low, high = np.quantile(means, (0.025, 0.975), axis=1)
    return low, high


def _draw(axes: Any, curve: _Curve, title: str | None, target: float | None) -> None:
    ticker = import_optional("matplotlib.ticker", purpose="Drawing a learning curve", extra="demo")
    axes.fill_between(
        curve.timesteps, curve.low, curve.high, color=_LINE_COLOUR, alpha=0.18, linewidth=0, label="95 % interval"
    )
    label = "success rate" if curve.is_success else "mean return"
    axes.plot(curve.timesteps, curve.mean, color=_LINE_COLOUR, marker="o", markersize=4, linewidth=1.8, label=label)
    if curve.is_success:
        if target is not None:
            axes.axhline(target, color=_TARGET_COLOUR, linestyle="--", linewidth=1, label=f"target {target:g}")
        axes.set_ylim(-0.03, 1.05)
        axes.yaxis.set_major_locator(ticker.MultipleLocator(0.2))
    axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter(ticker.EngFormatter(sep=""))
    axes.set_xlabel("environment steps")
    axes.set_ylabel(f"{label} ({curve.n_episodes} episodes)")
    if title is not None:
        axes.set_title(title, fontsize=11)
    axes.grid(color="#e5e5e5", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="best", frameon=False, fontsize=9)
