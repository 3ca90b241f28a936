"""From Hugging Face to OpenVINO GenAI: export, compress on a server, generate.

  pip install "optimum[openvino]" openvino-genai ovpress-client
  python huggingface_to_genai.py Qwen/Qwen2.5-1.5B-Instruct qwen localhost:8470

Leaves qwen/fp16 and qwen/int4. The export runs here, for it needs the model's
Python code; the compression runs on the server."""

import pathlib
import shutil
import subprocess
import sys

import ovpress_client


def export(model_id: str, folder: pathlib.Path) -> None:
    """--weight-format fp16 matters: without it larger models come out as int8,
    and what is compressed already stays as it is."""
    command = ["optimum-cli", "export", "openvino", "--model", model_id, "--weight-format", "fp16", str(folder)]
    subprocess.run(command, check=True)


def compress(source: pathlib.Path, target: pathlib.Path, server: str) -> None:
    """The language model goes through the server; tokenizer, detokenizer and
    configuration, which have nothing to compress, are copied."""

    def show(phase: str, done: int, total: int) -> None:
        print(f"\r{phase:12} {100 * done // total if total else 0:3} %", end="", file=sys.stderr)

    with ovpress_client.Client(server) as client:
        result = client.compress(
            source / "openvino_model.xml",
            target / "openvino_model.xml",
            mode="int4_sym",
            group_size=128,
            ratio=0.8,
            group_size_fallback_mode="adjust",
            progress=show,
        )
    for path in source.iterdir():
        if path.is_file() and path.stem != "openvino_model":
            shutil.copy2(path, target / path.name)
    print(f"\n{result.bin_bytes_before} -> {result.bin_bytes_after} bytes, {result.bits_per_weight:.2f} bits per weight")


def generate(folder: pathlib.Path, prompt: str) -> str:
    import openvino_genai

    pipeline = openvino_genai.LLMPipeline(str(folder), "CPU")
    return str(pipeline.generate(prompt, max_new_tokens=100))


def main(model_id: str, folder: str, server: str) -> None:
    base = pathlib.Path(folder)
    if not (base / "fp16" / "openvino_model.xml").exists():
        export(model_id, base / "fp16")
    compress(base / "fp16", base / "int4", server)
    print(generate(base / "int4", "What is a group size in weight compression?"))


if __name__ == "__main__":
    main(*sys.argv[1:4])
