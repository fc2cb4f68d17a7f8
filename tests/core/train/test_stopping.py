"""Signals ask a run to stop."""

import signal

import pytest

from reformer_core.train.stopping import stop_on_signals


@pytest.mark.parametrize("second_ends", [True, False])
def test_a_signal_asks_to_stop_and_the_handlers_come_back(second_ends: bool) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with stop_on_signals(second_ends=second_ends) as received:
        assert received() is None
        signal.raise_signal(signal.SIGTERM)
        assert received() == signal.SIGTERM
        assert (signal.getsignal(signal.SIGTERM) == before) == second_ends
    assert signal.getsignal(signal.SIGTERM) == before
