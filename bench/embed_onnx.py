#!/usr/bin/env python3
"""The peer of bench-embed-kernels: the same encoder in ONNX Runtime on the same machine.

Builds the graph of a BERT encoder from a Hugging Face folder (config.json, model.safetensors) with
the onnx package alone, in the form that ONNX Runtime's own transformer optimizer arrives at:
EmbedLayerNormalization, Attention with q, k and v in one product, BiasGelu,
SkipLayerNormalization. `--graph plain` uses standard operators only and leaves every fusion to
the runtime (optimization level ALL in both cases). Texts of one batch have equal length, so the
peer has no padding and no mask to compute. The vectors are checked against --reference, or between
the two graphs, before a time is printed.

    python bench/embed_onnx.py --model MODEL_DIR --threads 2 --csv build/onnx.csv

Needs onnx, onnxruntime, numpy and safetensors.
"""

import argparse
import csv
import json
import pathlib
import statistics
import sys
import time

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import load_file

POINTS = [(16, 1), (16, 64), (128, 1), (128, 64), (450, 1), (450, 16)]
MS = "com.microsoft"


class Graph:
    """Nodes and weights on their way into a model."""

    def __init__(self):
        self.nodes, self.weights = [], []

    def weight(self, name, array):
        self.weights.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def op(self, kind, inputs, domain="", outputs=1, **attributes):
        names = [f"{kind}_{len(self.nodes)}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(kind, inputs, names, domain=domain, **attributes))
        return names[0]


def load_weights(folder):
    tensors = load_file(str(folder / "model.safetensors"))
    return {k.removeprefix("bert."): v.astype(np.float32) for k, v in tensors.items()
            if v.dtype != np.int64}


def embed(g, w, config, fused):
    names = ["word_embeddings", "position_embeddings", "token_type_embeddings"]
    tables = [g.weight(n, w[f"embeddings.{n}.weight"]) for n in names]
    norm = [g.weight(f"embd_norm_{p}", w[f"embeddings.LayerNorm.{p}"]) for p in ("weight", "bias")]
    eps = config["layer_norm_eps"]
    if fused:
        return g.op("EmbedLayerNormalization", ["ids", "types", *tables, *norm], MS, 2, epsilon=eps)
    length = g.op("Shape", ["ids"], start=1, end=2)
    places = g.op("Slice", [tables[1], g.weight("from", np.array([0], np.int64)), length])
    x = g.op("Add", [g.op("Gather", [tables[0], "ids"]), places])
    x = g.op("Add", [x, g.op("Gather", [tables[2], "types"])])
    return g.op("LayerNormalization", [x, *norm], axis=-1, epsilon=eps)


def attention(g, w, prefix, x, config, fused):
    heads, width = config["num_attention_heads"], config["hidden_size"]
    size = width // heads
    parts = [f"{prefix}attention.self.{p}" for p in ("query", "key", "value")]
    if fused:
        qkv = g.weight(prefix + "qkv", np.concatenate([w[p + ".weight"].T for p in parts], 1))
        bias = g.weight(prefix + "qkv_b", np.concatenate([w[p + ".bias"] for p in parts]))
        return g.op("Attention", [x, qkv, bias], MS, num_heads=heads)
    split = "split_shape"
    if not any(t.name == split for t in g.weights):
        g.weight(split, np.array([0, 0, heads, size], np.int64))
        g.weight("merge_shape", np.array([0, 0, width], np.int64))
        g.weight("scale", np.float32(1 / np.sqrt(size)))
    q, k, v = [g.op("Reshape", [linear(g, w, p, x), split]) for p in parts]
    q = g.op("Transpose", [q], perm=[0, 2, 1, 3])
    k = g.op("Transpose", [k], perm=[0, 2, 3, 1])
    v = g.op("Transpose", [v], perm=[0, 2, 1, 3])
    p = g.op("Softmax", [g.op("Mul", [g.op("MatMul", [q, k]), "scale"])], axis=-1)
    y = g.op("Transpose", [g.op("MatMul", [p, v])], perm=[0, 2, 1, 3])
    return g.op("Reshape", [y, "merge_shape"])


def linear(g, w, name, x, bias=True):
    y = g.op("MatMul", [x, g.weight(name + ".weight", w[name + ".weight"].T)])
    return g.op("Add", [y, g.weight(name + ".bias", w[name + ".bias"])]) if bias else y


def add_norm(g, w, product, norm, y, x, config, fused):
    affine = [g.weight(f"{norm}.{p}", w[f"{norm}.{p}"]) for p in ("weight", "bias")]
    eps = config["layer_norm_eps"]
    y = linear(g, w, product, y, bias=not fused)
    if fused:
        bias = g.weight(product + ".bias", w[product + ".bias"])
        return g.op("SkipLayerNormalization", [y, x, *affine, bias], MS, epsilon=eps)
    return g.op("LayerNormalization", [g.op("Add", [y, x]), *affine], axis=-1, epsilon=eps)


def build(folder, fused):
    """The encoder with mean pooling and normalisation: ids, types (batch x length) to vectors."""
    config = json.loads((folder / "config.json").read_text())
    w, g = load_weights(folder), Graph()
    x = embed(g, w, config, fused)
    for i in range(config["num_hidden_layers"]):
        p = f"encoder.layer.{i}."
        y = attention(g, w, p, x, config, fused)
        x = add_norm(g, w, p + "attention.output.dense", p + "attention.output.LayerNorm", y, x,
                     config, fused)
        up = p + "intermediate.dense"
        if fused:
            y = g.op("BiasGelu", [linear(g, w, up, x, bias=False),
                                  g.weight(up + ".bias", w[up + ".bias"])], MS)
        else:
            y = g.op("Gelu", [linear(g, w, up, x)], approximate="none")
        x = add_norm(g, w, p + "output.dense", p + "output.LayerNorm", y, x, config, fused)
    mean = g.op("ReduceMean", [x, g.weight("tokens", np.array([1], np.int64))], keepdims=0)
    norm = g.op("ReduceL2", [mean, g.weight("width", np.array([1], np.int64))], keepdims=1)
    g.nodes.append(helper.make_node("Div", [mean, norm], ["vectors"]))
    index = lambda name: helper.make_tensor_value_info(name, TensorProto.INT32, ["b", "n"])
    out = helper.make_tensor_value_info("vectors", TensorProto.FLOAT, ["b", config["hidden_size"]])
    graph = helper.make_graph(g.nodes, "bert", [index("ids"), index("types")], [out], g.weights)
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid(MS, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10), config


def session(model, threads):
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    return ort.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])


