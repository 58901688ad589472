"""The steps of a private round, as one client takes them: keys, shares, update, confirmation, reveal; and a complaint.

Each function checks what the coordinator shows, writes the step into the notebook, and returns the message to send. A step that
is done gives the same message again. A refusal raises before anything is written or leaves this machine.

    step          the message leaves only if                                                  the notebook then binds
    keys          the round is not closed, and the terms are this client's own                terms, secret
    shares        every member has signed its keys, (A) enough members are pinned             members, R1
    update        every box is signed; the base version is vouched for; (B) may hold          dealers, R2; one masked file
    complaint     a dealer has signed a box that is bad; nothing is masked                    dealers, R2
    confirmation  every update is signed for R2; the own one is there; (B) holds; (C) holds   one sum, R3
    reveal        enough dealers have signed R3; (C) holds                                    the same shares for R3

(A), (B) and (C) are in common.private_rounds.thresholds. Source: Bonawitz et al. 2017 (CCS 17, eprint 2017/281).
"""

import secrets as system_secrets
from collections.abc import Callable
from hashlib import sha256

import structlog

from pluralllm.client.private_rounds.holding import Dealers, Holding, open_boxes, take_boxes
from pluralllm.client.private_rounds.lines import (
    ComplaintLine,
    ConfirmLine,
    KeysLine,
    RevealLine,
    SharesLine,
    UpdateLine,
)
from pluralllm.client.private_rounds.membership import COORDINATOR, Members, Myself, check_round, check_terms
from pluralllm.client.private_rounds.notebook import Notebook
from pluralllm.client.private_rounds.revealed_sums import RevealedSums
from pluralllm.common.errors.private_rounds import AnotherSum, BadView, HiddenAmongTooFew, WrongStep
from pluralllm.common.errors.tree import InvalidArgument
from pluralllm.common.private_rounds.dealing import RoundSecrets, deal, revealed_values
from pluralllm.common.private_rounds.messages import (
    Complaint,
    Confirmation,
    Keys,
    Reveal,
    Shares,
    UpdateStatement,
    digest_of_sum,
)
from pluralllm.common.private_rounds.round_view import RoundView
from pluralllm.common.private_rounds.thresholds import is_base_vouched, is_hidden, is_large_enough

log = structlog.get_logger()

TRAINING_SEED_BYTES = 8  # torch takes seeds of 64 bits


def secrets_of(notebook: Notebook, me: Myself) -> RoundSecrets:
    """Returns the secrets of the round. Raises RoundSecretsLost if the notebook has none; WrongStep if it has other terms."""
    notebook.needed(KeysLine)
    return RoundSecrets.of(notebook.begin(me.terms.sha256), me.terms.sha256)


def send_keys(notebook: Notebook, me: Myself, view: RoundView) -> Keys:
    """Returns this client's fresh public keys for the round. Raises WrongStep if the coordinator states other terms."""
    check_terms(me, view)
    terms = me.terms.sha256
    random = notebook.begin(terms)
    if (line := notebook.line(KeysLine)) is not None:
        return Keys.from_json(notebook.message(line))
    keys = (
        RoundSecrets.of(random, terms)
        .keys(me.name, checked=me.checked, score_among=me.score_among)
        .signed(me.key, terms, me.name)
    )
    notebook.write_keys(terms, random, keys.to_json())
    return keys


def training_seed(notebook: Notebook, me: Myself) -> int:
    """Returns the seed of the round's training: nobody else can compute it, and it is another one in each round.

    Two sums on one base version then differ by more than the members in which they differ. Raises RoundSecretsLost.
    """
    return int.from_bytes(secrets_of(notebook, me).training[:TRAINING_SEED_BYTES])


