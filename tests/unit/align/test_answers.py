"""The choice that a completion states, and its value for a group."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pluralllm.align.answers import read_answer, read_by, text_of
from pluralllm.align.reward_forms import FORMS, kl, probability, wasserstein
from pluralllm.align.stated import folded
from pluralllm.common.errors.tree import InvalidArgument

OPTIONS = ("Agree", "Agree strongly", "Disagree", "Don't know")
GROUP = np.array([0.4, 0.3, 0.2, 0.1])


@pytest.mark.parametrize(
    ("completion", "option"),
    [
        ("Agree", 0),
        (" agree. ", 0),
        ("Agree strongly because it is so", 1),
        ("Agreement is not an option", None),
        ("B", 1),
        ("(c)", 2),
        ("C. Disagree", 2),
        ("C: disagree, and more", 2),
        ("A. Disagree", None),  # letter and text contradict each other
        ("Z", None),
        ("", None),
        ("  \n ", None),
        ("I do not know", None),
        ("don't know\nand then more", 3),
        ("Agree, because those who disagree are wrong", 0),
        ("Agree, Disagree", None),
        ("Agree not disagree", None),
        ("A or C", None),
        ("A, C", None),
        ("A dog", None),
        ("B) Agree strongly", 1),
        ("1. Disagree", 2),
        ("Option C", 2),
        # what surrounds an answer
        ("<think>Disagree? No.</think>\nAgree", 0),
        ("a thought whose begin the prompt holds</think> Agree", 0),
        ("<think>Agree", None),
        ("**B**", 1),
        ("> *Agree*", None),
        ("`Agree`", 0),
        ("\u201cAgree.\u201d", 0),
        ("Don\u2019t know", 3),
        ("Answer: B", 1),
        ("**Final answer:** Disagree", 2),
        ("The answer is (C).", 2),
        ("Agree is what many say.\n\nAnswer: Disagree", 2),
        ("Answer: A\nNo, wait.\nAnswer: C", 2),
        ("So it is \\boxed{B}", 1),
        ("\\boxed{\\text{Disagree}}", 2),
        ("<answer>Disagree</answer>", 2),
        ("<answer>A</answer> No, wait. <answer>C</answer>", 2),
        ("```\nDisagree\n```", 2),
        ('{"answer": "C"}', 2),
    ],
)
def test_an_option_is_read_from_its_text_or_its_letter(completion: str, option: int | None) -> None:
    choice = read_answer(completion, OPTIONS)
    assert (choice is None) == (option is None)
    if choice is not None and option is not None:
        assert choice.tolist() == np.eye(4)[option].tolist()


def test_a_ranking_is_borda_points_and_who_is_not_named_has_none() -> None:
    found = read_answer("C > A", OPTIONS)
    assert found is not None
    assert found.tolist() == pytest.approx([2 / 5, 0, 3 / 5, 0])
    assert read_answer("C > C", OPTIONS) is None
    assert read_answer("C > nonsense", OPTIONS) is None


@pytest.mark.parametrize(
    "completion",
    [
        "A: 0.6, C: 0.2",
        "agree = 3; disagree = 1",
        "A: 75%\nC: 25%",
        '{"Agree": 3, "C": 1}',
        "Agree 75%, Disagree 25%",
        "75% Agree and 25% Disagree",
        "A (75%), C (25%)",
        "- **Agree**: 75%\n- **Disagree**: 25%",
        '```json\n{"A": 0.75, "C": 0.25}\n```',
        "<think>A: 1</think>Agree 75%, Disagree 25%\n\nMost people agree.",
    ],
)
def test_shares_are_read_and_brought_to_sum_1(completion: str) -> None:
    found = read_answer(completion, OPTIONS)
    assert found is not None
    assert found.tolist() == pytest.approx([0.75, 0, 0.25, 0])


@pytest.mark.parametrize(
    "completion",
    [
        '{"Agree": "much"}',
        '{"X": 1}',
        "{",
        "[" * 5000,
        '{"A": true}',
        "A: 0, B: 0",
        "Agree 10%",  # of the other 90 % nothing is said
        "Agree 10% and something else",
        "Agree: 10%, maybe Disagree: 90%",
        "A: 70%, C: 0.3",
        "A: 50%, Agree: 50%",
        '{"A": 0.5, "Agree": 0.5}',
    ],
)
def test_shares_that_are_none_are_not_taken_for_some(completion: str) -> None:
    assert read_answer(completion, OPTIONS) is None


@pytest.mark.parametrize(
    ("completion", "options", "shares"),
    [
        ("10%", ("5%", "10%", "15%"), [0, 1, 0]),
        ("10%: 0.25, 5%: 0.75", ("5%", "10%", "15%"), [0.75, 0.25, 0]),
        ("Yes, but only sometimes", ("Yes", "Yes, but only sometimes", "No"), [0, 1, 0]),
        ("Rome, Italy; or Paris: 60%, Berlin: 40%", ("Rome, Italy; or Paris", "Berlin"), [0.6, 0.4]),
        ("5.0", ("5", "5.0"), [0, 1]),
        ("5.5", ("5", "6"), None),
        ("50%", ("50", "6"), None),
        ("1: 0.5, 2: 0.5", ("1", "2"), [0.5, 0.5]),
        ("30% 1, 70% 2", ("1", "2"), [0.3, 0.7]),
        ("A", ("B", "A"), [0, 1]),  # the text of an option counts before a letter
        ("\u540c\u610f\u3002", ("\u540c\u610f", "\u4e0d\u540c\u610f"), [1, 0]),
        ("cafe\u0301", ("caf\u00e9", "tea"), [1, 0]),
        ("Agree", ("Agree", "agree"), None),
        ("> 50% > < 50%", ("> 50%", "< 50%"), [1, 0]),
        (" ", (" ", "b"), None),
    ],
)
def test_options_with_commas_digits_and_percent_signs_are_read_whole(
    completion: str, options: tuple[str, ...], shares: list[float] | None
) -> None:
    shares_read = read_answer(completion, options)
    assert (shares_read is None) == (shares is None)
    if shares_read is not None:
        assert shares_read.tolist() == pytest.approx(shares)


HOSTILE = st.lists(
    st.one_of(
        st.text(alphabet="ab ,;%0.15:>-()/é", min_size=1, max_size=7),
        st.sampled_from(["Yes", "Yes, sure", "No", "5", "5.0", "50%", "A", "and", "Ω μ", "no; never", "10% or less"]),
    ),
    min_size=2,
    max_size=5,
    unique_by=lambda option: folded(option).strip(),
).filter(lambda options: all(option.strip(" ,;:>-()/.") for option in options))


@given(HOSTILE, st.data())
def test_a_share_for_each_option_is_read_as_it_is_written_or_not_at_all(
    options: list[str], data: st.DataObject
) -> None:
    percents = data.draw(st.lists(st.integers(1, 98), min_size=len(options), max_size=len(options)))
    gap, link = data.draw(st.sampled_from([", ", "; ", "\n"])), data.draw(st.sampled_from([": ", " "]))
    completion = gap.join(f"{option.strip()}{link}{share}%" for option, share in zip(options, percents, strict=True))
    found = read_answer(completion, options)
    assert found is None or found.tolist() == pytest.approx((np.array(percents) / sum(percents)).tolist())


@given(HOSTILE, st.data())
def test_an_option_alone_is_never_read_as_another_one(options: list[str], data: st.DataObject) -> None:
    number = data.draw(st.integers(0, len(options) - 1))
    before, after = data.draw(
        st.sampled_from([("", ""), ("Answer: ", ""), ("**", "**"), ("<think>x</think>", "."), ("", "\nSo.")])
    )
    found = read_answer(before + options[number] + after, options)
    assert found is None or found.tolist() == np.eye(len(options))[number].tolist()


def test_a_reader_of_ones_own_replaces_the_reading() -> None:
    assert read_by(None, "B", OPTIONS) is not None
    assert read_by(lambda text, options: None, "B", OPTIONS) is None
    found = read_by(lambda text, options: [len(text), 1, 0, 0], "xxx", OPTIONS)
    assert found is not None
    assert found.tolist() == pytest.approx([0.75, 0.25, 0, 0])


@pytest.mark.parametrize("wrong", [[1, 0], [1, -1, 0, 0], [0, 0, 0, 0], [float("nan"), 1, 0, 0]])
def test_a_reader_of_ones_own_must_return_a_share_for_each_option(wrong: list[float]) -> None:
    with pytest.raises(InvalidArgument, match="one for each option"):
        read_by(lambda text, options: wrong, "B", OPTIONS)


@given(st.text(max_size=80), st.lists(st.text(min_size=1, max_size=12), min_size=2, max_size=6, unique=True))
def test_any_text_gives_shares_or_nothing(completion: str, options: list[str]) -> None:
    found = read_answer(completion, options)
    assert found is None or (found.shape == (len(options),) and found.sum() == pytest.approx(1) and (found >= 0).all())


def test_conversations_end_with_what_is_meant() -> None:
    assert text_of("plain") == "plain"
    assert text_of([{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]) == "A"
    assert text_of(
        [{"role": "user", "content": [{"type": "text", "text": "in "}, {"type": "text", "text": "parts"}]}]
    ) == ("in parts")
    assert text_of([]) == ""


# The forms of a reward


@pytest.mark.parametrize("name", FORMS)
def test_a_form_is_between_0_and_1_and_the_groups_own_answer_is_best(name: str) -> None:
    form, rng = FORMS[name], np.random.default_rng(3)
    for _ in range(50):
        group, other = rng.dirichlet(np.ones(5)), rng.dirichlet(np.ones(5))
        single = np.eye(5)[int(rng.integers(5))]
        first = np.eye(5)[int(group.argmax())]
        for answer in (group, other, single):
            assert 0 <= form(answer, group, None) <= 1 + 1e-12
        if name in ("wasserstein", "cosine", "kl", "kendall", "binary"):
            assert form(group, group, None) >= form(other, group, None) - 1e-12
        if name != "wasserstein":  # the middle option may be nearer to the whole group
            assert form(first, group, None) >= form(single, group, None) - 1e-12


def test_a_single_option_is_worth_its_share_by_probability_and_by_divergence() -> None:
    assert probability(np.eye(4)[1], GROUP, None) == pytest.approx(0.3)
    assert kl(np.eye(4)[1], GROUP, None) == pytest.approx(0.3)
    assert kl(np.eye(4)[3], np.array([0.5, 0.5, 0, 0]), None) == 0.0


def test_an_answer_that_is_near_in_meaning_is_worth_more_by_wasserstein() -> None:
    group = np.array([0.0, 0.0, 1.0])
    assert wasserstein(np.eye(3)[1], group, None) == pytest.approx(0.5)
    assert wasserstein(np.eye(3)[1], group, (1.0, 9.0, 10.0)) == pytest.approx(8 / 9)


def test_ranks_count_by_borda_and_kendall_whatever_the_shares_are() -> None:
    borda, kendall = FORMS["borda"], FORMS["kendall"]
    assert [borda(np.eye(4)[n], GROUP, None) for n in range(4)] == pytest.approx([1, 2 / 3, 1 / 3, 0])
    assert kendall(GROUP**3 / (GROUP**3).sum(), GROUP, None) == pytest.approx(1)
    assert kendall(GROUP[::-1].copy(), GROUP, None) == pytest.approx(0)
    assert kendall(np.full(4, 0.25), GROUP, None) == 0.5


@pytest.mark.parametrize(
    ("completion", "options", "option"),
    [
        ("No idea", ("Yes", "No"), None),
        ("no opinion on that.", ("Yes", "No"), None),
        ("- No answer", ("Yes", "No"), None),
        ("No", ("Yes", "No"), 1),
        ("No, ideas like this fail", ("Yes", "No"), 1),
        ("No because of it", ("Yes", "No"), 1),
        ("No ideals were hurt", ("Yes", "No"), 1),
        ("No opinion", ("Yes", "No", "No opinion"), 2),
        ("No idea at all", ("Yes", "No", "No idea"), 2),
    ],
)
def test_a_missing_answer_is_not_the_option_no(completion: str, options: tuple[str, ...], option: int | None) -> None:
    shares = read_answer(completion, options)
    assert (None if shares is None else int(shares.argmax())) == option
