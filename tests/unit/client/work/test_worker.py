"""The orders of the worker, as far as they are decided before torch does anything."""

from pathlib import Path

import pytest

from pluralllm.client.work.worker import check_names_no_path
from pluralllm.common.errors.tree import PolicyForbids


def test_a_model_id_that_is_also_a_folder_of_this_machine_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    check_names_no_path("mine/model", None)
    (tmp_path / "mine" / "model").mkdir(parents=True)
    with pytest.raises(PolicyForbids, match="allowed_embedding_models is mine/model"):
        check_names_no_path("mine/model", None)


def test_a_folder_that_the_partner_has_configured_is_used_whatever_the_id_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    check_names_no_path("mine", tmp_path / "mine")
