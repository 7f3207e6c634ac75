"""Train a masked-diffusion model (or its autoregressive twin) on the book that prepare.py prepared.

    python train.py                           the book prepared last, the three-stage curriculum
    python train.py config/demo.py --seed=2   config files and --key=value, in order
    python train.py --resume                  go on exactly where the run in out/ was stopped
    python train.py --dry_run                 the plan: sizes, memory, time; nothing is trained
    torchrun --nproc_per_node=2 train.py      data-parallel, with the same effective batch

Every random draw is a function of (seed, step) or (seed, stage, epoch) alone: a resumed run continues bit for
bit, several processes see one batch, and how often one evaluates changes nothing.
"""
import contextlib
import copy
import json
import math
import os
import re
import shutil
import signal
import sys
import time
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from filelock import FileLock, Timeout
from rich import progress as bars
from rich.console import Console
from rich.table import Column, Table

from configurator import configure, fail, in_range, prepared, read_stream, run_script, write_json, written
from model import (
    Block,
    Config,
    DiffusionModel,
    Masks,
    Sampling,
    checkpoint_of,
    cooccurrence_embedding,
    count_parameters,
    denoise,
    draw_masks,
    estimate_memory,
    held_out_bound,
    load_checkpoint,
    load_model,
    pad,
    parts,
    peak_memory_gb,
    pick_device,
    set_up_cpu,
    training_flops,
    weighted_loss,
)

# data and run
dataset = ""  # name under data/; empty: the book prepared last
out_dir = "out"  # of checkpoints, log and samples
resume = False  # continue the run in out_dir
dry_run = False  # print the plan and stop
seed = 1337  # of weights, batches and masks [0, 2000000000]
device = "auto"  # auto, cpu, cuda, cuda:1, mps
dtype = "auto"  # of the arithmetic; weights stay float32 {auto, float32, bfloat16, float16}
compile = False  # torch.compile: minutes to start, faster steps on a GPU
# the network
n_layer = 6  # transformer blocks [1, 1000]
n_head = 6  # attention heads [1, 1000]
n_embd = 384  # width, n_head times an even number [2, 100000]
block_size = 256  # tokens in a row; text is cut anew each epoch [2, 65536]
dropout = 0.0  # of residual branches and embeddings [0, 1)
causal = False  # True: the autoregressive twin, on the same data
rope_base = 10000.0  # wavelength base of the rotary embeddings [1, ...)
conv = 5  # width of the short convolution before attention; 0: none [0, 99]
embedding_init = "cooccurrence"  # from the training text, or from chance {cooccurrence, normal}
# the curriculum: each stage's stream, window of mask rates, share of rows that draw from all of them
stages = [
    {"name": "foundational", "data": "stage1", "mask_rate": [0.75, 0.90], "replay": 0.5,
     "epochs": 75.0, "max_steps": 0, "lr_factor": 1.0},
    {"name": "structural", "data": "stage2", "mask_rate": [0.40, 0.60], "replay": 0.5,
     "epochs": 150.0, "max_steps": 0, "lr_factor": 0.8},
    {"name": "refinement", "data": "stage3", "mask_rate": [0.05, 0.20], "replay": 0.5,
     "epochs": 300.0, "max_steps": 0, "lr_factor": 0.5}]
stage_patience = 0  # evaluations without improvement that end a stage early; 0: never [0, ...)
patience = 0  # evaluations without a new best that end the run; 0: never [0, ...)
carry_over = False  # one optimizer, warm-up and cosine for all stages; False: fresh in each
# optimisation
batch_size: int | str = 8  # rows of block_size tokens in a micro-batch (more if shorter), or auto [1, 65536]
grad_accum = 2  # micro-batches in a step, of all processes together [1, 65536]
learning_rate = 1e-3  # AdamW's at its peak in a stage with lr_factor 1 (0, ...)
min_lr = 0.1  # where the cosine ends, as a share of the peak [0, 1]
warmup_steps = 100  # linear warm-up, at most a tenth of what it precedes [0, ...)
beta1 = 0.9  # AdamW [0, 1)
beta2 = 0.95  # AdamW [0, 1)
weight_decay = 0.01  # of matrices; none on norms and the convolution [0, ...)
embedding_weight_decay = 0.0  # of the tied embedding [0, ...)
grad_clip = 1.0  # largest gradient norm; 0: no clipping [0, ...)
teacher = ""  # an earlier run's best.pt: half of what is learnt is what it predicts
even_weights = True  # of hidden tokens in the loss; False: the bound's, more where few are hidden
label_smoothing = 0.0  # of the training loss; the bound is measured without [0, 1]
ema = 0.0  # decay of an average of the weights, evaluated and saved instead; 0: off [0, 1)
checkpointing: bool | str = "auto"  # recompute activations in backward; auto: if a GPU needs it
# watching
eval_interval = 250  # steps between evaluations with a checkpoint; a stage ends with one [1, ...)
eval_masks = 512  # held-out rows times masks in an evaluation; in the last four times [1, 1000000]
sample_tokens = 64  # length of the sample beside each evaluation; 0: none [0, ...)
log_interval = 10  # steps between lines in log.jsonl [1, ...)
tensorboard = True  # write out_dir/tensorboard/ if that is installed
wandb_project = ""  # log to this Weights & Biases project as well

# knobs, and keys of a stage, that may differ when a run is resumed
FREE = {"resume", "dry_run", "out_dir", "device", "compile", "eval_masks", "sample_tokens", "log_interval",
        "tensorboard", "wandb_project", "patience", "batch_size", "grad_accum", "checkpointing", "epochs",
        "max_steps"}
