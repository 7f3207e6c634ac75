"""The model: a bidirectional transformer, the masked-diffusion objective it is trained on, and the sampler that writes with it.

Read from top to bottom: the network, the objective, the held-out bound, the sampler, sizes, checkpoints. Imports torch alone.

Token ids 0 .. n_text-1 are text; the last three ids of the vocabulary are [MASK], [PAD] and [SEP], in that order. The output
layer covers only text, so a special token can neither be predicted nor sampled.
"""
import ctypes
import math
import os
import sys
import zipfile
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import NamedTuple

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

SPECIALS = 3                    # [MASK], [PAD], [SEP]: the last ids of every vocabulary


# ------------------------------------------------------------------------------------------------ the network

@dataclass
class Config:
    """Everything the network's shape depends on; saved in every checkpoint."""
    vocab_size: int             # text tokens and the three specials
    block_size: int = 512       # longest sequence, in tokens
    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768
    dropout: float = 0.0
    causal: bool = False        # True: the autoregressive twin, same network with a causal mask
    rope_base: float = 10000.0

    def __post_init__(self):
        if self.n_embd % self.n_head or (self.n_embd // self.n_head) % 2:
            raise ValueError(f"n_embd={self.n_embd} must be n_head={self.n_head} times an even number (rotary embeddings turn pairs)")
        if self.vocab_size <= SPECIALS:
            raise ValueError(f"vocab_size={self.vocab_size} leaves no text tokens beside the {SPECIALS} special ones")

    @property
    def n_text(self) -> int:
        return self.vocab_size - SPECIALS

    @property
    def mask_id(self) -> int:
        return self.vocab_size - 3

    @property
    def pad_id(self) -> int:
        return self.vocab_size - 2

    @property
    def sep_id(self) -> int:
        return self.vocab_size - 1

    @property
    def mlp_width(self) -> int:
        """Two thirds of 4d, so that SwiGLU's three matrices weigh what two of width 4d would (Shazeer, 2002.05202), in steps of 64."""
        return math.ceil(8 * self.n_embd / 3 / 64) * 64


def unit_rms(x: Tensor, weight: Tensor | None = None, eps: float = 1e-6) -> Tensor:
    """x / rms(x) over the last dimension, times weight; computed in float32 and returned in x's dtype."""
    return F.rms_norm(x.float(), x.shape[-1:], None if weight is None else weight.float(), eps).to(x.dtype)


class RMSNorm(nn.Module):
    """Root-mean-square normalisation with a learnt weight per channel and no bias (Zhang & Sennrich, 1910.07467)."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return unit_rms(x, self.weight)


class Rotary(nn.Module):
    """Rotary position embedding (Su et al., 2104.09864): pairs of channels turned by an angle that grows with the position."""

    def __init__(self, head_width: int, max_length: int, base: float):
        super().__init__()
        self.head_width, self.max_length, self.base = head_width, max_length, base
        self.cos = self.sin = torch.empty(0, head_width // 2)

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., T, head_width) -> the same, rotated. ValueError when T exceeds max_length."""
        length = x.shape[-2]
        if length > self.max_length:
            raise ValueError(f"a sequence of {length} tokens exceeds this model's block_size of {self.max_length}")
        if length > len(self.cos) or self.cos.device != x.device or self.cos.dtype != x.dtype:
            frequency = self.base ** (-torch.arange(0, self.head_width, 2, device=x.device, dtype=torch.float32) / self.head_width)
            angle = torch.arange(length, device=x.device, dtype=torch.float32)[:, None] * frequency
            self.cos, self.sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
        cos, sin = self.cos[:length], self.sin[:length]
        a, b = x.chunk(2, dim=-1)
        return torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1)


