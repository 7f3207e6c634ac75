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
import string
import sys
import time
from collections import Counter
from dataclasses import asdict
from itertools import groupby, pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TimeElapsedColumn

import sample
from configurator import configure, fail, write_json
from model import Sampling, count_parameters, held_out_bound, hide, parts, peak_memory_gb
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
n_prompts = 8               # how many prompts
n_seeds = 3                 # texts per prompt
max_tokens = 100            # tokens per text, less where the model's context is short
sampling = Sampling()       # how the samples are drawn, as in sample.py: --steps=50, --block_size=16
text1 = ""                  # with text2: print the similarity of two texts (or of two files) and do nothing else
text2 = ""                  # the other text

NGRAM_ORDER = 4             # of the n-gram baseline; on one book a fifth token gains nothing measurable
RATES = (0.05, 0.1, 0.15, 0.2, 0.5, 0.9)        # mask rates of the masked perplexity
MASK_DRAWS = 4              # masks per sequence and rate
REPLICATES = 200            # bootstrap samples of the book's own style,
RUN = 8                     # in runs of this many neighbouring passages, about a scene
FUNCTION_WORDS = frozenset("""a about above after again against all although am among an and any are as at be because been before being
    below between both but by can could did do does down during each either else even every few for from had has have he her hers him his
    how however i if in into is it its itself may me might more most much must my myself neither no nor not now of off on once only or
    other ought our ours out over own same shall she should since so some still such than that the their them themselves then there these
    they this those though through thus till to too under until up upon us very was we were what when where whether which while who whom
    whose why will with within without would yet you your yours""".split())


# ---- an n-gram model -------------------------------------------------------------------------------------------------

class NGram:
    """Interpolated Kneser-Ney (Chen and Goodman 1999, sec. 2.7) over token ids 0 .. vocab-1, the unigram interpolated with the
    uniform distribution, so that every token has a probability.

    The discount of each order is n1 / (n1 + 2·n2) (Ney et al. 1994). A sequence begins without context: its first tokens are
    predicted by lower orders, whose counts are of distinct left neighbours, the beginning of a sequence being one. NLTK's model
    is the same but for the discount, and takes 24 ms a token.
    """

    def __init__(self, order, vocab, sequences):
        """Learn from lists of token ids."""
        self.vocab, self.tables = vocab, []     # per order: discount, counts, and by context their sum and how many are distinct
        for k in range(1, order + 1):
            places = [(s, i) for s in sequences for i in range(len(s) - k + 1)]
            if k == order:
                counts = Counter(tuple(s[i:i + k]) for s, i in places)
            else:
                counts = Counter(gram[1:] for gram in {(s[i - 1] if i else None, *s[i:i + k]) for s, i in places})
            seen = Counter(counts.values())
            discount = seen[1] / (seen[1] + 2 * seen[2]) if seen[1] else 0.5        # without a count of one, any discount will do
            total, distinct = Counter(), Counter()
            for gram, count in counts.items():
                total[gram[:-1]] += count
                distinct[gram[:-1]] += 1
            self.tables.append((discount, counts, total, distinct))

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
                p = (max(counts[gram] - discount, 0) + discount * distinct[context] * p) / total[context]
            result[i] = -math.log(p)
        return result


# ---- measures of a text ----------------------------------------------------------------------------------------------

PIECE = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\s\u3040-\u30ff\u3400-\u9fff]+")      # between spaces; a character where none are written


def passages_of(text, length):
    """Consecutive passages of `length` words, none cut, so sometimes one or two more; what is left at the end is dropped."""
    passages, begin, count = [], 0, 0
    for piece in PIECE.finditer(text):
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
    return float(np.mean([type_token_ratio(gram) for gram in ngrams(words, min(window, len(words)))]))


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


def burrows_delta(first, second, spread):
    """Mean over words of |z - z'|, how far two texts' relative frequencies (W,) lie apart in standard deviations of a corpus, `spread`
    (W,) (Burrows 2002; this form: Argamon 2008); words that never vary are left out."""
    return float(np.mean((np.abs(first - second) / np.where(spread > 0, spread, 1))[spread > 0]))


def jensen_shannon(p, q):
    """Distance of two count vectors' distributions, 0 (the same) to 1 (nothing in common, or one of them empty)."""
    from scipy.spatial.distance import jensenshannon
    return float(jensenshannon(p, q, base=2)) if np.any(p) and np.any(q) else 1.0


def distinct_n(texts, n):
    """Distinct n-grams per n-gram over all texts (lists of words) (Li et al., 1510.03055); None if there are none."""
    grams = [gram for words in texts for gram in ngrams(words, n)]
    return len(set(grams)) / len(grams) if grams else None


def repetition(texts, n=4):
    """Share of n-grams that their own text has had before; None if there are none."""
    grams = [ngrams(words, n) for words in texts]
    total = sum(map(len, grams))
    return 1 - sum(len(set(g)) for g in grams) / total if total else None


def entropy(texts):
    """Bits per word of the distribution of words over all texts; None if there are none."""
    counts = np.array(list(Counter(word for words in texts for word in words).values()), float)
    return float(np.log2(counts.sum()) - (counts * np.log2(counts)).sum() / counts.sum()) if len(counts) else None


def self_bleu(texts):
    """Mean BLEU-4 of each text (a list of words) against all others (Zhu et al., 1802.01886); None for fewer than two."""
    from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
    smooth = SmoothingFunction().method1        # an n of which none is shared is no reason to forget the others
    if len(texts) < 2:
        return None
    return float(np.mean([sentence_bleu(texts[:i] + texts[i + 1:], words, smoothing_function=smooth) for i, words in enumerate(texts)]))


def match_lengths(ids, source):
    """For each position of ids, how many tokens from there on stand verbatim somewhere in source, both as `as_characters` gives them."""
    lengths, length = [], 0
    for i in range(len(ids)):
        length = max(length - 1, 0)             # what matched from i-1 still matches from i, one shorter
        while i + length < len(ids) and ids[i:i + length + 1] in source:
            length += 1
        lengths.append(length)
    return lengths


def as_characters(ids):
    """Token ids as a str of one character each: Python's substring search is then a search for runs of tokens."""
    return "".join(map(chr, ids))


def memorization(texts, source, decode, shortest=8):
    """How much of texts (lists of ids) is copied from source (a list of ids): the longest run; the share of tokens in runs of
    `shortest` and more; novelty[n], the share of n-grams that source does not have, for n = 2 .. 16."""
    source = as_characters(source)
    found = [match_lengths(as_characters(ids), source) for ids in texts]
    copied, total = 0, sum(map(len, texts))
    for lengths in found:
        end = 0                                 # of the copied runs so far, which may overlap
        for i, length in enumerate(lengths):
            if length >= shortest:
                copied += i + length - max(i, end)
                end = i + length
    longest, passage = max(((length, ids[i:i + length]) for ids, lengths in zip(texts, found) for i, length in enumerate(lengths)),
                           key=lambda run: run[0], default=(0, []))
    novelty = {}
    for n in range(2, 17):
        grams = [length for lengths in found for length in lengths[:max(0, len(lengths) - n + 1)]]
        novelty[str(n)] = sum(length < n for length in grams) / len(grams) if grams else None
    return {"longest_run_tokens": longest, "longest_run_text": decode(passage), "copied_share": copied / total if total else None,
            "tokens": total, "novelty": novelty}


