"""Every way to keep entries: a backend with one of its codecs."""

from actstore import _core

CHOICES: list[tuple[str, dict[str, str]]] = [
    (backend, {"encoding" if backend == "json" else "codec": codec})
    for backend in _core.backends()
    for codec in _core.codecs(backend)
]
"""Arguments of `actstore.create`: a backend and the option that chooses its codec."""

ON_DISK = [backend for backend in _core.backends() if backend != "memory"]
