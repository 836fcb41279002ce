"""What goes into SB3's logger after each rollout and each update. Measures; changes nothing."""

from __future__ import annotations

import warnings

import numpy as np
import torch as th
from stable_baselines3.common.logger import Logger

from hmasd_sb3.buffers import SkillRolloutBuffer
from hmasd_sb3.policies.policy import HMASDPolicy
from hmasd_sb3.rollouts import RewardStats
from hmasd_sb3.sync import SyncGate
from hmasd_sb3.type_aliases import CoordinatorBatch, UpdateStats


def log_rollout(
    logger: Logger,
    policy: HMASDPolicy,
    buffer: SkillRolloutBuffer,
    gate: SyncGate,
    rewards: RewardStats,
    micro_batch_size: int | None = None,
) -> dict[str, float]:
    """Groups ``sync/``, ``reward/`` and ``skills/``, from a complete and evaluated rollout.

    :return: the ``skills/`` group
    """
    logger.record("sync/samples_collected", gate.samples_collected)
    logger.record("sync/collection_time", gate.collection_time)
    logger.record("sync/contribution_balance", gate.contribution_balance)
    counts = buffer.segment_end_counts()
    for reason, per_env in counts.items():
        logger.record(f"sync/segment_ends_{reason}", int(per_env.sum()))
    segments = np.sum(list(counts.values()), axis=0)
    logger.record("sync/segments_per_env_min", int(segments.min()))
    logger.record("sync/segments_per_env_max", int(segments.max()))
    logger.record("sync/lost_transitions", int(buffer.lost.sum()))
    if (present := buffer.present) is not None:
        logger.record("sync/agents_present", float(present[:-1].mean()))
    for name, value in rewards._asdict().items():
        logger.record(f"reward/{name}", value)
    report = skill_report(policy, buffer, micro_batch_size)
    for name, value in report.items():
        logger.record(f"skills/{name}", value)
    return report


def log_update(logger: Logger, policy: HMASDPolicy, stats: dict[str, UpdateStats], gate: SyncGate) -> None:
    """Group ``train/<network>_...`` and the rest of ``sync/``, from what each network's update reported."""
    for network, report in stats.items():
        for name, value in report.values.items():
            logger.record(f"train/{network}_{name}", value)
    for network in ("coordinator", "actor"):
        logger.record(f"sync/{network}_first_ratio_deviation", stats[network].first_ratio_deviation)
    logger.record("sync/policy_version", gate.policy_version)
    logger.record("sync/update_time", gate.update_time)
    logger.record("train/low_value_std", policy.low_value_norm.statistics()[1])
    logger.record("train/high_value_std", policy.high_value_norm.statistics()[1])


def skill_report(policy: HMASDPolicy, buffer: SkillRolloutBuffer, micro_batch_size: int | None = None) -> dict[str, float]:
    """How skills are used and whether they can be told apart; all figures of this rollout.

    ``*_accuracy`` are discriminator accuracies on clean inputs, to be read against ``*_chance``: what guessing the most
    frequent skill would reach (for agents: the most frequent under the running team skill, which q_d is told).
    ``agent_worst_accuracy`` is that of the individual skill recognised least. ``team_skill_information`` is the mutual
    information between Z and the agents' skills in nats (0: Z is inert, at most ln n_Z). ``redundancy`` is the share of
    agent pairs given one skill. Where nothing happened that skills could be recognised by, only ``team_skill_information``
    is given, if anything.

    :param micro_batch_size: environment steps that the discriminators look at at once; None: the whole rollout
    """
    with th.no_grad():
        pairs = buffer.discriminator_data()
        team_logits, agent_logits = policy.discriminators.clean_logits(pairs, micro_batch_size)
        batch = buffer.coordinator_batch()
        information = {} if batch is None else {"team_skill_information": team_skill_information(policy, batch)}
    team_seen = np.ones(len(pairs.team_skill), dtype=bool) if pairs.team_weights is None else _flags(pairs.team_weights)
    agent_seen = np.ones(pairs.agent_skills.shape, dtype=bool) if pairs.agent_weights is None else _flags(pairs.agent_weights)
    if not (team_seen.any() and agent_seen.any()):
        return information  # nothing happened that skills could be recognised by
    team_hits = (team_logits.argmax(-1) == pairs.team_skill).cpu().numpy()[team_seen]
    agent_hits = (agent_logits.argmax(-1) == pairs.agent_skills).cpu().numpy()[agent_seen]
    given_team = pairs.team_skill.cpu().numpy()
    team_skill, agent_skills = given_team[team_seen], pairs.agent_skills.cpu().numpy()[agent_seen]
    report = {
        "team_accuracy": float(team_hits.mean()),
        "agent_accuracy": float(agent_hits.mean()),
        "agent_worst_accuracy": float(min(agent_hits[agent_skills == skill].mean() for skill in np.unique(agent_skills))),
        **information,
    }
    for name, skills, size in (("team", team_skill, policy.n_team_skills), ("agent", agent_skills, policy.n_agent_skills)):
        usage = np.bincount(skills, minlength=size) / skills.size
        used = usage[usage > 0]
        report[f"{name}_usage_entropy"] = float(-(used * np.log(used)).sum())
    together = np.zeros((policy.n_team_skills, policy.n_agent_skills))
    np.add.at(together, (np.broadcast_to(given_team[:, None], agent_seen.shape)[agent_seen], agent_skills), 1.0)
    report["team_chance"] = float(np.bincount(team_skill).max() / team_skill.size)
    report["agent_chance"] = float(together.max(axis=1).sum() / together.sum())
    if batch is not None and (redundancy := _redundancy(batch)) is not None:
        report["redundancy"] = redundancy
    return report