# ---- style: inside the book's own variation? -------------------------------------------------------------------------

INSIDE, LESS, MORE = "↔", "↓", "↑"      # best inside the book's own range, lower, higher
STYLE = {                               # label, unit, direction; those that are better lower are distances from the book
    "sentence_length": ("Sentence length, mean", "words", INSIDE),
    "sentence_spread": ("Sentence length, standard deviation", "words", INSIDE),
    "sentence_profile": ("Sentence lengths", "distance, 0–1", LESS),
    "type_token_ratio": ("Type-token ratio", "distinct words per word", INSIDE),
    "mattr": ("Moving-average type-token ratio", "distinct words per word, windows of 50", INSIDE),
    "mtld": ("MTLD", "words per factor", INSIDE),
    "yules_k": ("Yule's K", "repeated pairs per 10,000", INSIDE),
    "coverage": ("Words that the rest of the book uses too", "share of words", INSIDE),
    "punctuation": ("Punctuation", "marks per word", INSIDE),
    "delta": ("Burrows's Delta, top 150 words", "standard deviations", LESS),
    "character_profile": ("Groups of three characters", "distance, 0–1", LESS),
    "flesch_kincaid": ("Flesch-Kincaid", "school grade", INSIDE),
    "gunning_fog": ("Gunning Fog", "school years", INSIDE),
    "function_words": ("Function words", "share of words", INSIDE),
    "function_profile": ("Choice of function words", "distance, 0–1", LESS),
    "tag_profile": ("Order of parts of speech", "distance, 0–1", LESS),
    "chunk_profile": ("Shapes of phrases", "distance, 0–1", LESS),
}                                       # from Flesch-Kincaid on they know English alone


def parsed(text):
    """(part-of-speech tags by sentence, phrases as "NP DT JJ NN") from TextBlob's lexicon."""
    from textblob.en import parse
    sentences, phrases = [], []
    for line in parse(text).split("\n"):
        tokens = [token.rsplit("/", 3) for token in line.split()]
        sentences.append([tag for _, tag, _, _ in tokens])
        for _, tag, chunk, _ in tokens:
            if chunk.startswith("B-"):
                phrases.append(f"{chunk[2:]} {tag}")
            elif chunk.startswith("I-") and phrases:
                phrases[-1] += f" {tag}"
    return sentences, phrases


