"""Everything that only a GPU can show, on a machine that has one; prints a line per check and ends with
status 1 if one failed.

    python prepare.py book.txt                # or carry data/ here: this needs torch, numpy and rich alone
    python tests/check_cuda.py                # --nanogpt=DIR: for tests/benchmark.py, which it runs

Kernels run one by one (CUDA_LAUNCH_BLOCKING), so that an error's traceback ends at the line that caused it.
"""
import contextlib
import functools
import importlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from dataclasses import fields
from pathlib import Path

os.environ["CUDA_LAUNCH_BLOCKING"] = "1"
import torch  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import model as m  # noqa: E402
import train  # noqa: E402
from configurator import fail  # noqa: E402

ARGUMENTS = sys.argv[1:]                # for tests/benchmark.py
GPU = torch.device("cuda")
PRESET, DEBUG = str(ROOT / "config/tiny_125m.py"), str(ROOT / "config/debug.py")
TOLERANCE = 0.10                        # of the memory estimate
failed = []


@contextlib.contextmanager
def check(name):
    """One line: what was checked and how it went; an error is printed with its lines and the rest goes on."""
    began, notes = time.perf_counter(), []
    try:
        yield notes
        taken = time.perf_counter() - began
        print(f"ok      {name}: {', '.join(notes) or 'as on the CPU'} ({taken:.1f} s)", flush=True)
    except (Exception, SystemExit):
        failed.append(name)
        print(f"FAILED  {name}\n{traceback.format_exc()}", flush=True)


def log_of(out, key):
    with open(f"{out}/log.jsonl", encoding="utf-8") as file:
        return [line for line in map(json.loads, file) if key in line]


def flags(out, *arguments):
    return ["train.py", *arguments, f"--out_dir={out}", "--tensorboard=False", "--device=cuda", "--log_interval=1"]


def train_run(out, *arguments):
    """train.py in this process, in a folder of its own; the lines of its steps."""
    importlib.reload(train)
    sys.argv = flags(out, *arguments)
    try:
        train.main()
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):      # a run takes them for itself
            signal.signal(number, signal.SIG_DFL)
    return log_of(out, "loss")


def process(out, *arguments):
    """train.py in a process of its own, whose kernels overlap."""
    return subprocess.Popen([sys.executable, str(ROOT / "train.py"), *flags(out, *arguments)[1:]],
                            env=os.environ | {"CUDA_LAUNCH_BLOCKING": "0"}, stderr=subprocess.PIPE, text=True)


def close(a, b, tolerance):
    torch.testing.assert_close(a.float().cpu(), b.float(), rtol=tolerance, atol=tolerance)


def operations():
    """The network forward and backward, its twin, gradient checkpointing, the bound and the sampler in every
    order, against the CPU's."""
    for causal in (False, True):
        called = "causal" if causal else "diffusion"
        config = m.Config(300, 64, 2, 4, 128, causal=causal, conv=5)
        torch.manual_seed(0)
        net = m.DiffusionModel(config)
        tokens = torch.randint(config.n_text, (4, 64))
        tokens[1, 40:] = config.pad_id
        masks = m.draw_masks(tokens, config, generator=torch.Generator().manual_seed(0))
        there = m.DiffusionModel(config).to(GPU)
        there.load_state_dict(net.state_dict())
        on_gpu = m.Masks(*(x.to(GPU) for x in masks))
        loss = m.weighted_loss(net, tokens, masks, config)
        loss.backward()
        for checkpointing in (False, True):
            with check(f"{called} loss and gradients{', checkpointed' if checkpointing else ''}"):
                there.checkpointing = checkpointing
                there.zero_grad()
                found = m.weighted_loss(there, tokens.to(GPU), on_gpu, config)
                found.backward()
                close(found, loss, 1e-3)
                for a, b in zip(there.parameters(), net.parameters()):
                    close(a.grad, b.grad, 1e-2)
        for kind in (torch.bfloat16, torch.float16):
            with check(f"{called} loss in {str(kind)[6:]}"), torch.autocast("cuda", kind):
                close(m.weighted_loss(there, tokens.to(GPU), on_gpu, config), loss, 2e-2)
        rows = list(tokens[2:])
        with check(f"{called} held-out bound"):
            bounds = [m.held_out_bound(x.eval(), rows, 8, seed=0).per_sequence for x in (there, net)]
            close(*bounds, 1e-3)
        canvas = torch.full((2, 48), config.mask_id)
        for order in next(f.metadata["choices"] for f in fields(m.Sampling) if f.name == "order"):
            with check(f"{called} sampling by {order}, greedy"):
                how = m.Sampling(steps=12, order=order, temperature=0.0)
                a, b = ([step.tokens for step in m.denoise(x, canvas, [1, 2], how)][-1] for x in (there, net))
                assert (a < config.n_text).all()
                assert (a == b).float().mean() > 0.8, "more than one token in five differs from the CPU's"


