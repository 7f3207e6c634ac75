"""What a checkpoint is worth: evaluation.json for programs, evaluation.html for people, in out_dir.

    python evaluate.py
    python evaluate.py --split=val --left_to_right --control=another_book.txt
    python evaluate.py --compare=out_causal,out_no_curriculum  # side by side; a causal one judges samples too
    python evaluate.py --text1="It was dark." --text2=chapter.txt  # only compare two texts

One seed on one machine gives the same numbers, but for times and memory. What cannot be measured is null,
with the reason in `notes`.
"""
import base64
import bz2
import io
import json
import lzma
import math
import re
from collections import Counter, namedtuple
from functools import partial
from itertools import chain, cycle, groupby, pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from rich.progress import BarColumn, Progress, TimeElapsedColumn

import sample
from configurator import configure, fail, prepared, read_stream, run_script, write_json, written
from model import Sampling, count_parameters, held_out_bound, pad, parts, peak_memory_gb, spread
from prepare import clean, is_english, read_book, read_prepared, words_of, yules_k

out_dir = "out"  # where the checkpoints are and the evaluation goes
checkpoint = ""  # a checkpoint's path; empty: best.pt in out_dir
book = ""  # the prepared book; empty: the checkpoint's, or the last one prepared
split = "test"  # held-out text for likelihood and prompts {test, val}
device = ""  # cpu, cuda, mps; empty: a GPU if there is one
seed = 0  # of every random draw [0, 2000000000]
points = 0  # masks of each held-out sequence, in tens; 0: enough for 2,000 in all [0, ...)
left_to_right = False  # also exact likelihoods, a call per token: left to right, and in the sampler's order
compare = ""  # other out_dirs or checkpoints to put beside this one, with commas
control = ""  # another book, whose style should not pass for this one's
prompts = ""  # a file of prompts, one a line; empty: openings of held-out sentences
n_prompts = 8  # how many prompts [1, ...)
n_seeds = 3  # texts per prompt [1, ...)
max_tokens = 100  # tokens per text, less where the model's context is short [8, ...)
sampling = Sampling()  # as in sample.py: --steps=50, --block_size=16
text1 = ""  # with text2: only print how alike two texts (or files) are
text2 = ""  # the other text

LN2 = math.log(2)
NGRAM_ORDER = 4  # on one book a fifth token gains nothing
RATES = (0.05, 0.1, 0.15, 0.2, 0.5, 0.9)  # mask rates of the masked perplexity
MASK_DRAWS = 4  # masks per sequence and rate
COPIED = 8  # tokens; a run of so many from the training text is a copy
REPLICATES = 200  # bootstrap samples of the book's style
RUN = 8  # neighbouring passages in them: a scene


# ---- an n-gram model

class NGram:
    """Interpolated Kneser-Ney (Chen and Goodman 1999, sec. 2.7) of ids 0 .. vocab-1, down to the uniform
    distribution, with discounts n1 / (n1 + 2·n2) (Ney et al. 1994). Lower orders, which predict a sequence's
    first tokens, count distinct left neighbours, its beginning being one. (NLTK's takes 24 ms a token.)"""

    def __init__(self, order, vocab, sequences):
        self.vocab, self.tables = vocab, []  # discount, counts, by context their sum and number
        for k in range(1, order + 1):
            grams = [gram for ids in sequences for gram in ngrams([None, *ids], k + 1)]
            counts = Counter(gram[1:] for gram in (grams if k == order else set(grams)))
            seen = Counter(counts.values())
            discount = seen[1] / (seen[1] + 2 * seen[2]) if seen[1] else 0.5  # of none, any will do
            total, distinct = (Counter(gram[:-1] for gram in grams) for grams in (counts.elements(), counts))
            self.tables.append((discount, counts, total, distinct))

    def nats(self, tokens):
        """-log p of each token given those before it, float64."""
        result = []
        for i, token in enumerate(tokens):
            p = 1 / self.vocab
            for k, (discount, counts, total, distinct) in enumerate(self.tables[:i + 1]):
                context = tuple(tokens[i - k:i])
                if context not in total:  # nor any longer one
                    break
                seen = max(counts[*context, token] - discount, 0)
                p = (seen + discount * distinct[context] * p) / total[context]
            result.append(-math.log(p))
        return np.array(result)


# ---- measures of a text

# what stands between spaces; a character where there are none
PIECE = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\s\u3040-\u30ff\u3400-\u9fff]+")


def passages_of(text, length):
    """Consecutive passages of `length` words, or a few more where a piece has several; no rest."""
    passages, begin, count = [], 0, 0
    for piece in PIECE.finditer(text):
        count += len(words_of(piece[0]))
        if count >= length:
            passages.append(text[begin:piece.end()].strip())
            begin, count = piece.end(), 0
    return passages


def ngrams(items, n):
    return [*zip(*(items[i:] for i in range(n)))]


def mean(values):
    """None for none."""
    return np.mean(values) if len(values) else None


def type_token_ratio(words):
    return len(set(words)) / len(words) if words else None


def mattr(words, window=50):
    """Moving-average type-token ratio (Covington and McFall 2010)."""
    return mean([*map(type_token_ratio, ngrams(words, min(window, len(words))))])


def mtld(words):
    """Words per stretch in which the type-token ratio falls to .72, mean of both directions (McCarthy and
    Jarvis 2010)."""
    def one_way(words):
        factors, seen, count = 0.0, set(), 0
        for word in words:
            seen.add(word)
            count += 1
            if len(seen) / count <= 0.72:
                factors, seen, count = factors + 1, set(), 0
        if count:
            factors += (1 - len(seen) / count) / (1 - 0.72)
        return len(words) / factors if factors else math.inf
    return (one_way(words) + one_way(words[::-1])) / 2


