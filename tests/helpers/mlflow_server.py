"""``python -m tests.helpers.mlflow_server FOLDER PORT [ADDRESS]``: MLflow's own server, over SQLite."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]


class MlflowServer:
    """A server that can be killed and started again; what it has is in the folder."""

    def __init__(self, folder: Path, port: int) -> None:
        folder.mkdir(exist_ok=True)
        self.url = f"http://127.0.0.1:{port}"
        self._words = [str(folder), str(port)]
        self._log = folder / "log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Until it answers."""
        with self._log.open("ab") as log:
            words = [sys.executable, "-m", __name__, *self._words]
            self._process = subprocess.Popen(words, cwd=REPOSITORY, stdout=log, stderr=log)
        deadline = time.monotonic() + 120
        while not self._answers():
            assert self._process.poll() is None and time.monotonic() < deadline, self._log.read_text()
            time.sleep(0.1)

    def kill(self) -> None:
        """As a power cut would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(self.url + "/version", timeout=10):
                return True
        except (OSError, urllib.error.URLError):
            return False


def serve(folder: Path, port: int, address: str = "127.0.0.1") -> None:
    """Until killed. mlflow-skinny has the server; Flask and SQLAlchemy are there for other tests."""
    os.environ["_MLFLOW_SERVER_FILE_STORE"] = f"sqlite:///{folder}/mlflow.db"
    os.environ["_MLFLOW_SERVER_ARTIFACT_ROOT"] = str(folder / "artifacts")
    from mlflow.server import app
    from mlflow.server.handlers import _get_tracking_store

    _get_tracking_store()  # makes the database, which takes seconds: no client has to wait for it
    app.run(address, port, threaded=True)


if __name__ == "__main__":
    serve(Path(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
