import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax import UserError
from clip_jax.weights.native import (
    atomic_path,
    flatten,
    load_params,
    read_metadata,
    save_params,
    unflatten,
)

TREE = {
    "a": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3).T, "bias": np.float32(2.5)},
    "b": np.arange(3, dtype=np.int32),
}


def assert_equal(a, b):
    assert flatten(a).keys() == flatten(b).keys()
    for name, leaf in flatten(a).items():
        np.testing.assert_array_equal(leaf, flatten(b)[name])
        assert leaf.dtype == flatten(b)[name].dtype


def test_flatten_is_undone():
    assert list(flatten(TREE)) == ["a/bias", "a/kernel", "b"]
    assert_equal(unflatten(flatten(TREE)), TREE)


def test_saved_and_loaded_is_the_same_bits(tmp_path):
    """Transposed arrays included, which safetensors writes scrambled when left as they are."""
    save_params(tmp_path / "w.safetensors", TREE, metadata={"step": "7"})
    assert_equal(load_params(tmp_path / "w.safetensors", TREE), TREE)
    assert read_metadata(tmp_path / "w.safetensors") == {"step": "7"}


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16])
def test_half_precision_is_only_for_storage(tmp_path, dtype):
    save_params(tmp_path / "w.safetensors", TREE, dtype=dtype)
    assert_equal(load_params(tmp_path / "w.safetensors", TREE), TREE)
    assert load_params(tmp_path / "w.safetensors", dtype=dtype)["a"]["kernel"].dtype == dtype
    assert load_params(tmp_path / "w.safetensors")["b"].dtype == np.int32


def test_everything_that_does_not_fit_is_named_at_once(tmp_path):
    path = tmp_path / "w.safetensors"
    save_params(path, TREE)
    expect = {"a": {"kernel": np.zeros((3, 3)), "scale": np.zeros(3)}, "b": np.zeros(3)}
    with pytest.raises(UserError) as error:
        load_params(path, expect)
    message = str(error.value)
    assert "missing: a/scale" in message
    assert "unused: a/bias" in message
    assert "a/kernel is [3, 2], not [3, 3]" in message
    assert "\n" not in message


def test_weights_that_are_not_finite_are_refused(tmp_path):
    for value, dtype in ((np.nan, None), (np.inf, None), (1e6, np.float16)):
        with pytest.raises(UserError, match="infinite: a"):
            save_params(tmp_path / "w.safetensors", {"a": np.float32([1, value]), "b": np.zeros(1)}, dtype=dtype)
    assert not list(tmp_path.iterdir())
    from safetensors.numpy import save_file

    save_file({"a": np.float32([np.nan])}, tmp_path / "w.safetensors")
    with pytest.raises(UserError, match="NaN or infinite: a"):
        load_params(tmp_path / "w.safetensors")


def test_damaged_files_are_refused(tmp_path):
    path = tmp_path / "w.safetensors"
    with pytest.raises(UserError, match="cannot read"):
        load_params(path)
    save_params(path, TREE)
    whole = path.read_bytes()
    for content, word in [
        (whole[:-5], "cannot read"),
        (b"", "cannot read"),
        (b"\xff" * 64, "cannot read"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    ]:
        path.write_bytes(content)
        with pytest.raises(UserError, match=word):
            load_params(path)


def test_a_failed_write_leaves_what_was_there(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def fail():
        with atomic_path(path) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert [p.read_text() for p in tmp_path.iterdir()] == ["old"]


def test_own_weights_of_another_type_are_refused_by_name(tmp_path):
    """Integers where floating-point numbers belong, and the other way round; float8 is a way to store."""
    path = tmp_path / "w.safetensors"
    expect = {"a": np.zeros(3, np.float32), "b": np.zeros(3, np.int32)}
    save_params(path, {"a": np.arange(3, dtype=np.int32), "b": np.ones(3, np.float32)})
    with pytest.raises(UserError, match="a is int32, floating-point") as error:
        load_params(path, expect)
    assert "b is float32, no floating-point" in str(error.value)
    header = b'{"a": {"dtype": "F8_E5M2", "shape": [3], "data_offsets": [0, 3]}}'
    numbers = np.float32([1, -2, 4]).astype(jnp.float8_e5m2)
    path.write_bytes(len(header).to_bytes(8, "little") + header + numbers.tobytes())
    np.testing.assert_array_equal(load_params(path, {"a": expect["a"]})["a"], np.float32([1, -2, 4]))


def test_an_array_inside_another_is_refused(tmp_path):
    from safetensors.numpy import save_file

    for names in (("a", "a/b"), ("a/b", "a/b/c")):
        save_file({name: np.zeros(1, np.float32) for name in names}, tmp_path / "w.safetensors")
        with pytest.raises(UserError, match=r"w\.safetensors"):
            load_params(tmp_path / "w.safetensors")