def burrows_delta(first, second, spread):
    """Mean distance of frequencies (W,) in standard deviations `spread` (W,), over words that vary (Burrows
    2002; this form: Argamon 2008)."""
    varies = spread > 0
    return np.mean(np.abs(first - second)[varies] / spread[varies])


def jensen_shannon(p, q):
    """Distance of two vectors of counts, from 0 (proportional) to 1 (nothing in common, or none in one)."""
    from scipy.spatial.distance import jensenshannon
    return jensenshannon(p, q, base=2) if np.any(p) and np.any(q) else 1.0


def distinct_n(texts, n):
    """Distinct n-grams per n-gram of all texts, lists of words (Li et al., 1510.03055), or None."""
    return type_token_ratio([gram for words in texts for gram in ngrams(words, n)])


def repetition(texts, n=4):
    """Share of n-grams that their text has had before, or None."""
    grams = [ngrams(words, n) for words in texts]
    return 1 - sum(map(len, map(set, grams))) / sum(map(len, grams)) if any(grams) else None


def entropy(texts):
    """Of the distribution of all texts' words, in bits, or None."""
    from scipy.stats import entropy
    counts = [*Counter(chain(*texts)).values()]
    return entropy(counts, base=2) if counts else None


def self_bleu(texts):
    """Mean BLEU-4 of each text against the others (Zhu et al., 1802.01886), or None."""
    from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
    smooth = SmoothingFunction().method1  # where no n-gram is shared the shorter ones still count
    return mean([sentence_bleu(texts[:i] + texts[i + 1:], words, smoothing_function=smooth)
                 for i, words in enumerate(texts) if len(texts) > 1])


def as_characters(ids):
    """Token ids as a str, where `in` finds runs."""
    return "".join(map(chr, ids))


def match_lengths(ids, source):
    """How many tokens from each position of ids on stand in source, both `as_characters`."""
    lengths, end = [], 0
    for i in range(len(ids)):
        end = max(i, end)  # what matched from i-1 matches from i
        while end < len(ids) and ids[i:end + 1] in source:
            end += 1
        lengths.append(end - i)
    return lengths


def memorization(texts, source, decode):
    """What texts (lists of ids) copy from source (ids): the longest run, the share of tokens in runs of
    COPIED and more, and the share of n-grams that source lacks."""
    source = as_characters(source)
    runs = [(text, i, n) for text, ids in enumerate(texts)
            for i, n in enumerate(match_lengths(as_characters(ids), source))]
    text, begin, longest = max(runs, key=lambda run: run[2])
    copied = {(text, j) for text, i, n in runs if n >= COPIED for j in range(i, i + n)}
    novelty = {
        str(n): mean([run < n for text, i, run in runs if i + n <= len(texts[text])]) for n in range(2, 17)}
    return dict(
        longest_run_tokens=longest, longest_run_text=decode(texts[text][begin:begin + longest]),
        copied_share=len(copied) / len(runs), tokens=len(runs), novelty=novelty)


# ---- style

DISTANCE = "distance, 0–1", "↓"
STYLE = dict(  # label, unit, what is best: ↔ inside the book's own range, or ↓ low, a distance from the book
    sentence_length=("Sentence length, mean", "words", "↔"),
    sentence_spread=("Sentence length, standard deviation", "words", "↔"),
    sentence_profile=("Sentence lengths", *DISTANCE),
    type_token_ratio=("Type-token ratio", "distinct words per word", "↔"),
    mattr=("Moving-average type-token ratio", "distinct words per word, windows of 50", "↔"),
    mtld=("MTLD", "words per factor", "↔"),
    yules_k=("Yule's K", "repeated pairs per 10,000", "↔"),
    coverage=("Words that the rest of the book uses", "share of words", "↔"),
    punctuation=("Punctuation", "marks per word", "↔"),
    delta=("Burrows's Delta, top 150 words", "standard deviations", "↓"),
    character_profile=("Groups of three characters", *DISTANCE),
    # the rest know English alone
    flesch_kincaid=("Flesch-Kincaid", "school grade", "↔"),
    gunning_fog=("Gunning Fog", "school years", "↔"),
    function_words=("Function words", "share of words", "↔"),
    function_profile=("Choice of function words", *DISTANCE),
    tag_profile=("Order of parts of speech", *DISTANCE),
    chunk_profile=("Shapes of phrases", *DISTANCE))


def parsed(text):
    """(each sentence's part-of-speech tags, phrases as "NP DT JJ NN") from TextBlob's lexicon."""
    from textblob.en import parse
    sentences, phrases = [], []
    for sentence in parse(text).split():
        sentences.append([tag for _, tag, *_ in sentence])
        for _, tag, chunk, _ in sentence:
            if chunk.startswith("B-"):
                phrases.append(f"{chunk[2:]} {tag}")
            elif chunk.startswith("I-") and phrases:
                phrases[-1] += f" {tag}"
    return sentences, phrases


