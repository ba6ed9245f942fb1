"""Classes 1 to 18: files made to do harm."""

import contextlib
import json
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lowrank_study.checkpoints import find_matrices, open_adapter, open_weights, pair
from lowrank_study.errors import InputError

ONE = b"\0\0\x80\x3f"


class Bomb:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


def test_01_a_pickle_is_refused_with_how_to_convert_it(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(2, 3)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"run code.*safetensors\.torch\.save_file"):
        open_weights(tmp_path)
    with open_weights(tmp_path, allow_pickle=True) as weights:
        np.testing.assert_array_equal(weights.read("w"), np.ones((2, 3), np.float32))
        assert weights.flags == ("read from a PyTorch pickle with weights_only",)


@pytest.mark.parametrize("name", ["model.safetensors", "model.gguf", "weights.dat"])
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_02_a_pickle_under_another_name_is_refused(
    tmp_path: Path, name: str, protocol: int
) -> None:
    path, mark = tmp_path / name, tmp_path / "mark"
    path.write_bytes(pickle.dumps(Bomb(mark), protocol=protocol))
    with pytest.raises(InputError, match="is a PyTorch pickle"):
        open_weights(path)
    torch.save({"w": torch.ones(1)}, path)
    with pytest.raises(InputError, match="is a PyTorch pickle"):
        open_weights(path)
    assert not mark.exists()


@pytest.mark.parametrize("zipped", [False, True])
def test_03_a_pickle_no_scanner_knows_never_runs(tmp_path: Path, zipped: bool) -> None:
    path, mark = tmp_path / "model.bin", tmp_path / "mark"
    if zipped:
        torch.save({"w": torch.ones(1), "x": Bomb(mark)}, path)
    else:
        path.write_bytes(pickle.dumps(Bomb(mark), protocol=2))
    with pytest.raises(InputError, match="is a PyTorch pickle"):
        open_weights(path)
    with pytest.raises(InputError, match="holds more than tensors"):
        open_weights(path, allow_pickle=True)
    assert not mark.exists()


def test_04_a_zip_bomb_is_refused_before_it_inflates(
    tmp_path: Path, refused_in_budget: Any
) -> None:
    path = tmp_path / "model.bin"
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("archive/data.pkl", "w") as member,
    ):
        for _ in range(256):
            member.write(bytes(2**20))
    assert "zip bomb" in refused_in_budget(path, pickle=True)
    assert "is a PyTorch pickle" in refused_in_budget(path)


def test_04_a_zip_directory_of_many_members_is_refused(
    tmp_path: Path, refused_in_budget: Any
) -> None:
    path = tmp_path / "model.bin"
    end = b"PK\x05\x06" + bytes(8) + (2**30).to_bytes(4, "little") + bytes(6)
    path.write_bytes(b"PK\x03\x04" + bytes(100) + end)
    assert "zip directory is too large" in refused_in_budget(path, pickle=True)


@pytest.mark.parametrize("length", [2**63, 2**64 - 1, 100, 2**32])
def test_05_a_header_longer_than_the_file_is_refused(write_raw: Any, length: int) -> None:
    path = write_raw({}, length=length)
    with pytest.raises(InputError, match=f"says its header has {length} bytes"):
        open_weights(path)


def test_06_a_bloated_header_is_refused_before_it_is_parsed(
    write_raw: Any, refused_in_budget: Any
) -> None:
    many = ",".join(
        f'"{i}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}' for i in range(500_000)
    )
    path = write_raw(("{" + many + "}").encode())
    assert path.stat().st_size > 25e6
    assert "more than 200000 tensors" in refused_in_budget(path)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b'{"a":' + b"[" * 400_000 + b"]" * 400_000 + b"}", "not valid JSON"),
        (b'{"a":' + b"[" * 2_000_000, "more than any real checkpoint"),
        (b'{"__metadata__":{' + b'"a":0,' * 1_400_000 + b'"b":1}}', "more than any real"),
        (b'{"__metadata__":{' + b'"a":0,' * 450_000 + b'"b":1}}', "occurs twice"),
        (b'{"' + b"a" * 30_000_000 + b'":{}}', "needs exactly dtype"),
        (b"{" + b" " * (33 * 2**20) + b"}", "above the limit"),
        (b'{"a":' + b"1" * 5_000_000 + b"}", "not valid JSON"),
    ],
    ids=["deep", "deeper", "entries", "twice", "long name", "blanks", "long number"],
)
def test_06_other_costly_headers_are_refused_in_time(
    write_raw: Any, refused_in_budget: Any, header: bytes, message: str
) -> None:
    assert message in refused_in_budget(write_raw(header))


