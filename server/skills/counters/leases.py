"""The live replies of this process, by the owners whose concurrent replies are limited."""

from collections import Counter
from collections.abc import Iterable, Mapping


class Leases:
    """Each live reply holds a lease, which counts for each of its owners."""

    def __init__(self) -> None:
        self._owners: dict[str, tuple[str, ...]] = {}
        self._count: Counter[str] = Counter()

    def full(self, limits: Mapping[str, int]) -> str | None:
        """The first owner that has no room for another reply, or None."""
        return next((owner for owner, limit in limits.items() if self._count[owner] >= limit), None)

    def add(self, lease: str, owners: Iterable[str]) -> None:
        """Count a live reply for its owners."""
        self._owners[lease] = tuple(owners)
        self._count.update(self._owners[lease])

    def remove(self, lease: str) -> tuple[str, ...]:
        """Stop counting a reply; returns its owners, none if it was not counted."""
        owners = self._owners.pop(lease, ())
        self._count.subtract(owners)
        return owners

    def by_owner(self) -> dict[str, tuple[str, ...]]:
        """The leases of each owner that has some."""
        found: dict[str, tuple[str, ...]] = {}
        for lease, owners in self._owners.items():
            for owner in owners:
                found[owner] = (*found.get(owner, ()), lease)
        return found

    def __contains__(self, lease: str) -> bool:
        return lease in self._owners
