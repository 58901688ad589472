"""The text of an error about values that somebody else has written: one line for each problem, printable and bounded."""

from collections.abc import Collection

from pydantic import ValidationError

from pluralllm.common.words.predictors import ARCHITECTURES

MAX_PROBLEMS = 20  # lines in the text of one error
MAX_SHOWN = 80  # characters of a key or a value in the text of an error


def explain(error: ValidationError, secret: Collection[str] = ()) -> str:
    """Returns the text of a validation error: one line for each problem. The line has the key, the problem and the value.

    At most MAX_PROBLEMS problems are listed. Long keys, problems and values are cut.
    secret: keys whose values the text must not contain.
    """
    problems = error.errors(include_url=False, include_context=False)
    lines = []
    for problem in problems[:MAX_PROBLEMS]:
        # pydantic names the architecture in the path of a key of the predictor table.
        key = ".".join(shown_part(part) for part in problem["loc"] if part not in ARCHITECTURES) or "(whole file)"
        value = problem.get("input")
        is_shown = key not in secret and isinstance(value, (str, int, float, bool))
        shown = f" (given: {shown_part(repr(value))})" if is_shown else ""
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            message = "unknown key; check its spelling"
        lines.append(f"  {key}: {message}{shown}")
    if len(problems) > MAX_PROBLEMS:
        lines.append(f"  ... and {len(problems) - MAX_PROBLEMS} more problems")
    return "\n".join(lines)


def shown_part(part: object) -> str:
    """Returns a piece of another machine's text for one line of an error: printable, and at most MAX_SHOWN characters long."""
    text = str(part)
    text = text if text.isprintable() else ascii(text)
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 1] + "…"
