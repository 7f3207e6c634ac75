"""How fast is it, and how much of this machine's arithmetic does it use?

    python tests/benchmark.py                               config/demo.py and config/tiny_125m.py
    python tests/benchmark.py config/tiny_125m.py --batch_size=2    one preset; knobs are train.py's
    python tests/benchmark.py --nanogpt=../nanoGPT          beside nanoGPT's step at the same shape, in pairs
    python tests/benchmark.py --growth                      a step by width, depth and length of rows
    python tests/benchmark.py --book=novel.txt              prepare.py on parts of a book

Utilisation is the model's FLOP/s in a training step, as model.training_flops counts them, over those of a
square matrix product of the same dtype, measured before and after in the same run. Tokens are random and every
other one is masked.
"""
import contextlib
import importlib.util
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import model as m  # noqa: E402
import train  # noqa: E402
from configurator import configure  # noqa: E402

nanogpt = ""                            # a clone of nanoGPT
growth = False                          # only this
book = ""                               # only prepare.py, on this; all other knobs are train.py's

VOCABULARY = {"demo.py": 2_509}         # of book.txt; other presets get about that of Frankenstein
PRESETS = ("demo.py", "tiny_125m.py")
SECONDS = 10                            # of each thing that is measured, at the least


def timed(work, where):
    began = time.perf_counter()
    work()
    if where.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def medians(where, *works, seconds=SECONDS):
    """Median seconds of each, called in turn, so that what else the machine does falls on all alike."""
    for work in works:
        timed(work, where)
        timed(work, where)
    taken = [[] for _ in works]
    while sum(map(sum, taken)) < seconds * len(works) or len(taken[0]) < 3:
        for times, work in zip(taken, works):
            times.append(timed(work, where))
    return [statistics.median(times) for times in taken]


def product_flops(where, kind):
    """FLOP/s of the faster of two square matrix products."""
    best = 0.0
    for n in (1024, 2048) if where.type == "cpu" else (4096, 8192):
        a, b = (torch.randn(n, n, device=where).to(kind) for _ in range(2))
        best = max(best, 2 * n ** 3 / medians(where, lambda a=a, b=b: a @ b, seconds=0.5)[0])
    return best


class Bench:
    """A preset's network and its training step on random tokens."""

    def __init__(self, preset, *arguments):
        importlib.reload(train)                                 # its knobs as they stand in the file
        sys.argv = ["benchmark.py", preset, *arguments]
        configure(vars(train))
        self.where = m.pick_device(train.device)
        self.kind = train.pick_dtype(self.where)
        if self.where.type == "cuda":
            torch.backends.cuda.matmul.fp32_precision = "tf32"      # as train.py does
        size = VOCABULARY.get(Path(preset).name, 7_319)
        self.config = m.Config(size, train.block_size, train.n_layer, train.n_head, train.n_embd, train.dropout,
                               train.causal, train.rope_base, train.conv)
        m.set_up_cpu(self.config)
        torch.manual_seed(0)
        self.net = m.DiffusionModel(self.config).to(self.where).train()
        self.net.checkpointing = train.checkpointing is True
        if train.compile:
            train.compile_blocks()
        self.optimizer = train.make_optimizer(self.net)
        self.scaler = torch.amp.GradScaler(self.where.type, enabled=self.kind == torch.float16)
        shape = (train.batch_size, train.block_size)
        self.tokens = torch.randint(self.config.n_text, shape, device=self.where)
        every_other = torch.arange(shape[1], device=self.where) % 2 == 0
        self.masks = m.Masks(every_other.expand(shape), torch.full(shape[:1], 2.0, device=self.where))
        self.rows = train.grad_accum * self.tokens.numel()

    def autocast(self):
        return torch.autocast(self.where.type, self.kind, enabled=self.kind != torch.float32)

    def loss(self):
        nats = m.weighted_loss(self.net, self.tokens, self.masks, self.config, train.label_smoothing)
        return nats / self.tokens.numel()

    def step(self, net=None, optimizer=None, loss=None):
        """One step of training, of our network or of another with its own loss."""
        net, optimizer, loss = net or self.net, optimizer or self.optimizer, loss or self.loss
        optimizer.zero_grad(set_to_none=True)
        for _ in range(train.grad_accum):
            with self.autocast():
                value = loss()
            self.scaler.scale(value).backward()
        self.scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(net.parameters(), train.grad_clip)
        self.scaler.step(optimizer)
        self.scaler.update()

    def call(self, length):
        """One call of the sampler's network on a window of `length` tokens."""
        with torch.no_grad(), self.autocast():
            self.net(self.tokens[:1, :length])