def traits(text, punkt, english):
    """(words, sentence lengths in words, {name: number}, {name: Counter}) of a passage."""
    text = " ".join(text.split())
    words = words_of(text)
    lengths = [n for part in punkt.tokenize(text) for sentence in re.split(r"(?<=[。！？])", part)
               if (n := len(words_of(sentence)))]
    marks = len(re.findall(r"[^\w\s]", text)) - len(re.findall(r"\W", "".join(words)))
    numbers = {"punctuation": marks / len(words)}
    profiles = dict(
        words=Counter(words), sentence_profile=Counter(str(n // 4) for n in lengths),
        character_profile=Counter(ngrams(text.lower(), 3)))
    if english:
        import textstat
        from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS
        tags, phrases = parsed(text)
        function_words = Counter(word for word in words if word in ENGLISH_STOP_WORDS)
        numbers |= dict(
            flesch_kincaid=textstat.flesch_kincaid_grade(text), gunning_fog=textstat.gunning_fog(text),
            function_words=function_words.total() / len(words))
        profiles |= dict(function_profile=function_words, chunk_profile=Counter(phrases),
                         tag_profile=Counter(chain(*map(pairwise, tags))))
    return words, lengths, numbers, profiles


class Passages:
    """The traits of texts, the first n of which are the book's; `rows` are indices of texts."""

    def __init__(self, texts, n, english):
        from nltk.tokenize.punkt import PunktSentenceTokenizer
        from sklearn.feature_extraction import DictVectorizer
        punkt = PunktSentenceTokenizer(" ".join(texts[:n]))
        self.words, self.lengths, self.numbers, profiles = zip(*(traits(t, punkt, english) for t in texts))
        self.tables = {
            name: DictVectorizer().fit_transform([p[name] for p in profiles]) for name in profiles[0]}
        self.n, self.book = n, self.sums(slice(n))
        self.top = np.argsort(-self.book["words"], kind="stable")[:150]

    def sums(self, rows):
        """{profile: counts} of these together."""
        return {name: table[rows].sum(0).A1 for name, table in self.tables.items()}

    def measure(self, rows):
        """{measure: value}, relative frequencies of the top words here and in the rest of the book."""
        words, lengths = ([x for i in rows for x in lists[i]] for lists in (self.words, self.lengths))
        here, rest = self.sums(rows), self.book
        if rows[0] < self.n:  # not compared with itself
            rest = {name: counts - here[name] for name, counts in rest.items()}
        values = dict(
            sentence_length=np.mean(lengths), sentence_spread=np.std(lengths), mattr=mattr(words),
            type_token_ratio=type_token_ratio(words), mtld=min(mtld(words), 1e6), yules_k=yules_k(words),
            coverage=here["words"][rest["words"] > 0].sum() / len(words))
        values |= {name: np.mean([self.numbers[i][name] for i in rows]) for name in self.numbers[0]}
        values |= {name: jensen_shannon(here[name], rest[name]) for name in here}
        return values, *(counts["words"][self.top] / counts["words"].sum() for counts in (here, rest))


def style(of_book, groups, english):
    """Are groups {name: K passages} inside the variation of the book's own passages, of the same length?

    Draws of K of these in runs of neighbours (a block bootstrap, Künsch 1989; without replacement, for what
    comes twice looks repetitive) show how each measure varies within the book; profiles and coverage are
    against its rest. `range` holds 95 % of the draws. `deviation` is in their standard deviations (upwards
    alone for a distance), `distance` its root mean square; 99 of 100 draws stay under `limit`.
    """
    n, k, size, rng = len(of_book), len(groups), len(groups["held_out"]), np.random.default_rng(seed)
    passages = Passages([*of_book, *chain(*groups.values())], n, english)
    others, runs = np.arange(n, n + k * size).reshape(k, size), np.arange(n // RUN * RUN).reshape(-1, RUN)
    draws = [(rng.permutation(runs).ravel()[:size] + rng.integers(n)) % n for _ in range(REPLICATES)]
    found = [passages.measure(rows) for rows in (*others, *draws)]
    varied = np.std([here for _, here, _ in found[k:]], axis=0)
    for values, here, rest in found:
        values["delta"] = burrows_delta(here, rest, varied)
    measures, deviations = {}, []
    for name, (_, unit, best) in STYLE.items():
        column = np.array([values.get(name, 0) for values, *_ in found])
        own = column[k:]
        if own.std() > 0:  # else it measures nothing
            z = (column - own.mean()) / own.std()
            z, ends = (z.clip(0), (0, 0.95)) if best == "↓" else (z, (0.025, 0.975))
            deviations.append(z)
            measures[name] = dict(unit=unit, range=np.quantile(own, ends).tolist()) | {
                group: dict(value=value, deviation=deviation)
                for group, value, deviation in zip(groups, column, z)}
    distances = [np.sqrt(z.mean()) for z in np.square(deviations).T]
    limit, distance = np.quantile(distances[k:], 0.99), dict(zip(groups, distances))
    shares = {}  # of sentences of 1-5, 6-10, ... words, the last 76 and more
    for group, rows in zip(("book", *groups), (range(n), *others)):
        lengths = [*chain(*(passages.lengths[i] for i in rows))]
        shares[group] = (np.histogram(lengths, [*range(1, 80, 5), np.inf])[0] / len(lengths)).tolist()
    return dict(
        passages=size, words_per_passage=len(passages.words[0]), limit=limit, distance=distance,
        measures=measures, in_style={group: bool(value <= limit) for group, value in distance.items()},
        sentence_lengths=shares)


def measure_style(train_text, held_out_text, completions, english, notes):
    """`style` of as many samples and controls, of one length; else None, the reason in notes."""
    lengths = sorted(map(len, map(words_of, completions)))
    length = max(1, lengths[len(lengths) // 10])  # the few shorter texts are left out
    groups = dict(
        generated=[p for text in completions for p in passages_of(text, length)[:1]],
        held_out=passages_of(held_out_text, length))
    if control:
        other = "\n\n".join(paragraph for paragraph, _ in clean(read_book(control)[0]))
        groups["control"] = passages_of(other, length)
    of_book = passages_of(train_text, length)
    size = min(len(of_book) // 4, *map(len, groups.values()))
    if length < 25 or size < 4:
        counts = ", ".join(f"{len(group)} {GROUPS[name]}" for name, group in groups.items())
        notes.append("Style is not measured: it wants four texts of 25 words from each source and sixteen "
                     f"of the book; of {length} words there are {counts} and {len(of_book)} of the book.")
        return None
    groups = {name: evenly(group, size) for name, group in groups.items()}
    mixed = np.random.default_rng(seed).permutation(PIECE.findall(" ".join(groups["held_out"])))
    groups["shuffled"] = [*map(" ".join, np.array_split(mixed, size))]
    return style(of_book, groups, english)


def evenly(items, n):
    """n of the items (all, if there are fewer), evenly spaced."""
    return [items[i] for i in np.linspace(0, len(items) - 1, min(n, len(items))).round().astype(int)]


# ---- similarity and diversity

class Similarity:
    """Of texts, 0 to 1: semantic, the cosine of TF-IDF vectors reduced by SVD, learnt from the book
    (Deerwester et al. 1990); lexical, shared words of all words (Jaccard); syntactic, 1 - Jensen-Shannon
    distance of parts of speech (English only); combined, their mean."""

    def __init__(self, texts, english):
        from sklearn.decomposition import TruncatedSVD
        from sklearn.feature_extraction.text import TfidfVectorizer
        from threadpoolctl import threadpool_limits
        self.english, self.tfidf = english, TfidfVectorizer(analyzer=words_of, sublinear_tf=True)
        table = self.tfidf.fit_transform(texts)
        with threadpool_limits(1):  # the same sums in the same order on any number of cores
            self.svd = TruncatedSVD(max(1, min(100, min(table.shape) - 1)), random_state=0).fit(table)

    def between(self, *both):
        """Two lists of texts -> {respect: (len(first), len(second)) array}"""
        from scipy.spatial.distance import cdist
        from sklearn.feature_extraction import DictVectorizer
        from sklearn.metrics.pairwise import cosine_similarity
        a, b = ([*map(set, map(words_of, texts))] for texts in both)
        vectors = map(self.svd.transform, map(self.tfidf.transform, both))
        result = dict(semantic=cosine_similarity(*vectors).clip(0, 1),
                      lexical=np.array([[len(x & y) / max(len(x | y), 1) for y in b] for x in a]))
        if self.english:
            tags = DictVectorizer(sparse=False).fit_transform(
                [Counter(chain(*parsed(text)[0])) for text in chain(*both)])
            result["syntactic"] = 1 - cdist(*np.split(tags, [len(a)]), jensen_shannon)
        return result | {"combined": np.mean([*result.values()], axis=0)}


def diversity(texts, prompts, alike):
    """How different texts are from one another; prompts: one for each text."""
    words, among = [*map(words_of, texts)], alike.between(texts, texts)["combined"]
    others = ~np.eye(len(texts), dtype=bool)
    return dict(
        pairwise_similarity=mean(among[others]),
        same_prompt_similarity=mean(among[others & np.equal.outer(prompts, prompts)]),
        self_bleu=self_bleu(words), entropy=entropy(words), repetition=repetition(words),
        **{f"distinct_{n}": distinct_n(words, n) for n in range(1, 5)})


# ---- likelihood

def chop(examples, block_size):
    """Lists of ids, in nearly equal pieces of at most block_size"""
    return [ids[a:b] for ids in examples for a, b in parts(0, len(ids), block_size)]


def bits_per_byte(nats, sizes):
    """(ratio, its standard error) from nats and bytes per sequence, both (N,): a ratio estimator's (Cochran
    1977, sec. 2.11), of text and masks, as if neighbours were independent; None for one."""
    nats, sizes = map(np.asarray, (nats, sizes))
    n, ratio = len(nats), nats.sum() / sizes.sum()
    squares = np.square(nats - ratio * sizes).sum()
    error = math.sqrt(n / (n - 1) * squares) / sizes.sum() / LN2 if n > 1 else None
    return ratio / LN2, error


@torch.no_grad()
def ordered_nats(model, sequences, order, block_size, advance=lambda step: None):
    """(N,) -log p of 1-d tensors unmasked a token at a time, block by block, and in each in the sampler's
    `order` (but for its ties): exact, for what comes next depends only on what has come."""
    config, size = model.config, max(1, 8192 // max(map(len, sequences)))
    total, generator = torch.zeros(len(sequences), dtype=torch.float64), torch.Generator().manual_seed(seed)
    for begin in range(0, len(sequences), size):
        rows = pad(sequences[begin:begin + size], config.pad_id)
        hidden, place = rows != config.pad_id, torch.arange(rows.shape[1])
        for _ in place:
            block = hidden.int().argmax(1, keepdim=True) // block_size
            where = hidden & (place // block_size == block)
            masked = rows.masked_fill(hidden, config.mask_id)
            log_p = model(masked.to(model.device), where.to(model.device)).float().log_softmax(1).cpu()
            p = log_p.exp()
            likeliest, second = p.topk(2).values.T
            score = {"margin": likeliest - second, "entropy": (p * log_p).sum(1),
                     "random": torch.rand(len(p), generator=generator)}.get(order, likeliest)
            first = spread(where, score, -torch.inf).argmax(1, keepdim=True)
            own = spread(where, log_p.gather(1, rows[where, None]), 0)
            total[begin:begin + size] -= own.gather(1, first)[:, 0]
            hidden.scatter_(1, first, False)
            advance(size / len(sequences) / len(place))
    return total


def likelihood(model, sequences, sizes, seed, advance):
    """(evaluation.json's `likelihood`, nats per sequence) of 1-d tensors; sizes: their bytes. The mean of the
    ten `bits_per_token_by_mask_rate` is the bound."""
    advance("the bound on held-out text")
    exact, masks = model.config.causal, points or 10 * math.ceil(200 / len(sequences))
    bound = held_out_bound(model, sequences, masks, seed)
    nats, tokens = bound.per_sequence, int(bound.length.sum())
    result = dict(
        perplexity=math.exp(nats.sum() / tokens), exact=exact, tokens=tokens, bytes=sum(sizes),
        sequences=len(sequences), masks_of_each=0 if exact else masks, masked_perplexity=None,
        bits_per_token_by_mask_rate=None)
    found = {"": nats, "left_to_right_": nats if exact else None, "sampler_order_": None}
    if not exact:
        weighted = (bound.nats * bound.length[:, None] / bound.k).unflatten(1, (10, -1)).mean(2)
        result["bits_per_token_by_mask_rate"] = (weighted.sum(0) / tokens / LN2).tolist()
        advance("masked perplexity")
        masked = held_out_bound(model, sequences, seed=seed, rates=RATES * MASK_DRAWS)
        hidden, k = (x.sum(0).view(MASK_DRAWS, -1).sum(0) for x in (masked.nats, masked.k))
        result["masked_perplexity"] = dict(zip(map(str, RATES), (hidden / k).exp().tolist()))
        blocks = {"left_to_right_": 1, "sampler_order_": sampling.block_size or model.config.block_size}
        for name, block in blocks.items() if left_to_right else ():
            step = partial(advance, name.replace("_", " "))
            found[name] = ordered_nats(model, sequences, sampling.order, block, step)
    for name, values in found.items():
        both = (None, None) if values is None else bits_per_byte(values, sizes)
        result[f"{name}bits_per_byte"], result[f"{name}bits_per_byte_se"] = both
    return result, nats.numpy()


def compressor(train, held_out):
    """(name, bits per byte) of the better of two: what held-out bytes add to training bytes."""
    xz = partial(lzma.compress, format=lzma.FORMAT_ALONE, preset=9 | lzma.PRESET_EXTREME)
    added, name = min(
        (len(pack(train + held_out)) - len(pack(train)), name)
        for name, pack in (("xz", xz), ("bzip2", bz2.compress)))
    return name, 8 * added / len(held_out)


# ---- a checkpoint and its book

def open_book(path, saved):
    """A checkpoint's book: examples (lists of ids) to `train` on and `held_out` by split, their texts, the
    `openings` of the split's sentences; fail() where it is gone or differs from what was trained on."""
    training, then = saved.get("training", {}), "prepare the book as it was then, or train again"
    folder, streams, texts = prepared(book or training.get("dataset")), {}, {True: "", False: ""}
    if json.loads((folder / "tokenizer.json").read_bytes()) != saved["tokenizer"]:
        fail(f"{folder} was prepared with another vocabulary than {path} was trained with: {then}")
    for stream in ("stage3_train", "val", "test"):
        tokens, offsets, digest = read_stream(folder, stream)
        if training.get("data", {}).get(stream, digest) != digest:
            fail(f"{folder}/{stream}.bin has changed since {path} was trained: {then}")
        streams[stream] = [ids.tolist() for ids in np.split(tokens, offsets[1:-1])]
    text, sentences, title = read_prepared(folder)
    for train, run in groupby(sentences, key=lambda s: s["split"] == "train"):
        run = [*run]
        texts[train] += text[run[0]["start"]:run[-1]["end"]] + "\n\n"
    openings = (opening_of(text[s["start"]:s["end"]]) for s in sentences if s["split"] == split)
    return SimpleNamespace(
        name=folder.name, title=title, train=streams.pop("stage3_train"), held_out=streams,
        train_text=texts[True], held_out_text=texts[False], english=is_english(words_of(texts[True])),
        openings=[*filter(None, openings)])


def opening_of(sentence):
    """The first six words (characters, where no spaces are written) of ten or more."""
    sentence = " ".join(sentence.split())
    words = [*PIECE.finditer(sentence)]
    return sentence[:words[6].start()] if len(words) >= 10 else ""


def choose_prompts(openings, tokenizer, context, notes):
    """n_prompts of the openings, by chance, or the first of a file."""
    if prompts:
        lines = map(str.strip, read_book(prompts)[0].splitlines())
        return [f"{line} " for line in lines if line][:n_prompts]
    if not openings:
        notes.append("No held-out sentence has ten words: samples are written without a prompt.")
    drawn = sorted(np.random.default_rng(seed).permutation(len(openings))[:n_prompts])
    # where no spaces are written six "words" may be long
    return [tokenizer.decode(tokenizer.encode(openings[i])[:context // 2], "ignore") for i in drawn] or [""]


def write_samples(model, tokenizer, chosen):
    """(samples, speed): n_seeds texts for each prompt at once; one again, alone, for its time."""
    jobs, context = [], model.config.block_size
    for prompt in chosen:
        words = prompt.rstrip()
        room = min(max_tokens, context - len(tokenizer.encode(words)))
        if room < 8:
            fail(f"the prompt {prompt!r} leaves no room in the model's context of {context} tokens")
        for _ in range(n_seeds):
            jobs.append(sample.job_of(model, tokenizer, words, [prompt, room], seed + len(jobs), sampling))
    try:
        *samples, one = (
            {"ids": row[jobs[i].row == model.config.mask_id].tolist()} | result
            for some in (jobs, jobs[:1]) for i, row, result in sample.write(model, tokenizer, some, sampling))
    except ValueError as error:
        fail(error)
    tokens, seconds, steps = (sum(s[key] for s in samples) for key in ("tokens", "seconds", "steps"))
    return samples, dict(
        device=str(model.device), texts=len(samples), calls_per_text=steps / len(samples),
        tokens_per_second=tokens / seconds, one_text_seconds=one["seconds"],
        one_text_tokens_per_second=one["tokens"] / one["seconds"], memory_gb=peak_memory_gb(model.device))


def look_at(samples, source, ngram, tokenizer, notes):
    """({"similarity" to the book, "diversity", "memorization", "judged": {group: figures}}, {group: texts})
    of samples and, if there are any, as many held-out passages as long."""
    lengths = [len(s["ids"]) for s in samples]
    passages = [ids for ids in chop(chain(*source.held_out.values()), max(lengths))
                if len(ids) >= min(lengths)]
    n = min(len(passages), len(samples))
    kept = evenly(samples, n) or samples
    if n < len(samples):
        notes.append(f"Held-out text makes only {n} passages as long as the samples: they are compared with "
                     f"{len(kept)} of {len(samples)} samples.")
    groups = {"generated": ([s["ids"] for s in kept], [s["prompt"] for s in kept])}
    if n:
        groups["held_out"] = evenly(passages, n), range(n)
    texts = {group: [*map(tokenizer.decode, lists)] for group, (lists, _) in groups.items()}
    length = int(np.median([*map(len, map(words_of, texts["generated"]))]))
    of_book = passages_of(source.train_text, max(20, length)) or [source.train_text]
    alike, some = Similarity(of_book, source.english), evenly(of_book, 100)
    found = dict(similarity={}, diversity={}, memorization={}, judged={})
    for group, (lists, prompts) in groups.items():
        near = alike.between(texts[group], some)
        found["similarity"][group] = {respect: values.mean() for respect, values in near.items()}
        found["diversity"][group] = varied = diversity(texts[group], prompts, alike)
        found["memorization"][group] = memorization(lists, chain(*source.train), tokenizer.decode)
        nats = np.mean(np.concatenate([*map(ngram.nats, lists)]))
        found["judged"][group] = dict(
            ngram_perplexity=math.exp(nats), twin_perplexity=None, entropy=varied["entropy"],
            repetition=varied["repetition"])
    return found, texts


# evaluation.json's content, and for comparing it with others, of each held-out piece, the bound on -log p,
# its size in bytes and the example that it is cut from, (N,) each; all bytes; {group: texts}
Evaluated = namedtuple("Evaluated", "result model tokenizer nats sizes example held_bytes texts")


def evaluate_checkpoint(path, advance):
    """All but what others say of it"""
    model, tokenizer, saved = sample.load(path, device)
    source, training, context = open_book(path, saved), saved.get("training", {}), model.config.block_size
    example, pieces = zip(*(
        (i, piece) for i, ids in enumerate(source.held_out[split]) for piece in chop([ids], context)))
    contents = [*map(tokenizer.decode_bytes, pieces)]
    sizes, held_bytes, notes = [*map(len, contents)], b"".join(contents), []
    if len(pieces) < 10:
        notes.append(f"Held-out text is only {len(pieces)} sequences, {sum(sizes)} bytes: its standard error "
                     "is itself uncertain.")
    if not training.get("data"):
        notes.append("The checkpoint does not record its training data: held-out text may be among it.")
    if not source.english:
        notes.append("The book is not in English: readability, function words, parts of speech and phrases "
                     "are not measured.")
    figures, nats = likelihood(model, [*map(torch.tensor, pieces)], sizes, seed, advance)
    advance("baselines")
    _, ngram = tables = [NGram(order, model.config.n_text, source.train) for order in (1, NGRAM_ORDER)]
    unigram_nats, ngram_nats = (np.array([table.nats(ids).sum() for ids in pieces]) for table in tables)
    figures["gain_over_ngram"], figures["gain_over_ngram_se"] = bits_per_byte(ngram_nats - nats, sizes)
    program, cost = compressor(tokenizer.decode_bytes(chain(*source.train)), held_bytes)
    floor = dict(
        unigram_bits_per_byte=bits_per_byte(unigram_nats, sizes)[0],
        ngram_bits_per_byte=bits_per_byte(ngram_nats, sizes)[0], ngram_order=NGRAM_ORDER,
        compressor_bits_per_byte=cost, compressor=program,
        unigram_bits_per_token=unigram_nats.sum() / figures["tokens"] / LN2)
    advance("writing samples")
    chosen = choose_prompts(source.openings, tokenizer, context, notes)
    samples, speed = write_samples(model, tokenizer, chosen)
    advance("memorization, diversity and similarity")
    looked, texts = look_at(samples, source, ngram, tokenizer, notes)
    advance("style")
    stages, at = training.get("knobs", {}).get("stages", []), training.get("stage", 1) - 1
    course = training | next(iter(stages[at:]), {})  # with how its stage masked
    result = dict(
        checkpoint=str(path), book=source.name, title=source.title, split=split, seed=seed,
        parameters=count_parameters(model.config)["total"], causal=model.config.causal,
        trained={key: course.get(key) for key in (
            "step", "epoch", "stage", "val_bits_per_byte", "mask_rate", "replay")},
        likelihood=figures, baselines=floor, style=measure_style(
            source.train_text, source.held_out_text, [s["completion"] for s in samples], source.english,
            notes),
        **looked, speed=speed, sampling=vars(sampling) | {"max_tokens": max_tokens},
        samples=[{key: s[key] for key in ("prompt", "text", "completion", "seed")} for s in samples],
        notes=notes)
    return Evaluated(result, model, tokenizer, nats, sizes, example, held_bytes, texts)


def compare_all(found):
    """Let the first causal checkpoint judge all texts, and set costs against the first of all."""
    twin = next((e for e in found if e.result["causal"]), None)
    for e in found:
        for group, texts in e.texts.items() if twin else ():
            pieces = chop(map(twin.tokenizer.encode, texts), twin.model.config.block_size)
            bound = held_out_bound(twin.model, [*map(torch.tensor, pieces)])
            nats = bound.per_sequence.sum() / bound.length.sum()
            e.result["judged"][group]["twin_perplexity"] = math.exp(nats)
        more, error = paired(e, found[0]) if e is not found[0] else (None, None)
        e.result["likelihood"] |= dict(more_than_first=more, more_than_first_se=error)


def paired(*both):
    """(bits per byte by which one costs more than the other, its standard error) over the same pieces, or,
    where these differ, the same examples."""
    for (nats, sizes), (others, same) in (
            [(e.nats, e.sizes) for e in both],
            [[np.bincount(e.example, values) for values in (e.nats, e.sizes)] for e in both]):
        if np.array_equal(sizes, same):
            return bits_per_byte(nats - others, sizes)
    return bits_per_byte(nats, sizes)[0] - bits_per_byte(others, same)[0], None


# ---- in plain words

def summarise(result):
    """Lists of sentences."""
    found = dict(good=[], bad=[], next=[])
    for on in (on_prediction, on_copying, on_style, on_variety):
        on(result, *(sentences.append for sentences in found.values()))
    found["next"] = [*dict.fromkeys(found["next"])] or [
        "Try a larger model or more sampling steps, and --compare them."]
    return found


def on_prediction(result, good, bad, advise):
    like, floor, trained = result["likelihood"], result["baselines"], result["trained"]
    bits, gain, error = like["bits_per_byte"], like["gain_over_ngram"], 2 * (like["gain_over_ngram_se"] or 0)
    unigram = floor["unigram_bits_per_byte"]
    facts = (f"Held-out text costs it {bits:.2f} bits a byte (lower is better), word frequencies "
             f"{unigram:.2f}, a table of counts {floor['ngram_bits_per_byte']:.2f}: it")
    if bits >= unigram:
        bad(f"{facts} has not yet learned that words depend on their neighbours.")
        advise("Train for more steps; small batches get off this plateau sooner.")
    elif gain < -error:
        bad(f"{facts} uses context, but less well than a table of counts.")
        advise("Train until the validation bound in log.jsonl stops falling.")
    elif gain > error:
        good(f"{facts} predicts better than the table.")
    else:
        bad(f"{facts} predicts about as well as the table.")
    if bits < 0.75:
        bad(f"{bits:.2f} bits a byte is too good to be true for a model of one book: it was probably trained "
            "on held-out text.")
        advise("Prepare the book and train again before you believe any other number here.")
    rates, alone = like["bits_per_token_by_mask_rate"], floor["unigram_bits_per_token"]
    if rates and rates[-1] > alone + 0.05 and bits < unigram:
        bad("With nine tenths hidden, as when it begins to write, it predicts worse than word frequencies "
            f"({rates[-1]:.1f} against {alone:.1f} bits per token).")
        high, replay = (trained["mask_rate"] or [0])[-1], trained["replay"] or 0
        if high < 0.9 and replay < 0.5:
            advise(f"Raise --stages.{(trained['stage'] or 1) - 1}.replay (it is {replay:g}), "
                   "to keep showing it every mask rate.")
        else:
            other = "with a larger model" if result["sampling"]["block_size"] else "sample by --block_size=16"
            advise(f"It was shown every mask rate: train longer, or {other}.")


def on_copying(result, good, bad, advise):
    none, found = dict(copied_share=0.0, longest_run_tokens=0), result["memorization"]
    (mine, longest), (human, shared) = (
        [found.get(group, none)[key] for key in none] for group in ("generated", "held_out"))
    if shared >= 50:
        bad(f"Held-out text shares {shared} tokens in a row with the training text: the book repeats itself, "
            "or the split leaks.")
    facts = (f"{mine:.0%} of its text is in copied runs of {COPIED} tokens or more ({human:.0%} of held-out "
             f"text); the longest has {longest}.")
    if mine > 2 * human + 0.1:
        bad(f"It recites: {facts}")
        advise("Stop earlier, make the model smaller, or sample at a higher --temperature.")
    else:
        good(f"It does not recite the book: {facts}")


def on_style(result, good, bad, advise):
    if not (styled := result["style"]):
        return
    facts = (f"its distance from the book is {styled['distance']['generated']:.1f} where the book's own "
             f"passages stay under {styled['limit']:.1f}.")
    if styled["in_style"]["generated"]:
        good(f"Its style is within the book's own variation: {facts}")
    else:
        off = [(abs(m["generated"]["deviation"]), STYLE[name][0]) for name, m in styled["measures"].items()]
        furthest = "; ".join(f"{label} ({z:.0f})" for z, label in sorted(off, reverse=True)[:3])
        bad(f"It is not yet in the book's style: {facts} Furthest off, in standard deviations: {furthest}.")
        other_settings(result["sampling"], advise)
    if not styled["in_style"]["held_out"]:
        bad("Held-out chapters do not pass for the book either, its parts differ so much: compare the style "
            "figures, but take none for a verdict.")


def on_variety(result, good, bad, advise):
    groups = result["diversity"]
    if "held_out" not in groups or None in (found["repetition"] for found in groups.values()):
        return
    (mine, bits), (human, usual) = ((found["repetition"], found["entropy"]) for found in groups.values())
    facts = (f"{mine:.0%} of its four-word runs repeat within a text, and a word carries {bits:.1f} bits "
             f"(held-out text: {human:.0%}, {usual:.1f}).")
    if mine > human + 0.05 or bits < usual - 1:
        bad(f"It repeats itself: {facts}")
        other_settings(result["sampling"], advise)
    else:
        good(f"Its vocabulary is varied: {facts}")


def other_settings(how, advise):
    """Advise those that make text livelier and are not yet so."""
    livelier = {"block_size=16": how["block_size"] is None, "temperature=0.9": how["temperature"] < 0.9,
                "top_p=0.95": how["top_p"] < 0.95, "top_k=50": 0 < how["top_k"] < 50,
                "repetition_penalty=1.2": how["repetition_penalty"] == 1}
    if untried := ", ".join(f"--{setting}" for setting, helps in livelier.items() if helps):
        advise(f"Evaluate again with other sampling settings, one at a time: {untried}.")


# ---- the page

GROUPS = dict(generated="generated", held_out="held-out", shuffled="shuffled words", control="control book",
              book="the book")
INKS = {name: f"#0{i}0{i}0{i}" for i, name in enumerate(("ink", *GROUPS), 1)}  # stand for CSS's


def number(value, unit="", error=None):
    """A figure for people, with twice its standard error."""
    if value is None:
        return "–"
    if error is not None:
        return f"{value:.3f} ± {2 * error:.3f}"
    whole = isinstance(value, int) or abs(value) >= 100
    return format(value, ".1%" if unit.startswith("share") else ",.0f" if whole else ".4g")


def charts(results, names):
    """{name: inline SVG}"""
    first, inks = results[0], cycle(("generated", "control", "shuffled", "held_out"))
    rates = [("word frequencies", "book", [first["baselines"]["unigram_bits_per_token"]] * 10)]
    rates += [(name, ink, bits) for name, ink, r in zip(names, inks, results)
              if (bits := r["likelihood"]["bits_per_token_by_mask_rate"])]
    novelty = [(GROUPS[g], g, 100 * np.array([*found["novelty"].values()], float))
               for g, found in first["memorization"].items()]
    lengths = [(GROUPS[g], g, 100 * np.array(first["style"]["sentence_lengths"][g]))
               for g in ("book", "held_out", "generated")] if first["style"] else []
    drawn = dict(
        rates=(range(5, 100, 10), rates, "share of the text that is hidden, %", "bits per hidden token"),
        novelty=(range(2, 17), novelty, "run of n tokens", "not in the training text, %", (-3, 103)),
        sentences=(range(3, 83, 5), lengths, "words in a sentence (the last: 76 and more)",
                   "share of sentences, %"))
    return {name: chart(name, *what) for name, what in drawn.items() if what[1]}


def chart(name, x, curves, xlabel, ylabel, ylim=None):
    """Inline SVG of curves (label, ink, y) in the page's colours, as wide as a phone."""
    from matplotlib import rc
    from matplotlib.figure import Figure
    ink = INKS["ink"]
    rc("svg", fonttype="none", hashsalt="evaluation")
    rc("font", size=9.5)
    rc("axes", edgecolor=ink, labelcolor=ink)
    rc("axes.spines", top=False, right=False)
    rc(("text", "xtick", "ytick"), color=ink)
    figure, file = Figure((3.3, 2.5)), io.StringIO()
    axes = figure.subplots()
    for label, ink, y in curves:
        axes.plot(x, y, "o-", ms=4, label=label, color=INKS[ink])
    axes.set(xlabel=xlabel, ylabel=ylabel, ylim=ylim)
    axes.legend(frameon=False)
    figure.savefig(file, format="svg", transparent=True, bbox_inches="tight")
    # the <svg> alone, without its date and size
    svg = re.sub(r"\A.*?(?=<svg)|\s*<metadata>.*?</metadata>|(?<= )(height|width)=\"[\d.]+pt\"", "",
                 file.getvalue(), flags=re.S)
    for ink, colour in INKS.items():
        svg = svg.replace(colour, f"var(--{ink})")
    return re.sub(r'(id="|#)(?=[a-zA-Z])', rf"\1{name}-", svg)  # apart from another chart's ids


def page(results, names):
    """evaluate.html about results[0], with others beside it."""
    from jinja2 import Template
    r, frame = results[0], sample.with_style("evaluate.html")
    models = {
        name: found | found["speed"] | found["memorization"]["generated"] | found["diversity"]["generated"]
        | found["likelihood"] | {"distance": found["style"] and found["style"]["distance"]["generated"]}
        for name, found in zip(names, results)}
    groups = {g: r["diversity"][g] | r["similarity"][g] | r["judged"][g] | r["memorization"][g]
              for g in r["diversity"]}
    curves = Path(r["checkpoint"]).with_name("curves.svg")
    return Template(frame, autoescape=True, trim_blocks=True, lstrip_blocks=True).render(
        r=r, models=models, groups=groups, called=GROUPS, charts=charts(results, names), style=STYLE,
        curves=curves.exists() and base64.b64encode(curves.read_bytes()).decode(), number=number,
        replicates=REPLICATES, samples=evenly(r["samples"], 6))


# ---- the run

def compare_texts():
    pair = [read_book(text)[0] if len(text) < 255 and Path(text).is_file() else text
            for text in (text1, text2)]
    if not all(map(words_of, pair)):
        fail("--text1 and --text2 must both hold words")
    text = read_prepared(prepared(book))[0]
    tables = Similarity(passages_of(text, 80), is_english(words_of(text))).between(pair[:1], pair[1:])
    print(json.dumps({name: round(values[0, 0], 4) for name, values in tables.items()}))


def main():
    configure(globals())
    if text1 or text2:
        return compare_texts()
    if points % 10:
        fail(f"--points is a multiple of ten, one for each tenth of mask rates; got {points}")
    names = [checkpoint or out_dir, *filter(None, compare.split(","))]
    paths = [path if path.suffix == ".pt" or (path / "model.safetensors").exists() else path / "best.pt"
             for path in map(Path, names)]
    for path in paths:  # said before any is measured
        if not path.exists():
            fail(f"no checkpoint at {path}: train one first, python train.py")
    found, folder = [], Path(out_dir)
    with Progress("{task.description}", BarColumn(), TimeElapsedColumn(), console=sample.TERMINAL) as bars:
        bar = bars.add_task("loading", total=9 * len(names))

        def advance(what, steps=1):
            if steps == 1 and not sample.TERMINAL.is_interactive:
                sample.say(f"{path}: {what}")
            bars.update(bar, advance=steps, description=f"{path}: {what}")

        for path in paths:
            found.append(evaluate_checkpoint(path, advance))
            if found[-1].held_bytes != found[0].held_bytes:
                fail(f"{path} has other held-out text than {names[0]}: they cannot be compared")
        compare_all(found)
        results = [dict(e.result, summary=summarise(e.result)) for e in found]
        bars.update(bar, completed=9 * len(names), description="plots")
        folder.mkdir(parents=True, exist_ok=True)
        with written(folder / "evaluation.html") as file:
            file.write(page(results, names))
        write_json(folder / "evaluation.json", results[0] | ({"compare": results[1:]} if compare else {}))
    for sentences, mark in zip(results[0]["summary"].values(), "+->"):
        for sentence in sentences:
            print(mark, sentence)
    sample.say(f"{folder}/evaluation.json and {folder}/evaluation.html")


if __name__ == "__main__":
    run_script(main)
