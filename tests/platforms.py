"""What not every system has, or not every build: marks for tests that need it."""

import os
import sys
from pathlib import Path

import pytest

from cyce.threads import team

HAS_THREAD_LIST = Path("/proc/self/task").is_dir()

on_linux = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="other systems limit memory otherwise"
)
with_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
with_openmp = pytest.mark.skipif(not team.HAS_OPENMP, reason="built without OpenMP: always 1 thread")
with_resource_usage = pytest.mark.skipif(os.name != "posix", reason="no resource usage on this system")
with_thread_list = pytest.mark.skipif(not HAS_THREAD_LIST, reason="no list of threads on this system")
