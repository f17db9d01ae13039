"""A synthetic corpus with RECOLA's shape, whose truth is known: for tests and demonstrations.

Two slow latent traces, valence and arousal, move a face and are seen by six raters:

- *Face.* Each action unit follows a weighted sum of the latents (`LOADINGS`), scaled by how
  expressive the subject is and how animated he or she is just then, on the subject's own resting
  level. To it come movements that mean nothing, tracking noise, speech and blinks. A softplus
  and a limit of 5 make OpenFace's intensities of the sum. Now and then the face is lost.
- *Raters.* Each sees the latents late, by a delay of his or her own, with a gain and an offset,
  drifts slowly and has an unsteady hand. Delay and gain are the rater's for the whole corpus.

Animation and arousal multiply what valence does to the face, so that a linear model falls well
short of `ceiling`, and a small recurrent network comes near it.

What is random about a subject follows from the seed and the subject's index alone, never from
the number of subjects or the process that makes them.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import cast

import numpy as np
from jaxtyping import Bool, Float32, Float64
from scipy.fft import next_fast_len
from scipy.signal import lfilter

from affect.data.annotation import concordance, gold_standard, shift_forward
from affect.data.importing import Pending
from affect.errors import UserError
from affect.recording import OPENFACE_INTENSITIES, Provenance, Recording

CORPUS = "synthetic"
VERSION = "1"
DIMENSIONS: tuple[str, ...] = ("valence", "arousal")
RATERS: tuple[str, ...] = ("FM1", "FM2", "FM3", "FF1", "FF2", "FF3")

LOADINGS: Mapping[str, tuple[float, float, float]] = {
    "AU01_r": (0.0, 1.6, 0.0),
    "AU02_r": (0.0, 1.4, 0.0),
    "AU04_r": (-1.8, 0.4, 0.0),
    "AU05_r": (0.0, 1.8, 0.0),
    "AU06_r": (2.2, 0.3, 0.0),
    "AU07_r": (0.8, 0.8, 0.0),
    "AU09_r": (-1.0, 0.3, 0.0),
    "AU10_r": (1.0, 0.3, 0.0),
    "AU12_r": (2.6, 0.4, 0.0),
    "AU14_r": (0.5, 0.0, 2.0),
    "AU15_r": (-1.6, -0.2, 0.0),
    "AU17_r": (-1.0, 0.0, 2.0),
    "AU20_r": (-0.5, 0.8, 0.0),
    "AU23_r": (-0.6, 0.5, 2.0),
    "AU25_r": (0.5, 1.4, 0.0),
    "AU26_r": (0.0, 1.2, 0.0),
    "AU45_r": (0.0, 0.3, 0.0),
}
"""How far valence, arousal and the logarithm of animation move each action unit."""

SPEECH: Mapping[str, float] = {
    "AU06_r": 0.5,
    "AU10_r": 1.0,
    "AU12_r": 1.0,
    "AU14_r": 1.0,
    "AU15_r": 1.0,
    "AU17_r": 1.0,
    "AU20_r": 1.0,
    "AU23_r": 1.0,
    "AU25_r": 1.5,
    "AU26_r": 1.5,
}
"""How far speech moves the lower face, standard deviation while the subject talks."""

LATENT_BAND_HZ = (0.02, 0.1)
LATENT_SCALE = 0.45  # of the Gaussian process inside the hyperbolic tangent
LATENT_CORRELATION = 0.3

ANIMATION_BAND_HZ = (0.03, 0.2)
ANIMATION_SPREAD = 0.5  # standard deviation of its logarithm
VALENCE_BY_AROUSAL = 0.8  # exponent with which arousal strengthens the marks of valence
EXPRESSIVENESS_SPREAD = 0.3  # standard deviation of its logarithm over subjects
BASELINE_SPREAD = 0.5
SOFTPLUS_SHARPNESS = 2.0
HIGHEST_INTENSITY = 5.0

IDLE_BAND_HZ, IDLE_SPREAD = (0.05, 0.6), 0.35  # movements that mean nothing
JITTER_S, JITTER_SPREAD = 0.2, 0.6  # tracking noise: correlation time and standard deviation
JITTER_BY_AROUSAL = 0.7  # exponent: an aroused face is a restless face
TALKING_BAND_HZ, MOUTH_BAND_HZ = (0.02, 0.3), (0.3, 5.0)
BLINK_HZ, BLINK_S, BLINK_HEIGHT = 0.3, 0.3, (1.5, 3.0)
GAPS_LEAST, GAPS_HZ, GAP_S = 2, 0.01, (0.4, 4.0)

RATER_DELAY_S = (2.0, 6.0)
RATER_GAIN = (0.85, 1.15)
RATER_OFFSET = 0.1  # standard deviation over recordings
DRIFT_BAND_HZ, DRIFT_SPREAD = (0.002, 0.01), 0.2
HAND_S, HAND_SPREAD = 1.0, 0.05


@dataclass(frozen=True, eq=False)
class Raters:
    """What belongs to the raters: `delay_s` in seconds and `gain`, one number a rater."""

    delay_s: Float64[np.ndarray, " R"]
    gain: Float64[np.ndarray, " R"]


@dataclass(frozen=True, eq=False)
class Person:
    """What belongs to a subject, one number an action unit.

    Attributes:
        expressiveness: factor on the loadings.
        baseline: what is added at rest; well below 0 the action unit hardly shows.
    """

    expressiveness: Float64[np.ndarray, " F"]
    baseline: Float64[np.ndarray, " F"]


def pending(
    subjects: int = 23,
    seconds: float = 300.0,
    rate_hz: float = 25.0,
    seed: int = 0,
    recordings_per_subject: int = 1,
) -> Iterator[Pending]:
    """The recordings of a synthetic corpus; each is generated when it is loaded.

    Args:
        subjects: 1 or more; named `P01`, `P02` and so on.
        seconds: length of a recording; both ends have a frame, so that 300 s at 25 Hz are 7501.
        rate_hz: frames a second.
        seed: 0 or more; everything random follows from it.
        recordings_per_subject: 1 or more; named `1`, `2` and so on.

    Raises:
        UserError: an argument is out of its range.
    """
    finite = math.isfinite(seconds) and math.isfinite(rate_hz)
    positive = min(subjects, recordings_per_subject) >= 1 and min(seconds, rate_hz) > 0
    if not (finite and positive and seed >= 0):
        raise UserError(
            f"cannot make {subjects} subject(s) with {recordings_per_subject} recording(s) of "
            f"{seconds} s at {rate_hz} Hz from seed {seed}: all must be above 0, the seed 0 or more"
        )
    return (
        _pending(seed, subject, recording, float(seconds), float(rate_hz))
        for subject in range(subjects)
        for recording in range(recordings_per_subject)
    )


def generate(
    seed: int, subject: int, recording: int, seconds: float = 300.0, rate_hz: float = 25.0
) -> Recording:
    """One recording with its raters' traces and, in `truth`, what lies behind them.

    `truth` holds `valence` and `arousal` [T], `rater_delay_s` and `rater_gain` [R], and the
    subject's `expressiveness` and `baseline` [F].

    Args:
        seed: of the corpus.
        subject: index, from 0.
        recording: index within the subject, from 0.
        seconds: length; both ends have a frame.
        rate_hz: frames a second.
    """
    rng = _random(seed, "recording", subject, recording)
    raters, person = make_raters(seed), make_person(seed, subject)
    frames = round(seconds * rate_hz) + 1
    # Raters look back in time: the latents begin before the recording does.
    lead = round(max(RATER_DELAY_S) * rate_hz) + 1
    latent = make_latents(rng, lead + frames, rate_hz)
    intensity = make_intensity(rng, latent[lead:], person, rate_hz)
    success = make_success(rng, frames, rate_hz)
    ratings = {
        dimension: make_ratings(rng, trace, frames, raters, rate_hz)
        for dimension, trace in zip(DIMENSIONS, latent.T, strict=True)
    }
    return Recording(
        corpus=CORPUS,
        subject=_subject_name(subject),
        name=str(recording + 1),
        rate_hz=rate_hz,
        time_s=np.arange(frames) / rate_hz,
        intensity=np.where(success[:, None], intensity, np.float32(np.nan)),
        intensity_names=OPENFACE_INTENSITIES,
        confidence=make_confidence(rng, success),
        success=success,
        annotations=ratings,
        raters=RATERS,
        truth={
            **dict(zip(DIMENSIONS, latent[lead:].T, strict=True)),
            "rater_delay_s": raters.delay_s,
            "rater_gain": raters.gain,
            "expressiveness": person.expressiveness,
            "baseline": person.baseline,
        },
        provenance=_provenance(seed, subject, recording, seconds, rate_hz),
    )


def ceiling(recordings: Iterable[Recording]) -> dict[str, float]:
    """Per dimension, the CCC that whoever read the latents off the face would reach.

    The true latent trace, shifted forward by the raters' mean delay, against the AVEC gold
    standard, pooled over the recordings. What is missing to 1 is the raters' doing: drift,
    offsets, unsteady hands and unequal delays, none of which the face can tell.
    """
    kept = list(recordings)
    return {
        dimension: concordance(
            np.concatenate([_seen_late(recording, dimension) for recording in kept]),
            np.concatenate([gold_standard(rec.annotations[dimension]) for rec in kept]),
        )
        for dimension in DIMENSIONS
    }


def make_raters(seed: int) -> Raters:
    """The corpus's raters."""
    rng = _random(seed, "raters")
    return Raters(rng.uniform(*RATER_DELAY_S, len(RATERS)), rng.uniform(*RATER_GAIN, len(RATERS)))


