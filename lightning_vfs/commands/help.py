"""`lightning-vfs SUBCOMMAND --help`: what people set, defaults and an example, at once; `--help.all` has the rest."""

from __future__ import annotations

SHORT, ALL = "--help", "--help.all"

_RUN = """\
configuration and data
  --config NAME|FILE        a packaged configuration (glyphs, folders, cpu, unet, ...) or a YAML file; several are
                            merged in their order, and flags override them
  --data CLASS              FolderSets (one folder of images for each class), GlyphSets (built in), OmniglotSets, ...
  --data.root FOLDER        of FolderSets
  --data.image_size N       pixels a side (32; of GlyphSets 16); --data.channels 1 or 3 (3; of GlyphSets 1)
  --data.set_size N         images of a set, its held-out one included (6)
  --batch_size N            sets of a step, on one GPU (16)
  --data.num_workers N      processes that fetch data (0)
"""

_DEVICES = """\
devices
  --precision P             32-true, bf16-mixed, 16-mixed, bf16-true (32-true)
  --trainer.accelerator A   auto, cpu, gpu (auto); --trainer.devices N|auto (auto); --trainer.strategy ddp for several
"""

FIT = f"""\
usage: lightning-vfs fit (--config NAME|FILE | --data CLASS) [options]

Train a model on sets of images. Without --config, the recipe for the images' size and this machine is
taken, and named. Options with their defaults in parentheses; a configuration may set others.

{_RUN}
training
  --steps N                 train to this step: --trainer.max_steps
  --learning_rate X         --model.optimizer.learning_rate (0.001)
  --ema_decay X             decay of the averaged weights: EMACallback.decay (0.9999)
  --seed_everything N       decides data, weights and noise (0)
  --ckpt_path FILE|last     resume a run; last_if_any starts one if there is none to resume

model
  --model.config.encoder.pool P            cls, mean, ...; patches, with the next line, for cross-attention (cls)
  --model.config.denoiser.conditioning C   film or lag (film)
  --model.config.denoiser.dim N            its width (384); .depth N (6), .patch_size N (4)
  --model.config.diffusion.prediction P    eps, x_0 or v (eps); .schedule linear or cosine (cosine)
  --model CLASS                            your own subclass of VFSDDPM

{_DEVICES}
what is written, and when
  --name NAME               the run's folder in runs/: the name of its loggers
  --save_every STEPS        checkpoints: ModelCheckpoint.every_n_train_steps
  --sample_every EPOCHS     pictures: SampleGridCallback.every_n_epochs
  --eval_every STEPS        FID and the like: FIDCallback.every_n_steps; add one by --config fid
  --config loggers/wandb    log to Weights & Biases too; loggers/mlflow

examples
  lightning-vfs fit --config glyphs
  lightning-vfs fit --data FolderSets --data.root path/to/images --steps 20000
  lightning-vfs fit --ckpt_path last

All options: lightning-vfs fit {ALL}. The resulting configuration: --print_config.
"""

_EVALUATION_OF_RUN = """\
usage: lightning-vfs {name} --config FILE --ckpt_path FILE|last [options]

{what}
Without --config and --data, the configuration is that of the newest run in the working folder.

{run}
model
  --ckpt_path FILE|last     the weights; last is the newest checkpoint of this configuration's runs

{devices}
examples
  lightning-vfs {name} --ckpt_path last
  lightning-vfs {name} --config runs/folders/version_0/config.yaml --ckpt_path last{more}

All options: lightning-vfs {name} {all}. The resulting configuration: --print_config.
"""


def _of_run(name: str, what: str, more: str = "") -> str:
    return _EVALUATION_OF_RUN.format(name=name, what=what, run=_RUN, devices=_DEVICES, more=more, all=ALL)


