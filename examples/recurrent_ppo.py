"""Recurrent reinforcement learning: PPO on a small environment that needs memory.

    python examples/recurrent_ppo.py     (half a minute; no gymnasium needed, but its interface is the one here)

A sign is seen at an episode's first step only, and is to be named at its last one. Episodes begin and end at
different steps in the environments that are run side by side, so that a rollout [T, B] is full of new
sequences: ``reset`` says where, and the core starts anew inside its operator. No episode is padded, none is
run apart, and nothing is masked in the loss.

PPO: Schulman et al., Proximal Policy Optimization Algorithms, 2017, arXiv 1707.06347; advantages: Schulman
et al., High-Dimensional Continuous Control Using Generalized Advantage Estimation, 2016, arXiv 1506.02438.
"""

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Categorical

import dnirnn

try:
    import gymnasium
except ImportError:  # the interface alone
    gymnasium = None

ENVIRONMENTS, STEPS, UPDATES, PASSES, HIDDEN = 32, 24, 60, 4, 32
DISCOUNT, TRACE, CLIP, ENTROPY = 0.99, 0.95, 0.2, 0.01


class Sign(gymnasium.Env if gymnasium else object):
    """One of three signs is seen, then a walk of 3 to 8 steps, at whose end the sign is to be named.

    Observation: the sign, one-hot, at the first step; whether it is the last one; noise. Reward at the
    end: 1 for the sign's name, else 0.
    """

    SIGNS = 3

    def __init__(self):
        if gymnasium:
            self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (self.SIGNS + 2,), np.float32)
            self.action_space = gymnasium.spaces.Discrete(self.SIGNS)
        self.random = np.random.default_rng()

    def reset(self, *, seed=None, options=None):
        if gymnasium:
            super().reset(seed=seed)
        if seed is not None:
            self.random = np.random.default_rng(seed)
        self.sign, self.left = int(self.random.integers(self.SIGNS)), int(self.random.integers(3, 9))
        return self.seen(first=True), {}

    def step(self, action):
        done = self.left == 0
        reward = float(done and int(action) == self.sign)
        self.left -= 1
        return self.seen(), reward, done, False, {}

    def seen(self, first: bool = False) -> np.ndarray:
        found = np.zeros(self.SIGNS + 2, dtype=np.float32)
        if first:
            found[self.sign] = 1
        found[self.SIGNS] = self.left == 0
        found[-1] = self.random.normal()
        return found


class Policy(nn.Module):
    """Observations [T, B, 5] -> (logits [T, B, 3], values [T, B], the state after them)."""

    def __init__(self):
        super().__init__()
        core = dnirnn.LSTM(Sign.SIGNS + 2, HIDDEN)
        self.recurrent = dnirnn.Truncated(core, STEPS, dnirnn.ZeroGradient())
        self.act, self.value = nn.Linear(HIDDEN, Sign.SIGNS), nn.Linear(HIDDEN, 1)

    def forward(self, x: Tensor, state: Tensor, begins: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        output, state, _ = self.recurrent(x, state, reset=begins)
        return self.act(output), self.value(output)[..., 0], state


class Rollout:
    """The environments, and where they are: what is seen next, whether an episode begins with it, the state."""

    def __init__(self, policy: Policy, seed: int):
        self.policy = policy
        self.environments = [Sign() for _ in range(ENVIRONMENTS)]
        seen = [one.reset(seed=seed + i)[0] for i, one in enumerate(self.environments)]
        self.x, self.begins = torch.from_numpy(np.stack(seen)), torch.ones(ENVIRONMENTS, dtype=torch.bool)
        self.state = policy.recurrent.core.initial_state(ENVIRONMENTS)

    @torch.no_grad()
    def collect(self) -> tuple[dict[str, Tensor], Tensor]:
        """({what was seen, done and had, each [T, B, ...]}, the state [B, S] that it started from)."""
        start, rows = self.state, []
        for _ in range(STEPS):
            logits, value, self.state = self.policy(self.x[None], self.state, self.begins[None])
            chosen = Categorical(logits=logits[0])
            action = chosen.sample()
            row = dict(x=self.x, begins=self.begins, action=action, value=value[0], chance=chosen.log_prob(action))
            rewards, done, seen = [], [], []
            for environment, act in zip(self.environments, action.tolist()):
                observation, reward, over, _, _ = environment.step(act)
                seen.append(environment.reset()[0] if over else observation)
                rewards.append(reward)
                done.append(over)
            self.x, self.begins = torch.from_numpy(np.stack(seen)), torch.tensor(done)
            rows.append({**row, "reward": torch.tensor(rewards), "done": self.begins})
        found = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
        _, after, _ = self.policy(self.x[None], self.state, self.begins[None])
        found["advantage"] = advantages(found["reward"], found["done"], found["value"], after[0])
        return found, start


def advantages(reward: Tensor, done: Tensor, value: Tensor, after: Tensor) -> Tensor:
    """A_t = d_t + gamma lambda A_t+1, d_t = r_t + gamma V_t+1 - V_t, and nothing over an episode's end."""
    found, last = torch.empty_like(value), torch.zeros_like(after)
    for t in reversed(range(len(reward))):
        goes_on = (~done[t]).float()
        error = reward[t] + DISCOUNT * goes_on * after - value[t]
        found[t] = last = error + DISCOUNT * TRACE * goes_on * last
        after = value[t]
    return found


def loss_of(policy: Policy, rollout: dict[str, Tensor], start: Tensor) -> Tensor:
    logits, value, _ = policy(rollout["x"], start, rollout["begins"])
    chosen = Categorical(logits=logits)
    ratio = (chosen.log_prob(rollout["action"]) - rollout["chance"]).exp()
    advantage = rollout["advantage"]
    scaled = (advantage - advantage.mean()) / (advantage.std() + 1e-6)
    better = torch.minimum(ratio * scaled, ratio.clamp(1 - CLIP, 1 + CLIP) * scaled)
    missed = (value - (advantage + rollout["value"])).square()
    return (0.5 * missed - better - ENTROPY * chosen.entropy()).mean()


def train(seed: int = 0, updates: int = UPDATES) -> list[float]:
    """The share of episodes that were rewarded, in each rollout."""
    torch.manual_seed(seed)
    policy = Policy()
    optimizer, rollouts = torch.optim.Adam(policy.parameters(), 5e-3), Rollout(policy, seed)
    shares = []
    for _ in range(updates):
        rollout, start = rollouts.collect()
        shares.append(float(rollout["reward"].sum() / rollout["done"].sum()))
        for _ in range(PASSES):
            optimizer.zero_grad()
            loss_of(policy, rollout, start).backward()
            nn.utils.clip_grad_norm_(policy.parameters(), 0.5)
            optimizer.step()
    return shares


if __name__ == "__main__":
    shares = train()
    for update in range(0, len(shares), 10):
        print(f"update {update}: {shares[update]:.2f} of the episodes were rewarded; by chance 0.33")
    print(f"at last: {sum(shares[-5:]) / 5:.2f}")
