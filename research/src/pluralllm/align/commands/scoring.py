"""The commands `pluralllm score` and `pluralllm pairs`.

Each command predicts a group's answers for a file of questions, preferences or completions.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from pluralllm.cli.output import show
from pluralllm.common.errors.tree import InvalidArgument
from pluralllm.common.process.console import Json, say, terminal
from pluralllm.common.process.extras import need_align
from pluralllm.common.process.json_forms import PAIRS, SCORES

if TYPE_CHECKING:
    from pluralllm.align.group_reward import GroupReward

ModelFolder = Annotated[
    str, typer.Argument(help="Folder that pluralllm model export has written, or a Hub id.", show_default=False)
]
Source = Annotated[Path, typer.Argument(help="JSONL: question or prompt with options, or chosen and rejected.")]
Out = Annotated[Path, typer.Argument(help="JSONL file to write.")]
Context = Annotated[Path, typer.Option(help="The group's answered questions: a canonical file.", show_default=False)]
ModelPath = Annotated[Path | None, typer.Option("--embedding-model-path", help="Local folder of the embedding model.")]
Cache = Annotated[Path | None, typer.Option(help="Folder of embedded texts; default: ~/.cache/pluralllm.")]
Device = Annotated[str, typer.Option(help="Device for torch: auto, cuda, cuda:N, mps or cpu.")]
AcceptNoGain = Annotated[
    bool, typer.Option("--accept-no-context-gain", help="Only warn if predictions do not depend on the group.")
]
AllowEmbedder = Annotated[
    str | None,
    typer.Option(
        help="Package whose code may make the vectors here, NAME or NAME==VERSION; for a model that names one."
    ),
]
Form = Annotated[str, typer.Option(help="Form of a completion's reward; see pluralllm.align.reward_forms.")]


def score(
    model: ModelFolder,
    source: Source,
    out: Out,
    context: Context,
    form: Form = "probability",
    embedding_model_path: ModelPath = None,
    cache: Cache = None,
    device: Device = "auto",
    allow_embedder: AllowEmbedder = None,
    accept_no_context_gain: AcceptNoGain = False,
    as_json: Json = False,
) -> None:
    """Writes the shares that a group is predicted to give, for each row of a file.

    Each row gets predicted shares and their spreads, and a row with a completion gets its reward. If rows hold the true
    shares or counts, the summary has the alignment score. A row that cannot be scored gets null and a problem, and is counted.
    """
    reward = _load_reward(
        model, context, form, embedding_model_path, cache, device, allow_embedder, accept_no_context_gain
    )
    from pluralllm.align.scoring import score_rows  # noqa: PLC0415 - torch, only here

    with _showing_progress(source) as report_bytes:
        summary = score_rows(reward, source, out, report_bytes)
    _say_notes(reward)
    show(SCORES, summary, as_json=as_json, screen=_lines)


def pairs(
    model: ModelFolder,
    source: Source,
    out: Out,
    context: Context,
    margin: Annotated[float, typer.Option(min=0, max=1, help="Least difference of predicted shares.")] = 0.05,
    every: Annotated[
        bool, typer.Option("--every", help="Write each pair of candidates, not only best against worst.")
    ] = False,
    embedding_model_path: ModelPath = None,
    cache: Cache = None,
    device: Device = "auto",
    allow_embedder: AllowEmbedder = None,
    accept_no_context_gain: AcceptNoGain = False,
    as_json: Json = False,
) -> None:
    """Writes ranked pairs for DPO (prompt, chosen, rejected).

    The candidates are ranked by the shares that the group is predicted to give them.
    """
    reward = _load_reward(
        model, context, "probability", embedding_model_path, cache, device, allow_embedder, accept_no_context_gain
    )
    from pluralllm.align.scoring import write_pairs  # noqa: PLC0415 - torch, only here

    with _showing_progress(source) as report_bytes:
        summary = write_pairs(reward, source, out, margin, every, report_bytes)
    _say_notes(reward)
    show(PAIRS, summary, as_json=as_json, screen=_lines)


def contexts_of(arguments: Sequence[str]) -> dict[str, Path]:
    """Returns the path of each group's file of answered questions, by group, from arguments of the form GROUP=FILE.

    Raises InvalidArgument for an argument of another form, or if a group is given twice.
    """
    contexts: dict[str, Path] = {}
    for argument in arguments:
        group, separator, file = argument.rpartition("=")
        if not separator or not group or group in contexts:
            problem = f"is {argument!r}; give GROUP=FILE, each group once"
            raise InvalidArgument(field="--context", problem=problem)
        contexts[group] = Path(file)
    return contexts


def _load_reward(
    model: str,
    context: Path,
    form: str,
    model_path: Path | None,
    cache: Path | None,
    device: str,
    allow_embedder: str | None,
    accept_no_context_gain: bool,
) -> "GroupReward":
    contexts: dict[str, Any] = {context.stem: context}
    return load_reward(
        model,
        contexts,
        form=form,
        embedding_model_path=model_path,
        cache=cache,
        device=device,
        allow_embedder=allow_embedder,
        accept_no_context_gain=accept_no_context_gain,
    )


def load_reward(model: str, contexts: Mapping[str, Path], *, cache: Path | None, **settings: Any) -> "GroupReward":
    """Returns the reward function of a model, and prints a warning about the model on stderr if there is one.

    contexts: path of each group's answered questions. cache: folder of embedded texts; None for the usual one. settings: further
    arguments of GroupReward, which lists the errors, too. Raises ExtraMissing if torch is not installed.
    """
    need_align()
    from pluralllm.align.context_check import ContextGainWarning  # noqa: PLC0415 - torch, only here
    from pluralllm.align.group_reward import DEFAULT_CACHE, GroupReward  # noqa: PLC0415

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ContextGainWarning)
        reward = GroupReward(model, contexts, cache=cache or DEFAULT_CACHE, **settings)
    if reward.warning:
        say(f"warning: {reward.warning}", err=True)
    return reward


def _say_notes(reward: "GroupReward") -> None:
    """Prints on stderr what the embedding model could not see in the texts."""
    for note in reward.embedding_notes:
        say(f"note: {note}", err=True)


def _lines(summary: dict[str, Any]) -> str:
    return "\n".join(f"{key.replace('_', ' ')}: {value}" for key, value in summary.items() if value is not None)


@contextmanager
def _showing_progress(source: Path) -> Iterator[Callable[[int], None]]:
    """Shows on stderr how much of the file `source` has been scored, if stderr is a terminal.

    Yields a callback that takes the number of bytes scored so far.
    """
    console = terminal(stderr=True)
    columns = (TextColumn("scoring"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    size_bytes = source.stat().st_size if source.is_file() else 0
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("scoring", total=size_bytes)
        yield lambda done: bar.update(task, completed=done)
