import os
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from server.errors import ConfigError, Forbidden, NotFound, Unauthorized
from server.skills import api_keys, catalogue
from server.skills.api_keys import Keys, digest
from server.skills.catalogue import Grant, Skills
from server.skills.skill import Skill
from tests.conftest import ROOT
from tests.server.web.test_listeners import call
from tests.support.harness import HELP, KEY, OTHER, OTHER_KEY, Serve, ledger_of

A = Skill(name="a", keys=(digest("key-a"),), origins=("https://a.example",))
B = Skill(name="b", keys=(digest("key-b"), digest("key-both")), origins=("https://b.example:8443",))
C = Skill(name="c", keys=(digest("key-both"),))
CLOSED = Skill(name="closed")
ALL = Skills([A, B, C, CLOSED])


def use(name: str, key: str | None) -> Grant:
    return ALL.authorise(name, ALL.recognise(key))


def test_a_key_opens_its_skills_only() -> None:
    keys = ("key-a", "key-b", "key-both")
    opened = {key: [grant.skill.name for grant in ALL.usable(ALL.recognise(key))] for key in keys}
    assert opened == {"key-a": ["a"], "key-b": ["b"], "key-both": ["b", "c"]}
    assert use("a", "key-a") == Grant(A, digest("key-a")[:12])


@pytest.mark.parametrize(
    "origin",
    ["https://a.example:443", "http://a.example", "https://a.example.evil", "https://A.example", "null", "*", "", None],
)
def test_an_origin_must_match_exactly(origin: str | None) -> None:
    assert A.admits("https://a.example")
    assert not A.admits(origin)
    assert not CLOSED.admits(origin)


@pytest.mark.parametrize(
    ("key", "error", "code"),
    [
        (None, Unauthorized, "missing_api_key"),
        ("wrong", Unauthorized, "invalid_api_key"),
        ("' OR 1=1--", Unauthorized, "invalid_api_key"),
        ("\udcff", Unauthorized, "invalid_api_key"),
        ("key-b", Forbidden, "key_not_allowed"),
    ],
)
def test_everyone_else_is_refused(key: str | None, error: type[Exception], code: str) -> None:
    with pytest.raises(error) as caught:
        use("a", key)
    assert getattr(caught.value, "code") == code  # noqa: B009
    assert "key-" not in str(caught.value)


def test_a_skill_without_keys_and_origins_is_closed_to_all() -> None:
    for key in (None, "", "key-a", "key-both"):
        with pytest.raises((Unauthorized, Forbidden)):
            use("closed", key)
    for origin in (None, "null", "https://a.example"):
        assert not CLOSED.admits(origin)


