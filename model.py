"""The model: a bidirectional transformer, its masked-diffusion objective, and the sampler.

Token ids 0 .. n_text-1 are text; the last three are [MASK], [PAD] and [SEP]. The output layer covers text
alone: specials are never predicted or sampled.
"""
import ctypes
import json
import math
import os
import sys
import zipfile
from dataclasses import asdict, dataclass, field, fields
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

SPECIALS = 3
ALTERNATIVES = 5  # tokens a Step tells of each position


# ---- the network

@dataclass
class Config:
    """Everything the network's shape depends on; saved in every checkpoint."""
    vocab_size: int  # text tokens and the three specials
    block_size: int = 512  # longest sequence, in tokens
    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768
    dropout: float = 0.0
    causal: bool = False  # True: the autoregressive twin
    rope_base: float = 10000.0
    conv: int = 0  # width of the short convolution before attention; 0: none

    def __post_init__(self):
        for f in fields(self):
            value, kinds = getattr(self, f.name), (int, float) if f.type is float else (f.type,)
            # what is on by default cannot be 0
            if type(value) not in kinds or not bool(f.default) <= value < 2**31:
                raise ValueError(f"{f.name}={value!r} makes no network")
        if self.n_embd % (2 * self.n_head):
            raise ValueError(f"n_embd={self.n_embd} must be n_head={self.n_head} times an even number "
                             "(rotary embeddings turn pairs)")
        if self.vocab_size <= SPECIALS:
            raise ValueError(f"vocab_size={self.vocab_size} leaves no text beside {SPECIALS} special tokens")
        self.n_text = self.vocab_size - SPECIALS
        self.mask_id, self.pad_id, self.sep_id = range(self.n_text, self.vocab_size)
        # SwiGLU's three matrices weigh what two of width 4d would (Shazeer, 2002.05202); in 64s
        self.mlp_width = math.ceil(8 * self.n_embd / 3 / 64) * 64


class RMSNorm(nn.RMSNorm):
    """Root-mean-square normalisation (Zhang & Sennrich, 1910.07467) over the last dimension, in float32;
    x keeps its dtype."""

    def forward(self, x):
        weight = None if self.weight is None else self.weight.float()
        return F.rms_norm(x.float(), self.normalized_shape, weight, 1e-6).to(x.dtype)


class Rotary(nn.Module):
    """Rotary position embedding (Su et al., 2104.09864): channel pairs turn with position."""

    def __init__(self, head_width, max_length, base):
        super().__init__()
        pair = torch.arange(0, head_width, 2)
        angle = torch.arange(max_length)[:, None] * base ** (-pair / head_width)
        angle = torch.cat((-angle, angle), 1)
        # whole: a table that grows would have torch.compile begin anew
        self.register_buffer("table", torch.stack((angle.cos(), angle.sin())), persistent=False)

    def forward(self, x):
        """x: (..., T, head_width) -> the same, turned. ValueError when T exceeds max_length."""
        length, longest = x.shape[-2], self.table.shape[1]
        if length > longest:
            raise ValueError(f"a sequence of {length} tokens exceeds this model's block_size of {longest}")
        cos, sin = self.table[:, :length].to(x.dtype)
        a, b = x.chunk(2, -1)
        return x * cos + torch.cat((b, a), -1) * sin


class ShortConvolution(nn.Module):
    """Depthwise convolution along the sequence, added to its input (Canon layers, 2512.17351): a block sees
    its neighbours, the causal twin's those to the left, before attention learns to find them."""

    def __init__(self, width, channels, causal):
        super().__init__()
        self.left = width - 1 if causal else width // 2
        self.weight = nn.Parameter(torch.empty(width, channels))

    def forward(self, x, real):
        """x (B, T, channels) -> the same; nothing is read where `real` (B, T) is False."""
        T, width = x.shape[1], len(self.weight)
        around = x if real is None else x * real[:, :, None]
        around = F.pad(around, (0, 0, self.left, width - 1 - self.left))
        first, *others = (self.weight[i] * around[:, i:i + T] for i in range(width))
        return x + sum(others, first)


