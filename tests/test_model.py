"""The network, the objective against exact enumeration, the sizes and the checkpoints."""
import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import model as m
import train
from model import Config, DiffusionModel


def tiny(causal=False, **changes):
    torch.manual_seed(0)
    net = DiffusionModel(Config(**({"vocab_size": 8, "block_size": 16, "n_layer": 2, "n_head": 2, "n_embd": 16, "causal": causal} | changes)))
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(8) if p.ndim == 2 else None                       # far from uniform, so that what is compared differs
    return net.eval()


def exact_bound(net, row):
    """-log p's bound by the definition: the mean over k = 1..L of L/k times the mean over all masks of size k of the summed -log p."""
    length, total = len(row), 0.0
    for k in range(1, length + 1):
        losses = []
        for hidden in itertools.combinations(range(length), k):
            masked = torch.zeros(1, length, dtype=torch.bool)
            masked[0, list(hidden)] = True
            logp = net(row[None].masked_fill(masked, net.config.mask_id)).log_softmax(-1)[0]
            losses.append(-sum(logp[i, row[i]].item() for i in hidden))
        total += length / k * sum(losses) / len(losses)
    return total / length


@pytest.fixture(params=[{}, {"conv": 5}], ids=["plain", "conv"])
def parts(request):
    """What a network may have beyond the plain one."""
    return request.param


# ---- the network

def test_rms_norm_is_float32_inside_and_keeps_the_dtype():
    norm = m.RMSNorm(4)
    x = torch.tensor([[1000.0, -2000.0, 3000.0, 60000.0]])
    expected = x / x.pow(2).mean().sqrt()
    for dtype in (torch.float32, torch.float16, torch.bfloat16):     # 60000² overflows float16
        y = norm(x.to(dtype))
        assert y.dtype == dtype
        torch.testing.assert_close(y.float(), expected, rtol=1e-2, atol=1e-3)
    assert not any("bias" in name for name, _ in tiny().named_parameters())


def test_rotary_depends_on_relative_position_alone_and_refuses_longer():
    rotary = m.Rotary(8, 32, 10000.0)
    q, k = torch.randn(2, 8)
    turned_q, turned_k = rotary(q.expand(32, 8)), rotary(k.expand(32, 8))
    torch.testing.assert_close(turned_q[5] @ turned_k[2], turned_q[25] @ turned_k[22], rtol=1e-4, atol=1e-5)
    assert rotary(q.double().expand(7, 8)).dtype == torch.float64
    assert len(rotary(q.expand(32, 8))) == 32
    with pytest.raises(ValueError, match="33 tokens exceeds .* 32"):
        rotary(q.expand(33, 8))


@pytest.mark.parametrize("d, width", [(768, 2048), (192, 512), (100, 320), (64, 192)])
def test_swiglu_width(d, width):
    assert Config(10, n_embd=d, n_head=1).mlp_width == width == math.ceil(8 * d / 3 / 64) * 64


def test_causal_sees_only_the_past_and_diffusion_sees_all(parts):
    row = torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2]])
    for causal in (True, False):
        net = tiny(causal, **parts)
        before = net(row)
        for j in range(8):
            other = row.clone()
            other[0, j] = (row[0, j] + 1) % 5
            changed = (net(other) - before).abs().amax(-1)[0] > 1e-7
            assert changed.tolist() == ([i > j for i in range(8)] if causal else [True] * 8)


def test_padding_changes_nothing(parts):
    row = torch.tensor([[0, 1, 5, 3, 4]])                            # 5 is [MASK]
    for causal in (True, False):
        net = tiny(causal, **parts)
        padded = torch.cat((row, torch.full((1, 6), net.config.pad_id)), dim=1)
        torch.testing.assert_close(net(padded)[:, :5], net(row), rtol=1e-4, atol=1e-5)


def test_the_convolution_by_hand():
    x = torch.tensor([[[1.0, 1.0], [10.0, 2.0], [100.0, 3.0]]])
    for causal, whole, cut in ((False, [[43.0, 1.0], [431.0, 12.0], [310.0, 23.0]], [31.0, 12.0]),
                               (True, [[5.0, 1.0], [52.0, 2.0], [521.0, 13.0]], [52.0, 2.0])):
        conv = m.ShortConvolution(3, 2, causal)
        conv.weight.data = torch.tensor([[1.0, 10.0], [2.0, 0.0], [4.0, 0.0]])      # from left to right
        assert conv(x, None).tolist() == [whole]
        assert conv(x, torch.tensor([[True, True, False]]))[0, 1].tolist() == cut


