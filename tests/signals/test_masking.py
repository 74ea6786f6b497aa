"""What is masked before a request is kept, and what stays."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from signals.masking import masked


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("write to ann@example.org, please", "write to [email], please"),
        ("card 4111 1111 1111 1111 and 4111 1111 1111 1112", "card [card] and 4111 1111 1111 1112"),
        ("pay DE89 3704 0044 0532 0130 00, now", "pay [iban], now"),
        ("from 192.168.10.7 to Grüße", "from [ip] to Grüße"),
        ("key AKIAIOSFODNN7EXAMPLE.", "key [secret]."),
        ("two: a@b.io c@d.io", "two: [email] [email]"),
        ("nothing to see", "nothing to see"),
        ("", ""),
    ],
)
def test_findings_are_replaced_by_their_type(text, expected):
    assert masked(text) == expected


def test_too_many_candidates_mask_the_whole_text():
    assert masked("4111111111111112 " * 3000) == "[masked]"


@given(st.text(max_size=300))
def test_no_text_breaks_it(text):
    assert isinstance(masked(text), str)
