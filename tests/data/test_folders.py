from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import ImageFolder

from fedclip_plugin.data.dataset import KNOWN, ImageDataset, canonical_name
from fedclip_plugin.data.folders import load_dataset
from fedclip_plugin.data.listing import IMAGE_SUFFIXES
from fedclip_plugin.errors import DataError
from tests.waiting import wait_until

MINI = Path(__file__).parents[3] / "shared" / "data" / "pacs-mini"
PACS = ("art_painting", "cartoon", "photo", "sketch")


def put(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"image " + name.encode())


def make_set(root: Path, domains: tuple[str, ...], classes: str = "cat dog") -> Path:
    for domain in domains:
        put(root / domain, *(f"{c}/{i}.jpg" for c in classes.split() for i in (1, 2)))
    return root


def names(dataset: ImageDataset) -> tuple[str, ...]:
    return tuple(domain.name for domain in dataset.domains)


def assert_as_image_folder(dataset: ImageDataset, root: Path) -> None:
    for domain in dataset.domains:
        folder = ImageFolder(str(root / domain.files[0].split("/")[0]))
        found = [str(root / name) for name in domain.files]
        assert list(zip(found, domain.labels.tolist())) == folder.samples
        assert list(dataset.classes) == folder.classes


def test_a_folder_of_any_name(tmp_path: Path) -> None:
    root = make_set(tmp_path, ("night", "day"))
    dataset = load_dataset("my-animals", str(root))
    assert (dataset.name, dataset.classes) == ("my-animals", ("cat", "dog"))
    assert names(dataset) == ("day", "night")
    day = dataset.domains[0]
    assert day.files[0] == "day/cat/1.jpg"
    assert day.labels.tolist() == [0, 0, 1, 1]
    assert day.labels.dtype == np.int64
    assert day.read(3) == b"image dog/2.jpg"
    assert_as_image_folder(dataset, root)


def test_order_is_that_of_image_folder(tmp_path: Path) -> None:
    files = ["b/10.jpg", "b/9.jpg", "b/Z.JPG", "b/a.jpeg", "B/x.png", "b/é.webp"]
    files += ["b/sub/1.png", "b/sub-2/1.png", "b/sub/deep/0.bmp", "b/sub2/1.tif"]
    files += [f"a b/x{suffix.upper()}" for suffix in IMAGE_SUFFIXES[:9]]
    put(tmp_path / "one", *files, "b/note.txt", "b/Thumbs.db", "list.csv")
    put(tmp_path, "readme.md")
    elsewhere = tmp_path / "one" / "linked"
    put(tmp_path / ".elsewhere", "z.jpg", "y/z.jpg")
    elsewhere.symlink_to(tmp_path / ".elsewhere", target_is_directory=True)
    dataset = load_dataset("x", str(tmp_path))
    assert sum(len(domain.files) for domain in dataset.domains) == len(files) + 2
    assert_as_image_folder(dataset, tmp_path)


def test_hidden_files_and_leftovers_of_archives_are_not_seen(tmp_path: Path) -> None:
    root = make_set(tmp_path, ("one", "two"))
    before = load_dataset("x", str(root))
    put(root, "__MACOSX/one/cat/._1.jpg", ".git/x/y.jpg", "one/.cache/1.jpg")
    put(root / "one", "cat/._1.jpg", "cat/.DS_Store", "cat/.thumbs/1.jpg", ".x.jpg")
    after = load_dataset("x", str(root))
    assert [d.files for d in after.domains] == [d.files for d in before.domains]


def test_links_that_lead_back_end(tmp_path: Path) -> None:
    root = make_set(tmp_path, ("one",))
    (root / "one" / "cat" / "again").symlink_to(root / "one", target_is_directory=True)
    assert len(load_dataset("x", str(root)).domains[0].files) == 4


