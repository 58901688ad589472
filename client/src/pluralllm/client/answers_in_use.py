"""Decides which answers the client uses: the released, noised ones, or the partner's own file.

The decision follows from the partner's policy and from the ledger, never from what has changed in the private file. A file of
shares alone cannot get noise: it is used as it is only if the policy allows it, and only as long as nothing of its
population was released.
"""

from pathlib import Path

import structlog

from pluralllm.client.data.answers import ledger_beside, shows_respondents
from pluralllm.client.data.private_file import Answers
from pluralllm.client.disclosure.policy import Policy, RespondentPrivacy
from pluralllm.client.privacy.entries import latest_release
from pluralllm.client.privacy.ledger import FILE, Ledger
from pluralllm.client.privacy.released_answers import released_answers
from pluralllm.client.process.config import ClientConfig
from pluralllm.common.errors.tree import AnswersProtected, NotReleased

log = structlog.get_logger()

# Said by `join`, by `doctor` and in the log of the daemon, where noise cannot protect the respondents.
TRUE_SHARES = (
    "the private file has shares and no numbers of respondents, so no noise can be added: the true shares are used"
)
GIVE_RESPONDENTS = (
    "import counts (data import responses --options FILE), or give the number of people (data import globalopinionqa"
    " --respondents N), then type pluralllm-client data release"
)


def answers_in_use(config: ClientConfig, policy: Policy) -> Answers:
    """Returns the file with the answers that this daemon uses now.

    Raises AnswersProtected if the policy asks for no noise, and the answers were released with noise earlier;
    NotReleased if the policy asks for noise, the file's respondents are known, and nothing was released; NoisedFileLost,
    LedgerBroken or LedgerDiverged; InvalidData if the private file has problems and must be read.
    """
    privacy = policy.privacy
    if privacy is None:
        _check_not_released(config)
        return Answers(config.data)
    folder = privacy.ledger_folder(config.state_dir)
    try:
        noised = released_answers(config.data, folder)
    except NotReleased:
        if not uses_true_shares(config.data, privacy, folder):
            raise
        log.warning("answers.without_noise", file=str(config.data), reason=TRUE_SHARES, fix=GIVE_RESPONDENTS)
        return Answers(config.data, ledgers=(folder / FILE, ledger_beside(config.data)))
    if not noised.is_current:
        log.warning(
            "data.not_released", file=str(config.data), fix="the released answers stay in use until a new release"
        )
    return Answers(noised.path, noised.sha256, (folder / FILE, ledger_beside(config.data)))


def _check_not_released(config: ClientConfig) -> None:
    """Checks that no ledger in its usual place says that the answers were released with noise.

    The copy of the ledger beside the private file says it as well, unless somebody has lost it. Raises AnswersProtected,
    LedgerBroken or LedgerDiverged.
    """
    folder, data = RespondentPrivacy().ledger_folder(config.state_dir), config.data.resolve()
    if latest_release(Ledger(folder, data).entries, str(data)) is not None:
        raise AnswersProtected(file=str(config.data), ledger=str(folder / FILE))


def uses_true_shares(data: Path, privacy: RespondentPrivacy, folder: Path) -> bool:
    """Returns whether a private file of which nothing was released is used without noise, because it cannot get any.

    folder: of the ledger. Once answers of the same population were released with noise, its people are protected: shares
    without noise, which may be the same answers under another name, are not used.
    """
    return privacy.allow_true_shares and not Ledger(folder, data.resolve()).entries and not shows_respondents(data)
