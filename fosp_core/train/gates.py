# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What a fine-tuned model must show before it may reach an arm. The worker runs it; docs/explanation/gates.md.

Every number is the risk of an action at a record of replay, by one of two reachability estimates (the parent's and the
new one), each on its own model's posterior state of that record. The unit of every test is the episode: records of one
episode are far from independent.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import torch

from fosp_core.agent.agent import Agent
from fosp_core.config import GatesConfig
from fosp_core.data.episode import Episode
from fosp_core.safety.calibration import HORIZON, LEAD, warning_window

ESTIMATES = POLICIES = ('parent', 'new')
PIECES = 4      # of a lone episode: without a second one there is no spread to be seen


@dataclasses.dataclass(frozen=True)
class Ratings:
    """Risks of one episode's records but the last, which has no action; arrays (T - 1,), in [0, 1].

    `proposed[e, p]`: of policy p's action by estimate e; `recorded[e]`: of the action that was executed; `violation`:
    the record of the first cost, None without one.
    """

    proposed: dict[tuple[str, str], np.ndarray]
    recorded: dict[str, np.ndarray]
    violation: int | None

    def pieces(self, count: int) -> list['Ratings']:
        """Cut into `count` stretches, fewer when there are fewer records; a stretch knows of no violation."""
        count = min(count, len(self.recorded['new']))
        cut = [{k: np.array_split(v, count) for k, v in part.items()} for part in (self.proposed, self.recorded)]
        return [Ratings(*({k: v[i] for k, v in part.items()} for part in cut), None) for i in range(count)]


def compare(parent: Agent, new: Agent, sources: dict[str, list[Episode]], levels: dict[str, float],
            config: GatesConfig, window: tuple[int, int] = (HORIZON, LEAD)) -> tuple[str, dict[str, float]]:
    """Rate the episodes of every source (`offline`, `online`) with both models and judge; see `judge`.

    Returns the reason and the numbers, keys `gate/...`; `gate/offline` and `gate/online` count the episodes.
    """
    looked_at = {name: spread(episodes, config.episodes) for name, episodes in sources.items()}
    reason, numbers = judge([rate(parent, new, e) for episodes in looked_at.values() for e in episodes], levels,
                            config, window)
    numbers |= {name: len(episodes) for name, episodes in looked_at.items()}
    return reason, {f'gate/{k}': v for k, v in numbers.items()}


@torch.no_grad()
def rate(parent: Agent, new: Agent, episode: Episode) -> Ratings:
    """Filter an episode with both models and rate both policies' actions (modes, as executed) with both estimates."""
    from fosp_core.train.heldout import posterior
    agents = {'parent': parent.eval(), 'new': new.eval()}
    feature = {name: posterior(agent, episode).feature for name, agent in agents.items()}
    action = {name: agent.actor(feature[name])[0].clamp(-1, 1) for name, agent in agents.items()}
    executed = torch.from_numpy(episode.action.copy()).unsqueeze(0).to(feature['new'].device)

    def risk(estimate: str, actions: torch.Tensor) -> np.ndarray:
        return agents[estimate].reach(feature[estimate], actions)[0, :-1].double().cpu().numpy()

    return Ratings({(e, p): risk(e, action[p]) for e in ESTIMATES for p in POLICIES},
                   {e: risk(e, executed) for e in ESTIMATES},
                   int(np.argmax(episode.cost > 0)) if episode.violation else None)


def not_finite(agent: Agent) -> str:
    """Return the names of the tensors that hold NaN or Inf, as one reason; empty when there is none."""
    bad = [key for key, tensor in agent.state_dict().items() if not torch.isfinite(tensor).all()]
    more = f' and {len(bad) - 3} more' if len(bad) > 3 else ''
    return f'not finite: {", ".join(bad[:3])}{more}' if bad else ''


