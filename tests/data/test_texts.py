"""Texts as samples: the vocabulary of the training texts, and what is read by it."""

import collections
import re

import jax
import numpy as np
import pytest

import mhd_jax as mhd
from mhd_jax.data.texts import PADDING, UNKNOWN, vocabulary_of, words_of
from mhd_jax.models import build_backbone
from tests.builders import simulate_in

WHAT = {"weather": ("rain", "sun", "a storm"), "travel": ("a train", "the flight", "my hotel")}
TEXTS = [
    (f"{start} {thing}{end}", label)
    for label, things in WHAT.items()
    for thing in things
    for start in ("Is there", "tell me about", "I don't want", "What of")
    for end in ("?", " today!")
]


def write(path, rows, header="text,label"):
    path.write_text("\n".join([header, *(f'"{text}",{rest}' for text, rest in rows)]) + "\n")
    return path


@pytest.fixture
def table(tmp_path):
    return write(tmp_path / "intents.csv", TEXTS)


def load(path, **options):
    return mhd.data.load(path, **{"text": "text", "label": "label", **options})


def test_texts_become_the_numbers_of_their_words(table):
    data = load(table)
    assert data.class_names == ("travel", "weather")
    assert (len(data.labels), len(data.test_labels)) == (38, 10)
    words = data.vocabulary.words
    assert words[:2] == ("<padding>", "<unknown>") and data.vocabulary_size == len(words)
    assert data.inputs.dtype == np.int32 and data.inputs.max() < len(words)

    def read(tokens):
        return [words[token] for token in tokens if token != PADDING]

    training = collections.Counter(word for row in data.inputs for word in read(row))
    # A check by other means: these texts are in ASCII, and no word of theirs is in capitals but "I".
    written = collections.Counter(re.sub("[?!']", "", text).lower() for text, _ in TEXTS)
    assert all(written[" ".join(read(row))] for row in data.inputs)
    assert [*words[2:]] == sorted(training, key=lambda word: (-training[word], word))
    for row in data.inputs:
        assert (row[len(read(row)) :] == PADDING).all()
    assert data.vocabulary.length == max(len(read(row)) for row in data.inputs)


def test_the_test_split_teaches_no_words(tmp_path):
    rows = [(text, f"{label},train") for text, label in TEXTS]
    rows += [("Is there snow in January, perhaps, or is there only rain", "weather,test")]
    data = load(write(tmp_path / "t.csv", rows, "text,label,split"))
    assert len(data.labels) == len(TEXTS) and data.vocabulary.length == 6
    of_test = [data.vocabulary.words[token] for token in data.test_inputs[0]]
    assert of_test == ["is", "there"] + ["<unknown>"] * 4


def test_words_are_found_in_any_script():
    assert words_of("Don’t  stop—it's 9.30, naïve!") == ["dont", "stop", "its", "9", "30", "naïve"]
    assert words_of("NAI\u0308VE") == ["naïve"]  # composed of two characters
    assert words_of("हिन्दी में") == ["हिन्दी", "में"]
    assert words_of("東京へ3回") == ["東", "京", "へ", "3", "回"]
    assert words_of("…") == []


def test_a_vocabulary_keeps_the_most_frequent_words():
    found = vocabulary_of(["b a c", "a b", "a"], size=4, length=2)
    assert found.words == ("<padding>", "<unknown>", "a", "b")
    np.testing.assert_array_equal(
        found(["c a b", "", "b"]), [[UNKNOWN, 2], [PADDING] * 2, [3, PADDING]]
    )
    with pytest.warns(UserWarning, match="1 of 2 training texts have more than 256 words"):
        assert vocabulary_of(["word " * 300, "word"]).length == 256
    numbered = vocabulary_of([f"w{i}" for i in range(20_000)])
    assert len(numbered.words) == 10_000


