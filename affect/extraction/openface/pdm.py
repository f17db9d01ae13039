"""Step 1: fit the point distribution model to the landmarks of each frame.

Gauss-Newton on a weak-perspective projection s R[0:2] (mean + V p) + t of the 3-D shape, with a
Gaussian prior on its parameters p: Saragih, Lucey and Cohn, "Deformable Model Fitting by
Regularized Landmark Mean-Shift", IJCV 2011, with the step and the end that OpenFace 2.2 uses.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from affect.extraction.openface.weights import POINTS, ShapeModel

_STEP = 0.75
_NO_BETTER = 0.999
_PATIENCE = 3
_MOST_ITERATIONS = 1000
_RIGID = 6


@dataclass(frozen=True)
class Pose:
    """A fitted model in T frames.

    Attributes:
        scale: pixels a millimetre.
        rotation: of the head.
        translation: of the shape's origin, in pixels.
        local: the shape's parameters p.
    """

    scale: Float[Tensor, " T"]
    rotation: Float[Tensor, "T 3 3"]
    translation: Float[Tensor, "T 2"]
    local: Float[Tensor, "T 34"]

    def where(self, chosen: Bool[Tensor, " T"], other: Pose) -> Pose:
        """This pose in the chosen frames, the other one elsewhere."""
        return Pose(
            torch.where(chosen, self.scale, other.scale),
            torch.where(chosen[:, None, None], self.rotation, other.rotation),
            torch.where(chosen[:, None], self.translation, other.translation),
            torch.where(chosen[:, None], self.local, other.local),
        )


class ShapeFit(nn.Module):
    """Fits the model to landmarks, all frames of a batch at once, in float64.

    Args:
        model: the point distribution model.
    """

    mean: Tensor
    components: Tensor
    eigenvalues: Tensor

    def __init__(self, model: ShapeModel) -> None:
        super().__init__()
        mean = torch.from_numpy(model.mean).view(3, POINTS).T  # 68 3
        components = torch.from_numpy(model.components).view(3, POINTS, -1).transpose(0, 1)
        self.register_buffer("mean", mean.contiguous())
        self.register_buffer("components", components.contiguous())  # 68 3 34
        self.register_buffer("eigenvalues", torch.from_numpy(model.eigenvalues))

    def forward(self, landmarks: Float[Tensor, "T 68 2"]) -> Pose:
        """The pose in each frame.

        A frame's fit ends at the third iteration, counted over all, that lowers the error by less
        than a thousandth.

        Args:
            landmarks: x and y in pixels; a point with x = 0 counts as invisible.
        """
        landmarks = landmarks.double()
        visible = landmarks[..., :1] != 0  # T 68 1
        pose = self._start(landmarks, visible)
        error = _norm(visible * (landmarks - self.project(pose, self.shape(pose))))
        stalled = torch.zeros_like(error, dtype=torch.int64)
        for _ in range(_MOST_ITERATIONS):
            going = stalled < _PATIENCE
            if not bool(going.any()):
                break
            old_shape = self.shape(pose)
            pose = self._step(pose, old_shape, landmarks, visible).where(going, pose)
            new_error = _norm(visible * (landmarks - self.project(pose, old_shape)))
            stalled += going & (new_error > _NO_BETTER * error)
            error = torch.where(going, new_error, error)
        return pose

    def shape(self, pose: Pose) -> Float[Tensor, "T 68 3"]:
        """The shape in millimetres, before rotation."""
        return self.mean + torch.einsum("pam,tm->tpa", self.components, pose.local)

    def project(self, pose: Pose, shape: Float[Tensor, "T 68 3"]) -> Float[Tensor, "T 68 2"]:
        """A shape in pixels."""
        flat = shape @ pose.rotation[:, :2].mT  # T 68 2
        return pose.scale[:, None, None] * flat + pose.translation[:, None]

    def _start(self, landmarks: Float[Tensor, "T 68 2"], visible: Bool[Tensor, "T 68 1"]) -> Pose:
        """The mean shape, upright, with the size and the centre of the landmarks' bounding box."""
        frames = len(landmarks)
        low = landmarks.masked_fill(~visible, torch.inf).amin(1)
        high = landmarks.masked_fill(~visible, -torch.inf).amax(1)
        extent = self.mean[:, :2].amax(0) - self.mean[:, :2].amin(0)
        return Pose(
            scale=((high - low) / extent).mean(1),
            rotation=torch.eye(3).to(landmarks).expand(frames, 3, 3),
            translation=(low + high) / 2,
            local=landmarks.new_zeros(frames, len(self.eigenvalues)),
        )

    def _step(
        self,
        pose: Pose,
        shape: Float[Tensor, "T 68 3"],
        landmarks: Float[Tensor, "T 68 2"],
        visible: Bool[Tensor, "T 68 1"],
    ) -> Pose:
        residual = visible * (landmarks - self.project(pose, shape))  # T 68 2
        jacobian = self._jacobian(pose, shape)
        if not bool(visible.all()):
            jacobian = visible.unsqueeze(-1) * jacobian
        jacobian = jacobian.flatten(1, 2)  # T 136 40
        prior = torch.cat([self.eigenvalues.new_zeros(_RIGID), 1 / self.eigenvalues])
        hessian = jacobian.mT @ jacobian + torch.diag(prior)
        gradient = (jacobian.mT @ residual.flatten(1).unsqueeze(-1)).squeeze(-1)
        gradient[:, _RIGID:] -= pose.local / self.eigenvalues
        factor, _ = torch.linalg.cholesky_ex(hessian)
        step = _STEP * torch.cholesky_solve(gradient.unsqueeze(-1), factor).squeeze(-1)
        return Pose(
            scale=pose.scale + step[:, 0],
            rotation=pose.rotation @ _rotation(step[:, 1:4]),
            translation=pose.translation + step[:, 4:_RIGID],
            local=pose.local + step[:, _RIGID:],
        )

    def _jacobian(self, pose: Pose, shape: Float[Tensor, "T 68 3"]) -> Float[Tensor, "T 68 2 40"]:
        """Derivatives of x and y by scale, three small rotations, translation and p."""
        x, y, z = shape.unbind(-1)
        right, up, out = pose.rotation[:, None, :2].unbind(-1)  # each T 1 2
        x, y, z = (values.unsqueeze(-1) for values in (x, y, z))  # each T 68 1
        scale = pose.scale[:, None, None]
        turns = [y * out - z * up, z * right - x * out, x * up - y * right]  # each T 68 2
        rigid = [
            x * right + y * up + z * out,
            *(scale * turn for turn in turns),
            *torch.eye(2).to(shape).expand(len(shape), POINTS, 2, 2).unbind(-1),
        ]
        flattened = torch.einsum("tia,pam->tpim", pose.rotation[:, :2], self.components)
        return torch.cat([torch.stack(rigid, -1), scale.unsqueeze(-1) * flattened], -1)


def _rotation(vector: Float[Tensor, "T 3"]) -> Float[Tensor, "T 3 3"]:
    """The rotation nearest to I + [w]x: about w, by the arc tangent of its length."""
    length = torch.linalg.vector_norm(vector, dim=-1, keepdim=True)
    x, y, z = (vector / length.clamp(min=torch.finfo(vector.dtype).tiny)).unbind(-1)
    none = torch.zeros_like(x)
    cross = torch.stack([none, -z, y, z, none, -x, -y, x, none], -1).view(-1, 3, 3)
    angle = torch.atan(length).unsqueeze(-1)
    turned = torch.sin(angle) * cross + (1 - torch.cos(angle)) * (cross @ cross)
    return torch.eye(3).to(vector) + turned


def _norm(residual: Float[Tensor, "T 68 2"]) -> Float[Tensor, " T"]:
    return torch.linalg.vector_norm(residual.flatten(1), dim=1)
