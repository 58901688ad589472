"""Templates have plain fields only, whatever a hostile spec writes into them."""

import tracemalloc

import pytest

from pluralllm.common.words.templates import FIELDS, MAX_USES, check_template, fill_template

VALUES = {field: f"<{field}>" for field in FIELDS}


@pytest.mark.parametrize(
    ("template", "filled"),
    [
        ("", ""),
        ("no field", "no field"),
        ("{question} {options} {letter}. {option}", "<question> <options> <letter>. <option>"),
        ("{question:}", "<question>"),
        ("{{question}} }} {option}", "{question} } <option>"),
        ("{{{question}", "{<question>"),
        ("{option}{option}", "<option><option>"),
    ],
)
def test_a_template_with_plain_fields_is_filled_in_as_by_format(template: str, filled: str) -> None:
    check_template(template)
    assert fill_template(template, VALUES) == filled == template.format(**VALUES)


@pytest.mark.parametrize(
    "template",
    [
        *("{}", "{0}", "{other}", "{ question}", "{question.upper}", "{question[0]}"),
        *("{question!r}", "{question!s}", "{question!}", "{question:9}", "{question:>9}", "{question:{option}}"),
        *("{question", "question}"),
    ],
)
def test_any_other_field_is_refused_and_never_filled_in(template: str) -> None:
    with pytest.raises(ValueError, match="by their plain names"):
        check_template(template)
    with pytest.raises(ValueError, match="by their plain names"):
        fill_template(template, VALUES)


@pytest.mark.parametrize("field", FIELDS)
def test_a_field_is_used_twice_at_most(field: str) -> None:
    use = f"{{{field}}}"
    check_template(use * MAX_USES)
    with pytest.raises(ValueError, match=f"{field}.* 3 times, at most 2"):
        check_template(use * (MAX_USES + 1))


def test_a_width_allocates_nothing() -> None:
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="plain names"):
            check_template("{question:>100000000}")
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()
