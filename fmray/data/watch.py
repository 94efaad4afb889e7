"""Following tasks over a corpus: adding up what they bring, telling the terminal, stopping when too much is unreadable."""

import time
from collections.abc import Mapping, Sequence

from fmray.core.errors import DataError
from fmray.core.stage import Out
from fmray.data.filters import Filter
from fmray.data.ingest import Ingested, Reading
from fmray.data.sources import Share

MB = 1_000_000
SEEN_ENOUGH = 1000
"""Inputs after which a share of unreadable ones above the bound stops the run before its end."""


def readings(shares: Mapping[str, Share], filters: Sequence[Filter] = ()) -> list[Reading]:
    """All parts of all sources, numbered, each with the filters that are for its source."""
    return [
        Reading(s, p, partition, share.source.on_error, tuple(f for f in filters if not f.sources or name in f.sources))
        for s, (name, share) in enumerate(shares.items())
        for p, partition in enumerate(share.source.partitions())
    ]


def n_shards(shard_mb: float | None, n_bytes: int) -> int:
    """How many shards a corpus becomes; see `PrepareConfig.shard_mb`."""
    size_mb = shard_mb if shard_mb is not None else min(256.0, max(4.0, n_bytes / MB / 64))
    return max(1, round(n_bytes / (size_mb * MB)))


class Watch:
    """Called with the result of each task as it finishes; `read` is the sum of what reading gave so far."""

    def __init__(self, out: Out, what: str, total: int, shares: Mapping[str, Share]) -> None:
        self.read = Ingested()
        self._shares = list(shares.values())
        self._by_source = [Ingested(source=s) for s in range(len(self._shares))]
        self._out, self._what, self._total = out, what, total
        self._done = self._n_tokens = 0
        self._started = time.monotonic()
        out.progress(what, done=0, total=total)

    def __call__(self, read: Ingested | None, n_tokens: int = 0) -> None:
        """Takes what one task read (None: it read no source) and how many tokens it wrote.

        Raises:
            DataError: more of its source cannot be read than the source bears.
        """
        self._done += 1
        self._n_tokens += n_tokens
        figures: dict[str, float] = {}
        if read is not None:
            self.read.add(read)
            self._by_source[read.source].add(read)
            mine = self._by_source[read.source]
            if self._done == self._total or mine.n_read + mine.counts.n_bad >= SEEN_ENOUGH:
                self._shares[read.source].source.bear(mine.counts, mine.n_read)
            figures |= {"documents": self.read.n_documents, "text_mb": round(self.read.n_bytes / MB, 2)}
        if self._n_tokens:
            figures |= {"tokens": self._n_tokens, "tokens_per_s": self._n_tokens / (time.monotonic() - self._started)}
        self._out.progress(self._what, done=self._done, total=self._total, **figures)


def check_documents(read: Ingested) -> None:
    """Stops when nothing stayed.

    Raises:
        DataError: names what was removed, by rule.
    """
    if not read.n_documents:
        removed = ", ".join(f"{rule}: {n}" for rule, n in sorted((read.counts.removed + read.cleaning.removed).items()))
        raise DataError(
            f"the corpus holds no document (removed {removed or 'none'})",
            where="source",
            todo="check the path and the source's settings",
        )
