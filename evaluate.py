"""What a checkpoint is worth: evaluation.json for programs and evaluation.html for people, in out_dir.

    python evaluate.py
    python evaluate.py --split=val --left_to_right --control=another_book.txt
    python evaluate.py --compare=out_causal,out_no_curriculum      # side by side; a causal one also judges the samples
    python evaluate.py --text1="It was dark." --text2=chapter.txt  # only compare two texts

Every draw comes from --seed, so the same evaluation on the same machine gives the same numbers, times and memory excepted.
What cannot be measured is null in the file, with the reason in its `notes`.
"""
import bz2
import hashlib
import html
import io
import json
import lzma
import math
import re
import resource
import string
import sys
import time
import zlib
from collections import Counter
from itertools import groupby, pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TimeElapsedColumn

import sample
from configurator import configure, fail
from model import count_parameters, held_out_bound, hide
from prepare import clean, is_english, read_book, words_of

out_dir = "out"             # where train.py left its checkpoints, and where the evaluation goes
checkpoint = ""             # a checkpoint's path; empty: best.pt in out_dir
book = ""                   # the prepared book; empty: the one the checkpoint was trained on, or else the one prepared last
split = "test"              # held-out text for the likelihood and the prompts: test, or val
device = ""                 # cpu, cuda, mps; empty: a GPU if there is one
seed = 0                    # of every random draw
points = 40                 # mask counts at which the bound is evaluated, per sequence: a multiple of ten
left_to_right = False       # also the exact likelihood of unmasking left to right: one call of the network per token
compare = ""                # other out_dirs (or checkpoints) to put beside this one, separated by commas
control = ""                # another book: its style should not pass for this one's
prompts = ""                # a file of prompts, one a line; empty: openings of held-out sentences
n_prompts = 8               # how many held-out openings
n_seeds = 3                 # texts per prompt
max_tokens = 100            # tokens per text, less where the model's context is short
sampling = {name: getattr(sample, name) for name in sample.SETTINGS if getattr(sample, name) is not None}  # as sample.py; --sampling.steps=50
text1 = ""                  # with text2: print the similarity of two texts (or of two files) and do nothing else
text2 = ""                  # the other text

NGRAM_ORDER = 4             # of the n-gram baseline; on one book a fifth token gains nothing measurable
RATES = (0.05, 0.1, 0.15, 0.2, 0.5, 0.9)        # mask rates of the masked perplexity
MASK_DRAWS = 4              # masks per sequence and rate
REPLICATES = 200            # bootstrap samples of the book's own style
FUNCTION_WORDS = frozenset("""a about above after again against all although am among an and any are as at be because been before being below between both but by
    can could did do does down during each either else even every few for from had has have he her hers him his how however i if in into is it its itself
    may me might more most much must my myself neither no nor not now of off on once only or other ought our ours out over own same shall she should since
    so some still such than that the their them themselves then there these they this those though through thus till to too under until up upon us very was
    we were what when where whether which while who whom whose why will with within without would yet you your yours""".split())


# ---- an n-gram model -------------------------------------------------------------------------------------------------

class NGram:
    """Interpolated Kneser-Ney (Chen and Goodman 1999, sec. 2.7) over token ids 0 .. vocab-1, the unigram interpolated with the
    uniform distribution, so that every token has a probability.

    The discount of each order is n1 / (n1 + 2·n2) (Ney et al. 1994). A sequence begins without context: its first tokens are
    predicted by lower orders, whose counts are of distinct left neighbours, the beginning of a sequence being one. NLTK's model
    gives the same thing but takes 24 ms a token.
    """

    def __init__(self, order, vocab):
        self.order, self.vocab, self.tables = order, vocab, []

    def fit(self, sequences):
        """Learn from lists of token ids; returns self."""
        self.tables = []                        # per order: discount, counts, and by context their sum and how many are distinct
        for k in range(1, self.order + 1):
            places = [(s, i) for s in sequences for i in range(len(s) - k + 1)]
            if k == self.order:
                counts = Counter(tuple(s[i:i + k]) for s, i in places)
            else:
                counts = Counter(gram[1:] for gram in {(s[i - 1] if i else None, *s[i:i + k]) for s, i in places})
            seen = Counter(counts.values())
            discount = seen[1] / (seen[1] + 2 * seen[2]) if seen[1] else 0.5        # no count of one to learn from: any discount will do
            total, distinct = Counter(), Counter()
            for gram, count in counts.items():
                total[gram[:-1]] += count
                distinct[gram[:-1]] += 1
            self.tables.append((discount, counts, total, distinct))
        return self

    def nats(self, tokens):
        """-log p of each token given those before it: float64, one per token."""
        result = np.empty(len(tokens))
        for i in range(len(tokens)):
            p = 1 / self.vocab
            for k, (discount, counts, total, distinct) in enumerate(self.tables[:i + 1]):
                gram = tuple(tokens[i - k:i + 1])
                context = gram[:-1]
                if context not in total:        # then no longer context was seen either
                    break
                p = (max(counts.get(gram, 0) - discount, 0) + discount * distinct[context] * p) / total[context]
            result[i] = -math.log(p)
        return result


# ---- measures of a text ----------------------------------------------------------------------------------------------

def passages_of(text, length):
    """Consecutive passages of `length` words, none cut, so sometimes one or two more; what is left at the end is dropped."""
    passages, begin, count = [], 0, 0
    for piece in re.finditer(r"[\u3040-\u30ff\u3400-\u9fff]|[^\s\u3040-\u30ff\u3400-\u9fff]+", text):
        count += len(words_of(piece[0]))
        if count >= length:
            passages.append(text[begin:piece.end()].strip())
            begin, count = piece.end(), 0
    return passages


def ngrams(items, n):
    """All n-grams of a sequence, as tuples."""
    return [tuple(items[i:i + n]) for i in range(len(items) - n + 1)]


def type_token_ratio(words):
    """Distinct words per word."""
    return len(set(words)) / len(words)


def mattr(words, window=50):
    """Moving-average type-token ratio (Covington and McFall 2010): the mean over all windows, or over the text if it is shorter."""
    window = min(window, len(words))
    counts, distinct = Counter(words[:window]), []
    for i in range(window, len(words) + 1):
        distinct.append(len(counts))
        if i < len(words):
            counts[words[i]] += 1
            counts[words[i - window]] -= 1
            if not counts[words[i - window]]:
                del counts[words[i - window]]
    return sum(distinct) / len(distinct) / window


def mtld(words, threshold=0.72):
    """Words per factor, a factor being a stretch in which the type-token ratio falls to the threshold; mean of reading forwards
    and backwards (McCarthy and Jarvis 2010). Infinite for a text without repetition."""
    def one_way(words):
        factors, seen, count = 0.0, set(), 0
        for word in words:
            seen.add(word)
            count += 1
            if len(seen) / count <= threshold:
                factors, seen, count = factors + 1, set(), 0
        if count:
            factors += (1 - len(seen) / count) / (1 - threshold)
        return len(words) / factors if factors else math.inf
    return (one_way(words) + one_way(words[::-1])) / 2


def yules_k(words):
    """Yule's K = 10^4 · (Σ i²·V_i - N) / N², V_i the number of words that occur i times (Yule 1944): higher is more repetitive."""
    return 1e4 * (sum(c * c for c in Counter(words).values()) - len(words)) / len(words) ** 2


def burrows_delta(frequencies, documents):
    """Mean over words of |z| of the text's relative frequencies (W,) against documents (D, W) (Burrows 2002), words that never vary left out."""
    spread = documents.std(axis=0)
    varies = spread > 0
    return float(np.mean(np.abs(frequencies - documents.mean(axis=0))[varies] / spread[varies]))


def jensen_shannon(p, q):
    """Distance of two count vectors' distributions, 0 (the same) to 1 (nothing in common)."""
    from scipy.spatial.distance import jensenshannon
    return float(jensenshannon(p, q, base=2)) if p.sum() and q.sum() else 1.0


def distinct_n(texts, n):
    """Distinct n-grams per n-gram over all texts (lists of words) (Li et al., 1510.03055); None if there are none."""
    grams = [gram for words in texts for gram in ngrams(words, n)]
    return len(set(grams)) / len(grams) if grams else None


