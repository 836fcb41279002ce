"""Networks and policy: acting and scoring must be two views of one thing."""

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from teams import make_model, randomise

from hmasd_sb3.policies import HMASDPolicy, RandomCoordinator, TeamSpaceError, TeamSpec
from hmasd_sb3.policies.action_heads import CategoricalHead, GaussianHead, sample_categorical
from hmasd_sb3.policies.policy import NETWORKS

KINDS = ("discrete", "continuous", "masked")


def batch_of(model, n=6, seed=0):
    rng = np.random.default_rng(seed)
    obs = {
        "obs": rng.normal(size=(n, 2, 3)).astype(np.float32),
        "state": rng.normal(size=(n, 4)).astype(np.float32),
    }
    if model.policy.spec.has_action_mask:
        obs["action_mask"] = np.ones((n, 2, 3), dtype=np.int8)
    return obs


def tensors(obs):
    return {key: th.from_numpy(value) for key, value in obs.items()}


@pytest.fixture
def model():
    model = make_model(n_team_skills=3, n_agent_skills=4)
    randomise(model)
    return model


# ---------------------------------------------------------------- coordinator


def test_teacher_forcing_scores_what_step_by_step_decoding_sampled(model):
    obs = tensors(batch_of(model, 40))
    with th.no_grad():
        choice = model.policy.coordinator.assign(obs["state"], obs["obs"])
        scored = model.policy.coordinator.evaluate(obs["state"], obs["obs"], choice.team_skill, choice.agent_skills)
    th.testing.assert_close(scored.log_probs, choice.log_probs, atol=2e-6, rtol=0)
    assert scored.log_probs.std() > 0.1, "a uniform coordinator would pass by accident"
    th.testing.assert_close(scored.values, model.policy.coordinator.values(obs["state"], obs["obs"]))


def test_skill_distribution_sums_to_one_over_all_assignments(model):
    """The chain pi(Z) pi(z1|Z) pi(z2|Z,z1) is a distribution: summed over all 3 * 4 * 4 assignments it gives 1."""
    obs = tensors(batch_of(model, 1))
    every = np.array([(z, a, b) for z in range(3) for a in range(4) for b in range(4)])
    n = len(every)
    with th.no_grad():
        scored = model.policy.coordinator.evaluate(
            obs["state"].expand(n, -1), obs["obs"].expand(n, -1, -1), th.tensor(every[:, 0]), th.tensor(every[:, 1:])
        )
    assert float(scored.log_probs.sum(1).exp().sum()) == pytest.approx(1.0, abs=1e-5)


def test_decoder_sees_the_prefix_and_only_the_prefix(model):
    obs = tensors(batch_of(model, 5))
    team, skills = th.zeros(5, dtype=th.long), th.zeros(5, 2, dtype=th.long)

    def log_probs(team, skills):
        with th.no_grad():
            return model.policy.coordinator.evaluate(obs["state"], obs["obs"], team, skills).log_probs

    base = log_probs(team, skills)
    changed_first = skills.clone()
    changed_first[:, 0] = 1
    after = log_probs(team, changed_first)
    th.testing.assert_close(after[:, 0], base[:, 0])
    assert not th.allclose(after[:, 2], base[:, 2]), "agent 2 must see agent 1's skill"
    other_team = log_probs(team + 1, skills)
    assert not th.allclose(other_team[:, 1:], base[:, 1:]), "agents must see the team skill"
    changed_last = skills.clone()
    changed_last[:, 1] = 1
    th.testing.assert_close(log_probs(team, changed_last)[:, :2], base[:, :2])


def test_deterministic_assignment_takes_the_most_likely_skill(model):
    obs = tensors(batch_of(model, 8))
    coordinator = model.policy.coordinator
    with th.no_grad():
        choice = coordinator.assign(obs["state"], obs["obs"], deterministic=True)
        for other in range(3):
            forced = coordinator.assign(obs["state"], obs["obs"], True, th.full((8,), other))
            assert (forced.log_probs[:, 0] <= choice.log_probs[:, 0] + 1e-6).all()
            assert (forced.team_skill == other).all()


