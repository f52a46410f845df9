"""
A site's answer to a step of an analysis: sums over its rows, within its policy, noted in its ledger.

Everything that an analysis shows of rows passes ``answer``. No Redis and no torch here.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass
from functools import cached_property
from typing import Any

import numpy as np
from blake3 import blake3

from fl_queue.analyses.base import Analysis
from fl_queue.client import differences, fits, ledger, policy, table_file
from fl_queue.client.fits import FitFolder, FitStep
from fl_queue.client.ledger import Entry, Ledger, Rows
from fl_queue.client.policy import SitePolicy
from fl_queue.client.site import WorkerSettings
from fl_queue.client.table_file import ReadTable
from fl_queue.common import data_folder, failpoints
from fl_queue.config.run_config import RunConfig
from fl_queue.errors import ConfigError
from fl_queue.protocol.arrays import Int64s
from fl_queue.protocol.trainer_messages import Request
from fl_queue.tables import TableForm
from fl_queue.tasks import fingerprint
from fl_queue.tasks.fingerprint import Fingerprint


@dataclass(frozen=True)
class SiteTable:
    """
    A site's table and the policy under which it was read.

    Args:
        analysis: The run's.
        read: The columns that it asks for.
        policy: The site's, as its file is now.
        file: The table's file; its path stays at the site.
        taken: Fingerprint of the file before it was read.
        book: The site's ledger.
    """

    analysis: Analysis
    read: ReadTable
    policy: SitePolicy
    file: str
    taken: Fingerprint
    book: Ledger

    @cached_property
    def _hashes(self) -> Rows:
        """Of the rows, as of ``ReadTable.row_hashes``. Raises DataError, LocalStorageError."""
        return self.read.row_hashes(self.book.key())

    @cached_property
    def hashes(self) -> Rows:
        """The same, ascending."""
        return np.sort(self._hashes)

    @cached_property
    def parts(self) -> tuple[Rows, ...]:
        """Hashes of the rows that are trained on, ascending, where others are held out; after the first step's words."""
        return tuple(
            np.sort(self._hashes[places]) for places in self.analysis.row_sets(self.read.table)
        )

    @cached_property
    def digest(self) -> str:
        """Of the rows that the question is about; hexadecimal."""
        return ledger.digest_of(self.hashes)


def check_allowed(site: WorkerSettings, config: RunConfig) -> Analysis:
    """
    The analysis of a run, if this worker makes it.

    Raises:
        ConfigError: It does not.
    """
    name = config.run.task
    if config.analysis is None or (site.allow and name not in site.allow):
        raise ConfigError(
            "run.task",
            f"this worker allows other tasks; to allow it, start the worker with --task-allow {name}",
            public=True,
        )
    return config.analysis


def read(site: WorkerSettings, config: RunConfig) -> SiteTable:
    """
    Read the table that a run asks about.

    Raises:
        ConfigError: This worker does not make the analysis, has no data folder, or a policy that cannot be used.
        PolicyRefusal: The table has too few rows.
        DataError: The table cannot be read.
    """
    analysis, rules = check_allowed(site, config), policy.read(site.policy)
    rules.check_asked(config.run.task, is_per_site=config.is_per_site)
    rules.check_where(analysis.where)
    folder, file = site.data_folder(config), str(config.task["file"])
    if not folder:
        raise ConfigError("data.dir", "is empty; start the worker with --data FOLDER", public=True)
    path = data_folder.inside(folder, file, "task.file")
    whole = str(path.resolve())
    taken = fingerprint.taken([whole])
    book = Ledger(site.state_dir)
    groupings = {*book.groupings(), *analysis.groupings()}
    curves = {*book.curves(), *analysis.curves()}
    beside = {name for grouping in groupings for name in grouping.columns}
    beside |= {name for curve in curves for name in curve.columns}
    delimiter, decimal = (str(config.task.get(name, "")) for name in ("delimiter", "decimal"))
    form = TableForm(delimiter, decimal)
    found = table_file.read(path, analysis.columns, rules, beside, form, analysis.where)
    rules.check_levels(analysis.columns.categories)
    return SiteTable(analysis, found, rules, whole, taken, book)


