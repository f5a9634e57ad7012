#!/usr/bin/env python3
"""Embedding speed end to end: EMBED over TCP beside other engines, same weights, same run.

kith is asked as a client asks it: texts over a socket, tokenized, batched, embedded, vectors back
(FORMAT FP32). The peers work in this process, so that no transport costs them anything: ONNX
Runtime in f32 and with dynamic int8 is given token ids, sentence-transformers and llama.cpp the
texts, as their users do. All use the same number of threads; rounds alternate, with a rest before
each turn; medians and ratios are printed, with the worst cosine of everyone's vectors to ONNX
Runtime's f32 over every text of the run. Behind that: one thread beside two, and the time of one
short text that comes alone (--only alone: nothing but that).

    build/venv/bin/python bench/embed_tcp.py --csv build/bench/embed.csv --png build/bench/embed.png

Peers that are not installed are left out and named; tools/requirements-peers.txt has them all
(sentence-transformers brings PyTorch, llama-cpp-python is compiled: some minutes).
"""

import argparse
import csv
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
POINTS = [(16, 1), (16, 64), (128, 1), (128, 64), (450, 1), (450, 64)]
COLOURS = ["#3b6fb6", "#c8553d", "#e0a458", "#6a994e", "#7d6b91"]


def words_of(folder):
    """Words that are one token each, with their ids."""
    vocab = (folder / "vocab.txt").read_text().splitlines()
    return [(w, i) for i, w in enumerate(vocab) if w.isascii() and w.isalpha() and len(w) > 3]


def make_texts(words, tokens, texts, rng):
    """texts of exactly `tokens` tokens, and their ids."""
    picks = [[words[j] for j in rng.integers(0, len(words), tokens - 2)] for _ in range(texts)]
    ids = np.array([[101] + [i for _, i in p] + [102] for p in picks], np.int32)
    return [" ".join(w for w, _ in p) for p in picks], ids


def worst_cosine(a, b):
    return float(np.min(np.sum(a * b, 1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)))


# --- contenders: each turns (texts, ids) into vectors ---------------------------------------------


def kith_embed(wire):
    def run(texts, ids):
        reply = wire.cmd("EMBED", "FORMAT", "FP32", "TEXTS", *texts)
        if not isinstance(reply, list):
            sys.exit(f"EMBED answered {reply!r}")
        return np.stack([np.frombuffer(v, np.float32) for v in reply])
    return run


def onnx_f32(args):
    model, _ = embed_onnx.build(args.folder, True)
    session = embed_onnx.session(model, args.threads)
    return lambda texts, ids: embed_onnx.run(session, ids)