# what a stage's keys may be, as in a knob's comment
STAGE = {"data": "the stream {stage1, stage2, stage3}", "mask_rate": "a window, low and high [0, 1]",
         "replay": "share of rows from the full range [0, 1]", "epochs": "its length [1e-9, 1e9]",
         "max_steps": "its length at most [0, 1e9]", "lr_factor": "of learning_rate [1e-9, 1e9]"}
MAX_BAD_STEPS = 5  # in a row without a finite loss, before the run stops
RANK, WORLD = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))  # set by torchrun


# ---- data

class Stream:
    """A stream of the book: `tokens` (uint16 memmap), `offsets` (n + 1,) of its examples."""

    def __init__(self, folder, name):
        self.tokens, self.offsets, self.digest = read_stream(folder, name)
        self.whole_text = name == "stage3_train"

    def rows(self, pieces):
        """(start, stop) pairs -> 1-d int64 tensors; beyond the end comes the beginning."""
        return [torch.from_numpy(self.tokens.take(np.arange(a, b), mode="wrap").astype(np.int64))
                for a, b in pieces]

    def pieces(self, longest, phase=0):
        """(n, 2) start and stop of an epoch's pieces: the whole text is a ring, cut from `phase` on every
        `longest` tokens; sentences and pairs stay whole, or are cut into as few nearly equal parts as fit."""
        if self.whole_text:
            size = min(longest, len(self.tokens))
            starts = phase + size * np.arange(len(self.tokens) // size)
            return starts[:, None] + [0, size]
        return np.array([part for a, b in pairwise(self.offsets.tolist()) for part in parts(a, b, longest)])

    def batches_per_epoch(self, longest, budget):
        """How many batches of about `budget` tokens an epoch has."""
        return math.ceil(np.diff(self.pieces(longest)).sum() / budget)

    def epoch(self, longest, budget, rng):
        """An epoch's batches in random order: (n, 2) pieces of similar length, about `budget` tokens."""
        pieces = rng.permutation(self.pieces(longest, int(rng.integers(len(self.tokens)))))
        pieces = pieces[np.diff(pieces)[:, 0].argsort(kind="stable")]
        tokens, count = np.diff(pieces).cumsum(), self.batches_per_epoch(longest, budget)
        batches = np.split(pieces, tokens.searchsorted(tokens[-1] * np.arange(1, count) / count))
        return [batches[i] for i in rng.permutation(count)]


def draw_seed(*numbers):
    """A 63-bit seed from several numbers, alike on every machine."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


def open_book(name):
    """(name, tokenizer, streams) of a prepared book; without a name, the last."""
    folder = prepared(name)
    tokenizer = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    streams = ("stage1_train", "stage2_train", "stage3_train", "val")
    return folder.name, tokenizer, {stem: Stream(folder, stem) for stem in streams}


# ---- optimisation

def make_optimizer(net):
    """AdamW: weight decay on matrices, its own on the embedding, none on norms and the convolution, which
    learns ten times as fast."""
    left, groups = dict(net.named_parameters()), []
    for part, decay, faster in (("embedding", embedding_weight_decay, 1), (".conv.", 0.0, 10),
                                ("norm", 0.0, 1), ("", weight_decay, 1)):
        params = [left.pop(name) for name in list(left) if part in name]
        groups.append({"params": params, "weight_decay": decay, "peak_lr": faster * learning_rate})
    return torch.optim.AdamW(groups, learning_rate, (beta1, beta2), fused=net.device.type in ("cuda", "cpu"))


def pick_dtype(where):
    """Of the arithmetic; 'auto': 16 bits on a GPU (float16 where it lacks bfloat16) and on a CPU with AMX."""
    if dtype != "auto":
        return getattr(torch, dtype)
    if where.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return torch.bfloat16 if where.type == "cpu" and torch.cpu._is_amx_tile_supported() else torch.float32


# ---- a run

@dataclass
class Progress:
    """What latest.pt remembers of a run besides weights and optimizer."""
    stage: int = 0  # index of the one at hand; that of none when all are done
    stage_step: int = 0  # steps done in it
    step: int = 0  # and in all
    tokens: int = 0  # of text seen in the stage
    seconds: float = 0.0  # spent in its steps
    bound: float = math.nan  # the newest validation bound, bits per byte
    before: float = math.nan  # when the stage began
    best: float = math.inf  # the lowest of the run
    since_best: int = 0  # evaluations since
    stage_best: float = math.inf
    since_stage_best: int = 0
    overflows: int = 0  # steps skipped because float16 ran over
    bad_steps: int = 0  # in a row without a finite loss
    results: list = field(default_factory=list)  # of the stages that are done


class Run:
    """All that the loop works with."""

    def __init__(self, knobs):
        self.where, self.kind = open_device()
        self.knobs, self.progress = knobs, Progress()
        knobs["dataset"], self.tokenizer, self.streams = open_book(dataset)
        self.digests = {name: stream.digest for name, stream in self.streams.items()}
        self.net = make_network(self)
        self.optimizer = make_optimizer(self.net)
        self.autocast = torch.autocast(self.where.type, self.kind, enabled=self.kind != torch.float32)
        self.scaler = torch.amp.GradScaler(self.where.type, enabled=self.kind == torch.float16)
        self.scaler.scale(torch.zeros((), device=self.where))  # a process may have no row of the first batch
        self.judged = copy.deepcopy(self.net) if ema else self.net  # what is evaluated and saved
        self.batches = None, ()  # the (stage, epoch) at hand, and its batches
        self.console = Console(stderr=True, highlight=False, soft_wrap=True, quiet=RANK > 0)
        self.log = None  # the first process's
        self.stop = 0  # the signal that asked the run to end
        self.teacher = open_teacher(self) if teacher else None
        fit_to_memory(self)  # settles micro, rows of block_size tokens in a micro-batch
        self.effective = self.micro * grad_accum  # and in a step

    @property
    def stage(self):
        """The one at hand; the last when all are done."""
        return self.plan[min(self.progress.stage, len(stages) - 1)]

    @property
    def epochs(self):
        """Done of the stage at hand."""
        return self.progress.stage_step / self.stage["per_epoch"]

    @cached_property
    def plan(self):
        """The stages, with their steps in an epoch and in all."""
        plan = []
        for stage in stages:
            per_epoch = self.stream(stage).batches_per_epoch(block_size, self.effective * block_size)
            steps = max(1, round(stage["epochs"] * per_epoch))
            plan.append(stage | {"per_epoch": per_epoch, "steps": min(steps, stage["max_steps"] or steps)})
        return plan

    @property
    def steps(self):
        """Of all stages."""
        return sum(stage["steps"] for stage in self.plan)

    def stream(self, stage):
        return self.streams[f"{stage['data']}_train"]

    def memory(self):
        return estimate_memory(
            self.net.config, self.micro, self.kind.itemsize, self.net.checkpointing, ema > 0,
            self.where.type == "cuda", max(map(mean_rate, stages)), self.teacher and self.teacher.config)

    def text(self, tokens):
        return "".join(self.tokenizer["tokens"][t] for t in tokens).encode("latin-1")

    def say(self, text):
        self.console.print(text, markup=False)
        self.said = time.time()  # last


def settle_knobs():
    """(knobs, the checkpoint to go on from). A resumed run keeps its knobs unless they are given anew."""
    knobs = configure(globals())
    if not resume:
        return knobs, None
    path, best = f"{out_dir}/latest.pt", f"{out_dir}/best.pt"
    try:
        saved = load_checkpoint(path)
    except (OSError, ValueError) as error:
        fail(f"{error}; there is also {best}" if os.path.exists(best) else error)
    with of_this_version():
        before = saved["training"]["knobs"]
        knobs = configure(globals(), base=before | {"out_dir": out_dir})
        now, then = fixed(knobs), fixed(before)
    for name, value in now.items():
        if value != then.get(name, value):
            fail(f"cannot resume {path} with {name}={value!r}: that run has {name}={then[name]!r}; "
                 "start another with --out_dir=...")
    return knobs, saved


def fixed(knobs):
    """The knobs that a resumed run keeps, each stage's beside the others, as stages[0].replay."""
    flat = {f"stages[{i}].{key}": value for i, stage in enumerate(knobs["stages"])
            for key, value in stage.items() if key not in FREE}
    return {name: knobs[name] for name in knobs if name not in FREE} | flat | {"stages": len(knobs["stages"])}


@contextlib.contextmanager
def of_this_version():
    """fail() where latest.pt holds other things than this version writes."""
    try:
        yield
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        fail(f"cannot resume {out_dir}/latest.pt: it is damaged, another version's, or no state of training "
             f"({type(error).__name__}: {error})")


def check_stages():
    """fail() where a stage makes no sense."""
    if not stages:
        fail("--stages is empty: nothing to train")
    for i, stage in enumerate(stages):
        for key, meaning in STAGE.items():
            in_range(f"stages[{i}].{key}", stage[key], meaning)
        if len(rates := stage["mask_rate"]) != 2 or rates[0] >= rates[1]:
            fail(f"--stages[{i}].mask_rate wants two numbers, 0 <= low < high <= 1, got {rates}")


def open_run():
    """Everything from the command line to the first step."""
    knobs, saved = settle_knobs()
    check_stages()
    run = Run(knobs)
    if saved:
        restore(run, saved)
    longest = max(np.diff(stream.offsets).max() for stream in run.streams.values())
    if block_size > 1.1 * longest:
        run.say(f"block_size={block_size}, but no example of data/{knobs['dataset']} is longer "
                f"than {longest} tokens: held-out text is measured in those")
    return run


def open_device():
    """(device, dtype) of this process; torchrun's find each other here."""
    try:
        where = pick_device(device, int(os.environ.get("LOCAL_RANK", 0)))
    except ValueError as error:
        fail(error)
    if WORLD > 1:
        dist.init_process_group("nccl" if where.type == "cuda" else "gloo")
    if where.type == "cuda":
        torch.cuda.set_device(where.index or 0)
        torch.backends.cuda.matmul.fp32_precision = torch.backends.cudnn.conv.fp32_precision = "tf32"
    return where, pick_dtype(where)


def make_network(run):
    torch.manual_seed(seed)
    try:
        config = Config(run.tokenizer["vocab_size"], block_size, n_layer, n_head, n_embd, dropout, causal,
                        rope_base, conv)
    except ValueError as error:
        fail(error)
    set_up_cpu(config)
    net = DiffusionModel(config)
    if embedding_init == "cooccurrence" and not resume:
        text = torch.from_numpy(run.streams["stage3_train"].tokens.astype(np.int64))
        net.embedding.weight.data.copy_(cooccurrence_embedding(text, config, seed))
    if compile:
        compile_blocks()
    return net.to(run.where)


def compile_blocks():
    """By halves: what depends on the data, padding and masks, stays outside."""
    for half in ("attend", "behind"):
        setattr(Block, half, torch.compile(getattr(Block, half), dynamic=True))


def open_teacher(run):
    """The network that `teacher` names, a resumed run's from its copy. One of other text may have read what
    is held out here."""
    path = f"{out_dir}/teacher.pt" if resume else teacher
    try:
        net, saved = load_model(path)
    except (OSError, ValueError) as error:
        fail(f"--teacher: {error}")
    if saved.get("training", {}).get("data") != run.digests:
        fail(f"--teacher={path} learnt from other text than this run, or from other tokens of it")
    if net.config.causal != causal:
        fail(f"--teacher={path} cannot teach this run: one of the two is causal")
    return net.to(run.where)


def fit_to_memory(run):
    """Settle run.micro, and whether to recompute activations."""
    on_gpu, auto = run.where.type == "cuda", batch_size == "auto"
    capacity = 0.9 * torch.cuda.get_device_properties(run.where).total_memory / 1e9 if on_gpu else math.inf
    run.micro = 1 if auto else batch_size
    if isinstance(run.micro, str):
        fail(f"--batch_size is a number or auto, got {batch_size!r}")

    def fits():
        return run.memory()["training_gb"] <= capacity
    run.net.checkpointing = not fits() if checkpointing == "auto" else checkpointing is not False
    if auto:
        run.micro = 256 if on_gpu else 8
        while run.micro > 1 and not fits():
            run.micro //= 2
        rows = torch.zeros(run.micro, block_size, dtype=int)
        # halves itself until it fits
        accumulate_gradients(run, rows, draw_masks(rows, run.net.config, (0.9, 1.0)), rows.numel())
        run.micro = int(agree(run, run.micro, dist.ReduceOp.MIN))
        run.say(f"batch_size='auto': micro-batches of {run.micro}")


@of_this_version()
def restore(run, saved):
    """Go on where the saved run was: in its last stage, if that ended and now has more steps or patience."""
    before, here = saved["training"].get("data", {}), run.digests
    if changed := [name for name in here if before.get(name) != here[name]]:
        fail(f"cannot resume {out_dir}/latest.pt: data/{run.knobs['dataset']} has changed since "
             f"({', '.join(changed)}); prepare it as it was, or start anew")
    run.judged.load_state_dict(saved["model"])
    run.net.load_state_dict(saved.get("raw", saved["model"]))
    run.optimizer.load_state_dict(saved["optimizer"])
    run.scaler.load_state_dict(saved["scaler"])
    run.effective = saved["training"]["effective_batch"]
    run.progress = p = Progress(**saved["progress"])
    if p.stage == len(stages):
        done = p.results[-1]
        stage = done["stage"] - 1
        if done["steps"] < run.plan[stage]["steps"] and not out_of_patience(p).startswith("stopped"):
            p.stage, p.stage_step = stage, p.results.pop()["steps"]
        else:
            run.say(f"this run is complete; more epochs or max_steps of --stages.{stage}, or more patience, "
                    "go on with it")


# ---- the step

def step(run):
    """One step of the stage at hand; what is logged of it."""
    p, stage, config = run.progress, run.stage, run.net.config
    began = time.perf_counter()
    # 1. batch: about as many tokens as in any other
    rows = next_rows(run)
    tokens = pad(rows, config.pad_id)
    text = (tokens < config.n_text).sum(1)
    total = int(text.sum())
    # 2. masks
    chance = torch.Generator().manual_seed(draw_seed(seed, 1, p.step))
    masks = draw_masks(tokens, config, stage["mask_rate"], stage["replay"], chance, even_weights)
    # 3. loss, 4. backward: in micro-batches that fit, summed over the processes
    loss = sum_over_processes(run.net, accumulate_gradients(run, rows, masks, total))
    # 5. clip: float16's loss scale comes off first
    run.scaler.unscale_(run.optimizer)
    norm = float(torch.nn.utils.clip_grad_norm_(run.net.parameters(), grad_clip or math.inf))
    # 6. update
    rate = set_learning_rate(run)
    updated = update_if_finite(run, loss, norm, rate)
    # 7. average
    if ema and updated:
        torch._foreach_lerp_([*run.judged.state_dict().values()], [*run.net.state_dict().values()], 1 - ema)
    if run.where.type == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - began
    p.step += 1
    p.stage_step += 1
    p.tokens += total
    p.seconds += seconds
    return {"loss": loss, "lr": rate, "mask_rate": float((masks.masked.sum(1) / text).mean()),
            "grad_norm": norm, "tokens_per_second": total / seconds, "memory_gb": peak_memory_gb(run.where),
            **({"overflows": p.overflows} if run.scaler.is_enabled() else {})}


def next_rows(run):
    """The step's batch of rows; a function of (seed, stage, step) alone."""
    p, stream = run.progress, run.stream(run.stage)
    epoch, index = divmod(p.stage_step, run.stage["per_epoch"])
    if run.batches[0] != (p.stage, epoch):
        rng = np.random.default_rng(draw_seed(seed, 3, p.stage, epoch))
        run.batches = (p.stage, epoch), stream.epoch(block_size, run.effective * block_size, rng)
    return stream.rows(run.batches[1][index])


def accumulate_gradients(run, rows, masks, total):
    """Forward and backward of every WORLD-th row, this process's: their nats over the batch's `total` tokens.
    Where memory runs out, micro-batches are halved and the batch is begun again."""
    masks, rows = Masks(*(x[RANK::WORLD].to(run.where) for x in masks)), rows[RANK::WORLD]
    while True:
        run.optimizer.zero_grad()
        torch.manual_seed(draw_seed(seed, 2, run.progress.step, RANK))  # of dropout
        loss = torch.zeros((), device=run.where)
        try:
            for tokens, part in micro_batches(run, rows, masks):
                with run.autocast:
                    nats = weighted_loss(run.net, tokens, part, run.net.config, label_smoothing, run.teacher)
                run.scaler.scale(nats / total).backward()
                loss += nats.detach() / total
            return loss
        except RuntimeError as error:  # OutOfMemoryError is a GPU's; a CPU's has no name
            if not isinstance(error, torch.OutOfMemoryError) and "allocate memory" not in str(error):
                raise
        if run.micro == 1:
            fail(f"out of memory with one row of {max(map(len, rows))} tokens: try "
                 "config/memory_efficient.py, a smaller block_size or model")
        run.micro //= 2
        run.say(f"out of memory: micro-batches of {run.micro} from here on, in the same effective batch")
        torch.cuda.empty_cache()  # here no traceback holds the activations any more


def micro_batches(run, rows, masks):
    """(tokens, their Masks) of at most run.micro * block_size tokens, padded to their own longest row."""
    size = max(1, run.micro * block_size // max(map(len, rows), default=1))
    for i in range(0, len(rows), size):
        part = slice(i, i + size)
        tokens = pad(rows[part], run.net.config.pad_id)
        yield tokens.to(run.where), Masks(masks.masked[part, :tokens.shape[1]], masks.weight[part])


def agree(run, value, how=dist.ReduceOp.MAX):
    """One number from every process's: their largest, their sum, ..."""
    if WORLD == 1:
        return value
    shared = torch.tensor(float(value), device=run.where)
    dist.all_reduce(shared, how)
    return shared.item()


def sum_over_processes(net, loss):
    """The processes' losses, and in place their gradients, added up in one go."""
    if WORLD > 1:
        for p in net.parameters():
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
        shared = [*(p.grad for p in net.parameters()), loss]
        flat = torch.nn.utils.parameters_to_vector(shared)
        dist.all_reduce(flat)
        torch.nn.utils.vector_to_parameters(flat, shared)
    return loss.item()


def set_learning_rate(run):
    """Linear warm-up, then a cosine to min_lr (Loshchilov & Hutter, 1608.03983), over the stage, or with
    carry_over the run."""
    p = run.progress
    done, steps = (p.step, run.steps) if carry_over else (p.stage_step, run.stage["steps"])
    warmup = min(warmup_steps, steps // 10)
    way = (done - warmup) / max(1, steps - warmup)
    cosine = min_lr + (1 - min_lr) * (1 + math.cos(math.pi * way)) / 2
    share = run.stage["lr_factor"] * ((done + 1) / warmup if done < warmup else cosine)
    for group in run.optimizer.param_groups:
        group["lr"] = group["peak_lr"] * share
    return learning_rate * share


def update_if_finite(run, loss, norm, rate):
    """Step the optimizer if loss and gradient are finite; too many steps in a row without end the run."""
    p, scaler = run.progress, run.scaler
    finite = math.isfinite(loss + norm)
    # in float16 a gradient too large for the loss scale is no fault: the scale is halved
    overflow = not finite and math.isfinite(loss) and scaler.get_scale() > 1
    if finite:
        scaler.step(run.optimizer)
    scaler.update()
    p.overflows += overflow
    p.bad_steps = 0 if finite or overflow else p.bad_steps + 1
    if p.bad_steps:
        run.say(f"step {p.step + 1}: loss {loss}, gradient norm {norm}: step skipped")
    if p.bad_steps == MAX_BAD_STEPS:
        fail(f"stopped: {MAX_BAD_STEPS} steps in a row without a finite loss, at learning rate {rate:.2g}: "
             f"try a lower one; the checkpoints in {out_dir} are from before")
    return finite


# ---- the loop

def train(run):
    """Every stage, step after step, from where run.progress stands."""
    p = run.progress
    while p.stage < len(stages):
        steps, ended = run.stage["steps"], ""
        if p.stage_step == 0:
            begin_stage(run)
        while p.stage_step < steps and not ended:
            line = step(run)
            last = p.stage_step == steps
            if run.log and (p.step % log_interval == 0 or last):
                run.log.show(run, run.log.write(run, line))
            if p.step % eval_interval == 0 or last:
                evaluate(run, final=last and p.stage + 1 == len(stages))
                ended = out_of_patience(p)
                if not (last or ended):
                    save_latest(run)
            if agree(run, run.stop) and not (last or ended):
                save_latest(run)
                close_run(run, f"stopped at step {p.step:,}; continue with --resume")
                sys.exit(128 + run.stop if run.stop else 0)
        end_stage(run, ended or "epochs done")


def begin_stage(run):
    """Reset what a stage counts, and log what it will do."""
    p, stage, config = run.progress, run.stage, run.net.config
    stream = run.stream(stage)
    p.stage_best, p.since_stage_best, p.tokens, p.seconds, p.before = math.inf, 0, 0, 0.0, p.bound
    if not carry_over:
        run.optimizer = make_optimizer(run.net)
    # what its masks will be like
    tokens = pad(stream.rows(stream.pieces(block_size)[:64]), config.pad_id)
    masks = draw_masks(tokens, config, stage["mask_rate"], generator=torch.Generator().manual_seed(seed))
    rates, examples = masks.masked.sum(1) / (tokens < config.n_text).sum(1), len(stream.offsets) - 1
    line = {"event": "stage", "name": stage["name"], "examples": examples, "steps": stage["steps"],
            "mask_rate_low": float(rates.min()), "mask_rate_high": float(rates.max()),
            "val_before": number(p.before)}
    if run.log:
        run.log.write(run, line)
    run.say(f"stage {p.stage + 1} ({stage['name']}): {examples:,} examples of {stage['data']}, "
            f"{stage['steps']:,} steps")


def evaluate(run, final):
    """The validation text's bound in bits per byte; a sample; the best checkpoints."""
    p = run.progress
    if RANK == 0:
        (rows, points), tokens = validation(run), run.streams["val"].tokens
        text = tokens[tokens < run.net.config.n_text]
        with run.autocast:
            bound = held_out_bound(run.judged, rows, points * (4 if final else 1))
        nats = float(bound.per_sequence.sum())
        p.bound = nats / math.log(2) / len(run.text(text))
        run.log.write(run, {
            "val_bits_per_byte": number(p.bound), "val_perplexity": math.exp(min(700, nats / len(text)))})
        if sample_tokens:
            line = {
                "step": p.step, "stage": run.stage["name"], "seed": seed, "val_bits_per_byte": p.bound,
                "text": sample_from(run)}
            with open(f"{out_dir}/samples.jsonl", "a", encoding="utf-8") as file:
                print(json.dumps(line, ensure_ascii=False), file=file)
        run.say(f"step {p.step:,} {run.stage['name']}: validation bound {p.bound:.4f} bits per byte"
                + (" (best)" if p.bound < p.best else ""))
    p.bound = agree(run, p.bound if RANK == 0 else 0.0, dist.ReduceOp.SUM)
    record = vars(p)
    for best, name in (("stage_best", f"best_stage{p.stage + 1}.pt"), ("best", "best.pt")):
        record[f"since_{best}"] += 1
        if p.bound < record[best]:
            record[best], record[f"since_{best}"] = p.bound, 0
            save(f"{out_dir}/{name}", checkpoint(run))


def validation(run):
    """The held-out rows of an evaluation, and how many masks each gets."""
    stream = run.streams["val"]
    rows = stream.rows(stream.pieces(block_size))
    return rows, math.ceil(eval_masks / len(rows))


def sample_from(run):
    """A text from nothing."""
    start = torch.full((1, min(sample_tokens, block_size)), run.net.config.mask_id)
    with run.autocast:
        *_, last = denoise(run.judged, start, [seed], Sampling(steps=32))
    run.judged.train()
    return run.text(last.tokens[0]).decode("utf-8", "replace")


def out_of_patience(p):
    """Why the stage ends here, if it does."""
    if 0 < patience <= p.since_best:
        return f"stopped early: {patience} evaluations without improvement over the best"
    if 0 < stage_patience <= p.since_stage_best:
        return f"{stage_patience} evaluations without improvement"
    return ""


def end_stage(run, ended):
    """Record how the stage went; on to the next, or past the last."""
    p = run.progress
    p.results.append({
        "stage": p.stage + 1, "name": run.stage["name"], "epochs": run.epochs, "steps": p.stage_step,
        "tokens": p.tokens, "seconds": round(p.seconds, 3), "bound_before": number(p.before),
        "best_bound": number(p.stage_best), "last_bound": number(p.bound), "ended": ended})
    p.stage, p.stage_step = len(stages) if ended.startswith("stopped early") else p.stage + 1, 0
    if RANK == 0:
        write_json(f"{out_dir}/curriculum_results.json", p.results)
    save_latest(run)


# ---- what a run leaves behind

def number(value):
    """JSON has neither NaN nor infinity."""
    return value if math.isfinite(value) else None


def checkpoint(run):
    """What best.pt holds."""
    p = run.progress
    return checkpoint_of(run.judged, run.tokenizer, training={
        "dataset": run.knobs["dataset"], "data": run.digests, "knobs": run.knobs,
        "effective_batch": run.effective, "step": p.step, "stage": p.stage + 1,
        "stage_name": run.stage["name"], "epoch": run.epochs, "val_bits_per_byte": p.bound})


def save_latest(run):
    """With all that resuming needs."""
    raw = {"raw": run.net.state_dict()} if ema else {}
    save(f"{out_dir}/latest.pt", checkpoint(run) | raw | {
        "optimizer": run.optimizer.state_dict(), "scaler": run.scaler.state_dict(),
        "progress": vars(run.progress)})


def save(path, content):
    """Write a checkpoint whole, or leave the one there is."""
    if RANK > 0:
        return
    try:
        with written(path, "wb") as file:
            torch.save(content, file)
    except RuntimeError as error:  # torch's way of saying that the disk is full
        raise OSError(None, str(error), path) from error


def start_folder(run):
    """out_dir, with configuration and source; of a resumed run's records goes what it will write again."""
    run.hold = FileLock(f"{out_dir}/lock", blocking=False)  # held as long as it is kept
    try:
        os.makedirs(out_dir, exist_ok=True)
        run.hold.acquire()
    except Timeout:
        fail(f"another run is writing to {out_dir}/: give this one its own --out_dir, or wait")
    except OSError as error:
        fail(f"nothing can be written to out_dir={out_dir!r}: {error.strerror}")
    records = Path(out_dir, "log.jsonl"), Path(out_dir, "samples.jsonl")
    if resume:
        for path in filter(Path.exists, records):
            truncate_log(path, run.progress.step)
    elif os.path.exists(f"{out_dir}/latest.pt"):
        move_aside(run)
    else:  # of a run that was stopped before its first checkpoint
        for path in (*records, Path(out_dir, "curves.svg")):
            path.unlink(missing_ok=True)
        shutil.rmtree(f"{out_dir}/tensorboard", ignore_errors=True)
    os.makedirs(f"{out_dir}/source", exist_ok=True)
    for name in ("train.py", "model.py"):
        shutil.copy(Path(__file__).with_name(name), f"{out_dir}/source/")
    if run.teacher and not resume:  # whose file may be gone, or another, when this run is resumed
        save(f"{out_dir}/teacher.pt", checkpoint(run) | checkpoint_of(run.teacher, run.tokenizer))
    write_json(f"{out_dir}/config.json", run.knobs)


def move_aside(run):
    """The earlier run to a folder of its own, latest.pt last: a move that was stopped is completed."""
    n = 1
    while os.path.exists(f"{out_dir}/previous{n}/latest.pt"):
        n += 1
    folder = f"{out_dir}/previous{n}"
    os.makedirs(folder, exist_ok=True)
    for name in sorted(os.listdir(out_dir), key="latest.pt".__eq__):
        if re.search(r"\.(pt|jsonl?|html|svg)$|^(tensorboard|source)$", name):
            shutil.move(f"{out_dir}/{name}", f"{folder}/{name}")
    run.say(f"the earlier run in {out_dir}/ is now in {folder}/")


def truncate_log(path, step):
    """Drop the lines after `step`, that of a stage that begins there, and a half-written last one."""
    *lines, _ = path.read_bytes().split(b"\n")
    with written(path, "wb") as file:
        for line in lines:
            record = json.loads(line)
            if record["step"] < step + (record.get("event") != "stage"):
                file.write(line + b"\n")


class Log:
    """log.jsonl, an object a line; its numbers as curves in TensorBoard and Weights & Biases; and on stderr a
    moving bar, or plain lines where there is no terminal."""

    def __init__(self, run):
        self.file, self.board, self.wandb = open(f"{out_dir}/log.jsonl", "a", encoding="utf-8"), None, None
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
                self.board = SummaryWriter(f"{out_dir}/tensorboard", purge_step=run.progress.step + 1)
            except Exception as error:  # whatever is wrong with its many parts
                run.say(f"no TensorBoard, log.jsonl alone ({type(error).__name__}: {error})")
        if wandb_project:
            try:
                import wandb
            except ImportError:
                fail("--wandb_project needs Weights & Biases: pip install wandb")
            self.wandb = wandb.init(project=wandb_project, config=run.knobs, resume="allow")
        text = bars.TextColumn("{task.description}", table_column=Column(ratio=1, no_wrap=True))
        left = bars.TimeRemainingColumn(elapsed_when_finished=True)
        room = [bars.BarColumn(16)] if run.console.width >= 80 else []  # loss and bound come first
        self.bar = bars.Progress(
            *room, bars.MofNCompleteColumn(), left, text, expand=True, console=run.console,
            disable=not run.console.is_terminal)
        self.task = self.bar.add_task("", total=run.steps, completed=run.progress.step)
        self.bar.start()
        self.shown = 0

    def write(self, run, line):
        """`line` with where the run stands."""
        p = run.progress
        line = {"step": p.step, "epoch": round(run.epochs, 3), "stage": p.stage + 1} | line
        print(json.dumps(line), file=self.file, flush=True)
        numbers = {key: x for key, x in line.items() if isinstance(x, int | float) and key != "step"}
        for key, value in numbers.items() if self.board else ():
            self.board.add_scalar(key, value, p.step)
        if self.wandb:
            self.wandb.log(numbers, step=p.step)
        return line

    def show(self, run, line):
        p = run.progress
        each = p.seconds / p.stage_step
        known = "" if math.isnan(p.bound) else f"bound {p.bound:.3f} "
        left = each * (run.stage["steps"] - p.stage_step)
        text = (f"loss {line['loss']:.3f} {known}{run.stage['name']} epoch {line['epoch']:.1f} "
                f"rate {line['mask_rate']:.2f} {line['tokens_per_second']:,.0f} tok/s, "
                f"{left / 60:.0f} min left in the stage")
        self.bar.update(self.task, completed=p.step, description=text)
        self.shown += 1
        if self.shown == 3:
            rest = each * (run.steps - p.step) + evaluation_seconds(run)
            run.say(f"about {duration(rest)} to go; Ctrl-C stops, --resume goes on"
                    + ("; config/demo.py takes minutes" if rest > 3600 else ""))
        if not run.console.is_terminal and time.time() - run.said > 10:
            run.say(f"step {p.step:,} of {run.steps:,}: {text}")

    def close(self):
        self.bar.stop()
        self.file.close()
        if self.board:
            self.board.close()


# ---- the plan

def mean_rate(stage):
    """The share of a stage's tokens that is masked."""
    return (1 - stage["replay"]) * sum(stage["mask_rate"]) / 2 + stage["replay"] / 2


def timed(work, *arguments):
    began = time.perf_counter()
    work(*arguments)
    return time.perf_counter() - began


def measured_seconds(run):
    """Of a step in each stage, from up to five after a first, or one where it takes long."""
    taken = [[] for _ in stages]
    for i in bars.track(range(6 * len(stages)), "measuring", console=run.console, disable=RANK > 0):
        run.progress.stage, run.progress.stage_step = divmod(i, 6)
        part = taken[i // 6]
        if agree(run, sum(part)) < 10:
            part.append(timed(step, run))
    return [np.mean(part[1:] or part) for part in taken]


def evaluation_seconds(run):
    """Of the evaluations to come and their samples, from a batch of rows; the last counts as four."""
    rows, points = validation(run)
    some = rows[:max(1, 8192 // block_size)]
    with run.autocast:
        judging = timed(held_out_bound, run.net, some, 1) * len(rows) * (1 if causal else points) / len(some)
    writing = timed(sample_from, run) if sample_tokens else 0
    ends = {*np.cumsum([part["steps"] for part in run.plan]), *range(eval_interval, run.steps, eval_interval)}
    return (3 + sum(end > run.progress.step for end in ends)) * (judging + writing)


def duration(seconds):
    """For people: 42 s, 12 min, 5 h 34 min."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def print_plan(run):
    """The dry run: what is trained, on what, how long; what the literature says of it."""
    console, config, memory = Console(soft_wrap=True, highlight=False), run.net.config, run.memory()
    sizes = count_parameters(config)
    console.print("Parameters: " + ", ".join(f"{name} {count:,}" for name, count in sizes.items()))
    console.print(
        f"Memory (estimate): {memory['training_gb']:.2f} GB to train in micro-batches of {run.micro}, "
        f"{memory['inference_gb']:.2f} GB to sample; "
        f"{'fits' if memory['fits_8gb_gpu'] else 'does not fit'} an 8 GB GPU")
    table = Table(
        "stage", "data", "mask rate", "steps", "tokens", "FLOPs", "time (measured)",
        title=f"{run.steps:,} steps")
    judging = evaluation_seconds(run)
    seen, flops, taken = 0, 0, 0.0
    for stage, each in zip(run.plan, measured_seconds(run)):
        (low, high), stream, steps = stage["mask_rate"], run.stream(stage), stage["steps"]
        tokens = int(len(stream.tokens) * steps / stage["per_epoch"])
        lengths = np.diff(stream.pieces(block_size))
        length = int(np.average(lengths, weights=lengths))  # of the row that the average token stands in
        of_stage = training_flops(config, tokens, int(tokens * (1 if causal else mean_rate(stage))), length)
        seen, flops, taken = seen + tokens, flops + of_stage, taken + each * steps
        table.add_row(
            stage["name"], stage["data"], f"{low}-{high}", f"{steps:,}", f"{tokens:,}", f"{of_stage:.2e}",
            duration(each * steps))
    unique = len(run.streams["stage3_train"].tokens)
    epochs, critical = seen / unique, 2.12e15 * (unique / 1e6) ** 2.174
    # 2510.03280's fit as power laws through its values at 100K and 500K tokens
    fivefold = math.log(unique / 1e5, 5)
    console.print(
        table, f"All of it: {flops:.2e} FLOPs, {duration(taken + judging)}, of which {duration(judging)} "
        f"for evaluations; {epochs:.0f} passes' worth of the book's {unique:,} training tokens.\n"
        "Extrapolation (arXiv 2507.15857, of 25M-100M tokens): diffusion overtakes autoregression above "
        f"C_crit = {critical:.2e} FLOPs, this run has {flops / critical:.1f} times that. Measured on four "
        "books (README): not yet at 1.4e13 to 2.0e13; with a teacher for both, on one.\n"
        "Extrapolation (same, Table 1): repeated data keeps its worth up to R* = "
        f"{31.19 if causal else 493.89} epochs of this objective; this run has {epochs:.0f}.\n"
        "Extrapolation (arXiv 2510.03280): for this many tokens about "
        f"{7 * 2 ** fivefold:.0f}M parameters and {100 * 1.35 ** fivefold:.0f} epochs; this run has "
        f"{sizes['total'] / 1e6:.1f}M and {epochs:.0f}.")


# ---- from start to end

def start(run):
    """Folder and log; Ctrl-C and SIGTERM end the run after the step at hand, a second one at once."""
    if RANK == 0:
        start_folder(run)
        run.log = Log(run)

    def on_signal(number, frame):
        if run.stop:
            os._exit(128 + number)
        run.stop = number
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, on_signal)
    begun, many = f"resuming at step {run.progress.step:,}", f", {WORLD} processes"
    run.say(f"{begun if resume else 'training'}: {count_parameters(run.net.config)['total']:,} parameters, "
            f"{run.knobs['dataset']}, {run.steps:,} steps of {run.effective} rows in micro-batches of "
            f"{run.micro}, {run.where}, {str(run.kind)[6:]}{many if WORLD > 1 else ''}")


def draw_curves():
    """out_dir/curves.svg: loss and bound over steps, every other stage shaded, in colours
    for light pages and dark."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return
    lines = [*map(json.loads, Path(out_dir, "log.jsonl").read_text("utf-8").splitlines())]
    figure, grey = Figure((8, 3.2), layout="constrained"), "#808080"
    left = figure.subplots()
    for axis, key, hue, what in (
            (left, "loss", "#6a94c8", "training loss, nats per token"),
            (left.twinx(), "val_bits_per_byte", "#c2702e", "validation, bits per byte")):
        points = [(line["step"], line[key]) for line in lines if line.get(key) is not None]
        axis.plot(*zip(*points), color=hue)
        axis.set_ylabel(what, color=hue)
        axis.tick_params(colors=grey)
        axis.spines[:].set_color(grey)
    begun = [line["step"] for line in lines if line.get("event") == "stage"] + [lines[-1]["step"]]
    for a, b in zip(begun[::2], begun[1::2]):
        left.axvspan(a, b, color=grey, alpha=0.15, linewidth=0)
    left.set_xlabel("steps", color=grey)
    # where the disk is full, the run itself is safe
    with contextlib.suppress(OSError), written(f"{out_dir}/curves.svg", "wb") as file:
        figure.savefig(file, format="svg", transparent=True)


def close_run(run, text):
    if RANK == 0:
        run.log.close()
        draw_curves()
    run.say(text)
    if WORLD > 1:
        dist.barrier()  # none leaves while another still writes
        dist.destroy_process_group()


def main():
    run, began = open_run(), time.time()
    if dry_run:
        return print_plan(run) if RANK == 0 else measured_seconds(run)
    try:
        start(run)
        train(run)
        close_run(run, f"done in {time.time() - began:,.0f} s: best validation bound {run.progress.best:.4f} "
                       f"bits per byte, in {out_dir}/best.pt; python sample.py writes with it")
    except OSError as error:
        fail(f"could not write {error.filename or f'to {out_dir}/'} ({error.strerror or error}): free some "
             "space and continue with --resume; the last checkpoint is whole")


if __name__ == "__main__":
    run_script(main)
