"""Model cards: the README.md of a model on the hub, written from its configuration and the record of its evaluation."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from lightning_vfs.core.config import VFSConfig
from lightning_vfs.core.errors import ConfigError
from lightning_vfs.version import __version__

CARD, PICTURE = "README.md", "samples.png"
SOURCE = "https://github.com/lightning-vfs/lightning_vfs"
KNOWN_SAMPLERS = ("ddpm", "ddim", "dpmpp_2m")


LANDMARKS = {
    "floor": "floor",
    "copier": "copier",
    "mean_of_support": "mean of support",
    "jittered_mean": "jittered mean",
}
"""Columns of the table of figures: what else a figure has, and the column's name."""


class EvaluatedFigure(Protocol):
    """A figure of an evaluation, a Figure; it may have the fields of `LANDMARKS`, too."""

    @property
    def value(self) -> float:
        """NaN where generated images were not finite."""

    @property
    def standard_error(self) -> float | None:
        """None if it is not known."""


class Evaluated(Protocol):
    """What a card says of an evaluation: an EvaluationRecord."""

    @property
    def figures(self) -> Mapping[str, EvaluatedFigure]:
        """By their names."""

    @property
    def verdicts(self) -> tuple[str, ...]:
        """What the model copies."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What else a reader must know."""

    @property
    def data(self) -> Any:
        """DataRecord."""

    @property
    def splits(self) -> Mapping[str, Any]:
        """SplitRecord of each split."""

    @property
    def sampling(self) -> Any:
        """SamplingRecord."""

    @property
    def features(self) -> Any:
        """FeaturesRecord."""

    def write(self, path: Path) -> None:
        """Write it as JSON."""


@dataclass(frozen=True, kw_only=True)
class CardText:
    """What the author says of a model, in Markdown, except for the licence.

    Args:
        description: what the model is, and what it is for.
        data: what it was trained on, whose that is, and under which licence.
        license: of the model: an identifier that the hub knows, such as `apache-2.0`.
    """

    description: str | None = None
    data: str | None = None
    license: str | None = None

    def __post_init__(self) -> None:
        if self.license is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.+-]*", self.license):
            raise ConfigError(
                f"license is {self.license!r}; it must be an identifier that the hub knows, such as apache-2.0, mit, "
                "cc-by-4.0 or other."
            )


def model_card(
    config: VFSConfig,
    repo_id: str,
    text: CardText = CardText(),
    record: Evaluated | None = None,
    origin: str | None = None,
    has_picture: bool = False,
) -> str:
    """The card of a model, Markdown under metadata in YAML.

    What comes from the record is shown as text: nothing in it is markup.

    Args:
        config: of the model.
        repo_id: its id on the hub, or its name.
        text: what its author says.
        record: of its evaluation.
        origin: which weights it has, such as `averaged weights of step 400`.
        has_picture: there is a picture of generated images beside the card, `PICTURE`.

    Raises:
        ConfigError: huggingface_hub is not installed.
    """
    sections = [_opening(config, repo_id, text, record, has_picture), _usage(config, repo_id, record)]
    sections += [_data_and_licence(text), _figures(config, record), _model(config, origin), _limits(config, record)]
    return f"---\n{_metadata(config, repo_id, text, record)}\n---\n\n" + "\n\n".join(sections) + "\n"


def as_text(value: object) -> str:
    """A string that may come from somebody else, such as a record, so that Markdown and HTML show it as it is.

    Everything that could be markup becomes a character reference, which never is; white space becomes one space.
    """
    plain = _plain(value)
    return re.sub(
        r"^[-+=]|[^\w\s.,:()±%/=+-]|_|:(?! )|(?<=\w)\.(?=[^\W\d])|/(?=/)", lambda found: f"&#{ord(found[0])};", plain
    )


def as_code(value: object) -> str:
    """The same for names, in the type of code, also within a table."""
    plain = _plain(value).replace("`", "'").replace("|", "\\|").strip()
    return f"`{plain}`" if plain else "``` ```"


def _plain(value: object) -> str:
    """One line of printable characters, at most 500."""
    text = str(value).encode("utf-8", "replace").decode()
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:500]


