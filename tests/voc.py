"""Data of a COCO file in the format of Pascal VOC."""

import json
from pathlib import Path
from xml.etree import ElementTree

import cv2


def write_voc(folder: Path, name: str, ann_file: Path, image_dir: Path) -> None:
    """Write images, an XML file for each, and ``ImageSets/Main/<name>.txt``, beside what is there."""
    coco = json.loads(ann_file.read_text())
    classes = {category['id']: category['name'] for category in coco['categories']}
    for part in ('JPEGImages', 'Annotations', 'ImageSets/Main'):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for image in coco['images']:
        stem = f'{name}_{image["id"]}'
        cv2.imwrite(str(folder / f'JPEGImages/{stem}.jpg'), cv2.imread(str(image_dir / image['file_name'])))
        root = ElementTree.Element('annotation')
        size = ElementTree.SubElement(root, 'size')
        for key in ('width', 'height'):
            ElementTree.SubElement(size, key).text = str(image[key])
        for annotation in coco['annotations']:
            if annotation['image_id'] == image['id']:
                item = ElementTree.SubElement(root, 'object')
                ElementTree.SubElement(item, 'name').text = classes[annotation['category_id']]
                ElementTree.SubElement(item, 'difficult').text = '0'
                x, y, w, h = annotation['bbox']
                box = ElementTree.SubElement(item, 'bndbox')
                for key, value in dict(xmin=x + 1, ymin=y + 1, xmax=x + w, ymax=y + h).items():
                    ElementTree.SubElement(box, key).text = str(value)
        ElementTree.ElementTree(root).write(folder / f'Annotations/{stem}.xml')
    names = ''.join(f'{name}_{image["id"]}\n' for image in coco['images'])
    (folder / f'ImageSets/Main/{name}.txt').write_text(names)