def test_06_a_fault_behind_many_tensors_is_found_in_time(
    write_raw: Any, entry: Any, refused_in_budget: Any
) -> None:
    header = {
        f"model.layers.{i // 1000}.mlp.experts.{i}.down_proj.weight": entry(i, i + 1, [1, 1], "U8")
        for i in range(75_000)
    }
    assert "after the last tensor" in refused_in_budget(write_raw(header, bytes(75_001)))


def test_06_as_many_tensors_as_allowed_are_opened(write_raw: Any, entry: Any) -> None:
    path = write_raw({str(i): entry(0, 0, [0]) for i in range(3)} | {"w": entry(0, 4, [1])}, ONE)
    with open_weights(path) as weights:
        assert weights.names() == ["w"]


def test_07_a_name_given_twice_is_refused(write_raw: Any) -> None:
    one = b'"dtype":"F32","shape":[1],"data_offsets":[0,4]'
    with pytest.raises(InputError, match="the name w occurs twice"):
        open_weights(write_raw(b'{"w":{' + one + b'},"w":{' + one + b"}}", ONE))
    with pytest.raises(InputError, match="the name dtype occurs twice"):
        open_weights(write_raw(b'{"w":{"dtype":"F16",' + one + b"}}", ONE))


def test_08_overlapping_and_holed_offsets_are_refused(write_raw: Any, entry: Any) -> None:
    overlap = {"a": entry(0, 8, [2]), "b": entry(4, 12, [2])}
    with pytest.raises(InputError, match="tensor b overlaps the tensor before it"):
        open_weights(write_raw(overlap, ONE * 3))
    hole = {"a": entry(0, 4, [1]), "b": entry(8, 12, [1])}
    with pytest.raises(InputError, match="tensor b leaves a hole"):
        open_weights(write_raw(hole, ONE * 3))
    with pytest.raises(InputError, match="tensor a leaves a hole"):
        open_weights(write_raw({"a": entry(4, 8, [1])}, ONE * 2))
    same = {"a": entry(0, 4, [1]), "b": entry(0, 4, [1])}
    with pytest.raises(InputError, match="overlaps"):
        open_weights(write_raw(same, ONE))


@pytest.mark.parametrize(
    "change",
    [
        {"shape": [2]},
        {"shape": [2**62, 2**62]},
        {"shape": [-1]},
        {"shape": [1.0]},
        {"shape": [True]},
        {"shape": "1"},
        {"shape": [1] * 17},
        {"shape": None},
        {"data_offsets": [0, 2**70]},
        {"data_offsets": [4, 0]},
        {"data_offsets": [-4, 0]},
        {"data_offsets": [0]},
        {"data_offsets": [False, 4]},
        {"data_offsets": {"0": 4}},
        {"dtype": "F4"},
        {"dtype": 32},
        {"dtype": ["F32"]},
        {"dtype": "F16"},
        {"more": 1},
    ],
    ids=str,
)
def test_08_a_header_that_contradicts_itself_is_refused(
    write_raw: Any, entry: Any, change: dict[str, Any]
) -> None:
    path = write_raw({"w": entry(0, 4, [1]) | change}, ONE)
    with pytest.raises(InputError, match="tensor w"):
        open_weights(path)


def test_09_an_empty_tensor_with_a_huge_axis_is_skipped(write_raw: Any, entry: Any) -> None:
    path = write_raw({"e": entry(0, 0, [0, 2**40]), "w": entry(0, 4, [1])}, ONE)
    with open_weights(path) as weights:
        assert weights.names() == ["w"]
        assert weights.skipped == {"e": "empty, shape [0, 1099511627776]"}
        with pytest.raises(InputError, match="tensor e can't be read as weights"):
            weights.read("e")


def test_10_trailing_bytes_are_refused(write_raw: Any, entry: Any) -> None:
    with pytest.raises(InputError, match="1 bytes after the last tensor"):
        open_weights(write_raw({"w": entry(0, 4, [1])}, ONE + b"\0"))


