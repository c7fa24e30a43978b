"""The paper's chain: every stage, its last model in 8 bits, and the packed files."""

import dataclasses
import json

import numpy as np
import pytest

from sparse_jax import io
from sparse_jax import recipe as recipe_lib
from sparse_jax.evaluate import HarnessConfig
from sparse_jax.prune import QuantizeConfig, SmoothQuant
from sparse_jax.quant import GridConfig
from sparse_jax.recipe import Finetune, Pack, SparseLlama
from sparse_jax.tree import leaf_paths
from sparse_jax.types import InputError
from tests.recipe import helpers

W8A8 = QuantizeConfig(
    grid=GridConfig(bits=8, group=0), smooth=SmoothQuant(), activations="dynamic"
)


def write_functions(folder):
    """A task in the form of `data.functions`."""
    target = folder / "functions"
    target.mkdir()
    for split, numbers in (("train", range(60)), ("heldout", range(60, 80))):
        rows = [{"instruction": f"def f{i}():", "output": f"ret {i}"} for i in numbers]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (target / f"{split}.jsonl").write_text(lines)
    row = {"query": "def f1():", "choices": ["ret 1", "ret 2"], "gold": 0}
    (target / "choice.jsonl").write_text((json.dumps(row) + "\n") * 4)
    return folder


def make_job(corpus, folder, **fields):
    base = helpers.make_recipe(corpus)
    base = helpers.replace_stage(base, "one_shot", enabled=False)
    job = SparseLlama(
        name="chain",
        pretraining=base,
        data=str(folder),
        finetune=Finetune(steps=3, batch_size=2, seq_len=64, peak=1e-2),
        control_peak=1e-2,
        quantize=W8A8,
        harness=HarnessConfig(limit=2),
        decode_size="tiny",
    )
    return dataclasses.replace(job, **fields)


@pytest.fixture(scope="module")
def chain(corpus, tmp_path_factory):
    folder = write_functions(tmp_path_factory.mktemp("data"))
    workdir = tmp_path_factory.mktemp("chain") / "run"
    recipe = make_job(corpus, folder).recipe()
    return workdir, recipe, recipe_lib.run(recipe, workdir, quiet=True)


def test_every_model_is_judged_and_asked(chain):
    _, recipe, report = chain
    models = {row["name"]: row for row in report["models"]}
    for name in ("dense", "trained_50", "trained_70", "finetuned", "quantized"):
        assert models[name]["domains"], name
    asked = {row["model"] for row in report["scores"]}
    assert (
        asked
        == {*models}
        == {
            n
            for n, s in recipe.stages.items()
            if s.kind in ("pretrain", "prune", "finetune")
        }
    )
    assert list(models["quantized"]["domains"]) == ["functions"]
    assert list(models["trained_70"]["domains"]) == ["code", "prose"]


def test_the_last_model_is_sparse_and_in_8_bits(chain):
    workdir, _, _ = chain
    found = io.resolve(workdir)
    before = helpers.masks_of(workdir / "finetuned")
    after = helpers.masks_of(workdir / "quantized")
    assert before.keys() == after.keys() and len(after) == 7
    for path, mask in after.items():
        np.testing.assert_array_equal(mask, before[path])
        assert (path, 0) in found.grids
        assert not leaf_paths(found.params)[path][~mask].any()
    assert found.activations.kind == "dynamic"


def test_rounded_inputs_are_judged_beside_floats(chain):
    workdir, _, _ = chain
    result = json.loads((workdir / "quantized" / "result.json").read_text())
    rounded, floats = result["domains"], result["float_inputs"]
    assert rounded["functions"]["tokens"] == floats["functions"]["tokens"]
    assert rounded["functions"]["loss"] != floats["functions"]["loss"]
    assert rounded["functions"]["loss"] == pytest.approx(
        floats["functions"]["loss"], rel=0.02
    )


def test_packed_files_stand_beside_the_paper(chain):
    workdir, _, report = chain
    rows = {row["model"]: row for row in report["packed"]}
    assert [*rows] == ["dense_control_finetuned", "finetuned", "quantized"]
    assert rows["quantized"]["formats"].keys() <= {"ell_int8", "dense_int8"}
    assert [*rows["quantized"]["domains"]] == ["code", "prose"]
    assert "8.6x" in rows["quantized"]["paper"]
    sizes = [row["file_bytes"] for row in rows.values()]
    assert sizes[0] > sizes[1] > sizes[2]
    for row in rows.values():
        assert row["decode"]["speedup"] > 0
    assert (workdir / "packed_quantized" / "model.packed").is_file()
    assert "## Packed" in (workdir / "report.md").read_text()


def test_a_packing_that_was_killed_is_done_again(chain, tmp_path):
    workdir, recipe, before = chain
    (workdir / "packed_quantized" / "result.json").unlink()
    after = recipe_lib.run(recipe, workdir, quiet=True)
    kept = ("file_bytes", "bits_per_weight", "formats", "domains")
    for old, new in zip(before["packed"], after["packed"], strict=True):
        assert {k: old[k] for k in kept} == {k: new[k] for k in kept}


def test_documents_are_judged_by_the_packed_kernels(chain, corpus, tmp_path):
    base = helpers.make_recipe(corpus)
    stages = {"dense": base.stages["dense"], "packed": Pack(parent="dense")}
    recipe = dataclasses.replace(
        base, name="p", stages=stages, order=tuple(stages), final="dense"
    )
    report = recipe_lib.run(recipe, tmp_path / "p", quiet=True)
    packed, model = report["packed"][0], report["models"][0]
    for domain, numbers in model["domains"].items():
        assert packed["domains"][domain]["loss"] == pytest.approx(
            numbers["loss"], abs=1e-4
        )
    assert "decode" not in packed


def test_what_is_missing_is_named(corpus, tmp_path):
    with pytest.raises(InputError, match=r"config\.data is not set"):
        make_job(corpus, tmp_path, task="gsm8k", data=None).recipe()
    with pytest.raises(InputError, match="model size '1b' is unknown"):
        folder = write_functions(tmp_path)
        recipe = make_job(corpus, folder, decode_size="1b").recipe()
        recipe_lib.run(recipe, tmp_path / "w", quiet=True)
