"""Centers, memory bank, queue and teacher: worked updates, loops, exact resumption, and what they refuse."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from avcl.errors import BatchError, ConfigError
from avcl.objectives.classification import center
from avcl.objectives.memory import Centers, MemoryBank, Queue, Teacher
from avcl.objectives.schedules import Cosine

A = torch.tensor([[1, 0], [0.6, 0.8], [0, 1]])
Y = torch.tensor([0, 0, 1])


def seed(number: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def normal(*shape: int, number: int = 0) -> Tensor:
    return torch.randn(*shape, generator=seed(number))


# ------------------------------------------------------------------------------------------------------------ centers
def test_the_worked_update_of_wen() -> None:
    memory = Centers(3, 2)
    memory.centers.copy_(torch.tensor([[0.5, 0.5], [0, -1], [7, 7]]))
    memory.update(A, Y)
    truth = torch.tensor([[0.6, 0.466667], [0, -0.5], [7, 7]])
    assert torch.allclose(memory.centers, truth, atol=1e-6)
    assert torch.equal(memory.centers[2], truth[2])  # a class that was not seen


@given(st.integers(0, 9), st.integers(1, 4), st.floats(0.1, 1), st.integers(0, 1000))
def test_centers_equal_the_loop_in_any_order(rows: int, count: int, rate: float, number: int) -> None:
    x, label = normal(rows, 3, number=number), torch.randint(count, (rows,), generator=seed(number))
    memory, other = (Centers(count, 3, rate=rate, generator=seed(1)) for _ in range(2))
    slow = memory.centers.tolist()
    for j, row in enumerate(memory.centers.tolist()):
        own = [p for p, k in zip(x.tolist(), label.tolist(), strict=True) if k == j]
        slow[j] = [c - rate * sum(c - p[d] for p in own) / (1 + len(own)) for d, c in enumerate(row)]
    order = torch.randperm(rows, generator=seed(number))
    memory.update(x, label)
    other.update(x[order], label[order])
    assert torch.allclose(memory.centers, torch.tensor(slow), atol=1e-6)
    assert torch.equal(memory.centers, other.centers)


def test_centers_settle_on_class_means_and_take_the_cost_along() -> None:
    x = torch.cat([normal(50, 4) + 3, normal(50, 4, number=1) - 3])
    label = torch.arange(100) // 50
    memory = Centers(2, 4)
    costs = []
    for _ in range(40):
        costs.append(float(center(x, memory.centers, label)))
        memory.update(x, label)
    assert all(later <= earlier + 1e-5 for earlier, later in pairwise(costs))
    assert torch.allclose(memory.centers, torch.stack([x[:50].mean(0), x[50:].mean(0)]), atol=1e-5)


def test_updating_after_the_backward_pass_keeps_no_graph() -> None:
    memory, x = Centers(2, 2), A.clone().requires_grad_()
    center(x, memory.centers, Y).backward()
    memory.update(x, Y)
    assert not memory.centers.requires_grad
    assert list(memory.parameters()) == []


# --------------------------------------------------------------------------------------------------------------- bank
def test_a_bank_starts_as_the_generator_says_and_keeps_unit_rows() -> None:
    bank = MemoryBank(10, 4, generator=seed(3))
    assert torch.allclose(bank.rows.norm(dim=1), torch.ones(10))
    assert torch.equal(bank.rows, MemoryBank(10, 4, generator=seed(3)).rows)
    assert not torch.equal(bank.rows, MemoryBank(10, 4, generator=seed(4)).rows)
    bank.update(torch.tensor([2, 5]), 100 * normal(2, 4))
    assert torch.allclose(bank.rows.norm(dim=1), torch.ones(10))


@given(st.integers(0, 8), st.floats(0, 1), st.integers(0, 1000))
def test_a_bank_equals_the_loop_in_any_order(rows: int, momentum: float, number: int) -> None:
    index, x = torch.randint(5, (rows,), generator=seed(number)), normal(rows, 3, number=number)
    bank, other = (MemoryBank(5, 3, momentum=momentum, generator=seed(1)) for _ in range(2))
    slow = bank.rows.tolist()
    for i, row in enumerate(bank.rows.tolist()):
        own = [[c / math.hypot(*p) for c in p] for p, k in zip(x.tolist(), index.tolist(), strict=True) if k == i]
        if own:
            mean = [sum(p[d] for p in own) / len(own) for d in range(3)]
            new = [momentum * m + (1 - momentum) * c for m, c in zip(row, mean, strict=True)]
            slow[i] = [c / math.hypot(*new) for c in new]
    order = torch.randperm(rows, generator=seed(number))
    bank.update(index, x)
    other.update(index[order], x[order])
    assert torch.allclose(bank.rows, torch.tensor(slow), atol=1e-5)
    assert torch.equal(bank.rows, other.rows)


def test_a_row_without_direction_changes_nothing() -> None:
    bank = MemoryBank(3, 4, generator=seed())
    before = bank.rows.clone()
    bank.update(torch.tensor([0, 1]), torch.stack([torch.zeros(4), -before[1]]))
    assert torch.allclose(bank.rows, before, atol=1e-6)
    assert bank.rows.isfinite().all()
    follows = MemoryBank(3, 4, momentum=0.0, generator=seed())
    follows.update(torch.tensor([2]), torch.tensor([[0.0, 3, 0, 0]]))
    assert torch.allclose(follows.rows[2], torch.tensor([0.0, 1, 0, 0]))


@given(st.integers(2, 12), st.integers(0, 1000), st.integers(0, 20))
def test_negatives_are_others(items: int, number: int, count: int) -> None:
    bank = MemoryBank(items, 2, generator=seed())
    exclude = torch.randint(items, (items - 1,), generator=seed(number))
    drawn = bank.sample(count, exclude=exclude, generator=seed(number))
    assert drawn.shape == (count,)
    assert not set(drawn.tolist()) & set(exclude.tolist())
    assert set(drawn.tolist()) <= set(range(items))
    each = bank.sample_each(exclude, count, generator=seed(number))
    assert each.shape == (items - 1, count)
    assert bool((each != exclude[:, None]).all())
    assert bool(((each >= 0) & (each < items)).all())


def test_negatives_are_uniform_and_reproducible() -> None:
    bank = MemoryBank(10, 2, generator=seed())
    drawn = bank.sample(20_000, exclude=torch.tensor([[0, 4], [9, 4]]), generator=seed(1))
    assert torch.equal(drawn, bank.sample(20_000, exclude=torch.tensor([9, 4, 0]), generator=seed(1)))
    share = torch.bincount(drawn, minlength=10) / 20_000
    assert torch.equal(share == 0, torch.tensor([True, *[False] * 3, True, *[False] * 4, True]))
    assert share[share > 0].sub(1 / 7).abs().max() < 0.02
    everyone = torch.bincount(bank.sample(20_000, generator=seed(2)), minlength=10) / 20_000
    assert everyone.sub(0.1).abs().max() < 0.02
    each = bank.sample_each(torch.tensor([0, 9]), 20_000, generator=seed(3))
    for own, row in zip((0, 9), each, strict=True):
        share = torch.bincount(row, minlength=10) / 20_000
        assert share[own] == 0
        assert share.sum() == pytest.approx(1)
        assert share[share > 0].sub(1 / 9).abs().max() < 0.02


# -------------------------------------------------------------------------------------------------------------- queue
@given(st.integers(1, 7), st.lists(st.integers(0, 10), max_size=6))
def test_a_queue_holds_the_last_rows(size: int, pushes: list[int]) -> None:
    queue, history = Queue(size, 1), []
    for count in pushes:
        new = [float(len(history) + i + 1) for i in range(count)]
        history += new
        queue.push(torch.tensor(new).reshape(count, 1))
        assert sorted(queue.stored[:, 0].tolist()) == history[-size:]
        assert len(queue.stored) == min(size, len(history))


def test_a_queue_takes_what_a_loss_gives() -> None:
    queue = Queue(4, 2)
    assert queue.stored.shape == (0, 2)
    x = normal(3, 2).to(torch.bfloat16).requires_grad_()
    queue.push(x)
    assert queue.stored.dtype == torch.float32
    assert not queue.stored.requires_grad
    assert torch.equal(queue.stored, x.detach().float())


# ------------------------------------------------------------------------------------------------------------ teacher
def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def wiggle(module: nn.Module, number: int) -> None:
    module(normal(6, 3, number=number))  # moves the running statistics
    with torch.no_grad():
        for i, p in enumerate(module.parameters()):
            p += normal(*p.shape, number=number + i)


def test_a_teacher_follows_as_the_formula_says_and_as_torch() -> None:
    student = network()
    teacher = Teacher(student, momentum=0.9)
    peer = AveragedModel(student, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    peer.update_parameters(student)  # its first update copies
    slow = [p.detach().double() for p in student.parameters()]
    for step in range(3):
        wiggle(student, step)
        teacher.update(student)
        peer.update_parameters(student)
        slow = [0.9 * m + 0.1 * p.detach().double() for m, p in zip(slow, student.parameters(), strict=True)]
    for mine, truth, other in zip(teacher.parameters(), slow, peer.parameters(), strict=True):
        assert torch.allclose(mine.double(), truth, atol=1e-6)
        assert torch.allclose(mine, other, atol=1e-6)
    for mine, theirs in zip(teacher.buffers(), student.buffers(), strict=True):
        assert torch.equal(mine, theirs)


def test_a_teacher_is_a_frozen_copy_of_its_own() -> None:
    student = network()
    teacher = Teacher(student)
    assert not any(p.requires_grad for p in teacher.parameters())
    assert all(p.requires_grad for p in student.parameters())
    stores = {t.untyped_storage().data_ptr() for t in student.state_dict().values()}
    assert not stores & {t.untyped_storage().data_ptr() for t in teacher.state_dict().values()}
    x = normal(5, 3).requires_grad_()
    assert torch.equal(teacher(x), student(x))
    assert not teacher(x).requires_grad
    wiggle(student, 1)
    assert not torch.equal(teacher.eval()(x), student.eval()(x))


def test_momentum_may_follow_a_schedule() -> None:
    student = network()
    teacher = Teacher(student, momentum=0.5)
    before = [p.clone() for p in teacher.parameters()]
    wiggle(student, 1)
    schedule = Cosine(start=0.9, end=1.0, over=10)
    teacher.update(student, momentum=schedule(10))
    assert all(torch.equal(p, q) for p, q in zip(teacher.parameters(), before, strict=True))
    teacher.update(student, momentum=0.0)
    assert all(torch.allclose(p, q) for p, q in zip(teacher.parameters(), student.parameters(), strict=True))


def test_tied_weights_stay_tied() -> None:
    student = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    student[1].weight = student[0].weight
    teacher = Teacher(student, momentum=0.9)
    with torch.no_grad():
        student[0].weight += 1
    expected = teacher.module[0].weight + 0.1
    teacher.update(student)
    assert teacher.module[0].weight is teacher.module[1].weight
    assert torch.allclose(teacher.module[0].weight, expected)


# --------------------------------------------------------------------------------------------------------- all of them
class Everything(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = network()
        self.centers = Centers(4, 2)
        self.bank = MemoryBank(12, 2, generator=seed(1))
        self.queue = Queue(7, 2)
        self.teacher = Teacher(self.net, momentum=0.9)

    def step(self, number: int) -> None:
        wiggle(self.net, number)
        z = self.teacher(normal(5, 3, number=number))
        negatives = self.bank.rows[self.bank.sample(3, generator=seed(number))]
        self.centers.update(z + negatives.mean(), torch.randint(4, (5,), generator=seed(number)))
        self.bank.update(torch.randint(12, (5,), generator=seed(number)), z)
        self.queue.push(z)
        self.teacher.update(self.net)


def test_a_resumed_run_remembers_everything(tmp_path: Path) -> None:
    whole, first, second = Everything(), Everything(), Everything()
    for number in range(6):
        whole.step(number)
    for number in range(3):
        first.step(number)
    save_file(first.state_dict(), tmp_path / "weights.safetensors")
    second.load_state_dict(load_file(tmp_path / "weights.safetensors"))
    for number in range(3, 6):
        second.step(number)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name]), name
    assert len(second.queue.stored) == 7


def test_memories_follow_the_device_and_stay_float32() -> None:
    moved = Everything().to("meta")
    assert {b.device.type for b in moved.buffers()} == {"meta"}
    memory = Centers(2, 2)
    memory.update(A.to(torch.bfloat16), Y)
    assert memory.centers.dtype == torch.float32


def test_what_does_not_fit_is_named() -> None:
    memory, bank, queue = Centers(2, 2), MemoryBank(3, 2, generator=seed()), Queue(3, 2)
    for call in (lambda x: memory.update(x, Y), lambda x: bank.update(Y, x), queue.push):
        for bad in (A[:, :1], A[0], torch.zeros(3, 2, dtype=torch.long)):
            with pytest.raises(BatchError, match=r"rows \[B, 2\] of floats"):
                call(bad)
        with pytest.raises(BatchError, match="not finite"):
            call(torch.full((3, 2), math.nan))
    with pytest.raises(BatchError, match=r"not in 0\.\.1"):
        memory.update(A, Y + 1)
    with pytest.raises(BatchError, match="integer labels"):
        bank.update(Y.float(), A)
    with pytest.raises(BatchError, match=r"not in 0\.\.2"):
        bank.update(Y - 1, A)
    with pytest.raises(BatchError, match="0 of 3 items are left"):
        bank.sample(1, exclude=torch.arange(3), generator=seed())
    with pytest.raises(BatchError, match=r"not in 0\.\.2"):
        bank.sample(1, exclude=torch.tensor([3]), generator=seed())
    with pytest.raises(BatchError, match="0 of 1 items are left"):
        MemoryBank(1, 2, generator=seed()).sample_each(torch.tensor([0]), 1, generator=seed())
    for make in (lambda n: Centers(n, 2), lambda n: MemoryBank(2, n, generator=seed()), lambda n: Queue(n, 2)):
        with pytest.raises(ConfigError, match="at least 1"):
            make(0)
    with pytest.raises(ConfigError, match="rate"):
        Centers(2, 2, rate=0.0)
    for bad_share in (-0.1, 1.1, math.nan):
        with pytest.raises(ConfigError, match="momentum"):
            MemoryBank(2, 2, momentum=bad_share, generator=seed())
        with pytest.raises(ConfigError, match="momentum"):
            Teacher(network()).update(network(), momentum=bad_share)
    with pytest.raises(ConfigError, match="other parameters"):
        Teacher(network()).update(nn.Linear(3, 4))
    with pytest.raises(ConfigError, match="half precision"):
        Teacher(nn.Linear(2, 2).to(torch.bfloat16))


def test_bank_rows_serve_as_noise_of_the_batch() -> None:
    bank = MemoryBank(6, 4, generator=seed())
    z = F.normalize(normal(2, 4), dim=1).requires_grad_()
    index = torch.tensor([1, 3])
    noise = bank.rows[bank.sample_each(index, 5, generator=seed(1))]
    assert noise.shape == (2, 5, 4)
    torch.einsum("bd,bkd->bk", z, noise).logsumexp(1).sum().backward()
    bank.update(index, z)
    assert not bank.rows.requires_grad