def make_person(seed: int, subject: int) -> Person:
    """A subject's way to move the face, the same in all of his or her recordings."""
    rng = _random(seed, "person", subject)
    count = len(OPENFACE_INTENSITIES)
    return Person(
        expressiveness=rng.lognormal(0.0, EXPRESSIVENESS_SPREAD, count),
        baseline=rng.normal(0.0, BASELINE_SPREAD, count),
    )


def make_latents(
    rng: np.random.Generator, frames: int, rate_hz: float
) -> Float64[np.ndarray, "T 2"]:
    """Valence and arousal, -1 to 1: correlated Gaussian processes in a hyperbolic tangent."""
    noise = band_noise(rng, frames, 2, rate_hz, LATENT_BAND_HZ)
    covariance = [[1.0, LATENT_CORRELATION], [LATENT_CORRELATION, 1.0]]
    return np.tanh(LATENT_SCALE * noise @ np.linalg.cholesky(covariance).T)


def make_intensity(
    rng: np.random.Generator, latent: Float64[np.ndarray, "T 2"], person: Person, rate_hz: float
) -> Float32[np.ndarray, "T F"]:
    """Action-unit intensities, 0 to 5, of a face that is never lost."""
    by_valence, by_arousal, by_animation = np.transpose(list(LOADINGS.values()))
    valence, arousal = latent[:, :1], latent[:, 1:]
    animation = ANIMATION_SPREAD * band_noise(rng, len(latent), 1, rate_hz, ANIMATION_BAND_HZ)
    meant = np.exp(VALENCE_BY_AROUSAL * arousal) * valence * by_valence + arousal * by_arousal
    drive = (
        person.baseline
        + person.expressiveness * np.exp(animation) * meant
        + animation * by_animation
        + make_unmeant(rng, arousal, rate_hz)
    )
    intensity = np.logaddexp(0.0, SOFTPLUS_SHARPNESS * drive) / SOFTPLUS_SHARPNESS
    intensity[:, OPENFACE_INTENSITIES.index("AU45_r")] += make_blinks(rng, len(latent), rate_hz)
    return np.clip(intensity, 0.0, HIGHEST_INTENSITY).astype(np.float32)


