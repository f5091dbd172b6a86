"""Bit Fusion against Eyeriss on the networks of the paper: cycles, energy, and what the comparison rests on."""

from collections.abc import Mapping
from dataclasses import replace
from statistics import geometric_mean
from typing import NamedTuple

from rich.console import Console

from edgetrain.build import build
from edgetrain.config import Config
from edgetrain.errors import UserError, listing
from edgetrain.folder import Row, RunFolder
from edgetrain.hardware.bitfusion import BILLINGS, BitFusion
from edgetrain.hardware.bitfusion_networks import NETWORKS, network
from edgetrain.hardware.bitfusion_tiling import Run
from edgetrain.hardware.eyeriss import Eyeriss, EyerissRun
from edgetrain.jobs.result import Result
from edgetrain.report.figures import bar_chart, line_chart

console = Console(stderr=True, highlight=False)

BATCH = 16  # images; the baseline's counts are of as many
MEAN = "geometric mean"
GROWTH = (1, 2)  # columns and buffers; the next power of two is larger than the baseline


class Compared(NamedTuple):
    """A network on both machines, 16 images. counted: it is in the means, which take a network once."""

    name: str
    macs: int
    runs: tuple[Run, ...]
    eyeriss: EyerissRun | None
    counted: bool

    @property
    def total(self) -> Run:
        return Run(*map(sum, zip(*self.runs, strict=True)))

    def speedup(self) -> float:
        return self.eyeriss.cycles / self.total.cycles

    def energy_ratio(self, device: BitFusion, eyeriss_dram_pj: float) -> float:
        return self.eyeriss.joules(eyeriss_dram_pj) / sum(self.total.joules(device.energies).values())