EVALUATE = f"""\
usage: lightning-vfs evaluate (--ckpt_path FILE|last | --pretrained FOLDER) [options]

All figures of a model, on classes that it was trained on (in) and on unseen ones (out): FID, few-shot accuracy,
and whether it copies. Writes fid.json next to the checkpoint.

model
  --ckpt_path FILE|last     a checkpoint; last is the newest in the working folder, or of --config RUN/config.yaml
  --pretrained FOLDER|ID    a folder that convert wrote, or a model of the Hugging Face hub
  --raw                     the raw weights instead of the averaged ones

data
  --data CLASS              by default that of the run; --data.root FOLDER and so on, as for fit

evaluation
  --config NAME|FILE        a protocol, such as eval/fsdm
  --fid.num_images N        generated images of each split (1000)
  --fid.splits [in,out]     classes of training, unseen classes ([in, out])
  --fid.metrics [fid,kid]   of fid, kid, isc, prc ([fid])
  --fid.steps N             steps of the sampler (50); --fid.sampler ddim, ddpm, dpmpp_2m, euler, heun (ddim)
  --fid.guidance_scale X    classifier-free guidance (1.0)
  --fid.few_shot_way N      classes to choose among for few_shot_accuracy (20)
  --fid.feature_extractor E inception-v3-compat, or glyph-cnn for the built-in data (inception-v3-compat)
  --fid.weights_path FILE   the extractor's weights, offline
  --fid.batch_size N        images that are generated at a time (250)
  --fid.save_images FOLDER  keep all images
  --fid.record FILE         instead of fid.json next to the checkpoint

devices
  --accelerator A           auto, cpu or gpu (auto); --devices N (1)
  --precision P             32-true, bf16-mixed, ... (32-true)

examples
  lightning-vfs evaluate --ckpt_path last
  lightning-vfs evaluate --ckpt_path runs/glyphs/version_0/checkpoints/last.ckpt --fid.feature_extractor glyph-cnn

All options: lightning-vfs evaluate {ALL}
"""

SAMPLE = f"""\
usage: lightning-vfs sample (--ckpt_path FILE|last | --pretrained NAME) --support FOLDER --out FOLDER [options]

Generate images of the class that a folder of a few images shows: 0000.png, 0001.png, ..., grid.png, and
sample.json, which says how they were made.

model
  --ckpt_path FILE|last     a checkpoint; last is the newest in the working folder, or of --config RUN/config.yaml
  --pretrained NAME         glyphs (in the package), a folder that convert wrote, or a model of the Hugging Face hub
  --raw                     the raw weights instead of the averaged ones
  --autoencoder FOLDER      of a model of latents, if it is not where it was in training

what to generate
  --support FOLDER|FILE     images of one class; from more than the model takes, some are drawn by seed
  --label N                 the class, for a class-conditional model
  --num_images N            (24)
  --out FOLDER              where they go; made if necessary

how
  --steps N                 steps of the sampler (50)
  --sampler S               ddim, ddpm, dpmpp_2m, euler or heun (ddim); --eta X of DDIM (0.0)
  --guidance_scale X        above 1 more of the class and less variety, for a model trained with guidance (1.0)
  --seed N                  of the noise (0)
  --batch_size N            images at a time (64)
  --device D                auto, cpu, cuda, cuda:1 (auto)
  --framework F             torch or jax (torch)

example
  lightning-vfs sample --ckpt_path last --support path/to/images/cat --num_images 8 --out out/

All options: lightning-vfs sample {ALL}
"""

CONVERT = f"""\
usage: lightning-vfs convert (--ckpt_path FILE|last | --from_jax PATH | --pretrained FOLDER) [--to FORMAT] [options]

Turn a checkpoint into another: to share a model, or to move between PyTorch and JAX.

source
  --ckpt_path FILE|last     a Lightning checkpoint; last is the newest in the working folder, or of
                            --config RUN/config.yaml
  --from_jax PATH           a checkpoint of the JAX system: an Orbax folder, a safetensors or a msgpack file
  --pretrained FOLDER|ID    a folder with model.safetensors and config.json, or a model of the Hugging Face hub

result
  --to FORMAT               pretrained (a folder to sample from and to share), ckpt (for fit --ckpt_path), orbax or
                            safetensors (pretrained)
  --out PATH                its file or folder; by default the source's name, in the working folder
  --raw                     the raw weights instead of the averaged ones
  --cfg FILE                JSON with the JAX system's flat configuration, for a checkpoint without one

example
  lightning-vfs convert --ckpt_path last --out model/

All options: lightning-vfs convert {ALL}
"""

