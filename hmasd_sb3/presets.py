"""The paper's own settings as constructor arguments, for comparisons (Yang et al., NeurIPS 2023, Tables 1-3)."""

from __future__ import annotations

from typing import Any

_COMMON: dict[str, Any] = {
    "n_steps": 100,
    "n_epochs": 15,
    "skill_n_epochs": 15,
    "gamma": 0.99,
    "skill_gamma": 0.99,
    "gae_lambda": 0.95,
    "clip_range": 0.2,
    "clip_range_vf": 0.2,
    "vf_coef": 1.0,
    "max_grad_norm": 10.0,
    "huber_delta": 10.0,
    "target_kl": None,
    "skill_target_kl": None,
    "skill_advantage_floor": 0.0,
    "ent_coef": 0.01,
    "critic_chance_offset": False,
    "discriminator_noise": 0.0,
    # What the paper leaves open is set here as well, so that a later change of a default cannot change a comparison.
    "normalize_advantage": True,
    "skill_timeout_bootstrap": False,
    "skill_at_rollout_end": "continue",
    "sequence_length": 10,
    "discriminator_n_updates": 15,
    "discriminator_batch_size": 2048,
    "micro_batch_size": None,
}
_POLICY: dict[str, Any] = {
    "hidden_size": 64,
    "critic_sees_agent_skills": False,
    "value_norm": True,
    "value_norm_beta": 0.99999,
}

# learning rate; k, n_Z, n_z; lambda_h, lambda_e, lambda_D, lambda_d
_TASKS: dict[str, tuple[float, int, int, int, float, float, float, float]] = {
    "alice_and_bob": (5e-4, 50, 2, 4, 0.1, 0.0, 0.1, 0.2),
    "3m": (1e-4, 25, 3, 3, 0.001, 100.0, 0.1, 0.5),
    "2s_vs_1sc": (1e-4, 25, 2, 5, 0.03, 100.0, 0.1, 1.0),
    "2m_vs_1z": (1e-4, 50, 3, 2, 0.005, 100.0, 0.1, 1.0),
    "cramped_room": (1e-4, 25, 3, 3, 0.01, 100.0, 1.0, 0.5),
    "asymmetric_advantages": (1e-4, 25, 3, 3, 0.01, 100.0, 0.1, 0.1),
    "coordination_ring": (1e-4, 10, 3, 3, 0.1, 100.0, 0.15, 0.1),
}


def paper_settings(task: str, n_envs: int = 32) -> dict[str, Any]:
    """Arguments for ``HMASD("MlpPolicy", env, **paper_settings(task))``.

    :param task: one of the paper's scenarios
    :param n_envs: number of environments of ``env``; the paper uses one minibatch of all their steps, so this must agree
    :raises ValueError: for a scenario that the paper does not have, naming those it has
    """
    if task not in _TASKS:
        raise ValueError(f"The paper has no scenario {task!r}; choose one of {sorted(_TASKS)}.")
    learning_rate, interval, n_team, n_agent, skill_entropy, reward, team, agent = _TASKS[task]
    return {
        **_COMMON,
        "batch_size": _COMMON["n_steps"] * n_envs,
        "learning_rate": learning_rate,
        "discriminator_learning_rate": learning_rate,
        "skill_interval": interval,
        "n_team_skills": n_team,
        "n_agent_skills": n_agent,
        "skill_ent_coef": skill_entropy,
        "team_reward_coef": reward,
        "team_diversity_coef": team,
        "agent_diversity_coef": agent,
        "policy_kwargs": dict(_POLICY),
    }