def traits(text, punkt, english):
    """(words, sentence lengths in words, {name: number}, {name: Counter}): what a passage contributes to its sample's measures."""
    text = " ".join(text.split())
    words = words_of(text)
    lengths = [n for part in punkt.tokenize(text) for piece in re.split(r"(?<=[。！？])", part) if (n := len(words_of(piece)))]
    numbers = {"punctuation": (len(re.findall(r"[^\w\s]", text)) - sum(len(re.findall(r"\W", word)) for word in words)) / len(words)}
    profiles = {"words": Counter(words), "sentence_profile": Counter(str(n // 4) for n in lengths),
                "character_profile": Counter("".join(gram) for gram in ngrams(text.lower(), 3))}
    if english:
        import textstat
        tags, phrases = parsed(text)
        function_words = [word for word in words if word in FUNCTION_WORDS]
        numbers |= {"flesch_kincaid": textstat.flesch_kincaid_grade(text), "gunning_fog": textstat.gunning_fog(text), "function_words": len(function_words) / len(words)}
        profiles |= {"function_profile": Counter(function_words), "chunk_profile": Counter(phrases),
                     "tag_profile": Counter(" ".join(pair) for sentence in tags for pair in pairwise(sentence))}
    return words, lengths, numbers, profiles


def style(book_passages, groups, english, seed=0):
    """Is a sample of passages inside the book's own variation?

    book_passages: many texts of one length; groups: {name: K passages of that length}. K passages drawn from the book in runs of
    neighbours, again and again (a block bootstrap, Künsch 1989; without replacement, for a passage that came twice would look
    repetitive), show how each measure varies where the style is the book's by definition; profiles and coverage are taken against the
    rest of the book. `range` holds 95 % of these draws. `distance` sums up: the root mean square over the measures of the deviation in
    the draws' standard deviations (upwards alone for what is itself a distance); `limit` is what 99 of 100 draws stay under.
    """
    from nltk.tokenize.punkt import PunktSentenceTokenizer, PunktTrainer
    from sklearn.feature_extraction import DictVectorizer
    punkt = PunktSentenceTokenizer(PunktTrainer(" ".join(book_passages)).get_params())
    size, n = len(next(iter(groups.values()))), len(book_passages)
    words, lengths, numbers, profiles = zip(*(traits(text, punkt, english) for group in (book_passages, *groups.values()) for text in group))
    tables = {name: DictVectorizer().fit_transform([p[name] for p in profiles]) for name in profiles[0]}
    book_total = {name: np.asarray(table[:n].sum(0))[0] for name, table in tables.items()}
    top = np.argsort(-book_total["words"], kind="stable")[:150]

    def measure(rows):
        """({measure: value}, relative frequencies of the top words here and in the rest of the book) of these passages."""
        own_words, own_lengths = ([x for i in rows for x in lists[i]] for lists in (words, lengths))
        sums = {name: np.asarray(table[rows].sum(0))[0] for name, table in tables.items()}
        rest = {name: book_total[name] - sums[name] * (rows[0] < n) for name in sums}          # a draw from the book is not compared with itself
        values = {"sentence_length": np.mean(own_lengths), "sentence_spread": np.std(own_lengths), "type_token_ratio": type_token_ratio(own_words),
                  "mattr": mattr(own_words), "mtld": min(mtld(own_words), 1e6), "yules_k": yules_k(own_words),
                  "coverage": sums["words"][rest["words"] > 0].sum() / len(own_words)}
        values |= {name: np.mean([numbers[i][name] for i in rows]) for name in numbers[0]}
        values |= {name: jensen_shannon(sums[name], rest[name]) for name in sums if name != "words"}
        return {name: float(value) for name, value in values.items()}, sums["words"][top] / len(own_words), rest["words"][top] / rest["words"].sum()

    rng = np.random.default_rng(seed)
    draws = [measure((rng.permutation(n // RUN)[:-(-size // RUN), None] * RUN + np.arange(RUN) + rng.integers(n)).ravel()[:size] % n) for _ in range(REPLICATES)]
    measured = {name: measure(np.arange(n + i * size, n + (i + 1) * size)) for i, name in enumerate(groups)}
    spread_of_words = np.std([here for _, here, _ in draws], axis=0)
    for values, here, there in [*draws, *measured.values()]:
        values["delta"] = burrows_delta(here, there, spread_of_words)
    own = {name: np.array([values[name] for values, *_ in draws]) for name in STYLE if name in draws[0][0]}
    own = {name: values for name, values in own.items() if values.std() > 0}            # what never varies measures nothing

    def deviations(values):
        z = {name: float((values[name] - own[name].mean()) / own[name].std()) for name in own}
        return {name: max(value, 0.0) if STYLE[name][2] == LESS else value for name, value in z.items()}

    def distance(values):
        return float(np.sqrt(np.mean(np.square(list(deviations(values).values())))))

    limit = float(np.quantile([distance(values) for values, *_ in draws], 0.99))
    distances = {name: distance(values) for name, (values, *_) in measured.items()}
    measures = {}
    for name, values in own.items():
        low, high = np.quantile(values, [0, 0.95] if STYLE[name][2] == LESS else [0.025, 0.975])
        measures[name] = {"unit": STYLE[name][1], "range": [float(low), float(high)]} | {
            group: {"value": found[name], "deviation": deviations(found)[name]} for group, (found, *_) in measured.items()}
    shares = {name: np.bincount([min((length - 1) // 5, 15) for i in rows for length in lengths[i]], minlength=16) for name, rows in
              {"book": range(n), **{name: range(n + i * size, n + (i + 1) * size) for i, name in enumerate(groups)}}.items()}
    return {"passages": size, "words_per_passage": len(words[0]), "limit": limit, "distance": distances, "measures": measures,
            "in_style": {name: value <= limit for name, value in distances.items()},
            "sentence_lengths": {name: (counts / counts.sum()).tolist() for name, counts in shares.items()}}       # of 1-5, 6-10, ... words


def measure_style(train_text, held_out_text, completions, english, notes):
    """`style` of samples and controls of one number and length against the book, or None with the reason in notes."""
    lengths = sorted(len(words_of(text)) for text in completions)
    length = max(1, lengths[len(lengths) // 10])                # the few texts shorter than this are left out
    groups = {"generated": [p for text in completions for p in passages_of(text, length)[:1]], "held_out": passages_of(held_out_text, length)}
    if control:
        groups["control"] = passages_of("\n\n".join(paragraph for paragraph, _ in clean(read_book(control)[0])), length)
    passages = passages_of(train_text, length)
    size = min(len(passages) // 4, *map(len, groups.values()))
    if length < 25 or size < 4:
        notes.append("Style is not measured: it wants four texts of 25 words from each source and four times as many passages of the book; here, at "
                     f"{length} words, are " + ", ".join(f"{len(group)} {GROUPS[name]}" for name, group in groups.items()) + f" and {len(passages)} of the book.")
        return None
    groups = {name: spread(group, size) for name, group in groups.items()}
    mixed = np.random.default_rng(seed).permutation(PIECE.findall(" ".join(groups["held_out"])))
    groups["shuffled"] = [" ".join(part) for part in np.array_split(mixed, size)]
    return style(passages, groups, english, seed)


def spread(items, n):
    """n of the items (all, if there are fewer), evenly spaced."""
    return [items[i] for i in np.linspace(0, len(items) - 1, min(n, len(items))).round().astype(int)]


# ---- similarity and diversity ----------------------------------------------------------------------------------------

class Similarity:
    """Similarity of texts in three respects, 0 to 1: semantic, the cosine of TF-IDF vectors reduced by SVD, both learnt from the book
    (Deerwester et al. 1990), nothing below 0; lexical, shared words among all words (Jaccard); syntactic, 1 - Jensen-Shannon distance
    of the parts of speech (English only). Combined is their mean."""

    def __init__(self, texts, english):
        from sklearn.decomposition import TruncatedSVD
        from sklearn.feature_extraction.text import TfidfVectorizer
        from threadpoolctl import threadpool_limits
        self.english = english
        self.tfidf = TfidfVectorizer(analyzer=words_of, sublinear_tf=True)
        table = self.tfidf.fit_transform(texts)
        with threadpool_limits(1):      # the same sums in the same order on any number of cores
            self.svd = TruncatedSVD(max(1, min(100, min(table.shape) - 1)), random_state=0).fit(table)

    def between(self, first, second):
        """Two lists of texts -> {respect: (len(first), len(second)) array}."""
        from sklearn.metrics.pairwise import cosine_similarity
        a, b = ([set(words_of(text)) for text in texts] for texts in (first, second))
        result = {"semantic": cosine_similarity(*(self.svd.transform(self.tfidf.transform(texts)) for texts in (first, second))).clip(0, 1),
                  "lexical": np.array([[len(x & y) / max(len(x | y), 1) for y in b] for x in a])}
        if self.english:
            counts = [Counter(tag for sentence in parsed(text)[0] for tag in sentence) for text in (*first, *second)]
            tags = sorted(set().union(*counts))
            rows = [[c[tag] for tag in tags] for c in counts]
            result["syntactic"] = np.array([[1 - jensen_shannon(x, y) for y in rows[len(first):]] for x in rows[:len(first)]])
        return result | {"combined": np.mean(list(result.values()), axis=0)}


def diversity(texts, prompts, alike):
    """How different texts are from one another; prompts names each one's, to tell seeds of one prompt from different prompts."""
    words = [words_of(text) for text in texts]
    among, same = alike.between(texts, texts)["combined"], np.equal.outer(prompts, prompts)
    other = ~np.eye(len(texts), dtype=bool)
    return {"pairwise_similarity": float(among[other].mean()) if other.any() else None,
            "same_prompt_similarity": float(among[other & same].mean()) if (other & same).any() else None,
            "self_bleu": self_bleu(words), "entropy": entropy(words), "repetition": repetition(words)} | {
            f"distinct_{n}": distinct_n(words, n) for n in (1, 2, 3, 4)}


# ---- likelihood ------------------------------------------------------------------------------------------------------

def chop(examples, block_size):
    """Lists of ids -> nearly equal pieces of at most block_size, every token in exactly one."""
    return [ids[a:b] for ids in examples for a, b in parts(0, len(ids), block_size)]


def bits_per_byte(nats, sizes):
    """(ratio, its standard error) from nats and bytes per sequence, both (N,). The error is that of a ratio estimator over sequences
    (Cochran 1977, sec. 2.11), None for fewer than two. It contains the noise of random masks; that neighbours are alike it does not."""
    nats, sizes = np.asarray(nats, float), np.asarray(sizes, float)
    ratio, n = nats.sum() / sizes.sum(), len(nats)
    error = math.sqrt(n / (n - 1) * np.square(nats - ratio * sizes).sum()) / sizes.sum() / math.log(2) if n > 1 else None
    return float(ratio / math.log(2)), error


@torch.no_grad()
def nats_at(model, tokens, hidden, where, batch_tokens=8192):
    """Σ of -log p at `where` with `hidden` masked. tokens (T,), hidden and where (R, T) bool -> (R,) float64."""
    result, size = [], max(1, batch_tokens // len(tokens))
    for h, w in zip(hidden.split(size), where.split(size)):
        rows = tokens.expand(h.shape)
        logits = model(rows.masked_fill(h, model.config.mask_id).to(model.device), w.to(model.device)).cpu().double()
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
    bound, exact = held_out_bound(model, sequences, points, seed), model.config.causal
    nats, tokens = bound.per_sequence, int(bound.length.sum())
    value, error = bits_per_byte(nats, sizes)
    result = {"bits_per_byte": value, "bits_per_byte_se": error, "perplexity": math.exp(float(nats.sum()) / tokens), "exact": exact,
              "tokens": tokens, "bytes": int(sum(sizes)), "sequences": len(sequences), "masked_perplexity": None,
              "bits_per_token_by_mask_rate": None, "left_to_right_bits_per_byte": value if exact else None}
    if not exact:
        tenths = (bound.nats * bound.length[:, None] / bound.k).view(len(sequences), 10, -1).mean(2).sum(0) / tokens
        result["bits_per_token_by_mask_rate"] = (tenths / math.log(2)).tolist()
        advance("masked perplexity")
        result["masked_perplexity"] = masked_perplexity(model, sequences, seed)
    if left_to_right and not exact:
        total = 0.0
        for i, sequence in enumerate(sequences):
            advance(f"left to right, sequence {i + 1} of {len(sequences)}", 1 / len(sequences))
            total += left_to_right_nats(model, sequence)
        result["left_to_right_bits_per_byte"] = total / sum(sizes) / math.log(2)
    return result, nats.numpy()


def compressor(train, held_out):
    """(name, bits per byte) of the better of two compressors: what held-out bytes add to the compressed training bytes."""
    programs = {"xz": lambda b: lzma.compress(b, lzma.FORMAT_ALONE, preset=9 | lzma.PRESET_EXTREME), "bzip2": bz2.compress}
    return min(((name, 8 * (len(f(train + held_out)) - len(f(train))) / len(held_out)) for name, f in programs.items()), key=lambda pair: pair[1])


# ---- a checkpoint and its book ---------------------------------------------------------------------------------------

def folder_of(name=""):
    """data/<name>, or that of the book prepared last; ends in fail() where there is none."""
    latest = Path("data/latest")
    name = name or (latest.read_text(encoding="utf-8").strip() if latest.exists() else fail("no book is prepared here: python prepare.py BOOK.txt"))
    folder = Path("data") / name
    return folder if (folder / "tokenizer.json").exists() else fail(f"{folder} is missing: prepare that book first, or name another with --book")


def open_book(path, saved):
    """What prepare.py made of a checkpoint's book; ends in fail() where that is gone or differs from what it was trained on.

    Returns (name, {stream: lists of ids}, training text, held-out text, openings of the split's sentences).
    """
    training = saved.get("training", {})
    folder = folder_of(book or training.get("dataset"))
    if json.loads((folder / "tokenizer.json").read_text(encoding="utf-8")) != saved["tokenizer"]:
        fail(f"{folder} was prepared with another vocabulary than {path} was trained with: prepare the book as it was then, or train again")
    streams = {}
    for stream in ("stage3_train", "val", "test"):
        raw = (folder / f"{stream}.bin").read_bytes()
        if training.get("data", {}).get(stream, (digest := hashlib.sha256(raw).hexdigest())) != digest:
            fail(f"{folder}/{stream}.bin has changed since {path} was trained, which may have seen the held-out text: prepare the book as it was then, or train again")
        ids = np.frombuffer(raw, "<u2").tolist()
        streams[stream] = [ids[a:b] for a, b in pairwise(np.fromfile(folder / f"{stream}.idx", "<i8").tolist())]
    text = (folder / "text.txt").read_text(encoding="utf-8")
    segments = [json.loads(line) for line in (folder / "segments.jsonl").read_text(encoding="utf-8").splitlines()]
    texts = {True: "", False: ""}
    for train, run in groupby(segments, key=lambda s: s["split"] == "train"):
        run = list(run)
        texts[train] += text[run[0]["start"]:run[-1]["end"]] + "\n\n"
    openings = [" ".join(words[:6]) for s in segments if s["split"] == split and len(words := text[s["start"]:s["end"]].split()) >= 10]
    return folder.name, streams, texts[True], texts[False], openings


def choose_prompts(openings, notes):
    """n_prompts of the openings, drawn with the seed, or the first ones of a file of prompts."""
    if prompts:
        return [line.strip() for line in read_book(prompts)[0].splitlines() if line.strip()][:n_prompts]
    if not openings:
        notes.append("The held-out text has no sentence of ten words to take an opening from: the samples are written without a prompt.")
    return [openings[i] for i in sorted(np.random.default_rng(seed).permutation(len(openings))[:n_prompts])] or [""]


def write_samples(model, tokenizer, chosen):
    """(samples, speed): n_seeds texts for each prompt, all at once; then one alone, for the time that a single reader waits."""
    jobs = []
    for prompt in chosen:
        room = min(max_tokens, model.config.block_size - len(tokenizer.encode(prompt)))
        if room < 8:
            fail(f"the prompt {prompt!r} leaves no room in the model's context of {model.config.block_size} tokens")
        parts = [prompt + " ", room] if prompt else [room]
        jobs += [sample.job_of(model, tokenizer, prompt, parts, seed + len(jobs) + i, sampling) for i in range(n_seeds)]

    def written(jobs):
        done = {i: {"ids": row[jobs[i].row == model.config.mask_id].tolist()} | result for i, row, result in sample.write(model, tokenizer, jobs, sampling)}
        return [done[i] for i in range(len(jobs))]

    try:
        samples, [one] = written(jobs), written(jobs[:1])
    except ValueError as error:
        fail(error)
    return samples, {"device": str(model.device), "texts": len(samples), "calls_per_text": float(np.mean([s["steps"] for s in samples])),
                     "tokens_per_second": sum(s["tokens"] for s in samples) / sum(s["seconds"] for s in samples),
                     "one_text_seconds": one["seconds"], "one_text_tokens_per_second": one["tokens"] / one["seconds"], "memory_gb": peak_memory_gb(model.device)}


class Evaluated(NamedTuple):
    """A checkpoint's evaluation, and what comparing it with others needs."""
    result: dict                # as evaluation.json has it
    model: torch.nn.Module
    tokenizer: object
    nats: np.ndarray            # (N,) the bound on -log p of each held-out sequence
    sizes: np.ndarray           # (N,) its bytes
    held_bytes: bytes           # all of them
    texts: dict                 # "generated", "held_out" -> texts of one length


def evaluate_checkpoint(path, advance):
    """Everything about one checkpoint but what others say of it."""
    model, tokenizer, saved = sample.load(path, device)
    name, streams, train_text, held_out_text, openings = open_book(path, saved)
    notes, training, train, held_out = [], saved.get("training", {}), streams["stage3_train"], streams[split]
    train_ids, held_bytes = [i for ids in train for i in ids], tokenizer.decode_bytes([i for ids in held_out for i in ids])
    pieces = chop(held_out, model.config.block_size)
    sizes = np.array([len(tokenizer.decode_bytes(ids)) for ids in pieces])
    if len(pieces) < 10:
        notes.append(f"The held-out text is only {len(pieces)} sequences, {sizes.sum()} bytes: its standard error is itself uncertain.")
    if not training.get("data"):
        notes.append("The checkpoint does not record its training data: that the held-out text was not among it cannot be checked.")
    figures, nats = likelihood(model, [torch.tensor(ids) for ids in pieces], sizes, seed, advance)

    advance("baselines")
    unigram, ngram = (NGram(order, model.config.n_text, train) for order in (1, NGRAM_ORDER))
    unigram_nats, ngram_nats = (np.array([m.nats(ids).sum() for ids in pieces]) for m in (unigram, ngram))     # their context ends where the network's does
    program, cost = compressor(tokenizer.decode_bytes(train_ids), held_bytes)
    floor = {"unigram_bits_per_byte": bits_per_byte(unigram_nats, sizes)[0], "ngram_bits_per_byte": bits_per_byte(ngram_nats, sizes)[0], "ngram_order": NGRAM_ORDER,
             "compressor_bits_per_byte": cost, "compressor": program, "unigram_bits_per_token": float(unigram_nats.sum() / figures["tokens"] / math.log(2))}
    figures["gain_over_ngram"], figures["gain_over_ngram_se"] = bits_per_byte(ngram_nats - nats, sizes)

    advance("writing samples")
    samples, speed = write_samples(model, tokenizer, choose_prompts(openings, notes))
    longest, shortest = (f(len(s["ids"]) for s in samples) for f in (max, min))
    human = [ids for ids in chop(streams["val"] + streams["test"], longest) if len(ids) >= shortest]
    n = min(len(human), len(samples))
    if n < len(samples):
        notes.append(f"Held-out text makes only {n} passages as long as the samples: they are compared with {n or len(samples)} of {len(samples)} samples.")
    kept = spread(samples, n or len(samples))
    ids = {"generated": [s["ids"] for s in kept]} | ({"held_out": spread(human, n)} if n else {})
    texts = {group: [tokenizer.decode(i) for i in members] for group, members in ids.items()}

    advance("memorization, diversity and similarity")
    english = is_english(words_of(train_text))
    if not english:
        notes.append("The book is not in English: readability, function words, parts of speech and phrases are not measured.")
    length = int(np.median([len(words_of(text)) for text in texts["generated"]]))
    passages = passages_of(train_text, max(20, length)) or [train_text]
    alike = Similarity(passages, english)
    similarity = {group: {respect: float(values.mean()) for respect, values in alike.between(members, spread(passages, 100)).items()} for group, members in texts.items()}
    varied = {group: diversity(members, [s["prompt"] for s in kept] if group == "generated" else list(range(n)), alike) for group, members in texts.items()}
    memory = {group: memorization(members, train_ids, tokenizer.decode) for group, members in ids.items()}
    judged = {group: {"ngram_perplexity": math.exp(np.mean(np.concatenate([ngram.nats(i) for i in members]))), "twin_perplexity": None,
                      "entropy": varied[group]["entropy"], "repetition": varied[group]["repetition"]} for group, members in ids.items()}

    advance("style")
    styled = measure_style(train_text, held_out_text, [s["completion"] for s in samples], english, notes)
    result = {"checkpoint": str(path), "book": name, "split": split, "seed": seed, "parameters": count_parameters(model.config)["total"],
              "causal": model.config.causal, "trained": {key: training.get(key) for key in ("step", "epoch", "stage", "val_bits_per_byte")},
              "likelihood": figures, "baselines": floor, "style": styled, "similarity": similarity, "diversity": varied, "memorization": memory,
              "judged": judged, "speed": speed, "sampling": asdict(sampling) | {"max_tokens": max_tokens},
              "samples": [{key: s[key] for key in ("prompt", "text", "completion", "seed")} for s in samples], "notes": notes}
    return Evaluated(result, model, tokenizer, nats, sizes, held_bytes, texts)


def compare_all(found):
    """Let the first causal checkpoint say how likely it finds each one's samples, and held-out text; take each one's cost against the first's."""
    twin = next((e for e in found if e.result["causal"]), None)
    for e in found:
        for group, texts in e.texts.items() if twin else ():
            rows = [torch.tensor(ids) for ids in chop([twin.tokenizer.encode(text) for text in texts], twin.model.config.block_size)]
            bound = held_out_bound(twin.model, rows)
            e.result["judged"][group]["twin_perplexity"] = math.exp(float(bound.per_sequence.sum() / bound.length.sum()))
        cost = e.result["likelihood"]
        if e is found[0]:
            difference = None, None
        elif np.array_equal(e.sizes, found[0].sizes):
            difference = bits_per_byte(e.nats - found[0].nats, e.sizes)
        else:                                                   # another vocabulary or context cuts other sequences: no pairs to take an error from
            difference = cost["bits_per_byte"] - found[0].result["likelihood"]["bits_per_byte"], None
        cost["more_than_first"], cost["more_than_first_se"] = difference


# ---- in plain words --------------------------------------------------------------------------------------------------

def summarise(result):
    """{"good", "bad", "next"}: lists of sentences, by rules that can be read here."""
    good, bad, advice = [], [], []
    like, floor, memory, styled = result["likelihood"], result["baselines"], result["memorization"], result["style"]
    bits, gain, error, unigram = like["bits_per_byte"], like["gain_over_ngram"], 2 * (like["gain_over_ngram_se"] or 0), floor["unigram_bits_per_byte"]
    facts = (f"Of held-out text it predicts a byte at a cost of {bits:.2f} bits (lower is better); word frequencies alone need {unigram:.2f}, "
             f"counting runs of words {floor['ngram_bits_per_byte']:.2f}")
    if bits >= unigram:
        bad.append(f"{facts}: it has not yet learned that words depend on their neighbours.")
        advice.append("Train for more steps; small batches get off this plateau sooner.")
    elif gain < -error:
        bad.append(f"{facts}: it uses context, but less well than a table of counts does.")
        advice.append("Train longer, and watch the validation bound in log.jsonl for the point where it stops falling.")
    else:
        (good if gain > error else bad).append(f"{facts}: it predicts {'better than the table' if gain > error else 'about as well as a table'} of counts.")
    if bits < 0.75:
        bad.append(f"{bits:.2f} bits per byte is too good to be true for a model of one book: the held-out text was probably among its training text.")
        advice.append("Prepare the book afresh and train again before believing any other number here.")
    rates = like["bits_per_token_by_mask_rate"]
    if rates and rates[-1] > floor["unigram_bits_per_token"] + 0.05 and bits < unigram:
        bad.append(f"With nine tenths of a text hidden, as when it begins to write, it predicts worse than word frequencies "
                   f"({rates[-1]:.1f} against {floor['unigram_bits_per_token']:.1f} bits per token).")
        advice.append("Raise the last stage's replay, so that it keeps seeing the full range of mask rates.")
    mine, human = memory["generated"], memory.get("held_out", {"copied_share": 0.0, "longest_run_tokens": 0})
    if human["longest_run_tokens"] >= 50:
        bad.append(f"Held-out text shares {human['longest_run_tokens']} tokens in a row with the training text: the book repeats itself, or the split leaks.")
    facts = (f"{mine['copied_share']:.0%} of its text stands in copied runs of 8 tokens or more ({human['copied_share']:.0%} in held-out text); "
             f"the longest copy is {mine['longest_run_tokens']} tokens")
    if mine["copied_share"] > 2 * human["copied_share"] + 0.1:
        bad.append(f"It recites: {facts}.")
        advice.append("Stop earlier, make the model smaller, or sample at a higher temperature: much of what reads well here is the book itself.")
    else:
        good.append(f"It does not recite the book: {facts}.")
    if styled:
        off = sorted(((abs(m["generated"]["deviation"]), STYLE[name][0]) for name, m in styled["measures"].items()), reverse=True)[:3]
        facts = f"its distance from the book is {styled['distance']['generated']:.1f} where the book's own passages stay under {styled['limit']:.1f}"
        if styled["in_style"]["generated"]:
            good.append(f"Its style is within the book's own variation: {facts}.")
        else:
            bad.append(f"It is not yet in the book's style: {facts}. Furthest off, in standard deviations: {'; '.join(f'{label} ({z:.0f})' for z, label in off)}.")
        if not styled["in_style"]["held_out"]:
            bad.append("Held-out chapters do not pass for the book either, so its parts differ much: read the style figures as a comparison, not as a verdict.")
    mine, human = (result["diversity"].get(group, {"repetition": None}) for group in ("generated", "held_out"))
    if mine["repetition"] is not None and human["repetition"] is not None:
        facts = (f"{mine['repetition']:.0%} of its four-word runs repeat within a text ({human['repetition']:.0%} in held-out text), "
                 f"and its words carry {mine['entropy']:.1f} bits each ({human['entropy']:.1f})")
        if mine["repetition"] > human["repetition"] + 0.05 or mine["entropy"] < human["entropy"] - 1:
            bad.append(f"It repeats itself: {facts}.")
            advice.append("Sample with --sampling.temperature=0.9 or higher, a larger top_k and top_p, or a repetition_penalty of 1.2.")
        else:
            good.append(f"Its vocabulary is varied: {facts}.")
    return {"good": good, "bad": bad, "next": advice or ["Try a larger model or more sampling steps, and compare with --compare."]}


# ---- the page --------------------------------------------------------------------------------------------------------

GROUPS = {"generated": "generated", "held_out": "held-out", "shuffled": "shuffled words", "control": "control book", "book": "the book"}
INKS = {name: f"#0{i}0{i}0{i}" for i, name in enumerate(("ink", "faint", *GROUPS), 1)}       # in a plot; they become CSS variables
LABELS = {                              # key in evaluation.json: label, unit, direction
    "bits_per_byte": ("Cost", "bits per byte", LESS),
    "gain_over_ngram": ("Saved against the n-gram table", "bits per byte", MORE),
    "more_than_first": ("More than the first", "bits per byte", LESS),
    "left_to_right_bits_per_byte": ("Unmasked left to right, exact", "bits per byte", LESS),
    "perplexity": ("Perplexity", "per token of this vocabulary", LESS),
    "longest_run_tokens": ("Longest verbatim run", "tokens", LESS),
    "copied_share": ("In copied runs of 8 tokens and more", "share of tokens", LESS),
    "tokens": ("Text looked at", "tokens", ""),
    "entropy": ("Entropy", "bits per word", MORE),
    "repetition": ("Repetition within a text", "share of four-word runs", LESS),
    **{f"distinct_{n}": (f"Distinct {n}-grams", "share of all", MORE) for n in (1, 2, 3, 4)},
    "self_bleu": ("Self-BLEU, each text against the others", "0–1", LESS),
    "pairwise_similarity": ("Similarity of any two texts", "0–1, combined", LESS),
    "same_prompt_similarity": ("Similarity of texts from one prompt", "0–1, combined", LESS),
    "semantic": ("Similarity to the book: subject", "0–1, cosine", MORE),
    "lexical": ("Similarity to the book: words", "0–1, Jaccard", MORE),
    "syntactic": ("Similarity to the book: parts of speech", "0–1", MORE),
    "combined": ("Similarity to the book: combined", "0–1, mean", MORE),
    "ngram_perplexity": ("Perplexity under the n-gram model", "per token; dull or copied text scores low too: see entropy and repetition", INSIDE),
    "twin_perplexity": ("Perplexity under the causal twin", "per token; the same caution", INSIDE),
    "one_text_tokens_per_second": ("One text", "tokens per second", MORE),
    "one_text_seconds": ("One text", "seconds", LESS),
    "calls_per_text": ("Calls of the network", "per text", LESS),
    "tokens_per_second": ("All texts together", "tokens per second", MORE),
    "memory_gb": ("Peak memory; on a CPU that of this whole program", "GB", LESS),
    "parameters": ("Parameters", "numbers learnt", ""),
    "distance": ("Style: distance from the book", "standard deviations, root mean square", LESS),
}


def number(value, unit="", error=None):
    """A figure as a person reads it, with twice its standard error; a dash for what was not measured."""
    if value is None:
        return "–"
    if unit.startswith("share"):
        return f"{value:.1%}"
    return f"{value:,.0f}" if isinstance(value, int) or abs(value) >= 100 else f"{value:.4g}" if error is None else f"{value:.3f} ± {2 * error:.3f}"


def table(head, rows):
    """An HTML table whose cells carry their column's name, so that a narrow screen can stack them."""
    cells = ["".join(f'<td data-label="{html.escape(name)}">{cell}</td>' for name, cell in zip(head, row)) for row in rows]
    return "<table><thead><tr>" + "".join(f"<th>{name}</th>" for name in head) + "</tr></thead><tbody><tr>" + "</tr><tr>".join(cells) + "</tr></tbody></table>"


def named(label, unit, direction):
    """The first cell of a row."""
    return f'{label} {direction} <span class="unit">{unit}</span>'


def figures_table(columns, keys):
    """A row of LABELS for each key, for columns {heading: {key: value}}."""
    return table(["Measure", *map(html.escape, columns)], [
        [named(*LABELS[key]), *(number(found.get(key), LABELS[key][1], found.get(f"{key}_se")) for found in columns.values())]
        for key in keys if any(found.get(key) is not None for found in columns.values())])


def plots(results, names):
    """{name: inline SVG} that takes its colours from the page, light or dark."""
    import matplotlib
    matplotlib.use("svg")
    import matplotlib.pyplot as plt
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "evaluation", "font.size": 9.5, "axes.spines.top": False, "axes.spines.right": False,
                                "legend.frameon": False} | dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INKS["ink"]))
    first, floor, drawn = results[0], results[0]["baselines"], {}

    def finish(name, figure):
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, bbox_inches="tight", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
        plt.close(figure)
        svg = re.sub(r"<metadata>.*?</metadata>|(?<= )(height|width)=\"[\d.]+pt\"", "", file.getvalue().partition("<svg")[2], flags=re.S)
        for ink, colour in INKS.items():
            svg = svg.replace(colour, f"var(--{ink})")
        drawn[name] = "<svg" + re.sub(r'(id="|#)(?=[a-zA-Z])', rf"\1{name}-", svg)          # ids must not meet those of another plot

    def lines(name, curves, **axis):
        """curves: (label, ink, x, y), drawn with dots."""
        figure, axes = plt.subplots(figsize=(4.8, 2.9))
        for label, ink, x, y in curves:
            axes.plot(x, y, "o-", ms=4, label=label, color=INKS[ink])
        axes.set(**axis)
        axes.legend()
        finish(name, figure)

    bars = [(name, r["likelihood"]["bits_per_byte"], 2 * (r["likelihood"]["bits_per_byte_se"] or 0), "control" if i else "generated") for i, (name, r) in enumerate(zip(names, results))]
    bars += [(f"{floor['ngram_order']}-gram table", floor["ngram_bits_per_byte"], 0, "book"), (f"compressor ({floor['compressor']})", floor["compressor_bits_per_byte"], 0, "book"),
             ("word frequencies", floor["unigram_bits_per_byte"], 0, "book")]
    figure, axes = plt.subplots(figsize=(3.7, 0.8 + 0.36 * len(bars)))
    for i, (_, value, error, ink) in enumerate(bars):
        axes.barh(i, value, xerr=error, color=INKS[ink], ecolor=INKS["ink"], height=0.62)
        axes.text(value + error + 0.03, i, f"{value:.3f}", va="center")
    axes.set(xlabel="bits per held-out byte, lower is better", xlim=(0, 1.15 * max(value + error for _, value, error, _ in bars)))
    axes.set_yticks(range(len(bars)), [bar[0] for bar in bars])
    axes.invert_yaxis()
    finish("bits", figure)

    inks, middle = ("generated", "control", "shuffled", "held_out"), np.arange(5, 100, 10)
    lines("rates", [(name, inks[i % 4], middle, curve) for i, (name, r) in enumerate(zip(names, results)) if (curve := r["likelihood"]["bits_per_token_by_mask_rate"])]
          + [("word frequencies", "book", middle, [floor["unigram_bits_per_token"]] * 10)], xlabel="share of the text that is hidden, %", ylabel="bits per hidden token, lower is better")
    lines("novelty", [(GROUPS[g], g, *zip(*((int(n), 100 * v) for n, v in found["novelty"].items() if v is not None))) for g, found in first["memorization"].items()],
          xlabel="run of n tokens", ylabel="not found in the training text, %", ylim=(-3, 103))
    if first["style"]:
        measures = first["style"]["measures"]
        lines("sentences", [(GROUPS[g], g, np.arange(3, 83, 5), [100 * v for v in first["style"]["sentence_lengths"][g]]) for g in ("book", "held_out", "generated")],
              xlabel="words in a sentence (the last: 76 and more)", ylabel="share of sentences, %")
        figure, axes = plt.subplots(figsize=(2.9, 0.9 + 0.26 * len(measures)))
        axes.axvspan(-2, 2, color=INKS["book"], alpha=0.25, lw=0)
        for group, marker in (("shuffled", "x"), ("control", "^"), ("held_out", "D"), ("generated", "o")):
            if group in first["style"]["distance"]:
                z = [max(-12, min(12, m[group]["deviation"])) for m in measures.values()]
                axes.scatter(z, range(len(z)), s=26, color=INKS[group], label=GROUPS[group], marker=marker, zorder=3)
        axes.set_yticks(range(len(measures)), [STYLE[name][0] for name in measures])
        axes.set(xlim=(-12.8, 12.8), xlabel="standard deviations from the book's own passages")
        axes.grid(axis="y", color=INKS["faint"], lw=0.5)
        axes.invert_yaxis()
        axes.legend(ncols=2, loc="lower right", bbox_to_anchor=(1, 1), columnspacing=1)
        finish("style", figure)
    return drawn


def style_section(styled, figure):
    """The part of the page that asks whether it is in the book's style."""
    if not styled:
        return "<p>Not measured: see the last section.</p>"
    groups = list(styled["distance"])

    def verdict(value, inside):
        return f'<span class="{"in" if inside else "out"}">{value:.3g}</span>'

    rows = [[named(*LABELS["distance"]), f"under {styled['limit']:.2f}", *(verdict(styled["distance"][g], styled["in_style"][g]) for g in groups)]]
    for key, m in styled["measures"].items():
        (low, high), less = m["range"], STYLE[key][2] == LESS
        rows.append([named(*STYLE[key]), f"under {high:.3g}" if less else f"{low:.3g} to {high:.3g}",
                     *(verdict(m[g]["value"], m[g]["value"] <= high and (less or m[g]["value"] >= low)) for g in groups)])
    return (f"<p>{styled['passages']} passages of {styled['words_per_passage']} words were drawn from the book {REPLICATES} times: the range is where 95 % of those draws fall, "
            "✓ is inside it. One measure in twenty misses by chance; the distance in the first row weighs them together. Held-out chapters should pass it, shuffled words should not. "
            '↓: lower is better; ↔: neither high nor low is.</p><div class="row">'
            + figure("style", "The band is two standard deviations of the book itself; marks at the edge lie beyond it.") + figure("sentences", "How long its sentences are.")
            + "</div>" + table(["Measure", "the book's range", *(GROUPS[g] for g in groups)], rows))


def page(results, names):
    """The report of results[0], others beside it, as one HTML file that needs no network."""
    r, drawn = results[0], plots(results, names)
    like, groups = r["likelihood"], r["diversity"]

    def figure(name, caption):
        return f"<figure>{drawn[name]}<figcaption>{caption}</figcaption></figure>"

    def quote(text, footer):
        return f'<blockquote><p>{text}</p><footer class="quiet">{footer}</footer></blockquote>'

    titles = {"good": "What is good", "bad": "What is not", "next": "What to try next"}
    lists = {key: "".join(f"<li>{html.escape(s)}</li>" for s in sentences or ["Nothing that these measures show."]) for key, sentences in r["summary"].items()}
    columns = {name: x["likelihood"] | {"parameters": x["parameters"], "distance": x["style"] and x["style"]["distance"]["generated"], "copied_share": x["memorization"]["generated"]["copied_share"],
                                        "memory_gb": x["speed"]["memory_gb"], "one_text_tokens_per_second": x["speed"]["one_text_tokens_per_second"]} | {
               key: x["diversity"]["generated"][key] for key in ("repetition", "distinct_2")} for name, x in zip(names, results)}
    keys = ["bits_per_byte", "gain_over_ngram", "left_to_right_bits_per_byte", "perplexity"]
    if len(results) > 1:
        keys[1:1] = ["more_than_first"]
        keys += ["parameters", "distance", "copied_share", "repetition", "distinct_2", "one_text_tokens_per_second"]
    predictions = figures_table(columns, keys)
    if like["masked_perplexity"]:
        predictions += "<p>Masked perplexity is not a likelihood: the model sees the rest of the text.</p>" + table(
            ["Measure", *(f"{float(rate):.0%} hidden" for rate in RATES)], [[named("Masked perplexity", "per hidden token", LESS), *(number(v) for v in like["masked_perplexity"].values())]])
    notes = [*r["notes"], f"Likelihood on the {r['split']} split, cut at the model's context of tokens; baselines learn from the same training text and forget their context at the same "
             "places. ± and the line at a bar's end are two standard errors over sequences. All of the text's bytes are counted, whatever the vocabulary.",
             f"Samples: {', '.join(f'{k} {v}' for k, v in r['sampling'].items())}; seeds from {r['seed']}. Memorization compares tokens, the other measures of text words in lower "
             "case; held-out passages are from both held-out splits."]
    trained = "".join(f", {key} {number(r['trained'][key])}" for key in ("step", "epoch") if r["trained"][key] is not None)
    return string.Template(Path(__file__).with_suffix(".html").read_text(encoding="utf-8")).substitute(
        title=html.escape(f"A model of {r['book']}, measured"), notes="".join(f"<p>{html.escape(note)}</p>" for note in notes), predictions=predictions,
        about=html.escape(f"{r['checkpoint']}: {'causal' if r['causal'] else 'diffusion'} model, {r['parameters']:,} parameters{trained}; {like['bytes']:,} bytes ({like['tokens']:,} tokens) of held-out text."),
        summary="".join(f'<section><h3 class="{key}">{titles[key]}</h3><ul>{items}</ul></section>' for key, items in lists.items()),
        bound="For a causal model it is exact." if like["exact"] else f"For a diffusion model it is an upper bound, from {points} masks of each sequence: the true cost is this or lower.",
        bits=figure("bits", "Cost of held-out text."), rates=figure("rates", "By how much is hidden; the mean over the whole width is the bound. Writing begins at the right."),
        style=style_section(r["style"], figure), novelty=figure("novelty", "How many runs of n tokens are its own."),
        memorization=figures_table({GROUPS[g]: m for g, m in r["memorization"].items()}, ("longest_run_tokens", "copied_share", "tokens")),
        copied="".join(quote(html.escape(m["longest_run_text"].strip()), f"The longest run that {GROUPS[g]} text shares with the training text: {m['longest_run_tokens']} tokens.")
                       for g, m in r["memorization"].items() if m["longest_run_tokens"]),
        diversity=figures_table({GROUPS[g]: groups[g] | r["similarity"][g] | r["judged"][g] for g in groups}, [key for key in LABELS if key in {**groups["generated"], **r["similarity"]["generated"], **r["judged"]["generated"]}]),
        speed=figures_table({r["speed"]["device"]: r["speed"]}, [key for key in LABELS if key in r["speed"]]),
        samples="".join(quote(f"<b>{html.escape(s['prompt'])}</b>{html.escape(s['text'].removeprefix(s['prompt']).rstrip())}", f"seed {s['seed']}") for s in spread(r["samples"], 6)))


# ---- the run ---------------------------------------------------------------------------------------------------------

def compare_texts():
    """Print the similarity of text1 and text2, each a text or the path of one, as JSON."""
    pair = [read_book(text)[0] if len(text) < 255 and Path(text).is_file() else text for text in (text1, text2)]
    if not all(words_of(text) for text in pair):
        fail("--text1 and --text2 must both hold words")
    text = (folder_of(book) / "text.txt").read_text(encoding="utf-8")
    tables = Similarity(passages_of(text, 80), is_english(words_of(text))).between(pair[:1], pair[1:])
    print(json.dumps({name: round(float(values[0, 0]), 4) for name, values in tables.items()}))


def main():
    configure(globals())
    if text1 or text2:
        return compare_texts()
    if points < 10 or points % 10 or split not in ("val", "test") or min(n_prompts, n_seeds) < 1 or max_tokens < 8:
        fail("--points must be a multiple of ten, --split val or test, --n_prompts and --n_seeds at least 1, --max_tokens at least 8")
    names = [checkpoint or out_dir, *filter(None, compare.split(","))]
    paths = [Path(name) if name.endswith(".pt") else Path(name) / "best.pt" for name in names]
    for path in (path for path in paths if not path.exists()):  # said now, not after the first has been measured
        fail(f"no checkpoint at {path}: train one first with python train.py")
    begun, found, folder = time.perf_counter(), [], Path(out_dir)
    with Progress("{task.description}", BarColumn(), TimeElapsedColumn(), console=Console(stderr=True)) as progress:
        bar = progress.add_task("loading", total=7 * len(names))
        for path in paths:
            found.append(evaluate_checkpoint(path, lambda what, steps=1, path=path: progress.update(bar, advance=steps, description=f"{path}: {what}")))
            if found[-1].held_bytes != found[0].held_bytes:
                fail(f"{path} was trained with other held-out text than {names[0]}: the two cannot be compared")
        compare_all(found)
        results = [e.result | {"summary": summarise(e.result)} for e in found]
        progress.update(bar, completed=7 * len(names), description="plots")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "evaluation.html").write_text(page(results, names), encoding="utf-8")
        first = results[0] | ({"compare": results[1:]} if compare else {})
        write_json(f"{folder}/evaluation.json", first)
    for title, sentences in results[0]["summary"].items():
        for sentence in sentences:
            print(f"{ {'good': '+', 'bad': '-', 'next': '>'}[title] } {sentence}")
    print(f"{folder}/evaluation.json and {folder}/evaluation.html, {time.perf_counter() - begun:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
