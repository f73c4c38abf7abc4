"""Classes of a command line and labels of pictures: by name or by index, never by order."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from clip_jax import UserError
from clip_jax.uses.classes import class_names, same_classes, templates
from image_text.base import Files, Source, labelled


def labels_of(*words):
    labels, classes = labelled(words)
    return Source([], Files(Path(), []), labels=labels, classes=classes)


@pytest.mark.parametrize(
    ("words", "classes", "expected"),
    [
        (["dog", "cat", "dog"], ["cat", "dog"], [1, 0, 1]),
        (["dog", "cat", "dog"], ["dog", "emu", "cat"], [0, 2, 0]),
        (["cat", "dog"], ["Dog", "Cat"], [1, 0]),
        (["red_fox", "Red  Fox"], ["red fox"], [0, 0]),
        (["10", "2", "0", "1"], [f"class {i}" for i in range(11)], [10, 2, 0, 1]),
        (["10.0", "2.0"], [f"class {i}" for i in range(11)], [10, 2]),
        (["10", "2"], ["2", "10"], [1, 0]),
        (["cat"], ["cat", "dog", "cat"], [0]),
    ],
)
def test_labels_in_terms_of_the_classes(words, classes, expected):
    assert same_classes(labels_of(*words), classes).tolist() == expected


@pytest.mark.parametrize(
    ("words", "classes", "named"),
    [
        (["cat", "dog"], ["cat", "hound"], "the pictures' dog are none of the 2 classes"),
        (["0", "12"], [f"class {i}" for i in range(12)], "the pictures' 12 are none"),
        (["-1", "0"], ["a", "b"], "the pictures' -1 are none"),
    ],
)
def test_other_names_are_refused(words, classes, named):
    with pytest.raises(UserError, match=named):
        same_classes(labels_of(*words), classes)


def test_other_classes_altogether_are_told():
    with pytest.warns(UserWarning, match="no accuracy: the pictures' 2023, 2024 are none of the 2 classes"):
        assert same_classes(labels_of("2023", "2024"), ["cat", "dog"]) is None
    with pytest.warns(UserWarning, match="Hund"):
        assert same_classes(labels_of("Hund", "Katze"), ["cat", "dog"]) is None
    assert same_classes(Source([], Files(Path(), [])), ["cat"]) is None


def test_classes_that_no_picture_has_do_not_matter():
    source = replace(labels_of("cat", "dog", "emu"), labels=np.array([0, 1]))
    assert same_classes(source, ["dog", "cat"]).tolist() == [1, 0]


def test_files_of_classes_and_templates(tmp_path):
    (tmp_path / "classes.txt").write_bytes("\ufeffdog\r\n\r\ncat\r\n".encode())
    given = (str(tmp_path / "classes.txt"),)
    assert class_names(given, labels_of("cat")) == ["dog", "cat"]
    (tmp_path / "templates.txt").write_bytes("\ufeffa photo of a {}.\n".encode("utf-16-le"))
    assert templates(str(tmp_path / "templates.txt")) == ("a photo of a {}.",)
    (tmp_path / "classes.txt").write_text("x" * 2000)
    with pytest.raises(UserError, match="longer than 1,000 characters"):
        class_names(given, labels_of("cat"))


def test_numbers_as_names_are_pointed_out():
    with pytest.warns(UserWarning, match="prompts are made of the numbers 0, 1, 2 and 8 more: name the classes"):
        assert class_names((), labels_of(*map(str, range(11)))) == [str(i) for i in range(11)]
    assert class_names((), labels_of("2", "cat")) == ["2", "cat"]


def test_a_class_that_is_there_twice_is_told():
    with pytest.warns(UserWarning, match="1 classes are there more than once: cat"):
        assert class_names(("cat", "dog", "cat"), labels_of("cat")) == ["cat", "dog", "cat"]


def test_a_file_that_names_the_labels(tmp_path):
    (tmp_path / "classes.txt").write_text("n01443537\tgoldfish\nn01440764\ttench, really\n")
    given = (str(tmp_path / "classes.txt"),)
    source = labels_of("n01440764", "n01443537")
    classes = class_names(given, source)
    assert classes == ["goldfish", "tench, really"]
    assert same_classes(source, classes, given).tolist() == [1, 0]
    (tmp_path / "classes.txt").write_text("n01443537\tgoldfish\ntench\n")
    with pytest.raises(UserError, match="class 2 is not LABEL<TAB>NAME"):
        class_names(given, source)
