"""The mistakes that are made, and that a test which sees one is told from a test which does not."""

from __future__ import annotations

import sys
from pathlib import Path
from types import CodeType

import pytest

from tests.mutants.operators import Mutant, compiled, mutants_of
from tests.mutants.trial import KILLED, SURVIVED, TIMED_OUT, Trial, reach_of, run_trials

CODE = '''
"""A docstring of 3 words."""

LIMIT = 3


def clipped(values, low=0):
    # Each of these lines can go wrong.
    log.info("at most %d", 3)
    if not values:
        raise ValueError(f"no {1 + 1} values")
    best = max(v for v in values if v >= low)
    with torch.no_grad():
        return best.clamp(min=low) + LIMIT
'''


def changes(code: str) -> list[str]:
    return [f"{mutant.before} -> {mutant.after}" for mutant in mutants_of("made.py", code)]


def test_every_mistake_of_a_small_module() -> None:
    assert changes(CODE) == [
        "3 -> 4",
        "0 -> 1",
        "not values -> values",
        "raise ValueError(f'no {1 + 1} values') -> pass",
        "max((v for v in values if v >= low)) -> min((v for v in values if v >= low))",
        " for v in values if v >= low ->  for v in values",
        "v >= low -> v > low",
        "with torch.no_grad(): ... -> if True: ...",
        "best.clamp(min=low) + LIMIT -> best.clamp(min=low) - LIMIT",
        "best.clamp(min=low) + LIMIT -> best.clamp(min=low)",
        "best.clamp(min=low) + LIMIT -> LIMIT",
        "best.clamp(min=low) -> best",
        "best.clamp(min=low) -> best.clamp()",
    ]


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("a = b < c <= d", ["b < c <= d -> b <= c <= d", "b < c <= d -> b < c < d"]),
        ("a = b and c", ["b and c -> b or c", "b and c -> c", "b and c -> b"]),
        ("a = b @ c", ["b @ c -> b", "b @ c -> c"]),
        ("a += b", ["a += b -> a -= b", "a += b -> a = b"]),
        ("a = True", ["True -> False"]),
        ("a = 0.5", ["0.5 -> 0.505"]),
        ("f(a)", ["f(a) -> pass"]),
        ("a = x.sum(dim=0)", ["x.sum(dim=0) -> x.mean(dim=0)"]),
        ("a = np.clip(x, 0, m)", ["np.clip(x, 0, m) -> x", "0 -> 1"]),
        ("a = x[1]\nassert x > 2\na: Literal[3] = b", []),
        ("while x:\n    f", ["while x: ... -> while not x: ..."]),
        ("a = b if x.y else c", ["b if x.y else c -> b if not x.y else c"]),
    ],
)
def test_mistakes_of_a_line(code: str, expected: list[str]) -> None:
    assert changes(code) == expected


def test_a_mistake_is_where_it_says_and_nothing_else_changes() -> None:
    source = "def f(a, b):\n    c = a + b\n    return c * 2\n"
    results = {}
    for mutant in mutants_of("made.py", source):
        namespace: dict[str, object] = {}
        exec(compiled(mutant, source), namespace)
        results[mutant.after] = (mutant.line, mutant.function, namespace["f"](5, 3))  # type: ignore[operator]
    assert results == {
        "a - b": (2, "f", 4),
        "a": (2, "f", 10),
        "b": (2, "f", 6),
        "c / 2": (3, "f", 4.0),
        "c": (3, "f", 8),
        "2": (3, "f", 2),
        "3": (3, "f", 24),
    }


MODULE = """def add(a, b):
    return a + b


def unseen(a):
    return a + 1


def count(n):
    while n > 0:
        n -= 1
    return n
"""
TESTS = """import made_to_be_tested as made


def test_add():
    assert made.add(2, 3) == 5


def test_count():
    assert made.count(3) == 0
"""


def test_who_sees_a_mistake_and_who_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, tests = tmp_path / "made_to_be_tested.py", tmp_path / "test_made.py"
    module.write_text(MODULE)
    tests.write_text(TESTS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.setattr("tests.mutants.trial.LEAST_LIMIT_S", 10.0)
    reach = reach_of([str(tests)], [module])
    found = {mutant.after: mutant for mutant in mutants_of(str(module), MODULE)}

    def trial(mutant: Mutant) -> Trial:
        def code() -> CodeType:
            return compiled(mutant, MODULE)

        return Trial(
            mutant.after, module.stem, code, reach.tests_for(mutant.path, mutant.line, mutant.last_line), 0.1
        )

    trials = [trial(found[after]) for after in ("a - b", "a - 1", "n += 1", "n >= 0")]
    assert [len(one.tests) for one in trials] == [1, 0, 1, 1]
    outcomes = dict(run_trials(trials, jobs=2))
    assert outcomes == {"a - b": KILLED, "a - 1": SURVIVED, "n += 1": TIMED_OUT, "n >= 0": KILLED}


def test_tests_that_fail_anyway_are_no_judges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "test_wrong.py").write_text("def test_wrong():\n    assert 1 == 2\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RuntimeError, match="do not pass without any mistake"):
        reach_of(["test_wrong.py"], [])