def _metadata(config: VFSConfig, repo_id: str, text: CardText, record: Evaluated | None) -> str:
    try:
        from huggingface_hub import EvalResult, ModelCardData
    except ImportError:
        raise ConfigError("A model card needs huggingface_hub: `pip install 'lightning_vfs[hub]'`.") from None
    support = config.encoder.condition == "support"
    task = "image-to-image" if support else "unconditional-image-generation"
    results = [] if record is None else [
        EvalResult(
            task_type=task,
            dataset_type=_plain(record.data.dataset).lower() or "unknown",
            dataset_name=_plain(record.data.dataset) or "unknown",
            dataset_split=_split_of(name, record),
            metric_type=_plain(name).split("[")[0].split("/")[0],
            metric_name=_plain(name),
            metric_value=figure.value,
        )
        for name, figure in record.figures.items()
        if math.isfinite(figure.value) and "_std" not in name
    ]  # fmt: skip
    named: dict[str, Any] = {"model_name": repo_id.split("/")[-1], "eval_results": results} if results else {}
    tags = ["diffusion", "image-generation", *(["few-shot"] if support else [])]
    data = ModelCardData(library_name="lightning_vfs", license=text.license, pipeline_tag=task, tags=tags, **named)
    return data.to_yaml().strip()


def _split_of(name: str, record: Evaluated) -> str | None:
    split = record.splits.get(name.rpartition("/")[2].split("_")[0])
    return None if split is None else _plain(split.data_split)


def _opening(config: VFSConfig, repo_id: str, text: CardText, record: Evaluated | None, has_picture: bool) -> str:
    sets, condition = config.sets, config.encoder.condition
    images = f"{sets.image_size} x {sets.image_size} pixels, {'grey' if sets.channels == 1 else 'RGB'}"
    made = {
        "support": f"From 1 to {sets.shots} images of a class, which it need not have seen in training, this diffusion "
        f"model generates new images of that class ({images}).",
        "label": f"This diffusion model generates images of the {config.encoder.num_classes} classes that it was "
        f"trained on ({images}).",
        None: f"This diffusion model generates images like those that it was trained on ({images}).",
    }[condition]
    verdicts = () if record is None else record.verdicts
    parts = [f"**Warning: {as_text(verdict)}.**" for verdict in verdicts]
    parts += [f"# {as_text(repo_id.split('/')[-1])}", made, *([text.description.strip()] if text.description else [])]
    if has_picture:
        left = ": the images it was given on the left, generated ones on the right" if condition == "support" else ""
        parts.append(f"![Generated images{left}]({PICTURE})")
    parts.append(
        f"It was trained with [lightning_vfs]({SOURCE}), and is for research on few-shot generation and for images of "
        "the kind that it was trained on."
    )
    return "\n\n".join(parts)


def _usage(config: VFSConfig, repo_id: str, record: Evaluated | None) -> str:
    sets, condition = config.sets, config.encoder.condition
    given, flag, before = {
        "support": (
            "support, ",
            "--support images/ ",
            f"Put 1 to {sets.shots} images of one class into `images/`.\n\n",
        ),
        "label": ("label=0, ", "--label 0 ", ""),
        None: ("", "", ""),
    }[condition]
    how = dict(_sampling_of(config, record))
    keywords = "".join(f", {name}={value!r}" for name, value in how.items())
    flags = "".join(f" --{name} {value}" for name, value in how.items())
    load = ""
    imports = ["from lightning_vfs import VFSDDPM", "from lightning_vfs.data.pictures import save_png, to_uint8"]
    if condition == "support":
        imports.insert(1, "from lightning_vfs.data import load_support")
        size = f"image_size={sets.image_size}, channels={sets.channels}"
        load = f'support = load_support("images/", {size})  # (k, c, h, w) in [-1, 1]\n'
    code = (
        "from pathlib import Path\n\n"
        + "\n".join(imports)
        + f'\n\nmodel = VFSDDPM.from_pretrained("{repo_id}")\n{load}'
        f"images = model.sample({given}num_images=8, seed=0{keywords})  # (8, c, h, w) in [-1, 1]\n"
        "for i, image in enumerate(to_uint8(images)):\n"
        '    save_png(image, Path(f"generated{i}.png"))\n'
    )
    latent = (
        f"It generates latents of the autoencoder {as_code(config.latent.autoencoder)}: give its folder with "
        "`--autoencoder`, in Python `model.use_autoencoder(folder)`.\n\n"
        if config.latent.autoencoder
        else ""
    )
    package = "'lightning_vfs[hub]'" if "/" in repo_id else "lightning_vfs"
    return (
        f"## How to use it\n\n{before}{latent}```bash\npip install {package}\n"
        f"lightning-vfs sample --pretrained {repo_id} {flag}--num_images 8 --out out/{flags}\n```\n\n"
        f"```python\n{code}```\n\nNo code of this repository is run: it holds weights and a configuration."
    )


