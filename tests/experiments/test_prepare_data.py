"""Preparing data sets: what needs no TensorFlow, and, where it is installed, the whole of it."""

import contextlib
import http.server
import importlib.util
import signal
import threading
import time

import pytest
import requests

import mhd_jax as mhd
from mhd_jax.cli import preparation
from mhd_jax.data import tfds
from tests import made_images
from tests.builders import contents, python, start_python, wait_until

TENSORFLOW = importlib.util.find_spec("tensorflow") is not None
needs_tensorflow = pytest.mark.skipif(not TENSORFLOW, reason="preparing needs TensorFlow")


BINARY = ("-m", "experiments.prepare_data")


def call(*flags, **environment):
    done = python(*BINARY, *flags, **environment)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.slow
def test_what_is_prepared_is_left_alone_and_what_is_damaged_is_said(tmp_path):
    splits = ("train", "validation")
    folder = made_images.write(tmp_path / "made_images" / "1.0.0", splits=splits)
    before = contents(tmp_path)
    flags = ["--dataset=made_images", f"--data_dir={tmp_path}"]
    status, out, _ = call(*flags)
    assert status == 0 and f"{folder} is prepared and whole; nothing was changed." in out
    assert "3 classes" in out and "train: 6 samples, the first an image of 8 × 8 × 3" in out
    assert f"--dataset=made_images --data_dir={tmp_path} '--test_split=validation'\n" in out
    assert contents(tmp_path) == before
    next(folder.glob("*validation*")).unlink()
    before = contents(tmp_path)
    status, out, err = call(*flags)
    assert status == 2 and out == ""
    assert "is missing; prepare it again by experiments.prepare_data with --overwrite" in err
    assert contents(tmp_path) == before


@pytest.mark.skipif(TENSORFLOW, reason="TensorFlow is installed")
def test_without_tensorflow_nothing_is_begun(tmp_path):
    status, out, err = call("--dataset=cifar10", f"--data_dir={tmp_path / 'data'}")
    assert status == 2 and out == "" and err.count("\n") == 1
    assert "preparing needs tensorflow" in err and "-m pip install tensorflow-cpu" in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("cifr10", "unknown dataset 'cifr10'; did you mean cifar10"),
        ("cifar10/plain", "unknown dataset 'cifar10/plain'; did you mean cifar10?"),
        ("imagenette/160px-v9", "did you mean imagenette/160px-v2"),
        ("imagenette", "several forms; choose one: imagenette/160px, imagenette/160px-v2"),
        ("../cifar10", "unknown dataset '../cifar10'"),
    ],
)
def test_names_are_checked(name, sentence):
    with pytest.raises(mhd.ConfigError, match=sentence.replace("?", r"\?")):
        preparation.find_builder(name)


def test_what_must_be_downloaded_by_hand_is_asked_for(tmp_path):
    builder_class, config = preparation.find_builder("imagenet2012")
    assert config is None
    for folder in (tmp_path / "manual", tmp_path):
        with pytest.raises(mhd.ConfigError, match=r"ILSVRC2012_img_train.tar[\s\S]*register on"):
            preparation.check_manual(builder_class, folder)
    (tmp_path / "ILSVRC2012_img_train.tar").touch()
    preparation.check_manual(builder_class, tmp_path)
    preparation.check_manual(preparation.find_builder("cifar10")[0], tmp_path / "manual")


def test_a_full_disk_is_told_with_figures(tmp_path):
    folder = tmp_path / "not" / "there"
    with pytest.raises(mhd.ConfigError, match=r"takes 1,048,576.0 MiB of downloads and 2.0 MiB"):
        preparation.check_disk(2**40, 2**21, folder)
    preparation.check_disk(0, 0, folder)  # unknown
    preparation.check_disk(1000, 1000, folder)
    assert not folder.exists()


def test_one_attempt_at_a_time_and_what_others_left_goes(tmp_path):
    downloads = tmp_path / "downloads"
    kept = downloads / "made_images" / "a.tar.gz"
    foreign = downloads / "other" / "b.tar.gz.tmp.0123"
    gone = [
        tmp_path / "incomplete.made_images" / "data" / "made_images",
        downloads / "made_images" / "c.tar.gz.tmp.0123",
        downloads / "extracted" / "incomplete.0123_TAR_GZ.a.tar.gz",
    ]
    for folder in (foreign, *gone):
        folder.mkdir(parents=True)
    kept.touch()
    said = []
    with preparation.scratch_folder("made_images/large", tmp_path, said.append) as scratch:
        assert len(said) == 3 and not any(folder.exists() for folder in gone)
        (scratch / "made_images").mkdir(parents=True)
        with (
            pytest.raises(mhd.ConfigError, match="another process is preparing made_images"),
            preparation.scratch_folder("made_images/small", tmp_path, said.append),
        ):
            pass
        assert (scratch / "made_images").exists()
        with preparation.scratch_folder("other", tmp_path / "elsewhere", said.append):
            pass
    assert len(said) == 3 and kept.exists() and foreign.exists()
    assert not list(tmp_path.glob("incomplete*"))


