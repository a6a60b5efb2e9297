"""Detections beside the objects that are there, one to one at one IoU: what was right, mistaken, missed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from pycocotools import mask as mask_api

IOU = 0.5  # of a detection and an object that belong together
NEAR = 0.1  # IoU from which a detection is of an object, though badly placed
LOWEST = 0.01  # score that best_score gives
USUAL = 0.3  # where nothing is right at any score

# What became of a detection
RIGHT, CLASS, SECOND, PLACE, NOTHING, IGNORED = range(6)


@dataclass
class Boxes:
    """Boxes of many images.

    Attributes:
        image: [N], index of the image.
        label: [N], index of the class.
        box: [N, 4], (x, y, width, height) in px.
        score: [N], of detections.
        crowd: [N], bool, of objects.
    """

    image: np.ndarray
    label: np.ndarray
    box: np.ndarray
    score: np.ndarray
    crowd: np.ndarray

    def __len__(self) -> int:
        return len(self.image)

    @classmethod
    def of(cls, annotations: Sequence[Mapping], images: Mapping[int, int], labels: Mapping[int, int]) -> 'Boxes':
        """From COCO's entries; those of other images and categories are left out.

        Args:
            images: index of each image by its id.
            labels: index of each class by its category's id.
        """
        kept = [a for a in annotations if a['image_id'] in images and a['category_id'] in labels]
        return cls(
            image=np.array([images[a['image_id']] for a in kept], int),
            label=np.array([labels[a['category_id']] for a in kept], int),
            box=np.array([a['bbox'] for a in kept], float).reshape(-1, 4),
            score=np.array([a.get('score', 1) for a in kept], float),
            crowd=np.array([a.get('iscrowd', 0) for a in kept], bool),
        )


@dataclass
class Matches:
    """Detections and objects, see :func:`match`.

    Attributes:
        object_of: [D], the object that each detection finds, -1: none.
        on_crowd: [D], bool: lies on a crowd of its class and counts neither as right nor as wrong.
        near: [D], the object that each detection overlaps most, of whatever class, -1: none; crowds left out.
        iou: [D], with that object.
        near_own: [D], IoU with the nearest object of its own class.
    """

    objects: Boxes
    detections: Boxes
    object_of: np.ndarray
    on_crowd: np.ndarray
    near: np.ndarray
    iou: np.ndarray
    near_own: np.ndarray

    def best_score(self) -> float:
        """The score from which detections have the highest F1 = 2 right / (detections + objects), in hundredths."""
        counted = np.flatnonzero(~self.on_crowd)
        order = counted[np.argsort(-self.detections.score[counted], kind='stable')]
        score, right = self.detections.score[order], np.cumsum(self.object_of[order] >= 0)
        if not len(order) or not right[-1]:
            return USUAL
        f1 = 2 * right / (np.arange(1, len(order) + 1) + (~self.objects.crowd).sum())
        f1[:-1][score[:-1] == score[1:]] = 0  # detections of one score are shown together
        return max(np.floor(100 * score[f1.argmax()]) / 100, LOWEST)

    def score_of_objects(self) -> np.ndarray:
        """[O], of the detection that finds each object, 0: none does at any score."""
        scores = np.zeros(len(self.objects))
        found = self.object_of >= 0
        scores[self.object_of[found]] = self.detections.score[found]
        return scores

    def at(self, score: float) -> 'Outcome':
        """What those who see the detections from a score on see."""
        shown = self.detections.score >= score
        right = shown & (self.object_of >= 0)
        taken_for = np.full(len(self.objects), -1)
        taken_for[self.object_of[right]] = np.flatnonzero(right)
        kind = np.full(len(self.detections), NOTHING)
        kind[self.near_own >= NEAR] = PLACE
        kind[self.iou >= IOU] = SECOND
        for i in np.argsort(-self.detections.score, kind='stable'):
            if kind[i] == SECOND and shown[i] and not right[i] and taken_for[self.near[i]] < 0:
                taken_for[self.near[i]], kind[i] = i, CLASS  # if it were of its own class, it would be right
        kind[right], kind[self.on_crowd], kind[~shown] = RIGHT, IGNORED, IGNORED
        return Outcome(self, score, kind, taken_for)


@dataclass
class Outcome:
    """
    Attributes:
        kind: [D], what became of each detection. RIGHT; CLASS: the object that it overlaps most, by IOU or more, is of
            another class; SECOND: that object has its detection; PLACE: one of its class is near, but by less than
            IOU; NOTHING: there is none; IGNORED: below the score, or on a crowd.
        taken_for: [O], the detection that found an object, or took it for another class; -1: none.
    """

    matches: Matches
    score: float
    kind: np.ndarray
    taken_for: np.ndarray

    @property
    def missed(self) -> np.ndarray:
        """[O], bool: no detection of their class finds them."""
        found = np.zeros(len(self.taken_for), bool)
        found[self.matches.object_of[self.kind == RIGHT]] = True
        return ~found & ~self.matches.objects.crowd

    def matrix(self, classes: int) -> np.ndarray:
        """[C + 1, C + 1], int: objects of each class (rows) by the class that they were taken for (columns).

        The last row has the detections of no object, the last column the objects that nothing was detected of.
        """
        objects, detections = self.matches.objects, self.matches.detections
        counts = np.zeros((classes + 1, classes + 1), int)
        real = ~objects.crowd
        columns = np.where(self.taken_for >= 0, np.append(detections.label, classes)[self.taken_for], classes)
        np.add.at(counts, (objects.label[real], columns[real]), 1)
        of_none = (self.kind == SECOND) | (self.kind == PLACE) | (self.kind == NOTHING)
        np.add.at(counts, (classes, detections.label[of_none]), 1)
        return counts


def match(objects: Boxes, detections: Boxes) -> Matches:
    """Give each detection, by falling score, the object of its class that it overlaps most, by IOU or more.

    Each object is given once: these are the detections that COCO's AP50 counts as right. A detection of a higher score
    goes first, so that what holds for all detections holds for those above any score.
    """
    count = len(detections)
    nothing, zeros = np.full(count, -1), np.zeros(count)
    on_crowd = np.zeros(count, bool)
    found = Matches(objects, detections, nothing, on_crowd, nothing.copy(), zeros, zeros.copy())
    objects_of = _by_image(objects.image, np.arange(len(objects)))
    for image, mine in _by_image(detections.image, np.argsort(-detections.score, kind='stable')).items():
        there = objects_of.get(image)
        if there is not None:
            _match_image(found, mine, there)
    return found


def _match_image(found: Matches, detections: np.ndarray, objects: np.ndarray) -> None:
    """Of one image: indices of its detections, by falling score, and of its objects."""
    crowd = found.objects.crowd[objects]
    iou = _iou(found.detections.box[detections], found.objects.box[objects], crowd)  # [d, o]
    same = found.detections.label[detections][:, None] == found.objects.label[objects]
    real = np.where(crowd, 0, iou)
    nearest = real.argmax(1)
    found.iou[detections] = real.max(1)
    found.near[detections] = np.where(real.max(1) > 0, objects[nearest], -1)
    own = np.where(same, iou, 0)
    found.near_own[detections] = np.where(crowd, 0, own).max(1)
    free = ~crowd
    for i in np.flatnonzero(own.max(1) >= IOU):
        candidates = np.where(free, own[i], 0)
        best = candidates.argmax()
        if candidates[best] >= IOU:
            found.object_of[detections[i]] = objects[best]
            free[best] = False
        else:
            found.on_crowd[detections[i]] = (own[i][crowd] >= IOU).any()


def _by_image(images: np.ndarray, indices: np.ndarray) -> dict[int, np.ndarray]:
    """The indices of each image, in their order."""
    if not len(indices):
        return {}
    of = images[indices]
    order = np.argsort(of, kind='stable')
    cuts = np.flatnonzero(np.diff(of[order])) + 1
    return {int(of[part[0]]): indices[part] for part in np.split(order, cuts)}


def _iou(detections: np.ndarray, objects: np.ndarray, crowd: np.ndarray) -> np.ndarray:
    """[D, 4], [O, 4] -> [D, O]; of a crowd, the share of the detection that lies on it."""
    return mask_api.iou(detections, objects, crowd.astype(np.uint8))
