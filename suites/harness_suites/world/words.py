"""The closed vocabulary of the embedded world: one word is one token."""

from __future__ import annotations

AGENTS = (
    "mayor council nurse pilot farmer teacher driver senator coach artist doctor banker chef judge"
    " sailor painter miner baker editor tailor guard clerk singer actor student lawyer engineer"
    " hunter poet dancer priest"
).split()
MAJOR_VERBS = "destroyed robbed rescued flooded seized banned".split()  # importance 3
MEDIUM_VERBS = "opened sold bought closed repaired moved".split()  # importance 2
MINOR_VERBS = "visited admired sketched praised described photographed".split()  # importance 0
VERBS = MAJOR_VERBS + MEDIUM_VERBS + MINOR_VERBS
OBJECTS = (
    "bridge ship tower bank museum school train statue engine library market dam tunnel factory"
    " church archive"
).split()
PLACES = "oslo cairo lima delhi kyoto quito milan dublin havana lagos sydney boston".split()
ADJECTIVES = "old new red grand small famous quiet empty".split()
DAYS = "monday tuesday wednesday thursday friday".split()
# five ways to report a fact: {a} agent, {v} verb, {o} object, {p} place, {j} adjective, {d} day
TEMPLATES = (
    "in {p} , the {a} {v} the {j} {o} .",
    "the {a} {v} the {j} {o} in {p} .",
    "the {a} from {p} {v} the {o} .",
    "on {d} the {a} {v} the {o} in {p} .",
    "{p} : the {a} {v} the {j} {o} .",
)
FILLERS = tuple(
    line.strip()
    for line in """
    the weather was mild .
    traffic was slow all day .
    more news will follow soon .
    readers sent many letters .
    the crowd stayed calm .
    prices did not change .
    nobody was surprised by this .
    it rained for two hours .
    the radio played music .
    shops stayed open late .
    a parade was planned .
    experts had no comment .
    """.strip().splitlines()
)
FLUFF = (
    "this was big news",
    "many people talked about it",
    "it was a long day",
    "nobody knows what follows",
)

TOPICS = {  # topics of requests, with the words that belong to each
    "sea": "wave boat fish sand salt shore".split(),
    "farm": "cow barn field milk corn plough".split(),
    "city": "street taxi cafe crowd park bus".split(),
    "winter": "snow ice coat frost sled storm".split(),
    "music": "song drum piano choir violin tune".split(),
    "kitchen": "soup bread knife oven spice plate".split(),
    "forest": "tree wolf moss owl trail berry".split(),
    "space": "star moon rocket comet planet orbit".split(),
}
NUMBERS = [str(n) for n in range(60)]

DOCUMENT_END = "TL;DR:"  # the marker of the TL;DR summarization task: what follows is the summary
LIST_FACTS = (  # the list of all facts follows, important or not; only pretraining uses it
    "FACTS:"
)
QUESTION, ANSWER = "Q:", "A:"
USER, ASSISTANT = "User:", "Assistant:"
COPY, COPY_END = "copy:", "=>"
REQUEST_WORDS = "tell me about in words . mention avoid be polite please thanks and".split()
SUMS = "start with then add take ? = + - ;".split()

PAD, BOS, EOS, UNK = "<pad>", "<s>", "</s>", "<unk>"
SPECIAL = (PAD, BOS, EOS, UNK)


def vocabulary() -> list[str]:
    """Every word of the world, special tokens first, each once, in a fixed order."""
    texts = [*TEMPLATES, *FILLERS, *FLUFF]
    loose = [w for text in texts for w in text.split() if not w.startswith("{")]
    groups = [
        SPECIAL,
        (DOCUMENT_END, LIST_FACTS, QUESTION, ANSWER, USER, ASSISTANT, COPY, COPY_END),
        AGENTS,
        MAJOR_VERBS,
        MEDIUM_VERBS,
        MINOR_VERBS,
        OBJECTS,
        PLACES,
        ADJECTIVES,
        DAYS,
        [".", ",", ";", ":"],
        loose,
        list(TOPICS),
        [w for words in TOPICS.values() for w in words],
        REQUEST_WORDS,
        SUMS,
        NUMBERS,
    ]
    return list(dict.fromkeys(word for group in groups for word in group))
