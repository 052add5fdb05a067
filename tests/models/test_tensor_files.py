"""Tensors in files: the format, nothing written twice, nothing copied first."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from harness.core.digests import file_digest
from harness.core.meter import resident_peak, start_peak_anew
from harness.models.tensor_files import load_tensors, save_tensors, size_in_file

KINDS = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool)


@pytest.fixture
def tensors():
    torch.manual_seed(0)
    found = {str(kind): (torch.randn(3, 5) * 4).to(kind) for kind in KINDS}
    found |= {"scalar": torch.tensor(3.5), "empty": torch.zeros(0, 4)}
    return found | {"turned": torch.randn(4, 6).T, "part": torch.randn(9)[2:7]}


def test_save_tensors_writes_what_safetensors_reads(tensors, tmp_path):
    digest = save_tensors(tensors, tmp_path / "a")
    assert digest == file_digest(tmp_path / "a")
    for found in (load_file(tmp_path / "a"), load_tensors(tmp_path / "a")):
        assert found.keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert found[name].dtype == tensor.dtype and found[name].shape == tensor.shape
            assert torch.equal(found[name], tensor), name


def test_load_tensors_reads_what_safetensors_writes(tensors, tmp_path):
    whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(whole, tmp_path / "a")
    found = load_tensors(tmp_path / "a")
    assert all(torch.equal(found[name], tensor) for name, tensor in whole.items())


def test_same_tensors_give_the_same_bytes_in_any_order(tensors, tmp_path):
    first = save_tensors(tensors, tmp_path / "a")
    assert save_tensors(dict(reversed(tensors.items())), tmp_path / "b") == first
    tensors["scalar"] += 1  # negative control
    assert save_tensors(tensors, tmp_path / "b") != first


def test_tied_tensors_are_written_once_and_tied_again(tmp_path):
    table = torch.randn(1000, 16)
    tensors = {"embed": table, "head": table.detach(), "view": table[:500], "copy": table.clone()}
    save_tensors(tensors, tmp_path / "a")
    assert (tmp_path / "a").stat().st_size < 2.5 * table.nbytes + 1000
    assert size_in_file(tensors) == int(2.5 * table.nbytes)
    found = load_tensors(tmp_path / "a")
    assert found["head"].data_ptr() == found["embed"].data_ptr() != found["copy"].data_ptr()
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


def peak_growth(write, state, path):
    """Return the bytes that the resident set grew by at most while a state was written."""
    start_peak_anew()
    before = resident_peak(False)
    write(state, path)
    return resident_peak(False) - before


@pytest.mark.skipif(not start_peak_anew(), reason="this system resets no peak")
def test_large_state_is_written_without_a_second_copy(tmp_path):
    state = {f"w{i}": torch.randn(1024, 1024) for i in range(48)}  # 192 MiB
    assert peak_growth(save_tensors, state, tmp_path / "a") < 32 * 2**20

    def cloned_first(tensors, path):  # the negative control
        save_file({name: tensor.clone() for name, tensor in tensors.items()}, path)

    assert peak_growth(cloned_first, state, tmp_path / "b") > 128 * 2**20
