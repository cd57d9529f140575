"""Each program that the documents call, and its own parser of a command line. Nothing is started by it.

A program that calls another (`sudo`, `horovodrun`, `sbatch`) hands the rest of the line over. What its parser
does not take is a `RefusedError` with what the program says; a program that is not known here is one too.
"""

from __future__ import annotations

from tests.helpers.command_calls import PROGRAMS, Call, RefusedError, understand
from tests.helpers.command_others import OTHERS
from tests.helpers.command_ours import OURS

__all__ = ["PROGRAMS", "Call", "RefusedError", "understand"]
PROGRAMS.update({**OURS, **OTHERS})
