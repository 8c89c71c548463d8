"""pytest -p failures_at_once: each failure is shown when it happens, for runs that take long."""

import pytest


@pytest.hookimpl(trylast=True)
def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.failed:
        print(f"\n{report.nodeid} ({report.when}):\n{report.longreprtext}\n", flush=True)