class BitFusionPaper:
    """networks: names of the paper's, all when null; dram_pj: prices of a bit of DRAM traffic to compare at; baseline:
    Eyeriss. Without the baseline's file of counts the run has Bit Fusion's cycles and energies alone, and says so.

    Raises UserError when there is nothing to compare.
    """

    def __init__(self, baseline: Eyeriss, dram_pj: list[float], networks: list[str] | None = None) -> None:
        if networks == []:
            raise UserError("job.networks names no network; leave it out to take all of the paper's")
        if not dram_pj or not min(dram_pj) > 0:
            raise UserError(f"job.dram_pj={dram_pj} has to be one or more prices above zero, pJ a bit")
        self.baseline, self.dram_pj = baseline, dram_pj
        self.networks = list(NETWORKS) if networks is None else networks

    def run(self, config: Config, folder: RunFolder) -> Result:
        """Raises UserError for an unknown network, a device that is no Bit Fusion, and a damaged file of counts."""
        device = the_device(config)
        path = self.baseline.find()
        results = self.compare(device, {} if path is None else self.baseline.read(path))
        notes = [basis(device)]
        if path is None:
            notes.append(
                f"No comparison with Eyeriss: {self.baseline.path} is missing; take results/eyeriss_results.csv of "
                "github.com/hsharma35/bitfusion, and put it there or at that path in the folder $EDGETRAIN_DATA."
            )
            console.print(notes[-1])
        elif not compared(results):
            notes.append(f"No comparison with Eyeriss: {path} has none of these networks.")
        else:
            notes += self.caveats(device, results)
        folder.add_table(
            "networks",
            [self.row(device, result) for result in results] + self.mean_row(device, results),
            "Bit Fusion and Eyeriss",
            " ".join(notes),
            grey="left_out",
        )
        self.figures(device, results, folder)
        if compared(results):
            self.growth(device, results, folder)
        folder.add_table("layers", layer_rows(results), "By layer", f"Traffic in bits. {basis(device)}")
        return Result(self.metrics(device, results))

    def compare(self, device: BitFusion, baseline: Mapping[str, EyerissRun]) -> list[Compared]:
        results: list[Compared] = []
        for name in self.networks:
            workload = network(name, BATCH)
            plain = name.partition(" ")[0]
            first = plain not in {result.name.partition(" ")[0] for result in results}
            results.append(Compared(name, workload.macs, device.runs(workload), baseline.get(plain), first))
        return results

    def row(self, device: BitFusion, result: Compared) -> Row:
        total, joules = result.total, result.total.joules(device.energies)
        row: Row = {
            "network": result.name,
            "MMACs an image": result.macs / BATCH / 1e6,
            "cycles": total.cycles,
            "stalls": total.stalls,
            "mJ": 1e3 * sum(joules.values()),
            **{f"{part} mJ": 1e3 * value for part, value in joules.items()},
        }
        if result.eyeriss:
            row |= {
                "Eyeriss cycles": int(result.eyeriss.cycles),
                "Eyeriss mJ": 1e3 * result.eyeriss.joules(self.baseline.dram_pj),
                "speed-up": result.speedup(),
                "energy ratio": result.energy_ratio(device, self.baseline.dram_pj),
            }
        return row | {"left_out": not result.counted}

    def mean_row(self, device: BitFusion, results: list[Compared]) -> list[Row]:
        if not compared(results):
            return []
        speedup, energy = self.means(device, results)
        return [{"network": MEAN, "speed-up": speedup, "energy ratio": energy, "left_out": False}]

    def means(
        self, device: BitFusion, results: list[Compared], eyeriss_dram_pj: float | None = None
    ) -> tuple[float, float]:
        """Geometric means of speed-up and energy ratio; the baseline's DRAM at the comparison's price by default."""
        price = self.baseline.dram_pj if eyeriss_dram_pj is None else eyeriss_dram_pj
        both = compared(results)
        return (
            geometric_mean(result.speedup() for result in both),
            geometric_mean(result.energy_ratio(device, price) for result in both),
        )

    def caveats(self, device: BitFusion, results: list[Compared]) -> list[str]:
        """What to know before quoting the means."""
        shares = [dram_share(device, result) for result in results]
        areas = ", ".join(f"{part} {area:.3f}" for part, area in device.areas_mm2.items())
        own, given = sum(device.areas_mm2.values()), self.baseline.area_mm2
        notes = [
            f"Not the same area: Bit Fusion takes {own:.3f} mm2 ({areas}) of the {given:.3f} mm2 of Eyeriss.",
            f"DRAM is {min(shares):.0%} to {max(shares):.0%} of Bit Fusion's energy, so that the ratio rests on its "
            f"{device.dram_pj:g} pJ a bit, and on Eyeriss paying {self.baseline.dram_pj:g} pJ.",
            "Eyeriss runs networks of the usual width at 16 bits; Bit Fusion runs AlexNet and ResNet-18 twice as wide.",
        ]
        if any("AlexNet" in result.name for result in results):
            notes.append(
                "AlexNet 27/13 has the network's own maps, as the simulator's published results and the baseline have; "
                "AlexNet 28/14 has them rounded up. Of the two the grey one is not in the mean."
            )
        return notes

    def figures(self, device: BitFusion, results: list[Compared], folder: RunFolder) -> None:
        both = compared(results)
        if both:
            speedup, energy = self.means(device, results)
            bars = {
                "speed-up": {result.name: result.speedup() for result in both} | {MEAN: speedup},
                "energy ratio": {r.name: r.energy_ratio(device, self.baseline.dram_pj) for r in both} | {MEAN: energy},
            }
            folder.add_figure(
                "ratios",
                bar_chart(bars, "Eyeriss / Bit Fusion", reference={"3.9 in the paper": 3.9, "5.1 in the paper": 5.1}),
                "Speed-up and energy ratio over Eyeriss",
                basis(device),
            )
        parts: dict[str, dict[str, float | None]] = {}
        for result in filter(lambda result: result.counted, results):
            joules = result.total.joules(device.energies)
            for part, value in joules.items():
                parts.setdefault(part, {})[result.name] = 100 * value / sum(joules.values())
        folder.add_figure(
            "energy",
            bar_chart(parts, "share of Bit Fusion's energy (%)", stacked=True),
            "Where Bit Fusion's energy goes",
            f"DRAM at {device.dram_pj:g} pJ a bit. {basis(device)}",
        )
        if both:
            self.price_figure(device, results, folder)

    def price_figure(self, device: BitFusion, results: list[Compared], folder: RunFolder) -> None:
        at = [replace(device, dram_pj=price) for price in self.dram_pj]
        fixed = self.baseline.dram_pj
        lines = {
            f"Eyeriss at {fixed:g} pJ": [(one.dram_pj, self.means(one, results)[1]) for one in at],
            "Eyeriss at the same": [(one.dram_pj, self.means(one, results, one.dram_pj)[1]) for one in at],
        }
        folder.add_figure(
            "dram_price",
            line_chart(lines, "Bit Fusion's DRAM (pJ a bit)", "mean energy ratio", markers=True),
            "What a bit of DRAM traffic costs decides the energy ratio",
            f"The comparison above has {device.dram_pj:g} pJ for Bit Fusion and {fixed:g} pJ for Eyeriss. "
            f"Bit Fusion takes {sum(device.areas_mm2.values()) / self.baseline.area_mm2:.0%} of the area of Eyeriss; "
            f"the next table lets it grow. {basis(device)}",
        )

    def growth(self, device: BitFusion, results: list[Compared], folder: RunFolder) -> None:
        """Towards equal area: more columns and larger buffers behind the same memory interface."""
        rows = []
        for factor in GROWTH:
            grown = replace(
                device,
                columns=factor * device.columns,
                wbuf_bytes=factor * device.wbuf_bytes,
                ibuf_bytes=factor * device.ibuf_bytes,
                obuf_bytes=factor * device.obuf_bytes,
            )
            again = [result._replace(runs=grown.runs(network(result.name, BATCH))) for result in results]
            speedup, energy = self.means(grown, again)
            area = sum(grown.areas_mm2.values())
            row = {
                "columns": grown.columns,
                "mm2": area,
                "of the area of Eyeriss": f"{area / self.baseline.area_mm2:.0%}",
            }
            rows.append(row | {"mean speed-up": speedup, "mean energy ratio": energy})
        means = f"Means over {listing(result.name for result in compared(results))}"
        caption = f"{means}. Columns and buffers grow; DRAM and prices a bit stay. {basis(device)}"
        folder.add_table("area", rows, "Towards equal area", caption)

    def metrics(self, device: BitFusion, results: list[Compared]) -> dict[str, float | int | str]:
        metrics: dict[str, float | int | str] = {}
        if compared(results):
            metrics["speedup"], metrics["energy_ratio"] = self.means(device, results)
        shares = [dram_share(device, result) for result in results]
        metrics |= {
            "area_share": sum(device.areas_mm2.values()) / self.baseline.area_mm2,
            "dram_share_lowest": min(shares),
            "dram_share_highest": max(shares),
            "billing": device.billing,
        }
        for result in results:
            key = result.name.replace(" ", "_").replace("/", "_")
            metrics[f"cycles/{key}"] = result.total.cycles
            metrics[f"millijoules/{key}"] = 1e3 * sum(result.total.joules(device.energies).values())
            if result.eyeriss:
                metrics[f"speedup/{key}"] = result.speedup()
                metrics[f"energy_ratio/{key}"] = result.energy_ratio(device, self.baseline.dram_pj)
        return metrics


