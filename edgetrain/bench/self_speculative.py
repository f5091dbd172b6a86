"""Decoding of a Llama one prompt at a time: ours, plain and self-speculative, against transformers' generate.

The settings of every pair are the same: weights, type, threads, prompts, budget, no end of text; eager against eager,
compiled against compiled. transformers' side is at its best documented setting: `cache_implementation="static"` with a
compiled forward where it allows that, else its dynamic cache; `assistant_early_exit` with a constant number of drafts
and no confidence threshold, so that E and d mean the same on both sides.
"""

import copy
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import torch
from rich.console import Console
from torch import Tensor

from edgetrain.bench.peer import load_peer
from edgetrain.bench.results import show_rows
from edgetrain.bench.side_by_side import Contender, Ratio, Timing, measure, ratio
from edgetrain.build import find_source, load_trained, read_config
from edgetrain.compose import compose
from edgetrain.decoding.autoregressive import generate
from edgetrain.decoding.degeneration import distinct_n
from edgetrain.decoding.sampling import matching_prefix
from edgetrain.decoding.self_speculative import SelfSpeculation, SelfSpeculativeStats, layer_pass_bound
from edgetrain.decoding.static import StaticDecoder, StaticSelfSpeculation
from edgetrain.decoding.tuning import timed, tune
from edgetrain.errors import UserError
from edgetrain.folder import Row, RunFolder
from edgetrain.models.huggingface import save_llama
from edgetrain.models.llama import Llama

console = Console(stderr=True, highlight=False)
Subject = Literal["trained", "trained_identity", "125m_identity"]
# MobileLLM-125M (Liu et al. 2024, arXiv 2402.14905, table 9), with the context that the bench needs.
SHAPE_125M = {"vocab_size": 32000, "dim": 576, "layers": 30, "heads": 9, "kv_heads": 3, "hidden_dim": 1536}
PLAIN, PEER = "own autoregressive", "transformers generate"


@dataclass
class Way:
    """One way of decoding: what it is called, whether it is compiled, and what its last repeat gave.

    decode: of one prompt; together: of all of them at once, in its place.
    """

    name: str
    compiled: bool
    decode: Callable[[Tensor], Iterable[int]] | None = None
    together: Callable[[list[Tensor]], list[list[int]]] | None = None
    stats: Callable[[], SelfSpeculativeStats] | None = None
    exit_layer: int | None = None
    draft_length: int | None = None
    outputs: list[list[int]] = field(default_factory=list)
    counted: SelfSpeculativeStats = field(default_factory=SelfSpeculativeStats)

    def run(self, prompts: Tensor) -> int:
        self.outputs = self.together(list(prompts)) if self.together else []
        self.counted = SelfSpeculativeStats()
        for prompt in prompts if self.decode else []:
            self.outputs.append(list(self.decode(prompt)))
            if self.stats is not None:
                self.counted += self.stats()
        return sum(map(len, self.outputs))


