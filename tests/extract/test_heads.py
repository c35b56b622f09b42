"""Heads compute what VISSL's of the same name and parameters compute, written out step by step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from featbench.extract.errors import HeadError
from featbench.extract.model.heads import build_heads

FEATURES = torch.randn(5, 12, generator=torch.Generator().manual_seed(0))


def built(name: str, **parameters: Any) -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    """A head in eval mode, with statistics of batch norm that do something, and its state."""
    torch.manual_seed(1)
    head = build_heads([(name, parameters)])[0].eval().requires_grad_(False)
    for key, tensor in head.state_dict().items():
        if "running" in key:
            tensor.uniform_(0.5, 1.5)
    return head, head.state_dict()


def linear(state: dict[str, torch.Tensor], name: str, x: torch.Tensor) -> torch.Tensor:
    return x @ state[f"{name}.weight"].T + state.get(f"{name}.bias", 0)


def norm(state: dict[str, torch.Tensor], name: str, x: torch.Tensor) -> torch.Tensor:
    mean, var = state[f"{name}.running_mean"], state[f"{name}.running_var"]
    return (x - mean) / torch.sqrt(var + 1e-5) * state[f"{name}.weight"] + state[f"{name}.bias"]


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.allclose(a, b, atol=1e-5)


def test_an_mlp_of_one_layer_is_linear_whatever_is_asked_for() -> None:
    """As in VISSL, where the last layer stands bare by default."""
    head, state = built("mlp", dims=[12, 7], use_bn=True, use_relu=True, use_dropout=True)
    assert list(state) == ["clf.0.weight", "clf.0.bias"]
    assert close(head(FEATURES), linear(state, "clf.0", FEATURES))


def test_an_mlp_has_norm_then_relu_then_dropout_after_each_layer_but_the_last() -> None:
    head, state = built("mlp", dims=[12, 7, 3], use_bn=True, use_relu=True, use_dropout=True, use_bias=False)
    hidden = norm(state, "clf.1", linear(state, "clf.0", FEATURES)).relu()
    assert "clf.0.bias" not in state
    assert close(head(FEATURES), linear(state, "clf.4", hidden))
    assert close(head(FEATURES[:, :, None, None]), head(FEATURES)), "maps of 1 x 1 are vectors"


def test_an_mlp_may_have_them_after_the_last_layer_too() -> None:
    head, state = built("mlp", dims=[12, 7], use_relu=True, use_bn=True, skip_last_layer_relu_bn=False)
    assert close(head(FEATURES), norm(state, "clf.1", linear(state, "clf.0", FEATURES)).relu())


def test_a_head_refuses_maps() -> None:
    with pytest.raises(ValueError, match="a head needs vectors"):
        built("mlp", dims=[12, 7])[0](torch.rand(1, 12, 2, 2))


def test_swavs_head_gives_the_embedding_of_unit_length() -> None:
    head, state = built("swav_head", dims=[12, 9, 4], use_bn=True, num_clusters=[6, 5])
    hidden = norm(state, "projection_head.1", linear(state, "projection_head.0", FEATURES)).relu()
    embedding = linear(state, "projection_head.3", hidden)
    unit = embedding / embedding.norm(dim=1, keepdim=True)
    assert close(head(FEATURES), unit)
    assert state["prototypes1.weight"].shape == (5, 4)
    scores, state = built("swav_head", dims=[12, 4], use_bn=False, num_clusters=[6], return_embeddings=False)
    unit = F.normalize(linear(state, "projection_head.0", FEATURES))
    assert close(scores(FEATURES), unit @ state["prototypes0.weight"].T)
    raw, state = built("swav_head", dims=[12, 4], use_bn=False, num_clusters=[], normalize_feats=False)
    assert close(raw(FEATURES), linear(state, "projection_head.0", FEATURES))


@pytest.mark.parametrize("use_bn", [False, True])
def test_dinos_head_gives_the_logits_of_unit_bottlenecks(use_bn: bool) -> None:
    head, state = built("dino_head", in_dim=12, num_clusters=[6], hidden_dim=8, bottleneck_dim=4, use_bn=use_bn)
    x, step = FEATURES, 0
    for _ in range(2):
        x = linear(state, f"mlp.{step}", x)
        if use_bn:
            step += 1
            x = norm(state, f"mlp.{step}", x)
        x, step = F.gelu(x), step + 2
    x = F.normalize(linear(state, f"mlp.{step}", x))
    direction = state["prototypes0.weight_v"] / state["prototypes0.weight_v"].norm(dim=1, keepdim=True)
    assert close(head(FEATURES), x @ (direction * state["prototypes0.weight_g"]).T)


def test_eval_mlp_scales_channels_before_its_layers() -> None:
    head, state = built("eval_mlp", in_channels=3, dims=[12, 5])
    maps = FEATURES.reshape(5, 3, 2, 2)
    mean, var = (state[f"channel_bn.running_{what}"].view(1, 3, 1, 1) for what in ("mean", "var"))
    scaled = (maps - mean) / torch.sqrt(var + 1e-5)
    assert close(head(maps), linear(state, "clf.clf.0", scaled.flatten(1)))


def test_identity_is_the_trunks_output() -> None:
    assert torch.equal(built("identity")[0](FEATURES), FEATURES)


def test_a_residual_head_adds_its_input_twice_where_dimensions_allow_it() -> None:
    """As VISSL's does: x + f(x) within each block, and x again around it."""
    (head,) = build_heads([("mlp_res", {"dims": [4, 4, 3], "use_relu": True})])
    state = head.state_dict()
    assert set(state) == {f"clf.{index}.mlp_res_block.0.{kind}" for index in (0, 1) for kind in ("weight", "bias")}
    x = torch.tensor([[1.0, -2.0, 3.0, 0.5]])
    first, second = (
        lambda v, i=i: v @ state[f"clf.{i}.mlp_res_block.0.weight"].T + state[f"clf.{i}.mlp_res_block.0.bias"]
        for i in (0, 1)
    )
    hidden = 2 * x + first(x).relu()
    assert torch.allclose(head(x), second(hidden))