def one_stage(stage, steps):
    return f"--stages={[stage | {'epochs': 1000.0, 'max_steps': steps}]}"


def last_stage(steps):
    """The curriculum's last, with its knobs as they stand in the file."""
    importlib.reload(train)
    return one_stage(train.stages[2], steps)


@contextlib.contextmanager
def no_more_than(gigabytes):
    """Only so much of the GPU's memory."""
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(GPU).total_memory
    torch.cuda.set_per_process_memory_fraction(gigabytes * 1e9 / total)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def stages(folder):
    """Each stage alone at the preset's full size, windows of 512 tokens above all; fp16 that overflows and
    recovers; out of memory; 8 GB."""
    importlib.reload(train)
    curriculum = train.stages
    for i, stage in enumerate(curriculum, 1):
        with check(f"stage {i} alone, 125M parameters") as notes:
            lines = train_run(f"{folder}/stage{i}", PRESET, one_stage(stage, 20), "--sample_tokens=32")
            losses = [line["loss"] for line in lines]
            assert len(losses) == 20 and losses[-1] < losses[0]
            notes.append(f"loss {losses[0]:.2f} to {losses[-1]:.2f}, {lines[-1]['memory_gb']:.2f} GB")
    with check("float16 overflows and recovers") as notes:
        whole = torch.amp.GradScaler
        torch.amp.GradScaler = functools.partial(whole, init_scale=2.0 ** 40)
        try:
            lines = train_run(f"{folder}/fp16", DEBUG, "--dtype=float16", one_stage(curriculum[0], 60))
        finally:
            torch.amp.GradScaler = whole
        assert lines[-1]["overflows"] > 5 and lines[-1]["loss"] < lines[0]["loss"]
        notes.append(f"{lines[-1]['overflows']} overflows, then loss {lines[-1]['loss']:.2f}")
    with check("out of memory halves the micro-batch") as notes, no_more_than(4):
        train_run(f"{folder}/oom", PRESET, "--batch_size=64", "--grad_accum=1", "--checkpointing=False",
                  one_stage(curriculum[2], 3), "--sample_tokens=0")
        notes.append("64 examples in 4 GB")
    with check("8 GB are enough for 125M parameters") as notes, no_more_than(7.5):
        for extra in ((), (str(ROOT / "config/memory_efficient.py"),)):
            torch.cuda.reset_peak_memory_stats()
            lines = train_run(f"{folder}/small{len(extra)}", PRESET, *extra, one_stage(curriculum[2], 3),
                              "--sample_tokens=0")
            assert len(lines) == 3 and max(line["memory_gb"] for line in lines) < 7.5
            notes.append(f"{lines[-1]['memory_gb']:.2f} GB")


def killed(folder):
    """A run that is killed goes on as if nothing had been."""
    with check("killed and resumed") as notes:
        common = DEBUG, last_stage(400), "--eval_interval=50", "--sample_tokens=0"
        process(f"{folder}/whole", *common).communicate()
        victim = process(f"{folder}/killed", *common)
        while not os.path.exists(f"{folder}/killed/latest.pt"):
            assert victim.poll() is None, victim.stderr.read()
            time.sleep(0.01)
        victim.kill()
        victim.wait()
        at = len(log_of(f"{folder}/killed", "loss"))
        process(f"{folder}/killed", *common, "--resume").communicate()
        a, b = (log_of(f"{folder}/{name}", "val_bits_per_byte")[-1] for name in ("whole", "killed"))
        assert a["step"] == b["step"] == 400
        assert abs(a["val_bits_per_byte"] - b["val_bits_per_byte"]) < 0.02
        notes.append(f"at step {at}; ends at {b['val_bits_per_byte']:.4f}, whole {a['val_bits_per_byte']:.4f}")


