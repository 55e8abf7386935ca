"""What not every system has, or not every build: levels, and marks for tests that need something."""

import os
import sys
from pathlib import Path

import pytest

from cyce.kernels import dispatch
from cyce.threads import team

LEVELS = (dispatch.level,) if os.environ.get("CYCE_LEVEL") else dispatch.usable_levels()

HAS_THREAD_LIST = Path("/proc/self/task").is_dir()

on_linux = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="other systems limit memory otherwise"
)
with_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
with_openmp = pytest.mark.skipif(not team.HAS_OPENMP, reason="built without OpenMP: always 1 thread")
with_resource_usage = pytest.mark.skipif(os.name != "posix", reason="no resource usage on this system")
with_thread_list = pytest.mark.skipif(not HAS_THREAD_LIST, reason="no list of threads on this system")
