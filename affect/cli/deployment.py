"""`site` and `gate`: a place of a deployment, and the door of its server."""

from __future__ import annotations

import argparse
from collections.abc import Mapping

from affect.cli.command import Command, Result, path_of


def _configure_site(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--name", required=True, help="what the server calls this site")
    parser.add_argument("--cache", type=path_of, required=True, help="folder of recordings")
    parser.add_argument("--corpus", default="", help="use this corpus of the cache alone")
    parser.add_argument(
        "--state", type=path_of, required=True, help="folder of clients' own states"
    )
    parser.add_argument("--socket", type=path_of, required=True, help="where the SuperNode asks")
    parser.add_argument("--split", type=path_of, help="YAML of the folds, for split.kind file")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1")
    parser.add_argument("--threads", type=int, default=1, help="on the CPU; default: %(default)s")


def _site(options: argparse.Namespace) -> Result:
    from affect.config import DataConfig
    from affect.data.corpus import entries_of
    from affect.devices import device_of, use_threads
    from affect.federated.client import enrolled_app
    from affect.federated.engines.service import serve
    from affect.federated.enrolment import EnrolledPlace
    from affect.files import require_writable
    from affect.stopping import stopping

    _log_to_standard_error()
    use_threads("--threads", options.threads)
    require_writable(options.state)
    entries = entries_of(DataConfig(cache=str(options.cache), corpus=options.corpus))
    device = device_of(options.device)
    place = EnrolledPlace(options.name, entries, options.state, device, options.split)
    with stopping("the site has stopped; start it again with the same command"):
        serve(enrolled_app(place), options.socket)
    return Result(None, {})


def _configure_gate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--host", default="0.0.0.0", help="default: %(default)s")
    parser.add_argument("--port", type=int, required=True, help="that sites connect to")
    parser.add_argument("--superlink", required=True, help="HOST:PORT on this machine")
    for name, what in (
        ("certificate", "of this machine, PEM"),
        ("key", "of the certificate, PEM"),
        ("authority", "certificate of who signed it, PEM"),
    ):
        parser.add_argument(f"--{name}", type=path_of, required=True, help=what)


def _gate(options: argparse.Namespace) -> Result:
    from affect.federated.engines.gate import keep_gate

    _log_to_standard_error()
    keep_gate(
        options.host,
        options.port,
        options.superlink,
        options.certificate,
        options.key,
        options.authority,
    )
    return Result(None, {})


def _log_to_standard_error() -> None:
    import logging

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)


COMMANDS: Mapping[str, Command] = {
    "site": Command("hold a site's recordings in a deployment", _configure_site, _site),
    "gate": Command("let sites through to a SuperLink", _configure_gate, _gate),
}