def run(s, ids):
    return s.run(None, {"ids": ids, "types": np.zeros_like(ids)})[0]


def check(s, other, vocab, reference):
    """The worst cosine to the reference vectors, or to the other graph."""
    if reference:
        lines = [json.loads(line) for line in reference.read_text().splitlines() if line.strip()]
        pairs = [(run(s, np.array([l["ids"]], np.int32))[0], np.array(l["vector"])) for l in lines]
    else:
        rng = np.random.default_rng(3)
        batches = [rng.integers(0, vocab, (2, n), dtype=np.int32) for n in (3, 16, 128, 450)]
        pairs = [p for ids in batches for p in zip(run(s, ids), run(other, ids))]
    return min(float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)) for a, b in pairs)


def measure(s, vocab, rounds):
    rng = np.random.default_rng(1)
    batches = {p: rng.integers(1000, vocab, (p[1], p[0]), dtype=np.int32) for p in POINTS}
    times = {p: [] for p in POINTS}
    for ids in batches.values():
        run(s, ids)
    for _ in range(rounds):
        for point, ids in batches.items():
            start = time.perf_counter()
            run(s, ids)
            times[point].append(time.perf_counter() - start)
    return {p: statistics.median(t) for p, t in times.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=pathlib.Path, required=True, help="Hugging Face folder")
    parser.add_argument("--graph", choices=["fused", "plain"], default="fused")
    parser.add_argument("--threads", type=int, default=2, help="intra-op threads")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--reference", type=pathlib.Path,
                        help='lines of {"ids": [...], "vector": [...]} to check the vectors with')
    parser.add_argument("--csv", type=pathlib.Path, help="append a row for each point")
    args = parser.parse_args()

    model, config = build(args.model, args.graph == "fused")
    onnx.checker.check_model(model)
    s = session(model, args.threads)
    other = None if args.reference else session(build(args.model, args.graph != "fused")[0],
                                                args.threads)
    cosine = check(s, other, config["vocab_size"], args.reference)
    print(f"onnxruntime {ort.__version__} f32, {args.graph} graph, {args.threads} threads, "
          f"worst cosine {cosine:.7f}")
    if cosine < 0.9999:
        sys.exit("the vectors are wrong: no time is worth printing")
    medians = measure(s, config["vocab_size"], args.rounds)
    print(f"{'tokens':>7} {'texts':>6} {'median ms':>10} {'tokens/s':>10}")
    rows = []
    for (tokens, texts), seconds in medians.items():
        speed = tokens * texts / seconds
        print(f"{tokens:7} {texts:6} {seconds * 1e3:10.2f} {speed:10.0f}")
        rows.append(["onnxruntime-" + ort.__version__, "f32-" + args.graph, args.threads, tokens,
                     texts, f"{seconds * 1e3:.3f}", f"{speed:.0f}", f"{cosine:.7f}"])
    if args.csv:
        with args.csv.open("a", newline="") as f:
            csv.writer(f).writerows(rows)


if __name__ == "__main__":
    main()