def test_failures_are_sentences(tmp_path):
    say = lambda error: preparation.sentence(error, "cifar10", tmp_path)
    url = "http://127.0.0.1:1/cifar.tar.gz"  # nobody listens there
    with pytest.raises(requests.ConnectionError) as refused:
        requests.get(url)
    assert say(refused.value).startswith(
        f"{url} cannot be reached ([Errno 111] Connection refused)"
    )
    assert say(OSError(28, "No space left on device")).startswith(f"the disk of {tmp_path} is full")
    found = say(ValueError("no such member.\nand more"))
    assert found.startswith("preparing cifar10 failed (ValueError: no such member). Mend that")


class Archive(http.server.BaseHTTPRequestHandler):
    """Gives a megabyte, endlessly slowly under /slow, and nothing under /none."""

    def do_GET(self):
        with contextlib.suppress(OSError):
            self.send_response(404 if self.path == "/none" else 200)
            self.send_header("Content-Length", str(2**20))
            self.end_headers()
            while self.path == "/slow":
                self.wfile.write(b"slow")
                time.sleep(0.1)
            self.wfile.write(bytes(2**20))

    def log_message(self, *arguments):
        self.server.asked.append(self.path)


@pytest.fixture
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Archive) as found:
        found.daemon_threads, found.asked = True, []
        threading.Thread(target=found.serve_forever, daemon=True).start()
        yield found
        found.shutdown()


def wait_for_new(folder, pattern, before=()):
    wait_until(lambda: not set(folder.glob(pattern)) <= set(before))
    time.sleep(1)


@needs_tensorflow
def test_an_interrupted_preparation_starts_anew(tmp_path, monkeypatch, server):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root = tmp_path / "data"
    url = f"http://127.0.0.1:{server.server_port}"
    flags = ["--dataset=made_images", "--imports=tests.made_images", f"--data_dir={root}"]
    incomplete = "incomplete.made_images/data/made_images/incomplete.*"

    killed = start_python(*BINARY, *flags, MADE_IMAGES_PAUSE="1", MADE_IMAGES_URL=f"{url}/archive")
    wait_for_new(root, incomplete)
    status, _, err = call(*flags)
    assert status == 2 and "another process is preparing made_images" in err
    killed.kill()
    killed.communicate()
    assert tfds.newest_version("made_images", root) is None

    left = list(root.glob(incomplete))
    interrupted = start_python(
        *BINARY, *flags, MADE_IMAGES_PAUSE="1", MADE_IMAGES_URL=f"{url}/archive"
    )
    wait_for_new(root, incomplete, left)
    interrupted.send_signal(signal.SIGINT)
    out, err = interrupted.communicate(timeout=20)
    assert interrupted.returncode == 130 and "interrupted; the same command" in err
    assert "data, which an interrupted attempt left" in out and "Traceback" not in err
    assert not list(root.glob("incomplete*")) and not list(root.glob("made_images/*"))

    downloading = start_python(*BINARY, *flags, MADE_IMAGES_URL=f"{url}/slow")
    wait_for_new(root, "downloads/made_images/*.tmp.*")
    downloading.terminate()
    downloading.communicate(timeout=20)
    assert downloading.returncode == 130 and not list(root.glob("downloads/made_images/*.tmp.*"))

    status, out, _ = call(*flags, MADE_IMAGES_URL=f"{url}/archive")
    assert (
        status == 0
        and "train: 60 samples" in out
        and f"prepared {root / 'made_images' / '1.0.0'}" in out
    )
    assert server.asked.count("/archive") == 1
    data = mhd.data.load("made_images", data_dir=root)
    assert len(data.labels) == 60 and len(data.test_labels) == 20
    assert any((image == made_images.noise(5)).all() for image in data.inputs)


@needs_tensorflow
def test_what_is_there_is_replaced_by_what_is_whole(tmp_path, server):
    folder = made_images.write(tmp_path / "made_images" / "1.0.0")
    before = contents(folder)
    flags = ["--dataset=made_images", "--imports=tests.made_images", f"--data_dir={tmp_path}"]
    missing = f"http://127.0.0.1:{server.server_port}/none"
    status, _, err = call(*flags, "--overwrite", MADE_IMAGES_URL=missing)
    assert status == 2 and missing in err and "Traceback" not in err
    assert contents(folder) == before and not list(tmp_path.glob("incomplete*"))
    (folder / "dataset_info.json").write_text("{")
    assert call(*flags)[0] == 2
    status, out, _ = call(*flags, "--overwrite")
    assert status == 0 and f"prepared {folder}" in out
    builder = tfds.open_folder(folder)
    assert builder.info.splits["train"].num_examples == 60


@needs_tensorflow
def test_what_is_not_for_image_classification_is_refused(tmp_path):
    status, out, err = call("--dataset=imdb_reviews/plain_text", f"--data_dir={tmp_path}")
    assert status == 2 and out == "" and "is not an image classification data set" in err
    assert not any(tmp_path.iterdir())
