"""Train a masked-diffusion model (or its autoregressive twin) on the book that prepare.py prepared.

    python train.py                                        the book prepared last, the three-stage curriculum
    python train.py config/demo.py --learning_rate=2e-3    config files and --key=value, in order
    python train.py --resume                               go on exactly where the run in out/ was stopped
    python train.py --dry_run                              the plan: sizes, memory, time; nothing is trained
    torchrun --nproc_per_node=2 train.py                   data-parallel, with the same effective batch

Every random draw of a run is a function of (seed, step) or (seed, stage, epoch), never of what was drawn before: so a resumed
run continues bit for bit, several processes see one batch, and how often one evaluates changes nothing.
"""
import contextlib
import copy
import hashlib
import json
import math
import os
import resource
import shutil
import signal
import sys
import time

import numpy as np
import torch
import torch.distributed as dist

import model as model_file
from configurator import configure, fail
from model import (
    SPECIALS,
    Config,
    DiffusionModel,
    checkpoint_of,
    count_parameters,
    denoise,
    draw_masks,
    estimate_memory,
    held_out_bound,
    load_checkpoint,
    pad,
    save_checkpoint,
    set_up_cpu,
    training_flops,
    weighted_loss,
)

# data and run
dataset = ""                   # name under data/; empty: the book prepared last
out_dir = "out"                # checkpoints, log and samples go here
resume = False                 # continue the run in out_dir
dry_run = False                # print the plan and stop
seed = 1337                    # of weights, batches and masks
device = "auto"                # auto, cpu, cuda, cuda:1, mps
dtype = "auto"                 # auto, float32, bfloat16, float16: of the arithmetic; weights stay float32
compile = False                # torch.compile the network: minutes to start, faster steps on a GPU
# the network
n_layer = 6                    # transformer blocks
n_head = 6                     # attention heads
n_embd = 384                   # width
block_size = 256               # longest sequence in tokens; longer examples are cut, at another place each epoch
dropout = 0.0                  # of residual branches and embeddings
causal = False                 # True: the autoregressive twin, on the same data
rope_base = 10000.0            # wavelength base of the rotary embeddings
# the curriculum: each stage's stream, its window of mask rates, the share of each batch that draws from the full range instead
stages = [
    {"name": "foundational", "data": "stage1", "mask_rate": [0.75, 0.90], "replay": 0.5, "epochs": 75.0, "max_steps": 0, "lr_factor": 1.0},
    {"name": "structural", "data": "stage2", "mask_rate": [0.40, 0.60], "replay": 0.5, "epochs": 150.0, "max_steps": 0, "lr_factor": 0.8},
    {"name": "refinement", "data": "stage3", "mask_rate": [0.05, 0.20], "replay": 0.5, "epochs": 300.0, "max_steps": 0, "lr_factor": 0.5},
]
stage_patience = 0             # evaluations without improvement that end a stage early; 0: its epochs alone do
patience = 0                   # evaluations without improvement over the best that end the run; 0: never
carry_over = False             # True: one optimizer state and one warm-up and cosine over all stages; False: fresh in each
# optimisation
batch_size: int | str = 8      # examples in a micro-batch; 'auto': the largest power of two that fits
grad_accum = 2                 # micro-batches in a step; the effective batch is batch_size * grad_accum on any number of processes
optimizer = "adamw"            # adamw, or muon: torch.optim.Muon for the hidden matrices, AdamW for the rest
learning_rate = 1e-3           # at its peak in a stage with lr_factor 1
muon_learning_rate = 0.02      # the hidden matrices' under muon
min_lr = 0.1                   # where the cosine ends, as a share of the peak
warmup_steps = 100             # linear warm-up, at most a tenth of what it precedes
beta1 = 0.9                    # AdamW
beta2 = 0.95                   # AdamW
weight_decay = 0.01            # of matrices; none on norms
embedding_weight_decay = 0.0   # of the tied embedding
grad_clip = 1.0                # largest gradient norm; 0: no clipping
label_smoothing = 0.0          # of the training loss; the bound is measured without
ema = 0.0                      # decay of an average of the weights, evaluated and saved in their place; 0: off
checkpointing: bool | str = "auto"   # recompute activations in backward; 'auto': when the estimate does not fit the GPU
# watching
eval_interval = 250            # steps between evaluations, each with a checkpoint and a sample; a stage's end has one too
eval_points = 8                # masks per held-out sequence and evaluation
sample_tokens = 64             # length of the sample beside each evaluation; 0: none
log_interval = 10              # steps between lines in log.jsonl
tensorboard = True             # write out_dir/tensorboard/ where tensorboard is installed
wandb_project = ""             # log to this Weights & Biases project as well

FREE = {"resume", "dry_run", "out_dir", "device", "compile", "eval_points", "sample_tokens", "log_interval", "tensorboard", "wandb_project",
        "patience", "batch_size", "grad_accum", "checkpointing"}        # knobs that may differ when a run is resumed
