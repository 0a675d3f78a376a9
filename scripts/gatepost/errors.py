"""The one exception that reaches the user as text."""

from __future__ import annotations


class GatepostError(Exception):
    """A mistake or a state of the world that the user can do something about.

    `found` says what was found and where, `expected` what was expected instead, `next_step` what to do now. The command
    line prints the three and exits with `exit_code`; a traceback is never shown for it.
    """

    def __init__(self, found: str, *, expected: str = "", next_step: str = "", exit_code: int = 2) -> None:
        super().__init__(found)
        self.found = found
        self.expected = expected
        self.next_step = next_step
        self.exit_code = exit_code

    def __str__(self) -> str:
        lines = [self.found]
        if self.expected:
            lines.append(f"Expected: {self.expected}")
        if self.next_step:
            lines.append(f"Next: {self.next_step}")
        return "\n".join(lines)
