"""`python -m diffattn.models`: the support table as Markdown; with a file, renewed between the marks in it."""

import sys
from pathlib import Path

from .. import methods  # noqa: F401  registers them
from .table import support_table, with_table

if len(sys.argv) == 1:
    sys.stdout.write(support_table() + "\n")
for name in sys.argv[1:]:
    Path(name).write_text(with_table(Path(name).read_text(encoding="utf-8")), encoding="utf-8")
