"""What the kernel knows of this process, under the names that Prometheus clients of all languages use.

prometheus_client's own collector lists ``/proc/self/fd``, which takes 15 ms with 15,000 streams.
"""

import os
import resource
import time
from collections.abc import Callable, Mapping
from pathlib import Path

_FD_FOLDER = Path("/proc/self/fd")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def resident_bytes() -> float:
    """Return the memory that is in RAM, shared libraries included."""
    return int(Path("/proc/self/statm").read_bytes().split()[1]) * _PAGE_BYTES


def open_descriptors() -> float:
    """Return how many descriptors are open."""
    # Linux has counted them since 6.2, and says 0 before (proc(5)): then they are listed, 1 us for each.
    return _FD_FOLDER.stat().st_size or sum(1 for _ in _FD_FOLDER.iterdir())


def descriptor_limit() -> float:
    """Return how many descriptors may be open."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 2**31 if soft == resource.RLIM_INFINITY else soft  # the kernel numbers no more


def process_start_seconds() -> float:
    """Return when this process began (unix seconds)."""
    # Field 22 of stat(5), in ticks after the boot; the second field may hold anything, so count behind it.
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    booted = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    return booted + ticks / os.sysconf("SC_CLK_TCK")


_STARTED_AT_SECONDS = (
    process_start_seconds()
)  # asked for once: a step of the clock must not look like a restart

PROCESS_GAUGE_READERS: Mapping[str, Callable[[], float]] = {
    "process_cpu_seconds_total": time.process_time,
    "process_resident_memory_bytes": resident_bytes,
    "process_open_fds": open_descriptors,
    "process_max_fds": descriptor_limit,
    "process_start_time_seconds": lambda: _STARTED_AT_SECONDS,
    "sse_gateway_descriptor_usage_ratio": lambda: open_descriptors() / descriptor_limit(),
}
"""By the name of the metric."""