def test_random_coordinator_is_uniform_and_learns_nothing():
    model = make_model(policy_kwargs={"hidden_size": 16, "coordinator_class": RandomCoordinator})
    obs = tensors(batch_of(model, 4000))
    choice = model.policy.coordinator.assign(obs["state"], obs["obs"])
    counts = np.bincount(choice.agent_skills.numpy().ravel(), minlength=4) / 8000
    assert np.abs(counts - 0.25).max() < 0.02
    th.testing.assert_close(choice.log_probs[0], -th.log(th.tensor([2.0, 4.0, 4.0])))
    model.learn(100)
    assert model.policy_version == 3


# ---------------------------------------------------------------- actor and critic


@pytest.mark.parametrize("kind", KINDS)
def test_actor_scores_chunks_as_it_acted(kind):
    model = make_model(env_kwargs={"kind": kind})
    randomise(model)
    policy = model.policy
    state = policy.initial_skill_state(6)
    decisions, observations = [], []
    for step in range(7):
        obs = batch_of(model, 6, seed=step)
        decision = policy.act(tensors(obs), state, np.zeros(6, dtype=bool))
        observations.append(obs)
        decisions.append(decision)
        state = decision.state

    def stack(arrays):
        return th.from_numpy(np.stack(arrays)).flatten(1, 2)

    masks = stack([o["action_mask"] for o in observations]).bool() if kind == "masked" else None
    with th.no_grad():
        log_probs, _ = policy.actor.evaluate(
            stack([o["obs"] for o in observations]),
            stack([d.state.agent_skills for d in decisions]),
            th.from_numpy(decisions[0].hidden).flatten(0, 1),
            stack([d.actions for d in decisions]),
            masks,
        )
    acted = stack([d.log_probs for d in decisions])
    th.testing.assert_close(log_probs, acted, atol=5e-6, rtol=0)
    assert acted.std() > 0.05


def test_agents_memories_are_their_own(model):
    """What agent 2 sees changes neither agent 1's action probabilities nor its hidden state."""
    first, second = batch_of(model, 3), batch_of(model, 3)
    second["obs"][:, 1] += 5.0
    state = model.policy.initial_skill_state(3)._replace(steps_left=np.full(3, 4))
    runs = [model.policy.act(tensors(o), state, np.zeros(3, dtype=bool), deterministic=True) for o in (first, second)]
    np.testing.assert_array_equal(runs[0].state.hidden[:, 0], runs[1].state.hidden[:, 0])
    np.testing.assert_array_equal(runs[0].log_probs[:, 0], runs[1].log_probs[:, 0])
    assert not np.allclose(runs[0].state.hidden[:, 1], runs[1].state.hidden[:, 1])


@pytest.mark.parametrize("sees", [True, False])
def test_critic_rollout_equals_single_steps_with_resets(sees):
    model = make_model(policy_kwargs={"hidden_size": 16, "critic_sees_agent_skills": sees})
    randomise(model)
    critic = model.policy.critic
    g = th.Generator().manual_seed(3)
    steps, envs = 9, 4
    state = th.randn(steps, envs, 4, generator=g)
    team = th.randint(2, (steps, envs), generator=g)
    agents = th.randint(4, (steps, envs, 2), generator=g)
    starts = th.rand(steps, envs, generator=g) < 0.3
    hidden = th.randn(envs, 16, generator=g)
    with th.no_grad():
        values, before, after = critic.rollout(state, team, agents, hidden, starts)
        for b in range(envs):
            memory = hidden[b : b + 1]
            for t in range(steps):
                if starts[t, b]:
                    memory = th.zeros_like(memory)
                th.testing.assert_close(before[t, b], memory[0])
                row = slice(b, b + 1)
                value = critic.evaluate(state[t : t + 1, row], team[t : t + 1, row], agents[t : t + 1, row], memory)
                th.testing.assert_close(values[t, b], value[0, 0], atol=1e-6, rtol=1e-5)
                memory = after[t, row]
    if sees:
        assert not th.allclose(values[..., 0], values[..., 1])
        other = critic.rollout(state, team, (agents + 1) % 4, hidden, starts)[0]
        assert not th.allclose(values, other)
    else:
        th.testing.assert_close(values[..., 0], values[..., 1])


