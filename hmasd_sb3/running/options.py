"""What command lines ask for, as typed: None where nothing was said."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class TrainOptions:
    """The options of ``hmasd train``."""

    env: str | None = None
    total_timesteps: int | None = None
    n_envs: int | None = None
    n_workers: int | None = None
    seed: int | None = None
    config: Path | None = None
    assignments: list[str] = field(default_factory=list)
    run_dir: Path | None = None
    resume: str | None = None
    checkpoint_freq: int | None = None
    keep_checkpoints: int | None = None
    eval_freq: int | None = None
    eval_episodes: int | None = None
    max_restarts: int = 0
    tensorboard: bool | None = None
    """True: logs, and a server beside the run; False: neither; None: logs if the package is there."""
    tensorboard_port: int | None = None
    from_run: Path | None = None
    """A run to repeat: its folder."""
    check: bool = True
    """Whether to try the environment out before a new run."""
    json: bool = False
    verbose: bool = False
    supervised: int | None = None
    """With how many restarts this process' supervisor was started; None without a supervisor."""

    def arguments_of_run(self) -> list[str]:
        """Those options that a run does not keep in its folder, as arguments: they have to be given again."""
        arguments = []
        if self.checkpoint_freq is not None:
            arguments += ["--checkpoint-freq", str(self.checkpoint_freq)]
        if self.keep_checkpoints is not None:
            arguments += ["--keep-checkpoints", str(self.keep_checkpoints)]
        if self.tensorboard is not None:
            arguments += ["--tensorboard" if self.tensorboard else "--no-tensorboard"]
        if self.tensorboard_port is not None:
            arguments += ["--tensorboard-port", str(self.tensorboard_port)]
        return arguments + (["--verbose"] if self.verbose else [])

    def arguments_of_settings(self) -> list[str]:
        """Those options that decide a run, as arguments."""
        named = {
            "--from": self.from_run,
            "--env": self.env,
            "--total-timesteps": self.total_timesteps,
            "--n-envs": self.n_envs,
            "--n-workers": self.n_workers,
            "--seed": self.seed,
            "--config": self.config,
            "--eval-freq": self.eval_freq,
            "--eval-episodes": self.eval_episodes,
        }
        arguments = [text for name, value in named.items() if value is not None for text in (name, str(value))]
        arguments += [text for assignment in self.assignments for text in ("--set", assignment)]
        return arguments if self.check else [*arguments, "--no-check"]


@dataclass(frozen=True)
class EvalOptions:
    """The options of ``hmasd eval``."""

    path: Path
    """A model file or the folder of a run."""
    best: bool = False
    env: str | None = None
    assignments: list[str] = field(default_factory=list)
    episodes: int = 100
    n_envs: int = 32
    n_workers: int | None = None
    seed: int | None = None
    stochastic: bool = False
    render: bool = False
    gif: Path | None = None
    plot: Path | None = None
