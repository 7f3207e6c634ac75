"""How much of this machine's arithmetic training uses: tokens/s, model FLOP utilisation, and where the time goes.

    python tests/benchmark.py                                        config/demo.py and config/tiny_125m.py
    python tests/benchmark.py config/tiny_125m.py --batch_size=2     one preset; knobs are train.py's

Utilisation is the model's FLOP/s in a training step, as model.training_flops counts them, over those of a square matrix product
of the same dtype, measured before and after in the same run. Tokens are random and every other one is masked.
"""
import contextlib
import importlib
import statistics
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import model as m  # noqa: E402
import train  # noqa: E402
from configurator import configure  # noqa: E402

VOCABULARY = {"demo.py": 1_700}         # of book.txt; other presets get about that of Frankenstein
SECONDS = 20                            # of measured steps, at the least two


def seconds_of(work, where, least, times):
    """Median seconds of work(), synchronised, over `least` seconds and at least `times` calls, after one to warm up."""
    work()
    taken = []
    while sum(taken) < least or len(taken) < times:
        began = time.perf_counter()
        work()
        if where.type == "cuda":
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def product_flops(where, kind):
    """FLOP/s of the fastest of several square matrix products."""
    best = 0.0
    for n in (1024, 2048) if where.type == "cpu" else (4096, 8192):
        a, b = (torch.randn(n, n, device=where).to(kind) for _ in range(2))
        best = max(best, 2 * n ** 3 / seconds_of(lambda a=a, b=b: a @ b, where, 0.5, 5))
    return best


def measure(preset, arguments):
    """One preset: prints its figures and returns the utilisation."""
    importlib.reload(train)                                 # its knobs as they stand in the file
    sys.argv = ["benchmark.py", preset, *arguments]
    configure(vars(train))
    where = m.pick_device(train.device)
    kind = train.pick_dtype(where)
    autocast = torch.autocast(where.type, kind) if kind != torch.float32 else contextlib.nullcontext()
    size = VOCABULARY.get(Path(preset).name, 7_600)
    config = m.Config(size, train.block_size, train.n_layer, train.n_head, train.n_embd, train.dropout, train.causal, train.rope_base, train.conv)
    m.set_up_cpu(config)
    torch.manual_seed(0)
    net = m.DiffusionModel(config).to(where).train()
    net.checkpointing = train.checkpointing is True
    for block in net.blocks if train.compile else ():
        block.compile(dynamic=True)
    optimizer, scaler = train.make_optimizer(net), torch.amp.GradScaler(where.type, enabled=kind == torch.float16)
    B, T = train.batch_size, train.block_size
    tokens = torch.randint(config.n_text, (B, T), device=where)
    half = m.Masks((torch.arange(T, device=where) % 2 == 0).expand(B, T), torch.full((B,), 2.0, device=where))

    def micro_batch():
        with autocast:
            loss = m.weighted_loss(net, tokens, half, config, train.label_smoothing) / tokens.numel()
        scaler.scale(loss).backward()

    def update():
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(net.parameters(), train.grad_clip)
        scaler.step(optimizer)
        scaler.update()

    def step():
        optimizer.zero_grad(set_to_none=True)
        for _ in range(train.grad_accum):
            micro_batch()
        update()

    peak = product_flops(where, kind)
    whole = seconds_of(step, where, SECONDS, 2)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU, *([torch.profiler.ProfilerActivity.CUDA] if where.type == "cuda" else [])]) as profile:
        step()
    peak = max(peak, product_flops(where, kind))
    n = train.grad_accum * tokens.numel()
    flops = m.training_flops(config, n, n if config.causal else n // 2, T)
    name = torch.cuda.get_device_name(where) if where.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"\n{preset}: {m.count_parameters(config)['total'] / 1e6:.1f}M parameters, {train.grad_accum} x {B} rows of {T} tokens, {str(kind)[6:]}, {name}")
    print(f"  {n / whole:,.0f} tokens/s, {whole:.3f} s a step, {flops / whole / 1e9:,.0f} GFLOP/s; a matrix product does {peak / 1e9:,.0f}: utilisation {flops / whole / peak:.0%}")
    attribute = "self_device_time_total" if where.type == "cuda" else "self_cpu_time_total"
    events = sorted(profile.key_averages(), key=lambda event: -getattr(event, attribute))
    total = sum(getattr(event, attribute) for event in events)
    print("  where the time goes: " + ", ".join(f"{event.key.removeprefix('aten::')} {getattr(event, attribute) / total:.0%}" for event in events[:10]))
    return flops / whole / peak


if __name__ == "__main__":
    presets = [a for a in sys.argv[1:] if a.endswith(".py")] or [str(ROOT / "config" / name) for name in ("demo.py", "tiny_125m.py")]
    given = [a for a in sys.argv[1:] if not a.endswith(".py")]
    for preset in presets:
        measure(preset, given)
