"""Weight files: round trips, and files that are cut off, damaged or made to mislead."""

import pickle
import struct
import sys
import zipfile

import numpy as np
import pytest

from fastconv import nn


def network():
    return nn.Sequential(nn.Conv2d(2, 3, 3, rng=1), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 2, rng=2))


def suffixes():
    yield ".npz"
    try:
        import safetensors.numpy  # noqa: F401
    except ImportError:
        return
    yield ".safetensors"


def npy(array_header, payload, version=b"\x01\x00"):
    header = repr(array_header).encode()
    header += b" " * (63 - (10 + len(header)) % 64) + b"\n"
    return b"\x93NUMPY" + version + struct.pack("<H", len(header)) + header + payload


def archive(path, entries, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, data in entries:
            file.writestr(name, data)
    return path


@pytest.mark.parametrize("suffix", list(suffixes()))
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_round_trip(tmp_path, suffix, dtype):
    net = network().astype(dtype)
    path = tmp_path / f"net{suffix}"
    nn.save(net, path)
    nn.save(net, str(path))
    state = nn.load(path)
    assert list(state) == list(net.state_dict()) or suffix == ".safetensors"
    for name, value in net.state_dict().items():
        assert state[name].dtype == value.dtype
        assert state[name].shape == value.shape
        np.testing.assert_array_equal(state[name], value)
    other = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 2)).astype(dtype)
    other.load_state_dict(state)
    np.testing.assert_array_equal(other[0].weight, net[0].weight)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_npz_is_numpys(tmp_path):
    values = {"file": np.arange(6.0).reshape(2, 3).T, "b": np.float32(3).reshape(()), "c": np.zeros((0, 2), ">f4")}
    nn.save(values, tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz", allow_pickle=False) as read:
        assert set(read.files) == set(values)
        for name, value in values.items():
            np.testing.assert_array_equal(read[name], value)
    for write in (np.savez, np.savez_compressed):
        write(tmp_path / "b.npz", f=np.asfortranarray(np.arange(12.0).reshape(3, 4)), big=np.arange(3, dtype=">i4"))
        state = nn.load(tmp_path / "b.npz")
        np.testing.assert_array_equal(state["f"], np.arange(12.0).reshape(3, 4))
        np.testing.assert_array_equal(state["big"], np.arange(3))
        assert state["big"].dtype.isnative
        assert state["f"].flags.c_contiguous
    nn.save(values, tmp_path / "c.npz")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "c.npz").read_bytes()


@pytest.mark.parametrize("suffix", list(suffixes()))
def test_every_cut_is_refused(tmp_path, suffix):
    path = tmp_path / f"net{suffix}"
    nn.save(network(), path)
    whole = path.read_bytes()
    for end in {*range(0, len(whole), max(1, len(whole) // 60)), len(whole) - 1}:
        path.write_bytes(whole[:end])
        with pytest.raises(ValueError, match=path.name):
            nn.load(path)


def test_flipped_bytes_are_refused_or_harmless(tmp_path):
    """The checksum finds every changed weight; a change elsewhere is an error, or changes names and nothing else."""
    path = tmp_path / "net.npz"
    nn.save(network(), path)
    whole = path.read_bytes()
    values = {value.tobytes() for value in nn.load(path).values()}
    refused = 0
    for at in range(0, len(whole), 7):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :])
        try:
            state = nn.load(path)
        except ValueError:
            refused += 1
        else:
            assert {value.tobytes() for value in state.values()} <= values
    assert refused > 100


class Evil:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was run",))


FLOATS = {"descr": "<f4", "fortran_order": False, "shape": (2,)}


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ([("a.npy", npy({**FLOATS, "shape": (1 << 60,)}, b"\0" * 8))], "must have"),
        ([("a.npy", npy({**FLOATS, "shape": (1 << 70, 1 << 70)}, b"\0" * 8))], "must have"),
        ([("a.npy", npy({**FLOATS, "shape": (-2, -1)}, b"\0" * 8))], "must have"),
        ([("a.npy", npy({**FLOATS, "shape": (3,)}, b"\0" * 8))], "must have 12 bytes, not 8"),
        ([("a.npy", npy({**FLOATS, "shape": (1,)}, b"\0" * 8))], "must have 4 bytes, not 8"),
        ([("a.npy", npy({**FLOATS, "descr": "|O"}, pickle.dumps([Evil()] * 2)))], "objects are not read"),
        ([("a.npy", npy({**FLOATS, "descr": "<U2"}, b"\0" * 16))], "numbers"),
        ([("a.npy", npy(FLOATS, b"\0" * 8, b"\x09\x00"))], "version"),
        ([("a.npy", b"not an array")], "magic"),
        ([("a.npy", npy({**FLOATS, "more": "x" * 20000}, b"\0" * 8))], "[Hh]eader"),
        ([("a.npy", npy("__import__('os')", b"\0" * 8))], ""),
        ([("a.txt", b"")], "the only .npy"),
    ],
)
def test_hostile_npz(tmp_path, entries, words):
    path = archive(tmp_path / "evil.npz", entries)
    with pytest.raises(ValueError, match=f"evil.npz: .*{words}"):
        nn.load(path)


