"""What a TorchScript file may consist of, looked at before PyTorch loads it.

PyTorch compiles such a program and runs it in this process, some of it while the file is loaded, and its
operators can read and write files. One of ours does arithmetic on tensors, so that is all that is let in.
"""

from __future__ import annotations

import ast
import io
import re
import zipfile

PROGRAM = (".py", ".pkl")  # and its structure
MOST_CODE = 4 << 20  # bytes of both; a large model has 0.4 MB
MOST_MEMBERS = 10_000
# The operators that models of ours consist of.
OPERATORS = frozenset(
    (
        *("NumToTensor", "_convolution", "add", "arange", "batch_norm", "cat", "chunk", "contiguous"),
        *("detach", "device", "div", "flatten", "floor_divide", "full_like", "matmul", "max_pool2d"),
        *("meshgrid", "mul", "pad", "permute", "relu", "reshape", "sigmoid", "silu", "size", "slice"),
        *("softmax", "square", "split_with_sizes", "stack", "sub", "to", "transpose", "unbind"),
        *("upsample_nearest2d", "view"),
    )
)
MODULES = frozenset(("torch", "ops"))  # the language has no others
FUNCTIONS = frozenset(("annotate", "getattr", "int"))  # of the language itself
METHODS = frozenset(("forward",))
_PLAIN = re.compile(r"[\n !\"$-\[\]-~]*")  # no comments, no escapes: what else reads differently in Python
_OBJECTS = re.compile(rb"torch[.\n]classes")  # of C++, which read what is in the file as they like
_DROPPED = ".debug_pkl"  # where each line of the program once stood


def vetted(content: bytes) -> bytes:
    """The file written anew of what was looked at: PyTorch reads zip files in its own way.

    Raises:
        ValueError: it holds more than files of ours do.
        zipfile.BadZipFile: it is none.
    """
    looked_at = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(content)) as archive,
        zipfile.ZipFile(looked_at, "w", zipfile.ZIP_STORED) as written,
    ):
        members = archive.infolist()
        _require_plain_members(members, len(content))
        for member in members:
            if not member.filename.endswith(_DROPPED):
                data = archive.read(member)
                _require_harmless(member.filename, data)
                written.writestr(member.filename, data)
    return looked_at.getvalue()


def _require_plain_members(members: list[zipfile.ZipInfo], size: int) -> None:
    names = {member.filename for member in members}
    if len(names) < len(members) or len(members) > MOST_MEMBERS:
        raise ValueError("its members are doubled or too many")
    if sum(member.file_size for member in members if member.filename.endswith(PROGRAM)) > MOST_CODE:
        raise ValueError("its program is too long")
    if sum(member.file_size for member in members) > size + MOST_CODE:
        raise ValueError("its members are larger than it")


def _require_harmless(name: str, data: bytes) -> None:
    if name.endswith(".pkl") and _OBJECTS.search(data):
        raise ValueError("it holds objects of another program")
    if name.endswith(".py"):
        require_known(data.decode("ascii"))


def require_known(code: str) -> None:
    """Raise `ValueError` where a program calls what no program of ours calls.

    It is read as Python, of which TorchScript is a part; what the two may read differently is refused first.
    """
    if not _PLAIN.fullmatch(code) or '"""' in code or "'''" in code:
        raise ValueError("its program holds what no file of ours does")
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Call):
            _require_call(node.func)
        elif isinstance(node, ast.Name | ast.arg):
            _require_kept(node)
        elif isinstance(node, ast.FunctionDef) and node.name.startswith("__"):
            raise ValueError("it computes while it is loaded")


def _require_call(called: ast.expr) -> None:
    name = ast.unparse(called)
    first, *_, last = name.split(".") if isinstance(called, ast.Attribute) else (name, "")
    if not (name in FUNCTIONS or last in (OPERATORS if first in MODULES else METHODS)):
        raise ValueError(f"it calls {name:.60}, which no file of ours does")


def _require_kept(node: ast.Name | ast.arg) -> None:
    """What is known by a name stays known by it."""
    name = node.arg if isinstance(node, ast.arg) else "" if isinstance(node.ctx, ast.Load) else node.id
    if name in FUNCTIONS | MODULES:
        raise ValueError(f"it gives {name} another meaning")
