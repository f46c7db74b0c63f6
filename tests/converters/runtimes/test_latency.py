"""Times predicted from ops: what each op does, costs that are found again, and how zeros change a network."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from converters import litert
from converters.errors import UserError
from converters.litert.graph import read, read_file, weights
from converters.litert.linter import lint_graph
from converters.runtimes import micro
from converters.runtimes.latency import (
    LatencyModel,
    Work,
    fit,
    kept_weights,
    latency_model,
    runs_sparse,
    strips,
    time_model,
    time_models,
    timed_runtimes,
    works,
)
from edgeprune import pruning
from edgeprune.pruning import Block

ACTIVATION = micro.ACTIVATIONS[1]
COSTS = {
    "run": 0.5,
    "conv1x1": 2e-5,
    "depthwise": 1e-4,
    "conv 3x3": 3e-5,
    "linear": 1e-5,
    "MEAN": 2e-5,
    "ADD": 1e-5,
}


def network(zeros: float) -> bytes:
    """An image of 32 px: 8 channels, 16, depthwise at stride 2, 32."""
    made = micro.Network(32, 0, zeros)
    made.first(8, ACTIVATION)
    made.conv1x1(16, ACTIVATION)
    made.depthwise(3, 2, ACTIVATION)
    made.conv1x1(32, ACTIVATION)
    made.mean()
    made.linear(10)
    return made.to_bytes()


def model_of(*files: bytes) -> LatencyModel:
    """Costs of every kind of work in these files, the same for each of its terms."""
    kinds = {}
    for data in files:
        for sparse in (False, True):
            for one in works(read(data), sparse=sparse):
                cost = next(value for start, value in COSTS.items() if one.kind.startswith(start))
                kinds[one.kind] = (cost * (0.4 if one.kind == "conv1x1, sparse" else 1),) * len(one.amounts)
    return LatencyModel("arm64", "LiteRT", "none", "processor time", kinds)


def test_what_each_op_does():
    found = {one.kind: one.amounts for one in works(read(network(0)), sparse=False)}
    assert found["conv 3x3 of an image, dense"] == (1, 16 * 16 * 8, 16 * 16 * 8 * 27)
    assert found["depthwise 3x3 at stride 2, dense"] == (1, 8 * 8, 8 * 8 * 16)
    assert found["linear"] == (1, 10, 320)
    convolutions = [
        one.amounts for one in works(read(network(0)), sparse=False) if one.kind == "conv1x1, dense"
    ]
    assert convolutions == [(1, 256 * 16, 256 * 8, 256 * 128), (1, 64 * 32, 64 * 16, 64 * 512)]


def test_sparse_kernels_multiply_what_is_kept():
    dense, sparse = model_of(network(0)), read(network(1))
    assert runs_sparse(sparse)
    assert lint_graph(sparse, "arm64").sparse
    work = [one for one in works(sparse, sparse=True) if one.kind == "conv1x1, sparse"]
    kept = kept_weights(sparse, work)
    assert set(kept.values()) == {int(np.count_nonzero(sparse.constant(t))) for t in kept}
    cost = dense.milliseconds["conv1x1, sparse"][0]
    # 256 pixels are 8 strips: (1 + 16 x (8 + 256) + kept x (8 + 256)) terms.
    assert dense.of_work(work[0], 10) == pytest.approx(cost * (1 + 16 * 264 + 10 * 264))


def test_strips_of_a_map():
    assert [strips(pixels) for pixels in (1, 31, 32, 49, 196, 3136)] == [1, 5, 1, 3, 7, 98]


def test_costs_are_found_again():
    pairs = [micro.pair(seed) for seed in range(60)]
    files = [data for pair in pairs for data in (pair.dense, pair.sparse)]
    graphs = [read(data) for data in files]
    rng = np.random.default_rng(0)
    networks, kinds = [], {}
    for graph in graphs:
        work = works(graph, sparse=runs_sparse(graph))
        networks.append((work, kept_weights(graph, work)))
        for one in work:
            kinds.setdefault(one.kind, tuple(rng.uniform(1e-6, 1e-4, len(one.amounts)).tolist()))
    true = LatencyModel("arm64", "", "", "", kinds)
    found = LatencyModel("arm64", "", "", "", fit(networks, [true.of(graph) for graph in graphs]))
    assert [found.of(g) for g in graphs] == pytest.approx([true.of(g) for g in graphs], rel=1e-3)


def test_the_time_of_a_network_for_any_zeros():
    dense, sparse = read(network(0)), read(network(1))
    model = model_of(network(0))
    names = ["first", "a", "depthwise", "b", "classes"]
    times = time_model(model, dense, names)
    assert times.layers == ("a", "b")
    assert times.counts.tolist() == [128, 512]
    assert times.dense_ms == pytest.approx(model.of(dense))
    constants = [tensor for op, tensor in weights(sparse) if sparse.op_name(op) == "CONV_2D"][1:]
    kept = [int(np.count_nonzero(sparse.constant(tensor))) for tensor in constants]
    assert float(times.milliseconds(kept)) == pytest.approx(model.of(sparse))
    # Two thirds of zeros, and one weight more: dense kernels, then sparse ones.
    assert times.milliseconds([[100, 114], [100, 113]]).tolist() == pytest.approx(
        [times.dense_ms, times.base_ms + np.array([100, 113]) @ times.per_kept_ms]
    )


@pytest.mark.parametrize("runtime", ["arm64", "browser", "x86-sparse"])
def test_zeros_save_time_on_each_runtime_that_was_fitted(runtime):
    assert runtime in timed_runtimes()
    model, pair = latency_model(runtime), micro.pair(2)
    assert lint_graph(read(pair.sparse), "arm64").sparse
    assert 0 < model.of(read(pair.sparse)) < model.of(read(pair.dense))


def test_wide_networks_have_weights_that_no_cache_holds():
    def most_bytes(sizes: micro.Sizes) -> int:
        return max(len(micro.pair(seed, sizes=sizes).dense) for seed in range(8))

    assert most_bytes(micro.WIDE) > 2e6 > most_bytes(micro.SMALL)


def test_what_was_not_fitted_is_not_guessed():
    model = model_of(network(0))
    with pytest.raises(UserError, match="the time of LOG on arm64 is not known"):
        model.of_work(Work("LOG", (1.0,)))


class Strided(nn.Module):
    """Padded as TensorFlow pads at stride 2: sparse kernels take it mirrored only."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(3, 8, 3, 2), nn.ReLU())
        self.pointwise = nn.Sequential(nn.Conv2d(8, 64, 1), nn.ReLU(), nn.Conv2d(64, 32, 1), nn.ReLU())
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pointwise(self.stem(x)))


def test_a_network_that_is_mirrored_for_sparse_kernels_has_a_time(tmp_path):
    torch.manual_seed(0)
    model, example = Strided().eval(), torch.rand(1, 3, 32, 32)
    dense = litert.convert(model, example, tmp_path / "dense.tflite", target="litert-arm64")
    times = time_models(["arm64"], dense.path, [fact.name for fact in dense.layers])["arm64"]
    assert times.dense_ms == pytest.approx(latency_model("arm64").of(read_file(dense.path)))
    pruning.prune(model, Block(1, 4), 0.75)
    sparse = litert.convert(model, example, tmp_path / "sparse.tflite", target="litert-arm64")
    graph = read_file(sparse.path)
    assert "REVERSE_V2" in {graph.op_name(op) for op in graph.ops}
    kept = [int(np.count_nonzero(model.get_submodule(name).weight.detach())) for name in times.layers]
    assert float(times.milliseconds(kept)) == pytest.approx(latency_model("arm64").of(graph))