def test_msn_gives_its_query_and_ibot_the_class_tokens_logits() -> None:
    (msn,) = build_heads([("msn_head", {"in_dim": 4, "num_prototypes": 3, "hidden_dim": 5, "output_dim": 2,
                                        "use_bn": True, "return_query": True})])  # fmt: skip
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    query = msn.eval()(x)
    assert torch.allclose(query.norm(dim=1), torch.ones(3))
    assert {"fc.fc1.weight", "fc.bn2.running_var", "fc.fc3.bias", "prototypes"} <= set(msn.state_dict())
    with pytest.raises(HeadError, match="return_query must be True"):
        build_heads([("msn_head", {"in_dim": 4, "num_prototypes": 3})])
    (ibot,) = build_heads([("ibot_head", {"in_dim": 4, "out_dim": 6, "hidden_dim": 5, "bottleneck_dim": 2})])
    state = ibot.state_dict()
    gelu = torch.nn.functional.gelu
    hidden = gelu(x @ state["mlp.0.weight"].T + state["mlp.0.bias"])
    hidden = gelu(hidden @ state["mlp.2.weight"].T + state["mlp.2.bias"])
    bottleneck = hidden @ state["mlp.4.weight"].T + state["mlp.4.bias"]
    unit = bottleneck / bottleneck.norm(dim=1, keepdim=True)
    rows = state["prototypes0.weight_v"] / state["prototypes0.weight_v"].norm(dim=1, keepdim=True)
    assert torch.allclose(ibot(x), unit @ rows.T * state["prototypes0.weight_g"].T, atol=1e-6)
    assert "prototypes1.weight_v" in state, "those of the patches are in the file, too"


def test_ibots_distillation_head_gives_the_class_tokens_output() -> None:
    """One batch norm after each linear layer, the same, as VISSL has it; then a norm without parameters."""
    head, state = built("ibot_distillation_head", in_dim=4, out_dim=3, patch_out_dim=2, hidden_dim=5, norm="bn",
                        last_norm="bn", act="relu")  # fmt: skip
    hidden = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    x = hidden
    for place in (0, 3):
        mapped = linear(state, f"mlp.{place}", hidden)
        scaled = (mapped - state["mlp.1.running_mean"]) / (state["mlp.1.running_var"] + 1e-5).sqrt()
        hidden = (scaled * state["mlp.1.weight"] + state["mlp.1.bias"]).relu()
    output = linear(state, "to_class_out", hidden)
    expected = (output - state["last_norm.running_mean"]) / (state["last_norm.running_var"] + 1e-5).sqrt()
    assert torch.allclose(head(x), expected, atol=1e-5)
    assert {"mlp.4.weight", "to_patch_out.weight"} <= state.keys()
    with pytest.raises(HeadError, match="num_layers must be at least 2"):
        build_heads([("ibot_distillation_head", {"in_dim": 4, "out_dim": 3, "num_layers": 1})])
