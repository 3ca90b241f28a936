"""A script that calls NNCF today, and the two lines that send the work to a server.

  OVPRESS_SERVER=localhost:8470 python nncf_drop_in.py model.xml out.xml

The result is the model that NNCF would have given, bit for bit; see
docs/nncf-differences.md for the few documented cases. nncf need not be installed."""

import sys

import openvino

# Before:
#   import nncf
#   compressed = nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT4_SYM, ...)
import ovpress_client


def main(source: str, target: str) -> None:
    model = openvino.Core().read_model(source)
    compressed = ovpress_client.compress_weights(
        model,
        mode="int4_sym",  # nncf.CompressWeightsMode.INT4_SYM is taken as well
        group_size=32,
        ratio=0.8,
        ignored_scope=ovpress_client.IgnoredScope(patterns=[".*down_proj.*"], validate=False),
    )
    openvino.save_model(compressed, target, compress_to_fp16=False)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
