# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The way of an offered model into a node: history, shadow, swap, refusal; with models that are a few lines each."""

import dataclasses
import threading
import time

import numpy as np
import pytest

from fosp_core.deploy.runtime import FilterOutput, PolicyOutput
from fosp_core.errors import BundleError
from fosp_ros import model_slot
from fosp_ros.model_slot import CATCH_UP, ModelSlot, unfit

OUTPUT = PolicyOutput(np.zeros(3), 0, np.zeros((2, 3)), np.zeros(2), np.array([0.0, 1.0]), 0.1)
SCORED = FilterOutput(np.array([0.0, 0.5, 1.0]), np.zeros(3), 0.5, 0.1)


class Runtime:
    """Sums what it sees, slowly enough to be overtaken."""

    def __init__(self, bundle, delay=0.0):
        self.bundle, self.delay, self.seen, self.answer = bundle, delay, [], OUTPUT

    def warm_up(self):
        pass

    def step(self, record):
        time.sleep(self.delay)
        self.seen.append(record)
        return self.answer(record) if callable(self.answer) else self.answer


class Name(str):
    """A bundle."""

    sha256 = property(str)


class Offer:
    """A slot whose bundles are names."""

    def __init__(self, monkeypatch, delay=0.0, refuse=(), shadow_ticks=0):
        self.gate, self.answer = threading.Event(), OUTPUT

        def load(slot, data):
            self.gate.wait(5.0)
            if data in refuse:
                raise BundleError(f'{data}: damaged')
            if slot._stays(Name(data)):
                return None
            self.loaded = Runtime(data, delay)
            self.loaded.answer = self.answer
            return model_slot._Offered(self.loaded, Name(data))
        monkeypatch.setattr(ModelSlot, '_load', load)
        self.slot = ModelSlot(Runtime, lambda runtime, record: runtime.step(record), None,
                              shadow_ticks=shadow_ticks)
        self.slot.runtime = Runtime('first')

    def tick(self, value, first=False):
        """One control period: the live model decides, then the slot may swap."""
        self.remember(value, first)
        return self.slot.swap()

    def remember(self, value, first=False):
        self.slot.runtime.step(value)
        self.slot.remember(value, first)

    def until(self, condition, timeout=5.0):
        end = time.monotonic() + timeout
        while not condition():
            assert time.monotonic() < end
            time.sleep(0.001)


def test_a_new_model_has_seen_this_episode_and_nothing_else(monkeypatch):
    offer = Offer(monkeypatch)
    slot = offer.slot
    for k in range(5):
        offer.remember(k, first=k in (0, 2))
    slot.offer('second')
    offer.remember(5)
    assert not slot.swap(), 'nothing is ready yet'
    offer.gate.set()
    offer.until(lambda: slot._ready is not None)
    offer.remember(6)
    assert slot.swap() and slot.bundle == 'second' and slot.swaps == 1
    assert slot.runtime.seen == [2, 3, 4, 5, 6]
    assert not slot.swap()


def test_the_control_thread_never_replays_more_than_it_may(monkeypatch):
    offer = Offer(monkeypatch, delay=0.001)
    slot = offer.slot
    slot.offer('second')
    offer.gate.set()
    offer.until(lambda: slot._ready is not None)
    for k in range(CATCH_UP + 3):
        offer.remember(k, first=k == 0)
    assert not slot.swap(), 'too far behind: the loader must catch up first'
    offer.until(lambda: slot.swap())
    assert slot.runtime.seen == list(range(CATCH_UP + 3))


def test_the_newest_offer_wins_and_a_refused_one_leaves_the_live_model(monkeypatch):
    offer = Offer(monkeypatch, refuse=('bad',))
    slot = offer.slot
    live = slot.runtime
    slot.offer('bad')
    offer.gate.set()
    offer.until(lambda: slot.refused == 1 and not slot.loading)
    assert slot.runtime is live and slot.refusal == 'bad: damaged' and not slot.swap()
    offer.gate.clear()
    for name in ('second', 'third', 'fourth'):
        slot.offer(name)
    offer.gate.set()
    offer.until(lambda: not slot._thread and slot._ready is not None)
    assert slot.swap() and slot.bundle == 'fourth'
    assert slot.refusal == '' and slot.refused == 1, 'told of until a newer one is live'
    slot.close()
    slot.offer('late')
    assert not slot.loading


