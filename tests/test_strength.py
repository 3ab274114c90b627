"""[V01]:0.6 on the built-in base: the stronger, the farther from what the base paints."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from dreamtune.settings import Sample
from dreamtune.stages import sample as stage
from dreamtune.stages.lines import Line
from dreamtune.store import Store
from tests import untrained

STRENGTHS = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]


def correlation(values: np.ndarray) -> float:
    """Spearman's, of values with their places."""
    return float(np.corrcoef(values.argsort().argsort(), np.arange(len(values)))[0, 1])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "options"),
    [("lora", {"rank": 4, "targets": ("all",)}), ("embedding", {"vectors": 2})],
)
def test_distance_from_the_base_goes_by_rank_with_strength(
    method: str, options: dict[str, object], store: Store
) -> None:
    untrained.make(store, "rex", method, base="mini", amount=0.3, **options)
    settings = Sample(base="mini", count=4, steps=8, seed=3, device="cpu")
    lines = [Line(f"a 3d [V01]:{s} dog on a red background", settings) for s in STRENGTHS]
    made = stage.run(stage.Run(store, lines, ["rex"], settings))
    rows = made.read_json("samples.json")
    painted = [np.asarray(Image.open(made.path / row["file"]).convert("RGB")) for row in rows]
    pictures = np.stack(painted).astype(float).reshape(len(STRENGTHS), settings.count, -1)
    distances = np.abs(pictures - pictures[:1]).mean(-1)  # (strengths, pictures)
    found = [correlation(column) for column in distances.T]
    print(method, [round(x, 3) for x in found], distances.mean(1).round(1))
    assert distances[0].max() == 0 and distances[-1].min() > 4
    assert np.mean(found) >= 0.9
