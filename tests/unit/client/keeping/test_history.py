"""The history follows one chain of records, from any state that a client may have, and refuses another past."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hostile.evil_records import (
    CLIENT,
    RUN,
    SPEC,
    VERIFIER,
    Presented,
    chain_of,
    digest,
    honest,
    own_update,
    rechained,
    train_task,
)
from structlog.testing import capture_logs
from support.installed_package import RULE, plugin

from pluralllm.client.keeping.history import MAX_UPDATES_OF_ROUND, OVER, History
from pluralllm.client.keeping.history_copy import FILE, HistoryCopy
from pluralllm.client.link.tasks import RunOver, Task
from pluralllm.common.errors.tree import HistoryDiverged, InvalidConfig, RecordInvalid
from pluralllm.common.trust.version_record import record_sha256
from pluralllm.common.words.ids import ModelVersion, RoundNumber, RunId
from pluralllm.common.words.names import TaskKind
from pluralllm.common.words.private_rounds import PrivateRounds
from pluralllm.common.words.spec import RunSpec


async def follow(history: History, shown: Presented) -> None:
    await history.follow(shown.task, SPEC, shown.fetch)


def of_client(folder: Path) -> History:
    return History(folder, CLIENT, VERIFIER)


def hand_in(history: History, number: int) -> None:
    """Notes the client's update of a round, and its receipt."""
    with history.handing_in(train_task(chain_of(number)[number - 1]), *own_update(number)):
        pass


def without_own_update(length: int) -> Presented:
    """Returns a well-signed chain whose last version lacks the client's update."""
    records = chain_of(length)
    records = rechained([*records[:-1], replace(records[-1], updates=records[-1].updates[1:])])
    return Presented(train_task(records[-1]), records)


async def test_records_are_followed_over_restarts_and_each_is_fetched_once(tmp_path: Path) -> None:
    for length, calls in ((0, [(0, 0)]), (1, [(1, 1)]), (1, []), (7, [(2, 7), (6, 7)])):
        shown = honest(length)
        await follow(of_client(tmp_path), shown)
        assert shown.calls == calls


async def test_a_version_that_was_seen_is_refused_with_another_record_or_model(tmp_path: Path) -> None:
    await follow(of_client(tmp_path), honest(2))
    for changes in ({"base_digest": digest("x")}, {"base_record_sha256": "0" * 64}):
        shown = Presented(train_task(chain_of(2)[2], **changes), chain_of(2))
        with pytest.raises(HistoryDiverged):
            await follow(of_client(tmp_path), shown)
        assert shown.calls == []


async def test_a_file_of_an_older_release_is_read_and_holds_the_coordinator_to_its_hashes(tmp_path: Path) -> None:
    records = chain_of(6)
    old = {str(number): record_sha256(records[number]) for number in (0, 1, 4)}
    (tmp_path / f"{RUN}.json").write_text(json.dumps({**old, OVER: OVER}))
    with pytest.raises(HistoryDiverged):  # another version 5 that follows another version 4
        await follow(of_client(tmp_path), Presented(train_task(chain_of(5, "x")[5]), chain_of(5, "x")))
    forged = chain_of(5, "x", records[:2])
    with pytest.raises(HistoryDiverged):  # another version 3, although version 4 was seen
        await follow(of_client(tmp_path), Presented(train_task(forged[3]), forged))
    with pytest.raises(HistoryDiverged):  # the same hash with another model
        await follow(of_client(tmp_path), Presented(train_task(records[4], base_record_sha256="0" * 64), records))
    wrong = Presented(train_task(records[4], base_digest=digest("x")), records)
    with pytest.raises(RecordInvalid):
        await follow(of_client(tmp_path), wrong)
    for number in (4, 6, 3):
        await follow(of_client(tmp_path), Presented(train_task(records[number]), records))
        records_seen = of_client(tmp_path).seen(RUN).versions
        assert records_seen[ModelVersion(number)].digest == records[number].digest
    assert sorted(records_seen) == [0, 1, 2, 3, 4, 5, 6]
    assert of_client(tmp_path).open_runs() == set(), "the run is still marked as ended"