def test_an_offered_model_runs_in_shadow_for_its_ticks_while_the_live_one_acts(monkeypatch):
    offer = Offer(monkeypatch, shadow_ticks=3)
    slot = offer.slot
    live = slot.runtime
    for k in range(4):
        assert not offer.tick(k, first=k == 0)
    slot.offer('second')
    offer.gate.set()
    offer.until(lambda: getattr(offer, 'loaded', None) and offer.loaded.seen == [0, 1, 2, 3])
    time.sleep(0.05)
    assert slot._ready is None and slot.loading, 'the history is no shadow'
    for k in range(4, 7):
        assert not offer.tick(k) and slot.runtime is live
        offer.until(lambda k=k: offer.loaded.seen[-1] == k)
    offer.until(lambda: slot._ready is not None)
    assert offer.tick(7) and slot.runtime is offer.loaded and slot.runtime.seen == list(range(8))
    assert live.seen == list(range(8)) and slot.swaps == 1 and not slot.refused


def test_the_shadow_waits_until_the_command_is_out(monkeypatch):
    offer = Offer(monkeypatch, shadow_ticks=3)
    offer.slot.offer('second')
    offer.gate.set()
    offer.tick(0, first=True)
    offer.until(lambda: getattr(offer, 'loaded', None) and offer.loaded.seen == [0])
    offer.remember(1)       # decided; the command is not out yet
    time.sleep(0.05)
    assert offer.loaded.seen == [0]
    offer.slot.swap()
    offer.until(lambda: offer.loaded.seen == [0, 1])


@pytest.mark.parametrize('when', ['history', 'shadow', 'last'])
@pytest.mark.parametrize(('wrong', 'why'), [
    (PolicyOutput(np.full(3, np.nan), 0, np.zeros((2, 3)), np.zeros(2), np.zeros(2), 0.1), 'action is not finite'),
    (FilterOutput(np.array([0.5, 1.5]), np.zeros(3), 0.5, 0.1), 'risk is 0.5 to 1.5, expected 0 to 1'),
    (None, 'ValueError: filter.onnx: output not finite')])
def test_a_model_with_an_unfit_output_is_refused_and_the_live_one_stays(monkeypatch, when, wrong, why):
    at = {'history': 1, 'shadow': 4, 'last': 6}[when]

    def answer(record):
        if record != at:
            return OUTPUT
        if wrong is None:
            raise ValueError('filter.onnx: output not finite')
        return wrong
    offer = Offer(monkeypatch, shadow_ticks=3)
    offer.answer = answer
    slot, live = offer.slot, offer.slot.runtime
    for k in range(3):
        offer.tick(k, first=k == 0)
    slot.offer('second')
    offer.gate.set()
    for k in range(3, 8):
        offer.until(lambda k=k: slot.refused or (getattr(offer, 'loaded', None) and offer.loaded.seen[-1:] == [k - 1]))
        offer.until(lambda k=k: slot.refused or k < 6 or slot._ready)
        assert not offer.tick(k)
    offer.until(lambda: slot.refused == 1 and not slot.loading)
    assert slot.runtime is live and live.seen == list(range(8)) and slot.swaps == 0
    assert slot.refusal.startswith('model second: in shadow, ') and slot.refusal.endswith(why)
    offer.answer = OUTPUT       # and the way is free for the next one
    slot.offer('third')
    ticks = iter(range(8, 1000))
    offer.until(lambda: offer.tick(next(ticks)) or time.sleep(0.005))
    assert slot.bundle == 'third' and slot.refused == 1


def test_a_newer_offer_ends_the_shadow_of_the_one_before(monkeypatch):
    offer = Offer(monkeypatch, shadow_ticks=3)
    offer.gate.set()
    offer.slot.offer('second')
    offer.until(lambda: getattr(offer, 'loaded', None) and offer.loaded.bundle == 'second')
    offer.slot.offer('third')
    offer.until(lambda: offer.loaded.bundle == 'third')     # without a tick between
    ticks = iter(range(1000))
    offer.until(lambda: offer.tick(next(ticks)) or time.sleep(0.005))
    assert offer.slot.bundle == 'third' and offer.slot.swaps == 1


