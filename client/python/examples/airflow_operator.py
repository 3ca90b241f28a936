"""Airflow (2.x and 3.x): an operator that compresses a model, and a DAG with it.

The worker needs `pip install ovpress-client`, and the files on a path that it
sees. Put the token, if the server wants one, into a file and name it."""

from __future__ import annotations

import uuid
from typing import Any, Sequence

import ovpress_client

try:
    from airflow.sdk import BaseOperator
except ImportError:  # Airflow 2
    from airflow.models import BaseOperator


class OvpressCompressOperator(BaseOperator):
    """Compresses `model` into `output`; returns the numbers as XCom.

    `options` are the keywords of ovpress_client.Client.compress. A retried task
    goes on with the upload and the job of the try before; a task that is
    cleared or marked failed while it runs cancels the job."""

    template_fields: Sequence[str] = ("model", "output", "server", "options")

    def __init__(
        self,
        *,
        model: str,
        output: str,
        server: str,
        options: dict[str, Any] | None = None,
        connection: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.model = model
        self.output = output
        self.server = server
        self.options = options or {}
        self.connection = connection or {}
        self._job = ""

    def execute(self, context: Any) -> dict[str, Any]:
        instance = context["ti"]
        # Run ids hold characters that a request_id may not.
        request_id = str(uuid.uuid5(uuid.NAMESPACE_URL, f"{instance.dag_id}/{instance.run_id}/{instance.task_id}"))
        with ovpress_client.Client(self.server, **self.connection) as client:
            job = client.submit(
                self.model, request_id=request_id, labels={"dag": instance.dag_id[:255]}, **self.options
            )
            self._job = job.name
            self.log.info("submitted %s", job.name)
            job = client.watch(job, progress=self._report)
            job.result()  # raises if it failed
            self._job = ""
            result = client.download(job, self.output)
        return {
            "xml": str(result.xml),
            "bits_per_weight": result.bits_per_weight,
            "bin_bytes_before": result.bin_bytes_before,
            "bin_bytes_after": result.bin_bytes_after,
            "sha256": result.outcome.bin.sha256,
        }

    def on_kill(self) -> None:
        if self._job:
            with ovpress_client.Client(self.server, retry_timeout=5, **self.connection) as client:
                client.cancel(self._job)

    def _report(self, phase: str, done: int, total: int) -> None:
        self.log.info("%s %s", phase, f"{100 * done // total} %" if total else done)


def make_dag() -> Any:
    """The DAG; a function, so that importing the operator makes none."""
    import datetime

    from airflow import DAG

    with DAG("compress_openvino", schedule=None, start_date=datetime.datetime(2025, 1, 1), catchup=False) as dag:
        OvpressCompressOperator(
            task_id="compress",
            retries=3,
            server="ovpress.default.svc:8470",
            model="/models/{{ params.name }}/openvino_model.xml",
            output="/models/{{ params.name }}-int4/openvino_model.xml",
            options={"mode": "int4_sym", "group_size": 128, "ratio": 0.8},
            connection={"tls_ca": "/etc/ovpress/ca.pem", "token_file": "/etc/ovpress/token"},
        )
    return dag
