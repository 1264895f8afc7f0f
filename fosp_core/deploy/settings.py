# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""A bundle whose next fine-tune learns otherwise: networks, graphs and levels stay bit for bit. No torch."""

import copy
from collections.abc import Sequence
from pathlib import Path

from fosp_core.config import Config
from fosp_core.deploy import card
from fosp_core.deploy.bundle import Bundle
from fosp_core.errors import FospError

# What a fine-tune reads and no exported graph has read: what the bundle does now hangs on none of them. A section's
# name is all of its keys.
FREE = ('alignment', 'gates', 'expansion.init', 'expansion.online_weight', 'expansion.online_lr_scale',
        'expansion.online_in_sample', 'train.mirror', 'train.length', 'train.online_batch', 'train.online_fraction',
        'train.precision', 'train.bf16_on_cpu', 'train.compile', 'train.cuda_graph')


def with_settings(bundle: Bundle, out: Path, version: str, overrides: list[str], mirror: Sequence[str] | None = None,
                  note: str | None = None) -> Bundle:
    """Write a child of `bundle` with `section.key=value` changes of its configuration, and other mirror images.

    Its evaluations pass on: it acts as its parent does. Keys that are not named stay as they are, unsaid ones unsaid.

    Raises
    ------
    FospError
        For a key that is unknown, out of range or none of a fine-tune alone; for a bundle without a configuration.

    """
    keys = [override.partition('=')[0] for override in overrides]
    for key in keys:
        if key not in FREE and key.partition('.')[0] not in FREE:
            raise FospError(f'--set {key}: no key of a fine-tune alone, expected one of {", ".join(FREE)}')
    where = f'{bundle.path}/manifest.json'
    if 'config' not in bundle.manifest:
        raise FospError(f'{where}: no key config; this model cannot be fine-tuned')
    checked = Config.from_dict(bundle.manifest['config'], f'{where}: config').changed(overrides).to_dict()
    config = copy.deepcopy(bundle.manifest['config'])
    for section, name in (key.split('.') for key in keys):
        config.setdefault(section, {})[name] = checked[section][name]
    changes = card.same_model(bundle) | {'config': config} | card.noted(note)
    return card.derive(bundle, out, version, changes, mirror=mirror)