def self_bleu(texts):
    """Mean BLEU-4 of each text (a list of words) against all others (Zhu et al., 1802.01886); None for fewer than two."""
    from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
    if len(texts) < 2:
        return None
    smooth = SmoothingFunction().method1
    return float(np.mean([sentence_bleu(texts[:i] + texts[i + 1:], words, smoothing_function=smooth) for i, words in enumerate(texts)]))


def repetition(texts, n=4):
    """Share of n-grams that their own text has had before; None if there are none."""
    grams = [ngrams(words, n) for words in texts]
    total = sum(map(len, grams))
    return 1 - sum(len(set(g)) for g in grams) / total if total else None


def entropy(texts):
    """Bits per word of the distribution of words over all texts."""
    p = np.array(list(Counter(word for words in texts for word in words).values()), float)
    p /= p.sum()
    return float(-(p * np.log2(p)).sum())


def match_lengths(ids, source):
    """For each position of ids, how many tokens from there on stand verbatim somewhere in source (a str of `as_characters`)."""
    text, lengths, length = as_characters(ids), [], 0
    for i in range(len(text)):
        length = max(length - 1, 0)             # what matched from i-1 still matches from i, one shorter
        while i + length < len(text) and text[i:i + length + 1] in source:
            length += 1
        lengths.append(length)
    return lengths


def as_characters(ids):
    """Token ids as a str of one character each: Python's substring search is then a search for runs of tokens."""
    return "".join(map(chr, ids))


def memorization(texts, source, decode, shortest=8):
    """How much of texts (lists of ids) is copied from source (a list of ids). A copied run is `shortest` tokens or more."""
    source = as_characters(source)
    found = [match_lengths(ids, source) for ids in texts]
    copied = 0
    for lengths in found:
        inside = np.zeros(len(lengths), bool)
        for i, length in enumerate(lengths):
            if length >= shortest:
                inside[i:i + length] = True
        copied += int(inside.sum())
    longest, passage = max(((length, ids[i:i + length]) for ids, lengths in zip(texts, found) for i, length in enumerate(lengths)),
                           key=lambda run: run[0], default=(0, []))
    novelty = {}
    for n in range(2, 17):
        new = [length < n for lengths in found for length in lengths[:max(0, len(lengths) - n + 1)]]
        novelty[str(n)] = sum(new) / len(new) if new else None
    total = sum(map(len, texts))
    return {"longest_run_tokens": longest, "longest_run_text": decode(passage), "copied_share": copied / total if total else None, "novelty": novelty, "tokens": total}


# ---- style: inside the book's own variation? -------------------------------------------------------------------------

MEASURES = {                    # label, unit; those of DISTANCES are better lower, the others inside the book's range
    "sentence_length": ("Sentence length, mean", "words"),
    "sentence_spread": ("Sentence length, standard deviation", "words"),
    "type_token_ratio": ("Type-token ratio", "distinct words per word"),
    "mattr": ("Moving-average type-token ratio", "distinct words per word, windows of 50"),
    "mtld": ("MTLD", "words per factor"),
    "yules_k": ("Yule's K", "repeated pairs per 10,000"),
    "coverage": ("Words that the rest of the book uses too", "share of words"),
    "punctuation": ("Punctuation", "marks per word"),
    "function_words": ("Function words", "share of words"),
    "flesch_kincaid": ("Flesch-Kincaid", "school grade"),
    "gunning_fog": ("Gunning Fog", "school years"),
    "delta": ("Burrows's Delta, 150 words", "standard deviations"),
    "sentence_profile": ("Sentence lengths", "distance 0–1"),
    "character_profile": ("Groups of three characters", "distance 0–1"),
    "function_profile": ("Choice of function words", "distance 0–1"),
    "tag_profile": ("Order of parts of speech", "distance 0–1"),
    "chunk_profile": ("Shapes of phrases", "distance 0–1"),
}
DISTANCES = ("delta", "sentence_profile", "character_profile", "function_profile", "tag_profile", "chunk_profile")
ONLY_ENGLISH = ("function_words", "flesch_kincaid", "gunning_fog", "function_profile", "tag_profile", "chunk_profile")


def parsed(text):
    """(part-of-speech tags by sentence, phrases as "NP DT JJ NN") from TextBlob's lexicon."""
    from textblob.en import parse
    sentences, phrases = [], []
    for line in parse(text).split("\n"):
        tags = []
        for token in line.split():
            _, tag, chunk, _ = token.rsplit("/", 3)
            tags.append(tag)
            if chunk.startswith("B-"):
                phrases.append(f"{chunk[2:]} {tag}")
            elif chunk.startswith("I-") and phrases:
                phrases[-1] += f" {tag}"
        sentences.append(tags)
    return sentences, phrases


class Traits(NamedTuple):
    """What one passage contributes to the measures of the sample it is in."""
    words: list
    sentences: list             # lengths in words
    numbers: dict               # punctuation marks; the two grades
    profiles: dict              # name -> Counter


