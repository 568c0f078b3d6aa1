"""Identity tokens of visitors: three algorithms, and every forgery that must be refused."""

import json
import time
from pathlib import Path
from typing import Any

import jwt
import msgspec
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa

from server.chat.reply import Reply
from server.chat.request import ReplyRequest
from server.skills.identity import GROUPS_SECONDS, Identity, Person, person
from server.skills.skill import Skill
from tests.server.web.api.test_widget import watch_prompts
from tests.support.harness import HELP, Serve, Served
from tests.support.visitor import Visitor

SECRET = "a secret of the page's own server"


def public(key: Any) -> str:
    pem = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    return str(pem.decode())


OTHER_SKILL = msgspec.structs.replace(HELP, name="shop", identity=Identity("HS256", SECRET))


BAD_GROUPS: dict[str, Any] = {
    "a group that is no list": "staff",
    "groups in a table": {"staff": True},
    "groups that are null": None,
    "a group that is no text": ["staff", 1],
    "an empty group": [""],
    "a long group": ["x" * 65],
    "many groups": [str(n) for n in range(33)],
    "groups of many bytes": ["\u4e2d" * 60] * 5,
}


def claims(**more: Any) -> dict[str, Any]:
    return {"sub": "ada", "aud": "help", "exp": int(time.time()) + 120, **more}


def skill(identity: Identity) -> Skill:
    return msgspec.structs.replace(HELP, identity=identity, system="You talk to {{ person or 'somebody' }}.")


@pytest.mark.parametrize("algorithm", ["HS256", "RS256", "EdDSA"])
def test_a_token_signed_with_the_configured_key_identifies_its_visitor(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, algorithm: Any
) -> None:
    private: Any = SECRET
    if algorithm == "RS256":
        private = rsa.generate_private_key(65537, 2048)
    elif algorithm == "EdDSA":
        private = ed25519.Ed25519PrivateKey.generate()
    verifier = SECRET if algorithm == "HS256" else public(private)
    served = serve("ok", skills=(skill(Identity(algorithm, verifier)),))
    seen = watch_prompts(served, monkeypatch)
    known = Visitor(served, identity=jwt.encode(claims(), private, algorithm))
    assert known.opened.status == 200
    known.ask("hello")
    Visitor(served).ask("hello")
    asked = [prompt[0][1] for prompt in seen if prompt[-1][1] == "hello"]  # the others find what is the skill's own
    assert asked == ["You talk to ada.", "You talk to somebody."]


@pytest.mark.parametrize(
    "token",
    [
        jwt.encode(claims(), "another secret that is as long as it", "HS256"),
        jwt.encode(claims(aud="other"), SECRET, "HS256"),
        jwt.encode(claims(exp=int(time.time()) - 60), SECRET, "HS256"),
        jwt.encode(claims(exp=int(time.time()) + 3600), SECRET, "HS256"),
        jwt.encode(claims(iss="elsewhere"), SECRET, "HS256"),
        jwt.encode(claims(sub=""), SECRET, "HS256"),
        jwt.encode(claims(sub="x" * 300), SECRET, "HS256"),
        jwt.encode({"sub": "ada", "aud": "help"}, SECRET, "HS256"),
        jwt.encode(claims(exp="9" * 10), SECRET, "HS256"),
        jwt.encode(claims(exp=float("inf")), SECRET, "HS256"),
        jwt.encode(claims(exp=[1]), SECRET, "HS256"),
        *(jwt.encode(claims(groups=groups), SECRET, "HS256") for groups in BAD_GROUPS.values()),
        jwt.encode(claims(groups=["staff"]), "another secret that is as long as it", "HS256"),
        jwt.encode(claims(), "", "none"),
        jwt.encode(claims(), SECRET * 2, "HS512"),
        "nonsense",
        "\u20ac",
        "",
    ],
    ids=[
        "other key",
        "other audience",
        "expired",
        "valid too long",
        "other issuer",
        "empty subject",
        "long subject",
        "no expiry",
        "expiry in words",
        "endless",
        "expiry in a list",
        *BAD_GROUPS,
        "groups by another key",
        "no signature",
        "other algorithm",
        "not a token",
        "not ASCII",
        "empty",
    ],
)
def test_every_other_token_is_refused_alike(serve: Serve, token: str) -> None:
    served = serve(skills=(skill(Identity("HS256", SECRET, issuer="shop")),))
    opened = Visitor(served, identity=token).opened
    assert (opened.status, opened.json["error"]["code"]) == (401, "identity_invalid")
    assert json.dumps(opened.json) == json.dumps(Visitor(served, identity="x").opened.json)


def test_a_public_key_is_not_accepted_as_an_hs256_secret(serve: Serve) -> None:
    private = rsa.generate_private_key(65537, 2048)
    served = serve(skills=(skill(Identity("RS256", public(private))),))
    head, body = (_base64(part) for part in ({"alg": "HS256", "typ": "JWT"}, claims()))
    import hashlib
    import hmac

    signature = hmac.new(public(private).encode(), f"{head}.{body}".encode(), hashlib.sha256).digest()
    forged = f"{head}.{body}.{_raw(signature)}"
    assert Visitor(served, identity=forged).opened.status == 401


def _base64(value: Any) -> str:
    return _raw(json.dumps(value).encode())


