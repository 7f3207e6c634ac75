"""Everything that only a GPU can show, on a machine that has one; prints a line per check and ends with status 1 if one failed.

    python prepare.py book.txt                # or carry data/ here: this needs torch, numpy and rich alone
    python tests/check_cuda.py

Kernels run one by one (CUDA_LAUNCH_BLOCKING), so that an error's traceback ends at the line that caused it.
"""
import contextlib
import functools
import importlib
import json
import os
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

GPU = torch.device("cuda")
PRESET = str(ROOT / "config/tiny_125m.py")
TOLERANCE = 0.10                        # of the memory estimate
failed = []


@contextlib.contextmanager
def check(name):
    """One line: what was checked and how it went; an error is printed with its lines and the rest goes on."""
    began, notes = time.perf_counter(), []
    try:
        yield notes
        print(f"ok      {name}: {', '.join(notes) or 'as on the CPU'} ({time.perf_counter() - began:.1f} s)", flush=True)
    except (Exception, SystemExit):
        failed.append(name)
        print(f"FAILED  {name}\n{traceback.format_exc()}", flush=True)


def train_run(out, *arguments):
    """train.py in this process, in a folder of its own; returns its log."""
    importlib.reload(train)
    sys.argv = ["train.py", *arguments, f"--out_dir={out}", "--tensorboard=False", "--device=cuda"]
    train.main()
    with open(f"{out}/log.jsonl", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def close(a, b, tolerance):
    torch.testing.assert_close(a.float().cpu(), b.float(), rtol=tolerance, atol=tolerance)


def operations():
    """The network forward and backward, its twin, gradient checkpointing, the bound and the sampler in every order, against the CPU's."""
    for causal in (False, True):
        config = m.Config(300, 64, 2, 4, 128, causal=causal)
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
            with check(f"{'causal' if causal else 'diffusion'} loss and gradients{', checkpointed' if checkpointing else ''}"):
                there.checkpointing = checkpointing
                there.zero_grad()
                found = m.weighted_loss(there, tokens.to(GPU), on_gpu, config)
                found.backward()
                close(found, loss, 1e-3)
                for a, b in zip(there.parameters(), net.parameters()):
                    close(a.grad, b.grad, 1e-2)
        for kind in (torch.bfloat16, torch.float16):
            with check(f"{'causal' if causal else 'diffusion'} loss in {str(kind)[6:]}"), torch.autocast("cuda", kind):
                close(m.weighted_loss(there, tokens.to(GPU), on_gpu, config), loss, 2e-2)
        rows = list(tokens[2:])
        with check(f"{'causal' if causal else 'diffusion'} held-out bound"):
            close(m.held_out_bound(there.eval(), rows, 8, seed=0).per_sequence, m.held_out_bound(net.eval(), rows, 8, seed=0).per_sequence, 1e-3)
        canvas = torch.full((2, 48), config.mask_id)
        for order in next(f.metadata["choices"] for f in fields(m.Sampling) if f.name == "order"):
            with check(f"{'causal' if causal else 'diffusion'} sampling by {order}, greedy"):
                a, b = ([step.tokens for step in m.denoise(x, canvas, [1, 2], m.Sampling(steps=12, order=order, temperature=0.0))][-1] for x in (there, net))
                assert (a < config.n_text).all() and (a == b).float().mean() > 0.8, "more than one token in five differs from the CPU's"


def stages(folder):
    """Each stage alone at the preset's full size, windows of 512 tokens above all; fp16 that overflows and recovers; out of memory."""
    importlib.reload(train)
    for i, stage in enumerate(train.stages, 1):
        with check(f"stage {i} alone, 125M parameters") as notes:
            lines = train_run(f"{folder}/stage{i}", PRESET, f"--stages={[stage | {'epochs': 1000.0, 'max_steps': 20}]}", "--log_interval=1", "--sample_tokens=32")
            losses = [line["loss"] for line in lines if "loss" in line]
            assert len(losses) == 20 and losses[-1] < losses[0]
            notes.append(f"loss {losses[0]:.2f} to {losses[-1]:.2f}, {lines[-2]['memory_gb']:.2f} GB")
    with check("float16 overflows and recovers") as notes:
        whole = torch.amp.GradScaler
        torch.amp.GradScaler = functools.partial(whole, init_scale=2.0 ** 40)
        try:
            lines = [line for line in train_run(f"{folder}/fp16", str(ROOT / "config/debug.py"), "--dtype=float16", "--log_interval=1", "--stages[0].max_steps=60") if "loss" in line]
        finally:
            torch.amp.GradScaler = whole
        assert lines[-1]["overflows"] > 5 and lines[-1]["loss"] < lines[0]["loss"]
        notes.append(f"{lines[-1]['overflows']} overflows, then loss {lines[-1]['loss']:.2f}")
    with check("out of memory halves the micro-batch") as notes:
        total = torch.cuda.get_device_properties(GPU).total_memory
        torch.cuda.set_per_process_memory_fraction(4e9 / total)
        try:
            train_run(f"{folder}/oom", PRESET, "--batch_size=64", "--grad_accum=1", "--checkpointing=False",
                      f"--stages={[train.stages[2] | {'epochs': 1000.0, 'max_steps': 3}]}", "--log_interval=1", "--sample_tokens=0")
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)
        notes.append("64 examples in 4 GB")