def test_words_with_the_same_neighbours_begin_with_like_embeddings():
    """Of twelve words, the first two stand in the same places, as do the next two; the others follow at random."""
    rng = torch.Generator().manual_seed(0)
    pick = torch.randint(0, 2, (600, 2), generator=rng)
    text = torch.stack((4 + torch.arange(600) % 3, pick[:, 0], 7 + torch.arange(600) % 3, 2 + pick[:, 1]), 1).flatten()
    config = Config(15, n_embd=8, n_head=1)
    table = m.cooccurrence_embedding(text, config, seed=1)
    alike = torch.nn.functional.cosine_similarity(table[:10, None], table[None, :10], dim=-1)
    assert alike[0, 1] > 0.99 and alike[2, 3] > 0.99 and alike[0, 2] < 0.9
    torch.testing.assert_close(table[:10].norm(dim=1), torch.full((10,), 0.02 * 8 ** 0.5))
    assert table[10:].std().item() == pytest.approx(0.02, rel=0.5) and torch.equal(table, m.cooccurrence_embedding(text, config, seed=1))


def test_logits_where_asked_are_those_of_the_whole_and_cover_text_alone(parts):
    net, row = tiny(**parts), torch.tensor([[0, 5, 2, 5], [5, 1, 1, 3]])
    where = row == 5
    assert net(row).shape == (2, 4, 5)
    torch.testing.assert_close(net(row, where), net(row)[where])


def test_residual_projections_start_smaller():
    net = DiffusionModel(Config(500, n_layer=8, n_head=4, n_embd=128))
    for name, p in net.named_parameters():
        if p.ndim == 2:
            assert p.std().item() == pytest.approx(0.02 / 4 if "_out" in name else 0.02, rel=0.05), name


def test_gradient_checkpointing_gives_the_same_gradients(parts):
    row = torch.randint(0, 5, (2, 8))
    grads = []
    for checkpointing in (False, True):
        net = tiny(**parts).train()
        net.checkpointing = checkpointing
        net(row).square().sum().backward()
        grads.append([p.grad for p in net.parameters()])
    for a, b in zip(*grads):
        torch.testing.assert_close(a, b)


def test_dropout_acts_in_training_only():
    net, row = tiny(dropout=0.5), torch.tensor([[0, 1, 2, 3]])
    torch.testing.assert_close(net(row), net(row))
    net.train()
    assert not torch.equal(net(row), net(row))


# ---- the objective

def test_uniform_logits_cost_log_v_per_token():
    net = tiny()
    with torch.no_grad():
        net.final_norm.weight.zero_()
    row = torch.randint(0, 5, (6, 16))
    masks = m.draw_masks(row, net.config, generator=torch.Generator().manual_seed(1))
    assert m.weighted_loss(net, row, masks, net.config).item() / row.numel() == pytest.approx(math.log(5), rel=1e-5)
    assert m.held_out_bound(net, [row[0]], points=7).per_sequence.item() == pytest.approx(16 * math.log(5), rel=1e-5)


def test_monte_carlo_loss_agrees_with_exact_enumeration(parts):
    net, row = tiny(**parts), torch.tensor([0, 1, 4, 2, 2])
    exact = exact_bound(net, row)
    generator, estimates = torch.Generator().manual_seed(0), []
    with torch.no_grad():
        for _ in range(400):
            rows = row.expand(10, -1)
            estimates.append(m.weighted_loss(net, rows, m.draw_masks(rows, net.config, generator=generator), net.config).item() / 10)
    mean, error = torch.tensor(estimates).mean().item(), torch.tensor(estimates).std().item() / 20
    assert abs(mean - exact) < 4 * error and error < 0.02 * exact
    assert m.held_out_bound(net, [row], points=3000).per_sequence.item() == pytest.approx(exact, rel=0.02)


def test_causal_loss_is_the_exact_likelihood(parts):
    net, row = tiny(causal=True, **parts), torch.tensor([[0, 1, 4, 2, 2]])
    exact = -net(row).log_softmax(-1)[0].gather(1, row.T).sum().item()
    assert m.weighted_loss(net, row, m.draw_masks(row, net.config), net.config).item() == pytest.approx(exact, rel=1e-5)
    assert m.held_out_bound(net, [row[0]]).per_sequence.item() == pytest.approx(exact, rel=1e-5)


