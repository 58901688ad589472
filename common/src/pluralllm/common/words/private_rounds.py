"""The table [private_rounds] of a run spec, and the arithmetic of who must be there for a sum."""

from typing import Annotated, Literal

from pydantic import Field

from pluralllm.common.words.spec_part import Positive, Seconds, SpecPart

PROTOCOL = "pluralllm.private/1"
MAX_MEMBERS = 128  # of one private round
MAX_WEIGHT = 16_384  # largest aggregation.max_examples of a run with private rounds


class PrivateRounds(SpecPart):
    """Rounds in which the coordinator learns the sum of the updates, and no single update.

    Source: Bonawitz et al. 2017 (CCS 17, eprint 2017/281), the variant for a malicious server.
    """

    protocol: Literal["pluralllm.private/1"] = "pluralllm.private/1"
    # The coordinator and this many members of a round together learn nothing but the sum.
    colluders: Annotated[int, Field(ge=0, le=MAX_MEMBERS)] = 1
    # L2 norm of a whole update; the client scales a longer one down to it.
    clip_norm: Positive = 4.0
    # Seconds for each step of the exchange but training: keys, shares, confirmation, reveal.
    step_s: Seconds = 60.0
    # Whether the scores of the last version are collected by one more round, whose vector holds nothing else.
    closing_scores: bool = True

    def problems(
        self,
        *,
        target_clients: int,
        min_clients: int,
        max_examples: int,
        encoding: str,
        asks_for_rewards: bool,
        adds_sums: bool,
    ) -> list[str]:
        """Returns what a run spec with this table must set, for each setting of the spec that does not fit."""
        problems = []
        if asks_for_rewards:
            problems.append("no table [rewards], because a reward tells how its group answers")
        if encoding != "fp32":
            problems.append("updates.encoding = fp32, because the scales of other encodings do not add")
        if adds_sums:
            problems.append("another predictor than kernel-sums/1, whose updates must not be clipped")
        if target_clients > MAX_MEMBERS:
            problems.append(f"round.target_clients to at most {MAX_MEMBERS}")
        if 2 * self.colluders >= target_clients:
            most = (target_clients - 1) // 2
            problems.append(f"private_rounds.colluders to at most {most}, less than half of round.target_clients")
        elif min_clients < (quorum := max(threshold(target_clients, self.colluders), 3)):
            drops = max(0, target_clients - quorum)
            problems.append(f"round.min_clients to {quorum} (of {target_clients} clients {drops} may then drop out)")
        if max_examples > MAX_WEIGHT:
            problems.append(f"aggregation.max_examples to at most {MAX_WEIGHT}")
        return problems


def threshold(members: int, colluders: int) -> int:
    """Returns how many members must confirm and reveal a sum: two different sums of one round would need more answers than that.

    members: number of members of the round. colluders: number of members that may answer twice.
    """
    return (members + colluders) // 2 + 1
