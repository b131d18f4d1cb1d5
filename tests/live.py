"""A whole hub as real processes, started the way a user starts it."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

DEMO = "quanthub/tiny-novels-7m"
ADMIN_PASSWORD = "test-password"


@dataclass
class LiveHub:
    """`quanthub up` on its own data folder and port."""

    data: Path
    port: int
    extra: dict[str, str] = field(default_factory=dict)
    admin_password: str = ADMIN_PASSWORD
    process: subprocess.Popen | None = None
    tokens: dict[str, str] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("QUANTHUB_", "DJANGO_", "REDIS_", "DATABASE_", "PORT"))
        }
        own = {
            "QUANTHUB_DATA": str(self.data),
            "QUANTHUB_ADMIN_PASSWORD": self.admin_password,
            "QUANTHUB_EVAL_CHUNKS": "2",
            "QUANTHUB_LEASE_SECONDS": "5",
            "PORT": str(self.port),
        }
        return {**kept, **own, **self.extra}

    @property
    def output(self) -> Path:
        return self.data.parent / f"{self.data.name}.out"

    def start(self) -> None:
        with self.output.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "hub.cli", "up"],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        self.wait_for("Quanthub is ready at")

    def wait_for(self, line: str, seconds: float = 150) -> None:
        deadline = time.monotonic() + seconds
        while line not in self.output.read_text():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"the hub did not say {line!r}:\n{self.said()}")
            time.sleep(0.1)

    def said(self) -> str:
        logs = sorted(self.data.glob("logs/**/*.log"))
        return "\n".join(f"--- {path.name}\n{path.read_text()[-4000:]}" for path in [self.output, *logs])

    def stop(self, how: int = signal.SIGINT, seconds: float = 20) -> int:
        self.process.send_signal(how)
        return self.process.wait(seconds)

    def quanthub(self, *arguments: str, **options) -> subprocess.CompletedProcess:
        """Run the command line on this hub's data."""
        return subprocess.run(
            [sys.executable, "-m", "hub.cli", *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=options.pop("timeout", 120),
            check=False,
            **options,
        )

    def token(self, scope: str = "write") -> str:
        if scope not in self.tokens:
            made = self.quanthub("token", "create", "--user", "admin", "--name", "tests", "--scope", scope)
            assert made.returncode == 0, made.stderr
            self.tokens[scope] = made.stdout.strip()
        return self.tokens[scope]

    def api(self, path: str, body: dict | None = None) -> dict:
        """Call the API, as the admin when there is a body to send."""
        request = urllib.request.Request(f"{self.url}/api/v1/{path}")
        if body is not None:
            request.data = json.dumps(body).encode()
            request.add_header("Content-Type", "application/json")
            request.add_header("Authorization", f"Bearer {self.token()}")
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)

    def request(self, *levels: str, model: str = DEMO) -> str:
        """Ask for quants; return the request's id."""
        return self.api("requests", {"model": model, "levels": list(levels)})["id"]

    def wait_request(self, request_id: str, *states: str, seconds: float = 180) -> dict:
        """Return the request once it is in one of these states."""
        deadline = time.monotonic() + seconds
        while True:
            document = self.api(f"requests/{request_id}")
            if document["state"] in states:
                return document
            if time.monotonic() > deadline:
                raise AssertionError(f"still {document['state']}: {document['jobs']}\n{self.said()}")
            time.sleep(0.1)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def new_hub(folder: Path, **extra: str) -> LiveHub:
    """Return a hub that is not started yet."""
    return LiveHub(data=folder / "data", port=free_port(), extra=extra)
