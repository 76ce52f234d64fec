"""The INT4 layout, against hand-computed words."""

from __future__ import annotations

import torch

from perilune.model.int4 import dequantise, fake_quantise, pack, quantise, unpack


def test_packs_eight_nibbles_a_word_lowest_first() -> None:
    row = torch.tensor([[*range(-8, 8), *[0] * 16]])
    words = [word & 0xFFFFFFFF for word in pack(row)[0].tolist()]
    assert words == [0x76543210, 0xFEDCBA98, 0x88888888, 0x88888888]


def test_quantises_a_ramp_to_the_recorded_words() -> None:
    ramp = torch.tensor([[c / 16 - 2 for c in range(64)]])
    values, scale = quantise(ramp, 32)
    assert scale.tolist() == [[0.267578125, 0.2578125]]
    assert pack(values).tolist() == [
        [572592401, 1145254706, 1716868420, -2005436570, -1449551736, -876889430, -304227124, -274]
    ]


def test_unpack_undoes_pack_for_every_nibble_in_every_place() -> None:
    generator = torch.Generator().manual_seed(1)
    values = torch.randint(-8, 8, (5, 3, 64), generator=generator, dtype=torch.int8)
    assert torch.equal(unpack(pack(values)), values)
    words = torch.randint(-(2**31), 2**31, (4, 8), generator=generator).to(torch.int32)
    assert torch.equal(pack(unpack(words)), words)


def test_dequantised_weight_is_the_f32_product_rounded_to_bf16() -> None:
    scale = torch.tensor([[0.267578125, 0.2578125]], dtype=torch.bfloat16)
    values = torch.tensor([[q % 16 - 8 for q in range(64)]], dtype=torch.int8)
    got = dequantise(pack(values), scale)
    want = [
        torch.tensor(q * (0.267578125 if place < 32 else 0.2578125)).bfloat16()
        for place, q in enumerate(values[0].tolist())
    ]
    assert got.dtype == torch.bfloat16
    assert torch.equal(got[0], torch.stack(want))


def test_a_group_of_zeros_stays_zero() -> None:
    weight = torch.cat([torch.zeros(2, 32), torch.ones(2, 32)], dim=1)
    values, scale = quantise(weight, 32)
    back = dequantise(pack(values), scale)
    assert torch.equal(back[:, :32], torch.zeros(2, 32, dtype=torch.bfloat16))
    assert torch.isfinite(back).all()


def test_error_stays_within_half_a_step() -> None:
    weight = torch.randn(16, 128, generator=torch.Generator().manual_seed(2))
    values, scale = quantise(weight, 32)
    step = scale.float().repeat_interleave(32, dim=1)
    # Half a step by rounding, a little more at the ends where 7.5 steps are cut to 7; BF16 rounds on top.
    assert ((dequantise(pack(values), scale).float() - weight).abs() <= 0.56 * step).all()


def test_fake_quantised_weight_is_what_the_checkpoint_gives_back_and_passes_gradients() -> None:
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(3)).requires_grad_()
    fake = fake_quantise(weight, 32)
    values, scale = quantise(weight.detach(), 32)
    assert torch.equal(fake, dequantise(pack(values), scale).float())
    fake.sum().backward()
    assert weight.grad is not None
    assert torch.equal(weight.grad, torch.ones_like(weight))
