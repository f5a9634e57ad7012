"""Shows after the run what the crash tests measured: how many faults, with which seed."""

import crashlib


def pytest_terminal_summary(terminalreporter):
    for line in crashlib.figures:
        terminalreporter.write_line(f"  {line}")
