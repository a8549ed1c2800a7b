"""Locks that a forked child does not find held by a thread of its parent's."""

from __future__ import annotations

import itertools
import os
import threading
import weakref

__all__ = ["lock_over_forks"]

_locks: weakref.WeakSet[threading.Lock] = weakref.WeakSet()
_changing = threading.Lock()
_held: list[threading.Lock] = []


def lock_over_forks() -> threading.Lock:
    """A lock for short work, without another such lock inside: a fork waits until it is free.

    Giving the child a new lock instead would not do for SQLite, which has locks of its own.
    """
    lock = threading.Lock()
    with _changing:
        _locks.add(lock)
    return lock


def _hold() -> None:
    for each in itertools.chain([_changing], _locks):
        each.acquire()
        _held.append(each)


def _let_go() -> None:
    while _held:  # only these: Python swallows what interrupts `_hold`
        _held.pop().release()


if hasattr(os, "register_at_fork"):  # Windows does not fork
    os.register_at_fork(before=_hold, after_in_parent=_let_go, after_in_child=_let_go)
