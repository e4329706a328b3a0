"""A real MLflow server, on a folder: what `mlflow server` starts, as one process.

The server is in `mlflow-skinny`; Flask is what it needs beside. It keeps runs in files, so that
neither a database nor pandas is needed.
"""

from __future__ import annotations

import sys

from tests.services import Service


class MlflowServer(Service):
    """MLflow with runs and artifacts as files below `folder`."""

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def command(self, port: int) -> list[str]:
        settings = {
            "MLFLOW_ALLOW_FILE_STORE": "true",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "_MLFLOW_SERVER_FILE_STORE": str(self.folder / "runs"),
            "_MLFLOW_SERVER_SERVE_ARTIFACTS": "true",
            "_MLFLOW_SERVER_ARTIFACT_ROOT": "mlflow-artifacts:/",
            "_MLFLOW_SERVER_ARTIFACT_DESTINATION": str(self.folder / "artifacts"),
        }
        uvicorn = ["-m", "uvicorn", "mlflow.server.fastapi_app:app", "--host", "127.0.0.1"]
        variables = [f"{name}={value}" for name, value in settings.items()]
        return ["env", *variables, sys.executable, *uvicorn, "--port", str(port)]
