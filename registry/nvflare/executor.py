"""NVFlare's role of a site: it passes requests on to the process that trains."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from nvflare.apis.event_type import EventType
from nvflare.apis.executor import Executor
from nvflare.apis.fl_constant import FLContextKey, ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable, make_reply
from nvflare.apis.signal import Signal

from ...errors import FedClipError
from ..common import messages
from .options import read_site_file
from .worker import Aborted, Worker


class FedClipExecutor(Executor):  # type: ignore[misc]  # no types of nvflare
    """Answers ``fedclip_introduce``, ``train`` and ``validate``.

    ``options`` are the job's for all sites; those in the site's ``local/fedclip.json``
    win.  What goes wrong is answered in one line, for the server's log.
    """

    def __init__(self, options: dict[str, Any] | None = None) -> None:
        super().__init__()
        self.options = options or {}
        self._worker: Worker | None = None

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """At the end of the job's run the process that trains ends too."""
        if event_type in (EventType.END_RUN, EventType.ABOUT_TO_END_RUN):
            worker, self._worker = self._worker, None
            if worker is not None:
                worker.end()

    def execute(
        self,
        task_name: str,
        shareable: Shareable,
        fl_ctx: FLContext,
        abort_signal: Signal,
    ) -> Shareable:
        """The answer to a task, as bytes in one field."""
        try:
            answer = self._answer(task_name, shareable, fl_ctx, abort_signal)
        except Aborted:
            return make_reply(ReturnCode.TASK_ABORTED)
        reply = make_reply(ReturnCode.OK)
        reply[messages.BYTES] = answer
        return reply

    def _answer(
        self, task: str, shareable: Shareable, fl_ctx: FLContext, abort: Signal
    ) -> bytes:
        data = shareable.get(messages.BYTES)
        if not isinstance(data, bytes):
            return messages.failure("what the server sent is not of fedclip-plugin")
        try:
            worker = self._opened(fl_ctx)
        except FedClipError as refusal:
            answer = messages.failure(str(refusal))
        else:
            answer = worker.answer(task, data, lambda: bool(abort.triggered))
            for level, line in worker.lines:
                _TELL.get(level, Executor.log_info)(self, fl_ctx, f"fedclip: {line}")
            worker.lines = []
        if error := messages.failure_in(answer, "this site"):
            self.log_error(fl_ctx, f"fedclip: error: {error}")
        return answer

    def _opened(self, fl_ctx: FLContext) -> Worker:
        if self._worker is None:
            name = fl_ctx.get_identity_name()
            workspace = fl_ctx.get_prop(FLContextKey.WORKSPACE_OBJECT)
            own = read_site_file(Path(workspace.get_site_config_dir()), name)
            self._worker = Worker(name, self.options, own)
        return self._worker


_TELL = {logging.WARNING: Executor.log_warning, logging.ERROR: Executor.log_error}
