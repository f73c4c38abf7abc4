"""Opens image datasets with captions or labels by name: a folder, a table, a split of TFDS, or a built-in set.

photos/               all pictures in a folder and its subfolders, links included. Names of subfolders are classes;
                      captions are in a metadata.csv or .jsonl beside the pictures, or in a .txt per picture
photo.jpg             one picture
captions.csv          a table with one row per caption, and a header with the columns `image`, and `caption` or `label`
                      or both (or common synonyms). Separated by commas, tabs, semicolons or | (.csv, .tsv, .txt); one
                      JSON object per line (.jsonl); COCO's captions_*.json; or a JSON list of objects. Pictures lie
                      beside the table
tfds:cifar10:test     a split that TFDS has already prepared, read without TensorFlow
shapes                a built-in set, `shapes` or `fashion_mnist`, prepared in `data_dir` on first use: its training
                      split, or another one (shapes:test). A file or folder of this name takes precedence

TFDS is optional: it is imported when one of the last two is opened.
"""

from collections.abc import Callable
from pathlib import Path

from image_text.base import Files, Source, in_words
from image_text.columns import ADDRESS
from image_text.errors import UserError
from image_text.fashion_mnist import open_fashion_mnist
from image_text.folder import read_folder
from image_text.kinds import refuse, suffixes_of_pictures
from image_text.shapes import open_shapes
from image_text.table import TABLES, read_table
from image_text.tfds import read_tfds, usual_data_dir

__all__ = ["BUILT_IN", "Source", "open_source"]

BUILT_IN: dict[str, Callable[..., Source]] = {"shapes": open_shapes, "fashion_mnist": open_fashion_mnist}


def open_source(source: str, *, data_dir: str | Path | None = None, without_pictures: bool = False) -> Source:
    """Opens an image dataset by name; the docstring of this module describes the kinds.

    Args:
        source: a folder, a picture, a table, tfds:NAME:SPLIT, or a built-in set (NAME or NAME:SPLIT).
        data_dir: the directory of TFDS's data and of built-in sets; None: TFDS's default directory.
        without_pictures: whether a table with only a column of captions is accepted.

    Raises:
        UserError: the source does not exist or is of another kind; a row of a table is not complete, or its picture
            does not exist; or the source needs TFDS, which is not installed.
    """
    if source.startswith("tfds:"):
        return read_tfds(source, data_dir)
    if not source.strip():
        raise UserError("the source is empty: name a folder, a table or tfds:NAME:SPLIT")
    path = Path(source)
    name, _, split = source.partition(":")
    if name in BUILT_IN and not path.exists():
        return BUILT_IN[name](split or "train", data_dir=data_dir or usual_data_dir(f"the data set {name}"))
    if ADDRESS.match(source):
        raise UserError(f"{source} is an address, not a file: download the pictures first")
    if path.is_dir():
        return read_folder(path)
    if not path.is_file():
        raise UserError(f"{source}: there is no such file or folder")
    if path.suffix.lower() in suffixes_of_pictures():
        return Source([in_words(path.name)], Files(path.parent, [path.name]))
    if path.suffix.lower() in TABLES:
        return read_table(path, without_pictures=without_pictures)
    raise refuse(path)
