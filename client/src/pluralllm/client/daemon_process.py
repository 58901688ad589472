"""Runs the daemon for `pluralllm-client run`: makes its objects and joins them."""

import asyncio
import contextlib
import functools

import stamina.instrumentation
import structlog

from pluralllm.client.answers_in_use import answers_in_use
from pluralllm.client.daemon.daemon import Daemon
from pluralllm.client.data.private_file import PrivateFile
from pluralllm.client.disclosure.missing_keys import report_missing_keys
from pluralllm.client.disclosure.policy import load_policy
from pluralllm.client.joining.partner import load_partner
from pluralllm.client.link.transport import Transport
from pluralllm.client.process.config import ClientConfig
from pluralllm.client.process.instruments import REGISTRY, RETRIES
from pluralllm.client.work.worker_process import WorkerProcess
from pluralllm.common.errors.tree import ModelUnavailable
from pluralllm.common.process.extras import need_torch
from pluralllm.common.process.files import write_durably
from pluralllm.common.process.foreign_output import foreign_output_logged
from pluralllm.common.process.lifetime import STOP_SIGNALS, ignore_stop_signals
from pluralllm.common.process.lock import DirectoryLock
from pluralllm.common.process.logs import configure_logs, log_form
from pluralllm.common.process.model_folder import is_model_folder
from pluralllm.common.process.scrape_port import scrape_port
from pluralllm.common.process.supervisor import Supervisor
from pluralllm.common.process.tracing import tracing


def run_daemon(settings: ClientConfig, supervisor: Supervisor) -> None:
    """Runs the daemon until a signal ends it, or until its first run is over if the configuration says so.

    supervisor: gets the daemon's signs of life.
    """
    form = log_form(settings.log_format, settings.log_file)
    configure_logs(form=form, level=settings.log_level, file=settings.log_file)
    with foreign_output_logged() if form == "json" else contextlib.nullcontext():
        asyncio.run(_run(settings, supervisor))


async def _run(config: ClientConfig, supervisor: Supervisor) -> None:
    need_torch()
    partner = load_partner(config)
    policy = load_policy(config.policy_file)
    folder = config.embedding_model_path
    if folder is not None and not is_model_folder(folder):
        raise ModelUnavailable(model=str(folder), problem="it is not a folder with a config.json")
    stop = asyncio.Event()
    for number in STOP_SIGNALS:
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    structlog.contextvars.bind_contextvars(client=partner.name)
    with contextlib.ExitStack() as stack:
        stack.callback(ignore_stop_signals, asyncio.get_running_loop())
        stack.enter_context(DirectoryLock(config.state_dir.absolute()))
        data = PrivateFile(config.data, config.state_dir.absolute(), functools.partial(answers_in_use, config, policy))
        if config.policy_file is not None:
            report_missing_keys(policy, config.policy_file, config.state_dir)
        stack.enter_context(tracing(config.traces_endpoint, "pluralllm-client", partner.name))
        if config.metrics_listen is not None:
            address = stack.enter_context(scrape_port(config.metrics_listen, REGISTRY))
            write_durably(config.state_dir / "metrics-address", address.encode())
        stamina.instrumentation.set_on_retry_hooks([stamina.instrumentation.StructlogOnRetryHook, _count_retry])
        if partner.identity is None:
            transport = Transport.in_plain_text(partner.coordinator, partner.name, config.standby)
        else:
            transport = Transport.of_member(partner.identity, config.standby)
        daemon = Daemon(config, partner, policy, data, transport, WorkerProcess())
        daemon.tasks.keep("the signs of life", functools.partial(supervisor.reassure, daemon.pulse))
        supervisor.tell("READY=1", f"STATUS={partner.name}")
        try:
            await daemon.run(stop)
        finally:
            supervisor.tell("STOPPING=1")
            await transport.close()


def _count_retry(details: stamina.instrumentation.RetryDetails) -> None:  # noqa: ARG001 - the hook's signature
    RETRIES.inc()
