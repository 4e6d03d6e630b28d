"""A weights file: what is written is read, and nothing of half of one."""

import pytest
import torch

from tests.unit.trainers.generation.serving.fakes import weights_file
from trainers.generation.serving.protocol import WeightsError, read_records
from trainers.generation.serving.weights import write_weights


def read_back(path, version):
    content = path.read_bytes()
    return {
        record.name: torch.frombuffer(
            bytearray(content[record.offset : record.offset + record.size]),
            dtype=getattr(torch, record.dtype),
        ).reshape(record.shape)
        for record in read_records(path, version)
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_tensors_come_back_bit_for_bit_in_the_type_they_were_written_in(tmp_path, dtype):
    tensors = {"a": torch.randn(3, 4), "b.c": torch.randn(5), "d": torch.tensor(2.5)}
    names = {name: f"to.{name}" for name in tensors}
    write_weights(tmp_path / "w", tensors.items(), names=names, dtype=dtype, version=3)
    back = read_back(tmp_path / "w", 3)
    assert list(back) == list(names.values())
    for name, tensor in tensors.items():
        assert torch.equal(back[names[name]], tensor.to(dtype))


def test_a_transposed_tensor_is_written_as_it_reads(tmp_path):
    tensor = torch.arange(6.0).reshape(2, 3).T
    write_weights(tmp_path / "w", [("a", tensor)], names={"a": "a"}, dtype=torch.float32, version=0)
    assert torch.equal(read_back(tmp_path / "w", 0)["a"], tensor)


def test_every_cut_of_a_file_is_refused(tmp_path):
    whole = weights_file(tmp_path / "w", 4).read_bytes()
    cut = tmp_path / "cut"
    for length in range(len(whole)):
        cut.write_bytes(whole[:length])
        with pytest.raises(WeightsError):
            read_records(cut, 4)


def test_a_file_of_another_version_or_with_something_behind_its_end_is_refused(tmp_path):
    path = weights_file(tmp_path / "w", 4)
    with pytest.raises(WeightsError, match="policy version 4, and 5 was announced"):
        read_records(path, 5)
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(WeightsError, match="hold 2 tensors"):
        read_records(path, 4)


def test_one_tensor_is_held_at_a_time(tmp_path):
    alive = []

    def stream():
        for i in range(5):
            alive.append(i)
            yield f"t{i}", torch.full((10,), float(i))
            assert (tmp_path / "w").stat().st_size >= 0
            assert alive == [i]  # the next is made only after this one was written
            alive.pop()

    names = {f"t{i}": f"t{i}" for i in range(5)}
    write_weights(tmp_path / "w", stream(), names=names, dtype=torch.float32, version=0)
    assert len(read_records(tmp_path / "w", 0)) == 5


def test_a_rank_that_writes_no_file_still_takes_every_tensor():
    taken = []
    stream = ((taken.append(i) or str(i), torch.zeros(1)) for i in range(3))
    write_weights(None, stream, names={}, dtype=torch.float32, version=0)
    assert taken == [0, 1, 2]


def test_a_weight_that_never_comes_is_named(tmp_path):
    with pytest.raises(AssertionError, match="no weights came for b"):
        write_weights(
            tmp_path / "w", [("a", torch.zeros(1))], names={"a": "a", "b": "b"},
            dtype=torch.float32, version=0,
        )  # fmt: skip
