"""Kill a writer of `replacing` at each of its steps, and see what the next one finds and leaves.

    python killed_writer.py FOLDER KIND

KIND is "file" or "folder". Prints at how many steps it was killed.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from pathlib import Path
from typing import Any

from colbert_fast.training.files import replacing

MARK = "mark"
STEPS = ("open", "os.", "shutil.", "fcntl.")


def write(path: Path, kind: str, text: str) -> None:
    with replacing(path, folder_with=MARK if kind == "folder" else None) as partial:
        if kind == "folder":
            partial.mkdir()
        (partial / MARK if kind == "folder" else partial).write_text(text)
        if text == "failing":
            raise RuntimeError(text)


def killed_at(step: int, path: Path, kind: str) -> bool:
    """Whether a child process that replaces `path` comes to so many steps, and is killed there."""
    child = os.fork()
    if child == 0:
        seen = 0

        def hook(event: str, _: Any) -> None:
            nonlocal seen
            seen += event.startswith(STEPS)
            if seen == step:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        write(path, kind, "new")
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, -signal.SIGKILL), code
    return code != 0


def main(home: Path, kind: str) -> None:
    path = home / "kept"
    content = path / MARK if kind == "folder" else path
    found, step = set(), 1
    write(path, kind, "old")
    while killed_at(step, path, kind):
        with contextlib.suppress(RuntimeError):
            write(path, kind, "failing")
        found.add(content.read_text())
        assert list(home.iterdir()) == [path], step
        write(path, kind, "old")
        step += 1
    assert content.read_text() == "new"
    assert found == {"old", "new"}, found
    print(step - 1)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