async def test_a_coordinator_that_was_restored_from_a_backup_is_followed_and_reported(tmp_path: Path) -> None:
    """It does the rounds again, from a version that the client has seen; only another version is refused."""
    history = of_client(tmp_path)
    await follow(history, honest(5))
    with capture_logs() as lines:
        await follow(history, honest(3))
    assert [(line["event"], line["base_version"], line["newest_seen"]) for line in lines] == [
        ("history.went_back", 3, 5)
    ]
    records = chain_of(4, "another", chain_of(3))
    with pytest.raises(HistoryDiverged):
        await follow(history, Presented(train_task(records[4]), records))


async def test_an_old_version_is_no_base_of_a_round_after_the_newest(tmp_path: Path) -> None:
    history, records = of_client(tmp_path), chain_of(5)
    await follow(history, honest(5))
    replayed = train_task(records[3], round_number=6)
    with pytest.raises(HistoryDiverged, match="older than version 4"):
        await follow(history, Presented(replayed, records))


async def test_an_evaluation_scores_the_version_of_its_own_round_and_no_later_one(tmp_path: Path) -> None:
    history, records = of_client(tmp_path), chain_of(5)
    task: Task = replace(train_task(records[3], round_number=3), kind=TaskKind.EVALUATE)
    await follow(history, Presented(task, records))
    with pytest.raises(RecordInvalid, match="too late"):
        await follow(history, Presented(replace(train_task(records[4]), round=RoundNumber(4)), records))
    await follow(history, Presented(train_task(records[4]), records))
    with pytest.raises(HistoryDiverged):
        await follow(history, Presented(replace(task, round=RoundNumber(4)), records))


async def test_without_a_record_key_everything_but_the_signature_is_checked(tmp_path: Path) -> None:
    shown = replace(honest(3), sign=lambda _: b"")
    await follow(History(tmp_path / "plain", CLIENT), shown)
    with pytest.raises(RecordInvalid, match="not signed"):
        await follow(of_client(tmp_path / "keyed"), shown)
    forged = replace(shown, task=replace(shown.task, base_digest=digest("x")))
    with pytest.raises(RecordInvalid):
        await follow(History(tmp_path / "other", CLIENT), forged)


@pytest.mark.parametrize(("version", "number"), [(3, 2), (SPEC.rounds + 1, SPEC.rounds + 5)])
async def test_a_version_that_cannot_exist_yet_is_refused_before_anything_is_asked(
    tmp_path: Path, version: int, number: int
) -> None:
    """Otherwise a coordinator could keep a client busy with records for ever."""
    records = chain_of(version)
    shown = Presented(train_task(records[version], round_number=number), records)
    with pytest.raises(RecordInvalid, match="cannot start from it"):
        await follow(of_client(tmp_path), shown)
    assert shown.calls == []
    last = Presented(train_task(chain_of(SPEC.rounds)[-1]), chain_of(SPEC.rounds), page=100)
    await follow(of_client(tmp_path), last)


@pytest.mark.parametrize("number", [1, 2])
async def test_the_rounds_of_versions_must_rise(tmp_path: Path, number: int) -> None:
    """Otherwise one round could make two versions, and an update of it could count twice."""
    records = chain_of(3)
    records = rechained([*records[:3], replace(records[3], round=RoundNumber(number)), *records[4:]])
    shown = Presented(train_task(records[3]), records)
    history = of_client(tmp_path)
    with pytest.raises(RecordInvalid, match="the version before"):
        await follow(history, shown)
    await follow(history, honest(2))
    with pytest.raises(RecordInvalid, match="the version before"):
        await follow(history, shown)


async def test_an_answer_with_records_that_were_not_asked_for_is_refused(tmp_path: Path) -> None:
    shown = honest(2)

    async def too_many(run: RunId, first: ModelVersion, last: ModelVersion) -> object:
        return [*await shown.fetch(run, first, last), *await shown.fetch(run, first, last)]

    with pytest.raises(RecordInvalid):
        await of_client(tmp_path).follow(shown.task, SPEC, too_many)  # type: ignore[arg-type]


# The client's own updates


async def test_an_acknowledged_update_must_be_in_the_version_of_its_round(tmp_path: Path) -> None:
    history = of_client(tmp_path)
    hand_in(history, 2)
    with pytest.raises(HistoryDiverged, match="lacks this client's update of round 2"):
        await follow(history, without_own_update(2))
    await follow(history, honest(2))


