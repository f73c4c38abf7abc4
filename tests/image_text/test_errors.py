import pickle

import pytest

from image_text.errors import MAX_LINE, UserError, names_its_file, one_line, reading


def test_an_error_is_one_printable_line_of_bounded_length():
    assert str(UserError("a.pt: as it is,  é 猫")) == "a.pt: as it is,  é 猫"
    assert str(UserError("a\nb\x1b[31m\udc80\t.")) == r"a b\x1b[31m\udc80 ."
    line = str(UserError("a" * 2_000_000 + "end"))
    assert len(line) < MAX_LINE + 10
    assert line.endswith("end")
    assert str(pickle.loads(pickle.dumps(UserError("a.pt")))) == "a.pt"
    assert one_line(ValueError(" a\n   b ")) == "a b"
    assert one_line(KeyError()) == "KeyError"


@pytest.mark.parametrize("error", [ValueError("x\ny"), KeyError("x"), RecursionError("x"), RuntimeError("x")])
def test_what_a_reader_raises_names_the_file(error):
    with pytest.raises(UserError, match=r"^cannot read the config from a\.json: .*x"), reading("a.json", "the config"):
        raise error


def test_an_error_that_names_the_file_passes_as_it_is():
    with pytest.raises(UserError, match=r"^a\.json is empty"), reading("a.json"):
        raise UserError("a.json is empty")
    with pytest.raises(UserError, match="not enough memory"), reading("a.json"):
        raise MemoryError
    with pytest.raises(KeyboardInterrupt), reading("a.json"):
        raise KeyboardInterrupt


def test_a_reader_of_a_config_names_where_it_is_from():
    @names_its_file
    def read(data, where):
        return data["width"]

    assert read({"width": 3}, "a.json") == 3
    with pytest.raises(UserError, match=r"from a\.json: 'width'"):
        read({}, where="a.json")
