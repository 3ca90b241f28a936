#!/usr/bin/env python3
"""What compression did to a model's answers: KL divergence and perplexity.

    scripts/quality.py BEFORE.xml AFTER.xml --text book.txt --tokenizer tokenizer.json
    scripts/quality.py BEFORE.xml AFTER.xml --tokens ids.json
    scripts/quality.py BEFORE.xml AFTER.xml --text book.txt --bytes
    scripts/quality.py BEFORE.xml AFTER.xml --inputs batch.npz
    scripts/quality.py BEFORE.xml AFTER.xml --random 4 --shape 1,3,48,320

Runs both models with OpenVINO on the same input and compares the distributions
over the last axis of the first output (logits, or probabilities that add up to
one):

  KL divergence   sum of p (ln p - ln q), p before, q after, in nats; 0 is equal.
                  Mean, median, 99th percentile and largest over all positions.
  same choice     share of positions whose most likely entry is the same.
  perplexity      exp of the mean of -ln p(next token), before and after; only
                  for tokens.

Causal language models (an input `input_ids`) get --text with --tokenizer (needs
the Python package tokenizers) or --bytes (each byte is a token), or --tokens (a
JSON list, a .npy file, or numbers separated by blanks). The tokens are cut into
windows of --window; each is run from an empty state. Other networks get
--inputs (an .npz with arrays named like the inputs) or --random N.

Needs openvino and numpy. Exit status: 0 done, 1 failed or above --max-kl, 2
wrong usage.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
from collections.abc import Iterator

import numpy as np
import openvino as ov

RANDOM_SEED = 7


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=pathlib.Path)
    parser.add_argument("after", type=pathlib.Path)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--text", type=pathlib.Path, help="a text file in UTF-8")
    source.add_argument("--tokens", type=pathlib.Path, help="token ids")
    source.add_argument("--inputs", type=pathlib.Path, help="an .npz for a network that takes no tokens")
    source.add_argument("--random", type=int, metavar="N", help="N windows of random tokens, or N random inputs; fixed seed")
    parser.add_argument("--tokenizer", type=pathlib.Path, help="tokenizer.json for --text")
    parser.add_argument("--bytes", action="store_true", help="each byte of --text is a token")
    parser.add_argument("--shape", help="shape of a random input, e.g. 1,3,48,320")
    parser.add_argument("--window", type=int, default=256, help="tokens in one run [256]")
    parser.add_argument("--limit", type=int, default=0, help="use only the first N tokens [all]")
    parser.add_argument("--device", default="CPU", help="OpenVINO device [CPU]")
    parser.add_argument("--json", action="store_true", help="JSON instead of text")
    parser.add_argument("--max-kl", type=float, help="exit 1 if the mean KL divergence is above this")
    arguments = parser.parse_args()
    if arguments.text and bool(arguments.tokenizer) == arguments.bytes:
        parser.error("--text needs either --tokenizer or --bytes")
    if arguments.window < 2:
        parser.error("--window must be at least 2")
    if arguments.random is not None and arguments.random < 1:
        parser.error("--random needs at least 1")
    return arguments


def read_tokens(arguments: argparse.Namespace) -> np.ndarray:
    if arguments.tokens:
        if arguments.tokens.suffix == ".npy":
            return np.load(arguments.tokens).ravel().astype(np.int64)
        text = arguments.tokens.read_text()
        values = json.loads(text) if text.lstrip().startswith("[") else text.split()
        return np.array(values, dtype=np.int64)
    if arguments.bytes:
        return np.frombuffer(arguments.text.read_bytes(), np.uint8).astype(np.int64)
    try:
        from tokenizers import Tokenizer
    except ImportError:
        sys.exit("quality: --tokenizer needs the Python package tokenizers; or give --tokens or --bytes")
    tokenizer = Tokenizer.from_file(str(arguments.tokenizer))
    return np.array(tokenizer.encode(arguments.text.read_text(encoding="utf-8")).ids, dtype=np.int64)


def token_inputs(model: ov.CompiledModel, tokens: np.ndarray) -> dict[str, np.ndarray]:
    """All inputs of one run over a window; a stateful model's past is empty."""
    length = len(tokens)
    out = {}
    for port in model.inputs:
        name = port.get_any_name()
        kind = port.get_element_type().to_dtype()
        if "input_ids" in port.get_names():
            value = tokens[None, :]
        elif "mask" in name:
            value = np.ones((1, length))
        elif "position" in name:
            value = np.arange(length)[None, :]
        elif "beam" in name:
            value = np.zeros(1)
        elif "token_type" in name:
            value = np.zeros((1, length))
        elif "past" in name or "key" in name or "value" in name:
            # [batch, heads, past length, size]: what is dynamic behind the batch is the length.
            shape = [dim.get_length() if dim.is_static else 0 for dim in port.get_partial_shape()]
            value = np.zeros([1, *shape[1:]])
        else:
            sys.exit(f"quality: do not know what to feed to input '{name}'")
        out[name] = value.astype(kind)
    return out