def test_sizes_that_are_claimed_allocate_nothing(tmp_path, monkeypatch):
    """A directory entry that says terabytes is refused before any array is made."""
    path = archive(tmp_path / "evil.npz", [("a.npy", npy({**FLOATS, "shape": (1 << 38,)}, b"\0" * 8))])
    data = bytearray(path.read_bytes())
    at = data.rindex(b"PK\x01\x02")
    struct.pack_into("<I", data, at + 24, 0xFFFFFFF0)
    path.write_bytes(data)
    monkeypatch.setattr(np, "empty", lambda *a, **k: pytest.fail("allocated"))
    with pytest.raises(ValueError, match=r"evil.npz: .*claims"):
        nn.load(path)


def test_entries_that_overlap_are_refused(tmp_path):
    path = archive(tmp_path / "evil.npz", [("a.npy", npy({**FLOATS, "shape": (1000,)}, b"\0" * 4000))])
    data = path.read_bytes()
    at, end = data.rindex(b"PK\x01\x02"), data.rindex(b"PK\x05\x06")
    entry = data[at:end]
    copies = b"".join(entry.replace(b"a.npy", bytes([c]) + b".npy") for c in b"abcdefgh")
    tail = bytearray(data[end:])
    struct.pack_into("<HHII", tail, 8, 8, 8, len(copies), at)
    path.write_bytes(data[:at] + copies + bytes(tail))
    with pytest.raises(ValueError, match=r"evil.npz: its entries are longer than the file"):
        nn.load(path)


def test_hostile_safetensors(tmp_path):
    pytest.importorskip("safetensors")
    path = tmp_path / "evil.safetensors"
    for header in (
        b'{"a":{"dtype":"F32","shape":[1152921504606846976],"data_offsets":[0,8]}}',
        b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,800]}}',
        b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}}',
        b"[1]",
        b"\xff\xff",
    ):
        path.write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 8)
        with pytest.raises(ValueError, match=r"evil\.safetensors: "):
            nn.load(path)
    path.write_bytes(struct.pack("<Q", 1 << 62) + b"{}")
    with pytest.raises(ValueError, match=r"evil\.safetensors: "):
        nn.load(path)


def test_pytorch_files(tmp_path):
    torch = pytest.importorskip("torch")
    net = network()
    theirs = torch.nn.Sequential(
        torch.nn.Conv2d(2, 3, 3), torch.nn.BatchNorm2d(3), torch.nn.Flatten(), torch.nn.Linear(12, 2)
    )
    torch.save(theirs.state_dict(), tmp_path / "net.pt")
    net.load_state_dict(nn.load(tmp_path / "net.pt"))
    np.testing.assert_array_equal(net[3].weight, theirs[3].weight.detach().numpy())
    net[3].weight.assign(np.zeros((2, 12), np.float32))
    net.load_state_dict(theirs.state_dict())  # tensors as they are, with a gradient or not
    net.load_state_dict(dict(theirs.named_parameters()), strict=False)
    np.testing.assert_array_equal(net[3].weight, theirs[3].weight.detach().numpy())
    torch.save({"a": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(ValueError, match=r"evil.pth: .*allow_pickle"):
        nn.load(tmp_path / "evil.pth")
    with pytest.raises(pytest.fail.Exception):
        nn.load(tmp_path / "evil.pth", allow_pickle=True)
    torch.save([1], tmp_path / "list.pt")
    with pytest.raises(ValueError, match="must hold a state dict, not list"):
        nn.load(tmp_path / "list.pt")
    torch.save({"epoch": "seven"}, tmp_path / "words.pt")
    with pytest.raises(ValueError, match="epoch"):
        nn.load(tmp_path / "words.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "net.pt").read_bytes()[:300])
    with pytest.raises(ValueError, match=r"cut\.pt: "):
        nn.load(tmp_path / "cut.pt")


def test_what_is_not_installed_is_named(tmp_path, monkeypatch):
    (tmp_path / "a.pt").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    with pytest.raises(ImportError, match="PyTorch, which is not installed"):
        nn.load(tmp_path / "a.pt")
    with pytest.raises(ImportError, match=r"pip install fastconv\[nn\]"):
        nn.load(tmp_path / "a.safetensors")
    with pytest.raises(ImportError, match=r"pip install fastconv\[nn\]"):
        nn.save({}, tmp_path / "b.safetensors")


def test_arguments(tmp_path):
    with pytest.raises(ValueError, match=r"path \(='a.pkl'\) must end in .npz, .safetensors, .pt, .pth"):
        nn.load("a.pkl")
    with pytest.raises(ValueError, match=r"must end in .npz, .safetensors$"):
        nn.save({}, "a.pt")
    with pytest.raises(FileNotFoundError):
        nn.load(tmp_path / "none.npz")
    with pytest.raises(TypeError, match=r"source \(of type int\)"):
        nn.save(3, tmp_path / "a.npz")
    with pytest.raises(TypeError, match="strings as names"):
        nn.save({1: np.zeros(2)}, tmp_path / "a.npz")
    with pytest.raises(TypeError, match=r"source\['a'\].*numbers"):
        nn.save({"a": "text"}, tmp_path / "a.npz")
    assert not list(tmp_path.iterdir())
