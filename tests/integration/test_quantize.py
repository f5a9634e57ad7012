"""kith-quantize, and the engine on what it makes: the layouts of the blocks, stated here a second
time; the same bytes from the same input; what is refused; and the vectors of the real model in
every kind of file beside those of its float weights."""

import json
import pathlib
import struct
import subprocess

import numpy as np
import pytest

from kithtest import BIN, F16_MODEL, F32_MODEL, PATIENCE, Q8_MODEL, ROOT, VARIANT, scaled

QUANTIZE = BIN / "kith-quantize"

# --- the layouts, from their definition -------------------------------------------------------------
# Arithmetic is float32, one operation after the other, so that equal means equal in every bit.

IQ4_NL = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113]
f32 = np.float32


def half(b, at):
    return f32(np.frombuffer(b, "<f2", 1, at)[0])


def nibbles(b, at, n=16):
    raw = np.frombuffer(b, "u1", n, at)
    return np.concatenate([raw & 15, raw >> 4]).astype(int)


def fifth_bits(b, at):
    word = struct.unpack_from("<I", b, at)[0]
    return np.array([word >> i & 1 for i in range(32)]) * 16


def k_scales(b, at):
    s = b[at : at + 12]
    pairs = [(s[j] & 63, s[j + 4] & 63) for j in range(4)]
    for j in range(4, 8):
        scale = s[j + 4] & 15 | s[j - 4] >> 6 << 4
        pairs.append((scale, s[j + 4] >> 4 | s[j] >> 6 << 4))
    return pairs


def q4_0(b):
    return half(b, 0) * (nibbles(b, 2) - 8).astype(f32)


def q4_1(b):
    return half(b, 0) * nibbles(b, 4).astype(f32) + half(b, 2)


def q5_0(b):
    return half(b, 0) * (nibbles(b, 6) + fifth_bits(b, 2) - 16).astype(f32)


def q5_1(b):
    return half(b, 0) * (nibbles(b, 8) + fifth_bits(b, 4)).astype(f32) + half(b, 2)


def q8_0(b):
    return half(b, 0) * np.frombuffer(b, "i1", 32, 2).astype(f32)


def iq4_nl(b):
    return half(b, 0) * np.array(IQ4_NL, f32)[nibbles(b, 2)]


def q4_k(b, codes=None):
    if codes is None:
        codes = np.concatenate([nibbles(b, 16 + 32 * g, 32) for g in range(4)])
    out = []
    for j, (s, m) in enumerate(k_scales(b, 4)):
        q = codes[32 * j : 32 * j + 32].astype(f32)
        out.append((half(b, 0) * f32(s)) * q - half(b, 2) * f32(m))
    return np.concatenate(out)


def q5_k(b):
    high = np.frombuffer(b, "u1", 32, 16)
    codes = []
    for g in range(4):
        codes.append(nibbles(b, 48 + 32 * g, 32) + np.concatenate([high >> 2 * g & 1, high >> 2 * g + 1 & 1]) * 16)
    return q4_k(b, np.concatenate(codes))


def q6_k(b):
    out = np.zeros(256, f32)
    d = half(b, 208)
    for h in range(2):
        for l in range(32):
            low, low2, high = b[64 * h + l], b[64 * h + 32 + l], b[128 + 32 * h + l]
            codes = [
                low & 15 | (high & 3) << 4,
                low2 & 15 | (high >> 2 & 3) << 4,
                low >> 4 | (high >> 4 & 3) << 4,
                low2 >> 4 | (high >> 6 & 3) << 4,
            ]
            for k, q in enumerate(codes):
                s = struct.unpack_from("b", b, 192 + 8 * h + l // 16 + 2 * k)[0]
                out[128 * h + 32 * k + l] = (d * f32(s)) * f32(q - 32)
    return out


# name: id, elements, bytes, decoder, offsets of the halves
TYPES = {
    "q4_0": (2, 32, 18, q4_0, [0]),
    "q4_1": (3, 32, 20, q4_1, [0, 2]),
    "q5_0": (6, 32, 22, q5_0, [0]),
    "q5_1": (7, 32, 24, q5_1, [0, 2]),
    "q8_0": (8, 32, 34, q8_0, [0]),
    "q4_k": (12, 256, 144, q4_k, [0, 2]),
    "q5_k": (13, 256, 176, q5_k, [0, 2]),
    "q6_k": (14, 256, 210, q6_k, [208]),
    "iq4_nl": (20, 32, 18, iq4_nl, [0]),
}
FLOATS = {"f32": 0, "f16": 1, "bf16": 30}


# --- files ------------------------------------------------------------------------------------------


def text(s):
    return struct.pack("<Q", len(s)) + s.encode()


def write_gguf(path, tensors, keys=b"", n_keys=0, alignment=32):
    """tensors: (name, type id, ne, bytes)"""
    infos, data = b"", b""
    for name, kind, ne, raw in tensors:
        infos += text(name) + struct.pack("<I", len(ne)) + struct.pack(f"<{len(ne)}Q", *ne)
        infos += struct.pack("<IQ", kind, len(data))
        data += raw + bytes(-len(raw) % alignment)
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), n_keys) + keys + infos
    path.write_bytes(head + bytes(-len(head) % alignment) + data)
    return path


