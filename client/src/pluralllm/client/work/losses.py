"""Loss functions for training, and the distance between a base model's predictions and each client's answers.

A round's base model is the model version that the round trains from. A batch has rows of one or more clients.
Shapes: B rows of the batch, T target points (one for each option of each target question), Q target questions. Rows with fewer
points are padded; padding does not count.
"""

import math

import numpy as np
import torch
from torch import Tensor

from pluralllm.common.predictor.data import Batch, log_softmax_by_question, sum_by_question
from pluralllm.common.predictor.interface import Prediction
from pluralllm.common.predictor.metrics import MAX_JS_DISTANCE, js_distance
from pluralllm.common.words.spec import Training

SMOOTHING = 1e-6  # added under a square root, whose slope at 0 is infinite
MIN_LOG_STD, MAX_LOG_STD = -7.0, 4.0  # keeps the likelihood finite; 0.001 .. 55 on a scale of shares


def prediction_loss(predicted: Prediction, batch: Batch, training: Training, clients: int) -> Tensor:
    """Returns the mean loss of each client, weighted by the weights of the questions; shape (clients,).

    clients: number of clients in the batch. The batch has equally many rows for each client: first the rows of the first
    client, then the rows of the second, and so on.
    training.loss selects the loss. In every loss, the predicted shares of a question are the softmax of its predicted means.
    gaussian: mean over target points of -log N(share; predicted share, exp(log-std)), arXiv 2310.11523.
    cross_entropy: mean over target questions of the cross-entropy between true and predicted shares. The gaussian loss on
    detached predicted shares is added, so that the predicted spread is trained, too.
    alignment: the loss cross_entropy, plus the Jensen-Shannon distance of each question; the alignment score is 1 minus this
    distance.
    The losses cross_entropy and alignment compare with true shares that are softened by training.target_temperature. The
    gaussian loss uses the true shares unchanged.
    """
    log_shares = log_softmax_by_question(predicted.mean, batch.targets.question, batch.questions)  # (B, T)
    y = batch.target_shares  # (B, T)
    weights = batch.target_weights * batch.targets.is_real  # (B, T), 0 for padding

    def by_client(values: Tensor) -> Tensor:
        return values.reshape(clients, -1).sum(1)  # (B, T) or (B, Q) -> (clients,)

    points = by_client(weights)
    if training.loss == "gaussian":
        return by_client(weights * gaussian_loss(log_shares.exp(), predicted.log_std, y)) / points
    spread = by_client(weights * gaussian_loss(log_shares.exp().detach(), predicted.log_std, y)) / points
    y = softened(batch, training.target_temperature)  # (B, T)
    # Shares sum to 1 over a question, so weights * y sums to the weights of the questions.
    questions = by_client(weights * y)
    cross_entropy = -by_client(weights * y * log_shares) / questions + spread
    if training.loss == "cross_entropy":
        return cross_entropy
    of_question = sum_by_question(weights * y, batch.targets.question, batch.questions)  # (B, Q)
    return cross_entropy + by_client(of_question * smooth_js_distances(log_shares, y, batch)) / questions


def softened(batch: Batch, temperature: float) -> Tensor:
    """Returns the target shares to the power 1 / temperature, scaled to the sum 1 over each question.

    Shape: (B, T), B rows of the batch, T target points.
    Source: Hinton et al. 2015 (arXiv 1503.02531), section 2. A softmax of logits / temperature gives the same shares.
    """
    if temperature == 1:
        return batch.target_shares
    raised = batch.target_shares ** (1 / temperature) * batch.targets.is_real  # (B, T)
    totals = sum_by_question(raised, batch.targets.question, batch.questions)  # (B, Q)
    ones = totals.new_ones((len(totals), 1))  # padding has question number Q
    return raised / torch.cat([totals, ones], dim=1).gather(1, batch.targets.question)


def smooth_js_distances(log_shares: Tensor, y: Tensor, batch: Batch) -> Tensor:
    """Returns the Jensen-Shannon distance of each question as a loss; shape (B, Q), natural logarithm.

    log_shares: logarithms of the predicted shares, (B, T). y: true shares, (B, T). B is the number of rows of the batch, T the
    number of target points and Q the number of target questions.
    The loss has a finite slope at 0, and is therefore up to 0.001 larger than the distance.
    """
    shares = log_shares.exp()  # (B, T)
    log_middle = torch.log(((shares + y) / 2).clamp_min(torch.finfo(shares.dtype).tiny))
    divergence = (torch.xlogy(y, y) - y * log_middle + shares * (log_shares - log_middle)) / 2 * batch.targets.is_real
    summed = sum_by_question(divergence, batch.targets.question, batch.questions)  # (B, Q)
    return (summed.clamp_min(0) + SMOOTHING).sqrt()


def base_distances(predicted: Prediction, batch: Batch, clients: int) -> tuple[float, ...]:
    """Returns each client's mean Jensen-Shannon distance between predicted and true shares, over the client's target questions.

    The distance uses the natural logarithm, so its range is 0 .. sqrt(ln 2). The batch has equally many rows for each client:
    first the rows of the first client, then the rows of the second, and so on.
    For the predictions of the first local step, the distance is 1 - alignment score of the round's base model. The distance
    costs almost nothing, because training makes these predictions anyway (with dropout, if the run spec sets any).
    """
    shares = log_softmax_by_question(predicted.mean, batch.targets.question, batch.questions).exp()  # (B, T)
    rows = zip(
        shares.cpu().numpy(), batch.target_shares.cpu().numpy(), batch.targets.question.cpu().numpy(), strict=True
    )
    totals, counts = np.zeros(clients), np.zeros(clients, dtype=np.int64)
    for row, (guess, true, question) in enumerate(rows):
        # The points of a question lie together; padding has a number of its own.
        ends = np.flatnonzero(np.diff(question)) + 1
        parts = zip(np.split(guess, ends), np.split(true, ends), np.split(question, ends), strict=True)
        distances = [js_distance(g, t) for g, t, number in parts if number[0] < batch.questions]
        totals[row * clients // len(shares)] += sum(distances)
        counts[row * clients // len(shares)] += len(distances)
    return tuple(np.minimum(totals / counts, MAX_JS_DISTANCE).tolist())


def gaussian_loss(mean: Tensor, log_std: Tensor, y: Tensor) -> Tensor:
    """Returns the negative log-likelihood of y under N(mean, exp(log_std)) for each element; log_std is clamped first.

    The tensors mean, log_std, y and the result have the same shape.
    """
    log_std = log_std.clamp(MIN_LOG_STD, MAX_LOG_STD)
    return 0.5 * ((y - mean) * torch.exp(-log_std)) ** 2 + log_std + 0.5 * math.log(2 * math.pi)