@pytest.mark.parametrize('ready', [False, True])
def test_the_live_model_offered_again_ends_the_way_of_the_one_that_waits(monkeypatch, ready):
    """A rollback to the live one that comes while its successor is in shadow, or waits for its swap."""
    offer = Offer(monkeypatch, shadow_ticks=0 if ready else 3)
    slot = offer.slot
    slot.bundle = Name('first')
    offer.gate.set()
    slot.offer('second')
    offer.until(lambda: getattr(offer, 'loaded', None) and (slot._ready or not ready))
    slot.offer('first')
    offer.until(lambda: not slot.loading)
    for k in range(5):
        assert not offer.tick(k, first=k == 0)
    assert slot.bundle == 'first' and slot.swaps == 0 and not slot.refused


@pytest.mark.parametrize('fit', [True, False])
def test_the_live_model_offered_while_another_is_taken_over_is_not_forgotten(monkeypatch, fit):
    """A rollback in the tenths of a second in which the control thread replays the last records of the new model."""
    offer, entered, go_on = Offer(monkeypatch), threading.Event(), threading.Event()
    slot = offer.slot
    slot.bundle = Name('first')
    offer.gate.set()
    offer.remember(0, first=True)
    slot.offer('second')
    offer.until(lambda: slot._ready is not None)

    def blocked(record):
        entered.set()
        assert go_on.wait(5.0)
        return OUTPUT if fit else dataclasses.replace(OUTPUT, surprise=float('nan'))
    offer.loaded.answer = blocked
    offer.remember(1)
    swap = threading.Thread(target=slot.swap)
    swap.start()
    assert entered.wait(5.0)
    slot.offer('first')
    offer.until(lambda: not slot._thread)
    go_on.set()
    swap.join(5.0)
    assert (slot.bundle == 'second') == fit and slot.refused == (not fit) and slot._taking is None
    assert slot.swap() and slot.bundle == 'first' and slot.runtime.seen == [0, 1]
    slot.offer('second')    # and forward again
    offer.until(lambda: not slot._thread)
    assert slot.swap() and slot.bundle == 'second'


@pytest.mark.parametrize('moves', [False, True])
def test_without_ticks_the_model_is_swapped_in_at_rest_but_not_into_a_motion_that_begins(monkeypatch, moves):
    offer = Offer(monkeypatch, shadow_ticks=3)
    slot = offer.slot
    offer.tick(0, first=True)
    offer.gate.set()
    slot.offer('second')
    offer.until(lambda: getattr(offer, 'loaded', None) and offer.loaded.seen == [0])
    assert not slot.swap(idle=True)
    offer.until(lambda: slot._ready and not slot._thread)
    for k in range(1, 4 if moves else 1):
        assert not offer.tick(k), 'ticks come again: shadow first'
        offer.until(lambda k=k: offer.loaded.seen[-1] == k)
    offer.until(lambda: slot._ready)
    assert offer.tick(4) if moves else slot.swap(idle=True)
    assert slot.bundle == 'second' and not slot.refused


def test_closing_ends_a_shadow_that_waits_for_ticks(monkeypatch):
    offer = Offer(monkeypatch, shadow_ticks=3)
    offer.gate.set()
    offer.slot.offer('second')
    offer.until(lambda: getattr(offer, 'loaded', None))
    began = time.monotonic()
    offer.slot.close()
    assert time.monotonic() - began < 2.0 and not offer.slot.loading


def test_an_output_is_judged_by_its_numbers():
    assert unfit(OUTPUT) == '' and unfit(SCORED) == ''
    for field, value, why in (('risk', np.array([-0.1]), 'risk is -0.1 to -0.1'),
                              ('offline_risk', 1.1, 'offline_risk is'),
                              ('surprise', np.inf, 'surprise is not finite'),
                              ('offline_action', np.full(3, np.nan), 'offline_action is not finite')):
        assert unfit(FilterOutput(**{**vars(SCORED), field: value})).startswith(why)


def test_a_refusal_is_told_of_though_an_older_offer_goes_live_after_it(monkeypatch):
    offer = Offer(monkeypatch, refuse=('bad',))
    slot = offer.slot
    offer.gate.set()
    slot.offer('second')
    offer.until(lambda: slot._ready is not None and not slot._thread)
    slot.offer('bad')
    offer.until(lambda: slot.refused == 1)
    assert slot.swap() and slot.bundle == 'second' and slot.refusal == 'bad: damaged'
    slot.offer('second')
    offer.until(lambda: slot.refusal == '')
