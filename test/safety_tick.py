# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""A tick of the filter's decision: limits, good inputs, an answer of the model, a filter in the middle of motion."""

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fosp_core.safety.candidates import candidates
from fosp_core.safety.filter import FilterInputs, FilterState, ModelOutput, decide
from fosp_core.safety.limits import FilterLimits, Situation

LIMITS = FilterLimits(low=(-0.25,) * 3, high=(0.25,) * 3, period=0.1, staleness=0.25, max_speed=0.3,
                      box_low=(0.3, -0.4, 0.03), box_high=(0.7, 0.4, 0.5))
FRESH = {'camera': 0.01, 'pose': 0.01, 'command': 0.01}
HERE = Situation(np.array([0.5, 0.0, 0.2]))
WANTED = np.array([0.1, 0.05, 0.0])
COMMANDS = arrays(np.float64, 3, elements=st.floats(-5, 5))
PATH = tuple(np.array([0.5 - 0.03 * k, 0.0, 0.2]) for k in (3, 2, 1, 0))


def good(**changes):
    return FilterInputs(**{'proposal': WANTED, 'ages': FRESH, 'situation': HERE, 'model_ready': True, **changes})


def answer(inputs, state, risk=0.1, level=0.5, surprise=1.0, **changes):
    made = candidates(inputs.proposal, LIMITS, inputs.situation, state.last, state.path)
    risk = np.broadcast_to(np.asarray(risk, np.float64), len(made.commands))
    return ModelOutput(**{'candidates': made, 'risk': risk, 'surprise': surprise, 'level': level, 'level_slow': 5.0,
                          'level_stop': 9.0, **changes})


def run(ticks, inputs=None, state=None, start=0.0, **output):
    """Decide `ticks` times, 0.1 s apart; return the last command and reason, and the state."""
    inputs, state = inputs or good(), state or FilterState.initial(3)
    for k in range(ticks):
        command, reason, state = decide(inputs, answer(inputs, state, **output), LIMITS, state, start + 0.1 * k)
    return command, reason, state


MOVING = run(30)[2]     # a filter in the middle of good motion, at t = 2.9