class KeptTable:
    """The table that was read last in this process, with what an analysis has computed from it."""

    def __init__(self) -> None:
        self._key: Any = None
        self._found: SiteTable | None = None

    def read(self, site: WorkerSettings, config: RunConfig) -> SiteTable:
        """
        The table of a run: the kept one, if the same question is asked of the same file under the same policy.

        Raises:
            ConfigError, PolicyRefusal, DataError: As ``read``.
        """
        if self._found is not None and self._key == self._key_of(site, config, self._found.file):
            return self._found
        self.drop()
        found = read(site, config)
        key = self._key_of(site, config, found.file)
        if key[0] == found.taken:
            self._key, self._found = key, found
        return found

    def drop(self) -> None:
        """Forget it."""
        self._key = self._found = None

    @staticmethod
    def _key_of(site: WorkerSettings, config: RunConfig, file: str) -> tuple[Any, ...]:
        rules, book = policy.read(site.policy), Ledger(site.state_dir)
        earlier = (book.groupings(), book.curves())
        return fingerprint.taken([file]), site, config.to_dict(), rules, earlier


def preview(site: WorkerSettings, config: RunConfig) -> dict[str, Any]:
    """
    The result of this site alone: what it would show, and withhold. Nothing is noted.

    Raises:
        ConfigError, PolicyRefusal, DataError: As ``read`` and ``answer``.
    """
    found = read(site, config)
    analysis, state = found.analysis, found.analysis.initial()
    while (result := analysis.result(state)) is None:
        words = analysis.local(state, found.read.table, found.policy.limits)
        state = analysis.advance(state, words)
    return result


def answer(
    site: WorkerSettings,
    request: Request,
    found: SiteTable,
    state: Int64s,
    total: Int64s | None = None,
) -> Int64s:
    """
    The words of a step, once they are noted.

    Args:
        state: Before the step.
        total: Of a fit the sum that the state was made of, and words of 0; None: it is the first, or none was sent.

    Raises:
        PolicyRefusal: They may not be shown.
        DataError: A number cannot be summed; or the ledger is damaged; or the table changed since a fit began.
        LocalStorageError: They cannot be noted.
        MessageError: The state is none of the analysis.
    """
    analysis, rules = found.analysis, found.policy
    failpoints.failpoint("rows.read")
    fit, step, number = FitFolder(site.fits, request.run, request.client), None, 0
    if analysis.is_fit:
        if total is None:
            total = np.zeros(analysis.total_size, np.int64)
        step = FitStep(analysis, request.base_version, state, total)
        number = fits.check(step, fit, found.digest, found.read.table.rows, rules)
    words = analysis.local(state, found.read.table, rules.limits)
    differences.check(
        analysis, found.read, rules.limits, found.book.groupings(), found.book.curves()
    )
    found.book.note(_entry(request, found, state, number), found.hashes, rules, found.parts)
    if step is not None:
        fit.note(step, found.digest)
    failpoints.failpoint("ledger.noted")
    return words


def _entry(request: Request, found: SiteTable, state: Int64s, fit_step: int) -> Entry:
    """An answer as the ledger notes it."""
    analysis = found.analysis
    return Entry(
        at=ledger.now(),
        run=request.name,
        run_id=request.run,
        round=request.round,
        client=request.client,
        questions=tuple(analysis.questions()),
        columns=analysis.columns.names,
        file=found.file,
        table=found.digest,
        rows=found.read.table.rows,
        numbers=analysis.layout(state).numbers,
        policy=found.policy.digest,
        groupings=tuple(map(ledger.written, analysis.groupings())),
        curves=tuple(map(astuple, analysis.curves())),
        state=blake3(state.astype("<i8").tobytes()).hexdigest() if state.any() else "",
        fit_step=fit_step,
        parts=tuple(map(ledger.digest_of, found.parts)),
    )