@pytest.mark.parametrize(
    "shard",
    ["../secret.safetensors", "/etc/passwd", "a/../../secret", "..", "", "a\\b", "a\0b", 7, None],
)
def test_11_an_index_that_points_out_of_its_folder_is_refused(
    tmp_path: Path, write_raw: Any, entry: Any, shard: Any
) -> None:
    write_raw({"w": entry(0, 4, [1])}, ONE, name="secret.safetensors")
    folder = tmp_path / "model"
    folder.mkdir()
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"w": shard}}))
    with pytest.raises(InputError, match="which isn't a file of its own folder"):
        open_weights(folder)


def test_11_a_huge_index_is_refused_in_time(tmp_path: Path, refused_in_budget: Any) -> None:
    index = tmp_path / "model.safetensors.index.json"
    body = ",".join(f'"{i}":"x{i}"' for i in range(1_800_000))
    index.write_text('{"weight_map":{' + body + "}}")
    message = refused_in_budget(tmp_path)
    assert "more than any real checkpoint" in message or "too large" in message


def test_12_a_link_that_leaves_the_folder_is_refused(
    tmp_path: Path, write_raw: Any, entry: Any
) -> None:
    secret = write_raw({"w": entry(0, 4, [1])}, ONE, name="secret/w.safetensors")
    folder = tmp_path / "model"
    folder.mkdir()
    link = folder / "model.safetensors"
    link.symlink_to(secret)
    for path in (folder, link):
        with pytest.raises(InputError, match="is a link that leaves its folder"):
            open_weights(path)
    link.unlink()
    write_raw({"w": entry(0, 4, [1])}, ONE, name="model/model.safetensors")
    (folder / "config.json").symlink_to("/etc/hostname")
    with pytest.raises(InputError, match="is a link that leaves its folder"):
        open_weights(folder)
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to("config.json")
    with pytest.raises(InputError, match="can't be opened"):
        open_weights(folder)


def test_12_links_of_a_hub_cache_are_followed_to_its_blobs_only(
    tmp_path: Path, write_raw: Any, entry: Any
) -> None:
    hub = tmp_path / "hub" / "models--a--b"
    write_raw({"w": entry(0, 4, [1])}, ONE, name="hub/models--a--b/blobs/0123")
    snapshot = hub / "snapshots" / "main"
    snapshot.mkdir(parents=True)
    link = snapshot / "model.safetensors"
    link.symlink_to("../../blobs/0123")
    with open_weights(snapshot) as weights:
        np.testing.assert_array_equal(weights.read("w"), np.ones(1, np.float32))
    write_raw({"w": entry(0, 4, [1])}, ONE, name="hub/models--c--d/blobs/0123")
    link.unlink()
    link.symlink_to("../../../models--c--d/blobs/0123")
    with pytest.raises(InputError, match="leaves its folder"):
        open_weights(snapshot)


def test_12_a_link_within_the_folder_is_followed(write_raw: Any, entry: Any) -> None:
    path = write_raw({"w": entry(0, 4, [1])}, ONE, name="model/model.safetensors")
    link = path.with_name("alias.safetensors")
    link.symlink_to(path.name)
    with open_weights(link) as weights:
        assert weights.names() == ["w"]


def test_13_a_pipe_is_refused_without_waiting(tmp_path: Path, refused_in_budget: Any) -> None:
    os.mkfifo(tmp_path / "model.safetensors")
    assert "not a regular file" in refused_in_budget(tmp_path)
    assert "not a regular file" in refused_in_budget(tmp_path / "model.safetensors")


def test_13_a_pipe_as_config_is_refused_without_waiting(
    write_raw: Any, entry: Any, refused_in_budget: Any
) -> None:
    path = write_raw({"w": entry(0, 4, [1])}, ONE)
    os.mkfifo(path.with_name("config.json"))
    assert "config.json: is not a regular file" in refused_in_budget(path.parent)


@pytest.mark.parametrize("path", ["/dev/zero", "/dev/null", "/dev/stdin"])
def test_13_a_device_is_refused(path: str) -> None:
    with pytest.raises(InputError, match=r"not a regular file|leaves its folder"):
        open_weights(path)