# ---------------------------------------------------------------- action heads


def test_masked_actions_have_no_probability():
    head = CategoricalHead(8, 5)
    th.nn.init.normal_(head.logits.weight)
    features = th.randn(2000, 8)
    mask = th.rand(2000, 5) < 0.5
    mask[:, 0] = True
    actions, log_probs = head.act(features, mask, deterministic=False)
    assert mask.gather(1, actions[:, None]).all()
    probs = head.log_probs(features, mask).exp()
    assert float(probs[~mask].max()) == 0.0
    th.testing.assert_close(probs.sum(1), th.ones(2000))
    scored, entropy = head.evaluate(features, actions, mask)
    th.testing.assert_close(scored, log_probs)
    th.testing.assert_close(entropy, th.distributions.Categorical(probs=probs).entropy(), atol=1e-4, rtol=1e-4)


def test_gaussian_head_equals_torch_distributions():
    head = GaussianHead(8, 3, -0.5)
    features = th.randn(50, 8)
    actions, log_probs = head.act(features, None, deterministic=False)
    reference = th.distributions.Normal(head.mean(features), head.log_std.exp())
    th.testing.assert_close(log_probs, reference.log_prob(actions).sum(-1))
    th.testing.assert_close(head.evaluate(features, actions, None)[1], reference.entropy().sum(-1).expand(50))


def test_sampling_follows_the_probabilities():
    th.manual_seed(0)
    probs = th.tensor([0.5, 0.3, 0.15, 0.05])
    draws = sample_categorical(probs.log().expand(40000, -1), deterministic=False)
    th.testing.assert_close(th.bincount(draws) / 40000, probs, atol=0.01, rtol=0)
    assert int(sample_categorical(probs.log(), deterministic=True)) == 0


# ---------------------------------------------------------------- acting and predict


def test_skills_last_exactly_the_interval():
    model = make_model(skill_interval=5)
    state, assigned = None, []
    state = model.policy.initial_skill_state(2)
    for step in range(17):
        decision = model.policy.act(tensors(batch_of(model, 2, step)), state, np.zeros(2, dtype=bool))
        if not decision.assigned.any():
            np.testing.assert_array_equal(decision.state.agent_skills, state.agent_skills)
        assigned.append(decision.assigned.tolist())
        state = decision.state
    assert [i for i, row in enumerate(assigned) if row == [True, True]] == [0, 5, 10, 15]
    assert all(row in ([True, True], [False, False]) for row in assigned)


def test_episode_start_voids_skills_and_memory_of_that_row_only():
    model = make_model()
    state = model.policy.initial_skill_state(2)
    for step in range(2):
        state = model.policy.act(tensors(batch_of(model, 2, step)), state, np.zeros(2, dtype=bool)).state
    decision = model.policy.act(tensors(batch_of(model, 2, 9)), state, np.array([False, True]))
    assert decision.assigned.tolist() == [False, True]
    np.testing.assert_array_equal(decision.hidden[0], state.hidden[0])
    assert not decision.hidden[1].any()
    assert decision.state.steps_left.tolist() == [2, 4]


