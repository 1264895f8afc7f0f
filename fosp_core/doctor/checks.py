# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The checks of `fosp inspect`: one pure function for each code. They look at one episode, or at the sums over all.

Thresholds are set so that the demonstrations of SafeReach (600 episodes) give no finding, and each fault in
test/core/test_inspect_checks.py gives its own.
"""

from collections.abc import Iterator

import numpy as np

from fosp_core.contract import Contract
from fosp_core.data.episode import Episode
from fosp_core.doctor.colours import mixed_orders, swapped
from fosp_core.doctor.findings import ERROR, INFO, WARNING, Mark, of_episode, of_reader, of_totals
from fosp_core.doctor.totals import Seen, Totals

FROZEN = 5              # pictures in a row that stay the same while the robot moves
STUCK = 10              # records in a row in which a commanded robot's vector stays the same, bit for bit
MOVING = 0.1            # largest entry of a normalised action that must move something
SATURATED_SHARE = 0.8   # SafeReach's own demonstrators reach 0.62 in one dimension
IDLE_SHARE = 0.9
FEW = 20                # records or episodes below which a share says nothing

of_reader('unreadable', ERROR, 'The source is damaged or truncated, lacks a topic or key, or holds no complete '
          'episode; what follows the place named was not read.',
          'The text names file, topic or key; record again, or cut the source before that place.')
of_reader('transport', WARNING, 'Messages were lost, came twice, out of order, or without their counterparts of the '
          'same stamp.', 'Record on the robot itself, with a larger network buffer; see troubleshooting.')


# ---------------------------------------------------------------------------------------------- errors of an episode

@of_episode('contract', ERROR, 'A key is missing, or its shape or type is not what the contract says.',
            'Use the contract that the robot was recorded with, or correct it.')
def contract_mismatch(episode: Episode, contract: Contract, seen: Seen) -> Iterator[Mark]:
    """Keys, shapes and types."""
    n = len(episode)
    wanted = {c.name: ((n, *c.shape), np.uint8, episode.images) for c in contract.cameras}
    wanted |= {v.name: ((n, v.size), np.float32, episode.vectors) for v in contract.vectors}
    wanted |= {'action': ((n, contract.action.size), np.float32, vars(episode))}
    wanted |= {k: ((n,), np.float32, vars(episode)) for k in ('reward', 'cost')}
    wanted |= {k: ((n,), np.bool_, vars(episode)) for k in ('is_first', 'is_last', 'is_terminal')}
    wanted |= {k: ((n,), np.int64, vars(episode)) for k in ('stamp', 'step')}
    for key, (shape, kind, source) in wanted.items():
        if key not in source:
            yield Mark(key, 0, n, f'key {key} is missing, expected {np.dtype(kind).name} {shape}')
        elif source[key].shape != shape or source[key].dtype != kind:
            yield Mark(key, 0, n, f'key {key} is {source[key].dtype} {source[key].shape}, expected '
                                  f'{np.dtype(kind).name} {shape}')
    if n < 2:
        yield Mark('length', 0, n, f'{n} records, expected at least 2')


@of_episode('not-finite', ERROR, 'NaN or Inf in a vector, action, reward or cost.',
            'Find the sensor or conversion that makes it; training refuses such an episode.')
def not_finite(episode: Episode, contract: Contract, seen: Seen) -> Iterator[Mark]:
    """NaN and Inf."""
    series = {**episode.vectors, 'action': episode.action, 'reward': episode.reward, 'cost': episode.cost}
    for key, values in series.items():
        bad = ~np.isfinite(values.reshape(len(values), -1)).all(1)
        if bad.any():
            yield Mark(key, int(bad.argmax()), int(bad.sum()), f'key {key} is not finite at {bad.sum()} of {len(bad)} '
                                                               'records')


@of_episode('action-range', ERROR, 'An action leaves the limits of the contract.',
            "Widen the contract's `low` and `high`, or correct the unit of the commands.")
def action_range(episode: Episode, contract: Contract, seen: Seen) -> Iterator[Mark]:
    """Normalised actions beyond [-1, 1]."""
    bad = np.abs(episode.action) > 1.0 + 1e-6
    for d, field in enumerate(contract.action.fields):
        if bad[:, d].any():
            yield Mark(field, int(bad[:, d].argmax()), int(bad[:, d].sum()),
                       f'action {field} reaches {np.nanmax(np.abs(episode.action[:, d])):.3g} times its limit')


@of_episode('negative-cost', ERROR, 'A cost is below zero.', 'Costs count violations: correct the sign in the labels.')
def negative_cost(episode: Episode, contract: Contract, seen: Seen) -> Iterator[Mark]:
    """Costs below zero."""
    bad = episode.cost < 0
    if bad.any():
        yield Mark('cost', int(bad.argmax()), int(bad.sum()), f'cost is {episode.cost[bad][0]:g}')


@of_episode('flags', ERROR, '`is_first` or `is_last` stands elsewhere than at the first or last record.',
            'Set each of them for exactly one record of an episode.')
def flags(episode: Episode, contract: Contract, seen: Seen) -> Iterator[Mark]:
    """Marks of beginning and end at the wrong record."""
    if not episode.is_first[0]:
        yield Mark('is_first', 0, 1, 'is_first is not set at the first record')
    for key, inner, first in (('is_first', episode.is_first[1:], 1), ('is_last', episode.is_last[:-1], 0)):
        if inner.any():
            yield Mark(key, int(inner.argmax()) + first, int(inner.sum()), f'{key} is set inside the episode')


@of_episode('order', ERROR, 'Stamps or counters do not rise within an episode.',
            'Stamp all messages of a step with one clock that is not set back.')
def order(episode: Episode, contract: Contract, seen: Seen) -> Iterator[Mark]:
    """Stamps that stand or fall, counters that do not count by one."""
    stamps, steps = np.diff(episode.stamp), np.diff(episode.step)
    if (stamps <= 0).any():
        yield Mark('stamp', int((stamps <= 0).argmax()) + 1, int((stamps <= 0).sum()), 'the stamp does not rise')
    if (steps != 1).any():
        at = int((steps != 1).argmax())
        yield Mark('step', at + 1, int((steps != 1).sum()), f'the counter rises by {steps[at]}, expected 1')


# -------------------------------------------------------------------------------------------- warnings of an episode

@of_episode('gap', WARNING, 'Records are missing: the episode is a fragment of a longer one.',
            'Harmless now and then. Often: the recorder loses messages; see `transport`.')
def gap(episode: Episode, contract: Contract, seen: Seen) -> Iterator[Mark]:
    """Fragments, as the importer marks them."""
    if episode.meta.get('gap'):
        yield Mark('gap', 0, 1, f'a fragment of {len(episode)} records')


@of_episode('pause', WARNING, 'Two neighbouring records lie more than three periods apart.',
            'The recorder or the robot stood still meanwhile; the model learns a jump as if it took one step.')
def pause(episode: Episode, contract: Contract, seen: Seen) -> Iterator[Mark]:
    """Holes in time where the counter goes on."""
    wait = np.diff(episode.stamp) * 1e-9
    long = wait > 3 * contract.period
    if long.any():
        yield Mark('stamp', int(long.argmax()) + 1, int(long.sum()),
                   f'{wait.max():.2f} s since the record before, expected {contract.period:g} s')


@of_episode('frozen', WARNING, f'A camera shows the very same picture {FROZEN} times or more while the robot moves.',
            'The driver repeats its last frame under new stamps: restart it, and leave these episodes out.')
def frozen(episode: Episode, contract: Contract, seen: Seen) -> Iterator[Mark]:
    """Pictures that stand while vectors (without any: commands) say that the robot moves."""
    for camera in contract.cameras:
        runs = [(start, stop) for start, stop in _runs(seen.unchanged(camera.name), FROZEN - 1)
                if _moves(episode, start, stop)]
        if runs:
            start, stop = max(runs, key=lambda run: run[1] - run[0])
            yield Mark(camera.name, start, sum(b - a for a, b in runs),
                       f'camera {camera.name} stays the same for {stop - start + 1} pictures while the robot moves')


@of_episode('stuck', WARNING, f'A vector stays the same, bit for bit, for {STUCK} records in which the robot is '
            'commanded to move.',
            'The state publisher stopped or repeats itself; or the robot did not follow (e-stop, limit).')
def stuck(episode: Episode, contract: Contract, seen: Seen) -> Iterator[Mark]:
    """Vectors that stand while commands say that the robot should move."""
    commanded = np.abs(episode.action[:-1]).max(1) >= MOVING
    for vector in contract.vectors:
        values = episode.vectors[vector.name]
        runs = _runs((values[1:] == values[:-1]).all(1) & commanded, STUCK - 1)
        if runs:
            start, stop = max(runs, key=lambda run: run[1] - run[0])
            yield Mark(vector.name, start, sum(b - a for a, b in runs),
                       f'vector {vector.name} does not change for {stop - start + 1} records under commands')


@of_episode('black', WARNING, 'Pictures are black.', 'Lens cap, light, or a camera that was not yet running.')
def black(episode: Episode, contract: Contract, seen: Seen) -> Iterator[Mark]:
    """99 % of all values below 16."""
    yield from _exposed(seen, contract, 0, 'black')


@of_episode('over-exposed', WARNING, 'Pictures are mostly white.', 'Set the exposure of the camera by hand.')
def over_exposed(episode: Episode, contract: Contract, seen: Seen) -> Iterator[Mark]:
    """60 % of all values at 250 or above."""
    yield from _exposed(seen, contract, 1, 'over-exposed')


@of_episode('flat', WARNING, 'Pictures are one colour.', 'The camera is covered, or a driver fills in a test picture.')
def flat(episode: Episode, contract: Contract, seen: Seen) -> Iterator[Mark]:
    """No channel has values more than 8 apart."""
    yield from _exposed(seen, contract, 2, 'of one colour')


@of_episode('terminal-inside', WARNING, '`is_terminal` is set where the episode goes on, or without `is_last`.',
            'Set it with `is_last`, when the task itself ended (not on a time limit).')
def terminal_inside(episode: Episode, contract: Contract, seen: Seen) -> Iterator[Mark]:
    """Terminal records that are not the last."""
    bad = episode.is_terminal & ~episode.is_last
    if bad.any():
        yield Mark('is_terminal', int(bad.argmax()), int(bad.sum()), 'is_terminal is set without is_last')


# ------------------------------------------------------------------------------------------------ of the whole

@of_totals('rate', WARNING, 'The median interval between records is more than 10 % off the period of the contract.',
           "Correct the contract's `rate_hz`, or record at that rate.")
def rate(totals: Totals, contract: Contract) -> Iterator[str]:
    """Median rate."""
    interval = totals.median_interval
    if not 1 / 1.1 <= interval <= 1.1:
        yield f'{contract.rate_hz / interval:.3g} records a second, expected {contract.rate_hz:g}'


@of_totals('late', WARNING, 'More than 5 % of the intervals are longer than one and a half periods.',
           'The recorder cannot keep up, or the camera is slower than the control rate.')
def late(totals: Totals, contract: Contract) -> Iterator[str]:
    """Intervals that are too long."""
    share = totals.share_slower(1.5)
    # A wrong rate is its own finding.
    if share > 0.05 and 1 / 1.1 <= totals.median_interval <= 1.1:
        yield f'{share:.1%} of the intervals between records are longer than {1.5 * contract.period:g} s'


@of_totals('constant', WARNING, 'A dimension of a vector or of the action never changes.',
           'A field of the contract points to the wrong number, or the joint is locked; leave it out of the contract.')
def constant(totals: Totals, contract: Contract) -> Iterator[str]:
    """Dimensions without any spread."""
    for name, fields, spread in [*((v.name, v.fields, totals.vectors[v.name]) for v in contract.vectors),
                                 ('action', contract.action.fields, totals.action)]:
        for d, field in enumerate(fields):
            if spread.count >= FEW and spread.low[d] == spread.high[d]:
                yield f'{name} {field} is {spread.low[d]:g} at all {spread.count} records'


@of_totals('doubled-pictures', WARNING, 'More than 20 % of the pictures are the same as the one before.',
           'The camera is slower than the control rate: raise its rate, or lower that of the contract.')
def doubled_pictures(totals: Totals, contract: Contract) -> Iterator[str]:
    """Repeated frames over all episodes."""
    for name, camera in totals.cameras.items():
        share = camera.doubled / max(camera.pairs, 1)
        if camera.pairs >= FEW and share > 0.2:
            yield (f'{share:.0%} of the pictures of camera {name} repeat the one before, as from a camera of '
                   f'{contract.rate_hz * (1 - share):.2g} Hz')


@of_totals('duplicate-episode', WARNING, 'An episode has the very content of another one.',
           'Leave it out: a copy in the held-out part makes calibration too optimistic.')
def duplicate_episode(totals: Totals, contract: Contract) -> Iterator[str]:
    """Copies, stamps and counters apart."""
    if totals.duplicated:
        some = ', '.join(f'{a} (of {b})' for a, b in totals.duplicates[:5])
        yield f'{totals.duplicated} copies: number {some}{", ..." if totals.duplicated > 5 else ""} in the order read'


@of_totals('colour-order', WARNING, 'Suspicion: red and blue are swapped against the reference colours of this scene.',
           'Look at the sheet. If the driver says `rgb8` and sends bgr, correct its `encoding`.')
def colour_order(totals: Totals, contract: Contract, references: dict | None = None) -> Iterator[str]:
    """Mean colour against a reference (see `fosp_core.doctor.colours`)."""
    yield from swapped(totals, contract, references)


@of_totals('colour-mixed', WARNING, 'Suspicion: some episodes have red and blue swapped against the others.',
           'Look at the sheet; two recorders or two import settings may have been mixed.')
def colour_mixed(totals: Totals, contract: Contract) -> Iterator[str]:
    """Episodes whose colours mirror those of the rest."""
    yield from mixed_orders(totals, contract)


@of_totals('cost-never', WARNING, 'No record has a cost: there is nothing to learn safety from.',
           'Check the label; or add episodes that violate (in simulation, `--mix reckless`).')
def cost_never(totals: Totals, contract: Contract) -> Iterator[str]:
    """No cost at all."""
    if totals.episodes and not totals.cost_records:
        yield f'no cost in {totals.episodes} episodes'


@of_totals('cost-always', WARNING, 'Nearly every record has a cost, or every episode: nothing is known to be safe.',
           'Check the sign and the threshold of the cost; add safe episodes.')
def cost_always(totals: Totals, contract: Contract) -> Iterator[str]:
    """Cost at 95 % of the records, or in each of 20 episodes."""
    arrivals = totals.steps - totals.episodes
    if arrivals and totals.cost_records >= 0.95 * arrivals:
        yield f'cost at {totals.cost_records} of {arrivals} records'
    elif totals.episodes >= FEW and totals.violations == totals.episodes:
        yield f'every one of {totals.episodes} episodes has a cost'


@of_totals('reward-never', WARNING, 'No record has a positive reward: no episode counts as a success.',
           'Check the label; a policy cannot be learned from failures alone.')
def reward_never(totals: Totals, contract: Contract) -> Iterator[str]:
    """No success."""
    if totals.episodes and not totals.successes:
        yield f'no positive reward in {totals.episodes} episodes'


@of_totals('saturation', WARNING, f'A dimension of the action is at its limit at {SATURATED_SHARE:.0%} of the records.',
           "The contract's limits are too narrow for these commands, or their unit is another.")
def saturation(totals: Totals, contract: Contract) -> Iterator[str]:
    """Commands at the limits."""
    if totals.action.count >= FEW:
        for field, met in zip(contract.action.fields, totals.action.met / totals.action.count):
            if met >= SATURATED_SHARE:
                yield f'action {field} is at its limit at {met:.0%} of the records'


@of_totals('idle', WARNING, f'All entries of the action are zero at {IDLE_SHARE:.0%} of the records.',
           'The topic of the commands is another one, or nobody teleoperated.')
def idle(totals: Totals, contract: Contract) -> Iterator[str]:
    """Commands that are all but zero."""
    share = totals.idle / max(totals.action.count, 1)
    if totals.action.count >= FEW and share >= IDLE_SHARE:
        yield f'no command at {share:.0%} of the records'


@of_totals('endless', WARNING, 'Episodes do not end: `is_last` is never set, or forgotten in more than every tenth.',
           'Set `is_last` when an episode ends; the importer cuts one without an end after 4096 records.')
def endless(totals: Totals, contract: Contract) -> Iterator[str]:
    """Episodes without an end, fragments apart."""
    if totals.unended > 0.1 * totals.episodes:
        yield f'{totals.unended} of {totals.episodes} episodes have no is_last'


@of_totals('short', INFO, 'More than every fifth episode is shorter than one second.',
           'Labels that flicker cut an episode into pieces.')
def short(totals: Totals, contract: Contract) -> Iterator[str]:
    """Episodes of less than a second."""
    few = sum(n * contract.period < 1.0 for n in totals.lengths)
    if few > 0.2 * totals.episodes:
        yield f'{few} of {totals.episodes} episodes are shorter than one second'


def _runs(same: np.ndarray, least: int) -> list[tuple[int, int]]:
    """Return (first record, last record) of each stretch of at least `least` True in a row."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], same, [False]]).astype(np.int8)))
    return [(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2]) if b - a >= least]


def _moves(episode: Episode, start: int, stop: int) -> bool:
    """Does the robot move between two records: by 5 % of the range of the episode in some dimension of a vector."""
    if not episode.vectors:
        return bool(np.abs(episode.action[start:stop]).max() >= MOVING)
    for values in episode.vectors.values():
        whole, part = np.ptp(values, axis=0), np.ptp(values[start:stop + 1], axis=0)
        if ((part > 0.05 * whole) & (whole > 1e-6)).any():
            return True
    return False


def _exposed(seen: Seen, contract: Contract, which: int, word: str) -> Iterator[Mark]:
    for camera in contract.cameras:
        bad = seen.exposure(camera.name)[which]
        if bad.any():
            yield Mark(camera.name, int(bad.argmax()), int(bad.sum()),
                       f'{bad.sum()} of {len(bad)} pictures of camera {camera.name} are {word}')
