import pytest

from benchmarks import guidance
from benchmarks.timing import Time
from benchmarks.tiny import load
from diffattn.guidance import map_model, resolve_heads


@pytest.mark.parametrize("heads", [["4:0", "5:2"], ["2:1"], ["0:0"]], ids=str)
def test_the_prediction_is_what_a_perturbed_pass_counts(heads):
    transformer = load().transformer
    predicted, counted = guidance.predicted(transformer, resolve_heads(map_model(transformer), heads))
    assert predicted == pytest.approx(counted, abs=0.03) and 0 < counted < 1


@pytest.mark.parametrize("seconds, met", [(1.44, "yes"), (1.46, "**no**")])
def test_the_verdict_follows_the_slower_ratio(seconds, met):
    times = {
        f"{kind}, {part}": Time(1.0, 0.1) for kind in ("unguided", "guided") for part in ("denoising", "whole clip")
    }
    times["guided, denoising"] = Time(seconds, 0.1)
    page = guidance.write(times, (0.23, 0.21), guidance.parse_args([]))
    assert f"would be 1.5: {met}\n" in page and f"| **{seconds}** |" in page
