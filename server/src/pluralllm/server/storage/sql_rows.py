"""Converts the store's records into rows of the database's tables, and rows into records."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from sqlalchemy.engine import Row

from pluralllm.common.trust.version_record import VersionRecord
from pluralllm.common.words.ids import ClientId, Digest, GroupName, ModelVersion, RoundNumber, RunId
from pluralllm.common.words.noise import NoiseStatement
from pluralllm.common.words.not_reported import NotReported
from pluralllm.common.words.spec import GroupRole
from pluralllm.server.rounds.events import Receipt, RoundStep, Score, event_kind, event_to_facts
from pluralllm.server.storage.store import (
    Change,
    Checkpoint,
    ClientRecord,
    EvaluationRecord,
    ReceiptRecord,
    RoundMessage,
    RoundOutcome,
    RoundRecord,
)


def event_values(change: Change) -> dict[str, Any]:
    return {
        "run": change.run,
        "sequence": change.sequence,
        "at_s": change.event.at_s,
        "kind": event_kind(change.event),
        "facts": json.dumps(event_to_facts(change.event)),
    }


def receipts_after(changes: Sequence[Change]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Returns the receipts that changes insert, and the keys of those that they withdraw, which are deleted first."""
    inserted: list[dict[str, Any]] = []
    withdrawn: list[dict[str, Any]] = []
    for change in changes:
        inserted += [receipt_values(row) for row in change.receipts]
        for number, client in change.withdrawn:
            key = {"run": change.run, "round": number, "client": client}
            withdrawn.append(key)
            inserted = [values for values in inserted if key.items() - values.items()]
    return inserted, withdrawn