def _raw(value: bytes) -> str:
    import base64

    return base64.urlsafe_b64encode(value).rstrip(b"=").decode()


def test_a_required_token_must_be_there(serve: Serve) -> None:
    served = serve(skills=(skill(Identity("HS256", SECRET, required=True)),))
    assert Visitor(served).opened.status == 401
    assert Visitor(served, identity=jwt.encode(claims(), SECRET, "HS256")).opened.status == 200


def test_a_conversation_belongs_to_its_person(serve: Serve) -> None:
    served = serve("ok", skills=(skill(Identity("HS256", SECRET)),))
    ada = Visitor(served, identity=jwt.encode(claims(), SECRET, "HS256"))
    ada.ask("mine")
    resume = ada.opened.json["resume"]
    eve = jwt.encode(claims(sub="eve"), SECRET, "HS256")
    assert not Visitor(served, resume=resume, identity=eve).opened.json["resumed"]
    assert not Visitor(served, resume=resume).opened.json["resumed"]
    again = Visitor(served, resume=resume, identity=jwt.encode(claims(), SECRET, "HS256"))
    assert again.opened.json["resumed"]


def test_an_expired_token_resumes_only_its_own_conversation(serve: Serve) -> None:
    """A session ends after ten minutes, and the token with which the page began after five at most."""
    served = serve("ok", skills=(skill(Identity("HS256", SECRET, required=True)), OTHER_SKILL))
    ada = Visitor(served, identity=jwt.encode(claims(), SECRET, "HS256"))
    ada.ask("mine")
    resume = ada.opened.json["resume"]
    old = jwt.encode(claims(exp=int(time.time()) - 600), SECRET, "HS256")
    again = Visitor(served, resume=resume, identity=old).opened
    assert again.json["conversation"] == ada.opened.json["conversation"]
    eve = Visitor(served, identity=jwt.encode(claims(sub="eve"), SECRET, "HS256")).opened.json["resume"]
    elsewhere = Visitor(served, skill="shop", identity=jwt.encode(claims(aud="shop"), SECRET, "HS256")).opened.json
    for shown in (None, "x", eve, ada.token, elsewhere["resume"]):
        assert Visitor(served, resume=shown, identity=old).opened.status == 401
    forged = jwt.encode(claims(exp=int(time.time()) - 600), "another secret that is as long as it", "HS256")
    assert Visitor(served, resume=resume, identity=forged).opened.status == 401
    assert Visitor(served, resume=resume).opened.status == 401


@pytest.mark.parametrize("setting", ['key_file = "secret"', 'key = "file:secret"'])
def test_the_key_can_be_read_from_a_file(tmp_path: Path, setting: str) -> None:
    (tmp_path / "secret").write_text(SECRET + "\n")
    file = tmp_path / "a.toml"
    file.write_text(f'name = "a"\n[identity]\nalgorithm = "HS256"\n{setting}')
    found = Skill.read(file).identity
    assert found is not None
    assert found.key == SECRET


def test_a_session_has_the_groups_of_its_token_until_they_change(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    served = serve("ok", skills=(skill(Identity("HS256", SECRET)),))
    seen = watch_requests(served, monkeypatch)

    def groups_of(**session: Any) -> tuple[list[str], Visitor]:
        visitor = Visitor(served, **session)
        visitor.ask("hello")
        return sorted(seen[-1].groups), visitor

    now = int(time.time())
    staff = jwt.encode(claims(groups=["staff", "board", "staff"]), SECRET, "HS256")
    groups, ada = groups_of(identity=staff)
    assert groups == ["board", "staff"]
    old = jwt.encode(claims(exp=now - 100, groups=["board", "staff", "owners"]), SECRET, "HS256")
    groups, again = groups_of(identity=old, resume=ada.opened.json["resume"])
    assert (groups, again.opened.json["resumed"]) == (["board", "staff"], True)
    fresh = jwt.encode(claims(groups=["staff"]), SECRET, "HS256")
    groups, fewer = groups_of(identity=fresh, resume=ada.opened.json["resume"])
    assert (groups, fewer.opened.json["resumed"]) == (["staff"], False)
    groups, _ = groups_of(identity=old, resume=fewer.opened.json["resume"])
    assert groups == ["staff"]
    assert groups_of(resume=ada.opened.json["resume"])[0] == groups_of()[0] == []


def test_groups_end_an_hour_after_a_valid_token_named_them() -> None:
    identity = Identity("HS256", SECRET)
    old = jwt.encode(claims(exp=int(time.time()) - 100, groups=["staff"]), SECRET, "HS256")
    for age, groups in ((GROUPS_SECONDS - 60, ("staff",)), (GROUPS_SECONDS, ())):
        found = person(identity, old, "help", Person("ada", ("staff",), int(time.time()) - age))
        assert found is not None
        assert found.groups == groups


def watch_requests(served: Served, monkeypatch: pytest.MonkeyPatch) -> list[ReplyRequest]:
    """Every request for a reply from now on."""
    seen: list[ReplyRequest] = []
    begin = served.apps.replies.begin

    async def watched(request_id: str, request: ReplyRequest) -> Reply:
        seen.append(request)
        return await begin(request_id, request)

    monkeypatch.setattr(served.apps.replies, "begin", watched)
    return seen
