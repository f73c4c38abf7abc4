"""Pictures with captions or labels, opened by what is named: a folder, a table, a split of TFDS, a built-in set.

photos/               every picture in it, in linked folders too. In subfolders, their names are the classes; captions
                      lie in a metadata.csv or .jsonl beside the pictures, or in a .txt of the same name as each
photo.jpg             one picture
captions.csv          a table with a row per caption, and a header: `image`, and `caption` or `label` or both, or what
                      others call them. Commas, tabs, semicolons or | (.csv, .tsv, .txt); a JSON object per line
                      (.jsonl); COCO's captions_*.json, or a JSON list of objects. Pictures lie beside the table
tfds:cifar10:test     a split that is prepared already, read without TensorFlow
shapes                a built-in set, prepared in `data_dir` on first use, also `fashion_mnist`; its training split, or
                      another as in shapes:test. A file or folder of that name goes before it

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
    """The pictures of `source`, as the module says.

    Args:
        source: a folder, a picture, a table, tfds:NAME:SPLIT, or a built-in set: NAME or NAME:SPLIT.
        data_dir: where TFDS keeps its data, and where a built-in set is prepared; None: where TFDS usually does.
        without_pictures: whether a table that has nothing but captions will do; the result has captions only.

    Raises:
        UserError: there is nothing there, it is of another kind, a row is incomplete or a picture of a table missing;
            or it needs TFDS, which is not installed.
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
