"""The lines of `pluralllm-client doctor` about the policy and about runs that wait for consent."""

from pathlib import Path

import pytest
from support.installed_package import METHODS, Site
from support.process_harness import process_spec

from pluralllm.client import doctor as doctor_module
from pluralllm.client.data.private_data import write_group
from pluralllm.client.disclosure.consents import Consents
from pluralllm.client.disclosure.differences import differences_of
from pluralllm.client.disclosure.policy import DEFAULT_POLICY, Policy
from pluralllm.client.doctor import PROBES
from pluralllm.client.process.config import ClientConfig
from pluralllm.common.errors.tree import ConsentNeeded
from pluralllm.common.process.console import Check
from pluralllm.common.words.ids import RunId
from pluralllm.common.words.questions import Question


def config_of(folder: Path) -> ClientConfig:
    return ClientConfig(data=folder / "answers.jsonl", state_dir=folder)


@pytest.mark.parametrize("everybody_reads", [True, False])
def test_the_data_line_says_whether_every_user_of_the_machine_can_read_the_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, everybody_reads: bool
) -> None:
    monkeypatch.setattr("pluralllm.client.doctor.can_others_read", lambda _: everybody_reads)
    write_group(tmp_path / "answers.jsonl", [Question("Why?", ("a", "b"), (0.5, 0.5))])
    check = PROBES["private data"](config_of(tmp_path))
    assert check.ok
    assert ("every user of this machine can read" in check.result, "chmod 600" in check.fix) == (everybody_reads,) * 2


def test_the_policy_line_names_the_keys_that_an_older_file_lacks(tmp_path: Path) -> None:
    (tmp_path / "policy.toml").write_text("min_cohort = 2\n")
    check = PROBES["policy"](config_of(tmp_path))
    assert check.ok
    assert (
        "keys not in it have their defaults: allow_sums, allowed_aggregators, allowed_embedders, allowed_presets, compare"
        in check.result
    )
    (tmp_path / "policy.toml").write_text(DEFAULT_POLICY)
    assert PROBES["policy"](config_of(tmp_path)).result == str(tmp_path / "policy.toml")


def test_the_consent_line_names_the_runs_that_wait_and_the_command(tmp_path: Path) -> None:
    probe, config, spec = PROBES["consent"], config_of(tmp_path), process_spec()
    assert probe(config).result == "no run waits for it"
    consents = Consents(tmp_path)
    for run in ("a", "b"):
        with pytest.raises(ConsentNeeded):
            consents.demand(RunId(run), spec, differences_of(Policy(), spec))
    check = probe(config)
    assert check.ok
    assert check.result == "refused until you consent: a, b"
    assert check.fix == "pluralllm-client consent RUN"
    question = consents.question(RunId("a"))
    assert question is not None
    consents.give(question)
    assert probe(config).result == "no run waits for it"


def test_the_disk_line_says_that_no_file_can_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda *_: False)  # as for a file system that is mounted for reading
    check = PROBES["disk"](config_of(tmp_path / "state"))
    assert (check.ok, check.result.startswith(f"{tmp_path} cannot be written")) == (False, True)


def test_doctor_takes_the_folder_and_the_file_that_run_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checked_settings: list[ClientConfig] = []

    def checks_of(settings: ClientConfig) -> list[Check]:
        checked_settings.append(settings)
        return []

    monkeypatch.setattr(doctor_module, "checks_of", checks_of)
    doctor_module.doctor(data=tmp_path / "north.jsonl", state_dir=tmp_path / "north")
    assert [(one.data, one.state_dir) for one in checked_settings] == [(tmp_path / "north.jsonl", tmp_path / "north")]


def test_the_model_line_names_the_packages_whose_embedders_may_run_here(tmp_path: Path, site: Site) -> None:
    assert PROBES["embedding model"](config_of(tmp_path)).result == "looked up by the run spec's id"
    site.install("town_hall_methods")
    (tmp_path / "policy.toml").write_text(f'allowed_embedders = ["{METHODS}==1.1", "nobodys"]\n')
    check = PROBES["embedding model"](config_of(tmp_path).model_copy(update={"policy": tmp_path / "policy.toml"}))
    allowed = f"embedders allowed: {METHODS}==1.1 (1.0 is installed), nobodys (not installed)"
    assert check.result == f"looked up by the run spec's id; {allowed}"
