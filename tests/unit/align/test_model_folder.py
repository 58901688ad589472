"""An exported model is loaded as transformers loads models, verified, and saved again."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from support.exported_model import SPEC, export
from support.points import random_points, random_shares
from support.process_harness import process_spec
from support.small_survey import KERNEL
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

from pluralllm.align import PluralConfig, PluralPredictor
from pluralllm.align.model_card import _table, model_card
from pluralllm.align.model_folder import CONFIG, PROVENANCE, WEIGHTS, provenance, scores_of
from pluralllm.common.errors.tree import InvalidModel
from pluralllm.common.predictor.model import load_weights, new_predictor
from pluralllm.common.weights.layout import tensors_of
from pluralllm.common.words.private_rounds import PrivateRounds
from pluralllm.common.words.spec import RunSpec


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return export(tmp_path / "model")


@pytest.mark.parametrize("predictor", [{}, {**KERNEL, "features": 40}], ids=["tnp-d/1", "fourier-kernel/1"])
def test_it_is_the_published_predictor_number_for_number(predictor: dict[str, Any], tmp_path: Path) -> None:
    spec = process_spec(training={"episodes": {"min_context": 5}}, predictor=predictor)
    folder = export(tmp_path / "model", spec)
    plain = new_predictor(spec.predictor, spec.embedding)
    load_weights(plain, tensors_of(folder / WEIGHTS))
    loaded = PluralPredictor.from_pretrained(folder)
    for (name, expected), (other, value) in zip(plain.named_parameters(), loaded.named_parameters(), strict=True):
        assert name == other
        assert torch.equal(expected, value)
    context, targets = (random_points(2, count, 32, options=3, templates=2) for count in (6, 3))
    batch = context, random_shares(context), targets
    with torch.no_grad():
        assert torch.equal(plain.eval()(*batch).mean, loaded(*batch).mean)
    assert loaded.contract == spec.embedding
    assert (loaded.config.min_context, loaded.config.context_questions) == (5, 10)


def test_a_version_without_a_group_projection_is_loaded_with_zeros_in_its_place(tmp_path: Path) -> None:
    values = {"predictor": {"architecture": "kernel-sums/1", "features": 40}, "aggregation": {"weighting": "uniform"}}
    spec = process_spec(**values)
    folder = export(tmp_path / "model", spec)
    assert "Gaussian process regression on fixed features" in (folder / "README.md").read_text()
    loaded = PluralPredictor.from_pretrained(folder)
    assert {name: bool(value.any()) for name, value in loaded.named_parameters()} == {
        "head.prior": False,
        "head.group_projection": False,
    }
    context, targets = (random_points(1, count, 32, options=3, templates=2) for count in (6, 3))
    plain = new_predictor(spec.predictor, spec.embedding)
    load_weights(plain, tensors_of(folder / WEIGHTS))
    batch = context, random_shares(context), targets
    with torch.no_grad():
        assert torch.equal(plain.eval()(*batch).mean, loaded(*batch).mean)


def test_the_auto_classes_know_it(folder: Path) -> None:
    assert isinstance(AutoConfig.from_pretrained(folder), PluralConfig)
    assert isinstance(AutoModel.from_pretrained(folder), PluralPredictor)


def test_a_trainer_that_takes_the_folder_for_a_classifier_is_told_to_give_the_object(folder: Path) -> None:
    with pytest.raises(InvalidModel, match=r"no sequence classifier.*reward_funcs=GroupReward\(folder") as refused:
        AutoModelForSequenceClassification.from_pretrained(
            folder, num_labels=1, device_map=None, trust_remote_code=False
        )
    assert str(folder) in str(refused.value)
    assert 'as in `reward_funcs="this folder"`, for a sequence classifier' in (folder / "README.md").read_text()


def test_an_architecture_that_this_release_does_not_know_is_refused_with_what_to_do(folder: Path) -> None:
    _rewrite(folder, predictor={"architecture": "tnp-d/9"})
    with pytest.raises(InvalidModel, match=r"'tnp-d/9' needs another release of PluralLLM.*upgrade") as refused:
        PluralPredictor.from_pretrained(folder)
    assert "has exported it" not in str(refused.value)
    _rewrite(folder, predictor={"architecture": "tnp-d/9"}, release="9.0\x1b")
    with pytest.raises(
        InvalidModel, match=r"(?s)this is release \S+, which knows .*release 9.0\\x1b of PluralLLM has exported it"
    ):
        PluralPredictor.from_pretrained(folder)


def test_what_is_saved_again_is_loaded_again_with_card_and_provenance(folder: Path, tmp_path: Path) -> None:
    model = PluralPredictor.from_pretrained(folder)
    with torch.no_grad():
        model.head[1].bias += 1
    model.save_pretrained(tmp_path / "tuned")
    again = PluralPredictor.from_pretrained(tmp_path / "tuned")
    assert torch.equal(again.head[1].bias, model.head[1].bias)
    assert (tmp_path / "tuned" / PROVENANCE).read_bytes() == (folder / PROVENANCE).read_bytes()
    assert "Gold\\|crest" in (tmp_path / "tuned" / "README.md").read_text()


def test_the_card_says_what_the_participants_have_declared_about_noise(folder: Path) -> None:
    origin = json.loads((folder / PROVENANCE).read_text())
    assert "is not on record" in model_card({key: value for key, value in origin.items() if key != "noise"})
    spec, record = RunSpec.model_validate(origin["run_spec"]), origin["record"]
    rounds = [{"version": 0, "receipts": [{"client": name} for name in ("ann", "ben")]}]
    noise = {"noised": True, "epsilon": 4.0, "delta": 1e-6, "unit": "respondent"}
    people: list[dict[str, Any]] = [
        {"client": "ben", "group": "Gold|crest", "noise": None},
        {"client": "ann", "group": "Ann's", "noise": noise},
        {"client": "eve", "group": "has sent no update", "noise": noise},
    ]
    card = model_card(provenance(spec, record, [record], rounds, origin["scores"], people))
    assert "declare it, and nobody has checked it.\n\n" in card
    assert "| Ann's | epsilon 4, delta 1e-06, unit respondent |\n| Gold\\|crest | not stated |\n" in card
    assert "has sent no update" not in card


def test_the_version_of_a_closing_round_has_the_scores_of_its_model_and_no_more_participants(folder: Path) -> None:
    origin = json.loads((folder / PROVENANCE).read_text())
    spec = RunSpec.model_validate(origin["run_spec"] | {"rounds": 1})
    spec = spec.model_copy(update={"format": "pluralllm.run/4", "private_rounds": PrivateRounds()})
    first = origin["record"]
    made = {**first, "version": 1, "round": 1, "digest": "e" * 64}
    closed = {**made, "name": "runs/r/models/2", "version": 2, "round": 2}
    lineage = [first, made, closed]
    evaluations = [{"version": version, "alignment_score": 0.5 + version / 10} for version in (0, 1)]
    assert scores_of(closed, lineage, evaluations) == scores_of(made, lineage, evaluations) == evaluations[1:]
    assert scores_of(first, lineage[:1], evaluations) == evaluations[:1]
    assert scores_of(closed, lineage, []) == []
    receipts = [{"client": "ann"}, {"client": "ben"}]
    rounds: list[dict[str, Any]] = [
        {"version": 1, "receipts": receipts},
        {"version": 2, "receipts": [*receipts, {"client": "eve"}]},
        {"version": None, "receipts": receipts},
    ]
    facts = provenance(spec, closed, lineage, rounds, [])
    assert (facts["participants"], facts["updates"]) == (2, 2), "a group that is held out has not made the model"


def test_it_is_pushed_to_the_hub_as_people_expect(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uploaded: list[str] = []

    class Hub:
        """The calls of the Hub's client that the code makes; there is no network."""

        def create_repo(self, repo_id: str, **_: object) -> object:
            return type("Url", (), {"repo_id": repo_id})

        def upload_folder(self, *, folder_path: str | Path, **_: object) -> str:
            shutil.copytree(folder_path, tmp_path / "hub")
            uploaded.append("folder")
            return "https://hub/commit"

        def create_commit(self, *, operations: list[object], **_: object) -> str:
            (tmp_path / "hub").mkdir()
            for operation in operations:
                content = Path(operation.path_or_fileobj).read_bytes()  # type: ignore[attr-defined]
                (tmp_path / "hub" / operation.path_in_repo).write_bytes(content)  # type: ignore[attr-defined]
            uploaded.append("commit")
            return "https://hub/commit"

        def __getattr__(self, name: str) -> object:
            return lambda *_, **__: None

    monkeypatch.setattr("transformers.utils.hub.hf_api", Hub)
    monkeypatch.setattr("transformers.utils.hub.create_or_update_model_card", _no_card, raising=False)
    PluralPredictor.from_pretrained(folder).push_to_hub("someone/model")
    assert uploaded
    assert torch.equal(
        PluralPredictor.from_pretrained(tmp_path / "hub").head[1].bias,
        PluralPredictor.from_pretrained(folder).head[1].bias,
    )