def test_padding_does_not_count_in_the_mean_of_a_bag():
    model = build_backbone("bag_of_tokens", "none", (4,), 9, padding=PADDING)
    texts = np.array([[3, 5, 0, 0], [0, 0, 0, 0]])
    params = model.init(jax.random.key(0), texts)
    longer = np.pad(texts, [(0, 0), (0, 7)])
    np.testing.assert_allclose(model.apply(params, longer), model.apply(params, texts), atol=1e-6)
    whole = build_backbone("bag_of_tokens", "none", (2,), 9)
    np.testing.assert_allclose(
        model.apply(params, texts)[0], whole.apply(params, texts[:1, :2])[0], atol=1e-6
    )
    assert np.isfinite(model.apply(params, texts)).all()  # of a text without words, too


def test_clients_read_texts_and_so_does_a_loaded_run(table, tmp_path):
    data = load(table)
    clients = mhd.make_clients(data, 2, "bag_of_tokens", partition="iid")
    fast = mhd.optim.SGD(learning_rate=0.3)
    run = tmp_path / "run"
    ours = simulate_in(run, "complete", clients, "mhd", steps=60, batch_size=8, optimizer=fast)
    asked = ["What of THE FLIGHT, please?", "is there rain, today?"]
    names = [data.class_names[label] for label in ours.client(0).predict(asked)]
    assert names == ["travel", "weather"]
    loaded = mhd.load(run)
    for result in (ours, loaded):
        by_texts = result.predict(np.array(asked))
        np.testing.assert_array_equal(by_texts, ours.predict(data.vocabulary(asked)))
    assert ours.summary["beta_sh"]["main"] > 0.8  # chance is 0.5
    with pytest.raises(mhd.ConfigError, match=r"give a list of texts, like \['is there"):
        loaded.client(0).predict("is there a storm?")


def test_a_public_set_is_read_by_the_same_vocabulary(table, tmp_path):
    data = load(table)
    other = write(tmp_path / "public.csv", [(f"of {text}, again", "none") for text, _ in TEXTS])
    other.write_text(other.read_text().replace("none", "some", 9))
    with pytest.raises(mhd.ConfigError, match=r"by one vocabulary in intents.csv, and by another"):
        mhd.make_clients(data, 2, "bag_of_tokens", public=load(other))
    public = load(other, vocabulary=data.vocabulary)
    clients = mhd.make_clients(data, 2, "bag_of_tokens", public=public)
    again = data.vocabulary.words.index("of"), UNKNOWN
    assert np.isin(again, clients.public_inputs).all()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"text": "txt"}, "there is no column 'txt' for text; did you mean text?"),
        ({"text": "label"}, "the column label is the label, and cannot be the text as well"),
        ({"text": "number"}, "the column number holds numbers, like 0, but text is a column of"),
        ({"text": "gaps"}, r"the text gaps is missing in 1 of 48 rows \(line 2 first\)"),
        ({"text": "dots"}, "the texts have no words; give another column as text"),
        ({"features": "number"}, "features of t.csv is of features, but samples are the texts"),
        ({"categories": "one_hot"}, "categories of t.csv is of features"),
        ({"text": None, "features": "number", "text_length": 3}, "text_length of t.csv is of text"),
        ({"vocabulary_size": 2}, "vocabulary_size must be an integer and at least 3 for texts"),
        ({"text_length": 0}, "text_length must be an integer and at least 1 for texts, not 0"),
        ({"pixels": True}, "integers are either pixels or tokens"),
        ({"vocabulary": ("a", "b")}, r"vocabulary must be that of another data set"),
        ({"vocabulary": vocabulary_of(["a"]), "text_length": 3}, "brings its size and its length"),
        (
            {"text": None},
            r"the column text holds texts, .* or text='text', which reads their words",
        ),
    ],
)
def test_what_is_no_text_is_refused(options, sentence, tmp_path):
    rows = [
        (text, f"{label},{number},{'more' if number else ''},…!")
        for number, (text, label) in enumerate(TEXTS)
    ]
    path = write(tmp_path / "t.csv", rows, "text,label,number,gaps,dots")
    with pytest.raises(mhd.ConfigError, match=sentence):
        load(path, **options)
