"""The `cco` command: its groups put together, and every way in which it can end turned into an exit code."""

from __future__ import annotations

import io
import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress

import typer

from agents.cli.archive import app as archive
from agents.cli.audit import audit
from agents.cli.common import DIFFERENT, INTERNAL, OK, USAGE, NothingFound, UsageProblem
from agents.cli.config import config
from agents.cli.dead_letters import app as dead_letters
from agents.cli.index import app as index
from agents.cli.ingest import ingest
from agents.cli.inspection import compare, inspect
from agents.cli.items import app as items
from agents.cli.models import replay
from agents.cli.patches import patches
from agents.cli.queries import explain, recommend
from agents.cli.rebuild import rebuild
from agents.cli.serve import serve
from agents.cli.status import status
from agents.cli.system import demo, doctor
from agents.cli.topics import app as topics
from agents.cli.worker import worker
from agents.rebuilds.service import Terminated

EPILOG = (
    "Exit codes: 0 fine, 1 a difference or nothing found, 2 bad usage or input, 3 an internal error. "
    "CCO_TRACEBACK=1 shows where an error came from."
)

KAFKA_PACKAGES = ("aiohttp", "aiokafka", "faust", "prometheus_client", "structlog", "yarl")  # of the extra `kafka`
SERVE_PACKAGES = ("fastapi", "httptools", "starlette", "uvicorn", "uvloop")  # of the extra `serve`
ELASTICSEARCH_PACKAGES = ("elasticsearch",)  # of the extra `elasticsearch`
SPARK_PACKAGES = ("py4j", "pyspark")  # of the extra `spark`

app = typer.Typer(
    name="cco",
    help="Exact streaming CCO recommender: learns from each event, and its model equals the batch's, byte for byte.",
    epilog=EPILOG,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
for command in (
    demo, replay, rebuild, recommend, explain, inspect, compare, doctor, config, ingest, patches, worker, serve,
    status, audit,
):  # fmt: skip
    app.command()(command)
app.add_typer(topics, name="topics")
app.add_typer(index, name="index")
app.add_typer(archive, name="archive")
app.add_typer(items, name="items")
app.add_typer(dead_letters, name="dead-letters")


def _report(message: str) -> None:
    if os.environ.get("CCO_TRACEBACK"):
        traceback.print_exc()
    print("\n".join(f"cco: error: {line}" for line in message.splitlines()), file=sys.stderr)


def input_errors() -> tuple[type[Exception], ...]:
    """What says in its message what is wrong with the input; known only once something else imported it."""
    from agents.archive.archive import ArchiveError
    from agents.demo.data import DemoDataMissing
    from agents.files.streams import InputError
    from agents.rebuilds.spark import SparkProblem
    from agents.state.errors import StateError
    from cco.config_errors import ConfigError
    from cco.lists import LimitError
    from cco.vocabulary import VocabularyError
    from model_sync.contract import QueryError
    from model_sync.metadata import MetadataError

    of_kafka: tuple[type[Exception], ...] = ()
    with suppress(ModuleNotFoundError):  # without the extra `kafka` nothing can have raised these
        from agents.kafka.client import KafkaProblem
        from agents.workers.patches_file import PatchError

        of_kafka = (KafkaProblem, PatchError)
    of_elasticsearch: tuple[type[Exception], ...] = ()
    with suppress(ModuleNotFoundError):
        from model_sync.elastic_client import ElasticProblem

        of_elasticsearch = (ElasticProblem,)
    return (
        ConfigError, DemoDataMissing, InputError, LimitError, MetadataError, QueryError, StateError, VocabularyError,
        ArchiveError, SparkProblem, *of_kafka, *of_elasticsearch,
    )  # fmt: skip


def _of_system(error: OSError) -> str:
    what = error.strerror or str(error)
    return f"{error.filename}: {what}" if error.filename else what


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0 to 3, 130 when interrupted, 143 when SIGTERM ended a rebuild."""
    try:
        code = app(args=None if arguments is None else list(arguments), prog_name="cco", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else OK
    except NothingFound as error:
        print(f"cco: {error}", file=sys.stderr)
        return DIFFERENT
    except UsageProblem as error:
        _report(str(error))
        return USAGE
    except (KeyboardInterrupt, typer.Abort):
        print("cco: interrupted", file=sys.stderr)
        return 130
    except Terminated as error:
        print("cco: terminated", file=sys.stderr)
        return int(str(error.code))
    except BrokenPipeError:  # the reader of our output has gone, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except OSError as error:
        _report(_of_system(error))
        return USAGE
    except Exception as error:
        if hasattr(error, "format_message") and hasattr(error, "exit_code"):  # the command line's own usage errors
            _report(error.format_message())
            print("Try: cco --help, cco COMMAND --help", file=sys.stderr)
            return USAGE
        package = (error.name or "").partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
        if package in KAFKA_PACKAGES:
            _report(f"this needs the package {package}, which is not installed: pip install 'streaming-cco[kafka]'")
            return USAGE
        if package in SERVE_PACKAGES:
            _report(f"this needs the package {package}, which is not installed: pip install 'streaming-cco[serve]'")
            return USAGE
        if package in ELASTICSEARCH_PACKAGES:
            extra = "streaming-cco[elasticsearch]"
            _report(f"this needs the package {package}, which is not installed: pip install '{extra}'")
            return USAGE
        if package in SPARK_PACKAGES:
            _report(f"this needs the package {package}, which is not installed: pip install 'streaming-cco[spark]'")
            return USAGE
        if isinstance(error, input_errors()):
            _report(str(error))
            return USAGE
        what = str(error).partition("\n")[0]
        _report(f"internal error, please report it: {type(error).__name__}: {what} (CCO_TRACEBACK=1 shows where)")
        return INTERNAL


def entry() -> None:
    """The console script."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # what the terminal cannot show is no reason to end
            stream.reconfigure(errors="backslashreplace")
    sys.exit(main())
