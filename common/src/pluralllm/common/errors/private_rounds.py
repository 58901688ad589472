"""Errors about private rounds, whose updates the coordinator cannot read; tree.py draws the whole tree.

`- Refused
   |- TooFewKnown        the client has pinned too few members of the round, so it deals no shares
   |- HiddenAmongTooFew  the sum has too few members that this client trusts, so it would tell too much about one of them
   |- SumsTooClose       the sum differs too little from one that this client has revealed on the same base version
   |- AnotherSum         the client has confirmed another sum of this round
   |- BadBox             a dealt box does not open, or does not hold what its commitments say
   |- BadView            a member's message does not fit the round that the coordinator has shown to this client
   |- DealtWrongly       a member has dealt shares that do not give its secret
   |- SumImplausible     the unmasked sum cannot be a sum of honest updates
   |- TermTooLong        this client's term of a sum is longer than the run allows
   |- WrongStep          the message belongs to another step, or to other terms, of the private round
   |- RosterDiverged     the roster does not continue the one that this client saw before
   |- PeerKeyDiffers     a member has another peer key than the one that is on record or pinned
   |- AggregateDiffers   a model version is not what the updates of its private round give
   `- RoundSecretsLost   the client has lost its secrets of this round
"""

from dataclasses import dataclass

from pluralllm.common.errors.root import Refused


@dataclass(eq=False)
class TooFewKnown(Refused):
    members: int
    pinned: int  # this client itself included
    needed: int
    why = "Of the {members} members of the private round this client has pinned {pinned}, itself included; it needs {needed}."
    fix = "Compare the roster's digest with the partners and pin them: pluralllm-client peers pin --roster DIGEST --names NAMES."


@dataclass(eq=False)
class HiddenAmongTooFew(Refused):
    problem: str
    why = "The sum of the private round would hide this client's update among too few others: {problem}."
    fix = "More members must take part; the partner's policy says how many: [private_rounds] hidden_among, colluders."


@dataclass(eq=False)
class SumsTooClose(Refused):
    base: str  # digest of the base version
    trusted: int  # fewest pinned members that the sums together may tell about, less those that may collude
    needed: int
    why = (
        "Sums on base version {base} were revealed before; together with this one they may single out {trusted} trusted"
        " members, needed are none or {needed}: a difference of sums would tell too much about them."
    )
    fix = "The next model version starts anew; nothing is to be done."


@dataclass(eq=False)
class AnotherSum(Refused):
    run: str
    round: int
    confirmed: str
    asked: str
    why = (
        "Round {round} of run {run}: this client has confirmed sum {confirmed} and never confirms another one, {asked}."
    )
    fix = "Ask the coordinator's operator why a second sum was asked for: nothing was revealed for it."


@dataclass(eq=False)
class BadBox(Refused):
    dealer: str
    box_sha256: str
    problem: str
    why = "The box {box_sha256} that {dealer} has dealt to this client is bad: {problem}."
    fix = "Both leave the sum of this round. If it happens again, ask the partner {dealer} and the coordinator's operator."


@dataclass(eq=False)
class BadView(Refused):
    member: str
    problem: str
    why = "A message of {member} does not fit this client's view of the private round: {problem}."
    fix = "Nothing was revealed. Ask the coordinator's operator: the coordinator alone passes on the messages."


@dataclass(eq=False)
class DealtWrongly(Refused):
    dealer: str
    problem: str
    why = "{dealer} has dealt wrongly in this private round: {problem}."
    fix = "The round is abandoned and {dealer} stays out until its daemon starts again; ask the partner."


@dataclass(eq=False)
class SumImplausible(Refused):
    problem: str
    why = "The sum of the private round is implausible: {problem}."
    fix = (
        "The model stays as it was. If it happens again, one of those that took part in both rounds sends wrong updates:"
        " ask them, or run rounds without one of them after the other."
    )


@dataclass(eq=False)
class TermTooLong(Refused):
    norm: float
    limit: float
    why = (
        "This client's term of a sum has the L2 norm {norm:.4g}, the run allows {limit:.4g}; a shortened term would belong to"
        " another problem."
    )
    fix = "This client takes no part in the run; ask its owner for one with a larger aggregation.max_delta_norm."


@dataclass(eq=False)
class WrongStep(Refused):
    problem: str
    why = "The message does not belong to this step of the private round: {problem}."
    fix = "The client asks for its task again and goes on from there."


@dataclass(eq=False)
class RosterDiverged(Refused):
    problem: str
    why = "The roster of members' peer keys is not the one that this client saw before: {problem}."
    fix = "Do not go on; compare the roster's digest with the other partners and ask the coordinator's operator."


@dataclass(eq=False)
class PeerKeyDiffers(Refused):
    name: str
    known: str  # fingerprint on record, or pinned
    got: str
    why = "Member {name} has peer key {got}, known is {known}."
    fix = (
        "Ask the partner whether it has a new key. Then an administrator types pluralllm members reset-peer-key {name},"
        " and each partner pins it again: pluralllm-client peers pin --roster DIGEST --names NAMES."
    )


@dataclass(eq=False)
class AggregateDiffers(Refused):
    run: str
    version: int
    problem: str
    evidence: str  # folder
    why = "Model version {version} of run {run} is not what its private round gives: {problem}. Evidence: {evidence}."
    fix = "This client takes no further part in the run; show the evidence to the other partners."


@dataclass(eq=False)
class RoundSecretsLost(Refused):
    run: str
    round: int
    why = "This client has lost its secrets of private round {round} of run {run}, or has left the round."
    fix = "It takes part again from the next round on."
