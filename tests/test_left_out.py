"""Left-out parts are reported, and refused above 5 %."""

import pytest

from lowrank_study.errors import InputError
from lowrank_study.left_out import LeftOut, check_left_out, in_words


def rows(count: int, total: int, of: str = "reviews.csv") -> LeftOut:
    return LeftOut(count=count, total=total, unit="rows", of=of, why="an empty label")


def test_the_sentence_has_the_count_and_the_share() -> None:
    said = "left out: 12 of 300 rows of reviews.csv (4 %): an empty label"
    assert rows(12, 300).sentence == said
    assert "(0.0067 %)" in rows(1, 15_000).sentence
    assert "(100 %)" in rows(300, 300).sentence


def test_the_largest_share_comes_first_and_empty_parts_are_omitted() -> None:
    shares = [
        sentence.split("(")[1] for sentence in in_words([rows(0, 9), rows(1, 99), rows(3, 99)])
    ]
    assert [share.split(" ")[0] for share in shares] == ["3", "1"]


def test_more_than_a_twentieth_is_refused_unless_allowed() -> None:
    check_left_out([rows(5, 100)], allow_partial=False)
    with pytest.raises(InputError, match=r"6 of 100 rows .* allow_partial=true"):
        check_left_out([rows(6, 100)], allow_partial=False)
    check_left_out([rows(6, 100)], allow_partial=True)


def test_parts_of_one_input_add_up_and_parts_of_two_do_not() -> None:
    with pytest.raises(InputError, match="3 of 100"):
        check_left_out([rows(3, 100), rows(3, 100)], allow_partial=False)
    check_left_out([rows(3, 100), rows(3, 100, of="other.csv")], allow_partial=False)
