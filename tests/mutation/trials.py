"""Runs the quick tests of a module against each of its mutants, in processes that are forked when the tests are collected.

A mutant within a function replaces the function's code in the forked process, so nothing is imported again. A mutant outside of
functions, such as a constant, needs a process that imports the module anew. A mutant is tried with the tests that run its line.
"""

import gc
import importlib.machinery
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path
from types import CodeType, FrameType, FunctionType
from typing import IO, Any

import hypothesis
import pytest
from mutation.mutants import Mutant, Scope

FIRST_LIMIT_S = 2.0  # of a CPU, and five times the time of the tests without a change
RETURNED = 77  # exit status of a process whose function has returned 0
WAITING_LIMIT_S = 30.0  # for a process that waits for something that never comes
# Nobody reads why a test fails, so nothing is shrunk, compared or formatted.
PROFILE = "mutants"
hypothesis.settings.register_profile(
    PROFILE,
    phases=(hypothesis.Phase.explicit, hypothesis.Phase.generate),
    derandomize=True,
    database=None,
    deadline=None,
)
PYTEST = (
    *("-q", "-x", "-s", "--tb=no", "--assert=plain", "--no-header", f"--hypothesis-profile={PROFILE}"),
    *("-p", "no:cacheprovider", "-p", "no:xdist", "-o", "timeout=0"),
)


class Verdict(StrEnum):
    """The result of a trial."""

    KILLED = "killed"  # a test failed
    HUNG = "hung"  # the tests did not end in time: noticed as well
    SURVIVED = "survived"
    NOT_RUN = "survived: no test runs this line"


@dataclass(frozen=True, slots=True)
class Trial:
    """The result of one mutant."""

    mutant: Mutant
    verdict: Verdict


def try_all(module: Path, mutants: list[Mutant], tests: list[str], folder: Path) -> Iterator[Trial]:
    """Yields the result of each mutant as soon as it is there. module: the file of the mutants. tests: their files and folders.

    folder: a folder for files of this call. Raises RuntimeError if the tests fail without a change.
    """
    inside = [mutant for mutant in mutants if mutant.scope is not None]
    receiving, sending = os.pipe()
    collecting = _start(partial(_collect_and_try, module, inside, tests, folder, sending), None, folder / "output")
    os.close(sending)
    with os.fdopen(receiving) as results:
        seconds_alone = float(results.readline() or 0)
        for mutant, line in zip(inside, results, strict=False):
            yield Trial(mutant, Verdict(line.strip()))
    if _end(collecting) != 0:
        print((folder / "output").read_text())
        raise RuntimeError(f"the tests of {module.name} fail without a change: {' '.join(tests)}")
    for mutant in mutants:
        if mutant.scope is None:
            anew = _start(partial(_run_anew, module, mutant, tests), 5 * FIRST_LIMIT_S + 5 * seconds_alone)
            yield Trial(mutant, _verdict(_end(anew)))


def _verdict(status: int | None) -> Verdict:
    if status is None:
        return Verdict.HUNG
    return Verdict.SURVIVED if status == 0 else Verdict.KILLED


def _start(work: Callable[[], int], limit_s: float | None, output: Path = Path(os.devnull)) -> int:
    """Starts a child process that runs a function, and returns the id of the process.

    limit_s: the time of a CPU after which the process is ended; a process that only waits gets much longer. output: the file that
    gets what the process writes.
    """
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    with output.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    if limit_s is not None:
        signal.setitimer(signal.ITIMER_PROF, limit_s)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, WAITING_LIMIT_S + limit_s)
    try:
        status = work()
    except BaseException:  # noqa: BLE001 - the parent reads the status
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    os._exit(status or RETURNED)


def _end(child: int) -> int | None:
    """Waits for a child process. Returns the result of its function, or None if it took longer than its limit.

    A process that a changed module has ended by itself, for example by os._exit(0), has no result: 1 is returned.
    """
    _, waited = os.waitpid(child, 0)
    if os.WIFSIGNALED(waited):
        return None if os.WTERMSIG(waited) in (signal.SIGALRM, signal.SIGPROF) else 1
    status = os.waitstatus_to_exitcode(waited)
    return 0 if status == RETURNED else status or 1


def _collect_and_try(module: Path, mutants: list[Mutant], tests: list[str], folder: Path, sending: int) -> int:
    with os.fdopen(sending, "w") as results:
        return int(pytest.main([*PYTEST, *tests], plugins=[Tries(module, mutants, folder, results)]))


def _run_anew(module: Path, mutant: Mutant, tests: list[str]) -> int:
    """Runs the tests in a process that has not imported the module yet."""
    load = importlib.machinery.SourceFileLoader.get_code

    def get_code(loader: Any, name: str) -> Any:
        return mutant.code(loader.path) if Path(loader.path) == module else load(loader, name)

    importlib.machinery.SourceFileLoader.get_code = get_code  # type: ignore[method-assign, assignment]
    return int(pytest.main([*PYTEST, *tests]))


