# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Whether a run may be gone on with under another configuration: only where the result does not hang on it."""

from fosp_core.config import Config
from fosp_core.errors import TrainingError

# What a run is called, how often it speaks, and what it is allowed to do, but not what it computes; and a key that only
# fine-tunes read, whose default is another one than it was.
FREE = frozenset({'name', 'contract', 'replaced', 'train.log_every', 'train.save_every', 'train.bf16_on_cpu',
                  'expansion.online_in_sample'})
GROWING = ('train.steps', 'train.behaviour_steps')


def flat(config: Config) -> dict[str, object]:
    """Return every key of a configuration as `section.key`, the method first."""
    sections = config.to_dict()
    out: dict[str, object] = {'method': config.method}
    for section, values in sections.items():
        out |= {f'{section}.{k}': v for k, v in values.items()} if isinstance(values, dict) and section != 'replaced' \
            else {section: values}
    return out


def check(begun: Config, now: Config, step: int, where: str, hint: str) -> None:
    """Raise TrainingError unless a run that was `begun` and has made `step` steps goes on the same with `now`.

    Every key must be equal but those of `FREE`; the numbers of steps may grow, that of the joint steps only until the
    behaviour phase has begun: from then on the world model stands still. The message names the first key that differs
    with both values, and how many more there are; `hint` says what else can be done.
    """
    old, new = flat(begun), flat(now)
    differ = [k for k in old if old[k] != new[k] and k not in FREE and not (k in GROWING and new[k] > old[k])]
    if differ:
        key, more = differ[0], f' (and {len(differ) - 1} more keys differ)' if len(differ) > 1 else ''
        grow = ' (it may only grow)' if key in GROWING else ''
        raise TrainingError(f'{where}: key {key} is {old[key]!r}, this run asks for {new[key]!r}{grow}{more}; go on as '
                            f'it was begun, or {hint}')
    if step > begun.train.steps and now.train.steps != begun.train.steps:
        raise TrainingError(f'{where}: key train.steps is {begun.train.steps}, this run asks for {now.train.steps}, '
                            f'but at step {step} the behaviour phase has begun and the world model stands still; raise '
                            f'train.behaviour_steps, or {hint}')