@pytest.mark.parametrize(
    "change",
    [
        {"auto_mapping": {"base_model_class": "Trap", "parent_library": "trap_module"}},
        {"megatron_core": "trap_module"},
        {"base_model_name_or_path": "../../trap_module"},
    ],
    ids=str,
)
def test_14_a_module_named_in_an_adapter_config_is_never_imported(
    tmp_path: Path, monkeypatch: Any, write_adapter: Any, change: dict[str, Any]
) -> None:
    mark = tmp_path / "mark"
    (tmp_path / "trap_module.py").write_text(f"open({str(mark)!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    path = write_adapter(
        {
            "base_model.model.q.lora_A.weight": torch.ones(1, 2),
            "base_model.model.q.lora_B.weight": torch.ones(3, 1),
        },
        {"peft_type": "LORA", "r": 1, "lora_alpha": 1} | change,
    )
    with open_adapter(path) as adapter:
        np.testing.assert_array_equal(adapter.delta("q"), np.ones((3, 2)))
    assert not mark.exists()


def test_14_a_setting_that_names_custom_code_is_refused(write_adapter: Any) -> None:
    path = write_adapter({"x": torch.ones(1)}, {"peft_type": "LORA", "_custom_modules": {"a": "b"}})
    with pytest.raises(InputError, match="the setting _custom_modules"):
        open_adapter(path)


def test_15_16_a_target_or_remote_code_in_a_config_is_only_text(
    tmp_path: Path, monkeypatch: Any, write_model: Any
) -> None:
    mark = tmp_path / "mark"
    code = f"open({str(mark)!r}, 'w')"
    config = {
        "_target_": "builtins.exec",
        "_args_": [code],
        "model_type": "trap",
        "auto_map": {"AutoModel": "trap_module.Trap", "AutoConfig": "trap_module.Trap"},
    }
    path = write_model({"w": torch.ones(2, 2)}, config)
    (path / "trap_module.py").write_text(code)
    monkeypatch.syspath_prepend(path)
    with open_weights(path) as weights:
        assert weights.config == config
        matrices, _ = find_matrices(weights)
        np.testing.assert_array_equal(matrices["w"].read(), np.ones((2, 2)))
    assert not mark.exists()


@pytest.mark.parametrize("depth", [500, 900, 980])
def test_15_a_deeply_nested_config_does_no_harm(write_model: Any, depth: int) -> None:
    path = write_model({"w.weight": torch.ones(2, 2)})
    nested = "[" * depth + "]" * depth
    config = f'{{"model_type": {nested}, "hidden_size": {nested}, "quantization_config": {nested}}}'
    (path / "config.json").write_text(config)
    (path / "adapter_config.json").write_text(f'{{"peft_type": "LORA", "strange": {nested}}}')
    with pytest.raises(InputError):
        open_adapter(path)
    with contextlib.suppress(InputError), open_weights(path) as a, open_weights(path) as b:
        assert len(pair(a, b).matches) == 1


STRANGE = [
    "a\0b",
    "a\nb",
    "\u202eevil",
    "<script>alert(1)</script>",
    "../../etc/passwd",
    "=cmd|' /C calc'!A0",
    "@SUM(1)",
    "",
    "x" * 5000,
]


@pytest.mark.parametrize("name", STRANGE, ids=range(len(STRANGE)))
def test_17_18_strange_names_pass_through_as_they_are(
    tmp_path: Path, write_raw: Any, entry: Any, name: str
) -> None:
    path = write_raw({name: entry(0, 4, [1, 1])}, ONE)
    before = sorted(tmp_path.rglob("*"))
    with open_weights(path) as a, open_weights(path) as b:
        assert a.names() == [name]
        pairing = pair(a, b)
        assert [match.name for match, _, _ in pairing.read_matrices()] == [name]
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", STRANGE, ids=range(len(STRANGE)))
def test_17_strange_names_are_one_printable_line_in_errors(
    write_raw: Any, entry: Any, name: str
) -> None:
    path = write_raw({name: entry(0, 8, [1])}, ONE)
    with pytest.raises(InputError) as caught:
        open_weights(path)
    message = str(caught.value)
    assert message.isascii()
    assert message.isprintable()
    assert len(message) < 1000


def test_17_a_name_that_is_no_text_is_refused(write_raw: Any) -> None:
    path = write_raw(b'{"\\ud800":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', ONE)
    with pytest.raises(InputError, match="not valid Unicode"):
        open_weights(path)