def watch_hashes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The keys that are hashed from now on."""
    hashed: list[str] = []

    def watched(key: str) -> str:
        hashed.append(key)
        return digest(key)

    monkeypatch.setattr(catalogue, "digest", watched)
    return hashed


def test_a_key_is_hashed_once_a_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "keys.json"
    shown, key = api_keys.create(file, ["a", "closed"], "")
    skills = Skills([A, B, C, CLOSED], Keys(file))
    hashed = watch_hashes(monkeypatch)
    caller = skills.recognise(shown)
    assert {name for name in skills.names if name in caller.skills} == {"a", "closed"}
    assert [skills.authorise(name, caller).key_id for name in ("a", "closed")] == [key.id, key.id]
    assert len(skills.usable(caller)) == 2
    assert hashed == [shown]


def test_origins_as_browsers_send_them_are_accepted(tmp_path: Path) -> None:
    origins = ["https://xn--bcher-kva.example", "http://[::1]:8001", "http://127.0.0.1", "https://x.example:80", "*"]
    (tmp_path / "a.toml").write_text(f'name = "a"\norigins = {origins}')
    assert Skills(Skills.read(tmp_path)).get("a") is not None


def test_a_request_hashes_its_key_once(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    served = serve("ok", skills=(HELP, OTHER))
    hashed = watch_hashes(monkeypatch)
    ask = {"model": "help", "messages": [{"role": "user", "content": "hi"}]}
    for path, body in (("/v1/models", None), ("/v1/models/help", None), ("/v1/chat/completions", ask)):
        assert call(served.url, path, body, Authorization=f"Bearer {KEY}").status == 200
    assert hashed == [KEY] * 3


def test_without_a_key_an_unknown_skill_looks_like_a_known_one(serve: Serve) -> None:
    served = serve("ok", skills=(HELP,))
    shown: tuple[dict[str, Any], ...] = ({}, {"Authorization": "Bearer wrong"})
    for headers in shown:
        told = {call(served.url, f"/v1/models/{n}", **headers).json["error"]["message"] for n in ("help", "nobody")}
        assert len(told) == 1


def test_an_unknown_skill_is_not_found() -> None:
    with pytest.raises(NotFound, match="no skill 'nobody'"):
        use("nobody", "key-a")


def test_an_alias_is_the_skill_and_the_ledger_has_its_name(serve: Serve) -> None:
    """Capitals and slashes are allowed; the reply names what was asked for."""
    aliases = ("gpt-4o-mini", "Qwen/Qwen3-0.6B")
    served = serve("ok", skills=(replace(HELP, aliases=aliases), OTHER))
    for alias in aliases:
        ask = {"model": alias, "messages": [{"role": "user", "content": "hi"}]}
        reply = call(served.url, "/v1/chat/completions", ask, Authorization=f"Bearer {KEY}")
        assert (reply.status, reply.json["model"]) == (200, alias)
        refused = call(served.url, "/v1/chat/completions", ask, Authorization=f"Bearer {OTHER_KEY}")
        assert (refused.status, refused.json["error"]["code"]) == (403, "key_not_allowed")
    assert {row["skill"] for row in ledger_of(served)} == {"help"}


@pytest.mark.parametrize(
    ("aliases", "message"),
    [
        ('["a"]', r"b.toml: the name 'a' at `\$.aliases\[0\]` is taken by .*a.toml"),
        ('["x", "gpt"]', r"b.toml: the name 'gpt' at `\$.aliases\[1\]` is taken by .*a.toml"),
        ('["y", "y"]', r"b.toml: the name 'y' at `\$.aliases\[1\]` is taken by .*b.toml"),
        ('["b"]', r"b.toml: the name 'b' at `\$.aliases\[0\]` is taken by .*b.toml"),
        ('["two words"]', r"b.toml: .*aliases\[0\]"),
    ],
)
def test_names_and_aliases_are_unique_over_all_skills(tmp_path: Path, aliases: str, message: str) -> None:
    (tmp_path / "a.toml").write_text('name = "a"\naliases = ["gpt", "A/b"]')
    (tmp_path / "b.toml").write_text(f'name = "b"\naliases = {aliases}')
    with pytest.raises(ConfigError, match=message):
        Skills.read(tmp_path)


def test_a_skill_with_an_encoder_only_embeds(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text('name = "a"\nencoder = "e"\nsystem = "Be kind."')
    with pytest.raises(ConfigError, match=r"only embeds: leave out `\$.system`"):
        Skills.read(tmp_path)


def test_an_alias_changes_no_revision() -> None:
    assert Skill(name="a", aliases=("B",)).revision == Skill(name="a").revision


def test_a_folder_is_read_in_the_order_of_its_files(tmp_path: Path) -> None:
    (tmp_path / "2.toml").write_text('name = "first"')
    (tmp_path / "1.toml").write_text('name = "second"')
    (tmp_path / "notes.txt").write_text("not a skill")
    assert Skills(Skills.read(tmp_path)).names == ("second", "first")
    assert Skills(Skills.read(tmp_path / "2.toml")).names == ("first",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('nam = "a"', r"unknown field `nam`|missing required field `name`"),
        (
            'name = "a"\ngreting = "x"',
            r"unknown field `greting` - at `\$`; did you mean `greeting`\? known fields are name, aliases, title",
        ),
        (
            'name = "a"\n[[examples]]\nqestion = "x"\nanswer = "y"',
            r"`qestion` - at `\$.examples\[0\]`; did you mean `question`\? known fields are question, answer$",
        ),
        (
            'name = "a"\n[identity]\nalgorithm = "HS265"',
            r"enum value 'HS265' - at `\$.identity.algorithm`; did you mean 'HS256'\? allowed are EdDSA, HS256, RS256$",
        ),
        ('name = "A b"', r"matching regex .* - at `\$.name`"),
        (
            'name = "a"\norigins = ["*.example"]',
            r"'\*.example' at `\$.origins\[0\]` is not an origin; write scheme://host",
        ),
        ('name = "a"\nimage_origins = ["*"]', r"'\*' at `\$.image_origins\[0\]` is not an origin"),
        ('name = "a"\nsystem = "{{ nme }}"', r"'nme' is undefined.*its variables are title, date, weekday and person"),
        ('name = "a"\nsystem = "{{ \'\'.__class__ }}"', r"is not a template .*unsafe"),
        ('name = "a"\nsystem = "{% for x in range(9) %}{% endfor %}"', r"'range' is undefined"),
        ('name = "a"\nsystem = "{% if not person %}{{ nme }}{% endif %}"', r"'nme' is undefined"),
        ('name = "a"\nsystem = "{% if weekday == \'Sunday\' %}{{ nme }}{% endif %}"', r"'nme' is undefined"),
        ('name = "a"\nsystem_file = "../a.txt"', r"`\$.system_file` leads out of the folder"),
        ('name = "a"\nsystem_file = "/etc/hostname"', r"`\$.system_file` leads out of the folder"),
        ('name = "a"\nsystem_file = "."', r"at `\$.system_file` cannot be read as text"),
        ('name = "a"\ntop_k = -1', r">= 0 - at `\$.top_k`"),
        ('name = "a"\nsystem = "x"\nsystem_file = "x.txt"', r"either `\$.system` or `\$.system_file`"),
        ('name = "a"\nsystem_file = "none.txt"', r"none.txt at `\$.system_file` cannot be read"),
        ('name = "a"\nsite_keys = ["secret"]', r"`\$.site_keys\[0\]` is not a site key"),
        ('name = "a"\nmax_temperature = 0.5', r"`\$.temperature` is above `\$.max_temperature`"),
        ('name = "a"\ntokens_per_day = 0', r">= 1 - at `\$.tokens_per_day`"),
        ('name = "a"\n[[sources]]\ntitle = "x"\nurl = "javascript:alert(1)"', r"`\$.sources\[0\].url` must begin"),
        ('name = "a"\n[identity]\nalgorithm = "HS256"\nkey = "sk-plain"', r"fewer than 32 bytes"),
        ('name = "a"\n[identity]\nalgorithm = "none"', r"Invalid enum value 'none' - at `\$.identity.algorithm`"),
        ('name = "a"\n[identity]\nalgorithm = "RS256"\nkey = "sk-plain"', r"does not fit RS256"),
        ('name = "a"\norigins = ["null"]', r"is not an origin"),
        ('name = "a"\norigins = ["https://x.example", "https://x.example/"]', r"\$.origins\[1\]"),
        ('name = "a"\norigins = ["x.example"]', r"is not an origin"),
        ('name = "a"\norigins = ["ftp://x.example"]', r"is not an origin"),
        ('name = "a"\norigins = ["https://x.example."]', r"is not an origin"),
        ('name = "a"\norigins = ["https://b\u00fccher.example"]', r"is not an origin.*international names as xn--"),
        ('name = "a"\norigins = ["https://x.example:443"]', r"not how browsers send it; write 'https://x.example'$"),
        ('name = "a"\norigins = ["http://x.example:080"]', r"write 'http://x.example'$"),
        ('name = "a"\norigins = ["http://x.example:08080"]', r"write 'http://x.example:8080'$"),
        ('name = "a"\norigins = ["https://x.example:99999"]', r"not how browsers send it"),
        ('name = "a"\norigins = ["http://[0:0:0:0:0:0:0:1]:80"]', r"write 'http://\[::1\]'$"),
        ('name = "a"\nkeys = ["sk-plain"]', r"`\$.keys\[0\]` is not a SHA-256"),
        ('name = "a"\nmax_tokens = 0', r">= 1 - at `\$.max_tokens`"),
        ('name = "a"\ntemperature = 3', r"<= 2.0 - at `\$.temperature`"),
    ],
)
def test_a_mistake_names_file_field_and_remedy(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "a.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        Skills(Skills.read(tmp_path))
    assert str(file) in str(caught.value)
    assert "sk-plain" not in str(caught.value)


def test_two_skills_of_one_name_are_refused(tmp_path: Path) -> None:
    for name in ("1.toml", "2.toml"):
        (tmp_path / name).write_text('name = "same"')
    with pytest.raises(ConfigError, match=r"2\.toml.*'same'.*is taken by .*1\.toml"):
        Skills(Skills.read(tmp_path))


def test_a_prompt_file_must_lie_below_the_skills_folder_and_within_bounds(tmp_path: Path) -> None:
    """As Kubernetes mounts a ConfigMap: every file is a link within the folder."""
    folder, secret = tmp_path / "skills", tmp_path / "secret.txt"
    (folder / "..data").mkdir(parents=True)
    secret.write_text("the password")
    (folder / "..data" / "prompt.txt").write_text("Be brief.")
    (folder / "prompt.txt").symlink_to("..data/prompt.txt")
    (folder / "a.toml").write_text('name = "a"\nsystem_file = "prompt.txt"')
    assert [skill.system for skill in Skills.read(folder)] == ["Be brief."]
    (folder / "prompt.txt").unlink()
    (folder / "prompt.txt").symlink_to(secret)
    with pytest.raises(ConfigError, match="leads out of the folder") as caught:
        Skills.read(folder)
    assert "password" not in str(caught.value)
    (folder / "prompt.txt").unlink()
    os.mkfifo(folder / "prompt.txt")  # nobody writes to it: reading would wait for ever
    with pytest.raises(ConfigError, match="cannot be read as text"):
        Skills.read(folder)
    (folder / "prompt.txt").unlink()
    (folder / "prompt.txt").write_text("x" * 100_001)
    with pytest.raises(ConfigError, match="more than 100000 characters"):
        Skills.read(folder)


def test_every_faulty_file_is_named_and_hidden_files_are_ignored(tmp_path: Path) -> None:
    for name, text in (("1", 'name = "a"'), ("2", "name = "), ("3", 'name = "c"\ntop_p = 2'), (".#1", "nonsense")):
        (tmp_path / f"{name}.toml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        Skills.read(tmp_path)
    first, second = str(caught.value).splitlines()
    assert first.startswith(f"{tmp_path / '2.toml'} is not TOML")
    assert second.startswith(f"{tmp_path / '3.toml'}: Expected `float` <= 1.0 - at `$.top_p`")


def test_a_folder_without_skills_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has no skill"):
        Skills(Skills.read(tmp_path))


def test_the_demo_skill_lets_the_demo_page_in_and_nobody_else() -> None:
    skills = Skills(Skills.read(ROOT / "examples/demo/skills"))
    assert skills.names == ("help",)
    (demo,) = skills
    assert demo.admits("http://127.0.0.1:8001")
    assert not demo.admits("http://127.0.0.1:8000")
    with pytest.raises(Unauthorized):
        skills.recognise("sk-any")
