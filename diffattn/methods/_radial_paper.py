"""Published settings of Radial Attention, from the released scripts (Apache-2.0) and the paper's Section 5."""

PAPER_SETTINGS = {
    "wan2.1-14b": {
        "config": {"decay": 0.2, "block_size": 128, "model": "wan"},
        "schedule": {"dense_start": 12 / 50, "dense_layers": 1},
    },
    "wan2.1-14b-2x": {
        "config": {"decay": 1.0, "block_size": 128, "model": "wan"},
        "schedule": {"dense_start": 2 / 50, "dense_layers": 2},
    },
    "wan2.1-14b-4step": {
        "config": {"decay": 0.2, "block_size": 128, "model": "wan"},
        "schedule": {"dense_start": 1, "dense_layers": 1},
    },
    "wan2.2-a14b": {
        "config": {"decay": 0.8, "block_size": 64, "model": "wan"},
        "schedule": {"dense_start": 11 / 40, "dense_layers": 1},
    },
    "hunyuan": {
        "config": {"decay": 0.95, "block_size": 128, "model": "hunyuan"},
        "schedule": {"dense_start": 12 / 50, "dense_layers": 0},
    },
    "hunyuan-2x": {
        "config": {"decay": 1.0, "block_size": 128, "model": "hunyuan"},
        "schedule": {"dense_start": 2 / 50, "dense_layers": 2},
    },
    "hunyuan-4x": {
        "config": {"decay": 1.0, "block_size": 128, "model": "hunyuan"},
        "schedule": {"dense_start": 2 / 50, "dense_layers": 2},
    },
}
