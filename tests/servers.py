"""Servers of their own for tests, on ports that nobody listens on."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import requests


def free_port() -> int:
    """A port nobody listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class MLflowServer:
    """A real `mlflow server` on a SQLite file, which may be stopped and started."""

    def __init__(self, directory: Path) -> None:
        self.uri = f"http://127.0.0.1:{free_port()}"
        port = self.uri.rpartition(":")[2]
        places = [f"--backend-store-uri=sqlite:///{directory}/server.db", f"--artifacts-destination={directory}/served"]
        self._line = [sys.executable, "-m", "mlflow", "server", *places, "--host=127.0.0.1", f"--port={port}"]
        self._line.append("--workers=1")
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it answers."""
        environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # eight processes nobody asks for
        self._process = subprocess.Popen(
            self._line,
            env=environment,
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            try:
                if requests.get(f"{self.uri}/health", timeout=5).ok:
                    return
            except requests.RequestException:
                time.sleep(0.2)
        pytest.fail("mlflow server did not start")

    def stop(self) -> None:
        """Kill it with everything it started."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None