async def test_an_update_without_a_receipt_may_be_missing(tmp_path: Path) -> None:
    noting = of_client(tmp_path).handing_in(train_task(chain_of(1)[1]), *own_update(2))
    with pytest.raises(ConnectionError), noting:
        raise ConnectionError
    await follow(of_client(tmp_path), without_own_update(2))


async def test_an_update_whose_receipt_was_withdrawn_may_be_missing(tmp_path: Path) -> None:
    history = of_client(tmp_path)
    hand_in(history, 1)
    hand_in(history, 2)
    history.withdraw_receipt(RUN, RoundNumber(2))
    noted = history.seen(RUN).own_updates
    assert {number: update.acknowledged for number, (update,) in noted.items()} == {1: True, 2: False}
    await follow(history, without_own_update(2))


async def test_an_update_that_was_made_again_may_count_in_either_form(tmp_path: Path) -> None:
    history, task = of_client(tmp_path), train_task(chain_of(1)[1])
    for one in (digest("first try"), own_update(2)[0]):
        with history.handing_in(task, one, 50):
            pass
    assert [update.acknowledged for update in history.seen(RUN).own_updates[task.round]] == [True, True]
    await follow(history, honest(2))


def test_a_round_is_trained_from_one_version_and_a_few_times_at_most(tmp_path: Path) -> None:
    history, task = of_client(tmp_path), train_task(chain_of(1)[1])
    other = replace(task, base_version=ModelVersion(0))
    history.check_repetition(other)
    for number in range(MAX_UPDATES_OF_ROUND):
        history.check_repetition(task)
        with history.handing_in(task, digest(f"try {number}"), 50):
            pass
        with pytest.raises(HistoryDiverged, match="is not the version from which this client has trained round 2"):
            of_client(tmp_path).check_repetition(other)
    with pytest.raises(HistoryDiverged, match="of which this client has sent 3 updates"):
        of_client(tmp_path).check_repetition(task)
    history.check_repetition(replace(task, round=RoundNumber(3)))


async def test_an_update_in_this_clients_name_of_a_round_that_it_does_not_remember_is_reported(tmp_path: Path) -> None:
    """A client whose state directory was lost or restored does not know its own updates."""
    with capture_logs() as lines:
        await follow(of_client(tmp_path), honest(2))
    assert [(line["event"], line["version"]) for line in lines] == [
        ("history.unknown_update", 1),
        ("history.unknown_update", 2),
    ]


async def test_after_a_revocation_the_receipt_of_the_open_round_is_void(tmp_path: Path) -> None:
    history = of_client(tmp_path)
    hand_in(history, 1)
    await follow(history, honest(1))
    hand_in(history, 2)
    of_client(tmp_path).forget_receipts()
    noted = history.seen(RUN).own_updates
    assert {number: update.acknowledged for number, (update,) in noted.items()} == {1: True, 2: False}
    await follow(history, without_own_update(2))


# The folder


async def test_a_run_is_open_until_its_end_is_seen_and_its_history_stays(tmp_path: Path) -> None:
    history = of_client(tmp_path)
    await follow(history, honest(0))
    (tmp_path / "audit_head.json").write_text("{}")
    assert of_client(tmp_path).open_runs() == {RUN}
    history.close(RUN)
    history.close(RunId("never-seen"))
    assert of_client(tmp_path).open_runs() == set()
    assert of_client(tmp_path).runs() == [RUN]
    with pytest.raises(HistoryDiverged):
        await follow(history, Presented(train_task(chain_of(0, "x")[0]), chain_of(0, "x")))
    await follow(history, honest(1))
    assert of_client(tmp_path).open_runs() == set()


DAMAGES = (
    *("{", "[]", "5", '{"0": {}}', '{"own_updates": {"1": [{}]}}', '{"own_updates": []}', '{"own_updates": {"x": []}}'),
    *('{"0": 5}', '{"0": {"record": 5, "digest": "a", "round": 0, "updates": 0}}'),
    '{"0": {"record": "a", "digest": "a", "round": "x", "updates": 0}}',
)


@pytest.mark.parametrize("content", DAMAGES)
async def test_a_damaged_file_is_named_with_what_its_owner_can_do(tmp_path: Path, content: str) -> None:
    (tmp_path / f"{RUN}.json").write_text(content)
    with pytest.raises(InvalidConfig, match=rf"{RUN}\.json(.|\n)*it is damaged: (.|\n)*move it away"):
        await follow(of_client(tmp_path), honest(0))


