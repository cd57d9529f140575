"""What ranks may talk through."""

from __future__ import annotations

ENGINES = ("auto", "horovod", "torch")  # the first follows the launcher