def test_predict_leaves_everything_as_it_was_and_the_caller_holds_the_state():
    model = make_model()
    before = {k: v.clone() for k, v in model.policy.state_dict().items()}
    obs = batch_of(model, 3)
    actions, state = model.predict(obs, deterministic=True)
    assert actions.shape == (3, 2)
    kept = [array.copy() for array in state]
    for _ in range(3):
        again, _ = model.predict(obs, state, np.zeros(3, dtype=bool), deterministic=True)
    for now, then in zip(state, kept, strict=True):
        np.testing.assert_array_equal(now, then)
    first, _ = model.predict(obs, state, np.zeros(3, dtype=bool), deterministic=True)
    np.testing.assert_array_equal(first, again)
    for key, value in model.policy.state_dict().items():
        th.testing.assert_close(value, before[key], rtol=0, atol=0)


def test_predict_takes_one_observation_or_a_batch_of_any_size():
    model = make_model()
    single = {key: value[0] for key, value in batch_of(model, 1).items()}
    action, state = model.predict(single, deterministic=True)
    assert action.shape == (2,)
    assert state[0].shape == (1,)
    with pytest.raises(ValueError, match="belongs to 1 teams, the observation to 5"):
        model.predict(batch_of(model, 5), state)
    with pytest.raises(ValueError, match="Dict observation, got tuple"):
        model.predict((single, {}))


def test_continuous_actions_stay_inside_lopsided_bounds():
    model = make_model(env_kwargs={"kind": "continuous"})
    randomise(model, 2.0)
    space = model.action_space
    for seed in range(5):
        actions, _ = model.predict(batch_of(model, 50, seed))
        assert actions.dtype == np.float32
        assert (actions >= space.low).all()
        assert (actions <= space.high).all()
    np.testing.assert_allclose(model.policy.to_env_actions(np.array([[[0.0, 1.0], [-1.0, 9.0]]]))[0], [[-0.5, 1], [-2, 1]])


# ---------------------------------------------------------------- parameters


def test_every_parameter_has_one_optimizer_and_gets_a_gradient():
    model = make_model()
    randomise(model)
    owners = {}
    for network in NETWORKS:
        flat = model.policy.flat(network)
        start = flat.vector.data_ptr()
        for parameter in flat.parameters:
            assert id(parameter) not in owners
            owners[id(parameter)] = network
            offset = parameter.data_ptr() - start
            assert 0 <= offset < flat.vector.numel() * 4, "parameters must be views of the optimizer's vector"
    names = dict(model.policy.named_parameters())
    assert {id(p) for p in names.values()} == set(owners)
    before = {name: p.detach().clone() for name, p in names.items()}
    model.learn(200)
    unmoved = [name for name, p in names.items() if th.equal(p.detach(), before[name])]
    assert unmoved == [], "every parameter must move"


def test_flat_optimizer_equals_an_ordinary_one():
    from hmasd_sb3.policies.flat import FlatOptimizer

    th.manual_seed(0)
    net = th.nn.Sequential(th.nn.Linear(4, 8), th.nn.ReLU(), th.nn.Linear(8, 2))
    twin = th.nn.Sequential(th.nn.Linear(4, 8), th.nn.ReLU(), th.nn.Linear(8, 2))
    twin.load_state_dict(net.state_dict())
    flat = FlatOptimizer(net, "net", 1e-2, th.optim.Adam, {"eps": 1e-5})
    adam = th.optim.Adam(twin.parameters(), lr=1e-2, eps=1e-5)
    for step in range(20):
        x = th.randn(16, 4, generator=th.Generator().manual_seed(step))
        flat.step(net(x).square().mean() * 50, max_grad_norm=0.5)
        adam.zero_grad()
        (twin(x).square().mean() * 50).backward()
        th.nn.utils.clip_grad_norm_(twin.parameters(), 0.5)
        adam.step()
    for a, b in zip(net.parameters(), twin.parameters(), strict=True):
        th.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


def test_no_layer_behaves_differently_in_training_mode():
    model = make_model()
    kinds = (th.nn.Dropout, th.nn.modules.batchnorm._BatchNorm)
    assert not [m for m in model.policy.modules() if isinstance(m, kinds)]


