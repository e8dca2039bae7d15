"""Published settings of Rectified SpaAttn, from the released scripts (arXiv 2511.19835)."""

PAPER_SETTINGS = {
    "hunyuan": {"config": {"keep": 0.20, "mass": 0.3}, "schedule": {"dense_start": 0, "dense_layers": 0}},
    "wan2.1-14b": {"config": {"keep": 0.25, "mass": 0.3}, "schedule": {"dense_start": 5 / 50, "dense_layers": 2}},
    "wan2.1-14b-i2v": {"config": {"keep": 0.25, "mass": 0.3}, "schedule": {"dense_start": 0, "dense_layers": 2}},
    "wan2.2-a14b": {"config": {"keep": 0.15, "mass": 0.3}, "schedule": {"dense_start": 3 / 40, "dense_layers": 2}},
    "wan2.2-5b": {"config": {"keep": 0.25, "mass": 0.3}, "schedule": {"dense_start": 5 / 50, "dense_layers": 2}},
    "cogvideox1.5-5b": {"config": {"keep": 0.15, "mass": 0.3}, "schedule": {"dense_start": 5 / 50, "dense_layers": 0}},
    "cogvideox1.5-5b-i2v": {
        "config": {"keep": 0.25, "mass": 0.3},
        "schedule": {"dense_start": 5 / 50, "dense_layers": 0},
    },
    "flux-4096": {"config": {"keep": 0.10, "mass": 0.3}, "schedule": {"dense_start": 0, "dense_layers": 0}},
}
COMMON = {"block": 128, "order": "hilbert"}
