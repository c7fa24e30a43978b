"""Reading a compiled program: types, loops, and XLA's ways to write a collective."""

import pytest

from sparse_jax.plan import collectives, hlo, traffic

TPU = """HloModule jit_step

%fused_start (p.0: bf16[4,8]) -> bf16[16,8] {
  %p.0 = bf16[4,8]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %all-gather.1 = bf16[16,8]{1,0:T(8,128)(2,1)} all-gather(%p.0), channel_id=7, \
replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_0'}, dimensions={0}
}

%fused_done (p.1: bf16[16,8]) -> bf16[16,8] {
  %p.1 = bf16[16,8]{1,0} parameter(0)
  ROOT %all-gather.2 = bf16[16,8]{1,0} all-gather(%p.1), channel_id=7, \
replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_0'}, dimensions={0}
}

%body (carry: (s32[], bf16[4,8])) -> (s32[], bf16[4,8]) {
  %carry = (s32[]{:T(128)}, bf16[4,8]{1,0}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%carry), index=0
  %x = bf16[4,8]{1,0} get-tuple-element(%carry), index=1
  %kernel = bf16[4,8]{1,0} custom-call(%x), custom_call_target="tpu_custom_call", \
backend_config={"body": "
}
"}
  %start = bf16[16,8]{1,0:T(8,128)(2,1)S(1)} fusion(%x), kind=kCustom, \
calls=%fused_start
  %done = bf16[16,8]{1,0} fusion(%start), kind=kCustom, \
output_to_operand_aliasing={{}: (0, {})}, calls=%fused_done
  %copy = (bf16[4,8]{1,0:T(8,128)(2,1)S(1)}, bf16[4,8]{1,0}, u32[]) copy-start(%x)
  ROOT %next = (s32[]{:T(128)}, bf16[4,8]{1,0}) tuple(%i, %kernel)
}

%condition (carry.1: (s32[], bf16[4,8])) -> pred[] {
  %carry.1 = (s32[]{:T(128)}, bf16[4,8]{1,0}) parameter(0)
  %i.1 = s32[]{:T(128)} get-tuple-element(%carry.1), index=0
  %limit = s32[]{:T(128)} constant(12)
  ROOT %below = pred[]{:T(512)} compare(%i.1, %limit), direction=LT
}

ENTRY %main (a: bf16[4,8]) -> bf16[4,8] {
  %a = bf16[4,8]{1,0} parameter(0)
  %zero = s32[] constant(0)
  %first = (s32[], bf16[4,8]{1,0}) tuple(%zero, %a)
  %loop = (s32[]{:T(128)}, bf16[4,8]{1,0}) while(%first), condition=%condition, \
body=%body
  %b = bf16[4,8]{1,0} get-tuple-element(%loop), index=1
  ROOT %sum = bf16[4,8]{1,0} all-reduce(%b), channel_id=8, replica_groups={}
}
"""
"""As libtpu writes it: one gather in two fusions with one channel, a loop that tells
its length only in its condition, a kernel whose configuration has a line `}`."""


def test_a_tpu_program_is_counted_by_hand():
    found, unknown = collectives.collectives(TPU, 8)
    assert unknown == 0
    assert [(c.kind, c.count, c.payload, c.sent) for c in found] == [
        ("all-gather", 12, 12 * 256, 12 * 256 * 3 / 4),
        ("all-reduce", 1, 64, 2 * 64 * 7 / 8),
    ]


def test_traffic_of_a_tpu_program_is_counted_by_hand():
    # The kernel reads and writes 64 bytes; the gather reads 64 and writes 256, in two
    # fusions that pass its buffer on; a copy to the chip reads 64.
    assert traffic.moved(TPU) == 12 * (2 * 64 + 64 + 256 + 64) + 2 * 64


def test_a_loop_of_unknown_length_is_reported():
    found, unknown = collectives.collectives(TPU.replace("LT", "NE"), 8)
    assert unknown == 1
    assert found[0].count == 1


@pytest.mark.parametrize(
    ("groups", "devices"),
    [
        ("replica_groups={{0,1},{2,3}}", 2),
        ("replica_groups=[4,8]<=[32]", 8),
        ("replica_groups=[4,8]<=[8,4]T(1,0)", 8),
        ("replica_groups=mesh['a'=2,'b'=16] {'a','b'}", 32),
        ("replica_groups=mesh['a'=2,'b'=16] {'b':(1)4}", 4),
        ("replica_groups={}", 64),
        ("", 64),
    ],
)
def test_groups_in_every_notation(groups, devices):
    text = f"""
ENTRY %main (a: f32[8]) -> f32[8] {{
  %a = f32[8]{{0}} parameter(0)
  ROOT %r = f32[8]{{0}} all-reduce(%a), channel_id=1, {groups}, to_apply=%add
}}
"""
    found, _ = collectives.collectives(text, 64)
    assert found[0].sent == pytest.approx(2 * 32 * (devices - 1) / devices)


def test_sizes_of_types():
    sizes = [
        a.bytes for a in hlo.arrays("(f32[3]{0}, s4[5], pred[2,2], u64[], bf16[0])")
    ]
    assert sizes == [12, 3, 4, 8, 0]
