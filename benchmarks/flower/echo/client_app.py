"""Flower client that does not train; it returns the model that it received plus a constant."""

import numpy as np
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()
def train(message: Message, _context: Context) -> Message:
    """Returns the received model plus a constant as a Flower message; the whole model, as Flower clients do, not a delta."""
    arrays = message.content["arrays"].to_numpy_ndarrays()
    answer = ArrayRecord([array + np.float32(1e-6) for array in arrays])
    return Message(
        content=RecordDict({"arrays": answer, "metrics": MetricRecord({"num-examples": 100})}), reply_to=message
    )
