"""A line of progress on standard error, in a terminal or a notebook."""

import contextlib
import sys
from collections.abc import Callable, Iterator

Tell = Callable[[str, int, int], None]  # what is done, how much of it, of how much


@contextlib.contextmanager
def progress_bar(shown: bool | None) -> Iterator[Tell]:
    """Yields a function that moves the bar: what is done, how much of it, of how much.

    shown: None shows the bar in a terminal and in a notebook only.
    """
    from tqdm import tqdm  # noqa: PLC0415 - comes with transformers; listing runs does not need it

    wanted = (sys.stderr.isatty() or "ipykernel" in sys.modules) if shown is None else shown
    with tqdm(disable=not wanted, leave=False, bar_format="{desc}: {percentage:3.0f}% |{bar}| {elapsed}") as bar:

        def tell(what: str, done: int, total: int) -> None:
            bar.total, bar.n = total, done
            bar.set_description_str(what)

        yield tell
