"""MNIST under attack: damaged files, and mirrors that answer anything but the file. Nothing leaves this machine."""

import functools
import gzip
import http.server
import io
import os
import socket
import struct
import threading
from pathlib import Path

import numpy as np
import pytest

import data
import evaluate
import train
from model import TwoHeadNet
from support import mnist

TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS = list(mnist.MNIST_FILES)[:4]  # then their archives


def idx_images(count):
    """A file of `count` random images in MNIST's format."""
    pixels = np.random.default_rng(count).integers(0, 256, (count, 28, 28), np.uint8)
    return struct.pack(">4i", 2051, count, 28, 28) + pixels.tobytes()


def idx_labels(count):
    """The digits to it: 0, 1, ... 9, 0, 1, ..."""
    return struct.pack(">2i", 2049, count) + (np.arange(count) % 10).astype(np.uint8).tobytes()


GOOD = {TRAIN_IMAGES: idx_images(90), TRAIN_LABELS: idx_labels(90)}
GOOD |= {TEST_IMAGES: idx_images(30), TEST_LABELS: idx_labels(30)}
PACKED = {name: gzip.compress(content, mtime=0) for name, content in GOOD.items()}


# What each kind of mirror sends in place of a file.
BODIES = {
    "good": lambda name: PACKED[name],
    "html": lambda name: b"<html>Log in to the hotel's network</html>",
    "flipped": lambda name: PACKED[name][:-1] + bytes([PACKED[name][-1] ^ 1]),
    "cut": lambda name: PACKED[name][: len(PACKED[name]) // 2],
    "longer": lambda name: PACKED[name] + b"more",
    "other": lambda name: PACKED[TEST_LABELS if name != TEST_LABELS else TEST_IMAGES],  # right, but another file
}


class Mirror(http.server.BaseHTTPRequestHandler):
    """Serves /BEHAVIOUR/NAME.gz, well or badly, and keeps what it was asked for."""

    protocol_version = "HTTP/1.0"

    def do_GET(self):
        behaviour, name = self.path.strip("/").removesuffix(".gz").split("/")
        self.server.asked.append(behaviour)
        if behaviour.isdigit():
            self.send_error(int(behaviour))
            return
        if behaviour == "garbage":
            self.wfile.write(b"\x00\x01 what is HTTP?\r\n\r\n")
            return
        self.send_response(302 if behaviour == "redirect" else 200)
        if behaviour == "redirect":
            self.send_header("Location", "http://[not-an-address/")
        if behaviour in ("good", "cut"):
            self.send_header("Content-Length", str(len(PACKED[name])))
        self.end_headers()
        if behaviour in BODIES:
            self.wfile.write(BODIES[behaviour](name))
        elif behaviour == "silent":
            self.server.over.wait(20)
        elif behaviour == "drip":
            while not self.server.over.wait(0.01):
                self.wfile.write(b"\0")
        elif behaviour == "endless":
            for _ in range(100_000):  # 6 GB, were they asked for
                self.wfile.write(bytes(1 << 16))
                self.server.sent += 1 << 16

    def handle(self):
        try:
            super().handle()
        except ConnectionError:  # the other side has seen enough
            pass

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server():
    """The mirror, on the loopback interface; `asked` holds what it was asked for."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Mirror)
    server.daemon_threads = True
    server.asked, server.sent, server.over = [], 0, threading.Event()
    thread = threading.Thread(target=functools.partial(server.serve_forever, poll_interval=0.01))
    thread.start()
    yield server
    server.over.set()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def mirrors(server, monkeypatch):
    """Make the made-up files MNIST, and the given behaviours its mirrors; no other address can be reached."""
    for variable in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(variable, "*")
    connect = socket.socket.connect

    def connect_here_only(self, address):
        assert address == server.server_address, f"the test would have gone to {address}"
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect_here_only)
    files = GOOD | {f"{name}.gz": content for name, content in PACKED.items()}
    files = {name: (len(content), mnist.md5_of(content)) for name, content in files.items()}
    monkeypatch.setattr(mnist, "MNIST_FILES", files)
    monkeypatch.setattr(mnist, "SILENCE_LIMIT", 0.5)
    monkeypatch.setattr(mnist, "FILE_LIMIT", 0.5)

    def use(*behaviours):
        host, port = server.server_address
        monkeypatch.setattr(mnist, "MIRRORS", tuple(f"http://{host}:{port}/{name}/" for name in behaviours))

    use()
    return use


@pytest.fixture
def raw(tmp_path):
    """The folder of the four good files, unpacked."""
    folder = tmp_path / "data" / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for name, content in GOOD.items():
        (folder / name).write_bytes(content)
    return folder


def is_good(images, digits, count):
    content = GOOD[TRAIN_IMAGES if count == 90 else TEST_IMAGES][16:]
    return images.numpy().tobytes() == content and digits.tolist() == [n % 10 for n in range(count)]


# ---------------------------------------------------------------------------------------------------------------------
# Files


def flipped(content, place=-1):
    return content[:place] + bytes([content[place] ^ 1]) + content[place:][1:]


IMAGES = GOOD[TRAIN_IMAGES]
DAMAGE = {
    "empty images": (TRAIN_IMAGES, b""),
    "truncated images": (TRAIN_IMAGES, IMAGES[:-1]),
    "a bit flipped in the images": (TRAIN_IMAGES, flipped(IMAGES, 100)),
    "a label flipped": (TRAIN_LABELS, flipped(GOOD[TRAIN_LABELS])),
    "the test's labels flipped": (TEST_LABELS, flipped(GOOD[TEST_LABELS])),
    "a web page": (TEST_IMAGES, b"<html>404</html>"),
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_named_and_nothing_is_trained_on_it(run, mirrors, raw, monkeypatch, damage, packed):
    """Where nothing can be downloaded; --dataset auto does not turn to synthetic digits either."""
    mirrors("404")
    monkeypatch.setattr(TwoHeadNet, "Batches", lambda *arguments, **options: pytest.fail("trained"))
    name, content = DAMAGE[damage]
    path = raw / name
    if packed:
        path.unlink()
        path = raw / f"{name}.gz"
        content = gzip.compress(content)
    path.write_bytes(content)
    for dataset in ("mnist", "auto"):
        status, _, err = run(train, "--dataset", dataset, "--val-size", 10, "--run-name", "run")
        errors = [line for line in err.splitlines() if not line.startswith("downloading ")]
        assert status == 2 and len(errors) == 1 and "WARNING" not in err
        assert f"{path.relative_to(raw.parents[2])} is damaged (wrong checksum)" in errors[0]
    assert path.read_bytes() == content  # it is left as it was


@pytest.mark.parametrize("padded", [False, True])
def test_a_gz_bomb_is_not_unpacked(mirrors, raw, monkeypatch, padded):
    """Neither one of another size than MNIST's file nor one of the very same size, but with another checksum."""
    mirrors("404")
    bomb = gzip.compress(bytes(4_000_000), mtime=0)
    assert len(bomb) < len(PACKED[TRAIN_IMAGES])
    if padded:
        bomb += bytes(len(PACKED[TRAIN_IMAGES]) - len(bomb))
    (raw / TRAIN_IMAGES).unlink()
    (raw / f"{TRAIN_IMAGES}.gz").write_bytes(bomb)
    monkeypatch.setattr("gzip.decompress", lambda content: pytest.fail("unpacked"))
    with pytest.raises(data.DataError, match=rf"{TRAIN_IMAGES}\.gz is damaged"):
        data.load_digits("mnist", raw.parents[1], train=True)


def test_a_damaged_file_is_made_anew_from_its_archive_or_a_mirror(mirrors, raw, server):
    (raw / TRAIN_IMAGES).write_bytes(flipped(IMAGES))
    (raw / f"{TRAIN_IMAGES}.gz").write_bytes(PACKED[TRAIN_IMAGES])
    assert is_good(*mnist.load_mnist(raw.parents[1], train=True), 90) and server.asked == []
    mirrors("good")
    (raw / TRAIN_IMAGES).write_bytes(flipped(IMAGES))
    (raw / f"{TRAIN_IMAGES}.gz").write_bytes(b"damaged too")
    assert is_good(*mnist.load_mnist(raw.parents[1], train=True), 90) and server.asked == ["good"]
    assert (raw / TRAIN_IMAGES).read_bytes() == IMAGES
    assert (raw / f"{TRAIN_IMAGES}.gz").read_bytes() == PACKED[TRAIN_IMAGES]


def test_a_file_damaged_since_the_last_start_is_noticed_whatever_its_size_and_times(mirrors, raw):
    mirrors("404")
    mnist.load_mnist(raw.parents[1], train=True)
    path, before = raw / TRAIN_IMAGES, (raw / TRAIN_IMAGES).stat()
    path.write_bytes(flipped(IMAGES))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(data.DataError, match=f"{TRAIN_IMAGES} is damaged"):
        mnist.load_mnist(raw.parents[1], train=True)


def test_a_folder_that_is_read_only_is_read(mirrors, raw, monkeypatch):
    monkeypatch.setattr(mnist, "write_atomically", lambda *_: pytest.fail("wrote"))
    assert is_good(*mnist.load_mnist(raw.parents[1], train=True), 90)


def test_the_test_half_needs_no_training_files_and_the_training_half_needs_the_test_files(mirrors, raw):
    mirrors("404")
    for name in (TRAIN_IMAGES, TRAIN_LABELS):
        (raw / name).rename(raw.parent / name)
    assert is_good(*mnist.load_mnist(raw.parents[1], train=False), 30)
    for name in (TRAIN_IMAGES, TRAIN_LABELS):
        (raw.parent / name).rename(raw / name)
    (raw / TEST_LABELS).unlink()
    with pytest.raises(data.DataError, match=f"there is no .*{TEST_LABELS}"):
        mnist.load_mnist(raw.parents[1], train=True)


def test_evaluate_refuses_damaged_data_too(run, mirrors, raw, trained):
    mirrors("404")
    (raw / TEST_LABELS).write_bytes(flipped(GOOD[TEST_LABELS]))
    status, out, err = run(evaluate, "--ckpt", trained / "best.pt", "--dataset", "mnist")
    assert status == 2 and out == "" and f"{TEST_LABELS} is damaged" in err.splitlines()[-1]


# ---------------------------------------------------------------------------------------------------------------------
# Mirrors

BAD = {
    "html": "sent something else",
    "flipped": "sent something else",
    "cut": "sent something else",
    "longer": "sent something else",
    "endless": "sent something else",
    "other": "sent something else",
    "404": "failed: Not Found",
    "503": "failed: Service Unavailable",
    "garbage": "failed: ",
    "redirect": "failed: ",
    "silent": "failed: ",
    "drip": "failed: not done after",
}


@pytest.mark.parametrize("behaviour", BAD)
def test_a_bad_mirror_gives_way_to_the_next(mirrors, server, behaviour):
    mirrors(behaviour, "good")
    assert mnist.download(Path(f"{TRAIN_IMAGES}.gz")) == PACKED[TRAIN_IMAGES]
    assert server.asked == [behaviour, "good"]


def test_all_four_files_are_downloaded_and_kept(mirrors, server, tmp_path):
    mirrors("404", "good")
    images, digits, name = data.load_digits("mnist", tmp_path, train=True)
    assert name == "mnist" and is_good(images, digits, 90) and server.asked == ["404", "good"] * 4
    kept = sorted(path.name for path in (tmp_path / "MNIST" / "raw").iterdir())
    assert kept == sorted([*GOOD, *(f"{name}.gz" for name in GOOD)])


def test_a_download_shows_how_much_of_the_file_is_there(mirrors, tmp_path, monkeypatch):
    shown = []

    class Bar(mnist.tqdm):
        def close(self):
            shown.append((self.n, self.total))
            super().close()

    monkeypatch.setattr(mnist, "tqdm", lambda **options: Bar(**options | {"file": io.StringIO(), "disable": False}))
    mirrors("good")
    data.load_digits("mnist", tmp_path, train=True)
    assert set(shown) == {(len(packed), len(packed)) for packed in PACKED.values()}


@pytest.mark.parametrize("behaviour", BAD)
def test_mirrors_that_are_all_bad_end_in_one_line_and_leave_nothing(mirrors, server, run, tmp_path, behaviour):
    mirrors(behaviour)
    status, _, err = run(train, "--dataset", "mnist", "--val-size", 10)
    *downloads, error = err.splitlines()
    assert status == 2 and "could not be downloaded" in error and BAD[behaviour] in error and TRAIN_IMAGES in error
    assert len(downloads) == len(server.asked) == mnist.ATTEMPTS
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    assert server.sent < 100e6  # an endless answer is not read to its end: what fits in the buffers between