class Block(nn.Module):
    """Attention, then SwiGLU, each on a normalised input and added to the residual stream; no biases.

    Dropout on what each adds, not inside attention, where it would rule out SDPA's fast kernels."""

    def __init__(self, config: Config, rotary: Rotary):
        super().__init__()
        d, h = config.n_embd, config.mlp_width
        self.n_head, self.dropout, self.causal, self.rotary = config.n_head, config.dropout, config.causal, rotary
        self.attention_norm, self.mlp_norm = RMSNorm(d), RMSNorm(d)
        self.qkv = nn.Linear(d, 3 * d, bias=False)
        self.attention_out = nn.Linear(d, d, bias=False)
        self.gate_up = nn.Linear(d, 2 * h, bias=False)
        self.mlp_out = nn.Linear(h, d, bias=False)

    def forward(self, x: Tensor, attend: Tensor | None) -> Tensor:
        B, T, d = x.shape
        dropout = self.dropout if self.training else 0.0
        q, k, v = self.qkv(self.attention_norm(x)).view(B, T, 3, self.n_head, d // self.n_head).permute(2, 0, 3, 1, 4)  # (B, heads, T, d/heads)
        q, k = self.rotary(unit_rms(q)), self.rotary(unit_rms(k))                    # QK norm: bounded attention logits let small batches learn fast
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=attend, is_causal=self.causal)
        x = x + F.dropout(self.attention_out(y.transpose(1, 2).reshape(B, T, d)), dropout)
        gate, up = self.gate_up(self.mlp_norm(x)).chunk(2, dim=-1)
        return x + F.dropout(self.mlp_out(F.silu(gate) * up), dropout)