DATA = f"""\
usage: lightning-vfs data --root FOLDER [options]

Show data as training sees it: classes, splits, files that are passed over, and a picture of some sets of each split.

options
  --data CLASS              FolderSets, or OmniglotSets, CIFAR100Sets, ... (FolderSets); --config NAME|FILE that has it
  --root FOLDER             one folder of images for each class, or train/, val/ and test/ with such folders
  --class_level N           levels below root (or a split) at which the classes are, if that is not clear
  --image_size N            pixels a side (32); --channels 1 or 3 (3)
  --set_size N              images of a set (6); classes with fewer are left out
  --split_fractions [A,B,C] shares of train, val and test ([0.8, 0.1, 0.1]); --split_seed N (0)
  --on_unreadable A         error, or skip, for images that cannot be read (error)
  --out FOLDER              of the pictures (data_preview); --num_classes N rows of each (8)

example
  lightning-vfs data --root path/to/images

All options: lightning-vfs data {ALL}
"""

COMPARE = f"""\
usage: lightning-vfs compare FIRST SECOND [--margin NAME=VALUE ...]
       lightning-vfs compare --first RECORD ... --second RECORD ... [--margin NAME=VALUE ...]

Show two evaluations side by side: whether they are comparable, and how they differ. If they are not comparable, every
reason is named and the exit status is 1.

  FIRST, SECOND             the record of an evaluation, fid.json, and another one
  --first RECORD ...        training runs of one method; --second RECORD ..., those of another
  --margin NAME=VALUE ...   differences that do not matter, such as fid=1.5

example
  lightning-vfs compare runs/a/version_0/checkpoints/fid.json runs/b/version_0/checkpoints/fid.json

More on the verdicts: lightning-vfs compare {ALL}
"""

EXTRACTOR = f"""\
usage: lightning-vfs extractor fit --data CLASS --out FOLDER [options]

Train a small classifier on the training classes of a data set, in minutes on a CPU. Its features take the place of
Inception's: --fid.feature_extractor FOLDER.

options
  --data CLASS              as for fit, with its options: --data.root FOLDER and so on
  --out FOLDER              new folder for weights and card
  --name NAME               in names of figures; by default the folder's
  --image_size N            16 to 64; by default the data's; --channels 1 or 3, likewise
  --epochs N                by default about 1,200 steps of 256 images
  --seed N                  of weights, order and augmentation (0)

example
  lightning-vfs extractor fit --data FolderSets --data.root path/to/images --out my-extractor

All options: lightning-vfs extractor fit {ALL}
"""

CACHE = f"""\
usage: lightning-vfs cache [options]

List decoded images, features of real images and the like, which are kept so that they are computed once.

options
  --dir FOLDER              the cache folder; by default LIGHTNING_VFS_CACHE, or ~/.cache/lightning_vfs
  --clear NAME ...          remove what has this name, or was made of this folder; features, or all
  --limit SIZE              remove the least recently used until the rest takes this much, such as 20GiB
  --check                   read every file and compare it with its checksum

example
  lightning-vfs cache --clear path/to/images

More: lightning-vfs cache {ALL}
"""

LEADERBOARD = """\
usage: lightning-vfs leaderboard RECORD|FOLDER|PATTERN... [options]

Rank evaluations by novel_accuracy, with 95% intervals, real images and copiers beside the models. Only evaluations
that are comparable are ranked together; others stand in groups of their own, with the reason. What copies its support
is said first. Files that are no records are named and passed over; the exit status is 1 if none is left.

  RECORD|FOLDER|PATTERN     files (fid.json), folders with such files at any depth, or '**/fid.json'

options
  --out FILE                table.md, with its pictures table.svg, ..., or table.html; by default it is printed
  --by record|run           run: training runs that differ in their seeds alone are one method, with an interval
                            over the runs (record)

example
  lightning-vfs leaderboard runs --out leaderboard.html
"""

