"""The other tools: what they are, and an environment for each, beside the checkout's own and ignored by git."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

# What to install. distilabel imports `requests`, which is not among its dependencies.
PEERS: dict[str, list[str]] = {
    "distilabel": ["distilabel[openai]==1.5.3", "requests"],
    "curator": ["bespokelabs-curator==0.1.31"],
    "data_designer": ["data-designer==0.9.6"],
    "inspect_ai": ["inspect-ai==0.3.285", "openai==3.54.0"],
}


def python_of(peer: str) -> Path:
    return ROOT / f".venv-bench-{peer}" / "bin" / "python"


def install() -> None:
    for peer, packages in PEERS.items():
        python = python_of(peer)
        if not python.exists():
            subprocess.run([sys.executable, "-m", "venv", python.parents[1]], check=True)
        done = subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=False)
        print(f"{peer}: {'installed' if done.returncode == 0 else 'does not install; it will be skipped'}", flush=True)