def test_policy_saves_and_loads_on_its_own(tmp_path):
    model = make_model(skill_interval=3, n_team_skills=3)
    path = str(tmp_path / "policy.pth")
    model.policy.save(path)
    loaded = HMASDPolicy.load(path, device="cpu")
    obs = batch_of(model, 4)
    np.testing.assert_array_equal(model.policy.predict(obs, deterministic=True)[0], loaded.predict(obs, deterministic=True)[0])
    assert loaded.skill_interval == 3


@pytest.mark.parametrize("n_agents", [1, 3, 7])
def test_any_number_of_agents(n_agents):
    model = make_model(env_kwargs={"n_agents": n_agents}, n_envs=3)
    model.learn(72)
    assert model.rollout_buffer.actions.shape == (12, 3, n_agents)


# ---------------------------------------------------------------- spaces


def _dict(**kwargs):
    return spaces.Dict(kwargs)


BOX = spaces.Box(-1, 1, (2, 3))
STATE = spaces.Box(-1, 1, (4,))


@pytest.mark.parametrize(
    ("observation", "action", "message"),
    [
        (spaces.Box(-1, 1, (3,)), spaces.MultiDiscrete([2, 2]), "needs a Dict observation"),
        (_dict(obs=BOX), spaces.MultiDiscrete([2, 2]), r"lacks \['state'\]"),
        (_dict(obs=STATE, state=STATE), spaces.MultiDiscrete([2, 2]), "agent axis first"),
        (_dict(obs=BOX, state=spaces.Box(0, 1, ())), spaces.MultiDiscrete([2, 2]), "single number"),
        (_dict(obs=BOX, state=spaces.MultiBinary(3)), spaces.MultiDiscrete([2, 2]), "must be a Box"),
        (
            _dict(obs=BOX, state=STATE, agent_mask=spaces.MultiBinary(3)),
            spaces.MultiDiscrete([2, 2]),
            r"'agent_mask' must have shape \(2,\)",
        ),
        (_dict(obs=BOX, state=STATE), spaces.Discrete(2), "MultiDiscrete or Box"),
        (_dict(obs=BOX, state=STATE), spaces.MultiDiscrete([2, 2, 2]), "one entry per agent"),
        (_dict(obs=BOX, state=STATE), spaces.MultiDiscrete([2, 3]), "same number of actions"),
        (_dict(obs=BOX, state=STATE), spaces.Box(-1, 1, (3,)), r"Box of shape \(2, action_dim\)"),
        (_dict(obs=BOX, state=STATE), spaces.Box(-np.inf, np.inf, (2, 1)), "finite bounds"),
        (_dict(obs=BOX, state=STATE, action_mask=spaces.MultiBinary((2, 4))), spaces.MultiDiscrete([2, 2]), "action_mask"),
        (_dict(obs=BOX, state=STATE, action_mask=spaces.MultiBinary((2, 3))), spaces.Box(-1, 1, (2, 1)), "action_mask"),
        (
            _dict(obs=BOX, state=STATE, discriminator_obs=STATE),
            spaces.MultiDiscrete([2, 2]),
            r"'discriminator_obs' .* got \(4,\)",
        ),
        (_dict(obs=BOX, state=STATE, discriminator_state=BOX), spaces.MultiDiscrete([2, 2]), r"'discriminator_state'"),
        (_dict(obs=BOX, state=STATE), spaces.MultiDiscrete([2, 2], start=[1, 1]), "count from 0"),
        (_dict(obs=BOX, state=STATE), spaces.Box(-1, 1, (2, 1), np.int32), "floating point"),
    ],
)
def test_spaces_that_are_no_team_are_refused(observation, action, message):
    with pytest.raises(TeamSpaceError, match=message):
        TeamSpec.from_spaces(observation, action)
