"""What every test run keeps: a printed seed, no unlisted skip in CI, no network, no process left behind.

The seed is fixed (0) so that one commit gives one answer; `make nightly` draws a fresh one, and
`--hypothesis-seed N` chooses. Skips are listed in tests/allowed-skips.txt with a reason; with CI=true any
other skip fails the run. Knows no room.
"""

from __future__ import annotations

import ipaddress
import os
import secrets
import socket
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from hypothesis import settings

ALLOWED_SKIPS = Path(__file__).with_name("allowed-skips.txt")
PROFILE = os.environ.get("TENSURE_TEST_PROFILE", "ci" if os.environ.get("CI") else "dev")

# Before any OpenMP runtime is loaded: threads that wait sleep. Spinning, a few workers on two cores cost
# thrice the time.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

settings.register_profile("dev", deadline=None, derandomize=False, print_blob=True)
settings.register_profile("ci", deadline=None, derandomize=False, print_blob=True, database=None)
settings.register_profile("nightly", deadline=None, derandomize=False, print_blob=True, max_examples=1000)
settings.load_profile(PROFILE)


class Ledger:
    """Skips and left-over processes, gathered from this process or from all of xdist's workers."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.skips: dict[str, str] = {}
        self.left: list[str] = []

    def note_skip(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        if report.skipped and not hasattr(report, "wasxfail"):
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
            self.skips[report.nodeid] = reason

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.note_skip(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self.note_skip(report)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: object) -> None:
        output: dict[str, object] = getattr(node, "workeroutput", {})
        self.skips |= output.get("tensure_skips", {})
        self.left += output.get("tensure_left", [])

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        is_controller = bool(getattr(self.config.option, "numprocesses", None)) and not is_worker(self.config)
        if not is_controller:
            self.left += left_over_processes()
        if is_worker(self.config):
            self.config.workeroutput["tensure_skips"] = self.skips
            self.config.workeroutput["tensure_left"] = self.left
        elif (self.left or self.unlisted()) and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        for nodeid, reason in self.unlisted().items():
            terminalreporter.write_line(
                f"FAILED {nodeid}: skipped ({reason}) and not in {ALLOWED_SKIPS.name}", red=True
            )
        for line in self.left:
            terminalreporter.write_line(f"FAILED a test left a process behind: {line}", red=True)

    def unlisted(self) -> dict[str, str]:
        if not os.environ.get("CI"):
            return {}
        patterns = allowed_skips(ALLOWED_SKIPS.read_text())
        return {
            nodeid: why for nodeid, why in self.skips.items() if not any(fits(nodeid, p) for p in patterns)
        }


def allowed_skips(text: str) -> list[str]:
    """The patterns of the list; each line is `nodeid | reason`, and a line without a reason is refused."""
    patterns = []
    for line in text.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        pattern, _, reason = line.partition(" | ")
        if not reason.strip():
            raise pytest.UsageError(f"{ALLOWED_SKIPS.name}: {line!r} gives no reason")
        patterns.append(pattern.strip())
    return patterns


def fits(nodeid: str, pattern: str) -> bool:
    """Whether a pattern names this test: exactly, or up to a closing `*`."""
    return nodeid.startswith(pattern[:-1]) if pattern.endswith("*") else nodeid == pattern


def left_over_processes() -> list[str]:
    """Command lines of this process's living children, multiprocessing's own helpers apart."""
    found = []
    for child in psutil.Process().children(recursive=True):
        try:
            words = child.cmdline()
            living = child.is_running() and child.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            continue
        line = " ".join(words)[:200]
        if living and not any(
            helper in line for helper in ("multiprocessing.resource_tracker", "multiprocessing.forkserver")
        ):
            found.append(f"{child.pid}: {line}")
    return found


def is_worker(config: pytest.Config) -> bool:
    """Whether this process is one of xdist's workers."""
    return hasattr(config, "workerinput")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    if config.option.hypothesis_seed is None:  # workers inherit the controller's
        config.option.hypothesis_seed = str(secrets.randbelow(2**32) if PROFILE == "nightly" else 0)
    config.pluginmanager.register(Ledger(config), "tensure-ledger")


def pytest_report_header(config: pytest.Config) -> str:
    return f"hypothesis: profile {PROFILE}, --hypothesis-seed={config.option.hypothesis_seed}"


@pytest.fixture(autouse=True, scope="session")
def no_network() -> Iterator[None]:
    """Refuse every connection that leaves this machine."""
    real_connect, real_connect_ex = socket.socket.connect, socket.socket.connect_ex

    def check(self: socket.socket, address: object) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6) and isinstance(address, tuple):
            host = str(address[0])
            if host != "localhost" and not (is_address(host) and ipaddress.ip_address(host).is_loopback):
                raise RuntimeError(f"a test tried to reach {host}: tests never use the network")

    def connect(self: socket.socket, address: object) -> None:
        check(self, address)
        return real_connect(self, address)  # type: ignore[arg-type]

    def connect_ex(self: socket.socket, address: object) -> int:
        check(self, address)
        return real_connect_ex(self, address)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", connect)
        patch.setattr(socket.socket, "connect_ex", connect_ex)
        yield


def is_address(host: str) -> bool:
    """Whether a host is written as an IP address."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
