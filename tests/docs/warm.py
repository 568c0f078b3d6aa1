"""`secateur` for tests of many commands: a process that has imported everything forks for each command.

`python -m tests.docs.warm SOCKET` serves; CLIENT is the script that a shell runs instead of `secateur`.
"""

import atexit
import json
import os
import signal
import socket
import sys
import traceback
from typing import Any, NoReturn

CLIENT = """#!{python} -IS
import json, os, signal, socket, sys
connection = socket.socket(socket.AF_UNIX)
connection.connect({path!r})
asked = {{"words": sys.argv[1:], "folder": os.getcwd(), "environment": dict(os.environ)}}
socket.send_fds(connection, [json.dumps(asked).encode()], [0, 1, 2])
process = int(connection.recv(64))
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, lambda number, _: os.kill(process, number))
sys.exit(int(connection.recv(64) or b"1"))
"""
MOST = 1 << 20  # bytes of a command and its environment


def main(path: str) -> NoReturn:
    """Serve for ever: each connection is one command."""
    warm()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(16)
        while True:
            connection, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                answer(connection)
            connection.close()


def warm() -> None:
    """Import what commands import late."""
    import server.artifact.export.gguf_file
    import server.commands.artifact.registry
    import server.commands.serve  # noqa: F401


def answer(connection: socket.socket) -> NoReturn:
    """Run one command in a child of its own, and tell its process number and then its exit code."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    content, files, _, _ = socket.recv_fds(connection, MOST, 3)
    child = os.fork()
    if child == 0:
        connection.close()
        run(json.loads(content), files)
    connection.sendall(str(child).encode())
    _, status = os.waitpid(child, 0)
    connection.sendall(f"{os.waitstatus_to_exitcode(status) & 255}".encode())
    os._exit(0)


def run(asked: dict[str, Any], files: list[int]) -> NoReturn:
    """Be `secateur` with these words, in this folder and with these files."""
    from server.commands.__main__ import main as secateur

    for number, file in enumerate(files):
        os.dup2(file, number)
    os.chdir(asked["folder"])
    os.environ.clear()
    os.environ.update(asked["environment"])
    code = 1
    try:
        code = secateur(asked["words"])
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except Exception:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        atexit._run_exitfuncs()
        os._exit(code)


if __name__ == "__main__":
    main(sys.argv[1])
