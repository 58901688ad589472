"""Sorted tuples of clients, of receipts and of messages: look-up, insertion and removal by bisection.

A round of a thousand clients takes a thousand updates. If each step looked at every client in Python, a round's work would grow
with the square of the number of clients. A function that changes nothing returns the very same tuple, so that callers can
compare tuples by identity.
"""

from bisect import bisect_left
from operator import attrgetter
from typing import Protocol, TypeVar

from pluralllm.common.words.ids import ClientId
from pluralllm.server.rounds.events import Receipt, SentMessage

Clients = tuple[ClientId, ...]  # sorted, none twice
Receipts = tuple[Receipt, ...]  # sorted by client, none twice
Messages = tuple[SentMessage, ...]  # sorted by client, none twice

_client_of = attrgetter("client")


class OfClient(Protocol):
    """A receipt or a message: it belongs to one client."""

    @property
    def client(self) -> ClientId: ...


Sent = TypeVar("Sent", bound=OfClient)


def holds(clients: Clients, client: ClientId) -> bool:
    """Returns whether the client is one of the clients."""
    position = bisect_left(clients, client)
    return position < len(clients) and clients[position] == client


def inserted(clients: Clients, client: ClientId) -> Clients:
    """Returns the clients with the client among them."""
    position = bisect_left(clients, client)
    if position < len(clients) and clients[position] == client:
        return clients
    return (*clients[:position], client, *clients[position:])


def removed(clients: Clients, client: ClientId) -> Clients:
    """Returns the clients without the client."""
    position = bisect_left(clients, client)
    if position == len(clients) or clients[position] != client:
        return clients
    return (*clients[:position], *clients[position + 1 :])


def receipt_of(receipts: tuple[Sent, ...], client: ClientId) -> Sent | None:
    """Returns the client's receipt or message, or None if there is none."""
    position = bisect_left(receipts, client, key=_client_of)
    is_there = position < len(receipts) and receipts[position].client == client
    return receipts[position] if is_there else None


def with_receipt(receipts: tuple[Sent, ...], receipt: Sent) -> tuple[Sent, ...]:
    """Returns the receipts or messages with another one. None of the same client may be among them."""
    position = bisect_left(receipts, receipt.client, key=_client_of)
    return (*receipts[:position], receipt, *receipts[position:])


def without_client(receipts: tuple[Sent, ...], client: ClientId) -> tuple[Sent, ...]:
    """Returns the receipts or messages without the client's."""
    position = bisect_left(receipts, client, key=_client_of)
    if position == len(receipts) or receipts[position].client != client:
        return receipts
    return (*receipts[:position], *receipts[position + 1 :])
