"""The notice about keys that an older policy file lacks. The client logs each key once, with the value that holds."""

import json
from pathlib import Path

import structlog

from pluralllm.client.disclosure.consents import FOLDER
from pluralllm.client.disclosure.policy import Policy
from pluralllm.common.process.files import make_folder, write_durably
from pluralllm.common.text.reading import Unreadable, read_json

log = structlog.get_logger()


def report_missing_keys(policy: Policy, file: Path, state_dir: Path) -> None:
    """Logs the new keys that the partner's policy file lacks, with their values, and stores that they were logged.

    file: the partner's policy file. state_dir: state directory, in which the names of the logged keys are kept.
    """
    notice = state_dir / FOLDER / "reported_keys.json"
    reported = _names(notice)
    keys = [key for key in policy.missing_keys if key not in reported]
    if not keys:
        return
    values = policy.model_dump(mode="json", include=set(keys))
    log.warning("policy.keys_missing", file=str(file), values={key: values[key] for key in keys})
    make_folder(notice.parent)
    write_durably(notice, json.dumps(sorted({*reported, *keys})).encode())


def _names(notice: Path) -> list[str]:
    """Returns the names in the file; none if the file does not exist or is damaged, so that at worst a key is logged twice."""
    try:
        names = read_json(notice)
    except Unreadable:
        return []
    return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []
