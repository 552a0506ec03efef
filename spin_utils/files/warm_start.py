"""Start processes without importing PyTorch and other large packages, by forking one process that has.

A short step spends most of its time on imports, its own and its notebook's: about 17 s of processor time on two slow
cores, thirty times in a smoke run. While a reproduction runs on this machine, one process imports everything once and
then waits; when asked for `python -m MODULE`, it forks. The module runs as in a new process, because the server never
computes and never touches a GPU, whose driver would not survive a fork. Without a server, or if it does not answer, a
process starts as usual.

The command becomes this file with the server's address. It requests the fork, forwards signals and ends when the fork
ends, so that it looks like an ordinary process from outside. It is fast because it imports none of these packages.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, Any, NoReturn, TextIO, cast

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
_FORKED = b"forked"  # the answer to a request; what comes next is the exit status
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
    # A server that is already there serves this block too. Only Linux has pidfd_open; elsewhere libraries may not
    # survive a fork.
    if ADDRESS in environment or not hasattr(os, "pidfd_open"):
        yield dict(environment)
        return
    from spin_utils.files.runtime import socket_folder  # not by the client, which has no packages

    with socket_folder() as folder:
        address = str(folder / "server")
        # OpenBLAS starts its threads at the import, and a fork would lack them. MPLBACKEND is as a kernel sets it.
        own = {**environment, "OPENBLAS_NUM_THREADS": "1", "MPLBACKEND": "module://matplotlib_inline.backend_inline"}
        # Python 3.12 warns of forks in a process with threads; the only one belongs to jemalloc, which restarts it.
        started = [
            sys.executable,
            "-P",
            "-W",
            "ignore::DeprecationWarning",
            "-m",
            "spin_utils.files.warm_start",
            "serve",
        ]
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:  # who asks during the imports waits
            listener.bind(address)
            listener.listen()
            place = listener.fileno()
            # Its standard input ends with this process, however that ends.
            process = subprocess.Popen(
                [*started, str(place)],
                env=own,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                pass_fds=(place,),
                start_new_session=True,
            )
        try:
            yield {**environment, ADDRESS: address}
        finally:
            process.kill()
            process.communicate()


def command(python: Sequence[str]) -> list[str]:
    """The command that asks the server for a process, or without a server the process's own command.

    Args:
        python: the process's own command, `PYTHON -m MODULE` with arguments.
    """
    address = os.environ.get(ADDRESS)
    return [sys.executable, "-I", "-S", __file__, "ask", address, *python] if address else list(python)


def serve(place: int) -> None:
    """Import everything, then fork a process for each request, until standard input ends.

    Args:
        place: descriptor of the socket that listens.
    """
    import importlib

    os.environ["JPY_PARENT_PID"] = str(os.getpid())  # ipykernel reads it at the import
    for name in MODULES:
        importlib.import_module(name)
    with socket.socket(fileno=place) as listener, selectors.DefaultSelector() as events:
        events.register(listener, selectors.EVENT_READ)
        events.register(0, selectors.EVENT_READ)
        forks: dict[int, tuple[int, socket.socket]] = {}  # by descriptor of the process: its number and its client
        while True:
            ready = {key.fd for key, _ in events.select()}
            if 0 in ready:
                return
            for process, (pid, client) in list(forks.items()):
                if client.fileno() in ready:  # the number of a signal; nothing if the client was killed
                    given = b""
                    with contextlib.suppress(ConnectionResetError):  # killed before it read the answer
                        given = client.recv(1)
                    os.kill(pid, (given or bytes([signal.SIGKILL]))[0])
                if process in ready:
                    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                    with contextlib.suppress(OSError):
                        client.send(bytes([status if status >= 0 else 128 - status]))
                    for channel in (client, process):
                        events.unregister(channel)
                    client.close()
                    os.close(process)
                    del forks[process]
            if listener.fileno() in ready:
                client = listener.accept()[0]
                request, output, *_ = socket.recv_fds(client, _LARGEST, 2)
                pid = os.fork()
                if pid == 0:
                    events.close()
                    for other in (listener, client, *(other for _, other in forks.values())):
                        other.close()
                    for process in forks:
                        os.close(process)
                    _become(output, **json.loads(request))
                for descriptor in output:
                    os.close(descriptor)
                with contextlib.suppress(OSError):
                    client.send(_FORKED)
                process = os.pidfd_open(pid)
                forks[process] = pid, client
                for channel in (client, process):
                    events.register(channel, selectors.EVENT_READ)


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


def _stream(descriptor: int, server: TextIO) -> TextIO:
    """Standard output or error of a fork, which may be a pipe even if the server's is a file."""
    raw = io.FileIO(descriptor, "w", closefd=False)
    unbuffered = isinstance(server.buffer, io.RawIOBase)  # PYTHONUNBUFFERED
    return io.TextIOWrapper(
        cast(Any, raw) if unbuffered else io.BufferedWriter(raw),
        encoding=server.encoding,
        errors=server.errors,
        line_buffering=not unbuffered and (descriptor == 2 or raw.isatty()),
        write_through=unbuffered,
    )


def ask(address: str, python: list[str]) -> int:
    """Ask the server for a process, wait until it ends, and return its exit status."""
    request = json.dumps({"python": python, "folder": os.getcwd(), "environment": dict(os.environ)}).encode()
    client = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _LARGEST)
    try:
        if len(request) > _LARGEST:
            raise OSError("too large for one message")
        client.connect(address)
        socket.send_fds(client, [request], [1, 2])
    except OSError:  # also: the server is gone
        os.execv(python[0], python)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda given, _: client.send(bytes([given])))
    parent, forked = os.getppid(), False
    client.settimeout(1)
    while os.getppid() == parent:
        try:
            said = client.recv(len(_FORKED))
        except TimeoutError:
            continue
        except ConnectionResetError:
            said = b""
        if not said and not forked:  # the server ended in its imports
            os.execv(python[0], python)
        if said != _FORKED:
            return (said or b"\1")[0]
        forked = True
    return 1  # the parent is gone, and the server notices that this process ends


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["serve", place]:
            serve(int(place))
        case ["ask", address, *python]:
            sys.exit(ask(address, python))
