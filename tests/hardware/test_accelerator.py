"""Names on a command line, and facts that must hold of every accelerator."""

import json
from pathlib import Path

import pytest

from isoflop.hardware import GIB, accelerators, find_accelerator

TRUTH = Path(__file__).resolve().parents[3] / "shared" / "data" / "truth" / "hardware.json"


@pytest.mark.parametrize("name", list(accelerators()))
def test_every_name_in_any_case(name: str) -> None:
    for written in (name, name.lower(), name.upper(), name.replace("-", " "), name.replace(" ", "_")):
        assert find_accelerator(written).name == name


def test_prefixes() -> None:
    assert find_accelerator("h200").name == "H200-SXM"
    assert find_accelerator("a100-pcie").name == "A100-PCIe-80GB"
    assert find_accelerator("H100 SXM").name == "H100-SXM5-80GB"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("h100", "hardware 'h100' may mean 'H100-SXM5-80GB', 'H100-PCIe-80GB', 'H100-NVL-94GB'"),
        ("h101", "hardware 'h101' is unknown; the nearest are 'H100-SXM5-80GB'"),
        ("", "hardware '' is unknown; known: 'A100-SXM4-40GB'"),
    ],
)
def test_mistakes(name: str, message: str) -> None:
    with pytest.raises(ValueError) as mistake:
        find_accelerator(name)
    assert str(mistake.value).startswith(message) and "\n" not in str(mistake.value)


def test_facts_are_possible() -> None:
    for a in accelerators().values():
        assert a.source and len(a.date) == 7 and min(a.tflops.values()) > 0
        assert 0.9 * a.memory_gb < a.usable_bytes / GIB <= 1.0 * a.memory_gb
        assert 0.25 < a.bandwidth_tb_s < 10 and a.network_gb_s <= a.link_gb_s
        if a.achieved is not None:
            assert 0.5 < a.achieved / a.tflops["bf16"] < 1


def test_a_precision_without_a_rate() -> None:
    with pytest.raises(ValueError, match="A100-SXM4-80GB has no stated fp8 rate; valid: bf16, int8"):
        find_accelerator("A100-SXM4-80GB").peak("fp8")


def test_beside_the_published_table() -> None:
    if not TRUTH.exists():
        pytest.skip(f"{TRUTH} is absent: published tables are kept beside the project")
    theirs = {row["name"]: row for row in json.loads(TRUTH.read_text())["accelerators"]}
    assert set(theirs) == set(accelerators())
    for name, row in theirs.items():
        ours = find_accelerator(name)
        assert ours.tflops.get("bf16") == row["bf16_dense_tflops"] and ours.memory_gb == row["hbm_gb_nominal"]
        assert ours.bandwidth_tb_s == row["hbm_bw_tb_s"] and ours.tdp_w == row["tdp_w"]
