"""Tasks of a user whose own code fails."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bgrpo.tasks.base import Outcome
from bgrpo.tasks.polynomial.task import PolynomialTask


class RaisingTask(PolynomialTask):
    """Gives problems, and cannot check any."""

    name = "raising"

    def check(self, prompt: str, completion: str) -> Outcome:
        raise KeyError(completion)

    def verify(self, path: Path, progress: Any) -> dict[str, Any]:
        raise ValueError("no such column")


class OddTask(PolynomialTask):
    """Its verify returns something of its own, or what ``returned`` holds."""

    name = "odd"

    def __init__(self, returned: Any = None) -> None:
        super().__init__()
        self._returned = returned

    def verify(self, path: Path, progress: Any) -> Any:
        return self._returned