VERIFY = f"""\
usage: lightning-vfs verify RECORD (--ckpt_path FILE|last | --pretrained FOLDER) [options]

Generate a sample of an evaluation's images again, and say whether they are those that the record (fid.json)
describes: identical, or different by no more than rounding. If not, the exit status is 1. Figures are not computed
again: use evaluate and compare for that.

model
  --ckpt_path FILE|last     a checkpoint; last is the newest in the working folder, or of --config RUN/config.yaml
  --pretrained FOLDER|ID    a folder that convert wrote, or a model of the Hugging Face hub
  --autoencoder FOLDER      of a model of latents, if it is not where it was in training

data
  --data CLASS              by default that of the run; --data.root FOLDER and so on, as for fit
  --data.image_size N       pixels a side (32); --data.split_seed N (0)

device
  --device D                auto, cpu, cuda, cuda:1 (auto)

example
  lightning-vfs verify runs/a/version_0/checkpoints/fid.json --ckpt_path runs/a/version_0/checkpoints/last.ckpt

All options: lightning-vfs verify {ALL}
"""

DEMO = f"""\
usage: lightning-vfs demo [options]

Serve a page on which a few pictures of a class become new ones, step by step. Ctrl-C ends it. It needs the extra
`demo`: pip install 'lightning_vfs[demo]'.

options
  --models A,B,...          that visitors choose among: glyphs, folders, checkpoints and ids of the hub (glyphs)
  --host ADDRESS            to listen on; 0.0.0.0 is all of this machine's (127.0.0.1)
  --port N                  to listen on; 0 takes a free one (7860)
  --any_model true|false    whether visitors may name other models; by default if only this machine sees the page
  --device D                auto, cpu, cuda, cuda:1 (auto)
  --open_browser true       open the page in a browser

example
  lightning-vfs demo --models glyphs,model/

All options: lightning-vfs demo {ALL}
"""

PUSH = f"""\
usage: lightning-vfs push --repo_id USER/MODEL (--ckpt_path FILE|last | --pretrained FOLDER) [options]

Share a model on the Hugging Face hub: weights, configuration and a card with its figures. Log in first, with
`hf auth login`.

model
  --repo_id USER/MODEL      the repository is made if necessary
  --ckpt_path FILE|last     a checkpoint; last is the newest in the working folder, or of --config RUN/config.yaml
  --pretrained FOLDER       a folder that convert wrote
  --raw                     the raw weights instead of the averaged ones

card
  --record FILE             the fid.json of its evaluation; by default that beside the weights
  --picture FILE            PNG of generated images, such as the grid.png of sample
  --description TEXT        what it is and what it is for; --data TEXT, what it was trained on
  --license ID              of the model, such as apache-2.0

repository
  --private true            of a new one; --branch NAME to commit to; --create_pr true for a pull request

example
  lightning-vfs push --repo_id user/model --ckpt_path last --picture out/grid.png

All options: lightning-vfs push {ALL}
"""

HELP = {
    "fit": FIT,
    "validate": _of_run("validate", "The loss on validation classes, and what the run's callbacks do at validation."),
    "test": _of_run(
        "test",
        "The loss on test classes, and what the run's callbacks do there: FID and the like, pictures.",
        "\n  lightning-vfs test --config fid --ckpt_path last",
    ),
    "predict": _of_run("predict", "One picture for every test set: its support and a generated image."),
    "evaluate": EVALUATE,
    "sample": SAMPLE,
    "convert": CONVERT,
    "data": DATA,
    "demo": DEMO,
    "push": PUSH,
    "extractor": EXTRACTOR,
    "cache": CACHE,
    "compare": COMPARE,
    "leaderboard": LEADERBOARD,
    "verify": VERIFY,
}
"""The help of the subcommands. Those that are not here are explained by their parsers."""


def asks(args: list[str]) -> str | None:
    """The kind of help that arguments ask for: `--help`, `--help.all` or none."""
    if ALL in args:
        return ALL
    return SHORT if {"-h", SHORT} & set(args) else None
