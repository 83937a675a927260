"""Waiting for a condition, never for a time."""

import time


class TimedOut(Exception):
    """What was waited for did not come."""


def until(what, condition, seconds=60, pause=0.1):
    """Calls `condition()` until it returns something true, and returns that.

    An answer that never comes is an error that names `what` and the last answer.
    """
    deadline = time.monotonic() + seconds
    while True:
        answer = condition()
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise TimedOut(f"waited {seconds} s for {what}; the last answer was {answer!r}")
        time.sleep(pause)
