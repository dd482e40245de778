"""`cco index` against a real Elasticsearch: what it prints, and its exit codes."""

from __future__ import annotations

import asyncio
import json
import socket
from pathlib import Path

import pytest
from elasticsearch import Elasticsearch

from agents.cli.main import main
from agents.elastic import elastic_options
from agents.settings import Settings
from agents.workers.elastic_targets import fit, look, sign
from cco.config import ConfigError, parse_config
from cco.rows import join_rows
from cco.vocabulary import Vocabulary
from model_sync.elastic_client import ElasticOptions, ElasticProblem, async_client
from model_sync.elastic_swap import rebuilding
from tests.servers.elasticsearch import ElasticsearchServer

MODEL = 'primary = "buy"\n[indicators.buy]\n[indicators.view]\n'


@pytest.fixture
def file(tmp_path: Path, elasticsearch: ElasticsearchServer, index_prefix: str) -> str:
    path = tmp_path / "cco.toml"
    path.write_text(f'{MODEL}[elasticsearch]\nurls = "{elasticsearch.url}"\nindex_prefix = "{index_prefix}"\n')
    return str(path)


def test_create_check_and_describe(file: str, index_prefix: str, capsys: pytest.CaptureFixture[str]) -> None:
    def run(*arguments: str) -> tuple[int, str, str]:
        code = main(["index", *arguments, "--config", file])
        said = capsys.readouterr()
        return code, said.out.replace(index_prefix, "P-"), said.err.replace(index_prefix, "P-")

    code, out, err = run("describe")
    assert (code, out) == (1, "P-items: is missing\nP-users: is missing\n")
    assert "has none of the indices: `cco index create` makes them" in err
    code, out, _ = run("check")
    assert (code, len(out.splitlines())) == (1, 4)
    code, out, _ = run("create")
    assert code == 0
    assert "made P-items-000001: index behind P-items" in out
    assert run("create") == (0, "all indices are there\n", "")
    assert run("check") == (0, "the indices are as they must be\n", "")
    code, out, _ = run("describe")
    assert code == 0
    assert out.splitlines()[1].split() == ["P-items", "P-items-000001", "0", *out.splitlines()[1].split()[3:5],
                                           "2", "green", "buy,", "view"]  # fmt: skip
    code, out, _ = run("describe", "--json")
    document = json.loads(out)
    assert (code, document["missing"]) == (0, [])
    assert [each["index"] for each in document["indices"]] == ["P-items-000001", "P-users-000001"]


def test_rollback(
    file: str, elasticsearch: ElasticsearchServer, index_prefix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["index", "rollback", "--config", file]
    assert main(["index", "create", "--config", file]) == 0
    assert main(command) == 2
    assert "not rolled back: there is none before" in capsys.readouterr().err
    items = f"{index_prefix}items"
    config, options = parse_config(MODEL, file), ElasticOptions((elasticsearch.url,), prefix=index_prefix)
    with rebuilding(config, options) as swap:
        swap.publish(join_rows([]), Vocabulary(), {})
    assert main(command) == 0
    assert capsys.readouterr().out == f"{items}-000001 is served as {items}; {items}-000002 is kept\n"
    assert main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"before": f"{items}-000001", "now": f"{items}-000002"}


def test_an_index_that_does_not_fit_is_exit_code_1(
    file: str, elasticsearch: ElasticsearchServer, index_prefix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with Elasticsearch(elasticsearch.url) as client:
        client.indices.create(index=f"{index_prefix}items-000001", aliases={f"{index_prefix}items": {}})
    for command in ("create", "check"):
        assert main(["index", command, "--config", file, "--json"]) == 1
        document = json.loads(capsys.readouterr().out)
        assert document["ok"] is False
        first = document["problems"][0]
        assert (first["path"], first["wanted"], first["in_place"]) == ("_meta.cco", "format 2", False)
        assert "cannot be changed in place" in first["text"]
    assert main(["index", "create", "--config", file]) == 1
    assert "items-000001: dynamic: wanted strict, found the default: that cannot be" in capsys.readouterr().out


def test_a_worker_adds_fields_for_new_indicators(
    file: str, elasticsearch: ElasticsearchServer, index_prefix: str
) -> None:
    """As `cco index create` does; and like that it leaves an index alone that differs otherwise."""
    assert main(["index", "create", "--config", file]) == 0
    alias, log = f"{index_prefix}users", {"interactions": {"id": "of this log"}}

    async def run() -> None:
        async with async_client(ElasticOptions((elasticsearch.url,))) as client:
            before, _ = await look(client, alias)
            await sign(client, before.name, log)
            config = parse_config(f"{MODEL}[indicators.like]\n", file)
            assert await fit(client, before, "users", config) == ["like"]
            after, _ = await look(client, alias)
            assert (after.id, after.log, after.indicators) == (before.id, log, ("buy", "view", "like"))
            assert await fit(client, after, "users", config) == []
            await client.index(index=alias, document={"history": {"like": ["a"]}, "counts": {"like": 1}})

            await client.indices.put_mapping(
                index=alias, properties={"history": {"properties": {"save": {"type": "text"}}}}
            )
            with pytest.raises(ElasticProblem, match="type: wanted keyword, found text"):
                await fit(client, after, "users", parse_config(f"{MODEL}[indicators.save]\n", file))

    asyncio.run(run())


def test_flags_win_over_the_file(file: str, index_prefix: str, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--elasticsearch-index-prefix", index_prefix + "b-"]
    assert main(["index", "create", "--config", file, *flags]) == 0
    assert f"{index_prefix}b-items-000001" in capsys.readouterr().out


def test_without_an_elasticsearch_it_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["index", "check"]) == 2
    assert capsys.readouterr().err.startswith("cco: error: elasticsearch.urls: is not set, so there is no Elastic")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: refuses
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        assert main(["index", "check", "--elasticsearch-urls", url]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"cco: error: Elasticsearch at {url} cannot be reached while checking the indices: is it")
    assert len(said.splitlines()) == 1


def test_options_are_the_settings(tmp_path: Path) -> None:
    settings = Settings(
        elasticsearch_urls="https://a:1, https://b:2",
        elasticsearch_username="me",
        elasticsearch_password="secret",  # type: ignore[arg-type]  # pydantic makes it a secret
        elasticsearch_index_prefix="shop-",
        elasticsearch_ca_file=tmp_path / "ca.pem",
    )
    with pytest.raises(ConfigError, match=r"elasticsearch\.ca_file: there is no file .*ca\.pem"):
        elastic_options(settings)
    (tmp_path / "ca.pem").touch()
    options = elastic_options(settings)
    assert (options.urls, options.username, options.password) == (("https://a:1", "https://b:2"), "me", "secret")
    assert (options.api_key, options.prefix) == (None, "shop-")
