"""How much memory a process takes. Imports nothing that takes some itself."""

import threading
from pathlib import Path


def anonymous_bytes() -> int:
    """Memory of this process that is no file's."""
    with Path("/proc/self/status").open() as status:
        return 1024 * next(int(line.split()[1]) for line in status if line.startswith("RssAnon"))


class Peak:
    """The most anonymous memory while the block runs, looked at every two milliseconds: `bytes`."""

    def __enter__(self) -> "Peak":
        self.bytes = anonymous_bytes()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._stopped.wait(0.002):
            self.bytes = max(self.bytes, anonymous_bytes())

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()
