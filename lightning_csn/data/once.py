"""A warning that is given once, however often its cause is met."""

from __future__ import annotations

import functools
import logging


@functools.cache
def warn_once(log: logging.Logger, message: str) -> None:
    """Log a message unless this process has; a DataLoader's workers say it each for themselves."""
    log.warning(message)
