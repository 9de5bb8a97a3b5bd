"""What every benchmark tells: its figures, and the machine that they are from."""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Any

import torch


def report(figures: dict[str, Any], device: torch.device, out: Path | None) -> None:
    """Print figures and machine as JSON, and write them to `out`."""
    machine = {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else _cpu_name(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    text = json.dumps(figures | machine, indent=2)
    print(text)
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text + "\n")


def _cpu_name() -> str:
    """The processor's model name where the system tells it, else its architecture."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
