"""The card of a trained model: README.md beside its weights, made of the training's manifest alone."""

from collections.abc import Mapping
from typing import Any

import yaml


def model_card(manifest: Mapping[str, Any]) -> str:
    """Markdown with the front matter that model hubs read. What was not measured is said to be not measured."""
    config, data = manifest["config"], manifest["data"]
    method = str(manifest["kind"]).removeprefix("train ")
    base = str(config["model"]).removeprefix("local:")
    front = {"base_model": base, "library_name": "transformers", "tags": ["rlaif", method]}
    lines = [
        "---",
        yaml.safe_dump(front, sort_keys=False, allow_unicode=True).rstrip(),
        "---",
        "",
        f"# {base}, tuned with {method}",
        "",
        f"Made by `rlaif train {method}` ({_versions(manifest)}).",
        "",
        "## Data",
        "",
        f"`{data['source']}`, digest `{data['digest']}`, {data['rows']:,} rows.",
        *_labels(data),
        "",
        "## Training",
        "",
        *(f"* {name}: `{value}`" for name, value in config.items() if name not in ("data", "model", "out")),
        *_curve(manifest),
        "",
        "## Evaluation",
        "",
        "None by this training: its figures are of the objective it was tuned on, which says nothing of what was lost.",
        "Compare it with the model it was made from (`rlaif eval`) before using it.",
        "",
        "## Limits",
        "",
        "It has the limits of the model it was made from and of the labels it learned from. Licence: that of the base",
        "model and of the data; nothing is added here.",
        *(f"* {finding['text']}" for finding in manifest.get("findings") or [] if finding["level"] == "warning"),
        "",
    ]
    return "\n".join(lines)


def _versions(manifest: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {version}" for name, version in manifest.get("versions", {}).items())


def _labels(data: Mapping[str, Any]) -> list[str]:
    """Where the labels come from, for data that says so."""
    said = [f"* {name.replace('_', ' ')}: {data[name]}" for name in ("judges", "constitution") if data.get(name)]
    return ["", *said] if said else []


def _curve(manifest: Mapping[str, Any]) -> list[str]:
    points = [p for p in manifest.get("curve") or [] if "loss" in p]
    if not points:
        return []
    loss = f"loss {points[0]['loss']:.4g} to {points[-1]['loss']:.4g}"
    return [f"* {len(points)} steps in {manifest.get('seconds')} s, {loss}"]
