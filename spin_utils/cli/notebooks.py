"""Run a notebook through papermill, strictly.

Papermill only warns about a parameter that a notebook does not have, and accepts any type. Here unknown and
mistyped parameters are refused before a kernel starts.
"""

from __future__ import annotations

import ast
import os
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spin_utils.files import paths, runtime, warm_start
from spin_utils.files.paths import KitError, WorkError
from spin_utils.settings.profiles import nearest

if TYPE_CHECKING:
    from jupyter_client import KernelManager

_PATIENCE_S = 600.0  # after Ctrl-C a kernel finishes its step and saves, up to this long; then it is stopped
_START_S = 300  # for a kernel to start on a busy machine


def run(name: str, given: Mapping[str, Any], output: Path) -> Path:
    """Execute a notebook of the kit and keep the executed copy.

    At Ctrl-C the kernel finishes its training step and saves before this ends.

    Raises:
        KitError: no such notebook, or parameters that do not fit. No kernel was started.
        WorkError: a cell raised an error, which the message gives with the executed notebook, or the kernel died.
        KeyboardInterrupt: SIGINT arrived, or SIGTERM in `runtime.sigterm_as_ctrl_c`.
    """
    path = paths.notebook(name)
    if not path.is_file():
        known = sorted(p.stem for p in path.parent.glob("[0-9]*.ipynb"))
        raise KitError(f"notebook {name!r}: unknown{nearest(name, known)}")
    _check(path, given)
    output.parent.mkdir(parents=True, exist_ok=True)
    os.environ.update(runtime.child_environment())

    from nbclient.exceptions import DeadKernelError
    from papermill import PapermillExecutionError, execute_notebook
    from traitlets.config import Config

    # Sockets in a private folder: parallel kernels must not share names, and other users must not read them.
    with runtime.socket_folder() as sockets:
        kernel = {"transport": "ipc", "ip": f"{sockets}/kernel", "shutdown_wait_time": _PATIENCE_S}
        busy = threading.Event()
        try:
            execute_notebook(
                path,
                output,
                parameters=dict(given),
                kernel_name="python3",
                progress_bar=False,
                start_timeout=_START_S,
                stdout_file=sys.stdout,
                cwd=str(path.parent),
                config=Config(KernelManager=kernel),
                kernel_manager_class=_manager(busy),
                on_cell_execute=lambda **_: busy.set(),
                on_cell_executed=lambda **_: busy.clear(),
            )
        except PapermillExecutionError as error:
            raise WorkError(f"{error.ename}: {error.evalue}\n  in {paths.relative(output)}") from None
        except DeadKernelError:
            raise WorkError(
                "the notebook's kernel died: killed, perhaps because memory ran out; finished work is kept, and the "
                f"same command resumes there\n  in {paths.relative(output)}"
            ) from None
    return output


def _check(path: Path, given: Mapping[str, Any]) -> None:
    """Raise if a parameter is not in the cell tagged `parameters`, whose defaults are literals, or of another type."""
    from papermill import inspect_notebook

    defaults = {name: ast.literal_eval(found["default"]) for name, found in inspect_notebook(str(path)).items()}
    for name, value in given.items():
        if name not in defaults:
            raise KitError(f"{path.name}: no parameter {name!r}{nearest(name, defaults)}")
        expected = type(defaults[name])
        if type(value) is not expected and not (expected is float and type(value) is int):
            raise KitError(
                f"{path.name}: parameter {name} must be {expected.__name__}, found {type(value).__name__} {value!r}"
            )


def _manager(busy: threading.Event) -> type[KernelManager]:
    """A kernel manager that asks for a warm kernel (`warm_start`), and lets a busy one finish its step and save."""
    from ipykernel.kernelspec import make_ipkernel_cmd
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager

    class Manager(AsyncKernelManager):
        # JUPYTER_PATH may hold another kernel named python3, with its own command and environment.
        kernel_spec = KernelSpec(argv=make_ipkernel_cmd(), display_name="Python 3", language="python")

        def format_kernel_cmd(self, extra_arguments: list[str] | None = None) -> list[str]:
            return warm_start.command(super().format_kernel_cmd(extra_arguments))

        async def shutdown_kernel(  # type: ignore[override]  # asynchronous, as in its parent
            self, now: bool = False, restart: bool = False
        ) -> None:
            await super().shutdown_kernel(now or not busy.is_set(), restart)

    return Manager