SCALARS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}


def read_gguf(path):
    """Its keys, name to (type, bytes of the value), and tensors, name to (id, ne, bytes to the
    file's end), both in the file's order."""
    b = path.read_bytes()
    n_tensors, n_keys = struct.unpack_from("<QQ", b, 8)
    at = 24

    def string():
        nonlocal at
        n = struct.unpack_from("<Q", b, at)[0]
        at += 8 + n
        return b[at - n : at].decode()

    keys, infos = {}, []
    for _ in range(n_keys):
        name = string()
        kind, start = struct.unpack_from("<I", b, at)[0], at + 4
        at += 4
        if kind == 8:
            string()
        elif kind == 9:
            element, n = struct.unpack_from("<IQ", b, at)
            at += 12
            for _ in range(n if element == 8 else 0):
                string()
            at += 0 if element == 8 else n * SCALARS[element]
        else:
            at += SCALARS[kind]
        keys[name] = (kind, b[start:at])
    for _ in range(n_tensors):
        name = string()
        dims = struct.unpack_from("<I", b, at)[0]
        ne = struct.unpack_from(f"<{dims}Q", b, at + 4)
        kind, offset = struct.unpack_from("<IQ", b, at + 4 + 8 * dims)
        at += 16 + 8 * dims
        infos.append((name, kind, ne, offset))
    alignment = struct.unpack("<I", keys["general.alignment"][1])[0] if "general.alignment" in keys else 32
    start = at + -at % alignment
    assert all(offset % alignment == 0 for *_, offset in infos)
    return keys, {name: (kind, ne, b[start + offset :]) for name, kind, ne, offset in infos}


def quantize(src, out, kind, *options, check=True):
    done = subprocess.run(
        [QUANTIZE, src, out, "--type", kind, *options], capture_output=True, text=True, timeout=60 * PATIENCE
    )
    assert not check or done.returncode == 0, done
    return done


def refused(src, out, kind, *options):
    done = quantize(src, out, kind, *options, check=False)
    assert done.returncode in (1, 2) and done.stderr.startswith("kith-quantize: "), done
    assert not list(pathlib.Path(out).parent.glob("*.tmp-*")), "nothing is left behind"
    return done.stderr