def send_shares(
    notebook: Notebook,
    me: Myself,
    view: RoundView,
    random_below: Callable[[int], int] = system_secrets.randbelow,
) -> Shares:
    """Returns the boxes for all members. They are dealt once; the same boxes are sent again.

    Raises the errors of `check_round`, before anything is dealt; RoundSecretsLost if this client has sent no keys.
    """
    secrets, members = secrets_of(notebook, me), _members(notebook, me, view)
    if (line := notebook.line(SharesLine)) is not None:
        return Shares.from_json(notebook.message(line))
    try:
        shares, own = deal(
            secrets,
            me.key,
            members.sha256,
            me.name,
            members.members,
            threshold=members.threshold,
            least=members.least,
            random_below=random_below,
        )
    except InvalidArgument as error:
        raise BadView(member=COORDINATOR, problem="a member's public key seals no box") from error
    body = shares.to_json()
    line = SharesLine(
        members=members.sha256.hex(),
        own_self=own.own.hex(),
        own_mask=own.mask.hex(),
        message=sha256(body).hexdigest(),
    )
    notebook.write(line, body)
    return shares


def hold(notebook: Notebook, me: Myself, view: RoundView) -> Holding:
    """Takes the boxes for this client, and returns what they hold. Raises the errors of `check_round` and `take_boxes`."""
    return open_boxes(notebook, me, _dealers(notebook, me, view), secrets_of(notebook, me))


def send_complaint(notebook: Notebook, me: Myself, holding: Holding) -> Complaint | None:
    """Returns the complaint about the first dealer whose box is bad; None if all boxes are good.

    A client that complains masks nothing in the round. It complains once.
    """
    if not holding.bad:
        return None
    first = holding.bad[0]
    complaint = Complaint(first.dealer, bytes.fromhex(first.box_sha256)).signed(me.key, holding.dealers.sha256, me.name)
    body = complaint.to_json()
    notebook.write(ComplaintLine(dealers=holding.dealers.sha256.hex(), message=sha256(body).hexdigest()), body)
    log.warning("private.bad_box", run=me.terms.run, round=me.terms.round, dealer=first.dealer, problem=first.problem)
    return complaint


def check_may_mask(notebook: Notebook, me: Myself, holding: Holding) -> None:
    """Checks that this client may mask its update for the dealers of `holding`.

    Raises RoundSecretsLost if it has masked already: the masked file is sent, and nothing else. Raises WrongStep if it has
    confirmed or complained in this round; BadView if the base version may be crafted; HiddenAmongTooFew if no sum of these
    dealers can hide the update.
    """
    if notebook.line(UpdateLine) is not None:
        raise notebook.lost()
    for kind in (ConfirmLine, ComplaintLine):
        if notebook.line(kind) is not None:
            problem = f"nothing more is masked in round {me.terms.round} of run {me.terms.run}"
            raise WrongStep(problem=problem)
    if holding.bad:
        raise holding.bad[0]
    dealers, members = holding.dealers, holding.dealers.members
    vouching = sum(one.keys.checked for one in members.members if one.name in members.pinned and one.name != me.name)
    if not me.checked and not is_base_vouched(pinned_that_checked=vouching, colluders=me.colluders):
        problem = f"only {vouching} pinned members have computed the base version again, at most {me.colluders} may lie"
        raise BadView(member=COORDINATOR, problem=problem)
    if len(dealers.names) < members.least:  # with fewer, too few pinned members are left, whoever of them is there
        problem = f"a sum needs {members.least} updates, and there are {len(dealers.names)} dealers"
        raise HiddenAmongTooFew(problem=problem)


def send_update(notebook: Notebook, me: Myself, holding: Holding, digest: bytes) -> UpdateStatement:
    """Returns the statement that goes with the masked file. Call this when the file is durable, before its first byte leaves.

    digest: SHA-256 of the masked file. Raises WrongStep for another file than the first one, and the errors of `check_may_mask`.
    """
    line = notebook.line(UpdateLine)
    if line is None:
        check_may_mask(notebook, me, holding)
        statement = UpdateStatement(me.name, digest).signed(me.key, holding.dealers.sha256)
    else:
        statement = UpdateStatement(me.name, digest, bytes.fromhex(line.statement))
    notebook.write(
        UpdateLine(dealers=holding.dealers.sha256.hex(), digest=digest.hex(), statement=statement.signature.hex())
    )
    return statement


