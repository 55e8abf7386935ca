"""How many times as long as cyce its peers take, from the recorded results of each make of CPU."""

import json

import matplotlib.pyplot as plt

from benchmarks.record import RESULTS

paths = sorted(RESULTS.glob("*/cross_entropy.json"))
figure, grid = plt.subplots(len(paths), 2, figsize=(9, 0.6 + 4 * len(paths)), sharey=True, squeeze=False)
figure.set_layout_engine("constrained")
peers = ("torch", "torch.compile", "JAX", "scikit-learn", "SciPy", "NumPy")
for path, panels in zip(paths, grid, strict=True):
    recorded = json.loads(path.read_text("utf-8"))
    for axes, mode in zip(panels, ("loss", "reused"), strict=True):
        results = [result for result in recorded["results"] if result["mode"] == mode]
        for name, marker in zip(peers, "osD^vP", strict=True):
            points = [
                (result["contenders"][name]["times_cyce"], row)
                for row, result in enumerate(results)
                if name in result["contenders"]
            ]
            axes.scatter(*zip(*points, strict=True), label=name, marker=marker, s=26)
        axes.axvline(1, color="0.3", linewidth=1)
        axes.set(xscale="log", title={"loss": "loss", "reused": "loss and gradient"}[mode])
        axes.set_yticks(range(len(results)), [result["name"] for result in results])
        axes.grid(color="0.9")
        axes.set_axisbelow(True)
    panels[0].invert_yaxis()
    panels[0].set_xlabel(recorded["machine"].get("model name", path.parent.name))
figure.supxlabel("time, as a multiple of cyce's", fontsize="medium")
figure.legend(*grid[0][0].get_legend_handles_labels(), loc="outside upper center", ncols=6, frameon=False)
