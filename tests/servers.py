"""Servers of their own for tests, on ports that nobody listens on."""

from __future__ import annotations

import logging
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
import requests

from cluster.rehearsal import free_port


class MLflowServer:
    """A real `mlflow server`, on a SQLite file unless told otherwise, which may be stopped and started.

    With a `password` it asks for it, of user admin.
    """

    def __init__(self, directory: Path, *, database: str = "", artifacts: str = "", password: str = "") -> None:
        self.directory, self.uri = directory, f"http://127.0.0.1:{free_port()}"
        port = self.uri.rpartition(":")[2]
        self._line = [sys.executable, "-m", "mlflow", "server", "--host=127.0.0.1", f"--port={port}", "--workers=1"]
        self._line.append(f"--artifacts-destination={artifacts or directory / 'served'}")
        self._settings = {
            "MLFLOW_BACKEND_STORE_URI": database or f"sqlite:///{directory}/server.db",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # eight processes nobody asks for
        }
        if password:
            users = directory / "users.ini"
            users.write_text(
                f"[mlflow]\ndefault_permission = READ\ndatabase_uri = sqlite:///{directory}/users.db\n"
                f"admin_username = admin\nadmin_password = {password}\n"
                "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n",
                encoding="utf-8",
            )
            self._line.append("--app-name=basic-auth")
            self._settings |= {"MLFLOW_AUTH_CONFIG_PATH": str(users), "MLFLOW_FLASK_SERVER_SECRET_KEY": "of tests"}
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it answers."""
        self._process = subprocess.Popen(
            self._line,
            env={**os.environ, **self._settings},
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


def s3_settings(url: str) -> dict[str, str]:
    """What tells clients of a local S3 server, as a user gives it in the environment."""
    return {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_ENDPOINT_URL": url,
    }


class FaultyS3:
    """A local S3 server (moto's) that fails by request, where `shares` says so, and altogether, for a while.

    Faults by name: "500", "503"; "lost": it does what it was asked and answers 500; "cut": half of the answer; "slow":
    the answer after `slow_s` seconds. Which request is hit is drawn from a seed.
    """

    def __init__(self, seed: int = 0) -> None:
        from moto.server import DomainDispatcherApplication, create_backend_app  # half a second, for few tests
        from werkzeug.serving import make_server

        logging.getLogger("werkzeug").setLevel(logging.ERROR)  # which says every request
        self.shares: Mapping[str, float] = {}
        self.refused = ""  # 500 to whatever holds this in its path
        self.slow_s, self.injected = 4.0, Counter[str]()
        self._random, self._lock, self._down_until = random.Random(seed), threading.Lock(), 0.0
        self._answer: Callable[..., Iterable[bytes]] = DomainDispatcherApplication(create_backend_app)
        self._server = make_server("127.0.0.1", 0, self._call, threaded=True)
        self.url = f"http://127.0.0.1:{self._server.port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        requests.post(f"{self.url}/moto-api/reset", timeout=10)  # moto keeps what it stores for the whole process

    def go_down(self, seconds: float) -> None:
        """Answer 500 to everything, for so long from now on."""
        self._down_until = time.monotonic() + seconds

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _fault(self, path: str) -> str:
        with self._lock:
            is_down = time.monotonic() < self._down_until or (self.refused and self.refused in path)
            weights = [*self.shares.values(), 1 - sum(self.shares.values())]
            fault = "500" if is_down else self._random.choices([*self.shares, ""], weights)[0]
            self.injected[fault] += 1
        return fault

    def _call(self, request: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        fault = self._fault(request["PATH_INFO"] + request["QUERY_STRING"])
        if fault == "slow":
            time.sleep(self.slow_s)
        if fault == "lost":
            b"".join(self._answer(request, lambda *_: None))
        if fault in ("500", "503", "lost"):
            request["wsgi.input"].read(int(request.get("CONTENT_LENGTH") or 0) if fault != "lost" else 0)
            start("503 Slow Down" if fault == "503" else "500 Internal Server Error", [])
            return [b""]
        answer = b"".join(self._answer(request, start))
        return [answer[: len(answer) // 2] if fault == "cut" else answer]
