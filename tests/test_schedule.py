import json

import pytest

from diffattn import RadialConfig, Schedule
from diffattn.attention_config import SETTINGS_FILE, load_settings


@pytest.mark.parametrize(
    "start, end, steps, dense",
    [
        (0.2, 0, 50, list(range(10))),
        (0.24, 0, 50, list(range(12))),
        (0.2, 0, 4, [0]),
        (0.2, 0, 8, [0, 1]),
        (3, 1, 6, [0, 1, 2, 5]),
        (0, 0, 6, []),
        (0.0, 0.5, 4, [2, 3]),
        (1.0, 0, 3, [0, 1, 2]),
        (9, 9, 3, [0, 1, 2]),
    ],
)
def test_dense_steps(start, end, steps, dense):
    schedule = Schedule(dense_start=start, dense_end=end)
    assert [step for step in range(steps) if schedule.is_dense_step(step, steps)] == dense


def test_dense_layers_count_or_fraction():
    assert [Schedule(dense_layers=2).is_dense_layer(layer, 30) for layer in (1, 2)] == [True, False]
    assert [Schedule(dense_layers=0.1).is_dense_layer(layer, 30) for layer in (2, 3)] == [True, False]


@pytest.mark.parametrize("bad", [-1, 1.5, float("nan"), "0.2", True])
def test_a_bad_share_is_refused_by_name(bad):
    for name in ("dense_start", "dense_end", "dense_layers"):
        with pytest.raises(ValueError, match=f"Schedule {name} must be"):
            Schedule(**{name: bad})


@pytest.mark.parametrize("bad", [0, -1, 1.0, "2", True, None])
def test_a_bad_refresh_is_refused_by_name(bad):
    with pytest.raises(ValueError, match="Schedule refresh must be an integer of at least 1"):
        Schedule(refresh=bad)


def test_refresh_is_saved_with_the_schedule_and_old_files_load(tmp_path):
    RadialConfig().save_pretrained(tmp_path, Schedule(refresh=3))
    assert load_settings(tmp_path)[1] == Schedule(refresh=3)
    path = tmp_path / SETTINGS_FILE
    values = json.loads(path.read_text())
    assert values["schedule"].pop("refresh") == 3
    path.write_text(json.dumps(values))
    assert load_settings(tmp_path)[1] == Schedule()
