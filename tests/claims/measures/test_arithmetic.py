"""Known answers of the claims that need no training, and their verdicts."""

import copy
import re

import numpy as np
import pytest
import torch
from torch import nn

from lowrank_study.claims.files import load_claims
from lowrank_study.claims.measures import CLAIM_MEASURES
from lowrank_study.claims.measures.architectures import architecture_of
from lowrank_study.claims.measures.evidence import NO_EVIDENCE
from lowrank_study.claims.measures.formula import adapter, evaluate, formula
from lowrank_study.claims.measures.outcome import Measured, Observed, Outcome
from lowrank_study.claims.verdicts import check_claim
from lowrank_study.errors import InputError
from lowrank_study.methods.layers.lora import add_lora
from lowrank_study.methods.layers.modules import target_modules
from lowrank_study.methods.lora import Lora

CLAIMS = {claim.id: claim for claim in load_claims()}


def values(outcome: Outcome) -> list[float]:
    assert isinstance(outcome, Measured)
    return [value.value for value in outcome.values]


# id, verdict, measured values in base units
KNOWN = [
    ("d000_gpt3_query_shape", "fails", [12288, 12288]),
    ("d000_diagram_reduction", "fails", [256]),
    ("d000_text_reduction", "holds", [256]),
    ("d000_toy_product", "holds", [0.05]),
    ("d000_parameters_7b", "fails", [8_388_608]),
    ("d000_share_7b", "fails", [0.0012449]),
    ("d000_devices_70b", "fails", [7]),
    ("d000_memory_70b_fp32", "fails", [1128.86e9]),
    ("d000_memory_70b_bf16", "fails", [564.43e9]),
    ("d000_base_on_disk", "holds", [13.477e9]),
    ("d000_gaussian_start_of_listing", "fails", [-1.2]),
    ("d002_memory_ratio", "holds", [3.962]),
    ("d002_adapter_parameters", "fails", [8_388_608]),
    ("d002_c_attn_shape", "fails", [768, 2304]),
    ("d002_full_65b", "holds", [522.29e9]),
    ("d002_lora_65b", "holds", [132.17e9]),
    ("d002_qlora_65b", "holds", [35.28e9]),
    ("d002_4_bit_65b_single", "fails", [36.72e9]),
    ("d002_70b_share", "fails", [32_768_000 / 68_976_648_192]),
    ("d002_retention_64", "holds", [0.99259]),
    ("d002_retention_64_above_chance", "fails", [0.96622]),
    ("d002_retention_8_above_chance", "fails", [0.90541]),
    ("d002_listing_matches_gpt2", "fails", [0]),
    ("d002_listing_matches_llama", "holds", [224]),
    ("d002_layer_weights", "fails", [7_077_888]),
    ("d002_listing_matches_bert", "holds", [73]),
    ("d002_listing_tries_ranks", "fails", [192]),
    ("d002_listing_freezes", "fails", [0.8406]),
    ("d002_full_65b_devices", "fails", [7]),
    ("d002_rte_attribution", "fails", [177]),
    ("d002_rte_full", "fails", [1.16593]),
    ("d002_rte_lora", "fails", [1.28678]),
    ("d003_qlora_consumer_gpu_33b", "holds", [20.681e9]),
    ("d003_memory_saved", "holds", [3.99]),
    ("d003_compute_saved", "fails", [0.66731]),
    ("d003_needs_a_cluster", "fails", [53.907e9]),
    ("d003_needs_a_cluster_fp32", "holds", [107.815e9]),
    ("d003_few_million", "holds", [4_194_304]),
    ("d003_smaller_rank_faster", "holds", [0.99325]),
    ("d003_qlora_consumer_gpu", "fails", [40.08e9]),
    ("d003_thousand_times_qv", "holds", [1606.56]),
    ("d003_thousand_times_attention", "fails", [803.28]),
    ("d003_thousand_times_all_linear", "fails", [337.11]),
    ("d003_attention_is_square", "fails", [1, 0.125, 0.125, 1]),
    ("d003_feed_forward_is_four_wide", "fails", [2.6875]),
    ("d003_feed_forward_of_gpt2", "holds", [4]),
    ("d004_loss", "holds", [2.75]),
    ("d004_output", "holds", [1.1, 0.2, -0.7, 2.4]),
    ("d004_gradient_A", "fails", [0.1, -0.8, -1.7, 1.4]),
    ("d004_gradient_B", "fails", [-0.1, 0.29, 0, 0, 0, 0, 0, 0]),
    ("d004_gradient_W", "fails", [0.1, -0.8, -1.7, 1.4] + [0] * 12),
    ("d004_new_B", "fails", [1.01, -0.029, 0, 1, 0.5, -0.5, -1, 1]),
    ("d004_new_A", "fails", [0.09, 0.28, 0.47, 0.26, -0.1, -0.2, 0, 0.1]),
    ("d004_loss_falls", "holds", [2.21414]),
    ("d004_linear_weights", "holds", [6_476_005_376]),
    ("d004_hundred_layers", "holds", [6_553_600]),
    ("d004_share_of_adapted", "fails", [0.00390625]),
    ("d004_share_of_model", "holds", [0.00093623]),
    ("hu2021_table_5_budget", "holds", [18_874_368] * 7),
    ("hu2021_table_7_random_4", "holds", [0.020166]),
    ("hu2021_table_7_random_64", "holds", [0.322656]),
    ("noise_energy_rank_90", "holds", [0.509]),
    ("noise_energy_rank_99", "holds", [0.77]),
    ("noise_effective_rank", "holds", [0.804]),
    ("noise_effective_rank_of_squares", "holds", [0.605]),
    ("noise_participation_ratio", "holds", [0.5]),
    ("noise_stable_rank", "holds", [0.252]),
    ("noise_gavish_donoho", "holds", [0]),
    ("noise_rank_4_energy", "holds", [141]),
    ("noise_rank_4_effective", "holds", [447]),
    ("noise_rank_4_gavish_donoho", "holds", [4]),
    ("noise_bf16_small", "holds", [229]),
    ("noise_bf16_larger", "holds", [4]),
]