# --- blocks -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TYPES)
def test_random_blocks_decode_as_the_layout_says(tmp_path, name):
    kind, elements, size, decode, halves = TYPES[name]
    rng = np.random.default_rng(kind)
    n = 40
    blocks = []
    for _ in range(n):
        b = bytearray(rng.bytes(size))
        for at in halves:  # any bits would make infinities, too
            b[at : at + 2] = np.float16(rng.normal() * 2.0 ** rng.integers(-12, 4)).tobytes()
        blocks.append(bytes(b))
    src = write_gguf(tmp_path / "in.gguf", [("w.weight", kind, (elements * 4, n // 4), b"".join(blocks))])
    quantize(src, tmp_path / "out.gguf", "f32", "--requantize")
    got_kind, ne, raw = read_gguf(tmp_path / "out.gguf")[1]["w.weight"]
    assert got_kind == 0 and ne == (elements * 4, n // 4)
    want = np.concatenate([decode(b) for b in blocks])
    got = np.frombuffer(raw, "<f4", want.size)
    assert np.array_equal(got, want), np.flatnonzero(got != want)[:5]


@pytest.mark.parametrize("name", TYPES)
def test_quantized_values_are_near(tmp_path, name):
    """The encoder's blocks, read by the second statement of the layout."""
    kind, elements, size, decode, _ = TYPES[name]
    x = np.random.default_rng(5).normal(size=(8, 512)).astype(f32)
    src = write_gguf(tmp_path / "in.gguf", [("w.weight", 0, (512, 8), x.tobytes())])
    done = quantize(src, tmp_path / "out.gguf", name)
    got_kind, _, raw = read_gguf(tmp_path / "out.gguf")[1]["w.weight"]
    assert got_kind == kind
    y = np.concatenate([decode(raw[i * size : (i + 1) * size]) for i in range(x.size // elements)])
    bits = int(name[2 if name.startswith("iq") else 1])
    error = np.sqrt(np.mean((y - x.ravel()) ** 2) / np.mean(x**2))
    assert error < {4: 0.12, 5: 0.06, 6: 0.03, 8: 0.008}[bits], error
    row = next(line.split() for line in done.stdout.splitlines() if line.startswith(name.upper()))
    assert row[1:4] == ["1", str(x.nbytes), str(x.size // elements * size)]
    assert abs(float(row[6]) - error) < 1e-4, "the table says what the error is"


def test_floats_of_each_kind(tmp_path):
    x = np.random.default_rng(6).normal(size=(2, 64)).astype(f32)
    src = write_gguf(tmp_path / "in.gguf", [("w.weight", 0, (64, 2), x.tobytes())])
    quantize(src, tmp_path / "f16", "f16")
    assert read_gguf(tmp_path / "f16")[1]["w.weight"][2][:256] == x.astype("<f2").tobytes()
    quantize(src, tmp_path / "bf16", "bf16")
    raw = np.frombuffer(read_gguf(tmp_path / "bf16")[1]["w.weight"][2], "<u2", 128).astype("<u4") << 16
    assert np.allclose(raw.view("<f4"), x.ravel(), rtol=2**-8)
    quantize(tmp_path / "bf16", tmp_path / "f32", "f32")
    assert read_gguf(tmp_path / "f32")[1]["w.weight"][2][:512] == raw.tobytes()


# --- the file ---------------------------------------------------------------------------------------


def test_metadata_names_shapes_and_padding(tmp_path):
    """Everything but two keys is the input's, the alignment and a third dimension too."""
    keys = text("general.alignment") + struct.pack("<II", 4, 128)
    keys += text("z") + struct.pack("<IIQ", 9, 8, 2) + text("two") + text("strings")
    keys += text("general.file_type") + struct.pack("<II", 4, 0)
    keys += text("a") + struct.pack("<Id", 12, 1.5)
    x = np.arange(64 * 3 * 2, dtype=f32)
    tensors = [
        ("blk.0.experts.weight", 0, (64, 3, 2), x.tobytes()),
        ("odd.weight", 0, (33, 2), x[:66].tobytes()),
        ("some.bias", 1, (5,), np.arange(5, dtype="<f2").tobytes()),
        ("position_embd.weight", 0, (32, 2), x[:64].tobytes()),
        ("blk.0.attn_norm.weight", 0, (32, 1), x[:32].tobytes()),
    ]
    src = write_gguf(tmp_path / "in.gguf", tensors, keys, 4, alignment=128)
    quantize(src, tmp_path / "out.gguf", "q4_k")
    old, new = read_gguf(src), read_gguf(tmp_path / "out.gguf")
    assert list(new[0]) == [*old[0], "general.quantization_version"]
    changed = {k for k in old[0] if old[0][k] != new[0][k]}
    assert changed == {"general.file_type"}
    assert list(new[1]) == list(old[1])
    assert [t[:2] for t in new[1].values()] == [
        (6, (64, 3, 2)),  # no multiple of 256: Q5_0
        (1, (33, 2)),  # none of 32 either: F16
        (0, (5,)),
        (0, (32, 2)),
        (0, (32, 1)),
    ]
    assert new[1]["some.bias"][2][:20] == np.arange(5, dtype="<f4").tobytes()
    again = quantize(tmp_path / "out.gguf", tmp_path / "again.gguf", "q4_k", "--requantize")
    assert "Q5_0" in again.stdout


def test_mixes_choose_as_llama_cpp_does(tmp_path):
    zeros = np.zeros(256 * 2, f32).tobytes()
    parts = ["attn_v", "ffn_down", "attn_qkv", "attn_q"]
    tensors = [(f"blk.{i}.{p}.weight", 0, (256, 2), zeros) for i in range(16) for p in parts]
    tensors.append(("token_embd.weight", 0, (256, 2), zeros))
    src = write_gguf(tmp_path / "in.gguf", tensors)

    def kinds(mix):
        quantize(src, tmp_path / "out.gguf", mix)
        return {name: t[0] for name, t in read_gguf(tmp_path / "out.gguf")[1].items()}

    more = {0, 1, 4, 7, 10, 13, 14, 15}  # of 16 layers: the first two, the last two, every third
    for mix, base, qkv in (("q4_k_m", 12, 13), ("q5_k_m", 13, 14)):
        for name, kind in kinds(mix).items():
            layer = int(name.split(".")[1]) if name.startswith("blk") else None
            if layer is None:
                assert kind == 14
            elif "qkv" in name:
                assert kind == qkv
            else:
                raised = layer in more and "attn_q." not in name
                assert kind == (14 if raised else base), (mix, name)
    for name, kind in kinds("q4_k_s").items():
        layer = int(name.split(".")[1]) if name.startswith("blk") else 99
        raised = "attn_v" in name and layer < 4 or "ffn_down" in name and layer < 2
        assert kind == (14 if layer == 99 else 13 if raised else 12), name


def test_what_is_refused(tmp_path):
    x = np.ones((2, 32), f32)
    src = write_gguf(tmp_path / "in.gguf", [("w.weight", 0, (32, 2), x.tobytes())])
    out = tmp_path / "out.gguf"
    quantize(src, tmp_path / "q.gguf", "q4_0")
    assert "'w.weight' is Q4_0 already" in refused(tmp_path / "q.gguf", out, "q8_0")
    (tmp_path / "link.gguf").symlink_to(src)
    for same in (src, tmp_path / "link.gguf"):
        assert "same file" in refused(src, same, "q8_0")
    assert "--type is 'q3_k'; f32, f16" in refused(src, out, "q3_k")
    assert "--threads takes" in refused(src, out, "q8_0", "--threads", "0")
    assert "No such file" in refused(tmp_path / "none.gguf", out, "q8_0")
    assert "cannot create" in refused(src, tmp_path / "none" / "out.gguf", "q8_0")
    for bad, why in ((np.nan, "not finite"), (np.inf, "not finite"), (1e6, "above 65504")):
        x[1, 5] = bad
        write_gguf(src, [("w.weight", 0, (32, 2), x.tobytes())])
        message = refused(src, out, "q4_0")
        assert "'w.weight'" in message and why in message
    assert quantize(src, out, "bf16").returncode == 0, "a million is no trouble for BF16"
    write_gguf(src, [("w.weight", 10, (256, 1), bytes(84))])
    out.unlink()
    assert "type 10 (Q2_K) is not computed here" in refused(src, out, "q8_0")
    assert not out.exists()


# --- the real model ---------------------------------------------------------------------------------

GOLDEN_STEP = 5  # every fifth of the 300 texts

# The least and the mean cosine to the float weights, of those texts; measured values less a margin
# of half the distance to 1, since the last bits differ with the processor's instructions.
NEARNESS = {
    "q8_0": (0.9991, 0.9995),
    "q6_k": (0.9962, 0.9991),
    "q5_0": (0.947, 0.984),
    "q4_k_m": (0.939, 0.984),
    "q4_0": (0.74, 0.941),
}


@pytest.fixture(scope="module")
def golden():
    lines = (ROOT / "tests/golden/embeddings.jsonl").read_text().splitlines()[1:]
    vectors = np.fromfile(ROOT / "tests/golden/embeddings.f16", "<f2").astype(f32).reshape(len(lines), -1)
    return [json.loads(line)["text"] for line in lines][::GOLDEN_STEP], vectors[::GOLDEN_STEP]


def test_same_bytes_whoever_makes_them(tmp_path):
    """Twice, with other numbers of threads; and Q8_0 as kith-convert makes it of the same weights."""
    for kind in ("q4_k_m", "iq4_nl")[: scaled(2, 1)]:
        quantize(F16_MODEL, tmp_path / "a", kind)
        quantize(F16_MODEL, tmp_path / "b", kind, "--threads", "3")
        assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    quantize(F32_MODEL, tmp_path / "q8", "q8_0")
    assert (tmp_path / "q8").read_bytes() == Q8_MODEL.read_bytes()


@pytest.mark.skipif(VARIANT == "tsan", reason="an engine under TSan takes seconds for each text")
@pytest.mark.parametrize("kind", NEARNESS)
def test_vectors_of_the_real_model(tmp_path, make_server, golden, kind):
    texts, want = golden
    path = tmp_path / f"{kind}.gguf"
    quantize(F16_MODEL, path, kind)
    s = make_server("--embedder", path, "--engine-timeout-ms", 600_000)
    s.wait_engine()
    info = s.info("engine")
    assert info["engine_precision"] == "int8"
    assert info["engine_model_type"] == {"q4_k_m": "Q5_0 mixed", "q6_k": "Q8_0 mixed"}.get(kind, kind.upper()), info
    with s.wire(timeout=60) as w:
        cosines = []
        for t, v in zip(texts, want):
            (blob,) = w.cmd("EMBED", "FORMAT", "FP32", t)
            u = np.frombuffer(blob, f32)
            cosines.append(float(u @ v / np.linalg.norm(u) / np.linalg.norm(v)))
    least, mean = NEARNESS[kind]
    print(f"{kind}: worst {min(cosines):.6f}, mean {np.mean(cosines):.6f}, {path.stat().st_size} bytes")
    assert min(cosines) >= least and np.mean(cosines) >= mean, (min(cosines), np.mean(cosines))
