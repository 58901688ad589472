"""The consents of the partner, and the runs that this client was asked to take part in and that need a consent.

Both are files below the state directory, in the folder `disclosure`, so that the command `pluralllm-client consent` needs no
connection. The daemon writes the questions (asked/RUN.json), and the command writes the answers (consents.json).
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import structlog
from pydantic import BaseModel, ConfigDict

from pluralllm.client.disclosure.differences import REWARDS_FIELD, Difference, summary
from pluralllm.common.errors.tree import ConsentNeeded, InvalidConfig
from pluralllm.common.process.files import make_folder, write_durably
from pluralllm.common.text.reading import read_json
from pluralllm.common.words.ids import Digest, RunId, is_id
from pluralllm.common.words.model_files import load_model
from pluralllm.common.words.spec import RunSpec

log = structlog.get_logger()

FOLDER = "disclosure"  # below the state directory
MAX_ASKED = 100  # files of questions; a coordinator decides how many runs it asks about
COMMAND = "pluralllm-client consent"


class Consent(BaseModel):
    """The consent to one run spec. It covers the fields that the partner was shown, in every run with this spec.

    Rewards are covered in the runs that the partner named only.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    fields: frozenset[str]
    runs: tuple[RunId, ...]  # the runs that the partner named


class _ConsentFile(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    consents: dict[Digest, Consent] = {}


@dataclass(frozen=True, slots=True)
class Question:
    """A run that waits for consent: its spec's hash, and the differences that the partner must consent to."""

    run: RunId
    title: str
    spec_sha256: Digest
    differences: tuple[Difference, ...]


class Consents:
    """The folder with the consents of one client. Consents are read at each task, so that a new one counts at once."""

    def __init__(self, state_dir: Path) -> None:
        self._folder = state_dir / FOLDER
        self._file = self._folder / "consents.json"
        self._asked = self._folder / "asked"
        self._refused: dict[RunId, tuple[Digest, tuple[Difference, ...]]] = {}

    def demand(self, run: RunId, spec: RunSpec, differences: tuple[Difference, ...]) -> None:
        """Checks that the partner has consented to all the differences of a run. The text of the question is stored.

        Raises ConsentNeeded otherwise. A consent is bound to the hash of the run spec.
        """
        if not differences:
            self.forget(run)
            return
        spec_sha256 = spec.sha256()
        if self.covers(run, spec_sha256, differences):
            self._refused.pop(run, None)
            return
        is_new = self._refused.get(run) != (spec_sha256, differences)
        if is_new or not self._question_file(run).is_file():  # later questions may have displaced it
            self._store_question(run, spec, differences)
        if is_new:
            self._refused[run] = (spec_sha256, differences)
            for forgotten in list(self._refused)[:-MAX_ASKED]:
                self._refused.pop(forgotten)
            command = f"{COMMAND} {run} --state-dir {self._folder.parent}"
            log.warning("consent.needed", run=run, differences=[one.text for one in differences], command=command)
        raise ConsentNeeded(run=run, differences=summary(differences))

    def covers(self, run: RunId, spec_sha256: Digest, differences: tuple[Difference, ...]) -> bool:
        """Returns whether the partner has consented to these differences of the run spec with this hash.

        A consent to rewards counts for the runs that the partner named, and for no other run with the same spec.
        """
        consent, fields = self._consents_or_none().get(spec_sha256), {one.field for one in differences}
        if consent is None or not fields <= consent.fields:
            return False
        return REWARDS_FIELD not in fields or run in consent.runs

    def forget(self, run: RunId) -> None:
        """Removes the question about a run that has ended, or that needs no consent any more. A consent stays."""
        self._refused.pop(run, None)
        if is_id(run):
            self._question_file(run).unlink(missing_ok=True)

    def newly_covered(self) -> tuple[RunId, ...]:
        """Returns the runs that were refused for want of consent and that have it now, and forgets that they were refused."""
        refused = list(self._refused.items())  # a copy: another thread may add a run
        runs = tuple(run for run, asked in refused if self.covers(run, *asked))
        for run in runs:
            self._refused.pop(run, None)
        return runs

    def questions(self) -> tuple[Question, ...]:
        """Returns the runs that this client was asked about, sorted by name. Files that cannot be read are left out."""
        questions = (self.question(RunId(path.stem)) for path in sorted(self._asked.glob("*.json")))
        return tuple(question for question in questions if question is not None)

    def question(self, run: RunId) -> Question | None:
        """Returns the question about one run; None if this client was not asked, or if the file cannot be read."""
        if not is_id(run):
            return None
        try:
            values = read_json(self._question_file(run))
            differences = tuple(Difference(**one) for one in values["differences"])
            return Question(run, values["spec"]["title"], Digest(values["spec_sha256"]), differences)
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def give(self, question: Question) -> None:
        """Stores the consent to a run's spec, in addition to what the partner has consented to before. The file is durable."""
        consents = self._consents()
        before = consents.get(question.spec_sha256, Consent(fields=frozenset(), runs=()))
        fields = before.fields | {one.field for one in question.differences}
        runs = tuple(dict.fromkeys((*before.runs, question.run)))
        self._write(consents | {question.spec_sha256: Consent(fields=fields, runs=runs)})

    def withdraw(self, run: RunId) -> int:
        """Removes every consent to a spec of this run. Returns the number of consents that were removed."""
        consents, question = self._consents(), self.question(run)
        spec_sha256 = None if question is None else question.spec_sha256
        kept = {digest: one for digest, one in consents.items() if run not in one.runs and digest != spec_sha256}
        if len(kept) < len(consents):
            self._write(kept)
        return len(consents) - len(kept)

    def _question_file(self, run: RunId) -> Path:
        return self._asked / f"{run}.json"

    def _store_question(self, run: RunId, spec: RunSpec, differences: tuple[Difference, ...]) -> None:
        """Writes asked/RUN.json. Of many questions only the newest are kept, because a coordinator decides how many it asks."""
        if not is_id(run):  # it becomes a file name
            return
        make_folder(self._asked)
        values = {
            "run": run,
            "spec_sha256": spec.sha256(),
            "differences": [asdict(one) for one in differences],
            "spec": json.loads(spec.canonical_json()),
        }
        write_durably(self._question_file(run), json.dumps(values, indent=1).encode())
        newest_last = sorted(self._asked.glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
        for old in newest_last[:-MAX_ASKED]:
            old.unlink(missing_ok=True)

    def _consents(self) -> dict[Digest, Consent]:
        """Returns the stored consents. Raises InvalidConfig if the file cannot be read."""
        if not self._file.exists():
            return {}
        return load_model(self._file, _ConsentFile, InvalidConfig, read_json).consents

    def _consents_or_none(self) -> dict[Digest, Consent]:
        """Returns the stored consents; none if the file cannot be read, so that a damaged file never allows anything."""
        try:
            return self._consents()
        except InvalidConfig as error:
            log.error("consents.unreadable", problem=str(error))
            return {}

    def _write(self, consents: dict[Digest, Consent]) -> None:
        make_folder(self._folder)
        content = _ConsentFile(consents=consents).model_dump_json(indent=1)
        write_durably(self._file, content.encode())
