"""Keys: made once, kept private, rotated without losing what they signed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature

from tensure.bundle._keys import (
    KeyKind,
    PublicKey,
    SigningKey,
    default_key_path,
    load_signing_key,
    load_trusted_keys,
    read_public_key,
    rotate,
    trust,
)
from tensure.errors import FormatError, InputError, TensureError, UnsupportedError

KINDS: list[KeyKind] = ["p256", "ed25519"]
ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


@pytest.mark.parametrize("kind", KINDS)
def test_sign_and_verify(kind: KeyKind) -> None:
    key, other = SigningKey.generate(kind), SigningKey.generate(kind)
    for _ in range(20):  # both halves of the ECDSA signatures
        signature = key.sign(b"message")
        assert key.public.verify(signature, b"message")
        assert not key.public.verify(signature, b"massage")
        assert not other.public.verify(signature, b"message")
    assert SigningKey.from_pem(key.private_pem()).public == key.public
    assert PublicKey.from_pem(key.public.pem) == key.public
    assert len(key.public.id) == 64


def test_the_other_half_of_an_ecdsa_pair_is_refused() -> None:
    """(r, n - s) is as valid to OpenSSL; taking it would give every receipt a second spelling."""
    key = SigningKey.generate()
    r, s = decode_dss_signature(key.sign(b"m"))
    twin = encode_dss_signature(r, ORDER - s)
    public = serialization.load_der_public_key(key.public.der)
    assert isinstance(public, ec.EllipticCurvePublicKey)
    public.verify(twin, b"m", ec.ECDSA(hashes.SHA256()))
    assert not key.public.verify(twin, b"m")


def test_secrets_are_not_shown() -> None:
    key = SigningKey.generate()
    assert "PRIVATE" not in repr(key) + str(key)


def test_default_path() -> None:
    assert default_key_path({"TENSURE_KEY": "/k.pem", "XDG_CONFIG_HOME": "/x"}) == Path("/k.pem")
    assert default_key_path({"XDG_CONFIG_HOME": "/x"}) == Path("/x/tensure/keys/signing-key.pem")
    usual = Path.home() / ".config/tensure/keys/signing-key.pem"
    assert default_key_path({"XDG_CONFIG_HOME": "relative"}) == default_key_path({}) == usual


def test_made_on_first_use(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "signing-key.pem"
    with pytest.raises(InputError, match="no signing key"):
        load_signing_key(path, create=False)
    assert not path.parent.exists()
    assert load_trusted_keys(path) == ()
    key = load_signing_key(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert key.kind == "p256"
    assert load_signing_key(path).public == key.public
    assert (path.parent / "signing-key.pub.pem").read_bytes() == key.public.pem
    assert load_trusted_keys(path) == (key.public,)


def test_a_lost_public_half_is_written_again(tmp_path: Path) -> None:
    key = load_signing_key(tmp_path / "k.pem")
    (tmp_path / "k.pub.pem").unlink()
    load_signing_key(tmp_path / "k.pem")
    assert read_public_key(tmp_path / "k.pub.pem") == key.public


def test_processes_that_come_first_together_share_one_key(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom tensure.bundle._keys import load_signing_key\n"
        "sys.stdin.read(1); print(load_signing_key(sys.argv[1]).public.id)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "keys" / "k.pem")]
    racers = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(4)
    ]
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("x")
        racer.stdin.flush()
    ids = {racer.communicate()[0].strip() for racer in racers}
    assert all(racer.returncode == 0 for racer in racers)
    assert ids == {load_signing_key(tmp_path / "keys" / "k.pem", create=False).public.id}
    assert sorted(os.listdir(tmp_path / "keys")) == ["k.pem", "k.pub.pem"]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o601, 0o777])
def test_readable_by_others_is_refused(tmp_path: Path, mode: int) -> None:
    load_signing_key(tmp_path / "k.pem")
    (tmp_path / "k.pem").chmod(mode)
    with pytest.raises(InputError, match=r"others may read or write the key.*chmod 600"):
        load_signing_key(tmp_path / "k.pem")


def test_a_link_is_refused(tmp_path: Path) -> None:
    load_signing_key(tmp_path / "real.pem")
    (tmp_path / "k.pem").symlink_to("real.pem")
    with pytest.raises(InputError, match="no link"):
        load_signing_key(tmp_path / "k.pem")
    (tmp_path / "dangling.pem").symlink_to("nowhere")
    with pytest.raises(InputError, match="no link"):
        load_signing_key(tmp_path / "dangling.pem")
    assert not (tmp_path / "nowhere").exists()


def test_somebody_elses_key_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load_signing_key(tmp_path / "k.pem")
    monkeypatch.setattr(os, "geteuid", lambda: (tmp_path / "k.pem").stat().st_uid + 1)
    with pytest.raises(InputError, match="belongs to user"):
        load_signing_key(tmp_path / "k.pem")


def rsa_pem() -> bytes:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def encrypted_pem() -> bytes:
    return ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"secret"),
    )


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"", FormatError),
        (b"hello", FormatError),
        (b"x" * 9000, FormatError),
        (SigningKey.generate().private_pem()[:-40], FormatError),
        (SigningKey.generate().public.pem, FormatError),
        (encrypted_pem(), FormatError),
        (rsa_pem(), UnsupportedError),
    ],
    ids=["empty", "text", "long", "cut", "public", "encrypted", "rsa"],
)
def test_bad_key_files(tmp_path: Path, data: bytes, error: type[TensureError]) -> None:
    (tmp_path / "k.pem").write_bytes(data)
    (tmp_path / "k.pem").chmod(0o600)
    with pytest.raises(error, match=r"k\.pem"):
        load_signing_key(tmp_path / "k.pem")
    assert (tmp_path / "k.pem").read_bytes() == data


def test_bad_public_keys(tmp_path: Path) -> None:
    good = SigningKey.generate().public.pem
    curve = ec.generate_private_key(ec.SECP384R1()).public_key()
    other = curve.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    for data in (b"", good * 2, b"junk\n" + good, good[:60], other, SigningKey.generate().private_pem()):
        (tmp_path / "p.pem").write_bytes(data)
        with pytest.raises((FormatError, UnsupportedError), match=r"p\.pem"):
            read_public_key(tmp_path / "p.pem")
    with pytest.raises(InputError, match="cannot be read"):
        read_public_key(tmp_path / "none.pem")
    with pytest.raises(InputError, match="regular file"):
        read_public_key(tmp_path)


def test_rotation_keeps_the_old_key_trusted(tmp_path: Path) -> None:
    path = tmp_path / "k.pem"
    first = load_signing_key(path)
    old, second = rotate(path)
    assert old == first.public != second.public
    assert load_signing_key(path).public == second.public
    assert path.stat().st_mode & 0o777 == 0o600
    assert load_trusted_keys(path) == (second.public, first.public)
    assert dict(load_trusted_keys(path)[1].notes)["Retired"].endswith("Z")
    assert (tmp_path / "k.pub.pem").read_bytes() == second.public.pem
    _, third = rotate(path)
    assert set(load_trusted_keys(path)) == {first.public, second.public, third.public}
    for file in (tmp_path / "trusted").iterdir():
        file.unlink()
    assert load_trusted_keys(path) == (third.public,)


def test_trusting_somebody(tmp_path: Path) -> None:
    key = SigningKey.generate("ed25519").public
    file = trust(key, tmp_path / "k.pem")
    assert trust(key, tmp_path / "k.pem") == file
    assert load_trusted_keys(tmp_path / "k.pem") == (key,)
    assert dict(read_public_key(file).notes)["Key-Id"] == key.id


def test_a_bad_trusted_key_is_named(tmp_path: Path) -> None:
    (tmp_path / "trusted").mkdir()
    (tmp_path / "trusted" / "bad.pem").write_bytes(b"bad")
    with pytest.raises(FormatError, match=r"bad\.pem"):
        load_trusted_keys(tmp_path / "k.pem")


@pytest.mark.parametrize("part", [".", "a.pem"])
@pytest.mark.parametrize("mode", [0o775, 0o757, 0o777, 0o720])
def test_trust_that_others_can_change_is_refused(tmp_path: Path, part: str, mode: int) -> None:
    folder = tmp_path / "trusted"
    folder.mkdir()
    (folder / "a.pem").write_bytes(SigningKey.generate().public.pem)
    (folder / "a.pem").chmod(0o644)
    folder.chmod(0o755)
    assert len(load_trusted_keys(tmp_path / "k.pem")) == 1
    (folder / part).chmod(mode)
    with pytest.raises(InputError, match=r"others may write to it.*chmod go-w"):
        load_trusted_keys(tmp_path / "k.pem")


@pytest.mark.parametrize("part", [".", "a.pem"])
def test_somebody_elses_trust_is_refused(tmp_path: Path, part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "trusted"
    trust(SigningKey.generate().public, tmp_path / "k.pem")
    next(folder.iterdir()).rename(folder / "a.pem")
    if os.geteuid() == 0:
        os.chown(folder / part, 65534, -1)
        owner = "65534"
    else:
        owner = str(os.geteuid())
        monkeypatch.setattr(os, "geteuid", lambda: int(owner) + 1)
    with pytest.raises(InputError, match=f"belongs to user {owner}"):
        load_trusted_keys(tmp_path / "k.pem")


@pytest.mark.parametrize("path", ["a\0b", "\ud800"])
def test_what_is_no_path_is_bad_input(path: str) -> None:
    for read in (read_public_key, load_signing_key, load_trusted_keys):
        with pytest.raises(InputError, match=r"cannot be (read|opened)") as caught:
            read(path)
        str(caught.value).encode()