def the_device(config: Config) -> BitFusion:
    """The recipe's one Bit Fusion. Raises UserError when it names another device, several, or none."""
    devices = [build(node) for node in config.hardware.values()]
    if len(devices) != 1 or not isinstance(devices[0], BitFusion):
        raise UserError("this comparison takes one Bit Fusion; write hardware=[bitfusion]")
    if devices[0].batch != 1:
        raise UserError(
            f"the comparison is of {BATCH} images, as the baseline's counts are; leave the device's batch at 1"
        )
    return devices[0]


def basis(device: BitFusion) -> str:
    """What every figure rests on."""
    return f"{BATCH} images. {BILLINGS[device.billing].capitalize()}. Modelled, not measured."


def compared(results: list[Compared]) -> list[Compared]:
    """Those that are in the means."""
    return [result for result in results if result.counted and result.eyeriss]


def dram_share(device: BitFusion, result: Compared) -> float:
    joules = result.total.joules(device.energies)
    return joules["DRAM"] / sum(joules.values())


def layer_rows(results: list[Compared]) -> list[Row]:
    return [
        {"network": result.name, "layer": layer.name, "in bits": layer.input_format.bits}
        | {"weight bits": layer.weight_format.bits}
        | run._asdict()
        for result in results
        for layer, run in zip(network(result.name, BATCH), result.runs, strict=True)
    ]
