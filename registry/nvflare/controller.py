"""NVFlare's role of the server: the rounds of ``registry/common/server.py``."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from nvflare.apis.client import Client
from nvflare.apis.controller_spec import ClientTask, Task
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.impl.controller import Controller
from nvflare.apis.shareable import Shareable
from nvflare.apis.signal import Signal

from ...errors import FedClipError, whole_line
from ..common import messages
from .server import Server
from .worker import Aborted


class FedClipController(Controller):  # type: ignore[misc]  # no types of nvflare
    """Federates by the options of ``fedclip run``; ``options`` are those of the job."""

    def __init__(self, options: dict[str, Any] | None = None) -> None:
        super().__init__()
        self.options = options or {}

    def start_controller(self, fl_ctx: FLContext) -> None:
        """Nothing: all is done in ``control_flow``."""

    def stop_controller(self, fl_ctx: FLContext) -> None:
        """Nothing is left open."""

    def process_result_of_unknown_task(
        self,
        client: Client,
        task_name: str,
        client_task_id: str,
        result: Shareable,
        fl_ctx: FLContext,
    ) -> None:
        """An answer that came too late is not used; its site is asked again anyhow."""
        line = f"late answer of site {client.name} to {task_name} left out"
        self.log_warning(fl_ctx, f"fedclip: {line}")

    def control_flow(self, abort_signal: Signal, fl_ctx: FLContext) -> None:
        """All rounds of the job; one line where they cannot be run."""
        workspace = fl_ctx.get_engine().get_workspace()
        directory = Path(workspace.get_run_dir(fl_ctx.get_job_id()))
        sites = _Sites(self, abort_signal, fl_ctx)
        try:
            Server(self.options, directory, sites, sites.log).play()
        except Aborted:
            self.log_warning(fl_ctx, "fedclip: the job was aborted")
        except FedClipError as error:
            line = f"fedclip: error: {whole_line(error)}"
            self.log_error(fl_ctx, line)
            self.system_panic(line, fl_ctx)


class _Sites:
    """The sites of a job through NVFlare's tasks."""

    def __init__(self, host: Controller, abort: Signal, fl_ctx: FLContext) -> None:
        self._host, self._abort, self._context = host, abort, fl_ctx
        self._came: dict[str, bytes] = {}
        self._lock = threading.Lock()  # answers come in threads of NVFlare's

    def names(self) -> list[str]:
        engine = self._context.get_engine()
        return [client.name for client in engine.get_clients()]

    def ask(
        self,
        task: str,
        data: bytes,
        sites: Sequence[str],
        seconds: float,
        take: Callable[[str, bytes], None],
    ) -> None:
        failed: list[Exception] = []  # NVFlare would write them down and go on

        def came(client_task: ClientTask, fl_ctx: FLContext) -> None:
            answer, client_task.result = _bytes(client_task), None
            if answer is None or client_task.client.name not in sites:
                return
            with self._lock:
                try:
                    if not failed:
                        take(client_task.client.name, answer)
                except Exception as error:
                    failed.append(error)

        posted = Task(
            task, _shareable(data), timeout=int(seconds), result_received_cb=came
        )
        self._host.broadcast_and_wait(
            task=posted,
            fl_ctx=self._context,
            targets=list(sites),
            min_responses=0,
            abort_signal=self._abort,
        )
        self._check()
        if failed:
            raise failed[0]

    def post(self, task: str, data: bytes, site: str) -> None:
        def came(client_task: ClientTask, fl_ctx: FLContext) -> None:
            found = _bytes(client_task)
            if found is not None:
                with self._lock:
                    self._came[client_task.client.name] = found

        posted = Task(task, _shareable(data), result_received_cb=came)
        self._host.broadcast(posted, self._context, targets=[site], min_responses=0)

    def come(self) -> dict[str, bytes]:
        self._check()
        with self._lock:
            found, self._came = self._came, {}
        return found

    def pause(self, seconds: float) -> None:
        time.sleep(seconds)
        self._check()

    def anew(self) -> list[str]:
        return []  # NVFlare does not tell

    def refuse(self, site: str, reason: str) -> None:
        """NVFlare has no word for it: the server's log has the line."""

    def log(self, level: int, line: str) -> None:
        """A line in the server's log."""
        tell = _TELL.get(level, Controller.log_info)
        tell(self._host, self._context, line)

    def _check(self) -> None:
        # what NVFlare aborts returns as if nobody had answered
        if self._abort.triggered:
            raise Aborted


_TELL = {logging.WARNING: Controller.log_warning, logging.ERROR: Controller.log_error}


def _shareable(data: bytes) -> Shareable:
    made = Shareable()
    made[messages.BYTES] = data
    return made


def _bytes(answered: ClientTask) -> bytes | None:
    """What a site answered; None for nothing, or for what NVFlare says in its place."""
    result = answered.result
    if not isinstance(result, Shareable):
        return None
    if result.get_return_code(ReturnCode.OK) != ReturnCode.OK:
        return messages.failure(f"NVFlare: {result.get_return_code()}")
    data = result.get(messages.BYTES)
    if isinstance(data, bytes):
        return data
    return messages.failure("its answer is not of fedclip-plugin")