def test_a_teachers_half_of_what_is_learnt(parts):
    """The loss by hand; a teacher of shorter context reads its pieces as if they were rows; the padding of a short row is nothing."""
    net, teacher = tiny(**parts), tiny(vocab_size=8, block_size=5, n_layer=1, **parts)
    tokens = torch.randint(0, 5, (3, 12), generator=torch.Generator().manual_seed(2))
    tokens[2, 4:] = net.config.pad_id
    masks = m.draw_masks(tokens, net.config, generator=torch.Generator().manual_seed(1))
    noisy = tokens.masked_fill(masks.masked, net.config.mask_id)
    expected, log_p = 0.0, net(noisy).log_softmax(-1)
    for left in (0, 5, 10):
        p = teacher(noisy[:, left:left + 5]).softmax(-1)
        for b, i in masks.masked[:, left:left + 5].nonzero().tolist():
            soft = (p[b, i] + torch.nn.functional.one_hot(tokens[b, left + i], 5)) / 2
            expected -= masks.weight[b] * (soft * log_p[b, left + i]).sum()
    loss = m.weighted_loss(net, tokens, masks, net.config, teacher=teacher)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    loss.backward()
    assert all(p.grad is None for p in teacher.parameters()) and net.embedding.weight.grad is not None


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 200), st.floats(0, 0.9), st.floats(0.02, 1), st.floats(0, 1), st.integers(0, 2**31))
def test_masks_lie_in_the_window_and_the_replayed_share_in_all_of_it(length, low, span, replay, seed):
    high = min(1.0, low + span)
    config = Config(20, block_size=256, n_head=1, n_embd=8)
    tokens = torch.randint(0, 17, (12, length))
    tokens[::3, -1:] = config.pad_id
    tokens[1::3, length // 2] = config.sep_id
    masks, even = (m.draw_masks(tokens, config, (low, high), replay, torch.Generator().manual_seed(seed), same) for same in (False, True))
    text = tokens < config.n_text
    assert (even.masked == masks.masked).all() and len(even.weight.unique()) == 1
    assert float((even.weight * even.masked.sum(1)).sum()) == pytest.approx(int(text.sum()))      # in all as much as the bound's
    k, total = masks.masked.sum(1), text.sum(1)
    assert not (masks.masked & ~text).any()                          # specials are never hidden
    assert (k >= 1)[total > 0].all() and (k <= total).all()
    torch.testing.assert_close(masks.weight[total > 0], (total / k)[total > 0])
    inside = [math.ceil(low * n - 1e-5) <= x <= math.floor(high * n + 1e-5) or x in (1, math.ceil(low * n - 1e-5)) for x, n in zip(k.tolist(), total.tolist())]
    assert sum(not ok for ok in inside) <= math.ceil(replay * 12)    # no more strays than rows replayed


def test_mask_counts_are_uniform_and_stratified():
    config, tokens = Config(20, n_head=1, n_embd=8), torch.zeros(10, 10, dtype=torch.long)
    for seed in range(5):                                            # ten rows, ten possible counts: each exactly once
        assert sorted(m.draw_masks(tokens, config, generator=torch.Generator().manual_seed(seed)).masked.sum(1).tolist()) == list(range(1, 11))


def test_the_bound_is_repeatable_and_leaves_the_random_state_alone():
    net, rows = tiny(), [torch.randint(0, 5, (n,)) for n in (3, 16, 9)]
    state = torch.get_rng_state()
    a, b = m.held_out_bound(net, rows, 8, seed=3), m.held_out_bound(net, rows, 8, seed=3, batch_tokens=20)
    torch.testing.assert_close(a.per_sequence, b.per_sequence, rtol=1e-5, atol=1e-6)
    assert torch.equal(torch.get_rng_state(), state) and not torch.equal(a.nats, m.held_out_bound(net, rows, 8, seed=4).nats)


def test_nothing_asks_a_device_without_float64_for_it(monkeypatch):
    """Apple's MPS, imitated: what the network returns refuses float64 until it is on the CPU."""
    class OnMps(torch.Tensor):
        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            if func is torch.Tensor.double or any(x is torch.float64 for x in (*args, *(kwargs or {}).values())):
                raise TypeError("MPS has no float64")
            return args[0].as_subclass(torch.Tensor) if func is torch.Tensor.cpu else super().__torch_function__(func, types, args, kwargs or {})
    net, forward = tiny(), DiffusionModel.forward
    monkeypatch.setattr(DiffusionModel, "forward", lambda *args: forward(*args).as_subclass(OnMps))
    for how in (m.Sampling(steps=4, order="entropy", entropy_bound=1.0, remask=0.1), m.Sampling(steps=4, repetition_penalty=1.1)):
        *_, last = m.denoise(net, torch.full((1, 16), 5), [0], how)
        assert (last.tokens < 5).all()
    assert m.held_out_bound(net, [torch.zeros(9, dtype=torch.long)], 4).per_sequence.isfinite().all()


def test_a_model_learns_a_pattern():
    """A cyclic text is learnt in seconds, and a bit of it masked is restored."""
    torch.manual_seed(0)
    net = DiffusionModel(Config(9, block_size=24, n_layer=2, n_head=2, n_embd=32)).train()
    optimizer, generator = torch.optim.AdamW(net.parameters(), lr=3e-3), torch.Generator().manual_seed(0)
    for _ in range(150):
        rows = (torch.arange(24) + torch.randint(0, 6, (16, 1), generator=generator)) % 6
        loss = m.weighted_loss(net, rows, m.draw_masks(rows, net.config, generator=generator), net.config) / rows.numel()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    row = torch.arange(24) % 6
    assert m.held_out_bound(net, [row], 16).per_sequence.item() / 24 < 0.4 < math.log(6)
    hidden = row.clone()
    hidden[5:15] = net.config.mask_id
    *_, last = m.denoise(net, hidden[None], [0], m.Sampling(steps=10, temperature=0))
    assert torch.equal(last.tokens[0], row)


# ---- sizes

@pytest.mark.parametrize("shape", [(1003, 64, 2, 2, 32), (7600, 512, 12, 12, 768), (259, 128, 3, 4, 104)])
def test_parameter_counts_equal_the_network(shape):
    config = Config(*shape)
    with torch.device("meta"):
        net = DiffusionModel(config)
    counted = m.count_parameters(config)
    assert counted["total"] == sum(p.numel() for p in net.parameters()) == sum(v for k, v in counted.items() if k != "total")
    assert counted["embedding"] == net.embedding.weight.numel() and counted["norms"] == sum(p.numel() for p in net.parameters() if p.ndim == 1)


def test_memory_estimate_orders_as_memory_does():
    big = Config(7600, 512, 12, 12, 768)
    base = m.estimate_memory(big, 8)
    assert base["fits_8gb_gpu"] and base["training_gb"] < 7 and base["inference_gb"] < 3
    assert m.estimate_memory(big, 8, checkpointing=True)["training_gb"] < base["training_gb"] < m.estimate_memory(big, 16)["training_gb"]
    assert not m.estimate_memory(big, 64)["fits_8gb_gpu"]


@pytest.mark.parametrize("more", [{}, {"checkpointing": True}, {"causal": True}, {"conv": 0}, {"dropout": 0.1}, {"teacher": True}], ids=str)
def test_memory_estimate_is_what_torch_counts(more):
    """Of two steps of two micro-batches each, in float32 on a CPU, every allocation between."""
    checkpointing = more.get("checkpointing", False)
    config = Config(2000, 128, 2, 2, 128, **{"conv": 5} | {key: value for key, value in more.items() if key not in ("checkpointing", "teacher")})
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        net, teacher = DiffusionModel(config).train(), DiffusionModel(config).eval() if "teacher" in more else None
        net.checkpointing, optimizer = checkpointing, torch.optim.AdamW(net.parameters(), fused=True)
        for row in torch.randint(0, config.n_text, (4, 8, 128)).split([2, 2]):
            for rows in row:
                m.weighted_loss(net, rows, m.draw_masks(rows, config), config, teacher=teacher).backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    peak = max(itertools.accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())))
    estimate = m.estimate_memory(config, 8, bytes_per_value=4, checkpointing=checkpointing, fused=False, teacher=teacher and config)
    assert estimate["training_gb"] == pytest.approx(peak / 1e9, rel=0.1)


