#!/bin/sh
# The same path with the command line tool of ovpress instead of Python.
#   huggingface_to_genai.sh Qwen/Qwen2.5-1.5B-Instruct qwen localhost:8470
set -eu
model_id=$1
folder=$2
server=$3

optimum-cli export openvino --model "$model_id" --weight-format fp16 "$folder/fp16"
mkdir -p "$folder/int4"
ovpress compress "$folder/fp16/openvino_model.xml" --output "$folder/int4/openvino_model.xml" \
  --server "$server" --mode int4_sym --group-size 128 --ratio 0.8 --group-size-fallback adjust \
  --report "$folder/int4/ovpress-report.json"
# Tokenizer, detokenizer and configuration have nothing to compress.
for file in "$folder"/fp16/*; do
  case $file in
    */openvino_model.xml | */openvino_model.bin) ;;
    *) cp "$file" "$folder/int4/" ;;
  esac
done