MAX_BAD_STEPS = 5              # steps in a row without a finite loss before the run stops


# ------------------------------------------------------------------------------------------------ data

class Stream:
    """One of the book's token streams: `tokens` (uint16 memmap) and `offsets` (n + 1,) of its examples."""

    def __init__(self, folder: str, name: str):
        try:
            self.offsets = np.fromfile(f"{folder}/{name}.idx", dtype="<i8")
            self.tokens = np.memmap(f"{folder}/{name}.bin", dtype="<u2", mode="r")
            self.digest = hashlib.sha256(self.tokens).hexdigest()
        except (OSError, ValueError):
            fail(f"{folder}/{name}.bin or .idx is missing or empty: prepare the book again with python prepare.py")
        if len(self.offsets) < 2 or self.offsets[-1] != len(self.tokens):
            fail(f"{folder}/{name}.idx does not fit {name}.bin: prepare the book again with python prepare.py")

    def rows(self, pieces) -> list[torch.Tensor]:
        """(start, stop) pairs -> 1-d int64 tensors."""
        return [torch.from_numpy(self.tokens[a:b].astype(np.int64)) for a, b in pieces]

    def pieces(self, longest: int, rng: np.random.Generator | None = None) -> np.ndarray:
        """(n, 2) start and stop of every example, those over `longest` cut into pieces at a random phase (none without rng)."""
        pieces = []
        for start, stop in zip(self.offsets[:-1], self.offsets[1:]):
            phase = int(rng.integers(longest)) if rng is not None and stop - start > longest else 0
            cuts = [start, *range(start + (longest - phase), stop, longest), stop]
            pieces += zip(cuts[:-1], cuts[1:])
        return np.array(pieces, dtype=np.int64)

    def batches_per_epoch(self, longest: int, examples: int) -> int:
        """How many batches of at most `examples` pieces an epoch has, wherever the cuts fall."""
        lengths = np.diff(self.offsets)
        return math.ceil(int(np.where(lengths > longest, -(-lengths // longest) + 1, 1).sum()) / examples)

    def epoch(self, longest: int, examples: int, rng: np.random.Generator) -> list[np.ndarray]:
        """The epoch's batches, each an array (about `examples`, 2) of pieces of similar length, in random order."""
        pieces = rng.permutation(self.pieces(longest, rng))
        pieces = pieces[np.argsort(np.diff(pieces)[:, 0], kind="stable")]
        batches = np.array_split(pieces, min(len(pieces), self.batches_per_epoch(longest, examples)))
        return [batches[i % len(batches)] for i in rng.permutation(self.batches_per_epoch(longest, examples))]


def draw_seed(*parts: int) -> int:
    """One 63-bit seed from several numbers, alike on every machine."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> 1)


# ------------------------------------------------------------------------------------------------ optimisation

def make_optimizers(net: DiffusionModel) -> list[torch.optim.Optimizer]:
    """AdamW with weight decay on matrices, its own on the embedding, none on norms; or Muon for the hidden matrices beside it."""
    hidden = [p for n, p in net.named_parameters() if p.ndim == 2 and not n.startswith("embedding")]
    groups = [{"params": [net.embedding.weight], "weight_decay": embedding_weight_decay},
              {"params": [p for p in net.parameters() if p.ndim < 2], "weight_decay": 0.0}]
    made = []
    if optimizer == "muon":
        made.append(torch.optim.Muon(hidden, lr=muon_learning_rate, weight_decay=weight_decay, momentum=0.95))
    elif optimizer == "adamw":
        groups.append({"params": hidden, "weight_decay": weight_decay})
    else:
        fail(f"optimizer must be adamw or muon, not {optimizer!r}")
    made.append(torch.optim.AdamW(groups, lr=learning_rate, betas=(beta1, beta2), fused=net.device.type in ("cuda", "cpu")))
    for group in (g for o in made for g in o.param_groups):
        group["peak_lr"] = group["lr"]
    return made


def lr_scale(step: int, steps: int) -> float:
    """Share of the peak learning rate at `step` of `steps`: linear warm-up, then a cosine down to min_lr (Loshchilov & Hutter, 1608.03983)."""
    warmup = min(warmup_steps, steps // 10)
    if step < warmup:
        return (step + 1) / warmup
    return min_lr + (1 - min_lr) * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def micro_batches(rows: list[torch.Tensor], masks, size: int, pad_id: int, to: torch.device):
    """Cut a batch into micro-batches of `size` rows, each padded to its own longest row, with its part of the masks."""
    for i in range(0, len(rows), size):
        tokens = pad(rows[i:i + size], pad_id)
        part = type(masks)(masks.masked[i:i + size, :tokens.shape[1]], masks.weight[i:i + size])
        yield tokens.to(to), type(masks)(*(x.to(to) for x in part))


def pick_device_and_dtype(rank: int) -> tuple[torch.device, torch.dtype]:
    """Resolve 'auto'. 16 bits where they are fast: bfloat16 on a GPU that has it, else float16; a CPU needs AMX for it to be worth while."""
    name = device
    if name == "auto":
        name = f"cuda:{rank % max(1, torch.cuda.device_count())}" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        where = torch.device(name)
        torch.empty(1, device=where)
    except (RuntimeError, AssertionError):
        fail(f"device {name!r} is not to be had here; --device=cpu always is")
    kinds = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if dtype == "auto":
        if where.type == "cuda":
            return where, torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
        return where, torch.bfloat16 if where.type == "cpu" and torch.cpu._is_amx_tile_supported() else torch.float32
    if dtype not in kinds:
        fail(f"dtype must be auto or one of {', '.join(kinds)}, not {dtype!r}")
    return where, kinds[dtype]


def memory_gb(where: torch.device) -> float:
    """Peak memory so far in GB: the GPU's allocations, or this process's resident set."""
    if where.type == "cuda":
        return torch.cuda.max_memory_allocated(where) / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9


# ------------------------------------------------------------------------------------------------ the run's files

def write_json(path: str, value) -> None:
    with open(f"{path}.writing", "w", encoding="utf-8") as file:
        json.dump(value, file, indent=1, ensure_ascii=False)
    os.replace(f"{path}.writing", path)


def save(path: str, checkpoint: dict) -> None:
    """save_checkpoint, with a full disk told in one line."""
    try:
        save_checkpoint(path, checkpoint)
    except (OSError, RuntimeError) as error:
        with contextlib.suppress(OSError):
            os.remove(f"{path}.writing")
        fail(f"could not write {path} ({error}): free some space and continue with --resume; the checkpoint saved before is whole")


def start_folder(knobs: dict) -> None:
    """Make out_dir; an earlier run there moves to out_dir/previous1, or 2, … Keep the run's configuration and the source it ran."""
    if os.path.exists(f"{out_dir}/latest.pt") and not resume:
        number = next(n for n in range(1, sys.maxsize) if not os.path.exists(f"{out_dir}/previous{n}"))
        os.makedirs(f"{out_dir}/previous{number}")
        for name in sorted(os.listdir(out_dir)):
            if name.endswith((".pt", ".jsonl", ".json", ".html")) or name in ("tensorboard", "source"):
                shutil.move(f"{out_dir}/{name}", f"{out_dir}/previous{number}/{name}")
        print(f"the earlier run in {out_dir}/ is now in {out_dir}/previous{number}/", file=sys.stderr)
    os.makedirs(f"{out_dir}/source", exist_ok=True)
    for path in (__file__, model_file.__file__):
        shutil.copy(path, f"{out_dir}/source/")
    write_json(f"{out_dir}/config.json", knobs)


def truncate_log(path: str, step: int) -> None:
    """Drop the lines after `step`, which the resumed run will write again, and a half-written last one."""
    if not os.path.exists(path):
        return
    with open(path, encoding="utf-8") as file:
        lines = file.readlines()
    kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
    with open(f"{path}.writing", "w", encoding="utf-8") as file:
        file.writelines(kept)
    os.replace(f"{path}.writing", path)


class Display:
    """A moving bar where there is a terminal, plain lines where there is none; everything on stderr."""

    def __init__(self, total: int, done: int, quiet: bool):
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
        from rich.table import Column
        self.console = Console(stderr=True, quiet=quiet, highlight=False, soft_wrap=True)
        self.bar = Progress(BarColumn(16), MofNCompleteColumn(), TimeRemainingColumn(elapsed_when_finished=True),
                            TextColumn("{task.description}", table_column=Column(ratio=1, no_wrap=True)), expand=True, console=self.console, disable=not self.console.is_terminal)
        self.task = self.bar.add_task("", total=total, completed=done)
        self.bar.start()
        self.printed = time.time()

    def step(self, line: dict, names: list[str], bound: float, stage_left: float) -> None:
        known = "" if math.isnan(bound) else f"bound {bound:.3f} "
        text = (f"{names[line['stage'] - 1]} epoch {line['epoch']:.1f} loss {line['loss']:.3f} {known}rate {line['mask_rate']:.2f} "
                f"{line['tokens_per_second']:,.0f} tok/s {line['memory_gb']:.1f} GB, {stage_left / 60:.0f} min left in the stage")
        self.bar.update(self.task, completed=line["step"], description=text)
        if not self.console.is_terminal and time.time() - self.printed > 10:
            self.say(f"step {line['step']:,} of {self.bar.tasks[0].total:,}: {text}")

    def say(self, text: str) -> None:
        self.printed = time.time()
        self.console.print(text, markup=False)


# ------------------------------------------------------------------------------------------------ the plan

def plan_stages(streams: dict[str, Stream], examples: int) -> list[dict]:
    """Steps and tokens of each stage at an effective batch of `examples`."""
    plan = []
    for stage in stages:
        stream = streams[stage["data"]]
        per_epoch = stream.batches_per_epoch(block_size, examples)
        steps = max(1, round(stage["epochs"] * per_epoch))
        steps = min(steps, stage["max_steps"]) if stage["max_steps"] else steps
        lengths = np.minimum(np.diff(stream.offsets), block_size)
        plan.append({"per_epoch": per_epoch, "steps": steps, "tokens": int(len(stream.tokens) * steps / per_epoch),
                     "length": int((lengths * lengths).sum() / lengths.sum())})
    return plan


def literature_fit(unique_tokens: int) -> tuple[float, float]:
    """(parameters, epochs) that the fit of arXiv 2510.03280 chooses, as the power laws through its values at 100K and 500K tokens."""
    x = math.log(unique_tokens / 1e5) / math.log(5)
    return 7e6 * 2 ** x, 100 * 1.35 ** x


def print_plan(net: DiffusionModel, streams: dict[str, Stream], plan: list[dict], micro: int, seconds: list[float], half: int) -> None:
    """The dry run: what would be trained, on what, for how long, and what the literature says of it."""
    from rich.console import Console
    from rich.table import Table
    console, parts = Console(soft_wrap=True), count_parameters(net.config)
    memory = estimate_memory(net.config, micro, None, half, net.checkpointing, ema > 0)
    console.print("Parameters: " + ", ".join(f"{name} {count:,}" for name, count in parts.items()), highlight=False)
    console.print(f"Memory (estimate): {memory['training_gb']:.2f} GB to train in micro-batches of {micro}, {memory['inference_gb']:.2f} GB to sample; "
                  f"{'fits' if memory['fits_8gb_gpu'] else 'does not fit'} an 8 GB GPU", highlight=False)
    table = Table("stage", "data", "mask rate", "steps", "tokens", "FLOPs", "seconds (from measured steps)", title=f"{sum(p['steps'] for p in plan):,} steps")
    total = 0
    for stage, part, each in zip(stages, plan, seconds):
        rate = 1.0 if causal else (1 - stage["replay"]) * sum(stage["mask_rate"]) / 2 + stage["replay"] / 2
        flops = training_flops(net.config, part["tokens"], int(part["tokens"] * rate), part["length"])
        total += flops
        table.add_row(stage["name"], stage["data"], "{}-{}".format(*stage["mask_rate"]), f"{part['steps']:,}", f"{part['tokens']:,}", f"{flops:.2e}", f"{each * part['steps']:,.0f}")
    console.print(table)
    unique = len(streams["stage3"].tokens)
    epochs = sum(p["tokens"] for p in plan) / unique
    critical = 2.12e15 * (unique / 1e6) ** 2.174
    size, best_epochs = literature_fit(unique)
    console.print(
        f"All of it: {total:.2e} FLOPs, {sum(s * p['steps'] for s, p in zip(seconds, plan)):,.0f} s, {epochs:.0f} passes' worth of the book's {unique:,} training tokens.\n"
        f"Extrapolation (arXiv 2507.15857, fitted on 25M-100M tokens): diffusion overtakes autoregression above C_crit = {critical:.2e} FLOPs, this run is {total / critical:.1f} times that.\n"
        f"Extrapolation (same, Table 1): repeated data keeps its worth up to R* = {31.19 if causal else 493.89} epochs for this objective; this run has {epochs:.0f}.\n"
        f"Extrapolation (arXiv 2510.03280): for this many tokens about {size / 1e6:.0f}M parameters and {best_epochs:.0f} epochs; this run has {parts['total'] / 1e6:.1f}M and {epochs:.0f}.", highlight=False)


# ------------------------------------------------------------------------------------------------ the loop

def main():
    default = dict(globals())                                                        # configure sets anew, it does not write into these
    knobs = configure(globals())

    # one process, or one of several started by torchrun
    world, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    where, kind = pick_device_and_dtype(int(os.environ.get("LOCAL_RANK", 0)))
    if world > 1:
        dist.init_process_group("nccl" if where.type == "cuda" else "gloo")
    if where.type == "cuda":
        torch.cuda.set_device(where)
        torch.backends.cuda.matmul.fp32_precision = torch.backends.cudnn.conv.fp32_precision = "tf32"
    autocast = torch.autocast(where.type, kind) if kind != torch.float32 else contextlib.nullcontext()

    # resume: the run's own knobs stand unless set anew, and those that shape it may not differ
    saved = None
    if resume:
        try:
            saved = load_checkpoint(f"{out_dir}/latest.pt")
        except (OSError, ValueError) as error:
            fail(f"{error}; there is also {out_dir}/best.pt" if os.path.exists(f"{out_dir}/best.pt") else error)
        if "optimizers" not in saved:
            fail(f"{out_dir}/latest.pt cannot be resumed: it holds a model but not the state of its training")
        for name, value in saved["training"]["knobs"].items():
            if name in knobs and knobs[name] == default[name] and name not in ("resume", "dry_run", "out_dir"):
                globals()[name] = knobs[name] = value
            elif name in knobs and knobs[name] != value and name not in FREE:
                fail(f"cannot resume {out_dir}/latest.pt with {name}={knobs[name]!r}: that run has {name}={value!r}; start another with --out_dir=...")

    # the book
    try:
        book = dataset or open("data/latest", encoding="utf-8").read().strip()
    except OSError:
        fail("no book has been prepared here: run python prepare.py book.txt first")
    folder = f"data/{book}"
    if not os.path.exists(f"{folder}/tokenizer.json"):
        known = sorted(d for d in os.listdir("data") if os.path.exists(f"data/{d}/tokenizer.json")) if os.path.isdir("data") else []
        fail(f"dataset {book!r} was never prepared ({folder}/tokenizer.json is missing); prepared here: {', '.join(known) or 'none'}; run python prepare.py BOOK.txt")
    with open(f"{folder}/tokenizer.json", encoding="utf-8") as file:
        tokenizer = json.load(file)
    names = {"stage1": "stage1_train", "stage2": "stage2_train", "stage3": "stage3_train", "val": "val"}
    streams = {name: Stream(folder, stem) for name, stem in names.items()}
    digests = {names[name]: stream.digest for name, stream in streams.items()}
    for i, stage in enumerate(stages):
        low_rate, high_rate = stage["mask_rate"] if len(stage["mask_rate"]) == 2 else fail(f"--stages[{i}].mask_rate wants two numbers")
        if not (0 <= low_rate < high_rate <= 1 and 0 <= stage["replay"] <= 1 and stage["epochs"] > 0 and stage["data"] in names and stage["data"] != "val"):
            fail(f"--stages[{i}] ({stage['name']}): needs 0 <= mask_rate[0] < mask_rate[1] <= 1, 0 <= replay <= 1, epochs > 0 and data stage1, stage2 or stage3")
    if saved and saved["training"]["data"] != digests:
        changed = [name for name in digests if saved["training"]["data"].get(name) != digests[name]]
        fail(f"cannot resume {out_dir}/latest.pt: {folder} has changed since ({', '.join(changed)}); prepare that book as it was, or start anew")
    token_bytes = np.array([len(token.encode("latin-1")) for token in tokenizer["tokens"]])
    val_tokens = streams["val"].tokens[streams["val"].tokens < tokenizer["vocab_size"] - SPECIALS]
    val_bytes, val_rows = int(token_bytes[val_tokens].sum()), streams["val"].rows(streams["val"].pieces(block_size))

    # the network
    torch.manual_seed(seed)
    try:
        config = Config(tokenizer["vocab_size"], block_size, n_layer, n_head, n_embd, dropout, causal, rope_base)
    except ValueError as error:
        fail(error)
    set_up_cpu(config)
    net = DiffusionModel(config)
    if saved:
        net.load_state_dict(saved["model"] if "raw" not in saved else saved["raw"])
    net.to(where)
    average = {name: p.detach().clone() for name, p in net.state_dict().items()} if ema else None
    if saved and ema:
        average = {name: p.to(where) for name, p in saved["model"].items()}
    half = 4 if kind == torch.float32 else 2
    capacity = torch.cuda.get_device_properties(where).total_memory / 1e9 * 0.9 if where.type == "cuda" else math.inf
    if checkpointing == "auto":
        size = batch_size if isinstance(batch_size, int) else 1
        net.checkpointing = estimate_memory(config, size, None, half, False, ema > 0)["training_gb"] > capacity
    else:
        net.checkpointing = bool(checkpointing)
    run_net = torch.compile(net) if compile else net
    optimizers = make_optimizers(net)
    scaler = torch.amp.GradScaler(where.type, enabled=kind == torch.float16)

    def gradients(rows, stage, step, micro):
        """Forward and backward of one effective batch, of which this process has every world-th row. Returns loss, mask rate, tokens and the micro-batch that fitted."""
        tokens = pad(rows, config.pad_id)
        masks = draw_masks(tokens, config, stage["mask_rate"], stage["replay"], torch.Generator().manual_seed(draw_seed(seed, 1, step)))
        total = int((tokens < config.n_text).sum())
        rate = int(masks.masked.sum()) / total
        masks, rows = type(masks)(masks.masked[rank::world], masks.weight[rank::world]), rows[rank::world]
        while True:
            for o in optimizers:
                o.zero_grad(set_to_none=True)
            torch.manual_seed(draw_seed(seed, 2, step, rank))                        # dropout
            loss = torch.zeros((), device=where)
            try:
                for tokens, part in micro_batches(rows, masks, micro, config.pad_id, where):
                    with autocast:
                        nats = weighted_loss(run_net, tokens, part, config, label_smoothing) / total
                    scaler.scale(nats).backward()
                    loss += nats.detach()
                break
            except torch.OutOfMemoryError:
                if micro == 1:
                    fail(f"out of memory with one example of {tokens.shape[1]} tokens: try config/memory_efficient.py, a smaller block_size or a smaller model")
                micro //= 2
                say(f"out of memory: micro-batches of {micro} from here on, accumulated to the same effective batch")
                if where.type == "cuda":
                    torch.cuda.empty_cache()
        if world > 1:                                                                # one sum over all processes, gradients and loss in one buffer
            grads = [p.grad if p.grad is not None else torch.zeros_like(p) for p in net.parameters()]
            flat = torch.cat([g.flatten() for g in grads] + [loss[None]])
            dist.all_reduce(flat)
            for p, g in zip(net.parameters(), flat[:-1].split([g.numel() for g in grads])):
                p.grad = g.view_as(p)
            loss = flat[-1]
        return loss.item(), rate, total, micro

    def say(text):
        if rank == 0:
            display.say(text) if display else print(text, file=sys.stderr)
    display = None

    # batch size: as given, or the largest that fits
    micro = batch_size
    if batch_size == "auto":
        micro = 256 if where.type == "cuda" else 8
        while micro > 1 and estimate_memory(config, micro, None, half, net.checkpointing, ema > 0)["training_gb"] > capacity:
            micro //= 2
        longest = torch.zeros(block_size, dtype=torch.long)
        *_, micro = gradients([longest] * (micro * world), {"mask_rate": [0.9, 1.0], "replay": 0.0}, 0, micro)      # halves itself until it fits
        say(f"batch_size='auto': micro-batches of {micro}")
    elif not isinstance(batch_size, int) or batch_size < 1 or grad_accum < 1:
        fail(f"batch_size wants a positive int or 'auto', grad_accum a positive int; got {batch_size!r} and {grad_accum!r}")
    effective = saved["training"]["effective_batch"] if saved else micro * grad_accum
    plan = plan_stages(streams, effective)
    total_steps = sum(part["steps"] for part in plan)

    if dry_run:
        seconds = []
        for i, stage in enumerate(stages):
            batches = streams[stage["data"]].epoch(block_size, effective, np.random.default_rng(draw_seed(seed, 3, i, 0)))[:6]
            times = []
            for n, batch in enumerate(batches):
                began = time.perf_counter()
                gradients(streams[stage["data"]].rows(batch), stage, n, micro)
                times.append(time.perf_counter() - began)
            seconds.append(float(np.mean(times[1:] or times)))
        if rank == 0:
            print_plan(net, streams, plan, micro, seconds, half)
        return

    # what a run remembers besides its weights; all of it is in latest.pt
    progress = {"stage": 0, "stage_step": 0, "step": 0, "tokens": 0, "seconds": 0.0, "best": math.inf, "since_best": 0,
                "stage_best": math.inf, "since_stage_best": 0, "overflows": 0, "results": [], "bound": math.nan}
    if saved:
        progress = saved["progress"]
        for o, state in zip(optimizers, saved["optimizers"]):
            o.load_state_dict(state)
        scaler.load_state_dict(saved["scaler"])
    if rank == 0:
        start_folder(knobs)
        for name in ("log.jsonl", "samples.jsonl"):
            truncate_log(f"{out_dir}/{name}", progress["step"]) if saved else None
    log_file = open(f"{out_dir}/log.jsonl", "a", encoding="utf-8") if rank == 0 else None
    board = wandb = None
    if rank == 0 and tensorboard:
        try:
            from torch.utils.tensorboard import SummaryWriter
            board = SummaryWriter(f"{out_dir}/tensorboard", purge_step=progress["step"] + 1 if saved else None)
        except ImportError:
            say("tensorboard is not installed: log.jsonl alone is written")
    if rank == 0 and wandb_project:
        try:
            import wandb
        except ImportError:
            fail("--wandb_project needs Weights & Biases: pip install wandb")
        wandb.init(project=wandb_project, config=knobs, resume="allow")

    def log(line):
        log_file.write(json.dumps(line) + "\n")
        log_file.flush()
        numbers = {key: value for key, value in line.items() if isinstance(value, (int, float)) and key != "step"}
        for key, value in numbers.items():
            if board:
                board.add_scalar(key, value, line["step"])
        if wandb:
            wandb.log(numbers, step=line["step"])

    def weights():
        return average if ema else net.state_dict()

    def checkpoint():
        training = {"dataset": book, "data": digests, "knobs": knobs, "effective_batch": effective, "step": progress["step"],
                    "stage": progress["stage"] + 1, "stage_name": stages[min(progress["stage"], len(stages) - 1)]["name"],
                    "epoch": progress["stage_step"] / plan[min(progress["stage"], len(plan) - 1)]["per_epoch"], "val_bits_per_byte": progress["bound"]}
        return checkpoint_of(net, tokenizer, training=training) | {"model": weights()}

    def save_latest():
        if rank == 0:
            whole = {"optimizers": [o.state_dict() for o in optimizers], "scaler": scaler.state_dict(), "progress": progress}
            save(f"{out_dir}/latest.pt", checkpoint() | whole | ({"raw": net.state_dict()} if ema else {}))

    def evaluate(stage_name):
        """The full-range bound of the validation text in bits per byte, into the log; the best checkpoints; a sample; latest.pt."""
        if rank == 0:
            judged = net
            if ema:
                judged = copy.deepcopy(net)
                judged.load_state_dict(average)
            with autocast:
                bound = held_out_bound(judged, val_rows, eval_points, seed=0)
            nats = float(bound.per_sequence.sum())
            progress["bound"] = nats / math.log(2) / val_bytes
            log({"step": progress["step"], "epoch": round(progress["stage_step"] / plan[progress["stage"]]["per_epoch"], 3), "stage": progress["stage"] + 1,
                 "val_bits_per_byte": progress["bound"], "val_perplexity": math.exp(min(700, nats / len(val_tokens)))})
            if sample_tokens:
                start = torch.full((1, min(sample_tokens, block_size)), config.mask_id)
                with autocast:
                    *_, last = denoise(judged, start, [seed], steps=32)
                text = b"".join(tokenizer["tokens"][t].encode("latin-1") for t in last.tokens[0].tolist()).decode("utf-8", "replace")
                with open(f"{out_dir}/samples.jsonl", "a", encoding="utf-8") as file:
                    file.write(json.dumps({"step": progress["step"], "stage": stage_name, "seed": seed, "val_bits_per_byte": progress["bound"], "text": text}, ensure_ascii=False) + "\n")
            say(f"step {progress['step']:,} {stage_name}: validation bound {progress['bound']:.4f} bits per byte" + (" (best)" if progress["bound"] < progress["best"] else ""))
        if world > 1:
            shared = torch.tensor(progress["bound"], dtype=torch.float64, device=where)
            dist.broadcast(shared, 0)
            progress["bound"] = shared.item()
        for scope, file_name in (("stage_", f"best_stage{progress['stage'] + 1}.pt"), ("", "best.pt")):
            better = progress["bound"] < progress[scope + "best"]
            progress[f"since_{scope}best"] = 0 if better else progress[f"since_{scope}best"] + 1
            if better:
                progress[scope + "best"] = progress["bound"]
                if rank == 0:
                    save(f"{out_dir}/{file_name}", checkpoint())
        net.train()

    # Ctrl-C and SIGTERM end the run after the step at hand; a second one ends it at once
    stop = []

    def on_signal(number, frame):
        if stop:
            os._exit(128 + number)
        stop.append(number)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, on_signal)

    say(f"{'resuming at step ' + format(progress['step'], ',') if saved else 'training'}: {count_parameters(config)['total']:,} parameters, {book}, "
        f"{total_steps:,} steps of {effective} examples in micro-batches of {micro}, {where}, {str(kind)[6:]}{', ' + str(world) + ' processes' if world > 1 else ''}")
    display = Display(total_steps, progress["step"], quiet=rank > 0)
    net.train()
    bad_steps, began, ended = 0, time.time(), ""

    while progress["stage"] < len(stages):
        stage, part = stages[progress["stage"]], plan[progress["stage"]]
        stream, batches = streams[stage["data"]], []
        if progress["stage_step"] == 0:                                              # a stage begins: look before leaping
            check = draw_masks(pad(stream.rows(stream.pieces(block_size)[:64]), config.pad_id), config, stage["mask_rate"], 0.0, torch.Generator().manual_seed(seed))
            text = (pad(stream.rows(stream.pieces(block_size)[:64]), config.pad_id) < config.n_text).sum(1)
            seen = check.masked.sum(1) / text
            progress |= {"stage_best": math.inf, "since_stage_best": 0, "tokens": 0, "seconds": 0.0, "before": progress["bound"]}
            if not carry_over and progress["stage"] > 0:
                optimizers = make_optimizers(net)
            if rank == 0:
                log({"step": progress["step"], "epoch": 0.0, "stage": progress["stage"] + 1, "event": "stage", "name": stage["name"], "examples": len(stream.offsets) - 1,
                     "steps": part["steps"], "mask_rate_low": float(seen.min()), "mask_rate_high": float(seen.max()), "val_before": None if math.isnan(progress["bound"]) else progress["bound"]})
            say(f"stage {progress['stage'] + 1} ({stage['name']}): {len(stream.offsets) - 1:,} examples of {stage['data']}, {part['steps']:,} steps")

        first, ended = progress["stage_step"], ""
        for stage_step in range(first, part["steps"]):
            epoch, index = divmod(stage_step, part["per_epoch"])
            if not batches or index == 0:
                batches = stream.epoch(block_size, effective, np.random.default_rng(draw_seed(seed, 3, progress["stage"], epoch)))
            done, length = (progress["step"], total_steps) if carry_over else (stage_step, part["steps"])
            scale = stage["lr_factor"] * lr_scale(done, length)
            for group in (g for o in optimizers for g in o.param_groups):
                group["lr"] = group["peak_lr"] * scale

            tic = time.perf_counter()
            loss, rate, n_tokens, micro = gradients(stream.rows(batches[index]), stage, progress["step"], micro)
            for o in optimizers:
                scaler.unscale_(o)
            norm = float(torch.nn.utils.clip_grad_norm_(net.parameters(), grad_clip or math.inf))
            finite, overflow = math.isfinite(loss) and math.isfinite(norm), False
            if finite:
                for o in optimizers:
                    scaler.step(o)
                if ema:
                    torch._foreach_lerp_(list(average.values()), list(net.state_dict().values()), 1 - ema)
            else:                                                                    # in float16 a gradient too large for the loss scale is no fault
                overflow = scaler.is_enabled() and math.isfinite(loss) and scaler.get_scale() > 1
                progress["overflows"] += overflow
            scaler.update()
            bad_steps = 0 if finite or overflow else bad_steps + 1
            if bad_steps:
                say(f"step {progress['step'] + 1}: loss {loss}, gradient norm {norm}: step skipped")
            if bad_steps == MAX_BAD_STEPS:
                fail(f"stopped: {MAX_BAD_STEPS} steps in a row without a finite loss (last: loss {loss}, gradient norm {norm}, learning rate {learning_rate * scale:.2g}); "
                     f"the checkpoints in {out_dir} are from before; try a lower learning_rate")
            if where.type == "cuda":
                torch.cuda.synchronize()
            seconds = time.perf_counter() - tic
            progress["step"] += 1
            progress["stage_step"] = stage_step + 1
            progress["tokens"] += n_tokens
            progress["seconds"] += seconds

            last = stage_step + 1 == part["steps"]
            if rank == 0 and (progress["step"] % log_interval == 0 or last):
                line = {"step": progress["step"], "epoch": round(progress["stage_step"] / part["per_epoch"], 3), "stage": progress["stage"] + 1, "loss": loss,
                        "lr": learning_rate * scale, "mask_rate": rate, "tokens_per_second": n_tokens / seconds, "grad_norm": norm, "memory_gb": memory_gb(where)}
                log(line | ({"overflows": progress["overflows"]} if scaler.is_enabled() else {}))
                display.step(line, [s["name"] for s in stages], progress["bound"], progress["seconds"] / progress["stage_step"] * (part["steps"] - progress["stage_step"]))
            stopping = bool(stop)
            if world > 1:
                flag = torch.tensor(float(stopping), device=where)
                dist.all_reduce(flag)
                stopping = flag.item() > 0
            if last or progress["step"] % eval_interval == 0:
                evaluate(stage["name"])
                if patience and progress["since_best"] >= patience:
                    ended = f"stopped early: {patience} evaluations without improvement over the best"
                elif stage_patience and progress["since_stage_best"] >= stage_patience:
                    ended = f"{stage_patience} evaluations without improvement"
                if not (last or ended):
                    save_latest()
            if last or ended or stopping:
                break

        if stopping and not (last or ended):
            save_latest()
            display.bar.stop()
            say(f"stopped at step {progress['step']:,}; continue with --resume")
            sys.exit(128 + stop[0] if stop else 0)
        progress["results"].append({"stage": progress["stage"] + 1, "name": stage["name"], "epochs": progress["stage_step"] / part["per_epoch"], "steps": progress["stage_step"],
                                    "tokens": progress["tokens"], "seconds": round(progress["seconds"], 3), "bound_before": None if math.isnan(progress["before"]) else progress["before"],
                                    "best_bound": progress["stage_best"], "last_bound": progress["bound"], "ended": ended or "epochs done"})
        progress["stage"], progress["stage_step"] = progress["stage"] + 1, 0
        if ended.startswith("stopped early"):
            progress["stage"] = len(stages)
        if rank == 0:
            write_json(f"{out_dir}/curriculum_results.json", progress["results"])
        save_latest()

    display.bar.stop()
    say(f"done in {time.time() - began:,.0f} s: best validation bound {progress['best']:.4f} bits per byte, in {out_dir}/best.pt; python sample.py writes with it")
    if board:
        board.close()
    if world > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
