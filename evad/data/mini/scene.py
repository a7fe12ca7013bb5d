"""Random scenes of the generated data set: places, motion and labels of the actors.

Most actions can be told apart only by motion. An actor who stands is frozen in a pose of another action, arms that
neither wave nor clap are often frozen in one of these gestures, and `walk` and `run` differ only in speed. `watch`
depends on the other actors: an actor who faces another actor watches.

Lengths are in body heights until `_limbs` converts them to pixels. Angles are in radians, 0 is hanging straight down
and positive is forward. The camera sees all actors from the side; arrays of two start with the far side of the body.
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass, replace

import numpy as np

from evad.data.mini.render import BACKGROUND_MARGIN, Actor, Limb, Scene

POSES = ("stand", "walk", "run", "jump", "squat")  # an actor has exactly one
GESTURES = ("wave", "clap")  # an actor has at most one
CLASSES = (*POSES, *GESTURES, "watch")  # action ids 1 to 8

IMAGE_SIZE = 64  # pixels, height and width
FPS = 8

# Cycles per second. A gait looks the same twice per cycle. This must happen less than 2 times per second, so that clips
# with every second frame (4 per second) show the motion correctly.
RATES = {
    "walk": (0.28, 0.4),
    "run": (0.7, 0.9),
    "jump": (0.6, 0.9),
    "squat": (0.5, 0.75),
    "wave": (0.9, 1.3),
    "clap": (0.8, 1.2),
}
STOPPED_POSES = {"walk": 0.4, "squat": 0.35, "jump": 0.25}  # frozen poses of `stand`, with probabilities
ARMS = {"wave": 0.2, "clap": 0.2, "stopped wave": 0.15, "stopped clap": 0.15, "hang": 0.3}
HEIGHTS = {1: (34, 48), 2: (32, 46), 3: (26, 37)}  # pixels, by number of actors

THIGH, SHIN, UPPER_ARM, FOREARM, TORSO = 0.23, 0.23, 0.17, 0.16, 0.30
LEG_RADIUS, ARM_RADIUS, TORSO_RADIUS, HEAD_RADIUS, HAND_RADIUS, SHOE_RADIUS = 0.06, 0.046, 0.1, 0.1, 0.058, 0.05
SHOE_LENGTH = 0.08
SKIN, GLOVE, SHOE, VISOR = (0.96, 0.77, 0.63), (0.97, 0.97, 0.97), (1.0, 0.88, 0.25), (0.03, 0.03, 0.05)
FAR_SHADE = 0.7  # brightness of clothes on the far side of the body


@dataclass
class Motion:
    """Angles and displacements of one body over T frames.

    Attributes:
        thigh, knee, upper_arm, elbow: (2, T), far and near side; the knee bends backward, the elbow forward.
        lean: (T,), forward angle of the torso.
        lift: (T,), height of the lower foot above the ground, in body heights.
        travel: (T,), forward displacement in body heights.
    """

    thigh: np.ndarray
    knee: np.ndarray
    upper_arm: np.ndarray
    elbow: np.ndarray
    lean: np.ndarray
    lift: np.ndarray
    travel: np.ndarray


def sample_scene(
    rng: np.random.Generator,
    num_frames: int,
    num_actors: int | None = None,
    action: str | None = None,
    visible: np.ndarray | None = None,
) -> Scene:
    """Draw a random scene.

    Args:
        rng: Source of all random choices.
        num_frames: T.
        num_actors: 1 to 3; None draws it.
        action: The pose or gesture of all actors, without other gestures; None draws actions for each actor.
        visible: (n, T) bool, True while an actor is in the scene; None: always.
    """
    n = int(rng.choice((1, 2, 3), p=(0.3, 0.4, 0.3))) if num_actors is None else num_actors
    seconds = np.arange(num_frames) / FPS
    facing = rng.choice((-1, 1), size=n)
    drawn = [_draw_actor(rng, seconds, index, n, int(facing[index]), action) for index in range(n)]
    present = np.ones((n, num_frames), dtype=bool) if visible is None else visible
    actors = []
    for index, (limbs, actions) in enumerate(drawn):
        # Actors are numbered from left to right, and stay in their columns of the image.
        watches = index < n - 1 if facing[index] > 0 else index > 0
        actors.append(Actor(limbs, (*actions, "watch") if watches else actions, present[index]))
    return Scene(
        background=_background(rng),
        camera=_camera(rng, num_frames),
        props=_props(rng, seconds),
        actors=tuple(actors[index] for index in rng.permutation(n)),
    )


def _draw_actor(
    rng: np.random.Generator, seconds: np.ndarray, index: int, n: int, facing: int, action: str | None
) -> tuple[tuple[Limb, ...], tuple[str, ...]]:
    """Limbs and actions of the actor in column `index` of the `n` equal columns of the image."""
    pose = str(rng.choice(POSES))
    arms = str(rng.choice(list(ARMS), p=list(ARMS.values())))
    if action in GESTURES:
        pose, arms = "stand", action
    elif action is not None:
        pose, arms = action, arms if arms.startswith("stopped") else "hang"
    motion = _move_legs(rng, pose, seconds)
    _move_arms(rng, arms, seconds, motion)

    height = rng.uniform(*HEIGHTS[n])
    column = IMAGE_SIZE / n
    slack = max(column - 0.5 * height, 0.15 * column)  # bodies are about half as wide as high
    x = column * (index + 0.5) + rng.uniform(-0.5, 0.5) * slack
    limbs = _limbs(motion, height, facing, _outfit(rng))
    return _place(rng, limbs, x), (pose, arms) if arms in GESTURES else (pose,)


def _place(rng: np.random.Generator, limbs: tuple[Limb, ...], x: float) -> tuple[Limb, ...]:
    """Move a body to column `x` in frame T // 2, and from there as far as needed to stay in the image in all frames.

    The ground is drawn such that the head stays in the image. A body that does not fit is cut off at the top or left.
    """
    low = np.min([limb.ends.min(axis=(0, 1)) - limb.radius for limb in limbs], axis=0)
    high = np.max([limb.ends.max(axis=(0, 1)) + limb.radius for limb in limbs], axis=0)
    ground = rng.uniform(min(1 - low[1], IMAGE_SIZE - 2), IMAGE_SIZE - 1)
    place = np.array([np.clip(x, -low[0], IMAGE_SIZE - high[0]), ground])
    return tuple(replace(limb, ends=limb.ends + place) for limb in limbs)


def _clock(rng: np.random.Generator, action: str, seconds: np.ndarray, stopped: bool) -> np.ndarray:
    """(T,) phase of an action in cycles, with a random start; constant if stopped."""
    rate = rng.uniform(*RATES[action])
    return rng.uniform() + rate * (np.zeros_like(seconds) if stopped else seconds - seconds[len(seconds) // 2])


def _move_legs(rng: np.random.Generator, pose: str, seconds: np.ndarray) -> Motion:
    """Motion of a pose, including the usual motion of the arms."""
    stopped = pose == "stand"
    shape = str(rng.choice(list(STOPPED_POSES), p=list(STOPPED_POSES.values()))) if stopped else pose
    cycle = _clock(rng, shape, seconds, stopped)
    if shape in ("walk", "run"):
        return _gait(rng, cycle)
    return _jump(rng, cycle) if shape == "jump" else _squat(rng, cycle)


def _gait(rng: np.random.Generator, cycle: np.ndarray) -> Motion:
    """Arms and legs swing in opposite directions; the camera follows, so the body moves less than its steps."""
    phase = 2 * np.pi * cycle + np.array([[np.pi], [0]])  # (2, T)
    reach, bend, swing = rng.uniform(0.42, 0.6), rng.uniform(0.4, 0.8), rng.uniform(0.3, 0.6)
    advance = rng.uniform(0.2, 0.35)
    return Motion(
        thigh=reach * np.sin(phase),
        knee=0.1 + bend * np.maximum(0, np.cos(phase)),  # bent while the leg swings forward
        upper_arm=-swing * np.sin(phase),
        elbow=np.full_like(phase, rng.uniform(0.2, 0.9)),
        lean=np.full_like(cycle, rng.uniform(0, 0.12)),
        lift=np.zeros_like(cycle),
        travel=advance * (cycle - cycle[len(cycle) // 2]),
    )


def _bend(rng: np.random.Generator, depth: np.ndarray, lift: np.ndarray) -> Motion:
    """Bend both knees with the feet under the hips; `depth` (T,) is the angle of the thighs."""
    both = np.stack([depth, depth])
    hang = rng.uniform(-0.1, 0.25, size=(2, 1))
    return Motion(
        thigh=both,
        knee=2 * both,
        upper_arm=hang + 0.4 * both,
        elbow=np.full_like(both, rng.uniform(0.1, 0.5)),
        lean=0.35 * depth,
        lift=lift,
        travel=np.zeros_like(depth),
    )


def _squat(rng: np.random.Generator, cycle: np.ndarray) -> Motion:
    return _bend(rng, rng.uniform(0.8, 1.15) * (0.5 - 0.5 * np.cos(2 * np.pi * cycle)), np.zeros_like(cycle))


def _jump(rng: np.random.Generator, cycle: np.ndarray) -> Motion:
    """Crouch on the ground for 40 % of the cycle, then fly."""
    part = cycle % 1
    grounded = part < 0.4
    flight = (part - 0.4) / 0.6
    crouch = rng.uniform(0.6, 0.9) * np.sin(np.pi * part / 0.4)
    tuck = rng.uniform(0, 0.35) * np.sin(np.pi * flight)
    lift = rng.uniform(0.16, 0.24) * 4 * flight * (1 - flight)
    return _bend(rng, np.where(grounded, crouch, tuck), np.where(grounded, 0, lift))


def _move_arms(rng: np.random.Generator, arms: str, seconds: np.ndarray, motion: Motion) -> None:
    """Replace the motion of the arms by one of ARMS; `hang` keeps it."""
    if arms == "hang":
        return
    gesture = arms.removeprefix("stopped ")
    cycle = _clock(rng, gesture, seconds, stopped=arms != gesture)
    if gesture == "wave":
        side = int(rng.integers(2))
        swing = np.sin(2 * np.pi * cycle)
        motion.upper_arm[side] = rng.uniform(2.2, 2.5) + 0.2 * swing
        motion.elbow[side] = 0.5 + 0.75 * swing
    else:
        opening = rng.uniform(0.5, 0.65) * (0.5 - 0.5 * np.cos(2 * np.pi * cycle))
        middle = rng.uniform(1.25, 1.5)
        motion.upper_arm[:] = middle + np.array([[1], [-1]]) * opening
        motion.elbow[:] = 0.1


@dataclass(frozen=True)
class Outfit:
    skin: tuple[float, float, float]
    shirt: tuple[float, float, float]
    trousers: tuple[float, float, float]


def _outfit(rng: np.random.Generator) -> Outfit:
    return Outfit(
        skin=_shade(SKIN, rng.uniform(0.85, 1.0)),
        shirt=colorsys.hsv_to_rgb(rng.uniform(), rng.uniform(0.6, 0.9), rng.uniform(0.6, 0.85)),
        trousers=colorsys.hsv_to_rgb(rng.uniform(), rng.uniform(0.5, 0.9), rng.uniform(0.5, 0.75)),
    )


def _shade(color: tuple[float, float, float], factor: float) -> tuple[float, float, float]:
    red, green, blue = color
    return red * factor, green * factor, blue * factor


def _limbs(motion: Motion, height: float, facing: int, outfit: Outfit) -> tuple[Limb, ...]:
    """Limbs of a body in pixels, from back to front. The ground is at y = 0; in frame T // 2 the hips are at x = 0.

    Args:
        height: Height of the person standing upright, in pixels.
        facing: 1 faces right, -1 left.
    """
    knee = _along(motion.thigh, THIGH)  # (2, T, 2) relative to the hips
    ankle = knee + _along(motion.thigh - motion.knee, SHIN)
    shoulder = _along(np.pi - motion.lean, TORSO)  # (T, 2)
    elbow = shoulder + _along(motion.upper_arm, UPPER_ARM)
    hand = elbow + _along(motion.upper_arm + motion.elbow, FOREARM)
    head = shoulder + _along(np.pi - motion.lean, 0.13)
    toe = ankle + np.array([SHOE_LENGTH, 0])
    hip = np.stack([motion.travel, -motion.lift - SHOE_RADIUS - ankle[..., 1].max(axis=0)], axis=1)

    def limb(start: np.ndarray, end: np.ndarray, radius: float, color: tuple[float, float, float]) -> Limb:
        return Limb((np.stack([start, end]) + hip) * (height * facing, height), radius * height, color)

    def leg(side: int, shade: float) -> list[Limb]:
        trousers = _shade(outfit.trousers, shade)
        return [
            limb(np.zeros_like(hip), knee[side], LEG_RADIUS, trousers),
            limb(knee[side], ankle[side], LEG_RADIUS, trousers),
            limb(ankle[side], toe[side], SHOE_RADIUS, _shade(SHOE, shade)),
        ]

    def arm(side: int, shade: float) -> list[Limb]:
        return [
            limb(shoulder, elbow[side], ARM_RADIUS, _shade(outfit.skin, shade)),
            limb(elbow[side], hand[side], ARM_RADIUS, _shade(outfit.skin, shade)),
            limb(hand[side], hand[side], HAND_RADIUS, GLOVE),
        ]

    torso = limb(np.zeros_like(hip), shoulder, TORSO_RADIUS, outfit.shirt)
    face = limb(head, head, HEAD_RADIUS, outfit.skin)
    visor = limb(head + np.array([0.05, -0.01]), head + np.array([0.11, -0.01]), 0.033, VISOR)
    return (*arm(0, FAR_SHADE), *leg(0, FAR_SHADE), torso, face, visor, *leg(1, 1.0), *arm(1, 1.0))


def _along(angle: np.ndarray, length: float) -> np.ndarray:
    """(..., 2) vector of a limb: angle 0 hangs down, a positive angle points forward (to the right)."""
    return length * np.stack([np.sin(angle), np.cos(angle)], axis=-1)


def _background(rng: np.random.Generator) -> np.ndarray:
    """A dark, nearly grey, weakly textured background; the task was far harder to learn with other backgrounds."""
    size = IMAGE_SIZE + 2 * BACKGROUND_MARGIN
    base = rng.uniform(0.08, 0.24) * (1 + 0.15 * rng.standard_normal(3))
    cells = rng.standard_normal((6, 6, 3)) * 0.03
    stretch = np.maximum(0, 1 - np.abs(np.linspace(0, 5, size)[:, None] - np.arange(6)))  # (size, 6), interpolates
    clouds = np.tensordot(stretch, stretch @ cells, axes=1)  # (6, 6, 3) -> (6, size, 3) -> (size, size, 3)
    grain = 0.01 * rng.standard_normal((size, size, 1))
    return (base + clouds + grain).clip(0.02, 0.45).astype(np.float32)


def _camera(rng: np.random.Generator, num_frames: int) -> np.ndarray:
    """(T, 2) shift by an unsteady hand: a random walk that is 0 at frame T // 2."""
    path = np.cumsum(rng.normal(0, 0.3, size=(num_frames, 2)), axis=0)
    return (path - path[num_frames // 2]).clip(1 - BACKGROUND_MARGIN, BACKGROUND_MARGIN - 1)


def _props(rng: np.random.Generator, seconds: np.ndarray) -> tuple[Limb, ...]:
    """Up to four bars and balls in muted colours, half of them moving."""
    props = []
    for _ in range(rng.integers(0, 5)):
        velocity = rng.uniform(-8, 8, size=2) * rng.integers(0, 2)  # pixels per second
        start = rng.uniform(0, IMAGE_SIZE, size=2) + np.outer(seconds - seconds.mean(), velocity)
        end = start + rng.uniform(-12, 12, size=2) * rng.integers(0, 2)
        color = colorsys.hsv_to_rgb(rng.uniform(), rng.uniform(0.2, 0.6), rng.uniform(0.25, 0.5))
        props.append(Limb(np.stack([start, end]), rng.uniform(1.5, 4), color))
    return tuple(props)
