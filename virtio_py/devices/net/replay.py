"""Anti-replay: which sequence numbers an inbound association has seen (RFC 4303, 3.4.3 and appendix A)."""

from __future__ import annotations

from typing import Final

from attrs import define, field

_LOW: Final = 1 << 32
_LEAST_GUESS: Final = 64
"""Where replay is not looked for, the upper half of an extended number has to be guessed all the same."""


@define
class ReplayWindow:
    """The last `size` sequence numbers up to the highest one that was genuine; a size of 0 accepts all.

    extended: numbers have 64 bits, of which the lower 32 are sent
    """

    size: int
    extended: bool = False
    top: int = field(default=0, init=False)
    _seen: int = field(default=0, init=False)

    def number(self, low: int) -> int:
        """The whole sequence number whose lower half was received: the one nearest to the window. -1 if there cannot
        be such a one."""
        if not self.extended:
            return low
        high, top = divmod(self.top, _LOW)
        bottom = top - max(self.size, _LEAST_GUESS) + 1
        # The window lies in one span of 2^32, or reaches down into the one before it.
        if bottom >= 0:
            high += low < bottom
        else:
            high -= low >= bottom + _LOW
        return high * _LOW + low if 0 <= high < _LOW else -1

    def admits(self, number: int) -> bool:
        """Whether a packet of this number may be genuine: it was not seen, and is not too old. 0 is never sent."""
        if number <= 0:
            return False
        age = self.top - number
        return not self.size or age < 0 or (age < self.size and not self._seen >> age & 1)

    def accept(self, number: int) -> None:
        """Notes a packet that was genuine, and was admitted."""
        ahead = max(0, number - self.top)
        self.top += ahead
        if self.size:
            kept = self._seen << ahead if ahead < self.size else 0
            self._seen = (kept | 1 << self.top - number) & (1 << self.size) - 1

    def resume(self, old: ReplayWindow) -> None:
        """Goes on where another window of the same key stood."""
        self.top, self._seen = old.top, old._seen & (1 << self.size) - 1
