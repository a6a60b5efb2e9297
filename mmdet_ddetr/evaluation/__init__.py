from .coco_metric import CocoMetric, CocoPanopticMetric

__all__ = ['CocoMetric', 'CocoPanopticMetric']
