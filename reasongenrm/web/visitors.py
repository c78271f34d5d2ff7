"""Limits on what one visitor may have in flight."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager


class TooManyError(Exception):
    """This visitor has as much in progress as one may have."""


class Visitors:
    """Counts what is in progress, by address.

    Args:
        most: per address, >= 1. Behind a proxy, uvicorn knows the visitors' addresses if FORWARDED_ALLOW_IPS names the proxy.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._under_way: Counter[str] = Counter()

    @contextmanager
    def one_more(self, address: str) -> Iterator[None]:
        """Count one while the context lasts.

        Raises:
            TooManyError: it would be one too many.
        """
        if self._under_way[address] >= self._most:
            raise TooManyError(address)
        self._under_way[address] += 1
        try:
            yield
        finally:
            self._under_way[address] -= 1
            if not self._under_way[address]:
                del self._under_way[address]
