"""faiss and usearch as peers of bench/vsets.py, told by lines as bench/peer_hnswlib.cpp is.

usage: vsets_peer.py faiss|usearch BASE QUERIES DIM N M EF_CONSTRUCTION

Queries are handed over all at once and searched by one thread, so that Python costs them nothing;
a median of single queries is therefore not told.
"""

import json
import sys
import time

import numpy as np

K = 10


def unit(x):
    norm = np.linalg.norm(x, axis=1, keepdims=True)
    return np.ascontiguousarray(x / np.where(norm > 0, norm, 1), np.float32)


class Faiss:
    def __init__(self, dim, m, ef_construction):
        import faiss

        faiss.omp_set_num_threads(1)
        self.index = faiss.IndexHNSWFlat(dim, m, faiss.METRIC_INNER_PRODUCT)
        self.index.hnsw.efConstruction = ef_construction

    def add(self, first, rows):
        self.index.add(rows)

    def search(self, queries, ef):
        self.index.hnsw.efSearch = ef
        return self.index.search(queries, K)[1]


class Usearch:
    def __init__(self, dim, m, ef_construction):
        from usearch.index import Index

        self.index = Index(ndim=dim, metric="cos", dtype="f32", connectivity=m,
                           expansion_add=ef_construction)

    def add(self, first, rows):
        self.index.add(np.arange(first, first + len(rows), dtype=np.uint64), rows, threads=1)

    def search(self, queries, ef):
        self.index.expansion_search = ef
        return self.index.search(queries, K, threads=1).keys


def build(index, base, n):
    seconds = 0.0
    step = 1000
    for at in range(0, n, step):
        rows = unit(base[at:min(at + step, n)])
        start = time.perf_counter()
        index.add(at, rows)
        seconds += time.perf_counter() - start
        if sys.stderr.isatty() and seconds > 1:
            print(f"\r  {sys.argv[1]} builds {100 * at / n:3.0f} % {at / seconds:6.0f}/s "
                  f"{seconds:4.0f} s\033[K", end="", file=sys.stderr, flush=True)
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr, flush=True)
    return {"n": n, "seconds": seconds}


def search(index, queries, ef, rounds, path):
    start = time.perf_counter()
    for _ in range(rounds):
        found = index.search(queries, ef)
    seconds = time.perf_counter() - start
    np.asarray(found).astype(np.uint32).tofile(path)
    n = rounds * len(queries)
    return {"queries": n, "seconds": seconds, "rate": n / seconds, "p50_us": None, "p99_us": None}


def main():
    kind, base, queries, *numbers = sys.argv[1:]
    dim, n, m, ef_construction = map(int, numbers)
    base = np.memmap(base, np.float32, "r").reshape(-1, dim)
    queries = unit(np.fromfile(queries, np.float32).reshape(-1, dim))
    index = {"faiss": Faiss, "usearch": Usearch}[kind](dim, m, ef_construction)
    for line in sys.stdin:
        word, *rest = line.split()
        if word == "build":
            out = build(index, base, n)
        else:
            out = search(index, queries, int(rest[0]), int(rest[1]), rest[2])
        print(json.dumps(out), flush=True)


if __name__ == "__main__":
    main()