def _no_card(*_: object, **__: object) -> object:
    return type("Card", (), {"save": lambda *_: None})()


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:-4] + b"spoi"), "was changed"),
        (lambda f: _rewrite(f, format="pluralllm.model/2"), "upgrade pluralllm-client"),
        (lambda f: _rewrite(f, format=None), "pluralllm model export"),
        (lambda f: (f / CONFIG).write_text("{"), "pluralllm model export"),
        (lambda f: (f / WEIGHTS).unlink(), "pluralllm model export"),
        (lambda f: (f / CONFIG).unlink(), "pluralllm model export"),
    ],
    ids=["weights changed", "newer format", "another model", "broken configuration", "no weights", "no configuration"],
)
def test_a_folder_that_is_not_what_it_says_is_refused_with_what_to_do(folder: Path, spoil: object, told: str) -> None:
    spoil(folder)  # type: ignore[operator]
    with pytest.raises(InvalidModel, match=told):
        PluralPredictor.from_pretrained(folder)


def test_the_card_tells_each_groups_score_the_worst_group_and_fairness(folder: Path) -> None:
    card = (folder / "README.md").read_text()
    assert "| Northmark | train | 0.8000 | 0.8000 | +0.0200 | 9 |" in card
    assert "do not depend on the group" not in card
    assert "worst group Gold\\|crest" in card
    assert "Over 2 groups: fairness index 0.9800" in card
    origin = json.loads((folder / PROVENANCE).read_text())
    assert origin["run_spec_sha256"] == SPEC.sha256()
    assert len(origin["lineage"]) == 1