def messages_after(changes: Sequence[Change]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Returns the messages that stand after changes, and the keys of the rounds whose messages are deleted."""
    standing: dict[tuple[RunId, RoundNumber, RoundStep, ClientId], RoundMessage] = {}
    ended: list[dict[str, Any]] = []
    for change in changes:
        standing |= {(row.run, row.round, row.step, row.client): row for row in change.messages}
        for number in change.ended:
            ended.append({"run": change.run, "round": number})
            standing = {key: row for key, row in standing.items() if key[:2] != (change.run, number)}
    return [message_values(row) for row in standing.values()], ended


def evaluations_after(changes: Sequence[Change]) -> list[dict[str, Any]]:
    """Returns the evaluations that stand after changes, in the order in which they came in."""
    standing: dict[tuple[RunId, ModelVersion, ClientId], dict[str, Any]] = {}
    for evaluation in (evaluation for change in changes for evaluation in change.evaluations):
        key = (evaluation.run, evaluation.score.version, evaluation.score.client)
        standing.pop(key, None)
        standing[key] = evaluation_values(evaluation)
    return list(standing.values())


def round_values(row: RoundRecord) -> dict[str, Any]:
    return {
        "run": row.run,
        "round": row.round,
        "outcome": row.outcome.value,
        "reason": row.reason,
        "base_version": row.base_version,
        "version": row.version,
        "cohort": json.dumps(row.cohort),
        "created_s": row.created_s,
        "updated_s": row.updated_s,
        "rollouts": row.rollouts,
        "tail": json.dumps(row.tail),
    }


def round_row(row: Row[Any]) -> RoundRecord:
    return RoundRecord(
        RunId(row.run),
        RoundNumber(row.round),
        RoundOutcome(row.outcome),
        row.reason,
        ModelVersion(row.base_version),
        None if row.version is None else ModelVersion(row.version),
        tuple(ClientId(client) for client in json.loads(row.cohort)),
        row.created_s,
        row.updated_s,
        row.rollouts,
        tuple(json.loads(row.tail)),
    )


def receipt_values(row: ReceiptRecord) -> dict[str, Any]:
    return {
        "run": row.run,
        "round": row.round,
        "client": row.receipt.client,
        "digest": row.receipt.digest,
        "examples": row.receipt.examples,
        "distance": row.receipt.distance,
        "norm": row.receipt.norm,
        "created_s": row.created_s,
    }


def receipt_row(row: Row[Any]) -> ReceiptRecord:
    receipt = Receipt(ClientId(row.client), Digest(row.digest), row.examples, row.distance, row.norm)
    return ReceiptRecord(RunId(row.run), RoundNumber(row.round), receipt, row.created_s)


def message_values(row: RoundMessage) -> dict[str, Any]:
    return {
        "run": row.run,
        "round": row.round,
        "step": row.step.value,
        "client": row.client,
        "sha256": row.sha256,
        "body": row.body,
    }


def message_row(row: Row[Any]) -> RoundMessage:
    return RoundMessage(
        RunId(row.run), RoundNumber(row.round), RoundStep(row.step), ClientId(row.client), Digest(row.sha256), row.body
    )


def version_values(row: VersionRecord) -> dict[str, Any]:
    return {
        "run": row.run,
        "version": row.version,
        "round": row.round,
        "digest": row.digest,
        "spec_sha256": row.spec_sha256,
        "parent_sha256": row.parent_sha256,
        "record_sha256": row.record_sha256,
        "updates": json.dumps(row.updates),
        "created_s": row.created_s,
        "moments": json.dumps(row.moments),
        "weights": json.dumps(row.weights),
        "scales": json.dumps(row.scales),
        "transcript": row.transcript,
    }


def checkpoint_row(row: Row[Any]) -> Checkpoint:
    return Checkpoint(RunId(row.run), row.sequence, row.format, row.content, Digest(row.sha256))


def version_row(row: Row[Any]) -> VersionRecord:
    return VersionRecord(
        RunId(row.run),
        ModelVersion(row.version),
        RoundNumber(row.round),
        Digest(row.digest),
        Digest(row.spec_sha256),
        row.parent_sha256,
        tuple((ClientId(client), Digest(digest), examples) for client, digest, examples in json.loads(row.updates)),
        row.created_s,
        tuple(Digest(moment) for moment in json.loads(row.moments)),
        tuple(json.loads(row.weights)),
        tuple(json.loads(row.scales)),
        row.transcript,
    )


def evaluation_values(row: EvaluationRecord) -> dict[str, Any]:
    score = row.score
    return {
        "run": row.run,
        "version": score.version,
        "client": score.client,
        "group_name": score.group,
        "role": score.role.value,
        "alignment_score": score.alignment_score,
        "alignment_score_base2": score.alignment_score_base2,
        "wasserstein_score": score.wasserstein_score,
        "questions": score.questions,
        "not_reported": None if score.not_reported is None else score.not_reported.value,
        "context_gain": score.context_gain,
        "created_s": row.created_s,
    }


def evaluation_row(row: Row[Any]) -> EvaluationRecord:
    score = Score(
        ClientId(row.client),
        GroupName(row.group_name),
        GroupRole(row.role),
        ModelVersion(row.version),
        row.alignment_score,
        row.alignment_score_base2,
        row.wasserstein_score,
        row.questions,
        None if row.not_reported is None else NotReported(row.not_reported),
        row.context_gain,
    )
    return EvaluationRecord(RunId(row.run), score, row.created_s)


def client_values(row: ClientRecord) -> dict[str, Any]:
    return {
        "client": row.client,
        "group_name": row.group,
        "role": row.role.value,
        "training_questions": row.training_questions,
        "software_version": row.software_version,
        "created_s": row.created_s,
        "last_seen_s": row.last_seen_s,
        "noise": None if row.noise is None else json.dumps(asdict(row.noise)),
    }


def client_row(row: Row[Any]) -> ClientRecord:
    return ClientRecord(
        ClientId(row.client),
        GroupName(row.group_name),
        GroupRole(row.role),
        row.training_questions,
        row.software_version,
        row.created_s,
        row.last_seen_s,
        None if row.noise is None else NoiseStatement(**json.loads(row.noise)),
    )