def _flags(weights: th.Tensor) -> np.ndarray:
    return np.asarray(weights.cpu().numpy() > 0)


def _redundancy(batch: CoordinatorBatch) -> float | None:
    """Share of pairs of agents that were given one skill; None if there never was a pair."""
    given = batch.agent_skills.cpu().numpy()
    there = np.ones(given.shape, dtype=bool) if batch.agent_mask is None else batch.agent_mask.cpu().numpy()
    pairs = there[:, :, None] & there[:, None, :] & ~np.eye(given.shape[1], dtype=bool)
    if not pairs.any():
        return None
    return float((given[:, :, None] == given[:, None, :])[pairs].mean())


def team_skill_information(policy: HMASDPolicy, batch: CoordinatorBatch, max_rows: int = 256) -> float:
    r"""Estimate of :math:`I(Z; z^{1..N} | s)` in nats: what forcing Z changes about the agents' skills.

    .. math:: \mathbb{E}\left[\ln\pi_h(z^{1..N} | s, Z) - \ln\sum_{Z'}\pi_h(Z'|s)\,\pi_h(z^{1..N} | s, Z')\right]
    """
    state, obs, agent_skills = batch.state[:max_rows], batch.obs[:max_rows], batch.agent_skills[:max_rows]
    agent_mask = None if batch.agent_mask is None else batch.agent_mask[:max_rows]
    joint, given = [], []
    for forced in range(policy.n_team_skills):
        team_skill = th.full((len(state),), forced, dtype=th.long, device=state.device)
        log_probs = policy.coordinator.evaluate(state, obs, team_skill, agent_skills, agent_mask).log_probs
        if agent_mask is not None:  # what is assigned to nobody informs nobody
            log_probs = th.cat([log_probs[:, :1], log_probs[:, 1:] * agent_mask], dim=1)
        given.append(log_probs[:, 1:].sum(dim=1))
        joint.append(log_probs.sum(dim=1))
    chosen = th.stack(given, dim=1).gather(1, batch.team_skill[:max_rows].unsqueeze(1)).squeeze(1)
    return float((chosen - th.stack(joint, dim=1).logsumexp(dim=1)).mean())


class InertTeamSkillWatch:
    """Warns once when the team skill has long made no difference.

    :param patience: updates in a row before the warning
    """

    def __init__(self, patience: int = 100) -> None:
        self.patience = patience
        self.inert_updates = 0

    def look(self, report: dict[str, float]) -> None:
        """Take in one update's ``skills/`` group (see :func:`skill_report`); one without accuracies says nothing."""
        if "team_accuracy" not in report:
            return
        guessed = report["team_accuracy"] < 1.1 * report["team_chance"]
        inert = guessed and report.get("team_skill_information", 0.0) < 0.01
        self.inert_updates = self.inert_updates + 1 if inert else 0
        if self.inert_updates == self.patience:
            warnings.warn(
                f"For {self.patience} updates the team skill has changed nothing: its discriminator guesses (accuracy "
                f"{report['team_accuracy']:.2f}, chance {report['team_chance']:.2f}) and the agents' skills do not depend on "
                "it. Individual skills may still do the work. Otherwise raise team_diversity_coef, let the game offer "
                "'discriminator_state', or set n_team_skills=1.",
                UserWarning,
                stacklevel=2,
            )
