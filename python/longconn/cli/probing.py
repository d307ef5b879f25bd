"""Finding how long a path remembers an idle connection: which idle times to try next. No clock, no sockets."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Search"]

#: Each idle time of the first round is so many times the one before.
_LADDER = 1.5


@dataclass
class Search:
    """A bisection whose rounds try several idle times at once, for each costs as long as it is.

    Args:
        least: The shortest idle time to try, seconds.
        most: The longest.
        tolerance: Seconds; the search is done when it knows it so exactly, or to 5 % of it.
        width: Idle times in a round, at the most.
    """

    least: float = 5.0
    most: float = 1800.0
    tolerance: float = 1.0
    width: int = 8
    survived: list[float] = field(default_factory=list)
    forgotten: list[float] = field(default_factory=list)

    @property
    def forgets_within(self) -> float:
        """The shortest idle time that wasn't survived; infinite if all were."""
        return min(self.forgotten, default=math.inf)

    @property
    def survives(self) -> float:
        """The longest that was, below it; 0 if none."""
        return max((idle for idle in self.survived if idle < self.forgets_within), default=0.0)

    @property
    def contradictions(self) -> list[float]:
        """Longer idle times that were survived all the same: the path doesn't always forget."""
        return sorted(idle for idle in self.survived if idle >= self.forgets_within)

    @property
    def is_done(self) -> bool:
        if math.isinf(self.forgets_within):
            return self.survives >= self.most
        gap = self.forgets_within - self.survives
        return gap <= max(self.tolerance, 0.05 * self.forgets_within) or self.forgets_within <= self.least

    def next_round(self) -> list[float]:
        """Idle times to try at once, ascending; who meets the first that isn't survived may leave the rest."""
        if self.is_done:
            return []
        if math.isinf(self.forgets_within):
            idle, ladder = max(self.least, self.survives * _LADDER), []
            while idle < self.most:
                ladder.append(idle)
                idle *= _LADDER
            return [*ladder, self.most]
        if not self.survived:
            return [self.least]
        low = max(self.survives, self.least)
        step = (self.forgets_within - low) / (self.width + 1)
        return [low + step * number for number in range(1, self.width + 1)]

    def record(self, idle: float, *, survived: bool) -> None:
        """What came of one."""
        (self.survived if survived else self.forgotten).append(idle)

    def to_json(self) -> dict[str, Any]:
        """To go on with later."""
        return {"survived": sorted(self.survived), "forgotten": sorted(self.forgotten)}
