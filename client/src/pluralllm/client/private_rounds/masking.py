"""The secrets with which the worker process masks this client's update for the dealers of one round."""

from dataclasses import dataclass, field

from pluralllm.client.private_rounds.holding import Holding
from pluralllm.client.private_rounds.membership import Myself
from pluralllm.client.private_rounds.notebook import Notebook
from pluralllm.client.private_rounds.steps import check_may_mask, secrets_of
from pluralllm.common.private_rounds.dealing import pair_key
from pluralllm.common.private_rounds.masks import SignedKey, masking_keys
from pluralllm.common.private_rounds.statements import derived


@dataclass(frozen=True, slots=True)
class MaskingSecrets:
    """The keys of all streams that are added to the update, and the seed by which its numbers are rounded."""

    streams: tuple[SignedKey, ...] = field(repr=False)
    rounding: bytes = field(repr=False)  # the same after a restart, so that a repeated masking has the same bytes


def masking_secrets(notebook: Notebook, me: Myself, holding: Holding) -> MaskingSecrets:
    """Returns the secrets for masking. Raises the errors of `check_may_mask`: an update is masked once in a round."""
    check_may_mask(notebook, me, holding)
    secrets, dealers = secrets_of(notebook, me), holding.dealers
    members = dealers.members
    halves = {
        members.names.index(other) + 1: (pair_key(secrets.mask, members.sha256, me.name, other), received)
        for other, received in holding.pair_keys.items()
    }
    streams = masking_keys(secrets.own, halves, dealers.sha256, members.index)
    return MaskingSecrets(tuple(streams), derived(secrets.training, "rounding", dealers.sha256))
