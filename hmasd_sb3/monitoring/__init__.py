"""Pictures of what was learned, evaluation, and checkpoints of runs. Knows neither buffers nor networks."""

from hmasd_sb3.monitoring.checkpoints import CheckpointFolder, TrainingCheckpoint
from hmasd_sb3.monitoring.evaluate import SkillEvaluation, evaluate_skills
from hmasd_sb3.monitoring.plots import plot_learning_curve, wilson_interval
from hmasd_sb3.monitoring.skill_usage import SkillUsage, plot_skill_usage
from hmasd_sb3.monitoring.stopping import StopRequest, StopRequestCallback
from hmasd_sb3.monitoring.video import EpisodeSummary, SkillChoice, record_episode

__all__ = [
    "CheckpointFolder",
    "EpisodeSummary",
    "SkillChoice",
    "SkillEvaluation",
    "SkillUsage",
    "StopRequest",
    "StopRequestCallback",
    "TrainingCheckpoint",
    "evaluate_skills",
    "plot_learning_curve",
    "plot_skill_usage",
    "record_episode",
    "wilson_interval",
]