async def test_a_damaged_file_stops_no_other_run_and_is_not_overwritten(tmp_path: Path) -> None:
    history = of_client(tmp_path)
    await follow(history, honest(0))
    (tmp_path / "damaged.json").write_text("{")
    with capture_logs() as logs:
        assert of_client(tmp_path).open_runs() == {RUN}
        history.close(RunId("damaged"))
    assert [(line["event"], line["run"]) for line in logs] == [("history.damaged", "damaged")] * 2
    assert "damaged.json" in logs[0]["problem"]
    history.forget_receipts()
    assert (tmp_path / "damaged.json").read_text() == "{"


async def test_the_number_of_updates_behind_a_version_is_known(tmp_path: Path) -> None:
    history = of_client(tmp_path)
    assert history.updates_of(RUN, ModelVersion(1)) is None
    await follow(history, honest(1))
    assert [history.updates_of(RUN, ModelVersion(number)) for number in (0, 1, 2)] == [0, 4, None]


@pytest.mark.parametrize(
    ("weights", "is_good"),
    [
        ((1.0, 0.0, 1.0, 1.0), True),
        ((), False),
        ((1.0, 1.0, 1.0, 1.0), False),
        ((1.0, 0.0, 0.0, 1.0), False),
        ((1.0, 0.0, 1.0, 2.0), False),
    ],
)
async def test_a_rule_that_chooses_leaves_out_as_many_updates_as_the_spec_says_and_they_do_not_count(
    tmp_path: Path, weights: tuple[float, ...], is_good: bool
) -> None:
    records = chain_of(1)
    records = rechained([records[0], replace(records[1], weights=weights)])
    shown, history = Presented(train_task(records[1]), records), of_client(tmp_path)
    aggregation = SPEC.aggregation.model_copy(update={"rule": "multi_krum", "weighting": "uniform"})
    spec = SPEC.model_copy(update={"format": "pluralllm.run/2", "aggregation": aggregation})
    if not is_good:
        with pytest.raises(RecordInvalid, match="another number of updates counts"):
            await history.follow(shown.task, spec, shown.fetch)
        return
    await history.follow(shown.task, spec, shown.fetch)
    assert history.updates_of(RUN, ModelVersion(1)) == 3


async def test_weights_of_another_packages_rule_are_taken_and_the_updates_that_it_leaves_out_do_not_count(
    tmp_path: Path,
) -> None:
    records = chain_of(1)
    records = rechained([records[0], replace(records[1], weights=(1.0, 0.0, 0.0, 1.0))])
    shown, history = Presented(train_task(records[1]), records), of_client(tmp_path)
    rule = {"rule": "plugin", "plugin": plugin(RULE)}
    values = {**SPEC.model_dump(mode="json"), "format": "pluralllm.run/2", "aggregation": rule}
    await history.follow(shown.task, RunSpec.model_validate(values), shown.fetch)
    assert history.updates_of(RUN, ModelVersion(1)) == 2


async def test_new_versions_are_copied_to_the_place_of_the_partners_choice(tmp_path: Path) -> None:
    place = tmp_path / "elsewhere"
    place.mkdir()
    history = History(tmp_path / "history", CLIENT, VERIFIER, HistoryCopy(place))
    await follow(history, honest(1))
    await follow(history, honest(1))
    lines = [json.loads(line) for line in (place / FILE).read_text().splitlines()]
    records = chain_of(1)
    assert [(line["run"], line["version"], line["record_sha256"]) for line in lines] == [
        (RUN, number, record_sha256(records[number])) for number in (0, 1)
    ]
    file = HistoryCopy(tmp_path / "one.jsonl")
    file.append(run="r")
    assert json.loads((tmp_path / "one.jsonl").read_text())["run"] == "r"


async def test_a_copy_that_cannot_be_written_is_reported_once_and_the_client_goes_on(tmp_path: Path) -> None:
    history = History(tmp_path / "history", CLIENT, VERIFIER, HistoryCopy(tmp_path / "missing" / "file"))
    with capture_logs() as lines:
        await follow(history, honest(1))
    assert [line["event"] for line in lines].count("history.not_copied") == 1


# What one update makes of a version