def compiled(folder):
    """The same losses with torch.compile, and how fast."""
    with check("torch.compile, 125M parameters") as notes:
        common = PRESET, last_stage(40), "--sample_tokens=0", "--dropout=0.0"
        for name, extra in (("eager", ()), ("compiled", ("--compile=True",))):
            _, error = process(f"{folder}/{name}", *common, *extra).communicate()
            assert os.path.exists(f"{folder}/{name}/best.pt"), error
        a, b = (log_of(f"{folder}/{name}", "loss") for name in ("eager", "compiled"))
        speeds = [statistics.median(line["tokens_per_second"] for line in lines[10:]) for lines in (a, b)]
        assert abs(a[-1]["loss"] - b[-1]["loss"]) < 0.05, (a[-1]["loss"], b[-1]["loss"])
        notes.append("{:,.0f} tokens/s, compiled {:,.0f}".format(*speeds))


def memory():
    """Peak memory of training steps against model.estimate_memory, and no growth over 200 of them."""
    importlib.reload(train)
    half, brain, full = torch.float16, torch.bfloat16, torch.float32
    for width, layers, batch, kind, checkpointing in ((768, 12, 8, half, False), (768, 12, 8, brain, False),
                                                      (768, 12, 8, brain, True), (768, 12, 4, full, False),
                                                      (384, 6, 16, brain, False)):
        name = f"{layers} layers of width {width}, {batch} x 512, {str(kind)[6:]}"
        with check(f"memory of {name}{', checkpointed' if checkpointing else ''}") as notes:
            config = m.Config(7_600, 512, layers, width // 64, width)
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            held = torch.cuda.memory_allocated()
            net = m.DiffusionModel(config).to(GPU).train()
            net.checkpointing = checkpointing
            optimizer = train.make_optimizer(net)
            tokens = torch.randint(config.n_text, (batch, 512), device=GPU)
            every_other = torch.arange(512, device=GPU) % 2 == 0
            masks = m.Masks(every_other.expand(batch, 512), torch.full((batch,), 2.0, device=GPU))
            after = []
            for _ in range(200 if width == 384 else 4):
                for _ in range(2):      # micro-batches: in the second there are gradients from the start
                    with torch.autocast("cuda", kind, enabled=kind != full):
                        loss = m.weighted_loss(net, tokens, masks, config) / tokens.numel()
                    loss.backward()
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                del loss
                after.append(torch.cuda.memory_allocated())
            peak = (torch.cuda.max_memory_allocated() - held) / 1e9
            value = 4 if kind == full else 2
            estimate = m.estimate_memory(config, batch, value, checkpointing)["training_gb"]
            notes.append(f"{peak:.2f} GB measured, {estimate:.2f} estimated ({estimate / peak - 1:+.0%}), "
                         f"{(after[-1] - after[1]) / 1e6:+.1f} MB over {len(after)} steps")
            del net, optimizer, tokens, masks
            assert after[-1] == after[1], f"memory grows: {notes}"
            assert abs(estimate / peak - 1) <= TOLERANCE, f"the estimate is off: {notes}"


def throughput():
    with check("throughput at 125M parameters") as notes:
        done = subprocess.run([sys.executable, str(ROOT / "tests/benchmark.py"), PRESET, "--device=cuda", *ARGUMENTS],
                              env=os.environ | {"CUDA_LAUNCH_BLOCKING": "0"}, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        notes.append(" ".join(done.stdout.split()))


def main():
    if not torch.cuda.is_available():
        fail("there is no CUDA GPU here: nothing was checked")
    if not os.path.exists("data/latest"):
        fail("no book has been prepared here: run python prepare.py book.txt first, or bring its data/ folder")
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    throughput()
    with tempfile.TemporaryDirectory() as folder:
        operations()
        memory()
        stages(folder)
        killed(folder)
        compiled(folder)
    print(f"{len(failed)} checks failed: {', '.join(failed)}" if failed else "all checks passed")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
