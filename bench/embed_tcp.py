#!/usr/bin/env python3
"""Embedding speed end to end: EMBED over TCP beside ONNX Runtime in f32, same weights, same run.

kith is asked as a client asks it: texts over a socket, tokenized, batched, embedded, vectors back
(FORMAT FP32). ONNX Runtime is given token ids in process, so that its tokenizer and its transport
cost nothing. Both use the same number of threads; rounds alternate, with a rest before each turn;
medians and ratios are printed, with the worst cosine of kith's vectors to ONNX Runtime's over every
text of the run.

    build/venv/bin/python bench/embed_tcp.py --csv build/bench/embed.csv --png build/bench/embed.png
"""

import argparse
import csv
import json
import pathlib
import statistics
import sys
import tempfile
import time

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "bench")]

import embed_onnx  # noqa: E402
from kithtest import MODELS, Server  # noqa: E402

REST_S = 0.1
POINTS = [(16, 1), (16, 64), (128, 1), (128, 64), (450, 1), (450, 16)]


def words_of(folder):
    """Words that are one token each, with their ids."""
    vocab = (folder / "vocab.txt").read_text().splitlines()
    return [(w, i) for i, w in enumerate(vocab) if w.isascii() and w.isalpha() and len(w) > 3]


def make_texts(words, tokens, texts, rng):
    """texts of exactly `tokens` tokens, and their ids."""
    picks = [[words[j] for j in rng.integers(0, len(words), tokens - 2)] for _ in range(texts)]
    ids = np.array([[101] + [i for _, i in p] + [102] for p in picks], np.int32)
    return [" ".join(w for w, _ in p) for p in picks], ids


def embed(wire, texts):
    reply = wire.cmd("EMBED", "FORMAT", "FP32", "TEXTS", *texts)
    if not isinstance(reply, list):
        sys.exit(f"EMBED answered {reply!r}")
    return np.stack([np.frombuffer(v, np.float32) for v in reply])


def worst_cosine(a, b):
    return float(np.min(np.sum(a * b, 1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)))


def timed(run):
    """After a rest: ONNX Runtime's threads look for work for a while after each run, and would
    keep kith from a processor (one text of 16 tokens then takes kith 2.2 ms instead of 0.8)."""
    time.sleep(REST_S)
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def measure(wire, session, words, rounds):
    rng = np.random.default_rng(7)
    points = {p: make_texts(words, *p, rng) for p in POINTS}
    cosine = {p: worst_cosine(embed(wire, t), embed_onnx.run(session, ids))
              for p, (t, ids) in points.items()}
    kith = {p: [] for p in POINTS}
    onnx = {p: [] for p in POINTS}
    for _ in range(rounds):
        for p, (texts, ids) in points.items():
            kith[p].append(timed(lambda: embed(wire, texts)))
            onnx[p].append(timed(lambda: embed_onnx.run(session, ids)))
    return cosine, kith, onnx


def plot(rows, path):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    labels = [f"{r['tokens']} x {r['texts']}" for r in rows]
    x = np.arange(len(rows))
    figure, axis = pyplot.subplots(figsize=(8, 4.5))
    axis.bar(x - 0.2, [r["kith_tokens_s"] for r in rows], 0.4, label="kith, EMBED over TCP, Q8_0")
    axis.bar(x + 0.2, [r["onnx_tokens_s"] for r in rows], 0.4, label="ONNX Runtime f32, in process")
    for i, r in enumerate(rows):
        axis.text(i, max(r["kith_tokens_s"], r["onnx_tokens_s"]), f"{r['ratio']:.2f}x", ha="center",
                  va="bottom")
    axis.set_xticks(x, labels)
    axis.set_xlabel("tokens a text x texts a request")
    axis.set_ylabel("tokens a second")
    axis.set_title("all-MiniLM-L6-v2, 2 threads")
    axis.set_ylim(0, 1.2 * axis.get_ylim()[1])
    axis.legend(loc="upper left", ncols=2)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=pathlib.Path,
                        default=MODELS / "all-MiniLM-L6-v2",
                        help="Hugging Face folder of the same weights")
    parser.add_argument("--model", type=pathlib.Path,
                        default=MODELS / "all-MiniLM-L6-v2.q8_0.gguf", help="the GGUF file kith runs")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--csv", type=pathlib.Path)
    parser.add_argument("--png", type=pathlib.Path)
    args = parser.parse_args()

    model, _ = embed_onnx.build(args.folder, True)
    session = embed_onnx.session(model, args.threads)
    with tempfile.TemporaryDirectory() as folder:
        server = Server(folder, "--embedder", str(args.model), "--engine-threads",
                        str(args.threads)).start()
        wire = server.wire(timeout=120)
        words = words_of(args.folder)
        cosine, kith, onnx = measure(wire, session, words, args.rounds)
        info = wire.cmd("INFO", "engine")
        server.stop()

    kernels = dict(l.split(":", 1) for l in info.decode().splitlines() if ":" in l)
    print(f"kith {args.model.name}, precision {kernels['engine_precision']}, kernels "
          f"{kernels['engine_kernels']}; onnxruntime {embed_onnx.ort.__version__} f32; "
          f"{args.threads} threads each, medians of {args.rounds} alternating rounds")
    print(f"{'tokens':>7}{'texts':>6}{'kith ms':>9}{'p99':>8}{'tok/s':>9}{'onnx ms':>9}"
          f"{'tok/s':>9}{'ratio':>7}  cosine")
    rows = []
    for (tokens, texts) in POINTS:
        k, o = kith[tokens, texts], onnx[tokens, texts]
        mk, mo = statistics.median(k), statistics.median(o)
        ratio = statistics.median([b / a for a, b in zip(k, o)])
        rows.append({"tokens": tokens, "texts": texts, "kith_ms": mk * 1e3,
                     "kith_p99_ms": sorted(k)[int(len(k) * 0.99)] * 1e3,
                     "kith_tokens_s": tokens * texts / mk, "onnx_ms": mo * 1e3,
                     "onnx_tokens_s": tokens * texts / mo, "ratio": ratio,
                     "worst_cosine": cosine[tokens, texts]})
        r = rows[-1]
        print(f"{tokens:7}{texts:6}{r['kith_ms']:9.2f}{r['kith_p99_ms']:8.2f}"
              f"{r['kith_tokens_s']:9.0f}{r['onnx_ms']:9.2f}{r['onnx_tokens_s']:9.0f}"
              f"{ratio:7.2f}  {r['worst_cosine']:.5f}")
    if args.csv:
        with args.csv.open("w", newline="") as f:
            writer = csv.DictWriter(f, rows[0].keys())
            writer.writeheader()
            writer.writerows(rows)
    if args.png:
        plot(rows, args.png)


if __name__ == "__main__":
    main()
