# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Errors that a user can cause: the command line prints them as one line and exits with code 2.

Each message names the file, topic or key, what was found and what was expected. A traceback is kept for our own
faults alone.
"""


class FospError(Exception):
    """Base of every error that bad input can cause."""


class ContractError(FospError):
    """The contract file is wrong, or two parties hold different contracts."""


class DataError(FospError):
    """A bag, an episode or a step cannot be used as training data."""


class BundleError(FospError):
    """A model bundle is missing, damaged, foreign or not fit to be run."""


class RefusedError(BundleError):
    """A new model did not pass a gate: it may be kept to be looked at, but must not be run."""


class RenderError(FospError):
    """No headless OpenGL platform works on this machine."""


class TrainingError(FospError):
    """Training cannot start or go on; the last good checkpoint is intact."""


class AlignmentError(TrainingError):
    """Value pre-alignment made the critics rank worse than its limits allow: there is no new model."""
