"""What every test relies on: no network, no display, and nobody's cache."""

from __future__ import annotations

import os
import tempfile

# Set before the package or a library reads them; child processes inherit them.
os.environ["MPLBACKEND"] = "Agg"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["XDG_CACHE_HOME"] = _CACHE = tempfile.mkdtemp(prefix="fedclip-tests-")
for _name in [name for name in os.environ if name.startswith("FEDCLIP_")]:
    if _name not in ("FEDCLIP_PURE_PYTHON", "FEDCLIP_ISA"):
        del os.environ[_name]

import shutil  # noqa: E402

import hypothesis  # noqa: E402
import pytest  # noqa: E402

# The same examples everywhere, and no verdict that depends on the machine's load.
hypothesis.settings.register_profile(
    "tests",
    deadline=None,
    derandomize=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("tests")


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    """A cache and a home directory of the test's own, and no hub."""
    monkeypatch.setenv("FEDCLIP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """A feature directory; the working directory has no fedclip.toml."""
    from tests.federation.toy import write_toy

    monkeypatch.chdir(tmp_path)
    return write_toy(tmp_path / "toy")


@pytest.fixture
def features(toy, tmp_path, monkeypatch):
    """The same, and a home directory of the test's own."""
    monkeypatch.setenv("HOME", str(tmp_path))
    return toy


def pytest_unconfigure(config: pytest.Config) -> None:
    shutil.rmtree(_CACHE, ignore_errors=True)
