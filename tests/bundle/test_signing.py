"""The folder's signature: ours verifies, the community's verifier agrees, and no bit of it can change."""

from __future__ import annotations

import base64
import binascii
import json
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from tensure.bundle import _signing
from tensure.bundle._folder import open_bundle, write_bundle
from tensure.bundle._keys import SigningKey
from tensure.bundle._signing import sign_folder, verify_signature
from tensure.errors import DamageError, TensureError

KEY = SigningKey.generate()


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("signed") / "bundle"
    write_bundle(folder, name="b", program=b"program", weights={}, key=KEY)
    return folder


def community(folder: Path, key: SigningKey, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    (tmp_path / "pub.pem").write_bytes(key.public.pem)
    return subprocess.run(
        [
            *(sys.executable, "-m", "model_signing", "verify", "key", str(folder)),
            *("--signature", str(folder / "model.sig"), "--public_key", str(tmp_path / "pub.pem")),
            "--no-ignore-git-paths",
        ],
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_community_verifier_agrees(tmp_path: Path) -> None:
    """model-signing's own command line accepts ours, and refuses a flipped byte, an extra file."""
    folder = tmp_path / "bundle"
    write_bundle(folder, name="b", program=b"program", weights={}, key=KEY)
    done = community(folder, KEY, tmp_path)
    assert done.returncode == 0, done.stderr
    (folder / "program.txt").write_bytes(b"pRogram")
    done = community(folder, KEY, tmp_path)
    assert done.returncode != 0
    assert "program.txt" in done.stdout + done.stderr
    (folder / "program.txt").write_bytes(b"program")
    (folder / ".gitignore").write_bytes(b"")
    assert community(folder, KEY, tmp_path).returncode != 0


def accepts(data: bytes) -> bool:
    try:
        verify_signature(data, [KEY.public])
    except DamageError as error:
        assert error.file == "model.sig"
        assert error.place is not None and error.place.startswith("block 0")
        return False
    return True


def surviving_bits(data: bytes, places: Iterable[int], accepts: Callable[[bytes], bool] = accepts) -> int:
    changed = bytearray(data)
    found = 0
    for place in places:
        changed[place // 8] ^= 1 << place % 8
        found += accepts(bytes(changed))
        changed[place // 8] ^= 1 << place % 8
    return found


def test_no_bit_of_the_signature_file_can_change(signed: Path) -> None:
    """Every bit outside the signed payload; of the payload, which the signature covers whole, every fifth."""
    data = (signed / "model.sig").read_bytes()
    assert accepts(data)
    start, end = data.index(b'"payload":"') * 8, data.index(b'","payloadType"') * 8
    assert surviving_bits(data, [*range(start), *range(start, end, 5), *range(end, len(data) * 8)]) == 0
    for change in (data + b"\n", data[:-1], b" " + data, data.replace(b'":', b'": ', 1), b""):
        assert not accepts(change)


def test_a_lenient_reader_lets_a_change_through(signed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: with base64 as Python reads it by default, any spelling taken, a change survives."""
    data = (signed / "model.sig").read_bytes()
    under_test = [data]

    def lenient(changed: bytes) -> bool:
        under_test[0] = changed
        try:
            return accepts(changed)
        except binascii.Error:
            return False

    monkeypatch.setattr(_signing, "decode_base64", lambda value, place, max_bytes: base64.b64decode(value))
    monkeypatch.setattr(_signing, "_spell", lambda *parts: under_test[0])
    # Which bits survive depends on the last character; one outside the alphabet always does.
    changed = data.replace(b'"sig":"', b'"sig":"!', 1)
    assert lenient(changed)


def resigned(signed: Path, change: Callable[[dict[str, object]], object]) -> bytes:
    """A statement changed and signed again, by the right key."""
    hint, payload, _ = _signing._take_apart((signed / "model.sig").read_bytes())
    statement = json.loads(payload)
    change(statement)
    data = json.dumps(statement).encode()
    return _signing._spell(hint, data, KEY.sign(_signing.pae(_signing.IN_TOTO_TYPE, data)))


NONSENSE: dict[str, Callable[[dict[str, object]], object]] = {
    "type": lambda s: s.update(_type="https://in-toto.io/Statement/v0.1"),
    "predicate type": lambda s: s.update(predicateType="https://model_signing/Digests/v0.1"),
    "extra": lambda s: s.update(extra=1),
    "no subject": lambda s: s.update(subject=[]),
    "two subjects": lambda s: s.update(subject=s["subject"] * 2),
    "path out": lambda s: s["predicate"]["resources"][0].update(name="../../etc/passwd"),
    "absolute": lambda s: s["predicate"]["resources"][0].update(name="/etc/passwd"),
    "twice": lambda s: s["predicate"]["resources"][1].update(name="blocks.bin"),
    "algorithm": lambda s: s["predicate"]["resources"][0].update(algorithm="blake2"),
    "digest": lambda s: s["predicate"]["resources"][0].update(digest="00" * 32),
    "links": lambda s: s["predicate"]["serialization"].update(allow_symlinks=True),
    "zero": lambda s: s["predicate"]["serialization"].update(allow_symlinks=0),
    "ignored": lambda s: s["predicate"]["serialization"].update(ignore_paths=["model.sig", "weights"]),
    "list": lambda s: s.update(predicate=[]),
}  # type: ignore[dict-item, index, operator]


@pytest.mark.parametrize("case", NONSENSE)
def test_signed_nonsense_is_refused(signed: Path, case: str) -> None:
    assert accepts(resigned(signed, lambda s: None))
    assert not accepts(resigned(signed, NONSENSE[case]))


def test_opening_needs_neither_torch_nor_model_signing(signed: Path, tmp_path: Path) -> None:
    (tmp_path / "pub.pem").write_bytes(KEY.public.pem)
    code = (
        "import sys\nsys.modules['torch'] = sys.modules['model_signing'] = sys.modules['sigstore'] = None\n"
        "from tensure.bundle._folder import open_bundle\nfrom tensure.bundle._keys import read_public_key\n"
        "assert open_bundle(sys.argv[1], [read_public_key(sys.argv[2])]).check_all() == []"
    )
    command = [sys.executable, "-c", code, str(signed), str(tmp_path / "pub.pem")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_signing_needs_a_p256_key(tmp_path: Path) -> None:
    with pytest.raises(TensureError, match="P-256"):
        sign_folder(tmp_path, SigningKey.generate("ed25519"))


def test_any_trusted_key_will_do(signed: Path) -> None:
    keys = [SigningKey.generate().public, KEY.public]
    assert open_bundle(signed, keys).key == KEY.public