def self_speculative(
    folder: RunFolder,
    *,
    subjects: list[Subject] = ("trained", "trained_identity", "125m_identity"),
    run: str = "recipe:layerskip_llama_long",
    compiled: bool = True,
    exit_layers: list[int] = (5, 6),
    draft_lengths: list[int] = (2, 4),
    prompts: int = 4,
    prompt_length: int = 64,
    new_tokens: int = 128,
    repeats: int = 7,
    threads: int | None = None,
) -> dict[str, Any]:
    """Tokens a second of decoding, ours and transformers', plain and self-speculative.

    subjects: the trained model of `run` (a run folder, or recipe:NAME), the same with the layers after L/5 made the
    identity (every draft is accepted), and so the 125M shape of MobileLLM, which decodes one prompt and 48 tokens;
    compiled: also with torch.compile; exit_layers, draft_lengths: tried when compiled, and the fastest measured.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    metrics: dict[str, Any] = {"threads": torch.get_num_threads()}
    trained = load_trained(*opened(run)) if set(subjects) - {"125m_identity"} else None
    for subject in subjects:
        if subject == "125m_identity":
            torch.manual_seed(0)
            model = Llama(**SHAPE_125M, context=prompt_length + 64).eval()
            windows = torch.randint(model.vocab_size, (1, prompt_length))
            budget, reference = 48, None
        else:
            model = trained.model.eval().float()
            windows, texts = trained.data.prompts(prompts, prompt_length, continuation=new_tokens)
            budget, reference = new_tokens, texts.tolist()
        tail = None
        if subject.endswith("_identity"):
            tail, reference = max(1, model.layers // 5), None
            model = with_identity_tail(model, tail)
        bench = Bench(model, windows, budget, compiled, [tail] if tail else list(exit_layers), list(draft_lengths))
        metrics |= {
            f"{subject}/{key}": value for key, value in bench.report(folder, subject, repeats, reference).items()
        }
    return metrics


def opened(run: str) -> tuple[RunFolder, Any]:
    folder = RunFolder.open(find_source(run))
    return folder, compose([], base=read_config(folder))


def with_identity_tail(model: Llama, exit_layer: int) -> Llama:
    """A copy whose layers from exit_layer on change nothing, so that every draft of the first ones is accepted."""
    model = copy.deepcopy(model)
    for layer in model.model.layers[exit_layer:]:
        torch.nn.init.zeros_(layer.self_attn.o_proj.weight)
        torch.nn.init.zeros_(layer.mlp.down_proj.weight)
    return model


class Bench:
    """All ways of decoding one model, timed in turns."""

    def __init__(
        self, model: Llama, prompts: Tensor, budget: int, compiled: bool, exit_layers: list[int], lengths: list[int]
    ) -> None:
        self.model, self.prompts, self.budget, self.compiled = model, prompts, budget, compiled
        self.length = prompts.shape[1] + budget
        usable = [layer for layer in exit_layers if layer < model.layers]
        if not usable:
            raise UserError(f"exit_layers={exit_layers}: the model has {model.layers} layers, so give some below that")
        self.exit_layers, self.lengths = usable, lengths

    def report(
        self, folder: RunFolder, subject: str, repeats: int, reference: list[list[int]] | None
    ) -> dict[str, Any]:
        """Time everything; a table, printed and in the folder, and the ratios that the table's readers ask for."""
        with tempfile.TemporaryDirectory() as place:
            ways = self.ways(Path(place))
            contenders = [Contender(way.name, partial(way.run, self.prompts)) for way in ways]
            console.print(f"{subject}: {len(ways)} ways of decoding, {repeats} repeats in turns")
            device = "cuda" if self.prompts.is_cuda else "cpu"
            timings = dict(zip((way.name for way in ways), measure(contenders, repeats, device=device), strict=True))
        limit = self.limit()
        rows = [self.row(way, timings, ways[0].outputs, limit, reference) for way in ways]
        parameters = sum(parameter.numel() for parameter in self.model.parameters())
        caption = (
            f"{parameters:,} parameters, {len(self.prompts)} prompts of {self.prompts.shape[1]} tokens, {self.budget} "
            f"new ones each, float32 unless said, {torch.get_num_threads()} threads, median of {repeats} repeats. of "
            f"limit: share of the {limit:.4g} tokens/s at which the weights could be read from memory. differ: "
            "prompts whose output is not that of own autoregressive decoding, which is the same until so many tokens "
            "on average. bound: speed-up from layer passes alone."
        )
        show_rows(folder, f"{subject}_decoding", rows, f"Decoding: {subject}", caption)
        return self.ratios(timings) | {"limit_tokens_per_s": limit, PLAIN: timings[PLAIN].median}

    # The ways

    def ways(self, place: Path) -> list[Way]:
        choice = tune(
            self.model, self.prompts, self.budget, self.exit_layers[0] if len(self.exit_layers) == 1 else None
        )
        console.print(
            f"draft=auto: exit layer {choice.exit_layer}, {choice.draft_length} drafts, {choice.speedup:.3g}x"
        )
        exit_layer, length = choice.exit_layer, choice.draft_length
        ways = [
            Way(PLAIN, False, lambda prompt: generate(self.model, prompt, self.budget)),
            self.eager(exit_layer, length),
        ]
        ways += self.peers(place, exit_layer, length)
        if self.compiled:
            ways += [
                self.plain("own autoregressive, compiled"),
                self.plain("own autoregressive, compiled, bfloat16", weights="bfloat16"),
                self.plain("own autoregressive, compiled, int8", weights="int8"),
                self.fastest("own self-speculative, compiled"),
                self.fastest("own self-speculative, compiled, int8 drafts", draft_weights="int8"),
            ]
            if len(self.prompts) > 1:
                ways.append(self.together(f"own autoregressive, compiled, {len(self.prompts)} prompts at once"))
        return ways

    def plain(self, name: str, **settings: Any) -> Way:
        decoder = StaticDecoder(self.model, length=self.length, compiled=True, **settings)
        return Way(name, True, partial(decoder.stream, max_new_tokens=self.budget))

    def together(self, name: str) -> Way:
        decoder = StaticDecoder(self.model, length=self.length, batch=len(self.prompts), compiled=True)
        return Way(name, True, together=partial(decoder.decode, max_new_tokens=self.budget))

    def eager(self, exit_layer: int, length: int) -> Way:
        last: list[SelfSpeculation] = []

        def decode(prompt: Tensor) -> Iterable[int]:
            last[:] = [SelfSpeculation(self.model, prompt, self.budget, exit_layer=exit_layer, draft_length=length)]
            return last[0]

        return Way(
            "own self-speculative",
            False,
            decode,
            stats=lambda: last[0].stats,
            exit_layer=exit_layer,
            draft_length=length,
        )

    def fastest(self, name: str, **settings: Any) -> Way:
        """Of all exit layers and draft lengths the one that decodes the prompts fastest, each tried twice."""
        tried = []
        for exit_layer in self.exit_layers:
            for length in self.lengths:
                decoder = StaticSelfSpeculation(
                    self.model,
                    exit_layer=exit_layer,
                    draft_length=length,
                    length=self.length,
                    compiled=True,
                    **settings,
                )
                decode = partial(decoder.stream, max_new_tokens=self.budget)
                stats = partial(getattr, decoder, "stats")
                way = Way(name, True, decode, stats=stats, exit_layer=exit_layer, draft_length=length)
                tokens = way.run(self.prompts)  # compiles
                seconds = min(timed(lambda way=way: way.run(self.prompts)) for _ in range(2))
                console.print(f"{name}: exit layer {exit_layer}, {length} drafts, {tokens / seconds:.4g} tokens/s")
                tried.append((seconds, way))
        return min(tried, key=lambda pair: pair[0])[1]

    def peers(self, place: Path, exit_layer: int, length: int) -> list[Way]:
        """transformers on the same weights: plain, early exit, prompt lookup, and plain compiled."""
        save_llama(self.model, place)
        theirs = load_peer(place)
        # A draft length that stays, and no early end of drafting: else d would mean another thing than ours.
        theirs.generation_config.num_assistant_tokens = length
        theirs.generation_config.num_assistant_tokens_schedule = "constant"
        theirs.generation_config.assistant_confidence_threshold = 0.0
        ways = [
            Way(PEER, False, self.their(theirs)),
            Way(
                "transformers assistant_early_exit",
                False,
                self.their(theirs, assistant_early_exit=exit_layer),
                exit_layer=exit_layer,
                draft_length=length,
            ),
            Way(
                "transformers prompt lookup",
                False,
                self.their(theirs, prompt_lookup_num_tokens=length),
                draft_length=length,
            ),
        ]
        if self.compiled:
            static = load_peer(place)
            static.forward = torch.compile(static.forward, fullgraph=True)
            decode = self.their(static, cache_implementation="static", max_length=None)
            ways.append(Way(f"{PEER}, compiled", True, decode))
        return ways

    def their(self, model: Any, **settings: Any) -> Callable[[Tensor], list[int]]:
        fixed = {"max_new_tokens": self.budget, "min_new_tokens": self.budget, "do_sample": False, "pad_token_id": 0}

        @torch.inference_mode()
        def decode(prompt: Tensor) -> list[int]:
            output = model.generate(prompt[None], attention_mask=torch.ones_like(prompt)[None], **fixed, **settings)
            return output[0, len(prompt) :].tolist()

        return decode

    # The results

    def row(self, way: Way, timings: dict[str, Timing], plain: list[list[int]], limit: float, reference: Any) -> Row:
        lower, middle, upper = timings[way.name].quartiles
        counted = way.counted
        own = f"{PLAIN}, compiled" if way.compiled else PLAIN
        drafted = counted.drafted / counted.rounds if counted.rounds else 0
        bound: float | str = ""
        if drafted and "int8" not in way.name:  # whose draft passes cost less than others
            bound = layer_pass_bound(self.model.layers, way.exit_layer, drafted, counted.acceptance)
        distinct = fmean(distinct_n(output) for output in way.outputs)
        return {
            "way": way.name,
            "E": way.exit_layer or "",
            "d": way.draft_length or "",
            "tokens/s": middle,
            "lower": lower,
            "upper": upper,
            f"times {PLAIN}": "" if way.name == own else str(ratio(timings[way.name], timings[own])),
            "acceptance": counted.acceptance if drafted else "",
            "bound": bound,
            "distinct-3": distinct,
            "of text": fmean(distinct_n(text) for text in reference) if reference else "",
            "differ": sum(one != other for one, other in zip(way.outputs, plain, strict=True)),
            "same until": fmean(map(matching_prefix, way.outputs, plain)),
            "of limit": middle / limit,
        }

    def ratios(self, timings: dict[str, Timing]) -> dict[str, Any]:
        """What the bench is asked: own against the peer, and self-speculative against plain."""
        early_exit = "transformers assistant_early_exit"
        speculative = [name for name in timings if name.startswith("own self-speculative, compiled")]
        pairs = {
            "autoregressive_over_transformers": (PLAIN, PEER),
            "self_speculative_over_autoregressive": ("own self-speculative", PLAIN),
            "self_speculative_over_transformers_early_exit": ("own self-speculative", early_exit),
        }
        if self.compiled:
            best = max(speculative, key=lambda name: timings[name].median)
            pairs |= {
                "compiled_autoregressive_over_transformers": (f"{PLAIN}, compiled", f"{PEER}, compiled"),
                "compiled_self_speculative_over_autoregressive": (best, f"{PLAIN}, compiled"),
                "compiled_self_speculative_over_transformers_early_exit": (best, early_exit),
            }
        found: dict[str, Ratio] = {name: ratio(timings[one], timings[two]) for name, (one, two) in pairs.items()}
        for name, value in found.items():
            print(f"{name:56} {value}")
        return {name: value.median if value.quotable else str(value) for name, value in found.items()}

    def limit(self) -> float:
        """Tokens a second at which all weights of a float32 pass could be read: measured bandwidth over their bytes.

        The bandwidth is that of a product of a matrix of as many bytes with a vector, the best of several.
        """
        weights = sum(p.numel() for p in self.model.parameters())
        if not self.model.tied:
            weights -= self.model.model.embed_tokens.weight.numel()  # one row of it is read
        matrix = torch.ones(weights // 1024, 1024, device=self.prompts.device)
        vector = torch.ones(1024, device=self.prompts.device)
        best = min(timed(lambda: torch.mv(matrix, vector), self.prompts.is_cuda) for _ in range(30))
        return 1 / best
