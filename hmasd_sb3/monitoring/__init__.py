"""Pictures of what was learned, evaluation, and checkpoints of runs. Knows neither buffers nor networks."""

from hmasd_sb3.monitoring.checkpoints import CheckpointFolder, TrainingCheckpoint
from hmasd_sb3.monitoring.plots import plot_learning_curve, wilson_interval
from hmasd_sb3.monitoring.stopping import StopRequest, StopRequestCallback
from hmasd_sb3.monitoring.video import EpisodeSummary, SkillChoice, record_episode

__all__ = [
    "CheckpointFolder",
    "EpisodeSummary",
    "SkillChoice",
    "StopRequest",
    "StopRequestCallback",
    "TrainingCheckpoint",
    "plot_learning_curve",
    "record_episode",
    "wilson_interval",
]
