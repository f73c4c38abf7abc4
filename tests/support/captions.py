"""A small table of captioned pictures for tests of training."""

from PIL import Image


def write_captions(directory, red="red"):
    """Writes 9 pictures of one colour each, a table of their captions, and a WordPiece vocabulary.

    `red` is the word for the first colour. Returns (path of the table, path of the vocabulary, captions).
    """
    directory.mkdir(parents=True, exist_ok=True)
    words = (red, "green", "blue")
    (directory / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "square", *words]) + "\n")
    captions = [f"a {words[i % 3]} square" for i in range(9)]
    for i in range(9):
        colour = tuple(80 + 20 * i if channel == i % 3 else 0 for channel in range(3))
        Image.new("RGB", (40, 32), colour).save(directory / f"{i}.png")
    rows = [f"{i}.png,{caption}" for i, caption in enumerate(captions)]
    (directory / "captions.csv").write_text("\n".join(["image,caption", *rows]) + "\n")
    return directory / "captions.csv", directory / "vocab.txt", captions
