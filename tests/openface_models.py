"""An OpenFace folder of random models in the documented format, and the stage again in NumPy.

The oracle goes frame by frame and pixel by pixel through what the documentation of each step says,
and shares no code with `affect.extraction.openface`.
"""

import struct

import numpy as np
import pyfhog
from matplotlib.path import Path as Outline
from scipy.spatial.transform import Rotation

UNITS = (1, 2, 4, 5, 6, 7, 9, 10, 12, 14, 15, 17, 20, 23, 25, 26, 45)
DYNAMIC = {1: 0.55, 2: 0.75, 5: 0.8, 9: 0.7, 15: 0.55, 17: 0.2, 45: 0.6}
RIGID = [1, 2, 3, 4, 12, 13, 14, 15, 27, 28, 29, 31, 32, 33, 34, 35, 36, 39, 40, 41, 42, 45, 46, 47]


def mean_shape():
    """68 points of a rough face in millimetres, [3, 68]: jaw, brows, nose, eyes, mouth."""
    around = np.linspace(0, np.pi, 17)
    jaw = np.stack([-72 * np.cos(around), -20 + 90 * np.sin(around), 60 * np.cos(around) ** 2])
    brow = np.linspace(-55, -12, 5)
    brows = np.stack([np.r_[brow, -brow[::-1]], np.full(10, -45.0), np.full(10, 5.0)])
    ridge = np.stack([np.zeros(4), np.linspace(-30, 10, 4), np.linspace(0, -25, 4)])
    base = np.stack([np.linspace(-12, 12, 5), np.full(5, 16.0), np.full(5, -8.0)])
    ring = np.linspace(np.pi, -np.pi, 6, endpoint=False)
    eyes = [
        np.stack([c + 13 * np.cos(ring), -28 - 5 * np.sin(ring), 8 + 0 * ring]) for c in (-33, 33)
    ]
    lips = [
        np.stack([w * np.cos(a), 40 + h * np.sin(a), -5 + 0 * a])
        for w, h, a in (
            (25, 12, np.linspace(np.pi, 3 * np.pi, 12, endpoint=False)),
            (18, 4, np.linspace(np.pi, 3 * np.pi, 8, endpoint=False)),
        )
    ]
    return np.concatenate([jaw, brows, ridge, base, *eyes, *lips], axis=1)


def write_folder(home, seed=0, still=False):
    """A home with `AU_predictors`: the point model and two static and seven dynamic kinds."""
    rng = np.random.default_rng(seed)
    folder = home / "AU_predictors"
    folder.mkdir(parents=True)
    components = np.linalg.qr(rng.normal(size=(204, 34)))[0]
    eigenvalues = np.geomspace(800, 0.6, 34)
    model = [mean_shape().reshape(204, 1), components, eigenvalues[None]]
    text = "".join(
        f"# matrix {index}\n{rows}\n{columns}\n6\n"
        + "\n".join(" ".join(map(repr, row)) for row in values.tolist())
        + "\n\n"
        for index, values in enumerate(model)
        for rows, columns in [values.shape]
    )
    (folder / "In-the-wild_aligned_PDM_68.txt").write_text(text)
    lines = []
    for kind, units in (("svm", sorted({*UNITS, 28})), ("svr", UNITS)):
        for unit in units:
            name = f"{kind}_combined/AU_{unit}.dat"
            dynamic = unit in DYNAMIC and not still
            path = folder / name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(_model(rng, kind, dynamic, DYNAMIC.get(unit, -1.0)))
            lines.append(f"{name} AU{unit:02d}")
    listed = "AU_all_static.txt" if still else "AU_all_best.txt"
    (folder / listed).write_text("\n".join(lines))
    return home


def _model(rng, kind, dynamic, cutoff):
    code = {("svr", False): 0, ("svr", True): 1, ("svm", False): 4, ("svm", True): 5}[kind, dynamic]
    head = struct.pack("<i", code) + (struct.pack("<d", cutoff) if code == 1 else b"")
    means, weights = rng.uniform(0, 0.2, 4702), rng.normal(size=4702) / 20
    parts = [
        struct.pack("<3i", *shape, 6) + values.astype("<f8").tobytes()
        for shape, values in (((1, 4702), means), ((4702, 1), weights))
    ]
    bias = struct.pack("<d", rng.uniform(0.5, 2.0) if kind == "svr" else rng.normal())
    classes = struct.pack("<2d", *rng.permutation([0.0, 1.0])) if kind == "svm" else b""
    return head + b"".join(parts) + bias + classes


def poses(frames, seed=0, width=200, height=180):
    """Landmarks [T, 68, 2] of a moving face that change expression, and frames [T, H, W, 3]."""
    rng = np.random.default_rng(seed)
    mean = mean_shape()
    wander = np.cumsum(rng.normal(size=(frames, 6)), axis=0) / np.sqrt(frames)
    mouth = np.zeros((3, 68))
    mouth[1, 48:] = 1
    points = []
    for step in wander:
        turn = Rotation.from_euler("xyz", 0.1 * step[:3]).as_matrix()
        shape = turn @ (mean + 8 * np.tanh(step[3]) * mouth)
        points.append(0.62 * shape[:2].T + [width / 2 + 4 * step[4], height / 2 + 8])
    y, x = np.mgrid[0:height, 0:width]
    pictures = [
        128
        + 60 * np.sin(x / 5 + a + c)[..., None] * np.cos(y / 7 - a)[..., None] * [1, 0.8, 0.6]
        + rng.integers(-25, 25, (height, width, 3))
        for a, c in wander[:, :2]
    ]
    return np.stack(points), np.clip(np.stack(pictures), 0, 255).astype(np.uint8)


