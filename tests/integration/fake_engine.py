#!/usr/bin/env python3
"""An engine for tests of what real models at hand do not have: rerankers, shorter vectors, prompts,
stated sizes, loads that take their time.

Its model is a small JSON file; for any other file it becomes the real kith-engine (of KITH_ENGINE).
Speaks protocol/engine_wire.md. A vector tells which text, role and model it is of (vector_of); a
score is how many words of the query the document has.

  {"name": .., "dim": 8, ...}   what READY says; "hash" is made of the file's bytes
  "wait": FILE                  READY comes when FILE is there
  "fail": TEXT                  FAIL TEXT instead
  "hold": FILE                  answers come only while FILE is not there
"""

import hashlib
import json
import os
import pathlib
import socket
import struct
import sys
import time

DEFAULTS = {
    "name": "fake", "pooling": "mean", "arch": "fake", "type": "F32", "precision": "f32",
    "kernels": "none", "context": 512, "threads": 1,
}


def vector_of(text, role, model_hash, dim):
    """dim numbers of a vector of length 1."""
    seed = hashlib.sha256(b"%s|%s|%s" % (text, role.encode(), model_hash.encode())).digest()
    raw = [(seed[i % 32] - 127.5 + i) / 128 for i in range(dim)]
    length = sum(x * x for x in raw) ** 0.5
    return [x / length for x in raw]


def score_of(query, document):
    return float(len(set(query.split()) & set(document.split()))) - 1.5


def main():
    options = dict(zip(sys.argv[1::2], sys.argv[2::2]))
    path = pathlib.Path(options["--model"])
    try:
        data = path.read_bytes()
        model = json.loads(data) if data[:1] == b"{" else None
    except OSError:
        model = None
    if model is None:
        os.execv(os.environ["KITH_ENGINE"], ["kith-engine"] + sys.argv[1:])
    link = socket.socket(fileno=3)

    def say(*words):
        words = [w if isinstance(w, bytes) else str(w).encode() for w in words]
        out = b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(w), w) for w in words)
        link.sendall(out)

    def wait(there, name):
        while name and os.path.exists(name) != there:
            time.sleep(0.002)

    wait_for, hold = model.pop("wait", None), model.pop("hold", None)
    wait(True, wait_for)
    if "fail" in model:
        say("FAIL", model["fail"])
        sys.exit(2)
    ready = {**DEFAULTS, **model, "hash": hashlib.md5(data).hexdigest()}
    dim = int(ready.get("dim", 0))
    say("READY", *[w for pair in ready.items() for w in pair])
    stream = link.makefile("rb")
    batches = texts = 0
    while line := stream.readline():
        words = []
        for _ in range(int(line[1:])):
            words.append(stream.read(int(stream.readline()[1:]) + 2)[:-2])
        if words[0] == b"PING":
            say("PONG", words[1], 0, batches, texts, texts)
            continue
        wait(False, hold)
        batches, texts = batches + 1, texts + len(words) - 3
        role = "".join(c for c in words[2].decode() if c in "qd")
        if words[0] == b"EMBED":
            vectors = [x for t in words[3:] for x in vector_of(t, role, ready["hash"], dim)]
            blob = struct.pack(f"<{len(vectors)}f", *vectors)
            say("VECTORS", words[1], len(words) - 3, dim, len(words) - 3, blob)
        else:
            scores = [score_of(words[3], d) for d in words[4:]]
            say("SCORES", words[1], len(scores), 10, struct.pack(f"<{len(scores)}f", *scores))


if __name__ == "__main__":
    main()
