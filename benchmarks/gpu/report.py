"""Tables and decisions from the results of the steps, by rules that were set before anything was measured."""

from collections.abc import Mapping
from typing import Any

from benchmarks.gpu.plan import BASE, CASES, EVALUATION, OPERATOR, Case

Results = Mapping[str, Mapping[str, Any]]

OPERATOR_GAIN = 1.05  # of a compiled training step, for the operator to be kept
OPTION_GAIN = 1.03  # of an option, for it to be recommended
TIMM, VIT = 1.4, 0.75  # aims: ratio to compiled timm and to a ViT-S, without drop path
TRAINER = 1.02  # largest ratio of a step in the Trainer to a bare loop
HALF_ERROR = 1e-2  # largest relative error of logits and gradients in bfloat16


def speed(results: Results, case: Case) -> float | None:
    """Images per second of a case, None if it has not been measured."""
    result = (results.get(f"case {case.name}") or {}).get("result")
    return result["images_per_s"] if result else None


def decisions(results: Results) -> list[str]:
    """What the measurements say about defaults and claims, one line each."""
    found = _result(results, "correctness") or {}
    if not found.get("versions", {}).get("GPU", "none").startswith("none"):
        lines: list[str] = []
    else:
        lines = ["no GPU: this was a rehearsal, change nothing"]
    lines += [_correctness(results), _attention(results)]
    own = {"model": "own", "compile": "default", "operator": True}
    compared = [
        ("operator, compiled", OPERATOR, BASE, OPERATOR_GAIN, "keep the operator", "turn the operator off by default"),
        (
            "drop path, eager: dense to sampled",
            Case("own", operator=True),
            Case("own", operator=True, dense=False),
            1.0,
            "keep dense drop path on GPUs",
            "sample drop path on GPUs in eager mode (DropPath.dense)",
        ),
        ("half_residual", Case(**own, half_residual=True), OPERATOR, OPTION_GAIN, "", "leave half_residual off"),
        (
            "reduce-overhead",
            Case("own", compile="reduce-overhead", operator=True),
            OPERATOR,
            OPTION_GAIN,
            "recommend compile: reduce-overhead",
            "leave the default mode of compilation",
        ),
        (
            "reduce-overhead at half the batch size",
            Case("own", compile="reduce-overhead", operator=True, batch=0.5),
            Case(**own, batch=0.5),
            OPTION_GAIN,
            "recommend compile: reduce-overhead for small batches",
            "leave the default mode of compilation",
        ),
        ("twice the batch size", Case(**own, batch=2.0), OPERATOR, OPTION_GAIN, "recommend it", "no gain"),
        (
            "aim: compiled timm, without drop path",
            Case(**own, drop_path=0.0),
            Case("timm", compile="default", drop_path=0.0),
            TIMM,
            "reached",
            "not reached; see the profiles",
        ),
        (
            "aim: compiled ViT, without drop path",
            Case(**own, drop_path=0.0),
            Case("vit", compile="default", drop_path=0.0),
            VIT,
            "reached",
            "not reached; see the profiles",
        ),
    ]
    for name, case, other, limit, yes, no in compared:
        a, b = speed(results, case), speed(results, other)
        if a is None or b is None:
            lines.append(f"{name}: not measured")
            continue
        if name == "half_residual" and a / b >= limit:
            yes = _half_residual(results)
        lines.append(f"{name}: {a / b:.3f} (rule: at least {limit}): {yes if a / b >= limit else no}")
    return [*lines, _losses(results), _trainer(results)]


def markdown(results: Results) -> str:
    """The report: what was measured, a line per case, attention by stage, and the decisions."""
    found = _result(results, "correctness") or {}
    lines = ["# GPU benchmark", "", *(f"- {key}: {value}" for key, value in found.get("versions", {}).items()), ""]
    for title, cases in (("Training step", CASES), ("Evaluation", EVALUATION)):
        lines += [f"## {title}", "", "| case | images/s | ms | memory, MiB | first step, s |", "|---|---|---|---|---|"]
        for case in cases:
            step = results.get(f"case {case.name}")
            if step is None:
                continue
            row = step["result"]
            values = (
                f"{row['images_per_s']:.0f} | {row['ms']:.2f} | {row['memory_mib']:.0f} | {row['first_s']:.1f}"
                if row
                else f"{step['status']} | | |"
            )
            lines.append(f"| {case.name} | {values} |")
        lines.append("")
    rows = _result(results, "attention") or []
    lines += [
        "## Window attention",
        "",
        "| stage, shift | way | forward, ms | training, ms | error |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        values = row.get("failed") or f"{row['forward']:.3f} | {row['training']:.3f} | {row['error']:.1e}"
        lines.append(f"| {row['stage']}, {row['shift']} | {row['way']} | {values} |")
    lines += ["", "## Steps", "", *(f"- {name}: {step['status']}" for name, step in results.items())]
    return "\n".join([*lines, "", "## Decisions", "", *(f"- {line}" for line in decisions(results)), ""])


def _result(results: Results, name: str) -> Any:
    return (results.get(name) or {}).get("result")


def _correctness(results: Results) -> str:
    found = _result(results, "correctness")
    if not found or not found.get("errors"):
        return "correctness: not measured; change nothing"
    wrong = {name: error for name, error in found["errors"].items() if not error <= HALF_ERROR}
    if not wrong:
        return f"correctness: all errors below {HALF_ERROR}"
    return "correctness: DO NOT USE " + ", ".join(f"{name} (error {error:.1e})" for name, error in wrong.items())


def _attention(results: Results) -> str:
    rows = [row for row in _result(results, "attention") or [] if "training" in row]
    if not rows:
        return "attention: not measured"
    fastest = {}
    for row in rows:
        best = fastest.setdefault((row["stage"], row["shift"]), row)
        if row["training"] < best["training"]:
            fastest[row["stage"], row["shift"]] = row
    return "attention, fastest in training: " + "; ".join(
        f"stage {stage} shift {shift} {row['way']}" for (stage, shift), row in fastest.items()
    )


def _noise(found: Mapping[str, float]) -> float:
    return 2 * abs(found["float32"] - found["float32, other order"])


def _half_residual(results: Results) -> str:
    found = _result(results, "losses") or {}
    if "half residual" not in found or "float32, other order" not in found:
        return "faster, but its loss was not measured: leave half_residual off"
    same = abs(found["half residual"] - found["float32"]) <= max(_noise(found), 0.02 * found["float32"])
    return "make half_residual the default on GPUs" if same else "faster, but the loss differs: leave half_residual off"


def _losses(results: Results) -> str:
    found = _result(results, "losses") or {}
    if "float32" not in found or "float32, other order" not in found:
        return "losses: not measured; do not keep what changes the numbers"
    limit = max(_noise(found), 0.02 * found["float32"])
    other = {name: loss for name, loss in found.items() if not name.startswith("float32")}
    wrong = [f"{name} {loss:.4f}" for name, loss in other.items() if not abs(loss - found["float32"]) <= limit]
    text = f"losses: float32 {found['float32']:.4f}, limit of the difference {limit:.4f}"
    return f"{text}: " + (f"NOT within noise, do not keep: {', '.join(wrong)}" if wrong else "all within noise")


def _trainer(results: Results) -> str:
    found = _result(results, "trainer")
    if not found or "ratio" not in found:
        return "Trainer: not measured"
    verdict = "fine" if found["ratio"] <= TRAINER else "find the synchronisations in trainer.log"
    return f"Trainer: {found['ratio']:.3f} of a bare loop (rule: at most {TRAINER}), {found['syncs']} syncs: {verdict}"
