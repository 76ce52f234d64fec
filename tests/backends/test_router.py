"""The router: entries and aliases decide, nothing else."""

import msgspec
import pytest

from perilune.backends.base import complete
from perilune.backends.router import SPELLINGS, Router
from perilune.backends.scripted import ScriptedBackend, scripted_entry
from perilune.chat.messages import Message, Request
from perilune.errors import ConfigError, NotFound


def scripted(name: str, *aliases: str) -> ScriptedBackend:
    entry = msgspec.structs.replace(scripted_entry(name), aliases=aliases)
    return ScriptedBackend(lambda request: f"{name} as {request.model}", entry=entry)


def ask(model: str) -> Request:
    return Request(model=model, messages=(Message(role="user", content="hi"),))


async def test_id_alias_and_served_name_find_their_backend() -> None:
    router = Router([scripted("a", "also-a"), scripted("b")], serve_as="kimi-k2.6")
    names = {"a": "a", "also-a": "a", "kimi-k2.6": "a", "moonshot-v1-k2-6": "a", "b": "b"}
    for name, answer in names.items():
        assert (await complete(router, ask(name))).message.content == f"{answer} as {answer}"
        assert await router.count_tokens(ask(name)) == 5
    first, second = await router.models()
    assert first.aliases[:3] == ("also-a", "kimi-k2.6", "moonshot-v1-k2-6")
    assert second.id == "b"
    await router.close()


async def test_a_model_answers_to_every_spelling_of_a_name_it_has() -> None:
    for name in ("kimi-k2.6", "moonshotai/Kimi-K2.6"):
        (entry,) = await Router([scripted(name)]).models()
        assert {entry.id, *entry.aliases} == {"kimi-k2.6", *SPELLINGS["kimi-k2.6"]}
    with pytest.raises(NotFound):
        await complete(Router([scripted("kimi-k2.5")]), ask("kimi-k2.6"))


async def test_a_spelling_is_never_taken_from_another_model() -> None:
    own, hosted = await Router([scripted("a", "moonshotai/Kimi-K2.6"), scripted("kimi-k2.6")]).models()
    assert own.aliases == ("moonshotai/Kimi-K2.6",)
    assert "moonshot-v1-k2-6" in hosted.aliases and "moonshotai/Kimi-K2.6" not in hosted.aliases
    one, other = await Router([scripted("kimi-k2-6"), scripted("Kimi-K2.6")]).models()
    assert one.aliases == other.aliases == ()


async def test_an_unknown_name_is_not_answered_by_another_model() -> None:
    with pytest.raises(NotFound, match=r"Not found the model c .*models served: a"):
        await complete(Router([scripted("a")]), ask("c"))


async def test_who_asks_for_no_model_is_told_all_names_but_mere_spellings() -> None:
    router = Router([scripted("a"), scripted("b", "bee")], serve_as="kimi-k2.6")
    with pytest.raises(NotFound, match=r"models served: a, kimi-k2.6, b, bee\)$"):
        await complete(router, ask("gpt-4"))


async def test_only_tables_are_drained() -> None:
    with pytest.raises(NotFound, match=r"only \[\[backends\]\] tables"):
        Router([scripted("a")]).drain("a", True)


async def test_two_models_may_not_share_a_name() -> None:
    for router in (
        Router([scripted("a"), scripted("b", "a")]),
        Router([scripted("a"), scripted("b")], serve_as="b"),
    ):
        with pytest.raises(ConfigError, match="answer to"):
            await router.models()


async def test_serving_under_its_own_name_changes_nothing() -> None:
    assert (await Router([scripted("a", "x")], serve_as="x").models())[0].aliases == ("x",)
