# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""A bundle whose next fine-tune learns otherwise: networks, graphs and levels stay bit for bit. No torch."""

from pathlib import Path

from fosp_core.config import Config
from fosp_core.contract import Contract
from fosp_core.deploy import card
from fosp_core.deploy.bundle import Bundle
from fosp_core.errors import FospError

# Keys that no exported graph has read: what the bundle does now hangs on none of them.
FREE = ('alignment.', 'gates.', 'train.', 'expansion.init', 'expansion.online_')


def with_settings(bundle: Bundle, out: Path, version: str, overrides: list[str], contract: Contract | None = None,
                  note: str | None = None) -> Bundle:
    """Write a child of `bundle` with `section.key=value` changes of its configuration, and the contract's `mirror`.

    Its evaluations pass on: it acts as its parent does.

    Raises
    ------
    FospError
        For a key that is unknown, out of range or none of a fine-tune alone; for a bundle without a configuration.

    """
    for override in overrides:
        if not override.startswith(FREE):
            raise FospError(f'--set {override}: the model itself hangs on it; expected a key of a fine-tune alone: '
                            f'{", ".join(f"{k}*" if k.endswith((".", "_")) else k for k in FREE)}')
    where = f'{bundle.path}/manifest.json'
    if 'config' not in bundle.manifest:
        raise FospError(f'{where}: no key config; this model cannot be fine-tuned')
    config = Config.from_dict(bundle.manifest['config'], f'{where}: config').changed(overrides)
    changes = card.same_model(bundle) | {'config': config.to_dict()} | card.noted(note)
    return card.derive(bundle, out, version, changes, mirror=None if contract is None else contract.mirror)
