"""A data set of the tests' own, as tensorflow-datasets' users write theirs, and as it lies on disk."""

import io
import json
import os
import time

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image
from tensorflow_datasets.proto import tf_example_pb2


class MadeImages(tfds.core.GeneratorBasedBuilder):
    """Noise in three classes; MADE_IMAGES_PAUSE seconds go by before each image."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {
            "image": tfds.features.Image(shape=(8, 8, 3)),
            "label": tfds.features.ClassLabel(num_classes=3),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("image", "label"),
        )

    def _split_generators(self, dl_manager):
        if "MADE_IMAGES_URL" in os.environ:
            dl_manager.download(os.environ["MADE_IMAGES_URL"])
        return {"train": self._generate_examples(60), "test": self._generate_examples(20)}

    def _generate_examples(self, size):
        for i in range(size):
            time.sleep(float(os.environ.get("MADE_IMAGES_PAUSE", 0)))
            yield i, {"image": noise(i), "label": i % 3}


def noise(seed, shape=(8, 8, 3)):
    """An image uint8 of `shape`."""
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def write(
    folder, *, splits=("train", "test"), shapes=((8, 8, 3),) * 6, labels=(0, 1, 2) * 2, **changes
):
    """Writes a prepared `made_images` with one shard a split, without TensorFlow.

    `changes` are of the description: name, shape and dtype of the images, num_classes, file_format and
    the supervised keys.
    """
    described = {"name": "made_images", "shape": (8, 8, 3), "dtype": "uint8", "num_classes": 3}
    described |= changes
    folder.mkdir(parents=True)
    for split in splits:
        path = folder / f"{described['name']}-{split}.array_record-00000-of-00001"
        writer = ArrayRecordWriter(str(path), "group_size:1")
        for i, (shape, label) in enumerate(zip(shapes, labels, strict=True)):
            writer.write(_record(noise(i, shape), label))
        writer.close()
    template = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
    each = {"shardLengths": [str(len(labels))], "filepathTemplate": template}
    keys = [{"featureKey": "image"}, {"featureKey": "label"}]
    info = {
        "name": described["name"],
        "version": folder.name,
        "fileFormat": described.get("file_format", "array_record"),
        "splits": [{"name": split, **each} for split in splits],
        "supervisedKeys": {"tuple": {"items": described.get("keys", keys)}},
    }
    sizes = [str(n or -1) for n in described["shape"]]

    def feature(kind, **content):
        return {"pythonClassName": f"tensorflow_datasets.core.features.{kind}", **content}

    image = {"dtype": described["dtype"], "shape": {"dimensions": sizes}}
    label = {"numClasses": str(described["num_classes"])}
    features = {
        "image": feature("image_feature.Image", image=image),
        "label": feature("class_label_feature.ClassLabel", classLabel=label),
    }
    whole = feature("features_dict.FeaturesDict", featuresDict={"features": features})
    (folder / "dataset_info.json").write_text(json.dumps(info))
    (folder / "features.json").write_text(json.dumps(whole))
    return folder


def _record(image, label):
    png = io.BytesIO()
    Image.fromarray(image).save(png, "PNG")
    example = tf_example_pb2.Example()
    example.features.feature["image"].bytes_list.value.append(png.getvalue())
    example.features.feature["label"].int64_list.value.append(label)
    return example.SerializeToString()
