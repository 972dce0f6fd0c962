"""The clocks of the tests themselves: none is short enough to decide a test on a busy machine."""

import ast
from pathlib import Path

TESTS = Path(__file__).parent
# Calls whose first argument, or `timeout`, is a time to wait for a process.
WAITS = {"run", "wait", "communicate", "join", "check_output", "check_call"}


def numbers(tree: ast.AST) -> list[int]:
    """Lines on which a process is waited for by a number of seconds of the test's own."""
    found = []
    for call in ast.walk(tree):
        if not isinstance(call, ast.Call):
            continue
        name = call.func.attr if isinstance(call.func, ast.Attribute) else ""
        clocks = [keyword.value for keyword in call.keywords if keyword.arg == "timeout"]
        clocks += call.args[:1] if name in WAITS - {"run"} else []
        found += [call.lineno for clock in clocks if isinstance(clock, ast.Constant) and clock.value is not None
                  and not isinstance(clock.value, str)]  # fmt: skip
    return found


def test_no_test_has_a_clock_of_its_own() -> None:
    wrong = {
        f"{path.relative_to(TESTS)}:{line}"
        for path in sorted(TESTS.rglob("*.py"))
        for line in numbers(ast.parse(path.read_text(encoding="utf-8")))
    }
    assert not wrong, f"use tests.processes.PATIENCE_S: {wrong}"


def test_a_clock_is_seen() -> None:
    source = "run(['a'], timeout=240)\nprocess.wait(60)\nprocess.wait()\nrun(['a'], timeout=PATIENCE_S)\n','.join([])"
    assert numbers(ast.parse(source)) == [1, 2]