def memory():
    """Peak memory of training steps against model.estimate_memory, and no growth over 200 of them."""
    importlib.reload(train)
    for width, layers, batch, kind, checkpointing in ((768, 12, 8, torch.float16, False), (768, 12, 8, torch.bfloat16, False), (768, 12, 8, torch.bfloat16, True),
                                                      (768, 12, 4, torch.float32, False), (384, 6, 16, torch.bfloat16, False)):
        with check(f"memory of {layers} layers of width {width}, {batch} x 512, {str(kind)[6:]}{', checkpointed' if checkpointing else ''}") as notes:
            config = m.Config(7_600, 512, layers, 12 if width == 768 else 6, width)
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            held = torch.cuda.memory_allocated()
            net = m.DiffusionModel(config).to(GPU).train()
            net.checkpointing = checkpointing
            optimizer = train.make_optimizer(net)
            tokens = torch.randint(config.n_text, (batch, 512), device=GPU)
            masks = m.Masks((torch.arange(512, device=GPU) % 2 == 0).expand(batch, 512), torch.full((batch,), 2.0, device=GPU))
            after = []
            for _ in range(200 if width == 384 else 4):
                with torch.autocast("cuda", kind, enabled=kind != torch.float32):
                    loss = m.weighted_loss(net, tokens, masks, config) / tokens.numel()
                loss.backward()
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                del loss
                after.append(torch.cuda.memory_allocated())
            peak = (torch.cuda.max_memory_allocated() - held) / 1e9
            estimate = m.estimate_memory(config, batch, 512, 4 if kind == torch.float32 else 2, checkpointing)["training_gb"]
            notes.append(f"{peak:.2f} GB measured, {estimate:.2f} estimated ({estimate / peak - 1:+.0%}), {(after[-1] - after[1]) / 1e6:+.1f} MB over {len(after)} steps")
            del net, optimizer, tokens, masks
            assert after[-1] == after[1], f"memory grows: {notes}"
            assert abs(estimate / peak - 1) <= TOLERANCE, f"the estimate is off: {notes}"


def throughput():
    with check("throughput at 125M parameters") as notes:
        done = subprocess.run([sys.executable, str(ROOT / "tests/benchmark.py"), PRESET, "--device=cuda"], env=os.environ | {"CUDA_LAUNCH_BLOCKING": "0"},
                              capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        notes.append(" ".join(done.stdout.split()))


def main():
    if not torch.cuda.is_available():
        fail("there is no CUDA GPU here: nothing was checked")
    if not os.path.exists("data/latest"):
        fail("no book has been prepared here: run python prepare.py book.txt first, or bring its data/ folder")
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    operations()
    memory()
    with tempfile.TemporaryDirectory() as folder:
        stages(folder)
    throughput()
    print(f"{len(failed)} checks failed: {', '.join(failed)}" if failed else "all checks passed")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
