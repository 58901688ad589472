"""`pluralllm score | pairs`: how a group would answer, for files of questions, preferences and completions."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from pluralllm.cli.output import show
from pluralllm.common.errors.tree import InvalidArgument
from pluralllm.common.process.console import Json
from pluralllm.common.process.extras import need_torch
from pluralllm.common.process.json_forms import PAIRS, SCORES

if TYPE_CHECKING:
    from pluralllm.align.group_reward import GroupReward

ModelFolder = Annotated[
    str, typer.Argument(help="Folder that pluralllm model export has written, or a Hub id.", show_default=False)
]
Source = Annotated[Path, typer.Argument(help="JSONL: question or prompt with options, or chosen and rejected.")]
Out = Annotated[Path, typer.Argument(help="JSONL to write.")]
Context = Annotated[Path, typer.Option(help="The group's answered questions: a canonical file.", show_default=False)]
ModelPath = Annotated[Path | None, typer.Option("--embedding-model-path", help="Local folder of the embedding model.")]
Cache = Annotated[Path | None, typer.Option(help="Folder of embedded texts; default: ~/.cache/pluralllm.")]
Device = Annotated[str, typer.Option(help="auto, cuda, cuda:N, mps or cpu.")]
Form = Annotated[str, typer.Option(help="Of a completion's reward; see pluralllm.align.reward_forms.")]


def score(
    model: ModelFolder,
    source: Source,
    out: Out,
    context: Context,
    form: Form = "probability",
    embedding_model_path: ModelPath = None,
    cache: Cache = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Write each row with the shares and spreads a group is predicted to give; with a completion also its reward.

    Where rows hold the true shares or counts the alignment score is told as well. A row that cannot be scored gets null and
    a problem, and is counted.
    """
    reward = _reward(model, context, form, embedding_model_path, cache, device)
    from pluralllm.align.scoring import score_rows  # noqa: PLC0415 - torch, only here

    with _bar(source) as seen:
        summary = score_rows(reward, source, out, seen)
    show(SCORES, summary, as_json=as_json, screen=_lines)


def pairs(
    model: ModelFolder,
    source: Source,
    out: Out,
    context: Context,
    margin: Annotated[float, typer.Option(min=0, max=1, help="Least difference of predicted shares.")] = 0.05,
    every: Annotated[
        bool, typer.Option("--every", help="Each pair of candidates, not best against worst only.")
    ] = False,
    embedding_model_path: ModelPath = None,
    cache: Cache = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Write ranked pairs (prompt, chosen, rejected) as DPO takes them, as a group is predicted to rank the candidates."""
    reward = _reward(model, context, "probability", embedding_model_path, cache, device)
    from pluralllm.align.scoring import write_pairs  # noqa: PLC0415 - torch, only here

    with _bar(source) as seen:
        summary = write_pairs(reward, source, out, margin, every, seen)
    show(PAIRS, summary, as_json=as_json, screen=_lines)


def _lines(summary: dict[str, Any]) -> str:
    return "\n".join(f"{key.replace('_', ' ')}: {value}" for key, value in summary.items() if value is not None)


def contexts_of(given: Sequence[str]) -> dict[str, Path]:
    """GROUP=FILE, several times. Raises InvalidArgument."""
    found: dict[str, Path] = {}
    for each in given:
        name, separator, file = each.rpartition("=")
        if not separator or not name or name in found:
            problem = f"is {each!r}; give GROUP=FILE, each group once"
            raise InvalidArgument(field="--context", problem=problem)
        found[name] = Path(file)
    return found


def _reward(
    model: str, context: Path, form: str, model_path: Path | None, cache: Path | None, device: str
) -> "GroupReward":
    need_torch("align")
    from pluralllm.align.group_reward import DEFAULT_CACHE, GroupReward  # noqa: PLC0415 - torch, only here

    contexts: dict[str, Any] = {context.stem: context}
    return GroupReward(
        model, contexts, form=form, embedding_model_path=model_path, cache=cache or DEFAULT_CACHE, device=device
    )


@contextmanager
def _bar(source: Path) -> Iterator[Callable[[int], None]]:
    """Of the source's bytes that are done with."""
    console = Console(stderr=True)
    columns = (TextColumn("scoring"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    size = source.stat().st_size if source.is_file() else 0
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("scoring", total=size)
        yield lambda done: bar.update(task, completed=done)
