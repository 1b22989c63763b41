"""Answers that are kept for a while."""

from __future__ import annotations

from chatapp.accounts.remembered import Remembered


def test_an_answer_holds_for_its_time() -> None:
    """Up to the time, and not at it; each question states its own."""
    now = [100.0]
    kept: Remembered[str, int] = Remembered(2, lambda: now[0])
    kept.put("a", 1)
    now[0] = 104.9
    assert kept.get("a", within_s=5) == 1
    now[0] = 105.0
    assert kept.get("a", within_s=5) is None
    assert kept.get("a", within_s=6) == 1


def test_its_size_is_bounded() -> None:
    """Who invents keys fills no memory; the oldest goes first."""
    kept: Remembered[int, int] = Remembered(3, lambda: 0.0)
    for key in (1, 2, 3, 1, 4):
        kept.put(key, key)
    assert [kept.get(key, within_s=1) for key in (1, 2, 3, 4)] == [1, None, 3, 4]
    kept.forget(3)
    kept.forget(9)
    assert kept.get(3, within_s=1) is None
