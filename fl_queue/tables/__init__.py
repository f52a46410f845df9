"""
Tables of a site as they are: CSV, TSV, Parquet and Arrow files -> arrays of declared columns. No torch here.

``schema`` has what a column may be, ``dialect`` the form of a text file, ``reading`` reads, ``wrong_cells`` finds the
place of a cell that cannot be used, ``row_texts`` has cells as texts and hashes of rows.
"""

from fl_queue.tables.reading import boolean_columns, header_of, read, row_count
from fl_queue.tables.row_texts import Texts, hashes, texts
from fl_queue.tables.schema import MISSING, OTHER, Column, TableForm

__all__ = [
    "MISSING",
    "OTHER",
    "Column",
    "TableForm",
    "Texts",
    "boolean_columns",
    "hashes",
    "header_of",
    "read",
    "row_count",
    "texts",
]