def columns(landmarks):
    """Landmarks [T, 68, 2] under the names that OpenFace's CSV has for them."""
    return {
        f"{axis}_{point}": landmarks[:, point, i]
        for i, axis in enumerate("xy")
        for point in range(68)
    }


def fit(landmarks, mean, components, eigenvalues):
    """Gauss-Newton for one frame: scale, rotation, translation, parameters."""
    seen = landmarks[:, 0] != 0
    box = np.ptp(landmarks[seen], axis=0)
    low = landmarks[seen].min(axis=0)
    modes = components.reshape(3, 68, -1)
    scale = np.mean(box / np.ptp(mean[:2], axis=1))
    turn, shift, local = np.eye(3), low + box / 2, np.zeros(modes.shape[-1])
    previous, stalls = None, 0
    while stalls < 3:
        shape = mean + modes @ local
        flat = scale * turn[:2] @ shape + shift[:, None]
        residual = (landmarks.T - flat) * seen
        if previous is None:
            previous = np.linalg.norm(residual)
        turns = [scale * turn[:2] @ np.cross(axis, shape.T).T for axis in np.eye(3)]
        columns = [turn[:2] @ shape, *turns]
        columns += [np.array([[1.0], [0]]) + 0 * flat, np.array([[0], [1.0]]) + 0 * flat]
        columns += [scale * turn[:2] @ modes[..., mode] for mode in range(modes.shape[-1])]
        jacobian = np.stack([(column * seen).ravel() for column in columns], axis=1)
        prior = np.r_[np.zeros(6), 1 / eigenvalues]
        right = jacobian.T @ residual.ravel() - np.r_[np.zeros(6), local / eigenvalues]
        step = 0.75 * np.linalg.solve(jacobian.T @ jacobian + np.diag(prior), right)
        length = np.linalg.norm(step[1:4])
        turn = turn @ Rotation.from_rotvec(step[1:4] / length * np.arctan(length)).as_matrix()
        scale, shift, local = scale + step[0], shift + step[4:6], local + step[6:]
        error = np.linalg.norm((landmarks.T - scale * turn[:2] @ shape - shift[:, None]) * seen)
        stalls += error > 0.999 * previous
        previous = error
    return scale, turn, shift, local


def align(picture, landmarks, shift, mean):
    """One frame's masked face, 112 x 112 x 3."""
    goal = 0.7 * mean[:2, RIGID].T
    goal = goal - goal.mean(axis=0)
    source = landmarks[RIGID] - landmarks[RIGID].mean(axis=0)
    left, _, right = np.linalg.svd(source.T @ goal)
    turn = right.T @ np.diag([1, np.linalg.det(right.T @ left.T)]) @ left.T
    turn = np.sqrt((goal**2).mean() / (source**2).mean()) * turn
    offset = 56 - turn @ shift
    back = np.linalg.inv(turn)
    start = -back @ offset
    face = np.zeros((112, 112, 3), np.uint8)
    outline = landmarks @ turn.T + offset
    outline[[0, 16, *range(17, 27)], 1] -= 30
    border = Outline(outline[[*range(17), *range(26, 16, -1)]])
    padded = np.pad(picture.astype(int), ((200, 200), (200, 200), (0, 0)))
    for row in range(112):
        for column in range(112):
            if not border.contains_point((column, row)):
                continue
            place = [
                (
                    round(back[i, 0] * column * 1024)
                    + round((back[i, 1] * row + start[i]) * 1024)
                    + 16
                )
                >> 5
                for i in (0, 1)
            ]
            x, y = (value >> 5 for value in place)
            u, v = (value & 31 for value in place)
            four = padded[y + 200 : y + 202, x + 200 : x + 202]
            weights = np.outer([32 - v, v], [32 - u, u])
            face[row, column] = ((weights[..., None] * four).sum(axis=(0, 1)) + 512) >> 10
    return face


def describe(picture, landmarks, mean, components, eigenvalues):
    """One frame's descriptor [4702]: gradients of its face, deformation, deformation's modes."""
    _, _, shift, local = fit(landmarks, mean, components, eigenvalues)
    face = align(picture, landmarks, shift, mean)
    return np.concatenate(
        [np.ravel(pyfhog.extract_fhog_features(face, 8)), components @ local, local]
    )


def medians(descriptors, success):
    """The running median after each frame, by sorting bins."""
    bins = np.r_[np.full(4464, 1000), np.full(238, 10000)]
    low = np.r_[np.full(4464, -0.005), np.full(238, -60.0)]
    length = np.r_[np.full(4464, 1.005), np.full(238, 120.0)]
    taken, history, current = [], [], np.zeros(4702)
    for index, row in enumerate(descriptors):
        if index % 2 == 0 and success[index]:
            taken.append(np.clip(np.trunc((row - low) * bins / length), 0, bins - 1))
            if len(taken) == 1:
                current = row.copy()
            else:
                middle = np.sort(np.stack(taken), axis=0)[(len(taken) + 1) // 2 - 1]
                current = low + (middle + 0.5) * length / bins
            current[:4464] = np.maximum(current[:4464], 0)
        history.append(current)
    return np.stack(history)


def smooth(values, span):
    """Moving average; the ends stay."""
    half = span // 2
    result = values.copy()
    for index in range(half, len(values) - half):
        result[index] = values[index - half : index + half + 1].mean(axis=0)
    return result
