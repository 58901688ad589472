"""The texts about scores of which only the sum is known."""

from pluralllm.common.words.score_sums import bins_text, clipped_text, scores_text, worst_bin

HISTOGRAM = [0] * 32
HISTOGRAM[22], HISTOGRAM[24] = 1, 3


def test_a_histogram_names_its_bins_that_have_scores_by_their_bounds() -> None:
    assert bins_text(HISTOGRAM) == "1 in 0.69-0.72, 3 in 0.75-0.78"
    assert (worst_bin(HISTOGRAM), worst_bin([0] * 32)) == (22, None)


def test_a_sentence_about_a_sum_has_the_mean_the_worst_bin_and_over_how_many_members_it_is() -> None:
    assert scores_text(3, 4, 5, 0.75125, HISTOGRAM) == (
        "scores of version 3 inside a sum: mean alignment 0.7512 over 4 of 5 members, worst 0.69-0.72; "
        "1 in 0.69-0.72, 3 in 0.75-0.78"
    )
    assert clipped_text(7, 1, 5) == "round 7: 1 of 5 updates were scaled down to the largest norm"
