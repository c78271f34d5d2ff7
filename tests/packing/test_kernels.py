"""A model made ready for packed rows; on a GPU, packed training against separate sequences in bfloat16."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM

from reasongenrm.packing.attention import NAME, Segments
from reasongenrm.packing.kernels import prepare_for_packed_rows
from reasongenrm.packing.trees import Branch, Tree, pack
from tests.tiny import tiny_checkpoint


def test_residual_stream_is_bfloat16_where_training_is(tmp_path: Path) -> None:
    tiny_checkpoint(tmp_path, "chatml")
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    prepare_for_packed_rows(model, keep_dtype="bfloat16")
    assert model.config._attn_implementation == NAME
    seen: list[torch.dtype] = []
    for layer in model.model.layers:
        layer.register_forward_hook(lambda _module, _args, out: seen.append(out.dtype))
    row = pack([Tree([1], (Branch([2, 3], [2, 3]),))])
    with torch.autocast("cpu", torch.bfloat16):
        model(
            input_ids=torch.from_numpy(row.input_ids)[None],
            position_ids=torch.from_numpy(row.position_ids)[None],
            segments=Segments.of(row),
        )
    assert set(seen) == {torch.bfloat16}
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}


def test_float32_training_keeps_float32(tmp_path: Path) -> None:
    tiny_checkpoint(tmp_path, "chatml")
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    prepare_for_packed_rows(model, keep_dtype="float32")
    assert model.get_input_embeddings()(torch.tensor([1])).dtype == torch.float32


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_packed_log_probabilities_and_gradients_are_within_the_rounding_of_separate_ones() -> None:
    """bfloat16 on a GPU, kernels and all: no farther from float32 than one sequence at a time is."""
    config = Qwen2Config(
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=1000,
    )
    torch.manual_seed(0)
    tokens = [torch.randint(0, 1000, (length,)).tolist() for length in (300, 120, 77, 500, 200)]
    trees = [
        Tree(tokens[0], (Branch(tokens[1], tokens[1]), Branch(tokens[2], tokens[2]))),
        Tree(tokens[3][:1], (Branch(tokens[4], tokens[4]),)),
    ]
    model: Any = Qwen2ForCausalLM(config).cuda()

    def gradient(dtype: torch.dtype, *, packed: bool) -> torch.Tensor:
        model.zero_grad()
        with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
            if packed:
                row = pack(trees)
                logits = model(
                    input_ids=torch.from_numpy(row.input_ids)[None].cuda(),
                    position_ids=torch.from_numpy(row.position_ids)[None].cuda(),
                    segments=Segments.of(row).to("cuda"),
                ).logits[0]
                targets = torch.from_numpy(row.targets).cuda()
                losses = [torch.nn.functional.cross_entropy(logits.float(), targets, reduction="sum")]
            else:
                losses = []
                for tree in trees:
                    for branch in tree.branches:
                        ids = torch.tensor([[*tree.prefix, *branch.ids]]).cuda()
                        logits = model(ids).logits[0, len(tree.prefix) - 1 : -1]
                        losses.append(
                            torch.nn.functional.cross_entropy(
                                logits.float(), ids[0, len(tree.prefix) :], reduction="sum"
                            )
                        )
        torch.stack(losses).sum().backward()  # type: ignore[no-untyped-call]
        return torch.cat([weight.grad.flatten() for weight in model.parameters()])

    exact, separate = gradient(torch.float32, packed=False), gradient(torch.bfloat16, packed=False)
    prepare_for_packed_rows(model)
    found = gradient(torch.bfloat16, packed=True)
    error, expected = ((given - exact).norm() / exact.norm() for given in (found, separate))
    assert error.item() < 1.5 * expected.item()