def _sampling_of(config: VFSConfig, record: Evaluated | None) -> Iterator[tuple[str, Any]]:
    """Options of sampling as evaluated, where they are not the default; what is not known is left out."""
    sampler, steps, guidance = (
        getattr(record.sampling, name) if record else None for name in ("sampler", "steps", "guidance")
    )
    if sampler in KNOWN_SAMPLERS and sampler != "ddim":
        yield "sampler", sampler
    most = config.diffusion.timesteps
    if type(steps) is int and 0 < steps <= most and steps != 50:
        yield "steps", steps
    elif most < 50:
        yield "steps", most
    if type(guidance) is float and 0 <= guidance < math.inf and config.encoder.context_dropout:
        yield "guidance_scale", guidance


def _data_and_licence(text: CardText) -> str:
    data = text.data.strip() if text.data else "Its author does not say what it was trained on."
    licence = f"Licence of the model: {text.license}." if text.license else "Its author states no licence."
    return f"## Data and licence\n\n{data}\n\n{licence}"


def _figures(config: VFSConfig, record: Evaluated | None) -> str:
    if record is None:
        return "## Figures\n\nThe model was not evaluated."
    how, features, shots = record.sampling, record.features, record.sampling.shots
    splits = [
        f"{as_code(name)}: the {as_code(split.data_split)} split, {len(split.classes)} classes"
        + (f", {split.num_images} images generated" if split.num_images is not None else "")
        + f", {split.num_real_images} real ones"
        for name, split in record.splits.items()
    ]
    protocol = [
        f"Data: {as_text(record.data.dataset)}, {record.data.image_size} x {record.data.image_size} pixels.",
        *(f"Split {line}." for line in splits),
        f"Sampling: {as_code(how.sampler)}, {how.steps} steps, "
        + ("no guidance" if how.guidance is None else f"guidance {how.guidance:g}")
        + ("" if shots is None else f", supports of {shots} images")
        + f", seed {how.seed}.",
        *([f"Features: {as_code(features.extractor)}."] if features.extractor else []),
    ]
    notes = [f"- {as_text(note)}" for note in record.notes if note not in record.verdicts]
    return "\n\n".join(
        part
        for part in (
            "## Figures",
            "\n".join(f"- {line}" for line in protocol),
            _table(record.figures),
            "± is a standard error. The floor is the same figure between two sets of real images; the other columns "
            "are the figure of a copy of the first image that was given, of the mean of those images, and of that mean "
            "rotated, scaled and shifted. Only with figures of new images, such as `novel_accuracy`, is a copy worth "
            "nothing. `fid.json` has everything that the figures depend on.",
            _list("Notes:", notes),
        )
        if part
    )


def _table(figures: Mapping[str, EvaluatedFigure]) -> str:
    """Figures with their standard errors, and those landmarks that any of them has."""
    columns = [n for n in LANDMARKS if any(getattr(figure, n, None) is not None for figure in figures.values())]
    lines = [
        ["figure", "value", *(LANDMARKS[name] for name in columns)],
        ["---"] * (2 + len(columns)),
    ]
    for name, figure in figures.items():
        if "_std" not in name:
            error = "" if figure.standard_error is None else f" ± {figure.standard_error:.2g}"
            beside = (getattr(figure, column, None) for column in columns)
            shown = ("-" if value is None else f"{value:.4g}" for value in beside)
            lines.append([as_code(name), f"{figure.value:.4g}{error}", *shown])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) if len(lines) > 2 else ""


def _list(title: str, lines: Iterable[str]) -> str:
    listed = "\n".join(lines)
    return f"{title}\n\n{listed}" if listed else ""


def _model(config: VFSConfig, origin: str | None) -> str:
    encoder, denoiser, diffusion = config.encoder, config.denoiser, config.diffusion
    rows = {
        "set encoder" if encoder.condition == "support" else "condition": as_code(encoder.architecture),
        "denoiser": f"{as_code(denoiser.architecture)}, conditioning {as_code(denoiser.conditioning)}",
        "diffusion": f"{diffusion.timesteps} timesteps, schedule {as_code(diffusion.schedule)}, prediction "
        f"{as_code(diffusion.prediction)}",
        "images": f"{config.sets.channels} x {config.sets.image_size} x {config.sets.image_size}",
        **({"weights": as_text(origin)} if origin else {}),
        "lightning_vfs": as_text(__version__),
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    return f"## Model\n\n| | |\n| --- | --- |\n{table}\n\n`config.json` has the whole configuration."


def _limits(config: VFSConfig, record: Evaluated | None) -> str:
    copying = (
        "was not evaluated for copying, so its images may be copies of what it was given or trained on"
        if record is None
        else "copies, as said above"
        if record.verdicts
        else "was not found to copy in the evaluation above, which does not rule copies out"
    )
    return (
        f"## Limits\n\nIt knows images of the kind and size that it was trained on; of others it makes something like "
        f"them. It {copying}. Look at its images before you rely on them."
    )