@pytest.mark.parametrize(
    ("changes", "is_good"),
    [
        ({}, True),
        ({"weights": (0.7498, 0.0834, 0.0834, 0.0834)}, True),
        ({"weights": (0.76, 0.08, 0.08, 0.08)}, False),
        ({"weights": (1.0, 0.0, 0.0, 0.0)}, False),
        ({"weights": (0.0, 0.0, 0.0, 0.0)}, False),
        ({"weights": (0.31, 0.31, 0.31, 0.07)}, False),
        ({"examples": 800}, False),
        ({"scales": (1.0, 1.0, 1e-9, 1e-9)}, True),
        ({"scales": (1.0, 1e-9, 1e-9, 1e-9)}, False),
    ],
)
@pytest.mark.parametrize("run_format", ["pluralllm.run/1", "pluralllm.run/2"])
async def test_a_version_that_one_update_rules_is_refused_in_a_run_that_limits_members(
    tmp_path: Path, run_format: str, changes: dict[str, Any], is_good: bool
) -> None:
    records, facts = chain_of(1), dict(changes)
    if examples := facts.pop("examples", 0):
        client, sent, _ = records[1].updates[0]
        facts["updates"] = ((client, sent, examples), *records[1].updates[1:])
    records = rechained([records[0], replace(records[1], **facts)])
    shown, history = Presented(train_task(records[1]), records), of_client(tmp_path)
    spec = SPEC.model_copy(update={"format": run_format})
    if is_good or run_format == "pluralllm.run/1":
        await history.follow(shown.task, spec, shown.fetch)
        return
    with pytest.raises(RecordInvalid, match="three even shares"):
        await history.follow(shown.task, spec, shown.fetch)
    assert history.seen(RUN).versions == {}


# The end of a run


def over_of(shown: Presented) -> RunOver:
    newest = shown.records[-1]
    return RunOver(RUN, "completed", "", newest.version, newest.digest)


async def test_the_last_versions_of_a_run_are_followed_when_it_is_over(tmp_path: Path) -> None:
    history, shown = of_client(tmp_path), honest(20)
    await follow(history, honest(3))
    hand_in(history, 20)
    await history.follow_to_end(over_of(shown), SPEC, SPEC.sha256(), shown.fetch)
    assert sorted(history.seen(RUN).versions) == list(range(21))


async def test_the_version_of_a_closing_round_is_the_last_one_of_a_run(tmp_path: Path) -> None:
    last = SPEC.model_copy(update={"rounds": 2})
    closing = last.model_copy(update={"private_rounds": PrivateRounds(), "format": "pluralllm.run/4"})
    records = chain_of(3)
    closed = rechained([*records[:-1], replace(records[-1], digest=records[-2].digest)])
    shown = Presented(train_task(closed[-1]), closed)
    await of_client(tmp_path / "closes").follow_to_end(over_of(shown), closing, SPEC.sha256(), shown.fetch)
    with pytest.raises(RecordInvalid, match="cannot start from it"):
        await of_client(tmp_path / "plain").follow_to_end(over_of(shown), last, SPEC.sha256(), shown.fetch)
    another = honest(3)
    for name, seen_before in (("at once", 0), ("later", 2)):
        history = of_client(tmp_path / name)
        if seen_before:
            await history.follow(honest(seen_before).task, closing, another.fetch)
        with pytest.raises(RecordInvalid, match="it is another model"):
            await history.follow_to_end(over_of(another), closing, SPEC.sha256(), another.fetch)


async def test_a_last_version_without_the_acknowledged_update_or_before_the_newest_is_noticed(tmp_path: Path) -> None:
    history = of_client(tmp_path)
    await follow(history, honest(3))
    hand_in(history, 4)
    for shown in (without_own_update(4), honest(2)):
        with pytest.raises(HistoryDiverged):
            await history.follow_to_end(over_of(shown), SPEC, SPEC.sha256(), shown.fetch)
    with pytest.raises(RecordInvalid, match="does not present"):
        await history.follow_to_end(over_of(honest(4)), SPEC, SPEC.sha256(), honest(3).fetch)


@pytest.mark.timeout(20)
def test_a_pipe_without_a_reader_as_the_second_place_does_not_hold_the_client(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "copy")
    copy = HistoryCopy(tmp_path / "copy")
    with capture_logs() as logs:
        copy.append(run="r")
        copy.append(run="r")
    assert [line["event"] for line in logs] == ["history.not_copied"]
