"""What a run leaves for people to read: tables, texts, the one-file page.

``docs/report.md`` tells what they show.  ``records`` reads run directories,
``averages`` makes means and intervals, ``tables`` the rows of cells that ``console``,
``text`` and ``page`` set, ``wording`` how all of them write a number; ``trackers``
follow a run elsewhere.
"""

from .averages import aggregate
from .console import print_table
from .records import RunRecord, load_run, load_runs
from .text import merge
from .trackers.tensorboard import TensorBoardLog
from .write import write_html

__all__ = [
    "RunRecord",
    "TensorBoardLog",
    "aggregate",
    "load_run",
    "load_runs",
    "merge",
    "print_table",
    "write_html",
]