class Tries:
    """A pytest plugin that, instead of running the collected tests, forks a process for each mutant and runs them there."""

    def __init__(self, module: Path, mutants: list[Mutant], folder: Path, results: IO[str]) -> None:
        """Stores the arguments. results: gets the time of the tests without a change, then a line for each mutant."""
        self._module, self._mutants, self._folder, self._results = str(module), mutants, folder, results

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Tries each mutant. Returns True: the tests are run."""
        gc.collect()
        runs, output = self._folder / "runs", self._folder / "output of the tests"
        if not session.items or _end(_start(partial(self._run_without_change, session.items, runs), None, output)) != 0:
            print(output.read_text() if output.exists() else "there are no tests")
            session.testsfailed = 1
            return True
        seconds, lines = json.loads(runs.read_text())
        print(sum(seconds.values()), file=self._results, flush=True)
        functions = _functions(self._module)
        gc.freeze()
        for mutant in self._mutants:
            items = [item for item in session.items if not set(mutant.lines).isdisjoint(lines[item.nodeid])]
            items.sort(key=lambda item: seconds[item.nodeid])
            limit_s = FIRST_LIMIT_S + 5 * sum(seconds[item.nodeid] for item in items)
            verdict = Verdict.NOT_RUN
            if items:
                verdict = _verdict(_end(_start(partial(self._run_with, mutant, functions, items), limit_s)))
            print(verdict, file=self._results, flush=True)
        return True

    def _run_without_change(self, items: list[pytest.Item], runs: Path) -> int:
        """Runs the tests one by one, and stores the time of each test and the lines of the module that it runs."""
        seconds: dict[str, float] = {}
        lines: defaultdict[str, set[int]] = defaultdict(set)
        for item in items:
            start_s = time.monotonic()
            with Recording(self._module, lines[item.nodeid]):
                if _run([item]):
                    return 1
            seconds[item.nodeid] = time.monotonic() - start_s
        runs.write_text(json.dumps([seconds, {name: sorted(run) for name, run in lines.items()}]))
        return 0

    def _run_with(self, mutant: Mutant, functions: dict[Scope, list[FunctionType]], items: list[pytest.Item]) -> int:
        code = mutant.code(self._module)
        assert isinstance(code, CodeType)
        assert mutant.scope is not None
        # The functions that a function has made, when the tests were imported, have code of their own.
        inside = f"{mutant.scope[0]}.<locals>."
        for scope, changed in _codes(code).items():
            if scope == mutant.scope or scope[0].startswith(inside):
                for function in functions.get(scope, ()):
                    if function.__code__.co_freevars == changed.co_freevars:
                        function.__code__ = changed
        return _run(items)


class Recording:
    """A block that records the lines of one file that run within it, in all threads."""

    def __init__(self, path: str, lines: set[int]) -> None:
        self._path, self._lines = path, lines

    def __enter__(self) -> None:
        threading.settrace(self._at_call)
        sys.settrace(self._at_call)

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)
        threading.settrace(None)

    def _at_call(self, frame: FrameType, event: str, argument: object) -> Any:
        if frame.f_code.co_filename != self._path:
            return None
        self._lines.add(frame.f_lineno)
        return self._at_line

    def _at_line(self, frame: FrameType, event: str, argument: object) -> Any:
        self._lines.add(frame.f_lineno)
        return self._at_line


def _run(items: list[pytest.Item]) -> int:
    """Runs tests until one fails. Returns 1 if one fails, otherwise 0."""
    failed = Failures()
    items[0].config.pluginmanager.register(failed)
    for item, following in zip(items, [*items[1:], None], strict=True):
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
        if failed.count:
            return 1
    items[0].config.pluginmanager.unregister(failed)
    return 0


class Failures:
    """A pytest plugin that counts the tests that fail, in set-up and tear-down as well."""

    def __init__(self) -> None:
        self.count = 0

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.count += report.failed


def _functions(path: str) -> dict[Scope, list[FunctionType]]:
    """Returns the functions of a file that are in memory, by name and first line."""
    functions: dict[Scope, list[FunctionType]] = defaultdict(list)
    gc.unfreeze()  # the collection of the tests has frozen what it imported, and a frozen object is not listed
    for known in gc.get_objects():
        if type(known) is FunctionType and known.__code__.co_filename == path:
            functions[known.__code__.co_qualname, known.__code__.co_firstlineno].append(known)
    return functions


def _codes(code: CodeType) -> dict[Scope, CodeType]:
    """Returns the code of each function in a module's code, by name and first line."""
    codes: dict[Scope, CodeType] = {}
    waiting = [code]
    while waiting:
        for constant in waiting.pop().co_consts:
            if isinstance(constant, CodeType):
                codes[constant.co_qualname, constant.co_firstlineno] = constant
                waiting.append(constant)
    return codes
