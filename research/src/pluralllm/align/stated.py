"""Finds the part of a completion that states its answer: without thinking, markdown and the words around it.

The module parses text only.
"""

import re
import unicodedata

_THOUGHTS = re.compile(r"<(think|thinking|reasoning)>.*?</\1>", re.DOTALL | re.IGNORECASE)
_END_OF_THOUGHT = re.compile(r"</(?:think|thinking|reasoning)>", re.IGNORECASE)
_UNENDED_THOUGHT = re.compile(r"<(?:think|thinking|reasoning)>.*", re.DOTALL | re.IGNORECASE)
_TAGGED = re.compile(r"<(?:answer|final_answer)>(.*?)</(?:answer|final_answer)>", re.DOTALL | re.IGNORECASE)
_FENCE = re.compile(r"```[\w-]*\n?(.*?)```", re.DOTALL)
_ANSWER = re.compile(
    r"^[\W_]*(?:(?:my|the|so|therefore|thus|final|correct|best)[\s,]+)*(?:answer|choice|response)(?:\s+is)?[\W_]*?[:=\s][\s*_`]*(?=\S)",
    re.IGNORECASE | re.MULTILINE,
)
_QUOTES = str.maketrans({"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u00a0": " "})
_WRAPPING = "*_`\"'\u201c\u201d\u2018\u2019# \t"
_OPTION = re.compile(r"(?:option|choice)\s+(?=\(?\w)")


def folded(text: str) -> str:
    """Returns a text as texts are compared: one spelling of each character, straight quotes, lower case, single blanks."""
    lines = unicodedata.normalize("NFKC", text).translate(_QUOTES).casefold().split("\n")
    return "\n".join(" ".join(line.split()) for line in lines)


def candidates(completion: str) -> list[str]:
    """Returns the texts that may state the answer, folded. The first one that can be read as an answer is it.

    An answer that is marked as one (<answer>, \\boxed{...}, "Answer:", the last of each) is the only candidate. Thinking that
    has no end holds no answer.
    """
    text = _UNENDED_THOUGHT.sub("", _THOUGHTS.sub("", completion))
    text = _END_OF_THOUGHT.split(text)[-1].strip()
    if marked := _marked(text):
        return _forms(marked)
    return _forms(text)


def _marked(text: str) -> str:
    """Returns the part of a text that is marked as the answer; "" if there is none."""
    if tagged := _TAGGED.findall(text):
        return str(tagged[-1])
    if (boxed := _boxed(text)) is not None:
        return boxed
    if not text.startswith("{") and (lines := list(_ANSWER.finditer(text))):
        return text[lines[-1].end() :]
    return ""


def _boxed(text: str) -> str | None:
    """Returns the content of the last \\boxed{...}, without \\text{...} around it."""
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    depth, begin = 1, start + len("\\boxed{")
    for place in range(begin, len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if depth == 0:
            return re.sub(r"\\(?:text|mathrm|textbf)\{(.*)\}", r"\1", text[begin:place])
    return None


def _forms(text: str) -> list[str]:
    """Returns a text as it stands; without code fences, quotes and marks of markdown; and without "Option" before its name."""
    fenced = _FENCE.findall(text)
    inner = fenced[-1] if len(fenced) == 1 else text
    plain = "\n".join(_unmarked(line) for line in inner.split("\n") if _unmarked(line))
    forms = (folded(text.strip()), folded(plain), _OPTION.sub("", folded(plain), count=1))
    return list(dict.fromkeys(form for form in forms if form))


def _unmarked(line: str) -> str:
    """Returns a line without marks of markdown around it and around its words."""
    return re.sub(r"\*\*|__|`", "", line).strip(_WRAPPING)
