"""Start processes without importing PyTorch and other large packages, by forking one process that has.

A short step spends most of its time on imports, its own and its notebook's: about 17 s of processor time on two slow
cores, thirty times in a smoke run. While a reproduction runs on this machine, one process imports everything once and
then waits; when asked for `python -m MODULE`, it forks. The module runs as in a new process, because the server never
computes and never touches a GPU, whose driver would not survive a fork. Without a server, or if it does not answer, a
process starts as usual.

The command becomes this file with the server's address. It requests the fork, forwards signals and ends when the fork
ends, so that it looks like an ordinary process from outside. It is fast because it imports none of these packages.
Each client has a process of its own on the server's side, which forks the module, waits for it and says its process id
and at last its exit status. Whose end of the socket closes early was killed, and the other one ends too.
(`multiprocessing`'s own fork server only serves processes of one parent.)
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, Any, NoReturn, TextIO

ADDRESS = "SPIN_WARM_START"
"""Environment variable with the server's socket, for the scheduler and its steps."""
MODULES = (
    "ipykernel.kernelapp",
    "ipywidgets",
    "matplotlib_inline.backend_inline",
    "papermill",
    "spin_utils.experiment.play",
    "spin_utils.cli.main",
    "spin_utils.drawing.views.show",
    "spin_utils.drawing.draw",
    "spin_utils.evaluation.harness",
    "spin_utils.drawing.views.explore",
    "spin_utils.evaluation.heldout",
    "spin_utils.drawing.views.items",
    "spin_utils.experiment.publish",
    "spin_utils.drawing.views.show",
    "spin_utils.drawing.views.tokens",
    "spin_utils.drawing.training_figures",
)
"""What the server imports: nearly everything that steps and notebooks need."""
_LARGEST = 1_000_000  # bytes of a request, most of which is an environment
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of prctl


@contextlib.contextmanager
def server(environment: Mapping[str, str], output: IO[bytes] | None = None) -> Iterator[dict[str, str]]:
    """Serve forks until the block ends.

    Args:
        environment: of the server; a fork gets that of its client.
        output: where the server itself writes; None: where this process does.

    Yields:
        The environment for processes whose commands ask the server.
    """
    # A server that is already there serves this block too. On other systems libraries may not survive a fork.
    if ADDRESS in environment or sys.platform != "linux":
        yield dict(environment)
        return
    from spin_utils.files.runtime import socket_folder  # not by the client, which has no packages

    # OpenBLAS starts its threads at the import, and a fork would lack them. MPLBACKEND is as a kernel sets it.
    own = {**environment, "OPENBLAS_NUM_THREADS": "1", "MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    # Python 3.12 warns of forks in a process with threads; the only one belongs to jemalloc, which restarts it.
    command = [sys.executable, "-P", "-W", "ignore::DeprecationWarning", "-m", "spin_utils.files.warm_start", "serve"]
    with socket_folder() as folder, socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(folder / "server"))
        listener.listen()  # who asks during the imports waits
        place = listener.fileno()
        process = subprocess.Popen(
            [*command, str(place)],
            env=own,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=(place,),
            start_new_session=True,
        )
        listener.close()
        try:
            yield {**environment, ADDRESS: str(folder / "server")}
        finally:
            process.kill()
            process.wait()


def command(python: Sequence[str]) -> list[str]:
    """The command that asks the server for a process, or without a server the process's own command.

    Args:
        python: the process's own command, `PYTHON -m MODULE` with arguments.
    """
    address = os.environ.get(ADDRESS)
    return [sys.executable, "-I", "-S", __file__, "ask", address, *python] if address else list(python)


def serve(place: int) -> None:
    """Import everything, then fork a process for each request, until the parent ends.

    Args:
        place: descriptor of the socket that listens.
    """
    import importlib

    ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
    os.environ["JPY_PARENT_PID"] = str(os.getpid())  # ipykernel reads it at the import
    for name in MODULES:
        importlib.import_module(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the system forgets forks that have ended
    with socket.socket(fileno=place) as listener:
        while True:
            client = listener.accept()[0]
            request, output, *_ = socket.recv_fds(client, _LARGEST, 2)
            if request and os.fork() == 0:
                listener.close()
                _wait(client, output, request)
            for descriptor in output:
                os.close(descriptor)
            client.close()


def _wait(client: socket.socket, output: Sequence[int], request: bytes) -> NoReturn:
    """In a fork: fork again for a client's module, and tell the client how it ends."""
    ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    fork = os.fork()
    if fork == 0:
        client.close()
        _become(output, **json.loads(request))

    def end_with_client() -> None:
        client.recv(1)  # it says nothing
        with contextlib.suppress(ProcessLookupError):  # both have just ended
            os.kill(fork, signal.SIGKILL)

    with contextlib.suppress(OSError):  # the client was killed
        client.send(struct.pack("i", fork))
        threading.Thread(target=end_with_client, daemon=True).start()
        status = os.waitstatus_to_exitcode(os.waitpid(fork, 0)[1])
        client.send(struct.pack("i", status if status >= 0 else 128 - status))
    os._exit(0)


def _become(output: Sequence[int], python: list[str], folder: str, environment: dict[str, str]) -> NoReturn:
    """In a fork: take over a client's output, folder and environment, and run its module."""
    import atexit
    import runpy
    import traceback

    import threadpoolctl
    import torch

    ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
    os.setsid()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for target, descriptor in zip((1, 2), output, strict=True):
        os.dup2(descriptor, target)
    sys.stdout, sys.stderr = _stream(1, sys.stdout), _stream(2, sys.stderr)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    threads = int(os.environ.get("OMP_NUM_THREADS") or 0) or os.cpu_count() or 1
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
    os._exit(status)  # a regular exit would tear down all packages, which takes longer than their import


def _stream(target: int, server: Any) -> TextIO:
    """Standard output or error of a fork, which may be a pipe even if the server's is a file."""
    stream = os.fdopen(target, "w", encoding=server.encoding, errors=server.errors, closefd=False)
    unbuffered = server.write_through  # PYTHONUNBUFFERED
    stream.reconfigure(line_buffering=not unbuffered and (target == 2 or stream.isatty()), write_through=unbuffered)
    return stream


def ask(address: str, python: list[str]) -> int:
    """Ask the server for a process, wait until it ends, and return its exit status."""
    request = json.dumps({"python": python, "folder": os.getcwd(), "environment": dict(os.environ)}).encode()
    server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _LARGEST)
    stops = {signal.SIGINT, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, stops)  # until they can be forwarded
    with contextlib.suppress(OSError):  # too large, or the server is gone
        server.connect(address)
        socket.send_fds(server, [request], [1, 2])
    fork = _said(server)
    for number in stops if fork else ():
        signal.signal(number, lambda given, _: os.kill(fork or 0, given))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, stops)
    if fork is None:  # no server
        os.execv(python[0], python)
    parent = os.getppid()
    server.settimeout(1)
    while os.getppid() == parent:  # else the parent is gone, and the fork notices that this process ends
        with contextlib.suppress(TimeoutError):
            status = _said(server)
            return 128 + signal.SIGKILL if status is None else status
    return 1


def _said(server: socket.socket) -> int | None:
    """A number from the fork; None if it or the server was killed."""
    try:
        said = server.recv(4)
    except TimeoutError:
        raise
    except OSError:
        return None
    return struct.unpack("i", said)[0] if said else None


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["serve", place]:
            serve(int(place))
        case ["ask", address, *python]:
            sys.exit(ask(address, python))