@pytest.mark.parametrize(
    ("name", "folders", "expected"),
    [
        ("pacs", "Sketch,Photo,Art Painting,CARTOON", PACS),
        ("PACS", "art,cartoon,photo,sketch", PACS),
        (
            "Office-Home",
            "Art,Clipart,Product,Real World",
            ("art", "clipart", "product", "real_world"),
        ),
        (
            "off_home",
            "Art,Clipart,Product,Real_World",
            ("art", "clipart", "product", "real_world"),
        ),
        (
            "vlcs",
            "CALTECH,LABELME,PASCAL,SUN",
            ("caltech101", "labelme", "sun09", "voc2007"),
        ),
        (
            "VLCS",
            "Caltech101,LabelMe,SUN09,VOC2007",
            ("caltech101", "labelme", "sun09", "voc2007"),
        ),
        (
            "terra",
            "location_100,location_38,location_43,location_46",
            ("location_38", "location_43", "location_46", "location_100"),
        ),
        (
            "domain_net",
            "clip,info,paint,quick,real,sketch",
            tuple(KNOWN["domainnet"].domains),
        ),
        ("office-31", "webcam,amazon,dslr", ("amazon", "dslr", "webcam")),
        (
            "office-caltech",
            "amazon,caltech,dslr,webcam",
            ("amazon", "dslr", "webcam", "caltech"),
        ),
    ],
)
def test_published_sets_in_any_spelling(
    tmp_path: Path, name: str, folders: str, expected: tuple[str, ...]
) -> None:
    make_set(tmp_path, tuple(folders.split(",")))
    put(tmp_path, "splits/x/y.jpg")  # what is no domain of the set stays out
    dataset = load_dataset(name, str(tmp_path))
    assert dataset.name in KNOWN
    assert names(dataset) == expected


@pytest.mark.parametrize("below", ["PACS", "pacs", "PACS/kfold", "kfold", "PACS/PACS"])
def test_the_set_may_lie_in_a_folder_of_its_name(tmp_path: Path, below: str) -> None:
    make_set(tmp_path / below, PACS)
    make_set(tmp_path / "DomainNet", ("clipart", "sketch"))
    put(tmp_path, "sketch/odd/1.jpg")
    dataset = load_dataset("pacs", str(tmp_path))
    assert dataset.domains[0].files[0] == "art_painting/cat/1.jpg"
    assert dataset.domains[0].read(0) == b"image cat/1.jpg"


def test_a_set_of_ones_own_in_a_folder_of_its_name(tmp_path: Path) -> None:
    make_set(tmp_path / "Birds", ("night", "day"))
    make_set(tmp_path / "fish", ("x", "y"))
    assert names(load_dataset("birds", str(tmp_path))) == ("day", "night")
    make_set(tmp_path / "flat", ("flat", "other"))  # a domain called as the set
    assert names(load_dataset("flat", str(tmp_path / "flat"))) == ("flat", "other")


def test_domains_choose_and_keep_the_order(tmp_path: Path) -> None:
    make_set(tmp_path, ("Photo", "sketch"))
    chosen = load_dataset("pacs", str(tmp_path), ["Sketch", "photos"])
    assert names(chosen) == ("photo", "sketch")
    with pytest.raises(DataError, match=r"no domain 'skech'.*did you mean sketch"):
        load_dataset("pacs", str(tmp_path), ["skech"])
    with pytest.raises(DataError, match="no domain of pacs chosen"):
        load_dataset("pacs", str(tmp_path), [])
    with pytest.raises(
        DataError, match=r"no folder for domain 'art_painting'.*my-pacs"
    ):
        load_dataset("pacs", str(tmp_path))


def test_office31_and_vlcs_as_they_are_distributed(tmp_path: Path) -> None:
    for domain in ("amazon", "dslr", "webcam"):
        put(tmp_path / "office31", f"{domain}/images/mug/1.jpg")
    office = load_dataset("office31", str(tmp_path))
    assert office.classes == ("mug",)
    for domain in ("CALTECH", "LABELME", "PASCAL", "SUN"):
        for part in ("train", "test", "crossval", "full"):
            put(tmp_path / "VLCS", *(f"{domain}/{part}/{c}/1.jpg" for c in range(5)))
    vlcs = load_dataset("vlcs", str(tmp_path))
    assert vlcs.classes == ("bird", "car", "chair", "dog", "person")
    assert vlcs.domains[0].files[1] == "CALTECH/full/1/1.jpg"


def test_splits_are_not_classes(tmp_path: Path) -> None:
    put(tmp_path, "a/train/dog/1.jpg", "a/test/dog/1.jpg")
    with pytest.raises(DataError, match="holds test, train, not classes"):
        load_dataset("x", str(tmp_path))


def test_embedded_digits() -> None:
    dataset = load_dataset("Digits", None)
    assert dataset.classes == tuple("0123456789")
    assert names(load_dataset("digits", None, ["SKETCH"])) == ("sketch",)
    with pytest.raises(DataError, match="takes no --root"):
        load_dataset("digits", "/data")
    with pytest.raises(DataError, match="did you mean sketch"):
        load_dataset("digits", None, ["sketches"])