def confirm(notebook: Notebook, me: Myself, view: RoundView, sums: RevealedSums, *, has_receipt: bool) -> Confirmation:
    """Returns this client's signature over the sum of the round. It confirms one sum; the same one again.

    has_receipt: whether the coordinator has acknowledged this client's update.
    Raises the errors of `check_round` and `take_boxes`; BadView if an update is not signed for the same dealers, or if the own
    one is missing or another one; HiddenAmongTooFew or SumsTooClose if the sum could show single updates; AnotherSum.
    """
    dealers = _dealers(notebook, me, view)
    digest = _checked_sum(notebook, me, dealers, view, has_receipt=has_receipt)
    line = notebook.line(ConfirmLine)
    if line is not None and line.sum != digest.hex():
        log.error("private.another_sum", run=me.terms.run, round=me.terms.round, confirmed=line.sum, asked=digest.hex())
        raise AnotherSum(run=me.terms.run, round=me.terms.round, confirmed=line.sum, asked=digest.hex())
    in_sum = frozenset(update.name for update in view.updates)
    sums.check(me, in_sum, in_sum & dealers.members.adding)
    confirmation = Confirmation(digest).signed(me.key)
    body = confirmation.to_json()
    notebook.write(ConfirmLine(sum=digest.hex(), message=sha256(body).hexdigest()), body)
    return confirmation


def reveal(notebook: Notebook, me: Myself, view: RoundView, sums: RevealedSums, *, has_receipt: bool) -> Reveal:
    """Returns this client's shares for the sum: of the own mask for each update in it, of the mask key for each other dealer.

    The sum is confirmed first, so that a client never reveals for a sum that it would not confirm.
    A client that has complained of a dealer has no share of it, and reveals all others.
    Raises the errors of `confirm`; BadView if fewer dealers have confirmed the sum than must; BadBox if it lacks another share.
    """
    confirmation = confirm(notebook, me, view, sums, has_receipt=has_receipt)
    dealers = _dealers(notebook, me, view)
    _check_confirmed(dealers, view, confirmation.sum_sha256)
    if (line := notebook.line(RevealLine)) is not None:
        return Reveal.from_json(notebook.message(line))
    holding = open_boxes(notebook, me, dealers, secrets_of(notebook, me))
    in_sum = frozenset(update.name for update in view.updates)
    complained = _complained(notebook)
    for error in holding.bad:
        if error.dealer != complained:
            raise error
    having = tuple(name for name in dealers.names if name != complained)
    values = revealed_values(holding.held, having, in_sum, dealers.members.names)
    revealed = Reveal.of(confirmation.sum_sha256, values).signed(me.key)
    body = revealed.to_json()
    sums.note(me, in_sum, in_sum & dealers.members.adding)
    notebook.write(RevealLine(sum=confirmation.sum_sha256.hex(), message=sha256(body).hexdigest()), body)
    return revealed


def is_too_small(notebook: Notebook, me: Myself, view: RoundView) -> bool:
    """Returns whether the sum has fewer updates than this client has asked for, so that its own must not be among them."""
    return len(view.updates) < _dealers(notebook, me, view).members.least


# Parts


def _complained(notebook: Notebook) -> str:
    """Returns the dealer that this client has complained of in the round; "" for none."""
    line = notebook.line(ComplaintLine)
    return "" if line is None else Complaint.from_json(notebook.message(line)).dealer


def _members(notebook: Notebook, me: Myself, view: RoundView) -> Members:
    keys = notebook.parsed(notebook.needed(KeysLine), Keys)
    dealt = notebook.line(SharesLine)
    return check_round(me, view, keys, None if dealt is None else bytes.fromhex(dealt.members))


def _dealers(notebook: Notebook, me: Myself, view: RoundView) -> Dealers:
    return take_boxes(notebook, me, _members(notebook, me, view), view)


