"""How much memory this process may use: the machine's, or less where a container or a limit says so."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from edgeprune.errors import UserError

DECODED_LIMIT_FRACTION = 0.5  # of the memory that decoded images may fill
CONTROL_GROUPS = Path("/sys/fs/cgroup")
OWN_GROUPS = Path("/proc/self/cgroup")


def memory_bytes() -> int:
    """Memory that this process may use."""
    import psutil

    found = [psutil.virtual_memory().total, *control_group_limits(OWN_GROUPS, CONTROL_GROUPS)]
    try:
        import resource
    except ImportError:  # Windows has no such limits.
        return min(found)
    found += [limit for limit in (resource.getrlimit(resource.RLIMIT_AS)[0],) if limit > 0]
    return min(found)


def control_group_limits(own: Path, mounted: Path) -> list[int]:
    """Bytes that Linux's control groups allow, those above a process's own among them.

    Args:
        own: what /proc/self/cgroup says, a line "number:controllers:path" a hierarchy.
        mounted: where they are mounted, version 2 itself, a folder for each controller of version 1.
    """
    lines = own.read_text().splitlines() if own.is_file() else []
    files = (file for line in lines for file in _limit_files(line, mounted))
    texts = (file.read_text().strip() for file in files if file.is_file())
    return [int(text) for text in texts if text.isdigit()]  # Version 2 has the word "max" where none is set.


def _limit_files(line: str, mounted: Path) -> Iterator[Path]:
    _, controllers, path = line.split(":", 2)
    if "memory" in controllers.split(","):
        root, name = mounted / "memory", "memory.limit_in_bytes"
    elif not controllers:
        root, name = mounted, "memory.max"
    else:
        return
    group = root / path.lstrip("/")
    # In a container the path is the host's, and what is mounted at the root is the container's own group.
    yield from (folder / name for folder in (group, *group.parents) if folder.is_relative_to(root))


def refuse_too_many(needed_bytes: int, what: str) -> None:
    """Refuse images that would take more memory than they may.

    Raises:
        UserError: that they do; `what` they are comes before "take".
    """
    available_bytes = memory_bytes()
    if needed_bytes > available_bytes * DECODED_LIMIT_FRACTION:
        raise UserError(
            f"{what} take {needed_bytes / 1e9:.1f} GB decoded, "
            f"this machine has {available_bytes / 1e9:.1f} GB of memory: "
            "use fewer or smaller images (--image-size-px)"
        )
