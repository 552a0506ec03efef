"""Start processes without importing PyTorch and other large packages, by forking one process that has.

When asked for `python -m MODULE`, the server forks. The module runs as in a new process, because the server never
computes and never touches a GPU, whose driver would not survive a fork. Without a server a process starts as usual.

The command becomes this file with the server's address: an ordinary process from outside, which imports none of these
packages. It passes signals on to the fork and ends with its exit status. If it is killed, so is the fork.
(`multiprocessing`'s own fork server only serves processes of one parent.) See docs/speed.md.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import socketserver
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, NoReturn

ADDRESS = "SPIN_WARM_START"
"""Environment variable with the server's socket, for the scheduler and its steps."""
MODULES = (
    "ipykernel.kernelapp",
    "ipywidgets",
    "matplotlib_inline.backend_inline",
    "papermill",
    "reasoning_gym",
    "spin_utils.cli.main",
    "spin_utils.drawing.draw",
    "spin_utils.drawing.training_figures",
    "spin_utils.drawing.views.explore",
    "spin_utils.drawing.views.items",
    "spin_utils.drawing.views.show",
    "spin_utils.drawing.views.tokens",
    "spin_utils.evaluation.harness",
    "spin_utils.experiment.measure",
)
"""What the server imports: with what these import, nearly everything that steps and notebooks need."""
_LARGEST = 1_000_000  # bytes read at once


@contextlib.contextmanager
def server(environment: Mapping[str, str], output: IO[bytes] | None = None) -> Iterator[dict[str, str]]:
    """Serve forks until the block ends; yield the environment for processes whose commands ask the server."""
    # A server that is already there serves this block too. On other systems libraries may not survive a fork.
    if ADDRESS in environment or sys.platform != "linux":
        yield dict(environment)
        return
    from spin_utils.files.runtime import socket_folder  # not by the client, which has no packages

    # OpenBLAS starts its threads at the import, and a fork would lack them. MPLBACKEND is as a kernel sets it.
    own = {**environment, "OPENBLAS_NUM_THREADS": "1", "MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    # Python 3.12 warns of forks in a process with threads; the only one belongs to jemalloc, which restarts it.
    python = [sys.executable, "-P", "-W", "ignore::DeprecationWarning", "-m", "spin_utils.files.warm_start"]
    with socket_folder() as folder:
        address = f"{folder}/server"
        command = [*python, "serve", address]
        process = subprocess.Popen(
            command, env=own, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
        try:
            yield {**environment, ADDRESS: address}
        finally:
            process.kill()
            process.wait()


def command(python: Sequence[str]) -> list[str]:
    """The command that asks the server for a process instead of its own, which is `PYTHON -m MODULE` with arguments."""
    address = os.environ.get(ADDRESS)
    return [sys.executable, "-I", "-S", __file__, "ask", address, *python] if address else list(python)


def serve(address: str) -> None:
    """Import everything, then fork a process for each request, until the parent ends."""
    import importlib

    os.environ["JPY_PARENT_PID"] = str(os.getpid())  # ipykernel reads it at the import
    with _Server(address, _Fork) as listener:  # who asks during the imports waits
        for name in MODULES:
            importlib.import_module(name)
        listener.serve_forever()


class _Server(socketserver.ForkingMixIn, socketserver.UnixStreamServer):
    request_queue_size = 100
    parent = os.getppid()

    def service_actions(self) -> None:
        super().service_actions()
        if os.getppid() != self.parent:
            os._exit(0)


class _Fork(socketserver.BaseRequestHandler):
    """In a fork: take over a client's output, folder and environment, and run its module."""

    request: socket.socket
    server: _Server

    def handle(self) -> NoReturn:
        import atexit
        import runpy
        import traceback

        import threadpoolctl
        import torch

        self.server.socket.close()
        request, output, *_ = socket.recv_fds(self.request, _LARGEST, 2)
        while not request.endswith(b"\n"):
            request += self.request.recv(_LARGEST)
        python, folder, environment = json.loads(request)
        threading.Thread(target=self.obey, daemon=True).start()
        os.setsid()
        for target, descriptor in enumerate(output, start=1):
            os.dup2(descriptor, target)
        # Made anew, because a client's output may be a pipe even if the server's is a file.
        sys.stdout = os.fdopen(1, "w", 1 if os.isatty(1) else -1, errors=sys.stdout.errors, closefd=False)
        sys.stderr = os.fdopen(2, "w", 1, errors="backslashreplace", closefd=False)
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        threads = int(os.environ.get("OMP_NUM_THREADS", "").partition(",")[0] or 0) or torch.get_num_threads()
        torch.set_num_threads(threads)
        threadpoolctl.threadpool_limits(threads)
        _, _, module, *arguments = python
        sys.argv = [module, *arguments]
        status = 0
        try:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else int(end.code is not None)
        except BaseException:
            traceback.print_exc()
            status = 1
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        with contextlib.suppress(OSError):
            self.request.send(struct.pack("i", status))
        os._exit(status)  # a regular exit would tear down all packages, which takes longer than their import

    def obey(self) -> None:
        """Take the signals that the client passes on; if it was killed, so is this process."""
        while number := self.request.recv(1):
            os.kill(os.getpid(), number[0])
        os.kill(os.getpid(), signal.SIGKILL)


def ask(address: str, python: list[str]) -> int:
    """Ask the server for a process, wait until it ends, and return its exit status."""
    server = socket.socket(socket.AF_UNIX)
    request = json.dumps([python, os.getcwd(), dict(os.environ)]).encode()
    try:
        server.connect(address)
        socket.send_fds(server, [request + b"\n"], [1, 2])
    except OSError:  # no server
        os.execv(python[0], python)

    def pass_on(number: int, _: object) -> None:
        with contextlib.suppress(OSError):  # the fork has just ended
            server.send(bytes([number]))

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, pass_on)
    parent = os.getppid()
    server.settimeout(1)
    while os.getppid() == parent:  # else the parent is gone, and the fork ends with this process
        with contextlib.suppress(TimeoutError, ConnectionResetError):
            status = server.recv(4)
            return struct.unpack("i", status)[0] if status else 128 + signal.SIGKILL
    return 1


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["serve", address]:
            serve(address)
        case ["ask", address, *python]:
            sys.exit(ask(address, python))