def test_class_sets_must_agree(tmp_path: Path) -> None:
    make_set(tmp_path, ("a", "b"), "cat dog")
    make_set(tmp_path, ("c",), "cat cow pig")
    with pytest.raises(DataError, match="missing dog; extra cow, pig") as caught:
        load_dataset("x", str(tmp_path))
    assert str(tmp_path / "c") in str(caught.value)
    assert "domain a" in str(caught.value)
    for domain in "abc":
        for cls in ("dog", "cow", "pig"):
            (tmp_path / domain / cls).mkdir(exist_ok=True)
    dataset = load_dataset("x", str(tmp_path))  # empty folders keep classes equal
    assert dataset.classes == ("cat", "cow", "dog", "pig")
    assert dataset.domains[2].labels.tolist() == [0, 0, 1, 1, 3, 3]


def test_missing_roots_tell_what_to_do(tmp_path: Path) -> None:
    gone = str(tmp_path / "gone")
    with pytest.raises(DataError, match=f"fedclip data pacs --to {gone}"):
        load_dataset("pacs", gone)
    with pytest.raises(DataError, match="fedclip data officehome --to DIR"):
        load_dataset("officehome", None)
    with pytest.raises(DataError, match="add --root DIR"):
        load_dataset("vlcs", None)
    with pytest.raises(DataError, match=r"did you mean pacs.*--root DIR"):
        load_dataset("pasc", None)
    put(tmp_path, "file")
    with pytest.raises(DataError, match="is not a folder"):
        load_dataset("pacs", str(tmp_path / "file"))


def test_folders_of_another_shape(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no domain folders of pacs"):
        load_dataset("pacs", str(tmp_path))
    with pytest.raises(DataError, match="no domain folders; point --root"):
        load_dataset("x", str(tmp_path))
    put(tmp_path, "a/1.jpg")
    with pytest.raises(DataError, match="a has no class folders; expected a/CLASS/"):
        load_dataset("x", str(tmp_path))
    put(tmp_path, "a/cat/notes.txt")
    with pytest.raises(
        DataError, match=r"a holds no image file, but 1 .txt; expected jpg"
    ):
        load_dataset("x", str(tmp_path))


def test_two_folders_for_one_domain(tmp_path: Path) -> None:
    make_set(tmp_path, (*PACS, "Art Painting"))
    with pytest.raises(DataError, match="both folders of domain art_painting"):
        load_dataset("pacs", str(tmp_path))


def test_an_image_that_went_away(tmp_path: Path) -> None:
    domain = load_dataset("x", str(make_set(tmp_path, ("a",)))).domains[0]
    (tmp_path / "a" / "cat" / "2.jpg").unlink()
    with pytest.raises(DataError, match=r"cat/2\.jpg.*--on-bad-image skip"):
        domain.read(1)
    assert domain.stat is not None
    with pytest.raises(DataError, match=r"cat/2\.jpg"):
        domain.stat(1)


def test_stat_changes_with_the_file(tmp_path: Path) -> None:
    domain = load_dataset("x", str(make_set(tmp_path, ("a",)))).domains[0]
    assert domain.stat is not None
    before = domain.stat(0)
    assert before == domain.stat(0)
    file = tmp_path / "a" / "cat" / "1.jpg"
    status = file.stat()
    file.write_bytes(bytes(status.st_size))  # other bytes, the same size and mtime

    def changed() -> bool:  # once the clock of the file system has ticked
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
        return domain.stat(0) != before

    wait_until(changed)
    assert file.stat().st_mtime_ns == status.st_mtime_ns


def test_names_that_are_not_unicode_can_still_be_hashed(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "cat"
    folder.mkdir(parents=True)
    try:
        (folder / os.fsdecode(b"caf\xe9.jpg")).write_bytes(b"x")
    except OSError:
        pytest.skip("this file system takes only Unicode names")
    domain = load_dataset("x", str(tmp_path)).domains[0]
    assert domain.files[0].encode() == rb"a/cat/caf\xe9.jpg"
    assert domain.read(0) == b"x"


def test_domains_travel_to_worker_processes(tmp_path: Path) -> None:
    domain = load_dataset("x", str(make_set(tmp_path, ("a",)))).domains[0]
    assert pickle.loads(pickle.dumps(domain)).read(0) == b"image cat/1.jpg"


def test_aliases_do_not_clash() -> None:
    for name, known in KNOWN.items():
        for spelling in (name, name.upper(), *known.aliases):
            assert canonical_name(spelling) == name
    assert canonical_name("my-pacs") == "my-pacs"


@pytest.mark.skipif(not MINI.is_dir(), reason="real images are not here")
def test_real_images_in_the_order_of_image_folder() -> None:
    dataset = load_dataset("pacs", str(MINI))
    assert names(dataset) == PACS
    assert [len(domain.files) for domain in dataset.domains] == [140] * 4
    assert_as_image_folder(dataset, MINI)
    with Image.open(MINI / dataset.domains[3].files[-1]) as image:
        assert image.format == "PNG"