def traits(text, punkt, english):
    """text -> Traits; punkt splits sentences."""
    text = " ".join(text.split())
    words = words_of(text)
    lengths = [n for part in punkt.tokenize(text) for piece in re.split(r"(?<=[。！？])", part) if (n := len(words_of(piece)))]
    numbers = {"punctuation": len(re.findall(r"[^\w\s]", text)) - sum(len(re.findall(r"\W", word)) for word in words)}
    profiles = {"words": Counter(words), "sentence_profile": Counter(min(n // 4, 20) for n in lengths),
                "character_profile": Counter("".join(gram) for gram in ngrams(text.lower(), 3))}
    if english:
        import textstat
        tags, phrases = parsed(text)
        numbers |= {"flesch_kincaid": textstat.flesch_kincaid_grade(text), "gunning_fog": textstat.gunning_fog(text)}
        profiles |= {"function_profile": Counter(word for word in words if word in FUNCTION_WORDS), "chunk_profile": Counter(phrases),
                     "tag_profile": Counter(" ".join(pair) for sentence in tags for pair in pairwise(sentence))}
    return Traits(words, lengths, numbers, profiles)


def style(book_passages, groups, english, seed=0):
    """Is a sample of passages inside the book's own variation?

    book_passages: many texts of one length; groups: {name: K passages of that length}. K passages drawn from the book, again and again
    (the bootstrap), show how each measure varies where the style is the book's by definition; profiles and coverage are taken against the
    rest of the book. `range` holds the middle 95 % of these draws. `distance` sums up: the root mean square over the measures of the deviation in
    the draws' standard deviations (only upwards where the measure is itself a distance); `limit` is what 99 of 100 draws stay under.
    """
    from nltk.tokenize.punkt import PunktSentenceTokenizer, PunktTrainer
    from sklearn.feature_extraction import DictVectorizer
    punkt = PunktSentenceTokenizer(PunktTrainer(" ".join(book_passages)).get_params())
    size, n = len(next(iter(groups.values()))), len(book_passages)
    everything = [traits(text, punkt, english) for group in (book_passages, *groups.values()) for text in group]
    tables, names = {}, {}
    for name in everything[0].profiles:
        vectorizer = DictVectorizer(dtype=np.float64)
        tables[name] = vectorizer.fit_transform([t.profiles[name] for t in everything])
        names[name] = vectorizer.feature_names_
    book_total = {name: np.asarray(table[:n].sum(0))[0] for name, table in tables.items()}
    top = np.argsort(-book_total["words"], kind="stable")[:150]

    def measure(rows, of_the_book):
        some = [everything[i] for i in rows]
        words = [word for t in some for word in t.words]
        lengths = [length for t in some for length in t.sentences]
        sums = {name: np.asarray(table[rows].sum(0))[0] for name, table in tables.items()}
        rest = {name: book_total[name] - sums[name] if of_the_book else book_total[name] for name in sums}
        values = {"sentence_length": np.mean(lengths), "sentence_spread": np.std(lengths), "type_token_ratio": type_token_ratio(words), "mattr": mattr(words),
                  "mtld": mtld(words), "yules_k": yules_k(words), "coverage": sums["words"][rest["words"] > 0].sum() / len(words),
                  "punctuation": sum(t.numbers["punctuation"] for t in some) / len(words)}
        if english:
            values |= {"function_words": sum(word in FUNCTION_WORDS for word in words) / len(words)}
            values |= {name: np.mean([t.numbers[name] for t in some]) for name in ("flesch_kincaid", "gunning_fog")}
        values |= {name: jensen_shannon(sums[name], rest[name]) for name in sums if name != "words"}
        return {name: float(value) for name, value in values.items()}, sums["words"][top] / len(words), lengths

    rng = np.random.default_rng(seed)
    draws = [measure(np.sort(rng.choice(n, size, replace=False)), True) for _ in range(REPLICATES)]
    measured = {name: measure(np.arange(n + i * size, n + (i + 1) * size), False) for i, name in enumerate(groups)}
    documents = np.stack([frequencies for _, frequencies, _ in draws])
    for values, frequencies, _ in [*draws, *measured.values()]:
        values["delta"] = burrows_delta(frequencies, documents)

    own = {name: np.array([values[name] for values, _, _ in draws]) for name in MEASURES if name in draws[0][0]}
    own = {name: values for name, values in own.items() if np.isfinite(values).all() and values.std() > 0}

    def histogram(lengths):                                     # shares of sentences of 1-5, 6-10, ... words, the last bin open
        return (np.bincount([min((length - 1) // 5, 15) for length in lengths], minlength=16) / len(lengths)).tolist()

    def deviations(values):
        z = {name: (values[name] - own[name].mean()) / own[name].std() for name in own}
        return {name: max(value, 0.0) if name in DISTANCES else value for name, value in z.items()}

    def distance(values):
        return math.sqrt(np.mean([z * z for z in deviations(values).values()]))

    limit = float(np.quantile([distance(values) for values, _, _ in draws], 0.99))
    result = {"passages": size, "words_per_passage": len(everything[0].words), "limit": limit, "distance": {}, "in_style": {}, "measures": {}, "sentence_lengths": {}}
    for name, (values, _, lengths) in measured.items():
        values["mtld"] = min(values["mtld"], 1e6)
        result["distance"][name] = distance(values)
        result["in_style"][name] = result["distance"][name] <= limit
        result["sentence_lengths"][name] = histogram(lengths)
    result["sentence_lengths"]["book"] = histogram([length for t in everything[:n] for length in t.sentences])
    for name, values in own.items():
        low, high = np.quantile(values, [0, 0.95] if name in DISTANCES else [0.025, 0.975])
        result["measures"][name] = {"unit": MEASURES[name][1], "range": [float(low), float(high)]} | {
            group: {"value": found[0][name], "deviation": float(deviations(found[0])[name])} for group, found in measured.items()}
    return result


# ---- similarity of texts ---------------------------------------------------------------------------------------------

class Similarity:
    """Similarity of texts in three respects, 0 to 1, the first learned from the book: semantic, the cosine of TF-IDF vectors reduced by
    SVD (Deerwester et al. 1990), nothing below 0; lexical, shared words among all words (Jaccard); syntactic, 1 - Jensen-Shannon distance of the
    parts of speech (English only). Combined is their mean."""

    def __init__(self, texts, english):
        from sklearn.decomposition import TruncatedSVD
        from sklearn.feature_extraction.text import TfidfVectorizer
        self.english = english
        self.tfidf = TfidfVectorizer(analyzer=words_of, sublinear_tf=True)
        table = self.tfidf.fit_transform(texts)
        self.svd = TruncatedSVD(max(1, min(100, min(table.shape) - 1)), random_state=0).fit(table)

    def between(self, first, second):
        """Two lists of texts -> {name: (len(first), len(second)) array}."""
        from scipy.spatial.distance import cdist
        from sklearn.metrics.pairwise import cosine_similarity
        a, b = ([set(words_of(text)) for text in texts] for texts in (first, second))
        tables = {"semantic": cosine_similarity(*(self.svd.transform(self.tfidf.transform(texts)) for texts in (first, second))).clip(0, 1),
                  "lexical": np.array([[len(x & y) / max(len(x | y), 1) for y in b] for x in a])}
        if self.english:
            counts = [Counter(tag for sentence in parsed(text)[0] for tag in sentence) for text in (*first, *second)]
            tags = sorted(set().union(*counts))
            rows = np.array([[c[tag] for tag in tags] for c in counts], float)
            tables["syntactic"] = 1 - cdist(rows[:len(first)], rows[len(first):], "jensenshannon", base=2)
        return tables | {"combined": np.mean(list(tables.values()), axis=0)}


# ---- likelihood ------------------------------------------------------------------------------------------------------

def chop(examples, block_size):
    """Lists of ids -> pieces of at most block_size, every token in exactly one."""
    return [ids[i:i + block_size] for ids in examples for i in range(0, len(ids), block_size)]


def bits_per_byte(nats, sizes):
    """(ratio, its standard error) from nats and bytes per sequence, both (N,). The error is that of a ratio estimator over sequences (Cochran 1977,
    sec. 2.11), None for fewer than two. With random masks it contains their noise; that neighbouring sequences are alike it does not."""
    nats, sizes = np.asarray(nats, float), np.asarray(sizes, float)
    ratio, n = nats.sum() / sizes.sum(), len(nats)
    error = math.sqrt(n / (n - 1) * np.square(nats - ratio * sizes).sum()) / sizes.sum() / math.log(2) if n > 1 else None
    return float(ratio / math.log(2)), error


@torch.no_grad()
def nats_at(model, tokens, hidden, where, batch_tokens=8192):
    """Σ of -log p at `where` with `hidden` masked. tokens (T,), hidden and where (R, T) bool -> (R,) float64."""
    result, size = [], max(1, batch_tokens // len(tokens))
    for h, w in zip(hidden.split(size), where.split(size)):
        rows = tokens.expand(h.shape).clone()
        logits = model(rows.masked_fill(h, model.config.mask_id).to(model.device), w.to(model.device)).double().cpu()
        nats = torch.nn.functional.cross_entropy(logits, rows[w], reduction="none")
        result.append(torch.zeros(len(h), dtype=torch.float64).index_add_(0, w.nonzero()[:, 0], nats))
    return torch.cat(result)


def left_to_right_nats(model, tokens):
    """-log p of tokens (T,) when they are unmasked one at a time from left to right: exact, and a likelihood like any order's."""
    place = torch.arange(len(tokens))
    return float(nats_at(model, tokens, place >= place[:, None], place == place[:, None]).sum())


def masked_perplexity(model, sequences, seed):
    """{rate: exp of the mean -log p of masked tokens}, exactly that share of each sequence masked. Not a likelihood: it sees the rest."""
    generator = torch.Generator().manual_seed(seed)
    nats, count = torch.zeros(len(RATES), dtype=torch.float64), torch.zeros(len(RATES))
    for tokens in sequences:
        k = torch.tensor([max(1, round(rate * len(tokens))) for rate in RATES]).repeat_interleave(MASK_DRAWS)
        hidden = hide(torch.ones(len(k), len(tokens), dtype=torch.bool), k, torch.rand(len(k), len(tokens), generator=generator))
        nats += nats_at(model, tokens, hidden, hidden).view(len(RATES), MASK_DRAWS).sum(1)
        count += k.view(len(RATES), MASK_DRAWS).sum(1)
    return {str(rate): float(value) for rate, value in zip(RATES, (nats / count).exp())}


def likelihood(model, sequences, sizes, seed, advance):
    """(the contract's `likelihood`, nats per sequence) of 1-d tensors; sizes: their bytes.

    The ten `bits_per_token_by_mask_rate` average to the bound, in bits per token. The causal twin's likelihood is exact.
    """
    advance("the bound on held-out text")
    bound, causal = held_out_bound(model, sequences, points, seed), model.config.causal
    nats, tokens = bound.per_sequence, int(bound.length.sum())
    value, error = bits_per_byte(nats, sizes)
    result = {"bits_per_byte": value, "bits_per_byte_se": error, "perplexity": math.exp(float(nats.sum()) / tokens), "tokens": tokens, "bytes": int(sum(sizes)),
              "sequences": len(sequences), "exact": causal, "masked_perplexity": None, "bits_per_token_by_mask_rate": None, "left_to_right_bits_per_byte": None}
    if causal:
        return result | {"left_to_right_bits_per_byte": value}, nats.numpy()
    tenths = (bound.nats * bound.length[:, None] / bound.k).view(len(sequences), 10, -1).mean(2).sum(0) / tokens
    result["bits_per_token_by_mask_rate"] = (tenths / math.log(2)).tolist()
    advance("masked perplexity")
    result["masked_perplexity"] = masked_perplexity(model, sequences, seed)
    if left_to_right:
        total = 0.0
        for i, tokens in enumerate(sequences):
            advance(f"left to right, sequence {i + 1} of {len(sequences)}", 0)
            total += left_to_right_nats(model, tokens)
        result["left_to_right_bits_per_byte"] = total / sum(sizes) / math.log(2)
    return result, nats.numpy()


def baselines(train, sequences, n_text, train_bytes, held_bytes, sizes):
    """(the contract's `baselines`, the n-gram model, its nats per sequence): what needs no network, from the same training text on the same sequences.

    The n-gram's context is forgotten where the network's is. A compressor's figure is what held-out text adds to the compressed training text.
    """
    ngram = NGram(NGRAM_ORDER, n_text).fit(train)
    nats = {k: np.array([model.nats(s).sum() for s in sequences]) for k, model in ((1, NGram(1, n_text).fit(train)), (NGRAM_ORDER, ngram))}
    programs = {"xz": lambda b: lzma.compress(b, lzma.FORMAT_ALONE, preset=9 | lzma.PRESET_EXTREME), "bzip2": lambda b: bz2.compress(b, 9), "zlib": lambda b: zlib.compress(b, 9)}
    compressed = {name: 8 * (len(f(train_bytes + held_bytes)) - len(f(train_bytes))) / len(held_bytes) for name, f in programs.items()}
    best = min(compressed, key=compressed.get)
    return {"unigram_bits_per_byte": bits_per_byte(nats[1], sizes)[0], "ngram_bits_per_byte": bits_per_byte(nats[NGRAM_ORDER], sizes)[0], "ngram_order": NGRAM_ORDER,
            "compressor_bits_per_byte": compressed[best], "compressor": best, "unigram_bits_per_token": float(nats[1].sum() / sum(map(len, sequences)) / math.log(2))}, ngram, nats[NGRAM_ORDER]


# ---- a checkpoint and its book ---------------------------------------------------------------------------------------

class Book(NamedTuple):
    """What prepare.py made of a book, checked to be what the checkpoint was trained on."""
    name: str
    streams: dict               # "stage3_train", "val", "test" -> lists of ids
    texts: dict                 # "train", "held_out" -> str
    openings: list              # of the split's sentences: prompts


def open_book(path, saved):
    """The Book for a checkpoint; ends in fail() where its data are gone or differ from what it was trained on."""
    latest, training = Path("data/latest"), saved.get("training", {})
    name = book or training.get("dataset") or (latest.read_text(encoding="utf-8").strip() if latest.exists() else fail("no book is prepared here: python prepare.py BOOK.txt"))
    folder = Path("data") / name
    if not (folder / "tokenizer.json").exists():
        fail(f"{folder} is missing: prepare the book that {path} was trained on, or name another with --book")
    if json.loads((folder / "tokenizer.json").read_text(encoding="utf-8")) != saved["tokenizer"]:
        fail(f"{folder} was prepared with another vocabulary than {path} was trained with: prepare the book as it was then, or train again")
    streams = {}
    for stream in ("stage3_train", "val", "test"):
        raw, index = (folder / f"{stream}.bin").read_bytes(), np.fromfile(folder / f"{stream}.idx", "<i8")
        if training.get("data", {}).get(stream, (digest := hashlib.sha256(raw).hexdigest())) != digest:
            fail(f"{folder}/{stream}.bin has changed since {path} was trained, so held-out text may have been trained on: prepare the book as it was then, or train again")
        ids = np.frombuffer(raw, "<u2").tolist()
        streams[stream] = [ids[a:b] for a, b in pairwise(index.tolist())]
    text = (folder / "text.txt").read_text(encoding="utf-8")
    segments = [json.loads(line) for line in (folder / "segments.jsonl").read_text(encoding="utf-8").splitlines()]
    texts = {"train": "", "held_out": ""}
    for train, run in groupby(segments, key=lambda s: s["split"] == "train"):
        run = list(run)
        texts["train" if train else "held_out"] += text[run[0]["start"]:run[-1]["end"]] + "\n\n"
    openings = [" ".join(words[:6]) for s in segments if s["split"] == split and len(words := text[s["start"]:s["end"]].split()) >= 10]
    return Book(name, streams, texts, openings or [" ".join(text.split()[:6])])


def spread(items, n):
    """n of the items (all, if there are fewer), evenly spaced."""
    return [items[i] for i in np.linspace(0, len(items) - 1, min(n, len(items))).round().astype(int)]


def write_samples(model, tokenizer, openings):
    """(samples, speed): n_seeds texts for each prompt, all at once; then one alone, for the time that a single reader waits."""
    rows, samples, calls = [], [], []
    for i in range(len(openings) * n_seeds):
        row = sample.canvas(tokenizer, [openings[i // n_seeds], 1], model.config)
        gap = min(max_tokens, model.config.block_size - len(row) + 1)
        if gap < 8:
            fail(f"the prompt {openings[i // n_seeds]!r} leaves no room in the model's context of {model.config.block_size} tokens")
        rows.append(torch.cat((row[:-1], row[-1:].expand(gap))))
        samples.append({"prompt": openings[i // n_seeds], "seed": seed + i, "tokens": gap})
    hook = model.register_forward_hook(lambda *_: calls.append(1))
    if model.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    try:
        begun = time.perf_counter()
        filled = sample.generate(model, rows, [s["seed"] for s in samples], **sampling)
        seconds, together = time.perf_counter() - begun, len(calls)
        begun = time.perf_counter()
        sample.generate(model, rows[:1], [seed], **sampling)
        alone = time.perf_counter() - begun
    except ValueError as error:
        fail(error)
    finally:
        hook.remove()
    for s, row in zip(samples, filled):
        s["ids"] = row[len(row) - s["tokens"]:].tolist()
        s["completion"] = tokenizer.decode_bytes(s["ids"]).decode("utf-8", errors="ignore")
    peak = torch.cuda.max_memory_allocated() if model.device.type == "cuda" else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return samples, {"device": str(model.device), "texts": len(samples), "calls": together, "seconds": seconds, "tokens_per_second": sum(s["tokens"] for s in samples) / seconds,
                     "one_text_seconds": alone, "one_text_calls": len(calls) - together, "one_text_tokens_per_second": samples[0]["tokens"] / alone, "memory_gb": peak / 1e9}


def evaluate_checkpoint(path, advance):
    """Everything about one checkpoint, as evaluation.json has it; and what comparing and judging need: {"model", "tokenizer", "nats", "sizes", "held_bytes"}."""
    model, tokenizer, saved = sample.load(path, device)
    data, notes, rng = open_book(path, saved), [], np.random.default_rng(seed)
    train, held_out = data.streams["stage3_train"], data.streams[split]
    train_ids = [i for ids in train for i in ids]
    pieces = chop(held_out, model.config.block_size)
    sizes = np.array([len(tokenizer.decode_bytes(ids)) for ids in pieces])
    if len(pieces) < 10:
        notes.append(f"The held-out text is only {len(pieces)} sequences, {sizes.sum()} bytes: its standard error is itself uncertain.")
    if not saved.get("training", {}).get("data"):
        notes.append("The checkpoint does not record its training data: that the held-out text was not among it cannot be checked.")
    figures, nats = likelihood(model, [torch.tensor(ids) for ids in pieces], sizes, seed, advance)
    advance("baselines")
    held_bytes = tokenizer.decode_bytes(i for ids in held_out for i in ids)
    floor, ngram, ngram_nats = baselines(train, pieces, model.config.n_text, tokenizer.decode_bytes(train_ids), held_bytes, sizes)
    figures["gain_over_ngram"], figures["gain_over_ngram_se"] = bits_per_byte(ngram_nats - nats, sizes)

    advance("writing samples")
    openings = data.openings
    if prompts:
        openings = [line.strip() for line in read_book(prompts)[0].splitlines() if line.strip()][:n_prompts]
    else:
        openings = [openings[i] for i in sorted(rng.permutation(len(openings))[:n_prompts])]
    samples, speed = write_samples(model, tokenizer, openings)
    ids = {"generated": [s["ids"] for s in samples]}
    human = [piece for piece in chop(data.streams["val"] + data.streams["test"], max(len(i) for i in ids["generated"])) if len(piece) >= min(map(len, ids["generated"]))]
    n = min(len(human), len(samples))
    if n < len(samples):
        notes.append(f"The held-out text is enough for {n} passages as long as the samples: it is compared with {n} of {len(samples)} samples.")
    ids = {"generated": spread(ids["generated"], n), "held_out": spread(human, n)} if n else ids
    texts = {name: [tokenizer.decode(i) for i in group] for name, group in ids.items()}
    words = {name: [words_of(text) for text in group] for name, group in texts.items()}

    advance("memorization")
    memory = {name: memorization(group, train_ids, tokenizer.decode) for name, group in ids.items()}
    advance("diversity and similarity")
    english = is_english(words_of(data.texts["train"]))
    if not english:
        notes.append("The book is not in English: readability, function words, parts of speech and phrases are not measured.")
    passages = passages_of(data.texts["train"], max(20, int(np.median([len(w) for w in words["generated"]]))))
    alike, diversity, likeness, judged = Similarity(passages, english), {}, {}, {}
    for name, group in texts.items():
        likeness[name] = {respect: float(values.mean()) for respect, values in alike.between(group, spread(passages, 100)).items()}
        among = alike.between(group, group)["combined"][~np.eye(len(group), dtype=bool)]
        diversity[name] = {"pairwise_similarity": float(among.mean()) if len(among) else None, "self_bleu": self_bleu(words[name]), "entropy": entropy(words[name]),
                           "repetition": repetition(words[name])} | {f"distinct_{n}": distinct_n(words[name], n) for n in (1, 2, 3, 4)}
        judged[name] = {"ngram_perplexity": math.exp(np.mean(np.concatenate([ngram.nats(i) for i in ids[name]]))), "twin_perplexity": None} | {
            key: diversity[name][key] for key in ("entropy", "repetition")}
    same = [alike.between(group, group)["combined"][~np.eye(n_seeds, dtype=bool)].mean() for group in
            ([s["completion"] for s in samples[i:i + n_seeds]] for i in range(0, len(samples), n_seeds))] if n_seeds > 1 else []
    diversity["generated"]["same_prompt_similarity"] = float(np.mean(same)) if same else None

    advance("style")
    style_found = measure_style(data, samples, english, notes)
    training = saved.get("training", {})
    result = {"checkpoint": str(path), "book": data.name, "split": split, "seed": seed, "parameters": count_parameters(model.config)["total"], "causal": model.config.causal,
              "trained": {key: training.get(key) for key in ("step", "epoch", "stage", "val_bits_per_byte")}, "likelihood": figures, "baselines": floor, "style": style_found,
              "similarity": likeness, "diversity": diversity, "memorization": memory, "judged": judged, "speed": speed, "sampling": sampling | {"max_tokens": max_tokens},
              "samples": [{key: s[key] for key in ("prompt", "completion", "seed")} for s in samples], "notes": notes}
    return result, {"model": model, "tokenizer": tokenizer, "nats": nats, "sizes": sizes, "held_bytes": held_bytes, "texts": texts}


def measure_style(data, samples, english, notes):
    """The contract's `style`, or None with the reason in notes: samples and controls of one number and length against the book."""
    lengths = sorted(len(words_of(s["completion"])) for s in samples)
    length = lengths[len(lengths) // 10]                        # the few texts shorter than this are left out
    passages = passages_of(data.texts["train"], max(1, length))
    groups = {"generated": [found[0] for s in samples if (found := passages_of(s["completion"], max(1, length)))],
              "held_out": passages_of(data.texts["held_out"], max(1, length))}
    if control:
        groups["control"] = passages_of("\n\n".join(paragraph for paragraph, _ in clean(read_book(control)[0])), max(1, length))
    size = min(len(passages) // 4, *map(len, groups.values()))
    if length < 25 or size < 4:
        notes.append(f"Style is not measured: it wants at least 4 samples and controls of 25 words and 16 such passages of the book; here are {len(samples)} samples of {length} words, "
                     + ", ".join(f"{len(group)} passages {name.replace('_', '-')}" for name, group in groups.items() if name != "generated") + f" and {len(passages)} of the book.")
        return None
    groups = {name: spread(group, size) for name, group in groups.items()}
    mixed = " ".join(groups["held_out"]).split()
    np.random.default_rng(seed).shuffle(mixed)
    groups["shuffled"] = spread(passages_of(" ".join(mixed), length), size)
    return style(passages, groups, english, seed)


def judge(results, found):
    """Let the first causal checkpoint say how likely it finds the samples of the others, and held-out text."""
    twin = next((f for f, r in zip(found, results) if r["causal"]), None)
    for result, own in zip(results, found) if twin else ():
        for name, group in own["texts"].items():
            rows = [torch.tensor(ids) for ids in chop([twin["tokenizer"].encode(text) for text in group], twin["model"].config.block_size)]
            bound = held_out_bound(twin["model"], rows)
            result["judged"][name]["twin_perplexity"] = math.exp(float(bound.per_sequence.sum() / bound.length.sum()))


# ---- in plain words --------------------------------------------------------------------------------------------------

def summarise(result):
    """{"good", "bad", "next"}: lists of sentences, by rules that can be read here."""
    good, bad, advice = [], [], []
    like, floor, memory, style_found = result["likelihood"], result["baselines"], result["memorization"], result["style"]
    bits, gain, error = like["bits_per_byte"], like["gain_over_ngram"], 2 * (like["gain_over_ngram_se"] or 0)
    kinds = f"Of held-out text it predicts a byte at a cost of {bits:.2f} bits (lower is better); word frequencies alone need {floor['unigram_bits_per_byte']:.2f}, counting runs of words {floor['ngram_bits_per_byte']:.2f}"
    if bits >= floor["unigram_bits_per_byte"]:
        bad.append(f"{kinds}: it has not yet learned that words depend on their neighbours.")
        advice.append("Train for more steps; small batches get off this plateau sooner.")
    elif gain < -error:
        bad.append(f"{kinds}: it uses context, but less well than a table of counts does.")
        advice.append("Train longer, and watch the validation bound in log.jsonl for the point where it stops falling.")
    else:
        (good if gain > error else bad).append(f"{kinds}: it predicts {'better than the table' if gain > error else 'about as well as a table'} of counts.")
    if bits < 0.75:
        bad.append(f"{bits:.2f} bits per byte is too good to be true for a model that has read one book: the held-out text was probably among its training text.")
        advice.append("Prepare the book afresh and train again before believing any other number here.")
    rates = like["bits_per_token_by_mask_rate"]
    if rates and rates[-1] > floor["unigram_bits_per_token"] + 0.05 and bits < floor["unigram_bits_per_byte"]:
        bad.append(f"With nine tenths of a text hidden, as when it begins to write, it predicts worse than word frequencies ({rates[-1]:.1f} against {floor['unigram_bits_per_token']:.1f} bits per token).")
        advice.append("Raise the last stage's replay, so that it keeps seeing the full range of mask rates.")
    mine, human = memory["generated"], memory.get("held_out")
    if human and human["longest_run_tokens"] >= 50:
        bad.append(f"Held-out text shares {human['longest_run_tokens']} tokens in a row with the training text: the book repeats itself, or the split leaks.")
    normal = human["copied_share"] if human else 0.0
    kinds = f"{mine['copied_share']:.0%} of its text stands in copied runs of 8 tokens or more ({normal:.0%} in held-out text); the longest copy is {mine['longest_run_tokens']} tokens"
    if mine["copied_share"] > 2 * normal + 0.1:
        bad.append(f"It recites: {kinds}.")
        advice.append("Stop earlier, make the model smaller, or sample at a higher temperature: much of what reads well here is the book itself.")
    else:
        good.append(f"It does not recite the book: {kinds}.")
    if style_found:
        off = sorted(((abs(m["generated"]["deviation"]), MEASURES[name][0]) for name, m in style_found["measures"].items()), reverse=True)
        far = "; ".join(f"{label.lower() if label[1:2].islower() else label} ({deviation:.0f})" for deviation, label in off[:3])
        kinds = f"its distance from the book is {style_found['distance']['generated']:.1f} where the book's own passages stay under {style_found['limit']:.1f}"
        if style_found["in_style"]["generated"]:
            good.append(f"By {len(off)} measures its style is within the book's own variation: {kinds}.")
        else:
            bad.append(f"It is not yet in the book's style: {kinds}. Furthest off, in standard deviations: {far}.")
        if not style_found["in_style"]["held_out"]:
            bad.append("Held-out chapters do not pass for the book either, so its parts differ much from one another: read the style figures as a comparison, not as a verdict.")
    mine, human = result["diversity"]["generated"], result["diversity"].get("held_out")
    if human and human["repetition"] is not None and mine["repetition"] is not None:
        kinds = f"{mine['repetition']:.0%} of its four-word runs repeat within a text ({human['repetition']:.0%} in held-out text), and its words carry {mine['entropy']:.1f} bits each ({human['entropy']:.1f})"
        if mine["repetition"] > human["repetition"] + 0.05 or mine["entropy"] < human["entropy"] - 1:
            bad.append(f"It repeats itself: {kinds}.")
            advice.append("Sample with --sampling.temperature=0.9 or higher, a larger top_k and top_p, or a repetition_penalty of 1.2.")
        else:
            good.append(f"Its vocabulary is varied: {kinds}.")
    if not advice:
        advice.append("Try a larger model or more sampling steps, and compare with --compare.")
    return {"good": good, "bad": bad, "next": advice}


# ---- the page --------------------------------------------------------------------------------------------------------

GROUPS = {"generated": "generated", "held_out": "held-out", "shuffled": "shuffled words", "control": "control book", "book": "the book"}
INKS = {name: f"#0{i}0{i}0{i}" for i, name in enumerate(("ink", "faint", "generated", "held_out", "shuffled", "control", "book"), 1)}   # become CSS variables


def number(value, digits=2, percent=False):
    """A figure as a person reads it; a dash for what was not measured."""
    if value is None:
        return "–"
    return f"{value:.1%}" if percent else f"{value:,.{digits}f}"


def table(head, rows):
    """An HTML table whose cells carry their column's name, so that a narrow screen can stack them."""
    cells = ["".join(f'<td data-label="{html.escape(name)}">{cell}</td>' for name, cell in zip(head, row)) for row in rows]
    return "<table><thead><tr>" + "".join(f"<th>{name}</th>" for name in head) + "</tr></thead><tbody><tr>" + "</tr><tr>".join(cells) + "</tr></tbody></table>"


def plots(results, names):
    """{name: inline SVG} that takes its colours from the page, light or dark."""
    import matplotlib
    matplotlib.use("svg")
    import matplotlib.pyplot as plt
    style_of = {"svg.fonttype": "none", "svg.hashsalt": "evaluation", "font.size": 9.5, "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False} | dict.fromkeys(
        ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INKS["ink"])
    first, drawn = results[0], {}

    def finish(name, figure):
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, bbox_inches="tight", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
        plt.close(figure)
        svg = file.getvalue()
        svg = re.sub(r"<metadata>.*?</metadata>|(?<=<svg )(height|width)=\"[^\"]*\"|(?<= )(height|width)=\"[\d.]+pt\"", "", svg[svg.index("<svg"):], flags=re.S)
        for ink, colour in INKS.items():
            svg = svg.replace(colour, f"var(--{ink})")
        drawn[name] = re.sub(r'(id="|#)(?=[a-zA-Z])', rf"\1{name}-", svg)          # ids must not meet those of another plot

    with plt.rc_context(style_of):
        bars = [(name, r["likelihood"]["bits_per_byte"], r["likelihood"]["bits_per_byte_se"] or 0, "generated" if i == 0 else "control") for i, (name, r) in enumerate(zip(names, results))]
        floor = first["baselines"]
        bars += [(f"{floor['ngram_order']}-gram", floor["ngram_bits_per_byte"], 0, "book"), (f"compressor ({floor['compressor']})", floor["compressor_bits_per_byte"], 0, "book"),
                 ("word frequencies", floor["unigram_bits_per_byte"], 0, "book")]
        figure, axes = plt.subplots(figsize=(4.8, 0.8 + 0.36 * len(bars)))
        axes.barh([b[0] for b in bars], [b[1] for b in bars], xerr=[2 * b[2] for b in bars], color=[INKS[b[3]] for b in bars], ecolor=INKS["ink"], height=0.62)
        for i, bar in enumerate(bars):
            axes.text(bar[1] + 2 * bar[2] + 0.03, i, f"{bar[1]:.3f}", va="center")
        axes.invert_yaxis()
        axes.set(xlabel="bits per held-out byte, lower is better", xlim=(0, 1.15 * max(b[1] + 2 * b[2] for b in bars)))
        axes.tick_params(left=False)
        finish("bits", figure)

        curves = [(name, r["likelihood"]["bits_per_token_by_mask_rate"]) for name, r in zip(names, results) if r["likelihood"]["bits_per_token_by_mask_rate"]]
        if curves:
            figure, axes = plt.subplots(figsize=(4.8, 2.9))
            for i, (name, curve) in enumerate(curves):
                axes.plot(np.arange(5, 100, 10), curve, "o-", ms=4, label=name, color=INKS[list(INKS)[2 + i % 5]])
            axes.axhline(floor["unigram_bits_per_token"], color=INKS["book"], ls="--", label="word frequencies")
            axes.set(xlabel="share of the text that is hidden, %", ylabel="bits per hidden token, lower is better", xlim=(0, 100))
            axes.legend()
            finish("rates", figure)

        figure, axes = plt.subplots(figsize=(4.8, 2.9))
        for group, found in first["memorization"].items():
            known = [(int(n), 100 * v) for n, v in found["novelty"].items() if v is not None]
            axes.plot(*zip(*known), "o-", ms=4, color=INKS[group], label=GROUPS[group])
        axes.set(xlabel="run of n tokens", ylabel="not found in the training text, %", ylim=(-3, 103))
        axes.legend()
        finish("novelty", figure)

        if first["style"]:
            measures = first["style"]["measures"]
            groups = [g for g in ("shuffled", "control", "held_out", "generated") if g in first["style"]["distance"]]
            figure, axes = plt.subplots(figsize=(4.8, 0.9 + 0.24 * len(measures)))
            axes.axvspan(-2, 2, color=INKS["book"], alpha=0.25, lw=0)
            for group in groups:
                z = [max(-12, min(12, m[group]["deviation"])) for m in measures.values()]
                axes.scatter(z, range(len(z)), s=26, color=INKS[group], label=GROUPS[group], marker={"generated": "o", "held_out": "D", "shuffled": "x", "control": "^"}[group], zorder=3)
            axes.set(yticks=range(len(measures)), yticklabels=[MEASURES[name][0] for name in measures], xlim=(-12.8, 12.8), xlabel="standard deviations from the book's own passages")
            axes.grid(axis="y", color=INKS["faint"], lw=0.5)
            axes.tick_params(left=False)
            axes.invert_yaxis()
            figure.legend(*axes.get_legend_handles_labels(), ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1.0))
            finish("style", figure)
            figure, axes = plt.subplots(figsize=(4.8, 2.9))
            for group in ("book", "held_out", "generated"):
                axes.step(np.arange(0, 80, 5), [100 * v for v in first["style"]["sentence_lengths"][group]], where="post", color=INKS[group], label=GROUPS[group])
            axes.set(xlabel="words in a sentence (the last step: 76 and more)", ylabel="share of sentences, %")
            axes.legend()
            finish("sentences", figure)
    return drawn


PAGE = string.Template("""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1"><title>$title</title><style>
:root { color-scheme: light dark; --paper: #fbfaf6; --card: #fff; --ink: #22252b; --faint: #dcdad2; --quiet: #666b73;
        --generated: #2456b8; --held_out: #14804f; --shuffled: #b4501e; --control: #8a4fae; --book: #a3a8b0; }
@media (prefers-color-scheme: dark) { :root { --paper: #15171b; --card: #1d2025; --ink: #e6e6e3; --faint: #363a42; --quiet: #a0a5ad;
        --generated: #7fa9ff; --held_out: #5cc99a; --shuffled: #f09a6a; --control: #cf9bea; --book: #737983; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.2rem 4rem; max-width: 70rem; background: var(--paper); color: var(--ink); font: 16px/1.55 system-ui, sans-serif; overflow-wrap: break-word; }
h1 { font: 600 clamp(1.6rem, 5vw, 2.3rem)/1.2 Georgia, serif; margin: 0 0 .3rem; } h2 { font: 600 1.35rem/1.3 Georgia, serif; margin: 2.6rem 0 .4rem; }
p { max-width: 46rem; margin: .5rem 0; } .quiet, figcaption, .unit { color: var(--quiet); font-size: .87rem; } .unit { display: block; }
.summary { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 18rem), 1fr)); margin: 1.4rem 0; }
.summary section, figure, blockquote { background: var(--card); border: 1px solid var(--faint); border-radius: 10px; padding: .9rem 1.1rem; margin: 0; }
.summary h3 { margin: 0; font-size: 1rem; } .good h3 { color: var(--held_out); } .bad h3 { color: var(--shuffled); } .next h3 { color: var(--generated); }
.summary ul { margin: .4rem 0 0; padding-left: 1.1rem; } .summary li { margin: .35rem 0; }
.pair { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); margin: 1rem 0; align-items: start; }
svg { width: 100%; height: auto; display: block; } svg text { font-family: system-ui, sans-serif !important; } figcaption { margin-top: .5rem; }
table { border-collapse: collapse; width: 100%; margin: 1rem 0; font-variant-numeric: tabular-nums; font-size: .93rem; }
th, td { text-align: left; padding: .38rem .7rem .38rem 0; border-bottom: 1px solid var(--faint); vertical-align: top; } th { color: var(--quiet); font-weight: 500; }
.in::after { content: " ✓"; color: var(--held_out); } .out::after { content: " ✗"; color: var(--shuffled); }
blockquote p { margin: 0; white-space: pre-wrap; font-family: Georgia, serif; } blockquote b { font-weight: 600; } blockquote footer { margin-top: .5rem; }
@media (max-width: 640px) { body { padding: 1.2rem .8rem 3rem; } figure { padding: .5rem; } thead { display: none; } tr { display: block; padding: .5rem 0; border-bottom: 1px solid var(--faint); }
  td { display: flex; justify-content: space-between; gap: 1rem; border: 0; padding: .12rem 0; text-align: right; } td::before { content: attr(data-label); color: var(--quiet); text-align: left; flex: none; }
  td:first-child { display: block; text-align: left; font-weight: 600; } td:first-child::before { content: none; } .unit { display: inline; font-weight: 400; margin-left: .4rem; } }
</style></head><body>
<h1>$title</h1><p class="quiet">$about</p>
<div class="summary">$summary</div>
<h2>How well does it predict?</h2>
<p>The figure that can be compared across models, vocabularies and books: how many bits the model needs for each byte of text that it has never seen. $bound</p>
<div class="pair">$bits$rates</div>$predictions$compare
<h2>Is it in the book's style?</h2>$style
<h2>Does it recite?</h2>
<p>What it wrote, looked up token by token in the training text. Held-out chapters by the same hand show how much overlap is only natural.</p>
<div class="pair">$novelty<div>$memorization</div></div>$copied
<h2>Is it varied?</h2>
<p>Texts from several prompts and seeds, beside as many held-out passages of the same length. Nearer to held-out is better; the arrow says which way usually improves on a weak model.</p>$diversity
<h2>How fast is it?</h2>$speed
<h2>What it writes</h2>$samples
<h2>How this was measured</h2>$notes
</body></html>
""")


def page(results, names, found_differences):
    """The report of results[0], others beside it, as one HTML file that needs no network."""
    r, drawn = results[0], plots(results, names)
    like, memory, style_found, speed = r["likelihood"], r["memorization"], r["style"], r["speed"]

    def figure(name, caption):
        return f"<figure>{drawn[name]}<figcaption>{caption}</figcaption></figure>" if name in drawn else ""

    def name_of(label, unit, direction=""):
        return f'{label} {direction} <span class="unit">{unit}</span>'

    def beside(found, rows):
        groups = list(found)
        return table(["Measure", *(GROUPS[g] for g in groups)], [[name_of(label, unit, way), *(number(found[g].get(key), digits, unit.startswith("share")) for g in groups)] for key, label, unit, way, digits in rows])

    titles = {"good": "What is good", "bad": "What is not", "next": "What to try next"}
    summary = "".join(f'<section class="{key}"><h3>{titles[key]}</h3><ul>' + "".join(f"<li>{html.escape(s)}</li>" for s in sentences or ["Nothing that these measures show."]) + "</ul></section>"
                      for key, sentences in r["summary"].items())
    error = "" if like["bits_per_byte_se"] is None else f" ± {like['bits_per_byte_se']:.3f}"
    kind = "exact" if like["exact"] else f"a bound from {points} masks per sequence: the true figure is this or lower"
    rows = [[name_of("Cost", f"bits per byte, {kind}", "↓"), f"{like['bits_per_byte']:.3f}{error}"],
            [name_of("Saved against counting runs of words", "bits per byte, same sequences", "↑"), f"{like['gain_over_ngram']:.3f}" + (f" ± {like['gain_over_ngram_se']:.3f}" if like["gain_over_ngram_se"] else "")],
            [name_of("Perplexity", "per token of this vocabulary", "↓"), number(like["perplexity"], 1)]]
    if like["left_to_right_bits_per_byte"] is not None and not like["exact"]:
        rows.append([name_of("Unmasked left to right", "bits per byte, exact", "↓"), number(like["left_to_right_bits_per_byte"], 3)])
    rows += [[name_of(f"Masked perplexity, {float(rate):.0%} hidden", "per hidden token; not a likelihood, it sees the rest", "↓"), number(value, 1)] for rate, value in (like["masked_perplexity"] or {}).items()]
    compare = ""
    if len(results) > 1:
        compare = "<h3>Side by side</h3>" + table(
            ["checkpoint", "kind", "parameters", "bits per byte ↓", "more than the first ↓", "style distance ↓", "copied share ↓", "repetition ↓", "distinct 2-grams ↑", "tokens/s, one text ↑"],
            [[html.escape(name), "causal" if x["causal"] else "diffusion", f"{x['parameters']:,}", f"{x['likelihood']['bits_per_byte']:.3f} ± {number(x['likelihood']['bits_per_byte_se'], 3)}", more,
              number(x["style"] and x["style"]["distance"]["generated"]), number(x["memorization"]["generated"]["copied_share"], percent=True), number(x["diversity"]["generated"]["repetition"], percent=True),
              number(x["diversity"]["generated"]["distinct_2"], percent=True), number(x["speed"]["one_text_tokens_per_second"], 0)] for name, x, more in zip(names, results, found_differences)])
    styled = "<p>Not measured: see the last section.</p>"
    if style_found:
        groups = list(style_found["distance"])
        verdicts = [[name_of("Distance from the book", "root mean square of the deviations below", "↓"), f"under {style_found['limit']:.2f}",
                     *(f'<span class="{"in" if style_found["in_style"][g] else "out"}">{style_found["distance"][g]:.2f}</span>' for g in groups)]]
        for key, m in style_found["measures"].items():
            low, high = m["range"]
            shown = [f'<span class="{"in" if m[g]["value"] <= high and (key in DISTANCES or m[g]["value"] >= low) else "out"}">{m[g]["value"]:.3g}</span>' for g in groups]
            verdicts.append([name_of(MEASURES[key][0], m["unit"], "↓" if key in DISTANCES else "↔"), f"under {high:.3g}" if key in DISTANCES else f"{low:.3g} to {high:.3g}", *shown])
        styled = (f"<p>{style_found['passages']} passages of {style_found['words_per_passage']} words were drawn from the book {REPLICATES} times: the range is where 95 % of those draws fall, ✓ is inside it. "
                  "One measure in twenty misses by chance; the distance weighs them together. Held-out chapters should pass, shuffled words should not. ↔: neither high nor low is better.</p>"
                  f'<div class="pair">{figure("style", "The band is two standard deviations of the book itself; marks at the edge lie beyond it.")}{figure("sentences", "How long its sentences are.")}</div>'
                  + table(["Measure", "the book's range", *(GROUPS[g] for g in groups)], verdicts))
    copied = "".join(f"<blockquote><p>{html.escape(m['longest_run_text'].strip())}</p><footer class=quiet>The longest run that {GROUPS[g]} text shares with the training text: {m['longest_run_tokens']} tokens.</footer></blockquote><br>"
                     for g, m in memory.items() if m["longest_run_tokens"])
    mixed = {g: r["diversity"][g] | r["judged"][g] | {f"to_{k}": v for k, v in r["similarity"][g].items()} for g in r["diversity"]}
    varied = beside(mixed, [
        ("entropy", "Entropy", "bits per word", "↑", 2), ("repetition", "Repetition within a text", "share of four-word runs", "↓", 2), *((f"distinct_{n}", f"Distinct {n}-grams", "share", "↑", 2) for n in (1, 2, 3, 4)),
        ("self_bleu", "Self-BLEU", "0–1, each text against the others", "↓", 3), ("pairwise_similarity", "Similarity of any two texts", "0–1, combined", "↓", 3),
        ("same_prompt_similarity", "Similarity of texts from one prompt", "0–1, combined", "↓", 3), *((f"to_{k}", f"Similarity to the book: {k}", "0–1", "↑", 3) for k in r["similarity"]["generated"]),
        ("ngram_perplexity", f"Perplexity under the {r['baselines']['ngram_order']}-gram model", "per token; low also for dull or copied text, so read it with entropy and repetition", "↔", 1),
        ("twin_perplexity", "Perplexity under the causal twin", "per token; the same caution", "↔", 1)])
    pace = table(["Measure", "value"], [
        [name_of("One text", "tokens per second", "↑"), number(speed["one_text_tokens_per_second"], 0)], [name_of("One text", f"seconds, {speed['one_text_calls']} calls of the network", "↓"), number(speed["one_text_seconds"])],
        [name_of(f"{speed['texts']} texts together", f"tokens per second, {speed['calls']} calls", "↑"), number(speed["tokens_per_second"], 0)],
        [name_of("Peak memory", f"GB, on {speed['device']}" + (", this program included" if speed["device"] == "cpu" else ""), "↓"), number(speed["memory_gb"])]])
    quotes = "".join(f"<blockquote><p><b>{html.escape(s['prompt'])}</b>{html.escape(s['completion'].rstrip())}</p><footer class=quiet>seed {s['seed']}</footer></blockquote>" for s in spread(r["samples"], 6))
    notes = [*r["notes"], f"Likelihood on the {r['split']} split, cut at the model's context of tokens; baselines are trained on the same training text and forget their context at the same places. "
             "± is one standard error over sequences; bars show two. All of the text's bytes are counted, whatever the vocabulary.",
             f"Samples: {html.escape(', '.join(f'{k} {v}' for k, v in r['sampling'].items()))}; seeds from {r['seed']}. "
             "Memorization compares tokens, the other text measures compare words in lower case; held-out passages are from both held-out splits."]
    trained = ", ".join(f"{key} {value:,.6g}" for key, value in r["trained"].items() if isinstance(value, (int, float)) and key != "val_bits_per_byte")
    return PAGE.substitute(
        title=html.escape(f"A model of {r['book']}, measured"), summary=summary, bound="It is an upper bound for a diffusion model and exact for a causal one." if len(results) > 1 else "",
        about=html.escape(f"{r['checkpoint']}: {'causal' if r['causal'] else 'diffusion'} model, {r['parameters']:,} parameters{', ' + trained if trained else ''}; {like['bytes']:,} bytes ({like['tokens']:,} tokens) of held-out text."),
        bits=figure("bits", "Cost of held-out text; the line at a bar's end is two standard errors either way."), rates=figure("rates", "By how much is hidden; the mean over the whole width is the bound. Writing begins at the right."),
        predictions=table(["Measure", "value"], rows), compare=compare, style=styled, novelty=figure("novelty", "How many runs of n tokens are its own."),
        memorization=beside(memory, [("longest_run_tokens", "Longest verbatim run", "tokens", "↓", 0), ("copied_share", "In copied runs of 8 tokens and more", "share of tokens", "↓", 2), ("tokens", "Text looked at", "tokens", "", 0)]),
        copied=copied, diversity=varied, speed=pace, samples=f'<div class="pair">{quotes}</div>', notes="".join(f"<p>{note}</p>" for note in notes))


# ---- the run ---------------------------------------------------------------------------------------------------------

def compare_texts():
    """Print the similarity of text1 and text2, each a text or the path of one, as JSON."""
    pair = [Path(text).read_text(encoding="utf-8") if len(text) < 255 and Path(text).is_file() else text for text in (text1, text2)]
    if not all(words_of(text) for text in pair):
        fail("--text1 and --text2 must both hold words")
    latest = Path("data/latest")
    folder = Path("data") / (book or (latest.read_text(encoding="utf-8").strip() if latest.exists() else fail("no book is prepared here: python prepare.py BOOK.txt")))
    if not (folder / "text.txt").exists():
        fail(f"{folder} is missing: prepare the book first")
    text = (folder / "text.txt").read_text(encoding="utf-8")
    tables = Similarity(passages_of(text, 80), is_english(words_of(text))).between(pair[:1], pair[1:])
    print(json.dumps({name: round(float(values[0, 0]), 4) for name, values in tables.items()}))


def main():
    configure(globals())
    if text1 or text2:
        return compare_texts()
    if points < 10 or points % 10 or split not in ("val", "test") or min(n_prompts, n_seeds, max_tokens) < 1:
        fail("--points must be a multiple of ten, --split val or test, and --n_prompts, --n_seeds and --max_tokens at least 1")
    chosen = [checkpoint or out_dir, *filter(None, compare.split(","))]
    paths = [Path(name) if name.endswith(".pt") else Path(name) / "best.pt" for name in chosen]
    begun, results, found = time.perf_counter(), [], []
    with Progress("{task.description}", BarColumn(), TimeElapsedColumn(), console=Console(stderr=True)) as progress:
        bar = progress.add_task("loading", total=8 * len(paths))
        for path in paths:
            def advance(what, steps=1, path=path):
                progress.update(bar, advance=steps, description=f"{path}: {what}")
            result, kept = evaluate_checkpoint(path, advance)
            if found and kept["held_bytes"] != found[0]["held_bytes"]:
                fail(f"{path} was trained with other held-out text than {paths[0]}: the two cannot be compared")
            results.append(result)
            found.append(kept)
        judge(results, found)
        differences = ["–"]
        for kept in found[1:]:
            if np.array_equal(kept["sizes"], found[0]["sizes"]):
                difference, error = bits_per_byte(kept["nats"] - found[0]["nats"], kept["sizes"])
                differences.append(f"{difference:+.3f} ± {number(error, 3)}")
            else:
                differences.append(f"{(kept['nats'].sum() - found[0]['nats'].sum()) / kept['sizes'].sum() / math.log(2):+.3f}")
        for result in results:
            result["summary"] = summarise(result)
        progress.update(bar, advance=1, description="plots")
        folder = Path(out_dir)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "evaluation.html").write_text(page(results, chosen, differences), encoding="utf-8")
        first = results[0] | ({"compare": results[1:]} if compare else {})
        (folder / "evaluation.json").write_text(json.dumps(first, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
    for title, sentences in results[0]["summary"].items():
        for sentence in sentences:
            print(f"{ {'good': '+', 'bad': '-', 'next': '>'}[title] } {sentence}")
    print(f"{folder}/evaluation.json and {folder}/evaluation.html, {time.perf_counter() - begun:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
