"""Published settings of VMoBA (arXiv 2506.23858, Table 4 and Appendix A) for Wan2.1-1.3B."""

DENSE = {"dense_start": 0.25}
PAPER_SETTINGS = {
    "wan2.1-480p": {
        "config": {"top_k": (2, 6, 18), "frames": 3, "area": (5, 13), "box": (7, 5, 13), "raw_scores": True},
        "schedule": DENSE,
    },
    "wan2.1-720p": {
        "config": {"top_k": (2, 10, 9), "frames": 3, "area": (9, 10), "box": (7, 15, 20), "raw_scores": True},
        "schedule": DENSE,
    },
    "train-576p": {
        "config": {
            "threshold": 0.25, "scope": "head", "frames": 3, "area": (6, 8), "box": (8, 12, 8), "raw_scores": True,
        },
        "schedule": DENSE,
    },
    "train-480p": {
        "config": {
            "threshold": 0.25, "scope": "head", "frames": 3, "area": (5, 13), "box": (12, 10, 13), "raw_scores": True,
        },
        "schedule": DENSE,
    },
}  # fmt: skip
