"""`python -m diffattn.models`: the support table as Markdown."""

import sys

from .table import support_table

sys.stdout.write(support_table() + "\n")