@pytest.mark.parametrize(("name", "verdict", "known"), KNOWN, ids=[row[0] for row in KNOWN])
def test_known_answers(name: str, verdict: str, known: list[float]) -> None:
    entry = check_claim(CLAIMS[name], NO_EVIDENCE)
    assert values(entry.outcome) == pytest.approx(known, rel=0.006, abs=1e-9)
    assert entry.verdict == verdict


def test_the_new_effective_weight_of_the_worked_step() -> None:
    found = values(check_claim(CLAIMS["d004_new_effective"], NO_EVIDENCE).outcome)
    assert found[:4] == pytest.approx([1.0938, 0.2886, -0.5253, 2.2597], abs=5e-5)


def test_the_step_agrees_with_finite_differences() -> None:
    step = dict(CLAIMS["d004_gradient_A"].arguments) | {"rows": None}
    W, A, B = (np.array(step[name], dtype=float) for name in "WAB")

    def loss(A_: np.ndarray, B_: np.ndarray) -> float:
        error = np.array(step["x"]) @ (W + B_ @ A_) - np.array(step["target"])
        return float(0.5 * error @ error)

    for quantity, at in (("gradient of A", 0), ("gradient of B", 1)):
        found = values(CLAIM_MEASURES["worked_step"](**step | {"quantity": quantity}))
        numeric = []
        for index in np.ndindex((A, B)[at].shape):
            moved = [[A.copy(), B.copy()] for _ in range(2)]
            moved[0][at][index] += 1e-6
            moved[1][at][index] -= 1e-6
            numeric.append((loss(*moved[0]) - loss(*moved[1])) / 2e-6)
        assert found == pytest.approx(numeric, abs=1e-7)


