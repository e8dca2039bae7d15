"""Published settings of Pyramid Sparse Attention, from its configuration file (arXiv 2512.04025)."""

PAPER_SETTINGS = {
    "wan2.1-14b": {"config": {"thresholds": (0.4, 0.5, 0.6, 0.8)}, "schedule": {"dense_start": 15 / 50}},
    "wan2.1-1.3b": {
        "config": {"thresholds": (0.5, 0.6, 0.7, 0.8), "similarity": (0.70, 0.65, 0.60)},
        "schedule": {"dense_start": 15 / 50},
    },
    "wan2.1-1.3b-topk": {
        "config": {"quantiles": (0.05, 0.10, 0.15, 0.25), "block_k": 32},
        "schedule": {"dense_start": 15 / 50},
    },
    "wan2.2-a14b": {
        "config": {"thresholds": (0.5, 0.6, 0.6, 0.8), "block_k": 32},
        "schedule": {"dense_start": 12 / 40},
    },
    "wan2.2-5b": {
        "config": {"thresholds": (0.6, 0.7, 0.7, 0.8), "block_k": 32},
        "schedule": {"dense_start": 15 / 50},
    },
    "cogvideox1.5-5b": {
        "config": {"quantiles": (0.10, 0.15, 0.15, 0.35), "block_k": 32},
        "schedule": {"dense_start": 15 / 50},
    },
    "cogvideox-5b": {
        "config": {"quantiles": (0.10, 0.15, 0.15, 0.35), "order": "raster"},
        "schedule": {"dense_start": 15 / 50},
    },
    "cogvideox-5b-4step": {
        "config": {"quantiles": (0.05, 0.15, 0.25, 0.50), "order": "raster"},
        "schedule": {"dense_start": 0},
    },
}
COMMON = {"block_q": 128, "block_k": 128, "order": "hilbert"}
