"""The table [private_rounds] of a run spec, and the arithmetic of who must be there for a sum."""

from typing import Annotated, Literal

from pydantic import Field

from pluralllm.common.words.spec_part import Positive, Seconds, SpecPart

PROTOCOL = "pluralllm.private/1"
MAX_MEMBERS = 128  # of one private round
MAX_WEIGHT = 16_384  # largest aggregation.max_examples of a run with private rounds
# Largest length of all terms of a sum together: a step of their numbers modulo 2^32 is then at most 1/512. With steps of 1/64 the
# solution for three small groups was off by 2 % and their scores by 0.003, with steps of 1/512 by 0.2 % and 0.0001.
MAX_LENGTH_OF_TERMS = 2**22 - 1


class PrivateRounds(SpecPart):
    """Rounds in which the coordinator learns the sum of the updates, and no single update.

    Source: Bonawitz et al. 2017 (CCS 17, eprint 2017/281), the variant for a malicious server.
    """

    protocol: Literal["pluralllm.private/1"] = "pluralllm.private/1"
    # The coordinator and this many members of a round together learn nothing but the sum.
    colluders: Annotated[int, Field(ge=0, le=MAX_MEMBERS)] = 1
    # L2 norm of a whole update; the client scales a longer one down to it. It has no effect with kernel-sums/1, whose updates
    # are not scaled: aggregation.max_delta_norm is the bound there, and a client with a longer update takes no part.
    clip_norm: Positive = 4.0
    # Seconds for each step of the exchange but training: keys, shares, confirmation, reveal.
    step_s: Seconds = 60.0
    # Whether a closing round after the last round collects the scores of the last version in a sum. Nobody trains in it, and
    # groups that only are evaluated take part, too. It has an effect from the format run/4 on.
    closing_scores: bool = True

    def problems(
        self,
        *,
        target_clients: int,
        min_clients: int,
        max_examples: int,
        encoding: str,
        asks_for_rewards: bool,
        term_bound: float | None,
    ) -> list[str]:
        """Returns what a run spec with this table must set, for each setting of the spec that does not fit.

        term_bound: aggregation.max_delta_norm if the updates are terms of sums; None for all others.
        """
        problems = []
        if asks_for_rewards:
            problems.append("no table [rewards], because a reward tells how its group answers")
        if encoding != "fp32":
            problems.append("updates.encoding = fp32, because the scales of other encodings do not add")
        if term_bound is not None and target_clients * term_bound > MAX_LENGTH_OF_TERMS:
            most_term = MAX_LENGTH_OF_TERMS // target_clients
            problems.append(f"aggregation.max_delta_norm to at most {most_term}, because rounding is coarser above it")
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
