"""The archive of a log on a real broker: written, killed, compared, and models rebuilt from it against the oracle."""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete

from agents.archive import agent as archive_agent
from agents.archive.agent import ArchiveAgent, Archived, Told
from agents.archive.archive import Archive, ArchiveError, about_of, missing
from agents.archive.compaction import TIER
from agents.archive.verify import PartitionVerified, verify
from agents.cli.main import main
from agents.kafka.logs import look_at_logs
from agents.kafka.topics import create_topics
from agents.settings import Settings
from cco.config import Config, parse_config
from tests.agents.test_archive import names
from tests.agents.test_kafka_log import NOW, SOURCES, TOML, Message, interaction, oracle_of, story, write
from tests.kafka.world import ROOT, make_topics_anew, wait_for
from tests.servers.kafka import KafkaServer


@pytest.fixture
def config() -> Config:
    return parse_config(TOML, "cco.toml")


@pytest.fixture
def settings(kafka: KafkaServer, topic_prefix: str, config: Config) -> Settings:
    made = Settings(brokers=kafka.bootstrap, topic_prefix=topic_prefix)
    asyncio.run(create_topics(config, made))
    return made


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    return Archive(str(tmp_path / "archive"))


def write_config(folder: Path, settings: Settings) -> Path:
    """A configuration file for `cco archive`, which logs JSON lines."""
    file = folder / "cco.toml"
    file.write_text(
        f'{TOML}\n[kafka]\nbrokers = "{settings.brokers}"\ntopic_prefix = "{settings.topic_prefix}"\n'
        '[worker]\nlog_format = "json"\n'
    )
    return file


@pytest.fixture
def config_file(tmp_path: Path, settings: Settings) -> Path:
    return write_config(tmp_path, settings)


def archived(config: Config, settings: Settings, archive: Archive) -> Archived:
    return asyncio.run(ArchiveAgent(config, settings, archive).run(once=True))


def whole(archive: Archive, config: Config, settings: Settings) -> list[PartitionVerified]:
    found = verify(archive, config, settings)
    assert all(each.ok for each in found), found
    return found


def rebuilt(tmp_path: Path, config_file: Path, *arguments: str) -> list[str]:
    model = tmp_path / "model.jsonl"
    assert main(["rebuild", *arguments, "--config", str(config_file), "--model", str(model), "--json"]) == 0
    return model.read_text().splitlines()


def delete_records(settings: Settings, befores: dict[int, int]) -> None:
    async def delete() -> None:
        admin = AIOKafkaAdminClient(bootstrap_servers=settings.brokers)
        await admin.start()
        name = settings.topic("interactions")
        await admin.delete_records(
            {TopicPartition(name, p): RecordsToDelete(before_offset=b) for p, b in befores.items()}
        )
        await admin.close()

    asyncio.run(delete())


