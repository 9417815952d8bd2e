"""examples/recurrent_ppo.py: its environment, its advantages, its resets, and that it learns."""

import importlib.util

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import EXAMPLES, assert_close

spec = importlib.util.spec_from_file_location("recurrent_ppo", EXAMPLES / "recurrent_ppo.py")
ppo = importlib.util.module_from_spec(spec)
spec.loader.exec_module(ppo)


def test_it_has_gymnasiums_interface():
    pytest.importorskip("gymnasium")
    from gymnasium.utils.env_checker import check_env

    check_env(ppo.Sign(), skip_render_check=True)


@given(seed=st.integers(0, 999))
def test_an_episode_shows_its_sign_once_and_rewards_its_name_at_the_end(seed):
    one, other, wrong = ppo.Sign(), ppo.Sign(), ppo.Sign()
    first = one.reset(seed=seed)[0]
    assert (first == other.reset(seed=seed)[0]).all()
    wrong.reset(seed=seed)
    sign, steps, done = int(first[:3].argmax()), 0, False
    assert first[:3].sum() == 1
    while not done:
        last = one.left == 0
        seen, reward, done, truncated, _ = one.step(sign)
        missed = wrong.step((sign + 1) % 3)[1]
        steps += 1
        assert done is last and not truncated and not seen[:3].any()
        assert (reward, missed) == ((1, 0) if done else (0, 0))
    assert 4 <= steps <= 9


@given(steps=st.integers(1, 12), seed=st.integers(0, 99))
def test_an_advantage_is_the_discounted_sum_of_the_errors_to_the_episodes_end(steps, seed):
    generator = torch.Generator().manual_seed(seed)
    reward, value = torch.randn(2, steps, 3, generator=generator, dtype=torch.float64)
    done = torch.rand(steps, 3, generator=generator) < 0.3
    after = torch.randn(3, generator=generator, dtype=torch.float64)
    found = ppo.advantages(reward, done, value, after)
    values = torch.cat([value, after[None]])
    for row in range(3):
        for t in range(steps):
            total, weight = 0.0, 1.0
            for u in range(t, steps):
                total += weight * (reward[u, row] - value[u, row])
                if done[u, row]:
                    break
                total += weight * ppo.DISCOUNT * values[u + 1, row]
                weight *= ppo.DISCOUNT * ppo.TRACE
            assert_close(found[t, row], torch.as_tensor(total), 1e-6)


def test_episodes_in_a_batch_are_what_they_are_alone():
    """What a policy says of a rollout is, in each episode, what it says of that episode by itself."""
    torch.manual_seed(3)
    policy = ppo.Policy()
    rollouts = ppo.Rollout(policy, 3)
    rollouts.collect()
    rollout, start = rollouts.collect()
    logits, _, _ = policy(rollout["x"], start, rollout["begins"])
    chance = torch.distributions.Categorical(logits=logits).log_prob(rollout["action"])
    assert_close(chance.detach(), rollout["chance"], 1e-5)
    for row in range(3):
        begins = rollout["begins"][:, row].nonzero().flatten().tolist()
        assert len(begins) > 1
        for begin, end in zip(begins, [*begins[1:], ppo.STEPS]):
            x = rollout["x"][begin:end, row, None]
            core = policy.recurrent.core
            alone = policy.act(core(x, core.initial_state(1), 0)[0])
            assert_close(logits[begin:end, row, None], alone, 1e-5)


def test_it_learns_what_takes_memory():
    shares = ppo.train(seed=0, updates=45)
    assert sum(shares[-5:]) / 5 > 0.8, "0.33 is chance"