class DiffusionModel(nn.Module):
    """Predicts the token at every position from those that are not masked; as its causal twin, from those before it."""

    def __init__(self, config: Config):
        super().__init__()
        self.config, self.checkpointing = config, False
        self.embedding = nn.Embedding(config.vocab_size, config.n_embd)              # tied: also the output layer
        rotary = Rotary(config.n_embd // config.n_head, config.block_size, config.rope_base)
        self.blocks = nn.ModuleList(Block(config, rotary) for _ in range(config.n_layer))
        self.final_norm = RMSNorm(config.n_embd)
        for name, p in self.named_parameters():
            if p.ndim == 2:                                                          # residual projections scaled as in GPT-2
                nn.init.normal_(p, std=0.02 / math.sqrt(2 * config.n_layer) if "_out" in name else 0.02)

    def forward(self, tokens: Tensor, where: Tensor | None = None) -> Tensor:
        """tokens (B, T) int64, [PAD] where a row has ended -> logits (B, T, n_text); with `where` (B, T) bool, (where.sum(), n_text).

        Logits at i predict token i: from every unmasked token for diffusion, from tokens before i for the causal twin, which reads
        the row shifted right behind a [MASK]. Logits at chosen positions only: the output layer is much of a small model's work.
        """
        config = self.config
        attend = None
        if config.causal:
            tokens = torch.cat((torch.full_like(tokens[:, :1], config.mask_id), tokens[:, :-1]), dim=1)
        else:
            real = tokens != config.pad_id
            if not real.all():                                                       # without padding SDPA may use its fastest kernel
                attend = real[:, None, None, :]
        x = F.dropout(self.embedding(tokens), config.dropout, self.training)
        for block in self.blocks:
            x = checkpoint(block, x, attend, use_reentrant=False) if self.checkpointing and self.training else block(x, attend)
        x = self.final_norm(x if where is None else x[where])
        return F.linear(x, self.embedding.weight[:config.n_text])

    @property
    def device(self) -> torch.device:
        return self.embedding.weight.device


# ------------------------------------------------------------------------------------------------ the objective

class Masks(NamedTuple):
    """What one training or evaluation pass hides, and what each hidden token weighs."""
    masked: Tensor              # (B, T) bool
    weight: Tensor              # (B,) float32: L / k, one for the causal twin


def draw_masks(tokens: Tensor, config: Config, window=(0.0, 1.0), replay: float = 0.0, generator: torch.Generator | None = None) -> Masks:
    """Draw which of tokens (B, T) to hide: k of a row's L text tokens, k uniform over the whole numbers in L·window (at least 1).

    A share `replay` of the rows draws from the full range instead. k is stratified over the rows, which lowers the gradient's
    variance (Kingma et al., 2107.00630, app. I.1). With the window (0, 1), (L/k) · Σ over masked positions of -log p is an unbiased
    estimate of the bound on -log p(row) (Ou et al., 2406.03736; the continuous form is MDLM's, 2406.07524, eq. 10).
    For the causal twin every text token is predicted and weighs one. Special tokens are never masked.
    """
    text = tokens < config.n_text
    if config.causal:
        return Masks(text, torch.ones(len(tokens), device=tokens.device))
    B, length = len(tokens), text.sum(1)
    row = torch.randperm(B, generator=generator)                                     # which rows are replayed must not follow their order
    full = min(B, int(replay * B + torch.rand((), generator=generator)))
    u = torch.empty(B)
    low, high = torch.full((B,), float(window[0])), torch.full((B,), float(window[1]))
    for group in (row[:full], row[full:]):
        u[group] = (torch.arange(len(group)) + torch.rand(len(group), generator=generator)) / max(len(group), 1)
    low[row[:full]], high[row[:full]] = 0.0, 1.0
    u, low, high = (x.to(tokens.device) for x in (u, low, high))
    k = exact_count(length, low, high, u)
    noise = torch.rand(tokens.shape, generator=generator).to(tokens.device)
    return Masks(hide(text, k, noise), length / k.clamp(min=1))


def exact_count(length: Tensor, low, high, u: Tensor) -> Tensor:
    """Number of masks for rows of `length` text tokens: uniform over the whole numbers in [low·length, high·length], chosen by u in [0, 1).

    At least one; where a short row has no whole number in its window, the smallest above it.
    """
    first = torch.ceil(low * length - 1e-6).clamp(min=1)
    last = torch.maximum(torch.floor(high * length + 1e-6), first)
    return torch.minimum(first + (u * (last - first + 1)).floor(), length).long()


def hide(text: Tensor, k: Tensor, noise: Tensor) -> Tensor:
    """The k[row] positions of each row with the lowest noise among its text positions, as (B, T) bool."""
    rank = noise.masked_fill(~text, 2.0).argsort(1).argsort(1)
    return (rank < k[:, None]) & text


def weighted_loss(model: nn.Module, tokens: Tensor, masks: Masks, config: Config, label_smoothing: float = 0.0) -> Tensor:
    """Σ over rows of weight · Σ over masked positions of -log p(token), in nats: divided by the number of text tokens in the
    batch it estimates the bound per token. The L/k in the weight is the only normalisation: dividing by k as well would count it twice.
    """
    noisy = tokens if config.causal else tokens.masked_fill(masks.masked, config.mask_id)
    logits = model(noisy, masks.masked)
    nats = F.cross_entropy(logits.float(), tokens[masks.masked], reduction="none", label_smoothing=label_smoothing)
    return (nats * masks.weight[:, None].expand_as(tokens)[masks.masked]).sum()


# ------------------------------------------------------------------------------------------------ the held-out bound

class Bound(NamedTuple):
    """Evaluations of N sequences at P masks each; see `held_out_bound`."""
    nats: Tensor                # (N, P) float64: Σ of -log p over the masked positions
    k: Tensor                   # (N, P) int64: how many were masked
    length: Tensor              # (N,) int64: text tokens in the sequence

    @property
    def per_sequence(self) -> Tensor:
        """(N,) nats: the bound on -log p of each sequence, averaged over its masks."""
        return (self.nats * self.length[:, None] / self.k).mean(1)


@torch.no_grad()
def held_out_bound(model: DiffusionModel, sequences: list[Tensor], points: int = 32, seed: int = 0, batch_tokens: int = 8192) -> Bound:
    """The full-range bound on -log p of each of N token sequences (1-d, at most block_size), on fixed masks drawn from `seed`.

    Each sequence is evaluated at `points` exact mask counts, one in each of as many strata of 1..L, weighted L/k. The causal
    twin's exact -log p takes one pass: P is 1. Draws from a generator of its own and leaves the global ones alone.
    """
    config, was_training = model.config, model.training
    model.eval()
    points = 1 if config.causal else points
    generator = torch.Generator().manual_seed(seed)
    length = torch.tensor([int((s < config.n_text).sum()) for s in sequences])
    rows, k = [], torch.empty(len(sequences), points, dtype=torch.long)
    for n, sequence in enumerate(sequences):
        text = (sequence < config.n_text).expand(points, -1)
        if config.causal:
            k[n], hidden = length[n], text
        else:
            u = (torch.arange(points) + torch.rand(points, generator=generator)) / points
            k[n] = exact_count(length[n].float(), torch.tensor(0.0), torch.tensor(1.0), u)
            hidden = hide(text, k[n], torch.rand(text.shape, generator=generator))
        rows += [(n, p, sequence, hidden[p]) for p in range(points)]
    rows.sort(key=lambda row: len(row[2]))                                           # alike lengths together: little padding
    nats = torch.zeros(len(sequences), points, dtype=torch.float64)
    while rows:
        size = max(1, batch_tokens // len(rows[-1][2]))
        batch, rows = rows[-size:], rows[:-size]
        tokens = pad([row[2] for row in batch], config.pad_id).to(model.device)
        masked = pad([row[3] for row in batch], False).to(model.device)
        loss = F.cross_entropy(model(tokens if config.causal else tokens.masked_fill(masked, config.mask_id), masked).float(),
                               tokens[masked], reduction="none").double().cpu()
        owner = masked.nonzero()[:, 0].cpu()
        total = torch.zeros(len(batch), dtype=torch.float64).index_add_(0, owner, loss)
        for (n, p, _, _), value in zip(batch, total):
            nats[n, p] = value
    model.train(was_training)
    return Bound(nats, k, length)


def pad(sequences: list[Tensor], value) -> Tensor:
    """1-d tensors of any lengths -> one (B, longest) tensor, `value` behind the shorter ones."""
    return nn.utils.rnn.pad_sequence(sequences, batch_first=True, padding_value=value)


# ------------------------------------------------------------------------------------------------ the sampler

ORDERS = ("margin", "confidence", "entropy", "random")


class Step(NamedTuple):
    """One denoising step, after one call of the network. All tensors are on the CPU, B rows of T positions."""
    step: int                   # 1 .. of
    of: int                     # steps planned; an adaptive run may end earlier
    tokens: Tensor              # (B, T) int64, [MASK] where undecided
    revealed: Tensor            # (B, T) bool: decided in this step
    remasked: Tensor            # (B, T) bool: taken back in this step
    draft: Tensor               # (B, T) int64: the likeliest token where the network looked, else the token before this step
    confidence: Tensor          # (B, T) float32: p(draft) where undecided, p(token) when it was decided, 1 where it was given
    choices: Tensor             # (B, T, A) int64: the likeliest tokens where the network looked, else 0
    chances: Tensor             # (B, T, A) float32: their probabilities, else 0


@torch.no_grad()
def denoise(model: DiffusionModel, tokens: Tensor, seeds: list[int], *, steps: int = 25, order: str = "margin", schedule: str = "linear",
            threshold: float | None = None, entropy_bound: float | None = None, temperature: float = 0.6, top_k: int = 20, top_p: float = 0.85,
            repetition_penalty: float = 1.0, remask: float = 0.0, block_size: int | None = None, alternatives: int = 5,
            bar: tuple[Tensor, Tensor] | None = None) -> Iterator[Step]:
    """Fill every [MASK] of tokens (B, T) and yield a Step after each call of the network; everything else stays as it is.

    The reverse process of masked diffusion (MDLM, 2406.07524, sec. 3.2.2) with the positions to decide chosen by `order` instead of at random: the
    largest margin p1 - p2 (Kim et al., 2502.06768), the highest confidence p(drawn token), the lowest entropy, or random. How many: so
    that the masks left follow a linear or cosine `schedule` over `steps`; beyond that, every position whose drawn token is likelier than
    `threshold`, and as many as keep the summed entropy, less the largest, within `entropy_bound` nats (Ben-Hamu et al., 2505.24857).
    `steps` calls of the network, or as many as there are masks if those are fewer; adaptive runs end when nothing is masked.

    Tokens are drawn at `temperature` (0: the likeliest) from the `top_k` likeliest (0: all) that make up `top_p` of the probability, tokens already in
    the row penalised by `repetition_penalty` (Keskar et al., 1909.05858, sec. 4.1; 1: not at all). With `remask`, about that share of the decided
    tokens is taken back at each step, the least confident most likely, within the schedule (after ReMDM, Wang et al., 2503.00307).
    Rows longer than the model's context, or any row if `block_size` is given, are filled left to right in blocks of that many
    positions, each with `steps` of its own. The causal twin fills one position a step, left to right, and has no use for the settings of order and budget.

    `bar` is (where (B, T), tokens (n_text,)), both bool: where the first holds, tokens of the second are never drawn.
    Rows may be padded with [PAD] on the right; seeds (B,): a row's text depends on its own seed and not on the rows beside it.
    Leaves the model in eval mode. ValueError for impossible settings.
    """
    config, context = model.config, model.config.block_size
    if order not in ORDERS or schedule not in ("linear", "cosine"):
        raise ValueError(f"order must be one of {', '.join(ORDERS)} and schedule linear or cosine, not {order!r} and {schedule!r}")
    if steps < 1 or temperature < 0 or top_k < 0 or not 0 < top_p <= 1 or repetition_penalty <= 0 or not 0 <= remask < 1:
        raise ValueError("sampling needs steps >= 1, temperature >= 0, top_k >= 0, 0 < top_p <= 1, repetition_penalty > 0, 0 <= remask < 1")
    if block_size is not None and not 1 <= block_size <= context:
        raise ValueError(f"block_size must be between 1 and the model's context of {context} tokens, not {block_size}")
    if len(seeds) != len(tokens) or not all(0 <= seed < 2**63 for seed in seeds):
        raise ValueError("sampling needs a seed for each row, a whole number from 0 to 2^63 - 1")
    model.eval()
    tokens = tokens.cpu().clone()
    B, T = tokens.shape
    greedy = temperature == 0 and order != "random"                                  # the same text from every seed
    generators = [torch.Generator().manual_seed(0 if greedy else seed) for seed in seeds]
    given = tokens != config.mask_id
    confidence = given.float()
    candidates, alternatives = min(top_k or config.n_text, config.n_text), min(alternatives, config.n_text)
    kept = max(candidates, alternatives, 2)
    length = (tokens != config.pad_id).sum(1)
    blocks = [plan_blocks(~given[b, :length[b]], context, block_size) for b in range(B)]
    calls = [sum(masks if config.causal else min(steps, masks) for *_, masks in row) for row in blocks]
    current = torch.zeros(B, T, dtype=torch.bool)                                    # what the block at hand has to fill, decided or not
    left, masks, step = (torch.zeros(B, dtype=torch.long) for _ in range(3))         # its window, its masks at first, its step

    for done in range(1, max(calls, default=0) + 1):
        masked = current & (tokens == config.mask_id)
        for b in (~masked.any(1)).nonzero()[:, 0].tolist():                          # a block is done: on to the row's next
            if blocks[b]:
                start, stop, left[b], masks[b] = blocks[b].pop(0)
                current[b], step[b] = False, 0
                current[b, start:stop] = masked[b, start:stop] = ~given[b, start:stop]
        rows = masked.any(1).nonzero()[:, 0]                                         # (A,) rows that are not finished
        if len(rows) == 0:
            return
        step[rows] += 1
        n_steps = masks[rows] if config.causal else masks[rows].clamp(max=steps)

        window = left[rows, None] + torch.arange(min(T, context))                    # (A, W) the columns that the network reads
        where = masked[rows[:, None], window]
        if config.causal:                                                            # the next position; those right of it would be read off [MASK]s
            where &= where.cumsum(1) == 1
            width = int(where.any(0).nonzero().max()) + 1
            window, where = window[:, :width], where[:, :width]
        a, w = where.nonzero(as_tuple=True)                                          # (M,) positions that it decides about, row by row
        row, column, counts = rows[a], window[a, w], where.sum(1)
        logits = model(tokens[rows[:, None], window].to(model.device), where.to(model.device)).float()
        if bar is not None:
            logits[(bar[0][row, column][:, None] & bar[1]).to(logits.device)] = -torch.inf
        log_p = penalise(logits, row, tokens, repetition_penalty).log_softmax(1)     # (M, n_text)
        top_log_p, top_ids = (x.cpu() for x in log_p.topk(kept))
        own = [(generators[b], n) for b, n in zip(rows.tolist(), counts.tolist())]   # a row's generator, and how many positions it serves
        noise = torch.cat([gumbel((n, candidates), g) for g, n in own]) if temperature else None
        pick = draw(top_log_p[:, :candidates], temperature, top_p, noise)[:, None]
        drawn, p_drawn = top_ids.gather(1, pick)[:, 0], top_log_p.gather(1, pick)[:, 0].exp()
        chances = top_log_p[:, :max(alternatives, 2)].exp()

        # Where a row is all masks, every position has the same chances, and rounding errors would choose: chance decides between equals.
        tie = 1e-4 * torch.cat([torch.rand(n, generator=g, dtype=torch.float64) for g, n in own])
        score = {"margin": chances[:, 0] - chances[:, 1], "confidence": p_drawn, "random": torch.zeros(len(a))}.get(order)
        if order == "entropy" or entropy_bound is not None:
            entropy = torch.special.entr(log_p.exp()).sum(1).cpu() - tie
        score = spread(where, -entropy if order == "entropy" else score + tie, -torch.inf)
        remaining = mask_schedule(masks[rows], step[rows], n_steps, schedule)        # (A,) masks to be left after this step
        back = torch.zeros_like(remaining)                                           # (A,) how many are taken back in exchange for others
        if remask and not config.causal:
            decided = current[rows] & ~masked[rows]                                  # (A, T)
            rounding = torch.stack([torch.rand((), generator=g) for g, _ in own])
            back = (remask * decided.sum(1) + rounding).long().minimum(remaining)
        count = (counts + back - remaining).clamp(min=1)
        if config.causal:
            count = counts
        elif threshold is not None or entropy_bound is not None:
            sure = torch.zeros_like(where)
            if threshold is not None:
                sure[a, w] = p_drawn > threshold
            if entropy_bound is not None:
                ascending, index = spread(where, entropy, torch.inf).sort(1)
                sure |= torch.zeros_like(where).scatter_(1, index, (ascending.cumsum(1) - ascending <= entropy_bound) & ascending.isfinite())
            score, count = score + 100 * sure, count.maximum(sure.sum(1))            # the sure ones first: no score is near 100
        chosen = ranks(score)[a, w] < count[a]

        draft, revealed, remasked = tokens.clone(), torch.zeros_like(masked), torch.zeros_like(masked)
        if back.any():
            doubt = torch.full(decided.shape, -torch.inf, dtype=torch.float64)       # Gumbel-top-k: without replacement, in proportion to 1 - confidence
            for i, b in [(i, b) for i, b in enumerate(rows.tolist()) if back[i]]:
                unsure = 1 - confidence[b, decided[i]].double()
                doubt[i, decided[i]] = unsure.clamp(min=1e-9).log() + gumbel(unsure.shape, generators[b])
            remasked[rows] = (ranks(doubt) < back[:, None]) & decided
            tokens[remasked] = config.mask_id
        draft[row, column], confidence[row, column] = top_ids[:, 0], chances[:, 0]
        here = row[chosen], column[chosen]
        tokens[here], confidence[here], revealed[here] = drawn[chosen], p_drawn[chosen], True
        choices, likelihoods = torch.zeros(B, T, alternatives, dtype=torch.long), torch.zeros(B, T, alternatives)
        choices[row, column], likelihoods[row, column] = top_ids[:, :alternatives], chances[:, :alternatives]
        yield Step(done, max(calls), tokens.clone(), revealed, remasked, draft, confidence.clone(), choices, likelihoods)


def plan_blocks(masked: Tensor, context: int, block_size: int | None) -> list[tuple[int, int, int, int]]:
    """(start, stop, left, masks) of the blocks in which a row is filled: block_size columns from the first mask of (T,) bool not in a
    block yet, all that is left if the row fits the context, else half a context. The network reads `context` columns from `left`."""
    length = len(masked)
    size = block_size or (length if length <= context else max(context // 2, 1))
    todo, blocks = masked.nonzero()[:, 0].tolist(), []
    while todo:
        start, stop = todo[0], todo[0] + size
        inside = bisect_left(todo, stop)
        ahead = (context - size) // 2                                                # worth reading only where it is not all masks
        right = min(length, stop + ahead if not masked[stop:stop + ahead].all() else stop)
        blocks.append((start, stop, max(0, right - context), inside))
        todo = todo[inside:]
    return blocks


def mask_schedule(masks: Tensor, step: Tensor, steps: Tensor, schedule: str) -> Tensor:
    """How many of `masks` remain after `step` of `steps`, (B,) each: a straight line, or MaskGIT's cosine (2202.04200, sec. 3.3), which decides few tokens first."""
    done = step.double() / steps
    return (masks * (1 - done if schedule == "linear" else (math.pi / 2 * done).cos()) + 1e-6).floor().long()


def draw(log_p: Tensor, temperature: float, top_p: float, noise: Tensor | None) -> Tensor:
    """Which of K candidates, likeliest first, is drawn at each of M positions: (M,) int64. log_p and Gumbel `noise` are (M, K).

    Temperature first, then top-p; the candidate that crosses top_p stays. Gumbel-max in float64, see `gumbel`; temperature 0 takes the first.
    """
    if temperature == 0:
        return torch.zeros(len(log_p), dtype=torch.long)
    scaled = log_p.double() / temperature
    p = scaled.softmax(1)
    return (scaled.masked_fill(p.cumsum(1) - p >= top_p, -torch.inf) + noise).argmax(1)


def gumbel(shape, generator: torch.Generator) -> Tensor:
    """Standard Gumbel noise in float64: float32 truncates its upper tail and so lowers the temperature unasked (Zheng et al., 2409.02908)."""
    u = torch.rand(shape, generator=generator, dtype=torch.float64).clamp(min=1e-300)
    return -(-u.log()).log()


def penalise(logits: Tensor, row: Tensor, tokens: Tensor, penalty: float) -> Tensor:
    """logits (M, n_text) of positions in rows `row` (M,) of tokens (B, T); those of tokens already in the row made smaller by the factor `penalty`."""
    if penalty == 1:
        return logits
    seen = torch.zeros(len(tokens), logits.shape[1] + SPECIALS, dtype=torch.bool).scatter_(1, tokens, True)[:, :-SPECIALS]
    return torch.where(seen[row].to(logits.device), torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def spread(where: Tensor, values: Tensor, empty: float) -> Tensor:
    """values (M,) at the places of where (A, W) bool, `empty` elsewhere: (A, W) float64."""
    return torch.full(where.shape, empty, dtype=torch.float64).masked_scatter(where, values.double())


def ranks(score: Tensor) -> Tensor:
    """Each entry's place in its row of (A, W), 0 for the highest; ties go to the left."""
    return score.argsort(dim=1, descending=True, stable=True).argsort(dim=1)


# ------------------------------------------------------------------------------------------------ sizes

def count_parameters(config: Config) -> dict[str, int]:
    """Parameters by component; `total` equals sum(p.numel()). The embedding is also the output layer and counts once."""
    d, h, n = config.n_embd, config.mlp_width, config.n_layer
    parts = {"embedding": config.vocab_size * d, "attention": n * 4 * d * d, "mlp": n * 3 * d * h, "norms": (2 * n + 1) * d}
    return parts | {"total": sum(parts.values())}


def training_flops(config: Config, tokens: int, predicted: int, length: int) -> int:
    """Floating-point operations to train on `tokens` tokens in sequences of `length`, with logits at `predicted` of them.

    6 per token and matrix parameter, plus attention's 12·layers·width·length per token (PaLM, 2204.02311, app. B). Recomputation
    by gradient checkpointing is not counted: it is work, but not the model's.
    """
    parts = count_parameters(config)
    attention = 12 * config.n_layer * config.n_embd * length // (2 if config.causal else 1)
    return tokens * (6 * (parts["attention"] + parts["mlp"]) + attention) + predicted * 6 * config.n_text * config.n_embd


def layer_bytes(config: Config, bytes_per_value: int, checkpointing: bool = False) -> int:
    """Bytes per token that backward keeps of one layer: with gradient checkpointing its input alone."""
    d, h, half = config.n_embd, config.mlp_width, bytes_per_value
    if checkpointing:
        return 4 * d
    residuals = 2 * 4 * d                                                            # the inputs of both norms
    normalised = 2 * half * d                                                        # the inputs of qkv and gate_up
    attention = half * (3 * d + 2 * d + d)                                           # qkv, q and k normed and turned, what attention gives
    norms = 2 * 4 * d if half == 2 else 0                                            # q and k in float32 for their norm
    swiglu = half * 4 * h                                                            # gate and up, silu(gate), the product
    dropout = 2 * d if config.dropout else 0
    return residuals + normalised + attention + norms + swiglu + dropout


def estimate_memory(config: Config, batch_size: int, length: int | None = None, bytes_per_value: int = 2, checkpointing: bool = False,
                    ema: bool = False) -> dict:
    """Peak memory in GB (1e9 bytes) of training with AdamW on `batch_size` rows of `length` tokens, and of sampling one such row.

    Counts float32 weights, gradients and two moments, the 16-bit copies that autocast keeps, what backward needs of each layer, and the
    logits. A GPU's driver takes some hundred MB on top, which fits_8gb_gpu leaves room for.
    """
    d, tokens = config.n_embd, batch_size * (length or config.block_size)
    total, layer = count_parameters(config)["total"], layer_bytes(config, bytes_per_value)
    states = total * (16 + (4 if ema else 0) + (2 if bytes_per_value == 2 else 0))
    layers = config.n_layer * layer_bytes(config, bytes_per_value, checkpointing) + (layer if checkpointing else 0)
    predicted = tokens if config.causal else tokens // 2                             # half of the tokens are masked on average
    logits = predicted * config.n_text * (bytes_per_value + 8)                       # the logits, their float32 copy, its gradient
    training = states + tokens * (layers + 8 * d) + logits
    inference = total * 4 + (length or config.block_size) * (layer + 12 * config.n_text)
    return {"training_gb": training / 1e9, "inference_gb": inference / 1e9, "fits_8gb_gpu": training < 7.2e9}


def set_up_cpu(config: Config) -> None:
    """Threads and memory for work on a CPU; call it before tensors are made.

    One thread for a model under 10M parameters: two cores make a step of so small a model a third faster while nothing else runs,
    and many times slower when something does, for they wait for each other at every product. OMP_NUM_THREADS overrules it.
    Freed memory stays with the process, in large pages: a full-size model's activations, given back to the system and fetched
    again page by page at every layer, cost a third of its training time.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")                               # PyTorch's own switch, read at its first allocation
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):                                                 # absent from musl
            libc.mallopt(-1, -1)                                                     # M_TRIM_THRESHOLD: never shrink the heap
            libc.mallopt(-4, 0)                                                      # M_MMAP_MAX: all from the heap, whatever its size
    if count_parameters(config)["total"] < 10e6 and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)


# ------------------------------------------------------------------------------------------------ checkpoints

def save_checkpoint(path: str, checkpoint: dict) -> None:
    """Write aside, flush to disk, rename: whoever reads `path` finds the old checkpoint or the new one, never half of one."""
    aside = f"{path}.writing"
    with open(aside, "wb") as file:
        torch.save(checkpoint, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)


def load_checkpoint(path: str, device: str | torch.device = "cpu") -> dict:
    """The dict that save_checkpoint wrote. FileNotFoundError or ValueError says in one line what is wrong with the file."""
    if not os.path.exists(path):
        raise FileNotFoundError(f"no checkpoint at {path}: train one first with python train.py")
    try:
        checkpoint = torch.load(path, map_location=device, weights_only=True)
    except (RuntimeError, EOFError, OSError, KeyError, ValueError, zipfile.BadZipFile, AttributeError, ImportError, IndexError) as error:
        raise ValueError(f"{path} is torn or is not a checkpoint of this program ({type(error).__name__})") from error
    except Exception as error:                                                       # pickle.UnpicklingError, without importing pickle
        if type(error).__name__ != "UnpicklingError":
            raise
        raise ValueError(f"{path} is not a checkpoint of this program: it holds something other than tensors and plain values") from error
    if not isinstance(checkpoint, dict) or not {"model", "config", "tokenizer"} <= checkpoint.keys():
        raise ValueError(f"{path} is not a checkpoint of this program: it lacks the model, its config or the tokenizer")
    return checkpoint


def load_model(path: str, device: str | torch.device = "cpu") -> tuple[DiffusionModel, dict]:
    """(model in eval mode on `device`, the whole checkpoint). Errors as in load_checkpoint."""
    checkpoint = load_checkpoint(path, device)
    try:
        model = DiffusionModel(Config(**checkpoint["config"]))
        model.load_state_dict(checkpoint["model"])
    except (TypeError, RuntimeError) as error:
        raise ValueError(f"{path} does not fit this version's model: {error}") from error
    return model.to(device).eval(), checkpoint


def checkpoint_of(model: DiffusionModel, tokenizer: dict, **more) -> dict:
    """What every checkpoint holds, so that a lone .pt can be sampled: weights, config, tokenizer; and whatever else its writer needs."""
    return {"model": model.state_dict(), "config": asdict(model.config), "tokenizer": tokenizer} | more