def test_the_card_shows_a_group_that_keeps_its_score_with_the_reason_and_says_over_how_many_groups_fairness_is(
    tmp_path: Path,
) -> None:
    kept: dict[str, object] = {
        "group": "Foun|dry",
        "role": "train",
        "alignment_score": None,
        "alignment_score_base2": None,
    }
    kept |= {"questions": 0, "version": 0, "not_reported": "too_few_questions"}
    folder = export(tmp_path / "model", more_scores=[kept])
    card = (folder / "README.md").read_text()
    assert "| Foun\\|dry | train | not reported: too few questions | | | |" in card
    assert "Over 2 of 3 groups: fairness index 0.9800" in card
    scores = {score["group"]: score for score in json.loads((folder / PROVENANCE).read_text())["scores"]}
    assert scores["Foun|dry"]["alignment_score"] is None
    assert scores["Foun|dry"]["not_reported"] == "too_few_questions"


def test_the_card_says_when_the_predictions_do_not_depend_on_the_group() -> None:
    score = {"group": "G", "role": "train", "alignment_score": 0.8, "alignment_score_base2": 0.7, "questions": 9}
    origin = {"fairness_index": 1.0, "coefficient_of_variation": 0.0}
    card = _table({"scores": [score | {"context_gain": 0.0}], **origin})
    assert "Mean context gain +0.0000: **these predictions do not depend on the group**" in card
    earlier = _table({"scores": [score], **origin})  # a folder of an earlier release
    assert "| 0.8000 | 0.7000 | - | 9 |" in earlier
    assert "do not depend" not in earlier


def test_a_card_of_a_version_that_no_group_reports_on_says_so() -> None:
    scores = [
        {"group": "G", "role": "train", "alignment_score": None, "questions": 0, "not_reported": "budget_spent"},
    ]
    card = _table({"scores": scores, "fairness_index": None, "coefficient_of_variation": None})
    assert "| G | train | not reported: budget spent | | | |" in card
    assert card.endswith("No group reports its score.")


def _rewrite(folder: Path, **changes: object) -> None:
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**config, **changes}))


@pytest.mark.parametrize("content", ["[]", "5", "{", '{"predictor": {}}'])
def test_a_damaged_config_is_named(folder: Path, content: str) -> None:
    (folder / CONFIG).write_text(content)
    with pytest.raises(InvalidModel):
        PluralPredictor.from_pretrained(folder)


def test_a_config_without_its_embedding_is_named(folder: Path) -> None:
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**config, "embedding": None}))
    with pytest.raises(InvalidModel, match="its predictor cannot be made"):
        PluralPredictor.from_pretrained(folder)


def test_the_card_says_how_texts_are_embedded_and_what_the_embedding_may_not_see(folder: Path) -> None:
    card = (folder / "README.md").read_text()
    assert "(pooling mean), cuts each text at 256 tokens" in card
    assert "cannot tell apart options to which" in card
