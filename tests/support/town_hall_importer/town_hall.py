"""Imports the polls of a town hall: lines of "question;votes for yes;votes for no"."""

from pathlib import Path

from pluralllm.client.data.counted_question import CountedQuestion
from pluralllm.common.errors.tree import InvalidData


def import_town_hall(source: Path, yes: str = "yes") -> list[CountedQuestion]:
    """Returns the questions of a file, each with its counts. yes: the text of the first option.

    Raises InvalidData, which names the line, if a line is none of a poll.
    """
    questions = []
    for number, line in enumerate(source.read_text(encoding="utf-8").splitlines(), start=1):
        text, *votes = line.split(";")
        if len(votes) != 2 or not all(vote.isdecimal() for vote in votes):
            raise InvalidData(file=str(source), problems=f"  line {number}: must be QUESTION;YES;NO")
        counts = tuple(float(vote) for vote in votes)
        people = sum(counts)
        shares = tuple(count / people for count in counts) if people else (0.5, 0.5)
        questions.append(CountedQuestion(text, (yes, "no"), shares, counts=counts, respondents=int(people)))
    return questions