def strange(seed: int) -> list[Message]:
    """What no rule allows in a log: it is archived as it is."""
    rng = random.Random(seed)
    return [
        (k % SOURCES, rng.choice([None, b"u1", b"\xff"]), rng.choice([b"", b"no JSON", b"\x00\xff", b'{"user_id": 1}']),
         (0, 1_000_000_000_000, NOW * 1000 + 999)[k // 20])
        for k in range(60)
    ]  # fmt: skip


def test_the_model_of_the_archive_is_that_of_the_log(
    settings: Settings, config: Config, archive: Archive, config_file: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    told = story(1)
    write(settings, [message for message, _, _ in told[:300]])
    first = archived(config, settings, archive)
    assert (first.records, first.offsets) == (300, archive.ends(SOURCES))
    assert rebuilt(tmp_path, config_file, "--archive", archive.url) == oracle_of(config, told[:300])
    files = names(tmp_path / "archive")
    assert archived(config, settings, archive).files == 0  # nothing twice
    write(settings, [message for message, _, _ in told[300:]])
    assert rebuilt(tmp_path, config_file, "--archive", archive.url) == oracle_of(config, told[:300])
    with_tail = ["--archive", archive.url, "--tail"]
    capsys.readouterr()
    assert rebuilt(tmp_path, config_file, *with_tail) == oracle_of(config, told)
    assert json.loads(capsys.readouterr().out)["events"] == 400  # each once
    by_partition = [[entry for entry in told if entry[2] == partition] for partition in range(SOURCES)]
    for ends in ({0: 60, 1: 25}, {0: len(by_partition[0]), 1: 80}, {1: 40}):
        pairs = ",".join(f"{partition}:{end}" for partition, end in ends.items())
        read = [entry for partition, end in ends.items() for entry in by_partition[partition][:end]]
        assert rebuilt(tmp_path, config_file, *with_tail, "--end-offsets", pairs) == oracle_of(config, read)
        assert json.loads(capsys.readouterr().out)["offsets"] == {str(p): end for p, end in ends.items()}
    beyond = f"0:{len(by_partition[0])}"
    assert main(["rebuild", "--archive", archive.url, "--end-offsets", beyond, "--config", str(config_file)]) == 2
    assert "that is wanted: --tail reads the rest from the log" in capsys.readouterr().err
    second = archived(config, settings, archive)
    assert (first.records + second.records, set(files) < set(names(tmp_path / "archive"))) == (400, True)
    assert rebuilt(tmp_path, config_file, "--archive", archive.url) == oracle_of(config, told)
    assert sum(each.compared for each in whole(archive, config, settings)) == 400


def test_records_are_archived_as_they_are_and_refused_again(
    settings: Settings, config: Config, archive: Archive, config_file: Path, tmp_path: Path
) -> None:
    write(settings, [*strange(1), interaction("u1", "buy", "i1", None), interaction("u2", "buy", "i1", 7)])
    assert archived(config, settings, archive).records == 62
    days = {name.split("/")[1] for name in names(tmp_path / "archive")}
    assert {"day=1970-01-01", "day=2001-09-09"} <= days
    assert sum(each.compared for each in whole(archive, config, settings)) == 62
    dead = [tmp_path / "of-log", tmp_path / "of-archive"]
    for source, letters in zip((["--log"], ["--archive", archive.url]), dead, strict=True):
        rebuilt(tmp_path, config_file, *source, "--dead-letters", str(letters))
    of_log, of_archive = ([json.loads(line) for line in letters.read_text().splitlines()] for letters in dead)
    assert len(of_log) >= 60
    assert {letter.pop("file").rpartition("/")[0] for letter in of_archive} == {archive.url}
    assert {letter.pop("file").rpartition("/")[0] for letter in of_log} == {settings.topic("interactions")}
    assert of_log == of_archive


def test_an_archive_outlives_the_log_and_a_gap_is_said(
    settings: Settings, config: Config, archive: Archive, config_file: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    told = story(2)
    write(settings, [message for message, _, _ in told[:300]])
    archived(config, settings, archive)
    ends = archive.ends(SOURCES)
    write(settings, [message for message, _, _ in told[300:]])
    delete_records(settings, {partition: end - 5 for partition, end in ends.items()})
    assert main(["rebuild", "--log", "--config", str(config_file)]) == 2
    assert "what came before is deleted: rebuild from an archive instead" in capsys.readouterr().err
    assert rebuilt(tmp_path, config_file, "--archive", archive.url, "--tail") == oracle_of(config, told)
    found = whole(archive, config, settings)
    assert [(each.compared, each.records) for each in found] == [(5, ends[0]), (5, ends[1])]
    archived(config, settings, archive)
    assert rebuilt(tmp_path, config_file, "--archive", archive.url) == oracle_of(config, told)
    ends = archive.ends(SOURCES)
    write(settings, [interaction("u1", "buy", f"i{k}", k, partition=1) for k in range(5)])
    delete_records(settings, {1: ends[1] + 2})
    with pytest.raises(
        ArchiveError, match=rf"partition 1: begins at offset {ends[1] + 2}, and .* 2 records were deleted"
    ):
        archived(config, settings, archive)
    assert main(["rebuild", "--archive", archive.url, "--tail", "--config", str(config_file)]) == 2
    assert f"begins at offset {ends[1] + 2}, what came before is deleted: and offset" in capsys.readouterr().err


def test_what_is_wrong_with_an_archive_is_named_and_what_is_missing_is_archived_again(
    settings: Settings, config: Config, archive: Archive, config_file: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    told = story(3)
    for k in range(0, 400, 100):
        write(settings, [message for message, _, _ in told[k : k + 100]])
        archived(config, settings, archive)
    files = archive.files()
    archive.remove([files[0][1], files[1][0], files[1][3]])
    assert missing(archive.files()[0]) == (files[0][1].first, files[0][2].first)
    command = ["archive", "verify", archive.url, "--config", str(config_file)]
    assert main(command) == 1
    said = capsys.readouterr().out
    assert f"partition 0: the offsets {files[0][1].first} to {files[0][1].last} are missing" in said
    assert main(["rebuild", "--archive", archive.url, "--config", str(config_file)]) == 2
    assert "are missing: `cco archive run` archives them, if the log still has them" in capsys.readouterr().err
    again = archived(config, settings, archive)
    assert again.files == 3
    assert archive.files().keys() == files.keys()
    assert {f.name for f in archive.files()[0]} == {f.name for f in files[0]}
    assert main(command) == 0
    assert ": as in the log" in capsys.readouterr().out
    assert rebuilt(tmp_path, config_file, "--archive", archive.url) == oracle_of(config, told)

    spoilt = files[1][2]
    (table,) = archive.groups(spoilt)
    values = table.column("value").to_pylist()
    values[4] = b"another"
    times = table.column("timestamp").to_pylist()
    times[6] += 1
    wrong = table.set_column(3, "value", pa.array(values, pa.binary())).set_column(1, "timestamp", pa.array(times))
    about = {"topic": settings.topic("interactions"), "partitions": SOURCES}

    def verified(instead: pa.Table) -> dict[str, Any]:
        archive.write([instead.cast(table.schema)], 1, spoilt.first, spoilt.last, spoilt.day, about)
        capsys.readouterr()
        assert main([*command, "--json"]) == 1
        report: dict[str, Any] = json.loads(capsys.readouterr().out)
        return report

    assert verified(wrong)["partitions"][1]["different"] == 2
    report = verified(pa.concat_tables([wrong.slice(0, 1), wrong.slice(2)]))
    assert (report["ok"], report["partitions"][0]["different"], report["partitions"][1]["different"]) == (False, 0, 3)
    assert report["partitions"][1]["differences"] == [
        f"partition 1, offset {spoilt.first + 1}: is in the log, and not in the archive",
        f"partition 1, offset {spoilt.first + 4}: archive and log differ in value",
        f"partition 1, offset {spoilt.first + 6}: archive and log differ in timestamp",
    ]
    (tmp_path / "archive" / spoilt.name).write_bytes(b"damaged")
    assert main(command) == 1
    assert f"{spoilt.name}: the file is damaged" in capsys.readouterr().out


async def no_id(self: ArchiveAgent, consumer: object) -> None:
    """Of a broker that tells none."""


def test_the_archive_of_another_log_is_refused(
    settings: Settings, config: Config, archive: Archive, topic_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ArchiveAgent, "_id", no_id)
    write(settings, [message for message, _, _ in story(4)[:100]])
    archived(config, settings, archive)
    other = settings.model_copy(update={"topic_prefix": f"{topic_prefix}other-"})
    asyncio.run(create_topics(config, other))
    with pytest.raises(ArchiveError, match=r"is archived up to offset \d+, and .* ends at 0: it was made anew"):
        archived(config, other, archive)
    assert not any(each.ok for each in verify(archive, config, other))
    write(other, [message for message, _, _ in story(5)[:200]])
    with pytest.raises(
        ArchiveError, match=r"is the archive of another log: offset \d+ of partition 0 is another record"
    ):
        archived(config, other, archive)
    more = parse_config(TOML.replace("source_partitions = 2", "source_partitions = 3"), "cco.toml")
    with pytest.raises(ArchiveError, match=r"topic with 2 partitions, and retention.source_partitions is 3"):
        archived(more, settings, archive)


def about_topics(archive: Archive) -> set[str]:
    """The ids that its files have."""
    found = set()
    for file in (file for files in archive.files().values() for file in files):
        with archive.opened(file) as opened:
            found.add(about_of(opened).get("topic_id", "none"))
    return found


def test_the_archive_of_a_topic_that_was_made_anew_is_refused(
    settings: Settings, config: Config, archive: Archive, config_file: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Its last record may be gone there, or be the same: it is known by Kafka's id of it."""
    told = story(11)
    for part in (told[:100], told[100:200]):
        write(settings, [message for message, _, _ in part])
        archived(config, settings, archive)
    before = asyncio.run(look_at_logs(settings))["interactions"].id
    assert about_topics(archive) == {before}
    assert main(["archive", "compact", archive.url]) == 0 and about_topics(archive) == {before}
    assert [len(files) for files in archive.files().values()] == [1] * SOURCES
    monkeypatch.setattr(archive_agent, "LOOK_SECONDS", 0.05)

    async def replaced_meanwhile() -> None:
        running = ArchiveAgent(config, settings, archive)
        ended = asyncio.create_task(running.run())
        while not running.standing():
            await asyncio.sleep(0.01)
        running._topic_id = "another"  # as if that had been there when it began
        with pytest.raises(ArchiveError, match=f"was made anew: its id was another, and is {before}"):
            await asyncio.wait_for(ended, 30)

    asyncio.run(replaced_meanwhile())
    of_log = ["rebuild", "--log", "--resume", f"{archive.url}-counted", "--config", str(config_file)]
    assert main(of_log) == 0
    make_topics_anew(config, settings, "interactions")
    write(settings, [message for message, _, _ in told])
    delete_records(settings, {source: end + 1 for source, end in archive.ends(SOURCES).items()})
    with pytest.raises(ArchiveError, match=rf"is the archive of another topic: .* id {before}, and .* made anew"):
        archived(config, settings, archive)
    command = ["rebuild", "--archive", archive.url, "--config", str(config_file)]
    assert main([*command, "--tail"]) == 2
    assert "is the archive of another topic" in capsys.readouterr().err
    assert main(command) == 0  # alone it is as good as ever
    capsys.readouterr()
    assert main(of_log) == 2
    assert f"or of another log ({settings.topic('interactions')} (id {before})" in capsys.readouterr().err


LIVES = 3


class Runner:
    """`cco archive run` in a process of its own."""

    def __init__(self, config_file: Path, url: str, log: Path) -> None:
        self.log = log
        with log.open("ab") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "agents", "archive", "run", url, "--config", str(config_file), "--every", "0.1"],
                stdout=out, stderr=out, cwd=ROOT, env=os.environ,
            )  # fmt: skip

    def end(self, number: signal.Signals) -> int:
        os.kill(self.process.pid, number)
        return self.process.wait(30)


def test_killed_at_any_time_it_archives_each_record_once(
    settings: Settings, config: Config, archive: Archive, config_file: Path, tmp_path: Path
) -> None:
    told, rng, sent = story(6, 2000), random.Random(6), 0
    folder, log = tmp_path / "archive", tmp_path / "log"

    def send() -> None:
        nonlocal sent
        write(settings, [message for message, _, _ in told[sent : sent + 20]])
        sent += 20

    def done() -> int:
        return sum(missing(files)[0] for files in archive.files().values())

    for _ in range(LIVES):
        runner = Runner(config_file, archive.url, log)
        try:
            for _ in range(rng.randrange(1, 5)):
                send()
                wait_for(lambda: done() == sent, "what was sent")
            there = set(folder.rglob("*"))
            send()
            if rng.random() < 0.7:  # at once, or with a file in the making, or just made
                wait_for(lambda there=there: set(folder.rglob("*")) != there, "a file")
        finally:
            assert runner.end(signal.SIGKILL) == -signal.SIGKILL
    send()
    runner = Runner(config_file, archive.url, log)
    wait_for(lambda: done() == sent, "the whole log")
    assert runner.end(signal.SIGTERM) == 0
    found = whole(archive, config, settings)
    assert sum(each.records for each in found) == sent
    assert rebuilt(tmp_path, config_file, "--archive", archive.url) == oracle_of(config, told[:sent])
    assert main(["archive", "compact", archive.url]) == 0
    assert sum(each.records for each in whole(archive, config, settings)) == sent
    assert [len(files) for files in archive.files().values()] == [1] * SOURCES  # all are of one day
    assert rebuilt(tmp_path, config_file, "--archive", archive.url) == oracle_of(config, told[:sent])


def test_two_at_a_time_do_no_harm_and_small_files_are_merged_on_the_way(
    settings: Settings, config: Config, archive: Archive, config_file: Path, tmp_path: Path
) -> None:
    told = story(7, 1200)
    heard: list[Told] = []

    async def run() -> None:
        agents = [ArchiveAgent(config, settings, archive, every=0.0, tell=heard.append) for _ in range(2)]
        running = [asyncio.ensure_future(agent.run()) for agent in agents]
        for k in range(0, 1200, 20):
            await asyncio.to_thread(write, settings, [message for message, _, _ in told[k : k + 20]])
            async with asyncio.timeout(60):  # each in files of its own, however busy the machine is
                while sum(missing(files)[0] for files in archive.files().values()) < k + 20:
                    await asyncio.sleep(0.01)
        for agent in agents:
            agent.stop()
        await asyncio.gather(*running)

    asyncio.run(run())
    made = [t.file for t in heard if t.what == "archived"]
    assert len(made) > 3 * TIER
    assert any(t.what == "merged" for t in heard)
    assert not any(t.problem for t in heard), heard
    assert sum(len(files) for files in archive.files().values()) < len(made)
    assert sum(each.records for each in whole(archive, config, settings)) == 1200
    assert rebuilt(tmp_path, config_file, "--archive", archive.url) == oracle_of(config, told)


def test_while_the_place_cannot_be_written_it_waits_and_goes_on(
    settings: Settings, config: Config, archive: Archive, tmp_path: Path
) -> None:
    told, heard = story(8), list[Told]()
    write(settings, [message for message, _, _ in told])
    in_the_way = tmp_path / "archive" / "source=0"
    in_the_way.parent.mkdir()
    in_the_way.write_text("")
    with pytest.raises(ArchiveError, match="writing it failed"):
        archived(config, settings, archive)

    async def run() -> Archived:
        agent = ArchiveAgent(config, settings, archive, every=0.0, tell=heard.append)
        running = asyncio.ensure_future(agent.run())
        async with asyncio.timeout(60):
            while not any(t.problem for t in heard):
                await asyncio.sleep(0.02)
            in_the_way.unlink()
            while sum(missing(files)[0] for files in archive.files().values()) < 400:
                await asyncio.sleep(0.05)
        agent.stop()
        return await running

    assert asyncio.run(run()).offsets == archive.ends(SOURCES)
    assert "cannot write, trying again" in {t.what for t in heard}
    whole(archive, config, settings)


def test_a_rebuild_reads_only_what_is_new_with_resume(
    settings: Settings, config: Config, archive: Archive, config_file: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    told, resume = story(9), str(tmp_path / "resume")
    write(settings, [message for message, _, _ in told[:250]])
    archived(config, settings, archive)
    write(settings, [message for message, _, _ in told[250:]])
    both = ["--archive", archive.url, "--resume", resume]
    for arguments, model, new, before in (
        (both, told[:250], 250, 0), (both, told[:250], 0, 250), ([*both, "--tail"], told, 150, 250),
        ([*both, "--tail"], told, 0, 400),
    ):  # fmt: skip
        assert rebuilt(tmp_path, config_file, *arguments) == oracle_of(config, model)
        report = json.loads(capsys.readouterr().out)
        assert (report["events"] + report["rejected"], report["resumed_records"]) == (new, before)
        assert sum(report["offsets"].values()) == new + before
    command = ["rebuild", *both, "--tail", "--end-offsets", "0:1", "--config", str(config_file)]
    assert main(command) == 2
    assert "partition 0: has been counted up to offset" in capsys.readouterr().err
    assert main(["rebuild", "--log", "--resume", resume, "--config", str(config_file)]) == 2
    assert "or of another log" in capsys.readouterr().err


def test_the_commands_in_the_readme(
    settings: Settings, config: Config, config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```\n(cco archive run.*?)^```$", readme, re.MULTILINE | re.DOTALL)
    told = story(10)
    write(settings, [message for message, _, _ in told])
    monkeypatch.chdir(config_file.parent)
    for line in block.splitlines():
        assert main(shlex.split(line)[1:]) == 0, (line, capsys.readouterr())
    assert (tmp_path / "batch.jsonl").read_text().splitlines() == oracle_of(config, told)
