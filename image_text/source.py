"""Many pictures by name, with captions and labels where there are some. numpy and Pillow only; no model.

photos/               every picture in it, in linked folders too. In subfolders, their names are the classes; captions
                      lie in a metadata.csv or .jsonl beside the pictures, or in a .txt of the same name as each
photo.jpg             one picture
captions.csv          a table with a row per caption, and a header: `image`, and `caption` or `label` or both, or what
                      others call them. Commas, tabs, semicolons or | (.csv, .tsv, .txt); a JSON object per line
                      (.jsonl); COCO's captions_*.json, or a JSON list of objects. Pictures lie beside the table
tfds:cifar10:test     a split that is prepared already, read without TensorFlow
"""

from pathlib import Path

from image_text.base import Files, Source, in_words
from image_text.columns import ADDRESS
from image_text.errors import UserError
from image_text.folder import read_folder
from image_text.kinds import refuse, suffixes_of_pictures
from image_text.table import TABLES, read_table

__all__ = ["Source", "open_source"]


def open_source(source: str, *, data_dir: str | Path | None = None, without_pictures: bool = False) -> Source:
    """The pictures of `source`, as the module says.

    Args:
        source: a folder, a picture, a table, or tfds:NAME:SPLIT.
        data_dir: where TFDS keeps its data; None: where it usually does.
        without_pictures: whether a table that has nothing but captions will do; its listing has captions only.

    Raises:
        UserError: there is nothing there, it is of another kind, a row is incomplete or a picture of a table missing.
    """
    if source.startswith("tfds:"):
        from image_text.tfds import read_tfds

        return read_tfds(source, data_dir)
    if not source.strip():
        raise UserError("the source is empty: name a folder, a table or tfds:NAME:SPLIT")
    if ADDRESS.match(source):
        raise UserError(f"{source} is an address, not a file: download the pictures first")
    path = Path(source)
    if path.is_dir():
        return read_folder(path)
    if not path.is_file():
        raise UserError(f"{source}: there is no such file or folder")
    if path.suffix.lower() in suffixes_of_pictures():
        return Source([in_words(path.name)], Files(path.parent, [path.name]))
    if path.suffix.lower() in TABLES:
        return read_table(path, without_pictures=without_pictures)
    raise refuse(path)