def make_unmeant(
    rng: np.random.Generator, arousal: Float64[np.ndarray, "T 1"], rate_hz: float
) -> Float64[np.ndarray, "T F"]:
    """What moves the face and tells nothing of affect: idle movements, tracking noise, speech."""
    shape = (len(arousal), len(OPENFACE_INTENSITIES))
    idle = IDLE_SPREAD * band_noise(rng, *shape, rate_hz, IDLE_BAND_HZ)
    restless = JITTER_SPREAD * np.exp(JITTER_BY_AROUSAL * arousal)
    jitter = restless * lagging_noise(rng, *shape, rate_hz, JITTER_S)
    talks = band_noise(rng, len(arousal), 1, rate_hz, TALKING_BAND_HZ) > 0
    reach = np.array([SPEECH.get(name, 0.0) for name in OPENFACE_INTENSITIES])
    speech = talks * reach * band_noise(rng, *shape, rate_hz, MOUTH_BAND_HZ)
    return idle + jitter + speech


def make_blinks(rng: np.random.Generator, frames: int, rate_hz: float) -> Float64[np.ndarray, " T"]:
    """Blinks at random moments, each a smooth bump."""
    heights = rng.uniform(*BLINK_HEIGHT, frames) * (rng.random(frames) < BLINK_HZ / rate_hz)
    bump = np.hanning(round(BLINK_S * rate_hz) + 2)[1:-1]
    return np.convolve(heights, bump)[:frames] if bump.size else heights


def make_success(rng: np.random.Generator, frames: int, rate_hz: float) -> Bool[np.ndarray, " T"]:
    """False in the gaps where the face is lost; there are at least two, which may overlap."""
    success = np.ones(frames, dtype=bool)
    for _ in range(GAPS_LEAST + rng.poisson(GAPS_HZ * frames / rate_hz)):
        start = rng.integers(frames)
        success[start : start + 1 + round(rng.uniform(*GAP_S) * rate_hz)] = False
    return success