# ---- checkpoints

def test_checkpoints_round_trip_and_are_replaced_whole(tmp_path):
    net, path = tiny(), str(tmp_path / "a.pt")
    train.save(path, m.checkpoint_of(net, {"tokens": []}, training={"step": 3}))
    again, checkpoint = m.load_model(path)
    assert checkpoint["training"] == {"step": 3} and again.config == net.config
    for a, b in zip(net.parameters(), again.parameters()):
        assert torch.equal(a, b)
    before = (tmp_path / "a.pt").read_bytes()
    with pytest.raises(AttributeError):
        train.save(path, {"model": lambda: 0})                # cannot be written: the old one stays
    assert (tmp_path / "a.pt").read_bytes() == before


@pytest.mark.parametrize("damage", [b"", b"not a checkpoint", "half", "foreign", "hostile"])
def test_torn_and_foreign_files_are_named(tmp_path, damage):
    path = tmp_path / "a.pt"
    torch.save(m.checkpoint_of(tiny(), {"tokens": []}), path)
    if damage == "half":
        path.write_bytes(path.read_bytes()[:-5000])
    elif damage == "foreign":
        torch.save({"weights": 1}, path)
    elif damage == "hostile":
        torch.save({"model": print}, path)
    else:
        path.write_bytes(damage)
    with pytest.raises(ValueError, match="a.pt .*is not a checkpoint"):
        m.load_model(str(path))


def test_a_missing_checkpoint_is_named_and_where_there_is_another(tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint at nowhere.pt"):
        m.load_model("nowhere.pt")
    earlier = tmp_path / "previous2/best.pt"
    earlier.parent.mkdir()
    earlier.touch()
    with pytest.raises(FileNotFoundError, match=f"there is {earlier}"):
        m.load_model(str(tmp_path / "best.pt"))
    with pytest.raises(ValueError, match=f"its model is {earlier}"):
        m.load_model(str(earlier.parent))
