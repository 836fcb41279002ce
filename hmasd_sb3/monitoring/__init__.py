"""Pictures of what was learned: learning curves and captioned episodes. Knows neither buffers nor networks."""

from hmasd_sb3.monitoring.plots import plot_learning_curve, wilson_interval
from hmasd_sb3.monitoring.video import EpisodeSummary, SkillChoice, record_episode

__all__ = ["EpisodeSummary", "SkillChoice", "plot_learning_curve", "record_episode", "wilson_interval"]
