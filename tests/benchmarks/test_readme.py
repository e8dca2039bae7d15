"""What the README shows first: clips and speeds, both from committed commands."""

import argparse
from pathlib import Path

import pytest
from PIL import Image

from benchmarks.attention.measure import Row
from benchmarks.attention.report import report
from docs.tools import readme, showcase

ROOT = Path(__file__).parents[2]
OPTIONS = argparse.Namespace(device="cpu")


def row(name, tokens, density, speedup, dtype="float32", dim=64, section="forward", tiles="128x128"):
    tiles = "-" if density == 1 else tiles
    measured = {"time": 0.1, "spread": 0.01, "speedup": speedup, "ideal": speedup * density}
    return Row(section, name, "cpu", dtype, 1, 8, tokens, dim, tiles, density, **measured)


ROWS = [
    row("SDPA", 8192, 1, 1.0),
    row("diffattn", 8192, 0.5, 1.5),
    row("SDPA", 16384, 1, 1.0),
    row("diffattn", 16384, 0.5, 1.75),
    row("FlexAttention", 16384, 0.5, 9.0),
    row("diffattn", 16384, 0.126, 6.25),
    row("diffattn", 8192, 0.25, 3.0, dtype="bfloat16", dim=128),
    row("diffattn", 32768, 0.5, 8.0, section="backward"),
]


def test_the_readme_holds_the_speeds_of_now():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert readme.with_block(text, readme.START, readme.END, readme.speeds()) == text, readme.START
    assert text.index(readme.END) < text.index("## Install")


def test_without_a_result_it_says_so_and_shows_no_number(tmp_path):
    text = readme.speeds(tmp_path)
    assert text.startswith("**Speed: not yet measured.**") and readme.MEASURE in text and "|" not in text


def test_the_longest_sequences_of_a_result_become_the_table(tmp_path):
    larger = row("diffattn", 16384, 0.25, 9.0, tiles="256x128")
    (tmp_path / "attention-cpu.md").write_text(report([*ROWS, larger], OPTIONS) + "\n")
    about, _, head, _, *lines = readme.speeds(tmp_path).splitlines()
    assert head == "| shape | density 0.5 | density 0.25 | density 0.125 | density 0.0625 |"
    assert lines == [
        "| 16,384 tokens, head dim 64, float32 | 1.75x |  | 6.25x |  |",
        "| 8,192 tokens, head dim 128, bfloat16 |  | 3.00x |  |  |",
    ]
    assert "(SDPA)" in about and " threads (" in about and "(benchmarks/results/attention-cpu.md)" in about


def test_a_result_without_forward_passes_is_refused(tmp_path):
    (tmp_path / "attention-cpu.md").write_text(report(ROWS[-1:], OPTIONS))
    with pytest.raises(ValueError, match="has no forward pass of diffattn"):
        readme.speeds(tmp_path)


def test_the_command_writes_between_the_marks_alone(tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{readme.START}\nold\n{readme.END}\nafter\n")
    monkeypatch.setattr("sys.argv", ["readme", "--file", str(page)])
    readme.main()
    assert page.read_text() == f"before\n{readme.START}\n\n{readme.speeds()}\n\n{readme.END}\nafter\n"


def test_the_clips_are_small_enough_to_load_and_move():
    path = ROOT / "docs" / "images" / "showcase.gif"
    with Image.open(path) as clips:
        assert clips.info["loop"] == 0 and clips.n_frames > showcase.CALL["num_frames"] // 2
        assert _milliseconds(clips) == showcase.FRAME * (showcase.CALL["num_frames"] - 1) + showcase.PAUSE
    assert path.stat().st_size < 1.5e6


def test_the_command_draws_every_prompt_with_every_method(tmp_path):
    showcase.main(["--steps", "1", "--frames", "5", "--out", str(tmp_path / "clips.gif")])
    with Image.open(tmp_path / "clips.gif") as clips:
        assert _milliseconds(clips) == showcase.FRAME * 4 + showcase.PAUSE
        assert clips.width > len(showcase.METHODS) * showcase.SIDE and clips.height > 2 * showcase.SIDE


def _milliseconds(clips):
    """How long the frames are shown, of which equal ones are merged."""
    times = []
    for number in range(clips.n_frames):
        clips.seek(number)
        times.append(clips.info["duration"])
    return sum(times)
