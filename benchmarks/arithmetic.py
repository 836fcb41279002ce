"""Floating-point operations of an update, counted from the networks' shapes, and how fast this machine multiplies.

Matrix products alone are counted, a multiplication and an addition as two operations. Everything else (activations, layer
norms, softmax, the optimizer) is of lower order in the hidden size, so the count is a bound from below.
"""

from __future__ import annotations

import time
from typing import NamedTuple

import numpy as np
import torch as th

from hmasd_sb3 import HMASD
from hmasd_sb3.policies.coordinator import TransformerCoordinator


class Product(NamedTuple):
    """A linear layer over some rows."""

    n_in: int
    n_out: int
    first: bool = False
    """It reads the network's input, which needs no gradient."""


def forward_flops(products: list[Product], rows: int) -> int:
    """Of one pass without gradient."""
    return rows * sum(2 * product.n_in * product.n_out for product in products)


def training_flops(products: list[Product], rows: int) -> int:
    """Of one pass forward and back: the gradient of the weights costs as much again, and so does that of the inputs."""
    return rows * sum((4 if product.first else 6) * product.n_in * product.n_out for product in products)


def recurrent_products(n_in: int, hidden: int, n_out: int) -> list[Product]:
    """Actor and critic: two layers, a GRU, an output layer."""
    gru = [Product(hidden, 3 * hidden), Product(hidden, 3 * hidden)]
    return [Product(n_in, hidden, first=True), Product(hidden, hidden), *gru, Product(hidden, n_out)]


def discriminator_products(n_in: int, hidden: int, n_out: int) -> list[Product]:
    """Two hidden layers."""
    return [Product(n_in, hidden, first=True), Product(hidden, hidden), Product(hidden, n_out)]


def coordinator_flops(
    model: HMASD, n_rows: int, training: bool, encoder: bool = True, decoder: bool = True, values: bool = True
) -> int:
    """Of the transformer over ``n_rows`` assignments, one encoder and one decoder block.

    :param encoder: count the encoder
    :param decoder: count the decoder, over all tokens at once
    :param values: count the value head
    :raises ValueError: for a coordinator of another kind or size
    """
    net = model.policy.coordinator
    if not isinstance(net, TransformerCoordinator) or len(net.encoder) != 1:
        raise ValueError("Only a TransformerCoordinator of one block can be counted.")
    width, agents = model.policy.hidden_size, model.policy.spec.n_agents
    tokens = 1 + agents
    flops = training_flops if training else forward_flops
    # Scores and their use: two products of (tokens, width) with (width, tokens); both factors need a gradient.
    attention = (3 if training else 1) * 2 * 2 * tokens * tokens * width * n_rows
    square = [Product(width, width)]
    total = 0
    if encoder:
        total += flops([Product(net.state_features.dim, width, first=True)], n_rows)
        total += flops([Product(net.obs_features.dim, width, first=True)], n_rows * agents)
        total += flops(square * 6, n_rows * tokens) + attention
    if values:
        total += flops([*square, Product(width, 1)], n_rows * tokens)
    if decoder:
        total += flops(square * 10, n_rows * tokens) + 2 * attention
        total += flops([*square, Product(width, model.n_team_skills)], n_rows)
        total += flops([*square, Product(width, model.n_agent_skills)], n_rows * agents)
    return total


def update_flops(model: HMASD, n_assignments: int) -> dict[str, int]:
    """Of each network's update, by name: all epochs in full, and no episode that starts within a rollout.

    :param n_assignments: skill assignments in the rollout
    """
    spec, hidden, steps = model.policy.spec, model.policy.hidden_size, model.n_steps * model.n_envs
    actor, critic, judges = model.policy.actor, model.policy.critic, model.policy.discriminators
    acting = recurrent_products(actor.features.dim + model.n_agent_skills, hidden, spec.action_dim)
    valuing = recurrent_products(_critic_inputs(model), hidden, critic.value.out_features)
    # The memory that a chunk begins with needs no gradient.
    chunks = -(-model.n_steps // model.sequence_length) * model.n_envs
    spared = 2 * hidden * 3 * hidden * chunks
    judged = min(model.discriminator_batch_size, steps) * model.discriminator_n_updates
    team = discriminator_products(judges.state_features.dim, hidden, model.n_team_skills)
    agent = discriminator_products(judges.obs_features.dim + model.n_team_skills, hidden, model.n_agent_skills)
    return {
        "coordinator": model.skill_n_epochs * coordinator_flops(model, n_assignments, training=True),
        "actor": model.n_epochs * spec.n_agents * (training_flops(acting, steps) - spared),
        "critic": model.n_epochs * (training_flops(valuing, steps) - spared),
        "discriminators": training_flops(team, judged) + training_flops(agent, judged * spec.n_agents),
    }


def acting_flops(model: HMASD, n_assignments: int) -> dict[str, int]:
    """Of collecting a rollout: the actor's steps, and the coordinator's assignments (n tokens for the n-th skill)."""
    spec, hidden, steps = model.policy.spec, model.policy.hidden_size, model.n_steps * model.n_envs
    actor = recurrent_products(model.policy.actor.features.dim + model.n_agent_skills, hidden, spec.action_dim)
    one_pass = coordinator_flops(model, n_assignments, False, encoder=False, values=False)
    # The decoder is run anew for each of the 1 + N skills, over half of the tokens on average.
    decoding = round(one_pass * (2 + spec.n_agents) / 2)
    return {
        "low level": forward_flops(actor, steps * spec.n_agents),
        "coordinator": coordinator_flops(model, n_assignments, False, decoder=False, values=False) + decoding,
    }


def evaluation_flops(model: HMASD, n_assignments: int) -> int:
    """Of values and rewards, once per rollout: critic and discriminators at every step, V_h at every assignment."""
    hidden, steps = model.policy.hidden_size, model.n_steps * model.n_envs
    judges = model.policy.discriminators
    critic = recurrent_products(_critic_inputs(model), hidden, model.policy.critic.value.out_features)
    team = discriminator_products(judges.state_features.dim, hidden, model.n_team_skills)
    agent = discriminator_products(judges.obs_features.dim + model.n_team_skills, hidden, model.n_agent_skills)
    values = coordinator_flops(model, n_assignments + model.n_envs, False, decoder=False)
    agents = model.policy.spec.n_agents
    return forward_flops([*critic, *team], steps) + forward_flops(agent, steps * agents) + values


def _critic_inputs(model: HMASD) -> int:
    critic = model.policy.critic
    skills = critic.n_agents * model.n_agent_skills if critic.sees_agent_skills else 0
    return int(critic.features.dim + model.n_team_skills + skills)


def multiplication_rate(rows: int, n_in: int, n_out: int, repeats: int = 9, seconds: float = 0.05) -> float:
    """Floating-point operations per second of (rows, n_in) times (n_in, n_out), the median of some repeats."""
    left, right = th.rand(rows, n_in), th.rand(n_in, n_out)
    result = th.mm(left, right)
    rates = []
    for _ in range(repeats):
        done, start = 0, time.process_time()
        while time.process_time() - start < seconds:
            th.mm(left, right, out=result)
            done += 1
        rates.append(2 * rows * n_in * n_out * done / (time.process_time() - start))
    return float(np.median(rates))