class Block(nn.Module):
    """Attention, then SwiGLU, each on a normalised input and added to the residual stream; no biases. Dropout
    is on what each adds: inside attention it would rule out SDPA's fast kernels."""

    def __init__(self, config, rotary):
        super().__init__()
        d, h = config.n_embd, config.mlp_width
        self.config, self.rotary = config, rotary
        self.attention_norm, self.mlp_norm = RMSNorm(d), RMSNorm(d)
        # bounded attention logits let small batches learn fast
        self.qk_norm = RMSNorm(d // config.n_head, elementwise_affine=False)
        self.conv = ShortConvolution(config.conv, d, config.causal) if config.conv else None
        self.qkv = nn.Linear(d, 3 * d, bias=False)
        self.attention_out = nn.Linear(d, d, bias=False)
        self.gate_up = nn.Linear(d, 2 * h, bias=False)
        self.mlp_out = nn.Linear(h, d, bias=False)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x, real, where=None):
        """x (B, T, d) -> the same, or (M, d): only what stands where `where` (B, T) holds. real (B, T) bool:
        not padding, or None."""
        both = [rows.flatten(0, 1) for rows in (x, self.attend(x, real))]
        if where is None:
            return self.behind(*both).view_as(x)
        places = where.flatten().nonzero()[:, 0]
        return self.behind(*(rows.index_select(0, places) for rows in both))

    def attend(self, x, real):
        """(B, T, d): what each position has read of the others."""
        x = self.attention_norm(x)
        if self.conv:
            x = self.conv(x, real)
        # (3, B, heads, T, d/heads)
        qkv = self.qkv(x).unflatten(2, (3, self.config.n_head, -1)).permute(2, 0, 3, 1, 4)
        qk, (v,) = qkv.split((2, 1))
        q, k = self.rotary(self.qk_norm(qk))
        mask = None if real is None else real[:, None, None]
        y = F.scaled_dot_product_attention(q, k, v, mask, is_causal=self.config.causal)
        return y.transpose(1, 2).flatten(2)

    def behind(self, x, y):
        """(N, d): the residual stream x with what attention read, y, and what SwiGLU makes of it."""
        x = x + self.dropout(self.attention_out(y))
        gate, up = self.gate_up(self.mlp_norm(x)).chunk(2, -1)
        return x + self.dropout(self.mlp_out(F.silu(gate) * up))


