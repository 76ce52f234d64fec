"""The reading process: `python -m perilune.chat.documents KIND`, a document in, JSON out. See aside.py."""

from __future__ import annotations

import contextlib
import json
import resource
import sys

from perilune.chat.documents.limits import CPU_S, MEMORY, unreadable
from perilune.errors import PeriluneError


def main(kind: str) -> None:
    data = sys.stdin.buffer.read()
    _limit()
    try:
        title, text = _read(kind, data)
        if not text:
            raise unreadable(
                "holds no text", "send what it shows as an image, or run text recognition over it"
            )
        answer = {"title": title, "text": text}
    except PeriluneError as error:
        answer = {"error": error.message, "mend": error.mend or ""}
    sys.stdout.buffer.write(json.dumps(answer, ensure_ascii=False).encode())


def _read(kind: str, data: bytes) -> tuple[str, str]:
    try:
        if kind == "pdf":
            from perilune.chat.documents.pdf import pdf_text

            return pdf_text(data)
        from perilune.chat.documents.office import office_text

        return office_text(data)
    except MemoryError as error:
        raise unreadable("takes too much memory to read", "split it and send the parts") from error


def _limit() -> None:
    """Memory counts from here: what the document itself takes is there already."""
    with contextlib.suppress(ValueError, OSError):  # a lower limit holds already
        resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S + 1))
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


if __name__ == "__main__":
    main(sys.argv[1])