def training(bench, preset):
    """Tokens a second, utilisation, and where the time goes."""
    where, config = bench.where, bench.config
    peak = product_flops(where, bench.kind)
    whole, = medians(where, bench.step)
    kinds = torch.profiler.ProfilerActivity
    activities = [kinds.CPU, *([kinds.CUDA] if where.type == "cuda" else [])]
    with torch.profiler.profile(activities=activities) as profile:
        bench.step()
    peak = max(peak, product_flops(where, bench.kind))
    n = bench.rows
    flops = m.training_flops(config, n, n if config.causal else n // 2, train.block_size)
    name = torch.cuda.get_device_name(where) if where.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"\n{preset}: {m.count_parameters(config)['total'] / 1e6:.1f}M parameters, {train.grad_accum} x "
          f"{train.batch_size} rows of {train.block_size} tokens, {str(bench.kind)[6:]}, {name}")
    print(f"  training: {n / whole:,.0f} tokens/s, {whole:.3f} s a step, {flops / whole / 1e9:,.0f} GFLOP/s; "
          f"a matrix product does {peak / 1e9:,.0f}: utilisation {flops / whole / peak:.0%}")
    key = "self_device_time_total" if where.type == "cuda" else "self_cpu_time_total"
    events = sorted(profile.key_averages(), key=lambda event: -getattr(event, key))
    total = sum(getattr(event, key) for event in events)
    shares = [f"{event.key.removeprefix('aten::')[:40]} {getattr(event, key) / total:.0%}" for event in events[:8]]
    print(f"  where the time goes: {', '.join(shares)}")


def beside_nanogpt(bench):
    """Tokens a second over those of nanoGPT's step: its own model and optimizer, of the same depth, width,
    vocabulary and rows."""
    spec = importlib.util.spec_from_file_location("theirs", Path(nanogpt, "model.py"))
    theirs = importlib.util.module_from_spec(spec)
    c = bench.config
    sys.modules["theirs"] = theirs          # a dataclass looks itself up
    spec.loader.exec_module(theirs)
    with contextlib.redirect_stdout(sys.stderr):
        shape = theirs.GPTConfig(block_size=c.block_size, vocab_size=c.vocab_size, n_layer=c.n_layer,
                                 n_head=c.n_head, n_embd=c.n_embd, dropout=c.dropout, bias=False)
        net = theirs.GPT(shape).to(bench.where).train()
        optimizer = net.configure_optimizers(0.1, 1e-3, (0.9, 0.95), bench.where.type)
    targets = bench.tokens.roll(-1, 1)
    ours, other = medians(bench.where, bench.step,
                          lambda: bench.step(net, optimizer, lambda: net(bench.tokens, targets)[1]))
    print(f"  in turn with nanoGPT's step at this shape: {bench.rows / ours:,.0f} tokens/s, its {bench.rows / other:,.0f}: "
          f"{other / ours:.2f} times as many")


def sampling(bench):
    """Tokens a second of one text with a call for each, over the whole row and in blocks of 32 behind half a
    row of text; and what reading the block alone would give, as a perfect cache of all else might."""
    bench.net.eval()
    lengths = (train.block_size, train.block_size // 2 + 32, 32)
    whole, block, alone = medians(bench.where, *(lambda n=n: bench.call(n) for n in lengths), seconds=4)
    bench.net.train()
    print(f"  sampling, a call a token: {1 / whole:,.0f} tokens/s over {lengths[0]} tokens; {1 / block:,.0f} in "
          f"blocks of 32 that see {lengths[1]}; a cache of unchanged blocks would give at most "
          f"{block / alone:.1f} times that")


def by_size():
    """Seconds of a step when one thing doubles, the rest as in config/demo.py."""
    preset = str(ROOT / "config/demo.py")
    print("\na step of config/demo.py, in milliseconds, with")
    for knob, values in (("n_embd", (96, 192, 384)), ("n_layer", (2, 4, 8)), ("block_size", (128, 256, 512))):
        benches = [Bench(preset, f"--{knob}={value}", f"--n_head={3 * value // 192 if knob == 'n_embd' else 3}")
                   for value in values]
        taken = medians(benches[0].where, *(bench.step for bench in benches), seconds=4)
        print(f"  {knob}: " + ", ".join(f"{value} {1e3 * each:.1f}" for value, each in zip(values, taken)))


def preparation():
    """prepare.py on a quarter of a book, a half, and all of it."""
    text = Path(book).read_text(encoding="utf-8")
    print(f"\npython prepare.py {Path(book).name}")
    for part in (4, 2, 1):
        with tempfile.TemporaryDirectory() as folder:
            some = text[:len(text) // part]
            Path(folder, "book.txt").write_text(some, encoding="utf-8")
            began = time.perf_counter()
            subprocess.run([sys.executable, str(ROOT / "prepare.py"), "book.txt"], cwd=folder, check=True,
                           capture_output=True)
            taken, size = time.perf_counter() - began, len(some.encode()) / 1e6
            print(f"  {size:.2f} MB in {taken:.1f} s: {size / taken:.3f} MB/s")


def main():
    own = [a for a in sys.argv[1:] if a.split("=")[0] in ("--nanogpt", "--growth", "--book")]
    given = [a for a in sys.argv[1:] if a.startswith("--") and a not in own]
    presets = [a for a in sys.argv[1:] if not a.startswith("--")]
    sys.argv[1:] = own
    configure(globals())
    if book:
        return preparation()
    if growth:
        return by_size()
    for preset in presets or [str(ROOT / "config" / name) for name in PRESETS]:
        bench = Bench(preset, *given)
        training(bench, preset)
        if nanogpt:
            beside_nanogpt(bench)
        sampling(bench)


if __name__ == "__main__":
    main()