def runs(arguments: argparse.Namespace, model: ov.CompiledModel) -> Iterator[tuple[dict[str, np.ndarray], np.ndarray | None]]:
    """Inputs of each run, and the tokens if they are tokens."""
    is_language_model = any("input_ids" in port.get_names() for port in model.inputs)
    rng = np.random.default_rng(RANDOM_SEED)
    if is_language_model and not arguments.inputs:
        entries = model.outputs[0].get_partial_shape()[-1]
        size = entries.get_length() if entries.is_static else 256
        if arguments.random:
            tokens = rng.integers(0, size, arguments.random * arguments.window)
        else:
            tokens = read_tokens(arguments)
        if arguments.limit:
            tokens = tokens[: arguments.limit]
        if len(tokens) < 2:
            sys.exit("quality: at least two tokens are needed")
        if tokens.min() < 0 or (entries.is_static and tokens.max() >= size):
            sys.exit(f"quality: tokens from {tokens.min()} to {tokens.max()} do not fit a vocabulary of {size}")
        for start in range(0, len(tokens) - 1, arguments.window):
            window = tokens[start : start + arguments.window]
            if len(window) > 1:
                yield token_inputs(model, window), window
        return
    if arguments.inputs:
        with np.load(arguments.inputs) as archive:
            yield {name: archive[name] for name in archive.files}, None
        return
    if not arguments.random:
        sys.exit("quality: this network takes no tokens (no input `input_ids`); give --inputs or --random")
    if len(model.inputs) != 1:
        sys.exit("quality: --random feeds one input only; give --inputs")
    port = model.inputs[0]
    shape = port.get_partial_shape()
    if arguments.shape:
        sizes = [int(size) for size in arguments.shape.split(",")]
    elif shape.is_static:
        sizes = list(port.get_shape())
    else:
        sys.exit(f"quality: the input's shape {shape} is dynamic; give --shape")
    for _ in range(arguments.random):
        yield {port.get_any_name(): rng.uniform(-1, 1, sizes).astype(port.get_element_type().to_dtype())}, None


def log_probabilities(output: np.ndarray) -> np.ndarray:
    """Rows of ln p, in f64, from logits or from probabilities."""
    rows = output.reshape(-1, output.shape[-1]).astype(np.float64)
    if rows.min() >= 0 and np.allclose(rows.sum(-1), 1, atol=1e-3):
        # Zeros of f32 softmax: the smallest normal number keeps KL finite.
        rows = np.maximum(rows, np.finfo(np.float32).tiny)
        return np.log(rows / rows.sum(-1, keepdims=True))
    rows = rows - rows.max(-1, keepdims=True)
    return rows - np.log(np.exp(rows).sum(-1, keepdims=True))


class Runner:
    def __init__(self, core: ov.Core, xml: pathlib.Path, device: str) -> None:
        # f32: what is measured is the weights, not the plugin's shortcuts.
        config = {"INFERENCE_PRECISION_HINT": "f32"}
        # Otherwise the plugin quantizes the activations of some compressed models.
        if device == "CPU":
            config["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = "0"
        self.model = core.compile_model(xml, device, config)
        self._request = self.model.create_infer_request()

    def __call__(self, inputs: dict[str, np.ndarray]) -> np.ndarray:
        self._request.reset_state()
        self._request.infer(inputs)
        return log_probabilities(np.array(self._request.get_output_tensor(0).data))


def main() -> None:
    arguments = parse()
    core = ov.Core()
    before = Runner(core, arguments.before, arguments.device)
    after = Runner(core, arguments.after, arguments.device)
    divergences, same, losses = [], [], [[], []]
    for inputs, tokens in runs(arguments, before.model):
        p, q = before(inputs), after(inputs)
        divergences.append((np.exp(p) * (p - q)).sum(-1))
        same.append(p.argmax(-1) == q.argmax(-1))
        if tokens is not None and len(p) == len(tokens):
            following = np.arange(len(tokens) - 1), tokens[1:]
            for loss, rows in zip(losses, (p, q)):
                loss.append(-rows[following])
    divergence = np.concatenate(divergences)
    result = {
        "positions": int(divergence.size),
        "kl_mean": float(divergence.mean()),
        "kl_median": float(np.median(divergence)),
        "kl_p99": float(np.percentile(divergence, 99)),
        "kl_max": float(divergence.max()),
        "same_choice": float(np.concatenate(same).mean()),
    }
    if losses[0]:
        result["perplexity_before"], result["perplexity_after"] = (float(np.exp(np.concatenate(loss).mean())) for loss in losses)
    if arguments.json:
        print(json.dumps(result, indent=2))
    else:
        print(f"{result['positions']} positions")
        print(
            f"KL divergence, nats: mean {result['kl_mean']:.6f}, median {result['kl_median']:.6f}, "
            f"99% {result['kl_p99']:.6f}, largest {result['kl_max']:.6f}"
        )
        print(f"same choice: {result['same_choice']:.2%}")
        if "perplexity_before" in result:
            change = result["perplexity_after"] / result["perplexity_before"] - 1
            print(f"perplexity: {result['perplexity_before']:.4f} before, {result['perplexity_after']:.4f} after ({change:+.3%})")
    if not np.isfinite(result["kl_mean"]):
        sys.exit("quality: a model's output is not finite")
    if arguments.max_kl is not None and result["kl_mean"] > arguments.max_kl:
        sys.exit(f"quality: the mean KL divergence {result['kl_mean']:.6f} is above {arguments.max_kl}")


if __name__ == "__main__":
    main()
