"""The states of a training follow from one kind of answers: true ones, or noised ones."""

from pathlib import Path

from pluralllm.client.keeping.drafts import Drafts, next_state
from pluralllm.common.words.ids import RunId

RUN = RunId("r")


def test_states_from_true_answers_are_deleted_once_when_the_answers_are_noised(tmp_path: Path) -> None:
    drafts = Drafts(tmp_path / "drafts")
    states = (drafts.optimizer_state(RUN), drafts.residual(RUN), next_state(drafts.residual(RUN)), drafts.delta)

    def kept_after(*, noised: bool) -> list[bool]:
        for state in states:
            state.write_bytes(b"state")
        Drafts(tmp_path / "drafts").follow(noised=noised)
        return [state.exists() for state in states]

    assert kept_after(noised=False) == [True] * 4
    assert kept_after(noised=True) == [False] * 4
    assert kept_after(noised=True) == [True] * 4, "these follow from noised answers"
    assert kept_after(noised=False) == [True] * 4
    assert kept_after(noised=True) == [False] * 4, "in between the answers were true ones"
