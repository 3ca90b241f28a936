"""Kubeflow Pipelines (kfp 2): a component that compresses a model.

  from kubeflow_component import compress_openvino

  @dsl.pipeline
  def pipeline():
      model = export()                                       # leaves openvino_model.xml and .bin
      compress_openvino(model=model.outputs["model"], mode="int4_sym", ratio=0.8, group_size=128)
"""

from kfp import dsl


@dsl.component(base_image="python:3.12-slim", packages_to_install=["ovpress-client"])
def compress_openvino(
    model: dsl.Input[dsl.Model],
    compressed: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
    server: str = "ovpress.default.svc:8470",
    mode: str = "int8_asym",
    ratio: float = 1.0,
    group_size: int = 0,
    run_id: str = "",
):
    """Compresses model.path/openvino_model.xml into compressed.path. group_size 0:
    the mode's default. Give dsl.PIPELINE_JOB_ID_PLACEHOLDER as run_id, and a
    retried step goes on where the last one stopped."""
    # kfp ships this function alone: what it imports stands inside.
    import pathlib

    import ovpress_client

    options = {}
    if ratio < 1:
        options["ratio"] = ratio
    if group_size:
        options["group_size"] = group_size
    with ovpress_client.Client(server) as client:
        result = client.compress(
            pathlib.Path(model.path) / "openvino_model.xml",
            f"{compressed.path}/",
            mode=mode,
            request_id=run_id or None,
            **options,
        )
    metrics.log_metric("bits_per_weight", result.bits_per_weight)
    metrics.log_metric("bin_bytes_before", result.bin_bytes_before)
    metrics.log_metric("bin_bytes_after", result.bin_bytes_after)
    compressed.metadata["sha256"] = result.outcome.bin.sha256
