"""`python -m diffattn.models` prints the tables of classes as Markdown; with file names, it renews those in them."""

import sys
from pathlib import Path

from .. import methods  # noqa: F401  registers the methods
from .table import not_supported_table, support_table, with_table

if len(sys.argv) == 1:
    sys.stdout.write(f"{support_table()}\n\n{not_supported_table()}\n")
for name in sys.argv[1:]:
    Path(name).write_text(with_table(Path(name).read_text(encoding="utf-8")), encoding="utf-8")
