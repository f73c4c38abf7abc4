"""Recognises the kind of a weights file by its first bytes, and names many kinds that are not supported."""

from pathlib import Path

from clip_jax.errors import UserError

LFS_HEADER = b"version https://git-lfs"
LOOKED_AT = 512  # bytes at the start of the file

SAFETENSORS, ZIP, PICKLE, MSGPACK = "safetensors", "zip", "pickle", "msgpack"

# Kinds that are not supported: (first bytes, what the file is, what to do).
SAVED_AGAIN = "save the weights as safetensors"
OTHERS = (
    (b"GGUF", "a GGUF file (llama.cpp, stable-diffusion.cpp)", "take the original weights, as safetensors"),
    (b"ggml", "a GGML file (clip.cpp)", "take the original weights, as safetensors"),
    (b"lmgg", "a GGML file (clip.cpp)", "take the original weights, as safetensors"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file (Keras, TensorFlow)", f"take the weights of torch or Flax, or {SAVED_AGAIN}"),
    (b"\x1f\x8b", "compressed with gzip", "unpack it first"),
    (b"BZh", "compressed with bzip2", "unpack it first"),
    (b"\xfd7zXZ\0", "compressed with xz", "unpack it first"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd", "unpack it first"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it first"),
    (b"Rar!", "a RAR archive", "unpack it first"),
    (b"PK\x05\x06", "an empty zip archive", "download it again"),
    (b"\x93NUMPY", "one numpy array (.npy)", "save all weights in one .npz (numpy.savez), by their names"),
    (b"\x89PNG", "a picture (PNG)", "give the weights"),
    (b"\xff\xd8\xff", "a picture (JPEG)", "give the weights"),
    (b"%PDF", "a PDF", "give the weights"),
    (b"ARROW1", "an Arrow table", "give the weights"),
    (b"PAR1", "a Parquet table", "give the weights"),
    (b"SQLite format 3", "a SQLite database", "give the weights"),
)


def kind_of(path: Path) -> str:
    """The kind of a weights file: `SAFETENSORS`, `ZIP`, `PICKLE` or `MSGPACK`, whatever its suffix.

    A file that is not recognised counts as `SAFETENSORS`, whose reader reports what is wrong.

    Raises:
        UserError: the file is of another kind, which the error names.
        OSError: the file cannot be opened.
    """
    with open(path, "rb") as file:
        start = file.read(LOOKED_AT)
    if not start:
        raise _not_weights(path, "it is empty (0 bytes)", "download it again")
    if start.startswith(LFS_HEADER):
        raise UserError(f"{path} is a Git LFS pointer, not the weights: run `git lfs pull`")
    if start.startswith(b"PK\x03\x04"):
        return ZIP
    for magic, what, action in OTHERS:
        if start.startswith(magic):
            raise _not_weights(path, f"it is {what}", action)
    if start[257:262] == b"ustar":
        raise _not_weights(path, "it is a tar archive", "unpack it first")
    if start[4:8] == b"TFL3":
        raise _not_weights(path, "it is a TensorFlow Lite model", SAVED_AGAIN)
    if (text := _text(start)) is not None:
        raise _not_weights(path, f"it is {text}", "download the weights again, and look what came instead")
    if start[8:9] == b"{":  # the JSON header of safetensors, after 8 bytes of length
        return SAFETENSORS
    if start[:1] == b"\x80" and start[1:2] in b"\x01\x02\x03\x04\x05" and len(start) > 1:
        return PICKLE
    if _is_onnx(path, start):
        raise _not_weights(path, "it is an ONNX model", f"take the model it was made of, or {SAVED_AGAIN}")
    if _is_msgpack(path, start):
        return MSGPACK
    return SAFETENSORS  # perhaps one with a damaged header: its reader reports that


def _not_weights(path: Path, what: str, action: str) -> UserError:
    return UserError(f"cannot read weights from {path}: {what}: {action}")


def _text(start: bytes) -> str | None:
    """The kind of text that a file begins with, for an error; None for bytes that are not text."""
    try:
        text = start.decode("utf-8", errors="strict" if len(start) < LOOKED_AT else "ignore")
    except UnicodeDecodeError:
        return None
    if len(text.encode()) < len(start) - 3 or not all(c.isprintable() or c in "\n\r\t\f\ufeff" for c in text):
        return None
    text = text.lstrip("\ufeff \n\r\t").lower()
    if text.startswith(("<!doctype html", "<html", "<head", "<body")):
        return "an HTML page"
    if text.startswith("<"):
        return "an XML or HTML page"
    if text.startswith(("{", "[")):
        return "JSON text"
    return "plain text"


def _is_onnx(path: Path, start: bytes) -> bool:
    """Whether a file is a protobuf as ONNX writes it: first a small `ir_version`, then `producer_name`."""
    return path.suffix == ".onnx" or (start[:1] == b"\x08" and start[2:3] == b"\x12" and start[1] < 32)


def _is_msgpack(path: Path, start: bytes) -> bool:
    """Whether a file is a MessagePack map whose first key is a text, as Flax writes it."""
    short = 0x81 <= start[0] <= 0x8F and (0xA0 <= (start[1:2] or b"\0")[0] <= 0xBF or start[1:2] == b"\xd9")
    return path.suffix == ".msgpack" or short or start[:1] in (b"\xde", b"\xdf")