class DiffusionModel(nn.Module):
    """Predicts the token at every position from those not masked; its causal twin, from those before."""

    def __init__(self, config):
        super().__init__()
        self.config, self.checkpointing = config, False
        self.embedding = nn.Embedding(config.vocab_size, config.n_embd)  # also the output layer
        rotary = Rotary(config.n_embd // config.n_head, config.block_size, config.rope_base)
        self.blocks = nn.ModuleList(Block(config, rotary) for _ in range(config.n_layer))
        self.final_norm = RMSNorm(config.n_embd)
        for name, p in self.named_parameters():
            if "conv" in name:
                nn.init.normal_(p, std=0.3)
            elif p.ndim == 2:  # residual projections smaller, as in GPT-2
                nn.init.normal_(p, std=0.02 / math.sqrt(2 * config.n_layer) if "_out" in name else 0.02)

    def forward(self, tokens, where=None):
        """tokens (B, T) int64, [PAD] where a row has ended -> logits (B, T, n_text), at i those of token i;
        with `where` (B, T) bool, (where.sum(), n_text): the output layer is much of a small model's work. The
        twin reads the row shifted right, behind a [MASK]."""
        config, real = self.config, None
        if config.causal:
            tokens = F.pad(tokens[:, :-1], (1, 0), value=config.mask_id)
        elif (tokens == config.pad_id).any():  # without padding SDPA may use its fastest kernel
            real = tokens != config.pad_id
        x = F.dropout(self.embedding(tokens), config.dropout, self.training)
        for block in self.blocks:
            # the last one's output is read there alone
            here = where if block is self.blocks[-1] else None
            if self.checkpointing and self.training:
                x = checkpoint(block, x, real, here, use_reentrant=False)
            else:
                x = block(x, real, here)
        return F.linear(self.final_norm(x), self.embedding.weight[:config.n_text])

    @property
    def device(self):
        return self.embedding.weight.device


def cooccurrence_embedding(tokens, config, seed):
    """(vocab_size, n_embd) float32: where embeddings may start, from neighbours in the training text, tokens
    (N,) int64.

    Positive pointwise mutual information with the tokens two and one before, one and two after, contexts
    smoothed by the power .75; its truncated SVD, each direction weighted by the root of its singular value
    (Levy & Goldberg 2014; Levy et al. 2015, sec. 3). Rows have the usual length; specials and tokens that the
    text lacks start at random.
    """
    V, d = config.vocab_size, config.n_embd
    table = torch.randn(V, d, generator=torch.Generator().manual_seed(seed)) * 0.02
    sides = []
    for word, context in ((tokens[:-2], tokens[2:]), (tokens[:-1], tokens[1:]),
                          (tokens[1:], tokens[:-1]), (tokens[2:], tokens[:-2])):
        pair, count = torch.unique(word * V + context, return_counts=True)
        word, context = pair // V, pair % V
        of_word = torch.bincount(word, count.double(), V)
        of_context = torch.bincount(context, count.double(), V) ** 0.75
        pmi = (count / of_word[word] / (of_context / of_context.sum())[context]).log()
        place = torch.stack((word, context))[:, pmi > 0]
        sides.append(torch.sparse_coo_tensor(place, pmi[pmi > 0].float(), (V, V), check_invariants=True))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        u, s, _ = torch.svd_lowrank(torch.cat(sides, 1).coalesce(), q=min(d, V), niter=4)
    start = F.normalize(F.pad(u * s.sqrt(), (0, d - u.shape[1]))) * 0.02 * math.sqrt(d)
    seen = tokens[tokens < config.n_text].unique()
    table[seen] = start[seen]
    return table


# ---- the objective

class Masks(NamedTuple):
    """What is hidden, and what a hidden token weighs."""
    masked: Tensor  # (B, T) bool
    weight: Tensor  # (B,) float32


def draw_masks(tokens, config, window=(0.0, 1.0), replay=0.0, generator=None, even=False):
    """Draw which of tokens (B, T), on the CPU, to hide: of a row's L text tokens k, uniform over the whole
    numbers in L·window (at least 1); a share `replay` of the rows draws from the full range.

    With the window (0, 1), (L/k) · Σ over masked positions of -log p is an unbiased estimate of the bound on
    -log p(row) (Ou et al., 2406.03736; continuous: MDLM, 2406.07524, eq. 10). The causal twin predicts all: k
    is L. `even`: every hidden token weighs the same instead, with less variance (after 2511.19664).
    """
    text = tokens < config.n_text
    length = text.sum(1)
    k = length if config.causal else exact_count(length, *draw_rates(len(tokens), window, replay, generator))
    weight = (length.sum() / k.sum()).expand(len(k)) if even else length / k.clamp(min=1)
    return Masks(hide(text, k, torch.rand(tokens.shape, generator=generator)), weight)


def draw_rates(B, window, replay, generator):
    """(low, high, u), (B,) each: the windows of B rows, for a share `replay` (0, 1), and places in them,
    stratified over the rows of each kind: less variance (Kingma et al., 2107.00630, app. I.1)."""
    row, chance = torch.randperm(B, generator=generator), torch.rand((), generator=generator)
    full = int(replay * B + chance)
    low, high, u = torch.empty(3, B)
    for rows, ends in ((row[:full], (0, 1)), (row[full:], window)):
        n = len(rows)
        low[rows], high[rows] = ends
        u[rows] = (torch.arange(n) + torch.rand(n, generator=generator)) / n
    return low, high, u


def exact_count(length, low, high, u):
    """How many masks rows of `length` text tokens get: a whole number in [low·length, high·length], chosen by
    u in [0, 1); at least one, and where a short row's window has none, the smallest above it."""
    first = (low * length - 1e-6).ceil().clamp(min=1)
    last = (high * length + 1e-6).floor().maximum(first)
    return (first + (u * (last - first + 1)).floor()).minimum(length).long()


def hide(text, k, noise):
    """(B, T) bool: the k[row] text positions of each row with the lowest noise."""
    return (ranks(-noise.masked_fill(~text, 2.0)) < k[:, None]) & text


def hidden_nats(model, tokens, masked, config, label_smoothing=0.0, teacher=None):
    """-log p of each masked token of (B, T), row by row, in nats: (masked.sum(),) float32."""
    noisy = tokens if config.causal else tokens.masked_fill(masked, config.mask_id)
    logits, wanted = model(noisy, masked).float(), tokens[masked]
    if teacher:
        wanted = soften(wanted, noisy, masked, teacher)
    return F.cross_entropy(logits, wanted, reduction="none", label_smoothing=label_smoothing)


def weighted_loss(model, tokens, masks, config, label_smoothing=0.0, teacher=None):
    """Σ over rows of weight · Σ over masked positions of -log p(token), in nats: over the batch's number of
    text tokens, the bound per token. Dividing by k as well would count the weight twice."""
    nats = hidden_nats(model, tokens, masks.masked, config, label_smoothing, teacher)
    return (nats * masks.weight[:, None].expand_as(tokens)[masks.masked]).sum()


@torch.no_grad()
def soften(wanted, noisy, masked, teacher):
    """(M, n_text) distributions to learn at the M positions of masked (B, T): half the token `wanted` (M,)
    that stands there, half what `teacher` predicts from noisy (B, T) (Hinton et al., 1503.02531; of the
    student's size: Furlanello et al., 1805.04770). Rows beyond the teacher's context are read in pieces."""
    half = torch.zeros(len(wanted), teacher.config.n_text, device=wanted.device)
    context = teacher.config.block_size
    piece = masked.nonzero()[:, 1] // context
    for i, (tokens, where) in enumerate(zip(noisy.split(context, 1), masked.split(context, 1))):
        half[piece == i] = teacher(tokens, where).float().softmax(1) / 2
    return half.scatter_(1, wanted[:, None], 0.5, reduce="add")


# ---- the held-out bound

class Bound(NamedTuple):
    """N sequences at P masks each."""
    nats: Tensor  # (N, P) float64: Σ of -log p over the masked positions
    k: Tensor  # (N, P) int64: how many were masked
    length: Tensor  # (N,) int64: text tokens in the sequence

    @property
    def per_sequence(self):
        """(N,) nats: the bound on each sequence's -log p."""
        return (self.nats * self.length[:, None] / self.k).mean(1)


@torch.no_grad()
def held_out_bound(model, sequences, points=32, seed=0, rates=(), batch_tokens=8192):
    """The full-range bound on -log p of N token sequences (1-d, at most block_size), on fixed masks: at
    `points` exact mask counts each, one in each of as many strata of 1..L, weighted L/k; with `rates`, at
    these shares of L instead. The causal twin's exact -log p takes one pass: P is 1."""
    config, was_training = model.config, model.training
    model.eval()
    rates = torch.tensor([1.0] if config.causal else rates)
    points = len(rates) or points
    generator = torch.Generator().manual_seed(seed)
    length = torch.tensor([(s < config.n_text).sum() for s in sequences])
    k, masks = torch.empty(len(sequences), points, dtype=int), []
    for n, sequence in enumerate(sequences):
        text = (sequence < config.n_text).expand(points, -1)
        u = (torch.arange(points) + torch.rand(points, generator=generator)) / points
        k[n] = ((rates * length[n]).round().clamp(min=1) if len(rates)
                else exact_count(length[n], 0.0, 1.0, u))
        masks += hide(text, k[n], torch.rand(text.shape, generator=generator))
    nats = torch.zeros(len(masks), dtype=torch.float64)
    # like lengths together: little padding
    order = sorted(range(len(masks)), key=lambda i: len(masks[i]))
    while order:
        size = max(1, batch_tokens // len(masks[order[-1]]))
        batch, order = order[-size:], order[:-size]
        tokens = pad([sequences[i // points] for i in batch], config.pad_id).to(model.device)
        masked = pad([masks[i] for i in batch], False).to(model.device)
        owner = torch.tensor(batch)[masked.nonzero()[:, 0].cpu()]
        nats.index_add_(0, owner, hidden_nats(model, tokens, masked, config).cpu().double())
    model.train(was_training)
    return Bound(nats.view_as(k), k, length)


def parts(start, stop, longest):
    """[start, stop) in as few and nearly equal parts of at most `longest` as can be."""
    count = max(1, -(-(stop - start) // longest))
    return pairwise(start + (stop - start) * i // count for i in range(count + 1))


def pad(sequences, value):
    """1-d tensors -> one (B, longest) tensor, `value` behind the shorter ones."""
    return nn.utils.rnn.pad_sequence(sequences, True, value)


# ---- the sampler

@torch.no_grad()
def plain_denoise(model, tokens, steps, temperature, generator):
    """Fill the [MASK]s of one row (T,), the surest first: predict, choose, fill, repeat; yield the row after
    each step. `denoise` is this with all that a user may want; the tests compare them."""
    tokens, mask_id = tokens.clone(), model.config.mask_id
    at_first = int((tokens == mask_id).sum())
    steps = min(steps, at_first)
    for left in reversed(range(steps)):
        masked = tokens == mask_id
        # predict, (masks, n_text)
        p = model(tokens[None], masked[None]).double().softmax(1)
        margin = -p.topk(2).values.diff()[:, 0]
        count = len(p) - at_first * left // steps
        # choose
        surest = margin.topk(count).indices
        drawn = p.argmax(1)
        if temperature:
            drawn = (p ** (1 / temperature)).multinomial(1, generator=generator)[:, 0]
        # fill
        tokens[masked.nonzero()[surest, 0]] = drawn[surest]
        yield tokens.clone()


def setting(default, meaning, low=None, high=None, choices=()):
    """A field of Sampling: default (None: off), what it does, what it may be."""
    meaning += f" {{{', '.join(choices)}}}" if choices else f" [{low:g}, {high:g}]"
    return field(default=default, metadata=dict(meaning=meaning, min=low, max=high, choices=choices))


@dataclass(frozen=True)
class Sampling:
    """How `denoise` fills masks."""
    steps: int = setting(128, "calls of the network per text, or per block; no more than tokens", 1, 100_000)
    order: str = setting("margin", "which positions are decided first",
                         choices=("margin", "confidence", "entropy", "random"))
    schedule: str = setting("linear", "how many per step; cosine: few at first",
                            choices=("linear", "cosine"))
    threshold: float | None = setting(None, "also decide whatever is likelier than this (0.9, say)", 0, 1)
    entropy_bound: float | None = setting(
        None, "also decide as many as keep their summed entropy within this many nats", 0, 10**9)
    temperature: float = setting(0.8, "0: always the likeliest token; 1: as the model sees it", 0, 100)
    top_k: int = setting(0, "draw among this many likeliest tokens; 0: all", 0, 10**9)
    top_p: float = setting(0.95, "and among those that make up this much probability", 1e-6, 1)
    repetition_penalty: float = setting(1.0, "above 1: tokens of the text are less likely again", 1e-3, 1000)
    remask: float = setting(0.0, "share of the decided tokens that each step takes back", 0, 0.99)
    block_size: int | None = setting(
        None, "write in blocks of this many tokens, left to right; None: only where the context demands it",
        1, 10**9)

    def __post_init__(self):
        for f in fields(self):
            value, low, high = getattr(self, f.name), f.metadata["min"], f.metadata["max"]
            if choices := f.metadata["choices"]:
                if value not in choices:
                    raise ValueError(f"{f.name} is one of {', '.join(choices)}, not {value!r}")
            elif value is not f.default:
                whole = "whole " if "int" in str(f.type) else ""
                # type(): a bool is no number
                if type(value) not in ((int,) if whole else (int, float)) or not low <= value <= high:
                    raise ValueError(f"{f.name} is a {whole}number from {low} to {high}, not {value!r}")


class Step(NamedTuple):
    """A step, one call of the network: B rows of T positions, on the CPU."""
    step: int  # 1 .. of
    of: int  # steps planned; an adaptive run may end early
    tokens: Tensor  # (B, T) int64, [MASK] where undecided
    revealed: Tensor  # (B, T) bool: decided in this step
    remasked: Tensor  # (B, T) bool: taken back in this step
    draft: Tensor  # (B, T) int64: the likeliest token where the network looked, else as before this step
    confidence: Tensor  # (B, T) float32: p(draft) where undecided, p(token) when decided, 1 where given
    choices: Tensor  # (B, T, A) int64: the likeliest tokens where the network looked, else 0,
    chances: Tensor  # and their probabilities


@torch.no_grad()
def denoise(model, tokens, seeds, how=None, *, bar=None):
    """Fill every [MASK] of tokens (B, T) and yield a Step after each call of the network.

    The reverse process of masked diffusion (MDLM, 2406.07524, sec. 3.2.2): at each step the network predicts
    every mask, tokens are drawn for all, and those at the positions that `order` puts first stay. Rows longer
    than the model's context are filled left to right in blocks, each with `steps` of its own. The causal twin
    fills one position a step, left to right.

    `bar` is (where (B, T), tokens (n_text,)), bool: where the first holds, tokens of the second are never
    drawn. Rows may be padded with [PAD] on the right; seeds, B ints: a row's text does not depend on those
    beside it. Leaves the model in eval mode. ValueError for impossible settings.
    """
    how, context = how or Sampling(), model.config.block_size
    if (how.block_size or 0) > context:
        raise ValueError(f"block_size={how.block_size} exceeds the model's context of {context} tokens")
    if len(seeds) != len(tokens) or not all(0 <= seed < 2**63 for seed in seeds):
        raise ValueError("sampling needs a seed for each row, a whole number from 0 to 2^63 - 1")
    model.eval()
    canvas = Canvas(tokens, seeds, how, model.config)
    for number in range(1, canvas.calls + 1):
        rows = canvas.rows_at_work()
        if not len(rows):
            return
        guess = predict(model, canvas, rows, bar)
        taken = take_back(canvas, rows)
        chosen = choose(canvas, rows, guess, taken)
        yield commit(canvas, guess, chosen, taken, number)


class Canvas:
    """B rows of T positions on their way from masks to text."""

    def __init__(self, tokens, seeds, how, config):
        self.how, self.config = how, config
        self.tokens = tokens.cpu().clone()  # (B, T) int64
        self.given = self.tokens != config.mask_id  # (B, T) bool: not to fill
        self.confidence = self.given.float()  # (B, T), as in Step
        # the same text from every seed
        greedy = how.temperature == 0 and how.order != "random"
        self.generators = [torch.Generator().manual_seed(0 if greedy else seed) for seed in seeds]
        # each row's, those to come
        self.blocks = [plan_blocks(row[row != config.pad_id] == config.mask_id, config.block_size,
                                   how.block_size) for row in self.tokens]
        most = 10**9 if config.causal else how.steps
        # of the network, at most
        self.calls = max((sum(min(most, masks) for *_, masks in row) for row in self.blocks), default=0)
        # (B, T) bool: what the block at hand has to fill, decided or not
        self.current = torch.zeros_like(self.given)
        # (B,) int64 of it: the first column that the network reads, its step
        self.left, self.step = torch.zeros(2, len(tokens), dtype=int)

    @property
    def masked(self):
        """(B, T) bool: what the blocks at hand still have to fill."""
        return self.current & (self.tokens == self.config.mask_id)

    def rows_at_work(self):
        """(A,) the unfinished rows, their next blocks begun where one was done."""
        for b, busy in enumerate(self.masked.any(1).tolist()):
            if self.blocks[b] and not busy:
                start, stop, self.left[b], _ = self.blocks[b].pop(0)
                self.current[b], self.step[b] = False, 0
                self.current[b, start:stop] = ~self.given[b, start:stop]
        rows = self.masked.any(1).nonzero()[:, 0]
        self.step[rows] += 1
        return rows

    def left_after(self, rows):
        """(A,) how many masks the schedule leaves in each row's block after this step: a line, or MaskGIT's
        cosine (2202.04200, sec. 3.3)."""
        masks = self.current[rows].sum(1)
        done = self.step[rows].double() / masks.clamp(max=self.how.steps)
        left = 1 - done if self.how.schedule == "linear" else (math.pi / 2 * done).cos()
        return (masks * left + 1e-6).long()

    def reading_window(self, rows):
        """(A, W) the columns that the network reads of each row, and (A, W) bool: those it decides about."""
        window = self.left[rows, None] + torch.arange(min(self.tokens.shape[1], self.config.block_size))
        where = self.masked[rows[:, None], window]
        if self.config.causal:  # the next one; those right of it would be read off [MASK]s
            where &= where.cumsum(1) == 1
            width = int(where.any(0).nonzero().max()) + 1
            window, where = window[:, :width], where[:, :width]
        return window, where


def plan_blocks(masked, context, block_size):
    """(start, stop, left, masks) of the blocks in which a row, masked (T,) bool, is filled: block_size
    columns from the first mask in none yet; by default all if the row fits the context, else half a context.
    The network reads `context` columns from `left`."""
    length = len(masked)
    size = block_size or (length if length <= context else max(context // 2, 1))
    ahead = (context - size) // 2  # worth reading where it is not all masks
    stop, blocks = 0, []
    for start in masked.nonzero()[:, 0].tolist():
        if start >= stop:
            stop = start + size
            right = min(length, stop if masked[stop:stop + ahead].all() else stop + ahead)
            blocks.append((start, stop, max(0, right - context), int(masked[start:stop].sum())))
    return blocks


class Guess(NamedTuple):
    """What the network predicts at M undecided positions, and what is drawn there."""
    where: Tensor  # (A, W) bool: the M of what it read of the rows at work
    places: tuple  # (M,), (M,): their rows and columns of the canvas
    ids: Tensor  # (M, K) the likeliest tokens, best first
    chances: Tensor  # (M, K) their probabilities
    drawn: Tensor  # (M,) the token drawn
    p_drawn: Tensor  # (M,) and its probability
    entropy: Tensor  # (M,) nats, where settings need it
    tie: Tensor  # (M,) float64: chance, to decide between equals


def predict(model, canvas, rows, bar):
    """One call of the network, and a token drawn wherever it decides."""
    how, n_text = canvas.how, model.config.n_text
    window, where = canvas.reading_window(rows)
    row, column = rows.repeat_interleave(where.sum(1)), window[where]
    logits = model(canvas.tokens[rows[:, None], window].to(model.device), where.to(model.device)).float()
    if bar:
        logits[(bar[0][row, column, None] & bar[1]).to(logits.device)] = -torch.inf
    # (M, n_text)
    log_p = penalise(logits, row, canvas.tokens, how.repetition_penalty).log_softmax(1)
    candidates = min(how.top_k or n_text, n_text)
    top_log_p, top_ids = (x.cpu() for x in log_p.topk(min(max(candidates, ALTERNATIVES), n_text)))
    # a row's generator, and the number of its positions
    own = [(canvas.generators[b], n) for b, n in zip(rows.tolist(), where.sum(1).tolist())]
    pick = torch.zeros(len(row), 1, dtype=int)
    if how.temperature:
        noise = torch.cat([gumbel((n, candidates), g) for g, n in own])
        pick = draw(top_log_p[:, :candidates], how.temperature, how.top_p, noise)[:, None]
    # where a row is all masks, all have the same chances, and rounding errors would choose
    tie = 1e-4 * torch.cat([torch.rand(n, generator=g, dtype=torch.float64) for g, n in own])
    entropy = -tie
    if how.order == "entropy" or how.entropy_bound is not None:
        entropy += torch.special.entr(log_p.exp()).sum(1).cpu()
    drawn, log_drawn = (x.gather(1, pick)[:, 0] for x in (top_ids, top_log_p))
    return Guess(where, (row, column), top_ids, top_log_p.exp(), drawn, log_drawn.exp(), entropy, tie)


def draw(log_p, temperature, top_p, noise):
    """(M,) int64: which of K candidates, likeliest first, is drawn, of log_p and Gumbel `noise` (M, K).
    Temperature first, then top-p; the candidate that crosses top_p stays."""
    scaled = log_p.double() / temperature
    p = scaled.softmax(1)
    return (scaled.masked_fill(p.cumsum(1) - p >= top_p, -torch.inf) + noise).argmax(1)


def gumbel(shape, generator):
    """Standard Gumbel noise, in float64: float32 cuts off its upper tail, which lowers the temperature (Zheng
    et al., 2409.02908)."""
    u = torch.rand(shape, generator=generator, dtype=torch.float64).clamp(min=1e-300)
    return -(-u.log()).log()


def penalise(logits, row, tokens, penalty):
    """logits (M, n_text) of positions in rows `row` (M,) of tokens (B, T), smaller by the factor `penalty`
    for tokens that the row has (Keskar et al., 1909.05858, sec. 4.1)."""
    if penalty == 1:
        return logits
    seen = torch.zeros(len(tokens), logits.shape[1] + SPECIALS, dtype=torch.bool).scatter_(1, tokens, True)
    smaller = torch.where(logits > 0, logits / penalty, logits * penalty)
    return torch.where(seen[row, :-SPECIALS].to(logits.device), smaller, logits)


def choose(canvas, rows, guess, taken):
    """(M,) bool: the positions decided in this step, those that `order` puts first: the largest margin p1 -
    p2 (Kim et al., 2502.06768), the highest p(drawn token), the lowest entropy, or any. As many as the
    schedule says, and one for each `taken` back; beyond that, all whose drawn token is likelier than
    `threshold`, and as many as keep the summed entropy, less the largest, within `entropy_bound` (Ben-Hamu et
    al., 2505.24857)."""
    how, where = canvas.how, guess.where
    score = {"margin": guess.chances[:, 0] - guess.chances[:, 1] + guess.tie,
             "confidence": guess.p_drawn + guess.tie, "entropy": -guess.entropy, "random": guess.tie}
    score = spread(where, score[how.order], -torch.inf)
    count = (where.sum(1) + taken[rows].sum(1) - canvas.left_after(rows)).clamp(min=1)
    sure = torch.zeros_like(where)
    if how.threshold is not None:
        sure[where] = guess.p_drawn > how.threshold
    if how.entropy_bound is not None:
        ascending, index = spread(where, guess.entropy, torch.inf).sort(1)
        within = (ascending.cumsum(1) - ascending <= how.entropy_bound) & ascending.isfinite()
        sure |= within.gather(1, index.argsort(1))
    # the sure ones first: no score is near 100
    return (ranks(score + 100 * sure) < count.maximum(sure.sum(1))[:, None])[where]


def take_back(canvas, rows):
    """(B, T) bool: decided tokens masked again in exchange for as many others: about the share `remask` of
    each block, in proportion to 1 - confidence (after ReMDM, Wang et al., 2503.00307), by Gumbel-top-k."""
    taken, how = torch.zeros_like(canvas.given), canvas.how
    if not how.remask or canvas.config.causal:
        return taken
    decided = canvas.current & ~canvas.masked
    for b, left in zip(rows.tolist(), canvas.left_after(rows)):
        generator, here = canvas.generators[b], decided[b]
        count = (how.remask * here.sum() + torch.rand((), generator=generator)).long().minimum(left)
        if count:
            unsure = 1 - canvas.confidence[b, here].double()
            doubt = unsure.clamp(min=1e-9).log() + gumbel(unsure.shape, generator)
            taken[b, here] = ranks(doubt) < count
    return taken


def commit(canvas, guess, chosen, taken, number):
    """Write a step's tokens into the canvas, and tell what happened."""
    looked = guess.places
    draft, revealed = canvas.tokens.clone(), torch.zeros_like(canvas.given)
    canvas.tokens[taken] = canvas.config.mask_id
    draft[looked], canvas.confidence[looked] = guess.ids[:, 0], guess.chances[:, 0]
    revealed[looked] = chosen
    canvas.tokens[revealed], canvas.confidence[revealed] = guess.drawn[chosen], guess.p_drawn[chosen]
    ids, p = guess.ids[:, :ALTERNATIVES], guess.chances[:, :ALTERNATIVES]
    choices, chances = (x.new_zeros(*draft.shape, x.shape[1]) for x in (ids, p))
    choices[looked], chances[looked] = ids, p
    return Step(number, canvas.calls, canvas.tokens.clone(), revealed, taken, draft,
                canvas.confidence.clone(), choices, chances)


def spread(where, values, empty):
    """(A, W) float64: values (M,) at the places of where (A, W) bool, `empty` elsewhere."""
    return torch.full(where.shape, empty, dtype=torch.float64).masked_scatter(where, values.double())


def ranks(score):
    """Each entry's place in its row, 0 for the highest; ties go to the left."""
    return score.argsort(descending=True, stable=True).argsort()


# ---- sizes

def count_parameters(config):
    """Parameters by component, and `total`. The embedding, the output layer as well, counts once."""
    d, h, n = config.n_embd, config.mlp_width, config.n_layer
    parts = dict(embedding=config.vocab_size * d, attention=n * 4 * d * d, mlp=n * 3 * d * h,
                 convolution=n * config.conv * d, norms=(2 * n + 1) * d)
    return dict(parts, total=sum(parts.values()))


def training_flops(config, tokens, predicted, length):
    """Floating-point operations to train on `tokens` tokens in rows of `length`, of which `predicted` are to
    be predicted: 6 per token and matrix parameter, and attention's 12·layers·width·length per token (PaLM,
    2204.02311, app. B); of the output layer, and of the last block behind its attention, only for these. What
    checkpointing recomputes does not count."""
    parts, n, d = count_parameters(config), config.n_layer, config.n_embd
    attention = 12 * n * d * length // (2 if config.causal else 1)
    inside, last = parts["total"] - parts["embedding"] - parts["norms"], d * d + parts["mlp"] // n
    return tokens * (6 * (inside - last) + attention) + predicted * 6 * (last + config.n_text * d)


def layer_bytes(config, size, fused):
    """Bytes per token that backward keeps of one layer, in values of `size` bytes: in all, and of what is
    behind its attention."""
    d = config.n_embd
    # a norm's input; not fused, also what it gives before its weight
    norm = 4 * d * (1 if fused else 2)
    # the input of gate_up; gate and up, silu(gate), the product
    behind = norm + size * (d + 4 * config.mlp_width)
    if config.dropout:  # its masks: a byte for each value, or of the values' own type
        behind += 2 * d * (1 if fused else size)
    # the input of qkv; qkv, q and k normed and turned, what attention gives
    layer = behind + norm + size * (1 + 3 + 2 + 1) * d
    if size == 2:  # q and k in float32 for their norm
        layer += 8 * d
    if config.conv:  # its input, padded
        layer += 4 * d
    return layer, behind


def estimate_memory(config, batch_size, bytes_per_value=2, checkpointing=False, ema=False, fused=True,
                    masked=0.5, teacher=None):
    """Peak memory in GB (1e9 bytes) of training with AdamW on `batch_size` rows of block_size tokens, a share
    `masked` of them hidden, and of sampling one row; `fused`: as on a GPU, not on a CPU.

    Counts tensors: float32 weights, gradients and two moments, autocast's 16-bit copies, what backward needs
    of each layer, and the larger of its two summits. fits_8gb_gpu leaves some hundred MB for the program and
    what an allocator leaves unused.
    """
    d, tokens, total = config.n_embd, batch_size * config.block_size, count_parameters(config)["total"]
    predicted = tokens if config.causal else int(tokens * masked)
    layer, behind = layer_bytes(config, bytes_per_value, fused)
    states = total * (16 + (4 if ema else 0) + (2 if bytes_per_value == 2 else 0))
    # of the last layer what is read of it
    layers = tokens * config.n_layer * layer - (tokens - predicted) * behind
    # a layer's turn: gradients of gate and up
    turn = tokens * 2 * bytes_per_value * config.mlp_width
    if checkpointing:  # each layer's input, and in its turn the layer made anew
        layers = tokens * config.n_layer * 4 * d
        turn += tokens * layer
    # log p, its gradients and the logits'; the last norm's input, inside and output
    logits = predicted * 12 * (config.n_text + d)
    if teacher:  # its weights, its predictions, and their product with log p
        states += 4 * count_parameters(teacher)["total"]
        logits += predicted * 8 * config.n_text
    if fused:  # cuBLAS's workspaces, one in each direction
        states += 2 * 2 ** 25
    # behind the layers' turns comes the embedding's gradient
    training = states + layers + max(logits, turn + 4 * config.vocab_size * d)
    inference = total * 4 + config.block_size * (layer + 12 * config.n_text)
    return dict(training_gb=training / 1e9, inference_gb=inference / 1e9, fits_8gb_gpu=training < 7.2e9)


def pick_device(name="auto", local=0):
    """The device called `name`; "auto" or "": GPU number `local`, else Apple's, else the CPU. ValueError
    where it is not to be had."""
    if name in ("auto", ""):
        name = "mps" if torch.backends.mps.is_available() else "cpu"
        if torch.cuda.is_available():
            name = f"cuda:{local % torch.cuda.device_count()}"
    try:
        torch.zeros(1, device=name).item()
    except (RuntimeError, AssertionError):
        raise ValueError(f"device {name!r} is not to be had here; --device=cpu always is") from None
    return torch.device(name)


def peak_memory_gb(where):
    """Peak memory so far in GB (1e9 bytes), allocated on the GPU, or this process's; None on Windows."""
    if where.type == "cuda":
        return torch.cuda.max_memory_allocated(where) / 1e9
    try:
        import resource
    except ImportError:
        return None
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used * (1 if sys.platform == "darwin" else 1024) / 1e9


def set_up_cpu(config):
    """Threads and memory for work on a CPU; call it before tensors are made.

    Under 10M parameters one thread, unless OMP_NUM_THREADS is given: two are a third faster where nothing
    else runs, and many times slower where something does. Freed memory stays with the process: given
    back, and fetched page by page at every layer, it costs a full-size model a third of its training time.
    """
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if hasattr(libc, "mallopt"):  # not in musl
        libc.mallopt(-1, -1)  # M_TRIM_THRESHOLD: never shrink the heap
        libc.mallopt(-4, 0)  # M_MMAP_MAX: all from the heap, whatever its size
        libc.mallopt(-8, 1)  # M_ARENA_MAX: one heap for all threads, so that a server does not grow
    if count_parameters(config)["total"] < 10e6 and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)


# ---- checkpoints

def load_checkpoint(path):
    """What a .pt file or a folder of `sample.py --save_model` holds. FileNotFoundError and ValueError say
    what is wrong."""
    if not os.path.exists(path):
        earlier = list(Path(path).parent.glob("previous*/best.pt"))
        also = f"; there is {max(earlier, key=os.path.getmtime)} of an earlier run" if earlier else ""
        raise FileNotFoundError(f"no checkpoint at {path}: train one first with python train.py{also}")
    if os.path.exists(f"{path}/best.pt"):
        raise ValueError(f"{path} is the folder of a run: its model is {path}/best.pt")
    try:
        if os.path.isdir(path):
            from safetensors.torch import load_file
            checkpoint, tokenizer = (json.loads(Path(path, name).read_text("utf-8"))
                                     for name in ("config.json", "tokenizer.json"))
            checkpoint |= {"tokenizer": tokenizer, "model": load_file(f"{path}/model.safetensors")}
        else:
            with zipfile.ZipFile(path) as file:
                if part := file.testzip():  # checksums, at which torch does not look
                    raise zipfile.BadZipFile(part)
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file makes torch raise many kinds
        raise ValueError(f"{path} is torn ({type(error).__name__}), holds more than tensors and plain "
                         "values, or is not a checkpoint of this program") from error
    if not (isinstance(checkpoint, dict) and {"model", "config", "tokenizer"} <= checkpoint.keys()
            and isinstance(checkpoint["tokenizer"], dict)
            and isinstance(checkpoint.get("training", {}), dict)):
        raise ValueError(f"{path} is not a checkpoint of this program: it lacks the model, its config, the "
                         "tokenizer or how it was trained")
    return checkpoint


def load_model(path):
    """(model in eval mode on the CPU, the checkpoint). Errors as in load_checkpoint."""
    checkpoint = load_checkpoint(path)
    try:
        model = DiffusionModel(Config(**checkpoint["config"]))
        model.load_state_dict(checkpoint["model"])
    except (TypeError, RuntimeError) as error:
        raise ValueError(f"{path} does not fit this version's model: {error}") from error
    return model.eval(), checkpoint


def checkpoint_of(model, tokenizer, **more):
    """What every checkpoint holds for sampling, and `more`."""
    return dict(model=model.state_dict(), config=asdict(model.config), tokenizer=tokenizer, **more)