def onnx_int8(args):
    """Dynamic quantization as its users run it, of the graph of standard operators, which it
    takes whole; per_channel is its better half."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    import onnx

    model, _ = embed_onnx.build(args.folder, False)
    with tempfile.TemporaryDirectory() as folder:
        plain, quantized = (f"{folder}/{name}.onnx" for name in ("f32", "int8"))
        onnx.save(model, plain)
        quantize_dynamic(plain, quantized, weight_type=QuantType.QInt8, per_channel=True)
        session = embed_onnx.session(onnx.load(quantized), args.threads)
    return lambda texts, ids: embed_onnx.run(session, ids)


def sentence_transformers(args):
    import torch
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(args.threads)
    model = SentenceTransformer(str(args.folder), device="cpu")
    model.max_seq_length = 512
    return lambda texts, ids: model.encode(texts, batch_size=64, normalize_embeddings=True)


def llama_cpp(args):
    """One text after another: it takes ten times as long for each of many in one batch, whose
    tokens all see each other before they are masked."""
    from llama_cpp import LLAMA_POOLING_TYPE_MEAN, Llama

    model = Llama(str(args.f16), embedding=True, n_threads=args.threads,
                  n_threads_batch=args.threads, n_ctx=8192, n_batch=8192, n_ubatch=8192,
                  pooling_type=LLAMA_POOLING_TYPE_MEAN, verbose=False)
    return lambda texts, ids: np.array([model.embed(t, normalize=True) for t in texts], np.float32)


PEERS = {"ONNX Runtime f32": onnx_f32, "ONNX Runtime int8": onnx_int8,
         "sentence-transformers": sentence_transformers, "llama.cpp F16": llama_cpp}


def open_peers(args):
    found = {}
    for name, make in PEERS.items():
        if name.split()[0].lower() not in args.peers:
            continue
        try:
            found[name] = make(args)
        except ImportError as e:
            print(f"{name} is left out: {e}", file=sys.stderr)
    return found


# --- measuring --------------------------------------------------------------------------------------


def timed(run):
    """After a rest: ONNX Runtime's threads look for work for a while after each run, and would
    keep kith from a processor (one text of 16 tokens then takes kith 2.2 ms instead of 0.8)."""
    time.sleep(REST_S)
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def measure(contenders, words, rounds):
    """{point: {name: [seconds]}} and {point: {name: worst cosine to the first peer}}."""
    rng = np.random.default_rng(7)
    points = {p: make_texts(words, *p, rng) for p in POINTS}
    truth = contenders["ONNX Runtime f32"]
    cosines = {p: {name: worst_cosine(run(*both), truth(*both))
                   for name, run in contenders.items()} for p, both in points.items()}
    seconds = {p: {name: [] for name in contenders} for p in POINTS}
    for _ in range(rounds):
        for p, both in points.items():
            for name, run in contenders.items():
                seconds[p][name].append(timed(lambda: run(*both)))
    return seconds, cosines


def ratio(a, b):
    """How many times as fast as b a is, the median of the rounds."""
    return statistics.median(y / x for x, y in zip(a, b))


def rows_of(seconds, cosines):
    rows = []
    for (tokens, texts), by_name in seconds.items():
        for name, times in by_name.items():
            median = statistics.median(times)
            rows.append({"tokens": tokens, "texts": texts, "who": name, "median_ms": median * 1e3,
                         "p99_ms": sorted(times)[int(len(times) * 0.99)] * 1e3,
                         "tokens_s": tokens * texts / median,
                         "kith_is_faster": ratio(by_name["kith"], times),
                         "worst_cosine": cosines[tokens, texts][name]})
    return rows


def show(rows):
    print(f"{'tokens':>7}{'texts':>6}  {'':22}{'ms':>9}{'p99':>9}{'tokens/s':>10}{'kith is':>9}"
          "  worst cosine")
    for r in rows:
        times = "" if r["who"] == "kith" else f"{r['kith_is_faster']:.2f}x"
        print(f"{r['tokens']:7}{r['texts']:6}  {r['who']:22}{r['median_ms']:9.2f}{r['p99_ms']:9.2f}"
              f"{r['tokens_s']:10.0f}{times:>9}  {r['worst_cosine']:.5f}")


def scaling(args, words):
    """Tokens a second with one thread and with two, 64 texts of 128 tokens: alternating rounds."""
    texts, ids = make_texts(words, 128, 64, np.random.default_rng(8))
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as two:
        servers = [Server(folder, "--embedder", str(args.model), "--engine-threads", n).start()
                   for folder, n in ((one, "1"), (two, "2"))]
        runs = [kith_embed(s.wire(timeout=120)) for s in servers]
        for run in runs:
            run(texts, ids)
        times = [[], []]
        for _ in range(args.rounds):
            for run, t in zip(runs, times):
                t.append(timed(lambda: run(texts, ids)))
        for s in servers:
            s.stop()
    print(f"one thread to two: {ratio(times[1], times[0]):.2f} times as fast")


def alone(contenders, words):
    """One short text at a time, its answer before the next, without a pause between them and after
    one that lets all threads fall asleep. In turns of many texts, with a rest before each turn."""
    rng = np.random.default_rng(9)
    turns, calls = 10, 20
    for pause in (0, 0.1):
        times = {name: [] for name in contenders}
        for _ in range(turns):
            texts = [make_texts(words, 12, 1, rng) for _ in range(calls + 1)]
            for name, run in contenders.items():
                time.sleep(REST_S)
                run(*texts[-1])
                for both in texts[:-1]:
                    time.sleep(pause)
                    start = time.perf_counter()
                    run(*both)
                    times[name].append(time.perf_counter() - start)
        for name, t in times.items():
            t.sort()
            print(f"one text of 12 tokens after a pause of {pause * 1e3:3.0f} ms: {name:24} "
                  f"p50 {t[len(t) // 2] * 1e3:.2f} ms, p99 {t[len(t) * 99 // 100] * 1e3:.2f} ms")


def plot(rows, path, title):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = list(dict.fromkeys(r["who"] for r in rows))
    labels = [f"{tokens} x {texts}" for tokens, texts in POINTS]
    figure, axis = pyplot.subplots(figsize=(9, 4.8))
    width = 0.8 / len(names)
    for i, name in enumerate(names):
        mine = [r for r in rows if r["who"] == name]
        x = np.arange(len(POINTS)) + (i - (len(names) - 1) / 2) * width
        cosine = min(r["worst_cosine"] for r in mine)
        axis.bar(x, [r["tokens_s"] for r in mine], width, color=COLOURS[i % len(COLOURS)],
                 label=f"{name} (worst cosine {cosine:.4f})")
    axis.set_xticks(np.arange(len(POINTS)), labels)
    axis.set_xlabel("tokens a text x texts a request")
    axis.set_ylabel("tokens a second")
    axis.set_title(title)
    axis.set_ylim(0, 1.35 * axis.get_ylim()[1])
    axis.legend(loc="upper left", ncols=2, fontsize="small")
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
    parser.add_argument("--f16", type=pathlib.Path,
                        default=MODELS / "all-MiniLM-L6-v2.f16.gguf", help="the one llama.cpp runs")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--peers", default="onnx,sentence-transformers,llama.cpp",
                        help="of these three; onnx is two and the measure of the vectors")
    parser.add_argument("--only", choices=["alone"], help="the times of one short text")
    parser.add_argument("--csv", type=pathlib.Path)
    parser.add_argument("--png", type=pathlib.Path)
    args = parser.parse_args()

    peers = open_peers(args)
    words = words_of(args.folder)
    with tempfile.TemporaryDirectory() as folder:
        server = Server(folder, "--embedder", str(args.model), "--engine-threads",
                        str(args.threads)).start()
        wire = server.wire(timeout=120)
        run = kith_embed(wire)
        if args.only == "alone":
            alone({"kith": run, **peers}, words)
            server.stop()
            return
        seconds, cosines = measure({"kith": run, **peers}, words, args.rounds)
        info = wire.cmd("INFO", "engine")
        kernels = dict(line.split(":", 1) for line in info.decode().splitlines() if ":" in line)
        title = (f"all-MiniLM-L6-v2, {args.threads} threads; kith {args.model.stem.split('.')[-1]}, "
                 f"{kernels['engine_precision']}, {kernels['engine_kernels']}")
        print(f"{title}; onnxruntime {embed_onnx.ort.__version__}; medians of {args.rounds} "
              "alternating rounds")
        rows = rows_of(seconds, cosines)
        show(rows)
        alone({"kith": run, **peers}, words)
        server.stop()
    scaling(args, words)
    if args.csv:
        with args.csv.open("w", newline="") as f:
            writer = csv.DictWriter(f, rows[0].keys())
            writer.writeheader()
            writer.writerows(rows)
    if args.png:
        plot(rows, args.png, title)


if __name__ == "__main__":
    main()
