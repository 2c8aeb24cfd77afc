"""Pages are drawn for an address so many at a time, and for others at once."""

from __future__ import annotations

import threading
import time

import pytest

from app import turns
from app.turns import taking_turns


def test_an_address_has_so_many_turns_and_others_do_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "PATIENCE", 20.0)
    over, entered, most = threading.Event(), [], 0

    def run() -> None:
        nonlocal most
        with taking_turns("crowd"):
            entered.append(1)
            most = max(most, len(entered))
            over.wait(5)
            entered.pop()

    threads = [threading.Thread(target=run) for _ in range(6)]
    for thread in threads:
        thread.start()
    began = time.monotonic()
    with taking_turns("elsewhere"):
        assert time.monotonic() - began < 1
    time.sleep(0.1)
    over.set()
    for thread in threads:
        thread.join(5)
    assert most == turns.AT_ONCE and not entered


def test_a_turn_is_given_back_however_it_ends_and_nobody_waits_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "PATIENCE", 0.05)
    for _ in range(turns.AT_ONCE + 1):
        with pytest.raises(ZeroDivisionError), taking_turns("a"):
            raise ZeroDivisionError
    with taking_turns("a"), taking_turns("a"), taking_turns("a"):  # the third has waited long enough
        pass
    began = time.monotonic()
    with taking_turns("a"):
        assert time.monotonic() - began < 0.04
