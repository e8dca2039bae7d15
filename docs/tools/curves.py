"""Draw a training log: `python -m docs.tools.curves LOG --out PNG`."""

import argparse
import csv
from pathlib import Path

import matplotlib.pyplot as plt


def read(path: Path) -> dict[str, tuple[list[float], list[float]]]:
    """Minutes and losses by name."""
    curves: dict[str, tuple[list[float], list[float]]] = {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            minutes, losses = curves.setdefault(row["name"], ([], []))
            minutes.append(float(row["seconds"]) / 60)
            losses.append(float(row["loss"]))
    return curves


def main(argv: list[str] | None = None) -> None:
    """One curve for each grid, and the held-out loss in black."""
    parser = argparse.ArgumentParser(prog="python -m docs.tools.curves", description=__doc__)
    parser.add_argument("log", type=Path, help="what a training program wrote to its --log")
    parser.add_argument("--out", type=Path, required=True, help="a PNG")
    args = parser.parse_args(argv)
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for name, (minutes, losses) in read(args.log).items():
        style = {"color": "black", "marker": "."} if name == "held-out" else {"linewidth": 0.8}
        axes.plot(minutes, losses, label=name, **style)
    axes.set(xlabel="minutes", ylabel="loss", yscale="log")
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    figure.savefig(args.out, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    main()
