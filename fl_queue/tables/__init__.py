"""
Tables of a site as they are: CSV, TSV, Parquet and Arrow files -> arrays of declared columns. No torch here.

``schema`` has what a column may be, ``dialect`` the form of a text file, ``reading`` reads, ``wrong_cells`` finds the
place of a cell that cannot be used.
"""

from fl_queue.tables.reading import read
from fl_queue.tables.schema import MISSING, OTHER, Column, TableForm

__all__ = ["MISSING", "OTHER", "Column", "TableForm", "read"]