@pytest.mark.parametrize(
    ("architecture", "target", "rank", "known"),
    [
        ("llama_7b", "all_linear", 8, 19_988_480),
        ("llama_7b", "attention_all", 16, 16_777_216),
        ("llama2_70b", "attention_qv", 16, 32_768_000),
    ],
)
def test_adapter_counts(architecture: str, target: str, rank: int, known: int) -> None:
    assert adapter(architecture, target, rank) == known


def test_counts_are_those_of_the_adapter_itself() -> None:
    found = architecture_of("gpt2")
    lora = Lora(
        learning_rate=0.0, rank=4, alpha=4.0, scaling_rule="alpha_over_rank", dropout=0.0,
        init="kaiming", target=(), init_batches=None, stable_gamma=None, learning_rate_ratio=None,
        rank_pattern=None, alpha_pattern=None, names_scaling=None,
    )  # fmt: skip
    model = copy.deepcopy(found.model)
    with torch.device("meta"):
        names = target_modules(model, found.base, ("all_linear",))
        add_lora(model, dict.fromkeys(names, lora))
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert adapter("gpt2", "all_linear", 4) == trained


def test_widths_that_4096_belongs_to() -> None:
    shape = CLAIM_MEASURES["map_shape"]("gpt3_6_7b", "query", stored=False, fused=1)
    assert values(shape) == [4096, 4096]
    assert (
        values(CLAIM_MEASURES["map_shape"]("gpt2", "query_key_value", stored=False, fused=3))
        == [768] * 2
    )
    with pytest.raises(InputError, match="architecture 'gpt5': valid are gpt2"):
        architecture_of("gpt5")


def test_bits_of_nf4_with_and_without_double_quantisation() -> None:
    assert evaluate("65.2e9 * nf4_bits(64) / 8", {}) == pytest.approx(36.7e9, rel=1e-3)
    assert evaluate("65.2e9 * nf4_bits(64, 256) / 8", {}) == pytest.approx(33.6e9, rel=2e-3)


