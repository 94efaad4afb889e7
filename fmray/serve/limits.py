"""The rates of the whole application: every replica of the face asks here, so that a limit is one limit however many they are."""

import time
from collections.abc import Callable

from fmray.serve.protection import Bucket, Protection


class Limits:
    """The deployment that counts. A new replica of it, after an upgrade or a crash, begins with full buckets."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._buckets: dict[str, Bucket] = {}
        self._clock = clock

    async def take(self, name: str, per_min: int) -> int | None:
        """None when the owner of a key may ask now, else the whole seconds after which they may."""
        now_s = self._clock()
        bucket = self._buckets.get(name)
        if bucket is None or bucket.per_min != per_min:
            bucket = self._buckets[name] = Bucket(per_min, now_s)
        return bucket.take(now_s)


def rated(protection: Protection) -> bool:
    """Whether anybody's rate is limited, so that somebody must count."""
    return protection.requests_per_min is not None or any(key.requests_per_min is not None for key in protection.keys)
