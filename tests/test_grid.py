import pytest

from diffattn import TokenGrid


def test_text_goes_before_or_after_the_video():
    suffix, prefix = TokenGrid(2, 3, 4, text=5), TokenGrid(2, 3, 4, text=5, text_first=True)
    assert (suffix.tokens, suffix.video_start, suffix.text_start) == (29, 0, 24)
    assert (prefix.tokens, prefix.video_start, prefix.text_start) == (29, 5, 0)


@pytest.mark.parametrize("sizes", [(0, 3, 4), (2, -1, 4), (2, 3, 0), (2.0, 3, 4), (2, 3, 4, -1), (True, 3, 4)])
def test_an_impossible_size_is_refused_by_name(sizes):
    with pytest.raises(ValueError, match=r"TokenGrid (frames|height|width|text) must be an integer"):
        TokenGrid(*sizes)