def make_confidence(
    rng: np.random.Generator, success: Bool[np.ndarray, " T"]
) -> Float32[np.ndarray, " T"]:
    """The tracker's confidence: about .98 on a face, about .2 where it is lost."""
    sure = np.where(success, 0.98, 0.2) + rng.normal(0.0, 0.01, len(success))
    return np.clip(sure, 0.0, 1.0).astype(np.float32)


def make_ratings(
    rng: np.random.Generator,
    latent: Float64[np.ndarray, " S"],
    frames: int,
    raters: Raters,
    rate_hz: float,
) -> Float32[np.ndarray, "R T"]:
    """The raters' traces, -1 to 1, of the last `frames` of a longer latent trace."""
    position = np.arange(len(latent))
    shape = (frames, len(raters.delay_s))
    late = position[-frames:] - raters.delay_s[:, None] * rate_hz
    offset = rng.normal(0.0, RATER_OFFSET, (len(raters.delay_s), 1))
    drift = DRIFT_SPREAD * band_noise(rng, *shape, rate_hz, DRIFT_BAND_HZ).T
    hand = HAND_SPREAD * lagging_noise(rng, *shape, rate_hz, HAND_S).T
    seen = raters.gain[:, None] * np.interp(late, position, latent)
    return np.clip(seen + offset + drift + hand, -1.0, 1.0).astype(np.float32)


def band_noise(
    rng: np.random.Generator,
    frames: int,
    columns: int,
    rate_hz: float,
    band_hz: tuple[float, float],
) -> Float64[np.ndarray, "T C"]:
    """Independent columns of stationary Gaussian noise of variance 1 within a band.

    The spectrum falls on both sides like a Butterworth filter's of second order.

    Args:
        rng: source of randomness.
        frames: T.
        columns: C.
        rate_hz: frames a second.
        band_hz: where the power has fallen to half, below and above.
    """
    # What comes out of the inverse transform repeats itself: at most half of it is kept, and it is
    # long enough to hold the slowest waves of the band, however short the recording.
    least = 2 * max(frames, round(rate_hz / band_hz[0]))
    length = cast("int", next_fast_len(least, real=True))
    frequency_hz = np.fft.rfftfreq(length, 1 / rate_hz)
    low, high = ((frequency_hz / edge) ** 2 for edge in band_hz)
    response = low / np.hypot(1.0, low) / np.hypot(1.0, high)
    response *= np.sqrt(length / 2 / (response**2).sum())
    spectrum = np.fft.rfft(rng.standard_normal((length, columns)), axis=0)
    return np.fft.irfft(spectrum * response[:, None], length, axis=0)[:frames]


def lagging_noise(
    rng: np.random.Generator, frames: int, columns: int, rate_hz: float, time_s: float
) -> Float64[np.ndarray, "T C"]:
    """Independent columns of stationary AR(1) noise of variance 1.

    Args:
        rng: source of randomness.
        frames: T.
        columns: C.
        rate_hz: frames a second.
        time_s: after which the autocorrelation has fallen to 1/e.
    """
    kept = np.exp(-1 / (time_s * rate_hz))
    shocks = rng.standard_normal((frames, columns))
    shocks[1:] *= np.sqrt(1 - kept**2)
    return np.asarray(lfilter([1.0], [1.0, -kept], shocks, axis=0))


_STREAMS = ("raters", "person", "recording")


def _random(seed: int, stream: str, *index: int) -> np.random.Generator:
    key = (_STREAMS.index(stream), *index)
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


def _seen_late(recording: Recording, dimension: str) -> Float64[np.ndarray, " T"]:
    delay_s = float(recording.truth["rater_delay_s"].mean())
    return shift_forward(recording.truth[dimension], delay_s, recording.rate_hz)


def _subject_name(subject: int) -> str:
    return f"P{subject + 1:02d}"


def _provenance(
    seed: int, subject: int, recording: int, seconds: float, rate_hz: float
) -> Provenance:
    parameters = {
        "seed": seed,
        "subject": subject,
        "recording": recording,
        "seconds": seconds,
        "rate_hz": rate_hz,
    }
    digest = hashlib.sha256(json.dumps(parameters, sort_keys=True).encode()).hexdigest()
    return Provenance(CORPUS, VERSION, digest, parameters=parameters)


def _pending(seed: int, subject: int, recording: int, seconds: float, rate_hz: float) -> Pending:
    return Pending(
        corpus=CORPUS,
        subject=_subject_name(subject),
        name=str(recording + 1),
        provenance=_provenance(seed, subject, recording, seconds, rate_hz),
        load=partial(generate, seed, subject, recording, seconds, rate_hz),
    )
