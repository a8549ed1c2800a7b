"""One library in a process of its own: JSON requests on stdin, JSON replies on stdout.

run.py starts it with the Python of the library's environment, and ends it by closing its stdin.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from adapters import LIBRARIES, Library
from inputs import Inputs, read_inputs


def cpu_seconds() -> float:
    """User and system time of this process and of its children that have ended."""
    return sum(os.times()[:4])


class Worker:
    """Answers requests: each public method is one, its arguments are the request's fields."""

    def __init__(self, library: Library, inputs: Inputs) -> None:
        self._library, self._inputs = library, inputs

    def imports(self) -> dict[str, Any]:
        self._library.imports()
        versions = {name: metadata.version(name) for name in self._library.packages}
        return {"versions": versions}

    def build(self) -> dict[str, Any]:
        wall, cpu = time.perf_counter(), cpu_seconds()
        self._library.build(self._inputs.embeddings, self._inputs.doclens)
        return {"seconds": time.perf_counter() - wall, "cpu_seconds": cpu_seconds() - cpu}

    def open(self) -> dict[str, Any]:
        """Open the index and answer one query: some libraries load or compile only then."""
        start = time.perf_counter()
        self._library.open()
        default = next(iter(self._library.points.values()))
        self._library.search(self._inputs.queries[0], **default)
        return {"seconds": time.perf_counter() - start}

    def search(self, point: dict[str, Any], first: int, count: int, warm: int) -> dict[str, Any]:
        """Search `count` queries one by one, after `warm` that are not timed."""
        queries = self._inputs.queries[first : first + count]
        for query in queries[-warm:]:
            self._library.search(query, **point)
        seconds, found = [], []
        for query in queries:
            start = time.perf_counter()
            ids = self._library.search(query, **point)
            seconds.append(time.perf_counter() - start)
            found.append(ids)
        return {"seconds": seconds, "found": found}

    def search_batch(self, point: dict[str, Any], count: int) -> dict[str, Any]:
        queries = self._inputs.queries[:count]
        start = time.perf_counter()
        found = self._library.search_batch(queries, **point)
        return {"seconds": time.perf_counter() - start, "found": found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("library", choices=LIBRARIES)
    parser.add_argument("--inputs", type=Path, required=True)
    parser.add_argument("--index", type=Path, required=True)
    parser.add_argument("--nbits", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--core", type=int, help="run on this core alone")
    options = parser.parse_args()
    if options.core is not None:
        os.sched_setaffinity(0, {options.core})
    # Replies have the pipe to themselves: what libraries print goes to stderr.
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    library = LIBRARIES[options.library](options.index, options.nbits, options.threads)
    worker = Worker(library, read_inputs(options.inputs))
    for line in sys.stdin:
        request = json.loads(line)
        reply = getattr(worker, request.pop("do"))(**request)
        replies.write(json.dumps(reply) + "\n")


if __name__ == "__main__":
    main()