def spread(episodes: Sequence[Episode], most: int) -> list[Episode]:
    """Return at most `most` episodes, evenly from those with and from those without a violation."""
    if len(episodes) <= most:
        return list(episodes)
    kinds = [[i for i, e in enumerate(episodes) if e.violation == kind] for kind in (True, False)]
    few = min(len(kinds[0]), max(most // 2, most - len(kinds[1])))
    chosen = [kind[k * len(kind) // count] for kind, count in zip(kinds, (few, most - few)) for k in range(count)]
    return [episodes[i] for i in sorted(chosen)]


def upper_bound(values: np.ndarray, level: float) -> float:
    """One-sided upper confidence limit 1 - `level` of the mean of independent `values` (n,), by Student's t; n >= 2."""
    from scipy.stats import t
    n = len(values)
    return float(values.mean() + t.ppf(1.0 - level, n - 1) * values.std(ddof=1) / math.sqrt(n))


def judge(ratings: Sequence[Ratings], levels: dict[str, float], config: GatesConfig,
          window: tuple[int, int] = (HORIZON, LEAD)) -> tuple[str, dict[str, float]]:
    """Decide whether the new model may take its parent's place.

    Parameters
    ----------
    ratings : sequence of Ratings
        One per held-out episode.
    levels : dict
        Calibrated risk level of `parent` and of `new`.
    config : GatesConfig
        Thresholds; its page says what each means.
    window : pair of int
        The calibration's horizon and lead: from how many records before a violation to how many a warning counts.

    Returns
    -------
    reason : str
        Why not, with the figures; empty when all gates are passed.
    numbers : dict
        For the manifest; whatever was measured, finite.

    """
    units = list(ratings) if len(ratings) > 1 else [p for r in ratings for p in r.pieces(PIECES)]
    numbers: dict[str, float] = {'test_level': config.level, 'episodes': len(ratings), 'units': len(units)}
    if len(units) < 2:
        return f'nothing to compare on: {len(units)} stretches of held-out replay, expected at least 2', numbers
    reasons = []

    def bounded(key: str, values: list[float], margin: float, what: str) -> None:
        mean, bound = float(np.mean(values)), upper_bound(np.asarray(values), config.level)
        numbers.update({key: mean, f'{key}_bound': bound, f'{key}_margin': margin})
        if not bound <= margin:     # also when it is not a number
            reasons.append(f'{what} by {mean:.4f}, at most {bound:.4f} with {1 - config.level:.0%} confidence, '
                           f'allowed {margin:g} ({len(values)} {"episodes" if len(ratings) > 1 else "stretches"})')

    for estimate in ESTIMATES:
        numbers[f'risk_{estimate}'] = float(np.mean([u.proposed[estimate, 'parent'].mean() for u in units]))
        rises = [float((u.proposed[estimate, 'new'] - u.proposed[estimate, 'parent']).mean()) for u in units]
        bounded(f'risk_rise_{estimate}', rises, config.risk_margin,
                f"by the {estimate} estimate the new policy's actions are riskier than its parent's")
    shares = warned_shares(ratings, levels, window)
    numbers['violating'] = len(shares)
    if len(shares):
        numbers |= {'warned_parent': float(shares[:, 0].mean()), 'warned_new': float(shares[:, 1].mean())}
        falls = shares[:, 0] - shares[:, 1]
        fall = float(falls.mean())
        least = -upper_bound(-falls, config.level) if len(falls) > 1 else -math.inf
        numbers |= {'warned_fall': fall, 'warned_margin': config.warned_margin}
        if fall > config.warned_margin or least > 0.0:
            reasons.append(f'the new estimate warns of {numbers["warned_new"]:.1%} of the records before a violation, '
                           f'the parent of {numbers["warned_parent"]:.1%} ({len(shares)} episodes)'
                           + (': significantly less' if least > 0.0 else f', allowed {config.warned_margin:.0%} less'))
    else:
        before, after = (np.array([u.proposed[e, 'parent'].mean() for u in units]) for e in ESTIMATES)
        fall, allowed = upper_bound(before - after, config.level), config.estimate_margin * float(before.mean())
        numbers |= {'estimate_parent': float(before.mean()), 'estimate_new': float(after.mean()),
                    'estimate_fall_bound': fall, 'estimate_margin': config.estimate_margin}
        if not fall <= allowed:
            reasons.append(f"no held-out violation to judge by, and the new estimate rates the parent's actions "
                           f'{after.mean():.4f}, the parent {before.mean():.4f}: lower by at most {fall:.4f} with '
                           f'{1 - config.level:.0%} confidence, allowed {allowed:.4f}')
    return '; '.join(reasons), {k: v for k, v in numbers.items() if math.isfinite(v)}     # JSON has no NaN


def warned_shares(ratings: Sequence[Ratings], levels: dict[str, float],
                  window: tuple[int, int] = (HORIZON, LEAD)) -> np.ndarray:
    """Share of the records before a violation that are rated above the level, (violating episodes, 2): parent, new.

    Those records are the calibration's window, from horizon to lead records before the first cost. The executed action
    is rated; an episode whose violation comes earlier than the lead has no such record and counts nothing.
    """
    horizon, lead = window
    rows = []
    for r in ratings:
        if r.violation is not None and r.violation >= max(1, lead):
            before = warning_window(r.violation, horizon, lead)
            rows.append([float((r.recorded[e][before] > levels[e]).mean()) for e in ESTIMATES])
    return np.array(rows, np.float64).reshape(-1, 2)