def test_a_formula_computes_numbers_lists_and_ranges() -> None:
    assert values(formula("ceil((1 + 2) * -3 / 2)")) == [-4]
    assert values(formula(["1 / 4", "7e9"])) == [0.25, 7e9]
    labelled = formula({"up": "aspect('gpt2', 'mlp_up')"})
    assert isinstance(labelled, Measured)
    assert (labelled.values[0].label, labelled.values[0].value) == ("up", 4)
    open_ = formula("a / b", over={"a": [1, 2], "b": [4, 8]})
    assert isinstance(open_, Measured)
    assert (open_.values[0].low, open_.values[0].high) == (0.125, 0.5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("__import__('os')", "is not allowed; valid are numbers"),
        ("(1).real", "is not allowed"),
        ("rank * 2", "'rank' is not allowed"),
        ("layers('gpt5')", "architecture 'gpt5': valid are gpt2"),
        ("1 +", "invalid syntax"),
        ("1 / 0", "division by zero"),
        ("days('2020')", "missing 1 required"),
    ],
)
def test_a_formula_refuses_everything_else(text: str, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        evaluate(text, {})


def test_what_the_adapted_map_does() -> None:
    for name, verdict in (
        ("d000_no_change_at_start", "holds"),
        ("d003_frozen_weight", "holds"),
        ("d003_merging_keeps_outputs", "holds"),
        ("d003_merging_is_one_way", "fails"),
        ("d002_listing_freezes", "fails"),
        ("d002_listing_compares_checkpoints", "fails"),
        ("d004_input_axis", "fails"),
        ("d003_merged_has_no_extra_computation", "holds"),
        ("d004_no_added_layers", "fails"),
        ("d004_no_new_modules", "fails"),
        ("d000_no_gradients_through", "fails"),
        ("d000_drop_in_replacement", "fails"),
        ("d002_alpha_scales", "holds"),
        ("d002_listing_quantises", "holds"),
        ("d002_listing_configures", "holds"),
        ("d001_swapped", "holds"),
        ("hu2021_appendix_g_printed", "fails"),
        ("hu2021_appendix_g_corrected", "holds"),
        ("hu2021_similarity_chance", "holds"),
    ):
        assert check_claim(CLAIMS[name], NO_EVIDENCE).verdict == verdict, name


def test_layers_couple() -> None:
    assert values(CLAIM_MEASURES["layer_coupling"](seed=1))[0] > 0.1


def test_what_is_seeded_does_not_depend_on_what_ran_before() -> None:
    seeded = [c for c in CLAIMS.values() if "seed" in c.arguments and "size" not in c.arguments]
    assert len(seeded) > 10
    texts = []
    for global_seed in (1, 2):
        torch.manual_seed(global_seed)
        texts.append([str(check_claim(claim, NO_EVIDENCE).outcome) for claim in seeded])
    assert texts[0] == texts[1]


def test_an_adapter_size_left_open_is_a_range() -> None:
    entry = check_claim(CLAIMS["d000_adapter_on_disk"], NO_EVIDENCE)
    assert isinstance(entry.outcome, Measured)
    assert (entry.outcome.values[0].low, entry.outcome.values[0].high) == (19_988_480, 159_907_840)
    assert entry.verdict == "not resolved by this data"


def test_random_directions_hold_the_norm_that_the_formula_gives() -> None:
    generator = np.random.default_rng(0)
    W = generator.standard_normal((128, 128))
    squared = []
    for _ in range(60):
        U, V = (np.linalg.qr(generator.standard_normal((128, 4)))[0] for _ in range(2))
        squared.append(np.linalg.norm(U.T @ W @ V) ** 2)
    expected = evaluate("norm * 4 / 128", {"norm": float(np.linalg.norm(W))})
    assert np.sqrt(np.mean(squared)) == pytest.approx(expected, rel=0.1)


def test_a_map_that_is_wrapped_everywhere_leaves_the_rest_trainable() -> None:
    outcome = CLAIM_MEASURES["trainable_besides_adapter"]("llama_7b", ["q_proj", "v_proj"], 8)
    model = architecture_of("llama_7b").model
    frozen = sum(
        module.weight.numel()
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name.endswith(("q_proj", "v_proj"))
    )
    total = sum(p.numel() for p in model.parameters())
    assert values(outcome) == [pytest.approx(1 - frozen / total)]


def test_an_unknown_quantity_is_named() -> None:
    step = dict(CLAIMS["d004_loss"].arguments) | {"quantity": "speed"}
    with pytest.raises(InputError, match="quantity='speed': valid are delta"):
        CLAIM_MEASURES["worked_step"](**step)
    assert isinstance(CLAIM_MEASURES["can_be_unmerged"](seed=3), Observed)


def test_a_setting_that_a_library_does_not_take_is_named() -> None:
    found = CLAIM_MEASURES["takes_names"]("peft.LoraConfig", ["r", "rank"])
    assert isinstance(found, Observed)
    assert (found.value, "unknown: rank" in found.how) == (False, True)


def test_what_is_wrapped_again_is_all_that_the_wrapper_holds() -> None:
    again = CLAIM_MEASURES["wrapped_again"]
    assert values(again("llama_7b", ["q_proj"], 8)) == [3 * 32]
    assert values(again("llama_7b", ["c_attn"], 8)) == [0]


def test_a_batch_times_a_weight_from_the_left_has_a_shape_by_chance_only() -> None:
    listing = CLAIM_MEASURES["batched_listing_computes"]
    for sequence, works in ((5, False), (8, True)):
        found = listing(batch=2, sequence=sequence, width=8)
        assert isinstance(found, Observed)
        assert found.value is works