def _check_hidden(me: Myself, members: Members, names: tuple[str, ...]) -> None:
    """Checks (B): enough pinned members are in the sum. Raises HiddenAmongTooFew."""
    pinned = sum(name in members.pinned for name in names)
    if not is_hidden(pinned_in_sum=pinned, colluders=me.colluders, hidden_among=me.hidden_among):
        problem = (
            f"{pinned} of the {len(names)} members of the sum are pinned, and with {me.colluders} that may collude"
            f" {me.hidden_among + me.colluders} are needed"
        )
        raise HiddenAmongTooFew(problem=problem)


def _checked_sum(notebook: Notebook, me: Myself, dealers: Dealers, view: RoundView, *, has_receipt: bool) -> bytes:
    """Returns R3 of the sum that the coordinator shows, after all checks of its updates. Raises BadView or HiddenAmongTooFew."""
    names = tuple(update.name for update in view.updates)
    if list(names) != sorted(set(names)) or not set(names) <= set(dealers.names):
        raise BadView(member=COORDINATOR, problem="the updates are not sorted, or are of others than dealers")
    for update in view.updates:
        if not update.is_signed(dealers.members.key_of(update.name), dealers.sha256):
            problem = "it has not signed its update for the dealers that this client has seen"
            raise BadView(member=update.name, problem=problem)
    _check_own_update(notebook, me, dealers, view, has_receipt=has_receipt)
    greatest = max((dealers.least_of(name) for name in names), default=0)
    if not is_large_enough(updates=len(names), threshold=dealers.members.threshold, greatest_least=greatest):
        least = max(dealers.members.threshold, greatest)
        raise HiddenAmongTooFew(problem=f"the sum has {len(names)} updates, and its members ask for {least}")
    _check_hidden(me, dealers.members, names)
    return digest_of_sum(dealers.sha256, view.updates)


def _check_own_update(notebook: Notebook, me: Myself, dealers: Dealers, view: RoundView, *, has_receipt: bool) -> None:
    """Checks that the sum has this client's own update, as it was sent, if and only if it may. Raises BadView."""
    line = notebook.line(UpdateLine)
    shown = next((update.digest.hex() for update in view.updates if update.name == me.name), None)
    if shown is not None and (line is None or line.digest != shown):
        raise BadView(member=me.name, problem="the sum has another update of this client than the one that it has sent")
    may_lack_it = len(view.updates) < dealers.members.least or _is_complained_of(notebook, me, dealers, view)
    if shown is None and has_receipt and not may_lack_it:
        problem = "the coordinator has acknowledged its update, and the sum does not have it; the receipt is the proof"
        raise BadView(member=me.name, problem=problem)


def _is_complained_of(notebook: Notebook, me: Myself, dealers: Dealers, view: RoundView) -> bool:
    """Returns whether a member has signed a complaint about the box that this client has dealt to it.

    Both are then out of the sum, whoever of them is at fault.
    """
    shares = notebook.parsed(notebook.needed(SharesLine), Shares)
    members = dealers.members
    for one in view.complaints:
        if one.complaint.dealer == me.name and one.name in dealers.names:
            box = shares.box_of(1 + members.names.index(one.name))
            signed = one.complaint.is_signed(members.key_of(one.name), dealers.sha256, one.name)
            if signed and one.complaint.box_sha256 == box.sha256:
                return True
    return False


def _check_confirmed(dealers: Dealers, view: RoundView, sum_sha256: bytes) -> None:
    """Checks that enough different dealers have confirmed the sum. Raises BadView."""
    confirmed = {
        one.name
        for one in view.confirmations
        if one.name in dealers.names
        and Confirmation(sum_sha256, one.signature).is_signed(dealers.members.key_of(one.name))
    }
    if len(confirmed) < dealers.members.threshold:
        problem = f"{len(confirmed)} dealers have confirmed this sum, {dealers.members.threshold} must"
        raise BadView(member=COORDINATOR, problem=problem)
