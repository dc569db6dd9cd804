"""What is open until it is closed, at the end of a `with` block at the latest."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TypeVar

Self = TypeVar("Self", bound="Closing")  # typing has it since Python 3.11


class Closing(ABC):
    """Closed by `close`, or by the `with` block that it stands in."""

    @abstractmethod
    def close(self) -> None:
        """Let go of what is open."""

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
